# SPDX-License-Identifier: Apache-2.0
"""The benchmarks say what they measured: their judges, their sandboxes, and the page they made."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """``bench("compare")`` imports a module of benchmarks/, which is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# -- the judge of targets -----------------------------------------------------------------------


def judged(bench: Any, target: Any, *repetitions: dict[str, float]) -> Any:
    targets = bench("targets")
    found = targets.Score(target)
    for values in repetitions:
        targets.score([found], values, {"b": "no b here"})
    return found


@pytest.mark.parametrize(
    ("values", "met"),
    [((1.0, 1.0, 9.0), True), ((1.0, 2.1, 2.1), False), ((2.0, 2.0, 2.0), True)],
    ids=["one bad repetition of three is forgiven", "two are not", "the bar itself is met"],
)
def test_a_target_is_judged_by_its_median(bench: Any, values: tuple[float, ...], met: bool) -> None:
    target = bench("targets").at_most("T", "a", "b", 2.0)
    assert judged(bench, target, *({"a": value, "b": 1.0} for value in values)).met is met


def test_at_least_is_the_other_way_round(bench: Any) -> None:
    target = bench("targets").at_least("T", "a", "b", 3.0)
    assert judged(bench, target, {"a": 6.0, "b": 2.0}).met
    assert not judged(bench, target, {"a": 5.9, "b": 2.0}).met


def test_what_was_not_measured_is_not_met_and_says_why(bench: Any) -> None:
    target = bench("targets").at_most("T", "a", "b", 2.0)
    score = judged(bench, target, {"a": 1.0})
    assert not score.met
    assert score.absent == "no b here"
    assert "n/a" in bench("report").target_line(score)


# -- the comparison -----------------------------------------------------------------------------

OLD = {"date": "2026-01-01T00:00:00", "commit": "aaaa", "kernel": "6.1", "cpu": "x", "python": "3",
       "case": "nsbox-6ns", "p50_ms": 2.0, "repetition": 1}  # fmt: skip
NEW = {**OLD, "date": "2026-01-02T00:00:00", "commit": "bbbb", "p50_ms": 3.0}


def compare(bench: Any, tmp_path: Path, *rows: dict[str, Any], words: tuple[str, ...] = ()) -> int:
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return int(bench("compare").main([*words, "--history", str(history)]))


def test_two_runs_are_compared_as_ratios(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floor = {"case": "floor-template", "p50_ms": 1.0}
    slow = {"case": "floor-template", "p50_ms": 1.5}
    assert compare(bench, tmp_path, OLD, {**OLD, **floor}, NEW, {**NEW, **slow}) == 0
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert shown["nsbox-6ns"] == ["2.000", "3.000", "1.50", "1.00"]


@pytest.mark.parametrize("key", ["kernel", "cpu", "python"])
def test_runs_of_different_machines_are_not_compared(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert compare(bench, tmp_path, OLD, {**NEW, key: "other"}) == 2
    assert f"{key}: {OLD[key]} and other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words", "why"),
    [((), (), "two are needed"), ((OLD,), (), "two are needed"),
     ((OLD, NEW), ("aaaa", "cccc"), "no run of 'cccc'"), ((OLD, NEW), ("aaaa",), "name two runs"),
     ((OLD, {**NEW, "case": "other"}), (), "no case in common")],
    ids=["no run", "one run", "an unknown commit", "half a pair", "other cases"],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, words: Any, why: str
) -> None:
    assert compare(bench, tmp_path, *rows, words=words) == 2
    assert why in capsys.readouterr().err


# -- the trace ----------------------------------------------------------------------------------

TRACE = """\
10 write(1073741824, "NSBOX-BENCH-BEGIN", 17) = -1 EBADF (Bad file descriptor) <0.000010>
11 clone3({flags=CLONE_VM}, 88 <unfinished ...>
12 write(3, "0", 1) = 1 <{slow}>
12 execve("/bin/true", ["/bin/true"], 0x1) = 0 <0.000400>
11 <... clone3 resumed> => {{parent_tid=[0]}}, 88) = 12 <0.090000>
10 poll([{{fd=3}}], 1, -1) = 1 <0.100000>
10 write(1073741824, "NSBOX-BENCH-END", 15) = -1 EBADF (Bad file descriptor) <0.000010>
11 rmdir("/late") = 0 <0.500000>
"""


@pytest.mark.parametrize(
    ("slow", "call", "ms"), [("0.000100", "execve", 0.4), ("0.007600", "write", 7.6)],
    ids=["nothing waits", "an attach that waits is found"],
)  # fmt: skip
def test_the_slowest_call_of_a_trace(bench: Any, slow: str, call: str, ms: float) -> None:
    lines = TRACE.replace("{flags=CLONE_VM}", "{}").replace("{slow}", slow).splitlines()
    name, longest = bench("waits").slowest(lines * 3, 3)
    assert (name, longest) == (call, pytest.approx(ms))


def test_a_trace_that_misses_spawns_is_refused(bench: Any) -> None:
    with pytest.raises(bench("drivers").SampleFailed, match="0 spawns of 3"):
        bench("waits").slowest(["10 execve() = 0 <0.1>"], 3)


# -- the page -----------------------------------------------------------------------------------


def test_the_page_is_what_the_program_makes_of_the_record(bench: Any) -> None:
    page = bench("page")
    recorded = json.loads(page.RECORDED.read_text())
    assert page.PAGE.read_text() == page.page(recorded)
    for name in ("spawn", "flat"):
        for suffix in ("svg", "png"):
            assert (page.PLOTS / f"{name}.{suffix}").stat().st_size > 1000


def test_every_target_is_on_the_page(bench: Any) -> None:
    text = bench("page").PAGE.read_text()
    for target in bench("targets").ALL:
        assert f"* - {target.id}\n     - {' / '.join(f'``{n}``' for n in target.needs)}" in text


# -- the programs -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.leaks_ok("starts the floor programs and the peers, as a process of its own")
def test_the_sandboxes_that_are_measured_are_sandboxes(tmp_path: Path) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("busybox-static is not installed")
    argv = [sys.executable, str(BENCHMARKS / "run.py"), "--check", "--cases", "floor-*,nsbox-*"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=scaled(120), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all promises kept" in done.stdout
    assert "control: ok" in done.stdout


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.leaks_ok("starts the floor programs and nsbox, as a process of its own")
def test_a_run_writes_its_records(tmp_path: Path) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("busybox-static is not installed")
    target = tmp_path / "out.json"
    argv = [sys.executable, str(BENCHMARKS / "run.py"), "--rounds", "2", "--cases",
            "floor-naive,floor-template,nsbox-6ns", "--json", str(target)]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=scaled(120), check=False,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["case"]: row for row in json.loads(target.read_text())}
    assert set(rows) == {"floor-naive", "floor-template", "nsbox-6ns"}
    for row in rows.values():
        assert row["n"] == 2
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert {"date", "commit", "kernel", "cpu", "python", "rss_mib"} <= set(row)
