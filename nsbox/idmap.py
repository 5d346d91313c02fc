# SPDX-License-Identifier: Apache-2.0
"""Maps of ids that the caller says line by line, checked; and who may write them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from nsbox import units
from nsbox.errors import SpecError, Unavailable
from nsbox.hoststeps import IdMap

if TYPE_CHECKING:
    from nsbox.host import Host

_MOST_LINES = 340  # UID_GID_MAP_MAX_EXTENTS
_MOST_IDS = (1 << 32) - 1

Line = tuple[int, int, int]

INSTALL = "apt-get install uidmap, or dnf install shadow-utils"


def add_ranges(user: str | int) -> str:
    """The command that gives a user ids of its own."""
    return f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"


def more_ids(host: Host) -> str:
    """What an ordinary user lacks to map more ids than one; "" for nothing."""
    if host.subids:
        return ""
    ranges = add_ranges(host.euid)
    return ranges if host.helpers else f"{INSTALL}; and {ranges}"


def _lines(value: Any, where: str) -> tuple[Line, ...]:
    try:
        lines = [tuple(line) for line in value]
    except TypeError:
        raise SpecError(where, "must be a list of (inside, outside, count)") from None
    if not 1 <= len(lines) <= _MOST_LINES:
        raise SpecError(where, f"has {len(lines)} lines, not 1 to {_MOST_LINES}")
    for i, line in enumerate(lines):
        if len(line) != 3:
            raise SpecError(f"{where}[{i}]", f"{line!r} is not (inside, outside, count)")
        inside, outside, count = line
        units.count(count, f"{where}[{i}]", least=1, most=_MOST_IDS)
        for first in (inside, outside):
            units.count(first, f"{where}[{i}]", most=_MOST_IDS - count)
    for side, name in ((0, "inside"), (1, "outside")):
        spans = sorted((line[side], line[2]) for line in lines)
        for (first, count), (following, _) in itertools.pairwise(spans):
            if first + count > following:
                raise SpecError(where, f"{following} is mapped twice {name}")
    return tuple((a, b, c) for a, b, c in lines)


def check_maps(uid_map: Any, gid_map: Any, host: Host) -> IdMap | None:
    """The step of maps that the caller gave; None when it gave none.

    Raises:
        SpecError: a line is wrong, or one of both is missing.
        Unavailable: the caller may not map these, and there is no helper that may.
    """
    if uid_map is None and gid_map is None:
        return None
    for value, where in ((uid_map, "uid_map"), (gid_map, "gid_map")):
        if value is None:
            raise SpecError(where, "is missing: both maps are given, or none")
    uids, gids = _lines(uid_map, "uid_map"), _lines(gid_map, "gid_map")
    own = len(uids) == len(gids) == 1 and (uids[0][1:], gids[0][1:]) == (
        (host.euid, 1), (host.egid, 1))  # fmt: skip
    if host.maps_ids or own:
        return IdMap(uids, gids, "launcher", "uid_map")
    if not host.helpers:
        raise Unavailable("uid_map", "only root, or newuidmap, maps other ids than the own",
                          hint=more_ids(host))  # fmt: skip
    return IdMap(uids, gids, "newuidmap", "uid_map")
