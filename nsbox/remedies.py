# SPDX-License-Identifier: Apache-2.0
"""Why the kernel refused, and the command that mends it: pure, from facts that were looked up."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import NamedTuple

SIGSYS = 31
APPARMOR_FILE = "/etc/apparmor.d/nsbox"
DELEGATE = "run as root, or: systemd-run --user --scope -p Delegate=yes COMMAND"
_DOCKER_SECCOMP = "docker run --security-opt seccomp=unconfined (or a profile that allows "


@dataclass(frozen=True)
class Facts:
    """What decides about a refusal. Sysctls are their text, None where there is no such file.

    Attributes:
        seccomp: mode of the filter that the caller is under, 2 for a filter; proc_pid_status(5).
        container: what runs the caller: ``"docker"``, ``"podman"``, or ``""``.
        covered: mounts that hide parts of /proc.
        max_namespaces: kind -> ``user.max_KIND_namespaces``.
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


class Found(NamedTuple):
    """What a check came to."""

    ok: bool
    call: str = ""
    err: int = 0
    detail: str = ""
    signal: int = 0


class Remedy(NamedTuple):
    """A cause in words, and a command or setting; both may be empty."""

    cause: str = ""
    fix: str = ""


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
    kind = name.partition(" ")[0]
    limits = facts.max_namespaces
    if limits.get(kind) != "0" and limits.get("user") == "0":
        kind = "user"
    if kind not in limits:
        kind = "user"
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
    if found.call == "mount proc" and facts.covered:
        return _covered(facts)
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


def _covered(facts: Facts) -> Remedy:
    hidden = ", ".join(facts.covered[:3]) + (", …" if len(facts.covered) > 3 else "")
    tool = facts.container or "docker"
    option = "--security-opt unmask=ALL" if tool == "podman" else \
        "--security-opt systempaths=unconfined"  # fmt: skip
    return Remedy(f"mounts hide parts of /proc ({hidden}), and the kernel then lets no user "
                  "namespace mount another",
                  f"{tool} run {option}, or unmount them; or proc=\"none\"")  # fmt: skip


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
