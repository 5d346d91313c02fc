# SPDX-License-Identifier: Apache-2.0
"""The one importer of the extension: its functions, typed, with OSError instead of -errno."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from nsbox._ffi import ffi as _any_ffi
from nsbox._ffi import lib as _any_lib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_lib: Any = _any_lib
_ffi: Any = _any_ffi

MAX_PASSED: int = _lib.NSB_MAX_PASSED


class Record(NamedTuple):
    """``struct nsb_record``: what a child, PID 1 or the launcher has to say."""

    kind: int
    op: int
    err: int
    pid: int
    code: int
    status: int
    utime_us: int
    stime_us: int
    maxrss_kib: int
    inblock: int
    oublock: int
    call: str


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _record(raw: Any) -> Record:
    return Record(
        raw.kind,
        raw.op,
        raw.err,
        raw.pid,
        raw.code,
        raw.status,
        raw.utime_us,
        raw.stime_us,
        raw.maxrss_kib,
        raw.inblock,
        raw.oublock,
        _ffi.string(raw.call).decode("ascii") if raw.call[0] != b"\0" else "",
    )


def plan_check(plan: bytes) -> bool:
    """Whether csrc/plan.c finds every offset of an encoded plan in order."""
    return int(_lib.nsb_plan_check(_ffi.from_buffer(plan), len(plan))) == 0


def launcher_start(exe: int, control: int, lock: int, owner_pidfd: int) -> None:
    """Starts nsbox-init as a launcher that serves *control*; it is nobody's waitable child."""
    _check(_lib.nsb_launcher_start(exe, control, lock, owner_pidfd))


def submit(control: int, plan: bytes, fds: Sequence[int]) -> int:
    """Asks the launcher to spawn *plan*; returns the channel on which records will arrive.

    Closing the channel makes the launcher kill the sandbox.
    """
    passed = _ffi.new("int[]", fds)
    return _check(_lib.nsb_submit(control, _ffi.from_buffer(plan), len(plan), passed, len(fds)))


def sweep(control: int, directory: str, prefix: str) -> None:
    """Registers: when the owner dies, cgroups in *directory* named *prefix*… are removed."""
    text = os.fsencode(directory) + b"\0" + os.fsencode(prefix) + b"\0"
    _check(_lib.nsb_sweep(control, _ffi.from_buffer(text), len(text)))


def receive(channel: int, timeout_ms: int = -1) -> tuple[Record, int] | None:
    """The next record and the descriptor that came with it (or -1); None on time-out.

    Raises:
        BrokenPipeError: nobody is left who could write one.
        InterruptedError: a signal arrived; call again.
    """
    raw, fd = _ffi.new("struct nsb_record *"), _ffi.new("int *", -1)
    if _check(_lib.nsb_receive(channel, raw, fd, timeout_ms)) == 0:
        return None
    return _record(raw), fd[0]


def view() -> bytes:
    """What tells two views of the system apart: ids, root directory, namespaces, process.

    Raises:
        OSError: /proc is not mounted, or is another pid namespace's.
    """
    numbers = _ffi.new("uint64_t[8]")
    _check(_lib.nsb_view(numbers, 8))
    return bytes(_ffi.buffer(numbers))


def view_forget() -> None:
    """In a forked child, whose view is not its parent's."""
    _lib.nsb_view_forget()


def raw_syscall(number: int, *args: int | bytes | None) -> int:
    """Any system call of at most five arguments; bytes are passed by address, with a NUL behind.

    Raises:
        OSError: the kernel's answer.
    """
    held = [_ffi.new("char[]", arg) if isinstance(arg, bytes) else arg for arg in args]
    words = [int(_ffi.cast("intptr_t", arg)) if isinstance(was, bytes) else arg or 0
             for arg, was in zip(held, args, strict=True)]  # fmt: skip
    words += [0] * (5 - len(words))
    return _check(int(_lib.nsb_raw(number, *words)))


class Starting:
    """Waits for the outcome of one spawn's set-up. *pid* and *pidfd* appear as it goes on."""

    __slots__ = ("_channel", "_handed", "_raw")

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._raw = _ffi.new("struct nsb_record[2]")  # the last one, and what came before
        self._handed = _ffi.new("struct nsb_handed *", (-1, -1, -1))

    @property
    def pidfd(self) -> int:
        return int(self._handed.pidfd)

    @property
    def pid(self) -> int:
        return int(self._raw[1].pid)

    def take_tree(self) -> int:
        """The mount that a barrier handed over, once; -1 for none."""
        fd, self._handed.tree = int(self._handed.tree), -1
        return fd

    def take_room(self) -> int:
        """The directory that came without waiting, once; -1 for none."""
        fd, self._handed.room = int(self._handed.room), -1
        return fd

    def next(self, timeout_ms: int = -1) -> Record:
        """STARTED, FAILED, BARRIER, or ENDED; raises as ``receive`` does, and TimeoutError."""
        _check(_lib.nsb_await_start(self._channel, self._raw, self._handed, timeout_ms))
        return _record(self._raw[0])


class RtRefused(OSError):
    """The kernel refused a request.

    Attributes:
        request: its number among those of the call.
        said: the kernel's own words (NLMSGERR_ATTR_MSG), or "".
    """

    def __init__(self, err: int, request: int, said: str) -> None:
        super().__init__(err, os.strerror(err))
        self.request, self.said = request, said


def _refused(err: int, fault: Any) -> RtRefused:
    return RtRefused(-err, fault.request, _ffi.string(fault.text).decode("utf-8", "replace"))


def rt_talk(fd: int, requests: Sequence[Mapping[str, Any]]) -> None:
    """Requests to an rtnetlink socket, each by its fields in ``struct nsb_rt``, in one batch.

    Raises:
        RtRefused: one was refused; those after it may have been done.
    """
    fault = _ffi.new("struct nsb_rt_fault *")
    err = _lib.nsb_rt_talk(fd, _ffi.new("struct nsb_rt[]", list(requests)), len(requests), fault)
    if err < 0:
        raise _refused(err, fault)


def rt_dump(fd: int, request: Mapping[str, Any], room: int = 256) -> list[Any]:
    """What there is, as ``struct nsb_rt``.

    Raises:
        RtRefused: the question was not understood, or not allowed.
    """
    fault = _ffi.new("struct nsb_rt_fault *")
    asked = _ffi.new("struct nsb_rt *", dict(request))
    while True:
        found = _ffi.new("struct nsb_rt[]", room)
        count = _lib.nsb_rt_dump(fd, asked, found, room, fault)
        if count >= 0:
            # each keeps the whole array alive
            return [_Entry(found, i) for i in range(count)]
        if count == -errno.E2BIG:
            room *= 4
        elif count != -errno.EAGAIN:
            raise _refused(count, fault)


class _Entry:
    """One struct of an array, by attribute."""

    __slots__ = ("_array", "_raw")

    def __init__(self, array: Any, index: int) -> None:
        self._array, self._raw = array, array[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def text(self, name: str) -> str:
        return str(_ffi.string(getattr(self._raw, name)).decode("utf-8", "surrogateescape"))

    def data(self, name: str, size: int) -> bytes:
        return bytes(_ffi.buffer(getattr(self._raw, name))[:size])


RT = _lib  # NSB_RT_LINK, NSB_RT_ADD and the other numbers of netlink.h
