# SPDX-License-Identifier: Apache-2.0
"""Links between network namespaces: veth pairs and bridges, and what can be done to an end.

Kernel: rtnetlink(7), veth(4). A link that nsbox makes has an alias which says whose it is: by
that it is found and deleted when its owner was killed.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import warnings
from typing import TYPE_CHECKING, Any

from nsbox import interrupts, later, launcher, rtnl
from nsbox.errors import NetworkError, SpecError, StateError
from nsbox.namespace import Namespace
from nsbox.netlink import rtnl as open_rtnl
from nsbox.registry import LINKS

if TYPE_CHECKING:
    from nsbox.netspec import Address, Subnet
    from nsbox.rtnl import Interface as IpInterface
    from nsbox.rtnl import Rtnl

_NAME = re.compile(r"[^\s/:%\0]{1,15}")
_MTU = (68, 65535)


def check_name(name: Any, field: str) -> str:
    """A link's name: dev_valid_name() of the kernel, and no ``%``, which it would fill in.

    Raises:
        SpecError: it cannot be one.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (".", "..", "lo"):
        raise SpecError(field, f"{name!r} is not 1 to 15 characters without '/', ':' and blanks")
    return name


def new_name() -> str:
    """One that no other link has: ``nsb`` and 12 random characters."""
    return f"nsb{secrets.token_hex(6)}"


def ip_interface(value: Any, field: str) -> IpInterface:
    """Raises SpecError unless it is an address with its network, as ``"10.0.0.2/24"``."""
    try:
        if isinstance(value, str) and "/" not in value:
            raise ValueError("has no prefix length")
        return ipaddress.ip_interface(value)
    except ValueError as e:
        raise SpecError(field, f'{value!r}: {e}; use as "10.0.0.2/24"') from e


def interface(address: Address, subnet: Subnet) -> IpInterface:
    """An address with its network."""
    return ipaddress.ip_interface(f"{address}/{subnet.prefixlen}")


def namespace_of(where: Any, field: str) -> tuple[Namespace | None, bool]:
    """What ``netns=`` may be: None for the caller's, a ``Namespace``, a pid, a path or a name of
    ``ip netns``; and whether it was opened here, and so is to be closed."""
    if where is None or isinstance(where, Namespace):
        if where is not None and where.kind != "net":
            raise SpecError(field, f"{where!r} is not a network namespace")
        return where, False
    if isinstance(where, bool):
        raise SpecError(field, f"{where!r} is no namespace")
    if isinstance(where, int):
        return Namespace.of(where, "net"), True
    return Namespace.open(os.fspath(where), "net"), True


class Interface:
    """One end of a link, in its network namespace: by its name there, see ip-link(8).

    Attributes:
        name: at most 15 characters.
        namespace: where it is; None for the caller's own.
    """

    def __init__(self, route: Rtnl, name: str, namespace: Namespace | None = None) -> None:
        self.name = name
        self.namespace = namespace
        self._route = route

    def _look(self) -> rtnl.Link:
        return self._route.link(self.name)

    @property
    def index(self) -> int:
        """Its number in its namespace. Raises NetworkError (ENODEV) when it is not there."""
        return self._look().ifindex

    @property
    def mac(self) -> str:
        """Its hardware address."""
        return self._look().mac

    @property
    def counts(self) -> dict[str, int]:
        """Since it was made: ``rx_packets``, ``tx_packets``, ``rx_bytes``, ``tx_bytes``,
        ``rx_errors``, ``tx_errors``, ``rx_dropped`` and ``tx_dropped``; rtnl_link_stats64."""
        words = [f"{way}_{what}" for what in ("packets", "bytes", "errors", "dropped")
                 for way in ("rx", "tx")]  # fmt: skip
        return dict(zip(words, self._look().counts, strict=True))

    def up(self) -> None:
        self._route.do(rtnl.link_set(self.name, up=True))

    def down(self) -> None:
        self._route.do(rtnl.link_set(self.name, up=False))

    @property
    def addresses(self) -> list[IpInterface]:
        """With their networks, IPv4 and IPv6."""
        return [address for _, address in self._route.addresses(self.index)]

    def add_address(self, address: Any) -> None:
        """As ``"10.0.0.2/24"``, which also makes the network reachable; IPv6 at once, too."""
        self._route.do(rtnl.address_add(self.index, ip_interface(address, "address")))

    def add_route(self, network: Any = None, via: Any = None) -> None:
        """To *network* through the gateway *via*, or on this link itself; without a network the
        default route."""
        try:
            to = None if network is None else ipaddress.ip_network(network)
            gateway = None if via is None else ipaddress.ip_address(via)
        except ValueError as e:
            raise SpecError("network", str(e)) from e
        if to is None and gateway is None:
            raise SpecError("via", "a default route needs a gateway")
        self._route.do(rtnl.route_add(to, gateway=gateway, index=self.index))

    def free_name(self) -> int:
        """Before it is deleted: its name can be another's at once. Its index; 0: it is gone."""
        try:
            index = self.index
            free = rtnl.link_set(index, name=new_name())
            try:
                self._route.do(free)
            except NetworkError as e:
                if e.errno != errno.EBUSY:  # before Linux 6.2 a link that is up keeps its name
                    raise
                self._route.do(rtnl.link_set(index, up=False), free)
        except NetworkError as e:
            if e.errno != errno.ENODEV:
                raise
            return 0
        return index

    def delete(self) -> None:
        """With its other end, and soon: its name is free at once."""
        if index := self.free_name():
            later.delete(self._route, index)

    def __repr__(self) -> str:
        return f"<nsbox.Interface {self.name!r}>"


class Owned:
    """What makes links that go with it, or with the program."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._closed = False
        self._spaces: list[Namespace] = []
        self._routes: list[Rtnl] = []

    def _find(self, where: Any, field: str) -> Namespace | None:
        namespace, mine = namespace_of(where, field)
        if namespace is not None and mine:
            self._spaces.append(namespace)
        return namespace

    def _open(self, namespace: Namespace | None, *others: Namespace) -> Rtnl:
        """rtnetlink there, with a right over *others* as well, if the caller can have it."""
        route = open_rtnl(namespace, *others)
        self._routes.append(route)
        return route

    def _alias(self) -> str:
        """Registered before anything has it: whoever outlives us deletes the links."""
        for _ in range(2):
            guardian = launcher.current()
            try:
                guardian.register((LINKS,))
                return guardian.entry.name()
            except BrokenPipeError:
                launcher.forget(guardian)
        raise StateError("the launcher was killed, twice", status="lost")

    def _delete(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Delete it; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if os.getpid() == self._owner:
                with interrupts.Held():
                    self._delete()
        finally:
            for route in self._routes:
                later.call(route.close)
            for space in self._spaces:
                later.call(space.close)

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        if os.getpid() == self._owner:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
        self.close()


class Veth(Owned):
    """Two ends of a cable, each in the network namespace where it belongs.

    A context manager; ``close()`` deletes both ends. So does the end of one of the namespaces, and
    of this program, however it ends, when an end is in its network namespace.

    Attributes:
        link, peer: the ends, each an ``Interface``.
    """

    link: Interface
    peer: Interface

    @classmethod
    def create(
        cls,
        name: str,
        netns: Any = None,
        *,
        peer: str,
        peer_netns: Any = None,
        address: Any = None,
        peer_address: Any = None,
        mtu: int | None = None,
        up: bool = True,
    ) -> Veth:
        """``ip link add NAME netns NETNS type veth peer name PEER netns PEER_NETNS``, in one call.

        An ordinary user has a right over network namespaces that one of its user namespaces owns,
        both of them: see ``Namespace.create(within=)``. So it is with sandboxes of its networks.

        Args:
            netns, peer_netns: None for the caller's own, a ``Namespace``, the pid of a process in
                it, or a path or name of ``ip netns``.
            address, peer_address: as ``"10.0.0.1/24"``, of each end.
            mtu: bytes, of both.
            up: set both up.

        Raises:
            SpecError: a name or an address is none.
            NetworkError: the kernel refused: EEXIST, EPERM; nothing is left.
        """
        check_name(name, "name")
        check_name(peer, "peer")
        if mtu is not None and not _MTU[0] <= mtu <= _MTU[1]:
            raise SpecError("mtu", f"{mtu!r} is not {_MTU[0]} to {_MTU[1]}")
        wanted = [None if one is None else ip_interface(one, field) for one, field in
                  ((address, "address"), (peer_address, "peer_address"))]  # fmt: skip
        self = cls()
        try:
            with interrupts.Held():
                self._make(name, netns, peer, peer_netns, mtu or 0)
                for end, ip in zip((self.link, self.peer), wanted, strict=True):
                    if ip is not None:
                        end.add_address(ip)
                    if up:
                        end.up()
        except BaseException:
            self.close()
            raise
        return self

    def _make(self, name: str, netns: Any, peer: str, peer_netns: Any, mtu: int) -> None:
        here, there = self._find(netns, "netns"), self._find(peer_netns, "peer_netns")
        route = self._open(here, *(() if there is None else (there,)))
        peer_route = self._open(there, *(() if here is None else (here,)))
        self.link, self.peer = Interface(route, name, here), Interface(peer_route, peer, there)
        # From the caller's own namespace, if an end is there: it is marked in the same system call.
        first, second = self.link, self.peer
        if there is None:
            first, second = second, first
        alias = self._alias()
        own = Namespace.current("net")
        try:
            first._route.do(
                rtnl.veth_add(
                    first.name, second.name, peer_netns=(second.namespace or own).fileno(), mtu=mtu
                ),
                rtnl.link_set(first.name, alias=alias),
            )
        finally:
            own.close()

    def _delete(self) -> None:
        if not hasattr(self, "link"):
            return
        self.peer.free_name()
        self.link.delete()

    def __enter__(self) -> Veth:
        return self

    def __repr__(self) -> str:
        ends = " - ".join(repr(getattr(self, end).name) for end in ("link", "peer")
                          if hasattr(self, end))  # fmt: skip
        return f"<nsbox.Veth {ends}{' closed' if self._closed else ''}>"
