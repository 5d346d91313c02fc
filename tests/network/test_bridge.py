# SPDX-License-Identifier: Apache-2.0
"""Bridge and Network as objects: made, refused, closed, forgotten, and at once free again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from network.world import (
    GATEWAY,
    HOST,
    OUTSIDE,
    SUBNET,
    SUBNET6,
    asks,
    elsewhere,
    idle,
    links,
    pings,
    raises,
    server,
    tables,
    world,
)
from support import poll_until, scaled

import nsbox
from nsbox import later, rtnl


@elsewhere
def test_a_network_finds_a_subnet_a_bridge_has_what_is_asked_for() -> None:
    with nsbox.Network() as net, nsbox.Bridge("nsb0") as bridge:
        assert net.subnet is not None
        assert net.subnet.is_private
        assert (net.subnet.prefixlen, net.gateway) == (24, net.subnet.network_address + 1)
        assert repr(net) == f"<nsbox.Network {net.name!r} {net.subnet}>"
        assert (bridge.subnet, bridge.gateway, bridge.subnet6) == (None, None, None)
        assert repr(bridge) == "<nsbox.Bridge 'nsb0'>"
        assert {net.name, "nsb0"} <= set(links())
        assert [str(one) for one in net.link.addresses[:1]] == [f"{net.gateway}/24"]
        assert tables() == [f"bridge {net.table}", f"inet {net.table}"]
    with nsbox.Network("nsb1", subnet6=SUBNET6) as both:
        assert isinstance(both.subnet, IPv4Network)
        assert both.subnet6 == IPv6Network(SUBNET6)
        assert f"{both.gateway6}/64" in [str(one) for one in both.link.addresses]


@elsewhere
def test_a_name_and_a_subnet_are_free_at_once() -> None:
    for _ in range(6):
        with (
            nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
            server("web", net, publish="8080:80") as web,
        ):
            assert str(web.ip) in ("10.77.0.2", "10.77.0.3")
            assert world.outside.asks(HOST, 8080) == f"web {OUTSIDE}"


@elsewhere
def test_verbs_in_the_wrong_state() -> None:
    net = nsbox.Network("nsb0", subnet=SUBNET)
    with raises(nsbox.StateError) as said:
        _ = net.link
    assert said == ["<nsbox.Network 'nsb0' 10.77.0.0/24>: it is created, use start() or with"]
    with raises(nsbox.StateError), idle("a", net):
        pass
    net.start()
    with raises(nsbox.StateError) as said:
        net.start()
    assert said == ["<nsbox.Network 'nsb0' 10.77.0.0/24> was started before"]
    assert repr(net) == "<nsbox.Network 'nsb0' 10.77.0.0/24>"
    net.close()
    assert repr(net) == "<nsbox.Network 'nsb0' 10.77.0.0/24 closed>"
    net.close()
    with raises(nsbox.StateError) as said, idle("a", net):
        pass
    assert said == ["<nsbox.Network 'nsb0' 10.77.0.0/24>: it is closed, use start() or with"]
    with raises(nsbox.StateError):
        net.start()
    never = nsbox.Network()
    never.close()


@elsewhere
def test_what_is_wrong_is_told_before_anything_is_made() -> None:
    for keywords, field in (
        ({"subnet": "10.77.0.0/15"}, "subnet"), ({"subnet": "10.77.0.0/31"}, "subnet"),
        ({"subnet": "10.77.0.1/24"}, "subnet"), ({"subnet": SUBNET6}, "subnet"),
        ({"subnet": "127.0.0.0/24"}, "subnet"), ({"subnet6": SUBNET}, "subnet6"),
        ({"subnet6": "fe80::/64"}, "subnet6"), ({"dns": ["localhost"]}, "dns[0]"),
        ({"name": "a b"}, "name"), ({"name": "x" * 16}, "name"),
        ({"name": "é" * 15}, "name"), ({"name": "all"}, "name"), ({"mtu": 67}, "mtu"),
        ({"host_ports": [0]}, "host_ports"), ({"subnet6": SUBNET6, "mtu": 1279}, "mtu"),
    ):  # fmt: skip
        with raises(nsbox.SpecError, field):
            nsbox.Network(**keywords)
    for keywords, field in (({"nat": True}, "nat"), ({"subnet6": SUBNET6}, "subnet6")):
        with raises(nsbox.SpecError, field):
            nsbox.Bridge(**keywords)
    gc.collect()  # what was not made needs no close()


@elsewhere
def test_an_overlap_is_refused_and_says_with_whom() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6):
        for subnet in (SUBNET, "10.77.0.128/25", "10.77.0.0/16"):
            with raises(nsbox.Unavailable, "subnet") as said:
                nsbox.Network("nsb1", subnet=subnet).start()
            assert said == [
                f"subnet: {subnet} overlaps {SUBNET}, a network of process {os.getpid()}"
            ]
        with raises(nsbox.Unavailable, "subnet6") as said:
            nsbox.Network("nsb1", subnet="10.78.0.0/24", subnet6=SUBNET6).start()
        assert said[0].startswith(f"subnet6: {SUBNET6} overlaps the same /64, a network of"), said
        with nsbox.Network("nsb1", subnet="10.78.0.0/24"):  # nothing was kept of that one
            pass
    with raises(nsbox.Unavailable, "subnet") as said:
        nsbox.Network("nsb1", subnet="192.0.2.0/25").start()
    assert said == ["subnet: 192.0.2.0/25 overlaps the route to 192.0.2.0/24 by out0"]
    code = f"""
import nsbox, sys
with nsbox.Network("nsb0", subnet="{SUBNET}"):
    print(flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        with raises(nsbox.Unavailable, "subnet") as said:
            nsbox.Network("nsb1", subnet=SUBNET).start()
        assert said == [f"subnet: {SUBNET} overlaps {SUBNET}, a network of process {other.pid}"]
        other.communicate("\n")


@elsewhere
def test_a_name_that_is_taken_is_refused_and_its_owner_untouched() -> None:
    world.host.ip("link add nsb0 type bridge", "addr add 10.9.0.1/24 dev nsb0")
    before = world.look()
    with raises(nsbox.NetworkError) as said:
        nsbox.Network("nsb0", subnet=SUBNET).start()
    assert "EEXIST" in said[0], said
    assert later.settle(scaled(5))
    assert world.look() == before
    with nsbox.Network("nsb1", subnet=SUBNET) as net, idle("a", net) as a:
        assert pings(a, GATEWAY)
    world.host.ip("link del nsb0")


@elsewhere
def test_one_that_is_forgotten_is_warned_about_and_taken_away() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nsbox.Network("nsb0", subnet=SUBNET)  # never started: nothing to say
        gc.collect()
        assert caught == []
        net = nsbox.Network("nsb0", subnet=SUBNET).start()
        assert "nsb0" in links()
        del net
        gc.collect()
    assert "<nsbox.Network 'nsb0' 10.77.0.0/24> was not closed" in [
        str(one.message) for one in caught
    ]
    assert "nsb0" not in links()
    assert later.settle(scaled(5))
    assert tables() == []


@elsewhere
def test_closed_before_its_containers_it_cuts_them_off_and_nothing_else() -> None:
    net = nsbox.Network("nsb0", subnet=SUBNET).start()
    with idle("a", net, publish="8081:80") as a, world.outside.serves(7):
        assert asks(a, OUTSIDE, 7) == f"it {HOST}"
        net.close()
        assert a.status() == "running"
        assert not pings(a, OUTSIDE, 1)
        with nsbox.Network("nsb0", subnet=SUBNET) as again, server("b", again, publish="8080:80"):
            assert world.outside.asks(HOST, 8080) == f"b {OUTSIDE}"
    poll_until(lambda: set(links()) == {"lo", "out0"}, 5)  # with the container's network


@elsewhere
def test_closing_one_with_a_name_and_a_subnet_of_nsbox_s_own_asks_the_kernel_for_nothing() -> None:
    """It would wait for the lock of all networks, 20 ms where another namespace is destroyed."""
    net, there, go = nsbox.Network().start(), threading.Event(), threading.Event()
    later.call(lambda: there.set() or go.wait())
    assert there.wait(scaled(5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtnl.Rtnl, "do", None)  # calling it would fail
        net.close()
    assert world.host.setting("ipv4/ip_forward") == "1"
    kinds = [isinstance(item, tuple) for item in later._later._waiting]
    assert kinds.index(True) == 0, "the link goes before the rules that guard it"
    assert True not in kinds[1:]
    go.set()
    assert later.settle(scaled(5))
    assert set(links()) == {"lo", "out0"}
    assert world.host.setting("ipv4/ip_forward") == "0"


@elsewhere
def test_the_subnet_that_one_had_found_can_be_asked_for_at_once() -> None:
    net = nsbox.Network().start()
    net.close()
    with nsbox.Network(subnet=str(net.subnet)) as again, idle("a", again) as box:
        assert pings(box, net.gateway)


@elsewhere
def test_another_program_can_have_that_subnet_too() -> None:
    net, go = nsbox.Network().start(), threading.Event()
    later.call(go.wait)
    net.close()
    code = f"import nsbox; print(flush=True); nsbox.Network(subnet='{net.subnet}').start().close()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert net.name in links()
        timer = threading.Timer(0.2, go.set)  # it looks at once, and until then
        timer.start()
        assert other.wait(scaled(20)) == 0
    timer.join()


@elsewhere
def test_what_the_caller_has_put_on_its_link_is_free_at_once_too() -> None:
    for _ in range(3):
        with nsbox.Bridge("nsb0", subnet=SUBNET) as bridge:
            bridge.link.add_address("10.5.0.1/24")
            bridge.link.add_route("10.9.0.0/16", via="10.5.0.7")


@elsewhere
def test_many_threads_make_networks_and_take_them_away() -> None:
    def life(number: int) -> str:
        with nsbox.Network() as net, idle(f"c{number}", net) as box:
            assert pings(box, net.gateway)
            return str(net.subnet)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(life, range(24)))
    assert len(found) == 24


@elsewhere
def test_forwarding_is_as_it_was_though_networks_overlap_in_time() -> None:
    one, two = nsbox.Network("nsb0", subnet=SUBNET), nsbox.Network("nsb1")
    for verb, on in ((one.start, "1"), (two.start, "1"), (one.close, "1"), (two.close, "0")):
        verb()
        assert later.settle(scaled(5))
        assert world.host.setting("ipv4/ip_forward") == on
    with nsbox.Bridge("nsb0", subnet=SUBNET):  # that routes nothing
        assert world.host.setting("ipv4/ip_forward") == "0"


@elsewhere
def test_a_table_of_somebody_else_is_left_alone() -> None:
    chain = "{ type filter hook input priority 0; policy accept; }"
    world.host.run("nft", f"add table inet theirs; add chain inet theirs input {chain}")
    before = world.host.run("nft", "-j", "list", "ruleset")
    with nsbox.Network("nsb0", subnet=SUBNET) as net, server("web", net, publish="8080:80"):
        assert world.outside.asks(HOST, 8080) == f"web {OUTSIDE}"
        assert world.host.run("nft", "list", "table", "inet", "theirs").count("chain") == 1
    assert later.settle(scaled(5))
    assert world.host.run("nft", "-j", "list", "ruleset") == before
    world.host.run("nft", "delete", "table", "inet", "theirs")


@elsewhere
def test_a_start_that_fails_in_the_middle_leaves_nothing() -> None:
    from nsbox import hostsfile, nft

    nsbox.run(["true"])
    before = world.look()
    for module, name in ((nft, "transact"), (hostsfile.HostsFile, "create"), (nft, "open_socket")):
        real = vars(module)[name]

        def failing(*args: object, **keywords: object) -> None:
            raise OSError(5, "injected")

        setattr(module, name, failing)
        try:
            with raises(OSError) as said:
                nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6).start()
            assert "injected" in said[0], (name, said)
        finally:
            setattr(module, name, real)
        assert later.settle(scaled(5))
        assert world.look() == before, name
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("a", net) as a:
        assert pings(a, GATEWAY)


@elsewhere
def test_one_whose_link_has_lost_its_addresses_meanwhile_goes_all_the_same() -> None:
    """The kernel takes IPv6 from a link whose MTU is too small for it."""
    for lent in (False, True):
        with nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6, mtu=1280) as net:
            if lent:
                _ = net.link
            world.host.ip("link set nsb0 mtu 1000")
        assert later.settle(scaled(5))
        assert set(links()) == {"lo", "out0"}, lent


@elsewhere
def test_closed_while_another_thread_starts_a_container_it_leaves_no_file() -> None:
    """Each file that is written for the container is written while the network is being closed."""
    from nsbox import identity, registry

    for kind in ("-resolv", "-hostname-"):
        net = nsbox.Network("nsb0", subnet=SUBNET).start()
        closing = threading.Thread(target=net.close)
        real = identity.write

        def slow(path: str, text: str, kind: str = kind, closing: threading.Thread = closing,
                 real: Any = real) -> None:  # fmt: skip
            if kind in path and not closing.ident:
                closing.start()
                closing.join(0.3)
            real(path, text)

        identity.write = slow
        try:
            with raises(nsbox.StateError) as said, idle("a", net):
                pass
        finally:
            identity.write = real
        closing.join()
        assert said == ["<nsbox.Network 'nsb0' 10.77.0.0/24>: it is closed, use start() or with"]
        left = [name for name in os.listdir(registry.directory()) if kind in name]
        assert not left, left
        assert later.settle(scaled(5))


@elsewhere
def test_what_cannot_be_taken_from_its_link_is_told_and_the_link_goes() -> None:
    from nsbox import interface

    def failing(*_: object) -> None:
        raise nsbox.NetworkError(1, "address delete", "injected")

    real, interface._free_addresses = interface._free_addresses, failing
    try:
        with raises(nsbox.NetworkError) as said:
            nsbox.Network("nsb0", subnet=SUBNET).start().close()
    finally:
        interface._free_addresses = real
    assert "injected" in said[0]
    assert later.settle(scaled(5))
    assert set(links()) == {"lo", "out0"}
