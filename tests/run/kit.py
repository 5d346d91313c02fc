# SPDX-License-Identifier: Apache-2.0
"""What the tests of run, Popen and explain share: short ways to run something and to look at it.

Payloads are sh, coreutils and busybox, which start quickly on an emulated kernel too; Python
only where a system call has no command.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import TIMEOUT_SCALE, scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.geteuid() == 0
KINDS = ("mnt", "pid", "ipc", "net", "uts", "user", "cgroup")
PATIENCE = scaled(20)
APPLETS = (
    "cat", "chroot", "dd", "echo", "find", "grep", "head", "id", "ls", "mkdir", "mount", "ps",
    "pwd", "readlink", "rm", "sh", "sleep", "stat", "test", "touch", "true", "umount", "wc",
)  # fmt: skip


def run(*args: str, **keywords: Any) -> nsbox.Completed:
    """A run that is captured as text and ends in any case."""
    keywords = {"capture_output": True, "text": True, "timeout": PATIENCE, **keywords}
    return nsbox.run(list(args), **keywords)


def sh(script: str, *args: str, **keywords: Any) -> nsbox.Completed:
    return run("/bin/sh", "-c", script, "sh", *args, **keywords)


def python(code: str, *args: str, **keywords: Any) -> nsbox.Completed:
    """The system's interpreter, without site-packages: quick, and there in every host root."""
    return run("/usr/bin/python3", "-I", "-S", "-c", code, *args, **keywords)


def out(completed: nsbox.Completed) -> str:
    """What it wrote, when it ended well; else a failure that shows everything."""
    assert completed.ok, completed
    assert isinstance(completed.stdout, str)
    return completed.stdout.strip()


def held(launcher: int, *kinds: str) -> set[str]:
    """Namespaces that it has ready, beside its own, which are ours."""
    found = set()
    for name in os.listdir(f"/proc/{launcher}/fd"):
        try:
            found.add(os.readlink(f"/proc/{launcher}/fd/{name}"))
        except FileNotFoundError:  # was closed meanwhile
            pass
    return {text for text in found - set(map(namespace_id, kinds)) if text.startswith(kinds)}


def spaces(*kinds: str) -> list[str]:
    """These namespaces, with the user namespace that an ordinary user needs for any of them."""
    return list(kinds) if ROOT or not kinds or "user" in kinds else ["user", *kinds]


def status(text: str) -> dict[str, str]:
    """/proc/PID/status as a dictionary."""
    return {key: value.strip() for key, _, value in (x.partition(":") for x in text.splitlines())}


def status_inside(**keywords: Any) -> dict[str, str]:
    return status(out(run("cat", "/proc/self/status", **keywords)))


def namespace_id(kind: str, pid: int | str = "self") -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def waiting(process: nsbox.Popen) -> str:
    """The first line of its output, which says that it is ready."""
    return process.stdout.readline().decode().strip()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The body takes no longer. Says nothing on a machine whose clock is not ours."""
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert TIMEOUT_SCALE > 1 or took < seconds, f"took {took:.2f} s"


def busybox_root(where: Path) -> Path:
    """A small root file system: busybox, and the directories that are mounted on."""
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("busybox-static is not installed")
    where.mkdir(exist_ok=True)
    for name in ("bin", "dev", "proc", "tmp", "etc", "data"):
        (where / name).mkdir()
        (where / name).chmod(0o755)
    shutil.copy(program, where / "bin/busybox")
    for applet in APPLETS:
        (where / "bin" / applet).symlink_to("busybox")
    (where / "etc/marker").write_text("inside\n")
    where.chmod(0o755)
    return where


def open_directory(where: Path) -> Path:
    """A directory that every user of a sandbox may use."""
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    return where


def maps_ids(where: Path) -> bool:
    """Whether what lies there can be id-mapped: tmpfs before Linux 6.3, overlayfs and 9p cannot."""
    try:
        return nsbox.run(["true"], mounts=[nsbox.Mount.bind(where, "/m", idmap=True)]).ok
    except nsbox.Unavailable:
        return False
