# SPDX-License-Identifier: Apache-2.0
"""The calls of the mount API that the owner makes itself, and openat2(2).

Their numbers are the same on every architecture: they are newer than 2019.
"""

from __future__ import annotations

import os
import struct

from nsbox import _core
from nsbox.names import MountAttr, Propagation

_OPEN_TREE, _OPENAT2, _MOUNT_SETATTR = 428, 437, 442
_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1

#: openat2(2), Linux 5.6: absolute paths and symlinks count from the directory that is given.
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x01, 0x02, 0x10


def open_tree(path: str | bytes, *, recursive: bool) -> int:
    """A detached copy of the mount at *path*, with its submounts if *recursive*. Linux 5.2."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _core.raw_syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def set_attributes(tree: int, attrs: int, *, recursive: bool, userns: int = -1) -> None:
    """MOUNT_ATTR_* of a detached mount, made private: nothing mounted in it gets out.

    With *userns*, a descriptor of a user namespace, it is id-mapped by that. Linux 5.12.
    """
    attrs |= int(MountAttr.IDMAP) if userns >= 0 else 0
    packed = struct.pack("<QQQQ", attrs, 0, int(Propagation.PRIVATE), max(userns, 0))
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _core.raw_syscall(_MOUNT_SETATTR, tree, b"", flags, packed, len(packed))


def open_in_root(root: int, path: bytes, flags: int, *, xdev: bool = True) -> int:
    """Opens *path* as a process would whose root directory *root* is; through no magic link."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (0 if xdev else RESOLVE_NO_XDEV)
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _core.raw_syscall(_OPENAT2, root, path, how, len(how))
