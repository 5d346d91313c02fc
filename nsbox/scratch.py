# SPDX-License-Identifier: Apache-2.0
"""Steps of what a sandbox may write to: /tmp with its files, and what IPC has as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox.errors import SpecError
from nsbox.names import Clone, MountAttr
from nsbox.slots import JOIN, Slot
from nsbox.steps import Attach, File, HandRoom, MakeDirs, NewMount, Open, Setns

if TYPE_CHECKING:
    from nsbox.build import Build

MIB, PAGE = 1 << 20, 4096
TMP, SHM = "/tmp", "/dev/shm"
_SAFE = int(MountAttr.NOSUID | MountAttr.NODEV)
_NOEXEC = _SAFE | int(MountAttr.NOEXEC)
_SHM_BYTES, _SHM_INODES = 16 * MIB, 1024


def has_scratch(build: Build) -> bool:
    """Whether there are /tmp, /dev/shm and /dev/mqueue of the sandbox's own."""
    return build.spec.profile != "none" and build.spec.root.kind != "inherit"


def _asks_for_room(build: Build) -> bool:
    return bool(build.spec.files or _limited(build))


def _limited(build: Build) -> tuple[str, ...]:
    limits = build.spec.limits
    return tuple(name for name in ("disk", "inodes") if getattr(limits, name) is not None)


def has_tmp(build: Build) -> bool:
    return _asks_for_room(build) or has_scratch(build)


def pages(data: bytes) -> int:
    """Bytes that content takes in a tmpfs."""
    return -len(data) % PAGE + len(data)


def check(build: Build) -> None:
    """Raises SpecError: /tmp is to hold, or to bound, what it cannot."""
    spec, limits = build.spec, build.spec.limits
    for i, mount in enumerate(spec.mounts):
        if mount.dst == TMP and _asks_for_room(build):
            what = "files=" if spec.files else f"limits.{_limited(build)[0]}"
            raise SpecError(f"mounts[{i}]", f"would hide the /tmp that {what} is about")
    needs = 0
    for name, content, _ in spec.files:
        needs += pages(content)
        if isinstance(limits.disk, int) and needs > limits.disk:
            raise SpecError(f"files[{name!r}]", f"does not fit in limits.disk={limits.disk}")
    if limits.inodes is not None and len(spec.files) >= limits.inodes:  # /tmp is one
        raise SpecError("files", f"{len(spec.files)} do not fit in limits.inodes={limits.inodes}")


def room(build: Build) -> tuple[int, int]:
    """Bytes and inodes of the writable tmpfs: /tmp, and the changes of an overlay with it."""
    spec, limits = build.spec, build.spec.limits
    data = sum(2 * PAGE + pages(content) for _, content, _ in spec.files)
    size = 64 * MIB + data if spec.root.size is None else spec.root.size
    inodes = 16384 + 2 * len(spec.files) if spec.root.inodes is None else spec.root.inodes
    return (
        limits.disk if isinstance(limits.disk, int) else size,
        limits.inodes if limits.inodes is not None else inodes,
    )


# -- files of IPC -------------------------------------------------------------------------------


def new_shared_memory(
    source: str, *, size: int = _SHM_BYTES, inodes: int = _SHM_INODES, make: bool = False
) -> NewMount:
    """Where shm_open(3) has its files."""
    options = (("mode", "1777"), ("size", str(size)), ("nr_inodes", str(inodes)))
    return NewMount("tmpfs", SHM, options, _NOEXEC, source, make)


def joins_shared_memory(build: Build) -> bool:
    """The POSIX half of a joined IPC namespace: a tree of the mount namespace of who is joined.

    Only a member can copy a tree out of it, so somebody has to go there.
    """
    return "ipc" in build.join and has_scratch(build)


def pick_shared_memory(build: Build) -> Slot:
    """By the child, which comes back, before anything else depends on where it is."""
    home = Slot("file", "/proc/self/ns/mnt")
    build.add(Open(str(home.key), home, "pod"))
    tree = copy_shared_memory(build)
    build.add(Setns(home, Clone.NEWNS, "pod"))
    return tree


def copy_shared_memory(build: Build) -> Slot:
    """By who goes on to another mount namespace from there."""
    build.add(Setns(build.pass_slot(*JOIN), Clone.NEWNS, "pod"))
    return build.open_tree(SHM, 0, "pod", recursive=False)


def _add_ipc(build: Build) -> None:
    limits = build.spec.limits
    if build.shared_memory is not None:
        build.add(Attach(build.shared_memory, SHM, "pod", False))
    else:  # memory too: no way around a limit of /tmp's
        size = min(_SHM_BYTES, limits.disk if isinstance(limits.disk, int) else _SHM_BYTES)
        inodes = min(_SHM_INODES, limits.inodes or _SHM_INODES)
        build.add(new_shared_memory("profile", size=size, inodes=inodes))
    if build.own("ipc"):
        build.add(NewMount("mqueue", "/dev/mqueue", (), _NOEXEC, "profile", False))


# -- /tmp ---------------------------------------------------------------------------------------


def add_scratch(build: Build, make: bool, tmp: Slot | None) -> None:
    """All of it; *tmp* is what an overlay has as its /tmp, *make*: mount points may be made."""
    if has_scratch(build):
        _add_ipc(build)
    if has_tmp(build):
        _add_tmp(build, make, tmp)
        _add_files(build)


def _add_tmp(build: Build, make: bool, tmp: Slot | None) -> None:
    size, inodes = room(build)
    options: tuple[tuple[str, str], ...] = (
        ("mode", "1777"),
        ("size", str(size)),
        ("nr_inodes", str(inodes)),
    )
    if build.id_map != "single":
        options += (("uid", str(build.uid)), ("gid", str(build.gid)))
    source = "limits.disk" if _asks_for_room(build) else "profile"
    if tmp is not None:
        build.add(Attach(tmp, TMP, source, make))
    else:
        build.add(NewMount("tmpfs", TMP, options, _SAFE, source, make))
    build.enforcement["disk"] = f"tmpfs size={size}"
    if build.spec.limits.inodes is not None:
        build.enforcement["inodes"] = f"tmpfs nr_inodes={inodes}"
    if _limited(build):
        _keep_limits(build, _limited(build))


def _keep_limits(build: Build, names: tuple[str, ...]) -> None:
    """What else is writable has to be in the same tmpfs, or has no bound."""
    root = build.spec.root
    unbounded, hint = "", ""
    if root.kind == "overlay" and root.path:
        unbounded = "upper="
    elif root.kind == "dir" and not root.ro:
        unbounded, hint = (
            "root=",
            "Rootfs.overlay(DIRECTORY), whose changes are bounded, or ro=True",
        )
    if not unbounded:
        build.add(HandRoom(TMP, names, f"limits.{names[0]}"))
        return
    for name in names:
        build.cannot(f"limits.{name}", f"nsbox cannot bound {unbounded}, a directory of the "
                     "caller's that is written to", hint=hint)  # fmt: skip


def _add_files(build: Build) -> None:
    owner = (build.uid, build.gid) if (build.uid, build.gid) != _setup_ids(build) else None
    if build.spec.image_cwd.startswith(f"{TMP}/"):  # which hides that of the image
        build.add(MakeDirs(build.spec.image_cwd, 0o755, "root", owner))
    for name, content, mode in build.spec.files:
        parent, _, _ = name.rpartition("/")
        if parent:
            build.add(MakeDirs(f"{TMP}/{parent}", 0o755, f"files[{name!r}]", owner))
        build.add(File(f"{TMP}/{name}", content, mode, owner, f"files[{name!r}]"))


def _setup_ids(build: Build) -> tuple[int, int]:
    """The uid and gid that set-up runs as, as its user namespace has them."""
    if build.id_map == "single":
        return build.uid, build.gid
    return (0, 0) if build.in_userns else (build.host.euid, build.host.egid)
