# SPDX-License-Identifier: Apache-2.0
"""The launcher of this process: started on first use, one for each view of the system.

A *view* is what paths and "the caller's namespace" mean: root directory, mount and other
namespaces, and the effective user. A program that moves itself gets another launcher.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import select
import socket
import threading
import time
from importlib import resources
from typing import TYPE_CHECKING

from nsbox import _core, registry, shared
from nsbox.blame import NO_DESCRIPTORS
from nsbox.errors import StateError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

_BURIAL_DEADLINE_S = 1.0
_MFD_EXEC = 0x10  # Linux 6.3; older kernels answer EINVAL
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _init_memfd() -> int:
    """nsbox-init in a sealed memfd: no file of the host's is the exe of a sandbox's process."""
    program = resources.files("nsbox").joinpath("nsbox-init").read_bytes()
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("nsbox-init", flags | _MFD_EXEC)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("nsbox-init", flags)
    with open(fd, "wb", closefd=False) as file:
        file.write(program)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


class Launcher:
    """A running launcher: its control socket and its registry entry."""

    def __init__(self, view: bytes) -> None:
        self.view = view
        self.entry = registry.Entry()
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except BaseException:
            self.entry.close()
            raise
        # Before the first request is sent: credentials are attached at that time.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        exe = owner = -1
        try:
            exe, owner = _init_memfd(), os.pidfd_open(os.getpid())
            self._register((registry.directory(),))
            self._register_shared()
            _core.launcher_start(exe, theirs.fileno(), self.entry.fd, owner)
            self.entry.publish()
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()
            for fd in (exe, owner):
                if fd >= 0:
                    os.close(fd)

    def _register(self, directories: tuple[str, ...]) -> None:
        for directory in directories:
            _core.sweep(self._control.fileno(), directory, self.entry.prefix)

    def _register_shared(self) -> None:
        """What this network namespace shares is not ours alone, and has a prefix of its own."""
        try:
            prefix = shared.prefix()
        except FileNotFoundError:  # no /proc/sys: nor can anything there be switched on
            return
        _core.sweep(self._control.fileno(), registry.directory(), prefix)

    def register(self, directories: tuple[str, ...]) -> None:
        """Things with our prefix will be made there: whoever outlives us removes them."""
        self.entry.register(directories, self._register)

    def submit(self, plan: bytes, fds: Sequence[int]) -> int:
        """Ask for a spawn; returns its channel. BrokenPipeError: the launcher has died."""
        return _core.submit(self._control.fileno(), plan, fds)

    def alive(self) -> bool:
        """Whether it still holds its end of the control socket."""
        poll = select.poll()
        poll.register(self._control.fileno(), 0)
        return not poll.poll(0)

    def close(self) -> None:
        """Let it go: it ends what still runs, undoes what is left, and exits. Idempotent.

        Other threads may be about to use the socket: its number stays taken until they are done.
        """
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:  # the launcher has gone before
            pass
        self.entry.close()

    def drop(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._control.close()
        self.entry.drop()

    def __del__(self) -> None:
        if hasattr(self, "_control"):
            self._control.close()


_launchers: dict[bytes, Launcher] = {}
_lock = threading.Lock()


def view() -> bytes:
    """What paths and namespaces mean to the calling thread, and who it is.

    Raises:
        Unavailable: it cannot be told here, where no launcher could be started either.
    """
    try:
        return _core.view()
    except OSError as e:
        raise Unavailable("launcher", f"/proc is not this process's own: {e}") from e


def current(seen: bytes | None = None) -> Launcher:
    """The launcher of this process and view, started when there is none.

    *seen*: the ``view()`` of a moment ago.

    Raises:
        Unavailable: it cannot be started here.
    """
    seen = view() if seen is None else seen
    launcher = _launchers.get(seen)
    if launcher is not None:
        return launcher
    with _lock:
        if seen not in _launchers:
            try:
                registry.gc()
                _launchers[seen] = Launcher(seen)
            except OSError as e:
                hint = NO_DESCRIPTORS if e.errno == errno.EMFILE else ""
                raise Unavailable("launcher", f"cannot be started: {e}", err=e.errno or 0,
                                  hint=hint) from e  # fmt: skip
        return _launchers[seen]


def forget(launcher: Launcher) -> None:
    """It was killed: the next ``current()`` starts another."""
    with _lock:
        if _launchers.get(launcher.view) is launcher:
            del _launchers[launcher.view]
            _bury(launcher)


def _bury(launcher: Launcher) -> None:
    """Sweep what a killed launcher was to undo, as soon as the kernel has let go of its lock."""
    launcher.close()
    deadline = time.monotonic() + _BURIAL_DEADLINE_S
    while True:
        registry.gc()
        if not os.path.exists(launcher.entry.path) or time.monotonic() > deadline:
            return  # or the next gc() will
        time.sleep(0.002)


def check_owner(pid: int) -> None:
    """Handles belong to the process that made them.

    Raises:
        StateError: this is a forked child of it.
    """
    if pid != os.getpid():
        raise StateError(
            f"this handle belongs to process {pid}: a forked child must make its own",
            status="foreign",
        )


def _forget() -> None:
    """In a forked child: drop the parent's sockets, or its launcher would never see it end."""
    _core.view_forget()
    for launcher in _launchers.values():
        launcher.drop()
    _launchers.clear()
    global _lock
    _lock = threading.Lock()


def shut_down() -> None:
    """End every launcher of this process; the next spawn starts another."""
    with _lock:
        dead = [launcher for launcher in _launchers.values() if not launcher.alive()]
        for launcher in _launchers.values():
            launcher.close()
        _launchers.clear()
        for launcher in dead:
            _bury(launcher)


os.register_at_fork(after_in_child=_forget)
atexit.register(shut_down)
