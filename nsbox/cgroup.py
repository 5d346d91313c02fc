# SPDX-License-Identifier: Apache-2.0
"""Cgroups: one class, two backends, one vocabulary (the names of cgroup v2)."""

from __future__ import annotations

import errno
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsbox.errors import Unavailable
from nsbox.host import CONTROLLERS

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = "/sys/fs/cgroup"
_REMOVE_DEADLINE_S = 2.0


@dataclass(frozen=True)
class Parents:
    """Where cgroups can be made: controller -> directory; on v2 all are one directory."""

    version: int = 0
    directories: tuple[tuple[str, str], ...] = ()

    @property
    def controllers(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.directories)

    def of(self, controller: str) -> str:
        return dict(self.directories)[controller]


def _own_paths() -> dict[str, str]:
    """Controller (or "" for v2) -> the caller's path in that hierarchy; cgroups(7)."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _mounts() -> dict[str, str]:
    """Controller (or "" for v2) -> mount point."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ", 2)
        where = before.split(" ")[4]
        if fstype == "cgroup2":
            found.setdefault("", where)
        elif fstype == "cgroup":
            for option in options.split(","):
                if option in CONTROLLERS or option == "cpuacct":
                    found.setdefault(option, where)
    return found


def _usable(directory: str) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)


def _find_v1() -> Parents:
    mounts, own = _mounts(), _own_paths()
    found = []
    for controller in CONTROLLERS:
        if controller in mounts and controller in own:
            directory = os.path.normpath(mounts[controller] + own[controller])
            if _usable(directory):
                found.append((controller, directory))
    return Parents(1, tuple(found)) if found else Parents()


def _enable(directory: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """Controllers that children of *directory* have, after an attempt to give them all."""
    control = Path(directory, "cgroup.subtree_control")
    available = Path(directory, "cgroup.controllers").read_text().split()
    for controller in wanted:
        if controller in available and controller not in control.read_text().split():
            try:
                control.write_text(f"+{controller}")
            except OSError:  # processes in it (EBUSY), or not ours
                pass
    return tuple(name for name in wanted if name in control.read_text().split())


def _find_v2() -> Parents:
    """The nearest ancestor whose children can have controllers: never one with processes."""
    mounts, own = _mounts(), _own_paths()
    if "" not in mounts or "" not in own:
        return Parents()
    top = mounts[""]
    directory = os.path.normpath(top + own[""])
    while directory.startswith(top):
        if _usable(directory) and os.access(f"{directory}/cgroup.procs", os.W_OK):
            controllers = _enable(directory, CONTROLLERS)
            if len(controllers) == len(CONTROLLERS):
                return Parents(2, tuple((name, directory) for name in controllers))
        if directory == top:
            break
        directory = os.path.dirname(directory)
    return Parents()


def find_parents() -> Parents:
    """Where this caller can make cgroups: v1 where its controllers are, else v2."""
    try:
        v1 = _find_v1()
        return v1 if v1.version else _find_v2()
    except OSError:
        return Parents()


_V1_FILES = {
    "memory.max": "memory.limit_in_bytes",
    "memory.swap.max": "memory.memsw.limit_in_bytes",
    "pids.max": "pids.max",
}


@dataclass(frozen=True)
class CgroupStats:
    """What a cgroup used. Bytes and seconds; None where the kernel does not say."""

    memory_peak: int | None
    pids_peak: int | None
    throttled: float | None
    oom_kills: int


class Cgroup:
    """A cgroup of nsbox's own: on v1 a directory in each hierarchy, on v2 one.

    Made by ``create``; ``close()`` kills what is in it and removes it.
    """

    def __init__(self, version: int, directories: dict[str, str]) -> None:
        self.version = version
        self._directories = directories
        self._closed = False
        self.oom_fd = -1

    @classmethod
    def create(cls, name: str, controllers: tuple[str, ...], parents: Parents) -> Cgroup:
        """Make it, empty and without limits.

        Raises:
            OSError: mkdir(2) failed; nothing is left.
        """
        made: dict[str, str] = {}
        self = cls(parents.version, made)
        try:
            for controller in controllers:
                directory = f"{parents.of(controller)}/{name}"
                if directory not in made.values():
                    os.mkdir(directory)
                    os.chmod(directory, 0o755)  # whatever the caller's umask
                made[controller] = directory
        except BaseException:
            self.close()
            raise
        return self

    def set(self, file: str, value: str) -> None:
        """Write one limit, named as cgroup v2 names its file.

        Raises:
            OSError: the kernel refused.
        """
        controller = file.partition(".")[0]
        directory = self._directories[controller]
        if self.version == 2:
            self._set_v2(f"{directory}/{file}", value)
        elif file == "cpu.max":
            quota, period = value.split()
            _write(f"{directory}/cpu.cfs_period_us", period)
            _write(f"{directory}/cpu.cfs_quota_us", quota)
        elif file == "memory.swap.max":
            # v1 limits the sum of memory and swap; without swap accounting there is no file
            path = f"{directory}/{_V1_FILES[file]}"
            memory = int(_read(f"{directory}/memory.limit_in_bytes"))
            if os.path.exists(path):
                _write(path, str(memory + int(value)))
        elif file == "memory.oom.group":
            self._notify_oom(directory)
        else:
            _write(f"{directory}/{_V1_FILES[file]}", value)

    def _notify_oom(self, directory: str) -> None:
        """v1 kills one process and goes on; who watches ``oom_fd`` ends the others."""
        self.oom_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _write(f"{directory}/cgroup.event_control", f"{self.oom_fd} {control}")
        finally:
            os.close(control)

    def _set_v2(self, path: str, value: str) -> None:
        if path.endswith("memory.swap.max") and not os.path.exists(path):
            return  # a kernel without swap has no swap to limit
        _write(path, value)

    def open_for_child(self) -> dict[str, int]:
        """Descriptors by which a child enters: v1 ``tasks`` files, v2 the directory ("v2")."""
        if self.version == 2:
            directory = next(iter(self._directories.values()))
            return {"v2": os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)}
        opened: dict[str, int] = {}
        try:
            for controller, directory in self._directories.items():
                opened[controller] = os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)
        except BaseException:
            for fd in opened.values():
                os.close(fd)
            raise
        return opened

    @property
    def directories(self) -> tuple[str, ...]:
        """Each directory once."""
        return tuple(dict.fromkeys(self._directories.values()))

    def oom_kills(self) -> int:
        """Processes that the OOM killer ended here, by the kernel's own counter."""
        if "memory" not in self._directories:
            return 0
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _counter(f"{self._directories['memory']}/{name}", "oom_kill")

    def stats(self) -> CgroupStats:
        """What was used until now."""
        v2 = self.version == 2
        memory, pids, cpu = (self._directories.get(name, "") for name in CONTROLLERS)
        peak = f"{memory}/{'memory.peak' if v2 else 'memory.max_usage_in_bytes'}"
        throttled = _counter(f"{cpu}/cpu.stat", "throttled_usec" if v2 else "throttled_time")
        return CgroupStats(
            memory_peak=_number(peak) if memory else None,
            pids_peak=_number(f"{pids}/pids.peak") if pids else None,
            throttled=throttled / (1e6 if v2 else 1e9) if cpu else None,
            oom_kills=self.oom_kills(),
        )

    def kill(self) -> None:
        """SIGKILL to every process in it; cgroup.kill (Linux 5.14) where there is one."""
        for directory in self.directories:
            try:
                _write(f"{directory}/cgroup.kill", "1")
                continue
            except OSError:
                pass
            for pid in _members(directory):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass

    def close(self) -> None:
        """Kill what is left and remove it; idempotent. Retries while the kernel finishes exits.

        Raises:
            OSError: EBUSY, a process would not go within 2 s. ``nsbox.gc()`` tries again.
        """
        if self._closed:
            return
        self._closed = True
        if self.oom_fd >= 0:
            os.close(self.oom_fd)
            self.oom_fd = -1
        deadline = time.monotonic() + _REMOVE_DEADLINE_S
        for directory in self.directories:
            remove_tree(directory, deadline)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<nsbox.Cgroup v{self.version} {', '.join(self.directories)} {state}>"


def remove_tree(directory: str, deadline: float) -> None:
    """Remove a cgroup with its children, killing members, until *deadline* (time.monotonic)."""
    delay = 0.0005
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as e:
            if e.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                raise
        for pid in _members(directory):
            try:
                os.kill(pid, 9)
            except OSError:
                pass
        try:
            with os.scandir(directory) as entries:
                children = [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return
        for child in children:
            remove_tree(child, deadline)
        time.sleep(delay)
        delay = min(delay * 2, 0.05)


def _members(directory: str) -> list[int]:
    """Pids in a cgroup, as this pid namespace has them (0: in another one, not ours to kill)."""
    try:
        return [pid for pid in map(int, _read(f"{directory}/cgroup.procs").split()) if pid > 0]
    except OSError:
        return []


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # open() makes three more calls to know the file
    try:
        data = b""
        while more := os.read(fd, 65536):
            data += more
    finally:
        os.close(fd)
    return data.decode()


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _number(path: str) -> int | None:
    try:
        text = _read(path).strip()
        return int(text) if text.isdigit() else None
    except OSError:
        return None


def _counter(path: str, name: str) -> int:
    try:
        for line in _read(path).splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


@functools.lru_cache(maxsize=4)
def _cached_parents(pid: int, own: str) -> Parents:
    parents = find_parents()
    if not parents.version:
        raise Unavailable("cgroup", "no cgroup here can be written",
                          hint="systemd-run --user --scope -p Delegate=yes COMMAND")  # fmt: skip
    return parents


def parents() -> Parents:
    """``find_parents()`` of this process, looked up once while it stays in its cgroup."""
    return _cached_parents(os.getpid(), _read("/proc/self/cgroup"))
