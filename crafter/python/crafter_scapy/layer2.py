"""Scapy's sockets for Ethernet frames."""

from scapy.config import conf
from scapy.data import ETH_P_ALL
from scapy.error import Scapy_Exception
from scapy.layers.l2 import Ether

from .lease import ETHERNET, OUTGOING
from .packet import need_of_frame
from .ports import log
from .sockets import ServiceSocket, class_of_ip, ip_of, type_of

#: Link types of packets that begin with the IP header.
_RAW_LINK_TYPES = (12, 101, 228, 229)


class _L2(ServiceSocket):
    """Frames: all of the interface if the policy grants `observe`, else the packets of leased ports."""

    direction = None

    def __init__(self, iface=None, **kwargs):
        self._observed = None
        super().__init__(iface=iface, **kwargs)
        if self._observes:
            self._observed = self.ports.observe(self, self.iface, self._filter_text, self.direction)

    def _begin(self):
        self._observes = self.iface is not None and bool(self.ports.rule().get("observe"))
        self._passes_leased = True
        try:
            super()._begin()
        except Scapy_Exception:
            if not self._observes:
                raise
            # A filter for frames only, such as `arp`: the service applies it to observed frames.
            self._passes_leased = False

    def passes(self, lease, message):
        if lease is self._observed:
            return self.type in (ETH_P_ALL, int.from_bytes(message.body[12:14], "big"))
        # XDP redirects a leased packet before an observer sees it; a tc classifier runs after the observer.
        observed = self._observes and lease.reply.get("mode") == "tc"
        return (not observed and self._passes_leased and self.type in (ETH_P_ALL, type_of(ip_of(message)))
                and super().passes(lease, message))

    def _class_of(self, lease, message):
        if lease is self._observed:
            raw_ip = lease.link_type in _RAW_LINK_TYPES
            return class_of_ip(message.body) if raw_ip else conf.l2types.get(lease.link_type or 1, Ether)
        return Ether if self._has_frames else class_of_ip(ip_of(message))

    def _bytes_of(self, lease, message):
        if lease is self._observed or (self._has_frames and message.flags & ETHERNET):
            return message.body
        if not self._has_frames:
            return ip_of(message)
        # The service delivers packets from the IP header on, so the Ethernet header is made up; its source is unknown.
        own = self.ports.interface(lease.interface).get("mac")
        return (_mac(own) if own else bytes(6)) + bytes(6) + type_of(message.body).to_bytes(2, "big") + message.body

    @property
    def _has_frames(self):
        """Whether received packets begin with an Ethernet header."""
        return self._observes

    def _tear_down(self):
        if self._observed is not None:
            self.ports.drop(self._observed)
        super()._tear_down()

    def __del__(self):
        if not self.closed and self._observed is not None:
            self.ports.orphans.append(self._observed)
        super().__del__()


class L2ListenServiceSocket(_L2):
    """`conf.L2listen`: what sniff() reads. Packets of leased ports begin with the IP header."""

    desc = "read packets through the crafter service"

    def send(self, x):
        raise Scapy_Exception("Can't send anything with L2ListenServiceSocket")


class L2ServiceSocket(_L2):
    """`conf.L2socket`: Ethernet frames, if the policy grants `raw_ethernet`."""

    desc = "read/write packets at layer 2 through the crafter service"
    direction = "in"

    def __init__(self, iface=None, **kwargs):
        super().__init__(iface=iface or conf.iface, **kwargs)
        self._has_warned = False

    _has_frames = True

    def _send(self, x, data):
        needed = need_of_frame(data)
        # One lease sends all frames; the ports are leased separately.
        lease = self.ports.frames(self.iface, self)
        if needed.port is not None or needed.is_later_fragment:
            self.ports.lease_for(needed, self.iface, self)
        elif self._in_exchange and not self._observes and not self._has_warned:
            self._has_warned = True
            log.warning("replies to this frame are not received, because they have no port to lease; the policy has to "
                        "grant `observe`")
        return self._send_by(lease, data)

    def passes(self, lease, message):
        return not message.flags & OUTGOING and super().passes(lease, message)


def _mac(text):
    return bytes.fromhex(text.replace(":", "").replace("-", ""))
