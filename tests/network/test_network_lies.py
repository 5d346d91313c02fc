# SPDX-License-Identifier: Apache-2.0
"""Containers that say what is not so: of whom they are, and of where packets should go.

They can be root inside, with CAP_NET_ADMIN and CAP_NET_RAW. Every lie has a twin that is believed.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING

from network.nftkit import NEVER_S, World, checksum, network, pings, reach
from support import poll_until, scaled

from nsbox.netrules import HostPort

if TYPE_CHECKING:
    from network.nftkit import Net

A, A6, B, B6 = "10.77.0.2", "fd77::2", "10.77.0.3", "fd77::3"
GATE, GATE6 = "10.77.0.1", "fd77::1"
HOST, HOST6 = "192.0.2.1", "2001:db8::1"
OUT, OUT6 = "192.0.2.2", "2001:db8::2"


# -- whose it is ------------------------------------------------------------------------------


def _comes(
    source: Net, target: Net, to: tuple[str, int], bound: str, patience_s: float = 5.0
) -> bool:
    """Whether one datagram does: there may be no way back to such a source."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with target.socket(family, socket.SOCK_DGRAM) as server, \
         source.socket(family, socket.SOCK_DGRAM) as client:  # fmt: skip
        server.bind(to)
        server.settimeout(scaled(patience_s))
        client.bind((bound, 0))
        client.sendto(b"lie", to)
        try:
            return server.recvfrom(9)[1][0] in (bound, HOST, HOST6)
        except TimeoutError:
            return False


@network
def test_a_source_that_is_not_of_the_network_gets_nowhere() -> None:
    world = World()
    for lie in ("10.99.0.9/32", "10.78.0.9/32", "fd99::9/128"):
        world.a.ip(f"addr add {lie} dev eth0" + (" nodad" if ":" in lie else ""))
    ways = [("10.99.0.9", OUT, GATE), ("10.78.0.9", OUT, GATE), ("fd99::9", OUT6, GATE6)]
    opened = {"host_ports": [HostPort(53, "udp")]}
    world.apply(**opened)
    for true, outside, gate in ((A, OUT, GATE), (A6, OUT6, GATE6)):
        assert _comes(world.a, world.outside, (outside, 53), true)
        assert _comes(world.a, world.host, (gate, 53), true)
    for lie, outside, gate in ways:
        assert not _comes(world.a, world.outside, (outside, 53), lie, NEVER_S)
        assert not _comes(world.a, world.host, (gate, 53), lie, NEVER_S)
    world.again(without="guard drop", **opened)
    for lie, outside, gate in ways:
        assert _comes(world.a, world.outside, (outside, 53), lie)
        assert _comes(world.a, world.host, (gate, 53), lie)


@network
def test_a_container_that_has_the_gateways_address_gets_nowhere() -> None:
    world = World()
    world.apply()
    world.a.ip(f"addr add {GATE6}/128 dev eth0 nodad",
               f"route replace default via {world.host.link_local('nsb0')} dev eth0")  # fmt: skip
    assert reach(world.a, world.outside, (OUT6, 53), bound=A6) == HOST6
    assert not _comes(world.a, world.outside, (OUT6, 53), GATE6, NEVER_S)
    world.again(without=f"guard ip6 saddr {GATE6} drop")
    assert _comes(world.a, world.outside, (OUT6, 53), GATE6)


@network
def test_nor_does_it_deceive_its_neighbours_where_br_netfilter_is() -> None:
    world = World(bridged_filter=True)
    if not world.host.has_sysctl("bridge/bridge-nf-call-iptables"):
        return
    world.apply()
    world.a.ip(f"addr add {GATE}/32 dev eth0")
    assert _comes(world.a, world.b, (B, 53), A)
    assert not _comes(world.a, world.b, (B, 53), GATE, NEVER_S)
    world.again(without=f"guard ip saddr {GATE} drop")
    assert _comes(world.a, world.b, (B, 53), GATE)


@network
def test_the_addresses_that_ipv6_gives_every_link_are_no_lie() -> None:
    world = World()
    world.apply()
    local = world.a.link_local("eth0")
    with world.host.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6) as asked:
        asked.settimeout(scaled(5))
        asked.connect((local, 0, 0, world.host.index("nsb0")))
        asked.send(bytes((128, 0, 0, 0, 0, 1, 0, 1)))
        assert asked.recv(64)[0] == 129


@network
def test_a_container_learns_that_an_address_is_taken() -> None:
    """It asks from ``::``, before it has one."""
    world = World()
    world.a.sysctl("ipv6/conf/eth0/accept_dad", 1)
    world.apply()
    world.a.ip(f"addr add {GATE6}/64 dev eth0")
    poll_until(lambda: "dadfailed" in world.a.run("ip", "-6", "addr"), 5, what="duplicate")


# -- where packets should go ------------------------------------------------------------------


@network
def test_a_container_does_not_become_the_hosts_router() -> None:
    """By a router advertisement: ICMPv6 is open, this type of it is not."""
    world = World()
    world.host.sysctl("ipv6/conf/nsb0/accept_ra", 2)
    world.apply()
    _advertise(world.a)
    assert pings(world.a, GATE6), "what came before has been seen"
    assert not _has_router(world.host)
    world.again(without="input drop")
    poll_until(lambda: _advertise(world.a) or _has_router(world.host), 5, what="the twin's route")


def _advertise(source: Net) -> None:
    header = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    with source.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.sendto(header, ("ff02::1", 0, 0, source.index("eth0")))


def _has_router(host: Net) -> bool:
    return "default via fe80" in host.run("ip", "-6", "route")


@network
def test_a_container_does_not_redirect_the_host() -> None:
    """An ICMP redirect belongs to a connection of the host: "related", and yet not welcome."""
    world = World()
    world.apply()
    assert _redirected(world) == 0
    assert _redirected6(world) == 0
    world.again(without="redirect drop")
    assert _redirected(world) == 1
    world.clear()
    assert _redirected6(world) == 1


def _redirected(world: World) -> int:
    """How many redirects the host has counted more, after one about an echo request to a."""
    icmp = socket.IPPROTO_ICMP
    with world.a.socket(socket.AF_INET, socket.SOCK_RAW, icmp) as raw, \
         world.host.socket(socket.AF_INET, socket.SOCK_DGRAM, icmp) as asked:  # fmt: skip
        raw.settimeout(scaled(5))
        asked.connect((A, 0))
        asked.send(bytes((8, 0, 0, 0, 0, 0, 0, 1)))
        original = raw.recv(64)
        before = _in_redirects(world.host)
        body = ip_address(B).packed + original[:28]
        raw.sendto(bytes((5, 1)) + checksum(bytes((5, 1, 0, 0)) + body) + body, (GATE, 0))
        assert pings(world.a, GATE), "what came before has been seen"
    return _in_redirects(world.host) - before


def _in_redirects(host: Net) -> int:
    names, values = (line.split()[1:] for line in host.run("cat", "/proc/net/snmp").splitlines()
                     if line.startswith("Icmp:"))  # fmt: skip
    return int(values[names.index("InRedirects")])


def _redirected6(world: World) -> int:
    """The same with IPv6, with all that could make it related: the packet that it is about."""
    icmp = socket.IPPROTO_ICMPV6
    with world.a.socket(socket.AF_INET6, socket.SOCK_RAW, icmp) as raw, \
         world.host.socket(socket.AF_INET6, socket.SOCK_DGRAM, icmp) as asked:  # fmt: skip
        raw.settimeout(scaled(5))
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        asked.connect((A6, 0))
        asked.send(bytes((128, 0, 0, 0, 0, 0, 0, 1)))
        original = raw.recv(64)
        while original[0] != 128:  # neighbours ask, too
            original = raw.recv(64)
        source, target = ip_address(GATE6).packed, ip_address(A6).packed
        whole = struct.pack("!IHBB", 6 << 28, len(original), 58, 64) + source + target + original
        option = bytes((4, 1 + len(whole) // 8)) + bytes(6) + whole
        body = bytes(4) + ip_address(B6).packed + target + option
        before = world.host.counted("Icmp6InRedirects")
        raw.sendto(bytes((137, 0, 0, 0)) + body, (GATE6, 0))
        assert pings(world.a, GATE6), "what came before has been seen"
    return world.host.counted("Icmp6InRedirects") - before
