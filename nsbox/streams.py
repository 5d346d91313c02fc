# SPDX-License-Identifier: Apache-2.0
"""Standard input and output: which descriptor the payload gets, and who is at the other end."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import os
import select
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from nsbox import watch
from nsbox.checks import flag
from nsbox.errors import SpecError
from nsbox.process import dev_null

if TYPE_CHECKING:
    from collections.abc import Callable

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
_CHUNK = 1 << 16
_MOST_IN_PIPE = 1 << 20  # fs.pipe-max-size of those who are not root
_NARROW = 1 << 12  # bytes that fit in an idle pipe: the least that there is
#: How often a relay whose reader is slow is tried again.
STUCK_POLL_S = 0.01


class Sink:
    """Where bytes of one stream go: kept up to a limit, relayed to the caller's own, or *into*."""

    def __init__(
        self,
        fd: int,
        *,
        keep: bool,
        relay_to: int = -1,
        limit: int | None = None,
        into: Callable[[bytes], None] | None = None,
    ) -> None:
        self.fd = fd
        self.lock = threading.RLock()
        self._into = into
        self._kept = io.BytesIO()
        self.truncated = False
        self._keep = keep
        self._relay_to = relay_to
        self._limit = limit
        self._total = 0
        self._wide = 0
        self._ended = False

    def read(self) -> bool:
        """Take what is there, once poll(2) says that something is; False at the end."""
        with self.lock:
            if self.fd < 0:
                return False
            if self._wide:
                self._widen()
            try:
                data = os.read(self.fd, _CHUNK if self._relay_to < 0 else select.PIPE_BUF)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                self._ended = True
                return False
            self._take(data)
            return True

    def narrow(self) -> None:
        """Give back, until the first read, what makes a pipe quick: 1 KiB of the kernel's memory,
        and 15 of the 16,384 pages that all pipes of an ordinary user may have; pipe(7)."""
        with contextlib.suppress(OSError):  # more than that is in it already
            self._wide = fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ)
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _NARROW)

    def _widen(self) -> None:
        size, self._wide = self._wide, 0
        with contextlib.suppress(OSError):  # the user has too many by now
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, size)

    def has_news(self) -> bool:
        """Whether to read would not block. What epoll told may have been of another descriptor,
        closed since, whose number this one got."""
        if self.fd < 0:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def stuck(self) -> bool:
        """Whether to relay more would block: the caller's own stream has a reader that is slow.

        PIPE_BUF bytes at a time fit where poll(2) says that something does.
        """
        if self._relay_to < 0:
            return False
        poll = select.poll()
        poll.register(self._relay_to, select.POLLOUT)
        return not poll.poll(0)

    def drain(self, *, patient: bool = True) -> None:
        """What is in the pipe now; more may never come, and its end may never.

        *patient*: wait for the reader of what is relayed; else what does not fit is dropped.
        """
        left = _MOST_IN_PIPE  # a writer may be quicker than us
        while left > 0 and not self._ended and (patient or not self.stuck()):
            with self.lock:  # the library's thread may be at it too
                if not self.has_news() or not self.read():
                    return
            left -= select.PIPE_BUF

    def _take(self, data: bytes) -> None:
        self._total += len(data)
        if self._limit is not None and self._total > self._limit:
            self.truncated = True
            data = data[: max(0, len(data) - (self._total - self._limit))]
        if self._into is not None:
            self._into(data)
        elif self._keep:
            self._kept.write(data)
        elif self._relay_to >= 0:
            relay(self._relay_to, data)

    def hand_over(self) -> bytes:
        """What was kept: as it is, without a copy, and the caller's alone from now on."""
        kept, self._kept = self._kept, io.BytesIO()
        return kept.getvalue()

    def close(self) -> None:
        """Never while the library's thread reads: it would read what has the number next."""
        with self.lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


def take(sink: Sink) -> None:
    """For the library's thread, which must never block: what arrived, or the end of it."""
    with sink.lock:
        if sink.fd < 0:
            return
        if sink.stuck():
            watch.get().remove(sink.fd)
            watch.get().call_later(STUCK_POLL_S, functools.partial(_take_again, sink))
        elif sink.has_news() and not sink.read():
            watch.get().remove(sink.fd)


def _take_again(sink: Sink) -> None:
    with sink.lock:
        if sink.fd >= 0:
            watch.get().add(sink.fd, functools.partial(take, sink))


def relay(fd: int, data: bytes) -> None:
    """Write to the caller's own stream; a reader who has gone is the caller's affair."""
    stream = sys.stdout if fd == 1 else sys.stderr
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        pass
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            continue
        except OSError:
            return


class Stdio:
    """The descriptors 0, 1 and 2 of one payload, and the caller's ends of its pipes.

    *theirs* are given to the payload and closed here after the spawn; *ours* stay.
    """

    def __init__(self) -> None:
        self.theirs: dict[int, int] = {}
        self.ours: dict[int, int] = {}
        self._close: list[int] = []

    def close_theirs(self) -> None:
        while self._close:
            os.close(self._close.pop())

    def close(self) -> None:
        self.close_theirs()
        while self.ours:
            os.close(self.ours.popitem()[1])

    def take(self, number: int) -> int:
        """The caller's end of a pipe, now the taker's to close; -1 when there is none."""
        return self.ours.pop(number, -1)

    def _pipe(self, number: int) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        mine, other = (write, read) if number == 0 else (read, write)
        self.theirs[number], self.ours[number] = other, mine
        self._close.append(other)
        if number == 0:
            os.set_blocking(mine, False)

    def _connect(self, number: int, value: int | None) -> None:
        if value is None and number:
            self._pipe(number)
        elif value is None or value == DEVNULL:
            self.theirs[number] = dev_null()
        elif value == PIPE:
            self._pipe(number)
        elif value == STDOUT and number == 2:
            self.theirs[2] = self.theirs[1]
        else:
            self.theirs[number] = value


def _checked(number: int, value: Any, name: str) -> int | None:
    """None, PIPE, DEVNULL, STDOUT of stderr, or a descriptor."""
    if value is None or value in (PIPE, DEVNULL) or (value == STDOUT and number == 2):
        return value  # type: ignore[no-any-return]
    fd = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if fd == -1 and hasattr(value, "fileno"):
        try:
            fd = value.fileno()
        except (OSError, ValueError, io.UnsupportedOperation):
            fd = -1
    if fd < 0:
        raise SpecError(name, f"{value!r} is not a descriptor, a file, PIPE or DEVNULL")
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except (OSError, OverflowError) as e:
        raise SpecError(name, f"descriptor {fd} is not open") from e
    return fd


def connect(stdin: Any, stdout: Any, stderr: Any) -> Stdio:
    """Pipes and descriptors as subprocess has them, but None means /dev/null for input and a
    relay for output: the caller's terminal is never handed in."""
    wanted = (_checked(0, stdin, "stdin"), _checked(1, stdout, "stdout"),
              _checked(2, stderr, "stderr"))  # fmt: skip
    stdio = Stdio()  # its pipes have numbers that were nobody's, when these were looked at
    try:
        for number, value in enumerate(wanted):
            stdio._connect(number, value)
    except BaseException:
        stdio.close()
        raise
    return stdio


def connect_terminal(stdin: Any, stdout: Any, stderr: Any) -> Stdio:
    """Nothing yet: all three are a terminal of the sandbox's own, whose master comes later."""
    for value, name in ((stdin, "stdin"), (stdout, "stdout"), (stderr, "stderr")):
        if value is not None and value != PIPE:
            raise SpecError(name, "is the terminal, with pty=True: give input= or capture_output=")
    return Stdio()


def wanted_streams(
    stdin: Any, stdout: Any, stderr: Any, input: Any, capture_output: bool
) -> tuple[Any, Any, Any]:
    """The three, with what ``input=`` and ``capture_output=`` mean; ValueError as subprocess has
    it."""
    if flag(capture_output, "capture_output"):
        if stdout is not None or stderr is not None:
            raise ValueError("stdout and stderr may not be used with capture_output")
        stdout = stderr = PIPE
    if input is not None:
        if stdin is not None:
            raise ValueError("stdin may not be used with input")
        stdin = PIPE
    return stdin, stdout, stderr


class Feeder:
    """Writes *data* to a pipe as it takes it; closes it at the end, or when nobody reads."""

    def __init__(self, fd: int, data: bytes, done: Callable[[int], None]) -> None:
        self.fd = fd
        self._left = memoryview(data)
        self._done = done
        if not data:
            self.close()

    def write(self) -> None:
        try:
            self._left = self._left[os.write(self.fd, self._left[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self._left = memoryview(b"")
        if not self._left:
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self._done(fd)
            os.close(fd)
