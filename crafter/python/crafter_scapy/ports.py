"""The leases of this process, and who reads from them.

Leases belong to the process, not to one of Scapy's sockets: `sr1` opens one for a SYN and closes it behind the SYN-ACK,
and the port has to stay leased until `send` has sent the ACK by another. What comes is handed to every socket that is
open, as the kernel does with raw sockets.

Nothing runs in the background: whoever waits for packets reads for all (`Ports.pump`).
"""

import logging
import threading
import time
import weakref
from collections import OrderedDict, deque

from . import errors
from .half_open import HalfOpen
from .lease import END, PACKET, REFUSAL

#: Beneath Scapy's own logger, so that it speaks by its handler; but past its filter, which drops what comes often.
log = logging.getLogger("scapy.crafter")

#: How many datagrams' fragments are remembered.
_DATAGRAMS = 256
#: How long the service may take to say what became of packets, in seconds; a next hop that does not answer takes 3.
_SETTLE = 4.0
#: How long the way to a destination, and the facts of an interface, are believed, in seconds.
_BELIEVED = 30.0


class Ports:
    """All leases of this process with one service."""

    def __init__(self, client, warm=None, leave_open=False):
        self.client = client
        #: Kept for all leases together: a SYN sent in a frame leaves by the lease for frames, and its SYN-ACK is
        #: delivered to the lease of its source port.
        self._half_open = None if leave_open else HalfOpen()
        #: A lease that goes when the first real one is there.
        self.warm = warm
        self.lock = threading.RLock()
        #: Sockets with an error that their thread has not been told yet.
        self.failed = []
        #: Leases of sockets that were forgotten, not closed.
        self.orphans = deque()
        self._leases = {}
        self._by_descriptor = {}
        self._sockets = weakref.WeakSet()
        self._datagrams = OrderedDict()
        self._ways = {}
        self._interfaces = {}
        self._rule = None
        self._told_of_room = False

    def rule(self):
        """The rule of the policy that is for this user; of none, the empty one. Asked once."""
        with self.lock:
            if self._rule is None:
                self._rule = self.client.policy().get("rule") or {}
            return self._rule

    # Leasing.

    def lease_for(self, need, interface, sender):
        """The lease of a packet's port, leased now if it is not yet."""
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
        """The lease that frames leave by: from no port of its own, but from those of all others of this user."""
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
        lease = self._ask_for(protocol, interface=interface, address=address, port=port, frames=frames or None)
        return self._keep(lease, key)

    def free(self, protocol, interface, address):
        """Leases a free port; its number."""
        with self.lock:
            lease = self._ask_for(protocol, interface=interface, address=address)
            self._keep(lease, (interface, protocol, address, lease.port, False)).used = time.monotonic()
            return lease.port

    def _ask_for(self, protocol, **wanted):
        while True:
            try:
                lease = self.client.lease(protocol, **wanted)
            except errors.PolicyError as error:
                if not (error.is_for_want_of_room and self._make_room()):
                    raise
                continue
            self.cool()
            return lease

    def cool(self):
        """Ends what only warmed up; whether there was something."""
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

    def _make_room(self):
        """Gives back the port that has not been used for longest, unless an open socket has sent from it."""
        if self.cool():
            return True
        idle = [lease for lease in self._leases.values() if not any(not one.closed for one in lease.senders)]
        if not idle:
            return False
        oldest = min(idle, key=lambda lease: lease.used)
        (log.info if self._told_of_room else log.warning)(
            "the policy gives no more leases: %r goes back, unused for %.1f s", oldest,
            time.monotonic() - oldest.used)
        self._told_of_room = True
        self._end(oldest)
        return True

    def release(self, port=None):
        """Gives back all ports, or one; how many leases ended."""
        with self.lock:
            ended = [lease for lease in self._leases.values() if port in (None, lease.port)]
            for lease in ended:
                self._end(lease)
            return len(ended)

    def _end(self, lease):
        self._forget(lease)
        lease.release()

    def end(self):
        """Gives back all ports, within a moment."""
        with self.lock:
            for lease in list(self._leases.values()):
                self._forget(lease)
                lease.close()

    # Reading.

    def observe(self, owner, interface, filter, direction):
        """Packets of an interface for one socket."""
        lease = self.client.observe(interface, filter=filter, direction=direction)
        lease.lost = None
        lease.key = None
        with self.lock:
            self._watch(lease, owner)
        return lease

    def open(self, reader):
        """Takes up a socket: it gets what comes from now on."""
        with self.lock:
            while self.orphans:
                self.drop(self.orphans.popleft())
            for lease in list(self._leases.values()):
                # What came before is for those that are open already.
                while len(self._read(lease)) > 0:
                    pass
                lease.lost = None
            self._sockets.add(reader)
            for lease in self._leases.values():
                if reader.wants(lease):
                    reader.watch(lease)

    def close(self, reader):
        """Takes it out again."""
        with self.lock:
            self._sockets.discard(reader)
            if reader in self.failed:
                self.failed.remove(reader)

    def drop(self, lease):
        """Ends a socket's own lease."""
        with self.lock:
            self._forget(lease)
            lease.close()

    def pump(self, descriptor):
        """Reads what is there from one lease, and hands it out."""
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
            log.warning("%r: %d packets are lost because they were not read in time", lease, lost)

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

    # What became of it.

    def settle(self, leases):
        """Waits until the service has judged all that was sent by these leases, so that refusals are here."""
        deadline = time.monotonic() + _SETTLE
        pause = 0.0001
        while True:
            try:
                rows = {row["lease"]: row for row in self.client.list_leases(mine=True)}
            except errors.CrafterError:
                break
            open_ones = [lease for lease in leases if not lease.is_over and lease.id in rows]
            judged = [_judged(rows[lease.id]) >= lease.sent for lease in open_ones]
            if all(judged) or time.monotonic() >= deadline:
                break
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        for lease in leases:
            self.pump(lease.fileno())

    def way(self, destination, interface):
        """The Ethernet addresses on the way to a destination, as in the reply to Route."""
        with self.lock:
            way, until = self._ways.get((destination, interface), (None, 0))
            if time.monotonic() >= until:
                way = self.client.route(destination, interface=interface)
                self._ways[destination, interface] = (way, time.monotonic() + _BELIEVED)
            return way

    def interface(self, name):
        """What the service says of an interface."""
        with self.lock:
            row, until = self._interfaces.get(name, (None, 0))
            if time.monotonic() >= until:
                row = self.client.interfaces(name)[0]
                self._interfaces[name] = (row, time.monotonic() + _BELIEVED)
            return row

    # Other processes.

    def forked(self):
        """In a child: the leases are the parent's, and end with it and not before."""
        self.lock = threading.RLock()
        self.client._forked()
        if self.warm is not None:
            self.warm.forked()
            self.warm = None
        for lease in list(self._by_descriptor.values()):
            lease.forked()
        for reader in list(self._sockets):
            reader.forked()
        for kept in (self._leases, self._by_descriptor, self._datagrams, self._ways, self.failed,
                     self.orphans):
            kept.clear()
        self._half_open = self._half_open and HalfOpen()
        self._sockets = weakref.WeakSet()


def _used(lease, sender):
    lease.used = time.monotonic()
    lease.senders.add(sender)
    lease.last_sender = weakref.ref(sender)
    return lease


def _judged(row):
    return row["sent"] + row["refused"] + row["not_sent"]
