# SPDX-License-Identifier: Apache-2.0
"""A running container's cgroup: pause, resume, update, stats; and ending it while it is paused."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cgroup import kit
from run.kit import at_most
from support import poll_until, scaled

import nsbox
from nsbox import Container, Limits, Mount, elsewhere, sandboxes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.userns, pytest.mark.cgroup, pytest.mark.kernel]

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /out/count; done"
STUBBORN = "trap '' TERM; while :; do sleep 1000; done"
TIDY = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    return tmp_path


@pytest.fixture
def counting(out: Path) -> Iterator[Container]:
    mounts = [Mount.bind(out, "/out", ro=False)]
    with Container(["sh", "-c", COUNT], mounts=mounts, limits=Limits(pids=20)) as box:
        poll_until(lambda: kit.counts(out / "count") > 0, 20)
        yield box


@pytest.mark.usefixtures("hierarchies")
def test_pause_holds_every_process_and_resume_lets_go(counting: Container, out: Path) -> None:
    for _ in range(3):
        counting.pause()
        assert counting.status() == "paused"
        assert repr(counting).startswith(f"<nsbox.Container {counting.name!r} paused")
        before = (out / "count").read_text()
        time.sleep(0.1)
        assert (out / "count").read_text() == before
        counting.resume()
        assert counting.status() == "running"
        poll_until(lambda b=before: (out / "count").read_text() not in ("", b), 20)


@pytest.mark.usefixtures("hierarchies")
@pytest.mark.parametrize("payload", [kit.BOMB, kit.CHAIN], ids=["bomb", "chain"])
def test_who_forks_while_it_is_paused_is_paused_too(payload: str) -> None:
    """On v1 its processes are moved to where they freeze, one by one."""
    args = ["sh", "-c", f"python3 -SIc '{payload}' & sleep 1000"]
    with Container(args, limits=Limits(pids=30)) as box:
        poll_until(lambda: (box.stats().pids_current or 0) > 2, 20)
        box.pause()
        assert box.cgroup is not None
        inside = box.cgroup.processes()
        ticks = [_ticks(pid) for pid in inside]
        time.sleep(0.1)
        assert box.cgroup.processes() == inside
        assert [_ticks(pid) for pid in inside] == ticks
        box.resume()
        box.update(Limits(pids=25))


@pytest.mark.usefixtures("hierarchies")
def test_no_other_process_enters_what_is_paused() -> None:
    with Container(["sleep", "1000"], name="still", limits=Limits(pids=9)) as box:
        box.pause()
        with pytest.raises(nsbox.StateError, match="still is paused: cannot exec") as caught:
            elsewhere.popen(sandboxes.find(str(box.pid)), ["true"])
        assert caught.value.status == "paused"
        box.resume()
        with elsewhere.popen(sandboxes.find(str(box.pid)), ["true"]) as process:
            assert process.wait(scaled(10)) == 0


def _ticks(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


@pytest.mark.usefixtures("hierarchies")
@pytest.mark.parametrize("verb", ["stop", "kill", "close"])
def test_ending_a_paused_container_works_at_once(verb: str) -> None:
    with Container(["sh", "-c", STUBBORN], limits=Limits(pids=9)) as box:
        pid = box.pid or 0
        assert pid > 1
        box.pause()
        with at_most(2):
            getattr(box, verb)()
            poll_until(lambda: kit.gone([pid]), 2)
        if verb != "close":
            assert box.wait(scaled(5)) == -signal.SIGKILL
        assert box.status() == "stopped"


@pytest.mark.usefixtures("hierarchies")
def test_stopping_a_paused_container_lets_it_tidy_up() -> None:
    with Container(["sh", "-c", TIDY], limits=Limits(pids=9)) as box:
        poll_until(lambda: "ready" in box.logs(), 20)
        box.pause()
        assert box.stop(grace=scaled(5)) == 7


def test_the_wall_limit_ends_a_paused_container() -> None:
    with Container(["sleep", "1000"], limits=Limits(pids=9, wall=scaled(0.3))) as box:
        box.pause()
        assert box.wait(scaled(10)) == -signal.SIGKILL
        assert box.result().reason is nsbox.Reason.TIMEOUT


def test_verbs_that_are_not_allowed_say_so() -> None:
    box = Container(["sleep", "1000"], name="box", limits=Limits(pids=9))
    for verb in ("pause", "resume", "stats"):
        with pytest.raises(nsbox.StateError, match="'box' is created"):
            getattr(box, verb)()
    with box:
        with pytest.raises(nsbox.StateError, match="'box' is running: cannot resume"):
            box.resume()
        box.pause()
        with pytest.raises(nsbox.StateError, match="'box' is paused: cannot pause") as caught:
            box.pause()
        assert caught.value.status == "paused"
    with pytest.raises(nsbox.StateError, match="'box' is stopped"):
        box.update(Limits(pids=3))
    assert box.cgroup is None


def test_a_container_without_a_cgroup_says_what_it_takes() -> None:
    kinds = ["user", "mnt", "pid"]
    with Container(["sleep", "1000"], profile="none", namespaces=kinds) as box:
        assert box.cgroup is None
        for verb in (box.pause, box.stats, lambda: box.update(Limits(pids=3))):
            with pytest.raises(nsbox.Unavailable, match="has no cgroup") as caught:
                verb()
            assert "pids=" in caught.value.hint
        assert box.status() == "running"


@pytest.mark.parametrize("init", [False, True], ids=["pid1", "init"])
def test_update_holds_at_once_and_is_in_the_result(init: bool) -> None:
    script = "read x; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; sleep 1000"
    with Container(["sh", "-c", script], stdin=nsbox.DEVNULL, init=init,
                   limits=Limits(pids=2)) as box:  # fmt: skip
        poll_until(lambda: "fork" in box.logs(), 20)
    with Container(["sleep", "1000"], init=init, limits=Limits(pids=100)) as box:
        box.update(Limits(pids=5, cpu_weight=10))
        assert box.cgroup is not None
        path = Path(box.cgroup.directories["pids"], "pids.max")
        assert int(path.read_text()) == 5 + init
        box.kill()
        box.wait(scaled(5))
        assert box.result().enforcement["cpu_weight"].startswith("cgroup v")


def test_update_of_memory_ends_who_grows_beyond_it() -> None:
    start = Limits(memory="8GiB")
    code = (
        "import time\nx = []\nfor i in range(2000): x.append(bytearray(1 << 20)); time.sleep(.01)"
    )
    with Container(["python3", "-SIc", code], profile="standard", limits=start) as box:
        box.update(Limits(memory="60MiB"))
        assert box.wait(scaled(30)) == -signal.SIGKILL
        assert box.result().reason is nsbox.Reason.OOM


def test_update_refuses_what_is_not_a_cgroup_s() -> None:
    with Container(["sleep", "1000"], limits=Limits(pids=9)) as box:
        with pytest.raises(nsbox.SpecError, match=r"limits\.wall"):
            box.update(Limits(wall=3))


@pytest.mark.cgroup1
def test_a_controller_that_it_was_made_without_is_refused_on_v1() -> None:
    with (
        Container(["sleep", "1000"], profile="standard", limits=Limits(pids=9)) as box,
        pytest.raises(nsbox.Unavailable, match="made without the cpuset controller"),
    ):
        box.update(Limits(cpuset="0"))


@pytest.mark.root
@pytest.mark.cgroup2
def test_a_controller_is_added_while_it_runs_on_v2() -> None:
    with Container(["sleep", "1000"], limits=Limits(pids=9)) as box:
        box.update(Limits(cpuset="0"))
        assert box.pid is not None
        assert os.sched_getaffinity(box.pid) == {0}


def test_stats_of_a_running_container(counting: Container) -> None:
    poll_until(lambda: counting.stats().cpu_user + counting.stats().cpu_system > 0.05, 20)
    stats = counting.stats()
    assert (stats.memory_current or 0) > 0
    assert (stats.memory_peak or 0) >= (stats.memory_current or 0) > 0 or stats.memory_peak is None
    assert stats.pids_current == 1
    assert counting.cgroup is not None
    assert counting.cgroup.events()["populated"] == 1
