# SPDX-License-Identifier: Apache-2.0
"""Every step of a sandbox or pod with a network fails in turn: the error says which, and of its
place nothing is left."""

from __future__ import annotations

import contextlib
import errno
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from faults.test_injection import Site, _fail_each, _launch
from network.world import SUBNET, elsewhere, idle, output, pings, raises, world
from support import scaled

import nsbox
from nsbox import compile as compiler
from nsbox import later, nft, probe, process, rtnl, sandbox
from nsbox.errors import NetworkError, SetupError
from nsbox.slots import Slot
from nsbox.spawn import spawn
from nsbox.streams import DEVNULL, connect

if TYPE_CHECKING:
    from collections.abc import Callable


KEYWORDS: dict[str, dict[str, Any]] = {
    "strict": {},
    "standard, as uid 0": {"profile": "standard", "user": 0},
    "no user namespace": {"profile": "none", "namespaces": ("net", "pid", "mnt")},
    "with egress and ports": {"egress": nsbox.Allow(":443"), "publish": ["8080:80", 53]},
}


def none_is_left(net: nsbox.Network, rules: str) -> None:
    assert later.settle(scaled(10))
    assert net.leases == ()
    assert world.host.run("nft", "list", "ruleset") == rules
    assert net.hosts is not None
    with open(net.hosts.path) as file:
        members = [line for line in file if line.startswith("10.")]
    assert members == []
    assert links_of(net) == []


def links_of(net: nsbox.Network) -> list[rtnl.Link]:
    """Ports of its bridge."""
    return [link for link in net._route.links() if link.master == net.link.index]


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYWORDS)
@elsewhere
def test_a_failure_at_any_step_of_a_sandbox_leaves_no_place(name: str) -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        spec = sandbox.build_spec(["/usr/bin/true"], {**KEYWORDS[name], "net": net})
        _launch(spec, process.Injection())
        assert later.settle(scaled(10))
        rules, site = world.host.run("nft", "list", "ruleset"), Site()
        with contextlib.closing(net.identify(spec)) as who:
            plan = sandbox.plan_for(who.furnish(spec), probe.host())
        assert "net" in {step.source for step in plan.steps}

        def attempt(injection: process.Injection) -> None:
            try:
                _launch(spec, injection)
            finally:
                none_is_left(net, rules)

        wrong = _fail_each(plan, attempt, site)
        assert not wrong, "\n".join(wrong)
        with idle("after", net, publish="8080:80") as box:
            assert f"{box.ip}\tafter" in output(box, "cat", "/etc/hosts")


@elsewhere
def test_a_failure_at_any_step_of_pause_leaves_no_place() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        spec = sandbox.build_spec(["pause"], {"init": False, "profile": "standard", "net": net,
                                              "publish": "8080:80"})  # fmt: skip
        plan = compiler.compile_pause(spec, probe.host())

        def attempt(injection: process.Injection) -> None:
            stdio = {Slot("stdio", n): process.dev_null() for n in range(3)}
            try:
                with contextlib.closing(net.identify(spec, "web")) as who:
                    spawn(plan, stdio, inject=injection, lease=lambda: net.lease(spec, who)).close()
            finally:
                none_is_left(net, rules)

        rules = world.host.run("nft", "list", "ruleset")
        attempt(process.Injection())
        wrong = _fail_each(plan, attempt, Site())
        assert not wrong, "\n".join(wrong)


def each_call_fails(
    owner: Any, name: str, error: Exception, start: Callable[[], process.Process]
) -> list[Exception]:
    """What *start* raises with the first call of a function failing, then with the second, and so
    on; what undoes it is not to fail."""
    real = getattr(owner, name)
    told = []
    for failing in range(1, 30):
        calls = itertools.count(1)

        def counted(*args: Any, failing: int = failing, calls: Any = calls, **words: Any) -> Any:
            if next(calls) == failing:
                setattr(owner, name, real)
                raise error
            return real(*args, **words)

        setattr(owner, name, counted)
        try:
            started = start()
        except Exception as e:
            told.append(e)
        else:
            setattr(owner, name, real)
            started.close()
            return told
    raise AssertionError(f"{name} is called again and again")


@elsewhere
def test_what_the_kernel_refuses_of_a_place_is_told_and_undone() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        keywords = {"net": net, "egress": nsbox.Allow(":443"), "publish": "8080:80"}
        spec = sandbox.build_spec(["/usr/bin/true"], {**keywords, "hostname": "box"})
        _launch(spec, process.Injection())
        assert later.settle(scaled(10))
        rules, site = world.host.run("nft", "list", "ruleset"), Site()

        def start() -> process.Process:
            try:
                return sandbox.launch(spec, connect(DEVNULL, DEVNULL, DEVNULL))
            except BaseException:
                none_is_left(net, rules)
                site.check("a start that failed")
                raise

        refused = NetworkError(errno.ENOBUFS, "link add", "no room")
        told = each_call_fails(rtnl.Rtnl, "do", refused, start)
        assert len(told) == 2  # from without, and from within
        for error in told:
            assert isinstance(error, SetupError), error
            assert (error.field, error.errno, error.name) == ("net", errno.ENOBUFS, "network")
            assert "link add" in error.hint
        told = each_call_fails(nft, "transact", OSError(errno.EPERM, "no rules"), start)
        assert [type(one) for one in told] == [NetworkError, SetupError]
        assert "publish of nsb0" in str(told[0])
        assert getattr(told[1], "field", "") in ("net", "egress")
        assert "egress rules" in getattr(told[1], "hint", "")
        # As an interrupt would, while the process is being made.
        told = each_call_fails(rtnl, "veth_add", MemoryError("no more"), start)
        assert [type(one) for one in told] == [MemoryError]
        with idle("a", net, publish="8080:80") as a:
            assert pings(a, net.gateway)


@elsewhere
def test_a_program_that_is_not_there_costs_no_place() -> None:
    with nsbox.Network("nsb0", subnet="10.77.0.0/30") as net:
        rules = world.host.run("nft", "list", "ruleset")
        for _ in range(3):
            with raises(nsbox.CommandNotFound):
                nsbox.run(["/nowhere"], net=net, publish="8080:80")
            none_is_left(net, rules)
