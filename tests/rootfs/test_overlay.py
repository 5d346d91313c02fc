# SPDX-License-Identifier: Apache-2.0
"""Rootfs.overlay: the layers below are not touched, and what changed above them is told."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import poll_until

import nsbox
from nsbox import Limits, Mount, Rootfs
from nsbox.changes import Change, empty
from nsbox.images import resolve

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.userns
CAPABLE: dict[str, Any] = {"user": 0}
ALONE: dict[str, Any] = {"profile": "none"}
MODES = [
    pytest.param(CAPABLE, id="strict, root inside"),
    pytest.param({"profile": "standard"}, id="standard"),
    pytest.param(ALONE, id="none"),
    pytest.param(
        {"profile": "standard", "user": 0, "namespaces": ["mnt", "pid"]},
        id="no user namespace", marks=pytest.mark.root,
    ),
]  # fmt: skip
CHANGE = "echo new > /etc/new && echo other > /etc/marker && rm -r /data && mkdir /data /new"
CHANGED = (
    Change("modified", "/data"),
    Change("modified", "/etc/marker"),
    Change("added", "/etc/new"),
    Change("added", "/new"),
)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    root = kit.busybox_root(tmp_path / "root")
    (root / "data/one").write_text("1\n")
    (root / "data/two").write_text("2\n")
    return root


@pytest.fixture
def box(plain: Path) -> Path:
    """As root with a user namespace, nsbox has to map it to the sandbox's ids."""
    need_map(plain, {})
    return plain


def need_map(where: Path, keywords: dict[str, Any]) -> None:
    mapped = kit.ROOT and keywords != ALONE and "namespaces" not in keywords
    if mapped and not kit.maps_ids(where):
        pytest.skip("this file system cannot be id-mapped")


def listing(where: Path) -> list[tuple[str, int, int, int]]:
    found = [(str(path), path.lstat()) for path in sorted(where.rglob("*"))]
    return [(path, s.st_mode, s.st_size, s.st_mtime_ns) for path, s in found]


def mine(keywords: dict[str, Any]) -> bool:
    """Whether files of the caller's are the sandbox's root's own, so that it may change them."""
    return kit.ROOT or nsbox.explain(["true"], **keywords).id_map.by == "launcher"  # type: ignore[union-attr]


# -- what it is for -----------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("keywords", MODES)
def test_changes_are_seen_inside_told_and_not_in_the_layer_below(
    plain: Path, keywords: dict[str, Any]
) -> None:
    box = plain
    need_map(box, keywords)
    if not mine(keywords):
        pytest.skip("the layer belongs to none of the mapped ids")
    before = listing(box)
    script = f"{CHANGE}; cat /etc/new /etc/marker; ls -A /data"
    in_userns = not kit.ROOT or (keywords != ALONE and "namespaces" not in keywords)
    if in_userns and _tmpfs_has_no_user_xattrs():
        script = script.replace("rm -r /data && mkdir /data", "rm /data/* && mkdir")
    done = kit.sh(script, root=Rootfs.overlay(box), **keywords)
    assert kit.out(done) == "new\nother"
    if "rm -r" in script:
        assert done.changes == CHANGED
    assert listing(box) == before
    again = kit.sh(
        "cat /etc/marker /data/one; test ! -e /new", root=Rootfs.overlay(box), **keywords
    )
    assert kit.out(again) == "inside\n1"
    assert again.changes == ()


def _tmpfs_has_no_user_xattrs() -> bool:
    return tuple(int(n) for n in os.uname().release.split(".")[:2]) < (6, 6)


@pytest.mark.kernel
def test_the_default_user_changes_what_is_open_to_it(box: Path) -> None:
    kit.open_directory(box / "data")
    done = kit.sh("rm /data/one; echo x > /data/new; chmod 600 /data/new", root=Rootfs.overlay(box))
    assert done.ok, done
    assert done.changes == (Change("added", "/data/new"), Change("deleted", "/data/one"))
    assert (box / "data/one").read_text() == "1\n"


def test_what_set_up_makes_is_no_change_of_the_payloads(box: Path) -> None:
    (box / "tmp").rmdir()
    (box / "dev").rmdir()
    mounts = [Mount.tmpfs("/made/for/me"), Mount.file("/etc/app", "x"), Mount.bind("/usr", "/u")]
    done = kit.sh("test -d /made/for/me && cat /etc/app && touch /tmp/x /made/for/me/y",
                  root=Rootfs.overlay(box), mounts=mounts, **CAPABLE)  # fmt: skip
    assert kit.out(done) == "x"
    assert done.changes == ()


@pytest.mark.kernel
@pytest.mark.parametrize("keywords", [{}, *MODES])
def test_neither_the_old_root_nor_the_upper_directory_is_in_sight(
    plain: Path, keywords: dict[str, Any]
) -> None:
    """pivot_root stacks the old root, with the staging directory on it, over the new one."""
    box = plain
    need_map(box, keywords)
    script = "ls -A /; ls -A /..; ls -A /proc/self/cwd/.."
    names = kit.out(kit.sh(script, root=Rootfs.overlay(box), **keywords)).split()
    assert names == ["bin", "data", "dev", "etc", "proc", "tmp"] * 3
    text = kit.out(kit.run("cat", "/proc/self/mountinfo", root=Rootfs.overlay(box), **keywords))
    points = [line.split()[4] for line in text.splitlines()]
    assert points.count("/") == 1
    assert {point.split("/")[1] for point in points} <= {"", "dev", "proc", "tmp"}
    assert str(box) not in text, "no path of the host's"


@pytest.mark.kernel
def test_the_topmost_layer_wins_and_all_are_seen(tmp_path: Path, box: Path) -> None:
    layers = []
    for i in range(19):
        layer = tmp_path / f"layer{i}"
        (layer / "etc").mkdir(parents=True)
        (layer / "etc/which").write_text(f"{i}\n")
        (layer / f"etc/only{i}").touch()
        layers.append(layer)
    root = Rootfs.overlay([*layers, Rootfs.dir(box)])
    done = kit.sh("cat /etc/which /etc/marker; ls /etc | grep -c only", root=root, **CAPABLE)
    assert kit.out(done) == "0\ninside\n19"
    done = kit.sh("rm /etc/which", root=root, **CAPABLE)
    assert done.changes == (Change("deleted", "/etc/which"),)


NAMES = ["a,b", "a:b", "a\\b", "a\\:b,upperdir=/", "lowerdir=/", "a b\n", "\udcff", "x" * 200,
         "'\"$(id)", "..."]  # fmt: skip


@pytest.mark.kernel
def test_names_with_special_characters(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    need_map(tmp_path, CAPABLE)
    for name in NAMES:
        parent = tmp_path / name
        parent.mkdir(mode=0o755)
        root = kit.busybox_root(parent / name)
        upper = parent / "upper:,\\"
        upper.mkdir(mode=0o700)
        done = kit.sh("cat /etc/marker; echo x > /etc/new", root=Rootfs.overlay(root), **CAPABLE)
        assert (done.stdout, done.changes) == ("inside\n", (Change("added", "/etc/new"),)), name
        if _can_keep(upper):
            kit.out(kit.sh("echo x > /etc/new", root=Rootfs.overlay(root, upper), **CAPABLE))
            assert (upper / "upper/etc/new").read_text() == "x\n"


# -- room ---------------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("how", ["size", "limit"])
def test_changes_and_tmp_together_are_bounded(box: Path, how: str) -> None:
    kit.open_directory(box / "data")
    root = Rootfs.overlay(box, size="1MiB" if how == "size" else "8MiB")
    limits = Limits(disk="1MiB") if how == "limit" else Limits()
    script = ("head -c 700000 /dev/zero > /tmp/a && echo ok; head -c 700000 /dev/zero > /data/b; "
              "stat -c %s /data/b")  # fmt: skip
    done = kit.sh(script, root=root, limits=limits)
    first, size = str(done.stdout).split()
    assert first == "ok"
    assert 0 < int(size) < 400_000
    assert "head: " in str(done.stderr)
    assert done.enforcement["disk"] == "tmpfs size=1048576"


@pytest.mark.kernel
def test_changes_are_bounded_in_number(box: Path) -> None:
    kit.open_directory(box / "data")
    script = "i=0; while [ $i -lt 90 ] && touch /data/f$i; do i=$((i+1)); done; ls /data | wc -l"
    done = kit.sh(script, root=Rootfs.overlay(box, inodes=64))
    assert 20 < int(str(done.stdout)) < 64
    assert "No space left on device" in str(done.stderr)


# -- a directory of the caller's ----------------------------------------------------------------


def _can_keep(upper: Path) -> bool:
    """Where it cannot be id-mapped, nsbox says so: tested below."""
    try:
        nsbox.run(["/bin/true"], root=Rootfs.overlay("/usr", upper), capture_output=True)
    except nsbox.Unavailable:
        return False
    except nsbox.SetupError:
        pass
    return True


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    where = tmp_path / "upper"
    where.mkdir(mode=0o700)
    if not _can_keep(where):
        pytest.skip("this file system cannot be id-mapped")
    try:
        os.setxattr(where, "user.nsbox", b"x")
    except OSError:
        pytest.skip("this file system has no user.* attributes, which make a directory opaque")
    return where


@pytest.mark.kernel
def test_a_directory_keeps_the_changes_for_the_next(box: Path, upper: Path) -> None:
    root = Rootfs.overlay(box, upper)
    done = kit.sh(CHANGE, root=root, **CAPABLE)
    assert done.ok, done
    assert done.changes == CHANGED
    assert (upper / "upper/etc/new").read_text() == "new\n"
    assert (upper / "upper/etc/new").stat().st_uid == os.geteuid()
    done = kit.sh("cat /etc/new /etc/marker; ls -A /data", root=root, **CAPABLE)
    assert kit.out(done) == "new\nother"
    assert done.changes == CHANGED
    assert (box / "data/one").exists()


@pytest.mark.root
@pytest.mark.kernel
def test_what_one_map_of_ids_wrote_another_reads(box: Path, upper: Path) -> None:
    root = Rootfs.overlay(box, upper)
    for keywords in (CAPABLE, ALONE, {"profile": "standard", "user": 1000}):
        done = kit.sh("cat /etc/new 2>&1; ls -A /data; stat -c %u /etc/new", root=root, **keywords)
        assert done.ok is (keywords != CAPABLE), done
        if keywords == CAPABLE:
            assert kit.sh(CHANGE, root=root, **CAPABLE).ok
        else:
            assert done.stdout == "new\n0\n", "the same owner, and the directory is still opaque"


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("keywords", MODES)
def test_what_was_deleted_in_a_layer_that_was_kept_stays_deleted(
    box: Path, upper: Path, keywords: dict[str, Any]
) -> None:
    """In the profile "none", and without a user namespace, the layer above is real root's."""
    script = "rm -r /data /bin/wc && mkdir /data"
    assert kit.sh(script, root=Rootfs.overlay(box, upper), **CAPABLE).ok
    root = Rootfs.overlay([upper / "upper", box])
    alone = keywords == ALONE or "namespaces" in keywords
    if alone and _tmpfs_has_no_user_xattrs():
        with pytest.raises(nsbox.Unavailable, match=r"upper.*6\.6"):
            kit.run("true", root=root, **keywords)
        return
    done = kit.sh("ls -A /data; test ! -e /bin/wc; echo $?", root=root, **keywords)
    assert kit.out(done) == "0"


def test_a_layer_that_was_kept_is_known_by_its_place_or_by_its_attributes(
    box: Path, upper: Path
) -> None:
    assert kit.sh("echo x > /etc/new", root=Rootfs.overlay(box, upper), **CAPABLE).ok
    copy = upper.parent / "copy"
    copy.mkdir()
    os.setxattr(copy, "user.overlay.impure", b"y")
    root = resolve(Rootfs.overlay([upper / "upper", copy, upper, box, "/nonexistent"]))
    assert [layer.kept for layer in root.layers] == [True, True, False, False, False]


def test_a_directory_can_be_emptied_again(box: Path, upper: Path) -> None:
    root = Rootfs.overlay(box, upper)
    args = ["/bin/sh", "-c", CHANGE]
    with nsbox.Container(args, root=root, **CAPABLE) as container:
        assert container.wait(kit.PATIENCE) == 0
        assert container.diff() == CHANGED
        assert container.result().changes == CHANGED
        container.discard()
    assert list((upper / "upper").iterdir()) == list((upper / "work").iterdir()) == []
    assert kit.out(kit.sh("cat /etc/marker; ls /data", root=root, **CAPABLE)) == "inside\none\ntwo"


def test_a_directory_of_the_callers_has_no_limit_and_that_is_an_error(
    box: Path, upper: Path
) -> None:
    root = Rootfs.overlay(box, upper)
    with pytest.raises(nsbox.Unavailable, match="upper"):
        kit.run("true", root=root, limits=Limits(disk="1MiB"))
    done = kit.run("true", root=root, limits=Limits(disk="1MiB"), best_effort=True)
    assert done.enforcement["disk"].startswith("missing")


@pytest.mark.root
@pytest.mark.parametrize("below", ["lower", "upper"])
def test_a_file_system_that_cannot_be_id_mapped_is_an_error_that_names_it(
    box: Path, below: str
) -> None:
    root = Rootfs.overlay("/sys/kernel") if below == "lower" else Rootfs.overlay(box, "/sys/kernel")
    with pytest.raises(nsbox.Unavailable, match=r"/sys/kernel.*id-mapped") as caught:
        kit.run("true", root=root)
    assert caught.value.feature == "root"


# -- telling what a hostile payload left ----------------------------------------------------------


def test_a_containers_changes_are_told_while_it_runs(box: Path) -> None:
    args = ["/bin/sh", "-c", "touch /etc/a /etc/b"]
    with nsbox.Container(args, root=Rootfs.overlay(box), **CAPABLE) as container:
        assert container.wait(kit.PATIENCE) == 0
    assert container.diff() == (Change("added", "/etc/a"), Change("added", "/etc/b"))
    with nsbox.Container(["/bin/sh", "-c", "touch /etc/a; sleep 100"], root=Rootfs.overlay(box),
                         **CAPABLE) as container:  # fmt: skip
        poll_until(lambda: container.diff() == (Change("added", "/etc/a"),))
        with pytest.raises(nsbox.StateError):
            container.discard()


def test_diff_before_the_start_is_an_error(box: Path) -> None:
    container = nsbox.Container(["/bin/true"], root=Rootfs.overlay(box))
    with pytest.raises(nsbox.StateError):
        container.diff()
    container.close()


HOSTILE = r"""
import os
os.chdir("/data")
os.symlink("/etc", "link")
os.symlink("../../../../../../etc/passwd", "file")
os.mkfifo("fifo")
os.mkdir("closed"); open("closed/x", "w").close(); os.chmod("closed", 0)
open(b"\xff\n", "w").close()
open("sparse", "w").truncate(1 << 20)
os.mkdir("deep"); os.chdir("deep")
for _ in range(1500):
    os.mkdir("d"); os.chdir("d")
"""


def test_what_a_hostile_payload_left_is_told_in_bounded_time(box: Path, tmp_path: Path) -> None:
    for name in ("usr", "lib", "lib64"):
        (box / name).mkdir()
    kit.open_directory(box / "data")
    mounts = [Mount.bind(f"/{name}", f"/{name}") for name in ("usr", "lib", "lib64")
              if os.path.isdir(f"/{name}")]  # fmt: skip
    with kit.at_most(15):
        done = kit.python(HOSTILE, root=Rootfs.overlay(box), mounts=mounts)
    assert done.ok, done
    told = {path: kind for kind, path in done.changes}
    for name in ("link", "file", "fifo", "closed", "\udcff\n", "sparse", "deep"):
        assert told[f"/data/{name}"] in ("added", "unreadable"), name
    assert "/data/link/passwd" not in told
    assert sorted(kind for kind in told.values() if kind == "deep") == ["deep"]
    assert len(told) < 300


def test_a_directory_of_any_depth_is_emptied_and_no_link_followed(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("mine")
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(keep)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(3000):  # more than a path has room for
        os.mkdir("d", dir_fd=fd)
        os.symlink(keep, "l", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with kit.at_most(60):
        empty(str(top))
    assert list(top.iterdir()) == []
    assert (keep / "file").read_text() == "mine"


# -- mount points that are traps ------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["dev", "proc", "tmp"])
def test_mount_points_that_are_symlinks_touch_nothing_outside(
    tmp_path: Path, box: Path, name: str
) -> None:
    outside = kit.open_directory(tmp_path / "outside")
    (box / name).rmdir()
    (box / name).symlink_to(outside)
    with pytest.raises(nsbox.SetupError):
        kit.run("true", root=Rootfs.overlay(box))
    assert list(outside.iterdir()) == []


@pytest.mark.kernel
def test_no_setuid_and_no_devices_in_it(box: Path) -> None:
    text = kit.out(kit.run("cat", "/proc/self/mountinfo", root=Rootfs.overlay(box)))
    (options,) = [line.split()[5] for line in text.splitlines() if line.split()[4] == "/"]
    assert {"rw", "nosuid", "nodev"} <= set(options.split(","))


def test_the_upper_directory_stays_closed(box: Path, upper: Path) -> None:
    kit.out(kit.run("true", root=Rootfs.overlay(box, upper)))
    assert stat.S_IMODE(upper.stat().st_mode) == 0o700


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Rootfs.overlay([]), "lower"),
        (lambda: Rootfs.overlay(["/usr"] * 21), "lower"),
        (lambda: Rootfs.overlay(Rootfs.host()), "lower"),
        (lambda: Rootfs.overlay(Rootfs.inherit()), "lower"),
        (lambda: Rootfs.overlay(Rootfs.overlay("/usr")), "lower"),
        (lambda: Rootfs.overlay("/usr\0"), "lower"),
        (lambda: Rootfs.overlay(""), "lower"),
        (lambda: Rootfs.overlay(5), "lower"),  # type: ignore[arg-type]
        (lambda: Rootfs.overlay("/usr", ""), "upper"),
        (lambda: Rootfs.overlay("/usr", "/a\0b"), "upper"),
        (lambda: Rootfs.overlay("/usr", "/a", size="1MiB"), "size"),
        (lambda: Rootfs.overlay("/usr", size="many"), "size"),
        (lambda: Rootfs.overlay("/usr", size=1), "size"),
        (lambda: Rootfs.overlay("/usr", inodes=1), "inodes"),
    ],
)
def test_what_makes_no_overlay_is_refused(make: Any, field: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize("what", ["lower", "upper"])
def test_a_directory_that_is_not_there_is_an_error_that_names_root(
    tmp_path: Path, box: Path, what: str
) -> None:
    gone = tmp_path / "nonexistent"
    root = Rootfs.overlay(gone) if what == "lower" else Rootfs.overlay(box, gone)
    for keywords in ({}, CAPABLE, ALONE):
        with pytest.raises(nsbox.SpecError, match="nonexistent does not exist") as caught:
            kit.run("true", root=root, **keywords)
        assert caught.value.field == "root"


@pytest.mark.parametrize("how", ["same", "a link", "inside", "of the same changes", "their work"])
def test_an_upper_directory_in_a_layer_is_refused(tmp_path: Path, box: Path, how: str) -> None:
    """The kernel would take it, and show it in itself."""
    (tmp_path / "link").symlink_to(box)
    lower, upper = {
        "same": (box, box),
        "a link": (tmp_path / "link", box / "data"),
        "inside": (box, box / "data"),
        "of the same changes": (tmp_path / "kept/upper", tmp_path / "kept"),
        "their work": (tmp_path / "kept/work/deep", tmp_path / "kept"),
    }[how]
    before = listing(box)
    with pytest.raises(nsbox.SpecError, match="beside it") as caught:
        kit.run("true", root=Rootfs.overlay(["/usr", lower], upper))
    assert caught.value.field == "upper"
    assert listing(box) == before
    assert resolve(Rootfs.overlay("/", tmp_path)).path == str(tmp_path), "nothing is beside that"


@pytest.mark.kernel
def test_an_upper_directory_may_have_the_layer_beside_its_changes(box: Path, upper: Path) -> None:
    (below := upper / "lower").mkdir(mode=0o755)
    kit.busybox_root(below)
    done = kit.sh("echo x > /etc/new; ls /", root=Rootfs.overlay(below, upper), **CAPABLE)
    assert "upper" not in kit.out(done)
    assert done.changes == (Change("added", "/etc/new"),)


def test_an_overlay_needs_a_mount_namespace(box: Path) -> None:
    with pytest.raises(nsbox.SpecError, match="mnt"):
        nsbox.run(["true"], root=Rootfs.overlay(box), namespaces=kit.spaces("pid"))


# -- with others --------------------------------------------------------------------------------


def test_containers_of_a_pod_have_a_layer_each(box: Path) -> None:
    kit.open_directory(box / "data")
    specs = [
        nsbox.ContainerSpec(name, ["/bin/sh", "-c", f"echo {name} > /data/{name}; ls /data"],
                            root=Rootfs.overlay(box))
        for name in ("a", "b")
    ]  # fmt: skip
    with nsbox.Pod("p", specs, restart_policy="Never") as pod:
        pod.wait(kit.PATIENCE)
        for name in ("a", "b"):
            assert pod[name].logs().split() == [name, "one", "two"]
    assert sorted(os.listdir(box / "data")) == ["one", "two"]


def test_many_at_once_share_the_layer_below(box: Path) -> None:
    kit.open_directory(box / "data")
    args = ["/bin/sh", "-c", "echo x > /data/new; ls /data; read line"]
    boxes = [nsbox.Popen(args, root=Rootfs.overlay(box), stdin=nsbox.PIPE, stdout=nsbox.PIPE)
             for _ in range(8)]  # fmt: skip
    try:
        for one in boxes:
            out, _ = one.communicate(b"\n", timeout=kit.PATIENCE)
            assert isinstance(out, bytes)
            assert out.split() == [b"new", b"one", b"two"]
    finally:
        for one in boxes:
            one.close()
    assert sorted(os.listdir(box / "data")) == ["one", "two"]


def test_an_upper_directory_in_use_by_another_is_an_error(box: Path, upper: Path) -> None:
    root = Rootfs.overlay(box, upper)
    with nsbox.Container(["/bin/sleep", "100"], root=root):
        with pytest.raises(nsbox.SetupError, match="another sandbox") as caught:
            kit.run("true", root=root)
        assert (caught.value.errno, caught.value.field) == (errno.EBUSY, "root")
    assert kit.run("true", root=root).ok


@pytest.mark.parametrize("keywords", [CAPABLE, ALONE])
def test_a_root_that_the_payload_closed_is_told_as_far_as_it_can_be(
    box: Path, keywords: dict[str, Any]
) -> None:
    done = kit.sh("touch /etc/new; chmod 0 /", root=Rootfs.overlay(box), **keywords)
    told = Change("added", "/etc/new") if kit.ROOT else Change("unreadable", "/")
    assert done.changes == (told,)


def test_changes_of_a_layer_that_is_gone_are_not_said_to_be_none(box: Path, tmp_path: Path) -> None:
    kit.open_directory(box / "data")
    args = ["/bin/sh", "-c", "touch /data/new; read line"]
    with nsbox.Popen(args, root=Rootfs.overlay(box), stdin=nsbox.PIPE) as process:
        box.rename(tmp_path / "elsewhere")
        process.communicate(b"\n", timeout=kit.PATIENCE)
        assert process._process.changes() == (Change("unreadable", "/"),)
