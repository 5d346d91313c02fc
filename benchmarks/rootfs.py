# SPDX-License-Identifier: Apache-2.0
"""The small root file system every case runs in: static busybox, empty mount points, a probe."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiled import build

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var")
APPLETS = ("true", "sh")
NAMESPACES = ("mnt", "pid", "ipc", "uts", "net", "cgroup")

BUSYBOX_TRUE = "/bin/true"
TINY_TRUE = "/bin/tinytrue"
TINY_PAUSE = "/bin/tinypause"
PROBE = "/bin/probe"

# Prints one "key value" line per fact; "end ." comes last. CONTROL_BUSYBOX means: no sandbox here.
PROBE_SCRIPT = """#!/bin/busybox sh
b=${CONTROL_BUSYBOX:-/bin/busybox}
facts() {
    for n in mnt pid ipc uts net cgroup; do echo "ns.$n $($b readlink /proc/self/ns/$n)"; done
    echo "pid $$"
    echo "procs $($b ls /proc | $b grep -c '^[0-9]')"
    echo "lo $($b ip -o link show lo 2>/dev/null | $b grep -o 'LOOPBACK,UP')"
    echo "links $($b ip -o link 2>/dev/null | $b wc -l)"
    echo "root $(echo $($b ls -A /))"
    echo "mounts $(echo $($b awk '{print $5}' /proc/self/mountinfo))"
    if [ -n "$CONTROL_BUSYBOX" ]; then echo "writable unknown"  # this is the host's root
    elif $b touch /written; then $b rm /written; echo "writable yes"; else echo "writable no"; fi
    echo "urandom $($b head -c 4 /dev/urandom 2>/dev/null | $b wc -c)"
    if echo x 2>/dev/null >/dev/null; then echo "null ok"; fi
    for p in / /../../ /proc/1/root/ /proc/1/cwd/../ /proc/self/root/../; do
        if [ -e "${p}@CANARY@" ]; then echo "canary $p"; fi
    done
    echo "end ."
}
facts 2>/dev/null
"""


@dataclass(frozen=True)
class Rootfs:
    """A temporary directory: ``root`` is the rootfs, ``work`` holds bundles and state beside it."""

    work: Path
    root: Path


def static_busybox() -> Path:
    """Path of a statically linked busybox.

    Raises:
        RuntimeError: there is none (Debian: ``apt-get install busybox-static``).
    """
    found = shutil.which("busybox")
    if found is None:
        raise RuntimeError("busybox not installed (apt-get install busybox-static)")
    head = Path(found).read_bytes()[:4096]
    if b"/ld-" in head:  # the PT_INTERP string, which the linker puts right after the headers
        raise RuntimeError(f"{found} is dynamically linked (apt-get install busybox-static)")
    return Path(found)


def populate(work: Path) -> Rootfs:
    """Fill *work* with a rootfs directory and the canary that no sandbox may see."""
    root = work / "rootfs"
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True)
    shutil.copy(static_busybox(), root / "bin/busybox")
    for name in APPLETS:
        os.link(root / "bin/busybox", root / "bin" / name)
    for program in (TINY_TRUE, TINY_PAUSE):
        shutil.copy(build(Path(program).name), str(root) + program)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="ascii")
    (root / "etc/group").write_text("root:x:0:\n", encoding="ascii")
    canary = work / "canary"
    canary.touch()
    probe = root / PROBE.lstrip("/")
    probe.write_text(PROBE_SCRIPT.replace("@CANARY@", str(canary).lstrip("/")), encoding="ascii")
    probe.chmod(0o755)
    return Rootfs(work, root)


@contextlib.contextmanager
def temporary() -> Iterator[Rootfs]:
    """A rootfs in ``/tmp/nsbox-bench-XXXX``, removed afterwards."""
    work = Path(tempfile.mkdtemp(prefix="nsbox-bench-", dir="/tmp"))
    work.chmod(0o755)  # a sandbox may run as an id that is not ours
    try:
        yield populate(work)
    finally:
        remove(work)


def unsandboxed_probe(fs: Rootfs) -> str:
    """What the probe prints without any sandbox: proof that it can tell the difference."""
    busybox = str(fs.root / "bin/busybox")
    argv = [busybox, "sh", str(fs.root) + PROBE]
    env = {"CONTROL_BUSYBOX": busybox}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout


def remove(work: Path) -> None:
    """Delete *work*, unless something is still mounted below it in this mount namespace.

    Raises:
        RuntimeError: a mount is left; deleting would reach through it.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        points = [line.split()[4] for line in table]
    left = [point for point in points if point.startswith(f"{work}/")]
    if left:
        raise RuntimeError(f"not removing {work}: still mounted: {', '.join(left)}")
    shutil.rmtree(work)
