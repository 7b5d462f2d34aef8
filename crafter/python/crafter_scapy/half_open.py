"""Half-open connections: a SYN-ACK answered our SYN, and no sent segment acknowledged it.

The peer retransmits its SYN-ACK until it is acknowledged or reset. After the lease of the port has ended, the kernel
answers the next SYN-ACK with a RST, about a second later. A RST sent before the lease ends avoids the retransmission.
"""

import socket
import struct
from collections import OrderedDict

from .packet import TCP, is_extension

FIN, SYN, RST, ACK = 1, 2, 4, 16
_MODULUS = 1 << 32

#: Maximum number of tracked SYNs, answered or not. The kernel resets the connections of evicted ones.
_CAPACITY = 1 << 16
#: Maximum distance of an acknowledgment from the SYN-ACK: the peer may have sent data with it (RFC 7413).
_EARLY_DATA = 0xFFFF


class _Connection:
    __slots__ = ("seq", "length", "syn_ack", "acknowledged")

    def __init__(self, seq, length):
        #: Sequence number and length in sequence space of the latest SYN.
        self.seq, self.length = seq, length
        #: Sequence and acknowledgment number of the SYN-ACK; None: not received.
        self.syn_ack = None
        #: Acknowledgment number sent before the SYN-ACK was read; None: none.
        self.acknowledged = None


class HalfOpen:
    """Tracks the connections that a sent SYN has opened."""

    def __init__(self):
        #: Key: local address, local port, remote address, remote port.
        self._connections = OrderedDict()

    def handle_sending(self, packet):
        """Takes note of a SYN before it is sent: another thread may receive the answer before the call that sends it
        returns. `packet` begins with the IP header."""
        segment = _read(packet)
        if segment is None or not _is_syn(segment):
            return
        ends, seq, _, _, length = segment
        known = self._connections.get(ends)
        if known is not None:
            # The peer answers a retransmitted SYN as it answered the first.
            known.seq, known.length = seq, length
            return
        self._connections[ends] = _Connection(seq, length)
        if len(self._connections) > _CAPACITY:
            self._connections.popitem(last=False)

    def handle_sent(self, packet):
        """Takes note of any other segment after it was sent. `packet` begins with the IP header."""
        segment = _read(packet)
        if segment is None or _is_syn(segment):
            return
        ends, seq, ack, flags, _ = segment
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
        """Takes note of a received packet with a valid checksum. `packet` begins with the IP header."""
        segment = _read(packet)
        if segment is None:
            return
        (remote, remote_port, local, port), seq, ack, flags, _ = segment
        ends = (local, port, remote, remote_port)
        known = self._connections.get(ends)
        if known is None:
            return
        acknowledges_syn = 1 <= (ack - known.seq) % _MODULUS <= known.length
        if flags & RST:
            if known.syn_ack is None:
                is_over = flags & ACK and acknowledges_syn
            else:
                is_over = seq == (known.syn_ack[0] + 1) % _MODULUS
        elif flags & SYN and flags & ACK and acknowledges_syn:
            known.syn_ack = (seq, ack)
            is_over = known.acknowledged is not None and _acknowledges(known.acknowledged, known.syn_ack)
        else:
            is_over = False
        if is_over:
            del self._connections[ends]

    def take(self, first_port, last_port, address=None):
        """Stops tracking the connections of these local ports; returns RST packets for the half-open ones.

        `address`: only connections from this local address; None or the unspecified address: from any.
        """
        own = None if address is None else _packed(address)
        taken = [ends for ends in self._connections
                 if first_port <= ends[1] <= last_port and own in (None, ends[0])]
        known = [(ends, self._connections.pop(ends)) for ends in taken]
        return [_reset(ends, one.syn_ack[1]) for ends, one in known if one.syn_ack is not None]


def _is_syn(segment):
    flags = segment[3]
    return flags & SYN and not flags & (ACK | RST)


def _acknowledges(ack, syn_ack):
    return (ack - syn_ack[0] - 1) % _MODULUS <= _EARLY_DATA


def _packed(address):
    """Returns the bytes of an address; None for the unspecified address."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return packed if any(packed) else None


def _read(packet):
    """Reads a TCP segment: addresses and ports, sequence and acknowledgment number, flags, length in sequence space.

    Returns None for fragments and for packets that are not TCP.
    """
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
    # SYN and FIN each count as one (RFC 9293, section 3.4).
    length = max(0, end - at - (offset >> 4) * 4) + bool(flags & SYN) + bool(flags & FIN)
    return (bytes(source), sport, bytes(destination), dport), seq, ack, flags, length


def _reset(ends, seq):
    """Builds `<SEQ=SEG.ACK><CTL=RST>` (RFC 9293, section 3.5.2) as an IP packet."""
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
