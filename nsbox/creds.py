# SPDX-License-Identifier: Apache-2.0
"""Steps of identity: id maps, user, groups, capabilities, rlimits, descriptors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nsbox import devices
from nsbox.build import CALLER_ID, SLOT_IDS, Build
from nsbox.errors import SpecError, Unavailable
from nsbox.hoststeps import IdMap
from nsbox.idmap import more_ids
from nsbox.names import CAPABILITIES, RLIM_INFINITY, RLIMITS, Opcode, SecureBit, capability_mask
from nsbox.profile import PROFILES
from nsbox.steps import Fd, Groups, Number, Simple, capability_names, rlimit

if TYPE_CHECKING:
    from nsbox.host import Host
    from nsbox.spec import Spec

ALL_CAPABILITIES = (1 << len(CAPABILITIES)) - 1


def decide_ids(build: Build) -> None:
    """Which user the payload is, and how its user namespace maps it."""
    spec, host = build.spec, build.host
    default = build.profile.uid
    if not build.in_userns:
        default = host.euid if not host.privileged or spec.profile == "none" else default and 65534
    build.uid = default if spec.uid is None else spec.uid
    is_caller = build.uid == host.euid and not build.in_userns
    build.gid = spec.gid if spec.gid is not None else host.egid if is_caller else build.uid
    if build.in_userns:
        if build.id_map:
            pass  # of the pod, which decided for all its containers
        elif host.maps_ids:
            build.id_map = "slot"
        else:
            many = bool(spec.groups) or spec.profile == "standard"
            build.id_map = "range" if host.subids and many else "single"
        _check_mapped(build)
    elif not host.privileged and (build.uid, build.gid) != (host.euid, host.egid):
        raise Unavailable("user", f"only root can become {build.uid}:{build.gid}",
                          hint='put "user" among the namespaces')  # fmt: skip


def _check_mapped(build: Build) -> None:
    spec = build.spec
    if build.id_map == "single":
        if spec.groups:
            raise Unavailable("groups", "a user namespace with a single id has none",
                              hint=more_ids(build.host))  # fmt: skip
        return
    for field, value in (
        ("user", build.uid),
        ("user", build.gid),
        *(("groups", g) for g in spec.groups),
    ):
        if value >= SLOT_IDS:
            raise SpecError(field, f"{value} is not mapped: ids inside are below {SLOT_IDS}")


def check_same_id(build: Build, base: Spec) -> None:
    """Where one id is mapped, a second process of *base* can have no other."""
    own = Build(base, build.host, build.join, id_map=build.id_map)
    decide_ids(own)
    if build.id_map == "single" and (own.uid, own.gid) != (build.uid, build.gid):
        raise Unavailable("user", f"only the id {own.uid}:{own.gid} is mapped here", hint="; ".join(
            filter(None, (more_ids(build.host), 'make the sandbox with profile="standard", which '
                          f"maps a range of ids, or with user={build.uid}"))
        ))  # fmt: skip


def id_map_step(build: Build) -> IdMap:
    """What is written to /proc/PID/uid_map, and by whom."""
    host = build.host
    if build.maps is not None:
        return build.maps
    by, first, caller = "launcher", None, (host.euid, host.egid)
    if build.within:  # whose members may map all that is mapped there
        by, first, caller = "joiner", 0, (CALLER_ID, CALLER_ID)
    elif build.id_map == "range":
        by = "newuidmap"
    if build.id_map != "single":
        whole = ((0, first, SLOT_IDS),)
        return IdMap(whole, whole, by, "user")
    return IdMap(((build.uid, caller[0], 1),), ((build.gid, caller[1], 1),), by, "user")


def router_map(host: Host) -> IdMap:
    """Of the user namespace of an ordinary user's networks: all that sandboxes in it can need."""
    uids, gids = ((CALLER_ID, host.euid, 1),), ((CALLER_ID, host.egid, 1),)
    if not host.subids:
        return IdMap(uids, gids, "launcher", "net")
    whole = ((0, None, SLOT_IDS),)
    return IdMap(whole + uids, whole + gids, "newuidmap", "net")


def become_setup_ids(build: Build) -> None:
    """An id that is not mapped can create nothing (EOVERFLOW): become 0 of the namespace first."""
    if build.id_map in ("slot", "range"):
        build.add(
            Groups((), "user"),
            Number(Opcode.SETGID, "gid", "0, for set-up", 0, "user"),
            Number(Opcode.SETUID, "uid", "0, for set-up", 0, "user"),
        )


def kept_capabilities(build: Build) -> int:
    """The mask of what the payload has; raises Unavailable where the caller has not."""
    spec = build.spec
    names = build.profile.capabilities if spec.capabilities is None else spec.capabilities
    has = ALL_CAPABILITIES if build.in_userns else build.host.capabilities
    if names is None:
        return has
    mask = capability_mask(names)
    if spec.capabilities is not None and mask & ~has:
        raise Unavailable(
            "capabilities", f"the caller lacks {capability_names(mask & ~has)}",
            hint='put "user" among the namespaces, where set-up has them all',
        )  # fmt: skip
    return mask & has


def add_credentials(build: Build) -> None:
    """Bounding set, groups, gid, uid, capabilities, no_new_privs: in this order."""
    profile, spec = build.profile, build.spec
    kept = kept_capabilities(build)
    has = ALL_CAPABILITIES if build.in_userns else build.host.capabilities
    lowers = kept != has
    if lowers and build.capable:
        build.add(Number(Opcode.BOUNDING, "bounding", capability_names(kept), kept, "capabilities"))
    if kept and (build.uid != 0 or profile.securebits):
        _add_kept(build, kept, has)
    else:
        if profile.securebits and build.capable:
            build.add(_securebits(profile.securebits))
        _add_ids(build)
        if lowers:
            build.add(_caps(kept, 0))
    if profile.no_new_privs:
        build.add(Simple(Opcode.NO_NEW_PRIVS, "no-new-privs", "", "profile"))
    build.applied["capabilities"] = capability_names(kept)
    build.applied["no_new_privs"] = "set" if profile.no_new_privs else "not asked for"
    build.applied["user"] = f"{build.uid}:{build.gid} ({build.id_map or 'not mapped'})"
    if spec.profile != "none" and not build.capable:
        build.applied["bounding"] = "missing: needs root or a user namespace"


def _securebits(bits: int) -> Number:
    return Number(Opcode.SECUREBITS, "securebits", f"{bits:#x}", bits, "profile")


def _caps(permitted: int, inheritable: int) -> Number:
    names = capability_names(permitted)
    return Number(Opcode.CAPS, "capabilities", names, permitted, "capabilities", inheritable)


def _add_kept(build: Build, kept: int, has: int) -> None:
    """Capabilities that outlive setuid and execve: by the ambient set, locked only afterwards."""
    if build.capable:
        build.add(_securebits(int(SecureBit.NO_SETUID_FIXUP)))
    _add_ids(build)
    build.add(
        _caps(has, kept),
        Number(Opcode.AMBIENT, "ambient", capability_names(kept), kept, "capabilities"),
    )
    if build.capable:
        build.add(_securebits(build.profile.securebits))
    build.add(_caps(kept, kept))


def _add_ids(build: Build) -> None:
    if not build.capable or build.id_map == "single":
        return  # one id, which set-up has; setgroups(2) is denied
    setup = (0, 0) if build.in_userns else (build.host.euid, build.host.egid)
    build.add(Groups(build.spec.groups, "groups"))
    if (build.uid, build.gid) != setup:
        build.add(
            Number(Opcode.SETGID, "gid", str(build.gid), build.gid, "user"),
            Number(Opcode.SETUID, "uid", str(build.uid), build.uid, "user"),
        )


def add_rlimits(build: Build) -> None:
    """Limits of each process, never above the caller's own hard limits."""
    hard = dict(build.host.hard_rlimits)
    wanted = {name: (soft, limit, "profile") for name, soft, limit in build.profile.rlimits}
    if build.spec.limits.nofile is not None:
        number = build.spec.limits.nofile
        wanted["nofile"] = (number, number, "limits.nofile")
        build.enforcement["nofile"] = "RLIMIT_NOFILE"
    if isinstance(build.spec.limits.disk, int) and "fsize" in wanted:  # which bounds files as well
        most = max(build.spec.limits.disk, wanted["fsize"][1])
        wanted["fsize"] = (most, most, "limits.disk")
    if build.spec.profile != "none" and "pids" not in build.enforcement and build.profile.pids:
        wanted["nproc"] = (build.profile.pids, build.profile.pids, "profile")
        how = "RLIMIT_NPROC, of the profile: no pids cgroup here"
        build.enforcement["pids"] = build.applied["pids"] = how
    if build.spec.limits.cpu_time is not None:
        # Of each process, in whole seconds: a backstop, should who looks be late.
        seconds = math.ceil(build.spec.limits.cpu_time) + 1
        most = min(seconds, hard.get("cpu", seconds))
        wanted["cpu"] = (most, most, "limits.cpu_time")
    for name, soft, limit in build.spec.rlimits:
        wanted[name] = (soft, limit, f"rlimits[{name!r}]")
    for name, (soft, limit, source) in wanted.items():
        most = hard.get(name, RLIM_INFINITY)
        if limit > most and source != "profile":
            build.cannot(source, f"{limit} is above the caller's own hard limit, {most}")
        build.add(rlimit(name, RLIMITS[name], min(soft, most), min(limit, most), source))


def add_descriptors(build: Build) -> None:
    """0, 1, 2 and those asked for; every other descriptor closes at execve."""
    numbers = []
    if build.spec.pty is not None:
        devices.add_pty(build)
    for number in (0, 1, 2) if build.spec.pty is None else ():
        build.add(Fd(build.pass_slot("stdio", number), number, "stdio"))
    for number in sorted(set(build.spec.pass_fds) - {0, 1, 2}):
        build.add(Fd(build.pass_slot("pass", number), number, "pass_fds"))
        numbers.append(number)
    first = 3
    for number in [*numbers, (1 << 32) - 1]:
        if number > first:
            last = number - 1 if number in numbers else number
            build.add(Number(Opcode.CLOEXEC, "cloexec", f"{first}..", first, "stdio", last))
        first = number + 1
    build.applied["fds"] = ", ".join(map(str, [0, 1, 2, *numbers]))


def decide_pod_map(specs: list[Spec], host: Host) -> tuple[str, int]:
    """How a pod's one user namespace maps ids, and the id that its pause process has there.

    Raises:
        SpecError: only one id can be mapped here, and the containers have different users.
    """
    if host.maps_ids:
        return "slot", 1000
    users = {PROFILES[spec.profile].uid if spec.uid is None else spec.uid for spec in specs}
    if host.subids and (len(users) > 1 or any(s.groups or s.profile == "standard" for s in specs)):
        return "range", 1000
    if len(users) > 1:
        raise SpecError("user", f"only one id can be mapped here, not {sorted(users)}: "
                        f"{more_ids(host)}")  # fmt: skip
    return "single", users.pop()
