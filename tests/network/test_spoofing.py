# SPDX-License-Identifier: Apache-2.0
"""Who has CAP_NET_ADMIN and CAP_NET_RAW in its own network is still nobody else on the bridge."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from network import frames
from network.world import NEVER_S, SUBNET, SUBNET6, elsewhere, idle, output, pings, world
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

POWERS = {"profile": "standard", "user": 0, "capabilities": ["NET_ADMIN", "NET_RAW"]}

#: An ARP reply that nobody asked for: "the address is at my link". For longer than the second in
#: which a neighbour that has just been heard is not heard again (locktime of arp(7)).
_ARP = """
import socket, sys, time
address, link = sys.argv[1], socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
link.bind(("eth0", 0))
mac = bytes.fromhex(open("/sys/class/net/eth0/address").read().strip().replace(":", "")) \
    if len(sys.argv) < 3 else bytes.fromhex(sys.argv[2])
own, everybody = socket.inet_aton(address), b"\\xff" * 6
arp = bytes.fromhex("0001080006040002") + mac + own + everybody + own
for _ in range(15):
    link.send(everybody + mac + b"\\x08\\x06" + arp)
    time.sleep(0.1)
"""


def _tell(box: nsbox.Container, *words: str) -> None:
    mac = box._place().mac.replace(":", "")
    box.exec(["python3", "-c", _ARP, *words, *([mac] if len(words) == 1 else [])], check=True)


def _knows(box: nsbox.Container, address: object) -> str:
    return output(box, "ip", "neighbour", "show", str(address))


@pytest.mark.kernel
@elsewhere
def test_a_neighbours_address_brings_nothing() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        idle("a", net, **POWERS) as a,
        idle("b", net) as b,
        idle("c", net) as c,
    ):
        assert pings(a, c.ip) and pings(b, c.ip) and pings(a, c.ip6)  # noqa: PT018
        mac_of_b = _knows(c, b.ip)
        a.exec(["ip", "address", "add", f"{b.ip}/24", "dev", "eth0"], check=True)
        a.exec(["ip", "address", "add", f"{b.ip6}/64", "dev", "eth0", "nodad"], check=True)
        for source, to in ((b.ip, c.ip), (b.ip6, c.ip6), (b.ip, net.gateway)):
            said = a.exec(["ping", "-c1", "-W1", "-I", str(source), str(to)], capture_output=True)
            assert said.returncode == 1, (source, to, said.stdout)
        assert pings(b, c.ip)
        assert pings(a, c.ip), "by its own address it goes on"
        assert _knows(c, b.ip) == mac_of_b or b._place().mac in _knows(c, b.ip)


@elsewhere
def test_nobody_is_told_that_an_address_is_elsewhere() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("a", net, **POWERS) as a,
        idle("b", net) as b,
        idle("c", net) as c,
    ):
        assert pings(c, b.ip)
        for address in (b.ip, net.gateway):
            _tell(a, str(address))
        assert pings(c, b.ip)
        assert b._place().mac in _knows(c, b.ip)
        assert a._place().mac not in world.host.run("ip", "neighbour")
        # what says true is heard: of its own address
        _tell(a, str(a.ip))


@elsewhere
def test_another_hardware_address_brings_nothing() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("a", net, **POWERS) as a,
        idle("b", net) as b,
    ):
        assert pings(a, b.ip)
        a.exec(["ip", "link", "set", "eth0", "address", b._place().mac], check=True)
        assert not pings(a, net.gateway, wait_s=1)
        a.exec(["ip", "link", "set", "eth0", "address", a._place().mac], check=True)
        assert pings(a, b.ip)


_SEND = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
link.bind(("eth0", 0))
for line in sys.stdin:
    link.send(bytes.fromhex(line))
"""
#: All frames that come, until one that ends so.
_HEAR = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 3))
link.settimeout(float(sys.argv[1]))
print("up", flush=True)
heard = b""
while not heard.endswith(b"end"):
    heard = link.recv(2000)
    print(heard.hex(), flush=True)
"""


def _send(box: nsbox.Container, *made: bytes) -> None:
    lines = "\n".join(frame.hex() for frame in made)
    box.exec(["python3", "-c", _SEND], input=lines, text=True, check=True)


def _heard(source: nsbox.Container, target: nsbox.Container, made: dict[str, bytes]) -> set[str]:
    """Which of the frames reach *target*."""
    command = ["python3", "-c", _HEAR, str(scaled(5))]
    with target.popen(command, stdout=nsbox.PIPE, stderr=nsbox.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        _send(source, *made.values())
        came = {bytes.fromhex(line) for line in process.stdout.read().split()}
    return {name for name, frame in made.items() if frames.untagged(frame) in came}


def _peer(box: nsbox.Container, number: int) -> frames.Peer:
    mac = bytes.fromhex(box._place().mac.replace(":", ""))
    return frames.Peer(
        mac,
        IPv4Address(f"10.77.0.{number}"),
        nsbox.netspec.parse_subnet(SUBNET6, "", 6).network_address + number,
    )


@contextlib.contextmanager
def _three(net: nsbox.Bridge) -> Iterator[tuple[nsbox.Container, dict[str, tuple[bool, bytes]]]]:
    """One that lies, one that hears it; the third is whom the lies are about.

    Without br_netfilter, by which the rules about packets would drop some of them.
    """
    for version in ("", "6"):
        with contextlib.suppress(FileNotFoundError):
            world.host.setting(f"bridge/bridge-nf-call-ip{version}tables", 0)
    with idle("a", net, **POWERS) as a, idle("b", net) as b, idle("c", net, **POWERS) as c:
        yield a, c, frames.frames(_peer(a, 2), _peer(b, 3))


@pytest.mark.kernel
@elsewhere
def test_of_all_that_a_port_says_what_is_true_goes_on() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net, _three(net) as (a, c, said):
        assert [str(a.ip), str(a.ip6)] == ["10.77.0.2", "fd00:77::2"]
        heard = _heard(a, c, {name: frame for name, (_, frame) in said.items()})
    assert sorted(heard) == sorted(name for name, (true, _) in said.items() if true)


@elsewhere
def test_where_nobody_has_an_address_all_of_it_does() -> None:
    """The twin: it is the table that drops it. And another network's table is not about it."""
    with nsbox.Network(subnet="10.78.0.0/24"), nsbox.Bridge("nsb0") as net:
        with _three(net) as (a, c, said):
            heard = _heard(a, c, {name: frame for name, (_, frame) in said.items()})
    assert sorted(heard) == sorted(said)


@pytest.mark.kernel
@elsewhere
def test_two_networks_do_not_mind_each_other() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as one,
        nsbox.Network("nsb1", subnet="10.78.0.0/24") as two,
        idle("a", one) as a, idle("b", one) as b, idle("c", two) as c, idle("d", two) as d,
    ):  # fmt: skip
        assert pings(a, b.ip) and pings(c, d.ip)  # noqa: PT018
        assert pings(a, one.gateway) and pings(c, two.gateway)  # noqa: PT018


@pytest.mark.kernel
@pytest.mark.parametrize("lies", [True, False])
@elsewhere
def test_what_bridges_pass_to_their_host_alone_does_not_reach_it(lies: bool) -> None:
    """Frames to 01:80:c2:00:00:0X come to the host from the port, not from the bridge, and so past
    every rule about the bridge. The twin is let in: it is the rule that drops them."""
    net = nsbox.Network("nsb0", subnet=SUBNET) if lies else nsbox.Bridge("nsb0")
    with net, idle("a", net, **POWERS) as a, world.host.inside():
        if not lies:
            world.host.ip("addr add 10.77.0.1/24 dev nsb0")
        own = _peer(a, 2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("", frames.PORT))
            server.settimeout(NEVER_S if lies else scaled(5))
            for last in (2, 3, 14, 15):
                for source in (own.ip, own.ip + 1):
                    packet = frames.ip4(source, IPv4Address("10.77.0.1"), b"lie")
                    target = bytes.fromhex("0180c20000") + bytes((last,))
                    _send(a, target + own.mac + frames.IP4 + packet)
            if lies:
                with pytest.raises(TimeoutError):
                    server.recv(9)
            else:
                assert server.recv(9) == b"lie"


@elsewhere
def test_nobody_becomes_its_neighbours_router() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net:
        with idle("a", net, **POWERS) as a, idle("c", net) as c:
            before = output(c, "ip", "-6", "route")
            own = _peer(a, 2)
            advert = frames.icmp6(own.link_local, frames.NODES, frames.router(own.mac))
            _send(a, frames.BROADCAST + own.mac + frames.IP6 + advert)
            assert pings(a, c.ip6), "what came before has been seen"
            assert output(c, "ip", "-6", "route") == before


@elsewhere
def test_links_of_others_on_the_bridge_are_let_be() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("a", net) as a:
        with (
            nsbox.Namespace.create("net") as space,
            nsbox.Veth.create("own0", peer="eth0", peer_netns=space, peer_address="10.77.0.200/24"),
        ):
            world.host.ip("link set own0 master nsb0")
            assert space.run(["ping", "-c1", "-W3", str(a.ip)], capture_output=True).ok
        assert socket.if_nametoindex("nsb0")
