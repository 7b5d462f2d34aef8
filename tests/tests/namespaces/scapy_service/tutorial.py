import random, sys
from scapy.all import *
conf.verb = 0
IPX = IPv6 if ":" in sys.argv[1] else IP
sport = random.randint(20000, 60000)
syn = IPX(dst=sys.argv[1])/TCP(sport=sport, dport=80, flags="S", seq=1000)
synack = sr1(syn, timeout=10)
ack = IPX(dst=sys.argv[1])/TCP(sport=synack.dport, dport=80, flags="A", seq=synack.ack, ack=synack.seq + 1)
send(ack)
get = ack.copy()
get[TCP].flags = "PA"
get = get/("GET %s HTTP/1.0\r\nRange: bytes=0-99\r\n\r\n" % sys.argv[2])
ans, unans = sr(get, multi=True, timeout=1)
parts = {reply[TCP].seq: reply[Raw].load for _, reply in ans if Raw in reply}
page = b"".join(parts[seq] for seq in sorted(parts)).split(b"\r\n\r\n", 1)[1]
print(sport, page.hex(), flush=True)
