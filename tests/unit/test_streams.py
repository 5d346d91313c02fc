# SPDX-License-Identifier: Apache-2.0
"""A stream's descriptor between two threads: the library's, which reads, and one that closes."""

from __future__ import annotations

import os
import select
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nsbox import converse, streams

pytestmark = pytest.mark.leaks_ok("pipes within this process, which the tests close")


def test_a_closed_stream_s_number_is_not_read_when_it_is_another_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record of another sandbox's channel was once taken for a container's output."""
    theirs, write_end = os.pipe()
    got: list[bytes] = []
    sink = streams.Sink(theirs, keep=False, into=got.append)
    reading, closed = threading.Event(), threading.Event()

    def slow_read(fd: int, size: int) -> bytes:
        """Between the check and the system call, another thread has its turn."""
        reading.set()
        closed.wait(0.3)
        return os.read(fd, size)

    def close() -> None:
        sink.close()
        closed.set()

    monkeypatch.setattr(streams, "os", SimpleNamespace(read=slow_read, close=os.close))
    os.write(write_end, b"mine")
    library = threading.Thread(target=streams.take, args=(sink,))
    library.start()
    assert reading.wait(5)
    closer = threading.Thread(target=close)
    closer.start()
    closed.wait(0.1)
    stranger, stranger_end = os.pipe()
    os.write(stranger_end, b"a record of somebody else's")
    library.join()
    closer.join()
    assert (got, sink.fd) == ([b"mine"], -1)
    assert os.read(stranger, 100) == b"a record of somebody else's"
    for fd in (write_end, stranger, stranger_end):
        os.close(fd)


@pytest.mark.parametrize("what", ["take", "drain"])
def test_the_library_s_thread_never_waits_for_who_says_nothing(what: str) -> None:
    """Told of news that were another's, who had the number before, it once stood still, and with
    it every limit and log of the process."""
    theirs, write_end = os.pipe()
    sink = streams.Sink(theirs, keep=True)
    call = sink.drain if what == "drain" else lambda: streams.take(sink)
    library = threading.Thread(target=call, daemon=True)
    library.start()
    library.join(5)
    waits = library.is_alive()
    os.write(write_end, b"x")  # lets it go, if it waits
    library.join()
    sink.close()
    os.close(write_end)
    assert not waits


def test_a_closed_stream_is_at_its_end() -> None:
    theirs, write_end = os.pipe()
    sink = streams.Sink(theirs, keep=True)
    sink.close()
    sink.close()
    assert not sink.read()
    streams.take(sink)
    os.close(write_end)


def test_what_is_in_a_pipe_is_read_though_only_its_end_was_told() -> None:
    """pipe_poll() looks for data first, and then for writers: one may write and go in between."""
    read, write = os.pipe()
    os.write(write, b"last words")
    os.close(write)
    here, there = os.pipe()
    sink = streams.Sink(read, keep=True)
    process: Any = SimpleNamespace(fileno=lambda: here, oom_fd=-1, cpu_limit=None)
    conversation = converse._Conversation(process, None, [sink])
    assert conversation._serve(read, select.POLLHUP)
    sink.drain()
    assert sink.hand_over() == b"last words"
    for fd in (read, here, there):
        os.close(fd)
