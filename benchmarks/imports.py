# SPDX-License-Identifier: Apache-2.0
"""What ``import nsbox`` costs in a fresh interpreter, against importing an empty package (T13)."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from cases import REPOSITORY
from drivers import SampleFailed, last_line
from measure import Result, interleave

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from rootfs import Rootfs

EMPTY = "nsbox_bench_empty"
TIMED = "from time import perf_counter_ns as t; s=t(); {statement}; e=t()-s; {proof}; print(e)"

#: result name -> (the timed statement, what fails unless the real thing was imported)
STATEMENTS = {
    "import-nsbox": ("import nsbox", "nsbox.run"),
    "import-nsbox-run": ("from nsbox import run", "run"),
    "import-empty": (f"import {EMPTY}", EMPTY),
}


def importer(statement: str, proof: str, work: Path) -> Callable[[], int]:
    """A sampler: a fresh interpreter executes *statement*; elapsed ns, measured inside it."""
    given = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(work), given, str(REPOSITORY))))
    argv = [sys.executable, "-c", TIMED.format(statement=statement, proof=proof)]
    # Byte code is kept, as for any installed package, but outside of the source tree.
    env = {**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(work / "pycache")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)

    def sample() -> int:
        done = subprocess.run(
            argv, env=env, cwd=work, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise SampleFailed(last_line(done.stderr))
        return int(done.stdout)

    return sample


def measure(fs: Rootfs, rounds: int, *, rng: random.Random) -> dict[str, Result]:
    """One result per row of ``STATEMENTS``.

    Raises:
        SampleFailed: nsbox cannot be imported.
    """
    package = fs.work / EMPTY
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    samplers = {name: importer(*words, fs.work) for name, words in STATEMENTS.items()}
    return interleave(samplers, rounds, gap_s=0.0, rng=rng)
