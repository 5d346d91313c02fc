# SPDX-License-Identifier: Apache-2.0
"""compile(): from a spec and a host to a plan. Pure: every condition is decided here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nsbox import confine, creds, devices, limits, mounts, scratch
from nsbox.build import SLOT_IDS, Build
from nsbox.errors import SpecError, Unavailable
from nsbox.host import Host
from nsbox.names import NAMESPACES, Clone, Opcode, OpFlag, PlanFlag, capability_mask
from nsbox.plan import MAX_OPS, MAX_PASSED, MAX_SLOTS, Plan
from nsbox.spec import NetLabel, Rootfs, Spec
from nsbox.steps import (
    CGROUP2,
    JOIN,
    OWNER,
    TIME,
    Clone3,
    EnterCgroup,
    HandNetlink,
    IdMap,
    LauncherNet,
    MakeCgroup,
    MakeDirs,
    Netlink,
    Number,
    OpenNetlink,
    Options,
    Pair,
    RootTree,
    Setns,
    Simple,
    Text,
    Unshare,
    capability_names,
    mounts_private,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsbox.steps import Step

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGKILL = 9
#: Below this a child that shares the launcher's memory could meet its limit while it is set up.
_TIGHT_MEMORY = 16 << 20
_LATE = ("cgroup", "time")
_NETWORK = capability_mask(("NET_ADMIN", "NET_RAW"))


def _new_namespaces(spec: Spec, host: Host, join: tuple[str, ...]) -> tuple[str, ...]:
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


def _add_cgroup(build: Build) -> None:
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


def _enter_cgroup(build: Build) -> None:
    """v1: the child enters by itself. The cgroup namespace comes after, or it would see "/.."."""
    slots = [slot for slot in build.passed if slot.kind == "cgroup"]
    for slot in slots:
        if slot.key != "v2":
            build.add(EnterCgroup(slot, "limits"))
    if slots and build.has_new("cgroup"):
        build.add(Unshare(Clone.NEWCGROUP, "namespaces"))


def _add_clone(build: Build) -> None:
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


def _await_network(build: Build) -> None:
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


def _guard_network(build: Build) -> None:
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


def _pass_joined(build: Build) -> None:
    if set(build.join) - {"time"}:
        build.pass_slot(*JOIN)


def _add_setns(build: Build, kinds: Iterable[str]) -> None:
    flags = Clone(0)
    for kind in kinds:
        flags |= NAMESPACES[kind]
    if flags:
        build.add(Setns(JOIN, flags, "namespaces"))


def _add_joins(build: Build) -> None:
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
    _add_setns(build, (kind for kind in build.join if kind not in _LATE))


def _stay_hidden(build: Build) -> None:
    """Among strangers. A change of ids makes a process dumpable where fs.suid_dumpable is 1."""
    if "pid" in build.join:
        build.add(Number(Opcode.DUMPABLE, "dumpable", "0, whatever its ids", 0, "profile"))


def _add_late_joins(build: Build) -> None:
    """By the child: in the cgroup namespace CLONE_INTO_CGROUP would not see where it comes
    from, and a time namespace is only entered with a memory of one's own."""
    if "cgroup" in build.join:
        _add_setns(build, ("cgroup",))
    if "time" in build.join:
        build.flags |= PlanFlag.FORK
        build.add(Setns(build.pass_slot(*TIME), Clone.NEWTIME, "namespaces"))


def _add_time(build: Build) -> None:
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


def _add_proc_writes(build: Build) -> None:
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


def _add_names(build: Build) -> None:
    if build.has_new("net") and not _launcher_net(build):
        build.add(Simple(Opcode.LO_UP, "lo", "up", "net"))
    if build.spec.hostname is not None:
        if not build.own("uts"):
            raise SpecError("hostname", 'needs "uts" among the namespaces')
        if build.has_new("uts"):
            build.add(Text(Opcode.HOSTNAME, "hostname", build.spec.hostname, "hostname"))


def _environment(build: Build) -> tuple[str, ...]:
    user = {0: "root", 65534: "nobody"}.get(build.uid, "user")
    env = {"PATH": PATH, "HOME": "/root" if build.uid == 0 else "/tmp",
           "LANG": "C.UTF-8", "USER": user}  # fmt: skip
    if build.spec.pty is not None:
        env["TERM"] = "xterm"
    env.update(build.spec.env or ())
    return tuple(f"{key}={value}" for key, value in env.items())


def _add_exec(build: Build, env: tuple[str, ...]) -> None:
    """One execve per directory of PATH: the loop is here, not in the child."""
    program = build.spec.args[0]
    build.add(Simple(Opcode.SIGNALS, "signals", "none blocked, all default", "profile"))
    build.add(Simple(Opcode.EXECING, "execing", "everything is set up", "args"))
    confine.add_filter(build)  # of the payload: nsbox-init is none, and was left before
    paths = [program]
    if "/" not in program:
        path = next((e[5:] for e in reversed(env) if e.startswith("PATH=")), PATH)
        paths = [f"{directory or '.'}/{program}" for directory in path.split(":")]
    for path in paths[:-1]:
        build.add(Text(Opcode.EXEC, "exec", path, "args[0]", int(OpFlag.IGNORE_ENOENT)))
    build.add(Text(Opcode.EXEC, "exec", paths[-1], "args[0]"))


def _working_directory(spec: Spec) -> str:
    if spec.cwd is not None:
        return spec.cwd
    if spec.files or (spec.root.kind == "host" and spec.profile != "none"):
        return scratch.TMP
    return "/"


def _add_process(build: Build) -> None:
    """What the payload's process is, from its directory to its parent's death."""
    if build.own("mnt") or build.spec.cwd is not None:
        build.add(Text(Opcode.CHDIR, "chdir", _working_directory(build.spec), "cwd"))
    mask = build.spec.umask
    source = "profile" if mask == Spec.umask else "umask"
    build.add(Number(Opcode.UMASK, "umask", f"{mask:03o}", mask, source))
    creds.add_credentials(build)
    confine.add_scopes(build)  # before resource limits, which may leave no descriptor for it
    _stay_hidden(build)
    build.add(Simple(Opcode.KEYRING, "keyring", "a session keyring of its own", "profile"))
    creds.add_descriptors(build)
    creds.add_rlimits(build)
    init = build.spec.init and build.has_new("pid")
    build.add(devices.new_session(build, payload=not init))
    build.add(Number(Opcode.PDEATHSIG, "pdeathsig", "SIGKILL", SIGKILL, "profile"))
    if init:
        build.flags |= PlanFlag.INIT
        build.add(Simple(Opcode.INIT, "init", "PID 1 is nsbox-init; its child goes on", "init"))
        build.add(devices.new_session(build, payload=True))


def _start(spec: Spec, host: Host, join: tuple[str, ...] = (), join_map: str = "") -> Build:
    build = Build(spec, host, join, id_map=join_map)
    build.new = _new_namespaces(spec, host, join)
    if spec.root == Rootfs() and "mnt" not in build.new:
        build.spec = replace(spec, root=Rootfs.inherit())
    mounts.check_root(build)
    devices.check(build)
    creds.decide_ids(build)
    # An ordinary user's networks are in a user namespace: to plug it in takes a right over both.
    build.within = spec.attached and not host.privileged and build.has_new("user")
    if spec.namespaces is not None and "pid" not in build.new and "pid" not in join:
        build.applied["pid"] = "missing: a tree of processes ends with its cgroup only"
    for measure, why in build.profile.missing:
        build.applied[measure] = f"missing: {why}"
    return build


def _check_size(build: Build) -> None:
    """What the core has room for, see csrc/nsb.h."""
    for field, number, most, what in (
        ("pass_fds", len(build.passed), MAX_PASSED, "descriptors"),
        ("mounts", len(build.passed) + build.trees, MAX_SLOTS, "mounts of host paths"),
        ("files", len(build.steps), MAX_OPS, "steps: fewer files= or mounts="),
    ):
        if number > most:
            raise SpecError(field, f"a sandbox has at most {most} {what}, not {number}")


def _finish(build: Build, env: tuple[str, ...], args: tuple[str, ...]) -> Plan:
    _check_size(build)
    return Plan(
        steps=tuple(build.steps),
        passed=tuple(build.passed),
        args=args,
        env=env,
        flags=build.flags,
        applied=tuple(build.applied.items()),
        enforcement=tuple(build.enforcement.items()),
    )


def _set_up(build: Build) -> None:
    """Everything up to the process: cgroup, namespaces, mounts, names."""
    _add_cgroup(build)
    _add_joins(build)
    _add_clone(build)
    _enter_cgroup(build)
    _await_network(build)
    _add_late_joins(build)
    _add_time(build)
    if build.template and not build.in_userns:
        mounts.open_names(build)
        slot = build.pass_slot("mntns", "template")
        build.add(Setns(slot, Clone.NEWNS, "root"), Unshare(Clone.NEWNS, "namespaces"))
    parts = mounts.MountParts(build) if build.has_new("mnt") else None
    if parts is not None and not build.template:
        mounts.open_names(build)
    if "user" in build.new or "user" in build.join:
        creds.become_setup_ids(build)
        _stay_hidden(build)
    if parts is not None:
        mounts.add_mounts(build, parts)
    _add_proc_writes(build)
    _add_names(build)
    if parts is not None:
        mounts.add_pivot(build)


def compile_spec(
    spec: Spec,
    host: Host,
    *,
    join: tuple[str, ...] = (),
    join_map: str = "",
    template: bool = False,
) -> Plan:
    """The plan of a sandbox.

    Args:
        join: kinds of namespaces that are entered, of the process in slot ("pidfd", "join").
        join_map: how the user namespace among them maps ids, see ``Build.id_map``.
        template: the root comes from a template (``fits_template`` says whether it can).

    Raises:
        SpecError: parts of the spec contradict each other.
        Unavailable: the host cannot do what was asked.
    """
    build = _start(spec, host, join, join_map)
    build.template = template and mounts.fits_template(build)
    _guard_network(build)
    _pass_joined(build)
    if build.has_new("time") and not host.exec_enters_time:
        raise Unavailable("time namespace", "needs Linux 6.3, where execve(2) enters it",
                          alternatives=('Namespace.create("time").run()',))  # fmt: skip
    _set_up(build)
    memory = build.spec.limits.memory
    blocks = any(mount.kind == "bind" for mount in build.spec.mounts)
    blocks = blocks or build.spec.root.kind == "overlay"
    if blocks or (isinstance(memory, int) and memory < _TIGHT_MEMORY):
        build.flags |= PlanFlag.FORK
    _add_process(build)
    env = _environment(build)
    _add_exec(build, env)
    return _finish(build, env, build.spec.args)


def compile_exec(
    base: Spec, spec: Spec, host: Host, inside: Plan, id_map: str, *, terminals: bool = False
) -> Plan:
    """The plan of one more process of a sandbox: in all that is the sandbox's, making nothing.

    Args:
        base: the sandbox's own spec.
        spec: of the process; profile, capabilities and rlimits are the sandbox's.
        inside: the plan of the sandbox.
        id_map: of its user namespace, see ``Build.id_map``.
        terminals: it has a devpts of its own.
    """
    build = Build(spec, host, inside.kinds, id_map=id_map)
    creds.decide_ids(build)
    creds.check_same_id(build, base)
    build.passed += [slot for slot in inside.passed if slot.kind == "cgroup"]
    if build.passed:
        build.enforcement.update(inside.enforcement)
    _pass_joined(build)
    build.flags |= PlanFlag.FORK  # into a memory cgroup that may be full
    _add_joins(build)
    _add_clone(build)
    _enter_cgroup(build)
    _add_late_joins(build)
    inherits = build.own("mnt") and spec.root.kind == "inherit"
    if inherits:
        build.add(RootTree(build.pass_slot("root", "of the sandbox"), "root", as_is=True))
    if "user" in build.join:
        creds.become_setup_ids(build)
        _stay_hidden(build)
    if spec.pty is not None:
        devices.add_late(build, there=terminals)
    if inherits:
        # The caller's root may be below that of its namespace, which is where setns(2) leads.
        build.add(Simple(Opcode.CHROOT, "chroot", "", "root"))
    _add_process(build)
    env = _environment(build)
    _add_exec(build, env)
    return _finish(build, env, spec.args)


def _finish_pause(build: Build, detail: str, source: str) -> Plan:
    """The end of a plan whose process only is: it holds what was made."""
    creds.add_descriptors(build)
    build.add(
        Simple(Opcode.SETSID, "setsid", "", source),
        Number(Opcode.PDEATHSIG, "pdeathsig", "SIGKILL", SIGKILL, source),
        Simple(Opcode.EXECING, "execing", "everything is set up", source),
        Simple(Opcode.PAUSE, "pause", detail, source),
    )
    return _finish(build, (), ())


def wants_template(
    spec: Spec, host: Host, *, join: tuple[str, ...] = (), join_map: str = ""
) -> bool:
    """Whether ``compile_spec(template=True)`` would use one."""
    return mounts.fits_template(_start(spec, host, join, join_map))


def compile_template(
    spec: Spec,
    host: Host,
    *,
    join: tuple[str, ...] = (),
    join_map: str = "",
    makes_nodes: bool = False,
) -> Plan:
    """The plan of a process that only holds a mount namespace: the root of *spec* and its /dev.

    Args:
        join, join_map: of those that will enter the template; it enters nothing itself.
        makes_nodes: by mknod(2), which a host may refuse to root as well.
    """
    build = _start(replace(spec, pass_fds=()), host, join, join_map)
    inside = build.in_userns
    build.join, build.new = (), ("mnt", "pid") if inside else ("mnt",)
    build.makes_nodes = makes_nodes
    build.flags |= PlanFlag.FORK
    build.add(Clone3(Clone.NEWNS | (Clone.NEWPID if inside else Clone(0)), False, "root"))
    parts = mounts.MountParts(build)
    assert parts.root is not None
    mounts.add_root(build, parts.root)
    if build.spec.root.kind == "host":
        for path in ("/proc", scratch.TMP):
            build.add(MakeDirs(path, 0o755, "root"))
    if inside:
        # A user namespace may mount procfs only where one is in full sight: here that of a pid
        # namespace that ends with the holder, and so shows nothing.
        mounts.add_empty_proc(build)
    mounts.add_pivot(build)
    return _finish_pause(build, "until its namespace is held", "root")


def compile_pause(
    spec: Spec,
    host: Host,
    join: tuple[str, ...] = (),
    *,
    join_map: str = "",
    sysctls: tuple[tuple[str, str], ...] = (),
) -> Plan:
    """The plan of a pod's pause process: the namespaces of *spec*, and nothing that runs.

    It is PID 1 of a pid namespace of its own and sees a root that has nothing but the pod's
    /dev/shm, so that it pins none of the host's file systems.

    Args:
        join: ``("net",)``, ``("user",)`` or both, of the process in slot ("pidfd", "join").
        join_map: how that user namespace maps ids, see ``Build.id_map``.
        sysctls: of its network, as ``("net/ipv4/ip_forward", "1")``.
    """
    build = _start(spec, host, join, join_map if "user" in join else "")
    build.sysctls = sysctls
    _pass_joined(build)
    _add_joins(build)
    _add_clone(build)
    _await_network(build)
    build.add(mounts_private("pod"))
    creds.become_setup_ids(build)
    empty = (("mode", "755"), ("size", "4096"), ("nr_inodes", "4"))
    build.add(Options(Opcode.ROOT_TMPFS, "root", empty, 0, "pod"))
    shm_bytes = 64 * scratch.MIB  # what Kubernetes' runtimes give a pod
    build.add(scratch.new_shared_memory("pod", size=shm_bytes, make=True))
    _add_proc_writes(build)
    _add_names(build)
    build.add(Simple(Opcode.PIVOT, "pivot_root", "", "pod"))
    creds.add_credentials(build)
    return _finish_pause(build, "holds what the pod shares", "pod")


def compile_holder(
    spec: Spec,
    host: Host,
    maps: IdMap | None = None,
    *,
    join: tuple[str, ...] = (),
    join_map: str = "",
    sysctls: tuple[tuple[str, str], ...] = (),
) -> Plan:
    """The plan of a process that only is: a member of the new namespaces of *spec*.

    Args:
        maps: of its user namespace, if the caller says them.
        join: ``("user",)``, the one in slot ("pidfd", "join") that owns the new ones.
        join_map: how that maps ids, see ``Build.id_map``.
        sysctls: of its network, as ``("net/ipv4/ip_forward", "1")``.
    """
    build = _start(spec, host, join, maps.kind if maps else join_map)
    build.maps = maps
    _pass_joined(build)
    _add_joins(build)
    _add_clone(build)
    _add_time(build)
    if build.has_new("mnt"):
        build.add(mounts_private("namespaces"))
    if sysctls:  # what the caller's procfs has below sys/net is of who looks
        build.add(Options(Opcode.PROCFS, "procfs", (), 0, "net", int(OpFlag.AS_IS)))
    for name, value in sysctls:
        build.add(Pair(Opcode.SYSCTL, "sysctl", f"sys/{name}", value, "net"))
    _add_names(build)
    creds.become_setup_ids(build)
    return _finish_pause(build, "holds the namespaces", "namespaces")


def compile_netlink(join: tuple[str, ...], protocol: Netlink, *, owned: bool = False) -> Plan:
    """The plan of a process that opens a socket in a network namespace, and hands it over.

    Args:
        join: ``("net",)``, or before it ``"user"``, of the process or namespace in slot
            ("pidfd", "join").
        owned: before these the user namespace in slot ("nsfd", "user"), which gives the right to.
    """
    spec = Spec(("netlink",), root=Rootfs.inherit(), namespaces=(), init=False, profile="none",
                net="a socket for the caller")  # fmt: skip
    build = Build(spec, Host(), join)
    build.flags |= PlanFlag.FORK
    if owned:
        build.add(Setns(build.pass_slot(*OWNER), Clone.NEWUSER, "net"))
    _pass_joined(build)
    _add_setns(build, join)
    build.add(Clone3(Clone(0), False, "net"))
    build.add(
        OpenNetlink(protocol, "net"),
        HandNetlink(protocol, spec.net, "net"),
        Simple(Opcode.EXECING, "execing", "nothing: it ends", "net"),
    )
    return _finish(build, (), ())


def compile_proxy(host: Host, targets: tuple[str, ...], join: tuple[str, ...] = ()) -> Plan:
    """The plan of a process that serves ports: see csrc/init/proxy.c.

    Args:
        targets: for descriptor 3 and those after it where what comes there goes: a struct sockaddr
            in hexadecimal. Slot ("pass", 3) is the first of them.
        join: ``("user", "net")``, of the process in slot ("pidfd", "join"): from there it goes on.
    """
    args = ("nsbox-init", "proxy", *targets)
    spec = Spec(args, root=Rootfs.inherit(), namespaces=(), init=False, net="ports",
                pass_fds=tuple(range(3, 3 + len(targets))))  # fmt: skip
    build = Build(spec, host, join, id_map="single" if "user" in join else "")
    build.flags |= PlanFlag.FORK
    if join:
        _pass_joined(build)
    _add_setns(build, join)
    build.add(Clone3(Clone(0), False, "net"))
    build.uid = host.euid  # who it stays
    creds.add_credentials(build)
    creds.add_descriptors(build)
    build.add(
        Simple(Opcode.SETSID, "setsid", "", "net"),
        Number(Opcode.PDEATHSIG, "pdeathsig", "SIGKILL", SIGKILL, "net"),
        Simple(Opcode.EXECING, "execing", "everything is set up", "net"),
        Simple(Opcode.SELF, "proxy", f"{len(targets)} ports", "net"),
    )
    return _finish(build, (), args)


def compile_id_holder(
    uids: tuple[tuple[int, int, int], ...], gids: tuple[tuple[int, int, int], ...]
) -> Plan:
    """The plan of a process that only is: a member of a user namespace with these maps."""
    spec = Spec(("idmap",), root=Rootfs.inherit(), namespaces=("user",), init=False, profile="none")
    build = Build(spec, Host())
    build.add(Clone3(Clone.NEWUSER, False, "idmap"), IdMap(uids, gids, "launcher", "idmap"))
    return _finish_pause(build, "until its namespace is held", "idmap")


def compile_helper(args: tuple[str, ...]) -> Plan:
    """The plan of a trusted program of the host's, run as the caller, in no namespace."""
    spec = Spec(args, root=Rootfs.inherit(), namespaces=(), init=False, profile="none")
    build = Build(spec, Host())
    build.add(Clone3(Clone(0), False, "user"))
    creds.add_descriptors(build)
    build.add(Simple(Opcode.SETSID, "setsid", "", "user"))
    _add_exec(build, (f"PATH={PATH}",))
    return _finish(build, (f"PATH={PATH}",), args)
