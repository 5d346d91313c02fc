# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of containers and pods."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory of the host's that any user of a sandbox may write in."""
    path = Path(tempfile.mkdtemp(prefix="podtest-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def state(state_dir: Path) -> nsbox.Mount:
    """That directory at /state of a container: it outlives attempts, so they can be counted."""
    return nsbox.Mount.bind(state_dir, "/state", ro=False)
