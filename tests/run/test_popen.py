# SPDX-License-Identifier: Apache-2.0
"""Popen beside subprocess.Popen: the same attributes and methods, and what it adds."""

from __future__ import annotations

import array
import gc
import io
import os
import select
import signal
import subprocess
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import poll_until, scaled

import nsbox
from nsbox import _core

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.userns
BOTH = pytest.mark.parametrize("make", [subprocess.Popen, nsbox.Popen], ids=["subprocess", "nsbox"])


# -- the same for both --------------------------------------------------------------------------


@BOTH
def test_poll_is_none_while_it_runs_then_the_code(make: Any) -> None:
    with make(["sh", "-c", "read line; exit 5"], stdin=subprocess.PIPE) as process:
        assert process.poll() is None
        assert process.returncode is None
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.wait(kit.PATIENCE) == 5
        assert process.poll() == process.returncode == 5


@BOTH
def test_wait_with_a_timeout_raises_and_it_goes_on(make: Any) -> None:
    with make(["sleep", "1000"]) as process:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.wait(timeout=0.05)
        assert caught.value.timeout == 0.05
        assert process.poll() is None
        process.kill()
        assert process.wait(kit.PATIENCE) == -signal.SIGKILL


@BOTH
def test_communicate_feeds_and_collects(make: Any) -> None:
    with make(["sh", "-c", "cat; echo err >&2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
              stderr=subprocess.PIPE) as process:  # fmt: skip
        assert process.communicate(b"hello", timeout=kit.PATIENCE) == (b"hello", b"err\n")
        assert process.returncode == 0


@BOTH
def test_communicate_a_mebibyte_both_ways(make: Any) -> None:
    data = os.urandom(1 << 20)
    with make(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.communicate(data)[0] == data


@BOTH
def test_communicate_without_pipes_waits(make: Any) -> None:
    with make(["true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert process.communicate() == (None, None)
        assert process.returncode == 0


@BOTH
def test_communicate_after_its_end(make: Any) -> None:
    with make(["sh", "-c", "echo out"], stdout=subprocess.PIPE) as process:
        process.wait(kit.PATIENCE)
        assert process.communicate()[0] == b"out\n"


@BOTH
def test_streams_can_be_talked_over(make: Any) -> None:
    with make(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for word in (b"one\n", b"two\n"):
            process.stdin.write(word)
            process.stdin.flush()
            assert process.stdout.readline() == word
        process.stdin.close()
        assert process.stdout.read() == b""


@BOTH
def test_a_signal_cuts_nothing_off_what_is_written(make: Any) -> None:
    data = os.urandom(1 << 20)
    with make(["sh", "-c", "sleep 0.3; cat"], stdin=subprocess.PIPE,
              stdout=subprocess.PIPE) as process:  # fmt: skip
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(process.stdout.read()))
        reader.start()
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.005)
        try:
            assert process.stdin.write(data) == len(data)
            process.stdin.close()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        reader.join()
        assert got == [data]


def test_what_is_written_is_there_at_once() -> None:
    with nsbox.Popen(["cat"], stdin=nsbox.PIPE, stdout=nsbox.PIPE) as process:
        process.stdin.write(memoryview(array.array("I", [1, 2])))
        assert process.stdout.read(8) == array.array("I", [1, 2]).tobytes()
    with nsbox.Popen(["sleep", "1000"], stdin=nsbox.PIPE) as process:
        os.set_blocking(process.stdin.fileno(), False)
        assert 0 < process.stdin.write(bytes(1 << 20)) < 1 << 20, "as much as there is room for"
        assert process.stdin.write(b"more") is None


@BOTH
def test_text_streams(make: Any) -> None:
    with make(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert isinstance(process.stdout, io.TextIOBase)
        process.stdin.write("é\n")
        process.stdin.flush()
        assert process.stdout.readline() == "é\n"
        assert process.communicate("rest")[0] == "rest"


@BOTH
def test_streams_that_are_no_pipes_are_none(make: Any) -> None:
    with make(["true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)


@BOTH
def test_signals(make: Any) -> None:
    for send, number in ((lambda p: p.terminate(), 15), (lambda p: p.kill(), 9),
                         (lambda p: p.send_signal(signal.SIGUSR1), 10)):  # fmt: skip
        with make(["sleep", "1000"]) as process:
            send(process)
            assert process.wait(kit.PATIENCE) == -number


@BOTH
def test_signals_after_the_end_are_nothing(make: Any) -> None:
    with make(["true"]) as process:
        process.wait(kit.PATIENCE)
        process.terminate()
        process.kill()
        process.send_signal(signal.SIGTERM)
        assert process.returncode == 0


@BOTH
def test_args_and_pid(make: Any) -> None:
    with make(["sleep", "1000"]) as process:
        assert process.args == ["sleep", "1000"]
        assert process.pid > 1
        assert os.path.exists(f"/proc/{process.pid}")
        process.kill()


@BOTH
def test_a_missing_program_is_file_not_found(make: Any) -> None:
    with pytest.raises(FileNotFoundError):
        make(["/usr/bin/nsbox-no-such-program"])


@BOTH
def test_a_program_that_is_not_executable_is_permission(make: Any) -> None:
    with pytest.raises(OSError, match="Permission denied") as caught:
        make(["/usr/lib/os-release"])
    assert caught.value.errno == 13


# -- what nsbox adds ----------------------------------------------------------------------------


def test_its_result_is_what_run_would_have_returned() -> None:
    args = ["sh", "-c", "cat; echo err >&2; exit 3"]
    with nsbox.Popen(args, stdin=nsbox.PIPE, stdout=nsbox.PIPE, stderr=nsbox.PIPE, text=True) as it:
        assert it.communicate("in\n") == ("in\n", "err\n")
        done = it.result()
        assert it.result() is done
    twin = nsbox.run(args, input="in\n", capture_output=True, text=True)
    for name in ("args", "returncode", "stdout", "stderr", "reason", "truncated", "limits_hit",
                 "enforcement", "applied", "changes"):  # fmt: skip
        assert getattr(done, name) == getattr(twin, name), name


def test_its_result_needs_an_end_and_is_there_without_communicate() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        with pytest.raises(nsbox.StateError, match="'sleep' has not ended") as caught:
            process.result()
        assert caught.value.status == "running"
        process.kill()
        select.select([process], [], [], kit.PATIENCE)
        assert poll_until(lambda: process.poll() is not None, 5)
        done = process.result()
    assert (done.returncode, done.stdout, done.stderr) == (-9, None, None)
    assert done.reason is nsbox.Reason.SIGNALED
    with nsbox.Popen(["sleep", "1000"]) as process:
        pass
    assert process.result().returncode == -9


@pytest.mark.parametrize("early", [True, False], ids=["quicker than its reader", "endless"])
def test_output_that_was_dropped_is_in_its_result(early: bool) -> None:
    script = "echo 12345678" if early else "yes"
    limits = nsbox.Limits(output=5)
    with nsbox.Popen(["sh", "-c", script], stdout=nsbox.PIPE, limits=limits) as process:
        if early:
            process.wait(kit.PATIENCE)
            assert process.result().truncated is False, "nobody has read it yet"
        out, _ = process.communicate()
        done = process.result()
    assert (done.stdout, done.truncated, done.limits_hit) == (out, True, ("output",))
    assert done.reason is process.reason is nsbox.Reason.OUTPUT_LIMIT
    assert len(done.stdout) == 5


def test_changes_of_an_overlay_are_in_its_result(tmp_path: Path) -> None:
    root = nsbox.Rootfs.overlay(kit.busybox_root(tmp_path / "root"))
    tmp_path.chmod(0o755)
    with nsbox.Popen(["/bin/sh", "-c", "echo > /made"], root=root, user=0) as process:
        assert process.wait(kit.PATIENCE) == 0
        assert [(c.kind, c.path) for c in process.result().changes] == [("added", "/made")]


@pytest.mark.cgroup
def test_limits_that_were_reached_are_in_its_result() -> None:
    hog = "for i in $(seq 30); do sleep 1000 & done; exit 4"
    limits = nsbox.Limits(pids=9)
    with nsbox.Popen(["sh", "-c", hog], stderr=nsbox.DEVNULL, limits=limits) as process:
        process.wait(kit.PATIENCE)
        assert process.result().limits_hit == ("pids",)


def test_a_command_in_a_container_has_a_result_too() -> None:
    with (
        nsbox.Container(["sleep", "1000"]) as box,
        box.popen(["sh", "-c", "echo out; exit 5"], stdout=nsbox.PIPE) as process,
    ):
        process.communicate()
        assert (process.result().returncode, process.result().stdout) == (5, b"out\n")


@pytest.mark.kernel
def test_leaving_the_context_ends_what_still_runs() -> None:
    with kit.at_most(2):
        with nsbox.Popen(["sleep", "1000"]) as process:
            pid = process.pid
            assert pid > 1
        assert not os.path.exists(f"/proc/{pid}/exe")
    assert process.returncode == -signal.SIGKILL


def test_close_is_idempotent_and_keeps_the_result() -> None:
    process = nsbox.Popen(["sh", "-c", "exit 4"])
    assert process.wait(kit.PATIENCE) == 4
    for _ in range(3):
        process.close()
    assert process.returncode == process.wait() == process.poll() == 4


@pytest.mark.kernel
def test_pidfd_and_fileno_become_readable_at_the_end() -> None:
    with nsbox.Popen(["cat"], stdin=nsbox.PIPE) as process:
        assert os.readlink(f"/proc/self/fd/{process.pidfd}").startswith(("anon_inode", "pidfd"))
        assert select.select([process.pidfd], [], [], 0)[0] == []
        process.stdin.close()
        assert select.select([process.pidfd], [], [], kit.PATIENCE)[0]
        assert select.select([process], [], [], kit.PATIENCE)[0]
        assert poll_until(lambda: process.poll() is not None)
        assert process.pidfd == -1


def test_usage_reason_and_enforcement() -> None:
    with nsbox.Popen(["true"], limits=nsbox.Limits(disk="1MiB")) as process:
        assert process.usage() is None or process.returncode is not None
        process.wait(kit.PATIENCE)
        usage = process.usage()
        assert usage is not None
        assert 0 < usage.wall < kit.PATIENCE
        assert usage.memory_peak > 0
        assert process.reason is nsbox.Reason.EXITED
        assert process.enforcement["disk"] == "tmpfs size=1048576"
        assert process.applied["no_new_privs"] == "set"
        assert str(process.explain()).count("\n") > 10


def test_repr_says_the_state() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        assert repr(process) == f"<nsbox.Popen 'sleep' running as {process.pid}>"
        process.kill()
        process.wait(kit.PATIENCE)
        assert repr(process) == "<nsbox.Popen 'sleep' returned -9>"


def test_one_that_was_forgotten_warns_and_is_ended() -> None:
    process = nsbox.Popen(["sleep", "1000"])
    pid = process.pid
    assert pid > 1
    held = [process]
    del process
    with pytest.warns(ResourceWarning, match="was not closed"):
        held.clear()
    gc.collect()
    poll_until(lambda: not os.path.exists(f"/proc/{pid}/exe"), what="its end")


def test_one_that_was_waited_for_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process = nsbox.Popen(["true"])
        process.wait(kit.PATIENCE)
        del process
        gc.collect()


def test_output_that_is_not_piped_is_relayed(capfd: pytest.CaptureFixture[str]) -> None:
    with nsbox.Popen(
        ["sh", "-c", "echo out; echo err >&2; read line"], stdin=nsbox.PIPE
    ) as process:
        seen = {"out": "", "err": ""}

        def both() -> bool:
            out, err = capfd.readouterr()
            seen["out"] += out
            seen["err"] += err
            return seen == {"out": "out\n", "err": "err\n"}

        poll_until(both, what="relayed output")
        process.stdin.close()
        process.wait(kit.PATIENCE)


def test_relayed_output_of_the_last_moment_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with nsbox.Popen(["sh", "-c", "head -c 50000 /dev/zero; echo last"]) as process:
        process.wait(kit.PATIENCE)
    assert capfd.readouterr().out == "\0" * 50000 + "last\n"


def test_communicate_beside_a_relay(capfd: pytest.CaptureFixture[str]) -> None:
    with nsbox.Popen(["sh", "-c", "echo out; echo err >&2"], stdout=nsbox.PIPE) as process:
        assert process.communicate()[0] == b"out\n"
    assert capfd.readouterr().err == "err\n"


def test_communicate_returns_none_for_what_is_no_pipe() -> None:
    with nsbox.Popen(["true"], stdout=nsbox.PIPE) as process:
        assert process.communicate() == (b"", None)


def test_communicate_with_a_timeout_ends_it() -> None:
    with nsbox.Popen(["sh", "-c", "echo out; exec sleep 1000"], stdout=nsbox.PIPE) as process:
        with pytest.raises(nsbox.TimeoutExpired):
            process.communicate(timeout=scaled(0.2))
        assert process.returncode == -signal.SIGKILL


def test_communicate_with_a_timeout_carries_what_there_was() -> None:
    with nsbox.Popen(["sh", "-c", "echo out; exec sleep 1000"], stdout=nsbox.PIPE) as process:
        with pytest.raises(nsbox.TimeoutExpired) as caught:
            process.communicate(timeout=scaled(0.2))
        assert caught.value.output == b"out\n"


def test_a_failed_start_leaves_the_callers_descriptors() -> None:
    nsbox.run(["true"])  # as root, the template of its root is kept
    before = sorted(os.listdir("/proc/self/fd"))
    for keywords in ({"cwd": "/nonexistent"}, {"mounts": [nsbox.Mount.bind("/nonexistent", "/x")]}):
        with pytest.raises(nsbox.SetupError):
            nsbox.Popen(["true"], stdin=nsbox.PIPE, stdout=nsbox.PIPE, **keywords)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_many_at_once_from_many_threads() -> None:
    codes: dict[int, list[int]] = {}

    def work(number: int) -> None:
        codes[number] = [kit.sh(f"exit {number}").returncode for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {number: [number] * 5 for number in range(8)}


def test_it_outlives_the_thread_that_started_it() -> None:
    started: list[nsbox.Popen] = []
    args = ["sh", "-c", "read line; echo $line"]
    thread = threading.Thread(
        target=lambda: started.append(nsbox.Popen(args, stdin=nsbox.PIPE, stdout=nsbox.PIPE))
    )
    thread.start()
    thread.join()
    with started[0] as process:
        assert process.poll() is None
        assert process.communicate(b"alive\n")[0] == b"alive\n"


def test_nobody_else_can_take_the_exit_status() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for code in range(5):
            with nsbox.Popen(["sh", "-c", f"exit {code}"]) as process:
                with pytest.raises(ChildProcessError):
                    os.waitpid(process.pid, 0)
                assert process.wait(kit.PATIENCE) == code
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_handle_in_a_forked_child_is_a_clear_error() -> None:
    read, write = os.pipe()
    with nsbox.Popen(["sleep", "1000"]) as process:
        child = os.fork()
        if child == 0:
            try:
                process.send_signal(signal.SIGKILL)
            except nsbox.StateError as error:
                os.write(write, error.status.encode())
            finally:
                os._exit(0)
        assert child > 0
        os.waitpid(child, 0)
        assert os.read(read, 100) == b"foreign"
        assert process.poll() is None
    os.close(read)
    os.close(write)


def test_wait_is_woken_by_the_end_not_by_polling() -> None:
    with nsbox.Popen(["sleep", "0.2"]) as process:
        begin = time.process_time()
        process.wait(kit.PATIENCE)
        assert time.process_time() - begin < 0.1


def test_an_interrupt_loses_nothing_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a sandbox, and the pidfd that comes when it was only seen to execute."""
    receive, told = _core.receive, []

    def interrupted(*args: int) -> tuple[_core.Record, int] | None:
        got = receive(*args)
        if got is not None and not told:
            told.append(got)
            signal.raise_signal(signal.SIGINT)
        return got

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with nsbox.Popen(["/bin/sh", "-c", "exit 7"]) as box:
            monkeypatch.setattr(_core, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                box.wait()
            assert box.wait() == 7
        nsbox.run(["/bin/true"], profile="none", init=False)  # warm
        opened = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            told.clear()
            with pytest.raises(KeyboardInterrupt):
                nsbox.run(["/bin/true"], profile="none", init=False)
        assert len(os.listdir("/proc/self/fd")) == opened
    finally:
        signal.signal(signal.SIGINT, before)
