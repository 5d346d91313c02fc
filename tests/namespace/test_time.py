# SPDX-License-Identifier: Apache-2.0
"""Time namespaces: clocks that are ahead, of a namespace and of a sandbox."""

from __future__ import annotations

import os
import time

import pytest
from support import scaled

import nsbox

pytestmark = [pytest.mark.userns, pytest.mark.kernel]

DAY = 86400
CLOCKS = "import time; print(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"
PYTHON = ["/usr/bin/python3", "-SIc", CLOCKS]


def ahead(shown: object) -> tuple[float, float]:
    """By how much the clocks that were printed are ahead of ours."""
    monotonic, boottime = map(float, str(shown).split())
    return (monotonic - time.monotonic(), boottime - time.clock_gettime(time.CLOCK_BOOTTIME))


def test_the_clocks_of_a_new_one_are_ahead_by_its_offsets() -> None:
    offsets = {"monotonic": 10 * DAY + 0.5, "boottime": 20 * DAY}
    with nsbox.Namespace.create("time", offsets=offsets) as ns:
        done = ns.run(PYTHON, capture_output=True, text=True, check=True)
    assert ahead(done.stdout) == pytest.approx((10 * DAY + 0.5, 20 * DAY), abs=scaled(10))


def test_without_offsets_they_are_ours() -> None:
    with nsbox.Namespace.create("time") as ns:
        done = ns.run(PYTHON, capture_output=True, text=True, check=True)
        assert ns != nsbox.Namespace.current("time")
    assert ahead(done.stdout) == pytest.approx((0, 0), abs=scaled(10))


def test_one_is_left_alone_by_the_other() -> None:
    with nsbox.Namespace.create("time", offsets={"boottime": 3 * DAY}) as ns:
        done = ns.run(PYTHON, capture_output=True, text=True, check=True)
    assert ahead(done.stdout) == pytest.approx((0, 3 * DAY), abs=scaled(10))


def needs_exec() -> None:
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 3):
        with pytest.raises(nsbox.Unavailable) as caught:
            nsbox.run(["true"], time_offsets={"boottime": 1})
        assert "6.3" in str(caught.value)
        pytest.skip("execve does not enter a time namespace here, and nsbox said so")


@pytest.mark.parametrize("init", [True, False], ids=["with init", "without init"])
@pytest.mark.parametrize("profile", ["strict", "standard", "none"])
def test_a_sandbox_has_its_own(init: bool, profile: str) -> None:
    needs_exec()
    kinds = {"namespaces": ["user", "pid", "mnt"]} if profile == "none" else {}
    done = nsbox.run(
        PYTHON,
        time_offsets={"monotonic": DAY, "boottime": -1},
        init=init,
        profile=profile,
        capture_output=True,
        text=True,
        check=True,
        **kinds,
    )
    assert ahead(done.stdout) == pytest.approx((DAY, -1), abs=scaled(10))


def test_what_is_executed_in_a_container_has_its_clocks() -> None:
    needs_exec()
    with nsbox.Container(["sleep", "1000"], time_offsets={"monotonic": DAY}) as box:
        done = box.exec(PYTHON, capture_output=True, text=True, check=True)
        inside = box.exec(["readlink", "/proc/self/ns/time"], capture_output=True, text=True)
        assert inside.stdout == f"time:[{box.namespaces['time']}]\n"
    assert ahead(done.stdout)[0] == pytest.approx(DAY, abs=scaled(10))


def test_a_time_that_would_be_negative_is_refused_by_the_kernel() -> None:
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.Namespace.create("time", offsets={"monotonic": -10000 * DAY})
    assert caught.value.field == "time_offsets"


def test_offsets_are_of_time_namespaces() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Namespace.create("net", offsets={"monotonic": 1})
    assert caught.value.field == "offsets"
