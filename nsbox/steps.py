# SPDX-License-Identifier: Apache-2.0
"""The steps of a plan that its child runs, each a value that describes and encodes itself: ops for
the interpreter in csrc/steps.c."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar

from nsbox.hoststeps import HostStep
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
from nsbox.slots import Op, Pool, Slot, Slots
from nsbox.units import format_size


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
    """A new one; or, *over* what is there, one that is mounted, and of a tmpfs of its own. With
    *make* what it is mounted on is made where it is missing."""

    dst: str
    data: bytes
    mode: int
    owner: tuple[int, int] | None
    source: str
    over: bool = False
    make: bool = False
    who: ClassVar[str] = "child"
    name: ClassVar[str] = "file"
    opcode: ClassVar[Opcode] = Opcode.FILE

    def describe(self) -> str:
        return f"{self.dst} ({format_size(len(self.data))}, mode {self.mode:o})"

    def encode(self, pool: Pool, slots: Slots) -> Op:
        uid, gid = self.owner or (0xFFFFFFFF, 0xFFFFFFFF)
        offset = pool.raw(self.data) if self.data else 0
        flags = OpFlag.OVER * self.over | OpFlag.MAKE_TARGET * self.make
        return Op(pool.text(self.dst), offset, uid, flags=int(flags), n=len(self.data),
                  m=gid << 32 | self.mode)  # fmt: skip


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
