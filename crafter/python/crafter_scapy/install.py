"""Replaces Scapy's sockets by those of the service, and restores them."""

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
#: What install() replaced: owner, attribute, original value.
_replaced = []
_ports = None


def install(socket=None, leave_open=False):
    """Makes Scapy send and receive through the crafter service, as the user of this process.

    `socket`: path of the service's socket; default: `CRAFTER_SOCKET`, else `/run/crafter/crafter.sock`. It may be
    called before or after `from scapy.all import *`. Raises ServiceNotRunning or AccessDenied at once.

    A half-open connection is reset before its port is released; with `leave_open` the kernel resets it when the peer
    retransmits its SYN-ACK.
    """
    global _ports
    client = Client(socket)
    client.info()
    with _lock:
        _restore()
        _ports = Ports(client, Warm(client), leave_open)
        _replace_all(_ports)


def uninstall():
    """Restores Scapy and releases all ports."""
    with _lock:
        _restore()


def release(port=None):
    """Releases all leased ports, or `port`; returns the number of ended leases. A later send leases it again."""
    return _ports.release(port) if _ports else 0


def client():
    """Returns the client that Scapy uses; None before install()."""
    return _ports.client if _ports else None


def _restore():
    global _ports
    for owner, name, original in reversed(_replaced):
        setattr(owner, name, original)
    _replaced.clear()
    if _ports is None:
        return
    from .sockets import ServiceSocket

    ServiceSocket.ports = None
    _ports.end_warm_up()
    _ports.release()
    _ports.client.close()
    _ports = None


def _replace(owner, name, new):
    _replaced.append((owner, name, getattr(owner, name)))
    setattr(owner, name, new)


def _replace_all(ports):
    # These imports read interfaces and routes and set Scapy's own sockets. A later import would undo install().
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
    # Scapy uses another raw socket for the loopback interface.
    _replace(interfaces.NetworkInterface, "l3socket", lambda self, *ipv6, **named: conf.L3socket)
    _replace(sendrecv, "sndrcv", _exchange(sendrecv.sndrcv, ServiceSocket))
    if "sport" in inspect.signature(inet.TCP_client.parse_args).parameters:
        # Before Scapy 2.6 TCP_client has no `sport`.
        _replace(inet.TCP_client, "parse_args", _with_free_port(inet.TCP_client.parse_args, inet.IP, ports))
    by_arp, by_discovery = _resolver(l2.getmacbyip, ports), _resolver(inet6.getmacbyip6, ports)
    for module in (l2, inet):
        _replace(module, "getmacbyip", by_arp)
    _replace(inet6, "getmacbyip6", by_discovery)


def _exchange(sndrcv, kind):
    """Wraps sndrcv() so that it raises errors of sending; Scapy logs them and waits for replies to unsent packets."""

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
    """Returns the number of packets to send; None if it is known only after sending."""
    for count in (lambda: packets.__iterlen__(), lambda: len(packets)):
        try:
            number = count()
            return number if number > 0 else None
        except Exception:  # Each kind of generator raises its own exception.
            continue
    return None


def _with_free_port(parse_args, ip_class, ports):
    """Wraps TCP_client.parse_args() to lease a free port. Scapy picks one at random, which may be in use or refused."""

    @functools.wraps(parse_args)
    def choose(self, ip, port, srcip=None, sport=None, **kwargs):
        if sport is None:
            from scapy.config import conf
            from scapy.interfaces import network_name

            packet = ip_class(dst=ip, src=srcip)
            sport = ports.free("tcp", network_name(packet.route()[0] or conf.iface), packet.src)
        return parse_args(self, ip, port, srcip, sport=sport, **kwargs)

    return choose


def _resolver(original, ports):
    """Wraps Scapy's resolution of Ethernet addresses: the service knows them, and ARP would need frames."""

    @functools.wraps(original)
    def resolve(address, chainCC=0):
        try:
            mac = ports.next_hop(str(address), None).get("mac")
        except CrafterError as error:
            log.info("%s: %s", address, error)
            mac = None
        return mac or original(address, chainCC)

    return resolve


def _forked():
    if _ports is not None:
        _ports.forked()


def _at_exit():
    if _ports is not None:
        _ports.end()


os.register_at_fork(after_in_child=_forked)
# Not called when a signal ends the process: then the kernel resets half-open connections.
atexit.register(_at_exit)
