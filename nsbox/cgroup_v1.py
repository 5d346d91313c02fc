# SPDX-License-Identifier: Apache-2.0
"""The cgroup v1 side of ``Cgroup``: a directory in each hierarchy, under the names of v2.

On a hybrid host there is one more, ``unified``, in the cgroup v2 mount: it has no controllers,
but cgroup.kill, cgroup.freeze, cgroup.events and the CPU time in cpu.stat.
"""

from __future__ import annotations

import errno
import os

from nsbox import cgroupfs, limits, netprio
from nsbox.usage import CgroupStats, DiskStats

Directories = dict[str, str]

#: What a cgroup says that was just made, of what is written here.
AT_FIRST = {"cpu.cfs_period_us": "100000"}
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def set_limit(directories: Directories, file: str, value: str, said: dict[str, str]) -> None:
    """Write one limit, named as cgroup v2 names its file.

    *said* is what files of a cgroup say that nobody else can have written, as far as that is
    known: each that is not read, or not written again, is some 1 % of a spawn.

    Raises:
        OSError: the kernel refused.
    """
    controller = file.partition(".")[0]
    directory = directories["unified" if controller == "bpf" else controller]
    if file == "memory.max":
        _set_memory(directory, int(value))
        said["memory.limit_in_bytes"] = value if int(value) % _PAGE == 0 else ""
    elif file == "memory.swap.max":
        # v1 limits the sum of memory and swap; without swap accounting there is no file
        limit = "memory.limit_in_bytes"
        memory = int(said.get(limit) or cgroupfs.read(f"{directory}/{limit}"))
        try:
            cgroupfs.write(f"{directory}/memory.memsw.limit_in_bytes", str(memory + int(value)))
        except FileNotFoundError:
            pass
    elif file == "cpu.max":
        quota, period = value.split()
        if period != said.get("cpu.cfs_period_us"):
            cgroupfs.write(f"{directory}/cpu.cfs_period_us", period)
        cgroupfs.write(f"{directory}/cpu.cfs_quota_us", "-1" if quota == "max" else quota)
    elif file == "cpu.weight":
        cgroupfs.write(f"{directory}/cpu.shares", str(limits.shares_of(int(value))))
    elif file == "cpuset.cpus":
        _set_cpus(directory, value)
    elif file == "io.max":
        _set_io(directory, value)
    elif file == "bpf.priority":
        netprio.attach(directory, int(value))
    elif file == "net_prio.ifpriomap":
        netprio.set_map(directory, int(value))
    else:
        cgroupfs.write(f"{directory}/{limits.V1_FILES[file]}", value)


def _set_memory(directory: str, value: int) -> None:
    """memory.limit_in_bytes may never be above memory.memsw.limit_in_bytes: that goes first."""
    limit, both = (f"{directory}/memory.{name}limit_in_bytes" for name in ("", "memsw."))
    try:
        try:
            cgroupfs.write(limit, str(value))
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            old, sum_ = int(cgroupfs.read(limit)), int(cgroupfs.read(both))
            cgroupfs.write(both, str(value + max(0, sum_ - old)))
            cgroupfs.write(limit, str(value))
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        used = cgroupfs.read(f"{directory}/memory.usage_in_bytes").strip()
        raise cgroupfs.Refused(errno.EBUSY, f"{used} bytes are in use: cgroup v1 does not kill "
                               "to make room for a lower limit") from e  # fmt: skip


def _set_cpus(directory: str, value: str) -> None:
    """Memory nodes too: no process may enter before both are set."""
    parent = os.path.dirname(directory)
    cgroupfs.allowed_cpus(value, f"{parent}/cpuset.effective_cpus")
    if not cgroupfs.read(f"{directory}/cpuset.mems").strip():
        nodes = cgroupfs.read(f"{parent}/cpuset.effective_mems").strip()
        cgroupfs.write(f"{directory}/cpuset.mems", nodes)
    cgroupfs.write(f"{directory}/cpuset.cpus", value)


def _set_io(directory: str, value: str) -> None:
    device, *pairs = value.split(" ")
    disk = cgroupfs.disk_of(device)
    for key, _, number in (pair.partition("=") for pair in pairs):
        cgroupfs.write(f"{directory}/{limits.V1_IO[key]}", f"{disk} {number}")


def get_limit(directories: Directories, file: str) -> str:
    """What ``set_limit`` would have to write to have it as it is."""
    directory = directories[file.partition(".")[0]]

    def value(name: str) -> str:
        return cgroupfs.read(f"{directory}/{name}").strip()

    if file == "memory.swap.max":
        if not os.path.exists(f"{directory}/memory.memsw.limit_in_bytes"):
            return "0"
        return str(int(value("memory.memsw.limit_in_bytes")) - int(value("memory.limit_in_bytes")))
    if file == "cpu.max":
        quota = value("cpu.cfs_quota_us")
        return f"{'max' if quota == '-1' else quota} {value('cpu.cfs_period_us')}"
    if file == "cpu.weight":
        return str(max(1, round(int(value("cpu.shares")) * 100 / 1024)))
    return value(limits.V1_FILES[file])


def oom_kills(directories: Directories) -> int:
    return cgroupfs.counter(f"{directories['memory']}/memory.oom_control", "oom_kill")


def disks(directory: str) -> dict[str, DiskStats]:
    """Device -> counters, out of the files of blkio."""
    found: dict[str, dict[str, int]] = {}
    for file in ("io_service_bytes", "io_serviced"):
        for key, count in cgroupfs.counters(f"{directory}/blkio.throttle.{file}_recursive").items():
            device, _, what = key.partition(" ")
            found.setdefault(device, {})[f"{file} {what}"] = count
    keys = [f"{file} {what}" for file in ("io_service_bytes", "io_serviced")
            for what in ("Read", "Write")]  # fmt: skip
    return {device: DiskStats(*(values.get(key, 0) for key in keys))
            for device, values in found.items() if ":" in device}  # fmt: skip


def stats(directories: Directories) -> CgroupStats:
    memory, pids, io = (directories.get(name, "") for name in ("memory", "pids", "io"))
    user, system = _cpu_time(directories)
    return CgroupStats(
        memory_current=cgroupfs.number(f"{memory}/memory.usage_in_bytes") if memory else None,
        memory_peak=memory_peak(directories),
        pids_current=cgroupfs.number(f"{pids}/pids.current") if pids else None,
        pids_peak=cgroupfs.number(f"{pids}/pids.peak") if pids else None,
        cpu_user=user,
        cpu_system=system,
        throttled=throttled(directories),
        disks=disks(io) if io else None,
    )


def throttled(directories: Directories) -> float | None:
    if "cpu" not in directories:
        return None
    return cgroupfs.counter(f"{directories['cpu']}/cpu.stat", "throttled_time") / 1e9


def cpu(directories: Directories) -> tuple[float | None, float | None]:
    """Seconds for which it was throttled, and seconds of CPU time: cpuacct.usage counts in
    nanoseconds, its usage_user and usage_sys in ticks."""
    used = None
    if "unified" in directories:
        used = cgroupfs.counter(f"{directories['unified']}/cpu.stat", "usage_usec") / 1e6
    elif "cpuacct" in directories:
        count = cgroupfs.number(f"{directories['cpuacct']}/cpuacct.usage")
        used = None if count is None else count / 1e9
    return throttled(directories), used


def counts_all(directories: Directories) -> bool:
    return "memory" in directories and bool({"unified", "cpuacct"} & set(directories))


def memory_peak(directories: Directories) -> int | None:
    if "memory" not in directories:
        return None
    return cgroupfs.number(f"{directories['memory']}/memory.max_usage_in_bytes")


def _cpu_time(directories: Directories) -> tuple[float, float]:
    """User and system seconds. Without a directory that counts them: of who lives, and of those
    that they have waited for."""
    if "unified" in directories:
        cpu = cgroupfs.counters(f"{directories['unified']}/cpu.stat")
        return cpu.get("user_usec", 0) / 1e6, cpu.get("system_usec", 0) / 1e6
    if "cpuacct" in directories:
        user, system = (cgroupfs.number(f"{directories['cpuacct']}/cpuacct.usage_{kind}") or 0
                        for kind in ("user", "sys"))  # fmt: skip
        return user / 1e9, system / 1e9
    times = [0, 0]
    for pid in cgroupfs.all_members(next(iter(directories.values()))):
        try:
            fields = cgroupfs.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        except OSError:
            continue
        for kind in (0, 1):  # utime, stime; cutime, cstime: proc_pid_stat(5)
            times[kind] += int(fields[11 + kind]) + int(fields[13 + kind])
    return times[0] / _TICKS, times[1] / _TICKS


def events(directories: Directories) -> dict[str, int]:
    found: dict[str, int] = {}
    if "memory" in directories:
        found["memory.max"] = cgroupfs.number(f"{directories['memory']}/memory.failcnt") or 0
        found["memory.oom_kill"] = oom_kills(directories)
    if "pids" in directories:
        found["pids.max"] = cgroupfs.counter(f"{directories['pids']}/pids.events", "max")
    found["populated"] = int(any(cgroupfs.all_members(one) for one in directories.values()))
    return found
