# SPDX-License-Identifier: Apache-2.0
"""The ring of a container's output: the last mebibyte, whole, whoever reads it meanwhile."""

from __future__ import annotations

import itertools
import os
import random
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from support import poll_until

from nsbox import ring
from nsbox.errors import StateError
from nsbox.ring import BYTES, TURNS, Run, View, look

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.leaks_ok("memory within this process, which the tests close")


@pytest.fixture
def made() -> Iterator[ring.Ring]:
    one = ring.Ring()
    yield one
    one.close()


def test_before_anything_is_written_there_is_nothing(made: ring.Ring) -> None:
    assert look(made.fd) == ring.NOTHING
    assert look(made.fd).runs() == []


@pytest.mark.kernel("root")
def test_streams_are_told_apart_in_their_order(made: ring.Ring) -> None:
    for stream, data in ((1, b"a"), (1, b"b"), (2, b"c"), (1, b"d")):
        made.append(stream, data)
    assert look(made.fd).runs() == [Run(1, b"ab"), Run(2, b"c"), Run(1, b"d")]


def test_a_reader_goes_on_where_it_was(made: ring.Ring) -> None:
    made.append(1, b"one")
    at = look(made.fd).end
    assert look(made.fd, at).data == b""
    made.append(1, b"two")
    made.append(2, b"three")
    assert look(made.fd, at).runs() == [Run(1, b"two"), Run(2, b"three")]


@pytest.mark.parametrize(
    "sizes",
    [[BYTES], [BYTES + 1], [3 * BYTES + 5], [65536] * 40, [1000] * 3000],
    ids=["as large", "a byte more", "three times", "pieces that fit", "pieces that do not"],
)
def test_exactly_the_last_mebibyte_is_kept(made: ring.Ring, sizes: list[int]) -> None:
    whole = random.Random(1).randbytes(sum(sizes))
    at = 0
    for size in sizes:
        made.append(1, whole[at : at + size])
        at += size
    assert look(made.fd).data == whole[-BYTES:]
    assert os.fstat(made.fd).st_blocks * 512 <= BYTES + 2 * 4096


def test_who_is_a_mebibyte_behind_goes_on_with_what_is_kept(made: ring.Ring) -> None:
    made.append(1, b"x" * 10)
    at = look(made.fd).end
    made.append(2, b"y" * (BYTES + 7))
    made.append(1, b"z")
    view = look(made.fd, at)
    assert (view.begin, view.end) == (18, BYTES + 18)
    assert view.runs() == [Run(2, b"y" * (BYTES - 1)), Run(1, b"z")]


def test_streams_that_alternate_with_every_byte_stay_apart_and_bounded(made: ring.Ring) -> None:
    for i in range(2 * TURNS + 100):
        made.append(1 + i % 2, bytes([i % 251]))
    view = look(made.fd)
    assert view.end == 2 * TURNS + 100
    assert TURNS - 2 <= len(view.data) <= TURNS
    for i, (stream, data) in enumerate(view.runs(), view.begin):
        assert (stream, data) == (1 + i % 2, bytes([i % 251]))
    assert os.fstat(made.fd).st_size <= BYTES + 8 * TURNS + 64


def test_its_end_is_told_and_its_readers_keep_it() -> None:
    one = ring.Ring()
    fd = os.dup(one.fd)
    one.append(1, b"last")
    assert not look(fd).ended
    one.end()
    one.close()
    one.close()
    assert (look(fd).data, look(fd).ended, look(fd, 4).ended) == (b"last", True, True)
    os.close(fd)


def test_no_program_that_is_executed_inherits_it(made: ring.Ring) -> None:
    assert not os.get_inheritable(made.fd)


@pytest.mark.parametrize("content", [b"x", b"nsboxlog" + bytes(200), b"x" * 100_000])
def test_a_file_that_is_something_else_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(StateError, match="something else"):
        look(file.fileno())


def test_a_ring_that_was_cut_is_damaged(made: ring.Ring) -> None:
    made.append(1, b"x" * 5000)
    os.ftruncate(made.fd, (1 << 17) + 4000)
    with pytest.raises(StateError, match="something else"):
        look(made.fd)


# -- a writer and a reader at once ------------------------------------------------------------

#: Each byte says its stream and its position, so that a reader can tell what is wrong.
FLOOD = """
import os, random, sys
from nsbox.ring import Ring
pattern = [bytes((p * 31) % 127 | high for p in range(127)) * 1100 for high in (0, 128)]
ring, rest, at = Ring(), random.Random(1), 0
sizes = [int(size) for size in sys.argv[1:]]
print(ring.fd, flush=True)
while True:
    stream, size = rest.randint(1, 2), rest.choice(sizes)
    ring.append(stream, pattern[stream - 1][at % 127:][:size])
    at += size
"""
BYTE = [bytes((p * 31) % 127 | high for p in range(127)) * (BYTES // 127 + 2) for high in (0, 128)]


def assert_whole(view: View) -> None:
    at = view.begin
    for stream, data in view.runs():
        begin = at % 127
        assert data == BYTE[stream - 1][begin : begin + len(data)], (stream, at)
        at += len(data)
    assert at == view.end, "and nothing is missing"


@pytest.mark.kernel("root")
@pytest.mark.parametrize("sizes", ["1 2 3", "1 70 4096", "3 65536"])
def test_what_is_read_while_it_is_overwritten_is_whole(sizes: str) -> None:
    argv = [sys.executable, "-c", FLOOD, *sizes.split()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert select.select([writer.stdout], [], [], 20)[0]
        fd = os.open(f"/proc/{writer.pid}/fd/{int(writer.stdout.readline())}", os.O_RDONLY)
        try:
            at, end = 0, time.monotonic() + 3
            for turn in itertools.count():
                if turn and time.monotonic() > end:
                    break
                assert_whole(look(fd))
                if turn % 100 == 0:  # a slow reader, now and then
                    poll_until(lambda: look(fd).begin > at, 20)  # noqa: B023  (called here)
                view = look(fd, at)
                assert_whole(view)
                at = view.end
        finally:
            os.close(fd)
            writer.kill()


# -- without room -----------------------------------------------------------------------------

POOR = """
import resource
from nsbox.ring import Ring, look
ring = Ring()
ring.append(1, b"a" * 1000)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, ((1 << 17) + 10_000, hard))
ring.append(1, b"b" * 5000)
print(len(look(ring.fd).data))
ring.append(2, b"c" * 20_000)
ring.append(2, b"d")
print(len(look(ring.fd).data))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
ring.append(2, b"e")
ring.append(1, b"f")
view = look(ring.fd)
print(view.begin, view.runs())
"""


def test_what_there_is_no_room_for_is_lost_and_what_comes_later_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", POOR], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "6000",
        "6000",  # as its readers were told before
        "26001 [Run(stream=2, data=b'e'), Run(stream=1, data=b'f')]",
    ]
