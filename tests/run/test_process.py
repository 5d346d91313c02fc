# SPDX-License-Identifier: Apache-2.0
"""The owner's end of a channel, told by hand what a launcher and a child tell it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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


VIEW = """
import ctypes, os, sys
from nsbox import _core

def number():
    mine = f"/proc/{os.getpid()}/task/{os.getpid()}/ns"
    return next(int(fd) for fd in os.listdir("/proc/self/fd")
                if os.path.realpath(f"/proc/self/fd/{fd}") == mine)

def move():
    assert ctypes.CDLL(None).unshare(0x50000000) == 0  # NEWUSER and NEWNET

import nsbox.launcher  # which tells a forked child that it is one
before = _core.view()
assert _core.view() == before
os.dup2(os.open("/tmp", os.O_PATH), number())  # by somebody who closes what is not his
assert _core.view() == before
child = os.fork()
if child == 0:
    inherited = _core.view()
    move()
    os._exit(0 if inherited != before and _core.view() not in (before, inherited) else 1)
assert os.waitpid(child, 0)[1] == 0
assert _core.view() == before
move()
assert _core.view() != before
"""


def test_a_view_is_the_callers_own_whatever_became_of_the_directory_that_is_kept_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", VIEW], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
