# SPDX-License-Identifier: Apache-2.0
"""The performance targets that this benchmark can judge, and how each is measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import fat_parent
import imports
from drivers import SampleFailed
from measure import Result

if TYPE_CHECKING:
    import random

    from rootfs import Rootfs

Results = Mapping[str, Result]


@dataclass(frozen=True)
class Target:
    """A promise: ``value`` (a ratio unless *unit* says otherwise) stays at or under *bar*.

    With *least*, it stays at or over it. A target that is not *hard* informs and fails nobody.
    """

    id: str
    what: str
    bar: float
    value: Callable[[Results], float]
    needs: tuple[str, ...]
    hard: bool = True
    least: bool = False
    unit: str = "x"


@dataclass
class Score:
    """A target's values, one per repetition, or the reason why there are none."""

    target: Target
    values: list[float] = field(default_factory=list)
    absent: str = ""

    @property
    def median(self) -> float:
        """What is judged."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether the target was measured and holds."""
        if not self.values:
            return False
        if self.target.least:
            return self.median >= self.target.bar
        return self.median <= self.target.bar


def ratio(id_: str, over: str, under: str, bar: float, *, hard: bool = True) -> Target:
    """*over* may take at most *bar* times as long as *under*."""
    return Target(
        id_,
        f"{over} / {under}",
        bar,
        lambda results: results[over].p50_ms / results[under].p50_ms,
        (over, under),
        hard=hard,
    )


def faster_than(peer: str, bar: float) -> Target:
    """nsbox-6ns is at least *bar* times faster than *peer*."""
    return Target(
        "T3",
        f"{peer} / nsbox-6ns",
        bar,
        lambda results: results[peer].p50_ms / results["nsbox-6ns"].p50_ms,
        (peer, "nsbox-6ns"),
        hard=False,
        least=True,
    )


#: judged on the cases of the main run
SPAWN = (
    ratio("T1", "nsbox-6ns", "floor-template", 1.25, hard=False),
    ratio("T2", "nsbox-6ns", "floor-naive", 0.75),
    faster_than("unshare", 2.0),
    faster_than("bwrap", 3.0),
    faster_than("crun", 5.0),
    faster_than("runc", 15.0),
)
#: judged on what ``measure_caller`` adds
FAT = (ratio("T7", "nsbox-fat", "nsbox-thin", 1.2),)
IMPORT = (
    Target(
        "T13",
        "import nsbox",
        15.0,
        lambda results: results["import-nsbox"].p50_ms,
        ("import-nsbox",),
        unit="ms",
    ),
)


#: the names in the order they are printed
ALL = (*SPAWN, *FAT, *IMPORT)


def score(scores: list[Score], results: Results, absent: Mapping[str, str]) -> None:
    """Append the value that *results* give to each of *scores*, or note what is missing."""
    for entry in scores:
        missing = [name for name in entry.target.needs if name not in results]
        if missing:
            reasons = dict.fromkeys(absent.get(name, f"{name} not run") for name in missing)
            entry.absent = "; ".join(reasons)
        else:
            entry.values.append(entry.target.value(results))


def measure_caller(
    fs: Rootfs, rounds: int, gap_s: float, rng: random.Random
) -> tuple[dict[str, Result], dict[str, str]]:
    """What T7 and T13 need beyond the main run: (results, why others are absent)."""
    results: dict[str, Result] = {}
    absent: dict[str, str] = {}
    try:
        results, absent = fat_parent.measure(fs, 2 * rounds, gap_s=gap_s, rng=rng)
    except SampleFailed as why:
        absent.update(dict.fromkeys(fat_parent.NAMES, f"fat parent: {why}"))
    try:
        results.update(imports.measure(fs, max(5, rounds // 4), rng=rng))
    except SampleFailed as why:
        absent["import-nsbox"] = f"nsbox: {why}"
    return results, absent
