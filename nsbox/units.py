# SPDX-License-Identifier: Apache-2.0
"""Sizes, cores, times, rates, shares: what users write, and the numbers that the kernel takes."""

from __future__ import annotations

import math
import re

from nsbox.errors import SpecError

Size = int | str
Cores = int | float | str
Rate = int | str

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*(?:([KMGT])(iB|i|B)?|B)?", re.ASCII)
_CORES = re.compile(r"\d{1,20}(?:\.\d{1,20})?m?", re.ASCII)
_CPUS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_RATE = re.compile(
    r"(\d{1,20}(?:\.\d{1,20})?)\s*(?:(?i:([kmgt])(i)?bit|bit)|([kKMGT])(i)?)?", re.ASCII
)
_TIME = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*(s|ms|us|ns|secs?|msecs?|usecs?)", re.ASCII)
_PERCENT = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*%", re.ASCII)
_CLASS = re.compile(r"([0-9a-fA-F]{1,4}):([0-9a-fA-F]{1,4})", re.ASCII)
_PER_SECOND = {"s": 1, "m": 1_000, "u": 1_000_000, "n": 1_000_000_000}
_POWER = {None: 0, "K": 1, "M": 2, "G": 3, "T": 4}
_MAX = 1 << 62


def size_bytes(value: Size, field: str, *, least: int = 0) -> int:
    """Bytes of ``256``, ``"256MiB"``, ``"256Mi"`` or ``"256M"``.

    Every unit is a power of 1024, as cgroup files and tmpfs have it. A bare number below
    *least* is most often a forgotten unit, and the error says so.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise SpecError(field, f'{value!r} is not a size; use bytes or "256MiB"')
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if not match:
            raise SpecError(field, f'{value!r} is not a size; use bytes or "256MiB"')
        number, unit, _ = match.groups()
        result = (
            int(float(number) * 1024 ** _POWER[unit])
            if "." in number
            else (int(number) * 1024 ** _POWER[unit])
        )
    else:
        result = value
    if result < 0 or result > _MAX:
        raise SpecError(field, f"{value!r} is out of range")
    if result < least:
        hint = ""
        if result and str(value).strip().isdigit():
            hint = f'; did you mean "{str(value).strip()}MiB"?'
        raise SpecError(field, f"{result} bytes is below {format_size(least)}{hint}")
    return result


def format_size(size: int) -> str:
    """``"64 MiB"``: the largest unit that needs no fraction."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return "1 byte" if size == 1 else f"{size} bytes"


def cores(value: Cores, field: str) -> float:
    """Cores of ``0.5``, ``2`` or ``"500m"``. The kernel's least is 1 ms in 100 ms: 0.01."""
    result = math.nan
    if isinstance(value, str):
        text = value.strip()
        if _CORES.fullmatch(text):
            result = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        result = _float(value)
    if not math.isfinite(result):
        raise SpecError(field, f'{value!r} is not a number of cores; use 0.5 or "500m"')
    if not 0.01 <= result <= 1_000_000:
        raise SpecError(field, f"{value!r} cores: the least is 0.01")
    return result


def cpus(value: str | int, field: str) -> str:
    """A list of CPUs as the kernel writes it: ``"0-2,5"`` of ``"2,0-1,5"``, ``"0"`` of ``0``."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise SpecError(field, f'{value!r} is not a list of CPUs; use "0-3,8"')
    numbers: set[int] = set()
    for part in str(value).split(","):
        match = _CPUS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise SpecError(field, f'{value!r} is not a list of CPUs; use "0-3,8"')
        numbers.update(range(first, last + 1))
    return format_cpus(numbers)


def cpu_numbers(text: str) -> set[int]:
    """The CPUs of a list that the kernel wrote, which may be empty."""
    return {cpu for part in text.split(",") if part
            for first, _, last in [part.partition("-")]
            for cpu in range(int(first), int(last or first) + 1)}  # fmt: skip


def format_cpus(numbers: set[int]) -> str:
    """``"0-2,5"`` of {0, 1, 2, 5}."""
    parts: list[list[int]] = []
    for cpu in sorted(numbers):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def seconds(value: float, field: str, *, zero: bool = False) -> float:
    """A duration in seconds: finite, and more than 0 unless *zero*."""
    number = _float(value) if type(value) in (int, float) else math.nan
    if not math.isfinite(number):
        raise SpecError(field, f"{value!r} is not a number of seconds")
    if number < 0 or (number == 0 and not zero):
        raise SpecError(field, f"{value!r} seconds: must be more than 0")
    return number


def patience(value: float | None, field: str) -> float | None:
    """How long may be waited: seconds, 0 where the time has passed already, and None for ever."""
    if value is None:
        return None
    passed = type(value) in (int, float) and value < 0
    return 0.0 if passed else seconds(value, field, zero=True)


def time_s(value: float | str, field: str, *, zero: bool = False) -> float:
    """Seconds of ``0.01``, ``"10ms"``, ``"250us"`` or ``"1s"``; more than 0 unless *zero*.

    The units are those of tc(8). A number in a string needs one: to tc it would be microseconds.
    """
    if not isinstance(value, str):
        return seconds(value, field, zero=zero)
    match = _TIME.fullmatch(value.strip())
    if not match:
        raise SpecError(field, f'{value!r} is not a time; use seconds or "10ms"')
    number, unit = match.groups()
    return seconds(float(number) / _PER_SECOND[unit[0]], field, zero=zero)


def rate_bits(value: Rate, field: str, *, least: int = 8) -> int:
    """Bits per second of ``1_000_000``, ``"10Mbit"``, ``"10Mibit"`` or ``"10M"``.

    The units are those of tc(8), powers of 1000 unless there is an ``i``. Its ``bps`` are bytes,
    which hardly anybody means: they are refused.
    """
    how = 'use bits per second or "10Mbit"'
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise SpecError(field, f"{value!r} is not a rate; {how}")
    if isinstance(value, int):
        result = value
    else:
        match = _RATE.fullmatch(value.strip())
        if not match:
            why = " (to tc, bps are bytes)" if value.strip().lower().endswith("bps") else ""
            raise SpecError(field, f"{value!r} is not a rate{why}; {how}")
        number, prefix, binary, letter, binary_letter = match.groups()
        base = 1024 if binary or binary_letter else 1000
        unit = base ** _POWER[(prefix or letter or "").upper() or None]
        result = round(float(number) * unit) if "." in number else int(number) * unit
    if not least <= result <= _MAX:
        raise SpecError(field, f"{value!r} is out of range: the least is {least} bits per second")
    return result


def share(value: float | str, field: str) -> float:
    """A part of the whole, 0.0 to 1.0, of ``"1%"`` or ``0.01``.

    The whole number 1 is refused: it reads like 1 %, and would be all.
    """
    result = math.nan
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value.strip())
        result = float(match[1]) / 100 if match else math.nan
    elif type(value) is float or (type(value) is int and value == 0):
        result = float(value)
    if not math.isfinite(result):
        raise SpecError(field, f'{value!r} is not a share; use "1%" or 0.01')
    if not 0 <= result <= 1:
        raise SpecError(field, f"{value!r} is not a share: it is more than all or less than none")
    return result


def class_id(value: str | int, field: str) -> int:
    """The handle of a class of tc(8), as skb->priority has it: 0x10014 of ``"1:14"``.

    Both numbers are hexadecimal, as tc writes them.
    """
    match = _CLASS.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not int(match[2], 16):
        raise SpecError(field, f'{value!r} is not a class; use one such as "1:14"')
    return int(match[1], 16) << 16 | int(match[2], 16)


def format_rate(bits: int) -> str:
    """``"8Mbit"`` or ``"1.536Mbit"``, in the largest unit of tc(8), with four digits at most."""
    for unit, size in (("Gbit", 10**9), ("Mbit", 10**6), ("kbit", 10**3)):
        if bits >= size:
            return f"{bits / size:.4g}{unit}"
    return f"{bits}bit"


def format_time(seconds: float) -> str:
    """``"5ms"``, ``"250us"`` or ``"1.5s"``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g}{unit}"
    return f"{seconds * 1e6:.4g}us"


def _float(value: float) -> float:
    """As a float; infinity where an int is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def count(value: int, field: str, *, least: int = 0, most: int = _MAX) -> int:
    """A whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(field, f"{value!r} is not a whole number")
    if not least <= value <= most:
        raise SpecError(field, f"{value} is not in {least}..{most}")
    return value
