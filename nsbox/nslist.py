# SPDX-License-Identifier: Apache-2.0
"""The namespaces of the system as data: what lsns(8) shows, with the same ids.

Seen are those of processes, threads apart, that the caller may look at (ptrace(2) access), those
held by a descriptor of such a process or by a mount (a pin), and those that own one of these.
Kernel: namespaces(7), ioctl_ns(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from nsbox import processes
from nsbox.names import NAMESPACES, NsGet

#: Pid -> the name of the sandbox of this program whose first process that is.
boxes: dict[int, str] = {}

_LINK = re.compile(r"(\w+):\[(\d+)\]")
_LAUNCHER = "nsbox-launcher"


@dataclass(frozen=True)
class NamespaceInfo:
    """What lsns(8) shows of one namespace.

    Attributes:
        kind: ``"mnt"``, ``"net"`` and so on.
        id: the inode number that names it.
        pid: its process with the lowest number; 0 when no process is in it.
        processes: how many are in it, of those that the caller may look at.
        uid: of that process; -1 for none.
        command: of that process; of a long one, the beginning.
        owner: id of the user namespace that owns it; 0 where that is beyond the caller's view.
        parent: id of the one above it (user and pid); 0 as with *owner*.
        pins: the paths on which it is mounted.
        holders: processes that are not in it and hold a descriptor of it.
        box: the container (``"pod/container"`` in a pod) of this program that it belongs to;
            ``"sandbox"`` for one without a name, or of another program; or "".
    """

    kind: str
    id: int
    pid: int
    processes: int
    uid: int
    command: str
    owner: int = 0
    parent: int = 0
    pins: tuple[str, ...] = ()
    holders: tuple[int, ...] = ()
    box: str = ""


@dataclass(frozen=True)
class NamespaceNode:
    """One namespace of the tree, and those that it owns, or, of a user namespace, contains."""

    info: NamespaceInfo
    children: tuple[NamespaceNode, ...] = ()


def namespace_id(pid: int | str, kind: str) -> int:
    """The id of one namespace of a process; raises OSError when it may not be read."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def kind_of(fd: int) -> str:
    """Of the namespace of a descriptor, by NS_GET_NSTYPE. OSError (ENOTTY): it is of none."""
    flag = fcntl.ioctl(fd, NsGet.NSTYPE)
    return next(kind for kind, value in NAMESPACES.items() if value == flag)


def related(fd: int, what: NsGet) -> int | None:
    """A descriptor of its owner or parent; None where there is none in the caller's view."""
    try:
        return fcntl.ioctl(fd, what)
    except OSError as e:
        if e.errno in (errno.EPERM, errno.EINVAL):
            return None
        raise


def owner_uid(fd: int) -> int:
    """Who made a user namespace, as the caller's user namespace names him."""
    return int(struct.unpack("I", fcntl.ioctl(fd, NsGet.OWNER_UID, bytes(4)))[0])


def pids() -> list[int]:
    """Of all processes that /proc shows."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def is_member(pid: int, kind: str, ns_id: int) -> bool:
    try:
        return namespace_id(pid, kind) == ns_id
    except OSError:
        return False


def kill_members(kind: str, ns_id: int, within_s: float = 2.0) -> None:
    """SIGKILL to every process of a namespace, until none is left or *within_s* has passed."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = [pid for pid in pids() if is_member(pid, kind, ns_id)]
        for pid in found:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if is_member(pid, kind, ns_id):  # the number may be another's by now
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except OSError:
                pass
            finally:
                os.close(pidfd)
        if not found:
            return


@dataclass
class _Found:
    """One namespace while it is looked for."""

    members: list[int] = field(default_factory=list)
    holders: list[int] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    owner: int = 0
    parent: int = 0
    uid: int = -1


_All = dict[tuple[str, int], _Found]


def _command(pid: int) -> str:
    try:
        text = processes.cmdline(pid).replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return text or f"[{Path(f'/proc/{pid}/comm').read_text().strip()}]"
    except OSError:
        return ""


def _add_members(every: _All) -> None:
    for pid in pids():
        for kind in NAMESPACES:
            try:
                key = (kind, namespace_id(pid, kind))
            except OSError:
                continue
            every.setdefault(key, _Found()).members.append(pid)


def _add_holders(every: _All) -> dict[tuple[str, int], str]:
    """Those of descriptors, and where each can be opened."""
    where: dict[tuple[str, int], str] = {}
    nsfs = os.stat("/proc/self/ns/net").st_dev
    for pid in pids():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            path = f"/proc/{pid}/fd/{name}"
            key = _held_by(path, nsfs)
            if key is not None:
                found = every.setdefault(key, _Found())
                if pid not in found.members and pid not in found.holders:
                    found.holders.append(pid)
                where[key] = path
    return where


def _held_by(path: str, nsfs: int) -> tuple[str, int] | None:
    """By device: the link of a descriptor that was opened by a pin says only the pin's path."""
    try:
        status = os.stat(path)
        if status.st_dev != nsfs:
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return kind_of(fd), os.fstat(fd).st_ino
    except OSError:
        return None
    finally:
        os.close(fd)


def _add_pins(every: _All) -> dict[tuple[str, int], str]:
    where: dict[tuple[str, int], str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        match = _LINK.fullmatch(before.split(" ")[3])
        if after.startswith("nsfs ") and match and match[1] in NAMESPACES:
            point = before.split(" ")[4]
            path = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)
            key = (match[1], int(match[2]))
            pins = every.setdefault(key, _Found()).pins
            if path not in pins:  # a shared directory is mounted over itself
                pins.append(path)
            where[key] = path
    return where


def _relate(every: _All, key: tuple[str, int], fd: int) -> None:
    """Owner and parent, and theirs: a user namespace may have no process, but namespaces."""
    found = every[key]
    if key[0] == "user":
        found.uid = owner_uid(fd)
    asked = (NsGet.USERNS, NsGet.PARENT) if key[0] in ("user", "pid") else (NsGet.USERNS,)
    for what in asked:
        other = related(fd, what)
        if other is None:
            continue
        try:
            above = (kind_of(other), os.fstat(other).st_ino)
            if what == NsGet.PARENT:
                found.parent = above[1]
            else:
                found.owner = above[1]
            if above not in every:
                every[above] = _Found()
                _relate(every, above, other)
        finally:
            os.close(other)


def _add_relations(every: _All, where: dict[tuple[str, int], str]) -> None:
    for key in list(every):
        members = every[key].members
        path = f"/proc/{members[0]}/ns/{key[0]}" if members else where.get(key, "")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_ino == key[1]:
                _relate(every, key, fd)
        finally:
            os.close(fd)


def _box_of(pid: int, seen: dict[int, str]) -> str:
    """The sandbox of a process: the nearest above it that has a name, or a launcher for parent."""
    chain = []
    box = ""
    while pid > 1 and pid not in seen:
        if pid in boxes:
            box = boxes[pid]
            break
        chain.append(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            parent = int(stat.rpartition(")")[2].split()[1])
            if Path(f"/proc/{parent}/comm").read_text().strip() == _LAUNCHER:
                box = "sandbox"
                break
        except (OSError, IndexError):
            break
        pid = parent
    else:
        box = seen.get(pid, "")
    seen.update(dict.fromkeys(chain, box))
    return box


def _info(key: tuple[str, int], found: _Found, seen: dict[int, str]) -> NamespaceInfo:
    kind, inode = key
    pid = found.members[0] if found.members else 0
    uid, command, box = found.uid, "", ""
    if pid:
        try:
            uid = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            pass
        command, box = _command(pid), _box_of(pid, seen)
    return NamespaceInfo(kind, inode, pid, len(found.members), uid, command, found.owner,
                         found.parent, tuple(found.pins), tuple(found.holders), box)  # fmt: skip


def namespaces(pid: int | None = None) -> list[NamespaceInfo]:
    """Every namespace that the caller may see, or those that process *pid* is in; sorted by id.

    The same ids as ``lsns`` and ``lsns -p PID``, with those without a process (``lsns -P``).

    Raises:
        ProcessLookupError: there is no process *pid*.
        PermissionError: the caller may not look at it (ptrace(2) access).
    """
    wanted = None
    if pid is not None:
        if not os.path.exists(f"/proc/{pid}"):
            raise ProcessLookupError(errno.ESRCH, "no such process", str(pid))
        wanted = {(kind, namespace_id(pid, kind)) for kind in NAMESPACES}
    every: _All = {}
    _add_members(every)
    where = {**_add_holders(every), **_add_pins(every)}
    _add_relations(every, where)
    seen: dict[int, str] = {}
    result = [_info(key, found, seen) for key, found in every.items()
              if wanted is None or key in wanted]  # fmt: skip
    return sorted(result, key=lambda info: info.id)


def tree() -> list[NamespaceNode]:
    """``namespaces()`` as they are owned: user namespaces in each other, and what each owns.

    At the top is what has no owner in the caller's view.
    """
    every = namespaces()
    below: dict[int, list[NamespaceInfo]] = {}
    known = {info.id for info in every if info.kind == "user"}
    for info in every:
        above = info.parent if info.kind == "user" else info.owner
        below.setdefault(above if above in known and above != info.id else 0, []).append(info)

    def node(info: NamespaceInfo) -> NamespaceNode:
        inside = below.get(info.id, []) if info.kind == "user" else []
        return NamespaceNode(info, tuple(node(child) for child in inside))

    return [node(info) for info in below.get(0, [])]
