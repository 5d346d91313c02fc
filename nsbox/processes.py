# SPDX-License-Identifier: Apache-2.0
"""Processes as /proc has them: who descends from whom, and what each has used. proc(5).

Everything that a process says about itself (its command) is a claim of the payload's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_MOST_BYTES = 4096
#: Of a command line that is shown: a payload can make it megabytes.
_MOST_COMMAND = 4096
#: Generations of a tree that are looked at: who forks and ends all the time has no last one.
_DEEPEST = 128


class Stat(NamedTuple):
    """Of /proc/PID/stat: seconds of CPU, *own*, and with those of children that it waited for."""

    pid: int
    parent: int
    state: str
    own: float
    user: float
    system: float
    started: int


class Snapshot(NamedTuple):
    """What a tree has used until now; bytes of memory of its largest process."""

    user: float
    system: float
    maxrss: int


@dataclass(frozen=True)
class ProcessInfo:
    """A process of a sandbox, as the caller's /proc shows it.

    Attributes:
        pid, nspid: as the caller sees it, and as it sees itself.
        parent: pid of its parent, as the caller sees it.
        state: a letter of proc(5): R running, S sleeping, D waiting, Z zombie, T stopped.
        uid: real user id, as the caller sees it.
        args: its command line, which it may have changed; empty for a zombie.
        command: its name, at most 15 characters, which it may have changed.
        cpu: seconds of CPU that it used, its children not counted.
    """

    pid: int
    nspid: int
    parent: int
    state: str
    uid: int
    command: str
    args: tuple[str, ...]
    cpu: float


def read_stat(pid: int | str) -> Stat | None:
    """None when there is no such process any more."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, _MOST_BYTES)
    except OSError:  # it was reaped just now
        return None
    finally:
        os.close(fd)
    # The name comes in brackets and may have any character: what follows the last one counts.
    words = text[text.rfind(b")") + 2 :].split()
    user, system, waited_user, waited_system = (int(word) * _TICK for word in words[11:15])
    return Stat(int(pid), int(words[1]), words[0].decode(), user + system, user + waited_user,
                system + waited_system, int(words[19]))  # fmt: skip


def tree(root: int) -> list[int]:
    """*root* and all that descend from it, in nested pid namespaces too.

    Of the PID 1 of a namespace these are all of its members but for those that came by
    setns(2): an orphan becomes a child of PID 1. One that forks meanwhile may be missed, and
    a chain of them is not followed for ever.
    """
    found = level = [root]
    try:
        for _ in range(_DEEPEST):
            level = [child for pid in level for child in _children(pid)]
            if not level:
                break
            found = found + level
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return _tree_by_parents(root)
    return list(dict.fromkeys(found))


def _children(pid: int) -> list[int]:
    """Those of all of its threads."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return found
    for thread in threads:
        path = f"/proc/{pid}/task/{thread}/children"
        try:
            with open(path, "rb", buffering=0) as file:
                found += map(int, (file.read() or b"").split())
        except OSError:
            if os.path.exists(f"/proc/{pid}/task/{thread}") and not os.path.exists(path):
                raise FileNotFoundError(path) from None
    return found


def _tree_by_parents(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(name)) is not None:
            children.setdefault(stat.parent, []).append(stat.pid)
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found


def stats(root: int) -> list[Stat]:
    """Of each process of its ``tree``."""
    return [stat for pid in tree(root) if (stat := read_stat(pid)) is not None]


def snapshot(pids: list[int]) -> Snapshot:
    """What a ``tree`` has used: the kernel forgets it of those who end with their PID 1."""
    found = [stat for pid in pids if (stat := read_stat(pid)) is not None]
    most = max((_peak(stat.pid) for stat in found), default=0)
    return Snapshot(sum(stat.user for stat in found), sum(stat.system for stat in found), most)


def _peak(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def stuck(root: int) -> list[str]:
    """Those of its tree that cannot be killed now: pid, name, and where in the kernel it waits."""
    found = []
    for stat in stats(root):
        if stat.state == "D":
            try:
                with open(f"/proc/{stat.pid}/wchan") as file:
                    place = file.read() or "?"
                with open(f"/proc/{stat.pid}/comm", encoding="utf-8", errors="replace") as file:
                    name = file.read()[:-1]
            except OSError:
                continue
            found.append(f"{stat.pid} {name!r} in {place if place != '0' else '?'}")
    return found


def cmdline(pid: int) -> bytes:
    """The beginning of its command line, as proc_pid_cmdline(5) has it. Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(_MOST_COMMAND)


def members(root: int) -> list[int]:
    """Pids in the pid namespace of *root*, those that came by setns(2) too, and its tree."""
    found = set(tree(root))
    try:
        namespace = os.readlink(f"/proc/{root}/ns/pid")
    except OSError:
        return sorted(found)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in found:
            try:
                if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.add(int(name))
            except OSError:
                continue
    return sorted(found)


def info(pid: int) -> ProcessInfo | None:
    """None when there is no such process any more."""
    stat = read_stat(pid)
    status: dict[str, list[str]] = {}
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                status.setdefault(key, value.split())  # a name cannot have a newline here
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            args = tuple(file.read().split("\0")[:-1])
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            command = file.read()[:-1]
    except OSError:
        return None
    if stat is None or "Uid" not in status:
        return None
    nspid = int(status.get("NSpid", [str(pid)])[-1])
    return ProcessInfo(pid, nspid, stat.parent, stat.state, int(status["Uid"][0]), command, args,
                       stat.own)  # fmt: skip
