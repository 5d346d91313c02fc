# SPDX-License-Identifier: Apache-2.0
"""created, running, stopped: which verb is allowed when, and what it leads to."""

from __future__ import annotations

import gc
import warnings

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pod.kit import ended, own_process, pidfds
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
    with pytest.raises(nsbox.StateError, match="never ran"):
        container.wait()
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


class Lifecycle(RuleBasedStateMachine):
    """The model is the status, and whether it ever ran."""

    def __init__(self) -> None:
        super().__init__()
        self.box = nsbox.Container(["sleep", "1000"])
        self.model, self.ran = "created", False

    def teardown(self) -> None:
        self.box.close()

    def refuses(self, verb: str) -> None:
        with pytest.raises(nsbox.StateError) as caught:
            getattr(self.box, verb)()
        assert caught.value.status == self.model

    @rule()
    def start(self) -> None:
        if self.model != "created":
            self.refuses("start")
            return
        self.box.start()
        self.model, self.ran = "running", True

    @rule()
    def stop(self) -> None:
        if self.model == "created":
            self.refuses("stop")
            return
        assert self.box.stop(grace=1) == (-9 if self.ran else None)
        self.model = "stopped"

    @rule()
    def kill(self) -> None:
        if self.model == "created":
            self.refuses("kill")
            return
        self.box.kill()
        if self.model == "running":
            assert self.box.wait(scaled(5)) == -9
        self.model = "stopped"

    @precondition(lambda self: self.model == "running")
    @rule()
    def wait_in_vain(self) -> None:
        with pytest.raises(nsbox.TimeoutExpired):
            self.box.wait(0.001)

    @precondition(lambda self: self.model == "created")
    @rule()
    def wait_for_nothing(self) -> None:
        self.refuses("wait")

    @rule()
    def close(self) -> None:
        self.box.close()
        self.model = "stopped"

    @invariant()
    def a_process_exists_exactly_while_running(self) -> None:
        assert self.box.status() == self.model
        assert (self.box.pid is not None) == (self.model == "running")
        assert (self.box.nspid == 1) == (self.model == "running")
        assert bool(self.box.namespaces) == (self.model == "running")
        assert (self.box.pidfd >= 0) == (self.model == "running")


def test_any_sequence_of_verbs_keeps_to_the_table() -> None:
    run_state_machine_as_test(
        Lifecycle,
        settings=settings(
            max_examples=25,
            stateful_step_count=8,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
