# SPDX-License-Identifier: Apache-2.0
"""``nsbox run`` and ``nsbox explain``."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsbox.checks import listed_name
from nsbox.cli.output import clean, print_json, say
from nsbox.errors import SpecError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from nsbox.popen import Popen

_CHUNK = 1 << 16
#: What a supervisor, a shell or a user may send to us and means for the payload.
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM")
#: So many ^C end what does not heed them, as with docker.
_INSISTENCE = 3


# -- arguments --------------------------------------------------------------------------------


def _volume(text: str) -> Any:
    from nsbox.spec import Mount

    parts = text.split(":")
    mode = parts.pop() if len(parts) == 3 else "ro"
    if len(parts) != 2 or mode not in ("ro", "rw"):
        raise SpecError("-v", f"{text!r} is not SRC:DST, SRC:DST:ro or SRC:DST:rw")
    return Mount.bind(parts[0], parts[1], ro=mode == "ro")


def _environment(files: list[str], settings: list[str]) -> dict[str, str]:
    """--env-file, then -e, which wins. NAME alone is the caller's value, if it has one."""
    read = [line for file in files for line in Path(file).read_text().splitlines()]
    lines = [line for line in read if line.strip() and not line.lstrip().startswith("#")]
    found = {}
    for line in (*lines, *settings):
        name, given, value = line.partition("=")
        if not given and name not in os.environ:
            continue
        found[name] = value if given else os.environ[name]
    return found


def _network(arguments: argparse.Namespace) -> dict[str, Any]:
    """``--net`` and what goes with it; a network of its own is to be started."""
    if arguments.net != "nat":
        for name in ("publish", "allow"):
            if getattr(arguments, name):
                raise SpecError(f"--{name}", "needs a network: --net nat")
        return {"net": arguments.net}
    from nsbox.bridge import Network
    from nsbox.keywords import Allow

    egress = None if arguments.allow is None else Allow(*arguments.allow)
    return {"net": Network(), "publish": arguments.publish, "egress": egress}


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of ``nsbox.run`` that the options stand for."""
    from nsbox.spec import Limits

    cpu = arguments.cpu
    if cpu is not None and not cpu.endswith("m"):
        try:
            cpu = float(cpu)
        except ValueError:
            raise SpecError("--cpu", f"{cpu!r} is not a number of cores") from None
    limits = Limits(memory=arguments.memory, cpu=cpu, pids=arguments.pids, wall=arguments.time)
    return {
        "root": arguments.root,
        "cwd": arguments.workdir,
        "env": _environment(arguments.env_file, arguments.env) or None,
        "user": arguments.user,
        "hostname": arguments.hostname,
        "mounts": tuple(_volume(text) for text in arguments.volume),
        **_network(arguments),
        "limits": limits,
        "profile": arguments.profile,
        "best_effort": arguments.best_effort,
    }


def _command(arguments: argparse.Namespace) -> list[str]:
    command: list[str] = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise SpecError("COMMAND", "is missing")
    return command


def explain(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from nsbox.sandbox import explain as plan_of

    plan = plan_of(_command(arguments), **keywords(arguments))
    if not arguments.json:
        print("\n".join(map(clean, str(plan).splitlines())))
        return 0
    print_json({
        "steps": [{"step": i, "who": step.who, "name": step.name, "detail": step.describe(),
                   "from": step.source} for i, step in enumerate(plan.steps)],
        "applied": dict(plan.applied),
        "enforcement": dict(plan.enforcement),
    })  # fmt: skip
    return 0


# -- signals ----------------------------------------------------------------------------------


class Forwarder:
    """Passes on what we are sent, from the first moment: what comes too early is kept.

    *woken* is readable then: a signal that comes just before poll(2) does not end that, and what
    it calls would have to wait for the payload's next word.
    """

    def __init__(self) -> None:
        self.woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # as long as this program runs
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._process: Popen | None = None
        self._early: list[int] = []
        self._interrupts = 0
        for name in _FORWARDED:
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup would have it
                signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: object) -> None:
        if self._process is None:
            self._early.append(number)
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= _INSISTENCE:
            self._process.kill()
        else:
            self._process.send_signal(number)

    def wake_up(self) -> None:
        """What was to be called has been by now."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, _CHUNK)

    def to(self, process: Popen) -> None:
        self._process = process
        for number in self._early:
            process.send_signal(number)


# -- output and input -------------------------------------------------------------------------


class Reader:
    """One output of the payload, written on to one of ours as it comes, in whole."""

    def __init__(self, pipe: Any, ours: int) -> None:
        self._pipe = pipe
        self.fd = pipe.fileno()
        self.ours = ours
        os.set_blocking(self.fd, False)

    def take(self) -> bool:
        """False at its end, or when nobody reads ours: the payload's next write then fails as
        it would in a pipeline of the shell's.

        Raises:
            OSError: ours cannot be written (ENOSPC, EIO).
        """
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.ours, view) :]
            except BlockingIOError:  # somebody made it non-blocking: wait for room
                poll = select.poll()
                poll.register(self.ours, select.POLLOUT)
                poll.poll()
            except BrokenPipeError:
                return False
            except OSError as e:
                name = "standard output" if self.ours == 1 else "standard error"
                raise OSError(e.errno, e.strerror, name) from e
        return True

    def close(self) -> None:
        self._pipe.close()


class Writer:
    """Our standard input, for the payload. Reads no more than it takes."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.fd = pipe.fileno()
        self._left = b""
        os.set_blocking(self.fd, False)

    def waits_for(self) -> tuple[int, int]:
        """The descriptor and the event that goes on with it."""
        return (self.fd, select.POLLOUT) if self._left else (0, select.POLLIN)

    def go_on(self) -> bool:
        """False at the end of input, or when the payload reads no more."""
        try:
            if not self._left:
                self._left = os.read(0, _CHUNK)
                return bool(self._left)
            self._left = self._left[os.write(self.fd, self._left) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._pipe.close()


class Pump:
    """Moves bytes until the payload has ended, and then what is still in its pipes."""

    def __init__(self, process: Popen, forwarder: Forwarder) -> None:
        self._process, self._forwarder = process, forwarder
        self._readers = {r.fd: r for r in (Reader(process.stdout, 1), Reader(process.stderr, 2))}
        self._writer = Writer(process.stdin) if process.stdin is not None else None

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._process.fileno(), select.POLLIN)
        poll.register(self._forwarder.woken, select.POLLIN)
        for fd in self._readers:
            poll.register(fd, select.POLLIN)
        if self._writer is not None:
            poll.register(*self._writer.waits_for())
        return poll.poll()

    def _take(self, fd: int) -> None:
        if not self._readers[fd].take():
            self._readers.pop(fd).close()

    def run(self) -> int:
        """The payload's return code. Raises OSError when our output cannot be written."""
        while self._process.poll() is None:
            for fd, _ in self._poll():
                if fd in self._readers:
                    self._take(fd)
                elif fd == self._forwarder.woken:
                    self._forwarder.wake_up()
                elif self._writer is not None and fd == self._writer.waits_for()[0]:
                    self._feed(self._writer)
        self._drain()
        return self._process.wait()

    def _feed(self, writer: Writer) -> None:
        if not writer.go_on():
            writer.close()
            self._writer = None

    def _drain(self) -> None:
        """To the end, which comes at once when a pid namespace took all writers along."""
        poll = select.poll()
        for fd in self._readers:
            poll.register(fd, select.POLLIN)
        while ready := [fd for fd, _ in poll.poll(0) if fd in self._readers]:
            for fd in ready:
                self._take(fd)
                if fd not in self._readers:
                    poll.unregister(fd)


def _exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


def _say_why(process: Popen, arguments: argparse.Namespace) -> None:
    """What no exit code tells: that it was us, or the kernel for want of memory."""
    done = process.result()
    if done.reason.name in ("EXITED", "SIGNALED"):
        return
    options = (("memory", "--memory", arguments.memory), ("wall", "--time", arguments.time))
    limits = [f"{option} {value}" for name, option, value in options
              if name in done.limits_hit and value is not None]  # fmt: skip
    say(f"nsbox: ended: {done.reason.value}" + "".join(f" ({limit})" for limit in limits))


def _pty() -> Any:
    """A terminal of the sandbox's own, as large as ours; ours is never handed in."""
    from nsbox.terminal import window_size

    size = next((window_size(fd) for fd in (0, 1) if os.isatty(fd)), (0, 0))
    return size if all(size) else True


def _attach(process: Popen, keys: bool) -> int:
    """Lend it ours until it ends; without *keys*, it finds the end of its input."""
    from nsbox.process import dev_null
    from nsbox.terminal import attach

    return attach(process, 0 if keys else dev_null())


def _see_through(process: Popen, forwarder: Forwarder, *, keys: bool = True) -> int:
    forwarder.to(process)
    if process.terminal is not None:
        return _exit_code(_attach(process, keys))
    return _exit_code(Pump(process, forwarder).run())


def _streams(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keywords of ``Popen``, for ``_see_through``."""
    from nsbox.streams import PIPE

    if arguments.tty:
        return {"pty": _pty()}
    return {"stdin": PIPE if arguments.interactive else None, "stdout": PIPE, "stderr": PIPE}


def run(arguments: argparse.Namespace) -> int:
    """Run the command; its output, its input and its end are ours."""
    from nsbox.popen import Popen

    command, options = _command(arguments), keywords(arguments)
    if arguments.name:
        listed_name(arguments.name, "--name")
    forwarder = Forwarder()
    with contextlib.ExitStack() as stack:
        if arguments.net == "nat":
            stack.enter_context(options["net"])
        process = stack.enter_context(Popen(command, **_streams(arguments), **options))
        with _noted(arguments.name, process):
            code = _see_through(process, forwarder)
        _say_why(process, arguments)
        return code


@contextlib.contextmanager
def _noted(name: str, process: Popen) -> Iterator[None]:
    """Known to the other commands while it runs."""
    from nsbox import sandboxes

    try:
        note = sandboxes.note(name, process._process, process.spec)
    except (FileNotFoundError, ProcessLookupError):  # it was quicker
        note = ""
    try:
        yield
    finally:
        sandboxes.forget(note)


def exec_(arguments: argparse.Namespace) -> int:
    """One more command in a sandbox that runs, as ``run`` in all else."""
    from nsbox import elsewhere, sandboxes

    command = _command(arguments)
    forwarder = Forwarder()
    process = elsewhere.popen(
        sandboxes.find(arguments.sandbox),
        command,
        user=arguments.user,
        cwd=arguments.workdir,
        env=_environment([], arguments.env),
        **_streams(arguments),
    )
    with process:
        return _see_through(process, forwarder, keys=arguments.interactive)
