#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run one shell command on another kernel, in a throw-away machine that looks like this one.

    vmrun.py --kernel 6.12 'uname -r; cat /proc/self/cgroup'
    vmrun.py --kernel 6.1 --user 1001 --rw "$PWD/out" 'unshare -Ur id > out/id'

The machine boots under QEMU with / of the host as the lower layer of an overlay: everything
installed here is there at the same path, and nothing it writes comes back, except in --rw
directories. /tmp, /run, /dev, /proc and /sys are its own. Control groups are pure v2 with the
controllers cpu, cpuset, io, memory and pids; the command starts in the leaf $CG/init, where $CG
is delegated to the user it runs as.

Exit code: the command's; 124: out of time; 125: the machine could not be set up, or died.
"""

from __future__ import annotations

import argparse
import pwd
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import initramfs
import kernels
from kernels import Kernel, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType
    from typing import IO

TIMED_OUT = 124
DIED = 125
REBOOT_S = 30.0  # how long a guest may take to go, once it has told its exit code

# Directories that are the guest's own; what lies there on the host is seen only when shared.
FRESH = tuple(Path(p) for p in ("/tmp", "/run", "/dev", "/proc", "/sys", "/mnt"))

# Of these, mitigations, audit, KASLR and the waits for clocks only cost time here.
# panic=-1 reboots at once, which -no-reboot turns into the end of QEMU.
KERNEL_OPTIONS = (
    "console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check audit=0 nokaslr "
    "rcupdate.rcu_expedited=1 random.trust_cpu=on"
)


@dataclass(frozen=True)
class Guest:
    """What to run, and on which machine.

    *command* is a script for /bin/sh; *uid* who runs it, 0 or an ordinary user, who need not
    exist here; *cwd* where. Directories in *rw* are writable in the guest at the same path. *ro*
    says which directory of the host (value) is seen at a path of the guest (key): for what lies
    under /tmp, which is the guest's own, or to put one in the place of another; the order counts.
    Files of the host must not change while the guest runs: it would see them cut off or padded,
    for it keeps what it has learned of them. *disk_mib* > 0 mounts a fresh ext4 of that size at
    /mnt.
    """

    kernel: Kernel
    command: str
    uid: int = 0
    cwd: Path = Path("/")
    rw: tuple[Path, ...] = ()
    ro: Mapping[Path, Path] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cpus: int = 2
    memory_mib: int = 1024
    disk_mib: int = 256
    timeout_s: float = 600.0
    verbose: bool = False


@dataclass(frozen=True)
class Outcome:
    """How it ended: exit code, the machine's seconds, and when userland was up (None: never)."""

    code: int
    seconds: float
    boot_s: float | None


class Machine:
    """One boot of one guest. `run` blocks; `kill`, from any thread, ends it."""

    def __init__(self, guest: Guest, on_line: Callable[[str], None]) -> None:
        """*on_line* gets each line of the console, that is of the command's output."""
        self.guest = guest
        self._on_line = on_line
        self._lock = threading.Lock()
        self._killed = False
        self._qemu: subprocess.Popen[bytes] | None = None

    def run(self) -> Outcome:
        """Boot, run the command, wait for the end.

        Raises:
            SetupError: a tool or a kernel module is missing; nothing was started.
        """
        kernels.require(kernels.RUN_TOOLS)
        with tempfile.TemporaryDirectory(prefix="nsbox-vm-") as work:
            argv = _prepare(self.guest, Path(work))
            start = time.monotonic()
            report = Path(work, "report")
            code = self._run_qemu(argv, report / "code")
            seconds = time.monotonic() - start
            return Outcome(
                code=int(_read(report / "code") or DIED) if code is None else code,
                seconds=seconds,
                boot_s=float(_read(report / "up") or 0) or None,
            )

    def kill(self) -> None:
        """End the machine, or keep it from starting. Idempotent."""
        with self._lock:
            self._killed = True
            if self._qemu is not None:
                self._qemu.kill()

    def _run_qemu(self, argv: Sequence[str], told: Path) -> int | None:
        """Run QEMU to its end; TIMED_OUT, or None when the guest has *told* its exit code."""
        with self._lock:
            if self._killed:
                return DIED
            self._qemu = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        pump = threading.Thread(target=self._pump, args=[self._qemu.stdout], daemon=True)
        pump.start()
        try:
            self._await_end(told)
        except subprocess.TimeoutExpired:
            return None if told.exists() else TIMED_OUT
        finally:
            self._qemu.kill()  # no effect on one that has ended
            self._qemu.wait()
            pump.join()
        return None

    def _await_end(self, told: Path) -> None:
        """Of QEMU; not much longer than until the code is told, for a guest may fail to reboot."""
        assert self._qemu is not None
        end = time.monotonic() + self.guest.timeout_s
        while self._qemu.poll() is None:
            if told.exists():
                self._qemu.wait(REBOOT_S)
                return
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self._qemu.args, self.guest.timeout_s)
            time.sleep(0.2)

    def _pump(self, console: IO[bytes]) -> None:
        with console:
            for line in console:
                self._on_line(line.decode(errors="replace").rstrip("\r\n"))


def hidden(paths: Sequence[Path]) -> dict[Path, Path]:
    """Those of *paths* that a guest does not see unless shown, in the form of Guest.ro."""
    resolved = (p.resolve() for p in paths)
    return {p: p for p in resolved if any(p.is_relative_to(fresh) for fresh in FRESH)}


def _prepare(guest: Guest, work: Path) -> list[str]:
    """Write what the machine boots from into *work*; the command line of QEMU."""
    (work / "report").mkdir(mode=0o700)
    archive = initramfs.build(guest.kernel, _config(guest), guest.command)
    (work / "initrd").write_bytes(archive)
    if guest.disk_mib:
        _make_disk(work / "disk", guest.disk_mib)
    options = KERNEL_OPTIONS + (" loglevel=7" if guest.verbose else " quiet loglevel=4")
    setpriv = kernels.which("setpriv") or "setpriv"
    argv = [setpriv, "--pdeathsig", "KILL"]  # whatever becomes of us, QEMU does not stay
    argv += [kernels.which("qemu-system-x86_64") or "qemu-system-x86_64"]
    argv += "-nodefaults -no-user-config -no-reboot -display none -serial stdio".split()
    # Emulation, always: that /dev/kvm opens does not mean that it works. The machine type microvm
    # boots a little sooner, but not every time. One thread for all virtual CPUs: with a thread
    # each, a CPU may run the breakpoint of a code patch (static keys, which cgroups, tc, nft and
    # BPF flip) after the kernel has taken it out, and the kernel oopses (int3) or hangs; it also
    # takes twice the CPU time here.
    argv += "-machine q35 -accel tcg,thread=single,tb-size=256 -cpu max,la57=off".split()
    argv += ["-smp", str(guest.cpus), "-m", str(guest.memory_mib)]
    argv += ["-kernel", str(kernels.vmlinux(guest.kernel)), "-initrd", str(work / "initrd")]
    argv += ["-append", options]
    argv += _share("root", Path("/"), "readonly=on")
    argv += _share("report", work / "report")
    for number, directory in enumerate(guest.rw):
        argv += _share(f"rw{number}", directory.resolve())
    if guest.disk_mib:
        argv += ["-drive", f"file={work}/disk,if=none,id=disk,format=raw,cache=unsafe"]
        argv += ["-device", "virtio-blk-pci,drive=disk"]
    return argv


def _share(tag: str, path: Path, *options: str) -> list[str]:
    # remap: the host's directories lie on many file systems, whose inode numbers may collide
    where = str(path).replace(",", ",,")
    backend = ["local", f"id={tag}", f"path={where}", "security_model=none", "multidevs=remap"]
    device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    return ["-fsdev", ",".join([*backend, *options]), "-device", device]


def _config(guest: Guest) -> dict[str, str]:
    """The variables that init.sh and guest.sh read; lists have one item a line."""
    name, gid, passwd = _account(guest.uid)
    rw = [p.resolve() for p in guest.rw]
    cwd = guest.cwd.resolve()
    mounted = (*guest.ro, *rw)
    opened = {
        str(parent)
        for path in (cwd, *mounted)
        for parent in path.parents
        if not any(parent.is_relative_to(m) for m in mounted)
    }
    exports = (f"export {key}={shlex.quote(value)}" for key, value in guest.env.items())
    return {
        "RELEASE": guest.kernel.release,
        "MODULES_DIR": str(guest.kernel.modules),
        "USER_ID": str(guest.uid),
        "GROUP_ID": str(gid),
        "PASSWD": passwd,
        "SUBID": "" if _has_subids(name) else f"{name}:100000:65536",
        "HOME_DIR": "/tmp/home" if guest.uid else "/root",
        "RO": "\n".join(f"{host.resolve()}\t{there}" for there, host in guest.ro.items()),
        "RW": "\n".join(map(str, rw)),
        "OPEN": "\n".join(sorted(opened)),
        "CWD": str(cwd),
        "SETPRIV": kernels.which("setpriv") or "",  # by path: busybox has a lesser one
        "ENVIRONMENT": "\n".join(exports),
        "DISK": "yes" if guest.disk_mib else "",
        "VERBOSE": "yes" if guest.verbose else "",
    }


def _account(uid: int) -> tuple[str, int, str]:
    """Name and group of *uid*, and the line to add to /etc/passwd if the host has no such user."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return "tester", uid, f"tester:x:{uid}:{uid}::/tmp/home:/bin/sh"
    return entry.pw_name, entry.pw_gid, ""


def _has_subids(name: str) -> bool:
    lines = (_read(Path("/etc/subuid")) or "").splitlines()
    return any(line.startswith(f"{name}:") for line in lines)


def _make_disk(path: Path, size_mib: int) -> None:
    """A sparse file with an empty ext4 in it: formatted here, where the CPU is not emulated."""
    with path.open("wb") as disk:
        disk.truncate(size_mib << 20)
    mkfs = kernels.which("mkfs.ext4") or "mkfs.ext4"
    subprocess.run([mkfs, "-q", "-F", "-O", "^has_journal", str(path)], check=True)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _kernel(name: str, modules: Path | None) -> Kernel:
    """The kernel of a command-line argument: a series (6.12), or the path of an image."""
    if "/" not in name:
        return kernels.find(name)
    image = Path(name).resolve()
    release = image.name.partition("-")[2]
    return Kernel(release, image, (modules or Path("/lib/modules", release)).resolve())


def _raise_exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    text = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        description=text[0], epilog=text[-1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kernel", default="6.12", help="series (6.1, 6.12) or path of a vmlinuz-RELEASE")
    add("--modules", type=Path, metavar="DIR", help="its modules; default /lib/modules/RELEASE")
    add("--user", type=int, default=0, metavar="UID", help="who runs the command; default root")
    add("--rw", type=Path, action="append", default=[], metavar="DIR", help="share, writable")
    add("--ro", type=Path, action="append", default=[], metavar="DIR", help="show DIR of /tmp")
    add("--cwd", type=Path, default=Path("/"), metavar="DIR", help="where the command starts")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable")
    add("--cpus", type=int, default=2)
    add("--memory", type=int, default=1024, metavar="MIB")
    add("--disk", type=int, default=256, metavar="MIB", help="size of the ext4 at /mnt; 0: none")
    add("--timeout", type=float, default=600.0, metavar="SECONDS")
    add("--verbose", action="store_true", help="show the kernel's messages")
    add("command", help="script for /bin/sh")
    args = parser.parse_args(argv)
    if any("=" not in item for item in args.env):
        parser.error("--env wants NAME=VALUE")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the module's docstring says what it returns."""
    args = _arguments(argv)
    signal.signal(signal.SIGTERM, _raise_exit)  # so that QEMU and the files are removed
    try:
        guest = Guest(
            kernel=_kernel(args.kernel, args.modules),
            command=args.command,
            uid=args.user,
            cwd=args.cwd,
            rw=tuple(args.rw),
            ro={p.resolve(): p for p in args.ro},
            env=dict(item.split("=", 1) for item in args.env),
            cpus=args.cpus,
            memory_mib=args.memory,
            disk_mib=args.disk,
            timeout_s=args.timeout,
            verbose=args.verbose,
        )
        outcome = Machine(guest, lambda line: print(line, flush=True)).run()
    except SetupError as error:
        print(f"vmrun: {error}", file=sys.stderr)
        return DIED
    up = f"up after {outcome.boot_s:.1f} s" if outcome.boot_s else "never up"
    print(f"vmrun: exit {outcome.code}, {up}, {outcome.seconds:.1f} s", file=sys.stderr)
    return outcome.code


if __name__ == "__main__":
    sys.exit(main())
