# SPDX-License-Identifier: Apache-2.0
"""Cgroup: one class for v1, hybrid and v2; what it limits, counts, freezes, ends and leaves."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cgroup import kit
from support import poll_until, scaled

import nsbox
from nsbox import Cgroup, Limits, cgroupfs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.cgroup, pytest.mark.kernel, pytest.mark.usefixtures("hierarchies")]

EAT = "exec python3 -SIc 'x = bytearray({} << 20); print(\"ate\")'"


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with Cgroup.create() as made:
        yield made


# -- making, finding, giving back ---------------------------------------------------------------


def test_it_exists_from_create_to_close() -> None:
    with Cgroup.create(name="build") as group:
        assert group.version in (1, 2)
        assert all(Path(d).is_dir() for d in group.directories.values())
        assert {"memory", "pids", "cpu"} <= group.directories.keys()
        assert Path(group.path).name.startswith("nsbox-")
        assert group.path.endswith("-build")
        assert repr(group).startswith(f"<nsbox.Cgroup v{group.version} {group.path}")
        assert group.processes() == []
    assert not any(Path(d).exists() for d in group.directories.values())
    assert repr(group).endswith(" closed>")
    group.close()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a\0b", "a" * 65, 3])
def test_a_name_is_one_component(name: Any) -> None:
    with pytest.raises(nsbox.SpecError, match="name"):
        Cgroup.create(name=name)


@pytest.mark.parametrize("limits", [Limits(wall=1), Limits(nofile=9), Limits(output=9)], ids=repr)
def test_limits_that_are_not_a_cgroup_s_are_refused(limits: Limits) -> None:
    with pytest.raises(nsbox.SpecError, match="not a cgroup's to enforce"):
        Cgroup.create(limits=limits)


@pytest.mark.parametrize("limits", [{}, 0, {"pids": 3}, "pids"], ids=repr)
def test_what_is_no_limits_is_refused(limits: Any) -> None:
    with pytest.raises(nsbox.SpecError, match="is not a Limits") as caught:
        Cgroup.create(limits=limits)
    assert caught.value.field == "limits"


def test_a_freeze_has_a_timeout_in_seconds(group: Cgroup) -> None:
    with pytest.raises(nsbox.SpecError, match="timeout"):
        group.freeze(timeout="1")  # type: ignore[arg-type]


def test_a_closed_one_refuses(group: Cgroup) -> None:
    group.close()
    for verb in (group.stats, group.events, group.freeze, lambda: group.add(1)):
        with pytest.raises(nsbox.StateError) as caught:
            verb()
        assert caught.value.status == "closed"
    group.kill()


@pytest.mark.parametrize("pid", [0, -1, True, "1"])
def test_add_takes_a_pid(group: Cgroup, pid: Any) -> None:
    with pytest.raises(nsbox.SpecError):
        group.add(pid)


def test_adding_who_has_gone_is_a_process_lookup_error(group: Cgroup) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        group.add(process.pid)


def test_it_is_dropped_with_a_warning_and_closed() -> None:
    group = Cgroup.create()
    directories = list(group.directories.values())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del group
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]
    assert "was not closed" in str(caught[0].message)
    assert not any(Path(d).exists() for d in directories)


def test_one_that_was_opened_stays(group: Cgroup) -> None:
    assert Cgroup.open(os.fsencode(group.path)).path == group.path
    with Cgroup.open(group.path) as found:
        assert found.version == group.version
        assert found.path == group.path
        assert found.stats().memory_current is not None
    assert Path(group.path).is_dir()


def test_a_name_as_proc_has_it_is_found_in_every_hierarchy(group: Cgroup) -> None:
    with kit.shell("echo; read line") as process:
        group.add(process.pid)
        kit.go(process)
        kit.line(process)
        lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
        controller = "" if group.version == 2 else "pids"
        (name,) = (x.split(":")[2] for x in lines if controller in x.split(":")[1].split(","))
        found = Cgroup.open(name)
        assert found.directories["pids"] == group.directories["pids"]
        assert process.pid in found.processes()


def test_opening_what_is_not_there_is_a_spec_error(tmp_path: Path) -> None:
    for path in ("/nsbox-no-such-cgroup", str(tmp_path)):
        for one in (path, path.encode()):
            with pytest.raises(nsbox.SpecError, match="not a cgroup"):
                Cgroup.open(one)
    with pytest.raises(nsbox.SpecError, match="not a string"):
        Cgroup.open(3)  # type: ignore[arg-type]


def test_one_in_another(group: Cgroup) -> None:
    with Cgroup.create(parent=group, name="inner", limits=Limits(pids=5)) as inner:
        assert inner.path.startswith(group.path + "/")
        with kit.shell("sleep 1000") as process:
            inner.add(process.pid)
            assert group.processes() == inner.processes() == [process.pid]
            group.kill()
            assert kit.ends(process) == -signal.SIGKILL


def test_a_forked_child_may_not_use_it(group: Cgroup) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            group.stats()
        except nsbox.StateError as e:
            os.write(write, e.status.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"foreign"
    os.close(read)
    os.close(write)
    assert Path(group.path).is_dir()


def test_a_forked_child_that_leaves_the_block_ends_nothing() -> None:
    with Cgroup.create() as group:
        child = os.fork()
        if child == 0:
            group.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert Path(group.path).is_dir()
        assert group.stats().pids_current == 0


# -- limits -------------------------------------------------------------------------------------


def test_memory_beyond_the_limit_kills() -> None:
    with (
        Cgroup.create(limits=Limits(memory="40MiB")) as group,
        kit.shell(EAT.format(80)) as process,
    ):
        group.add(process.pid)
        kit.go(process)
        assert kit.ends(process, 20) == -signal.SIGKILL
        assert group.events()["memory.oom_kill"] >= 1
        assert 30 << 20 < (group.stats().memory_peak or 0) <= 41 << 20


def test_memory_within_the_limit_is_granted() -> None:
    with Cgroup.create(limits=Limits(memory="200MiB")) as group:
        with kit.shell(EAT.format(80)) as process:
            group.add(process.pid)
            kit.go(process)
            assert kit.ends(process, 20) == 0
        assert group.events()["memory.oom_kill"] == 0
        assert (group.stats().memory_peak or 0) > 80 << 20


@pytest.mark.parametrize("whole", [True, False], ids=["group", "one"])
def test_oom_group_ends_all_or_one(whole: bool) -> None:
    limits = Limits(memory="40MiB", oom_group=whole)
    script = "(" + EAT.format(80) + "); echo code $?; read line"
    with Cgroup.create(limits=limits) as group, kit.shell(script) as process:
        group.add(process.pid)
        kit.go(process)
        if whole:
            assert kit.ends(process, 20) == -signal.SIGKILL
        else:
            assert kit.line(process) in ("Killed", "code 137")
            assert process.poll() is None


def test_forks_beyond_the_limit_fail_and_are_counted() -> None:
    with Cgroup.create(limits=Limits(pids=3)) as group:
        script = "for i in 1 2 3 4 5; do sleep 1000 & done; wait"
        with kit.shell(script) as process:
            group.add(process.pid)
            kit.go(process)
            poll_until(lambda: group.events()["pids.max"] > 0, 20)
            assert len(group.processes()) <= 3
            stats = group.stats()
            assert (stats.pids_current or 0) <= 3
            assert stats.pids_peak in (None, 2, 3)
            group.kill()
            assert kit.ends(process) != 0


def test_cpu_time_is_counted_and_throttled() -> None:
    with Cgroup.create(limits=Limits(cpu=0.1)) as group, kit.shell("while :; do :; done") as busy:
        group.add(busy.pid)
        kit.go(busy)
        poll_until(lambda: (group.stats().throttled or 0) > 0.05, 10)
        poll_until(lambda: group.stats().cpu_user > 0.05, 10)
        begin, used = time.monotonic(), group.stats()
        time.sleep(scaled(0.5))
        now, passed = group.stats(), time.monotonic() - begin
        spent = now.cpu_user + now.cpu_system - used.cpu_user - used.cpu_system
        assert spent <= 0.1 * passed + 0.05


def test_a_new_limit_holds_at_once(group: Cgroup) -> None:
    six = "i=0; while [ $i -lt 6 ]; do sleep 1000 & i=$((i+1)); done"
    script = f"{six}; echo $i; read line; sleep 1 & echo no"
    with kit.shell(script) as process:
        group.add(process.pid)
        kit.go(process)
        assert kit.line(process) == "6"
        group.update(Limits(pids=7))
        kit.go(process)
        poll_until(lambda: group.events()["pids.max"] > 0, 20)
        group.kill()


def test_memory_limits_go_up_and_down(group: Cgroup) -> None:
    """On v1 the limit may never be above that of memory and swap: which is written first?"""
    for size in (64, 16, 256, 8, 64):
        for swap in (0, 32):
            group.update(Limits(memory=size << 20, swap=swap << 20))
            assert _written(group, "memory.max") == size << 20
            both = _memory_and_swap(group)
            assert both in (None, (size + swap) << 20)


def _written(group: Cgroup, file: str) -> int:
    return int(group.get(file))


def _memory_and_swap(group: Cgroup) -> int | None:
    directory = Path(group.directories["memory"])
    if group.version == 2:
        swap = directory / "memory.swap.max"
        total = int((directory / "memory.max").read_text())
        return total + int(swap.read_text()) if swap.exists() else None
    both = directory / "memory.memsw.limit_in_bytes"
    return int(both.read_text()) if both.exists() else None


@pytest.mark.cgroup1
def test_v1_refuses_a_limit_below_what_is_used_and_all_is_as_it_was(group: Cgroup) -> None:
    group.update(Limits(memory="100MiB", pids=50))
    with kit.shell(
        "exec python3 -SIc 'x = b\"a\" * (40 << 20); print(1, flush=True); input()'"
    ) as p:
        group.add(p.pid)
        kit.go(p)
        kit.line(p)
        with pytest.raises(nsbox.SetupError) as caught:
            group.update(Limits(memory="20MiB", pids=20))
        assert caught.value.field == "limits.memory"
        assert "bytes are in use" in caught.value.hint
        assert p.poll() is None
    assert _written(group, "memory.max") == 100 << 20
    assert _written(group, "pids.max") == 50


def test_what_was_written_before_a_refusal_is_taken_back(group: Cgroup) -> None:
    group.update(Limits(pids=50, cpu_weight=70))
    with pytest.raises(nsbox.SetupError) as caught:
        group.update(Limits(pids=20, io={"/proc": {"rbps": "1MiB"}}, cpu_weight=90))
    assert caught.value.field == "limits.io"
    assert "not on one disk" in caught.value.hint
    assert _written(group, "pids.max") == 50
    assert _written(group, "cpu.weight") == 70


def test_a_refusal_takes_back_what_had_no_limit_before(group: Cgroup) -> None:
    before = [group.get(file) for file in ("memory.max", "pids.max", "cpu.max")]
    assert before[1] == "max"
    wrong = {"/proc": {"rbps": "1MiB"}}
    with pytest.raises(nsbox.SetupError):
        group.update(Limits(memory="64MiB", pids=20, cpu=0.5, io=wrong))
    assert [group.get(file) for file in ("memory.max", "pids.max", "cpu.max")] == before


@pytest.mark.parametrize("size", [16, 256])
def test_a_refusal_takes_back_both_limits_of_memory(group: Cgroup, size: int) -> None:
    group.update(Limits(memory="64MiB", swap="32MiB"))
    before = _written(group, "memory.max"), _memory_and_swap(group)
    with pytest.raises(nsbox.SetupError):
        group.update(Limits(memory=size << 20, io={"/proc": {"rbps": "1MiB"}}))
    assert (_written(group, "memory.max"), _memory_and_swap(group)) == before


def test_a_cpu_that_is_not_there_is_refused() -> None:
    """cgroup v2 itself would take it, and then enforce nothing."""
    with pytest.raises((nsbox.SetupError, nsbox.Unavailable)) as caught:
        Cgroup.create(limits=Limits(cpuset="0,4000"))
    if isinstance(caught.value, nsbox.SetupError):
        assert "CPUs that can be had here are" in caught.value.hint


# -- freezing -----------------------------------------------------------------------------------

COUNT = 'i=0; while :; do i=$((i+1)); echo $i > "$0"; done'


@pytest.fixture
def counting(group: Cgroup, tmp_path: Path) -> Iterator[Path]:
    """A process in the group that counts as long as it may."""
    path = tmp_path / "count"
    with kit.started("/bin/sh", "-c", kit.GATE + COUNT, str(path)) as process:
        group.add(process.pid)
        kit.go(process)
        poll_until(lambda: kit.counts(path) > 0, 20)
        yield path


def test_frozen_processes_stand_still_until_thawed(group: Cgroup, counting: Path) -> None:
    for _ in range(3):
        group.freeze()
        assert group.frozen()
        assert group.events()["frozen"] == 1
        before = counting.read_text()
        time.sleep(0.1)
        assert counting.read_text() == before
        group.thaw()
        assert not group.frozen()
        poll_until(lambda b=before: counting.read_text() not in ("", b), 20, what="it goes on")
    group.thaw()


@pytest.mark.usefixtures("counting")
def test_killing_the_frozen_works_at_once(group: Cgroup) -> None:
    group.freeze()
    (pid,) = group.processes()
    group.kill()
    poll_until(lambda: kit.gone([pid]), 2)


@pytest.mark.usefixtures("counting")
def test_closing_the_frozen_works_at_once(group: Cgroup) -> None:
    group.freeze()
    (pid,) = group.processes()
    group.close()
    assert kit.gone([pid])
    assert not Path(group.path).exists()


# -- an end that cannot be raced ----------------------------------------------------------------


@pytest.mark.parametrize("payload", [kit.BOMB, kit.CHAIN], ids=["bomb", "chain"])
@pytest.mark.parametrize("verb", ["kill", "close"])
def test_who_forks_does_not_get_away(payload: str, verb: str) -> None:
    with Cgroup.create(limits=Limits(pids=40)) as group:
        with kit.started("/bin/sh", "-c", kit.GATE + f"exec python3 -SIc '{payload}'") as process:
            group.add(process.pid)
            kit.go(process)
            poll_until(lambda: len(group.processes()) > 5 or process.poll() is not None, 20)
            getattr(group, verb)()
            if verb == "kill":
                poll_until(lambda: not group.processes(), 2, what="empty")
                assert _written(group, "pids.max") == 40
        if verb == "close":
            assert not any(Path(d).exists() for d in group.directories.values())


def test_nested_groups_with_processes_go_too(group: Cgroup) -> None:
    """What a tool inside made below its own cgroup: fifty deep, with somebody in each."""
    sleepers = []
    try:
        for directory in dict.fromkeys(group.directories.values()):
            where = Path(directory)
            for _ in range(50):
                where = where / "x"
                where.mkdir()
                if group.version == 1 and "cpuset" not in directory:
                    sleeper = subprocess.Popen(["sleep", "1000"])
                    sleepers.append(sleeper)
                    cgroupfs.write(f"{where}/cgroup.procs", str(sleeper.pid))
            if group.version == 2:
                sleepers.append(subprocess.Popen(["sleep", "1000"]))
                cgroupfs.write(f"{where}/cgroup.procs", str(sleepers[-1].pid))
            if len(sleepers) > 60:
                break
        group.close()
        assert not any(Path(d).exists() for d in group.directories.values())
        assert {s.wait(scaled(5)) for s in sleepers} == {-signal.SIGKILL}
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_many_threads_make_and_close_their_own() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                with Cgroup.create(limits=Limits(pids=9)) as group:
                    assert group.stats().pids_current == 0
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
