# SPDX-License-Identifier: Apache-2.0
"""Archives of strangers, unpacked: tar, plain or compressed by gzip, bzip2, xz or zstd.

Headers are read by tarfile; nothing is extracted by it. Every path is resolved below the target
by openat2(2), so that a link in it, made by the archive itself, leads nowhere else.

Who owns what: unpacked by root, the archive's numbers, and 65534 for those above 65535; by
anybody else, the caller. Set-user-ID and set-group-ID bits and extended attributes are dropped;
devices, pipes and whatever else is no file, directory or link are refused. But below dev/, which
a sandbox has of its own, devices and pipes are left out.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from typing import IO, TYPE_CHECKING, Any, cast

from nsbox import changes, mountapi
from nsbox.build import SLOT_IDS
from nsbox.errors import NsboxError, SpecError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES = 16 << 30  #: of content, unpacked
MOST_FILES = 1_000_000
MOST_DEPTH = 200  #: levels of a name
_SHOWN = 200  # characters of a name in an error
_HEADERS = 4 << 20  # of one entry: its name, its attributes, its map of holes
_PADDING = 64 << 20  # after the last entry
_CHUNK = 1 << 18
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOBODY = 65534
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # no fault of the archive's
_WHITEOUT, _OPAQUE, _RESERVED = b".wh.", b".wh..wh..opq", b".wh..wh."


class _Refused(Exception):
    """Why an entry is."""


class _Forward:
    """A stream that is read once, from its begin to its end, and no more than is expected."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._at = 0
        self.budget = _HEADERS

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > 1 << 20 or size > self.budget:
            raise _Refused("has more to it than belongs to an entry")
        parts, left = [], size
        while left and (data := self._next(left)):
            parts.append(data)
            left -= len(data)
        self._at += size - left
        self.budget -= size - left
        return b"".join(parts)

    def _next(self, most: int) -> bytes:
        """What the decompressors raise of broken data has no common base."""
        try:
            return self._raw.read(most)
        except (MemoryError, NsboxError, _Refused):
            raise
        except Exception as e:
            if isinstance(e, OSError) and e.errno:
                raise
            raise _Refused(str(e)) from e

    def tell(self) -> int:
        return self._at

    def seek(self, where: int, whence: int = 0) -> int:
        if whence or where < self._at:
            raise _Refused("its sizes contradict each other")
        while self._at < where:
            if not self.read(min(where - self._at, _CHUNK)):
                break
        return self._at


def decompressed(raw: IO[bytes]) -> IO[bytes]:
    """*raw*, or what it is the compressed form of, told by its first bytes.

    Raises:
        Unavailable: it is zstd's, and this Python has no module for that.
    """
    magic = raw.peek(6)[:6]  # type: ignore[attr-defined]
    if magic[:2] == b"\x1f\x8b":
        import gzip

        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if magic[:3] == b"BZh":
        import bz2

        return bz2.BZ2File(raw)
    if magic == b"\xfd7zXZ\0":
        import lzma

        return lzma.LZMAFile(raw)
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        return _zstd(raw)
    return raw


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    from importlib import import_module

    for module, name in (("compression.zstd", "ZstdFile"), ("zstandard", "open")):
        try:
            found: Any = getattr(import_module(module), name)
        except ImportError:
            continue
        result: IO[bytes] = found(raw)
        return result
    raise Unavailable("zstd", "this Python cannot read archives that zstd made",
                      hint="pip install zstandard, or Python 3.14")  # fmt: skip


class Unpacker:
    """Unpacks archives into one directory, one over the other.

    Args:
        root: a descriptor of the directory.
        what: the archive, in errors.
    """

    def __init__(self, root: int, what: str) -> None:
        self._root, self._what = root, what
        self._files = self._bytes = 0
        self._owns = os.geteuid() == 0

    def unpack(self, stream: IO[bytes], *, layer: bool = False) -> None:
        """Everything in *stream*; of a *layer* of an image without its whiteouts.

        Raises:
            SpecError: it is no archive, or one that is refused.
        """
        self._each(stream, lambda member, tar: self._entry(member, tar, layer))

    def erase(self, stream: IO[bytes]) -> None:
        """What the whiteouts of a layer take from the layers below: before it is unpacked."""
        self._each(stream, lambda member, tar: self._whiteout(member))

    def _each(
        self, stream: IO[bytes], act: Callable[[tarfile.TarInfo, tarfile.TarFile], None]
    ) -> None:
        forward, name = _Forward(stream), ""
        try:
            with tarfile.open(
                fileobj=cast("IO[bytes]", forward), mode="r:", encoding="utf-8",
                errors="surrogateescape",
            ) as tar:  # fmt: skip
                while True:
                    forward.budget = _HEADERS
                    member = tar.next()
                    if member is None:
                        break
                    tar.members = []  # type: ignore[attr-defined]
                    name = member.name
                    self._count(member)
                    forward.budget = member.size + _HEADERS
                    act(member, tar)
                    forward.seek(tar.offset)
                name, forward.budget = "", _PADDING
                while forward.read(_CHUNK):  # to the end, where checksums are
                    pass
        except (_Refused, tarfile.TarError, ValueError, OverflowError, EOFError) as e:
            raise self._error(name, str(e)) from e
        except OSError as e:
            if isinstance(e, NsboxError) or e.errno in _OURS:
                raise
            raise self._error(name, str(e)) from e

    def _error(self, name: str, why: str) -> SpecError:
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        where = f", entry {shown!r}" if name else ""
        return SpecError("root", f"{self._what}{where}: {why}")

    def _count(self, member: tarfile.TarInfo) -> None:
        self._count_one()
        self._bytes += member.size
        if member.size < 0 or self._bytes > MOST_BYTES:
            raise _Refused(f"more than {MOST_BYTES} bytes")

    def _count_one(self) -> None:
        """An entry, or a directory that is made for one."""
        self._files += 1
        if self._files > MOST_FILES:
            raise _Refused(f"more than {MOST_FILES} entries")

    # ------------------------------------------------------------ entries

    def _entry(self, member: tarfile.TarInfo, tar: tarfile.TarFile, layer: bool) -> None:
        parts = _parts(member.name)
        if not parts:
            return  # of the directory itself: it is ours
        if layer and parts[-1].startswith(_WHITEOUT):
            return
        if member.isdev() and parts[0] == b"dev":
            return
        parent = self._directory(parts[:-1])
        try:
            if member.isdir():
                self._make_directory(parent, parts[-1], member)
            elif member.isfile():
                self._make_file(parent, parts[-1], member, tar)
            elif member.issym():
                self._clear(parent, parts[-1])
                os.symlink(os.fsencode(member.linkname), parts[-1], dir_fd=parent)
                self._own(parent, parts[-1], member)
            elif member.islnk():
                self._make_link(parent, parts[-1], member)
            else:
                raise _Refused("neither a file, a directory nor a link: make the archive without "
                               "it (tar --exclude)")  # fmt: skip
        finally:
            os.close(parent)

    def _directory(self, parts: list[bytes]) -> int:
        """The directory of these names, as the root's own links lead, made where missing.

        From the deepest that is there, down: the kernel walks the names above it, links and all,
        and below it nobody but us has made anything.
        """
        fd, missing = self._deepest(b"/" + b"/".join(parts))
        try:
            for name in parts[len(parts) - missing :]:
                self._count_one()
                os.mkdir(name, 0o755, dir_fd=fd)
                below = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _deepest(self, path: bytes) -> tuple[int, int]:
        """The deepest directory on the way to *path*, and how many names are missing below it."""
        missing = 0
        while True:
            try:
                fd = mountapi.open_in_root(self._root, path or b"/", os.O_PATH | os.O_DIRECTORY,
                                           xdev=False)  # fmt: skip
            except FileNotFoundError:
                path, missing = path.rpartition(b"/")[0], missing + 1
            else:
                return fd, missing

    def _make_directory(self, parent: int, name: bytes, member: tarfile.TarInfo) -> None:
        try:
            is_there = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            is_there = False
        if not is_there:
            self._clear(parent, name)
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=parent)
        try:
            self._own(parent, name, member)
            os.fchmod(fd, member.mode & 0o1777 | (0 if self._owns else 0o700))
        finally:
            os.close(fd)

    def _make_file(
        self, parent: int, name: bytes, member: tarfile.TarInfo, tar: tarfile.TarFile
    ) -> None:
        content = tar.extractfile(member)
        if content is None:
            raise _Refused("no content")
        self._clear(parent, name)
        fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            left = member.size
            while left:
                data = content.read(min(left, _CHUNK))
                if not data:
                    raise _Refused("ends before its size")
                left -= len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            self._own(parent, name, member)
            os.fchmod(fd, member.mode & 0o777 | (0 if self._owns else 0o600))
            if 0 <= member.mtime < 1 << 33:
                os.utime(fd, (int(member.mtime), int(member.mtime)))
        finally:
            os.close(fd)

    def _make_link(self, parent: int, name: bytes, member: tarfile.TarInfo) -> None:
        parts = _parts(member.linkname)
        if not parts:
            raise _Refused("a link to nothing")
        there = self._directory(parts[:-1])
        try:
            status = os.stat(parts[-1], dir_fd=there, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise _Refused("a hard link to what is no file")
            here = os.fstat(parent)
            above = os.fstat(there)
            if (parts[-1], above.st_ino, above.st_dev) == (name, here.st_ino, here.st_dev):
                return
            self._clear(parent, name)
            os.link(parts[-1], name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(there)

    def _clear(self, parent: int, name: bytes) -> None:
        changes.remove(parent, name)

    def _own(self, parent: int, name: bytes, member: tarfile.TarInfo) -> None:
        if self._owns:
            uid, gid = (n if 0 <= n < SLOT_IDS else _NOBODY for n in (member.uid, member.gid))
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)

    def _whiteout(self, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        if not parts or not parts[-1].startswith(_WHITEOUT):
            return
        gone = parts[-1][len(_WHITEOUT) :]
        if parts[-1] != _OPAQUE and (parts[-1].startswith(_RESERVED) or gone in (b"", b".", b"..")):
            return
        try:
            path = b"/" + b"/".join(parts[:-1])
            parent = mountapi.open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY,
                                           xdev=False)  # fmt: skip
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if parts[-1] == _OPAQUE:
                changes.empty_fd(parent)
            else:
                self._clear(parent, gone)
        finally:
            os.close(parent)


def _parts(name: str) -> list[bytes]:
    raw = os.fsencode(name)
    if raw.startswith(b"/"):
        raise _Refused("an absolute name")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise _Refused("'..' in a name")
    if b"\0" in raw:
        raise _Refused("a NUL byte in a name")
    if len(parts) > MOST_DEPTH:
        raise _Refused(f"more than {MOST_DEPTH} levels deep")
    return parts
