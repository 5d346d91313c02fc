# SPDX-License-Identifier: Apache-2.0
"""Results as a plain text table, as target lines, and as JSON records."""

from __future__ import annotations

import datetime
import json
import platform
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cases import REPOSITORY, Absent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from campaign import Findings
    from measure import Result
    from targets import Score

HISTORY = Path(__file__).resolve().parent / "history.jsonl"
BASES = {"floor-naive": "x naive", "floor-template": "x template"}


def columns(rows: Sequence[Sequence[str]], left: int) -> Iterable[str]:
    """*rows* as aligned lines; the first *left* columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def table(results: Mapping[str, Result], absent: Iterable[Absent]) -> str:
    """Fastest first; times in milliseconds, ratios of medians; then what could not be measured."""
    rows = [["case", "p50 ms", "p10 ms", "p95 ms", *BASES.values(), "n"]]
    for result in sorted(results.values(), key=lambda each: each.p50_ms):
        ratios = [
            f"{result.p50_ms / results[base].p50_ms:.2f}" if base in results else "-"
            for base in BASES
        ]
        times = [f"{ms:.3f}" for ms in (result.p50_ms, result.p10_ms, result.p95_ms)]
        rows.append([result.name, *times, *ratios, str(result.n)])
    lines = list(columns(rows, left=1))
    lines += [f"{each.name}: {each.reason}" for each in absent]
    return "\n".join(lines)


def figures(found: Findings) -> str:
    """What is not a time, with its unit."""
    rows = [
        [
            name,
            f"{value:.1f}" if value < 100 else f"{value:.0f}",
            unit(name),
            found.notes.get(name, ""),
        ]
        for name, value in found.figures.items()
    ]
    return "\n".join(columns(rows, left=1)) if rows else ""


def unit(name: str) -> str:
    """Of a figure: its name says it."""
    if name.endswith("-kib"):
        return "KiB"
    return "/s" if name.endswith("-threads") else "ms"


def target_line(score: Score) -> str:
    """One PASS or FAIL line with the judged value, its bar and each repetition's value."""
    target = score.target
    sign = ">=" if target.least else "<="
    note = "" if target.hard else "  (informative)"
    if not score.values:
        return f"{target.id:4} n/a   {target.what} {sign} {target.bar:g}: {score.absent}{note}"
    verdict = "PASS" if score.met else "FAIL"
    runs = " ".join(f"{value:.3g}" for value in score.values)
    how = f"median of {runs}" if len(score.values) > 1 else "one run"
    value = f"{score.median:.3g} {sign} {target.bar:g} {target.unit}"
    return f"{target.id:4} {verdict}  {value}  {target.what}  [{how}]{note}"


def git(*args: str) -> str:
    """Output of a read-only git command in the repository, or an empty string."""
    argv = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *args]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_model() -> str:
    """Model name and count of the processors."""
    with open("/proc/cpuinfo", encoding="utf-8") as rows:
        pairs = [line.partition(":") for line in rows]
    models = [value.strip() for key, _, value in pairs if key.strip() == "model name"]
    return f"{models[0] if models else platform.machine()} x{len(models) or '?'}"


def machine() -> dict[str, Any]:
    """What makes two runs comparable: date (UTC, ISO 8601), commit, kernel, cpu, python, rss_mib.

    ``rss_mib`` is this process's, the caller of most spawns.
    """
    commit = git("rev-parse", "--short=12", "HEAD") or "none"
    if git("status", "--porcelain"):
        commit += "+dirty"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
        "commit": commit,
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def records(found: Findings, host: Mapping[str, Any], repetition: int) -> list[dict[str, Any]]:
    """One JSON object per case; times in milliseconds, *repetition* from 1.

    What is not a time has ``value`` and ``unit`` in place of the percentiles.
    """
    times = [
        {
            **host,
            "case": each.name,
            "p50_ms": round(each.p50_ms, 4),
            "p10_ms": round(each.p10_ms, 4),
            "p95_ms": round(each.p95_ms, 4),
            "n": each.n,
            "repetition": repetition,
        }
        for each in found.results.values()
    ]
    rest = [
        {**host, "case": name, "value": round(value, 4), "unit": unit(name),
         "repetition": repetition}
        for name, value in found.figures.items()
    ]  # fmt: skip
    return times + rest


def append_history(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add *rows* to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as history:
        history.writelines(json.dumps(row) + "\n" for row in rows)
