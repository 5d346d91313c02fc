# SPDX-License-Identifier: Apache-2.0
"""namespaces() and tree(): id by id what lsns shows, and those that nobody is in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support import poll_until

import nsbox
from nsbox.namespace import NamespaceInfo, NamespaceNode, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.userns, pytest.mark.kernel]


def lsns(*args: str) -> list[dict[str, Any]]:
    """It gives up when a process ends while it looks at it: then it is asked again."""
    if shutil.which("lsns") is None:
        pytest.fail("lsns (util-linux) is not installed")

    def ask() -> str:
        done = subprocess.run(["lsns", "-J", *args], capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    shown = poll_until(ask, 30, what="lsns")
    return list(json.loads(shown)["namespaces"])


def found(kind: str, ns_id: int) -> NamespaceInfo:
    return next(i for i in nsbox.namespaces() if (i.kind, i.id) == (kind, ns_id))


def test_all_that_lsns_shows_is_here_and_a_sandbox_as_it_shows_it() -> None:
    """Others come and go on this machine: only what lsns shows before and after is compared."""
    columns = ("-o", "NS,TYPE,NPROCS,PID")
    with nsbox.Popen(["sleep", "1000"]) as box, nsbox.Namespace.create("uts"):
        ids = {i.id for i in nsbox.namespaces(os.getpid())}  # whose numbers change all the time
        own = {i.id for i in nsbox.namespaces(box.pid) if i.box == "sandbox"} - ids
        before = {int(r["ns"]): r for r in lsns(*columns)}
        ours = {i.id: i for i in nsbox.namespaces()}
        after = {int(r["ns"]): r for r in lsns(*columns)}
    assert before.keys() & after.keys() <= ours.keys()
    assert len(own) >= 5
    for n in own:
        row, info = before[n], ours[n]
        assert (row["type"], row["nprocs"], row["pid"]) == (info.kind, info.processes, info.pid)


def test_what_only_a_descriptor_holds_is_here_with_its_holder() -> None:
    with nsbox.Namespace.create("ipc") as made:
        other = nsbox.Namespace.open(f"/proc/{made.processes[0]}/ns/ipc")
    assert found("ipc", other.id).holders == (os.getpid(),)
    assert (found("ipc", other.id).processes, found("ipc", other.id).pid) == (0, 0)
    ns_id = other.id
    other.close()
    assert ns_id not in {i.id for i in nsbox.namespaces()}


def test_owner_and_parent_are_the_kernels() -> None:
    with nsbox.Popen(["sleep", "1000"]) as box:
        info = {i.kind: i for i in nsbox.namespaces(box.pid)}
    mine = {i.kind: i for i in nsbox.namespaces(os.getpid())}
    user = info["user"].id
    assert {info[kind].owner for kind in ("mnt", "pid", "ipc", "uts", "cgroup")} == {user}
    assert info["net"].owner in (user, mine["user"].id)  # or the launcher had one ready
    assert info["user"].owner == info["user"].parent == mine["user"].id
    assert info["pid"].parent == mine["pid"].id
    assert info["net"].parent == 0
    assert mine["user"].parent == 0


def test_a_container_and_a_pod_are_named() -> None:
    apps = [nsbox.ContainerSpec("app", ["sleep", "1000"])]
    with (
        nsbox.Container(["sleep", "1000"], name="mine") as box,
        nsbox.Pod("web", apps) as pod,
        nsbox.Popen(["sleep", "1000"]) as nameless,
    ):
        assert found("mnt", box.namespaces["mnt"]).box == "mine"
        assert found("pid", pod["app"].namespaces["pid"]).box == "web/app"
        assert found("net", pod["app"].namespaces["net"]).box == "web/pause"
        unnamed = os.stat(f"/proc/{nameless.pid}/ns/pid").st_ino
        assert found("pid", unnamed).box == "sandbox"
        assert found("user", os.stat("/proc/self/ns/user").st_ino).box == ""


def walk(nodes: list[NamespaceNode] | tuple[NamespaceNode, ...]) -> Iterator[NamespaceNode]:
    for node in nodes:
        yield node
        yield from walk(node.children)


def test_the_tree_has_each_once_below_its_owner() -> None:
    with nsbox.Popen(["sleep", "1000"]) as box:
        nodes = {n.info.id: n for n in walk(tree())}
        every = [n.info.id for n in walk(tree())]
        user, uts, mine = (os.stat(f"/proc/{p}/ns/{k}").st_ino for p, k in (
            (box.pid, "user"), (box.pid, "uts"), ("self", "user")))  # fmt: skip
    assert len(every) == len(set(every))
    assert uts in {child.info.id for child in nodes[user].children}
    assert user in {child.info.id for child in nodes[mine].children}
    assert nodes[uts].children == ()


def test_a_process_that_may_not_be_looked_at_is_told() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may look at all")
    with pytest.raises(PermissionError):
        nsbox.namespaces(1)
