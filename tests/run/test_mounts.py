# SPDX-License-Identifier: Apache-2.0
"""Mounts of a sandbox's own: what they are, what they forbid, and that the host sees none."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from run import kit

import nsbox
from nsbox import Mount, Rootfs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns
OWN_MOUNTS: dict[str, Any] = {
    "namespaces": kit.spaces("mnt"), "profile": "none", "root": Rootfs.inherit(), "init": False,
}  # fmt: skip


def options(point: str, **keywords: Any) -> set[str]:
    """The mount's own options at *point* inside, as mountinfo has them."""
    text = kit.out(kit.run("cat", "/proc/self/mountinfo", **keywords))
    (found,) = [line.split()[5] for line in text.splitlines() if line.split()[4] == point]
    return set(found.split(","))


# -- the host sees nothing (M4) -----------------------------------------------------------------


@pytest.mark.kernel
def test_a_tmpfs_mounted_inside_is_seen_inside_only(tmp_path: Path) -> None:
    before = kit.mountinfo()
    script = 'mount -t tmpfs none "$1" && echo secret > "$1/x" && cat "$1/x" && echo ok; read line'
    with nsbox.Popen(["sh", "-c", script, "sh", str(tmp_path)], stdin=nsbox.PIPE,
                     stdout=nsbox.PIPE, **OWN_MOUNTS) as process:  # fmt: skip
        assert [kit.waiting(process), kit.waiting(process)] == ["secret", "ok"]
        assert kit.mountinfo() == before
        assert list(tmp_path.iterdir()) == []
        with open(f"/proc/{process.pid}/mountinfo") as file:
            assert any(line.split()[4] == str(tmp_path) for line in file)
    assert kit.mountinfo() == before


def test_mounts_of_the_default_sandbox_leave_the_hosts_as_they_were() -> None:
    before = kit.mountinfo()
    mounts = [Mount.tmpfs("/scratch"), Mount.bind("/usr", "/also"), Mount.mqueue("/queues")]
    with nsbox.Popen(["sh", "-c", "echo ok; read line"], mounts=mounts, stdin=nsbox.PIPE,
                     stdout=nsbox.PIPE) as process:  # fmt: skip
        assert kit.waiting(process) == "ok"
        assert kit.mountinfo() == before


@pytest.mark.kernel
def test_mounts_inside_are_private() -> None:
    for keywords in ({}, {"root": Rootfs.inherit()}):
        text = kit.out(kit.run("cat", "/proc/self/mountinfo", **keywords))
        assert "shared:" not in text
        assert "master:" not in text


PROPAGATION = """
import sys, nsbox
def points(): return [line.split()[4] for line in open("/proc/self/mountinfo")]
def shared(point): return any("shared:" in line for line in open("/proc/self/mountinfo")
                              if line.split()[4] == point)
where = sys.argv[1]
assert shared(where)
before = points()
args = ["sh", "-c", "mkdir $1/sub; mount -t tmpfs none $1/sub && echo mounted", "sh", where]
done = nsbox.run(args, namespaces=["mnt"], profile="none", root=nsbox.Rootfs.inherit(),
                 init=False, capture_output=True, check=True)
assert done.stdout == b"mounted\\n"
assert points() == before, points()
done = nsbox.run(["ls", "/mnt/sub"], mounts=[nsbox.Mount.bind(where, "/mnt"),
                 nsbox.Mount.tmpfs("/mnt/sub")], check=True)
assert points() == before, points()
print("unchanged")
"""


@pytest.mark.kernel
@pytest.mark.root
def test_nothing_propagates_from_a_shared_mount(tmp_path: Path) -> None:
    """In a mount namespace where everything is shared, as systemd makes it."""
    # Private first: where the machine's own / is shared, "shared" would stay its peer.
    script = (
        'mount --make-rshared / && mount -t tmpfs -o mode=755 none "$1" && exec "$2" -c "$3" "$1"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh",
         str(tmp_path), sys.executable, PROPAGATION],
        capture_output=True, text=True, timeout=kit.PATIENCE,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("unchanged\n", "")


# -- bind ---------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_bind_is_read_only_by_default(tmp_path: Path) -> None:
    data = kit.open_directory(tmp_path / "data")
    (data / "f").write_text("hello\n")
    (data / "f").chmod(0o666)
    done = kit.sh("cat /d/f; echo x > /d/f; touch /d/new; rm -f /d/f",
                  mounts=[Mount.bind(data, "/d")])  # fmt: skip
    assert done.stdout == "hello\n"
    assert str(done.stderr).count("Read-only file system") == 3
    assert (data / "f").read_text() == "hello\n"
    assert os.listdir(data) == ["f"]


@pytest.mark.kernel
def test_a_bind_may_be_writable(tmp_path: Path) -> None:
    data = kit.open_directory(tmp_path / "data")
    done = kit.sh("echo new > /d/f && cat /d/f", mounts=[Mount.bind(data, "/d", ro=False)])
    assert kit.out(done) == "new"
    assert (data / "f").read_text() == "new\n"
    if kit.ROOT:
        assert (data / "f").stat().st_uid > 65536


@pytest.mark.kernel
@pytest.mark.parametrize("ro", [True, False], ids=["ro", "rw"])
def test_a_bind_has_no_setuid_and_no_devices(tmp_path: Path, ro: bool) -> None:
    data = kit.open_directory(tmp_path / "data")
    found = options("/d", mounts=[Mount.bind(data, "/d", ro=ro)])
    assert {"nosuid", "nodev", "ro" if ro else "rw"} <= found


@pytest.mark.root
def test_a_setuid_program_in_a_bind_gives_nothing(tmp_path: Path) -> None:
    data = kit.open_directory(tmp_path / "data")
    program = data / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    assert kit.out(kit.run("/d/id", "-u", mounts=[Mount.bind(data, "/d")])) == "1000"


@pytest.mark.kernel
@pytest.mark.parametrize("dst", ["/f", "/some/where/f"])
def test_a_bind_of_a_file(tmp_path: Path, dst: str) -> None:
    source = tmp_path / "f"
    source.write_text("one file")
    source.chmod(0o644)
    assert kit.out(kit.run("cat", dst, mounts=[Mount.bind(source, dst)])) == "one file"


def test_a_bind_into_tmp_and_over_a_file_of_etc(tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_text("mine")
    source.chmod(0o644)
    mounts = [Mount.bind(source, "/tmp/f"), Mount.bind(source, "/etc/hosts")]
    assert kit.out(kit.run("cat", "/tmp/f", "/etc/hosts", mounts=mounts)) == "minemine"


@contextmanager
def _mounted(where: Path) -> Iterator[None]:
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "nsbox-test", where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.kernel
@pytest.mark.root
@pytest.mark.parametrize("profile", ["strict", "standard", "none"])
def test_a_read_only_bind_is_read_only_in_its_submounts_too(tmp_path: Path, profile: str) -> None:
    data = kit.open_directory(tmp_path / "data")
    with _mounted(data / "sub"):
        (data / "sub/seen").write_text("")
        done = kit.sh("ls /d/sub; touch /d/sub/x", mounts=[Mount.bind(data, "/d")], profile=profile)
        assert done.stdout == "seen\n"
        assert "Read-only file system" in str(done.stderr)
        assert os.listdir(data / "sub") == ["seen"]
        assert {"ro", "nosuid", "nodev"} <= options(
            "/d/sub", mounts=[Mount.bind(data, "/d")], profile=profile
        )


@pytest.mark.root
def test_a_writable_bind_shows_its_submounts_writable(tmp_path: Path) -> None:
    data = kit.open_directory(tmp_path / "data")
    with _mounted(data / "sub"):
        mounts = [Mount.bind(data, "/d", ro=False)]
        assert kit.sh("touch /d/sub/x", mounts=mounts).ok
        assert {"nosuid", "nodev", "rw"} <= options("/d/sub", mounts=mounts)
        assert os.listdir(data / "sub") == ["x"]


@pytest.mark.kernel
def test_a_read_only_bind_cannot_be_remounted_by_root_inside(tmp_path: Path) -> None:
    data = kit.open_directory(tmp_path / "data")
    script = "mount -o remount,bind,rw /d; umount /d; touch /d/x"
    done = kit.sh(script, mounts=[Mount.bind(data, "/d")], user=0, profile="standard")
    assert not done.ok
    assert list(data.iterdir()) == []


def test_a_read_only_bind_is_refused_beside_the_capability_to_remount_it(tmp_path: Path) -> None:
    kit.open_directory(tmp_path / "d")
    keywords: dict[str, Any] = {"user": 0, "capabilities": ["SYS_ADMIN"], "profile": "standard"}
    script = "mount -o remount,bind,rw /d; echo x > /d/x"
    readonly = [Mount.bind(tmp_path / "d", "/d")]
    with pytest.raises(nsbox.Unavailable, match=r"^mounts\[0\]: ro=True cannot hold"):
        kit.sh(script, mounts=readonly, **keywords)
    done = kit.sh(script, mounts=readonly, best_effort=True, **keywords)
    assert "missing: ro=True cannot hold" in done.enforcement["mounts[0]"]
    assert (tmp_path / "d/x").exists(), "so it is right to refuse"
    done = kit.sh("true", mounts=readonly, profile="none")
    assert done.applied["read-only mounts"].startswith("not locked")


def test_a_bind_of_nothing_is_an_error_that_names_the_mount() -> None:
    mounts = [Mount.tmpfs("/a"), Mount.bind("/nonexistent", "/b")]
    with pytest.raises(nsbox.SetupError, match="/nonexistent") as caught:
        kit.run("true", mounts=mounts)
    error = caught.value
    assert (error.field, error.errno, error.call) == ("mounts[1]", 2, "open_tree")


def test_a_relative_source_counts_from_the_callers_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_text("relative")
    (tmp_path / "f").chmod(0o644)
    monkeypatch.chdir(tmp_path)
    assert kit.out(kit.run("cat", "/f", mounts=[Mount.bind("f", "/f")])) == "relative"


@pytest.mark.parametrize(
    "name", ["a,b", "a:b", "a\\b", "a b", "é", "a\nb", "=", "ro,dev"], ids=repr
)
def test_names_with_special_characters(tmp_path: Path, name: str) -> None:
    data = kit.open_directory(tmp_path / name)
    (data / "f").write_text("ok")
    (data / "f").chmod(0o644)
    assert kit.out(kit.run("cat", f"/{name}/f", mounts=[Mount.bind(data, f"/{name}")])) == "ok"


# -- tmpfs, file, symlink, proc, mqueue ---------------------------------------------------------


@pytest.mark.kernel
def test_a_tmpfs_is_full_at_its_size_in_bytes() -> None:
    mounts = [Mount.tmpfs("/scratch", size="2MiB")]
    done = kit.sh("head -c 4000000 /dev/zero > /scratch/x; stat -c %s /scratch/x", mounts=mounts)
    assert done.stdout == f"{2 << 20}\n"
    assert "No space left on device" in str(done.stderr)


@pytest.mark.kernel
def test_a_tmpfs_is_full_at_its_number_of_inodes() -> None:
    mounts = [Mount.tmpfs("/scratch", inodes=20)]
    script = "cd /scratch; i=0; while [ $i -lt 40 ] && touch f$i; do i=$((i+1)); done; ls | wc -l"
    done = kit.sh(script, mounts=mounts)
    assert int(str(done.stdout)) in range(17, 21)
    assert "No space left on device" in str(done.stderr)


@pytest.mark.kernel
def test_a_tmpfs_has_its_mode_and_may_forbid_programs() -> None:
    mounts = [Mount.tmpfs("/a", mode=0o750), Mount.tmpfs("/b", noexec=True), Mount.tmpfs("/c")]
    script = "stat -c %a /a /b; for d in b c; do cp /bin/true /$d/t; /$d/t; echo $?; done"
    assert kit.out(kit.sh(script, mounts=mounts)).split() == ["750", "1777", "126", "0"]


@pytest.mark.kernel
def test_a_file_has_its_content_and_mode() -> None:
    mounts = [
        Mount.file("/opt/tool/run", "#!/bin/sh\necho ran\n", 0o755),
        Mount.file("/etc/tool.conf", b"\0\xff"),
        Mount.file("/etc/hosts", "replaced\n"),
    ]
    script = "/opt/tool/run; stat -c %a /opt/tool/run /etc/tool.conf; cat /etc/hosts; wc -c < $1"
    done = kit.sh(script, "/etc/tool.conf", mounts=mounts)
    assert kit.out(done).split() == ["ran", "755", "644", "replaced", "2"]


def test_many_small_files_fit() -> None:
    mounts = [Mount.file(f"/many/{i}", "x") for i in range(300)]
    assert kit.out(kit.sh("ls /many | wc -l", mounts=mounts)) == "300"


def test_a_symlink_says_what_it_was_told() -> None:
    mounts = [Mount.symlink("/srv/link", "../usr/bin"), Mount.symlink("/dangling", "/no/where")]
    done = kit.sh("readlink /srv/link /dangling; test -x /srv/link/env", mounts=mounts)
    assert kit.out(done).split() == ["../usr/bin", "/no/where"]


@pytest.mark.kernel
def test_a_full_proc_where_it_was_asked_for() -> None:
    assert kit.sh("test -e /proc/cpuinfo").returncode == 1
    assert kit.sh("test -e /proc/cpuinfo", mounts=[Mount.proc()]).ok
    done = kit.sh("test -e /p/cpuinfo && test ! -e /proc/cpuinfo", mounts=[Mount.proc("/p")])
    assert done.ok


@pytest.mark.kernel
def test_message_queues_are_the_ipc_namespaces_own() -> None:
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "q = libc.mq_open(b'/ours', os.O_CREAT | os.O_RDWR, 0o600, None)\n"
        "print(q >= 0, os.listdir('/dev/mqueue'), os.listdir('/q'))"
    )
    done = kit.python(code, mounts=[Mount.mqueue("/q")], rlimits={"msgqueue": 819200})
    assert kit.out(done) == "True ['ours'] ['ours']"
    assert kit.out(kit.run("ls", "-A", "/dev/mqueue")) == ""


def test_mounts_are_made_in_order() -> None:
    mounts = [Mount.tmpfs("/a"), Mount.tmpfs("/a/b"), Mount.file("/a/b/c", "deep"),
              Mount.tmpfs("/t", size="4KiB"), Mount.bind("/usr", "/t")]  # fmt: skip
    assert kit.out(kit.sh("cat /a/b/c; test -d /t/bin", mounts=mounts)) == "deep"


# -- destinations -------------------------------------------------------------------------------


def _all_kinds(dst: str) -> list[Mount]:
    return [
        Mount.bind("/usr", dst),
        Mount.tmpfs(dst),
        Mount.file(dst, "x"),
        Mount.symlink(dst, "x"),
    ]


@pytest.mark.kernel
@pytest.mark.parametrize("kind", range(4), ids=["bind", "tmpfs", "file", "symlink"])
@pytest.mark.parametrize("ro", [True, False], ids=["ro", "rw"])
def test_a_destination_through_a_symlink_stays_inside(tmp_path: Path, kind: int, ro: bool) -> None:
    """The root's symlink leads to a directory of the host's; inside there is none of that name."""
    outside = kit.open_directory(tmp_path / "outside")
    root = kit.busybox_root(tmp_path / "root")
    (root / "link").symlink_to(outside)
    (root / "up").symlink_to("../" * 12 + str(outside)[1:])
    before = kit.mountinfo()
    for name in ("link", "up"):
        mount = _all_kinds(f"/{name}/x/y")[kind]
        if ro:
            with pytest.raises(nsbox.SetupError) as caught:
                kit.run("true", root=Rootfs.dir(root), mounts=[mount])
            assert caught.value.field == "mounts[0]"
        else:
            assert kit.run("true", root=Rootfs.dir(root, ro=False), mounts=[mount]).ok
        assert list(outside.iterdir()) == []
    assert kit.mountinfo() == before


@pytest.mark.kernel
@pytest.mark.parametrize("ro", [True, False], ids=["ro", "rw"])
def test_a_destination_through_a_symlink_lands_where_the_payload_would(
    tmp_path: Path, ro: bool
) -> None:
    """/etc exists inside and outside: what is mounted on is the one inside."""
    root = kit.busybox_root(tmp_path / "root")
    (root / "etc/nsbox-test").mkdir(mode=0o755)
    (root / "link").symlink_to("/etc")
    script = "touch /link/nsbox-test/made && ls -A /etc/nsbox-test && rm /etc/nsbox-test/made"
    done = kit.sh(script, root=Rootfs.dir(root, ro=ro), mounts=[Mount.tmpfs("/link/nsbox-test")])
    assert kit.out(done) == "made"
    assert not os.path.exists("/etc/nsbox-test")


def test_a_writable_root_gets_the_mount_points_that_are_missing(tmp_path: Path) -> None:
    root = kit.busybox_root(tmp_path / "root")
    root.chmod(0o777)  # the root of the sandbox's user namespace is another user
    mounts = [Mount.tmpfs("/new/place"), Mount.file("/other/f", "x")]
    assert (
        kit.out(kit.run("cat", "/other/f", root=Rootfs.dir(root, ro=False), mounts=mounts)) == "x"
    )
    assert (root / "new/place").is_dir()
    with pytest.raises(nsbox.SetupError, match="ro=False"):
        kit.run("true", root=Rootfs.dir(root), mounts=[Mount.tmpfs("/not/there")])


def test_what_lies_below_a_read_only_mount_cannot_be_made() -> None:
    with pytest.raises(nsbox.SetupError) as caught:
        kit.run("true", mounts=[Mount.tmpfs("/usr/nsbox-test")])
    assert caught.value.field == "mounts[0]"
    assert not os.path.exists("/usr/nsbox-test")


@pytest.mark.parametrize(
    "mount", [Mount.tmpfs("/"), Mount.bind("/usr", "/")], ids=["tmpfs", "bind"]
)
def test_a_destination_that_is_the_root_is_refused(mount: Mount) -> None:
    with pytest.raises(nsbox.SpecError):
        kit.run("true", mounts=[mount])


def test_more_binds_than_a_plan_holds_is_an_error_of_mounts() -> None:
    mounts = [Mount.bind("/usr", f"/b{i}") for i in range(300)]
    with pytest.raises(nsbox.NsboxError) as caught:
        kit.run("true", mounts=mounts)
    assert "mounts" in str(getattr(caught.value, "field", ""))


@pytest.mark.kernel
def test_a_hundred_binds() -> None:
    mounts = [Mount.bind("/usr", f"/binds/{i}") for i in range(100)]
    assert kit.out(kit.sh("ls /binds | wc -l", mounts=mounts)) == "100"


def test_mounts_need_a_mount_namespace() -> None:
    with pytest.raises(nsbox.SpecError, match="mnt"):
        nsbox.run(["true"], mounts=[Mount.tmpfs("/a")], namespaces=kit.spaces("pid"))
