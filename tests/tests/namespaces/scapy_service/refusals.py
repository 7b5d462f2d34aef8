import socket, sys
from scapy.all import *
conf.verb = 0
from crafter_scapy import PolicyError, PortTaken

def of(call):
    try:
        return call()
    except (PolicyError, PortTaken) as error:
        return error

near, denied, near6 = sys.argv[1:4]
holder = socket.create_server(("", 0))
taken = holder.getsockname()[1]
for name, call in {
    "denied sr1": lambda: sr1(IP(dst=denied)/TCP(sport=5000, dport=80, flags="S"), timeout=30),
    "denied send": lambda: send(IP(dst=denied)/TCP(sport=5000, dport=80, flags="S")),
    "allowed send": lambda: send(IP(dst=near)/TCP(sport=5000, dport=81, flags="S")),
    "privileged": lambda: sr1(IP(dst=near)/TCP(dport=80, flags="S"), timeout=30),
    "foreign": lambda: send(IP(src="198.51.100.7", dst=near)/UDP(sport=5001, dport=9)),
    "frames": lambda: sendp(Ether()/IP(dst=near)/UDP(sport=5002, dport=9), iface=conf.iface),
    "plain ping": lambda: sr1(IP(dst=near)/ICMP(), timeout=30).summary(),
    "plain ping, IPv6": lambda: sr1(IPv6(dst=near6)/ICMPv6EchoRequest(), timeout=30).summary(),
    "taken": lambda: sr1(IP(dst=near)/TCP(sport=taken, dport=80, flags="S"), timeout=30),
}.items():
    error = of(call)
    print(name, type(error).__name__, getattr(error, "rule", None), error, sep="|", flush=True)
