# SPDX-License-Identifier: Apache-2.0
"""Who has which address in a network of hosts, routers and switches, and who knows which way.

Pure: from nodes and the links between them to what is configured at each of their ends.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nsbox.errors import SpecError
from nsbox.netguard import mac_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from ipaddress import IPv4Address, IPv4Interface, IPv4Network

HOST, ROUTER, SWITCH = "host", "router", "switch"
_PREFIX = 24
_LOCAL = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"


class Cable(NamedTuple):
    """A link that is wanted: two names of nodes, and addresses where the user said them."""

    a: str
    b: str
    address: IPv4Interface | None = None
    peer_address: IPv4Interface | None = None


class Way(NamedTuple):
    """A route: to *network*, or to all that is left when that is None."""

    network: IPv4Network | None
    gateway: IPv4Address
    interface: str


@dataclass
class End:
    """One end of a link: the interface *name* of *node*, in the subnet *segment*."""

    node: str
    name: str
    segment: int
    address: IPv4Interface | None = None

    @property
    def mac(self) -> str:
        """Of its address, so that one is seen in the other; "" for the kernel's choice."""
        if self.address is None:
            return ""
        return mac_of(self.address.ip)


@dataclass
class Wiring:
    """What there is to configure.

    Attributes:
        ends: of each link, in its order.
        of: node -> the ends that are its own, eth0 first.
        members: segment -> the ends in it that have addresses; a segment is what hears one
            another's broadcasts.
        subnets: segment -> its addresses.
        routes: node -> its static routes.
    """

    kinds: dict[str, str]
    ends: list[tuple[End, End]]
    of: dict[str, list[End]]
    members: dict[int, list[End]] = field(default_factory=dict)
    subnets: dict[int, IPv4Network] = field(default_factory=dict)
    routes: dict[str, list[Way]] = field(default_factory=dict)

    def addresses(self, node: str) -> list[IPv4Interface]:
        return [end.address for end in self.of[node] if end.address is not None]

    def address_of(self, node: str, seen_from: str) -> IPv4Address | None:
        """Where *node* is best reached: in a subnet of both, else by its first address."""
        own = {end.segment for end in self.of[seen_from]}
        ends = [end for end in self.of[node] if end.address is not None]
        ends.sort(key=lambda end: end.segment not in own)
        return ends[0].address.ip if ends and ends[0].address else None

    def neighbours(self, end: End) -> list[End]:
        """The others in its subnet."""
        return [other for other in self.members.get(end.segment, ()) if other is not end]

    def hosts_file(self, node: str) -> str:
        """/etc/hosts of *node*: all who have an address."""
        found = ((self.address_of(other, node), other) for other in self.kinds)
        return _LOCAL + "".join(f"{address} {name}\n" for address, name in found if address)


def wire(kinds: dict[str, str], cables: Sequence[Cable], network: IPv4Network) -> Wiring:
    """Work it all out.

    Each segment (what switches join, or a link without one) is a subnet of *network*, a /24
    where there is room. Hosts have its first addresses in the order of their links, routers its
    last ones. What the user said comes first.

    Args:
        kinds: name of a node -> ``"host"``, ``"router"`` or ``"switch"``.

    Raises:
        SpecError: links or addresses contradict each other, or there are not enough addresses.
    """
    wiring = Wiring(kinds, [], {node: [] for node in kinds})
    for cable, segment in zip(cables, _segments(kinds, cables), strict=True):
        pair = []
        for node, address in ((cable.a, cable.address), (cable.b, cable.peer_address)):
            own = wiring.of[node]
            # A switch's ports count from 1, as Mininet's do.
            name = f"{node}-eth{len(own) + 1}" if kinds[node] == SWITCH else f"eth{len(own)}"
            pair.append(End(node, name, segment, address))
            own.append(pair[-1])
            if kinds[node] != SWITCH:
                wiring.members.setdefault(segment, []).append(pair[-1])
        wiring.ends.append((pair[0], pair[1]))
    wiring.subnets = _subnets(wiring.members, network)
    for segment, ends in wiring.members.items():
        _number(ends, wiring.subnets[segment], kinds)
    wiring.routes = {node: _routes(wiring, node) for node in kinds if kinds[node] != SWITCH}
    return wiring


# -- segments -----------------------------------------------------------------------------------


def _segments(kinds: dict[str, str], cables: Sequence[Cable]) -> list[int]:
    """The segment of each link, by the number of the first link in it."""
    group = {node: node for node, kind in kinds.items() if kind == SWITCH}

    def top(node: str) -> str:
        while group[node] != node:
            node = group[node]
        return node

    for i, cable in enumerate(cables):
        if cable.a in group and cable.b in group:
            a, b = top(cable.a), top(cable.b)
            if a == b:
                raise SpecError(f"links[{i}]", f"{cable.a} and {cable.b} are joined already: in a "
                                "loop of switches a broadcast goes round for ever")  # fmt: skip
            group[b] = a
    first: dict[str, int] = {}
    found = []
    for i, cable in enumerate(cables):
        switch = next((node for node in (cable.a, cable.b) if node in group), None)
        found.append(i if switch is None else first.setdefault(top(switch), i))
    return found


# -- addresses ----------------------------------------------------------------------------------


def _subnets(members: dict[int, list[End]], network: IPv4Network) -> dict[int, IPv4Network]:
    given: dict[int, IPv4Network] = {}
    for segment, ends in members.items():
        said = {end.address.network for end in ends if end.address is not None}
        if len(said) > 1:
            names = " and ".join(sorted(map(str, said)))
            raise SpecError("address", f"{_names(ends)} are in one subnet, not in {names}")
        for subnet in said:
            for other in given.values():
                if subnet.overlaps(other):
                    raise SpecError("address", f"{subnet} of {_names(ends)} overlaps {other}, "
                                    "another subnet")  # fmt: skip
            given[segment] = subnet
    taken = list(given.values())
    for segment, ends in members.items():
        if segment not in given:
            taken.append(_free(len(ends), network, taken))
            given[segment] = taken[-1]
    return given


def _free(size: int, network: IPv4Network, taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first subnet that nobody has, with room for *size*, its own and its broadcast address."""
    prefix = min(max(_PREFIX, network.prefixlen), 32 - (size + 1).bit_length())
    if prefix >= network.prefixlen:
        used = [other for other in taken if other.overlaps(network)]
        for subnet in network.subnets(new_prefix=prefix):
            if not any(subnet.overlaps(other) for other in used):
                return subnet
    raise SpecError("network", f"{network} has no room for one more subnet of {size} addresses: "
                    "give a larger one")  # fmt: skip


def _number(ends: list[End], subnet: IPv4Network, kinds: dict[str, str]) -> None:
    taken: dict[IPv4Address, End] = {}
    for end in ends:
        if end.address is None:
            continue
        if end.address.ip in taken:
            raise SpecError("address", f"{end.address.ip} is that of {taken[end.address.ip].node} "
                            f"and of {end.node}")  # fmt: skip
        taken[end.address.ip] = end
    upwards = _hosts(subnet)
    downwards = _hosts(subnet, last_first=True)
    for end in ends:
        if end.address is None:
            order = downwards if kinds[end.node] == ROUTER else upwards
            ip = next((one for one in order if one not in taken), None)
            if ip is None:
                raise SpecError("address", f"{subnet} has too few addresses for {_names(ends)}")
            taken[ip] = end
            end.address = ipaddress.IPv4Interface((ip, subnet.prefixlen))


def _hosts(subnet: IPv4Network, *, last_first: bool = False) -> Iterator[IPv4Address]:
    """Without those of the subnet itself and of broadcasts, where it has them; lazily."""
    spare = int(subnet.prefixlen < 31)
    numbers = range(spare, subnet.num_addresses - spare)
    return (subnet.network_address + n for n in (reversed(numbers) if last_first else numbers))


def _names(ends: Iterable[End]) -> str:
    return ", ".join(dict.fromkeys(end.node for end in ends))


# -- routes -------------------------------------------------------------------------------------


def _routes(wiring: Wiring, node: str) -> list[Way]:
    """The shortest way to each subnet, by the number of routers; of equal ones the first.

    A host that has but one way out takes it for everything.
    """
    hops: dict[int, Way | None] = {end.segment: None for end in wiring.of[node]}
    seen = {node}
    queue = deque((end.segment, end.name) for end in wiring.of[node])
    while queue:
        segment, out = queue.popleft()
        for neighbour in wiring.members[segment]:
            if neighbour.node in seen or wiring.kinds[neighbour.node] != ROUTER:
                continue
            seen.add(neighbour.node)
            assert neighbour.address is not None
            for end in wiring.of[neighbour.node]:
                if end.segment not in hops:
                    way = hops[segment] or Way(None, neighbour.address.ip, out)
                    hops[end.segment] = way._replace(network=wiring.subnets[end.segment])
                    queue.append((end.segment, out))
    ways = [way for way in hops.values() if way is not None]
    if wiring.kinds[node] == HOST and len({way[1:] for way in ways}) == 1:
        return [ways[0]._replace(network=None)]
    return ways
