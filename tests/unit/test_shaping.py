# SPDX-License-Identifier: Apache-2.0
"""What is asked of the kernel for a rate, a delay or classes; and how they are written."""

from __future__ import annotations

from typing import Any

import pytest

from nsbox import rtnl, shaping, units
from nsbox.errors import SpecError
from nsbox.shaping import TrafficClass, make_shape

pytestmark = pytest.mark.leaks_ok("pure")


def _asked(root: int = 0, mtu: int = 1500, **wanted: Any) -> list[list[rtnl.Request]]:
    return shaping.requests(make_shape(**wanted), 7, mtu, root)


def _fields(request: rtnl.Request, *names: str) -> tuple[Any, ...]:
    return tuple(request.fields[name] for name in names)


def test_a_rate_is_a_bucket_of_ten_milliseconds_and_a_queue_of_fifty() -> None:
    (((tbf),),) = _asked(rate="8Mbit")
    assert tbf.what.startswith("qdisc replace dev 7 root tbf")
    assert _fields(tbf, "type", "rate", "burst", "limit") == (b"tbf", 10**6, 10**4, 6 * 10**4)


@pytest.mark.parametrize(
    ("wanted", "burst", "limit"),
    [
        ({"rate": "64kbit"}, 3028, 3428),  # never less than two packets
        ({"rate": "1Gbit"}, 1_250_000, 7_500_000),
        ({"rate": "8Mbit", "burst": "2KiB"}, 2048, 52048),
        ({"rate": "8Mbit", "latency": "1s"}, 10_000, 1_010_000),
    ],
)
def test_bucket_and_queue(wanted: dict[str, Any], burst: int, limit: int) -> None:
    ((tbf,),) = _asked(**wanted)
    assert _fields(tbf, "burst", "limit") == (burst, limit)


def test_a_packet_of_the_link_has_to_fit_into_the_burst() -> None:
    assert _asked(rate="8Mbit", burst=1514)
    with pytest.raises(SpecError, match="9014 would never leave"):
        _asked(rate="8Mbit", burst=1514, mtu=9000)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (
            {"rate": "100Gbit", "latency": "500ms"},
            "latency: 500ms of the rate, .* less than 4 GiB, use at most 333.6ms",
        ),
        ({"rate": "1Tbit"}, "latency: 50ms of the rate, .* at most 24.36ms"),
        ({"rate": "100Gbit", "burst": "4GiB"}, "burst: 4294967296 bytes: must be less than 4 GiB"),
        ({"rate": "4Tbit", "latency": "1ms"}, "burst: 0.01 s of the rate: must be less than 4 GiB"),
    ],
)
def test_what_is_beyond_32_bits_is_refused(wanted: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        make_shape(**wanted)


def test_what_nobody_asked_for_is_bounded_by_32_bits() -> None:
    netem, _ = _asked(rate="4Tbit", burst="1MiB", latency="1us", delay="4s", jitter="4s")
    assert _fields(netem[0], "limit") == (0xFFFFFFFF,)
    requests = shaping.class_requests(7, 1500, 10**13, {0x10001: TrafficClass("1Mbit")}, 0x10001)
    assert [_fields(one, "burst") for one in requests[1:]] == [(0xFFFFFFFF,)] * 2


def test_a_delay_alone_is_netem_at_the_root() -> None:
    ((netem,),) = _asked(delay="5ms", jitter="500us", loss="1%")
    assert _fields(netem, "delay", "jitter", "loss") == (
        5_000_000,
        500_000,
        round(0.01 * 0xFFFFFFFF),
    )
    assert netem.fields["parent"] == rtnl.ROOT


def test_both_is_a_rate_above_a_delay_and_netem_is_asked_for_first() -> None:
    first, second = _asked(rate="8Mbit", delay="50ms")
    assert [one.fields["type"] for one in first + second] == [b"netem", b"tbf", b"netem"]
    tbf, netem = second
    assert netem.fields["parent"] == tbf.fields["handle"] | 1
    assert netem.fields["limit"] == 200  # packets of 500 bytes in 100 ms
    assert len({one.fields["handle"] for one in first + second}) == 3


def test_what_is_there_is_replaced_by_another_handle() -> None:
    """With the same one, the kernel would change it, and leave what is below it as it is."""
    handles = set()
    root = 0
    for _ in range(4):
        ((tbf,),) = _asked(root, rate="1Mbit")
        assert tbf.fields["handle"] != root
        root = tbf.fields["handle"]
        handles.add(root)
    assert len(handles) == 2


def test_classes_are_below_one_that_has_all() -> None:
    classes = {0x10010: TrafficClass("2Mbit", priority=3), 0x10020: TrafficClass("4Mbit", "5Mbit")}
    htb, whole, one, other = shaping.class_requests(7, 1500, 8_000_000, classes, 0x10020)
    assert _fields(htb, "handle", "other") == (0x10000, 0x20)
    assert _fields(whole, "parent", "handle", "rate", "ceil") == (0x10000, 0x1FFFF, 10**6, 10**6)
    assert _fields(one, "parent", "handle", "rate", "ceil", "priority") == (
        0x1FFFF, 0x10010, 250_000, 10**6, 3)  # fmt: skip
    assert _fields(other, "rate", "ceil") == (500_000, 625_000)


# -- how it is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"rate": "8Mbit"}, "8Mbit"),
        ({"rate": 1500, "delay": 0.0025}, "1.5kbit, 2.5ms"),
        ({"delay": "1s", "jitter": "10us", "loss": 0.015}, "1s±10us, 1.5% loss"),
        ({"loss": "100%"}, "100% loss"),
        ({"loss": 0}, ""),
    ],
)
def test_a_shape_says_what_it_is(wanted: dict[str, Any], said: str) -> None:
    assert str(make_shape(**wanted)) == said


@pytest.mark.parametrize(
    ("bits", "said"),
    [(8, "8bit"), (1000, "1kbit"), (10**7, "10Mbit"), (10**9, "1Gbit"), (1_536_000, "1.536Mbit"),
     (1_234_567, "1.235Mbit"), (10**12, "1000Gbit")],
)  # fmt: skip
def test_a_rate_is_written_as_tc_does(bits: int, said: str) -> None:
    assert units.format_rate(bits) == said


@pytest.mark.parametrize(
    ("value", "number"), [("1:14", 0x10014), ("ffff:1", 0xFFFF0001), (" 1:a0 ", 0x100A0)]
)
def test_a_class_is_a_number(value: str, number: int) -> None:
    assert units.class_id(value, "f") == number


@pytest.mark.parametrize(
    "value", ["", "1", "1:", ":1", "1:0", "g:1", "1:12345", "1:2:3", None, 65556]
)
def test_what_is_no_class_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match="is not a class"):
        units.class_id(value, "f")


def test_a_queue_is_named_as_tc_does() -> None:
    names = {rtnl.Queue(7, "htb", handle, 0, 0, 0, 0, 0).id for handle in (0x10000, 0x10014, 0)}
    assert names == {"1:", "1:14", "0:"}
