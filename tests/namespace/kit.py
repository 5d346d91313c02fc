# SPDX-License-Identifier: Apache-2.0
"""What tests of namespaces share: programs that move themselves, in a process of their own."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import TYPE_CHECKING

from support import scaled

if TYPE_CHECKING:
    from collections.abc import Callable

#: Mounts and the registry are its own: nothing that it mounts, or forgets, is seen outside.
PRELUDE = """
import contextlib, errno, json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
import nsbox
from nsbox import syscalls as sc
from nsbox.syscalls import Clone, MountFlag
sc.unshare(Clone.NEWNS)
sc.mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
sc.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
def ip(*args):
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout
"""


def apart(test: Callable[[], None], prelude: str = PRELUDE) -> str:
    """Run the body of *test* after *prelude* in another interpreter; returns what it printed."""
    # As a function, and called: taken out of it, a body with a string at the margin would be read
    # as more of the function before it, and never run.
    lines = inspect.getsource(test).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    lines[start] = "def body():"
    code = "\n".join([prelude, *lines[start:], "body()"])
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=scaled(60),
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout
