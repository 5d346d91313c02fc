# SPDX-License-Identifier: Apache-2.0
"""share_process_namespace: pause is PID 1 and reaps, containers see and signal each other."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pod.kit import (
    ended,
    events,
    namespace_ids,
    pidfds,
    proc_status,
    python,
    running,
    send,
    shell,
    sleeper,
    unique_seconds,
    wait_log,
)
from support import poll_until, scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.userns, pytest.mark.kernel]

ZOMBIES = 20
#: Orphans whose parent has ended: whoever is PID 1 inherits them, and has to wait for them.
ORPHANS = f"""
import os, time
for _ in range({ZOMBIES}):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
            os._exit(7)
        os._exit(0)
    os.wait()
print("made", flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def shared(*apps: nsbox.ContainerSpec, **keywords: object) -> Iterator[nsbox.Pod]:
    keywords = {"backoff": nsbox.Backoff.fast(), **keywords}
    with nsbox.Pod("web", apps, share_process_namespace=True, **keywords) as pod:  # type: ignore[arg-type]
        yield pod


def members(pod: nsbox.Pod) -> dict[int, str]:
    """Pid -> state of each process below the pod's pid namespace."""
    found = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, StopIteration):
            text = Path(f"/proc/{name}/status").read_text() if name.isdigit() else ""
            lines = dict(line.split(":", 1) for line in text.splitlines())
            pids = lines.get("NSpid", "").split()
            if len(pids) > 1 and inside(int(name), pod):
                found[int(name)] = lines["State"].split()[0]
    return found


def inside(pid: int, pod: nsbox.Pod) -> bool:
    """A zombie's links are gone: then its parent is pause."""
    try:
        return namespace_ids(pid)["pid"] == namespace_ids(pod.pause_pid)["pid"]
    except OSError:
        return int(proc_status(pid, "PPid")[0]) == pod.pause_pid


def test_pause_is_pid_1_and_no_entrypoint_is() -> None:
    with shared(sleeper("a"), sleeper("b")) as pod:
        ids = [namespace_ids(pid)["pid"] for pid in (pod.pause_pid, pod["a"].pid, pod["b"].pid)]
        assert len(set(ids)) == 1
        assert ids[0] != namespace_ids(os.getpid())["pid"]
        assert proc_status(pod.pause_pid, "NSpid")[-1] == "1"
        numbers = [pod[name].nspid for name in ("a", "b")]
        assert 1 not in numbers
        assert len(set(numbers)) == 2
        mounts = {namespace_ids(pod[name].pid)["mnt"] for name in ("a", "b")}
        assert len(mounts) == 2


def test_without_it_each_entrypoint_is_pid_1() -> None:
    with nsbox.Pod("web", [sleeper("a")]) as pod:
        assert pod["a"].nspid == 1


def test_pause_reaps_zombies_that_were_really_made() -> None:
    with shared(python("a", ORPHANS), sleeper("b")) as pod:
        wait_log(pod["a"], "made")
        # Each becomes a zombie of pause's after 50 ms; nobody else could wait for it.
        poll_until(lambda: len(members(pod)) == 3, 5, what="pause, a and b are left")
        assert set(members(pod).values()) <= {"S"}


def test_a_pid_1_that_does_not_reap_has_zombies() -> None:
    """The control: the same program, where the entrypoint is PID 1."""
    with nsbox.Pod("web", [python("a", ORPHANS)]) as pod:
        wait_log(pod["a"], "made")
        poll_until(lambda: zombies_of(pod["a"].pid) == ZOMBIES, 5)


def zombies_of(pid: int | None) -> int:
    count = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and proc_status(int(name), "PPid") == [str(pid)]:
                count += proc_status(int(name), "State")[0] == "Z"
    return count


def test_containers_see_each_other_in_proc() -> None:
    seconds = unique_seconds()
    look = "while :; do cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; sleep 0.05; done"
    apps = [nsbox.ContainerSpec("a", ["sleep", seconds]), shell("b", look)]
    with shared(*apps) as pod:
        wait_log(pod["b"], f"sleep {seconds}")
        wait_log(pod["b"], "nsbox-init pause")


def test_a_container_of_another_user_is_seen_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("several users need several ids")
    seconds = unique_seconds()
    look = "while :; do cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; sleep 0.05; done"
    apps = [nsbox.ContainerSpec("a", ["sleep", seconds], user=1001), shell("b", look)]
    with shared(*apps) as pod:
        wait_log(pod["b"], f"sleep {seconds}")


def test_containers_can_signal_each_other() -> None:
    seconds = unique_seconds()
    kill = f"pkill -TERM -f '^sleep {seconds}$' && echo killed; exec sleep 1000"
    apps = [nsbox.ContainerSpec("a", ["sleep", seconds]), shell("b", kill)]
    with shared(*apps) as pod:
        pod["a"].wait_restarted(1, scaled(10))
        state = pod["a"].last_state
        assert state is not None
        assert (state.exit_code, state.signal) == (143, 15)
        assert pod["b"].restart_count == 0


@pytest.mark.parametrize("name", ["TERM", "INT", "KILL", "STOP"])
def test_no_container_can_end_or_stop_pause(name: str) -> None:
    try_it = f"kill -{name} 1; echo sent; exec sleep 1000"
    with shared(shell("a", try_it), sleeper("b")) as pod:
        wait_log(pod["a"], "sent")
        with pidfds(pod.pause_pid) as (pause,):
            assert not ended(pause, 0.1)
            assert proc_status(pod.pause_pid, "State")[0] == "S"
        assert pod.phase == "Running"


def test_no_container_can_end_pause_with_a_forged_sender() -> None:
    queue = """
import ctypes, struct, os, time
SIGTERM, SI_QUEUE = 15, -1
info = struct.pack("iiiiii", SIGTERM, 0, SI_QUEUE, 0, 0, 0) + bytes(104)
number = {"x86_64": 129, "aarch64": 138}[os.uname().machine]
print("sent", ctypes.CDLL(None).syscall(number, 1, SIGTERM, info), flush=True)
time.sleep(1000)
"""
    with shared(python("a", queue)) as pod:
        wait_log(pod["a"], "sent 0")
        with pidfds(pod.pause_pid) as (pause,):
            assert not ended(pause, 0.1)


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_the_end_of_pause_takes_all_along(name: str) -> None:
    apps = [shell("a", "trap '' TERM; sleep 1000 & wait; sleep 1000"), sleeper("b")]
    with shared(*apps) as pod:
        poll_until(lambda: len(members(pod)) == 4, 5)
        with pidfds(*members(pod)) as fds:
            send(pod.pause_pid, signal.Signals[f"SIG{name}"])
            assert all(ended(fd, 1) for fd in fds)
        assert pod.wait(scaled(5)) == "Failed"
        assert pod.status().reason == "SandboxLost"


def test_the_end_of_a_container_is_the_end_of_its_tree() -> None:
    seconds = unique_seconds()
    # In a session of its own, and orphaned: neither its group nor its parent lead to it.
    leave = f"setsid sh -c 'sleep {seconds} & sleep {seconds} & wait' & sleep 1000"
    with shared(shell("a", leave, restart_policy="Never"), sleeper("b")) as pod:
        poll_until(lambda: len(running(seconds)) >= 2, 10)
        with pidfds(*running(seconds), pod["b"].pid) as (*left, other):
            pod["a"].current.kill()
            assert all(ended(fd, 3) for fd in left)
            assert not ended(other)
        assert pod["b"].restart_count == 0


def test_an_entrypoint_that_ends_leaves_nothing_in_the_pod() -> None:
    seconds = unique_seconds()
    leave = f"setsid sleep {seconds} & sleep 0.3"
    with shared(shell("a", leave, restart_policy="Never"), sleeper("b")) as pod:
        poll_until(pod["a"].done, 10)
        poll_until(lambda: running(seconds) == [], 3)
        assert pod.phase == "Running"


def test_a_terminal_in_one_container_is_in_no_other_s_dev_pts() -> None:
    with shared(sleeper("a"), sleeper("b")) as pod:
        for name in "ab":
            with pod[name].popen(["sleep", "1000"], pty=True):
                seen = pod[name].exec(["sh", "-c", "ls /dev/pts; tty"], pty=True,
                                      capture_output=True, text=True)  # fmt: skip
                assert str(seen.stdout).split() == ["0", "1", "ptmx", "/dev/pts/1"]


def test_exec_in_a_container_joins_the_shared_namespace() -> None:
    with shared(sleeper("a"), sleeper("b")) as pod:
        done = pod["a"].exec(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True)
        assert done.stdout == f"pid:[{namespace_ids(pod.pause_pid)['pid']}]\n"
        out = pod["a"].exec(["readlink", "/proc/self/ns/mnt"], capture_output=True, text=True)
        assert out.stdout == f"mnt:[{namespace_ids(pod['a'].pid)['mnt']}]\n"


def test_stop_ends_containers_with_their_handlers_then_pause() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    with shared(shell("a", script)) as pod:
        wait_log(pod["a"], "up")
        with pidfds(pod.pause_pid, pod["a"].pid) as fds:
            pod.stop(grace=scaled(5))
            assert all(ended(fd) for fd in fds)
        assert "bye" in pod["a"].logs()
    assert events(pod, "SandboxLost") == []


def test_a_restarted_container_is_in_the_same_namespace() -> None:
    with shared(sleeper("a"), sleeper("b")) as pod:
        before = namespace_ids(pod["a"].pid)["pid"]
        pod["a"].kill()
        pod["a"].wait_restarted(1, scaled(10))
        assert namespace_ids(pod["a"].pid)["pid"] == before
        assert pod["b"].restart_count == 0


def test_an_init_of_its_own_is_refused() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Pod("web", [sleeper("a", init=True)], share_process_namespace=True)
    assert caught.value.field == "containers['a'].init"


def test_a_member_that_is_stopped_while_it_is_set_up_does_not_stop_the_others() -> None:
    """A hostile container stops whatever appears; it can hold up its own pod, nobody else."""
    stop = """
import os, signal
print("up", flush=True)
me = os.getpid()
while True:
    for pid in range(me + 1, me + 60):
        try: os.kill(pid, signal.SIGSTOP)
        except OSError: pass
"""
    with shared(python("a", stop)) as pod:
        wait_log(pod["a"], "up")
        for _ in range(20):
            with contextlib.suppress(nsbox.TimeoutExpired, nsbox.SetupError):
                pod["a"].exec(["true"], timeout=0.2)
            assert nsbox.run(["true"], timeout=scaled(10)).ok


STOPPER = """
import os, signal
def names():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try: yield open(f"/proc/{pid}/comm").read()
        except OSError: pass
while "sleep\\n" not in names():  # b is up: it is its restarts that are held up
    pass
print("up", flush=True)
last = os.getpid()
while True:
    for pid in range(last + 1, last + 40):
        try: os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError: continue
        except OSError: pass
        last = max(last, pid)
"""


@pytest.mark.slow
def test_a_restart_that_a_member_holds_up_holds_up_no_other_sandbox() -> None:
    """The library's thread keeps the time of all: it must not wait for what one can stop."""
    with shared(python("a", STOPPER, profile="standard"), sleeper("b", profile="standard")) as pod:
        wait_log(pod["a"], "up")
        for _ in range(3):
            pid = pod["b"].pid
            if pid is None:  # held up already
                break
            send(pid, signal.SIGKILL)
            poll_until(lambda gone=pid: pod["b"].pid != gone, 5)
        started = time.monotonic()
        with nsbox.Container(["sleep", "1000"], limits=nsbox.Limits(wall=0.3)) as other:
            assert other.wait(scaled(20)) == -signal.SIGKILL
        assert time.monotonic() - started < scaled(4)
