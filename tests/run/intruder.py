# SPDX-License-Identifier: Apache-2.0
"""Run as a payload: attacks every process that appears, until a line on stdin; reports in JSON.

It tries to trace it, to read its memory and its descriptors, and to keep or to write its exe.
"""

import ctypes
import json
import os
import select
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE = 0x4206
WALL = 0x40000000
#: What a process of the sandbox's may have: its streams, and files of its root.
FINE = ("pipe:", "/dev/null", "/usr/", "/lib", "/etc/", "/proc/", "/bin/")

links, exes, problems = set(), set(), set()
count = {"seen": 0, "seized": 0, "denied": 0, "opened": 0, "mem": 0}


def quietly(call, *args):
    try:
        return call(*args)
    except OSError:
        return None


def descriptors(pid):
    for name in quietly(os.listdir, f"/proc/{pid}/fd") or ():
        link = quietly(os.readlink, f"/proc/{pid}/fd/{name}")
        if link:
            links.add(link)
            if not link.startswith(FINE):
                problems.add(f"descriptor {name}: {link}")


def executable(pid):
    link = quietly(os.readlink, f"/proc/{pid}/exe")
    if link:
        exes.add(link)
    for flags in (os.O_RDONLY, os.O_PATH):
        fd = quietly(os.open, f"/proc/{pid}/exe", flags)
        if fd is None:
            continue
        count["opened"] += 1
        for how in (os.O_WRONLY, os.O_RDWR):
            if quietly(os.open, f"/proc/self/fd/{fd}", how) is not None:
                problems.add(f"writable exe {link}")
        os.close(fd)


def memory(pid):
    fd = quietly(os.open, f"/proc/{pid}/mem", os.O_RDONLY)
    if fd is not None:
        link = quietly(os.readlink, f"/proc/{pid}/exe") or ""
        count["mem"] += 1
        if not link.startswith(FINE) and link:
            problems.add(f"memory of {link}")
        os.close(fd)


def seize(pid):
    if libc.ptrace(SEIZE, pid, None, None) != 0:
        count["denied"] += ctypes.get_errno() == 1
        return
    count["seized"] += 1
    link = quietly(os.readlink, f"/proc/{pid}/exe") or ""
    if link and not link.startswith(FINE):
        problems.add(f"seized {link}")
    quietly(os.kill, pid, 9)
    quietly(os.waitpid, pid, WALL)


def main():
    me, known = os.getpid(), 0
    print("ready", flush=True)
    while not select.select([0], [], [], 0)[0]:
        newest = int(open("/proc/loadavg").read().split()[4]) if FULL else known
        pids = {int(n) for n in os.listdir("/proc") if n.isdigit()} | set(range(known, newest + 8))
        for pid in sorted(pids - {me, 0, 1}):
            if os.path.exists(f"/proc/{pid}/stat"):
                count["seen"] += 1
                known = max(known, pid)
            descriptors(pid)
            memory(pid)
            executable(pid)
            seize(pid)
    print(
        json.dumps(
            {
                "problems": sorted(problems),
                "count": count,
                "links": sorted(links),
                "exes": sorted(exes),
            }
        ),
        flush=True,
    )


FULL = os.path.exists("/proc/loadavg")
main()
time.sleep(1000 if "stay" in sys.argv else 0)
