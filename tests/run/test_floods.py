# SPDX-License-Identifier: Apache-2.0
"""Floods of output, pipes that others hold, trees that do not want to end: and it ends in time."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from run import kit
from support import poll_until, scaled

import nsbox
from nsbox import Limits, Reason, cgroup, probe, processes

pytestmark = [pytest.mark.userns, pytest.mark.kernel]
MIB = 1 << 20


# -- floods -------------------------------------------------------------------------------------


def test_a_flood_on_both_streams_is_cut_and_ends_in_time() -> None:
    limit = 2 * MIB
    with kit.at_most(4):
        done = kit.sh("yes & yes >&2", limits=Limits(output=limit), text=False)
    assert (done.reason, done.truncated) == (Reason.OUTPUT_LIMIT, True)
    assert max(len(done.stdout or ""), len(done.stderr or "")) == limit


CAPTURE = """
import sys
import nsbox

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))

way, script, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
args, limits = ["/bin/sh", "-c", script], nsbox.Limits(output=limit, wall=60)
nsbox.run(["true"], capture_output=True, text=True)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here, Linux 4.0
before = status("VmRSS")
if way == "communicate":
    with nsbox.Popen(args, stdout=nsbox.PIPE, stderr=nsbox.PIPE, limits=limits) as process:
        kept = process.communicate()
        reason = process.reason
else:
    done = nsbox.run(args, limits=limits, capture_output=True, text=way == "text")
    kept, reason = (done.stdout, done.stderr), done.reason
peak = status("VmHWM") - before
print(reason.name, max(map(len, kept)), peak)
"""
WINDOWS = "yes \"$(printf '\\r')\""
CAPTURES = [
    ("bytes", "yes", 1, 1), ("communicate", "yes", 1, 1), ("bytes", "yes & yes >&2", 1, 2),
    ("text", "yes", 1, 2), ("text", WINDOWS, 0.5, 2),
]  # fmt: skip


@pytest.mark.parametrize(("way", "script", "kept", "times"), CAPTURES)
def test_the_peak_while_a_flood_is_captured_is_bounded(
    way: str, script: str, kept: float, times: int
) -> None:
    """Nothing is held twice: but the bytes beside the text that is made of them."""
    limit = 64 * MIB
    done = subprocess.run(
        [sys.executable, "-c", CAPTURE, way, script, str(limit)],
        capture_output=True, text=True, cwd="/", check=True,
    )  # fmt: skip
    reason, length, peak = done.stdout.split()
    assert (reason, int(length)) == ("OUTPUT_LIMIT", limit * kept)
    assert limit * kept < int(peak) < times * limit + 16 * MIB


@pytest.mark.parametrize("way", ["exec", "popen"])
def test_what_enters_a_container_has_its_limit_of_output(way: str) -> None:
    """It was without any."""
    flood = ["head", "-c", "100000", "/dev/zero"]
    with nsbox.Container(["sleep", "1000"], limits=Limits(output=1000)) as container:
        if way == "exec":
            done = container.exec(flood, capture_output=True, timeout=kit.PATIENCE)
            got, reason = done.stdout, done.reason
            assert (done.truncated, done.limits_hit) == (True, ("output",))
        else:
            with container.popen(flood, stdout=nsbox.PIPE) as process:
                got, _ = process.communicate(timeout=kit.PATIENCE)
                reason = process.reason
        assert (got, reason) == (bytes(1000), Reason.OUTPUT_LIMIT)
        assert container.status() == "running"
        assert container.exec(["printf", "%1000s"], capture_output=True).ok


@pytest.mark.parametrize("way", ["run", "communicate", "container"])
def test_the_other_stream_is_read_while_one_is_silent(way: str) -> None:
    """1 MiB to stderr first: who reads stdout to its end before that waits for ever."""
    script = "head -c 1048576 /dev/zero | tr '\\0' e >&2; echo done"
    args = ["sh", "-c", script]
    if way == "run":
        done = kit.sh(script)
        out, err = str(done.stdout), str(done.stderr)
    elif way == "communicate":
        with nsbox.Popen(args, stdout=nsbox.PIPE, stderr=nsbox.PIPE, text=True) as process:
            first, second = process.communicate(timeout=kit.PATIENCE)
            out, err = str(first), str(second)
    else:
        with nsbox.Container(args, stdin=None) as container:
            assert container.wait(kit.PATIENCE) == 0
            out, err = container.logs("stdout"), container.logs("stderr") + "e" * len("done\n")
    assert (out, err.strip("e"), len(err)) == ("done\n", "", MIB)


def test_an_unread_pipe_of_the_callers_stops_the_writer_only() -> None:
    """Pipes that were asked for are the caller's: no limit, and nobody reads ahead."""
    limits = Limits(output=1000)
    with nsbox.Popen(["yes"], limits=limits, stdout=nsbox.PIPE) as process:
        assert len(process.stdout.read(100000)) == 100000
        assert process.poll() is None
        process.kill()
        assert process.wait(kit.PATIENCE) == -9
        assert process.reason is Reason.SIGNALED


@pytest.mark.parametrize("redirect", ["", ">&2"], ids=["stdout", "stderr"])
def test_a_container_is_ended_by_the_limit_of_its_log(redirect: str) -> None:
    with nsbox.Container(["sh", "-c", f"yes {redirect}"], limits=Limits(output=5000)) as container:
        assert container.wait(kit.PATIENCE) == -9
        result = container.result()
    assert (result.reason, result.limits_hit) == (Reason.OUTPUT_LIMIT, ("output",))
    assert result.truncated
    assert container.logs() == "y\n" * 2500


def test_a_container_below_the_limit_of_its_log_goes_on() -> None:
    with nsbox.Container(["printf", "12345"], limits=Limits(output=5)) as container:
        assert container.wait(kit.PATIENCE) == 0
        assert (container.result().reason, container.logs()) == (Reason.EXITED, "12345")
        assert not container.result().truncated


def test_a_container_over_the_limit_is_never_an_ordinary_exit() -> None:
    with nsbox.Container(["printf", "123456"], limits=Limits(output=5)) as container:
        container.wait(kit.PATIENCE)
        assert container.result().reason is Reason.OUTPUT_LIMIT
    assert container.logs() == "12345"


# -- pipes that others hold ---------------------------------------------------------------------

HOLDER = "(setsid sleep 1000 &); echo out; exit 0"


@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
@pytest.mark.parametrize("way", ["run", "communicate", "container"])
def test_a_grandchild_that_holds_stdout_delays_nobody(way: str, init: bool) -> None:
    args: dict[str, Any] = {"init": init}
    with kit.at_most(1):
        if way == "run":
            done = kit.sh(HOLDER, **args)
            assert (done.returncode, done.stdout) == (0, "out\n")
        elif way == "communicate":
            with nsbox.Popen(["sh", "-c", HOLDER], stdout=nsbox.PIPE, **args) as process:
                assert process.communicate()[0] == b"out\n"
                assert process.returncode == 0
        else:
            with nsbox.Container(["sh", "-c", HOLDER], **args) as container:
                assert container.wait(kit.PATIENCE) == 0
                assert container.logs() == "out\n"


# -- trees that are stopped ---------------------------------------------------------------------

TRACER = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
TRACEME, SETOPTIONS, EXITKILL_NOT, TRACEEXIT = 0, 0x4200, 0, 0x40
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        libc.ptrace(TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    assert libc.ptrace(SETOPTIONS, pid, None, ctypes.c_void_p(TRACEEXIT)) == 0
print('ready', flush=True)
os.kill(os.getpid(), signal.SIGSTOP)  # which a PID 1 does not hear from inside
while True:
    signal.pause()
"""


@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_a_tree_that_is_traced_and_stopped_ends_in_time(init: bool) -> None:
    """Tracees stop once more when they end, for a tracer that will not hear of it."""
    args = ["/usr/bin/python3", "-I", "-S", "-c", TRACER]
    with nsbox.Popen(args, init=init, stdout=nsbox.PIPE) as process:
        assert kit.waiting(process) == "ready"
        with kit.at_most(4):
            process.kill()
            assert process.wait(kit.PATIENCE) == -signal.SIGKILL


@pytest.mark.parametrize("way", ["wall", "timeout"])
def test_a_tree_that_stops_itself_meets_its_deadline(way: str) -> None:
    script = "(kill -STOP $(exec sh -c 'echo $PPID')) & sleep 0.05; kill -STOP $$"
    with kit.at_most(4):
        if way == "wall":
            assert kit.sh(script, limits=Limits(wall=scaled(0.4))).reason is Reason.TIMEOUT
        else:
            with pytest.raises(nsbox.TimeoutExpired):
                kit.sh(script, timeout=scaled(0.4))


CHAIN = """
import os, time
if os.fork() == 0:
    print("ready", flush=True)
    while True:
        if os.fork():
            os._exit(0)
time.sleep(1000)
"""


def test_a_chain_of_forks_is_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a child, and has gone when that is looked at."""
    children: Any = processes._children
    endless = iter(range(10_000_000, 20_000_000))
    monkeypatch.setattr(processes, "_children", lambda pid: [*children(pid), next(endless)])
    with kit.at_most(4):
        assert len(processes.tree(os.getpid())) >= processes._DEEPEST
    monkeypatch.undo()
    args = ["/usr/bin/python3", "-I", "-S", "-c", CHAIN]
    with nsbox.Popen(args, stdout=nsbox.PIPE) as process:
        assert kit.waiting(process) == "ready"
        with kit.at_most(4):
            process.close()


# -- frozen trees -------------------------------------------------------------------------------


class Freezer:
    """A group of this test's own in the v1 freezer hierarchy, or in the unified one."""

    def __init__(self, where: Path, member: str, switch: str, words: tuple[str, str]) -> None:
        self._directory = where / f"nsbox-test-{os.getpid()}"
        self._member, self._switch, self._words = member, switch, words

    def __enter__(self) -> Freezer:
        self._directory.mkdir()
        return self

    def add(self, pid: int) -> None:
        assert pid > 1
        (self._directory / self._member).write_text(str(pid))

    def freeze(self) -> None:
        (self._directory / self._switch).write_text(self._words[1])
        poll_until(lambda: self._read() in ("FROZEN", "frozen 1"), what="a frozen group")

    def _read(self) -> str:
        if self._switch == "freezer.state":
            return (self._directory / self._switch).read_text().strip()
        lines = (self._directory / "cgroup.events").read_text().splitlines()
        return next(line for line in lines if line.startswith("frozen"))

    def __exit__(self, *exc: object) -> None:
        (self._directory / self._switch).write_text(self._words[0])
        poll_until(self._removed, 5, what="an empty group")

    def _removed(self) -> bool:
        try:
            self._directory.rmdir()
        except OSError:
            return False
        return True


def _freezer(version: int) -> Freezer:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fstype, _, options = line.partition(" - ")[2].split(" ", 2)
        where = Path(line.split()[4])
        if not os.access(where, os.W_OK):
            continue
        if version == 1 and fstype == "cgroup" and "freezer" in options.split(","):
            return Freezer(where, "tasks", "freezer.state", ("THAWED", "FROZEN"))
        if version == 2 and fstype == "cgroup2":
            return Freezer(where, "cgroup.procs", "cgroup.freeze", ("0", "1"))
    pytest.skip(f"no freezer of cgroup v{version} can be written")


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


TREE = "sleep 1000 & setsid sleep 1000 & echo ready; wait"


@pytest.mark.root
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("who", ["all", "a member"])
@pytest.mark.parametrize("way", ["close", "kill", "container", "wall"])
def test_a_frozen_tree_ends_in_time(way: str, who: str, version: int) -> None:
    with _freezer(version) as group:
        limits = Limits(wall=scaled(0.5)) if way == "wall" else Limits()
        if way == "container":
            box: Any = nsbox.Container(["sh", "-c", TREE]).start()
            poll_until(lambda: "ready" in box.logs(), what="ready")
        else:
            box = nsbox.Popen(["sh", "-c", TREE], stdout=nsbox.PIPE, limits=limits)
            assert kit.waiting(box) == "ready"
        pids = _tree(box.pid)
        assert len(pids) == (3 if way == "container" else 4)
        for pid in pids if who == "all" else pids[-1:]:
            group.add(pid)
        group.freeze()
        with box, kit.at_most(4):
            if way == "kill":
                box.kill()
            if way in ("kill", "wall"):
                assert box.wait(kit.PATIENCE) == -9
            elif way == "container":
                box.stop(grace=0.2)
            box.close()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.root
@pytest.mark.cgroup1
def test_sigkill_alone_does_not_end_what_the_v1_freezer_holds() -> None:
    """The twin: why thawing is needed at all."""
    with _freezer(1) as group, nsbox.Popen(["sleep", "1000"], init=False) as process:
        group.add(process.pid)
        group.freeze()
        signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        with pytest.raises(nsbox.TimeoutExpired):
            process.wait(0.3)


# -- what cannot be killed ----------------------------------------------------------------------

ON_A_FUSE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/m/fuse")
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % int(sys.argv[1])
assert libc.mount(b"nsbox", b"/m/fuse", b"fuse", 6, options) == 0, ctypes.get_errno()
os.close(int(sys.argv[1]))  # or it would hold the server alive itself
os.stat("/m/fuse/file")
"""


def _request(fuse: int) -> bytes:
    try:
        return os.read(fuse, 1 << 18) if select.select([fuse], [], [], 0)[0] else b""
    except PermissionError:  # it is not mounted yet
        return b""


def _serve_one(fuse: int) -> None:
    """Answer FUSE_INIT, take the next request, and say nothing to it. fuse(4)."""
    for opcode in (26, 1):  # FUSE_INIT, FUSE_LOOKUP
        request = poll_until(lambda: _request(fuse), 15, what="a request of the file system")
        assert struct.unpack_from("I", request, 4)[0] == opcode
        if opcode == 26:
            body = struct.pack("IIIIHHII32x", 7, 31, 0, 0, 0, 0, 1 << 16, 0)
            (unique,) = struct.unpack_from("Q", request, 8)
            os.write(fuse, struct.pack("IiQ", 16 + len(body), 0, unique) + body)


@pytest.mark.root
@pytest.mark.parametrize("way", ["timeout", "popen", "container"])
def test_a_process_that_cannot_be_killed_is_told_of_in_time_and_goes_later(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("no /dev/fuse")
    monkeypatch.setattr("nsbox.process._ABORT_DEADLINE_S", scaled(0.5))
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    args = ["/usr/bin/python3", "-I", "-S", "-c", ON_A_FUSE, str(fuse)]
    keywords: dict[str, Any] = {"mounts": [nsbox.Mount.tmpfs("/m")], "profile": "none",
                                "pass_fds": [fuse], "limits": Limits(pids=50)}  # fmt: skip
    server = threading.Thread(target=_serve_one, args=(fuse,))
    server.start()
    groups = set(cgroup.parents().directories)
    box: Any = None
    try:
        if way != "timeout":
            box = (
                nsbox.Popen(args, **keywords)
                if way == "popen"
                else nsbox.Container(args, **keywords)
            )
            box = box.start() if way == "container" else box
            server.join(kit.PATIENCE)
        end = {
            "timeout": lambda: nsbox.run(args, timeout=scaled(1), **keywords),
            "popen": lambda: box.close(),
            "container": lambda: box.stop(grace=0),
        }[way]
        with pytest.raises(nsbox.StateError, match="sleeps in the kernel") as caught:
            with kit.at_most(5):
                end()
        assert caught.value.status == "stuck"
        assert "'python3' in" in str(caught.value)
    finally:
        server.join(kit.PATIENCE)
        os.close(fuse)  # the request is answered by its end
    mine = f"nsbox-{os.getpid()}-"

    def gone() -> bool:
        if way == "container":
            box.close()
        return not [name for _, where in groups for name in os.listdir(where)
                    if name.startswith(mine)]  # fmt: skip

    poll_until(gone, 5, what="the cgroup of what was stuck")


# -- usage of what was killed -------------------------------------------------------------------


@pytest.mark.parametrize("cgroups", [True, False], ids=["as it is", "without cgroups"])
def test_usage_of_a_killed_tree_is_known(monkeypatch: pytest.MonkeyPatch, cgroups: bool) -> None:
    """The kernel adds up nothing of those who are killed with their PID 1."""
    if not cgroups:
        bare = dataclasses.replace(probe.host(), controllers=(), cgroup_version=0)
        monkeypatch.setattr(probe, "host", lambda **_: bare)
        monkeypatch.setattr(probe, "host_of", lambda _: bare)
    code = "x = bytearray(40 << 20)\nwhile True: pass"
    done = kit.python(code, limits=Limits(wall=scaled(0.8)))
    assert done.reason is Reason.TIMEOUT
    assert 40 << 20 < done.usage.memory_peak < 200 << 20
    assert done.usage.cpu_user + done.usage.cpu_system > 0.05
