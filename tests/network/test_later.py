# SPDX-License-Identifier: Apache-2.0
"""Deletions in the background: all of them come, together, and whoever brings too many waits."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import threading

from network.world import elsewhere, links, raises, world
from support import poll_until, scaled

import nsbox
from nsbox import later, rtnl


def veths(count: int) -> list[str]:
    """Pairs on the host, by the names of their first ends."""
    names = [f"nsbt{n}" for n in range(count)]
    world.host.ip(*(f"link add {name} type veth peer name {name}p" for name in names))
    return names


@elsewhere
def test_what_was_asked_for_is_done_in_order() -> None:
    names = veths(20)
    route = rtnl.Rtnl.here()
    seen: list[int] = []
    for name in names:
        later.delete(route, name)
    later.call(lambda: seen.append(len(links())))
    later.call(route.close)
    assert later.settle(scaled(10))
    assert seen == [2]  # lo and out0: it was called after the deletions
    assert later.settle(0)


@elsewhere
def test_one_that_has_gone_and_one_that_fails_keep_nobody() -> None:
    closed, route = rtnl.Rtnl.here(), rtnl.Rtnl.here()
    closed.close()
    names = veths(3)
    world.host.ip(f"link del {names[0]}")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        later.delete(closed, names[1])
        later.call(lambda: 1 // 0)
        for name in names:
            later.delete(route, name)
        assert later.settle(scaled(10))
    assert set(links()) == {"lo", "out0"}
    assert "this socket is closed" in said.getvalue()
    assert "ZeroDivisionError" in said.getvalue()
    route.close()


@elsewhere
def test_it_starts_with_no_descriptor_left() -> None:
    veth = nsbox.Veth.create("nsbta", peer="nsbtb")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, limits[1]))
    try:
        with raises(OSError):
            os.dup(0)
        veth.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert later.settle(scaled(10))
    assert set(links()) == {"lo", "out0"}


@elsewhere
def test_whoever_brings_too_many_waits() -> None:
    """So that a program that makes links faster than the kernel deletes them is slowed down."""
    hold = threading.Event()
    later.call(hold.wait)
    poll_until(lambda: later._later._busy, what="the thread is held up")
    done: list[int] = []

    def bring() -> None:
        for n in range(2 * later._MOST):
            later.call(lambda n=n: done.append(n))  # type: ignore[misc]

    bringing = threading.Thread(target=bring)
    bringing.start()
    poll_until(lambda: len(later._later._waiting) == later._MOST)
    bringing.join(scaled(0.2))
    assert bringing.is_alive()
    assert len(later._later._waiting) == later._MOST
    assert not later.settle(0.05)
    hold.set()
    bringing.join(scaled(10))
    assert later.settle(scaled(10))
    assert done == list(range(2 * later._MOST))


@elsewhere
def test_a_forked_child_has_nothing_to_delete() -> None:
    import os

    hold = threading.Event()
    later.call(hold.wait)
    with nsbox.Veth.create("veth1", peer="veth2"):
        pass
    child = os.fork()
    if child == 0:
        os._exit(0 if later.settle(1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    hold.set()
    assert later.settle(scaled(10))
