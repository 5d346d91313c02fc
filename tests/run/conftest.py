# SPDX-License-Identifier: Apache-2.0
"""What the library keeps ready for its owner exists before the first inventory is taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from run import kit
from support import poll_until

import nsbox


@pytest.fixture(scope="session", autouse=True)
def spare_network(warm_nsbox: None) -> None:
    """As root the launcher keeps one network namespace ahead, from the first use of one."""
    if kit.ROOT and os.environ.get("NSBOX_SPARE_NET") != "0":
        args = ["sleep", "1000"]
        with nsbox.Popen(args, namespaces=["net"], profile="none", init=False) as process:
            text = Path(f"/proc/{process.pid}/status").read_text()
        launcher = int(kit.status(text)["PPid"])
        poll_until(lambda: _networks(launcher) == 2, what="its own and a spare network")


def _networks(pid: int) -> int:
    held = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            held += os.readlink(f"/proc/{pid}/fd/{name}").startswith("net:")
        except FileNotFoundError:  # was closed meanwhile
            pass
    return held
