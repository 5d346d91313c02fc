# SPDX-License-Identifier: Apache-2.0
"""Files of the registry directory that processes of one network namespace share while they run.

A file is there as long as it has users. Each user holds a shared flock; whoever can have the
lock alone is the last one, and removes the file. That is a user that closes it; after the last was
killed its launcher (csrc/init/shared.c), or ``gc()``. A new user that finds the lock taken waits,
and makes the next file.
"""

from __future__ import annotations

import fcntl
import functools
import os
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, TypeVar

from nsbox import registry
from nsbox.errors import StateError, Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_Self = TypeVar("_Self", bound="Shared")

PREFIX = "net-"
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
_PATIENCE_S = 10.0
_POLL_S = 0.001

#: Open files of this process. A forked child closes its copies: they keep the locks.
_fds: set[int] = set()


@functools.lru_cache(maxsize=1)
def boot() -> str:
    """A name for this boot: numbers of the kernel's begin anew with the next."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read(8)


def cookie(probe: socket.socket) -> int | None:
    """The number of a socket's network namespace, that no other has, nor will have.

    By SO_NETNS_COOKIE, Linux 5.14; before that None.
    """
    try:
        raw = probe.getsockopt(1, _SO_NETNS_COOKIE, 8)  # SOL_SOCKET
    except OSError:
        return None
    return int.from_bytes(raw, sys.byteorder)


def network(fd: int = -1) -> str:
    """A name for a network namespace, as ``cookie`` has it; before Linux 5.14 by its inode number,
    which a later one can get.

    Args:
        fd: a socket in it; by default it is that of this thread.
    """
    import socket

    own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with own, own if fd < 0 else socket.socket(fileno=os.dup(fd)) as probe:
        number = cookie(probe)
    if number is None:
        return f"{boot()}-i{os.stat('/proc/thread-self/ns/net').st_ino}"
    return f"{boot()}-{number}"


def prefix() -> str:
    """What the names of the files of this thread's network namespace begin with."""
    return f"{PREFIX}{network()}-"


def patiently(attempt: Callable[[], bool], what: str) -> None:
    """Until *attempt* is true: what it waits for takes others milliseconds, unless they stopped.

    Raises:
        Unavailable: not within ten seconds.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not attempt():
        if time.monotonic() > deadline:
            raise Unavailable("network", f"{what} has been locked for {_PATIENCE_S:g} s",
                              hint="is a process of yours that uses nsbox stopped?")  # fmt: skip
        time.sleep(_POLL_S)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: str) -> int:
    """As one more user of the file, which is made if there is none."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        _fds.add(fd)
        try:
            patiently(lambda fd=fd: _try_lock(fd, fcntl.LOCK_SH), path)  # type: ignore[misc]
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            _close(fd)
            raise
        _close(fd)  # its last user has just removed it


def _close(fd: int) -> None:
    _fds.discard(fd)
    os.close(fd)


class Shared:
    """A handle on such a file: opened when it is needed, let go of with ``close``.

    Subclasses say what to do when it is opened, and when its last user goes.

    Args:
        where: another network namespace than this thread's, as ``network`` names it.
    """

    def __init__(self, name: str, where: str = "") -> None:
        self.name, self.path, self._where = name, "", where
        self._pid, self._fd, self._closed = os.getpid(), -1, False
        self._lock = threading.Lock()

    def _opened(self) -> int:
        """The descriptor; the caller has the lock."""
        if self._pid != os.getpid():
            raise StateError(f"{self!r} belongs to process {self._pid}", status="foreign")
        if self._closed:
            raise StateError(f"{self!r} is closed", status="closed")
        if self._fd < 0:
            self.path = f"{registry.directory()}/{PREFIX}{self._where or network()}-{self.name}"
            fd = _open(self.path)
            try:
                self._begin(fd)
            except BaseException:
                _release(fd, self.path, self._last)
                raise
            self._fd = fd
        return self._fd

    def _begin(self, fd: int) -> None:
        """It is open, and may have other users."""

    def _last(self, fd: int) -> bool:
        """It has no other user. Whether the file can go; else it is left for ``gc()``."""
        return True

    def close(self) -> None:
        """Give back what it holds; idempotent, and nothing to do in a forked child."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            fd, self._fd = self._fd, -1
            if fd >= 0:
                _release(fd, self.path, self._last)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        mine = getattr(self, "_fd", -1) >= 0 and self._pid == os.getpid()
        if mine and not sys.is_finalizing():  # then it is the launcher's
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._fd >= 0 else "unused"
        return f"<nsbox.{type(self).__name__} {self.name} {state}>"


def _release(fd: int, path: str, last: Callable[[int], bool]) -> None:
    """Leave, and clear up as the last. Asking for the lock alone gives the shared one back, so
    that of several that leave at once one is the last."""
    try:
        if _try_lock(fd, fcntl.LOCK_EX) and os.fstat(fd).st_nlink and last(fd):
            os.unlink(path)
    finally:
        _close(fd)


def gc() -> list[str]:
    """Clear up after users that were killed. Returns the files that went."""
    removed = []
    for name in sorted(os.listdir(registry.directory())):
        path = f"{registry.directory()}/{name}"
        fd = registry.take(path) if name.startswith(PREFIX) else None
        if fd is None:
            continue
        try:
            if os.fstat(fd).st_nlink and _undone(fd, name):
                os.unlink(path)
                removed.append(path)
        finally:
            os.close(fd)
    return removed


def _undone(fd: int, name: str) -> bool:
    if not name.rpartition("-")[2].startswith("forwarding"):
        return True
    from nsbox import forwarding

    return forwarding.undo(fd, name)


def _forget() -> None:
    """In a forked child: its copies would keep what its parent has, should that be killed."""
    for fd in _fds:
        os.close(fd)
    _fds.clear()


os.register_at_fork(after_in_child=_forget)
