# SPDX-License-Identifier: Apache-2.0
"""One end of a link, or a link by itself: what it is called, and what can be done to it.

Kernel: rtnetlink(7).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
from typing import TYPE_CHECKING, Any

from nsbox import later, netspec, rtnl, shaping, units
from nsbox.errors import NetworkError, SpecError
from nsbox.namespace import Namespace
from nsbox.netlink import rtnl as open_rtnl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsbox.netspec import Address, Subnet
    from nsbox.rtnl import Interface as IpInterface
    from nsbox.rtnl import Queue, Rtnl
    from nsbox.shaping import Shape

_NAME = re.compile(r"[^\s/:%\0\ud800-\udfff]+")
_NAME_MAX = 15  # bytes
#: No link can be called so: in /proc/sys/net/ipv4/conf they stand for all, and for new ones.
_TAKEN = (".", "..", "lo", "all", "default")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_MTU = (68, 65535)
_MTU6 = 1280  # the least of a link that has IPv6, RFC 8200
_MAIN = 254  # RT_TABLE_MAIN
#: Of an address that went with another, a route with its address, and of both when the link has no
#: IPv6 any more (ENXIO), as one with a small MTU, or has gone itself (ENODEV).
_GONE = (errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENXIO, errno.ENODEV)
_PTRACE = ("it takes the right to trace a process that is in it, see ptrace(2); or a pin of it, "
           "such as ip netns makes")  # fmt: skip
_INDICES = 1 << 29  # the upper half of what an index can be: the kernel counts from 1


def check_name(name: Any, field: str) -> str:
    """A link's name: dev_valid_name() of the kernel, and no ``%``, which it would fill in.

    Raises:
        SpecError: it cannot be one.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(field, f"{name!r} is not a name without '/', ':', '%' and blanks")
    if len(name.encode()) > _NAME_MAX:
        raise SpecError(field, f"{name!r} is too long: a link's name has at most {_NAME_MAX} bytes")
    if name in _TAKEN:
        raise SpecError(field, f"{name!r} is no name for a new link")
    return name


def new_name() -> str:
    """One that no other link has: ``nsb`` and 12 random characters."""
    return f"nsb{secrets.token_hex(6)}"


def new_mac() -> str:
    """One that is locally administered, and no group's."""
    return ":".join(("02", *(f"{byte:02x}" for byte in secrets.token_bytes(5))))


def new_index() -> int:
    """One that no other link has. Who chose it can tell the kernel more of its link in the system
    call that makes it; by its name that would be of another's, if there is one already."""
    return secrets.randbelow(_INDICES) + _INDICES


def check_mtu(mtu: int | None, *, six: bool = False) -> int:
    """0 for none. Raises SpecError unless it can be a link's, and with *six* one's with IPv6."""
    size = 0 if mtu is None else units.count(mtu, "mtu", least=_MTU[0], most=_MTU[1])
    if six and 0 < size < _MTU6:
        raise SpecError("mtu", f"{size}: {_MTU6} is the least with subnet6=")
    return size


def ip_interface(value: Any, field: str) -> IpInterface:
    """Raises SpecError unless it is an address with its network, as ``"10.0.0.2/24"``."""
    try:
        if isinstance(value, str) and "/" not in value:
            raise ValueError("has no prefix length")
        return ipaddress.ip_interface(value)
    except ValueError as e:
        raise SpecError(field, f'{value!r}: {e}; use as "10.0.0.2/24"') from e


def with_prefix(address: Address, subnet: Subnet) -> IpInterface:
    """An address with its network."""
    return ipaddress.ip_interface(f"{address}/{subnet.prefixlen}")


def namespace_of(where: Any, field: str) -> tuple[Namespace | None, bool]:
    """What ``netns=`` may be: None for the caller's, a ``Namespace``, a pid, a path or a name of
    ``ip netns``; and whether it was opened here, and so is to be closed.

    Raises:
        SpecError: it is none of them.
        NetworkError: it may not be opened.
    """
    if where is None or isinstance(where, Namespace):
        if where is not None and where.kind != "net":
            raise SpecError(field, f"{where!r} is not a network namespace")
        return where, False
    if isinstance(where, bool) or not isinstance(where, (int, str, os.PathLike)):
        raise SpecError(field, f"{where!r} is no namespace")
    try:
        if isinstance(where, int):
            return Namespace.of(where, "net"), True
        return Namespace.open(where, "net"), True
    except FileNotFoundError as e:
        what = "process" if isinstance(where, int) else "network namespace"
        raise SpecError(field, f"there is no {what} {where!r} ({e.filename})") from e
    except PermissionError as e:
        raise NetworkError(e.errno or 0, f"{field} {where!r}: open {e.filename}",
                           hint=_PTRACE) from e  # fmt: skip


def _addresses_and_routes(
    route: Rtnl, index: int
) -> tuple[tuple[IpInterface, ...], list[rtnl.Route]]:
    """Of a link, in the main table."""
    addresses = tuple(one for _, one in route.addresses(index))
    return addresses, [one for one in route.routes()
                       if one.ifindex == index and one.table == _MAIN]  # fmt: skip


def _free_addresses(
    route: Rtnl, index: int, addresses: Iterable[IpInterface], routes: Iterable[rtnl.Route] = ()
) -> None:
    doomed = [rtnl.address_delete(index, one) for one in addresses]
    doomed += [rtnl.route_delete(one.network, gateway=one.gateway, index=index, metric=one.metric)
               for one in routes]  # fmt: skip
    for request in doomed:
        try:
            route.do(request)
        except NetworkError as e:
            if e.errno not in _GONE:
                raise


def _free_name(route: Rtnl, index: int) -> None:
    free = rtnl.link_set(index, name=new_name())
    try:
        route.do(free)
    except NetworkError as e:
        if e.errno != errno.EBUSY:  # before Linux 6.2 a link that is up keeps its name
            raise
        route.do(rtnl.link_set(index, up=False), free)


class Own:
    """A link of nsbox's own making, until it is deleted.

    Args:
        addresses: of those that it has, those that somebody may want at once when it goes.
        named: its name is one of them, too; it is not of ``new_name``.

    Attributes:
        lent: others may have changed it.
    """

    def __init__(
        self, route: Rtnl, index: int, addresses: Iterable[IpInterface], *, named: bool
    ) -> None:
        self._route, self._index = route, index
        self._addresses, self._named = tuple(addresses), named
        self.lent = False

    def delete(self) -> None:
        """Soon, as ``Interface.delete``. To ask the kernel what there is, and to free more than has
        to be, takes a millisecond, or twenty while a network namespace is destroyed."""
        addresses = self._addresses
        routes: list[rtnl.Route] = []
        try:
            if self.lent:
                addresses, routes = _addresses_and_routes(self._route, self._index)
            _free_addresses(self._route, self._index, addresses, routes)
            if self._named:
                _free_name(self._route, self._index)
        except NetworkError as e:
            if e.errno != errno.ENODEV:
                raise
        finally:  # whatever was refused, the link goes
            later.delete(self._route, self._index)


class Interface:
    """One end of a link, in its network namespace: by its name there, see ip-link(8).

    Attributes:
        name: at most 15 bytes.
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

    @property
    def is_up(self) -> bool:
        """It was set up. Packets pass when its other end is up, too."""
        return self._look().up

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
        """Before it is deleted: its name, addresses and routes can be another's at once, who gets
        what is sent there. Its index; 0: it is gone."""
        try:
            index = self.index
            _free_addresses(self._route, index, *_addresses_and_routes(self._route, index))
            _free_name(self._route, index)
        except NetworkError as e:
            if e.errno != errno.ENODEV:
                raise
            return 0
        return index

    def delete(self) -> None:
        """With its other end, and soon; its name and addresses are free at once."""
        if index := self.free_name():
            later.delete(self._route, index)

    def shape(
        self,
        rate: Any = None,
        *,
        burst: Any = None,
        latency: Any = None,
        delay: Any = None,
        jitter: Any = None,
        loss: Any = None,
    ) -> Shape:
        """Bound or disturb what *leaves* the link at this end; what arrives here was shaped, or
        not, at the other. It replaces an earlier shape or ``classes``, with what waits in them.

        Args:
            rate: bits a second, as ``"8Mbit"``; tc-tbf(8). Packets count with their Ethernet
                header, of 14 bytes.
            burst: bytes that may leave at once; by default what 10 ms take, or two packets.
            latency: how long packets wait for the rate, 50 ms; those beyond it are dropped.
            delay: how much later each comes, as ``"5ms"``; tc-netem(8). At most 4 s.
            jitter: by how much that varies, more or less. Packets may overtake each other.
            loss: the share that is lost, as ``"1%"`` or 0.01.

        Raises:
            SpecError: a value is wrong.
            Unavailable: the kernel has no tbf or netem; nothing has changed.
            NetworkError: the kernel refused.
        """
        shape = shaping.make_shape(rate, burst=burst, latency=latency, delay=delay, jitter=jitter,
                                   loss=loss)  # fmt: skip
        shaping.apply(self._route, self.name, shape)
        return shape

    def unshape(self) -> None:
        """Undo ``shape`` and ``classes``; idempotent."""
        shaping.clear(self._route, self.name)

    def classes(self, rate: Any, classes: Any, *, default: str) -> None:
        """Divide *rate* among classes of packets; tc-htb(8). Replaces an earlier shape.

        A packet's class is its priority, ``Limits(net_priority="1:20")`` of the sandbox that sends
        it. A veth pair forgets that number, so this has to be the end in the network namespace of
        the sandbox.

        Args:
            rate: of all together, bits a second, as ``"8Mbit"``.
            classes: ``{"1:10": TrafficClass("2Mbit"), "1:20": ...}``: numbers as tc(8) has them.
            default: the class of packets with the number of none.

        Raises:
            SpecError: a value is wrong, or the classes get more than there is.
            Unavailable: the kernel has no htb.
            NetworkError: the kernel refused.
        """
        shaping.apply_classes(self._route, self.name, rate, classes, default)

    @property
    def queues(self) -> list[Queue]:
        """Queueing disciplines and their classes, each with what it has counted."""
        index = self.index
        return [*self._route.queues(index),
                *(one for one in self._route.classes(index) if one.type != "tbf")]  # fmt: skip

    def join(self, bridge: Any) -> None:
        """Become a port of *bridge*, in the same network namespace: ``ip link set master``.

        Args:
            bridge: an ``Interface``, a ``Link`` or a ``Bridge``.

        Raises:
            SpecError: it is in another network namespace.
            NetworkError: the kernel refused: ELOOP, EOPNOTSUPP.
        """
        to = end_of(bridge, "bridge")
        if not self._route.same_network(to._route):
            raise SpecError("bridge", f"{to!r} is in another network namespace than {self!r}")
        self._route.do(rtnl.link_set(self.index, master=to.index))

    def leave(self) -> None:
        """Be no port of a bridge any more; nothing to do if it is none."""
        self._route.do(rtnl.link_set(self.index, master=rtnl.NO_LINK))

    def add_neighbour(self, address: Any, mac: str) -> None:
        """*address* has the hardware address *mac*, for ever: nobody is asked. ip-neighbour(8)."""
        if not isinstance(mac, str) or not _MAC.fullmatch(mac):
            raise SpecError("mac", f'{mac!r}: use as "02:00:00:00:00:01"')
        who = netspec.parse_address(address, "address")
        self._route.do(rtnl.neighbour_add(self.index, who, mac))

    def rename(self, name: str) -> None:
        """Before Linux 6.2 it has to be down (EBUSY)."""
        self._route.do(rtnl.link_set(self.index, name=check_name(name, "name")))
        self.name = name

    def move(self, netns: Any) -> None:
        """Into another network namespace, as for ``Veth.create``; its addresses do not go along,
        and it is down there.

        Raises:
            NetworkError: its name is taken there (EEXIST), or it cannot be moved (EINVAL).
        """
        namespace, _ = namespace_of(netns, "netns")
        route = open_rtnl(namespace)
        with Namespace.current("net") as own:
            target = (namespace or own).fileno()
            self._route.do(rtnl.link_set(self.index, netns=target))
        self.namespace, self._route = namespace, route

    def __repr__(self) -> str:
        return f"<nsbox.Interface {self.name!r}>"


def end_of(value: Any, field: str) -> Interface:
    """An ``Interface``, or that of a ``Link`` or ``Bridge``."""
    found = getattr(value, "link", value)
    if not isinstance(found, Interface):
        raise SpecError(field, f"{value!r} is no Interface, nor has it one")
    return found
