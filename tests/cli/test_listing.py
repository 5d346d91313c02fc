# SPDX-License-Identifier: Apache-2.0
"""ls, tree, ps, stats, top, stop and kill: of sandboxes that other processes own."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli import kit
from support import poll_until

import nsbox
from nsbox import registry
from nsbox.sandboxes import find, sandboxes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns

HOSTILE = "\x1b[2J\x1b]0;owned\x07\n\u202e"


@contextlib.contextmanager
def box(*args: str, name: str = "web") -> Iterator[subprocess.Popen[str]]:
    """``nsbox run --name``, by another process than this."""
    command = kit.command("run", "--name", name, *args)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          cwd=kit.TREE) as process:  # fmt: skip
        try:
            poll_until(lambda: any(one.name == name for one in sandboxes()), timeout_s=15)
            yield process
        finally:
            process.kill()
            poll_until(lambda: not any(one.owner == process.pid for one in sandboxes()), 15)


# -- ps ---------------------------------------------------------------------------------------


def test_ps_shows_a_sandbox_of_another_process() -> None:
    with box("sleep", "1000") as process:
        (one,) = kit.ps(process.pid)
        assert (one["name"], one["kind"], one["owner"]) == ("web", "run", process.pid)
        assert one["command"] == ["sleep", "1000"]
        assert one["pids"] == 2, "nsbox-init and the command"
        assert 0 <= one["age"] < 60
        assert one["memory"] > 0
        lines = [line.split() for line in kit.out(kit.nsbox("ps")).splitlines()]
        (line,) = [line for line in lines if line[0] == str(one["id"])]
        assert line[:3] == [str(one["id"]), "web", "run"]
    assert kit.ps(process.pid) == []


def test_ps_shows_what_a_library_made_and_nobody_named() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        found = kit.ps(os.getpid())
        assert [(one["id"], one["name"], one["kind"]) for one in found] == [
            (process.pid, "", "run")
        ]


@pytest.mark.cgroup
def test_stats_has_the_usage_and_the_limits_of_the_cgroup() -> None:
    with nsbox.Popen(["sleep", "1000"], limits=nsbox.Limits(memory="32MiB", pids=9)) as process:
        (one,) = kit.as_json("stats", str(process.pid))
        assert (one["memory_limit"], one["pids_limit"]) == (32 << 20, 10), "one for nsbox-init"
        assert (one["pids"], one["memory"] > 0) == (2, True)
        heading, row = kit.out(kit.nsbox("stats", "--once", str(process.pid))).splitlines()
        assert dict(zip(heading.split(), row.split(), strict=False))["LIMIT"] == "32.0M"


@pytest.mark.cgroup
def test_ps_has_the_usage_and_the_limits_of_the_cgroup() -> None:
    with nsbox.Popen(["sleep", "1000"], limits=nsbox.Limits(memory="32MiB", pids=9)) as process:
        (one,) = [one for one in kit.ps(os.getpid()) if one["id"] == process.pid]
        assert one["memory_limit"] == 32 << 20
        assert one["pids_limit"] == 10, "one for nsbox-init"
        assert one["cgroups"]
        assert all(os.path.isdir(place) for place in one["cgroups"])


def test_a_pod_s_pause_is_told_from_its_containers() -> None:
    with nsbox.Pod("web", [nsbox.ContainerSpec("app", ["sleep", "1000"])]) as pod:
        mine = [one for one in sandboxes() if one.owner == os.getpid()]
        assert sorted(one.kind for one in mine) == ["container", "pause"]
        assert [(one.pid, one.name) for one in mine if one.kind == "container"] == [
            (pod["app"].pid, "app")
        ]


def test_a_container_is_known_by_its_name_as_long_as_it_runs() -> None:
    with nsbox.Container(["sleep", "1000"], name="db") as container:
        assert find("db").pid == container.pid
        kit.out(kit.nsbox("kill", "db"))
        assert container.wait(kit.PATIENCE) == -signal.SIGKILL
        with pytest.raises(nsbox.StateError, match="no sandbox 'db' runs"):
            find("db")


def test_a_command_line_that_a_payload_made_up_is_not_obeyed_by_the_terminal() -> None:
    with nsbox.Popen(["sh", "-c", "sleep 1000; :", HOSTILE]):
        for command in ("ps", "top", "tree", "ls"):
            said = kit.out(kit.nsbox(command))
            assert not {c for c in said if not c.isprintable()} - {"\n"}, command
            assert command == "ls" or "\\x1b[2J" in said, "and there was something to obey"


def test_what_an_encoding_lacks_is_spelt_out() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with nsbox.Container(["sh", "-c", "sleep 1000; :", "grüße"], name="käfig"):
        for command in (["ps"], ["stats"], ["top", "--once"], ["tree"], ["ls"]):
            said = kit.out(kit.nsbox(*command, env=environment))
            assert "\\xe4" in said or "\\xfc" in said, command
    done = kit.nsbox("kill", "käfig", env=environment)
    assert (done.returncode, done.stderr) == (125, "nsbox: no sandbox 'k\\xe4fig' runs\n")


def test_who_calls_itself_a_launcher_is_none() -> None:
    """By its name and its command line; the lock is what counts."""
    fake = "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, b'nsbox-launcher'); " \
           "import subprocess; subprocess.Popen(['sleep', '1000']); print(1, flush=True); " \
           "time.sleep(1000)"  # fmt: skip
    args = ["nsbox-init", "-I", "-S", "-c", fake]
    with nsbox.Popen(["true"]):  # this process has a launcher of its own
        pass
    process = subprocess.Popen(args, executable="/usr/bin/python3", stdout=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert [one for one in sandboxes() if one.launcher == process.pid] == []
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


CUT = [("ps",), ("ps", "--json"), ("stats", "--once"), ("stats", "--json"), ("top", "--once"),
       ("top", "--json"), ("tree",), ("tree", "--json"), ("ls",), ("ls", "--json")]  # fmt: skip


@pytest.mark.parametrize("args", CUT, ids=[" ".join(args) for args in CUT])
def test_a_command_line_of_megabytes_is_cut(args: tuple[str, ...]) -> None:
    mine = f"%{os.getpid()}%"
    payload = ["sh", "-c", f"echo ready; sleep 1000; : begin{mine}", *[mine * 10000] * 20]
    with nsbox.Popen(payload, stdout=nsbox.PIPE, init=False) as process:
        assert process.stdout.readline() == b"ready\n"
        said = kit.out(kit.nsbox(*args))
    times = said.count(f"begin{mine}")
    assert 1 <= times <= 8, "once, or for each namespace"
    assert len(mine) * said.count(mine) <= 4096 * times


def test_the_launcher_of_an_owner_is_known_by_its_lock() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        (mine,) = [one for one in registry.owners() if one.pid == os.getpid()]
        with open(f"/proc/{process.pid}/status") as file:
            status = dict(line.split(":\t", 1) for line in file)
        assert mine.launcher == int(status["PPid"])


def test_a_lock_file_that_nobody_holds_has_no_launcher() -> None:
    entry = registry.Entry()
    entry.publish()
    try:
        assert entry.prefix not in [one.prefix for one in registry.owners()]
    finally:
        os.unlink(entry.path)
        entry.close()


# -- on a terminal ----------------------------------------------------------------------------


def on_terminal(*args: str, env: dict[str, str] | None = None, quit_at: bytes = b"") -> str:
    """What is written to a terminal of 100 columns; ^C once *quit_at* was."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = ["env", "--default-signal=INT", *kit.command(*args)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, cwd=kit.TREE,
                               env={**os.environ, "TERM": "xterm", **(env or {})})  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while chunk := _read_terminal(ours):
            said += chunk
            if quit_at and said.count(quit_at) >= 2:
                process.send_signal(signal.SIGINT)
                quit_at = b""
        assert process.wait(kit.PATIENCE) in (0, 130)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return said.decode()


def _read_terminal(fd: int) -> bytes:
    assert select.select([fd], [], [], kit.PATIENCE)[0], "nothing is written any more"
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: nobody has it open any more
        return b""


@pytest.mark.parametrize("rich", [True, False], ids=["with rich", "without rich"])
def test_a_terminal_gets_a_table_that_fits_and_nothing_of_a_payload_s(
    rich: bool, tmp_path: Path
) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        (tmp_path / "rich.py").write_text("raise ImportError\n")
    with nsbox.Popen(["sh", "-c", "sleep 1000; :", HOSTILE, "[red]x", "y" * 300]):
        said = on_terminal("ps", env={} if rich else {"PYTHONPATH": str(tmp_path)})
    assert ("\x1b[1m" in said) == rich, "bold headings"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert "\\x1b[2J\\x1b]0;owned\\x07" in plain
    assert not {c for c in plain if not c.isprintable()} - {"\r", "\n"}
    assert max(map(len, plain.splitlines())) <= 100


def test_stats_on_a_terminal_goes_on_until_it_is_interrupted() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        said = on_terminal("stats", "--every", "0.1", quit_at=b"\x1b[2J")
        assert said.count(str(process.pid)) >= 2


# -- stop and kill ----------------------------------------------------------------------------


def test_stop_by_name_asks_first() -> None:
    with box("sh", "-c", "trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done") as process:
        poll_until(lambda: find("web").command[:1] == ("sh",))
        assert kit.out(kit.nsbox("stop", "web")) == "web"
        assert process.wait(kit.PATIENCE) == 5


def test_stop_by_id_insists_after_the_grace() -> None:
    with box("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done") as process:
        poll_until(lambda: find("web").command[:1] == ("sh",))
        pid = str(find("web").pid)
        assert kit.out(kit.nsbox("stop", "-t", "0.2", pid)) == pid
        assert process.wait(kit.PATIENCE) == 137


def test_kill_sends_the_signal_that_was_asked_for() -> None:
    with box("sleep", "1000") as process:
        poll_until(lambda: find("web").command[:1] == ("sleep",))
        kit.out(kit.nsbox("kill", "-s", "USR1", "web"))
        assert process.wait(kit.PATIENCE) == 128 + signal.SIGUSR1


def test_kill_ends_every_process_of_it() -> None:
    with box("sh", "-c", "sleep 1000 & sleep 1001 & wait") as process:
        poll_until(lambda: kit.ps(process.pid)[0]["pids"] == 4)
        kit.out(kit.nsbox("kill", "web"))
        assert process.wait(kit.PATIENCE) == 137


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_a_process_that_is_no_sandbox_is_not_touched(verb: str) -> None:
    """Not even one of the same user's, by a number that was a sandbox's once."""
    with subprocess.Popen(["sleep", "1000"]) as other:
        done = kit.nsbox(verb, str(other.pid))
        assert done.returncode == 125
        assert f"no sandbox '{other.pid}' runs" in done.stderr
        assert other.poll() is None
        other.kill()


def test_a_sandbox_that_has_ended_is_not_signalled_by_its_number() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        mine = find(str(process.pid))
    with pytest.raises(nsbox.StateError, match="has ended"):
        mine.send(signal.SIGKILL)
    with pytest.raises(nsbox.StateError, match="has ended"):
        mine.stop()


def test_a_number_that_became_another_process_s_is_not_signalled() -> None:
    """Neither one of the user's own, nor another sandbox that got it since."""
    with (
        subprocess.Popen(["sleep", "1000"]) as other,
        nsbox.Popen(["sleep", "1000"]) as process,
    ):
        mine = find(str(process.pid))
        start = registry.start_time(other.pid)
        for stale in (
            dataclasses.replace(mine, pid=other.pid),
            dataclasses.replace(mine, pid=other.pid, start=start),
            dataclasses.replace(mine, start=mine.start - 1),
        ):
            with pytest.raises(nsbox.StateError, match="has ended"):
                stale.send(signal.SIGKILL)
            with pytest.raises(nsbox.StateError, match="has ended"):
                stale.stop(0)
        assert (other.poll(), process.poll()) == (None, None)
        mine.send(signal.SIGKILL)
        assert process.wait(kit.PATIENCE) == -signal.SIGKILL
        other.kill()


def test_a_note_about_a_process_that_had_the_number_before_is_not_believed() -> None:
    with nsbox.Container(["sleep", "1000"], name="old") as container:
        mine = find("old")
        assert mine.pid == container.pid
        note = Path(container._note)
        said = json.loads(note.read_text())
        assert 0 <= said["ticks"] - mine.start < 60 * os.sysconf("SC_CLK_TCK")
        note.write_text(json.dumps({**said, "ticks": mine.start - 1}))
        assert find(str(container.pid)).name == ""


def test_a_name_that_two_have_is_refused() -> None:
    with box("sleep", "1000") as one, box("sleep", "1001") as two:
        poll_until(lambda: len([o for o in sandboxes() if o.name == "web"]) == 2)
        done = kit.nsbox("kill", "web")
        assert done.returncode == 125
        assert "2 sandboxes are called 'web'" in done.stderr
        assert len(kit.ps(one.pid, two.pid)) == 2


@pytest.mark.parametrize("signal_", ["NOPE", "0", "65", "-1"])
def test_a_signal_that_is_none_is_refused(signal_: str) -> None:
    done = kit.nsbox("kill", f"--signal={signal_}", "1")
    assert done.returncode == 125
    assert "is not a signal" in done.stderr


# -- stats and top ----------------------------------------------------------------------------


def test_stats_shows_who_uses_the_cpu() -> None:
    with box("sh", "-c", "while :; do :; done", name="busy"):
        rows = poll_until(lambda: [r for r in kit.as_json("stats", "busy") if r["cpu"] > 1], 15)
        assert rows[0]["name"] == "busy"
        assert rows[0]["cpu_seconds"] > 0


def test_top_shows_the_processes_of_a_sandbox() -> None:
    with box("sh", "-c", "sleep 1000 & wait"):
        poll_until(lambda: len(kit.as_json("top", "web")) == 3)
        commands = [row["command"][0] for row in kit.as_json("top", "web")]
        assert sorted(commands) == ["nsbox-init", "sh", "sleep"]
        assert "sleep 1000" in kit.out(kit.nsbox("top", "--once"))


def test_stats_of_what_does_not_run_is_an_error() -> None:
    done = kit.nsbox("stats", "--once", "nobody")
    assert (done.returncode, done.stdout) == (125, "")


# -- ls and tree ------------------------------------------------------------------------------


def _in_a_pid_namespace(script: str) -> str:
    """Where nobody else's processes come and go."""
    unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    if not kit.ROOT:
        unshare[1:1] = ["--user", "--map-root-user"]
    return kit.shell(script, before=tuple(unshare))


#: A second set of namespaces, a process without any of its own, and the question.
QUESTION = """
unshare --uts --ipc --net sleep 1000 &
unshare --mount sleep 1000 &
sleep 1000 &
while [ "$(lsns -n -o NS | wc -l)" -lt 12 ]; do :; done
"""


def test_ls_agrees_with_lsns_id_by_id() -> None:
    if not shutil.which("lsns"):
        pytest.skip("needs lsns")
    said = _in_a_pid_namespace(
        QUESTION + 'theirs=$(lsns -J -o TYPE,NS,NPROCS,PID); "$PYTHON" -m nsbox ls --json; '
        'printf "\\036"; echo "$theirs"'
    )
    ours, _, theirs = said.partition("\x1e")
    mine: list[dict[str, Any]] = json.loads(ours)
    lsns = {(n["type"], int(n["ns"])): int(n["pid"]) for n in json.loads(theirs)["namespaces"]}
    assert {(n["type"], n["id"]): n["pid"] for n in mine if n["pid"]} == lsns
    assert len(lsns) >= 12


def test_tree_has_the_ids_that_lsns_has() -> None:
    if not shutil.which("lsns"):
        pytest.skip("needs lsns")
    said = _in_a_pid_namespace(
        QUESTION + 'theirs=$(lsns -J -o TYPE,NS); "$PYTHON" -m nsbox tree --all --json; '
        'printf "\\036"; echo "$theirs"'
    )
    ours, _, theirs = said.partition("\x1e")
    mine = {(kind, id_) for node in json.loads(ours) for kind, id_ in node["namespaces"].items()}
    assert mine == {(n["type"], int(n["ns"])) for n in json.loads(theirs)["namespaces"]}


def test_ls_of_one_process_has_its_namespaces_only() -> None:
    rows = kit.as_json("ls", str(os.getpid()))
    kinds = ("mnt", "pid", "ipc", "net", "uts", "user", "cgroup", "time")
    expected = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds}
    assert {row["type"]: row["id"] for row in rows} == expected


def test_ls_marks_whose_namespaces_they_are() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        rows = kit.as_json("ls", "-t", "net")
        marked = [row for row in rows if row["sandboxes"] == [f"run:{process.pid}"]]
        assert [row["id"] for row in marked] == [os.stat(f"/proc/{process.pid}/ns/net").st_ino]
        assert [row["sandboxes"] for row in rows if row["id"] == os.stat("/proc/self/ns/net").st_ino
                ] == [[]]  # fmt: skip


def test_ls_of_what_is_not_there_is_an_error() -> None:
    assert kit.nsbox("ls", "4194304").returncode == 125
    done = kit.nsbox("ls", "-t", "nope")
    assert done.returncode == 125
    assert "'nope' is none of" in done.stderr


def test_tree_draws_a_sandbox_below_its_launcher() -> None:
    with nsbox.Popen(["sh", "-c", "sleep 1000 & wait"]) as process:
        poll_until(lambda: "sleep 1000" in kit.out(kit.nsbox("tree")))
        lines = kit.out(kit.nsbox("tree")).splitlines()
        at = next(i for i, line in enumerate(lines) if f"[run:{process.pid}]" in line)
        assert "nsbox-init launcher" in lines[at - 1]
        assert f"+pid:{os.stat(f'/proc/{process.pid}/ns/pid_for_children').st_ino}" in lines[at]
        assert "└─" in lines[at + 1]
        assert "sleep 1000" in lines[at + 2]


def test_a_tree_as_deep_as_a_payload_can_make_it_is_drawn() -> None:
    """Recursion would end at a thousand."""
    deep = "n=$1; echo $n >&2; if [ $n -gt 0 ]; then sh -c \"$0\" \"$0\" $((n - 1)); : ; else " \
           "echo ready; sleep 1000; fi; :"  # fmt: skip
    with nsbox.Popen(["sh", "-c", deep, deep, "1200"], profile="standard", user=0,
                     stdout=nsbox.PIPE, stderr=nsbox.DEVNULL) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        nodes = kit.as_json("tree", str(process.pid))
        assert max(node["depth"] for node in nodes) >= 1200
        assert len(kit.as_json("top", str(process.pid))) >= 1200


def test_root_of_a_user_namespace_has_a_registry_of_its_own(tmp_path: Path) -> None:
    """/run is not its to write, and what is in there is somebody else's."""
    tmp_path.chmod(0o700)
    script = f'export XDG_RUNTIME_DIR={tmp_path}; "$PYTHON" -m nsbox ps --json'
    found = json.loads(kit.shell(script, before=("unshare", "--user", "--map-root-user")))
    if not kit.ROOT:  # whose own /run/nsbox that root may use
        assert found == []
        assert (tmp_path / "nsbox").is_dir()


# -- gc, explain, doctor ----------------------------------------------------------------------


def test_gc_has_nothing_to_do_and_says_so() -> None:
    assert kit.out(kit.nsbox("gc")) == ""
    assert kit.as_json("gc") == []


def test_gc_removes_the_note_of_an_owner_that_died_with_its_launcher() -> None:
    with box("sleep", "1000", name="doomed") as process:
        mine = find("doomed")
        fd = os.pidfd_open(mine.launcher)
        process.kill()
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        process.wait()
        poll_until(lambda: not os.path.exists(f"/proc/{mine.pid}"), 15)

    def left() -> list[str]:
        kit.out(kit.nsbox("gc"))
        return [
            n for n in os.listdir(registry.directory()) if n.startswith(f"nsbox-{process.pid}-")
        ]

    poll_until(lambda: left() == [], 15)


def test_explain_is_the_plan_of_the_same_options() -> None:
    said = kit.out(kit.nsbox("explain", "--hostname", "web", "true"))
    assert said == str(nsbox.explain(["true"], hostname="web")).strip()


def test_doctor_prints_what_the_function_finds_and_its_code_says_whether_it_works() -> None:
    report = nsbox.doctor()
    done = kit.nsbox("doctor", "--json")
    assert done.returncode == (0 if report.ok else 1)
    assert [c["name"] for c in json.loads(done.stdout)["checks"]] == [c.name for c in report.checks]


def test_the_apparmor_profile_names_the_interpreter() -> None:
    said = kit.out(kit.nsbox("doctor", "--print-apparmor-profile"))
    assert os.path.realpath(kit.command()[0]) in said
    assert "userns," in said


def test_without_a_command_there_is_help_and_a_failure() -> None:
    done = kit.nsbox()
    assert done.returncode == 125
    assert "doctor" in done.stderr


def test_the_reader_of_a_listing_may_go_away() -> None:
    assert kit.shell('"$PYTHON" -m nsbox ls --json | head -c 1') == "["
