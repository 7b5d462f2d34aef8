"""Finds out which lease a packet needs, from its bytes, as the service does."""

import socket
import struct
from typing import NamedTuple, Optional

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_FRAGMENT, _AUTHENTICATION = 44, 51
#: Hop-by-hop, routing, destination options, mobility, HIP, Shim6: the byte at offset 1 is the length, in units of
#: 8 bytes, without the first 8.
_EXTENSIONS = frozenset((0, 43, 60, 135, 139, 140))
#: ICMP types of echo, timestamp, information and address mask requests, by protocol.
_QUERIES = {ICMP: (8, 13, 15, 17), ICMPV6: (128,)}
_TAGS = (0x8100, 0x88A8, 0x9100)
_IP_TYPES = (0x0800, 0x86DD)


class Need(NamedTuple):
    """The lease that a packet needs."""

    #: `tcp`, `udp`, `icmp`, or `none`.
    protocol: str
    #: Source address; None: unspecified, or not an IP packet.
    address: Optional[str]
    #: Source port, or identifier of an ICMP query.
    port: Optional[int]
    #: Destination address.
    destination: Optional[str]
    #: Key that all fragments of a datagram share; None: not a fragment.
    datagram: Optional[tuple] = None

    @property
    def is_later_fragment(self):
        """Whether it is a fragment without ports."""
        return self.datagram is not None and self.port is None


#: For frames without IP and for unreadable packets: the service reports the error.
NOTHING = Need("none", None, None, None)


def is_extension(protocol):
    """Whether `protocol` is an IPv6 extension header with a length in units of 8 bytes."""
    return protocol in _EXTENSIONS


def need(packet):
    """Returns the lease that an IP packet needs."""
    try:
        if packet[0] >> 4 == 4:
            return _v4(packet)
        if packet[0] >> 4 == 6:
            return _v6(packet)
    except (IndexError, struct.error):
        pass
    return NOTHING


def need_of_frame(frame):
    """Returns the lease that an Ethernet frame needs: that of its IP packet, also behind VLAN tags."""
    at = 12
    while len(frame) >= at + 2:
        kind = int.from_bytes(frame[at:at + 2], "big")
        at += 2
        if kind in _TAGS:
            at += 2
            continue
        return need(frame[at:]) if kind in _IP_TYPES else NOTHING
    return NOTHING


def _v4(packet):
    length = (packet[0] & 15) * 4
    identification, fragment = struct.unpack_from("!HH", packet, 4)
    protocol = packet[9]
    source, destination = packet[12:16], packet[16:20]
    if len(destination) < 4:
        return NOTHING
    datagram = (source, destination, protocol, identification) if fragment & 0x3FFF else None
    ends = (socket.inet_ntop(socket.AF_INET, source), socket.inet_ntop(socket.AF_INET, destination))
    return _need(packet, length, protocol, ICMP, ends, datagram, fragment & 0x1FFF)


def _v6(packet):
    protocol, at = packet[6], 40
    source, destination = packet[8:24], packet[24:40]
    if len(destination) < 16:
        return NOTHING
    datagram, offset = None, 0
    while True:
        if protocol == _FRAGMENT:
            following, _, fragment, identification = struct.unpack_from("!BBHI", packet, at)
            # An atomic fragment is a whole datagram (RFC 6946, section 4).
            if fragment & 0xFFF9:
                datagram, offset = (source, destination, identification), fragment >> 3
            protocol, at = following, at + 8
            if offset:
                break
        elif protocol == _AUTHENTICATION:
            protocol, at = packet[at], at + (packet[at + 1] + 2) * 4
        elif protocol in _EXTENSIONS:
            protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
        else:
            break
    ends = (socket.inet_ntop(socket.AF_INET6, source), socket.inet_ntop(socket.AF_INET6, destination))
    return _need(packet, at, protocol, ICMPV6, ends, datagram, offset)


def _need(packet, at, protocol, icmp, ends, datagram, offset):
    source, destination = ends
    address = None if source in ("0.0.0.0", "::") else source
    name = {TCP: "tcp", UDP: "udp", icmp: "icmp"}.get(protocol, "none")
    if offset:
        return Need(name, address, None, destination, datagram)
    port = None
    if protocol in (TCP, UDP):
        port = struct.unpack_from("!H", packet, at)[0]
    elif name == "icmp":
        if packet[at] in _QUERIES[protocol]:
            port = struct.unpack_from("!H", packet, at + 4)[0]
        else:
            name = "none"
    return Need(name, address, port, destination, datagram)
