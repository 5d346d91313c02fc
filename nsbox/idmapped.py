# SPDX-License-Identifier: Apache-2.0
"""Id-mapped copies of host paths: made by the owner, passed to the sandbox.

The kernel takes a mapping in the form of a user namespace that has it. Such a namespace is made
by a process that does nothing else, and kept as a descriptor, for sandboxes come again.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from nsbox import mountapi
from nsbox.compile import compile_id_holder
from nsbox.errors import Unavailable
from nsbox.kept import Kept
from nsbox.process import dev_null
from nsbox.slots import Slot
from nsbox.spawn import spawn

if TYPE_CHECKING:
    from nsbox.hoststeps import IdLines, MapTree
    from nsbox.launcher import Launcher

_MOST = 16  # each pins a user namespace

held = Kept(_MOST)


def open_mapped(step: MapTree, first: int, parent: Launcher) -> int:
    """The tree of *step*, with inside's id 0 being *first* outside; the caller's to close.

    Raises:
        Unavailable: the file system cannot be id-mapped, and that is required.
        OSError: the path is not there.
    """
    tree = mountapi.open_tree(step.src, recursive=not step.required)
    try:
        userns = _user_namespace(step.map(step.uids, first), step.map(step.gids, first), parent)
        try:
            mountapi.set_attributes(tree, step.attrs, recursive=not step.required, userns=userns)
        finally:
            os.close(userns)
    except OSError as e:
        try:
            if step.required or e.errno not in (errno.EINVAL, errno.EPERM):
                raise _unavailable(step, e) from e
            mountapi.set_attributes(tree, step.attrs, recursive=True)
        except BaseException:
            os.close(tree)
            raise
    except BaseException:
        os.close(tree)
        raise
    return tree


def _unavailable(step: MapTree, error: OSError) -> Exception:
    if error.errno not in (errno.EINVAL, errno.EPERM):
        return error
    return Unavailable(
        step.source,
        f"the file system of {step.src} cannot be id-mapped",
        err=error.errno,
        alternatives=("a directory on ext4, xfs or btrfs", 'profile="none"'),
    )


def _user_namespace(uids: IdLines, gids: IdLines, parent: Launcher) -> int:
    """A descriptor of a user namespace with these maps, the caller's to close."""
    return held.take((parent.view, uids, gids), lambda: _make(uids, gids))


def _make(uids: IdLines, gids: IdLines) -> int:
    null = dev_null()
    plan = compile_id_holder(uids, gids)
    holder = spawn(plan, {Slot("stdio", n): null for n in range(3)})
    try:
        return holder.open_namespace("user")
    finally:
        holder.close()
