# SPDX-License-Identifier: Apache-2.0
"""Sockets inside other network namespaces, opened there by a process that then ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox import probe
from nsbox.compile import compile_netlink
from nsbox.process import dev_null
from nsbox.rtnl import Rtnl
from nsbox.slots import JOIN, OWNER, Slot
from nsbox.spawn import spawn
from nsbox.steps import Netlink

if TYPE_CHECKING:
    from nsbox.namespace import Namespace


def open_inside(namespace: Namespace, protocol: Netlink, others: tuple[Namespace, ...] = ()) -> int:
    """A socket of *protocol* in a network namespace; the caller's to close.

    Args:
        others: network namespaces over which it is to have a right as well.

    Raises:
        SetupError: the caller may not enter it.
    """
    taker = _Taker(protocol)
    join, fd = namespace.entrance()
    descriptors = {Slot("stdio", n): dev_null() for n in range(3)} | {JOIN: fd}
    user = None
    if not probe.host().privileged and ("user" not in join or others):
        user = _right_over(namespace, *others)
    try:
        if user is not None:
            join, descriptors[OWNER] = ("net",), user.fileno()
        plan = compile_netlink(join, protocol, owned=user is not None)
        spawn(plan, descriptors, lease=lambda: taker).close()
    finally:
        if user is not None:
            user.close()
    return taker.fd


def _right_over(*namespaces: Namespace) -> Namespace | None:
    """The user namespace, nearest to the first, whose members have all capabilities over all of
    them: each is owned by it, or by one inside of it. The caller's own is none: in that an ordinary
    user has no capability."""
    first, *rest = (_owners(namespace) for namespace in namespaces)
    found = next((one for one in first if all(one in other for other in rest)), None)
    for users in (first, *rest):
        for user in users:
            if user is not found:
                user.close()
    return found


def _owners(namespace: Namespace) -> list[Namespace]:
    """The user namespace that owns it, the one around that, and so on, up to the caller's own."""
    from nsbox.namespace import Namespace as Space

    with Space.current("user") as own:
        found = []
        user = namespace.owner
        while user is not None and user != own:
            found.append(user)
            user = user.parent
        if user is not None:
            user.close()
        return found


class _Taker:
    """The lease of a helper that is only there for its socket."""

    def __init__(self, protocol: Netlink) -> None:
        self._protocol = protocol
        self.fd = -1

    def prepare(self) -> None:
        """It lays no cable."""

    def connect(self, pid: int, sockets: dict[Netlink, int]) -> None:
        self.fd = sockets.pop(self._protocol)

    def close(self) -> None:
        """The socket is the caller's."""


def rtnl(namespace: Namespace | None = None, *others: Namespace) -> Rtnl:
    """rtnetlink in *namespace*, or in the calling thread's own; *others* as ``open_inside``."""
    if namespace is None:
        return Rtnl.here()
    return Rtnl(open_inside(namespace, Netlink.ROUTE, others))
