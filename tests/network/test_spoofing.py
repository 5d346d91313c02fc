# SPDX-License-Identifier: Apache-2.0
"""Who has CAP_NET_ADMIN and CAP_NET_RAW in its own network is still nobody else on the bridge."""

from __future__ import annotations

import socket

import pytest
from network.world import SUBNET, SUBNET6, elsewhere, idle, output, pings, world

import nsbox

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
    mac = box._lease().mac.replace(":", "")
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
        assert _knows(c, b.ip) == mac_of_b or b._lease().mac in _knows(c, b.ip)


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
        assert b._lease().mac in _knows(c, b.ip)
        assert a._lease().mac not in world.host.run("ip", "neighbour")
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
        a.exec(["ip", "link", "set", "eth0", "address", b._lease().mac], check=True)
        assert not pings(a, net.gateway, wait_s=1)
        a.exec(["ip", "link", "set", "eth0", "address", a._lease().mac], check=True)
        assert pings(a, b.ip)


@elsewhere
def test_frames_that_are_neither_ip_nor_arp_go_no_further() -> None:
    """Tagged ones and others: what the host's bridge would make of them is not to be found out."""
    send = (
        "import socket, sys; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); "
        "s.bind(('eth0', 0)); mac = bytes.fromhex(sys.argv[1]); "
        "s.send(b'\\xff' * 6 + mac + b'\\x88\\xb5' + b'hello' * 12)"
    )
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("a", net, **POWERS) as a,
        idle("b", net, **POWERS) as b,
    ):
        hear = (
            "import socket, sys; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, "
            "socket.htons(0x88b5)); s.bind(('eth0', 0x88b5)); s.settimeout(1); "
            "print('up', flush=True); print(s.recv(100)[14:19])"
        )
        with b.popen(["python3", "-c", hear], stdout=nsbox.PIPE, stderr=nsbox.PIPE, text=True) as p:
            assert p.stdout.readline() == "up\n"
            a.exec(["python3", "-c", send, a._lease().mac.replace(":", "")], check=True)
            assert "hello" not in p.stdout.read()


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
