"""Exceptions. A message says what failed, why, and what to do if something can be done."""

#: Hint for packets without `sport`, which get Scapy's default.
OWN_PORTS = "Scapy's default source port is 20 for TCP and 53 for UDP: set sport"


class CrafterError(Exception):
    """Base of all exceptions of this package."""


class ServiceNotRunning(CrafterError):
    """The service does not answer on its socket."""

    def __init__(self, path, reason):
        super().__init__(
            f"the crafter service does not answer on {path} ({reason}): start it with "
            "`systemctl start crafter.socket` or `sudo crafter serve`; CRAFTER_SOCKET names another socket"
        )
        self.path = path


class AccessDenied(CrafterError):
    """This user may not connect to the service's socket."""

    def __init__(self, path):
        super().__init__(
            f"this user may not connect to {path}: join the group of the socket, by default with "
            "`sudo usermod -aG crafter $USER`, and log in again"
        )
        self.path = path


class ServiceError(CrafterError):
    """An error reply of the service."""

    def __init__(self, name, parameters):
        super().__init__(parameters.get("message") or f"the service returned {name}: {parameters}")
        #: Name of the error, such as `org.crafter.v1.NoRoute`.
        self.name = name
        #: Parameters of the reply.
        self.parameters = parameters


class PolicyError(ServiceError):
    """The service's policy refuses a lease or a packet."""

    def __init__(self, rule, verdict, message, packet=b""):
        self.rule = rule
        self.verdict = verdict
        self.packet = packet
        super().__init__("org.crafter.v1.Refused", {"rule": rule, "verdict": verdict, "message": message})

    def __str__(self):
        message = self.parameters["message"]
        if self.rule and f"rule {self.rule}" not in message:
            message = f"rule {self.rule}: {message}"
        return f"refused by the policy, {message}{self.hint()}"

    def hint(self):
        """Remedy for the most common refusal: a packet without `sport`."""
        if self.names("port", "local port"):
            return f" ({OWN_PORTS})"
        return ""

    def names(self, key, words):
        """Whether the verdict has the name `key`, or the sentence contains `words`."""
        return self.verdict == key or words in f"{self.verdict} {self.parameters['message']}"

    @property
    def is_quota(self):
        """Whether the rule's number of leases or ports is used up."""
        return self.names("max-leases", "max_leases") or self.names("max-ports", "max_ports")


class PortTaken(ServiceError):
    """A socket of this host, or another lease, uses the port."""

    def __init__(self, parameters):
        super().__init__("org.crafter.v1.PortTaken", parameters)
        self.protocol = parameters.get("protocol")
        self.address = parameters.get("address")
        self.port = parameters.get("port")
        #: Your own lease, if it has the port.
        self.holder = parameters.get("holder")

    def __str__(self):
        message = super().__str__()
        if self.holder and self.holder not in message:
            return f"{message} (taken by {self.holder})"
        return message


class NotSent(CrafterError):
    """A packet was not sent, for a reason other than the policy."""

    def __init__(self, reason, message, packet=b""):
        super().__init__(f"not sent, {reason}: {message}" if message else f"not sent: {reason}")
        #: `no route`, `no neighbour`, `not sent by the kernel`, `interface removed`, `malformed`.
        self.reason = reason
        self.packet = packet


class LeaseEnded(CrafterError):
    """The lease has ended: it was released, its interface was removed, or the service stopped."""

    def __init__(self, reason, message=""):
        super().__init__(f"the lease has ended, {reason}" + (f": {message}" if message else ""))
        self.reason = reason


_KINDS = {
    "org.crafter.v1.Refused": lambda p: PolicyError(p.get("rule"), p.get("verdict", ""), p.get("message", "")),
    "org.crafter.v1.PortTaken": PortTaken,
}


def of(name, parameters):
    """Returns the exception for an error reply."""
    kind = _KINDS.get(name)
    return kind(parameters) if kind else ServiceError(name, parameters)
