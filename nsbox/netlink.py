# SPDX-License-Identifier: Apache-2.0
"""Netlink sockets inside other network namespaces, opened there by a process that then ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox.compile import compile_netlink
from nsbox.process import dev_null, spawn
from nsbox.rtnl import Rtnl
from nsbox.steps import JOIN, Netlink, Slot

if TYPE_CHECKING:
    from nsbox.namespace import Namespace


def open_inside(namespace: Namespace, protocol: Netlink) -> int:
    """A socket of *protocol* in a network namespace; the caller's to close.

    Raises:
        SetupError: the caller may not enter it.
    """
    taker = _Taker(protocol)
    join, fd = namespace.entrance()
    descriptors = {Slot("stdio", n): dev_null() for n in range(3)} | {JOIN: fd}
    spawn(compile_netlink(join, protocol), descriptors, lease=lambda: taker).close()
    return taker.fd


class _Taker:
    """The lease of a helper that is only there for its socket."""

    def __init__(self, protocol: Netlink) -> None:
        self._protocol = protocol
        self.fd = -1

    def connect(self, pid: int, sockets: dict[Netlink, int]) -> None:
        self.fd = sockets.pop(self._protocol)

    def close(self) -> None:
        """The socket is the caller's."""


def rtnl(namespace: Namespace | None = None) -> Rtnl:
    """rtnetlink in *namespace*, or in the calling thread's own."""
    return Rtnl.here() if namespace is None else Rtnl(open_inside(namespace, Netlink.ROUTE))
