# SPDX-License-Identifier: Apache-2.0
"""Veth: a cable between two network namespaces, made in one call, as ip-link(8) would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from network.world import Net, elsewhere, links, raises, world
from support import scaled

import nsbox
from nsbox import later

NS = "nsbtest"


def reach(net: Net | nsbox.Namespace, to: str) -> bool:
    words = ["ping", "-n", "-c1", f"-W{scaled(1):g}", to]
    if isinstance(net, nsbox.Namespace):
        return net.run(words, capture_output=True).ok
    with net.inside():
        return subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.kernel
@elsewhere
def test_one_call_makes_both_ends_where_they_belong() -> None:
    """ip link add veth1 netns NS type veth peer name veth2 netns 1"""
    with (
        nsbox.Namespace.create("net", pin=NS) as ns,
        nsbox.Veth.create(
            "veth1",
            netns=NS,
            peer="veth2",
            peer_netns=os.getpid(),
            address="10.9.0.1/24",
            peer_address="10.9.0.2/24",
        ) as veth,
    ):
        said = json.loads(
            world.host.run("ip", "netns", "exec", NS, "ip", "-j", "addr", "show", "veth1")
        )
        assert said[0]["addr_info"][0]["local"] == "10.9.0.1"
        assert "UP" in said[0]["flags"]
        assert "veth2" in links()
        assert reach(ns, "10.9.0.2")
        assert reach(world.host, "10.9.0.1")
        assert (veth.link.name, veth.peer.name) == ("veth1", "veth2")
        assert repr(veth) == "<nsbox.Veth 'veth1' - 'veth2'>"
        assert veth.link.mac != veth.peer.mac
        assert veth.link.counts["rx_packets"] > 0
    assert "veth2" not in links()
    assert repr(veth) == "<nsbox.Veth 'veth1' - 'veth2' closed>"


@elsewhere
def test_a_namespace_is_given_as_itself_a_pid_a_path_or_a_name() -> None:
    world.host.run("ip", "netns", "add", NS)
    with nsbox.Namespace.open(NS) as ns, subprocess.Popen(["sleep", "1000"]) as process:
        wanted: list[Any] = [ns, NS, f"/run/netns/{NS}", Path("/run/netns", NS)]
        for where in wanted:
            with nsbox.Veth.create("veth1", where, peer="veth2", peer_netns=process.pid,
                                   address="10.9.0.1/24", peer_address="10.9.0.2/24"):  # fmt: skip
                assert reach(ns, "10.9.0.2"), where
        process.kill()
    world.host.run("ip", "netns", "del", NS)


@elsewhere
def test_neither_end_has_to_be_in_the_caller_s_namespace() -> None:
    with nsbox.Namespace.create("net") as one, nsbox.Namespace.create("net") as two:
        with nsbox.Veth.create("eth0", one, peer="eth0", peer_netns=two,
                               address="fd00:9::1/64", peer_address="fd00:9::2/64"):  # fmt: skip
            assert reach(one, "fd00:9::2")
            assert set(links()) == {"lo", "out0"}
        assert "eth0" not in one.run(["ip", "link"], capture_output=True, text=True).stdout


@elsewhere
def test_a_link_can_be_down_and_is_configured_step_by_step() -> None:
    with (
        nsbox.Namespace.create("net") as ns,
        nsbox.Veth.create("veth1", ns, peer="veth2", mtu=1400, up=False) as veth,
    ):
        assert links()["veth2"]["mtu"] == 1400
        assert "UP" not in links()["veth2"]["flags"]
        for end, address in ((veth.link, "10.9.0.1/24"), (veth.peer, "10.9.0.2/24")):
            end.add_address(address)
            end.up()
        assert [str(one) for one in veth.link.addresses if one.version == 4] == ["10.9.0.1/24"]
        assert reach(ns, "10.9.0.2")
        veth.link.add_route(via="10.9.0.2")
        assert (
            "default via 10.9.0.2" in ns.run(["ip", "route"], capture_output=True).stdout.decode()
        )
        assert reach(ns, "192.0.2.1")
        veth.peer.add_route("10.10.0.0/16")
        assert "10.10.0.0/16 dev veth2" in world.host.run("ip", "route")
        veth.link.down()
        assert not reach(world.host, "10.9.0.1")


@elsewhere
def test_names_and_addresses_are_free_at_once() -> None:
    """Also where they were: what is deleted takes nobody's packets meanwhile."""
    with nsbox.Namespace.create("net") as ns:
        for _ in range(8):
            with nsbox.Veth.create("veth1", ns, peer="veth2", address="10.9.0.1/24",
                                   peer_address="10.9.0.2/24") as veth:  # fmt: skip
                veth.peer.add_route("10.10.0.0/16", via="10.9.0.1")
                assert reach(ns, "10.9.0.2")
                assert reach(world.host, "10.9.0.1")
                assert world.host.run("ip", "route", "show", "10.10.0.0/16").count("\n") == 1


NO_NAME = "is not a name without '/', ':', '%' and blanks"
TOO_LONG = "is too long: a link's name has at most 15 bytes"
NO_PREFIX = 'has no prefix length; use as "10.0.0.2/24"'
MISUSE = (
    ({"name": "x" * 16}, "name", f"'xxxxxxxxxxxxxxxx' {TOO_LONG}"),
    ({"name": "é" * 8}, "name", f"'éééééééé' {TOO_LONG}"),
    ({"peer": "é" * 15}, "peer", f"'ééééééééééééééé' {TOO_LONG}"),
    ({"name": "a\udcff"}, "name", f"'a\\udcff' {NO_NAME}"),
    ({"name": ""}, "name", f"'' {NO_NAME}"),
    ({"name": "a/b"}, "name", f"'a/b' {NO_NAME}"),
    ({"peer": "lo"}, "peer", "'lo' is no name for a new link"),
    ({"peer": "all"}, "peer", "'all' is no name for a new link"),
    ({"name": "default"}, "name", "'default' is no name for a new link"),
    ({"peer": 7}, "peer", f"7 {NO_NAME}"),
    ({"mtu": 67}, "mtu", "67 is not in 68..65535"),
    ({"mtu": 65536}, "mtu", "65536 is not in 68..65535"),
    ({"mtu": "1500"}, "mtu", "'1500' is not a whole number"),
    ({"address": "10.9.0.1"}, "address", f"'10.9.0.1': {NO_PREFIX}"),
    ({"peer_address": "ten"}, "peer_address", f"'ten': {NO_PREFIX}"),
    ({"netns": True}, "netns", "True is no namespace"),
    ({"netns": 1.5}, "netns", "1.5 is no namespace"),
    (
        {"netns": "nsbnowhere"},
        "netns",
        "there is no network namespace 'nsbnowhere' (/run/netns/nsbnowhere)",
    ),
    ({"peer_netns": 4190000}, "peer_netns", "there is no process 4190000 (/proc/4190000/ns/net)"),
)


@elsewhere
def test_misuse_is_refused_before_anything_is_made() -> None:
    for wrong, field, text in MISUSE:
        with raises(nsbox.SpecError, field) as said:
            nsbox.Veth.create(**{"name": "veth1", "peer": "veth2", **wrong})  # type: ignore[arg-type]
        assert said == [f"{field}: {text}"]
    with nsbox.Namespace.current("uts") as uts, raises(nsbox.SpecError, "netns") as said:
        nsbox.Veth.create("veth1", uts, peer="veth2")
    assert said[0].endswith("is not a network namespace")
    assert set(links()) == {"lo", "out0"}


@elsewhere
def test_what_the_kernel_refuses_says_what_and_why() -> None:
    with nsbox.Veth.create("veth1", peer="veth2") as veth:
        with raises(nsbox.NetworkError) as said:
            veth.link.add_route("10.9.0.0/24", via="10.200.0.1")
        assert said[0].startswith("route add 10.9.0.0/24 via 10.200.0.1 dev veth1: ENETUNREACH"), (
            said
        )
        for names in (("veth1", "other"), ("other", "veth2")):
            with raises(nsbox.NetworkError) as said:
                nsbox.Veth.create(names[0], peer=names[1])
            assert "EEXIST" in said[0], said
            assert said[0].startswith("link add other" if names[0] == "veth1" else "link add"), said
            assert "other" not in links()
        veth.link.add_address("10.9.0.1/24")
        with raises(nsbox.NetworkError) as said:
            veth.link.add_address("10.9.0.1/24")
        assert said[0].startswith("address add 10.9.0.1/24 dev"), said
        assert "EEXIST" in said[0]
        with raises(nsbox.NetworkError) as said:
            veth.link.add_route("10.10.0.0/16", via="10.77.0.1")
        assert "route add 10.10.0.0/16 via 10.77.0.1" in said[0], said
        for words in ({}, {"network": "10.10.0.1/16"}, {"network": "x"}):
            with raises(nsbox.SpecError):
                veth.link.add_route(**words)
        world.host.ip("link del veth1")
        with raises(nsbox.NetworkError) as said:
            veth.link.up()
        assert "ENODEV" in said[0], said
        assert "there is no such link in this network namespace" in said[0]


@elsewhere
def test_closing_is_idempotent_and_heeds_what_others_did() -> None:
    veth = nsbox.Veth.create("veth1", peer="veth2")
    world.host.ip("link del veth1")
    veth.close()
    veth.close()
    with nsbox.Namespace.create("net") as ns:
        veth = nsbox.Veth.create("veth1", ns, peer="veth2", address="10.9.0.1/24")
    assert [str(one) for one in veth.link.addresses[:1]] == ["10.9.0.1/24"]  # it keeps its network
    veth.close()
    veth.close()
    assert "veth2" not in links()
    later.settle()
    with raises(nsbox.StateError) as said:
        veth.peer.up()
    assert said == ["this socket is closed"]


@elsewhere
def test_one_that_is_forgotten_is_warned_about_and_deleted() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        veth = nsbox.Veth.create("veth1", peer="veth2")
        del veth
    assert [str(one.message) for one in caught] == ["<nsbox.Veth 'veth1' - 'veth2'> was not closed"]
    assert issubclass(caught[0].category, ResourceWarning)
    assert "veth1" not in links()


@elsewhere
def test_a_forked_child_takes_nothing_away() -> None:
    with (
        nsbox.Veth.create("veth1", peer="veth2", address="10.9.0.1/24") as veth,
        nsbox.Bridge("nsb0", subnet="10.77.0.0/24") as bridge,
    ):
        for how in ("close", "exit"):
            child = os.fork()
            if child == 0:
                if how == "close":
                    veth.close()
                    bridge.close()
                    later.settle()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            time.sleep(scaled(0.3))  # longer than deletions linger
            assert {"veth1", "veth2", "nsb0"} <= set(links()), how
        assert veth.link.addresses


ORDINARY = """
import nsbox
from nsbox import later
with nsbox.Namespace.create("net") as mine:
    for make in (
        lambda: nsbox.Veth.create("veth1", peer="veth2"),
        lambda: nsbox.Veth.create("veth1", 1, peer="veth2"),
        lambda: nsbox.Veth.create("veth1", mine, peer="veth2"),
        lambda: nsbox.Network().start(),
        lambda: nsbox.Bridge("nsb0").start(),
    ):
        try:
            make().close()
        except OSError as e:
            print(type(e).__name__, e)
    assert later.settle(10)
    print(mine.run(["ip", "-o", "link"], capture_output=True, text=True).stdout.count("\\n"))
"""


@pytest.mark.user
@pytest.mark.userns
def test_of_what_an_ordinary_user_cannot_do_nothing_is_left() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ORDINARY],
        env={**os.environ, "PYTHONPATH": str(Path(nsbox.__file__).parents[1])},
        capture_output=True, text=True, timeout=scaled(30),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    *refused, links_inside = done.stdout.splitlines()
    assert links_inside == "1"
    assert refused[1].startswith("NetworkError netns 1: open /proc/1/ns/net: EACCES"), refused
    assert "ptrace(2)" in refused[1]
    for line in refused:  # with words, whatever it takes
        assert re.search(r"EPERM|EACCES|CAP_|Permission|permitted", line), line
