# SPDX-License-Identifier: Apache-2.0
"""What exists before and after a test: everything a sandbox could leave behind.

    baseline = Inventory.take()
    ...                                  # start and stop sandboxes
    assert_clean(baseline)               # polls, then raises with kind, identity and holder

Only what is *proved* not ours is ignored, because other programs share the machine. In order:

    process     ours: marked (NSBOXMARK), a descendant of this process, a descendant of ours, or in
                a namespace that no process of the baseline held.
                not ours: a descendant of a process of the baseline that is not ours; a launcher
                whose control socket ends in such a process.
    zombie      ours: its parent is ours. An orphan's zombie is left to init.
    namespace   not ours: every holder is a process that is not ours.
    named       cgroups, links and files carry their owner's pid and start time (nsbox-PID-START-N):
                not ours if a process that is not ours was ever seen by that name. Others: not
                ours if all that hold them (an flock, a descriptor, as members) are not ours.

The launcher, its control socket and its templates are normal: one launcher for each owner and view.
A replaced one is no leak as long as the old one is gone; descriptors without a name (sockets,
pipes, namespaces) and registry locks are therefore compared by kind and number.

NSBOX_LEAKS_IGNORE is a comma list of ``kind:pattern`` (fnmatch) for a machine where somebody else
makes, say, links without a name of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import functools
import gc
import os
import pwd
import re
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

KINDS: Final = (
    "process", "child", "zombie", "launcher", "fd", "thread", "mount", "cgroup", "link", "nft",
    "namespace", "file", "shm", "mqueue", "memfd", "sysvipc", "signals", "umask", "cwd",
    "own-namespace", "own-cgroup", "credentials", "rlimits", "sysctl",
)  # fmt: skip
MARK: Final = "NSBOXMARK"
POLL_S: Final = 0.02

# Without pid_for_children: a namespace that no process is in yet goes with its only holder.
_NS_LINKS: Final = ("mnt", "pid", "net", "user", "ipc", "uts", "cgroup", "time")
_NS_ID: Final = re.compile(r"(?:mnt|pid|net|user|ipc|uts|cgroup|time):\[\d+\]")
_ANONYMOUS: Final = re.compile(r"^([a-z_]+):\[\d+\]$")
_OWNER_IN_NAME: Final = re.compile(r"nsbox-(\d+)-(\d+)-")
_ENTRY: Final = re.compile(r"nsbox-(\d+)-(\d+)-\d+-lock$")
# nsbox-PID-START-N, and what tempfile makes of "nsbox-"; tools put a word there (nsbox-vm-…).
_TEMPORARY: Final = re.compile(r"nsbox-(\d+(-.*)?|[a-z0-9_]{8})$")
#: The library's own threads, one of each: normal, whenever they start.
_KEPT: Final = ("nsbox-watch", "nsbox-later")
_PF_KTHREAD: Final = 0x00200000
_SYSCTLS: Final = (
    "kernel/hostname", "kernel/domainname", "kernel/core_pattern", "net/ipv4/ip_forward",
)  # fmt: skip


# -- what is recorded -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that exists. *ident* is compared; the same thing has the same one later."""

    kind: str
    ident: str
    detail: str = field(default="", compare=False)
    holders: tuple[tuple[int, str], ...] = field(default=(), compare=False)
    """(pid, how) of each process that keeps it alive; pid 0 is the mount table."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A thing that was not there at the baseline and is not proved to be somebody else's."""

    kind: str
    identity: str
    holder: str = ""

    def __str__(self) -> str:
        held = f"\n{'':17}held by {self.holder}" if self.holder else ""
        return f"  {self.kind:<14} {self.identity}{held}"


@dataclass(slots=True)
class Proc:
    """One process as /proc showed it; fields that could not be read are empty."""

    pid: int
    ppid: int
    start: int
    comm: str
    state: str
    threads: int
    cmd: str = ""
    exe: str = ""
    marked: bool = False
    uid: int | None = None
    """Only read where the namespaces are not readable."""
    nested: bool = False
    """In a pid namespace below ours (known even where its links are unreadable)."""
    ns: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    """Namespace id -> how, through descriptors and threads."""
    sockets: frozenset[int] = frozenset()
    files: tuple[str, ...] = ()
    """Paths below /dev/shm it has open."""

    @property
    def key(self) -> tuple[int, int]:
        """The start time tells a process from a later one with the same pid."""
        return self.pid, self.start

    @property
    def ours_by_name(self) -> bool:
        """Runs the helper binary. A process that hides its exe is known by its comm."""
        return self.exe.startswith("/memfd:nsbox-init") or (
            not self.exe and self.comm.startswith("nsbox-")
        )

    @property
    def is_launcher(self) -> bool:
        return self.ours_by_name and self.comm == "nsbox-launcher"

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.cmd or self.comm})"


@dataclass(slots=True)
class Inventory:
    """Everything of interest that exists at one moment."""

    deep: bool
    pid: int
    procs: dict[int, Proc]
    items: list[Item]
    peers: dict[int, int]
    """unix socket inode -> inode of its other end"""
    unseen: dict[str, str]
    """kind -> why it could not be looked at; a blind spot is told, never silent."""

    @classmethod
    def take(cls, deep: bool = True) -> Inventory:
        """Record the state of the machine. *deep* adds the descriptors and threads of others."""
        unseen: dict[str, str] = {}
        procs = _processes(deep=deep)
        items = [
            *_fds(), *_threads(), *_mounts(), *_cgroups(), *_links(), *_nft(unseen),
            *_files(), *_shm(procs), *_mqueues(unseen), *_memfds(), *_sysvipc(), *_state(),
        ]  # fmt: skip
        items += _namespaces(procs)
        diag = any(p.is_launcher for p in procs.values())
        return cls(deep, os.getpid(), procs, items, _unix_peers() if diag else {}, unseen)

    def minus(self, other: Inventory) -> list[Leak]:
        """Return what is here, was not in *other*, and is not proved to be somebody else's."""
        if self.deep != other.deep:
            raise ValueError("a deep inventory and a shallow one cannot be compared")
        return _Diff(self, other).leaks()

    def launchers(self) -> list[Proc]:
        """Launchers of ours that are alive."""
        who = _Owners(self, self)
        return [p for p in self.procs.values()
                if p.is_launcher and p.state != "Z" and who.of(p.pid) == _OURS]  # fmt: skip


def assert_clean(
    baseline: Inventory,
    timeout_s: float = 2.0,
    on_dirty: Callable[[], object] | None = None,
) -> Inventory:
    """Wait until nothing is left that was not in *baseline*; return that clean inventory.

    Kernel teardown is asynchronous (a network namespace takes milliseconds, an emulated machine
    half a second), hence the polling. *on_dirty* is called while a look is not clean: it may drop
    caches. Raises AssertionError with one entry for each leak.
    """
    end = time.monotonic() + timeout_s
    now = Inventory.take(baseline.deep)
    leaks = now.minus(baseline)
    if leaks:
        gc.collect()  # handles in reference cycles are not leaks; too slow to do every time
        if on_dirty is not None:
            on_dirty()
    while leaks and time.monotonic() < end:
        time.sleep(POLL_S)
        if on_dirty is not None:
            on_dirty()  # what a thread was still at may have filled them again
        now = Inventory.take(baseline.deep)
        leaks = now.minus(baseline)
    if leaks:
        what = "1 leak" if len(leaks) == 1 else f"{len(leaks)} leaks"
        raise AssertionError("\n".join([f"{what} after {timeout_s:g} s:", *map(str, leaks)]))
    return now


# -- reading ----------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    """Whole file, or nothing when it is gone or not ours to read. Half the cost of open()."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _text(path: str) -> str:
    return _read(path).decode(errors="replace")


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _listdir(path: str | int) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


# -- processes and namespaces -----------------------------------------------------------------


def _processes(*, deep: bool) -> dict[int, Proc]:
    mark = os.environ.get(MARK, "").encode()
    nesting = _nesting("self")
    found = (_process(int(name), mark, nesting, deep=deep) for name in _listdir("/proc")
             if name.isdigit())  # fmt: skip
    return {p.pid: p for p in found if p is not None}


def _process(pid: int, mark: bytes, nesting: int, *, deep: bool) -> Proc | None:
    stat = _text(f"/proc/{pid}/stat")
    if not stat:
        return None
    cut = stat.rindex(")")
    rest = stat[cut + 2 :].split()
    if int(rest[6]) & _PF_KTHREAD:
        return None  # holds no namespace of ours, and is nobody's child
    p = Proc(pid, int(rest[1]), int(rest[19]), stat[stat.index("(") + 1 : cut], rest[0],
             int(rest[17]))  # fmt: skip
    if p.state in "ZX":
        return p
    cmd = _read(f"/proc/{pid}/cmdline")
    p.cmd = cmd.replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    p.exe = _readlink(f"/proc/{pid}/exe")
    p.marked = bool(mark) and (mark in cmd or _marked(pid, mark))
    p.ns = _ns_links(f"/proc/{pid}/ns")
    if not p.ns:
        _read_status(p, nesting)
    elif deep:
        _read_descriptors(p)
        if p.threads > 1:
            _read_threads(p)
    return p


def _marked(pid: int, mark: bytes) -> bool:
    """A run inside a run appends to the mark, so the outer one finds its own as a prefix."""
    return f"{MARK}=".encode() + mark in _read(f"/proc/{pid}/environ")


def _ns_links(directory: str) -> dict[str, str]:
    """Empty where they are unreadable. Half of the cost of an inventory, hence the dir_fd."""
    links: dict[str, str] = {}
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return links
    try:
        for name in _NS_LINKS:
            links[name] = os.readlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass  # ended while we looked
    except OSError:
        links.clear()
    finally:
        os.close(fd)
    return links


def _nesting(pid: int | str, status: str = "") -> int:
    found = re.search(r"^NSpid:(.*)$", status or _text(f"/proc/{pid}/status"), re.MULTILINE)
    return len(found[1].split()) if found else 1


def _read_status(p: Proc, nesting: int) -> None:
    """The little that everybody may see of a process that is not dumpable."""
    status = _text(f"/proc/{p.pid}/status")
    p.nested = _nesting(p.pid, status) > nesting
    if uid := re.search(r"^Uid:\s*(\d+)", status, re.MULTILINE):
        p.uid = int(uid[1])


def _read_descriptors(p: Proc) -> None:
    directory = f"/proc/{p.pid}/fd"
    sockets, files = [], []
    for fd in _listdir(directory):
        link = _readlink(f"{directory}/{fd}")
        if link.startswith("socket:["):
            sockets.append(int(link[8:-1]))
        elif link.startswith("/dev/shm/"):
            files.append(link.removesuffix(" (deleted)"))
        elif link.endswith("]") and _NS_ID.fullmatch(link):
            p.held.setdefault(link, f"fd {fd}")
    p.sockets, p.files = frozenset(sockets), tuple(files)


def _read_threads(p: Proc) -> None:
    """Namespaces belong to threads: one that called unshare() differs from its leader."""
    for tid in _listdir(f"/proc/{p.pid}/task"):
        if int(tid) != p.pid:
            for link in _ns_links(f"/proc/{p.pid}/task/{tid}/ns").values():
                if link not in p.ns.values():
                    p.held.setdefault(link, f"thread {tid}")


def _namespaces(procs: dict[int, Proc]) -> list[Item]:
    holders: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for p in procs.values():
        for link in p.ns.values():
            holders[link].append((p.pid, ""))
        for link, how in p.held.items():
            holders[link].append((p.pid, how))
    for line in _text("/proc/self/mountinfo").splitlines():
        if " - nsfs " in line:
            root, point = line.split()[3:5]
            holders[root].append((0, f"mount at {point}"))
    return [Item("namespace", link, holders=tuple(who)) for link, who in holders.items()]


# -- this process -----------------------------------------------------------------------------


def _fds() -> Iterator[Item]:
    """Descriptors without a name are counted by kind: a new launcher has a new socket."""
    for fd in _listdir("/proc/self/fd"):
        link = _readlink(f"/proc/self/fd/{fd}")  # the listing's own descriptor is gone by now
        if link:
            ident = _ENTRY.sub("* locked by us", _ANONYMOUS.sub(r"\1:[*]", link))
            yield Item("fd", ident, f"fd {fd} -> {link}")


def _threads() -> Iterator[Item]:
    """Python's by identity. Others by name: faulthandler has a new one for every test."""
    names = {t.native_id: t.name for t in threading.enumerate()}
    for tid in _listdir("/proc/self/task"):
        stat = _text(f"/proc/self/task/{tid}/stat")
        if stat:
            cut = stat.rindex(")")
            name = names.get(int(tid), "")
            ident = f"{tid} started at {stat[cut:].split()[20]}"
            if not name or name in _KEPT:
                ident = name = name or stat[stat.index("(") + 1 : cut]
            yield Item("thread", ident, f"{name} (thread {tid})")


def _memfds() -> Iterator[Item]:
    for line in _text("/proc/self/maps").splitlines():
        if "/memfd:" in line:
            yield Item("memfd", line[line.index("/memfd:") :], line.split()[0])


def _state() -> Iterator[Item]:
    """What a library must never change under its caller. A change is a new value: reported."""
    for line in _text("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name in ("SigBlk", "SigIgn", "SigCgt"):
            yield Item("signals", f"{name} {{{_signals(int(value, 16))}}}")
        elif name == "Umask":
            yield Item("umask", value.strip())
        elif name in ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp") or name.startswith("Cap"):
            yield Item("credentials", f"{name} {' '.join(value.split())}")
    yield Item("credentials", f"dumpable {_libc().prctl(3, 0, 0, 0, 0)}")
    yield Item("credentials", f"oom_score_adj {_text('/proc/self/oom_score_adj').strip()}")
    for line in _text("/proc/self/limits").splitlines()[1:]:
        yield Item("rlimits", " ".join(line.split()))
    where = os.stat("/proc/self/cwd")
    yield Item("cwd", f"{os.readlink('/proc/self/cwd')} (inode {where.st_dev}:{where.st_ino})")
    for name, link in _ns_links("/proc/self/ns").items():
        yield Item("own-namespace", f"{name} {link}")
    for line in _text("/proc/self/cgroup").splitlines():
        yield Item("own-cgroup", line)
    for name in _SYSCTLS:
        yield Item("sysctl", f"{name} = {_text(f'/proc/sys/{name}').strip()}")


def _signals(mask: int) -> str:
    names = []
    for number in range(1, 65):
        if mask >> (number - 1) & 1:
            try:
                names.append(signal.Signals(number).name)
            except ValueError:
                names.append(f"SIG{number}")
    return " ".join(names)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


# -- mounts, cgroups, links, firewall ---------------------------------------------------------


def _mounts() -> Iterator[Item]:
    """Own mount table, and that of pid 1 when it is another one: propagation goes both ways."""
    tables = {"": _text("/proc/self/mountinfo"), "pid 1: ": _text("/proc/1/mountinfo")}
    if tables[""] == tables["pid 1: "]:  # its namespace link is often unreadable, even for root
        del tables["pid 1: "]
    for view, table in tables.items():
        for line in table.splitlines():
            left, _, right = line.partition(" - ")
            dev, root, point = left.split()[2:5]
            fstype = right.split()[0]
            yield Item("mount", f"{view}{point} ({fstype} {dev} {root})", detail=point)


def _cgroups() -> Iterator[Item]:
    """Every directory that is, or is below, nsb*, or is below our own cgroup, in any hierarchy."""
    own = dict(_own_cgroups())
    seen: set[int] = set()
    for line in _text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        fstype, _, options = right.split(" ", 2)
        if fstype in ("cgroup", "cgroup2"):
            here = own.get("" if fstype == "cgroup2" else _controllers(options), "/")
            with contextlib.suppress(OSError):
                device = os.stat(point).st_dev
                if device not in seen:
                    seen.add(device)
                    mine = point + here.removeprefix(root.rstrip("/")) if here != root else None
                    yield from _cgroup_walk(point, mine, inside=False)


def _own_cgroups() -> Iterator[tuple[str, str]]:
    for line in _text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        yield controllers, path


def _controllers(options: str) -> str:
    """The hierarchy's name as /proc/self/cgroup spells it, out of the superblock options."""
    last = options.split()[-1]
    skip = {"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"}
    return ",".join(o for o in last.split(",") if o not in skip and "release_agent" not in o)


def _cgroup_walk(directory: str, mine: str | None, *, inside: bool) -> Iterator[Item]:
    try:
        if os.stat(directory).st_nlink == 2:
            return  # kernfs counts subdirectories: no need to list 60 control files
        names = [e.name for e in os.scandir(directory) if e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        path = f"{directory}/{name}"
        within = inside or name.startswith("nsb") or directory == mine
        if within:
            yield Item("cgroup", path, detail=path)
        yield from _cgroup_walk(path, mine, inside=within)


def _links() -> Iterator[Item]:
    """Links of our own network namespace, and of the one that the mounted sysfs shows."""
    names = set()
    for body in _netlink_dump(socket.NETLINK_ROUTE, 18, struct.pack("=BxHiII", 0, 0, 0, 0, 0)):
        attributes = dict(_attributes(body[16:]))
        name = _cstring(attributes.get(3, b""))
        names.add(name)
        yield Item("link", f"{name} (index {struct.unpack_from('=i', body, 4)[0]})",
                   detail=_cstring(attributes.get(20, b"")))  # fmt: skip
    for name in _listdir("/sys/class/net"):
        if name not in names and os.path.islink(f"/sys/class/net/{name}"):
            alias = _text(f"/sys/class/net/{name}/ifalias").strip()
            yield Item("link", f"{name} (in the namespace of /sys)", detail=alias)


def _nft(unseen: dict[str, str]) -> Iterator[Item]:
    """Tables and chains of our network namespace."""
    try:
        for message, chain in ((1, False), (4, True)):
            for body in _netlink_dump(12, 10 << 8 | message, b"\0\0\0\0"):
                attributes = dict(_attributes(body[4:]))
                table = _cstring(attributes.get(1, b""))
                name = f" chain {_cstring(attributes.get(3, b''))}" if chain else ""
                yield Item("nft", f"family {body[0]} table {table}{name}", detail=table)
    except OSError as error:
        unseen["nft"] = f"nf_tables: {error.strerror}"


def _netlink_dump(protocol: int, kind: int, payload: bytes) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as s:
        s.settimeout(2)
        s.send(struct.pack("=IHHII", 16 + len(payload), kind, 0x301, 1, 0) + payload)
        while True:
            data = memoryview(s.recv(1 << 18))
            while len(data) >= 16:
                length, what = struct.unpack_from("=IH", data)
                if what == 3:  # NLMSG_DONE
                    return
                if what == 2:  # NLMSG_ERROR
                    code = -struct.unpack_from("=i", data, 16)[0]
                    raise OSError(code, os.strerror(code))
                yield bytes(data[16:length])
                data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def _cstring(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


def _unix_peers() -> dict[int, int]:
    """Both ends of every connected unix socket: whose launcher a launcher is."""
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, 4, 0, 0)
    peers = {}
    with contextlib.suppress(OSError):
        for body in _netlink_dump(4, 20, request):
            peer = dict(_attributes(body[16:])).get(2)
            if peer:
                peers[struct.unpack_from("=I", body, 4)[0]] = struct.unpack("=I", peer)[0]
    return peers


# -- files and ipc ----------------------------------------------------------------------------


def registry_dirs() -> list[str]:
    """Where nsbox keeps its registry: root's, the user's, and the last resort in /tmp."""
    user = os.environ.get("XDG_RUNTIME_DIR")
    places = ["/run/nsbox", f"{user}/nsbox" if user else "", f"/tmp/nsbox-{os.geteuid()}"]
    return [p for p in places if p]


def _files() -> Iterator[Item]:
    locks = _flocks()
    for top in registry_dirs():
        if os.path.isdir(top):
            yield Item("file", top, detail=top)
            for directory, names, files in os.walk(top):
                for name in (*names, *files):
                    yield _registry_file(f"{directory}/{name}", locks)
    for directory in sorted({"/tmp", tempfile.gettempdir()}):
        for name in _listdir(directory):
            if _TEMPORARY.match(name) and f"{directory}/{name}" not in registry_dirs():
                yield Item("file", f"{directory}/{name}", detail=f"{directory}/{name}")
    for name in _listdir("/run/netns"):
        yield Item("file", f"/run/netns/{name}", detail=f"/run/netns/{name}")


def _flocks() -> dict[int, list[int]]:
    """inode -> pids that hold an flock on it."""
    locks: dict[int, list[int]] = defaultdict(list)
    for line in _text("/proc/locks").splitlines():
        words = line.split()
        if words[1] == "FLOCK":
            locks[int(words[5].rpartition(":")[2])].append(int(words[4]))
    return locks


def _registry_file(path: str, locks: dict[int, list[int]]) -> Item:
    """A file that this process has locked is known by its place: a restart renames it."""
    try:
        pids = locks.get(os.lstat(path).st_ino, [])
    except OSError:
        pids = []
    name = f"{os.path.dirname(path)}/* locked by us" if os.getpid() in pids else path
    return Item("file", name, detail=path, holders=tuple((pid, "flock") for pid in pids))


def _shm(procs: dict[int, Proc]) -> Iterator[Item]:
    holders: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for p in procs.values():
        for path in p.files:
            holders[path].append((p.pid, "open"))
    for name in _listdir("/dev/shm"):
        path = f"/dev/shm/{name}"
        yield Item("shm", path, detail=path, holders=tuple(holders[path]))


def _mqueues(unseen: dict[str, str]) -> list[Item]:
    """Message queues of our ipc namespace, through a detached mount: most hosts mount none."""
    try:
        names = _detached_mqueue()
    except OSError as error:
        names = _listdir("/dev/mqueue")
        if not os.path.ismount("/dev/mqueue"):
            unseen["mqueue"] = f"/dev/mqueue is not mounted, fsopen: {error.strerror}"
    return [Item("mqueue", name) for name in names]


def _detached_mqueue() -> list[str]:
    """fsopen(2), fsconfig(2), fsmount(2): numbers 430 to 432 on every architecture but alpha."""
    fds = []
    try:
        fds.append(_syscall(430, b"mqueue", 1))
        _syscall(431, fds[0], 6, None, None, 0)
        fds.append(_syscall(432, fds[0], 1, 0))
        fds.append(os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fds[1]))  # fsmount's is O_PATH
        return os.listdir(fds[2])
    finally:
        for fd in fds:
            os.close(fd)


def _syscall(number: int, *args: int | bytes | None) -> int:
    result: int = _libc().syscall(number, *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _sysvipc() -> Iterator[Item]:
    for kind in ("shm", "sem", "msg"):
        head, *lines = _text(f"/proc/sysvipc/{kind}").splitlines() or [""]
        for line in lines:
            row = dict(zip(head.split(), line.split(), strict=False))
            creator = ((int(row["cpid"]), "made it"),) if "cpid" in row else ()
            ident = f"{kind} id {row.get(f'{kind}id', '?')} key {row.get('key', '?')}"
            yield Item("sysvipc", ident, detail=f"uid {row.get('uid', '?')}", holders=creator)


# -- whose is it ------------------------------------------------------------------------------

_OURS: Final = "ours"
_THEIRS: Final = "theirs"
_ABOVE: Final = "above"  # our ancestors and pid 1: orphans of ours may end there
_UNKNOWN: Final = "unknown"  # a new orphan, unmarked, in known namespaces

_strangers: set[tuple[int, int]] = set()
"""(pid, start time) of processes that were seen, and were not ours."""


class _Owners:
    """Decides for each process of *now* whose it is, with *base* as what was there before."""

    def __init__(self, now: Inventory, base: Inventory) -> None:
        self.now, self.base = now, base
        self.above = {0, 1, *self._ancestors(now.pid)}
        self.known = {
            link
            for p in now.procs.values()
            if (old := self.before(p)) is not None
            for link in _ids(old) & _ids(p)
        }
        self._verdicts: dict[int, str] = {now.pid: _OURS}
        self.above.discard(now.pid)
        self._socket_holders: dict[int, list[int]] = defaultdict(list)
        for p in now.procs.values():
            for inode in p.sockets:
                self._socket_holders[inode].append(p.pid)

    def _ancestors(self, pid: int) -> Iterator[int]:
        while (p := self.now.procs.get(pid)) is not None and p.ppid:
            pid = p.ppid
            yield pid

    def before(self, p: Proc) -> Proc | None:
        old = self.base.procs.get(p.pid)
        return old if old is not None and old.key == p.key else None

    def of(self, pid: int) -> str:
        """Whose a process is. Memoised; a cycle through sockets counts as unknown."""
        if pid not in self._verdicts:
            self._verdicts[pid] = _UNKNOWN
            self._verdicts[pid] = self._judge(pid)
        return self._verdicts[pid]

    def _judge(self, pid: int) -> str:
        p = self.now.procs.get(pid)
        if p is None or pid in self.above:
            return _ABOVE
        if p.marked:
            return _OURS
        parent = self.of(p.ppid)
        if parent in (_OURS, _THEIRS):
            return parent
        if p.state == "Z":
            return _UNKNOWN  # dead, and its parent's to reap: some inits look every 2 s
        if p.ours_by_name:
            return self._judge_launcher(p)
        if self.before(p) is not None:
            return _THEIRS
        if self.in_new_namespace(p) and self._could_be_ours(p):
            return _OURS
        return _UNKNOWN

    def in_new_namespace(self, p: Proc) -> bool:
        return p.nested if not p.ns else any(link not in self.known for link in p.ns.values())

    def _judge_launcher(self, p: Proc) -> str:
        owners = self.owners(p)
        if not owners:
            return _OURS if self._could_be_ours(p) else _THEIRS
        return _OURS if any(self.of(pid) == _OURS for pid in owners) else _THEIRS

    def owners(self, launcher: Proc) -> list[int]:
        """Processes at the other end of its sockets; none where they may not be read."""
        ends = (self.now.peers.get(inode, 0) for inode in launcher.sockets)
        return [pid for end in ends for pid in self._socket_holders.get(end, ())
                if pid != launcher.pid]  # fmt: skip

    def _could_be_ours(self, p: Proc) -> bool:
        """An ordinary user can only make processes of its own ids."""
        if p.uid is None or os.geteuid() == 0:
            return True
        return p.uid == os.geteuid() or any(p.uid in ids for ids in _subuids())

    def remember_strangers(self) -> None:
        """What a stranger has made can outlive it: its name still tells."""
        _strangers.update(p.key for p in self.now.procs.values() if self.of(p.pid) != _OURS)

    def theirs(self, pid: int) -> bool:
        """A process that exists and is not ours."""
        return pid in self.now.procs and self.of(pid) != _OURS

    def named_theirs(self, text: str) -> bool:
        """The name tells its owner, or it lies in the directory of another pytest run."""
        if found := _OWNER_IN_NAME.search(text):
            return (int(found[1]), int(found[2])) in _strangers
        if found := re.match(r"(.*/pytest-of-[^/]+/pytest-\d+)/", text):
            pid = _text(f"{found[1]}/.lock").strip()
            return pid.isdigit() and self.theirs(int(pid))
        return False


def _ids(p: Proc) -> set[str]:
    return {*p.ns.values(), *p.held}


@functools.cache
def _subuids() -> tuple[range, ...]:
    try:
        me = {pwd.getpwuid(os.getuid()).pw_name, str(os.getuid())}
    except KeyError:
        me = {str(os.getuid())}
    rows = (line.split(":") for line in _text("/etc/subuid").splitlines() if line.count(":") == 2)
    return tuple(range(int(a), int(a) + int(n)) for name, a, n in rows if name in me)


# -- the difference ---------------------------------------------------------------------------


class _Diff:
    """One comparison. Computes who is who once, then goes through the kinds."""

    def __init__(self, now: Inventory, base: Inventory) -> None:
        self.now, self.base = now, base
        self.who = _Owners(now, base)
        self.who.remember_strangers()
        self.superseded, self.tolerated = self._launchers()

    def leaks(self) -> list[Leak]:
        found = [*self._processes(), *self._namespaces(), *self._items()]
        ignore = [entry.partition(":") for entry in
                  os.environ.get("NSBOX_LEAKS_IGNORE", "").split(",") if entry]  # fmt: skip
        found = [leak for leak in found if not any(
            leak.kind == kind and fnmatch.fnmatch(leak.identity, pattern)
            for kind, _, pattern in ignore)]  # fmt: skip
        return sorted(found, key=lambda leak: KINDS.index(leak.kind))

    def _launchers(self) -> tuple[list[Proc], set[int]]:
        """(too many, allowed): for each owner that was there before and each view, one.

        The youngest is the current one. *View* is which namespaces differ from ours: a template
        with a user namespace has a launcher inside it.
        """
        groups: dict[tuple[int, frozenset[str]], list[Proc]] = defaultdict(list)
        for p in self.now.procs.values():
            if p.is_launcher and p.state != "Z" and self._ours(p.pid):
                groups[self._owner(p), _view(p, self.now)].append(p)
        before = Counter(_view(p, self.base) for p in self.base.launchers())
        superseded: list[Proc] = []
        tolerated: set[int] = set()
        for (owner, view), group in groups.items():
            root = self.now.procs.get(owner)
            if root is None or self.who.before(root) is None:
                continue  # the launcher of a new process is as much a leak as that process
            group.sort(key=lambda p: p.start)
            allowed = max(1, before[view] if owner == self.now.pid else 1)
            if not any(p.ns for p in group):
                allowed = max(allowed, 1 + self._other_entries())
            if not all(self.who.before(p) for p in group):
                superseded += group[:-allowed]
            tolerated |= {p.pid for p in group[-allowed:]}
        return superseded, tolerated

    def _other_entries(self) -> int:
        """Launchers of other processes, by their registry files: an ordinary user may not look
        into a launcher to see whose it is."""
        names = (_ENTRY.search(i.detail) for i in self.now.items if i.kind == "file")
        owners = [(int(name[1]), int(name[2])) for name in names if name]
        keys = {p.key for p in self.now.procs.values() if p.pid != self.now.pid}
        return sum(owner in keys for owner in owners)

    def _owner(self, launcher: Proc) -> int:
        """The process it serves; one launcher inside another's view serves the same owner."""
        owners = self.who.owners(launcher)
        if not owners or self.now.pid in owners:
            return self.now.pid
        first = self.now.procs[owners[0]]
        return first.ppid if first.is_launcher else first.pid

    def _processes(self) -> Iterator[Leak]:
        for p in self.superseded:
            yield Leak("launcher", f"{p} lives on beside a newer one")
        reported = {p.pid for p in self.superseded} | self.tolerated
        for p in self.now.procs.values():
            new = self.who.before(p) is None or (
                p.state == "Z" and self.base.procs[p.pid].state != "Z"
            )
            if new and p.pid not in reported and self.who.of(p.pid) == _OURS:
                yield Leak(self._process_kind(p), str(p), f"parent {self._name(p.ppid)}")

    def _process_kind(self, p: Proc) -> str:
        if p.state == "Z":
            return "zombie"
        if p.is_launcher:
            return "launcher"
        return "child" if p.ppid == self.now.pid else "process"

    def _namespaces(self) -> Iterator[Leak]:
        """New ones with a holder of ours.

        What only this process's descriptors and its launcher hold may have been made again after
        a restart: there the number for each type counts.
        """
        pinned = {i.ident for i in self.base.items if i.kind == "namespace" and _pinned(i)}
        allowed = Counter(
            _type(i) for i in self.base.items if i.kind == "namespace" and self._cached(i)
        )
        cached = [i for i in self.now.items if i.kind == "namespace" and self._cached(i)]
        allowed.subtract(Counter(_type(i) for i in cached if i.ident in self.who.known))
        # A launcher keeps its own ones beside the spare ones that it makes when it is idle.
        spares = sum(1 for p in self.now.launchers())
        for kind in ("net", "ipc"):
            allowed[kind] = max(allowed[kind], spares - self._spares_before(kind))
        for item in self.now.items:
            if item.kind != "namespace" or item.ident in self.who.known:
                continue
            if item.ident in pinned and _pinned(item):
                continue
            ours = [(pid, how) for pid, how in item.holders if not pid or self._ours(pid)]
            if not ours or any(pid in self.tolerated and not how for pid, how in ours):
                continue
            if self._cached(item) and allowed[_type(item)] > 0:
                allowed[_type(item)] -= 1
                continue
            yield Leak("namespace", item.ident, self._holders(ours))

    def _spares_before(self, kind: str) -> int:
        """Namespaces of the baseline that still are nobody's but our launchers'."""
        now = {i.ident for i in self.now.items}
        ours = {p.pid for p in self.now.launchers()}
        return sum(1 for i in self.base.items if i.kind == "namespace" and i.ident in now
                   and _type(i) == kind and all(pid in ours for pid, _ in i.holders))  # fmt: skip

    def _ours(self, pid: int) -> bool:
        return self.who.of(pid) == _OURS

    def _cached(self, item: Item) -> bool:
        """Held by nobody but descriptors of this process, or by launchers."""
        procs = {**self.base.procs, **self.now.procs}
        return all(
            (pid == self.now.pid and how.startswith("fd ")) or (pid and procs[pid].is_launcher)
            for pid, how in item.holders
        )

    def _items(self) -> Iterator[Leak]:
        """Everything else: a multiset difference, then the proofs."""
        before = Counter(self.base.items)
        for name in _KEPT:
            before[Item("thread", name)] = 1
        old = {(i.kind, i.ident, i.detail) for i in self.base.items}
        left = Counter(i for i in self.now.items if i.kind != "namespace") - before
        # Of several with one ident, those that were not there by detail are the ones to name.
        order = sorted(self.now.items, key=lambda i: (i.kind, i.ident, i.detail) in old)
        for item in order:
            if left[item] <= 0 or item.kind == "namespace":
                continue
            left[item] -= 1
            if not self._item_is_theirs(item):
                yield Leak(item.kind, *self._describe(item))

    def _item_is_theirs(self, item: Item) -> bool:
        holders = [pid for pid, _ in item.holders]
        if item.kind == "cgroup":
            holders = _members(item.detail)
        if holders and all(pid and self.who.theirs(pid) for pid in holders):
            return True
        named = item.kind in ("mount", "cgroup", "link", "nft", "file")
        return named and self.who.named_theirs(item.detail)

    def _describe(self, item: Item) -> tuple[str, str]:
        if item.kind in ("fd", "thread", "memfd"):
            return f"{item.detail} [{item.ident}]", f"pid {self.now.pid}, this process"
        if item.kind == "cgroup":
            return item.ident, self._holders([(pid, "member") for pid in _members(item.detail)])
        if item.kind == "mount":
            return item.ident, self._holders(_users_of(item.detail, self.now.procs))
        if item.kind in ("signals", "umask", "cwd", "own-namespace", "own-cgroup", "credentials",
                         "rlimits", "sysctl"):  # fmt: skip
            return f"is now {item.ident}", ""
        return item.ident, self._holders(item.holders)

    def _holders(self, holders: Iterable[tuple[int, str]]) -> str:
        texts = [f"{self._name(pid)} {how}".strip() if pid else how for pid, how in holders]
        more = [f"and {len(texts) - 8} more"] if len(texts) > 8 else []
        return ", ".join(texts[:8] + more)

    def _name(self, pid: int) -> str:
        return str(self.now.procs.get(pid, f"pid {pid}"))


def _view(p: Proc, inventory: Inventory) -> frozenset[str]:
    own = inventory.procs[inventory.pid].ns
    if not p.ns:
        return frozenset({"pid"} if p.nested else ())
    return frozenset(name for name in own if p.ns.get(name) != own[name])


def _type(item: Item) -> str:
    return item.ident.partition(":")[0]


def _pinned(item: Item) -> bool:
    return any(pid == 0 for pid, _ in item.holders)


def _members(cgroup: str) -> list[int]:
    """Its processes. One of a pid namespace that we do not see is listed as 0."""
    return [int(pid) for pid in _text(f"{cgroup}/cgroup.procs").split() if pid != "0"]


def _users_of(point: str, procs: dict[int, Proc]) -> list[tuple[int, str]]:
    """Who keeps a mount busy: by its working directory, its root, or an open file."""
    found = []
    for pid in procs:
        for how in ("cwd", "root", *(f"fd/{fd}" for fd in _listdir(f"/proc/{pid}/fd"))):
            link = _readlink(f"/proc/{pid}/{how}")
            if link == point or link.startswith(f"{point}/"):
                found.append((pid, how.replace("/", " ")))
                break
    return found


def main() -> int:
    """Time a few inventories, and say what this user cannot see."""
    times = []
    inventory = Inventory.take()
    for _ in range(20):
        before = time.perf_counter()
        inventory = Inventory.take()
        times.append((time.perf_counter() - before) * 1e3)
    kinds = Counter(item.kind for item in inventory.items)
    print(f"take: median {sorted(times)[10]:.1f} ms, max {max(times):.1f} ms")
    print(f"{len(inventory.procs)} processes, {dict(kinds)}")
    print(f"not seen: {inventory.unseen or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
