import hashlib, sys, time
from scapy.all import *
from scapy.automaton import select_objects
from scapy.layers.inet import TCP_client
conf.verb = 0

def download(server, path, length):
    data, began = bytearray(), time.monotonic()
    link = TCP_client.tcplink(Raw, server, 80)
    link.send(Raw(("GET %s HTTP/1.0\r\nRange: bytes=0-%d\r\n\r\n" % (path, length - 1)).encode()))
    while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + length:
        # TCP_client sends its SYN only once with a timeout of one second, and ends at a FIN even if it is out of order. On
        # a busy machine it may therefore end early, without an error.
        if not select_objects([link], 10):
            return None
        data += link.recv().load
    page = data[data.index(b"\r\n\r\n") + 4:]
    print(hashlib.sha256(page).hexdigest(), len(page), "%.1f s" % (time.monotonic() - began), flush=True)
    # Closed explicitly: at its exit the interpreter stops the automaton's thread first and then waits for it.
    link.close()
    return page

if not any(download(sys.argv[1], sys.argv[2], int(sys.argv[3])) for _ in range(3)):
    sys.exit("TCP_client ended early in all three attempts")
