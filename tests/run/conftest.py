# SPDX-License-Identifier: Apache-2.0
"""What the library keeps ready for its owner exists before the first inventory is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from run import kit
from support import poll_until

import nsbox
from nsbox import probe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def spare_network(warm_nsbox: None) -> None:
    """As root the launcher keeps one network namespace ahead, from the first use of one."""
    if kit.ROOT and os.environ.get("NSBOX_SPARE_NET") != "0":
        args = ["sleep", "1000"]
        with nsbox.Popen(args, namespaces=["net"], profile="none", init=False) as process:
            text = Path(f"/proc/{process.pid}/status").read_text()
        launcher = int(kit.status(text)["PPid"])
        poll_until(lambda: kit.held(launcher, "net"), what="a spare network")


@pytest.fixture
def classic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Roots are built in the sandbox itself, where a template would do."""
    monkeypatch.setenv("NSBOX_TEMPLATES", "0")
    probe.host(cached=False)
    yield
    monkeypatch.undo()
    probe.host(cached=False)


@pytest.fixture(params=["template", "classic"] if kit.ROOT else ["classic"])
def each_way(request: pytest.FixtureRequest) -> None:
    """Once with a root from a template, where the host and the sandbox allow, and once without."""
    if request.param == "classic":
        request.getfixturevalue("classic")
