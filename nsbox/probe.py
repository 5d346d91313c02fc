# SPDX-License-Identifier: Apache-2.0
"""Finds out the facts of this host and this caller that compile() asks for."""

from __future__ import annotations

import functools
import os
import re
import resource
import shutil
import stat
import struct
from dataclasses import replace
from pathlib import Path

from nsbox import _core, hierarchy, netprio
from nsbox.cgroup_places import Places
from nsbox.compile import PATH
from nsbox.errors import Unavailable
from nsbox.host import CONTROLLERS, Host
from nsbox.keywords import DEVICES
from nsbox.names import CAPABILITIES, RLIM_INFINITY, RLIMITS
from nsbox.seccomp import Ret
from nsbox.syscalls import machine, number_of

_SYS_ADMIN, _SETUID = CAPABILITIES.index("SYS_ADMIN"), CAPABILITIES.index("SETUID")
_ATTACH_BPF = 1 << CAPABILITIES.index("BPF") | 1 << CAPABILITIES.index("NET_ADMIN")

#: What a program of the host's needs to run; all of it is readable by everybody there.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/certs", "/etc/protocols", "/etc/services",
    "/etc/mime.types",
)  # fmt: skip
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
#: Where helpers with a privilege are looked for: never in PATH, which is anybody's.
_TRUSTED = ("/usr/bin", "/bin", "/usr/local/bin")


def _status(field: str) -> str:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return line.split(None, 1)[1]
    return "0"


def _in_initial_userns() -> bool:
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    except OSError:
        return False


def helper(name: str) -> str | None:
    """The path of newuidmap or newgidmap in a trusted directory."""
    for directory in _TRUSTED:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK) and os.stat(path).st_uid == 0:
            return path
    return None


def program(name: str) -> str | None:
    """The path of a program of the system's, which runs with the caller's own rights."""
    paths = (f"{directory}/{name}" for directory in _TRUSTED)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def subordinate_range(database: str, euid: int) -> tuple[int, int] | None:
    """The caller's first range in /etc/subuid or /etc/subgid: (first, count)."""
    import pwd

    try:
        name = pwd.getpwuid(euid).pw_name
    except KeyError:
        name = ""
    try:
        lines = Path(database).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        parts = line.strip().split(":")
        if len(parts) == 3 and parts[0] in (name, str(euid)) and parts[1].isdigit():
            return int(parts[1]), int(parts[2])
    return None


def _has_subids(euid: int) -> bool:
    if not (helper("newuidmap") and helper("newgidmap")):
        return False
    ranges = [subordinate_range(f"/etc/sub{kind}", euid) for kind in ("uid", "gid")]
    return all(found is not None and found[1] >= 65536 for found in ranges)


@functools.lru_cache(maxsize=1)
def _system() -> tuple[tuple[str, str, str], ...]:
    found = []
    for path in _SYSTEM:
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode) and not path.startswith("/etc/"):
            found.append((path, "link", os.readlink(path)))
        else:
            found.append((path, "dir" if os.path.isdir(path) else "file", ""))
    return tuple(found)


@functools.lru_cache(maxsize=1)
def _devices() -> tuple[tuple[str, int], ...]:
    found = []
    for name in _DEVICES:
        try:
            status = os.stat(f"/dev/{name}")
        except OSError:
            continue
        if stat.S_ISCHR(status.st_mode):
            device = status.st_rdev
            found.append((name, os.major(device) << 8 | os.minor(device)))
    return tuple(found)


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def device_nodes(name: str) -> tuple[tuple[str, str, int], ...]:
    """(name, path, device number) of each node of a device that ``devices=`` names.

    Raises:
        Unavailable: there is none here.
    """
    import glob

    found = []
    for pattern in DEVICES[name]:
        for path in sorted(glob.glob(pattern)):
            status = os.lstat(path)
            if stat.S_ISCHR(status.st_mode):
                device = os.major(status.st_rdev) << 8 | os.minor(status.st_rdev)
                found.append((name, path, device))
    if not found:
        raise Unavailable(f"devices[{name!r}]", f"no device at {', '.join(DEVICES[name])}",
                          hint="load the driver of the device on the host")  # fmt: skip
    return tuple(found)


def _hard_rlimits() -> tuple[tuple[str, int], ...]:
    result = []
    for name, number in RLIMITS.items():
        hard = resource.getrlimit(number)[1]
        result.append((name, RLIM_INFINITY if hard == resource.RLIM_INFINITY else hard))
    return tuple(result)


def _asks(call: str, *args: int | bytes | None) -> int:
    """What the kernel answers; -1 when it refuses."""
    try:
        return _core.raw_syscall(number_of(call), *args)
    except OSError:
        return -1


def _filters_calls() -> bool:
    """Not only whether the kernel can: a filter that the caller is under may forbid it."""
    get_action_avail = 2
    action = struct.pack("=I", Ret.KILL_PROCESS)
    return _asks("seccomp", get_action_avail, 0, action) == 0


def _landlock_abi() -> int:
    version = 1
    return max(0, _asks("landlock_create_ruleset", None, 0, version))


def host(*, cached: bool = True) -> Host:
    """The facts of now; looked up anew when the caller's identity has changed."""
    identity = (os.getresuid(), os.getresgid(), os.getpid())
    if identity[0][0] != identity[0][1]:
        raise Unavailable("nsbox", "a set-user-ID caller is not served: its real and effective "
                          "user differ")  # fmt: skip
    if not cached:
        _host.cache_clear()
        host_of.cache_clear()
    found = _host(identity)
    if found.net_prio and not netprio.in_initial_network():  # a thread may have moved itself
        return replace(found, net_prio=False)
    return found


@functools.lru_cache(maxsize=4)
def host_of(view: bytes) -> Host:
    """``host()`` for who has just asked for its ``launcher.view()``, which is of one identity."""
    return host()


def _is_complete(where: hierarchy.Parents) -> bool:
    return bool(where.of("unified")) and set(CONTROLLERS) <= set(where.controllers)


@functools.lru_cache(maxsize=4)
def _host(identity: tuple[object, ...]) -> Host:
    euid, egid = os.geteuid(), os.getegid()
    capabilities = int(_status("CapEff"), 16)
    initial = _in_initial_userns()
    where = hierarchy.find_parents()
    return Host(
        euid=euid,
        egid=egid,
        capabilities=capabilities,
        privileged=bool(capabilities >> _SYS_ADMIN & 1),
        maps_ids=initial and bool(capabilities >> _SETUID & 1),
        subids=initial and euid != 0 and _has_subids(euid),
        helpers=bool(helper("newuidmap") and helper("newgidmap")),
        exec_enters_time=_kernel() >= (6, 3),
        tmpfs_user_xattrs=_kernel() >= (6, 6),
        system=_system(),
        devices=_devices(),
        hard_rlimits=_hard_rlimits(),
        controllers=where.controllers,
        cgroup_version=where.version,
        cgroup2=bool(where.of("unified")),
        net_prio=hierarchy.NET_PRIO in dict(where.directories),
        places=Places() if _is_complete(where) else hierarchy.places(),
        attaches_bpf=initial and capabilities & _ATTACH_BPF == _ATTACH_BPF,
        spare_net=os.environ.get("NSBOX_SPARE_NET") != "0",
        net_sysctls=os.access("/proc/sys/net/ipv4/ping_group_range", os.W_OK),
        seccomp=_filters_calls(),
        landlock=_landlock_abi(),
        machine=machine(),
        templates=os.environ.get("NSBOX_TEMPLATES") != "0",
    )


def interpreter_trees(program: str, system: tuple[tuple[str, str, str], ...]) -> tuple[str, ...]:
    """Host paths that *program* needs beyond the system directories.

    Every hop of its symlinks counts: a virtual environment's python is a link to another
    place. Of an installation (bin beside lib, or pyvenv.cfg) the whole tree is needed; of
    anything else just the file, for its directory may be somebody's home.
    """
    roots = [path for path, _, _ in system]
    if "/" not in program:
        inside = any(os.access(f"{path}/{program}", os.X_OK) for path in PATH.split(":"))
        program = "" if inside else shutil.which(program) or ""
    trees: list[str] = []
    for _ in range(16):
        if not program or not os.path.lexists(program):
            break
        program = os.path.normpath(os.path.join(os.getcwd(), program))
        if not any(program == root or program.startswith(root + "/") for root in roots):
            trees.append(_installation(program))
        if not os.path.islink(program):
            break
        program = os.path.join(os.path.dirname(program), os.readlink(program))
    return tuple(dict.fromkeys(trees))


def _installation(program: str) -> str:
    prefix = os.path.dirname(os.path.dirname(program))
    is_bin = os.path.basename(os.path.dirname(program)) == "bin"
    if not is_bin or prefix in ("/", os.path.expanduser("~")):
        return program
    if os.path.exists(f"{prefix}/pyvenv.cfg") or os.path.isdir(f"{prefix}/lib"):
        return prefix
    return program
