import sys, time
from scapy.all import *
conf.verb = 0
server, iface = sys.argv[1:3]
mac = getmacbyip(server)
answer = srp1(Ether(dst="ff:ff:ff:ff:ff:ff")/ARP(pdst=server), iface=iface, timeout=10)
print("arp", answer.hwsrc == mac, flush=True)
answer = srp1(Ether()/IP(dst=server)/TCP(sport=5001, dport=81, flags="S"), iface=iface, timeout=10)
print("srp", answer[TCP].flags, flush=True)
sniffer = AsyncSniffer(iface=iface, filter="tcp port 5002")
sniffer.start()
while not getattr(sniffer, "continue_sniff", False):
    time.sleep(0.01)
sr1(IP(dst=server)/TCP(sport=5002, dport=81, flags="S"), timeout=10)
until = time.monotonic() + 10
while sniffer.count < 2 and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.2)
sniffer.stop()
# The service delivers the two packets in either order.
print("sniff", *sorted(str(packet[TCP].flags) for packet in sniffer.results if Ether in packet), flush=True)
