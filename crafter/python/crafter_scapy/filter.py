"""pcap filters applied in this process: a lease has no kernel filter, and its packets have no Ethernet header."""

import ctypes

from scapy.arch.common import compile_filter
from scapy.config import conf
from scapy.error import Scapy_Exception

#: Link type of packets that begin with the IP header.
_DLT_RAW = 12


def whole(text, nofilter):
    """Combines a filter with `conf.except_filter`, as Scapy's own sockets do."""
    if nofilter or not conf.except_filter:
        return text
    return f"({text}) and not ({conf.except_filter})" if text else f"not ({conf.except_filter})"


class Filter:
    """A compiled pcap filter."""

    def __init__(self, text):
        try:
            self._program = compile_filter(text, linktype=_DLT_RAW)
            from scapy.libs import winpcapy
        except ImportError:
            raise Scapy_Exception(
                "Cannot set filter: libpcap is missing; install it (Debian: libpcap0.8), or use lfilter="
            ) from None
        except Scapy_Exception as error:
            raise Scapy_Exception(
                f"Cannot set filter on leased ports, whose packets begin with the IP header: {error}; a filter for "
                "frames needs `observe` in the policy") from None
        self._free = winpcapy.pcap_freecode
        # Scapy declares this function for Windows only.
        self._match = ctypes.CDLL(winpcapy._lib_name).pcap_offline_filter
        self._match.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
        self._match.restype = ctypes.c_int
        self._header = winpcapy.pcap_pkthdr()

    def matches(self, packet):
        """Whether the filter matches an IP packet."""
        self._header.len = self._header.caplen = len(packet)
        return self._match(ctypes.byref(self._program), ctypes.byref(self._header), packet) != 0

    def __del__(self):
        if hasattr(self, "_free"):
            self._free(ctypes.byref(self._program))
