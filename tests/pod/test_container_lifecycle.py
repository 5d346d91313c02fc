# SPDX-License-Identifier: Apache-2.0
"""created, running, paused, stopped: which verb is allowed when, and what it leads to."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pod.kit import ended, on_term, own_process, pidfds, wait_log
from support import scaled

import nsbox

pytestmark = pytest.mark.userns


@pytest.mark.kernel
def test_created_running_stopped() -> None:
    container = nsbox.Container(["sleep", "1000"])
    assert container.status() == "created"
    assert container.start() is container
    assert container.status() == "running"
    container.stop()
    assert container.status() == "stopped"
    container.close()


@pytest.mark.parametrize("verb", ["stop", "kill", "wait"])
def test_a_created_container_refuses(verb: str) -> None:
    container = nsbox.Container(["sleep", "1000"], name="box")
    with pytest.raises(nsbox.StateError, match=f"'box' is created: cannot {verb}") as caught:
        getattr(container, verb)()
    assert caught.value.status == "created"
    container.close()


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_a_container_starts_once(status: str) -> None:
    with nsbox.Container(["sleep", "1000"], name="box") as container:
        if status == "stopped":
            container.stop()
        with pytest.raises(nsbox.StateError, match=f"'box' is {status}: cannot start") as caught:
            container.start()
        assert caught.value.status == status


def test_stopping_a_stopped_container_returns_the_recorded_code() -> None:
    with nsbox.Container(["sh", "-c", "exit 4"]) as container:
        assert container.wait(scaled(5)) == 4
        assert [container.stop(), container.stop(), container.wait()] == [4, 4, 4]
        container.kill()


NO_SECONDS = pytest.mark.parametrize("value", ["1", True, float("nan")], ids=repr)


@NO_SECONDS
def test_seconds_are_a_number(value: Any) -> None:
    with nsbox.Container(["sleep", "1000"]) as container:
        for call, field in ((container.wait, "timeout"), (container.stop, "grace")):
            with pytest.raises(nsbox.SpecError) as caught:
                call(value)
            assert caught.value.field == field
        with pytest.raises(nsbox.SpecError, match="grace"):
            container.stop(-1)
        with pytest.raises(nsbox.TimeoutExpired):
            container.wait(-1)  # a deadline that has passed
        assert container.status() == "running"


@NO_SECONDS
def test_seconds_of_a_pod_are_too(value: Any) -> None:
    with nsbox.Pod("web", [nsbox.ContainerSpec("a", ["sleep", "1000"])]) as pod:
        for call, field in ((pod.wait, "timeout"), (pod.stop, "grace")):
            with pytest.raises(nsbox.SpecError) as caught:
                call(value)
            assert caught.value.field == field
        with pytest.raises(nsbox.SpecError, match="grace"):
            pod.stop(-1)
        with pytest.raises(TimeoutError):
            pod.wait(-1)
        assert pod.phase == "Running"


def test_close_is_idempotent_and_ends_it() -> None:
    container = nsbox.Container(["sleep", "1000"]).start()
    with pidfds(container.pid) as (pidfd,):
        container.close()
        assert ended(pidfd)
    container.close()
    assert (container.status(), container.pid) == ("stopped", None)


def test_closing_what_never_ran_makes_it_unstartable() -> None:
    container = nsbox.Container(["sleep", "1000"])
    container.close()
    with pytest.raises(nsbox.StateError):
        container.start()
    for verb in (container.wait, container.result):
        with pytest.raises(nsbox.StateError, match="never ran: it was closed before") as caught:
            verb()
        assert caught.value.status == container.status() == "stopped"
    assert container.stop() is None


def test_the_block_starts_it_and_ends_it_when_it_raises() -> None:
    container = nsbox.Container(["sleep", "1000"])

    def body() -> None:
        with container as entered:
            assert entered is container
            assert container.status() == "running"
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert container.status() == "stopped"


def test_a_container_that_could_not_start_is_stopped() -> None:
    container = nsbox.Container(["/no/such/program"])
    with pytest.raises(nsbox.CommandNotFound):
        container.start()
    assert (container.status(), container.pid, container.nspid) == ("stopped", None, None)
    for verb in (container.wait, container.result):
        with pytest.raises(nsbox.StateError, match="never ran: it could not be st") as caught:
            verb()
        assert "'/no/such/program' was not found in the sandbox" in str(caught.value)
        assert caught.value.status == "stopped"
    with pytest.raises(nsbox.StateError):
        container.start()
    container.close()


def test_the_result_needs_an_end() -> None:
    container = nsbox.Container(["sleep", "1000"], name="box")
    with pytest.raises(nsbox.StateError, match="is created"):
        container.result()
    with container, pytest.raises(nsbox.StateError, match="is running") as caught:
        container.result()
    assert caught.value.status == "running"


def test_repr_says_name_status_and_pid() -> None:
    container = nsbox.Container(["sleep", "1000"], name="box")
    assert repr(container) == "<nsbox.Container 'box' created>"
    with container:
        assert repr(container) == f"<nsbox.Container 'box' running as {container.pid}>"
    assert repr(container) == "<nsbox.Container 'box' stopped>"
    assert nsbox.Container(["/bin/sleep", "1"]).name == "sleep"


@own_process()
def test_a_dropped_container_warns_and_is_ended() -> None:
    container = nsbox.Container(["sleep", "1000"], name="box").start()
    with pidfds(container.pid) as (pidfd,):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del container
            gc.collect()
        assert [w.category for w in seen] == [ResourceWarning]
        assert "'box' running" in str(seen[0].message)
        assert ended(pidfd, 5)


#: What is run, and the code that stop() leads to, without and with nsbox-init: as PID 1 a
#: program does not hear a signal for which it has no handler.
PAYLOADS = {
    "deaf": ("echo up; exec sleep 1000", {False: -9, True: -15}),
    "handler": (on_term("exit 3").replace("ready", "up"), {False: 3, True: 3}),
}


class Lifecycle(RuleBasedStateMachine):
    """The model: the status, the code once it is known, and what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.box = nsbox.Container(["true"])
        self.model, self.code, self.log = "created", None, ""
        self.at_stop = 0
        self.pids_max = 64

    @initialize(payload=st.sampled_from(sorted(PAYLOADS)), init=st.booleans(),
                started=st.sampled_from([True, True, False]))  # fmt: skip
    def make(self, payload: str, init: bool, started: bool) -> None:
        script, codes = PAYLOADS[payload]
        limits = nsbox.Limits(pids=self.pids_max)
        self.box = nsbox.Container(["sh", "-c", script], init=init, name="box", limits=limits,
                                   best_effort=True)  # fmt: skip
        self.at_stop = codes[init]
        if started:
            self.start()

    def teardown(self) -> None:
        self.box.close()

    def refuses(self, verb: str, *args: object) -> None:
        with pytest.raises(nsbox.StateError, match=f"'box' is {self.model}") as caught:
            getattr(self.box, verb)(*args)
        assert caught.value.status == self.model

    def lacks_a_cgroup(self, verb: str, *args: object) -> bool:
        """Where an ordinary user can make none, what goes by it says so."""
        if self.box.cgroup is not None:
            return False
        with pytest.raises(nsbox.Unavailable, match="has no cgroup"):
            getattr(self.box, verb)(*args)
        return True

    @rule()
    def start(self) -> None:
        if self.model != "created":
            self.refuses("start")
            return
        assert self.box.start() is self.box
        self.model, self.log = "running", "up\n"
        wait_log(self.box, "up")

    @rule(grace=st.sampled_from([0, 10]))
    def stop(self, grace: float) -> None:
        if self.model == "created":
            self.refuses("stop")
            return
        if self.model in ("running", "paused"):
            self.code = self.at_stop if grace else -9
        assert self.box.stop(grace=scaled(grace)) == self.code
        self.model = "stopped"

    @rule()
    def kill(self) -> None:
        if self.model == "created":
            self.refuses("kill")
            return
        self.box.kill()
        if self.model in ("running", "paused"):
            self.code = -9
            assert self.box.wait(scaled(5)) == -9
        self.model = "stopped"

    @rule()
    def pause(self) -> None:
        if self.model != "running":
            self.refuses("pause")
        elif not self.lacks_a_cgroup("pause"):
            self.box.pause()
            self.model = "paused"
            assert self.box.cgroup is not None
            assert self.box.pid in self.box.cgroup.processes(), "it is there, and waits"

    @rule()
    def resume(self) -> None:
        if self.model != "paused":
            self.refuses("resume")
            return
        self.box.resume()
        self.model = "running"

    @rule(pids=st.integers(20, 60))
    def update(self, pids: int) -> None:
        limits = nsbox.Limits(pids=pids)
        if self.model not in ("running", "paused"):
            self.refuses("update", limits)
        elif not self.lacks_a_cgroup("update", limits):
            self.box.update(limits)
            self.pids_max = pids

    @precondition(lambda self: self.model in ("running", "paused"))
    @rule()
    def wait_in_vain(self) -> None:
        with pytest.raises(nsbox.TimeoutExpired):
            self.box.wait(0.001)

    @precondition(lambda self: self.model == "created")
    @rule()
    def wait_for_nothing(self) -> None:
        self.refuses("wait")

    @precondition(lambda self: self.model == "stopped")
    @rule()
    def wait_for_what_has_ended(self) -> None:
        if self.code is None:
            with pytest.raises(nsbox.StateError, match="never ran"):
                self.box.wait()
        else:
            assert self.box.wait() == self.code

    @rule()
    def close(self) -> None:
        self.box.close()
        if self.model in ("running", "paused"):
            self.code = -9
        self.model = "stopped"

    @rule()
    def result(self) -> None:
        if self.code is None:
            self.refuses("result")
            return
        result = self.box.result()
        assert result.returncode == self.code
        assert result.reason is (nsbox.Reason.SIGNALED if self.code < 0 else nsbox.Reason.EXITED)

    @rule()
    def execute(self) -> None:
        args = ["sh", "-c", "echo also; exit 6"]
        if self.model != "running":
            self.refuses("exec", args)
            return
        done = self.box.exec(args, capture_output=True)
        assert (done.returncode, done.stdout) == (6, b"also\n")

    @rule()
    def popen(self) -> None:
        args = ["sh", "-c", "read -r line; echo got $line; exit 7"]
        if self.model != "running":
            self.refuses("popen", args)
            return
        with self.box.popen(args, stdin=nsbox.PIPE, stdout=nsbox.PIPE) as process:
            assert process.poll() is None
            assert process.communicate(b"it\n") == (b"got it\n", None)
            assert process.returncode == 7

    @rule()
    def explain(self) -> None:
        steps = [step.name for step in self.box.explain().steps]
        assert "clone3" in steps
        assert steps[-1] == "exec"

    @invariant()
    def a_process_exists_exactly_while_it_runs_or_is_paused(self) -> None:
        running = self.model in ("running", "paused")
        assert self.box.status() == self.model
        assert (self.box.pid is not None) == running
        assert (self.box.nspid == 1) == running
        assert bool(self.box.namespaces) == running
        assert (self.box.pidfd >= 0) == running
        assert self.box.logs() == self.log
        if self.box.cgroup is not None:
            spare = int(self.box.spec.init)  # nsbox-init is not the payload's
            assert int(self.box.cgroup.get("pids.max")) == self.pids_max + spare
            assert self.box.cgroup.frozen() == (self.model == "paused")
        assert repr(self.box).startswith(f"<nsbox.Container {self.box.name!r} {self.model}")


def test_any_sequence_of_verbs_keeps_to_the_table() -> None:
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=100,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
