# SPDX-License-Identifier: Apache-2.0
"""Rootfs.tar and Rootfs.oci: archives of strangers, unpacked without trusting a byte of them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import platform
import shutil
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from run import kit

import nsbox
from nsbox import Mount, Rootfs, archive, images, mountapi

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.userns


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NSBOX_CACHE", str(where))
    return where


def info(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size, made.mode = len(content), 0o755
    for key, value in fields.items():
        setattr(made, key, value)
    return made, content


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, type=tarfile.DIRTYPE, **fields)


def link(name: str, target: str, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target)


def packed(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in entries:
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def busybox() -> list[tuple[tarfile.TarInfo, bytes]]:
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("busybox-static is not installed")
    content = Path(program).read_bytes()
    names = ("cat", "id", "ls", "sh", "stat", "touch", "true", "env", "pwd", "rm", "mkdir")
    return [directory("bin"), info("bin/busybox", content),
            *(link(f"bin/{name}", "busybox") for name in names)]  # fmt: skip


def write(where: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    where.write_bytes(packed(*entries))
    return where


def tree(cache: Path) -> Path:
    (found,) = cache.glob("*-1/root")
    return found


# -- tar ----------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_tar_is_a_root(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a,b:c.tar", *busybox(), info("etc/marker", b"inside\n", mode=0o644))
    done = kit.sh("cat /etc/marker; ls -A /; touch /x /etc/x", root=Rootfs.tar(path))
    assert str(done.stdout).split() == ["inside", "bin", "dev", "etc", "proc", "sys", "tmp"]
    assert str(done.stderr).count("Read-only file system") == 2
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pack"), PACKERS, ids=[name for name, _ in PACKERS])
def test_a_compressed_tar_is_a_root(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(packed(*busybox(), info("m", b"inside"))))
    assert kit.out(kit.run("/bin/cat", "/m", root=Rootfs.tar(tmp_path / name))) == "inside"


def test_zstd_is_read_where_python_can_and_else_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "z").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    can = any(_has(name) for name in ("compression.zstd", "zstandard"))
    with pytest.raises(nsbox.SpecError if can else nsbox.Unavailable, match="z"):
        kit.run("true", root=Rootfs.tar(tmp_path / "z"))


def _has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_it_is_unpacked_once_and_again_when_it_changed(tmp_path: Path, cache: Path) -> None:
    for word in ("one", "two", "one"):
        path = write(tmp_path / "r.tar", *busybox(), info("m", word.encode()))
        for _ in range(2):
            assert kit.out(kit.run("/bin/cat", "/m", root=Rootfs.tar(path))) == word
    assert len(list(cache.glob("*-1"))) == 2
    images._known.clear()
    (next(iter(cache.glob("*-1"))) / "root/seen").touch()
    names = [kit.out(kit.run("/bin/ls", "/", root=Rootfs.tar(path)))]
    assert len(list(cache.glob("*-1"))) == 2, "another process finds what is there"
    assert names


def test_it_is_the_lower_layer_of_an_overlay(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "r.tar", *busybox(), info("m", b"inside"))
    root = Rootfs.overlay(Rootfs.tar(path))
    done = kit.sh("touch /new; rm /m; ls /", root=root, user=0, mounts=[Mount.tmpfs("/made")])
    assert kit.out(done).split() == ["bin", "dev", "made", "new", "proc", "sys", "tmp"]
    assert done.changes == (("deleted", "/m"), ("added", "/new"))
    assert (tree(cache) / "m").exists()


@pytest.mark.root
@pytest.mark.kernel
def test_owners_are_the_archives_and_set_id_bits_are_not(tmp_path: Path, cache: Path) -> None:
    path = write(
        tmp_path / "r.tar", *busybox(), info("a", b"x", uid=33, gid=34, mode=0o6755),
        info("b", b"x", uid=70000, gid=-1, mode=0o600), directory("d", uid=5, mode=0o3777),
    )  # fmt: skip
    done = kit.sh("stat -c '%u %g %a' /a /d", root=Rootfs.tar(path))
    status = (tree(cache) / "b").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65534)
    assert stat.S_IMODE((tree(cache) / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree(cache) / "d").stat().st_mode) == 0o1777
    if kit.maps_ids(cache):
        assert kit.out(done).splitlines() == ["33 34 755", "5 0 1777"], "inside as in the image"


@pytest.mark.user
def test_for_an_ordinary_user_everything_is_its_own(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "r.tar", *busybox(), info("a", b"x", uid=0, mode=0o4000),
                 directory("d", uid=5, mode=0))  # fmt: skip
    kit.out(kit.run("/bin/true", root=Rootfs.tar(path)))
    for name, mode in (("a", 0o600), ("d", 0o700)):
        status = (tree(cache) / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), mode)


# -- hostile tars -------------------------------------------------------------------------------

REFUSED: list[tuple[str, list[tuple[tarfile.TarInfo, bytes]], str]] = [
    ("an absolute name", [info("/etc/x", b"x")], "absolute"),
    ("a name above", [info("../x", b"x")], r"\.\."),
    ("a name that goes up", [directory("a"), info("a/../../x", b"x")], r"\.\."),
    ("a hard link out", [link("x", "/etc/passwd", hard=True)], "absolute"),
    ("a hard link above", [link("x", "../../etc/passwd", hard=True)], r"\.\."),
    ("a hard link to a link", [link("l", "/etc/passwd"), link("x", "l", hard=True)], "no file"),
    ("a hard link to nothing", [link("x", "nowhere", hard=True)], "No such file"),
    ("a device", [info("mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1)], "tar --exclude"),
    ("a device not in dev", [info("devs/x", type=tarfile.BLKTYPE)], "neither"),
    ("another type in dev", [info("dev/x", type=b"D")], "neither"),
    ("a block device", [info("sda", type=tarfile.BLKTYPE)], "neither"),
    ("a pipe", [info("p", type=tarfile.FIFOTYPE)], "neither"),
    ("another type", [info("p", type=b"D")], "neither"),
    ("a link that is a loop", [link("a", "b"), link("b", "a"), info("a/x", b"x")], "symbolic"),
    ("a name too long", [info("n" * 300, b"x")], "too long"),
    ("a file on the way", [info("f", b"x"), info("f/x", b"x")], "Not a directory"),
    ("a NUL in a name", [info("x", b"x", pax_headers={"path": "a\0b"})], "NUL|null"),
]


@pytest.mark.parametrize(
    ("entries", "why"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_it_is_refused_for(
    tmp_path: Path, cache: Path, entries: list[tuple[tarfile.TarInfo, bytes]], why: str
) -> None:
    path = write(tmp_path / "r.tar", *entries)
    with pytest.raises(nsbox.SpecError, match=why) as caught:
        kit.run("true", root=Rootfs.tar(path))
    assert caught.value.field == "root"
    assert [p.suffix for p in cache.iterdir()] == [".lock"], "nothing of it is left"


@pytest.mark.parametrize("kind", ["tar", "oci"])
def test_devices_and_pipes_below_dev_are_left_out(
    tmp_path: Path, cache: Path, layout: Layout, kind: str
) -> None:
    """As ``tar -c /`` and old images have them; a sandbox's /dev hides that of its root."""
    nodes = [info("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
             info("./dev/deep/sda", type=tarfile.BLKTYPE),
             info("dev/initctl", type=tarfile.FIFOTYPE), info("dev/file", b"x"),
             directory("dev")]  # fmt: skip
    root = Rootfs.tar(write(tmp_path / "r.tar", *busybox(), *nodes))
    if kind == "oci":
        root = Rootfs.oci(layout.image(packed(*busybox()), packed(*nodes)))
    kit.out(kit.sh("test -c /dev/null", root=root))
    assert sorted(os.listdir(tree(cache) / "dev")) == ["file"]


def test_links_in_it_lead_within_it(tmp_path: Path, cache: Path) -> None:
    outside = kit.open_directory(tmp_path / "outside")
    (outside / "victim").write_text("untouched")
    path = write(
        tmp_path / "r.tar", *busybox(),
        link("l", str(outside)), directory(str(outside)[1:]), info("l/victim", b"mine"),
        link("up", "../../../../../../.."), info("up/top", b"top"),
        link("f", str(outside / "victim")), info("f", b"a file now"),
        link("d", str(outside)), directory("d"), info("d/victim", b"a directory now"),
        info("one", b"1"), link("two", "./one", hard=True),
    )  # fmt: skip
    kit.out(kit.run("/bin/true", root=Rootfs.tar(path)))
    root = tree(cache)
    assert (outside / "victim").read_text() == "untouched"
    assert os.listdir(outside) == ["victim"]
    assert (root / str(outside)[1:] / "victim").read_text() == "mine"
    assert (root / "top").read_text() == "top"
    assert (root / "f").read_text() == "a file now"
    assert (root / "d/victim").read_text() == "a directory now"
    assert (root / "two").stat().st_ino == (root / "one").stat().st_ino


def _forge(size: int) -> bytes:
    header = tarfile.TarInfo("big")
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


def _bomb() -> bytes:
    """A name of 1 GiB, in a megabyte."""
    header = tarfile.TarInfo("././@LongLink")
    header.size, header.type = 1 << 30, tarfile.GNUTYPE_LONGNAME
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20), 1)


BROKEN: list[tuple[str, bytes]] = [
    ("nothing", b""), ("a text", b"hello" * 200), ("a cut header", packed(info("a", b"x"))[:100]),
    ("cut content", packed(info("a", b"x" * 5000))[:2000]),
    ("a terabyte", _forge(1 << 40) + bytes(1 << 20)), ("a size beyond", _forge((1 << 62) - 1)),
    ("a bomb of a name", _bomb()), ("half a gzip", gzip.compress(os.urandom(5000))[:2000]),
    ("a gzip with a wrong sum", gzip.compress(packed(info("a", b"x")))[:-8] + bytes(8)),
    ("a cut xz", lzma.compress(packed(info("a", b"x")))[:-20]),
    ("a broken bzip2", b"BZh9" + bytes(100)),
]  # fmt: skip


@pytest.mark.parametrize("raw", [raw for _, raw in BROKEN], ids=[name for name, _ in BROKEN])
def test_what_is_no_archive_is_refused_in_bounded_memory(
    tmp_path: Path, cache: Path, raw: bytes
) -> None:
    (tmp_path / "r.tar").write_bytes(raw)
    with kit.at_most(10), pytest.raises(nsbox.SpecError, match=r"r\.tar"):
        kit.run("true", root=Rootfs.tar(tmp_path / "r.tar"))
    assert [p.suffix for p in cache.iterdir()] == [".lock"]


def test_a_sparse_terabyte_is_refused(tmp_path: Path) -> None:
    member, _ = info("s", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                                       "GNU.sparse.name": "s",
                                       "GNU.sparse.realsize": str(1 << 40)})  # fmt: skip
    path = tmp_path / "r.tar"
    path.write_bytes(packed((member, b"")) + b"1\n0\n0\n".ljust(512, b"\0"))
    with kit.at_most(5), pytest.raises(nsbox.SpecError):
        kit.run("true", root=Rootfs.tar(path))


def test_entries_and_bytes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "r.tar", *(info(f"f{i}", b"x" * 100) for i in range(20)))
    monkeypatch.setattr(archive, "MOST_FILES", 19)
    with pytest.raises(nsbox.SpecError, match="more than 19 entries"):
        kit.run("true", root=Rootfs.tar(path))
    monkeypatch.setattr(archive, "MOST_FILES", 100)
    monkeypatch.setattr(archive, "MOST_BYTES", 1999)
    with pytest.raises(nsbox.SpecError, match="more than 1999 bytes"):
        kit.run("true", root=Rootfs.tar(path))


def test_a_deep_entry_is_made_in_a_few_calls_a_level(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each level was once looked for from the root, for each level: 43 s for one entry."""
    looks = []
    look = mountapi.open_in_root

    def counted(*args: Any, **keywords: Any) -> int:
        looks.append(args)
        return look(*args, **keywords)

    deep = "d/" * (archive.MOST_DEPTH - 1)
    path = write(tmp_path / "r.tar", *busybox(), directory("d/d"), link("l", "/d/d"),
                 info(deep + "f", b"deep"), info(f"l/{deep[8:]}g", b"by a link"))  # fmt: skip
    monkeypatch.setattr(mountapi, "open_in_root", counted)
    kit.out(kit.run("/bin/true", root=Rootfs.tar(path)))
    assert (tree(cache) / deep / "f").read_text() == "deep"
    assert (tree(cache) / deep[4:] / "g").read_text() == "by a link"
    assert len(looks) < 2 * archive.MOST_DEPTH


LEVELS = "d/" * archive.MOST_DEPTH
DEEP = [info(f"{LEVELS}f", b"x"), directory(f"{LEVELS}d"), link("x", f"{LEVELS}f", hard=True),
        info(f"{LEVELS}.wh.f")]  # fmt: skip


@pytest.mark.parametrize("entry", DEEP, ids=["file", "directory", "hard link", "whiteout"])
@pytest.mark.parametrize("kind", ["tar", "oci"])
def test_what_is_too_deep_is_refused_in_words(
    tmp_path: Path, layout: Layout, kind: str, entry: tuple[tarfile.TarInfo, bytes]
) -> None:
    root = Rootfs.tar(write(tmp_path / "r.tar", entry))
    if kind == "oci":
        root = Rootfs.oci(layout.image(packed(*busybox()), packed(entry)))
    with pytest.raises(nsbox.SpecError, match="more than 200 levels deep") as caught:
        kit.run("true", root=root)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_directories_that_no_entry_is_of_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "r.tar", *(info(f"{i}/a/b/f", b"x") for i in range(10)))
    monkeypatch.setattr(archive, "MOST_FILES", 39)
    with pytest.raises(nsbox.SpecError, match="more than 39 entries"):
        kit.run("true", root=Rootfs.tar(path))
    monkeypatch.setattr(archive, "MOST_FILES", 40)
    with pytest.raises(nsbox.CommandNotFound):
        kit.run("/true", root=Rootfs.tar(path))


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.tar"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with kit.at_most(5), pytest.raises(nsbox.SpecError, match=r"r\.tar"):
        kit.run("true", root=Rootfs.tar(path))


def test_a_cache_of_somebody_elses_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "r.tar", *busybox())
    for name, make in (("open", lambda p: kit.open_directory(p)),
                       ("link", lambda p: p.symlink_to(tmp_path))):  # fmt: skip
        make(tmp_path / name)
        monkeypatch.setenv("NSBOX_CACHE", str(tmp_path / name))
        with pytest.raises(nsbox.Unavailable, match="cache"):
            kit.run("true", root=Rootfs.tar(path))


def test_what_a_killed_owner_left_half_unpacked_is_not_used(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "r.tar", *busybox(), info("m", b"whole"))
    name = f"tar-{hashlib.sha256(path.read_bytes()).hexdigest()}-1.part"
    (cache / name / "root/bin").mkdir(parents=True)
    (cache / name / "root/m").write_text("half")
    assert kit.out(kit.run("/bin/cat", "/m", root=Rootfs.tar(path))) == "whole"
    assert not (cache / name).exists()


# -- oci ----------------------------------------------------------------------------------------

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Layout:
    """Builds an image layout, byte by byte."""

    def __init__(self, where: Path) -> None:
        self.where = where
        (where / "blobs/sha256").mkdir(parents=True)
        (where / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, raw: bytes, kind: str = "") -> dict[str, Any]:
        digest = hashlib.sha256(raw).hexdigest()
        (self.where / "blobs/sha256" / digest).write_bytes(raw)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(raw)}

    def json(self, value: Any, kind: str = "") -> dict[str, Any]:
        return self.blob(json.dumps(value).encode(), kind)

    def manifest(self, layers: list[bytes], config: Any = None, pack: Any = None) -> dict[str, Any]:
        ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        about = {"architecture": ARCHITECTURE, "os": "linux", "config": config or {},
                 "rootfs": {"type": "layers", "diff_ids": ids}}  # fmt: skip
        pack = pack or (lambda raw: raw)
        value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.json(about),
                 "layers": [self.blob(pack(layer)) for layer in layers]}  # fmt: skip
        return self.json(value, MANIFEST)

    def index(self, *manifests: dict[str, Any]) -> Path:
        value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}
        (self.where / "index.json").write_text(json.dumps(value))
        return self.where

    def image(self, *layers: bytes, config: Any = None, pack: Any = None) -> Path:
        return self.index(self.manifest(list(layers), config, pack))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "image")


BELOW = [info("etc/a", b"a"), info("etc/b", b"b"), info("d/old", b"x"), info("d/sub/old", b"x"),
         info("keep", b"x"), info("turned", b"x"), directory("was/full"),
         info("was/full/x", b"x")]  # fmt: skip


@pytest.mark.kernel
@pytest.mark.parametrize("pack", [None, gzip.compress], ids=["plain", "gzip"])
def test_layers_lie_over_each_other_and_whiteouts_take_away(layout: Layout, pack: Any) -> None:
    above = packed(
        info("etc/.wh.a"), info("etc/c", b"c"), info("d/new", b"n"), info("d/.wh..wh..opq"),
        directory("turned"), info("turned/in", b"x"), info("was", b"a file"),
        info(".wh.nothing"), info(".wh..wh.plnk"), info("gone/too/.wh.x"),
    )  # fmt: skip
    root = Rootfs.oci(layout.image(packed(*busybox(), *BELOW), above, pack=pack))
    done = kit.sh("ls /etc; ls /d; ls /turned; cat /was; echo; ls -A /", root=root)
    assert kit.out(done).split() == [
        "b", "c", "new", "in", "a", "file", "bin", "d", "dev", "etc", "keep", "proc", "sys", "tmp",
        "turned", "was",
    ]  # fmt: skip


def test_a_whiteout_through_a_link_takes_nothing_of_the_hosts(
    layout: Layout, tmp_path: Path
) -> None:
    outside = kit.open_directory(tmp_path / "outside")
    (outside / "victim").touch()
    below = packed(*busybox(), link("l", str(outside)), link("up", "../../../../../.."))
    name = str(outside)[1:]
    above = packed(info("l/.wh.victim"), info("l/.wh..wh..opq"), info(f"up/{name}/.wh.victim"),
                   info(".wh..."), info(".wh.."))  # fmt: skip
    kit.out(kit.run("/bin/true", root=Rootfs.oci(layout.image(below, above))))
    assert (outside / "victim").exists()


CONFIG = {
    "Env": ["PATH=/bin", "GREETING=hello", "HOME=/data"], "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["echo $GREETING $HOME; pwd; id -u; id -g"], "WorkingDir": "/data",
    "User": "app:staff",
}  # fmt: skip
PASSWD = [info("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1234:55::/:/bin/sh\n", mode=0o644),
          info("etc/group", b"staff:x:77:\n", mode=0o644), directory("data")]  # fmt: skip


@pytest.mark.kernel
def test_what_the_image_says_holds_where_the_caller_says_nothing(layout: Layout) -> None:
    root = Rootfs.oci(layout.image(packed(*busybox(), *PASSWD), config=CONFIG))
    keywords: dict[str, Any] = {"capture_output": True, "text": True, "root": root}
    done = nsbox.run([], **keywords)
    assert kit.out(done).splitlines() == ["hello /data", "/data", "1234", "77"]
    done = nsbox.run(None, **keywords, env={"GREETING": "bye"}, cwd="/", user="9:8")
    assert kit.out(done).splitlines() == ["bye /data", "/", "9", "8"]
    assert kit.out(nsbox.run(["pwd"], **keywords)) == "/data"
    if kit.ROOT and not kit.maps_ids(layout.where):
        return
    with nsbox.Container([], root=Rootfs.overlay(root)) as container:
        assert container.wait(kit.PATIENCE) == 0
    assert container.logs().splitlines() == ["hello /data", "/data", "1234", "77"]


def _at_home(layout: Layout, where: str) -> Rootfs:
    return Rootfs.oci(layout.image(packed(*busybox(), *PASSWD), config={"WorkingDir": where}))


@pytest.mark.kernel
@pytest.mark.parametrize("where", ["/var/www", "/data/in/it", "/", "/tmp/deep/in"])
def test_a_working_directory_that_is_not_in_the_image_is_made_above_it(
    layout: Layout, cache: Path, where: str
) -> None:
    root = Rootfs.overlay(_at_home(layout, where))
    if kit.ROOT and not kit.maps_ids(layout.where):
        pytest.skip("this file system cannot be id-mapped")
    done = kit.run("pwd", root=root)
    assert (kit.out(done), done.changes) == (where, ())
    done = kit.sh("touch new; pwd", root=root, user=0)
    assert kit.out(done) == where
    inside = [] if where.startswith("/tmp") else [("added", f"{where.rstrip('/')}/new")]
    assert list(done.changes) == inside
    assert not (tree(cache) / "var").exists(), "nothing is made in the image"


def test_a_mount_over_the_working_directory_is_not_written_to(
    layout: Layout, tmp_path: Path
) -> None:
    outside = kit.open_directory(tmp_path / "outside")
    root = Rootfs.overlay(_at_home(layout, "/var/www"))
    if kit.ROOT and not kit.maps_ids(layout.where):
        pytest.skip("this file system cannot be id-mapped")
    with pytest.raises(nsbox.SetupError, match="hidden by a mount"):
        kit.run("pwd", root=root, mounts=[Mount.bind(outside, "/var", ro=False)])
    assert list(outside.iterdir()) == []


def test_a_read_only_image_without_its_working_directory_says_whose_it_is(layout: Layout) -> None:
    root = _at_home(layout, "/var/www")
    with pytest.raises(nsbox.SetupError, match=r"image's WorkingDir.*overlay") as caught:
        kit.run("pwd", root=root)
    assert caught.value.field == "root"
    with pytest.raises(nsbox.SetupError, match="does not exist in the sandbox") as caught:
        kit.run("pwd", root=root, cwd="/var/lib")
    assert caught.value.field == "cwd"
    assert kit.out(kit.run("pwd", root=root, cwd="/data")) == "/data"


@pytest.mark.parametrize(
    ("user", "ids"), [("7", "7 7"), ("7:9", "7 9"), ("1234", "1234 55"), ("app", "1234 55"),
                      ("0", "0 0"), ("app:5", "1234 5"), ("", "1000 1000")],
)  # fmt: skip
def test_the_images_user(layout: Layout, user: str, ids: str) -> None:
    root = Rootfs.oci(layout.image(packed(*busybox(), *PASSWD), config={"User": user}))
    assert kit.out(kit.sh("id -u; id -g", root=root)).split() == ids.split()


BAD_CONFIGS: list[tuple[Any, str]] = [
    ({"User": "nobody-here"}, "user"), ({"User": "app:nogroup"}, "user"), ({"User": 5}, "User"),
    ({"Env": "A=b"}, "Env"), ({"Env": [5]}, "Env"), ({"Env": ["A=\0"]}, "NUL"),
    ({"WorkingDir": "../x"}, "absolute"), ({"WorkingDir": "/a/../b"}, r"\.\."),
]  # fmt: skip


@pytest.mark.parametrize(("config", "why"), BAD_CONFIGS, ids=[str(c) for c, _ in BAD_CONFIGS])
def test_a_config_that_means_nothing_is_refused(layout: Layout, config: Any, why: str) -> None:
    root = Rootfs.oci(layout.image(packed(*busybox(), *PASSWD), config=config))
    with pytest.raises(nsbox.SpecError, match=why):
        kit.run("/bin/true", root=root)


def test_an_image_without_a_command_needs_one(layout: Layout) -> None:
    root = Rootfs.oci(layout.image(packed(*busybox())))
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run([], root=root)
    assert caught.value.field == "args"
    with pytest.raises(nsbox.SpecError):
        nsbox.run([], root="/")


def test_its_passwd_is_no_way_out(layout: Layout) -> None:
    entries = [link("etc/passwd", "/proc/self/environ"), info("etc/x", b"")]
    root = Rootfs.oci(layout.image(packed(*busybox(), *entries), config={"User": "root"}))
    with pytest.raises(nsbox.SpecError, match="passwd"):
        kit.run("/bin/true", root=root)


def test_the_image_for_this_machine_is_taken_and_one_of_several_named(layout: Layout) -> None:
    def named(word: str, **more: Any) -> dict[str, Any]:
        made = layout.manifest([packed(*busybox(), info("m", word.encode()))])
        return {**made, **more}

    def ref(name: str) -> dict[str, Any]:
        return {"annotations": {"org.opencontainers.image.ref.name": name}}

    other = named("other", platform={"os": "linux", "architecture": "s390x"})
    ours = named("ours", platform={"os": "linux", "architecture": ARCHITECTURE})
    nested = layout.json({"manifests": [other, ours]}, INDEX)
    where = layout.index({**nested, **ref("many")}, {**named("single"), **ref("one")})
    assert kit.out(kit.run("/bin/cat", "/m", root=Rootfs.oci(where, "many"))) == "ours"
    assert kit.out(kit.run("/bin/cat", "/m", root=Rootfs.oci(where, ref="one"))) == "single"
    for name in ("", "three"):
        with pytest.raises(nsbox.SpecError, match="many, one"):
            kit.run("true", root=Rootfs.oci(where, name))


def _of(layout: Layout, word: str, name: str = "", **where: str) -> dict[str, Any]:
    """An image whose /m has the *word*, with its name and platform as an index has them."""
    made = layout.manifest([packed(*busybox(), info("m", word.encode()))])
    platform = {"os": "linux", "architecture": ARCHITECTURE, **where}
    notes = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
    return {**made, "platform": platform, **notes}


def _word(where: Path, ref: str = "") -> str:
    return kit.out(kit.run("/bin/cat", "/m", root=Rootfs.oci(where, ref)))


def test_a_ref_that_no_image_has_is_said_with_those_that_there_are(layout: Layout) -> None:
    names = [f"app:{n:02}" for n in range(30)]
    where = layout.index(*(_of(layout, "x", name) for name in names))
    with pytest.raises(nsbox.SpecError, match="no image has the ref 'app:30'; it has app:00") as e:
        kit.run("true", root=Rootfs.oci(where, "app:30"))
    assert str(e.value).endswith(" and 10 more")
    where = layout.index(_of(layout, "x", "far", architecture="s390x"))
    with pytest.raises(nsbox.SpecError, match=r"no image for linux/.*far \(linux/s390x\)"):
        kit.run("true", root=Rootfs.oci(where))


def test_images_without_names_are_told_apart_by_digest(layout: Layout) -> None:
    one, two = _of(layout, "one"), _of(layout, "two")
    deep = layout.json({"manifests": [one, two]}, INDEX)
    for where in (layout.index(one, two), layout.index(deep)):
        with pytest.raises(nsbox.SpecError, match="2 images for") as caught:
            kit.run("true", root=Rootfs.oci(where))
        for image, word in ((one, "one"), (two, "two")):
            assert image["digest"] in str(caught.value)
            assert _word(where, image["digest"]) == word
    for ref in (f"sha256:{'0' * 64}", "sha256:../../index.json"):
        with pytest.raises(nsbox.SpecError, match="no image has the ref 'sha256:"):
            kit.run("true", root=Rootfs.oci(where, ref))
    config = json.loads((where / "blobs/sha256" / one["digest"][7:]).read_text())["config"]
    with pytest.raises(nsbox.SpecError):  # a blob, but no image
        kit.run("true", root=Rootfs.oci(where, config["digest"]))


def test_of_variants_the_plain_one_is_taken(layout: Layout) -> None:
    least = {"amd64": "v1", "arm64": "v8"}.get(ARCHITECTURE, "")
    for plain in ({}, {"variant": least}):
        images = [_of(layout, "more", variant="v9"), _of(layout, "plain", **plain)]
        assert _word(layout.index(*images)) == "plain"
    assert _word(layout.index(_of(layout, "only", variant="v9"))) == "only"
    named = layout.index(_of(layout, "a", "a"), _of(layout, "b", "b", variant="v9"))
    with pytest.raises(nsbox.SpecError, match="2 images"):
        kit.run("true", root=Rootfs.oci(named))
    alike = _of(layout, "1", "a"), _of(layout, "2", "a")
    with pytest.raises(nsbox.SpecError, match=f"2 images .*{alike[1]['digest']}"):
        kit.run("true", root=Rootfs.oci(layout.index(*alike), "a"))


DAMAGE = ["index", "no index", "manifest", "config", "layer", "layer's content", "size", "digest",
          "traversal", "link", "no blob", "counts", "deep json", "loop"]  # fmt: skip


def _damage(layout: Layout, how: str, tmp_path: Path) -> None:
    blobs = layout.where / "blobs/sha256"
    index = json.loads((layout.where / "index.json").read_text())
    entry = index["manifests"][0]
    manifest = json.loads((blobs / entry["digest"][7:]).read_text())
    victim = {"manifest": entry, "config": manifest["config"]}.get(how, manifest["layers"][0])
    path = blobs / victim["digest"][7:]
    if how in ("manifest", "config", "layer"):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif how == "no blob":
        path.unlink()
    elif how == "link":
        path.rename(tmp_path / "blob")
        path.symlink_to(tmp_path / "blob")
    elif how == "index":
        (layout.where / "index.json").write_text("{")
    elif how == "no index":
        (layout.where / "index.json").unlink()
    elif how == "deep json":
        (layout.where / "index.json").write_text("[" * 100_000)
    elif how == "loop":
        (layout.where / "index.json").write_text(json.dumps({"manifests": [5]}))
    else:
        if how == "size":
            manifest["layers"][0]["size"] += 1
        elif how == "digest":
            manifest["layers"][0]["digest"] = "md5:" + "0" * 32
        elif how == "traversal":
            manifest["layers"][0]["digest"] = "sha256:" + "../" * 20 + "etc/passwd"
        elif how == "counts":
            manifest["layers"].append(manifest["layers"][0])
        else:
            about = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
            about["rootfs"]["diff_ids"][0] = "sha256:" + "0" * 64
            manifest["config"] = layout.json(about)
        layout.index(layout.json(manifest, MANIFEST))


@pytest.mark.parametrize("how", DAMAGE)
def test_an_image_is_refused_for_a_damaged(
    layout: Layout, cache: Path, tmp_path: Path, how: str
) -> None:
    where = layout.image(packed(*busybox(), info("f", bytes(2000))))
    _damage(layout, how, tmp_path)
    with pytest.raises(nsbox.SpecError) as caught:
        kit.run("true", root=Rootfs.oci(where))
    assert caught.value.field == "root"
    assert not list(cache.glob("*-1")), "nothing of it is kept"
    assert not list(cache.glob("*.part"))
