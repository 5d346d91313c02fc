# SPDX-License-Identifier: Apache-2.0
"""Namespaces one by one: made, entered, and shown with the same ids as lsns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import scaled

import nsbox
from nsbox import _core, launcher, probe
from nsbox.compile import compile_holder
from nsbox.keywords import make_spec
from nsbox.names import Kind
from nsbox.process import dev_null
from nsbox.slots import JOIN, Slot

KINDS = ["mnt", "net", "uts", "ipc", "pid", "cgroup", "user", "time"]
pytestmark = pytest.mark.userns


def own(kind: str) -> int:
    return os.stat(f"/proc/self/ns/{kind}").st_ino


@pytest.mark.kernel
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"a new {k} namespace is entered by run")
def test_create_and_run(kind: str) -> None:
    with nsbox.Namespace.create(kind) as ns:
        inside = ns.run(["readlink", f"/proc/self/ns/{kind}"], capture_output=True, text=True)
        assert inside.stdout == f"{kind}:[{ns.id}]\n"
        assert ns.id != own(kind)
        assert ns != nsbox.Namespace.current(kind)


def test_its_holder_has_executed_before_anybody_is_told() -> None:
    """The end of CLONE_VFORK is too early: with the launcher's memory, which is not dumpable, an
    ordinary user may not open its /proc/PID/ns."""
    spec = make_spec(["pause"], root=nsbox.Rootfs.inherit(), namespaces=["uts"], profile="none")
    with nsbox.Namespace.create("user") as user:
        joined = user.joins()
        plan = compile_holder(spec, probe.host(), join=("user",), join_map=joined.id_map)
        given = {JOIN: joined.pidfd, **{Slot("stdio", n): dev_null() for n in range(3)}}
        channel = launcher.current().submit(plan.encode(), [given[slot] for slot in plan.passed])
        kinds = []
        while Kind.STARTED not in kinds:
            told = _core.receive(channel, 1000 * int(scaled(10)))
            assert told is not None, kinds
            kinds.append(told[0].kind)
            if told[1] >= 0:
                os.close(told[1])
        os.close(channel)
    assert set(kinds) == {Kind.SPAWNED, Kind.EXECING, Kind.STARTED}


def test_an_unshared_uts_name_stays_inside() -> None:
    before = os.uname().nodename
    with nsbox.Namespace.create("uts") as ns:
        ns.run(["hostname", "nsbox-inside"], check=True)
        seen = ns.run(["hostname"], capture_output=True, text=True).stdout
    assert seen == "nsbox-inside\n"
    assert os.uname().nodename == before


def test_what_is_not_named_stays_the_callers() -> None:
    with nsbox.Namespace.create("ipc") as ns:
        out = ns.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True).stdout
    assert out == f"net:[{own('net')}]\n"


def test_a_new_network_has_only_a_loopback_that_is_up() -> None:
    with nsbox.Namespace.create("net") as ns:
        out = ns.run(["cat", "/proc/net/dev"], capture_output=True, text=True).stdout
        ping = ["python3", "-c", "import socket; s = socket.create_server(('127.0.0.1', 0)); "
                "socket.create_connection(s.getsockname())"]  # fmt: skip
        # /proc/net follows the reader's network
        assert [line.split(":")[0].strip() for line in out.splitlines()[2:]] == ["lo"]
        assert ns.run(ping).ok


def test_equality_is_of_ids() -> None:
    mine, same = nsbox.Namespace.current("net"), nsbox.Namespace.of(os.getpid(), "net")
    try:
        assert mine == same
        assert hash(mine) == hash(same)
        assert mine != nsbox.Namespace.current("mnt")
    finally:
        mine.close()
        same.close()


@pytest.mark.kernel
def test_namespaces_of_a_process_are_those_of_lsns() -> None:
    if shutil.which("lsns") is None:
        pytest.fail("lsns (util-linux) is not installed")
    with nsbox.Popen(["sleep", "60"]) as box:
        shown = subprocess.run(
            ["lsns", "-J", "-n", "-p", str(box.pid)], capture_output=True, text=True, check=True
        )
        lsns = {(row["type"], int(row["ns"])) for row in json.loads(shown.stdout)["namespaces"]}
        ours = {(info.kind, info.id) for info in nsbox.namespaces(box.pid)}
    assert ours == lsns
    assert len(ours) >= 7


def test_namespaces_lists_a_sandbox_with_its_first_process() -> None:
    with nsbox.Popen(["sleep", "60"]) as box:
        pid_ns = os.stat(f"/proc/{box.pid}/ns/pid").st_ino
        info = next(i for i in nsbox.namespaces() if i.id == pid_ns and i.kind == "pid")
    assert info.pid == box.pid
    assert info.processes == 2  # nsbox-init and sleep


def test_a_process_that_is_not_there_is_named() -> None:
    with pytest.raises(ProcessLookupError):
        nsbox.namespaces(pid=2**22 + 1)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Namespace.create("network")
    assert caught.value.field == "kind"


def test_a_created_namespace_ends_with_close() -> None:
    ns = nsbox.Namespace.create("pid")
    (holder,) = ns.processes
    ns.close()
    ns.close()
    assert not Path(f"/proc/{holder}").exists()
    with pytest.raises(nsbox.StateError):
        ns.fileno()
