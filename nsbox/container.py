# SPDX-License-Identifier: Apache-2.0
"""Container: namespaces and a cgroup around one process, which is PID 1 inside.

PID 1's life is the container's life; other processes in it say nothing about its state.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsbox import enter, interrupts, probe, sandboxes, watch
from nsbox.converse import Verdict, judge, unwatch, usage_of, watch_oom
from nsbox.errors import SpecError, StateError, TimeoutExpired
from nsbox.names import NAMESPACES
from nsbox.namespace import kill_members
from nsbox.result import Completed, Reason
from nsbox.sandbox import build_spec, check_spec, launch, plan_for
from nsbox.streams import PIPE, Sink, connect, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.plan import Plan
    from nsbox.popen import Popen
    from nsbox.process import Ended, Process
    from nsbox.spec import Spec

LOG_BYTES = 1 << 20
_SIGTERM, _SIGKILL = 15, 9

#: status -> the verbs allowed in it, and the status that each leads to.
TRANSITIONS: dict[str, dict[str, str]] = {
    "created": {"start": "running", "close": "stopped"},
    "running": {
        "stop": "stopped",
        "kill": "running",
        "exec": "running",
        "popen": "running",
        "wait": "stopped",
        "close": "stopped",
    },
    "stopped": {"stop": "stopped", "kill": "stopped", "wait": "stopped", "close": "stopped"},
}


class Log:
    """The last output of both streams, in the order in which it came; at most 1 MiB."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._lock = threading.Lock()

    def append(self, data: bytes) -> None:
        with self._lock:
            self._data += data
            if len(self._data) > LOG_BYTES:
                del self._data[:-LOG_BYTES]

    def text(self) -> str:
        with self._lock:
            return self._data.decode("utf-8", "replace")


class Container:
    """One container. Made stopped; ``with`` starts it, and ends it at the block's end.

    Takes the keywords of ``run()``; ``init=False`` is the default: the command itself is
    PID 1. Its output is kept, see ``logs()``, unless *stdout* or *stderr* say otherwise.

    Raises:
        SpecError: a keyword's value is wrong.
    """

    def __init__(
        self,
        args: Any,
        *,
        name: str | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        init: bool = False,
        **keywords: Any,
    ) -> None:
        self._wanted = (args, {**keywords, "init": init})
        self.spec: Spec = check_spec(*self._wanted)
        if self.spec.limits.output is not None:
            raise SpecError("limits.output", "is for run(): of a container's output the last "
                            "1 MiB is kept")  # fmt: skip
        for number, stream in enumerate((stdin, stdout, stderr)):
            if stream == PIPE:
                raise SpecError(("stdin", "stdout", "stderr")[number], "PIPE is for Popen")
        self.name = name or Path(self.spec.args[0]).name
        self._stdio_wanted = (stdin, stdout, stderr)
        self._join: tuple[tuple[str, ...], int, str] = ((), -1, "")
        self._on_end: Callable[[], None] | None = None
        self._status = "created"
        self._process: Process | None = None
        self._ended: Ended | None = None
        self._verdict = Verdict()
        self._members = 0
        self._log = Log()
        self._sinks: list[Sink] = []
        self._wall: watch.Timer | None = None
        self._note = ""
        self._lock = threading.RLock()

    # ------------------------------------------------------------ lifecycle

    def _allow(self, verb: str) -> None:
        if verb not in TRANSITIONS[self._status]:
            raise StateError(f"container {self.name!r} is {self._status}: cannot {verb}",
                             status=self._status)  # fmt: skip

    def start(self) -> Container:
        """Set up the sandbox and execute the command.

        Raises:
            StateError: it was started before.
            SetupError, Unavailable: as ``run``; nothing is left, and it is stopped.
        """
        with interrupts.Held(), self._lock:
            self._allow("start")
            self._status = "stopped"
            self.spec = build_spec(*self._wanted)
            kinds, pidfd, id_map = self._join
            stdio = connect(*self._stdio_wanted)
            try:
                self._process = launch(
                    self.spec, stdio, join=kinds, joined_pidfd=pidfd, join_map=id_map
                )
            except BaseException:
                stdio.close()
                raise
            self._status = "running"
            try:
                self._note = sandboxes.note(self.name, self._process, self.spec, id_map)
            except OSError:  # it was quicker; or `nsbox ps` shows it without a name
                pass
            self._members = self._known_by_mounts()
            keeper = watch.get()
            for number in (1, 2):
                if number in stdio.ours:
                    sink = Sink(stdio.take(number), keep=False, into=self._log.append)
                    self._sinks.append(sink)
                    keeper.add(sink.fd, functools.partial(take, sink))
            stdio.close()
            keeper.add(self._process.fileno(), self._news)
            watch_oom(self._process)
            if self.spec.limits.wall is not None:
                self._wall = keeper.call_later(self.spec.limits.wall, self._time_out)
        return self

    def _known_by_mounts(self) -> int:
        """The mount namespace by which its processes are found, when its end ends neither a
        pid namespace nor a cgroup. 0: no need, or it has ended already."""
        process = self._process
        assert process is not None
        if process.cgroup is not None or "pid" not in process.plan.joined:
            return 0
        try:
            return os.stat(f"/proc/{process.pid}/ns/mnt").st_ino
        except OSError:
            return 0

    def _time_out(self) -> None:
        with self._lock:
            if self._status == "running" and self._process is not None:
                self._verdict = Verdict(Reason.TIMEOUT, "wall")
                self._process.kill()

    def _news(self) -> None:
        """By the watch, or by who asks: did it end?"""
        with self._lock:
            if self._status != "running" or self._process is None:
                return
            ended: Ended | None = None
            try:
                ended = self._process.poll()
                if ended is None:
                    return
            except StateError:  # lost with its launcher
                pass
            self._ended, self._status = ended, "stopped"
            self._release()
        if self._on_end is not None:
            self._on_end()  # not under our lock: the pod has one of its own

    def _release(self) -> None:
        if self._process is None:
            return
        keeper = watch.get()
        sandboxes.forget(self._note)
        unwatch(self._process)
        if self._wall is not None:
            self._wall.cancel()
        self._process.close()
        if self._members:
            kill_members("mnt", self._members)
        for sink in self._sinks:
            keeper.remove(sink.fd)
            sink.drain()
            sink.close()

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of PID 1; returns its code, -n for a signal.

        Raises:
            TimeoutExpired: it still runs after *timeout* seconds, and goes on.
            StateError: never started, or lost with the launcher.
        """
        self._allow("wait")
        self._await_end(timeout)
        if self._status == "running":
            raise TimeoutExpired(self.spec.args, timeout or 0.0)
        if self._ended is None:
            raise StateError(f"container {self.name!r} was lost: its launcher was killed, or it "
                             "never ran", status="lost")  # fmt: skip
        return self._ended.returncode

    def stop(self, grace: float = 10.0) -> int | None:
        """Ask PID 1 to end (SIGTERM); insist (SIGKILL) after *grace* seconds, >= 0.

        A PID 1 that does not catch the signal would never see it, so that is killed at once.
        Returns the code, None if it never ran. Stopping a stopped container does nothing.
        """
        if self._status == "created":
            self._allow("stop")
        process = self._process
        if self._status == "running" and process is not None:
            if grace > 0 and self._heeds(_SIGTERM):
                process.send_signal(_SIGTERM)
                self._await_end(grace)
            if self._status == "running":
                process.kill()
                self._await_end(None)
        return None if self._ended is None else self._ended.returncode

    def _await_end(self, timeout: float | None) -> None:
        """In whatever thread: the library's own may be the one that waits."""
        process = self._process
        if process is not None and self._status == "running":
            try:
                process.wait(timeout)
            except StateError:  # lost: _news() takes note
                pass
            self._news()

    def _heeds(self, sig: int) -> bool:
        """Whether SIGTERM would end it: PID 1 ignores what it has no handler for."""
        if self.spec.init or self._namespaced_pid() != 1:
            return True
        try:
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (sig - 1) & 1)
        except OSError:
            pass
        return False

    def exec(self, args: Any, **keywords: Any) -> Completed:
        """Run one more command in it and wait for its end: ``docker exec``.

        It is a member of all of the container's namespaces and of its cgroup, with its root,
        its environment and its restrictions. Its end is not the container's; the container's
        end is also its own.

        Args:
            args: the program and its arguments, a list.
            user, cwd: instead of the container's; *env* comes on top of the container's.
            stdin, stdout, stderr, input, capture_output, text, timeout, check: as for ``run``.
                After *timeout* its process group is killed; what left that goes on.

        Raises:
            StateError: it is not running, or ended meanwhile.
            SpecError, SetupError, TimeoutExpired, CommandError: as for ``run``.
        """
        return enter.execute(*self._entered("exec"), args, **keywords)

    def popen(self, args: Any, **keywords: Any) -> Popen:
        """As ``exec``, but goes on: a ``Popen``, with *user*, *env*, *cwd*, the streams, *text*."""
        return enter.popen(*self._entered("popen"), args, keywords)

    def _entered(self, verb: str) -> tuple[Process, Spec, str]:
        """What is entered: its process, its spec, and how its user namespace maps ids."""
        if self._process is not None:
            self._process.check_mine()
        self.status()
        with self._lock:
            self._allow(verb)
            process = self._process
            assert process is not None
            step = process.plan.id_map
            return process, self.spec, step.kind if step else self._join[2]

    def kill(self) -> None:
        """SIGKILL to every process in it; ``wait()`` for the end."""
        self._allow("kill")
        if self._process is not None and self._status == "running":
            self._process.kill()

    def close(self) -> None:
        """Kill what is left and give everything back; idempotent."""
        with interrupts.Held():
            if self._status == "running":
                self.kill()
                self._await_end(5)
            self._status = "stopped"

    def __enter__(self) -> Container:
        if self._status == "created":
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if getattr(self, "_status", "") == "running" and process and process.mine():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    # ------------------------------------------------------------ what it is

    def status(self) -> str:
        """``"created"``, ``"running"`` or ``"stopped"``."""
        if self._status == "running":
            self._news()
        return self._status

    @property
    def pid(self) -> int | None:
        """PID 1 as the caller sees it; None unless running."""
        return self._process.pid if self._status == "running" and self._process else None

    @property
    def pidfd(self) -> int:
        """Of the same process; -1 unless running. The container's to close."""
        return self._process.pidfd if self._status == "running" and self._process else -1

    @property
    def nspid(self) -> int | None:
        """The same process as it sees itself: 1, in a pid namespace of its own."""
        return self._namespaced_pid() if self.pid else None

    def _namespaced_pid(self) -> int:
        try:
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
        except OSError:
            pass
        return 0

    @property
    def namespaces(self) -> dict[str, int]:
        """Kind -> id (inode number, as lsns shows it) while it runs."""
        if self.pid is None:
            return {}
        return {kind: os.stat(f"/proc/{self.pid}/ns/{kind}").st_ino for kind in NAMESPACES}

    def logs(self) -> str:
        """What it wrote to both streams: the last 1 MiB, kept after its end."""
        return self._log.text()

    def explain(self) -> Plan:
        """The plan that was, or would be, run."""
        if self._process is not None:
            return self._process.plan
        kinds, _, id_map = self._join
        return plan_for(build_spec(*self._wanted), probe.host(), join=kinds, join_map=id_map)

    def result(self) -> Completed:
        """How it ended. Raises StateError unless it has."""
        process, ended = self._process, self._ended
        if process is None or ended is None:
            raise StateError(f"container {self.name!r} is {self._status}", status=self._status)
        reason, hit = judge(process, ended, self._verdict)
        return Completed(
            args=self.spec.args,
            returncode=ended.returncode,
            stdout=None,
            stderr=None,
            reason=reason,
            usage=usage_of(process, ended),
            limits_hit=hit,
            enforcement=dict(process.plan.enforcement),
            applied=dict(process.plan.applied),
        )

    def __repr__(self) -> str:
        where = f" as {self.pid}" if self.pid else ""
        return f"<nsbox.Container {self.name!r} {self._status}{where}>"
