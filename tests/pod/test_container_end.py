# SPDX-License-Identifier: Apache-2.0
"""PID 1's life is the container's life: how it is ended, and what is said about it."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest
from pod.kit import children_of, ended, on_term, own_process, parent_of, pidfds, send, wait_log
from support import poll_until, scaled

import nsbox

pytestmark = pytest.mark.userns

TWO_IN_THE_BACKGROUND = "sleep 1000 & setsid sleep 1000 & echo ready; "


def background(container: nsbox.Container) -> list[int]:
    wait_log(container, "ready")
    return poll_until(lambda: len(c := children_of(container.pid)) == 2 and c, 5)


@pytest.mark.kernel
def test_background_children_die_with_pid_1_that_was_killed() -> None:
    with nsbox.Container(["sh", "-c", TWO_IN_THE_BACKGROUND + "wait"]) as container:
        with pidfds(*background(container)) as children:
            container.kill()
            assert container.wait(scaled(5)) == -9
            assert all(ended(child, 2) for child in children)


def test_pid_1_that_returns_takes_its_children_along() -> None:
    script = "sleep 1000 & trap 'exit 5' TERM; echo ready; wait"
    with nsbox.Container(["sh", "-c", script]) as container:
        wait_log(container, "ready")
        (child,) = poll_until(lambda: children_of(container.pid), 5)
        with pidfds(child) as (pidfd,):
            send(container.pid, signal.SIGTERM)
            assert container.wait(scaled(5)) == 5
            assert ended(pidfd, 2)
        assert container.status() == "stopped"


def test_the_end_of_a_child_says_nothing_about_the_container() -> None:
    script = "sh -c 'exit 3'; sh -c 'kill -9 $$'; echo still here; exec sleep 1000"
    with nsbox.Container(["sh", "-c", script]) as container:
        wait_log(container, "still here")
        assert container.status() == "running"


@pytest.mark.kernel
def test_stop_lets_the_handler_run() -> None:
    with nsbox.Container(["sh", "-c", on_term("echo bye; exit 7")]) as container:
        wait_log(container, "ready")
        started = time.monotonic()
        assert container.stop(grace=scaled(30)) == 7
        assert time.monotonic() - started < scaled(10)
        assert "bye" in container.logs()
        assert container.result().reason is nsbox.Reason.EXITED


@pytest.mark.kernel
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("echo ready; exec sleep 1000", id="no handler"),
        pytest.param("trap '' TERM; echo ready; exec sleep 1000", id="SIGTERM set to be ignored"),
    ],
)
def test_a_pid_1_that_cannot_hear_is_not_waited_for(script: str) -> None:
    with nsbox.Container(["sh", "-c", script]) as container:
        wait_log(container, "ready")
        started = time.monotonic()
        assert container.stop(grace=scaled(30)) == -9
        assert time.monotonic() - started < scaled(10)
        assert container.result().reason is nsbox.Reason.SIGNALED


def test_stop_insists_after_the_grace() -> None:
    with nsbox.Container(["sh", "-c", on_term("echo not yet")]) as container:
        wait_log(container, "ready")
        started = time.monotonic()
        assert container.stop(grace=0.3) == -9
        assert time.monotonic() - started >= 0.3
        assert "not yet" in container.logs()


def test_stop_without_grace_sends_no_sigterm() -> None:
    with nsbox.Container(["sh", "-c", on_term("echo heard")]) as container:
        wait_log(container, "ready")
        assert container.stop(grace=0) == -9
        assert "heard" not in container.logs()


def test_stop_reaches_the_command_below_init() -> None:
    with nsbox.Container(["sleep", "1000"], init=True) as container:
        started = time.monotonic()
        assert container.stop(grace=scaled(30)) == -15
        assert time.monotonic() - started < scaled(10)


def test_wait_times_out_and_it_goes_on() -> None:
    with nsbox.Container(["sleep", "1000"]) as container:
        with pytest.raises(nsbox.TimeoutExpired) as caught:
            container.wait(0.05)
        assert isinstance(caught.value, subprocess.TimeoutExpired)
        assert (caught.value.timeout, caught.value.cmd) == (0.05, ["sleep", "1000"])
        assert container.status() == "running"


@pytest.mark.parametrize("code", [0, 1, 255])
def test_the_code_of_pid_1_is_the_containers(code: int) -> None:
    with nsbox.Container(["sh", "-c", f"exit {code}"]) as container:
        assert container.wait(scaled(5)) == code
        result = container.result()
    assert (result.returncode, result.reason) == (code, nsbox.Reason.EXITED)
    assert result.ok == (code == 0)
    assert result.usage.wall > 0


def test_a_wall_limit_ends_it_with_that_reason() -> None:
    with nsbox.Container(["sleep", "1000"], limits=nsbox.Limits(wall=0.1)) as container:
        assert container.wait(scaled(5)) == -9
        result = container.result()
    assert result.reason is nsbox.Reason.TIMEOUT
    assert result.limits_hit == ("wall",)


@own_process()
def test_a_container_is_lost_with_its_launcher() -> None:
    with nsbox.Container(["sleep", "1000"]) as container:
        with pidfds(container.pid) as (pidfd,):
            send(parent_of(container.pid), signal.SIGKILL)
            assert ended(pidfd, 5)
        poll_until(lambda: container.status() == "stopped", 5)
        for verb in (container.wait, container.result):
            with pytest.raises(nsbox.StateError, match="lost") as caught:
                verb()
            assert caught.value.status == "lost"
        assert container.stop() is None
    with nsbox.Container(["true"]) as after:  # another launcher takes over
        assert after.wait(scaled(5)) == 0
