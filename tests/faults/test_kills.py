# SPDX-License-Identifier: Apache-2.0
"""Whoever is killed, and whenever: no process outlives its owner, nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import select
import signal
import time
from typing import Any

import pytest
from faults import kit
from support import deadline, poll_until, probe_cgroup, scaled

import nsbox

pytestmark = pytest.mark.userns

EARLY, LATE = 15, 15  # moments before and after all sandboxes were up


class Brood:
    """Owners one after another, forked of one interpreter."""

    def __init__(self, scenario: str) -> None:
        self._nursery = kit.Owner("nursery", scenario)
        assert self._nursery.read() == "ready"

    def __enter__(self) -> Brood:
        return self

    def __exit__(self, *exc: object) -> None:
        self._nursery.__exit__(*exc)

    def start(self, word: str) -> int:
        self._nursery.write([word])
        told = [self._nursery.read(), self._nursery.read()]
        return next(line["child"] for line in told if "child" in line)

    def read(self) -> Any:
        return self._nursery.read()

    def until_ended(self, owner: int) -> list[Any]:
        """What it had said before it was killed."""
        said: list[Any] = []
        while (line := self.read()) != {"ended": owner}:
            said.append(line)
        return said


@pytest.mark.kernel
def test_an_owner_killed_while_it_spawns_leaves_nothing() -> None:
    """Stepped from the start of its launcher on: some moments are before anything exists."""
    with Brood("busy") as brood:
        for moment in range(EARLY):
            word = kit.token()
            owner = brood.start(word)
            time.sleep(scaled(0.004 * moment))
            kit.kill(owner)
            said = brood.until_ended(owner)
            up = said[0] if said else {"pids": [], "launcher": 0}
            kit.assert_dead(word, owner, up["pids"], up["launcher"])


def test_an_owner_killed_with_running_sandboxes_leaves_nothing() -> None:
    """Two threads of it spawn meanwhile, so each moment is another one of theirs."""
    choice = random.Random(7)
    with Brood("busy") as brood:
        for _ in range(LATE):
            word = kit.token()
            owner = brood.start(word)
            up = brood.read()
            assert len(up["pids"]) == 5
            time.sleep(choice.uniform(0, 0.03))
            kit.kill(owner)
            brood.until_ended(owner)
            kit.assert_dead(word, owner, up["pids"], up["launcher"])


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP, signal.SIGABRT])
def test_an_owner_that_a_signal_ends_leaves_nothing(sig: signal.Signals) -> None:
    word = kit.token()
    with kit.Owner("busy", word) as owner:
        owner.read()
        up = owner.read()
        kit.kill(owner.pid, sig)
        kit.assert_dead(word, owner.pid, up["pids"], up["launcher"])


@pytest.mark.parametrize(
    "how", ["at the end", "by os._exit", "by an exception", "held by a module"]
)
def test_the_end_of_the_interpreter_ends_its_sandboxes(how: str) -> None:
    word = kit.token()
    with kit.Owner("exits", word, how) as owner:
        up = owner.read()
        assert owner.wait() == (how == "by an exception")
        kit.assert_dead(word, owner.pid, up["pids"], up["launcher"])


def test_a_forked_child_that_lives_on_does_not_keep_its_parents_sandboxes() -> None:
    word = kit.token()
    with kit.Owner("outlived", word) as owner:
        up = owner.read()
        try:
            owner.kill()
            kit.assert_dead(word, owner.pid, up["pids"], up["launcher"])
            assert kit.alive(up["child"])
        finally:
            kit.kill(up["child"])


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("launcher_killed", id="every handle says so", marks=pytest.mark.kernel),
        pytest.param("launcher_killed_while_running", id="run raises"),
        pytest.param("launcher_killed_while_spawning", id="spawns under way raise"),
    ],
)
def test_a_killed_launcher_takes_its_sandboxes_along(scenario: str) -> None:
    kit.run_scenario(scenario, kit.token())


@pytest.mark.parametrize("seed", ["1", "2"])
def test_keyboard_interrupt_at_any_time_in_run_leaves_nothing(seed: str) -> None:
    kit.run_scenario("interrupted", kit.token(), "100", seed)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("body_raises", id="an exception in the with block ends it"),
        pytest.param("dropped", id="a dropped handle warns and ends it"),
        pytest.param("forked", id="a forked child has no part in it", marks=pytest.mark.kernel),
        pytest.param("forked_and_finalized", id="a forked child that finalizes leaves it alone"),
        pytest.param("forked_while_spawning", id="forks beside spawning threads do not hang"),
    ],
)
def test_a_handle_ends_its_sandbox_and_no_other(scenario: str) -> None:
    kit.run_scenario(scenario, kit.token())


# -- terminals --------------------------------------------------------------------------------


class Terminal:
    """A scenario in the foreground of a terminal of its own."""

    def __init__(self, *args: str) -> None:
        argv, env = kit.command(*args), kit.environment()
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
            os.execve(argv[0], argv, env)
        self._buffer = b""

    def read(self) -> Any:
        """Its next line of JSON; the terminal's echo of ^C is no line of it."""
        end = deadline(20.0)
        while b"\n" not in self._buffer:
            assert select.select([self.master], [], [], end.left)[0], "silent"
            self._buffer += os.read(self.master, 4096)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line[line.index(b"{") :])

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        kit.kill(self.pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        if self.master >= 0:
            self.hang_up()


def test_ctrl_c_interrupts_the_owner_and_ends_neither_launcher_nor_sandboxes() -> None:
    word = kit.token()
    with Terminal("terminal", word) as terminal:
        up = terminal.read()
        for n in range(3):
            assert terminal.read() == {"waiting": n}
            os.write(terminal.master, b"\x03")
            assert terminal.read() == {"running": [True, True], "launcher": True, "code": 3}
        kit.kill(terminal.pid)
        kit.assert_dead(word, terminal.pid, up["pids"], up["launcher"])


def test_a_terminal_that_hangs_up_ends_owner_and_sandboxes() -> None:
    word = kit.token()
    with Terminal("terminal", word) as terminal:
        up = terminal.read()
        terminal.hang_up()
        kit.assert_dead(word, terminal.pid, up["pids"], up["launcher"])


# -- gc ---------------------------------------------------------------------------------------


def _kill_both(owner: kit.Owner, launcher: int) -> None:
    """Owner and launcher at one time: a stopped one cannot undo anything in between."""
    kit.kill(launcher, signal.SIGSTOP)
    poll_until(lambda: kit.stat_of(launcher)[:1] == ["T"], 2.0)
    owner.kill()
    kit.kill(launcher)
    poll_until(lambda: not kit.alive(launcher), 2.0)


@pytest.mark.kernel
def test_gc_sweeps_what_owner_and_launcher_left_and_nothing_else() -> None:
    word, other = kit.token(), kit.token()
    with kit.Owner("running", other) as living, kit.Owner("running", word) as dying:
        up, kept = dying.read(), living.read()
        before = kit.remains(living.pid)
        assert len(before) >= (1 if probe_cgroup() else 3)
        _kill_both(dying, up["launcher"])
        poll_until(lambda: not [*filter(kit.alive, up["pids"])], 1.0, what="sandboxes")
        nsbox.gc()
        assert kit.remains(dying.pid) == []
        assert not kit.named(word)
        assert kit.remains(living.pid) == before
        living.write()
        assert all(living.read()["running"])
        assert all(kit.alive(pid) for pid in kept["pids"])
        assert nsbox.gc() == []  # idempotent
        assert living.wait() == 0


def test_a_launcher_killed_while_it_undoes_leaves_it_to_gc() -> None:
    """What is not undone yet is still in the registry, whatever the moment."""
    for moment in range(7):
        word = kit.token()
        with kit.Owner("running", word) as owner:
            up = owner.read()
            owner.kill()
            time.sleep(scaled(0.002 * moment))
            kit.kill(up["launcher"])
            poll_until(lambda pid=up["launcher"]: not kit.alive(pid), 2.0)
            nsbox.gc()
            kit.assert_dead(word, owner.pid, up["pids"])


@pytest.mark.cgroup
def test_gc_ends_a_payload_that_cleared_its_parent_death_signal() -> None:
    """Without owner, launcher and that signal only its cgroup tells whose it was."""
    word = kit.token()
    with kit.Owner("stubborn", word) as owner:
        up = owner.read()
        _kill_both(owner, up["launcher"])
        nsbox.gc()
        kit.assert_dead(word, owner.pid, up["pids"])


def test_the_first_spawn_of_another_owner_sweeps_too() -> None:
    word = kit.token()
    with kit.Owner("running", word) as owner:
        up = owner.read()
        _kill_both(owner, up["launcher"])
        with kit.Owner("running", kit.token()) as second:
            second.read()
            kit.assert_dead(word, owner.pid, up["pids"])
