# SPDX-License-Identifier: Apache-2.0
"""One namespace at a time: what processes are in, what unshare(1) and lsns(8) show.

Kernel: namespaces(7); ids are the inode numbers of /proc/PID/ns, as lsns has them.
"""

from __future__ import annotations

import errno
import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsbox import interrupts, probe
from nsbox.compile import compile_holder
from nsbox.converse import finish
from nsbox.errors import SpecError, StateError
from nsbox.names import NAMESPACES
from nsbox.process import Process, dev_null, spawn
from nsbox.sandbox import launch
from nsbox.spec import Rootfs, make_spec
from nsbox.steps import Slot
from nsbox.streams import PIPE

if TYPE_CHECKING:
    from nsbox.plan import Plan
    from nsbox.result import Completed


@dataclass(frozen=True)
class NamespaceInfo:
    """What lsns(8) shows of one namespace.

    Attributes:
        kind: ``"mnt"``, ``"net"`` and so on.
        id: the inode number that names it.
        pid: its process with the lowest number.
        processes: how many are in it, of those that the caller may look at.
        uid: of that process.
        command: of that process.
    """

    kind: str
    id: int
    pid: int
    processes: int
    uid: int
    command: str


def namespace_id(pid: int | str, kind: str) -> int:
    """The id of one namespace of a process; raises OSError when it may not be read."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        text = raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return text or f"[{Path(f'/proc/{pid}/comm').read_text().strip()}]"
    except OSError:
        return ""


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def kill_members(kind: str, ns_id: int, within_s: float = 2.0) -> None:
    """SIGKILL to every process of a namespace, until none is left or *within_s* has passed."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = [pid for pid in _pids() if _is_member(pid, kind, ns_id)]
        for pid in found:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if _is_member(pid, kind, ns_id):  # the number may be another's by now
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except OSError:
                pass
            finally:
                os.close(pidfd)
        if not found:
            return


def _is_member(pid: int, kind: str, ns_id: int) -> bool:
    try:
        return namespace_id(pid, kind) == ns_id
    except OSError:
        return False


def namespaces(pid: int | None = None) -> list[NamespaceInfo]:
    """Every namespace that a process is in, of one process or of all that the caller may see.

    The same ids as ``lsns`` and ``lsns -p PID``; sorted by id.

    Raises:
        ProcessLookupError: there is no process *pid*.
        PermissionError: the caller may not look at it (ptrace(2) access).
    """
    wanted = None
    if pid is not None:
        if not os.path.exists(f"/proc/{pid}"):
            raise ProcessLookupError(errno.ESRCH, "no such process", str(pid))
        wanted = {(kind, namespace_id(pid, kind)) for kind in NAMESPACES}
    members: dict[tuple[str, int], list[int]] = {}
    for other in _pids():
        for kind in NAMESPACES:
            try:
                key = (kind, namespace_id(other, kind))
            except OSError:
                continue
            if wanted is None or key in wanted:
                members.setdefault(key, []).append(other)
    result = []
    for (kind, inode), pids in members.items():
        try:
            uid = os.stat(f"/proc/{pids[0]}").st_uid
        except OSError:
            continue
        result.append(NamespaceInfo(kind, inode, pids[0], len(pids), uid, _command(pids[0])))
    return sorted(result, key=lambda info: info.id)


class Namespace:
    """One namespace, held by a descriptor; equal and hashable by its id.

    ``create`` makes one and a process that holds it, ``of`` and ``open`` take one that is
    there. A context manager; ``close()`` is idempotent, and ends what still runs in one that
    was created.
    """

    def __init__(self, kind: str, fd: int, holder: Process | None = None, id_map: str = "") -> None:
        self.kind = kind
        self.id = os.fstat(fd).st_ino
        self._fd = fd
        self._holder = holder
        self._id_map = id_map

    @classmethod
    def create(cls, kind: str) -> Namespace:
        """Make a new one; an ordinary user gets it inside a new user namespace.

        In a network namespace the loopback is up.

        Raises:
            SpecError: no such kind.
            SetupError, Unavailable: the host does not let it be made.
        """
        _check_kind(kind)
        host = probe.host()
        kinds = [kind] if host.privileged or kind == "user" else ["user", kind]
        spec = make_spec(["pause"], root=Rootfs.inherit(), namespaces=kinds, profile="none")
        plan = compile_holder(spec, host)
        with interrupts.Held():
            return cls._hold(kind, plan)

    @classmethod
    def _hold(cls, kind: str, plan: Plan) -> Namespace:
        null = dev_null()
        holder = spawn(plan, {Slot("stdio", n): null for n in range(3)})
        try:
            fd = os.open(f"/proc/{holder.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            holder.close()
            raise
        step = plan.id_map
        many = step is not None and step.uids[0][2] > 1
        id_map = "" if step is None else "slot" if many else "single"
        return cls(kind, fd, holder, id_map)

    @classmethod
    def current(cls, kind: str) -> Namespace:
        """The caller's own, of the calling thread."""
        _check_kind(kind)
        return cls.open(f"/proc/thread-self/ns/{kind}", kind)

    @classmethod
    def of(cls, pid: int, kind: str) -> Namespace:
        """The one that process *pid* is in. Raises OSError (ptrace(2) access is needed)."""
        _check_kind(kind)
        return cls.open(f"/proc/{int(pid)}/ns/{kind}", kind)

    @classmethod
    def open(cls, path: str | os.PathLike[str], kind: str = "net") -> Namespace:
        """The one that a file stands for: below /proc/PID/ns, or pinned (``ip netns``)."""
        _check_kind(kind)
        return cls(kind, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def processes(self) -> list[int]:
        """Those in it that the caller may look at."""
        found = []
        for pid in _pids():
            try:
                if namespace_id(pid, self.kind) == self.id:
                    found.append(pid)
            except OSError:
                continue
        return found

    def fileno(self) -> int:
        """Its descriptor, for setns(2). Raises StateError after ``close()``."""
        if self._fd < 0:
            raise StateError(f"{self!r} is closed", status="closed")
        return self._fd

    def run(self, args: Any, *, capture_output: bool = False, text: bool = False,
            check: bool = False, timeout: float | None = None) -> Completed:  # fmt: skip
        """Run a command of the host's as a member of it, with nothing else new: nsenter(1).

        Raises:
            SetupError: the caller may not enter it.
        """
        joined = self._holder.pidfd if self._holder is not None else self.fileno()
        kinds = ("user", self.kind) if self._id_map and self.kind != "user" else (self.kind,)
        user = None if not self._id_map else 0
        spec = make_spec(args, root=Rootfs.inherit(), namespaces=(), profile="none", init=False,
                         user=user)  # fmt: skip
        pipe = PIPE if capture_output else None
        return finish(
            spec,
            (None, pipe, pipe),
            lambda stdio: launch(
                spec, stdio, join=kinds, joined_pidfd=joined, join_map=self._id_map
            ),
            text=text,
            check=check,
            timeout=timeout,
        )

    def close(self) -> None:
        """Let go of it; the kernel frees it when nothing else holds it."""
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
        if getattr(self, "_fd", -1) >= 0:
            if self._holder is not None:
                warnings.warn(
                    f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self
                )
            self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Namespace):
            return NotImplemented
        return (self.kind, self.id) == (other.kind, other.id)

    def __hash__(self) -> int:
        return hash((self.kind, self.id))

    def __repr__(self) -> str:
        return f"<nsbox.Namespace {self.kind}:[{self.id}]{' closed' if self._fd < 0 else ''}>"


def _check_kind(kind: str) -> None:
    if kind not in NAMESPACES or kind == "time":
        known = ", ".join(name for name in NAMESPACES if name != "time")
        raise SpecError("kind", f"{kind!r} is none of {known}")
