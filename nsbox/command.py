# SPDX-License-Identifier: Apache-2.0
"""run() and Popen: subprocess's two, but boxed."""

from __future__ import annotations

import fcntl
import functools
import io
import os
import select
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nsbox import interrupts, launcher, probe, templates, units, watch
from nsbox.compile import compile_spec, wants_template
from nsbox.errors import SetupError, SpecError, TimeoutExpired
from nsbox.plan import Plan, Slot
from nsbox.process import Ended, Injection, Process, spawn
from nsbox.result import Completed, Reason, Usage
from nsbox.spec import Mount, Spec, make_spec
from nsbox.streams import PIPE, STDOUT, Feeder, Sink, Stdio, connect, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.host import Host

_CACHEABLE_BYTES = 1 << 20
_MOST_SPECS = 64
_OOM_POLL_S = 0.005
_SIGKILL = 9

_cached_compile = functools.lru_cache(maxsize=64)(compile_spec)
_cached_wants = functools.lru_cache(maxsize=64)(wants_template)


def read_files(files: Any) -> Any:
    """``files=`` with every Path read: its content and its permission bits."""
    if not isinstance(files, Mapping):
        return files
    result = {}
    for name, value in files.items():
        if isinstance(value, os.PathLike):
            path = Path(value)
            try:
                value = (path.read_bytes(), path.stat().st_mode & 0o777)
            except OSError as e:
                raise SpecError(f"files[{name!r}]", str(e)) from e
        result[name] = value
    return result


def check_spec(args: Any, keywords: dict[str, Any]) -> Spec:
    """The spec of ``run()``'s keywords as far as it can be told without reading a file."""
    files = keywords.get("files")
    if isinstance(files, Mapping):
        unread = {name: b"" if isinstance(value, os.PathLike) else value
                  for name, value in files.items()}  # fmt: skip
        keywords = {**keywords, "files": unread}
    return make_spec(args, **keywords)


_specs: dict[object, Spec] = {}


def build_spec(args: Any, keywords: dict[str, Any]) -> Spec:
    """The spec of ``run()``'s keywords, its files read and its interpreter found."""
    key = _spec_key(args, keywords)
    spec = _specs.get(key) if key is not None else None
    if spec is None:
        if keywords.get("files") is not None:
            keywords = {**keywords, "files": read_files(keywords["files"])}
        spec = make_spec(args, **keywords)
        if key is not None:
            if len(_specs) >= _MOST_SPECS:
                _specs.clear()
            _specs[key] = spec
    return _with_interpreter(spec)


def _spec_key(args: Any, keywords: dict[str, Any]) -> object:
    """The same for the same arguments, which then need not be checked again; None where what
    they mean may change (a relative root), or where they cannot be compared (a mapping)."""
    if isinstance(keywords.get("root"), (str, os.PathLike)):
        return None
    try:
        key = (_typed(args), *((name, _typed(value)) for name, value in keywords.items()))
        hash(key)
    except TypeError:
        return None
    return key


def _typed(value: Any) -> object:
    """Equal for what is equal and of the same type: True is 1, but not a user."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_typed(one) for one in value)
    return type(value), value


def _with_interpreter(spec: Spec) -> Spec:
    """The host root shows the program that args name, wherever it is installed."""
    if spec.root.kind != "host":
        return spec
    system = probe.host().system
    trees = probe.interpreter_trees(spec.args[0], system)
    if not trees:
        return spec
    binds = tuple(Mount.bind(tree, tree) for tree in trees)
    args = spec.args
    if "/" not in args[0]:
        import shutil

        args = (shutil.which(args[0]) or args[0], *args[1:])
    return replace(spec, args=args, mounts=(*binds, *spec.mounts))


def plan_for(spec: Spec, host: Host, *, join: tuple[str, ...] = (), join_map: str = "") -> Plan:
    """The plan of a spec, compiled once for specs that come again."""
    small = sum(len(content) for _, content, _ in spec.files) < _CACHEABLE_BYTES
    build = _cached_compile if small else compile_spec
    use = not join and _cached_wants(spec, host)
    return build(spec, host, join=join, join_map=join_map, template=use)


def explain(args: Any, **keywords: Any) -> Plan:
    """The plan of ``run(args, ...)``, not run: ``print(nsbox.explain(["id"]))``.

    Takes a ``Spec`` too.
    """
    spec = args if isinstance(args, Spec) else build_spec(args, keywords)
    return plan_for(spec, probe.host())


def launch(
    spec: Spec,
    stdio: Stdio,
    *,
    join: tuple[str, ...] = (),
    joined_pidfd: int = -1,
    join_map: str = "",
    inject: Injection = Injection(),  # noqa: B008  (immutable)
) -> Process:
    """Spawn *spec* with these descriptors; its template is made when it has none yet."""
    host = probe.host()
    parent = launcher.current()
    plan = plan_for(spec, host, join=join, join_map=join_map)
    descriptors = {Slot("stdio", n): fd for n, fd in stdio.theirs.items()}
    for fd in spec.pass_fds:
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as e:
            raise SpecError("pass_fds", f"descriptor {fd} is not open") from e
        descriptors[Slot("pass", fd)] = fd
    template = -1
    try:
        for slot in plan.passed:
            if slot.kind == "mntns":
                template = descriptors[slot] = templates.acquire(spec, host, parent)
            elif slot.kind == "pidfd":
                descriptors[slot] = joined_pidfd
        return spawn(plan, descriptors, parent=parent, inject=inject)
    except FileNotFoundError as e:
        if isinstance(e, SetupError):
            raise
        raise SpecError("root", f"{e.filename or spec.root.path} does not exist") from e
    finally:
        if template >= 0:
            os.close(template)
        stdio.close_theirs()


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
    oom = process.stats is not None and process.stats.oom_kills > 0
    if oom:
        hit.append("memory")
    if verdict.reason is not None:
        return verdict.reason, tuple(hit)
    if oom and ended.returncode == -_SIGKILL:
        return Reason.OOM, tuple(hit)
    return (Reason.SIGNALED if ended.returncode < 0 else Reason.EXITED), tuple(hit)


def usage_of(process: Process, ended: Ended) -> Usage:
    """Whole-tree figures: the cgroup's where there is one, else the launcher's wait."""
    stats = process.stats
    peak = (
        stats.memory_peak if stats is not None and stats.memory_peak is not None else ended.maxrss
    )
    return Usage(
        wall=process.ended_at - process.started_at,
        cpu_user=ended.cpu_user,
        cpu_system=ended.cpu_system,
        memory_peak=peak,
        pids_peak=stats.pids_peak if stats is not None else None,
        throttled=stats.throttled if stats is not None else None,
    )


class _Conversation:
    """Feeds input, takes output and waits for the end, in the calling thread."""

    def __init__(self, process: Process, feeder: Feeder | None, sinks: list[Sink]) -> None:
        self._process = process
        self._poll = select.poll()
        self._poll.register(process.fileno(), select.POLLIN)
        self._oom = process.oom_fd
        self._oom_pending = False
        if self._oom >= 0:
            self._poll.register(self._oom, select.POLLIN)
        self._feeder = feeder
        self._sinks = {sink.fd: sink for sink in sinks}
        for sink in sinks:
            self._poll.register(sink.fd, select.POLLIN)
        if feeder is not None and feeder.fd >= 0:
            self._poll.register(feeder.fd, select.POLLOUT)

    def unregister(self, fd: int) -> None:
        self._poll.unregister(fd)

    def run(self, deadline: float | None) -> Ended | None:
        """How it ended; None when *deadline* passed or output went over its limit."""
        while (ended := self._process.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if self._oom_pending:
                self._oom_pending = not self._process.enforce_oom_group()
                left = _OOM_POLL_S if left is None else min(left, _OOM_POLL_S)
            for fd, _ in self._poll.poll(None if left is None else left * 1000):
                self._serve(fd)
            if any(sink.truncated for sink in self._sinks.values()):
                return None
        return ended

    def _serve(self, fd: int) -> None:
        if self._feeder is not None and fd == self._feeder.fd:
            self._feeder.write()
        elif fd == self._oom:
            self._oom_pending = True
            self._poll.unregister(fd)
        elif fd in self._sinks and not self._sinks[fd].read():
            self._poll.unregister(fd)

    def drain(self) -> None:
        for sink in self._sinks.values():
            sink.drain()


def _sinks(stdio: Stdio, limit: int | None, keep: tuple[int, ...]) -> dict[int, Sink]:
    return {n: Sink(stdio.ours[n], keep=n in keep, relay_to=-1 if n in keep else n,
                    limit=limit if n in keep else None)
            for n in (1, 2) if n in stdio.ours}  # fmt: skip


def _converse(
    process: Process, stdio: Stdio, sinks: dict[int, Sink], data: bytes, timeout: float | None
) -> tuple[Ended, Verdict, bool]:
    """Returns how it ended, what nsbox did about it, and whether *timeout* had passed."""
    wall = process.wall
    feeder = None
    conversation: _Conversation | None = None
    if 0 in stdio.ours:
        fd = stdio.take(0)
        feeder = Feeder(fd, data, lambda fd: conversation.unregister(fd) if conversation else None)
    try:
        conversation = _Conversation(process, feeder, list(sinks.values()))
        limits = [limit for limit in (timeout, wall) if limit is not None]
        deadline = process.started_at + min(limits) if limits else None
        with interrupts.Released():
            ended = conversation.run(deadline)
        verdict, late = Verdict(), False
        if ended is None:
            process.kill()
            if any(sink.truncated for sink in sinks.values()):
                verdict = Verdict(Reason.OUTPUT_LIMIT, "output")
            else:
                late = timeout is not None and (wall is None or timeout <= wall)
                verdict = Verdict(Reason.TIMEOUT, "" if late else "wall")
            ended = process.wait()
        conversation.drain()
        if verdict.reason is None and any(sink.truncated for sink in sinks.values()):
            verdict = Verdict(Reason.OUTPUT_LIMIT, "output")  # it was quicker than its reader
        assert ended is not None
        return ended, verdict, late
    finally:
        if feeder is not None:
            conversation = None
            feeder.close()


def _decode(data: bytes, text: bool) -> bytes | str:
    if not text:
        return data
    return data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _as_bytes(data: Any) -> bytes:
    if data is None:
        return b""
    if isinstance(data, str):
        return data.encode()
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"input must be bytes or str, not {type(data).__name__}")
    return bytes(data)


def run(
    args: Any,
    *,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    input: Any = None,
    capture_output: bool = False,
    text: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **keywords: Any,
) -> Completed:
    """Run a command in a sandbox of its own and wait for its end.

    What the caller asked for is enforced or the call raises. The sandbox, with every process
    in it, is gone when this returns or raises.

    Args:
        args: the program and its arguments, a list.
        root: a ``Rootfs``, or a directory; default the host's system directories, read-only.
        cwd: directory inside; default /tmp, a tmpfs of its own (``/`` in a ``Rootfs.dir``).
        env: variables beside PATH, HOME, LANG and USER.
        user: uid or ``"uid:gid"`` inside.
        groups, capabilities, rlimits, pass_fds: more of the process, none by default.
        hostname: of a UTS namespace of its own.
        mounts: ``Mount`` objects.
        files: contents by relative path: bytes, str, or a Path to be read; put into /tmp.
        net: ``"none"`` (a loopback of its own) or ``"host"``.
        limits: ``Limits``.
        namespaces: kinds to make, instead of the profile's.
        init: PID 1 is nsbox-init, which reaps and forwards signals; else the command is.
        profile: ``"strict"``, ``"standard"`` or ``"none"``.
        proc: ``"pids"``, ``"full"`` or ``"none"``.
        input: bytes or str for standard input.
        capture_output: keep both streams in the result; else they are relayed.
        text: captured streams as str.
        timeout: seconds; then everything is killed and TimeoutExpired raised.
        check: raise CommandError unless the result is ``ok``.
        best_effort: do without what this host cannot enforce, and say so in ``enforcement``.

    Raises:
        SpecError, TypeError: an argument is wrong; nothing was started.
        Unavailable: the host cannot do it.
        SetupError: a step failed; everything was undone.
        TimeoutExpired, CommandError: see *timeout* and *check*.
        StateError: the launcher was killed meanwhile.
    """
    if capture_output:
        if stdout is not None or stderr is not None:
            raise ValueError("stdout and stderr may not be used with capture_output")
        stdout = stderr = PIPE
    if input is not None:
        if stdin is not None:
            raise ValueError("stdin may not be used with input")
        stdin = PIPE
    if timeout is not None:
        units.seconds(timeout, "timeout", zero=True)
    spec = build_spec(args, keywords)
    data = _as_bytes(input)
    with interrupts.Held():
        stdio = connect(stdin, stdout, stderr)
        return finish(
            spec,
            stdio,
            lambda: launch(spec, stdio),
            keep=tuple(n for n, value in ((1, stdout), (2, stderr)) if value == PIPE),
            data=data,
            text=text,
            check=check,
            timeout=timeout,
        )


def finish(
    spec: Spec,
    stdio: Stdio,
    start: Callable[[], Process],
    *,
    keep: tuple[int, ...],
    data: bytes = b"",
    text: bool = False,
    check: bool = False,
    timeout: float | None = None,
) -> Completed:
    """Start it, see it through to its end, and give everything back: the body of ``run``."""
    sinks: dict[int, Sink] = {}
    try:
        process = start()
        try:
            process.wall = spec.limits.wall
            sinks = _sinks(stdio, spec.limits.output_bytes, keep)
            ended, verdict, late = _converse(process, stdio, sinks, data, timeout)
        finally:
            process.close()
    finally:
        stdio.close()
    completed = _completed(spec, process, ended, verdict, sinks, keep, text)
    if late:
        raise TimeoutExpired(completed.args, timeout or 0.0, completed)
    if check:
        completed.check_returncode()
    return completed


def _completed(
    spec: Spec,
    process: Process,
    ended: Ended,
    verdict: Verdict,
    sinks: dict[int, Sink],
    keep: tuple[int, ...],
    text: bool,
) -> Completed:
    reason, hit = judge(process, ended, verdict)
    kept = {n: _decode(bytes(sinks[n].kept), text) if n in keep and n in sinks else None
            for n in (1, 2)}  # fmt: skip
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
    )


class Popen:
    """A sandboxed command that goes on: ``subprocess.Popen``'s attributes and methods.

    ``with`` or ``close()`` kills what is left. Output that is not piped is relayed by the
    library's thread. See ``run`` for the keywords.
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
        self.spec = build_spec(args, keywords)
        self.args = list(self.spec.args)
        self._text = text
        self._verdict = Verdict()
        self._ended: Ended | None = None
        try:
            with interrupts.Held():
                self._start(stdin, stdout, stderr)
        except BaseException:
            if not self._closed:  # interrupted, just after everything was made
                self.close()
            raise

    def _start(self, stdin: Any, stdout: Any, stderr: Any) -> None:
        self._stdio = connect(stdin, stdout, stderr)
        try:
            self._process = self._launch()
        except BaseException:
            self._stdio.close()
            raise
        self._closed = False
        self._keep = tuple(n for n, value in ((1, stdout), (2, stderr)) if value == PIPE)
        self.stdin, self.stdout, self.stderr = (self._open(n) for n in range(3))
        self._relays = _sinks(self._stdio, None, ())
        self._wall: watch.Timer | None = None
        self._watch()

    def _launch(self) -> Process:
        return launch(self.spec, self._stdio)

    def _open(self, number: int) -> Any:
        if number != 0 and number not in self._keep:
            return None
        fd = self._stdio.take(number)
        if fd < 0:
            return None
        os.set_blocking(fd, True)
        raw = io.open(fd, "wb" if number == 0 else "rb", 0 if number == 0 else -1)  # noqa: SIM115, UP020
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

    def _news(self) -> None:
        """By the watch: something arrived on the channel."""
        try:
            ended = self._process.poll()
        except Exception:  # lost: whoever asks is told
            watch.get().remove(self._process.fileno())
            return
        if ended is not None:
            watch.get().remove(self._process.fileno())

    def _time_out(self) -> None:
        if self._process.poll() is None:
            self._verdict = Verdict(Reason.TIMEOUT, "wall")
            self._process.kill()

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
        data = _as_bytes(input)
        for number, stream in enumerate((self.stdin, self.stdout, self.stderr)):
            if stream is not None and not stream.closed:
                if number == 0:
                    stream.flush()
                fd = os.dup(stream.fileno())
                stream.close()
                os.set_blocking(fd, False)
                self._stdio.ours[number] = fd
        sinks = _sinks(self._stdio, self.spec.limits.output_bytes, self._keep)
        sinks = {n: sink for n, sink in sinks.items() if n in self._keep}  # others are relayed
        self._process.wall = None
        if self._ended is None:
            left = (
                None if timeout is None else time.monotonic() - self._process.started_at + timeout
            )
            ended, verdict, late = _converse(self._process, self._stdio, sinks, data, left)
            if verdict.reason is not None:
                self._verdict = verdict
            self._settle(ended)
        else:
            late = False
            for sink in sinks.values():
                while sink.read() and not sink.truncated:
                    pass
        assert self._ended is not None
        done = _completed(
            self.spec, self._process, self._ended, self._verdict, sinks, self._keep, self._text
        )
        if late:
            raise TimeoutExpired(self.args, timeout or 0.0, done)
        return done.stdout, done.stderr

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
        self._process.close()
        for sink in self._relays.values():
            keeper.remove(sink.fd)
            sink.drain()
            self._stdio.ours.pop(1 if sink is self._relays.get(1) else 2, None)
            sink.close()

    def close(self) -> None:
        """Kill what is left and give everything back; idempotent."""
        with interrupts.Held():
            self._close()

    def _close(self) -> None:
        if not self._closed and self._ended is None:
            self._process.kill()
            try:
                self._ended = self._process.wait(5)
            except RuntimeError:  # lost with its launcher
                pass
        self._release()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # unflushed input that nobody will read
                    pass
        self._stdio.close()

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._process.mine():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        if self._ended is not None:
            state = f"returned {self._ended.returncode}"
        else:
            state = "closed" if self._closed else f"running as {self.pid}"
        return f"<nsbox.{type(self).__name__} {self.args[0]!r} {state}>"


__all__ = ["PIPE", "STDOUT", "Completed", "Popen", "Reason", "Usage", "explain", "run"]
