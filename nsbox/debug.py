# SPDX-License-Identifier: Apache-2.0
"""``NSBOX_DEBUG=1``: a line on stderr for each step, request and record, with its time.

Nothing is worked out where it is off: those who call look at ``ON`` first.
"""

from __future__ import annotations

import os
import time

ON = os.environ.get("NSBOX_DEBUG", "") not in ("", "0")
_start = time.monotonic()


def say(what: str, detail: object = "") -> None:
    """One line: seconds since nsbox was loaded, the calling process, what happened.

    Written whole, by one write(2), so that lines of several threads do not mix; control
    characters in it, which a payload may have chosen, are escaped.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"{what:<8} {detail}")
    line = f"nsbox[{os.getpid()}] {time.monotonic() - _start:9.6f} {text}".rstrip()
    try:
        os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass
