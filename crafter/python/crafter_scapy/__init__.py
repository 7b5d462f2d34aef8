"""Scapy without root: its packets go through the crafter service.

    import crafter_scapy; crafter_scapy.install()

is all that a script needs. Ports are leased as Scapy sends from them, and given back when the process ends.
`Client` is the service without Scapy.
"""

from .client import INTERFACE, SOCKET, SOCKET_VARIABLE, Client
from .errors import (
    AccessDenied,
    CrafterError,
    LeaseEnded,
    NotSent,
    PolicyError,
    PortTaken,
    ServiceError,
    ServiceNotRunning,
)
from .install import client, install, release, uninstall
from .lease import Lease, Message

__version__ = "0.1.0"
__all__ = [
    "INTERFACE", "SOCKET", "SOCKET_VARIABLE", "AccessDenied", "Client", "CrafterError", "Lease", "LeaseEnded",
    "Message", "NotSent", "PolicyError", "PortTaken", "ServiceError", "ServiceNotRunning", "client", "install",
    "release", "uninstall",
]
