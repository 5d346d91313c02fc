# SPDX-License-Identifier: Apache-2.0
"""Who reaches whom: echo requests from within network namespaces, sent by the caller.

A raw socket is opened in each namespace; nothing is run there, and nothing has to be installed.
Kernel: icmp(7), raw(7).
"""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsbox.netlink import open_inside
from nsbox.steps import Netlink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from ipaddress import IPv4Address

    from nsbox.namespace import Namespace

_SOL_RAW, _ICMP_FILTER = 255, 1
_REQUEST, _REPLY = 8, 0
_PACE_S = 0.05  # then the next are sent, though answers to the last are missing
_TOKEN = 8
_MOST_AT_ONCE = 64


@dataclass(frozen=True)
class PingMatrix:
    """Round trips, in seconds, of one echo request each way: ``matrix["h1", "h2"]``.

    Attributes:
        names: who took part.
        times: (from, to) -> seconds, None for no answer.
    """

    names: tuple[str, ...]
    times: Mapping[tuple[str, str], float | None]

    def __getitem__(self, pair: tuple[str, str]) -> float | None:
        return self.times[pair]

    @property
    def lost(self) -> list[tuple[str, str]]:
        """Pairs without an answer."""
        return [pair for pair, seconds in self.times.items() if seconds is None]

    @property
    def ok(self) -> bool:
        """Everybody reaches everybody."""
        return not self.lost

    def __str__(self) -> str:
        """A table in milliseconds: from the row's, to the column's."""
        rows = [["ms", *self.names]]
        rows += [[a, *(self._cell(a, b) for b in self.names)] for a in self.names]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]),
                       *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )  # fmt: skip

    def _cell(self, a: str, b: str) -> str:
        if a == b:
            return "-"
        seconds = self.times.get((a, b))
        return "lost" if seconds is None else f"{seconds * 1000:.2f}"


@dataclass
class _Source:
    """Who sends: a socket, and what it waits for: sequence number -> (whom, when sent)."""

    name: str
    sock: socket.socket
    ident: int
    token: bytes
    waits: dict[int, tuple[str, float]] = field(default_factory=dict)

    def send(self, number: int, whom: str, address: IPv4Address) -> None:
        packet = _echo(self.ident, number, self.token)
        self.waits[number] = (whom, time.monotonic())
        try:
            self.sock.sendto(packet, (str(address), 0))
        except OSError:  # no way there: as good as lost
            del self.waits[number]

    def answers(self) -> list[tuple[str, float]]:
        """Those that have come: (whom, seconds). A bounded number, for who is asked could send
        without end."""
        found: list[tuple[str, float]] = []
        for _ in range(_MOST_AT_ONCE):
            try:
                packet = self.sock.recv(256)
            except BlockingIOError:
                break
            except OSError:  # told by another host that there is no way
                continue
            now = time.monotonic()
            data = packet[(packet[0] & 15) * 4 :] if packet else b""
            if len(data) < 8 + _TOKEN or data[0] != _REPLY or data[8 : 8 + _TOKEN] != self.token:
                continue
            ident, number = struct.unpack_from("!HH", data, 4)
            if ident == self.ident and number in self.waits:
                whom, sent = self.waits.pop(number)
                found.append((whom, now - sent))
        return found


def _echo(ident: int, number: int, data: bytes) -> bytes:
    head = struct.pack("!BBHHH", _REQUEST, 0, 0, ident, number)
    total = sum(struct.unpack(f"!{len(head + data) // 2}H", head + data))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", _REQUEST, 0, checksum, ident, number) + data


def ping_all(
    sources: Mapping[str, Namespace],
    targets: Mapping[str, Mapping[str, IPv4Address]],
    timeout: float = 1.0,
) -> PingMatrix:
    """One echo request from each to each other.

    Args:
        sources: name -> network namespace.
        targets: name -> the addresses that it knows the others by.
        timeout: seconds that an answer may take.

    Raises:
        SetupError: the caller may not enter a namespace.
    """
    names = tuple(sources)
    times: dict[tuple[str, str], float | None] = {
        (a, b): None for a in names for b in names if a != b
    }
    opened: list[_Source] = []
    try:
        for name, namespace in sources.items():
            opened.append(_open(name, namespace))
        for step in range(1, len(names)):  # one for each at a time, lest they fill a slow link
            for i, source in enumerate(opened):
                whom = names[(i + step) % len(names)]
                if address := targets[source.name].get(whom):
                    source.send(step, whom, address)
            _collect(opened, times, min(_PACE_S, timeout))
        _collect(opened, times, timeout)
    finally:
        for source in opened:
            source.sock.close()
    return PingMatrix(names, times)


def _open(name: str, namespace: Namespace) -> _Source:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP,
                         fileno=open_inside(namespace, Netlink.ICMP))  # fmt: skip
    sock.setblocking(False)
    sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << _REPLY) & 0xFFFFFFFF))
    return _Source(name, sock, secrets.randbits(16), secrets.token_bytes(_TOKEN))


def _collect(
    sources: Sequence[_Source], times: dict[tuple[str, str], float | None], seconds: float
) -> None:
    """Until nobody waits any more, or so many seconds have passed."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    by_fd = {source.sock.fileno(): source for source in sources}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while any(source.waits for source in sources):
        left = deadline - time.monotonic()
        if left <= 0:
            return
        for fd, _ in poll.poll(left * 1000):
            for whom, took in by_fd[fd].answers():
                times[by_fd[fd].name, whom] = took
