# SPDX-License-Identifier: Apache-2.0
"""Sends rule sets to the kernel, each as one transaction, and lists the tables that are there.

Kernel: netlink(7), NETLINK_NETFILTER; nf_tables since Linux 3.13. A socket acts on the network
namespace that it was opened in, whoever uses it; it takes CAP_NET_ADMIN there.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nsbox import nftmsg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsbox.nftmsg import Message

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


_NETLINK_NETFILTER = 12
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE = 32
_ERROR, _DONE = 2, 3  # NLMSG_*
_CAPPED, _ACK_TLVS, _DUMP_INTR = 0x100, 0x200, 0x10  # NLM_F_*
_ATTR_MSG = 1  # NLMSGERR_ATTR_MSG
_BUFFER = 65536
_MOST_ANSWERS = 10_000  # more than a socket holds: who sends others to it keeps nobody here
_KERNEL = 0  # the port of netlink(7) that only the kernel can send from

#: One at a time: the answers of two on one socket would mix.
_lock = threading.Lock()


class TableInfo(NamedTuple):
    """A table that is there.

    Attributes:
        owner: the port of the socket that it goes with; 0 for none.
    """

    family: str
    name: str
    flags: int
    owner: int


def open_socket() -> socket.socket:
    """A socket for the network namespace of the calling thread."""
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )


def transact(sock: HasFileno | int, messages: Sequence[Message]) -> None:
    """Make all changes of *messages*, or none.

    Args:
        sock: as ``open_socket`` gives it, or its descriptor. Tables with an owner are *sock*'s:
            they vanish with its last descriptor, however its process ends.

    Raises:
        OSError: nothing was changed. It names the message that was refused first, in nft(8)'s
            words, and what the kernel says about it. EPERM: no CAP_NET_ADMIN, or another owner's
            table; EEXIST, ENOENT: what is made, or deleted, is there, or not; EMSGSIZE: too much
            at once (without root 400 kB, some 8,000 ports); EOPNOTSUPP: the kernel has no
            nf_tables. Only after EPROTO is it unknown what was changed: somebody else with
            CAP_NET_ADMIN in the namespace has filled the socket, and the answer found no room.
    """
    if not messages:
        return
    packet = nftmsg.batch(messages)
    with _lock, _prepared(sock) as link:
        for _ in _answers(link):
            pass  # of somebody who was interrupted
        _send(link, packet)
        errors = [answer for answer in _answers(link) if answer.kind == _ERROR]
    refused = min((one for one in errors if one.error), key=lambda one: one.sequence, default=None)
    if refused is not None:
        raise _refusal(refused, messages)
    if not any(one.sequence == len(messages) for one in errors):
        raise OSError(errno.EPROTO, "the answer was lost", messages[-1].command)


def tables(sock: HasFileno | int) -> list[TableInfo]:
    """The tables of every family and owner, as the kernel lists them.

    Raises:
        OSError: EPERM, no CAP_NET_ADMIN.
    """
    families = {number: name for name, number in nftmsg.FAMILIES.items()}
    found: list[TableInfo] = []
    for body in dump(sock, nftmsg.table_request(1), "list tables"):
        known = dict(nftmsg.attributes(body[4:]))
        found.append(TableInfo(
            families.get(body[0], str(body[0])),
            known.get(1, b"").rstrip(b"\0").decode("utf-8", "replace"),
            int.from_bytes(known.get(2, b""), "big"),
            int.from_bytes(known.get(7, b""), "big"),
        ))  # fmt: skip
    return found


def dump(sock: HasFileno | int, request: bytes, what: str) -> list[bytes]:
    """The answers to a *request* with NLM_F_DUMP, each from its struct nfgenmsg on.

    Raises:
        OSError: EPERM, no CAP_NET_ADMIN; EINVAL, the kernel does not have what is asked.
    """
    with _lock, _prepared(sock) as link:
        while True:
            for _ in _answers(link):
                pass
            _send(link, request)
            found, whole = _dumped(link, what)
            if whole:
                return found


def tell(sock: HasFileno | int, packet: bytes) -> None:
    """Messages whose answers, that they were refused, nobody needs."""
    with _lock, _prepared(sock) as link:
        _send(link, packet)
        for _ in _answers(link):
            pass


def _dumped(link: socket.socket, what: str) -> tuple[list[bytes], bool]:
    """False: a change came in between, and what was listed fits nothing."""
    found: list[bytes] = []
    whole = True
    while True:
        for answer in _received(link, 0):
            whole = whole and not answer.flags & _DUMP_INTR
            if answer.kind == _DONE:
                return found, whole
            if answer.kind == _ERROR:
                raise OSError(answer.error, os.strerror(answer.error), what)
            found.append(answer.body)


# -- the socket -------------------------------------------------------------------------------


class _Answer(NamedTuple):
    kind: int
    flags: int
    sequence: int
    body: bytes

    @property
    def error(self) -> int:
        return -int(struct.unpack_from("=i", self.body)[0])


@contextmanager
def _prepared(sock: HasFileno | int) -> Iterator[socket.socket]:
    """The same socket by a descriptor of our own, with answers that explain themselves."""
    fd = os.dup(sock if isinstance(sock, int) else sock.fileno())
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER, fileno=fd) as link:
        link.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        link.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        yield link


def _send(link: socket.socket, packet: bytes) -> None:
    """The kernel has done all of it, and answered, when this returns."""
    if len(packet) + 1024 > link.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
        try:
            link.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, len(packet))
        except PermissionError:  # up to the limit, net.core.wmem_max
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(packet))
    link.send(packet)


def _answers(link: socket.socket) -> Iterator[_Answer]:
    """All that are there. Where too many errors came the last ones are lost, never the first."""
    for _ in range(_MOST_ANSWERS):
        try:
            yield from _received(link, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                raise


def _received(link: socket.socket, flags: int) -> list[_Answer]:
    """Those of one datagram; none if somebody else than the kernel sent it."""
    raw, sender = link.recvfrom(_BUFFER, flags)
    if sender[0] != _KERNEL:
        return []
    found: list[_Answer] = []
    at = 0
    while at + nftmsg.HEADER.size <= len(raw):
        length, kind, more, sequence, _ = nftmsg.HEADER.unpack_from(raw, at)
        if length < nftmsg.HEADER.size:
            break
        body = raw[at + nftmsg.HEADER.size : at + length]
        found.append(_Answer(kind, more, sequence, body))
        at += length + -length % 4
    return found


def _refusal(answer: _Answer, messages: Sequence[Message]) -> OSError:
    """struct nlmsgerr: the error, the header it is about, and what the kernel has to say."""
    said = ""
    if answer.flags & _ACK_TLVS:
        skipped = nftmsg.HEADER.size
        if not answer.flags & _CAPPED:
            skipped = struct.unpack_from("=I", answer.body, 4)[0]
        known = dict(nftmsg.attributes(answer.body[4 + skipped :]))
        said = known.get(_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace")
    number = answer.sequence
    reason = f"{os.strerror(answer.error)}{f' ({said})' if said else ''}"
    if not 1 <= number <= len(messages):  # the batch as a whole
        return OSError(answer.error, reason, f"{len(messages)} changes of nf_tables")
    return OSError(answer.error, f"{reason}, in change {number} of {len(messages)}",
                   messages[number - 1].command)  # fmt: skip
