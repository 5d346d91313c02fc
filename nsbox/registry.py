# SPDX-License-Identifier: Apache-2.0
"""The registry: which owners live, where they make things, and which ids they lend.

One file per launcher, locked by it as long as it lives: a file that can be locked is stale.
Its lines are the directories in which things with its prefix may be. ``gc()`` sweeps them.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import itertools
import os
import stat
import struct
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from nsbox import cgroupfs
from nsbox.errors import NetworkError, Unavailable
from nsbox.lent import LentBytes

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_ID = 0x70000000  # above every range that distributions give to users or containers
_SLOTS = 4096
_SLOT_IDS = 65536
#: A place that is registered like a directory: the links of the owner's network namespace.
LINKS = "links"


def directory() -> str:
    """/run/nsbox for root, else $XDG_RUNTIME_DIR/nsbox, else a private one in /tmp; made 0700.

    Raises:
        Unavailable: it exists and is somebody else's, or open to others.
    """
    return _directory(os.geteuid(), os.environ.get("XDG_RUNTIME_DIR", ""))


@functools.lru_cache(maxsize=4)
def _directory(euid: int, runtime: str) -> str:
    if euid == 0 and os.access("/run", os.W_OK | os.X_OK):  # not so for root of a user namespace
        path = "/run/nsbox"
    elif runtime and os.access(runtime, os.W_OK | os.X_OK):
        path = f"{runtime}/nsbox"
    else:
        path = f"/tmp/nsbox-{euid}"
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # whatever the caller's umask
    except FileExistsError:
        pass
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != euid or status.st_mode & 0o077:
        raise Unavailable("registry", f"{path} is not a directory of uid {euid} with mode 0700",
                          hint=f"rm -r {path}")  # fmt: skip
    return path


def start_time(pid: int) -> int:
    """Clock ticks since boot at which a process started: with its pid, its identity. proc(5)."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


_launchers = itertools.count(1)


class Entry:
    """One launcher's file. Its lock is held by the launcher, by the descriptor it is given."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.prefix = f"nsbox-{pid}-{start_time(pid)}-{next(_launchers)}-"
        self.path = f"{directory()}/{self.prefix}lock"
        self._known: set[str] = set()
        self._names = itertools.count(1)
        self._lock = threading.Lock()
        self.fd = os.open(directory(), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        os.fchmod(self.fd, 0o600)  # whatever the caller's umask
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def publish(self) -> None:
        """Give the file its name, once a launcher holds the lock and knows that it is to go.

        Whoever dies before leaves nothing, and no gc() ever sees it unlocked.
        """
        where = os.open(directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # with a descriptor os.link() is linkat(2), which can follow the magic link
            name = os.path.basename(self.path)
            os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=where, follow_symlinks=True)
        finally:
            os.close(where)

    def name(self) -> str:
        """A name that no other owner, and no other thing of this one, has."""
        return f"{self.prefix}{next(self._names)}"

    def register(
        self, directories: tuple[str, ...], tell: Callable[[tuple[str, ...]], None]
    ) -> None:
        """Write down those that are new, and *tell* the launcher, before anything is made there.

        Raises:
            BrokenPipeError: the launcher has died.
        """
        with self._lock:
            if self.fd < 0:
                raise BrokenPipeError(errno.EPIPE, "the launcher was buried")
            new = tuple(place for place in directories if place not in self._known)
            if new:
                os.write(self.fd, "".join(f"{place}\n" for place in new).encode())
                tell(new)
                self._known.update(new)

    def close(self) -> None:
        """Let go of the lock, which the launcher holds too; idempotent."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def drop(self) -> None:
        """As ``close``, in a forked child: the lock may be that of a thread it does not have."""
        self._lock = threading.Lock()
        self.close()


def take(path: str) -> int | None:
    """A descriptor that holds the lock of a file whose owner has died; None while it lives."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def gc() -> list[str]:
    """Remove what owners left that died: together with their launcher, and pins in any case.

    Returns what was removed.

    Safe at any time: things of live owners are never touched. Run at first use as well.
    """
    removed: list[str] = []
    for name in sorted(os.listdir(directory())):
        if not name.endswith("-lock"):
            continue
        path = f"{directory()}/{name}"
        fd = take(path)
        if fd is None:
            continue
        try:
            removed += _sweep(os.read(fd, 1 << 20).decode(), name.removesuffix("lock"))
            _drop_notes(name.removesuffix("lock"))
            os.unlink(path)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.EBUSY):
                raise
        finally:
            os.close(fd)
    left = os.listdir(directory())
    if any(name.startswith("pin-") for name in left):
        from nsbox import pins

        removed += pins.gc()
    if any(name.startswith("net-") for name in left):
        from nsbox import shared

        removed += shared.gc()
    _drop_stray_notes()
    return removed


def _is_note(name: str) -> bool:
    """Whether it is a file of an owner's, beside its lock; a launcher removes those, too."""
    return name.startswith("nsbox-") and not name.endswith("-lock")


def _drop_stray_notes() -> None:
    """Of a launcher that was killed between the removal of its lock file and of its notes."""
    for name in os.listdir(directory()):
        prefix = "-".join(name.split("-")[:4]) + "-"
        if _is_note(name) and not os.path.exists(f"{directory()}/{prefix}lock"):
            _drop_notes(prefix)


def _sweep(places: str, prefix: str) -> list[str]:
    removed = []
    for place in places.splitlines():
        if place == LINKS:
            removed += _delete_links(prefix)
            continue
        try:
            names = os.listdir(place)
        except OSError:
            continue
        for name in names:
            if name.startswith(prefix):
                cgroupfs.remove_tree(f"{place}/{name}", time.monotonic() + 2)
                removed.append(f"{place}/{name}")
    return removed


def _delete_links(prefix: str) -> list[str]:
    """Those of the caller's network namespace; csrc/init/links.c does the same."""
    from nsbox import rtnl

    route = rtnl.Rtnl.here()
    deleted = []
    try:
        for link in rtnl.by_alias(route.links(), prefix):
            try:
                route.do(rtnl.link_delete(link.ifindex))
                deleted.append(f"link {link.name}")
            except NetworkError as e:
                if e.errno != errno.ENODEV:  # the other end has taken it along
                    raise
    finally:
        route.close()
    return deleted


def _drop_notes(prefix: str) -> None:
    """What an owner wrote for others, see sandboxes.py and hostsfile.py, goes before its lock."""
    for name in os.listdir(directory()):
        if name.startswith(prefix) and _is_note(name):
            try:
                os.unlink(f"{directory()}/{name}")
            except FileNotFoundError:
                pass


class LiveOwner(NamedTuple):
    """An owner whose launcher runs. *prefix* is that of the names of its things."""

    prefix: str
    pid: int
    launcher: int


def owners() -> list[LiveOwner]:
    """The owners of this user that run now, each launcher named by the kernel: F_GETLK.

    Nobody can pose as one who cannot write in the registry directory.
    """
    found = []
    for name in sorted(os.listdir(directory())):
        if not (name.startswith("nsbox-") and name.endswith("-lock")):
            continue
        try:
            fd = os.open(f"{directory()}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, request))
        finally:
            os.close(fd)
        if answer[0] != fcntl.F_UNLCK and answer[4] > 0:
            prefix = name.removesuffix("lock")
            found.append(LiveOwner(prefix, int(prefix.split("-")[1]), answer[4]))
    return found


class IdSlots:
    """Slots of 65536 ids for user namespaces made by root; each is lent to one sandbox.

    A slot is a byte of /run/nsbox/ids lent to this process: no two owners lend the same one, and
    the kernel takes it back from one that dies.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._bytes: LentBytes | None = None
        self._next = os.getpid()

    def take(self) -> int:
        """A slot's number. Raises Unavailable when all 4096 are lent."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._bytes is None:
                path = f"{directory()}/ids"
                self._bytes = LentBytes(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            for _ in range(_SLOTS):
                self._next = (self._next + 1) % _SLOTS
                if self._bytes.take(self._next):
                    return self._next
        raise Unavailable("user namespace", f"all {_SLOTS} slots of ids are in use")

    def give(self, slot: int) -> None:
        """Nothing runs with its ids any more. This process keeps it, for its next sandbox."""
        with self._lock:
            self._free.append(slot)

    def forget(self) -> None:
        """In a forked child: the parent's slots are not ours, nor to be kept when it dies."""
        if self._bytes is not None:
            self._bytes.close()
        self.__init__()  # type: ignore[misc]

    @staticmethod
    def first_id(slot: int) -> int:
        return _FIRST_ID + slot * _SLOT_IDS


id_slots = IdSlots()
os.register_at_fork(after_in_child=id_slots.forget)
