# SPDX-License-Identifier: Apache-2.0
"""Where a path leads in a root that is the user's, before there is a process that has it as root.

Links may lead to what is not there yet, as /etc/resolv.conf does where systemd's resolver is
expected. The answer is only ever made, or looked up, with that root as root: of what changes
meanwhile, or lies, nothing comes but another place in it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from nsbox import mountapi
from nsbox.checks import is_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsbox.spec import Mount, Rootfs, Spec

_MOST_LINKS = 40  # as path_resolution(7)


def placed(spec: Spec) -> Spec:
    """*spec* with its mounts where their destinations lead, in a root where what is missing of
    them is made, and then is none of the payload's changes."""
    root = spec.root
    if not spec.mounts or not (root.kind == "overlay" or (root.kind == "dir" and not root.ro)):
        return spec
    mounts: list[Mount] = []
    for mount in spec.mounts:
        covered = [one.dst for one in mounts]
        if mount.kind == "symlink":  # which is made, not followed
            parent, _, name = mount.dst.rpartition("/")
            at = f"{leads_to(root, parent, covered).rstrip('/')}/{name}"
        else:
            at = leads_to(root, mount.dst, covered)
        mounts.append(mount if at == mount.dst else replace(mount, dst=at))
    return replace(spec, mounts=tuple(mounts))


def leads_to(root: Rootfs, where: str, covered: Sequence[str] = ()) -> str:
    """*where* without links on the way, in a directory or an overlay. What is at or below one of
    *covered* is not the root's."""
    with ExitStack() as opened:
        trees = _open_trees(root, opened)
        return _walk(trees, where, covered) if trees else where


def _walk(trees: Sequence[int], where: str, covered: Sequence[str]) -> str:
    done, links, left = "", 0, where.split("/")[::-1]
    while left:
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


def _open_trees(root: Rootfs, opened: ExitStack) -> list[int]:
    """Its directories on the host, topmost first; what is not there is told by set-up."""
    paths = [root.path] if root.kind == "dir" else []
    if root.kind == "overlay":
        paths = [f"{root.path}/upper"] if root.path else []
        paths += [layer.path for layer in root.layers]
    found = []
    for path in paths:
        try:
            found.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            continue
        opened.callback(os.close, found[-1])
    return found


def _link(trees: Sequence[int], path: str) -> str | None:
    """What a link says, in the topmost of the trees that have anything there."""
    for tree in trees:
        try:
            fd = mountapi.open_in_root(tree, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            return os.readlink("", dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)
    return None
