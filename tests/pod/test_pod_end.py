# SPDX-License-Identifier: Apache-2.0
"""How a pod ends: phases, the primary container, the order of stopping, and what it says."""

from __future__ import annotations

import functools
import gc
import signal
import time
import warnings
from contextlib import ExitStack

import pytest
from pod.kit import (
    ended,
    events,
    in_a_forked_child,
    on_term,
    own_process,
    pidfds,
    send,
    shell,
    sidecar,
    sleeper,
    wait_log,
)
from support import poll_until, scaled

import nsbox

pytestmark = pytest.mark.userns


@pytest.mark.parametrize(
    ("codes", "phase"),
    [((0, 0), "Succeeded"), ((0, 1), "Failed"), ((1, 0), "Failed")],
    ids=["all well", "the second fails", "the first fails"],
)
def test_the_phase_is_of_all_containers(codes: tuple[int, int], phase: str) -> None:
    apps = [shell(name, f"exit {code}") for name, code in zip("ab", codes, strict=True)]
    with nsbox.Pod("web", apps, restart_policy="Never") as pod:
        assert pod.wait(scaled(10)) == phase
        assert pod.phase == pod.status().phase == phase
        assert [pod[name].state.exit_code for name in "ab"] == list(codes)
        assert pod.pause_pid is None


def test_it_runs_until_the_last_has_ended() -> None:
    apps = [shell("a", "exit 0"), shell("b", on_term("exit 0"))]
    with nsbox.Pod("web", apps, restart_policy="Never") as pod:
        wait_log(pod["b"], "ready")
        with pytest.raises(TimeoutError, match="'web'"):
            pod.wait(0.05)
        assert pod.phase == "Running"
        pod["b"].current.stop(scaled(5))
        assert pod.wait(scaled(10)) == "Succeeded"


@own_process()
def test_a_sidecar_does_not_keep_it_alive() -> None:
    for code, phase in ((0, "Succeeded"), (1, "Failed")):
        pod = nsbox.Pod(
            "web", [shell("a", f"exit {code}")], restart_policy="Never",
            init_containers=[sidecar("one"), sidecar("two", on_term("exit 9"))],
        )  # fmt: skip
        with pod:
            # Its code at the end does not matter.
            assert pod.wait(scaled(8)) == phase
            assert [pod[name].pid for name in ("a", "one", "two")] == [None] * 3


@own_process()
def test_the_end_of_the_primary_ends_the_others() -> None:
    for code, phase in ((0, "Succeeded"), (2, "Failed")):
        apps = [shell("main", f"exit {code}"), sleeper("deaf"), shell("other", on_term("exit 5"))]
        pod = nsbox.Pod("web", apps, primary="main", restart_policy="Never")
        with pod:
            assert pod.wait(scaled(8)) == phase
            assert pod["deaf"].state.exit_code == 137


def test_the_end_of_another_than_the_primary_does_not() -> None:
    apps = [sleeper("main"), shell("other", "exit 1")]
    with nsbox.Pod("web", apps, primary="main", restart_policy="Never") as pod:
        with pytest.raises(TimeoutError):
            pod.wait(0.1)
        assert (pod.phase, pod["other"].state.exit_code) == ("Running", 1)


@pytest.mark.kernel
def test_stop_ends_apps_then_sidecars_in_reverse_then_pause() -> None:
    helpers = [sidecar("one", on_term("exit 0")), sidecar("two", on_term("exit 0"))]
    apps = [shell("a", on_term("exit 0")), shell("b", on_term("exit 0"))]
    pod = nsbox.Pod("web", apps, init_containers=helpers).start()
    for name in ("one", "two", "a", "b"):
        wait_log(pod[name], "ready")
    with pidfds(pod.pause_pid) as (pause,):
        pod.stop(grace=scaled(20))
        assert ended(pause)
    died = events(pod, "Died")
    assert set(died[:2]) == {"Died a", "Died b"}
    assert died[2:] == ["Died two", "Died one"]
    assert pod.phase == "Succeeded"
    assert [e.message for e in pod.events if e.reason == "Killing"] == [f"grace {scaled(20):g} s"]
    moments = [e.at for e in pod.events]
    assert moments == sorted(moments)


def test_apps_are_asked_at_the_same_time_and_share_the_grace() -> None:
    apps = [shell(name, on_term("echo deaf")) for name in "abc"]
    with nsbox.Pod("web", apps) as pod:
        for name in "abc":
            wait_log(pod[name], "ready")
        started = time.monotonic()
        pod.stop(grace=0.4)
        took = time.monotonic() - started
        assert 0.4 <= took < 0.4 + scaled(0.6)  # one after another: 1.2 s
        assert all("deaf" in pod[name].logs() for name in "abc")


def test_when_stop_returns_everything_is_said() -> None:
    for _ in range(5):
        with nsbox.Pod("web", [sleeper("a"), sleeper("b")]) as pod:
            pod.stop(grace=0)
            assert [pod[n].state.exit_code for n in "ab"] == [137, 137]
            assert (pod.phase, pod.pause_pid) == ("Failed", None)


@pytest.mark.parametrize("verb", ["wait", "close", "stop"])
def test_who_comes_while_it_ends_stays_until_it_has(verb: str) -> None:
    """Pause is stopped, so that its end takes a second of the thread that sees to it."""
    apps = [shell("a", on_term("exit 0"))]
    with nsbox.Pod("web", apps, restart_policy="Never") as pod, pidfds(pod.pause_pid) as (pause,):
        wait_log(pod["a"], "ready")
        send(pod.pause_pid, signal.SIGSTOP)
        pod["a"].current.stop(scaled(5))
        poll_until(lambda: pod.pause_pid is None, 5)
        getattr(pod, verb)()
        assert ended(pause)
        assert pod.phase == "Succeeded"


def test_stop_and_close_again_do_nothing() -> None:
    pod = nsbox.Pod("web", [shell("a", on_term("exit 0"))]).start()
    wait_log(pod["a"], "ready")
    pod.stop(scaled(10))
    before = (pod.phase, len(pod.events))
    pod.stop()
    pod.close()
    pod.close()
    assert (pod.phase, len(pod.events)) == before == ("Succeeded", before[1])


@own_process()
def test_a_forked_child_has_no_say_in_it() -> None:
    """Nor does it end what its parent is in when it leaves the block."""
    with nsbox.Pod("web", [sleeper("a")]) as pod:

        def say() -> str:
            restarted = functools.partial(pod["a"].wait_restarted, 1)
            for verb in (pod.wait, pod.status, pod.stop, restarted, pod["a"].logs):
                with pytest.raises(nsbox.StateError, match="forked child"):
                    verb()
            pod.close()
            return "left"

        assert in_a_forked_child(say) == "left"
        assert pod.status().containers["a"].name == "Running"


def test_the_block_ends_it_when_it_raises() -> None:
    pod = nsbox.Pod("web", [sleeper("a")])
    with ExitStack() as keep:

        def body() -> None:
            with pod:
                held.extend(keep.enter_context(pidfds(pod.pause_pid, pod["a"].pid)))
                raise KeyError

        held: list[int] = []
        with pytest.raises(KeyError):
            body()
        assert [ended(fd) for fd in held] == [True, True]


@own_process()
def test_a_dropped_pod_warns_and_is_ended() -> None:
    pod = nsbox.Pod("web", [sleeper("a")]).start()
    with pidfds(pod.pause_pid, pod["a"].pid) as fds:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del pod
            gc.collect()
        assert {w.category for w in seen} == {ResourceWarning}
        assert any("nsbox.Pod 'web'" in str(w.message) for w in seen)
        assert all(ended(fd, 5) for fd in fds)


def test_str_is_a_table_of_its_containers() -> None:
    with nsbox.Pod("web", [sleeper("a")], init_containers=[sidecar("helper")]) as pod:
        title, *lines = str(pod).splitlines()
        assert title == "Pod web  Running"
        assert [line.split() for line in lines] == [
            ["helper", "Running", "restarts", "0", "pid", str(pod["helper"].pid)],
            ["a", "Running", "restarts", "0", "pid", str(pod["a"].pid)],
        ]
        assert repr(pod) == "<nsbox.Pod 'web' Running>"
        assert repr(pod["a"]) == "<nsbox.PodContainer 'a' Running restarts=0>"
    assert "pid -" in str(pod)


def test_status_is_a_snapshot() -> None:
    with nsbox.Pod("web", [sleeper("a")]) as pod:
        before = pod.status()
        assert before.containers["a"].name == "Running"
        pod.stop(grace=0)
        assert (before.phase, before.containers["a"].name) == ("Running", "Running")
        assert pod.status().containers["a"].name == "Terminated"
