# SPDX-License-Identifier: Apache-2.0
"""Containers of a pod whose root is a directory: as root they share a template of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from pod.kit import shell, wait_log
from run.kit import busybox_root

import nsbox

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.userns, pytest.mark.kernel]

MAKE = """
cat /etc/marker; echo mine > /tmp/x; echo shared > /dev/shm/x; echo gone > /dev/null
touch /x /dev/x; umount /dev && echo escaped; mount -t tmpfs none /dev && echo escaped
echo processes $(for process in /proc/[0-9]*; do echo $process; done | wc -l)
echo made; exec sleep 1000
"""
LOOK = """
until test -e /dev/shm/x; do sleep 0.02; done
cat /dev/shm/x; test -e /tmp/x || echo none; head -c 4 /dev/urandom | wc -c
echo seen; exec sleep 1000
"""


@pytest.mark.parametrize("shared", [False, True], ids=["own pids", "shared pids"])
@pytest.mark.parametrize("user", [1000, 0])
def test_each_has_its_own_of_all_but_shared_memory(tmp_path: Path, user: int, shared: bool) -> None:
    root = {"root": busybox_root(tmp_path / "root"), "user": user}
    members = [shell("maker", MAKE, **root), shell("looker", LOOK, **root)]
    with nsbox.Pod("web", members, share_process_namespace=shared) as pod:
        made = wait_log(pod["maker"], "made")
        assert "inside" in made
        assert made.count("Read-only file system") == 2
        assert "escaped" not in made
        assert not os.path.exists(tmp_path / "root/x")
        count = int(made.partition("processes ")[2].split()[0])  # sh, subshells, wc
        assert count in (range(5, 9) if shared else (3, 4))
        assert wait_log(pod["looker"], "seen").split() == ["shared", "none", "4", "seen"]
        for member in ("maker", "looker"):
            passed = [slot.kind for slot in pod[member].current.explain().passed]
            assert ("mntns" in passed) == (os.geteuid() == 0)
