# SPDX-License-Identifier: Apache-2.0
"""Echo requests: what is taken for an answer, whatever those who are asked send."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox.pings import PingMatrix, _echo, _Source

if TYPE_CHECKING:
    import socket

pytestmark = pytest.mark.leaks_ok("pure")

TOKEN = b"12345678"
IP = bytes([0x45]) + bytes(19)


class _Wire:
    """A socket that has these packets to give; then there are none, or ever the same one."""

    def __init__(self, *packets: bytes, again: bool = False) -> None:
        self.packets, self.again, self.reads, self.sent = list(packets), again, 0, list[bytes]()

    def recv(self, size: int) -> bytes:
        self.reads += 1
        assert self.reads < 10_000, "it is read without end"
        if not self.packets:
            raise BlockingIOError
        return (self.packets[0] if self.again else self.packets.pop(0))[:size]

    def sendto(self, packet: bytes, address: tuple[str, int]) -> None:
        self.sent.append(packet)


def _source(wire: _Wire) -> _Source:
    source = _Source("a", cast("socket.socket", wire), 7, TOKEN)
    source.send(1, "b", ipaddress.IPv4Address("10.0.0.2"))
    return source


def _reply(ident: int = 7, number: int = 1, token: bytes = TOKEN, kind: int = 0) -> bytes:
    return IP + struct.pack("!BBHHH", kind, 0, 0, ident, number) + token


def test_the_answer_is_taken_once() -> None:
    ((whom, seconds),) = _source(_Wire(_reply(), _reply())).answers()
    assert whom == "b"
    assert 0 <= seconds < 5


def test_options_of_ip_are_skipped() -> None:
    packet = bytes([0x46]) + bytes(23) + _reply()[20:]
    assert len(_source(_Wire(packet)).answers()) == 1


@pytest.mark.parametrize(
    "packet",
    [b"", IP, _reply()[:-1], _reply(ident=8), _reply(number=2), _reply(token=b"x" * 8),
     _reply(kind=8), bytes([0x4F]) + _reply()[1:], bytes([0x40]) + _reply()[1:]],
    ids=["empty", "no icmp", "short", "another's", "never sent", "forged", "a request",
         "long header", "no header"],
)  # fmt: skip
def test_nothing_else_is(packet: bytes) -> None:
    source = _source(_Wire(packet))
    assert source.answers() == []
    assert list(source.waits) == [1]


def test_a_flood_does_not_keep_it() -> None:
    wire = _Wire(_reply(token=b"x" * 8), again=True)
    assert _source(wire).answers() == []
    assert wire.reads < 1000


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_any_packets_can_come(packets: list[bytes]) -> None:
    assert _source(_Wire(*packets)).answers() == []


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(min_size=8, max_size=8))
def test_the_checksum_is_right(ident: int, number: int, token: bytes) -> None:
    packet = _echo(ident, number, token)
    total = sum(struct.unpack("!8H", packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


def test_the_table() -> None:
    matrix = PingMatrix(("a", "longer"), {("a", "longer"): 0.01234, ("longer", "a"): None})
    assert str(matrix).splitlines() == [
        "ms         a  longer",
        "a          -   12.34",
        "longer  lost       -",
    ]
    assert matrix["a", "longer"] == 0.01234
    assert matrix.lost == [("longer", "a")]
    assert not matrix.ok
