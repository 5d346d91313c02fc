# SPDX-License-Identifier: Apache-2.0
"""Files of a container: copied in and out while it runs, and what it changed of its root."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nsbox import units
from nsbox.checks import container_path, host_path
from nsbox.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsbox.changes import Change
    from nsbox.copying import Copied
    from nsbox.process import Process
    from nsbox.spec import Spec


class Contents:
    """The part of ``Container`` that is about its files."""

    name: str
    spec: Spec
    _status: str
    _process: Process | None

    def status(self) -> str:
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        raise NotImplementedError

    @property
    def pidfd(self) -> int:
        raise NotImplementedError

    def diff(self) -> tuple[Change, ...]:
        """What it changed so far, or until its end, of a root that is an overlay; else nothing.

        Raises StateError before its start.
        """
        if self._process is None:
            raise StateError(f"container {self.name!r} is {self._status}", status=self._status)
        return self._process.changes()

    def copy_in(self, src: Path | str, dst: Path | str) -> Copied:
        """A file or directory of the caller's into the running container, at *dst*.

        It belongs to the user that PID 1 is, and is made with that user's rights. A file
        replaces one that is there, at once; a directory must not be there. Links stay links.

        Raises:
            StateError: it does not run.
            CopyError: naming *src* or *dst*, and the path.
        """
        from nsbox import copying

        with self._root() as root:
            return copying.copy_in(root, host_path(src, "src"), container_path(dst, "dst"),
                                   self._file_ids())  # fmt: skip

    def copy_out(
        self,
        src: Path | str,
        dst: Path | str,
        *,
        max_bytes: int = 64 << 20,
        max_files: int = 10_000,
        depth: int = 32,
    ) -> Copied:
        """A file or directory of the running container to *dst* of the caller's.

        Whatever the payload does with it meanwhile: no link is followed out of the container or
        in the tree, nothing but regular files is read, and nothing of it has a set-id bit;
        what is in /proc and /sys is left out. A file replaces *dst*, at once; a directory must
        not be there.

        Args:
            max_bytes: of content, in all; apparent size, so that a sparse file is too large.
            max_files: in all, without directories.
            depth: levels of directories, at most 200.

        Raises:
            StateError: it does not run.
            CopyError: a bound was passed, *src* is no file or directory, or the kernel refused.
        """
        from nsbox import copying

        bounds = copying.Bounds(
            units.count(max_bytes, "max_bytes"),
            units.count(max_files, "max_files"),
            units.count(depth, "depth", most=copying.MOST_DEPTH),
        )
        source, target = container_path(src, "src"), host_path(dst, "dst")
        mounts = [mount.dst for mount in self.spec.mounts if mount.kind in ("proc", "sysfs")]
        with self._root() as root:
            return copying.copy_out(root, source, target, bounds, ("/proc", "/sys", *mounts))

    @contextmanager
    def _root(self) -> Iterator[int]:
        """PID 1's root directory: a number may be somebody else's by now, a pidfd is not."""
        if self.status() not in ("running", "paused"):
            raise StateError(f"container {self.name!r} is {self._status}", status=self._status)
        try:
            fd = os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StateError(f"container {self.name!r} has ended", status="stopped") from None
        try:
            try:
                signal.pidfd_send_signal(self.pidfd, 0)  # not reaped yet: so the number was its
            except (ProcessLookupError, OSError):
                raise StateError(f"container {self.name!r} has ended", status="stopped") from None
            yield fd
        finally:
            os.close(fd)

    def _file_ids(self) -> tuple[int, int] | None:
        """PID 1's ids as the caller sees them, where they are others that it can take on."""
        found = {}
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(("Uid:", "Gid:")):
                found[line[:3]] = int(line.split()[1])
        ids = (found["Uid"], found["Gid"])
        return None if os.geteuid() != 0 or ids == (os.geteuid(), os.getegid()) else ids

    def discard(self) -> None:
        """Throw away what it changed in an overlay's ``upper=``, which is empty then.

        Raises:
            StateError: it runs, or is paused.
            OSError: something in there cannot be removed by the caller.
        """
        status = self.status()
        if status in ("running", "paused"):
            raise StateError(f"container {self.name!r} is {status}", status=status)
        root = self.spec.root
        if root.kind == "overlay" and root.path:
            from nsbox import changes

            for name in ("upper", "work"):
                if os.path.lexists(f"{root.path}/{name}"):
                    changes.empty(f"{root.path}/{name}")
