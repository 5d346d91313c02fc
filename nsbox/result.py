# SPDX-License-Identifier: Apache-2.0
"""What a run came to: ``Completed``, its ``Reason`` and its ``Usage``."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsbox.errors import CommandError

if TYPE_CHECKING:
    from nsbox.changes import Change


class Reason(enum.Enum):
    """Why a payload ended, by the kernel's word or nsbox's own act; never by its exit code."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    CPU_TIME = "cpu_time"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Usage:
    """What the whole tree used. Seconds and bytes; None where this host does not measure it.

    *pids_peak* counts threads, and nsbox-init where that is PID 1, which ``Limits.pids`` does not.
    """

    wall: float
    cpu_user: float
    cpu_system: float
    memory_peak: int
    pids_peak: int | None = None
    io_read: int | None = None
    io_write: int | None = None
    throttled: float | None = None


@dataclass(frozen=True)
class Completed:
    """A payload that has ended.

    Attributes:
        returncode: its exit code, or -n for signal n.
        stdout, stderr: what was captured: bytes, or str with ``text=True``; else None.
        truncated: output beyond ``limits.output`` was dropped.
        limits_hit: names of the limits that were reached.
        enforcement: what each limit was enforced by.
        applied: each measure of the profile and how it was met; "missing: …" where not.
        changes: what is not as it was below, where the root is an overlay: each has a ``kind``
            (``"added"``, ``"modified"``, ``"deleted"``; ``"deep"``, ``"unreadable"`` and
            ``"more"`` of what is not told in full, see ``Change``) and a ``path``.
    """

    args: tuple[str, ...]
    returncode: int
    stdout: bytes | str | None
    stderr: bytes | str | None
    reason: Reason
    usage: Usage
    truncated: bool = False
    limits_hit: tuple[str, ...] = ()
    enforcement: dict[str, str] = field(default_factory=dict, repr=False)
    applied: dict[str, str] = field(default_factory=dict, repr=False)
    changes: tuple[Change, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """It ended by itself, with code 0."""
        return self.returncode == 0 and self.reason is Reason.EXITED

    def check_returncode(self) -> None:
        """Raises CommandError unless ``ok``."""
        if not self.ok:
            raise CommandError(self)
