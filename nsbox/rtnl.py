# SPDX-License-Identifier: Apache-2.0
"""rtnetlink(7): links, addresses, routes, neighbours and queues of one network namespace.

A ``Request`` is made by a function of this module and sent by ``Rtnl.do``, several at once. The
messages are encoded by csrc/netlink.c; a socket belongs to the namespace that it was opened in,
so that no thread of the caller's ever moves.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from nsbox import _core, shared
from nsbox.errors import NetworkError, StateError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RT = _core.RT
_SOL_NETLINK, _EXT_ACK = 270, 11
_UP, _RUNNING = 0x1, 0x40  # IFF_UP, IFF_RUNNING
_NODAD, _PERMANENT = 0x2, 0x80  # IFA_F_NODAD, NUD_PERMANENT
NO_LINK = 0xFFFFFFFF  # stands for "none" where 0 says nothing
#: Handles of traffic control, see tc(8).
ROOT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1

_HINTS = {
    errno.EPERM: "it takes CAP_NET_ADMIN in the user namespace that owns the network namespace; "
    "of a veth in one over both, see Namespace.create(within=)",
    errno.EBUSY: "it is in use, or was told differently before",
    errno.ENODEV: "there is no such link in this network namespace",
}


class Request(NamedTuple):
    """One change. *what* says it as ip(8) or tc(8) would; *fields* are of ``struct nsb_rt``."""

    what: str
    fields: dict[str, Any]


class Link(NamedTuple):
    """A link that is there. *peer*: of a veth the other end's index, of a macvlan and its kin the
    link below; *counts*: packets, bytes, errors, dropped, each received and then sent; *running*:
    packets can pass, so the other end is up too."""

    ifindex: int
    name: str
    type: str
    alias: str
    mac: str
    mtu: int
    up: bool
    master: int
    peer: int
    counts: tuple[int, ...]
    running: bool = False


class Route(NamedTuple):
    """Of the table *table*; *gateway* is None for a network that is on the link itself."""

    network: Network
    gateway: Address | None
    ifindex: int
    metric: int
    table: int


class Neighbour(NamedTuple):
    """Who has *address* on the link *index*."""

    ifindex: int
    address: Address
    mac: str


class Queue(NamedTuple):
    """A queueing discipline, or a class of one: its counters since it was made.

    *drops* are packets that found no room, *overlimits* how often one had to wait.
    """

    ifindex: int
    type: str
    handle: int
    parent: int
    bytes: int
    packets: int
    drops: int
    overlimits: int

    @property
    def id(self) -> str:
        """Its handle as tc(8) writes it: ``"2:"``, or of a class ``"1:14"``."""
        minor = self.handle & 0xFFFF
        return f"{self.handle >> 16:x}:{minor:x}" if minor else f"{self.handle >> 16:x}:"


# -- requests ---------------------------------------------------------------------------------


def _which(link: str | int) -> dict[str, Any]:
    return {"index": link} if isinstance(link, int) else {"name": link.encode()}


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _said(**words: Any) -> str:
    """The words of a command, of which those without a value are left out."""
    return "".join(f" {name} {value}" for name, value in words.items() if value)


def link_add(
    type: str,
    name: str,
    *,
    index: int = 0,
    up: bool = False,
    master: int = 0,
    mtu: int = 0,
    mac: str = "",
    netns: int | None = None,
    below: int = 0,
    **more: Any,
) -> Request:
    """A link of *type*, in the socket's namespace or that of the descriptor *netns*.

    *below* is the index of the link under a macvlan or vxlan; *more* are its fields (``id``,
    ``port``, ``address``).
    """
    fields: dict[str, Any] = {"object": RT.NSB_RT_LINK, "verb": RT.NSB_RT_ADD,
                              "type": type.encode(), "name": name.encode(), **more}  # fmt: skip
    fields |= {"index": index, "master": master, "mtu": mtu, "link": below}
    if up:
        fields |= {"flags": _UP, "change": _UP}
    if mac:
        fields["mac"] = _mac(mac)
    if netns is not None:
        fields["netns"] = netns + 1
    return Request(f"link add {name} type {type}", fields)


def veth_add(
    name: str,
    peer: str,
    *,
    peer_netns: int | None = None,
    peer_index: int = 0,
    peer_mac: str = "",
    **more: Any,
) -> Request:
    """Both ends of a pair, each where it belongs, in one request; *more* as ``link_add``.

    The peer is down: it can only be set up once it has another end. *peer_index* is its number,
    where *index* is given as well.
    """
    fields = link_add("veth", name, **more).fields
    fields |= {"peer": peer.encode(), "peer_index": peer_index}
    if peer_netns is not None:
        fields["peer_netns"] = peer_netns + 1
    if peer_mac:
        fields["peer_mac"] = _mac(peer_mac)
    return Request(f"link add {name} type veth peer name {peer}", fields)


def to_process(pair: Request, pid: int) -> Request:
    """A ``veth_add`` with the other end in the network of process *pid*."""
    return Request(pair.what, {**pair.fields, "peer_netns_pid": pid})


def link_set(
    link: str | int,
    *,
    up: bool | None = None,
    master: int = 0,
    mtu: int = 0,
    alias: str = "",
    mac: str = "",
    name: str = "",
    group: int = 0,
    hairpin: bool = False,
    netns: int | None = None,
) -> Request:
    """Change a link. *master* ``NO_LINK`` takes it out of its bridge; *name* needs an index."""
    fields = _which(link) | {"object": RT.NSB_RT_LINK, "verb": RT.NSB_RT_SET, "master": master,
                             "mtu": mtu, "alias": alias.encode(), "group": group}  # fmt: skip
    if up is not None:
        fields |= {"flags": _UP * up, "change": _UP}
    if hairpin:
        fields |= {"slave": b"bridge", "hairpin": 1}
    if mac:
        fields["mac"] = _mac(mac)
    if name:
        fields["name"] = name.encode()
    if netns is not None:
        fields["netns"] = netns + 1
    state = "" if up is None else " up" if up else " down"
    return Request(f"link set {link}{state}{_said(master=master, mtu=mtu, name=name)}", fields)


def link_delete(link: str | int) -> Request:
    """Both ends, of a veth."""
    fields = _which(link) | {"object": RT.NSB_RT_LINK, "verb": RT.NSB_RT_DELETE}
    return Request(f"link delete {link}", fields)


def group_delete(group: int) -> Request:
    """All links of a group, for the waiting time of one."""
    fields = {"object": RT.NSB_RT_LINK, "verb": RT.NSB_RT_DELETE, "group": group}
    return Request(f"link delete group {group}", fields)


def _address(address: Address) -> dict[str, Any]:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return {"family": family, "address_size": len(address.packed), "address": address.packed}


def address_add(index: int, interface: Interface, verb: int = RT.NSB_RT_ADD) -> Request:
    """Usable at once: of IPv6 too, without looking for duplicates."""
    fields = _address(interface.ip) | {
        "object": RT.NSB_RT_ADDRESS,
        "verb": verb,
        "index": index,
        "prefix": interface.network.prefixlen,
    }
    if interface.version == 6:
        fields["flags"] = _NODAD
    elif interface.network.prefixlen < 31:
        fields["gateway"] = interface.network.broadcast_address.packed
    word = "add" if verb == RT.NSB_RT_ADD else "delete"
    return Request(f"address {word} {interface} dev {index}", fields)


def address_delete(index: int, interface: Interface) -> Request:
    return address_add(index, interface, RT.NSB_RT_DELETE)


def route_add(
    network: Network | None,
    *,
    gateway: Address | None = None,
    index: int = 0,
    metric: int = 0,
    verb: int = RT.NSB_RT_ADD,
) -> Request:
    """A route to *network*, or, without one, the default route of the gateway's version."""
    if network is None:
        assert gateway is not None
        network = ipaddress.ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
    fields = _address(network.network_address)
    fields |= {"object": RT.NSB_RT_ROUTE, "verb": verb, "prefix": network.prefixlen,
               "index": index, "metric": metric}  # fmt: skip
    if gateway is not None:
        fields["gateway"] = gateway.packed
    elif network.version == 4:
        fields["scope"] = 253  # RT_SCOPE_LINK
    word = "add" if verb == RT.NSB_RT_ADD else "delete"
    return Request(f"route {word} {network}{_said(via=gateway, dev=index, metric=metric)}", fields)


def route_delete(network: Network | None, **more: Any) -> Request:
    return route_add(network, verb=RT.NSB_RT_DELETE, **more)


def neighbour_add(index: int, address: Address, mac: str) -> Request:
    """Known for ever: nobody asks for it, and nobody's answer changes it."""
    fields = _address(address) | {
        "object": RT.NSB_RT_NEIGHBOUR,
        "verb": RT.NSB_RT_REPLACE,
        "index": index,
        "mac": _mac(mac),
        "flags": _PERMANENT,
    }
    return Request(f"neighbour replace {address} lladdr {mac} dev {index}", fields)


def queue(
    verb: str, what: str, index: int, type: str, *, parent: int = ROOT, handle: int = 0, **more: Any
) -> Request:
    """A queueing discipline or class (*what*: ``"qdisc"`` or ``"class"``), as tc(8).

    *verb* is ``"add"``, ``"replace"`` or ``"delete"``; *more* are fields of ``struct nsb_rt``:
    rate and ceil in bytes a second, burst and limit in bytes, delay and jitter in ns, loss of
    2**32 - 1, priority, other.
    """
    verbs = {"add": RT.NSB_RT_ADD, "replace": RT.NSB_RT_REPLACE, "delete": RT.NSB_RT_DELETE}
    kind = RT.NSB_RT_QDISC if what == "qdisc" else RT.NSB_RT_CLASS
    fields = {"object": kind, "verb": verbs[verb], "index": index, "type": type.encode(),
              "parent": parent, "handle": handle, **more}  # fmt: skip
    place = "root" if parent == ROOT else f"parent {parent >> 16:x}:{parent & 0xFFFF:x}"
    return Request(f"{what} {verb} dev {index} {place} {type}{_said(**more)}", fields)


# -- the socket -------------------------------------------------------------------------------


class Rtnl:
    """A socket of NETLINK_ROUTE, and so one network namespace. Safe from threads."""

    def __init__(self, fd: int) -> None:
        """Takes over the descriptor."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE,
                                     fileno=fd)  # fmt: skip
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._lock = threading.Lock()

    @classmethod
    def here(cls) -> Rtnl:
        """Of the calling thread's network namespace."""
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                             socket.NETLINK_ROUTE)  # fmt: skip
        return cls(made.detach())

    def do(self, *requests: Request) -> None:
        """All of them, in order, in as few system calls as can be.

        Raises:
            NetworkError: one was refused; those after it may have been done.
            Unavailable: the kernel has no such kind of link or queue.
        """
        try:
            with self._lock:
                self._check_open()
                _core.rt_talk(self._socket.fileno(), [request.fields for request in requests])
        except _core.RtRefused as e:
            raise _error(self._legible(requests[e.request]), e) from None

    def _legible(self, request: Request) -> Request:
        """With the name of its link, if that is there, for the number."""
        index = request.fields.get("index")
        number = re.compile(rf"(?<=\b(?:dev|set) ){index}\b")
        if not index or not number.search(request.what):
            return request
        try:
            name = self.link(index).name
        except NetworkError:
            return request
        return Request(number.sub(lambda _: name, request.what), request.fields)

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise StateError("this socket is closed", status="closed")

    def _dump(self, kind: int, verb: int = RT.NSB_RT_DUMP, **fields: Any) -> list[Any]:
        with self._lock:
            self._check_open()
            try:
                return _core.rt_dump(
                    self._socket.fileno(), {"object": kind, "verb": verb, **fields}
                )
            except _core.RtRefused as e:
                raise _error(Request("show", {}), e) from None

    def links(self) -> list[Link]:
        """All of the namespace, by index."""
        return [_link(raw) for raw in self._dump(RT.NSB_RT_LINK)]

    def link(self, which: str | int) -> Link:
        """One, by name or index. Raises NetworkError (ENODEV) when it is not there."""
        return _link(self._dump(RT.NSB_RT_LINK, RT.NSB_RT_GET, **_which(which))[0])

    def addresses(self, index: int = 0) -> list[tuple[int, Interface]]:
        """(index of the link, address with its network), of one link or of all."""
        found = []
        for raw in self._dump(RT.NSB_RT_ADDRESS):
            if index in (0, raw.index) and raw.family in (socket.AF_INET, socket.AF_INET6):
                address = _ip(raw, "address")
                found.append((raw.index, ipaddress.ip_interface((address, raw.prefix))))
        return found

    def routes(self) -> list[Route]:
        """Unicast routes of all tables."""
        found = []
        for raw in self._dump(RT.NSB_RT_ROUTE):
            if raw.family not in (socket.AF_INET, socket.AF_INET6) or raw.flags != 1:
                continue
            network = ipaddress.ip_network((_ip(raw, "address"), raw.prefix))
            gateway = _ip(raw, "gateway")
            found.append(Route(network, gateway if int(gateway) else None, raw.index, raw.metric,
                               raw.table))  # fmt: skip
        return found

    def neighbours(self) -> list[Neighbour]:
        return [Neighbour(raw.index, _ip(raw, "address"), raw.data("mac", 6).hex(":"))
                for raw in self._dump(RT.NSB_RT_NEIGHBOUR)
                if raw.family in (socket.AF_INET, socket.AF_INET6)]  # fmt: skip

    def queues(self, index: int) -> list[Queue]:
        """Queueing disciplines of one link."""
        return [_queue(raw) for raw in self._dump(RT.NSB_RT_QDISC) if raw.index == index]

    def classes(self, index: int) -> list[Queue]:
        """Classes of one link."""
        return [_queue(raw) for raw in self._dump(RT.NSB_RT_CLASS, index=index)]

    def same_network(self, other: Rtnl) -> bool:
        """Whether both are of one network namespace. Before Linux 5.14 nobody can tell: True."""
        return shared.cookie(self._socket) == shared.cookie(other._socket)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    def __del__(self) -> None:
        """An ``Interface`` that somebody was given goes without a word."""
        if hasattr(self, "_lock"):
            self.close()


def _error(request: Request, refused: _core.RtRefused) -> NetworkError | Unavailable:
    err = refused.errno or 0
    kind = request.fields.get("type", b"").decode()
    if kind and (err == errno.EOPNOTSUPP or (err == errno.ENOENT and "class" not in request.what)):
        hint = ""
        if request.what.startswith("qdisc"):
            hint = f"modprobe sch_{kind} (CONFIG_NET_SCH_{kind.upper()})"
        return Unavailable(request.what, f"this kernel has no {kind}", err=err, hint=hint)
    return NetworkError(err, request.what, refused.said, hint=_HINTS.get(err, ""))


def _ip(raw: Any, field: str) -> Address:
    return ipaddress.ip_address(raw.data(field, raw.address_size))


def _link(raw: Any) -> Link:
    return Link(raw.index, raw.text("name"), raw.text("type"), raw.text("alias"),
                raw.data("mac", 6).hex(":"), raw.mtu, bool(raw.flags & _UP), raw.master, raw.link,
                tuple(raw.counts), bool(raw.flags & _RUNNING))  # fmt: skip


def _queue(raw: Any) -> Queue:
    """struct tc_stats: bytes as two words, packets, drops, overlimits."""
    low, high, packets, drops, overlimits = tuple(raw.queue)[:5]
    return Queue(raw.index, raw.text("type"), raw.handle, raw.parent, low | high << 32, packets,
                 drops, overlimits)  # fmt: skip


def by_alias(links: Iterable[Link], prefix: str) -> list[Link]:
    """Those that an owner made: their alias begins with its prefix."""
    return [link for link in links if link.alias.startswith(prefix)]
