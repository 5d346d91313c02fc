# SPDX-License-Identifier: Apache-2.0
"""A payload that was started, see ``nsbox.spawn``: how it ends, and what ends with it."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import select
import signal
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
    processes,
    thaw,
    watch,
)
from nsbox.blame import setup_error
from nsbox.cgroupfs import remove_tree
from nsbox.errors import StateError
from nsbox.names import Clone, Kind, PlanFlag
from nsbox.steps import HandOver, HandRoom

if TYPE_CHECKING:
    import socket

    from nsbox.cgroup import Cgroup
    from nsbox.changes import Change
    from nsbox.identity import Identity
    from nsbox.plan import Plan
    from nsbox.steps import Netlink
    from nsbox.usage import Tally

_CLD_EXITED = 1
_REAP_S = 0.05
_ABORT_DEADLINE_S = 5.0
_PF_EXITING = 4  # of the flags in proc_pid_stat(5)
_PROCESS_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9; older kernels answer EINVAL
_AGAIN_S = 0.5
_EXECVE_S = 1.0
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


def open_namespace(pid: int, kind: str) -> int:
    """A descriptor of the namespace that process *pid* is in. Raises OSError.

    Whoever has rights over a process for its user namespace alone may not look at one that has
    not all of its new memory yet: execve(2) closes descriptors, by which others see that it
    succeeded, before it says that the memory is dumpable. Nothing tells when it has.
    """
    deadline = 0.0
    while True:
        try:
            return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            now = time.monotonic()
            deadline = deadline or now + _EXECVE_S
            if now > deadline:
                raise
            time.sleep(0.0002)


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
        self.identity: Identity | None = None
        self.join_map = ""
        self.sockets: dict[Netlink, int] = {}
        self.started_at = time.monotonic()
        self.ended_at = 0.0
        self.stats: Tally | None = None
        self.cpu_limit: float | None = None
        self.used_up: tuple[str, ...] = ()  # "disk", "inodes"
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
        self._room = self._upper = -1
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
        with self._lock, interrupts.Held():  # a record that is lost does not come again
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
                if fd >= 0 and record.kind in (Kind.BARRIER, Kind.ROOM):  # of a set-up given up
                    os.close(fd)
                elif fd >= 0:  # of a spawn that failed before the launcher told who it was
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
            debug.say("record", describe(record))
        if record.kind == Kind.EXITED:
            self._payload = record
        elif record.kind == Kind.ENDED:
            told = self._payload or record
            code = told.status if told.code == _CLD_EXITED else -told.status
            self.ended_at = time.monotonic()
            self._look_at_room()
            if self.cgroup is not None:
                self.stats = cgroup_child.tally(self.cgroup)
            user, system = record.utime_us / 1e6, record.stime_us / 1e6
            peak = record.maxrss_kib << 10
            if self._before is not None and sum(self._before[:2]) > user + system:
                user, system = self._before[:2]
            if self._before is not None:
                peak = max(peak, self._before.maxrss)
            self._ended = Ended(code, user, system, peak, record.inblock << 9, record.oublock << 9)

    def take_room(self, directory: int) -> None:
        """Of the file system that its limits are of, see ``HandRoom``."""
        with self._lock:
            self._room = directory

    def _look_at_room(self) -> None:
        """Before the file system goes with its last descriptor: what of it is used up?"""
        fd, self._room = self._room, -1
        if fd < 0:
            return
        try:
            status = os.fstatvfs(fd)
        finally:
            os.close(fd)
        left = {"disk": status.f_bfree, "inodes": status.f_ffree}
        for step in self.plan.steps:
            if isinstance(step, HandRoom):
                self.used_up = tuple(limit for limit in step.limits if not left[limit])

    def _lose(self) -> None:
        """Nobody is left to report: the kernel ends the child by its parent-death signal, and
        this ends one that cleared that."""
        self._lost = True
        self.ended_at = time.monotonic()
        self.kill()

    def open_namespace(self, kind: str) -> int:
        """A descriptor of one that it is in: by its number, which is its own until it is reaped."""
        return open_namespace(self.pid, kind)

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
            self._let_reap(tree)
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

    def _let_reap(self, tree: list[int]) -> None:
        """A payload that has just ended is about to be told of by nsbox-init, its first parent:
        only who reaps it learns how much memory it had."""
        deadline = time.monotonic() + _REAP_S
        while PlanFlag.INIT in self.plan.flags and len(tree) > 1 and time.monotonic() < deadline:
            stat = processes.read_stat(tree[1])
            if stat is None or stat.state != "Z":
                return
            time.sleep(0.001)

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
        if self._ended is not None or os.getpid() != self._owner:
            return
        self._know_pidfd()
        self._ending = True
        if not self._lost:
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
            self._look_at_room()
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

    def keep(self, who: Identity) -> None:
        """Who it is, until it has ended."""
        self.identity = who
        self._undo.callback(who.close)

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


def describe(record: _core.Record) -> str:
    """For the debug log."""
    kind = Kind(record.kind)
    said = {
        Kind.FAILED: f"op {record.op}: {record.call}: {errno.errorcode.get(record.err)}",
        Kind.BARRIER: f"op {record.op}",
        Kind.EXITED: f"code {record.code} status {record.status}",
        Kind.ENDED: f"code {record.code} status {record.status}, {record.maxrss_kib} KiB, "
        f"{record.utime_us} us user, {record.stime_us} us system",
    }
    return f"{kind.name} pid {record.pid} {said.get(kind, '')}".rstrip()


@functools.lru_cache(maxsize=1)
def dev_null() -> int:
    """One open /dev/null of this process's."""
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


os.register_at_fork(after_in_child=dev_null.cache_clear)  # it may close what it has inherited
