# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line and of the doctor share: real processes, and their words."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.geteuid() == 0
TREE = Path(__file__).resolve().parents[2]
PATIENCE = scaled(30)


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "nsbox", *args]


def nsbox(*args: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    options = {"capture_output": True, "text": True, "timeout": PATIENCE, **keywords}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(command(*args), cwd=keywords.get("cwd", TREE), **options)


def out(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


def as_json(*args: str) -> Any:
    return json.loads(out(nsbox(*args, "--json")))


def ps(*owners: int) -> list[dict[str, Any]]:
    """What ps shows of these owners: others may run sandboxes here, too."""
    return [one for one in as_json("ps") if one["owner"] in owners]


def shell(script: str, *, before: tuple[str, ...] = ()) -> str:
    """What a shell script prints, run inside of *before* (unshare and its like)."""
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([*before, "/bin/sh", "-ec", script], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=PATIENCE, cwd=TREE,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


@contextlib.contextmanager
def going(*args: str) -> Iterator[subprocess.Popen[str]]:
    """One that goes on until the block is left. A shell's background job ignores SIGINT."""
    started = ["env", "--default-signal=INT", *command(*args)]
    with subprocess.Popen(started, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          cwd=TREE) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def on_a_terminal(*args: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """One that has a terminal of 31 rows and 97 columns: our end of it, and the process."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 31, 97, 0, 0))
    with subprocess.Popen(command(*args), stdin=theirs, stdout=theirs, stderr=theirs,
                          cwd=TREE) as process:  # fmt: skip
        try:
            yield ours, process
        finally:
            process.kill()
            process.wait()
            os.close(ours)
            os.close(theirs)


def hung_up(*args: str, after: str = "ready", own: bool = True) -> tuple[int, str]:
    """One whose terminal is closed when it has shown *after*: its code, and its words on standard
    error, which is that terminal too without *own*, for then it is the session's."""
    ours, theirs = os.openpty()
    before = ["setsid", "--ctty"] if own else []
    with tempfile.TemporaryFile("w+") as words:
        with subprocess.Popen([*before, *command(*args)], stdin=theirs, stdout=theirs,
                              stderr=words if own else theirs, cwd=TREE) as process:  # fmt: skip
            os.close(theirs)
            try:
                shown(ours, after)
                os.close(ours)
                code = process.wait(PATIENCE)
            finally:
                process.kill()
        words.seek(0)
        return code, words.read()


def shown(terminal: int, what: str) -> str:
    """What comes out of it until *what* does."""
    got = b""
    while what.encode() not in got:
        assert select.select([terminal], [], [], PATIENCE)[0], got
        got += os.read(terminal, 4096)
    return got.decode()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready = select.select([process.stdout], [], [], PATIENCE)[0]
    assert ready, "it says nothing"
    return process.stdout.readline().strip()
