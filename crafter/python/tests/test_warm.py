"""The interface that the early lease attaches to."""

import unittest

from crafter_scapy.warm import likely_interface

HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


class Likely(unittest.TestCase):
    def test_default_route_then_first_route(self):
        near, far = "veth0\t000200C0\t00000000\t0001\n", "eth0\t00000000\t010200C0\t0003\n"
        self.assertEqual(likely_interface(HEAD + near + far), "eth0")
        self.assertEqual(likely_interface(HEAD + near), "veth0")
        for none in (HEAD, "", "garbage\n\n \n"):
            self.assertIsNone(likely_interface(none))


if __name__ == "__main__":
    unittest.main()
