# SPDX-License-Identifier: Apache-2.0
"""A small world around an ordinary user: a host, and beyond it what stands for the internet.

    python world.py HOME CODE

runs CODE as an ordinary user of a host that is a network namespace of its own::

    internet                          host
      198.51.100.1, 2001:db8:9::1       192.0.2.2, 2001:db8:1::2, default routes
      echo, names, a client             resolv.conf: RESOLV, by default 198.51.100.1

Root drops to a user of its own; others become one in a user namespace. HOME is their directory.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a program

from support import rounds, scaled

from nsbox import syscalls as sc
from nsbox.syscalls import Clone, MountFlag

if TYPE_CHECKING:
    from collections.abc import Callable

SKIP = 77

HOST, HOST6 = "192.0.2.2", "2001:db8:1::2"
OUT, OUT6 = "198.51.100.1", "2001:db8:9::1"
ECHO, CLIENT = 7, 99
#: What root drops to: a user that nobody else is.
USER = 54321

#: What tests have at hand, before their own code.
PRELUDE = f"""
import atexit, errno, json, os, re, select, signal, socket, subprocess, sys, threading, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import pytest
import nsbox
from support import poll_until, scaled
HOST, HOST6, OUT, OUT6, ECHO = {HOST!r}, {HOST6!r}, {OUT!r}, {OUT6!r}, {ECHO!r}
def outside(**request):
    "What a client on the internet gets: proto, address, port, data; None: nobody answers."
    with socket.create_connection((OUT, {CLIENT}), scaled(10)) as link:
        link.sendall(json.dumps(request).encode())
        link.shutdown(socket.SHUT_WR)
        return json.loads(link.makefile().read())
#: A program that says from where it was asked, and what: an echo of TCP and UDP at once.
SERVE = '''
import socket, sys, threading
family = socket.AF_INET6 if len(sys.argv) > 2 else socket.AF_INET
def tcp():
    with socket.create_server((\"\", int(sys.argv[1])), family=family) as listener:
        print(\"ready\", flush=True)
        while True:
            link, who = listener.accept()
            with link:
                link.sendall(f\"{{who[0]}} {{link.recv(1000).decode()}}\".encode())
def udp():
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.bind((\"\", int(sys.argv[1])))
        while True:
            data, who = link.recvfrom(1000)
            link.sendto(f\"{{who[0]}} {{data.decode()}}\".encode(), who)
threading.Thread(target=udp, daemon=True).start()
tcp()
'''
#: A client: address, port, data.
ASK = '''
import socket, sys
proto, address, port, data = sys.argv[1:]
kind = socket.SOCK_STREAM if proto == \"tcp\" else socket.SOCK_DGRAM
found = socket.getaddrinfo(address, int(port), 0, kind)[0]
with socket.socket(found[0], kind) as link:
    link.settimeout(float(3))
    link.connect(found[4])
    link.sendall(data.encode())
    print(link.recv(1000).decode(), end=\"\")
'''
def server(port, *six, **keywords):
    return nsbox.Container([\"python3\", \"-c\", SERVE, str(port), *six], **keywords)
def ready(*containers):
    for one in containers:
        poll_until(lambda: \"ready\" in one.logs(), 10, what=f\"{{one}}: {{one.logs()}}\")
many = {rounds(24)}
def ask(who, proto, address, port, data=\"x\"):
    \"What a process in a container is answered; raises with what it says.\"
    run = who.exec if hasattr(who, \"exec\") else (lambda args, **k: nsbox.run(args, net=who, **k))
    done = run([\"python3\", \"-c\", ASK, proto, str(address), str(port), data],
               capture_output=True, text=True)
    if done.returncode:
        raise ConnectionError(done.stderr.splitlines()[-1])
    return done.stdout
from nsbox import later, registry, sandboxes, shared
def launcher():
    "Of the one owner here that runs."
    return registry.owners()[0].launcher
def mine():
    "The launcher, and all that it has started."
    table = sandboxes.proc_table()
    found = {{launcher()}}
    while more := {{pid for pid, stat in table.items() if stat.parent in found}} - found:
        found |= more
    return found
def command(pid):
    try:
        return Path(f"/proc/{{pid}}/cmdline").read_text().split("\\0")
    except OSError:
        return []
def gone(pids):
    def ended(pid):
        try:
            return Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True
    return all(map(ended, pids))
#: An owner that has everything at once.
OWNER = '''
import sys, time, nsbox
from nsbox import egress
egress.PROGRAMS = {{k: v for k, v in egress.PROGRAMS.items() if k == sys.argv[1]}}
n = nsbox.Network(host_ports=[9000]).start()
c = nsbox.Container(["sleep", "1000"], net=n, publish=["8080:80", "8081:80/udp"]).start()
p = nsbox.Pod("p", [nsbox.ContainerSpec("x", ["sleep", "1000"])], net=n).start()
print("ready", flush=True)
time.sleep(1000)
'''
def start_owner(program):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, program], stdout=subprocess.PIPE,
                             text=True)
    atexit.register(owner.kill)
    assert owner.stdout.readline() == "ready\\n"
    return owner
def ask_here(proto, address, port, data=\"x\"):
    done = subprocess.run([sys.executable, \"-c\", ASK, proto, str(address), str(port), data],
                          capture_output=True, text=True)
    if done.returncode:
        raise ConnectionError(done.stderr.splitlines()[-1])
    return done.stdout
"""


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


# -- the internet -----------------------------------------------------------------------------


def _echo(kind: socket.SocketKind, family: socket.AddressFamily) -> None:
    with socket.socket(family, kind) as server:
        server.bind((OUT if family == socket.AF_INET else OUT6, ECHO))
        if kind == socket.SOCK_DGRAM:
            while True:
                data, who = server.recvfrom(1000)
                server.sendto(f"{who[0]} ".encode() + data, who)
        server.listen()
        while True:
            link, who = server.accept()
            with link:
                link.sendall(f"{who[0]} ".encode() + link.recv(1000))


def names(at: str) -> None:
    """Every name has one address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((at, 53))
        print("ready", flush=True)
        while True:
            query, who = server.recvfrom(1000)
            end = query.index(b"\0", 12) + 5
            is_a = query[end - 4 : end - 2] == b"\0\1"
            answer = query[:2] + b"\x81\x80\0\1" + struct.pack(">H", is_a) + bytes(4)
            answer += query[12:end]
            if is_a:
                answer += b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(OUT)
            server.sendto(answer, who)


def _ask(proto: str, address: str, port: int, data: str) -> str | None:
    if proto == "address":  # one more of the host
        enter = f"--net=/proc/self/fd/{_host}"
        command = ["nsenter", enter, "ip", "addr", "add", f"{address}/24", "dev", "wan0"]
        subprocess.run(command, check=True, pass_fds=(_host,))
        return "made"
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as link:
        link.settimeout(3)
        try:
            link.connect((address, port))
            link.sendall(data.encode())
            return link.recv(1000).decode()
        except OSError:
            return None


def _client() -> None:
    with socket.create_server(("", CLIENT)) as server:
        while True:
            link, _ = server.accept()
            with link:
                request = json.loads(link.makefile().read())
                link.sendall(json.dumps(_ask(**request)).encode())


_host = -1  # its network namespace


def internet(ready: int, alive: int) -> None:
    """Until nobody holds the other end of *alive*."""
    global _host
    _host = os.open("/proc/self/ns/net", os.O_RDONLY)
    sc.unshare(Clone.NEWNET)
    ip("link", "set", "lo", "up")
    ip("addr", "add", f"{OUT}/32", "dev", "lo")
    ip("addr", "add", f"{OUT6}/128", "dev", "lo", "nodad")
    for target, args in (
        *((_echo, (kind, family)) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
          for family in (socket.AF_INET, socket.AF_INET6)),
        (names, (OUT,)),
        (_client, ()),
    ):  # fmt: skip
        threading.Thread(target=target, args=args, daemon=True).start()  # type: ignore[arg-type]
    os.write(ready, b"1")
    os.read(alive, 1)
    os._exit(0)


# -- the host ---------------------------------------------------------------------------------


def be_user(uid: int, gid: int) -> None:
    """In a new user namespace, the one that it is there."""
    outside = os.geteuid(), os.getegid()
    sc.unshare(Clone.NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outside[0]} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {outside[1]} 1")


def become_world() -> None:
    if os.geteuid():
        be_user(0, 0)
    sc.unshare(Clone.NEWNET | Clone.NEWNS)
    sc.mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)


def start_internet() -> int:
    """Its pid; it ends with this process and what that executes."""
    ready, said = os.pipe()
    alive, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            internet(said, alive)
        finally:
            os._exit(1)
    os.close(said)
    os.close(alive)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.set_inheritable(ours, True)
    return pid


def cable(pid: int) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "wan0", "type", "veth", "peer", "name", "lan0", "netns", str(pid))
    ip("addr", "add", f"{HOST}/24", "dev", "wan0")
    ip("addr", "add", f"{HOST6}/64", "dev", "wan0", "nodad")
    ip("link", "set", "wan0", "up")
    for line in ("addr add 192.0.2.1/24 dev lan0", "addr add 2001:db8:1::1/64 dev lan0 nodad",
                 "link set lan0 up"):  # fmt: skip
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *line.split()], check=True)
    ip("route", "add", "default", "via", "192.0.2.1")
    ip("-6", "route", "add", "default", "via", "2001:db8:1::1")


def ordinary(uid: int, gid: int, home: str) -> dict[str, str]:
    """Become an ordinary user, with the next execve; its environment."""
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    pings = USER if uid == 0 else 0
    Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"{pings} {pings}")
    if uid:
        be_user(uid, gid)
    else:
        os.chown(home, USER, USER)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    os.chdir(home)
    kept = {name: os.environ[name] for name in os.environ if name.startswith("NSBOX")}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": home,
            "XDG_RUNTIME_DIR": home, "TMPDIR": home, "LANG": "C.UTF-8", **kept}  # fmt: skip


def main(home: str, code: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    become_world()
    pid = start_internet()
    cable(pid)
    resolv = Path(home, "resolv.conf")
    resolv.write_text(f"nameserver {os.environ.get('RESOLV', OUT)}\n")
    sc.mount(str(resolv), os.path.realpath("/etc/resolv.conf"), None, MountFlag.BIND)
    environment = ordinary(uid, gid, home)
    if not os.access(sys.executable, os.X_OK):
        print("a user other than root cannot run this interpreter")
        sys.exit(SKIP)
    os.execve(sys.executable, [sys.executable, "-c", PRELUDE + code], environment)


# -- tests ------------------------------------------------------------------------------------


def rootless(*programs: str, resolv: str = OUT) -> Callable[[Callable[[], None]], Any]:
    """The body of a test runs as an ordinary user in a world, with each of *programs* to lead out
    of it, or with none to be had."""

    def decorate(test: Callable[[], None]) -> Any:
        # As a function, and called: see namespace/kit.py.
        lines = inspect.getsource(test).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("def "))
        lines[start] = "def body():"
        body = "\n".join([*lines[start:], "body()"])

        def check(program: str) -> None:
            patch = f"PROGRAM = {program!r}\nfrom nsbox import egress\n"
            patch += "egress.PROGRAMS = {k: v for k, v in egress.PROGRAMS.items() if k == PROGRAM}"
            with tempfile.TemporaryDirectory(dir="/tmp", prefix="nsbt") as home:
                run(f"{patch}\n{body}", home, resolv)

        def without() -> None:
            check("")

        marked = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in programs]
        wrapped: Any = without
        if programs:
            wrapped = pytest.mark.parametrize("program", marked)(check)
        wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
        wrapped.__module__ = test.__module__
        return pytest.mark.userns(wrapped)

    return decorate


def run(code: str, home: str, resolv: str = OUT) -> str:
    """What *code* has printed; *home* is an empty directory that others can enter."""
    if not shutil.which("ip"):
        pytest.fail("ip (iproute2) is not installed")
    os.chmod(home, 0o755)
    done = subprocess.run(
        [sys.executable, __file__, home, code], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=scaled(90), env={**os.environ, "RESOLV": resolv},
    )  # fmt: skip
    if done.returncode == SKIP:
        pytest.skip(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


if __name__ == "__main__":
    main(*sys.argv[1:])
