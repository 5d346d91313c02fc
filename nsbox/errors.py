# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, each with the builtin base that callers already catch.

NsboxError
├── SpecError(ValueError)              .field        nothing was started
├── StateError(RuntimeError)           .status       the verb is not allowed now
├── Unavailable(OSError)               .feature .needs .alternatives .hint   the host cannot do this
├── SetupError(OSError)                .step .name .call .errno .field .hint everything was undone
│   └── CommandNotFound(FileNotFoundError)
├── NetworkError(OSError)              .what .said .hint   the kernel refused a link, address, rule
├── CopyError(OSError)                 .field .place .path .limit  nothing is left at *dst*
├── TimeoutExpired(subprocess.TimeoutExpired)        carries the Completed
├── CommandError(subprocess.CalledProcessError)      with check=True; carries the Completed
└── RemoteError                        the traceback of a sandboxed callable
"""

from __future__ import annotations

import errno as _errno
import os
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CommandError",
    "CommandNotFound",
    "CopyError",
    "NetworkError",
    "NsboxError",
    "RemoteError",
    "SetupError",
    "SpecError",
    "StateError",
    "TimeoutExpired",
    "Unavailable",
]


def _again(kind: type[NsboxError], args: tuple[Any, ...], state: dict[str, Any]) -> NsboxError:
    """A copy without ``__init__``, whose parameters are not what ``args`` holds."""
    error = kind.__new__(kind)
    if isinstance(error, OSError):
        OSError.__init__(error, *args)
    else:
        error.args = args
    error.__dict__.update(state)
    return error


class NsboxError(Exception):
    """The base of every error that nsbox raises on purpose. Errors can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, dict(self.__dict__))


class SpecError(NsboxError, ValueError):
    """A value that the caller gave is wrong. Nothing was started.

    Attributes:
        field: where in the specification, such as ``limits.memory`` or ``mounts[2]``.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class StateError(NsboxError, RuntimeError):
    """The verb is not allowed in the object's present state.

    Attributes:
        status: the state, as ``status()`` of the object gives it.
    """

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(message)
        self.status = status


class Unavailable(NsboxError, OSError):
    """This host, or this user on it, cannot do what was asked.

    Attributes:
        feature: what was asked for.
        needs: what it takes.
        alternatives: what could be asked for instead.
        hint: a command or setting that mends it, or "".
    """

    def __init__(
        self,
        feature: str,
        needs: str,
        *,
        err: int = _errno.EOPNOTSUPP,
        alternatives: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        OSError.__init__(self, err, os.strerror(err))
        self.feature, self.needs, self.hint = feature, needs, hint
        self.alternatives = tuple(alternatives)

    def __str__(self) -> str:
        text = f"{self.feature}: {self.needs}"
        if self.alternatives:
            text += f". Instead: {', '.join(self.alternatives)}"
        return f"{text}. Fix: {self.hint}" if self.hint else text


class SetupError(NsboxError, OSError):
    """A step of setting up a sandbox failed; what the steps before it did was undone.

    Attributes:
        step: its number in ``explain()``.
        name: its name, such as ``"bind"``; *detail* says on what.
        call: the system call that failed; *errno* is its answer.
        field: what in the specification asked for the step.
        hint: how to mend it, or "".
    """

    def __init__(
        self,
        err: int,
        *,
        step: int,
        name: str,
        call: str,
        detail: str = "",
        field: str = "",
        hint: str = "",
    ) -> None:
        OSError.__init__(self, err, os.strerror(err))
        self.step, self.name, self.call = step, name, call
        self.detail, self.field, self.hint = detail, field, hint

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.name, self.detail)))
        origin = f", from {self.field}" if self.field else ""
        number = self.errno or 0
        code = _errno.errorcode.get(number, str(number))
        text = f"step {self.step} ({what}{origin}): {self.call}: {code} ({os.strerror(number)})"
        return f"{text}. {self.hint}" if self.hint else text


class CommandNotFound(SetupError, FileNotFoundError):
    """The program is not in the sandbox's root, or not in its PATH; or its interpreter is not."""


class NetworkError(NsboxError, OSError):
    """The kernel refused a link, an address, a route, a queue or a rule.

    Attributes:
        what: the request, as ip(8), tc(8) or nft(8) would have it.
        said: the kernel's own words (NLMSGERR_ATTR_MSG, Linux 4.12), or "".
        hint: how to mend it, or "".
    """

    def __init__(self, err: int, what: str, said: str = "", *, hint: str = "") -> None:
        OSError.__init__(self, err, os.strerror(err))
        self.what, self.said, self.hint = what, said, hint

    def __str__(self) -> str:
        number = self.errno or 0
        code = _errno.errorcode.get(number, str(number))
        text = f"{self.what}: {code} ({self.said or os.strerror(number)})"
        return f"{text}. {self.hint}" if self.hint else text


class CopyError(NsboxError, OSError):
    """Something was not copied into or out of a sandbox; the destination is as it was.

    Attributes:
        field: where it failed, ``"src"`` or ``"dst"``; *place* is the path that this said.
        path: below that; "" for itself.
        limit: what it is, or which bound it went over; "" where *errno* says all.
    """

    def __init__(self, err: int, field: str, place: str, path: bytes, limit: str = "") -> None:
        OSError.__init__(self, err, os.strerror(err))
        self.field, self.place, self.path, self.limit = field, place, os.fsdecode(path), limit

    def __str__(self) -> str:
        code = _errno.errorcode.get(self.errno or 0, str(self.errno))
        what = self.limit or f"{code} ({os.strerror(self.errno or 0)})"
        where = os.path.join(self.place, self.path) if self.path else self.place
        return f"{self.field} {where!r}: {what}"


class TimeoutExpired(NsboxError, subprocess.TimeoutExpired):
    """``timeout=`` passed. ``run`` and ``communicate`` have killed the tree, ``wait`` has not.

    Attributes:
        completed: the ``Completed``, with what was captured until then.
    """

    def __init__(self, cmd: Sequence[str], timeout: float, completed: Any = None) -> None:
        subprocess.TimeoutExpired.__init__(self, list(cmd), timeout)
        self.completed = completed
        if completed is not None:
            self.output, self.stderr = completed.stdout, completed.stderr


class CommandError(NsboxError, subprocess.CalledProcessError):
    """The command ended with another code than 0, or for another reason than its own end.

    Attributes:
        completed: the ``Completed``.
    """

    def __init__(self, completed: Any) -> None:
        subprocess.CalledProcessError.__init__(
            self,
            completed.returncode,
            list(completed.args),
            output=completed.stdout,
            stderr=completed.stderr,
        )
        self.completed = completed

    def __str__(self) -> str:
        text = super().__str__()
        reason = getattr(self.completed.reason, "name", "")
        return text if reason in ("", "EXITED", "SIGNALED") else f"{text} ({reason})"


class RemoteError(NsboxError):
    """A callable raised in its sandbox; the text is its traceback there."""
