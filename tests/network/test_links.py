# SPDX-License-Identifier: Apache-2.0
"""Single links, and what can be done to one: real ones, with packets, in network namespaces that
are made for it."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import pytest
from namespace.kit import apart as run_apart
from network import kit
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Callable

PRELUDE = (
    kit.PRELUDE
    + f"patience = {scaled(10.0)}\n"
    + """
from nsbox import later, links
from nsbox.rtnl import Rtnl
@contextlib.contextmanager
def spaces(count):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(nsbox.Namespace.create("net")) for _ in range(count)]
def inside(where, *args):
    "By nsenter(1): Namespace.run sets groups, which an ordinary user's map does not allow."
    enter = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{where.fileno()}"]
    return subprocess.run([*enter, *args], capture_output=True, text=True)
def pings(where, address, within=None):
    "Whether an answer comes; a new link can take a moment."
    end = time.monotonic() + (patience if within is None else within)
    while True:
        done = inside(where, "ping", "-c", "1", "-W", "0.3", address)
        if done.returncode == 0 or time.monotonic() > end:
            return done.returncode == 0
def names(where=None):
    from nsbox.netlink import rtnl
    route = rtnl(where)
    try:
        return sorted(link.name for link in route.links())
    finally:
        route.close()
"""
)


def apart(test: Callable[[], None]) -> Callable[[], None]:
    @pytest.mark.userns
    @functools.wraps(test)
    def wrapper() -> None:
        run_apart(test, PRELUDE)

    return wrapper


# -- kinds ------------------------------------------------------------------------------------


@apart
def test_macvlans_on_one_link_reach_each_other() -> None:
    """And not in the mode "private". The link below is the caller's, theirs are elsewhere."""
    with spaces(2) as (one, two), nsbox.Veth.create("base", peer="wire", mtu=1400):
        for mode, reached in (("bridge", True), ("private", False)):
            with (
                nsbox.Link.create("macvlan", "m0", one, below="base", mode=mode,
                                  address="10.9.0.1/24") as first,
                nsbox.Link.create("macvlan", "m0", two, below="base", mode=mode,
                                  address="10.9.0.2/24", mtu=1300) as second,
            ):  # fmt: skip
                assert pings(one, "10.9.0.2", within=None if reached else 1) == reached
                assert first.link.mac != second.link.mac
                assert second.link._look().mtu == 1300
                assert repr(first) == "<nsbox.Link macvlan 'm0'>"
            assert repr(first) == "<nsbox.Link macvlan 'm0' closed>"
            later.settle()
            assert names(one) == names(two) == ["lo"]
        assert names() == ["base", "lo", "wire"]


@apart
def test_a_macvlan_on_a_link_of_its_own_or_of_another_namespace() -> None:
    with (
        spaces(2) as (one, two),
        nsbox.Veth.create("base", one, peer="wire", peer_netns=two) as cable,
    ):
        with nsbox.Link.create("macvlan", "m0", one, below=cable.link, address="10.9.0.1/24"):
            with nsbox.Link.create("macvlan", "m1", below=cable.peer, address="10.9.0.2/24"):
                assert names() == ["lo", "m1"]
                assert names(one) == ["base", "lo", "m0"]
                aliases = {link.name: link.alias for link in Rtnl.here().links()}
                assert aliases["m1"].startswith(f"nsbox-{os.getpid()}-")
                with nsbox.Namespace.current("net") as here:
                    assert pings(here, "10.9.0.1")


@apart
def test_two_vxlan_ends_carry_packets_over_a_cable() -> None:
    with (
        spaces(2) as (one, two),
        nsbox.Veth.create(
            "wire",
            one,
            peer="wire",
            peer_netns=two,
            address="10.1.0.1/24",
            peer_address="10.1.0.2/24",
        ) as cable,
    ):
        for number, port, six in ((5, None, False), (0xFFFFFF, 5000, False), (7, None, True)):
            outer = ("10.1.0.1", "10.1.0.2")
            if six:
                outer = ("fd00:1::1", "fd00:1::2")
                cable.link.add_address("fd00:1::1/64")
                cable.peer.add_address("fd00:1::2/64")
            with nsbox.Link.create("vxlan", "vx0", one, id=number, remote=outer[1], port=port,
                                   address="10.2.0.1/24"), \
                 nsbox.Link.create("vxlan", "vx0", two, id=number, remote=outer[0], port=port,
                                   address="10.2.0.2/24") as other_end:  # fmt: skip
                sent = cable.link.counts["tx_packets"]
                assert pings(one, "10.2.0.2")
                assert cable.link.counts["tx_packets"] > sent
                said = inside(two, "ip", "-d", "link", "show", "vx0")
                assert f"vxlan id {number} " in said.stdout
                assert f"dstport {port or 4789} " in said.stdout
                other_end.link.down()
                assert not pings(one, "10.2.0.2", within=0.5)


@apart
def test_a_bridge_joins_three_cables() -> None:
    with contextlib.ExitStack() as stack:
        spaces_ = [stack.enter_context(nsbox.Namespace.create("net")) for _ in range(4)]
        switch, *ends = spaces_
        sw0 = stack.enter_context(nsbox.Link.create("bridge", "sw0", switch))
        cables = [stack.enter_context(nsbox.Veth.create(
            f"p{i}", switch, peer="eth0", peer_netns=end, peer_address=f"10.3.0.{i}/24"))
            for i, end in enumerate(ends, 1)]  # fmt: skip
        assert not pings(ends[0], "10.3.0.2", within=0.5)
        for cable in cables:
            cable.link.join(sw0)
        for one in ends:
            for i in range(1, 4):
                assert pings(one, f"10.3.0.{i}")
        cables[2].link.leave()
        cables[2].link.leave()
        assert not pings(ends[0], "10.3.0.3", within=0.5)
        assert pings(ends[0], "10.3.0.2")
        cables[2].link.join(sw0.link)
        assert pings(ends[0], "10.3.0.3")
        sw0.close()
        sw0.close()
        later.settle()
        assert not pings(ends[0], "10.3.0.2", within=0.5)


@apart
def test_a_cable_joins_a_bridge_with_a_subnet() -> None:
    with nsbox.Bridge("sw0", subnet="10.77.0.0/24") as bridge, spaces(1) as (one,):
        with nsbox.Veth.create(
            "p0", peer="eth0", peer_netns=one, peer_address="10.77.0.9/24"
        ) as cable:
            cable.link.join(bridge)
            assert cable.link._look().master == bridge.link.index
            assert pings(one, "10.77.0.1", within=1) or bridge.isolated
            with nsbox.Namespace.current("net") as here:
                assert pings(here, "10.77.0.9")


@apart
def test_a_kind_that_the_kernel_may_not_have() -> None:
    with spaces(1) as (one,):
        done = inside(one, "ip", "link", "add", "d0", "type", "dummy")
        if done.returncode == 0:
            with nsbox.Link.create("dummy", "d1", one, address="10.4.0.1/24"):
                assert pings(one, "10.4.0.1")
            return
        with pytest.raises(nsbox.Unavailable) as caught:
            nsbox.Link.create("dummy", "d1", one)
        assert str(caught.value) == "link add d1 type dummy: this kernel has no dummy"


# -- what can be done to one ------------------------------------------------------------------


@apart
def test_a_neighbour_is_known_without_being_asked() -> None:
    with spaces(1) as (one,), nsbox.Veth.create("w0", peer="w1", peer_netns=one,
                                                address="10.5.0.1/24") as cable:  # fmt: skip
        cable.link.add_neighbour("10.5.0.7", "02:00:00:00:00:07")
        cable.link.add_neighbour("fd00:5::7", "02:00:00:00:00:08")
        known = {str(n.address): n.mac for n in cable.link._route.neighbours()}
        assert known["10.5.0.7"] == "02:00:00:00:00:07"
        assert known["fd00:5::7"] == "02:00:00:00:00:08"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            before = cable.peer.counts["rx_bytes"]
            sender.sendto(b"x" * 1000, ("10.5.0.7", 9))  # goes at once: nobody is there to answer
            assert cable.peer.counts["rx_bytes"] > before + 1000
        for wrong in ("", "02:00:00:00:00", "02:00:00:00:00:0g", 7):
            with pytest.raises(nsbox.SpecError, match="mac: "):
                cable.link.add_neighbour("10.5.0.8", wrong)
        with pytest.raises(nsbox.SpecError, match="address: "):
            cable.link.add_neighbour("10.5.0.0/24", "02:00:00:00:00:07")


@apart
def test_an_end_is_renamed_and_moved() -> None:
    with (
        spaces(2) as (one, two),
        nsbox.Veth.create("w0", peer="w1", peer_netns=one, peer_address="10.6.0.1/24") as cable,
    ):
        index = cable.link.index
        cable.link.down()  # older kernels rename nothing that is up
        cable.link.rename("eth7")
        assert (cable.link.name, cable.link.index, names()) == ("eth7", index, ["eth7", "lo"])
        cable.link.move(two)
        assert names() == ["lo"]
        assert names(two) == ["eth7", "lo"]
        assert cable.link.namespace == two
        cable.link.add_address("10.6.0.2/24")
        cable.link.up()
        assert pings(one, "10.6.0.2")
        cable.link.move(None)
        assert names() == ["eth7", "lo"]
        with pytest.raises(nsbox.SpecError):
            cable.link.rename("a/b")
        with pytest.raises(nsbox.SpecError):
            cable.link.move(True)
    later.settle()
    assert names() == ["lo"]


@apart
def test_one_that_was_moved_is_deleted_where_it_is() -> None:
    with spaces(1) as (one,):
        with nsbox.Link.create("vxlan", "vx0", id=1) as link:
            link.link.move(one)
            assert names(one) == ["lo", "vx0"]
        later.settle()
        assert names(one) == ["lo"]


@apart
def test_a_link_can_be_on_the_loopback() -> None:
    with nsbox.Link.create("vxlan", "vx0", id=1, below="lo", remote="127.0.0.1") as link:
        assert "dev lo" in ip("-d", "link", "show", link.link.name)


# -- what is refused --------------------------------------------------------------------------


@apart
def test_the_kernel_s_own_words_reach_the_error() -> None:
    with nsbox.Link.create("bridge", "sw0") as one, nsbox.Link.create("bridge", "sw1") as two:
        with pytest.raises(nsbox.NetworkError) as caught:
            one.link.join(two)
        assert caught.value.errno == errno.ELOOP
        assert caught.value.said == "Can not enslave a bridge to a bridge"
        assert str(caught.value).endswith("ELOOP (Can not enslave a bridge to a bridge)")
        with nsbox.Link.create("vxlan", "vx0", id=7):
            with pytest.raises(nsbox.NetworkError) as caught:
                nsbox.Link.create("vxlan", "vx1", id=7)
            assert "VNI" in caught.value.said
            assert "VNI" in str(caught.value)
            with pytest.raises(nsbox.NetworkError) as caught:
                nsbox.Link.create("vxlan", "vx1", id=8, remote="239.0.0.1")
            assert "multicast" in caught.value.said.lower()
    later.settle()
    assert names() == ["lo"]


@apart
def test_a_bridge_of_another_namespace_is_refused() -> None:
    """Its number there can be another link's here."""
    with spaces(1) as (one,), nsbox.Link.create("bridge", "sw0") as here, \
         nsbox.Link.create("bridge", "sw0", one) as there, \
         nsbox.Veth.create("p0", peer="p1", peer_netns=one) as cable:  # fmt: skip
        with pytest.raises(nsbox.SpecError, match="another network namespace"):
            cable.link.join(there)
        cable.link.join(here)
        cable.peer.join(there)
        for nothing in ("sw0", None, 7):
            with pytest.raises(nsbox.SpecError, match="bridge: "):
                cable.link.join(nothing)


@apart
def test_a_name_that_is_taken_leaves_its_link_as_it_was() -> None:
    """It was deleted, as if it were what could not be made; or marked, to go with its owner."""
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    ip("link", "add", "sw0", "type", "bridge")

    def seen():
        return [(x.name, x.ifindex, x.alias) for x in route.links()]

    route = Rtnl.here()
    before = seen()
    for make in (
        lambda: nsbox.Veth.create("one", peer="new"), lambda: nsbox.Veth.create("new", peer="sw0"),
        lambda: nsbox.Link.create("bridge", "one"), lambda: nsbox.Link.create("bridge", "sw0"),
        lambda: nsbox.Link.create("macvlan", "two", below="one"),
        lambda: nsbox.Bridge("sw0").start(),
    ):  # fmt: skip
        with pytest.raises(nsbox.NetworkError) as caught:
            make()
        assert caught.value.errno == errno.EEXIST
        later.settle()
        assert seen() == before
    route.close()


@apart
def test_links_go_with_a_killed_owner() -> None:
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    before = names()
    code = """
import nsbox
kept = [nsbox.Link.create("bridge", "sw0"), nsbox.Link.create("vxlan", "vx0", id=3),
        nsbox.Link.create("macvlan", "m0", below="one")]
space = nsbox.Namespace.create("net")
kept.append(nsbox.Link.create("vxlan", "vx1", space, id=4))
kept[-1].link.move(None)
print(flush=True)
sys.stdin.readline()
"""
    with other(code) as process:
        process.stdout.readline()
        assert len(names()) == len(before) + 4
        process.kill(), process.wait()
        end = time.monotonic() + patience
        while names() != before:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "keywords", "says"),
    [
        ("vlan", {}, "kind: 'vlan' is none of bridge, dummy, macvlan, vxlan"),
        ("bridge", {"below": "eth0"}, "below: is nothing that a bridge has"),
        ("dummy", {"id": 1}, "id: is nothing that a dummy has"),
        ("macvlan", {}, "below: a macvlan needs it"),
        ("macvlan", {"below": "eth0", "remote": "10.0.0.1"}, "remote: is nothing"),
        ("macvlan", {"below": "eth0", "mode": "vebp"}, "mode: 'vebp' is none of private, vepa"),
        ("macvlan", {"below": 7}, "below: 7 is no Interface"),
        ("macvlan", {"below": "a/b"}, "below: 'a/b' is not"),
        ("macvlan", {"below": ".."}, "below: '..' is no name"),
        ("vxlan", {}, "id: a vxlan needs it"),
        ("vxlan", {"id": 1 << 24}, "id: 16777216 is not 0 to 16777215"),
        ("vxlan", {"id": True}, "id: True is not"),
        ("vxlan", {"id": 1, "port": 65536}, "port: 65536 is not 0 to 65535"),
        ("vxlan", {"id": 1, "remote": "localhost"}, "remote: 'localhost' is not an address"),
        ("bridge", {"mtu": 67}, "mtu: 67 is not in 68..65535"),
        ("bridge", {"address": "10.0.0.1"}, "address: "),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    kind: str, keywords: dict[str, Any], says: str
) -> None:
    with pytest.raises(nsbox.SpecError, match=re.escape(says)):
        nsbox.Link.create(kind, "nsb0", **keywords)
