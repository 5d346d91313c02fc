# SPDX-License-Identifier: Apache-2.0
"""The cgroup v2 side of ``Cgroup``: one directory, and the kernel's own names."""

from __future__ import annotations

import os

from nsbox import cgroupfs, hierarchy, netprio
from nsbox.usage import CgroupStats, DiskStats

Directories = dict[str, str]


def set_limit(directories: Directories, file: str, value: str, _said: dict[str, str]) -> None:
    """Write one limit.

    Raises:
        OSError: the kernel refused.
    """
    directory = next(iter(directories.values()))
    path = f"{directory}/{file}"
    if file == "bpf.priority":
        netprio.attach(directory, int(value))
        return
    if file in ("cpuset.cpus", "io.max") and not os.path.exists(path):
        hierarchy.enable(os.path.dirname(directory), [file.partition(".")[0]])
    if file == "memory.swap.max" and not os.path.exists(path):
        return  # a kernel without swap has no swap to limit
    if file == "cpuset.cpus":
        # the kernel would take others too, and then go on as if nothing had been said
        parent = os.path.dirname(directory)
        cgroupfs.allowed_cpus(value, f"{parent}/cpuset.cpus.effective")
    elif file == "io.max":
        device, _, limits = value.partition(" ")
        value = f"{cgroupfs.disk_of(device)} {limits}"
    cgroupfs.write(path, value)


def get_limit(directories: Directories, file: str) -> str:
    """What ``set_limit`` would have to write to have it as it is."""
    try:
        return cgroupfs.read(f"{next(iter(directories.values()))}/{file}").strip()
    except FileNotFoundError:  # no swap in this kernel; or a controller that is enabled when set
        return "max" if file == "memory.swap.max" else ""


def oom_kills(directories: Directories) -> int:
    return cgroupfs.counter(f"{next(iter(directories.values()))}/memory.events", "oom_kill")


def disks(directory: str) -> dict[str, DiskStats]:
    """io.stat: device -> counters."""
    found = {}
    try:
        lines = cgroupfs.read(f"{directory}/io.stat").splitlines()
    except OSError:
        return {}
    for line in lines:
        device, *pairs = line.split()
        values = {key: int(n) for key, _, n in (p.partition("=") for p in pairs) if n.isdigit()}
        found[device] = DiskStats(*(values.get(key, 0)
                                    for key in ("rbytes", "wbytes", "rios", "wios")))  # fmt: skip
    return found


def stats(directories: Directories) -> CgroupStats:
    directory = next(iter(directories.values()))
    cpu = cgroupfs.counters(f"{directory}/cpu.stat")
    has_io = os.path.exists(f"{directory}/io.stat")
    return CgroupStats(
        memory_current=cgroupfs.number(f"{directory}/memory.current"),
        memory_peak=cgroupfs.number(f"{directory}/memory.peak"),
        pids_current=cgroupfs.number(f"{directory}/pids.current"),
        pids_peak=cgroupfs.number(f"{directory}/pids.peak"),
        cpu_user=cpu.get("user_usec", 0) / 1e6,
        cpu_system=cpu.get("system_usec", 0) / 1e6,
        throttled=cpu["throttled_usec"] / 1e6 if "throttled_usec" in cpu else None,
        disks=disks(directory) if has_io else None,
    )


def cpu(directories: Directories) -> tuple[float | None, float | None]:
    """Seconds for which it was throttled, and seconds of CPU time."""
    found = cgroupfs.counters(f"{next(iter(directories.values()))}/cpu.stat")
    throttled, used = (found.get(f"{name}_usec") for name in ("throttled", "usage"))
    return (None if throttled is None else throttled / 1e6, None if used is None else used / 1e6)


def counts_all(directories: Directories) -> bool:
    """memory.peak is there since Linux 5.19."""
    return os.path.exists(f"{next(iter(directories.values()))}/memory.peak")


def memory_peak(directories: Directories) -> int | None:
    return cgroupfs.number(f"{next(iter(directories.values()))}/memory.peak")


def events(directories: Directories) -> dict[str, int]:
    directory = next(iter(directories.values()))
    found = dict(cgroupfs.counters(f"{directory}/cgroup.events"))
    for controller in ("memory", "pids"):
        for name, count in cgroupfs.counters(f"{directory}/{controller}.events").items():
            found[f"{controller}.{name}"] = count
    return found
