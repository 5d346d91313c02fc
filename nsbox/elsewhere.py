# SPDX-License-Identifier: Apache-2.0
"""One more process in a sandbox of another process's: ``Container.exec`` without the Container.

What the owner wrote in its note stands for the ``Process`` and the ``Spec``; the sandbox itself
is held by a pidfd that was checked. See enter.py for how it is entered.
"""

from __future__ import annotations

import io
import os
import pickle
import select
from typing import TYPE_CHECKING, Any

from nsbox import enter, spec
from nsbox.cgroup_child import open_places
from nsbox.errors import StateError, Unavailable
from nsbox.names import PlanFlag
from nsbox.plan import Plan
from nsbox.process import Ended, Process
from nsbox.spec import Spec
from nsbox.steps import Slot

if TYPE_CHECKING:
    from nsbox.popen import Popen
    from nsbox.sandboxes import Sandbox


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
        StateError: it has ended.
        Unavailable: its owner wrote nothing down; it alone can enter it.
    """
    if "spec" not in sandbox.noted:
        who = f"sandbox {sandbox.pid} is of process {sandbox.owner}, which alone can enter it"
        raise Unavailable("exec", f"{who}: it was started by neither `nsbox run` nor a Container")
    base = read_spec(str(sandbox.noted["spec"]))
    pidfd = sandbox.open()
    try:
        target = Foreign(sandbox, pidfd)
        return enter.popen(target, base, str(sandbox.noted["id_map"]), args, keywords)
    finally:
        os.close(pidfd)
