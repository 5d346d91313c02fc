# SPDX-License-Identifier: Apache-2.0
"""Threads, and programs that treat their children badly: no status is lost or seen by them."""

from __future__ import annotations

import pytest
from faults import kit

pytestmark = pytest.mark.userns


def test_a_thousand_exit_codes_from_eight_threads_with_sigchld_ignored() -> None:
    """And a thread that calls waitpid(-1) all the time never sees a child of nsbox's."""
    kit.run_scenario("exit_codes", kit.token(), "1000", "8")


@pytest.mark.kernel
def test_signals_are_told_with_sigchld_ignored() -> None:
    kit.run_scenario("signals_told", kit.token())


@pytest.mark.kernel
def test_the_end_of_the_spawning_thread_ends_no_sandbox() -> None:
    kit.run_scenario("threads_end", kit.token())


@pytest.mark.userns
@pytest.mark.parametrize("most", [16, 100, 256])
def test_a_limit_of_descriptors_under_which_nothing_starts_is_named(most: int) -> None:
    """It was called an invalid argument of clone3()."""
    kit.run_scenario("too_few_descriptors", str(most))


@pytest.mark.kernel
@pytest.mark.userns
def test_a_launcher_without_descriptors_is_not_taken_for_dead() -> None:
    """It was: its owner then let go of it, which ended every sandbox that it had."""
    kit.run_scenario("descriptors_run_out", kit.token())
