# SPDX-License-Identifier: Apache-2.0
"""What is passed to a plan's child, and how the steps that it runs are encoded: csrc/nsb.h."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

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
