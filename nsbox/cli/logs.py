# SPDX-License-Identifier: Apache-2.0
"""``logs``: what a container wrote, whoever owns it."""

from __future__ import annotations

import codecs
import io
import json
import sys
from typing import TYPE_CHECKING

from nsbox.cli.output import clean_lines
from nsbox.logs import check, chosen, joined

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from nsbox.ring import Run

_NAMES = {1: "stdout", 2: "stderr"}


def _as_written() -> Callable[[list[Run]], None]:
    def show(runs: list[Run]) -> None:
        sys.stdout.buffer.write(joined(runs))

    return show


def _for_a_terminal() -> Callable[[list[Run]], None]:
    """Which would obey what a payload wrote: to move, to answer, to be another one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)

    def show(runs: list[Run]) -> None:
        sys.stdout.write(clean_lines(lines.decode(joined(runs))))

    return show


def _as_json() -> Callable[[list[Run]], None]:
    """A line for each piece. A character that is cut is the next piece's."""
    decoders = {n: codecs.getincrementaldecoder("utf-8")("replace") for n in _NAMES}

    def show(runs: list[Run]) -> None:
        for number, data in runs:
            text = decoders[number].decode(data)
            if text:
                print(json.dumps({"stream": _NAMES[number], "text": text}))

    return show


def logs(arguments: argparse.Namespace) -> int:
    """Print what is kept, and with -f whatever comes, until its end."""
    from nsbox import elsewhere, sandboxes

    stream, tail = arguments.stream, arguments.tail
    check(stream, tail)
    kinds = {"json": _as_json, "terminal": _for_a_terminal, "": _as_written}
    kind = "json" if arguments.json else "terminal" if sys.stdout.isatty() else ""
    show = kinds[kind]()
    sandbox = sandboxes.find(arguments.sandbox)
    if not arguments.follow:
        show(chosen(elsewhere.read_log(sandbox), stream, tail))
        return 0
    for view in elsewhere.follow_log(sandbox):
        show(chosen(view, stream, tail))
        tail = None
        sys.stdout.flush()
    return 0
