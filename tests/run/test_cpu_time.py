# SPDX-License-Identifier: Apache-2.0
"""Limits(cpu_time=): the CPU time of the whole tree, by whatever counts it here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import TIMEOUT_SCALE, poll_until, scaled

import nsbox
from nsbox import Limits, Reason, cputime, probe

if TYPE_CHECKING:
    from nsbox.host import Host

pytestmark = [pytest.mark.userns, pytest.mark.kernel]

BURN = "while :; do :; done"
TWO = f"(setsid sh -c '{BURN}') & {BURN}"
#: What may be used beyond the limit: one look more, by all processors, and the kill itself.
SLACK = scaled(0.3)


def burnt(done: nsbox.Completed) -> float:
    return done.usage.cpu_user + done.usage.cpu_system


def without_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an ordinary user without delegation has it."""
    bare: Host = dataclasses.replace(probe.host(), controllers=(), cgroup_version=0)
    monkeypatch.setattr(probe, "host", lambda **_: bare)
    monkeypatch.setattr(probe, "host_of", lambda _: bare)


@pytest.fixture(params=["as it is", "without cgroups"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "without cgroups":
        without_cgroups(monkeypatch)
    return str(request.param)


def ends_a_tree(done: nsbox.Completed, limit: float) -> None:
    assert (done.reason, done.returncode, done.limits_hit) == (Reason.CPU_TIME, -9, ("cpu_time",))
    assert limit <= burnt(done) < limit + SLACK
    assert not done.ok


def test_a_tree_is_ended_when_it_has_used_it_up(counted: str) -> None:
    """Two processes, each with less than the limit."""
    limit = scaled(0.4)
    with kit.at_most(5):
        done = kit.sh(TWO, limits=Limits(cpu_time=limit))
    ends_a_tree(done, limit)
    cgroup = probe.host().cgroup_version
    assert done.enforcement["cpu_time"].startswith(f"cgroup v{cgroup}" if cgroup else "/proc/PID")


def test_processes_that_ended_count_too(counted: str) -> None:
    """Many that live for some milliseconds each, and are waited for."""
    limit = scaled(0.3)
    one = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done"
    done = kit.sh(f"while :; do sh -c '{one}'; done", limits=Limits(cpu_time=limit))
    ends_a_tree(done, limit)


UNWAITED = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        until = time.process_time() + {}
        while time.process_time() < until: pass
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass
"""


def test_children_that_nobody_waits_for_count_too(counted: str) -> None:
    limit = scaled(0.5)
    done = kit.python(UNWAITED.format(scaled(0.2)), limits=Limits(cpu_time=limit, wall=scaled(8)))
    assert done.reason is Reason.CPU_TIME


def test_a_nested_pid_namespace_counts_too(counted: str) -> None:
    limit = scaled(0.3)
    script = f"exec unshare --user --map-root-user --pid --fork sh -c '{BURN}'"
    keywords: dict[str, Any] = {"limits": Limits(cpu_time=limit, wall=scaled(8))}
    done = kit.sh(script, profile="standard", **keywords)
    assert done.reason is Reason.CPU_TIME, done


def test_time_that_is_slept_is_not_used(counted: str) -> None:
    limit = Limits(cpu_time=scaled(0.3))
    assert kit.out(kit.sh("sleep 0.5; echo slept", limits=limit)) == "slept"


def test_looks_are_rare_while_it_cannot_be_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = cputime.Meter.look
    monkeypatch.setattr(cputime.Meter, "look", lambda self: looks.append(1) or look(self))
    kit.run("sleep", "0.5", limits=Limits(cpu_time=1000))
    assert looks == []
    kit.sh(BURN, limits=Limits(cpu_time=0.1))
    assert len(looks) >= 1


def test_used_up_is_used_up_when_nobody_saw_it_in_time(
    counted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict that depends on who is quicker would be none."""
    monkeypatch.setattr(cputime.Meter, "look", lambda self: setattr(self, "due", 1e12))
    burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; exit 3"
    done = kit.sh(burn, limits=Limits(cpu_time=0.02))
    assert (done.reason, done.returncode) == (Reason.CPU_TIME, 3)
    assert kit.sh(burn, limits=Limits(cpu_time=scaled(60))).reason is Reason.EXITED


def test_the_kernel_ends_a_process_when_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cputime.Meter, "look", lambda self: setattr(self, "due", 1e12))
    done = kit.sh(f"ulimit -t; {BURN}", limits=Limits(cpu_time=0.2), init=False)
    assert (done.stdout, done.reason, done.returncode) == ("2\n", Reason.CPU_TIME, -9)


def test_a_popen_needs_nobody_who_waits(counted: str) -> None:
    limit = scaled(0.3)
    with nsbox.Popen(["sh", "-c", TWO], limits=Limits(cpu_time=limit)) as process:
        poll_until(lambda: process.poll() is not None, 20, what="its end")
        assert (process.returncode, process.reason) == (-9, Reason.CPU_TIME)
        usage = process.usage()
        assert usage is not None
        assert usage.cpu_user + usage.cpu_system >= limit


def test_communicate_says_why(counted: str) -> None:
    args = ["sh", "-c", f"echo begun; {BURN}"]
    with nsbox.Popen(args, limits=Limits(cpu_time=scaled(0.2)), stdout=nsbox.PIPE) as process:
        assert process.communicate()[0] == b"begun\n"
        assert process.reason is Reason.CPU_TIME


def test_a_container_is_ended_and_says_why(counted: str) -> None:
    with nsbox.Container(["sh", "-c", TWO], limits=Limits(cpu_time=scaled(0.3))) as container:
        poll_until(lambda: container.status() == "stopped", 20, what="its end")
        result = container.result()
    assert (result.reason, result.limits_hit) == (Reason.CPU_TIME, ("cpu_time",))


def test_a_dropped_popen_is_looked_at_no_more() -> None:
    with nsbox.Popen(["sh", "-c", BURN], limits=Limits(cpu_time=scaled(60))) as process:
        meter = process._meter
    assert meter is not None
    assert meter._timer is not None
    assert meter._timer.call is None


@pytest.mark.parametrize("first", ["wall", "cpu_time"])
def test_the_limit_that_comes_first_is_the_reason(first: str) -> None:
    short, long = scaled(0.3), scaled(30)
    limits = {"wall": long, "cpu_time": long, first: short}
    done = kit.sh(BURN, limits=Limits(**limits))
    assert done.limits_hit == (first,)


def test_without_a_cgroup_and_a_pid_namespace_nothing_could_count_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_cgroups(monkeypatch)
    keywords: dict[str, Any] = {"namespaces": kit.spaces("mnt"), "limits": Limits(cpu_time=1)}
    with pytest.raises(nsbox.Unavailable) as caught:
        nsbox.run(["true"], **keywords)
    assert caught.value.feature == "limits.cpu_time"
    done = kit.run("true", best_effort=True, **keywords)
    assert done.enforcement["cpu_time"].startswith("missing:")


def test_its_count_adds_up_with_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over /proc against the rusage of the whole tree."""
    without_cgroups(monkeypatch)
    totals: list[float] = []
    look = cputime._Walk.__call__

    def note(self: cputime._Walk) -> float:
        totals.append(look(self))
        return totals[-1]

    monkeypatch.setattr(cputime._Walk, "__call__", note)
    done = kit.sh(TWO, limits=Limits(cpu_time=scaled(0.4)))
    assert totals == sorted(totals)
    assert totals[-1] <= burnt(done) + 0.02


def test_a_program_with_less_than_its_share_is_left_alone() -> None:
    """One that sleeps most of the time meets no limit on the way."""
    script = "for i in 1 2 3 4 5; do sleep 0.05; done; echo done"
    done = kit.sh(script, limits=Limits(cpu_time=0.2 * TIMEOUT_SCALE))
    assert kit.out(done) == "done"
