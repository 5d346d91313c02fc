# SPDX-License-Identifier: Apache-2.0
"""Networks drawn: as text with box-drawing characters, and as SVG. Pure, and always the same.

Both lay the network out as a tree that grows from left to right. It starts in the node from which
no other is far; a link that is not part of the tree leads to a node that is named once more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Box(NamedTuple):
    """A node: its name, what it is (``"host"``, ``"router"``, ``"switch"``), and lines about it."""

    name: str
    kind: str
    lines: tuple[str, ...] = ()


class Line(NamedTuple):
    """A link between two boxes, by their names."""

    a: str
    b: str
    label: str = ""
    up: bool = True


class Place(NamedTuple):
    """A box in the tree, with the link that leads to it; *again*: it is drawn elsewhere."""

    box: Box
    line: Line | None
    below: tuple[Place, ...]
    again: bool = False


def trees(boxes: Sequence[Box], lines: Sequence[Line]) -> list[Place]:
    """One tree for each part of the network that hangs together."""
    by_name = {box.name: box for box in boxes}
    near: dict[str, list[int]] = {box.name: [] for box in boxes}
    for i, line in enumerate(lines):
        near[line.a].append(i)
        near[line.b].append(i)
    grown: list[Place] = []
    seen: set[str] = set()
    for box in boxes:
        if box.name not in seen:
            part = _distances(box.name, near, lines)
            inner = [name for name in part if by_name[name].kind != "host"] or list(part)
            middle = min(inner, key=lambda name: max(_distances(name, near, lines).values()))
            grown.append(_grow(middle, by_name, near, lines))
            seen |= set(part)
    return grown


def _other(line: Line, name: str) -> str:
    return line.b if line.a == name else line.a


def _distances(start: str, near: dict[str, list[int]], lines: Sequence[Line]) -> dict[str, int]:
    """Node -> how many links it is away, of those that can be reached."""
    found = {start: 0}
    queue = deque([start])
    while queue:
        name = queue.popleft()
        for i in near[name]:
            other = _other(lines[i], name)
            if other not in found:
                found[other] = found[name] + 1
                queue.append(other)
    return found


def _grow(
    root: str, by_name: dict[str, Box], near: dict[str, list[int]], lines: Sequence[Line]
) -> Place:
    """Breadth first, so that each node is as near to the root as it is in the network."""
    links: dict[str, list[tuple[int, bool]]] = {}  # node -> (link, leads to a node seen before)
    used: set[int] = set()
    seen = {root}
    queue = deque([root])
    while queue:
        name = queue.popleft()
        links[name] = []
        for i in near[name]:
            if i in used:
                continue
            used.add(i)
            other = _other(lines[i], name)
            links[name].append((i, other in seen))
            if other not in seen:
                seen.add(other)
                queue.append(other)

    def place(name: str, line: Line | None, again: bool) -> Place:
        below = [] if again else links[name]
        return Place(by_name[name], line, tuple(place(_other(lines[i], name), lines[i], twice)
                                                for i, twice in below), again)  # fmt: skip

    return place(root, None, False)


# -- text ---------------------------------------------------------------------------------------

_GAP = 4  # of line on both sides of a label


def text(boxes: Sequence[Box], lines: Sequence[Line]) -> str:
    """For terminals, with a character for each column; a link that is down is dotted."""
    blocks = [_block(place) for place in trees(boxes, lines)]
    return "\n".join(row.rstrip() for block in blocks for row in block)


def _framed(place: Place) -> list[str]:
    if place.again:
        return ["", f"({place.box.name})", ""]
    head = place.box.name if place.box.kind == "host" else f"{place.box.name}  {place.box.kind}"
    inside = [head, *place.box.lines]
    width = max(map(len, inside))
    edge = "─" * (width + 2)
    return [f"┌{edge}┐", *(f"│ {row:<{width}} │" for row in inside), f"└{edge}┘"]


def _block(place: Place) -> list[str]:
    """The rows of a box and all that is right of it; links start and end at its second row."""
    rows = _framed(place)
    if not place.below:
        return rows
    blocks = [_block(child) for child in place.below]
    labels = [f" {child.line.label} " if child.line and child.line.label else ""
              for child in place.below]  # fmt: skip
    reach = max(map(len, labels)) + 2 * _GAP
    right: list[str] = []
    for i, (child, block, label) in enumerate(zip(place.below, blocks, labels, strict=True)):
        last = i == len(blocks) - 1
        for n, row in enumerate(block):
            if n == 1:
                corner = "─" if last and i == 0 else "┬" if i == 0 else "└" if last else "├"
                stroke = "─" if child.line is None or child.line.up else "╌"
                wire = (stroke * _GAP + label).ljust(reach, stroke)
                block_row = row if child.again else f"┤{row[1:]}"
                right.append(f"{corner}{wire}{block_row}")
            else:
                before = (n > 1 or i > 0) and not (last and n > 1)
                right.append(f"{'│' if before else ' '}{' ' * reach}{row}")
    return _side_by_side(rows, right)


def _side_by_side(left: list[str], right: list[str]) -> list[str]:
    width = max(map(len, left))
    found = []
    for n in range(max(len(left), len(right))):
        row = left[n] if n < len(left) else ""
        row = f"{row[:-1]}├─" if n == 1 else f"{row.ljust(width)} "
        found.append(row + (right[n] if n < len(right) else ""))
    return found


# -- SVG ----------------------------------------------------------------------------------------

_CHAR, _ROW, _PAD = 7.3, 17, 9  # px of a 12 px monospace font; the widths are estimates
_BETWEEN, _MARGIN = 16, 14
_COLORS = {"host": ("#eef4fb", "#3b6ea5"), "router": ("#fdf3e1", "#b9770e"),
           "switch": ("#eaf5ec", "#3c8a4e")}  # fmt: skip
_FONT = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12" fill="#222"'
_WIRE = 'fill="none" stroke="#667788" stroke-width="1.6"'
_CUT = 'fill="none" stroke="#c0392b" stroke-width="1.6" stroke-dasharray="5 4"'


class _Drawn(NamedTuple):
    """A place with its measures in px: *top* of all that hangs on it, *y* of its own middle."""

    place: Place
    x: float
    y: float
    width: float
    height: float
    below: tuple[_Drawn, ...]


def svg(boxes: Sequence[Box], lines: Sequence[Line], title: str = "network") -> str:
    """A picture that needs nothing else: text stays text, colours are for a white page."""
    grown = trees(boxes, lines)
    columns = _columns(grown)
    drawn: list[_Drawn] = []
    bottom = float(_MARGIN)
    for place in grown:
        one, bottom = _put(place, 0, bottom, columns)
        drawn.append(one)
        bottom += _BETWEEN
    width = columns[-1] + _MARGIN if len(columns) > 1 else 2.0 * _MARGIN
    height = bottom - _BETWEEN + _MARGIN if drawn else 2.0 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>{_escaped(title)}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="6" fill="#ffffff"/>',
        f"<g {_FONT}>",
    ]
    for one in drawn:
        _draw_links(one, parts)
    for one in drawn:
        _draw_boxes(one, parts)
    return "\n".join([*parts, "</g>", "</svg>\n"])


def _escaped(value: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        value = value.replace(character, entity)
    return value


def _size(place: Place) -> tuple[float, float]:
    rows = [_head(place.box), *(() if place.again else place.box.lines)]
    return max(map(len, rows)) * _CHAR + 2 * _PAD, len(rows) * _ROW + _PAD


def _head(box: Box) -> str:
    return box.name if box.kind == "host" else f"{box.name} {box.kind}"


def _columns(grown: Sequence[Place]) -> list[float]:
    """The left edge of each depth, and the right edge of the last."""
    widths: list[float] = []
    labels: list[float] = []

    def look(place: Place, depth: int) -> None:
        if depth == len(widths):
            widths.append(0.0)
            labels.append(0.0)
        widths[depth] = max(widths[depth], _size(place)[0])
        if place.line is not None:
            labels[depth] = max(labels[depth], len(place.line.label) * _CHAR)
        for child in place.below:
            look(child, depth + 1)

    for place in grown:
        look(place, 0)
    edges: list[float] = []
    x = float(_MARGIN)
    for width, label in zip(widths, labels, strict=True):
        x += label + 70 if edges else 0.0
        edges.append(x)
        x += width
    return [*edges, x]


def _put(place: Place, depth: int, top: float, columns: list[float]) -> tuple[_Drawn, float]:
    """Below *top*; and where it ends. A box is in the middle of what hangs on it."""
    width, height = _size(place)
    bottom, below = top, list[_Drawn]()
    for child in place.below:
        one, bottom = _put(child, depth + 1, bottom + (_BETWEEN if below else 0), columns)
        below.append(one)
    middle = (below[0].y + below[-1].y) / 2 if below else top + height / 2
    middle = max(middle, top + height / 2)
    return _Drawn(place, columns[depth], middle, width, height, tuple(below)), max(
        bottom, middle + height / 2
    )


def _draw_links(one: _Drawn, parts: list[str]) -> None:
    for child in one.below:
        line = child.place.line
        assert line is not None
        x, end = one.x + one.width, child.x
        bend = x + 36
        path = f"M{x:.1f} {one.y:.1f}C{bend:.1f} {one.y:.1f} {x + 6:.1f} {child.y:.1f} "
        path += f"{bend:.1f} {child.y:.1f}H{end:.1f}"
        parts.append(f'<path {_WIRE if line.up else _CUT} d="{path}"/>')
        if line.label:
            parts.append(f'<text x="{end - 8:.1f}" y="{child.y - 5:.1f}" font-size="11" '
                         f'text-anchor="end">{_escaped(line.label)}</text>')  # fmt: skip
        _draw_links(child, parts)


def _draw_boxes(one: _Drawn, parts: list[str]) -> None:
    box = one.place.box
    fill, stroke = _COLORS.get(box.kind, _COLORS["host"])
    dashes = ' stroke-dasharray="3 3"' if one.place.again else ""
    left, top = one.x, one.y - one.height / 2
    radius = one.height / 2 if box.kind == "router" else 3 if box.kind == "switch" else 7
    parts.append(
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{one.width:.1f}" height="{one.height:.1f}" '
        f'rx="{min(radius, 20):.1f}" fill="{fill}" stroke="{stroke}"{dashes}/>'
    )
    rows = [_head(box), *(() if one.place.again else box.lines)]
    for n, row in enumerate(rows):
        y = top + _PAD / 2 + n * _ROW + 13
        style = 'fill="#555555"' if n else 'font-weight="bold"'
        parts.append(f'<text {style} x="{left + _PAD:.1f}" y="{y:.1f}">'
                     f"{_escaped(row)}</text>")  # fmt: skip
    for child in one.below:
        _draw_boxes(child, parts)
