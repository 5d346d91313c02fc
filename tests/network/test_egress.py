# SPDX-License-Identifier: Apache-2.0
"""What a sandbox reaches under a rule set of its own, and how it learns what it does not."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from network.nftkit import Host, Net, apart, network, never, pings, reach, tables
from support import poll_until, scaled

from nsbox import nft
from nsbox.netallow import parse_allow
from nsbox.netrules import egress_table
from nsbox.nftmsg import Table

BOX, BOX6 = "192.0.2.2", "2001:db8::2"
FAR, FAR6 = "192.0.2.1", "2001:db8::1"
OTHER, OTHER6 = "192.0.2.9", "2001:db8::9"


class World:
    """A sandbox and what is around it: one host with two addresses of each version."""

    def __init__(self) -> None:
        self.far = Host()
        self.box = self.far.join("out0", [], f"{BOX}/24", f"{BOX6}/64")
        self.far.ip(*(f"addr add {address} dev out0" for address in (f"{FAR}/24", f"{OTHER}/24")),
                    *(f"addr add {address}/64 dev out0 nodad" for address in (FAR6, OTHER6)),
                    "link set out0 up")  # fmt: skip
        self.nft = self.box.nft()

    def allow(self, *entries: str, without: str = "") -> None:
        messages = egress_table("nsbe", [parse_allow(entry) for entry in entries])
        if nft.tables(self.nft):
            messages = [Table("nsbe").delete(), *messages]
        kept = [one for one in messages if not without or without not in one.command]
        assert len(kept) < len(messages) or not without
        nft.transact(self.nft, kept)

    def refused(self, to: tuple[str, int], *, kind: str = "tcp") -> int:
        """The errno of the attempt, which must come at once."""
        start = time.monotonic()
        with pytest.raises(OSError) as caught:
            reach(self.box, self.far, to, kind=kind, patience_s=None)
        assert time.monotonic() - start < scaled(0.5)
        return caught.value.errno or 0


@network
def test_nothing_is_reached_that_is_not_allowed_and_refused_at_once() -> None:
    world = World()
    assert reach(world.box, world.far, (FAR, 80)) == BOX
    world.allow()
    assert world.refused((FAR, 80)) == errno.ECONNREFUSED
    assert world.refused((FAR6, 80)) == errno.ECONNREFUSED
    assert world.refused((FAR, 80), kind="udp") == errno.EPERM
    assert world.refused((FAR6, 80), kind="udp") == errno.EPERM
    with pytest.raises(PermissionError):
        pings(world.box, FAR)
    with pytest.raises(PermissionError):
        pings(world.box, FAR6)


@network
def test_the_sandbox_reaches_itself() -> None:
    world = World()
    world.allow()
    for kind in ("tcp", "udp"):
        for own in ("127.0.0.1", "::1", BOX, BOX6):
            assert reach(world.box, world.box, (own, 80), kind=kind) == own
    world.allow(without='oifname "lo"')
    with pytest.raises(PermissionError):
        reach(world.box, world.box, ("127.0.0.1", 80), kind="udp")


@network
def test_a_network_is_reached_by_every_protocol() -> None:
    world = World()
    world.allow("192.0.2.0/29", "2001:db8::/126")
    for kind in ("tcp", "udp"):
        assert reach(world.box, world.far, (FAR, 80), kind=kind) == BOX
        assert reach(world.box, world.far, (FAR6, 80), kind=kind) == BOX6
    assert pings(world.box, FAR)
    assert pings(world.box, FAR6)
    assert world.refused((OTHER, 80)) == errno.ECONNREFUSED, "just beyond the network"
    assert world.refused((OTHER6, 80)) == errno.ECONNREFUSED


@network
def test_a_port_is_reached_by_its_protocol() -> None:
    world = World()
    world.allow(f"{FAR}:80", f"[{FAR6}]:80", f"{OTHER}:53/udp", f"[{OTHER6}]:53/udp")
    assert reach(world.box, world.far, (FAR, 80)) == BOX
    assert reach(world.box, world.far, (FAR6, 80)) == BOX6
    assert reach(world.box, world.far, (OTHER, 53), kind="udp") == BOX
    assert reach(world.box, world.far, (OTHER6, 53), kind="udp") == BOX6
    for to in ((FAR, 81), (FAR6, 81), (OTHER, 80), (OTHER6, 80), (OTHER, 53), (OTHER6, 53)):
        assert world.refused(to), to
    for to in ((FAR, 80), (FAR6, 80), (FAR, 53), (FAR6, 53), (OTHER, 54)):
        assert world.refused(to, kind="udp") == errno.EPERM, to
    with pytest.raises(PermissionError):
        pings(world.box, FAR)


@network
def test_a_port_may_be_of_every_address_and_ports_a_range() -> None:
    world = World()
    world.allow(":443", ":8000-8010/udp")
    for to in (FAR, OTHER):
        assert reach(world.box, world.far, (to, 443)) == BOX
        assert reach(world.box, world.far, (to, 8010), kind="udp") == BOX
    assert reach(world.box, world.far, (FAR6, 443)) == BOX6
    assert reach(world.box, world.far, (OTHER6, 8000), kind="udp") == BOX6
    for port in (7999, 8011):
        assert world.refused((FAR, port), kind="udp") == errno.EPERM
    assert world.refused((FAR, 444)) == errno.ECONNREFUSED


@network
def test_who_connects_to_the_sandbox_gets_answers() -> None:
    world = World()
    world.allow()
    for kind in ("tcp", "udp"):
        assert reach(world.far, world.box, (BOX, 80), kind=kind) == FAR
        assert reach(world.far, world.box, (BOX6, 80), kind=kind) in (FAR6, OTHER6)
    assert pings(world.far, BOX)
    assert pings(world.far, BOX6)
    world.allow(without="ct direction reply")
    assert never(world.far, world.box, (BOX, 80))


@network
def test_ipv6_needs_its_neighbours() -> None:
    """The very first packet, with no neighbour known yet."""
    world = World()
    world.allow(f"[{FAR6}]:80", without="nd-neighbor")
    world.box.ip("neigh flush dev eth0")
    assert never(world.box, world.far, (FAR6, 80))
    world.allow(f"[{FAR6}]:80")
    world.box.ip("neigh flush dev eth0")
    assert reach(world.box, world.far, (FAR6, 80)) == BOX6


@network
def test_a_link_may_ask_for_routers_and_tell_its_groups() -> None:
    """A bridge that snoops sends on to whom it heard of only."""
    world = World()
    world.box.sysctl("ipv6/conf/eth0/router_solicitation_delay", 0)
    again = ("link set eth0 down", "link set eth0 up")
    for kind, words in ((133, "nd-router-solicit"), (143, "mld2-listener-report")):
        name = f"Icmp6OutType{kind}"
        world.allow(without=words)
        before = world.box.counted(name)
        world.box.ip(*again)
        time.sleep(scaled(0.3))
        assert world.box.counted(name) == before, words
        world.allow()
        world.box.ip(*again)
        poll_until(lambda: world.box.counted(name) > before, what=words)  # noqa: B023


@network
def test_no_connection_outlives_its_leave() -> None:
    world = World()
    world.allow(f"{FAR}:80")
    with world.far.socket(socket.AF_INET, socket.SOCK_STREAM) as server, \
         world.box.socket(socket.AF_INET, socket.SOCK_STREAM) as client:  # fmt: skip
        server.bind((FAR, 80))
        server.listen()
        client.connect((FAR, 80))
        connection, _ = server.accept()
        with connection:
            connection.settimeout(scaled(0.3))
            client.sendall(b"one")
            assert connection.recv(9) == b"one"
            world.allow(f"{FAR}:80", f"{OTHER}:80")
            client.sendall(b"two")
            assert connection.recv(9) == b"two"
            world.allow(f"{OTHER}:80")
            client.sendall(b"three")
            with pytest.raises(TimeoutError):
                connection.recv(9)
            with pytest.raises(ConnectionError):
                client.recv(9)


@network
def test_what_is_passed_on_is_held_to_the_same() -> None:
    """Of a sandbox in the sandbox, say."""
    world = World()
    inner = Net()
    world.box.ip(f"link add in0 type veth peer name eth0 netns {inner.path}",
                 "addr add 10.88.0.1/24 dev in0", "link set in0 up")  # fmt: skip
    inner.ip("addr add 10.88.0.2/24 dev eth0", "link set eth0 up",
             "route add default via 10.88.0.1")  # fmt: skip
    world.far.ip(f"route add 10.88.0.0/24 via {BOX}")
    world.box.sysctl("ipv4/ip_forward", 1)
    world.allow(f"{FAR}:80")
    assert reach(inner, world.far, (FAR, 80)) == "10.88.0.2"
    with pytest.raises(OSError, match="No route to host"):
        reach(inner, world.far, (FAR, 81))
    with pytest.raises(OSError, match="No route to host"):
        reach(world.far, inner, ("10.88.0.2", 80))
    world.allow("0.0.0.0/0")
    assert reach(world.far, inner, ("10.88.0.2", 80)) == FAR


@pytest.mark.nft
@network
def test_who_has_the_privilege_inside_cannot_change_it() -> None:
    world = World()
    world.allow()
    world.box.run("nft", "flush", "ruleset")
    for command in ("delete table inet nsbe", "flush chain inet nsbe output",
                    "insert rule inet nsbe output accept"):  # fmt: skip
        with pytest.raises(AssertionError, match="Operation not permitted"):
            world.box.run("nft", command)
    world.box.run("nft", "add table inet mine; add chain inet mine output "
                  "{ type filter hook output priority -500; policy accept; }; "
                  "add rule inet mine output accept")  # fmt: skip
    assert world.refused((FAR, 80)) == errno.ECONNREFUSED
    assert tables(world.box) == ["nsbe", "mine"]


@network
def test_many_entries() -> None:
    world = World()
    world.allow(*(f"198.51.{i >> 8}.{i & 255}:443" for i in range(700)), f"{FAR}:80")
    assert reach(world.box, world.far, (FAR, 80)) == BOX
    assert world.refused((OTHER, 80)) == errno.ECONNREFUSED


@pytest.mark.userns
@pytest.mark.kernel("user")
def test_in_a_user_namespace() -> None:
    apart(test_a_port_is_reached_by_its_protocol, user=True)
