# SPDX-License-Identifier: Apache-2.0
"""What the owner, or another sandbox, keeps secret is nowhere to be read for a payload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from faults import kit

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.userns
def test_a_payload_finds_no_secret_of_its_owner_or_of_other_sandboxes(tmp_path: Path) -> None:
    kit.run_scenario("secrets", str(tmp_path))


@pytest.mark.userns
def test_a_payload_finds_no_secret_while_its_container_is_joined(tmp_path: Path) -> None:
    kit.run_scenario("secrets_joined", str(tmp_path), timeout_s=120)
