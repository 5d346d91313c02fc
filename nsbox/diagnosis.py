# SPDX-License-Identifier: Apache-2.0
"""doctor(): what this host can do, proved by doing it, and the fix for what it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import stat
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsbox import facts, idmap, remedies
from nsbox.errors import NsboxError, SetupError, Unavailable
from nsbox.facts import KINDS
from nsbox.remedies import Found, Remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE_S = 60.0
_OLDEST = (6, 1)
_LEAST_FILES = 300  # NSB_FD_HIGH, and a few
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_FIRST_ID = 0x70000000

#: What says whether ``run()`` works: it does what all the others are parts of.
_TRIAL = "run strict"
#: Each check in the order of the report: what needs it.
NEEDED_FOR: dict[str, str] = {
    "kernel": "run()",
    "extension": "run()",
    "registry": "run()",
    "clone3": "run()",
    "pidfd": "run()",
    "paths": "run()",
    "memfd": "run()",
    "open files": "run()",
    "user namespace": "run()",
    **{f"{kind} namespace": "run()" for kind in KINDS},
    "bind mount": "run()",
    "tmpfs mount": "run()",
    "proc mount": "run()",
    "device nodes": "run()",
    "run strict": "run()",
    "run standard": 'profile="standard"',
    "id range": "more than one user inside of a sandbox",
    "time namespace": 'the kind "time"',
    "overlay mount": "writable roots on top of read-only ones",
    "mqueue mount": "POSIX message queues: Mount.mqueue()",
    "memory cgroup": "Limits(memory=)",
    "memory limit": "Limits(memory=)",
    "pids cgroup": "Limits(pids=)",
    "pids limit": "Limits(pids=)",
    "cpu cgroup": "Limits(cpu=)",
    "cpuset cgroup": "Limits(cpuset=)",
    "io cgroup": "Limits(io=)",
    "freezer cgroup": "pausing a container",
    "seccomp": "filters of system calls",
    "landlock": "the second fence around files",
    "pidfd namespaces": "quicker ends of sandboxes",
    "veth": "networks between sandboxes",
    "nft": "networks with address translation",
    "user-mode network": "networks of an ordinary user that lead out: nat=True",
    "tun device": "networks of an ordinary user that lead out: nat=True",
    "kvm device": "virtual machines beside sandboxes",
    "executable /tmp": "programs that are bound or run from there",
    "executable /dev/shm": "programs that are bound or run from there",
}
#: What else of nsbox needs what ``run()`` can do without for this caller, as it turned out.
_ELSEWHERE = {
    "kernel": "what is newer than this kernel",
    "open files": "many sandboxes at once",
    "device nodes": "these devices in a sandbox",
    "proc mount": "ordinary users; of root, pods, Rootfs.overlay() and .inherit(), mounts=, "
    'devices=, pty=True, the kind "time"',
}


@dataclass(frozen=True)
class Check:
    """One capability.

    Attributes:
        name: of what was tried.
        ok: it was done, and had its effect.
        detail: how, or the call that was refused, its errno and the cause.
        fix: a command or setting that mends it; "" when none is known.
        needed_for: what does not work without it.
        seconds: that it took.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed_for: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """What ``doctor()`` found. ``str()`` of it is a table; ``to_json()`` is for programs."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """``run()`` works here in its default profile; other things may be missing."""
        return self[_TRIAL].ok

    @property
    def missing(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.ok)

    def __getitem__(self, name: str) -> Check:
        """A check by its name. Raises KeyError."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``{"ok": …, "checks": [{"name": …, "ok": …, …}, …]}``."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        told: dict[str, str] = {}
        for check in self.checks:
            fails = check.needed_for == "run()" and not self.ok
            mark = "ok" if check.ok else "FAIL" if fails else "no"
            lines.append(f"{mark:4}  {check.name:{width}}  {check.detail}".rstrip())
            if not check.ok:
                lines.append(f"      {'':{width}}  needed for: {check.needed_for}")
            if check.fix:
                first = told.setdefault(check.fix, check.name)
                again = check.fix if first == check.name else f"as for {first}"
                lines.append(f"      {'':{width}}  fix: {again}")
        failed = [check.name for check in self.missing]
        lines.append("")
        lines.append(f"nsbox {'works' if self.ok else 'does not work'} here"
                     + (f"; missing: {', '.join(failed)}" if failed else ""))  # fmt: skip
        return "\n".join(lines)


# -- checks in this process -------------------------------------------------------------------


def _kernel() -> Found:
    release = os.uname().release
    numbers = release.replace("-", ".").split(".")[:2]
    new_enough = all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) >= _OLDEST
    return Found(new_enough, detail=f"Linux {release}"
                 + ("" if new_enough else ": nsbox needs 6.1 or later"))  # fmt: skip


def _init_program() -> str:
    return str(Path(__file__).with_name("nsbox-init"))


def _extension() -> Found:
    try:
        from nsbox import _core
    except ImportError as e:
        return Found(False, "import nsbox._ffi", detail=str(e))
    if not os.path.exists(_init_program()):
        return Found(False, detail="nsbox-init is missing beside the package")
    return Found(True, detail=f"{_core.__name__}, nsbox-init")


def _registry() -> Found:
    from nsbox import registry

    try:
        return Found(os.access(registry.directory(), os.W_OK), detail=registry.directory())
    except Unavailable as e:
        return Found(False, detail=e.needs, fix=e.hint)
    except OSError as e:
        return Found(False, f"mkdir {e.filename}", e.errno or 0)


def _open_files() -> Found:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard >= _LEAST_FILES
    return Found(enough, detail=f"RLIMIT_NOFILE at most {hard}: more than 256 are needed, and two "
                 "or three for each sandbox")  # fmt: skip


def _device_nodes() -> Found:
    bad = []
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        try:
            if not stat.S_ISCHR(os.stat(f"/dev/{name}").st_mode):
                bad.append(name)
        except OSError:
            bad.append(name)
    text = "null zero full random urandom tty"
    return Found(not bad, detail=f"no character device: {' '.join(bad)}" if bad else text)


def _executable(directory: str) -> Found:
    try:
        noexec = os.statvfs(directory).f_flag & os.ST_NOEXEC
    except OSError as e:
        return Found(False, f"statvfs {directory}", e.errno or 0)
    return Found(not noexec, detail="mounted noexec" if noexec else "")


def _failed(error: Exception) -> Found:
    """What a part of nsbox itself said."""
    fix = getattr(error, "hint", "")
    if isinstance(error, SetupError):
        return Found(False, error.call, error.errno or 0,
                     f"step {error.step} ({error.name} {error.detail})",
                     step=f"{error.name} {error.detail}", fix=fix)  # fmt: skip
    if isinstance(error, Unavailable):
        return Found(False, detail=f"{error.feature}: {error.needs}", fix=fix)
    if isinstance(error, OSError) and not isinstance(error, NsboxError):
        return Found(False, str(error.filename or ""), error.errno or 0)
    return Found(False, "import" if isinstance(error, ImportError) else "", detail=str(error),
                 fix=fix)  # fmt: skip


def _user_mode_network() -> Found:
    """Of an ordinary user: a router is made, and a way out of it. Root has no need of it."""
    try:
        from nsbox import egress, router

        program = egress.installed()
        if program is None:
            return Found(False, detail="neither pasta nor slirp4netns is installed", fix=egress.FIX)
        said = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False)  # fmt: skip
        place = router.place()
        try:
            place.lead_out()
        finally:
            place.release()
    except (NsboxError, OSError, ImportError) as e:
        return _failed(e)
    return Found(True, detail=said.stdout.splitlines()[0] if said.stdout else program)


def _run(profile: str) -> Found:
    """The launcher and everything else at once."""
    try:
        from nsbox.command import run

        done = run(["true"], profile=profile, timeout=10)
    except (NsboxError, OSError, ImportError) as e:
        return _failed(e)
    without = [name for name, how in done.applied.items() if how.startswith("missing")]
    text = f"{done.usage.wall * 1000:.1f} ms" + (
        f"; without {', '.join(without)}" if without else ""
    )
    return Found(done.returncode == 0, detail=text)


# -- checks in processes of their own ---------------------------------------------------------


class Prober:
    """Runs prober.py once for a list of checks."""

    def __call__(self, wanted: list[tuple[str, list[Any]]]) -> dict[str, tuple[Found, float]]:
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("prober.py"))]
        try:
            ended = subprocess.run(
                [*command, json.dumps(wanted)], stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=_PATIENCE_S, check=False,
            )  # fmt: skip
            said, complaint = ended.stdout, ended.stderr.strip().splitlines()[-1:]
        except OSError as e:
            nothing = Found(False, f"start {command[0] or 'python'}", e.errno or 0)
            return {name: (nothing, 0.0) for name, _ in wanted}
        except subprocess.TimeoutExpired as e:
            said = e.stdout.decode() if isinstance(e.stdout, bytes) else ""
            complaint = ["was not answered in time"]
        answers = {}
        for line in said.splitlines():
            got = json.loads(line)
            found = Found(got["ok"], got["call"], got["errno"], got["detail"] or "",
                          got.get("signal", 0))  # fmt: skip
            answers[got["check"]] = (found, got["seconds"])
        why = Found(False, detail=f"could not be tried: {''.join(complaint) or 'no answer'}")
        return {name: answers.get(name, (why, 0.0)) for name, _ in wanted}


def _id_ranges() -> tuple[dict[str, Any], Found]:
    """Arguments for the prober's check; or none, and why it cannot succeed."""
    try:
        from nsbox import probe
    except ImportError as e:
        return {}, Found(False, detail=f"could not be tried: {e}")

    ranges: dict[str, Any] = {}
    missing, absent = [], []
    for kind in ("uid", "gid"):
        program = probe.helper(f"new{kind}map")
        found = probe.subordinate_range(f"/etc/sub{kind}", os.geteuid())
        if os.geteuid() == 0:
            program, found = "", (_FIRST_ID, 65536)
        if program is None:
            missing.append(f"new{kind}map")
        if found is None or found[1] < 65536:
            absent.append(f"/etc/sub{kind}")
        ranges[f"new{kind}map"], ranges[f"sub{kind}"] = program, found[0] if found else 0
    if missing:
        why = f"{' and '.join(missing)} not installed"
        return {}, Found(False, detail=why, fix=idmap.INSTALL)
    if absent:
        user = facts.user_name()
        why = f"no range of 65536 ids for {user} in {', '.join(absent)}"
        return {}, Found(False, detail=why, fix=idmap.add_ranges(user))
    if os.geteuid() and facts.status().get("NoNewPrivs") == "1":
        why, fix = remedies.NO_NEW_PRIVS
        return {}, Found(False, detail=why, fix=fix)
    return ranges, Found(True)


def _network_rules() -> str:
    """Every rule that a network can have, as one packet in hexadecimal digits."""
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from nsbox.netrules import network_table
    from nsbox.nftmsg import batch

    return batch(network_table(
        "nsbox", "nsb0", IPv4Network("192.0.2.0/24"), IPv4Address("192.0.2.1"),
        IPv6Network("2001:db8::/64"), IPv6Address("2001:db8::1"),
    )).hex()  # fmt: skip


_FIXES = {
    "kernel": "a newer kernel",
    "extension": "make dev, or pip install --force-reinstall nsbox",
    "open files": "raise the hard limit: ulimit -Hn, LimitNOFILE= of systemd",
    "device nodes": "bind the host's /dev/NAME here, or mknod as root",
    "executable /tmp": "mount -o remount,exec /tmp",
    "executable /dev/shm": "mount -o remount,exec /dev/shm",
}


class Doctor:
    """Collects checks; each fills in its cause and its fix."""

    def __init__(self) -> None:
        self.facts = facts.look()
        self.prober = Prober()
        self.checks: dict[str, Check] = {}

    def note(self, name: str, found: Found, seconds: float = 0.0) -> None:
        detail, mended = found.detail, Remedy()
        if not found.ok:
            mended = remedies.remedy(name, found, self.facts)
            detail = remedies.reason(found, mended.cause)
            if found.detail and found.err:
                detail += f" [{found.detail}]"
        known = mended.fix or found.fix or _FIXES.get(name, "")
        self.checks[name] = Check(name, found.ok, detail, "" if found.ok else known,
                                  NEEDED_FOR[name], round(seconds, 4))  # fmt: skip

    @contextlib.contextmanager
    def _timed(self) -> Iterator[Callable[[], float]]:
        started = time.monotonic()
        yield lambda: time.monotonic() - started

    def here(self) -> None:
        """What is looked up, or done, in this process."""
        quick: dict[str, Callable[[], Found]] = {
            "kernel": _kernel,
            "extension": _extension,
            "registry": _registry,
            "open files": _open_files,
            "device nodes": _device_nodes,
            "user-mode network": _user_mode_network,
            "executable /tmp": lambda: _executable("/tmp"),
            "executable /dev/shm": lambda: _executable("/dev/shm"),
        }
        for name, check in quick.items():
            with self._timed() as seconds:
                self.note(name, check(), seconds())

    def kernel(self) -> None:
        """What the kernel is asked for, by the prober."""
        wanted: list[tuple[str, list[Any]]] = [
            (name, []) for name in ("clone3", "pidfd", "paths", "user namespace", "bind mount",
                                    "tmpfs mount", "proc mount", "overlay mount", "mqueue mount",
                                    "seccomp", "landlock", "pidfd namespaces", "veth",
                                    "tun device", "kvm device")
        ]  # fmt: skip
        wanted.append(("memfd", [_init_program()]))
        wanted += [(f"{kind} namespace", [kind]) for kind in (*KINDS, "time")]
        ranges, found = _id_ranges()
        if ranges:
            wanted.append(("id range", [ranges]))
        else:
            self.note("id range", found)
        wanted.append(("nft", [_network_rules()]))
        for name, (answer, seconds) in self.prober(wanted).items():
            self.note(name, answer, seconds)

    def cgroups(self) -> None:
        """A cgroup for each controller: made, limited, entered, and heeded."""
        try:
            from nsbox import trials

            trial = trials.Trial()
        except (NsboxError, OSError, ImportError) as e:
            for name in NEEDED_FOR:
                if name.endswith(" cgroup") or name in ("memory limit", "pids limit"):
                    self.note(name, Found(False, detail=f"could not be tried: {e}"))
            return
        with trial:
            made, took = {}, {}
            for controller in trials.CONTROLLERS:
                with self._timed() as seconds:
                    made[controller] = trial.attempt(controller)
                    took[controller] = seconds()
            wanted: list[tuple[str, list[Any]]] = [
                (f"{name} cgroup", [place]) for name, (_, place) in made.items() if place
            ]
            wanted += [(f"{name} limit", [made[name][1]]) for name in ("memory", "pids")
                       if made[name][1]]  # fmt: skip
            answers = self.prober(wanted)
        for controller, (found, _) in made.items():
            name = f"{controller} cgroup"
            entered, seconds_ = answers.get(name, (found, 0.0))
            if found.ok and not entered.ok:
                found = entered._replace(fix=trial.obstacle(controller).fix)
            self.note(name, found, took[controller] + seconds_)
            if controller in ("memory", "pids"):
                nowhere = Found(False, detail=f"no cgroup with the {controller} controller",
                                fix=found.fix)  # fmt: skip
                self.note(f"{controller} limit",
                          *answers.get(f"{controller} limit", (nowhere, 0.0)))  # fmt: skip

    def launcher(self) -> None:
        for profile in ("strict", "standard"):
            with self._timed() as seconds:
                self.note(f"run {profile}", _run(profile), seconds())

    def report(self) -> Report:
        """What failed and is not missed by ``run()`` is for something else."""
        works = self.checks[_TRIAL].ok
        checks = []
        for name, needed in NEEDED_FOR.items():
            check = self.checks[name]
            if works and not check.ok and needed == "run()":
                check = replace(check, needed_for=_ELSEWHERE.get(name, "other options of run()"))
            checks.append(check)
        return Report(tuple(checks))


def doctor() -> Report:
    """What this host can do for this user, each capability proved by doing it.

    Makes namespaces, mounts, filters and cgroups in processes of their own that end at once;
    nothing is left. Takes well under a second. Never raises for what is missing: the report
    says the call that was refused, the cause as far as it can be told, and the fix.
    """
    physician = Doctor()
    physician.here()
    physician.kernel()
    physician.cgroups()
    physician.launcher()
    return physician.report()
