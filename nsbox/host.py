# SPDX-License-Identifier: Apache-2.0
"""What compile() must know of the host, as a value: probe.py finds it out, tests make it up."""

from __future__ import annotations

from dataclasses import dataclass

from nsbox.cgroup_places import Places
from nsbox.hashing import hashed_once

#: Controllers that limits are enforced with, in the names of cgroup v2.
CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io")


@hashed_once
@dataclass(frozen=True)
class Host:
    """The caller's privileges and the facts of its host.

    Attributes:
        euid, egid: effective ids of the caller.
        capabilities: mask of its effective capabilities, in its user namespace.
        privileged: it may make any namespace without a user namespace (CAP_SYS_ADMIN).
        maps_ids: it may map any ids into a user namespace (root in the initial one).
        subids: newuidmap and newgidmap would map a range for it.
        system: the host's system directories: (path, "dir" | "link" | "file", link target).
        devices: character devices of a minimal /dev: (name, device number).
        hard_rlimits: (name, hard limit) of the caller, which only CAP_SYS_RESOURCE may exceed.
        controllers: cgroup controllers that it can write limits for.
        cgroup_version: of these: 1, 2, or 0 for none.
        cgroup2: a directory of cgroup v2 can be made; beside v1 it is one without controllers.
        places: why others cannot be made, and what would mend it; looked up where some cannot.
        net_prio: v1's controller is there, to be used where there is no ``cgroup2``, and the
            caller is in the initial network namespace, whose devices alone it knows.
        attaches_bpf: it may attach a BPF program to a cgroup.
        helpers: newuidmap and newgidmap are installed.
        exec_enters_time: a time namespace that was unshared is entered by execve (Linux 6.3).
        tmpfs_user_xattrs: files in a tmpfs have attributes of users (Linux 6.6).
        spare_net: the launcher may make network namespaces ahead.
        net_sysctls: it can write those of a network namespace, below /proc/sys/net.
        templates: roots may be built once and entered, see templates.py.
        seccomp: filters of system calls can be loaded.
        landlock: the version of its ABI, 0 for none.
        machine: as ``uname -m`` has it: what numbers system calls have.
    """

    euid: int = 0
    egid: int = 0
    capabilities: int = (1 << 41) - 1
    privileged: bool = True
    maps_ids: bool = True
    subids: bool = False
    system: tuple[tuple[str, str, str], ...] = (("/usr", "dir", ""), ("/bin", "link", "usr/bin"))
    devices: tuple[tuple[str, int], ...] = (("null", 259),)
    hard_rlimits: tuple[tuple[str, int], ...] = ()
    controllers: tuple[str, ...] = CONTROLLERS
    cgroup_version: int = 2
    cgroup2: bool = True
    net_prio: bool = False
    places: Places = Places()  # noqa: RUF009  (immutable)
    attaches_bpf: bool = True
    helpers: bool = False
    exec_enters_time: bool = True
    tmpfs_user_xattrs: bool = True
    spare_net: bool = True
    net_sysctls: bool = True
    templates: bool = True
    seccomp: bool = True
    landlock: int = 7
    machine: str = "x86_64"
