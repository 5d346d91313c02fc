# SPDX-License-Identifier: Apache-2.0
"""What the library keeps ready exists before the first inventory is taken, as for tests/run."""

from run.conftest import spare_network

__all__ = ["spare_network"]
