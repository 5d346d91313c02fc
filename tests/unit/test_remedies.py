# SPDX-License-Identifier: Apache-2.0
"""The cause of a refusal, and its fix, by facts that were made up."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from nsbox.remedies import Facts, Found, apparmor_profile, reason, remedy

USER = Facts(euid=1000, user="ann", max_namespaces={"user": "1000", "net": "1000"})
UNSHARE = Found(False, "unshare", errno.EPERM)


@pytest.mark.parametrize(
    ("name", "found", "facts", "cause", "fix"),
    [
        pytest.param(
            "user namespace", UNSHARE, replace(USER, userns_clone="0"),
            "kernel.unprivileged_userns_clone=0", "sysctl -w kernel.unprivileged_userns_clone=1",
            id="Debian's sysctl",
        ),
        pytest.param(
            "user namespace", Found(False, "write /proc/self/uid_map", errno.EPERM),
            replace(USER, apparmor_userns="1"),
            "kernel.apparmor_restrict_unprivileged_userns=1", "--print-apparmor-profile",
            id="AppArmor's sysctl, which lets unshare pass",
        ),
        pytest.param(
            "mnt namespace", UNSHARE, replace(USER, seccomp=2, container="docker"),
            "seccomp filter", "docker run --security-opt seccomp=unconfined",
            id="Docker's filter",
        ),
        pytest.param(
            "mnt namespace", UNSHARE, replace(USER, seccomp=2, container="podman"),
            "seccomp filter", "podman run --security-opt seccomp=unconfined",
            id="podman's filter",
        ),
        pytest.param(
            "mnt namespace", UNSHARE, replace(USER, seccomp=2),
            "seccomp filter", "RestrictNamespaces=no", id="the filter of a service",
        ),
        pytest.param(
            "clone3", Found(False, "clone3", errno.ENOSYS), replace(USER, seccomp=2),
            "seccomp filter", "clone3", id="a filter that plays old kernel",
        ),
        pytest.param(
            "clone3", Found(False, "clone3", errno.ENOSYS), USER,
            "does not have it", "Linux 6.1", id="an old kernel",
        ),
        pytest.param(
            "nft", Found(False, "nf_tables", errno.ENOENT), USER,
            "all of nf_tables", "modprobe -a nft_chain_nat", id="a part of nf_tables",
        ),
        pytest.param(
            "nft", Found(False, "nf_tables", errno.EPROTONOSUPPORT), USER,
            "does not have it", "modprobe nf_tables", id="no nf_tables",
        ),
        pytest.param(
            "seccomp", Found(False, "killed", signal=31), USER,
            "seccomp filter", "SystemCallFilter", id="a filter that kills",
        ),
        pytest.param(
            "user namespace", Found(False, "unshare", errno.ENOSPC),
            replace(USER, max_namespaces={"user": "0"}),
            "user.max_user_namespaces=0", "sysctl -w user.max_user_namespaces=", id="max is 0",
        ),
        pytest.param(
            "net namespace", Found(False, "unshare", errno.ENOSPC),
            replace(USER, max_namespaces={"user": "9", "net": "0"}),
            "user.max_net_namespaces=0", "user.max_net_namespaces", id="of another kind",
        ),
        pytest.param(
            "net namespace", Found(False, "unshare", errno.ENOSPC),
            replace(USER, max_namespaces={"user": "0", "net": "9"}),
            "user.max_user_namespaces=0", "user.max_user_namespaces",
            id="of the one that comes first",
        ),
        pytest.param(
            "user namespace", Found(False, "unshare", errno.ENOSPC), USER,
            "=1000 was reached", "larger N", id="max is reached",
        ),
        pytest.param(
            "proc mount", Found(False, "mount proc", errno.EPERM),
            replace(USER, covered=("/proc/kcore", "/proc/keys")),
            "/proc/kcore, /proc/keys", "systempaths=unconfined", id="a masked proc",
        ),
        pytest.param(
            "proc mount", Found(False, "mount proc", errno.EPERM),
            replace(USER, covered=("/proc/kcore",), container="podman"),
            "/proc/kcore", "unmask=ALL", id="podman's masked proc",
        ),
        pytest.param(
            "run strict", Found(False, "fsmount", errno.EPERM, step="mount proc on /proc (nosuid)"),
            replace(USER, covered=("/proc/kcore",)),
            "/proc/kcore", "umount /proc/kcore", id="a masked proc, met by a sandbox",
        ),
        pytest.param(
            "run strict", Found(False, "fsmount", errno.EPERM, step="procfs "),
            replace(USER, covered=("/proc/kcore",), container="docker"),
            "/proc/kcore", "docker run --security-opt systempaths=unconfined",
            id="a masked proc, met by one that shows none",
        ),
        pytest.param(
            "run standard", Found(False, "newuidmap", errno.EPERM),
            replace(USER, no_new_privs=True),
            "no_new_privs", "NoNewPrivileges=no", id="newuidmap without its privilege",
        ),
        pytest.param(
            "", Found(False, "newgidmap", errno.EPERM), USER,
            "no range of ids in /etc/subgid", "usermod --add-subuids", id="newgidmap with no range",
        ),
        pytest.param(
            "", Found(False, "newuidmap", errno.EPERM),
            replace(USER, ranges={"uid": "100000-165535"}),
            "/etc/subuid gives ann: 100000-165535", "usermod --add-subuids FIRST-LAST ann",
            id="newuidmap beyond the range",
        ),
        pytest.param(
            "run strict", Found(False, "clone3", errno.ENOSPC),
            replace(USER, max_namespaces={"user": "9", "net": "0", "uts": "9"}),
            "user.max_net_namespaces=0", "user.max_net_namespaces", id="whichever kind is at 0",
        ),
        pytest.param(
            "kvm device", Found(False, "/dev/kvm", errno.EACCES), USER,
            "not open to this user", "usermod -aG kvm ann", id="a device of a group's",
        ),
        pytest.param(
            "kvm device", Found(False, "/dev/kvm", errno.EPERM), replace(USER, container="podman"),
            "device cgroup", "podman run --device /dev/kvm", id="a device that a cgroup keeps away",
        ),
        pytest.param(
            "kvm device", Found(False, "/dev/kvm", errno.ENOENT), USER,
            "", "modprobe kvm_intel or kvm_amd", id="a device without a driver",
        ),
        pytest.param(
            "tun device", Found(False, "/dev/net/tun", errno.EACCES), USER,
            "not open to this user", "chmod 666 /dev/net/tun", id="a device of root's",
        ),
        pytest.param(
            "memfd", Found(False, "execve of a memfd", errno.EACCES),
            replace(USER, memfd_noexec="2"),
            "vm.memfd_noexec=2", "sysctl -w vm.memfd_noexec=1", id="memfds that do not execute",
        ),
        pytest.param(
            "user namespace", UNSHARE, replace(USER, chrooted=True),
            "chroot", "pivot_root", id="in a chroot",
        ),
        pytest.param(
            "id range", Found(False, "write /proc/9/uid_map", errno.EPERM),
            replace(USER, euid=0, initial_userns=False),
            "fewer ids", "larger id map", id="root of a small user namespace",
        ),
        pytest.param(
            "clone3", Found(False, "fork", errno.EAGAIN), USER,
            "limit of processes", "RLIMIT_NPROC", id="no more processes",
        ),
        pytest.param(
            "overlay mount", Found(False, "mount overlay", errno.ENODEV), USER,
            "does not have it", "modprobe overlay", id="a module that is not loaded",
        ),
        pytest.param(
            "veth", Found(False, "RTM_NEWLINK veth", errno.EOPNOTSUPP), USER,
            "does not have it", "modprobe veth", id="another",
        ),
        pytest.param(
            "landlock", Found(False, "landlock_create_ruleset", errno.EOPNOTSUPP), USER,
            "security modules", "lsm=landlock", id="Landlock that was not booted",
        ),
        pytest.param(
            "time namespace", Found(False, "unshare", errno.EINVAL), USER,
            "built without", "another kernel", id="a kind that the kernel lacks",
        ),
    ],
)  # fmt: skip
def test_the_cause_of(name: str, found: Found, facts: Facts, cause: str, fix: str) -> None:
    got = remedy(name, found, facts)
    assert cause in got.cause
    assert fix in got.fix


@pytest.mark.parametrize("facts", [Facts(userns_clone="0"), Facts(apparmor_userns="1")])
def test_a_sysctl_for_ordinary_users_is_not_what_root_is_told(facts: Facts) -> None:
    assert remedy("user namespace", UNSHARE, facts) == ("", "")
    assert remedy("user namespace", UNSHARE, replace(facts, euid=1)).cause.startswith("kernel.")


def test_what_the_kernel_lets_be_mounted_on_proc_is_no_cause() -> None:
    facts = replace(USER, covered=("/proc/sys/fs/binfmt_misc",))
    assert remedy("proc mount", Found(False, "mount proc", errno.EPERM), facts) == ("", "")


def test_another_file_system_than_proc_is_not_hidden_by_what_is_on_proc() -> None:
    facts = replace(USER, covered=("/proc/kcore",))
    found = Found(False, "fsmount", errno.EPERM, step="mount tmpfs on /tmp")
    assert remedy("run strict", found, facts) == ("", "")


def test_a_sysctl_that_is_off_is_no_cause() -> None:
    allowed = replace(USER, userns_clone="1", apparmor_userns="0", memfd_noexec="0")
    assert remedy("user namespace", UNSHARE, allowed) == ("", "")


def test_what_nobody_knows_is_not_made_up() -> None:
    assert remedy("veth", Found(False, "send", errno.EIO), USER) == ("", "")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Found(False, "unshare", errno.EPERM), "unshare: EPERM (Operation not permitted): why"),
        (Found(False, "mkdir", detail="is odd"), "mkdir: is odd: why"),
        (Found(False, detail="not installed"), "not installed: why"),
    ],
)
def test_a_reason_is_one_line(found: Found, text: str) -> None:
    assert reason(found, "why") == text
    assert reason(found) == text.removesuffix(": why")


def test_the_profile_is_for_the_interpreter_and_gives_nothing_but_user_namespaces() -> None:
    text = apparmor_profile("/usr/bin/python3.12")
    rules = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert 'profile nsbox "/usr/bin/python3.12" flags=(unconfined) {' in text
    assert rules == ["userns,", "include if exists <local/nsbox>"]
