# SPDX-License-Identifier: Apache-2.0
"""One process, two pids; the namespaces it is in, as /proc and lsns show them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from pod.kit import KINDS, namespace_ids, proc_status, wait_log
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.userns, pytest.mark.kernel]


@pytest.fixture(scope="module")
def box() -> Iterator[nsbox.Container]:
    """It says its own pid, its host name, and sleeps as PID 1."""
    script = "echo pid=$$ host=$(hostname); exec sleep 1000"
    with nsbox.Container(["sh", "-c", script], hostname="inside") as container:
        yield container


def test_the_entrypoint_is_pid_1(box: nsbox.Container) -> None:
    assert wait_log(box, "\n") == "pid=1 host=inside\n"


def test_one_process_has_a_pid_outside_and_pid_1_inside(box: nsbox.Container) -> None:
    assert box.pid is not None
    assert box.pid > 1
    assert box.nspid == 1
    assert [int(pid) for pid in proc_status(box.pid, "NSpid")] == [box.pid, 1]


def test_the_pidfd_is_of_that_process(box: nsbox.Container) -> None:
    with open(f"/proc/self/fdinfo/{box.pidfd}") as info:
        lines = dict(line.split(":\t", 1) for line in info if ":\t" in line)
    assert int(lines["Pid"]) == box.pid


def test_namespaces_are_the_links_of_proc(box: nsbox.Container) -> None:
    seen = {kind: number for kind, number in box.namespaces.items() if kind in KINDS}
    assert seen == namespace_ids(box.pid)


def test_every_namespace_but_time_is_its_own(box: nsbox.Container) -> None:
    mine = namespace_ids(os.getpid())
    assert [kind for kind in KINDS if box.namespaces[kind] == mine[kind]] == []


@pytest.mark.skipif(not shutil.which("lsns"), reason="lsns is not installed")
def test_lsns_shows_the_same_ids(box: nsbox.Container) -> None:
    done = subprocess.run(
        ["lsns", "-p", str(box.pid), "-J", "-o", "NS,TYPE"],
        capture_output=True, text=True, check=True, timeout=scaled(20),
    )  # fmt: skip
    shown = {row["type"]: int(row["ns"]) for row in json.loads(done.stdout)["namespaces"]}
    assert {kind: box.namespaces[kind] for kind in KINDS} == {kind: shown[kind] for kind in KINDS}


def test_with_init_the_command_is_its_child() -> None:
    script = "echo pid=$$; exec sleep 1000"
    with nsbox.Container(["sh", "-c", script], init=True) as container:
        assert wait_log(container, "\n") == "pid=2\n"
        assert container.nspid == 1


def test_the_plan_that_was_run_is_explained() -> None:
    container = nsbox.Container(["sleep", "1000"], hostname="inside")
    before = str(container.explain())
    with container:
        assert "inside" in str(container.explain())
        assert "inside" in before
