# SPDX-License-Identifier: Apache-2.0
"""Why no cgroup can be made, and what lets one be made, on hierarchies that were made up."""

from __future__ import annotations

import errno

import pytest

from nsbox.cgroup_places import Hierarchy, Obstacle, Places

PIDS = Hierarchy("pids", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/pids/a")
CPU = Hierarchy("cpu,cpuacct", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/a")
CPUSET = Hierarchy("cpuset", "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/cpuset")
BARE = Hierarchy("", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/a")
V2 = Hierarchy("", "/sys/fs/cgroup", "/sys/fs/cgroup/a/b")
ALL = ("memory", "pids", "cpu")


def told(
    *hierarchies: Hierarchy, wanted: tuple[str, ...] = ("pids",), **places: object
) -> Obstacle:
    return Places(**{"euid": 7, "hierarchies": hierarchies, **places}).obstacle(*wanted)  # type: ignore[arg-type]


def test_v1_is_handed_over_by_directories_and_never_by_systemd() -> None:
    cause, fix, err = told(PIDS, CPU, BARE, wanted=("pids", "cpu"), systemd=True)
    assert err == errno.EACCES
    assert cause == "not this user's to write: /sys/fs/cgroup/pids/a, /sys/fs/cgroup/cpu/a"
    assert "for d in /sys/fs/cgroup/pids/a /sys/fs/cgroup/cpu/a; do mkdir -p $d/user-7" in fix
    assert "chown 7 $d/user-7 $d/user-7/cgroup.procs $d/user-7/tasks" in fix
    assert "echo PID > $d/user-7/cgroup.procs" in fix
    assert "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)" in fix
    assert "systemd-run" not in fix


@pytest.mark.parametrize(("place", "sets"), [(CPUSET, True), (PIDS, False)])
def test_a_cpuset_is_given_what_a_process_must_have_to_enter(place: Hierarchy, sets: bool) -> None:
    assert ("cpuset.mems" in told(place, wanted=(place.names,)).fix) is sets


def test_v2_is_delegated_by_systemd_where_that_runs() -> None:
    fix = "run as root, or: systemd-run --user --scope -p Delegate=yes COMMAND"
    assert told(V2, wanted=ALL, systemd=True).fix == fix
    assert told(V2, wanted=("cpuset",), systemd=True).fix.startswith(fix + " (also -p AllowedCPUs=")


def test_v2_without_systemd_is_handed_over_by_root() -> None:
    cause, fix, _ = told(V2, wanted=ALL)
    assert cause == "not this user's to write: /sys/fs/cgroup/a/b"
    assert "systemd" not in fix
    assert 'echo "+memory +pids +cpu" > /sys/fs/cgroup/cgroup.subtree_control && mkdir' in fix
    assert "chown 7 /sys/fs/cgroup/user-7 /sys/fs/cgroup/user-7/cgroup.procs" in fix
    assert fix.endswith("nsbox.delegate() in the program")


def test_v2_that_was_delegated_is_to_be_left_for_a_leaf() -> None:
    mine = V2._replace(writable=True, available=ALL)
    assert told(mine, wanted=ALL)[1:] == ("call nsbox.delegate() first", errno.EBUSY)


def test_a_controller_that_was_not_given_is_named() -> None:
    mine = V2._replace(writable=True, available=("pids",))
    cause, fix, err = told(mine, wanted=("pids", "io"), systemd=True)
    assert cause == "/sys/fs/cgroup/a/b was not given io"
    assert "Delegate=yes" in fix
    assert err == errno.EOPNOTSUPP
    assert told(mine, wanted=("io",), euid=0).fix == (
        "echo +io > /sys/fs/cgroup/a/b/../cgroup.subtree_control"
    )


def test_a_controller_of_v1_is_not_looked_for_on_v2() -> None:
    mine = BARE._replace(writable=True)
    assert told(mine, PIDS).cause == "not this user's to write: /sys/fs/cgroup/pids/a"
    assert (
        told(mine, PIDS, wanted=("memory",)).cause
        == "/sys/fs/cgroup/unified/a was not given memory"
    )


def test_io_is_blkio_on_v1() -> None:
    place = Hierarchy("blkio", "/sys/fs/cgroup/blkio", "/sys/fs/cgroup/blkio")
    assert told(BARE, place, wanted=("io",)).cause.endswith("/sys/fs/cgroup/blkio")


@pytest.mark.parametrize(
    ("read_only", "fix"),
    [("mount", "mount -o remount,bind,rw /sys/fs/cgroup/pids"),
     ("file system", "mount -o remount,rw /sys/fs/cgroup/pids")],
)  # fmt: skip
def test_what_is_read_only_is_mounted_anew(read_only: str, fix: str) -> None:
    place = PIDS._replace(read_only=read_only)
    assert told(place, euid=0) == ("read-only mounts: /sys/fs/cgroup/pids", fix, errno.EROFS)
    assert told(place).fix == f"as root: {fix}"


def test_what_is_not_mounted_is_mounted_as_the_kernel_has_it() -> None:
    absent = [one._replace(point="", directory="") for one in (PIDS, CPU, BARE, V2)]
    cause, fix, _ = told(*absent[:3], wanted=("pids", "cpu"), euid=0)
    assert cause == "no cgroup file system is mounted here (pids, cpu,cpuacct)"
    assert "for c in pids cpu,cpuacct; do" in fix
    assert "mount -t cgroup -o $c $c" in fix
    assert told(*absent[:3], wanted=("unified",), euid=0).fix.endswith("/sys/fs/cgroup/unified")
    assert told(absent[3], euid=0).fix == "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    assert told(euid=0).fix == "mount -t cgroup2 cgroup2 /sys/fs/cgroup"


@pytest.mark.parametrize(
    ("container", "option"),
    [("docker", "docker run --privileged --cgroupns=private, or -v /sys/fs/cgroup:"),
     ("podman", "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup")],
)  # fmt: skip
@pytest.mark.parametrize("change", [{"read_only": "mount"}, {"directory": ""}], ids=str)
def test_in_a_container_the_mounts_are_those_of_who_started_it(
    container: str, option: str, change: dict[str, str]
) -> None:
    place = V2._replace(**change)  # type: ignore[arg-type]
    assert told(place, euid=0, container=container).fix.startswith(option)


def test_root_of_a_user_namespace_is_not_told_that_root_can() -> None:
    assert told(PIDS, euid=0).fix.startswith("as root of the host, PID being your shell: for d in")
    assert "run as root" not in told(V2, wanted=ALL, euid=0, systemd=True).fix
