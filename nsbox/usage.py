# SPDX-License-Identifier: Apache-2.0
"""What a cgroup counts: ``CgroupStats``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class DiskStats(NamedTuple):
    """Of one disk: bytes and operations, read and written. io.stat; blkio.throttle.* on v1."""

    read_bytes: int
    write_bytes: int
    reads: int
    writes: int


@dataclass(frozen=True)
class CgroupStats:
    """What a cgroup uses and has used, by the kernel's counters; None where it has none.

    Attributes:
        memory_current, memory_peak: bytes.
        pids_current, pids_peak: processes and threads.
        cpu_user, cpu_system: seconds of CPU time.
        throttled: seconds for which its processes waited for the quota of ``limits.cpu``.
        disks: "MAJOR:MINOR" -> ``DiskStats`` of what went to or came from each disk. The page
            cache is none: what is read again costs nothing, and a write counts when it is
            written back.
    """

    memory_current: int | None
    memory_peak: int | None
    pids_current: int | None
    pids_peak: int | None
    cpu_user: float
    cpu_system: float
    throttled: float | None
    disks: dict[str, DiskStats] | None

    def _sum(self, field: int) -> int | None:
        return None if self.disks is None else sum(disk[field] for disk in self.disks.values())

    @property
    def io_read(self) -> int | None:
        """Bytes that were read from all disks."""
        return self._sum(0)

    @property
    def io_write(self) -> int | None:
        """Bytes that were written to all disks."""
        return self._sum(1)


class Tally(NamedTuple):
    """What is read when a payload has ended: no more than a result has use for."""

    memory_peak: int | None
    pids_peak: int | None
    throttled: float | None
    cpu_used: float | None
    oom_kills: int
    oom_group: bool  # one of these is the end of all, though not at once (v1)
    forks_refused: int
    io_read: int | None
    io_write: int | None
