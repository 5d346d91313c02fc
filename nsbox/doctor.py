# SPDX-License-Identifier: Apache-2.0
"""``python -m nsbox.doctor``, as ``nsbox doctor``. The function is in ``diagnosis.py``."""

from __future__ import annotations

import sys

from nsbox import diagnosis

if __name__ == "__main__":
    from nsbox.cli import main

    sys.exit(main(["doctor", *sys.argv[1:]]))

# Whoever imports this as a module must not find it in the place of the function nsbox.doctor.
sys.modules[__name__] = diagnosis.doctor  # type: ignore[assignment]
