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
    held: list[int] = []
    join, fd = namespace.entrance()
    descriptors = {Slot("stdio", n): dev_null() for n in range(3)} | {JOIN: fd}
    helper = spawn(compile_netlink(join, protocol), descriptors,
                   connect=lambda pid, sockets: held.append(sockets.pop(protocol)))  # fmt: skip
    helper.close()
    return held[0]


def rtnl(namespace: Namespace | None = None) -> Rtnl:
    """rtnetlink in *namespace*, or in the calling thread's own."""
    return Rtnl.here() if namespace is None else Rtnl(open_inside(namespace, Netlink.ROUTE))
