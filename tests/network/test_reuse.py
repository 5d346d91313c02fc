# SPDX-License-Identifier: Apache-2.0
"""An address that is used again: whoever knew its last owner reaches the next one at once.

A wrong entry of a neighbour lasts for 5 s at least, and then for the time of its questions.
"""

# ruff: noqa: F821  (the body for ordinary users runs after the prelude of userworld.py)

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from network.userworld import rootless
from network.world import (
    GATEWAY,
    GATEWAY6,
    HOST,
    OUTSIDE,
    SUBNET,
    SUBNET6,
    asks,
    elsewhere,
    idle,
    server,
    world,
)
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Callable

AT, AT6 = "10.77.0.9", "fd00:77::9"
SOON_S = 1.9


def check_soon(ask: Callable[[], str], answer: str) -> None:
    begin = time.monotonic()
    assert ask() == answer
    assert time.monotonic() - begin < scaled(SOON_S), answer


@pytest.mark.kernel
@elsewhere
def test_who_knew_an_address_reaches_its_next_owner_soon() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net, idle("b", net) as b:
        for name in ("one", "two", "three", "four"):
            with server(name, net, address=AT, publish="8080:80") as web:
                check_soon(lambda: asks(b, AT, 80), f"{name} {b.ip}")
                check_soon(lambda: world.host.asks(AT, 80), f"{name} {GATEWAY}")
                check_soon(lambda: world.host.asks("127.0.0.1", 8080), f"{name} {GATEWAY}")
                check_soon(lambda: world.outside.asks(HOST, 8080), f"{name} {OUTSIDE}")
                assert web.eth0.mac == "02:00:0a:4d:00:09"
            with server(name, net, at="::", address=AT):
                check_soon(lambda: world.host.asks(AT6, 80), f"{name} {GATEWAY6}")
                check_soon(lambda: asks(b, AT6, 80), f"{name} {b.ip6}")


@pytest.mark.kernel("user")
@rootless()
def test_ordinary_users_reach_the_next_owner_of_an_address_soon() -> None:
    with (
        nsbox.Network(nat=False, subnet="10.77.0.0/24", subnet6="fd00:77::/64") as net,
        nsbox.Container(["sleep", "1000"], net=net) as b,
    ):
        for _ in range(4):
            for six, where in (((), "10.77.0.9"), (("6",), "fd00:77::9")):
                with server(80, *six, net=net, address="10.77.0.9", publish="8080:80") as web:
                    ready(web)
                    begin = time.monotonic()
                    assert ask(b, "tcp", where, 80) == f"{b.ip6 if six else b.ip} x"
                    if not six:
                        assert ask_here("tcp", HOST, 8080) == f"{net.gateway} x"
                    assert time.monotonic() - begin < scaled(1.9)
