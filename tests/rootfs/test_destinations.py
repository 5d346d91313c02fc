# SPDX-License-Identifier: Apache-2.0
"""Where mounts go in roots as they are: links that lead nowhere, files that are there, mounts in
mounts, and what must not be written."""

from __future__ import annotations

import os
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
from run import kit

import nsbox
from nsbox import Mount, Rootfs, syscalls

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.userns, pytest.mark.kernel]


@pytest.fixture
def box(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    root = kit.busybox_root(tmp_path / "root")
    (root / "etc/motd").write_text("old\n")
    (root / "run").mkdir()
    (root / "var").mkdir()
    return root


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# -- what is read-only --------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("method", ["pivot_root", "chroot"])
@pytest.mark.parametrize("profile", ["strict", "standard", "none"])
def test_what_is_mounted_in_a_read_only_root_is_read_only_too(
    box: Path, method: str, profile: str
) -> None:
    syscalls.mount("tmpfs", box / "data", "tmpfs", data="mode=1777")
    try:
        root = Rootfs.dir(box, method=method)
        done = kit.sh("echo x > /data/x", root=root, profile=profile)
        assert "Read-only file system" in done.stderr
        assert list((box / "data").iterdir()) == []
    finally:
        syscalls.umount2(box / "data", syscalls.UmountFlag.DETACH)


@pytest.mark.parametrize("profile", ["strict", "none"])
def test_no_mount_makes_anything_in_a_read_only_root(box: Path, profile: str) -> None:
    before = names(box)
    for mount in (Mount.file("/etc/new", "x"), Mount.symlink("/etc/new", "x"),
                  Mount.tmpfs("/new"), Mount.bind("/usr", "/new")):  # fmt: skip
        with pytest.raises(nsbox.SetupError) as caught:
            kit.sh(":", root=Rootfs.dir(box), profile=profile, mounts=[mount])
        assert caught.value.field == "mounts[0]"
    assert names(box) == before


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["strict", "none"])
@pytest.mark.parametrize("kind", ["ro", "rw", "overlay"])
def test_a_file_is_over_what_is_there(box: Path, kind: str, profile: str) -> None:
    root = {"ro": Rootfs.dir(box), "rw": Rootfs.dir(box, ro=False)}.get(kind, Rootfs.overlay(box))
    before = names(box)
    if kind == "overlay" and profile == "strict" and kit.ROOT and not kit.maps_ids(box):
        pytest.skip("this file system cannot be id-mapped")
    script = "cat /etc/motd; stat -c %a /etc/motd; (echo y >> /etc/motd) 2>&1; ls / | grep ^file"
    mounts = [Mount.file("/etc/motd", "new\n", 0o644)]
    done = kit.sh(script, root=root, profile=profile, mounts=mounts)
    assert done.stdout.startswith("new\n644\n"), done
    assert done.stdout.count("\n") == 3
    assert done.changes == ()
    assert names(box) == before
    assert (box / "etc/motd").read_text() == "old\n"


def test_a_file_is_over_one_of_the_host_s() -> None:
    done = kit.sh("cat /usr/bin/env", mounts=[Mount.file("/usr/bin/env", "mine\n")])
    assert kit.out(done) == "mine"


def test_an_image_does_not_keep_the_files_of_a_run(
    box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSBOX_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "box.tar", "w") as archive:
        archive.add(box, ".")
    root = Rootfs.tar(tmp_path / "box.tar")
    for text in ("one\n", "two\n"):
        done = kit.sh("cat /etc/motd", root=root, mounts=[Mount.file("/etc/motd", text)])
        assert done.stdout == text
    assert kit.out(kit.sh("cat /etc/motd", root=root)) == "old"
    with pytest.raises(nsbox.SetupError):
        kit.sh(":", root=root, mounts=[Mount.file("/etc/token", "secret")])


def test_what_is_kept_can_be_started_again(box: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir(mode=0o700)
    if kit.ROOT and not kit.maps_ids(upper):
        pytest.skip("this file system cannot be id-mapped")
    root = Rootfs.overlay(box, upper)
    mounts = [Mount.file("/etc/new", "x\n"), Mount.symlink("/etc/link", "new")]
    for _ in range(2):
        assert kit.out(kit.sh("cat /etc/link", root=root, mounts=mounts)) == "x"
    assert (upper / "upper/etc/new").read_bytes() == b""
    with pytest.raises(nsbox.SetupError, match="EEXIST"):
        kit.sh(":", root=root, mounts=[Mount.symlink("/etc/link", "other")])


# -- links --------------------------------------------------------------------------------------


def test_a_link_that_leads_nowhere_is_followed_in_the_root(box: Path) -> None:
    (box / "var/run").symlink_to("/srv/run")
    (box / "lib").symlink_to("usr/lib")
    mounts = [
        Mount.tmpfs("/var/run"),
        Mount.file("/var/run/pid", "1\n"),
        Mount.bind("/etc/hostname", "/lib/name"),
        Mount.symlink("/var/run/link", "pid"),
    ]
    done = kit.sh("cat /srv/run/link; test -f /usr/lib/name", root=Rootfs.overlay(box),
                  mounts=mounts, profile="none")  # fmt: skip
    assert kit.out(done) == "1"
    assert done.changes == ()
    assert not os.path.exists("/srv/run")


def test_below_a_mount_nothing_is_the_root_s(box: Path) -> None:
    (box / "run/x").symlink_to("/etc")
    mounts = [Mount.tmpfs("/run"), Mount.file("/run/x/y", "deep\n")]
    done = kit.sh("cat /run/x/y; ls /etc", root=Rootfs.overlay(box), mounts=mounts, profile="none")
    assert kit.out(done).split() == ["deep", "marker", "motd"]


def test_a_read_only_root_s_tmp_is_the_sandbox_s(box: Path) -> None:
    mounts = [Mount.bind("/etc/hostname", "/tmp/a/name"), Mount.file("/tmp/f", "f\n"),
              Mount.tmpfs("/data"), Mount.bind("/usr", "/data/usr")]  # fmt: skip
    done = kit.sh("test -s /tmp/a/name; cat /tmp/f; test -d /data/usr/bin", root=Rootfs.dir(box),
                  mounts=mounts)  # fmt: skip
    assert kit.out(done) == "f"


def test_many_may_make_the_same_at_once(box: Path) -> None:
    failed: list[BaseException] = []

    def run(where: str) -> None:
        try:
            mounts = [Mount.tmpfs(where)]
            kit.sh(":", root=Rootfs.dir(box, ro=False), mounts=mounts, profile="none")
        except BaseException as e:
            failed.append(e)

    for i in range(8):
        threads = [threading.Thread(target=run, args=(f"/made/{i}/d/e/f",)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_why_a_mount_has_no_place(box: Path) -> None:
    for mount in (Mount.bind("/etc/hostname", "/etc"), Mount.file("/etc", "x"),
                  Mount.tmpfs("/etc/motd")):  # fmt: skip
        with pytest.raises(nsbox.SetupError, match="a directory can be mounted on"):
            kit.sh(":", root=Rootfs.overlay(box), mounts=[mount], profile="none")
