# SPDX-License-Identifier: Apache-2.0
"""Ports of one network namespace that are served in another one, by processes of nsbox-init.

    host                        router                     sandbox
      client --> listener ===> nsbox-init proxy --> bridge --> service

Who connects is not known behind it: to the service every connection comes from the proxy.
"""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from nsbox import probe
from nsbox.compile import compile_proxy
from nsbox.process import dev_null
from nsbox.slots import JOIN, Slot
from nsbox.spawn import spawn

if TYPE_CHECKING:
    from nsbox.namespace import Namespace
    from nsbox.netspec import Address

_MOST = 24  # ports of one process: a plan passes 32 descriptors
_BACKLOG = 4096  # net.core.somaxconn bounds it
_FIRST = 3
_IPV6_RECVPKTINFO = 49


class Port(NamedTuple):
    """A socket that is bound, and where what comes there goes."""

    listener: socket.socket
    address: Address
    port: int

    def target(self) -> str:
        """struct sockaddr_in or sockaddr_in6, in hexadecimal."""
        family = socket.AF_INET if self.address.version == 4 else socket.AF_INET6
        head = family.to_bytes(2, sys.byteorder) + self.port.to_bytes(2, "big")
        if self.address.version == 4:
            return (head + self.address.packed + bytes(8)).hex()
        return (head + bytes(4) + self.address.packed + bytes(4)).hex()


def serve(ports: list[Port], inside: Namespace | None = None) -> ExitStack:
    """Serve them until the stack is closed, or this process ends.

    Args:
        inside: the network namespace where the addresses are; the caller's when None.

    Raises:
        SetupError: a process could not be started; none is left.
    """
    join, fd = ((), -1) if inside is None else inside.entrance()
    with ExitStack() as undo:
        for at in range(0, len(ports), _MOST):
            some = ports[at : at + _MOST]
            for port in some:
                listen(port.listener)
            descriptors = {Slot("stdio", n): dev_null() for n in range(3)}
            descriptors |= {Slot("pass", _FIRST + i): port.listener.fileno()
                            for i, port in enumerate(some)}  # fmt: skip
            if inside is not None:
                descriptors[JOIN] = fd
            plan = compile_proxy(probe.host(), tuple(port.target() for port in some), join)
            undo.callback(spawn(plan, descriptors).close)
        return undo.pop_all()


def listen(listener: socket.socket) -> None:
    """Datagrams have to be answered from the address that they were sent to."""
    if listener.type == socket.SOCK_STREAM:
        listener.listen(_BACKLOG)
    elif listener.family == socket.AF_INET:
        listener.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_PKTINFO", 8), 1)
    else:
        listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
