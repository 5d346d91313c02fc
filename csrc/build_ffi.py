# SPDX-License-Identifier: Apache-2.0
"""Builds nsbox._ffi: the owner's side of the core (client.c), the plan checker (plan.c), and
rtnetlink (netlink.c, netlink_rows.c).

The compiler's flags are in tools/cflags.py; setup.py adds them.
"""

import os
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HEADERS = ("nsb.h", "netlink.h")


def declarations() -> str:
    """The regions of the headers between two markers: the same text for gcc and for cffi."""
    texts = [(HERE / name).read_text() for name in HEADERS]
    return "".join(t.split("/* >>> cffi */")[1].split("/* <<< cffi */")[0] for t in texts)


ffibuilder = cffi.FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "nsbox._ffi",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    # Relative to the project's root, where setup.py runs: what the sdist and abi3 tags need.
    sources=["csrc/client.c", "csrc/netlink.c", "csrc/netlink_rows.c", "csrc/plan.c"],
    include_dirs=["csrc"],
    depends=["csrc/nsb.h", "csrc/netlink.h", "csrc/netlink_rows.h", "csrc/sys.h"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(ROOT)
    ffibuilder.compile(verbose=True)
