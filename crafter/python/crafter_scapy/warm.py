"""Attaching the service to an interface takes a tenth of a second, and importing Scapy takes longer: both at once."""

import threading

from .errors import CrafterError

_ROUTES = "/proc/net/route"
#: How long an attachment is kept that nobody uses, in seconds.
_KEPT = 5.0


def likely_interface(routes):
    """The interface of the default route, else of the first, as /proc/net/route has them; None if there is none."""
    found = None
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 1 and (found is None or fields[1] == "00000000"):
            found = fields[0]
            if fields[1] == "00000000":
                break
    return found


class Warm:
    """A lease without ports, asked for and not waited for: it ends with the first real one, or soon."""

    def __init__(self, client):
        self._lock = threading.Lock()
        self._connection = self._timer = None
        try:
            with open(_ROUTES, encoding="ascii") as file:
                interface = likely_interface(file.read())
            if interface:
                self._connection = client.start("Lease", protocol="none", interface=interface)
        except (OSError, CrafterError):
            # Then the first lease takes longer.
            return
        self._timer = threading.Timer(_KEPT, self.end)
        self._timer.daemon = True
        self._timer.start()

    def end(self):
        """Gives it back."""
        with self._lock:
            connection, self._connection = self._connection, None
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if connection is not None:
            connection.close()

    def forked(self):
        """In a child, where the timer does not run: it is the parent's."""
        self._lock = threading.Lock()
        self._timer = None
        self.end()
