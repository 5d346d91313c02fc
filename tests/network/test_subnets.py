# SPDX-License-Identifier: Apache-2.0
"""Subnets: no two networks have some that overlap, nor does one overlap what the host uses."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of kit.PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import ipaddress
import os

import pytest
from network.kit import apart

from nsbox import registry, routes, shared, subnets
from nsbox.errors import StateError, Unavailable
from nsbox.netspec import Subnet, parse_subnet


def net(text: str) -> Subnet:
    return parse_subnet(text, "subnet", 6 if ":" in text else 4)


def nothing() -> list[routes.Taken]:
    return []


def files() -> list[str]:
    return [n for n in os.listdir(registry.directory()) if n.startswith(shared.PREFIX)]


def test_free_ones_are_private_and_each_one_s_own() -> None:
    claims = [subnets.free_subnet(nothing) for _ in range(300)]
    try:
        every = [claim.subnet for claim in claims]
        assert len(set(every)) == 300
        assert all(one.prefixlen == 24 for one in every)
        assert all(any(one.subnet_of(p) for p in subnets.PRIVATE) for one in every)  # type: ignore[arg-type]
    finally:
        for claim in claims:
            claim.close()
    assert files() == []


def test_the_last_ones_are_found_too() -> None:
    """All but one /24 are used by others."""
    only = ipaddress.ip_network("192.168.77.0/24")
    used = [
        routes.Taken(4, int(part.network_address), int(part.broadcast_address), "", "")
        for private in subnets.PRIVATE
        for part in (private.address_exclude(only) if only.subnet_of(private) else [private])
    ]
    with subnets.free_subnet(lambda: used) as claim:
        assert claim.subnet == only
        with pytest.raises(Unavailable, match=r"no /24 of .* is free"):
            subnets.free_subnet(lambda: used)
    assert files() == []


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        pytest.param("10.77.0.0/24", "10.77.0.0/24", True, id="the same"),
        pytest.param("10.77.0.0/16", "10.77.3.0/24", True, id="inside"),
        pytest.param("10.77.3.0/30", "10.77.0.0/16", True, id="around"),
        pytest.param("10.77.0.0/24", "10.77.1.0/24", False, id="beside"),
        pytest.param("10.77.0.4/30", "10.77.0.0/30", False, id="beside, small"),
        pytest.param("223.255.0.0/16", "223.254.0.0/16", False, id="the highest"),
        pytest.param("fd00:77::/64", "fd00:77::/64", True, id="the same IPv6"),
        pytest.param("fd00:77::/64", "fd00:77:0:1::/64", False, id="beside, IPv6"),
        pytest.param("fd00:77::/64", "fd00:77::1:0/112", True, id="inside, IPv6"),
        pytest.param("ff00::/64", "fd00::/64", False, id="the highest IPv6"),
        pytest.param("10.77.0.0/24", "fd00:77::/64", False, id="of two versions"),
    ],
)
def test_two_claims_overlap_or_not(one: str, other: str, meet: bool) -> None:
    first = ipaddress.ip_network(one)
    with subnets.claim_subnet(first, nothing):
        if not meet:
            with subnets.claim_subnet(net(other), nothing) as claim:
                assert claim.subnet == net(other)
        else:
            with pytest.raises(Unavailable) as caught:
                subnets.claim_subnet(net(other), nothing)
            what = one if ":" not in one else "the same /64"
            assert f"{other} overlaps {what}, a network of process {os.getpid()}" in str(
                caught.value
            )
            assert caught.value.feature == "subnet"
    with subnets.claim_subnet(net(other), nothing):
        pass
    assert files() == []


def test_a_closed_claim_is_nobody_s() -> None:
    claim = subnets.claim_subnet(net("10.77.0.0/24"), nothing)
    claim.close()
    claim.close()
    with pytest.raises(StateError):
        claim.attempt(net("10.78.0.0/24"))
    assert "10.77.0.0/24 closed" in repr(claim)


def test_what_the_host_uses_is_not_free_and_is_named() -> None:
    """Of the machine's own network, which is only looked at."""
    for taken in routes.taken():
        size = taken.last - taken.first + 1
        if taken.version == 4 and taken.first >> 24 not in (0, 127) and size <= 65536:
            address = ipaddress.ip_address(taken.first)
            around = ipaddress.ip_network(f"{address}/{33 - max(4, size).bit_length()}", False)
            with pytest.raises(Unavailable, match=r"overlaps the (route|address)"):
                subnets.claim_subnet(around)
    assert files() == []


@apart
def test_routes_of_every_table_and_addresses_are_in_the_way() -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "nsbx", "type", "veth", "peer", "name", "peer")
    ip("link", "set", "nsbx", "up")
    ip("link", "set", "peer", "up")
    ip("address", "add", "10.88.3.1/24", "dev", "nsbx")
    ip("address", "add", "10.99.1.1/32", "dev", "peer")
    ip("route", "add", "10.100.0.0/16", "dev", "peer")
    ip("route", "add", "10.101.0.0/16", "dev", "nsbx", "table", "100")
    ip("route", "add", "blackhole", "10.102.0.0/16")
    ip("route", "add", "0.0.0.0/1", "dev", "nsbx")
    ip("route", "add", "default", "via", "10.88.3.2")
    ip("-6", "address", "add", "fd00:88::1/64", "dev", "nsbx")
    for text, what in (
        ("10.88.0.0/16", "the route to 10.88.3.0/24 by nsbx. Fix: nsbox gc"),
        ("10.88.3.0/30", "the route to 10.88.3.0/24 by nsbx. Fix: nsbox gc"),
        ("10.99.1.0/24", "the address 10.99.1.1"),
        ("10.100.77.0/24", "the route to 10.100.0.0/16 by peer"),
        ("10.101.77.0/24", "the route to 10.101.0.0/16"),
        ("10.102.0.0/24", "the route to 10.102.0.0/16"),
        ("fd00:88::/112", "the route to fd00:88::/64 by nsbx. Fix: nsbox gc"),
    ):
        with pytest.raises(nsbox.Unavailable) as caught:
            subnets.claim_subnet(subnet(text))
        assert f"{text} overlaps {what}" in str(caught.value)
        assert ("Fix" in str(caught.value)) == ("nsbx" in what)
    for text in ("10.77.0.0/24", "10.88.4.0/24", "10.103.0.0/16", "fd00:88:0:1::/64"):
        subnets.claim_subnet(subnet(text)).close()
    claims = [subnets.free_subnet() for _ in range(20)]
    used = routes.taken()
    assert not [c.subnet for c in claims if any(t.overlaps(c.subnet) for t in used)]
    for claim in claims:
        claim.close()
    assert left() == []


@apart
def test_another_process_has_its_subnet_until_it_is_killed() -> None:
    code = """
claim = subnets.claim_subnet(netspec.parse_subnet("10.77.0.0/16", "subnet", 4))
print(flush=True)
time.sleep(1000)
"""
    with other(code) as process:
        process.stdout.readline()
        with pytest.raises(nsbox.Unavailable) as caught:
            subnets.claim_subnet(subnet("10.77.9.0/24"))
        assert f"10.77.0.0/16, a network of process {process.pid}" in str(caught.value)
        assert nsbox.gc() == []
        process.kill()
        process.wait()
        subnets.claim_subnet(subnet("10.77.9.0/24")).close()
    assert left() == []


@apart
def test_processes_never_claim_the_same() -> None:
    code = """
held = [subnets.free_subnet() for _ in range(200)]
print(*[claim.subnet for claim in held], flush=True)
sys.stdin.readline()
"""
    with contextlib.ExitStack() as stack:
        each = [stack.enter_context(other(code)) for _ in range(4)]
        every = [line for process in each for line in process.stdout.readline().split()]
        assert len(every) == len(set(every)) == 800
        for process in each:
            process.kill()
            process.wait()
    assert len(nsbox.gc()) == 1
    assert left() == []


@apart
def test_other_network_namespaces_may_have_the_same() -> None:
    with subnets.claim_subnet(subnet("10.77.0.0/24")):
        sc.unshare(Clone.NEWNET)
        with subnets.claim_subnet(subnet("10.77.0.0/24")):
            assert len(left()) == 2
    assert left() == []


@apart
def test_a_forked_child_does_not_keep_it() -> None:
    code = """
claim = subnets.claim_subnet(netspec.parse_subnet("10.77.0.0/24", "subnet", 4))
if os.fork() == 0:
    claim.close()
    print(os.getpid(), flush=True)
    time.sleep(1000)
os.wait()
"""
    with other(code) as process, child(process):
        with pytest.raises(nsbox.Unavailable):
            subnets.claim_subnet(subnet("10.77.0.0/24"))
        process.kill()
        process.wait()
        subnets.claim_subnet(subnet("10.77.0.0/24")).close()
