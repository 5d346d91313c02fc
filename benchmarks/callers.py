# SPDX-License-Identifier: Apache-2.0
"""What a spawn costs callers that are big, busy or burdened: T7, T8, T9, T10 and T11.

Each asks worker processes (``worker.py``) in turn, so that both sides of a ratio are measured
side by side.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import worker
from cases import floor_answer
from drivers import LineProcess, SampleFailed
from measure import Result, interleave
from rootfs import BUSYBOX_TRUE
from worker import GIB, ask

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from rootfs import Rootfs

PRIVATE = ("unshare", "--mount", "--propagation", "private")
MOUNTS = 1000
THREADS = 8
#: /proc/meminfo's rows that an idle sandbox adds to
MEMORY = ("AnonPages", "Slab", "KernelStack", "PageTables", "Percpu", "Shmem")


def meminfo() -> dict[str, int]:
    """KiB by name."""
    with open("/proc/meminfo", encoding="ascii") as table:
        return {name: int(rest.split()[0]) for name, rest in (row.split(":") for row in table)}


def failing(workers: Iterable[LineProcess], method: str) -> str:
    """Why *method* does not work in the workers, or an empty string."""
    try:
        for process in workers:
            ask(process, "spawn", method)
    except SampleFailed as why:
        return str(why)
    return ""


def side_by_side(
    workers: dict[str, LineProcess],
    methods: Iterable[str],
    rounds: int,
    *,
    gap_s: float,
    rng: random.Random,
) -> tuple[dict[str, Result], dict[str, str]]:
    """``METHOD@WORKER`` results, and why others are absent."""
    samplers: dict[str, Callable[[], int]] = {}
    absent: dict[str, str] = {}
    for method in methods:
        if why := failing(workers.values(), method):
            absent.update({f"{method}@{name}": f"{method}: {why}" for name in workers})
            continue
        for name, process in workers.items():
            samplers[f"{method}@{name}"] = partial(ask, process, "spawn", method)
    return interleave(samplers, rounds, gap_s=gap_s, rng=rng), absent


# ---- T7: a fat caller --------------------------------------------------------------------------


def affordable_gib() -> int:
    """4, 2, 1 or 0 GiB: what can be touched while half of the available memory stays free."""
    available = meminfo()["MemAvailable"] * 1024
    return next((gib for gib in (4, 2, 1) if available >= 2 * (gib + 1) * GIB), 0)


def fat(
    fs: Rootfs, rounds: int, *, gap_s: float, rng: random.Random
) -> tuple[dict[str, Result], dict[str, str]]:
    """Callers with 0, 1 and up to 4 GiB of touched memory; ``@fat`` is the largest.

    ``fork`` comes last and gets few rounds: it write-protects all of its parent's pages, which
    would slow the others' next samples.

    Raises:
        SampleFailed: too little memory, or a worker ended.
    """
    most = affordable_gib()
    if most == 0:
        raise SampleFailed("less than 4 GiB of memory available")
    sizes = {"thin": 0, **({"1GiB": 1} if most > 1 else {}), "fat": most}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(worker.start(fs.root)) for name in sizes}
        for name, gib in sizes.items():
            if gib:
                ask(workers[name], "touch", gib)
        results, absent = side_by_side(
            workers, ("nsbox-6ns", "posix_spawn"), rounds, gap_s=gap_s, rng=rng
        )
        more, why = side_by_side(workers, ("fork",), min(rounds, 8), gap_s=gap_s, rng=rng)
    return {**results, **more}, {**absent, **why}


# ---- T8: many live sandboxes -------------------------------------------------------------------


def crowd(
    fs: Rootfs, rounds: int, live: int, *, gap_s: float, rng: random.Random
) -> tuple[dict[str, Result], dict[str, str]]:
    """Spawns beside *live* idle sandboxes of the same caller, with and without a network each.

    The kernel itself has more to look through then, so nobody else could be the other side:
    one caller is measured without, with, and again without them.

    Raises:
        SampleFailed: they could not all be started.
    """
    methods = ("nsbox-6ns", "nsbox-no-net")
    results: dict[str, Result] = {}
    with worker.start(fs.root) as process:

        def measure(name: str) -> dict[str, Result]:
            found, why = side_by_side({name: process}, methods, rounds, gap_s=gap_s, rng=rng)
            if why:
                raise SampleFailed("; ".join(why.values()))
            return found

        before = measure("alone")
        for kind in methods:
            ask(process, "hold", live, kind)
            results.update(measure(f"beside-{kind}"))
            ask(process, "hold", 0, kind)
            settle()
        after = measure("alone")
    for name, result in before.items():
        results[name] = Result(name, (*result.samples_ms, *after[name].samples_ms))
    return results, {}


def settle(most_s: float = 30.0) -> None:
    """Until the kernel has freed what was closed, as far as its slabs tell."""
    end, last = time.monotonic() + most_s, -1
    while time.monotonic() < end:
        now = meminfo()["Slab"]
        if last >= 0 and abs(now - last) < 256:
            return
        last = now
        time.sleep(0.5)


# ---- T9: many mounts on the host ---------------------------------------------------------------


def mounted(
    fs: Rootfs, rounds: int, *, gap_s: float, rng: random.Random
) -> tuple[dict[str, Result], dict[str, str]]:
    """Callers in private mount namespaces, one of them with 1,000 more mounts.

    Raises:
        SampleFailed: a mount failed, or a worker ended.
    """
    where: Path = fs.work / "mounts"
    with (
        worker.start(fs.root, PRIVATE) as few,
        worker.start(fs.root, PRIVATE) as many,
    ):
        ask(many, "mounts", MOUNTS, where)
        workers = {"few-mounts": few, "1000-mounts": many}
        return side_by_side(workers, ("nsbox-6ns",), rounds, gap_s=gap_s, rng=rng)


# ---- T10: memory -------------------------------------------------------------------------------


def memory(fs: Rootfs, live: int) -> dict[str, float]:
    """KiB of each idle sandbox, the kernel's share too, by kind; and the helper process's.

    Raises:
        SampleFailed: they could not all be started.
    """
    found: dict[str, float] = {}
    with worker.start(fs.root) as process:
        found["helper-kib"] = ask(process, "helper")
        for kind in (*worker.SANDBOXES, worker.POD):
            count = max(1, live // 20) if kind == worker.POD else live
            settle()
            before = meminfo()
            ask(process, "hold", count, kind)
            after = meminfo()
            ask(process, "hold", 0, kind)
            grown = sum(after[row] - before[row] for row in MEMORY)
            found[f"{kind}-kib"] = grown / count
    settle()
    return found


# ---- T11: throughput ---------------------------------------------------------------------------


def floor_rate(program: Path, root: Path, variant: str, processes: int, ms: int) -> float:
    """Spawns per second of so many floor processes, each driven by a thread of ours."""
    counts = [0] * processes
    with contextlib.ExitStack() as stack:
        floors = [
            stack.enter_context(LineProcess([str(program), str(root)])) for _ in range(processes)
        ]
        for floor in floors:
            floor.read()
        start = time.monotonic()
        end = start + ms / 1000

        def go(number: int) -> None:
            while time.monotonic() < end:
                floor_answer(floors[number], variant, BUSYBOX_TRUE)
                counts[number] += 1

        threads = [threading.Thread(target=go, args=(number,)) for number in range(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.monotonic() - start)


def throughput(fs: Rootfs, program: Path, ms: int) -> dict[str, float]:
    """Spawns per second, one after another in turn: nsbox from threads, the naive floor.

    Raises:
        SampleFailed: a spawn failed.
    """
    found: dict[str, float] = {}
    with worker.start(fs.root) as process:
        for method in ("nsbox-6ns", "nsbox-no-net"):
            for threads in (1, THREADS):
                ask(process, "spawn", method)
                name = f"{method}@{threads}-threads"
                found[name] = ask(process, "rate", method, threads, ms)
                time.sleep(0.5)
    for processes in (1, THREADS):
        name = f"floor-naive@{processes}-threads"
        found[name] = floor_rate(program, fs.root, "naive", processes, ms)
        time.sleep(0.5)
    return found
