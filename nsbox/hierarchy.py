# SPDX-License-Identifier: Apache-2.0
"""Where cgroups can be made: the hierarchies that are mounted, and the caller's place in each."""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsbox import cgroupfs
from nsbox.cgroup_places import V1_NAMES, Hierarchy, Places
from nsbox.errors import Unavailable
from nsbox.host import CONTROLLERS

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Controllers of every parent on v2; the others are enabled when a limit needs them.
_BASIC = ("memory", "pids", "cpu")
#: v1: hierarchies that no limit is in.
V1_HELPERS = ("cpuacct", "freezer")
#: v1: what ``net_priority`` is by where no cgroup v2 is mounted, to attach programs to.
NET_PRIO = "net_prio"


@dataclass(frozen=True)
class Parents:
    """Where cgroups can be made: controller -> directory; on v2 all are one directory.

    On v1 there may be ``cpuacct`` and ``freezer`` among them, and ``unified``: a directory of
    cgroup v2 without controllers, which has cgroup.kill and cgroup.freeze all the same; or, without
    that, ``net_prio``.
    On v2 children have the ``enabled`` controllers already; others must be enabled first.
    """

    version: int = 0
    directories: tuple[tuple[str, str], ...] = ()
    enabled: tuple[str, ...] = ()

    @property
    def controllers(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.directories if name in (*CONTROLLERS, "cpuacct"))

    def of(self, controller: str) -> str:
        """Its directory, or ""; "unified" is any of cgroup v2, to which a "bpf" program goes."""
        controller = "unified" if controller == "bpf" else controller
        if self.version == 2 and self._places:
            return self._places.get(controller) or next(iter(self._places.values()))
        return self._places.get(controller, "")

    @functools.cached_property
    def _places(self) -> dict[str, str]:
        return dict(self.directories)


@dataclass(frozen=True)
class _Mount:
    point: str
    root: str
    read_only: str = ""

    def directory(self, path: str) -> str:
        """The directory of a cgroup that /proc/PID/cgroup names; "" if it is not in this mount."""
        root = self.root.rstrip("/")
        if path != root and not path.startswith(root + "/"):
            return ""
        return os.path.normpath(f"{self.point}/{path[len(root) :]}")


def mounted() -> dict[str, _Mount]:
    """Controller ("" for v2) -> where its hierarchy is mounted; proc_pid_mountinfo(5)."""
    found: dict[str, _Mount] = {}
    wanted = {*_BASIC, "cpuset", "blkio", *V1_HELPERS, NET_PRIO}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ", 2)
        if fstype not in ("cgroup", "cgroup2"):
            continue
        root, point, flags = before.split(" ")[3:6]
        whole = "ro" in options.rpartition(" ")[2].split(",")
        read_only = "file system" if whole else "mount" if "ro" in flags.split(",") else ""
        place = _Mount(point, root, read_only)
        if fstype == "cgroup2":
            found.setdefault("", place)
        else:
            for option in wanted.intersection(options.split(",")):
                found.setdefault(option, place)
    return found


def paths_of(pid: int | str = "self") -> dict[str, str]:
    """Controller ("" for v2) -> the process's path in that hierarchy; cgroups(7)."""
    paths = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _usable(directory: str) -> bool:
    return bool(directory) and os.access(directory, os.W_OK | os.X_OK)


def _find_v1() -> Parents:
    mounts, own = mounted(), paths_of()
    found = []
    for controller in (*CONTROLLERS, *V1_HELPERS, *(() if "" in mounts else (NET_PRIO,))):
        name = V1_NAMES.get(controller, controller)
        if name in mounts and name in own:
            directory = mounts[name].directory(own[name])
            if _usable(directory):
                found.append((controller, directory))
    if not any(controller in CONTROLLERS for controller, _ in found):
        return Parents()
    if "" in mounts and "" in own:
        directory = mounts[""].directory(own[""])
        if _usable(directory) and os.access(f"{directory}/cgroup.procs", os.W_OK):
            found.append(("unified", directory))
    return Parents(1, tuple(found))


def enable(directory: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """Controllers that children of *directory* have, after an attempt to give them all."""
    control = f"{directory}/cgroup.subtree_control"
    available = cgroupfs.read(f"{directory}/cgroup.controllers").split()
    enabled = cgroupfs.read(control).split()
    for controller in wanted:
        # refused: processes in it (EBUSY), or not ours
        if controller in available and controller not in enabled:
            cgroupfs.write_if_there(control, f"+{controller}")
    enabled = cgroupfs.read(control).split()
    return tuple(name for name in wanted if name in enabled)


def enable_one(directory: str, controller: str) -> None:
    """Children of *directory* have *controller*, or it raises OSError."""
    if controller not in enable(directory, [controller]):
        raise OSError(errno.EBUSY, f"the {controller} controller cannot be enabled: processes in "
                      "the cgroup, or it is not delegated", directory)  # fmt: skip


def find(path: str) -> tuple[int, dict[str, str]]:
    """An existing cgroup, of a directory or of a name as in /proc/PID/cgroup: version, and
    controller -> directory."""
    mounts = mounted()
    names = {v1: v2 for v2, v1 in V1_NAMES.items()}
    exact = os.path.realpath(path)
    inside = {key: place for key, place in mounts.items()
              if exact == place.point or exact.startswith(place.point + "/")}  # fmt: skip
    at = dict.fromkeys(inside, exact)
    if not inside:
        at = {key: place.directory(os.path.normpath(path)) for key, place in mounts.items()}
    found = {names.get(key, key) or "unified": where for key, where in at.items()
             if where and os.path.exists(f"{where}/cgroup.procs")}  # fmt: skip
    v1 = [key for key in found if key != "unified"]
    if v1 or "unified" not in found:
        return 1, {key: found[key] for key in sorted(found, key=_rank)}
    return 2, dict.fromkeys(available(found["unified"]) or ["unified"], found["unified"])


def available(directory: str) -> list[str]:
    """v2: the controllers that a cgroup could give to children."""
    names = cgroupfs.read(f"{directory}/cgroup.controllers").split()
    return [name for name in CONTROLLERS if name in names]


def _rank(controller: str) -> int:
    order = (*CONTROLLERS, *V1_HELPERS, NET_PRIO, "unified")
    return order.index(controller)


def _has_room(directory: str) -> bool:
    """v2: whether children can have controllers and processes: there are none in itself.

    To be asked first: with processes in it, pids and cpu could be enabled all the same, and then
    nobody can enter its children ("domain invalid"). The root is free of that rule.
    """
    if not os.access(f"{directory}/cgroup.procs", os.W_OK):
        return False
    root = not os.path.exists(f"{directory}/cgroup.type")
    return root or not cgroupfs.read(f"{directory}/cgroup.procs").split()


def _find_v2() -> Parents:
    """The nearest ancestor whose children can have all controllers, or the most of them.

    Never one with processes in it: a cgroup has processes or gives out controllers.
    """
    place, own = mounted().get(""), paths_of()
    best = Parents()
    directory = place.directory(own[""]) if place is not None and "" in own else ""
    while place is not None and directory.startswith(place.point):
        if _usable(directory) and _has_room(directory):
            basic = enable(directory, _BASIC)
            if len(basic) > sum(name in _BASIC for name in best.controllers):
                more = [name for name in available(directory) if name not in _BASIC]
                best = Parents(2, tuple((name, directory) for name in (*basic, *more)), basic)
        if directory == place.point or set(_BASIC) <= set(best.controllers):
            break
        directory = os.path.dirname(directory)
    return best


def find_parents() -> Parents:
    """Where this caller can make cgroups: v1 where its controllers are, else v2."""
    try:
        v1 = _find_v1()
        return v1 if v1.version else _find_v2()
    except OSError:
        return Parents()


@functools.lru_cache(maxsize=4)
def _cached_parents(pid: int, own: str) -> Parents:
    parents = find_parents()
    if not parents.version:
        raise no_cgroup()
    return parents


def own_v2() -> str:
    """The caller's directory of cgroup v2, or ""."""
    place = mounted().get("")
    return place.directory(paths_of().get("", "/")) if place is not None else ""


def container() -> str:
    """What runs the caller: "docker", "podman", or ""."""
    if os.path.exists("/run/.containerenv"):
        return "podman"
    return "docker" if os.path.exists("/.dockerenv") else ""


def places() -> Places:
    """The hierarchies as they are for the caller: what says why one cannot be used."""
    try:
        mounts = mounted()
        lines = [line.split(":", 2) for line in cgroupfs.read("/proc/self/cgroup").splitlines()]
    except OSError:
        mounts, lines = {}, []
    found = tuple(_hierarchy(names, path, mounts.get(names.partition(",")[0]))
                  for _, names, path in lines if "=" not in names)  # fmt: skip
    return Places(os.geteuid(), container(), os.path.isdir("/run/systemd/system"), found)


def _hierarchy(names: str, path: str, mount: _Mount | None) -> Hierarchy:
    if mount is None:
        return Hierarchy(names)
    directory = mount.directory(path)
    if not os.path.isdir(directory):
        return Hierarchy(names, mount.point)
    writable = _usable(directory) and os.access(f"{directory}/cgroup.procs", os.W_OK)
    given = () if names else tuple(available(directory))
    return Hierarchy(names, mount.point, directory, mount.read_only, writable, given)


def no_cgroup() -> Unavailable:
    """Why ``find_parents`` found nothing, and what to do about it."""
    cause, fix, err = places().obstacle(*_BASIC)
    return Unavailable("cgroup", f"cannot create a cgroup with limits: {errno.errorcode[err]}: "
                       f"{cause}", err=err, hint=fix)  # fmt: skip


def parents() -> Parents:
    """``find_parents()`` of this process, looked up once while it stays in its cgroup.

    Raises:
        Unavailable: there is none.
    """
    return _cached_parents(os.getpid(), cgroupfs.read("/proc/self/cgroup"))
