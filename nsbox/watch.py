# SPDX-License-Identifier: Apache-2.0
"""The library's one thread: does what nobody waits for.

It relays output of a ``Popen``, ends what outlived its launcher, keeps wall-clock limits and
supervises pods. Started by the first object that needs it; ``run()`` needs none.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
import traceback
import types
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """A call that is due; ``cancel()`` is safe at any time."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


def weakly(call: Callable[[], None]) -> Callable[[], None]:
    """The same, but for a bound method's object, of which only a weak reference is kept."""
    if not isinstance(call, types.MethodType):
        return call
    reference = weakref.WeakMethod(call)

    def forward() -> None:
        method = reference()
        if method is not None:
            method()

    return forward


class Watch:
    """Calls back when descriptors are readable and when timers are due, one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._calls: dict[int, Callable[[], None]] = {}
        self._under_way: tuple[int, Callable[[], None]] | None = None
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._thread = threading.Thread(target=self._run, name="nsbox-watch", daemon=True)
        self._thread.start()

    def add(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever *fd* is readable or hung up, until ``remove``.

        Of a bound method's object only a weak reference is kept: being watched keeps no
        handle alive, so that one which was dropped can say so and be ended.
        """
        with self._lock:
            self._calls[fd] = weakly(call)
            self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Before *fd* is closed. A call that is under way goes on; if it removes its own
        descriptor when another thread has closed that, the number may be somebody else's."""
        with self._lock:
            if threading.current_thread() is self._thread and self._under_way is not None:
                number, call = self._under_way
                if fd == number and self._calls.get(fd) is not call:
                    return
            if self._calls.pop(fd, None) is not None:
                try:
                    self._epoll.unregister(fd)
                except OSError:
                    pass

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call once, *delay* seconds from now (monotonic clock); weakly, as ``add``."""
        timer = Timer(time.monotonic() + delay, weakly(call))
        with self._lock:
            heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        os.eventfd_write(self._wake, 1)
        return timer

    def _run(self) -> None:
        while True:
            with self._lock:
                due = self._timers[0][0] if self._timers else None
            timeout = None if due is None else max(0.0, due - time.monotonic())
            for fd, _ in self._epoll.poll(timeout):
                if fd == self._wake:
                    try:
                        os.eventfd_read(self._wake)
                    except BlockingIOError:
                        pass
                    continue
                with self._lock:
                    call = self._calls.get(fd)
                    self._under_way = None if call is None else (fd, call)
                if call is not None:
                    self._guard(call)
            self._under_way = None
            self._run_timers()

    def _run_timers(self) -> None:
        while True:
            with self._lock:
                if not self._timers or self._timers[0][0] > time.monotonic():
                    return
                timer = heapq.heappop(self._timers)[2]
            call, timer.call = timer.call, None
            if call is not None:
                self._guard(call)

    @staticmethod
    def _guard(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # one handle's trouble must not end the watch over the others
            traceback.print_exc()


_watch: Watch | None = None
_start_lock = threading.Lock()


def get() -> Watch:
    """The watch of this process, started when there is none."""
    global _watch
    with _start_lock:
        if _watch is None:
            _watch = Watch()
        return _watch


def _forget() -> None:
    """A forked child has no threads: it starts its own when it needs one."""
    global _watch, _start_lock
    _start_lock = threading.Lock()
    if _watch is not None:
        _watch._epoll.close()
        os.close(_watch._wake)
        _watch = None


os.register_at_fork(after_in_child=_forget)
