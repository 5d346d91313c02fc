# SPDX-License-Identifier: Apache-2.0
"""Who listens where in a network namespace: why a port could not be had.

Kernel: /proc/PID/net/tcp and its kin, proc_net(5); sockets are matched by inode number.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nsbox import registry, shared, syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsbox.netspec import Address

_TAIL = 4096
_REFUSED = re.compile(r"address already in use|EADDRINUSE", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_ALL = IPv4Address(0)
#: Of tcp and udp: the state, in hexadecimal, of a socket that holds its port for others.
_HOLDS = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}


class Listener(NamedTuple):
    """A bound port: *protocol* is ``"tcp"``, ``"tcp6"``, ``"udp"`` or ``"udp6"``."""

    protocol: str
    port: int
    inode: int


def listeners(pid: int) -> list[Listener]:
    """Sockets that hold a port in the network namespace of process *pid*."""
    found = []
    for protocol, holds in _HOLDS.items():
        try:
            lines = Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]
        except OSError:  # it has ended, or there is no IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == holds:
                port = int(fields[1].rpartition(":")[2], 16)
                found.append(Listener(protocol, port, int(fields[9])))
    return found


def program_with(kind: int, address: Address | None, port: int) -> int:
    """Which other process with networks of nsbox's has the port, of sockets of *kind*, at *address*
    where this thread is; None for all. A port that is bound, and not listened at, is in no list of
    the kernel's; so its sockets are looked at, as ptrace(2) lets it. 0: it is none of them, or
    cannot be told."""
    for pid in {owner.pid for owner in registry.owners()} - {os.getpid()}:
        with suppress(OSError):
            pidfd = syscalls.pidfd_open(pid)
            try:
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    with suppress(OSError):  # it was closed meanwhile
                        # No copy of a file's: to close it would end this process's own locks.
                        if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
                            continue
                        if _has_port(syscalls.pidfd_getfd(pidfd, int(fd)), kind, address, port):
                            return pid
            finally:
                os.close(pidfd)
    return 0


def _has_port(taken: int, kind: int, address: Address | None, port: int) -> bool:
    """Of this socket, which it closes."""
    try:
        one = socket.socket(fileno=taken)
    except OSError:  # of a family that says nothing of itself
        os.close(taken)
        raise
    with one:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != kind:
            return False
        where, bound, *_ = one.getsockname()
        if bound != port or shared.network(taken) != shared.network():
            return False
        there, wanted = ip_address(where), address or _ALL
        either = there.is_unspecified or wanted.is_unspecified
        return there.version == wanted.version and (either or there == wanted)


def _mount_namespace(pid: int | str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0


def _sockets(pid: str) -> set[int]:
    found = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    except OSError:
        pass
    return found


def _holders(members: Mapping[str, int]) -> dict[int, str]:
    """Inode of a socket -> who has it open: a container's processes share a mount namespace."""
    containers = {_mount_namespace(pid): name for name, pid in members.items()}
    containers.pop(0, None)
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        name = containers.get(_mount_namespace(pid))
        if name is not None:
            found.update(dict.fromkeys(_sockets(pid), f"container {name!r} (process {pid})"))
    return found


def explain_conflict(log: str, pause: int, members: Mapping[str, int]) -> str:
    """Who holds the port that a container did not get, or "" if that is not what its log says.

    Args:
        log: what the container wrote before it failed.
        pause: a process in the pod's network namespace.
        members: name -> PID 1 of each container of the pod that runs.
    """
    tail = log[-_TAIL:]
    if not _REFUSED.search(tail):
        return ""
    held = listeners(pause)
    named = {int(number) for number in _NUMBER.findall(tail) if len(number) <= 5}
    wanted = [listener for listener in held if listener.port in named] or held
    who = _holders(members)
    said = {
        f"port {one.port} ({one.protocol}) is held by {who.get(one.inode, 'a process outside')}"
        for one in wanted
    }
    if not said:
        return ""
    return f"{'; '.join(sorted(said))}; the containers of a pod share one network"
