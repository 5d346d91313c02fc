# SPDX-License-Identifier: Apache-2.0
"""What the owner itself does by the mount API, and openat2(2)."""

from __future__ import annotations

import os
import struct

from nsbox import _core, syscalls
from nsbox.names import MountAttr, Propagation
from nsbox.syscalls import AT_EMPTY_PATH, AT_RECURSIVE, OpenTreeFlag

_OPENAT2 = 437  # the same on every architecture

#: openat2(2), Linux 5.6: absolute paths and symlinks count from the directory that is given.
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x01, 0x02, 0x10


def open_tree(path: str | bytes, *, recursive: bool) -> int:
    """A detached copy of the mount at *path*, with its submounts if *recursive*. Linux 5.2."""
    flags = OpenTreeFlag.CLONE | OpenTreeFlag.CLOEXEC
    return syscalls.open_tree(path, flags | OpenTreeFlag.RECURSIVE if recursive else flags)


def set_attributes(tree: int, attrs: int, *, recursive: bool, userns: int = -1) -> None:
    """MOUNT_ATTR_* of a detached mount, made private: nothing mounted in it gets out.

    With *userns*, a descriptor of a user namespace, it is id-mapped by that. Linux 5.12.
    """
    attrs |= int(MountAttr.IDMAP) if userns >= 0 else 0
    syscalls.mount_setattr(
        "",
        AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0),
        attr_set=attrs,
        propagation=int(Propagation.PRIVATE),
        userns_fd=max(userns, 0),
        dir_fd=tree,
    )


def open_in_root(root: int, path: bytes, flags: int, *, xdev: bool = True) -> int:
    """Opens *path* as a process would whose root directory *root* is; through no magic link."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (0 if xdev else RESOLVE_NO_XDEV)
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _core.raw_syscall(_OPENAT2, root, path, how, len(how))
