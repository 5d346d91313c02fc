# SPDX-License-Identifier: Apache-2.0
"""What was changed in an overlay, told from its upper directory; and throwing that away.

A payload chose every name and link in there. Nothing is followed: each directory is opened by
its name in the one above, and each name is looked up in the layers in the same way.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 100_000  #: changes that are told; the last one then says "more"
_DEPTH = 200  # levels of directories that are opened at once, to look
_LEVELS = 64  # and to remove
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


class Change(NamedTuple):
    """One path of the sandbox's that is not as it is below.

    *kind* is ``"added"``, ``"modified"`` or ``"deleted"``; ``"unreadable"`` for a directory of
    changes that the caller may not read, ``"deep"`` for one below 200 others, and ``"more"``
    after 100,000 changes. *path* is absolute; bytes that are not UTF-8 are surrogates, as in
    ``os.fsdecode``. Of a directory that was deleted and made again, what is no longer in it is
    not listed.
    """

    kind: str
    path: str


class _Layers:
    """The directories below, by descriptor, the topmost first."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self._roots: list[int] = []
        try:
            for path in paths:
                self._roots.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        while self._roots:
            os.close(self._roots.pop())

    def has(self, path: bytes) -> bool:
        """Whether there is something at *path* (relative, without links) in what is merged."""
        parent, name = os.path.split(path)
        for root in self._roots:
            found = _find(root, parent, name)
            if found is not None:
                return found
        return False


def _find(root: int, parent: bytes, name: bytes) -> bool | None:
    """In one layer: there, hidden from those below, or None: ask the next."""
    fd = os.dup(root)
    try:
        for part in parent.split(b"/") if parent else []:
            try:
                below = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except OSError:
                return None
            os.close(fd)
            fd = below
            status = os.fstat(fd)
            if not stat.S_ISDIR(status.st_mode):
                return False
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return False if _is_opaque(fd) else None
        return not _is_whiteout(status)
    finally:
        os.close(fd)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    """Of a directory: it hides the one below it. By /proc, for *fd* may be O_PATH."""
    for name in _OPAQUE:
        try:
            if os.getxattr(f"/proc/self/fd/{fd}", name) == b"y":
                return True
        except OSError:
            pass
    return False


def changes(
    upper: int, layers: tuple[str, ...], made: tuple[str, ...] = (), most: int = MOST
) -> tuple[Change, ...]:
    """What *upper*, a directory's descriptor, says of the *layers* (host paths) below it.

    Paths in *made* are left out where they were added: set-up did that.

    Raises:
        OSError: a layer is not there any more.
    """
    below = _Layers(layers)
    found: list[Change] = []
    try:
        for change in _walk(upper, below):
            if change.kind == "added" and change.path in made:
                continue
            if len(found) == most:
                found.append(Change("more", "/"))
                break
            found.append(change)
    finally:
        below.close()
    return tuple(sorted(found, key=lambda change: os.fsencode(change.path)))


def _walk(upper: int, below: _Layers) -> Iterator[Change]:
    try:
        top = os.open(".", _DIRECTORY, dir_fd=upper)
    except PermissionError:
        yield _change("unreadable", b"")
        return
    stack = [(b"", top, os.scandir(top), False)]
    try:
        while stack:
            path, fd, entries, new = stack[-1]
            entry = next(entries, None)
            if entry is None:
                entries.close()
                os.close(fd)
                stack.pop()
                continue
            name = os.fsencode(entry.name)
            where = path + b"/" + name if path else name
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except PermissionError:
                yield _change("unreadable", where)
                continue
            except OSError:  # gone meanwhile
                continue
            if _is_whiteout(status):
                yield _change("deleted", where)
                continue
            was = not new and below.has(where)
            if not stat.S_ISDIR(status.st_mode):
                yield _change("modified" if was else "added", where)
                continue
            if len(stack) >= _DEPTH:
                yield _change("deep", where)
                continue
            yield from _enter(stack, fd, name, where, was)
    finally:
        for _, fd, entries, _ in stack:
            entries.close()
            os.close(fd)


def _enter(
    stack: list[tuple[bytes, int, os._ScandirIterator[str], bool]],
    fd: int,
    name: bytes,
    where: bytes,
    was: bool,
) -> Iterator[Change]:
    """A directory that is in both is only the way to what changed, unless it hides the other."""
    try:
        inner = os.open(name, _DIRECTORY, dir_fd=fd)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EPERM):
            yield _change("unreadable", where)
        return
    new = not was or _is_opaque(inner)
    stack.append((where, inner, os.scandir(inner), new))
    if new:
        yield _change("modified" if was else "added", where)


def _change(kind: str, where: bytes) -> Change:
    return Change(kind, "/" + os.fsdecode(where))


def empty(directory: str) -> None:
    """Remove everything in a directory, of whatever depth, following and crossing nothing.

    Raises:
        OSError: something cannot be removed; a mount (EXDEV, EBUSY) is left alone.
    """
    top = os.open(directory, _DIRECTORY)
    try:
        _empty(top)
    finally:
        os.close(top)


def empty_fd(top: int) -> None:
    """The same, of a directory that is open."""
    _empty(top)


def remove(parent: int, name: bytes) -> None:
    """Remove *name* in the directory *parent*, and all below it, as ``empty`` does.

    Nothing is done where there is none.
    """
    if _unlinked(parent, name):
        return
    fd = _open_to_empty(parent, name)
    try:
        _empty(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _empty(top: int) -> None:
    """As many levels as there are descriptors for; what lies deeper is moved up to the top."""
    device, number = os.fstat(top).st_dev, 0
    levels: list[tuple[int, bytes, list[bytes]]] = [(top, b"", [])]
    try:
        while True:
            fd, own, names = levels[-1]
            if not names:
                names += _some(fd)
            if not names:
                if len(levels) == 1:
                    return
                levels.pop()
                os.close(fd)
                os.rmdir(own, dir_fd=levels[-1][0])
                continue
            name = names.pop()
            if _unlinked(fd, name):
                continue
            if len(levels) < _LEVELS:
                levels.append((_open_to_empty(fd, name), name, []))
                if os.fstat(levels[-1][0]).st_dev != device:
                    raise OSError(errno.EXDEV, "a mount", os.fsdecode(name))
            else:
                number = _free(top, number)
                os.rename(name, b"nsbox-%d" % number, src_dir_fd=fd, dst_dir_fd=top)
    finally:
        for fd, _, _ in levels[1:]:
            os.close(fd)


def _unlinked(fd: int, name: bytes) -> bool:
    """False for a directory."""
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        return False
    except PermissionError:  # what some file systems say of a directory
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return False
        raise
    return True


def _some(fd: int, most: int = 1000) -> list[bytes]:
    with os.scandir(fd) as entries:
        return [os.fsencode(entry.name) for _, entry in zip(range(most), entries, strict=False)]


def _open_to_empty(parent: int, name: bytes) -> int:
    """A directory, for its entries to be removed, whatever its mode; never by a link."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _free(top: int, number: int) -> int:
    """The next number whose name is not taken there."""
    while True:
        number += 1
        try:
            os.stat(b"nsbox-%d" % number, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            return number
