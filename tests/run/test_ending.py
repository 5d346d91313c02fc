# SPDX-License-Identifier: Apache-2.0
"""Why a run ends: its own exit, a signal, a time-out, a limit of output; and what check says."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
from typing import Any

import pytest
from run import kit
from support import poll_until, scaled

import nsbox
from nsbox import Limits, Reason

pytestmark = pytest.mark.userns
CODES = [0, 1, 2, 125, 126, 127, 128, 255]


@pytest.mark.parametrize("code", CODES)
def test_exit_code_is_the_payloads_own(code: int) -> None:
    done = kit.sh(f"exit {code}")
    assert (done.returncode, done.reason, done.ok) == (code, Reason.EXITED, code == 0)


@pytest.mark.kernel
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_exit_code_with_and_without_init(init: bool) -> None:
    assert kit.sh("exit 41", init=init).returncode == 41


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "ABRT", "PIPE", "ALRM", "USR1"])
def test_a_signal_is_negative_and_signaled(name: str) -> None:
    done = kit.sh(f"kill -{name} $$")
    assert done.returncode == -getattr(signal, f"SIG{name}")
    assert done.reason is Reason.SIGNALED
    assert not done.ok


def test_an_exit_code_cannot_forge_a_signal_or_a_reason() -> None:
    done = kit.sh("exit 137")
    assert (done.returncode, done.reason, done.limits_hit) == (137, Reason.EXITED, ())
    done = kit.sh("kill -9 $$")
    assert (done.returncode, done.reason, done.limits_hit) == (-9, Reason.SIGNALED, ())


# -- timeout= -----------------------------------------------------------------------------------


@pytest.mark.kernel
def test_timeout_raises_and_carries_what_there_was() -> None:
    with pytest.raises(nsbox.TimeoutExpired) as caught, kit.at_most(1.5):
        kit.sh("echo begun; echo err >&2; exec sleep 1000", timeout=scaled(0.4))
    error = caught.value
    assert isinstance(error, subprocess.TimeoutExpired)
    assert error.timeout == scaled(0.4)
    assert error.cmd[0] == "/bin/sh"
    assert (error.output, error.stderr) == ("begun\n", "err\n")
    done = error.completed
    assert isinstance(done, nsbox.Completed)
    assert (done.returncode, done.reason) == (-9, Reason.TIMEOUT)
    assert (done.stdout, done.stderr) == ("begun\n", "err\n")
    assert done.usage.wall >= scaled(0.4)


def _with_mark(mark: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if mark.encode() in file.read() and int(name) != os.getpid():
                    found.append(int(name))
        except OSError:  # has ended meanwhile
            pass
    return found


@pytest.mark.kernel
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_timeout_kills_the_whole_tree(init: bool) -> None:
    mark = f"4242.{os.getpid()}"
    tree = f"trap '' TERM HUP; setsid sleep {mark} & (sleep {mark} & sleep {mark}) & wait"
    with nsbox.Popen(["sh", "-c", tree], init=init) as process:
        poll_until(lambda: len(_with_mark(f"sleep\0{mark}")) == 3, what="three sleepers")
        with pytest.raises(nsbox.TimeoutExpired):
            process.communicate(timeout=0.05)
        assert _with_mark(f"sleep\0{mark}") == []


def test_a_payload_that_ignores_term_is_ended_all_the_same() -> None:
    with pytest.raises(nsbox.TimeoutExpired), kit.at_most(1.5):
        kit.sh("trap '' TERM INT HUP; while :; do :; done", timeout=scaled(0.3))


def test_timeout_zero_expires_at_once() -> None:
    with pytest.raises(nsbox.TimeoutExpired):
        kit.run("sleep", "1000", timeout=0)


def test_a_timeout_that_does_not_pass_changes_nothing() -> None:
    assert kit.out(kit.run("echo", "hello", timeout=PLENTY)) == "hello"


PLENTY = scaled(60)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5", True])
def test_a_timeout_that_is_no_duration_is_refused(timeout: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], timeout=timeout)
    assert caught.value.field == "timeout"


# -- Limits(wall=) ------------------------------------------------------------------------------


@pytest.mark.kernel
def test_wall_limit_is_a_reason_not_an_exception() -> None:
    done = kit.sh("echo begun; exec sleep 1000", limits=Limits(wall=scaled(0.4)))
    assert (done.reason, done.returncode, done.stdout) == (Reason.TIMEOUT, -9, "begun\n")
    assert done.limits_hit == ("wall",)
    assert not done.ok


def test_the_shorter_of_timeout_and_wall_decides() -> None:
    done = kit.run("sleep", "1000", limits=Limits(wall=scaled(0.2)), timeout=PLENTY)
    assert done.limits_hit == ("wall",)
    with pytest.raises(nsbox.TimeoutExpired) as caught:
        kit.run("sleep", "1000", limits=Limits(wall=PLENTY), timeout=scaled(0.2))
    assert caught.value.completed.limits_hit == ()


def test_wall_limit_of_a_popen_needs_no_caller() -> None:
    limits = Limits(wall=scaled(0.3))
    with nsbox.Popen(["sleep", "1000"], limits=limits) as process, kit.at_most(3):
        assert process.wait(kit.PATIENCE) == -9
        assert process.reason is Reason.TIMEOUT


def test_wall_limit_of_communicate() -> None:
    limits = Limits(wall=scaled(0.3))
    with nsbox.Popen(["sh", "-c", "echo a; exec sleep 1000"], limits=limits,
                     stdout=nsbox.PIPE) as process:  # fmt: skip
        assert process.communicate()[0] == b"a\n"
        assert process.reason is Reason.TIMEOUT


# -- Limits(output=) ----------------------------------------------------------------------------


@pytest.mark.kernel
def test_output_limit_ends_a_flood_and_keeps_the_beginning() -> None:
    with kit.at_most(2):
        done = kit.run("yes", limits=Limits(output="64KiB"), text=False)
    assert (done.reason, done.truncated) == (Reason.OUTPUT_LIMIT, True)
    assert done.stdout == b"y\n" * 32768
    assert done.limits_hit == ("output",)


@pytest.mark.parametrize("redirect", ["", ">&2"], ids=["stdout", "stderr"])
def test_output_limit_is_for_each_stream(redirect: str) -> None:
    done = kit.sh(f"echo 1234567890 {redirect}; exec sleep 1000", limits=Limits(output=5))
    assert done.reason is Reason.OUTPUT_LIMIT
    assert "12345" in ((done.stdout, done.stderr) if redirect else (done.stdout,))


def test_output_up_to_the_limit_is_no_excess() -> None:
    done = kit.run("printf", "12345", limits=Limits(output=5))
    assert (done.stdout, done.truncated, done.reason) == ("12345", False, Reason.EXITED)


def test_output_over_the_limit_is_never_an_ordinary_exit() -> None:
    """The payload has ended long before anybody reads: nothing was there to be killed."""
    with nsbox.Popen(
        ["printf", "123456"], limits=Limits(output=5), stdout=nsbox.PIPE, init=False
    ) as process:
        assert select.select([process], [], [], kit.PATIENCE)[0]
        out, _ = process.communicate()
        assert out == b"12345"
        assert process.reason is Reason.OUTPUT_LIMIT


def test_output_that_is_not_captured_is_not_limited(capfd: pytest.CaptureFixture[str]) -> None:
    done = nsbox.run(["printf", "1234567890"], limits=Limits(output=5))
    assert done.ok
    assert capfd.readouterr().out == "1234567890"


# -- check= -------------------------------------------------------------------------------------


def test_check_raises_for_a_failure_and_carries_the_result() -> None:
    with pytest.raises(nsbox.CommandError) as caught:
        kit.sh("echo out; echo err >&2; exit 3", check=True)
    error = caught.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.output, error.stderr) == (3, "out\n", "err\n")
    assert error.completed.returncode == 3
    assert "exit status 3" in str(error)


def test_check_is_content_with_success() -> None:
    assert kit.run("true", check=True).ok


def test_check_raises_for_a_limit_and_names_it() -> None:
    with pytest.raises(nsbox.CommandError, match="TIMEOUT"):
        kit.run("sleep", "1000", limits=Limits(wall=scaled(0.1)), check=True)


def test_check_returncode_does_later_what_check_does() -> None:
    kit.run("true").check_returncode()
    with pytest.raises(nsbox.CommandError):
        kit.run("false").check_returncode()


def test_a_result_can_be_pickled() -> None:
    done = kit.run("echo", "hello")
    assert pickle.loads(pickle.dumps(done)) == done


# -- usage --------------------------------------------------------------------------------------


def test_usage_is_plausible() -> None:
    done = kit.sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 0.2")
    usage = done.usage
    assert 0.2 <= usage.wall < kit.PATIENCE
    assert 0.005 < usage.cpu_user + usage.cpu_system < usage.wall + 0.1
    assert 64 << 10 < usage.memory_peak < 64 << 20


def test_usage_counts_children_of_the_payload() -> None:
    """The shell itself only starts another one, and that burns or does not."""
    burn = "sh -c 'i=0; while [ $i -lt 80000 ]; do i=$((i+1)); done'; true"
    idle, busy = (kit.sh(script).usage.cpu_user for script in ("sh -c ':'; true", burn))
    assert busy > 5 * idle
    assert busy > 0.02


@pytest.mark.cgroup
def test_usage_of_the_whole_tree_by_its_cgroup() -> None:
    eat = "python3 -c 'import time; x = bytearray(40 << 20); time.sleep(0.2)'"
    usage = kit.sh(f"{eat} & {eat} & wait", limits=Limits(memory="512MiB", pids=32)).usage
    assert 80 << 20 < usage.memory_peak < 400 << 20
