# SPDX-License-Identifier: Apache-2.0
"""What a network does not open: services of the host, other networks, other people's addresses.

Each attempt that must not succeed has a twin: what is asked for is there, and answers others.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from network.world import (
    GATEWAY,
    GATEWAY6,
    HOST,
    HOST6,
    NEVER_S,
    OUTSIDE,
    SUBNET,
    SUBNET6,
    Net,
    answered,
    asks,
    elsewhere,
    idle,
    never,
    output,
    pings,
    raises,
    server,
    world,
)
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

METADATA, METADATA6 = "169.254.169.254", "fd00:ec2::254"


@contextlib.contextmanager
def services() -> Iterator[None]:
    """On the host: for all at 1080, for itself at 1081; both versions and protocols."""
    with contextlib.ExitStack() as running:
        for kind in ("tcp", "udp"):
            for port, address in (
                (1080, "0.0.0.0"),
                (1080, "::"),
                (1081, "127.0.0.1"),
                (1081, "::1"),
            ):
                running.enter_context(world.host.serves(port, kind, address=address))
        yield


def inside(container: nsbox.Container) -> Net:
    """Its network, for a test that has there what no payload has: every right."""
    return Net(os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))


@elsewhere
def test_the_host_is_closed_to_its_containers() -> None:
    with (
        services(),
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        idle("a", net) as a,
        idle("none", "none") as none,
    ):
        link_local = world.host.run(
            "ip", "-6", "-o", "addr", "show", "dev", "nsb0", "scope", "link"
        )
        fe80 = f"{link_local.split()[3].partition('/')[0]}%eth0"
        for own in ("127.0.0.1", HOST, GATEWAY, HOST6, GATEWAY6):
            assert world.host.asks(own, 1080).startswith("it "), own
        assert world.outside.asks(HOST, 1080) == f"it {OUTSIDE}"
        everything = [
            (kind, own, port)
            for own in (HOST, GATEWAY, HOST6, GATEWAY6, fe80)
            for kind in ("tcp", "udp")
            for port in (1080, 1081)
        ]
        assert answered(a, everything, NEVER_S) == []
        for own in (HOST, GATEWAY, HOST6, GATEWAY6):
            assert asks(none, own, 1080) == "ENETUNREACH"
        for own in ("127.0.0.1", "::1"):
            for box in (a, none):
                assert asks(box, own, 1080) == asks(box, own, 1081) == "ECONNREFUSED"
        assert pings(a, GATEWAY)  # that, and no more
        assert world.outside.asks(HOST, 1080) == f"it {OUTSIDE}"  # whom it has nothing to do with


@elsewhere
def test_host_ports_opens_one_at_the_gateway() -> None:
    ports = [1080, "1080/udp"]
    with (
        services(),
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6, host_ports=ports) as net,
        idle("a", net) as a,
    ):
        for kind in ("tcp", "udp"):
            assert asks(a, GATEWAY, 1080, kind) == f"it {a.ip}"
            assert asks(a, GATEWAY6, 1080, kind) == f"it {a.ip6}"
        closed = [
            (kind, *where)
            for kind in ("tcp", "udp")
            for where in ((HOST, 1080), (HOST6, 1080), (GATEWAY, 1081), (GATEWAY6, 1081))
        ]
        assert answered(a, closed, NEVER_S) == []
        with nsbox.Network("nsb1", host_ports=[1082]) as other, idle("b", other) as b:
            asked = [("tcp", GATEWAY, 1080), ("tcp", other.gateway, 1080)]
            assert answered(b, asked, NEVER_S) == []
    for wrong, text in (
        (["http"], "host_ports[0]: 'http'"),
        ([70000], "host_ports: 70000: ports are 1 to 65535"),
        ([True], "host_ports[0]: True"),
        ("8080", "host_ports: must be a list, such as ['8080']"),
        (8080, "host_ports: must be a list, such as [8080]"),
    ):
        with raises(nsbox.SpecError) as said:
            nsbox.Network(host_ports=wrong)
        assert said[0].startswith(text), said


@elsewhere
def test_a_container_with_rights_over_its_network_does_not_get_to_127_0_0_1_of_the_host() -> None:
    with services(), nsbox.Network("nsb0", subnet=SUBNET) as net, idle("a", net) as a:
        its = inside(a)
        its.ip("addr del 127.0.0.1/8 dev lo", f"route add 127.0.0.0/8 via {GATEWAY}")
        its.setting("ipv4/conf/eth0/route_localnet", 1)
        for port in (1080, 1081):
            assert its.asks("127.0.0.1", port, patience_s=NEVER_S) == "silence"
        os.close(its.fd)


@elsewhere
def test_metadata_of_clouds_and_other_link_local_addresses_are_not_passed_on() -> None:
    world.outside.ip(f"addr add {METADATA}/32 dev lo", f"addr add {METADATA6}/128 dev lo")
    world.host.ip(f"route add {METADATA} via {OUTSIDE}", f"route add {METADATA6} via 2001:db8::2")
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        idle("a", net) as a,
        world.outside.serves(80),
        world.outside.serves(80, address="::"),
        world.outside.serves(53, "udp", address=METADATA),
    ):
        assert world.host.asks(METADATA, 80) == f"it {HOST}"
        assert world.host.asks(METADATA6, 80) == f"it {HOST6}"
        asked = [("tcp", METADATA, 80), ("tcp", METADATA6, 80)]
        assert answered(a, asked, NEVER_S) == []
        assert asks(a, METADATA, 53, "udp") == f"it {HOST}"  # where clouds have their name servers
    world.host.ip(f"route del {METADATA}", f"route del {METADATA6}")


@elsewhere
def test_two_networks_reach_each_other_by_published_ports_only() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as one,
        nsbox.Network("nsb1", subnet="10.78.0.0/24", subnet6="fd00:78::/64") as two,
        server("web", one, publish="8080:80") as web,
        server("web6", one, at="::") as web6,
        idle("near", one) as near,
        idle("far", two) as far,
    ):
        assert asks(near, web.ip, 80) == f"web {near.ip}"
        assert asks(near, web6.ip6, 80) == f"web6 {near.ip6}"
        assert never(far, web.ip, 80)
        assert never(far, web6.ip6, 80)
        assert not pings(far, web.ip, 1)
        assert asks(far, "web", 80) == "no such name"
        assert asks(far, HOST, 8080).startswith("web ")
        assert str(two.gateway) not in output(near, "cat", "/etc/hosts")


@elsewhere
def test_the_outside_does_not_get_in_though_it_knows_the_way() -> None:
    world.outside.ip(f"route add {SUBNET} via {HOST}", f"route add {SUBNET6} via {HOST6}")
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        server("web", net) as web,
        server("web6", net, at="::") as web6,
        world.outside.serves(7),
    ):
        assert asks(web6, web.ip, 80) == f"web {web6.ip}"
        assert asks(web, OUTSIDE, 7) == f"it {HOST}"
        assert never(world.outside, web.ip, 80)
        assert never(world.outside, web6.ip6, 80)


@elsewhere
def test_a_payload_has_no_raw_packets_and_no_second_address() -> None:
    code = """
import errno, socket
def attempt(*words):
    try:
        socket.socket(*words).close()
        return "made"
    except OSError as e:
        return errno.errorcode[e.errno]
print(attempt(socket.AF_PACKET, socket.SOCK_RAW), attempt(socket.AF_INET, socket.SOCK_RAW, 1),
      attempt(socket.AF_INET6, socket.SOCK_RAW, 58), attempt(socket.AF_INET, socket.SOCK_DGRAM))
"""
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        for keywords in ({}, {"user": 0}, {"profile": "standard", "user": 0}):
            with idle("a", net, **keywords) as a:
                said = output(a, "python3", "-SIc", code).split()
                assert set(said[:3]) <= {"EPERM", "EAFNOSUPPORT", "EACCES"}, (keywords, said)
                assert said[3] == "made"
                for change in (
                    ["addr", "add", "10.77.0.99/24", "dev", "eth0"],
                    ["link", "set", "eth0", "address", "02:00:00:00:00:01"],
                ):
                    done = a.exec(["ip", *change], capture_output=True)
                    assert done.returncode != 0, (keywords, change)
                assert [str(one.ip) for one in a.eth0.addresses if one.version == 4] == [str(a.ip)]


@elsewhere
def test_a_source_that_is_not_of_the_network_goes_nowhere() -> None:
    """Sent with rights that no payload has: to the host, and through it."""
    with nsbox.Network("nsb0", subnet=SUBNET, host_ports=["7/udp"]) as net, idle("a", net) as a:
        its = inside(a)
        own = str(a.ip)
        its.ip("addr add 10.99.0.9/32 dev eth0")
        with world.outside.inside():
            there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with there, here:
            for end in (there, here):
                end.bind(("0.0.0.0", 7))
            for source, seen in (("10.99.0.9", False), (own, True)):
                for end, to in ((there, OUTSIDE), (here, HOST)):
                    if end is here and source == own:
                        continue  # closed to it in any case: test_host_ports…
                    with its.inside():
                        sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    with sending:
                        sending.bind((source, 0))
                        sending.sendto(b"who", (to, 7))
                    end.settimeout(scaled(5 if seen else NEVER_S))
                    with contextlib.suppress(TimeoutError):
                        assert end.recvfrom(9)[0] == b"who"
                        assert seen, source
                        seen = False
                    assert not seen, source
        os.close(its.fd)
