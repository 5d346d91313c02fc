# SPDX-License-Identifier: Apache-2.0
"""Compile the floor programs into ``benchmarks/_build``, when their source is newer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "_build"
CSRC = HERE.parent / "csrc"

WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
NOLIBC = (
    "-static",
    "-nostdlib",
    "-nostartfiles",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-s",
    "-Wl,--build-id=none,-z,noseparate-code,-z,norelro",
)

#: program name -> flags beyond the common ones
PROGRAMS: dict[str, tuple[str, ...]] = {
    "floor": ("-std=gnu11",),
    "cable": ("-std=gnu11", "-D_GNU_SOURCE", f"-I{CSRC}", *map(str, CSRC.glob("netlink*.c"))),
    "tinytrue": NOLIBC,
    "tinypause": NOLIBC,
}


def build(name: str) -> Path:
    """Compile ``name.c`` if needed and return the program's path.

    Raises:
        subprocess.CalledProcessError: the compiler refused it; its words are on stderr.
        FileNotFoundError: no compiler (``$CC``, else gcc).
    """
    source, target = HERE / f"{name}.c", OUT / name
    newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
    if target.exists() and target.stat().st_mtime >= newest:
        return target
    OUT.mkdir(exist_ok=True)
    fresh = OUT / f"{name}.{os.getpid()}"  # replaced at once: two runs may build together
    compiler = os.environ.get("CC", "gcc")
    argv = [compiler, "-O2", *WARNINGS, *PROGRAMS[name], "-o", str(fresh), str(source)]
    subprocess.run(argv, check=True)
    fresh.replace(target)
    return target


if __name__ == "__main__":
    for program in sys.argv[1:] or PROGRAMS:
        print(build(program))
