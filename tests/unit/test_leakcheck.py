# SPDX-License-Identifier: Apache-2.0
"""The leak checker sees: one leak of each kind is planted, reported by its kind, and removed.

A leak checker that finds nothing because it is blind is worse than none.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from leakcheck import MARK, Inventory, assert_clean, registry_dirs
from support import cgroup1_parent, cgroup2_parent, poll_until, probe_cgroup1, scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).resolve().parents[1]
PATHS = [str(TESTS), str(TESTS / "unit")]
LIBC = ctypes.CDLL(None, use_errno=True)
UNSHARE = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
NO_ENV = {"PATH": os.environ["PATH"]}


class Planted(NamedTuple):
    """What the report must say: the kind, and a part of the identity."""

    kind: str
    text: str


def _owned_name(pid: int) -> str:
    """A name as nsbox gives it to what a process owns."""
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"nsbox-{pid}-{start}-1-1"


# -- starting and ending processes by pid -----------------------------------------------------


def _orphan(
    args: list[str], env: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()
) -> int:
    """Start *args* as nobody's waitable child, like a daemon; return its pid."""
    script = '"$@" >/dev/null 2>&1 <&- & echo $!'
    sh = ["setsid", "sh", "-c", script, "sh", *args]
    done = subprocess.run(sh, env=env, pass_fds=pass_fds, capture_output=True, check=True)
    return int(done.stdout)


def _end(pid: int) -> None:
    """SIGKILL, and wait until it is dead; init takes the zombie away when it looks."""
    assert pid > 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    poll_until(lambda: _dead(pid), 5, what=f"end of pid {pid}")


def _dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def _asleep_in(*namespaces: str) -> Iterator[int]:
    """A sleeping child of ours in new namespaces."""
    child = subprocess.Popen([*UNSHARE, *namespaces, "sleep", "60"])
    try:
        poll_until(lambda: b"sleep" in Path(f"/proc/{child.pid}/cmdline").read_bytes()[:5], 5)
        yield child.pid
    finally:
        child.kill()
        child.wait()


# -- the plants: each makes one thing, says what the report must say, and removes it ------------


@contextlib.contextmanager
def a_child() -> Iterator[Planted]:
    child = subprocess.Popen(["sleep", "60"], env=NO_ENV)
    try:
        # execve closes what Popen waits for before the new arguments are to be seen
        poll_until(Path(f"/proc/{child.pid}/cmdline").read_bytes)
        yield Planted("child", f"pid {child.pid} (sleep 60)")
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def a_marked_orphan() -> Iterator[Planted]:
    pid = _orphan(["sleep", "60"])
    try:
        yield Planted("process", f"pid {pid} (sleep 60)")
    finally:
        _end(pid)


@contextlib.contextmanager
def an_orphan_marked_by_name() -> Iterator[Planted]:
    name = f"payload-{os.environ[MARK]}"
    pid = _orphan(["sh", "-c", "sleep 60; :", name], env=NO_ENV)
    try:
        poll_until(lambda: _children(pid), 5)
        child = _children(pid)[0]
        yield Planted("process", f"pid {pid} ")
    finally:
        _end(pid)
        _end(child)


@contextlib.contextmanager
def an_unmarked_process_in_a_new_pid_namespace() -> Iterator[Planted]:
    unshare = [*UNSHARE, "--fork", "--pid", "--kill-child"]
    pid = _orphan([*unshare, "sleep", "60"], env=NO_ENV)
    inner = poll_until(lambda: _children(pid), 5)[0]
    try:
        yield Planted("process", f"pid {inner} ")
    finally:
        _end(pid)
        _end(inner)


@contextlib.contextmanager
def a_zombie() -> Iterator[Planted]:
    child = subprocess.Popen(["true"], env=NO_ENV)
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        yield Planted("zombie", f"pid {child.pid} (true)")
    finally:
        child.wait()


@contextlib.contextmanager
def a_file_descriptor() -> Iterator[Planted]:
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        yield Planted("fd", f"fd {fd} -> /dev/zero")
    finally:
        os.close(fd)


@contextlib.contextmanager
def a_socket() -> Iterator[Planted]:
    with socket.socket(socket.AF_UNIX) as s:
        yield Planted("fd", f"fd {s.fileno()} -> socket:[")


@contextlib.contextmanager
def a_thread() -> Iterator[Planted]:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="stray")
    thread.start()
    try:
        yield Planted("thread", f"stray (thread {thread.native_id})")
    finally:
        leave.set()
        thread.join()


@contextlib.contextmanager
def a_mount(tmp_path: Path) -> Iterator[Planted]:
    subprocess.run(["mount", "-t", "tmpfs", "nsbox-leaktest", tmp_path], check=True)
    try:
        yield Planted("mount", f"{tmp_path} (tmpfs")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@contextlib.contextmanager
def a_cgroup() -> Iterator[Planted]:
    path = _a_cgroup_parent()[0] / f"nsbox-leaktest-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    (path / "inner").mkdir()
    try:
        yield Planted("cgroup", f"{path}/inner")
    finally:
        (path / "inner").rmdir()
        path.rmdir()


@contextlib.contextmanager
def a_namespace_held_by_a_descriptor() -> Iterator[Planted]:
    with _asleep_in("--uts") as pid:
        fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY)
    try:
        yield Planted("namespace", os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


@contextlib.contextmanager
def a_namespace_held_by_a_process() -> Iterator[Planted]:
    with _asleep_in("--ipc") as pid:
        yield Planted("namespace", os.readlink(f"/proc/{pid}/ns/ipc"))


@contextlib.contextmanager
def a_pinned_namespace(tmp_path: Path) -> Iterator[Planted]:
    pin = tmp_path / "pin"
    pin.touch()
    with _asleep_in("--net") as pid:
        name = os.readlink(f"/proc/{pid}/ns/net")
        subprocess.run(["mount", "--bind", f"/proc/{pid}/ns/net", pin], check=True)
    try:
        yield Planted("namespace", name)
    finally:
        subprocess.run(["umount", pin], check=True)


@contextlib.contextmanager
def a_thread_in_its_own_namespace() -> Iterator[Planted]:
    """unshare(CLONE_FS) first needs no privilege; CLONE_NEWUTS does."""
    leave, entered = threading.Event(), threading.Event()

    def wander() -> None:
        assert LIBC.unshare(0x04000000) == 0, os.strerror(ctypes.get_errno())
        entered.set()
        leave.wait()

    thread = threading.Thread(target=wander)
    thread.start()
    try:
        assert entered.wait(scaled(5))
        yield Planted("namespace", os.readlink(f"/proc/self/task/{thread.native_id}/ns/uts"))
    finally:
        leave.set()
        thread.join()


@contextlib.contextmanager
def a_file_in_the_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Planted]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert f"{tmp_path}/nsbox" in registry_dirs()
    path = tmp_path / "nsbox" / "pods" / "web"
    path.parent.mkdir(parents=True)
    path.touch()
    try:
        yield Planted("file", str(path))
    finally:
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()


@contextlib.contextmanager
def a_file_in_tmp() -> Iterator[Planted]:
    path = Path(f"/tmp/{_owned_name(os.getpid())}")
    path.touch()
    try:
        yield Planted("file", str(path))
    finally:
        path.unlink()


@contextlib.contextmanager
def a_file_in_dev_shm() -> Iterator[Planted]:
    path = Path(f"/dev/shm/nsbox-leaktest-{uuid.uuid4().hex}")
    path.touch()
    try:
        yield Planted("shm", str(path))
    finally:
        path.unlink()


@contextlib.contextmanager
def a_message_queue() -> Iterator[Planted]:
    name = f"nsbox-leaktest-{uuid.uuid4().hex}"
    fd = LIBC.mq_open(f"/{name}".encode(), os.O_RDWR | os.O_CREAT, 0o600, None)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    os.close(fd)
    try:
        yield Planted("mqueue", name)
    finally:
        LIBC.mq_unlink(f"/{name}".encode())


@contextlib.contextmanager
def a_mapped_memfd() -> Iterator[Planted]:
    fd = os.memfd_create("nsbox-leaktest")
    os.ftruncate(fd, 4096)
    area = mmap.mmap(fd, 4096)  # CPython keeps a duplicate of the descriptor
    os.close(fd)
    try:
        yield Planted("memfd", "/memfd:nsbox-leaktest")
    finally:
        area.close()


@contextlib.contextmanager
def a_sysv_segment() -> Iterator[Planted]:
    number = LIBC.shmget(0, 4096, 0o1600)  # IPC_PRIVATE, IPC_CREAT
    assert number >= 0, os.strerror(ctypes.get_errno())
    try:
        yield Planted("sysvipc", f"shm id {number} ")
    finally:
        LIBC.shmctl(number, 0, None)  # IPC_RMID


@contextlib.contextmanager
def a_changed_umask() -> Iterator[Planted]:
    before = os.umask(0o077)
    os.umask(0o047)
    try:
        yield Planted("umask", "0047")
    finally:
        os.umask(before)


@contextlib.contextmanager
def an_ignored_signal() -> Iterator[Planted]:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield Planted("signals", "SIGUSR2")
    finally:
        signal.signal(signal.SIGUSR2, before)


@contextlib.contextmanager
def a_blocked_signal() -> Iterator[Planted]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield Planted("signals", "SigBlk {SIGUSR1")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def a_changed_directory(tmp_path: Path) -> Iterator[Planted]:
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        yield Planted("cwd", str(tmp_path))
    finally:
        os.chdir(before)


@contextlib.contextmanager
def a_lost_dumpable_flag() -> Iterator[Planted]:
    LIBC.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    try:
        yield Planted("credentials", "dumpable 0")
    finally:
        LIBC.prctl(4, 1, 0, 0, 0)


# -- the promise ------------------------------------------------------------------------------


def _check(plant: Callable[[], contextlib.AbstractContextManager[Planted]]) -> None:
    baseline = Inventory.take()
    with plant() as planted:
        leaks = Inventory.take().minus(baseline)
        with pytest.raises(AssertionError, match=planted.kind) as caught:
            assert_clean(baseline, timeout_s=0)
    found = [leak for leak in leaks if leak.kind == planted.kind and planted.text in leak.identity]
    assert found, f"{planted} is not among {[str(leak) for leak in leaks]}"
    assert planted.text in str(caught.value)
    assert_clean(baseline, timeout_s=scaled(5))


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(a_child, id="a child is reported"),
        pytest.param(a_marked_orphan, id="a marked orphan is reported"),
        pytest.param(an_orphan_marked_by_name, id="an orphan marked in its arguments is reported"),
        pytest.param(a_zombie, id="a zombie is reported"),
        pytest.param(a_file_descriptor, id="a file descriptor is reported"),
        pytest.param(a_socket, id="a socket is reported"),
        pytest.param(a_thread, id="a thread is reported"),
        pytest.param(a_file_in_tmp, id="a file in the temporary directory is reported"),
        pytest.param(a_file_in_dev_shm, id="a file in /dev/shm is reported"),
        pytest.param(a_mapped_memfd, id="a mapped memfd is reported"),
        pytest.param(a_sysv_segment, id="a SysV shared memory segment is reported"),
        pytest.param(a_changed_umask, id="a changed umask is reported"),
        pytest.param(an_ignored_signal, id="an ignored signal is reported"),
        pytest.param(a_blocked_signal, id="a blocked signal is reported"),
        pytest.param(a_lost_dumpable_flag, id="a lost dumpable flag is reported"),
    ],
)
def test_what_anybody_can_plant(
    plant: Callable[[], contextlib.AbstractContextManager[Planted]],
) -> None:
    _check(plant)


@pytest.mark.userns
@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(
            an_unmarked_process_in_a_new_pid_namespace,
            id="an unmarked stray process in a new pid namespace is reported",
        ),
        pytest.param(
            a_namespace_held_by_a_descriptor, id="a namespace held by a descriptor is reported"
        ),
        pytest.param(a_namespace_held_by_a_process, id="a namespace of a process is reported"),
    ],
)
def test_namespaces(plant: Callable[[], contextlib.AbstractContextManager[Planted]]) -> None:
    _check(plant)


@pytest.mark.root
@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(a_message_queue, id="a message queue is reported"),
        pytest.param(a_thread_in_its_own_namespace, id="a thread's namespace is reported"),
    ],
)
def test_what_root_can_plant(
    plant: Callable[[], contextlib.AbstractContextManager[Planted]],
) -> None:
    _check(plant)


def test_a_changed_working_directory_is_reported(tmp_path: Path) -> None:
    _check(lambda: a_changed_directory(tmp_path))


def test_a_file_in_the_registry_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    _check(lambda: a_file_in_the_registry(monkeypatch, tmp_path))


@pytest.mark.root
def test_a_mount_is_reported(tmp_path: Path) -> None:
    _check(lambda: a_mount(tmp_path))


@pytest.mark.root
def test_a_pinned_namespace_is_reported(tmp_path: Path) -> None:
    _check(lambda: a_pinned_namespace(tmp_path))


@pytest.mark.cgroup
def test_a_cgroup_is_reported() -> None:
    _check(a_cgroup)


# -- what must not be planted in the caller's namespaces ----------------------------------------

INSIDE = """
import ctypes, json, os, socket, struct, subprocess, sys
sys.path.insert(0, sys.argv[1])
from leakcheck import Inventory, assert_clean
baseline = Inventory.take()
{plant}
leaks = Inventory.take().minus(baseline)
{undo}
assert_clean(baseline, 5)
print(json.dumps([[leak.kind, leak.identity] for leak in leaks]))
"""


def _leaks_inside(namespaces: list[str], plant: str, undo: str = "") -> list[list[str]]:
    """Plant and take back in a process of its own, in new namespaces."""
    code = INSIDE.format(plant=textwrap.dedent(plant), undo=textwrap.dedent(undo))
    unshare = ["unshare", "--user", "--map-root-user", *namespaces] if namespaces else []
    done = subprocess.run(
        [*unshare, sys.executable, "-B", "-c", code, str(TESTS)],
        capture_output=True,
        text=True,
        timeout=scaled(30),
    )
    assert done.returncode == 0, done.stderr
    leaks: list[list[str]] = json.loads(done.stdout)
    return leaks


@pytest.mark.userns
@pytest.mark.parametrize(
    ("namespaces", "plant", "undo", "expected"),
    [
        pytest.param(
            ["--net"],
            "subprocess.run(['ip', 'link', 'add', 'nsb0', 'type', 'bridge'], check=True)",
            "subprocess.run(['ip', 'link', 'del', 'nsb0'], check=True)",
            Planted("link", "nsb0 "),
            id="a link is reported, though /sys shows another namespace",
        ),
        pytest.param(
            ["--net"],
            """
            def message(kind, family, *attributes):
                body = bytes([family, 0, 0, 10 * (kind < 2560)])
                for number, text in attributes:
                    data = struct.pack('=HH', 5 + len(text), number) + text.encode() + bytes(1)
                    body += data + bytes(-len(data) % 4)
                return struct.pack('=IHHII', 16 + len(body), kind, 0x401, 1, 0) + body
            def batch(*messages):
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as nfnetlink:
                    nfnetlink.send(b''.join([message(16, 0), *messages, message(17, 0)]))
            batch(message(2560, 2, (1, 'nsb')), message(2563, 2, (1, 'nsb'), (3, 'out')))
            """,
            "batch(message(2562, 2, (1, 'nsb')))",
            Planted("nft", "table nsb chain out"),
            id="a firewall chain is reported",
        ),
        pytest.param(
            ["--mount"],
            "subprocess.run(['mount', '-t', 'tmpfs', 'nsbox-leaktest', '/mnt'], check=True)",
            "subprocess.run(['umount', '/mnt'], check=True)",
            Planted("mount", "/mnt (tmpfs"),
            id="a mount in its own namespace is reported",
        ),
        pytest.param(
            ["--mount", "--ipc"],
            """
            subprocess.run(['mount', '-t', 'tmpfs', 'nsbox-leaktest', '/mnt'], check=True)
            pid = subprocess.Popen(['unshare', '--uts', 'sleep', '60'])
            while b'sleep' not in open(f'/proc/{pid.pid}/cmdline', 'rb').read()[:5]: pass
            open('/mnt/pin', 'w').close()
            subprocess.run(['mount', '--bind', f'/proc/{pid.pid}/ns/uts', '/mnt/pin'], check=True)
            pid.kill(); pid.wait()
            """,
            "subprocess.run(['umount', '-R', '/mnt'], check=True)",
            Planted("namespace", "uts:["),
            id="a namespace pinned by a mount is reported",
        ),
        pytest.param(
            ["--ipc", "--mount"],
            """
            libc = ctypes.CDLL(None)
            os.close(libc.mq_open(b'/nsb', os.O_CREAT | os.O_RDWR, 0o600, None))
            """,
            "libc.mq_unlink(b'/nsb')",
            Planted("mqueue", "nsb"),
            id="a message queue is reported, though none is mounted",
        ),
        pytest.param(
            ["--uts"],
            "name = socket.gethostname(); socket.sethostname('nsb-stray')",
            "socket.sethostname(name)",
            Planted("sysctl", "kernel/hostname = nsb-stray"),
            id="a changed host name is reported",
        ),
        pytest.param(
            ["--uts"],
            """
            before = os.open('/proc/self/ns/uts', os.O_RDONLY)
            assert ctypes.CDLL(None).unshare(0x04000000) == 0
            """,
            "ctypes.CDLL(None).setns(before, 0); os.close(before)",
            Planted("own-namespace", "uts uts:["),
            id="a move of the caller to another namespace is reported",
        ),
        pytest.param(
            [],
            """
            import resource
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
            """,
            "resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))",
            Planted("rlimits", "Max open files"),
            id="a changed limit is reported",
        ),
    ],
)
def test_what_needs_namespaces_of_its_own(
    namespaces: list[str], plant: str, undo: str, expected: Planted
) -> None:
    leaks = _leaks_inside(namespaces, plant, undo)
    assert [k for k, text in leaks if k == expected.kind and expected.text in text], leaks


@pytest.mark.cgroup
@pytest.mark.root
def test_a_move_of_the_caller_to_another_cgroup_is_reported() -> None:
    parent, name = _a_cgroup_parent()
    home = _own_cgroup(parent)
    group = parent / _owned_name(os.getpid())
    leaks = _leaks_inside(
        [],
        f"""
        os.mkdir({str(group)!r})
        open({f"{group}/{name}"!r}, 'w').write('0')
        """,
        f"""
        open({f"{home}/{name}"!r}, 'w').write('0')
        os.rmdir({str(group)!r})
        """,
    )
    assert [text for kind, text in leaks if kind == "own-cgroup" and group.name in text]


def _a_cgroup_parent() -> tuple[Path, str]:
    """A directory where a group can be made, and the file by which a process enters it."""
    if probe_cgroup1():
        return cgroup2_parent(), "cgroup.procs"
    return cgroup1_parent("pids"), "tasks"


def _own_cgroup(parent: Path) -> Path:
    """The directory below (or at) *parent* that lists us."""
    me = str(os.getpid())
    return next(p.parent for p in parent.rglob("cgroup.procs") if me in p.read_text().split())


# -- what is normal ---------------------------------------------------------------------------

LAUNCHER = """
import ctypes, os, signal
for child in {children!r}:
    os.spawnvp(os.P_NOWAIT, child[0], child)
ctypes.CDLL(None).prctl(15, b'nsbox-launcher', 0, 0, 0)
signal.pause()
"""


@contextlib.contextmanager
def _launcher(*children: list[str], keep: int) -> Iterator[int]:
    """A process that looks like nsbox's: the memfd's name, the comm, not a descendant.

    *keep* is its end of the control socket, by which its owner is found.
    """
    fd = os.memfd_create("nsbox-init", 0)
    with open(os.path.realpath(sys.executable), "rb") as python:
        os.sendfile(fd, python.fileno(), 0, os.fstat(python.fileno()).st_size)
    args = [f"/proc/self/fd/{fd}", "-ISc", LAUNCHER.format(children=children)]
    env = {**NO_ENV, "PYTHONHOME": sys.base_prefix}
    pid = _orphan(args, env, pass_fds=(fd, keep))
    os.close(fd)
    inner: list[int] = []
    try:
        comm = Path(f"/proc/{pid}/comm")
        poll_until(lambda: comm.read_text() == "nsbox-launcher\n", 10, what="the launcher's name")
        inner = _tree(pid)
        yield pid
    finally:
        for each in (pid, *inner):
            _end(each)


@contextlib.contextmanager
def _pair() -> Iterator[int]:
    """A control socket, held by this process: the end that a launcher is to be given."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        yield far.fileno()


def _tree(pid: int) -> list[int]:
    return [p for child in _children(pid) for p in (child, *_tree(child))]


def the_first_launcher_is_normal() -> None:
    with _pair() as far:
        baseline = Inventory.take()
        with _launcher(keep=far):
            assert_clean(baseline)


def a_replaced_launcher_is_normal() -> None:
    with _pair() as far, contextlib.ExitStack() as old:
        old.enter_context(_launcher(keep=far))
        baseline = Inventory.take()
        old.close()
        with _launcher(keep=far):
            assert_clean(baseline)


def a_launcher_that_outlives_its_successor_is_a_leak() -> None:
    with _pair() as far, _launcher(keep=far) as old:
        baseline = Inventory.take()
        with _launcher(keep=far):
            leaks = [leak for leak in Inventory.take().minus(baseline) if leak.kind == "launcher"]
            assert [f"pid {old} " in leak.identity for leak in leaks] == [True]
        assert_clean(baseline)


def a_child_of_a_launcher_is_a_leak() -> None:
    with _pair() as far:
        baseline = Inventory.take()
        with _launcher(["sleep", "60"], keep=far) as pid:
            leaks = [(leak.kind, leak.identity) for leak in Inventory.take().minus(baseline)]
            assert ("process", f"pid {_children(pid)[0]} (sleep 60)") in leaks
            assert "launcher" not in dict(leaks)
        assert_clean(baseline)


@pytest.mark.root
@pytest.mark.parametrize(
    "promise",
    [
        the_first_launcher_is_normal,
        a_replaced_launcher_is_normal,
        a_launcher_that_outlives_its_successor_is_a_leak,
        a_child_of_a_launcher_is_a_leak,
    ],
    ids=lambda promise: promise.__name__.replace("_", " "),
)
def test_launcher(promise: Callable[[], None]) -> None:
    """In a process of its own: this one has the library's real launcher."""
    code = "import sys; sys.path[:0] = sys.argv[1:3]; import test_leakcheck as t; t.{}()"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code.format(promise.__name__), *PATHS],
        capture_output=True,
        text=True,
        timeout=scaled(60),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.root
def test_the_launcher_of_a_stranger_is_not_a_leak(tmp_path: Path) -> None:
    """Neither is its sandbox: the other end of its socket tells whose it is."""
    baseline = Inventory.take()
    with _stranger(tmp_path / "up", "serve"):
        now = Inventory.take()
        new = [p for p in now.procs.values() if p.is_launcher and p.pid not in baseline.procs]
        assert new != []
        assert_clean(baseline)


# -- what is somebody else's --------------------------------------------------------------------


def be_a_stranger(up: str, what: str) -> None:
    """Runs in a process that is not ours. "serve": own a launcher with a sandbox of sorts."""
    with contextlib.ExitStack() as stack:
        if what == "serve":
            far = stack.enter_context(_pair())
            sandbox = ["unshare", "--fork", "--pid", "--kill-child", "sleep", "60"]
            launcher = stack.enter_context(_launcher(sandbox, keep=far))
            poll_until(lambda: len(_tree(launcher)) == 2, 10)
        Path(up).touch()
        signal.sigwait({signal.SIGTERM})


@contextlib.contextmanager
def _stranger(up: Path, what: str = "wait") -> Iterator[int]:
    code = (
        "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM});"
        "sys.path[:0] = sys.argv[1:3]; import test_leakcheck;"
        "test_leakcheck.be_a_stranger(*sys.argv[3:])"
    )
    pid = _orphan([sys.executable, "-B", "-c", code, *PATHS, str(up), what], env=NO_ENV)
    try:
        poll_until(up.exists, 20, what="the stranger")
        yield pid
    finally:
        assert pid > 1
        os.kill(pid, signal.SIGTERM)
        poll_until(lambda: _dead(pid), 10, what=f"end of pid {pid}")


def test_a_process_of_a_stranger_is_not_a_leak(tmp_path: Path) -> None:
    baseline = Inventory.take()
    with _stranger(tmp_path / "up"):
        assert_clean(baseline)


@pytest.mark.userns
def test_a_sandbox_of_a_process_that_was_there_before_is_not_a_leak(tmp_path: Path) -> None:
    """What an earlier neighbour starts is its own, new namespaces or not."""
    go = tmp_path / "go"
    os.mkfifo(go)
    script = f"read line < {go}; {' '.join(UNSHARE)} --ipc sleep 60"
    pid = _orphan(["sh", "-c", script], env=NO_ENV)
    baseline = Inventory.take()
    try:
        go.write_text("go\n")
        inner = poll_until(lambda: _children(pid), 5)[0]
        own = os.readlink("/proc/self/ns/ipc")
        poll_until(lambda: os.readlink(f"/proc/{inner}/ns/ipc") != own, 5)
        assert_clean(baseline)
    finally:
        for each in (pid, *_tree(pid)):
            _end(each)


def test_a_directory_named_after_a_living_stranger_is_not_a_leak(tmp_path: Path) -> None:
    with _stranger(tmp_path / "up") as pid:
        baseline = Inventory.take()
        theirs, stale = Path(f"/tmp/{_owned_name(pid)}"), Path(f"/tmp/nsbox-{os.getpid()}-1-1-1")
        theirs.touch()
        stale.touch()  # no such process (start time): its owner died
        try:
            assert _files(baseline) == [str(stale)]
        finally:
            theirs.unlink()
            stale.unlink()


def _files(baseline: Inventory) -> list[str]:
    return [leak.identity for leak in Inventory.take().minus(baseline) if leak.kind == "file"]


@pytest.mark.cgroup
def test_a_cgroup_that_a_stranger_left_is_not_a_leak(tmp_path: Path) -> None:
    """Its owner was seen alive once: the name tells, even after its end."""
    group = _a_cgroup_parent()[0]
    with _stranger(tmp_path / "up") as pid:
        group /= _owned_name(pid)
        baseline = Inventory.take()
        assert_clean(baseline)
    group.mkdir()
    try:
        assert_clean(baseline)
    finally:
        group.rmdir()


def test_what_the_environment_names_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = Inventory.take()
    with a_file_in_dev_shm() as planted:
        with pytest.raises(AssertionError, match=planted.text):
            assert_clean(baseline, timeout_s=0)
        monkeypatch.setenv("NSBOX_LEAKS_IGNORE", f"fd:*,shm:{planted.text}")
        assert_clean(baseline)


# -- the fixture and the marks ------------------------------------------------------------------


def _pytest(directory: Path, test: str, **env: str) -> str:
    """Run one test file under the same conftest; return what pytest printed."""
    (directory / "test_it.py").write_text(f"import os, pytest\n{textwrap.dedent(test)}")
    options = ["-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull, "-rs",
               "-o", "faulthandler_timeout=60"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *options, f"--rootdir={directory}", "test_it.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(TESTS), **env},
        capture_output=True,
        text=True,
        timeout=scaled(60),
    )
    return done.stdout + done.stderr


def test_a_test_that_leaks_has_an_error_and_the_next_one_has_none(tmp_path: Path) -> None:
    said = _pytest(
        tmp_path,
        """
        def test_leaks(): os.open("/dev/zero", os.O_RDONLY)
        def test_clean(): pass
        @pytest.mark.leaks_ok("planted")
        def test_excused(): os.open("/dev/zero", os.O_RDONLY)
        def test_clean_again(): pass
        def test_fails(): assert 0
        def test_clean_after_a_failure(): pass
        """,
        NSBOX_TIMEOUT_SCALE="0.1",
    )
    assert "1 failed, 5 passed, 1 error" in said, said
    assert "-> /dev/zero" in said


def test_leaks_ok_without_a_reason_is_refused(tmp_path: Path) -> None:
    said = _pytest(tmp_path, "@pytest.mark.leaks_ok\ndef test_it(): pass")
    assert "leaks_ok needs a reason" in said, said


UNMET = "user" if os.geteuid() == 0 else "root"


def test_an_unmet_need_is_a_skip_with_its_reason(tmp_path: Path) -> None:
    said = _pytest(tmp_path, f"@pytest.mark.{UNMET}\ndef test_it(): pass", NSBOX_REQUIRE="")
    assert "1 skipped" in said, said
    assert f"{UNMET}: needs" in said


def test_an_unmet_need_that_is_required_is_a_failure(tmp_path: Path) -> None:
    said = _pytest(tmp_path, f"@pytest.mark.{UNMET}\ndef test_it(): pass", NSBOX_REQUIRE=UNMET)
    assert "1 error" in said, said
    assert f"NSBOX_REQUIRE={UNMET}, but: needs" in said


def test_a_required_mark_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    said = _pytest(tmp_path, "def test_it(): pass", NSBOX_REQUIRE="usrens")
    assert "no such mark: usrens" in said, said


def test_the_probes_leave_no_group_behind() -> None:
    assert not list(Path("/sys/fs/cgroup").rglob(f"nsbox-probe-{os.getpid()}"))
