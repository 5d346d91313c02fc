# SPDX-License-Identifier: Apache-2.0
"""Seeing a payload through: input, output, deadlines, and the verdict on its end."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from nsbox import cputime, interrupts, watch
from nsbox.checks import flag
from nsbox.errors import TimeoutExpired
from nsbox.result import Completed, Reason, Usage
from nsbox.streams import PIPE, STUCK_POLL_S, Feeder, Sink, Stdio, connect, connect_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.process import Ended, Process
    from nsbox.spec import Spec

_OOM_POLL_S = 0.005
_SIGKILL = 9


def watch_oom(process: Process) -> None:
    """Where nobody waits, the library's thread keeps ``oom_group``."""
    if process.oom_fd >= 0:
        watch.get().add(process.oom_fd, lambda: _oom_news(process))


def _oom_news(process: Process) -> None:
    watch.get().remove(process.oom_fd)
    if not process.enforce_oom_group():
        watch.get().call_later(_OOM_POLL_S, lambda: _oom_news(process))


def unwatch(process: Process) -> None:
    """Before its descriptors are closed."""
    for fd in (process.fileno(), process.oom_fd):
        watch.get().remove(fd)


class Verdict(NamedTuple):
    """What nsbox itself did to a payload, before the kernel's word on its end."""

    reason: Reason | None = None
    limit: str = ""


def judge(process: Process, ended: Ended, verdict: Verdict) -> tuple[Reason, tuple[str, ...]]:
    """Why it ended. OOM is the kernel's counter, never a guess from signal 9."""
    hit = [verdict.limit] if verdict.limit else []
    stats = process.stats
    oom = stats is not None and stats.oom_kills > 0
    if oom:
        hit.append("memory")
    if stats is not None and stats.forks_refused:
        hit.append("pids")
    hit += process.used_up
    if verdict.reason is not None:
        return verdict.reason, tuple(hit)
    if stats is not None and oom and (ended.returncode == -_SIGKILL or stats.oom_group):
        return Reason.OOM, tuple(hit)
    if process.cpu_limit is not None and cputime.spent(process, ended):
        return Reason.CPU_TIME, (*hit, "cpu_time")
    return (Reason.SIGNALED if ended.returncode < 0 else Reason.EXITED), tuple(hit)


def usage_of(process: Process, ended: Ended) -> Usage:
    """Whole-tree figures: the cgroup's where there is one, else the launcher's wait."""
    stats = process.stats
    peak = (
        stats.memory_peak if stats is not None and stats.memory_peak is not None else ended.maxrss
    )
    cpu_user, cpu_system = cputime.used(process, ended)
    return Usage(
        wall=process.ended_at - process.started_at,
        cpu_user=cpu_user,
        cpu_system=cpu_system,
        memory_peak=peak,
        pids_peak=stats.pids_peak if stats is not None else None,
        io_read=ended.io_read if stats is None or stats.io_read is None else stats.io_read,
        io_write=ended.io_write if stats is None or stats.io_write is None else stats.io_write,
        throttled=stats.throttled if stats is not None else None,
    )


class _Conversation:
    """Feeds input, takes output and waits for the end, in the calling thread."""

    def __init__(self, process: Process, feeder: Feeder | None, sinks: list[Sink]) -> None:
        self._process = process
        self._poll = select.poll()
        self._channel = process.fileno()
        self._poll.register(self._channel, select.POLLIN)
        self._oom = process.oom_fd
        self._oom_pending = False
        if self._oom >= 0:
            self._poll.register(self._oom, select.POLLIN)
        self._feeder = feeder
        self._sinks = {sink.fd: sink for sink in sinks}
        self._stuck: list[int] = []
        self._meter = cputime.meter(process)
        self.spent = False
        for sink in sinks:
            self._poll.register(sink.fd, select.POLLIN)
        if feeder is not None and feeder.fd >= 0:
            self._poll.register(feeder.fd, select.POLLOUT)

    def unregister(self, fd: int) -> None:
        self._poll.unregister(fd)

    def run(self, deadline: float | None) -> Ended | None:
        """How it ended; None when *deadline* passed, or output or CPU time was used up."""
        ended = self._process.poll()
        while ended is None:
            waits = [] if deadline is None else [deadline - time.monotonic()]
            if waits and waits[0] <= 0:
                return None
            if self._meter is not None:
                if self._meter.due <= time.monotonic() and self._meter.look():
                    self.spent = True
                    return None
                waits.append(max(0.0, self._meter.due - time.monotonic()))
            if self._oom_pending:
                self._oom_pending = not self._process.enforce_oom_group()
                waits.append(_OOM_POLL_S)
            if self._stuck:
                waits.append(STUCK_POLL_S)
            events = self._poll.poll(min(waits) * 1000 if waits else None)
            if self._stuck:
                self._try_stuck_again()
            for fd, news in events:
                if fd == self._channel:
                    ended = self._process.poll()
                elif not self._serve(fd, news):
                    return None
        return ended

    def _try_stuck_again(self) -> None:
        for fd in self._stuck:
            self._poll.register(fd, select.POLLIN)
        self._stuck.clear()

    def _serve(self, fd: int, news: int) -> bool:
        """False: that was more output than it may have."""
        sink = self._sinks.get(fd)
        if sink is not None:
            if news & select.POLLIN and sink.stuck():
                self._poll.unregister(fd)
                self._stuck.append(fd)
            elif not sink.read():
                self._poll.unregister(fd)
            return not sink.truncated
        if fd == self._oom:
            self._oom_pending = True
            self._poll.unregister(fd)
        elif self._feeder is not None and fd == self._feeder.fd:
            self._feeder.write()
        return True


def type_into(stdio: Stdio, master: int, data: bytes) -> bytes:
    """The terminal with this *master*, whose owner this becomes, as output and as input;
    returns what is to be typed there to say *data*."""
    from nsbox.terminal import typed

    stdio.ours[1] = master
    stdio.ours[0] = os.dup(master)
    os.set_blocking(master, False)
    return typed(data)


def sinks_of(stdio: Stdio, limit: int | None, keep: tuple[int, ...]) -> dict[int, Sink]:
    """One for each pipe of the payload's: those in *keep* are kept, the others relayed."""
    return {n: Sink(stdio.ours[n], keep=n in keep, relay_to=-1 if n in keep else n,
                    limit=limit if n in keep else None)
            for n in (1, 2) if n in stdio.ours}  # fmt: skip


def converse(
    process: Process,
    stdio: Stdio,
    sinks: dict[int, Sink],
    data: bytes,
    *,
    timeout: float | None = None,
    wall: float | None = None,
) -> tuple[Ended, Verdict, bool]:
    """Returns how it ended, what nsbox did about it, and whether *timeout* had passed.

    *timeout* and *wall* (``Limits.wall``) are seconds from the start.
    """
    feeder = None
    conversation: _Conversation | None = None
    if 0 in stdio.ours:
        fd = stdio.take(0)
        feeder = Feeder(fd, data, lambda fd: conversation.unregister(fd) if conversation else None)
    try:
        conversation = _Conversation(process, feeder, list(sinks.values()))
        limits = [limit for limit in (timeout, wall) if limit is not None]
        deadline = process.started_at + min(limits) if limits else None
        verdict, late = Verdict(), False
        with interrupts.Released():
            ended = conversation.run(deadline)
            if ended is None:
                ended = process.kill_and_wait()
                if any(sink.truncated for sink in sinks.values()):
                    verdict = Verdict(Reason.OUTPUT_LIMIT, "output")
                elif conversation.spent:
                    verdict = Verdict(Reason.CPU_TIME, "cpu_time")
                else:
                    late = timeout is not None and (wall is None or timeout <= wall)
                    verdict = Verdict(Reason.TIMEOUT, "" if late else "wall")
            for sink in sinks.values():
                sink.drain(patient=verdict.reason is None)
        if verdict.reason is None and any(sink.truncated for sink in sinks.values()):
            verdict = Verdict(Reason.OUTPUT_LIMIT, "output")  # it was quicker than its reader
        assert ended is not None
        return ended, verdict, late
    finally:
        if feeder is not None:
            conversation = None
            feeder.close()


def _captured(sink: Sink, text: bool) -> bytes | str:
    """Lines are ended before it is text, in which a character may take four bytes; each line here
    frees what the one before made, so that there are two of it at most."""
    data = sink.hand_over()
    if not text:
        return data
    data = data.replace(b"\r\n", b"\n")
    data = data.replace(b"\r", b"\n")
    return data.decode("utf-8", "replace")


def as_bytes(data: Any) -> bytes:
    if data is None:
        return b""
    if isinstance(data, str):
        return data.encode()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"input must be bytes or str, not {type(data).__name__}")
    return bytes(data)


def finish(
    spec: Spec,
    streams: tuple[Any, Any, Any],
    start: Callable[[Stdio], Process],
    *,
    data: bytes = b"",
    text: bool = False,
    check: bool = False,
    timeout: float | None = None,
) -> Completed:
    """Start it, see it through to its end, and give everything back: the body of ``run``.

    *streams* are stdin, stdout and stderr as ``run`` has them.
    """
    flag(text, "text")
    flag(check, "check")
    keep = tuple(n for n in (1, 2) if streams[n] == PIPE)
    sinks: dict[int, Sink] = {}
    with interrupts.Held():
        stdio = (connect if spec.pty is None else connect_terminal)(*streams)
        try:
            process = start(stdio)
            try:
                if spec.pty is not None:
                    fd, process.terminal = process.terminal, -1
                    data = type_into(stdio, fd, data)
                sinks = sinks_of(stdio, spec.limits.output_bytes, keep)
                ended, verdict, late = converse(
                    process, stdio, sinks, data, timeout=timeout, wall=spec.limits.wall
                )
            finally:
                process.close()
        finally:
            stdio.close()
    done = completed(spec, process, ended, verdict, sinks, keep, text)
    if late:
        raise TimeoutExpired(done.args, timeout or 0.0, done)
    if check:
        done.check_returncode()
    return done


def completed(
    spec: Spec,
    process: Process,
    ended: Ended,
    verdict: Verdict,
    sinks: dict[int, Sink],
    keep: tuple[int, ...],
    text: bool,
) -> Completed:
    reason, hit = judge(process, ended, verdict)
    kept = {n: _captured(sinks[n], text) if n in keep and n in sinks else None for n in (1, 2)}
    return Completed(
        args=spec.args,
        returncode=ended.returncode,
        stdout=kept[1],
        stderr=kept[2],
        reason=reason,
        usage=usage_of(process, ended),
        truncated=any(sink.truncated for sink in sinks.values()),
        limits_hit=hit,
        enforcement=dict(process.plan.enforcement),
        applied=dict(process.plan.applied),
        changes=process.changes() if spec.root.kind == "overlay" else (),
    )
