# SPDX-License-Identifier: Apache-2.0
"""Two recorded runs, case by case: ``compare.py [OLD NEW] [--history FILE]``.

OLD and NEW are the beginning of a date or of a commit; without them the last two runs of the
history are compared. Runs on different machines are not: that would compare the machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import HISTORY, columns

if TYPE_CHECKING:
    from collections.abc import Iterable

Row = dict[str, Any]

SAME = ("kernel", "cpu", "python")
#: what the machine itself took: both runs are divided by it, where both have it
BASE = "floor-template"


class Refused(Exception):
    """The runs cannot be compared; the text says why."""


def runs(lines: Iterable[str]) -> list[list[Row]]:
    """The rows of each run, oldest first; a run is what has one date and commit."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for line in lines:
        if line.strip():
            row = json.loads(line)
            found[row["date"], row["commit"]].append(row)
    return [found[key] for key in sorted(found)]


def pick(every: list[list[Row]], name: str) -> list[Row]:
    """The last run whose date or commit begins with *name*."""
    for run in reversed(every):
        if any(str(run[0][key]).startswith(name) for key in ("date", "commit")):
            return run
    raise Refused(f"no run of {name!r} in the history")


def medians(run: Iterable[Row]) -> dict[str, float]:
    """Of each case, over the repetitions: milliseconds, or the figure's own unit."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in run:
        found[row["case"]].append(row["p50_ms"] if "p50_ms" in row else row["value"])
    return {case: statistics.median(values) for case, values in found.items()}


def check_same_machine(old: list[Row], new: list[Row]) -> None:
    """Raises Refused where they differ in what the times depend on."""
    differ = [f"{key}: {old[0].get(key)} and {new[0].get(key)}"
              for key in SAME if old[0].get(key) != new[0].get(key)]  # fmt: skip
    if differ:
        raise Refused("runs of different machines are not compared: " + "; ".join(differ))


def table(old: list[Row], new: list[Row]) -> str:
    """Both medians and their ratio; for times also the ratio in units of the floor's own."""
    check_same_machine(old, new)
    was, now = medians(old), medians(new)
    common = [case for case in was if case in now and was[case] > 0]
    if not common:
        raise Refused("the runs have no case in common")
    timed = {row["case"] for row in old if "p50_ms" in row}
    drift = now[BASE] / was[BASE] if BASE in common else 0.0
    rows = [["case", "old", "new", "new / old", f"in {BASE}s"]]
    for case in sorted(common, key=lambda each: now[each] / was[each]):
        ratio = now[case] / was[case]
        in_floors = f"{ratio / drift:.2f}" if drift and case in timed else "-"
        rows.append([case, f"{was[case]:.3f}", f"{now[case]:.3f}", f"{ratio:.2f}", in_floors])
    return "\n".join(columns(rows, left=1))


def main(argv: list[str] | None = None) -> int:
    """0; 2 when there is nothing that could be compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="OLD NEW: a date or commit each")
    parser.add_argument("--history", type=Path, default=HISTORY)
    options = parser.parse_args(argv)
    try:
        if len(options.runs) not in (0, 2):
            raise Refused("name two runs, or none for the last two")
        if not options.history.exists():
            raise Refused(f"{options.history} is not there: run.py --history makes it")
        every = runs(options.history.read_text(encoding="utf-8").splitlines())
        if len(every) < 2:
            raise Refused(f"{options.history} has {len(every)} run: two are needed")
        pair = [pick(every, name) for name in options.runs] or every[-2:]
        print("\n".join(f"{word}: {run[0]['date']} {run[0]['commit']}"
                        for word, run in zip(("old", "new"), pair, strict=True)))  # fmt: skip
        print(table(*pair))
    except Refused as why:
        print(f"compare.py: {why}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
