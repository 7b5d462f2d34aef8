"""Leases that packets need, from hand-made bytes."""

import unittest

from crafter_scapy.packet import NOTHING, need, need_of_frame

V4 = "4500 0028 0001 {fragment} 4006 0000 c0000202 c0000201"
V6 = "60000000 0014 {next} 40 20010db8000000000000000000000002 20010db8000000000000000000000001"
TCP = "1092 0050 00000001 00000000 5002 2000 0000 0000"
ECHO = "0800 0000 1234 0001"


def packet(*parts, **values):
    return bytes.fromhex("".join(parts).format(**values).replace(" ", ""))


def v4(protocol, *parts, fragment="0000"):
    whole = bytearray(packet(V4, *parts, fragment=fragment))
    whole[9] = protocol
    return bytes(whole)


class Needs(unittest.TestCase):
    def test_tcp_and_udp_need_the_source_port(self):
        found = need(v4(6, TCP))
        self.assertEqual(found[:4], ("tcp", "192.0.2.2", 4242, "192.0.2.1"))
        self.assertIsNone(found.datagram)
        self.assertEqual(need(v4(17, "ffff 0035 0008 0000"))[:3], ("udp", "192.0.2.2", 65535))

    def test_ports_are_read_after_ip_options(self):
        whole = bytearray(packet(V4, "01010100", TCP, fragment="0000"))
        whole[0] = 0x46
        self.assertEqual(need(bytes(whole)).port, 4242)

    def test_icmp_queries_need_the_identifier_others_nothing(self):
        for kind in (8, 13, 15, 17):
            query = v4(1, f"{kind:02x}00 0000 1234 0001")
            self.assertEqual(need(query)[:3], ("icmp", "192.0.2.2", 0x1234))
        for kind in (0, 3, 5, 11, 14):
            self.assertEqual(need(v4(1, f"{kind:02x}00 0000 1234 0001"))[:3], ("none", "192.0.2.2", None))
        echo6 = packet(V6, "8000 0000 1234 0001", next="3a")
        self.assertEqual(need(echo6)[:3], ("icmp", "2001:db8::2", 0x1234))
        # ICMPv6 in IPv4 is another protocol.
        self.assertEqual(need(v4(58, "8000 0000 1234 0001")).protocol, "none")

    def test_other_protocols_need_no_port(self):
        self.assertEqual(need(v4(47, "00000800"))[:3], ("none", "192.0.2.2", None))

    def test_fragments_share_the_key_of_their_datagram(self):
        first = need(v4(1, ECHO, fragment="2000"))
        later = need(v4(1, "00" * 8, fragment="2001"))
        last = need(v4(1, "00" * 8, fragment="0002"))
        self.assertEqual(first.port, 0x1234)
        self.assertEqual({first.datagram, later.datagram, last.datagram}, {first.datagram})
        self.assertEqual([one.is_later_fragment for one in (first, later, last)], [False, True, True])
        # DF alone is not a fragment.
        self.assertIsNone(need(v4(1, ECHO, fragment="4000")).datagram)

    def test_ipv6_extension_headers_are_skipped(self):
        hop = "06 00 0104 00000000"
        self.assertEqual(need(packet(V6, hop, TCP, next="00"))[:3], ("tcp", "2001:db8::2", 4242))
        fragment = "06 00 0001 00000007"
        found = need(packet(V6, fragment, TCP, next="2c"))
        self.assertEqual((found.port, found.is_later_fragment), (4242, False))
        later = need(packet(V6, "06 00 0008 00000007", "00" * 8, next="2c"))
        self.assertEqual((later.protocol, later.is_later_fragment, later.datagram), ("tcp", True, found.datagram))
        # An atomic fragment is a whole datagram (RFC 6946, section 4).
        self.assertIsNone(need(packet(V6, "06 00 0000 00000007", TCP, next="2c")).datagram)
        authentication = "06 01 0000 00000001 00000001"
        self.assertEqual(need(packet(V6, authentication, TCP, next="33")).port, 4242)

    def test_unspecified_source_is_none(self):
        discover = bytearray(v4(17, "0044 0043 0008 0000"))
        discover[12:16] = bytes(4)
        self.assertEqual(need(bytes(discover))[:3], ("udp", None, 68))

    def test_unreadable_packets_need_nothing(self):
        for whole in (v4(6, TCP), packet(V6, "06 00 0104 00000000", TCP, next="00")):
            for length in range(len(whole)):
                self.assertIsNotNone(need(whole[:length]))
        for garbage in (b"", b"\x00", b"\x45", b"\x60" * 39, b"\xff" * 60):
            self.assertEqual(need(garbage), NOTHING)

    def test_frame_needs_the_lease_of_its_packet(self):
        addresses = bytes(12)
        inner = v4(6, TCP)
        self.assertEqual(need_of_frame(addresses + b"\x08\x00" + inner), need(inner))
        self.assertEqual(need_of_frame(addresses + b"\x81\x00\x00\x07\x08\x00" + inner), need(inner))
        for other in (addresses + b"\x08\x06" + bytes(28), addresses, b""):
            self.assertEqual(need_of_frame(other), NOTHING)


if __name__ == "__main__":
    unittest.main()
