# SPDX-License-Identifier: Apache-2.0
"""However a network of hosts ends, nothing of it is left."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack

import pytest
from support import scaled
from topology.kit import pair

import nsbox
from nsbox import rtnl
from nsbox.topology import Topology

pytestmark = pytest.mark.userns

_OWNER = """
import os, sys, time
from nsbox.topology import Topology
net = Topology()
for name in ("h1", "h2", "r1"):
    (net.router if name == "r1" else net.host)(name)
net.link("h1", net.switch("s1"))
net.link("s1", "r1", rate="1Mbit")
net.link("r1", "h2")
net.start()
pids = [net[name].pid for name in ("h1", "h2", "r1")]
pids += [one.holder.pid for one in (*net._networks.values(), net.switching)]
print(*pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.kernel
def test_it_goes_with_an_owner_that_is_killed() -> None:
    """Links and networks need no undo of their own: they end with the processes that hold them."""
    with ExitStack() as stack:
        owner = stack.enter_context(subprocess.Popen(
            [sys.executable, "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ))  # fmt: skip
        assert owner.stdout is not None
        pids = list(map(int, owner.stdout.readline().split()))
        assert len(pids) == 7
        assert all(pid > 1 for pid in pids)
        fds = [os.pidfd_open(pid) for pid in pids]
        for fd in fds:
            stack.callback(os.close, fd)
        owner.send_signal(signal.SIGKILL)
        end = time.monotonic() + scaled(2)
        for fd in fds:
            assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]


def test_closing_ends_it_and_can_be_repeated() -> None:
    with pair() as net:
        pids = [host.pid for host in net.hosts]
        fds = [os.pidfd_open(pid) for pid in pids if pid is not None]
    net.close()
    assert [bool(select.select([fd], [], [], 0)[0]) for fd in fds] == [True, True]
    for fd in fds:
        os.close(fd)
    assert [host.status() for host in net.hosts] == ["stopped", "stopped"]


def test_a_host_that_does_not_start_takes_all_with_it() -> None:
    net = Topology()
    net.link(net.host("h1"), net.host("h2", ["/no/such/program"]), rate="1Mbit")
    with pytest.raises(nsbox.CommandNotFound):
        net.start()
    assert net.status() == "stopped"
    assert [host.status() for host in net.hosts] == ["stopped", "stopped"]


@pytest.mark.parametrize("at", range(4))
def test_a_refusal_of_the_kernel_s_takes_all_with_it(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = iter(range(at + 1))
    do = rtnl.Rtnl.do

    def refuse(self: rtnl.Rtnl, *requests: rtnl.Request) -> None:
        if next(calls, None) == at:
            raise nsbox.NetworkError(errno.EPERM, requests[0].what)
        do(self, *requests)

    monkeypatch.setattr(rtnl.Rtnl, "do", refuse)
    net = Topology()
    net.link(net.host("h1"), net.switch("s1"))
    with pytest.raises(nsbox.NetworkError):
        net.start()
    assert net.status() == "stopped"
    assert net.hosts[0].status() == "created"


@pytest.mark.leaks_ok("the topology is forgotten on purpose, and closed by the collector")
def test_one_that_is_forgotten_is_told_of_and_closed() -> None:
    net = Topology()
    net.link(net.host("h1"), net.host("h2"))
    fd = os.pidfd_open(net.start().hosts[0].pid or 0)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            del net
            gc.collect()
        assert any("was not closed" in str(one.message) for one in told)
        assert select.select([fd], [], [], scaled(5))[0]
    finally:
        os.close(fd)


def test_a_forked_child_does_not_end_it() -> None:
    with pair() as net:
        child = os.fork()
        if child == 0:
            try:
                net.close()
                try:
                    net.ping_all(0.1)
                except nsbox.StateError:
                    os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert net.ping_all(scaled(2)).ok
