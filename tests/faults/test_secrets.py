# SPDX-License-Identifier: Apache-2.0
"""What the owner, or another sandbox, keeps secret is nowhere to be read for a payload."""

from __future__ import annotations

import contextlib
import os
import resource
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from faults import kit

import nsbox
from nsbox import registry

if TYPE_CHECKING:
    from pathlib import Path


def _launcher() -> int:
    (own,) = [one for one in registry.owners() if one.pid == os.getpid()]
    return own.launcher


@pytest.mark.userns
def test_a_payload_finds_no_secret_of_its_owner_or_of_other_sandboxes(tmp_path: Path) -> None:
    kit.run_scenario("secrets", str(tmp_path))


@pytest.mark.userns
def test_a_payload_finds_no_secret_while_its_container_is_joined(tmp_path: Path) -> None:
    kit.run_scenario("secrets_joined", str(tmp_path), timeout_s=120)


@pytest.mark.root
@pytest.mark.parametrize("keywords", [
    pytest.param({"init": False}, id="a small plan"),
    pytest.param({"init": True}, id="a plan that PID 1 reads again"),
    pytest.param({"init": False, "files": {"more": b"x" * 12000}}, id="a larger one"),
    pytest.param({"init": False, "files": {"more": b"x" * 40000}}, id="a large one"),
    pytest.param({"init": False, "cwd": "/not/there"}, id="one that fails"),
])  # fmt: skip
def test_the_launcher_forgets_what_a_sandbox_was_told(keywords: dict[str, Any]) -> None:
    """The next one is set up in its memory, or in a copy of it."""
    secret = uuid.uuid4().hex
    with contextlib.suppress(nsbox.SetupError):
        nsbox.run(["true"], env={"SECRET": secret}, check=True, **keywords)
    launcher = _launcher()
    assert b"nsbox" in kit.memory(launcher), "it can be read"
    assert secret.encode() not in kit.memory(launcher)


@pytest.mark.root
def test_the_launcher_forgets_what_it_could_not_serve() -> None:
    nsbox.run(["true"])
    launcher = _launcher()
    secret = uuid.uuid4().hex
    limits = resource.prlimit(launcher, resource.RLIMIT_NOFILE)
    resource.prlimit(launcher, resource.RLIMIT_NOFILE, (10, limits[1]))
    try:
        with pytest.raises(nsbox.SetupError, match="recvmsg"):
            nsbox.run(["true"], init=False, env={"SECRET": secret})
    finally:
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, limits)
    assert secret.encode() not in kit.memory(launcher)
    nsbox.run(["true"])
