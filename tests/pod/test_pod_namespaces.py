# SPDX-License-Identifier: Apache-2.0
"""Which namespaces the containers of a pod share, and which are each one's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from pod.kit import PRIVATE, SHARED, namespace_ids, proc_status, shell, sidecar, sleeper, wait_log
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.userns, pytest.mark.kernel]


@pytest.fixture(scope="module")
def pod() -> Iterator[nsbox.Pod]:
    say = "echo host=$(hostname) pid=$$; "
    apps = [shell("a", say + "exec sleep 1000"), shell("b", say + "exec sleep 1000")]
    helpers = [sidecar("helper", say + "exec sleep 1000")]
    with nsbox.Pod("web", apps, init_containers=helpers) as pod:
        yield pod


@pytest.mark.parametrize("kind", SHARED)
def test_shared(pod: nsbox.Pod, kind: str) -> None:
    ids = {namespace_ids(pod[name].pid)[kind] for name in ("a", "b", "helper")}
    assert len(ids) == 1
    assert ids == {namespace_ids(pod.pause_pid)[kind]}
    assert ids != {namespace_ids(os.getpid())[kind]}


@pytest.mark.parametrize("kind", PRIVATE)
def test_each_its_own(pod: nsbox.Pod, kind: str) -> None:
    pids = [pod["a"].pid, pod["b"].pid, pod["helper"].pid, os.getpid()]
    assert len({namespace_ids(pid)[kind] for pid in pids}) == 4


def test_namespaces_says_the_same_as_proc(pod: nsbox.Pod) -> None:
    for name in ("a", "b", "helper"):
        told, found = pod[name].namespaces, namespace_ids(pod[name].pid)
        assert {kind: told[kind] for kind in found} == found


@pytest.mark.skipif(not shutil.which("lsns"), reason="lsns is not installed")
def test_lsns_agrees(pod: nsbox.Pod) -> None:
    a, b = lsns(pod["a"].pid), lsns(pod["b"].pid)
    assert {kind for kind in (*SHARED, *PRIVATE) if a[kind] == b[kind]} == set(SHARED)
    assert {kind: a[kind] for kind in SHARED} == {
        kind: pod["b"].namespaces[kind] for kind in SHARED
    }


def lsns(pid: int | None) -> dict[str, int]:
    done = subprocess.run(
        ["lsns", "-p", str(pid), "-J", "-o", "NS,TYPE"],
        capture_output=True, text=True, check=True, timeout=scaled(20),
    )  # fmt: skip
    return {row["type"]: int(row["ns"]) for row in json.loads(done.stdout)["namespaces"]}


def test_each_entrypoint_is_pid_1_of_its_own(pod: nsbox.Pod) -> None:
    for name in ("a", "b", "helper"):
        assert "pid=1\n" in wait_log(pod[name], "pid=")
        assert pod[name].nspid == 1
        assert [int(pid) for pid in proc_status(pod[name].pid, "NSpid")] == [pod[name].pid, 1]


def test_the_host_name_is_the_pods_in_every_container(pod: nsbox.Pod) -> None:
    for name in ("a", "b", "helper"):
        assert "host=web " in wait_log(pod[name], "host=")


def test_another_host_name() -> None:
    with nsbox.Pod("web", [shell("a", "hostname; exec sleep 1000")], hostname="db.local") as pod:
        assert wait_log(pod["a"], "\n") == "db.local\n"


def test_two_pods_share_nothing(pod: nsbox.Pod) -> None:
    with nsbox.Pod("other", [sleeper("a")]) as other:
        mine, theirs = namespace_ids(pod["a"].pid), namespace_ids(other["a"].pid)
        assert {kind for kind in mine if mine[kind] == theirs[kind]} == set()


def test_the_hosts_network_when_asked_for() -> None:
    with nsbox.Pod("web", [sleeper("a"), sleeper("b")], net="host") as pod:
        host = namespace_ids(os.getpid())
        a, b = namespace_ids(pod["a"].pid), namespace_ids(pod["b"].pid)
        assert a["net"] == b["net"] == host["net"]
        assert a["ipc"] == b["ipc"] != host["ipc"]


def test_ids_survive_a_restart_where_they_are_the_pods() -> None:
    fast = nsbox.Backoff.fast()
    with nsbox.Pod("web", [sleeper("a"), sleeper("b")], backoff=fast) as pod:
        before, beside = namespace_ids(pod["a"].pid), namespace_ids(pod["b"].pid)
        pod["a"].kill()
        pod["a"].wait_restarted(1, scaled(10))
        after = namespace_ids(pod["a"].pid)
        assert {kind: after[kind] for kind in SHARED} == {kind: before[kind] for kind in SHARED}
        assert namespace_ids(pod["b"].pid) == beside
