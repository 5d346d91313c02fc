# SPDX-License-Identifier: Apache-2.0
"""The steps of a plan that Python or the launcher does, each a value that describes itself. Who
does them knows their undo: nsbox/spawn.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nsbox.names import Clone

if TYPE_CHECKING:
    from nsbox.slots import Slot


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
