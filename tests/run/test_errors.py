# SPDX-License-Identifier: Apache-2.0
"""What misuse says, what a failed start says, and explain()."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run import kit

import nsbox
from nsbox import Limits, Mount, Rootfs

userns = pytest.mark.userns


# -- misuse -------------------------------------------------------------------------------------

CALLS = pytest.mark.parametrize("call", [nsbox.run, nsbox.Popen, nsbox.explain])


@CALLS
@pytest.mark.parametrize("args", ["ls -l", b"ls -l"])
def test_a_string_is_told_how_to_be_a_list(call: Any, args: Any) -> None:
    with pytest.raises(TypeError) as caught:
        call(args)
    assert str(caught.value) == ('args must be a list; use ["sh", "-c", "ls -l"] or shlex.split()')


@CALLS
@pytest.mark.parametrize("args", [[], (), None, 5, {"a"}, [""]], ids=repr)
def test_what_is_no_command_is_refused(call: Any, args: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        call(args)
    assert caught.value.field.startswith("args")


@CALLS
@pytest.mark.parametrize(("args", "field"), [(["a", 5], "args[1]"), (["a", "b\0c"], "args[1]"),
                                             ([None], "args[0]")], ids=repr)  # fmt: skip
def test_a_wrong_argument_is_named(call: Any, args: Any, field: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        call(args)
    assert caught.value.field == field


@CALLS
@pytest.mark.parametrize(
    ("keywords", "field"),
    [({"net": "bridge0"}, "net"), ({"profile": "lax"}, "profile"), ({"proc": "some"}, "proc")],
    ids=repr,
)
def test_a_wrong_choice_names_the_right_ones(call: Any, keywords: Any, field: str) -> None:
    with pytest.raises(nsbox.SpecError, match="use ") as caught:
        call(["true"], **keywords)
    assert caught.value.field == field


@CALLS
def test_an_unknown_keyword_is_a_type_error(call: Any) -> None:
    with pytest.raises(TypeError, match="memroy"):
        call(["true"], memroy=5)


def test_a_forgotten_unit_is_guessed() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        Limits(memory="256")
    assert str(caught.value) == 'memory: 256 bytes is below 1 MiB; did you mean "256MiB"?'


def test_arguments_are_str_bytes_and_paths() -> None:
    args = ["printf", b"%s|%s|%s", "é", Path("/a b"), b"\xff"]
    plan = nsbox.explain(args)
    assert plan.args == ("printf", "%s|%s|%s", "é", "/a b", "\udcff")


@userns
def test_arguments_arrive_as_they_were_given() -> None:
    args = ["printf", "%s|", "", "a b", "'\"$x`", "\n", "é", b"\xff"]
    done = nsbox.run(args, capture_output=True)
    assert done.stdout == "|a b|'\"$x`|\n|é|".encode() + b"\xff|"
    assert done.args == ("printf", "%s|", "", "a b", "'\"$x`", "\n", "é", "\udcff")


@userns
def test_very_long_arguments_and_environments() -> None:
    args = ["printf", "%s", "x" * 100_000, *["y" * 1000] * 100]
    done = nsbox.run(args, env={"BIG": "z" * 100_000}, capture_output=True)
    assert len(done.stdout or b"") == 200_000


# -- a start that failed ------------------------------------------------------------------------


@userns
@pytest.mark.kernel
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_a_missing_program_is_command_not_found(init: bool) -> None:
    with pytest.raises(nsbox.CommandNotFound, match="was not found in the sandbox") as caught:
        nsbox.run(["nsbox-no-such"], init=init)
    error = caught.value
    assert isinstance(error, FileNotFoundError)
    assert isinstance(error, nsbox.SetupError)
    assert (error.errno, error.call, error.name) == (errno.ENOENT, "execve", "exec")
    assert error.field == "args[0]"
    assert nsbox.explain(["nsbox-no-such"], init=init).steps[error.step].name == "exec"


@userns
def test_a_missing_interpreter_of_a_script_is_command_not_found(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#! \t/no/such/interpreter\t-x\n")
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(nsbox.CommandNotFound, match=r"run' is in the .*'/no/such/interpreter'"):
        nsbox.run(["./run"], files={"run": tmp_path / "run"})
    with pytest.raises(nsbox.CommandNotFound, match=r"'\./walk' was not found in the sandbox$"):
        nsbox.run(["./walk"], files={"run": tmp_path / "run"})


def _roots_with_programs(where: Path) -> list[Any]:
    """Of each kind, with programs whose interpreters are not there."""
    where.chmod(0o755)
    root = kit.busybox_root(where / "root")
    (root / "bin/script").write_text("#!/bin/bash\r\n")
    loader = b"/lib/ld-none.so\0"
    header = bytearray(Path("/bin/busybox").read_bytes()[:64])
    header[16:18] = (2).to_bytes(2, "little")  # ET_EXEC
    header[32:40] = (64).to_bytes(8, "little")  # one program header, behind it
    header[54:58] = struct.pack("<HH", 56, 1)
    interp = struct.pack("<IIQQQQQQ", 3, 4, 120, 120, 120, len(loader), len(loader), 1)
    (root / "bin/binary").write_bytes(bytes(header) + interp + loader + bytes(512))
    for name in ("script", "binary"):
        (root / "bin" / name).chmod(0o755)
    (root / "sbin").symlink_to("/bin")
    found = [Rootfs.dir(root), Rootfs.dir(root, ro=False), Rootfs.overlay(root)]
    return found if not kit.ROOT or kit.maps_ids(root) else found[:2]


@userns
def test_a_program_without_its_interpreter_is_told_from_one_that_is_not_there(
    tmp_path: Path,
) -> None:
    for root in _roots_with_programs(tmp_path):
        for program, why in (
            ("script", r"'/bin/script' is in the sandbox, but .*#! line, '/bin/bash\\r'"),
            ("/sbin/binary", r"'/sbin/binary' is in the sandbox, but its loader"),
            ("/bin/none", r"'/bin/none' was not found in the sandbox$"),
            ("none", r"'none' was not found in the sandbox$"),
        ):
            with pytest.raises(nsbox.CommandNotFound, match=why):
                nsbox.run([program], root=root, env={"PATH": "/bin:/none"})


@userns
def test_what_mounts_may_hide_is_said_to_be_possible_only(tmp_path: Path) -> None:
    root = _roots_with_programs(tmp_path)[0]
    for program in ("/bin/script", "/bin/none"):
        with pytest.raises(nsbox.CommandNotFound, match="was not found in the sandbox, or it is"):
            nsbox.run([program], root=root, mounts=[Mount.tmpfs("/data")])


@userns
@pytest.mark.kernel
def test_a_program_that_is_not_executable_is_eacces() -> None:
    with pytest.raises(nsbox.SetupError, match="not executable") as caught:
        nsbox.run(["./data"], files={"data": "text"})
    assert caught.value.errno == errno.EACCES
    assert not isinstance(caught.value, nsbox.CommandNotFound)


@userns
def test_a_file_that_is_no_program_is_enoexec(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no magic\n")
    (tmp_path / "x").chmod(0o755)
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.run(["./x"], files={"x": tmp_path / "x"})
    assert caught.value.errno == errno.ENOEXEC


@userns
def test_a_directory_is_no_program() -> None:
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.run(["/usr"])
    assert caught.value.errno == errno.EACCES


@userns
def test_a_program_in_the_way_does_not_hide_the_one_behind() -> None:
    files = {"bin/echo": "not executable"}
    done = kit.run("echo", "found", files=files, env={"PATH": "/tmp/bin:/usr/bin:/bin"})
    assert kit.out(done) == "found"


@userns
def test_a_setup_error_says_step_call_field_and_hint() -> None:
    mounts = [Mount.tmpfs("/a"), Mount.tmpfs("/b"), Mount.bind("/srv/nsbox-none", "/data")]
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.run(["true"], mounts=mounts)
    error = caught.value
    text = str(error)
    assert text.startswith(f"step {error.step} (")
    for part in ("/srv/nsbox-none", "from mounts[2]", "open_tree", "ENOENT", "No such file"):
        assert part in text
    assert isinstance(error, OSError)
    assert "mounts[2]" in [step.source for step in nsbox.explain(["true"], mounts=mounts).steps]


@userns
def test_after_a_failure_the_next_start_works() -> None:
    for _ in range(10):
        with pytest.raises(nsbox.SetupError):
            nsbox.run(["true"], cwd="/nonexistent")
        assert kit.run("true").ok


# -- explain() ----------------------------------------------------------------------------------


def test_explain_is_a_table_of_numbered_steps(classic: None) -> None:
    lines = str(nsbox.explain(["echo", "hi"], hostname="box", cwd="/usr")).splitlines()
    assert lines[0].split() == ["#", "who", "step", "detail", "from"]
    assert [int(line.split()[0]) for line in lines[1:]] == list(range(len(lines) - 1))
    assert {line.split()[1] for line in lines[1:]} == {"host", "child"}
    text = "\n".join(lines)
    for part in (
        "clone3",
        "NEWPID",
        "hostname      box",
        "pivot_root",
        "no-new-privs",
        "/bin/echo",
    ):
        assert part in text, part


def test_explain_shows_every_wish() -> None:
    plan = nsbox.explain(
        ["./x"], files={"x": "content"}, user="5:6", rlimits={"nofile": 77},
        mounts=[Mount.tmpfs("/scratch", size="3MiB"), Mount.bind("/usr", "/also")],
        limits=Limits(disk="2MiB"), env={"SECRET": "value"},
    )  # fmt: skip
    text = str(plan)
    for part in ("/tmp/x", "nofile 77:77", "/scratch", "size=3145728", "/usr", "/also",
                 "size=2097152", "mounts[0]", "mounts[1]", "files['x']"):  # fmt: skip
        assert part in text, part
    assert "SECRET=value" in plan.env


def test_explain_does_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    before = sorted(os.listdir("/proc/self/fd")), os.listdir(tmp_path)
    nsbox.explain(["nsbox-no-such"], root=Rootfs.dir(root, ro=False), mounts=[Mount.tmpfs("/new")])
    nsbox.explain(["true"], root="/nonexistent", mounts=[Mount.bind("/nonexistent", "/x")])
    assert (sorted(os.listdir("/proc/self/fd")), os.listdir(tmp_path)) == before
    assert list(root.iterdir()) == []


EXPLAIN_AS_NOBODY = """
import os, sys
import nsbox
nsbox.explain(["id"])  # loads what nobody may not read, in a checkout below /root
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
text = str(nsbox.explain(["id"]))
assert "NEWUSER" in text, text
print("explained")
"""


def test_explain_takes_what_run_takes() -> None:
    of_run = {"input": b"x", "capture_output": True, "text": True, "timeout": 3, "check": True}
    assert str(nsbox.explain(["true"], **of_run)) == str(nsbox.explain(["true"]))
    with pytest.raises(TypeError, match="nonsense"):
        nsbox.explain(["true"], nonsense=1)


@pytest.mark.root
def test_explain_needs_no_privilege() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXPLAIN_AS_NOBODY], capture_output=True, text=True, cwd="/"
    )
    assert (done.stdout, done.stderr) == ("explained\n", "")


@pytest.mark.root
def test_explain_shows_that_a_template_is_entered() -> None:
    steps = nsbox.explain(["true"]).steps
    names = [step.name for step in steps]
    assert "pivot_root" not in names
    assert names.index("setns") < names.index("clone3"), "entered with the right to, then copied"
    assert next(s.describe() for s in steps if s.name == "setns") == "NEWNS of mntns template"


def test_explain_of_the_popen_is_the_plan_that_was_run() -> None:
    with nsbox.Popen(["true"]) as process:
        assert str(process.explain()) == str(nsbox.explain(["true"]))


# -- applied ------------------------------------------------------------------------------------


@userns
def test_applied_lists_each_measure_and_names_what_is_missing() -> None:
    done = kit.run("true")
    assert done.applied["no_new_privs"] == "set"
    assert done.applied["capabilities"] == "none"
    assert done.applied["root"] == "read-only"
    assert done.applied["proc"] == "pids"
    assert done.applied["user"].startswith("1000:1000")
    assert done.applied["fds"] == "0, 1, 2"
    assert done.applied["user-namespace lock"] == "max_user_namespaces=0"
    for measure in ("seccomp", "landlock"):
        assert measure in done.applied


@userns
def test_applied_follows_what_was_asked_for() -> None:
    done = kit.run("true", profile="standard", proc="none", user="5:6",
                   capabilities=["CHOWN"])  # fmt: skip
    assert done.applied["capabilities"] == "CHOWN"
    assert done.applied["user"].startswith("5:6")
    assert "proc" not in done.applied or done.applied["proc"] != "pids"
    done = kit.run("true", namespaces=kit.spaces("mnt"))
    assert done.applied["pid"].startswith("missing:")
