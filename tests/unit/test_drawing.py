# SPDX-License-Identifier: Apache-2.0
"""Pictures of networks: every node and link is there, once, and in its place."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox.drawing import Box, Line, Place, svg, text, trees

pytestmark = pytest.mark.leaks_ok("pure")

BOXES = [
    Box("h1", "host", ("10.0.0.1/24",)),
    Box("h2", "host", ("10.0.0.2/24",)),
    Box("s1", "switch"),
    Box("r1", "router", ("10.0.0.254/24", "10.0.1.254/24")),
    Box("h3", "host", ("10.0.1.1/24",)),
]
LINES = [Line("h1", "s1", "8Mbit, 5ms"), Line("s1", "h2", up=False), Line("s1", "r1", "1Gbit"),
         Line("r1", "h3")]  # fmt: skip
PICTURE = """\
┌────────────┐                      ┌─────────────┐
│ s1  switch ├─┬──── 8Mbit, 5ms ────┤ h1          │
└────────────┘ │                    │ 10.0.0.1/24 │
               │                    └─────────────┘
               │                    ┌─────────────┐
               ├╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┤ h2          │
               │                    │ 10.0.0.2/24 │
               │                    └─────────────┘
               │                    ┌───────────────┐          ┌─────────────┐
               └──── 1Gbit ─────────┤ r1  router    ├──────────┤ h3          │
                                    │ 10.0.0.254/24 │          │ 10.0.1.1/24 │
                                    │ 10.0.1.254/24 │          └─────────────┘
                                    └───────────────┘"""


def test_a_network_as_text() -> None:
    assert text(BOXES, LINES) == PICTURE


def test_nothing_is_nothing() -> None:
    assert text([], []) == ""
    assert ET.fromstring(svg([], [])).tag.endswith("svg")


def test_a_ring_names_a_node_once_more_in_parentheses() -> None:
    boxes = [Box(name, "router") for name in "abc"]
    drawn = text(boxes, [Line("a", "b"), Line("b", "c", "slow"), Line("c", "a")])
    assert [len(re.findall(rf"[│┤] {name}  router", drawn)) for name in "abc"] == [1, 1, 1]
    assert "slow ────(c)" in drawn


def test_islands_are_drawn_one_after_another() -> None:
    boxes = [Box(name, "host") for name in "abcd"]
    drawn = text(boxes, [Line("a", "c"), Line("b", "d")])
    assert drawn.index("a") < drawn.index("c") < drawn.index("b") < drawn.index("d")


def test_the_svg_is_well_formed_whatever_it_says() -> None:
    boxes = [Box('<&">', "host", ("a<b",)), Box("s", "switch")]
    lines = [Line('<&">', "s", "1 < 2 & 3", up=False)]
    document = ET.fromstring(svg(boxes, lines, 'x "y" <z>'))
    texts = {element.text for element in document.iter()}
    assert {'<&">', "a<b", "s switch", "1 < 2 & 3", 'x "y" <z>'} <= texts


def test_a_link_that_is_down_is_dashed() -> None:
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    document = ET.fromstring(svg(BOXES, LINES))
    paths = document.findall(".//svg:path", namespace)
    assert len(paths) == len(LINES)
    assert sum("stroke-dasharray" in path.attrib for path in paths) == 1


@st.composite
def _pictures(draw: st.DrawFn) -> tuple[list[Box], list[Line]]:
    count = draw(st.integers(1, 9))
    names = [f"n{i}" for i in range(count)]
    kinds, addresses = st.sampled_from(("host", "router", "switch")), st.just("10.0.0.1/24")
    boxes = [Box(name, draw(kinds), tuple(draw(st.lists(addresses, max_size=3)))) for name in names]
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names)).filter(lambda p: p[0] != p[1])
    lines = [Line(a, b, draw(st.sampled_from(("", "8Mbit"))), draw(st.booleans()))
             for a, b in (draw(st.lists(pairs, max_size=12)) if count > 1 else [])]  # fmt: skip
    return boxes, lines


def _all(place: Place) -> list[Place]:
    return [place, *(one for child in place.below for one in _all(child))]


@given(_pictures())
def test_every_node_and_every_link_is_drawn_once(picture: tuple[list[Box], list[Line]]) -> None:
    boxes, lines = picture
    places = [one for tree in trees(boxes, lines) for one in _all(tree)]
    assert sorted(one.box for one in places if not one.again) == sorted(boxes)
    assert sorted(one.line for one in places if one.line is not None) == sorted(lines)
    drawn = text(boxes, lines)
    for box in boxes:
        assert len(re.findall(rf"[│┤] {box.name} ", drawn)) == 1
    again = sum(one.again for one in places)
    assert drawn.count("┌") == len(boxes)
    assert drawn.count("(") == again
    document = ET.fromstring(svg(boxes, lines))
    assert len(list(document.iter("{http://www.w3.org/2000/svg}path"))) == len(lines)


@given(_pictures())
def test_boxes_of_an_svg_do_not_overlap_and_are_on_the_page(
    picture: tuple[list[Box], list[Line]],
) -> None:
    document = ET.fromstring(svg(*picture))
    page, *rects = document.iter("{http://www.w3.org/2000/svg}rect")
    width, height = float(page.attrib["width"]), float(page.attrib["height"])
    corners = []
    for rect in rects:
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        assert 0 < x < x + w < width
        assert 0 < y < y + h < height
        corners.append((x, y, x + w, y + h))
    for i, a in enumerate(corners):
        for b in corners[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
