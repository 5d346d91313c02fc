# SPDX-License-Identifier: Apache-2.0
"""What a spawn has to do with its cgroup: how the child enters, and what it came to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nsbox import cgroup_v1, cgroup_v2, cgroupfs
from nsbox.usage import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsbox.cgroup import Cgroup


def open_for_child(cgroup: Cgroup) -> dict[str, int]:
    """Descriptors by which a child enters: v1 ``tasks`` files, of v2 the directory ("v2")."""
    places: dict[str, str] = {}
    for controller, directory in cgroup.directories.items():
        if controller.startswith("late-"):
            continue  # the freezer of one that was paused gathers who is elsewhere by itself
        v2 = cgroup.version == 2 or controller == "unified"
        places["v2" if v2 else controller] = directory
    return open_places(places)


def open_places(places: Mapping[str, str]) -> dict[str, int]:
    """The same, of key -> directory; the caller's to close."""
    opened: dict[str, int] = {}
    try:
        for key, directory in places.items():
            path = directory if key == "v2" else f"{directory}/tasks"
            flags = os.O_DIRECTORY if key == "v2" else os.O_WRONLY
            opened[key] = os.open(path, flags | os.O_CLOEXEC)
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def tally(cgroup: Cgroup) -> Tally:
    """What a result needs to know of the payload that has ended."""
    where, backend = cgroup.directories, cgroup_v1 if cgroup.version == 1 else cgroup_v2
    peak, refused = None, 0
    if "pids" in where:
        peak = cgroupfs.number(f"{where['pids']}/pids.peak")
        if peak is None or peak >= cgroup.least_pids:
            refused = cgroupfs.counter(f"{where['pids']}/pids.events", "max")
    disks = backend.disks(where["io"]) if "io" in where else None
    throttled, used = backend.cpu(where)
    return Tally(
        memory_peak=backend.memory_peak(where) if "memory" in where else None,
        pids_peak=peak,
        throttled=throttled,
        cpu_used=used,
        oom_kills=cgroup.oom_kills(),
        oom_group=cgroup.oom_fd >= 0,
        forks_refused=refused,
        io_read=None if disks is None else sum(disk.read_bytes for disk in disks.values()),
        io_write=None if disks is None else sum(disk.write_bytes for disk in disks.values()),
    )
