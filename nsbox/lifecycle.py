# SPDX-License-Identifier: Apache-2.0
"""What happens to the containers and pods of this process, as it happens."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsbox.forgotten import forgotten

if TYPE_CHECKING:
    from types import TracebackType

#: Events that one listener may be behind; then the oldest go.
MOST = 1024


@dataclass(frozen=True)
class LifeEvent:
    """Something that happened.

    Attributes:
        time: seconds since the epoch, as time.time().
        what: "created", "started", "paused", "resumed", "oom", "killed" or "died".
        kind: "container" or "pod".
        name: of the container or pod.
        pod: the pod that a container is in, or "".
        pid: of PID 1 as the caller sees it; None where there is none.
        detail: of "died" the reason and the return code; or "failed: " and why it did not start;
            or "never started", and closed; or "lost", with its launcher. Of "killed" what for.
    """

    time: float
    what: str
    kind: str
    name: str
    pod: str = ""
    pid: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = f"{self.pod}/" if self.pod else ""
        return f"{self.kind} {where}{self.name} {self.what} {self.detail}".rstrip()


class Events:
    """A listener: iterate, or ``get()``; ``close()`` ends the iteration. Safe from any thread.

    Attributes:
        dropped: events that were lost because more than 1024 waited.
    """

    def __init__(self) -> None:
        self._queue: deque[LifeEvent] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0
        _listeners[id(self)] = weakref.ref(self)

    def _put(self, event: LifeEvent) -> None:
        with self._changed:
            if len(self._queue) >= MOST:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(event)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> LifeEvent | None:
        """The next one, waited for; None when *timeout* (seconds) passed, or after ``close()``."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed, timeout)
            return self._queue.popleft() if self._queue else None

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> LifeEvent:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Hear no more; what has been heard can still be read. Idempotent."""
        _listeners.pop(id(self), None)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            forgotten(self)

    def __repr__(self) -> str:
        waiting = f"{len(self._queue)} waiting" + f", {self.dropped} dropped" * bool(self.dropped)
        return f"<nsbox.Events {'closed' if self._closed else 'listening'}, {waiting}>"


#: By id: who listens and is forgotten is not kept. Without a lock, which a ``__del__`` that comes
#: at any moment would wait for: each use is one operation of the dictionary's.
_listeners: dict[int, weakref.ref[Events]] = {}


def events() -> Events:
    """Listen, from now on, to what happens to this process's containers and pods.

    ``with nsbox.events() as events: …`` and ``for event in events``, or ``events.get(timeout)``.
    Commands of ``run()`` and ``Popen`` make no events.
    """
    return Events()


def emit(
    what: str, kind: str, name: str, *, pod: str = "", pid: int | None = None, detail: str = ""
) -> None:
    """Tell all listeners; next to nothing is done when there is none."""
    if not _listeners:
        return
    event = LifeEvent(time.time(), what, kind, name, pod, pid, detail)
    for reference in _listeners.copy().values():
        listener = reference()
        if listener is not None:
            listener._put(event)
