# SPDX-License-Identifier: Apache-2.0
"""Container.exec and popen with pty=True: one more terminal of the container's own."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from run import kit
from support import deadline, poll_until, scaled

import nsbox
from nsbox import enter
from nsbox.keywords import another_process
from nsbox.process import Injection
from nsbox.streams import connect_terminal

pytestmark = pytest.mark.userns

SLEEP = ["sleep", "1000"]
VARIANTS: dict[str, dict[str, Any]] = {
    "strict": {},
    "standard": {"profile": "standard"},
    "none": {"profile": "none"},
    "with init": {"init": True},
    "with a terminal": {"pty": True},
    "with a devpts": {"mounts": [nsbox.Mount.devpts()]},
    "own root inherited": {"root": nsbox.Rootfs.inherit(), "profile": "none"},
    "few namespaces": {"namespaces": kit.spaces("pid", "mnt"), "profile": "none"},
    "no pid namespace": {"namespaces": kit.spaces("mnt", "ipc"), "profile": "none"},
}
if kit.ROOT:
    VARIANTS["root without user namespace"] = {"namespaces": tuple(k for k in kit.KINDS
                                                                   if k != "user")}  # fmt: skip
    VARIANTS["another user"] = {"user": "7:8"}


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


def container(args: Any = SLEEP, **keywords: Any) -> nsbox.Container:
    return nsbox.Container(args, **keywords)


def said(box: nsbox.Container, script: str, **keywords: Any) -> str:
    """What a shell in it says on a terminal of its own."""
    keywords = {"timeout": kit.PATIENCE, "pty": True, **keywords}
    return kit.out(box.exec(["sh", "-c", script], capture_output=True, text=True, **keywords))


def read_until(terminal: Any, what: bytes) -> bytes:
    got, end = b"", deadline(15)
    while what not in got:
        assert select.select([terminal.fileno()], [], [], end.left)[0], f"no {what!r} in {got!r}"
        got += terminal.read(4096)
    return got


# -- whose it is ------------------------------------------------------------------------------


@pytest.mark.kernel
def test_all_three_streams_are_a_terminal_in_the_containers_dev_pts(
    variant: dict[str, Any],
) -> None:
    script = ("tty; test -t 0 && test -t 1 && test -t 2 && echo three; stty size; echo $TERM;"
              "id -u; stat -c %u $(tty); cd /dev/pts; echo $(ls)")  # fmt: skip
    with container(**variant) as box:
        number = 1 if variant.get("pty") else 0
        for _ in range(2):  # the second time it is there already
            name, three, size, term, uid, owner, seen = said(box, script, pty=(31, 97)).splitlines()
            assert (name, three, size) == (f"/dev/pts/{number}", "three", "31 97")
            assert (term, owner) == ("xterm", uid)
            assert seen == " ".join([*map(str, range(number + 1)), "ptmx"])


@pytest.mark.kernel
def test_it_is_the_controlling_terminal_of_a_session_of_its_own(variant: dict[str, Any]) -> None:
    """Field 5 to 8 of proc_pid_stat(5): group, session, terminal, its foreground group."""
    with container(**variant) as box, box.popen(["sh", "-c", "echo; read x"], pty=True) as shell:
        read_until(shell.terminal, b"\n")
        fields = Path(f"/proc/{shell.pid}/stat").read_text().rpartition(")")[2].split()
        group, session, terminal, foreground = map(int, fields[2:6])
        assert group == session == foreground == shell.pid
        assert os.major(terminal) == 136
        assert shell.terminal is not None
        shell.terminal.write(b"\x03")
        assert shell.wait(kit.PATIENCE) == -signal.SIGINT, "a key of that terminal"
        assert box.status() == "running"


@pytest.mark.kernel
def test_two_at_once_have_one_each_and_see_each_other() -> None:
    with container() as box, box.popen(SLEEP, pty=True) as first, box.popen(SLEEP, pty=True):
        assert said(box, "ls /dev/pts; tty").split() == ["0", "1", "2", "ptmx", "/dev/pts/2"]
        first.close()
        poll_until(lambda: said(box, "tty") == "/dev/pts/0", 5)


@pytest.mark.kernel
def test_many_threads_have_one_each() -> None:
    wrong: list[str] = []

    def work() -> None:
        sizes = [said(box, "stty size", pty=(20, 30)) for _ in range(5)]
        wrong.extend(size for size in sizes if size != "20 30")

    with container() as box:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.kernel
def test_none_of_the_callers_is_in_sight_where_its_root_is() -> None:
    """The container's view of /dev/pts changes, the caller's does not."""
    with container(**VARIANTS["own root inherited"]) as box:
        ours = [*os.openpty(), *os.openpty()]
        before = sorted(os.listdir("/dev/pts"))
        assert len(before) >= 2
        assert said(box, "echo $(ls /dev/pts)") == "0 ptmx"
        assert sorted(os.listdir("/dev/pts")) == before
        for fd in ours:
            os.close(fd)


@pytest.mark.kernel
def test_the_host_has_no_pty_more_after_its_end() -> None:
    def count() -> int:
        return int(Path("/proc/sys/kernel/pty/nr").read_text())

    with container() as box:
        before = count()
        with box.popen(SLEEP, pty=True):
            assert count() == before + 1
        poll_until(lambda: count() == before, scaled(5))
        assert said(box, "tty") == "/dev/pts/0"
        poll_until(lambda: count() == before, scaled(5))


def test_a_command_in_a_container_with_a_terminal_was_a_key_error() -> None:
    """It has none by itself: it is not the container's PID 1."""
    with container(pty=True) as box:
        done = box.exec(["sh", "-c", "test -t 0 || test -t 1 || echo none"], capture_output=True,
                        text=True)  # fmt: skip
        assert done.stdout == "none\n"
        assert box.exec(["cat"], input=b"in", capture_output=True).stdout == b"in"


def test_ptmx_is_where_programs_look_for_it() -> None:
    code = "import os; m, s = os.openpty(); print(os.ttyname(s))"
    with container() as box:
        argv = ["/usr/bin/python3", "-ISc", code]
        assert not box.exec(argv, stderr=nsbox.DEVNULL).ok, "without any: as ever"
        done = box.exec(argv, pty=True, capture_output=True, text=True, timeout=kit.PATIENCE)
        assert done.stdout == "/dev/pts/1\n"


# -- how it is used ---------------------------------------------------------------------------


def test_input_is_typed_and_the_end_of_it_too() -> None:
    with container() as box:
        assert said(box, "stty -echo; cat; echo end", input="hello\n").endswith("hello\nend")
        assert said(box, "cat; echo end") == "end"


def test_a_popen_of_it_is_talked_to_and_resized() -> None:
    script = "trap 'stty size' WINCH; echo ready; until read line; do :; done; echo got $line"
    with container() as box, box.popen(["sh", "-c", script], pty=True) as shell:
        terminal = shell.terminal
        assert terminal is not None
        assert shell.stdin is shell.stdout is shell.stderr is None
        read_until(terminal, b"ready")
        terminal.resize(40, 100)
        terminal.write(b"hello\n")
        assert b"40 100" in read_until(terminal, b"got hello")
        assert shell.wait(kit.PATIENCE) == 0


def test_hanging_up_ends_who_does_not_mind_and_not_the_container() -> None:
    with container() as box, box.popen(["sh", "-c", "echo up; exec sleep 1000"], pty=True) as one:
        assert one.terminal is not None
        read_until(one.terminal, b"up")
        one.terminal.close()
        assert one.wait(kit.PATIENCE) == -signal.SIGHUP
        assert box.status() == "running"


def test_the_end_of_the_container_is_its_end() -> None:
    with container() as box, box.popen(["sh", "-c", "echo up; exec sleep 1000"], pty=True) as one:
        read_until(one.terminal, b"up")
        box.kill()
        assert one.wait(kit.PATIENCE) == -signal.SIGKILL


def test_a_timeout_ends_it() -> None:
    with container() as box:
        with pytest.raises(nsbox.TimeoutExpired) as caught:
            box.exec(["sh", "-c", "echo up; exec sleep 1000"], pty=True, capture_output=True,
                     timeout=scaled(0.5))  # fmt: skip
        assert caught.value.completed.stdout == b"up\r\n"
        assert box.status() == "running"


@pytest.mark.parametrize("keywords", [{"pty": "yes"}, {"pty": (0, 80)}, {"stdin": nsbox.DEVNULL},
                                      {"stderr": nsbox.DEVNULL}])  # fmt: skip
def test_what_is_no_size_and_streams_beside_it_are_refused(keywords: dict[str, Any]) -> None:
    with container() as box:
        for verb in (box.exec, box.popen):
            with pytest.raises(nsbox.SpecError) as caught:
                verb(["true"], **{"pty": True, **keywords})
            assert caught.value.field == next(iter(keywords))


def test_without_a_mount_namespace_it_is_refused() -> None:
    with container(namespaces=kit.spaces("pid"), profile="none") as box:
        with pytest.raises(nsbox.SpecError) as caught:
            box.exec(["true"], pty=True)
        assert caught.value.field == "pty"
        assert box.exec(["true"]).ok


def test_every_step_that_fails_is_told_and_leaves_nothing(variant: dict[str, Any]) -> None:
    with container(**variant) as box:
        process, base, id_map = box._entered("exec")
        spec = another_process(base, ["/bin/true"], pty=True)
        ptys = Path("/proc/sys/kernel/pty/nr").read_text()
        for _ in range(2):  # the second time it has a devpts, and the plan no step for that
            for index, step in enumerate(enter._plan(process, base, spec, id_map).steps):
                stdio, fail = connect_terminal(None, None, None), Injection(index, errno.EIO)
                with pytest.raises(nsbox.SetupError) as caught:
                    enter.enter(process, base, spec, id_map, stdio, None, fail)
                assert (caught.value.step, caught.value.name) == (index, step.name)
                assert caught.value.errno == errno.EIO
                if step.name == "mount":
                    break
            poll_until(lambda: Path("/proc/sys/kernel/pty/nr").read_text() == ptys, 5)
            assert box.exec(["/bin/true"], pty=True).ok
        assert step.name == "exec"


# -- what a hostile container could do --------------------------------------------------------


def test_something_else_in_the_place_of_ptmx_is_no_terminal() -> None:
    """With the right to mount in it, a payload chooses what is opened there."""
    script = ("mkfifo /tmp/trap && mount --bind /tmp/trap /dev/pts/ptmx && echo set;"
              "exec sleep 1000")  # fmt: skip
    how: dict[str, Any] = {"profile": "standard", "capabilities": ["SYS_ADMIN"], "user": 0}
    with container(["sh", "-c", script], pty=True, **how) as box:
        poll_until(lambda: "\n" in box.logs(), 10, what="the trap")
        if "set" not in box.logs():
            pytest.skip(f"it cannot mount: {box.logs()}")
        with pytest.raises(nsbox.SetupError) as caught:
            box.exec(["true"], pty=True, timeout=kit.PATIENCE)
        assert (caught.value.name, caught.value.call) == ("pty", "fstatfs")
        assert (caught.value.field, caught.value.errno) == ("pty", errno.ENOTTY)
        assert box.exec(["true"]).ok


def test_a_file_system_over_dev_pts_is_covered() -> None:
    script = ("mount -t tmpfs none /dev/pts && ln -s /tmp/x /dev/pts/ptmx && echo set;"
              "exec sleep 1000")  # fmt: skip
    how: dict[str, Any] = {"profile": "standard", "capabilities": ["SYS_ADMIN"], "user": 0}
    with container(["sh", "-c", script], **how) as box:
        poll_until(lambda: "\n" in box.logs(), 10, what="the tmpfs")
        if "set" not in box.logs():
            pytest.skip(f"it cannot mount: {box.logs()}")
        assert said(box, "tty; ls /dev/pts").split() == ["/dev/pts/0", "0", "ptmx"]


def test_a_payload_that_took_all_terminals_is_told_of() -> None:
    code = ("import os, time\nheld = []\ntry:\n    while True: held.append(os.openpty())\n"
            "except OSError: print('all', len(held), flush=True)\ntime.sleep(1000)")  # fmt: skip
    with container(["/usr/bin/python3", "-ISc", code], pty=True) as box:
        poll_until(lambda: "all" in box.logs(), 10, what="all of them")
        match = re.search(r"all (\d+)", box.logs())
        assert match is not None
        assert int(match[1]) < 64
        with pytest.raises(nsbox.SetupError) as caught:
            box.exec(["true"], pty=True)
        assert (caught.value.field, caught.value.errno) == ("pty", errno.ENOSPC)
        assert nsbox.run(["true"], pty=True).ok, "its own limit, not the host's"
