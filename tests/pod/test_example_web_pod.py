# SPDX-License-Identifier: Apache-2.0
"""The example runs as it stands, and shows what it says it shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import scaled

pytestmark = pytest.mark.userns

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "web_pod.py"


@pytest.fixture(scope="module")
def output() -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=scaled(60),
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("ipc", "shared, the pod's"),
        ("net", "shared, the pod's"),
        ("user", "shared, the pod's"),
        ("mnt", "each its own"),
        ("uts", "each its own"),
        ("pid", "each its own"),
    ],
)
def test_the_table(output: str, kind: str, verdict: str) -> None:
    (row,) = [line.split(None, 4) for line in output.splitlines() if line.startswith(f"{kind} ")]
    _, host, server, reader, said = row
    assert said == verdict
    assert (server == reader) == verdict.startswith("shared")
    assert host not in (server, reader)


def test_the_sidecar_saw_the_server_before_and_after_its_restart(output: str) -> None:
    assert output.count("200 <h1>hello from a pod</h1>") >= 4
    assert "server           Running                  restarts 1" in output


def test_the_events_tell_the_story(output: str) -> None:
    events = [line.split()[:2] for line in output.partition("events:\n")[2].splitlines()]
    started = [name for reason, name in events if reason == "Started"]
    assert started == ["reader", "server", "server"]
    assert events[-1] == ["Died", "reader"]  # the sidecar ends last
