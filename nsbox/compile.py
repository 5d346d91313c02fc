# SPDX-License-Identifier: Apache-2.0
"""compile(): from a spec and a host to a plan. Pure: every condition is decided here."""

from __future__ import annotations

from dataclasses import replace

from nsbox import confine, creds, devices, limits, mounts, scratch, spaces
from nsbox.build import Build
from nsbox.errors import SpecError, Unavailable
from nsbox.host import Host
from nsbox.hoststeps import Clone3, IdMap
from nsbox.names import Clone, Opcode, OpFlag, PlanFlag
from nsbox.plan import MAX_OPS, MAX_PASSED, MAX_SLOTS, Plan
from nsbox.slots import OWNER
from nsbox.spec import Rootfs, Spec
from nsbox.steps import (
    HandNetlink,
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
    mounts_private,
)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGKILL = 9
#: Below this a child that shares the launcher's memory could meet its limit while it is set up.
_TIGHT_MEMORY = 16 << 20


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
    if spec.image_cwd:
        return spec.image_cwd
    if spec.files or (spec.root.kind == "host" and spec.profile != "none"):
        return scratch.TMP
    return "/"


def _add_process(build: Build) -> None:
    """What the payload's process is, from its directory to its parent's death."""
    if build.own("mnt") or build.spec.cwd is not None:
        source = "root" if build.spec.image_cwd else "cwd"
        build.add(Text(Opcode.CHDIR, "chdir", _working_directory(build.spec), source))
    mask = build.spec.umask
    source = "profile" if mask == Spec.umask else "umask"
    build.add(Number(Opcode.UMASK, "umask", f"{mask:03o}", mask, source))
    creds.add_credentials(build)
    confine.add_scopes(build)  # before resource limits, which may leave no descriptor for it
    spaces.stay_hidden(build)
    build.add(Simple(Opcode.KEYRING, "keyring", "a session keyring of its own", "profile"))
    creds.add_descriptors(build)
    creds.add_rlimits(build)
    limits.kept_by_nsbox(build)
    init = build.spec.init and build.has_new("pid")
    build.add(devices.new_session(build, payload=not init))
    build.add(Number(Opcode.PDEATHSIG, "pdeathsig", "SIGKILL", SIGKILL, "profile"))
    if init:
        build.flags |= PlanFlag.INIT
        build.add(Simple(Opcode.INIT, "init", "PID 1 is nsbox-init; its child goes on", "init"))
        build.add(devices.new_session(build, payload=True))


def _start(spec: Spec, host: Host, join: tuple[str, ...] = (), join_map: str = "") -> Build:
    build = Build(spec, host, join, id_map=join_map)
    build.new = spaces.new_namespaces(spec, host, join)
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
    spaces.add_cgroup(build)
    spaces.add_joins(build)
    spaces.add_clone(build)
    spaces.enter_cgroup(build)
    spaces.await_network(build)
    spaces.add_late_joins(build)
    spaces.add_time(build)
    if build.template and not build.in_userns:
        mounts.open_names(build)
        slot = build.pass_slot("mntns", "template")
        build.add(Setns(slot, Clone.NEWNS, "root"), Unshare(Clone.NEWNS, "namespaces"))
    parts = mounts.MountParts(build) if build.has_new("mnt") else None
    if parts is not None and not build.template:
        mounts.open_names(build)
    if "user" in build.new or "user" in build.join:
        creds.become_setup_ids(build)
        spaces.stay_hidden(build)
    if parts is not None:
        mounts.add_mounts(build, parts)
    spaces.add_proc_writes(build)
    spaces.add_names(build)
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
    spaces.guard_network(build)
    spaces.pass_joined(build)
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
    spaces.pass_joined(build)
    build.flags |= PlanFlag.FORK  # into a memory cgroup that may be full
    spaces.add_joins(build)
    spaces.add_clone(build)
    spaces.enter_cgroup(build)
    spaces.add_late_joins(build)
    inherits = build.own("mnt") and spec.root.kind == "inherit"
    if inherits:
        build.add(RootTree(build.pass_slot("root", "of the sandbox"), "root", as_is=True))
    if "user" in build.join:
        creds.become_setup_ids(build)
        spaces.stay_hidden(build)
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
    spaces.pass_joined(build)
    spaces.add_joins(build)
    spaces.add_clone(build)
    spaces.await_network(build)
    build.add(mounts_private("pod"))
    creds.become_setup_ids(build)
    empty = (("mode", "755"), ("size", "4096"), ("nr_inodes", "4"))
    build.add(Options(Opcode.ROOT_TMPFS, "root", empty, 0, "pod"))
    shm_bytes = 64 * scratch.MIB  # what Kubernetes' runtimes give a pod
    build.add(scratch.new_shared_memory("pod", size=shm_bytes, make=True))
    spaces.add_proc_writes(build)
    spaces.add_names(build)
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
    spaces.pass_joined(build)
    spaces.add_joins(build)
    spaces.add_clone(build)
    spaces.add_time(build)
    if build.has_new("mnt"):
        build.add(mounts_private("namespaces"))
    if sysctls:  # what the caller's procfs has below sys/net is of who looks
        build.add(Options(Opcode.PROCFS, "procfs", (), 0, "net", int(OpFlag.AS_IS)))
    for name, value in sysctls:
        build.add(Pair(Opcode.SYSCTL, "sysctl", f"sys/{name}", value, "net"))
    spaces.add_names(build)
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
    spaces.pass_joined(build)
    spaces.add_setns(build, join)
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
        spaces.pass_joined(build)
    spaces.add_setns(build, join)
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
