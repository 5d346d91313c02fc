# SPDX-License-Identifier: Apache-2.0
"""Measure spawning: nsbox, what the kernel asks for, and other runners, side by side.

``python benchmarks/run.py [--targets | --check] [--quick] [--cases GLOB,…] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path

import facts
import report
import targets
from cases import Absent, Case, all_cases
from drivers import SampleFailed
from measure import Result, interleave
from rootfs import Rootfs, temporary, unsandboxed_probe

HISTORY = Path(__file__).resolve().parent / "history.jsonl"
REPETITIONS = 3
SEED = 20231


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="samples of each case (60; --quick: 15)")
    parser.add_argument("--cases", default="*", help="comma-separated globs of case names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    parser.add_argument("--history", action="store_true", help=f"append to {HISTORY.name}")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a first look")
    parser.add_argument("--gap", type=float, default=2.0, metavar="MS", help="idle before a sample")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--targets", action="store_true", help=f"{REPETITIONS} repetitions; exit 1 on a FAIL"
    )
    mode.add_argument("--check", action="store_true", help="prove the sandboxes, measure nothing")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (15 if options.quick else 60)
    return options


def check(fs: Rootfs, found: list[Case | Absent]) -> int:
    """Print what holds in every sandbox; 1 if a floor or nsbox breaks a promise, else 0."""
    blind = facts.blind_spots(facts.parse(unsandboxed_probe(fs)))
    word = "FAIL" if blind else "ok  "
    print(f"control: {word} a missing sandbox is noticed ({', '.join(blind) or 'yes'})")
    failures = len(blind)
    for case in found:
        if isinstance(case, Absent):
            failures += case.name.startswith("floor-")
            print(f"{case.name}: {case.reason}")
        elif case.probe is None:
            print(f"{case.name}: runs")
        else:
            seen = facts.parse(case.probe())
            ours = case.name.startswith(("floor-", "nsbox-"))
            for promise, kept, evidence in facts.judge(seen, pid=case.payload_pid):
                failures += ours and not kept
                word = "ok  " if kept else "FAIL" if ours else "no  "
                print(f"{case.name}: {word} {promise} ({evidence})")
    print(f"{failures} failures" if failures else "all promises kept")
    return 1 if failures else 0


def measure(
    options: argparse.Namespace, fs: Rootfs, found: list[Case | Absent]
) -> tuple[list[list[Result]], list[targets.Score]]:
    """Run the repetitions; the results of each, and the targets' scores."""
    rng = random.Random(SEED)
    gap_s = options.gap / 1000
    samplers = {case.name: case.sample for case in found if isinstance(case, Case)}
    missing = [case for case in found if isinstance(case, Absent)]
    absent = {case.name: case.reason for case in missing}
    wanted = targets.ALL if options.targets else targets.SPAWN
    scores = [targets.Score(target) for target in wanted]
    everything: list[list[Result]] = []
    for _ in range(REPETITIONS if options.targets else 1):
        results = interleave(samplers, options.rounds, gap_s=gap_s, rng=rng)
        print(report.table(results, missing), end="\n\n", flush=True)
        if options.targets:
            more, why = targets.measure_caller(fs, options.rounds, gap_s, rng)
            print(report.table(more, ()), end="\n\n", flush=True)
            results.update(more)
            absent.update(why)
        targets.score(scores, results, absent)
        everything.append(list(results.values()))
    return everything, scores


def publish(
    options: argparse.Namespace, repetitions: list[list[Result]], host: dict[str, str]
) -> None:
    """Write the records where they were asked for."""
    rows = [
        row
        for number, results in enumerate(repetitions, 1)
        for row in report.records(results, host, number)
    ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.history:
        report.append_history(HISTORY, rows)


def main() -> int:
    """0; with --targets 1 when a hard target is missed or unmeasured, with --check on a FAIL."""
    options = arguments()
    if os.geteuid() != 0:
        print("run.py: needs root: the floors make namespaces and mounts", file=sys.stderr)
        return 2
    host = report.machine()
    print(" · ".join(host.values()))
    patterns = options.cases.split(",")
    try:
        with temporary() as fs, all_cases(fs, patterns) as found:
            if origin := getattr(sys.modules.get("nsbox"), "__file__", None):
                print(f"nsbox from {origin}")
            if options.check:
                return check(fs, found)
            results, scores = measure(options, fs, found)
    except (SampleFailed, RuntimeError) as why:
        print(f"run.py: {why}", file=sys.stderr)
        return 2
    print("\n".join(report.target_line(each) for each in scores))
    publish(options, results, host)
    missed = [each for each in scores if each.target.hard and not each.met]
    return 1 if options.targets and missed else 0


if __name__ == "__main__":
    sys.exit(main())
