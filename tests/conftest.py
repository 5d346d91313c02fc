# SPDX-License-Identifier: Apache-2.0
"""Marks that probe the machine, and a leak check around every test.

A mark says what a test needs; where the machine cannot give it the test is skipped, with the
reason. NSBOX_REQUIRE=root,userns,… turns those skips into failures, so that a machine which
should be able to run a test cannot pass by skipping it.
"""

from __future__ import annotations

import importlib
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if str(Path(__file__).parent) not in sys.path:  # import leakcheck works whatever the import mode
    sys.path.insert(0, str(Path(__file__).parent))

import support
from leakcheck import MARK, Inventory, assert_clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROBES: dict[str, Callable[[], str]] = {
    "root": support.probe_root,
    "user": support.probe_user,
    "userns": support.probe_userns,
    "subuid": support.probe_subuid,
    "cgroup": support.probe_cgroup,
    "cgroup1": support.probe_cgroup1,
    "cgroup2": support.probe_cgroup2,
    "nft": support.probe_nft,
    "pasta": lambda: support.probe_leads_out("pasta"),
    "slirp4netns": lambda: support.probe_leads_out("slirp4netns"),
}
MARKS = {
    "root": "needs to be root in the initial user namespace",
    "user": "needs to be an ordinary user",
    "userns": "needs the right to create user namespaces",
    "subuid": "needs newuidmap and a range of ids in /etc/subuid and /etc/subgid",
    "cgroup": "needs a cgroup where memory, pids and cpu limits can be written, on v1 or v2",
    "cgroup1": "needs writable cgroup v1 controllers",
    "cgroup2": "needs writable cgroup v2 controllers",
    "nft": "needs nft(8), as a witness",
    "pasta": "needs pasta(1), and /dev/net/tun for everybody",
    "slirp4netns": "needs slirp4netns(1), and /dev/net/tun for everybody",
    "kernel(user)": "depends on the kernel: also run on the other ones, there by this user alone "
    "if it is the same for both",
    "leaks_ok(reason)": "is not checked for leaks, for this reason",
    "slow": "takes more than a few seconds",
}


def pytest_configure(config: pytest.Config) -> None:
    known = {str(line).partition(":")[0] for line in config.getini("markers")}
    for name, meaning in MARKS.items():
        if name.partition("(")[0] not in {k.partition("(")[0] for k in known}:
            config.addinivalue_line("markers", f"{name}: {meaning}")
    unknown = _required() - PROBES.keys()
    if unknown:
        raise pytest.UsageError(f"NSBOX_REQUIRE: no such mark: {', '.join(sorted(unknown))}")
    # What the tests start inherits it. A run inside a run appends: the outer still sees its own.
    outer = os.environ.get(MARK, "")
    os.environ[MARK] = f"{outer}.{uuid.uuid4().hex}".lstrip(".")
    config.pluginmanager.register(LeakWatch(outer), "nsbox-leak-watch")


def _required() -> set[str]:
    return {name for name in os.environ.get("NSBOX_REQUIRE", "").split(",") if name}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers():
        probe = PROBES.get(mark.name)
        if probe is not None and (reason := probe()):
            if mark.name in _required():
                pytest.fail(f"NSBOX_REQUIRE={mark.name}, but: {reason}", pytrace=False)
            pytest.skip(f"{mark.name}: {reason}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_to_others(config, items)
    for item in items:
        mark = item.get_closest_marker("leaks_ok")
        if mark is not None and not (mark.args or mark.kwargs.get("reason")):
            raise pytest.UsageError(f"{item.nodeid}: leaks_ok needs a reason")


def _leave_to_others(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another kernel, whose runner says who runs them there: "root" or "user"."""
    me = os.environ.get("NSBOX_KERNEL_USER")
    mine: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        mark = item.get_closest_marker("kernel")
        by = mark.args if mark is not None else ()
        if not set(by) <= {"root", "user"}:
            raise pytest.UsageError(f"{item.nodeid}: kernel{by}: the users there are root and user")
        (others if me and by and me not in by else mine).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = mine


class LeakWatch:
    """Keeps the inventory that the next test starts from.

    An inventory costs milliseconds (ten times that on an emulated kernel), so the clean one after
    a test is the baseline of the next, unless a fixture of a wider scope came or went between.
    """

    def __init__(self, outer_mark: str) -> None:
        self.baseline: Inventory | None = None
        self.warm = False
        self.cold = "not tried"
        self.unseen: dict[str, str] = {}
        self._outer_mark = outer_mark
        self._failed = False

    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        if fixturedef.scope != "function":
            self.baseline = None

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        if fixturedef.scope != "function":
            self.baseline = None

    def pytest_runtest_logstart(self) -> None:
        self._failed = False

    def pytest_exception_interact(self) -> None:
        self._failed = True

    def pytest_unconfigure(self) -> None:
        os.environ.pop(MARK, None)
        if self._outer_mark:
            os.environ[MARK] = self._outer_mark

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.cold:
            terminalreporter.write_line(f"leak check: nsbox was not warm: {self.cold}")
        for kind, why in self.unseen.items():
            terminalreporter.write_line(f"leak check: {kind} not seen: {why}")
        if ignored := os.environ.get("NSBOX_LEAKS_IGNORE"):
            terminalreporter.write_line(f"leak check: NSBOX_LEAKS_IGNORE={ignored}")

    def before(self) -> Inventory:
        """The baseline of the next test: with a launcher, if there can be one."""
        baseline = self.baseline or Inventory.take()
        self.baseline = None
        if self.warm and not baseline.launchers():  # the last test ended it
            warm_up()
            baseline = Inventory.take()
        self.unseen = baseline.unseen
        return baseline

    def after(self, baseline: Inventory) -> None:
        cold = f"\nnsbox was not warm before: {self.cold}" if self.cold else ""
        leaks = ""
        try:
            clean = assert_clean(baseline, support.scaled(2.0), _drop_caches)
            # pytest stops its faulthandler thread when a test fails: not a state to start from.
            self.baseline = None if self._failed else clean
        except AssertionError as error:
            leaks = str(error)
        if leaks:
            pytest.fail(leaks + cold, pytrace=False)


def _drop_caches() -> None:
    """Templates and id maps are cached on purpose: no leak if they can be dropped."""
    for name in ("nsbox.templates", "nsbox.idmapped"):
        cache: Any = sys.modules.get(name)
        if cache is not None:
            cache.held.clear()


def warm_up() -> str:
    """Start what nsbox keeps for its owner's life; "" or why that did not work.

    That is the launcher with its registry entry, the threads of watch and of later with their
    descriptors, and the file of id slots.
    """
    try:
        nsbox: Any = importlib.import_module("nsbox")
        nsbox.run(["true"])
        watch: Any = importlib.import_module("nsbox.watch")
        watch.get()
        later: Any = importlib.import_module("nsbox.later")
        later.call(bool)
        later.settle()
        if os.geteuid() == 0:
            registry: Any = importlib.import_module("nsbox.registry")
            registry.id_slots.give(registry.id_slots.take())
    except Exception as error:  # a broken library is for its own tests to report
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.fixture(scope="session")
def warm_nsbox(request: pytest.FixtureRequest) -> None:
    """What belongs to the library, not to a test, exists before the first baseline."""
    watch = _watch(request)
    watch.cold = warm_up()
    watch.warm = not watch.cold


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, warm_nsbox: None) -> Iterator[None]:
    """Fail a test that leaves something behind."""
    if request.node.get_closest_marker("leaks_ok") is not None:
        yield
        _watch(request).baseline = None
        return
    watch = _watch(request)
    baseline = watch.before()
    yield
    watch.after(baseline)


def _watch(request: pytest.FixtureRequest) -> LeakWatch:
    watch = request.config.pluginmanager.get_plugin("nsbox-leak-watch")
    assert isinstance(watch, LeakWatch)
    return watch
