# SPDX-License-Identifier: Apache-2.0
"""The /etc/hosts that the containers of a network share while members come and go, and the name
servers that they can have of the host.

A bind mount follows the file, not its name: no other file can take its place, so it is changed
where it is, while others read it. Reading is not atomic, so no write must be seen in half::

    10.88.0.2<TAB>web     a member
    #0.88.0.3<TAB>db      one that has left, or one that is being written

One byte makes the one of the other, and what follows it changes only while it is a comment. Lines
never move. A place is used again after a while, for who has read half of it to be done.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nsbox import etc, launcher, netspec, registry
from nsbox.errors import SpecError, StateError
from nsbox.netspec import Dns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from nsbox.netspec import Address, HostAlias

_REST_S = 5.0
_MOST_TEXT = 1 << 20
_RESOLV_CONF = "/etc/resolv.conf"
#: Where those who put themselves into resolv.conf, on loopback, write down whom they ask.
_UPSTREAM = ("/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf")


class _Place(NamedTuple):
    start: int
    size: int


class HostsFile:
    """A hosts file at ``path``, to be bind-mounted read-only on /etc/hosts.

    It is there until ``close``, or until its owner ends: the launcher or ``gc()`` removes it.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._owner, self._fd = os.getpid(), fd
        self._lock = threading.Lock()
        self._end = os.fstat(fd).st_size
        self._members: dict[tuple[Address, str], _Place] = {}
        self._left: list[tuple[float, _Place]] = []

    @classmethod
    def create(cls, aliases: Iterable[HostAlias] = ()) -> HostsFile:
        """A new one, with this machine and *aliases* in it; its members are added later."""
        path = f"{registry.directory()}/{launcher.current().entry.name()}-hosts"
        text = etc.hosts(aliases=aliases).encode()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)  # whatever the caller's umask: every user inside reads it
            _write(fd, text, 0)
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise

    def add(self, address: Address, name: str, domain: str = "") -> None:
        """A member. One name can have several addresses, and one address several names.

        Raises:
            SpecError: a name is none.
            StateError: the same member is there, or the file is closed.
        """
        netspec.parse_name(name, "name")
        if domain:
            netspec.parse_name(domain, "domain")
        line = etc.host_line(address, name, domain).encode()
        with self._lock:
            self._check()
            if (address, name) in self._members:
                raise StateError(f"{name} at {address} is in {self.path}", status="exists")
            self._members[address, name] = self._put(line)

    def remove(self, address: Address, name: str) -> None:
        """The member has gone; nothing to do if it is not there."""
        with self._lock:
            self._check()
            place = self._members.pop((address, name), None)
            if place is not None:
                _write(self._fd, b"#", place.start)
                self._left.append((time.monotonic(), place))

    def _put(self, line: bytes) -> _Place:
        place = self._place(len(line))
        line = line[:-1].ljust(place.size - 1) + b"\n"
        try:
            _write(self._fd, b"#" + line[1:], place.start)
        except OSError:
            if place.start + place.size > self._end:
                os.ftruncate(self._fd, self._end)
            raise
        self._end = max(self._end, place.start + place.size)
        _write(self._fd, line[:1], place.start)
        return place

    def _place(self, size: int) -> _Place:
        """One whose member left long ago, else a new one at the end."""
        rested = time.monotonic() - _REST_S
        for i, (since, place) in enumerate(self._left):
            if since > rested:
                break
            if place.size >= size:
                del self._left[i]
                return place
        return _Place(self._end, size)

    def _check(self) -> None:
        launcher.check_owner(self._owner)
        if self._fd < 0:
            raise StateError(f"{self!r} is closed", status="closed")

    def close(self) -> None:
        """Remove it; containers that have it mounted keep what it says. Idempotent."""
        if self._owner != os.getpid():
            return
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
                remove(self.path)

    def __enter__(self) -> HostsFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        mine = getattr(self, "_fd", -1) >= 0 and self._owner == os.getpid()
        if mine and not sys.is_finalizing():  # then it is the launcher's
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        state = f"{len(self._members)} members" if self._fd >= 0 else "closed"
        return f"<nsbox.hostsfile.HostsFile {self.path} {state}>"


class NetworkHosts:
    """The hosts files of one network: all members are in each, and in some of them aliases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: Counter[tuple[Address, str]] = Counter()
        self._plain = HostsFile.create()
        self._files = [self._plain]

    @property
    def path(self) -> str:
        """Of the one without aliases."""
        return self._plain.path

    def add(self, address: Address, name: str) -> None:
        """A member; who is added twice has to be removed twice."""
        with self._lock:
            if not self._members[address, name]:
                with ExitStack() as undo:
                    for file in self._files:
                        file.add(address, name)
                        undo.callback(file.remove, address, name)
                    undo.pop_all()
            self._members[address, name] += 1

    def remove(self, address: Address, name: str) -> None:
        """The member has gone."""
        with self._lock:
            self._members[address, name] -= 1
            if not self._members[address, name]:
                del self._members[address, name]
                for file in self._files:
                    file.remove(address, name)

    def with_aliases(self, aliases: Iterable[HostAlias]) -> HostsFile:
        """One more of them, until it is dropped."""
        with self._lock, ExitStack() as undo:
            file = undo.enter_context(HostsFile.create(aliases))
            for address, name in self._members:
                file.add(address, name)
            self._files.append(file)
            undo.pop_all()
        return file

    def drop(self, file: HostsFile) -> None:
        """Nobody has it any more."""
        with self._lock:
            self._files.remove(file)
            file.close()

    def close(self) -> None:
        """All of them; idempotent."""
        with self._lock:
            for file in self._files:
                file.close()


def remove(path: str) -> None:
    """A file of the registry directory, unless its launcher was killed, and gc() was here."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _write(fd: int, data: bytes, where: int) -> None:
    if os.pwrite(fd, data, where) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- name servers -----------------------------------------------------------------------------

POLICIES = ("Default", "ClusterFirst", "None")


class ResolvConf(NamedTuple):
    """Text for /etc/resolv.conf, and the host's name servers that are not in it, as they cannot
    be reached from another network namespace."""

    text: str
    left_out: tuple[str, ...]


def resolv_conf(policy: str = "Default", dns: Dns | None = None) -> ResolvConf:
    """For a network namespace of its own; with the host's, its own file is right.

    Args:
        policy: as Kubernetes' ``dnsPolicy``: ``"Default"`` is *dns*, and behind it the host's, and
            so is ``"ClusterFirst"``, as the names of nsbox are in /etc/hosts. ``"None"`` is *dns*
            alone.
        dns: as ``netspec.parse_dns`` gives it.

    Raises:
        SpecError: an unknown policy, or ``"None"`` without name servers.
    """
    dns = check_policy(policy, dns)
    if policy == "None":
        return ResolvConf(etc.resolv_conf(dns), ())
    found, left_out = _host_resolvers()
    if left_out:  # what a resolver on loopback says is to be trusted, what others say is not
        found = replace(found, options=tuple(o for o in found.options if o != "trust-ad"))
    dns = etc.merge(found, dns)
    notes = []
    if left_out and not dns.nameservers:
        notes = [f"{', '.join(left_out)} of the host cannot be reached from this network"]
    return ResolvConf(etc.resolv_conf(dns, notes), left_out)


def check_policy(policy: str, dns: Dns | None) -> Dns:
    """*dns*, if it goes with that policy. Raises SpecError."""
    if policy not in POLICIES:
        raise SpecError("dns_policy", f"{policy!r} is none of {', '.join(POLICIES)}")
    if policy == "None" and not (dns and dns.nameservers):
        raise SpecError("dns", "needs nameservers with dns_policy None")
    return dns or Dns()


def _host_resolvers() -> tuple[Dns, tuple[str, ...]]:
    """What the host has, and which of its name servers only the host itself can reach."""
    found, left_out = etc.parse_resolv_conf(text_of(_RESOLV_CONF))
    for path in _UPSTREAM:
        if not found.nameservers and left_out:
            real, _ = etc.parse_resolv_conf(text_of(path))
            found = etc.merge(found, Dns(real.nameservers, real.searches))
    return found, left_out


def own_resolver(own: Collection[Address]) -> Address | None:
    """The name server that is the host itself, if it has no other one.

    Args:
        own: addresses of the host.
    """
    found, left_out = _host_resolvers()
    if any(server not in own for server in found.nameservers):
        return None
    for word in (*map(str, found.nameservers), *left_out):
        try:
            address = ipaddress.ip_address(word)
        except ValueError:
            continue
        if address.is_unspecified:
            return ipaddress.IPv4Address("127.0.0.1")
        if address.is_loopback or address in own:
            return address
    return None


def text_of(path: str) -> str:
    """What a file of the host's says; nothing, if it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_TEXT)
    except OSError:
        return ""
