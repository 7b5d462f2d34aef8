"""Scapy without root, through the crafter service.

A script needs one line more:

    import crafter_scapy; crafter_scapy.install()

Ports are leased when Scapy sends from them, and released when the process ends. `Client` calls the service without
Scapy.
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
