"""Tracking of half-open connections, with hand-made segments."""

import socket
import struct
import unittest

from crafter_scapy.half_open import ACK, FIN, RST, SYN, HalfOpen

NEAR, FAR = "192.0.2.2", "192.0.2.1"
NEAR6, FAR6 = "2001:db8::2", "2001:db8::1"


def segment(source, sport, destination, dport, flags, seq=0, ack=0, data=b"", fragment=0):
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 1024, 0, 0) + data
    if ":" in source:
        ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
        # With a hop-by-hop options header.
        return struct.pack("!IHBB", 6 << 28, len(tcp) + 8, 0, 64) + ends + bytes([6, 0, 1, 4, 0, 0, 0, 0]) + tcp
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, fragment, 64, 6, 0) + ends + tcp


def out(flags, **more):
    return segment(NEAR, 4242, FAR, 80, flags, **more)


def back(flags, **more):
    return segment(FAR, 80, NEAR, 4242, flags, **more)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Tracking(unittest.TestCase):
    def setUp(self):
        self.half_open = HalfOpen()

    def send(self, packet):
        self.half_open.handle_sending(packet)
        self.half_open.handle_sent(packet)

    def resets(self, *steps):
        self.half_open = HalfOpen()
        for direction, packet in steps:
            if direction is out:
                self.send(packet)
            else:
                self.half_open.handle_received(packet)
        return self.half_open.take(4242, 4242)

    def test_unacknowledged_syn_ack_is_reset_once(self):
        found = self.resets((out, out(SYN, seq=7)), (back, back(SYN | ACK, seq=1000, ack=8)))
        self.assertEqual(len(found), 1)
        packet = found[0]
        self.assertEqual((packet[12:16], packet[16:20]), (socket.inet_aton(NEAR), socket.inet_aton(FAR)))
        self.assertEqual(struct.unpack_from("!HHII", packet, 20), (4242, 80, 8, 0))
        self.assertEqual(packet[33], RST)
        self.assertEqual(checksum(packet[:20]), 0xFFFF)
        self.assertEqual(checksum(packet[12:20] + b"\0\x06\0\x14" + packet[20:]), 0xFFFF)
        self.assertEqual(self.half_open.take(4242, 4242), [])

    def test_ipv6_connection_is_reset(self):
        self.send(segment(NEAR6, 4242, FAR6, 80, SYN, seq=0xFFFFFFFF))
        self.half_open.handle_received(segment(FAR6, 80, NEAR6, 4242, SYN | ACK, seq=5, ack=0))
        self.assertEqual(self.half_open.take(4242, 4242, FAR6), [], "another local address")
        packet, = self.half_open.take(4000, 5000, NEAR6)
        self.assertEqual(struct.unpack_from("!HHII", packet, 40), (4242, 80, 0, 0))
        self.assertEqual(checksum(packet[8:40] + struct.pack("!II", 20, 6) + packet[40:]), 0xFFFF)

    def test_acknowledged_and_reset_connections_are_not_half_open(self):
        syn, syn_ack = (out, out(SYN, seq=7)), (back, back(SYN | ACK, seq=1000, ack=8))
        for ended in (
            [syn],
            [syn, syn_ack, (out, out(ACK, seq=8, ack=1001))],
            [syn, syn_ack, (out, out(ACK | FIN, seq=8, ack=1001, data=b"x"))],
            [syn, syn_ack, (out, out(RST, seq=8))],
            [syn, syn_ack, (back, back(RST, seq=1001))],
            [syn, (back, back(RST | ACK, seq=0, ack=8))],
            # The ACK is sent before the SYN-ACK is read.
            [syn, (out, out(ACK, seq=8, ack=1001)), syn_ack],
            # It acknowledges another SYN.
            [syn, (back, back(SYN | ACK, seq=1000, ack=9))],
            # Fragments and malformed packets.
            [(out, out(SYN, seq=7, fragment=0x2000)), syn_ack],
            [(out, b""), (out, b"\x45"), (back, b"\x60" * 50), syn_ack],
            # No SYN was sent.
            [syn_ack],
        ):
            self.assertEqual(self.resets(*ended), [], ended)
        for left in (
            [syn, syn_ack, (out, out(ACK, seq=8, ack=999))],
            [syn, syn_ack, (out, out(RST, seq=5))],
            [syn, syn_ack, (back, back(RST, seq=5))],
            [syn, syn_ack, syn, syn_ack],
            [syn, (out, out(SYN, seq=7)), syn_ack],
            # With data in the SYN (RFC 7413).
            [(out, out(SYN, seq=7, data=b"data")), (back, back(SYN | ACK, seq=1, ack=12))],
        ):
            self.assertEqual(len(self.resets(*left)), 1, left)

    def test_only_released_ports_are_reset(self):
        for port in (4241, 4242, 4243):
            self.send(segment(NEAR, port, FAR, 80, SYN, seq=1))
            self.half_open.handle_received(segment(FAR, 80, NEAR, port, SYN | ACK, seq=1, ack=2))
        self.assertEqual(len(self.half_open.take(4242, 4243, "0.0.0.0")), 2)
        self.assertEqual(len(self.half_open.take(1, 65535)), 1)


if __name__ == "__main__":
    unittest.main()
