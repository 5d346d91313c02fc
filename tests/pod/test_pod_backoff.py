# SPDX-License-Identifier: Apache-2.0
"""Delays between restarts, on a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pod.kit import VirtualClock, ended, events, pidfds, running, sleeper, unique_seconds
from support import poll_until

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns

DELAYS = [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def pod(clock: VirtualClock) -> Iterator[nsbox.Pod]:
    with nsbox.Pod("web", [sleeper("a")], clock=clock) as pod:
        yield pod


def crash(pod: nsbox.Pod, clock: VirtualClock) -> float:
    """Kills the container; returns the delay before its restart."""
    pod["a"].kill()
    (delay,) = poll_until(clock.pending, 5)
    return delay


def test_kubernetes_delays() -> None:
    backoff = nsbox.Backoff()
    assert [backoff.delay(n) for n in range(8)] == DELAYS
    assert backoff.delay(100_000) == 300
    assert backoff.reset_after == 600


def test_fast_delays_are_a_sixtieth() -> None:
    fast = nsbox.Backoff.fast()
    assert [fast.delay(n) for n in range(8)] == pytest.approx([d / 60 for d in DELAYS])
    assert fast.reset_after == 10


def test_delays_grow_with_every_crash(pod: nsbox.Pod, clock: VirtualClock) -> None:
    seen = []
    for restarts in range(8):
        delay = crash(pod, clock)
        seen.append(delay)
        clock.advance(delay)
        assert pod["a"].restart_count == restarts + 1
        assert pod["a"].state.name == "Running"
    assert seen == DELAYS
    messages = [e.message for e in pod.events if e.reason == "BackOff"]
    assert messages == [f"restart in {d:g} s" for d in DELAYS[1:]]


def test_not_a_second_too_early(pod: nsbox.Pod, clock: VirtualClock) -> None:
    clock.advance(crash(pod, clock))
    assert crash(pod, clock) == 10
    clock.advance(9.999)
    assert pod["a"].restart_count == 1
    assert pod["a"].pid is None
    clock.advance(0.001)
    assert pod["a"].restart_count == 2
    assert pod["a"].pid is not None


def test_in_back_off_it_waits_and_the_end_is_remembered(
    pod: nsbox.Pod, clock: VirtualClock
) -> None:
    clock.advance(crash(pod, clock))
    crash(pod, clock)
    a = pod["a"]
    assert (a.state.name, a.state.reason) == ("Waiting", "CrashLoopBackOff")
    assert a.last_state is not None
    assert (a.last_state.name, a.last_state.exit_code) == ("Terminated", 137)
    assert "CrashLoopBackOff" in str(pod)
    assert pod.phase == "Running"


@pytest.mark.parametrize(
    ("seconds", "delay"),
    [pytest.param(599, 20, id="599 s are not enough"), pytest.param(600, 0, id="600 s are")],
)
def test_good_running_begins_the_count_anew(
    pod: nsbox.Pod, clock: VirtualClock, seconds: float, delay: float
) -> None:
    for expected in (0, 10):
        assert crash(pod, clock) == expected
        clock.advance(expected)
    clock.advance(seconds)
    assert crash(pod, clock) == delay


def test_each_container_counts_for_itself(clock: VirtualClock) -> None:
    with nsbox.Pod("web", [sleeper("a"), sleeper("b")], clock=clock) as pod:
        clock.advance(crash(pod, clock))
        clock.advance(crash(pod, clock))
        pod["b"].kill()
        assert poll_until(clock.pending, 5) == [0.0]


def test_stop_during_back_off_starts_nothing_later(pod: nsbox.Pod, clock: VirtualClock) -> None:
    clock.advance(crash(pod, clock))
    crash(pod, clock)
    (timer,) = clock.timers
    pod.stop(grace=0)
    assert clock.pending() == []
    timer.call()  # it was already on its way
    clock.advance(1000)
    a = pod["a"]
    assert (a.restart_count, a.pid, a.state.name) == (1, None, "Terminated")
    assert events(pod, "Started") == ["Started a"] * 2
    assert pod.phase == "Failed"


def test_stop_wins_over_restart() -> None:
    """Restarted as fast as it can be, and killed all the time, it still stays stopped."""
    seconds = unique_seconds()
    flapping = nsbox.ContainerSpec("a", ["sh", "-c", f"sleep {seconds} & exit 1"])
    for _ in range(5):
        pod = nsbox.Pod("web", [flapping], backoff=nsbox.Backoff(0, 1, 0)).start()
        poll_until(lambda pod=pod: pod["a"].restart_count >= 3, 10)
        with pidfds(pod.pause_pid) as (pause,):
            pod.stop(grace=0)
            assert ended(pause)
        count = pod["a"].restart_count
        assert running(seconds) == []
        assert (pod["a"].pid, pod["a"].state.name) == (None, "Terminated")
        pod.close()
        assert pod["a"].restart_count == count
