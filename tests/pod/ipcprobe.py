# SPDX-License-Identifier: Apache-2.0
"""Makes and looks up System V and POSIX IPC objects by the real calls; a payload, and a module.

    python3 ipcprobe.py make KEY WORD     makes one of each kind with WORD in it
    python3 ipcprobe.py look KEY          prints what is in each, or the errno's name
    python3 ipcprobe.py either KEY WORD   makes them unless they exist, else looks
    python3 ipcprobe.py await KEY         looks until they are there

Each then sleeps; what it found goes out as one line: "look {json}".
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
import time

IPC_CREAT, IPC_EXCL, IPC_NOWAIT, SHM_RDONLY = 0o1000, 0o2000, 0o4000, 0o10000
GETVAL, SETVAL = 12, 16
MQ_SIZE = 8192

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
libc.msgrcv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long, ctypes.c_int]
libc.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
libc.mq_receive.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]


class Message(ctypes.Structure):
    _fields_ = (("type", ctypes.c_long), ("text", ctypes.c_char * 64))


def check(result: int | None) -> int:
    if result is None or result == -1 or result == 2**64 - 1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def make(key: int, word: str) -> None:
    flags = IPC_CREAT | IPC_EXCL | 0o666
    data = word.encode()
    address = check(libc.shmat(check(libc.shmget(key, 4096, flags)), None, 0))
    ctypes.memmove(address, data + b"\0", len(data) + 1)
    check(libc.shmdt(address))
    queue = check(libc.msgget(key, flags))
    check(libc.msgsnd(queue, ctypes.byref(Message(1, data)), 64, 0))
    mq = check(libc.mq_open(mq_name(key), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666, None))
    check(libc.mq_send(mq, data, len(data), 0))
    os.close(mq)
    with open(shm_path(key), "xb") as file:
        file.write(data)
    # The semaphore is last: who awaits it finds the others.
    check(libc.semctl(check(libc.semget(key, 1, flags)), 0, SETVAL, len(data)))


def mq_name(key: int) -> bytes:
    return b"/podtest-%d" % key


def shm_path(key: int) -> str:
    return f"/dev/shm/podtest-{key}"


def look_shm(key: int) -> str:
    address = check(libc.shmat(check(libc.shmget(key, 0, 0)), None, SHM_RDONLY))
    word = ctypes.string_at(address).decode()
    check(libc.shmdt(address))
    return word


def look_sem(key: int) -> int:
    return check(libc.semctl(check(libc.semget(key, 0, 0)), 0, GETVAL, 0))


def look_msg(key: int) -> str:
    message = Message()
    check(libc.msgrcv(check(libc.msgget(key, 0)), ctypes.byref(message), 64, 0, IPC_NOWAIT))
    return message.text.decode()


def look_mq(key: int) -> str:
    mq = check(libc.mq_open(mq_name(key), os.O_RDONLY | os.O_NONBLOCK, 0, None))
    try:
        data = ctypes.create_string_buffer(MQ_SIZE)
        size = check(libc.mq_receive(mq, data, MQ_SIZE, None))
        return data.raw[:size].decode()
    finally:
        os.close(mq)


def look_file(key: int) -> str:
    with open(shm_path(key)) as file:  # what shm_open(3) does
        return file.read()


LOOKS = {"shm": look_shm, "sem": look_sem, "msg": look_msg, "mq": look_mq, "file": look_file}


def look(key: int) -> dict[str, str | int]:
    """Kind -> its content, or the name of the errno."""
    found: dict[str, str | int] = {}
    for kind, read in LOOKS.items():
        try:
            found[kind] = read(key)
        except OSError as e:
            found[kind] = errno.errorcode[e.errno or 0]
    return found


def exists(key: int) -> bool:
    """The semaphore has been set, so all of them are there."""
    try:
        return look_sem(key) > 0
    except OSError:
        return False


def main() -> None:
    verb, key = sys.argv[1], int(sys.argv[2])
    while verb == "await" and not exists(key):
        time.sleep(0.01)
    if verb == "make" or (verb == "either" and not exists(key)):
        make(key, sys.argv[3])
        print("made", flush=True)
    else:
        print("look", json.dumps(look(key)), flush=True)
    time.sleep(1000)


if __name__ == "__main__":
    main()
