# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: host steps with their undo, the request, the records; and the running process.

``spawn`` is the one interpreter of plans on the owner's side; ``Process`` is what it returns.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nsbox import (
    _core,
    cgroup_child,
    debug,
    interrupts,
    launcher,
    probe,
    processes,
    registry,
    thaw,
    watch,
)
from nsbox.cgroup import Cgroup
from nsbox.cgroupfs import remove_tree
from nsbox.devices import SOCKET
from nsbox.errors import CommandNotFound, NetworkError, NsboxError, SetupError, StateError
from nsbox.hierarchy import parents
from nsbox.names import At, Clone, Kind, PlanFlag
from nsbox.steps import HandNetlink, HandOver, IdMap, MakeCgroup, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nsbox.changes import Change
    from nsbox.plan import Plan
    from nsbox.steps import Netlink
    from nsbox.usage import Tally

_CLD_EXITED = 1
_ABORT_DEADLINE_S = 5.0
#: How long a record may be waited for when others can stop (SIGSTOP) what is being set up.
PATIENCE_S = 10.0
_PF_EXITING = 4  # of the flags in proc_pid_stat(5)
_PROCESS_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9; older kernels answer EINVAL
_AGAIN_S = 0.5
_MSG_CMSG_CLOEXEC, _MSG_DONTWAIT = 0x40000000, 0x40


class Ended(NamedTuple):
    """How a payload ended, as the kernel told it to its parent.

    *returncode* is -n for signal n. *cpu_user* and *cpu_system* (seconds) count the whole
    tree; *maxrss* (bytes) is the largest process. *io_read* and *io_write* are bytes from and
    to disks (ru_inblock and ru_oublock of getrusage(2)).
    """

    returncode: int
    cpu_user: float
    cpu_system: float
    maxrss: int
    io_read: int
    io_write: int


class Lease(Protocol):
    """A place in a network, of one sandbox."""

    def prepare(self) -> None:
        """What can be done for it while its process is made."""

    def connect(self, pid: int, sockets: dict[Netlink, int]) -> None:
        """Make it, for the process *pid* that waits; the *sockets* of its network, which it
        opened, are taken over.

        Raises:
            NetworkError: the kernel refused.
        """

    def close(self) -> None:
        """Give it back, when the sandbox has ended."""


class Injection(NamedTuple):
    """A step of the timeline that is made to fail, for tests: its index and an errno."""

    step: int = -1
    err: int = errno.EIO


_DONE = ExitStack()  # empty for ever

_NO_DESCRIPTORS = (
    "the launcher keeps two or three descriptors for each sandbox: raise the hard "
    "limit of open files (RLIMIT_NOFILE) before the first one, or end some"
)
_HINTS = {
    ("recvmsg", errno.EMFILE): _NO_DESCRIPTORS,
    ("fcntl", errno.EMFILE): _NO_DESCRIPTORS,
    ("clone3", errno.EPERM): "user namespaces may be restricted here "
    "(kernel.apparmor_restrict_unprivileged_userns, a container's seccomp filter, a chroot)",
    ("clone3", errno.ENOSPC): "a limit of /proc/sys/user/max_*_namespaces was reached",
    ("clone3", errno.EAGAIN): "a limit of processes was reached (pids cgroup, RLIMIT_NPROC)",
    ("clone3", errno.ETIMEDOUT): "something among the processes that it joins has stopped it",
    ("openat2", errno.ENOENT): "make this path in the root directory, or use ro=False",
    ("open_tree", errno.EINVAL): "in a user namespace, a directory that has mounts below it "
    "cannot be taken without them",
    ("flock", errno.EBUSY): "another sandbox is using this upper directory",
    ("fsconfig", errno.ELOOP): "a layer of the overlay is within another one, or in use by it",
    ("open_tree", errno.EACCES): "the sandbox's user may not enter a directory on the way",
    ("chdir", errno.ENOENT): "the directory does not exist in the sandbox",
    ("chdir", errno.EACCES): "the root directory must be open (o+rx) to the sandbox's user",
    ("execve", errno.EACCES): "not executable for the sandbox's user, or a directory on the way "
    "is closed to it",
}


def setup_error(plan: Plan, index: int, err: int, call: str) -> SetupError:
    """The error of one step of the timeline."""
    step = plan.steps[index]
    is_exec = step.name == "exec" and err == errno.ENOENT and call != "injected"
    hint = _HINTS.get((call, err), "")
    detail = step.describe()
    if is_exec and plan.args:
        hint = f"{plan.args[0]!r} was not found in the sandbox"
    kind = CommandNotFound if is_exec else SetupError
    return kind(
        err, step=index, name=step.name, call=call, detail=detail, field=step.source, hint=hint
    )


class Process:
    """A payload that was started: PID 1 of its namespace, or the child of nsbox-init.

    Owns its channel, pidfd, cgroup and slot of ids; ``close()`` kills what is left and
    returns all of it. Safe to use from any thread of the process that made it.
    """

    def __init__(self, plan: Plan, channel: int) -> None:
        self.plan = plan
        self.pid = 0
        self.pidfd = -1
        self.cgroup: Cgroup | None = None
        self.inject = Injection()
        self.lease: Lease | None = None
        self.join_map = ""
        self.sockets: dict[Netlink, int] = {}
        self.started_at = time.monotonic()
        self.ended_at = 0.0
        self.stats: Tally | None = None
        self.cpu_limit: float | None = None
        self._channel = channel
        self._waiters = 0
        self._released = False
        self._owner = os.getpid()
        self._undo = ExitStack()
        self._starting: _core.Starting | None = None
        self._lock = threading.RLock()
        self._payload: _core.Record | None = None
        self._ended: Ended | None = None
        self.terminal = -1
        self._stuck: StateError | None = None
        self._untold = False
        self._before: processes.Snapshot | None = None
        self._lost = False
        self._ending = False
        self._upper = -1
        self._changes: tuple[Change, ...] = ()

    # ---------------------------------------------------------------- state

    def fileno(self) -> int:
        """Readable when there may be news: then call ``poll()``."""
        return self._channel

    @property
    def id_map(self) -> str:
        """How its user namespace maps ids, see ``Build.id_map``."""
        return self.plan.id_map.kind if self.plan.id_map is not None else self.join_map

    def mine(self) -> bool:
        """Whether this process made it; a forked child holds copies that are not its to end."""
        return os.getpid() == self._owner

    def check_mine(self) -> None:
        """Raises StateError in a forked child of the process that made it."""
        launcher.check_owner(self._owner)

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs.

        Raises:
            StateError: the launcher was killed, and the sandbox with it.
        """
        launcher.check_owner(self._owner)
        with self._lock:
            while self._ended is None and not self._lost:
                try:
                    received = _core.receive(self._channel, 0)
                except InterruptedError:
                    continue
                except OSError:
                    self._lose()
                    break
                if received is None:
                    return None
                record, fd = received
                if fd >= 0:  # of a spawn that failed before the launcher told who it was
                    self.pid, self.pidfd = record.pid, fd
                    if self._ending:
                        self.kill()
                self._note(record)
            if self._ended is None:
                raise StateError("the launcher of this process was killed: the sandbox was ended "
                                 "with it, its exit status is lost", status="lost")  # fmt: skip
            return self._ended

    def _note(self, record: _core.Record) -> None:
        if debug.ON:
            debug.say("record", _told(record))
        if record.kind == Kind.EXITED:
            self._payload = record
        elif record.kind == Kind.ENDED:
            told = self._payload or record
            code = told.status if told.code == _CLD_EXITED else -told.status
            self.ended_at = time.monotonic()
            if self.cgroup is not None:
                self.stats = cgroup_child.tally(self.cgroup)
            user, system = record.utime_us / 1e6, record.stime_us / 1e6
            peak = record.maxrss_kib << 10
            if self._before is not None and sum(self._before[:2]) > user + system:
                user, system = self._before[:2]
            if self._before is not None:
                peak = max(peak, self._before.maxrss)
            self._ended = Ended(code, user, system, peak, record.inblock << 9, record.oublock << 9)

    def _lose(self) -> None:
        """Nobody is left to report: the kernel ends the child by its parent-death signal, and
        this ends one that cleared that."""
        self._lost = True
        self.ended_at = time.monotonic()
        self.kill()

    def open_namespace(self, kind: str) -> int:
        """A descriptor of one that it is in: by its number, which is its own until it is reaped."""
        return os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)

    def exiting(self) -> bool:
        """It is about to end: a PID 1 first waits until all others of its namespace are gone."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                flags = int(file.read().rpartition(")")[2].split()[6])
        except OSError:
            return False
        return bool(flags & _PF_EXITING)

    def wait(self, timeout: float | None = None) -> Ended | None:
        """Waits until it has ended; None when *timeout* (seconds) passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        with self._lock:
            if self._released:
                return self._ended
            self._waiters += 1
            poll.register(self._channel, select.POLLIN)
        try:
            while (ended := self.poll()) is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                poll.poll(None if left is None else left * 1000)
            return ended
        finally:
            with self._lock:
                self._waiters -= 1
                self._close_released()

    # ---------------------------------------------------------------- verbs

    def send_signal(self, sig: int) -> None:
        """To the payload: by nsbox-init where that is PID 1. Nothing when it has ended."""
        launcher.check_owner(self._owner)
        with self._lock:
            if self.pidfd < 0 or self._ended is not None:
                return
            try:
                if sig == signal.SIGSTOP and PlanFlag.INIT in self.plan.flags:
                    self._stop_payload()
                else:
                    signal.pidfd_send_signal(self.pidfd, sig)
            except ProcessLookupError:
                pass

    def _stop_payload(self) -> None:
        """SIGSTOP cannot be caught, and so not be forwarded: init's first child is the payload."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
            children = file.read().split()
        if children:
            pidfd = os.pidfd_open(int(children[0]))
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            finally:
                os.close(pidfd)

    def kill(self) -> None:
        """SIGKILL to all of it: the kernel ends a pid namespace with its PID 1.

        Without one of its own, the cgroup's members, or else the payload's process group.
        """
        counted = self.cgroup is not None and self.cgroup.counts_all()
        look = (not counted or thaw.mounted()) and self._alive()
        tree = processes.tree(self.pid) if look else []
        if tree and not counted and self._before is None:
            before = processes.snapshot(tree)
            self._before = before if self._alive() else None
        self.send_signal(signal.SIGKILL)
        if not self.plan.clone.flags & Clone.NEWPID:
            if self.cgroup is not None:
                self.cgroup.kill()
            else:
                self._kill_group()
        if self.cgroup is not None:
            self.cgroup.let_die()
        thaw.thaw(tree)  # PID 1 ends after all others, so none of them may stay frozen

    def _kill_group(self) -> None:
        """The payload leads a session, and so a group (PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9)."""
        with self._lock:
            if self.pidfd >= 0 and self._ended is None and self.mine():
                try:
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL, None, _PROCESS_GROUP)
                except OSError:  # not known here, no group yet, or nobody is left in it
                    pass

    def open_cgroup(self) -> dict[str, int]:
        """Descriptors by which one more process enters its cgroup; the caller's to close."""
        return {} if self.cgroup is None else cgroup_child.open_for_child(self.cgroup)

    def dup_pidfd(self) -> int:
        """A pidfd of the caller's own; no other thread can close it under its feet.

        Raises:
            StateError: it has ended.
        """
        launcher.check_owner(self._owner)
        with self._lock:
            if self.pidfd < 0 or self._ended is not None:
                raise StateError("it has ended", status="stopped")
            return os.dup(self.pidfd)

    def kill_and_wait(self, patience: float | None = None) -> Ended:
        """SIGKILL, and its end: within *patience* (5 s), but for who cannot be killed.

        Raises:
            StateError: status "stuck": a process in it sleeps in the kernel (state D, as on a
                file system whose server hangs). It ends, and its cgroup goes, when that lets go.
        """
        self.kill()
        ended = self.wait(_ABORT_DEADLINE_S if patience is None else patience)
        if ended is None:
            where = ", ".join(processes.stuck(self.pid)) if self._alive() else ""
            self._stuck = StateError("was killed and does not end: a process in it sleeps in the "
                                     f"kernel ({where or 'none that can be seen'})",
                                     status="stuck")  # fmt: skip
            raise self._stuck
        return ended

    def _alive(self) -> bool:
        """Whether its pid is still its own. One that was killed may not know it yet."""
        with self._lock:
            if self.pidfd < 0 or self._ended is not None:
                return False
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            return not poll.poll(0)

    @property
    def oom_fd(self) -> int:
        """Readable when memory ran out and the kernel will not end all of it by itself
        (cgroup v1): then call ``enforce_oom_group`` until it says True. -1: no need."""
        return self.cgroup.oom_fd if self.cgroup is not None else -1

    def enforce_oom_group(self) -> bool:
        """Kill the rest, once the OOM killer has taken one; the kernel notifies before it does."""
        if self._ended is not None or self.cgroup is None:
            return True
        if not self.cgroup.oom_kills():
            return False
        self.kill()
        return True

    def close(self) -> None:
        """Kill what still runs, wait for its end, undo in reverse; idempotent.

        Raises:
            StateError: see ``kill_and_wait``; what can be undone was.
        """
        with interrupts.Held(), self._lock:
            undo, self._undo = self._undo, _DONE
            try:
                if undo is not _DONE:
                    self._close(undo)
            except OSError:
                if self._stuck is None or self.cgroup is None:
                    raise
                _remove_later(self.cgroup)
            stuck, self._untold = self._stuck if self._untold else None, False
        if stuck is not None:
            raise stuck

    def _close(self, undo: ExitStack) -> None:
        """Its own end comes first, for what the others undo is what it stands on."""
        with undo:
            try:
                self.end()
            finally:
                try:
                    self.settle_changes()
                finally:
                    self.release()

    def end(self) -> None:
        """No process may outlive what it stands on."""
        if os.getpid() != self._owner:
            return
        self._know_pidfd()
        self._ending = True
        if self._ended is None and not self._lost:
            try:
                self._untold = self._stuck is None
                self.kill_and_wait(0.0 if self._stuck else None)
                self._untold = False
            except StateError:
                pass
        if self._lost and self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            poll.poll(_ABORT_DEADLINE_S * 1000)

    def take_upper(self, tree: int) -> None:
        """The upper directory of its overlay, which set-up hands over: locked while it is used.

        Raises OSError: another sandbox has it, and what both would see, nobody knows.
        """
        try:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        finally:
            os.close(tree)
        with self._lock:
            self._upper = fd
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def changes(self) -> tuple[Change, ...]:
        """What is not as it is in the layers below; of an overlay, until ``close()`` and after."""
        launcher.check_owner(self._owner)
        with self._lock:
            if self._upper >= 0:
                from nsbox import changes

                step = next(s for s in self.plan.steps if isinstance(s, HandOver))
                self._changes = changes.changes(self._upper, step.layers, step.made)
            return self._changes

    def settle_changes(self) -> None:
        """After its end: what changed, for the last time."""
        with self._lock:
            if self._upper >= 0:
                try:
                    if self._ended is not None and self.mine():
                        self.changes()
                except OSError:  # a layer was removed: nothing to compare with
                    from nsbox import changes

                    self._changes = (changes.Change("unreadable", "/"),)
                finally:
                    os.close(self._upper)
                    self._upper = -1

    def release(self) -> None:
        """Close the channel (which kills, if that was not done) and the pidfd."""
        with self._lock:
            while self.sockets:  # of a network that was not made
                os.close(self.sockets.popitem()[1])
            self._know_pidfd()
            self._released = True
            self._close_released()

    def take_terminal(self, end: socket.socket) -> None:
        """The master of its pty, which the child has sent. Whoever uses it takes it away from
        ``terminal``, and closes it."""
        fds: list[int] = []
        try:
            flags = _MSG_CMSG_CLOEXEC | _MSG_DONTWAIT
            _, ancillary, _, _ = end.recvmsg(256, 64, flags)
            fds = [int.from_bytes(data[:4], sys.byteorder) for _, _, data in ancillary]
        except OSError:
            pass
        if not fds:
            index = next(i for i, step in enumerate(self.plan.steps) if step.name == "pty")
            self.close()
            raise setup_error(self.plan, index, errno.EMFILE, "recvmsg")
        self.terminal = fds[0]

    def _know_pidfd(self) -> None:
        if self._starting is not None:
            self.pid, self.pidfd = self._starting.pid, self._starting.pidfd
            self._starting = None

    def _close_released(self) -> None:
        """Not while somebody polls them: their numbers would soon be somebody else's."""
        if self._released and not self._waiters:
            for fd in (self._channel, self.pidfd):
                if fd >= 0:
                    os.close(fd)
            self._channel = self.pidfd = -1
            if self.terminal >= 0:
                os.close(self.terminal)
                self.terminal = -1


def _remove_later(cgroup: Cgroup) -> None:
    """Who is in it cannot be killed now: try again until it can."""
    try:
        for directory in cgroup.directories.values():
            remove_tree(directory, time.monotonic())
    except OSError:
        watch.get().call_later(_AGAIN_S, functools.partial(_remove_later, cgroup))


# -------------------------------------------------------------------- spawn


def spawn(
    plan: Plan,
    descriptors: Mapping[Slot, int],
    *,
    parent: launcher.Launcher | None = None,
    inject: Injection = Injection(),  # noqa: B008  (immutable)
    patience: float = PATIENCE_S,
    lease: Callable[[], Lease] | None = None,
) -> Process:
    """Run a plan up to the payload's execve.

    Args:
        descriptors: for every slot in ``plan.passed`` but those of a cgroup or a pty that the
            plan makes; they stay the caller's.
        parent: the launcher; the current one when it is not given.
        inject: a step to fail, for tests.
        patience: seconds for set-up, where it happens among processes that can stop it.
        lease: gives it a place in a network, which is made while the child waits.

    Raises:
        SetupError: a step failed; everything was undone.
        CommandNotFound: the program is not there.
        Unavailable: no launcher, or no slot of ids.
    """
    if SOCKET in plan.passed and SOCKET not in descriptors:
        return _spawn_on_terminal(plan, descriptors, parent, inject, patience)
    for _ in range(2):  # it may have been killed while nobody looked
        parent = parent or launcher.current()
        try:
            return _spawn(plan, descriptors, parent, inject, patience, lease)
        except _LauncherGone:
            if parent.alive():  # it had no descriptor left even for the channel
                break
            launcher.forget(parent)
            parent = None
    raise setup_error(plan, plan.timeline_index(At.REQUEST), errno.EMFILE, "recvmsg")


def _spawn_on_terminal(
    plan: Plan,
    descriptors: Mapping[Slot, int],
    parent: launcher.Launcher | None,
    inject: Injection,
    patience: float,
) -> Process:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        descriptors = {**descriptors, SOCKET: theirs.fileno()}
        process = spawn(plan, descriptors, parent=parent, inject=inject, patience=patience)
        process.take_terminal(mine)
        return process


class _LauncherGone(Exception):
    """Nobody read the request."""


def _spawn(
    plan: Plan,
    descriptors: Mapping[Slot, int],
    parent: launcher.Launcher,
    inject: Injection,
    patience: float,
    lease: Callable[[], Lease] | None,
) -> Process:
    with ExitStack() as undo:
        with interrupts.Held():
            if debug.ON:
                _say_plan(plan)
            place = None if lease is None else lease()
            if place is not None:
                undo.callback(place.close)
            cgroup = _host_steps(plan, parent, undo, inject)
            id_slot = 0
            if plan.id_map is not None and plan.id_map.needs_slot():
                id_slot = registry.id_slots.take()
                undo.callback(registry.id_slots.give, id_slot)
            if plan.tree_steps:
                with ExitStack() as opened:
                    trees = _map_trees(plan, parent, descriptors, id_slot, opened, inject)
                    descriptors = {**descriptors, **trees}
                    channel = _submit(plan, parent, cgroup, descriptors, id_slot, inject)
            else:
                channel = _submit(plan, parent, cgroup, descriptors, id_slot, inject)
            process = Process(plan, channel)
            process.cgroup, process.inject, process.lease = cgroup, inject, place
            process._undo = undo.pop_all()
    deadline = process.started_at + patience if "pid" in plan.joined else None
    try:
        _await_start(process, deadline)
    except BaseException:
        process.close()
        raise
    return process


def _say_plan(plan: Plan) -> None:
    debug.say("spawn", " ".join(plan.args) or "no command")
    for index, step in plan.child_steps():
        debug.say("child", f"{index}: {step.name} {step.describe()}")


def _told(record: _core.Record) -> str:
    kind = Kind(record.kind)
    said = {
        Kind.FAILED: f"op {record.op}: {record.call}: {errno.errorcode.get(record.err)}",
        Kind.BARRIER: f"op {record.op}",
        Kind.EXITED: f"code {record.code} status {record.status}",
        Kind.ENDED: f"code {record.code} status {record.status}, {record.maxrss_kib} KiB, "
        f"{record.utime_us} us user, {record.stime_us} us system",
    }
    return f"{kind.name} pid {record.pid} {said.get(kind, '')}".rstrip()


def _host_steps(
    plan: Plan, parent: launcher.Launcher, undo: ExitStack, inject: Injection
) -> Cgroup | None:
    cgroup: Cgroup | None = None
    for index, step in plan.cgroup_steps:
        call = "mkdir" if isinstance(step, MakeCgroup) else "write"
        try:
            if index == inject.step:
                call = "injected"
                raise OSError(inject.err, "injected")
            if isinstance(step, MakeCgroup):
                where = parents()
                parent.register(tuple(where.of(name) for name in step.controllers))
                cgroup = Cgroup.make(parent.entry.name(), step.controllers, where)
                undo.callback(cgroup.close)
            elif cgroup is not None:
                cgroup.set(step.file, step.value)
            if debug.ON:
                debug.say("host", f"{index}: {step.name} {step.describe()}")
        except BrokenPipeError as e:
            raise _LauncherGone from e
        except OSError as e:
            error = setup_error(plan, index, e.errno or errno.EIO, call)
            error.hint = error.hint or getattr(e, "hint", "")
            raise error from e
    return cgroup


def _map_trees(
    plan: Plan,
    parent: launcher.Launcher,
    descriptors: Mapping[Slot, int],
    id_slot: int,
    opened: ExitStack,
    inject: Injection,
) -> dict[Slot, int]:
    """Id-mapped copies of host paths, closed again when they have been passed."""
    found: dict[Slot, int] = {}
    from nsbox import idmapped

    for index, step in plan.tree_steps:
        call = "open_tree"
        try:
            if index == inject.step:
                call = "injected"
                raise OSError(inject.err, "injected")
            first = _first_id(plan, descriptors, id_slot)
            found[step.slot] = idmapped.open_mapped(step, first, parent)
            opened.callback(os.close, found[step.slot])
        except NsboxError:
            raise
        except OSError as e:
            raise setup_error(plan, index, e.errno or errno.EIO, call) from e
    return found


def _first_id(plan: Plan, descriptors: Mapping[Slot, int], id_slot: int) -> int:
    """What id 0 inside is outside; of a pod that is joined, by its pause process's map."""
    joined = descriptors.get(Slot("pidfd", "join"))
    if plan.id_map is not None or joined is None:
        return registry.IdSlots.first_id(id_slot) if id_slot else 0
    with open(f"/proc/self/fdinfo/{joined}") as file:
        pid = next(line.split()[1] for line in file if line.startswith("Pid:"))
    with open(f"/proc/{pid}/uid_map") as file:
        return int(file.readline().split()[1])


def _submit(
    plan: Plan,
    parent: launcher.Launcher,
    cgroup: Cgroup | None,
    descriptors: Mapping[Slot, int],
    id_slot: int,
    inject: Injection,
) -> int:
    opened = cgroup_child.open_for_child(cgroup) if cgroup is not None else {}
    try:
        fds = [opened[str(slot.key)] if opened and slot.kind == "cgroup" else descriptors[slot]
               for slot in plan.passed]  # fmt: skip
        encoded = plan.encode(
            id_slot=registry.IdSlots.first_id(id_slot),
            cgroup_slot=plan.cgroup_slot,
            fail_at=inject.step if inject.step >= 0 else None,
            fail_errno=inject.err,
        )
        if debug.ON:
            debug.say("request", f"{len(encoded)} bytes, {len(fds)} descriptors")
        try:
            return parent.submit(encoded, fds)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise _LauncherGone from e
        except OSError as e:
            raise setup_error(plan, plan.timeline_index(At.REQUEST), e.errno or 0, "sendmsg") from e
    finally:
        for fd in opened.values():
            os.close(fd)


def _await_start(process: Process, deadline: float | None) -> None:
    """Serve barriers until the payload runs, or say why it does not."""
    plan = process.plan
    starting = process._starting = _core.Starting(process.fileno())
    try:
        if process.lease is not None:
            process.lease.prepare()
        while True:
            try:
                left = -1 if deadline is None else max(0, deadline - time.monotonic())
                with interrupts.Released():
                    record = starting.next(-1 if left < 0 else int(left * 1000) + 1)
            except InterruptedError:
                continue
            except TimeoutError as e:
                index = plan.timeline_index(At.CLONE)
                raise setup_error(plan, index, errno.ETIMEDOUT, "clone3") from e
            except OSError as e:
                process._lose()
                if not starting.pid:  # no record of any kind: nobody has run anything
                    raise _LauncherGone from e
                index = plan.timeline_index(At.REQUEST)
                raise setup_error(plan, index, e.errno or 0, "launcher") from e
            if debug.ON:
                debug.say("record", _told(record))
            if record.kind != Kind.BARRIER:
                break
            _serve_barrier(process, record, starting.take_tree())
    finally:
        process._know_pidfd()
    if record.kind == Kind.FAILED:
        raise setup_error(plan, plan.timeline_index(record.op), record.err, record.call)
    if record.kind == Kind.ENDED:
        process._note(record)
        how = "SIGKILL" if record.status == 9 else f"status {record.status}"
        error = setup_error(plan, plan.timeline_index(At.CLONE), errno.ECANCELED, "clone3")
        error.hint = f"the child was ended ({how}) while it was set up: too little memory?"
        raise error


def _serve_barrier(process: Process, record: _core.Record, handed: int) -> None:
    """hand-over: of a tree; network: of sockets, with which it is made. id-map: newuidmap and
    newgidmap write ranges that the caller alone may not."""
    plan = process.plan
    step = plan.id_map
    index = plan.timeline_index(record.op)
    at = plan.steps[index]
    if isinstance(at, HandOver):
        try:
            process.take_upper(handed)
        except OSError as e:
            busy = errno.EBUSY if e.errno == errno.EWOULDBLOCK else e.errno or errno.EIO
            raise setup_error(plan, index, busy, "flock") from e
        os.write(process.fileno(), b"g")
        return
    if isinstance(at, HandNetlink):
        _serve_network(process, index, at, record.pid, handed)
        os.write(process.fileno(), b"g")
        return
    if step is None:
        raise setup_error(plan, index, errno.EPROTO, "barrier")
    if plan.steps.index(step) == process.inject.step:
        raise setup_error(plan, process.inject.step, process.inject.err, "injected")
    error = _run_newidmaps(step, record.pid)
    if error:
        raise setup_error(plan, plan.steps.index(step), errno.EPERM, error)
    os.write(process.fileno(), b"g")


def _serve_network(process: Process, index: int, step: HandNetlink, pid: int, fd: int) -> None:
    """One socket after the other; with the last one comes the call."""
    process.sockets[step.protocol] = fd
    if index == process.inject.step:
        raise setup_error(process.plan, index, process.inject.err, "injected")
    if any(isinstance(later, HandNetlink) for later in process.plan.steps[index + 1 :]):
        return
    sockets, process.sockets = process.sockets, {}
    assert process.lease is not None
    try:
        process.lease.connect(pid, sockets)
    except NetworkError as e:
        error = setup_error(process.plan, index, e.errno or errno.EIO, "netlink")
        error.hint = str(e)
        raise error from e


def _run_newidmaps(step: IdMap, pid: int) -> str:
    """The name of the helper that failed, or "". Both run by the launcher, as its children."""
    from nsbox.compile import compile_helper

    for name, lines in (("newuidmap", step.uids), ("newgidmap", step.gids)):
        path = probe.helper(name)
        found = probe.subordinate_range(f"/etc/sub{name[3:6]}", os.geteuid())
        if path is None or found is None:
            return name
        words = [path, str(pid)]
        for inside, outside, count in lines:
            words += [str(inside), str(found[0] if outside is None else outside), str(count)]
        null = dev_null()
        helper = spawn(compile_helper(tuple(words)), {Slot("stdio", n): null for n in range(3)})
        try:
            ended = helper.wait(10)
        finally:
            helper.close()
        if ended is None or ended.returncode:
            return name
    return ""


@functools.lru_cache(maxsize=1)
def dev_null() -> int:
    """One open /dev/null of this process's."""
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


os.register_at_fork(after_in_child=dev_null.cache_clear)  # it may close what it has inherited
