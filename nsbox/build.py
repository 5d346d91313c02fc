# SPDX-License-Identifier: Apache-2.0
"""The plan under construction: what the parts of compile() add steps to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsbox.errors import Unavailable
from nsbox.hoststeps import IdLines, IdMap, MapTree
from nsbox.names import PlanFlag
from nsbox.profile import PROFILES, Profile
from nsbox.slots import Slot
from nsbox.steps import OpenTree, Step

if TYPE_CHECKING:
    from nsbox.host import Host
    from nsbox.spec import NetFile, Spec

#: Ids of a slot, or of a subordinate range: what a user namespace with more than one id maps.
SLOT_IDS = 65536
#: In the user namespace of a router, which has a whole range if there is one: the caller.
CALLER_ID = SLOT_IDS


@dataclass
class Build:
    """Spec, host and profile, what was decided of them, and the steps so far.

    Attributes:
        join: kinds of namespaces that the child enters, of the process in slot ("pidfd", "join").
        new: kinds of namespaces that are made.
        uid, gid: of the payload, inside.
        id_map: "slot", "range" (newuidmap), "single", "explicit" (other lines, without 0), or ""
            without a user namespace.
        within: the user namespace is made in the one in slot ("nsfd", "user"), and mapped to it.
        template: the mount namespace comes from a template.
        makes_nodes: devices are nodes of the new root's own, not mounts of the host's.
        shared_memory: the tree of a joined /dev/shm, once it is there.
        names: trees of the files that ``Spec.net_files`` says.
        maps: of the user namespace, where the caller said them.
        sysctls: (name with slashes, value) for the network namespace that is made.
    """

    spec: Spec
    host: Host
    join: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    uid: int = 0
    gid: int = 0
    id_map: str = ""
    within: bool = False
    template: bool = False
    makes_nodes: bool = False
    shared_memory: Slot | None = None
    names: list[tuple[Slot, NetFile]] = field(default_factory=list)
    maps: IdMap | None = None
    sysctls: tuple[tuple[str, str], ...] = ()
    steps: list[Step] = field(default_factory=list)
    passed: list[Slot] = field(default_factory=list)
    applied: dict[str, str] = field(default_factory=dict)
    enforcement: dict[str, str] = field(default_factory=dict)
    flags: PlanFlag = field(default_factory=lambda: PlanFlag(0))
    trees: int = 0

    @property
    def profile(self) -> Profile:
        return PROFILES[self.spec.profile]

    @property
    def in_userns(self) -> bool:
        """Set-up has all capabilities, but only over what its user namespace owns."""
        return "user" in self.new or "user" in self.join

    @property
    def capable(self) -> bool:
        """Set-up can change credentials and mount."""
        return self.in_userns or self.host.privileged

    def has_new(self, kind: str) -> bool:
        return kind in self.new

    def own(self, kind: str) -> bool:
        """The payload's namespace of this kind is not the caller's."""
        return kind in self.new or kind in self.join

    def add(self, *steps: Step) -> None:
        self.steps.extend(steps)

    def pass_slot(self, kind: str, key: str | int) -> Slot:
        slot = Slot(kind, key)
        if slot not in self.passed:
            self.passed.append(slot)
        return slot

    def open_tree(
        self, src: str, attrs: int, source: str, *, recursive: bool = True, device: int = 0
    ) -> Slot:
        """A detached copy of a host path; opened while set-up still has the caller's ids."""
        self.trees += 1
        slot = Slot("tree", f"{src}#{self.trees}")
        self.add(OpenTree(src, slot, attrs, source, recursive, device))
        return slot

    def map_tree(
        self,
        src: str,
        attrs: int,
        uids: IdLines,
        gids: IdLines,
        source: str,
        *,
        keep: bool,
        required: bool = True,
    ) -> Slot:
        """An id-mapped copy of a host path, see ``MapTree``; the owner makes it, before the child.

        Not required, it has its submounts, which must be mapped with it.
        """
        self.trees += 1
        slot = self.pass_slot("idmap", f"{src}#{self.trees}")
        first = next(i for i, s in enumerate(self.steps) if s.who == "child" or s.name == "clone3")
        required = required and not self.spec.best_effort
        self.steps.insert(first, MapTree(src, slot, attrs, uids, gids, keep, required, source))
        return slot

    def cannot(self, feature: str, why: str, *, hint: str = "") -> None:
        """What was asked for cannot be done here: raise, or note it under best_effort."""
        if not self.spec.best_effort:
            raise Unavailable(feature, why, alternatives=("best_effort=True",), hint=hint)
        self.enforcement[feature.removeprefix("limits.")] = f"missing: {why}"
