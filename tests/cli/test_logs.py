# SPDX-License-Identifier: Apache-2.0
"""nsbox logs: what a container wrote, read by a process that does not own it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli import kit
from support import deadline, poll_until, scaled

import nsbox
from nsbox import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns

MIB = 1 << 20
TALK = "echo out; echo err >&2; echo more; exec sleep 1000"


def talking(script: str = TALK, last: str = "more", **keywords: object) -> nsbox.Container:
    """One of this process that has said *last*; the command line is another process."""
    box = nsbox.Container(["sh", "-c", script], name="talker", **keywords)
    try:
        box.start()
        poll_until(lambda: last in box.logs(), 15, what=last)
    except BaseException:
        box.close()
        raise
    return box


@pytest.fixture
def box() -> Iterator[nsbox.Container]:
    with talking() as made:
        yield made


def logs(*args: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return kit.nsbox("logs", *args, **keywords)


def test_it_is_read_by_name_and_by_id(box: nsbox.Container) -> None:
    assert sorted(logs("talker").stdout.split()) == ["err", "more", "out"]
    assert logs(str(box.pid)).stdout == box.logs()


@pytest.mark.usefixtures("box")
def test_a_stream_and_its_last_lines_can_be_chosen() -> None:
    assert logs("--stream", "stdout", "talker").stdout == "out\nmore\n"
    assert logs("--stream", "stderr", "talker").stdout == "err\n"
    assert logs("--stream", "stdout", "--tail", "1", "talker").stdout == "more\n"
    assert logs("--tail", "0", "talker").stdout == ""
    assert len(logs("--tail", "2", "talker").stdout.splitlines()) == 2


@pytest.mark.usefixtures("box")
def test_json_is_a_line_for_each_piece_and_tells_the_streams_apart() -> None:
    lines = [json.loads(line) for line in logs("--json", "talker").stdout.splitlines()]
    for stream, text in (("stdout", "out\nmore\n"), ("stderr", "err\n")):
        assert "".join(one["text"] for one in lines if one["stream"] == stream) == text


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nobody"], "no sandbox 'nobody' runs"),
        ([], "required"),
        (["--tail", "-1", "talker"], "tail: -1 is not in"),
        (["--tail", "x", "talker"], "invalid int"),
        (["--stream", "out", "talker"], "invalid choice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(args: list[str], says: str) -> None:
    done = logs(*args)
    assert (done.returncode, done.stdout) == (125, "")
    assert says in done.stderr.splitlines()[-1]


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    with talking("seq 100000; exec sleep 1000", "100000\n"):
        said = kit.shell('"$PYTHON" -m nsbox logs talker 2>&1 | head -n 2')
        assert said == "1\n2\n"


def test_bytes_are_as_they_were_written() -> None:
    with talking("printf 'a\\377\\033[1mb\\r\\nend'; exec sleep 1000", "end"):
        assert logs("talker", text=False).stdout == b"a\xff\x1b[1mb\r\nend"


def test_a_terminal_gets_nothing_that_it_would_obey() -> None:
    said = "printf 'a\\033[2Jb\\tc\\r\\nd\\302\\233e\\377end\\n'; exec sleep 1000"
    with talking(said, "end"):
        master, slave = pty.openpty()
        try:
            done = subprocess.run(kit.command("logs", "talker"), stdin=subprocess.DEVNULL,
                                  stdout=slave, cwd=kit.TREE, timeout=kit.PATIENCE)  # fmt: skip
            shown = os.read(master, 4096)
        finally:
            os.close(master)
            os.close(slave)
    assert done.returncode == 0
    assert shown.decode() == "a\\x1b[2Jb\tc\r\nd\\x9be\N{REPLACEMENT CHARACTER}end\r\n"


# -- follow -----------------------------------------------------------------------------------


@pytest.mark.kernel
def test_following_gives_what_was_and_what_comes_to_the_end() -> None:
    read, write = os.pipe()
    script = "echo one; read line; echo two; read line; echo three >&2; exit 3"
    with talking(script, "one", stdin=read) as box:
        with kit.going("logs", "-f", "talker") as follower:
            assert kit.read_line(follower) == "one"
            os.write(write, b"go\n")
            assert kit.read_line(follower) == "two"
            assert follower.poll() is None
            os.write(write, b"go\n")
            assert kit.read_line(follower) == "three"
            told = deadline(4)  # by its owner, who might have taken longer
            assert follower.wait(told.left) == 0, "its end is not an error"
        assert box.wait(kit.PATIENCE) == 3
    os.close(read)
    os.close(write)


def test_following_begins_with_the_last_lines_and_goes_on_with_all() -> None:
    read, write = os.pipe()
    with (
        talking("seq 5; read line; seq 6 9", "5\n", stdin=read),
        kit.going("logs", "--follow", "--tail", "1", "talker") as follower,
    ):
        assert kit.read_line(follower) == "5"
        os.write(write, b"go\n")
        assert follower.communicate(timeout=kit.PATIENCE)[0] == "6\n7\n8\n9\n"
        assert follower.returncode == 0
    os.close(read)
    os.close(write)


@pytest.mark.usefixtures("box")
def test_an_interrupt_ends_the_follower_alone(box: nsbox.Container) -> None:
    with kit.going("logs", "-f", "talker") as follower:
        assert kit.read_line(follower) in ("out", "err")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(kit.PATIENCE) == 130
    assert box.status() == "running"


def test_all_that_it_wrote_before_its_end_is_followed() -> None:
    """Its first process has ended before its owner has read all of it."""
    read, write = os.pipe()
    with talking("echo ready; read line; exec seq 20000", "ready", stdin=read):
        with kit.going("logs", "-f", "talker") as follower:
            assert kit.read_line(follower) == "ready"
            os.write(write, b"go\n")
            assert follower.stdout is not None
            rest = follower.stdout.read()
            assert follower.wait(kit.PATIENCE) == 0
        assert rest == "".join(f"{i}\n" for i in range(1, 20001))
    os.close(read)
    os.close(write)


def test_a_follower_that_stands_still_holds_nobody_up() -> None:
    read, write = os.pipe()
    flood = "echo ready; read line; head -c 30000000 /dev/zero | tr '\\0' x; echo; echo done"
    with talking(flood, "ready", stdin=read) as box:
        with kit.going("logs", "-f", "talker") as follower:
            assert kit.read_line(follower) == "ready"
            follower.send_signal(signal.SIGSTOP)
            os.write(write, b"go\n")
            assert box.wait(scaled(30)) == 0
            assert box.logs(tail=1) == "done\n"
            assert len(box.logs()) == MIB
            follower.send_signal(signal.SIGCONT)
            assert follower.stdout is not None
            rest = follower.stdout.read()
            assert follower.wait(kit.PATIENCE) == 0
        assert rest.endswith("x\ndone\n")
        assert len(rest) <= MIB, "what was dropped meanwhile is missed"
    os.close(read)
    os.close(write)


# -- its owner --------------------------------------------------------------------------------

OWNER = """
import ctypes, nsbox, os, sys, time
if sys.argv[1] == "not dumpable":
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
box = nsbox.Container(["sh", "-c", "echo hello; exec sleep 1000"], name="theirs").start()
while "hello" not in box.logs():
    time.sleep(0.01)
print("ready", flush=True)
if sys.argv[1] == "another program":
    sys.stdin.readline()
    os.execvp("sleep", ["sleep", "1000"])
time.sleep(1000)
"""


@contextlib.contextmanager
def owner(how: str = "") -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-W", "ignore", "-c", OWNER, how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, text=True, cwd=kit.TREE, **pipes) as process:
        try:
            assert kit.read_line(process) == "ready"
            yield process
        finally:
            process.kill()


@pytest.mark.kernel
def test_an_owner_that_is_killed_ends_its_followers_and_leaves_nothing() -> None:
    with owner() as process, kit.going("logs", "-f", "theirs") as follower:
        assert kit.read_line(follower) == "hello"
        prefix = f"nsbox-{process.pid}-"
        assert [n for n in os.listdir(registry.directory()) if n.startswith(prefix)]
        process.kill()
        end = deadline(4)  # less than its owner's time for a last word
        assert follower.wait(end.left) == 0
        poll_until(
            lambda: not [n for n in os.listdir(registry.directory()) if n.startswith(prefix)], 10
        )
    assert logs("theirs").returncode == 125


def test_an_owner_that_becomes_another_program_ends_its_followers() -> None:
    """Its sandboxes end; it will not say that this was all, and goes on."""
    with owner("another program") as process, kit.going("logs", "-f", "theirs") as follower:
        assert kit.read_line(follower) == "hello"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert follower.wait(kit.PATIENCE) == 0
        assert process.poll() is None


def test_an_owner_that_may_not_be_looked_into_is_named() -> None:
    with owner("not dumpable") as process:
        done = logs("theirs")
        if kit.ROOT:
            assert done.stdout == "hello\n", "root may look into everybody"
        else:
            assert (done.returncode, done.stdout) == (125, "")
            assert f"process {process.pid}, which has it, may not be looked into" in done.stderr
            assert "ask as root" in done.stderr


def test_nobody_but_the_user_may_open_it(box: nsbox.Container) -> None:
    """By way of /proc alone, which the kernel keeps: there is no name of it anywhere else."""
    ring = box._log._ring
    assert ring is not None
    path = f"/proc/{os.getpid()}/fd/{ring.fd}"
    assert os.readlink(path) == "/memfd:nsbox-log (deleted)"
    if kit.ROOT:
        other = ["setpriv", "--reuid", "1001", "--regid", "1001", "--clear-groups"]
        done = subprocess.run([*other, "cat", path], capture_output=True, timeout=kit.PATIENCE)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"Permission denied" in done.stderr


def test_no_payload_may_open_it_that_sees_its_owner(box: nsbox.Container) -> None:
    """With one id only, it is a process of the same user, but of another user namespace."""
    ring = box._log._ring
    assert ring is not None
    path = f"/proc/{os.getpid()}/fd/{ring.fd}"
    kinds = ("user", "mnt", "ipc")
    done = nsbox.run(["sh", "-c", f"ls -d /proc/{os.getpid()}; cat {path}"], namespaces=kinds,
                     capture_output=True, text=True, timeout=kit.PATIENCE)  # fmt: skip
    assert done.stdout == f"/proc/{os.getpid()}\n", "it is in sight"
    assert "Permission denied" in str(done.stderr)
    with open(path, "rb") as file:
        assert b"out\n" in file.read(), "which is where it is"


def test_output_that_is_not_kept_is_not_shown() -> None:
    nowhere = {"stdout": nsbox.DEVNULL, "stderr": nsbox.DEVNULL}
    quiet = nsbox.Container(["sleep", "1000"], name="quiet", **nowhere)
    with quiet, nsbox.Popen(["sleep", "1000"]) as plain:
        for word in ("quiet", str(plain.pid)):
            done = logs(word)
            assert (done.returncode, done.stdout) == (125, "")
            assert f"is not kept: it goes to process {os.getpid()}" in done.stderr


def test_a_number_that_is_another_file_s_by_now_is_not_opened(
    box: nsbox.Container, tmp_path: Path
) -> None:
    """A FIFO would wait for a writer, and a device could do anything."""
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    file.write_text("secret")
    said = json.loads(Path(box._note).read_text())
    number, inode = said["log"]
    for path, claimed in ((fifo, fifo.stat().st_ino), (file, inode), (file, file.stat().st_ino)):
        fd = os.open(path, os.O_RDWR)
        Path(box._note).write_text(json.dumps({**said, "log": [fd, claimed]}))
        started = time.monotonic()
        done = logs("talker")
        assert time.monotonic() - started < scaled(10)
        os.close(fd)
        assert (done.returncode, done.stdout) == (125, "")
        assert "has ended" in done.stderr or "something else" in done.stderr
    Path(box._note).write_text(json.dumps({**said, "log": [fd, inode]}))
    assert "has ended" in logs("talker").stderr, "closed"
    Path(box._note).write_text(json.dumps({**said, "log": [number, inode]}))
    assert logs("talker").returncode == 0


def test_the_log_of_a_terminal_is_read_too() -> None:
    with talking("tty; echo end; exec sleep 1000", "end", pty=True):
        assert logs("talker", text=False).stdout == b"/dev/pts/0\r\nend\r\n"
