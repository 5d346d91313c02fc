# SPDX-License-Identifier: Apache-2.0
"""Cgroups made to find out what works: each controller's, with a limit really written.

Their names stand in the registry under a lock of this process's, so that gc() removes them
should it die, and ``close()`` removes them in any case.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from nsbox import cgroupfs, hierarchy, registry, sandboxes
from nsbox.cgroup_places import V1_NAMES, Obstacle
from nsbox.remedies import Found

MEMORY = 16 << 20
#: What is tried of each controller: (file of v2, file of v1, value, value for v1).
_WRITES: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "memory": (("memory.max", "memory.limit_in_bytes", str(MEMORY), str(MEMORY)),),
    "pids": (("pids.max", "pids.max", "1", "1"),),
    "cpu": (("cpu.max", "cpu.cfs_quota_us", "50000 100000", "50000"),),
    "cpuset": (("cpuset.cpus", "cpuset.cpus", "", ""), ("cpuset.mems", "cpuset.mems", "", "")),
    "io": (("io.max", "blkio.throttle.read_bps_device", "{} rbps=1048576", "{} 1048576"),),
    "freezer": (("cgroup.freeze", "freezer.state", "1", "FROZEN"),),
}
CONTROLLERS = tuple(_WRITES)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _block_device() -> str:
    """MAJOR:MINOR of a disk; "" where there is none."""
    try:
        names = sorted(os.listdir("/sys/block"))
    except OSError:
        return ""
    for name in sorted(names, key=lambda n: n.startswith(("loop", "ram", "zram"))):
        try:
            return Path(f"/sys/block/{name}/dev").read_text().strip()
        except OSError:
            continue
    return ""


class Trial:
    """A context manager. ``attempt`` makes a cgroup with a limit, to be entered by the prober."""

    def __init__(self) -> None:
        self._entry = registry.Entry()
        self._made: list[str] = []
        self._restore: list[tuple[str, str]] = []
        self._device = _block_device()
        self._parents = hierarchy.find_parents()
        self._places = hierarchy.places()
        self._own = sandboxes.own_cgroups("self")

    def __enter__(self) -> Trial:
        self._entry.publish()
        return self

    def __exit__(self, *exc: object) -> None:
        for directory in reversed(self._made):
            cgroupfs.remove_tree(directory, time.monotonic() + 2)
        for path, text in reversed(self._restore):
            Path(path).write_text(text)
        os.unlink(self._entry.path)
        self._entry.close()

    def obstacle(self, controller: str) -> Obstacle:
        """Why this caller can make no cgroup with it. One command is the fix for as many
        controllers as have the same in their way."""
        own = self._places.obstacle(controller)
        like = [one for one in CONTROLLERS if self._places.obstacle(one).err == own.err]
        return own._replace(fix=self._places.obstacle(*like).fix)

    def _parent(self, controller: str) -> tuple[int, str]:
        """(version, directory) in which a cgroup with this controller can be made, or (0, "")."""
        where = self._own.get(V1_NAMES.get(controller, controller), "")
        if where:
            return (1, where) if os.access(where, os.W_OK | os.X_OK) else (0, "")
        if self._parents.version == 2:
            return 2, self._parents.directories[0][1]
        where = self._own.get("v2", "")
        if controller == "freezer" and where and os.access(where, os.W_OK):
            return 2, where
        return 0, ""

    def _enable(self, directory: str, controller: str) -> None:
        control = f"{directory}/cgroup.subtree_control"
        if controller == "freezer" or controller in Path(control).read_text().split():
            return
        Path(control).write_text(f"+{controller}")
        self._restore.append((control, f"-{controller}"))

    def _make(self, parent: str) -> str:
        self._entry.register((parent,), lambda new: None)
        directory = f"{parent}/{self._entry.name()}"
        os.mkdir(directory)
        self._made.append(directory)
        return directory

    def _value(self, parent: str, file: str, value: str) -> str:
        if not value:  # a cpuset: what the parent has
            for name in (f"{file}.effective", f"cpuset.effective_{file[7:]}", file):
                if os.path.exists(f"{parent}/{name}"):
                    return Path(f"{parent}/{name}").read_text().strip()
        return value.format(self._device)

    def attempt(self, controller: str) -> tuple[Found, str]:
        """Whether a limit can be written; and the cgroup that has it, "" where not."""
        version, parent = self._parent(controller)
        if not version:
            obstacle = self.obstacle(controller)
            return Found(False, detail=obstacle.cause, fix=obstacle.fix), ""
        if controller == "io" and not self._device:
            return Found(False, detail="there is no block device to try it with"), ""
        where = file = ""
        try:
            if version == 2:
                where = f"{parent}/cgroup.subtree_control"
                self._enable(parent, controller)
            where = parent
            directory = self._make(parent)
            for line in _WRITES[controller]:
                file = line[0 if version == 2 else 1]
                where = f"{directory}/{file}"
                value = self._value(parent, file, line[2 if version == 2 else 3])
                Path(where).write_text(value)
                if not Path(where).read_text().strip():
                    return Found(False, f"write {where}", detail="was accepted and is empty"), ""
            if controller == "memory":
                self._no_swap(directory, version)
            if controller == "freezer":
                Path(where).write_text("0" if version == 2 else "THAWED")
        except OSError as e:
            fix = self.obstacle(controller).fix if e.errno in _NOT_ALLOWED else ""
            return Found(False, f"write {where}", e.errno or 0, fix=fix), ""
        return Found(True, detail=f"v{version} {file} in {parent}"), directory

    @staticmethod
    def _no_swap(directory: str, version: int) -> None:
        """Or a process would not be ended at its limit, where there is swap."""
        path, value = f"{directory}/memory.swap.max", "0"
        if version == 1:
            path, value = f"{directory}/memory.memsw.limit_in_bytes", str(MEMORY)
        if os.path.exists(path):
            Path(path).write_text(value)
