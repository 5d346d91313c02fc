# SPDX-License-Identifier: Apache-2.0
"""Out of memory in a sandbox: only its own processes die of it, and the reason says so."""

from __future__ import annotations

import pytest
from faults import kit

pytestmark = pytest.mark.cgroup


def test_an_oom_never_touches_a_caller_with_a_gibibyte() -> None:
    kit.run_scenario("fat", kit.token(), "2")


@pytest.mark.kernel
def test_one_mebibyte_never_hangs() -> None:
    kit.run_scenario("least_memory", kit.token())


@pytest.mark.kernel
def test_a_sigkill_is_not_taken_for_an_oom() -> None:
    kit.run_scenario("not_a_guess", kit.token())


def test_hogs_beside_others_get_each_their_own_verdict() -> None:
    kit.run_scenario("hogs_and_others", kit.token())
