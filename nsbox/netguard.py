# SPDX-License-Identifier: Apache-2.0
"""Who is who on a bridge: frames that lie about where they come from are dropped at their port.

A sandbox with CAP_NET_ADMIN or CAP_NET_RAW in its own network can give its link another address,
or write frames by itself. So each port has the hardware address and the addresses that nsbox gave
it, and whatever says something else goes no further: neither to others, whose tables it could
poison, nor to the host. Of the messages by which IPv6 finds neighbours and routers those that
are about others go no further either.

IPv6 advertisements in fragments are not looked into: Linux takes none (RFC 6980; its setting
``suppress_frag_ndisc``).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsbox.nftmsg import RAW, Message, Table, concatenated
from nsbox.nftrule import (
    Selector,
    accept,
    by_port,
    drop,
    ether_type,
    expression,
    iifgroup,
    l4proto,
    link_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FAMILY = "bridge"
_NOBODY, _NOBODY6 = ipaddress.IPv4Address(0), ipaddress.IPv6Address(0)
_MACS, _FOUR, _SIX = "macs", "four", "six"
#: In the family bridge nothing says "IPv6" but ``ether type``; these are looked at behind that.
_arp_ip = Selector("arp saddr ip", expression("payload", dreg=1, base=1, offset=14, len=4), 4)
_ip6_saddr = Selector("ip6 saddr", expression("payload", dreg=1, base=1, offset=8, len=16), 16)
_icmp6 = Selector(
    "icmpv6 type", expression("payload", dreg=1, base=2, offset=0, len=1), 1,
    names={"nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136,
           "nd-redirect": 137},
)  # fmt: skip


def mac_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """That of who has *address* in its subnet. Whoever gets the address next is reached by those
    that still know who had it before: their entries stay right."""
    return (b"\x02\0" + address.packed[-4:]).hex(":")


@dataclass(frozen=True)
class Member:
    """One port of a bridge.

    Attributes:
        port: the link's name, at the bridge's end.
        mac: of the other end, as ``"02:00:00:00:00:01"``.
        addresses: that it may send from.
    """

    port: str
    mac: str
    addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]

    @property
    def link_local(self) -> ipaddress.IPv6Address:
        """What its link gives itself: RFC 4291, appendix A."""
        raw = bytes.fromhex(self.mac.replace(":", ""))
        ending = bytes((raw[0] ^ 2, *raw[1:3], 0xFF, 0xFE, *raw[3:]))
        return ipaddress.IPv6Address(bytes.fromhex("fe80") + bytes(6) + ending)


def guard_table(name: str, group: int, *, owner: bool = True) -> list[Message]:
    """A new table of the family bridge; ``guarded`` adds the ports that it is about.

    Frames of others, and of the host itself, are not looked at: links that people put on the
    bridge by hand, and ports of other bridges. Of these ports all is dropped that is neither IP
    nor ARP, and all that has a VLAN tag. What a bridge leaves to its host never gets here: see
    *ports* of ``network_table``.

    Args:
        name: of the table.
        group: of the links that are the network's ports, and of no others (ip-link(8)). One that
            ``guarded`` does not know sends nothing.
    """
    table = Table(name, _FAMILY)
    rule = table.rule
    chain = "prerouting"
    # By what the kernel finds behind extension headers, as who receives it does.
    nd = (ether_type("ip6"), l4proto("ipv6-icmp"))
    return [
        table.add(owner=owner),
        table.set(_MACS, "ifname . ether_addr", 1),
        table.set(_FOUR, "ifname . ipv4_addr", 2),
        table.set(_SIX, "ifname . ipv6_addr", 3),
        table.base_chain(chain, RAW),
        rule(chain, iifgroup.isnt(group), accept),
        rule(chain, by_port("ether saddr", _MACS, known=False), drop),
        rule(chain, ether_type("arp"), by_port("arp saddr ether", _MACS, known=False), drop),
        rule(chain, ether_type("arp"), by_port("arp saddr ip", _FOUR, known=True), accept),
        # Who asks whether an address is free says so by having none.
        rule(chain, ether_type("arp"), _arp_ip(_NOBODY), accept),
        rule(chain, ether_type("ip"), by_port("ip saddr", _FOUR, known=True), accept),
        rule(chain, *nd, _icmp6("nd-neighbor-advert"),
             by_port("nd target", _SIX, known=False), drop),
        # No port leads to a router: who believed it would send it what is for the world.
        *(rule(chain, *nd, _icmp6(kind), drop) for kind in ("nd-router-advert", "nd-redirect")),
        rule(chain, ether_type("ip6"), by_port("ip6 saddr", _SIX, known=True), accept),
        # To ask whether another's address is free takes it from whoever asks at the same time.
        rule(chain, *nd, _ip6_saddr(_NOBODY6), _icmp6("nd-neighbor-solicit"),
             by_port("nd target", _SIX, known=False), drop),
        rule(chain, *nd, _ip6_saddr(_NOBODY6), accept),
        rule(chain, drop),
    ]  # fmt: skip


def guarded(name: str, member: Member, *, delete: bool = False) -> Iterator[Message]:
    """Let a port in, or *delete* it."""
    table, port = Table(name, _FAMILY), link_name(member.port)
    mac = bytes.fromhex(member.mac.replace(":", ""))
    yield from _elements(table, _MACS, port, member, [(mac, member.mac)], delete)
    for which, version in ((_FOUR, 4), (_SIX, 6)):
        every = [one for one in (*member.addresses, member.link_local) if one.version == version]
        keys = [(one.packed, str(one)) for one in every]
        yield from _elements(table, which, port, member, keys, delete)


def _elements(
    table: Table,
    which: str,
    port: bytes,
    member: Member,
    keys: Iterable[tuple[bytes, str]],
    delete: bool,
) -> Iterator[Message]:
    pairs = [(concatenated(port, raw), b"") for raw, _ in keys]
    words = ", ".join(f'"{member.port}" . {text}' for _, text in keys)
    yield from table.elements(which, pairs, words, delete=delete)
