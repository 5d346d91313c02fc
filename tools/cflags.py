# SPDX-License-Identifier: Apache-2.0
"""The compiler's flags and the list of sources, for setup.py and for tools/analyze.sh.

There are two products. The *extension* nsbox._ffi is ordinary position independent code
inside CPython. The *init* binary nsbox/nsbox-init is static and has no libc.

    python3 tools/cflags.py extension|init flags|sources
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What compiles clean here may warn with another compiler: a warning stops only our own CI.
WARNINGS = (
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wvla",
    "-Wstrict-prototypes",
    *(["-Werror"] if os.environ.get("NSBOX_WERROR") == "1" else []),
)

EXTENSION_CFLAGS = (
    *WARNINGS,
    "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",  # some distributions define it already
    "-D_FORTIFY_SOURCE=2",
)

# Every page that init touches is paid at each spawn: hence one small segment of code and
# constants, no unwind tables, no build id, nothing that is not called.
INIT_CFLAGS = (
    *WARNINGS,
    "-O2",
    "-ffreestanding",
    "-fno-stack-protector",
    "-U_FORTIFY_SOURCE",  # its checks are libc's
    "-fno-pie",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-ffunction-sections",
    "-fdata-sections",
)
INIT_LDFLAGS = (
    "-nostdlib",
    "-static",
    "-no-pie",
    "-s",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,-z,noseparate-code",
    "-Wl,-z,noexecstack",
    "-Wl,--fatal-warnings",
)
INIT_LIBS = ("-lgcc",)

INCLUDES = ("-Icsrc",)


def _glob(*patterns: str) -> list[str]:
    """Paths relative to the root, sorted: setuptools refuses absolute ones."""
    found = {p for pattern in patterns for p in ROOT.glob(pattern)}
    return sorted(p.relative_to(ROOT).as_posix() for p in found)


def init_sources() -> list[str]:
    """The sources linked into nsbox-init."""
    return _glob("csrc/init/*.c", "csrc/step*.c", "csrc/plan.c", "csrc/spawn.c")


def extension_only_sources() -> list[str]:
    """The sources that init does not have."""
    return sorted({*_glob("csrc/*.c")} - {*init_sources()})


def all_inputs() -> list[str]:
    """Every file whose change makes both products stale."""
    return _glob("csrc/**/*.c", "csrc/**/*.h", "csrc/**/*.S", "csrc/**/*.py", "tools/cflags.py")


def main(product: str, what: str) -> None:
    table = {
        ("extension", "flags"): [*EXTENSION_CFLAGS, *INCLUDES],
        ("extension", "sources"): extension_only_sources(),
        ("init", "flags"): [*INIT_CFLAGS, *INCLUDES],
        ("init", "sources"): init_sources(),
    }
    for line in table[product, what]:
        print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
