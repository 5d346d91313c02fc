# SPDX-License-Identifier: Apache-2.0
"""Builds nsbox._ffi: the owner's side of the core (client.c) and the plan checker (plan.c).

The compiler's flags are in tools/cflags.py; setup.py adds them.
"""

import os
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def declarations() -> str:
    """The region of nsb.h between its two markers: one header for gcc and for cffi."""
    text = (HERE / "nsb.h").read_text()
    return text.split("/* >>> cffi */")[1].split("/* <<< cffi */")[0]


ffibuilder = cffi.FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "nsbox._ffi",
    '#include "nsb.h"',
    # Relative to the project's root, where setup.py runs: what the sdist and abi3 tags need.
    sources=["csrc/client.c", "csrc/plan.c"],
    include_dirs=["csrc"],
    depends=["csrc/nsb.h", "csrc/sys.h"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(ROOT)
    ffibuilder.compile(verbose=True)
