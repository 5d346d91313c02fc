# SPDX-License-Identifier: Apache-2.0
"""Raw system calls, for programs that move *themselves* into namespaces and mounts.

Nothing of nsbox is around them: no plan, no undo, no launcher. They act on the calling thread
or process; unshare(2) and setns(2) of most kinds need one that has no other threads. Each
raises OSError with the kernel's errno. nsbox itself calls them in your process for
``Namespace.pin``, which mounts where you are, and for detached mounts, which nobody else sees.
"""

from __future__ import annotations

import enum
import os
import struct

from nsbox import _core
from nsbox.names import Clone, MountAttr

__all__ = [
    "Clone", "FsconfigCmd", "FsmountFlag", "MountAttr", "MountFlag", "MoveMountFlag",
    "OpenTreeFlag", "UmountFlag", "fsconfig", "fsmount", "fsopen", "mount", "mount_setattr",
    "move_mount", "open_tree", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root",
    "sethostname", "setns", "umount2", "unshare",
]  # fmt: skip

Path = str | bytes | os.PathLike[str]
AT_FDCWD = -100
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000


class MountFlag(enum.IntFlag):
    """``MS_*`` of mount(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    REMOUNT = 0x20
    BIND = 0x1000
    MOVE = 0x2000
    REC = 0x4000
    UNBINDABLE = 0x20000
    PRIVATE = 0x40000
    SLAVE = 0x80000
    SHARED = 0x100000


class UmountFlag(enum.IntFlag):
    """Of umount2(2), ``MNT_*`` and ``UMOUNT_NOFOLLOW``."""

    FORCE = 1
    DETACH = 2
    EXPIRE = 4
    NOFOLLOW = 8


class FsconfigCmd(enum.IntEnum):
    """``FSCONFIG_*``, commands of fsconfig(2)."""

    SET_FLAG = 0
    SET_STRING = 1
    SET_BINARY = 2
    SET_PATH = 3
    SET_PATH_EMPTY = 4
    SET_FD = 5
    CMD_CREATE = 6
    CMD_RECONFIGURE = 7


class FsmountFlag(enum.IntFlag):
    """``FSMOUNT_*`` of fsmount(2)."""

    CLOEXEC = 1


class OpenTreeFlag(enum.IntFlag):
    """Of open_tree(2), ``OPEN_TREE_*`` and ``AT_*``."""

    CLONE = 1
    NO_AUTOMOUNT = 0x800
    EMPTY_PATH = AT_EMPTY_PATH
    RECURSIVE = AT_RECURSIVE
    CLOEXEC = 0o2000000


class MoveMountFlag(enum.IntFlag):
    """``MOVE_MOUNT_*`` of move_mount(2)."""

    F_SYMLINKS = 0x1
    F_AUTOMOUNTS = 0x2
    F_EMPTY_PATH = 0x4
    T_SYMLINKS = 0x10
    T_AUTOMOUNTS = 0x20
    T_EMPTY_PATH = 0x40


#: Numbers: those from 424 on are the same everywhere, others are (x86_64, aarch64).
NUMBERS: dict[str, int | tuple[int, int]] = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "sethostname": (170, 161),
    "seccomp": (317, 277),
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
}


def machine() -> str:
    """``uname -m``, but of the process: one with a 32-bit personality(2) is told another."""
    name = os.uname().machine
    return {"i686": "x86_64", "armv8l": "aarch64"}.get(name, name)


def number_of(name: str) -> int:
    """Of a call on this machine. Raises KeyError for an unknown machine."""
    number = NUMBERS[name]
    if isinstance(number, int):
        return number
    return number[{"x86_64": 0, "aarch64": 1}[machine()]]


def _call(name: str, *args: int | bytes | None) -> int:
    return _core.raw_syscall(number_of(name), *args)


def _raw(value: Path | None) -> bytes | None:
    """A string for the kernel, which would end at a NUL without a word."""
    if value is None:
        return None
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw


def unshare(flags: Clone | int) -> None:
    """New namespaces of the kinds in *flags*, for the caller. unshare(2).

    ``NEWPID`` and ``NEWTIME`` are for the children that it forks after. ``NEWUSER`` is EINVAL in
    a process with threads.
    """
    _call("unshare", int(flags))


def setns(fd: int, flags: Clone | int = 0) -> None:
    """Enter the namespace of *fd* (0: of whatever kind), or those of a pidfd that *flags* name.

    setns(2); of a pidfd since Linux 5.8. ``NEWPID`` is for children, as with ``unshare``.
    """
    _call("setns", fd, int(flags))


def sethostname(name: Path) -> None:
    """Of the UTS namespace, at most 64 bytes. sethostname(2)."""
    raw = os.fsencode(name)
    _call("sethostname", raw, len(raw))


def pivot_root(new_root: Path, put_old: Path) -> None:
    """The mount *new_root* becomes the root, the old one is moved to *put_old*. pivot_root(2).

    EINVAL where the parent mount is shared: make it private first.
    """
    _call("pivot_root", _raw(new_root), _raw(put_old))


def mount(source: Path | None, target: Path, fstype: str | None = None,
          flags: MountFlag | int = 0, data: str | None = None) -> None:  # fmt: skip
    """mount(2), with everything that it can be asked for by *flags*."""
    _call("mount", _raw(source), _raw(target), _raw(fstype), int(flags), _raw(data))


def umount2(target: Path, flags: UmountFlag | int = 0) -> None:
    """umount2(2)."""
    _call("umount2", _raw(target), int(flags))


def fsopen(fstype: str, *, cloexec: bool = True) -> int:
    """A context for a new file system; the descriptor is the caller's to close. Linux 5.2."""
    return _call("fsopen", _raw(fstype), int(cloexec))


def fsconfig(fd: int, cmd: FsconfigCmd, key: str | None = None,
             value: str | bytes | None = None, aux: int = 0) -> None:  # fmt: skip
    """One parameter of it, or ``CMD_CREATE``. *value* is bytes, *aux* its size, for SET_BINARY."""
    raw = value if isinstance(value, bytes) and cmd == FsconfigCmd.SET_BINARY else _raw(value)
    _call("fsconfig", fd, int(cmd), _raw(key), raw, aux)


def fsmount(fd: int, flags: FsmountFlag | int = FsmountFlag.CLOEXEC,
            attrs: MountAttr | int = 0) -> int:  # fmt: skip
    """A mount, attached nowhere, of the file system that was created. Linux 5.2."""
    return _call("fsmount", fd, int(flags), int(attrs))


def open_tree(path: Path, flags: OpenTreeFlag | int, *, dir_fd: int = AT_FDCWD) -> int:
    """A mount by path, or with ``CLONE`` a detached copy of it. Linux 5.2."""
    return _call("open_tree", dir_fd, _raw(path), int(flags))


def move_mount(from_path: Path, to_path: Path, flags: MoveMountFlag | int = 0, *,
               from_fd: int = AT_FDCWD, to_fd: int = AT_FDCWD) -> None:  # fmt: skip
    """Attach a detached mount, or move one. ``F_EMPTY_PATH`` with "": *from_fd* itself. 5.2."""
    _call("move_mount", from_fd, _raw(from_path), to_fd, _raw(to_path), int(flags))


def mount_setattr(
    path: Path,
    flags: int = 0,
    *,
    attr_set: MountAttr | int = 0,
    attr_clr: MountAttr | int = 0,
    propagation: MountFlag | int = 0,
    userns_fd: int = 0,
    dir_fd: int = AT_FDCWD,
) -> None:
    """Change a mount, and with ``AT_RECURSIVE`` in *flags* those below it. Linux 5.12."""
    attr = struct.pack("<4Q", int(attr_set), int(attr_clr), int(propagation), userns_fd)
    _call("mount_setattr", dir_fd, _raw(path), flags, attr, len(attr))


def pidfd_open(pid: int, flags: int = 0) -> int:
    """A descriptor of a process, which no later one with its number can take over. Linux 5.3."""
    return _call("pidfd_open", pid, flags)


def pidfd_send_signal(pidfd: int, sig: int, flags: int = 0) -> None:
    """Linux 5.1; *flags* since 6.9."""
    _call("pidfd_send_signal", pidfd, int(sig), 0, flags)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy of another process's descriptor, close-on-exec; needs ptrace access. Linux 5.6."""
    return _call("pidfd_getfd", pidfd, fd, 0)
