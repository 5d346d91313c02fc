# SPDX-License-Identifier: Apache-2.0
"""Long-lived helper processes that take one command a line and answer one line."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

ANSWER_TIMEOUT_S = 60.0


class SampleFailed(Exception):
    """A spawn that should have been measured did not succeed; the text says why."""


class LineProcess:
    """A child process answering each line on its standard input with one on its standard output.

    Its standard error goes to an unnamed file, read back when something fails. ``close()`` is
    idempotent: it closes the input, which ends the child, and kills it only if it stays.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=env
        )

    def read(self, patience_s: float = ANSWER_TIMEOUT_S) -> str:
        """The next answer, without its newline.

        Raises:
            SampleFailed: the process ended, or said nothing for *patience_s* seconds.
        """
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], patience_s)[0]:
            raise SampleFailed(f"no answer within {patience_s:.0f} s")
        line = out.readline()
        if not line:
            raise SampleFailed(last_line(self.errors()) or "helper ended")
        return line.decode().rstrip("\n")

    def ask(self, line: str, patience_s: float = ANSWER_TIMEOUT_S) -> str:
        """Send *line*, return the answer, which may take so long."""
        source = self._process.stdin
        assert source is not None
        try:
            source.write(line.encode() + b"\n")
            source.flush()
        except BrokenPipeError:
            raise SampleFailed(last_line(self.errors()) or "helper ended") from None
        return self.read(patience_s)

    def errors(self) -> str:
        """What was written to standard error since the last call."""
        # The child shares the file offset: pread leaves it alone, truncating restarts the file.
        end = os.fstat(self._stderr.fileno()).st_size
        text = os.pread(self._stderr.fileno(), end, 0)
        os.lseek(self._stderr.fileno(), 0, os.SEEK_SET)
        os.ftruncate(self._stderr.fileno(), 0)
        return text.decode(errors="replace")

    def close(self) -> None:
        """End the process and reap it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def last_line(text: str) -> str:
    """The last non-empty line of *text*, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
