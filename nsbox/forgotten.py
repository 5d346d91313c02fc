# SPDX-License-Identifier: Apache-2.0
"""What a handle does that nobody closed before it went: ``__del__``."""

from __future__ import annotations

import sys
import warnings
from typing import Protocol


class Closeable(Protocol):
    def close(self) -> object:
        """End it."""


def forgotten(handle: Closeable) -> None:
    """Says that it was not closed, and closes it.

    But not when the interpreter ends. No thread starts any more then, and of those that were there
    none goes on, though it may have a lock: to close a pod, say, would wait for ever. All that is
    left ends by the launcher, as after a kill.
    """
    warnings.warn(f"{handle!r} was not closed", ResourceWarning, stacklevel=3, source=handle)
    if not sys.is_finalizing():
        handle.close()
