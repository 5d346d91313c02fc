# SPDX-License-Identifier: Apache-2.0
"""Many sandboxes in one process, and nothing that grows: what is held, here and in the launcher.

A few hundred in the usual run of the tests; NSBOX_SOAK=full, or ``make soak``, does 10,000 and
1,000 with limits and 1,000 pods, and prints the figures.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import TIMEOUT_SCALE, poll_until, scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.userns, pytest.mark.slow]

FULL = os.environ.get("NSBOX_SOAK") == "full"
CONTAINERS = 10_000 if FULL else 300
WITH_LIMITS = 1_000 if FULL else 60 if TIMEOUT_SCALE == 1 else 20
PODS = 1_000 if FULL else 20
WARM_UP = 100 if TIMEOUT_SCALE == 1 else 10  # an emulated kernel is slow
SAMPLES = 10
MOST_GROWTH_KIB = {"rss": 5 << 10, "launcher_rss": 256}
FOUR = nsbox.Limits(memory="64MiB", pids=16, cpu=1.0, wall=60)


@dataclass(frozen=True)
class Held:
    """What this process and its launcher hold; memory in KiB.

    An ordinary user may not look into the launcher: then its descriptors and namespaces are 0.
    """

    fds: int
    threads: int
    children: int
    mounts: int
    cgroups: int
    namespaces: int
    launcher_fds: int
    launcher_children: int
    rss: int
    launcher_rss: int

    @property
    def counts(self) -> tuple[int, ...]:
        """All of it but the memory: what must be the same."""
        return astuple(self)[:-2]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def links_of(pid: int, folder: str) -> list[str]:
    """Paths in /proc/PID/fd or /proc/PID/ns; none where that is not ours to read."""
    where = f"/proc/{pid}/{folder}"
    try:
        return [f"{where}/{name}" for name in os.listdir(where)]
    except PermissionError:
        return []


def namespaces(pid: int) -> set[str]:
    """Of a process, and those that its descriptors hold."""
    links = [*links_of(pid, "ns"), *links_of(pid, "fd")]
    found = set()
    for link in links:
        try:
            found.add(os.readlink(link))
        except FileNotFoundError:
            pass
    return {name for name in found if name.endswith("]") and name.split(":")[0] in KINDS}


KINDS = {"mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time"}


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"no VmRSS of {pid}")


def our_cgroups() -> int:
    ours = f"nsbox-{os.getpid()}-"
    return sum(name.startswith(ours) for _, names, _ in os.walk("/sys/fs/cgroup") for name in names)


def look(launcher: int) -> Held:
    me = os.getpid()
    ids = namespaces(me) | namespaces(launcher)
    for child in children(launcher):
        ids |= namespaces(child)
    return Held(
        fds=len(links_of(me, "fd")),
        threads=len(threading.enumerate()),  # not pytest's, which ends after a minute
        children=len(children(me)),
        mounts=sum(len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
                   for pid in (me, launcher)),
        cgroups=our_cgroups(),
        namespaces=len(ids),
        launcher_fds=len(links_of(launcher, "fd")),
        launcher_children=len(children(launcher)),
        rss=rss_kib(me),
        launcher_rss=rss_kib(launcher),
    )  # fmt: skip


@pytest.fixture
def launcher() -> int:
    """The launcher's pid: it is the parent of what it started."""
    with nsbox.Popen(["sleep", "1000"], init=False) as process:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("PPid:"):
                return int(line.split()[1])
    raise AssertionError("no PPid")


def one_container(limits: nsbox.Limits | None = None) -> None:
    with nsbox.Container(["true"], limits=limits) as container:
        assert container.wait(scaled(30)) == 0


def one_run(limits: nsbox.Limits | None = None) -> None:
    assert nsbox.run(["echo", "x"], limits=limits, capture_output=True).stdout == b"x\n"


def one_killed(limits: nsbox.Limits | None = None) -> None:
    with nsbox.Container(["sleep", "1000"], limits=limits, init=True) as container:
        assert container.stop(grace=0) == -9


def one_pod() -> None:
    both = [nsbox.ContainerSpec(name, ["sleep", "1000"]) for name in ("a", "b")]
    with nsbox.Pod("soak", both) as pod:
        pod.stop(grace=0)


def one_by_one(life: Callable[[], None], count: int) -> None:
    for _ in range(count):
        life()


def by_eight_threads(life: Callable[[], None], count: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(life) for _ in range(count)]:
            done.result()


def batches(count: int) -> Iterator[int]:
    for number in range(SAMPLES):
        yield count * (number + 1) // SAMPLES - count * number // SAMPLES


def soak(
    life: Callable[[], None], how: Callable[[Callable[[], None], int], None], count: int,
    launcher: int, warm_up: int = WARM_UP,
) -> None:  # fmt: skip
    """Live *count* lives; every count is as before after each tenth, and memory hardly more."""
    how(life, warm_up)
    gc.collect()
    first, begin, history = look(launcher), time.monotonic(), []
    for batch in batches(count):
        how(life, batch)
        gc.collect()
        poll_until(lambda: look(launcher).counts == first.counts, 5,
                   what=f"{first} again, not {look(launcher)}")  # fmt: skip
        history.append(look(launcher))
    last, took = history[-1], time.monotonic() - begin
    print(f"\n{count} in {took:.1f} s ({count / took:.0f}/s); before, after each tenth:")
    for field in fields(Held):
        row = [getattr(held, field.name) for held in (first, *history)]
        print(f"  {field.name:<18}" + " ".join(f"{value:>6}" for value in row))
    for name, most in MOST_GROWTH_KIB.items():
        growth = getattr(last, name) - getattr(first, name)
        assert growth <= most, f"{name} grew by {growth} KiB over {count} sandboxes"


@pytest.mark.parametrize("how", [one_by_one, by_eight_threads], ids=lambda how: how.__name__)
def test_containers_leave_nothing_that_adds_up(how: Callable[..., None], launcher: int) -> None:
    soak(one_container, how, CONTAINERS if how is one_by_one else CONTAINERS // 4, launcher)


@pytest.mark.parametrize("life", [one_run, one_killed], ids=lambda life: life.__name__)
def test_other_lives_leave_nothing_either(life: Callable[[], None], launcher: int) -> None:
    soak(life, one_by_one, CONTAINERS // 10, launcher)


def test_pods_leave_nothing_either(launcher: int) -> None:
    soak(one_pod, one_by_one, PODS, launcher, warm_up=10)


@pytest.mark.kernel
@pytest.mark.cgroup
@pytest.mark.parametrize("life", [one_container, one_run], ids=lambda life: life.__name__)
def test_with_limits_nothing_adds_up(life: Callable[..., None], launcher: int) -> None:
    soak(lambda: life(FOUR), one_by_one, WITH_LIMITS, launcher)


def test_what_is_kept_is_seen(launcher: int) -> None:
    """The figures are no constants: each goes up with one sandbox that is not closed."""
    before = look(launcher)
    with nsbox.Container(["sleep", "1000"]):
        now = look(launcher)
        visible = ("namespaces", "launcher_fds") if links_of(launcher, "fd") else ()
        for name in ("fds", "launcher_children", *visible):
            assert getattr(now, name) > getattr(before, name), name
