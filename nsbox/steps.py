# SPDX-License-Identifier: Apache-2.0
"""The steps that a plan is made of, each a value that describes and encodes itself.

Host steps are done by Python or the launcher and know their undo. Child steps are ops for
the interpreter in csrc/steps.c, encoded as csrc/nsb.h says.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from nsbox.names import (
    CAPABILITIES,
    RLIM_INFINITY,
    Clone,
    FilterFlag,
    MountAttr,
    Opcode,
    OpFlag,
    Propagation,
)
from nsbox.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Slot(NamedTuple):
    """A descriptor that the plan names: passed with the request, or opened by a step.

    *kind* is ``"stdio"``, ``"pass"``, ``"cgroup"``, ``"pidfd"``, ``"mntns"`` or ``"pty"``, or
    ``"tree"``, ``"file"``, ``"netlink"`` or a side of the pty, which are opened by steps.
    """

    kind: str
    key: str | int


#: The cgroup (v2) that the child is born in.
CGROUP2 = Slot("cgroup", "v2")
#: The process whose namespaces are joined.
JOIN = Slot("pidfd", "join")
#: The time namespace that is joined: no pidfd stands for one that its process is not yet in.
TIME = Slot("nsfd", "time")
#: The user namespace that owns what is joined, or that has in it the one that is made.
OWNER = Slot("nsfd", "user")


class Joined(NamedTuple):
    """Whose namespaces a sandbox enters.

    Attributes:
        kinds: of the namespaces.
        pidfd: of a process that is in them, or of the one namespace; stays its owner's.
        id_map: how the user namespace among them maps ids, see ``Build.id_map``.
        time: of a time namespace among them, if no process is in that yet.
    """

    kinds: tuple[str, ...] = ()
    pidfd: int = -1
    id_map: str = ""
    time: int = -1


NOBODY = Joined()


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

    *by* is who writes it: "launcher", "joiner" for a user namespace in another one, or "newuidmap"
    at a barrier.
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

    @property
    def kind(self) -> str:
        """As ``Build.id_map`` has it; "explicit": of lines that have no 0 to be for set-up."""
        if any(outside is None for _, outside, _ in self.uids):
            return "range" if self.by == "newuidmap" else "slot"
        if len(self.uids) == 1 and self.uids[0][2] == self.gids[0][2] == 1:
            return "single"
        zero = all(any(line[0] == 0 for line in lines) for lines in (self.uids, self.gids))
        return "range" if zero else "explicit"

    @property
    def first_user(self) -> int:
        """The lowest id inside: 0 where it is mapped."""
        return min(inside for inside, _, _ in self.uids)

    def needs_slot(self) -> bool:
        return self.by == "launcher" and any(outside is None for _, outside, _ in self.uids)

    def text(self, lines: tuple[tuple[int, int | None, int], ...], slot: int) -> str:
        return "".join(
            f"{inside} {slot if outside is None else outside} {count}\n"
            for inside, outside, count in lines
        )


@dataclass(frozen=True, slots=True)
class LauncherNet:
    """A network namespace that the launcher made, with its loopback up and its ports open."""

    source: str
    who: ClassVar[str] = "host"
    name: ClassVar[str] = "net"

    def describe(self) -> str:
        return "the launcher's own: lo up, ip_unprivileged_port_start=0, ping for everybody"


IdLines = tuple[tuple[int, int, int], ...]
_ALL_IDS = 0xFFFFFFFF  # the last one is no id


@dataclass(frozen=True, slots=True)
class MapTree:
    """A detached, id-mapped copy of a host path, passed to the child.

    *uids* and *gids* are (on disk, inside, count). With *keep* every other id is, where
    possible, what it would be without this; else it is nobody's, and not to be written by
    anybody. Where the file system cannot do that, the call fails if *required*, else it is a
    plain copy.
    """

    src: str
    slot: Slot
    attrs: int
    uids: IdLines
    gids: IdLines
    keep: bool
    required: bool
    source: str
    who: ClassVar[str] = "host"
    name: ClassVar[str] = "idmap"

    def describe(self) -> str:
        lines = ", ".join(f"{disk} -> {inside} x {count}" for disk, inside, count in self.uids)
        return f"{self.src} ({lines})"

    def map(self, lines: IdLines, first: int) -> IdLines:
        """(on disk, outside, count) of all that is mapped; *first* is inside's 0 outside."""
        found = [(disk, first + inside, count) for disk, inside, count in lines]
        if not self.keep:
            return tuple(found)
        taken = sorted((start, count) for row in found for start, count in
                       ((row[0], row[2]), (row[1], row[2])))  # fmt: skip
        at = 0
        for start, count in [*taken, (_ALL_IDS, 0)]:
            if start > at:
                found.append((at, at, start - at))
            at = max(at, start + count)
        return tuple(sorted(found))


HostStep = MakeCgroup | SetLimit | Clone3 | IdMap | MapTree | LauncherNet

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
class Open:
    """A descriptor of a file of the host's, for a later step."""

    src: str
    slot: Slot
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "open"
    opcode: ClassVar[Opcode] = Opcode.OPEN

    def describe(self) -> str:
        return self.src

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(pool.text(self.src), slots[self.slot])


@dataclass(frozen=True, slots=True)
class Attach:
    """Mounts a tree. With *make*, on what is made where it is missing; *optional*, nowhere, where
    that may not be made."""

    slot: Slot
    dst: str
    source: str
    make: bool = True
    optional: bool = False
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "bind"
    opcode: ClassVar[Opcode] = Opcode.ATTACH

    def describe(self) -> str:
        return f"{self.slot.key} -> {self.dst}"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        flags = OpFlag.MAKE_TARGET * self.make | OpFlag.IF_POSSIBLE * self.optional
        return Op(slots[self.slot], pool.text(self.dst), flags=int(flags))


@dataclass(frozen=True, slots=True)
class HandOver:
    """The owner gets the upper directory of an overlay over *layers*, topmost first; *made*
    are paths that set-up may add to it."""

    slot: Slot
    layers: tuple[str, ...]
    made: tuple[str, ...]
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "hand-over"
    opcode: ClassVar[Opcode] = Opcode.BARRIER

    def describe(self) -> str:
        return f"{self.slot.key}, to tell what changed"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot], n=1)


@dataclass(frozen=True, slots=True)
class HandRoom:
    """The owner gets a descriptor of the directory, and looks, when all has ended, at which of
    *limits* its file system has used up: "disk", "inodes". Nobody waits for it."""

    dst: str
    limits: tuple[str, ...]
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "hand-room"
    opcode: ClassVar[Opcode] = Opcode.ROOM

    def describe(self) -> str:
        return f"{self.dst}, to tell what is used up"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(pool.text(self.dst))


class Netlink(enum.IntEnum):
    """Sockets that are opened where the caller is not: address family, type and protocol.

    Those of netlink(7), of tcp(7) and udp(7), and one for echo requests, icmp(7).
    """

    ROUTE = 0x100300
    NETFILTER = 0x10030C
    ICMP = 0x020301
    TCP = 0x020100
    UDP = 0x020200
    TCP6 = 0x0A0100
    UDP6 = 0x0A0200


@dataclass(frozen=True, slots=True)
class OpenNetlink:
    """A socket of the network namespace in which the step is done."""

    protocol: Netlink
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "netlink"
    opcode: ClassVar[Opcode] = Opcode.SOCKET

    @property
    def slot(self) -> Slot:
        return Slot("netlink", self.protocol.name)

    def describe(self) -> str:
        return f"a socket for {self.protocol.name}"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot], n=int(self.protocol))


@dataclass(frozen=True, slots=True)
class HandNetlink:
    """The owner gets the socket; for the last one the child waits, until its network is made."""

    protocol: Netlink
    detail: str
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "network"
    opcode: ClassVar[Opcode] = Opcode.BARRIER

    def describe(self) -> str:
        return self.detail

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[Slot("netlink", self.protocol.name)], n=1)


@dataclass(frozen=True, slots=True)
class RootTree:
    slot: Slot
    source: str
    as_is: bool = False
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "root"
    opcode: ClassVar[Opcode] = Opcode.ROOT_TREE

    def describe(self) -> str:
        return str(self.slot.key)

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot], flags=int(OpFlag.AS_IS) * self.as_is)


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
    flags: int = 0
    who: ClassVar[str] = "child"

    def describe(self) -> str:
        return ",".join(k if v == "!" else f"{k}={v}" for k, v in self.options)

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(pool.options(self.options), n=self.attrs, flags=self.flags)


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
        return f"{self.first}={self.second.strip()}".replace("\n", ", ")

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


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of system calls: an array of ``struct sock_filter``, see seccomp.py."""

    program: bytes
    detail: str
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "seccomp"
    opcode: ClassVar[Opcode] = Opcode.SECCOMP

    def describe(self) -> str:
        return self.detail

    def encode(self, pool: Pool, slots: Slots) -> Op:
        pool.data += bytes(-len(pool.data) % 8)
        # Or the kernel could slow down all that is filtered, for its own branch predictors' sake.
        return Op(pool.raw(self.program), n=len(self.program), m=int(FilterFlag.SPEC_ALLOW))


@dataclass(frozen=True, slots=True)
class OpenPty:
    """A pty of the devpts at /dev/pts: its master goes to the owner by the socket in *slot*."""

    slot: Slot
    slave: Slot
    rows: int
    columns: int
    source: str
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "pty"
    opcode: ClassVar[Opcode] = Opcode.PTY

    def describe(self) -> str:
        return f"{self.rows} rows of {self.columns}"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        return Op(slots[self.slot], slots[self.slave], n=self.rows | self.columns << 16)


ChildStep = (
    Setns | Unshare | EnterCgroup | Simple | Number | Text | Open | OpenTree | Attach | HandOver
    | RootTree | NewMount | Options | File | MakeDirs | Pair | Groups | Fd | OpenPty | OpenNetlink
    | HandNetlink | HandRoom | Filter
)  # fmt: skip
Step = HostStep | ChildStep


def mounts_private(source: str) -> Number:
    flags = Propagation.REC | Propagation.PRIVATE
    return Number(Opcode.PROPAGATION, "propagation", "private, recursive", int(flags), source)


def mounts_slave(source: str) -> Number:
    flags = Propagation.REC | Propagation.SLAVE
    return Number(Opcode.PROPAGATION, "propagation", "slave, recursive", int(flags), source)


def rlimit(name: str, number: int, soft: int, hard: int, source: str) -> Number:
    def show(value: int) -> str:
        return "unlimited" if value == RLIM_INFINITY else str(value)

    return Number(
        Opcode.RLIMIT, "rlimit", f"{name} {show(soft)}:{show(hard)}", soft, source, hard, number
    )


def capability_names(mask: int) -> str:
    names = [name for i, name in enumerate(CAPABILITIES) if mask >> i & 1]
    return "all" if len(names) == len(CAPABILITIES) else ", ".join(names) or "none"
