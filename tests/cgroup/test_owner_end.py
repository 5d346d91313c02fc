# SPDX-License-Identifier: Apache-2.0
"""However an owner of cgroups ends, its groups and who is in them go with it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cgroup import kit
from support import poll_until

pytestmark = [pytest.mark.cgroup]

OWNER = """
import json, os, signal, subprocess, sys
import nsbox
from nsbox import cgroup, hierarchy, syscalls as sc
from dataclasses import replace
if os.geteuid() == 0:  # a registry of its own: no gc() of others does what is the launcher's
    sc.unshare(sc.Clone.NEWNS)
    sc.mount(None, "/", None, sc.MountFlag.REC | sc.MountFlag.PRIVATE)
    sc.mount("tmpfs", "/run", "tmpfs")
how, payload = sys.argv[1:3]
if how == "v1 alone":
    real = hierarchy.parents()
    kept = tuple(pair for pair in real.directories if pair[0] != "unified")
    cgroup.parents = lambda: replace(real, directories=kept)
group = nsbox.Cgroup.create(limits=nsbox.Limits(pids=30))
child = subprocess.Popen(["sh", "-c", "read x; " + payload], stdin=subprocess.PIPE)
group.add(child.pid)
child.stdin.write(b"\\n"); child.stdin.flush()
if how == "hidden child":
    for directory in set(group.directories.values()):
        os.mkdir(f"{directory}/.hidden")
elif how != "running":
    group.freeze()
print(json.dumps([child.pid, *group.directories.values()]), flush=True)
sys.stdin.readline()
os._exit(3) if how == "running" else signal.pause()
"""


@pytest.mark.kernel
@pytest.mark.parametrize("how", ["running", "frozen", "v1 alone", "hidden child"])
@pytest.mark.parametrize("payload", ["sleep 1000", f"exec python3 -SIc '{kit.BOMB}'"],
                         ids=["sleeper", "bomb"])  # fmt: skip
def test_a_killed_owner_leaves_neither_groups_nor_processes(how: str, payload: str) -> None:
    """Frozen by v1's freezer they could not even die before they are thawed."""
    if how == "v1 alone" and not os.path.exists("/sys/fs/cgroup/freezer"):
        pytest.skip("no freezer of v1 here")
    with kit.owner(OWNER, how, payload) as process:
        pid, *directories = json.loads(kit.line(process))
        assert all(Path(d).is_dir() for d in directories)
        inside = [int(p) for p in Path(directories[0], "cgroup.procs").read_text().split()]
        assert pid in inside or how == "running"
        process.send_signal(signal.SIGKILL)
        kit.ends(process)
        kit.all_gone(directories)
        poll_until(lambda: kit.gone([pid, *inside]), 5)


@pytest.mark.parametrize("how", ["running"])
def test_an_owner_that_just_exits_leaves_nothing_either(how: str) -> None:
    with kit.owner(OWNER, how, "sleep 1000") as process:
        pid, *directories = json.loads(kit.line(process))
        kit.go(process)
        assert kit.ends(process) == 3
        kit.all_gone(directories)
        poll_until(lambda: kit.gone([pid]), 5)


PRIORITY = """
import json, signal, nsbox
box = nsbox.Container(["sleep", "1000"], limits=nsbox.Limits(net_priority=6, pids=5)).start()
print(json.dumps([box.pid, *box.cgroup.directories.values()]), flush=True)
signal.pause()
"""


@pytest.mark.root
@pytest.mark.kernel
def test_a_sandbox_with_a_priority_leaves_no_group_of_v2_either() -> None:
    with kit.owner(PRIORITY) as process:
        pid, *directories = json.loads(kit.line(process))
        assert all(Path(d).is_dir() for d in directories)
        process.send_signal(signal.SIGKILL)
        kit.ends(process)
        kit.all_gone(directories)
        poll_until(lambda: kit.gone([pid]), 5)
