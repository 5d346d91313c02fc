# SPDX-License-Identifier: Apache-2.0
"""Which addresses a network namespace uses, or knows the way to: what a new subnet must not be.

Kernel: /proc/PID/net/fib_trie and ipv6_route, which have the routes of all tables, and those of
the namespace's own addresses; proc_net(5).
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nsbox.netspec import Subnet

_NET = "/proc/thread-self/net"
#: A route that is as wide as this is a default route, or half of one as VPNs make them.
_DEFAULT_LIKE = 8
#: linux/ipv6_route.h. A router has one beside each of its subnets, but the kernel can keep that
#: until the link goes: forwarding that is switched on during a link's DAD joins it twice.
_RTF_ANYCAST = 0x100000


class Taken(NamedTuple):
    """Addresses from *first* to *last*, as numbers; *what* has them, for messages."""

    version: int
    first: int
    last: int
    what: str
    device: str = ""

    def overlaps(self, subnet: Subnet) -> bool:
        first = int(subnet.network_address)
        last = int(subnet.broadcast_address)
        return self.version == subnet.version and self.first <= last and first <= self.last


def _taken(subnet: Subnet, device: str) -> Taken:
    by = f" by {device}" if device else ""
    what = f"the route to {subnet}{by}"
    if subnet.prefixlen == subnet.max_prefixlen:
        what = f"the address {subnet.network_address}{by}"
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    return Taken(subnet.version, first, last, what, device)


def taken() -> list[Taken]:
    """Routes and addresses of this thread's network namespace, without default routes.

    Raises:
        OSError: /proc does not show them.
    """
    found: dict[Subnet, str] = {}
    for subnet, device in (*_routes4(), *_routes6()):
        if subnet.prefixlen >= _DEFAULT_LIKE:
            found[subnet] = found.get(subnet) or device
    return [_taken(subnet, device) for subnet, device in found.items()]


def _routes4() -> list[tuple[Subnet, str]]:
    devices = {}
    for line in Path(f"{_NET}/route").read_text().splitlines()[1:]:
        words = line.split()
        devices[_number(words[1]), _number(words[7]).bit_count()] = words[0].strip("*")
    found: list[tuple[Subnet, str]] = []
    address = ""
    for line in Path(f"{_NET}/fib_trie").read_text().splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words and words[0].startswith("/") and words[2] != "BROADCAST":
            subnet = ipaddress.IPv4Network(address + words[0])
            found.append((subnet, devices.get((int(subnet.network_address), subnet.prefixlen), "")))
    return found


def _number(text: str) -> int:
    """Of the network's bytes, which the kernel prints as a number of the machine's."""
    return int.from_bytes(int(text, 16).to_bytes(4, sys.byteorder), "big")


def _routes6() -> list[tuple[Subnet, str]]:
    path = Path(f"{_NET}/ipv6_route")
    if not path.exists():
        return []
    found: list[tuple[Subnet, str]] = []
    for line in path.read_text().splitlines():
        words = line.split()
        if int(words[8], 16) & _RTF_ANYCAST:
            continue
        subnet = ipaddress.IPv6Network((int(words[0], 16), int(words[1], 16)))
        found.append((subnet, words[9]))
    return found
