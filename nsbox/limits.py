# SPDX-License-Identifier: Apache-2.0
"""Limits as files of a cgroup: which, with what value, and what enforces them on v1. Pure."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, NamedTuple

from nsbox.errors import SpecError
from nsbox.hoststeps import SetLimit

if TYPE_CHECKING:
    from nsbox.build import Build
    from nsbox.cgroup_places import Obstacle
    from nsbox.host import Host
    from nsbox.spec import Limits

_CPU_PERIOD_US = 100_000

#: Limits that a cgroup enforces -> the controller, in the names of cgroup v2. ``net_priority`` is
#: of none: a program on a cgroup v2 directory sets it, or ``net_prio`` of v1.
CONTROLLER_OF = {
    "memory": "memory", "memory_high": "memory", "swap": "memory", "oom_group": "memory",
    "pids": "pids", "cpu": "cpu", "cpu_weight": "cpu", "cpuset": "cpuset", "io": "io",
    "net_priority": "bpf",
}  # fmt: skip

#: File of v2 -> its twin on v1, in the same units but for cpu.weight and memory.swap.max.
V1_FILES = {
    "memory.max": "memory.limit_in_bytes",
    "memory.swap.max": "memory.memsw.limit_in_bytes",
    "pids.max": "pids.max",
    "cpu.max": "cpu.cfs_quota_us",
    "cpu.weight": "cpu.shares",
    "cpuset.cpus": "cpuset.cpus",
    "net_prio.ifpriomap": "net_prio.ifpriomap",
}
#: Key of io.max -> the file of v1, which has one for each.
V1_IO = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}

#: Files whose value before an update can be read and written back.
RESTORABLE = (
    "memory.max", "memory.swap.max", "memory.high", "pids.max", "cpu.max", "cpu.weight",
    "cpuset.cpus",
)  # fmt: skip


class Setting(NamedTuple):
    """One file to write: *limit* asks for it."""

    limit: str
    file: str
    value: str


def settings(limits: Limits, *, spare_pids: int = 0, net_prio: bool = False) -> list[Setting]:
    """The files and values of every limit that is set, in an order in which they can be written.

    *spare_pids* is room for processes that are not the payload's; *net_prio* is for
    ``net_priority`` what there is.
    """
    found: list[Setting] = []
    if limits.memory is not None:
        found += [Setting("memory", "memory.max", str(limits.memory)),
                  Setting("swap", "memory.swap.max", str(limits.swap or 0))]  # fmt: skip
        if limits.oom_group:
            found.append(Setting("oom_group", "memory.oom.group", "1"))
    if limits.memory_high is not None:
        found.append(Setting("memory_high", "memory.high", str(limits.memory_high)))
    if limits.pids is not None:
        found.append(Setting("pids", "pids.max", str(limits.pids + spare_pids)))
    if limits.cpu is not None:
        quota = max(1000, math.ceil(float(limits.cpu) * _CPU_PERIOD_US))
        found.append(Setting("cpu", "cpu.max", f"{quota} {_CPU_PERIOD_US}"))
    if limits.cpu_weight is not None:
        found.append(Setting("cpu_weight", "cpu.weight", str(limits.cpu_weight)))
    if limits.cpuset is not None:
        found.append(Setting("cpuset", "cpuset.cpus", limits.cpuset))
    for device, values in limits.io or ():
        pairs = " ".join(f"{key}={value}" for key, value in values)
        found.append(Setting("io", "io.max", f"{device} {pairs}"))
    if limits.net_priority is not None:
        file = "net_prio.ifpriomap" if net_prio else "bpf.priority"
        found.append(Setting("net_priority", file, str(limits.net_priority)))
    return found


def shares_of(weight: int) -> int:
    """cpu.shares of a cpu.weight, as the scheduler itself has it: 100 is 1024."""
    return max(2, round(weight * 1024 / 100))


def enforced_by(setting: Setting, version: int) -> str:
    """What ``enforcement`` says of it: the kernel's own file."""
    if setting.file == "bpf.priority":
        return "BPF cgroup_inet_sock_create, cgroup_inet_egress"
    name = setting.file
    if version == 1 and name == "io.max":
        keys = (pair.partition("=")[0] for pair in setting.value.split(" ")[1:] if "=" in pair)
        name = ", ".join(V1_IO[key] for key in keys)
    elif version == 1:
        name = V1_FILES.get(name, name)
    return f"cgroup v{version} {name}"


def why_not(limit: str, host: Host) -> tuple[str, str]:
    """Why this host cannot enforce a limit, and what would mend it; ("", "") if it can."""
    controller = CONTROLLER_OF[limit]
    if controller == "bpf":
        if host.net_prio:
            return "", ""
        if not host.attaches_bpf:
            return ("attaching a BPF program to a cgroup takes CAP_BPF and CAP_NET_ADMIN in the "
                    "initial user namespace"), "run as root"  # fmt: skip
        if not (host.cgroup2 and host.cgroup_version):
            return _in_the_way("no cgroup v2 directory can be made here to attach a program to",
                               host.places.obstacle("unified"))  # fmt: skip
    elif controller not in host.controllers:
        return _in_the_way(f"no cgroup here in which the {controller} controller can be used",
                           host.places.obstacle(controller))  # fmt: skip
    elif limit == "memory_high" and host.cgroup_version == 1:
        return "memory.high is of cgroup v2: v1 has nothing that does the same", ""
    return "", ""


def _in_the_way(what: str, obstacle: Obstacle) -> tuple[str, str]:
    return f"{what}: {obstacle.cause}" if obstacle.cause else what, obstacle.fix


def not_from_the_start(limit: str) -> str:
    """Why a cgroup of v1 cannot be given a limit later."""
    return (
        f"this cgroup was made without the {CONTROLLER_OF[limit]} controller, and on v1 does not "
        f"get it later: give it a limit of that kind when it is made"
    )


def check_only_cgroup(limits: Limits) -> None:
    """Raises SpecError for limits that a cgroup alone does not enforce."""
    for field in fields(limits):
        if field.name not in CONTROLLER_OF and getattr(limits, field.name) is not None:
            raise SpecError(f"limits.{field.name}", "is not a cgroup's to enforce: it is for run()")


def controllers_of(found: list[SetLimit] | list[Setting]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.file.partition(".")[0] for one in found))


def cpu_counter(build: Build) -> tuple[str, ...]:
    """The controller whose group counts CPU time, where ``cpu_time`` needs one: the kernel has no
    such limit, so it is looked at (nsbox/cputime.py)."""
    if build.spec.limits.cpu_time is None:
        return ()
    version = build.host.cgroup_version
    counter, file = ("cpu", "cpu.stat") if version == 2 else ("cpuacct", "cpuacct.usage")
    if counter in build.host.controllers:
        build.enforcement["cpu_time"] = f"cgroup v{version} {file}, looked at"
        return (counter,)
    if build.has_new("pid"):
        build.enforcement["cpu_time"] = "/proc/PID/stat of the tree, looked at"
    else:
        build.cannot("limits.cpu_time", "neither a cgroup nor a pid namespace to count it in")
    return ()


def kept_by_nsbox(build: Build) -> None:
    """What nothing of the kernel's is for."""
    limits = build.spec.limits
    if limits.wall is not None:
        build.enforcement["wall"] = "a timer of nsbox's"
    if limits.output is not None:
        build.enforcement["output"] = "nsbox, as it reads each stream"


def cgroup_limits(build: Build) -> list[SetLimit]:
    """The limit steps of a sandbox; the profile's own give way where there is no cgroup."""
    asked, profile, host = build.spec.limits, build.profile, build.host
    defaults = {name: getattr(profile, name) for name in ("memory", "pids", "cpu")
                if getattr(asked, name) is None}  # fmt: skip
    # init is not the payload's: it gets a place of its own
    init = int(build.spec.init and build.has_new("pid"))
    steps, refused = [], set()
    for setting in settings(replace(asked, **defaults), spare_pids=init, net_prio=host.net_prio):
        limit = "memory" if setting.limit in ("swap", "oom_group") else setting.limit
        why, hint = why_not(limit, host)
        if setting.file == "net_prio.ifpriomap" and build.own("net"):
            why = "net_prio of cgroup v1 knows the devices of the initial network namespace alone"
            hint = f'net="host", or for BPF programs: {host.places.obstacle("unified").fix}'
        if limit in refused:
            continue
        if why:
            refused.add(limit)
            if limit in defaults:
                build.applied[limit] = "missing: no cgroup with this controller"
            else:
                build.cannot(f"limits.{limit}", why, hint=hint)
            continue
        if setting.limit == "swap" and asked.swap is not None:
            limit = "swap"
        source = "profile" if limit in defaults else f"limits.{limit}"
        steps.append(SetLimit(setting.file, setting.value, source))
        if limit == setting.limit:
            build.enforcement[limit] = enforced_by(setting, host.cgroup_version)
    return steps
