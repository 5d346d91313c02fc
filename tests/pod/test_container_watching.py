# SPDX-License-Identifier: Apache-2.0
"""Looking at containers: their log by stream and line by line, their processes, their events."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
from typing import TYPE_CHECKING

import pytest
from pod.kit import namespace_ids, sleeper, wait_log
from support import poll_until, scaled

import nsbox
from nsbox import lifecycle

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.userns
PATIENCE = scaled(15)

# -- logs ---------------------------------------------------------------------------------------


def test_each_stream_by_itself() -> None:
    with nsbox.Container(["sh", "-c", "echo out; echo err >&2; echo more"]) as container:
        container.wait(PATIENCE)
    assert container.logs("stdout") == "out\nmore\n"
    assert container.logs("stderr") == "err\n"
    assert len(container.logs()) == len("out\nerr\nmore\n")


@pytest.mark.parametrize(("tail", "shown"), [(0, ""), (1, "5\n"), (2, "4\n5\n"), (9, None)])
def test_the_last_lines(tail: int, shown: str | None) -> None:
    with nsbox.Container(["seq", "5"]) as container:
        container.wait(PATIENCE)
    assert container.logs(tail=tail) == ("1\n2\n3\n4\n5\n" if shown is None else shown)


@pytest.mark.parametrize("keywords", [{"stream": "out"}, {"tail": -1}, {"tail": "2"}])
def test_what_is_no_stream_and_no_number_is_refused(keywords: dict[str, object]) -> None:
    container = nsbox.Container(["true"])
    with pytest.raises(nsbox.SpecError):
        container.logs(**keywords)  # type: ignore[arg-type]
    with pytest.raises(nsbox.SpecError):
        container.follow(**keywords)  # type: ignore[arg-type]


def test_following_gives_what_was_and_what_comes_and_ends_with_it() -> None:
    script = "echo one; sleep 0.2; echo two; sleep 0.2; echo three >&2"
    with nsbox.Container(["sh", "-c", script]) as container:
        wait_log(container, "one")
        pieces = list(container.follow())
        assert "".join(pieces) == "one\ntwo\nthree\n"
        assert len(pieces) > 1
        assert list(container.follow("stderr")) == ["three\n"]  # after the end, too


def test_following_begins_with_the_last_lines_only() -> None:
    with nsbox.Container(["sh", "-c", "seq 5; sleep 0.2; echo end"]) as container:
        wait_log(container, "5\n")
        assert "".join(container.follow(tail=1)) == "5\nend\n"


def test_following_can_end_before_it() -> None:
    with nsbox.Container(["sh", "-c", "echo one; sleep 1000"]) as container:
        wait_log(container, "one")
        begin = time.monotonic()
        assert list(container.follow(timeout=0.2)) == ["one\n"]
        assert time.monotonic() - begin >= 0.2


def test_a_letter_that_comes_in_two_pieces_is_whole() -> None:
    script = "printf '\\303'; sleep 0.2; printf '\\244'"
    with nsbox.Container(["sh", "-c", script]) as container:
        assert "".join(container.follow()) == "ä"


def test_one_that_never_ran_has_nothing_to_follow_once_it_is_closed() -> None:
    container = nsbox.Container(["true"])
    container.close()
    assert list(container.follow()) == []


def test_several_follow_at_once() -> None:
    got: list[str] = []
    with nsbox.Container(["sh", "-c", "seq 3; sleep 0.2; seq 4 6"]) as container:
        readers = [
            threading.Thread(target=lambda: got.append("".join(container.follow())))
            for _ in range(4)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(PATIENCE)
    assert got == ["1\n2\n3\n4\n5\n6\n"] * 4


def test_a_slow_reader_misses_what_was_dropped_and_goes_on() -> None:
    script = "echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end"
    with nsbox.Container(["sh", "-c", script]) as container:
        following = container.follow()
        next(following)
        container.wait(PATIENCE)
        rest = "".join(following)
    assert rest.endswith("x\nend\n")
    assert len(rest) <= 1 << 20


# -- processes ----------------------------------------------------------------------------------


def test_everything_inside_is_listed_and_nothing_else() -> None:
    script = "sleep 1000 & setsid sleep 1001 & echo ready; wait"
    with nsbox.Container(["sh", "-c", script]) as container:
        wait_log(container, "ready")
        poll_until(
            lambda: [p.command for p in container.processes()].count("sleep") == 2, 5, what="two"
        )
        found = container.processes()
        first = found[0]
        assert (first.pid, first.nspid, first.command) == (container.pid, 1, "sh")
        assert first.args == ("sh", "-c", script)
        assert sorted(p.args for p in found[1:]) == [("sleep", "1000"), ("sleep", "1001")]
        for one in found:
            assert one.uid == os.stat(f"/proc/{one.pid}").st_uid
            assert namespace_ids(one.pid)["pid"] == container.namespaces["pid"]
            assert one.state in "RSD"
            assert one.cpu < 1
        assert {p.parent for p in found[1:]} == {container.pid}
        assert sorted(p.nspid for p in found)[0] == 1
    assert container.processes() == []


def test_a_zombie_and_a_name_with_brackets_are_listed() -> None:
    code = (
        "import ctypes, os, time\n"
        "ctypes.CDLL(None).prctl(15, b') R (x\\n', 0, 0, 0)\n"
        "pid = os.fork() or os._exit(0)\nprint('ready', flush=True)\ntime.sleep(1000)"
    )
    args = ["/usr/bin/python3", "-I", "-S", "-c", code]
    with nsbox.Container(args) as container:
        wait_log(container, "ready")
        first, second = poll_until(
            lambda: len(p := container.processes()) == 2 and p[1].state == "Z" and p, 5
        )
        assert (first.command, first.parent > 0) == (") R (x\n", True)
        assert first.state in "RS"
        assert (second.args, second.parent) == ((), first.pid)


def test_members_of_a_nested_pid_namespace_are_listed() -> None:
    args = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "sleep", "1000"]
    with nsbox.Container(args, profile="standard") as container:
        found = poll_until(
            lambda: [p for p in container.processes() if p.command == "sleep"], 5, what="sleep"
        )
        assert found[0].nspid == 1
        assert container.nspid == 1
        assert found[0].pid != container.pid


# -- events -------------------------------------------------------------------------------------


def happened(events: nsbox.Events, last: str) -> list[str]:
    """What was heard up to *last*."""
    found = []
    while not found or found[-1].split()[2] != last:
        event = events.get(PATIENCE)
        assert event is not None, found
        found.append(str(event))
    return found


def test_the_life_of_a_container() -> None:
    with nsbox.events() as events:
        with nsbox.Container(["sh", "-c", "exit 3"], name="a") as container:
            pid = container.pid
            container.wait(PATIENCE)
        created, started, died = (events.get(PATIENCE) for _ in range(3))
        assert events.get(0) is None
    assert created is not None
    assert started is not None
    assert died is not None
    assert [e.what for e in (created, started, died)] == ["created", "started", "died"]
    assert (started.kind, started.name, started.pod) == ("container", "a", "")
    assert died.detail == "exited 3"
    assert pid is None or started.pid == pid
    assert abs(died.time - time.time()) < 60


def test_an_end_by_force_and_one_by_a_limit() -> None:
    with nsbox.events() as events:
        with nsbox.Container(["sleep", "1000"], name="a") as container:
            container.kill()
            container.wait(PATIENCE)
        assert happened(events, "died")[2:] == [
            "container a killed",
            "container a died signaled -9",
        ]
        limits = nsbox.Limits(wall=0.1)
        with nsbox.Container(["sleep", "1000"], name="b", limits=limits) as container:
            container.wait(PATIENCE)
        expected = ["container b killed wall", "container b died timeout -9"]
        assert happened(events, "died")[2:] == expected


@pytest.mark.cgroup
def test_running_out_of_memory_is_told() -> None:
    limits = nsbox.Limits(memory="32MiB")
    args = ["/usr/bin/python3", "-I", "-S", "-c", "bytearray(100 << 20)"]
    with nsbox.events() as events:
        with nsbox.Container(args, name="a", limits=limits) as container:
            container.wait(PATIENCE)
        assert happened(events, "died")[-2:] == ["container a oom", "container a died oom -9"]


def test_the_end_of_one_that_could_not_start_is_told() -> None:
    with nsbox.events() as events:
        container = nsbox.Container(["/no/such"], name="a")
        with pytest.raises(nsbox.CommandNotFound) as caught:
            container.start()
        container.close()
        heard = [str(event) for event in iter(lambda: events.get(0), None)]
    assert heard == ["container a created", f"container a died failed: {caught.value}"]


def test_the_end_of_one_that_was_never_started_is_told_once() -> None:
    with nsbox.events() as events:
        container = nsbox.Container(["true"], name="a")
        container.close()
        container.close()
        heard = [str(event) for event in iter(lambda: events.get(0), None)]
    assert heard == ["container a created", "container a died never started"]


def test_nobody_waits_for_the_log_of_one_whose_root_has_gone(tmp_path: Path) -> None:
    """What is checked at the start again ends what it wrote, too: nothing."""
    root = tmp_path / "root"
    root.mkdir()
    container = nsbox.Container(["true"], root=root, name="a")
    root.rmdir()
    with nsbox.events() as events:
        with pytest.raises((nsbox.SpecError, nsbox.SetupError)):
            container.start()
        event = events.get(0)
    assert event is not None
    assert str(event).startswith("container a died failed: ")
    assert list(container.follow(timeout=PATIENCE)) == []


def test_who_listens_says_how_it_is() -> None:
    events = nsbox.events()
    lifecycle.emit("started", "container", "a")
    assert repr(events) == "<nsbox.Events listening, 1 waiting>"
    events.close()
    assert repr(events) == "<nsbox.Events closed, 1 waiting>"
    with nsbox.events() as events:
        for number in range(lifecycle.MOST + 10):
            lifecycle.emit("started", "container", str(number))
        assert repr(events) == "<nsbox.Events listening, 1024 waiting, 10 dropped>"


def test_who_listens_and_is_forgotten_warns_and_hears_no_more() -> None:
    before = len(lifecycle._listeners)
    events = nsbox.events()
    assert len(lifecycle._listeners) == before + 1
    with pytest.warns(ResourceWarning, match="listening, 0 waiting> was not closed"):
        del events
    assert len(lifecycle._listeners) == before


def test_who_listens_in_a_cycle_goes_while_others_are_told() -> None:
    """The collector runs at any moment, in whatever thread: nothing waits for a lock then."""
    with nsbox.events() as others, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(200):
            events: list[object] = [nsbox.events()]
            events.append(events)
            del events
            lifecycle.emit("started", "container", "a")
            gc.collect(0)
        assert others.get(0) is not None
        gc.collect()
        assert len(lifecycle._listeners) == 1


def test_a_pod_and_its_containers_are_told_of() -> None:
    with nsbox.events() as events:
        with nsbox.Pod("web", containers=[sleeper("app")], restart_policy="Never"):
            pass
        heard = [str(event) for event in iter(lambda: events.get(0), None)]
    assert heard[:2] == ["pod web created", "container web/app created"]
    assert "container web/app started" in heard
    assert heard.index("pod web started") < heard.index("container web/app died signaled -9")
    assert heard[-1].startswith("pod web died")


def test_iterating_ends_with_close() -> None:
    events = nsbox.events()
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.extend(e.what for e in events))
    reader.start()
    with nsbox.Container(["true"]) as container:
        container.wait(PATIENCE)
    events.close()
    events.close()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert heard[:2] == ["created", "started"]


def test_who_does_not_listen_loses_the_oldest_only() -> None:
    with nsbox.events() as events:
        for number in range(lifecycle.MOST + 10):
            lifecycle.emit("started", "container", str(number))
        assert events.dropped == 10
        first = events.get(0)
        assert first is not None
        assert first.name == "10"


def test_nothing_is_made_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LifeEvent", None)  # calling it would fail
    with nsbox.Container(["true"]) as container:
        assert container.wait(PATIENCE) == 0
