# SPDX-License-Identifier: Apache-2.0
"""The plan: a timeline of steps, one value that is run, printed, fuzzed and made to fail."""

from __future__ import annotations

import errno
import functools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsbox.hoststeps import Clone3, IdMap, LauncherNet, MakeCgroup, MapTree, SetLimit
from nsbox.names import NAMESPACES, At, Clone, PlanFlag
from nsbox.slots import CGROUP2, JOIN, Pool, Slot, Slots
from nsbox.steps import Open, OpenNetlink, OpenPty, OpenTree, Setns, Unshare

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsbox.steps import ChildStep, Step

MAGIC = 0x3142534E
NONE = 0x7FFFFFFF
MAX_OPS, MAX_PASSED, MAX_SLOTS = 4096, 32, 160  # NSB_MAX_*
_HEADER = struct.Struct("<8IiIi3IQ")
_OP = struct.Struct("<HHIIIQQ")
_PLACES = {At.CLONE: Clone3, At.ID_MAP: IdMap, At.NET: LauncherNet}  # of failure, but for ops


def _kinds(flags: Iterable[Clone]) -> tuple[str, ...]:
    every = Clone(0)
    for some in flags:
        every |= some
    return tuple(kind for kind, flag in NAMESPACES.items() if flag in every)


@dataclass(frozen=True)
class Plan:
    """The steps of one spawn, in order, and what they act on.

    Attributes:
        steps: the timeline; a failure is reported by its index here.
        passed: the slots that go with the request, in the order of their numbers.
        args, env: of the payload; empty for a plan that ends in PAUSE.
        flags: PlanFlag.
        applied: measures of the profile, and how each is met; "missing: why" where it is not.
        enforcement: what the user's limits are enforced by.
    """

    steps: tuple[Step, ...]
    passed: tuple[Slot, ...]
    args: tuple[str, ...]
    env: tuple[str, ...]
    flags: PlanFlag
    applied: tuple[tuple[str, str], ...] = ()
    enforcement: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def clone(self) -> Clone3:
        return next(step for step in self.steps if isinstance(step, Clone3))

    @functools.cached_property
    def id_map(self) -> IdMap | None:
        return next((step for step in self.steps if isinstance(step, IdMap)), None)

    @functools.cached_property
    def cgroup_steps(self) -> tuple[tuple[int, MakeCgroup | SetLimit], ...]:
        """What is done before the request, by index in the timeline."""
        return tuple((i, step) for i, step in enumerate(self.steps)
                     if isinstance(step, (MakeCgroup, SetLimit)))  # fmt: skip

    @functools.cached_property
    def tree_steps(self) -> tuple[tuple[int, MapTree], ...]:
        """Trees that are mapped before the request, by index in the timeline."""
        return tuple((i, step) for i, step in enumerate(self.steps) if isinstance(step, MapTree))

    @functools.cached_property
    def cgroup_slot(self) -> int:
        """The number of the slot for CLONE_INTO_CGROUP; -1: none."""
        return self.passed.index(CGROUP2) if CGROUP2 in self.passed else -1

    @functools.cached_property
    def joined(self) -> tuple[str, ...]:
        """Kinds of namespaces that are entered, of a process in slot ("pidfd", "join")."""
        return _kinds(s.flags for s in self.steps if isinstance(s, Setns) and s.slot == JOIN)

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of namespaces that are not the launcher's: made, or entered."""
        return _kinds(s.flags for s in self.steps if isinstance(s, (Clone3, Setns, Unshare)))

    @property
    def joins(self) -> int:
        """How many child steps come before clone3: they run in a joiner."""
        clone = self.steps.index(self.clone)
        return sum(step.who == "child" for step in self.steps[:clone])

    def child_steps(self) -> list[tuple[int, ChildStep]]:
        """The child's steps with their index in the timeline; the op index is the position."""
        return [(i, step) for i, step in enumerate(self.steps) if step.who == "child"]  # type: ignore[misc]

    def timeline_index(self, op: int) -> int:
        """The step that a record's ``op`` is about."""
        if op in (At.REQUEST, At.NOWHERE):
            return self.steps.index(self.clone)
        for place, kind in _PLACES.items():
            if op == place:
                return next(i for i, step in enumerate(self.steps) if isinstance(step, kind))
        return self.child_steps()[op][0]

    def op_index(self, step: int) -> int:
        """The op, or place, at which the child or the launcher fails when *step* is to fail."""
        for place, kind in _PLACES.items():
            if isinstance(self.steps[step], kind):
                return place
        return next((n for n, (i, _) in enumerate(self.child_steps()) if i == step), NONE)

    def _slots(self) -> Slots:
        slots = {slot: number for number, slot in enumerate(self.passed)}
        for step in self.steps:
            if isinstance(step, (Open, OpenTree, OpenNetlink)):
                slots.setdefault(step.slot, len(slots))
            elif isinstance(step, OpenPty):
                slots.setdefault(step.slave, len(slots))
        return slots

    def encode(
        self,
        *,
        id_slot: int = 0,
        cgroup_slot: int = -1,
        fail_at: int | None = None,
        fail_errno: int = errno.EIO,
    ) -> bytes:
        """The bytes that csrc/plan.c checks and csrc/steps.c interprets; the last are kept."""
        key = (id_slot, cgroup_slot, fail_at, fail_errno)
        last: tuple[object, bytes] = self.__dict__.get("_encoded", (None, b""))
        if last[0] != key:
            last = (key, self._encode(*key))
            self.__dict__["_encoded"] = last
        return last[1]

    def _encode(
        self, id_slot: int, cgroup_slot: int, fail_at: int | None, fail_errno: int
    ) -> bytes:
        child = [step for step in self.steps if step.who == "child"]
        start = _HEADER.size + _OP.size * len(child)
        pool, slots = Pool(start), self._slots()
        pool.raw(bytes(8))  # no string at the offset that could be mistaken for "none"
        ops = bytearray()
        for step in child:
            op = step.encode(pool, slots)  # type: ignore[union-attr]
            ops += _OP.pack(step.opcode, op.flags, op.a, op.b, op.c, op.n, op.m)  # type: ignore[union-attr]
        id_map, flags = self.id_map, self.flags
        uid_map = gid_map = 0
        if id_map is not None and id_map.by != "newuidmap":
            uid_map = pool.text(id_map.text(id_map.uids, id_slot))
            gid_map = pool.text(id_map.text(id_map.gids, id_slot))
        argv, envp = pool.vector(self.args), pool.vector(self.env)
        pool.raw(b"\0")
        header = _HEADER.pack(
            MAGIC,
            start + len(pool.data),
            len(child),
            self.joins,
            len(self.passed),
            flags,
            uid_map,
            gid_map,
            cgroup_slot,
            NONE if fail_at is None else self.op_index(fail_at),
            fail_errno,
            argv,
            envp,
            0,
            self.clone.flags,
        )
        return header + bytes(ops) + bytes(pool.data)

    def __str__(self) -> str:
        """The timeline as ``explain()`` prints it."""
        rows = [("#", "who", "step", "detail", "from")]
        for i, step in enumerate(self.steps):
            rows.append((str(i), step.who, step.name, step.describe(), step.source))
        widths = [max(len(row[col]) for row in rows) for col in range(4)]
        widths[3] = min(widths[3], 60)
        return "\n".join(
            f"{n:>3}  {who:<5}  {name:<{widths[2]}}  {detail:<{widths[3]}}  {source}".rstrip()
            for n, who, name, detail, source in rows
        )
