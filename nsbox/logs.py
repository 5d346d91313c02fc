# SPDX-License-Identifier: Apache-2.0
"""What a container wrote: the last of both streams, and those who read along."""

from __future__ import annotations

import codecs
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from nsbox import units
from nsbox.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_BYTES = 1 << 20
STREAMS = ("both", "stdout", "stderr")
_NUMBERS = {"stdout": (1,), "stderr": (2,), "both": (1, 2)}


def check(stream: Any, tail: Any) -> None:
    """Raises SpecError unless they are what ``Container.logs()`` takes."""
    if stream not in STREAMS:
        raise SpecError("stream", f"{stream!r}: use {' or '.join(map(repr, STREAMS))}")
    if tail is not None:
        units.count(tail, "tail")


class Log:
    """The last output of both streams, in the order in which it came; at most 1 MiB."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._first = 0  # how many chunks were dropped
        self._ended = False
        self._changed = threading.Condition()

    def append(self, number: int, data: bytes) -> None:
        """*data* of stream *number*: 1 or 2."""
        with self._changed:
            self._chunks.append((number, data))
            self._size += len(data)
            while self._size > LOG_BYTES:
                number, oldest = self._chunks.popleft()
                more = self._size - LOG_BYTES
                self._size -= min(more, len(oldest))
                if more < len(oldest):
                    self._chunks.appendleft((number, oldest[more:]))
                else:
                    self._first += 1
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def text(self, stream: str = "both", tail: int | None = None) -> str:
        """All that is kept, or the last *tail* lines of it."""
        wanted = _NUMBERS[stream]
        with self._changed:
            data = b"".join(data for number, data in self._chunks if number in wanted)
        return _last_lines(data, tail).decode("utf-8", "replace")

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
        wanted = _NUMBERS[stream]
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            kept = b"".join(data for number, data in self._chunks if number in wanted)
            at = self._first + len(self._chunks)
        yield from filter(None, [_last_lines(kept, tail)])
        while True:
            with self._changed:
                while at >= self._first + len(self._chunks) and not self._ended:
                    left = None if deadline is None else deadline - time.monotonic()
                    if (left is not None and left <= 0) or not self._changed.wait(left):
                        return
                start = max(at, self._first) - self._first
                new = [self._chunks[i] for i in range(start, len(self._chunks))]
                at = self._first + len(self._chunks)
                ended = self._ended
            yield from filter(None, [b"".join(d for number, d in new if number in wanted)])
            if ended:
                return


def _last_lines(data: bytes, count: int | None) -> bytes:
    if count is None:
        return data
    return b"".join(data.splitlines(keepends=True)[-count:] if count else [])
