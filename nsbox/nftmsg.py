# SPDX-License-Identifier: Apache-2.0
"""nf_tables in its own language: tables, chains, rules and maps as netlink messages.

Bytes only, no I/O; ``nft.py`` sends them. Every message carries the command that nft(8) would
give it by, for people and for errors. Numbers are those of linux/netfilter/nf_tables.h; they are
big-endian there, while the headers of netlink(7) have the order of the machine.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from nsbox.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nsbox.nftrule import Statement

FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
#: Priorities by the names that nft(8) has for them.
RAW, DSTNAT, FILTER, SRCNAT = -300, -100, 0, 100

BATCH_BEGIN, BATCH_END = 16, 17
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, DELSETELEM = (
    0, 1, 2, 3, 6, 9, 12, 14,
)  # fmt: skip
TABLE_F_OWNER = 2  # Linux 5.12: the table goes with the socket that made it
SET_F_MAP = 8

REQUEST, ACK, EXCL, CREATE, APPEND, DUMP = 0x1, 0x4, 0x200, 0x400, 0x800, 0x300
SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_MOST = 65535 - 4  # bytes in an attribute, which has 16 bits for its length

#: Of what maps have as key or value: its number for nft(8), which lists it by that, and its bytes.
TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "ether_addr": (9, 6), "inet_proto": (12, 1),
         "inet_service": (13, 2), "ifname": (41, 16)}  # fmt: skip

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}", re.ASCII)


# -- attributes -------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    """struct nlattr, padded to four bytes."""
    return ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def u8(kind: int, number: int) -> bytes:
    return attribute(kind, number.to_bytes(1, "big"))


def u32(kind: int, number: int) -> bytes:
    return attribute(kind, number.to_bytes(4, "big", signed=number < 0))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def data(kind: int, value: bytes) -> bytes:
    """What a register holds: NFTA_DATA_VALUE."""
    return nested(kind, attribute(1, value))


def verdict(kind: int, value: tuple[int, str]) -> bytes:
    """NFTA_DATA_VERDICT: a code, and the chain that it leads to, or ""."""
    code, chain = value
    return nested(kind, nested(2, u32(1, code), text(2, chain) if chain else b""))


def attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, data) of each attribute; what is cut off ends them."""
    at = 0
    while at + 4 <= len(raw):
        length, kind = ATTRIBUTE.unpack_from(raw, at)
        if length < 4 or at + length > len(raw):
            return
        yield kind & _TYPE_MASK, raw[at + 4 : at + length]
        at += length + -length % 4


# -- messages ---------------------------------------------------------------------------------


class Message(NamedTuple):
    """One change of a rule set. *command* is how nft(8) would say it."""

    kind: int
    flags: int
    family: int
    body: bytes
    command: str

    def encode(self, sequence: int, flags: int = 0) -> bytes:
        return message(SUBSYSTEM | self.kind, self.flags | flags, sequence,
                        self.family, 0, self.body)  # fmt: skip


def message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    """struct nlmsghdr and struct nfgenmsg before the attributes; *kind* has its subsystem."""
    header = HEADER.pack(HEADER.size + 4 + len(body), kind, REQUEST | flags, sequence, 0)
    return b"".join((header, bytes((family, 0)), resource.to_bytes(2, "big"), body))


def batch(messages: Sequence[Message]) -> bytes:
    """All of *messages* as one transaction: the kernel makes every change of it, or none.

    They are numbered from 1 on. The last one asks for an answer, which comes after the commit;
    those that fail are answered anyway. (The end of the batch answers since Linux 6.10 only.)
    """
    last = len(messages)
    return b"".join((
        message(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM >> 8, b""),
        *(one.encode(i, ACK if i == last else 0) for i, one in enumerate(messages, 1)),
        message(BATCH_END, 0, 0, 0, SUBSYSTEM >> 8, b""),
    ))  # fmt: skip


def table_request(sequence: int) -> bytes:
    """The question for the tables of every family."""
    return message(SUBSYSTEM | GETTABLE, DUMP, sequence, 0, 0, b"")


# -- tables and what is in them ---------------------------------------------------------------


class Table:
    """The messages about one table.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``, a letter first; 128 characters at most.

    Raises:
        SpecError: *name* is something else.
    """

    def __init__(self, name: str, family: str = "inet") -> None:
        if not _NAME.fullmatch(name):
            raise SpecError("name", f"{name!r} is no name of a table: letters, digits, _, - and .")
        self.name, self.family = name, family
        self._number = FAMILIES[family]
        self._where = f"{family} {name}"
        self._attribute = text(1, name)  # the first attribute of every message

    def _say(self, kind: int, flags: int, command: str, *body: bytes) -> Message:
        whole = b"".join((self._attribute, *body))
        return Message(kind, flags, self._number, whole, command)

    def add(self, *, owner: bool = False) -> Message:
        """Fails with EEXIST if it is there. With *owner* it goes with the socket that made it,
        and nobody else may change it (EPERM)."""
        flags = u32(2, TABLE_F_OWNER) if owner else b""
        command = f"create table {self._where}" + (" { flags owner; }" if owner else "")
        return self._say(NEWTABLE, CREATE | EXCL, command, flags)

    def delete(self) -> Message:
        """With everything in it."""
        return self._say(DELTABLE, 0, f"delete table {self._where}")

    def chain(self, name: str) -> Message:
        """One that rules jump to."""
        return self._say(NEWCHAIN, CREATE, f"add chain {self._where} {name}", text(3, name))

    def base_chain(self, hook: str, priority: int, *, name: str = "", kind: str = "filter",
                   policy: str = "accept") -> Message:  # fmt: skip
        """One that the kernel calls at *hook*, whose name it has unless *name* is given.

        Args:
            kind: ``"filter"``, or ``"nat"``: then only the first packet of a connection gets there.
        """
        name = name or hook
        how = f"type {kind} hook {hook} priority {priority}; policy {policy};"
        return self._say(
            NEWCHAIN, CREATE, f"add chain {self._where} {name} {{ {how} }}", text(3, name),
            nested(4, u32(1, HOOKS[hook]), u32(2, priority)),
            u32(5, policy == "accept"), text(7, kind),
        )  # fmt: skip

    def rule(self, chain: str, *statements: Statement) -> Message:
        """At the end of *chain*. What several statements need is looked at once."""
        code: dict[bytes, None] = {}
        for statement in statements:
            code.update(dict.fromkeys(statement.needs))
            code[statement.code] = None
        words = " ".join(statement.words for statement in statements)
        return self._say(NEWRULE, CREATE | APPEND, f"add rule {self._where} {chain} {words}",
                         text(2, chain), nested(4, *code))  # fmt: skip

    def map(self, name: str, key: str, value: str, number: int) -> Message:
        """One from *key* to *value*, both names of TYPES joined by ``" . "``.

        Args:
            number: another one for each map of a transaction.
        """
        (key_type, key_size), (value_type, value_size) = _joined(key), _joined(value)
        return self._say(
            NEWSET, CREATE, f"add map {self._where} {name} {{ type {key} : {value}; }}",
            text(2, name), u32(3, SET_F_MAP), u32(4, key_type), u32(5, key_size),
            u32(6, value_type), u32(7, value_size), u32(10, number),
        )  # fmt: skip

    def set(self, name: str, key: str, number: int) -> Message:
        """One of keys alone; as ``map``."""
        key_type, key_size = _joined(key)
        return self._say(
            NEWSET, CREATE, f"add set {self._where} {name} {{ type {key}; }}",
            text(2, name), u32(3, 0), u32(4, key_type), u32(5, key_size), u32(10, number),
        )  # fmt: skip

    def elements(self, name: str, pairs: Iterable[tuple[bytes, bytes]], words: str, *,
                 delete: bool = False) -> list[Message]:  # fmt: skip
        """Add (EEXIST: a key is there) or *delete* (ENOENT: it is not) elements of a map or set.

        Args:
            pairs: keys and values, as ``concatenated`` makes them; of a set values are empty.
            words: how people write the elements.
        """
        kind, flags = (DELSETELEM, 0) if delete else (NEWSETELEM, CREATE | EXCL)
        verb = "delete" if delete else "add"
        command = f"{verb} element {self._where} {name} {{ {words} }}"
        every = [
            nested(1, data(1, key), b"" if delete or not value else data(2, value))
            for key, value in pairs
        ]
        step = _MOST // len(every[0]) if every else 1
        return [self._say(kind, flags, command, text(2, name), nested(3, *every[at : at + step]))
                for at in range(0, len(every), step)]  # fmt: skip


def _joined(types: str) -> tuple[int, int]:
    """The number of a type of several parts, six bits for each, and its bytes, in words of 4."""
    number = size = 0
    for name in types.split(" . "):
        part, width = TYPES[name]
        number, size = number << 6 | part, size + width + -width % 4
    return number, size


def concatenated(*parts: bytes) -> bytes:
    """A key or a value of several parts: each begins a word of four bytes."""
    return b"".join(part + bytes(-len(part) % 4) for part in parts)
