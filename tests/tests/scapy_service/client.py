import hashlib, sys, time
from scapy.all import *
from scapy.layers.inet import TCP_client
conf.verb = 0
length, data, began = int(sys.argv[3]), bytearray(), time.monotonic()
link = TCP_client.tcplink(Raw, sys.argv[1], 80)
link.send(Raw(("GET %s HTTP/1.0\r\nRange: bytes=0-%d\r\n\r\n" % (sys.argv[2], length - 1)).encode()))
while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + length:
    data += link.recv().load
page = data[data.index(b"\r\n\r\n") + 4:]
print(hashlib.sha256(page).hexdigest(), len(page), "%.1f s" % (time.monotonic() - began), flush=True)
# Not left to the end of the interpreter, which stops the automaton's thread first and then waits for it.
link.close()
