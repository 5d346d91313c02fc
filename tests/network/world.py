# SPDX-License-Identifier: Apache-2.0
"""A small world around an ordinary user: a host, and beyond it what stands for the internet.

    python world.py CODE

runs CODE as an ordinary user of a host that is a network namespace of its own::

    internet                          host
      198.51.100.1, 2001:db8:9::1       192.0.2.2, 2001:db8:1::2, default routes
      echo, names, a client             resolv.conf: 198.51.100.1

Root drops to a user who may have subordinate ids; who is none becomes one in a user namespace.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from nsbox import syscalls as sc
from nsbox.syscalls import Clone, MountFlag

HOST, HOST6 = "192.0.2.2", "2001:db8:1::2"
OUT, OUT6 = "198.51.100.1", "2001:db8:9::1"
ECHO, CLIENT = 7, 99
#: Of tools/test-as-user.sh; without it nobody, who has no subordinate ids.
USERS = ("nsboxtest", "nobody")

#: What tests have at hand, before their own code.
PRELUDE = f"""
import errno, json, os, re, select, signal, socket, subprocess, sys, threading, time
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
def ask(who, proto, address, port, data=\"x\"):
    \"What a process in a container is answered; raises with what it says.\"
    run = who.exec if hasattr(who, \"exec\") else (lambda args, **k: nsbox.run(args, net=who, **k))
    done = run([\"python3\", \"-c\", ASK, proto, str(address), str(port), data],
               capture_output=True, text=True)
    if done.returncode:
        raise ConnectionError(done.stderr.splitlines()[-1])
    return done.stdout
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


def _names() -> None:
    """Every name has one address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((OUT, 53))
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


def internet(ready: int, alive: int) -> None:
    """Until nobody holds the other end of *alive*."""
    sc.unshare(Clone.NEWNET)
    ip("link", "set", "lo", "up")
    ip("addr", "add", f"{OUT}/32", "dev", "lo")
    ip("addr", "add", f"{OUT6}/128", "dev", "lo", "nodad")
    for target, args in (
        *((_echo, (kind, family)) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
          for family in (socket.AF_INET, socket.AF_INET6)),
        (_names, ()),
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


def ordinary(uid: int, gid: int) -> dict[str, str]:
    """Become an ordinary user, with the next execve; its environment."""
    import pwd

    home = tempfile.mkdtemp(prefix="nsbt")
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    if uid:
        be_user(uid, gid)
    else:
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = next(known[name] for name in USERS if name in known)
        os.chown(home, user.pw_uid, user.pw_gid)
        Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"{user.pw_gid} {user.pw_gid}")
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.chdir(home)
    kept = {name: os.environ[name] for name in os.environ if name.startswith("NSBOX")}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": home,
            "XDG_RUNTIME_DIR": home, "TMPDIR": home, "LANG": "C.UTF-8", **kept}  # fmt: skip


def main(code: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    become_world()
    pid = start_internet()
    cable(pid)
    fd, resolv = tempfile.mkstemp()
    os.write(fd, f"nameserver {OUT}\n".encode())
    os.fchmod(fd, 0o644)
    sc.mount(resolv, os.path.realpath("/etc/resolv.conf"), None, MountFlag.BIND)
    os.unlink(resolv)
    environment = ordinary(uid, gid)
    os.execve(sys.executable, [sys.executable, "-c", PRELUDE + code], environment)


if __name__ == "__main__":
    main(sys.argv[1])
