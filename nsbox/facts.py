# SPDX-License-Identifier: Apache-2.0
"""Looks up what tells the causes of refusals apart, for remedies.py; without the extension too."""

from __future__ import annotations

import os
from pathlib import Path

from nsbox.hierarchy import container
from nsbox.remedies import Facts

KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def status() -> dict[str, str]:
    """Of this process: proc_pid_status(5)."""
    lines = (_read("/proc/self/status") or "").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _mount_points() -> list[str]:
    lines = (_read("/proc/self/mountinfo") or "").splitlines()
    return [line.split(" ")[4] for line in lines]


def user_name() -> str:
    """The caller's; its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _ranges() -> dict[str, str]:
    try:
        from nsbox import probe
    except ImportError:
        return {}
    found = {}
    for kind in ("uid", "gid"):
        if given := probe.subordinate_range(f"/etc/sub{kind}", os.geteuid()):
            found[kind] = f"{given[0]}-{sum(given) - 1}"
    return found


def look() -> Facts:
    """As they are now."""
    own, points = status(), _mount_points()
    sysctl = "/proc/sys/kernel"
    return Facts(
        euid=os.geteuid(),
        user=user_name(),
        seccomp=int(own.get("Seccomp", "0")),
        no_new_privs=own.get("NoNewPrivs") == "1",
        container=container(),
        chrooted=bool(points) and "/" not in points,
        covered=tuple(dict.fromkeys(p for p in points if p.startswith("/proc/"))),
        userns_clone=_read(f"{sysctl}/unprivileged_userns_clone"),
        apparmor_userns=_read(f"{sysctl}/apparmor_restrict_unprivileged_userns"),
        initial_userns=(_read("/proc/self/uid_map") or "").split() == ["0", "0", "4294967295"],
        memfd_noexec=_read("/proc/sys/vm/memfd_noexec"),
        max_namespaces={kind: value for kind in ("user", *KINDS, "time")
                        if (value := _read(f"/proc/sys/user/max_{kind}_namespaces"))},
        ranges=_ranges(),
    )  # fmt: skip
