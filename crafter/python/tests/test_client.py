"""The control interface against a fake service."""

import os
import socket
import unittest
from unittest import mock

from crafter_scapy import AccessDenied, Client, PolicyError, PortTaken, ServiceError, ServiceNotRunning
from crafter_scapy.client import encode, socket_path

from .service import Service


class Wire(unittest.TestCase):
    def test_call_is_json_terminated_by_nul(self):
        self.assertEqual(encode("org.crafter.v1.Info", {}), b'{"method":"org.crafter.v1.Info","parameters":{}}\0')
        self.assertEqual(
            encode("a.B", {"port": 0, "address": None, "frames": False}, more=True),
            b'{"method":"a.B","parameters":{"port":0,"frames":false},"more":true}\0')

    def test_socket_path_is_argument_environment_or_default(self):
        with mock.patch.dict(os.environ, {"CRAFTER_SOCKET": "/x"}):
            self.assertEqual((socket_path(), socket_path("/y")), ("/x", "/y"))
        with mock.patch.dict(os.environ, {"CRAFTER_SOCKET": ""}):
            self.assertEqual(socket_path(), "/run/crafter/crafter.sock")


class Calls(unittest.TestCase):
    def setUp(self):
        self.service = Service()
        self.addCleanup(self.service.close)
        self.client = Client(self.service.path, timeout=5)
        self.addCleanup(self.client.close)

    def test_lease_has_its_socket(self):
        self.service.network = lambda packet, lease: [packet[::-1]]
        with self.client.lease("tcp", interface="test0", port=4242) as lease:
            self.assertEqual((lease.port, lease.interface), (4242, "test0"))
            self.assertFalse(os.get_inheritable(lease.fileno()))
            lease.send(b"abc")
            self.assertEqual(lease.receive(timeout=5)[0].body, b"cba")
        self.assertEqual(self.service.calls[0]["parameters"], {"protocol": "tcp", "interface": "test0", "port": 4242})

    def test_error_reply_raises_its_exception(self):
        with self.assertRaises(PolicyError) as caught:
            self.client.lease("tcp", interface="test0", port=80)
        self.assertEqual((caught.exception.rule, caught.exception.verdict), (1, "port"))
        self.assertIn("refused by the policy, rule 1: the local port", str(caught.exception))
        with self.assertRaises(PortTaken) as caught:
            self.client.lease("tcp", interface="test0", port=33333)
        self.assertEqual(caught.exception.holder, "nginx (pid 12)")
        self.assertIn("nginx (pid 12)", str(caught.exception))
        with self.assertRaises(ServiceError) as caught:
            self.client.release(12345)
        self.assertEqual(caught.exception.name, "org.crafter.v1.NoSuchLease")

    def test_pages_are_joined(self):
        held = [self.client.lease("udp", interface="test0", port=5000 + number) for number in range(5)]
        rows = self.client.list_leases(mine=True)
        self.assertEqual([row["lease"] for row in rows], [lease.id for lease in held])
        for lease in held:
            lease.release()

    def test_stream_ends_with_the_last_reply(self):
        self.assertEqual(list(self.client.monitor()), [[{"event": "attached"}]])

    def test_closed_connection_is_reopened(self):
        self.client.info()
        for connection in self.service.connections:
            connection.shutdown(socket.SHUT_RDWR)
        self.assertEqual(self.client.info()["version"], "test")

    def test_child_opens_its_own_connection(self):
        self.client.info()
        child = os.fork()
        if child == 0:
            os._exit(0 if self.client.info()["version"] == "test" else 1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(self.client.info()["version"], "test")
        self.assertEqual(len(self.service.connections), 2)


class Absent(unittest.TestCase):
    def test_absent_service_error_names_remedies(self):
        with self.assertRaises(ServiceNotRunning) as caught:
            Client("/nonexistent/crafter.sock").info()
        for words in ("/nonexistent/crafter.sock", "systemctl start crafter.socket", "crafter serve", "CRAFTER_SOCKET"):
            self.assertIn(words, str(caught.exception))

    @unittest.skipIf(os.getuid() == 0, "root may connect to everything")
    def test_access_denied_error_names_the_group(self):
        service = Service()
        self.addCleanup(service.close)
        os.chmod(service.path, 0)
        with self.assertRaises(AccessDenied) as caught:
            Client(service.path).info()
        self.assertIn("usermod -aG crafter", str(caught.exception))

    def test_stopped_service_raises(self):
        service = Service()
        client = Client(service.path, timeout=5)
        client.info()
        service.close()
        with self.assertRaises(ServiceNotRunning):
            client.info()


if __name__ == "__main__":
    unittest.main()
