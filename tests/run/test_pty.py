# SPDX-License-Identifier: Apache-2.0
"""pty=True: a terminal of the sandbox's own, and the caller's lent to it by relay."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import deadline, poll_until, scaled

import nsbox
from nsbox import Limits, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns


def tty_run(script: str, **keywords: Any) -> nsbox.Completed:
    return kit.sh(script, pty=True, **keywords)


def read_until(fd: int, what: bytes, timeout_s: float = 15) -> bytes:
    """What comes out of a terminal until it has *what*."""
    got, end = b"", deadline(timeout_s)
    while what not in got:
        assert select.select([fd], [], [], end.left)[0], f"no {what!r} in {got!r}"
        got += os.read(fd, 4096)
    return got


# -- run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["strict", "standard", "none"])
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_all_three_are_a_terminal_of_its_own(profile: str, init: bool) -> None:
    script = "tty; test -t 0 && test -t 1 && test -t 2 && echo three; readlink /proc/self/fd/2"
    if profile == "none" and not kit.ROOT:
        pytest.skip("an ordinary user cannot have proc in this profile")
    lines = kit.out(tty_run(script, profile=profile, init=init)).split()
    assert lines == ["/dev/pts/0", "three", "/dev/pts/0"]


@pytest.mark.kernel
def test_it_is_the_controlling_terminal_of_its_session() -> None:
    done = tty_run("echo by name > /dev/tty; ps -o tty= -p $$; ps -o tpgid=,pgid= -p $$")
    name, tty, groups = kit.out(done).splitlines()
    assert (name, tty.strip()) == ("by name", "pts/0")
    assert len(set(groups.split())) == 1


@pytest.mark.kernel
def test_its_dev_pts_shows_nobody_elses() -> None:
    assert kit.out(tty_run("ls /dev/pts")).split() == ["0", "ptmx"]
    assert kit.out(tty_run("readlink /dev/ptmx")) == "pts/ptmx"


@pytest.mark.kernel
def test_it_is_the_users_own() -> None:
    assert kit.out(tty_run("stat -c '%u %a' /dev/pts/0; id -u")).split() == ["1000", "600", "1000"]


@pytest.mark.kernel
def test_a_program_inside_can_make_more_of_them() -> None:
    code = "import os; m, s = os.openpty(); print(os.ttyname(s))"
    assert kit.out(kit.python(code, pty=True)) == "/dev/pts/1"


def test_input_is_typed_and_ends() -> None:
    done = tty_run("stty -echo; cat; echo end", input="hello\n")
    assert kit.out(done).endswith("hello\nend")
    done = tty_run("stty -echo; cat; echo; echo end", input="no newline")
    assert kit.out(done).endswith("no newline\nend")


def test_without_input_there_is_an_end_at_once() -> None:
    assert kit.out(tty_run("cat; echo end")) == "end"


def test_output_has_both_streams_and_there_is_no_stderr() -> None:
    done = tty_run("echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\nerr\n", None)


def test_output_that_is_not_captured_is_relayed(capfd: pytest.CaptureFixture[str]) -> None:
    assert nsbox.run(["echo", "hello"], pty=True).ok
    assert capfd.readouterr().out == "hello\r\n"


def test_its_size_is_what_was_asked_for() -> None:
    assert kit.out(tty_run("stty size")) == "24 80"
    assert kit.out(kit.run("stty", "size", pty=(50, 132))) == "50 132"


def test_term_is_set_but_not_against_ones_will() -> None:
    assert kit.out(tty_run("echo $TERM")) == "xterm"
    assert kit.out(tty_run("echo $TERM", env={"TERM": "dumb"})) == "dumb"


def test_a_flood_meets_the_limit_of_output() -> None:
    done = kit.run("yes", pty=True, limits=Limits(output=5000))
    assert (done.reason, len(str(done.stdout)) <= 5000) == (Reason.OUTPUT_LIMIT, True)


def test_a_directory_as_root_has_it_too(tmp_path: Path) -> None:
    root = kit.busybox_root(tmp_path / "root")
    tmp_path.chmod(0o755)
    done = kit.run("/bin/sh", "-c", "readlink /proc/self/fd/0", root=root, pty=True, proc="full")
    assert kit.out(done) == "/dev/pts/0"


@pytest.mark.parametrize("value", ["yes", 3, (0, 80), (24,), (24, 70000), (24, "80")])
def test_a_pty_that_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises((nsbox.SpecError, TypeError)):
        nsbox.run(["true"], pty=value)


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_streams_of_the_callers_cannot_be_given_too(stream: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], pty=True, **{stream: nsbox.DEVNULL})
    assert caught.value.field == stream
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Container(["true"], pty=True, **{stream: nsbox.DEVNULL})
    assert caught.value.field == stream


def test_without_a_mount_namespace_it_is_refused() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], pty=True, namespaces=kit.spaces("pid"))
    assert caught.value.field == "pty"


def test_set_up_that_fails_afterwards_leaves_nothing() -> None:
    with pytest.raises(nsbox.CommandNotFound):
        nsbox.run(["/no/such"], pty=True)


# -- Popen --------------------------------------------------------------------------------------


def test_a_popen_is_talked_to_by_its_terminal() -> None:
    script = "stty -echo; echo ready; read line; echo got $line"
    with nsbox.Popen(["sh", "-c", script], pty=True) as process:
        terminal = process.terminal
        assert terminal is not None
        assert process.stdin is process.stdout is process.stderr is None
        read_until(terminal.fileno(), b"ready")
        terminal.write(b"hello\n")
        assert b"got hello" in read_until(terminal.fileno(), b"hello")
        assert process.wait(kit.PATIENCE) == 0
        assert terminal.read() in (b"\r\n", b"")
        assert terminal.read() == b""
    assert terminal.closed


@pytest.mark.kernel
def test_interrupt_is_a_key() -> None:
    """^C typed there is SIGINT for the foreground of the sandbox."""
    with nsbox.Popen(["sh", "-c", "echo ready; exec sleep 1000"], pty=True) as process:
        assert process.terminal is not None
        read_until(process.terminal.fileno(), b"ready")
        process.terminal.write(b"\x03")
        assert process.wait(kit.PATIENCE) == -signal.SIGINT


def test_a_change_of_size_is_a_signal() -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    with nsbox.Popen(["sh", "-c", script], pty=True) as process:
        assert process.terminal is not None
        read_until(process.terminal.fileno(), b"ready")
        process.terminal.resize(40, 100)
        assert process.terminal.size == (40, 100)
        assert b"40 100" in read_until(process.terminal.fileno(), b"100")


def test_hanging_up_ends_who_does_not_mind() -> None:
    with nsbox.Popen(["sh", "-c", "echo ready; exec sleep 1000"], pty=True) as process:
        assert process.terminal is not None
        read_until(process.terminal.fileno(), b"ready")
        process.terminal.close()
        assert process.wait(kit.PATIENCE) == -signal.SIGHUP


def test_communicate_types_and_reads() -> None:
    with nsbox.Popen(["sh", "-c", "stty -echo; cat"], pty=True, text=True) as process:
        out, err = process.communicate("hello\n")
        assert (str(out).endswith("hello\n"), err) == (True, None)


# -- Container ----------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_containers_terminal_is_logged_and_typed_into() -> None:
    script = "stty -echo; echo ready; read line; echo got $line; sleep 1000"
    with nsbox.Container(["sh", "-c", script], pty=True) as container:
        poll_until(lambda: "ready" in container.logs(), 15, what="ready")
        assert container.terminal is not None
        container.terminal.write(b"hello\n")
        poll_until(lambda: "got hello\r\n" in container.logs(), 15, what="an answer")
        assert container.logs("stderr") == ""


# -- the caller's terminal ----------------------------------------------------------------------


@contextlib.contextmanager
def terminal_of_a_program(code: str, *args: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A Python program whose controlling terminal is a new one: this test's end of it."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    control = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    argv = [sys.executable, "-c", control + code, *args]
    program = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    try:
        yield master, program
    finally:
        program.kill()
        program.wait()
        os.close(slave)
        os.close(master)


def modes(fd: int) -> list[Any]:
    return termios.tcgetattr(fd)


ATTACH = """
import nsbox, os, signal, sys
with nsbox.Popen(["sh", "-c", sys.argv[1]], pty=True) as process:
    code = nsbox.attach(process)
print("code", code, flush=True)
"""


@pytest.mark.kernel
def test_attach_relays_keys_output_and_size() -> None:
    script = (
        "until stty size | grep 33; do sleep 0.02; done; echo ready; read x; echo got $x; exit 7"
    )
    with terminal_of_a_program(ATTACH, script) as (master, program):
        cooked = modes(master)
        shown = read_until(master, b"ready")
        assert b"33 77" in shown
        assert not modes(master)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)
        os.write(master, b"hello\r")
        assert b"got hello" in read_until(master, b"code 7")
        assert program.wait(kit.PATIENCE) == 0
        assert modes(master) == cooked


def test_attach_passes_on_keys_that_would_be_signals_for_the_caller() -> None:
    script = "trap 'echo interrupted' INT; echo ready; read line; read line; exit 3"
    with terminal_of_a_program(ATTACH, script) as (master, program):
        read_until(master, b"ready")
        os.write(master, b"\x03")
        read_until(master, b"interrupted")
        os.write(master, b"\r\r")
        read_until(master, b"code 3")
        assert program.wait(kit.PATIENCE) == 0


def test_attach_forwards_the_size_of_the_window() -> None:
    first = "until stty size | grep -q '33 77'; do sleep 0.02; done; "
    script = first + "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.01; done"
    with terminal_of_a_program(ATTACH, script) as (master, program):
        read_until(master, b"ready")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 55, 0, 0))
        read_until(master, b"44 55")
        assert program.wait(kit.PATIENCE) == 0


@pytest.mark.parametrize(
    "name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU"]
)
def test_a_signal_leaves_the_callers_terminal_as_it_was(name: str) -> None:
    number = getattr(signal, name)
    with terminal_of_a_program(ATTACH, "echo ready; exec sleep 1000") as (master, program):
        cooked = modes(master)
        read_until(master, b"ready")
        assert modes(master) != cooked
        program.send_signal(number)
        assert program.wait(kit.PATIENCE) == -number
        assert modes(master) == cooked


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        pytest.param("Popen", -signal.SIGHUP, id="hangs up the terminal of a Popen"),
        pytest.param("Container", 6, id="is the end of the input of a container"),
    ],
)
def test_a_terminal_that_has_gone_while_the_caller_goes_on(
    kind: str, code: int, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    script = "echo ready; while read -r x; do :; done; exit 6"
    program = (
        ATTACH.replace("nsbox.Popen(", f"nsbox.{kind}(")
        .replace("with ", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nwith ")
        .replace("flush=True", "file=open(sys.argv[2], 'w')")
    )
    control = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    master, slave = pty.openpty()
    with said.open("w") as words, subprocess.Popen(
        [sys.executable, "-c", control + program, script, str(tmp_path / "code")],
        stdin=slave, stdout=slave, stderr=words, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        try:
            read_until(master, b"ready")
            os.close(master)
            assert process.wait(kit.PATIENCE) == 0
        finally:
            process.kill()
    assert (said.read_text(), (tmp_path / "code").read_text()) == ("", f"code {code}\n")


def test_an_exception_leaves_the_callers_terminal_as_it_was() -> None:
    code = ATTACH.replace("with nsbox.Popen", "import nsbox.terminal as t, threading\n"
                          "def boom(self): raise RuntimeError('boom')\n"
                          "t._Relay._show = boom\nwith nsbox.Popen")  # fmt: skip
    with terminal_of_a_program(code, "echo ready; exec sleep 1000") as (master, program):
        cooked = modes(master)
        read_until(master, b"boom")
        assert program.wait(kit.PATIENCE) == 1
        assert modes(master) == cooked


def test_attach_to_a_container_shows_what_was_and_what_comes() -> None:
    code = ATTACH.replace("nsbox.Popen(", "nsbox.Container(")
    with terminal_of_a_program(code, "echo ready; read line; echo got $line; exit 4") as (
        master,
        program,
    ):
        read_until(master, b"ready")
        os.write(master, b"hello\r")
        read_until(master, b"code 4")
        assert program.wait(kit.PATIENCE) == 0


@pytest.mark.parametrize("kind", ["Popen", "Container"])
def test_attach_to_what_has_just_ended_shows_what_it_wrote(kind: str) -> None:
    code = ATTACH.replace("nsbox.Popen(", f"nsbox.{kind}(").replace(
        "    code =", "    process.wait(20)\n    code ="
    )
    with terminal_of_a_program(code, "echo quick; exit 8") as (master, program):
        assert b"quick" in read_until(master, b"code 8")
        assert program.wait(kit.PATIENCE) == 0


def test_attach_types_what_is_no_terminal() -> None:
    script = "stty -echo; cat; exit 6"
    argv = [sys.executable, "-c", ATTACH, script]
    done = subprocess.run(
        argv, input=b"a\nb", stdout=subprocess.PIPE, timeout=kit.PATIENCE, check=False
    )
    assert done.stdout.replace(b"\r", b"").endswith(b"a\nbcode 6\n")


def test_attach_needs_a_terminal() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process, pytest.raises(nsbox.StateError, match="pty"):
        nsbox.attach(process)


def test_a_terminal_that_was_closed_says_so() -> None:
    with nsbox.Container(["true"], pty=True) as container:
        container.wait(kit.PATIENCE)
        poll_until(lambda: container.terminal is not None and container.terminal.closed)
        assert container.terminal is not None
        for use in (container.terminal.read, lambda: container.terminal.write(b"x"),
                    lambda: container.terminal.size, container.terminal.fileno):  # fmt: skip
            with pytest.raises(ValueError, match="closed"):
                use()
        container.terminal.close()


# -- what is typed into the caller's terminal (TIOCSTI) -----------------------------------------

STUFF = """
import ctypes, os, termios
libc = ctypes.CDLL(None, use_errno=True)
for request in (termios.TIOCSTI, termios.TIOCSTI | 1 << 32):
    for fd in (0, 1, 2):
        done = libc.ioctl(fd, ctypes.c_ulong(request), ctypes.byref(ctypes.c_char(b"X")))
        print("typed" if done == 0 else "refused")
try:
    os.open("/dev/tty", os.O_RDWR)
    print("tty open")
except OSError as e:
    print("no tty")
"""
SANDBOXED = """
import nsbox, sys
how = {"pty": {"pty": True}, "stdin": {"stdin": 0}, "pipes": {}}[sys.argv[2].rpartition(" ")[2]]
args = ["/usr/bin/python3", "-I", "-S", "-c", sys.argv[1]]
if sys.argv[2].startswith("exec"):
    with nsbox.Container(["sleep", "1000"], profile="standard") as box:  # which has a /dev/tty
        done = box.exec(args, capture_output=True, text=True, **how)
else:
    done = nsbox.run(args, capture_output=True, text=True, **how)
print(done.stdout, flush=True)
"""
DONE = "\nprint('done', flush=True)\nimport time; time.sleep(1000)\n"


#: Where this is 0, TIOCSTI is for CAP_SYS_ADMIN only (Linux 6.2); older kernels have none.
_SWITCH = Path("/proc/sys/dev/tty/legacy_tiocsti")
LEGACY = not _SWITCH.exists() or _SWITCH.read_text().strip() == "1"


def _typed(code: str, *args: str) -> tuple[list[str], bool]:
    """Output of a program, and whether it typed something into its terminal."""
    with terminal_of_a_program(code + DONE, *args) as (master, _):
        quiet = modes(master)
        quiet[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(master, termios.TCSANOW, quiet)
        shown = read_until(master, b"done").decode()
        slave = _slave_of(master)
        try:
            count = struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, bytes(4)))[0]
        finally:
            os.close(slave)
        return shown.splitlines(), count > 0


def _slave_of(master: int) -> int:
    number = struct.unpack("I", fcntl.ioctl(master, 0x80045430, bytes(4)))[0]  # TIOCGPTN
    return os.open(f"/dev/pts/{number}", os.O_RDONLY | os.O_NOCTTY)


@pytest.mark.kernel
@pytest.mark.parametrize("how", ["pipes", "stdin", "pty", "exec pipes", "exec stdin", "exec pty"])
def test_nothing_is_typed_into_the_callers_terminal(how: str) -> None:
    """Not even when the caller hands it in as stdin: it is another session's."""
    shown, typed = _typed(SANDBOXED, STUFF, how)
    assert not typed
    own = how.endswith("pty")  # into its own it may type, and sees the echo
    assert any(line.endswith("typed") for line in shown) == (own and LEGACY)
    assert any(line.endswith("tty open") for line in shown) == own


def test_on_the_host_the_same_program_types_into_its_terminal() -> None:
    if not (LEGACY or kit.ROOT):
        pytest.skip("dev.tty.legacy_tiocsti is 0: the kernel refuses it to everybody")
    shown, typed = _typed(STUFF)
    assert typed
    assert any(line.endswith("typed") for line in shown)
    assert "tty open" in shown


@pytest.mark.kernel
def test_the_host_sees_no_new_pty_after_the_end() -> None:
    def count() -> int:
        return int(Path("/proc/sys/kernel/pty/nr").read_text())

    before = count()
    with nsbox.Popen(["sleep", "1000"], pty=True):
        assert count() == before + 1
    poll_until(lambda: count() == before, scaled(2), what="the pty to go")
