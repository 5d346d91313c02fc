# SPDX-License-Identifier: Apache-2.0
"""What execve(2) did not find, which says the same of a program and of its interpreter.

Asked after the failure, when the sandbox is gone: of the host's files that were its root. They
are a stranger's, maybe, and of one no more is read than its begin.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nsbox import mountapi, probe
from nsbox.checks import is_in
from nsbox.scratch import TMP

if TYPE_CHECKING:
    from nsbox.errors import CommandNotFound
    from nsbox.plan import Plan
    from nsbox.spec import Spec

_BEGIN = 256  # what the kernel looks at: BINPRM_BUF_SIZE


class _NotTold(Exception):
    """What is at the path inside cannot be told from outside."""


def explain(error: CommandNotFound, spec: Spec, plan: Plan) -> None:
    """Sets the hint of *error* to what is certain; else it stays, and says what may be."""
    cwd = next((str(s.value) for s in plan.steps if s.name == "chdir"), "/")  # type: ignore[union-attr]
    tried = [str(s.value) for s in plan.steps if s.name == "exec"]  # type: ignore[union-attr]
    try:
        for path in tried:
            begin = _begin(spec, os.path.join(cwd, path))
            if begin:
                error.hint = f"{path!r} is in the sandbox, but {_interpreter(begin)} is not"
                return
    except (_NotTold, OSError):
        return
    error.hint = f"{spec.args[0]!r} was not found in the sandbox"


def _interpreter(begin: bytes) -> str:
    if begin[:2] == b"#!":
        words = begin[2:].partition(b"\n")[0].strip(b" \t").replace(b"\t", b" ").split(b" ")
        return f"the interpreter of its #! line, {os.fsdecode(words[0])!r}, or what that needs,"
    if begin[:4] == b"\x7fELF":
        return "its loader, ld.so of the C library that it was built for (readelf -l says which),"
    return "what is to interpret it"


def _begin(spec: Spec, path: str) -> bytes:
    """Of the program at *path* inside; b"" where there is none."""
    path = os.path.normpath(path)
    if path.startswith(f"{TMP}/") and (spec.files or spec.profile != "none"):
        return _begin_of_file(spec, path.removeprefix(f"{TMP}/"))
    trees = [mount.src for mount in spec.mounts if mount.kind == "bind" and mount.src == mount.dst]
    if len(trees) < len(spec.mounts) or (trees and spec.root.kind != "host"):
        raise _NotTold
    if spec.root.kind != "host":
        return _begin_below(_directory(spec), path)
    trees += [tree for tree, _, _ in probe.host().system]
    return _begin_below("/", path, trees) if _is_below(path, trees) else b""


def _begin_of_file(spec: Spec, name: str) -> bytes:
    if any(mount.dst.startswith(TMP) for mount in spec.mounts):
        raise _NotTold
    return next((data[:_BEGIN] for file, data, mode in spec.files if file == name and mode & 0o111),
                b"")  # fmt: skip


def _directory(spec: Spec) -> str:
    """The one of the host's that is all of the root, as it was when nothing had run."""
    root = spec.root
    if root.kind == "overlay" and len(root.layers) == 1 and not root.path:
        return root.layers[0].path
    if root.kind == "overlay":
        raise _NotTold
    return root.path if root.kind == "dir" else "/"


def _is_below(path: str, trees: list[str]) -> bool:
    return any(is_in(path, tree) for tree in trees)


def _begin_below(root: str, path: str, trees: list[str] | None = None) -> bytes:
    """As links lead below *root*; of the host's, only what leads to one of *trees*."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = mountapi.open_in_root(top, os.fsencode(path), os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    finally:
        os.close(top)
    try:
        itself = f"/proc/self/fd/{found}"
        mode = os.fstat(found).st_mode
        hidden = trees is not None and not _is_below(os.readlink(itself), trees)
        if hidden or not stat.S_ISREG(mode) or not mode & 0o111:
            return b""
        with open(itself, "rb") as file:
            return file.read(_BEGIN)
    finally:
        os.close(found)
