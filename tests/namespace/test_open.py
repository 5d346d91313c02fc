# SPDX-License-Identifier: Apache-2.0
"""Namespaces that are there: by process, path and descriptor; their kind, owner and parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nsbox

KINDS = ["mnt", "net", "uts", "ipc", "pid", "cgroup", "user", "time"]
pytestmark = [pytest.mark.userns, pytest.mark.kernel]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_by_process_path_and_descriptor(kind: str) -> None:
    fd, pidfd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY), os.pidfd_open(os.getpid())
    try:
        ways = [
            nsbox.Namespace.current(kind),
            nsbox.Namespace.of(os.getpid(), kind),
            nsbox.Namespace.open(f"/proc/self/ns/{kind}"),
            nsbox.Namespace.open(Path(f"/proc/self/ns/{kind}"), kind),
            nsbox.Namespace.open(fd),
            nsbox.Namespace.open(pidfd, kind),
        ]
        assert len(set(ways)) == 1
        assert {ns.kind for ns in ways} == {kind}
        for ns in ways:
            ns.close()
        os.fstat(fd)  # it stays the caller's
    finally:
        os.close(fd)
        os.close(pidfd)


def test_a_kind_that_it_is_not_is_refused() -> None:
    with pytest.raises(nsbox.SpecError, match="is a uts namespace, not net"):
        nsbox.Namespace.open("/proc/self/ns/uts", "net")


@pytest.mark.parametrize("what", ["/dev/null", "/etc/passwd", "/"])
def test_what_is_no_namespace_is_refused(what: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Namespace.open(what)
    assert caught.value.field == "path"


def test_a_name_that_is_not_there_is_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        nsbox.Namespace.open("nsbox-no-such-name")


_HIDDEN = """
import ctypes, sys
for dumpable in (0, 1):
    ctypes.CDLL(None).prctl(4, dumpable, 0, 0, 0)
    print(dumpable, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at all")
def test_of_a_process_that_still_executes_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", _HIDDEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.read(2) == b"0\n"
        with pytest.raises(PermissionError):
            nsbox.Namespace.of(child.pid, "net")

        def show(_: float) -> None:
            assert child.stdin
            assert child.stdout
            child.stdin.write(b"\n")
            child.stdin.flush()
            child.stdout.read(2)

        monkeypatch.setattr("time.sleep", show)
        with nsbox.Namespace.of(child.pid, "net") as found:
            assert found == nsbox.Namespace.current("net")
        child.stdin.close()


def test_a_pidfd_needs_a_kind_and_a_process() -> None:
    with nsbox.Popen(["sleep", "1000"]) as box:
        pidfd = os.dup(box.pidfd)
    try:
        with pytest.raises(ProcessLookupError):
            nsbox.Namespace.open(pidfd, "net")
        with pytest.raises(nsbox.SpecError) as caught:
            nsbox.Namespace.open(pidfd)
        assert caught.value.field == "kind"
    finally:
        os.close(pidfd)
    with pytest.raises(OSError, match="not open"):
        nsbox.Namespace.open(pidfd, "net")


def test_the_owner_of_one_in_a_user_namespace_is_that() -> None:
    with nsbox.Popen(["sleep", "1000"]) as box, nsbox.Namespace.of(box.pid, "uts") as uts:
        owner = uts.owner
        assert owner is not None
        assert owner == nsbox.Namespace.of(box.pid, "user")
        assert owner.owner_uid == os.geteuid()
        above = owner.parent
        assert above == owner.owner == nsbox.Namespace.current("user")
        assert uts.parent is None


def test_the_parent_of_a_pid_namespace_is_ours() -> None:
    with nsbox.Namespace.create("pid") as pid:
        assert pid.parent == nsbox.Namespace.current("pid")
        with pytest.raises(nsbox.StateError):
            pid.owner_uid  # noqa: B018


def test_above_ours_there_is_nothing_to_be_seen() -> None:
    ask = """
import errno, fcntl
for request in (0xb701, 0xb702):
    try: print(fcntl.ioctl(open("/proc/self/ns/user"), request))
    except OSError as e: print(errno.errorcode[e.errno])
"""
    done = nsbox.run(["/usr/bin/python3", "-SIc", ask], capture_output=True, text=True)
    assert done.stdout == "EPERM\nEPERM\n"


def test_one_that_was_created_by_another_is_found_by_its_hash() -> None:
    with nsbox.Namespace.create("uts") as ns, nsbox.Namespace.of(ns.processes[0], "uts") as same:
        assert {ns: 1}[same] == 1
        assert ns == same
        assert ns != nsbox.Namespace.current("uts")
        assert ns != 5


def test_popen_goes_on_in_it() -> None:
    with (
        nsbox.Namespace.create("uts") as ns,
        ns.popen(["cat"], stdin=nsbox.PIPE, stdout=nsbox.PIPE, text=True) as cat,
    ):
        assert os.stat(f"/proc/{cat.pid}/ns/uts").st_ino == ns.id
        assert cat.communicate("x", timeout=30) == ("x", None)


def test_a_forked_child_runs_nothing_in_what_its_parent_made() -> None:
    with nsbox.Namespace.create("uts") as made:
        opened = nsbox.Namespace.open(f"/proc/self/fd/{made.fileno()}")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for verb in (made.run, made.popen):
                    with pytest.raises(nsbox.StateError, match="forked child"):
                        verb(["true"])
                if os.geteuid() == 0:  # others have no right over it but by its user namespace
                    opened.run(["true"], check=True)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        opened.close()


def test_run_takes_input() -> None:
    with nsbox.Namespace.create("ipc") as ns:
        assert ns.run(["cat"], input="hello", capture_output=True, text=True).stdout == "hello"
