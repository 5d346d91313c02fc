# SPDX-License-Identifier: Apache-2.0
"""Run as a payload: makes system calls, in every way to get from under a filter, and reports.

    caller.py '[[41, 40, 1, 0], ...]' [WAY]

Prints in JSON, for each way, the errno of each call, 0 where it succeeded.
"""

import ctypes
import json
import os
import struct
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
SET_SECCOMP, FILTER, ALLOW = 22, 2, 0x7FFF0000


def call(number, *args):
    got = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
    if got < 0:
        return ctypes.get_errno()
    os.closerange(3, 64)  # what it made; and what socketpair() made
    return 0


def here():
    pair = ctypes.create_string_buffer(256)  # for socketpair(), and a zeroed io_uring_params
    address = ctypes.addressof(pair)
    return [call(*(address if arg == "buffer" else arg for arg in row)) for row in CALLS]


def in_thread():
    found = []
    thread = threading.Thread(target=lambda: found.extend(here()))
    thread.start()
    thread.join()
    return found


def reported(child):
    """What *child* prints in a process of its own."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(theirs, 1)
        os.closerange(3, 64)
        child()
        sys.stdout.flush()
        os._exit(0)
    os.close(theirs)
    with open(ours) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def tell():
    print(json.dumps(here()))


def in_child():
    return reported(tell)


def as_orphan():
    def orphan():
        os.setsid()
        if os.fork() == 0:
            tell()

    return reported(orphan)


def after_execve():
    argv = [sys.executable, *sys.orig_argv[1:], "alone"]
    return reported(lambda: os.execv(argv[0], argv))


def under_a_filter_of_its_own():
    """One that allows everything: the stricter of two answers counts."""

    def loosen():
        code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, ALLOW))
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(code)))
        assert libc.prctl(SET_SECCOMP, FILTER, program, 0, 0) == 0, ctypes.get_errno()
        tell()

    return reported(loosen)


def with_seccomp_turned_off():
    def turn_off():
        libc.prctl(SET_SECCOMP, 0, 0, 0, 0)
        tell()

    return reported(turn_off)


WAYS = {
    "here": here,
    "thread": in_thread,
    "child": in_child,
    "orphan": as_orphan,
    "execve": after_execve,
    "own filter": under_a_filter_of_its_own,
    "turned off": with_seccomp_turned_off,
}
CALLS = json.loads(sys.argv[1])
if sys.argv[-1] == "alone":
    tell()
else:
    print(json.dumps({name: way() for name, way in WAYS.items()}))
