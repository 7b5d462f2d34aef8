"""Prints the self-contained packet expressions of Scapy's test files (UTScapy), one JSON object a line, with the packets
that this Scapy builds from them. Arguments: the files."""

import ast
import json
import logging
import re
import sys
import warnings

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")

from scapy.all import *  # noqa: E402, F403
from scapy.all import Packet, conf, load_contrib, load_layer  # noqa: E402
import scapy.layers.inet6  # noqa: E402
import scapy.layers.l2  # noqa: E402

LIMIT = 512
MARKUP = tuple("%+=*~#")

load_layer("http")
for contrib in ("mpls", "icmp_extensions"):
    load_contrib(contrib)


def neutralize():
    """What Scapy fills in from the machine is what crafter fills in without one: zero, broadcast."""
    for routes, zero in ((conf.route, "0.0.0.0"), (conf.route6, "::")):
        none = (conf.loopback_name, zero, zero)
        routes.route = lambda *_, none=none, **__: none
    conf.neighbor.resolve = lambda *_: None
    scapy.layers.l2.get_if_hwaddr = lambda *_: "00:00:00:00:00:00"
    # Node information: the nonce of a class is random.
    for layer in list(vars(scapy.layers.inet6).values()):
        for field in getattr(layer, "fields_desc", ()):
            if isinstance(field, scapy.layers.inet6.NonceField):
                field.default = bytes(8)


def tests(path):
    """The code of each test in a file, with the number of its first line."""
    with open(path, encoding="utf-8") as file:
        code, first = [], 1
        for number, line in enumerate(file, 1):
            if line.startswith(MARKUP) and not line.startswith("#"):
                yield first, "".join(code)
                code, first = [], number + 1
            else:
                code.append(re.sub(r"^>>> ?", "", line))
        yield first, "".join(code)


def parsed(code):
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError):
        return None


def is_packet_class(name):
    known = globals().get(name)
    return isinstance(known, type) and issubclass(known, Packet) and known.__module__.startswith("scapy.")


def is_closed(node):
    """Whether an expression names nothing but layers, and calls nothing else."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            return is_packet_class(name)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return all(map(is_closed, parts))
        case ast.UnaryOp(operand=operand):
            return is_closed(operand)
        case ast.BinOp(left=left, right=right):
            return is_closed(left) and is_closed(right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            closed = all(map(is_closed, [*args, *(keyword.value for keyword in keywords)]))
            return is_packet_class(name) and closed and all(keyword.arg for keyword in keywords)
    return False


def has_call(node):
    return any(isinstance(part, ast.Call) for part in ast.walk(node))


def expressions(node):
    """The largest closed expressions with a layer."""
    if isinstance(node, (ast.Call, ast.BinOp)) and is_closed(node) and has_call(node):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from expressions(child)


def is_dissection(node):
    """`IP(b"...")`: the bytes are given."""
    return (
        isinstance(node, ast.Call)
        and not node.keywords
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, bytes)
    )


def built(code):
    packet = eval(code, globals())
    if not isinstance(packet, Packet):
        return None
    packets = []
    for one in packet:
        packets.append(bytes(one))
        if len(packets) > LIMIT:
            return None
    return packets


def main():
    neutralize()
    print(json.dumps({"version": conf.version}))
    seen = set()
    for path in sys.argv[1:]:
        for first, code in tests(path):
            tree = parsed(code)
            for node in expressions(tree) if tree else ():
                text = ast.get_source_segment(code, node)
                key = ast.unparse(node)
                if key in seen:
                    continue
                seen.add(key)
                found = {"file": path, "line": first + node.lineno - 1, "text": text}
                try:
                    compiled = compile(ast.Expression(node), path, "eval")
                    packets, again = built(compiled), built(compiled)
                except Exception as error:  # Scapy itself refuses some, on purpose.
                    print(json.dumps({**found, "skipped": f"Scapy: {error!r}"[:200]}))
                    continue
                if packets is None:
                    continue
                if packets != again:
                    print(json.dumps({**found, "skipped": "random"}))
                    continue
                found["kind"] = "dissected" if is_dissection(node) else "built"
                print(json.dumps({**found, "packets": [packet.hex() for packet in packets]}))


main()
