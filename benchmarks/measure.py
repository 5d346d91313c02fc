# SPDX-License-Identifier: Apache-2.0
"""Interleaved measurement: one sample of every case per round, in a new order each round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers import SampleFailed

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

WARM_UP = 3


@dataclass(frozen=True)
class Result:
    """The samples of one case, in milliseconds."""

    name: str
    samples_ms: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples_ms)

    @property
    def p50_ms(self) -> float:
        """The median, the number that ratios are made of."""
        return statistics.median(self.samples_ms)

    @property
    def p10_ms(self) -> float:
        """The tenth percentile: what a quieter machine would show."""
        return self._percentile(10)

    @property
    def p95_ms(self) -> float:
        """The 95th percentile: what one in twenty takes longer than."""
        return self._percentile(95)

    def _percentile(self, percent: int) -> float:
        return sorted(self.samples_ms)[max(0, math.ceil(self.n * percent / 100) - 1)]


def interleave(
    samplers: Mapping[str, Callable[[], int]],
    rounds: int,
    *,
    gap_s: float,
    rng: random.Random,
    warm_up: int = WARM_UP,
) -> dict[str, Result]:
    """Sample every case *rounds* times, round robin, after *warm_up* unrecorded rounds.

    The order is shuffled in every round, and *gap_s* seconds pass before each sample, because a
    namespace is freed after its last process is gone: a fixed order, or none waiting, would let one
    case pay for the clean-up of another. Python's garbage collector rests meanwhile.
    """
    taken: dict[str, list[int]] = {name: [] for name in samplers}
    gc.collect()
    gc.disable()
    try:
        for turn in range(-warm_up, rounds):
            for name in shuffled(list(samplers), rng):
                time.sleep(gap_s)
                elapsed_ns = named(name, samplers[name])
                if turn >= 0:
                    taken[name].append(elapsed_ns)
    finally:
        gc.enable()
    return {name: Result(name, tuple(ns / 1e6 for ns in all_ns)) for name, all_ns in taken.items()}


def named(name: str, sample: Callable[[], int]) -> int:
    """One sample; a failure says whose it was.

    Raises:
        SampleFailed: the spawn did not succeed.
    """
    try:
        return sample()
    except Exception as error:
        raise SampleFailed(f"{name}: {error}") from error


def shuffled(names: Sequence[str], rng: random.Random) -> list[str]:
    """A new list with *names* in random order."""
    return rng.sample(names, len(names))
