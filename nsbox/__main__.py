# SPDX-License-Identifier: Apache-2.0
"""``python -m nsbox``: the command line."""

from __future__ import annotations

import sys

from nsbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
