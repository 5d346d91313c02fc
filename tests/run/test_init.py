# SPDX-License-Identifier: Apache-2.0
"""nsbox-init as PID 1: it reaps, forwards and ends with the payload; and what PID 1 is without."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from run import kit
from support import poll_until

import nsbox

pytestmark = [pytest.mark.userns, pytest.mark.kernel]
FORWARDED = ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "CONT", "WINCH", "RTMIN"]


def started(script: str, **keywords: Any) -> nsbox.Popen:
    """A shell that has said that it is ready."""
    process = nsbox.Popen(["sh", "-c", script], stdout=nsbox.PIPE, stdin=nsbox.PIPE, **keywords)
    assert kit.waiting(process) == "ready"
    return process


def test_term_ends_a_payload_under_init() -> None:
    with started("echo ready; exec sleep 1000") as process:
        process.terminate()
        assert process.wait(kit.PATIENCE) == -signal.SIGTERM
        assert process.reason is nsbox.Reason.SIGNALED


def test_term_is_ignored_by_a_pid_1_without_a_handler() -> None:
    with started("echo ready; read line; echo $line", init=False) as process:
        process.terminate()
        process.stdin.write(b"still here\n")
        assert kit.waiting(process) == "still here"
        assert process.wait(kit.PATIENCE) == 0


def test_term_is_handled_by_a_pid_1_with_a_handler() -> None:
    script = "trap 'exit 9' TERM; echo ready; while :; do read line; done"
    with started(script, init=False) as process:
        process.terminate()
        process.stdin.close()
        assert process.wait(kit.PATIENCE) == 9


def test_kill_ends_a_pid_1_whatever_it_does() -> None:
    with started("trap '' TERM; echo ready; exec sleep 1000", init=False) as process:
        process.kill()
        assert process.wait(kit.PATIENCE) == -signal.SIGKILL


@pytest.mark.parametrize("name", ["ALRM", "PIPE", "ABRT", "SEGV", "TERM"])
def test_a_signal_of_its_own_ends_a_payload_under_init_only(name: str) -> None:
    """A PID 1 ignores what it does not handle: wrong verdicts, which is why init is the default."""
    number = getattr(signal, f"SIG{name}")
    code = (
        f"import os, signal\nsignal.signal({number}, signal.SIG_DFL)\n"
        f"os.kill(os.getpid(), {number})"
    )
    assert kit.python(code).returncode == -number
    assert kit.python(code, init=False).returncode == 0


@pytest.mark.parametrize("name", FORWARDED)
def test_signals_are_forwarded(name: str) -> None:
    number = int(getattr(signal, f"SIG{name}"))
    code = (
        f"import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [{number}])\n"
        f"print('ready', flush=True)\nprint(signal.sigwait([{number}]) == {number}, flush=True)"
    )
    args = ["/usr/bin/python3", "-I", "-S", "-c", code]
    with nsbox.Popen(args, stdout=nsbox.PIPE) as process:
        assert kit.waiting(process) == "ready"
        process.send_signal(number)
        assert kit.waiting(process) == "True"
        assert process.wait(kit.PATIENCE) == 0


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/status") as file:
        return kit.status(file.read())["State"][:1]


def _payload_of(process: nsbox.Popen) -> int:
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        (pid,) = map(int, file.read().split())
    assert pid > 1
    return pid


def test_stop_stops_the_payload() -> None:
    with started("echo ready; exec sleep 1000") as process:
        payload = _payload_of(process)
        process.send_signal(signal.SIGSTOP)
        poll_until(lambda: _state(process.pid) == "T" or _state(payload) == "T", what="a stop")
        assert _state(payload) == "T"


def test_stop_and_continue_without_init() -> None:
    with started("echo ready; exec sleep 1000", init=False) as process:
        process.send_signal(signal.SIGSTOP)
        poll_until(lambda: _state(process.pid) == "T", what="a stop")
        process.send_signal(signal.SIGCONT)
        poll_until(lambda: _state(process.pid) == "S", what="its going on")


def test_a_stopped_sandbox_is_closed_at_once() -> None:
    with started("echo ready; exec sleep 1000") as process, kit.at_most(1):
        process.send_signal(signal.SIGSTOP)
        process.close()


ORPHANS = """
import os, time
for _ in range(200):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
deadline = time.monotonic() + 20
def processes():
    return [pid for pid in os.listdir("/proc") if pid.isdigit()]
while len(processes()) > 2 and time.monotonic() < deadline:
    time.sleep(0.01)
print(len(processes()))
"""


def test_orphans_are_reaped() -> None:
    """A zombie has an entry in /proc too: in the end there are PID 1 and the payload."""
    assert int(kit.out(kit.python(ORPHANS, proc="full"))) == 2


@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_orphans_become_children_of_pid_1(init: bool) -> None:
    """Without init that is the entrypoint: to reap them is then its own affair."""
    script = "sh -c 'sleep 1000 & echo $! > orphan'; grep PPid /proc/$(cat orphan)/status; echo $$"
    words = kit.out(kit.sh(script, init=init)).split()
    assert words == ["PPid:", "1", "2" if init else "1"]


def test_the_end_of_the_payload_is_the_end_of_everything() -> None:
    with started("setsid sleep 1000 & (sleep 1000 &) ; echo ready; read line") as process:
        inside = {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                  if _pid_namespace(pid) == kit.namespace_id("pid", process.pid)}  # fmt: skip
        assert len(inside) == 4
        process.stdin.close()
        assert process.wait(kit.PATIENCE) in (0, 1)
        assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in inside)


def _pid_namespace(pid: int) -> str:
    try:
        return kit.namespace_id("pid", pid)
    except OSError:
        return ""


def test_the_payload_cannot_kill_stop_or_trace_its_init() -> None:
    script = "kill -KILL 1; kill -STOP 1; echo alive"
    assert kit.out(kit.sh(script, user=0)) == "alive"
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, 1, 0, 0))\n"
        "for name in ('mem', 'environ', 'maps'):\n"
        "    try: print(open(f'/proc/1/{name}', 'rb').read(1))\n"
        "    except OSError: print('closed')\n"
    )
    for profile in ("strict", "standard"):
        done = kit.python(code, profile=profile, proc="full")
        assert kit.out(done).split() == ["-1", "closed", "closed", "closed"]


@pytest.mark.root
def test_init_is_no_file_of_the_hosts() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        assert os.readlink(f"/proc/{process.pid}/exe").startswith("/memfd:nsbox-init")
        assert os.readlink(f"/proc/{_payload_of(process)}/exe").startswith("/usr/bin/")
