# SPDX-License-Identifier: Apache-2.0
"""The freezer of cgroup v1: SIGKILL does not end who is frozen there until it is thawed.

That of v2 (cgroup.freeze) lets killed processes go by itself.
"""

from __future__ import annotations

import functools
import os


@functools.lru_cache(maxsize=4)
def _mount(pid: int) -> tuple[str, str] | None:
    """Where the hierarchy is mounted, and which of its directories is there; of this process."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            fstype, _, options = after.split(" ", 2)
            if fstype == "cgroup" and "freezer" in options.strip().split(","):
                words = before.split()
                return words[4], words[3]
    return None


def _path(pid: int | str) -> str | None:
    """The group of a process in this hierarchy; None when it has ended."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if "freezer" in controllers.split(","):
                    return path
    except OSError:
        pass
    return None


def mounted() -> bool:
    """Whether there is such a freezer here."""
    return _mount(os.getpid()) is not None


def thaw(pids: list[int]) -> None:
    """Thaw the groups that processes are in, and those above them but for the caller's own.

    Nothing where none is frozen, or where the caller may not.
    """
    mount = _mount(os.getpid()) if pids else None
    own = _path("self") if mount is not None else None
    if mount is None or own is None:
        return
    point, root = mount
    above = root.rstrip("/")
    ours = set(_prefixes(own))
    for path in {path for pid in pids if (path := _path(pid)) is not None}:
        for group in _prefixes(path):
            if group not in ours and group.startswith(above + "/"):
                _thaw_group(point + group[len(above) :])


def _prefixes(path: str) -> list[str]:
    """It and the directories above it, from the top: of /a/b they are /a and /a/b."""
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


def _thaw_group(directory: str) -> None:
    try:
        with open(f"{directory}/freezer.self_freezing") as file:
            frozen = file.read().strip() == "1"
        if frozen:
            with open(f"{directory}/freezer.state", "w") as file:
                file.write("THAWED")
    except OSError:
        pass
