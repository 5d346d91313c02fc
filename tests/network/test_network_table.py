# SPDX-License-Identifier: Apache-2.0
"""A network's rule set: which packets pass, which do not, and with what addresses.

Every test of something that does not pass has a twin, mostly the same rules without the one that
is meant: there it does.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, ip_address

import pytest
from network.nftkit import NEVER_S, World, apart, checksum, network, never, pings, reach
from support import scaled

from nsbox import nft
from nsbox.netrules import HostPort, Published, published

A, A6, B = "10.77.0.2", "fd77::2", "10.77.0.3"
HOST, HOST6 = "192.0.2.1", "2001:db8::1"  # what the neighbour outside knows it by
OUT, OUT6 = "192.0.2.2", "2001:db8::2"
GATE, GATE6 = "10.77.0.1", "fd77::1"


def port(address: str, port: int, host_port: int, **more: object) -> Published:
    return Published(ip_address(address), port, host_port, **more)  # type: ignore[arg-type]


# -- containers, and the way out --------------------------------------------------------------


def _containers_reach_each_other(bridged_filter: bool) -> None:
    world = World(bridged_filter=bridged_filter)
    world.apply()
    for kind in ("tcp", "udp"):
        assert reach(world.a, world.b, (B, 80), kind=kind) == A
        assert reach(world.a, world.b, ("fd77::3", 80), kind=kind) == A6
    assert pings(world.a, B)
    assert pings(world.a, "fd77::3")


@network
def test_containers_of_one_network_reach_each_other() -> None:
    _containers_reach_each_other(False)


@network
def test_containers_reach_each_other_where_br_netfilter_shows_bridged_packets() -> None:
    _containers_reach_each_other(True)


@network
def test_what_leaves_has_the_address_of_the_host() -> None:
    world = World()
    world.apply()
    for kind in ("tcp", "udp"):
        assert reach(world.a, world.outside, (OUT, 80), kind=kind) == HOST
        assert reach(world.a, world.outside, (OUT6, 80), kind=kind) == HOST6
    assert pings(world.a, OUT)
    assert pings(world.a, OUT6)


@network
def test_without_nat_what_leaves_has_its_own_address() -> None:
    world = World()
    world.apply(nat=False)
    assert reach(world.a, world.outside, (OUT, 80)) == A
    assert reach(world.a, world.outside, (OUT6, 80)) == A6


@network
def test_the_hosts_own_connections_to_itself_are_not_masqueraded() -> None:
    world = World()
    world.apply()
    assert reach(world.host, world.host, (GATE, 80), bound=GATE) == GATE


@network
def test_what_conntrack_does_not_know_leaves_no_address_of_the_network() -> None:
    """The masquerade is conntrack's: such a packet would go out as it is."""
    world = World()
    world.apply()
    assert _nonsense(world, NEVER_S) is None
    world.again(without="ct state invalid")
    assert _nonsense(world, 5) == A


def _nonsense(world: World, patience_s: float) -> str | None:
    """The source of a TCP packet with SYN and FIN, as it comes outside."""
    tcp = socket.IPPROTO_TCP
    with world.outside.socket(socket.AF_INET, socket.SOCK_RAW, tcp) as seen, \
         world.a.socket(socket.AF_INET, socket.SOCK_RAW, tcp) as sent:  # fmt: skip
        seen.settimeout(scaled(patience_s))
        header = struct.pack("!HHIIBBHHH", 9, 9, 1, 0, 5 << 4, 0x03, 1024, 0, 0)
        pseudo = ip_address(A).packed + ip_address(OUT).packed + struct.pack("!HH", tcp, 20)
        sent.sendto(header[:16] + checksum(pseudo + header) + header[18:], (OUT, 0))
        try:
            return str(seen.recvfrom(99)[1][0])
        except TimeoutError:
            return None


@network
def test_no_credentials_of_the_cloud_are_reached_but_its_name_server_is() -> None:
    world = World()
    world.outside.ip(
        "addr add 169.254.169.254/32 dev lo", "addr add fd00:ec2::254/128 dev lo nodad"
    )
    world.host.ip(f"route add 169.254.169.254/32 via {OUT}", f"route add fd00:ec2::254 via {OUT6}")
    world.apply()
    metadata, metadata6 = ("169.254.169.254", 80), ("fd00:ec2::254", 80)
    assert reach(world.host, world.outside, metadata) == HOST, "the host itself may"
    assert never(world.a, world.outside, metadata)
    assert never(world.a, world.outside, metadata6)
    for kind in ("tcp", "udp"):
        assert reach(world.a, world.outside, ("169.254.169.254", 53), kind=kind) == HOST
    world.again(without="169.254.0.0/16 drop")
    assert reach(world.a, world.outside, metadata) == HOST
    world.again(without="fd00:ec2::254 drop")
    assert reach(world.a, world.outside, metadata6) == HOST6


# -- from outside -----------------------------------------------------------------------------


@network
def test_nobody_outside_opens_a_connection_into_the_network() -> None:
    world = World()
    world.apply()
    for kind in ("tcp", "udp"):
        assert never(world.outside, world.a, (A, 80), kind=kind)
        assert never(world.outside, world.a, (A6, 80), kind=kind)
    assert not pings(world.outside, A, patience_s=NEVER_S)
    world.again(isolated=False)
    for kind in ("tcp", "udp"):
        assert reach(world.outside, world.a, (A, 80), kind=kind) == OUT
        assert reach(world.outside, world.a, (A6, 80), kind=kind) == OUT6
    assert pings(world.outside, A)


@network
def test_two_networks_do_not_reach_each_other() -> None:
    world = World()
    other = world.second_network()
    world.apply(publish=[port(A, 80, 8080)])
    assert never(other, world.a, (A, 80))
    assert never(other, world.a, (A6, 80))
    assert never(world.a, other, ("10.78.0.2", 80))
    assert never(world.a, other, ("fd78::2", 80))
    assert reach(other, world.a, (HOST, 8080), (A, 80)) == "10.77.0.1", "as anybody does"
    world.again(isolated=False)
    assert reach(other, world.a, (A, 80)) == "10.77.0.1"
    assert reach(other, world.a, (A6, 80)) == "fd77::1"
    assert never(world.a, other, ("10.78.0.2", 80)), "that is for the other one to say"


@network
def test_the_host_reaches_its_containers() -> None:
    world = World()
    world.apply()
    for kind in ("tcp", "udp"):
        assert reach(world.host, world.a, (A, 80), kind=kind) == GATE
        assert reach(world.host, world.a, (A6, 80), kind=kind) == GATE6
    assert pings(world.host, A)
    assert pings(world.host, A6)


# -- published ports --------------------------------------------------------------------------

BOTH = [port(A, 80, 8080), port(A, 53, 5353, protocol="udp"),
        port(A6, 80, 8080), port(A6, 53, 5353, protocol="udp")]  # fmt: skip


@network
def test_a_published_port_is_reached_by_every_address_of_the_host() -> None:
    world = World()
    world.apply(publish=BOTH)
    for kind, near, far in (("tcp", 80, 8080), ("udp", 53, 5353)):
        assert reach(world.outside, world.a, (HOST, far), (A, near), kind=kind) == OUT
        assert reach(world.outside, world.a, (HOST6, far), (A6, near), kind=kind) == OUT6
        assert reach(world.outside, world.a, (GATE, far), (A, near), kind=kind) == OUT
        assert reach(world.host, world.a, (HOST, far), (A, near), kind=kind) == HOST
        assert reach(world.host, world.a, (HOST6, far), (A6, near), kind=kind) == HOST6
        assert reach(world.host, world.a, ("127.0.0.1", far), (A, near), kind=kind) == GATE
        assert reach(world.host, world.a, ("127.1.2.3", far), (A, near), kind=kind) == GATE
    with pytest.raises(ConnectionRefusedError):  # by the host: that port is for udp
        reach(world.outside, world.a, (HOST, 5353), (A, 53))


@network
def test_localhost_by_ipv6_is_refused_so_that_programs_try_the_other() -> None:
    world = World()
    world.apply(publish=BOTH)
    with pytest.raises(ConnectionRefusedError):
        reach(world.host, world.a, ("::1", 8080), (A6, 80))
    world.again(publish=BOTH, without="::1 return")
    assert never(world.host, world.a, ("::1", 8080), (A6, 80)), "the kernel takes no answer"


@network
def test_a_range_of_ports_is_published_one_by_one() -> None:
    world = World()
    world.apply(publish=[port(A, 7000, 9000, count=1100), port(A6, 1, 65435, count=101)])
    for near, far in ((7000, 9000), (7001, 9001), (8099, 10099)):
        assert reach(world.outside, world.a, (HOST, far), (A, near)) == OUT
    for near, far in ((1, 65435), (101, 65535)):
        assert reach(world.outside, world.a, (HOST6, far), (A6, near)) == OUT6
    for beyond in (8999, 10100):
        with pytest.raises(ConnectionRefusedError):
            reach(world.outside, world.a, (HOST, beyond), (A, 7000))


@network
def test_a_port_published_at_one_address_is_not_at_another() -> None:
    world = World()
    world.host.ip("addr add 192.0.2.9/24 dev out0", "addr add 2001:db8::9/64 dev out0 nodad")
    at = {"host": ip_address("192.0.2.9")}
    world.apply(publish=[port(A, 80, 8080, **at), port(B, 80, 8080),
                         port(A6, 80, 8080, host=ip_address("2001:db8::9"))])  # fmt: skip
    assert reach(world.outside, world.a, ("192.0.2.9", 8080), (A, 80)) == OUT
    assert reach(world.outside, world.a, ("2001:db8::9", 8080), (A6, 80)) == OUT6
    assert reach(world.host, world.a, ("192.0.2.9", 8080), (A, 80))
    assert reach(world.host, world.a, ("2001:db8::9", 8080), (A6, 80))
    assert reach(world.outside, world.b, (HOST, 8080), (B, 80)) == OUT, "the others are b's"
    with pytest.raises(ConnectionRefusedError):
        reach(world.outside, world.a, (HOST6, 8080), (A6, 80))


@network
def test_what_is_published_on_localhost_only_is_not_had_by_a_neighbour() -> None:
    """dnat comes before routing, which drops packets to 127.0.0.1 that come from outside."""
    world = World()
    lo = {"host": IPv4Address("127.0.0.1")}
    world.apply(publish=[port(A, 80, 8080, **lo)])
    world.outside.ip("addr del 127.0.0.1/8 dev lo", f"route add 127.0.0.1 via {HOST} src {OUT}")
    world.outside.sysctl("ipv4/conf/all/route_localnet", 1)
    attack = (world.outside, world.a, ("127.0.0.1", 8080), (A, 80))
    assert never(*attack, kind="udp")
    assert never(*attack)
    assert reach(world.host, world.a, ("127.0.0.1", 8080), (A, 80)) == GATE
    world.again(publish=[port(A, 80, 8080, **lo)], without="127.0.0.0/8 return")
    assert reach(*attack) == OUT


@network
def test_ports_come_and_go_while_the_network_lives() -> None:
    world = World()
    world.apply(publish=[port(A, 80, 8080)])
    theirs = port(B, 80, 8081, count=3)

    def change(entry: Published, *, delete: bool = False) -> None:
        nft.transact(world.nft, published("nsbt", entry, delete=delete))

    change(theirs)
    assert reach(world.outside, world.b, (HOST, 8083), (B, 82)) == OUT
    with pytest.raises(FileExistsError, match=r"tcp \. 8079-8083 : 10\.77\.0\.2 \. 1-5"):
        change(port(A, 1, 8079, count=5))
    with pytest.raises(ConnectionRefusedError):
        reach(world.outside, world.a, (HOST, 8079), (A, 1))
    change(theirs, delete=True)
    with pytest.raises(ConnectionRefusedError):
        reach(world.outside, world.b, (HOST, 8083), (B, 82))
    assert reach(world.outside, world.a, (HOST, 8080), (A, 80)) == OUT, "the other one is there"
    with pytest.raises(FileNotFoundError):
        change(theirs, delete=True)


def _back_into_the_network(bridged_filter: bool) -> None:
    world = World(bridged_filter=bridged_filter)
    world.apply(publish=BOTH)
    for kind, near, far in (("tcp", 80, 8080), ("udp", 53, 5353)):
        for to in (HOST, GATE):
            assert reach(world.b, world.a, (to, far), (A, near), kind=kind)
        for to in (HOST6, GATE6):
            assert reach(world.b, world.a, (to, far), (A6, near), kind=kind)
        assert reach(world.a, world.a, (HOST, far), (A, near), kind=kind) == GATE
        assert reach(world.a, world.a, (HOST6, far), (A6, near), kind=kind) == GATE6


@network
def test_a_container_reaches_one_of_its_network_by_a_published_port() -> None:
    _back_into_the_network(False)


@network
def test_a_container_reaches_one_of_its_network_by_a_published_port_with_br_netfilter() -> None:
    _back_into_the_network(True)


@network
def test_the_answer_of_a_published_port_comes_back_by_the_host() -> None:
    """By itself it would go straight to the one who asked, who knows nothing of that address."""
    world = World()
    world.apply(publish=BOTH, without="10.77.0.0/24 oifname")
    assert never(world.b, world.a, (HOST, 8080), (A, 80))
    world.again(publish=BOTH)
    assert reach(world.b, world.a, (HOST, 8080), (A, 80)) == GATE


# -- to the host ------------------------------------------------------------------------------


@network
def test_no_service_of_the_host_is_reached() -> None:
    world = World()
    world.apply()
    for kind in ("tcp", "udp"):
        for to in (GATE, HOST, GATE6, HOST6):
            assert never(world.a, world.host, (to, 22), kind=kind), to
    assert pings(world.a, GATE)
    assert pings(world.a, GATE6)
    world.again(without="input drop")
    for to, source in ((GATE, A), (HOST, A), (GATE6, A6), (HOST6, A6)):
        assert reach(world.a, world.host, (to, 22)) == source


@network
def test_a_port_of_the_host_is_reached_at_the_gateway_if_asked() -> None:
    world = World()
    world.apply(host_ports=[HostPort(22), HostPort(53, "udp")])
    for to, source in ((GATE, A), (GATE6, A6)):
        assert reach(world.a, world.host, (to, 22)) == source
        assert reach(world.a, world.host, (to, 53), kind="udp") == source
        assert never(world.a, world.host, (to, 53))
        assert never(world.a, world.host, (to, 23))
    assert never(world.a, world.host, (HOST, 22)), "another address"
    with pytest.raises(ConnectionRefusedError):
        reach(world.outside, world.host, (HOST, 22), (GATE, 22))


@network
def test_localhost_of_the_host_is_not_reached_though_the_bridge_routes_it() -> None:
    """route_localnet, which published ports need, opens 127.0.0.1 to the bridge."""
    world = World()
    world.a.ip("addr del 127.0.0.1/8 dev lo", f"route add 127.0.0.1 via {GATE} src {A}")
    world.a.sysctl("ipv4/conf/all/route_localnet", 1)
    world.apply(without="input drop")
    assert never(world.a, world.host, ("127.0.0.1", 22))
    world.clear()
    assert reach(world.a, world.host, ("127.0.0.1", 22)) == A


# -- without privileges -----------------------------------------------------------------------


@pytest.mark.userns
@pytest.mark.kernel("user")
@pytest.mark.parametrize(
    "test",
    [test_what_leaves_has_the_address_of_the_host,
     test_a_published_port_is_reached_by_every_address_of_the_host,
     test_no_service_of_the_host_is_reached],
    ids=lambda test: test.__name__.removeprefix("test_"),
)  # fmt: skip
def test_in_a_user_namespace(test: object) -> None:
    apart(test, user=True)  # type: ignore[arg-type]
