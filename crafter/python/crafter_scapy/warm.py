"""Makes the service attach to an interface while Scapy is imported, because attaching takes a tenth of a second."""

import threading

from .errors import CrafterError

_ROUTES = "/proc/net/route"
#: How long an unused attachment is kept, in seconds.
_UNUSED_SECONDS = 5.0


def likely_interface(routes):
    """Returns the interface of the IPv4 default route, else of the first route; None if there are no routes.

    `routes`: the text of /proc/net/route.
    """
    found = None
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 1 and (found is None or fields[1] == "00000000"):
            found = fields[0]
            if fields[1] == "00000000":
                break
    return found


class Warm:
    """A lease without ports, requested without waiting for the reply. It keeps the service attached until the first
    real lease exists, or for a few seconds."""

    def __init__(self, client):
        self._lock = threading.Lock()
        self._connection = self._timer = None
        try:
            with open(_ROUTES, encoding="ascii") as file:
                interface = likely_interface(file.read())
            if interface:
                self._connection = client.start("Lease", protocol="none", interface=interface)
        except (OSError, CrafterError):
            # Not an error: only the first lease takes longer.
            return
        self._timer = threading.Timer(_UNUSED_SECONDS, self.end)
        self._timer.daemon = True
        self._timer.start()

    def end(self):
        """Ends the lease."""
        with self._lock:
            connection, self._connection = self._connection, None
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if connection is not None:
            connection.close()

    def forked(self):
        """Called in a child after fork, where the timer does not run: closes the child's copy of the connection."""
        self._lock = threading.Lock()
        self._timer = None
        self.end()
