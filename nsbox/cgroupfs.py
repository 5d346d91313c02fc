# SPDX-License-Identifier: Apache-2.0
"""Files and directories of cgroup file systems: read, write, list, empty, remove."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from nsbox import units

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGKILL = 9
_KILL_ROUNDS = 20
_CHUNK = 16384
_SHORT = 2048  # seq_file gives a page at a time, less what its next line did not fit in


def read(path: str) -> str:
    """Whole. os.open() would be as quick, but its number can be lost to a ^C before it is known;
    a text file makes four more system calls."""
    text = b""
    with open(path, "rb", buffering=0) as file:
        while part := file.read(_CHUNK):
            text += part
            if len(part) < _SHORT:
                break
    return text.decode("utf-8", "surrogateescape")


def write(path: str, value: str) -> None:
    """One write(2), as the kernel wants it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode() or b"\n")  # none at all would be no write
    finally:
        os.close(fd)


def write_if_there(path: str, value: str) -> bool:
    """Whether the file is there and took it."""
    try:
        write(path, value)
    except OSError:
        return False
    return True


def number(path: str) -> int | None:
    """The number in a file; None for "max", and where there is no such file."""
    try:
        text = read(path).strip()
        return int(text) if text.isdigit() else None
    except OSError:
        return None


def counters(path: str) -> dict[str, int]:
    """A file of "name number" lines; empty where there is none."""
    try:
        return parse_counters(read(path))
    except OSError:
        return {}


def parse_counters(text: str) -> dict[str, int]:
    """The same of what was read."""
    pairs = (line.rpartition(" ") for line in text.splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def counter(path: str, name: str) -> int:
    return counters(path).get(name, 0)


def members(directory: str) -> list[int]:
    """Pids in a cgroup, as this pid namespace has them (0: in another one, not ours to kill)."""
    try:
        return [pid for pid in map(int, read(f"{directory}/cgroup.procs").split()) if pid > 0]
    except OSError:
        return []


def tree(directory: str) -> Iterator[str]:
    """The cgroup and all below it, children before parents; what vanishes meanwhile is left out."""
    found, waiting = [], [directory]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                children = [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        found.append(here)
        waiting += children
    return reversed(found)


def all_members(directory: str) -> set[int]:
    return {pid for here in tree(directory) for pid in members(here)}


def kill_tree(directory: str) -> None:
    """SIGKILL to all in it and below it, and to what they fork meanwhile.

    cgroup.kill (Linux 5.14, cgroup v2) does it at once. On v1 a list of pids is old when it is
    read: so forks fail meanwhile, where there is a pids controller, and it is read until it is
    empty. One that is frozen on v1 dies when it is thawed, and not before.
    """
    if write_if_there(f"{directory}/cgroup.kill", "1"):
        return
    before = ""
    try:
        for _ in range(_KILL_ROUNDS):
            victims = all_members(directory)
            if not victims:
                break
            if not before and os.path.exists(f"{directory}/pids.max"):
                before = read(f"{directory}/pids.max").strip()
                write_if_there(f"{directory}/pids.max", "0")
            for pid in victims:
                try:
                    os.kill(pid, _SIGKILL)
                except OSError:
                    pass
            thaw_tree(directory)
            time.sleep(0.0005)
    finally:
        if before:
            write_if_there(f"{directory}/pids.max", before)


def thaw_tree(directory: str) -> None:
    """v1: let go of what freezer.state holds; nothing elsewhere."""
    if os.path.exists(f"{directory}/freezer.state"):
        for here in tree(directory):
            write_if_there(f"{here}/freezer.state", "THAWED")


def remove_tree(directory: str, deadline: float) -> None:
    """Empty and remove a cgroup with those below it, until *deadline* (time.monotonic).

    Raises:
        OSError: EBUSY, a process would not go.
    """
    delay = 0.0005
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as e:
            if e.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                raise
        kill_tree(directory)
        for here in tree(directory):
            try:
                os.rmdir(here)
            except OSError:
                pass
        time.sleep(delay)
        delay = min(delay * 2, 0.05)


class Refused(OSError):
    """A limit that the kernel would not take, or would take without keeping it.

    Attributes:
        hint: what to do about it.
    """

    def __init__(self, err: int, hint: str) -> None:
        super().__init__(err, os.strerror(err))
        self.hint = hint


def disk_of(name: str) -> str:
    """MAJOR:MINOR of a whole disk, of that or of a path: a device file, or a file on it.

    Raises:
        Refused: there is none: a file system in memory or over the network, or one of several.
        OSError: the path does not exist.
    """
    if name[0].isdigit():
        device = name
    else:
        status = os.stat(name)
        number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
    entry = f"/sys/dev/block/{device}"
    if not os.path.exists(entry):
        raise Refused(errno.ENODEV, f"{name} is not on one disk (device {device} is none): name "
                      "a disk by MAJOR:MINOR, see lsblk(8)")  # fmt: skip
    if os.path.exists(f"{entry}/partition"):  # limits are of whole disks
        device = read(f"{entry}/../dev").strip()
    return device


def allowed_cpus(wanted: str, effective: str) -> None:
    """Raises Refused unless *wanted* are among those in the file *effective* of the parent."""
    there = read(effective).strip()
    if not units.cpu_numbers(wanted) <= units.cpu_numbers(there):
        raise Refused(errno.EINVAL, f"the CPUs that can be had here are {there}")
