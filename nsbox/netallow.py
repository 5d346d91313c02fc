# SPDX-License-Identifier: Apache-2.0
"""What a sandbox may reach: ``"10.0.0.0/8"``, ``"192.0.2.7:443"``, ``":53/udp"``, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from nsbox.errors import SpecError

_FORMS = '"10.0.0.0/8", "192.0.2.7:443", "[2001:db8::1]:443", "192.0.2.7:53/udp" or ":443"'
#: Where, from which port, up to which, by which protocol. A port needs brackets after IPv6.
_ENTRY = re.compile(
    r"(?:\[(?P<in6>[^][]*)\]|(?P<in4>[^][:]*))"
    r"(?::(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?(?:/(?P<protocol>tcp|udp))?)?",
    re.ASCII,
)
_PREFIX = re.compile(r"\d{1,3}", re.ASCII)


@dataclass(frozen=True)
class AllowEntry:
    """One thing that may be reached.

    Attributes:
        network: the addresses; None for every address of both versions.
        ports: the first and the last; None for whatever there is at these addresses, ping too.
        protocol: of the ports.
    """

    network: IPv4Network | IPv6Network | None
    ports: tuple[int, int] | None = None
    protocol: Literal["tcp", "udp"] = "tcp"

    def __str__(self) -> str:
        """The shortest text that ``parse_allow`` makes it of."""
        if self.network is None:
            where = ""
        elif self.network.prefixlen == self.network.max_prefixlen:
            where = str(self.network.network_address)
        else:
            where = str(self.network)
        if self.ports is None:
            return where
        first, last = self.ports
        ports = f"{first}" if first == last else f"{first}-{last}"
        where = f"[{where}]" if ":" in where else where
        return f"{where}:{ports}" + ("/udp" if self.protocol == "udp" else "")


def parse_allow(text: str, field: str = "allow") -> AllowEntry:
    """The entry that *text* means.

    An address or a network, of IPv4 or IPv6, or nothing for all of both; then, after a colon, a
    port or ports (``8000-8080``), of TCP unless ``/udp`` follows. IPv6 before a port stands in
    brackets. A network without a port is all of it, by every protocol.

    Raises:
        SpecError: for *field*. Names of hosts are refused: what they mean can change.
    """
    if not isinstance(text, str):
        raise SpecError(field, f"{text!r} is not text; use {_FORMS}")
    match = _ENTRY.fullmatch(text)
    if match is None:  # IPv6 without a port needs no brackets
        return AllowEntry(_network(text, text, field))
    where = match["in6"] if match["in6"] is not None else match["in4"]
    network = None
    if where or match["in6"] is not None:
        network = _network(where, text, field)
        if match["in6"] is not None and network.version == 4:
            raise SpecError(field, f"{text!r}: IPv4 stands without brackets")
    if match["first"] is None:
        if network is None:
            raise SpecError(field, f"{text!r} is nothing to reach; use {_FORMS}")
        return AllowEntry(network)
    first = int(match["first"])
    last = int(match["last"] or first)
    if not 1 <= first <= last <= 65535:
        raise SpecError(field, f"{text!r}: ports are 1 to 65535, the lower one first")
    protocol: Literal["tcp", "udp"] = "udp" if match["protocol"] == "udp" else "tcp"
    return AllowEntry(network, (first, last), protocol)


def _network(where: str, text: str, field: str) -> IPv4Network | IPv6Network:
    address, slash, prefix = where.partition("/")
    try:
        found = IPv6Address(address) if ":" in address else IPv4Address(address)
    except ValueError:
        raise SpecError(field, f"{text!r} is no address; use {_FORMS}") from None
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            raise SpecError(field, f"{text!r}: an address here has no zone (%{found.scope_id})")
        if found.ipv4_mapped is not None:  # no packet carries it: they are IPv4
            raise SpecError(field, f"{text!r}: write {found.ipv4_mapped}, as in the packets")
    bits = found.max_prefixlen
    if slash and not (_PREFIX.fullmatch(prefix) and int(prefix) <= bits):
        raise SpecError(field, f"{text!r}: a network ends with /0 to /{bits}")
    whole = IPv6Network if isinstance(found, IPv6Address) else IPv4Network
    network = whole((int(found), int(prefix) if slash else bits), strict=False)
    if network.network_address != found:
        raise SpecError(field, f"{text!r} is in the middle of a network; did you mean {network}?")
    return network
