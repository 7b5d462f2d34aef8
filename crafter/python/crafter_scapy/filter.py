"""Filters in tcpdump's language, applied here: a lease has no kernel filter, and its packets no Ethernet header."""

import ctypes

from scapy.arch.common import compile_filter
from scapy.config import conf
from scapy.error import Scapy_Exception

#: Packets from their IP header on.
_DLT_RAW = 12


def whole(text, nofilter):
    """A filter with what `conf.except_filter` excludes, as Scapy's own sockets do it."""
    if nofilter or not conf.except_filter:
        return text
    return f"({text}) and not ({conf.except_filter})" if text else f"not ({conf.except_filter})"


class Filter:
    """A compiled filter."""

    def __init__(self, text):
        try:
            self._program = compile_filter(text, linktype=_DLT_RAW)
            from scapy.libs import winpcapy
        except ImportError:
            raise Scapy_Exception(
                "Cannot set filter: libpcap is missing (Debian: libpcap0.8). lfilter= takes a Python function instead"
            ) from None
        except Scapy_Exception as error:
            raise Scapy_Exception(
                f"Cannot set filter on leased ports, whose packets begin with their IP header (frames take `observe` in "
                f"the policy): {error}") from None
        self._free = winpcapy.pcap_freecode
        # Scapy declares it for Windows only.
        self._match = ctypes.CDLL(winpcapy._lib_name).pcap_offline_filter
        self._match.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
        self._match.restype = ctypes.c_int
        self._header = winpcapy.pcap_pkthdr()

    def matches(self, packet):
        """Whether an IP packet passes."""
        self._header.len = self._header.caplen = len(packet)
        return self._match(ctypes.byref(self._program), ctypes.byref(self._header), packet) != 0

    def __del__(self):
        if hasattr(self, "_free"):
            self._free(ctypes.byref(self._program))
