# SPDX-License-Identifier: Apache-2.0
"""Addresses of a subnet: each is lent to one container at a time.

That holds for all threads and processes of the user in one network namespace. What was given back
is lent again last, so that whoever still sends to it, by an old connection, meets nobody for as
long as can be.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import time
from array import array
from typing import TYPE_CHECKING

from nsbox import netspec
from nsbox.errors import SpecError, Unavailable
from nsbox.lent import LentBytes
from nsbox.shared import Shared

if TYPE_CHECKING:
    from nsbox.netspec import Address, Subnet

_MOST = 1 << 16
_LENT = 1 << 63
_WORD = 8


class Slots(Shared):
    """Numbers from 0 to *size* - 1. Free ones go round: the one that is free longest comes first.

    A number's byte of the file is locked while it is lent. Its word of eight bytes says who has
    it, or when it was given back. Where the two differ the lock is right: a holder that was killed
    gave nothing back, and counts as one that does so when the file is opened next.
    """

    def __init__(self, name: str, size: int, where: str = "") -> None:
        super().__init__(name, where)
        self.size = size
        self._lent: set[int] = set()

    def _begin(self, fd: int) -> None:
        self._bytes = LentBytes(fd)
        if os.fstat(fd).st_size:
            for number, word in enumerate(self._words(fd)):
                if word >= _LENT and self._bytes.take(number):
                    self._write(fd, number, _now())
                    self._bytes.give(number)
        else:
            os.ftruncate(fd, self.size * _WORD)

    def take(self) -> int | None:
        """A free one; None when all are lent."""
        with self._lock:
            fd = self._opened()
            words = self._words(fd)
            while (oldest := min(words)) < _LENT:
                number = words.index(oldest)
                if self._lend(fd, number, oldest):
                    return number
                words[number] = _LENT  # somebody was faster
            # Those that holders did not live to give back, or that came back meanwhile.
            return next((n for n in range(self.size) if self._lend(fd, n)), None)

    def take_this(self, number: int) -> bool:
        """Whether it was free, and is lent now."""
        with self._lock:
            return self._lend(self._opened(), number)

    def holder(self, number: int) -> str:
        """The process that has it, by its own word, for messages."""
        with self._lock:
            word = self._words(self._opened(), number, 1)[0]
            return f"process {word - _LENT}" if word >= _LENT else "another process"

    def give(self, number: int) -> None:
        """Nobody uses it any more.

        Raises:
            ValueError: it was not lent by this handle.
        """
        with self._lock:
            fd = self._opened()
            if number not in self._lent:
                raise ValueError(f"{self!r}: {number} is not lent by this handle")
            self._lent.remove(number)
            self._write(fd, number, _now())
            self._bytes.give(number)

    def _lend(self, fd: int, number: int, word: int | None = None) -> bool:
        """If its word still is *word*: else it was lent and has come back since that was read."""
        if not self._bytes.take(number):
            return False
        try:
            if word is None or self._words(fd, number, 1)[0] == word:
                self._write(fd, number, _LENT + os.getpid())
                self._lent.add(number)
                return True
        finally:
            if number not in self._lent:
                self._bytes.give(number)
        return False

    def _words(self, fd: int, first: int = 0, count: int = -1) -> array[int]:
        size = (self.size if count < 0 else count) * _WORD
        return array("Q", os.pread(fd, size, first * _WORD).ljust(size, b"\0"))

    def _write(self, fd: int, number: int, word: int) -> None:
        os.pwrite(fd, array("Q", [word]).tobytes(), number * _WORD)

    def close(self) -> None:
        """Give all back, and let go of the file; idempotent."""
        if self._pid == os.getpid():
            for number in tuple(self._lent):
                self.give(number)
        super().close()


def _now() -> int:
    """Nanoseconds since boot: what processes agree on."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Pool:
    """The addresses of *subnet* for containers: all but the network's, the broadcast address, and
    the first one, which is the gateway's. Of IPv6 the first 65536 are used.

    Handles of other threads and processes for the same subnet never lend the same address. Used
    from any thread; closing it gives all its addresses back, as the end of the process does.
    """

    def __init__(self, subnet: Subnet, where: str = "") -> None:
        self.subnet = subnet
        self.gateway: Address = subnet.network_address + 1
        size = min(subnet.num_addresses, _MOST) - 3
        self._slots = Slots(f"addresses-{str(subnet).replace('/', '_')}", size, where)

    def take(self, wanted: Address | str | None = None) -> Address:
        """An address that nobody has: *wanted*, or the one that was in use the longest ago.

        Raises:
            SpecError: the wanted one is none for a container of this subnet.
            Unavailable: it is lent, or all are.
        """
        if wanted is None:
            number = self._slots.take()
            if number is None:
                raise Unavailable(
                    "network", f"all {self._slots.size} addresses of {self.subnet} are in use",
                    err=errno.EADDRNOTAVAIL, hint="a larger subnet=",
                )  # fmt: skip
            return self._first + number
        address = netspec.parse_address(wanted, "address")
        number = self._number(address)
        if not self._slots.take_this(number):
            raise Unavailable(
                "network", f"{address} is lent by {self._slots.holder(number)}",
                err=errno.EADDRINUSE,
            )  # fmt: skip
        return address

    def give(self, address: Address) -> None:
        """Nothing sends from it any more: others may have it.

        Raises:
            ValueError: it was not taken from this pool.
        """
        self._slots.give(int(address) - int(self._first))

    @property
    def _first(self) -> Address:
        return self.subnet.network_address + 2

    def _number(self, address: Address) -> int:
        if address.version != self.subnet.version or address not in self.subnet:
            raise SpecError("address", f"{address} is not in {self.subnet}")
        number = int(address) - int(self._first)
        if not 0 <= number < self._slots.size:
            what = "the gateway's" if address == self.gateway else "not one for containers"
            last = self._first + (self._slots.size - 1)
            raise SpecError("address", f"{address} is {what}; use {self._first} to {last}")
        return number

    def close(self) -> None:
        """Give all back; idempotent."""
        self._slots.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<nsbox.addresses.Pool {self.subnet}>"


def counterpart(address: Address, subnet: Subnet, other: Subnet) -> Address:
    """The address that has the place in *other* which *address* has in *subnet*.

    With it a container of two subnets takes an address of one pool only: ``10.77.0.5`` has
    ``fd00:77::5``.

    Raises:
        SpecError: the other subnet is too small to have that place.
    """
    place = int(address) - int(subnet.network_address)
    if place >= min(other.num_addresses, _MOST) - (1 if other.version == 4 else 0):
        raise SpecError("subnet", f"{other} has no place for what is {address} in {subnet}")
    return ipaddress.ip_address(int(other.network_address) + place)
