# SPDX-License-Identifier: Apache-2.0
"""A client that keeps asking by one UDP socket reaches whoever has the published port now."""

from __future__ import annotations

import ipaddress
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from network.userworld import rootless
from network.world import (
    GATEWAY,
    HOST,
    HOST6,
    OUTSIDE,
    SUBNET,
    SUBNET6,
    Net,
    elsewhere,
    idle,
    server,
    world,
)
from support import poll_until, scaled

import nsbox
from nsbox import conntrack, later, nft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_S = 3.0


@contextmanager
def client(where: Net, to: str, port: int = 53) -> Iterator[Callable[[], str]]:
    """One socket, and so one flow: what is answered to its next question, or ""."""
    with where.inside():
        made = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)

    def ask() -> str:
        try:
            made.send(b"who")
            return made.recv(99).decode().partition(" ")[0]
        except OSError:
            return ""

    with made:
        made.connect((to, port))
        made.settimeout(scaled(0.1))
        yield ask


def comes(ask: Callable[[], str], answer: str) -> None:
    poll_until(lambda: ask() == answer, PATIENCE_S, every_s=0.05, what=f"{answer} answers")


@pytest.mark.kernel
@elsewhere
def test_a_client_reaches_the_container_that_replaced_another() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        client(world.outside, HOST) as outside,
        client(world.host, "127.0.0.1") as host,
        client(world.outside, HOST6) as six,
    ):
        for name, address in (("one", None), ("two", None), ("three", "10.77.0.9")):
            with server(name, net, 53, "udp", address=address, publish="53:53/udp"):
                comes(outside, name)
                comes(host, name)
            with server(name, net, 53, "udp", at="::", publish="[::]:53:53/udp"):
                comes(six, name)


@elsewhere
def test_a_client_that_asked_before_the_port_was_published_is_answered() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        with client(world.outside, HOST) as one, client(world.host, HOST, 60) as other:
            assert one() == other() == ""
            with server("dns", net, 53, "udp", publish=[f"{HOST}:53:53/udp", "60-61:53-54/udp"]):
                comes(one, "dns")
                comes(other, "dns")


@elsewhere
def test_who_has_the_address_next_is_not_asked_by_clients_of_a_port_that_is_no_more() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, client(world.outside, HOST) as ask:
        with server("dns", net, 53, "udp", address="10.77.0.9", publish="53:53/udp"):
            comes(ask, "dns")
        assert later.settle(scaled(5))
        with server("stranger", net, 53, "udp", address="10.77.0.9"):
            assert [ask() for _ in range(3)] == [""] * 3
        with server("dns", net, 53, "udp", address="10.77.0.9", publish="53:53/udp"):
            comes(ask, "dns")


@elsewhere
def test_no_other_flow_is_forgotten() -> None:
    """The host's own question to a name server outside, and that to the sandbox by its address."""
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        world.outside.serves(53, "udp"),
        client(world.host, OUTSIDE) as ask,
        nft.open_socket() as sock,
    ):
        assert ask() == "it"
        with server("dns", net, 53, "udp", publish="53:53/udp") as dns:
            assert world.host.asks(dns.ip, 53, "udp") == f"dns {GATEWAY}"
        assert later.settle(scaled(5))
        asked = {one.asked[0] for one in conntrack.flows(sock, 4, 53)}
        assert asked == {ipaddress.ip_address(OUTSIDE), dns.ip}


@elsewhere
def test_a_kernel_without_the_list_of_connections_publishes_all_the_same() -> None:
    conntrack._SUBSYSTEM = 99 << 8
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("dns", net, 53, "udp", publish="53:53/udp"),
    ):
        assert world.outside.asks(HOST, 53, "udp") == f"dns {OUTSIDE}"


@elsewhere
def test_closing_does_not_wait_for_it() -> None:
    release, done = conntrack.release, []

    def slowly(*args: Any) -> None:
        time.sleep(1)
        done.append(release(*args))

    conntrack.release = slowly
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("a", net, publish="53:53/udp"):
        begin = time.monotonic()
        net.leases[0].close()
        assert time.monotonic() - begin < 0.5
        assert later.settle(scaled(5))
        assert done


@pytest.mark.kernel("user")
@rootless()
def test_ordinary_users_reach_who_replaced_another_by_the_same_socket() -> None:
    serve = """
import socket, sys
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.bind(("", 80))
while True:
    _, who = link.recvfrom(9)
    link.sendto(sys.argv[1].encode(), who)
"""
    keep_asking = """
import socket, sys, time
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.connect((sys.argv[1], 8080))
link.settimeout(0.1)
while True:
    try:
        link.send(b"who")
        print(link.recv(99).decode(), flush=True)
    except OSError:
        pass
    time.sleep(0.05)
"""
    with nsbox.Network(nat=False) as net:
        client = ["python3", "-c", keep_asking, str(net.gateway)]
        with nsbox.Container(client, net=net) as b:
            for name in ("one", "two", "three"):
                command = ["python3", "-c", serve, name]
                with nsbox.Container(command, net=net, publish="8080:80/udp"):
                    poll_until(lambda name=name: name in b.logs(), 3, what=name)


@elsewhere
def test_a_list_that_cannot_be_had_keeps_no_port_from_being_published() -> None:
    import errno
    import os

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    whole, conntrack.redirect = conntrack.redirect, fails
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        for name in ("one", "two"):
            with (
                server(name, net, 53, "udp", publish="53:53/udp") as box,
                client(world.outside, HOST) as ask,
            ):
                comes(ask, name)
                assert box.ports
    conntrack.redirect = whole
