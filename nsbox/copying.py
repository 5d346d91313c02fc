# SPDX-License-Identifier: Apache-2.0
"""Files into and out of a running sandbox, whose payload may do its worst meanwhile.

The root of the sandbox is a descriptor. Paths in it are resolved by openat2(2) as the payload's
are, so a link leads where it would lead the payload; in a tree that is copied no link is
followed at all. What a name stands for is looked at after it was opened, without being read
(O_PATH): a pipe blocks nobody and a device is not touched.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nsbox import _core, changes, mountapi
from nsbox.errors import CopyError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
MOST_DEPTH = 200  #: levels of directories: each takes two descriptors
_KINDS = {stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
          stat.S_IFCHR: "device", stat.S_IFBLK: "device"}  # fmt: skip


class Copied(NamedTuple):
    """What was copied.

    *files* counts everything but directories; *bytes* is their content. *skipped* are
    (path below the source, why) of what was left out: links, pipes, sockets and devices.
    """

    files: int
    bytes: int
    skipped: tuple[tuple[str, str], ...]


class _End(NamedTuple):
    """Of a copy: ``"src"`` or ``"dst"``, and the path that this said."""

    field: str
    place: str

    def error(self, err: int, path: bytes, limit: str = "") -> CopyError:
        return CopyError(err, *self, path, limit)

    @contextmanager
    def naming(self, path: bytes = b"") -> Iterator[None]:
        """Whatever the kernel refuses is a CopyError that names the end, and what is below it."""
        try:
            yield
        except (CopyError, Unavailable):
            raise
        except OSError as e:
            unmapped = "the caller's ids are not mapped in the sandbox"
            limit = unmapped if e.errno == errno.EOVERFLOW else ""
            raise self.error(e.errno or errno.EIO, path, limit) from e


class Bounds(NamedTuple):
    """What a copy may come to; beyond it the copy fails, and leaves nothing."""

    bytes: int = 1 << 62
    files: int = 1 << 62
    depth: int = MOST_DEPTH


# ------------------------------------------------------------------ whose rights

#: Of setfsuid(2), setfsgid(2), setgroups(2) and prctl(2).
_CALLS = {"x86_64": (122, 123, 116, 157), "aarch64": (151, 152, 159, 167)}
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_dumpable = threading.Lock()


class _Rights:
    """The ids that files are made with: this thread's own, or those of the sandbox's user.

    Root's own id is not mapped in the sandbox's user namespace, so it could make nothing there;
    and as the sandbox's user it can do no more than the payload itself.
    """

    def __init__(self, ids: tuple[int, int] | None = None) -> None:
        self._ids, self._own = ids, (os.geteuid(), os.getegid())
        if ids is not None:
            _core.raw_syscall(_calls()[2], 0, 0)
            self._become(ids)

    def _become(self, ids: tuple[int, int]) -> None:
        setfsuid, setfsgid, *_ = _calls()
        _core.raw_syscall(setfsgid, ids[1])
        _core.raw_syscall(setfsuid, ids[0])
        if (
            _core.raw_syscall(setfsuid, -1),
            _core.raw_syscall(setfsgid, -1),
        ) != ids:  # it never fails
            raise PermissionError(errno.EPERM, "setfsuid")

    @contextmanager
    def own(self) -> Iterator[None]:
        """For what is the caller's."""
        if self._ids is not None:
            self._become(self._own)
        try:
            yield
        finally:
            if self._ids is not None:
                self._become(self._ids)


def _calls() -> tuple[int, int, int, int]:
    try:
        return _CALLS[platform.machine()]
    except KeyError:
        raise Unavailable("copy_in", f"not known for {platform.machine()}") from None


def _in_thread(work: Callable[[], Copied]) -> Copied:
    """File ids are one thread's: this one ends with the copy, whatever happens in it.

    The kernel takes a change of them for a set-user-ID program, and closes the process's /proc
    files to its own user: that is undone.
    """
    result: list[Copied] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as e:
            failed.append(e)

    prctl = _calls()[3]
    with _dumpable:
        before = _core.raw_syscall(prctl, _PR_GET_DUMPABLE)
        thread = threading.Thread(target=run, name="nsbox-copy")
        thread.start()
        thread.join()
        if before == 1:
            _core.raw_syscall(prctl, _PR_SET_DUMPABLE, 1)
    if failed:
        raise failed[0]
    return result[0]


# ------------------------------------------------------------------ the tree


@dataclass
class _Level:
    """A directory that is being copied: its name for messages, both ends, and the mode to be."""

    path: bytes
    source: int
    target: int
    mode: int
    entries: os._ScandirIterator[str]

    def close(self) -> None:
        self.entries.close()
        os.close(self.source)
        os.close(self.target)


class _Copy:
    def __init__(
        self,
        src: _End,
        dst: _End,
        bounds: Bounds,
        rights: _Rights,
        links: bool,
        avoid: frozenset[int] = frozenset(),
    ) -> None:
        self.src, self.dst = src, dst
        self.bounds, self.rights, self.links, self.avoid = bounds, rights, links, avoid
        self.files = self.size = 0
        self.skipped: list[tuple[str, str]] = []

    def done(self) -> Copied:
        return Copied(self.files, self.size, tuple(self.skipped))

    def entry(self, source: int, name: bytes, target: int, new: bytes, path: bytes) -> None:
        """One name and what is below it, to *new* in the directory *target*."""
        levels: list[_Level] = []
        try:
            self._one(source, name, target, new, path, levels)
            while levels:
                level = levels[-1]
                with self.src.naming(level.path), self.rights.own():
                    found = next(level.entries, None)
                if found is None:
                    with self.dst.naming(level.path):
                        os.fchmod(level.target, level.mode)
                    levels.pop().close()
                    continue
                name = os.fsencode(found.name)
                self._one(level.source, name, level.target, name, _join(level.path, name), levels)
        finally:
            for level in levels:
                level.close()

    def _one(
        self, source: int, name: bytes, target: int, new: bytes, path: bytes, levels: list[_Level]
    ) -> None:
        self.files += 1
        if self.files > self.bounds.files:
            raise self.src.error(errno.EMFILE, path, f"more than {self.bounds.files} files")
        with self.src.naming(path):
            try:
                with self.rights.own():
                    fd = os.open(name, _PATH_ONLY, dir_fd=source)
            except FileNotFoundError:
                if not levels:
                    raise
                return  # gone since it was listed
            try:
                self._opened(fd, target, new, path, levels)
            finally:
                os.close(fd)

    def _opened(self, fd: int, target: int, new: bytes, path: bytes, levels: list[_Level]) -> None:
        status = os.fstat(fd)
        mode = status.st_mode
        if status.st_dev in self.avoid:
            self._skip(path, "file of the kernel's", levels)
        elif stat.S_ISDIR(mode):
            self.files -= 1
            if len(levels) >= self.bounds.depth:
                raise self.src.error(errno.ELOOP, path,
                                     f"more than {self.bounds.depth} levels deep")  # fmt: skip
            levels.append(self._directory(fd, target, new, path, mode & 0o777))
        elif stat.S_ISREG(mode):
            self._regular(fd, target, new, path, mode & 0o777)
        elif stat.S_ISLNK(mode) and self.links:
            with self.rights.own():
                said = os.readlink(b"", dir_fd=fd)
            with self.dst.naming(path):
                os.symlink(said, new, dir_fd=target)
        else:
            self._skip(path, _KINDS[stat.S_IFMT(mode)], levels)

    def _skip(self, path: bytes, what: str, levels: list[_Level]) -> None:
        if not levels:
            raise self.src.error(errno.EINVAL, path, f"a {what}")
        self.files -= 1
        if len(self.skipped) >= min(self.bounds.files, 100_000):
            raise self.src.error(errno.EMFILE, path, "too much that is no file")
        self.skipped.append((os.fsdecode(path), what))

    def _directory(self, fd: int, target: int, new: bytes, path: bytes, mode: int) -> _Level:
        with self.rights.own():
            source = os.open(f"/proc/self/fd/{fd}", _DIRECTORY)
        made = -1
        try:
            with self.dst.naming(path):
                os.mkdir(new, 0o700, dir_fd=target)
                made = os.open(new, _DIRECTORY | os.O_NOFOLLOW, dir_fd=target)
            with self.rights.own():
                return _Level(path, source, made, mode, os.scandir(source))
        except BaseException:
            os.close(source)
            if made >= 0:
                os.close(made)
            raise

    def _regular(self, fd: int, target: int, new: bytes, path: bytes, mode: int) -> None:
        if os.fstat(fd).st_size > self.bounds.bytes - self.size:  # of a sparse one, not a byte
            raise self._too_large(path)
        with self.rights.own():
            source = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with self.dst.naming(path):
                made = os.open(new, _NEW, 0o600, dir_fd=target)
            try:
                while data := os.read(source, _CHUNK):
                    self.size += len(data)
                    if self.size > self.bounds.bytes:  # it grows as it is read
                        raise self._too_large(path)
                    with self.dst.naming(path):
                        _write(made, data)
                with self.dst.naming(path):
                    os.fchmod(made, mode)
            finally:
                os.close(made)
        finally:
            os.close(source)

    def _too_large(self, path: bytes) -> CopyError:
        return self.src.error(errno.EFBIG, path, f"more than {self.bounds.bytes} bytes")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _is_directory(parent: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _check_place(end: _End, is_directory: bool, parent: int, new: bytes) -> None:
    """A directory replaces nothing, and is replaced by nothing."""
    with end.naming():
        try:
            taken = _is_directory(parent, new)
        except FileNotFoundError:
            return
        if is_directory:
            raise FileExistsError(errno.EEXIST, "")
        if taken:
            raise IsADirectoryError(errno.EISDIR, "")


def _replace(copy: _Copy, source: int, name: bytes, parent: int, new: bytes) -> None:
    """Under a name of its own first: *new* is there whole, or as it was."""
    with copy.src.naming(), copy.rights.own():
        is_directory = _is_directory(source, name)
    # before anything is made: where that is, it may not be allowed
    _check_place(copy.dst, is_directory, parent, new)
    temporary = b".nsbox-" + os.urandom(8).hex().encode()
    try:
        copy.entry(source, name, parent, temporary, b"")
        with copy.dst.naming():
            is_directory = _is_directory(parent, temporary)
            _check_place(copy.dst, is_directory, parent, new)
            os.rename(temporary, new, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        _remove(parent, temporary)
        raise


def _remove(parent: int, name: bytes) -> None:
    try:
        changes.remove(parent, name)
    except OSError:  # taken away, or in the way, by the payload: it is its own now
        pass


# ------------------------------------------------------------------ in and out


def _parent_in(root: int, end: _End) -> tuple[int, bytes]:
    """The directory that holds a path of the sandbox's, and the name there."""
    parent, name = os.path.split(os.fsencode(end.place))
    with end.naming():
        if not name:
            raise OSError(errno.EISDIR, "")
        flags = os.O_PATH | os.O_DIRECTORY
        return mountapi.open_in_root(root, parent, flags), name


def _parent_of(end: _End) -> tuple[int, bytes]:
    """The same of the caller's own, whose links are the caller's too."""
    parent, name = os.path.split(os.fsencode(os.path.abspath(end.place)))
    with end.naming():
        if not name:
            raise OSError(errno.EISDIR, "")
        return os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), name


def _kernels_own(root: int, places: Iterable[str]) -> frozenset[int]:
    """Devices of procfs and sysfs in the sandbox. The caller's rights are not those of the payload,
    and a link of its could lead a copy to what only root may read there."""
    found = set()
    for place in places:
        try:
            fd = mountapi.open_in_root(root, os.fsencode(place), os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            continue
        found.add(os.fstat(fd).st_dev)
        os.close(fd)
    return frozenset(found - {os.fstat(root).st_dev})


def copy_out(root: int, src: str, dst: str, bounds: Bounds, kernels: Iterable[str]) -> Copied:
    """*src* in the sandbox with this *root* to *dst* of the caller's; nothing of what is mounted
    at *kernels*."""
    ends = _End("src", src), _End("dst", dst)
    source, name = _parent_in(root, ends[0])
    try:
        target, new = _parent_of(ends[1])
        try:
            avoid = _kernels_own(root, kernels)
            copy = _Copy(*ends, bounds, _Rights(), links=False, avoid=avoid)
            _replace(copy, source, name, target, new)
            return copy.done()
        finally:
            os.close(target)
    finally:
        os.close(source)


def copy_in(root: int, src: str, dst: str, ids: tuple[int, int] | None) -> Copied:
    """*src* of the caller's to *dst* in the sandbox, made with *ids* where they are given."""

    ends = _End("src", src), _End("dst", dst)

    def work() -> Copied:
        rights = _Rights(ids)
        with rights.own():
            source, name = _parent_of(ends[0])
        try:
            target, new = _parent_in(root, ends[1])
            try:
                copy = _Copy(*ends, Bounds(), rights, links=True)
                _replace(copy, source, name, target, new)
                return copy.done()
            finally:
                os.close(target)
        finally:
            os.close(source)

    return work() if ids is None else _in_thread(work)
