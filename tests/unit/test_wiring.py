# SPDX-License-Identifier: Apache-2.0
"""Addresses and routes of a network of nodes: what is chosen, what is refused, and that it leads
everywhere."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox.errors import SpecError
from nsbox.wiring import HOST, ROUTER, SWITCH, Cable, Wiring, wire

if TYPE_CHECKING:
    from ipaddress import IPv4Interface

pytestmark = pytest.mark.leaks_ok("pure")

NETWORK = ipaddress.IPv4Network("10.0.0.0/16")
KINDS = {"h": HOST, "r": ROUTER, "s": SWITCH}


def _wire(*links: str, network: str = "10.0.0.0/16") -> Wiring:
    """Of ``"h1 s1"``; a node's kind is its first letter."""
    cables = [Cable(*link.split()) for link in links]
    names = dict.fromkeys(name for cable in cables for name in cable[:2])
    return wire({name: KINDS[name[0]] for name in names}, cables, ipaddress.IPv4Network(network))


def _ip(text: str) -> IPv4Interface:
    return ipaddress.IPv4Interface(text)


def _addresses(wiring: Wiring) -> dict[str, list[str]]:
    return {name: list(map(str, wiring.addresses(name))) for name in wiring.kinds}


def _routes(wiring: Wiring, name: str) -> list[str]:
    return [f"{way.network or 'default'} via {way.gateway} {way.interface}"
            for way in wiring.routes[name]]  # fmt: skip


# -- addresses ------------------------------------------------------------------------------------


def test_hosts_of_a_switch_are_numbered_from_one() -> None:
    wiring = _wire("h1 s1", "s1 h2", "h3 s1")
    assert _addresses(wiring) == {
        "h1": ["10.0.0.1/24"], "s1": [], "h2": ["10.0.0.2/24"], "h3": ["10.0.0.3/24"],
    }  # fmt: skip
    assert [(a.name, b.name) for a, b in wiring.ends] == [
        ("eth0", "s1-eth1"), ("s1-eth2", "eth0"), ("eth0", "s1-eth3"),
    ]  # fmt: skip


def test_switches_that_are_joined_are_one_subnet_and_a_cable_is_its_own() -> None:
    wiring = _wire("h1 s1", "h2 s2", "s1 s2", "h2 h3")
    assert _addresses(wiring)["h2"] == ["10.0.0.2/24", "10.0.1.1/24"]
    assert list(map(str, wiring.subnets.values())) == ["10.0.0.0/24", "10.0.1.0/24"]


def test_routers_have_the_last_addresses() -> None:
    wiring = _wire("r1 s1", "r2 s1", "h1 s1", "r1 r2")
    assert _addresses(wiring) == {
        "r1": ["10.0.0.254/24", "10.0.1.254/24"], "s1": [],
        "r2": ["10.0.0.253/24", "10.0.1.253/24"], "h1": ["10.0.0.1/24"],
    }  # fmt: skip


def test_a_subnet_is_as_large_as_it_must_be() -> None:
    wiring = _wire(*(f"h{i} s1" for i in range(300)), "h0 h1")
    assert list(map(str, wiring.subnets.values())) == ["10.0.0.0/23", "10.0.2.0/24"]
    small = _wire("h1 h2", network="192.168.7.8/30")
    assert _addresses(small) == {"h1": ["192.168.7.9/30"], "h2": ["192.168.7.10/30"]}


def test_what_is_given_comes_first_and_is_kept_clear_of() -> None:
    kinds = {"h1": HOST, "h2": HOST, "h3": HOST, "s1": SWITCH}
    cables = [Cable("h1", "s1"), Cable("h2", "s1", _ip("10.0.0.1/25")), Cable("h2", "h3")]
    wiring = wire(kinds, cables, NETWORK)
    assert _addresses(wiring) == {
        "h1": ["10.0.0.2/25"], "h2": ["10.0.0.1/25", "10.0.1.1/24"], "h3": ["10.0.1.2/24"],
        "s1": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cables", "network", "field", "said"),
    [
        ([Cable("s1", "s2"), Cable("s2", "s3"), Cable("s3", "s1")], "10.0.0.0/16", "links[2]",
         "goes round for ever"),
        ([Cable("s1", "s2"), Cable("s1", "s2")], "10.0.0.0/16", "links[1]", "joined already"),
        ([Cable("h1", "h2", _ip("10.1.0.1/24"), _ip("10.2.0.1/24"))], "10.0.0.0/16", "address",
         "h1, h2 are in one subnet"),
        ([Cable("h1", "h2", _ip("10.1.0.1/24"), _ip("10.1.0.1/24"))], "10.0.0.0/16", "address",
         "10.1.0.1 is that of h1 and of h2"),
        ([Cable("h1", "h2", _ip("10.1.0.1/24")), Cable("h2", "h3", _ip("10.1.0.9/16"))],
         "10.0.0.0/16", "address", "overlaps"),
        ([Cable("h1", "h2", _ip("10.1.0.1/32"))], "10.0.0.0/16", "address", "too few"),
        ([Cable("h1", "h2"), Cable("h2", "h3")], "10.0.0.0/24", "network", "no room"),
        ([Cable(f"h{i}", "s1") for i in range(3)], "10.0.0.0/30", "network", "no room"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(
    cables: list[Cable], network: str, field: str, said: str
) -> None:
    kinds = {name: KINDS[name[0]] for cable in cables for name in cable[:2]}
    with pytest.raises(SpecError, match=said) as caught:
        wire(kinds, cables, ipaddress.IPv4Network(network))
    assert caught.value.field == field


# -- routes ---------------------------------------------------------------------------------------


def test_a_host_with_one_way_out_has_a_default_route() -> None:
    wiring = _wire("h1 s1", "s1 r1", "r1 r2", "r2 h2", "r2 h3")
    assert _routes(wiring, "h1") == ["default via 10.0.0.254 eth0"]
    assert _routes(wiring, "r1") == ["10.0.2.0/24 via 10.0.1.253 eth1",
                                     "10.0.3.0/24 via 10.0.1.253 eth1"]  # fmt: skip
    assert _routes(wiring, "r2") == ["10.0.0.0/24 via 10.0.1.254 eth0"]


def test_a_host_with_two_has_a_route_to_each() -> None:
    wiring = _wire("h1 r1", "h1 r2", "r1 h2", "r2 h3")
    assert _routes(wiring, "h1") == ["10.0.2.0/24 via 10.0.0.254 eth0",
                                     "10.0.3.0/24 via 10.0.1.254 eth1"]  # fmt: skip


def test_of_two_ways_the_shorter_is_taken() -> None:
    wiring = _wire("h1 r1", "r1 r2", "r2 r3", "r1 r3", "r3 h2")
    assert "10.0.4.0/24 via 10.0.3.253 eth2" in _routes(wiring, "r1")


def test_hosts_lead_nowhere() -> None:
    wiring = _wire("h1 h2", "h2 h3", "h1 s1")
    assert [_routes(wiring, name) for name in ("h1", "h2", "h3")] == [[], [], []]


def test_the_names_of_others_are_their_nearest_addresses() -> None:
    wiring = _wire("h1 h2", "h2 h3")
    assert "10.0.1.1 h2\n" in wiring.hosts_file("h3")
    assert "10.0.0.2 h2\n" in wiring.hosts_file("h1")
    assert wiring.hosts_file("h1").startswith("127.0.0.1 localhost\n")
    assert wiring.address_of("h3", seen_from="h1") == ipaddress.ip_address("10.0.1.2")


@st.composite
def _networks(draw: st.DrawFn) -> list[str]:
    """Nodes in a tree, of which some routers and hosts have links more."""
    count = draw(st.integers(2, 12))
    names = [f"{draw(st.sampled_from('hrs'))}{i}" for i in range(count)]
    links = [f"{names[draw(st.integers(0, i - 1))]} {names[i]}" for i in range(1, count)]
    others = [name for name in names if not name.startswith("s")]
    for _ in range(draw(st.integers(0, 4))):
        if len(others) > 1:
            a, b = draw(st.permutations(others))[:2]
            links.append(f"{a} {b}")
    return links


def _follow(wiring: Wiring, start: str, target: str) -> str:
    """Where a packet to the address *target* gets, by the routes of each node on its way."""
    address = ipaddress.ip_address(target)
    node = start
    for _ in range(len(wiring.kinds) + 1):
        ends = [end for end in wiring.of[node] if end.address]
        if any(end.address and end.address.ip == address for end in ends):
            return node
        near = [end for end in ends if end.address and address in end.address.network]
        hop = address
        if not near:
            ways = [way for way in wiring.routes[node]
                    if way.network is None or address in way.network]  # fmt: skip
            if not ways:
                return f"no way at {node}"
            hop = ways[0].gateway
            near = [end for end in ends if end.name == ways[0].interface]
        node = next(end.node for end in wiring.members[near[0].segment]
                    if end.address and end.address.ip == hop)  # fmt: skip
    return "round and round"


def _connected(wiring: Wiring, start: str) -> set[str]:
    """Nodes that can be reached when only routers pass on."""
    seen, todo = {start}, [start]
    while todo:
        node = todo.pop()
        if node != start and wiring.kinds[node] != ROUTER:
            continue
        for end in wiring.of[node]:
            for other in wiring.members[end.segment]:
                if other.node not in seen:
                    seen.add(other.node)
                    todo.append(other.node)
    return seen


@given(_networks())
def test_routes_lead_wherever_routers_do(links: list[str]) -> None:
    wiring = _wire(*links)
    for start in wiring.kinds:
        if wiring.kinds[start] == SWITCH:
            continue
        reached = _connected(wiring, start)
        for node in wiring.kinds:
            for address in wiring.addresses(node):
                if node in reached and wiring.kinds[node] != HOST:
                    assert _follow(wiring, start, str(address.ip)) == node
            nearest = wiring.address_of(node, seen_from=start)
            if node in reached and nearest is not None and len(wiring.of[node]) == 1:
                assert _follow(wiring, start, str(nearest)) == node


@given(_networks())
def test_no_two_ends_have_one_address_and_each_is_in_its_subnet(links: list[str]) -> None:
    wiring = _wire(*links)
    found = [address.ip for name in wiring.kinds for address in wiring.addresses(name)]
    assert len(set(found)) == len(found)
    for segment, ends in wiring.members.items():
        subnet = wiring.subnets[segment]
        for end in ends:
            assert end.address is not None
            assert end.address.network == subnet
            assert end.address.ip not in (subnet.network_address, subnet.broadcast_address)
    assert len(set(wiring.subnets.values())) == len(wiring.subnets)
