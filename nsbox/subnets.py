# SPDX-License-Identifier: Apache-2.0
"""Subnets, each for one network of containers: of all processes of the user, in one network
namespace, no two have some that overlap. Other network namespaces may have the same ones.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import time
from typing import TYPE_CHECKING

from nsbox import later, routes
from nsbox.errors import Unavailable
from nsbox.lent import LentBytes
from nsbox.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nsbox.netspec import Subnet
    from nsbox.routes import Taken

#: Where a free one is looked for: private addresses, RFC 1918. First those that few others use.
PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.88.0.0/13", "172.24.0.0/14", "192.168.0.0/16")))
_PREFIX = 24
_IPV6 = 1 << 62
_SOON_S, _POLL_S = 1.0, 0.005

_turn = itertools.count(os.getpid())


class Claim(Shared):
    """A subnet that is this network's alone, until it is closed or its process ends.

    Each address is a byte of a file, and the subnet's bytes are locked: so the kernel sees what
    overlaps. Of IPv6 each /64 is one byte, and two subnets in one /64 count as the same.
    """

    def __init__(self, where: str = "") -> None:
        super().__init__("subnets", where)
        self._subnet: Subnet | None = None

    @property
    def subnet(self) -> Subnet:
        """What was claimed."""
        assert self._subnet is not None
        return self._subnet

    def _begin(self, fd: int) -> None:
        self._bytes = LentBytes(fd)

    def attempt(self, subnet: Subnet) -> bool:
        """Whether nobody else has any of it."""
        with self._lock:
            self._opened()
            if self._bytes.take(*_place(subnet)):
                self._subnet = subnet
                return True
            return False

    def why_not(self, subnet: Subnet) -> str:
        """Who has some of it, for messages."""
        with self._lock:
            fd = self._opened()
            other = self._bytes.lent_elsewhere(*_place(subnet))
        if other is None:
            return "another network of nsbox, which has ended meanwhile"
        return f"{_named(*other)}, a network of {_users(fd)}"

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._fd >= 0 else "unused"
        return f"<nsbox.subnets.Claim {self._subnet} {state}>"


def _place(subnet: Subnet) -> tuple[int, int]:
    """(first byte, number of bytes) in a file, whose largest offset is 2**63 - 1."""
    if subnet.version == 4:
        return int(subnet.network_address), subnet.num_addresses
    return _IPV6 + (int(subnet.network_address) >> 64) % _IPV6, 1


def _named(start: int, length: int) -> str:
    """The subnet at that place."""
    if start >= _IPV6:
        return "the same /64"
    return str(ipaddress.IPv4Network((start, 33 - length.bit_length())))


def _users(fd: int) -> str:
    """Which processes have the same file open. Locks of open files do not tell their holders."""
    own, found = os.fstat(fd), set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                status = os.stat(f"/proc/{pid}/fd/{number}")
                if (status.st_dev, status.st_ino) == (own.st_dev, own.st_ino):
                    found.add(int(pid))
        except OSError:
            continue
    others = sorted(found - {os.getpid()}) or [os.getpid()]
    return f"process {' or '.join(map(str, others))}"


def claim_subnet(
    subnet: Subnet,
    taken: Callable[[], Iterable[Taken]] = routes.taken,
    field: str = "subnet",
    where: str = "",
) -> Claim:
    """Have this one.

    Args:
        subnet: as ``netspec.parse_subnet`` gives it.
        taken: what else uses addresses here.
        field: the argument's name, for errors.
        where: another network namespace than this thread's, see ``shared.Shared``.

    Raises:
        Unavailable: a network of nsbox, a route or an address overlaps it; the error says which.
    """
    claim = Claim(where)
    try:
        if not claim.attempt(subnet):
            raise _in_use(field, f"{subnet} overlaps {claim.why_not(subnet)}")
        other = _in_the_way(subnet, taken)
        if other is not None:
            mine = other.device.startswith("nsb")
            hint = "nsbox gc, if that is of a process that was killed" if mine else ""
            raise _in_use(field, f"{subnet} overlaps {other.what}", hint)
    except BaseException:
        claim.close()
        raise
    return claim


def _in_the_way(subnet: Subnet, taken: Callable[[], Iterable[Taken]]) -> Taken | None:
    """What overlaps it. A link of nsbox's, ours or another process's, whose claim has gone is about
    to go itself."""
    deadline = time.monotonic() + _SOON_S
    while True:
        other = next((one for one in taken() if one.overlaps(subnet)), None)
        if other is None or not other.device.startswith("nsb") or time.monotonic() > deadline:
            return other
        if later.settle(_POLL_S):
            time.sleep(_POLL_S)


def free_subnet(taken: Callable[[], Iterable[Taken]] = routes.taken, where: str = "") -> Claim:
    """Have a /24 of private IPv4 addresses that nobody uses here.

    Args:
        taken: what else uses addresses here.
        where: another network namespace than this thread's, see ``shared.Shared``.

    Raises:
        Unavailable: there is none left.
    """
    used = [other for other in taken() if other.version == 4]
    claim = Claim(where)
    try:
        for subnet in _candidates():
            if not any(other.overlaps(subnet) for other in used) and claim.attempt(subnet):
                return claim
        ranges = ", ".join(map(str, PRIVATE))
        raise _in_use("subnet", f"no /{_PREFIX} of {ranges} is free", "subnet=, another one")
    except BaseException:
        claim.close()
        raise


def _candidates() -> Iterator[Subnet]:
    """Each time from the next one on: what was given back last is not the first to be had."""
    start = next(_turn)
    for private in PRIVATE:
        count = 1 << (_PREFIX - private.prefixlen)
        size = 1 << (32 - _PREFIX)
        for i in range(count):
            address = int(private.network_address) + (start + i) % count * size
            yield ipaddress.IPv4Network((address, _PREFIX))


def _in_use(field: str, why: str, hint: str = "") -> Unavailable:
    return Unavailable(field, why, err=errno.EADDRINUSE, hint=hint)
