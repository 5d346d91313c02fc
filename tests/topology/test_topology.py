# SPDX-License-Identifier: Apache-2.0
"""Networks of hosts, routers and switches: packets get where they should, and nowhere else."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from support import scaled
from topology.kit import pair, tcp_wire_rate

import nsbox
from nsbox.topology import Topology

pytestmark = pytest.mark.userns

ROOT = os.geteuid() == 0
needs_ping = pytest.mark.skipif(shutil.which("ping") is None, reason="needs ping(8)")


def _tree() -> Topology:
    """h1 and h2 on one switch, h3 on another, h4 at a cable of its own; two routers between."""
    net = Topology("campus")
    for name in ("h1", "h2", "h3", "h4"):
        net.host(name)
    for name in ("s1", "s2"):
        net.switch(name)
    for name in ("r1", "r2"):
        net.router(name)
    for a, b in (("h1", "s1"), ("h2", "s1"), ("s1", "r1"), ("r1", "r2"), ("r2", "s2"),
                 ("s2", "h3"), ("h4", "r2")):  # fmt: skip
        net.link(a, b)
    return net


def _own_links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _ttl(said: str) -> int:
    return int(said.partition("ttl=")[2].split()[0])


# -- packets --------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_everybody_reaches_everybody_over_switches_and_routers() -> None:
    before = _own_links()
    with _tree() as net:
        found = net.ping_all(scaled(2))
        assert _own_links() == before, "nothing of it is in the caller's network"
        assert not any(Path(f"/sys/class/net/{name}").exists() for name in ("s1", "s2"))
    assert found.ok, str(found)
    assert len(found.times) == 12
    assert all(seconds is not None and 0 < seconds < scaled(2) for seconds in found.times.values())


@needs_ping
@pytest.mark.kernel
def test_hosts_know_one_another_by_name_and_each_router_counts() -> None:
    with _tree() as net:
        hops = {}
        for name in ("h2", "h3", "h4", "r2"):
            done = net["h1"].exec(["ping", "-c1", f"-W{scaled(5):.0f}", name],
                                  capture_output=True, text=True)  # fmt: skip
            assert done.ok, done
            hops[name] = 64 - _ttl(str(done.stdout))
    assert hops == {"h2": 0, "h3": 2, "h4": 2, "r2": 1}


def test_a_link_that_is_down_carries_nothing_until_it_is_up() -> None:
    with _tree() as net:
        link = net.links[3]  # between the routers
        assert str(link) == "r1 - r2"
        assert link.is_up
        link.down()
        cut = net.ping_all(0.3)
        assert not link.is_up
        assert "╌" in net.draw()
        link.up()
        assert link.is_up
        again = net.ping_all(scaled(2))
        assert "╌" not in net.draw()
    near, far = {"h1", "h2"}, {"h3", "h4"}
    assert set(cut.lost) == {(a, b) for x, y in ((near, far), (far, near)) for a in x for b in y}
    assert again.ok, str(again)


def test_the_link_of_a_host_comes_back_with_its_address_and_routes() -> None:
    with _tree() as net:
        net.links[0].down()
        cut = net.ping_all(0.3)
        net.links[0].up()
        again = net.ping_all(scaled(2))
    assert {pair for pair in cut.times if "h1" in pair} == set(cut.lost)
    assert again.ok, str(again)


def test_hosts_without_a_way_do_not_meet() -> None:
    """Two islands, and a host in the middle that is no router."""
    net = Topology()
    for name in ("a", "b", "c", "alone"):
        net.host(name)
    net.link("a", "b")
    net.link("b", "c")
    with net:
        found = net.ping_all(0.3)
    assert set(found.times) - set(found.lost) == {("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")}


def test_a_switch_needs_no_address_and_joins_others() -> None:
    net = Topology()
    for name in ("s1", "s2", "s3"):
        net.switch(name)
    net.link("s1", "s2")
    net.link("s2", "s3")
    net.link("s3", net.host("h3"))
    net.link("s1", net.host("h1"))
    with net:
        assert net.ping_all(scaled(2)).ok
        assert list(net["s2"].interfaces) == ["s2-eth1", "s2-eth2"]
        assert net["s2"].interfaces["s2-eth1"].counts["rx_packets"] > 0


def test_with_static_arp_nobody_asks() -> None:
    net = Topology(static_arp=True)
    s1 = net.switch("s1")
    for i in range(4):
        net.link(net.host(f"h{i}"), s1)
    net.link(s1, net.router("r1"))
    with net:
        net.links[0].down()
        net.links[0].up()
        known = net["h0"].network.run(["ip", "neigh"], capture_output=True, text=True).stdout
        assert sorted(line.split()[0] for line in known.splitlines() if "PERMANENT" in line) == [
            "10.0.0.2", "10.0.0.254", "10.0.0.3", "10.0.0.4"
        ]  # fmt: skip
        assert net["h1"].interfaces["eth0"].mac == "02:00:0a:00:00:02"
        assert net.ping_all(scaled(2)).ok


def test_a_ring_of_routers_has_the_shortest_ways() -> None:
    net = Topology()
    routers = [net.router(f"r{i}") for i in range(5)]
    for i, router in enumerate(routers):
        net.link(router, net.host(f"h{i}"))
    for i, router in enumerate(routers):
        net.link(router, routers[(i + 1) % 5])
    with net:
        assert net.ping_all(scaled(2)).ok
        if shutil.which("ping"):
            done = net["h0"].exec(["ping", "-c1", "h4"], capture_output=True, text=True)
            assert _ttl(done.stdout) == 62


def test_a_rate_of_a_link_holds_while_others_are_free() -> None:
    net = Topology()
    s1 = net.switch("s1")
    h1, h2, h3 = (net.host(name) for name in ("h1", "h2", "h3"))
    slow = net.link(h1, s1, rate="4Mbit")
    net.link(h2, s1)
    net.link(h3, s1)
    with net:
        assert tcp_wire_rate(h1, h2, 1.0, 4e6) == pytest.approx(4e6, rel=0.1)
        assert tcp_wire_rate(h2, h1, 1.0, 4e6) == pytest.approx(4e6, rel=0.1)
        assert tcp_wire_rate(h2, h3, 0.5, 8e6) > 8e6
        slow.shape("12Mbit")
        assert tcp_wire_rate(h1, h3, 1.0, 12e6) == pytest.approx(12e6, rel=0.1)
        assert "12Mbit" in str(net)


# -- hosts ----------------------------------------------------------------------------------------


def test_hosts_are_containers_of_their_own() -> None:
    with pair() as net:
        h1, h2 = net.hosts
        for kind in ("mnt", "pid", "uts", "ipc", "net", "cgroup"):
            assert h1.namespaces[kind] != h2.namespaces[kind]
        own = nsbox.Namespace.current("user")
        assert own.id not in (h1.namespaces["user"], h2.namespaces["user"])
        own.close()
        assert (h1.namespaces["user"] == h2.namespaces["user"]) is not ROOT
        done = h1.exec(["sh", "-c", "hostname; cat /etc/hosts"], capture_output=True, text=True)
        assert done.stdout.splitlines()[0] == "h1"
        assert "10.0.0.2 h2" in done.stdout
        assert h1.network.id == h1.namespaces["net"]
        assert h1.nspid == 1
        with h2.popen(["cat"], stdin=nsbox.PIPE, stdout=nsbox.PIPE, text=True) as cat:
            assert cat.communicate("x")[0] == "x"


@(pytest.mark.userns if ROOT else pytest.mark.subuid)
def test_hosts_can_have_different_users() -> None:
    net = Topology()
    s1 = net.switch("s1")
    for name, keywords in (("h1", {"profile": "standard"}), ("h2", {"user": 7})):
        net.link(net.host(name, **keywords), s1, rate="8Mbit")
    with net:
        found = [host.exec(["id", "-u"], capture_output=True, text=True).stdout
                 for host in net.hosts]  # fmt: skip
        own = [host.exec(["chown", "3:4", "/tmp"], capture_output=True).ok for host in net.hosts]
        assert net.ping_all(scaled(2)).ok
    assert found == ["0\n", "7\n"]
    assert own == [True, False]


@needs_ping
def test_the_network_is_there_before_the_command() -> None:
    net = Topology()
    h1 = net.host("h1", ["ping", "-c1", f"-W{scaled(5):.0f}", "h2"])
    net.link(net.host("h2"), net.switch("s1"))
    net.link(h1, "s1")
    with net:
        assert h1.wait(scaled(10)) == 0, h1.logs()
        assert "(stopped)" in net.draw()
        assert net.ping_all(scaled(2)).ok, "its network outlives it"


def test_a_host_cannot_change_its_network_unless_it_is_let() -> None:
    change = ["ip", "link", "set", "eth0", "mtu", "1400"]
    net = Topology()
    h1 = net.host("h1")
    h2 = net.host("h2", capabilities=["NET_ADMIN"])
    net.link(h1, h2)
    with net:
        assert not h1.exec(change, capture_output=True).ok
        assert h2.exec(change, capture_output=True, text=True).ok
        mtu = [host.interfaces["eth0"]._look().mtu for host in (h1, h2)]
    assert mtu == [1500, 1400]


def test_a_host_that_takes_its_link_away_takes_nothing_else() -> None:
    net = Topology()
    s1 = net.switch("s1")
    for name in ("h1", "h2", "bad"):
        net.link(net.host(name, capabilities=["NET_ADMIN"] if name == "bad" else None), s1,
                 rate="8Mbit")  # fmt: skip
    with net:
        assert net["bad"].exec(["ip", "link", "del", "eth0"], capture_output=True).ok
        assert [link.is_up for link in net.links] == [True, True, False]
        drawn = net.draw()
        assert drawn.count("╌╌╌╌ 8Mbit ╌╌╌╌") == 1
        assert "10.0.0.2" in drawn
        assert "10.0.0.3" not in drawn
        found = net.ping_all(scaled(0.5))
        for change in (net.links[2].up, net.links[2].down, lambda: net.links[2].shape("1Mbit")):
            with pytest.raises(nsbox.NetworkError, match="ENODEV"):
                change()
    assert {pair for pair in found.times if "bad" not in pair} & set(found.lost) == set()


def test_only_routers_forward() -> None:
    net = Topology()
    net.link(net.host("h1"), net.router("r1"))
    with net:
        found = [net[name].network.run(["cat", "/proc/sys/net/ipv4/ip_forward"],
                                       capture_output=True, text=True).stdout
                 for name in ("h1", "r1")]  # fmt: skip
    assert found == ["0\n", "1\n"]


def test_a_root_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    """Names are written where that leaves nothing in a directory of the user's."""
    for name in ("usr", "proc", "dev", "tmp", "etc"):
        (tmp_path / name).mkdir()
    for name in ("bin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (tmp_path / name).symlink_to(f"usr/{name}")
    (tmp_path / "etc" / "hosts").write_text("mine\n")
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    net = Topology()
    net.link(net.host("h1", root=tmp_path, mounts=[nsbox.Mount.bind("/usr", "/usr")]),
             net.host("h2"))  # fmt: skip
    with net:
        done = net["h1"].exec(["cat", "/etc/hosts"], capture_output=True, text=True)
        assert net.ping_all(scaled(2)).ok
    assert done.stdout == "mine\n"


# -- what it says ---------------------------------------------------------------------------------


def test_addresses_are_known_before_the_start_and_are_so_after() -> None:
    net = _tree()
    planned = {name: net[name].ip for name in ("h1", "h2", "h3", "h4", "r1")}
    before = net.draw()
    assert planned == {name: ipaddress.ip_address(text) for name, text in
                       (("h1", "10.0.0.1"), ("h2", "10.0.0.2"), ("h3", "10.0.2.1"),
                        ("h4", "10.0.3.1"), ("r1", "10.0.0.254"))}  # fmt: skip
    with net:
        live = {name: net[name].interfaces["eth0"].addresses[0].ip for name in planned}
        assert net.draw() == str(net) == before
    assert live == planned
    assert net.draw() == before


def test_the_svg_is_xml_and_has_what_the_text_has() -> None:
    with pair(rate="8Mbit") as net:
        net["h1"].interfaces["eth0"].add_address("192.0.2.7/24")
        picture = net.svg()
    texts = {element.text for element in ET.fromstring(picture).iter()}
    assert {"h1", "h2", "10.0.0.1/24", "192.0.2.7/24", "10.0.0.2/24", "8Mbit"} <= texts


def test_given_addresses_are_taken() -> None:
    net = Topology(network="172.16.0.0/20")
    s1 = net.switch("s1")
    net.link(net.host("h1"), s1, address="192.0.2.20/28")
    net.link(s1, net.host("h2"))
    net.link("h2", net.host("h3"), mtu=1400)
    with net:
        assert [str(net[name].ip) for name in ("h1", "h2", "h3")] == [
            "192.0.2.20", "192.0.2.17", "172.16.0.2"
        ]  # fmt: skip
        assert net["h2"].interfaces["eth1"]._look().mtu == 1400
        found = net.ping_all(scaled(0.5))
    assert set(found.lost) == {("h1", "h3"), ("h3", "h1")}


# -- what is refused ------------------------------------------------------------------------------


def _loop(net: Topology) -> None:
    net.switch("s1")
    net.switch("s2")
    net.link("s1", "s2")
    net.link("s2", "s1")
    net.start()


def _twice(net: Topology) -> None:
    net.link(net.host("h1"), net.host("h2"), address="10.1.0.1/24", peer_address="10.1.0.1/24")
    net.start()


@pytest.mark.parametrize(
    ("field", "build"),
    [
        ("name", lambda net: net.host("a b")),
        ("name", lambda net: (net.host("a"), net.switch("a"))),
        ("name", lambda net: net.switch("s23456789")),
        ("name", lambda net: net.switch("lo")),
        ("net", lambda net: net.host("a", net="host")),
        ("limits", lambda net: net.host("a", limits=7)),
        ("a", lambda net: net.link("a", "b")),
        ("b", lambda net: net.link(net.host("a"), "b")),
        ("b", lambda net: net.link(net.host("a"), "a")),
        ("b", lambda net: net.link(net.host("a"), Topology().host("b"))),
        ("rate", lambda net: net.link(net.host("a"), net.host("b"), rate="7")),
        ("latency", lambda net: net.link(net.host("a"), net.host("b"), rate="1Tbit")),
        ("mtu", lambda net: net.link(net.host("a"), net.host("b"), mtu=67)),
        ("jitter", lambda net: net.link(net.host("a"), net.host("b"), jitter="1ms")),
        ("address", lambda net: net.link(net.switch("a"), net.host("b"), address="10.1.0.1/24")),
        ("address", lambda net: net.link(net.host("a"), net.host("b"), address="10.1.0.1")),
        ("address", lambda net: net.link(net.host("a"), net.host("b"), address="10.1.0.0/24")),
        ("peer_address", lambda net: net.link(net.host("a"), net.host("b"), peer_address="::1/64")),
        ("links[1]", _loop),
        ("address", _twice),
    ],
)
def test_what_cannot_be_is_refused_by_field(field: str, build: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        build(Topology())
    assert caught.value.field == field


@pytest.mark.parametrize(
    "keywords",
    [
        {"name": "a b"},
        {"network": "10.0.0.1/8"},
        {"network": 7.5},
        {"network": "0.0.0.0/0"},
        {"network": "127.1.0.0/16"},
        {"network": "224.0.0.0/8"},
    ],
    ids=str,
)
def test_a_topology_that_cannot_be(keywords: dict[str, Any]) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        Topology(**keywords)
    assert caught.value.field == next(iter(keywords))


def test_verbs_at_the_wrong_time() -> None:
    net = Topology()
    h1 = net.host("h1")
    link = net.link(h1, net.host("h2"))
    for verb in (h1.start, lambda: h1.network, lambda: link.is_up, link.down, net.ping_all,
                 lambda: link.shape("1Mbit")):  # fmt: skip
        with pytest.raises(nsbox.StateError):
            verb()
    assert h1.interfaces == {}
    with net:
        for verb in (net.start, lambda: net.host("h3"), lambda: net.link(h1, "h2")):
            with pytest.raises(nsbox.StateError, match="running"):
                verb()
        with pytest.raises(nsbox.StateError, match="topology' is running: it is started once"):
            net.start()
        for timeout in (-1, "1", True, float("nan"), float("inf")):
            with pytest.raises(nsbox.SpecError, match="timeout: "):
                net.ping_all(timeout)  # type: ignore[arg-type]
    for verb in (net.start, net.ping_all, link.up, lambda: link.is_up):
        with pytest.raises(nsbox.StateError):
            verb()
    with pytest.raises(nsbox.StateError, match="topology' is stopped: it is started once"):
        net.start()
    net.close()
    assert net.status() == "stopped"
    assert h1.status() == "stopped"
