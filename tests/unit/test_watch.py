# SPDX-License-Identifier: Apache-2.0
"""The library's one thread: who is called, and who is no longer."""

from __future__ import annotations

import os
import threading

import pytest
from support import poll_until

from nsbox import watch

pytestmark = pytest.mark.leaks_ok("pipes within this process, which the tests close")


def test_readable_descriptors_are_told_until_they_are_removed() -> None:
    reader, writer = os.pipe()
    heard: list[bytes] = []
    keeper = watch.get()
    keeper.add(reader, lambda: heard.append(os.read(reader, 1)))
    os.write(writer, b"ab")
    poll_until(lambda: heard == [b"a", b"b"], 5)
    keeper.remove(reader)
    keeper.remove(reader)
    os.write(writer, b"c")
    assert os.read(reader, 1) == b"c"
    for fd in (reader, writer):
        os.close(fd)


def test_a_late_removal_does_not_take_who_has_the_number_now() -> None:
    """A call under way removed the number of a descriptor that another thread had closed, and
    whoever had got the number was never called again."""
    keeper = watch.get()
    reader, writer = os.pipe()
    entered, reused, removed, heard = (threading.Event() for _ in range(4))

    def late() -> None:
        entered.set()
        reused.wait(5)
        keeper.remove(reader)
        removed.set()

    keeper.add(reader, late)
    os.write(writer, b"x")
    assert entered.wait(5)
    keeper.remove(reader)
    os.close(reader)
    other, other_writer = os.pipe()
    os.dup2(other, reader)  # the same number

    def hear() -> None:
        os.read(reader, 1)
        heard.set()

    keeper.add(reader, hear)
    reused.set()
    assert removed.wait(5)
    os.write(other_writer, b"y")
    assert heard.wait(5)
    keeper.remove(reader)
    for fd in {reader, writer, other, other_writer}:
        os.close(fd)


def test_a_call_that_raises_does_not_end_the_watch(capfd: pytest.CaptureFixture[str]) -> None:
    keeper, done = watch.get(), threading.Event()

    def fail() -> None:
        raise RuntimeError("on purpose")

    keeper.call_later(0, fail)
    keeper.call_later(0.01, done.set)
    assert done.wait(5)
    assert "on purpose" in capfd.readouterr().err


def test_a_cancelled_timer_is_not_called() -> None:
    keeper, done = watch.get(), threading.Event()
    calls: list[int] = []
    keeper.call_later(0.02, lambda: calls.append(1)).cancel()
    keeper.call_later(0.03, done.set)
    assert done.wait(5)
    assert calls == []
