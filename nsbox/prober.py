# SPDX-License-Identifier: Apache-2.0
"""Tries what the kernel lets this caller do, each in a process of its own that then ends.

A script of its own, which ``diagnosis.py`` starts: what is tried here (namespaces, mounts,
filters) is not to be tried in the caller's process. It knows nothing of nsbox, prints one line
of JSON for each check, and leaves nothing, since all that is made goes with its process.

    python -I -S prober.py '[["clone3", []], ["net namespace", ["net"]], ...]'
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

PATIENCE_S = 2.0
INIT_WITHOUT_ARGUMENTS = 125
EUID, EGID = os.geteuid(), os.getegid()

# Numbers of system calls above 423 are the same on every architecture.
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 428, 429, 430, 431, 432
PIDFD_OPEN, CLONE3, CLOSE_RANGE, OPENAT2, MOUNT_SETATTR = 434, 435, 436, 437, 442
LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446

NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
KINDS = {"mnt": NEWNS, "pid": NEWPID, "net": NEWNET, "ipc": NEWIPC, "uts": NEWUTS,
         "cgroup": NEWCGROUP, "time": NEWTIME}  # fmt: skip
CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io", "freezer")
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, O_CLOEXEC = -100, 0x1000, 0x8000, 0o2000000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """A call that the kernel refused, or that did not do what it is for."""

    def __init__(self, call: str, err: int = 0, detail: str = "") -> None:
        super().__init__(call, err, detail)
        self.call, self.err, self.detail = call, err, detail


def done(call: str, result: int) -> int:
    if result < 0:
        raise Refused(call, ctypes.get_errno())
    return result


def syscall(call: str, number: int, *args: Any) -> int:
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return done(call, libc.syscall(ctypes.c_long(number), *wide))


def unshare(flags: int) -> None:
    done("unshare", libc.unshare(ctypes.c_int(flags)))


def mount(kind: str, where: str, options: str = "") -> None:
    args = (kind.encode(), where.encode(), kind.encode(), ctypes.c_ulong(0), options.encode())
    done(f"mount {kind}", libc.mount(*args))


def write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as e:
        raise Refused(f"write {path}", e.errno or 0) from e


def expect(what: str, holds: bool) -> None:
    if not holds:
        raise Refused(what, 0, "was accepted and has no effect")


# -- namespaces -------------------------------------------------------------------------------


def enter_userns() -> None:
    unshare(NEWUSER)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {EUID} 1")
    write("/proc/self/gid_map", f"0 {EGID} 1")


def privileged(flags: int) -> None:
    """Into new namespaces, as an ordinary user inside of a new user namespace."""
    if EUID:
        enter_userns()
    unshare(flags)


def in_child(work: Callable[[], str]) -> NoReturn:
    """Go on in a new process, which is PID 1 of a new pid namespace."""
    pid = os.fork()
    if pid == 0:
        report(work)
    os.waitpid(pid, 0)
    os._exit(0)


def check_user_namespace() -> str:
    enter_userns()
    # where AppArmor lets the namespace be made but gives it no capability, this is refused
    unshare(NEWUTS)
    done("sethostname", libc.sethostname(b"nsbox", 5))
    return f"uid {EUID} is 0 inside"


def check_namespace(kind: str) -> str:
    before = os.stat(f"/proc/self/ns/{kind}").st_ino
    privileged(KINDS[kind])
    name = f"{kind}_for_children" if kind in ("pid", "time") else kind
    if kind == "pid":  # its link is there once it has a process

        def look() -> str:
            expect("unshare", os.getpid() == 1)
            return ""

        in_child(look)
    expect("unshare", os.stat(f"/proc/self/ns/{name}").st_ino != before)
    return ""


def run_helper(*args: str) -> None:
    ended = subprocess.run(
        args, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[0]
        raise Refused(os.path.basename(args[0]), 0, said)


def check_id_range(ranges: dict[str, Any]) -> str:
    """Map 65536 ids into a user namespace: by oneself as root, else by newuidmap."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(go[1])
        made = libc.unshare(NEWUSER) == 0
        os.write(ready[1], b"\0" if made else bytes([ctypes.get_errno()]))
        os.read(go[0], 1)
        os._exit(0)
    try:
        if err := os.read(ready[0], 1)[0]:
            raise Refused("unshare", err)
        for kind in ("uid", "gid"):
            first = ranges[f"sub{kind}"]
            if EUID == 0:
                write(f"/proc/{pid}/{kind}_map", f"0 {first} 65536")
            else:
                run_helper(ranges[f"new{kind}map"], str(pid), "0", str(first), "65536")
            with open(f"/proc/{pid}/{kind}_map") as file:
                expect(f"{kind}_map", file.read().split()[2:] == ["65536"])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return "65536 ids" + ("" if EUID == 0 else " by newuidmap and newgidmap")


# -- mounts in a user namespace ---------------------------------------------------------------


def mount_point() -> str:
    for path in ("/tmp", "/mnt", "/run", "/var", "/etc"):
        if os.path.isdir(path):
            return path
    raise Refused("stat", errno.ENOENT, "no directory to mount on")


def private_mounts(flags: int = 0) -> str:
    enter_userns()
    unshare(NEWNS | flags)
    return mount_point()


def check_bind() -> str:
    where = private_mounts()
    tree = syscall("open_tree", OPEN_TREE, AT_FDCWD, b"/dev/null", 1 | O_CLOEXEC | AT_RECURSIVE)
    read_only = struct.pack("QQQQ", 1, 0, 0, 0)
    syscall("mount_setattr", MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, read_only, len(read_only))
    mount("tmpfs", where)
    os.close(os.open(f"{where}/null", os.O_CREAT | os.O_CLOEXEC, 0o600))
    target = f"{where}/null".encode()
    syscall("move_mount", MOVE_MOUNT, tree, b"", AT_FDCWD, target, 4)
    expect("mount_setattr", bool(os.statvfs(target).f_flag & os.ST_RDONLY))
    return "open_tree, mount_setattr, move_mount"


def check_tmpfs() -> str:
    where = private_mounts()
    fs = syscall("fsopen", FSOPEN, b"tmpfs", 1)
    syscall("fsconfig", FSCONFIG, fs, 1, b"size", b"65536", 0)
    syscall("fsconfig", FSCONFIG, fs, 6, None, None, 0)
    made = syscall("fsmount", FSMOUNT, fs, 1, 0)
    syscall("move_mount", MOVE_MOUNT, made, b"", AT_FDCWD, where.encode(), 4)
    size = os.statvfs(where)
    expect("fsconfig size", size.f_blocks * size.f_frsize == 65536)
    return "fsopen, fsconfig, fsmount"


def check_overlay() -> str:
    where = private_mounts()
    mount("tmpfs", where)
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{where}/{name}")
    parts = ",".join(f"{n}dir={where}/{n}" for n in ("lower", "upper", "work"))
    mount("overlay", f"{where}/merged", parts)
    os.mkdir(f"{where}/merged/new")
    expect("mount overlay", os.path.isdir(f"{where}/upper/new"))
    return ""


def check_proc() -> str:
    where = private_mounts(NEWPID)

    def look() -> str:
        mount("proc", where, "subset=pid")
        with open(f"{where}/self/status") as file:
            expect("mount proc", "\nPid:\t1\n" in file.read())
        return ""

    in_child(look)


def check_mqueue() -> str:
    mount("mqueue", private_mounts(NEWIPC))
    return ""


# -- system calls -----------------------------------------------------------------------------


def check_clone3() -> str:
    pidfd = ctypes.c_int(-1)
    address = ctypes.addressof(pidfd)
    args = struct.pack("8Q", 0x1000 | 0x100000000, address, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = syscall("clone3", CLONE3, args, len(args))
    if pid == 0:
        os._exit(7)
    ended = os.waitid(os.P_PIDFD, pidfd.value, os.WEXITED)
    expect("waitid P_PIDFD", ended is not None and ended.si_status == 7)
    return "CLONE_PIDFD, CLONE_CLEAR_SIGHAND, waitid of a pidfd"


def check_pidfd() -> str:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    pidfd = syscall("pidfd_open", PIDFD_OPEN, pid, 0)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError as e:
        raise Refused("pidfd_send_signal", e.errno or 0) from e
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    expect("poll", bool(poll.poll(1000)))
    os.waitpid(pid, 0)
    return "open, send a signal, poll"


def check_pidfd_namespaces() -> str:
    pidfd = syscall("pidfd_open", PIDFD_OPEN, os.getpid(), 0)
    namespace = done("ioctl PIDFD_GET_MNT_NAMESPACE", libc.ioctl(pidfd, 0xFF03, 0))
    expect("ioctl", os.fstat(namespace).st_ino == os.stat("/proc/self/ns/mnt").st_ino)
    return "PIDFD_GET_MNT_NAMESPACE"


def check_paths() -> str:
    how = struct.pack("QQQ", os.O_RDONLY | os.O_CLOEXEC, 0, 0x10 | 0x02)
    root = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    fd = syscall("openat2", OPENAT2, root, b"/status", how, len(how))
    syscall("close_range", CLOSE_RANGE, fd, fd, 0)
    return "openat2 RESOLVE_IN_ROOT, close_range"


def check_memfd(program: str) -> str:
    """Execute nsbox-init from a file that is in no file system, as the launcher is."""
    try:
        fd = os.memfd_create("nsbox-doctor", os.MFD_CLOEXEC | 0x10)
    except OSError as e:
        if e.errno != errno.EINVAL:  # before Linux 6.3 there is no MFD_EXEC
            raise Refused("memfd_create", e.errno or 0) from e
        fd = os.memfd_create("nsbox-doctor", os.MFD_CLOEXEC)
    with open(program, "rb") as file, open(fd, "wb", closefd=False) as copy:
        copy.write(file.read())
    path = f"/proc/self/fd/{os.open(f'/proc/self/fd/{fd}', os.O_RDONLY | os.O_CLOEXEC)}"
    os.close(fd)
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(path, ["nsbox-init"], {})
        except OSError as e:
            os._exit(e.errno or 255)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != INIT_WITHOUT_ARGUMENTS:
        raise Refused("execve of a memfd", code if 0 < code < 125 else 0, f"exit code {code}")
    return "executed from memory"


def check_seccomp() -> str:
    """A filter that answers close_range with EPERM, and nothing else."""
    code = (
        (0x20, 0, 0, 0),
        (0x15, 0, 1, CLOSE_RANGE),
        (0x06, 0, 0, 0x50001),
        (0x06, 0, 0, 0x7FFF0000),
    )
    filters = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(filters)
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    done("prctl NO_NEW_PRIVS", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    done("prctl SECCOMP", libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0))
    answer = libc.syscall(ctypes.c_long(CLOSE_RANGE), 1 << 30, 1 << 30, 0)
    expect("seccomp", answer == -1 and ctypes.get_errno() == errno.EPERM)
    return "a filter was loaded, and heeded"


def check_landlock() -> str:
    abi = syscall("landlock_create_ruleset", LANDLOCK_CREATE, None, 0, 1)
    rules = struct.pack("Q", 1 << 2)  # reading files, of which none is allowed then
    ruleset = syscall("landlock_create_ruleset", LANDLOCK_CREATE, rules, len(rules), 0)
    done("prctl NO_NEW_PRIVS", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    syscall("landlock_restrict_self", LANDLOCK_RESTRICT, ruleset, 0)
    try:
        os.close(os.open(sys.executable, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as e:
        expect("landlock", e.errno == errno.EACCES)
        return f"ABI {abi}"
    raise Refused("landlock", 0, "was accepted and has no effect")


# -- network ----------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("HH", size, kind) + data + b"\0" * (-size % 4)


def check_veth() -> str:
    """A pair of links in a network of its own: rtnetlink(7), RTM_NEWLINK."""
    privileged(NEWNET)
    header = struct.pack("BxHiII", 0, 0, 0, 0, 0)
    peer = attribute(1, header + attribute(3, b"nsb1\0"))
    info = attribute(18, attribute(1, b"veth\0") + attribute(2, peer))
    body = header + attribute(3, b"nsb0\0") + info
    flags = 0x1 | 0x4 | 0x200 | 0x400  # request, ack, exclusive, create
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("IHHII", 16 + len(body), 16, flags, 1, 0) + body)
        answer = netlink.recv(4096)
    error = -struct.unpack_from("i", answer, 16)[0]
    if error:
        raise Refused("RTM_NEWLINK veth", error)
    expect("RTM_NEWLINK", {"nsb0", "nsb1"} <= {name for _, name in socket.if_nameindex()})
    return ""


def check_nft(packet: str) -> str:
    """A network's rules, which came as hexadecimal digits: netlink(7), NETLINK_NETFILTER."""
    privileged(NEWNET)
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    except OSError as e:
        raise Refused("nf_tables", e.errno or 0) from None
    with netlink:
        netlink.send(bytes.fromhex(packet))
        answer = netlink.recv(4096)
    error = -struct.unpack_from("i", answer, 16)[0]
    if error:
        raise Refused("nf_tables", error)
    return ""


# -- cgroups ----------------------------------------------------------------------------------


def enter_cgroup(directory: str) -> None:
    """A process enters by itself on v1; on v2 there is one file only."""
    tasks = f"{directory}/tasks"
    write(tasks if os.path.exists(tasks) else f"{directory}/cgroup.procs", "0")


def check_enter(directory: str) -> str:
    enter_cgroup(directory)
    return ""


def check_memory(directory: str) -> str:
    """Goes beyond its limit, and is ended for it: see ``outcome``."""
    enter_cgroup(directory)
    hoard = []
    for _ in range(64):
        hoard.append(bytearray(1 << 20))
        hoard[-1][::4096] = b"x" * 256
    raise Refused("memory.max", 0, "64 MiB were used under a limit of 16 MiB")


def check_pids(directory: str) -> str:
    enter_cgroup(directory)
    try:
        pid = os.fork()
    except OSError as e:
        expect("pids.max", e.errno == errno.EAGAIN)
        return "fork was refused at the limit"
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    raise Refused("pids.max", 0, "a second process was made under a limit of 1")


# -- devices ----------------------------------------------------------------------------------


def check_tun() -> str:
    """A tun device in a network of its own: TUNSETIFF with IFF_TUN | IFF_NO_PI."""
    privileged(NEWNET)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"nsb%d", 0x1001))
    except OSError as e:
        raise Refused("ioctl TUNSETIFF", e.errno or 0) from e
    return "/dev/net/tun"


def check_kvm() -> str:
    """No machine is made: on some hosts that never returns."""
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    return f"/dev/kvm opens; API version {fcntl.ioctl(fd, 0xAE00, 0)}, no machine was tried"


# -- one check, one process -------------------------------------------------------------------

channel = -1


def report(work: Callable[[], str]) -> NoReturn:
    answer: dict[str, object] = {"ok": True, "call": "", "errno": 0}
    try:
        answer["detail"] = work()
    except Refused as e:
        answer = {"ok": False, "call": e.call, "errno": e.err, "detail": e.detail}
    except OSError as e:
        answer = {
            "ok": False,
            "call": str(e.filename or ""),
            "errno": e.errno or 0,
            "detail": "" if e.errno else str(e),
        }
    except BaseException as e:
        answer = {"ok": False, "call": "", "errno": 0, "detail": f"{type(e).__name__}: {e}"}
    os.write(channel, json.dumps(answer).encode())
    os._exit(0)


def outcome(name: str, work: Callable[[], str]) -> dict[str, object]:
    """What *work* found in a process of its own, or how that ended before it could say."""
    global channel
    read, channel = os.pipe()
    started = time.monotonic()
    try:
        pid = os.fork()
    except OSError as e:
        os.close(read)
        os.close(channel)
        return {"ok": False, "call": "fork", "errno": e.errno, "detail": "", "check": name,
                "seconds": 0.0}  # fmt: skip
    if pid == 0:
        os.close(read)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        report(work)
    os.close(channel)
    poll = select.poll()
    poll.register(read, select.POLLIN)
    said = os.read(read, 65536) if poll.poll(PATIENCE_S * 1000) else None
    if said is None:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(read)
    answer: dict[str, object]
    if said:
        answer = json.loads(said)
    elif said is None:
        answer = {"ok": False, "call": "", "errno": 0, "detail": f"no answer in {PATIENCE_S:g} s"}
    elif name == "memory limit" and status == -signal.SIGKILL:
        answer = {"ok": True, "call": "", "errno": 0, "detail": "ended at 16 MiB"}
    else:
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        answer = {"ok": False, "call": "killed" if status < 0 else "", "errno": 0, "detail": how}
        answer["signal"] = -status
    answer["check"], answer["seconds"] = name, round(time.monotonic() - started, 4)
    return answer


CHECKS: dict[str, Callable[..., str]] = {
    "clone3": check_clone3,
    "pidfd": check_pidfd,
    "pidfd namespaces": check_pidfd_namespaces,
    "paths": check_paths,
    "memfd": check_memfd,
    "user namespace": check_user_namespace,
    "id range": check_id_range,
    **{f"{kind} namespace": check_namespace for kind in KINDS},
    "bind mount": check_bind,
    "tmpfs mount": check_tmpfs,
    "overlay mount": check_overlay,
    "proc mount": check_proc,
    "mqueue mount": check_mqueue,
    "seccomp": check_seccomp,
    "landlock": check_landlock,
    "veth": check_veth,
    "nft": check_nft,
    **{f"{name} cgroup": check_enter for name in CONTROLLERS},
    "tun device": check_tun,
    "kvm device": check_kvm,
    "memory limit": check_memory,
    "pids limit": check_pids,
}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name, args in json.loads(sys.argv[1]):
        print(json.dumps(outcome(name, lambda: CHECKS[name](*args))), flush=True)  # noqa: B023


if __name__ == "__main__":
    main()
