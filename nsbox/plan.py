# SPDX-License-Identifier: Apache-2.0
"""The plan: a timeline of steps, one value that is run, printed, fuzzed and made to fail.

Host steps are done by Python or the launcher and know their undo. Child steps are ops for
the interpreter in csrc/steps.c, encoded as csrc/nsb.h says.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from nsbox.names import (
    CAPABILITIES,
    RLIM_INFINITY,
    At,
    Clone,
    MountAttr,
    Opcode,
    OpFlag,
    PlanFlag,
    Propagation,
)
from nsbox.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAGIC = 0x3142534E
NONE = 0x7FFFFFFF
MAX_OPS, MAX_PASSED, MAX_SLOTS = 4096, 32, 160  # NSB_MAX_*
_HEADER = struct.Struct("<8IiIi3IQ")
_OP = struct.Struct("<HHIIIQQ")


class Slot(NamedTuple):
    """A descriptor that the plan names: passed with the request, or opened by a step.

    *kind* is ``"stdio"``, ``"pass"``, ``"cgroup"``, ``"pidfd"``, ``"mntns"`` or ``"tree"``;
    only trees are opened by steps.
    """

    kind: str
    key: str | int


class Pool:
    """The strings and bytes of a plan, each at an offset from the plan's first byte."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.data = bytearray()
        self._known: dict[bytes, int] = {}

    def raw(self, value: bytes) -> int:
        offset = self.start + len(self.data)
        self.data += value
        return offset

    def text(self, value: str) -> int:
        raw = value.encode("utf-8", "surrogateescape") + b"\0"
        offset = self._known.get(raw)
        if offset is None:
            offset = self._known[raw] = self.raw(raw)
        return offset

    def options(self, options: Sequence[tuple[str, str]]) -> int:
        """Pairs for fsconfig(2); a flag has the value "!"."""
        if not options:
            return 0
        raw = b"".join(
            key.encode() + b"\0" + (b"!" if value == "!" else b"=" + value.encode()) + b"\0"
            for key, value in options
        )
        return self.raw(raw + b"\0")

    def vector(self, strings: Iterable[str]) -> int:
        offsets = [self.text(value) for value in strings]
        self.data += bytes(-(self.start + len(self.data)) % 8)
        return self.raw(struct.pack(f"<{len(offsets) + 1}Q", *offsets, 0))


class Op(NamedTuple):
    """``struct nsb_op`` but for its code."""

    a: int = 0
    b: int = 0
    c: int = 0
    n: int = 0
    m: int = 0
    flags: int = 0


Slots = dict[Slot, int]


# ------------------------------------------------------------------ host steps


@dataclass(frozen=True, slots=True)
class MakeCgroup:
    """A cgroup in each hierarchy that has a controller to be used."""

    controllers: tuple[str, ...]
    source: str
    who: ClassVar[str] = "host"
    name: ClassVar[str] = "cgroup"

    def describe(self) -> str:
        return f"mkdir, for {', '.join(self.controllers)}"


@dataclass(frozen=True, slots=True)
class SetLimit:
    """One limit of the cgroup, in the names of cgroup v2."""

    file: str
    value: str
    source: str
    who: ClassVar[str] = "host"
    name: ClassVar[str] = "limit"

    def describe(self) -> str:
        return f"{self.file}={self.value}"


@dataclass(frozen=True, slots=True)
class Clone3:
    flags: Clone
    into_cgroup: bool
    source: str
    who: ClassVar[str] = "host"
    name: ClassVar[str] = "clone3"

    def describe(self) -> str:
        names = [str(flag.name) for flag in Clone if flag in self.flags]
        return "|".join(names + ["INTO_CGROUP"] * self.into_cgroup) or "no namespaces"


@dataclass(frozen=True, slots=True)
class IdMap:
    """How ids inside map to ids outside: (inside, outside, count); *outside* None: a slot's first.

    *by* is who writes it: "launcher", or "newuidmap" at a barrier.
    """

    uids: tuple[tuple[int, int | None, int], ...]
    gids: tuple[tuple[int, int | None, int], ...]
    by: str
    source: str
    who: ClassVar[str] = "host"
    name: ClassVar[str] = "id-map"

    def describe(self) -> str:
        def show(kind: str, lines: tuple[tuple[int, int | None, int], ...]) -> str:
            return ", ".join(
                f"{kind} {inside} {'<slot>' if outside is None else outside} {count}"
                for inside, outside, count in lines
            )

        return f"{show('uid', self.uids)}; {show('gid', self.gids)}"

    def needs_slot(self) -> bool:
        return self.by == "launcher" and any(outside is None for _, outside, _ in self.uids)

    def text(self, lines: tuple[tuple[int, int | None, int], ...], slot: int) -> str:
        return "".join(
            f"{inside} {slot if outside is None else outside} {count}\n"
            for inside, outside, count in lines
        )


HostStep = MakeCgroup | SetLimit | Clone3 | IdMap

# ------------------------------------------------------------------ child steps


@dataclass(frozen=True, slots=True)
class Setns:
    slot: Slot
    flags: Clone
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "setns"
    opcode: ClassVar[Opcode] = Opcode.SETNS

    def describe(self) -> str:
        names = "|".join(str(f.name) for f in Clone if f in self.flags)
        return f"{names} of {self.slot.kind} {self.slot.key}"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot], n=int(self.flags))


@dataclass(frozen=True, slots=True)
class Unshare:
    flags: Clone
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "unshare"
    opcode: ClassVar[Opcode] = Opcode.UNSHARE

    def describe(self) -> str:
        return "|".join(str(f.name) for f in Clone if f in self.flags)

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(n=int(self.flags))


@dataclass(frozen=True, slots=True)
class EnterCgroup:
    slot: Slot
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "cgroup"
    opcode: ClassVar[Opcode] = Opcode.CGROUP

    def describe(self) -> str:
        return f"tasks <- 0 ({self.slot.key})"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot])


@dataclass(frozen=True, slots=True)
class Simple:
    """An op without operands of the spec's."""

    opcode: Opcode
    name: str
    detail: str
    source: str
    who: ClassVar[str] = "child"

    def describe(self) -> str:
        return self.detail

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op()


@dataclass(frozen=True, slots=True)
class Number:
    """An op of one or two numbers."""

    opcode: Opcode
    name: str
    detail: str
    n: int
    source: str
    m: int = 0
    a: int = 0
    who: ClassVar[str] = "child"

    def describe(self) -> str:
        return self.detail

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(self.a, n=self.n, m=self.m)


@dataclass(frozen=True, slots=True)
class MakeDirs:
    """A directory and those above it that are missing; *owner* (uid, gid) of the new ones."""

    dst: str
    mode: int
    source: str
    owner: tuple[int, int] | None = None
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "mkdir"
    opcode: ClassVar[Opcode] = Opcode.MKDIR

    def describe(self) -> str:
        return self.dst

    def encode(self, pool: Pool, slots: Slots) -> Op:
        uid, gid = self.owner or (0, 0)
        flags = int(OpFlag.CHOWN) if self.owner else 0
        return Op(pool.text(self.dst), c=uid, n=self.mode, m=gid, flags=flags)


@dataclass(frozen=True, slots=True)
class Text:
    """An op of one string."""

    opcode: Opcode
    name: str
    value: str
    source: str
    flags: int = 0
    n: int = 0
    who: ClassVar[str] = "child"

    def describe(self) -> str:
        return self.value

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(pool.text(self.value), n=self.n, flags=self.flags)


def _attrs(attrs: int) -> str:
    return ",".join(str(f.name).lower() for f in MountAttr if f & attrs) or "rw"


@dataclass(frozen=True, slots=True)
class OpenTree:
    """A detached copy of a host path, which ``Attach`` then puts in its place."""

    src: str
    slot: Slot
    attrs: int
    source: str
    recursive: bool = True
    device: int = 0
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "open"
    opcode: ClassVar[Opcode] = Opcode.OPEN_TREE

    def describe(self) -> str:
        return f"{self.src} ({_attrs(self.attrs)})"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        flags = OpFlag.RECURSIVE * self.recursive | OpFlag.CHRDEV * bool(self.device)
        return Op(
            pool.text(self.src), slots[self.slot], n=self.device, m=self.attrs, flags=int(flags)
        )


@dataclass(frozen=True, slots=True)
class Attach:
    slot: Slot
    dst: str
    source: str
    make: bool = True
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "bind"
    opcode: ClassVar[Opcode] = Opcode.ATTACH

    def describe(self) -> str:
        return f"{self.slot.key} -> {self.dst}"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        flags = int(OpFlag.MAKE_TARGET) if self.make else 0
        return Op(slots[self.slot], pool.text(self.dst), flags=flags)


@dataclass(frozen=True, slots=True)
class RootTree:
    slot: Slot
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "root"
    opcode: ClassVar[Opcode] = Opcode.ROOT_TREE

    def describe(self) -> str:
        return str(self.slot.key)

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot])


@dataclass(frozen=True, slots=True)
class NewMount:
    fstype: str
    dst: str
    options: tuple[tuple[str, str], ...]
    attrs: int
    source: str
    make: bool = True
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "mount"
    opcode: ClassVar[Opcode] = Opcode.MOUNT

    def describe(self) -> str:
        options = [k if v == "!" else f"{k}={v}" for k, v in self.options]
        return f"{self.fstype} on {self.dst} ({','.join([*options, _attrs(self.attrs)])})"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        flags = int(OpFlag.MAKE_TARGET) if self.make else 0
        return Op(
            pool.text(self.fstype),
            pool.text(self.dst),
            pool.options(self.options),
            n=self.attrs,
            flags=flags,
        )


@dataclass(frozen=True, slots=True)
class Options:
    """A new file system that is the root, or that is attached nowhere (procfs)."""

    opcode: Opcode
    name: str
    options: tuple[tuple[str, str], ...]
    attrs: int
    source: str
    who: ClassVar[str] = "child"

    def describe(self) -> str:
        return ",".join(k if v == "!" else f"{k}={v}" for k, v in self.options)

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(pool.options(self.options), n=self.attrs)


@dataclass(frozen=True, slots=True)
class File:
    dst: str
    data: bytes
    mode: int
    owner: tuple[int, int] | None
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "file"
    opcode: ClassVar[Opcode] = Opcode.FILE

    def describe(self) -> str:
        return f"{self.dst} ({format_size(len(self.data))}, mode {self.mode:o})"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        uid, gid = self.owner or (0xFFFFFFFF, 0xFFFFFFFF)
        offset = pool.raw(self.data) if self.data else 0
        return Op(pool.text(self.dst), offset, uid, n=len(self.data), m=gid << 32 | self.mode)


@dataclass(frozen=True, slots=True)
class Pair:
    """An op of two strings: a symlink (target, path), or a sysctl (path, value)."""

    opcode: Opcode
    name: str
    first: str
    second: str
    source: str
    who: ClassVar[str] = "child"

    def describe(self) -> str:
        if self.opcode is Opcode.SYMLINK:
            return f"{self.second} -> {self.first}"
        return f"{self.first}={self.second}"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(pool.text(self.first), pool.text(self.second))


@dataclass(frozen=True, slots=True)
class Groups:
    gids: tuple[int, ...]
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "groups"
    opcode: ClassVar[Opcode] = Opcode.SETGROUPS

    def describe(self) -> str:
        return ", ".join(map(str, self.gids)) or "none"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        if not self.gids:
            return Op()
        pool.data += bytes(-len(pool.data) % 4)
        raw = struct.pack(f"<{len(self.gids)}I", *self.gids)
        return Op(pool.raw(raw), n=len(raw))


@dataclass(frozen=True, slots=True)
class Fd:
    slot: Slot
    number: int
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "fd"
    opcode: ClassVar[Opcode] = Opcode.FD

    def describe(self) -> str:
        return f"{self.number} <- {self.slot.kind} {self.slot.key}"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot], n=self.number)


ChildStep = (
    Setns | Unshare | EnterCgroup | Simple | Number | Text | OpenTree | Attach | RootTree
    | NewMount | Options | File | MakeDirs | Pair | Groups | Fd
)  # fmt: skip
Step = HostStep | ChildStep


def mounts_private(source: str) -> Number:
    flags = Propagation.REC | Propagation.PRIVATE
    return Number(Opcode.PROPAGATION, "propagation", "private, recursive", int(flags), source)


def rlimit(name: str, number: int, soft: int, hard: int, source: str) -> Number:
    def show(value: int) -> str:
        return "unlimited" if value == RLIM_INFINITY else str(value)

    return Number(
        Opcode.RLIMIT, "rlimit", f"{name} {show(soft)}:{show(hard)}", soft, source, hard, number
    )


def capability_names(mask: int) -> str:
    names = [name for i, name in enumerate(CAPABILITIES) if mask >> i & 1]
    return "all" if len(names) == len(CAPABILITIES) else ", ".join(names) or "none"


@dataclass(frozen=True)
class Plan:
    """The steps of one spawn, in order, and what they act on.

    Attributes:
        steps: the timeline; a failure is reported by its index here.
        joins: how many child steps come before clone3, in a joiner.
        passed: the slots that go with the request, in the order of their numbers.
        args, env: of the payload; empty for a plan that ends in PAUSE.
        flags: PlanFlag.
        applied: measures of the profile, and how each is met; "missing: why" where it is not.
        enforcement: what the user's limits are enforced by.
    """

    steps: tuple[Step, ...]
    joins: int
    passed: tuple[Slot, ...]
    args: tuple[str, ...]
    env: tuple[str, ...]
    flags: PlanFlag
    applied: tuple[tuple[str, str], ...] = ()
    enforcement: tuple[tuple[str, str], ...] = ()

    @property
    def clone(self) -> Clone3:
        return next(step for step in self.steps if isinstance(step, Clone3))

    @property
    def id_map(self) -> IdMap | None:
        return next((step for step in self.steps if isinstance(step, IdMap)), None)

    def child_steps(self) -> list[tuple[int, ChildStep]]:
        """The child's steps with their index in the timeline; the op index is the position."""
        return [(i, step) for i, step in enumerate(self.steps) if step.who == "child"]  # type: ignore[misc]

    def timeline_index(self, op: int) -> int:
        """The step that a record's ``op`` is about."""
        if op in (At.CLONE, At.REQUEST, At.NOWHERE):
            return self.steps.index(self.clone)
        if op == At.ID_MAP:
            return next(i for i, step in enumerate(self.steps) if isinstance(step, IdMap))
        return self.child_steps()[op][0]

    def op_index(self, step: int) -> int:
        """The op, or place, at which the child or the launcher fails when *step* is to fail."""
        if isinstance(self.steps[step], Clone3):
            return At.CLONE
        if isinstance(self.steps[step], IdMap):
            return At.ID_MAP
        return next((n for n, (i, _) in enumerate(self.child_steps()) if i == step), NONE)

    def _slots(self) -> Slots:
        slots = {slot: number for number, slot in enumerate(self.passed)}
        for step in self.steps:
            if isinstance(step, OpenTree):
                slots.setdefault(step.slot, len(slots))
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
        if id_map is not None and id_map.by == "launcher":
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
