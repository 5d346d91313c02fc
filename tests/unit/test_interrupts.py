# SPDX-License-Identifier: Apache-2.0
"""^C waits while something is half made, and only then."""
# ruff: noqa: PT012  (where in the block it is raised is what is tested)

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

from nsbox.interrupts import Held, Released

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def python_s_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_it_comes_at_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Held():
        interrupt()
        with Held():
            interrupt()
        done.append(1)
    assert done


def test_it_comes_at_once_in_a_wait_and_not_after_it() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Held():
        with pytest.raises(KeyboardInterrupt), Released():
            interrupt()
            done.append("never")
        interrupt()
        done.append("held again")
    assert done == ["held again"]


def test_what_came_before_a_wait_ends_it() -> None:
    done = []
    with Held():
        interrupt()
        with pytest.raises(KeyboardInterrupt), Released():
            done.append("never")
        done.append("held again")
    assert done == ["held again"]


def test_in_a_wait_it_can_be_held_again() -> None:
    done = []
    with Held():
        with pytest.raises(KeyboardInterrupt), Released():
            with Held():
                interrupt()
                done.append("held")
            done.append("never")
        done.append("held again")
    assert done == ["held", "held again"]


def test_another_thread_has_no_part_in_it() -> None:
    def hold() -> None:
        with Held(), Released(), Held():
            pass

    with pytest.raises(KeyboardInterrupt), Held():
        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
        interrupt()
        with pytest.raises(KeyboardInterrupt), Released():
            thread = threading.Thread(target=hold)
            thread.start()
            thread.join()
        interrupt()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_where_python_does_not_get_it_nothing_is_changed(handler: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    with Held():
        assert signal.getsignal(signal.SIGINT) == handler
        with Released(), Held():
            assert signal.getsignal(signal.SIGINT) == handler
    assert signal.signal(signal.SIGINT, signal.default_int_handler) == handler
