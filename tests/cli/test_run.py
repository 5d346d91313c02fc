# SPDX-License-Identifier: Apache-2.0
"""nsbox run: exit codes, streams, options and signals, by real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest
from cli import kit
from support import poll_until

from nsbox import registry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = pytest.mark.userns


def run(*args: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return kit.nsbox("run", *args, **keywords)


def start(*args: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return kit.going("run", *args)


# -- exit codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"),
    [
        pytest.param("exit 0", 0, id="of the command"),
        pytest.param("exit 3", 3, id="of the command that failed"),
        pytest.param("exit 125", 125, id="125 too, which says nothing then"),
        pytest.param("kill -9 $$", 137, id="128 + 9 for SIGKILL"),
        pytest.param("kill -TERM $$", 143, id="128 + 15 for SIGTERM"),
    ],
)
def test_the_exit_code_is(script: str, code: int) -> None:
    done = run("sh", "-c", script)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        pytest.param(["no-such-program"], 127, "was not found in the sandbox", id="not found: 127"),
        pytest.param(["/etc/passwd"], 126, "EACCES", id="not executable: 126"),
        pytest.param(["--memory", "12", "true"], 125, "did you mean", id="a bad limit: 125"),
        pytest.param(["--nope", "true"], 125, "usage: ", id="a bad option: 125"),
        pytest.param(["--cpu", "much", "true"], 125, "--cpu: 'much'", id="a bad number: 125"),
        pytest.param(["-v", "/etc", "true"], 125, "-v: '/etc' is not SRC", id="a bad volume: 125"),
        pytest.param(["-v", "/no/such:/d", "true"], 125, "open_tree: ENOENT", id="no source: 125"),
        pytest.param([], 125, "COMMAND: is missing", id="no command: 125"),
        pytest.param(["--env-file", "/no/such", "true"], 125, "/no/such", id="no env file: 125"),
    ],
)
def test_what_does_not_start_says_why(args: list[str], code: int, said: str) -> None:
    done = run(*args)
    assert done.returncode == code, done
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_time_that_is_up_ends_it_and_says_so() -> None:
    done = run("-t", "0.2", "sleep", "1000")
    assert (done.returncode, done.stderr) == (137, "nsbox: ended: timeout (--time 0.2)\n")


@pytest.mark.cgroup
def test_memory_that_is_used_up_ends_it_and_says_so() -> None:
    done = run("--memory", "16M", "sh", "-c", "a=x; while :; do a=$a$a; done")
    assert (done.returncode, done.stderr) == (137, "nsbox: ended: oom (--memory 16M)\n")


# -- streams ----------------------------------------------------------------------------------


def test_both_outputs_are_passed_on_apart() -> None:
    done = run("sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_output_comes_while_the_command_goes_on() -> None:
    with start("sh", "-c", "echo first; exec sleep 1000") as process:
        assert kit.read_line(process) == "first"
        assert process.poll() is None
        process.terminate()


def test_much_output_arrives_whole() -> None:
    done = run("head", "-c", "20000000", "/dev/zero")
    assert len(done.stdout) == 20000000


def test_standard_input_is_empty_without_i() -> None:
    assert kit.out(run("cat", input="not for you")) == ""


def test_standard_input_is_passed_on_with_i() -> None:
    data = "line\n" * 200000
    assert run("-i", "cat", input=data).stdout == data


def test_input_that_the_command_does_not_read_is_no_error() -> None:
    done = run("-i", "true", input="x" * 1000000)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_file_that_is_standard_output_is_not_handed_in(tmp_path: Path) -> None:
    """A descriptor of the host's could be opened again through /proc, for more than writing."""
    target = tmp_path / "out"
    with target.open("w") as file:
        kit.nsbox("run", "sh", "-c", "stat -L -c %F /proc/self/fd/1", capture_output=False,
                  stdout=file, stderr=subprocess.PIPE)  # fmt: skip
    assert target.read_text() == "fifo\n"


def test_a_reader_who_has_gone_ends_the_command_as_in_a_pipeline() -> None:
    with start("yes") as process:
        assert kit.read_line(process) == "y"
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(kit.PATIENCE) == 128 + signal.SIGPIPE


def test_a_signal_that_the_caller_ignores_is_not_forwarded() -> None:
    """As nohup has it."""
    script = "trap 'echo got' HUP; echo ready; while :; do sleep 0.05; done"
    command = ["env", "--ignore-signal=HUP", *kit.command("run", "sh", "-c", script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=kit.TREE) as process:
        assert kit.read_line(process) == "ready"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(kit.PATIENCE) == 143
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = kit.nsbox("run", "yes", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 125
    assert "No space left on device" in done.stderr
    assert "standard output" in done.stderr


def test_closed_standard_streams_stay_closed_to_the_payload() -> None:
    """What takes the free number must not be written into: it may be the launcher's socket."""
    script = '"$PYTHON" -m nsbox run echo hi >&- 2>&- <&-; echo $?'
    assert kit.shell(script) == "0\n"


# -- options ----------------------------------------------------------------------------------


def test_volumes_are_read_only_unless_rw_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    write = ("sh", "-c", "echo x > /data/file")
    assert run("-v", f"{tmp_path}:/data", *write).returncode != 0
    assert run("-v", f"{tmp_path}:/data:ro", *write).returncode != 0
    assert not (tmp_path / "file").exists()
    assert run("-v", f"{tmp_path}:/data:rw", *write).returncode == 0
    assert (tmp_path / "file").read_text() == "x\n"


def test_the_environment_comes_from_files_and_options_and_options_win(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=file\nB=file=2\nPASSED\n")
    done = run("--env-file", str(file), "-e", "A=option", "-e", "HERE", "-e", "ABSENT",
               "sh", "-c", 'echo "$A $B $PASSED $HERE ${ABSENT-none} ${SECRET-none}"',
               env={**os.environ, "PASSED": "p", "HERE": "h", "SECRET": "s"})  # fmt: skip
    assert kit.out(done) == "option file=2 p h none none"


def test_user_directory_and_host_name_are_as_said() -> None:
    done = run("-w", "/usr", "-u", "7:8", "--hostname", "web",
               "sh", "-c", "pwd; id -u; id -g; hostname")  # fmt: skip
    assert kit.out(done).split() == ["/usr", "7", "8", "web"]


def test_the_network_of_the_host_is_there_when_asked_for() -> None:
    args = ("--profile", "standard", "sh", "-c", "wc -l < /proc/net/dev")
    alone, host = kit.out(run(*args)), kit.out(run("--net", "host", *args))
    assert int(alone) == 3
    with open("/proc/net/dev") as file:
        assert int(host) == len(file.readlines())


@pytest.mark.cgroup
def test_limits_are_kept() -> None:
    args = ("--memory", "64M", "--cpu", "500m", "--pids", "9", "--json")
    plan = json.loads(kit.out(kit.nsbox("explain", *args, "true")))
    details = [step["detail"] for step in plan["steps"] if step["name"] == "limit"]
    assert "memory.max=67108864" in details
    assert "cpu.max=50000 100000" in details
    assert "pids.max=10" in details, "one for nsbox-init"


def test_it_gives_the_command_a_terminal_of_its_own() -> None:
    """The caller's is relayed, and never handed in: what is inside is another one."""
    script = "test -t 0 && test -t 1 && stty size && tty && read line && echo said $line"
    with kit.on_a_terminal("run", "-it", "--", "sh", "-c", script) as (terminal, process):
        os.write(terminal, b"hello\n")
        shown = kit.shown(terminal, "said hello")
        assert process.wait(kit.PATIENCE) == 0
    assert "31 97" in shown, "as large as the caller's"
    assert "/dev/pts/0" in shown, "the first of a devpts of its own"


def test_one_with_a_terminal_is_known_by_its_name_too() -> None:
    args = ("run", "-it", "--name", "shell", "sh", "-c", "echo ready; exec sleep 1000")
    with kit.on_a_terminal(*args) as (terminal, process):
        kit.shown(terminal, "ready")
        assert [one["name"] for one in kit.ps(process.pid)] == ["shell"]
        kit.out(kit.nsbox("stop", "shell"))
        assert process.wait(kit.PATIENCE) == 143


def test_why_one_with_a_terminal_ended_is_said_too() -> None:
    with kit.on_a_terminal("run", "-it", "-t", "0.3", "sleep", "1000") as (terminal, process):
        kit.shown(terminal, "nsbox: ended: timeout (--time 0.3)")
        assert process.wait(kit.PATIENCE) == 137


# -- signals ----------------------------------------------------------------------------------


FORWARDED = ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "ALRM"]


@pytest.mark.parametrize("name", FORWARDED)
def test_signals_are_forwarded(name: str) -> None:
    script = f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    with start("sh", "-c", script) as process:
        assert kit.read_line(process) == "ready"
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert kit.read_line(process) == "got"
        assert process.wait(kit.PATIENCE) == 7


@pytest.mark.parametrize("name", FORWARDED)
def test_signals_are_forwarded_from_a_terminal_too(name: str) -> None:
    """They ended nsbox instead, and some of them left the terminal raw."""
    script = f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    with kit.on_a_terminal("run", "-it", "sh", "-c", script) as (terminal, process):
        cooked = termios.tcgetattr(terminal)
        kit.shown(terminal, "ready")
        assert termios.tcgetattr(terminal) != cooked
        process.send_signal(getattr(signal, f"SIG{name}"))
        kit.shown(terminal, "got")
        assert process.wait(kit.PATIENCE) == 7
        assert termios.tcgetattr(terminal) == cooked


@pytest.mark.parametrize("name", ["XCPU", "VTALRM", "PROF", "IO", "SYS", "RTMIN"])
def test_a_signal_that_ends_nsbox_itself_leaves_the_terminal_as_it_was(name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    with kit.on_a_terminal("run", "-it", "sh", "-c", "echo ready; exec sleep 1000") as (
        terminal,
        process,
    ):
        cooked = termios.tcgetattr(terminal)
        kit.shown(terminal, "ready")
        assert termios.tcgetattr(terminal) != cooked
        process.send_signal(number)
        assert process.wait(kit.PATIENCE) == -number
        assert termios.tcgetattr(terminal) == cooked


@pytest.mark.parametrize("own", [True, False], ids=["its session's", "another's"])
@pytest.mark.parametrize(
    ("script", "code"),
    [
        pytest.param("echo ready; exec sleep 1000", 129, id="128 + 1 for SIGHUP"),
        pytest.param("trap 'exit 7' HUP; echo ready; while :; do sleep 0.05; done", 7,
                     id="of the command that handles SIGHUP"),
        pytest.param("trap '' HUP; echo ready; while read -r x; do :; done; exit 9", 9,
                     id="of the command that ignores it and finds no input"),
    ],
)  # fmt: skip
def test_the_exit_code_when_the_terminal_is_closed_is(script: str, code: int, own: bool) -> None:
    """Once it was 1, with a traceback: termios.error is no OSError."""
    assert kit.hung_up("run", "-it", "sh", "-c", script, own=own) == (code, "")


def test_why_it_ended_cannot_be_said_on_a_terminal_that_was_closed() -> None:
    """The interpreter tries once more at its end, and exits with 120."""
    script = "trap '' HUP; echo ready; while :; do sleep 0.05; done"
    args = ("run", "-it", "--time", "2", "sh", "-c", script)
    assert kit.hung_up(*args, own=False) == (137, "")


def test_a_signal_that_is_not_caught_is_the_exit_code() -> None:
    with start("sh", "-c", "echo ready; exec sleep 1000") as process:
        assert kit.read_line(process) == "ready"
        process.send_signal(signal.SIGINT)
        assert process.wait(kit.PATIENCE) == 130


def test_a_third_interrupt_ends_what_does_not_heed_the_first() -> None:
    with start(
        "sh", "-c", "trap 'echo no' INT; echo ready; while :; do sleep 0.05; done"
    ) as process:
        assert kit.read_line(process) == "ready"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            assert kit.read_line(process) == "no"
        process.send_signal(signal.SIGINT)
        assert process.wait(kit.PATIENCE) == 137


def test_a_killed_run_leaves_nothing() -> None:
    """The launcher ends the sandbox, and its note goes."""
    with start("--name", "killed", "sh", "-c", "echo ready; exec sleep 1000") as process:
        assert kit.read_line(process) == "ready"
        assert [one["name"] for one in kit.ps(process.pid)] == ["killed"]
        process.kill()
        process.wait()
    poll_until(lambda: kit.ps(process.pid) == [], timeout_s=10)

    def notes() -> list[str]:
        mine = f"nsbox-{process.pid}-"
        return [name for name in os.listdir(registry.directory()) if name.startswith(mine)]

    poll_until(lambda: notes() == [], timeout_s=10)


def test_it_loads_nothing_that_it_has_no_use_for() -> None:
    """What a command line loads is what each call of it costs."""
    script = """"$PYTHON" -X importtime -m nsbox run true 2>&1 | sed -n 's/^import time:.*| *//p'"""
    loaded = set(kit.shell(script).split())
    assert "nsbox.spec" in loaded
    heavy = "asyncio rich multiprocessing concurrent.futures nsbox.pod nsbox.diagnosis"
    assert loaded & set(heavy.split()) == set()


@pytest.mark.parametrize("name", ["a/b", "two\nlines", "x" * 256])
def test_what_is_no_name_is_refused(name: str) -> None:
    done = kit.nsbox("run", "--name", name, "true")
    assert done.returncode == 125
    assert "--name: " in done.stderr
