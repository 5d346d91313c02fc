# SPDX-License-Identifier: Apache-2.0
"""Tables and JSON. Names and commands are whatever a payload made them: nothing of it is
written to a terminal as it is."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Headings of columns with numbers.
_NUMBERS = ("ID", "PID", "NPROCS", "MEM", "LIMIT", "PIDS", "CPU%", "TIME", "AGE", "RSS")


def clean(text: str) -> str:
    """Without control and other characters that a terminal would obey: they are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clean_lines(text: str) -> str:
    """The same, but for the ends of lines and tabs."""
    return re.sub(r"[^\n\t]+", lambda found: clean(found[0]), text)


def size(count: int | None) -> str:
    """Bytes, as people read them: "12.3M"."""
    if count is None:
        return "-"
    value, units = float(count), "BKMGTP"
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f}{units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f}{units[0]}"


def duration(seconds: float) -> str:
    """ "12s", "3m", "5h", "2d": the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def say(text: str) -> None:
    """On standard error, unless that has gone with its terminal or its reader."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # once more at the end of the interpreter, which would make 120 of our code
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 2)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of plain text; the last is cut at the width of the terminal, if there is one."""
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    lines = []
    for row in (list(headings), *cells):
        parts = [
            cell.rjust(width) if heading in _NUMBERS else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        lines.append(" ".join(parts).rstrip())
    if sys.stdout.isatty():
        import shutil

        width = shutil.get_terminal_size().columns
        lines = [line[:width] for line in lines]
    return "\n".join(lines)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """By rich, where that is installed and somebody looks; else as plain text."""
    if sys.stdout.isatty() and _print_rich(headings, rows):
        return
    print(table(headings, rows))


def _print_rich(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        last = heading == headings[-1]
        made.add_column(heading, justify="right" if heading in _NUMBERS else "left",
                        no_wrap=True, overflow="ellipsis", ratio=1 if last else None)  # fmt: skip
    for row in rows:
        made.add_row(*(Text(clean(str(cell))) for cell in row))
    Console().print(made)
    return True
