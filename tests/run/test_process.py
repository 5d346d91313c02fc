# SPDX-License-Identifier: Apache-2.0
"""The owner's end of a channel, told by hand what a launcher and a child tell it."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import Any

import pytest

import nsbox
from nsbox import _core
from nsbox.names import Kind
from nsbox.process import Process

pytestmark = pytest.mark.userns


def test_what_a_barrier_hands_over_is_not_taken_for_the_process() -> None:
    """Set-up was given up before anybody looked: a socket came first, by a child that was quick."""
    plan = nsbox.explain(["true"])
    before = len(os.listdir("/proc/self/fd"))
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, subprocess.Popen(["sleep", "1000"]) as sleeper:

        def tell(kind: Kind, fd: int = -1, **fields: Any) -> None:
            raw = _core._ffi.new("struct nsb_record *", {"kind": kind, **fields})
            handed = [fd] if fd >= 0 else []
            socket.send_fds(theirs, [bytes(_core._ffi.buffer(raw))], handed)
            if fd >= 0:
                os.close(fd)

        try:
            tell(Kind.BARRIER, os.open("/dev/null", os.O_RDWR))
            tell(Kind.SPAWNED, os.pidfd_open(sleeper.pid), pid=sleeper.pid)
            process = Process(plan, mine.detach())
            assert process.poll() is None
            assert process.pid == sleeper.pid
            process.send_signal(9)
            assert sleeper.wait() == -9
            tell(Kind.ENDED, pid=sleeper.pid, code=2, status=9)
            tell(Kind.BARRIER, os.open("/dev/null", os.O_RDWR))  # read by nobody: it goes as well
            process.close()
        finally:
            sleeper.kill()
    assert len(os.listdir("/proc/self/fd")) == before
