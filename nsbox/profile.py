# SPDX-License-Identifier: Apache-2.0
"""The hardening profiles, as data. What a profile names and nsbox does not do yet is MISSING."""

from __future__ import annotations

from dataclasses import dataclass

from nsbox.names import NAMESPACES, SecureBit

MIB = 1 << 20

#: Docker's default set, less NET_RAW, MKNOD, AUDIT_WRITE and SYS_CHROOT.
STANDARD_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "NET_BIND_SERVICE", "SETFCAP",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What a sandbox gets when its spec does not say otherwise.

    Attributes:
        namespaces: the new ones.
        uid: of the payload, inside; gid is the same number.
        capabilities: kept in every set; None: all that the set-up has.
        securebits: set and locked before the payload runs.
        no_new_privs: prctl(2) PR_SET_NO_NEW_PRIVS.
        proc: "pids" (only processes, one's own), "full", or "none".
        rlimits: (name, soft, hard); never above the caller's hard limits.
        memory, pids, cpu: default cgroup limits, None for none; they degrade where no cgroup is.
        lock_userns: no user namespaces inside.
        oom_score_adj: of the payload.
        sockets, absent, foreign: see ``seccomp.Rules``; with sockets None, there is no filter.
        scopes: where it shares them with the host, no abstract sockets and no signals but its own.
        missing: measures that this version does not take.
    """

    namespaces: tuple[str, ...]
    uid: int
    capabilities: tuple[str, ...] | None
    securebits: int
    no_new_privs: bool
    proc: str
    rlimits: tuple[tuple[str, int, int], ...]
    memory: int | None
    pids: int | None
    cpu: float | None
    lock_userns: bool
    oom_score_adj: int
    sockets: tuple[str, ...] | None
    absent: tuple[str, ...]
    foreign: str
    scopes: bool
    missing: tuple[tuple[str, str], ...]


_ALL = tuple(name for name in NAMESPACES if name != "time")
_NO_CORE = ("core", 1, 1)  # 0 would still run a core_pattern pipe handler; 1 stops both

#: AF_VSOCK and AF_ALG are in no namespace, and most protocols of netlink(7) are for who has a
#: capability that these profiles do not give.
_SOCKETS = ("UNIX", "INET", "INET6", "NETLINK_ROUTE")
#: Its operations make sockets too, and no filter sees them.
_IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")
_OTHER_CALLS = ("syscalls", "all but those for sockets and io_uring are allowed in this version")

_STRICT_BITS = (
    SecureBit.NOROOT
    | SecureBit.NOROOT_LOCKED
    | SecureBit.NO_SETUID_FIXUP
    | SecureBit.NO_SETUID_FIXUP_LOCKED
    | SecureBit.NO_CAP_AMBIENT_RAISE
    | SecureBit.NO_CAP_AMBIENT_RAISE_LOCKED
)

PROFILES = {
    "strict": Profile(
        namespaces=_ALL,
        uid=1000,
        capabilities=(),
        securebits=int(_STRICT_BITS),
        no_new_privs=True,
        proc="pids",
        rlimits=(
            _NO_CORE,
            ("nofile", 1024, 4096),
            ("fsize", 256 * MIB, 256 * MIB),
            ("stack", 8 * MIB, 8 * MIB),
            ("memlock", 64 << 10, 64 << 10),
            ("msgqueue", 0, 0),
            ("sigpending", 1024, 1024),
            ("nice", 0, 0),
            ("rtprio", 0, 0),
        ),
        memory=512 * MIB,
        pids=128,
        cpu=1.0,
        lock_userns=True,
        oom_score_adj=800,
        sockets=_SOCKETS,
        absent=_IO_URING,
        foreign="kill",
        scopes=True,
        missing=(
            _OTHER_CALLS,
            ("landlock", "no rules for files and ports in this version"),
        ),
    ),
    "standard": Profile(
        namespaces=_ALL,
        uid=0,
        capabilities=STANDARD_CAPABILITIES,
        securebits=0,
        no_new_privs=True,
        proc="full",
        rlimits=(_NO_CORE,),
        memory=None,
        pids=4096,
        cpu=None,
        lock_userns=False,
        oom_score_adj=300,
        sockets=_SOCKETS,
        absent=_IO_URING,
        foreign="filter",
        scopes=True,
        missing=(
            _OTHER_CALLS,
            ("proc-masks", "no masked or read-only paths in this version"),
        ),
    ),
    "none": Profile(
        namespaces=tuple(name for name in _ALL if name != "user"),
        uid=0,
        capabilities=None,
        securebits=0,
        no_new_privs=False,
        proc="full",
        rlimits=(),
        memory=None,
        pids=None,
        cpu=None,
        lock_userns=False,
        oom_score_adj=0,
        sockets=None,
        absent=(),
        foreign="",
        scopes=False,
        missing=(),
    ),
}
