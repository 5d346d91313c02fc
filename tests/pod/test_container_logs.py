# SPDX-License-Identifier: Apache-2.0
"""What a container wrote is kept: both streams, in order, and no more than 1 MiB."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from pod.kit import in_a_forked_child, wait_log
from support import poll_until, scaled

import nsbox

pytestmark = pytest.mark.userns

MIB = 1 << 20


def test_both_streams_while_it_runs_and_after_its_end() -> None:
    with nsbox.Container(["sh", "-c", "echo out; echo err >&2; exec sleep 1000"]) as container:
        wait_log(container, "out")
        log = wait_log(container, "err")
        assert sorted(log.split()) == ["err", "out"]
    assert sorted(container.logs().split()) == ["err", "out"]


def test_one_stream_keeps_its_order() -> None:
    with nsbox.Container(["seq", "2000"]) as container:
        container.wait(scaled(5))
        assert container.logs() == "".join(f"{i}\n" for i in range(1, 2001))


def test_a_pipe_is_narrow_only_as_long_as_nothing_comes(state: nsbox.Mount) -> None:
    wait = "until [ -e /state/go ]; do sleep 0.02; done"
    script = f"{wait}; head -c 300000 /dev/zero | tr '\\0' x; echo; echo end; exec sleep 1000"
    with nsbox.Container(["sh", "-c", script], mounts=[state]) as container:
        (out, _) = container._sinks
        assert fcntl.fcntl(out.fd, fcntl.F_GETPIPE_SZ) == os.sysconf("SC_PAGE_SIZE")
        Path(state.src, "go").touch()
        assert wait_log(container, "end") == "x" * 300000 + "\nend\n"
        assert fcntl.fcntl(out.fd, fcntl.F_GETPIPE_SZ) == 16 * os.sysconf("SC_PAGE_SIZE")


def test_the_last_mebibyte_is_kept() -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end"
    with nsbox.Container(["sh", "-c", script]) as container:
        assert container.wait(scaled(10)) == 0
        log = container.logs()
    assert len(log) == MIB
    assert log.startswith("xxx")
    assert log.endswith("x\nthe end\n")


def test_what_is_not_utf8_is_replaced() -> None:
    with nsbox.Container(["printf", "\\377ok"]) as container:
        container.wait(scaled(5))
        assert container.logs() == "\N{REPLACEMENT CHARACTER}ok"


def test_a_stream_of_the_callers_is_not_in_the_log() -> None:
    read, write = os.pipe()
    try:
        script = "echo mine; echo logged >&2"
        with nsbox.Container(["sh", "-c", script], stdout=write) as container:
            container.wait(scaled(5))
            assert container.logs() == "logged\n"
        assert os.read(read, 100) == b"mine\n"
    finally:
        os.close(read)
        os.close(write)


def test_it_runs_on_when_it_writes_more_than_is_kept() -> None:
    script = "head -c 5000000 /dev/zero | tr '\\0' x; echo done; exec sleep 1000"
    with nsbox.Container(["sh", "-c", script]) as container:
        wait_log(container, "done")
        assert container.status() == "running"


def test_what_has_ended_keeps_its_log_and_no_descriptor() -> None:
    def memfds() -> list[str]:
        fds = Path("/proc/self/fd")
        return [link for fd in fds.iterdir() if "nsbox-log" in (link := _target(fd))]

    before = memfds()
    with nsbox.Container(["sh", "-c", "echo hello; exec sleep 1000"]) as container:
        wait_log(container, "hello")
        assert len(memfds()) == len(before) + 1
        container.kill()
        container.wait(scaled(5))
        poll_until(lambda: len(memfds()) == len(before))
        assert container.logs() == "hello\n"


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def test_where_no_output_is_kept_there_is_no_room_for_it() -> None:
    with nsbox.Container(["true"], stdout=nsbox.DEVNULL, stderr=nsbox.DEVNULL) as container:
        assert container._log._ring is None
        container.wait(scaled(5))
    assert (container.logs(), list(container.follow())) == ("", [])


def test_one_that_cannot_be_started_has_nothing_to_follow() -> None:
    container = nsbox.Container(["/no/such/program"])
    with pytest.raises(nsbox.CommandNotFound):
        container.start()
    assert list(container.follow(timeout=scaled(5))) == []
    assert container._log._ring is None


@pytest.mark.kernel
def test_a_forked_child_of_its_owner_reads_the_log_and_what_comes() -> None:
    script = "echo one; read line; echo two"
    read, write = os.pipe()
    with nsbox.Container(["sh", "-c", script], stdin=read) as container:
        wait_log(container, "one")

        def say() -> str:
            first = container.logs()
            os.write(write, b"go\n")
            return first + "".join(container.follow(timeout=scaled(10)))

        assert in_a_forked_child(say) == "one\none\ntwo\n"
        assert container.wait(scaled(5)) == 0
        assert container.logs() == "one\ntwo\n"
    os.close(read)
    os.close(write)


def test_a_forked_child_that_left_the_block_took_the_note_and_the_output_along() -> None:
    read, write = os.pipe()
    script = "echo one; read line; echo two; sleep 1000"
    with nsbox.Container(["sh", "-c", script], stdin=read, name="kept") as container:
        wait_log(container, "one")

        def say() -> str:
            container.__exit__(None, None, None)
            for verb in (container.status, container.processes):
                with pytest.raises(nsbox.StateError, match="forked child"):
                    verb()
            return "left"

        assert in_a_forked_child(say) == "left"
        assert os.path.exists(container._note), "by which others find it"
        os.write(write, b"go\n")
        wait_log(container, "two")
        assert container.status() == "running"
    os.close(read)
    os.close(write)
