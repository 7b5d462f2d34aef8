"""The leases of this process and their readers.

Leases belong to the process, not to one of Scapy's sockets: `sr1` opens a socket for a SYN and closes it after the
SYN-ACK, and the port has to stay leased until `send` has sent the ACK through another socket. A received packet is
delivered to every open socket, as the kernel does with raw sockets.

There is no background thread: a socket that waits for packets reads for all sockets (`Ports.pump`).
"""

import logging
import threading
import time
import weakref
from collections import OrderedDict, deque

from . import errors
from .half_open import HalfOpen
from .lease import END, PACKET, REFUSAL

#: A child of Scapy's logger, to use its handler without its filter, which drops frequent messages.
log = logging.getLogger("scapy.crafter")

#: Number of datagrams whose fragments are tracked.
_DATAGRAMS = 256
#: Timeout for the service to send or refuse packets, in seconds. Resolving a next hop that does not answer takes 3.
_SETTLE = 4.0
#: Maximum age of cached next hops and interfaces, in seconds.
_CACHE_SECONDS = 30.0


class Ports:
    """All leases of this process with one service."""

    def __init__(self, client, warm=None, leave_open=False):
        self.client = client
        #: Shared by all leases: a SYN in a frame is sent by the lease for frames, and its SYN-ACK is delivered to the
        #: lease of its source port.
        self._half_open = None if leave_open else HalfOpen()
        #: Attaches early; ends with the first lease.
        self.warm = warm
        self.lock = threading.RLock()
        #: Sockets with an error that is not raised yet.
        self.failed = []
        #: Leases of sockets that were garbage-collected without close().
        self.orphans = deque()
        self._leases = {}
        self._by_descriptor = {}
        self._sockets = weakref.WeakSet()
        self._datagrams = OrderedDict()
        self._next_hops = {}
        self._interfaces = {}
        self._rule = None
        self._has_warned = False

    def rule(self):
        """Returns the policy's rule for this user, an empty dict if there is none. Cached."""
        with self.lock:
            if self._rule is None:
                self._rule = self.client.policy().get("rule") or {}
            return self._rule

    # Leasing.

    def lease_for(self, need, interface, sender):
        """Returns the lease of a packet's port; leases the port if necessary."""
        with self.lock:
            lease = self._fragment_of(need)
            if need.port == 0 and need.protocol != "icmp":
                raise errors.NotSent("port 0 cannot be leased", errors.OWN_PORTS)
            if lease is None:
                lease = self._lease((interface, need.protocol, need.address, need.port))
            if need.datagram and not need.is_later_fragment:
                self._datagrams[need.datagram] = lease
                while len(self._datagrams) > _DATAGRAMS:
                    self._datagrams.popitem(last=False)
            return _used(lease, sender)

    def frames(self, interface, sender):
        """Returns the lease that sends frames. It has no port; frames may use the ports of this user's other leases."""
        with self.lock:
            return _used(self._lease((interface, "none", None, None), frames=True), sender)

    def _fragment_of(self, need):
        lease = self._datagrams.get(need.datagram) if need.is_later_fragment else None
        return None if lease is None or lease.is_over else lease

    def _lease(self, wanted, frames=False):
        interface, protocol, address, port = wanted
        key = (*wanted, frames)
        lease = self._leases.get(key)
        if lease is not None and not lease.is_over:
            return lease
        if lease is not None:
            self._forget(lease)
        lease = self._request(protocol, interface=interface, address=address, port=port, frames=frames or None)
        return self._keep(lease, key)

    def free(self, protocol, interface, address):
        """Leases a free port; returns its number."""
        with self.lock:
            lease = self._request(protocol, interface=interface, address=address)
            self._keep(lease, (interface, protocol, address, lease.port, False)).used = time.monotonic()
            return lease.port

    def _request(self, protocol, **wanted):
        while True:
            try:
                lease = self.client.lease(protocol, **wanted)
            except errors.PolicyError as error:
                if not (error.is_quota and self._release_oldest()):
                    raise
                continue
            self.end_warm_up()
            return lease

    def end_warm_up(self):
        """Ends the early lease; returns whether there was one."""
        warm, self.warm = self.warm, None
        if warm is not None:
            warm.end()
        return warm is not None

    def _keep(self, lease, key):
        lease.key = key
        lease.senders = weakref.WeakSet()
        lease.lost = None
        lease.half_open = self._half_open
        self._leases[key] = lease
        self._watch(lease, None)
        return lease

    def _release_oldest(self):
        """Releases the least recently used port that no open socket has sent from; returns whether there was one."""
        if self.end_warm_up():
            return True
        idle = [lease for lease in self._leases.values() if not any(not one.closed for one in lease.senders)]
        if not idle:
            return False
        oldest = min(idle, key=lambda lease: lease.used)
        (log.info if self._has_warned else log.warning)(
            "the policy allows no more leases: released %r, unused for %.1f s", oldest,
            time.monotonic() - oldest.used)
        self._has_warned = True
        self._end(oldest)
        return True

    def release(self, port=None):
        """Releases all ports, or one; returns the number of ended leases."""
        with self.lock:
            ended = [lease for lease in self._leases.values() if port in (None, lease.port)]
            for lease in ended:
                self._end(lease)
            return len(ended)

    def _end(self, lease):
        self._forget(lease)
        lease.release()

    def end(self):
        """Releases all ports without waiting for the service."""
        with self.lock:
            for lease in list(self._leases.values()):
                self._forget(lease)
                lease.close()

    # Reading.

    def observe(self, owner, interface, filter, direction):
        """Leases an interface's packets for one socket."""
        lease = self.client.observe(interface, filter=filter, direction=direction)
        lease.lost = None
        lease.key = None
        with self.lock:
            self._watch(lease, owner)
        return lease

    def open(self, reader):
        """Registers a socket; it receives the packets that arrive from now on."""
        with self.lock:
            while self.orphans:
                self.drop(self.orphans.popleft())
            for lease in list(self._leases.values()):
                # Packets that arrived earlier are for the sockets that are open already.
                while len(self._read(lease)) > 0:
                    pass
                lease.lost = None
            self._sockets.add(reader)
            for lease in self._leases.values():
                if reader.wants(lease):
                    reader.watch(lease)

    def close(self, reader):
        """Unregisters a socket."""
        with self.lock:
            self._sockets.discard(reader)
            if reader in self.failed:
                self.failed.remove(reader)

    def drop(self, lease):
        """Closes a socket's own lease."""
        with self.lock:
            self._forget(lease)
            lease.close()

    def pump(self, descriptor):
        """Reads the messages of one lease and delivers them."""
        with self.lock:
            lease = self._by_descriptor.get(descriptor)
            if lease is not None:
                self._read(lease)

    def _watch(self, lease, owner):
        lease.owner = weakref.ref(owner) if owner else None
        self._by_descriptor[lease.fileno()] = lease
        for reader in [owner] if owner else list(self._sockets):
            if owner or reader.wants(lease):
                reader.watch(lease)

    def _read(self, lease):
        messages = lease.drain()
        packets = []
        for message in messages:
            if message.kind == PACKET:
                packets.append(message)
            elif message.kind == REFUSAL:
                self._refused(lease, message.error)
            elif message.kind == END:
                log.warning("%r: %s", lease, message.error)
        readers = [lease.owner()] if lease.owner else list(self._sockets)
        readers = [one for one in readers if one is not None and (lease.owner or one.wants(lease))]
        if packets:
            for reader in readers:
                reader.deliver(lease, packets)
        if messages:
            self._count_lost(lease, messages, bool(readers))
        if lease.is_over:
            if not any(message.kind == END for message in messages):
                log.warning("%r: the service has closed its socket", lease)
            self._forget(lease)
            lease.close()
        return messages

    def _count_lost(self, lease, messages, are_read):
        before = messages[0].lost if lease.lost is None else lease.lost
        lease.lost = messages[-1].lost
        lost = (lease.lost - before) & 0xFFFFFFFF
        if lost and are_read:
            log.warning("%r: %d packets were lost because they were not read in time", lease, lost)

    def _refused(self, lease, error):
        reference = getattr(lease, "last_sender", None)
        sender = reference() if reference else None
        if sender is not None and not sender.closed:
            sender.refused(error)
        else:
            log.warning("%s", error)

    def _forget(self, lease):
        self._by_descriptor.pop(lease.fileno(), None)
        for reader in list(self._sockets):
            reader.unwatch(lease)
        if self._leases.get(lease.key) is lease:
            del self._leases[lease.key]

    # Results of sending.

    def settle(self, leases):
        """Waits until the service has sent or refused every packet of these leases, then reads the refusals."""
        deadline = time.monotonic() + _SETTLE
        pause = 0.0001
        while True:
            try:
                rows = {row["lease"]: row for row in self.client.list_leases(mine=True)}
            except errors.CrafterError:
                break
            open_ones = [lease for lease in leases if not lease.is_over and lease.id in rows]
            done = [_processed(rows[lease.id]) >= lease.sent for lease in open_ones]
            if all(done) or time.monotonic() >= deadline:
                break
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        for lease in leases:
            self.pump(lease.fileno())

    def next_hop(self, destination, interface):
        """Returns the reply to Route for a destination, with the Ethernet address of the next hop. Cached."""
        with self.lock:
            reply, until = self._next_hops.get((destination, interface), (None, 0))
            if time.monotonic() >= until:
                reply = self.client.route(destination, interface=interface)
                self._next_hops[destination, interface] = (reply, time.monotonic() + _CACHE_SECONDS)
            return reply

    def interface(self, name):
        """Returns the service's description of an interface. Cached."""
        with self.lock:
            row, until = self._interfaces.get(name, (None, 0))
            if time.monotonic() >= until:
                row = self.client.interfaces(name)[0]
                self._interfaces[name] = (row, time.monotonic() + _CACHE_SECONDS)
            return row

    # Other processes.

    def forked(self):
        """Called in a child after fork: the parent keeps the leases, and the child starts without any."""
        self.lock = threading.RLock()
        self.client._forked()
        if self.warm is not None:
            self.warm.forked()
            self.warm = None
        for lease in list(self._by_descriptor.values()):
            lease.forked()
        for reader in list(self._sockets):
            reader.forked()
        for kept in (self._leases, self._by_descriptor, self._datagrams, self._next_hops, self.failed,
                     self.orphans):
            kept.clear()
        self._half_open = self._half_open and HalfOpen()
        self._sockets = weakref.WeakSet()


def _used(lease, sender):
    lease.used = time.monotonic()
    lease.senders.add(sender)
    lease.last_sender = weakref.ref(sender)
    return lease


def _processed(row):
    return row["sent"] + row["refused"] + row["not_sent"]
