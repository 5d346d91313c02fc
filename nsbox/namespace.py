# SPDX-License-Identifier: Apache-2.0
"""One namespace at a time: made, held, pinned and entered, as unshare(1) and nsenter(1) do.

Kernel: namespaces(7), ioctl_ns(2); ids are the inode numbers of /proc/PID/ns, as lsns has them.
"""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nsbox import interrupts, nslist, pins, probe
from nsbox.checks import flag, text
from nsbox.compile import compile_holder
from nsbox.converse import as_bytes, finish
from nsbox.errors import SpecError, StateError, Unavailable
from nsbox.forgotten import forgotten
from nsbox.identity import Identity, alone
from nsbox.idmap import check_maps
from nsbox.keywords import make_spec
from nsbox.names import NAMESPACES, NsGet
from nsbox.nslist import NamespaceInfo as NamespaceInfo
from nsbox.nslist import NamespaceNode as NamespaceNode
from nsbox.nslist import namespaces as namespaces
from nsbox.nslist import tree as tree
from nsbox.popen import Popen
from nsbox.process import Process, dev_null, open_namespace
from nsbox.sandbox import launch
from nsbox.slots import JOIN, Joined, Slot
from nsbox.spawn import spawn
from nsbox.spec import NetLabel, Rootfs, Spec
from nsbox.streams import PIPE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsbox.hoststeps import IdMap
    from nsbox.result import Completed
    from nsbox.streams import Stdio

    Map = Sequence[tuple[int, int, int]]


class _Owner(NamedTuple):
    """A user namespace: what to join it by, how it maps ids, and as whom to run in it."""

    fd: int
    id_map: str
    user: int | None


class Namespace:
    """One namespace, held by a descriptor; equal and hashable by its id.

    ``create`` makes one and a process that holds it, ``of``, ``current`` and ``open`` take one
    that is there. A context manager; ``close()`` is idempotent, undoes its pins, and ends what
    still runs in one that was created.

    Attributes:
        kind: ``"mnt"``, ``"pid"``, ``"ipc"``, ``"net"``, ``"uts"``, ``"user"``, ``"cgroup"`` or
            ``"time"``.
        id: the inode number that names it.
    """

    def __init__(self, kind: str, fd: int, holder: Process | None = None, id_map: str = "",
                 user: int | None = None) -> None:  # fmt: skip
        status = os.fstat(fd)
        self.kind = kind
        self.id = status.st_ino
        self._device = status.st_dev
        self._fd = fd
        self._holder = holder
        self._id_map = id_map
        self._user = user
        self._pins: list[pins.Pin] = []

    @classmethod
    def create(
        cls,
        kind: str,
        *,
        pin: str | os.PathLike[str] | None = None,
        offsets: Mapping[str, float] | None = None,
        uid_map: Map | None = None,
        gid_map: Map | None = None,
        within: Namespace | None = None,
    ) -> Namespace:
        """Make a new one; an ordinary user gets it inside a new user namespace.

        In a network namespace the loopback is up.

        Args:
            pin: where to ``pin`` it.
            within: another one, whose user namespace is to own this one, too. Only with a right
                over both can a ``Veth`` be made between two network namespaces.
            offsets: of a time namespace: seconds that its ``"monotonic"`` and ``"boottime"``
                clocks are ahead. time_namespaces(7), Linux 5.6.
            uid_map, gid_map: of a user namespace: lines ``(inside, outside, count)`` as in
                /proc/PID/uid_map. An ordinary user can map the own id to one inside; for more
                there must be newuidmap, and a range in /etc/subuid and /etc/subgid.

        Raises:
            SpecError: no such kind, or an argument is wrong for it.
            FileExistsError: something is at *pin* already.
            SetupError, Unavailable: the host does not let it be made.
        """
        _check_kind(kind)
        if offsets is not None and kind != "time":
            raise SpecError("offsets", "are of a time namespace")
        if (uid_map is not None or gid_map is not None) and kind != "user":
            raise SpecError("uid_map", "is of a user namespace")
        if within is not None and kind == "user":
            raise SpecError("within", "is of what a user namespace owns")
        host = probe.host()
        alone = host.privileged or kind == "user" or within is not None
        kinds = [kind] if alone else ["user", kind]
        maps = check_maps(uid_map, gid_map, host)
        with interrupts.Held(), ExitStack() as opened:
            owner = None if within is None else within._owned_by(opened)
            made = cls._hold(kind, kinds, maps, owner, offsets=offsets)
            try:
                if pin is not None:
                    made.pin(pin)
            except BaseException:
                made.close()
                raise
        return made

    @classmethod
    def _hold(
        cls,
        kind: str,
        kinds: Sequence[str],
        maps: IdMap | None = None,
        owner: _Owner | None = None,
        *,
        offsets: Mapping[str, float] | None = None,
        sysctls: tuple[tuple[str, str], ...] = (),
    ) -> Namespace:
        spec = make_spec(["pause"], root=Rootfs.inherit(), namespaces=kinds, profile="none",
                         time_offsets=offsets)  # fmt: skip
        descriptors = {Slot("stdio", n): dev_null() for n in range(3)}
        join, id_map = ((), "") if owner is None else (("user",), owner.id_map)
        if owner is not None:
            descriptors[JOIN] = owner.fd
        plan = compile_holder(spec, probe.host(), maps, join=join, join_map=id_map,
                              sysctls=sysctls)  # fmt: skip
        holder = spawn(plan, descriptors)
        # What a process has unshared is there for its children before it is its own.
        name = "time_for_children" if kind == "time" else kind
        try:
            fd = holder.open_namespace(name)
        except BaseException:
            holder.close()
            raise
        step = plan.id_map
        if step is None:
            return cls(kind, fd, holder, id_map, owner and owner.user)
        return cls(kind, fd, holder, step.kind, step.first_user)

    def _owned_by(self, opened: ExitStack) -> _Owner | None:
        """The user namespace that owns it, unless that is the caller's, to be joined."""
        self.fileno()
        if self._id_map and self._holder is not None:
            return _Owner(self._holder.pidfd, self._id_map, self._user)
        user = self if self.kind == "user" else self.owner
        if user is None:
            raise Unavailable("within", f"the user namespace that owns {self!r} cannot be seen "
                              "from here")  # fmt: skip
        if user is not self:
            opened.callback(user.close)
        with Namespace.current("user") as own:
            return None if user == own else _Owner(user.fileno(), "single", None)

    @classmethod
    def current(cls, kind: str) -> Namespace:
        """The caller's own, of the calling thread."""
        _check_kind(kind)
        return cls.open(f"/proc/thread-self/ns/{kind}", kind)

    @classmethod
    def of(cls, pid: int, kind: str) -> Namespace:
        """The one that process *pid* is in. Raises OSError (ptrace(2) access is needed)."""
        _check_kind(kind)
        return cls(kind, open_namespace(int(pid), kind))

    @classmethod
    def open(cls, what: str | os.PathLike[str] | int, kind: str | None = None) -> Namespace:
        """The one that a file or a descriptor stands for.

        Args:
            what: a path below /proc/PID/ns, or a pin; a name without a slash is one of
                ``ip netns``. Or a descriptor, which stays the caller's: of a namespace, or a
                pidfd.
            kind: what it must be; with a pidfd, which of the process's.

        Raises:
            SpecError: it is no namespace, or of another kind.
            OSError: there is no such file, or it may not be opened.
        """
        if kind is not None:
            _check_kind(kind)
        if isinstance(what, int):
            fd = _of_descriptor(what, kind)
        else:
            path = text(what, "path")
            path = path if "/" in path else f"{pins.NETNS_DIR}/{path}"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return cls(_checked_kind(fd, kind, what), fd)
        except BaseException:
            os.close(fd)
            raise

    # ------------------------------------------------------------ what it is

    @property
    def owner(self) -> Namespace | None:
        """The user namespace that owns it, or, of a user namespace, contains it.

        None where that is beyond the caller's view: above the caller's own. NS_GET_USERNS.
        """
        return self._related(NsGet.USERNS)

    @property
    def parent(self) -> Namespace | None:
        """The one above it, of a user or pid namespace; else None. NS_GET_PARENT."""
        return self._related(NsGet.PARENT)

    def _related(self, what: NsGet) -> Namespace | None:
        fd = nslist.related(self.fileno(), what)
        return None if fd is None else Namespace(nslist.kind_of(fd), fd)

    @property
    def owner_uid(self) -> int:
        """Of a user namespace: the uid of who made it. NS_GET_OWNER_UID.

        Raises:
            StateError: it is of another kind, or closed.
        """
        if self.kind != "user":
            raise StateError(f"{self!r} has no owner of its own, see .owner", status=self.kind)
        return nslist.owner_uid(self.fileno())

    @property
    def processes(self) -> list[int]:
        """Those in it that the caller may look at."""
        return [pid for pid in nslist.pids() if nslist.is_member(pid, self.kind, self.id)]

    def fileno(self) -> int:
        """Its descriptor, for setns(2). Raises StateError after ``close()``."""
        if self._fd < 0:
            raise StateError(f"{self!r} is closed", status="closed")
        return self._fd

    # ------------------------------------------------------------ pins

    def pin(self, where: str | os.PathLike[str]) -> str:
        """Mount it on a file that is made for it; returns the file's path.

        A name without a slash is for ``ip netns``: /run/netns/NAME, and what ``ip netns add``
        made is opened by ``open(NAME)``. A pin holds the namespace beyond its last process, in
        the mount namespace of the caller, until ``unpin()`` or ``close()``; that of a program
        that was killed goes with the next ``gc()``.

        Raises:
            FileExistsError: something is there already.
            Unavailable: the caller may not mount (CAP_SYS_ADMIN).
            SpecError: a name for another kind than net.
            OSError: the kernel refused. A mnt namespace can only be pinned in an older one, on a
                mount that does not propagate into it (EINVAL); Linux 6.18 numbers them for each
                CPU, and so at times takes a newer one for an older.
        """
        where = text(where, "pin")
        try:
            made = pins.make(self.fileno(), self.kind, where)
        except ValueError as e:
            raise SpecError("pin", str(e)) from e
        except PermissionError as e:
            raise Unavailable("pin", f"{pins.place(where, self.kind)}: {e.strerror}: the caller "
                              "may not mount there", err=e.errno or 0) from e  # fmt: skip
        self._pins.append(made)
        return made.path

    def unpin(self) -> None:
        """Undo its pins, those that this object made; idempotent."""
        while self._pins:
            pins.undo(self._pins[-1])
            self._pins.pop()

    # ------------------------------------------------------------ entering

    def run(
        self,
        args: Any,
        *,
        input: Any = None,
        capture_output: bool = False,
        text: bool = False,
        check: bool = False,
        timeout: float | None = None,
    ) -> Completed:
        """Run a command of the host's as a member of it, with nothing else new: nsenter(1).

        Raises:
            SetupError: the caller may not enter it.
            StateError: it is closed, or was created by the parent of this process.
            TimeoutExpired, CommandError: as for ``nsbox.run``.
        """
        spec, start = self._entrance(args)
        pipe = PIPE if flag(capture_output, "capture_output") else None
        return finish(
            spec,
            (None if input is None else PIPE, pipe, pipe),
            start,
            data=as_bytes(input),
            text=text,
            check=check,
            timeout=timeout,
        )

    def popen(self, args: Any, **keywords: Any) -> Popen:
        """As ``run``, but goes on: a ``Popen``, with *stdin*, *stdout*, *stderr* and *text*."""
        return Popen._of(*self._entrance(args), **keywords)

    @property
    def keeper(self) -> int:
        """For nsbox's own use: the pid of the process that was made to hold it."""
        assert self._holder is not None
        return self._holder.pid

    def held(self) -> bool:
        """For nsbox's own use: whether the process that was made to hold it runs."""
        try:
            return self._holder is not None and self._holder.poll() is None
        except StateError:  # lost with its launcher
            return False

    def entrance(self) -> tuple[tuple[str, ...], int]:
        """For nsbox's own use: the kinds to join, and the descriptor by which setns(2) does."""
        fd = self.fileno()
        joined = self._holder.pidfd if self._holder is not None else fd
        kinds = ("user", self.kind) if self._id_map and self.kind != "user" else (self.kind,)
        return kinds, joined

    @property
    def label(self) -> NetLabel:
        """What makes it one of the values of ``net=``."""
        if self.kind != "net":
            raise SpecError("net", f"{self!r} is not a network namespace")
        return NetLabel(f"net:[{self.id}]", self, joined=True)

    def joins(self) -> Joined:
        """For nsbox's own use: how a sandbox enters it."""
        return Joined(*self.entrance(), self._id_map)

    def identify(self, spec: Spec, name: str = "") -> Identity:
        """For nsbox's own use: who a sandbox will be in it, whose names nobody knows."""
        return alone(spec.hostname)

    def _entrance(self, args: Any) -> tuple[Spec, Callable[[Stdio], Process]]:
        if self._holder is not None:
            self._holder.check_mine()
        joined = self.joins()._replace(time=self.fileno())
        spec = make_spec(args, root=Rootfs.inherit(), namespaces=(), profile="none", init=False,
                         user=self._user)  # fmt: skip

        def start(stdio: Stdio) -> Process:
            return launch(spec, stdio, joined=joined)

        return spec, start

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """Let go of it; the kernel frees it when nothing else holds it."""
        self.unpin()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) < 0:
            return
        if self._holder is not None and not self._holder.mine():
            self._pins.clear()
            self.close()
        elif self._holder is not None or self._pins:
            if sys.is_finalizing():  # a pin is nobody else's to undo
                self.unpin()
            forgotten(self)
        else:
            self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Namespace):
            return NotImplemented
        return (self._device, self.id) == (other._device, other.id)

    def __hash__(self) -> int:
        return hash((self._device, self.id))

    def __repr__(self) -> str:
        return f"<nsbox.Namespace {self.kind}:[{self.id}]{' closed' if self._fd < 0 else ''}>"


def _check_kind(kind: str) -> None:
    if kind not in NAMESPACES:
        raise SpecError("kind", f"{kind!r} is none of {', '.join(NAMESPACES)}")


def _checked_kind(fd: int, kind: str | None, what: object) -> str:
    try:
        found = nslist.kind_of(fd)
    except OSError as e:
        raise SpecError("path", f"{what!r} is no namespace") from e
    if kind not in (None, found):
        raise SpecError("kind", f"{what!r} is a {found} namespace, not {kind}")
    return found


def _of_descriptor(what: int, kind: str | None) -> int:
    """A descriptor of our own: of the same namespace, or of that of a pidfd's process."""
    try:
        match = re.search(r"^Pid:\s*(-?\d+)", Path(f"/proc/self/fdinfo/{what}").read_text(), re.M)
    except FileNotFoundError as e:
        raise OSError(errno.EBADF, f"descriptor {what} is not open") from e
    if match is None:
        return os.dup(what)
    if kind is None:
        raise SpecError("kind", "a process has eight namespaces: say which")
    if int(match[1]) <= 0:
        raise ProcessLookupError(errno.ESRCH, "the process has ended")
    fd = open_namespace(int(match[1]), kind)
    poll = select.poll()
    poll.register(what, select.POLLIN)
    if poll.poll(0):  # ended: the number may be another's
        os.close(fd)
        raise ProcessLookupError(errno.ESRCH, "the process has ended")
    return fd
