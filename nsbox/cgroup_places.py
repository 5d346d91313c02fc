# SPDX-License-Identifier: Apache-2.0
"""Why this caller can make no cgroup, and the command that lets it on the hierarchies of this very
host: pure, from what ``hierarchy.places()`` looked up."""

from __future__ import annotations

import errno
from typing import NamedTuple

#: Of v1: names of v2 -> of v1 where they differ.
V1_NAMES = {"io": "blkio"}
#: What every cgroup of v2 has, whatever controllers it was given.
_OF_ALL = ("freezer", "unified")
_TOP = "/sys/fs/cgroup"


class Obstacle(NamedTuple):
    """The first that is in the way: in words, what removes it, and an errno that says it."""

    cause: str
    fix: str
    err: int


class Hierarchy(NamedTuple):
    """One that the caller is a member of.

    Attributes:
        names: its controllers, with commas between, as /proc/PID/cgroup has them; "" for v2.
        point: where it is mounted; "" for nowhere.
        directory: of the caller's cgroup; "" where none of the mounts shows it.
        read_only: "" or what is: ``"mount"``, or the whole ``"file system"``.
        writable: the caller can make cgroups in there, and enter them.
        available: the controllers that it can give to children, of v2.
    """

    names: str
    point: str = ""
    directory: str = ""
    read_only: str = ""
    writable: bool = False
    available: tuple[str, ...] = ()


class Places(NamedTuple):
    """All of them.

    Attributes:
        container: what runs the caller: ``"docker"``, ``"podman"``, or ``""``.
        systemd: it is PID 1 here, and can be asked to delegate.
    """

    euid: int = 0
    container: str = ""
    systemd: bool = False
    hierarchies: tuple[Hierarchy, ...] = ()

    def of(self, controller: str) -> Hierarchy:
        """That which has a controller: one of v1 keeps it from v2."""
        name = V1_NAMES.get(controller, controller)
        v1 = [one for one in self.hierarchies if one.names and name in one.names.split(",")]
        v2 = [one for one in self.hierarchies if not one.names]
        return (*v1, *v2, Hierarchy(""))[0]

    def obstacle(self, *controllers: str) -> Obstacle:
        """Why there is no cgroup that has these controllers."""
        wanted = tuple(dict.fromkeys(map(self.of, controllers)))
        if absent := [one for one in wanted if not one.directory]:
            return self._absent(absent)
        if read_only := [one for one in wanted if one.read_only]:
            return self._read_only(read_only)
        if closed := [one for one in wanted if one.names and not one.writable]:
            return self._closed(closed)
        if v2 := [one for one in wanted if not one.names]:
            return self._not_given(v2[0], [one for one in controllers if self.of(one) == v2[0]])
        return Obstacle("", "", errno.EOPNOTSUPP)

    # ------------------------------------------------------------ mounts

    def _absent(self, absent: list[Hierarchy]) -> Obstacle:
        if elsewhere := [one.point for one in absent if one.point]:
            cause = f"the cgroup that this runs in is not below {elsewhere[0]}"
        else:
            names = ", ".join(one.names or "v2" for one in absent)
            cause = f"no cgroup file system is mounted here ({names})"
        return Obstacle(cause, self._by_root(self._mount(absent)), errno.EOPNOTSUPP)

    def _mount(self, absent: list[Hierarchy]) -> str:
        mixed = any(set(one.names.split(",")) & {"memory", "pids", "cpu"}
                    for one in self.hierarchies)  # fmt: skip
        if not mixed:
            return f"mount -t cgroup2 cgroup2 {_TOP}"
        lines = [f"mountpoint -q {_TOP} || mount -t tmpfs tmpfs {_TOP}"]
        if names := " ".join(one.names for one in absent if one.names):
            lines.append(f"for c in {names}; do mkdir -p {_TOP}/$c && "
                         f"mount -t cgroup -o $c $c {_TOP}/$c; done")  # fmt: skip
        if not all(one.names for one in absent):
            lines.append(f"mkdir -p {_TOP}/unified && mount -t cgroup2 cgroup2 {_TOP}/unified")
        return "; ".join(lines)

    def _read_only(self, places: list[Hierarchy]) -> Obstacle:
        what = ", ".join(one.point for one in places)
        lines = [f"mount -o remount,{'bind,' if one.read_only == 'mount' else ''}rw {one.point}"
                 for one in places]  # fmt: skip
        return Obstacle(f"read-only mounts: {what}", self._by_root("; ".join(lines)), errno.EROFS)

    def _by_root(self, command: str) -> str:
        """Of a container, root can do this only with more rights than are usual."""
        outside = {
            "docker": "docker run --privileged --cgroupns=private, "
            f"or -v {_TOP}:{_TOP}:rw --cgroupns=host",
            "podman": f"podman run --cgroupns=private --security-opt unmask={_TOP}",
        }.get(self.container, "")
        if outside:
            return f"{outside}; or as root with CAP_SYS_ADMIN: {command}"
        return f"as root: {command}" if self.euid else command

    # ------------------------------------------------------------ delegation

    @property
    def _who(self) -> str:
        """0 is not root of the host where it may not write what is root's."""
        return "run as root; or as root" if self.euid else "as root of the host"

    def _closed(self, closed: list[Hierarchy]) -> Obstacle:
        """v1 has nobody who delegates: root makes a directory in each, and gives it away."""
        what = ", ".join(one.directory for one in closed)
        new = f"$d/user-{self.euid}"
        steps = [f"mkdir -p {new}", f"chown {self.euid} {new} {new}/cgroup.procs {new}/tasks",
                 f"echo PID > {new}/cgroup.procs"]  # fmt: skip
        if any("cpuset" in one.names.split(",") for one in closed):
            # nobody may enter before these are set
            steps.insert(1, f"for f in $d/cpuset.cpus $d/cpuset.mems; do [ ! -e $f ] || "
                            f"cat $f > {new}/${{f##*/}}; done")  # fmt: skip
        directories = " ".join(dict.fromkeys(one.directory for one in closed))
        boot = "systemd.unified_cgroup_hierarchy=1" if self.systemd else "cgroup_no_v1=all"
        fix = (f"{self._who}, PID being your shell: for d in {directories}; do "
               f"{' && '.join(steps)}; done; or boot with cgroup v2 ({boot})")  # fmt: skip
        return Obstacle(f"not this user's to write: {what}", fix, errno.EACCES)

    def _not_given(self, place: Hierarchy, controllers: list[str]) -> Obstacle:
        missing = [one for one in controllers if one not in (*place.available, *_OF_ALL)]
        if place.writable and not missing:
            return Obstacle(f"{place.directory} has processes, and so no controllers for children",
                            "call nsbox.delegate() first", errno.EBUSY)  # fmt: skip
        if not place.writable:
            return Obstacle(f"not this user's to write: {place.directory}",
                            self._delegate(place, controllers), errno.EACCES)  # fmt: skip
        cause = f"{place.directory} was not given {', '.join(missing)}"
        if self.euid:
            return Obstacle(cause, self._delegate(place, controllers), errno.EOPNOTSUPP)
        above = f"{place.directory}/../cgroup.subtree_control"
        fix = "; ".join(f"echo +{one} > {above}" for one in missing)
        return Obstacle(cause, fix if place.directory != place.point else "", errno.EOPNOTSUPP)

    def _delegate(self, place: Hierarchy, controllers: list[str]) -> str:
        if self.systemd:
            more = " (also -p AllowedCPUs=, -p IOAccounting=yes)"
            who = "run as root, or: " if self.euid else "as a user of the host: "
            return (f"{who}systemd-run --user --scope -p Delegate=yes COMMAND"
                    + more * bool({"cpuset", "io"} & set(controllers)))  # fmt: skip
        new = f"{place.point}/user-{self.euid}"
        give = " ".join(f"+{one}" for one in controllers if one not in _OF_ALL)
        steps = [f'echo "{give}" > {place.point}/cgroup.subtree_control'] if give else []
        steps += [f"mkdir -p {new}", f"chown {self.euid} {new} {new}/cgroup.procs "
                  f"{new}/cgroup.threads {new}/cgroup.subtree_control",
                  f"echo PID > {new}/cgroup.procs"]  # fmt: skip
        return (f"{self._who}, PID being your shell: {' && '.join(steps)}; "
                "and nsbox.delegate() in the program")  # fmt: skip
