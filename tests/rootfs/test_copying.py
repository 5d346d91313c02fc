# SPDX-License-Identifier: Apache-2.0
"""Container.copy_in and copy_out: files, while the payload does its worst."""

from __future__ import annotations

import ctypes
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import poll_until

import nsbox
from nsbox import Mount, Rootfs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns
READY = "/tmp/ready"


@contextmanager
def box(script: str = "", **keywords: Any) -> Iterator[nsbox.Container]:
    """A container whose payload has run the script, and goes on for as long as it takes."""
    whole = f"{script}\n: > {READY}; exec sleep 1000"
    with nsbox.Container(["/bin/sh", "-c", whole], **keywords) as container:
        await_ready(container)
        yield container


def await_ready(container: nsbox.Container) -> None:
    def ready() -> bool:
        assert container.status() == "running", container.logs()
        return os.path.lexists(f"/proc/{container.pid}/root{READY}")

    poll_until(ready, kit.PATIENCE)


@contextmanager
def python_box(code: str, **keywords: Any) -> Iterator[nsbox.Container]:
    whole = f"import os, time\nos.chdir('/tmp')\n{code}"
    args = ["/usr/bin/python3", "-I", "-S", "-c", whole]
    with nsbox.Container(args, **keywords) as container:
        await_ready(container)
        yield container


# -- out ----------------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_a_file_comes_out(tmp_path: Path, profile: str) -> None:
    with box("echo result > /tmp/r; chmod 6755 /tmp/r", profile=profile) as container:
        assert container.copy_out("/tmp/r", tmp_path / "out") == (1, 7, ())
        (tmp_path / "again").write_text("old")
        container.copy_out("/tmp/r", tmp_path / "again")
    for name in ("out", "again"):
        assert (tmp_path / name).read_text() == "result\n"
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o755, "and no set-user-ID"
        assert (tmp_path / name).stat().st_uid == os.geteuid()
    assert sorted(os.listdir(tmp_path)) == ["again", "out"]


@pytest.mark.kernel
def test_a_directory_comes_out(tmp_path: Path) -> None:
    script = ("mkdir -p /tmp/w/a/b /tmp/w/empty; echo 1 > /tmp/w/one; echo 22 > /tmp/w/a/b/two; "
              "ln -s one /tmp/w/link; mkfifo /tmp/w/a/pipe; chmod 500 /tmp/w/a")  # fmt: skip
    with box(script) as container:
        done = container.copy_out("/tmp/w", tmp_path / "out")
        with pytest.raises(nsbox.CopyError, match="EEXIST"):
            container.copy_out("/tmp/w", tmp_path / "out")
    assert (done.files, done.bytes) == (2, 5)
    assert sorted(done.skipped) == [("a/pipe", "pipe"), ("link", "symbolic link")]
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*"))
    assert found == ["a", "a/b", "a/b/two", "empty", "one"]
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o500
    (tmp_path / "out/a").chmod(0o700)
    assert os.listdir(tmp_path) == ["out"]


def test_links_on_the_way_lead_where_they_lead_the_payload(tmp_path: Path) -> None:
    script = "mkdir /tmp/d; echo inside > /tmp/d/f; ln -s /../../tmp/d /tmp/link"
    with box(script) as container:
        container.copy_out("/tmp/link/f", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "inside\n"


TRAPS = [
    ("ln -s /etc/shadow /tmp/r", "symbolic link"), ("mkfifo /tmp/r", "pipe"),
    ("ln -s /proc/self/root/etc /tmp/r", "symbolic link"),
]  # fmt: skip


@pytest.mark.kernel
@pytest.mark.parametrize(("script", "why"), TRAPS, ids=["link to shadow", "pipe", "proc link"])
def test_what_is_no_file_is_an_error_that_says_what_it_is(
    tmp_path: Path, script: str, why: str
) -> None:
    with box(script) as container, kit.at_most(5):
        with pytest.raises(nsbox.CopyError, match=why) as caught:
            container.copy_out("/tmp/r", tmp_path / "out")
        assert (caught.value.path, caught.value.limit) == ("", f"a {why}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kernel
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_touched(tmp_path: Path, path: str) -> None:
    with box() as container:
        with pytest.raises(nsbox.CopyError, match="device"):
            container.copy_out(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kernel
@pytest.mark.parametrize("path", ["/proc/self/root/etc/hostname", "/proc/1/cwd/x",
                                  "/proc/self/fd/0"])  # fmt: skip
def test_a_magic_link_is_a_door_that_stays_shut(tmp_path: Path, path: str) -> None:
    with box("cd /tmp; echo x > /tmp/x", proc="full") as container:
        with pytest.raises(nsbox.CopyError):
            container.copy_out(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kernel
@pytest.mark.parametrize("proc", ["pids", "full"])
def test_a_link_on_the_way_does_not_make_the_callers_rights_read_proc(
    tmp_path: Path, proc: str
) -> None:
    with box("ln -s /proc/1 /tmp/w; ln -s /more/1 /tmp/v", proc=proc,
             mounts=[Mount.proc("/more")]) as container:  # fmt: skip
        for path in ("/tmp/w/environ", "/tmp/v/environ", "/proc/1/status"):
            assert os.path.exists(f"/proc/{container.pid}/root/proc/1/environ")
            with pytest.raises(nsbox.CopyError, match="of the kernel's"):
                container.copy_out(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_file_of_the_hosts_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "HOSTMARK").write_text("secret")
    with box(f"ln -s {tmp_path} /tmp/d; ln -s / /tmp/root") as container:
        for path in ("/tmp/d/HOSTMARK", f"/tmp/root{tmp_path}/HOSTMARK"):
            with pytest.raises(nsbox.CopyError, match="ENOENT"):
                container.copy_out(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["HOSTMARK"]


@pytest.mark.kernel
def test_a_sparse_terabyte_is_refused_at_once(tmp_path: Path) -> None:
    with python_box("open('r', 'w').truncate(1 << 40)\nopen('ready', 'w'); time.sleep(1000)",
                    rlimits={"fsize": 1 << 41}, profile="standard") as container:  # fmt: skip
        with kit.at_most(2), pytest.raises(nsbox.CopyError, match="bytes") as caught:
            container.copy_out("/tmp/r", tmp_path / "out")
        assert caught.value.errno == 27
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_grows_while_it_is_read_is_bounded(tmp_path: Path) -> None:
    code = """
data = b"x" * 65536
with open("r", "wb", 0) as file:
    open("ready", "w")
    while file.tell() < 60 << 20:
        file.write(data)
time.sleep(1000)
"""
    with python_box(code) as container:

        def refused() -> bool:
            try:
                container.copy_out("/tmp/r", tmp_path / "out", max_bytes=1 << 20)
            except nsbox.CopyError as error:
                return "more than 1048576" in str(error)
            return False

        poll_until(refused, kit.PATIENCE)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["out"])


@pytest.mark.kernel
def test_a_name_that_is_no_text_comes_out(tmp_path: Path) -> None:
    code = "os.mkdir('w'); open(b'w/\\xff\\n', 'w').write('x')\nopen('ready', 'w'); time.sleep(999)"
    with python_box(code) as container:
        assert container.copy_out("/tmp/w", tmp_path / "out").files == 1
        assert container.copy_out("/tmp/w/\udcff\n", tmp_path / "one").files == 1
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"\xff\n"]


DEEP = """
os.mkdir("w"); os.chdir("w")
for _ in range(10000):
    os.mkdir("d"); os.chdir("d")
os.chdir("/tmp")
open("ready", "w"); time.sleep(1000)
"""


def test_a_directory_10000_deep_is_bounded_and_leaves_nothing(tmp_path: Path) -> None:
    with python_box(DEEP) as container, kit.at_most(10):
        for depth in (32, 200):
            with pytest.raises(nsbox.CopyError, match=f"{depth} levels"):
                container.copy_out("/tmp/w", tmp_path / "out", depth=depth)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_many_files_are_bounded_and_leave_nothing(tmp_path: Path, kind: str) -> None:
    make = "open(f'w/{i}', 'w').close()" if kind == "file" else "os.mkfifo(f'w/{i}')"
    code = f"os.mkdir('w')\nfor i in range(2000): {make}\nopen('ready', 'w'); time.sleep(1000)"
    with python_box(code) as container, pytest.raises(nsbox.CopyError, match=r"1000|too much"):
        container.copy_out("/tmp/w", tmp_path / "out", max_files=1000)
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_bounded_in_all(tmp_path: Path) -> None:
    with box("mkdir /tmp/w; for i in 1 2 3; do head -c 1000 /dev/zero > /tmp/w/$i; done") as c:
        assert c.copy_out("/tmp/w", tmp_path / "enough", max_bytes=3000).bytes == 3000
        with pytest.raises(nsbox.CopyError, match="2999"):
            c.copy_out("/tmp/w", tmp_path / "out", max_bytes=2999)
    assert os.listdir(tmp_path) == ["enough"]


SWAP = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("w/d"); open("w/d/mark", "w").write("inside")
os.symlink(sys.argv[1], "w/l")
open("ready", "w")
while True:
    libc.renameat2(-100, b"w/d", -100, b"w/l", 2)
"""


def test_a_directory_swapped_for_a_link_gives_nothing_of_the_host(tmp_path: Path) -> None:
    """2,000 copies while the payload exchanges a directory and a link at full speed."""
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this libc has no renameat2")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "mark").write_text("HOST")
    args = ["/usr/bin/python3", "-I", "-S", "-c", f"import os, time\nos.chdir('/tmp')\n{SWAP}",
            str(secret)]  # fmt: skip
    seen = {"inside": 0, "link": 0}
    with nsbox.Container(args) as container:
        await_ready(container)
        for i in range(2000):
            out = tmp_path / f"out{i}"
            if i % 2:
                try:
                    container.copy_out("/tmp/w/d/mark", out)
                    assert out.read_text() == "inside"
                    seen["inside"] += 1
                except nsbox.CopyError:
                    seen["link"] += 1
                continue
            done = container.copy_out("/tmp/w", out)
            seen["link"] += bool(done.skipped)
            for path in out.rglob("mark"):
                assert path.read_text() == "inside"
    assert seen["inside"] > 20
    assert seen["link"] > 20
    assert (secret / "mark").read_text() == "HOST"


# -- in -----------------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("init", [False, True])
def test_a_file_goes_in_and_is_the_payloads(tmp_path: Path, init: bool) -> None:
    (tmp_path / "f").write_text("hello")
    (tmp_path / "f").chmod(0o640)
    with box(init=init) as container:
        assert container.copy_in(tmp_path / "f", "/tmp/in").bytes == 5
        (tmp_path / "f").write_text("again")
        container.copy_in(tmp_path / "f", "/tmp/in")
        where = Path(f"/proc/{container.pid}/root/tmp/in")
        uid = int(kit.status(Path(f"/proc/{container.pid}/status").read_text())["Uid"].split()[0])
        assert where.read_text() == "again"
        assert (where.stat().st_uid, stat.S_IMODE(where.stat().st_mode)) == (uid, 0o640)


@pytest.mark.kernel
def test_a_directory_goes_in_with_its_links(tmp_path: Path) -> None:
    (tmp_path / "w/sub").mkdir(parents=True)
    (tmp_path / "w/sub/f").write_text("x")
    (tmp_path / "w/link").symlink_to("sub/f")
    with box() as container:
        assert container.copy_in(tmp_path / "w", "/tmp/w") == (2, 1, ())
        with pytest.raises(nsbox.CopyError, match="EEXIST"):
            container.copy_in(tmp_path / "w", "/tmp/w")
        assert Path(f"/proc/{container.pid}/root/tmp/w/link").read_text() == "x"


def test_what_goes_in_lands_where_the_payload_would_be_led(tmp_path: Path) -> None:
    outside = kit.open_directory(tmp_path / "outside")
    (tmp_path / "f").write_text("x")
    script = f"ln -s {outside} /tmp/out; mkdir /tmp/d; ln -s /../tmp/d /tmp/in; ln -s / /tmp/f"
    with box(script) as container:
        with pytest.raises(nsbox.CopyError, match="ENOENT"):
            container.copy_in(tmp_path / "f", "/tmp/out/f")
        container.copy_in(tmp_path / "f", "/tmp/in/f")
        container.copy_in(tmp_path / "f", "/tmp/f")
        root = Path(f"/proc/{container.pid}/root/tmp")
        assert (root / "d/f").read_text() == "x"
        assert not (root / "f").is_symlink(), "the link is replaced, not followed"
    assert list(outside.iterdir()) == []


def test_what_the_payload_may_not_write_neither_may_a_copy(tmp_path: Path) -> None:
    kit.open_directory(tmp_path / "closed").chmod(0o755)
    (tmp_path / "f").write_text("x")
    if kit.ROOT:
        mounts = [Mount.bind(tmp_path / "closed", "/data", ro=False)]
        with box(mounts=mounts) as container, pytest.raises(nsbox.CopyError, match="EACCES"):
            container.copy_in(tmp_path / "f", "/data/f")
    with box() as container:
        for path in ("/usr/f", "/dev/f"):
            with pytest.raises(nsbox.CopyError, match=r"EROFS|EACCES|EOVERFLOW|not mapped"):
                container.copy_in(tmp_path / "f", path)
    assert list((tmp_path / "closed").iterdir()) == []


def test_an_error_says_at_which_end_it_was_and_where(tmp_path: Path) -> None:
    (tmp_path / "w/sub").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "w/sub/f").write_text("x" * 100)
    none = tmp_path / "none"
    with box("mkdir -p /tmp/w/sub; head -c 100 /dev/zero > /tmp/w/sub/f",
             limits=nsbox.Limits(disk="64KiB", inodes=16)) as container:  # fmt: skip
        (tmp_path / "w/sub/large").write_bytes(bytes(1 << 20))
        cases = [
            (lambda: container.copy_in(none, "/tmp/x"), "src", none, "", "ENOENT"),
            (lambda: container.copy_in(none / "x", "/tmp/x"), "src", none / "x", "", "ENOENT"),
            (lambda: container.copy_in(tmp_path / "pipe", "/tmp/x"),
             "src", tmp_path / "pipe", "", "a pipe"),
            (lambda: container.copy_in(tmp_path / "w/sub/f", "/none/x"),
             "dst", "/none/x", "", "ENOENT"),
            (lambda: container.copy_in(tmp_path / "w/sub/f", "/tmp/w/sub/f/x"),
             "dst", "/tmp/w/sub/f/x", "", "ENOTDIR"),
            (lambda: container.copy_in(tmp_path / "w", "/tmp/x"),
             "dst", "/tmp/x", "sub/large", "ENOSPC"),
            (lambda: container.copy_in(tmp_path / "d", "/tmp/w"), "dst", "/tmp/w", "", "EEXIST"),
            (lambda: container.copy_in(tmp_path / "w/sub/f", "/tmp"), "dst", "/tmp", "", "EISDIR"),
            (lambda: container.copy_in(tmp_path / "d", "/tmp"), "dst", "/tmp", "", "EEXIST"),
            (lambda: container.copy_in(tmp_path / "none", "/tmp"),
             "src", str(tmp_path / "none"), "", "ENOENT"),
            (lambda: container.copy_out("/tmp/w/sub/f", tmp_path / "d"),
             "dst", str(tmp_path / "d"), "", "EISDIR"),
            (lambda: container.copy_out("/tmp/none", tmp_path / "x"),
             "src", "/tmp/none", "", "ENOENT"),
            (lambda: container.copy_out("/tmp/w", none / "x"), "dst", none / "x", "", "ENOENT"),
            (lambda: container.copy_out("/tmp/w", tmp_path / "x", max_bytes=5),
             "src", "/tmp/w", "sub/f", "more than 5 bytes"),
        ]  # fmt: skip
        for copy, field, place, path, why in cases:
            with pytest.raises(nsbox.CopyError) as caught:
                copy()
            error = caught.value
            assert (error.field, error.place, error.path) == (field, str(place), path)
            whole = os.path.join(place, path) if path else str(place)
            assert str(error).startswith(f"{field} {whole!r}: {why}")
    assert not (tmp_path / "x").exists()


def test_copying_changes_nothing_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")

    def state() -> list[str]:
        text = Path("/proc/thread-self/status").read_text()
        keys = ("Uid", "Gid", "Groups", "CapEff", "CapPrm")
        return [line for line in text.splitlines() if line.startswith(keys)] + [
            f"dumpable {ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)}"
        ]

    with box() as container:
        before = state()
        container.copy_in(tmp_path / "f", "/tmp/f")
        container.copy_out("/tmp/f", tmp_path / "g")
        assert state() == before


def test_into_and_out_of_an_overlay(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    root = kit.busybox_root(tmp_path / "root")
    kit.open_directory(root / "data")
    (tmp_path / "f").write_text("x")
    with box(root=Rootfs.overlay(root)) as container:
        container.copy_in(tmp_path / "f", "/data/f")
        container.copy_out("/data/f", tmp_path / "g")
        assert container.diff() == (("added", "/data/f"),)
    assert (tmp_path / "g").read_text() == "x"
    assert list((root / "data").iterdir()) == []


# -- refusals -----------------------------------------------------------------------------------


def test_only_a_running_container_is_copied_from(tmp_path: Path) -> None:
    container = nsbox.Container(["true"])
    with pytest.raises(nsbox.StateError):
        container.copy_out("/tmp/x", tmp_path / "x")
    with container:
        container.wait(kit.PATIENCE)
        with pytest.raises(nsbox.StateError):
            container.copy_in(tmp_path, "/tmp/x")


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"max_bytes": -1}, "max_bytes"),
        ({"max_files": "9"}, "max_files"),
        ({"depth": 201}, "depth"),
    ],
)
def test_bounds_that_are_none_are_refused(
    tmp_path: Path, keywords: dict[str, Any], field: str
) -> None:
    with box() as container, pytest.raises(nsbox.SpecError) as caught:
        container.copy_out("/tmp/x", tmp_path / "x", **keywords)
    assert caught.value.field == field


@pytest.mark.parametrize("path", ["tmp/x", "/tmp/../etc", "", "/a\0b"])
def test_paths_that_are_none_are_refused(tmp_path: Path, path: str) -> None:
    with box() as container, pytest.raises(nsbox.SpecError):
        container.copy_out(path, tmp_path / "x")
