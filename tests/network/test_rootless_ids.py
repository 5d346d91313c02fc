# SPDX-License-Identifier: Apache-2.0
"""With subordinate ids, networked sandboxes of an ordinary user have as many as others have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.user, pytest.mark.subuid]

SHOW = "id -u; id -G; cat /proc/self/uid_map; grep CapEff /proc/self/status"


@pytest.fixture
def net() -> Iterator[nsbox.Network]:
    with nsbox.Network(nat=False) as network:
        yield network


def said(args: list[str], **keywords: object) -> str:
    done = nsbox.run(args, capture_output=True, text=True, **keywords)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("how", [
    {"profile": "standard"}, {"profile": "standard", "user": 7, "groups": (8, 9)}, {"user": 5}, {},
], ids=["standard", "user and groups", "strict", "default"])  # fmt: skip
def test_identity_is_the_same_with_and_without_a_network(
    net: nsbox.Network, how: dict[str, object]
) -> None:
    with_it, without = (said(["sh", "-c", SHOW], net=one, **how) for one in (net, "none"))
    maps = [text.splitlines().pop(2).split() for text in (with_it, without)]
    assert maps[0][::2] == maps[1][::2], "inside, and how many"
    assert [line for i, line in enumerate(with_it.splitlines()) if i != 2] == [
        line for i, line in enumerate(without.splitlines()) if i != 2
    ]


def test_files_of_other_ids_can_be_made(net: nsbox.Network) -> None:
    script = "touch /tmp/x && chown 5:6 /tmp/x && stat -c '%u %g' /tmp/x"
    assert said(["sh", "-c", script], net=net, profile="standard") == "5 6\n"


def test_one_id_is_the_caller_s(net: nsbox.Network, tmp_path: Path) -> None:
    """Not one of the range: what it makes in a directory of the caller's is the caller's."""
    where = str(tmp_path)
    said(["touch", f"{where}/x"], net=net, mounts=[nsbox.Mount.bind(where, where, ro=False)])
    assert (tmp_path / "x").stat().st_uid == os.getuid()


def test_a_pod_s_containers_can_be_different_users(net: nsbox.Network) -> None:
    parts = [nsbox.ContainerSpec("a", ["sleep", "100"], profile="standard"),
             nsbox.ContainerSpec("b", ["sleep", "100"], user=5)]  # fmt: skip
    with nsbox.Pod("p", parts, net=net) as pod:
        found = [pod[name].exec(["id", "-u"], capture_output=True, text=True).stdout
                 for name in "ab"]  # fmt: skip
        assert found == ["0\n", "5\n"]
        with nsbox.Pod("q", parts[1:], net=pod) as other:
            done = other["b"].exec(["cat", "/proc/self/uid_map"], capture_output=True, text=True)
            assert done.stdout.split()[2] == "65536", "the user namespace that owns the network"


def test_what_runs_in_it_can_be_entered(net: nsbox.Network) -> None:
    with nsbox.Container(["sleep", "100"], net=net, profile="standard") as box:
        assert box.exec(["id", "-u"], user=7, capture_output=True, text=True).stdout == "7\n"
