# SPDX-License-Identifier: Apache-2.0
"""Where a path leads in a root that is the user's, before there is a process that has it as root.

Links may lead to what is not there yet, as /etc/resolv.conf does where systemd's resolver is
expected. The answer is only ever made, or looked up, with that root as root: of what changes
meanwhile, or lies, nothing comes but another place in it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from nsbox import mountapi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsbox.spec import Mount, Rootfs, Spec

_MOST_LINKS = 40  # as path_resolution(7)


def placed(spec: Spec) -> Spec:
    """*spec* with its mounts where their destinations lead, in a root where what is missing of
    them is made, and then is none of the payload's changes."""
    if not spec.mounts or spec.root.kind not in ("dir", "overlay") or _is_read_only(spec.root):
        return spec
    mounts: list[Mount] = []
    for mount in spec.mounts:
        covered = [one.dst for one in mounts]
        if mount.kind == "symlink":  # which is made, not followed
            parent, _, name = mount.dst.rpartition("/")
            at = f"{leads_to(spec.root, parent, covered).rstrip('/')}/{name}"
        else:
            at = leads_to(spec.root, mount.dst, covered)
        mounts.append(mount if at == mount.dst else replace(mount, dst=at))
    return replace(spec, mounts=tuple(mounts))


def _is_read_only(root: Rootfs) -> bool:
    return root.kind == "dir" and root.ro


def leads_to(root: Rootfs, where: str, covered: Sequence[str] = ()) -> str:
    """*where* without links on the way, in a directory or an overlay. What is at or below one of
    *covered* is not the root's."""
    trees, done, links = _trees(root), "", 0
    left = where.split("/")[::-1]
    while trees and left:
        name = left.pop()
        if name == "..":
            done = done.rpartition("/")[0]
        elif name not in ("", "."):
            path = f"{done}/{name}"
            follow = links < _MOST_LINKS and not any(is_in(path, one) for one in covered)
            target = _link(trees, path) if follow else None
            if target is None:
                done = path
            else:
                links += 1
                done = "" if target.startswith("/") else done
                left += target.split("/")[::-1]
    return done or where


def is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _trees(root: Rootfs) -> list[str]:
    """Its directories on the host, topmost first."""
    if root.kind == "dir":
        return [root.path]
    upper = [f"{root.path}/upper"] if root.kind == "overlay" and root.path else []
    return upper + [layer.path for layer in root.layers if layer.kind == "dir"]


def _link(trees: list[str], path: str) -> str | None:
    """What a link says, in the topmost of the trees that have anything there."""
    for tree in trees:
        fd = _open(tree, path)
        if fd < 0:
            continue
        try:
            return os.readlink("", dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)
    return None


def _open(tree: str, path: str) -> int:
    """What is there itself, or -1."""
    try:
        root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        return mountapi.open_in_root(root, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return -1
    finally:
        os.close(root)
