# SPDX-License-Identifier: Apache-2.0
"""^C at safe places only: what is half made, or half undone, is never left by an exception.

CPython runs signal handlers between any two bytecodes of the main thread, so a descriptor that
a call returned can be lost before it has a name. While a ``Held`` is entered, SIGINT waits.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal wraps each call in enums: slow
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_current: Held | None = None
_main_thread = threading.main_thread().ident


class Held:
    """``with Held():`` SIGINT waits; ``with Released():`` in it, it does not.

    Nothing at all in other threads, inside another ``Held``, and where SIGINT does not call
    Python.
    """

    __slots__ = ("_handler", "_noted")

    def __init__(self) -> None:
        self._handler: Callable[[int, Any], Any] | None = None
        self._noted = False

    def __enter__(self) -> Held:
        global _current
        if _current is None and threading.get_ident() == _main_thread:
            handler = _signal.getsignal(_signal.SIGINT)
            if callable(handler):
                self._handler = handler
                _current = self
                try:
                    _signal.signal(_signal.SIGINT, self._note)
                except BaseException:  # a sub-interpreter's: no handlers there
                    _current = None
                    raise
        return self

    def _note(self, number: int, frame: Any) -> None:
        self._noted = True

    def deliver(self) -> None:
        """Raise now what came meanwhile."""
        if self._noted and self._handler is not None:
            self._noted = False
            self._handler(_signal.SIGINT, None)

    def __exit__(self, *exc: object) -> None:
        global _current
        if self._handler is not None:
            _current = None
            _signal.signal(_signal.SIGINT, self._handler)
            self.deliver()


class Released:
    """``with Released():`` in a ``Held``: SIGINT is what it was, for a wait that may be long.

    A ``Held`` in that is one again.
    """

    __slots__ = ("_hold",)

    def __enter__(self) -> None:
        global _current
        here = threading.get_ident() == _main_thread
        self._hold = _current if here else None
        if self._hold is not None and self._hold._handler is not None:
            try:
                _signal.signal(_signal.SIGINT, self._hold._handler)
                _current = None
                self._hold.deliver()  # after that: nothing comes in between
            except BaseException:
                self.__exit__()
                raise

    def __exit__(self, *exc: object) -> None:
        global _current
        if self._hold is not None and self._hold._handler is not None:
            _signal.signal(_signal.SIGINT, self._hold._note)
            _current = self._hold


def _forget() -> None:
    """In a child that was forked meanwhile, who held it goes on in the parent only."""
    global _current, _main_thread
    _main_thread = threading.get_ident()
    hold, _current = _current, None
    if hold is not None and hold._handler is not None:
        _signal.signal(_signal.SIGINT, hold._handler)


os.register_at_fork(after_in_child=_forget)
