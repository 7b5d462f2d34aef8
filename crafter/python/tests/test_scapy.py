"""Scapy on a fake service with a simulated network: no packet leaves the process."""

import gc
import logging
import os
import threading
import time
import unittest

import crafter_scapy
from crafter_scapy import PolicyError, PortTaken

from .service import Service

try:
    from scapy.all import (
        ARP, ICMP, IP, TCP, UDP, AsyncSniffer, Ether, IPv6, Raw, conf, raw, send, sendp, sr, sr1, srp1)
except ImportError as missing:
    raise unittest.SkipTest(f"Scapy is missing: {missing}")

# Addresses of the loopback interface.
NEAR, FAR = "127.0.0.2", "127.0.0.3"


def answer(packet, lease=None):
    """Replies as a peer with open ports."""
    query = IP(packet)
    back = IP(src=query.dst, dst=query.src)
    if TCP in query:
        flags, seq = ("SA", 77) if query[TCP].flags == "S" else ("A", query[TCP].ack)
        return [raw(back / TCP(sport=query.dport, dport=query.sport, flags=flags, seq=seq, ack=query.seq + 1))]
    if ICMP in query:
        return [raw(back / ICMP(type=0, id=query[ICMP].id, seq=query[ICMP].seq) / query[ICMP].payload)]
    return [raw(back / UDP(sport=query.dport, dport=query.sport) / b"yes")]


class Exchanges(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.addClassCleanup(setattr, conf, "verb", conf.verb)
        conf.verb = 0

    def setUp(self):
        self.service = Service()
        self.service.network = answer
        crafter_scapy.install(self.service.path)
        self.addCleanup(self.service.close)
        self.addCleanup(crafter_scapy.uninstall)

    def leased(self):
        """Returns the requested leases, without the early one of install()."""
        warm = {"protocol", "interface"}
        leases = [call["parameters"] for call in self.service.calls if call["method"].endswith(".Lease")]
        return [one for one in leases if set(one) != warm or one["protocol"] != "none"]

    def test_sr1_leases_the_port_and_returns_the_reply(self):
        reply = sr1(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S"), timeout=5)
        self.assertEqual(str(reply[TCP].flags), "SA")
        self.assertAlmostEqual(reply.time, time.time(), delta=5)
        self.assertEqual(self.leased(), [{"protocol": "tcp", "interface": "lo", "address": NEAR, "port": 4242}])

    def test_port_stays_leased_between_calls(self):
        for flags in "SAA":
            self.assertIsNotNone(sr1(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags=flags), timeout=5))
        send(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="A"))
        self.assertEqual(len(self.leased()), 1)
        self.assertEqual(crafter_scapy.release(4242), 1)
        self.assertEqual(crafter_scapy.release(), 0)
        self.wait(lambda: not self.service.leases)
        self.assertIsNotNone(sr1(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S"), timeout=5))

    def resets(self):
        """Returns a list that collects the RSTs sent from now on."""
        found = []

        def network(packet, lease):
            if IP(packet).haslayer(TCP) and IP(packet)[TCP].flags == "R":
                found.append(IP(packet))
                return []
            return answer(packet)

        self.service.network = network
        return found

    def test_half_open_connection_is_reset_before_release(self):
        found = self.resets()
        syn = IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S", seq=7)
        for release in (crafter_scapy.release, crafter_scapy.uninstall):
            self.assertIsNotNone(sr1(syn, timeout=5))
            self.assertEqual(found, [])
            release()
            self.wait(lambda: len(found) == 1)
            reset = found.pop()
            self.assertEqual((reset.src, reset.dst, reset[TCP].sport, reset[TCP].dport), (NEAR, FAR, 4242, 80))
            self.assertEqual(reset[TCP].seq, 8)
            self.assertEqual(raw(reset), raw(reset.__class__(raw(reset))))

    def test_acknowledged_or_leave_open_connection_is_not_reset(self):
        found = self.resets()
        syn = IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S", seq=7)
        sr1(syn, timeout=5)
        send(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="A", seq=8, ack=78))
        self.assertEqual(crafter_scapy.release(), 1)
        crafter_scapy.uninstall()
        crafter_scapy.install(self.service.path, leave_open=True)
        self.assertIsNotNone(sr1(syn, timeout=5))
        self.assertEqual(crafter_scapy.release(), 1)
        self.wait(lambda: not self.service.leases)
        self.assertEqual(found, [])

    def test_child_does_not_reset_connections_of_its_parent(self):
        found = self.resets()
        sr1(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S", seq=7), timeout=5)
        child = os.fork()
        if child == 0:
            crafter_scapy.uninstall()
            os._exit(0)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(found, [])
        crafter_scapy.release()
        self.wait(lambda: len(found) == 1)

    def only_lease(self):
        self.wait(lambda: len(self.service.leases) == 1)
        return min(self.service.leases)

    def wait(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.001)

    def test_packet_received_before_the_exchange_is_not_a_reply(self):
        self.service.network = lambda packet, lease: []
        probe = IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S")
        send(probe)
        lease = self.only_lease()
        self.service.send(lease, 1, answer(raw(probe))[0])
        self.assertIsNone(sr1(probe, timeout=0.1))

    def test_icmp_and_udp_are_leased(self):
        self.assertEqual(sr1(IP(src=NEAR, dst=FAR) / ICMP(id=7000) / b"x", timeout=5)[ICMP].id, 7000)
        self.assertEqual(sr1(IP(src=NEAR, dst=FAR) / UDP(sport=5000, dport=7777) / b"x", timeout=5)[Raw].load, b"yes")
        self.assertEqual([one["protocol"] for one in self.leased()], ["icmp", "udp"])

    def test_ipv6_reply_is_returned(self):
        def network(packet, lease):
            query = IPv6(packet)
            tcp = TCP(sport=query.dport, dport=query.sport, flags="SA", ack=query.seq + 1)
            return [raw(IPv6(src=query.dst, dst=query.src) / tcp)]

        self.service.network = network
        reply = sr1(IPv6(src="::1", dst="::1") / TCP(sport=4242, dport=80, flags="S"), timeout=5)
        self.assertIs(type(reply), IPv6)

    def test_many_packets_with_and_without_a_sending_thread(self):
        probes = IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=(1, 300), flags="S")
        for threaded in (True, False):
            answered, unanswered = sr(probes, timeout=5, threaded=threaded)
            self.assertEqual((len(answered), len(unanswered)), (300, 0))

    def test_refused_packet_raises(self):
        self.service.network = lambda packet, lease: "rule 1: the destination is among those that it denies"
        probe = IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S")
        for call in (
            lambda: sr1(probe, timeout=60),
            lambda: sr1(probe, timeout=60, threaded=False),
            lambda: sr(probe, multi=True, timeout=60),
            lambda: send(probe),
        ):
            began = time.monotonic()
            with self.assertRaises(PolicyError) as caught:
                call()
            self.assertLess(time.monotonic() - began, 10)
            self.assertEqual(caught.exception.rule, 1)
            self.assertEqual(IP(caught.exception.packet).dst, FAR)

    def test_one_refused_of_many_is_logged_and_the_others_continue(self):
        def network(packet, lease):
            return "rule 1: no" if IP(packet).dport == 2 else answer(packet)

        self.service.network = network
        with self.assertLogs("scapy.crafter", logging.WARNING) as logged:
            answered, unanswered = sr(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=[1, 2, 3]), timeout=2)
        self.assertEqual((len(answered), len(unanswered)), (2, 1))
        self.assertIn("rule 1: no", "".join(logged.output))

    def test_port_that_cannot_be_leased_raises(self):
        with self.assertRaises(PolicyError) as caught:
            sr1(IP(src=NEAR, dst=FAR) / TCP(dport=80, flags="S"), timeout=60)
        self.assertIn("set sport", str(caught.exception))
        with self.assertRaises(crafter_scapy.NotSent) as caught:
            sr1(IP(src=NEAR, dst=FAR) / TCP(sport=0, dport=80, flags="S"), timeout=60)
        self.assertIn("set sport", str(caught.exception))
        for call in (sr1, send):
            with self.assertRaises(PortTaken) as caught:
                call(IP(src=NEAR, dst=FAR) / TCP(sport=33333, dport=80, flags="S"))
            self.assertIn("nginx (pid 12)", str(caught.exception))

    def test_icmp_identifier_0_is_leased(self):
        send(IP(src=NEAR, dst=FAR) / ICMP())
        self.assertEqual(len(self.service.leases), 1)

    def test_oldest_port_is_released_at_the_quota(self):
        self.service.max_leases = 3
        for port in range(4000, 4010):
            self.assertIsNotNone(sr1(IP(src=NEAR, dst=FAR) / TCP(sport=port, dport=80, flags="S"), timeout=5))
            self.wait(lambda: len(self.service.leases) <= 3)
        # Except ports that an open socket has sent from.
        with self.assertRaises(PolicyError) as caught:
            send([IP(src=NEAR, dst=FAR) / TCP(sport=port, dport=80) for port in range(5000, 5004)])
        self.assertEqual(caught.exception.verdict, "max-leases")

    def test_sniff_and_sr_receive_the_same_packet(self):
        sniffer = AsyncSniffer(iface="lo", lfilter=lambda packet: TCP in packet, count=1)
        sniffer.start()
        self.wait(lambda: getattr(sniffer, "continue_sniff", False))
        self.assertIsNotNone(sr1(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S"), timeout=5))
        sniffer.join(5)
        self.assertEqual(str(sniffer.results[0][TCP].flags), "SA")

    def test_filter_selects_packets(self):
        sniffer = AsyncSniffer(iface="lo", filter="udp and dst port 5001")
        try:
            sniffer.start()
            self.wait(lambda: getattr(sniffer, "continue_sniff", False) or getattr(sniffer, "exception", None))
            if getattr(sniffer, "exception", None):
                self.skipTest(f"libpcap is missing: {sniffer.exception}")
            for port in (5000, 5001, 5002):
                sr1(IP(src=NEAR, dst=FAR) / UDP(sport=port, dport=7777), timeout=5)
        finally:
            sniffer.stop()
        self.assertEqual([packet[UDP].dport for packet in sniffer.results], [5001])

    def test_socket_works_with_select(self):
        import select

        with conf.L3socket() as one:
            one.send(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S"))
            self.assertEqual(select.select([one], [], [], 5)[0], [one])
            self.assertEqual(str(one.recv()[TCP].flags), "SA")
            self.assertEqual(one.select([one], 0), [])
            one.send(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="A"))
            self.assertEqual(str(one.recv()[TCP].flags), "A")

    def test_garbage_collected_socket_leaves_nothing(self):
        self.service.rule["observe"] = True
        send(IP(src=NEAR, dst=FAR) / UDP(sport=5000, dport=7777))
        crafter_scapy.release()
        self.wait(lambda: not self.service.leases)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            one = conf.L2listen(iface="lo")
            one.cycle = one
            del one
            gc.collect()
        with conf.L3socket():
            self.wait(lambda: not self.service.leases)
        self.wait(lambda: len(os.listdir("/proc/self/fd")) <= before)

    def test_fragments_are_sent_by_the_lease_of_their_datagram(self):
        sent = []
        self.service.network = lambda packet, lease: sent.append((lease, IP(packet))) or []
        send(IP(src=NEAR, dst=FAR, id=9) / UDP(sport=5000, dport=7777) / (b"x" * 4000))
        self.wait(lambda: len(sent) == 3)
        self.assertEqual(len({lease for lease, _ in sent}), 1)
        self.assertEqual([packet.frag for _, packet in sent], [0, 185, 370])

    def test_lost_packets_are_logged(self):
        self.service.network = lambda packet, lease: []
        with conf.L3socket() as one:
            one.send(IP(src=NEAR, dst=FAR) / UDP(sport=5000, dport=7777))
            lease = self.only_lease()
            reply = answer(raw(IP(src=NEAR, dst=FAR) / UDP(sport=5000, dport=7777)))[0]
            self.service.send(lease, 1, reply, lost=3)
            with self.assertLogs("scapy.crafter", logging.WARNING) as logged:
                self.service.send(lease, 1, reply, lost=10)
                self.assertIsNotNone(one.recv())
                self.assertIsNotNone(one.recv())
        self.assertIn("7 packets were lost", "".join(logged.output))

    def test_granted_frames_are_sent_by_one_lease(self):
        self.service.rule["raw_ethernet"] = True
        self.service.network = lambda packet, lease: answer(packet[14:]) if packet[12:14] == b"\x08\x00" else []
        probe = Ether(dst="02:00:00:00:00:09") / IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S")
        reply = srp1(probe, iface="lo", timeout=5)
        self.assertEqual((reply[Ether].dst, str(reply[TCP].flags)), ("02:00:00:00:00:01", "SA"))
        sendp(Ether() / ARP(), iface="lo")
        wanted = [(one["protocol"], one.get("port"), one.get("frames")) for one in self.leased()]
        self.assertEqual(wanted, [("none", None, True), ("tcp", 4242, None)])
        # The service supplies the next hop's address without ARP.
        self.assertEqual(Ether(raw(Ether() / IP(dst=FAR))).dst, "02:00:00:00:00:09")

    def test_child_leases_its_own_ports(self):
        probe = IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S")
        self.assertIsNotNone(sr1(probe, timeout=5))
        child = os.fork()
        if child == 0:
            probe[TCP].sport = 4243
            os._exit(0 if sr1(probe, timeout=5) is not None else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertIsNotNone(sr1(probe, timeout=5))
        self.assertEqual([one["port"] for one in self.leased()], [4242, 4243])

    def test_stopped_service_raises(self):
        self.assertIsNotNone(sr1(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S"), timeout=5))
        self.service.close()
        with self.assertRaises(crafter_scapy.ServiceNotRunning), self.assertLogs("scapy.crafter", logging.WARNING):
            send(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="A"))

    def test_tcp_client_leases_a_free_port(self):
        import inspect

        from scapy.layers.inet import TCP_client

        if "sport" not in inspect.signature(TCP_client.parse_args).parameters:
            self.skipTest("TCP_client of this Scapy has no sport")
        self.service.network = lambda packet, lease: "rule 1: no"
        with self.assertRaises(PolicyError), self.assertLogs("scapy.crafter", logging.WARNING):
            TCP_client(FAR, 80).run()
        self.assertEqual(self.leased(), [{"protocol": "tcp", "interface": "lo", "address": "127.0.0.1"}])

    def test_first_lease_ends_the_early_one(self):
        self.assertIsNotNone(sr1(IP(src=NEAR, dst=FAR) / TCP(sport=4242, dport=80, flags="S"), timeout=5))
        self.wait(lambda: len(self.service.leases) == 1)
        self.wait(lambda: not any(isinstance(one, threading.Timer) for one in threading.enumerate()))


class Installing(unittest.TestCase):
    def test_uninstall_restores_scapy(self):
        from scapy import interfaces, sendrecv
        from scapy.layers import inet, inet6, l2

        places = [(conf, name) for name in ("L3socket", "L3socket6", "L2socket", "L2listen")]
        places += [(sendrecv, "sndrcv"), (interfaces.NetworkInterface, "l3socket"), (l2, "getmacbyip"),
                   (inet, "getmacbyip"), (inet6, "getmacbyip6")]
        before = [getattr(owner, name) for owner, name in places]
        service = Service()
        self.addCleanup(service.close)
        crafter_scapy.install(service.path)
        crafter_scapy.install(service.path)
        self.assertFalse(any(getattr(owner, name) is was for (owner, name), was in zip(places, before)))
        self.assertIsNotNone(crafter_scapy.client())
        crafter_scapy.uninstall()
        self.assertEqual([getattr(owner, name) for owner, name in places], before)
        self.assertIsNone(crafter_scapy.client())

    def test_install_without_a_service_raises_and_changes_nothing(self):
        before = conf.L3socket
        with self.assertRaises(crafter_scapy.ServiceNotRunning):
            crafter_scapy.install("/nonexistent/crafter.sock")
        self.assertIs(conf.L3socket, before)


if __name__ == "__main__":
    unittest.main()
