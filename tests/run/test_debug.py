# SPDX-License-Identifier: Apache-2.0
"""NSBOX_DEBUG=1: a line for each step, request and record; and nothing at all without."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from run import kit

from nsbox import debug

pytestmark = pytest.mark.userns

CODE = """
import nsbox, sys
nsbox.run(["/bin/sh", "-c", "exit 3", sys.argv[1]], files={"secret": "s3cret"}, env={"A": "s3cret"})
try:
    nsbox.run(["/no/such"])
except OSError:
    pass
"""
LINE = re.compile(r"nsbox\[\d+\] +\d+\.\d{6} (spawn|child|host|request|record) .*")


def _said(value: str | None) -> str:
    env = {key: text for key, text in os.environ.items() if key != "NSBOX_DEBUG"}
    if value is not None:
        env["NSBOX_DEBUG"] = value
    argv = [sys.executable, "-c", CODE, "esc\x1b[31m\nape"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=kit.PATIENCE,
                          check=True)  # fmt: skip
    return done.stderr


def test_every_line_has_a_time_and_says_what() -> None:
    said = _said("1")
    lines = said.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), said
    times = [float(line.split()[1]) for line in lines]
    assert times == sorted(times)
    kinds = {line.split()[2] for line in lines}
    assert kinds >= {"spawn", "child", "request", "record"}
    for part in ("STARTED", "EXITED", "status 3", "ENDED", "FAILED", "execve: ENOENT", "setsid"):
        assert part in said


def test_it_tells_no_content_and_no_environment_and_escapes_arguments() -> None:
    said = _said("1")
    assert "s3cret" not in said
    assert "esc\\x1b[31m\\nape" in said


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_it_nothing_is_said(value: str | None) -> None:
    assert _said(value) == ""


def test_without_it_nothing_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "say", None)  # calling it would fail
    monkeypatch.setattr(debug, "ON", False)
    assert kit.run("true").ok
