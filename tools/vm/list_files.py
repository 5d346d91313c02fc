# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: write the files of the selected tests to $NSBOX_LIST_FILES, one a line.

What `--collect-only` prints are names of tests, relative to a directory that pytest chooses.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Called after `-m` has deselected."""
    files = sorted({str(item.path) for item in session.items})
    Path(os.environ["NSBOX_LIST_FILES"]).write_text("\n".join(files))
