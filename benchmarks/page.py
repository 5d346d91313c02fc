# SPDX-License-Identifier: Apache-2.0
"""The page of the documentation about speed, made from one recorded run.

``page.py RUN.json`` condenses what ``run.py --targets --json`` wrote into ``recorded.json``, and
makes ``docs/benchmarks.rst`` and its plots from that; without a run, from the one that is there.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cases import REPOSITORY
from report import unit
from targets import ALL, Score, score

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RECORDED = Path(__file__).resolve().parent / "recorded.json"
PAGE = REPOSITORY / "docs" / "benchmarks.rst"
PLOTS = REPOSITORY / "docs" / "benchmarks"
HOST = ("date", "commit", "kernel", "cpu", "python", "rss_mib")
PERCENTILES = ("p50_ms", "p10_ms", "p95_ms")

HEAD = """\
.. SPDX-License-Identifier: Apache-2.0
.. Made by benchmarks/page.py from benchmarks/recorded.json: change those.

Benchmarks
==========

What one sandboxed command costs, from the call to the end of the wait: nsbox, the kernel itself
(*floor*, written in C for this purpose) and other runners, side by side. All run busybox ``true``
in the same small root directory with six new namespaces: mnt, pid, ipc, uts, net and cgroup.

Measured on {date} at commit {commit}: Linux {kernel}, {cpu}, Python {python}.
**Read the ratios.** On a shared virtual machine absolute times move by 40 % from run to run; all
cases were interleaved, one sample of each a round in random order, in three repetitions. The tables
show medians of the three. ``make bench ARGS=--targets`` measures your machine, and
``benchmarks/README.md`` says what each case does.
"""

OTHERS = """\
Callers with up to 4 GiB of touched memory (``@fat``), beside idle sandboxes of their own
(``@beside-…``), with 1,000 more mounts, after 70 ms of idling (``@idle``), from threads. The cable
of a sandbox, made in four ways (``plug-…``), and each of 64 pods that are started at once and get
one (``pods-…@64``; ``none`` have none). KiB of each idle sandbox, the kernel's share too.
``slowest-call`` is the longest system call on the way of a cold spawn under strace, waits for other
processes left out.
"""


# ---- the record ----------------------------------------------------------------------------------


def condense(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The rows of one run: the machine once, and of each case one number a repetition."""
    rows = list(rows)
    cases: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row["repetition"]):
        for key in (*PERCENTILES, "n", "value"):
            if key in row:
                cases[row["case"]][key].append(row[key])
    host = {key: rows[0][key] for key in HOST}
    return {"host": host, "cases": {name: dict(cases[name]) for name in sorted(cases)}}


def dump(recorded: dict[str, Any]) -> str:
    """JSON with one case a line."""
    lines = [f'"host": {json.dumps(recorded["host"])}', '"cases": {']
    cases = [f"  {json.dumps(n)}: {json.dumps(c)}" for n, c in recorded["cases"].items()]
    return "{\n" + ",\n".join(lines[:1]) + ",\n" + lines[1] + "\n" + ",\n".join(cases) + "\n}}\n"


def repetitions(recorded: dict[str, Any]) -> list[dict[str, float]]:
    """What targets are judged on, of each repetition."""
    found: list[dict[str, float]] = []
    for name, case in recorded["cases"].items():
        for number, value in enumerate(case.get("p50_ms", case.get("value", []))):
            while len(found) <= number:
                found.append({})
            found[number][name] = value
    return found


def scores(recorded: dict[str, Any]) -> list[Score]:
    """Every target, judged on the record."""
    found = [Score(target) for target in ALL]
    for values in repetitions(recorded):
        score(found, values, {})
    return found


def median(recorded: dict[str, Any], name: str, key: str = "p50_ms") -> float:
    """Of the repetitions of one case; 0 when it was not measured."""
    return statistics.median(recorded["cases"].get(name, {}).get(key) or [0.0])


# ---- the page ------------------------------------------------------------------------------------


def rst_table(rows: Sequence[Sequence[str]], widths: str) -> str:
    """A list-table with one row of headings."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        for number, cell in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell}".rstrip())
    return "\n".join(lines)


def main_run(recorded: dict[str, Any]) -> list[str]:
    """The names of its cases, fastest first."""
    names = [name for name, case in recorded["cases"].items()
             if "p50_ms" in case and "@" not in name and "import-" not in name]  # fmt: skip
    return sorted(names, key=lambda name: median(recorded, name))


def spawn_table(recorded: dict[str, Any]) -> str:
    """The main run, fastest first."""
    floor = median(recorded, "floor-template")
    rows = [["case", "p50, ms", "p10, ms", "p95, ms", "× floor-template"]]
    for name in main_run(recorded):
        times = [f"{median(recorded, name, key):.2f}" for key in PERCENTILES]
        ratio = f"{median(recorded, name) / floor:.2f}" if floor else "–"
        rows.append([f"``{name}``", *times, ratio])
    return rst_table(rows, "34 12 12 12 18")


def other_table(recorded: dict[str, Any]) -> str:
    """Other callers and figures, by name."""
    rows = [["case", "median", "unit"]]
    for name, case in recorded["cases"].items():
        if "value" in case:
            value = median(recorded, name, "value")
            rows.append(
                [f"``{name}``", f"{value:.1f}" if value < 100 else f"{value:.0f}", unit(name)]
            )
        elif "@" in name or name.startswith(("import-", "plug-", "close-")):
            rows.append([f"``{name}``", f"{median(recorded, name):.2f}", "ms"])
    return rst_table(rows, "60 20 12")


def target_table(recorded: dict[str, Any]) -> str:
    """Every target with its verdict."""
    rows = [["target", "what", "measured", "bar", ""]]
    for each in scores(recorded):
        target = each.target
        what = " / ".join(f"``{name}``" for name in target.needs)
        sign = "≥" if target.least else "≤"
        measured = f"{each.median:.3g} {target.unit}" if each.values else "not measured"
        verdict = ("met" if each.met else "**missed**") if each.values else "–"
        rows.append([target.id, what, measured, f"{sign} {target.bar:g}", verdict])
    return rst_table(rows, "8 56 16 10 12")


def page(recorded: dict[str, Any]) -> str:
    """The whole of docs/benchmarks.rst."""
    host = recorded["host"]
    commit, kernel = host["commit"].partition("+")[0], host["kernel"].partition("-")[0]
    head = HEAD.format(**{**host, "date": host["date"][:10], "commit": commit, "kernel": kernel})
    parts = [
        head,
        plot("spawn", "Milliseconds of one spawn, by runner, on a logarithmic scale"),
        "One spawn\n---------\n",
        spawn_table(recorded),
        "\nTargets\n-------\n\nA ratio within one run each, or a limit with its unit.\n",
        target_table(recorded),
        "\nOther callers\n-------------\n",
        OTHERS,
        plot("flat", "Ratios of a burdened caller's spawn to a plain one's, and their bars"),
        other_table(recorded),
    ]
    return "\n".join(parts).rstrip() + "\n"


def plot(name: str, alt: str) -> str:
    """Where a plot is shown."""
    return f".. image:: benchmarks/{name}.svg\n   :alt: {alt}\n   :width: 100%\n"


# ---- the plots -----------------------------------------------------------------------------------


def draw(recorded: dict[str, Any], where: Path) -> None:
    """Both plots, as SVG and PNG; the same bytes for the same record and matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "nsbox", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    where.mkdir(exist_ok=True)
    for name, make in (("spawn", draw_spawn), ("flat", draw_flat)):
        figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
        make(recorded, axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(where / f"{name}.svg", metadata={"Date": None})
        figure.savefig(where / f"{name}.png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)


def draw_spawn(recorded: dict[str, Any], axes: Any) -> None:
    """One bar a runner."""
    names = [name for name in main_run(recorded) if not name.endswith("-tiny")][::-1]
    values = [median(recorded, name) for name in names]
    ours = ["#2a6f97" if name.startswith("nsbox") else "#adb5bd" for name in names]
    bars = axes.barh(names, values, color=ours)
    axes.bar_label(bars, [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values],
                   padding=2)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("ms, median")


def draw_flat(recorded: dict[str, Any], axes: Any) -> None:
    """One bar a ratio of T7, T8 and T9, with its bar."""
    shown = [each for each in scores(recorded)
             if each.target.id in ("T7", "T8", "T9") and each.values][::-1]  # fmt: skip
    labels = [each.target.over.replace("@", "\n@") for each in shown]
    axes.barh(labels, [each.median for each in shown], color="#2a6f97")
    for number, each in enumerate(shown):
        axes.plot([each.target.bar] * 2, [number - 0.4, number + 0.4], color="#d00000")
    axes.axvline(1.0, color="#adb5bd", linewidth=0.8)
    axes.set_xlabel("× the plain caller's; red: the most that is allowed")


def main() -> None:
    """See the module."""
    if len(sys.argv) > 1:
        rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        RECORDED.write_text(dump(condense(rows)), encoding="utf-8")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    PAGE.write_text(page(recorded), encoding="utf-8")
    draw(recorded, PLOTS)
    print(PAGE.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
