# SPDX-License-Identifier: Apache-2.0
"""What fault tests share: other processes that own sandboxes, and what is left of them.

An *owner* is a Python process of its own that runs a function of ``scenarios.py``; it may be
killed at any time. It speaks in lines of JSON, and does what it is asked for by lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from support import deadline, poll_until, scaled

from nsbox import registry

HERE = Path(__file__).parent
CGROUPS = "/sys/fs/cgroup"


def token() -> str:
    """A word that no other process has in its command line."""
    return f"nsboxfault{uuid.uuid4().hex}"


def environment(**extra: str) -> dict[str, str]:
    """For a helper: its own modules and this folder's are found, and warnings are shown."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **extra}


def command(scenario: str, *args: str) -> list[str]:
    return [sys.executable, "-X", "faulthandler", str(HERE / "scenarios.py"), scenario, *args]


def run_scenario(scenario: str, *args: str, timeout_s: float = 45.0) -> str:
    """Run it to its end in a process of its own; it must succeed, without a word on stderr."""
    with subprocess.Popen(
        command(scenario, *args),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as helper:
        try:
            out, err = helper.communicate(timeout=scaled(timeout_s))
        except BaseException:
            helper.kill()
            raise
    assert helper.returncode == 0, f"{scenario} exits {helper.returncode}:\n{out}\n{err}"
    assert not err, f"{scenario} says on stderr:\n{err}"
    return out


class Owner:
    """A helper process that owns sandboxes; killed when the block is left."""

    def __init__(self, scenario: str, *args: str, **env: str) -> None:
        self._helper = subprocess.Popen(
            command(scenario, *args),
            env=environment(**env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.pid = self._helper.pid
        self._buffer = b""

    def read(self, timeout_s: float = 20.0) -> Any:
        """The next line it said, decoded; AssertionError when it has ended or is silent."""
        end = deadline(timeout_s)
        assert self._helper.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._helper.stdout], [], [], end.left)
            assert ready, f"helper {self.pid} is silent"
            data = os.read(self._helper.stdout.fileno(), 65536)
            assert data, f"helper {self.pid} has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def write(self, value: Any = "go") -> None:
        assert self._helper.stdin is not None
        self._helper.stdin.write(json.dumps(value).encode() + b"\n")

    def kill(self) -> None:
        self._helper.kill()
        self._helper.wait()

    def wait(self, timeout_s: float = 20.0) -> int:
        """Let it go on to its end; returns its exit code."""
        assert self._helper.stdin is not None
        self._helper.stdin.close()
        return self._helper.wait(scaled(timeout_s))

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        for stream in (self._helper.stdin, self._helper.stdout):
            if stream is not None:
                stream.close()


# -- processes --------------------------------------------------------------------------------


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def parent_of(pid: int) -> int:
    fields = stat_of(pid)
    return int(fields[1]) if fields else 0


def alive(pid: int) -> bool:
    """It runs: a zombie is gone but for its parent's word."""
    fields = stat_of(pid)
    return bool(fields) and fields[0] not in "ZX"


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children_of(pid: int) -> list[int]:
    return [child for child in processes() if parent_of(child) == pid and alive(child)]


def memory(pid: int) -> bytes:
    """All that it may write, for root to read."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for span, rights in (line.split()[:2] for line in maps):
            begin, end = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw"):
                mem.seek(begin)
                found.append(mem.read(end - begin))
    return b"".join(found)


def named(word: str) -> list[int]:
    """Processes with *word* in their command line, but for this one and its helper."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if word.encode() in line and b"scenarios.py" not in line and alive(pid):
                found.append(pid)
    return found


def kill(pid: int, sig: int = signal.SIGKILL) -> None:
    """Never 0 or -1, which mean many."""
    assert pid > 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


# -- what an owner leaves ---------------------------------------------------------------------


def cgroups_of(owner: int) -> list[str]:
    """Directories of an owner's, in every hierarchy."""
    prefix = f"nsbox-{owner}-"
    return [f"{where}/{name}" for where, names, _ in os.walk(CGROUPS)
            for name in names if name.startswith(prefix)]  # fmt: skip


def locks_of(owner: int) -> list[str]:
    """Its files in the registry; those of uid 0 are in another directory than a user's."""
    prefix = f"nsbox-{owner}-"
    return [name for name in os.listdir(registry.directory()) if name.startswith(prefix)]


def remains(owner: int) -> list[str]:
    return cgroups_of(owner) + locks_of(owner)


def assert_dead(word: str, owner: int, pids: list[int], launcher: int = 0) -> None:
    """What the death of an owner must bring: no sandbox after 1 s, nothing else after 2 s."""
    end = deadline(1.0)
    left = [*named(word), *filter(alive, pids)]
    while left and not end.passed:
        left = [*named(word), *filter(alive, pids)]
    about = {pid: (named_line(pid), stat_of(pid)[:2]) for pid in left}
    assert not left, f"still running 1 s after owner {owner}: {about}"
    end = deadline(1.0)
    while (rest := remains(owner)) and not end.passed:
        pass
    assert not rest, f"left 2 s after owner {owner}: {rest}"
    if launcher:
        poll_until(lambda: not alive(launcher), 1.0, what=f"launcher of {owner}: is alive")


def named_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
