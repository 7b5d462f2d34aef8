"""What can go wrong. Every sentence says what to do, where something can be done."""


#: Whoever sets none has these.
OWN_PORTS = "Scapy's own source port is 20 for TCP and 53 for UDP: set sport"


class CrafterError(Exception):
    """The base of all of them."""


class ServiceNotRunning(CrafterError):
    """Nobody listens on the service's socket."""

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
            f"this user may not connect to {path}: join the group that may, mostly with "
            "`sudo usermod -aG crafter $USER`, and log in again"
        )
        self.path = path


class ServiceError(CrafterError):
    """An error that the service answered with."""

    def __init__(self, name, parameters):
        super().__init__(parameters.get("message") or f"the service answers {name}: {parameters}")
        #: Such as `org.crafter.v1.NoRoute`.
        self.name = name
        #: What came with it.
        self.parameters = parameters


class PolicyError(ServiceError):
    """The policy does not allow it."""

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
        """What a user of Scapy stumbles over most."""
        if self.names("port", "local port"):
            return f" ({OWN_PORTS})"
        return ""

    def names(self, key, words):
        """Whether the verdict is the one with this name, or this beginning of a sentence."""
        return self.verdict == key or words in f"{self.verdict} {self.parameters['message']}"

    @property
    def is_for_want_of_room(self):
        """Whether it is because too many leases or ports are held."""
        return self.names("max-leases", "max_leases") or self.names("max-ports", "max_ports")


class PortTaken(ServiceError):
    """A socket of this host, or another lease, has the port."""

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
    """A packet was not sent, for another reason than the policy."""

    def __init__(self, reason, message, packet=b""):
        super().__init__(f"not sent, {reason}: {message}" if message else f"not sent: {reason}")
        #: `no route`, `no neighbour`, `not sent by the kernel`, `interface gone`, `malformed`.
        self.reason = reason
        self.packet = packet


class LeaseEnded(CrafterError):
    """The lease is over: it was released, its interface is gone, or the service has stopped."""

    def __init__(self, reason, message=""):
        super().__init__(f"the lease has ended, {reason}" + (f": {message}" if message else ""))
        self.reason = reason


_KINDS = {
    "org.crafter.v1.Refused": lambda p: PolicyError(p.get("rule"), p.get("verdict", ""), p.get("message", "")),
    "org.crafter.v1.PortTaken": PortTaken,
}


def of(name, parameters):
    """The exception for an error of the service."""
    kind = _KINDS.get(name)
    return kind(parameters) if kind else ServiceError(name, parameters)
