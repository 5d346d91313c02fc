# SPDX-License-Identifier: Apache-2.0
"""Every signal, sent through the API, does what it does to a process outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run import kit
from support import poll_until

import nsbox

pytestmark = pytest.mark.userns

ALL = range(1, 65)
SLEEP = ["/bin/sleep", "1000"]
CAUGHT = sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
CATCH = """
import os, signal
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda number, frame: os.write(1, b"%d\\n" % number))
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


def _state(pid: int) -> str:
    """A letter of proc(5); "" when it has gone."""
    try:
        return kit.status(Path(f"/proc/{pid}/status").read_text())["State"][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stops_or_goes_on(pid: int, number: int) -> str:
    """Of a process that a signal did not end: it is delivered when it is not pending any more."""
    mask = 1 << (number - 1)

    def pending() -> bool:
        status = kit.status(Path(f"/proc/{pid}/status").read_text())
        return bool((int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & mask)

    poll_until(lambda: not pending(), what="delivery")
    return "stopped" if _state(pid) == "T" else "runs"


def _outcome(process: Any, pid: int, number: int) -> str:
    """What became of a sleeper: an end, a stop, or nothing."""

    def settled() -> bool:
        return process.poll() is not None or _state(pid) in ("T", "S")

    poll_until(settled, 10, what="an end, a stop or its going on")
    for _ in range(100 if number in ENDING else 1):
        if process.poll() is not None:
            return f"ended {process.returncode}"
        if number not in ENDING:
            return _stops_or_goes_on(pid, number)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    return "runs"


#: signal(7): what is ignored or stops by default; a stop by terminal does not stop an orphan.
ENDING = set(ALL) - {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP,
    signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
}  # fmt: skip


def _ignored_here() -> int:
    """A process outside inherits what is ignored or blocked here; glibc lets nobody change 32."""
    status = kit.status(Path("/proc/thread-self/status").read_text())
    return int(status["SigIgn"], 16) | int(status["SigBlk"], 16)


def _natively(number: int) -> str:
    if number in (32, 33) and _ignored_here() >> (number - 1) & 1:
        return f"ended {-number}"  # by default; here it cannot be seen
    process = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        poll_until(lambda: _state(process.pid) == "S", what="its sleep")
        os.kill(process.pid, number)
        return _outcome(process, process.pid, number)
    finally:
        process.kill()
        process.wait()


def _payload(process: nsbox.Popen) -> int:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(text[0]) if text else 0


@pytest.mark.parametrize("number", ALL)
def test_a_signal_through_init_does_what_it_does_natively(number: int) -> None:
    with nsbox.Popen(SLEEP) as process:
        pid = poll_until(lambda: _payload(process), what="the payload")
        poll_until(lambda: _state(pid) == "S", what="its sleep")
        process.send_signal(number)
        if number not in ENDING:  # init is asleep again: it has passed it on
            poll_until(lambda: _state(process.pid) == "S", what="init")
        assert _outcome(process, pid, number) == _natively(number)


@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_every_signal_with_a_handler_arrives(init: bool) -> None:
    args = ["/usr/bin/python3", "-I", "-S", "-c", CATCH]
    with nsbox.Popen(args, stdout=nsbox.PIPE, init=init) as process:
        assert kit.waiting(process) == "ready"
        for number in CAUGHT:
            process.send_signal(number)
            assert kit.waiting(process) == str(int(number))
        assert process.poll() is None


@pytest.mark.parametrize("number", ALL)
def test_a_pid_1_is_ended_by_sigkill_only(number: int) -> None:
    """Of signals that it does not handle: pid_namespaces(7)."""
    with nsbox.Popen(SLEEP, init=False) as process:
        poll_until(lambda: _state(process.pid) == "S", what="its sleep")
        process.send_signal(number)
        if number == signal.SIGKILL:
            assert process.wait(kit.PATIENCE) == -9
            return
        state = _stops_or_goes_on(process.pid, number)
        assert state == ("stopped" if number == signal.SIGSTOP else "runs")
        assert process.poll() is None


def test_a_signal_after_the_end_is_nothing() -> None:
    with nsbox.Popen(["true"]) as process:
        assert process.wait(kit.PATIENCE) == 0
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            process.send_signal(number)
        process.terminate()
        process.kill()


# -- a pid that became somebody else's ----------------------------------------------------------

REUSE = """
import os, signal, sys, time
sys.path[:0] = {path!r}
import nsbox
open("/proc/sys/kernel/pid_max", "w").write("400")
def burn():
    pid = os.fork() or os._exit(0)
    os.waitpid(pid, 0)
    return pid


while burn() < 310:  # lower numbers do not come again
    pass
for make in (lambda: nsbox.Popen(["true"]), lambda: nsbox.Container(["true"]).start()):
    box = make()
    pid = box.pid
    box.wait(20)
    for _ in range(2000):  # until a process of ours has that very number
        victim = os.fork()
        if victim == 0:
            signal.pause()
        if victim == pid:
            break
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    else:
        sys.exit("the number did not come again")
    for _ in range(1000):
        box.kill()
        if hasattr(box, "send_signal"):
            box.send_signal(signal.SIGKILL)
        else:
            box.stop(grace=0)
    box.close()
    assert os.waitpid(victim, os.WNOHANG) == (0, 0), "the victim was hit"
    os.kill(victim, signal.SIGKILL)
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL
print("alive")
"""


@pytest.mark.root
@pytest.mark.kernel
def test_the_pid_of_one_that_ended_is_never_killed_again() -> None:
    """In a pid namespace with 400 numbers, where each comes again soon."""
    path = [str(Path(nsbox.__file__).resolve().parents[1])]
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c",
         REUSE.format(path=path)],
        capture_output=True, text=True, timeout=kit.PATIENCE * 6, check=False,
    )  # fmt: skip
    if "pid_max" in done.stderr and "Permission" in done.stderr:
        pytest.skip("pid_max cannot be written here")
    assert done.stdout == "alive\n", done.stderr


@pytest.mark.parametrize("code", [0, 9, 137, 255])
def test_a_code_that_looks_like_a_signal_is_an_exit(code: int) -> None:
    for keywords in ({}, {"init": False}):
        done = kit.sh(f"exit {code}", **keywords)
        assert (done.returncode, done.reason) == (code, nsbox.Reason.EXITED)
