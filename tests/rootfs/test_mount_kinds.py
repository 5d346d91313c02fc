# SPDX-License-Identifier: Apache-2.0
"""Terminals, devices, propagation, id-mapped binds; and mounts while the payload races them."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import poll_until

import nsbox
from nsbox import Mount, Rootfs
from nsbox.hoststeps import MapTree
from nsbox.names import Opcode
from nsbox.slots import Slot

if TYPE_CHECKING:
    from pathlib import Path

if TYPE_CHECKING:
    from nsbox.hoststeps import IdLines

pytestmark = pytest.mark.userns
CAPABLE: dict[str, Any] = {"user": 0, "profile": "standard"}

# -- devpts and sysfs ---------------------------------------------------------------------------

PTY = """
import os
master, slave = os.openpty()
print(os.ttyname(slave), os.readlink("/dev/ptmx"), sorted(os.listdir("/dev/pts")))
os.write(slave, b"through"); print(os.read(master, 7).decode())
"""


@pytest.mark.kernel
@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_terminals_are_the_sandboxs_own(profile: str) -> None:
    done = kit.python(PTY, mounts=[Mount.devpts()], profile=profile)
    assert kit.out(done).splitlines() == ["/dev/pts/0 pts/ptmx ['0', 'ptmx']", "through"]
    assert kit.python(PTY, profile=profile).returncode != 0, "without it there are none"


def test_terminals_may_lie_elsewhere() -> None:
    assert kit.out(kit.run("ls", "/pty", mounts=[Mount.devpts("/pty")])) == "ptmx"


@pytest.mark.kernel
def test_devices_are_those_of_the_network_namespace_and_read_only() -> None:
    script = "ls /sys/class/net; touch /sys/x; echo 1 > /sys/kernel/mm/ksm/run"
    done = kit.sh(script, mounts=[Mount.sysfs()], **CAPABLE)
    assert str(done.stdout).split() == ["lo"]
    assert done.returncode != 0
    text = kit.out(kit.run("cat", "/proc/self/mountinfo", mounts=[Mount.sysfs()]))
    (options,) = [line.split()[5] for line in text.splitlines() if line.split()[4] == "/sys"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split(","))


def test_sysfs_needs_a_network_of_its_own() -> None:
    with pytest.raises(nsbox.SpecError, match="net"):
        kit.run("true", mounts=[Mount.sysfs()], net="host")


# -- propagation --------------------------------------------------------------------------------

SLAVE = """
import os, subprocess, sys, time, nsbox
where = sys.argv[1]
script = "echo ready; read line; ls /seen/sub; read line"
def mounts(propagation):
    return [nsbox.Mount.bind(where, "/seen", ro=False, propagation=propagation)]
for propagation in ("slave", "private"):
    with nsbox.Popen(["sh", "-c", script], mounts=mounts(propagation), stdin=nsbox.PIPE,
                     stdout=nsbox.PIPE, text=True, profile=sys.argv[2]) as box:
        assert box.stdout.readline() == "ready\\n"
        info = open(f"/proc/{box.pid}/mountinfo").read()
        assert "shared:" not in info
        assert ("master:" in info) == (propagation == "slave"), info
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", f"{where}/sub"],
                       check=True)
        open(where + "/sub/later", "w").close()
        print("\\n", file=box.stdin, flush=True)
        if propagation == "slave":
            assert box.stdout.readline() == "later\\n"
        box.stdin.close()
        assert box.stdout.read() == ""
    subprocess.run(["umount", where + "/sub"], check=True)
before = open("/proc/self/mountinfo").read()
done = nsbox.run(["sh", "-c", "mount -t tmpfs none /seen/sub && echo mounted"], profile="none",
                 mounts=mounts("slave"), capture_output=True, namespaces=["mnt"])
assert done.stdout == b"mounted\\n", done
assert open("/proc/self/mountinfo").read() == before, "a slave tells its master nothing"
print("as it should be")
"""


@pytest.mark.kernel
@pytest.mark.root
@pytest.mark.parametrize("profile", ["strict", "none"])
def test_a_slave_hears_of_the_hosts_mounts_and_never_the_other_way_round(
    tmp_path: Path, profile: str
) -> None:
    script = ('mount -t tmpfs -o mode=755 none "$1" && mount --make-shared "$1" && mkdir "$1/sub" '
              '&& exec "$2" -c "$3" "$1" "$4"')  # fmt: skip
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh",
         str(tmp_path), sys.executable, SLAVE, profile],
        capture_output=True, text=True, timeout=kit.PATIENCE,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("as it should be\n", "")


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"propagation": "slave"}, "ro=False"),
        ({"propagation": "slave", "ro": False, "idmap": True}, "id-mapped"),
        ({"propagation": "shared"}, "private"),
        ({"propagation": ""}, "slave"),
    ],
    ids=["read-only", "id-mapped", "shared", "empty"],
)
def test_propagation_that_cannot_be_promised_is_refused(keywords: Any, why: str) -> None:
    with pytest.raises(nsbox.SpecError, match=why) as caught:
        Mount.bind("/usr", "/u", **keywords)
    assert caught.value.field == "propagation"


# -- id-mapped binds ----------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    where = tmp_path / "data"
    where.mkdir(mode=0o700)
    (where / "f").write_text("mine\n")
    (where / "f").chmod(0o600)
    if not kit.maps_ids(where):
        pytest.skip("this file system cannot be id-mapped")
    return where


MAPPED = [
    pytest.param({}, id="strict"),
    pytest.param({"user": 1234}, id="another user"),
    pytest.param({"user": 1000, "profile": "standard", "namespaces": ["mnt"]},
                 id="no user namespace", marks=pytest.mark.root),
]  # fmt: skip


@pytest.mark.kernel
@pytest.mark.parametrize("keywords", MAPPED)
def test_what_the_caller_owns_is_the_sandboxs_users(data: Path, keywords: dict[str, Any]) -> None:
    script = "cat /d/f; id -u; stat -c %u /d/f; echo new > /d/new; chmod 640 /d/new; rm /d/f"
    mount = Mount.bind(data, "/d", ro=False, idmap=True)
    lines = kit.out(kit.sh(script, mounts=[mount], **keywords)).split()
    assert lines[0] == "mine"
    assert lines[1] == lines[2]
    assert os.listdir(data) == ["new"]
    status = (data / "new").stat()
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert stat.S_IMODE(status.st_mode) == 0o640


@pytest.mark.root
def test_without_it_a_directory_of_roots_stays_closed(data: Path) -> None:
    done = kit.run("cat", "/d/f", mounts=[Mount.bind(data, "/d", ro=False)])
    assert "Permission denied" in str(done.stderr)


@pytest.mark.root
@pytest.mark.kernel
def test_what_others_own_stays_theirs(data: Path) -> None:
    os.chown(data / "f", 4321, 4321)
    (data / "f").chmod(0o644)
    (data / "open").touch()
    (data / "open").chmod(0o666)
    os.chown(data / "open", 4321, 4321)
    mount = Mount.bind(data, "/d", ro=False, idmap=True)
    done = kit.sh("stat -c %u /d/f; echo x >> /d/open; echo x >> /d/f", mounts=[mount])
    assert done.stdout == "65534\n"
    assert done.returncode != 0
    assert (data / "f").read_text() == "mine\n"
    assert (data / "open").read_text() == "x\n", "as it would be without the map"


@pytest.mark.kernel
def test_an_id_mapped_bind_may_be_read_only(data: Path) -> None:
    done = kit.sh("cat /d/f; touch /d/x", mounts=[Mount.bind(data, "/d", idmap=True)])
    assert done.stdout == "mine\n"
    assert "Read-only file system" in str(done.stderr)


@pytest.mark.root
def test_a_file_system_that_cannot_be_id_mapped_is_an_error_that_names_it() -> None:
    with pytest.raises(nsbox.Unavailable, match="/sys/kernel cannot be id-mapped") as caught:
        kit.run("true", mounts=[Mount.bind("/sys/kernel", "/k", idmap=True)])
    assert caught.value.feature == "mounts[0]"


@pytest.mark.root
def test_an_id_mapped_bind_of_nothing_is_an_error_that_names_the_mount() -> None:
    with pytest.raises(nsbox.SetupError, match="nonexistent") as caught:
        kit.run("true", mounts=[Mount.bind("/nonexistent", "/k", idmap=True)])
    assert (caught.value.field, caught.value.errno) == ("mounts[0]", errno.ENOENT)


@pytest.mark.root
def test_an_id_mapped_bind_in_a_pod(data: Path) -> None:
    mount = Mount.bind(data, "/d", ro=False, idmap=True)
    with nsbox.Pod("p", [nsbox.ContainerSpec("a", ["sh", "-c", "cat /d/f > /d/g"], mounts=[mount])],
                   restart_policy="Never") as pod:  # fmt: skip
        pod.wait(kit.PATIENCE)
    assert (data / "g").read_text() == "mine\n"


@pytest.mark.subuid
@pytest.mark.user
def test_a_range_of_ids_has_none_of_the_callers(tmp_path: Path) -> None:
    with pytest.raises(nsbox.Unavailable, match="idmap"):
        kit.run("true", mounts=[Mount.bind(tmp_path, "/d", idmap=True)], profile="standard")


# -- a writable directory of root's as root -----------------------------------------------------


@pytest.mark.kernel
def test_mount_points_are_made_in_a_directory_of_the_callers(data: Path, tmp_path: Path) -> None:
    root = kit.busybox_root(tmp_path / "root")
    for name in ("dev", "proc", "tmp"):
        (root / name).rmdir()
    kit.open_directory(root / "data")
    mounts = [Mount.tmpfs("/new/place"), Mount.file("/other/f", "x")]
    script = "cat /other/f; echo y > /data/mine; touch /etc/x /bin/x /x"
    done = kit.sh(script, root=Rootfs.dir(root, ro=False), mounts=mounts)
    assert done.stdout == "x"
    if kit.ROOT:
        assert str(done.stderr).count("Permission denied") == 3, "the payload is not root"
        assert (root / "data/mine").stat().st_uid > 65536, "and not anybody of the host's"
    assert (root / "new/place").stat().st_uid == os.geteuid()
    assert not (root / "etc/x").exists() or not kit.ROOT


def test_a_map_with_every_other_id_as_it_is() -> None:
    def mapped(keep: bool) -> IdLines:
        lines = ((0, 1000, 1),)
        step = MapTree("/x", Slot("idmap", "x"), 0, lines, lines, keep, True, "root")
        return step.map(lines, 65536)

    assert mapped(False) == ((0, 66536, 1),)
    last = 0xFFFFFFFE
    assert mapped(True) == ((0, 66536, 1), (1, 1, 66535), (66537, 66537, last - 66536))


@pytest.mark.root
@pytest.mark.kernel
def test_root_inside_is_not_root_of_a_writable_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    root = kit.busybox_root(tmp_path / "root")
    done = kit.sh("chown 0 /etc/marker; echo x > /etc/marker", root=Rootfs.dir(root, ro=False),
                  **CAPABLE)  # fmt: skip
    assert done.returncode != 0
    assert (root / "etc/marker").read_text() == "inside\n"


# -- races and traps ----------------------------------------------------------------------------


def _exchange(a: bytes, b: bytes, stop: threading.Event) -> None:
    libc = ctypes.CDLL(None)
    while not stop.is_set():
        for _ in range(100):
            libc.renameat2(-100, a, -100, b, 2)


@pytest.mark.parametrize("kind", ["dir", "overlay"])
def test_a_mount_point_exchanged_for_a_link_is_never_mounted_on_outside(
    tmp_path: Path, kind: str
) -> None:
    """CVE-2021-30465: 300 starts, while a directory and a link to / change places."""
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this libc has no renameat2")
    tmp_path.chmod(0o755)
    outside = kit.open_directory(tmp_path / "outside")
    (outside / "b").mkdir()
    root = kit.busybox_root(tmp_path / "root")
    volume = kit.open_directory(root / "data")
    (volume / "a/b").mkdir(parents=True)
    (volume / "link").symlink_to(outside)
    stop = threading.Event()
    names = (os.fsencode(volume / "a"), os.fsencode(volume / "link"))
    attacker = threading.Thread(target=_exchange, args=(*names, stop))
    before = kit.mountinfo()
    attacker.start()
    ran = failed = 0
    try:
        for _ in range(300):
            try:
                where = Rootfs.dir(root) if kind == "dir" else Rootfs.overlay(root)
                done = kit.sh("echo x > /data/a/b/x", root=where, mounts=[Mount.tmpfs("/data/a/b")])
                ran += 1
                assert done.returncode in (0, 1, 2)
            except nsbox.SetupError:
                failed += 1
    finally:
        stop.set()
        attacker.join()
    assert kit.mountinfo() == before
    assert list(outside.rglob("*")) == [outside / "b"]
    assert ran > 5
    assert kind == "overlay" or failed > 5


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["dir", "overlay"])
def test_device_files_of_the_root_that_are_links_are_not_used(tmp_path: Path, kind: str) -> None:
    """CVE-2025-31133, CVE-2026-41579: everything in /dev is nsbox's, whatever the root has."""
    tmp_path.chmod(0o755)
    outside = kit.open_directory(tmp_path / "outside")
    (outside / "victim").write_text("untouched")
    root = kit.busybox_root(tmp_path / "root")
    for name in ("null", "shm", "pts", "mqueue", "ptmx", "console"):
        target = outside if name in ("shm", "pts", "mqueue") else outside / "victim"
        (root / "dev" / name).symlink_to(target)
    if kind == "overlay" and kit.ROOT and not kit.maps_ids(root):
        pytest.skip("this file system cannot be id-mapped")
    where = Rootfs.dir(root) if kind == "dir" else Rootfs.overlay(root)
    script = "echo x > /dev/null; test -c /dev/null && test -d /dev/shm && echo x > /dev/shm/y"
    done = kit.sh(script, root=where, mounts=[Mount.devpts()])
    assert done.ok, done
    assert (outside / "victim").read_text() == "untouched"
    assert os.listdir(outside) == ["victim"]


def test_an_overlay_is_pivoted_away_from_two_roots(tmp_path: Path) -> None:
    root = kit.busybox_root(tmp_path / "root")
    plan = nsbox.explain(["true"], root=Rootfs.overlay(root))
    (pivot,) = [step for _, step in plan.child_steps() if step.opcode is Opcode.PIVOT]
    assert pivot.n == 1  # type: ignore[union-attr]


@pytest.mark.root
def test_the_map_of_a_mount_is_kept_and_let_go(data: Path) -> None:
    from nsbox import idmapped

    mount = Mount.bind(data, "/d", idmap=True)
    for _ in range(3):
        kit.out(kit.run("true", mounts=[mount]))
    poll_until(lambda: 1 <= len(idmapped.held) <= 3)
    idmapped.held.clear()
    assert not idmapped.held
