# SPDX-License-Identifier: Apache-2.0
"""What the tests of cgroups share: processes to put into one, and looks at the file system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import poll_until, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TESTS = Path(__file__).resolve().parents[1]

#: Waits for a line before it does anything: so that it can be moved first.
GATE = "read line; "
#: A chain: each process forks the next one and ends, faster than a list of pids can be read.
CHAIN = "import os\nwhile True:\n    if os.fork(): os._exit(0)"
#: Forks that stay, until they fail, and go on trying.
BOMB = (
    "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
)


@contextmanager
def started(*args: str, **keywords: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that is not in a cgroup yet, with pipes; ended at the end."""
    process = subprocess.Popen(
        args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **keywords
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def shell(script: str) -> Any:
    return started("/bin/sh", "-c", GATE + script)


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def ends(process: subprocess.Popen[bytes], seconds: float = 5) -> int:
    return process.wait(scaled(seconds))


def state(pid: int) -> str:
    """``"S"``, ``"T"``, …; "" when it has gone. proc_pid_stat(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def gone(pids: Sequence[int]) -> bool:
    return all(state(pid) in ("", "Z") for pid in pids)


def kill(pid: int) -> None:
    assert pid > 1
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@contextmanager
def owner(code: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """An interpreter with nsbox that runs *code*; its first line says that it is ready."""
    with started(sys.executable, "-c", code, *args, cwd=TESTS.parent) as process:
        yield process


def all_gone(directories: Sequence[str]) -> None:
    poll_until(lambda: not [d for d in directories if os.path.exists(d)], 10, what="directories")


def counts(path: Path) -> int:
    """How far a payload got that writes a growing number."""
    try:
        return int(path.read_text().split()[-1])
    except (OSError, ValueError, IndexError):
        return 0
