# SPDX-License-Identifier: Apache-2.0
"""What the kernel remembers of datagrams to published ports: a client that goes on asking stays
with whom it met first, a sandbox that has ended or nobody.

    original   client 192.0.2.2 4242  ->  host 192.0.2.1 53
    reply      sandbox 10.77.0.2 53   ->  client 192.0.2.2 4242

Only the first packet is translated by the rules; each of the others follows the entry, and makes it
last longer. TCP has no such trouble: there is no connection without the sandbox.

Kernel: ctnetlink, linux/netfilter/nfnetlink_conntrack.h. Where it is not built in all is as before.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from nsbox import nft
from nsbox.nftmsg import DUMP, attribute, attributes, message, nested, u8

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from nsbox.netrules import Published
    from nsbox.netspec import Address
    from nsbox.nft import HasFileno

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25  # CTA_*
_IP, _PROTO = 1, 2  # CTA_TUPLE_*
_NUMBER, _SOURCE_PORT, _PORT = 1, 2, 3  # CTA_PROTO_*
_BY_NUMBER, _BY_PORT = 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_PROTO_*, Linux 5.8
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)  # CTA_IP_*: of IPv4, of IPv6
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP)


class Flow(NamedTuple):
    """An entry: whom the client asks, who answers, and what names it to the kernel."""

    asked: tuple[Address, int]
    answering: tuple[Address, int]
    key: bytes


def redirect(sock: HasFileno, entry: Published, own: Container[Address]) -> None:
    """Who asked the host's port before *entry* was published there asks its sandbox from now on.

    Args:
        sock: of NETLINK_NETFILTER, in the namespace that has the rules.
        own: the addresses of the host there.
    """
    inside = dict(entry.pairs())

    def stale(flow: Flow) -> bool:
        address, port = flow.asked
        ours = address in own or address.is_loopback if entry.everywhere else address == entry.host
        return ours and port in inside and flow.answering != (entry.address, inside[port])

    _forget(sock, entry, stale)


def release(sock: HasFileno, entry: Published) -> None:
    """Who asked the sandbox of *entry* by the host's port does not ask the next one that has its
    address."""
    inside = dict(entry.pairs())

    def stale(flow: Flow) -> bool:
        port = inside.get(flow.asked[1])
        return flow.answering == (entry.address, port) and flow.asked[0] != entry.address

    _forget(sock, entry, stale)


def _forget(sock: HasFileno, entry: Published, stale: Callable[[Flow], bool]) -> None:
    port = entry.host_port if entry.count == 1 else None
    try:
        doomed = [one for one in flows(sock, entry.address.version, port) if stale(one)]
        _delete(sock, entry.address.version, doomed)
    except OSError as e:
        if e.errno not in _ABSENT:
            raise


def flows(sock: HasFileno, version: int, port: int | None = None) -> Iterator[Flow]:
    """The entries of UDP over IP of *version*, all or those to one *port*."""
    known, by = u8(_NUMBER, socket.IPPROTO_UDP), _BY_NUMBER
    if port is not None:
        known, by = known + attribute(_PORT, port.to_bytes(2, "big")), by | _BY_PORT
    wanted = nested(_ORIGINAL, nested(_PROTO, known))
    wanted += nested(_FILTER, attribute(1, struct.pack("=I", by)))
    request = message(_SUBSYSTEM | _GET, DUMP, 1, _FAMILIES[version], 0, wanted)
    for body in nft.dump(sock, request, "list connections"):
        found = dict(attributes(body[4:]))
        protocol, _, asked = _tuple(found[_ORIGINAL])
        if protocol == socket.IPPROTO_UDP:  # before Linux 5.8 others come, too
            key = nested(_ORIGINAL, found[_ORIGINAL])
            key += b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
            yield Flow(asked, _tuple(found[_REPLY])[1], key)


def _tuple(raw: bytes) -> tuple[int, tuple[Address, int], tuple[Address, int]]:
    """(protocol, source, destination)."""
    parts = dict(attributes(raw))
    addresses, rest = dict(attributes(parts[_IP])), dict(attributes(parts[_PROTO]))
    ends = []
    for kinds, port in ((_SOURCES, _SOURCE_PORT), (_DESTINATIONS, _PORT)):
        packed = next(addresses[kind] for kind in kinds if kind in addresses)
        number = int.from_bytes(rest.get(port, b""), "big")  # ICMP has none
        ends.append((ipaddress.ip_address(packed), number))
    return rest[_NUMBER][0], ends[0], ends[1]


def _delete(sock: HasFileno, version: int, doomed: Iterable[Flow]) -> None:
    """Those that have gone by themselves meanwhile are refused, which is as good."""
    packet = b"".join(message(_SUBSYSTEM | _DELETE, 0, i, _FAMILIES[version], 0, one.key)
                      for i, one in enumerate(doomed, 1))  # fmt: skip
    if packet:
        nft.tell(sock, packet)
