# SPDX-License-Identifier: Apache-2.0
"""Hosts, containers and neighbours as network namespaces, and packets between them.

A test of this directory runs in a process of its own, in a network namespace of its own: as root,
or as an ordinary user in a user namespace. All "hosts" there are namespaces that one thread
enters in turn: a socket belongs to the one that it was made in.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import pytest
from support import TIMEOUT_SCALE, scaled

from nsbox import nft
from nsbox.names import Clone
from nsbox.netrules import network_table
from nsbox.nftmsg import Table
from nsbox.syscalls import setns, unshare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).resolve().parents[1]
NEVER_S = min(0.3, 1.0 / TIMEOUT_SCALE)
"""How long a packet that must not come is waited for, before it is scaled: a second at most.
Each such test has a twin where it comes."""

SUBNET, GATEWAY = IPv4Network("10.77.0.0/24"), IPv4Address("10.77.0.1")
SUBNET6, GATEWAY6 = IPv6Network("fd77::/64"), IPv6Address("fd77::1")


# -- running apart ----------------------------------------------------------------------------


def apart(body: Callable[[], None], *, user: bool = False) -> str:
    """Run *body* in namespaces of its own; what it printed.

    In a fork of this interpreter: to start another one takes seconds on an emulated kernel.
    """
    user = user or os.geteuid() != 0
    with tempfile.TemporaryFile("w+") as printed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads
            pid = os.fork()
        if pid == 0:
            _run_alone(inspect.unwrap(body), printed, user)
        ended = _wait(pid)
        printed.seek(0)
        text = printed.read()
    assert ended == 0, text
    return text


def _run_alone(body: Callable[[], None], printed: TextIO, user: bool) -> NoReturn:
    status = 1
    try:
        with open(os.devnull) as null:
            os.dup2(null.fileno(), 0)
        for number in (1, 2):
            os.dup2(printed.fileno(), number)
        sys.stdout = sys.stderr = printed
        sys.unraisablehook = sys.__unraisablehook__
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # sockets that end with the process
        ids = os.geteuid(), os.getegid()
        unshare(Clone.NEWNET | (Clone.NEWUSER if user else Clone(0)))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {ids[0]} 1")
            Path("/proc/self/gid_map").write_text(f"0 {ids[1]} 1")
        body()
        printed.flush()
        size = os.fstat(1).st_size
        status = 0 if "Warning" not in os.pread(1, size, 0).decode() else 1
    except BaseException:
        traceback.print_exc(file=printed)
    finally:
        printed.flush()
        os._exit(status)


def _wait(pid: int) -> int:
    """How it ended; by SIGKILL, if it took too long."""
    with open(os.pidfd_open(pid)) as ended:
        if not select.select([ended], [], [], scaled(60))[0]:
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def network(body: Callable[[], None]) -> Callable[[], None]:
    """Mark and run a test in a network of its own."""

    @pytest.mark.userns
    @pytest.mark.kernel("root")
    @functools.wraps(body)
    def test() -> None:
        apart(body)

    return test


# -- namespaces -------------------------------------------------------------------------------


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Net:
    """A network namespace, with its loopback up."""

    def __init__(self, *, current: bool = False) -> None:
        if current:
            self.fd = _here()
        else:
            home = _here()
            unshare(Clone.NEWNET)
            self.fd = _here()
            setns(home, Clone.NEWNET)
            os.close(home)
        self.ip("link set lo up")
        self.sysctl("ipv4/ping_group_range", "0 0")
        self.sysctl("ipv6/conf/default/accept_dad", 0)  # else a link asks for a second

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        home = _here()
        setns(self.fd, Clone.NEWNET)
        try:
            yield
        finally:
            setns(home, Clone.NEWNET)
            os.close(home)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def ip(self, *commands: str) -> None:
        """One line of ip(8) each."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands))

    def run(self, *args: str, stdin: str = "") -> str:
        with self.inside():
            done = subprocess.run(args, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, f"{args} {stdin}: {done.stderr}"
        return done.stdout

    def sysctl(self, name: str, value: int | str) -> None:
        with self.inside():
            Path("/proc/sys/net", name).write_text(str(value))

    def has_sysctl(self, name: str) -> bool:
        with self.inside():
            return Path("/proc/sys/net", name).exists()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self.inside():
            return socket.socket(family, kind, protocol)

    def index(self, link: str) -> int:
        with self.inside():
            return socket.if_nametoindex(link)

    def link_local(self, link: str) -> str:
        """The address that IPv6 gives every link."""
        for line in self.run("ip", "-6", "-o", "addr", "show", "dev", link).splitlines():
            if " fe80::" in line:
                return line.split()[3].partition("/")[0]
        raise AssertionError(f"{link} has no address of its own")

    def nft(self) -> socket.socket:
        with self.inside():
            return nft.open_socket()

    def rules(self) -> str:
        """What nft(8) sees: the witness."""
        return self.run("nft", "-a", "list", "ruleset")

    def counted(self, name: str) -> int:
        """A counter of /proc/net/snmp6, which has those of ICMPv6 that have counted something."""
        with self.inside():
            lines = Path("/proc/thread-self/net/snmp6").read_text().splitlines()
        return int(dict(line.split() for line in lines).get(name, 0))


def addresses(link: str, *cidrs: str) -> list[str]:
    """Commands that give *link* its addresses, at once, and bring it up."""
    given = [f"addr add {cidr} dev {link}{' nodad' if ':' in cidr else ''}" for cidr in cidrs]
    return [*given, f"link set {link} up"]


class Host(Net):
    """The namespace with the bridges, in which the test begins."""

    def __init__(self) -> None:
        super().__init__(current=True)
        self.count = 0
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.sysctl(name, 1)

    def bridge(self, name: str, *cidrs: str) -> None:
        self.ip(f"link add {name} type bridge forward_delay 0", *addresses(name, *cidrs))
        self.sysctl(f"ipv4/conf/{name}/route_localnet", 1)

    def join(self, master: str, gateways: list[str], *cidrs: str) -> Net:
        """A new namespace with an eth0: on a bridge, or, with a name that is none, at its end."""
        found = Net()
        self.count += 1
        link = f"veth{self.count}"
        # With the same index at both ends it would be no pair for linkwatch: ready after a second.
        index = 100 + self.count
        self.ip(f"link add {link} index {index} type veth peer name eth0 netns {found.path}")
        if f" {master}: " in self.run("ip", "link"):
            # To itself, by a published port: where br_netfilter is, by the link that it came from.
            self.ip(
                f"link set {link} master {master}",
                f"link set {link} type bridge_slave hairpin on",
                f"link set {link} up",
            )
        else:
            self.ip(f"link set {link} name {master}")
        routes = [f"route add default via {gateway}" for gateway in gateways]
        found.ip(*addresses("eth0", *cidrs), *routes)
        return found


class World:
    """A host with one network, two containers in it, and a neighbour of the host outside."""

    def __init__(self, *, bridged_filter: bool = False) -> None:
        self.host = Host()
        self.host.bridge("nsb0", f"{GATEWAY}/24", f"{GATEWAY6}/64")
        gateways = [str(GATEWAY), str(GATEWAY6)]
        self.a = self.host.join("nsb0", gateways, "10.77.0.2/24", "fd77::2/64")
        self.b = self.host.join("nsb0", gateways, "10.77.0.3/24", "fd77::3/64")
        self.outside = self.host.join("out0", [], "192.0.2.2/24", "2001:db8::2/64")
        self.host.ip(*addresses("out0", "192.0.2.1/24", "2001:db8::1/64"))
        self.outside.ip(
            "route add 10.77.0.0/24 via 192.0.2.1",
            "route add 10.78.0.0/24 via 192.0.2.1",
            "route add fd77::/64 via 2001:db8::1",
        )
        self.nft = self.host.nft()
        for version in ("", "6"):
            name = f"bridge/bridge-nf-call-ip{version}tables"
            if self.host.has_sysctl(name):
                self.host.sysctl(name, int(bridged_filter))

    def apply(self, *, without: str = "", **options: Any) -> None:
        """Its table. *without* the rules with these words: the twin of what they are for."""
        options = {"subnet6": SUBNET6, "gateway6": GATEWAY6, **options}
        messages = network_table("nsbt", "nsb0", SUBNET, GATEWAY, **options)
        kept = [one for one in messages if not without or without not in one.command]
        assert len(kept) < len(messages) or not without, f"no rule has {without}"
        nft.transact(self.nft, kept)

    def clear(self) -> None:
        nft.transact(self.nft, [Table("nsbt").delete()])

    def again(self, **options: Any) -> None:
        """Another one instead."""
        self.clear()
        self.apply(**options)

    def second_network(self) -> Net:
        """Another network of the same host, with a table of its own, and a container in it."""
        self.host.bridge("nsb1", "10.78.0.1/24", "fd78::1/64")
        found = self.host.join("nsb1", ["10.78.0.1", "fd78::1"], "10.78.0.2/24", "fd78::2/64")
        nft.transact(self.nft, network_table(
            "nsbu", "nsb1", IPv4Network("10.78.0.0/24"), IPv4Address("10.78.0.1"),
            IPv6Network("fd78::/64"), IPv6Address("fd78::1"),
        ))  # fmt: skip
        return found


# -- packets ----------------------------------------------------------------------------------


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def reach(
    source: Net, target: Net, to: tuple[str, int], at: tuple[str, int] | None = None, *,
    kind: str = "tcp", bound: str = "", patience_s: float | None = 5.0,
) -> str | None:  # fmt: skip
    """Connect from *source* to the address *to*, where *target* has a server *at* one of its own.

    Returns whom the server saw, after an exchange; None if nothing came in time. Raises what
    connect(2) does, which blocks without a time.
    """
    exchange = _tcp if kind == "tcp" else _udp
    at = at or to
    how = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with target.socket(family_of(at[0]), how) as server, \
         source.socket(family_of(to[0]), how) as client:  # fmt: skip
        if family_of(at[0]) == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(at)
        if bound:
            client.bind((bound, 0))
        for one in (server, client):
            one.settimeout(patience_s and scaled(patience_s))
        try:
            return exchange(server, client, to)
        except TimeoutError:
            return None


def _tcp(server: socket.socket, client: socket.socket, to: tuple[str, int]) -> str:
    server.listen()
    client.connect(to)
    connection, peer = server.accept()
    with connection:
        connection.settimeout(server.gettimeout())
        client.sendall(b"ask")
        assert connection.recv(9) == b"ask"
        connection.sendall(b"answer")
        assert client.recv(9) == b"answer"
    return str(peer[0])


def _udp(server: socket.socket, client: socket.socket, to: tuple[str, int]) -> str:
    client.connect(to)  # the answer must come from there
    client.send(b"ask")
    said, peer = server.recvfrom(9)
    assert said == b"ask"
    server.sendto(b"answer", peer)
    assert client.recv(9) == b"answer"
    return str(peer[0])


def never(source: Net, target: Net, to: tuple[str, int], at: tuple[str, int] | None = None,
          **more: str) -> bool:  # fmt: skip
    """Nothing comes, and nobody says so."""
    return reach(source, target, to, at, patience_s=NEVER_S, **more) is None  # type: ignore[arg-type]


def pings(source: Net, to: str, *, patience_s: float = 5.0) -> bool:
    """Whether an answer comes: asked by a socket of ping(8)'s own kind."""
    v6 = ":" in to
    protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    request = bytes((128 if v6 else 8, 0, 0, 0, 0, 1, 0, 1)) + b"nsbox"
    with source.socket(family_of(to), socket.SOCK_DGRAM, protocol) as asked:
        asked.settimeout(scaled(patience_s))
        asked.connect((to, 0, 0, source.index("eth0")) if to.startswith("fe80") else (to, 0))
        try:
            asked.send(request)
            return asked.recv(64)[0] == (129 if v6 else 0)
        except TimeoutError:
            return False


def tables(host: Net) -> list[str]:
    """As nft(8) says it."""
    listed = json.loads(host.run("nft", "-j", "list", "tables"))["nftables"]
    return [entry["table"]["name"] for entry in listed if "table" in entry]


def checksum(raw: bytes) -> bytes:
    """That of the Internet, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(raw) // 2}H", raw))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
