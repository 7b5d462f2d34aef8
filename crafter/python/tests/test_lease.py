"""The messages of a lease, from hand-made bytes."""

import socket
import time
import unittest

from crafter_scapy import lease as leases
from crafter_scapy.errors import LeaseEnded, NotSent, PolicyError
from crafter_scapy.half_open import ACK, RST, SYN
from crafter_scapy.lease import Lease, decode

from .test_half_open import back, out


def message(kind, code, flags=0, length=0, lost=0, rest=b""):
    header = bytes([kind, code]) + flags.to_bytes(2, "big") + bytes.fromhex("01020304 1122334455667788")
    return header + length.to_bytes(4, "big") + lost.to_bytes(4, "big") + rest


class Messages(unittest.TestCase):
    def test_packet_message_is_decoded(self):
        found = decode(bytes.fromhex("01 02 0009 01020304 1122334455667788 0000003c 00000007") + b"\x45data")
        self.assertEqual(found.kind, leases.PACKET)
        self.assertEqual(found.code, leases.OBSERVED)
        self.assertEqual(found.flags, leases.ETHERNET | leases.CUT)
        self.assertEqual((found.index, found.time_ns), (0x01020304, 0x1122334455667788))
        self.assertEqual((found.length, found.lost, found.body), (60, 7, b"\x45data"))

    def test_refusal_has_rule_sentence_and_packet(self):
        sentence = "rule 3: the destination is among those that it denies".encode()
        found = decode(message(2, 0, flags=3, length=len(sentence), rest=sentence + b"\x45\x00"))
        error = found.error
        self.assertIsInstance(error, PolicyError)
        self.assertEqual((error.rule, error.packet), (3, b"\x45\x00"))
        self.assertIn("rule 3: the destination", str(error))
        other = decode(message(2, 2, length=9, rest=b"192.0.2.9")).error
        self.assertIsInstance(other, NotSent)
        self.assertEqual(other.reason, "no neighbour")
        nobody = decode(message(2, 0, length=2, rest=b"no")).error
        self.assertIsNone(nobody.rule)

    def test_end_has_its_reason(self):
        for code, reason in ((4, "interface removed"), (6, "released"), (7, "the service stops"), (99, "code 99")):
            error = decode(message(3, code)).error
            self.assertIsInstance(error, LeaseEnded)
            self.assertEqual(error.reason, reason)

    def test_malformed_message_decodes_to_none(self):
        for data in (b"", bytes(23), message(0, 0), message(4, 0)):
            self.assertIsNone(decode(data))

    def test_sentence_length_beyond_the_message_is_truncated(self):
        found = decode(message(2, 0, length=100, rest=b"short"))
        self.assertEqual((found.body, found.quoted), (b"short", b""))

    def test_port_refusal_has_the_sport_hint(self):
        self.assertIn("set sport", str(PolicyError(1, "port", "rule 1: the local port is not among its ports")))
        self.assertNotIn("set sport", str(PolicyError(1, "denied", "rule 1: the destination is denied")))
        for verdict in ("max-leases", "max-ports"):
            self.assertTrue(PolicyError(1, verdict, "no").is_quota)
        self.assertFalse(PolicyError(1, "port", "no").is_quota)


class Sockets(unittest.TestCase):
    def setUp(self):
        self.service, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(self.service.close)
        reply = {"lease": 7, "socket": 0, "interface": "veth0", "index": 3, "first_port": 4242, "last_port": 4242}
        self.lease = Lease(None, reply, [client.detach()], "tcp", False)
        self.addCleanup(self.lease.close)

    def test_reply_read_before_send_returns_is_tracked(self):
        send = self.lease._send

        def slow(packet):
            send(packet)
            # Another thread reads the reply before this one continues.
            self.service.send(message(1, 0, rest=back(SYN | ACK, seq=1000, ack=8)))
            self.assertEqual(len(self.lease.drain()), 1)
            self.lease._send = send

        self.lease._send = slow
        self.lease.send(out(SYN, seq=7))
        self.service.recv(100)
        self.lease.close()
        self.assertEqual(self.service.recv(100)[33], RST)

    def test_drain_returns_all_messages_up_to_the_limit(self):
        for number in range(100):
            self.service.send(message(1, 0, length=1, rest=bytes([number])))
        found = self.lease.drain()
        self.assertEqual([one.body[0] for one in found], list(range(100)))
        self.assertEqual(self.lease.drain(), [])
        self.service.send(message(1, 0, rest=b"x"))
        self.service.send(message(1, 0, rest=b"y"))
        self.assertEqual(len(self.lease.drain(limit=1)), 1)

    def test_receive_times_out(self):
        began = time.monotonic()
        self.assertEqual(self.lease.receive(timeout=0.05), [])
        self.assertGreaterEqual(time.monotonic() - began, 0.045)

    def test_each_packet_is_one_message(self):
        self.assertEqual(self.lease.send(b"packet"), 6)
        self.lease.send(b"another")
        self.assertEqual(self.service.recv(100), b"packet")
        self.assertEqual(self.service.recv(100), b"another")
        self.assertEqual(self.lease.sent, 2)

    def test_send_waits_for_a_full_socket(self):
        self.lease.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        import threading

        def read():
            time.sleep(0.05)
            for _ in range(200):
                self.service.recv(2000)

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(200):
            self.lease.send(bytes(1000))
        reader.join()
        self.assertEqual(self.lease.sent, 200)

    def test_stopped_service_ends_the_lease(self):
        self.service.send(message(3, 7, length=4, rest=b"bye."))
        self.service.close()
        found = self.lease.receive(timeout=1)
        self.assertEqual(found[-1].kind, leases.END)
        self.assertTrue(self.lease.is_over)
        with self.assertRaises(LeaseEnded):
            self.lease.receive(timeout=1)
        with self.assertRaises(LeaseEnded):
            self.lease.send(b"packet")


if __name__ == "__main__":
    unittest.main()
