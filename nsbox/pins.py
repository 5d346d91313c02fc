# SPDX-License-Identifier: Apache-2.0
"""Pins: namespaces held by a bind mount on a file, as ``ip netns`` and ``unshare --net=FILE`` do.

A pin is a mount of the caller's mount namespace, so it is made and undone here, not by the
launcher. What undoes the pin of an owner that died is a record in the registry directory, which
is written before anything is made and locked as long as its owner lives: ``gc()`` takes those
that can be locked. The record says which namespace was pinned and which file was made for it,
so that what others have put in the same place meanwhile is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import threading
from pathlib import Path
from typing import NamedTuple

from nsbox import registry, syscalls
from nsbox.errors import StateError
from nsbox.syscalls import MountFlag, UmountFlag

NETNS_DIR = "/run/netns"
_PREFIX = "pin-"

_numbers = itertools.count(1)
_lock = threading.Lock()
_held: dict[str, Pin] = {}


class Pin(NamedTuple):
    """What was made: the mount point, and the record that says so."""

    path: str
    record: str
    fd: int
    owner: int


def _identity(path: str | int) -> list[int]:
    status = os.stat(path)
    return [status.st_dev, status.st_ino]


def place(where: str | os.PathLike[str], kind: str) -> str:
    """The file of a pin: a name without a slash is one of ``ip netns``, for a network."""
    path = os.fspath(where)
    if "/" in path:
        return os.path.abspath(path)
    if kind != "net" or path in ("", ".", ".."):
        raise ValueError(f"{path!r}: only a network namespace has a name; else a path is needed")
    return f"{NETNS_DIR}/{path}"


def make(ns_fd: int, kind: str, where: str | os.PathLike[str]) -> Pin:
    """Hold the namespace of *ns_fd* by a file that must not exist yet.

    Raises:
        FileExistsError: it does.
        OSError: the caller may not mount (CAP_SYS_ADMIN), or not there.
    """
    path = place(where, kind)
    if path.startswith(NETNS_DIR + "/"):
        _share_netns_dir()
    record, fd = _new_record()
    try:
        with _lock:
            _make_file(path, fd, ns_fd)
            try:
                syscalls.mount(f"/proc/self/fd/{ns_fd}", path, "none", MountFlag.BIND)
            except BaseException:
                os.unlink(path)
                raise
            pin = Pin(path, record, fd, os.getpid())
            _held[record] = pin
            return pin
    except BaseException:
        os.unlink(record)
        os.close(fd)
        raise


def _new_record() -> tuple[str, int]:
    """Locked before it has a name that gc() could see."""
    pid = os.getpid()
    record = f"{registry.directory()}/{_PREFIX}{pid}-{registry.start_time(pid)}-{next(_numbers)}"
    fd = os.open(registry.directory(), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        where = os.open(registry.directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            name = os.path.basename(record)
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=where, follow_symlinks=True)
        finally:
            os.close(where)
    except BaseException:
        os.close(fd)
        raise
    return record, fd


def _make_file(path: str, record: int, ns_fd: int) -> None:
    """Recorded by its number before it has its name: who finds another there leaves it alone."""
    directory = os.path.dirname(path)
    what = {"path": path, "file": [], "namespace": _identity(ns_fd),
            "mounts": _identity("/proc/thread-self/ns/mnt")}  # fmt: skip

    def write(made: int) -> None:
        os.pwrite(record, json.dumps({**what, "file": _identity(made)}).encode(), 0)

    try:
        made = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o444)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        # A file system without nameless files: killed in between, an empty one is left.
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            write(made)
        finally:
            os.close(made)
        return
    parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write(made)
        os.link(f"/proc/self/fd/{made}", os.path.basename(path), dst_dir_fd=parent,
                follow_symlinks=True)  # fmt: skip
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "something is there already", path) from None
    finally:
        os.close(made)
        os.close(parent)


def _share_netns_dir() -> None:
    """As ip-netns(8) has it: mounts there reach other mount namespaces, so that names are freed."""
    os.makedirs(NETNS_DIR, 0o755, exist_ok=True)
    try:
        syscalls.mount(None, NETNS_DIR, None, MountFlag.SHARED | MountFlag.REC)
    except OSError as e:
        if e.errno != errno.EINVAL:  # it is no mount point yet
            raise
        syscalls.mount(NETNS_DIR, NETNS_DIR, "none", MountFlag.BIND | MountFlag.REC)
        syscalls.mount(None, NETNS_DIR, None, MountFlag.SHARED | MountFlag.REC)


def undo(pin: Pin) -> None:
    """Take it away, if it is still ours; idempotent.

    Raises:
        StateError: in a forked child, whose it is not.
        OSError: the kernel does not let it go; the record stays for ``gc()``.
    """
    if pin.owner != os.getpid():
        raise StateError(f"the pin {pin.path} belongs to process {pin.owner}", status="foreign")
    with _lock:
        if _held.pop(pin.record, None) is None:
            return
        try:
            _undo(pin.fd)
            os.unlink(pin.record)
        finally:
            os.close(pin.fd)


def _undo(record: int) -> str:
    """Undo what a record says; returns the path, or "" when it was not there any more."""
    text = os.pread(record, 65536, 0)
    if not text:
        return ""
    what = json.loads(text)
    path, done = what["path"], ""
    if what["mounts"] != _identity("/proc/thread-self/ns/mnt"):
        return ""  # that mount namespace has gone with its last process, or is not ours to enter
    try:
        if _identity(path) == what["namespace"]:
            syscalls.umount2(path, UmountFlag.DETACH | UmountFlag.NOFOLLOW)
            done = path
        if _identity(path) == what["file"]:
            os.unlink(path)
            done = path
    except FileNotFoundError:
        pass
    return done


def gc() -> list[str]:
    """Undo the pins of owners that died; those of other mount namespaces are left to them."""
    removed = []
    for name in sorted(os.listdir(registry.directory())):
        if not name.startswith(_PREFIX):
            continue
        path = f"{registry.directory()}/{name}"
        fd = registry.take(path)
        if fd is None:
            continue
        try:
            if done := _undo(fd):
                removed.append(done)
            if done or not _of_a_living_namespace(fd):
                os.unlink(path)
        except FileNotFoundError:
            pass
        finally:
            os.close(fd)
    return removed


def _of_a_living_namespace(record: int) -> bool:
    """Whether a process is still in the mount namespace of a pin that is not in this one."""
    text = os.pread(record, 65536, 0)
    mounts = json.loads(text)["mounts"] if text else None
    if mounts is None or mounts == _identity("/proc/thread-self/ns/mnt"):
        return False
    for pid in Path("/proc").iterdir():
        try:
            if pid.name.isdigit() and _identity(f"{pid}/ns/mnt") == mounts:
                return True
        except OSError:
            continue
    return False


def _forget() -> None:
    """In a forked child: its copies of the locks would keep a dead owner's pins."""
    global _lock
    _lock = threading.Lock()
    for pin in _held.values():
        os.close(pin.fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
