# SPDX-License-Identifier: Apache-2.0
"""Limits of disks and of the network: what is read and written in a second, and priorities."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from run import kit
from support import poll_until, scaled

import nsbox
from nsbox import Limits, Mount, cgroupfs, hierarchy, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.userns, pytest.mark.kernel]
cgroup = pytest.mark.cgroup

# -- disks --------------------------------------------------------------------------------------

WRITE = "dd if=/dev/zero of=/disk/file bs=256k count={} conv=fsync 2>&1"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a real disk that any user of a sandbox may write in."""
    candidates = [tmp_path, Path("/mnt"), Path("/var/tmp")]
    for where in candidates:
        try:
            cgroupfs.disk_of(str(where))
            path = Path(tempfile.mkdtemp(prefix="nsbox-disk-", dir=where))
        except OSError:
            continue
        path.chmod(0o777)
        for parent in tmp_path, *tmp_path.parents[:2]:
            parent.chmod(0o755)
        yield path
        shutil.rmtree(path)
        return
    pytest.skip(f"none of {', '.join(map(str, candidates))} is on a disk that one may write to")


@pytest.fixture
def io_limits(disk: Path) -> Callable[..., Limits]:
    """Limits of that disk; a skip where no io controller can be had."""
    if "io" not in probe.host().controllers:
        pytest.skip("the io controller is not delegated")
    return lambda **limits: Limits(io={disk: limits})


@cgroup
def test_writes_to_a_disk_are_slowed_down(disk: Path, io_limits: Callable[..., Limits]) -> None:
    """3 MiB at 1 MiB/s; and the same without a limit, which is what the limit is seen by."""
    mounts = [Mount.bind(disk, "/disk", ro=False)]
    slow = kit.sh(WRITE.format(12), mounts=mounts, limits=io_limits(wbps="1MiB"))
    quick = kit.sh(WRITE.format(12), mounts=mounts, limits=io_limits(wbps="1GiB"))
    assert (slow.ok, quick.ok) == (True, True), (slow, quick)
    assert slow.usage.wall > 2
    assert slow.usage.wall > quick.usage.wall + 1
    assert (slow.usage.io_write or 0) >= 3 << 20
    file = "blkio.throttle.write_bps_device" if probe.host().cgroup_version == 1 else "io.max"
    assert slow.enforcement["io"].endswith(f" {file}")


@cgroup
def test_operations_on_a_disk_are_slowed_down(disk: Path, io_limits: Callable[..., Limits]) -> None:
    mounts = [Mount.bind(disk, "/disk", ro=False)]
    write = "dd if=/dev/zero of=/disk/file bs=4k count=40 oflag=direct 2>&1"
    slow = kit.sh(write, mounts=mounts, limits=io_limits(wiops=20))
    quick = kit.sh(write, mounts=mounts, limits=io_limits(wiops=100000))
    assert (slow.ok, quick.ok) == (True, True), (slow, quick)
    assert slow.usage.wall > quick.usage.wall + 0.8


@cgroup
def test_reads_are_counted_for_each_disk(disk: Path, io_limits: Callable[..., Limits]) -> None:
    device = cgroupfs.disk_of(str(disk))
    script = f"{WRITE.format(8)}; dd if=/disk/file of=/dev/null bs=64k iflag=direct 2>&1; read x"
    with nsbox.Container(["sh", "-c", script], mounts=[Mount.bind(disk, "/disk", ro=False)],
                         limits=io_limits(rbps="1GiB"), init=True) as box:  # fmt: skip
        assert box.wait(scaled(20)) == 1  # the shell, at the end of its input
        usage = box.result().usage
    assert 2 << 20 <= (usage.io_read or 0) < 8 << 20
    assert 2 << 20 <= (usage.io_write or 0) < 8 << 20
    with nsbox.Cgroup.create() as group:
        assert device in (group.stats().disks or {device: None})


@pytest.mark.parametrize("how", ["limited", "free"])
@cgroup
def test_usage_says_what_went_to_a_disk(how: str, disk: Path) -> None:
    """Of the cgroup where it is in one of the io controller, else of getrusage(2)."""
    limits = Limits(io={disk: {"rbps": "1GiB"}}) if how == "limited" else None
    if limits is not None and "io" not in probe.host().controllers:
        pytest.skip("the io controller is not delegated")
    mounts = [Mount.bind(disk, "/disk", ro=False)]
    done = kit.sh(WRITE.format(16), mounts=mounts, limits=limits)
    assert done.ok, done
    assert 4 << 20 <= (done.usage.io_write or 0) < 6 << 20
    assert (kit.run("true").usage.io_write or 0) == 0


@cgroup
@pytest.mark.parametrize("where", ["/proc", "/nsbox/no/such/path"])
def test_a_path_that_is_on_no_disk_is_an_error(where: str) -> None:
    if "io" not in probe.host().controllers:
        pytest.skip("the io controller is not delegated")
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.run(["true"], limits=Limits(io={where: {"wbps": "1MiB"}}))
    assert caught.value.field == "limits.io"


# -- network ------------------------------------------------------------------------------------

PRIORITY = "import socket as s; print(s.socket(s.AF_INET{}, s.SOCK_DGRAM).getsockopt(1, 12))"
SEND = (
    "import socket as s\nd, r = (s.socket(s.AF_INET, s.SOCK_DGRAM) for _ in 'dr')\n"
    "r.bind(('127.0.0.1', 9))\ninput()\n"  # or each packet would be answered by ICMP
    "d.setsockopt(1, 12, 0)\nfor i in range(10): d.sendto(b'x', ('127.0.0.1', 9))\n"
    "print('sent', flush=True)\ninput()"
)


@cgroup
@pytest.mark.root
@pytest.mark.parametrize("family", ["", "6"])
def test_sockets_have_the_priority(family: str) -> None:
    code = PRIORITY.format(family)
    done = kit.python(code, limits=Limits(net_priority=12))
    assert kit.out(done) == "12"
    assert done.enforcement["net_priority"].startswith("BPF ")
    assert kit.out(kit.python(code)) == "0"


@cgroup
@pytest.mark.root
def test_a_priority_can_be_changed_while_it_runs() -> None:
    code = PRIORITY.format("").replace("print(", "input(); print(")
    with nsbox.Cgroup.create(limits=Limits(net_priority=3)) as group:
        for priority in (3, 6):
            group.update(Limits(net_priority=priority))
            args = ["/usr/bin/python3", "-ISc", code]
            with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                group.add(process.pid)
                assert process.communicate(b"\n", scaled(20))[0] == b"%d\n" % priority


@cgroup
@pytest.mark.root
@pytest.mark.parametrize("priority", [0x10014, None], ids=["priority", "none"])
def test_packets_have_the_priority_whatever_the_socket_says(priority: int | None) -> None:
    """A class of htb takes packets whose priority is its number: it counts what it was given."""
    args = ["/usr/bin/python3", "-SIc", SEND]
    with nsbox.Popen(args, stdin=nsbox.PIPE, stdout=nsbox.PIPE,
                     limits=Limits(net_priority=priority)) as box:  # fmt: skip

        def tc(words: str) -> str:
            command = ["nsenter", f"--net=/proc/{box.pid}/ns/net", "tc", *words.split()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=scaled(10),
                                  check=False)  # fmt: skip
            if done.returncode:
                pytest.skip(f"tc {words}: {done.stderr.strip()}")
            return done.stdout

        tc("qdisc add dev lo root handle 1: htb default 1")
        tc("class add dev lo parent 1: classid 1:1 htb rate 1gbit")
        tc("class add dev lo parent 1: classid 1:14 htb rate 1gbit")
        box.stdin.write(b"\n")
        assert box.stdout.readline() == b"sent\n"
        found = re.findall(r"class htb (\S+) root.*?Sent \d+ bytes (\d+) pkt",
                           tc("-s class show dev lo"), re.DOTALL)  # fmt: skip
    packets = {name: int(count) for name, count in found}
    udp, others = ("1:14", "1:1") if priority else ("1:1", "1:14")
    assert (packets[udp], packets[others]) == (10, 0)


_V1_ALONE = """
import subprocess, sys
import nsbox
from nsbox import Limits, hierarchy
from nsbox.syscalls import Clone, MountFlag, UmountFlag, mount, umount2, unshare

where = sys.argv[1]
unshare(Clone.NEWNS)
mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
while place := hierarchy.mounted().get(""):
    umount2(place.point, UmountFlag.DETACH)
if not hierarchy.mounted().keys() & {"memory", "pids", "cpu"}:
    print("skip: all controllers are those of v2 here")
    sys.exit()
mounted = "net_prio" in hierarchy.mounted()
if not mounted:
    mount("net_prio", where, "cgroup", data="net_prio")
try:
    limits = Limits(net_priority="1:20")
    code = '''
import socket as s, sys
d, r = (s.socket(s.AF_INET, s.SOCK_DGRAM) for _ in "dr")
r.bind(("127.0.0.1", 0))
r.settimeout(10)
try:
    r.setsockopt(1, 82, 1)  # SO_RCVPRIORITY, Linux 6.14
except OSError:
    print("unseen")
    sys.exit()
d.sendto(b"x", r.getsockname())
_, found, _, _ = r.recvmsg(9, 99)
print(*(int.from_bytes(data, sys.byteorder) for level, kind, data in found if kind == 12))
'''
    for asked in (limits, None):
        done = nsbox.run(["python3", "-ISc", code], net="host", limits=asked, capture_output=True,
                         text=True)
        assert done.stdout in ("unseen\\n", f"{0x10020 if asked else 0}\\n"), done
    done = nsbox.run(["true"], net="host", limits=limits)
    assert done.enforcement["net_priority"] == "cgroup v1 net_prio.ifpriomap", done
    try:
        nsbox.run(["true"], limits=limits)
    except nsbox.Unavailable as e:
        assert "initial network namespace" in str(e) and "mount -t cgroup2" in str(e), e
    else:
        sys.exit("it has a network of its own")
    with nsbox.Cgroup.create(limits=limits) as group:
        devices = open(f"{group.directories['net_prio']}/net_prio.ifpriomap").read().splitlines()
        assert devices and all(line.endswith(f" {0x10020}") for line in devices), devices
        group.update(Limits(net_priority=3))
        assert "lo 3\\n" in open(f"{group.directories['net_prio']}/net_prio.ifpriomap").read()
    unshare(Clone.NEWNET)
    try:
        nsbox.run(["true"], net="host", limits=limits)
    except nsbox.Unavailable as e:
        assert e.feature == "limits.net_priority", e
    else:
        sys.exit("its caller has a network of its own")
finally:
    if not mounted:
        umount2(where, UmountFlag.DETACH)
"""


@pytest.fixture
def net_prio(tmp_path: Path) -> Iterator[Path]:
    """Where that can be mounted. A hierarchy stays until all its groups have gone, which happens
    later, unless it is mounted and unmounted once more."""
    before = "net_prio" in hierarchy.paths_of()
    yield tmp_path
    again = f"mount -t cgroup -o net_prio net_prio {tmp_path} && umount {tmp_path}"

    def gone() -> bool:
        with contextlib.suppress(AssertionError):
            poll_until(lambda: ("net_prio" in hierarchy.paths_of()) == before, 0.5)
            return True
        subprocess.run(["unshare", "--mount", "sh", "-c", again], check=False)
        return False

    poll_until(gone, 20)


def test_net_prio_is_for_where_there_is_no_cgroup_v2() -> None:
    host = probe.host()
    assert not (host.net_prio and (host.cgroup2 or host.cgroup_version == 2))


@cgroup
@pytest.mark.root
def test_where_v1_is_alone_its_own_controller_gives_the_priority(net_prio: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _V1_ALONE, net_prio], capture_output=True,
                          text=True, timeout=scaled(60), check=False)  # fmt: skip
    if done.stdout.startswith("skip: "):
        pytest.skip(done.stdout.removeprefix("skip: "))
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.user
def test_a_priority_is_refused_to_an_ordinary_user() -> None:
    with pytest.raises(nsbox.Unavailable) as caught:
        nsbox.run(["true"], limits=Limits(net_priority=3))
    assert caught.value.feature == "limits.net_priority"
    assert kit.run("true", limits=Limits(net_priority=3), best_effort=True).ok
