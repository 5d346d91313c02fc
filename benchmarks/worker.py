# SPDX-License-Identifier: Apache-2.0
"""A calling process of its own, which can be made big, busy or burdened before it spawns.

``python worker.py ROOT`` answers each line with one; the words of a line are:

    spawn METHOD             elapsed ns of one spawn and wait
    touch GIB                as much private memory, written to in every 4 KiB page
    mounts N DIRECTORY       N bind mounts there: only in a mount namespace of its own
    hold N METHOD            N idle sandboxes live (more are started, or some closed)
    rate METHOD THREADS MS   spawns per second of so many threads, for so long
    helper                   KiB of the library's helper process that are resident
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import sys
import threading
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from cases import load_nsbox, posix_spawn, spawn_nsbox, wishes
from drivers import ANSWER_TIMEOUT_S, LineProcess, SampleFailed
from rootfs import BUSYBOX_TRUE, TINY_PAUSE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GIB = 1 << 30
MS_BIND = 4096
HOLD_S = 600.0  # thousands of sandboxes take a while to start, and to end
POD = "pod-of-10"
SANDBOXES = ("nsbox-6ns", "nsbox-no-net", "nsbox-6ns-cgroup")


def fork_and_exit() -> int:
    """``os.fork`` alone, what nsbox never does to its caller; elapsed ns."""
    start = perf_counter_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return perf_counter_ns() - start


class Worker:
    """The state behind the commands."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._nsbox = load_nsbox()
        self._memory: list[mmap.mmap] = []
        self._held: list[Any] = []
        self._spawns: dict[str, Callable[[], int]] = {
            "posix_spawn": partial(posix_spawn, str(root) + BUSYBOX_TRUE),
            "fork": fork_and_exit,
            **{name: partial(spawn_nsbox, self._nsbox, root, name) for name in SANDBOXES},
        }

    def spawn(self, method: str) -> int:
        return self._spawns[method]()

    def touch(self, gib: str) -> int:
        area = mmap.mmap(-1, int(gib) * GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.madvise(mmap.MADV_NOHUGEPAGE)
        for start in range(0, int(gib) * GIB, GIB):
            area[start : start + GIB : mmap.PAGESIZE] = b"\1" * (GIB // mmap.PAGESIZE)
        self._memory.append(area)
        return 0

    def mounts(self, count: str, directory: str) -> int:
        """In a mount namespace that is not its parent's, or not at all."""
        if os.readlink("/proc/self/ns/mnt") == os.readlink(f"/proc/{os.getppid()}/ns/mnt"):
            raise SampleFailed("mounts: not in a mount namespace of its own")
        libc = ctypes.CDLL(None, use_errno=True)
        for number in range(int(count)):
            where = Path(directory, str(number))
            where.mkdir(parents=True, exist_ok=True)
            name = os.fsencode(where)
            if libc.mount(name, name, None, MS_BIND, None) != 0:
                raise SampleFailed(f"mount: {os.strerror(ctypes.get_errno())}")
        return 0

    def hold(self, count: str, method: str) -> int:
        """As many idle sandboxes of that kind; 0 closes all."""
        start = self._start_pod if method == POD else partial(self._start_idle, method)
        while len(self._held) > int(count):
            self._held.pop().close()
        for _ in range(int(count) - len(self._held)):
            self._held.append(start())
        return 0

    def _start_idle(self, method: str) -> Any:
        null = self._nsbox.DEVNULL
        keywords = wishes(self._nsbox, self._root, method)
        return self._nsbox.Popen([TINY_PAUSE], stdin=null, stdout=null, stderr=null, **keywords)

    def _start_pod(self) -> Any:
        """Ten containers that share a network, and pause."""
        same = {"root": self._nsbox.Rootfs.dir(str(self._root)), "profile": "none"}
        members = [
            self._nsbox.ContainerSpec(f"c{number}", [TINY_PAUSE], **same) for number in range(10)
        ]
        return self._nsbox.Pod("bench", members).start()

    def rate(self, method: str, threads: str, ms: str) -> int:
        """Spawns per second, over all threads."""
        spawn, end = self._spawns[method], perf_counter_ns() + int(ms) * 1_000_000
        counts, failures = [0] * int(threads), []

        def go(number: int) -> None:
            try:
                while perf_counter_ns() < end:
                    spawn()
                    counts[number] += 1
            except Exception as error:  # told below, by the thread that answers
                failures.append(str(error))

        start = perf_counter_ns()
        running = [threading.Thread(target=go, args=(number,)) for number in range(len(counts))]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        if failures:
            raise SampleFailed(failures[0])
        return round(sum(counts) * 1e9 / (perf_counter_ns() - start))

    def helper(self) -> int:
        """VmRSS of the launcher, the parent of every sandbox."""
        self.hold(str(len(self._held) + 1), SANDBOXES[0])
        launcher = status(self._held[-1].pid, "PPid")
        self.hold(str(len(self._held) - 1), SANDBOXES[0])
        return status(launcher, "VmRSS")


def status(pid: int, key: str) -> int:
    """The number in one line of /proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def answer(worker: Worker, line: str) -> str:
    """The number, or what went wrong, on one line."""
    verb, *words = line.split()
    try:
        return str(getattr(worker, verb)(*words))
    except SampleFailed as why:
        return str(why)
    except Exception as error:  # the asker shows it
        return f"{type(error).__name__}: {error}".splitlines()[0]


def ask(process: LineProcess, *words: object) -> int:
    """One command to a worker; its number.

    Raises:
        SampleFailed: what the worker said instead.
    """
    said = process.ask(
        " ".join(map(str, words)), HOLD_S if words[0] == "hold" else ANSWER_TIMEOUT_S
    )
    if not said.isdigit():
        raise SampleFailed(said)
    return int(said)


@contextlib.contextmanager
def start(root: Path, wrapper: Sequence[str] = ()) -> Any:
    """A worker, ready; *wrapper* is a command that executes it."""
    argv = [*wrapper, sys.executable, str(Path(__file__).resolve()), str(root)]
    with LineProcess(argv) as process:
        process.read()
        yield process


def main() -> None:
    """Answer until the input ends."""
    worker = Worker(Path(sys.argv[1]))
    print("ready", flush=True)
    gc.disable()
    for line in sys.stdin:
        print(answer(worker, line), flush=True)
    worker.hold("0", SANDBOXES[0])


if __name__ == "__main__":
    main()
