# SPDX-License-Identifier: Apache-2.0
"""Does a spawn get slower when the calling process is big? That is target T7.

Two workers, one thin and one with gigabytes of touched memory in 4 KiB pages, are asked for spawns
in turn. ``--worker GIB ROOT`` is the worker: each line names a method, each answer is elapsed ns.
"""

from __future__ import annotations

import gc
import mmap
import os
import sys
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

from cases import load_nsbox, nsbox_six_ns, posix_spawn
from drivers import LineProcess, SampleFailed
from measure import Result, interleave
from rootfs import BUSYBOX_TRUE, Rootfs

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

GIB = 1 << 30
METHODS = ("nsbox", "posix_spawn", "fork")


def affordable_gib() -> int:
    """4, 2 or 0 GiB: what can be touched while half of the available memory stays free."""
    with open("/proc/meminfo", encoding="ascii") as table:
        rows = dict(line.split(":", 1) for line in table)
    available = int(rows["MemAvailable"].split()[0]) * 1024
    return next((gib for gib in (4, 2) if available >= 2 * gib * GIB), 0)


def touch(gib: int) -> mmap.mmap | None:
    """*gib* GiB of private memory, every 4 KiB page written, no huge pages; None for 0."""
    if gib == 0:
        return None
    area = mmap.mmap(-1, gib * GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    pages = GIB // mmap.PAGESIZE
    for start in range(0, gib * GIB, GIB):
        area[start : start + GIB : mmap.PAGESIZE] = b"\1" * pages
    return area


def fork_and_exit() -> int:
    """``os.fork`` alone, what nsbox never does to its caller; elapsed ns."""
    start = perf_counter_ns()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return perf_counter_ns() - start


def answer(spawn: Callable[[], int]) -> str:
    """Elapsed ns of one spawn, or what went wrong, on one line."""
    try:
        return str(spawn())
    except SampleFailed as why:
        return str(why)
    except Exception as error:  # the asker shows it
        return f"{type(error).__name__}: {error}".splitlines()[0]


def worker(gib: int, root: Path) -> None:
    """Answer ``nsbox``, ``posix_spawn`` and ``fork`` until the input ends."""
    area = touch(gib)
    spawns: tuple[Callable[[], int], ...] = (
        lambda: nsbox_six_ns(load_nsbox(), root, init=False),
        lambda: posix_spawn(str(root) + BUSYBOX_TRUE),
        fork_and_exit,
    )
    methods = dict(zip(METHODS, spawns, strict=True))
    print("ready", flush=True)
    gc.disable()
    for line in sys.stdin:
        print(answer(methods[line.strip()]), flush=True)
    if area is not None:
        area.close()


def ask(process: LineProcess, method: str) -> int:
    """One spawn in a worker; elapsed ns."""
    said = process.ask(method)
    if not said.isdigit():
        raise SampleFailed(said)
    return int(said)


def names(method: str) -> tuple[str, str]:
    """The names of a method's two results."""
    return f"{method}-thin", f"{method}-fat"


NAMES = tuple(name for method in METHODS for name in names(method))


def failing(workers: Iterable[LineProcess], method: str) -> str:
    """Why *method* does not work in the workers, or an empty string."""
    try:
        for process in workers:
            ask(process, method)
    except SampleFailed as why:
        return str(why)
    return ""


def measure(
    fs: Rootfs, rounds: int, *, gap_s: float, rng: random.Random
) -> tuple[dict[str, Result], dict[str, str]]:
    """``{method}-thin`` and ``{method}-fat`` results, and why others are absent.

    ``fork`` comes last and gets few rounds: it write-protects all of its parent's pages, which
    would slow the others' next samples.

    Raises:
        SampleFailed: too little memory, or a worker ended.
    """
    gib = affordable_gib()
    if gib == 0:
        raise SampleFailed("less than 4 GiB of memory available")
    argv = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    results: dict[str, Result] = {}
    absent: dict[str, str] = {}
    with (
        LineProcess([*argv, "0", str(fs.root)]) as thin,
        LineProcess([*argv, str(gib), str(fs.root)]) as fat,
    ):
        workers = (thin, fat)
        for process in workers:
            process.read()
        for methods, turns in ((METHODS[:-1], rounds), (METHODS[-1:], min(rounds, 8))):
            samplers: dict[str, Callable[[], int]] = {}
            for method in methods:
                if why := failing(workers, method):
                    absent.update(dict.fromkeys(names(method), f"{method}: {why}"))
                    continue
                for name, process in zip(names(method), workers, strict=True):
                    samplers[name] = partial(ask, process, method)
            results.update(interleave(samplers, turns, gap_s=gap_s, rng=rng))
    return results, absent


if __name__ == "__main__":
    if sys.argv[1:2] != ["--worker"]:
        sys.exit("fat_parent.py is run by run.py --targets")
    worker(int(sys.argv[2]), Path(sys.argv[3]))
