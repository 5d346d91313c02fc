# SPDX-License-Identifier: Apache-2.0
"""The terminal of a sandbox, seen from the caller; and the caller's own, lent to it by relay.

A sandbox never gets the caller's terminal: what can be typed into that (TIOCSTI) is typed into
the caller's shell. It gets one of its own, and ``attach`` copies bytes between the two.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import signal
import struct
import termios
import threading
import tty
from typing import TYPE_CHECKING, Any

from nsbox.errors import SpecError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsbox.container import Container
    from nsbox.popen import Popen

_CHUNK = 1 << 16
_EOF = b"\x04"  # VEOF of a new terminal
#: Signals that end nobody by default.
_HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP,
             signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}  # fmt: skip
#: Who returns from their handlers meets them again.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
#: Signals that would end the caller with its terminal in raw mode.
_DEADLY = signal.valid_signals() - _HARMLESS - _FAULTS - {signal.SIGKILL}


class Terminal:
    """The caller's side of the pty of a sandbox: what is written to it is typed there.

    ``close()`` hangs up: SIGHUP to the sandbox's foreground processes. The end of a container
    closes it, too. Safe from any thread.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()  # SIGWINCH may come while the same thread has it

    def fileno(self) -> int:
        """The master of the pty. Raises ValueError after ``close()``."""
        if self._fd < 0:
            raise ValueError("this terminal is closed")
        return self._fd

    def dup(self) -> int:
        """Another descriptor of it, the caller's to close. Raises ValueError after ``close()``."""
        with self._lock:  # or its number may be another file's by now
            return os.dup(self.fileno())

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def read(self, size: int = _CHUNK) -> bytes:
        """What was written to it, at least a byte; b"" when nobody has it open any more."""
        fd = self.dup()
        try:
            return os.read(fd, size)
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            return b""  # the last one has closed it
        finally:
            os.close(fd)

    def write(self, data: bytes) -> int:
        """Type *data*, all of it; waits while the sandbox does not read."""
        fd = self.dup()
        try:
            _write_all(fd, data)
        finally:
            os.close(fd)
        return len(data)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns. tty_ioctl(4) TIOCGWINSZ."""
        with self._lock:
            return window_size(self.fileno())

    def resize(self, rows: int, columns: int) -> None:
        """Sets its size; the sandbox's foreground processes get SIGWINCH when it changes."""
        for value in (rows, columns):
            if not 0 < value < 1 << 16:
                raise SpecError("size", f"{value!r} is not a number of rows or columns")
        size = struct.pack("HHHH", rows, columns, 0, 0)
        with self._lock:
            fcntl.ioctl(self.fileno(), termios.TIOCSWINSZ, size)

    def close(self) -> None:
        """Hang up; idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<nsbox.Terminal {'closed' if self.closed else self._fd}>"


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def window_size(fd: int) -> tuple[int, int]:
    """Rows and columns of a terminal."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def typed(data: bytes) -> bytes:
    """*data* and its end, as one types them: ^D, twice where a line has begun."""
    return data + (_EOF if not data or data.endswith(b"\n") else _EOF * 2)


@contextlib.contextmanager
def _unless_hung_up() -> Iterator[None]:
    """A terminal that has gone has no modes."""
    try:
        yield
    except termios.error as e:  # which is no OSError
        if e.args[0] != errno.EIO:
            raise


class _RawMode:
    """The caller's terminal passes every key on, until this is left, however that happens."""

    def __init__(self, fd: int, resize: Callable[[], None]) -> None:
        self._fd = fd
        self._resize = resize
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _RawMode:
        try:
            with _unless_hung_up():
                if os.isatty(self._fd):
                    self._saved = termios.tcgetattr(self._fd)
                    self._handle()
                    tty.setraw(self._fd, termios.TCSADRAIN)
        except BaseException:
            self.restore()
            raise
        return self

    def _handle(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # handlers are the main thread's
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._winch)
        for number in _DEADLY:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, self._die)

    def _winch(self, number: int, frame: Any) -> None:
        self._resize()

    def _die(self, number: int, frame: Any) -> None:
        self.restore()
        os.kill(os.getpid(), number)

    def restore(self) -> None:
        """Idempotent, as a signal may come while this is under way."""
        if self._saved is not None:
            with _unless_hung_up():
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)
        self._saved = None

    def __exit__(self, *exc: object) -> None:
        self.restore()


def attach(process: Popen | Container, stdin: int = 0, stdout: int = 1) -> int:
    """Lend the caller's terminal to a sandbox with ``pty=True`` until that ends.

    Keys go to it as they are (raw mode: ^C and ^Z too are the sandbox's), output comes back,
    and so does the size of the window, now and when it changes. The terminal is set back
    whatever happens: an exception, ^C from elsewhere, a signal that ends the caller. Where
    *stdin* is no terminal its content is typed, and then ^D.

    When the caller's terminal has gone, and that did not end the caller (SIGHUP), the terminal of
    a ``Popen`` is hung up; a ``Container``, whose log goes on, finds the end of its input.

    Args:
        process: one that was started. Of a ``Container`` what it has written before is shown first.
        stdin, stdout: descriptors of the caller's.

    Returns:
        The return code.

    Raises:
        StateError: it has no terminal.
    """
    terminal = process.terminal
    if terminal is None:
        raise StateError("this sandbox has no terminal: start it with pty=True", status="no pty")
    shown = next((fd for fd in (stdout, stdin) if os.isatty(fd)), -1)

    def resize() -> None:
        with contextlib.suppress(OSError, ValueError):  # ours was hung up, or it has ended
            rows, columns = window_size(shown) if shown >= 0 else (0, 0)
            if rows and columns:
                terminal.resize(rows, columns)

    resize()
    relay = _Relay(process, terminal, stdin, stdout)
    with _RawMode(stdin, resize):
        relay.run()
    return process.wait()


class _Relay:
    """Copies both ways. Output of a container, which its log reads, comes from there."""

    def __init__(
        self, process: Popen | Container, terminal: Terminal, stdin: int, stdout: int
    ) -> None:
        try:
            self._master = terminal.dup()
        except ValueError:  # it has ended: there is only what it wrote
            self._master = -1
        self._terminal = terminal
        self._stdin, self._stdout = stdin, stdout
        self._keyboard = os.isatty(stdin)
        self._typed = bytearray()
        self._line_begun = self._stdin_ended = False
        log = getattr(process, "_log", None)
        self._source = self._master if log is None else -1
        self._copier: threading.Thread | None = None
        if log is not None:
            copy = functools.partial(self._copy, log.follow_bytes("both", None))
            self._copier = threading.Thread(target=copy, name="nsbox-attach", daemon=True)
        alive = self._master >= 0 and process.pidfd >= 0
        self._pidfd = os.dup(process.pidfd) if alive else -1

    def run(self) -> None:
        blocking = self._master >= 0 and os.get_blocking(self._master)
        try:
            if blocking:
                os.set_blocking(self._master, False)
            if self._copier is not None:
                self._copier.start()
            while self._pidfd >= 0 and self._once():
                pass
            while self._source >= 0 and self._show():
                pass
            if self._copier is not None:
                self._copier.join()
        finally:
            if blocking and self._master >= 0:
                os.set_blocking(self._master, True)
            for fd in {self._master, self._pidfd} - {-1}:
                os.close(fd)

    def _once(self) -> bool:
        """Waits for something, and does it; False when the sandbox has ended."""
        wanted = {self._pidfd: select.POLLIN}
        if self._source >= 0:
            wanted[self._source] = select.POLLIN
        if self._typed:
            wanted[self._master] = wanted.get(self._master, 0) | select.POLLOUT
        if not self._stdin_ended and len(self._typed) < _CHUNK:
            wanted[self._stdin] = select.POLLIN
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        ready = dict(poll.poll())
        if ready.get(self._source, 0) & ~select.POLLOUT:
            self._show()
        if self._stdin in ready:
            self._read_keys()
        if self._typed and ready.get(self._master, 0) & ~select.POLLIN:
            self._type()
        return self._pidfd not in ready

    def _read_keys(self) -> None:
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # the caller's own terminal has gone
            data = b""
        if data:
            self._typed += data
            self._line_begun = not data.endswith(b"\n")
            return
        self._stdin_ended = True
        if self._keyboard and self._source >= 0:  # in raw mode no key is an end: it has gone
            self._hang_up()
        else:
            self._typed += _EOF * (2 if self._line_begun else 1)

    def _hang_up(self) -> None:
        self._terminal.close()
        os.close(self._master)
        self._master = self._source = -1
        self._typed.clear()

    def _type(self) -> None:
        try:
            del self._typed[: os.write(self._master, self._typed[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            self._typed.clear()

    def _show(self) -> bool:
        """False when there is no more, for now or for ever."""
        try:
            data = os.read(self._source, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._source = -1
        return bool(data) and self._write(data)

    def _copy(self, pieces: Iterator[bytes]) -> None:
        for data in pieces:
            if not self._write(data):
                return

    def _write(self, data: bytes) -> bool:
        try:
            _write_all(self._stdout, data)
        except OSError:  # nobody looks any more
            return False
        return True
