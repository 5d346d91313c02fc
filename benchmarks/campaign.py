# SPDX-License-Identifier: Apache-2.0
"""What ``--targets`` measures beyond the main run, part by part; a part that fails is absent."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import cable
import callers
import imports
import waits
from cases import Case
from compiled import build
from drivers import SampleFailed
from measure import Result, interleave

if TYPE_CHECKING:
    import argparse
    import random
    from collections.abc import Callable, Iterable

    from cases import Absent
    from rootfs import Rootfs

IDLE_GAP_S = 0.07
AT_IDLE = ("nsbox-6ns", "nsbox-6ns-cgroup", "crun-cgroup", "runc-cgroup", "nsjail-cgroup")


@dataclass
class Findings:
    """Everything that one repetition found.

    *figures* are what is not a time: KiB where the name ends so, spawns per second, and the
    milliseconds of ``slowest-call``.
    """

    results: dict[str, Result] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """What targets are judged on: medians in milliseconds, and the figures."""
        return {**{name: each.p50_ms for name, each in self.results.items()}, **self.figures}


def idle(
    cases: Iterable[Case | Absent], rounds: int, rng: random.Random
) -> tuple[dict[str, Result], dict[str, str]]:
    """The cases with cgroups after 70 ms of idling: what a tight loop hides."""
    samplers = {f"{case.name}@idle": case.sample for case in cases
                if isinstance(case, Case) and case.name in AT_IDLE}  # fmt: skip
    why = {f"{case.name}@idle": case.reason for case in cases if not isinstance(case, Case)}
    return interleave(samplers, rounds, gap_s=IDLE_GAP_S, rng=rng), why


def more(
    options: argparse.Namespace,
    fs: Rootfs,
    cases: list[Case | Absent],
    gap_s: float,
    rng: random.Random,
    found: Findings,
) -> None:
    """Add to *found* what T4 and T7 to T15 need."""
    rounds = options.rounds
    timed: dict[str, Callable[[], tuple[dict[str, Result], dict[str, str]]]] = {
        "@idle": partial(idle, cases, max(10, rounds // 2), rng),
        "@fat": partial(callers.fat, fs, rounds, gap_s=gap_s, rng=rng),
        "@beside": partial(callers.crowd, fs, rounds, options.live, gap_s=gap_s, rng=rng),
        "@1000-mounts": partial(callers.mounted, fs, rounds, gap_s=gap_s, rng=rng),
        "plug-": partial(cable.measure, max(10, rounds // 2), gap_s=gap_s, rng=rng),
        "import-": lambda: (imports.measure(fs, max(5, rounds // 4), rng=rng), {}),
    }
    for name, part in timed.items():
        try:
            results, absent = part()
        except SampleFailed as why:
            note(found, name, why)
        else:
            found.results.update(results)
            found.absent.update(absent)
    rates_ms = 500 if options.quick else 3000
    counted: dict[str, Callable[[], dict[str, float]]] = {
        "-kib": partial(callers.memory, fs, options.live),
        "-threads": partial(callers.throughput, fs, build("floor"), rates_ms),
    }
    for name, count in counted.items():
        try:
            found.figures.update(count())
        except SampleFailed as why:
            note(found, name, why)
    try:
        call, ms = waits.measure(fs, 5 if options.quick else 15)
        found.figures["slowest-call"], found.notes["slowest-call"] = ms, call
    except SampleFailed as why:
        note(found, "slowest-call", why)


def note(found: Findings, part: str, why: SampleFailed) -> None:
    """Why the names with *part* in them are absent."""
    from targets import ALL

    for target in ALL:
        for name in target.needs:
            if part in name and name not in found.values:
                found.absent[name] = str(why)


def live_default() -> int:
    """Idle sandboxes that are affordable here: half a gibibyte, and a tenth of all processes."""
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as limit:
        processes = int(limit.read()) // 10
    by_memory = callers.meminfo()["MemAvailable"] // 4 // 600
    return max(10, min(500, processes, by_memory, os.sysconf("SC_OPEN_MAX") // 8))
