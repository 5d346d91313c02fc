# SPDX-License-Identifier: Apache-2.0
"""The way out of a router: pasta(1) or slirp4netns(1), which connect as the caller does.

    sandbox --> bridge --> masquerade --> nsb-uplink ===> pasta --> socket of the caller's

The program is a sandbox itself: it has the host's network and a tap device in the router's, but
sees no process and only system directories. It ends with the router, or with its launcher.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv6Network
from typing import TYPE_CHECKING, NamedTuple

from nsbox import later, netrules, nft, probe, sandbox, streams, watch
from nsbox.build import CALLER_ID
from nsbox.errors import NetworkError, StateError, Unavailable
from nsbox.keywords import make_spec
from nsbox.netlink import open_inside
from nsbox.nftmsg import Table
from nsbox.rtnl import Rtnl
from nsbox.slots import Joined
from nsbox.spec import Mount
from nsbox.steps import Netlink
from nsbox.subnets import free_subnet

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Network

    from nsbox.namespace import Namespace
    from nsbox.netspec import Address

#: The link of a router that leads to the program.
UPLINK = "nsb-uplink"
_NETNS = "/run/netns/router"
#: To enter the router's network and to make the tap; pasta gives up what it can, and locks that.
_CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SETPCAP")
_PATIENCE_S = 10.0
_PATIENCE6_S = 0.5
_POLL_S = 0.002
_MOST_SAID, _MOST_LINES = 4096, 3
_IFADDR_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
FIX = "apt-get install passt, or slirp4netns"


class Subnets(NamedTuple):
    """Of the uplink: of its addresses the router has one, the program pretends to have another."""

    four: IPv4Network
    six: IPv6Network


def _pasta(program: str, subnets: Subnets) -> list[str]:
    """No port is passed on in either direction, and the gateway does not stand for 127.0.0.1."""
    four, six = subnets
    return [
        program, "--foreground", "--quiet", "--config-net", "--netns", _NETNS,
        "--ns-ifname", UPLINK, "--dns", "none", "--no-map-gw",
        "--address", f"{four[100]}", "--netmask", f"{four.prefixlen}", "--gateway", f"{four[2]}",
        "--address", f"{six[100]}", "--gateway", f"{six[2]}",
        *(word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")),
    ]  # fmt: skip


def _slirp4netns(program: str, subnets: Subnets) -> list[str]:
    """The third address of the subnet would be the host's name server, with all of its ports."""
    return [
        program, "--configure", "--mtu", "65520", "--cidr", str(subnets.four),
        "--disable-host-loopback", "--disable-dns", "--enable-seccomp",
        "--netns-type", "path", _NETNS, UPLINK,
    ]  # fmt: skip


#: The first that is installed is taken.
PROGRAMS: dict[str, Callable[[str, Subnets], list[str]]] = {
    "pasta": _pasta,
    "slirp4netns": _slirp4netns,
}


def installed() -> str | None:
    """The path of the program that would be run; None: there is none."""
    return next((path for name in PROGRAMS if (path := probe.program(name))), None)


def _ways_out(route: Rtnl) -> set[int]:
    """Versions with a default route."""
    return {one.network.version for one in route.routes() if one.network.prefixlen == 0}


class Egress:
    """A running one.

    Args:
        net: the router's network namespace; *route* is rtnetlink in it.
        where: its name, as ``shared.Shared`` takes it.

    Raises:
        Unavailable: none of the programs is installed, or it ended at once.
    """

    def __init__(self, net: Namespace, route: Rtnl, where: str) -> None:
        program = installed()
        if program is None:
            raise Unavailable("nat", "an ordinary user's networks reach others by pasta or "
                              "slirp4netns; neither is installed",
                              alternatives=("nat=False",), hint=FIX)  # fmt: skip
        self.name = os.path.basename(program)
        with ExitStack() as undo:
            claim = free_subnet(where=where)
            undo.callback(claim.close)
            prefix = int.from_bytes(b"\xfd" + secrets.token_bytes(7), "big")
            six = IPv6Network((prefix << 64, 64))
            subnets = Subnets(claim.subnet, six)  # type: ignore[arg-type]
            self._guard(net, undo)
            self._run(PROGRAMS[self.name](program, subnets), net, undo)
            self._await(route)
            self._undo = undo.pop_all()

    # ------------------------------------------------------------ the program

    def _run(self, args: list[str], net: Namespace, undo: ExitStack) -> None:
        spec = make_spec(
            args, profile="none", namespaces=("mnt", "pid"), net="host", user=CALLER_ID,
            capabilities=_CAPABILITIES, devices=("tun",),
            mounts=(Mount.bind(f"/proc/{net.keeper}/ns/net", _NETNS, ro=False),
                    Mount.tmpfs("/tmp", 65536)),
        )  # fmt: skip
        nodes = [node for name, *_ in spec.devices for node in probe.device_nodes(name)]
        # What it says goes nowhere once the pipe is full: nobody reads it while it runs.
        self._said, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        undo.callback(os.close, self._said)
        try:
            join, fd = net.entrance()
            self._process = sandbox.launch(
                replace(spec, devices=tuple(nodes)), streams.connect(None, theirs, theirs),
                joined=Joined(join[:1], fd, "single"),
            )  # fmt: skip
        finally:
            os.close(theirs)
        undo.callback(self._process.close)

    def _await(self, route: Rtnl) -> None:
        """Until there is a way out, of IPv6 as well where pasta makes one, which comes second."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (versions := _ways_out(route)):
            ended = self._process.wait(_POLL_S)
            if ended is not None or time.monotonic() > deadline:
                how = "gave no way out" if ended is None else f"ended ({ended.returncode})"
                said = "; ".join(self._output().strip().splitlines()[:_MOST_LINES])
                raise Unavailable("nat", f"{self.name} {how}: {said or 'no reason'}",
                                  alternatives=("nat=False",))  # fmt: skip
        deadline = time.monotonic() + _PATIENCE6_S
        both = self.name == "pasta" and 6 in _ways_out(self._host)
        while both and 6 not in versions and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            versions = _ways_out(route)

    def _output(self) -> str:
        try:
            return os.read(self._said, _MOST_SAID).decode("utf-8", "replace")
        except BlockingIOError:
            return ""

    def runs(self) -> bool:
        """Whether it does."""
        try:
            return self._process.poll() is None
        except StateError:  # lost with its launcher
            return False

    # ------------------------------------------------------------ the host's addresses

    def _guard(self, net: Namespace, undo: ExitStack) -> None:
        """It would connect to the host's own addresses, too. They may change."""
        self._table = f"nsb-{secrets.token_hex(6)}"
        self._rules = socket.socket(fileno=open_inside(net, Netlink.NETFILTER))
        undo.callback(later.call, self._rules.close)
        self._host = Rtnl.here()
        undo.callback(self._host.close)
        self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK,
                                   socket.NETLINK_ROUTE)  # fmt: skip
        undo.callback(self._news.close)
        self._news.bind((0, _IFADDR_GROUPS))
        self._known: frozenset[Address] | None = None
        self._close_host()
        watch.get().add(self._news.fileno(), self._look_again)
        undo.callback(watch.get().remove, self._news.fileno())

    def _look_again(self) -> None:
        """By the watch: an address has come or gone."""
        try:
            while self._news.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        except OSError:  # closed meanwhile, or too many came at once
            if self._news.fileno() < 0:
                return
        self._close_host()

    def _close_host(self) -> None:
        found = frozenset(one.ip for _, one in self._host.addresses() if not one.ip.is_loopback)
        if found == self._known:
            return
        messages = netrules.host_table(self._table, UPLINK, sorted(found, key=int))
        if self._known is not None:
            messages.insert(0, Table(self._table).delete())
        try:
            nft.transact(self._rules, messages)
        except OSError as e:
            raise NetworkError(e.errno or 0, f"rules of {UPLINK}", str(e)) from e
        self._known = found

    def close(self) -> None:
        """End it; idempotent."""
        self._undo.close()
