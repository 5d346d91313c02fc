# SPDX-License-Identifier: Apache-2.0
"""What rules are made of, in the words of nft(8): ``iifname("nsb0"), ct_state("new"), drop``.

A *selector*, called with a value, is a statement that goes on only for packets that have it;
``isnt`` goes on for the others. The other statements do something. Kernel: each is a few
expressions of linux/netfilter/nf_tables.h that load a register, change it, compare it, use it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nsbox.errors import SpecError
from nsbox.nftmsg import data, nested, text, u8, u32, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Value = str | int | tuple[int, int] | IPv4Network | IPv6Network | IPv4Address | IPv6Address

#: Expression -> its attributes, by the kernel's names: the number, and what encodes the value.
EXPRESSIONS: Mapping[str, Mapping[str, tuple[int, Callable[[int, Any], bytes]]]] = {
    "meta": {"dreg": (1, u32), "key": (2, u32)},
    "ct": {"dreg": (1, u32), "key": (2, u32)},
    "fib": {"dreg": (1, u32), "result": (2, u32), "flags": (3, u32)},
    "payload": {"dreg": (1, u32), "base": (2, u32), "offset": (3, u32), "len": (4, u32)},
    "bitwise": {"sreg": (1, u32), "dreg": (2, u32), "len": (3, u32), "mask": (4, data),
                "xor": (5, data)},
    "cmp": {"sreg": (1, u32), "op": (2, u32), "data": (3, data)},
    "lookup": {"set": (1, text), "sreg": (2, u32), "dreg": (3, u32), "flags": (5, u32)},
    "immediate": {"dreg": (1, u32), "data": (2, verdict)},
    "nat": {"type": (1, u32), "family": (2, u32), "reg_addr_min": (3, u32),
            "reg_proto_min": (5, u32)},
    "masq": {},
    "reject": {"type": (1, u32), "icmp_code": (2, u8)},
}  # fmt: skip

_EQ, _NEQ, _LTE, _GTE = 0, 1, 3, 5  # NFT_CMP_*
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2  # NFT_PAYLOAD_*_HEADER: NFT_PAYLOAD_LL_HEADER is the first
_META_L4PROTO = 16
#: The first register of 16 bytes, and the first of 4 bytes, which begins it: NFT_REG32_00.
_REG, _WORD = 1, 8
_IFNAMSIZ = 16
_LINK_NAME = re.compile(r'[^\s/"*\\\x00-\x1f\x7f]{1,15}', re.ASCII)


def expression(name: str, **values: Any) -> bytes:
    """One NFTA_LIST_ELEM of a rule."""
    known = EXPRESSIONS[name]
    parts = [known[key][1](known[key][0], value) for key, value in values.items()]
    return nested(1, text(1, name), nested(2, *parts))


class Statement(NamedTuple):
    """Part of a rule.

    Attributes:
        words: as nft(8) writes it.
        code: its expressions.
        needs: the code of what has to be true first, such as that a packet is TCP. A rule has
            each only once; people do not write it.
    """

    words: str
    code: bytes
    needs: tuple[bytes, ...] = ()


# -- selectors --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selector:
    """Something of a packet that can be compared.

    Attributes:
        words: its name.
        load: the expression that puts it in a register.
        width: its bytes.
        needs: as of a statement.
        names: of its values.
        order: of its bytes: what the kernel notes of a packet has the machine's order.
        flags: whether the names are bits; of several that are asked for, one is enough.
    """

    words: str
    load: bytes
    width: int
    needs: tuple[bytes, ...] = ()
    names: Mapping[str, int] = field(default_factory=dict)
    order: Literal["little", "big"] = "big"
    flags: bool = False

    def __call__(self, *values: Value) -> Statement:
        if self.flags:
            bits = self._bytes(sum(self.names[str(value)] for value in values))
            test = self._mask(bits) + self._compare(_NEQ, bytes(self.width))
            return self._statement(",".join(map(str, values)), test)
        (value,) = values
        if isinstance(value, tuple):
            first, last = value
            test = self._compare(_GTE, self._bytes(first)) + self._compare(_LTE, self._bytes(last))
            return self._statement(f"{first}-{last}", test)
        return self._equals(value, _EQ, "")

    def isnt(self, value: Value) -> Statement:
        """For packets of the same kind with another value."""
        return self._equals(value, _NEQ, "!= ")

    def _equals(self, value: Value, op: int, relation: str) -> Statement:
        if isinstance(value, (IPv4Network, IPv6Network)):
            if value.prefixlen < value.max_prefixlen:
                test = self._mask(value.netmask.packed)
                test += self._compare(op, value.network_address.packed)
                return self._statement(f"{relation}{value}", test)
            value = value.network_address
        quoted = f'"{value}"' if self.width == _IFNAMSIZ and isinstance(value, str) else f"{value}"
        return self._statement(f"{relation}{quoted}", self._compare(op, self._bytes(value)))

    def _bytes(self, value: Value) -> bytes:
        if isinstance(value, (IPv4Address, IPv6Address)):
            return value.packed
        if isinstance(value, str):
            if self.width == _IFNAMSIZ:
                return link_name(value)
            value = self.names[value]
        assert isinstance(value, int)
        return value.to_bytes(self.width, self.order)

    def _compare(self, op: int, value: bytes) -> bytes:
        return expression("cmp", sreg=_REG, op=op, data=value)

    def _mask(self, mask: bytes) -> bytes:
        return expression("bitwise", sreg=_REG, dreg=_REG, len=self.width, mask=mask,
                          xor=bytes(self.width))  # fmt: skip

    def _statement(self, value: str, test: bytes) -> Statement:
        return Statement(f"{self.words} {value}", self.load + test, self.needs)


def link_name(name: str) -> bytes:
    """As the kernel compares it: all of its 16 bytes.

    Raises:
        SpecError: it is not what the name of a network link can be.
    """
    raw = name.encode()
    if not _LINK_NAME.fullmatch(name) or len(raw) >= _IFNAMSIZ:
        raise SpecError("bridge", f"{name!r} is no name of a network link: at most 15 bytes")
    return raw + bytes(_IFNAMSIZ - len(raw))


def _meta(key: int) -> bytes:
    return expression("meta", dreg=_REG, key=key)


def _ct(key: int) -> bytes:
    return expression("ct", dreg=_REG, key=key)


def _payload(base: int, offset: int, size: int) -> bytes:
    return expression("payload", dreg=_REG, base=base, offset=offset, len=size)


iifgroup = Selector("meta iifgroup", _meta(21), 4, order=sys.byteorder)
iifname = Selector("iifname", _meta(6), _IFNAMSIZ)
oifname = Selector("oifname", _meta(7), _IFNAMSIZ)
nfproto = Selector("meta nfproto", _meta(15), 1, names={"ipv4": 2, "ipv6": 10})
l4proto = Selector("meta l4proto", _meta(_META_L4PROTO), 1,
                   names={"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58})  # fmt: skip
#: Of a tagged frame that of the tag, though the kernel has taken it off; unlike meta protocol.
ether_type = Selector("ether type", _payload(_LINK, 12, 2), 2,
                      names={"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD})  # fmt: skip
_IS4, _IS6 = (nfproto(name).code for name in nfproto.names)
_ICMP, _TCP, _UDP, _ICMP6 = (l4proto(name).code for name in l4proto.names)

ip_saddr = Selector("ip saddr", _payload(_NETWORK, 12, 4), 4, (_IS4,))
ip_daddr = Selector("ip daddr", _payload(_NETWORK, 16, 4), 4, (_IS4,))
ip6_saddr = Selector("ip6 saddr", _payload(_NETWORK, 8, 16), 16, (_IS6,))
ip6_daddr = Selector("ip6 daddr", _payload(_NETWORK, 24, 16), 16, (_IS6,))
tcp_dport = Selector("tcp dport", _payload(_TRANSPORT, 2, 2), 2, (_TCP,))
udp_dport = Selector("udp dport", _payload(_TRANSPORT, 2, 2), 2, (_UDP,))
icmp_type = Selector("icmp type", _payload(_TRANSPORT, 0, 1), 1, (_IS4, _ICMP),
                     {"redirect": 5, "echo-request": 8})  # fmt: skip
icmpv6_type = Selector(
    "icmpv6 type", _payload(_TRANSPORT, 0, 1), 1, (_IS6, _ICMP6),
    {"echo-request": 128, "nd-router-solicit": 133, "nd-neighbor-solicit": 135,
     "nd-neighbor-advert": 136, "mld2-listener-report": 143},
)  # fmt: skip

ct_state = Selector("ct state", _ct(0), 4, order=sys.byteorder, flags=True,
                    names={"invalid": 1, "established": 2, "related": 4, "new": 8})  # fmt: skip
ct_direction = Selector("ct direction", _ct(1), 1, names={"original": 0, "reply": 1})
ct_status = Selector("ct status", _ct(2), 4, order=sys.byteorder, flags=True,
                     names={"snat": 16, "dnat": 32})  # fmt: skip
_FIB_DADDR, _FIB_ADDRTYPE = 2, 3
fib_daddr_type = Selector(
    "fib daddr type", expression("fib", dreg=_REG, result=_FIB_ADDRTYPE, flags=_FIB_DADDR), 4,
    order=sys.byteorder, names={"unicast": 1, "local": 2},
)  # fmt: skip


# -- the other statements ---------------------------------------------------------------------


def _verdict(words: str, code: int, chain: str = "") -> Statement:
    return Statement(words, expression("immediate", dreg=0, data=(code, chain)))


drop = _verdict("drop", 0)
accept = _verdict("accept", 1)
go_back = _verdict("return", -5)
masquerade = Statement("masquerade", expression("masq"))
#: NFT_REJECT_TCP_RST, and NFT_REJECT_ICMPX_UNREACH, which is of the packet's own family.
reset = Statement("reject with tcp reset", expression("reject", type=1))
reject = Statement("reject with icmpx admin-prohibited", expression("reject", type=2, icmp_code=3))


def jump(chain: str) -> Statement:
    return _verdict(f"jump {chain}", -3, chain)


def dnat_by(name: str, daddr: Selector, *, keyed: bool) -> Statement:
    """Send on to the address and port that map *name* has for the packet, if it has.

    Without *keyed* the rule says by itself of which family packets are: ``nfproto``.

    Args:
        daddr: ``ip_daddr`` or ``ip6_daddr``.
        keyed: whether the map's keys begin with that address; protocol and port follow.
    """
    words = daddr.width // 4
    here = _WORD + (words if keyed else 0)
    family = daddr.words.partition(" ")[0]
    code = b"".join((
        daddr.load if keyed else b"",
        expression("meta", dreg=here, key=_META_L4PROTO),
        expression("payload", dreg=here + 1, base=_TRANSPORT, offset=2, len=2),
        expression("lookup", set=name, sreg=_WORD, dreg=_WORD),
        expression("nat", type=1, family=2 if words == 1 else 10, reg_addr_min=_WORD,
                   reg_proto_min=_WORD + words),
    ))  # fmt: skip
    key = f"{daddr.words} . meta l4proto . th dport" if keyed else "meta l4proto . th dport"
    return Statement(f"dnat {family} to {key} map @{name}", code, daddr.needs if keyed else ())


#: What of a frame is compared together with the port that it came in by: its source, or what it
#: says of itself. Of the family bridge, where ``ether type`` tells one from the other.
_SOURCES = {
    "ether saddr": (_LINK, 6, 6),
    "arp saddr ether": (_NETWORK, 8, 6),
    "arp saddr ip": (_NETWORK, 14, 4),
    "ip saddr": (_NETWORK, 12, 4),
    "ip6 saddr": (_NETWORK, 8, 16),
    "nd target": (_TRANSPORT, 8, 16),
}


def by_port(source: str, name: str, *, known: bool) -> Statement:
    """Whether the port and *source* are together in the set *name*, or are not."""
    base, offset, size = _SOURCES[source]
    code = b"".join((
        expression("meta", dreg=_WORD, key=6),
        expression("payload", dreg=_WORD + _IFNAMSIZ // 4, base=base, offset=offset, len=size),
        expression("lookup", set=name, sreg=_WORD, flags=int(not known)),
    ))  # fmt: skip
    return Statement(f"iifname . {source} {'' if known else '!= '}@{name}", code)
