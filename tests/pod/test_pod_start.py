# SPDX-License-Identifier: Apache-2.0
"""All or nothing at start; init containers one after another; sidecars before the rest."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from pod.kit import events, own_process, running, shell, sidecar, sleeper, unique_seconds
from support import poll_until, scaled

import nsbox

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.userns

FAST = nsbox.Backoff(0.01, 2, 0.05)


def none_runs(seconds: str) -> bool:
    return running(seconds) == []


@own_process()
def test_a_container_that_cannot_start_ends_the_others() -> None:
    seconds = unique_seconds()
    others = [nsbox.ContainerSpec(name, ["sleep", seconds]) for name in ("a", "b")]
    helper = nsbox.Sidecar("helper", ["sleep", seconds])
    broken = nsbox.ContainerSpec("broken", ["/no/such/program"])
    pod = nsbox.Pod("web", [*others, broken], init_containers=[helper])
    with pytest.raises(nsbox.CommandNotFound, match="/no/such/program"):
        pod.start()
    assert events(pod, "Started") == ["Started helper", "Started a", "Started b"]
    poll_until(lambda: none_runs(seconds), 2)
    assert (pod.phase, pod.status().reason, pod.pause_pid) == ("Failed", "StartError", None)
    assert [pod[name].pid for name in ("a", "b", "broken", "helper")] == [None] * 4
    with pytest.raises(nsbox.StateError):
        pod.start()
    assert pod.wait(scaled(5)) == "Failed"
    pod.close()
    with nsbox.Pod("web", [sleeper("a")]) as after:  # nothing is stuck
        assert after.phase == "Running"


def test_the_only_container_cannot_start() -> None:
    pod = nsbox.Pod("web", [nsbox.ContainerSpec("broken", ["/no/such/program"])])
    with pytest.raises(nsbox.CommandNotFound), pod:
        pytest.fail("the block was entered")
    assert (pod.phase, pod.pause_pid) == ("Failed", None)


def test_a_pod_starts_once() -> None:
    with nsbox.Pod("web", [sleeper("a")]) as pod:
        with pytest.raises(nsbox.StateError, match="'web' is Running") as caught:
            pod.start()
        assert caught.value.status == "Running"
        pod.stop(grace=0)
        with pytest.raises(nsbox.StateError):
            pod.start()


def test_before_its_start_it_is_pending() -> None:
    pod = nsbox.Pod("web", [sleeper("a")])
    assert (pod.phase, pod.pause_pid, pod["a"].pid, pod["a"].nspid) == ("Pending", None, None, None)
    assert pod["a"].state.name == "Waiting"
    assert (pod["a"].namespaces, pod["a"].logs()) == ({}, "")
    with pytest.raises(nsbox.StateError, match="'a' has not been started"):
        pod["a"].kill()
    pod.close()
    assert pod.phase != "Succeeded"
    with pytest.raises(nsbox.StateError):
        pod.start()


def test_who_waits_for_one_that_was_never_started_is_told() -> None:
    pod = nsbox.Pod("web", [sleeper("a")])
    with pytest.raises(nsbox.StateError, match="'web' is Pending: it has not been") as caught:
        pod.wait()
    assert caught.value.status == "Pending"
    pod.close()
    assert pod.wait() == "Failed"


def test_init_containers_run_in_order_and_to_their_end(state: nsbox.Mount, state_dir: Path) -> None:
    first = shell("first", "sleep 0.1; echo first >> /state/log", mounts=[state])
    second = shell("second", "echo second >> /state/log", mounts=[state])
    app = shell("app", "echo app >> /state/log", mounts=[state])
    with nsbox.Pod("web", [app], init_containers=[first, second], restart_policy="Never") as pod:
        assert pod.wait(scaled(10)) == "Succeeded"
    assert (state_dir / "log").read_text().split() == ["first", "second", "app"]
    assert events(pod, "Started", "Died") == [
        "Started first", "Died first", "Started second", "Died second", "Started app", "Died app",
    ]  # fmt: skip


@own_process()
def test_a_failing_init_container_fails_a_pod_that_never_restarts() -> None:
    bad = shell("bad", "exit 3")
    pod = nsbox.Pod(
        "web", [sleeper("a")], init_containers=[sidecar("helper"), bad], restart_policy="Never"
    )
    with pytest.raises(nsbox.StateError, match="'bad' failed"):
        pod.start()
    assert (pod.phase, pod.pause_pid) == ("Failed", None)
    assert (pod["bad"].state.exit_code, pod["bad"].restart_count) == (3, 0)
    assert pod["a"].state.name == "Waiting"
    assert events(pod, "Started") == ["Started helper", "Started bad"]


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_a_failing_init_container_is_tried_again(policy: str, state: nsbox.Mount) -> None:
    script = "echo x >> /state/n; [ $(wc -l < /state/n) -ge 3 ]"
    init = shell("init", script, mounts=[state])
    with nsbox.Pod(
        "web", [sleeper("a")], init_containers=[init], restart_policy=policy, backoff=FAST
    ) as pod:
        assert (pod["init"].restart_count, pod["init"].state.exit_code) == (2, 0)
        assert pod["a"].state.name == "Running"
        # Always means OnFailure for a container that must end before the others start.
        assert events(pod, "Started") == ["Started init"] * 3 + ["Started a"]


def test_a_sidecar_runs_before_init_containers_and_apps() -> None:
    helpers = [sidecar("one"), shell("init", "exit 0"), sidecar("two")]
    with nsbox.Pod("web", [sleeper("a")], init_containers=helpers) as pod:
        assert events(pod, "Started") == [f"Started {n}" for n in ("one", "init", "two", "a")]
        assert pod["one"].pid is not None
        assert pod["two"].pid is not None
        moments = {e.container: e.at for e in pod.events if e.reason == "Started"}
        assert moments["one"] <= moments["init"] <= moments["two"] <= moments["a"]


def test_stop_from_another_thread_ends_a_start_that_waits() -> None:
    pod = nsbox.Pod("web", [sleeper("a")], init_containers=[sleeper("init")])
    stopper = threading.Thread(target=stop_when_started, args=(pod,))
    stopper.start()
    with pytest.raises(nsbox.StateError):
        pod.start()
    stopper.join()
    assert (pod.phase, pod.pause_pid) == ("Failed", None)
    assert events(pod, "Started") == ["Started init"]
    pod.close()


def stop_when_started(pod: nsbox.Pod) -> None:
    poll_until(lambda: pod["init"].state.name == "Running", 10)
    pod.stop(grace=0)
