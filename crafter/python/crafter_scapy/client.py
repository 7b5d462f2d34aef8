"""Client of the service's control interface: varlink (JSON objects terminated by NUL) over a Unix stream socket."""

import array
import json
import os
import socket
import threading

from . import errors
from .lease import Lease

#: The service's default socket.
SOCKET = "/run/crafter/crafter.sock"
#: Environment variable with the path of another socket.
SOCKET_VARIABLE = "CRAFTER_SOCKET"
INTERFACE = "org.crafter.v1"

#: Room for 16 descriptors of four bytes; a reply has at most one today.
_ANCILLARY = socket.CMSG_SPACE(16 * 4)


def socket_path(path=None):
    """Path of the service's socket: `path`, else `CRAFTER_SOCKET`, else the default."""
    return os.fspath(path) if path else os.environ.get(SOCKET_VARIABLE) or SOCKET


def encode(method, parameters, more=False):
    """Encodes a call. A parameter that is None is omitted, so the service uses its default."""
    call = {"method": method, "parameters": {name: it for name, it in parameters.items() if it is not None}}
    if more:
        call["more"] = True
    return json.dumps(call, separators=(",", ":")).encode() + b"\0"


class _Connection:
    """One connection; the service replies in the order of the calls."""

    def __init__(self, path, timeout):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout)
        self.buffer = b""
        self.descriptors = []
        try:
            self.socket.connect(path)
        except PermissionError:
            self.socket.close()
            raise errors.AccessDenied(path) from None
        except OSError as error:
            self.socket.close()
            raise errors.ServiceNotRunning(path, error.strerror or error) from None

    def send(self, data):
        self.socket.sendall(data)

    def receive(self):
        """Returns the next reply and its descriptors.

        Raises EOFError when the service has closed the connection.
        """
        while b"\0" not in self.buffer:
            data, ancillary, flags, _ = self.socket.recvmsg(65536, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    self.descriptors.extend(numbers)
            if not data:
                raise EOFError
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        descriptors, self.descriptors = self.descriptors, []
        return json.loads(text), descriptors

    def close(self):
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


def _parameters(reply):
    """Returns a reply's parameters; raises the exception for an error reply."""
    error = reply.get("error")
    parameters = reply.get("parameters") or {}
    if error:
        raise errors.of(error, parameters)
    return parameters


class Client:
    """A client of the service. It connects at the first call; threads may share it, and it works after a fork.

    `call` calls any method; the other methods have the names of those of `org.crafter.v1`.
    """

    def __init__(self, path=None, timeout=10.0):
        #: Path of the service's socket.
        self.path = socket_path(path)
        self.timeout = timeout
        self._lock = threading.Lock()
        self._connection = None
        self._process = None

    def call(self, method, **parameters):
        """Calls a method; returns the reply's parameters."""
        reply, descriptors = self.call_for_descriptors(method, **parameters)
        for descriptor in descriptors:
            os.close(descriptor)
        return reply

    def call_for_descriptors(self, method, **parameters):
        """Calls a method; returns the reply's parameters and descriptors. The caller closes the descriptors."""
        data = encode(_full(method), parameters)
        with self._lock:
            reply, descriptors = self._exchange(data)
        try:
            return _parameters(reply), descriptors
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def stream(self, method, **parameters):
        """Calls a method with `more` on a separate connection; yields the parameters of each reply."""
        connection = _Connection(self.path, self.timeout)
        try:
            connection.send(encode(_full(method), parameters, more=True))
            # The next event may take any time.
            connection.socket.settimeout(None)
            while True:
                reply, descriptors = connection.receive()
                for descriptor in descriptors:
                    os.close(descriptor)
                yield _parameters(reply)
                if not reply.get("continues"):
                    return
        except (OSError, EOFError) as error:
            raise self._not_running(error) from None
        finally:
            connection.close()

    def start(self, method, **parameters):
        """Calls a method without waiting for the reply.

        Closing the returned connection discards the reply and its descriptors.
        """
        connection = _Connection(self.path, self.timeout)
        try:
            connection.send(encode(_full(method), parameters))
        except OSError as error:
            connection.close()
            raise self._not_running(error) from None
        return connection

    def close(self):
        """Closes the connection. Leases remain."""
        with self._lock:
            self._drop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # The methods of org.crafter.v1.

    def info(self):
        return self.call("Info")

    def interfaces(self, name=None):
        return self.call("Interfaces", name=name)["interfaces"]

    def policy(self):
        return self.call("Policy")

    def reload(self):
        return self.call("Reload")

    def route(self, destination, interface=None, source=None):
        return self.call("Route", destination=destination, interface=interface, source=source)

    def lease(self, protocol, interface=None, destination=None, address=None, port=None, last_port=None, frames=None,
              observe=None, suppress=None, report=None, peers=None, leave_open=False):
        """Leases ports; returns a `Lease`. If `port` is None, the service chooses a free port.

        `peers` says whose packets it receives: "flow" (of those that it has sent to), "address" or "any"; None: as many as
        the policy allows.

        With `leave_open` closing the lease does not reset half-open connections; the kernel does. The same applies to
        `observe` with `suppress=False`, because the kernel then resets them at once.
        """
        reply, descriptors = self.call_for_descriptors(
            "Lease", protocol=protocol, interface=interface, destination=destination, address=address, port=port,
            last_port=last_port, frames=frames, observe=observe, suppress=suppress, report=report, peers=peers)
        kernel_resets = bool(observe) and suppress is False
        return Lease(self, reply, descriptors, protocol=protocol, frames=bool(frames),
                     leave_open=leave_open or kernel_resets)

    def observe(self, interface, filter=None, direction=None):
        """Observes an interface's packets, also those of others; returns a `Lease` that is only read."""
        reply, descriptors = self.call_for_descriptors(
            "Observe", interface=interface, filter=filter, direction=direction)
        return Lease(self, reply, descriptors, protocol="observe", frames=True)

    def release(self, lease):
        return self.call("Release", lease=lease)

    def list_leases(self, mine=None, interface=None):
        return self._pages("ListLeases", "leases", mine=mine, interface=interface)

    def list_flows(self, interface=None, protocol=None, port=None, remote=None):
        return self._pages(
            "ListFlows", "flows", interface=interface, protocol=protocol, port=port, remote=remote)

    def counters(self, interface=None):
        return self.call("Counters", interface=interface)["interfaces"]

    def monitor(self, interval_ms=None):
        """Yields lists of events until the caller stops. `interval_ms`: milliseconds between events of counters."""
        for reply in self.stream("Monitor", interval_ms=interval_ms):
            yield reply["events"]

    def _pages(self, method, what, **parameters):
        found, after = [], None
        while True:
            reply = self.call(method, after=after, **parameters)
            found += reply[what]
            after = reply.get("next")
            if after is None:
                return found

    def _exchange(self, data):
        if self._process != os.getpid():
            # A shared connection would mix the replies of parent and child.
            self._drop()
        reused = self._connection is not None
        try:
            return self._try(data)
        except (BrokenPipeError, ConnectionResetError, EOFError) as error:
            # The service exits when idle and starts with the next connection.
            self._drop()
            if not reused:
                raise self._not_running(error) from None
        except OSError as error:
            self._drop()
            raise self._not_running(error) from None
        try:
            return self._try(data)
        except (OSError, EOFError) as error:
            self._drop()
            raise self._not_running(error) from None

    def _try(self, data):
        if self._connection is None:
            self._connection = _Connection(self.path, self.timeout)
            self._process = os.getpid()
        self._connection.send(data)
        return self._connection.receive()

    def _drop(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _not_running(self, error):
        if isinstance(error, socket.timeout):
            return errors.ServiceNotRunning(self.path, f"no reply within {self.timeout:g} s")
        return errors.ServiceNotRunning(self.path, str(error) or "it closed the connection")

    def _forked(self):
        """Called in a child after fork: the lock may be held by a thread of the parent, so replace it."""
        self._lock = threading.Lock()


def _full(method):
    return method if "." in method else f"{INTERFACE}.{method}"
