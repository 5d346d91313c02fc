# SPDX-License-Identifier: Apache-2.0
"""Frames that a sandbox can write by itself: true ones, and those that lie about who sends them.

No two are alike, tags apart: who hears one knows which it is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from network.nftkit import checksum

BROADCAST = b"\xff" * 6
IP4, ARP, VLAN, IP6, OTHER = (n.to_bytes(2, "big") for n in (0x800, 0x806, 0x8100, 0x86DD, 0x88B5))
UDP, ICMP6, DESTINATION_OPTIONS = 17, 58, 60
SOLICIT_ROUTER, ROUTER, SOLICIT, ADVERT, REDIRECT = range(133, 138)
PORT = 5353
NODES = IPv6Address("ff02::1")


@dataclass(frozen=True)
class Peer:
    """Who somebody on the bridge is."""

    mac: bytes
    ip: IPv4Address
    ip6: IPv6Address

    @property
    def link_local(self) -> IPv6Address:
        raw = bytes((self.mac[0] ^ 2, *self.mac[1:3], 0xFF, 0xFE, *self.mac[3:]))
        return IPv6Address(b"\xfe\x80" + bytes(6) + raw)


def udp(name: bytes) -> bytes:
    """Without a checksum, as IPv4 allows."""
    return struct.pack("!HHHH", PORT, PORT, 8 + len(name), 0) + name


def ip4(source: IPv4Address, target: IPv4Address, name: bytes) -> bytes:
    body = udp(name)
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(body), 1, 0, 64, UDP)
    ends = source.packed + target.packed
    return start + checksum(start + bytes(2) + ends) + ends + body


def ip6(source: IPv6Address, target: IPv6Address, following: int, body: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(body), following, 255) + (
        source.packed + target.packed + body
    )


def icmp6(source: IPv6Address, target: IPv6Address, body: bytes, *, behind: bool = False) -> bytes:
    """With its checksum; *behind* an extension header that does nothing."""
    pseudo = source.packed + target.packed + struct.pack("!II", len(body), ICMP6)
    body = body[:2] + checksum(pseudo + body + bytes(len(body) % 2)) + body[4:]
    if not behind:
        return ip6(source, target, ICMP6, body)
    options = bytes((ICMP6, 0, 1, 4, 0, 0, 0, 0))
    return ip6(source, target, DESTINATION_OPTIONS, options + body)


def arp(mac: bytes, address: IPv4Address, operation: int = 2) -> bytes:
    return struct.pack("!HHBBH", 1, 0x800, 6, 4, operation) + (
        mac + address.packed + BROADCAST + address.packed
    )


def neighbour(kind: int, target: IPv6Address, mac: bytes = b"") -> bytes:
    """Solicitation or advertisement; with *mac* as the target's, or the sender's."""
    option = bytes((2 if kind == ADVERT else 1, 1)) + mac if mac else b""
    flags = 0x20000000 if kind == ADVERT else 0  # override
    return struct.pack("!BBHI", kind, 0, 0, flags) + target.packed + option


def router(mac: bytes) -> bytes:
    """ "I am your default router"."""
    return struct.pack("!BBHBBHII", ROUTER, 0, 0, 64, 0, 1800, 0, 0) + bytes((1, 1)) + mac


def frames(own: Peer, other: Peer) -> dict[str, tuple[bool, bytes]]:
    """Name -> (whether it is true, the frame), as *own* can write them about *other*."""
    nobody, nobody6 = IPv4Address(0), IPv6Address(0)
    local = own.link_local
    every = IPv4Address("10.77.0.255")

    def nd(body: bytes, source: IPv6Address = local, *, behind: bool = False) -> bytes:
        return IP6 + icmp6(source, NODES, body, behind=behind)

    def v6(source: IPv6Address, name: str) -> bytes:
        return IP6 + ip6(source, NODES, UDP, udp(name.encode()))

    bodies: dict[str, tuple[bool, bytes]] = {
        "own 4": (True, IP4 + ip4(own.ip, every, b"own 4")),
        "other 4": (False, IP4 + ip4(other.ip, every, b"other 4")),
        "nobody 4": (False, IP4 + ip4(nobody, every, b"nobody 4")),
        "own 6": (True, v6(own.ip6, "own 6")),
        "own local 6": (True, v6(local, "own local 6")),
        "other 6": (False, v6(other.ip6, "other 6")),
        "other local 6": (False, v6(other.link_local, "other local 6")),
        "nobody 6": (False, v6(nobody6, "nobody 6")),
        "own arp": (True, ARP + arp(own.mac, own.ip)),
        "probe": (True, ARP + arp(own.mac, nobody, 1)),
        "other arp": (False, ARP + arp(own.mac, other.ip)),
        "other arp asks": (False, ARP + arp(own.mac, other.ip, 1)),
        "other mac in arp": (False, ARP + arp(other.mac, own.ip)),
        "own advert": (True, nd(neighbour(ADVERT, own.ip6, own.mac))),
        "other advert": (False, nd(neighbour(ADVERT, other.ip6, own.mac))),
        "own advert behind": (True, nd(neighbour(ADVERT, own.ip6, own.mac), behind=True)),
        "other advert behind": (False, nd(neighbour(ADVERT, other.ip6, own.mac), behind=True)),
        "asks for other": (True, nd(neighbour(SOLICIT, other.ip6, own.mac))),
        "own dad": (True, nd(neighbour(SOLICIT, own.ip6), nobody6)),
        "own local dad": (True, nd(neighbour(SOLICIT, local), nobody6)),
        "other dad": (False, nd(neighbour(SOLICIT, other.ip6), nobody6)),
        "other dad behind": (False, nd(neighbour(SOLICIT, other.ip6), nobody6, behind=True)),
        "asks for routers": (True, nd(bytes((SOLICIT_ROUTER,)) + bytes(7), nobody6)),
        "router": (False, nd(router(own.mac))),
        "router behind": (False, nd(router(own.mac), behind=True)),
        "redirect": (False, nd(bytes((REDIRECT,)) + bytes(7) + bytes(32))),
        "other type": (False, OTHER + bytes(46)),
        "tagged": (False, VLAN + b"\0\5" + IP4 + ip4(own.ip, every, b"tagged")),
        "tagged lie": (False, VLAN + b"\0\5" + IP4 + ip4(other.ip, every, b"tagged lie")),
        "priority": (False, VLAN + b"\0\0" + IP4 + ip4(own.ip, every, b"priority")),
        "length": (False, b"\0\x20\x42\x42\x03" + bytes(29)),
    }  # fmt: skip
    made = {name: (true, BROADCAST + own.mac + body) for name, (true, body) in bodies.items()}
    made["other mac"] = (False, BROADCAST + other.mac + IP4 + ip4(own.ip, every, b"other mac"))
    made["end"] = (True, BROADCAST + own.mac + IP4 + ip4(own.ip, every, b"end"))
    return made


def untagged(frame: bytes) -> bytes:
    """As AF_PACKET shows it."""
    return frame[:12] + frame[16:] if frame[12:14] == VLAN else frame
