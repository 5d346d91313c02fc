# SPDX-License-Identifier: Apache-2.0
"""One more process in a sandbox that runs: what ``Container.exec`` starts.

    launcher                joiner                              child
       | clone3 -------------> |                                  |
       |                       | oom_score_adj, descriptors       |
       |                       | setns: all but cgroup and time   |
       |                       | clone3 (sibling) --------------> | tasks <- 0, setns, root, cwd
       | <-- exits ----------- |                                  | capabilities, ids, execve

The child is the first that a process of the sandbox can see. It is not dumpable, and its memory
belongs to the launcher's user namespace, so no capability inside allows to look into it; and it
shares no memory with the launcher, so that who stops or kills it does that to nobody else.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nsbox import probe, units
from nsbox.checks import known_keywords
from nsbox.compile import compile_exec
from nsbox.converse import as_bytes, finish
from nsbox.devices import PTS
from nsbox.errors import CommandNotFound, SetupError, StateError, TimeoutExpired
from nsbox.keywords import another_process
from nsbox.popen import Popen
from nsbox.process import Injection, Process
from nsbox.slots import JOIN, Slot
from nsbox.spawn import PATIENCE_S, spawn
from nsbox.streams import wanted_streams

if TYPE_CHECKING:
    from nsbox.plan import Plan
    from nsbox.result import Completed
    from nsbox.spec import Spec
    from nsbox.streams import Stdio

_MOST_PLANS = 64
_OF_PROC = {"root": ("root", os.O_PATH), "nsfd": ("ns/time", os.O_RDONLY)}
#: A sandbox that dies under a joiner: its pid namespace takes nobody any more, or it is gone.
_ENDING = (errno.ESRCH, errno.ENOMEM, errno.ENOENT, errno.ECANCELED, errno.ENODEV, errno.EINVAL)


def _plan(target: Process, base: Spec, spec: Spec, id_map: str) -> Plan:
    """Compiled once for commands that come again; kept with the sandbox's own plan."""
    host = probe.host()
    terminals = spec.pty is not None and _has_terminals(target.pid)
    known: dict[object, Plan] = target.plan.__dict__.setdefault("_entered", {})
    key = (spec, id_map, host, terminals)
    plan = known.get(key)
    if plan is None:
        plan = compile_exec(base, spec, host, target.plan, id_map, terminals=terminals)
        if len(known) >= _MOST_PLANS:
            known.clear()
        known[key] = plan
    return plan


def _devpts(pid: int | str) -> dict[str, str]:
    """Mount point -> device number, of what is a devpts or over one; proc_pid_mountinfo(5)."""
    found = {}
    with open(f"/proc/{pid}/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            device, _, point = before.split(" ")[2:5]
            found[point] = device if after.startswith("devpts ") else ""
    return {point: device for point, device in found.items() if device}


def _has_terminals(pid: int) -> bool:
    """Whether a sandbox has a devpts of its own, from its start or since an earlier ``exec``.

    One that inherits the caller's root has the caller's in sight. Two who make one at once: the
    second covers the first, whose terminals go on, without a name.
    """
    try:
        return _devpts(pid).get(PTS, "") not in {"", *_devpts("self").values()}
    except OSError:  # it has ended, which will be told
        return False


def _descriptors(target: Process, undo: ExitStack, pidfd: int) -> dict[Slot, int]:
    """What the plan names, but for the standard streams; closed by *undo*."""
    found = {JOIN: pidfd}
    for name, fd in target.open_cgroup().items():
        undo.callback(os.close, fd)
        found[Slot("cgroup", name)] = fd
    return found


def enter(
    target: Process,
    base: Spec,
    spec: Spec,
    id_map: str,
    stdio: Stdio,
    patience: float | None = None,
    inject: Injection = Injection(),  # noqa: B008  (immutable)
) -> Process:
    """Start the process that *spec* says in the sandbox of *target*.

    Args:
        base: the sandbox's own spec.
        id_map: of its user namespace, see ``Build.id_map``.
        patience: seconds; the default when None.
        inject: a step to fail, for tests.

    Raises:
        StateError: the sandbox has ended, or is ending.
        SetupError: a step failed.
    """
    plan = _plan(target, base, spec, id_map)
    with ExitStack() as undo:
        undo.callback(stdio.close_theirs)
        pidfd = target.dup_pidfd()
        undo.callback(os.close, pidfd)
        try:
            descriptors = _descriptors(target, undo, pidfd)
            for slot in plan.passed:
                if slot.kind in _OF_PROC:
                    name, how = _OF_PROC[slot.kind]
                    fd = os.open(f"/proc/{target.pid}/{name}", how | os.O_CLOEXEC)
                    undo.callback(os.close, fd)
                    descriptors[slot] = fd
            descriptors.update((Slot("stdio", n), fd) for n, fd in stdio.theirs.items())
            limit = PATIENCE_S if patience is None else patience
            return spawn(plan, descriptors, inject=inject, patience=limit)
        except OSError as e:
            ending = e.errno in _ENDING and not isinstance(e, CommandNotFound)
            if ending and _has_ended(target):
                raise StateError("the sandbox has ended", status="stopped") from e
            raise


def _has_ended(target: Process) -> bool:
    try:
        return target.wait(0.2) is not None
    except StateError:  # lost with its launcher
        return True


def execute(
    target: Process, base: Spec, id_map: str, args: Any, keywords: dict[str, Any]
) -> Completed:
    """The body of ``Container.exec``."""
    known_keywords("exec", keywords, _execute)
    return _execute(target, base, id_map, args, **keywords)


def _execute(
    target: Process,
    base: Spec,
    id_map: str,
    args: Any,
    *,
    user: int | str | None = None,
    env: Any = None,
    cwd: Any = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    input: Any = None,
    capture_output: bool = False,
    text: bool = False,
    timeout: float | None = None,
    check: bool = False,
    pty: Any = False,
) -> Completed:
    streams = wanted_streams(stdin, stdout, stderr, input, capture_output)
    if timeout is not None:
        units.seconds(timeout, "timeout", zero=True)
    spec = another_process(base, args, user=user, env=env, cwd=cwd, pty=pty)
    try:
        return finish(
            spec,
            streams,
            lambda stdio: enter(target, base, spec, id_map, stdio, timeout),
            data=as_bytes(input),
            text=text,
            check=check,
            timeout=timeout,
        )
    except SetupError as e:
        if e.errno == errno.ETIMEDOUT and timeout is not None:
            raise TimeoutExpired(spec.args, timeout) from e
        raise


def popen(target: Process, base: Spec, id_map: str, args: Any, keywords: dict[str, Any]) -> Popen:
    """The body of ``Container.popen``."""
    known_keywords("popen", keywords, another_process, Popen._of)
    own = {name: keywords.pop(name) for name in ("user", "env", "cwd", "pty") if name in keywords}
    spec = another_process(base, args, **own)
    return Popen._of(spec, lambda stdio: enter(target, base, spec, id_map, stdio), **keywords)
