# SPDX-License-Identifier: Apache-2.0
"""Steps of a root that is an overlay: layers that are not touched, and one that takes changes.

All of it is put together in a tmpfs, the staging directory: the layers at /0, /1 and so on, so
that no name of the host's gets into an option of the overlay, and above them either the
tmpfs's own /upper and /work, or the caller's directory with these two. The sandbox sees the
overlay only; the staging directory goes with the old root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsbox.build import SLOT_IDS
from nsbox.errors import Unavailable
from nsbox.names import MountAttr, Opcode
from nsbox.steps import Attach, HandOver, MakeDirs, Number, Options

if TYPE_CHECKING:
    from nsbox.build import Build
    from nsbox.slots import Slot

MIB, PAGE = 1 << 20, 4096
_SAFE = int(MountAttr.NOSUID | MountAttr.NODEV)
#: On disk as inside: an image's root is the sandbox's root.
IMAGE_IDS = ((0, 0, SLOT_IDS),)
_SOURCE = "root"


@dataclass
class Layers:
    """The opened directories, and what was made of them.

    Attributes:
        lower: below, the topmost first.
        upper: the caller's directory, None for a tmpfs.
        tmp: a directory of the same tmpfs, for /tmp: one limit for both.
    """

    lower: list[Slot]
    upper: Slot | None
    tmp: Slot | None = None


def open_layers(build: Build) -> Layers:
    """While set-up has the caller's ids; as root with a slot of ids, each mapped to these."""
    root, mapped = build.spec.root, build.id_map == "slot"
    readonly = _SAFE | int(MountAttr.RDONLY)

    def opened(path: str, attrs: int, source: str) -> Slot:
        if mapped:
            return build.map_tree(path, attrs, IMAGE_IDS, IMAGE_IDS, source, keep=False)
        return build.open_tree(path, attrs, source, recursive=False)

    lower = [opened(layer.path, readonly, _SOURCE) for layer in root.layers]
    if root.path and build.id_map == "range":
        raise Unavailable("upper", "the caller's directory belongs to none of the mapped ids",
                          alternatives=("upper=None", 'profile="strict"'))  # fmt: skip
    return Layers(lower, opened(root.path, _SAFE, _SOURCE) if root.path else None)


def add_overlay(build: Build, parts: Layers, size: int, inodes: int, tmp: bool) -> None:
    """The overlay as the root; *size* and *inodes* of the tmpfs, with /tmp in it if *tmp*."""
    room = (("mode", "755"), ("size", str(size)), ("nr_inodes", str(inodes)))
    if parts.upper is not None:
        room = (("mode", "755"), ("size", str(MIB)), ("nr_inodes", "64"))
    build.add(
        Number(Opcode.UMASK, "umask", "0, for set-up", 0, _SOURCE),
        Options(Opcode.ROOT_TMPFS, "staging", room, _SAFE, _SOURCE),
    )
    for i, slot in enumerate(parts.lower):
        build.add(Attach(slot, f"/{i}", _SOURCE))
    where = ""
    if parts.upper is not None:
        where = "rw/"
        build.add(Attach(parts.upper, "/rw", _SOURCE))
    build.add(
        MakeDirs(f"/{where}upper", 0o755, _SOURCE),
        MakeDirs(f"/{where}work", 0o700, _SOURCE),
    )
    if tmp:
        build.add(MakeDirs("/tmp", 0o1777, _SOURCE, (build.uid, build.gid)))
    attrs = 0 if build.spec.profile == "none" else _SAFE
    options = (
        ("lowerdir", ":".join(str(i) for i in range(len(parts.lower)))),
        ("upperdir", f"{where}upper"),
        ("workdir", f"{where}work"),
        *_xattrs(build, parts),
    )
    build.add(Options(Opcode.ROOT_OVERLAY, "overlay", options, attrs, _SOURCE))
    upper = build.open_tree(f"{where}upper", int(MountAttr.RDONLY), _SOURCE, recursive=False)
    layers = tuple(layer.path for layer in build.spec.root.layers)
    build.add(HandOver(upper, layers, _mount_points(build), _SOURCE))
    if build.spec.image_cwd:  # before any mount: in none of the caller's is it to be made
        build.add(MakeDirs(build.spec.image_cwd, 0o755, _SOURCE))
    if tmp:
        parts.tmp = build.open_tree("tmp", _SAFE, _SOURCE, recursive=False)


def _mount_points(build: Build) -> tuple[str, ...]:
    """What set-up itself may make in the upper directory: no change of the payload's."""
    found = {"/dev", "/proc", "/tmp"}
    for dst in (build.spec.image_cwd, *(mount.dst for mount in build.spec.mounts),
                *(file.at for file in build.spec.net_files)):  # fmt: skip
        parts = dst.split("/")
        found.update("/".join(parts[:i]) for i in range(2, len(parts) + 1))
    return tuple(sorted(found))


def _xattrs(build: Build, parts: Layers) -> tuple[tuple[str, str], ...]:
    """Where the overlay notes that a directory hides the one below it, and reads that.

    ``trusted.*`` is for real root only. So whatever stays, a caller's directory, has ``user.*``,
    for any other sandbox to read, also as a layer below. A tmpfs before Linux 6.6 has none.
    """
    if build.in_userns or parts.upper is not None or build.host.tmpfs_user_xattrs:
        return (("userxattr", "!"),)
    for layer in build.spec.root.layers:
        if layer.kept:
            build.cannot("root", f"what was deleted in {layer.path} would be seen again: above "
                         "changes that were kept, a tmpfs needs Linux 6.6",
                         hint='upper=DIRECTORY, or profile="standard"')  # fmt: skip
    return (("index", "off"), ("metacopy", "off"), ("redirect_dir", "off"))
