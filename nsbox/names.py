# SPDX-License-Identifier: Apache-2.0
"""Kernel constants, once, in Python: so that floors 1 to 3 need no extension.

A contract test compares every one with the compiler's value.
"""

from __future__ import annotations

import enum


class Opcode(enum.IntEnum):
    """``enum nsb_opcode`` of csrc/nsb.h: what a child can be told to do."""

    SETNS = 1
    UNSHARE = 2
    CGROUP = 3
    BARRIER = 4
    SETGROUPS = 5
    SETGID = 6
    SETUID = 7
    PROPAGATION = 8
    OPEN_TREE = 9
    ROOT_TMPFS = 10
    ROOT_TREE = 11
    ROOT_HERE = 12
    ATTACH = 13
    MOUNT = 14
    MKDIR = 15
    FILE = 16
    SYMLINK = 17
    READONLY = 18
    PIVOT = 19
    CHROOT = 20
    PROCFS = 21
    SYSCTL = 22
    LO_UP = 23
    HOSTNAME = 24
    UMASK = 25
    CHDIR = 26
    RLIMIT = 27
    KEYRING = 28
    SETSID = 29
    BOUNDING = 30
    SECUREBITS = 31
    CAPS = 32
    AMBIENT = 33
    NO_NEW_PRIVS = 34
    DUMPABLE = 35
    PDEATHSIG = 36
    FD = 37
    CLOEXEC = 38
    INIT = 39
    SIGNALS = 40
    EXECING = 41
    EXEC = 42
    PAUSE = 43
    OPEN = 44
    PTY = 45
    ROOT_OVERLAY = 46
    SOCKET = 47
    LANDLOCK = 48
    SECCOMP = 49
    SELF = 50
    MKNOD = 51
    ROOM = 52


class OpFlag(enum.IntFlag):
    """``enum nsb_op_flag``."""

    IGNORE_ENOENT = 1
    RECURSIVE = 2
    CHRDEV = 4
    MAKE_TARGET = 8
    CHOWN = 16
    AS_IS = 32
    IF_POSSIBLE = 64
    OVER = 128


class PlanFlag(enum.IntFlag):
    """``enum nsb_plan_flag``."""

    DENY_SETGROUPS = 1
    INIT = 2
    FORK = 4
    SPARE_NET = 8
    LAUNCHER_NET = 16
    INNER_MAP = 32


class At(enum.IntEnum):
    """``enum nsb_at``: places of failure that are not ops."""

    NOWHERE = 0x7FFFFF00
    REQUEST = 0x7FFFFF01
    CLONE = 0x7FFFFF02
    ID_MAP = 0x7FFFFF03
    NET = 0x7FFFFF04


class Kind(enum.IntEnum):
    """``enum nsb_kind``: records on a spawn's channel."""

    SPAWNED = 1
    STARTED = 2
    BARRIER = 3
    EXECING = 4
    FAILED = 5
    EXITED = 6
    ENDED = 7
    ROOM = 8


class Clone(enum.IntFlag):
    """Namespace flags of clone(2), setns(2) and unshare(2)."""

    NEWTIME = 0x00000080
    NEWNS = 0x00020000
    NEWCGROUP = 0x02000000
    NEWUTS = 0x04000000
    NEWIPC = 0x08000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000


#: Name (as in lsns and /proc/PID/ns), clone flag. The order is the one in which to join:
#: what owns a namespace is a user namespace, so that comes first.
NAMESPACES: dict[str, Clone] = {
    "user": Clone.NEWUSER,
    "cgroup": Clone.NEWCGROUP,
    "ipc": Clone.NEWIPC,
    "uts": Clone.NEWUTS,
    "net": Clone.NEWNET,
    "pid": Clone.NEWPID,
    "mnt": Clone.NEWNS,
    "time": Clone.NEWTIME,
}


class NsGet(enum.IntEnum):
    """``NS_GET_*``, the questions of ioctl_ns(2)."""

    USERNS = 0xB701
    PARENT = 0xB702
    NSTYPE = 0xB703
    OWNER_UID = 0xB704


class MountAttr(enum.IntFlag):
    """``MOUNT_ATTR_*`` of mount_setattr(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    IDMAP = 0x100000


class Propagation(enum.IntFlag):
    """``MS_*`` of mount(2) that say how mounts propagate."""

    REC = 0x4000
    PRIVATE = 0x40000
    SLAVE = 0x80000


class SecureBit(enum.IntFlag):
    """``SECBIT_*`` of capabilities(7)."""

    NOROOT = 0x1
    NOROOT_LOCKED = 0x2
    NO_SETUID_FIXUP = 0x4
    NO_SETUID_FIXUP_LOCKED = 0x8
    KEEP_CAPS_LOCKED = 0x20
    NO_CAP_AMBIENT_RAISE = 0x40
    NO_CAP_AMBIENT_RAISE_LOCKED = 0x80


class Scope(enum.IntFlag):
    """``LANDLOCK_SCOPE_*``: what a Landlock domain cannot reach outside of it. Linux 6.12."""

    ABSTRACT_UNIX_SOCKET = 1
    SIGNAL = 2


class FilterFlag(enum.IntFlag):
    """``SECCOMP_FILTER_FLAG_*`` of seccomp(2)."""

    SPEC_ALLOW = 4


#: capabilities(7), in the kernel's numbering.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip

#: Names of getrlimit(2) and their numbers on every architecture that nsbox knows.
RLIMITS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}

RLIM_INFINITY = (1 << 64) - 1


def capability_mask(names: tuple[str, ...]) -> int:
    """The bit mask of capability names, which must be known."""
    return sum(1 << CAPABILITIES.index(name) for name in names)
