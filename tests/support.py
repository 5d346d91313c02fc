# SPDX-License-Identifier: Apache-2.0
"""What tests share: time-outs that scale with the machine, and probes of what it can do.

A probe does the thing it is about and returns "" or why it cannot be done; it leaves nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

TIMEOUT_SCALE: Final = float(os.environ.get("NSBOX_TIMEOUT_SCALE") or "1")
"""An emulated kernel is ten times slower; its runner says so here."""

CONTROLLERS: Final = ("memory", "pids", "cpu")


# -- time -------------------------------------------------------------------------------------


def scaled(seconds: float) -> float:
    """*seconds* of this test's patience on this machine."""
    return seconds * TIMEOUT_SCALE


def rounds(count: int) -> int:
    """How often to try what must hold every time: less often where each takes ten times as long."""
    return max(3, round(count / TIMEOUT_SCALE))


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock."""

    at: float

    @property
    def left(self) -> float:
        """Seconds until then, 0 when it has passed: fits every ``timeout=``."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at


def deadline(seconds: float) -> Deadline:
    """Return the moment *seconds* from now, scaled for this machine."""
    return Deadline(time.monotonic() + scaled(seconds))


def poll_until(
    predicate: Callable[[], T],
    timeout_s: float = 2.0,
    *,
    every_s: float = 0.02,
    what: str = "",
) -> T:
    """Return the first true value of *predicate*; AssertionError after *timeout_s* (scaled)."""
    end = deadline(timeout_s)
    while not (value := predicate()):
        if end.passed:
            name = what or getattr(predicate, "__name__", "condition")
            raise AssertionError(f"{name}: still {value!r} after {scaled(timeout_s):g} s")
        time.sleep(every_s)
    return value


# -- probes: users ----------------------------------------------------------------------------


def probe_root() -> str:
    """Root of the machine: root of a user namespace may not write most limits."""
    if os.geteuid() != 0:
        return f"needs root, is uid {os.geteuid()}"
    ids = Path("/proc/self/uid_map").read_text().split()
    return "" if ids[:2] == ["0", "0"] and int(ids[2]) >= 1 << 31 else "root of a user namespace"


def probe_user() -> str:
    return "needs an ordinary user, is root" if os.geteuid() == 0 else ""


@functools.cache
def probe_userns() -> str:
    """Really makes one, with a map: limits, sysctls and LSMs each say no at another place."""
    return _try("unshare", "--user", "--map-root-user", "true")


@functools.cache
def probe_subuid() -> str:
    missing = [name for name in ("newuidmap", "newgidmap") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)}: not installed"
    return _try("unshare", "--user", "--map-auto", "--map-root-user", "true")


def probe_nft() -> str:
    return "" if shutil.which("nft") else "nft: not installed"


def probe_leads_out(program: str) -> str:
    """Whether it can make a way out of a network namespace of an ordinary user's."""
    if not any(os.access(f"{place}/{program}", os.X_OK) for place in ("/usr/bin", "/bin")):
        return f"{program}: not installed"
    tun = Path("/dev/net/tun")
    if not tun.exists() or tun.stat().st_mode & 0o006 != 0o006:
        return f"{tun}: not for everybody"
    return ""


def _try(*args: str) -> str:
    try:
        done = subprocess.run(
            args, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=scaled(10)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (said or [f"{args[0]} exits {done.returncode}"])[-1]


# -- probes: cgroups --------------------------------------------------------------------------


@functools.cache
def probe_cgroup() -> str:
    reason1, reason2 = probe_cgroup1(), probe_cgroup2()
    return f"v1: {reason1}; v2: {reason2}" if reason1 and reason2 else ""


@functools.cache
def probe_cgroup1() -> str:
    """A child with a process in it, in the hierarchy of each controller."""
    reasons = {name: _cgroup1_parent(name)[1] for name in CONTROLLERS}
    return "; ".join(f"{name}: {why}" for name, why in reasons.items() if why)


@functools.cache
def probe_cgroup2() -> str:
    return _cgroup2_parent()[1]


def cgroup1_parent(controller: str) -> Path:
    """The nearest directory, from our own upwards, where a v1 child can be made and entered."""
    place, why = _cgroup1_parent(controller)
    if place is None:
        raise OSError(f"cgroup v1 {controller}: {why}")
    return place


def cgroup2_parent() -> Path:
    """The nearest directory, from our own upwards, where a v2 child gets the controllers."""
    place, why = _cgroup2_parent()
    if place is None:
        raise OSError(f"cgroup v2: {why}")
    return place


@functools.cache
def _cgroup1_parent(controller: str) -> tuple[Path | None, str]:
    for options, where in _own_cgroups("cgroup"):
        if controller in options:
            return _first_usable(where, lambda d: _enter_child(d, "tasks"))
    return None, "no such hierarchy is mounted"


@functools.cache
def _cgroup2_parent() -> tuple[Path | None, str]:
    for _, where in _own_cgroups("cgroup2"):
        return _first_usable(where, _try_cgroup2)
    return None, "cgroup2 is not mounted"


def _first_usable(where: list[Path], attempt: Callable[[Path], str]) -> tuple[Path | None, str]:
    """Upwards, because a group with processes in it cannot give its controllers to children."""
    reasons = []
    for directory in where:
        if not (why := attempt(directory)):
            return directory, ""
        reasons.append(f"{directory}: {why}")
    return None, reasons[0] if reasons else "this process is outside of what is mounted"


def _own_cgroups(fstype: str) -> Iterator[tuple[set[str], list[Path]]]:
    """(superblock options, our own directory and those above it) of each mounted hierarchy."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] != fstype:
            continue
        options = set(right.split()[-1].split(","))
        root, point = left.split()[3:5]
        path = own[""] if fstype == "cgroup2" else next((own[o] for o in options & own.keys()), "")
        if path and (path == root or path.startswith(root.rstrip("/") + "/")):
            leaf = Path(point, path[len(root) :].lstrip("/"))
            top = len(Path(point).parts)
            yield options, [leaf, *(p for p in leaf.parents if len(p.parts) >= top)]


def _try_cgroup2(directory: Path) -> str:
    """Enables what is missing, and takes it back afterwards."""
    try:
        offered = (directory / "cgroup.controllers").read_text().split()
        if missing := [c for c in CONTROLLERS if c not in offered]:
            return f"not offered: {', '.join(missing)}"
        control = directory / "cgroup.subtree_control"
        added = [c for c in CONTROLLERS if c not in control.read_text().split()]
        if not added:
            return _enter_child(directory, "cgroup.procs")
        control.write_text(" ".join(f"+{c}" for c in added))
    except OSError as error:
        return f"{os.strerror(error.errno or 0)}"
    try:
        return _enter_child(directory, "cgroup.procs")
    finally:
        with contextlib.suppress(OSError):  # somebody else's new child uses them already
            control.write_text(" ".join(f"-{c}" for c in added))


def _enter_child(directory: Path, procs: str) -> str:
    """Make a group, let a process move itself into it, remove it."""
    child = directory / f"nsbox-probe-{os.getpid()}"
    try:
        child.mkdir()
    except OSError as error:
        return f"mkdir: {error.strerror}"
    try:
        return _try("sh", "-c", 'echo 0 > "$1"', "sh", str(child / procs))
    finally:
        poll_until(lambda: _rmdir(child), what=f"rmdir {child}")


def _rmdir(path: Path) -> bool:
    """A group whose last process has just ended can stay busy for some milliseconds."""
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()
