# SPDX-License-Identifier: Apache-2.0
"""``oom_group`` on cgroup v1, where the kernel kills one process and the others go on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nsbox import cgroupfs, watch

if TYPE_CHECKING:
    from nsbox.cgroup import Cgroup

_POLL_S = 0.005
_TRIES = 200


class OomNotice:
    """Readable when memory ran out (memory.oom_control, cgroup.event_control).

    Whoever waits for a sandbox watches ``fd``; of a cgroup of the user's own, after ``watch()``,
    the library's thread does.
    """

    def __init__(self, cgroup: Cgroup, directory: str, seen: int) -> None:
        """Of what comes after the first *seen* processes that the OOM killer ended."""
        self._cgroup: Cgroup | None = cgroup
        self._watched = False
        self._seen = seen
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                cgroupfs.write(f"{directory}/cgroup.event_control", f"{self.fd} {control}")
                said = os.read(control, 4096).decode()
                if cgroupfs.parse_counters(said).get("oom_kill", 0) > seen:  # before that
                    os.eventfd_write(self.fd, 1)
            finally:
                os.close(control)
        except BaseException:
            os.close(self.fd)
            raise

    def watch(self) -> None:
        if not self._watched:
            self._watched = True
            watch.get().add(self.fd, self._news)

    def _news(self) -> None:
        try:
            os.eventfd_read(self.fd)
        except OSError:
            return
        self._end_group(_TRIES)

    def _end_group(self, tries: int) -> None:
        """The kernel notifies before it kills."""
        cgroup = self._cgroup
        if cgroup is None:
            return
        count = cgroup.oom_kills()
        if count > self._seen:
            self._seen = count
            cgroup.kill()
        elif tries:
            watch.get().call_later(_POLL_S, lambda: self._end_group(tries - 1))

    def close(self) -> None:
        self._cgroup = None
        if self._watched:
            watch.get().remove(self.fd)
        os.close(self.fd)
