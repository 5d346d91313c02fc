# SPDX-License-Identifier: Apache-2.0
"""The sandboxes of all owners of this user that run now: from the registry and /proc.

Launchers are known by the locks they hold; what they started and still guard is a sandbox.
Nothing is written when a sandbox starts, unless it has a name: then a note in the registry.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nsbox import launcher, processes, registry
from nsbox.errors import StateError

if TYPE_CHECKING:
    from nsbox.process import Process
    from nsbox.spec import Spec

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST_NOTE = 1 << 20
_SIGTERM, _SIGKILL = 15, 9


class ProcStat(NamedTuple):
    """Of /proc/PID/stat: *start* in ticks since boot, *cpu* in seconds with reaped children."""

    pid: int
    parent: int
    start: int
    cpu: float
    rss: int


def proc_stat(pid: int) -> ProcStat:
    """Raises OSError when there is no such process. proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    cpu = sum(int(n) for n in fields[11:15]) / _TICKS
    return ProcStat(pid, int(fields[1]), int(fields[19]), cpu, int(fields[21]) * _PAGE)


def proc_table() -> dict[int, ProcStat]:
    """Every process that is visible."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                table[int(name)] = proc_stat(int(name))
            except OSError:
                continue
    return table


def command_of(pid: int) -> list[str]:
    """Its command line, cut, which is its own word; [] when it has none, or is gone."""
    try:
        raw = processes.cmdline(pid)
    except OSError:
        return []
    return [part.decode("utf-8", "surrogateescape") for part in raw.rstrip(b"\0").split(b"\0")]


@dataclass(frozen=True)
class Sandbox:
    """One that runs.

    Attributes:
        pid: its first process, PID 1 inside; the id that ``find`` takes.
        start: when that started, in ticks since boot: with the pid, its identity.
        name: what its owner calls it, or "".
        owner: the process that made it.
        launcher: the process that guards it.
        kind: ``"run"`` (PID 1 is nsbox-init), ``"container"`` (PID 1 is the command),
            ``"exec"`` (one more process of another), ``"pause"`` (holds namespaces), ``"proxy"``
            (serves ports of a network), or ``"starting"``.
        command: of the payload, by its own word.
        cgroups: controller, or "v2", -> directory.
        noted: what its owner wrote about it, for who wants to enter it, or to read its log.
    """

    pid: int
    start: int
    name: str
    owner: int
    launcher: int
    kind: str
    command: tuple[str, ...]
    cgroups: dict[str, str]
    noted: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def age(self) -> float:
        """Seconds since it started."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.start / _TICKS)

    def open(self) -> int:
        """A pidfd of it: never of a process that has its number by now.

        Raises:
            StateError: it has ended.
        """
        gone = StateError(f"sandbox {self.name or self.pid} has ended", status="stopped")
        try:
            fd = os.pidfd_open(self.pid)
        except OSError as e:
            raise gone from e
        try:
            now = proc_stat(self.pid)
            same = (now.start, now.parent) == (self.start, self.launcher)
        except OSError:
            same = False
        if not same or _ended(fd):  # alive after the look: the look was at this process
            os.close(fd)
            raise gone
        return fd

    def heeds(self, sig: int) -> bool:
        """Whether its PID 1 passes the signal on, or has a handler; else it never sees it."""
        if self.kind == "run":
            return True
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return False
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        if status.get("NSpid", ["0"])[-1] != "1":
            return True
        return bool(int(status["SigCgt"][0], 16) >> (sig - 1) & 1)

    def send(self, sig: int) -> None:
        """A signal to its first process. Raises StateError when it has ended."""
        fd = self.open()
        try:
            signal.pidfd_send_signal(fd, sig)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)

    def stop(self, grace: float = 10.0) -> None:
        """As ``Container.stop``: SIGTERM, and SIGKILL after *grace* seconds; waits for the end."""
        fd = self.open()
        try:
            if grace > 0 and self.heeds(_SIGTERM):
                signal.pidfd_send_signal(fd, _SIGTERM)
                if _ended(fd, grace):
                    return
            signal.pidfd_send_signal(fd, _SIGKILL)
            _ended(fd, 10.0)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)


def _ended(pidfd: int, within: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(within * 1000))


# -- notes ------------------------------------------------------------------------------------


def note(
    name: str,
    process: Process,
    spec: Spec,
    join_map: str = "",
    log: tuple[int, int] | None = None,
) -> str:
    """Let other processes know a sandbox of this one by a name, and enter it: see elsewhere.py.

    *log* is where its output is kept, see ``Log.open``. Returns the note's path. The launcher
    removes it when this process ends, and ``gc()`` when both do. It is the user's alone to read:
    variables of the environment are in it.
    """
    import json
    import pickle

    plan = process.plan
    # what was mounted is there, and so is the network; contents can be large
    base = replace(spec, mounts=(), publish=(), dns=None, files=spec.files and (("file", b"", 0),))
    text = json.dumps({
        "name": name,
        "pid": process.pid,
        "ticks": int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS),
        "kinds": plan.kinds,
        "cgroups": [slot.key for slot in plan.passed if slot.kind == "cgroup"],
        "enforcement": dict(plan.enforcement),
        "id_map": plan.id_map.kind if plan.id_map is not None else join_map,
        "spec": pickle.dumps(base).hex(),
        "log": log,
    })  # fmt: skip
    path = f"{registry.directory()}/{launcher.current().entry.prefix}{process.pid}-note"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    return path


def forget(path: str) -> None:
    """The sandbox of this note has ended; "" for one that has none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _notes(prefix: str) -> dict[int, dict[str, Any]]:
    """pid -> what its owner wrote, and when, in *ticks* since boot: a process that has started
    since is another one. A note may be half written, or stale."""
    import json

    found = {}
    for file in os.listdir(registry.directory()):
        if file.startswith(prefix) and file.endswith("-note"):
            try:
                with open(f"{registry.directory()}/{file}") as opened:
                    said = json.loads(opened.read(_MOST_NOTE))
                said["ticks"] = int(said["ticks"])
                found[int(said["pid"])] = said
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return found


# -- what runs --------------------------------------------------------------------------------


def _describe(pid: int, table: dict[int, ProcStat]) -> tuple[str, tuple[str, ...]]:
    """(kind, the payload's command)."""
    args = command_of(pid)
    if args[:2] == ["nsbox-init", "init"]:
        children = [other for other, stat in table.items() if stat.parent == pid]
        payload = command_of(min(children)) if children else []
        return "run", tuple(payload)
    if args[:1] == ["nsbox-init"]:
        kind = {"launcher": "starting", "proxy": "proxy"}.get("".join(args[1:2]), "pause")
        return kind, tuple(args)
    return "container", tuple(args)


def _is_late(pid: int) -> bool:
    """It came into a pid namespace that had its PID 1."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] != "1"


def own_cgroups(pid: int | str) -> dict[str, str]:
    """Controller, or "v2", -> the directory of the cgroup that a process is in, where that can
    be seen from here; cgroups(7)."""
    places: dict[str, tuple[str, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ", 2)
        root, point = before.split(" ")[3:5]
        names = ["v2"] if fstype == "cgroup2" else options.split(",") if fstype == "cgroup" else []
        for name in names:
            places.setdefault(name, (root.rstrip("/"), point))
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names_, path = line.split(":", 2)
        for name in names_.split(",") if names_ else ["v2"]:
            root, point = places.get(name, ("?", ""))
            if path == root or path.startswith(root + "/"):
                found[name] = os.path.normpath(point + path[len(root) :])
    return found


def _cgroups(pid: int, prefix: str) -> dict[str, str]:
    """Those that its owner made for it, whose names begin with *prefix*."""
    try:
        places = own_cgroups(pid)
    except OSError:
        return {}
    found = {}
    for name, directory in places.items():
        parts = directory.split("/")
        depth = next((i for i, part in enumerate(parts) if part.startswith(prefix)), 0)
        place = "/".join(parts[: depth + 1])  # the payload may have gone further down
        if depth and os.path.isdir(place):
            found[name] = place
    return found


def sandboxes() -> list[Sandbox]:
    """Those of all processes of this user, by pid. A look at a moment: they come and go."""
    table = proc_table()
    found = []
    for prefix, owner, guardian in registry.owners():
        notes = _notes(prefix)
        for pid, stat in table.items():
            if stat.parent != guardian:
                continue
            kind, command = _describe(pid, table)
            noted = notes.get(pid, {})
            if stat.start > noted.get("ticks", 0):
                noted = {}
            if kind == "container" and not noted and _is_late(pid):
                kind = "exec"
            name = str(noted.get("name", ""))
            found.append(Sandbox(pid, stat.start, name, owner, guardian, kind, command,
                                 _cgroups(pid, prefix), noted))  # fmt: skip
    return sorted(found, key=lambda sandbox: sandbox.pid)


def find(word: str) -> Sandbox:
    """The sandbox with this pid or name.

    Raises:
        StateError: none of this user's, or more than one.
    """
    running = sandboxes()
    found = [one for one in running if one.name == word] if word else []
    if not found and word.isdecimal():
        found = [one for one in running if one.pid == int(word)]
    if not found:
        raise StateError(f"no sandbox {word!r} runs", status="unknown")
    if len(found) > 1:
        pids = ", ".join(str(one.pid) for one in found)
        raise StateError(f"{len(found)} sandboxes are called {word!r}: {pids}", status="ambiguous")
    return found[0]


# -- what they use ----------------------------------------------------------------------------


def members(sandbox: Sandbox, table: dict[int, ProcStat] | None = None) -> list[ProcStat]:
    """Its processes: PID 1 and all that descend from it."""
    table = proc_table() if table is None else table
    children: dict[int, list[ProcStat]] = {}
    for stat in table.values():
        children.setdefault(stat.parent, []).append(stat)
    # a loop, with a note of what was seen: a tree that changes while it is read can have cycles
    found: dict[int, ProcStat] = {}
    left = [table[sandbox.pid]] if sandbox.pid in table else []
    while left:
        stat = left.pop()
        if stat.pid not in found:
            found[stat.pid] = stat
            left += children.get(stat.pid, ())
    return list(found.values())


@dataclass(frozen=True)
class Load:
    """What a sandbox uses at a moment: bytes, processes, seconds. None for no limit."""

    memory: int
    memory_limit: int | None
    pids: int
    pids_limit: int | None
    cpu: float


def _number(path: str) -> int | None:
    """What the file holds; None when there is none, or no limit ("max")."""
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _of(sandbox: Sandbox, controller: str, v2: str, v1: str = "") -> int | None:
    """A number of its cgroup, by the name of the file in v2 and in v1."""
    for key, file in ((controller, v1 or v2), ("v2", v2)):
        if key in sandbox.cgroups:
            value = _number(f"{sandbox.cgroups[key]}/{file}")
            if value is not None:
                return value
    return None


def _cpu_seconds(sandbox: Sandbox, processes: list[ProcStat]) -> float:
    """By the cgroup, which knows those that have ended, too."""
    try:
        text = Path(f"{sandbox.cgroups['v2']}/cpu.stat").read_text()
        return next(int(x.split()[1]) for x in text.splitlines() if x[:5] == "usage") / 1e6
    except (KeyError, OSError, StopIteration):
        pass
    usage = _of(sandbox, "cpuacct", "cpuacct.usage")
    return sum(stat.cpu for stat in processes) if usage is None else usage / 1e9


def load(sandbox: Sandbox, table: dict[int, ProcStat] | None = None) -> Load:
    """Of its cgroups where it has some, else the sum of its processes."""
    processes = members(sandbox, table)
    memory = _of(sandbox, "memory", "memory.current", "memory.usage_in_bytes")
    limit = _of(sandbox, "memory", "memory.max", "memory.limit_in_bytes")
    pids = _of(sandbox, "pids", "pids.current")
    return Load(
        memory=sum(stat.rss for stat in processes) if memory is None else memory,
        memory_limit=None if limit is None or limit >= 1 << 62 else limit,
        pids=len(processes) if pids is None else pids,
        pids_limit=_of(sandbox, "pids", "pids.max"),
        cpu=_cpu_seconds(sandbox, processes),
    )
