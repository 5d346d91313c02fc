# SPDX-License-Identifier: Apache-2.0
"""The priority of a cgroup's network traffic: two small BPF programs on a cgroup v2 directory.

One gives new sockets their priority, so that getsockopt(2) says it; the other gives it to
each packet on its way to the queue, whatever SO_PRIORITY or IP_TOS were set to meanwhile. They
live as long as the directory. bpf(2), Linux 4.10; the caller needs CAP_BPF and CAP_NET_ADMIN.

Where only cgroup v1 is mounted, its ``net_prio`` has to do, which v2 does not have: a map from
devices to priorities, of packets that have none. It knows devices of the initial network
namespace alone (net/core/netprio_cgroup.c looks them up there).
"""

from __future__ import annotations

import os
import struct

from nsbox import cgroupfs

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_ALLOW_OVERRIDE = 1  # a second attach takes the place of the first
#: (program type, attach type, offset of ``priority`` in its context): linux/bpf.h.
_SOCK_CREATE = (9, 2, 20)  # BPF_PROG_TYPE_CGROUP_SOCK, struct bpf_sock
_EGRESS = (8, 1, 32)  # BPF_PROG_TYPE_CGROUP_SKB, struct __sk_buff


def _program(offset: int, priority: int) -> bytes:
    """*(u32 *)(context + offset) = priority; return 1 (allow)."""
    signed = priority - (1 << 32) if priority >= 1 << 31 else priority
    instructions = (
        (0xB4, 2, 0, signed),  # w2 = priority
        (0x63, 2 << 4 | 1, offset, 0),  # *(u32 *)(r1 + offset) = w2
        (0xB7, 0, 0, 1),  # r0 = 1
        (0x95, 0, 0, 0),  # exit
    )
    return b"".join(struct.pack("=BBhi", *one) for one in instructions)


def attach(directory: str, priority: int) -> None:
    """From now on, sockets made and packets sent in this cgroup have *priority*.

    Raises:
        OSError: EPERM, the caller may not; ENOSYS, no number of bpf(2) is known here.
    """
    target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for kind, where, offset in (_SOCK_CREATE, _EGRESS):
            program = _load(kind, where, _program(offset, priority))
            try:
                _bpf(_PROG_ATTACH, struct.pack("=4I", target, program, where, _ALLOW_OVERRIDE))
            finally:
                os.close(program)
    finally:
        os.close(target)


def set_map(directory: str, priority: int) -> None:
    """From now on, packets that are sent in this cgroup without a priority have *priority*, by
    whatever device there is now. Raises OSError."""
    file = f"{directory}/net_prio.ifpriomap"
    for line in cgroupfs.read(file).splitlines():
        cgroupfs.write(file, f"{line.rpartition(' ')[0]} {priority}")


def in_initial_network() -> bool:
    """The calling thread. Others do not have the settings that are of the whole kernel."""
    return os.path.exists("/proc/sys/net/core/netdev_budget")


def _load(kind: int, where: int, code: bytes) -> int:
    import ctypes

    instructions, license_ = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"")
    return _bpf(_PROG_LOAD, struct.pack(
        "=IIQQIIQII16sII", kind, len(code) // 8, ctypes.addressof(instructions),
        ctypes.addressof(license_), 0, 0, 0, 0, 0, b"nsbox_priority", 0, where,
    ))  # fmt: skip


def _bpf(command: int, attributes: bytes) -> int:
    import ctypes
    import errno

    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    buffer = ctypes.create_string_buffer(attributes)
    result = syscall(ctypes.c_long(number), ctypes.c_int(command), buffer,
                     ctypes.c_uint(len(attributes)))  # fmt: skip
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
