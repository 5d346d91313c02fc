# SPDX-License-Identifier: Apache-2.0
"""What the tests of networks of hosts share: traffic of this process's, from within the hosts.

Sockets are opened inside as nsbox opens its own, so nothing has to be started there, which on an
emulated kernel takes longer than the test.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from support import scaled

from nsbox import netlink
from nsbox.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsbox.namespace import Namespace
    from nsbox.steps import Netlink

#: Of a TCP segment of 1448 bytes on the wire, which is what a rate counts.
WIRE = 1514 / 1448


class Inet(enum.IntEnum):
    """As nsbox.steps.Netlink: family, type and protocol."""

    TCP = 0x020106
    UDP = 0x020211


def open_socket(namespace: Namespace, kind: Inet) -> socket.socket:
    """One of a network namespace."""
    fd = netlink.open_inside(namespace, cast("Netlink", kind))
    made = socket.socket(fileno=fd)
    made.settimeout(scaled(20))
    return made


@contextlib.contextmanager
def pair(**link: Any) -> Iterator[Topology]:
    """A running topology of two hosts, h1 and h2, and the link between them."""
    topology = Topology()
    topology.link(topology.host("h1"), topology.host("h2"), **link)
    with topology:
        yield topology


class Received(NamedTuple):
    """What came: bits, and seconds from the first to the last."""

    bits: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.bits / self.seconds


def tcp(source: Any, sink: Any, seconds: float, port: int = 5000) -> Received:
    """Bits of payload per second that get from one host to another in so many seconds."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(open_socket(sink.network, Inet.TCP))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen(1)
        sender = stack.enter_context(open_socket(source.network, Inet.TCP))
        sender.connect((str(sink.ip), port))
        taken, _ = listener.accept()
        stack.enter_context(taken)
        taken.settimeout(scaled(20))
        thread = threading.Thread(target=_send, args=(sender, seconds), daemon=True)
        thread.start()
        received = _receive(taken, seconds)
        taken.close()  # the sender may be stuck on what nobody reads
        thread.join()
    return received


def tcp_wire_rate(source: Any, sink: Any, seconds: float, wanted: float) -> float:
    """Bits a second on the wire. Where the machine was too busy for *wanted*, it has two more
    chances; what is more than wanted is never the machine's doing."""
    for _ in range(3):
        found = tcp(source, sink, seconds).rate * WIRE
        if found >= 0.92 * wanted:
            break
    return found


def _send(sender: socket.socket, seconds: float) -> None:
    data, end = bytes(16384), time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            sender.send(data)
        sender.shutdown(socket.SHUT_WR)


def _receive(taken: socket.socket, seconds: float) -> Received:
    """From the first bytes on; the beginning, when TCP feels its way, is left out."""
    taken.recv(65536)
    start = time.monotonic()
    total, first, last = 0, start, start
    while last < start + seconds:
        got = len(taken.recv(65536))
        last = time.monotonic()
        if not got:
            break
        if last < start + seconds / 5:
            first = last
        else:
            total += got
    return Received(total * 8, last - first)


def drain(receiver: socket.socket) -> int:
    """How many datagrams wait."""
    receiver.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            receiver.recv(65536)
            count += 1
    return count
