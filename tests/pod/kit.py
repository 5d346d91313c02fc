# SPDX-License-Identifier: Apache-2.0
"""What the tests of containers and pods share: payloads, a clock, and looks from the outside."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import poll_until, scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).resolve().parents[1]
PRIVATE = ("mnt", "uts", "pid")
SHARED = ("ipc", "net", "user")
KINDS = ("mnt", "pid", "ipc", "net", "uts", "user", "cgroup")

# -- payloads ---------------------------------------------------------------------------------


def sleeper(name: str, **keywords: Any) -> nsbox.ContainerSpec:
    """Runs until it is killed; a PID 1 without a handler does not hear SIGTERM."""
    return nsbox.ContainerSpec(name, ["sleep", "1000"], **keywords)


def shell(name: str, script: str, **keywords: Any) -> nsbox.ContainerSpec:
    return nsbox.ContainerSpec(name, ["sh", "-c", script], **keywords)


def python_args(code: str) -> list[str]:
    """Without site, which is most of the time that Python takes to start."""
    return ["python3", "-SIuc", code]


def python(name: str, code: str, **keywords: Any) -> nsbox.ContainerSpec:
    return nsbox.ContainerSpec(name, python_args(code), **keywords)


def sidecar(name: str, script: str = "exec sleep 1000", **keywords: Any) -> nsbox.Sidecar:
    return nsbox.Sidecar(name, ["sh", "-c", script], **keywords)


def on_term(handler: str) -> str:
    """A shell script that says "ready", sleeps, and does *handler* at SIGTERM."""
    return f"trap '{handler}' TERM; echo ready; while :; do sleep 1000 & wait $!; done"


def unique_seconds() -> str:
    """An argument for sleep(1) that no other process has, by which it can be found."""
    return f"1000.{random.SystemRandom().randrange(10**9, 10**10)}"


# -- looks from the outside -------------------------------------------------------------------


def wait_log(container: Any, text: str, times: int = 1, timeout_s: float = 15) -> str:
    """The container's log, once it has *text* so many times."""

    def found() -> str:
        log = container.logs()
        return log if log.count(text) >= times else ""

    try:
        return poll_until(found, timeout_s, every_s=0.005)
    except AssertionError:
        raise AssertionError(f"no {times} x {text!r} in {container!r}: {container.logs()!r}")  # noqa: B904


def namespace_ids(pid: int | None) -> dict[str, int]:
    """Kind -> id, as the links in /proc/PID/ns say it."""
    assert pid is not None
    links = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}
    return {kind: int(link[len(kind) + 2 : -1]) for kind, link in links.items()}


def proc_status(pid: int | None, key: str) -> list[str]:
    """The words of one line of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.split()
    raise AssertionError(f"no {key} in /proc/{pid}/status")


def parent_of(pid: int | None) -> int:
    return int(proc_status(pid, "PPid")[0])


def children_of(pid: int | None) -> list[int]:
    return [child for child in _pids() if _parent_or_zero(child) == pid]


def running(argument: str) -> list[int]:
    """Pids with *argument* on their command line."""
    return [pid for pid in _pids() if argument.encode() in _command(pid)]


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _parent_or_zero(pid: int) -> int:
    with contextlib.suppress(OSError):
        return parent_of(pid)
    return 0


def _command(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


@contextlib.contextmanager
def pidfds(*pids: int | None) -> Iterator[list[int]]:
    """A descriptor for each: a number could become another process's."""
    fds: list[int] = []
    try:
        for pid in pids:
            assert pid is not None
            fds.append(os.pidfd_open(pid))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def ended(pidfd: int, within_s: float = 0.0) -> bool:
    """Whether that process ends within so many seconds (scaled)."""
    return bool(select.select([pidfd], [], [], scaled(within_s))[0])


def send(pid: int | None, sig: int) -> None:
    """kill(2), but never to a group, nor to everybody."""
    assert pid is not None
    assert pid > 1
    os.kill(pid, sig)


def events(pod: nsbox.Pod, *reasons: str) -> list[str]:
    """``"Reason container"`` of the events with these reasons, in order."""
    return [f"{e.reason} {e.container}" for e in pod.events if e.reason in reasons]


# -- time -------------------------------------------------------------------------------------


class VirtualTimer:
    """A call that is due at a moment of the virtual clock."""

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due, self.call, self.cancelled = due, call, False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """Stands still until ``advance``, which makes the calls that become due."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._lock = threading.Lock()
        self.timers: list[VirtualTimer] = []

    def now(self) -> float:
        return self._now

    def call_later(self, delay: float, call: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(self._now + delay, call)
        with self._lock:
            self.timers.append(timer)
        return timer

    def pending(self) -> list[float]:
        """Seconds until each call that was not cancelled."""
        with self._lock:
            return sorted(t.due - self._now for t in self.timers if not t.cancelled)

    def advance(self, seconds: float) -> None:
        target = self._now + seconds
        while True:
            with self._lock:
                due = [t for t in self.timers if not t.cancelled and t.due <= target]
                if not due:
                    break
                first = min(due, key=lambda t: t.due)
                self.timers.remove(first)
                self._now = max(self._now, first.due)
            first.call()
        self._now = target


# -- a process of one's own -------------------------------------------------------------------

_RUN_ONE = """
import faulthandler, importlib, sys
faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
sys.path[:0] = [sys.argv[2]]
getattr(importlib.import_module(sys.argv[3]), sys.argv[4]).__wrapped__()
"""


def own_process(timeout_s: float = 15) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Run this test in another interpreter: it kills the launcher, or would stop the library's
    thread (and with it every later test) if it failed."""

    def decorate(test: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(test)
        def wrapper() -> None:
            module = f"pod.{Path(test.__code__.co_filename).stem}"
            limit = scaled(timeout_s)
            argv = [sys.executable, "-c", _RUN_ONE, str(limit), str(TESTS), module, test.__name__]
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit + 10
            )
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr, done.stderr  # of the library's thread

        return wrapper

    return decorate


def in_a_forked_child(say: Callable[[], str]) -> str:
    """What *say* returns there; the child ends without a word to anybody."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, say().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said
