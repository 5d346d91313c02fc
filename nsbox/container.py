# SPDX-License-Identifier: Apache-2.0
"""Container: namespaces and a cgroup around one process, which is PID 1 inside.

PID 1's life is the container's life; other processes in it say nothing about its state.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsbox import (
    cputime,
    enter,
    interrupts,
    lifecycle,
    logs,
    nslist,
    probe,
    processes,
    sandboxes,
    units,
    watch,
)
from nsbox.checks import listed_name, name_of
from nsbox.contents import Contents
from nsbox.control import Control
from nsbox.converse import Verdict, judge, unwatch, usage_of, watch_oom
from nsbox.errors import SpecError, StateError, TimeoutExpired
from nsbox.forgotten import forgotten
from nsbox.logs import Log
from nsbox.names import NAMESPACES, Clone
from nsbox.plugged import Plugged, shared
from nsbox.result import Completed, Reason
from nsbox.sandbox import build_spec, check_spec, launch, plan_for
from nsbox.slots import NOBODY, Joined
from nsbox.spec import NetLabel
from nsbox.streams import PIPE, Sink, Stdio, connect, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsbox.identity import Identity
    from nsbox.plan import Plan
    from nsbox.popen import Popen
    from nsbox.process import Ended, Process
    from nsbox.processes import ProcessInfo
    from nsbox.spec import Spec
    from nsbox.terminal import Terminal

_SIGTERM, _SIGKILL = 15, 9
STREAMS = ("stdin", "stdout", "stderr")

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
        "update": "running",
        "pause": "paused",
    },
    "paused": {
        "stop": "stopped",
        "kill": "paused",
        "wait": "stopped",
        "close": "stopped",
        "update": "paused",
        "resume": "running",
    },
    "stopped": {"stop": "stopped", "kill": "stopped", "wait": "stopped", "close": "stopped"},
}


def _read(sink: Sink, overflow: Callable[[], None]) -> None:
    """By the watch: output has come."""
    take(sink)
    if sink.truncated:
        overflow()


class Container(Contents, Control, Plugged):
    """One container. Made stopped; ``with`` starts it, and ends it at the block's end.

    Takes the keywords of ``run()``; ``init=False`` is the default: the command itself is
    PID 1. Its output is kept, see ``logs()``, unless *stdout* or *stderr* say otherwise;
    ``limits.output`` is of each stream of that. With ``pty=True`` there is a *terminal* to type
    into, as long as it runs.

    *name* is for listings, ``nsbox stop`` and the like, and in a network: printable text of at most
    255 bytes, without ``/``. Default the program's.

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
        self.terminal: Terminal | None = None
        self._pod = str(keywords.pop("_pod", ""))  # of a pod's own
        self._wanted = (args, {**keywords, "init": init})
        self.spec: Spec = check_spec(*self._wanted, "Container")
        for number, stream in enumerate((stdin, stdout, stderr)):
            if stream is not None and self.spec.pty is not None:
                raise SpecError(STREAMS[number], "is the terminal, with pty=True")
            if stream == PIPE:
                raise SpecError(STREAMS[number], "PIPE is for Popen")
        where = (*self.spec.args, self.spec.root.path)[0]
        self.name = name_of(where) or "container" if name is None else listed_name(name, "name")
        self._stdio_wanted = (stdin, stdout, stderr)
        self._who: Identity | None = None  # its pod's
        self._joined = NOBODY
        self._on_end: Callable[[], None] | None = None
        self._status = "created"
        self._never_ran = "another thread is about to start it"  # or what came in the way
        self._process: Process | None = None
        self._ended: Ended | None = None
        self._updated: dict[str, str] = {}
        self._verdict = Verdict()
        self._members = 0
        self._box = ""  # its name beyond its pod
        self._log = Log()
        self._sinks: list[Sink] = []
        self._wall: watch.Timer | None = None
        self._meter: cputime.Meter | None = None
        self._note = ""
        self._lock = threading.RLock()
        self._tell("created")

    # ------------------------------------------------------------ lifecycle

    def _allow(self, verb: str) -> None:
        status = self._shown()
        if verb not in TRANSITIONS[status]:
            raise StateError(f"container {self.name!r} is {status}: cannot {verb}",
                             status=status)  # fmt: skip

    def _shown(self) -> str:
        return "paused" if self._paused and self._status == "running" else self._status

    def start(self) -> Container:
        """Set up the sandbox and execute the command.

        Raises:
            StateError: it was started before.
            SetupError, Unavailable: as ``run``; nothing is left, and it is stopped.
        """
        with interrupts.Held(), self._lock:
            self._allow("start")
            self._status = "stopped"
            try:
                process, stdio, kept = self._launch()
            except BaseException as e:
                self._log.end()
                why = str(e) or type(e).__name__
                self._never_ran = f"it could not be started: {why}"
                self._tell("died", f"failed: {why}")
                raise
            self._process, self._status = process, "running"
            try:
                joined = process.join_map
                self._note = sandboxes.note(self.name, process, self.spec, joined, kept)
            except OSError:  # it was quicker; or `nsbox ps` shows it without a name
                pass
            self._members = self._known_by_mounts()
            nslist.boxes[process.pid] = self._box or self.name
            self._tell("started")
            keeper = watch.get()
            if self.spec.pty is not None:
                stdio.ours[1] = self._open_terminal()
            for number in (1, 2):
                if number in stdio.ours:
                    into = functools.partial(self._log.append, number)
                    limit = self.spec.limits.output_bytes
                    sink = Sink(stdio.take(number), keep=False, into=into, limit=limit)
                    self._sinks.append(sink)
                    sink.narrow()
                    overflow = watch.weakly(self._overflow)
                    keeper.add(sink.fd, functools.partial(_read, sink, overflow))
            stdio.close()
            keeper.add(process.fileno(), self._news)
            watch_oom(process)
            if self.spec.limits.wall is not None:
                self._wall = keeper.call_later(self.spec.limits.wall, self._time_out)
            self._meter = cputime.meter(process)
            if self._meter is not None:
                self._meter.keep(self._spend_cpu)
        return self

    def _launch(self) -> tuple[Process, Stdio, tuple[int, int] | None]:
        """The process, our ends of its streams, and where its output is kept."""
        self.spec = build_spec(*self._wanted, "Container")
        stdio = connect(*self._stdio_wanted) if self.spec.pty is None else Stdio()
        try:
            kept = self._log.open() if self._keeps_output() else None
            process = launch(
                self.spec,
                stdio,
                joined=self._joined,
                name=self.name,
                who=self._who,
            )
        except BaseException:
            stdio.close()
            raise
        return process, stdio, kept

    def _keeps_output(self) -> bool:
        return self.spec.pty is not None or any(one is None for one in self._stdio_wanted[1:])

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

    def _open_terminal(self) -> int:
        """One descriptor of it is the log's, the other whoever's that types."""
        assert self._process is not None
        from nsbox.terminal import Terminal

        self.terminal = Terminal(self._process.terminal)
        self._process.terminal = -1
        return os.dup(self.terminal.fileno())

    def _overflow(self) -> None:
        self._end_for(Verdict(Reason.OUTPUT_LIMIT, "output"))

    def _tell(self, what: str, detail: str = "") -> None:
        pid = self._process.pid if self._process is not None else None
        lifecycle.emit(what, "container", self.name, pod=self._pod, pid=pid, detail=detail)

    def _time_out(self) -> None:
        self._end_for(Verdict(Reason.TIMEOUT, "wall"))

    def _spend_cpu(self) -> None:
        self._end_for(Verdict(Reason.CPU_TIME, "cpu_time"))

    def _end_for(self, verdict: Verdict) -> None:
        with self._lock:
            running = self._status == "running" and self._verdict.reason is None
            if running and self._process is not None:
                self._verdict = verdict
                self._tell("killed", verdict.limit)
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
            except StateError as e:  # lost with its launcher
                if e.status == "foreign":
                    raise
            self._ended, self._status = ended, "stopped"
            self._release()
            self._tell_end()
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
        if self._meter is not None:
            self._meter.cancel()
        self._process.close()
        nslist.boxes.pop(self._process.pid, None)
        if self._members:
            nslist.kill_members("mnt", self._members)
        for sink in self._sinks:
            keeper.remove(sink.fd)
            sink.drain()
            if sink.truncated and self._verdict.reason is None:
                self._verdict = Verdict(Reason.OUTPUT_LIMIT, "output")  # quicker than its reader
            sink.close()
        if self.terminal is not None:
            self.terminal.close()
        self._log.end()

    def _tell_end(self) -> None:
        if self._ended is None or self._process is None:
            self._tell("died", "lost")
            return
        reason, hit = judge(self._process, self._ended, self._verdict)
        if "memory" in hit:
            self._tell("oom")
        self._tell("died", f"{reason.value} {self._ended.returncode}")

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of PID 1; returns its code, -n for a signal.

        Raises:
            TimeoutExpired: it still runs after *timeout* seconds, and goes on.
            StateError: it never ran (the error says why), or was lost with the launcher.
        """
        self._allow("wait")
        timeout = units.patience(timeout, "timeout")
        self._await_end(timeout)
        if self._status == "running":
            raise TimeoutExpired(self.spec.args, timeout or 0.0)
        if self._ended is None:
            raise self._without_end()
        return self._ended.returncode

    def _without_end(self) -> StateError:
        """Of one that is stopped, and has no code to tell."""
        if self._process is None:
            return StateError(f"container {self.name!r} is stopped and never ran: "
                              f"{self._never_ran}", status="stopped")  # fmt: skip
        return StateError(f"container {self.name!r} was lost: its launcher was killed",
                          status="lost")  # fmt: skip

    def stop(self, grace: float = 10.0) -> int | None:
        """Ask PID 1 to end (SIGTERM); insist (SIGKILL) after *grace* seconds, >= 0.

        A PID 1 that does not catch the signal would never see it, so that is killed at once.
        Returns the code, None if it never ran. Stopping a stopped container does nothing.

        Raises:
            StateError: a process in it sleeps in the kernel and cannot be killed now: it still
                runs, and can be stopped or closed again.
        """
        units.seconds(grace, "grace", zero=True)
        if self._status == "created":
            self._allow("stop")
        process = self._process
        if self._status == "running" and process is not None:
            if grace > 0 and self._heeds(_SIGTERM):
                process.send_signal(_SIGTERM)
                self._thaw()
                self._await_end(grace)
            if self._status == "running":
                self._tell("killed")
                self._kill_and_wait(process)
        return None if self._ended is None else self._ended.returncode

    def _kill_and_wait(self, process: Process) -> None:
        try:
            process.kill_and_wait()
        except StateError as e:
            if e.status == "stuck":
                raise
        self._news()

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
            pty: a terminal of its own, in the container's ``/dev/pts``, as for ``run``.
            stdin, stdout, stderr, input, capture_output, text, timeout, check: as for ``run``.
                After *timeout* its process group is killed; what left that goes on. So it is
                when a stream has more than ``limits.output`` of the container's.

        Raises:
            StateError: it is not running, or ended meanwhile.
            SpecError, SetupError, TimeoutExpired, CommandError: as for ``run``.
        """
        return enter.execute(*self._entered("exec"), args, keywords)

    def popen(self, args: Any, **keywords: Any) -> Popen:
        """As ``exec``, but goes on: a ``Popen``, with *user*, *env*, *cwd*, *pty*, the streams,
        *text*."""
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
            return process, self.spec, step.kind if step else self._joined.id_map

    def kill(self) -> None:
        """SIGKILL to every process in it; ``wait()`` for the end."""
        self._allow("kill")
        if self._process is not None and self._status == "running":
            self._tell("killed")
            self._process.kill()

    def close(self) -> None:
        """Kill what is left and give everything back; idempotent."""
        if self._process is not None and not self._process.mine():
            return  # a forked child leaves the block that its parent is in
        with interrupts.Held():
            if self._status == "running" and self._process is not None:
                self._tell("killed")
                self._kill_and_wait(self._process)
            elif self._status == "created":
                self._never_ran = "it was closed before it was started"
                self._tell("died", "never started")
            self._status = "stopped"
            self._log.end()

    def __enter__(self) -> Container:
        if self._status == "created":
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if getattr(self, "_status", "") == "running" and process and process.mine():
            forgotten(self)

    # ------------------------------------------------------------ what it is

    def status(self) -> str:
        """``"created"``, ``"running"``, ``"paused"`` or ``"stopped"``."""
        if self._status == "running":
            self._news()
        return self._shown()

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

    def _network_process(self) -> Process | None:
        return self._process

    @property
    def label(self) -> NetLabel:
        """What makes it one of the values of ``net=`` of others, who share its network."""
        guarded = self.spec.egress is not None or getattr(self.spec.net, "guarded", False)
        return NetLabel(f"that of container {self.name}", self, joined=True, guarded=guarded)

    def joins(self) -> Joined:
        """For nsbox's own use: see ``Namespace.joins``."""
        process = self._process
        if process is None or self.pid is None:
            raise StateError(f"net: container {self.name!r} is {self._status}", status=self._status)
        return shared(process)

    def logs(self, stream: str = "both", tail: int | None = None) -> str:
        """What it wrote: the last 1 MiB of both streams together, kept after its end.

        Args:
            stream: ``"both"``, in the order in which it came, ``"stdout"`` or ``"stderr"``.
            tail: the last so many lines of it, instead of all.
        """
        logs.check(stream, tail)
        return self._log.text(stream, tail)

    def follow(
        self, stream: str = "both", tail: int | None = None, timeout: float | None = None
    ) -> Iterator[str]:
        """``logs()``, and then whatever comes, in pieces of any size, until its end.

        Ends, too, when *timeout* (seconds) has passed. One that has not been started is waited
        for. A reader who is 1 MiB behind misses something.
        """
        logs.check(stream, tail)
        return self._log.follow(stream, tail, timeout)

    def processes(self) -> list[ProcessInfo]:
        """Everything that runs in it, by pid: the members of its pid namespace, those of nested
        ones too. Without one of its own: PID 1 and what descends from it.

        What they say of themselves, names and arguments, is theirs to choose.
        """
        if self._process is not None:
            self._process.check_mine()
        pid = self.pid
        if pid is None:
            return []
        assert self._process is not None
        own = self._process.plan.clone.flags & Clone.NEWPID
        found = processes.members(pid) if own else processes.tree(pid)
        known = [info for one in found if (info := processes.info(one)) is not None]
        return sorted(known, key=lambda info: (info.nspid, info.pid))  # PID 1 first: numbers wrap

    def explain(self) -> Plan:
        """The plan that was, or would be, run."""
        if self._process is not None:
            return self._process.plan
        spec, joined = build_spec(*self._wanted, "Container"), self._joined
        return plan_for(spec, probe.host(), join=joined.kinds, join_map=joined.id_map)

    def result(self) -> Completed:
        """How it ended. Raises StateError unless it has, as ``wait()`` does for one without end."""
        process, ended = self._process, self._ended
        if process is None or ended is None:
            status = self._shown()
            if status == "stopped":
                raise self._without_end()
            raise StateError(f"container {self.name!r} is {status}", status=status)
        reason, hit = judge(process, ended, self._verdict)
        return Completed(
            args=self.spec.args,
            returncode=ended.returncode,
            stdout=None,
            stderr=None,
            reason=reason,
            usage=usage_of(process, ended),
            truncated=any(sink.truncated for sink in self._sinks),
            limits_hit=hit,
            enforcement={**dict(process.plan.enforcement), **self._updated},
            applied=dict(process.plan.applied),
            changes=process.changes(),
        )

    def __repr__(self) -> str:
        where = f" as {self.pid}" if self.pid else ""
        return f"<nsbox.Container {self.name!r} {self._shown()}{where}>"
