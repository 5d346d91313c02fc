# SPDX-License-Identifier: Apache-2.0
"""Steps of the mount namespace: the root, /dev, /proc, /tmp, files and the user's mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox import devices, overlay, scratch
from nsbox.checks import is_in
from nsbox.errors import SpecError, Unavailable
from nsbox.names import Clone, MountAttr, Opcode
from nsbox.steps import (
    Attach,
    File,
    MakeDirs,
    NewMount,
    Number,
    Options,
    Pair,
    RootTree,
    Setns,
    Simple,
    Text,
    mounts_private,
    mounts_slave,
)

if TYPE_CHECKING:
    from nsbox.build import Build
    from nsbox.slots import Slot
    from nsbox.spec import Mount, NetFile, Spec

_SAFE = int(MountAttr.NOSUID | MountAttr.NODEV)
_READONLY = int(MountAttr.RDONLY)
_PTS = (("newinstance", "!"), ("ptmxmode", "666"), ("mode", "620"))
_SAFE_PTS = MountAttr.NOSUID | MountAttr.NOEXEC  # nodev would make the terminals useless


def _proc_kind(build: Build) -> str:
    return build.spec.proc or build.profile.proc


def fits_template(build: Build) -> bool:
    """Whether a template can hold the root: nothing of it is one sandbox's own."""
    spec = build.spec
    return (
        build.host.privileged
        and build.host.templates
        and build.has_new("mnt")
        and (not build.in_userns or _fits_from_outside(build))
        and (spec.root.kind == "dir" or (spec.root.kind == "host" and not _is_of_a_pod(build)))
        and spec.root.method == "pivot_root"
        and not (spec.mounts or spec.devices or spec.pty)
    )


def _is_of_a_pod(build: Build) -> bool:
    """A host root has the pod's name in /etc: its template would be this pod's alone, and dear."""
    return bool(build.join and named(build.spec))


def named(spec: Spec) -> str | None:
    """The host name, where it is in the root and not in a file that is mounted there."""
    mounted = {file.dst for file in spec.net_files}
    return None if mounted >= {"/etc/hosts", "/etc/hostname"} else spec.hostname


def _fits_from_outside(build: Build) -> bool:
    """Whether it may be built, and entered, before there is the sandbox's user namespace."""
    root = build.spec.root
    return (
        build.id_map == "slot"
        and build.own("pid")  # else no procfs could be mounted, nor without one in sight
        and _proc_kind(build) != "none"
        and not build.has_new("time")  # whose offsets are written through the caller's /proc
        and (root.kind == "host" or (root.ro and not root.image))  # ids there are the sandbox's
    )


def _makes_targets(build: Build) -> bool:
    """Mount points are made where that leaves nothing in a directory of the user's that is ro."""
    root = build.spec.root
    return root.kind in ("host", "overlay") or (root.kind == "dir" and not root.ro)


def _root_attrs(build: Build) -> int:
    return 0 if build.spec.profile == "none" else _SAFE


class RootParts:
    """The trees of the host that the root is made of; opened first, attached later."""

    def __init__(self, build: Build) -> None:
        spec, source = build.spec, "root"
        self.root: Slot | None = None
        self.layers: overlay.Layers | None = None
        self.system: list[tuple[Slot, str]] = []
        self.devices: list[tuple[Slot, str]] = []
        self.made: list[tuple[str, int]] = []
        self.nodes: list[tuple[Slot, str]] = []
        if spec.root.kind == "inherit":
            return
        if spec.root.kind == "dir":
            self.root = _open_directory(build)
        elif spec.root.kind == "overlay":
            self.layers = overlay.open_layers(build)
        else:
            for path, kind, _ in build.host.system:
                if kind != "link":
                    slot = build.open_tree(path, _SAFE | _READONLY, source)
                    self.system.append((slot, path))
        self.nodes = devices.open_nodes(build)
        no_exec = int(MountAttr.NOSUID | MountAttr.NOEXEC)
        for name, device in build.host.devices:
            if name == "tty" and spec.profile == "strict" and spec.pty is None:
                continue
            path = f"/dev/{name}"
            if build.makes_nodes and name != "null":  # which descriptors of the caller's are of
                self.made.append((path, device))
                continue
            slot = build.open_tree(path, no_exec, "root", recursive=False, device=device)
            self.devices.append((slot, path))


def _open_directory(build: Build) -> Slot:
    """A directory as root. As root with a slot of ids, an image's ids are those inside; and in a
    writable one root inside is root, to make what is mounted on, where no payload can be that."""
    spec, attrs = build.spec, _root_attrs(build)
    attrs |= _READONLY if spec.root.ro else 0  # of whatever is mounted in it, too
    if build.id_map == "slot" and spec.root.image:
        ids = overlay.IMAGE_IDS
        return build.map_tree(spec.root.path, attrs, ids, ids, "root", keep=False, required=False)
    if build.id_map == "slot" and not spec.root.ro and _is_powerless(build):
        ids = ((build.host.euid, 0, 1),)
        return build.map_tree(spec.root.path, attrs, ids, ids, "root", keep=True, required=False)
    return build.open_tree(spec.root.path, attrs, "root")


def _is_powerless(build: Build) -> bool:
    """No process in its user namespace can be root there; in a pod another container may be."""
    spec = build.spec
    return (
        not build.join
        and spec.profile == "strict"
        and not spec.capabilities
        and bool(build.uid and build.gid)
    )


def add_root(build: Build, parts: RootParts) -> None:
    """The new root and its /dev, mounted over the old root."""
    spec, make = build.spec, _makes_targets(build)
    if parts.root is not None:
        build.add(RootTree(parts.root, "root"))
    elif parts.layers is not None:
        tmp = scratch.has_tmp(build) and not spec.root.path
        overlay.add_overlay(build, parts.layers, *scratch.room(build), tmp)
    else:
        options = (
            ("mode", "755"),
            ("size", str(scratch.MIB)),
            ("nr_inodes", str(1024 + 16 * len(spec.mounts))),
        )
        build.add(Options(Opcode.ROOT_TMPFS, "root", options, _SAFE, "root"))
    for slot, path in parts.system:
        build.add(Attach(slot, path, "root"))
    if spec.root.kind == "host":
        for path, kind, target in build.host.system:
            if kind == "link":
                build.add(Pair(Opcode.SYMLINK, "symlink", target, path, "root"))
        _add_etc(build)
    _add_dev(build, parts, make)


def _add_etc(build: Build) -> None:
    """Names for the ids that exist here; host names without a resolver."""
    user = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    group = "root:x:0:\nnogroup:x:65534:\n"
    if build.uid not in (0, 65534):
        user += f"user:x:{build.uid}:{build.gid}:user:/tmp:/bin/sh\n"
        group += f"user:x:{build.gid}:\n"
    hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
    hosts += f"127.0.1.1 {build.spec.hostname}\n" if build.spec.hostname else ""
    switch = "passwd: files\ngroup: files\nhosts: files\n"
    if build.spec.net != "none":
        switch = switch.replace("hosts: files", "hosts: files dns")
    taken = {mount.dst for mount in build.spec.mounts}
    files = {"passwd": user, "group": group, "hosts": hosts, "nsswitch.conf": switch}
    if build.spec.hostname:
        files["hostname"] = f"{build.spec.hostname}\n"
    for file in build.spec.net_files:  # to be mounted upon
        files[file.dst.removeprefix("/etc/")] = ""
    for name, content in files.items():
        dst = f"/etc/{name}"
        if dst not in taken:
            build.add(File(dst, content.encode(), 0o644, None, "root"))


def _add_dev(build: Build, parts: RootParts, make: bool) -> None:
    options = (("mode", "755"), ("size", "65536"), ("nr_inodes", "64"))
    attrs = int(MountAttr.NOSUID | MountAttr.NOEXEC)
    build.add(NewMount("tmpfs", "/dev", options, attrs, "root", make))
    for slot, path in parts.devices:
        build.add(Attach(slot, path, "root"))
    for path, device in parts.made:
        build.add(Text(Opcode.MKNOD, "mknod", path, "root", n=device))
    for target, path in (("/proc/self/fd", "/dev/fd"), ("fd/0", "/dev/stdin"),
                         ("fd/1", "/dev/stdout"), ("fd/2", "/dev/stderr")):  # fmt: skip
        build.add(Pair(Opcode.SYMLINK, "symlink", target, path, "root"))
    devices.add_place(build)
    devices.add(build, parts.nodes)
    if scratch.has_scratch(build):
        for path in ("/dev/shm", "/dev/mqueue"):
            build.add(MakeDirs(path, 0o755, "root"))
    build.add(Text(Opcode.READONLY, "read-only", "/dev", "root", n=_READONLY))


def open_names(build: Build) -> None:
    """The files of /etc that are of one sandbox, or one network, and in no template."""
    build.names = [(build.open_tree(file.src, _SAFE | _READONLY, "net", recursive=False), file)
                   for file in build.spec.net_files]  # fmt: skip


def _add_names(build: Build, names: list[tuple[Slot, NetFile]], make: bool) -> None:
    make = make and not _has_net_files(build)
    for slot, file in names:
        build.add(Attach(slot, file.at, "net", make, optional=make and not file.required))
    if names and build.template:
        # Opened where mounts may be shared with the host: what is mounted on them stays here.
        build.add(mounts_private("net"))


def _is_in_tmpfs(build: Build, dst: str, before: int | None = None) -> bool:
    """Whether a destination is in a tmpfs of the sandbox's own, where all can be made: so says
    the innermost of the mounts (*before* one of them) that it is in."""
    places = [("/tmp", "tmpfs")] if scratch.has_tmp(build) else []
    places += [(mount.dst, mount.kind) for mount in build.spec.mounts[:before]]
    found = [(len(place), i, kind) for i, (place, kind) in enumerate(places)
             if dst != place and is_in(dst, place)]  # fmt: skip
    return bool(found) and max(found)[2] == "tmpfs"


def _has_net_files(build: Build) -> bool:
    """A host root from a template, which has empty ones to be mounted upon."""
    return build.template and build.spec.root.kind == "host"


def enter_template(build: Build) -> None:
    """By a joiner, which then clones: the copy is the sandbox's."""
    open_names(build)
    if scratch.joins_shared_memory(build):
        build.shared_memory = scratch.copy_shared_memory(build)
    build.add(Setns(build.pass_slot("mntns", "template"), Clone.NEWNS, "root"))


def _add_proc(build: Build, bound: Slot | None, make: bool) -> None:
    kind = _proc_kind(build)
    if build.spec.root.kind == "inherit" and not build.own("pid"):
        return
    if kind == "none" or any(m.kind == "proc" and m.dst == "/proc" for m in build.spec.mounts):
        return
    if bound is not None:
        build.add(Attach(bound, "/proc", "proc", make))
        build.applied["proc"] = "the caller's, bound: no pid namespace"
        return
    options: tuple[tuple[str, str], ...] = (("subset", "pid"),) if kind == "pids" else ()
    if kind == "pids" and "pid" not in build.join:  # who shares them wants to see all
        options += (("hidepid", "invisible"),)
    attrs = int(MountAttr.NOSUID | MountAttr.NODEV | MountAttr.NOEXEC)
    build.add(NewMount("proc", "/proc", options, attrs, "proc", make))
    build.applied["proc"] = kind


def add_empty_proc(build: Build) -> None:
    """For a template: the mount point must be there, as for the sandbox's own."""
    build.add(NewMount("proc", "/proc", (), _SAFE | int(MountAttr.NOEXEC), "proc", False))


def _add_user_mount(build: Build, index: int, mount: Mount, slot: Slot | None, make: bool) -> None:
    source = f"mounts[{index}]"
    attrs = _SAFE | (int(MountAttr.NOEXEC) if mount.noexec else 0)
    if slot is not None:
        build.add(Attach(slot, mount.dst, source, make))
    elif mount.kind == "tmpfs":
        options = (("mode", f"{mount.mode:o}"), ("size", str(mount.size)),
                   ("nr_inodes", str(mount.inodes)))  # fmt: skip
        build.add(NewMount("tmpfs", mount.dst, options, attrs, source, make))
    elif mount.kind in ("proc", "mqueue"):
        build.add(NewMount(mount.kind, mount.dst, (), _SAFE, source, make))
    elif mount.kind == "devpts":
        build.add(NewMount("devpts", mount.dst, _PTS, int(_SAFE_PTS), source, make))
    elif mount.kind == "sysfs":
        if not build.own("net"):
            raise SpecError(source, 'a sysfs needs "net" among the namespaces')
        attrs = _SAFE | int(MountAttr.NOEXEC) | _READONLY
        build.add(NewMount("sysfs", mount.dst, (), attrs, source, make))
    elif mount.kind == "file":
        build.add(File(mount.dst, mount.data, mount.mode, None, source, over=True, make=make))
    else:
        _add_parent(build, mount.dst, source, make)
        build.add(Pair(Opcode.SYMLINK, "symlink", mount.src, mount.dst, source))


def _add_parent(build: Build, dst: str, source: str, make: bool) -> None:
    parent = dst.rpartition("/")[0]
    if make and parent:
        build.add(MakeDirs(parent, 0o755, source))


class MountParts:
    """Everything of the host's that the mount namespace needs, opened with the caller's ids."""

    def __init__(self, build: Build) -> None:
        self.binds: dict[int, Slot] = {}
        if not build.template:
            self._open_slaves(build)
            build.add(mounts_private("namespaces"))
        self.root = None if build.template else RootParts(build)
        # Only a member of a pid namespace that its user namespace owns may mount procfs.
        self.proc: Slot | None = None
        bind_proc = self.root and build.in_userns and not build.own("pid")
        if bind_proc and _proc_kind(build) != "none":
            self.proc = build.open_tree("/proc", _SAFE, "proc")
        for i, mount in enumerate(build.spec.mounts):
            if mount.kind == "bind" and i not in self.binds:
                self.binds[i] = _open_bind(build, mount, f"mounts[{i}]")
        if scratch.joins_shared_memory(build) and build.shared_memory is None:
            build.shared_memory = scratch.pick_shared_memory(build)

    def _open_slaves(self, build: Build) -> None:
        """While the host's mounts are still their masters: once private, they hear of nothing."""
        slaves = {i: m for i, m in enumerate(build.spec.mounts) if m.propagation == "slave"}
        if slaves:
            build.add(mounts_slave("mounts"))
        for i, mount in slaves.items():
            self.binds[i] = build.open_tree(mount.src, _SAFE, f"mounts[{i}]")


def _check_read_only(build: Build, mount: Mount, source: str) -> None:
    why = "CAP_SYS_ADMIN inside makes it writable again"
    if not mount.ro:
        return
    if "SYS_ADMIN" in (build.spec.capabilities or ()):
        build.cannot(source, f"ro=True cannot hold: {why}",
                     hint="say ro=False, or leave SYS_ADMIN out of capabilities=")  # fmt: skip
    elif build.spec.capabilities is None and build.profile.capabilities is None:
        build.applied["read-only mounts"] = f"not locked: {why}"


def _open_bind(build: Build, mount: Mount, source: str) -> Slot:
    attrs = _SAFE | (_READONLY if mount.ro else 0)
    _check_read_only(build, mount, source)
    host = build.host
    inside = (build.uid, build.gid)
    is_caller = build.id_map == "single" or (not build.in_userns
                                             and inside == (host.euid, host.egid))  # fmt: skip
    if not mount.idmap or is_caller:
        return build.open_tree(mount.src, attrs, source)
    if not (build.id_map == "slot" or (not build.id_map and host.maps_ids)):
        raise Unavailable(
            source, "idmap=True needs root, or a sandbox with one id only",
            alternatives=('profile="strict"', "idmap=False"),
        )  # fmt: skip
    uids, gids = ((host.euid, build.uid, 1),), ((host.egid, build.gid, 1),)
    return build.map_tree(mount.src, attrs, uids, gids, source, keep=True)


def add_mounts(build: Build, parts: MountParts) -> None:
    """The whole mount tree but for the pivot."""
    make = _makes_targets(build)
    if parts.root is None or build.spec.root.kind == "inherit":
        build.add(Simple(Opcode.ROOT_HERE, "root", "as it is", "root"))
        if build.spec.root.kind == "inherit":  # with the host's own /dev, but for terminals
            devices.add(build, [])
    else:
        add_root(build, parts.root)
    late = [one for one in build.names if not build.template and _is_in_tmpfs(build, one[1].at)]
    _add_names(build, [one for one in build.names if one not in late], make)
    _add_proc(build, parts.proc, make)
    layers = parts.root.layers if parts.root is not None else None
    tmp = layers.tmp if layers is not None else None
    scratch.add_scratch(build, make, tmp)
    for i, mount in enumerate(build.spec.mounts):
        possible = make or _is_in_tmpfs(build, mount.dst, i)
        _add_user_mount(build, i, mount, parts.binds.get(i), possible)
    _add_names(build, late, make)


def add_pivot(build: Build) -> None:
    """Leave the old root for good, and close the new one to writes."""
    root = build.spec.root
    if root.kind != "inherit" and not build.template:
        opcode = Opcode.PIVOT if root.method == "pivot_root" else Opcode.CHROOT
        between = int(root.kind == "overlay")  # its staging directory
        build.add(Number(opcode, root.method, "", between, "root"))
    if root.ro and not build.template:
        build.add(Text(Opcode.READONLY, "read-only", "/", "root", n=_READONLY))
    build.applied["root"] = (
        "inherited" if root.kind == "inherit" else "read-only" if root.ro else "writable"
    )


def check_root(build: Build) -> None:
    """Refuse what needs a mount namespace when there is none, and what /tmp cannot hold."""
    spec = build.spec
    scratch.check(build)
    if build.has_new("mnt"):
        return
    needs = spec.root.kind not in ("host", "inherit")
    for field, asked in (("root", needs), ("mounts", spec.mounts),
                         ("files", spec.files), ("limits.disk", spec.limits.disk)):  # fmt: skip
        if asked:
            raise SpecError(field, 'needs "mnt" among the namespaces')
