# SPDX-License-Identifier: Apache-2.0
"""Ordinary users: a subtree that was handed over to them, on v1 and on v2; and where none was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import support
from cgroup import kit
from support import poll_until, scaled

import nsbox
from nsbox import hierarchy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel]

USER = 65534
#: What v1's "chown the directory, cgroup.procs and tasks" and v2's list of files have in common.
HANDED_OVER = ("", "cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control")

#: Enters the directories as root, becomes the user, and runs the rest.
ENTER = """
import os, sys
for directory in sys.argv[2].split(","):
    with open(directory + "/cgroup.procs", "w") as file:
        file.write("0")
if sys.argv[1] != "0":
    os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
os.environ["HOME"] = os.environ["XDG_RUNTIME_DIR"] = sys.argv[3]
import json, nsbox
from nsbox import Limits
"""
LIMITS = """
before = open("/proc/self/cgroup").read()
where = nsbox.delegate()
done = nsbox.run(["python3", "-SIc", "x = bytearray(100 << 20)"],
                 limits=Limits(memory="40MiB", pids=9, cpu=0.9, cpu_weight=30, cpuset="0"))
with nsbox.Cgroup.create(limits=Limits(pids=9)) as group, \\
     nsbox.Container(["sleep", "1000"], limits=Limits(pids=5)) as box:
    box.pause()
    paused = box.status()
    box.resume()
    box.update(Limits(pids=3))
    box.stop()
    made = group.path
print(json.dumps([where, done.reason.name, done.limits_hit, made, paused, os.geteuid(),
                  open("/proc/self/cgroup").read() != before]))
"""
NONE = """
run = lambda: nsbox.run(["true"], limits=Limits(pids=3))
for attempt in (nsbox.delegate, nsbox.Cgroup.create, run):
    try:
        attempt()
    except nsbox.Unavailable as e:
        print(json.dumps([e.feature, str(e), e.hint]))
"""


def gives_a_place(hint: str) -> bool:
    """Whether it is for this host: only systemd delegates, and of cgroup v2 alone."""
    v1 = {"memory", "pids", "cpu"} & hierarchy.paths_of().keys()
    delegates = os.path.isdir("/run/systemd/system") and not v1
    return ("Delegate=yes" if delegates else "echo PID >") in hint


@contextmanager
def handed_over(parents: list[Path], uid: int) -> Iterator[list[str]]:
    """A directory in each, which belongs to *uid* as far as delegation goes, and no further."""
    made = []
    try:
        for parent in parents:
            directory = parent / f"nsbox-given-{os.getpid()}"
            directory.mkdir()
            made.append(directory)
            for name in HANDED_OVER:
                if (directory / name).exists():
                    os.chown(directory / name, uid, uid)
        yield [str(directory) for directory in made]
    finally:
        for directory in made:
            for child in directory.iterdir() if directory.is_dir() else ():
                if child.is_dir():
                    poll_until(lambda c=child: _removed(c), 5, what=str(child))
            poll_until(lambda d=directory: _removed(d), 5, what=str(directory))


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def as_user(code: str, uid: int, directories: list[str], home: Path) -> list[list[object]]:
    home.chmod(0o700)
    os.chown(home, uid, uid)
    for parent in home.parents[:2]:
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", ENTER + code, str(uid), ",".join(directories), str(home)],
        cwd=kit.TESTS.parent, capture_output=True, text=True, timeout=scaled(60), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.root
@pytest.mark.cgroup1
def test_directories_of_v1_that_were_handed_over_are_enough(tmp_path: Path) -> None:
    names = ("memory", "pids", "cpu", "cpuset", "freezer", "blkio", "cpuacct")
    mounts, own = hierarchy.mounted(), hierarchy.paths_of()
    parents = [Path(mounts[name].directory(own[name])) for name in names if name in mounts]
    with handed_over(parents, USER) as directories:
        for directory in directories:  # nobody may enter before these are set
            if "cpuset" in directory:
                for file in ("mems", "cpus"):
                    value = Path(directory).parent.joinpath(f"cpuset.effective_{file}").read_text()
                    Path(directory, f"cpuset.{file}").write_text(value)
        ((where, reason, hit, made, paused, uid, moved),) = as_user(
            LIMITS, USER, directories, tmp_path
        )
    assert (reason, hit, paused, uid) == ("OOM", ["memory"], "paused", USER)
    assert where == directories[0]
    assert str(made).startswith(directories[0])
    assert not moved


@pytest.mark.root
@pytest.mark.cgroup2
def test_delegate_moves_the_caller_out_of_the_way_on_v2(tmp_path: Path) -> None:
    with handed_over([support.cgroup2_parent()], USER) as directories:
        ((where, reason, hit, made, paused, uid, moved),) = as_user(
            LIMITS, USER, directories, tmp_path
        )
    assert (reason, hit, paused, uid) == ("OOM", ["memory"], "paused", USER)
    assert where == directories[0]
    assert str(made).startswith(directories[0] + "/nsbox-")
    assert moved


@pytest.mark.root
@pytest.mark.cgroup2
def test_delegate_moves_nobody_who_can_make_cgroups_further_up(tmp_path: Path) -> None:
    """Root may write above its own cgroup, which so can stay as it is."""
    parent = support.cgroup2_parent()
    with handed_over([parent], 0) as directories:
        ((where, reason, _, _, _, _, moved),) = as_user(LIMITS, 0, directories, tmp_path)
    assert (where, reason, moved) == (str(parent), "OOM", False)


@pytest.mark.root
def test_where_nothing_was_delegated_the_fix_is_named(tmp_path: Path) -> None:
    found = as_user(NONE, USER, [_entered()], tmp_path)
    assert len(found) == 3
    for feature, text, hint in found:
        assert feature in ("cgroup", "limits.pids")
        assert str(hint) in str(text)
        assert gives_a_place(str(hint))


ATTEMPT = """
import sys, nsbox
from nsbox import Limits

def pause():
    with nsbox.Container(["sleep", "60"], limits=Limits(pids=9), best_effort=True) as box:
        box.pause()

attempt = {"create": lambda: nsbox.Cgroup.create(limits=Limits(memory="64MiB", pids=9)).close(),
           "limit": lambda: nsbox.run(["true"], limits=Limits(cpuset="0"), check=True),
           "pause": pause}[sys.argv[1]]
try:
    attempt()
    print("works")
except nsbox.Unavailable as e:
    print(e.hint)
"""
#: A user's shell, whose cgroup can be changed between its two programs.
TWICE = 'cd "$4"; "$1" -c "$2" "$3"; read -r go; exec "$1" -c "$2" "$3"'


@pytest.mark.root
@pytest.mark.cgroup1
@pytest.mark.parametrize("what", ["create", "limit", "pause"])
def test_the_fix_that_a_user_of_v1_is_told_is_one(tmp_path: Path, what: str) -> None:
    user = 60000 + os.getpid() % 5000
    (tmp_path / "home").mkdir(mode=0o700)
    os.chown(tmp_path / "home", user, user)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    places = {place.point for place in hierarchy.mounted().values()}
    shell = subprocess.Popen(
        ["/bin/sh", "-c", TWICE, "sh", sys.executable, ATTEMPT, what, str(kit.TESTS.parent)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user, group=user,
        extra_groups=[], env={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "home"),
                              "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    with shell:
        try:
            assert shell.stdout is not None
            hint = shell.stdout.readline()
            command = hint.partition("PID being your shell: ")[2].partition("; or boot")[0]
            assert command, hint
            subprocess.run(["/bin/sh", "-ec", command.replace("PID", str(shell.pid))], check=True)
            assert shell.communicate("\n", timeout=scaled(30))[0] == "works\n"
        finally:
            shell.kill()
            shell.wait()
            for place in places:
                for directory in Path(place).glob(f"**/user-{user}"):
                    poll_until(lambda d=directory: _removed(d), 5, what=str(directory))


@pytest.mark.user
@pytest.mark.skipif(not support.probe_cgroup(), reason="there are cgroups here")
def test_pausing_without_a_cgroup_does_not_send_one_for_a_limit_that_cannot_be_had() -> None:
    with nsbox.Container(["sleep", "60"]) as box, pytest.raises(nsbox.Unavailable) as caught:
        box.pause()
    assert "give it a limit" not in caught.value.hint
    assert gives_a_place(caught.value.hint)


def _entered() -> str:
    """A directory that the process is in already."""
    place = hierarchy.mounted().get("")
    if place is None:
        pytest.skip("cgroup2 is not mounted")
    return place.directory(hierarchy.paths_of()[""])


@pytest.mark.user
@pytest.mark.skipif(not support.probe_cgroup(), reason="there are cgroups here")
def test_a_user_without_any_is_told_so() -> None:
    for attempt in (nsbox.delegate, nsbox.Cgroup.create):
        with pytest.raises(nsbox.Unavailable) as caught:
            attempt()
        assert gives_a_place(caught.value.hint)
