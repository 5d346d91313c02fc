# SPDX-License-Identifier: Apache-2.0
"""The last 1 MiB of output, in memory that other processes can read while it is written.

    0        magic, begin, end, turns, ended, checksum     the header
    64       turns: position << 2 | stream                 where the other stream begins
    128 KiB  1 MiB of output                               byte n of it is at n % 1 MiB

Bytes ``[begin, end)`` can be read. The writer raises *begin* before it overwrites, and *end* after
it has written; a reader looks at *begin* again when it has read, and drops what is before that. So
it takes no lock, which it could keep from the writer, and what it returns is whole. The kernel's
locks in pwrite(2) order the writes. Only the header can be seen half written: its checksum tells.

It is a memfd that is found in /proc/OWNER/fd, and not a file in the registry: it has no name that
could be left behind, it is on no disk and in no tmpfs that can be full, and it is open to those
only who may look into its owner (ptrace(2), PTRACE_MODE_READ): of an owner that is not dumpable,
to root. It is written, not mapped: without memory that is an error and not SIGBUS, and all that a
start pays for is one system call.
"""

from __future__ import annotations

import errno
import os
import struct
import time
import zlib
from typing import NamedTuple

from nsbox.errors import StateError

BYTES = 1 << 20
_TURNS_AT, _DATA_AT = 64, 1 << 17
TURNS = (_DATA_AT - _TURNS_AT) // 8
_FEW_TURNS = 64
_MAGIC = b"nsboxlog"
_FIELDS, _SUM, _TURN = struct.Struct("<8s4Q"), struct.Struct("<Q"), struct.Struct("<Q")
_TRIES = 1000
_MFD_NOEXEC_SEAL = 8  # Linux 6.3; older kernels answer EINVAL


class Run(NamedTuple):
    """Bytes of one stream, 1 or 2, with nothing of the other between them."""

    stream: int
    data: bytes


class View(NamedTuple):
    """What a reader saw: *data* from position *begin* on, and where its streams change.

    *turns* are as in the ring; *ended*: nothing will follow.
    """

    begin: int
    data: bytes
    turns: bytes
    ended: bool

    @property
    def end(self) -> int:
        return self.begin + len(self.data)

    def since(self, at: int) -> View:
        """The part from position *at* on."""
        skip = max(0, at - self.begin)
        return self._replace(begin=self.begin + skip, data=self.data[skip:])

    def runs(self) -> list[Run]:
        found = []
        turns = [turn for (turn,) in _TURN.iter_unpack(self.turns)]
        for turn, following in zip(turns, [*turns[1:], self.end << 2], strict=False):
            first, last = (max(0, (one >> 2) - self.begin) for one in (turn, following))
            if first < last:
                found.append(Run(turn & 3, self.data[first:last]))
        return found


NOTHING = View(0, b"", b"", ended=False)


class _Header(NamedTuple):
    begin: int
    end: int
    turns: int
    ended: int

    def encode(self) -> bytes:
        fields = _FIELDS.pack(_MAGIC, *self)
        return fields + _SUM.pack(zlib.crc32(fields))


_SIZE = len(_Header(0, 0, 0, 0).encode())


class Ring:
    """The writer's side. Not safe from threads."""

    def __init__(self) -> None:
        self.fd = _memfd()
        self._told = _Header(0, 0, 0, 0)
        self._stream = 0

    def append(self, stream: int, data: bytes) -> None:
        """*data* of *stream*: 1 or 2. Without memory for it, it and all before it are lost."""
        begin, end, turns, _ = self._told
        turn = _TURN.pack(end << 2 | stream) if stream != self._stream else b""
        new = _Header(max(begin, end + len(data) - BYTES), end + len(data), turns + bool(turn), 0)
        if turn and new.turns >= TURNS:  # the oldest of them goes, and its output
            oldest = min(end, self._position(new.turns - TURNS + 1))
            new = new._replace(begin=max(new.begin, oldest))
        kept = data[-BYTES:]
        try:
            if new.begin != begin:
                self._tell(self._told._replace(begin=new.begin))
            if turn:
                self._put(_TURNS_AT, 8 * TURNS, 8 * turns, turn)
            self._put(_DATA_AT, BYTES, new.end - len(kept), kept)
            self._tell(new)
            self._stream = stream
        except OSError:
            self._stream = 0
            self._told = _Header(new.end, new.end, turns, 0)

    def _position(self, turn: int) -> int:
        raw = os.pread(self.fd, 8, _TURNS_AT + 8 * (turn % TURNS))
        return int.from_bytes(raw, "little") >> 2

    def _put(self, base: int, size: int, at: int, data: bytes) -> None:
        at %= size
        first = data[: size - at]
        _write(self.fd, first, base + at)
        _write(self.fd, data[len(first) :], base)

    def _tell(self, header: _Header) -> None:
        _write(self.fd, header.encode(), 0)
        self._told = header

    def end(self) -> None:
        """Nothing more will come."""
        try:
            self._tell(self._told._replace(ended=1))
        except OSError:  # readers see the end of its owner
            pass

    def close(self) -> None:
        """Readers keep what they have open. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _memfd() -> int:
    try:
        return os.memfd_create("nsbox-log", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return os.memfd_create("nsbox-log", os.MFD_CLOEXEC)


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


# -- reading ----------------------------------------------------------------------------------


def look(fd: int, at: int = 0) -> View:
    """What can be read of the ring in *fd*, from position *at* on: from another process, too.

    Raises:
        StateError: it is no ring.
    """
    before = _header(fd)
    start = min(max(at, before.begin), before.end)
    if start == before.end:
        return View(start, b"", b"", bool(before.ended))
    data = _read(fd, _DATA_AT, BYTES, start, before.end)
    first, turns = _read_turns(fd, before.turns, start)
    after = _header(fd)
    lost = max(0, after.turns - TURNS + 1 - first)  # those before may have been overwritten
    seen = View(start, data, turns[_TURN.size * lost :], bool(before.ended))
    return seen.since(min(after.begin, before.end))


def _header(fd: int) -> _Header:
    for _ in range(_TRIES):
        raw = os.pread(fd, _SIZE, 0)
        if not raw:
            return _Header(0, 0, 0, 0)  # nothing was written yet
        if len(raw) == _SIZE and raw[_FIELDS.size :] == _SUM.pack(zlib.crc32(raw[: _FIELDS.size])):
            magic, *numbers = _FIELDS.unpack_from(raw)
            if magic == _MAGIC:
                return _Header(*numbers)
        time.sleep(0)
    raise _damaged()


def _read_turns(fd: int, count: int, start: int) -> tuple[int, bytes]:
    """The index of the first one, and all that matter from position *start* on."""
    first = max(0, count - _FEW_TURNS)
    turns = _read(fd, _TURNS_AT, 8 * TURNS, 8 * first, 8 * count)
    if int.from_bytes(turns[:8], "little") >> 2 > start:
        first = max(0, count - TURNS + 1)
        turns = _read(fd, _TURNS_AT, 8 * TURNS, 8 * first, 8 * count)
    return first, turns


def _read(fd: int, base: int, size: int, first: int, last: int) -> bytes:
    """Bytes [first, last) of the ring of *size* bytes at *base*."""
    if last - first > size:
        raise _damaged()
    at = first % size
    whole = os.pread(fd, min(last - first, size - at), base + at)
    if last - first > size - at:
        whole += os.pread(fd, last - first - (size - at), base)
    if len(whole) != last - first:
        raise _damaged()
    return whole


def _damaged() -> StateError:
    return StateError("what should be the log of a container is something else", status="damaged")
