# SPDX-License-Identifier: Apache-2.0
"""What tests of networks share: bodies that run in a network namespace of their own."""

from __future__ import annotations

import functools
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from namespace.kit import apart as run_apart

if TYPE_CHECKING:
    from collections.abc import Callable

#: Network, mounts and registry are its own; an ordinary user is root there.
PRELUDE = """
import contextlib, errno, ipaddress, json, os, random, signal, socket, subprocess, sys
import threading, time
from pathlib import Path
import pytest
import nsbox
from nsbox import addresses, forwarding, netspec, registry, routes, shared, subnets
from nsbox import syscalls as sc
from nsbox.syscalls import Clone, MountFlag
uid, gid = os.geteuid(), os.getegid()
sc.unshare(Clone.NEWNS | Clone.NEWNET | (Clone.NEWUSER if uid else 0))
if uid:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
sc.mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
sc.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
os.environ.pop("XDG_RUNTIME_DIR", None)
def ip(*args):
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout
def left():
    return sorted(os.listdir(registry.directory()))
@contextlib.contextmanager
def other(code, *args):
    "An interpreter that runs code, and says when it is ready."
    begin = ("import os, sys, signal, time\\n"
             "from nsbox import addresses, forwarding, netspec, subnets\\n")
    process = subprocess.Popen([sys.executable, "-c", begin + code, *args],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
@contextlib.contextmanager
def child(process):
    "The forked child that other code has said the number of; it ends with the block."
    pid, *said = process.stdout.readline().split()
    assert int(pid) > 1
    try:
        yield said
    finally:
        os.kill(int(pid), signal.SIGKILL)
# an owner that holds the switch of forwarding until a line comes
HOLD = '''
held = [forwarding.Forwarding.hold(int(v)) for v in sys.argv[1:]]
print(flush=True)
sys.stdin.readline()
for one in held: one.close()
'''
def subnet(text):
    return netspec.parse_subnet(text, "subnet", 6 if ":" in text else 4)
def conf():
    "Every setting of every interface; of a secret that was never set, that it cannot be read."
    found = {}
    for version in "46":
        for path in Path(f"/proc/sys/net/ipv{version}/conf").glob("*/*"):
            try:
                found[str(path)] = path.read_bytes()
            except OSError as e:
                found[str(path)] = e.errno
    found["ip_forward"] = Path("/proc/sys/net/ipv4/ip_forward").read_bytes()
    return found
def setting(name, value=None):
    path = Path(f"/proc/sys/net/{name}")
    if value is not None:
        path.write_text(value)
    return path.read_text().strip()
"""


def apart(test: Callable[[], None]) -> Callable[[], None]:
    """The body of *test* runs in another interpreter, after PRELUDE."""

    @pytest.mark.userns
    @functools.wraps(test)
    def wrapper() -> None:
        if "ip" in test.__code__.co_names and not shutil.which("ip"):
            pytest.fail("ip (iproute2) is not installed")
        if os.geteuid() != 0 and not os.path.exists("/proc/sys/net/ipv6"):
            pytest.skip("no IPv6 here")
        run_apart(test, PRELUDE)

    return wrapper
