#!/usr/bin/env python3
"""syn.py ADDRESS PORT: sends a hand-made SYN through the crafter service and prints the reply. Standard library only."""
import json, os, socket, struct, sys

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)

# A call is a JSON object terminated by NUL. The reply to Lease has the lease's socket as a descriptor.
control = socket.socket(socket.AF_UNIX)
control.connect(os.environ.get("CRAFTER_SOCKET", "/run/crafter/crafter.sock"))
call = {"method": "org.crafter.v1.Lease", "parameters": {"protocol": "tcp", "destination": sys.argv[1]}}
control.sendall(json.dumps(call).encode() + b"\0")
data, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
reply = json.loads(data.rstrip(b"\0"))
if "error" in reply:
    sys.exit(f"{reply['error']}: {reply['parameters']['message']}")
lease = socket.socket(fileno=descriptors[0])

# Each sent message is a packet, from the IP header on.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9))
    ends = socket.inet_aton(probe.getsockname()[0]) + socket.inet_aton(sys.argv[1])
tcp = struct.pack("!HHIIBBHHH", reply["parameters"]["first_port"], int(sys.argv[2]), 1000, 0, 0x50, 2, 65535, 0, 0)
tcp = tcp[:16] + checksum(ends + struct.pack("!HH", 6, 20) + tcp) + tcp[18:]
ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + ends
lease.send(ip[:10] + checksum(ip) + ip[12:] + tcp)

# Each received message is a header of 24 bytes and a packet, or, if kind is not 1, a sentence with the reason.
lease.settimeout(5)
kind, _, _, _, _, length, _, packet = struct.unpack("!BBHIQII", (data := lease.recv(65600))[:24]) + (data[24:],)
if kind != 1:
    sys.exit(packet[:length].decode())
source, _, seq, ack, _, flags = struct.unpack_from("!HHIIBB", packet, packet[0] % 16 * 4)
print(f"{socket.inet_ntoa(packet[12:16])}:{source} answers {'SYN-ACK' if flags == 0x12 else 'RST'}, seq {seq}, ack {ack}")
