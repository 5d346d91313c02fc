# SPDX-License-Identifier: Apache-2.0
"""Steps of namespaces and cgroups: which are entered, which are made, and what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox import creds, limits, mounts
from nsbox.build import SLOT_IDS, Build
from nsbox.errors import SpecError, Unavailable
from nsbox.hoststeps import Clone3, LauncherNet, MakeCgroup
from nsbox.names import NAMESPACES, Clone, Opcode, OpFlag, PlanFlag, capability_mask
from nsbox.slots import CGROUP2, JOIN, OWNER, TIME
from nsbox.spec import NetLabel
from nsbox.steps import (
    EnterCgroup,
    HandNetlink,
    Netlink,
    Number,
    OpenNetlink,
    Options,
    Pair,
    Setns,
    Simple,
    Text,
    Unshare,
    capability_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsbox.host import Host
    from nsbox.spec import Spec
    from nsbox.steps import Step

_LATE = ("cgroup", "time")
_NETWORK = capability_mask(("NET_ADMIN", "NET_RAW"))


def new_namespaces(spec: Spec, host: Host, join: tuple[str, ...]) -> tuple[str, ...]:
    if spec.namespaces is not None:
        wanted = list(spec.namespaces)
    else:
        wanted = list(Build(spec, host).profile.namespaces)
        if not host.privileged and "user" not in wanted:
            wanted.insert(0, "user")
        if spec.net == "host":
            wanted = [kind for kind in wanted if kind != "net"]
    if spec.time_offsets and "time" not in wanted:
        wanted.append("time")
    if not host.privileged and "user" not in wanted and "user" not in join and wanted:
        raise Unavailable(
            "namespaces", f"{', '.join(wanted)} need CAP_SYS_ADMIN",
            alternatives=('"user" among the namespaces',),
        )  # fmt: skip
    return tuple(kind for kind in NAMESPACES if kind in wanted and kind not in join)


def add_cgroup(build: Build) -> None:
    """Host steps: the directories and their limits, before the child that they are for."""
    files = limits.cgroup_limits(build)
    controllers = tuple(dict.fromkeys([*limits.controllers_of(files), *limits.cpu_counter(build)]))
    if not controllers:
        if "pid" in build.join:
            build.applied["pid"] = "shared: without a cgroup, it ends with its mount namespace"
        return
    build.add(MakeCgroup(controllers, "limits"), *files)
    for controller in controllers if build.host.cgroup_version == 1 else ():
        if controller != "bpf":
            build.pass_slot("cgroup", controller)
    if build.host.cgroup_version == 2 or "bpf" in controllers:
        build.pass_slot(*CGROUP2)


def enter_cgroup(build: Build) -> None:
    """v1: the child enters by itself. The cgroup namespace comes after, or it would see "/.."."""
    slots = [slot for slot in build.passed if slot.kind == "cgroup"]
    for slot in slots:
        if slot.key != "v2":
            build.add(EnterCgroup(slot, "limits"))
    if slots and build.has_new("cgroup"):
        build.add(Unshare(Clone.NEWCGROUP, "namespaces"))


def add_clone(build: Build) -> None:
    in_cgroup = any(slot.kind == "cgroup" for slot in build.passed)
    flags = Clone(0)
    for kind in build.new:
        copied = kind == "mnt" and build.template and not build.in_userns
        later = (kind == "cgroup" and in_cgroup) or copied or kind == "time"
        flags |= Clone(0) if later else NAMESPACES[kind]
    if _launcher_net(build):
        build.add(LauncherNet("net"))
        build.flags |= PlanFlag.LAUNCHER_NET
        _open_network(build)
    build.add(Clone3(flags, CGROUP2 in build.passed, "namespaces"))
    if "net" in build.new and not build.in_userns and build.host.spare_net:
        build.flags |= PlanFlag.SPARE_NET
    if "user" in build.new:
        _add_id_map(build)


def _open_network(build: Build) -> None:
    """Sockets for who makes the links and rules of this network namespace from outside: opened
    by who has a right to them, which the child of a user namespace has in its own network only."""
    if build.spec.attached:
        build.add(*(OpenNetlink(protocol, "net") for protocol in _protocols(build.spec)))


def _protocols(spec: Spec) -> tuple[Netlink, ...]:
    return (Netlink.ROUTE,) if spec.egress is None else (Netlink.NETFILTER, Netlink.ROUTE)


def await_network(build: Build) -> None:
    """The owner makes the network while the child waits: nothing of the payload's runs before."""
    if not (build.spec.attached and build.has_new("net")):
        return
    build.flags |= PlanFlag.FORK  # a child that waits must not hold up the launcher
    if not _launcher_net(build):
        _open_network(build)
    for protocol in _protocols(build.spec):
        if protocol is Netlink.ROUTE:
            build.add(HandNetlink(protocol, build.spec.net, "net"))
        else:
            to = ", ".join(build.spec.egress or ("nothing",))
            build.add(HandNetlink(protocol, f"to {to}", "egress"))


def guard_network(build: Build) -> None:
    """Rules of egress bind who can neither change them nor send frames past them (AF_PACKET)."""
    net = build.spec.net
    guarded = build.spec.egress is not None or (isinstance(net, NetLabel) and net.guarded)
    kept = creds.kept_capabilities(build) & _NETWORK if guarded else 0
    if kept:
        raise SpecError("net" if build.spec.egress is None else "egress",
                        f"who has {capability_names(kept)} can get round the rules of egress: "
                        "leave it out of capabilities=")  # fmt: skip


def _launcher_net(build: Build) -> bool:
    """Whether the network namespace need not be the sandbox's own to change: without a capability
    it could not, and the launcher may have one ready."""
    return (
        build.has_new("net")
        and build.in_userns
        and build.template  # a joiner enters it, before there is a user namespace
        and build.host.spare_net
        and build.host.net_sysctls
        and not creds.kept_capabilities(build)
    )


def _add_id_map(build: Build) -> None:
    step = creds.id_map_step(build)
    build.add(step)
    if step.by == "newuidmap":
        # A process that is not dumpable has /proc files of root's, which newuidmap refuses.
        build.add(
            Number(Opcode.DUMPABLE, "dumpable", "1, for newuidmap", 1, "user"),
            Simple(Opcode.BARRIER, "barrier", "id-map", "user"),
            Number(Opcode.DUMPABLE, "dumpable", "0", 0, "user"),
        )
        build.flags |= PlanFlag.FORK
    elif build.id_map == "single":
        build.flags |= PlanFlag.DENY_SETGROUPS
    if step.by == "joiner":
        build.flags |= PlanFlag.INNER_MAP


def pass_joined(build: Build) -> None:
    if set(build.join) - {"time"}:
        build.pass_slot(*JOIN)


def add_setns(build: Build, kinds: Iterable[str]) -> None:
    flags = Clone(0)
    for kind in kinds:
        flags |= NAMESPACES[kind]
    if flags:
        build.add(Setns(JOIN, flags, "namespaces"))


def add_joins(build: Build) -> None:
    """In the joiner, before the child: it is born into the namespaces, and none sees it enter."""
    if "pid" in build.join:
        # It is seen by strangers, who could stop it, and with it who waits for its memory.
        build.flags |= PlanFlag.FORK
        if build.profile.oom_score_adj:
            score = str(build.profile.oom_score_adj)
            build.add(*_own_proc_file("oom_score_adj", score, "profile"))
    if build.template and build.in_userns:
        mounts.enter_template(build)  # who is in that user namespace may not
    if build.within:
        build.add(Setns(build.pass_slot(*OWNER), Clone.NEWUSER, "net"))
    add_setns(build, (kind for kind in build.join if kind not in _LATE))


def stay_hidden(build: Build) -> None:
    """Among strangers. A change of ids makes a process dumpable where fs.suid_dumpable is 1."""
    if "pid" in build.join:
        build.add(Number(Opcode.DUMPABLE, "dumpable", "0, whatever its ids", 0, "profile"))


def add_late_joins(build: Build) -> None:
    """By the child: in the cgroup namespace CLONE_INTO_CGROUP would not see where it comes
    from, and a time namespace is only entered with a memory of one's own."""
    if "cgroup" in build.join:
        add_setns(build, ("cgroup",))
    if "time" in build.join:
        build.flags |= PlanFlag.FORK
        build.add(Setns(build.pass_slot(*TIME), Clone.NEWTIME, "namespaces"))


def add_time(build: Build) -> None:
    """Offsets can be written as long as nobody is in it: the execve that follows enters."""
    if not build.has_new("time"):
        return
    build.flags |= PlanFlag.FORK
    build.add(Unshare(Clone.NEWTIME, "namespaces"))
    text = "".join(f"{clock} {ns // 10**9} {ns % 10**9}\n"
                   for clock, ns in build.spec.time_offsets)  # fmt: skip
    if text:
        build.add(*_own_proc_file("timens_offsets", text, "time_offsets"))


def _own_proc_file(name: str, value: str, source: str) -> list[Step]:
    """Writes /proc/self/NAME while the caller's /proc is in view: nobody hostile sees it so."""
    return [
        Number(Opcode.DUMPABLE, "dumpable", "1, to own its /proc files", 1, source),
        Options(Opcode.PROCFS, "procfs", (), 0, source, int(OpFlag.AS_IS)),
        Pair(Opcode.SYSCTL, "sysctl", f"self/{name}", value, source),
        Number(Opcode.DUMPABLE, "dumpable", "0", 0, source),
    ]


def _port_sysctls(build: Build) -> list[tuple[str, str]]:
    """In a network of its own, ports below 1024 and ping need no privilege."""
    if not build.has_new("net") or build.profile.capabilities is None or _launcher_net(build):
        return []
    last = build.gid if build.id_map == "single" else SLOT_IDS - 1
    first = build.gid if build.id_map == "single" else 0
    return [
        ("sys/net/ipv4/ip_unprivileged_port_start", "0"),
        ("sys/net/ipv4/ping_group_range", f"{first} {last}"),
    ]


def add_proc_writes(build: Build) -> None:
    """sysctls and oom_score_adj, through a procfs that is attached nowhere."""
    writes = [(path, value, "net") for path, value in _port_sysctls(build)]
    writes += [(f"sys/{name}", value, "net") for name, value in build.sysctls]
    if build.profile.lock_userns and "user" in build.new:
        writes.append(("sys/user/max_user_namespaces", "0", "profile"))
        build.applied["user-namespace lock"] = "max_user_namespaces=0"
    score = 0 if "pid" in build.join else build.profile.oom_score_adj  # given by the joiner
    possible = build.capable and (build.own("pid") or not build.in_userns)
    possible = possible and (build.has_new("mnt") or not build.in_userns)
    if not (writes or score):
        return
    if not possible:
        build.applied["sysctls"] = "missing: a procfs needs new pid and mnt namespaces"
        build.applied.pop("user-namespace lock", None)
        return
    build.add(Options(Opcode.PROCFS, "procfs", (), 0, "profile"))
    for path, value, source in writes:
        build.add(Pair(Opcode.SYSCTL, "sysctl", path, value, source))
    if score:
        _add_oom_score(build, score)


def _add_oom_score(build: Build, score: int) -> None:
    write = Pair(Opcode.SYSCTL, "sysctl", "self/oom_score_adj", str(score), "profile")
    if not build.in_userns:
        build.add(write)
        return
    # /proc files of a process that is not dumpable are the initial root's. It must be a
    # process with memory of its own that is made dumpable for a moment, not the launcher.
    build.flags |= PlanFlag.FORK
    build.add(
        Number(Opcode.DUMPABLE, "dumpable", "1, to own its /proc files", 1, "profile"),
        write,
        Number(Opcode.DUMPABLE, "dumpable", "0", 0, "profile"),
    )


def add_names(build: Build) -> None:
    if build.has_new("net") and not _launcher_net(build):
        build.add(Simple(Opcode.LO_UP, "lo", "up", "net"))
    if build.spec.hostname is not None:
        if not build.own("uts"):
            raise SpecError("hostname", 'needs "uts" among the namespaces')
        if build.has_new("uts"):
            build.add(Text(Opcode.HOSTNAME, "hostname", build.spec.hostname, "hostname"))
