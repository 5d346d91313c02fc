# SPDX-License-Identifier: Apache-2.0
"""Any subset of namespaces, and which process is PID 1 of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run import kit
from support import poll_until, scaled

import nsbox

pytestmark = pytest.mark.userns
SUBSETS = [
    (), *((kind,) for kind in kit.KINDS), ("mnt", "ipc"), ("pid", "mnt"), ("net", "uts", "ipc"),
    ("user", "pid"), ("user", "mnt", "net"), ("cgroup", "mnt"), kit.KINDS,
]  # fmt: skip
PAIRS = [pair for pair in itertools.combinations(kit.KINDS, 2) if pair not in SUBSETS]


def ids_inside(kinds: list[str], **keywords: Any) -> dict[str, str]:
    script = "for kind in " + " ".join(kit.KINDS) + "; do readlink /proc/self/ns/$kind; done"
    lines = kit.out(kit.sh(script, namespaces=kinds, **keywords)).split()
    return dict(zip(kit.KINDS, lines, strict=True))


def other_than_ours(ids: dict[str, str]) -> set[str]:
    return {kind for kind, identity in ids.items() if identity != kit.namespace_id(kind)}


@pytest.mark.kernel
@pytest.mark.parametrize("kinds", SUBSETS, ids=lambda kinds: "+".join(kinds) or "none")
def test_exactly_the_namespaces_that_were_asked_for_are_new(kinds: tuple[str, ...]) -> None:
    wanted = kit.spaces(*kinds)
    assert other_than_ours(ids_inside(wanted)) == set(wanted)


@pytest.mark.root
@pytest.mark.parametrize("kinds", PAIRS, ids="+".join)
def test_every_pair_of_namespaces(kinds: tuple[str, str]) -> None:
    assert other_than_ours(ids_inside(list(kinds), profile="none")) == set(kinds)


@pytest.mark.kernel
@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_default_is_all_seven(profile: str) -> None:
    script = "readlink " + " ".join(f"/proc/self/ns/{kind}" for kind in kit.KINDS)
    ids = dict(zip(kit.KINDS, kit.out(kit.sh(script, profile=profile)).split(), strict=True))
    assert other_than_ours(ids) == set(kit.KINDS)


@pytest.mark.root
def test_profile_none_shares_the_user_namespace_of_root() -> None:
    ids = kit.out(kit.run("readlink", "/proc/self/ns/user", profile="none"))
    assert ids == kit.namespace_id("user")


@pytest.mark.kernel
def test_two_sandboxes_share_nothing() -> None:
    with nsbox.Popen(["sleep", "1000"]) as one, nsbox.Popen(["sleep", "1000"]) as two:
        for kind in kit.KINDS:
            assert kit.namespace_id(kind, one.pid) != kit.namespace_id(kind, two.pid)


@pytest.mark.kernel
@pytest.mark.root
def test_what_the_launcher_has_ready_goes_to_one_sandbox() -> None:
    """And it makes the next ones, which are new."""

    def ready(launcher: int) -> set[str]:
        found = kit.held(launcher, "net", "ipc")
        return found if len(found) == 2 else set()

    seen: set[str] = set()
    expected: set[str] = set()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            popen = nsbox.Popen(["sleep", "1000"], namespaces=["net", "ipc"], profile="none",
                                init=False)  # fmt: skip
            process = stack.enter_context(popen)
            launcher = int(kit.status(Path(f"/proc/{process.pid}/status").read_text())["PPid"])
            ids = {kit.namespace_id(kind, process.pid) for kind in ("net", "ipc")}
            assert not seen & ids, "two have the same one"
            assert not expected or ids == expected
            seen |= ids
            expected = poll_until(functools.partial(ready, launcher), what="spare ones")
            assert not expected & seen, "one that is in use is ready for the next one"
            assert kit.namespace_id("ipc", launcher) == kit.namespace_id("ipc")


#: A sandbox, and then a plan for which the launcher may make namespaces ahead, which may fail.
STRANGER = """
import contextlib, sys, time, nsbox
with nsbox.Popen(["sleep", "1000"]) as process:
    keywords = {"root": nsbox.Rootfs.inherit(), "profile": "none", "init": False}
    for _ in range(3):
        with contextlib.suppress(nsbox.SetupError):  # no setgroups(2) where one id is mapped
            nsbox.run(["true"], namespaces=["net", "ipc"], **keywords)
        time.sleep(float(sys.argv[1]))  # long enough to make them
        assert process.poll() is None
    nsbox.run(["true"], check=True)
    assert process.poll() is None
"""


@pytest.mark.kernel
@pytest.mark.parametrize("own", ["", "n", "i", "ni"])
def test_a_launcher_stays_where_it_could_not_come_back(own: str) -> None:
    """Root of a user namespace that does not have the namespaces that it is in."""
    argv = ["unshare", f"-Ur{own}", sys.executable, "-c", STRANGER, str(scaled(0.05))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=scaled(60))
    assert done.returncode == 0, done.stderr


def test_the_same_ids_as_lsns() -> None:
    with nsbox.Popen(["sleep", "1000"]) as process:
        seen = subprocess.run(
            ["lsns", "-n", "-o", "TYPE,NS", "-p", str(process.pid)],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        seen_ids = dict(zip(seen[::2], seen[1::2], strict=True))
        for kind in kit.KINDS:
            assert f"{kind}:[{seen_ids[kind]}]" == kit.namespace_id(kind, process.pid)


@pytest.mark.kernel
@pytest.mark.usefixtures("each_way")
def test_net_none_has_a_loopback_that_is_up_and_nothing_else() -> None:
    script = "ls /sys/class/net 2>/dev/null; cut -d: -f1 /proc/self/net/dev | tail -n +3"
    assert kit.out(kit.sh(script, proc="full")).split() == ["lo"]
    code = (
        "import socket\nserver = socket.create_server(('127.0.0.1', 80))\n"
        "socket.create_connection(('127.0.0.1', 80), 5)\nprint('connected')"
    )
    assert kit.out(kit.python(code)) == "connected"


PING = """
import socket
ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
ping.settimeout(5)
ping.connect(("127.0.0.1", 0))
ping.send(b"\\x08" + bytes(7))
print(ping.recv(64)[0])
"""


@pytest.mark.usefixtures("each_way")
def test_ping_needs_no_privilege() -> None:
    assert kit.out(kit.python(PING)) == "0"


LO_DOWN = """
import fcntl, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0))  # SIOCSIFFLAGS
    print("down")
except PermissionError:
    print("EPERM")
"""


@pytest.mark.usefixtures("each_way")
def test_the_network_can_be_changed_by_who_has_the_capability_only() -> None:
    assert kit.out(kit.python(LO_DOWN)) == "EPERM"
    able = {"user": 0, "profile": "standard", "capabilities": ["NET_ADMIN"]}
    assert kit.out(kit.python(LO_DOWN, **able)) == "down"


@pytest.mark.root
def test_no_two_sandboxes_have_one_network() -> None:
    """The launcher makes it ahead, and gives each one away once."""
    link = ["readlink", "/proc/self/ns/net"]
    seen = [kit.out(kit.run(*link)) for _ in range(20)]
    with nsbox.Popen(["sleep", "1000"]) as one, nsbox.Popen(["sleep", "1000"]) as two:
        both = [os.readlink(f"/proc/{box.pid}/ns/net") for box in (one, two)]
    assert both[0] != both[1]
    assert kit.namespace_id("net") not in {*seen, *both}


@pytest.mark.kernel
def test_net_host_is_the_callers() -> None:
    assert kit.out(kit.run("readlink", "/proc/self/ns/net", net="host")) == kit.namespace_id("net")


# -- PID 1 --------------------------------------------------------------------------------------


def nspid(pid: int) -> list[int]:
    with open(f"/proc/{pid}/status") as file:
        return [int(number) for number in kit.status(file.read())["NSpid"].split()]


@pytest.mark.kernel
def test_without_init_the_entrypoint_is_pid_1_with_two_pids() -> None:
    with nsbox.Popen(["sh", "-c", "echo $$; read line"], init=False, stdin=nsbox.PIPE,
                     stdout=nsbox.PIPE) as process:  # fmt: skip
        assert kit.waiting(process) == "1"
        assert nspid(process.pid)[-2:] == [process.pid, 1]
        assert os.readlink(f"/proc/{process.pid}/exe") not in ("", "/memfd:nsbox-init (deleted)")


@pytest.mark.kernel
def test_with_init_the_entrypoint_is_the_child_of_pid_1() -> None:
    script = "echo $$; grep PPid /proc/self/status; cat /proc/1/comm; read line"
    with nsbox.Popen(["sh", "-c", script], stdin=nsbox.PIPE, stdout=nsbox.PIPE) as process:
        assert kit.waiting(process) == "2"
        assert kit.waiting(process).split() == ["PPid:", "2"]
        assert nspid(process.pid)[-2:] == [process.pid, 1]
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            (child,) = map(int, file.read().split())
        assert nspid(child)[-2:] == [child, 2]


@pytest.mark.kernel
def test_the_payload_sees_no_process_but_its_own() -> None:
    seen = kit.out(kit.sh("ls /proc | grep '^[0-9]*$'")).split()
    assert "1" not in seen or len(seen) <= 4
    assert all(int(pid) < 20 for pid in seen)


@pytest.mark.kernel
def test_without_a_pid_namespace_the_payload_has_one_pid() -> None:
    kinds = kit.spaces("uts")
    text = kit.out(kit.run("grep", "NSpid", "/proc/self/status", namespaces=kinds, init=False))
    assert len(text.split()) == 2


@pytest.mark.kernel
@pytest.mark.cgroup
def test_without_a_pid_namespace_the_tree_ends_with_its_cgroup() -> None:
    with nsbox.Popen(["sh", "-c", "setsid sleep 1000 & echo $!"], namespaces=kit.spaces("uts"),
                     init=False, stdout=nsbox.PIPE) as process:  # fmt: skip
        background = int(kit.waiting(process))
        assert background > 1
        process.wait(kit.PATIENCE)
    assert not os.path.exists(f"/proc/{background}/exe")


@pytest.mark.user
@pytest.mark.parametrize("kind", [kind for kind in kit.KINDS if kind != "user"])
def test_an_ordinary_user_is_told_to_add_the_user_namespace(kind: str) -> None:
    with pytest.raises(nsbox.Unavailable) as caught:
        nsbox.run(["true"], namespaces=[kind])
    assert caught.value.feature == "namespaces"
    assert any("user" in way for way in caught.value.alternatives)
