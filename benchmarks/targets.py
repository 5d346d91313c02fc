# SPDX-License-Identifier: Apache-2.0
"""The performance targets, and what of them this benchmark can judge."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Target:
    """A promise: *over* / *under*, or *over* alone with a *unit*, stays at or under *bar*.

    With *least*, it stays at or over it. A target that is not *hard* informs and fails nobody.
    """

    id: str
    over: str
    under: str
    bar: float
    hard: bool = True
    least: bool = False
    unit: str = "x"

    @property
    def what(self) -> str:
        """What is judged."""
        return f"{self.over} / {self.under}" if self.under else self.over

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what must have been measured."""
        return tuple(filter(None, (self.over, self.under)))

    def value(self, values: Mapping[str, float]) -> float:
        """The judged number of one repetition."""
        return values[self.over] / (values[self.under] if self.under else 1.0)


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


def at_most(id_: str, over: str, under: str, bar: float, *, hard: bool = True) -> Target:
    """*over* may take at most *bar* times as much as *under*."""
    return Target(id_, over, under, bar, hard=hard)


def at_least(id_: str, over: str, under: str, bar: float) -> Target:
    """*over* is at least *bar* times *under*: a peer that is slower, a rate that is higher."""
    return Target(id_, over, under, bar, hard=False, least=True)


#: judged on the cases of the main run
SPAWN = (
    at_most("T1", "nsbox-6ns", "floor-template", 1.25, hard=False),
    at_most("T2", "nsbox-6ns", "floor-naive", 0.75),
    at_least("T3", "unshare", "nsbox-6ns", 2.0),
    at_least("T3", "bwrap", "nsbox-6ns", 3.0),
    at_least("T3", "nsjail", "nsbox-6ns", 5.0),
    at_least("T3", "crun", "nsbox-6ns", 5.0),
    at_least("T3", "runc", "nsbox-6ns", 15.0),
    at_least("T3", "systemd-nspawn", "nsbox-6ns", 40.0),
    at_least("T3", "podman", "nsbox-6ns", 80.0),
)
#: judged on what ``campaign.py`` adds
MORE = (
    at_least("T4", "crun-cgroup@idle", "nsbox-6ns-cgroup@idle", 4.0),
    at_least("T4", "nsjail-cgroup@idle", "nsbox-6ns-cgroup@idle", 6.0),
    at_most("T4", "nsbox-6ns-cgroup@idle", "nsbox-6ns@idle", 1.5, hard=False),
    at_most("T7", "nsbox-6ns@fat", "nsbox-6ns@thin", 1.2),
    at_most("T8", "nsbox-no-net@beside-nsbox-no-net", "nsbox-no-net@alone", 1.5, hard=False),
    at_most("T8", "nsbox-no-net@beside-nsbox-6ns", "nsbox-no-net@alone", 2.5, hard=False),
    at_most("T8", "nsbox-6ns@beside-nsbox-6ns", "nsbox-6ns@alone", 2.2, hard=False),
    at_most("T9", "nsbox-6ns@1000-mounts", "nsbox-6ns@few-mounts", 1.15, hard=False),
    Target("T10", "nsbox-no-net-kib", "", 100, hard=False, unit="KiB"),
    Target("T10", "nsbox-6ns-kib", "", 350, hard=False, unit="KiB"),
    Target("T10", "nsbox-6ns-cgroup-kib", "", 600, hard=False, unit="KiB"),
    Target("T10", "pod-of-10-kib", "", 1331, hard=False, unit="KiB"),
    Target("T10", "helper-kib", "", 1024, unit="KiB"),
    at_least("T11", "nsbox-no-net@8-threads", "floor-naive@8-threads", 4.0),
    at_least("T11", "nsbox-6ns@8-threads", "floor-naive@8-threads", 1.3),
    at_least("T11", "nsbox-6ns@8-threads", "nsbox-6ns@1-threads", 1.3),
    at_most("T12", "plug-nsbox", "plug-rtnetlink", 1.3, hard=False),
    at_least("T12", "plug-ip", "plug-nsbox", 5.0),
    at_least("T12", "plug-pyroute2", "plug-nsbox", 5.0),
    Target("T12", "close-network", "", 1.0, hard=False, unit="ms"),
    Target("T13", "import-nsbox", "", 15.0, unit="ms"),
    Target("T15", "slowest-call", "", 1.5, hard=False, unit="ms"),
)
ALL = (*SPAWN, *MORE)


def score(scores: list[Score], values: Mapping[str, float], absent: Mapping[str, str]) -> None:
    """Append the value that *values* give to each of *scores*, or note what is missing."""
    for entry in scores:
        missing = [name for name in entry.target.needs if name not in values]
        if missing:
            reasons = dict.fromkeys(absent.get(name, f"{name} not run") for name in missing)
            entry.absent = "; ".join(reasons)
        else:
            entry.values.append(entry.target.value(values))
