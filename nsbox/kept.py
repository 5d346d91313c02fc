# SPDX-License-Identifier: Apache-2.0
"""Descriptors that are kept because what they stand for comes again: a few, the latest used."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Kept:
    """Key -> descriptor, at most *most*; those not used for longest are closed first.

    Safe from threads; a forked child of the caller starts without any.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._fds: OrderedDict[Hashable, int] = OrderedDict()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def take(self, key: Hashable, make: Callable[[], int]) -> int:
        """A copy, the caller's to close, of what *make* returned when *key* was new."""
        with self._lock:
            fd = self._fds.get(key)
            if fd is None:
                fd = self._fds[key] = make()
                while len(self._fds) > self._most:
                    os.close(self._fds.popitem(last=False)[1])
            else:
                self._fds.move_to_end(key)
            return os.dup(fd)

    def __len__(self) -> int:
        return len(self._fds)

    def clear(self) -> None:
        """Let go of all, and so of what they pin."""
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def _forget(self) -> None:
        self._lock = threading.Lock()  # it may be that of a thread that is not here
        self.clear()
