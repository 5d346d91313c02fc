# SPDX-License-Identifier: Apache-2.0
"""Does a spawn wait for the kernel somewhere? Every system call of cold spawns, by strace (T15).

A call that waits for a grace period of RCU takes 4 to 20 ms once its lock has been idle, and
nothing in a tight loop. ``waits.py --spawn ROOT N`` is what is traced: spawns with idle gaps and
limits, each between two marks.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from cases import load_nsbox, spawn_nsbox
from drivers import SampleFailed, last_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rootfs import Rootfs

GAP_S = 0.1
WARM_UP = 3
BEGIN, END = b"NSBOX-BENCH-BEGIN", b"NSBOX-BENCH-END"
#: These wait for another process, whose own calls are seen; a clone lasts until its vfork child's
#: exec, and a read may be one of a pipe.
WAIT_FOR_OTHERS = frozenset(
    "clone clone3 vfork wait4 waitid poll ppoll select pselect6 epoll_wait epoll_pwait "
    "epoll_pwait2 read recvmsg recvfrom futex pause rt_sigtimedwait rt_sigsuspend".split()
)
_LINE = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed>).* <(\d+\.\d+)>$")


def spawns(trace: Iterable[str]) -> Iterator[dict[str, float]]:
    """Of each marked spawn: the longest time (ms) of every system call that was made in it."""
    inside = False
    longest: dict[str, float] = defaultdict(float)
    for line in trace:
        if BEGIN.decode() in line:
            inside, longest = True, defaultdict(float)
        elif END.decode() in line and inside:
            inside = False
            yield dict(longest)
        elif inside and (match := _LINE.match(line.rstrip("\n"))):
            name, seconds = match.groups()
            longest[name] = max(longest[name], float(seconds) * 1000)


def slowest(trace: Iterable[str], expected: int) -> tuple[str, float]:
    """The call with the largest median over the spawns, and that median in milliseconds.

    Raises:
        SampleFailed: the trace has not so many spawns, or a spawn without a single exec.
    """
    seen = list(spawns(trace))
    if len(seen) != expected or not all("execve" in each for each in seen):
        raise SampleFailed(f"strace shows {len(seen)} spawns of {expected}")
    names = {name for each in seen for name in each} - WAIT_FOR_OTHERS
    medians = {name: statistics.median(each.get(name, 0.0) for each in seen) for name in names}
    name = max(medians, key=lambda one: medians[one])
    return name, medians[name]


def measure(fs: Rootfs, count: int) -> tuple[str, float]:
    """As ``slowest``, for *count* spawns here.

    Raises:
        SampleFailed: strace is missing, or what it traced failed.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise SampleFailed("strace not installed")
    output = fs.work / "strace"
    traced = [sys.executable, str(Path(__file__).resolve()), "--spawn", str(fs.root), str(count)]
    done = subprocess.run(
        [strace, "-f", "-qq", "-T", "-s", "64", "-o", str(output), *traced],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SampleFailed(f"strace: {last_line(done.stderr)}")
    with output.open(encoding="utf-8", errors="replace") as trace:
        return slowest(trace, count)


def traced(root: Path, count: int) -> None:
    """What strace follows."""
    nsbox = load_nsbox()
    for number in range(-WARM_UP, count):
        time.sleep(GAP_S)
        if number >= 0:
            mark(BEGIN)
        spawn_nsbox(nsbox, root, "nsbox-6ns-cgroup")
        if number >= 0:
            mark(END)


def mark(text: bytes) -> None:
    """A call that fails and does nothing, but is seen."""
    try:
        os.write(1 << 30, text)
    except OSError:
        pass


if __name__ == "__main__":
    if sys.argv[1:2] != ["--spawn"]:
        sys.exit("waits.py is run by run.py --targets")
    traced(Path(sys.argv[2]), int(sys.argv[3]))
