"""The socket of a lease. A sent message is a packet; a received message is a header of 24 bytes and a packet."""

import os
import select
import socket
import struct
import time
from typing import NamedTuple

from . import errors
from .half_open import HalfOpen

#: Kind, code, flags or rule, interface index, time, length, messages lost; network byte order.
HEADER = struct.Struct("!BBHIQII")

PACKET, REFUSAL, END = 1, 2, 3

#: Codes of packets.
REDIRECTED, COPIED, OBSERVED, RST_SUPPRESSED, UNREACHABLE_SUPPRESSED, SEEN = range(6)

#: Flags of packets.
CUT, BAD_CHECKSUM, PARTIAL_CHECKSUM, ETHERNET, OUTGOING = 1, 2, 4, 8, 16

#: Codes of refusals and ends.
POLICY = 0
REASONS = ("refused by the policy", "no route", "no neighbour", "not sent by the kernel", "interface removed",
           "malformed", "released", "the service stops")

#: Bytes of a header, an Ethernet header with a VLAN tag, and the longest IP packet.
_LONGEST = HEADER.size + 65535 + 18
#: Timeout for a full socket buffer, in seconds.
_SEND_SECONDS = 5.0
#: Timeout for the service to send the RSTs of half-open connections, in seconds.
_SETTLE_SECONDS = 1.0
#: Maximum number of drains before a lease ends.
_LAST_DRAINS = 64


class Message(NamedTuple):
    """A message received from a lease's socket."""

    #: PACKET, REFUSAL or END.
    kind: int
    code: int
    #: A packet's flags; the rule's number of a refusal by the policy.
    flags: int
    #: Index of the interface.
    index: int
    #: CLOCK_MONOTONIC nanoseconds.
    time_ns: int
    #: A packet's length in bytes before truncation.
    length: int
    #: Messages of this lease lost so far, modulo 2^32.
    lost: int
    #: The packet, or the sentence of a refusal or an end.
    body: bytes
    #: The first bytes of the refused packet; empty for other kinds.
    quoted: bytes

    @property
    def timestamp(self):
        """Time of reception, wall clock, in seconds since 1970."""
        return time.time() - time.monotonic() + self.time_ns / 1e9

    @property
    def error(self):
        """The exception for a refusal or an end."""
        sentence = self.body.decode("utf-8", "replace")
        reason = REASONS[self.code] if self.code < len(REASONS) else f"code {self.code}"
        if self.kind == END:
            return errors.LeaseEnded(reason, sentence)
        if self.code == POLICY:
            return errors.PolicyError(self.flags or None, sentence, sentence, self.quoted)
        return errors.NotSent(reason, sentence, self.quoted)


def decode(data):
    """Decodes a message; returns None for malformed data."""
    if len(data) < HEADER.size:
        return None
    kind, code, flags, index, time_ns, length, lost = HEADER.unpack_from(data)
    if kind == PACKET:
        return Message(kind, code, flags, index, time_ns, length, lost, data[HEADER.size:], b"")
    if kind not in (REFUSAL, END):
        return None
    middle = min(HEADER.size + length, len(data))
    return Message(kind, code, flags, index, time_ns, length, lost, data[HEADER.size:middle], data[middle:])


class Lease:
    """A lease of ports: `send` sends packets, `receive` returns messages. Closing it releases the ports.

    Closing first resets half-open connections, whose SYN-ACK nothing acknowledged. `leave_open` leaves them to the
    kernel.
    """

    def __init__(self, client, reply, descriptors, protocol, frames, leave_open=False):
        wanted = reply.get("socket", 0)
        if not 0 <= wanted < len(descriptors):
            for descriptor in descriptors:
                os.close(descriptor)
            raise errors.CrafterError(
                "the service sent no descriptor with the lease: install crafter and crafter-scapy of one version")
        for position, descriptor in enumerate(descriptors):
            if position != wanted:
                os.close(descriptor)
        self.client = client
        self.socket = socket.socket(fileno=descriptors[wanted])
        self.socket.setblocking(False)
        #: The service's reply: `lease`, `interface`, `index`, `mtu`, `mode`, ...
        self.reply = reply
        self.id = reply["lease"]
        self.interface = reply["interface"]
        self.index = reply["index"]
        self.address = reply.get("address")
        self.first_port = reply.get("first_port")
        self.last_port = reply.get("last_port")
        self.mtu = reply.get("mtu") or 65535
        self.link_type = reply.get("link_type")
        self.protocol = protocol
        #: Whether sent packets are Ethernet frames.
        self.frames = frames
        #: Number of packets sent.
        self.sent = 0
        #: Whether the service has closed the lease.
        self.is_over = False
        #: Tracks half-open connections; None: not tracked. Leases of one process may share it.
        self.half_open = None if leave_open or protocol in ("udp", "icmp", "observe") else HalfOpen()
        self._process = os.getpid()

    @property
    def port(self):
        """The leased port, the first of a range."""
        return self.first_port

    def fileno(self):
        return self.socket.fileno()

    def send(self, packet):
        """Sends an IP packet, or an Ethernet frame on a lease with frames; waits while the socket buffer is full.

        Raises LeaseEnded or NotSent. A refusal by the service is received as a message.
        """
        if self.half_open is not None:
            self._track(packet, self.half_open.handle_sending)
        try:
            self._send(packet)
        except (BrokenPipeError, ConnectionResetError):
            self.is_over = True
            raise errors.LeaseEnded("the service has closed its socket") from None
        except OSError as error:
            raise errors.NotSent(error.strerror or str(error), "", packet[:128]) from None
        self.sent += 1
        if self.half_open is not None:
            self._track(packet, self.half_open.handle_sent)
        return len(packet)

    def _track(self, packet, handle):
        if not self.frames:
            handle(packet)
        elif packet[12:14] in (b"\x08\x00", b"\x86\xdd"):
            handle(packet[14:])

    def _send(self, packet):
        deadline = None
        while True:
            try:
                self.socket.send(packet)
                return
            except BlockingIOError:
                now = time.monotonic()
                deadline = deadline or now + _SEND_SECONDS
                if now >= deadline:
                    raise
                poll = select.poll()
                poll.register(self.socket, select.POLLOUT)
                poll.poll((deadline - now) * 1000)

    def drain(self, limit=256):
        """Returns the received messages without waiting, at most `limit`, so that other leases are read too."""
        messages = []
        receive = self.socket.recv
        while len(messages) < limit:
            try:
                data = receive(_LONGEST)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self.is_over = True
                break
            message = decode(data)
            if message is not None:
                messages.append(message)
                if message.kind == END:
                    self.is_over = True
                elif message.kind == PACKET and self.half_open is not None:
                    if message.code <= OBSERVED and not message.flags & (BAD_CHECKSUM | ETHERNET):
                        self.half_open.handle_received(message.body)
        return messages

    def receive(self, timeout=None):
        """Waits for messages and returns them; returns an empty list after `timeout` seconds.

        Raises LeaseEnded when the lease has ended and all messages are read.
        """
        if not self.is_over:
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            poll.poll(None if timeout is None else max(0, timeout) * 1000)
        messages = self.drain()
        if not messages and self.is_over:
            raise errors.LeaseEnded("the service has closed its socket")
        return messages

    def release(self):
        """Releases the ports; they are free when this returns."""
        try:
            if self._reset_half_open():
                self._settle()
            self.client.release(self.id)
        except errors.CrafterError:
            # The lease has ended, or the service has stopped: closing releases it too.
            pass
        self.close()

    def close(self):
        """Releases the ports without waiting for the service."""
        self._reset_half_open()
        self.is_over = True
        self.socket.close()

    def forked(self):
        """Called in a child after fork: closes the socket without resets; the parent keeps the lease."""
        self.half_open = None
        self.close()

    def _reset_half_open(self):
        """Resets the half-open connections of the ports, as far as the policy allows; returns their number."""
        if self.half_open is None or self.first_port is None or self.is_over or self._process != os.getpid():
            return 0
        for _ in range(_LAST_DRAINS):
            if not self.drain() or self.is_over:
                break
        count = 0
        for reset in self.half_open.take(self.first_port, self.last_port or self.first_port, self.address):
            try:
                self.send(reset)
            except errors.CrafterError:
                # The next ones would fail too.
                break
            count += 1
        return count

    def _settle(self):
        """Waits until the service has sent or refused every packet."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            rows = [row for row in self.client.list_leases(mine=True) if row["lease"] == self.id]
            if all(row["sent"] + row["refused"] + row["not_sent"] >= self.sent for row in rows):
                return
            time.sleep(0.001)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        ports = "" if self.first_port is None else f" {self.first_port}"
        if self.last_port not in (None, self.first_port):
            ports += f"-{self.last_port}"
        return f"<Lease {self.id}: {self.protocol}{ports} on {self.interface}>"
