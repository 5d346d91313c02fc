# SPDX-License-Identifier: Apache-2.0
"""``stats`` and ``top``: tables that are drawn again and again."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from nsbox.cli.output import print_json, print_table, size, table
from nsbox.errors import SpecError
from nsbox.sandboxes import Sandbox, command_of, load, members, proc_table, sandboxes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

_FIRST_LOOK_S = 0.2
_CLEAR = "\x1b[H\x1b[2J"

Row = dict[str, Any]
#: (pid, start) -> CPU seconds, at a moment.
Before = dict[tuple[int, int], float]


def _wanted(words: list[str]) -> list[Sandbox]:
    running = sandboxes()
    if not words:
        return running
    from nsbox.sandboxes import find

    chosen = {find(word).pid for word in words}
    return [one for one in running if one.pid in chosen]


def _percent(key: tuple[int, int], cpu: float, before: Before, passed: float) -> float:
    return round(100 * max(0.0, cpu - before[key]) / passed, 1) if key in before else 0.0


def _stats(words: list[str], before: Before, passed: float) -> tuple[list[Row], Before]:
    seen, rows = proc_table(), []
    now: Before = {}
    for one in _wanted(words):
        used = load(one, seen)
        key = (one.pid, one.start)
        now[key] = used.cpu
        share = _percent(key, used.cpu, before, passed)
        rows.append({"id": one.pid, "name": one.name, "cpu": share, "memory": used.memory,
                     "memory_limit": used.memory_limit, "pids": used.pids,
                     "pids_limit": used.pids_limit, "cpu_seconds": round(used.cpu, 3),
                     "command": list(one.command)})  # fmt: skip
    return rows, now


def _top(words: list[str], before: Before, passed: float) -> tuple[list[Row], Before]:
    seen, rows = proc_table(), []
    now: Before = {}
    for one in _wanted(words):
        for stat in members(one, seen):
            key = (stat.pid, stat.start)
            now[key] = stat.cpu
            rows.append({"pid": stat.pid, "sandbox": one.name or str(one.pid),
                         "cpu": _percent(key, stat.cpu, before, passed), "rss": stat.rss,
                         "cpu_seconds": round(stat.cpu, 3),
                         "command": command_of(stat.pid)})  # fmt: skip
    return sorted(rows, key=lambda row: -row["cpu"]), now


def _stats_row(r: Row) -> list[object]:
    return [r["id"], r["name"] or "-", f"{r['cpu']:.1f}", size(r["memory"]),
            size(r["memory_limit"]), r["pids"], f"{r['cpu_seconds']:.2f}",
            " ".join(r["command"])]  # fmt: skip


def _top_row(r: Row) -> list[object]:
    return [r["pid"], r["sandbox"], f"{r['cpu']:.1f}", size(r["rss"]),
            f"{r['cpu_seconds']:.2f}", " ".join(r["command"])]  # fmt: skip


def _show(
    arguments: argparse.Namespace,
    look: Callable[[list[str], Before, float], tuple[list[Row], Before]],
    headings: tuple[str, ...],
    as_row: Callable[[Row], list[object]],
) -> int:
    """Two looks a moment apart make the first table: a share of the CPU needs both."""
    if arguments.every < 0.1:
        raise SpecError("--every", "must be 0.1 seconds or more")
    once = arguments.once or arguments.json or not sys.stdout.isatty()
    _, before = look(arguments.sandbox, {}, 1.0)
    pause = _FIRST_LOOK_S
    while True:
        started = time.monotonic()
        time.sleep(pause)
        rows, before = look(arguments.sandbox, before, time.monotonic() - started)
        if arguments.json:
            print_json(rows)
        elif once:
            print_table(headings, [as_row(row) for row in rows])
        else:
            sys.stdout.write(_CLEAR + table(headings, [as_row(row) for row in rows]) + "\n")
            sys.stdout.flush()
        if once:
            return 0
        pause = arguments.every


def stats(arguments: argparse.Namespace) -> int:
    headings = ("ID", "NAME", "CPU%", "MEM", "LIMIT", "PIDS", "TIME", "COMMAND")
    return _show(arguments, _stats, headings, _stats_row)


def top(arguments: argparse.Namespace) -> int:
    headings = ("PID", "SANDBOX", "CPU%", "RSS", "TIME", "COMMAND")
    return _show(arguments, _top, headings, _top_row)
