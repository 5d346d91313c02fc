# SPDX-License-Identifier: Apache-2.0
"""Filters of system calls for seccomp(2), in classic BPF: from rules, made once for each of them.

    arch ──native── nr ── search ─┬─ allow
     │                            ├─ no such call
     │                            ├─ socket ── family ─┬─ type
     │                            │                    └─ protocol
     └─ others ── kill, or a search of their own ── …

The search is a balanced tree over intervals of numbers, each with what it leads to. The kernel
tries every number when it takes a filter, and never runs it for those that are allowed whatever
their arguments (Linux 5.11): what a payload does often costs nothing.

The kernel takes the lower half of arguments that are int, and so does the filter.
"""

from __future__ import annotations

import enum
import errno
import functools
import struct
from typing import TYPE_CHECKING, NamedTuple

from nsbox.steps import Netlink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Ret(enum.IntEnum):
    """``SECCOMP_RET_*``: what becomes of a call."""

    KILL_PROCESS = 0x80000000
    ERRNO = 0x00050000
    ALLOW = 0x7FFF0000


class Arch(enum.IntEnum):
    """``AUDIT_ARCH_*`` of linux/audit.h: conventions by which a program calls the kernel."""

    X86_64 = 0xC000003E
    I386 = 0x40000003
    AARCH64 = 0xC00000B7
    ARM = 0x40000028


class Family(enum.IntEnum):
    """``AF_*`` of socket(2): those that a sandbox may have a use for."""

    UNIX = 1
    INET = 2
    INET6 = 10
    NETLINK = 16
    PACKET = 17


#: Machine -> its own convention, and the one of its 32-bit programs.
MACHINES = {"x86_64": (Arch.X86_64, Arch.I386), "aarch64": (Arch.AARCH64, Arch.ARM)}
#: Of those that rules may name, and of those that make sockets.
NUMBERS: dict[Arch, dict[str, int]] = {
    Arch.X86_64: {"socket": 41, "socketpair": 53},
    Arch.I386: {"socket": 359, "socketpair": 360, "socketcall": 102},
    Arch.AARCH64: {"socket": 198, "socketpair": 199},
    Arch.ARM: {"socket": 281, "socketpair": 288},
}
#: From 424 on a call has the same number everywhere.
COMMON = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
#: x32: calls of x86_64 with 32-bit pointers. All bits set is none: a tracer skips a call so.
X32 = (0x40000000, 0xFFFFFFFE)
SOCK_PACKET, SOCK_TYPE_MASK = 10, 0xF
SOCKETCALLS = (1, 8)  # SYS_SOCKET and SYS_SOCKETPAIR of linux/net.h

LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF_* of linux/filter.h
NR, ARCH, ARGS = 0, 4, (16, 24, 32)  # in struct seccomp_data, little endian


class Rules(NamedTuple):
    """What a filter lets pass: all that it does not speak of.

    Attributes:
        sockets: families, as in ``Family``, and protocols of netlink(7), as ``"NETLINK_ROUTE"``;
            ``"NETLINK"`` is all of these. Others are EAFNOSUPPORT, as on a kernel without them:
            libaudit and its like then go on, where EPERM would end them.
        absent: calls that the kernel seems not to have (ENOSYS).
        foreign: "kill": a call by another convention than the machine's own ends the process.
            "filter": 32-bit programs run, by the same rules; x32 seems not to be there.
    """

    sockets: tuple[str, ...]
    absent: tuple[str, ...] = ()
    foreign: str = "kill"


class _Code:
    """Instructions that jump to labels, and only onwards: classic BPF cannot go back."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, str, str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Of the next instruction."""
        self._labels[name] = len(self._lines)

    def add(self, code: int, k: int, true: str = "", false: str = "") -> None:
        """*true* and *false* are labels, or "" for the next instruction."""
        self._lines.append((code, k, true, false))

    def choose(self, targets: Mapping[int, str], otherwise: str) -> None:
        """To the label of the value that was loaded."""
        for i, (value, target) in enumerate(targets.items()):
            self.add(EQUAL, value, target, otherwise if i == len(targets) - 1 else "")

    def search(self, intervals: Sequence[tuple[int, str]]) -> None:
        """To the label of the interval that it is in: (first, label), rising, at least two."""
        middle = len(intervals) // 2
        low, high = intervals[:middle], intervals[middle:]
        name = f"search {len(self._lines)}"
        below = low[0][1] if len(low) == 1 else ""
        self.add(AT_LEAST, high[0][0], high[0][1] if len(high) == 1 else name, below)
        if len(low) > 1:
            self.search(low)
        if len(high) > 1:
            self.label(name)
            self.search(high)

    def assemble(self) -> bytes:
        def distance(label: str, line: int) -> int:
            return self._labels[label] - line - 1 if label else 0

        return b"".join(
            struct.pack("<HBBI", code, distance(true, line), distance(false, line), k)
            for line, (code, k, true, false) in enumerate(self._lines)
        )


def _intervals(ranges: Sequence[tuple[int, int, str]]) -> list[tuple[int, str]]:
    """From (first, last, label) to where each begins; what is between them is allowed."""
    found = [(0, "allow")]
    for first, last, label in sorted(ranges):
        if found[-1][0] == first:
            found.pop()
        if not found or found[-1][1] != label:
            found.append((first, label))
        found.append((last + 1, "allow"))
    return found


def _search_calls(code: _Code, arch: Arch, rules: Rules, foreign: str) -> None:
    known = NUMBERS[arch] | COMMON
    labels = {"socket": "socket", "socketpair": "socket", "socketcall": "socketcall"}
    labels |= dict.fromkeys(rules.absent, "absent")
    ranges = [(known[name], known[name], label) for name, label in labels.items() if name in known]
    if arch is Arch.X86_64:
        ranges.append((*X32, foreign))
    code.add(LOAD, NR)
    code.search(_intervals(ranges))


def _check_sockets(code: _Code, sockets: tuple[str, ...]) -> None:
    """INET with the type SOCK_PACKET is another name of PACKET."""
    families = {int(Family[name]): "allow" for name in sockets if name in Family.__members__}
    protocols = {Netlink[name[8:]] & 0xFF: "allow"
                 for name in sockets if name[:8] == "NETLINK_"}  # fmt: skip
    if "INET" in sockets and "PACKET" not in sockets:
        families[Family.INET] = "type"
    if protocols and "NETLINK" not in sockets:
        families[Family.NETLINK] = "protocol"
    code.label("socket")
    code.add(LOAD, ARGS[0])
    code.choose(families, "refuse")
    if "type" in families.values():
        code.label("type")
        code.add(LOAD, ARGS[1])
        code.add(AND, SOCK_TYPE_MASK)
        code.choose({SOCK_PACKET: "refuse"}, "allow")
    if "protocol" in families.values():
        code.label("protocol")
        code.add(LOAD, ARGS[2])
        code.choose(protocols, "refuse")


@functools.lru_cache(maxsize=64)
def program(machine: str, rules: Rules) -> bytes:
    """The filter of *rules*, an array of ``struct sock_filter``.

    Args:
        machine: "x86_64" or "aarch64".
    """
    native, compat = MACHINES[machine]
    filters = rules.foreign == "filter"
    foreign = "absent" if filters else "kill"
    code = _Code()
    code.add(LOAD, ARCH)
    code.choose({int(native): ""}, "others" if filters else foreign)
    _search_calls(code, native, rules, foreign)
    if filters:
        code.label("others")
        code.choose({int(compat): ""}, foreign)
        _search_calls(code, compat, rules, foreign)
        if "socketcall" in NUMBERS[compat]:
            # Its arguments are in memory, where no filter looks and a thread may change them.
            code.label("socketcall")
            code.add(LOAD, ARGS[0])
            code.choose(dict.fromkeys(SOCKETCALLS, "refuse"), "allow")
    _check_sockets(code, rules.sockets)
    for label, value in (
        ("allow", int(Ret.ALLOW)),
        ("refuse", Ret.ERRNO | errno.EAFNOSUPPORT),
        ("absent", Ret.ERRNO | errno.ENOSYS),
        ("kill", int(Ret.KILL_PROCESS)),
    ):
        code.label(label)
        code.add(RETURN, value)
    return code.assemble()
