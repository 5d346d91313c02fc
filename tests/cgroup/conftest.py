# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of cgroups: with all that the host has, and on v1 alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nsbox import cgroup, hierarchy

if TYPE_CHECKING:
    from nsbox.hierarchy import Parents


@pytest.fixture(params=["as it is", "v1 alone"])
def hierarchies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hybrid host without its cgroup v2 mount has to use the freezer and cpuacct of v1."""
    if request.param == "v1 alone":
        real = hierarchy.parents()
        if real.version != 1:
            pytest.skip("the controllers are those of v2 here")
        kept = tuple(pair for pair in real.directories if pair[0] != "unified")

        def parents() -> Parents:
            return replace(real, directories=kept)

        monkeypatch.setattr(cgroup, "parents", parents)
    return str(request.param)
