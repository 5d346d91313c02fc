# SPDX-License-Identifier: Apache-2.0
"""delegate(): out of the way, so that a delegated cgroup can give its controllers to children."""

from __future__ import annotations

import os
import time

from nsbox import cgroupfs, hierarchy, probe
from nsbox.errors import Unavailable

_LEAF = "nsbox-leaf"
_MOVE_DEADLINE_S = 2.0


def delegate() -> str:
    """Make room for cgroups in the one that was delegated to this user; returns its directory.

    A cgroup of v2 has processes or gives out controllers, never both. So this moves the calling
    process, and every other that is in the same cgroup, into a new one below it, ``nsbox-leaf``,
    which stays there as long as they live. Nothing at all where cgroups can be made already: on
    v1, or where this was called before. Only you can know that nobody minds: nsbox never does
    it by itself.

    Raises:
        Unavailable: nothing was delegated, with the command that does.

    Kernel: "no internal processes", Documentation/admin-guide/cgroup-v2.rst.
    """
    where = hierarchy.find_parents()
    if where.version:
        return where.directories[0][1]
    own = hierarchy.own_v2()
    if not own or not all(os.access(f"{own}/{file}", os.W_OK) for file in
                          ("", "cgroup.procs", "cgroup.subtree_control")):  # fmt: skip
        raise hierarchy.no_cgroup()
    leaf = f"{own}/{_LEAF}"
    try:
        os.mkdir(leaf, 0o755)
    except FileExistsError:
        pass
    _move_all(own, leaf)
    where = hierarchy.find_parents()
    if not where.version:
        _move_all(leaf, own)
        os.rmdir(leaf)
        raise Unavailable("cgroup", f"{own} was given no controller to pass on",
                          hint=hierarchy.places().obstacle("memory").fix)  # fmt: skip
    probe.host(cached=False)
    return where.directories[0][1]


def _move_all(source: str, target: str) -> None:
    deadline = time.monotonic() + _MOVE_DEADLINE_S
    while pids := cgroupfs.members(source):
        for pid in pids:
            try:
                cgroupfs.write(f"{target}/cgroup.procs", str(pid))
            except ProcessLookupError:
                pass
        if time.monotonic() > deadline:
            return  # what is left forks faster, or is a zombie: the controllers will tell
