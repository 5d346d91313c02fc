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
from typing import Any

import facts
import report
import targets
from campaign import Findings, live_default, more
from cases import Absent, Case, all_cases
from drivers import SampleFailed
from measure import interleave
from rootfs import Rootfs, temporary, unsandboxed_probe

REPETITIONS = 3
SEED = 20231


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="samples of each case (60; --quick: 15)")
    parser.add_argument("--cases", default="*", help="comma-separated globs of case names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    parser.add_argument("--history", action="store_true", help=f"append to {report.HISTORY.name}")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a first look")
    parser.add_argument("--gap", type=float, default=2.0, metavar="MS", help="idle before a sample")
    parser.add_argument(
        "--live", type=int, metavar="N", help="idle sandboxes for T8 and T10 (500; --quick: 50)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--targets", action="store_true", help=f"{REPETITIONS} repetitions; exit 1 on a FAIL"
    )
    mode.add_argument("--check", action="store_true", help="prove the sandboxes, measure nothing")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (15 if options.quick else 60)
    options.live = options.live or (50 if options.quick else live_default())
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
) -> tuple[list[Findings], list[targets.Score]]:
    """Run the repetitions; what each found, and the targets' scores."""
    rng = random.Random(SEED)
    gap_s = options.gap / 1000
    samplers = {case.name: case.sample for case in found if isinstance(case, Case)}
    missing = [case for case in found if isinstance(case, Absent)]
    wanted = targets.ALL if options.targets else targets.SPAWN
    scores = [targets.Score(target) for target in wanted]
    everything: list[Findings] = []
    for number in range(REPETITIONS if options.targets else 1):
        findings = Findings(absent={case.name: case.reason for case in missing})
        findings.results.update(interleave(samplers, options.rounds, gap_s=gap_s, rng=rng))
        print(report.table(findings.results, missing), end="\n\n", flush=True)
        if options.targets:
            more(options, fs, found, gap_s, rng, findings)
            extra = {n: r for n, r in findings.results.items() if n not in samplers}
            print(report.table(extra, ()), report.figures(findings), sep="\n\n", flush=True)
            print(f"\n-- repetition {number + 1} of {REPETITIONS}\n", flush=True)
        targets.score(scores, findings.values, findings.absent)
        everything.append(findings)
    return everything, scores


def publish(options: argparse.Namespace, repetitions: list[Findings], host: dict[str, Any]) -> None:
    """Write the records where they were asked for."""
    rows = [
        row
        for number, found in enumerate(repetitions, 1)
        for row in report.records(found, host, number)
    ]
    if options.json:
        lines = ",\n".join(json.dumps(row) for row in rows)  # one a line: for diff, and small
        options.json.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    if options.history:
        report.append_history(report.HISTORY, rows)


def main() -> int:
    """0; with --targets 1 when a hard target is missed or unmeasured, with --check on a FAIL."""
    options = arguments()
    if os.geteuid() != 0:
        print("run.py: needs root: the floors make namespaces and mounts", file=sys.stderr)
        return 2
    host = report.machine()
    print(" · ".join(map(str, host.values())))
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
