# SPDX-License-Identifier: Apache-2.0
"""Containers of a network reach each other, by address and by name, and the world through NAT."""

from __future__ import annotations

import pytest
from network.world import (
    BEYOND,
    GATEWAY,
    GATEWAY6,
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    RESOLV,
    SUBNET,
    SUBNET6,
    asks,
    elsewhere,
    idle,
    links,
    never,
    output,
    pings,
    raises,
    server,
    world,
)
from support import scaled

import nsbox
from nsbox import later


@pytest.mark.kernel
@elsewhere
def test_containers_talk_and_the_outside_sees_the_host() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("web", net) as web,
        idle("b", net) as b,
        world.outside.serves(7),
    ):
        assert (str(web.ip), str(b.ip), web.ip6) == ("10.77.0.2", "10.77.0.3", None)
        assert asks(b, web.ip, 80) == f"web {b.ip}"
        assert pings(b, web.ip)
        assert asks(b, OUTSIDE, 7) == f"it {HOST}"
        assert asks(b, BEYOND, 7) == f"it {HOST}"


@elsewhere
def test_udp_and_ping_go_the_same_ways() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("web", net, 53, "udp") as web,
        idle("b", net) as b,
        world.outside.serves(7, "udp"),
    ):
        assert asks(b, web.ip, 53, "udp") == f"web {b.ip}"
        assert asks(b, OUTSIDE, 7, "udp") == f"it {HOST}"
        for to in (b.ip, GATEWAY, HOST, OUTSIDE, BEYOND):
            assert pings(web, to), to
        assert world.host.asks(web.ip, 53, "udp") == f"web {GATEWAY}"


@elsewhere
def test_ipv6_goes_the_same_ways() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        server("web", net, at="::") as web,
        server("dns", net, 53, "udp", "::") as dns,
        world.outside.serves(7, address="::"),
        world.outside.serves(7, "udp", address="::"),
    ):
        assert (str(web.ip6), str(dns.ip6)) == ("fd00:77::2", "fd00:77::3")
        assert asks(dns, web.ip6, 80) == f"web {dns.ip6}"
        assert asks(web, dns.ip6, 53, "udp") == f"dns {web.ip6}"
        assert asks(web, OUTSIDE6, 7) == asks(web, OUTSIDE6, 7, "udp") == f"it {HOST6}"
        for to in (dns.ip6, GATEWAY6, HOST6, OUTSIDE6):
            assert pings(web, to), to
        assert world.host.asks(web.ip6, 80) == f"web {GATEWAY6}"
        for version, address in (("4", dns.ip), ("6", dns.ip6)):
            assert output(web, "getent", f"ahostsv{version}", "dns").split()[0] == str(address)
        assert world.host.setting("ipv6/conf/all/forwarding") == "1"
    assert later.settle(scaled(5))
    assert world.host.setting("ipv6/conf/all/forwarding") == "0"


@elsewhere
def test_without_nat_the_outside_is_asked_by_an_address_that_it_does_not_know() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, nat=False) as net,
        server("web", net) as web,
        idle("b", net) as b,
        world.outside.serves(7),
    ):
        assert asks(b, web.ip, 80) == f"web {b.ip}"
        assert never(b, OUTSIDE, 7)
        assert world.host.setting("ipv4/ip_forward") == "0"
        world.outside.ip(f"route add {SUBNET} via {HOST}")
        assert never(b, OUTSIDE, 7)  # nor does the host pass anything on
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("b", net) as b, world.outside.serves(7):
        assert asks(b, OUTSIDE, 7) == f"it {HOST}"
        assert world.host.setting("ipv4/ip_forward") == "1"


@elsewhere
def test_a_network_that_is_not_isolated_is_routed_both_ways() -> None:
    """As among routers: the outside knows the way, and nobody's address is changed."""
    world.outside.ip(f"route add {SUBNET} via {HOST}")
    with (
        nsbox.Network("nsb0", subnet=SUBNET, nat=False, isolated=False) as net,
        server("web", net) as web,
        world.outside.serves(7),
    ):
        assert asks(web, OUTSIDE, 7) == f"it {web.ip}"
        assert world.outside.asks(web.ip, 80) == f"web {OUTSIDE}"
    with nsbox.Network("nsb0", subnet=SUBNET, nat=False) as net, server("web", net) as web:
        world.host.setting("ipv4/ip_forward", 1)
        assert world.outside.asks(web.ip, 80, patience_s=0.5) == "silence"
        world.host.setting("ipv4/ip_forward", 0)


@elsewhere
def test_names_are_those_of_the_network_also_of_who_comes_later() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, server("web", net) as web:
        assert asks(web, "db", 80) == "no such name"
        with server("db", net) as db:
            assert asks(web, "db", 80) == f"db {web.ip}"
            assert asks(db, "web", 80) == f"web {db.ip}"
            assert output(web, "getent", "hosts", "web", "db").split() == [
                str(web.ip),
                "web",
                str(db.ip),
                "db",
            ]
        assert asks(web, "db", 80) == "no such name"
        assert not web.exec(["sh", "-c", "echo >> /etc/hosts"], capture_output=True).ok
        assert asks(web, "localhost", 80) == "web 127.0.0.1"


@elsewhere
def test_a_root_of_ones_own_gets_the_files_too() -> None:
    """Where it has them to be mounted upon; the caller's own root is left as it is."""
    import tempfile
    from pathlib import Path

    from run.kit import busybox_root

    with (
        tempfile.TemporaryDirectory() as where,
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("b", net) as b,
    ):
        Path(where).chmod(0o755)
        root = busybox_root(Path(where, "root"))
        words = ["/bin/sh", "-c", "cat /etc/hosts; cat /etc/resolv.conf"]
        shown = nsbox.run(words, root=nsbox.Rootfs.overlay(root), net=net, capture_output=True)
        assert f"{b.ip}\tb\n".encode() in shown.stdout, shown
        assert b"No such file" not in shown.stderr
        shown = nsbox.run(words, root=nsbox.Rootfs.dir(root), net=net, capture_output=True)
        assert shown.stderr.count(b"No such file") == 2, shown
        for name in ("hosts", "resolv.conf"):
            (root / "etc" / name).touch()
        shown = nsbox.run(words, root=nsbox.Rootfs.dir(root), net=net, capture_output=True)
        assert f"{b.ip}\tb\n".encode() in shown.stdout, shown
        own = nsbox.run(
            ["cat", "/etc/hosts"],
            root=nsbox.Rootfs.inherit(),
            profile="none",
            net=net,
            capture_output=True,
        )
        assert own.stdout == Path("/etc/hosts").read_bytes()


@elsewhere
def test_name_servers_are_those_that_were_given_and_behind_them_the_host_s() -> None:
    text = "nameserver 203.0.113.53\nsearch example.org\noptions ndots:1\n"
    RESOLV.write_text(text)
    dns = {"nameservers": ["192.0.2.2"], "searches": ["test"], "options": ["ndots:2"]}
    with nsbox.Network("nsb0", subnet=SUBNET, dns=dns) as net, idle("a", net) as a:
        assert output(a, "cat", "/etc/resolv.conf").splitlines() == [
            "nameserver 192.0.2.2",
            "nameserver 203.0.113.53",
            "search example.org test",
            "options ndots:2",
        ]
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("a", net) as a:
        assert output(a, "cat", "/etc/resolv.conf") == text


@elsewhere
def test_name_servers_that_were_given_are_asked_though_the_host_has_three() -> None:
    RESOLV.write_text("".join(f"nameserver 203.0.113.{n}\n" for n in (1, 2, 3)))
    with (
        nsbox.Network("nsb0", subnet=SUBNET, dns=["192.0.2.2"]) as net,
        idle("a", net) as a,
        idle("b", net, dns=["192.0.2.3", "192.0.2.4"]) as b,
    ):
        for box, servers in (
            (a, ["192.0.2.2", "203.0.113.1", "203.0.113.2"]),
            (b, ["192.0.2.3", "192.0.2.4", "203.0.113.1"]),
        ):
            lines = [f"nameserver {server}" for server in servers]
            assert output(box, "cat", "/etc/resolv.conf").splitlines() == lines
        with raises(nsbox.SpecError, "dns"):
            idle("c", net, dns=[f"192.0.2.{n}" for n in (2, 3, 4, 5)])


@elsewhere
def test_an_address_can_be_wanted_and_is_nobody_else_s_meanwhile() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net:
        with idle("a", net, address="10.77.0.50") as a:
            assert (str(a.ip), str(a.ip6)) == ("10.77.0.50", "fd00:77::32")
            assert [str(one) for one in a.eth0.addresses[:2]] == ["10.77.0.50/24", "fd00:77::32/64"]
            with raises(nsbox.Unavailable) as said, idle("b", net, address="10.77.0.50"):
                pass
            assert said == ["network: 10.77.0.50 is lent to container 'a' of network 'nsb0'"]
        with idle("b", net, address="10.77.0.50") as b:
            assert str(b.ip) == "10.77.0.50"
        for wanted, why in (
            ("10.77.0.1", "10.77.0.1 is the gateway's; use 10.77.0.2 to 10.77.0.254"),
            ("10.77.0.255", "10.77.0.255 is not one for containers; use 10.77.0.2 to 10.77.0.254"),
            ("10.78.0.2", "10.78.0.2 is not in 10.77.0.0/24"),
            ("fd00:77::5", "fd00:77::5 is not in 10.77.0.0/24"),
        ):
            with raises(nsbox.SpecError) as said, idle("b", net, address=wanted):
                pass
            assert said == [f"address: {why}"]
        with raises(nsbox.SpecError, "address"):
            idle("b", net, address="somewhere")


@elsewhere
def test_a_full_subnet_is_told_and_an_address_that_came_back_is_lent() -> None:
    with nsbox.Network("nsb0", subnet="10.77.0.0/30") as net:
        with idle("a", net) as a:
            assert str(a.ip) == "10.77.0.2"
            with raises(nsbox.Unavailable) as said, idle("b", net):
                pass
            assert said == [
                "network: all 1 addresses of 10.77.0.0/30 are in use. Fix: a larger subnet="
            ]
            assert len(net.leases) == 1
        with idle("b", net) as b:
            assert str(b.ip) == "10.77.0.2"


@elsewhere
def test_a_bridge_without_a_subnet_is_a_switch() -> None:
    with (
        nsbox.Bridge("nsb0") as bridge,
        idle("a", bridge, capabilities=["NET_ADMIN"], user=0) as a,
        idle("b", bridge, capabilities=["NET_ADMIN"], user=0) as b,
    ):
        assert (a.ip, a.ip6, a.ports) == (None, None, ())
        for box, address in ((a, "10.9.0.1/24"), (b, "10.9.0.2/24")):
            box.eth0.add_address(address)
        assert pings(a, "10.9.0.2")
        for keywords, field in (
            ({"address": "10.9.0.3"}, "address"),
            ({"publish": 80}, "publish"),
        ):
            with raises((nsbox.SpecError, nsbox.Unavailable), field), idle("c", bridge, **keywords):
                pass


@elsewhere
def test_the_mtu_is_that_of_every_link() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET, mtu=1400) as net, idle("a", net) as a:
        # 28 bytes are of the headers
        for size, passes in ((1372, True), (1373, False)):
            words = ["ping", "-n", "-c1", "-W1", "-Mdo", f"-s{size}", GATEWAY]
            assert a.exec(words, capture_output=True).ok == passes
        mtus = [link["mtu"] for name, link in links().items() if name.startswith("nsb")]
        assert mtus == [1400, 1400]


@elsewhere
def test_what_runs_to_its_end_has_a_network_too() -> None:
    """run() and Popen, as root of the caller's, or with an unmapped user, or none at all."""
    with nsbox.Network("nsb0", subnet=SUBNET) as net, server("web", net) as web:
        for keywords in (
            {},
            {"profile": "standard"},
            {"profile": "none"},
            {"user": 0},
            {"init": False},
            {"root": nsbox.Rootfs.inherit(), "profile": "none"},
            {"namespaces": ["net"], "profile": "none"},
        ):
            done = nsbox.run(
                ["ping", "-n", "-c1", "-W3", str(web.ip)], net=net, capture_output=True, **keywords
            )
            assert done.ok, (keywords, done)
        with nsbox.Popen(["sleep", "1000"], net=net):
            assert len(net.leases) == 2
        assert len(net.leases) == 1


@elsewhere
def test_the_interface_counts_what_passes() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, server("web", net) as web:
        before = web.eth0.counts
        assert world.host.asks(web.ip, 80) == f"web {GATEWAY}"
        after = web.eth0.counts
        assert set(after) == {
            f"{way}_{what}"
            for way in ("rx", "tx")
            for what in ("packets", "bytes", "errors", "dropped")
        }
        assert after["rx_packets"] > before["rx_packets"]
        assert after["tx_bytes"] > before["tx_bytes"]
        assert (web.eth0.name, len(web.eth0.mac)) == ("eth0", 17)
        web.eth0.down()
        assert never(world.host, web.ip, 80)
        web.eth0.up()
    with raises(nsbox.StateError):
        _ = web.eth0


@elsewhere
def test_sixty_four_at_once_all_get_their_own_place() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        boxes = [idle(f"box-{n}", net) for n in range(64)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(nsbox.Container.start, boxes))
            assert len({str(box.ip) for box in boxes}) == 64
            first, last = boxes[0], boxes[-1]
            assert pings(first, last.ip)
            assert pings(last, "box-0")
            list(pool.map(nsbox.Container.close, boxes))
        assert net.leases == ()


@elsewhere
def test_an_interrupt_between_a_barrier_and_its_answer_is_one_and_leaves_nothing() -> None:
    import os

    from nsbox import _core

    whole = _core.Starting.next

    def interrupted(self: _core.Starting, timeout_ms: int = -1) -> _core.Record:
        record = whole(self, timeout_ms)
        if record.kind == 3:  # BARRIER
            raise KeyboardInterrupt
        return record

    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("a", net):
        opened = len(os.listdir("/proc/self/fd"))
        _core.Starting.next = interrupted
        for _ in range(3):
            with raises(KeyboardInterrupt):
                nsbox.run(["true"], net=net)
        _core.Starting.next = whole
        assert later.settle(5)
        assert len(os.listdir("/proc/self/fd")) == opened
        assert nsbox.run(["true"], net=net).ok
