# SPDX-License-Identifier: Apache-2.0
"""The one interpreter of plans on the owner's side: host steps with their undo, the request, the
records, up to the payload's execve."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from nsbox import _core, cgroup_child, debug, interrupts, launcher, probe, registry
from nsbox.blame import setup_error
from nsbox.cgroup import Cgroup
from nsbox.devices import SOCKET
from nsbox.errors import NetworkError, NsboxError
from nsbox.hierarchy import parents
from nsbox.hoststeps import IdMap, MakeCgroup, SetLimit
from nsbox.names import At, Kind
from nsbox.process import Injection, Lease, Process, describe, dev_null
from nsbox.slots import Slot
from nsbox.steps import HandNetlink, HandOver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nsbox.plan import Plan

_T = TypeVar("_T")

#: How long a record may be waited for when others can stop (SIGSTOP) what is being set up.
PATIENCE_S = 10.0


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
        if cgroup is not None:
            with interrupts.Held():
                _late_host_steps(plan, cgroup, inject)
        _await_start(process, deadline)
    except BaseException:
        process.close()
        raise
    return process


def _say_plan(plan: Plan) -> None:
    debug.say("spawn", " ".join(plan.args) or "no command")
    for index, step in plan.child_steps():
        debug.say("child", f"{index}: {step.name} {step.describe()}")


def _host_steps(
    plan: Plan, parent: launcher.Launcher, undo: ExitStack, inject: Injection
) -> Cgroup | None:
    """All but those that can wait."""
    cgroup: Cgroup | None = None
    for index, step in plan.cgroup_steps:
        if isinstance(step, MakeCgroup):
            cgroup = _host_step(plan, index, inject, "mkdir", _make_cgroup, step, parent)
            undo.callback(cgroup.close)
        elif cgroup is not None and not _can_wait(step, cgroup):
            _host_step(plan, index, inject, "write", cgroup.set, step.file, step.value)
    return cgroup


def _late_host_steps(plan: Plan, cgroup: Cgroup, inject: Injection) -> None:
    """While the child is being made, and there is nothing else to do."""
    for index, step in plan.cgroup_steps:
        if isinstance(step, SetLimit) and _can_wait(step, cgroup):
            _host_step(plan, index, inject, "write", cgroup.set, step.file, step.value)


def _can_wait(step: SetLimit, cgroup: Cgroup) -> bool:
    """v1 has no such file: it is kept from here, and counts what was before."""
    return step.file == "memory.oom.group" and cgroup.version == 1


def _make_cgroup(step: MakeCgroup, parent: launcher.Launcher) -> Cgroup:
    where = parents()
    parent.register(tuple(where.of(name) for name in step.controllers))
    return Cgroup.make(parent.entry.name(), step.controllers, where)


def _host_step(
    plan: Plan, index: int, inject: Injection, call: str, work: Callable[..., _T], *args: Any
) -> _T:
    """What goes wrong with *work* is told as that of the step."""
    try:
        if index == inject.step:
            call = "injected"
            raise OSError(inject.err, "injected")
        done = work(*args)
    except BrokenPipeError as e:
        raise _LauncherGone from e
    except OSError as e:
        error = setup_error(plan, index, e.errno or errno.EIO, call)
        error.hint = error.hint or getattr(e, "hint", "")
        raise error from e
    if debug.ON:
        step = plan.steps[index]
        debug.say("host", f"{index}: {step.name} {step.describe()}")
    return done


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
                debug.say("record", describe(record))
            if record.kind != Kind.BARRIER:
                break
            _serve_barrier(process, record, starting.take_tree())
    finally:
        process._know_pidfd()
        if (room := starting.take_room()) >= 0:
            process.take_room(room)
        if (untaken := starting.take_tree()) >= 0:  # of a barrier that was interrupted
            os.close(untaken)
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
