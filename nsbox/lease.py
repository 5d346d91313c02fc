# SPDX-License-Identifier: Apache-2.0
"""A sandbox's place in a network: its address, its veth pair, its published ports."""

from __future__ import annotations

import errno
import functools
import os
import resource
import socket
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from nsbox import interface, later, nft, proxy, rtnl
from nsbox.errors import NetworkError, Unavailable
from nsbox.identity import Identity, may_be_named
from nsbox.netallow import parse_allow
from nsbox.netguard import Member, guarded, mac_of
from nsbox.netrules import Published, egress_table, published
from nsbox.netspec import Publish
from nsbox.ports import program_with
from nsbox.steps import Netlink

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.bridge import Bridge
    from nsbox.netrules import Protocol
    from nsbox.netspec import Address
    from nsbox.spec import Spec

#: Of all networks of this process that are in use, each by the name of its port.
_leases: WeakValueDictionary[str, Lease] = WeakValueDictionary()
os.register_at_fork(after_in_child=_leases.clear)

ETH0 = "eth0"
_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Lease:
    """What one sandbox has of a bridge, from before it is set up until after its end.

    Attributes:
        address, address6: of the sandbox; None in a network that has none.
        ports: published: (host address or None, host port, port, protocol) of each.
        port_name: of the bridge's end of its veth pair.
        mac: of the sandbox's end, made of its address.
    """

    def __init__(self, bridge: Bridge, spec: Spec, who: Identity, kind: str) -> None:
        self._bridge = bridge
        self._kind = kind
        self._spec = spec
        self._undo = ExitStack()
        self._who = who
        self.name = next(iter(who.names), who.hostname or "")
        self.address: Address | None = None
        self.address6: Address | None = None
        self.published: tuple[Published, ...] = ()
        self.port_name = interface.new_name()
        self.mac = ""
        self._served: list[proxy.Port] = []
        self._guests: set[ExitStack] = set()  # names of those who share its place
        try:
            self.address, self.address6 = bridge.take_address(spec.address)
            self.mac = interface.new_mac() if self.address is None else mac_of(self.address)
            self._undo.callback(bridge.while_open, bridge.give_address, self.address)
            self._publish()
            self._name()
            self._undo.callback(self._dismiss)
            self._undo.callback(bridge.forget, self)
            _leases[self.port_name] = self
            self._undo.callback(_leases.pop, self.port_name, None)
            who.place = self
        except BaseException:
            self._undo.close()
            raise

    # ------------------------------------------------------------ names and ports

    def _name(self) -> None:
        for name in self._who.names:
            self._add_name(name, self._undo.callback)

    def _add_name(self, name: str, at_end: Callable[..., Any]) -> None:
        hosts = self._bridge.hosts
        for address in (self.address, self.address6):
            if hosts is None or address is None:
                continue
            hosts.add(address, name)
            at_end(self._bridge.while_open, hosts.remove, address, name)

    def identify(self, spec: Spec) -> Identity:
        """Of who shares this place: it is called as who has it, unless it wants to be called
        otherwise, which is in the same files."""
        own = self._who
        if own.hostname is not None and spec.hostname in (None, own.hostname):
            who = Identity(own.hostname if may_be_named(spec) else None, files=own.files)
        else:
            who = self._bridge.named(spec, "")
            who.files = {**own.files, **who.files}
            guest = ExitStack()  # ends with either: the address may be a stranger's then
            self._guests.add(guest)
            who.callback(self._dismiss, guest)
            try:
                for name in who.names:
                    self._add_name(name, guest.callback)
            except BaseException:
                who.close()
                raise
        who.place = self
        return who

    def _dismiss(self, *guests: ExitStack) -> None:
        """Idempotent."""
        for guest in guests or tuple(self._guests):
            self._guests.discard(guest)
            guest.close()

    def _publish(self) -> None:
        if self._spec.publish and self.address is None:
            raise Unavailable("publish", "the bridge has no subnet, and so no addresses")
        entries = [self._choose(ports, offset) for ports in self._spec.publish
                   for offset in range(ports.count if not ports.host_port else 1)]  # fmt: skip
        self.published = tuple(entries)
        if self.address is None:
            return
        add = [message for entry in entries for message in published(self._bridge.table, entry)]
        gone = [message for entry in entries
                for message in published(self._bridge.table, entry, delete=True)]  # fmt: skip
        addresses = tuple(one for one in (self.address, self.address6) if one is not None)
        self.member = Member(self.port_name, self.mac, addresses)
        add += guarded(self._bridge.table, self.member)
        gone += guarded(self._bridge.table, self.member, delete=True)
        datagrams = [one for one in entries if one.protocol == "udp" and not one.by_proxy]
        for entry in datagrams:  # forgotten after the rules have gone, or it is learned again
            self._undo.callback(self._bridge.while_open, self._bridge.release, entry)
        self._bridge.transact(add, "publish")
        self._undo.callback(self._bridge.while_open, self._bridge.transact, gone, "publish")
        for entry in datagrams:
            self._bridge.redirect(entry)

    def _choose(self, ports: Publish, offset: int) -> Published:
        """One range, held: nsbox's other networks, and programs of the host, cannot have it."""
        address, count = self._inside(ports), ports.count if ports.host_port else 1
        held = [self._hold(ports, ports.host_port + i) for i in range(count)]
        entry = Published(address, ports.port + offset, held[0].getsockname()[1],
                          cast("Protocol", ports.protocol), count, ports.address)  # fmt: skip
        if entry.by_proxy or self._bridge.router is not None:
            for i, one in enumerate(held):
                self._listen(one, ports)  # from now on nobody else can have it
                self._served.append(proxy.Port(one, address, entry.port + i))
        else:  # nobody is to listen there beside us
            for one in held:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return entry

    @staticmethod
    def _listen(held: socket.socket, ports: Publish) -> None:
        try:
            proxy.listen(held)
        except OSError as e:  # another one was bound there, and was quicker
            port = held.getsockname()[1]
            raise Unavailable("publish", f"{ports.protocol} port {port}: {e.strerror}",
                              err=e.errno or 0) from e  # fmt: skip

    def _inside(self, ports: Publish) -> Address:
        address = self.address6 if ports.version == 6 else self.address
        if address is None:
            raise Unavailable("publish", f"{ports}: the sandbox has no IPv{ports.version} address",
                              hint=f"subnet{ports.version}= of its network")  # fmt: skip
        return address

    def _hold(self, ports: Publish, port: int) -> socket.socket:
        """A socket bound there, so that who binds it later is told. Where addresses are
        translated, connections never reach it."""
        family = socket.AF_INET6 if ports.version == 6 else socket.AF_INET
        try:
            held = socket.socket(family, _TYPES[ports.protocol] | socket.SOCK_CLOEXEC)
        except OSError as e:
            if e.errno != errno.EMFILE:
                raise
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise Unavailable(
                "publish", f"each port takes a descriptor of this program, which may have {most}",
                err=errno.EMFILE, hint="raise its limit of open files (RLIMIT_NOFILE, ulimit -n), "
                "or publish fewer ports",
            ) from e  # fmt: skip
        self._undo.callback(held.close)
        # What waits in TIME_WAIT is no obstacle, only a listener, and who is here already: that
        # has the option no more.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(ports.protocol == "tcp"))
        if ports.version == 6:  # IPv4 may be another's
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            held.bind(("" if ports.address is None else str(ports.address), port))
        except OSError as e:
            where = "the host" if ports.address is None else ports.address
            why = f"{ports.protocol} port {port} of {where}: {e.strerror}"
            holder = _holder(ports, port) if e.errno == errno.EADDRINUSE else ""
            raise Unavailable("publish", f"{why}{holder and f', {holder} has it'}",
                              err=e.errno or 0) from e  # fmt: skip
        return held

    # ------------------------------------------------------------ the connection

    def prepare(self) -> None:
        """See ``nsbox.process.Lease``."""
        self._cable = self._bridge.cable(self.port_name, ETH0, self.mac,
                                         (self.address, self.address6))  # fmt: skip

    def connect(self, pid: int, sockets: dict[Netlink, int]) -> None:
        """See ``nsbox.process.Lease``."""
        inside = rtnl.Rtnl(sockets.pop(Netlink.ROUTE))
        # Its network lives as long as the socket does: its end waits for nobody, and comes
        # together with others'.
        self._undo.callback(later.call, inside.close)
        if self._spec.egress is not None:
            self._restrict(sockets.pop(Netlink.NETFILTER))
        self._undo.callback(self._bridge.while_open, self._bridge.unplug, self.port_name)
        self._bridge.plug(self._cable, pid)
        inside.do(*self._cable.inside)
        if self._served:
            router = self._bridge.router
            within = None if router is None else router.net
            self._undo.callback(proxy.serve(self._served, within).close)

    def _restrict(self, fd: int) -> None:
        """The table goes with its socket, which is held until the sandbox has ended."""
        self._undo.callback(later.call, functools.partial(os.close, fd))
        allow = [parse_allow(text, "egress") for text in self._spec.egress or ()]
        try:
            nft.transact(fd, egress_table("nsbox", allow))
        except OSError as e:
            raise NetworkError(e.errno or errno.EIO, "egress rules", str(e)) from e

    @property
    def ports(self) -> tuple[tuple[Address | None, int, int, str], ...]:
        """(address of the host or None, its port, the sandbox's port, protocol), of each one."""
        return tuple((one.host, here, there, one.protocol)
                     for one in self.published for here, there in one.pairs())  # fmt: skip

    def __str__(self) -> str:
        name = repr(self.name) if self.name else f"at {self.address}"
        return f"{self._kind} {name} of network {self._bridge.name!r}"

    def close(self) -> None:
        """Give all of it back; idempotent."""
        self._undo.close()


def _holder(ports: Publish, port: int) -> str:
    """Who has published that port of the host: "" when nobody who uses nsbox."""
    wanted = replace(ports, host_port=port, count=1)
    for lease in (made() for made in _leases.valuerefs()):
        if lease is not None and any(
            Publish(host, here, there, 1, protocol).overlaps(wanted)
            for host, here, there, protocol in lease.ports
        ):
            return str(lease)
    pid = program_with(_TYPES[ports.protocol], ports.address, port)
    return f"process {pid}, which uses nsbox," if pid else ""
