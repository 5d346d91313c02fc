# SPDX-License-Identifier: Apache-2.0
"""The example runs as it stands, and shows what it says it shows."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support import scaled

pytestmark = pytest.mark.userns

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "topology.py"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("topology") / "sites.svg"


@pytest.fixture(scope="module")
def output(picture: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(picture)], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=scaled(60),
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout


def test_it_measures_the_lines_as_they_are(output: str) -> None:
    rates = [(line.partition(":")[0], float(line.split()[-2])) for line in output.splitlines()
             if line.endswith(" Mbit/s")]  # fmt: skip
    assert [pair for pair, _ in rates] == ["h1 -> h2", "h1 -> h3", "h1 -> h3"]
    near, far, faster = (rate for _, rate in rates)
    assert far < 8.5 < 17 > faster  # less, on a busy machine
    assert far < faster < near


def test_it_draws_the_line_that_is_cut(output: str) -> None:
    before, after = output.partition("packets dropped")[::2]
    assert "╌" not in before
    assert "╌╌╌╌ 16Mbit ╌╌╌╌" in after
    assert before.count("lost") == 0
    assert after.count("lost") == 4
    assert "mended: all are reached" in after


def test_it_writes_the_drawing(output: str, picture: Path) -> None:
    assert output
    texts = {element.text for element in ET.parse(picture).iter()}
    assert {"h1", "10.0.0.1/24", "r1 router", "16Mbit"} <= texts
