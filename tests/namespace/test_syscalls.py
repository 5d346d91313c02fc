# SPDX-License-Identifier: Apache-2.0
"""nsbox.syscalls: raw calls of programs that move themselves; each effect is looked at."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of kit.PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import errno
import functools
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from namespace.kit import apart

from nsbox import syscalls as sc

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kernel


def elsewhere(test: Callable[[], None]) -> Callable[[], None]:
    @pytest.mark.root
    @functools.wraps(test)
    def wrapper() -> None:
        apart(test)

    return wrapper


@elsewhere
def test_unshare_sethostname_and_setns_back() -> None:
    before, home = os.uname().nodename, os.open("/proc/self/ns/uts", os.O_RDONLY)
    sc.unshare(Clone.NEWUTS)
    sc.sethostname("nsb-inside")
    assert os.uname().nodename == "nsb-inside"
    sc.setns(home, Clone.NEWUTS)
    assert os.uname().nodename == before


@elsewhere
def test_setns_by_a_pidfd_enters_several_at_once() -> None:
    with nsbox.Popen(["sleep", "1000"], namespaces=["uts", "ipc"], profile="none") as box:
        sc.setns(box.pidfd, Clone.NEWUTS | Clone.NEWIPC)
        for kind in ("uts", "ipc"):
            mine, its = (os.stat(f"/proc/{p}/ns/{kind}").st_ino for p in ("self", box.pid))
            assert mine == its


@elsewhere
def test_mount_pivot_root_and_umount() -> None:
    sc.mount("tmpfs", "/mnt", "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "size=1m,mode=700")
    os.mkdir("/mnt/old")
    Path("/mnt/here").touch()
    sc.pivot_root("/mnt", "/mnt/old")
    os.chdir("/")
    assert sorted(os.listdir("/")) == ["here", "old"]
    sc.umount2("/old", sc.UmountFlag.DETACH)
    assert os.listdir("/old") == []


@elsewhere
def test_a_file_system_by_the_new_mount_api() -> None:
    context = sc.fsopen("tmpfs")
    sc.fsconfig(context, sc.FsconfigCmd.SET_STRING, "size", "1048576")
    sc.fsconfig(context, sc.FsconfigCmd.CMD_CREATE)
    mount = sc.fsmount(context, attrs=sc.MountAttr.NODEV)
    assert not os.get_inheritable(mount)
    sc.move_mount("", "/mnt", sc.MoveMountFlag.F_EMPTY_PATH, from_fd=mount)
    status = os.statvfs("/mnt")
    assert status.f_frsize * status.f_blocks == 1 << 20
    Path("/mnt/x").write_text("y")
    sc.mount_setattr("/mnt", attr_set=sc.MountAttr.RDONLY)
    with pytest.raises(OSError, match="Read-only"):
        Path("/mnt/x").write_text("z")
    sc.mount_setattr("/mnt", attr_clr=sc.MountAttr.RDONLY)
    Path("/mnt/x").write_text("z")


@elsewhere
def test_a_copy_of_a_tree_is_attached_elsewhere() -> None:
    os.mkdir("/run/a")
    os.mkdir("/run/b")
    Path("/run/a/file").touch()
    tree = sc.open_tree("/run/a", sc.OpenTreeFlag.CLONE | sc.OpenTreeFlag.CLOEXEC)
    sc.move_mount("", "/run/b", sc.MoveMountFlag.F_EMPTY_PATH, from_fd=tree)
    assert os.listdir("/run/b") == ["file"]
    os.close(tree)
    sc.umount2("/run/b")
    assert os.listdir("/run/b") == []


@elsewhere
def test_a_mount_of_ones_own_is_not_seen_by_the_parent() -> None:
    os.mkdir("/run/nsb-inside")
    sc.mount("tmpfs", "/run/nsb-inside", "tmpfs")
    outside = Path(f"/proc/{os.getppid()}/mountinfo").read_text()
    assert " /run/nsb-inside " in Path("/proc/self/mountinfo").read_text()
    assert " /run/nsb-inside " not in outside


def test_pidfds_signal_and_hand_over_descriptors() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        secret = os.memfd_create("x")
        os.write(secret, b"hello")
        os.write(writer, b"%d\n" % secret)
        signal.pause()
        os._exit(1)
    pidfd = sc.pidfd_open(pid)
    try:
        number = int(os.read(reader, 10))
        copy = sc.pidfd_getfd(pidfd, number)
        assert os.pread(copy, 10, 0) == b"hello"
        assert not os.get_inheritable(copy)
        os.close(copy)
        sc.pidfd_send_signal(pidfd, 0)
        sc.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            sc.pidfd_send_signal(pidfd, 0)
    finally:
        for fd in (reader, writer, pidfd):
            os.close(fd)


NONE = "/nsbox-no-such"
ABSENT = {errno.ENOENT, errno.EPERM}  # who has no privilege is told so first
NOES: dict[str, tuple[Callable[[], Any], set[int]]] = {
    "setns": (lambda: sc.setns(-1), {errno.EBADF}),
    "unshare": (lambda: sc.unshare(1), {errno.EINVAL}),
    "umount2": (lambda: sc.umount2(NONE), ABSENT),
    "fsopen": (lambda: sc.fsopen("nsbox-no-such"), {errno.ENODEV, errno.EPERM}),
    "fsconfig": (lambda: sc.fsconfig(-1, sc.FsconfigCmd.CMD_CREATE), {errno.EBADF, errno.EINVAL}),
    "fsmount": (lambda: sc.fsmount(-1), {errno.EBADF, errno.EPERM}),
    "open_tree": (lambda: sc.open_tree(NONE, 0), ABSENT),
    "pidfd_open": (lambda: sc.pidfd_open(-1), {errno.EINVAL}),
    "pidfd_send_signal": (lambda: sc.pidfd_send_signal(-1, 0), {errno.EBADF}),
    "pidfd_getfd": (lambda: sc.pidfd_getfd(-1, 0), {errno.EBADF}),
    "sethostname": (lambda: sc.sethostname("x" * 65), {errno.EINVAL, errno.EPERM}),
    "pivot_root": (lambda: sc.pivot_root(NONE, "/"), ABSENT),
    "mount": (lambda: sc.mount("x", NONE, "tmpfs"), ABSENT),
    "move_mount": (lambda: sc.move_mount(NONE, "/"), ABSENT),
    "mount_setattr": (lambda: sc.mount_setattr(NONE, attr_set=1), ABSENT),
}


#: Of the table, those that nsbox.probe asks the kernel for, and that are nobody's to call here.
PROBED = {"landlock_create_ruleset", "seccomp"}


@pytest.mark.parametrize("name", sorted(set(sc.NUMBERS) - PROBED))
def test_the_kernels_no_is_an_os_error(name: str) -> None:
    call, expected = NOES[name]
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno in expected
    assert caught.value.strerror


@pytest.mark.parametrize("path", ["/a\0b", b"/a\0b"])
def test_a_nul_in_a_path_is_refused_here(path: Any) -> None:
    with pytest.raises(ValueError, match="null byte"):
        sc.umount2(path)


@elsewhere
def test_a_program_that_moved_itself_gets_sandboxes_where_it_is() -> None:
    Path("/run/data").mkdir()
    Path("/run/data/file").write_text("seen")
    bind = nsbox.Mount.bind("/run/data", "/data")
    done = nsbox.run(["cat", "/data/file"], mounts=[bind], capture_output=True, text=True)
    assert done.stdout == "seen"


@elsewhere
def test_no_mount_namespace_is_taken_for_another_whose_root_had_its_id() -> None:
    """Ids of mounts are given again, the least first. When the second thread of two comes, that of
    the first one's first root is free, though its namespace lives; and a lesser one, for the mount
    that is below its root."""
    import threading

    from nsbox import _core

    os.mkdir("/run/new")
    os.mkdir("/run/less")
    views, spaces = [], []

    def moves(on: bool) -> None:
        sc.unshare(Clone.NEWNS | 0x200)  # CLONE_FS: a root of its own
        sc.mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
        views.append(_core.view())
        spaces.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY))
        if on:
            sc.mount("/", "/run/new", None, MountFlag.BIND | MountFlag.REC)
            os.chdir("/run/new")
            sc.pivot_root(".", ".")
            sc.umount2(".", 2)

    for turn in range(60):
        if turn % 2:
            sc.umount2("/run/less")
        else:
            sc.mount("tmpfs", "/run/less", "tmpfs")
        thread = threading.Thread(target=moves, args=(turn % 2 == 0,))
        thread.start()
        thread.join()
    assert len({os.fstat(fd).st_ino for fd in spaces}) == 60
    assert len(set(views)) == 60
