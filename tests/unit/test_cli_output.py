# SPDX-License-Identifier: Apache-2.0
"""What the command line prints of sizes, times and names that a payload made up."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

import pytest

from nsbox.cli import control, output, run
from nsbox.errors import SpecError
from nsbox.spec import Mount

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain text, ünïcode", "plain text, ünïcode"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\x9b31m", "\\x9b31m"),
        (os.fsdecode(b"\xff"), "\\udcff"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_left(text: str, said: str) -> None:
    assert output.clean(text) == said
    assert output.clean(text).encode()


def test_lines_stay_lines_and_tabs_tabs() -> None:
    assert output.clean_lines("a\tb\n\x1b[2Jc\r\n\n") == "a\tb\n\\x1b[2Jc\\r\n\n"


@pytest.mark.parametrize(
    ("count", "said"),
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1024, "1.0K"), (1536, "1.5K"), (512 << 20, "512M"),
     (1 << 60, "1024P")],
)  # fmt: skip
def test_sizes(count: int | None, said: str) -> None:
    assert output.size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0s"), (59.9, "59s"), (60, "1m"), (7200, "2h"), (200000, "2d")]
)
def test_durations(seconds: float, said: str) -> None:
    assert output.duration(seconds) == said


def test_a_table_aligns_numbers_to_the_right() -> None:
    said = output.table(("PID", "NAME", "COMMAND"), [(7, "a", "x y"), (1234, "long", "z\x1b")])
    assert said.splitlines() == [" PID NAME COMMAND", "   7 a    x y", "1234 long z\\x1b"]


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", Mount.bind("/a", "/b")),
        ("/a:/b:ro", Mount.bind("/a", "/b")),
        ("/a:/b:rw", Mount.bind("/a", "/b", ro=False)),
    ],
)
def test_volumes(text: str, mount: Mount) -> None:
    assert run._volume(text) == mount


@pytest.mark.parametrize("text", ["", "/a", "/a:/b:", "/a:/b:rx", "/a:/b:ro:rw", "/a:b", ":/b"])
def test_bad_volumes(text: str) -> None:
    with pytest.raises(SpecError):
        run._volume(text)


def test_the_environment_of_files_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env"
    file.write_text("#no\n  # nor this\n\nA=1\nB=x=y\nHOST\n")
    monkeypatch.setenv("HOST", "h")
    monkeypatch.delenv("GONE", raising=False)
    found = run._environment([str(file)], ["A=2", "GONE", "EMPTY="])
    assert found == {"A": "2", "B": "x=y", "HOST": "h", "EMPTY": ""}


@pytest.mark.parametrize(("word", "number"), [("9", 9), ("KILL", 9), ("sigterm", 15), ("int", 2)])
def test_signals(word: str, number: int) -> None:
    assert control.signal_number(word) == number


@pytest.mark.parametrize("word", ["0", "65", "99999999999", "-9", "", "SIG", "SIGNOPE", "９"])
def test_no_signals(word: str) -> None:
    with pytest.raises(SpecError):
        control.signal_number(word)


def test_a_double_dash_ends_the_options() -> None:
    assert run._command(argparse.Namespace(command=["--", "ls", "--"])) == ["ls", "--"]
    with pytest.raises(SpecError, match="COMMAND"):
        run._command(argparse.Namespace(command=["--"]))
