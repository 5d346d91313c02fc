# SPDX-License-Identifier: Apache-2.0
"""Why the kernel refused, and the command that mends it: pure, from facts that were looked up."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import NamedTuple

from nsbox.idmap import add_ranges

SIGSYS = 31
APPARMOR_FILE = "/etc/apparmor.d/nsbox"
#: Mount points that the kernel itself keeps empty: what is on them hides nothing.
_EMPTY = ("/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd", "/proc/openprom")
_DOCKER_SECCOMP = "docker run --security-opt seccomp=unconfined (or a profile that allows "


@dataclass(frozen=True)
class Facts:
    """What decides about a refusal. Sysctls are their text, None where there is no such file.

    Attributes:
        seccomp: mode of the filter that the caller is under, 2 for a filter; proc_pid_status(5).
        container: what runs the caller: ``"docker"``, ``"podman"``, or ``""``.
        covered: mounts that hide parts of /proc.
        max_namespaces: kind -> ``user.max_KIND_namespaces``.
        ranges: "uid" and "gid" -> the ids that the caller has in /etc/subuid and /etc/subgid.
        initial_userns: its ids are the host's.
        chrooted: / is no mount point, as after chroot(2).
    """

    euid: int = 0
    user: str = "root"
    seccomp: int = 0
    no_new_privs: bool = False
    container: str = ""
    chrooted: bool = False
    initial_userns: bool = True
    covered: tuple[str, ...] = ()
    userns_clone: str | None = None
    apparmor_userns: str | None = None
    memfd_noexec: str | None = None
    max_namespaces: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, str] = field(default_factory=dict)


class Found(NamedTuple):
    """What a check came to.

    *step* is what a sandbox's set-up was at, *fix* is of who found it and knows better.
    """

    ok: bool
    call: str = ""
    err: int = 0
    detail: str = ""
    signal: int = 0
    step: str = ""
    fix: str = ""


class Remedy(NamedTuple):
    """A cause in words, and a command or setting; both may be empty."""

    cause: str = ""
    fix: str = ""

    def hint(self) -> str:
        """Both in one line."""
        return f"{self.cause}. Fix: {self.fix}" if self.cause and self.fix else self.cause


NO_NEW_PRIVS = Remedy(
    "no_new_privs is set: newuidmap has no privilege",
    "start without it: NoNewPrivileges=no of a systemd service, no "
    "--security-opt no-new-privileges of docker",
)


def reason(found: Found, cause: str = "") -> str:
    """One line: the call, its errno, and the cause."""
    code = errno.errorcode.get(found.err, str(found.err))
    answer = f"{code} ({os.strerror(found.err)})" if found.err else found.detail
    text = ": ".join(part for part in (found.call, answer) if part)
    return f"{text}: {cause}" if cause else text


def apparmor_profile(interpreter: str) -> str:
    """A profile that lets the programs of this interpreter make user namespaces."""
    return f"""\
# {APPARMOR_FILE}: user namespaces for nsbox, where
# kernel.apparmor_restrict_unprivileged_userns=1 refuses them.
# It holds for every program that this interpreter runs; all else is as without it.
abi <abi/4.0>,
include <tunables/global>

profile nsbox "{interpreter}" flags=(unconfined) {{
  userns,
  include if exists <local/nsbox>
}}
"""


def remedy(name: str, found: Found, facts: Facts) -> Remedy:
    """The most likely cause, by what was refused and how."""
    if found.signal == SIGSYS:
        return _seccomp(found, facts)
    if found.call.startswith("/dev/"):
        return _device(found, facts)
    if found.call == "nf_tables" and found.err == errno.ENOENT:
        return Remedy("this kernel does not have all of nf_tables that networks need",
                      "modprobe -a nft_chain_nat nft_masq nft_ct nft_fib_inet")  # fmt: skip
    by_errno = {
        errno.ENOSPC: _no_space,
        errno.EAGAIN: _again,
        errno.EPERM: _refused,
        errno.EACCES: _refused,
        errno.ENOSYS: _no_call,
        errno.ENODEV: _no_driver,
        errno.EOPNOTSUPP: _no_driver,
        errno.EPROTONOSUPPORT: _no_driver,
        errno.EINVAL: _no_kind,
    }
    rule = by_errno.get(found.err)
    return rule(name, found, facts) if rule is not None else Remedy()


def _seccomp(found: Found, facts: Facts) -> Remedy:
    call = found.call.split()[0] if found.call not in ("", "killed") else "clone, unshare and mount"
    if facts.container:
        fix = f"{_DOCKER_SECCOMP}{call})".replace("docker", facts.container)
    else:
        fix = f"whatever started this must allow {call}: of a systemd service, " \
              "RestrictNamespaces=no and SystemCallFilter=@mount"  # fmt: skip
    return Remedy("a seccomp filter is in force here", fix)


def _no_space(name: str, found: Found, facts: Facts) -> Remedy:
    kind, limits = name.partition(" ")[0], facts.max_namespaces
    of_kind = limits.get(kind) == "0"
    if not of_kind and "0" in limits.values():
        none = [one for one, value in limits.items() if value == "0"]
        kind = none[0] if kind not in limits or "user" in none else kind
    kind = kind if kind in limits else "user"
    limit, sysctl = limits.get(kind, "?"), f"user.max_{kind}_namespaces"
    if limit == "0":
        return Remedy(f"{sysctl}=0", f"sysctl -w {sysctl}=15000")
    return Remedy(f"{sysctl}={limit} was reached, or namespaces are nested more than 32 deep",
                  f"sysctl -w {sysctl}=N with a larger N")  # fmt: skip


def _again(name: str, found: Found, facts: Facts) -> Remedy:
    return Remedy("a limit of processes was reached",
                  "raise RLIMIT_NPROC (ulimit -u) or pids.max of the cgroup around")  # fmt: skip


def _refused(name: str, found: Found, facts: Facts) -> Remedy:
    if "memfd" in found.call and facts.memfd_noexec == "2":
        return Remedy("vm.memfd_noexec=2", "sysctl -w vm.memfd_noexec=1")
    if mounts_proc(found) and hiding(facts):
        return _covered(facts)
    if found.call in ("newuidmap", "newgidmap"):
        return _not_mapped(found, facts)
    if name == "id range" and not facts.initial_userns:
        return Remedy("this user namespace has fewer ids to give",
                      "start it with a larger id map, or run as its only user")  # fmt: skip
    if facts.euid and facts.userns_clone == "0":
        return Remedy("kernel.unprivileged_userns_clone=0",
                      "sysctl -w kernel.unprivileged_userns_clone=1, or run as root")  # fmt: skip
    if facts.euid and facts.apparmor_userns == "1":
        return Remedy("kernel.apparmor_restrict_unprivileged_userns=1",
                      f"nsbox doctor --print-apparmor-profile | sudo tee {APPARMOR_FILE} && "
                      f"sudo apparmor_parser -r {APPARMOR_FILE}, or run as root")  # fmt: skip
    if facts.chrooted and found.call == "unshare":
        return Remedy("inside a chroot(2) there are no user namespaces",
                      "enter the root with pivot_root(2), or start outside of it")  # fmt: skip
    if facts.seccomp == 2:
        return _seccomp(found, facts)
    return Remedy()


def mounts_proc(found: Found) -> bool:
    """Whether a procfs was refused: to a check, or to a step."""
    of_step = found.call == "fsmount" and found.step.startswith(("mount proc ", "procfs"))
    return found.call == "mount proc" or of_step


def hiding(facts: Facts) -> tuple[str, ...]:
    """The mounts over parts of /proc that the kernel minds."""
    return tuple(path for path in facts.covered if path not in _EMPTY)


def _covered(facts: Facts) -> Remedy:
    mounts = hiding(facts)
    cause = (f"mounts hide parts of /proc ({', '.join(mounts[:3])}{', …' * (len(mounts) > 3)}), "
             "and the kernel then lets no user namespace mount another")  # fmt: skip
    outside = "docker run --security-opt systempaths=unconfined"
    if facts.container == "podman":
        outside = "podman run --security-opt unmask=ALL"
    umount = f"as root: umount {' '.join(mounts)}"
    if facts.container:
        return Remedy(cause, f"{outside}, or procMount: Unmasked of Kubernetes; or {umount}")
    return Remedy(cause, f"{umount}; or in a container, what started that: {outside}")


def _not_mapped(found: Found, facts: Facts) -> Remedy:
    if facts.no_new_privs:
        return NO_NEW_PRIVS
    kind = found.call[3:6]
    given = facts.ranges.get(kind)
    if not given:
        return Remedy(f"{facts.user} has no range of ids in /etc/sub{kind}", add_ranges(facts.user))
    return Remedy(f"it maps only the own id and what /etc/sub{kind} gives {facts.user}: {given}",
                  f"take ids of that range, or usermod --add-sub{kind}s FIRST-LAST "
                  f"{facts.user}; and {found.call} must be set-user-ID root")  # fmt: skip


def _device(found: Found, facts: Facts) -> Remedy:
    tool = facts.container or "docker"
    passed = f"{tool} run --device {found.call}"
    if found.err == errno.EACCES:
        group = f"usermod -aG kvm {facts.user}, and log in anew; or " * (found.call == "/dev/kvm")
        return Remedy("it is not open to this user", f"{group}as root: chmod 666 {found.call}")
    if found.err == errno.EPERM:
        return Remedy("the device cgroup around this does not allow it",
                      f"{passed}, or DeviceAllow={found.call} of a systemd service")  # fmt: skip
    module = {"/dev/kvm": "modprobe kvm_intel or kvm_amd", "/dev/net/tun": "modprobe tun"}
    return Remedy("", f"{module.get(found.call, 'load its driver')}; of a container: {passed}")


def _no_call(name: str, found: Found, facts: Facts) -> Remedy:
    if facts.seccomp == 2:
        return _seccomp(found, facts)
    return Remedy("this kernel does not have it", "a newer kernel: nsbox needs Linux 6.1")


def _no_driver(name: str, found: Found, facts: Facts) -> Remedy:
    module = next((m for m in ("overlay", "veth", "nf_tables") if m in f"{found.call} {name}"), "")
    if name == "landlock":
        return Remedy("Landlock is not among the active security modules",
                      "boot with lsm=landlock,… (see /sys/kernel/security/lsm)")  # fmt: skip
    fix = f"modprobe {module}" if module else ""
    return Remedy("this kernel does not have it", fix)


def _no_kind(name: str, found: Found, facts: Facts) -> Remedy:
    if found.call == "unshare":
        return Remedy("this kernel was built without that kind of namespace", "another kernel")
    if name == "seccomp":
        return Remedy("this kernel was built without CONFIG_SECCOMP_FILTER", "another kernel")
    return Remedy()
