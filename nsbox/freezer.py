# SPDX-License-Identifier: Apache-2.0
"""Freezing a cgroup: by cgroup.freeze of cgroup v2, or by the freezer of v1.

A sandbox of v1 is in neither. Its freezer (the ``late-`` directories) is made when it is first
wanted and frozen while it is empty: each process that is moved into it stops there, and so can
no more fork; those that were forked meanwhile are moved next, until none is left.
"""

from __future__ import annotations

import errno
import os
import time

from nsbox import cgroupfs

Directories = dict[str, str]

_ROUNDS = 1000
_PATIENT_ROUNDS = 20
_TURNS_UNTIL_THAWED = 25


def directory(directories: Directories, version: int) -> str:
    """Where it is frozen; "" if there is no such place yet."""
    if version == 2:
        return next(iter(directories.values()))
    keys = ("unified", "late-unified", "freezer", "late-freezer")
    return next((directories[key] for key in keys if key in directories), "")


def _is_v1(place: str) -> bool:
    return os.path.exists(f"{place}/freezer.state")


def is_frozen(directories: Directories, version: int) -> bool:
    place = directory(directories, version)
    try:
        if not place:
            return False
        if _is_v1(place):
            return cgroupfs.read(f"{place}/freezer.state").strip() != "THAWED"
        return cgroupfs.read(f"{place}/cgroup.freeze").strip() == "1"
    except FileNotFoundError:
        return False


def freeze(directories: Directories, version: int, timeout: float) -> None:
    """Ask for it, gather who is not in there yet, and wait until all stand still."""
    place = directory(directories, version)
    deadline = time.monotonic() + timeout
    _ask(place, True)
    try:
        others = [one for key, one in directories.items() if one != place]
        if others:
            _gather(place, others, directories.get("pids", ""), deadline)
        turn = 0
        while not _stands_still(place):
            turn += 1
            if _is_v1(place):  # it can stay FREEZING for ever, unless it is told again
                if turn % _TURNS_UNTIL_THAWED == 0:
                    _ask(place, False)
                _ask(place, True)
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"a process does not stop within {timeout} s: "
                                   "it waits for the kernel", place)  # fmt: skip
            time.sleep(0.0005)
    except BaseException:
        _ask(place, False)
        raise


def thaw(directories: Directories, version: int) -> None:
    place = directory(directories, version)
    if place:
        _ask(place, False)


def _ask(place: str, frozen: bool) -> None:
    if _is_v1(place):
        cgroupfs.write(f"{place}/freezer.state", "FROZEN" if frozen else "THAWED")
    else:
        cgroupfs.write(f"{place}/cgroup.freeze", "1" if frozen else "0")


def _stands_still(place: str) -> bool:
    if _is_v1(place):
        return cgroupfs.read(f"{place}/freezer.state").strip() == "FROZEN"
    # without a member it is frozen as soon as it is asked to be
    return cgroupfs.counter(f"{place}/cgroup.events", "frozen") == 1


def _gather(place: str, others: list[str], pids: str, deadline: float) -> None:
    """Move whoever is in the other hierarchies. One that forks faster than it can be moved is
    kept from forking, by the limit of processes, for as long as that takes."""
    gone: set[int] = set()
    before = ""
    try:
        for turn in range(_ROUNDS):
            inside = cgroupfs.all_members(place)
            strangers = {pid for one in others for pid in cgroupfs.all_members(one)}
            strangers -= inside | gone
            if not strangers:
                return
            if turn == _PATIENT_ROUNDS and pids:
                before = cgroupfs.read(f"{pids}/pids.max").strip()
                cgroupfs.write(f"{pids}/pids.max", "0")
            if time.monotonic() > deadline:
                break
            for pid in strangers:
                try:
                    cgroupfs.write(f"{place}/cgroup.procs", str(pid))
                except ProcessLookupError:  # a zombie is listed, and cannot be moved
                    gone.add(pid)
        raise TimeoutError(errno.ETIMEDOUT, "its processes fork faster than they can be stopped",
                           place)  # fmt: skip
    finally:
        if before:
            cgroupfs.write(f"{pids}/pids.max", before)
