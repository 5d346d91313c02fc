# SPDX-License-Identifier: Apache-2.0
"""The rule sets of nsbox's networks, from plain data, as lists of messages for ``nft.transact``.

``network_table`` is for the namespace that has a network's bridge: it translates addresses,
publishes ports, and keeps networks, the host and the world apart. ``egress_table`` is for the
namespace of one sandbox: what it may reach. An accept is final for its chain only: a firewall of
the host with chains of its own can still drop what is accepted here.

What a network needs besides: ``ip_forward``, and ``forwarding`` of IPv6; ``route_localnet`` of the
bridge, for published ports at 127.0.0.1; hairpin mode of the bridge's ports, without which, where
br_netfilter is on, a container does not reach itself by a published port.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Literal

from nsbox.errors import SpecError
from nsbox.nftmsg import DSTNAT, FILTER, RAW, SRCNAT, Message, Table, concatenated
from nsbox.nftrule import (
    accept,
    ct_direction,
    ct_state,
    ct_status,
    dnat_by,
    drop,
    fib_daddr_type,
    go_back,
    icmp_type,
    icmpv6_type,
    iifgroup,
    iifname,
    ip6_daddr,
    ip6_saddr,
    ip_daddr,
    ip_saddr,
    jump,
    l4proto,
    masquerade,
    nfproto,
    oifname,
    reject,
    reset,
    tcp_dport,
    udp_dport,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nsbox.netallow import AllowEntry
    from nsbox.nftrule import Selector, Statement

Address = IPv4Address | IPv6Address
Protocol = Literal["tcp", "udp"]

_LOOPBACK, _LOOPBACK6 = IPv4Network("127.0.0.0/8"), IPv6Address("::1")
_LINK_LOCAL, _LINK_LOCAL6 = IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10")
#: Where a cloud's metadata, with its credentials, is beside 169.254.169.254.
_METADATA6 = IPv6Network("fd00:ec2::254/128")
#: Has ::ffff:127.0.0.1, to which connect(2) means 127.0.0.1.
_WITH_IPV4 = IPv6Network("::/80")
_DNS = 53
_DPORTS: Mapping[str, Selector] = {"tcp": tcp_dport, "udp": udp_dport}

#: Map of published ports -> what its keys and values are: at one address, or at any of the host's.
_MAPS = {
    "at4": ("ipv4_addr . inet_proto . inet_service", "ipv4_addr . inet_service"),
    "at6": ("ipv6_addr . inet_proto . inet_service", "ipv6_addr . inet_service"),
    "any4": ("inet_proto . inet_service", "ipv4_addr . inet_service"),
    "any6": ("inet_proto . inet_service", "ipv6_addr . inet_service"),
}


@dataclass(frozen=True)
class HostPort:
    """A port of the host itself that a network may reach, at its gateway.

    Raises:
        SpecError: it is no port.
    """

    port: int
    protocol: Protocol = "tcp"

    def __post_init__(self) -> None:
        _check_ports("host_ports", self.protocol, self.port)


@dataclass(frozen=True)
class Published:
    """A port of a container that is one of the host, too; or *count* ports in a row.

    Attributes:
        address: of the container.
        port: its first.
        host_port: the first of the host.
        host: the address of the host, of the same version; None, 0.0.0.0 or ``::``: every one that
            it has.

    Raises:
        SpecError: these are no ports, or addresses of two versions.
    """

    address: Address
    port: int
    host_port: int
    protocol: Protocol = "tcp"
    count: int = 1
    host: Address | None = None

    def __post_init__(self) -> None:
        for first in (self.port, self.host_port):
            _check_ports("publish", self.protocol, first, self.count)
        if self.host is not None and self.host.version != self.address.version:
            raise SpecError("publish", f"{self.host} cannot be translated to {self.address}")

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(the host's port, the container's) of each."""
        for i in range(self.count):
            yield self.host_port + i, self.port + i

    @property
    def everywhere(self) -> bool:
        return self.host is None or self.host.is_unspecified

    @property
    def by_proxy(self) -> bool:
        """No rule leads there: nothing leaves ::1, unlike 127.0.0.1."""
        return self.host == _LOOPBACK6


def _check_ports(field: str, protocol: str, first: int, count: int = 1) -> None:
    if protocol not in _DPORTS:
        raise SpecError(field, f"{protocol!r} has no ports here; use tcp or udp")
    if count < 1 or not 1 <= first <= 65536 - count:
        row = "" if count == 1 else f", {count} in a row"
        raise SpecError(field, f"{first}{row}: ports are 1 to 65535")


# -- the network ------------------------------------------------------------------------------


def network_table(
    name: str,
    bridge: str,
    subnet: IPv4Network,
    gateway: IPv4Address,
    subnet6: IPv6Network | None = None,
    gateway6: IPv6Address | None = None,
    *,
    nat: bool = True,
    isolated: bool = True,
    host_ports: Iterable[HostPort] = (),
    publish: Sequence[Published] = (),
    uplink: str = "",
    ports: int | None = None,
    owner: bool = True,
) -> list[Message]:
    """A new table for one network.

    Args:
        name: of the table.
        bridge: of the link; it need not exist yet.
        subnet: of the network, and *subnet6*: who is in it may use no other source address.
        gateway: the bridge's own address, and *gateway6*.
        nat: whether what leaves gets the address of the host (masquerade).
        isolated: whether others reach published ports only. Others are all that come by another
            link: other networks of the host too.
        host_ports: what the network may reach of the host; else it gets answers, and pings.
        publish: the first ones; ``published`` adds and deletes others later.
        uplink: the link that is there for the networks with *nat*, and closed to others.
        ports: the group of the links that are the bridge's ports (ip-link(8)): what does not come
            by the bridge itself is dropped.
        owner: whether the table goes with the socket that makes it (Linux 5.12).

    Raises:
        SpecError: a name or an address does not fit.
    """
    table = Table(name)
    rule = table.rule
    subnets, own, gateways = [ip_saddr(subnet)], [ip_saddr(gateway)], [ip_daddr(gateway)]
    if subnet6 is not None:
        if gateway6 is None:
            raise SpecError("gateway6", f"the bridge has no address in {subnet6}")
        subnets.append(ip6_saddr(subnet6))
        own.append(ip6_saddr(gateway6))
        gateways.append(ip6_daddr(gateway6))
    return [
        table.add(owner=owner),
        *_nat(table, bridge, subnets, masked=nat),
        # Before conntrack and dnat: a packet that lies leaves no trace.
        table.base_chain("prerouting", RAW, name="guard"),
        # A bridge leaves frames to 01:80:c2:00:00:0X to its host, as if they came by the port; of
        # those to 0e its own hooks are not told. No rule about the bridge would meet them.
        *(() if ports is None else (rule("guard", iifgroup(ports), drop),)),
        rule("guard", iifname.isnt(bridge), accept),
        # With route_localnet, which published ports need, these would reach 127.0.0.1 of the host.
        rule("guard", ip_daddr(_LOOPBACK), drop),
        *(rule("guard", source, drop) for source in own),
        *(rule("guard", source, accept) for source in subnets),
        rule("guard", ip6_saddr(_LINK_LOCAL6), accept),
        # Of a link that asks whether its new address is free, and of its multicast groups.
        rule("guard", ip6_saddr(IPv6Address("::")), l4proto("ipv6-icmp"), accept),
        rule("guard", drop),
        table.base_chain("forward", FILTER),
        # Those of one network: bridged (where br_netfilter shows them), or by a published port.
        rule("forward", iifname(bridge), oifname(bridge), accept),
        *_outwards(table, bridge, "" if nat else uplink),
        *(_inwards(table, bridge) if isolated else ()),
        table.base_chain("input", FILTER),
        rule("input", iifname.isnt(bridge), accept),
        *_to_host(table, gateways, host_ports),
        *(message for one in publish for message in published(name, one)),
    ]  # fmt: skip


def _nat(
    table: Table, bridge: str, subnets: Sequence[Statement], *, masked: bool
) -> Iterator[Message]:
    for number, (name, (key, value)) in enumerate(_MAPS.items(), 1):
        yield table.map(name, key, value, number)
    yield table.base_chain("prerouting", DSTNAT, kind="nat")
    # A neighbour that sends 127.0.0.1 to our link would else get what is published there, and
    # only there: dnat comes before routing, which drops such a packet. Our own come by output.
    yield table.rule("prerouting", ip_daddr(_LOOPBACK), go_back)
    yield table.base_chain("output", DSTNAT, kind="nat")
    # IPv6 has no route_localnet: refused at once, a program goes on with 127.0.0.1.
    yield table.rule("output", ip6_daddr(_LOOPBACK6), go_back)
    for chain in ("prerouting", "output"):
        for version, daddr in (("4", ip_daddr), ("6", ip6_daddr)):
            yield table.rule(chain, dnat_by(f"at{version}", daddr, keyed=True))
            yield table.rule(chain, nfproto(f"ipv{version}"), fib_daddr_type("local"),
                             dnat_by(f"any{version}", daddr, keyed=False))  # fmt: skip
    yield table.base_chain("postrouting", SRCNAT, kind="nat")
    if masked:
        yield table.rule("postrouting", iifname(bridge), oifname.isnt(bridge), masquerade)
    # By a published port back into the network: the answer must come back by the same way.
    for source in (*subnets, ip_saddr(_LOOPBACK)):
        yield table.rule("postrouting", source, oifname(bridge), ct_status("dnat"), masquerade)


def _outwards(table: Table, bridge: str, closed: str) -> Iterator[Message]:
    """What no router may pass on (RFC 3927), where clouds have credentials; names it may ask."""
    if closed:
        yield table.rule("forward", iifname(bridge), oifname(closed), reject)
    # The masquerade would leave the network's own address in what conntrack does not know.
    yield table.rule("forward", iifname(bridge), ct_state("invalid"), drop)
    for dport in _DPORTS.values():
        yield table.rule("forward", iifname(bridge), ip_daddr(_LINK_LOCAL), dport(_DNS), accept)
    for daddr in (ip_daddr(_LINK_LOCAL), ip6_daddr(_METADATA6)):
        yield table.rule("forward", iifname(bridge), daddr, drop)


def _inwards(table: Table, bridge: str) -> Iterator[Message]:
    for why in (ct_state("established", "related"), ct_status("dnat")):
        yield table.rule("forward", oifname(bridge), why, accept)
    yield table.rule("forward", oifname(bridge), drop)


def _to_host(
    table: Table, gateways: Sequence[Statement], host_ports: Iterable[HostPort]
) -> Iterator[Message]:
    # A redirect is "related", and would make the host send a container what is another's. Of
    # IPv6 it is "invalid" to conntrack, and dropped below.
    yield table.rule("input", icmp_type("redirect"), drop)
    yield table.rule("input", ct_state("established", "related"), accept)
    yield table.rule("input", icmp_type("echo-request"), accept)
    # Not router advertisements: the host would take a container for its router.
    for kind in ("echo-request", "nd-neighbor-solicit", "nd-neighbor-advert"):
        yield table.rule("input", icmpv6_type(kind), accept)
    for port in host_ports:
        for gateway in gateways:
            yield table.rule("input", gateway, _DPORTS[port.protocol](port.port), accept)
    yield table.rule("input", drop)


def host_table(name: str, uplink: str, addresses: Iterable[Address]) -> list[Message]:
    """A new table for a router whose *uplink* ends in a program of the host, which connects to
    whatever it is sent to: the host's own *addresses* are not for networks.

    Raises:
        SpecError: the name does not fit.
    """
    table = Table(name)
    return [
        table.add(owner=True),
        table.base_chain("forward", FILTER),
        table.rule("forward", oifname(uplink), ip6_daddr(_WITH_IPV4), reject),
        *(table.rule("forward", oifname(uplink), _to(address), reject) for address in addresses),
    ]


def _to(address: Address) -> Statement:
    return ip_daddr(address) if isinstance(address, IPv4Address) else ip6_daddr(address)


def published(name: str, entry: Published, *, delete: bool = False) -> list[Message]:
    """Publish a port in the table *name* of a network, or *delete* it again.

    The kernel's answer is EEXIST where another container has one of the ports, ENOENT where a
    port that is to be deleted is not published. Connections that are established go on. What is
    published ``by_proxy`` has no rules.

    Raises:
        SpecError: the name does not fit.
    """
    if entry.by_proxy:
        return []
    address, host = entry.address, None if entry.everywhere else entry.host
    at = b"" if host is None else host.packed
    protocol = l4proto.names[entry.protocol].to_bytes(1, "big")
    pairs = [(concatenated(at, protocol, here.to_bytes(2, "big")),
              concatenated(address.packed, there.to_bytes(2, "big")))
             for here, there in entry.pairs()]  # fmt: skip
    key = f"{entry.protocol} . {_span(entry.host_port, entry.count)}"
    key = key if host is None else f"{host} . {key}"
    which = f"{'any' if host is None else 'at'}{address.version}"
    words = f"{key} : {address} . {_span(entry.port, entry.count)}"
    return Table(name).elements(which, pairs, words, delete=delete)


def _span(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"


# -- one sandbox ------------------------------------------------------------------------------


def egress_table(name: str, allow: Iterable[AllowEntry], *, owner: bool = True) -> list[Message]:
    """A new table for the network namespace of a sandbox: it reaches what *allow* has, no more.

    Itself it reaches always, and whoever connects to it gets answers. Programs learn at once what
    is refused: ECONNREFUSED from connect(2), EPERM from send(2). Packets that are passed on, of
    sandboxes inside of this one, are held to the same; who sent those gets an ICMP error. With
    *owner* (Linux 5.12) even CAP_NET_ADMIN inside cannot change the table; yet it must not be
    given there: it can take the link to another namespace.

    Raises:
        SpecError: the name does not fit.
    """
    table = Table(name)
    rule = table.rule
    # Only answers: what was begun here is looked up for every packet, so that no connection
    # outlives the leave it had.
    answers = (ct_state("established", "related"), ct_direction("reply"), accept)
    return [
        table.add(owner=owner),
        table.chain("allow"),
        *(rule("allow", *_reached(entry), accept) for entry in allow),
        table.base_chain("output", FILTER, policy="drop"),
        rule("output", oifname("lo"), accept),
        rule("output", *answers),
        # What IPv6 needs of the link, and the kernel sends by itself.
        *(rule("output", icmpv6_type(kind), accept)
          for kind in ("nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert",
                       "mld2-listener-report")),
        rule("output", jump("allow")),
        # An ICMP error would come while connect(2) still holds its socket, be dropped for that,
        # and come again a second later.
        rule("output", l4proto("tcp"), reset),
        rule("output", reject),
        table.base_chain("forward", FILTER, policy="drop"),
        rule("forward", *answers),
        rule("forward", jump("allow")),
        rule("forward", reject),
    ]  # fmt: skip


def _reached(entry: AllowEntry) -> list[Statement]:
    where: list[Statement] = []
    if isinstance(entry.network, IPv4Network):
        where.append(ip_daddr(entry.network))
    elif entry.network is not None:
        where.append(ip6_daddr(entry.network))
    if entry.ports is not None:
        first, last = entry.ports
        where.append(_DPORTS[entry.protocol](first if first == last else entry.ports))
    return where


def explain(messages: Iterable[Message]) -> str:
    """The commands of nft(8) that would do the same, one a line."""
    return "\n".join(message.command for message in messages)
