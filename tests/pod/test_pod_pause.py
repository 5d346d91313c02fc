# SPDX-License-Identifier: Apache-2.0
"""The pause process: it holds what is shared, ends on SIGINT and SIGTERM, and the pod with it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from pod.kit import (
    ended,
    events,
    namespace_ids,
    on_term,
    own_process,
    parent_of,
    pidfds,
    proc_status,
    send,
    shell,
    sidecar,
    sleeper,
    wait_log,
)
from support import poll_until, scaled

import nsbox

pytestmark = pytest.mark.userns

OTHERS = ("HUP", "QUIT", "USR1", "USR2", "ALRM", "PIPE", "CHLD", "CONT", "WINCH", "TSTP")


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["INT", "TERM", "KILL"])
def test_without_pause_the_pod_is_lost(name: str) -> None:
    apps = [sleeper("a"), shell("b", on_term("echo deaf"))]
    with nsbox.Pod("web", apps, init_containers=[sidecar("helper")]) as pod:
        with pidfds(pod.pause_pid, *(pod[n].pid for n in ("a", "b", "helper"))) as fds:
            send(pod.pause_pid, signal.Signals[f"SIG{name}"])
            assert [ended(fd, 1) for fd in fds] == [True] * 4
        assert pod.wait(scaled(5)) == "Failed"
        status = pod.status()
        assert (status.phase, status.reason) == ("Failed", "SandboxLost")
        assert {s.exit_code for s in status.containers.values()} == {137}
        assert set(status.restarts.values()) == {0}  # in spite of restart_policy Always
    assert events(pod, "SandboxLost") == ["SandboxLost "]


@pytest.mark.kernel
def test_pause_ends_well_on_sigterm_and_last() -> None:
    pod = nsbox.Pod("web", [sleeper("a")]).start()
    with pidfds(pod.pause_pid, pod["a"].pid) as (pause, member):
        pod.stop(grace=0)
        assert ended(member)
        assert ended(pause)
    assert pod.pause_pid is None
    assert pod.status().reason == ""
    pod.close()


def test_pause_ignores_other_signals() -> None:
    with nsbox.Pod("web", [sleeper("a")]) as pod:
        pause = pod.pause_pid
        with pidfds(pause) as (pidfd,):
            for name in OTHERS:
                send(pause, signal.Signals[f"SIG{name}"])
            send(pause, signal.SIGRTMIN + 3)
            # Taken, not just not arrived yet.
            poll_until(lambda: int(proc_status(pause, "ShdPnd")[0], 16) == 0, 5)
            assert not ended(pidfd)
        assert (pod.phase, pod["a"].restart_count) == ("Running", 0)
        assert pod["a"].pid is not None


def test_pause_is_pid_1_and_alone() -> None:
    with nsbox.Pod("web", [sleeper("a")]) as pod:
        assert proc_status(pod.pause_pid, "NSpid") == [str(pod.pause_pid), "1"]
        ids = namespace_ids(pod.pause_pid)
        assert ids["pid"] != pod["a"].namespaces["pid"]
        assert ids["mnt"] != pod["a"].namespaces["mnt"]


def test_pause_waits_without_work() -> None:
    with nsbox.Pod("web", [sleeper("a")]) as pod:
        assert poll_until(lambda: proc_status(pod.pause_pid, "State")[0] == "S")
        before = cpu_ticks(pod.pause_pid)
        pod["a"].kill()
        pod["a"].wait_restarted(1, scaled(10))
        assert cpu_ticks(pod.pause_pid) == before


def cpu_ticks(pid: int | None) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.kernel
def test_a_crash_does_not_touch_the_others() -> None:
    apps = [sleeper("a"), sleeper("b")]
    with nsbox.Pod("web", apps, backoff=nsbox.Backoff.fast()) as pod:
        pause, other = pod.pause_pid, pod["b"].pid
        net = pod["b"].namespaces["net"]
        for count in (1, 2):
            pod["a"].kill()
            pod["a"].wait_restarted(count, scaled(10))
            assert pod["a"].namespaces["net"] == net
        assert (pod.pause_pid, pod["b"].pid, pod["b"].restart_count) == (pause, other, 0)
        assert pod.phase == "Running"


@own_process()
def test_the_pod_is_lost_with_its_launcher() -> None:
    pod = nsbox.Pod("web", [sleeper("a"), sleeper("b")], init_containers=[sidecar("helper")])
    with pod:
        with pidfds(pod.pause_pid, pod["a"].pid, pod["helper"].pid) as fds:
            send(parent_of(pod["a"].pid), signal.SIGKILL)
            assert all(ended(fd, 5) for fd in fds)
        assert pod.wait(scaled(5)) == "Failed"
        status = pod.status()
        assert status.reason == "SandboxLost"
        assert {s.name for s in status.containers.values()} == {"Terminated"}
        assert set(status.restarts.values()) == {0}
        started = time.monotonic()
    assert time.monotonic() - started < scaled(3)
    with nsbox.Pod("web", [shell("a", "echo again; exec sleep 1000")]) as after:
        wait_log(after["a"], "again")
