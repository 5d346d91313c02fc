# SPDX-License-Identifier: Apache-2.0
"""nsbox exec: one more process in a sandbox that another process owns."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import signal
import struct
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli import kit
from support import poll_until

import nsbox
from nsbox import registry, sandboxes
from nsbox.elsewhere import read_spec

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = pytest.mark.userns

SLEEP = ["sleep", "1000"]


@pytest.fixture
def box() -> Iterator[nsbox.Container]:
    """Of this process; the command line is another."""
    with nsbox.Container(SLEEP, name="box", hostname="box", env={"A": "of the box"}) as made:
        yield made


def enter(*args: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return kit.nsbox("exec", *args, **keywords)


@pytest.mark.usefixtures("box")
def test_it_is_in_the_sandbox_with_its_environment_and_its_processes() -> None:
    script = 'hostname; echo "$A"; id -u; tr "\\0" " " < /proc/1/cmdline'
    said = kit.out(enter("box", "sh", "-c", script)).splitlines()
    assert said == ["box", "of the box", "1000", "sleep 1000"]


def test_every_namespace_is_the_sandbox_s(box: nsbox.Container) -> None:
    said = kit.out(enter(str(box.pid), "sh", "-c", "cd /proc/self/ns; readlink *"))
    ids = {int(line.partition("[")[2].rstrip("]")) for line in said.splitlines()}
    assert set(box.namespaces.values()) <= ids


def test_its_restrictions_are_the_sandbox_s(box: nsbox.Container) -> None:
    names = ("CapEff", "CapBnd", "CapPrm", "NoNewPrivs", "Seccomp")

    def chosen(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith(names)]

    inside = chosen(kit.out(enter("box", "cat", "/proc/self/status")))
    with open(f"/proc/{box.pid}/status") as file:
        assert inside == chosen(file.read())
    assert "NoNewPrivs:\t1" in inside
    with open("/proc/self/status") as file:
        assert inside != chosen(file.read()), "which are not those of who asks"


@pytest.mark.usefixtures("box")
def test_options_are_on_top_of_the_sandbox_s() -> None:
    args = ("-e", "B=2", "-e", "A=3", "-w", "/usr", "-u", "55" if kit.ROOT else "1000", "box")
    said = kit.out(enter(*args, "sh", "-c", 'echo "$A $B $(pwd) $(id -u)"'))
    assert said == f"3 2 /usr {55 if kit.ROOT else 1000}"


@pytest.mark.usefixtures("box")
def test_streams_and_exit_codes_are_as_with_run() -> None:
    done = enter("-i", "box", "sh", "-c", "cat; echo err >&2; exit 7", input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "err\n")
    assert enter("box", "no-such-program").returncode == 127
    assert enter("box", "/etc/passwd").returncode in (126, 127)
    assert enter("box").returncode == 125


# -- with a terminal --------------------------------------------------------------------------


def test_it_has_a_terminal_of_the_sandbox_s_own(box: nsbox.Container) -> None:
    script = "test -t 0 && test -t 1 && stty size && tty && read line && echo said $line; exit 7"
    with kit.on_a_terminal("exec", "-it", "box", "sh", "-c", script) as (terminal, process):
        cooked = termios.tcgetattr(terminal)
        os.write(terminal, b"hello\n")
        shown = kit.shown(terminal, "said hello")
        assert process.wait(kit.PATIENCE) == 7
        assert termios.tcgetattr(terminal) == cooked, "ours is as it was"
    assert "31 97" in shown, "as large as ours"
    assert "/dev/pts/0" in shown, "the first of a devpts of its own"
    assert box.status() == "running"


@pytest.mark.usefixtures("box")
def test_keys_and_the_size_of_the_window_are_passed_on() -> None:
    script = "trap 'echo key' INT; trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with kit.on_a_terminal("exec", "-i", "-t", "box", "sh", "-c", script) as (terminal, process):
        kit.shown(terminal, "ready")
        os.write(terminal, b"\x03")
        kit.shown(terminal, "key")
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 44, 55, 0, 0))
        process.send_signal(signal.SIGWINCH)  # it is not in the foreground of that terminal
        kit.shown(terminal, "44 55")
        os.write(terminal, b"\x1c")
        assert process.wait(kit.PATIENCE) == 131, "SIGQUIT by its key"


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "ALRM"])
@pytest.mark.parametrize("option", ["-it", "-t"])
def test_signals_are_forwarded_from_a_terminal(option: str, name: str) -> None:
    script = f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    with kit.on_a_terminal("exec", option, "box", "sh", "-c", script) as (terminal, process):
        cooked = termios.tcgetattr(terminal)
        kit.shown(terminal, "ready")
        process.send_signal(getattr(signal, f"SIG{name}"))
        kit.shown(terminal, "got")
        assert process.wait(kit.PATIENCE) == 7
        assert termios.tcgetattr(terminal) == cooked


@pytest.mark.parametrize("own", [True, False], ids=["its session's", "another's"])
@pytest.mark.parametrize(("handler", "code"), [("-", 129), ("exit 7", 7)])
def test_a_terminal_that_is_closed_hangs_up(
    box: nsbox.Container, handler: str, code: int, own: bool
) -> None:
    script = f"trap '{handler}' HUP; echo ready; while :; do sleep 0.05; done"
    assert kit.hung_up("exec", "-it", "box", "sh", "-c", script, own=own) == (code, "")
    assert box.status() == "running"


@pytest.mark.usefixtures("box")
def test_without_input_its_terminal_has_the_end_of_it() -> None:
    with kit.on_a_terminal("exec", "-t", "box", "sh", "-c", "tty; cat; echo end") as (
        terminal,
        process,
    ):
        shown = kit.shown(terminal, "end")
        assert process.wait(kit.PATIENCE) == 0
    assert "/dev/pts/0" in shown


@pytest.mark.usefixtures("box")
def test_what_is_no_terminal_is_typed_into_its_own() -> None:
    done = enter("-it", "box", "sh", "-c", "stty -echo; cat; tty", input="in\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("in\n/dev/pts/0\n"), "\\r\\n, as text"


def test_the_sandbox_s_end_is_that_of_who_is_at_its_terminal(box: nsbox.Container) -> None:
    args = ("exec", "-it", "box", "sh", "-c", "echo ready; exec sleep 1000")
    with kit.on_a_terminal(*args) as (terminal, process):
        cooked = termios.tcgetattr(terminal)
        kit.shown(terminal, "ready")
        assert termios.tcgetattr(terminal) != cooked
        box.kill()
        assert process.wait(kit.PATIENCE) == 137
        assert termios.tcgetattr(terminal) == cooked


@pytest.mark.usefixtures("box")
def test_errors_are_told_on_ours() -> None:
    for args, code, says in (
        (("-it", "box", "no-such-program"), 127, "was not found"),
        (("-it", "nobody", "true"), 125, "no sandbox 'nobody' runs"),
        (("-it", "box"), 125, "COMMAND"),
    ):
        with kit.on_a_terminal("exec", *args) as (terminal, process):
            kit.shown(terminal, says)
            assert process.wait(kit.PATIENCE) == code


# -- whose it is ------------------------------------------------------------------------------


def test_its_end_is_not_the_sandbox_s_and_the_sandbox_s_is_its_own(box: nsbox.Container) -> None:
    kit.out(enter("box", "true"))
    assert box.status() == "running"
    with kit.going("exec", "box", "sh", "-c", "echo ready; exec sleep 1000") as process:
        assert kit.read_line(process) == "ready"
        kinds = {one["kind"]: one["owner"] for one in kit.ps(os.getpid(), process.pid)}
        assert kinds == {"container": os.getpid(), "exec": process.pid}
        box.kill()
        assert process.wait(kit.PATIENCE) == 137


def test_what_nsbox_run_started_can_be_entered_without_a_name() -> None:
    with kit.going("run", "sh", "-c", "echo ready; exec sleep 1000") as process:
        assert kit.read_line(process) == "ready"
        found = poll_until(lambda: [o for o in sandboxes.sandboxes() if o.owner == process.pid])
        poll_until(lambda: sandboxes.find(str(found[0].pid)).noted)
        assert kit.out(enter(str(found[0].pid), "echo", "inside")) == "inside"
        process.send_signal(signal.SIGTERM)
        assert process.wait(kit.PATIENCE) == 143


@pytest.mark.cgroup
def test_the_memory_limit_of_the_sandbox_holds_for_it_too() -> None:
    limits = nsbox.Limits(memory="32MiB", pids=9)
    hog = ("sh", "-c", "a=x; while :; do a=$a$a; done")
    with nsbox.Container(SLEEP, name="small", limits=limits) as box:
        assert enter("small", *hog).returncode == 137
        assert box.wait(kit.PATIENCE) == -signal.SIGKILL, "all of it, by oom_group"
        assert box.result().reason is nsbox.Reason.OOM


@pytest.mark.cgroup
def test_a_paused_sandbox_is_not_entered() -> None:
    with nsbox.Container(SLEEP, name="still", limits=nsbox.Limits(pids=9)) as box:
        box.pause()
        done = enter("still", "echo", "inside")
        assert (done.returncode, done.stdout) == (125, "")
        assert "sandbox still is paused: cannot exec" in done.stderr
        box.resume()
        assert kit.out(enter("still", "echo", "inside")) == "inside"


@pytest.mark.cgroup
def test_the_cgroups_of_the_sandbox_are_its_own() -> None:
    with nsbox.Container(SLEEP, name="small") as box:
        with kit.going("exec", "small", "sh", "-c", "echo ready; exec sleep 1000") as process:
            assert kit.read_line(process) == "ready"
            (one,) = [o for o in sandboxes.sandboxes() if o.owner == process.pid]
            places = sandboxes.find("small").cgroups
            assert places
            now = sandboxes.own_cgroups(one.pid)
            assert {key: now[key] for key in places} == places
            box.kill()
            process.wait(kit.PATIENCE)


def test_what_a_library_started_without_a_note_is_left_to_it() -> None:
    with nsbox.Popen(SLEEP) as process:
        done = enter(str(process.pid), "true")
        assert done.returncode == 125
        assert f"is of process {os.getpid()}, which alone can enter it" in done.stderr


class Trap:
    """Unpickled by who trusts it, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_note_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    text = pickle.dumps(Trap(str(trap))).hex()
    with nsbox.Container(SLEEP, name="box") as box:
        said = json.loads(Path(box._note).read_text())
        with open(box._note, "w") as file:
            json.dump({**said, "spec": text}, file)
        done = enter("box", "true")
    assert done.returncode == 125
    assert "damaged" in done.stderr
    assert not trap.exists()
    pickle.loads(bytes.fromhex(text))
    assert trap.exists(), "and it would have sprung"


@pytest.mark.parametrize("text", ["", "00", "zz", pickle.dumps(1).hex(), pickle.dumps([]).hex()])
def test_a_note_without_a_spec_is_damaged(text: str) -> None:
    with pytest.raises(nsbox.StateError, match="damaged"):
        read_spec(text)


def test_a_note_is_the_user_s_alone(box: nsbox.Container) -> None:
    status = os.stat(box._note)
    assert status.st_mode & 0o077 == 0
    assert os.stat(registry.directory()).st_mode & 0o077 == 0
    said = json.loads(Path(box._note).read_text())
    assert b"of the box" in bytes.fromhex(said["spec"]), "for this is in it"


@pytest.mark.usefixtures("box")
def test_large_files_are_not_in_the_note() -> None:
    with nsbox.Container(SLEEP, name="big", files={"f": b"x" * 3_000_000}) as big:
        assert os.stat(big._note).st_size < 10000
        assert kit.out(enter("big", "pwd")) == "/tmp"
