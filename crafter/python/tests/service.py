"""A fake service: it implements the control interface, and the test simulates the network."""

import array
import json
import os
import socket
import struct
import tempfile
import threading
import time


class Service:
    """Listens on a socket in a temporary directory; grants leases as the shipped policy does, up to `max_leases`."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="crafter-scapy-")
        self.path = os.path.join(self.directory.name, "crafter.sock")
        self.calls = []
        self.leases = {}
        self.counts = {}
        self.rule = {"number": 1, "observe": False, "raw_ethernet": False}
        self.max_leases = 1000
        #: Called with each packet and its lease; returns a list of reply packets, or the text of a refusal.
        self.network = lambda packet, lease: []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.connections = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        # close() alone does not wake a thread that waits on the socket.
        if self.listener.fileno() < 0:
            return
        for one in [self.listener, *self.connections, *self.leases.values()]:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
        self.directory.cleanup()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        buffer = b""
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                data = b""
            if not data:
                connection.close()
                return
            buffer += data
            while b"\0" in buffer:
                text, _, buffer = buffer.partition(b"\0")
                call = json.loads(text)
                self.calls.append(call)
                self._answer(connection, call["method"].rpartition(".")[2], call["parameters"])

    def _answer(self, connection, method, parameters):
        descriptors = []
        try:
            reply = {"parameters": getattr(self, "on_" + method)(parameters, descriptors)}
        except KeyError as error:
            name, rest = error.args
            reply = {"error": "org.crafter.v1." + name, "parameters": rest}
        data = json.dumps(reply).encode() + b"\0"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno() for one in descriptors]))]
        try:
            # Two writes: a stream may split a message.
            connection.sendmsg([data[:5]], rights if descriptors else [])
            connection.sendall(data[5:])
        except OSError:
            # The client has closed the connection.
            pass
        for one in descriptors:
            one.close()

    def on_Info(self, _, __):
        return {"version": "test", "abi": 1, "leases": len(self.leases)}

    def on_Policy(self, _, __):
        return {"user": os.getuid(), "groups": [], "rule": self.rule}

    def on_Route(self, parameters, _):
        return {"interface": "test0", "mac": "02:00:00:00:00:09", "link_mac": "02:00:00:00:00:01"}

    def on_Interfaces(self, parameters, _):
        return {"interfaces": [{"name": parameters.get("name"), "mtu": 1500, "mac": "02:00:00:00:00:01"}]}

    def on_Lease(self, parameters, descriptors):
        port = parameters.get("port")
        if port is not None and port < 1024 and parameters["protocol"] != "icmp":
            raise KeyError("Refused", {"rule": 1, "verdict": "port",
                                       "message": "rule 1: the local port is not among its ports"})
        if port == 33333:
            raise KeyError("PortTaken", {"protocol": "tcp", "address": "::", "port": port,
                                         "holder": "nginx (pid 12)", "message": "TCP port 33333 on :: is taken"})
        if len(self.leases) >= self.max_leases:
            raise KeyError("Refused", {"rule": 1, "verdict": "max-leases",
                                       "message": "rule 1: there would be more leases than its max_leases"})
        if port is None and parameters["protocol"] != "none":
            port = 50000
        number = len(self.calls)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.leases[number] = ours
        self.counts[number] = [0, 0]
        threading.Thread(target=self._relay, args=(number, ours), daemon=True).start()
        descriptors.append(theirs)
        return {"lease": number, "socket": 0, "interface": parameters.get("interface"), "index": 1,
                "first_port": port, "last_port": port, "mtu": 1500, "mode": "native"}

    def on_Observe(self, parameters, descriptors):
        reply = self.on_Lease({"protocol": "observe", "port": 65535, **parameters}, descriptors)
        return {**reply, "link_type": 1}

    def on_Release(self, parameters, _):
        if parameters["lease"] not in self.leases:
            raise KeyError("NoSuchLease", {"lease": parameters["lease"], "message": "no such lease"})
        self.leases[parameters["lease"]].shutdown(socket.SHUT_RDWR)
        return {}

    def on_ListLeases(self, parameters, _):
        rows = sorted(self.counts.items())
        after = parameters.get("after") or 0
        page = [row for row in rows if row[0] > after][:2]
        more = bool(page) and page[-1][0] < rows[-1][0]
        return {"leases": [{"lease": number, "sent": sent, "refused": refused, "not_sent": 0}
                           for number, (sent, refused) in page], "next": page[-1][0] if more else None}

    def on_Monitor(self, _, __):
        return {"events": [{"event": "attached"}]}

    def _relay(self, number, ours):
        while True:
            try:
                packet = ours.recv(70000)
            except OSError:
                break
            if not packet:
                break
            try:
                self._answer_packet(number, packet)
            except OSError:
                # The client has closed the lease.
                break
        self.leases.pop(number, None)
        self.counts.pop(number, None)
        ours.close()

    def _answer_packet(self, number, packet):
        answers = self.network(packet, number)
        if isinstance(answers, str):
            self.counts[number][1] += 1
            self.send(number, 2, answers.encode(), packet[:128], flags=1)
            return
        self.counts[number][0] += 1
        for answer in answers:
            self.send(number, 1, answer)

    def send(self, number, kind, body, rest=b"", flags=0, lost=0):
        header = struct.pack("!BBHIQII", kind, 0, flags, 1, time.monotonic_ns(), len(body), lost)
        self.leases[number].send(header + body + rest)
