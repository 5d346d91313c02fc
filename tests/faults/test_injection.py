# SPDX-License-Identifier: Apache-2.0
"""Every step of a plan fails in turn: a clear error, nothing left, and the next spawn works."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faults import kit
from run.kit import maps_ids
from support import poll_until, probe_cgroup

import nsbox
from nsbox import cgroup, idmapped, probe, process, sandbox, templates
from nsbox import compile as compiler
from nsbox.errors import SetupError, Unavailable
from nsbox.slots import Slot
from nsbox.spawn import spawn
from nsbox.streams import DEVNULL, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsbox.plan import Plan
    from nsbox.spec import Spec

SIX = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
QUICK: dict[str, Any] = {
    "profile": "none",
    "init": False,
    "namespaces": ("pid",) if os.geteuid() == 0 else ("user", "pid"),
}
LIMITS = nsbox.Limits(memory="64MiB", pids=16, cpu=0.5, nofile=64)


def _root_directory(where: Path) -> Path:
    """A root whose programs are mounted in: what belongs to it are empty mount points."""
    for name in ("usr", "proc", "dev", "tmp", "etc", "data"):
        (where / name).mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path("/", name).is_symlink():
            (where / name).symlink_to(f"usr/{name}")
    where.chmod(0o755)
    return where


def _root_with_mounts(where: Path) -> dict[str, Any]:
    return {
        "root": nsbox.Rootfs.dir(_root_directory(where), ro=False),
        "mounts": [
            nsbox.Mount.bind("/usr", "/usr"),
            nsbox.Mount.tmpfs("/data", size="1MiB"),
            nsbox.Mount.tmpfs("/etc", size="64KiB"),
            nsbox.Mount.file("/etc/motd", "hello"),
            nsbox.Mount.symlink("/etc/also", "motd"),
        ],
        "files": {"input": "1 2 3"},
        "hostname": "injected",
        "cwd": "/data",
    }


def _overlay(where: Path) -> dict[str, Any]:
    (where / "mapped").mkdir()
    root = _root_directory(where)
    return {
        "root": nsbox.Rootfs.overlay(root),
        "mounts": [
            nsbox.Mount.bind("/usr", "/usr"),
            nsbox.Mount.bind(where / "mapped", "/mapped", idmap=True),
            nsbox.Mount.bind(where / "mapped", "/slave", ro=False, propagation="slave"),
            nsbox.Mount.devpts(),
            nsbox.Mount.sysfs(),
        ],
    }


SPECS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "strict, the default": lambda _: {},
    "standard": lambda _: {"profile": "standard"},
    "six namespaces and a template": lambda _: {"profile": "none", "namespaces": SIX},
    "none without init": lambda _: {"profile": "none", "init": False},
    "clocks of its own": lambda _: {"time_offsets": {"boottime": 60}},
    "with limits": lambda _: {"limits": LIMITS, "profile": "none", "init": False},
    "a root directory with mounts": _root_with_mounts,
    "a terminal": lambda _: {"pty": True},
    "an overlay with mounts of every kind": _overlay,
    "found in PATH": lambda _: {"profile": "none", "env": {"PATH": "/nowhere:/usr/bin"}},
}


def _spec(name: str, where: Path) -> Spec:
    keywords = SPECS[name](where)
    if "namespaces" in keywords and os.geteuid() != 0:
        keywords["namespaces"] = (*SIX, "user")
    if "limits" in keywords and (reason := probe_cgroup()):
        pytest.skip(f"cgroup: {reason}")
    if name.startswith("an overlay") and os.geteuid() == 0 and not maps_ids(where):
        pytest.skip("this file system cannot be id-mapped")
    if "time_offsets" in keywords and not probe.host().exec_enters_time:
        pytest.skip("execve enters no time namespace here (Linux 6.3)")
    program = "true" if "env" in keywords else "/usr/bin/true"
    return sandbox.build_spec([program], keywords)


class Site:
    """What exists of this process's sandboxes, to be compared after each failure."""

    def __init__(self) -> None:
        with nsbox.Popen(["/bin/sleep", "100"], **QUICK) as box:
            self.launcher = kit.parent_of(box.pid)
        self.places: tuple[str, ...] = ()
        if not probe_cgroup():
            self.places = tuple(directory for _, directory in cgroup.parents().directories)
        self._before = self._look()

    def _look(self) -> tuple[list[int], list[str], int]:
        idmapped.held.clear()
        prefix = f"nsbox-{os.getpid()}-"
        groups = [f"{place}/{name}" for place in self.places
                  for name in os.listdir(place) if name.startswith(prefix)]  # fmt: skip
        return kit.children_of(self.launcher), groups, len(os.listdir("/proc/self/fd"))

    def check(self, what: str) -> None:
        """Nothing more than before. Only the end of processes is not immediate."""
        poll_until(
            lambda: self._look()[0] == self._before[0], 2.0, what=f"{what}: processes are left"
        )
        assert self._look() == self._before, f"{what}: left behind"


@pytest.fixture
def site() -> Iterator[Site]:
    kept = Site()
    yield kept
    templates.held.clear()


def _fail_each(plan: Plan, attempt: Callable[[process.Injection], None], site: Site) -> list[str]:
    """What was wrong, one line for each step."""
    wrong = []
    for index, step in enumerate(plan.steps):
        where = f"step {index} ({step.name} {step.describe()})"
        try:
            attempt(process.Injection(index, errno.EIO))
        except SetupError as e:
            told = (e.step, e.errno, e.name, e.call, e.field)
            call = "clone3" if step.name == "clone3" else "injected"
            if told != (index, errno.EIO, step.name, call, step.source):
                wrong.append(f"{where}: the error says {told}")
        except Exception as e:
            wrong.append(f"{where}: {type(e).__name__}: {e}")
        else:
            wrong.append(f"{where}: no error")
        try:
            site.check(where)
        except AssertionError as e:
            wrong.append(str(e))
            break
        if nsbox.run(["/bin/sh", "-c", "exit 7"], **QUICK).returncode != 7:
            wrong.append(f"{where}: the next spawn fails")
    return wrong


def _launch(spec: Spec, injection: process.Injection) -> None:
    stdio = connect(DEVNULL, DEVNULL, DEVNULL)
    try:
        sandbox.launch(spec, stdio, inject=injection).close()
    finally:
        stdio.close()


@pytest.mark.kernel
@pytest.mark.userns
@pytest.mark.parametrize("name", SPECS)
def test_a_failure_at_any_step_names_it_and_leaves_nothing(
    name: str, tmp_path: Path, site: Site
) -> None:
    spec = _spec(name, tmp_path)
    _launch(spec, process.Injection())  # the template exists: it is no part of what may be left
    site = Site()
    plan = sandbox.plan_for(spec, probe.host())
    wrong = _fail_each(plan, lambda injection: _launch(spec, injection), site)
    assert not wrong, "\n".join(wrong)
    _launch(spec, process.Injection())


def _spawn(plan: Plan, injection: process.Injection) -> None:
    null = process.dev_null()
    spawn(plan, {Slot("stdio", n): null for n in range(3)}, inject=injection).close()


def _template_plan() -> Plan:
    if not probe.host().privileged:
        pytest.skip("templates are made by root")
    spec = sandbox.build_spec(["/bin/true"], {"profile": "none"})
    return compiler.compile_template(spec, probe.host())


def _pause_plan() -> Plan:
    keywords = {"init": False, "profile": "standard"}
    try:
        return compiler.compile_pause(sandbox.build_spec(["pause"], keywords), probe.host())
    except Unavailable as e:
        pytest.skip(str(e))


def _helper_plan() -> Plan:
    return compiler.compile_helper(("/bin/true",))


@pytest.mark.userns
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_template_plan, id="template"),
        pytest.param(_pause_plan, id="pause"),
        pytest.param(_helper_plan, id="helper"),
    ],
)
def test_a_failure_of_what_nsbox_runs_for_itself_leaves_nothing(
    make: Callable[[], Plan], site: Site
) -> None:
    plan = make()
    _spawn(plan, process.Injection())
    wrong = _fail_each(plan, lambda injection: _spawn(plan, injection), site)
    assert not wrong, "\n".join(wrong)


@pytest.mark.root
@pytest.mark.skipif(os.environ.get("NSBOX_TEMPLATES") == "0", reason="templates are switched off")
def test_a_template_that_cannot_be_built_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that failed is the template's own, and the next spawn builds it."""
    templates.held.clear()
    real = spawn

    def failing(plan: Plan, descriptors: Any) -> process.Process:
        return real(plan, descriptors, inject=process.Injection(2, errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(templates, "spawn", failing)
        with pytest.raises(SetupError) as caught:
            nsbox.run(["/bin/true"], profile="none")
        assert (caught.value.step, caught.value.errno) == (2, errno.EIO)
    assert nsbox.run(["/bin/true"], profile="none").returncode == 0


@pytest.mark.userns
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EPERM, errno.ENOSPC, errno.ENOENT])
def test_the_error_carries_the_kernels_number(number: int) -> None:
    spec = sandbox.build_spec(["/bin/true"], {"profile": "none"})
    plan = sandbox.plan_for(spec, probe.host())
    last = len(plan.steps) - 1
    with pytest.raises(SetupError) as caught:
        _launch(spec, process.Injection(last, number))
    assert (caught.value.step, caught.value.errno) == (last, number)
    assert errno.errorcode[number] in str(caught.value)
    assert not isinstance(caught.value, nsbox.CommandNotFound)  # injected: nothing was looked for
