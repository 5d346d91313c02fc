# SPDX-License-Identifier: Apache-2.0
"""What the kernel takes long to take away, in a thread of its own: links, sockets that own rules.

Deleting a veth waits 15 to 20 ms for the network's readers (synchronize_net), and who makes one
meanwhile waits too, for the lock of all networks. It waits as often as there are calls, but not as
there are links: so what goes lingers for a moment, and all of it goes as one group. What this
process does not come to any more, its launcher does.
"""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from nsbox import rtnl, shared
from nsbox.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.rtnl import Rtnl

_MOST = 256  # who brings more waits
_LINGER_S = 0.2
_MANY = 64  # no reason to wait for more
_AT_EXIT_S = 2.0
_GROUP = 0x4E530000 | secrets.randbits(16)  # of this process: no other one deletes by it


class Later:
    """A queue of deletions, and the thread that works it off, started by the first of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[Rtnl, str | int] | Callable[[], None]] = []
        self._busy = False
        self._hurry = 0
        self._thread: threading.Thread | None = None
        self._network: str | None = None

    def delete(self, route: Rtnl, link: str | int) -> None:
        """Delete a link, by name or index. *route* is closed by ``call``, not before."""
        self._put((route, link))

    def call(self, what: Callable[[], None]) -> None:
        """Call *what*, after the deletions that were asked for before."""
        self._put(what)

    def _put(self, item: tuple[Rtnl, str | int] | Callable[[], None]) -> None:
        if sys.is_finalizing():  # no thread starts any more, nor goes on: this is the launcher's
            return
        with self._changed:
            self._start()
            self._changed.wait_for(lambda: len(self._waiting) < _MOST)
            self._waiting.append(item)
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nsbox-later", daemon=True)
            self._thread.start()

    def network(self) -> str:
        """Where its thread works, as ``shared.network`` names it: where it was started. "": that
        cannot be told."""
        if sys.is_finalizing():
            return ""
        with self._changed:
            self._start()
            self._changed.wait_for(lambda: self._network is not None)
            return self._network or ""

    def settle(self, timeout: float | None = None) -> bool:
        """Waits until all is done; False when that took more than *timeout* seconds."""
        with self._changed:
            self._hurry += 1
            self._changed.notify_all()
            try:
                idle = lambda: not self._waiting and not self._busy  # noqa: E731
                return self._changed.wait_for(idle, timeout)
            finally:
                self._hurry -= 1

    def _enough(self) -> bool:
        return bool(self._hurry) or len(self._waiting) >= _MANY

    def _run(self) -> None:
        try:
            network = shared.network()
        except OSError:  # no descriptor is left
            network = ""
        with self._changed:
            self._network = network
            self._changed.notify_all()
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                if not self._hurry:
                    self._changed.wait_for(self._enough, _LINGER_S)
                todo, self._waiting = self._waiting, []
                self._busy = True
                self._changed.notify_all()
            links = [item for item in todo if isinstance(item, tuple)]
            for what in (lambda links=links: _delete(links),  # type: ignore[misc]
                         *(item for item in todo if not isinstance(item, tuple))):  # fmt: skip
                try:
                    what()
                except Exception:  # one failure must not keep the others from going
                    traceback.print_exc()


def _delete(links: list[tuple[Rtnl, str | int]]) -> None:
    by_route: dict[Rtnl, list[str | int]] = {}
    for route, link in links:
        by_route.setdefault(route, []).append(link)
    failed: list[Exception] = []
    for route, doomed in by_route.items():
        try:
            _delete_from(route, doomed)
        except Exception as e:  # others' links go all the same
            failed.append(e)
    if failed:
        raise failed[0]


def _delete_from(route: Rtnl, doomed: list[str | int]) -> None:
    requests = [rtnl.link_set(link, group=_GROUP) for link in doomed]
    for request in (*requests, rtnl.group_delete(_GROUP)):
        try:
            route.do(request)
        except NetworkError as e:
            if e.errno != errno.ENODEV:  # it went with its other end
                raise


_later = Later()
delete, call, network = _later.delete, _later.call, _later.network


def settle(timeout: float | None = None) -> bool:
    """Waits until nothing of this process's is left to be deleted; False after *timeout* s."""
    return _later.settle(timeout)


def _forget() -> None:
    """A forked child has neither the thread nor anything to delete."""
    _later.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget)
atexit.register(settle, _AT_EXIT_S)
