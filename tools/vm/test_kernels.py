#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the tests marked `kernel` on other kernels, as root and as an ordinary user.

    test_kernels.py                                  6.1 and 6.12, root and user
    test_kernels.py --kernel 6.1 --only user --pytest-args '-k cgroup -x'

Each pair of kernel and user is one machine (see vmrun.py) and in it one pytest process: starting
Python is what costs most there. Programs run about ten times slower than here, so tests multiply
their time-outs by NSBOX_TIMEOUT_SCALE. A skip of what these machines can do counts as a failure:
NSBOX_REQUIRE lists it. What is tested is a copy of the tree, taken at the start.

Exit code: 0 when tests ran and all passed or were skipped; 1 otherwise; 2: cannot run at all.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import kernels
from kernels import SERIES, SetupError
from vmrun import DIED, TIMED_OUT, Guest, Machine, hidden

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
TESTS = CHECKOUT / "tests"
TIMEOUT_SCALE = 10
NO_TESTS = 5  # pytest's exit code
TAIL_PASSED = 8  # lines of pytest's output shown
TAIL_FAILED = 300
NOT_TESTED = (".git", ".venv", ".hypothesis", ".*_cache", "build", "dist")


@dataclass(frozen=True)
class User:
    """Who runs the tests, and the needs (marks) that must be met for them."""

    name: str
    uid: int
    require: str


USERS = (
    User("root", 0, "root,userns,cgroup,cgroup2"),
    User("user", 1001, "userns,cgroup,cgroup2,subuid"),
)


@dataclass(frozen=True)
class Result:
    """What one machine reported. *problem* says why a run is bad beyond failed tests, or is ""."""

    release: str
    user: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    problem: str
    log: Path
    output: Sequence[str]

    @property
    def good(self) -> bool:
        """Whether tests ran, none failed, and pytest agrees."""
        return not self.failed and not self.problem


@dataclass(frozen=True)
class Plan:
    """What all runs share. *shown* is Guest.ro; *work* a private directory for their reports."""

    python: Path
    files: Sequence[str]
    pytest_args: Sequence[str]
    shown: Mapping[Path, Path]
    work: Path
    timeout_s: float
    few: bool  # not all tests: those of one user may be none


class Run:
    """One kernel, one user, one pytest process."""

    def __init__(self, series: str, user: User, plan: Plan) -> None:
        """Find the kernel, fetching it if need be; nothing is started."""
        self.kernel = kernels.find(series)
        self.user = user
        self._few = plan.few
        self._out = plan.work / f"{series}-{user.name}"
        self._out.mkdir()
        self._out.chmod(0o777)  # whatever uid the user has there; its parent is 0700 here
        self._junit = self._out / "junit.xml"
        self._log = kernels.cache_dir() / "logs" / f"{series}-{user.name}.log"
        self._output: list[str] = []
        self.machine = Machine(self._guest(plan), self._output.append)

    def execute(self) -> Result:
        """Boot, test, and read the report."""
        outcome = self.machine.run()
        passed, failed, skipped = _counts(self._junit)
        problem = "" if self._few and outcome.code == NO_TESTS else _problem(outcome.code)
        if problem and not failed:
            failed = 1  # the run itself
        self._log.parent.mkdir(exist_ok=True)
        self._log.write_text("\n".join(self._output) + "\n")
        return Result(
            release=self.kernel.release,
            user=self.user.name,
            passed=passed,
            failed=failed,
            skipped=skipped,
            seconds=outcome.seconds,
            problem=problem,
            log=self._log,
            output=self._output,
        )

    def _guest(self, plan: Plan) -> Guest:
        pytest = [str(plan.python), "-m", "pytest", "-m", "kernel", "-p", "no:cacheprovider", "-q"]
        pytest += ["--color=no", f"--junitxml={self._junit}"]
        pytest += ["-o", f"faulthandler_timeout={60 * TIMEOUT_SCALE}"]
        return Guest(
            kernel=self.kernel,
            command=f"exec {shlex.join([*pytest, *plan.pytest_args, *plan.files])}",
            uid=self.user.uid,
            cwd=CHECKOUT,
            rw=(self._out,),
            ro=plan.shown,
            env={
                "NSBOX_TIMEOUT_SCALE": str(TIMEOUT_SCALE),
                "NSBOX_REQUIRE": self.user.require,
                "NSBOX_KERNEL_USER": self.user.name,
                "PYTHONDONTWRITEBYTECODE": "1",
                "COLUMNS": "100",
            },
            timeout_s=plan.timeout_s,
        )


def make_plan(args: argparse.Namespace, work: Path) -> Plan:
    """Collect the tests, and copy what is tested into *work*."""
    files = collect(args.python, args.tests)
    shown = {CHECKOUT: snapshot(work / "tree")}
    # resolving the interpreter itself would leave the virtual environment
    tests = args.tests if args.tests.is_dir() else args.tests.parent
    others = [args.python.parents[1], tests]
    shown |= hidden([path for path in others if not path.is_relative_to(CHECKOUT)])
    if (CHECKOUT / ".venv").exists():
        shown[CHECKOUT / ".venv"] = CHECKOUT / ".venv"
    more = shlex.split(args.pytest_args)
    few = bool(more) or args.tests != TESTS
    return Plan(args.python, files, more, shown, work, args.timeout, few)


def snapshot(target: Path) -> Path:
    """Copy the checkout to *target*, readable by everybody.

    A guest must not see files change. And machines that test for minutes should test the same.

    Raises:
        SetupError: files came and went meanwhile.
    """
    try:
        shutil.copytree(CHECKOUT, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_TESTED))
    except shutil.Error as error:
        raise SetupError(f"the checkout changes while it is copied; try again: {error}") from error
    (target / ".venv").mkdir()  # the place for the real one
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
    return target


def collect(python: Path, tests: Path) -> list[str]:
    """The files under *tests* that have kernel tests, found here rather than by slow machines.

    Importing them here also leaves compiled modules in __pycache__, which the guests read. Returns
    *tests* itself when collecting fails: the guests' pytest then tells why.
    """
    with tempfile.NamedTemporaryFile("r", prefix="nsbox-files-") as found:
        env = os.environ | {"NSBOX_LIST_FILES": found.name, "PYTHONPATH": str(HERE)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        options = "-q -m kernel -p no:cacheprovider -p list_files --collect-only"
        for arguments in (
            ["-m", "compileall", "-q", "nsbox"],  # for modules that are imported late
            ["-m", "pytest", *options.split(), str(tests)],
        ):
            subprocess.run(
                [python, *arguments], cwd=CHECKOUT, env=env, check=False, stdout=subprocess.DEVNULL
            )
        return found.read().splitlines() or [str(tests)]


def _counts(junit: Path) -> tuple[int, int, int]:
    """Tests passed, failed (errors too) and skipped; zeros when there is no whole report."""
    try:
        suites = list(ET.parse(junit).getroot().iter("testsuite"))
    except (OSError, ET.ParseError):
        return 0, 0, 0

    def total(*names: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites for name in names)

    failed, skipped = total("failures", "errors"), total("skipped")
    return max(0, total("tests") - failed - skipped), failed, skipped


def _problem(code: int) -> str:
    """What an exit code says beyond "all passed" (0) and "some tests failed" (1)."""
    known = {
        0: "",
        1: "",
        2: "pytest was interrupted, or could not collect",
        NO_TESTS: "no tests",
        TIMED_OUT: "out of time",
        DIED: "the machine died",
    }
    return known.get(code, f"pytest ended with {code}")


def _show(result: Result) -> None:
    print(f"\n--- {result.release}, {result.user} ---")
    lines = result.output[-(TAIL_PASSED if result.good else TAIL_FAILED) :]
    print("\n".join(lines))
    if not result.good:
        print(f"full log: {result.log}")
    sys.stdout.flush()


def _summary(results: Sequence[Result]) -> str:
    lines = [f"{'kernel':24} {'user':5} {'passed':>7} {'failed':>7} {'skipped':>7} {'seconds':>8}"]
    for r in results:
        row = f"{r.release:24} {r.user:5} {r.passed:7} {r.failed:7} {r.skipped:7} {r.seconds:8.1f}"
        lines.append(f"{row}  {r.problem}".rstrip())
    passed = sum(r.passed for r in results)
    failed = sum(r.failed for r in results)
    skipped = sum(r.skipped for r in results)
    return "\n".join([*lines, "", f"{passed} passed, {failed} failed, {skipped} skipped"])


def run_all(runs: Sequence[Run], jobs: int) -> list[Result]:
    """Execute *runs*, *jobs* at a time; show each as it ends; results in the order of *runs*."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run.execute) for run in runs]
        try:
            for future in concurrent.futures.as_completed(futures):
                _show(future.result())
        except BaseException:  # Ctrl-C and SIGTERM above all: leave no machine behind
            for run in runs:
                run.machine.kill()
            raise
    return [future.result() for future in futures]


def _raise_exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    text = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=text[0], epilog=text[-1])
    add = parser.add_argument
    add("--kernel", action="append", metavar="SERIES", help="6.1 or 6.12; default: both")
    add("--only", choices=[user.name for user in USERS], help="default: both")
    add("--tests", type=Path, default=TESTS, metavar="PATH", help="file or directory")
    add("--pytest-args", default="", metavar="ARGS", help="one string, as in '-k cgroup -x'")
    add("--python", type=Path, default=CHECKOUT / ".venv/bin/python", metavar="PATH")
    add("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="machines at a time")
    add("--timeout", type=float, default=1800.0, metavar="SECONDS", help="for each machine")
    args = parser.parse_args(argv)
    args.tests = args.tests.resolve()
    args.python = args.python.absolute()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the module's docstring says what it returns."""
    args = _arguments(argv)
    signal.signal(signal.SIGTERM, _raise_exit)
    try:
        if not args.python.exists():
            raise SetupError(f"{args.python} not found; run: make dev")
        kernels.require(kernels.RUN_TOOLS)
        users = [user for user in USERS if args.only in (None, user.name)]
        with tempfile.TemporaryDirectory(prefix="nsbox-kernels-") as work:
            plan = make_plan(args, Path(work))
            runs = [Run(s, user, plan) for s in args.kernel or SERIES for user in users]
            print(
                f"{len(plan.files)} files on {len(runs)} machines, {args.jobs} at a time",
                flush=True,
            )
            results = run_all(runs, args.jobs)
    except SetupError as error:
        print(f"test_kernels: {error}", file=sys.stderr)
        return 2
    print(f"\n{_summary(results)}")
    ran = sum(r.passed + r.failed for r in results)
    return 0 if ran and all(r.good for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
