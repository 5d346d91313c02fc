# SPDX-License-Identifier: Apache-2.0
"""Spawns peers from a private mount namespace and times them, as a Python user would.

Run as a helper process (see peers.py): each input line is a JSON object ``{"argv": [...],
"capture": bool}``, each answer ``{"ns": int, "code": int, "out": str, "err": str}``. ``ns`` spans
``Popen(close_fds=False)``, the fastest way Python has, to the end of ``wait()``.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from time import perf_counter_ns
from typing import Any

TIMEOUT_S = 30.0


def timed(argv: list[str], null: int) -> dict[str, Any]:
    """One measured spawn with all standard streams on /dev/null."""
    start = perf_counter_ns()
    process = subprocess.Popen(argv, close_fds=False, stdin=null, stdout=null, stderr=null)
    code = process.wait()
    return {"ns": perf_counter_ns() - start, "code": code, "out": "", "err": ""}


def captured(argv: list[str], null: int) -> dict[str, Any]:
    """One unmeasured spawn, with what it wrote."""
    done = subprocess.run(
        argv, stdin=null, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return {"ns": 0, "code": done.returncode, "out": done.stdout, "err": done.stderr}


def main() -> None:
    """Answer until the input ends."""
    null = os.open(os.devnull, os.O_RDWR)
    print(json.dumps({"ready": True}), flush=True)
    gc.disable()
    for line in sys.stdin:
        request = json.loads(line)
        spawn = captured if request.get("capture") else timed
        try:
            answer = spawn(request["argv"], null)
        except (OSError, subprocess.TimeoutExpired) as error:
            answer = {"ns": 0, "code": 127, "out": "", "err": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
