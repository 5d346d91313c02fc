# SPDX-License-Identifier: Apache-2.0
"""Maps of a user namespace that the caller says line by line, and who may write them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import nsbox
from nsbox import probe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.userns, pytest.mark.kernel]

ROOT = os.geteuid() == 0
OWN: dict[str, Any] = {"uid_map": [(7, os.geteuid(), 1)], "gid_map": [(8, os.getegid(), 1)]}


def inside(ns: nsbox.Namespace, *args: str) -> list[str]:
    return str(ns.run(list(args), capture_output=True, text=True, check=True).stdout).split()


def test_the_own_id_can_be_any_inside() -> None:
    with nsbox.Namespace.create("user", **OWN) as ns:
        assert inside(ns, "id", "-u") == ["7"]
        assert inside(ns, "id", "-g") == ["8"]
        assert inside(ns, "cat", "/proc/self/uid_map") == ["7", str(os.geteuid()), "1"]


@pytest.mark.root
def test_ranges_as_they_are_given() -> None:
    lines = [(0, 200000, 10), (1000, 300000, 5)]
    with nsbox.Namespace.create("user", uid_map=lines, gid_map=[(0, 200000, 10)]) as ns:
        words = inside(ns, "cat", "/proc/self/uid_map", "/proc/self/gid_map")
        assert words == ["0", "200000", "10", "1000", "300000", "5", "0", "200000", "10"]
        assert inside(ns, "id", "-u") == ["0"]
        (holder,) = ns.processes
        assert os.stat(f"/proc/{holder}/ns/user").st_ino == ns.id


@pytest.mark.root
def test_without_a_0_inside_a_command_is_the_lowest() -> None:
    maps = [(50, 200050, 10)]
    with nsbox.Namespace.create("user", uid_map=maps, gid_map=maps) as ns:
        assert inside(ns, "id", "-u") == ["50"]


@pytest.mark.user
@pytest.mark.subuid
def test_an_ordinary_user_maps_its_subordinate_range() -> None:
    uids = probe.subordinate_range("/etc/subuid", os.geteuid())
    gids = probe.subordinate_range("/etc/subgid", os.geteuid())
    assert uids
    assert gids
    lines = [(0, os.geteuid(), 1), (1, uids[0], 100)]
    with nsbox.Namespace.create("user", uid_map=lines, gid_map=[(0, gids[0], 100)]) as ns:
        assert inside(ns, "cat", "/proc/self/uid_map")[3:] == ["1", str(uids[0]), "100"]


@pytest.mark.user
@pytest.mark.subuid
def test_a_range_that_is_somebody_elses_is_refused_by_the_helper() -> None:
    maps = [(0, 3000000000, 10)]
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.Namespace.create("user", uid_map=maps, gid_map=maps)
    assert caught.value.field == "uid_map"
    assert "newgidmap" in str(caught.value) or "newuidmap" in str(caught.value)


@pytest.mark.user
@pytest.mark.subuid
def test_a_helper_in_path_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes maps with root's privilege: what is found by name is anybody's."""
    tmp_path.chmod(0o755)
    trace = tmp_path / "was-run"
    for name in ("newuidmap", "newgidmap"):
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\necho {name} >> {trace}\nexit 0\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert os.system("newuidmap") == 0
    assert trace.read_text() == "newuidmap\n", "the control: by name it would be found"
    trace.unlink()
    nsbox.run(["true"], profile="standard", check=True)
    uids = probe.subordinate_range("/etc/subuid", os.geteuid())
    gids = probe.subordinate_range("/etc/subgid", os.geteuid())
    assert uids
    assert gids
    with nsbox.Namespace.create("user", uid_map=[(0, uids[0], 9)], gid_map=[(0, gids[0], 9)]) as ns:
        assert inside(ns, "id", "-u") == ["0"]
    assert not trace.exists()


@pytest.mark.user
def test_without_a_helper_only_the_own_id_can_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "helper", lambda name: None)
    probe.host(cached=False)
    try:
        with pytest.raises(nsbox.Unavailable) as caught:
            nsbox.Namespace.create("user", uid_map=[(0, 100000, 9)], gid_map=[(0, 100000, 9)])
        assert "uidmap" in caught.value.hint
        nsbox.Namespace.create("user", **OWN).close()
    finally:
        monkeypatch.undo()
        probe.host(cached=False)


LINE = [(0, 1000, 1)]


@pytest.mark.parametrize(
    ("uid_map", "gid_map", "field"),
    [
        pytest.param(LINE, None, "gid_map", id="one of both"),
        pytest.param(None, LINE, "uid_map", id="the other of both"),
        pytest.param([], LINE, "uid_map", id="no line"),
        pytest.param(5, LINE, "uid_map", id="a number"),
        pytest.param([5], LINE, "uid_map", id="a number in it"),
        pytest.param([(0, 0)], LINE, "uid_map[0]", id="two numbers"),
        pytest.param([(0, 0, 0)], LINE, "uid_map[0]", id="none"),
        pytest.param([(-1, 0, 1)], LINE, "uid_map[0]", id="negative"),
        pytest.param([(0, "0", 1)], LINE, "uid_map[0]", id="text"),
        pytest.param(LINE, [(0, 2**32 - 1, 1)], "gid_map[0]", id="no such id"),
        pytest.param(LINE, [(0, 0, 2**32)], "gid_map[0]", id="more than there are"),
        pytest.param([(0, 10, 5), (4, 20, 5)], LINE, "uid_map", id="twice inside"),
        pytest.param([(0, 10, 5), (10, 14, 5)], LINE, "uid_map", id="twice outside"),
        pytest.param([(i, i, 1) for i in range(341)], LINE, "uid_map", id="too many lines"),
    ],
)
def test_a_wrong_line_is_named(uid_map: Any, gid_map: Any, field: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Namespace.create("user", uid_map=uid_map, gid_map=gid_map)
    assert caught.value.field == field


def test_maps_are_of_user_namespaces() -> None:
    with pytest.raises(nsbox.SpecError):
        nsbox.Namespace.create("net", **OWN)


@pytest.mark.user
@pytest.mark.subuid
def test_ids_that_are_not_the_callers_are_refused_with_those_that_are() -> None:
    given = probe.subordinate_range("/etc/subuid", os.geteuid())
    assert given is not None
    with pytest.raises(nsbox.SetupError, match="newuidmap") as caught:
        nsbox.Namespace.create("user", uid_map=[(0, 5, 9)], gid_map=[(0, 5, 9)])
    assert "/etc/subuid" in caught.value.hint
    assert f"{given[0]}-{sum(given) - 1}" in caught.value.hint
