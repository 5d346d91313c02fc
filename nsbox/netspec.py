# SPDX-License-Identifier: Apache-2.0
"""What users write about networks, as values that were checked: ports, subnets, name servers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nsbox.errors import SpecError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTOCOLS = ("tcp", "udp")
_MAX_PORT = 65535
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")

# -- ports ------------------------------------------------------------------------------------

#: What is before the first colon is an address where another colon follows.
_PUBLISH = re.compile(
    r"(?:(?:\[(?P<six>[^\]]*)\]|(?P<four>[^:\[\]]+)):(?=[^:]*:))?"
    r"(?:(?P<host>[\d-]*):)?"
    r"(?P<port>[\d-]+)"
    r"(?:/(?P<protocol>\w+))?",
    re.ASCII,
)
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_PUBLISH_HOW = 'use "8080:80", "127.0.0.1:8080:80", "53:53/udp" or 80'


@dataclass(frozen=True)
class Publish:
    """Ports of a container that are reached by ports of the host.

    Attributes:
        address: of the host, where they are; None for all of IPv4, ``::`` for all of IPv6.
        host_port: the first on the host; 0 where nsbox chooses each.
        port: the first in the container.
        count: how many, side by side.
        protocol: ``"tcp"`` or ``"udp"``.
    """

    address: Address | None
    host_port: int
    port: int
    count: int = 1
    protocol: str = "tcp"

    def __str__(self) -> str:
        """As docker writes it, which ``parse_publish`` reads again."""
        last = self.count - 1
        host, port = (f"{n}-{n + last}" if last else str(n) for n in (self.host_port, self.port))
        address = "" if self.address is None else f"{self.address}:"
        if isinstance(self.address, ipaddress.IPv6Address):
            address = f"[{self.address}]:"
        host = f"{host}:" if self.host_port else ":" if address else ""
        return f"{address}{host}{port}/{self.protocol}"

    @property
    def version(self) -> int:
        """Of IP: 4 or 6."""
        return 4 if self.address is None else self.address.version

    def overlaps(self, other: Publish) -> bool:
        """Whether a packet to the host could be meant for both."""
        return (
            self.protocol == other.protocol
            and 0 < self.host_port < other.host_port + other.count
            and 0 < other.host_port < self.host_port + self.count
            and self._meets(other)
        )

    def _meets(self, other: Publish) -> bool:
        """Whether their addresses have one in common."""
        addresses = (self.address, other.address)
        everywhere = any(one is None or one.is_unspecified for one in addresses)
        return self.version == other.version and (everywhere or addresses[0] == addresses[1])


def parse_publish(value: Any, field: str = "publish") -> tuple[Publish, ...]:
    """The published ports of one value, or of a list of them.

    Args:
        value: ``"[ADDRESS:][HOST_PORT:]PORT[/PROTOCOL]"`` as docker has it, where a port can be
            a range; a port alone (the host's is chosen by nsbox); a pair (host port, port); a
            ``Publish``; None for none.
        field: the argument's name, for errors.

    Raises:
        SpecError: one is wrong, or two overlap.
    """
    found: list[Publish] = []
    where: list[str] = []
    for name, one in _each(value, field):
        publish = _publish(one, name)
        for i, before in enumerate(found):
            if publish.overlaps(before):
                raise SpecError(name, f"{publish} overlaps {where[i]}, {before}")
        found.append(publish)
        where.append(name)
    return tuple(found)


def _each(value: Any, field: str) -> list[tuple[str, Any]]:
    """(name, element) of a list; a value alone is one element."""
    if value is None:
        return []
    if isinstance(value, (str, int, Publish)) or _is_pair(value):
        return [(field, value)]
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping, set, frozenset)):
        raise SpecError(field, f"{value!r} does not say which ports; {_PUBLISH_HOW}")
    return [(f"{field}[{i}]", one) for i, one in enumerate(value)]


def _is_pair(value: Any) -> bool:
    """Two numbers in a tuple are a host port and a port, in a list they are two ports."""
    return (isinstance(value, tuple) and len(value) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) for n in value))  # fmt: skip


def _publish(value: Any, field: str) -> Publish:
    if isinstance(value, Publish):
        value = str(value)  # it may have been made by hand: checked as all others
    elif _is_pair(value):
        value = f"{value[0]}:{value[1]}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    match = _PUBLISH.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise SpecError(field, f"{value!r} does not say which port; {_PUBLISH_HOW}")
    protocol = (match["protocol"] or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise SpecError(field, f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    port, count = _ports(match["port"], field, least=1)
    host_port, host_count = _ports(match["host"] or "0", field, least=0)
    if host_port and host_count != count:
        raise SpecError(field, f"{host_count} ports of the host are not {count} of the container")
    return Publish(_listen(match["six"], match["four"], field), host_port, port, count, protocol)


def _ports(text: str, field: str, *, least: int) -> tuple[int, int]:
    """(first, how many) of ``"80"`` or ``"8000-8010"``."""
    match = _PORTS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (-1, -1)
    if match and least <= first <= last <= _MAX_PORT and (first or not last):
        return first, last - first + 1
    raise SpecError(field, f"{text!r} is not a port, or a range of them, in 1..{_MAX_PORT}")


def _listen(six: str | None, four: str | None, field: str) -> Address | None:
    if six is None and four is None:
        return None
    text = str(four if six is None else six)
    address = parse_address(text, field)
    if address.version != (4 if six is None else 6):
        raise SpecError(field, f"{text!r}: an IPv6 address, and no other, is in brackets")
    if address.is_multicast:
        raise SpecError(field, f"{text} is a multicast address: nothing can be connected to it")
    if address == _BROADCAST:
        raise SpecError(field, f"{text} is the broadcast address: nothing can be connected to it")
    return None if address.version == 4 and address.is_unspecified else address


def parse_address(value: Any, field: str) -> Address:
    """An address, of a string or of ``ipaddress``: without a zone, and no IPv4 in disguise.

    Raises:
        SpecError: it is none.
    """
    hint = "; use 127.0.0.1 or ::1" if value == "localhost" else ""
    if not isinstance(value, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)):
        raise SpecError(field, f"{value!r} is not an address")
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise SpecError(field, f"{value!r} is not an address{hint}") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise SpecError(field, f"{address} has a zone: it means nothing in another network")
        if address.ipv4_mapped is not None:
            raise SpecError(field, f"{address} is an IPv4 address; use {address.ipv4_mapped}")
    return address


# -- subnets ----------------------------------------------------------------------------------

#: Version -> the shortest and the longest prefix, and an example.
_PREFIXES = {4: (16, 30, "10.77.0.0/24"), 6: (64, 120, "fd00:77::/64")}
_PREFIX = re.compile(r"[^/%]+/\d{1,3}", re.ASCII)
#: Nobody can have an address there that others send packets to.
_NOT_HOSTS = tuple((ipaddress.ip_network(text), what) for text, what in (
    ("0.0.0.0/8", "no network"), ("127.0.0.0/8", "loopback"), ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"), ("240.0.0.0/4", "reserved"), ("::/8", "loopback or reserved"),
    ("fe80::/10", "link-local"), ("ff00::/8", "multicast"),
))  # fmt: skip


def parse_subnet(value: Any, field: str, version: int) -> Subnet:
    """The subnet of a network of containers: IPv4 from /16 to /30, IPv6 from /64 to /120.

    Args:
        value: ``"10.77.0.0/24"``, or a network of ``ipaddress``.
        version: 4 or 6.

    Raises:
        SpecError: it is none, too large or small, or hosts cannot have such addresses.
    """
    shortest, longest, example = _PREFIXES[version]
    if not isinstance(value, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)):
        raise SpecError(field, f'{value!r} is not a subnet; use "{example}"')
    text = str(value).strip()
    try:
        subnet = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise SpecError(field, f'{text!r} is not a subnet; use "{example}"') from None
    if subnet.version != version:
        raise SpecError(field, f'{text} is IPv{subnet.version}, not IPv{version}; use "{example}"')
    if not _PREFIX.fullmatch(text):
        raise SpecError(field, f'{text} has no prefix length; use one as in "{example}"')
    if not shortest <= subnet.prefixlen <= longest:
        raise SpecError(field, f"{text} is not in /{shortest} to /{longest}; use {example!r}")
    if ipaddress.ip_address(text.partition("/")[0]) != subnet.network_address:
        raise SpecError(field, f"{text} is a host, not a subnet; did you mean {subnet}?")
    check_hosts(subnet, field, example)
    return subnet


def check_hosts(subnet: Subnet, field: str, example: str) -> None:
    """Raises SpecError unless every host can have addresses of *subnet*."""
    for other, what in _NOT_HOSTS:
        if other.version == subnet.version and subnet.overlaps(other):
            verb = "is" if subnet.subnet_of(other) else "has in it"  # type: ignore[arg-type]
            raise SpecError(field, f"{subnet} {verb} {what}; use one such as {example}")


# -- names ------------------------------------------------------------------------------------

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_SEARCH = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}(?::[A-Za-z0-9._-]{1,63})?", re.ASCII)
#: Of resolv.conf(5) MAXNS, and what Kubernetes takes of the others.
_MOST_SERVERS, _MOST_SEARCHES, _MOST_SEARCH_BYTES = 3, 32, 2048


def parse_name(value: Any, field: str) -> str:
    """A host's name: labels of letters, digits and ``-`` with dots between, RFC 1123."""
    if not isinstance(value, str) or not all(map(_LABEL.fullmatch, value.split("."))):
        raise SpecError(field, f"{value!r} is not a host name of letters, digits, - and .")
    if len(value) > 253:
        raise SpecError(field, f"{value[:20]!r}… is longer than 253 letters")
    return value


def is_host_name(value: str) -> bool:
    """Whether ``parse_name`` would take it."""
    try:
        return parse_name(value, "") == value
    except SpecError:
        return False


@dataclass(frozen=True)
class HostAlias:
    """Names of an address that are in /etc/hosts, as Kubernetes' ``hostAliases`` has them."""

    address: Address
    names: tuple[str, ...]


def parse_host_aliases(value: Any, field: str = "host_aliases") -> tuple[HostAlias, ...]:
    """Of ``{"192.0.2.1": ["one", "one.example"]}``, or of Kubernetes' list of mappings with
    ``ip`` and ``hostnames``.

    Raises:
        SpecError: an address or a name is wrong.
    """
    if isinstance(value, Mapping):
        value = [{"ip": address, "hostnames": names} for address, names in value.items()]
    found = []
    for i, one in enumerate(() if value is None else _several(value, field)):
        where = f"{field}[{i}]"
        if isinstance(one, HostAlias):
            one = {"ip": one.address, "hostnames": one.names}
        if not isinstance(one, Mapping) or set(one) != {"ip", "hostnames"}:
            raise SpecError(where, "takes ip and hostnames")
        names = _several(one["hostnames"], f"{where}.hostnames")
        if not names:
            raise SpecError(f"{where}.hostnames", "is empty: an address without a name")
        found.append(HostAlias(
            parse_address(one["ip"], f"{where}.ip"),
            tuple(parse_name(n, f"{where}.hostnames[{j}]") for j, n in enumerate(names)),
        ))  # fmt: skip
    return tuple(found)


@dataclass(frozen=True)
class Dns:
    """What a container asks for names, as Kubernetes' ``dnsConfig`` has it; resolv.conf(5).

    Attributes:
        nameservers: at most three addresses.
        searches: domains that are tried for short names, at most 32.
        options: such as ``"ndots:2"`` or ``"edns0"``.
    """

    nameservers: tuple[Address, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_dns(value: Any, field: str = "dns") -> Dns:
    """Of ``["192.0.2.53"]``, or of a mapping with ``nameservers``, ``searches`` and ``options``.

    An option is ``"ndots:2"`` or, as in Kubernetes, ``{"name": "ndots", "value": "2"}``.

    Raises:
        SpecError: one is wrong, or there are too many.
    """
    if isinstance(value, Dns):
        value = {"nameservers": value.nameservers, "searches": value.searches,
                 "options": value.options}  # fmt: skip
    if not isinstance(value, Mapping):
        return Dns(_nameservers(value, field))
    for key in value:
        if key not in ("nameservers", "searches", "options"):
            raise SpecError(field, f"{key!r} is none of nameservers, searches, options")
    return Dns(
        _nameservers(value.get("nameservers") or (), f"{field}.nameservers"),
        _searches(value.get("searches") or (), f"{field}.searches"),
        tuple(
            _option(one, f"{field}.options[{i}]")
            for i, one in enumerate(_several(value.get("options") or (), f"{field}.options"))
        ),
    )


def _several(value: Any, field: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise SpecError(field, f"must be a list, such as [{value!r}]")
    return tuple(value)


def _nameservers(value: Any, field: str) -> tuple[Address, ...]:
    found = []
    for i, one in enumerate(_several(value, field)):
        address = parse_address(one, f"{field}[{i}]")
        if address.is_multicast or address.is_unspecified:
            raise SpecError(f"{field}[{i}]", f"{address} is no address of a name server")
        found.append(address)
    found = list(dict.fromkeys(found))
    if len(found) > _MOST_SERVERS:
        raise SpecError(field, f"a resolver asks at most {_MOST_SERVERS} name servers")
    return tuple(found)


def _searches(value: Any, field: str) -> tuple[str, ...]:
    found = _several(value, field)
    for i, one in enumerate(found):
        labels = one.removesuffix(".").split(".") if isinstance(one, str) else [""]
        known = one == "." or all(map(_SEARCH.fullmatch, labels))
        if not known or len(one) > 253:
            raise SpecError(f"{field}[{i}]", f"{one!r} is not a domain")
    if len(found) > _MOST_SEARCHES or len(" ".join(found)) > _MOST_SEARCH_BYTES:
        raise SpecError(
            field, f"more than {_MOST_SEARCHES} domains, or {_MOST_SEARCH_BYTES} letters in all"
        )
    return found


def _option(value: Any, field: str) -> str:
    if isinstance(value, Mapping):
        if not set(value) <= {"name", "value"} or "name" not in value:
            raise SpecError(field, "takes a name and, if it has one, a value")
        setting = value.get("value")
        value = f"{value['name']}:{setting}" if setting is not None else str(value["name"])
    if not isinstance(value, str) or not _OPTION.fullmatch(value):
        raise SpecError(field, f'{value!r} is not an option; use one as in "ndots:2"')
    return value
