# SPDX-License-Identifier: Apache-2.0
"""Limits that a cgroup enforces, and what is said where none can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run import kit
from support import CONTROLLERS, poll_until, probe_cgroup, scaled

import nsbox
from nsbox import Limits, Reason, probe

pytestmark = [pytest.mark.userns, pytest.mark.kernel]
cgroup = pytest.mark.cgroup
EAT = "x = bytearray({} << 20); print('ate')"
V1_MEMORY, V1_CPU = "memory.limit_in_bytes", "cpu.cfs_quota_us"


# -- memory -------------------------------------------------------------------------------------


@cgroup
def test_memory_over_the_limit_is_oom_by_the_kernels_word() -> None:
    done = kit.python(EAT.format(100), limits=Limits(memory="50MiB"))
    assert (done.returncode, done.reason, done.limits_hit) == (-9, Reason.OOM, ("memory",))
    assert done.stdout == ""
    assert done.usage.memory_peak <= 51 << 20


@cgroup
def test_memory_within_the_limit_is_granted() -> None:
    done = kit.python(EAT.format(100), limits=Limits(memory="200MiB"))
    assert (kit.out(done), done.limits_hit) == ("ate", ())
    assert 100 << 20 < done.usage.memory_peak <= 200 << 20


@cgroup
def test_files_in_tmp_count_as_memory() -> None:
    script = "head -c 67108864 /dev/zero > x && echo all"
    done = kit.sh(script, limits=Limits(memory="32MiB", disk="256MiB"))
    assert done.stdout == ""
    assert "memory" in done.limits_hit
    assert kit.out(kit.sh(script, limits=Limits(memory="128MiB", disk="256MiB"))) == "all"


@cgroup
def test_a_child_that_is_out_of_memory_takes_the_sandbox_with_it() -> None:
    script = "python3 -c 'x = bytearray(100 << 20)'; echo survived"
    done = kit.sh(script, limits=Limits(memory="50MiB"))
    assert (done.reason, done.stdout, done.limits_hit) == (Reason.OOM, "", ("memory",))


@cgroup
def test_who_is_quicker_than_the_end_of_its_group_was_out_of_memory_all_the_same() -> None:
    """On v1 the kernel ends one process, and nsbox the others."""
    script = "head -c 100M /dev/zero > /tmp/x; exit 0"
    for _ in range(10):
        done = kit.sh(script, limits=Limits(memory="16MiB", disk="200MiB"))
        assert (done.reason, done.ok, done.limits_hit) == (Reason.OOM, False, ("memory",))


@cgroup
def test_without_oom_group_only_the_child_goes() -> None:
    script = "python3 -c 'x = bytearray(100 << 20)'; echo code $?"
    done = kit.sh(script, limits=Limits(memory="50MiB", oom_group=False))
    assert (kit.out(done), done.reason) == ("code 137", Reason.EXITED)
    assert done.limits_hit == ("memory",)


@pytest.mark.cgroup2
def test_beyond_memory_high_it_is_slowed_down() -> None:
    code = "x = bytearray(40 << 20)\nprint('ate', flush=True)\nimport time; time.sleep(1000)"
    args = ["/usr/bin/python3", "-ISc", code]
    with nsbox.Container(args, limits=Limits(memory_high="16MiB")) as box:
        assert box.cgroup is not None
        poll_until(lambda: box.cgroup.events()["memory.high"] > 0, 20)  # type: ignore[union-attr]
        assert box.status() == "running"
        assert (box.stats().memory_current or 0) < 40 << 20
    with nsbox.Container(args, limits=Limits(memory_high="200MiB")) as box:
        poll_until(lambda: "ate" in box.logs(), 20)
        assert box.cgroup is not None
        assert box.cgroup.events()["memory.high"] == 0


@pytest.mark.cgroup1
def test_memory_high_is_refused_on_v1() -> None:
    with pytest.raises(nsbox.Unavailable, match="v1 has nothing that does the same"):
        nsbox.run(["true"], limits=Limits(memory_high="64MiB"))
    done = kit.run("true", limits=Limits(memory_high="64MiB"), best_effort=True)
    assert done.enforcement["memory_high"].startswith("missing: ")


@cgroup
def test_the_strict_profile_limits_memory_by_itself() -> None:
    done = kit.python(EAT.format(600))
    assert done.reason is Reason.OOM


# -- pids ---------------------------------------------------------------------------------------

FORKS = "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); echo $i; done"


@cgroup
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_a_fork_bomb_stops_at_the_limit(init: bool) -> None:
    done = kit.sh(FORKS, limits=Limits(pids=8), init=init)
    assert done.returncode != 0
    assert "fork" in str(done.stderr)
    assert str(done.stdout).split()[-1] == "7"  # and the shell
    assert done.limits_hit == ("pids",)
    if done.usage.pids_peak is not None:
        assert 8 <= done.usage.pids_peak <= 9  # nsbox-init has a place of its own


@cgroup
def test_who_stays_below_the_limit_of_processes_has_not_hit_it() -> None:
    done = kit.sh("sleep 0 & sleep 0 & wait", limits=Limits(pids=8))
    assert (done.ok, done.limits_hit) == (True, ())


@cgroup
def test_threads_count_too() -> None:
    code = (
        "import threading\nevent, n = threading.Event(), 0\ntry:\n    while n < 20:\n"
        "        threading.Thread(target=event.wait, daemon=True).start()\n        n += 1\n"
        "except RuntimeError:\n    pass\nprint(n, flush=True)\nevent.set()"
    )
    assert int(kit.out(kit.python(code, limits=Limits(pids=6)))) <= 5
    assert kit.out(kit.python(code, limits=Limits(pids=64))) == "20"


@cgroup
def test_a_bomb_that_does_not_stop_is_ended_in_time() -> None:
    bomb = "b() { b | b & }; b; sleep 1000"
    with kit.at_most(3):
        done = kit.sh(bomb, limits=Limits(pids=30, wall=scaled(0.5)))
    assert done.reason is Reason.TIMEOUT or done.returncode != 0


# -- cpu ----------------------------------------------------------------------------------------


@cgroup
def test_cpu_limit_by_what_was_used() -> None:
    """Two busy processes in a fifth of a core: quota, not luck."""
    script = "while :; do :; done & while :; do :; done"
    done = kit.sh(script, limits=Limits(cpu=0.2, wall=scaled(1)))
    used = done.usage.cpu_user + done.usage.cpu_system
    assert used <= 0.2 * done.usage.wall + 0.15
    assert (done.usage.throttled or 0) > 0


@cgroup
def test_without_a_tight_cpu_limit_nothing_is_throttled() -> None:
    done = kit.sh("i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done", limits=Limits(cpu=100))
    assert done.usage.throttled == 0


@cgroup
def test_cpuset_is_where_it_runs() -> None:
    code = (
        "import os\nprint(*os.sched_getaffinity(0))\ntry:\n    os.sched_setaffinity(0, {1})\n"
        "except OSError:\n    pass\nprint(*os.sched_getaffinity(0))"
    )
    done = kit.python(code, limits=Limits(cpuset="0"))
    assert kit.out(done) == "0\n0"
    assert done.enforcement["cpuset"].endswith(" cpuset.cpus")
    if len(os.sched_getaffinity(0)) > 1:
        assert kit.out(kit.python(code)).splitlines()[1] == "1"


@cgroup
def test_a_cpu_that_is_not_there_is_an_error_and_not_ignored() -> None:
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.run(["true"], limits=Limits(cpuset="4000"))
    assert (caught.value.field, caught.value.name) == ("limits.cpuset", "limit")
    assert "CPUs that can be had here are" in caught.value.hint


@cgroup
def test_cpu_weight_divides_a_busy_cpu() -> None:
    """Two that never sleep, on one CPU; the same program with twenty times the weight."""
    busy = ["sh", "-c", "while :; do :; done"]

    def limits(weight: int) -> Limits:
        return Limits(cpu_weight=weight, cpuset="0", cpu=4)

    with (
        nsbox.Container(busy, limits=limits(20)) as light,
        nsbox.Container(busy, limits=limits(400)) as heavy,
    ):
        before = light.stats().cpu_user, heavy.stats().cpu_user

        def used() -> tuple[float, float]:
            return light.stats().cpu_user - before[0], heavy.stats().cpu_user - before[1]

        poll_until(lambda: sum(used()) > 0.8, 20, every_s=0.05)
        little, much = used()
    assert much > 4 * little


# -- the cgroup ---------------------------------------------------------------------------------


@cgroup
def test_the_payload_is_in_its_cgroup_with_every_limit_written() -> None:
    limits = Limits(memory="64MiB", pids=16, cpu=0.5)
    with nsbox.Popen(["sleep", "1000"], limits=limits) as process:
        own = Path(f"/proc/{process.pid}/cgroup").read_text()
        assert "nsbox-" in own
        for controller in CONTROLLERS:
            assert f" {controller}" in process.enforcement[controller]
    for controller in CONTROLLERS:
        lines = [x for x in own.splitlines() if controller in x.split(":")[1].split(",")]
        assert all("nsbox-" in line for line in lines)


@cgroup
def test_what_a_payload_forks_first_is_in_its_cgroup_too() -> None:
    """It was in there before it could do anything."""
    script = "sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & echo ready; wait"
    for _ in range(10):
        with nsbox.Popen(["sh", "-c", script], init=False, stdout=nsbox.PIPE) as process:
            assert kit.waiting(process) == "ready"
            pid = process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            assert len(children) == 4
            own = Path(f"/proc/{pid}/cgroup").read_text()
            assert {Path(f"/proc/{one}/cgroup").read_text() for one in children} == {own}
            assert "nsbox-" in own


@cgroup
def test_the_cgroup_namespace_hides_where_it_is() -> None:
    paths = {x.split(":", 2)[2] for x in kit.out(kit.run("cat", "/proc/self/cgroup")).splitlines()}
    assert not any("nsbox" in path or ".." in path for path in paths if path != "/")
    assert "/" in paths


@cgroup
def test_enforcement_says_by_what() -> None:
    done = kit.run("true", limits=Limits(memory="64MiB", pids=16, cpu=1, disk="1MiB"))
    version = probe.host().cgroup_version
    v1 = version == 1
    for name, file in (("memory", V1_MEMORY if v1 else "memory.max"), ("pids", "pids.max"),
                       ("cpu", V1_CPU if v1 else "cpu.max")):  # fmt: skip
        assert done.enforcement[name] == f"cgroup v{version} {file}"
    assert done.enforcement["disk"] == "tmpfs size=1048576"


# -- what needs no cgroup -----------------------------------------------------------------------


def test_nofile_limit() -> None:
    code = (
        "import os\ntry:\n    while True: last = os.dup(0)\n"
        "except OSError as e: print(last, e.errno)"
    )
    assert kit.out(kit.python(code, limits=Limits(nofile=50))) == "49 24"
    assert kit.out(kit.sh("ulimit -Hn", limits=Limits(nofile=50))) == "50"


# -- what cannot be enforced --------------------------------------------------------------------


@pytest.mark.skipif(not probe_cgroup(), reason="there are cgroups here")
@pytest.mark.parametrize(
    "limits", [Limits(memory="64MiB"), Limits(pids=5), Limits(cpu=1)], ids=repr
)
def test_without_cgroups_a_limit_raises_and_best_effort_says_missing(limits: Limits) -> None:
    with pytest.raises(nsbox.Unavailable) as caught:
        nsbox.run(["true"], limits=limits)
    assert caught.value.feature.startswith("limits.")
    assert "run as root" in caught.value.hint
    assert "best_effort=True" in caught.value.alternatives
    done = kit.run("true", limits=limits, best_effort=True)
    name = caught.value.feature.removeprefix("limits.")
    assert done.ok
    assert done.enforcement[name].startswith(("missing:", "RLIMIT_NPROC"))


@pytest.mark.skipif(not probe_cgroup(), reason="there are cgroups here")
def test_without_cgroups_the_profiles_own_limits_give_way_and_say_so() -> None:
    done = kit.run("true")
    assert "RLIMIT_NPROC" in done.enforcement["pids"]
    assert done.applied["memory"].startswith("missing:")
