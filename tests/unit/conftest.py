# SPDX-License-Identifier: Apache-2.0
"""Hypothesis as a test suite wants it: the same examples on every run, and nothing on disk."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "nsbox",
    database=None,
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("nsbox")
