# SPDX-License-Identifier: Apache-2.0
"""Checks of single values that a user gave; *where* is what errors call them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nsbox import units
from nsbox.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Path = str | os.PathLike[str]
_NAME_MAX = 255  # bytes, as of a file's name


def text(value: object, where: str) -> str:
    """A string without NUL of a str, bytes or path."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise SpecError(where, f"{value!r} is not a string")
    result = os.fsdecode(value)
    if "\0" in result:
        raise SpecError(where, "contains a NUL byte")
    encoded(result, where)
    return result


def encoded(value: str, where: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as e:
        raise SpecError(where, f"cannot be encoded: {e.reason}") from e


def elements(value: Any, where: str) -> tuple[Any, ...]:
    """The elements of any iterable but a string, read once; nor a mapping, for ``{"uts": False}``
    would be that it is wanted."""
    if isinstance(value, (str, bytes)):
        raise SpecError(where, f"must be a list, such as [{value!r}]")
    if isinstance(value, Mapping):
        raise SpecError(where, f"{value!r} is not a list; use one such as {[*value]!r}")
    try:
        return tuple(value)
    except TypeError:
        raise SpecError(where, f"{value!r} is not a list") from None


def flag(value: Any, where: str) -> bool:
    """A bool: ``"no"`` would be true."""
    if not isinstance(value, bool):
        raise SpecError(where, f"{value!r} is neither True nor False")
    return value


def listed_name(value: Any, where: str) -> str:
    """What something is called in listings, and by who names it there: one line of text, which
    is no path."""
    if not isinstance(value, str) or not value:
        raise SpecError(where, f"{value!r} is not a name")
    if not value.isprintable() or "/" in value:
        raise SpecError(where, f"{value[:_NAME_MAX]!r} has a '/', or what cannot be printed")
    if len(value.encode()) > _NAME_MAX:
        raise SpecError(where, f"{value[:20]!r}… is longer than {_NAME_MAX} bytes")
    return value


def name_of(path: str) -> str:
    """The same of the last part of a path, which may have any bytes in it; "" where it has none."""
    name = "".join(c if c.isprintable() else "?" for c in os.path.basename(path.rstrip("/")))
    return name.encode()[:_NAME_MAX].decode("utf-8", "ignore")


def known_keywords(call: str, keywords: Iterable[str], *takers: Callable[..., Any]) -> None:
    """TypeError as Python has it, but of *call*, which the user called, not of the *takers* that
    its keywords are for."""
    known = {name for taker in takers for name in taker.__kwdefaults__ or ()}
    for name in keywords:
        if name not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")


def mode_bits(value: int) -> int:
    """Permissions, as of chmod(2)."""
    return units.count(value, "mode", most=0o7777)


def host_path(value: Path, where: str) -> str:
    """An absolute path of the host's; a relative one counts from the caller's directory."""
    result = text(value, where)
    if not result:
        raise SpecError(where, "is empty")
    return os.path.abspath(result)


def container_path(value: Path, where: str) -> str:
    """A path of the sandbox's: absolute, without ``..``, normalised."""
    result = text(value, where)
    if not result.startswith("/"):
        raise SpecError(where, f"{result!r} must be an absolute path of the sandbox's")
    parts = [part for part in result.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise SpecError(where, f"{result!r} contains '..'")
    if len(encoded(result, where)) > 4000:
        raise SpecError(where, "is longer than 4000 bytes")
    return "/" + "/".join(parts)


def is_in(path: str, place: str) -> bool:
    """Whether one absolute, plain path is the other, or below it."""
    return path == place or path.startswith(f"{place.rstrip('/')}/")


def choice(value: Any, where: str, choices: tuple[Any, ...]) -> Any:
    """One of *choices*."""
    if value not in choices:
        raise SpecError(where, f"{value!r}: use {' or '.join(map(repr, choices))}")
    return value


def file_data(value: Any, where: str) -> tuple[bytes, int]:
    """What is to be in a file, and its mode unless another is given."""
    if isinstance(value, str):
        return encoded(value, where), 0o644
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), 0o644
    raise SpecError(where, f"{type(value).__name__} is not content; use bytes, str or a Path")
