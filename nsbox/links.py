# SPDX-License-Identifier: Apache-2.0
"""Links between network namespaces: veth pairs, single links, and what can be done to an end.

Kernel: rtnetlink(7), veth(4). A link that nsbox makes has an alias which says whose it is: by
that it is found and deleted when its owner was killed.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from nsbox import interrupts, later, launcher, netspec, rtnl
from nsbox.errors import SpecError, StateError
from nsbox.forgotten import forgotten
from nsbox.interface import (
    Interface,
    check_mtu,
    check_name,
    end_of,
    ip_interface,
    namespace_of,
    new_index,
)
from nsbox.namespace import Namespace
from nsbox.netlink import rtnl as open_rtnl
from nsbox.registry import LINKS

if TYPE_CHECKING:
    from nsbox.rtnl import Rtnl


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
            forgotten(self)
        else:
            self.close()


class Veth(Owned):
    """Two ends of a cable, each in the network namespace where it belongs.

    A context manager; ``close()`` deletes both ends. So does the end of this program, however it
    ends, when an end is in its network namespace. A network namespace stays as long as an open
    ``Veth`` has an end in it.

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
        bytes_ = check_mtu(mtu)
        wanted = [None if one is None else ip_interface(one, field) for one, field in
                  ((address, "address"), (peer_address, "peer_address"))]  # fmt: skip
        self = cls()
        try:
            with interrupts.Held():
                self._make(name, netns, peer, peer_netns, bytes_)
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
        link, end = Interface(route, name, here), Interface(peer_route, peer, there)
        # From the caller's own namespace, if an end is there: it is marked in the same system call.
        first, second = (end, link) if there is None else (link, end)
        index = new_index()
        alias = self._alias()
        own = Namespace.current("net")
        try:
            first._route.do(
                rtnl.veth_add(
                    first.name, second.name, peer_netns=(second.namespace or own).fileno(),
                    index=index, mtu=mtu,
                ),
                rtnl.link_set(index, alias=alias),
            )  # fmt: skip
        finally:
            own.close()
        self.link, self.peer = link, end  # not before: else those that were there would be deleted

    def _delete(self) -> None:
        if not hasattr(self, "link"):
            return
        self.peer.free_name()
        self.link.delete()

    def shape(self, rate: Any = None, **more: Any) -> None:
        """``Interface.shape`` of both ends: each direction by itself."""
        for end in (self.link, self.peer):
            end.shape(rate, **more)

    def unshape(self) -> None:
        """Undo it."""
        for end in (self.link, self.peer):
            end.unshape()

    def __enter__(self) -> Veth:
        return self

    def __repr__(self) -> str:
        ends = " - ".join(repr(getattr(self, end).name) for end in ("link", "peer")
                          if hasattr(self, end))  # fmt: skip
        return f"<nsbox.Veth {ends}{' closed' if self._closed else ''}>"


#: Of each kind of single link: what it takes beside its name, and which of these it needs.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bridge": ((), ()),
    "dummy": ((), ()),
    "macvlan": (("below", "mode"), ("below",)),
    "vxlan": (("below", "id", "remote", "port"), ("id",)),
}
_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}  # linux/if_link.h
_VXLAN_PORT = 4789  # RFC 7348; the kernel's own default is another one


class Link(Owned):
    """A link with one end: a switch, or what is on top of another link.

    A context manager, and deleted as a ``Veth`` is.

    Attributes:
        kind: what ip-link(8) calls its type.
        link: its ``Interface``.
    """

    kind: str
    link: Interface

    @classmethod
    def create(
        cls,
        kind: str,
        name: str,
        netns: Any = None,
        *,
        below: Interface | str | None = None,
        mode: str | None = None,
        id: int | None = None,
        remote: Any = None,
        port: int | None = None,
        address: Any = None,
        mtu: int | None = None,
        up: bool = True,
    ) -> Link:
        """``ip link add [link BELOW] name NAME netns NETNS type KIND``.

        Args:
            kind: ``"bridge"``, a switch for the links that ``join`` it, where ``Bridge`` is one
                for sandboxes; ``"macvlan"``, one more hardware address of the link *below*;
                ``"vxlan"``, Ethernet in UDP (RFC 7348); ``"dummy"``, which drops what it sends.
            netns: where it is to be, as for ``Veth.create``.
            below: of macvlan, and of vxlan if it is bound to one: an ``Interface`` wherever it is,
                or the name of one in the caller's own namespace.
            mode: of macvlan: ``"bridge"``, if nothing is said, ``"private"``, ``"vepa"`` or
                ``"passthru"``; ip-link(8).
            id: of vxlan: the network's number, 0 to 2**24 - 1.
            remote: of vxlan: the other end's address, or a multicast group and *below*.
            port: of vxlan: UDP, 4789.
            address: of its own, as ``"10.0.0.1/24"``.
            mtu: bytes.
            up: set it up.

        Raises:
            SpecError: an argument is wrong, or none of this kind.
            Unavailable: the kernel has no such kind.
            NetworkError: the kernel refused: EEXIST, EPERM, EINVAL; nothing is left.
        """
        check_name(name, "name")
        fields = _fields(kind, below=below, mode=mode, id=id, remote=remote, port=port)
        fields["mtu"] = check_mtu(mtu)
        base = _below(below)
        ip = None if address is None else ip_interface(address, "address")
        self = cls()
        self.kind = kind
        try:
            with interrupts.Held():
                self._make(name, netns, base, fields)
                if ip is not None:
                    self.link.add_address(ip)
                if up:
                    self.link.up()
        except BaseException:
            self.close()
            raise
        return self

    def _make(
        self, name: str, netns: Any, below: Interface | str | None, fields: dict[str, Any]
    ) -> None:
        where = self._find(netns, "netns")
        route = self._open(where)
        link, index = Interface(route, name, where), new_index()
        mark = rtnl.link_set(index, alias=self._alias())
        base = Interface(self._open(None), below) if isinstance(below, str) else below
        if base is not None:
            fields["below"] = base.index
        if base is None or base._route.same_network(route):
            route.do(rtnl.link_add(self.kind, name, index=index, **fields), mark)
            self.link = link
            return
        with Namespace.current("net") as own:  # the link below is looked for where that is asked
            target = (where or own).fileno()
            base._route.do(rtnl.link_add(self.kind, name, index=index, netns=target, **fields))
        self.link = link
        route.do(mark)

    def _delete(self) -> None:
        if hasattr(self, "link"):
            self.link.delete()

    def __enter__(self) -> Link:
        return self

    def __repr__(self) -> str:
        name = f" {self.link.name!r}" if hasattr(self, "link") else ""
        return f"<nsbox.Link {self.kind}{name}{' closed' if self._closed else ''}>"


def _fields(kind: str, **given: Any) -> dict[str, Any]:
    """What is said of a link of this kind, for ``rtnl.link_add``."""
    if kind not in _KINDS:
        raise SpecError("kind", f"{kind!r} is none of {', '.join(_KINDS)}")
    takes, needs = _KINDS[kind]
    for name, value in given.items():
        if value is not None and name not in takes:
            raise SpecError(name, f"is nothing that a {kind} has")
        if value is None and name in needs:
            raise SpecError(name, f"a {kind} needs it")
    if kind == "macvlan":
        mode = given["mode"] or "bridge"
        if mode not in _MODES:
            raise SpecError("mode", f"{mode!r} is none of {', '.join(_MODES)}")
        return {"id": _MODES[mode]}
    return _vxlan(**given) if kind == "vxlan" else {}


def _below(below: Any) -> Interface | str | None:
    if isinstance(below, str):
        return below if below == "lo" else check_name(below, "below")
    return None if below is None else end_of(below, "below")


def _vxlan(*, id: int, remote: Any, port: int | None, **_: Any) -> dict[str, Any]:
    port = _VXLAN_PORT if port is None else port
    for field, value, most in (("id", id, (1 << 24) - 1), ("port", port, 65535)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise SpecError(field, f"{value!r} is not 0 to {most}")
    fields: dict[str, Any] = {"id": id, "port": socket.htons(port)}
    if remote is not None:
        packed = netspec.parse_address(remote, "remote").packed
        fields |= {"address": packed, "address_size": len(packed)}
    return fields
