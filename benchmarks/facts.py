# SPDX-License-Identifier: Apache-2.0
"""Is the sandbox a sandbox? Judges what the probe script printed inside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rootfs import DIRECTORIES, NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Mapping

Facts = dict[str, str]


def parse(text: str) -> Facts:
    """``key value`` lines as a dict; an empty dict when the probe did not finish."""
    facts = {
        key: value.strip() for key, _, value in (line.partition(" ") for line in text.splitlines())
    }
    return facts if facts.get("end") == "." else {}


def shared_namespaces(facts: Mapping[str, str]) -> list[str]:
    """The kinds of namespace that are not new: the same as this process's, or unknown."""
    return [
        name
        for name in NAMESPACES
        if facts.get(f"ns.{name}", "") in ("", os.readlink(f"/proc/self/ns/{name}"))
    ]


def namespace_problem(facts: Mapping[str, str]) -> str:
    """Why these facts do not show six new namespaces, or an empty string."""
    if not facts:
        return "the probe did not finish"
    shared = shared_namespaces(facts)
    return f"not in a new namespace: {', '.join(shared)}" if shared else ""


def judge(facts: Mapping[str, str], *, pid: int) -> list[tuple[str, bool, str]]:
    """Everything promised of a floor sandbox: (promise, kept, evidence).

    *pid* is the process id the payload must have: 1, or 2 under an init.
    """
    if not facts:
        return [("the probe finishes", False, "no output")]
    shared = shared_namespaces(facts)
    mounts = facts["mounts"].split()
    expected = sorted(DIRECTORIES)
    return [
        ("six new namespaces", not shared, f"shared: {' '.join(shared)}" if shared else "6"),
        (f"is pid {pid}", facts["pid"] == str(pid), f"pid {facts['pid']}"),
        ("/proc is its own", int(facts["procs"]) <= 8, f"{facts['procs']} processes"),
        ("lo is up", facts["lo"] == "LOOPBACK,UP", facts["lo"] or "down"),
        ("no other link", facts["links"] == "1", f"{facts['links']} links"),
        ("/ is the rootfs", sorted(facts["root"].split()) == expected, facts["root"]),
        ("/ is read-only", facts["writable"] == "no", f"writable: {facts['writable']}"),
        ("/dev works", facts["urandom"] == "4" and facts.get("null") == "ok", "null, urandom"),
        ("no mount but its own", own_mounts(mounts), facts["mounts"]),
        ("host root unreachable", "canary" not in facts, facts.get("canary", "canary not seen")),
    ]


def blind_spots(facts: Mapping[str, str]) -> list[str]:
    """Promises that *facts*, taken without any sandbox, seem to keep: checks that prove nothing."""
    if not facts:
        return ["the probe did not finish"]
    isolation = ("six new namespaces", "no mount but its own", "host root unreachable")
    return [promise for promise, kept, _ in judge(facts, pid=1) if kept and promise in isolation]


def own_mounts(mounts: list[str]) -> bool:
    """Whether every mount point is the root, or below /dev or /proc (the rootfs has no others)."""
    inside = all(path == "/" or path.startswith(("/dev", "/proc")) for path in mounts)
    return inside and mounts.count("/") == 1
