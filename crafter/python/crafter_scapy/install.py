"""Puts the service beneath Scapy, and Scapy back."""

import atexit
import functools
import inspect
import os
import threading

from .client import Client
from .errors import CrafterError
from .ports import Ports, log
from .warm import Warm

_lock = threading.Lock()
#: What install() replaced: owner, name, what was there.
_replaced = []
_ports = None


def install(socket=None, leave_open=False):
    """From now on Scapy sends and receives by the crafter service, as the user that runs it.

    `socket`: the service's socket; else CRAFTER_SOCKET of the environment names it, else it is where the service puts
    it. May come before or behind `from scapy.all import *`. Raises ServiceNotRunning or AccessDenied right away.

    A connection that a SYN-ACK has left half open is reset before its port goes back; with `leave_open` the kernel
    does that, when the peer repeats its SYN-ACK.
    """
    global _ports
    client = Client(socket)
    client.info()
    with _lock:
        _restore()
        _ports = Ports(client, Warm(client), leave_open)
        _replace_all(_ports)


def uninstall():
    """Puts Scapy back as it was, and gives all ports back."""
    with _lock:
        _restore()


def release(port=None):
    """Gives back all ports that were leased, or this one; how many leases ended. They are leased again when used."""
    return _ports.release(port) if _ports else 0


def client():
    """The client of the service that Scapy uses now; None if it uses none."""
    return _ports.client if _ports else None


def _restore():
    global _ports
    for owner, name, former in reversed(_replaced):
        setattr(owner, name, former)
    _replaced.clear()
    if _ports is None:
        return
    from .sockets import ServiceSocket

    ServiceSocket.ports = None
    _ports.cool()
    _ports.release()
    _ports.client.close()
    _ports = None


def _replace(owner, name, new):
    _replaced.append((owner, name, getattr(owner, name)))
    setattr(owner, name, new)


def _replace_all(ports):
    # Reads interfaces and routes, and chooses Scapy's own sockets: not later, when it would undo this.
    import scapy.arch  # noqa: F401
    import scapy.route  # noqa: F401
    import scapy.route6  # noqa: F401
    from scapy import interfaces, sendrecv
    from scapy.config import conf
    from scapy.layers import inet, inet6, l2  # noqa: F401

    from .layer2 import L2ListenServiceSocket, L2ServiceSocket
    from .layer3 import L3ServiceSocket
    from .sockets import ServiceSocket

    ServiceSocket.ports = ports
    _replace(conf, "L3socket", L3ServiceSocket)
    _replace(conf, "L3socket6", L3ServiceSocket)
    _replace(conf, "L2socket", L2ServiceSocket)
    _replace(conf, "L2listen", L2ListenServiceSocket)
    # Scapy has a raw socket of its own for the loopback interface.
    _replace(interfaces.NetworkInterface, "l3socket", lambda self, *ipv6, **named: conf.L3socket)
    _replace(sendrecv, "sndrcv", _exchange(sendrecv.sndrcv, ServiceSocket))
    if "sport" in inspect.signature(inet.TCP_client.parse_args).parameters:
        # Before Scapy 2.6 it cannot be told.
        _replace(inet.TCP_client, "parse_args", _with_free_port(inet.TCP_client.parse_args, inet.IP, ports))
    by_arp, by_discovery = _resolver(l2.getmacbyip, ports), _resolver(inet6.getmacbyip6, ports)
    for module in (l2, inet):
        _replace(module, "getmacbyip", by_arp)
    _replace(inet6, "getmacbyip6", by_discovery)


def _exchange(sndrcv, kind):
    """sndrcv() logs what goes wrong in sending, and waits for answers that cannot come; with this it raises it."""

    @functools.wraps(sndrcv)
    def exchange(pks, pkt, *args, **kwargs):
        if not isinstance(pks, kind):
            return sndrcv(pks, pkt, *args, **kwargs)
        pks.begin_exchange(None if kwargs.get("_flood") else _count(pkt))
        try:
            return sndrcv(pks, pkt, *args, **kwargs)
        finally:
            pks.end_exchange()

    return exchange


def _count(packets):
    """How many packets there are to send; None if only sending them tells."""
    for count in (lambda: packets.__iterlen__(), lambda: len(packets)):
        try:
            number = count()
            return number if number > 0 else None
        except Exception:  # Generators of any kind, which say so in their own ways.
            continue
    return None


def _with_free_port(parse_args, ip_class, ports):
    """TCP_client takes any port at random, also one that is taken or not to be had: here it takes a free one."""

    @functools.wraps(parse_args)
    def choose(self, ip, port, srcip=None, sport=None, **kwargs):
        if sport is None:
            from scapy.config import conf
            from scapy.interfaces import network_name

            packet = ip_class(dst=ip, src=srcip)
            sport = ports.free("tcp", network_name(packet.route()[0] or conf.iface), packet.src)
        return parse_args(self, ip, port, srcip, sport=sport, **kwargs)

    return choose


def _resolver(former, ports):
    """The next hop's Ethernet address is known to the service; asking for it by ARP takes frames."""

    @functools.wraps(former)
    def resolve(address, chainCC=0):
        try:
            mac = ports.way(str(address), None).get("mac")
        except CrafterError as error:
            log.info("%s: %s", address, error)
            mac = None
        return mac or former(address, chainCC)

    return resolve


def _forked():
    if _ports is not None:
        _ports.forked()


def _at_exit():
    if _ports is not None:
        _ports.end()


os.register_at_fork(after_in_child=_forked)
# What ends a process by a signal comes before it: the kernel resets what is half open then.
atexit.register(_at_exit)
