"""Half-open connections: a SYN-ACK answered a SYN of ours, and nothing that was sent acknowledged it.

The peer repeats its SYN-ACK until it is acknowledged or reset. Once the lease of the port has ended, the kernel answers
the next one with a RST, a second later; a RST that is sent before the lease ends spares both.
"""

import socket
import struct
from collections import OrderedDict

from .packet import TCP, is_extension

FIN, SYN, RST, ACK = 1, 2, 4, 16
_MODULUS = 1 << 32

#: SYNs that are tracked at a time, answered or not. The kernel resets the older ones.
_CAPACITY = 1 << 16
#: How far an acknowledgment may be beyond the SYN-ACK: a peer may have sent data with it (RFC 7413).
_EARLY_DATA = 0xFFFF


class _Connection:
    __slots__ = ("seq", "length", "syn_ack", "acknowledged")

    def __init__(self, seq, length):
        #: Of the latest SYN: its number, and what it takes of the sequence space.
        self.seq, self.length = seq, length
        #: Sequence and acknowledgment number of the SYN-ACK.
        self.syn_ack = None
        #: What was acknowledged before the SYN-ACK was read.
        self.acknowledged = None


class HalfOpen:
    """Connections that were begun by a SYN of ours."""

    def __init__(self):
        #: By local address, local port, remote address, remote port.
        self._connections = OrderedDict()

    def handle_sent(self, packet):
        """A packet leaves, given from its IP header on."""
        segment = _read(packet)
        if segment is None:
            return
        ends, seq, ack, flags, length = segment
        if flags & SYN and not flags & (ACK | RST):
            known = self._connections.get(ends)
            if known is not None:
                # The peer answers it as it has answered the first.
                known.seq, known.length = seq, length
                return
            self._connections[ends] = _Connection(seq, length)
            if len(self._connections) > _CAPACITY:
                self._connections.popitem(last=False)
            return
        known = self._connections.get(ends)
        if known is None:
            return
        if flags & RST:
            is_over = known.syn_ack is None or seq == known.syn_ack[1]
        elif flags & ACK and known.syn_ack is None:
            known.acknowledged, is_over = ack, False
        else:
            is_over = flags & ACK and _acknowledges(ack, known.syn_ack)
        if is_over:
            del self._connections[ends]

    def handle_received(self, packet):
        """A packet with a right checksum has come, given from its IP header on."""
        segment = _read(packet)
        if segment is None:
            return
        (remote, remote_port, local, port), seq, ack, flags, _ = segment
        ends = (local, port, remote, remote_port)
        known = self._connections.get(ends)
        if known is None:
            return
        is_right = 1 <= (ack - known.seq) % _MODULUS <= known.length
        if flags & RST:
            if known.syn_ack is None:
                is_over = flags & ACK and is_right
            else:
                is_over = seq == (known.syn_ack[0] + 1) % _MODULUS
        elif flags & SYN and flags & ACK and is_right:
            known.syn_ack = (seq, ack)
            is_over = known.acknowledged is not None and _acknowledges(known.acknowledged, known.syn_ack)
        else:
            is_over = False
        if is_over:
            del self._connections[ends]

    def take(self, first_port, last_port, address=None):
        """Forgets the connections of local ports that are given back; the resets of the half-open ones, as packets."""
        own = None if address is None else _packed(address)
        taken = [ends for ends in self._connections
                 if first_port <= ends[1] <= last_port and own in (None, ends[0])]
        known = [(ends, self._connections.pop(ends)) for ends in taken]
        return [_reset(ends, one.syn_ack[1]) for ends, one in known if one.syn_ack is not None]


def _acknowledges(ack, syn_ack):
    return (ack - syn_ack[0] - 1) % _MODULUS <= _EARLY_DATA


def _packed(address):
    """The bytes of an address; None: one that stands for all."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return packed if any(packed) else None


def _read(packet):
    """Ends, numbers, flags and length of a TCP segment that is whole; None: it is none."""
    try:
        if packet[0] >> 4 == 4:
            if packet[9] != TCP or struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
                return None
            at, end = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
            source, destination = packet[12:16], packet[16:20]
        elif packet[0] >> 4 == 6:
            at, end = 40, 40 + struct.unpack_from("!H", packet, 4)[0]
            source, destination, protocol = packet[8:24], packet[24:40], packet[6]
            while is_extension(protocol):
                protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
            if protocol != TCP:
                return None
        else:
            return None
        sport, dport, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", packet, at)
    except (IndexError, struct.error):
        return None
    # A SYN and a FIN take a number each.
    length = max(0, end - at - (offset >> 4) * 4) + bool(flags & SYN) + bool(flags & FIN)
    return (bytes(source), sport, bytes(destination), dport), seq, ack, flags, length


def _reset(ends, seq):
    """`<SEQ=SEG.ACK><CTL=RST>` (RFC 9293, section 3.5.2), from the IP header on."""
    source, sport, destination, dport = ends
    segment = struct.pack("!HHIIBBHHH", sport, dport, seq, 0, 5 << 4, RST, 0, 0, 0)
    if len(source) == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, TCP, 0) + source + destination
        header = _with_checksum(header, 10, header)
        pseudo = source + destination + struct.pack("!HH", TCP, len(segment))
    else:
        header = struct.pack("!IHBB", 6 << 28, len(segment), TCP, 64) + source + destination
        pseudo = source + destination + struct.pack("!II", len(segment), TCP)
    return header + _with_checksum(segment, 16, pseudo + segment)


def _with_checksum(data, at, covered):
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + struct.pack("!H", ~total & 0xFFFF) + data[at + 2:]
