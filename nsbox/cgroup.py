# SPDX-License-Identifier: Apache-2.0
"""Cgroup: limits and counters of a group of processes; one class, one vocabulary, two backends."""

from __future__ import annotations

import errno
import os
import re
import time
from typing import TYPE_CHECKING, Any

from nsbox import (
    cgroup_limits,
    cgroup_v1,
    cgroup_v2,
    cgroupfs,
    freezer,
    hierarchy,
    interrupts,
    launcher,
    units,
)
from nsbox import limits as limit_files
from nsbox.checks import text
from nsbox.errors import SpecError, StateError, Unavailable
from nsbox.forgotten import forgotten
from nsbox.hierarchy import Parents, parents
from nsbox.spec import Limits

if TYPE_CHECKING:
    from nsbox.oom import OomNotice
    from nsbox.usage import CgroupStats

_REMOVE_DEADLINE_S = 2.0
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_MOST_NAME = 64
_MODE = 0o755
#: What a cgroup of its own is in even without a limit, for its statistics.
_ALWAYS = ("memory", "pids", "cpu", "io")
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError("name", f"{name!r} is not letters, digits, '_', '.' and '-', the first "
                        "one of them a letter, a digit or '_'")  # fmt: skip
    if len(name) > _MOST_NAME:
        raise SpecError("name", f"{name[:20]!r}… is longer than {_MOST_NAME} letters")


class Cgroup:
    """A cgroup: on v1 a directory in each hierarchy, on v2 one. Names are those of v2 on both.

    Made by ``create``, or found by ``open``. ``close()``, or the end of the ``with`` block, ends
    every process in one that was created and removes it; so does the end of this program,
    however it ends, and the end of its launcher.
    """

    def __init__(self, version: int, directories: dict[str, str], *, owned: bool = True) -> None:
        self.version = version
        self._directories = directories
        self._backend = cgroup_v1 if version == 1 else cgroup_v2
        self._owned = owned
        self._public = False
        self._owner = os.getpid()
        self._closed = False
        self.least_pids = 0
        self._oom: OomNotice | None = None
        self._oom_kills_before = 0
        self._said: dict[str, str] = {}

    # ------------------------------------------------------------ how one comes to be

    @classmethod
    def create(
        cls,
        name: str | None = None,
        parent: Cgroup | str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
    ) -> Cgroup:
        """Make one, below the caller's own cgroup or below *parent*, with *limits*.

        *name* is the end of the directory's name, which begins with ``nsbox-``. It is in the
        memory, pids, cpu and io hierarchies as far as they can be had, for ``stats()``.

        Raises:
            SpecError: a limit that is not a cgroup's, such as ``wall``; *name* is no name.
            Unavailable: no cgroup can be made here, or not with such a limit.
            SetupError: the kernel refused a limit; nothing is left.
        """
        limits = Limits() if limits is None else limits
        if name is not None:
            _check_name(name)
        if parent is not None and not isinstance(parent, Cgroup):
            parent = cls.open(parent)
        where = parents() if parent is None else parent._as_place()
        wanted = cgroup_limits.check(limits, where)
        controllers = [c for c in _ALWAYS if where.of(c) and c in where.controllers]
        controllers += [c for c in limit_files.controllers_of(wanted) if c not in controllers]
        if where.version == 1:
            controllers += ["unified"] if where.of("unified") else list(hierarchy.V1_HELPERS)
        with interrupts.Held():
            self = _Handle._reserve(name, tuple(controllers), where)
            try:
                cgroup_limits.write(self, wanted)
                self._watch_oom()
            except BaseException:
                self.close()
                raise
            self._public = True
        return self

    @classmethod
    def _reserve(cls, name: str | None, controllers: tuple[str, ...], where: Parents) -> Cgroup:
        """Make it, after the launcher was told where: whoever outlives us removes it."""
        places = tuple(dict.fromkeys(where.of(c) for c in controllers if where.of(c)))
        for _ in range(2):
            guardian = launcher.current()
            try:
                guardian.register(places)
            except BrokenPipeError:
                launcher.forget(guardian)
                continue
            full = guardian.entry.name() + (f"-{name}" if name else "")
            try:
                return cls.make(full, controllers, where)
            except OSError as e:
                why = f"cannot create a cgroup under {places[0]}: {e.strerror}"
                hint = ""
                if e.errno in _NOT_ALLOWED:
                    hint = hierarchy.places().obstacle(*controllers).fix
                raise Unavailable("cgroup", why, err=e.errno or 0, hint=hint) from e
        raise Unavailable("cgroup", "the launcher that would remove it was killed, twice")

    @classmethod
    def make(cls, name: str, controllers: tuple[str, ...], where: Parents) -> Cgroup:
        """For nsbox's own use: empty and without limits, where the launcher knows of it.

        Raises:
            OSError: mkdir(2) failed, or a controller cannot be had; nothing is left.
        """
        made: dict[str, str] = {}
        masked = False
        self = cls(where.version, made)
        self._said = dict(cgroup_v1.AT_FIRST)
        try:
            for controller in controllers:
                place = where.of(controller)
                if not place:
                    continue
                if where.version == 2 and controller not in (*where.enabled, "bpf"):
                    hierarchy.enable_one(place, controller)
                directory = f"{place}/{name}"
                if directory not in made.values():
                    os.mkdir(directory, _MODE)
                    if not made:
                        masked = os.stat(directory).st_mode & 0o777 != _MODE
                    if masked:  # by the caller's umask
                        os.chmod(directory, _MODE)
                key = "unified" if controller == "bpf" and where.version == 1 else controller
                made[key] = directory
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Cgroup:
        """One that exists, and stays when it is closed.

        *path* is a directory of a mounted hierarchy, or a name as in /proc/PID/cgroup
        (``"/user.slice"``), which on v1 is looked for in every hierarchy.

        Raises:
            SpecError: there is no such cgroup.
        """
        where = text(path, "path")
        version, directories = hierarchy.find(where)
        if not directories:
            raise SpecError("path", f"{where!r} is not a cgroup")
        self = cls(version, directories, owned=False)
        self._public = True
        return self

    # ------------------------------------------------------------ what it is

    @property
    def path(self) -> str:
        """Its directory; on v1 the first of them."""
        return next(iter(self._directories.values()))

    @property
    def directories(self) -> dict[str, str]:
        """Controller -> directory. On a hybrid host also ``unified``, that of cgroup v2."""
        return dict(self._directories)

    def _as_place(self) -> Parents:
        """Itself as a parent, or as that which limits are for."""
        places = dict(self._directories)
        if self.version == 2:
            for name in hierarchy.available(self.path):
                places.setdefault(name, self.path)
        return Parents(self.version, tuple(places.items()))

    @property
    def _each(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._directories.values()))

    def processes(self) -> list[int]:
        """Pids in it and in cgroups below it."""
        return sorted({pid for one in self._each for pid in cgroupfs.all_members(one)})

    def stats(self) -> CgroupStats:
        """What it uses and has used; still to be had after its processes have ended."""
        self._check_open()
        stats: CgroupStats = self._backend.stats(self._directories)
        return stats

    def events(self) -> dict[str, int]:
        """What happened, counted by the kernel, as ``"memory.oom_kill"`` or ``"pids.max"``.

        Besides counters: ``"populated"`` and ``"frozen"``, 1 or 0. Which counters there are
        depends on controllers and kernel: cgroup.events, memory.events, pids.events; on v1
        memory.failcnt is ``"memory.max"``.
        """
        self._check_open()
        found = self._backend.events(self._directories)
        return {**found, "frozen": int(freezer.is_frozen(self._directories, self.version))}

    # ------------------------------------------------------------ verbs

    def _check_open(self) -> None:
        launcher.check_owner(self._owner)
        if self._closed:
            raise StateError(f"{self!r}", status="closed")

    def add(self, pid: int) -> None:
        """Move a process into it, with all of its threads. Children that it has stay behind.

        Moving waits for the kernel, some milliseconds in each hierarchy of v1.

        Raises:
            ProcessLookupError: there is no such process.
            PermissionError: it is somebody else's, or not ours to move from where it is.
        """
        self._check_open()
        if isinstance(pid, bool) or not isinstance(pid, int) or pid < 1:
            raise SpecError("pid", f"{pid!r} is not a pid")
        for directory in self._each:
            cgroupfs.write(f"{directory}/cgroup.procs", str(pid))

    def update(self, limits: Limits, *, spare_pids: int = 0) -> None:
        """Write the limits that are set in *limits*; the others stay as they are.

        With ``memory``, ``swap`` and ``oom_group`` are written too. *spare_pids* is room beyond
        ``pids`` for processes that the limit is not about. On v2 a ``memory`` below
        what is in use makes the kernel reclaim and then kill; on v1 it refuses.

        Raises:
            SpecError, Unavailable: as ``create``.
            SetupError: the kernel refused; those written before are as they were.
        """
        self._check_open()
        self._said = {}
        self._oom_kills_before = self.oom_kills()
        wanted = cgroup_limits.check(limits, self._as_place(), spare_pids, late=True)
        if limits.memory is not None and not limits.oom_group:
            wanted.append(limit_files.Setting("oom_group", "memory.oom.group", "0"))
        cgroup_limits.apply(self, wanted)
        if self._public:
            self._watch_oom()

    def set(self, file: str, value: str) -> None:
        """Write one limit, named as cgroup v2 names its file.

        Raises:
            OSError: the kernel refused.
        """
        if file == "memory.oom.group" and self.version == 1:
            self._notify_oom(value == "1")
            return
        self._backend.set_limit(self._directories, file, value, self._said)
        if file == "pids.max" and value.isdigit():
            self.least_pids = min(self.least_pids or int(value), int(value))

    def get(self, file: str) -> str:
        """What ``set`` would have to write to have a limit as it is."""
        value: str = self._backend.get_limit(self._directories, file)
        return value

    def freeze(self, timeout: float = 5.0) -> None:
        """Stop every process in it where it is, until ``thaw()``; waits until all stand still.

        cgroup.freeze, Linux 5.2; the freezer of v1 where no cgroup v2 is mounted.

        Raises:
            Unavailable: neither is to be had here.
            TimeoutError: one does not stop within *timeout* seconds, such as one that waits for
                a disk; all go on.
        """
        self._check_open()
        units.seconds(timeout, "timeout", zero=True)
        with interrupts.Held():
            if not freezer.directory(self._directories, self.version):
                self._add_freezer()
            freezer.freeze(self._directories, self.version, timeout)

    def _add_freezer(self) -> None:
        """A sandbox of v1 has no place to be frozen in until it is asked for."""
        where = parents()
        for key in ("unified", "freezer"):
            if place := where.of(key):
                guardian = launcher.current()
                guardian.register((place,))
                directory = f"{place}/{guardian.entry.name()}"
                os.mkdir(directory)
                self._directories[f"late-{key}"] = directory
                return
        cause, fix, err = hierarchy.places().obstacle("freezer")
        raise Unavailable("freeze", "neither cgroup v2 nor the freezer of v1 can be written here"
                          f": {cause}", err=err, hint=fix)  # fmt: skip

    def thaw(self) -> None:
        """Let them go on; nothing if they do."""
        self._check_open()
        freezer.thaw(self._directories, self.version)

    def frozen(self) -> bool:
        """Whether ``freeze()`` holds it."""
        return freezer.is_frozen(self._directories, self.version)

    def kill(self) -> None:
        """SIGKILL to every process in it and below it, frozen or forking, with no way out.

        cgroup.kill, Linux 5.14; on v1 alone by reading its lists until they are empty.
        """
        launcher.check_owner(self._owner)
        if not self._closed:
            for directory in sorted(self._each, key=lambda one: not os.path.exists(
                    f"{one}/cgroup.kill")):  # fmt: skip
                cgroupfs.kill_tree(directory)

    def let_die(self) -> None:
        """After a SIGKILL: what v1's freezer holds dies only when it is let go."""
        for key in ("freezer", "late-freezer"):
            if key in self._directories:
                cgroupfs.thaw_tree(self._directories[key])

    # ------------------------------------------------------------ out of memory

    @property
    def oom_fd(self) -> int:
        """v1 with ``oom_group``: readable when memory ran out; else -1."""
        return -1 if self._oom is None else self._oom.fd

    def _notify_oom(self, wanted: bool) -> None:
        if wanted and self._oom is None:
            from nsbox.oom import OomNotice

            self._oom = OomNotice(self, self._directories["memory"], self._oom_kills_before)
        elif not wanted:
            self._forget_oom()

    def _watch_oom(self) -> None:
        if self._oom is not None:
            self._oom.watch()

    def _forget_oom(self) -> None:
        notice, self._oom = self._oom, None
        if notice is not None:
            notice.close()

    def oom_kills(self) -> int:
        """Processes that the OOM killer ended here, by the kernel's own counter."""
        return self._backend.oom_kills(self._directories) if "memory" in self._directories else 0

    def cpu_used(self) -> float | None:
        """Seconds of CPU that everything in it has used; None where that is not counted."""
        used: float | None = self._backend.cpu(self._directories)[1]
        return used

    def counts_all(self) -> bool:
        """Whether it counts CPU time and the peak of memory, or they must be asked of processes."""
        return bool(self._backend.counts_all(self._directories))

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """End what is in it and remove it, with cgroups below it; idempotent.

        One that was opened only is left alone.

        Raises:
            OSError: EBUSY, a process would not go within 2 s. ``nsbox.gc()`` tries again.
        """
        if self._closed:
            return
        if os.getpid() != self._owner:  # a forked child leaves the block that its parent is in
            self._closed = True
            return
        with interrupts.Held():
            self._forget_oom()
            if self._owned:
                deadline = time.monotonic() + _REMOVE_DEADLINE_S
                for directory in reversed(self._each):  # unified last made, first killed
                    cgroupfs.remove_tree(directory, deadline)
            self._closed = True

    def __enter__(self) -> Cgroup:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<nsbox.Cgroup v{self.version} {', '.join(self._each)} {state}>"


class _Handle(Cgroup):
    """The user's own. A sandbox's has no ``__del__``, in which a ^C is lost: it is freed at the end
    of each ``run()``."""

    def __del__(self) -> None:
        if not self._closed and self._public and os.getpid() == self._owner:
            forgotten(self)
