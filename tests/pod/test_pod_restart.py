# SPDX-License-Identifier: Apache-2.0
"""Restart policies: who is restarted, how often, and what is said about how it ended."""

from __future__ import annotations

import pytest
from pod.kit import VirtualClock, events, shell, sidecar, sleeper, wait_log
from support import poll_until, scaled

import nsbox

pytestmark = pytest.mark.userns

# How an attempt ends: the script, run below nsbox-init so that it may send itself a signal,
# its exit code in the pod's status, its signal and the reason.
ENDS = {
    "code 0": ("exit 0", 0, None, "Completed"),
    "code 1": ("exit 1", 1, None, "Error"),
    "SIGTERM": ("kill -TERM $$", 143, 15, "Error"),
    "SIGKILL": ("kill -KILL $$", 137, 9, "Error"),
}
RESTARTED = {"Always": set(ENDS), "OnFailure": set(ENDS) - {"code 0"}, "Never": set()}
ROWS = [(policy, end) for policy in RESTARTED for end in ENDS]
RESTARTS = [row for row in ROWS if row[1] in RESTARTED[row[0]]]
FINAL = [row for row in ROWS if row[1] not in RESTARTED[row[0]]]


@pytest.mark.parametrize(("policy", "end"), RESTARTS, ids=" after ".join)
def test_restarted(policy: str, end: str) -> None:
    script, code, sig, reason = ENDS[end]
    clock = VirtualClock()
    with nsbox.Pod("web", [shell("a", script, init=True)], restart_policy=policy, clock=clock) as p:
        a = p["a"]
        for restarts, delay in enumerate((0.0, 10.0, 20.0)):
            assert poll_until(clock.pending, 5) == [delay]
            assert a.restart_count == restarts
            assert a.last_state == nsbox_state(code, sig, reason)
            clock.advance(delay)
            assert a.restart_count == restarts + 1
        assert p.phase == "Running"
        poll_until(clock.pending, 5)
    assert events(p, "Started") == ["Started a"] * 4


@pytest.mark.parametrize(("policy", "end"), FINAL, ids=" after ".join)
def test_not_restarted(policy: str, end: str) -> None:
    script, code, sig, reason = ENDS[end]
    clock = VirtualClock()
    with nsbox.Pod("web", [shell("a", script, init=True)], restart_policy=policy, clock=clock) as p:
        assert p.wait(scaled(10)) == ("Succeeded" if code == 0 else "Failed")
        assert p["a"].restart_count == 0
        assert p["a"].state == p["a"].last_state == nsbox_state(code, sig, reason)
        assert clock.timers == []
    assert events(p, "Started", "Died", "BackOff") == ["Started a", "Died a"]


def nsbox_state(code: int, sig: int | None, reason: str) -> object:
    from nsbox.podspec import State

    return State("Terminated", reason, code, sig)


def test_on_failure_ends_with_the_first_success(state: nsbox.Mount) -> None:
    script = "echo x >> /state/n; [ $(wc -l < /state/n) -ge 4 ]"
    apps = [shell("a", script, mounts=[state])]
    fast = nsbox.Backoff(0.01, 2, 0.05)
    with nsbox.Pod("web", apps, restart_policy="OnFailure", backoff=fast) as pod:
        assert pod.wait(scaled(15)) == "Succeeded"
        assert pod["a"].restart_count == 3
        assert pod.status().restarts == {"a": 3}
    assert events(pod, "Started", "Died") == ["Started a", "Died a"] * 4


def test_a_policy_of_the_containers_own_goes_before_the_pods() -> None:
    apps = [shell("once", "exit 1", restart_policy="Never"), sleeper("a")]
    clock = VirtualClock()
    with nsbox.Pod("web", apps, restart_policy="Always", clock=clock) as pod:
        poll_until(pod["once"].done, 5)
        assert clock.pending() == []
        pod["a"].kill()
        assert poll_until(clock.pending, 5) == [0.0]
        clock.advance(0)
        assert pod.status().restarts == {"once": 0, "a": 1}
        assert pod.phase == "Running"


@pytest.mark.parametrize("code", [0, 1])
def test_a_sidecar_is_restarted_whatever_the_policy_of_the_pod(code: int) -> None:
    clock = VirtualClock()
    helper = sidecar("helper", f"exit {code}")
    with nsbox.Pod(
        "web", [sleeper("a")], init_containers=[helper], restart_policy="Never", clock=clock
    ) as pod:
        assert poll_until(clock.pending, 5) == [0.0]
        clock.advance(0)
        assert pod["helper"].restart_count == 1
        assert (pod.phase, pod["a"].restart_count) == ("Running", 0)


@pytest.mark.cgroup
@pytest.mark.kernel
def test_over_its_memory_limit_it_is_oom_killed() -> None:
    limits = nsbox.Limits(memory="24MiB")
    eater = nsbox.ContainerSpec("eater", ["tail", "/dev/zero"], limits=limits)
    with nsbox.Pod("web", [eater], restart_policy="Never") as pod:
        assert pod.wait(scaled(20)) == "Failed"
        assert pod["eater"].state == nsbox_state(137, 9, "OOMKilled")


def test_a_sigkill_is_not_taken_for_an_oom() -> None:
    with nsbox.Pod("web", [sleeper("a")], restart_policy="Never") as pod:
        pod["a"].kill()
        assert pod.wait(scaled(10)) == "Failed"
        assert pod["a"].state == nsbox_state(137, 9, "Error")


def test_a_wall_limit_is_a_deadline() -> None:
    spec = sleeper("a", limits=nsbox.Limits(wall=0.05))
    with nsbox.Pod("web", [spec], restart_policy="Never") as pod:
        assert pod.wait(scaled(10)) == "Failed"
        assert pod["a"].state.reason == "DeadlineExceeded"


def test_logs_are_of_this_attempt_and_the_one_before(state: nsbox.Mount) -> None:
    script = "echo x >> /state/n; echo attempt $(wc -l < /state/n); exec sleep 1000"
    with nsbox.Pod(
        "web", [shell("a", script, mounts=[state])], backoff=nsbox.Backoff.fast()
    ) as pod:
        wait_log(pod["a"], "attempt 1\n")
        pod["a"].kill()
        pod["a"].wait_restarted(1, scaled(10))
        assert wait_log(pod["a"], "attempt 2\n") == "attempt 1\nattempt 2\n"


def test_waiting_for_a_restart_times_out() -> None:
    with nsbox.Pod("web", [sleeper("a")]) as pod, pytest.raises(TimeoutError, match="'a'"):
        pod["a"].wait_restarted(1, 0.05)
