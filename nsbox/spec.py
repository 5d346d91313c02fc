# SPDX-License-Identifier: Apache-2.0
"""What a user asks for, as frozen values that were checked: no I/O happens here."""

from __future__ import annotations

import os
import re
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nsbox import units
from nsbox.checks import (
    Path,
    choice,
    container_path,
    elements,
    file_data,
    flag,
    host_path,
    mode_bits,
    text,
)
from nsbox.errors import SpecError
from nsbox.hashing import hashed_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsbox.netspec import Dns, Publish

MIB = 1 << 20
#: Directories below an overlay: as many as there are descriptors to pass, less what others need.
MAX_LAYERS = 20
LAYER_KINDS = ("dir", "tar", "oci")


_IO = {"rbps": 4096, "wbps": 4096, "riops": 1, "wiops": 1}  # key -> the least that is useful
_DEVICE = re.compile(r"[1-9][0-9]{0,3}:[0-9]{1,7}", re.ASCII)


def _io(value: Any) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    """``Limits.io`` as pairs of device and pairs, which it may be already."""
    try:
        wanted = dict(value)
        several = {device: dict(limits) for device, limits in wanted.items()}
    except (TypeError, ValueError):
        raise SpecError("io", 'must be a mapping such as {"/data": {"wbps": "1MiB"}}') from None
    result = []
    for device, limits in several.items():
        name = text(device, "io")
        where = f"io[{name!r}]"
        if not _DEVICE.fullmatch(name):
            name = host_path(name, where)
            if any(c.isspace() for c in name):
                raise SpecError(where, "contains white space: name the disk by MAJOR:MINOR")
        if not limits or not set(limits) <= set(_IO):
            raise SpecError(where, f"takes {', '.join(_IO)}")
        pairs = []
        for key, least in _IO.items():
            if key in limits:
                check = units.size_bytes if key.endswith("bps") else units.count
                pairs.append((key, check(limits[key], f"{where}[{key!r}]", least=least)))
        result.append((name, tuple(pairs)))
    return tuple(result)


@hashed_once
@dataclass(frozen=True)
class Limits:
    """What a sandbox may use. Sizes: int bytes or ``"256MiB"``.

    Each is enforced for the whole tree of processes, or the call raises ``Unavailable``.

    Attributes:
        memory: RAM with page cache, tmpfs and kernel memory (memory.max).
        memory_high: beyond this it is slowed down and reclaimed from (memory.high; not on v1).
        swap: swap on top of *memory*, 0 when memory is limited (memory.swap.max).
        cpu: cores, as ``0.5`` or ``"500m"`` (cpu.max, of 100 ms).
        cpu_weight: share of busy cores against its neighbours, 1 to 10000; 100 is everybody's
            (cpu.weight; cpu.shares on v1).
        cpuset: the CPUs that it may run on, as ``"0-2,5"`` (cpuset.cpus).
        pids: processes and threads (pids.max).
        io: for each disk, what it may read and write in a second: ``{"/data": {"rbps": "10MiB",
            "wbps": "1MiB", "riops": 100, "wiops": 50}}``. A disk is ``"MAJOR:MINOR"``, its
            device file, or anything on a file system that is on it (io.max;
            blkio.throttle.* on v1).
        net_priority: of its packets, for queueing disciplines (``SO_PRIORITY``, socket(7)),
            whatever it asks for itself: a number, or a class of tc(8) as ``"1:20"``; root only.
        wall: seconds of real time; then ``Reason.TIMEOUT``.
        cpu_time: seconds of CPU of the whole tree; then ``Reason.CPU_TIME``.
        output: bytes of each captured stream; then ``Reason.OUTPUT_LIMIT``. None: as much as
            comes.
        disk: bytes of the writable tmpfs at /tmp, which has the changes of an overlay, too;
            /dev/shm may have as many. What ``mounts=`` shows is not counted. With a root that is
            a writable directory of the caller's it is ``Unavailable``.
        inodes: files and directories in it.
        nofile: open descriptors of each process (RLIMIT_NOFILE).
        oom_group: an OOM kill ends the whole sandbox, not one of its processes
            (memory.oom.group).
    """

    memory: units.Size | None = None
    memory_high: units.Size | None = None
    swap: units.Size | None = None
    cpu: units.Cores | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    pids: int | None = None
    io: Any = None
    wall: float | None = None
    cpu_time: float | None = None
    output: units.Size | None = None
    disk: units.Size | None = None
    inodes: int | None = None
    nofile: int | None = None
    net_priority: int | str | None = None
    oom_group: bool = True

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name, least in (("memory", MIB), ("memory_high", MIB), ("swap", 0),
                            ("output", 1), ("disk", 4096)):  # fmt: skip
            if (value := getattr(self, name)) is not None:
                put(self, name, units.size_bytes(value, name, least=least))
        if self.swap is not None and self.memory is None:
            raise SpecError("swap", "needs memory=, which it comes on top of")
        if self.cpu is not None:
            put(self, "cpu", units.cores(self.cpu, "cpu"))
        if self.cpuset is not None:
            put(self, "cpuset", units.cpus(self.cpuset, "cpuset"))
        if self.io is not None:
            put(self, "io", _io(self.io))
        if isinstance(self.net_priority, str):
            put(self, "net_priority", units.class_id(self.net_priority, "net_priority"))
        for name, floor, most in (("pids", 1, 1 << 22), ("inodes", 16, 1 << 40),
                                  ("nofile", 3, 1 << 30), ("cpu_weight", 1, 10000),
                                  ("net_priority", 0, (1 << 32) - 1)):  # fmt: skip
            if (number := getattr(self, name)) is not None:
                units.count(number, name, least=floor, most=most)
        for name in ("wall", "cpu_time"):
            if (duration := getattr(self, name)) is not None:
                put(self, name, units.seconds(duration, name))
        flag(self.oom_group, "oom_group")

    @property
    def output_bytes(self) -> int | None:
        """``output`` as it was checked: bytes, or None for no limit."""
        return self.output if isinstance(self.output, int) else None


@dataclass(frozen=True)
class Mount:
    """Something to be seen at *dst* in the sandbox; made by the class methods."""

    kind: str
    dst: str
    src: str = ""
    ro: bool = True
    data: bytes = field(default=b"", repr=False)
    mode: int = 0o755
    size: int | None = None
    inodes: int | None = None
    noexec: bool = False
    propagation: str = "private"
    idmap: bool = False

    @classmethod
    def bind(
        cls,
        src: Path,
        dst: Path,
        ro: bool = True,
        *,
        propagation: str = "private",
        idmap: bool = False,
    ) -> Mount:
        """A directory or file of the host's, with its submounts; read-only unless *ro* is False.

        Never with setuid or device files in force.

        Args:
            propagation: ``"slave"``: what the host mounts below *src* later appears inside too,
                with the host's options; so it cannot be read-only. mount_namespaces(7).
            idmap: what the caller owns in *src* is the sandbox's user's inside, and the other
                way round; submounts are left out. As root: needs a file system that can be
                id-mapped (ext4, xfs, btrfs; tmpfs since Linux 6.3).

        Kernel: open_tree(2), mount_setattr(2); MOUNT_ATTR_IDMAP, Linux 5.12.
        """
        choice(propagation, "propagation", ("private", "slave"))
        flag(ro, "ro")
        flag(idmap, "idmap")
        if propagation == "slave" and ro:
            raise SpecError("propagation", "what the host mounts later would not be read-only: "
                            "slave needs ro=False")  # fmt: skip
        if propagation == "slave" and idmap:
            raise SpecError("propagation", "what the host mounts later would not be id-mapped")
        return cls(
            "bind",
            container_path(dst, "dst"),
            host_path(src, "src"),
            ro,
            propagation=propagation,
            idmap=idmap,
        )

    @classmethod
    def tmpfs(
        cls,
        dst: Path,
        size: units.Size = "64MiB",
        inodes: int = 16384,
        *,
        mode: int = 0o1777,
        noexec: bool = False,
    ) -> Mount:
        """Empty memory-backed files: at most *size* bytes and *inodes* files. tmpfs(5)."""
        return cls(
            "tmpfs",
            container_path(dst, "dst"),
            mode=mode_bits(mode),
            size=units.size_bytes(size, "size", least=4096),
            inodes=units.count(inodes, "inodes", least=1),
            noexec=flag(noexec, "noexec"),
        )

    @classmethod
    def proc(cls, dst: Path = "/proc") -> Mount:
        """The sandbox's own processes, in full: with sysctls, cpuinfo and meminfo. proc(5)."""
        return cls("proc", container_path(dst, "dst"))

    @classmethod
    def mqueue(cls, dst: Path = "/dev/mqueue") -> Mount:
        """POSIX message queues of the IPC namespace. mq_overview(7)."""
        return cls("mqueue", container_path(dst, "dst"))

    @classmethod
    def devpts(cls, dst: Path = "/dev/pts") -> Mount:
        """Pseudo terminals of the sandbox's own; at /dev/pts there is a /dev/ptmx too. pts(4)."""
        return cls("devpts", container_path(dst, "dst"))

    @classmethod
    def sysfs(cls, dst: Path = "/sys") -> Mount:
        """Devices as the sandbox's network namespace has them, read-only. sysfs(5).

        Needs a network namespace of the sandbox's own.
        """
        return cls("sysfs", container_path(dst, "dst"))

    @classmethod
    def file(cls, dst: Path, data: str | bytes, mode: int = 0o644) -> Mount:
        """A file with this content, owned by the sandbox's set-up user; read-only.

        It is mounted over what is there, which stays as it is.
        """
        raw, _ = file_data(data, "data")
        return cls("file", container_path(dst, "dst"), data=raw, mode=mode_bits(mode))

    @classmethod
    def symlink(cls, dst: Path, target: Path) -> Mount:
        """A symbolic link at *dst* that says *target*."""
        if not text(target, "target"):
            raise SpecError("target", "is empty")
        return cls("symlink", container_path(dst, "dst"), text(target, "target"))


@hashed_once
@dataclass(frozen=True)
class Rootfs:
    """What the sandbox sees as ``/``; made by the class methods.

    *image* says that it was unpacked, *kept* that it has the changes of an overlay.
    """

    kind: str = "host"
    path: str = ""
    ro: bool = True
    method: str = "pivot_root"
    layers: tuple[Rootfs, ...] = ()
    size: int | None = None
    inodes: int | None = None
    image: bool = False
    ref: str = ""
    kept: bool = False

    @classmethod
    def host(cls) -> Rootfs:
        """The host's system directories (/usr, /lib, some of /etc), read-only; the default.

        The interpreter that ``args`` names is added when it lies elsewhere.
        """
        return cls()

    @classmethod
    def inherit(cls) -> Rootfs:
        """The caller's own root, writable as it is for the caller; only mounts are private."""
        return cls("inherit", ro=False)

    @classmethod
    def dir(cls, path: Path, ro: bool = True, method: str = "pivot_root") -> Rootfs:
        """A directory with a root file system in it.

        With ``ro=True`` the mount points /proc, /dev and /tmp must exist in it. *method*
        ``"chroot"`` is there to compare with: it leaves the old root mounted below.
        """
        if method not in ("pivot_root", "chroot"):
            raise SpecError("method", f'{method!r}: use "pivot_root" or "chroot"')
        return cls("dir", host_path(path, "root"), flag(ro, "ro"), method)

    @classmethod
    def tar(cls, path: Path) -> Rootfs:
        """A root file system in a tar archive, plain or compressed; read-only.

        It is unpacked once, into a cache by its digest; put it below ``Rootfs.overlay`` to
        write. Owners are the archive's for root, below 65536; set-id bits are dropped. Refused
        with SpecError, which names the entry: absolute names, ``..``, links out of it, devices
        and pipes (below ``dev/`` they are left out), names of more than 200 levels, more than
        16 GiB, or 1,000,000 entries and directories that none is of.
        """
        return cls("tar", host_path(path, "root"))

    @classmethod
    def oci(cls, path: Path, ref: str = "") -> Rootfs:
        """An image in an OCI image layout, a directory with index.json; read-only.

        Every blob's digest is verified; the layers are unpacked once, as ``tar`` is. Where the
        caller gives none, the image's Env, WorkingDir, User are taken, and for ``args=[]`` its
        Entrypoint and Cmd.

        Args:
            ref: which one, where the layout has several: org.opencontainers.image.ref.name, or
                the digest of its manifest, ``"sha256:…"``.
        """
        return cls("oci", host_path(path, "root"), ref=text(ref, "ref"))

    @classmethod
    def overlay(
        cls,
        lower: Path | Rootfs | Sequence[Path | Rootfs],
        upper: Path | None = None,
        size: units.Size | None = None,
        inodes: int | None = None,
    ) -> Rootfs:
        """Directories that are not touched, and a writable layer over them that takes changes.

        Args:
            lower: a directory, a ``Rootfs.dir``, ``.tar`` or ``.oci``, or several, the topmost
                first.
            upper: an existing directory of the caller's that keeps the changes, in ``upper``
                and ``work`` below it; keep it closed to others (mode 0700). None: a tmpfs, gone
                with the sandbox.
            size: bytes of that tmpfs, 64 MiB unless ``Limits.disk`` says; /tmp is in it too.
            inodes: files and directories in it, 16384 unless ``Limits.inodes`` says.

        What changed is ``Completed.changes`` and ``Container.diff()``. Kernel: overlayfs, in
        user namespaces since Linux 5.11.
        """
        several = (lower,) if isinstance(lower, (str, bytes, os.PathLike, Rootfs)) else lower
        layers = tuple(_layer(one) for one in elements(several, "lower"))
        if not layers or len(layers) > MAX_LAYERS:
            raise SpecError("lower", f"an overlay has 1 to {MAX_LAYERS} directories below it")
        if upper is not None and (size is not None or inodes is not None):
            raise SpecError("size", "is for a tmpfs: nsbox cannot bound a directory of yours")
        return cls(
            "overlay",
            "" if upper is None else host_path(upper, "upper"),
            ro=False,
            layers=layers,
            size=None if size is None else units.size_bytes(size, "size", least=4096),
            inodes=None if inodes is None else units.count(inodes, "inodes", least=16),
        )


def _layer(value: Any) -> Rootfs:
    root = value if isinstance(value, Rootfs) else Rootfs.dir(host_path(value, "lower"))
    if root.kind not in LAYER_KINDS:
        raise SpecError("lower", f"a root of kind {root.kind!r} is not one directory")
    return root


class NetLabel(str):
    """What a network is called in the plan of a sandbox that has it; and the network itself.

    Attributes:
        network: a weak reference, for specs are kept in caches.
        joined: it is there already, and entered; else the sandbox gets one that is made for it.
        guarded: rules of egress are in it.
    """

    network: weakref.ref[Any] | None
    joined: bool
    guarded: bool

    def __new__(
        cls, text: str, network: Any = None, *, joined: bool = False, guarded: bool = False
    ) -> NetLabel:
        self = super().__new__(cls, text)
        self.network = None if network is None else weakref.ref(network)
        self.joined, self.guarded = joined, guarded
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NetLabel):
            return False
        mine, others = (self.network, self.guarded), (other.network, other.guarded)
        return mine == others and str.__eq__(self, str(other))

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __reduce__(self) -> tuple[Any, ...]:  # for who only reads it, in another process
        return NetLabel, (str(self),), {"joined": self.joined}


class NetFile(NamedTuple):
    """A file of the host's, *src*, that is mounted at *dst*, which leads to *at* in the root.

    What is not *required* is left out where there is nothing to mount on, and none can be made.
    """

    src: str
    dst: str
    at: str
    required: bool


@hashed_once
@dataclass(frozen=True)
class Spec:
    """One sandbox: every keyword of ``run()`` that says how it is made, checked.

    *image_cwd* is the WorkingDir of an image, where the caller says no *cwd*.
    """

    args: tuple[str, ...]
    root: Rootfs = Rootfs()
    cwd: str | None = None
    image_cwd: str = ""
    env: tuple[tuple[str, str], ...] | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] | None = None
    hostname: str | None = None
    mounts: tuple[Mount, ...] = ()
    files: tuple[tuple[str, bytes, int], ...] = ()
    net: str = "none"
    egress: tuple[str, ...] | None = None
    publish: tuple[Publish, ...] = ()
    address: str | None = None
    dns: Dns | None = None
    net_files: tuple[NetFile, ...] = ()
    limits: Limits = Limits()
    namespaces: tuple[str, ...] | None = None
    init: bool = True
    profile: str = "strict"
    proc: str | None = None
    rlimits: tuple[tuple[str, int, int], ...] = ()
    pass_fds: tuple[int, ...] = ()
    umask: int = 0o022
    pty: tuple[int, int] | None = None
    devices: tuple[tuple[str, str, int], ...] = ()
    best_effort: bool = False
    time_offsets: tuple[tuple[str, int], ...] = ()

    @property
    def attached(self) -> bool:
        """Its network is made by the owner, while set-up waits: *net* says what it is."""
        return isinstance(self.net, NetLabel) and not self.net.joined
