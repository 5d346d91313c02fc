# SPDX-License-Identifier: Apache-2.0
"""Bytes of a file that are lent: what two processes must not have at once, each has a byte for it.

The kernel knows who has which, and takes them back from a process that dies, however it dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")


class LentBytes:
    """Bytes of one open file, each locked by it, by another open file, or by none.

    Locks belong to the open file (F_OFD_SETLK, Linux 3.15): all threads of a process share
    them, and so does a forked child, until both have closed it. Callers need a lock of their own.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mine: set[int] = set()

    def take(self, start: int, length: int = 1) -> bool:
        """Whether they are this file's now: not if any of them was lent, by whomever."""
        if start in self._mine:  # the kernel lets an open file lock its own byte again
            return False
        try:
            self._set(fcntl.F_WRLCK, start, length)
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._mine.add(start)
        return True

    def give(self, start: int, length: int = 1) -> None:
        """Back to all, if they are this file's."""
        if start in self._mine:
            self._mine.discard(start)
            self._set(fcntl.F_UNLCK, start, length)

    def _set(self, kind: int, start: int, length: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))

    def lent_elsewhere(self, start: int, length: int) -> tuple[int, int] | None:
        """(start, length) of a lock of another open file on some of them; None for none."""
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind, _, first, size, _ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, request))
        return None if kind == fcntl.F_UNLCK else (first, size)

    def close(self) -> None:
        """The file too; nothing of it is lent by this process any more. Idempotent."""
        self._mine.clear()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
