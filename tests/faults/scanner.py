# SPDX-License-Identifier: Apache-2.0
"""Run as a payload: looks for secrets in everything that it can read, and reports in JSON.

A secret is NSBOX, SECRET, a dash and 32 hexadecimal digits; its pieces are never together here.
"""

import ctypes
import json
import os
import re
import stat
import sys

SECRET = re.compile("{}{}-[0-9a-f]{{32}}".format("NSBOX", "SECRET").encode())
CHUNK = 1 << 20
KEYCTL = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, 0)
SESSION, PROCESS, USER, USER_SESSION = -3, -2, -4, -5
GET_ID, SEARCH, READ = 0, 10, 11

libc = ctypes.CDLL(None, use_errno=True)
hits = set()
tried = set()


def look(where, data):
    tried.add(where.partition(" ")[0])
    for found in SECRET.findall(data):
        hits.add((where, found.decode()))


def read(path, most=CHUNK):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def quietly(call, *args):
    try:
        return call(*args)
    except (OSError, ValueError, OverflowError):
        return None


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def vm_read(pid, address, size):
    buffer = ctypes.create_string_buffer(size)
    mine = Iovec(ctypes.cast(buffer, ctypes.c_void_p).value, size)
    theirs = Iovec(address, size)
    got = libc.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    return buffer.raw[: max(0, got)]


def regions(pid):
    for line in read(f"/proc/{pid}/maps", 1 << 22).decode(errors="replace").splitlines():
        span, rights = line.split()[:2]
        first, last = (int(part, 16) for part in span.split("-"))
        if rights.startswith("r") and "[v" not in line:
            for at in range(first, last, CHUNK):
                yield at, min(CHUNK, last - at)


def memory(pid):
    spans = list(quietly(list, regions(pid)) or [])
    for at, size in spans:
        look(f"vm {pid}", vm_read(pid, at, size))
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for at, size in spans:
            look(f"mem {pid}", quietly(os.pread, fd, size, at) or b"")
    finally:
        os.close(fd)


def descriptors(pid):
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        look(f"fd {pid} {name}", os.fsencode(quietly(os.readlink, path) or ""))
        mode = (quietly(os.stat, path) or os.stat("/")).st_mode
        if stat.S_ISREG(mode):
            look(f"fd {pid} {name}", quietly(read, path) or b"")


def process(pid):
    for name in ("environ", "cmdline", "maps", "status", "mountinfo"):
        look(f"{name} {pid}", quietly(read, f"/proc/{pid}/{name}") or b"")
    quietly(descriptors, pid)
    quietly(memory, pid)


def own_descriptors():
    """By number, whatever /proc shows."""
    open_ones = []
    for fd in range(1024):
        status = quietly(os.fstat, fd)
        if status is None:
            continue
        open_ones.append(fd)
        if stat.S_ISREG(status.st_mode):
            look(f"own fd {fd}", quietly(os.pread, fd, CHUNK, 0) or b"")
        if stat.S_ISDIR(status.st_mode):
            look(f"own directory {fd}", "\n".join(os.listdir(fd)).encode())
    return open_ones


def keys():
    buffer = ctypes.create_string_buffer(4096)
    for ring in (SESSION, PROCESS, USER, USER_SESSION):
        for name in (b"nsbox-fault", b"nsbox-other"):
            key = libc.syscall(KEYCTL, SEARCH, ring, b"user", name, 0)
            if key > 0:
                got = libc.syscall(KEYCTL, READ, key, buffer, 4096)
                look(f"key {ring}", buffer.raw[: max(0, got)])
    look("keys", quietly(read, "/proc/keys") or b"")


def main():
    look("own environ", repr(dict(os.environ)).encode())
    look("own argv", repr(sys.argv).encode())
    fds = own_descriptors()
    if KEYCTL:
        keys()
    me = os.getpid()
    pids = [int(name) for name in quietly(os.listdir, "/proc") or () if name.isdigit()]
    wanted = [int(word) for word in sys.argv[1:]] or range(1, 300)
    for pid in sorted({*pids, *wanted}) if not sys.argv[1:] else wanted:
        if pid != me:
            process(pid)
    process(me)
    print(json.dumps({"hits": sorted(hits), "fds": fds, "tried": sorted(tried), "pids": pids}))


main()
