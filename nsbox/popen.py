# SPDX-License-Identifier: Apache-2.0
"""Popen: subprocess's, but boxed."""

from __future__ import annotations

import functools
import io
import os
import time
from typing import TYPE_CHECKING, Any

from nsbox import cputime, interrupts, watch
from nsbox.checks import flag
from nsbox.converse import (
    Verdict,
    as_bytes,
    completed,
    converse,
    judge,
    sinks_of,
    type_into,
    unwatch,
    usage_of,
    watch_oom,
)
from nsbox.errors import StateError, TimeoutExpired
from nsbox.forgotten import forgotten
from nsbox.result import Reason, Usage
from nsbox.sandbox import build_spec, launch
from nsbox.streams import PIPE, connect, connect_terminal, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.plan import Plan
    from nsbox.process import Ended, Process
    from nsbox.result import Completed
    from nsbox.spec import Spec
    from nsbox.streams import Sink, Stdio
    from nsbox.terminal import Terminal


class _Input(io.FileIO):
    """Writes at once, and all of it: write(2) itself ends early when a signal comes."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        left = memoryview(data).cast("B")
        length = len(left)
        while left:
            written = super().write(left)
            if written is None:  # the caller made it non-blocking, and it is full
                return length - len(left) or None
            left = left[written:]
        return length


class Popen:
    """A sandboxed command that goes on: ``subprocess.Popen``'s attributes and methods.

    ``with`` or ``close()`` kills what is left. Output that is not piped is relayed by the
    library's thread. See ``run`` for the keywords; ``limits.output`` is kept by
    ``communicate()``, for who reads the pipes by himself sees how much comes. With ``pty=True``
    *terminal* is the other side of its terminal, to be read and written.
    """

    def __init__(
        self,
        args: Any,
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool = False,
        **keywords: Any,
    ) -> None:
        self._closed = True
        spec = build_spec(args, keywords, "Popen")
        self._begin(spec, functools.partial(launch, spec), stdin, stdout, stderr, text)

    @classmethod
    def _of(
        cls,
        spec: Spec,
        start: Callable[[Stdio], Process],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool = False,
    ) -> Popen:
        """One that is started in another way: in a sandbox that is there."""
        self = cls.__new__(cls)
        self._closed = True
        self._begin(spec, start, stdin, stdout, stderr, text)
        return self

    def _begin(
        self,
        spec: Spec,
        start: Callable[[Stdio], Process],
        stdin: Any,
        stdout: Any,
        stderr: Any,
        text: bool,
    ) -> None:
        self.spec, self.args = spec, list(spec.args)
        self._launch = start
        self._text = flag(text, "text")
        self._verdict = Verdict()
        self._ended: Ended | None = None
        self._done: Completed | None = None
        self._relays: dict[int, Sink] = {}
        self._wall: watch.Timer | None = None
        self._meter: cputime.Meter | None = None
        self.stdin: Any = None
        self.stdout: Any = None
        self.stderr: Any = None
        self.terminal: Terminal | None = None
        try:
            with interrupts.Held():
                self._start(stdin, stdout, stderr)
        except BaseException:
            if not self._closed:  # interrupted, just after everything was made
                self.close()
            raise

    def _start(self, stdin: Any, stdout: Any, stderr: Any) -> None:
        wanted = (stdin, stdout, stderr)
        self._stdio = (connect if self.spec.pty is None else connect_terminal)(*wanted)
        try:
            self._process = self._launch(self._stdio)
        except BaseException:
            self._stdio.close()
            raise
        self._closed = False
        if self.spec.pty is not None:
            from nsbox.terminal import Terminal

            self.terminal = Terminal(self._process.terminal)
            self._process.terminal = -1
        self._keep = tuple(n for n, value in ((1, stdout), (2, stderr)) if value == PIPE)
        self.stdin, self.stdout, self.stderr = (self._open(n) for n in range(3))
        self._relays = sinks_of(self._stdio, None, ())
        self._watch()

    def _open(self, number: int) -> Any:
        if number != 0 and number not in self._keep:
            return None
        fd = self._stdio.take(number)
        if fd < 0:
            return None
        os.set_blocking(fd, True)
        raw = _Input(fd, "wb") if number == 0 else io.open(fd, "rb")  # noqa: SIM115, UP020
        if not self._text:
            return raw
        buffer = raw if number else io.BufferedWriter(raw)
        return io.TextIOWrapper(buffer, encoding="utf-8", errors="replace", write_through=True)

    def _watch(self) -> None:
        keeper = watch.get()
        keeper.add(self._process.fileno(), self._news)
        watch_oom(self._process)
        for sink in self._relays.values():
            keeper.add(sink.fd, functools.partial(take, sink))
        if self.spec.limits.wall is not None:
            self._wall = keeper.call_later(self.spec.limits.wall, self._time_out)
        self._meter = cputime.meter(self._process)
        if self._meter is not None:
            self._meter.keep(self._spend_cpu)

    def _news(self) -> None:
        """By the watch: something arrived on the channel."""
        try:
            if self._process.poll() is None:
                return
        except StateError:  # lost: whoever asks is told
            pass
        watch.get().remove(self._process.fileno())

    def _time_out(self) -> None:
        self._end_for(Verdict(Reason.TIMEOUT, "wall"))

    def _spend_cpu(self) -> None:
        self._end_for(Verdict(Reason.CPU_TIME, "cpu_time"))

    def _end_for(self, verdict: Verdict) -> None:
        try:
            if self._process.poll() is None and self._verdict.reason is None:
                self._verdict = verdict
                self._process.kill()
        except StateError:
            pass

    # ---------------------------------------------------------- subprocess's

    @property
    def pid(self) -> int:
        """The process as the caller sees it: the payload, or nsbox-init when that is PID 1."""
        return self._process.pid

    @property
    def pidfd(self) -> int:
        """A pidfd of it; -1 after the end."""
        return self._process.pidfd

    @property
    def returncode(self) -> int | None:
        return None if self._ended is None else self._ended.returncode

    def fileno(self) -> int:
        """Readable when it has ended (then call ``poll()``): for select and event loops."""
        return self._process.fileno()

    def poll(self) -> int | None:
        """Its return code, or None while it runs."""
        if self._ended is None:
            ended = self._process.poll()
            if ended is not None:
                self._settle(ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end. Raises TimeoutExpired; it goes on then."""
        if self._ended is None:
            ended = self._process.wait(timeout)
            if ended is None:
                raise TimeoutExpired(self.args, timeout or 0.0)
            self._settle(ended)
        assert self._ended is not None
        return self._ended.returncode

    def communicate(
        self, input: Any = None, timeout: float | None = None
    ) -> tuple[bytes | str | None, bytes | str | None]:
        """Feed *input*, read the pipes to their end or the payload's; returns both outputs.

        Raises:
            TimeoutExpired: *timeout* passed; everything was killed.
        """
        data = as_bytes(input)
        if self.terminal is not None:
            data = self._type(data)
        for number, stream in enumerate((self.stdin, self.stdout, self.stderr)):
            if stream is not None and not stream.closed:
                if number == 0:
                    stream.flush()
                fd = os.dup(stream.fileno())
                stream.close()
                os.set_blocking(fd, False)
                self._stdio.ours[number] = fd
        sinks = sinks_of(self._stdio, self.spec.limits.output_bytes, self._keep)
        sinks = {n: sink for n, sink in sinks.items() if n in self._keep}  # others are relayed
        if self._ended is None:
            left = (
                None if timeout is None else time.monotonic() - self._process.started_at + timeout
            )
            ended, verdict, late = converse(self._process, self._stdio, sinks, data, timeout=left)
            if verdict.reason is not None:
                self._verdict = verdict
            self._settle(ended)
        else:
            late = False
            for sink in sinks.values():
                while sink.read() and not sink.truncated:
                    pass
            if self._verdict.reason is None and any(sink.truncated for sink in sinks.values()):
                self._verdict = Verdict(Reason.OUTPUT_LIMIT, "output")  # quicker than its reader
        done = self._done = self._completed(sinks)
        if late:
            raise TimeoutExpired(self.args, timeout or 0.0, done)
        return done.stdout, done.stderr

    def _completed(self, sinks: dict[int, Sink]) -> Completed:
        ended = self._ended
        assert ended is not None
        return completed(self.spec, self._process, ended, self._verdict, sinks, self._keep,
                         self._text)  # fmt: skip

    def _type(self, data: bytes) -> bytes:
        """The terminal is what communicate() reads and writes."""
        assert self.terminal is not None
        self._keep = (1,)
        return type_into(self._stdio, os.dup(self.terminal.fileno()), data)

    def send_signal(self, sig: int) -> None:
        """To the payload; nothing when it has ended."""
        self._process.send_signal(sig)

    def terminate(self) -> None:
        """SIGTERM to the payload."""
        self.send_signal(15)

    def kill(self) -> None:
        """SIGKILL to every process of the sandbox."""
        self._process.kill()

    # ---------------------------------------------------------- nsbox's

    @property
    def reason(self) -> Reason | None:
        """Why it ended, or None while it runs."""
        return None if self._ended is None else judge(self._process, self._ended, self._verdict)[0]

    def usage(self) -> Usage | None:
        """What it used, once it has ended."""
        return None if self._ended is None else usage_of(self._process, self._ended)

    def result(self) -> Completed:
        """What ``run`` would have returned; its outputs are those that ``communicate()`` read.

        Raises:
            StateError: it has not ended.
        """
        if self.poll() is None:
            raise StateError(f"{self.args[0]!r} has not ended", status="running")
        if self._done is None:
            self._done = self._completed({})
        return self._done

    @property
    def applied(self) -> dict[str, str]:
        return dict(self._process.plan.applied)

    @property
    def enforcement(self) -> dict[str, str]:
        return dict(self._process.plan.enforcement)

    def explain(self) -> Plan:
        """The plan that was run."""
        return self._process.plan

    def _settle(self, ended: Ended) -> None:
        """It has ended: give back everything but what the caller may still read."""
        self._ended = ended
        self._release()

    def _release(self) -> None:
        if self._closed:
            return
        self._closed = True
        keeper = watch.get()
        unwatch(self._process)
        if self._wall is not None:
            self._wall.cancel()
        if self._meter is not None:
            self._meter.cancel()
        self._process.close()
        for sink in self._relays.values():
            keeper.remove(sink.fd)
            sink.drain()
            self._stdio.ours.pop(1 if sink is self._relays.get(1) else 2, None)
            sink.close()

    def close(self) -> None:
        """Kill what is left and give everything back; idempotent.

        Raises:
            StateError: a process in it sleeps in the kernel and cannot be killed now.
        """
        with interrupts.Held():
            self._close()

    def _close(self) -> None:
        stuck: StateError | None = None
        if not self._closed and self._ended is None:
            try:
                self._ended = self._process.kill_and_wait()
            except StateError as e:  # lost with its launcher
                stuck = e if e.status == "stuck" else None
        self._release()
        for stream in (self.stdin, self.stdout, self.stderr, self.terminal):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # unflushed input that nobody will read
                    pass
        self._stdio.close()
        if stuck is not None:
            raise stuck

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._process.mine():
            forgotten(self)

    def __repr__(self) -> str:
        if self._ended is not None:
            state = f"returned {self._ended.returncode}"
        else:
            state = "closed" if self._closed else f"running as {self.pid}"
        return f"<nsbox.{type(self).__name__} {self.args[0]!r} {state}>"
