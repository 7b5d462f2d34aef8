"""The base of Scapy's sockets that use the service: waiting, receiving, refusals, sending."""

import os
import select
import threading
import time
from collections import deque

from scapy.compat import raw
from scapy.config import conf
from scapy.data import ETH_P_ALL, MTU
from scapy.error import Scapy_Exception
from scapy.interfaces import network_name
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.supersocket import SuperSocket

from . import errors
from .filter import Filter, whole
from .lease import CUT, ETHERNET
from .ports import log

#: Maximum length of a socket's queue: after its first read, and before it.
_QUEUE_READ, _QUEUE_UNREAD = 16384, 1024
#: Number of refusals that are logged one by one in an exchange.
_LOGGED = 10
#: Time that the sending thread of sr() takes to end, in seconds.
_SENDER_ENDS = 0.02
#: Number of packets between two checks for refusals.
_CHECK_EVERY = 32


class EndOfSending(SystemExit):
    """Ends the sending thread of sr() without output; sr() raises the error."""


class ServiceSocket(SuperSocket):
    """Base of the sockets of layers 2 and 3."""

    desc = "the crafter service"
    #: Set by install().
    ports = None

    def __init__(self, iface=None, type=ETH_P_ALL, promisc=None, filter=None, nofilter=0, monitor=None, **_):
        self.closed = True
        if self.ports is None:
            raise errors.CrafterError("call crafter_scapy.install() first")
        # A reference of its own: the socket may be used after uninstall().
        self.ports = self.ports
        # A socket reads several leases, so there is no single kernel socket.
        self.ins = self.outs = None
        self.iface = network_name(iface) if iface is not None else None
        self.type = type
        self.promisc = False
        self._filter_text = whole(filter, nofilter)
        self._filter = None
        self._begin()
        self._queue = deque()
        self._is_reading = False
        self._overflowed = 0
        self._unsettled = {}
        self._failure = None
        self._failed_at = 0.0
        self._expected = None
        self._in_exchange = False
        self._refusals = 0
        self._thread = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_awake = False
        self._epoll = select.epoll()
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self.closed = False
        self.ports.open(self)

    def _begin(self):
        """Prepares the socket before it is registered."""
        if self._filter_text:
            self._filter = Filter(self._filter_text)

    # Called by Ports, with its lock held.

    def wants(self, lease):
        """Whether this socket reads from the lease."""
        return self.iface is None or lease.interface == self.iface

    def watch(self, lease):
        self._epoll.register(lease.fileno(), select.EPOLLIN)

    def unwatch(self, lease):
        try:
            self._epoll.unregister(lease.fileno())
        except (OSError, ValueError):
            # It was not registered.
            pass

    def deliver(self, lease, messages):
        """Queues received packets."""
        for message in messages:
            if self.passes(lease, message):
                self._queue.append((lease, message))
        most = _QUEUE_READ if self._is_reading else _QUEUE_UNREAD
        while len(self._queue) > most:
            self._queue.popleft()
            # Do not count losses of a socket that only sends.
            self._overflowed += self._is_reading
        self._signal()

    def passes(self, lease, message):
        """Whether a packet is for this socket."""
        return self._filter is None or self._filter.matches(ip_of(message))

    def refused(self, error):
        """Handles a refusal of a packet that this socket has, most likely, sent."""
        self._refusals += 1
        if not self._in_exchange:
            self._fail(error)
        elif self._expected is not None and self._refusals >= self._expected:
            # No reply can arrive.
            self._fail(error)
        elif self._refusals <= _LOGGED:
            log.warning("%s", error)

    def forked(self):
        """Called in a child after fork: the socket cannot be used there."""
        self.closed = True
        self._close_descriptors()

    def _close_descriptors(self):
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _fail(self, error):
        if self._failure is None:
            self._failure = error
            self._failed_at = time.monotonic()
        if not self._in_exchange and self not in self.ports.failed:
            self.ports.failed.append(self)
        self._signal()

    def _signal(self):
        """Keeps the descriptor readable while packets or an error are waiting, for select()."""
        wanted = bool(self._queue) or (self._failure is not None and self._in_exchange)
        if wanted and not self._is_awake:
            os.write(self._wake_write, b"x")
        elif self._is_awake and not wanted:
            os.read(self._wake_read, 1)
        self._is_awake = wanted

    # Receiving.

    def fileno(self):
        return -1 if self.closed else self._epoll.fileno()

    def pump(self):
        """Reads all watched leases without waiting."""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor != self._wake_read:
                self.ports.pump(descriptor)

    @property
    def is_ready(self):
        """Whether recv() returns at once."""
        return bool(self._queue) or (self._in_exchange and self._failure is not None)

    @staticmethod
    def select(sockets, remain=None):
        own = [one for one in sockets if isinstance(one, ServiceSocket) and not one.closed]
        for one in own:
            one._is_reading = True
        _raise_of_this_thread()
        if any(one.is_ready for one in own):
            remain = 0
        poll = select.poll()
        by_descriptor = {}
        for one in sockets:
            descriptor = one.fileno()
            if descriptor >= 0:
                by_descriptor[descriptor] = one
                poll.register(descriptor, select.POLLIN)
        readable = {
            by_descriptor[descriptor]
            for descriptor, _ in poll.poll(None if remain is None else max(0, remain) * 1000)
        }
        for one in own:
            if one in readable:
                one.pump()
            one._wait_for_sender()
        _raise_of_this_thread()
        return [one for one in sockets if (one.is_ready if one in own else one in readable)]

    def _wait_for_sender(self):
        """Waits for the sending thread of sr(): it stops the reader when it ends, and fails if the reader has ended."""
        if self._in_exchange and self._failure is not None:
            time.sleep(max(0, self._failed_at + _SENDER_ENDS - time.monotonic()))

    def recv(self, x=MTU, **kwargs):
        """Waits for the next packet and returns it dissected."""
        item = self._next()
        return None if item is None else self._dissect(*item, **kwargs)

    def recv_raw(self, x=MTU):
        """Waits for the next packet; returns its class, bytes and time."""
        item = self._next()
        if item is None:
            return None, None, None
        lease, message = item
        return self._class_of(lease, message), self._bytes_of(lease, message), message.timestamp

    def _next(self):
        self._is_reading = True
        while not self.closed:
            with self.ports.lock:
                if self._in_exchange and self._failure is not None:
                    # sr() stops reading and raises the failure.
                    raise EOFError
                if self._overflowed:
                    log.warning("%r: %d packets were lost because they were not read in time", self, self._overflowed)
                    self._overflowed = 0
                if self._queue:
                    item = self._queue.popleft()
                    self._signal()
                    return item
            self.select([self], None)
        return None

    def _dissect(self, lease, message, **kwargs):
        cls, data = self._class_of(lease, message), self._bytes_of(lease, message)
        try:
            packet = cls(data, **kwargs)
        except KeyboardInterrupt:
            raise
        except Exception:
            if conf.debug_dissector:
                raise
            packet = conf.raw_layer(data)
        if message.flags & CUT:
            packet.wirelen = message.length
        packet = self._layer_of(packet)
        packet.time = message.timestamp
        return packet

    def _class_of(self, lease, message):
        if message.flags & ETHERNET:
            return Ether
        return class_of_ip(message.body)

    def _bytes_of(self, lease, message):
        return message.body

    def _layer_of(self, packet):
        return packet

    # Sending.

    def send(self, x):
        """Sends a packet; returns the number of bytes. An error is raised by this call, a later one, or close()."""
        if not self._in_exchange:
            self._raise_failure()
        data = raw(x)
        try:
            x.sent_time = time.time()
        except AttributeError:
            pass
        try:
            sent = sum([self._send(x, piece) for piece in self._pieces(x, data)])
        except errors.CrafterError as error:
            if not self._in_exchange:
                raise
            with self.ports.lock:
                if isinstance(error, (errors.PolicyError, errors.NotSent)):
                    self.refused(error)
                else:
                    self._fail(error)
                if self._failure is not None:
                    raise EndOfSending from None
            return 0
        if not self._in_exchange and sum(self._unsettled.values()) % _CHECK_EVERY == 0:
            self.pump()
            self._raise_failure()
        return sent

    def _pieces(self, x, data):
        return (data,)

    def _send(self, x, data):
        raise Scapy_Exception(f"Can't send anything with {type(self).__name__}")

    def _send_by(self, lease, data):
        self._thread = threading.get_ident()
        lease.send(data)
        self._unsettled[lease] = self._unsettled.get(lease, 0) + 1
        return len(data)

    def _raise_failure(self):
        with self.ports.lock:
            failure, self._failure = self._failure, None
            if self in self.ports.failed:
                self.ports.failed.remove(self)
        if failure is not None:
            raise failure

    # Exchanges, which sr() performs.

    def begin_exchange(self, expected):
        """Starts an exchange: refusals are collected for sr(), which ends when all `expected` packets are refused."""
        self._raise_failure()
        with self.ports.lock:
            self._in_exchange, self._expected, self._refusals = True, expected, 0

    def end_exchange(self):
        """Ends an exchange; raises its error."""
        with self.ports.lock:
            refusals, self._in_exchange = self._refusals, False
            # Refusals were read with the replies.
            self._unsettled.clear()
            self._signal()
        if self._failure is None and refusals > _LOGGED:
            log.warning("%d packets were refused in all", refusals)
        self._raise_failure()

    # Closing.

    def close(self):
        if self.closed or (self._in_exchange and self._failure is not None):
            # The sniffer closes a socket that fails; the owner may still use it.
            return
        try:
            if self._unsettled and not self._in_exchange:
                self.ports.settle(list(self._unsettled))
        finally:
            self._tear_down()
        self._raise_failure()

    def _tear_down(self):
        failure = self._failure
        with self.ports.lock:
            self.closed = True
            self.ports.close(self)
            self._queue.clear()
            self._close_descriptors()
        self._failure = failure

    def __del__(self):
        # May run inside this package during garbage collection: it takes no lock and makes no call.
        if self.closed:
            return
        self.forked()
        if self._failure is not None:
            log.warning("%s", self._failure)


def _raise_of_this_thread():
    """Raises the failures of this thread, which would otherwise wait for replies to refused packets."""
    ports = ServiceSocket.ports
    if ports is None or not ports.failed:
        return
    with ports.lock:
        mine = [one for one in ports.failed if one._thread == threading.get_ident()]
    for one in mine:
        log.warning("%s", one._failure)
        one._raise_failure()


def ip_of(message):
    return message.body[14:] if message.flags & ETHERNET else message.body


def class_of_ip(packet):
    version = packet[0] >> 4 if packet else 0
    return {4: IP, 6: IPv6}.get(version, conf.raw_layer)


def type_of(packet):
    """The EtherType of an IP packet."""
    return 0x86DD if packet[:1] and packet[0] >> 4 == 6 else 0x0800
