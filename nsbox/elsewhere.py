# SPDX-License-Identifier: Apache-2.0
"""A sandbox of another process's: ``Container.exec`` and its log, without the Container.

What the owner wrote in its note stands for the ``Process`` and the ``Spec``; the sandbox itself
is held by a pidfd that was checked. See enter.py for how it is entered, ring.py for the log.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import select
import stat
import time
from typing import TYPE_CHECKING, Any

from nsbox import enter, freezer, logs, ring, spec
from nsbox.cgroup_child import open_places
from nsbox.errors import StateError, Unavailable
from nsbox.names import PlanFlag
from nsbox.plan import Plan
from nsbox.process import Ended, Process
from nsbox.slots import Slot
from nsbox.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsbox.popen import Popen
    from nsbox.ring import View
    from nsbox.sandboxes import Sandbox

#: How long after a sandbox's end its owner may take to say that its log has ended.
_LAST_WORD_S = 5.0


class _SpecReader(pickle.Unpickler):
    """Makes specs and their parts, and calls nothing else: a note is a file, not a program."""

    def find_class(self, module: str, name: str) -> Any:
        known = getattr(spec, name, None)
        if module == "nsbox.spec" and isinstance(known, type) and known.__module__ == module:
            return known
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a spec")


def read_spec(text: str) -> Spec:
    """What a note says. Raises StateError when that is anything else."""
    try:
        found = _SpecReader(io.BytesIO(bytes.fromhex(text))).load()
    except Exception as e:  # whatever unpickling of something else comes to
        raise StateError(f"a note of a sandbox is damaged: {e}", status="damaged") from e
    if not isinstance(found, Spec):
        raise StateError("a note of a sandbox is damaged: it has no spec", status="damaged")
    return found


def _places(keys: list[str], sandbox: Sandbox) -> dict[str, str]:
    """The directories of a sandbox's cgroups, by which a child enters them."""
    hidden = [key for key in keys if key not in sandbox.cgroups]
    if hidden:  # its limits are the sandbox's: they are not to be left out
        raise StateError(f"the cgroup of sandbox {sandbox.pid} ({', '.join(hidden)}) cannot "
                         "be seen from here", status="hidden")  # fmt: skip
    return {key: sandbox.cgroups[key] for key in keys}


def _is_paused(sandbox: Sandbox) -> bool:
    """Whether its owner has stopped it. The cgroup in which that is done may be one that only its
    own processes are in, made for it (see freezer.py): who enters the others would go on."""
    names = {"v2": "unified", "freezer": "freezer"}
    return any(freezer.is_frozen({names[name]: place}, 1)
               for name, place in sandbox.cgroups.items() if name in names)  # fmt: skip


class Foreign(Process):
    """A sandbox that another process owns: to be entered, never to be ended by ``close``."""

    def __init__(self, sandbox: Sandbox, pidfd: int) -> None:
        noted = sandbox.noted
        keys = [str(key) for key in noted["cgroups"]]
        plan = Plan(
            steps=(),
            passed=tuple(Slot("cgroup", key) for key in keys),
            args=(),
            env=(),
            flags=PlanFlag(0),
            applied=(),
            enforcement=tuple((str(k), str(v)) for k, v in noted["enforcement"].items()),
        )
        plan.__dict__["kinds"] = tuple(str(kind) for kind in noted["kinds"])  # as its owner had it
        super().__init__(plan, -1)
        self.pid, self.pidfd = sandbox.pid, pidfd
        self._places = _places(keys, sandbox)

    def open_cgroup(self) -> dict[str, int]:
        return open_places(self._places)

    def wait(self, timeout: float | None = None) -> Ended | None:
        """Whether it has ended; how, only its owner is told."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            return None
        return Ended(0, 0.0, 0.0, 0, 0, 0)


def popen(sandbox: Sandbox, args: Any, **keywords: Any) -> Popen:
    """As ``Container.popen``: with *user*, *env*, *cwd*, *pty*, the streams, *text*.

    Raises:
        StateError: it has ended, or is paused.
        Unavailable: its owner wrote nothing down; it alone can enter it.
    """
    if "spec" not in sandbox.noted:
        who = f"sandbox {sandbox.pid} is of process {sandbox.owner}, which alone can enter it"
        raise Unavailable("exec", f"{who}: it was started by neither `nsbox run` nor a Container")
    base = read_spec(str(sandbox.noted["spec"]))
    if _is_paused(sandbox):
        who = f"sandbox {sandbox.name or sandbox.pid}"
        raise StateError(f"{who} is paused: cannot exec", status="paused")
    pidfd = sandbox.open()
    try:
        target = Foreign(sandbox, pidfd)
        return enter.popen(target, base, str(sandbox.noted["id_map"]), args, keywords)
    finally:
        os.close(pidfd)


# -- its log ----------------------------------------------------------------------------------


def _open_log(sandbox: Sandbox) -> int:
    """A descriptor of its ring. Nothing but that is opened: a number of the owner's may stand
    for a device or a FIFO by now."""
    place = sandbox.noted.get("log")
    if not place:
        raise Unavailable("logs", f"the output of sandbox {sandbox.pid} is not kept: it goes to "
                          f"process {sandbox.owner}, or to whom that says")  # fmt: skip
    number, inode = map(int, place)
    path = f"/proc/{sandbox.owner}/fd/{number}"
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode) or status.st_ino != inode:
                raise FileNotFoundError
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
    except FileNotFoundError:
        raise StateError(f"sandbox {sandbox.pid} has ended", status="stopped") from None
    except PermissionError as e:
        raise Unavailable(
            "logs", f"process {sandbox.owner}, which has it, may not be looked into: it is not "
            "dumpable, or has capabilities that you lack", hint="ask as root", err=e.errno or 0,
        ) from e  # fmt: skip


def read_log(sandbox: Sandbox) -> View:
    """What its owner's ``Container.logs()`` would be made of.

    Raises:
        StateError: it has ended.
        Unavailable: its output is not kept, or its owner may not be looked into.
    """
    fd = _open_log(sandbox)
    try:
        return ring.look(fd)
    finally:
        os.close(fd)


def follow_log(sandbox: Sandbox) -> Iterator[View]:
    """``read_log()``, and then whatever comes, until it has ended."""
    with contextlib.ExitStack() as opened:
        log = _open_log(sandbox)
        opened.callback(os.close, log)
        pidfd = sandbox.open()
        opened.callback(os.close, pidfd)
        owner = os.pidfd_open(sandbox.owner)
        opened.callback(os.close, owner)
        yield from _follow(log, pidfd, owner)


def _follow(fd: int, pidfd: int, owner: int) -> Iterator[View]:
    """Output comes after the end of who wrote it, too: its owner says when that was all, unless
    it has ended itself, or has become another program."""
    poll = select.poll()
    for one in (pidfd, owner):
        poll.register(one, select.POLLIN)
    at, deadline, over = 0, float("inf"), False
    while True:
        view = ring.look(fd, at)
        at = view.end
        yield view
        if view.ended or over:
            return
        ready = dict(poll.poll(logs.POLL_S * 1000))
        if pidfd in ready:
            poll.unregister(pidfd)
            deadline = time.monotonic() + _LAST_WORD_S
        over = owner in ready or time.monotonic() > deadline
