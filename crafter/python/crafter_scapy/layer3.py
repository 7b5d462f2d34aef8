"""Scapy's socket for IP packets."""

from scapy.config import conf
from scapy.interfaces import network_name
from scapy.layers.l2 import Ether

from . import errors
from .packet import need
from .sockets import ServiceSocket

#: No link has a smaller MTU that IPv6 runs over; spares asking for the interface's.
_NEVER_CUT = 1280


class L3ServiceSocket(ServiceSocket):
    """`conf.L3socket`: IP packets. Their ports are leased as they are sent."""

    desc = "read/write packets at layer 3 by the crafter service"

    def __init__(self, iface=None, **kwargs):
        # Answers come by any interface that this socket has sent by.
        super().__init__(iface=None, **kwargs)
        self._sends_by = iface

    def _pieces(self, x, data):
        if len(data) <= _NEVER_CUT or not conf.auto_fragment or data[0] >> 4 != 4 or not hasattr(x, "fragment"):
            return (data,)
        mtu = self.ports.interface(self._interface_of(x))["mtu"]
        if len(data) <= mtu:
            return (data,)
        # Fragments carry multiples of 8 bytes (RFC 791).
        return [bytes(piece) for piece in x.fragment(fragsize=(mtu - (data[0] & 15) * 4) // 8 * 8)]

    def _interface_of(self, x):
        try:
            interface = x.route()[0]
        except (AttributeError, ValueError):
            interface = None
        return network_name(interface or self._sends_by or conf.iface)

    def _send(self, x, data):
        what = need(data)
        if what.destination is None:
            raise errors.NotSent("malformed", "it does not begin with an IP header that can be read", data[:128])
        interface = self._interface_of(x)
        return self._send_by(self.ports.lease_for(what, interface, self), data)

    def _layer_of(self, packet):
        return packet.payload if isinstance(packet, Ether) else packet
