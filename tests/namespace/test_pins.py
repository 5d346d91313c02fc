# SPDX-License-Identifier: Apache-2.0
"""Pins: namespaces that a file holds, as ip-netns(8) has them, and what becomes of them."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of kit.PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import functools
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from namespace.kit import PRELUDE, apart
from support import rounds, scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kernel


def elsewhere(test: Callable[[], None]) -> Callable[[], None]:
    @pytest.mark.root
    @functools.wraps(test)
    def wrapper() -> None:
        if "ip" in test.__code__.co_names and not shutil.which("ip"):
            pytest.fail("ip (iproute2) is not installed")
        apart(test, f"{PRELUDE}\nrounds, longest = {rounds(40)}, {scaled(0.005)}\n")

    return wrapper


@elsewhere
def test_a_name_is_one_of_ip_netns() -> None:
    with nsbox.Namespace.create("net", pin="nsbone") as net:
        assert "nsbone" in ip("netns", "list")
        inside = ip("netns", "exec", "nsbone", "readlink", "/proc/self/ns/net")
        assert inside == f"net:[{net.id}]\n"
        assert nsbox.Namespace.open("nsbone") == net
        assert nsbox.Namespace.open("/run/netns/nsbone", "net") == net
        assert nsbox.Namespace.open(b"nsbone") == net
        assert net.pin(b"nsbytes") == "/run/netns/nsbytes"
    assert "nsbone" not in ip("netns", "list")
    assert os.listdir("/run/netns") == []


@elsewhere
def test_what_ip_netns_made_is_opened_by_its_name() -> None:
    ip("netns", "add", "nsbtwo")
    with nsbox.Namespace.open("nsbtwo") as net:
        assert net.kind == "net"
        said = net.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True)
        assert said.stdout == f"net:[{net.id}]\n"
        info = next(i for i in nsbox.namespaces() if i.id == net.id)
        assert (info.processes, info.pid, info.pins) == (0, 0, ("/run/netns/nsbtwo",))
        assert info.holders == (os.getpid(),)
    ip("netns", "del", "nsbtwo")


@elsewhere
def test_ip_netns_may_delete_it_first() -> None:
    with nsbox.Namespace.create("net", pin="nsbone") as net:
        ip("netns", "del", "nsbone")
        net.unpin()
        net.unpin()
        net.pin("nsbone")  # the name is free again
        ip("netns", "del", "nsbone")
        ip("netns", "add", "nsbone")  # and now somebody else's: it is left alone
    assert "nsbone" in ip("netns", "list")
    ip("netns", "del", "nsbone")


@elsewhere
def test_a_name_or_a_file_that_exists_is_an_error_and_is_left_alone() -> None:
    ip("netns", "add", "nsbone")
    before = os.stat("/run/netns/nsbone").st_ino
    Path("/run/file").write_text("x")
    for where in ("nsbone", "/run/file"):
        with pytest.raises(FileExistsError) as caught:
            nsbox.Namespace.create("net", pin=where)
        assert caught.value.filename.endswith(where)
    assert os.stat("/run/netns/nsbone").st_ino == before
    assert Path("/run/file").read_text() == "x"
    assert [n for n in os.listdir("/run/nsbox") if n.startswith("pin")] == []
    ip("netns", "del", "nsbone")


@elsewhere
def test_every_kind_can_be_pinned_on_a_file() -> None:
    for kind in ("net", "uts", "ipc", "pid", "cgroup", "user", "time"):
        path = f"/run/{kind}"
        with nsbox.Namespace.create(kind) as ns:
            assert ns.pin(path) == path
            with nsbox.Namespace.open(path) as same:
                assert (same.kind, same) == (kind, ns)
        assert not os.path.exists(path), kind
    assert " nsfs " not in Path("/proc/self/mountinfo").read_text()


@elsewhere
def test_a_mount_namespace_is_pinned_or_refused_as_a_loop() -> None:
    """EINVAL: the kernel takes it for an older one, which numbers for each CPU make possible."""
    for _ in range(5):
        with nsbox.Namespace.create("mnt") as ns:
            try:
                ns.pin("/run/mnt")
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                assert nsbox.Namespace.open("/run/mnt", "mnt") == ns
        assert not os.path.exists("/run/mnt")
    assert [n for n in os.listdir("/run/nsbox") if n.startswith("pin")] == []


@elsewhere
def test_it_outlives_its_processes_and_goes_with_unpin() -> None:
    ns = nsbox.Namespace.create("uts", pin="/run/uts")
    (holder,) = ns.processes
    os.kill(holder, 9)
    other = nsbox.Namespace.open("/run/uts")
    deadline = time.monotonic() + 10
    while ns.processes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (other.id, other.processes) == (ns.id, [])
    other.run(["hostname", "pinned"], check=True)
    assert other.run(["hostname"], capture_output=True, text=True).stdout == "pinned\n"
    other.close()
    ns.close()
    assert not os.path.exists("/run/uts")


@elsewhere
def test_of_an_owner_that_was_killed_gc_undoes_it() -> None:
    code = """
import nsbox, os, signal
ns = [nsbox.Namespace.create("net", pin="nsbdead"), nsbox.Namespace.create("uts", pin="/run/dead")]
if os.fork() == 0:  # whoever inherits a lock must not keep it
    signal.pause()
os.write(1, b"ready")
signal.pause()
"""
    dead = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert os.read(dead.stdout.fileno(), 5) == b"ready"
    children = Path(f"/proc/{dead.pid}/task/{dead.pid}/children").read_text().split()
    with nsbox.Namespace.create("net", pin="nsblive"):
        assert nsbox.gc() == []  # its owner lives
        assert os.path.exists("/run/netns/nsbdead")
        dead.kill()
        dead.wait()
        dead.stdout.close()
        assert sorted(nsbox.gc()) == ["/run/dead", "/run/netns/nsbdead"]
        assert os.listdir("/run/netns") == ["nsblive"]
        assert not os.path.exists("/run/dead")
        assert nsbox.gc() == []
    for child in children:
        os.kill(int(child), 9)
    assert [n for n in os.listdir("/run/nsbox") if n.startswith("pin")] == []
    assert " nsfs " not in Path("/proc/self/mountinfo").read_text()


@elsewhere
def test_of_an_owner_killed_at_any_moment_gc_leaves_nothing() -> None:
    code = """
import nsbox, os
ns = nsbox.Namespace.current("net")
os.write(1, b"x")
while True:
    ns.pin("nsbloop")
    ns.unpin()
"""
    ip("netns", "add", "nsbother")
    for i in range(rounds):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as loop:
            os.read(loop.stdout.fileno(), 1)
            time.sleep(i / rounds * longest)
            loop.kill()
        nsbox.gc()
        assert os.listdir("/run/netns") == ["nsbother"]
        assert [n for n in os.listdir("/run/nsbox") if n.startswith("pin")] == []
    ip("netns", "del", "nsbother")


@elsewhere
def test_the_next_use_after_a_death_undoes_it_too() -> None:
    code = "import nsbox, os; n = nsbox.Namespace.create('net', pin='nsbdead')"
    code += "; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code])
    assert os.path.exists("/run/netns/nsbdead")
    nsbox.run(["true"], check=True)
    assert not os.path.exists("/run/netns/nsbdead")


@elsewhere
def test_a_pin_of_another_mount_namespace_is_left_to_it() -> None:
    code = """
import nsbox, os, signal
from nsbox import syscalls as sc
sc.unshare(sc.Clone.NEWNS)
sc.mount(None, "/", None, sc.MountFlag.REC | sc.MountFlag.PRIVATE)
ns = nsbox.Namespace.create("uts", pin="/run/other")
if os.fork() == 0:  # keeps the mount namespace, and not the lock
    os.write(1, b"%d " % os.getpid())
    signal.pause()
os.kill(os.getpid(), 9)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    other.wait()
    keeper = int(os.read(other.stdout.fileno(), 20))
    other.stdout.close()
    records = [n for n in os.listdir("/run/nsbox") if n.startswith("pin")]
    assert len(records) == 1
    assert nsbox.gc() == []
    assert [n for n in os.listdir("/run/nsbox") if n.startswith("pin")] == records
    os.kill(keeper, 9)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{keeper}") and time.monotonic() < deadline:
        time.sleep(0.01)
    nsbox.gc()
    assert [n for n in os.listdir("/run/nsbox") if n.startswith("pin")] == []


@elsewhere
def test_a_forked_child_leaves_the_pins_of_its_parent_alone() -> None:
    with nsbox.Namespace.create("uts", pin="/run/uts") as ns:
        pid = os.fork()
        if pid == 0:
            try:
                ns.close()
            except nsbox.StateError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert nsbox.Namespace.open("/run/uts") == ns


@pytest.mark.user
def test_an_ordinary_user_is_told_what_it_takes() -> None:
    path = f"/tmp/nsbox-pin-{os.getpid()}"
    with nsbox.Namespace.create("uts") as ns:
        with pytest.raises(nsbox.Unavailable) as caught:
            ns.pin(path)
        assert caught.value.feature == "pin"
    assert not os.path.exists(path)


@pytest.mark.userns
def test_a_name_is_for_networks_only() -> None:
    with nsbox.Namespace.create("uts") as ns, pytest.raises(nsbox.SpecError) as caught:
        ns.pin("name")
    assert caught.value.field == "pin"
