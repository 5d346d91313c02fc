# SPDX-License-Identifier: Apache-2.0
"""``Limits(cpu_time=)``: what a whole tree has used, and when it could be used up.

The kernel has no limit on the CPU time of a group, so it is looked at. Not in a fixed rhythm:
the next look is when all processors together could have used up what is left.
"""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

from nsbox import processes, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.process import Ended, Process

#: Looks are no closer than this (seconds): a file of a cgroup's, or some of each process.
_LEAST_S, _LEAST_WALK_S = 0.01, 0.02


class _Walk:
    """What the tree below a PID 1 has used, without a cgroup.

    Two sums that are never too high: of those who live with all that they waited for, and of
    everyone who was seen. The second counts children that nobody waits for (SIGCHLD ignored).
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[tuple[int, int], float] = {}
        self._most = 0.0

    def __call__(self) -> float:
        alive = processes.stats(self._root)
        for stat in alive:
            if stat.own:  # a tick at least: so the limit bounds how many are remembered
                self._seen[stat.pid, stat.started] = stat.own
        total = sum(stat.user + stat.system for stat in alive)
        self._most = max(self._most, total, sum(self._seen.values()))
        return self._most


class Meter:
    """Watches one process's tree. *due* (time.monotonic) is when to ``look()`` next."""

    def __init__(self, process: Process, limit: float) -> None:
        self._limit = limit
        self._cpus = os.cpu_count() or 1
        cgroup = process.cgroup
        counted = cgroup is not None and cgroup.cpu_used() is not None
        self._used: Callable[[], float | None]
        self._used = cgroup.cpu_used if cgroup is not None and counted else _Walk(process.pid)
        self._least = _LEAST_S if counted else _LEAST_WALK_S
        self._timer: watch.Timer | None = None
        self._process = process
        self.used = 0.0
        self.due = process.started_at + limit / self._cpus

    def look(self) -> bool:
        """Whether it is used up; else *due* is set anew."""
        self.used = max(self.used, self._used() or 0.0)
        left = self._limit - self.used
        self.due = time.monotonic() + max(left / self._cpus, self._least)
        return left <= 0

    def keep(self, spent: Callable[[], None]) -> None:
        """Where nobody waits, the library's thread looks, and calls *spent* (weakly) once."""
        self._again(watch.weakly(spent))

    def _again(self, spent: Callable[[], None]) -> None:
        delay = self.due - time.monotonic()
        self._timer = watch.get().call_later(delay, functools.partial(self._keep, spent))

    def _keep(self, spent: Callable[[], None]) -> None:
        if self._process.ended_at:
            return
        if self.look():
            spent()
        else:
            self._again(spent)

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()


def meter(process: Process) -> Meter | None:
    """That of a process with such a limit."""
    return None if process.cpu_limit is None else Meter(process, process.cpu_limit)


def spent(process: Process, ended: Ended) -> bool:
    """By the final counters: used up is used up, whether or not somebody saw it in time."""
    if process.cpu_limit is None:
        return False
    return sum(used(process, ended)) >= process.cpu_limit


def used(process: Process, ended: Ended) -> tuple[float, float]:
    """Seconds in user and kernel mode, in all by the cgroup's counter where it has one.

    That counts those too whom nobody waited for; which mode it was is known of the others.
    """
    known = ended.cpu_user + ended.cpu_system
    total = process.stats.cpu_used if process.stats is not None else None
    if total is None or total <= known:
        return ended.cpu_user, ended.cpu_system
    user = total * ended.cpu_user / known if known else total
    return user, total - user
