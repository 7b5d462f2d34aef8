"""Scapy's socket for IP packets."""

from scapy.config import conf
from scapy.interfaces import network_name
from scapy.layers.l2 import Ether

from . import errors
from .packet import need
from .sockets import ServiceSocket

#: Packets up to this length are not fragmented: the minimum MTU of IPv6 (RFC 8200, section 5). Spares a call for the
#: interface's MTU.
_NEVER_FRAGMENTED = 1280


class L3ServiceSocket(ServiceSocket):
    """`conf.L3socket`: IP packets. Sending leases their source ports."""

    desc = "read/write packets at layer 3 through the crafter service"

    def __init__(self, iface=None, **kwargs):
        # Replies may arrive on any interface that this socket has sent on.
        super().__init__(iface=None, **kwargs)
        self._interface = iface

    def _pieces(self, x, data):
        if len(data) <= _NEVER_FRAGMENTED or not conf.auto_fragment or data[0] >> 4 != 4 or not hasattr(x, "fragment"):
            return (data,)
        mtu = self.ports.interface(self._interface_of(x))["mtu"]
        if len(data) <= mtu:
            return (data,)
        # Fragments carry multiples of 8 bytes (RFC 791, section 3.2).
        return [bytes(piece) for piece in x.fragment(fragsize=(mtu - (data[0] & 15) * 4) // 8 * 8)]

    def _interface_of(self, x):
        try:
            interface = x.route()[0]
        except (AttributeError, ValueError):
            interface = None
        return network_name(interface or self._interface or conf.iface)

    def _send(self, x, data):
        needed = need(data)
        if needed.destination is None:
            raise errors.NotSent("malformed", "no readable IP header; use sendp() or srp() for frames", data[:128])
        interface = self._interface_of(x)
        return self._send_by(self.ports.lease_for(needed, interface, self), data)

    def _layer_of(self, packet):
        return packet.payload if isinstance(packet, Ether) else packet
