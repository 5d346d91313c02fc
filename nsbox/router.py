# SPDX-License-Identifier: Apache-2.0
"""Where networks are: for root the caller's network namespace, for an ordinary user a router.

A link between two network namespaces takes CAP_NET_ADMIN over both. An ordinary user has that in
the user namespaces that it makes, and in those inside of them. So its networks, all of this
process's, are in one such place, and sandboxes are made within::

    the caller's        user namespace of the router          of one sandbox, inside of it
      program
      launcher            bridges, rules, forwarding  <-veth->   eth0, payload
      pasta  <----------> tap0

Each sandbox still has a user namespace of its own, and so no right over the router or another one,
whatever capabilities it is given.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from nsbox import creds, hostsfile, later, launcher, nft, probe, proxy, routes, rtnl, shared
from nsbox.egress import UPLINK, Egress
from nsbox.errors import NetworkError
from nsbox.forwarding import Forwarding
from nsbox.namespace import Namespace
from nsbox.netlink import open_inside
from nsbox.steps import Netlink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsbox.netrules import HostPort
    from nsbox.netspec import Address
    from nsbox.routes import Taken

_LOOPBACK: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}

#: Of a router, before it has a link.
_FORWARDING = ("net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding")


class Here:
    """The caller's own network namespace.

    Attributes:
        net: it, as what links are made in; None for this thread's.
        name: of it, as ``shared.Shared`` takes it.
        uplink: the link that leads out of a router.
    """

    net: Namespace | None = None
    name = ""
    uplink = ""

    def taken(self) -> Iterable[Taken]:
        """What else uses addresses there."""
        return routes.taken()

    def rules(self) -> socket.socket:
        """A new socket for rules, whose tables go with it."""
        return nft.open_socket()

    def forward(self, versions: Iterable[int], undo: ExitStack) -> None:
        """Have packets pass from one link to another, until soon after *undo*."""
        for version in versions:
            undo.callback(Forwarding.hold(version).close_soon)

    def admit_loopback(self, bridge: str) -> None:
        """127.0.0.1 has what is published; the guard of the rules keeps others off."""
        with open(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet", "w") as file:
            file.write("1")

    def lead_out(self) -> None:
        """What is masked finds a way out of here."""

    def resolver(self) -> Address | None:
        """The host's name server, if it has none that can be reached by networks."""
        return None

    def serve_host(
        self,
        gateways: Iterable[Address],
        ports: Iterable[HostPort],
        undo: ExitStack,
        to: Address | None = None,
    ) -> None:
        """The host's own ports are at every gateway, as far as the rules let them."""

    def lives(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing is held."""


class Router(Here):
    """That of this process, in one view of the system, from its first network to the end of the
    last.

    Attributes:
        net: its network namespace.
        user: the user namespace that owns it, and has those of the sandboxes inside.
    """

    net: Namespace
    uplink = UPLINK

    def __init__(self, view: bytes) -> None:
        self._view = view
        self._users = 0
        self._undo = ExitStack()
        self._egress: Egress | None = None
        sysctls = tuple((name, "1") for name in _FORWARDING if os.path.exists(f"/proc/sys/{name}"))
        try:
            maps = creds.router_map(probe.host())
            self.net = Namespace._hold("net", ("user", "net"), maps, sysctls=sysctls)
            self._undo.callback(self.net.close)
            self._guardian = launcher.current()  # another one, if that before was killed
            owner = self.net.owner
            assert owner is not None  # of a namespace that the caller has made
            self.user = owner
            self._undo.callback(owner.close)
            self._route = rtnl.Rtnl(open_inside(self.net, Netlink.ROUTE))
            self._undo.callback(later.call, self._route.close)
            # Its files are this network's too, and so the launcher's to remove, which outlives us.
            self.name = f"{shared.network()}-{shared.network(self._route.fileno())}"
        except BaseException:
            self._undo.close()
            raise

    def rules(self) -> socket.socket:
        return socket.socket(fileno=open_inside(self.net, Netlink.NETFILTER))

    def forward(self, versions: Iterable[int], undo: ExitStack) -> None:
        """It does that since it was made."""

    def admit_loopback(self, bridge: str) -> None:
        """Nobody is there who would ask."""

    def lead_out(self) -> None:
        """By a program that connects as the caller does: one for all its networks.

        Raises:
            Unavailable: there is none, or it does not work here.
        """
        with _lock:
            if self._egress is None or not self._egress.runs():
                self._egress = Egress(self.net, self._route, self.name)
                self._undo.callback(self._egress.close)

    def taken(self) -> Iterable[Taken]:
        """Nothing but its own networks, whose claims say so."""
        return ()

    def resolver(self) -> Address | None:
        here = rtnl.Rtnl.here()
        try:
            return hostsfile.own_resolver({one.ip for _, one in here.addresses()})
        finally:
            here.close()

    def serve_host(
        self,
        gateways: Iterable[Address],
        ports: Iterable[HostPort],
        undo: ExitStack,
        to: Address | None = None,
    ) -> None:
        """Ports of the host at *to*, by default at its loopback, are at the gateways, too."""
        served = []
        for gateway, port in itertools.product(gateways, ports):
            listener = self._bind(gateway, port)
            undo.callback(listener.close)
            served.append(proxy.Port(listener, to or _LOOPBACK[gateway.version], port.port))
        if served:
            undo.callback(proxy.serve(served).close)

    def _bind(self, address: Address, port: HostPort) -> socket.socket:
        kind = Netlink[f"{port.protocol.upper()}{'6' if address.version == 6 else ''}"]
        made = socket.socket(fileno=open_inside(self.net, kind))
        try:
            made.bind((str(address), port.port))
        except OSError as e:
            made.close()
            raise NetworkError(e.errno or 0, f"host_ports {port.port}/{port.protocol}",
                               f"bind to {address}: {e.strerror}") from e  # fmt: skip
        return made

    def lives(self) -> bool:
        """Whether its processes run: they go with the launcher."""
        return self._guardian.alive() and self.net.held()

    def release(self) -> None:
        """By each who has it by ``place``, once; with the last one it goes."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            if _routers.get(self._view) is self:
                del _routers[self._view]
        later.call(self._undo.close)  # which waits for the end of processes


_routers: dict[bytes, Router] = {}
_lock = threading.RLock()


def place() -> Here:
    """Where the caller's networks are. ``release()`` it.

    Raises:
        Unavailable, SetupError: the host does not let a router be made.
    """
    if probe.host().privileged:
        return Here()
    view = launcher.current().view
    with _lock:
        router = _routers.get(view)
        if router is None or not router.lives():
            router = _routers[view] = Router(view)
        router._users += 1
        return router


def _forget() -> None:
    """A forked child has networks of its own."""
    global _lock
    _lock = threading.RLock()
    _routers.clear()


os.register_at_fork(after_in_child=_forget)
