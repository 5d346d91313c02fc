# SPDX-License-Identifier: Apache-2.0
"""What a container wrote: the last of both streams, and those who read along."""

from __future__ import annotations

import codecs
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from nsbox import ring, units
from nsbox.errors import SpecError, StateError
from nsbox.ring import Run, View

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STREAMS = ("both", "stdout", "stderr")
_NUMBERS = {"stdout": (1,), "stderr": (2,), "both": (1, 2)}
#: How often those look who are not told: other processes, and forked children.
POLL_S = 0.05


def check(stream: Any, tail: Any) -> None:
    """Raises SpecError unless they are what ``Container.logs()`` takes."""
    if stream not in STREAMS:
        raise SpecError("stream", f"{stream!r}: use {' or '.join(map(repr, STREAMS))}")
    if tail is not None:
        units.count(tail, "tail")


def chosen(view: View, stream: str, tail: int | None = None) -> list[Run]:
    """What is of *stream* in it, or the last *tail* lines of that."""
    runs = [run for run in view.runs() if run.stream in _NUMBERS[stream]]
    if tail is None:
        return runs
    lines = joined(runs).splitlines(keepends=True)
    skip = sum(map(len, lines[: max(0, len(lines) - tail)]))
    kept = []
    for run in runs:
        kept.append(Run(run.stream, run.data[skip:]))
        skip = max(0, skip - len(run.data))
    return [run for run in kept if run.data]


def joined(runs: Iterable[Run]) -> bytes:
    return b"".join(data for _, data in runs)


class Log:
    """The last output of both streams, in the order in which it came; at most 1 MiB.

    Nothing is kept before ``open()``. A forked child of its owner can read it.
    """

    def __init__(self) -> None:
        self._ring: ring.Ring | None = None
        self._last = ring.NOTHING  # what there was, when there is no ring
        self._owner = os.getpid()
        self._changed = threading.Condition()
        _logs.add(self)

    def open(self) -> tuple[int, int]:
        """Make room; returns by what others find it: its descriptor here, and its inode."""
        self._ring = ring.Ring()
        return self._ring.fd, os.fstat(self._ring.fd).st_ino

    def append(self, number: int, data: bytes) -> None:
        """*data* of stream *number*: 1 or 2."""
        with self._changed:
            if self._ring is not None:
                self._ring.append(number, data)
                self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will come. What is kept needs no descriptor from now on."""
        with self._changed:
            if self._ring is not None:
                self._ring.end()
                try:
                    self._last = self._look()
                except (OSError, StateError):  # somebody wrote to what is this process's own
                    pass
                self._ring.close()
                self._ring = None
            self._last = self._last._replace(ended=True)
            self._changed.notify_all()

    def _look(self, at: int = 0) -> View:
        """With the lock held: it keeps the descriptor open."""
        return self._last.since(at) if self._ring is None else ring.look(self._ring.fd, at)

    def text(self, stream: str = "both", tail: int | None = None) -> str:
        """All that is kept, or the last *tail* lines of it."""
        with self._changed:
            view = self._look()
        return joined(chosen(view, stream, tail)).decode("utf-8", "replace")

    def follow(self, stream: str, tail: int | None, timeout: float | None = None) -> Iterator[str]:
        """What is kept, and then whatever comes, until its end or until *timeout* (seconds).

        A reader who is slower than 1 MiB of output misses what was dropped meanwhile.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for data in self.follow_bytes(stream, tail, timeout):
            yield from filter(None, [decoder.decode(data)])
        yield from filter(None, [decoder.decode(b"", final=True)])

    def follow_bytes(
        self, stream: str, tail: int | None, timeout: float | None = None
    ) -> Iterator[bytes]:
        """The same, as it was written."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            view = self._look()
        yield from filter(None, [joined(chosen(view, stream, tail))])
        while not view.ended:
            with self._changed:
                view = self._look(view.end)
                if not (view.data or view.ended) and not self._wait(deadline):
                    return
            yield from filter(None, [joined(chosen(view, stream))])

    def _wait(self, deadline: float | None) -> bool:
        """With the lock held, for news; False when the time is over."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if os.getpid() != self._owner:
            left = POLL_S if left is None else min(left, POLL_S)
        self._changed.wait(left)
        return deadline is None or time.monotonic() < deadline


_logs: weakref.WeakSet[Log] = weakref.WeakSet()


def _unlock() -> None:
    """In a forked child, a lock may be that of a thread it does not have."""
    for log in _logs:
        log._changed = threading.Condition()


os.register_at_fork(after_in_child=_unlock)
