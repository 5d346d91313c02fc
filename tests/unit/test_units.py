# SPDX-License-Identifier: Apache-2.0
"""Sizes, cores, seconds and counts: what is accepted means one number, all else is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nsbox import units
from nsbox.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.leaks_ok("numbers in, numbers out")

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))
MOST = 1 << 62


@pytest.mark.parametrize(
    ("value", "size"),
    [
        pytest.param(0, 0, id="nothing"),
        pytest.param(1, 1, id="a byte"),
        pytest.param(MOST, MOST, id="the most there is"),
        pytest.param("0", 0, id="nothing, as text"),
        pytest.param("4096", 4096, id="a number without a unit is bytes"),
        pytest.param("4096B", 4096, id="bytes by their unit"),
        pytest.param("1K", KIB, id="K is 1024"),
        pytest.param("1KB", KIB, id="KB is 1024 too"),
        pytest.param("1Ki", KIB, id="Ki as Kubernetes has it"),
        pytest.param("1KiB", KIB, id="KiB"),
        pytest.param("256M", 256 * MIB, id="M"),
        pytest.param("256Mi", 256 * MIB, id="Mi"),
        pytest.param("256MiB", 256 * MIB, id="MiB"),
        pytest.param("256 MiB", 256 * MIB, id="a space before the unit"),
        pytest.param(" 256MiB\n", 256 * MIB, id="white space around it"),
        pytest.param("3G", 3 * GIB, id="G"),
        pytest.param("2T", 2 * TIB, id="T"),
        pytest.param("1.5GiB", 3 * GIB // 2, id="a fraction of a unit"),
        pytest.param("0.5K", 512, id="less than one unit"),
        pytest.param("0064", 64, id="leading zeros are decimal"),
    ],
)
def test_a_size_is_so_many_bytes(value: Any, size: int) -> None:
    assert units.size_bytes(value, "memory") == size


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(-1, id="negative"),
        pytest.param(MOST + 1, id="more than the kernel's counters"),
        pytest.param(10**400, id="an absurd integer"),
        pytest.param("9" * 300, id="an absurd number as text"),
        pytest.param("9" * 5000, id="a number too long for int()"),
        pytest.param("9" * 400 + ".5T", id="a fraction too large for a float"),
        pytest.param(True, id="a bool"),
        pytest.param(1.5, id="a float"),
        pytest.param(math.nan, id="not a number"),
        pytest.param(None, id="None"),
        pytest.param(b"1M", id="bytes"),
        pytest.param([1], id="a list"),
        pytest.param("", id="nothing"),
        pytest.param(" ", id="white space"),
        pytest.param("M", id="a unit alone"),
        pytest.param("-1M", id="negative text"),
        pytest.param("+1M", id="a sign"),
        pytest.param("1m", id="milli is not Mega"),
        pytest.param("1mb", id="lower case"),
        pytest.param("1P", id="an unknown unit"),
        pytest.param("1iB", id="a binary prefix of nothing"),
        pytest.param("1i", id="a binary mark without a unit"),
        pytest.param("1MiBs", id="more after it"),
        pytest.param("1M 2M", id="two of them"),
        pytest.param(".5M", id="no digit before the point"),
        pytest.param("1.M", id="no digit after the point"),
        pytest.param("1e3", id="an exponent"),
        pytest.param("0x10", id="hexadecimal"),
        pytest.param("1_000", id="underscores"),
        pytest.param("1,5M", id="a comma"),
        pytest.param("١M", id="digits of another script"),
        pytest.param("max", id="the kernel's word for no limit"),
    ],
)
def test_what_is_no_size_is_refused_by_field(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        units.size_bytes(value, "memory")
    assert caught.value.field == "memory"
    assert str(caught.value).startswith("memory: ")


def test_a_size_without_its_unit_gets_the_hint() -> None:
    with pytest.raises(SpecError) as caught:
        units.size_bytes("256", "memory", least=MIB)
    assert str(caught.value) == 'memory: 256 bytes is below 1 MiB; did you mean "256MiB"?'


def test_a_small_size_with_a_unit_gets_no_hint() -> None:
    with pytest.raises(SpecError) as caught:
        units.size_bytes("1K", "memory", least=MIB)
    assert str(caught.value) == "memory: 1024 bytes is below 1 MiB"


@given(st.integers(0, MOST))
def test_an_int_is_itself(value: int) -> None:
    assert units.size_bytes(value, "f") == value == units.size_bytes(str(value), "f")


@given(st.integers(0, 1 << 20), st.sampled_from("KMGT"), st.sampled_from(["", "i", "B", "iB"]))
def test_every_suffix_of_a_unit_means_the_same(number: int, unit: str, suffix: str) -> None:
    factor = 1024 ** ("KMGT".index(unit) + 1)
    assert units.size_bytes(f"{number}{unit}{suffix}", "f") == number * factor


def _outcome(parse: Callable[[Any, str], Any], value: Any) -> Any:
    """The number, or the field of the SpecError."""
    try:
        return parse(value, "f")
    except SpecError as error:
        return error.field


@given(st.text(max_size=20))
@example("256MiB")
def test_any_text_is_a_size_or_a_spec_error(value: str) -> None:
    outcome = _outcome(units.size_bytes, value)
    assert outcome == "f" or 0 <= outcome <= MOST


@given(st.integers(0, MOST))
def test_a_shown_size_reads_back(size: int) -> None:
    shown = units.format_size(size).removesuffix(" bytes").removesuffix(" byte")
    assert units.size_bytes(shown, "f") == size


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KiB"),
        (MIB + KIB, "1025 KiB"),
        (64 * MIB, "64 MiB"), (GIB, "1 GiB"), (2048 * GIB, "2 TiB"),
    ],
)  # fmt: skip
def test_a_size_is_shown_in_the_largest_whole_unit(size: int, shown: str) -> None:
    assert units.format_size(size) == shown


@pytest.mark.parametrize(
    ("value", "cores"),
    [
        pytest.param(0.5, 0.5, id="half a core"),
        pytest.param(2, 2.0, id="whole cores"),
        pytest.param("500m", 0.5, id="millicores"),
        pytest.param("0.25", 0.25, id="a number as text"),
        pytest.param(" 1500m ", 1.5, id="white space around it"),
        pytest.param(0.01, 0.01, id="the kernel's least"),
        pytest.param("10m", 0.01, id="the kernel's least in millicores"),
    ],
)
def test_cores_are_a_float(value: Any, cores: float) -> None:
    assert units.cores(value, "cpu") == pytest.approx(cores)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(0, id="none at all"),
        pytest.param(0.009, id="below the kernel's least"),
        pytest.param("9m", id="below it in millicores"),
        pytest.param(-1, id="negative"),
        pytest.param("-500m", id="negative millicores"),
        pytest.param(10**7, id="more than any machine"),
        pytest.param(10**400, id="an integer that is no float"),
        pytest.param(math.nan, id="not a number"),
        pytest.param(math.inf, id="infinite"),
        pytest.param("nan", id="nan as text"),
        pytest.param("inf", id="inf as text"),
        pytest.param("1e999", id="infinite after rounding"),
        pytest.param("m", id="a unit alone"),
        pytest.param("", id="nothing"),
        pytest.param("500M", id="mega is not milli"),
        pytest.param("1 core", id="words"),
        pytest.param("0x1", id="hexadecimal"),
        pytest.param("1_0", id="underscores"),
        pytest.param(True, id="a bool"),
        pytest.param(None, id="None"),
        pytest.param(b"1", id="bytes"),
        pytest.param([1], id="a list"),
    ],
)
def test_what_is_no_number_of_cores_is_refused_by_field(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        units.cores(value, "cpu")
    assert caught.value.field == "cpu"


@given(st.text(max_size=12) | st.floats() | st.integers())
def test_any_value_is_cores_or_a_spec_error(value: Any) -> None:
    outcome = _outcome(units.cores, value)
    assert outcome == "f" or 0.01 <= outcome <= 1_000_000


@pytest.mark.parametrize("value", [0.001, 1, 2.5, 86400, 1e6])
def test_seconds_are_a_float(value: float) -> None:
    result = units.seconds(value, "wall")
    assert result == value
    assert type(result) is float


def test_zero_seconds_only_where_they_mean_something() -> None:
    assert units.seconds(0, "timeout", zero=True) == 0
    with pytest.raises(SpecError, match=r"^wall: 0 seconds: must be more than 0$"):
        units.seconds(0, "wall")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(-0.1, id="negative"),
        pytest.param(math.nan, id="not a number"),
        pytest.param(math.inf, id="infinite"),
        pytest.param(10**400, id="an integer that is no float"),
        pytest.param("5", id="text"),
        pytest.param(True, id="a bool"),
        pytest.param(None, id="None"),
    ],
)
@pytest.mark.parametrize("zero", [False, True], ids=["above zero", "zero too"])
def test_what_is_no_duration_is_refused_by_field(value: Any, zero: bool) -> None:
    with pytest.raises(SpecError) as caught:
        units.seconds(value, "wall", zero=zero)
    assert caught.value.field == "wall"


@pytest.mark.parametrize("value", [1.0, "1", None, True, math.nan])
def test_a_count_is_an_int(value: Any) -> None:
    with pytest.raises(SpecError, match=r"^pids: .* is not a whole number$"):
        units.count(value, "pids")


@given(st.integers(), st.integers(-5, 5), st.integers(0, 10))
def test_a_count_is_in_its_range(value: int, least: int, span: int) -> None:
    inside = least <= value <= least + span
    if inside:
        assert units.count(value, "f", least=least, most=least + span) == value
        return
    with pytest.raises(SpecError, match=rf"^f: {value} is not in {least}\.\.{least + span}$"):
        units.count(value, "f", least=least, most=least + span)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param(0.01, 0.01, id="seconds"),
        pytest.param(2, 2.0, id="an int"),
        pytest.param("10ms", 0.01, id="ms"),
        pytest.param("250us", 0.00025, id="us"),
        pytest.param("100ns", 1e-7, id="ns"),
        pytest.param("1.5s", 1.5, id="a fraction"),
        pytest.param(" 2 secs ", 2.0, id="words of tc"),
        pytest.param("3msec", 0.003, id="a word of tc"),
        pytest.param("1usecs", 1e-6, id="another"),
    ],
)
def test_a_time_is_so_many_seconds(value: Any, seconds: float) -> None:
    assert units.time_s(value, "delay") == seconds


@pytest.mark.parametrize(
    "value",
    ["", "10", "ms", "-1ms", "1m", "1h", "10MS", "1e3ms", "1ms 2ms", "٣ms", "9" * 500 + "s", None,
     True, math.nan, b"1ms", [1]],
)  # fmt: skip
def test_what_is_no_time_is_refused_by_field(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        units.time_s(value, "delay")
    assert caught.value.field == "delay"


def test_no_time_only_where_it_means_something() -> None:
    assert units.time_s("0ms", "jitter", zero=True) == 0.0
    with pytest.raises(SpecError, match="must be more than 0"):
        units.time_s("0ms", "delay")


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        pytest.param(8, 8, id="the least"),
        pytest.param(1_000_000, 1_000_000, id="bits per second"),
        pytest.param("1000", 1000, id="a number without a unit"),
        pytest.param("1000bit", 1000, id="bit"),
        pytest.param("8kbit", 8000, id="kbit"),
        pytest.param("10Mbit", 10_000_000, id="Mbit"),
        pytest.param("10mbit", 10_000_000, id="lower case, as tc writes it"),
        pytest.param("1Gbit", 10**9, id="Gbit"),
        pytest.param("1tbit", 10**12, id="tbit"),
        pytest.param("1.5Mbit", 1_500_000, id="a fraction"),
        pytest.param("1Kibit", 1024, id="Kibit"),
        pytest.param("2mibit", 2 << 20, id="mibit"),
        pytest.param("10M", 10_000_000, id="M as Kubernetes' annotation has it"),
        pytest.param("10Mi", 10 << 20, id="Mi"),
        pytest.param("64K", 64_000, id="K"),
        pytest.param("64k", 64_000, id="k, which is no other unit"),
        pytest.param(" 10 Mbit ", 10_000_000, id="white space"),
    ],
)
def test_a_rate_is_so_many_bits_per_second(value: Any, rate: int) -> None:
    assert units.rate_bits(value, "rate") == rate


@pytest.mark.parametrize(
    "value",
    ["", "Mbit", "-1Mbit", "10m", "10g", "1Pbit", "1Mbits", "1Mb", "1MB", "10Mbit/s", "1e6", "٣bit",
     7, 0, -1, "1bit", MOST + 1, "9" * 20 + "tbit", "9" * 400, True, 1.5, None, math.nan, b"1"],
)  # fmt: skip
def test_what_is_no_rate_is_refused_by_field(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        units.rate_bits(value, "rate")
    assert caught.value.field == "rate"


@pytest.mark.parametrize("value", ["10Mbps", "10mbps", "1000bps"])
def test_a_rate_in_bps_gets_the_reason(value: str) -> None:
    with pytest.raises(SpecError, match=r'to tc, bps are bytes.*use bits per second or "10Mbit"'):
        units.rate_bits(value, "rate")


@given(st.integers(8, 1 << 20), st.sampled_from("kmgtKMGT"), st.sampled_from(["", "i"]))
def test_every_prefix_of_bit_is_a_power(number: int, prefix: str, binary: str) -> None:
    power = (1024 if binary else 1000) ** ("kmgt".index(prefix.lower()) + 1)
    assert units.rate_bits(f"{number}{prefix}{binary}bit", "rate") == number * power


@pytest.mark.parametrize(
    ("value", "share"),
    [("1%", 0.01), ("0%", 0.0), ("100%", 1.0), (" 0.5 % ", 0.005), (0.01, 0.01), (1.0, 1.0),
     (0, 0.0)],
)  # fmt: skip
def test_a_share_is_a_part_of_the_whole(value: Any, share: float) -> None:
    assert units.share(value, "loss") == share


@pytest.mark.parametrize(
    "value",
    [1, 2, -1, "1", "101%", "-1%", "%", "", 1.1, -0.1, math.nan, math.inf, True, None, b"1%",
     "1%%", "9" * 400 + "%", 10**400],
)  # fmt: skip
def test_what_is_no_share_is_refused_by_field(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        units.share(value, "loss")
    assert caught.value.field == "loss"


@given(st.text(max_size=12) | st.floats() | st.integers())
def test_any_value_is_a_time_a_rate_a_share_or_a_spec_error(value: Any) -> None:
    for parse in (units.time_s, units.rate_bits, units.share):
        found = _outcome(parse, value)
        assert found == "f" or found >= 0
