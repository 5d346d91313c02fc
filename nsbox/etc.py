# SPDX-License-Identifier: Apache-2.0
"""Files of /etc that tell a container who is who in its network: hosts, hostname, resolv.conf."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

from nsbox.netspec import Dns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsbox.netspec import Address, HostAlias

_LOCAL = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
#: What every host calls itself and its neighbours, and no sandbox can be called.
LOCAL_NAMES = frozenset(name for line in _LOCAL.splitlines() for name in line.split()[1:])
_MOST_SERVERS = 3  # MAXNS of resolv.conf(5)


def host_line(address: Address, name: str, domain: str = "", aliases: Iterable[str] = ()) -> str:
    """A line of hosts(5): the name with its domain first, which is the canonical one."""
    names = [f"{name}.{domain}", name] if domain else [name]
    return f"{address}\t{' '.join([*names, *aliases])}\n"


def hosts(lines: Iterable[str] = (), aliases: Iterable[HostAlias] = ()) -> str:
    """/etc/hosts: this machine, *lines* for others (see ``host_line``), then *aliases*.

    Names and addresses are those that netspec.py has checked.
    """
    text = f"# Written by nsbox. Who ends is taken out.\n{_LOCAL}{''.join(lines)}"
    return text + alias_lines(aliases)


def alias_lines(aliases: Iterable[HostAlias]) -> str:
    """The part of /etc/hosts that is what the user said."""
    more = "".join(host_line(one.address, one.names[0], aliases=one.names[1:]) for one in aliases)
    return f"# host aliases\n{more}" if more else ""


# -- resolv.conf ------------------------------------------------------------------------------


def resolv_conf(dns: Dns, notes: Iterable[str] = ()) -> str:
    """/etc/resolv.conf, with *notes* as comments."""
    lines = [f"# {note}" for note in notes]
    lines += [f"nameserver {address}" for address in dns.nameservers]
    lines += [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)


def parse_resolv_conf(text: str) -> tuple[Dns, tuple[str, ...]]:
    """What a resolv.conf says, and the name servers in it that only its own host can reach.

    Those are loopback and link-local ones: in another network namespace there is another
    loopback. What is not understood is left out, as resolvers do.
    """
    servers: list[Address] = []
    searches: tuple[str, ...] = ()
    options: list[str] = []
    unreachable: list[str] = []
    for line in text.splitlines():
        key, *words = line.split() or [""]
        if key == "nameserver" and words:
            address = _server(words[0])
            if address is not None:
                servers.append(address)
            else:
                unreachable.append(words[0])
        elif key in ("search", "domain"):  # the last of them counts
            searches = tuple(word for word in words if word.isascii() and word.isprintable())
        elif key == "options":
            options += [word for word in words if word.isascii() and word.isprintable()]
    found = Dns(tuple(servers[:_MOST_SERVERS]), searches, tuple(options))
    return found, tuple(word for word in unreachable if word.isascii() and word.isprintable())


def _server(word: str) -> Address | None:
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        return None
    # To a resolver 0.0.0.0 is this host.
    own = address.is_loopback or address.is_link_local or address.is_unspecified
    return None if own or address.is_multicast else address


def merge(dns: Dns, more: Dns) -> Dns:
    """*more* beside what the policy gives: its name servers come first, as only so they are asked,
    and as many others follow as a resolver heeds. Domains are added, an option of the same name
    is replaced, as Kubernetes has it."""
    servers = dict.fromkeys((*more.nameservers, *dns.nameservers))
    named = {option.partition(":")[0]: option for option in (*dns.options, *more.options)}
    return replace(
        dns,
        nameservers=tuple(servers)[:_MOST_SERVERS],
        searches=tuple(dict.fromkeys((*dns.searches, *more.searches))),
        options=tuple(named.values()),
    )
