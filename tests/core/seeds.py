# SPDX-License-Identifier: Apache-2.0
"""Writes the plans of tests/unit/plans.py as files, for a fuzzer to start from.

python tests/core/seeds.py DIRECTORY
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unit.plans import corpus


def main(where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    for plan in corpus().values():
        for raw in (plan.encode(), plan.encode(id_slot=65536)):
            (where / hashlib.sha256(raw).hexdigest()[:16]).write_bytes(raw)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
