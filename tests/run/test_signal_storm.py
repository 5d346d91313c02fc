# SPDX-License-Identifier: Apache-2.0
"""Signals of the caller's own, thousands a second, while sandboxes start."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest
from run import kit

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns
EVERY_S = 0.0002


@contextlib.contextmanager
def storm() -> Iterator[list[int]]:
    """SIGALRM, as often as the kernel gives it, to a handler in Python; the list counts."""
    count = [0]

    def handler(*_: object) -> None:
        count[0] += 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, EVERY_S, EVERY_S)
    try:
        yield count
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_a_signal_between_execing_and_started_is_no_failed_start(init: bool) -> None:
    """What had come before it was forgotten, and a payload that ran was called a failure."""
    with storm() as count:
        done = [nsbox.run(["sh", "-c", f"exit {n}"], init=init) for n in range(40)]
    assert [each.returncode for each in done] == list(range(40))
    assert count[0] > 40


def test_containers_start_and_stop_in_a_storm() -> None:
    with storm() as count:
        for _ in range(10):
            with nsbox.Container(["sleep", "1000"]) as container:
                assert container.stop(grace=0) == -9
    assert count[0] > 10


def test_a_pod_starts_in_a_storm() -> None:
    with storm(), nsbox.Pod("web", [nsbox.ContainerSpec("a", ["sleep", "1000"])]) as pod:
        assert pod["a"].pid is not None
        pod.stop(grace=0)


def test_input_and_output_are_whole_in_a_storm() -> None:
    data = bytes(range(256)) * 2000
    with storm():
        done = nsbox.run(["cat"], input=data, capture_output=True, timeout=kit.PATIENCE)
    assert done.stdout == data
