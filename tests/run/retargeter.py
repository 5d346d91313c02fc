# SPDX-License-Identifier: Apache-2.0
"""Run as a payload: traces a child, and makes another call of the one that it is in.

    retargeter.py NUMBER FAMILY TYPE PROTOCOL

Prints what the kernel answers to the child. For x86_64.
"""

import ctypes
import os
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
TRACEME, PEEKUSER, POKEUSER, SYSCALL, KILL, GETPPID = 0, 3, 6, 24, 8, 110
#: Of struct user: the number, the answer, and the first three arguments.
ORIG_RAX, RAX, RDI, RSI, RDX = (8 * place for place in (15, 10, 14, 13, 12))


def ptrace(request, pid, where=0, value=0):
    got = libc.ptrace(request, pid, where, value)
    assert got != -1 or ctypes.get_errno() == 0, ctypes.get_errno()
    return got


def peek(pid, where):
    ctypes.set_errno(0)
    return ptrace(PEEKUSER, pid, where)


def until_syscall(pid):
    ptrace(SYSCALL, pid)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSTOPPED(status), status


child = os.fork()
if child == 0:
    libc.ptrace(TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        os.getppid()
os.waitpid(child, 0)
until_syscall(child)
while peek(child, ORIG_RAX) != GETPPID:
    until_syscall(child)
for where, value in zip((ORIG_RAX, RDI, RSI, RDX), map(int, sys.argv[1:]), strict=True):
    ptrace(POKEUSER, child, where, value)
until_syscall(child)
print(peek(child, RAX))
os.kill(child, signal.SIGKILL)
