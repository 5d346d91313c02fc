# SPDX-License-Identifier: Apache-2.0
"""Standard streams: what the payload gets, what the caller gets, and what floods and holders do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from run import kit
from support import scaled

import nsbox

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.userns
MIB = 1 << 20


@pytest.mark.kernel
def test_captured_streams_are_apart_and_bytes() -> None:
    done = kit.sh("echo out; echo err >&2", text=False)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    assert done.ok
    assert done.reason is nsbox.Reason.EXITED
    assert not done.truncated


def test_text_is_decoded_with_universal_newlines() -> None:
    assert kit.sh(r"printf 'a\r\nb\rc\303\251'").stdout == "a\nb\ncé"


def test_text_that_is_not_utf8_is_replaced_not_raised() -> None:
    assert kit.sh(r"printf 'a\377b'").stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_what_is_not_captured_is_none() -> None:
    done = nsbox.run(["true"], stdout=nsbox.PIPE)
    assert (done.stdout, done.stderr) == (b"", None)
    done = nsbox.run(["true"], stderr=nsbox.PIPE)
    assert (done.stdout, done.stderr) == (None, b"")


@pytest.mark.kernel
def test_input_of_a_mebibyte_comes_back_whole() -> None:
    data = os.urandom(MIB)
    assert kit.run("cat", input=data, text=False).stdout == data


def test_input_of_text() -> None:
    assert kit.run("cat", input="héllo", text=True).stdout == "héllo"


@pytest.mark.parametrize("data", [b"", ""])
def test_empty_input_is_the_end_of_the_stream(data: bytes | str) -> None:
    assert kit.out(kit.run("wc", "-c", input=data)) == "0"


def test_input_that_nobody_reads_is_no_error() -> None:
    done = kit.run("true", input=b"x" * MIB)
    assert done.ok


def test_input_that_is_read_in_part_is_no_error() -> None:
    assert kit.out(kit.sh("head -c 3; exec <&-", input=b"abc" + b"x" * MIB)) == "abc"


@pytest.mark.parametrize("data", [5, [1, 2]])
def test_input_of_another_type_is_refused(data: object) -> None:
    with pytest.raises(TypeError):
        kit.run("cat", input=data)


@pytest.mark.kernel
def test_stdin_is_dev_null_by_default() -> None:
    assert kit.out(kit.sh("readlink /proc/self/fd/0; wc -c")).split() == ["/dev/null", "0"]


def test_stderr_into_stdout_keeps_the_order() -> None:
    done = kit.sh(
        "echo 1; echo 2 >&2; echo 3",
        capture_output=False, stdout=nsbox.PIPE, stderr=nsbox.STDOUT,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("1\n2\n3\n", None)


def test_devnull_takes_everything() -> None:
    done = kit.sh(
        "head -c 1048576 /dev/zero; test /proc/self/fd/1 -ef /dev/null",
        capture_output=False, stdout=nsbox.DEVNULL, stderr=nsbox.PIPE,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (None, "")
    assert done.ok


def test_files_and_descriptors_are_handed_in(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("from the caller")
    with source.open("rb") as stdin, target.open("wb") as stdout:
        done = nsbox.run(
            ["sh", "-c", "cat; echo err >&2"],
            stdin=stdin, stdout=stdout.fileno(), stderr=nsbox.STDOUT,
        )  # fmt: skip
        assert done.ok
        assert not stdin.closed
        assert not stdout.closed
    assert target.read_text() == "from the callererr\n"
    assert (done.stdout, done.stderr) == (None, None)


def test_subprocess_constants_are_understood() -> None:
    done = nsbox.run(["cat"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                     stderr=subprocess.STDOUT)  # fmt: skip
    assert done.stdout == b""


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("value", ["file.txt", -7, 1.5, True])
def test_what_is_no_stream_is_refused(stream: str, value: object) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], **{stream: value})
    assert caught.value.field == stream


def test_stdout_cannot_be_stdout() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], stdout=nsbox.STDOUT)
    assert caught.value.field == "stdout"


def test_output_that_is_not_captured_is_relayed(capfd: pytest.CaptureFixture[str]) -> None:
    done = nsbox.run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.stdout, done.stderr) == (None, None)
    assert capfd.readouterr() == ("out\n", "err\n")


def test_relayed_output_comes_after_what_python_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with capfd.disabled():
        pass  # the streams below are the descriptors themselves
    with open(1, "w", closefd=False) as stream:
        before, sys.stdout = sys.stdout, stream
        try:
            print("first")
            nsbox.run(["echo", "second"])
        finally:
            sys.stdout = before
    assert capfd.readouterr().out == "first\nsecond\n"


def test_relay_is_a_pipe_never_the_callers_own_descriptor(
    capfd: pytest.CaptureFixture[str],
) -> None:
    nsbox.run(["readlink", "/proc/self/fd/1"])
    inside = capfd.readouterr().out.strip()
    assert inside.startswith("pipe:")
    assert inside != os.readlink("/proc/self/fd/1")


FLOOD = "head -c 4194304 /dev/zero >&2 & head -c 4194304 /dev/zero; wait"


def test_flood_on_both_streams_is_captured_whole() -> None:
    done = kit.sh(FLOOD, text=False)
    assert done.ok
    assert [len(done.stdout or b""), len(done.stderr or b"")] == [4 * MIB, 4 * MIB]


def test_flood_on_stderr_before_stdout_does_not_block() -> None:
    done = kit.sh("head -c 1048576 /dev/zero >&2; echo done", text=False)
    assert done.stdout == b"done\n"
    assert len(done.stderr or b"") == MIB


def test_flood_while_input_is_fed_does_not_block() -> None:
    data = b"y" * (4 * MIB)
    done = kit.sh("cat", input=data, text=False)
    assert done.stdout == data


@pytest.mark.kernel
def test_a_grandchild_that_holds_stdout_does_not_delay_the_result() -> None:
    took = []
    for _ in range(5):  # the machine may be busy: the quickest tells what there is to wait for
        begin = time.monotonic()
        done = kit.sh("echo begun; setsid sleep 1000 & exit 3")
        took.append(time.monotonic() - begin)
        assert (done.returncode, done.stdout) == (3, "begun\n")
    assert min(took) < scaled(0.5)


def test_the_last_words_before_the_end_are_not_lost() -> None:
    for _ in range(20):
        assert kit.sh("echo last; exit 7").stdout == "last\n"


def test_capture_output_excludes_stdout_and_stderr() -> None:
    with pytest.raises(ValueError, match="capture_output"):
        nsbox.run(["true"], capture_output=True, stdout=nsbox.PIPE)


def test_input_excludes_stdin() -> None:
    with pytest.raises(ValueError, match="input"):
        nsbox.run(["true"], input=b"", stdin=nsbox.DEVNULL)


def test_a_socket_can_be_standard_input() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"over a socket")
        ours.shutdown(socket.SHUT_WR)
        assert kit.out(kit.run("cat", stdin=theirs)) == "over a socket"
