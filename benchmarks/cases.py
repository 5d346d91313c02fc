# SPDX-License-Identifier: Apache-2.0
"""What is measured: every case is a name and a function that does one spawn and returns its ns."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from compiled import build
from drivers import LineProcess, SampleFailed, last_line
from facts import namespace_problem, parse
from peers import EVERY, LIMITS, Peer, start_spawner
from rootfs import BUSYBOX_TRUE, NAMESPACES, PROBE, TINY_TRUE, Rootfs

if TYPE_CHECKING:
    from types import ModuleType

REPOSITORY = Path(__file__).resolve().parent.parent
VARIANTS = ("bare", "naive", "naive-unshare", "template")

Sample = Callable[[], int]


@dataclass(frozen=True)
class Case:
    """One row. ``sample()`` spawns, waits and returns elapsed ns; it raises if the spawn failed.

    ``probe()`` runs the probe script the same way and returns its output; None where that would
    show nothing new, or the case is no sandbox around the rootfs. ``payload_pid`` is the process
    id that its program has inside.
    """

    name: str
    what: str
    sample: Sample
    probe: Callable[[], str] | None = None
    payload_pid: int = 1


@dataclass(frozen=True)
class Absent:
    """A row that cannot be measured here, and why."""

    name: str
    reason: str


# ---- floors ------------------------------------------------------------------------------------


def floor_answer(floor: LineProcess, variant: str, payload: str) -> int:
    """One spawn by the floor program; nanoseconds, measured in it."""
    word, _, rest = floor.ask(f"{variant} {payload}").partition(" ")
    if word != "ok":
        raise SampleFailed(last_line(floor.errors()) or rest)
    return int(rest)


def floor_probe(floor: LineProcess, variant: str) -> str:
    """The probe's output: floor's children write to floor's standard error."""
    floor.errors()
    floor_answer(floor, variant, PROBE)
    return floor.errors()


def floor_case(floor: LineProcess, variant: str, payload: str) -> Case:
    """The case for one variant of the floor program and one payload."""
    tiny = payload == TINY_TRUE
    return Case(
        name=f"floor-{variant}" + ("-tiny" if tiny else ""),
        what=f"C in process, {variant}, {'tinytrue' if tiny else 'busybox true'}",
        sample=partial(floor_answer, floor, variant, payload),
        probe=None if tiny or variant == "bare" else partial(floor_probe, floor, variant),
    )


# ---- from Python -------------------------------------------------------------------------------


def posix_spawn(program: str) -> int:
    """``os.posix_spawn`` and ``os.waitpid`` of *program*, without isolation; elapsed ns."""
    start = perf_counter_ns()
    pid = os.posix_spawn(program, [program], {"PATH": "/bin"})
    _, status = os.waitpid(pid, 0)
    elapsed = perf_counter_ns() - start
    if status != 0:
        raise SampleFailed(f"wait status {status}")
    return elapsed


def load_nsbox() -> ModuleType:
    """Import nsbox: the installed one, else the one of this repository.

    Raises:
        SampleFailed: it, or its compiled core, is not there.
    """
    if str(REPOSITORY) not in sys.path:
        sys.path.append(str(REPOSITORY))
    try:
        module = importlib.import_module("nsbox")
    except ImportError as error:
        raise SampleFailed(f"not built ({error})") from error
    if not hasattr(module, "run"):
        raise SampleFailed("not built (it has no run)")
    return module


#: name of a case -> how it differs from nsbox-6ns
VARIATIONS: dict[str, dict[str, Any]] = {
    "nsbox-6ns": {},
    "nsbox-6ns-init": {"init": True},
    "nsbox-no-net": {"namespaces": [kind for kind in NAMESPACES if kind != "net"], "net": "host"},
    "nsbox-6ns-cgroup": {"limits": LIMITS},
}


@lru_cache
def wishes(nsbox: ModuleType, root: Path, case: str) -> dict[str, Any]:
    """Keywords of ``nsbox.run`` that ask for what the floors do, and nothing more, or *case*."""
    keywords = {
        "root": nsbox.Rootfs.dir(str(root)),
        "namespaces": list(NAMESPACES),
        "profile": "none",
        "init": False,
        "net": "none",
        **VARIATIONS[case],
    }
    if "limits" in keywords:
        keywords["limits"] = nsbox.Limits(**keywords["limits"])
    return keywords


def spawn_nsbox(nsbox: ModuleType, root: Path, case: str) -> int:
    """One ``nsbox.run`` of busybox true, all of the call timed; elapsed ns."""
    keywords = wishes(nsbox, root, case)
    start = perf_counter_ns()
    done = nsbox.run([BUSYBOX_TRUE], **keywords)
    elapsed = perf_counter_ns() - start
    if done.returncode != 0:
        raise SampleFailed(f"return code {done.returncode} ({done.reason})")
    return elapsed


def nsbox_default(nsbox: ModuleType) -> int:
    """One ``nsbox.run(["true"])``: host root, strict profile, init, default limits; elapsed ns."""
    start = perf_counter_ns()
    done = nsbox.run(["true"])
    elapsed = perf_counter_ns() - start
    if done.returncode != 0:
        raise SampleFailed(f"return code {done.returncode} ({done.reason})")
    return elapsed


def nsbox_probe(nsbox: ModuleType, root: Path, case: str) -> str:
    """The probe's output in the sandbox that is timed."""
    done = nsbox.run(
        [PROBE], capture_output=True, text=True, timeout=30, **wishes(nsbox, root, case)
    )
    return str(done.stdout)


def nsbox_cases(fs: Rootfs) -> Iterator[Case | Absent]:
    """The ways of calling nsbox."""
    names = ("nsbox-6ns", "nsbox-6ns-init", "nsbox-6ns-cgroup")
    try:
        nsbox = load_nsbox()
    except SampleFailed as why:
        yield from (Absent(name, f"nsbox: {why}") for name in (*names, "nsbox-default"))
        return
    for name in names:
        yield Case(
            name,
            f"nsbox.run, six ns, profile none, {VARIATIONS[name] or 'init=False'}, busybox true",
            partial(spawn_nsbox, nsbox, fs.root, name),
            probe=partial(nsbox_probe, nsbox, fs.root, name),
            payload_pid=2 if VARIATIONS[name].get("init") else 1,
        )
    yield Case("nsbox-default", 'nsbox.run(["true"]), strict', partial(nsbox_default, nsbox))


# ---- peers -------------------------------------------------------------------------------------


def peer_cases(fs: Rootfs, undo: contextlib.ExitStack) -> Iterator[Case | Absent]:
    """Every peer that is installed and really makes the six namespaces."""
    try:
        spawner = undo.enter_context(start_spawner())
    except SampleFailed as why:
        yield from (Absent(name, str(why)) for name in EVERY)
        return
    for name, run in EVERY.items():
        program = shutil.which(name.removesuffix("-cgroup"))
        if program is None:
            yield Absent(name, "not installed")
            continue
        peer = Peer(name, program, spawner, fs)
        yield Case(
            name,
            run.__doc__ or name,
            partial(peer.sample, BUSYBOX_TRUE),
            probe=partial(peer.probe, PROBE),
        )


# ---- all ---------------------------------------------------------------------------------------


def proved(case: Case) -> Case | Absent:
    """*case* if one spawn works and its namespaces are new; else why not."""
    try:
        case.sample()
        problem = namespace_problem(parse(case.probe())) if case.probe else ""
    except SampleFailed as why:
        problem = str(why)
    except Exception as error:  # an nsbox under construction may raise anything
        problem = f"{type(error).__name__}: {last_line(str(error))}"
    return Absent(case.name, f"fails: {problem}") if problem else case


@contextlib.contextmanager
def all_cases(fs: Rootfs, patterns: list[str]) -> Iterator[list[Case | Absent]]:
    """The cases whose name matches one of *patterns* (``fnmatch``), each tried once."""

    def wanted(case: Case | Absent) -> bool:
        return any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)

    with contextlib.ExitStack() as undo:
        floor = undo.enter_context(LineProcess([str(build("floor")), str(fs.root)]))
        floor.read()  # "ready": the template exists
        found: list[Case | Absent] = [
            floor_case(floor, variant, payload)
            for payload in (BUSYBOX_TRUE, TINY_TRUE)
            for variant in VARIANTS
        ]
        program = str(fs.root) + BUSYBOX_TRUE
        spawn = partial(posix_spawn, program)
        found.append(Case("posix_spawn", "os.posix_spawn, no isolation", spawn))
        found += nsbox_cases(fs)
        if any(fnmatch.fnmatchcase(name, p) for name in EVERY for p in patterns):
            found += peer_cases(fs, undo)
        chosen = [case for case in found if wanted(case)]
        if not chosen:
            raise RuntimeError(f"no case matches {','.join(patterns)}")
        yield [proved(case) if isinstance(case, Case) else case for case in chosen]
