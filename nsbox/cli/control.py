# SPDX-License-Identifier: Apache-2.0
"""``stop``, ``kill``, ``gc``, ``doctor`` and ``bench``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nsbox.cli.output import clean, print_json
from nsbox.errors import NsboxError, SpecError, Unavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from nsbox.sandboxes import Sandbox


def _each(words: list[str], act: Callable[[Sandbox], None]) -> int:
    """Of each sandbox; what fails for one does not keep the others from it."""
    from nsbox import sandboxes
    from nsbox.cli import FAILED

    code = 0
    for word in words:
        try:
            act(sandboxes.find(word))
            print(clean(word))
        except (NsboxError, OSError) as error:
            print(f"nsbox: {clean(str(error))}", file=sys.stderr)
            code = FAILED
    return code


def stop(arguments: argparse.Namespace) -> int:
    if arguments.time < 0:
        raise SpecError("-t", "must not be negative")
    return _each(arguments.sandbox, lambda sandbox: sandbox.stop(arguments.time))


def signal_number(word: str) -> int:
    """9, KILL or SIGKILL."""
    import signal

    if word.isascii() and word.isdecimal() and 0 < int(word) < signal.NSIG:
        return int(word)
    name = "SIG" + word.upper().removeprefix("SIG")
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise SpecError("-s", f"{word!r} is not a signal") from None


def kill(arguments: argparse.Namespace) -> int:
    number = signal_number(arguments.signal)
    return _each(arguments.sandbox, lambda sandbox: sandbox.send(number))


def gc(arguments: argparse.Namespace) -> int:
    from nsbox.registry import gc as sweep

    removed = sweep()
    if arguments.json:
        print_json(removed)
    else:
        for path in removed:
            print(clean(path))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    from nsbox import diagnosis, remedies

    if arguments.print_apparmor_profile:
        print(remedies.apparmor_profile(os.path.realpath(sys.executable)), end="")
        return 0
    report = diagnosis.doctor()
    if arguments.json:
        print_json(report.to_json())
    else:
        print("\n".join(map(clean, str(report).splitlines())))
    return 0 if report.ok else 1


def bench(arguments: argparse.Namespace) -> int:
    program = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
    if not program.exists():
        raise Unavailable("bench", "the benchmarks come with the source tree, not with the package")
    return subprocess.call([sys.executable, str(program), *arguments.arguments])
