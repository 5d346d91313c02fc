# SPDX-License-Identifier: Apache-2.0
"""Hashes that are worked out once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

_T = TypeVar("_T")


def hashed_once(cls: type[_T]) -> type[_T]:
    """For a frozen dataclass whose values are keys, or in keys, of caches on the spawn path.

    The hash, of every field, is kept in the value; it does not leave the process, where strings
    have other hashes.
    """
    names = tuple(f.name for f in fields(cls))  # type: ignore[arg-type]

    def __hash__(self: Any) -> int:
        known: dict[str, Any] = self.__dict__
        value: int | None = known.get("_hash")
        if value is None:
            value = known["_hash"] = hash(tuple(known[name] for name in names))
        return value

    def __getstate__(self: Any) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    cls.__hash__ = __hash__  # type: ignore[method-assign]
    cls.__getstate__ = __getstate__  # type: ignore[attr-defined]
    return cls
