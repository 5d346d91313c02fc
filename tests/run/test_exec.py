# SPDX-License-Identifier: Apache-2.0
"""Container.exec and popen: one more process in all that is the container's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import sys
import threading
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from run import kit
from support import poll_until, scaled

import nsbox
from nsbox import enter
from nsbox.keywords import another_process
from nsbox.process import Injection
from nsbox.streams import connect

pytestmark = pytest.mark.userns

SLEEP = ["sleep", "1000"]
VARIANTS: dict[str, dict[str, Any]] = {
    "strict": {},
    "standard": {"profile": "standard"},
    "none": {"profile": "none"},
    "with init": {"init": True},
    "full proc": {"proc": "full"},
    "own root inherited": {"root": nsbox.Rootfs.inherit(), "profile": "none"},
    "few namespaces": {"namespaces": kit.spaces("pid", "mnt"), "profile": "none"},
    "no pid namespace": {"namespaces": kit.spaces("mnt", "ipc"), "profile": "none"},
    "no namespaces": {"namespaces": (), "profile": "none"},
}
if kit.ROOT:
    VARIANTS["root without user namespace"] = {"namespaces": tuple(k for k in kit.KINDS
                                                                   if k != "user")}  # fmt: skip
    VARIANTS["another user and groups"] = {"user": "7:8", "groups": (9, 10)}


def container(args: Any = SLEEP, **keywords: Any) -> nsbox.Container:
    return nsbox.Container(args, **keywords)


def said(box: nsbox.Container, *args: str, **keywords: Any) -> str:
    """What a command in it says, on its one line or on many."""
    keywords = {"timeout": kit.PATIENCE, **keywords}
    return kit.out(box.exec(list(args), capture_output=True, text=True, **keywords))


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


# -- what it is a member of -------------------------------------------------------------------


@pytest.mark.kernel
def test_it_is_in_all_namespaces_of_the_container(variant: dict[str, Any]) -> None:
    with container(**variant) as box, box.popen(SLEEP) as other:
        mine = {kind: kit.namespace_id(kind, other.pid) for kind in kit.KINDS}
        assert mine == {kind: kit.namespace_id(kind, box.pid or 0) for kind in kit.KINDS}


STATUS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
          "Seccomp", "SigBlk", "SigIgn", "Umask")  # fmt: skip


def seen(pid: int) -> dict[str, Any]:
    """All of a process that a second one of the same sandbox should have in common with it."""
    status = kit.status(Path(f"/proc/{pid}/status").read_text())
    return {
        **{key: status[key] for key in STATUS},
        "cgroup": Path(f"/proc/{pid}/cgroup").read_text(),
        "limits": Path(f"/proc/{pid}/limits").read_text(),
        "oom": Path(f"/proc/{pid}/oom_score_adj").read_text(),
        "cwd": os.readlink(f"/proc/{pid}/cwd"),
        "root": os.stat(f"/proc/{pid}/root").st_ino,
        "environ": environ(pid),
    }


def environ(pid: int) -> list[bytes]:
    """Not to be read where it has capabilities that the reader has not."""
    try:
        return sorted(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except PermissionError:
        return []


@pytest.mark.kernel
def test_it_has_the_restrictions_and_the_cgroup_of_the_container(variant: dict[str, Any]) -> None:
    keywords: dict[str, Any] = {"rlimits": {"nofile": 77}, "env": {"A": "b"}, **variant}
    with container(**keywords) as box, box.popen(SLEEP) as other:
        assert box.pid is not None
        payload = box.pid
        if keywords.get("init"):
            (payload,) = map(int, Path(f"/proc/{box.pid}/task/{box.pid}/children").read_text()
                             .split())  # fmt: skip
        assert seen(other.pid) == seen(payload)


def test_its_securebits_are_the_containers() -> None:
    code = "import ctypes; print(ctypes.CDLL(None).prctl(27, 0, 0, 0, 0))"
    show = ["/usr/bin/python3", "-SIuc", f"{code}; import time; time.sleep(1000)"]
    with container(show) as box:
        poll_until(lambda: "\n" in box.logs(), 10)
        bits = box.logs().split()[0]
        assert said(box, "/usr/bin/python3", "-SIuc", code) == bits
        assert int(bits) & 3 == 3  # NOROOT, locked


@pytest.mark.cgroup
@pytest.mark.kernel
def test_what_it_uses_counts_for_the_limits_of_the_container() -> None:
    limits = nsbox.Limits(memory="64MiB", pids=8)
    hog = "b = bytearray(200 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"
    with container(limits=limits, profile="standard") as box:
        done = box.exec(["/usr/bin/python3", "-SIuc", hog], timeout=kit.PATIENCE)
        assert done.returncode == -signal.SIGKILL
        poll_until(lambda: box.status() == "stopped", 5, what="oom_group ends the container")
        assert box.result().reason is nsbox.Reason.OOM


@pytest.mark.cgroup
@pytest.mark.kernel
def test_what_it_forks_counts_for_the_pids_of_the_container() -> None:
    with container(limits=nsbox.Limits(pids=2)) as box:
        fork = ["sh", "-c", "true | true; echo forked"]
        assert b"forked\n" not in (box.exec(fork, capture_output=True).stdout or b"")
        box.exec(["true"], check=True)  # the control: there is room for one
    with container(limits=nsbox.Limits(pids=8)) as box:
        assert b"forked\n" in (box.exec(fork, capture_output=True).stdout or b"")


# -- keywords ---------------------------------------------------------------------------------


def test_streams_are_those_of_run() -> None:
    with container() as box:
        done = box.exec(["sh", "-c", "cat; echo err >&2"], input="in", capture_output=True,
                        text=True)  # fmt: skip
        assert (done.stdout, done.stderr, done.ok) == ("in", "err\n", True)
        assert box.exec(["cat"], capture_output=True).stdout == b""  # stdin is /dev/null


def test_check_raises_and_carries_the_result() -> None:
    with container() as box:
        assert box.exec(["false"]).returncode == 1
        with pytest.raises(nsbox.CommandError) as caught:
            box.exec(["sh", "-c", "exit 3"], check=True)
        assert caught.value.completed.returncode == 3


def test_env_comes_on_top_and_cwd_instead() -> None:
    with container(env={"A": "1", "B": "2"}, cwd="/usr") as box:
        assert (
            said(box, "sh", "-c", "echo $A $B $C; pwd", env={"B": "x", "C": "3"}) == "1 x 3\n/usr"
        )
        assert said(box, "pwd", cwd="/tmp") == "/tmp"


def test_user_instead_of_the_containers() -> None:
    with container(profile="standard") as box:
        id_map = box.explain().id_map
        if id_map is not None and id_map.kind == "single":
            with pytest.raises(nsbox.Unavailable) as caught:
                box.exec(["id"], user=5)
            assert caught.value.feature == "user"
        else:
            assert said(box, "id", "-G", user="5:6") == "6"
            assert said(box, "id", "-u", user=5) == "5"


def test_an_id_that_is_not_mapped_is_refused() -> None:
    with container() as box, pytest.raises((nsbox.SpecError, nsbox.Unavailable)):
        box.exec(["id"], user=70000)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"args": "ls -l"}, TypeError),
        ({"args": []}, nsbox.SpecError),
        ({"cwd": "relative"}, nsbox.SpecError),
        ({"cwd": "/a/../b"}, nsbox.SpecError),
        ({"env": {"A=B": "c"}}, nsbox.SpecError),
        ({"user": -1}, nsbox.SpecError),
        ({"timeout": -1}, nsbox.SpecError),
        ({"input": b"", "stdin": -3}, ValueError),
        ({"capture_output": True, "stdout": -1}, ValueError),
        ({"limits": nsbox.Limits()}, TypeError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_keyword_is_named(keywords: dict[str, Any], error: type[Exception]) -> None:
    with container() as box:
        with pytest.raises(error):
            box.exec(keywords.pop("args", ["true"]), **keywords)
        assert said(box, "echo", "still") == "still"


def test_a_command_that_is_not_there_is_told_and_leaves_the_container_alone() -> None:
    with container() as box:
        with pytest.raises(nsbox.CommandNotFound):
            box.exec(["nsbox-no-such-command"])
        assert said(box, "echo", "still") == "still"


# -- ends -------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_timeout_kills_its_group_and_not_the_container() -> None:
    with container(init=True) as box:
        started = time.monotonic()
        with pytest.raises(nsbox.TimeoutExpired) as caught:
            box.exec(["sh", "-c", "echo up; sleep 1000 & sleep 1000"], capture_output=True,
                     timeout=scaled(0.5))  # fmt: skip
        assert time.monotonic() - started < scaled(10)
        assert caught.value.completed.stdout == b"up\n"
        if kernel() >= (6, 9):
            poll_until(lambda: len(box_pids(box)) == 2, 5, what="init and its payload")
        assert box.status() == "running"


def kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def box_pids(box: nsbox.Container) -> list[int]:
    with nsbox.Namespace.of(box.pid or 0, "pid") as own:
        return own.processes


def test_exec_when_it_does_not_run_is_a_state_error() -> None:
    box = container()
    with pytest.raises(nsbox.StateError) as caught:
        box.exec(["true"])
    assert caught.value.status == "created"
    with box:
        box.kill()
        box.wait(kit.PATIENCE)
        for verb in (box.exec, box.popen):
            with pytest.raises(nsbox.StateError) as caught:
                verb(["true"])
            assert caught.value.status == "stopped"


@pytest.mark.kernel
def test_the_end_of_the_container_is_its_end_too() -> None:
    with container() as box, box.popen(SLEEP) as other:
        box.kill()
        assert other.wait(kit.PATIENCE) == -signal.SIGKILL


def test_a_container_that_ends_while_it_is_joined_says_so() -> None:
    """At whatever point of the join: a result, or StateError, never a riddle."""
    outcomes = set()
    for delay in range(40):
        with container() as box:
            timer = threading.Timer(delay / 10000, box.kill)
            timer.start()
            try:
                done = box.exec(["true"], timeout=kit.PATIENCE)
                outcomes.add(done.returncode in (0, -signal.SIGKILL))
            except nsbox.StateError as error:
                outcomes.add(error.status == "stopped")
            finally:
                timer.join()
    assert outcomes == {True}


def test_popen_is_the_popen_of_run() -> None:
    with container() as box:
        with box.popen(["cat"], stdin=nsbox.PIPE, stdout=nsbox.PIPE, text=True) as cat:
            assert cat.communicate("hello", timeout=kit.PATIENCE) == ("hello", None)
            assert cat.returncode == 0
        other = box.popen(SLEEP)
        pid = other.pid
        other.close()
        assert not Path(f"/proc/{pid}").exists()
        assert box.status() == "running"


@pytest.mark.kernel
def test_many_threads_execute_at_once() -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        for i in range(8):
            word = f"{number}.{i}"
            if said(box, "echo", word) != word:
                wrong.append(word)

    with container(limits=nsbox.Limits(pids=64), best_effort=True) as box:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_forked_child_cannot_use_it() -> None:
    with container() as box:
        pid = os.fork()
        if pid == 0:
            try:
                box.exec(["true"])
            except nsbox.StateError as error:
                os._exit(0 if error.status == "foreign" else 1)
            os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0


def test_every_step_that_fails_is_told_and_leaves_no_process(variant: dict[str, Any]) -> None:
    with container(**variant) as box:
        process, base, id_map = box._entered("exec")
        spec = another_process(base, ["/bin/true"])
        steps = enter._plan(process, base, spec, id_map).steps
        before = box_pids(box) if "pid" in process.plan.kinds else []
        for index in range(len(steps)):
            stdio = connect(None, None, None)
            with pytest.raises(nsbox.SetupError) as caught:
                enter.enter(process, base, spec, id_map, stdio, None, Injection(index, errno.EIO))
            stdio.close()
            assert (caught.value.step, caught.value.errno) == (index, errno.EIO)
        assert not before or box_pids(box) == before
        assert box.exec(["/bin/true"]).ok


# -- what a hostile container could do --------------------------------------------------------


@pytest.mark.parametrize("number", [3, 4, 5, 7, 9, 10, 11, 12, 15, 63])
def test_a_directory_of_the_hosts_is_no_working_directory(number: int) -> None:
    """CVE-2024-21626: a descriptor of the runtime's, by its number, or by a link to that."""
    link = nsbox.Mount.symlink("/run/there", f"/proc/self/fd/{number}")
    with container(mounts=[link]) as box:
        for cwd in (f"/proc/self/fd/{number}", "/run/there"):
            with pytest.raises(nsbox.SetupError) as caught:
                box.exec(["ls", ".."], cwd=cwd)
            assert caught.value.field == "cwd"


@pytest.mark.parametrize("keywords", [{"profile": "standard"}, {"proc": "full"}, {}],
                         ids=["standard", "strict with full proc", "strict"])  # fmt: skip
def test_no_process_that_joins_can_be_traced_read_or_overwritten(keywords: dict[str, Any]) -> None:
    files = [Path(sys.executable), Path(str(resources.files("nsbox"))) / "nsbox-init"]
    before = [hashlib.sha256(f.read_bytes()).digest() for f in files]
    limits = nsbox.Limits(pids=64, cpu=2.0)
    code = Path(__file__).with_name("intruder.py").read_text()
    with container(limits=limits, best_effort=True, **keywords) as box:
        attack = box.popen(["/usr/bin/python3", "-SIuc", code], stdin=nsbox.PIPE,
                           stdout=nsbox.PIPE)  # fmt: skip
        with attack:
            assert kit.waiting(attack) == "ready"
            for _ in range(300):
                with contextlib.suppress(nsbox.SetupError):  # it may kill what it cannot read
                    box.exec(["true"], timeout=kit.PATIENCE)
            with box.popen(["sleep", "1000"]) as bait:  # the control: such a one can be traced
                bait.wait(kit.PATIENCE)
            report = json.loads(attack.communicate(b"\n", timeout=kit.PATIENCE)[0] or b"")
    assert report["problems"] == []
    assert report["count"]["seized"] > 0, report
    assert report["count"]["opened"] > 0, report
    assert all(exe.startswith(("/usr/", "/bin/", "/memfd:nsbox-init")) for exe in report["exes"])
    assert [hashlib.sha256(f.read_bytes()).digest() for f in files] == before


def test_a_program_that_is_its_own_interpreter_changes_nothing() -> None:
    """CVE-2019-5736: #!/proc/self/exe would run, and then overwrite, the runtime."""
    init = Path(str(resources.files("nsbox"))) / "nsbox-init"
    before = init.read_bytes()
    script = nsbox.Mount.file("/run/trap", "#!/proc/self/exe\n", 0o755)
    with container(mounts=[script]) as box:
        with contextlib.suppress(nsbox.SetupError):
            assert not box.exec(["/run/trap"], timeout=kit.PATIENCE).ok
        assert said(box, "echo", "still") == "still"
    assert init.read_bytes() == before


STOPPER = """
import os, signal
print("ready", flush=True)
me = os.getpid()
last = me
while True:
    for pid in range(last + 1, last + 40):
        try: os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError: continue
        except OSError: pass
        last = max(last, pid)
"""


def test_who_stops_what_joins_holds_up_only_himself() -> None:
    stop = ["/usr/bin/python3", "-SIuc", STOPPER]
    with container(profile="standard") as box, box.popen(stop, stdout=nsbox.PIPE) as stopper:
        assert kit.waiting(stopper) == "ready"
        for _ in range(25):
            started = time.monotonic()
            try:
                box.exec(["true"], timeout=0.2)
            except (nsbox.TimeoutExpired, nsbox.SetupError):
                pass
            assert time.monotonic() - started < scaled(5)
            assert nsbox.run(["true"], timeout=kit.PATIENCE).ok


@pytest.mark.user
@pytest.mark.subuid
def test_another_user_than_the_one_that_is_mapped_is_told_what_maps_more() -> None:
    """Nothing is to be installed here: the sandbox was made with one id."""
    with nsbox.Container(["sleep", "60"]) as box:
        with pytest.raises(nsbox.Unavailable) as caught:
            box.exec(["id"], user=0)
    assert "install" not in caught.value.hint
    assert 'profile="standard"' in caught.value.hint
    assert "user=0" in caught.value.hint
    for keywords in ({"profile": "standard"}, {"user": 0}):
        with nsbox.Container(["sleep", "60"], **keywords) as box:
            assert kit.out(box.exec(["id", "-u"], user=0, capture_output=True, text=True)) == "0"
