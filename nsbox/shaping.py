# SPDX-License-Identifier: Apache-2.0
"""Shaping: how fast packets leave a link, how late, how many get lost, and whose go first.

What is shaped is what *leaves* one end of a link, for that is where packets wait. Kernel: tc(8),
with the queueing disciplines tc-tbf(8) for a rate, tc-netem(8) for delay and loss, tc-htb(8) for
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nsbox import rtnl, units
from nsbox.errors import SpecError

if TYPE_CHECKING:
    from nsbox.rtnl import Queue, Request, Rtnl

_HEADER = 14  # bytes of Ethernet, which a link's MTU does not count
_LATENCY_S = 0.05
_BURST_S = 0.01
_MOST_S = 4.0  # the field has 32 bits of ns
_MOST_BYTES = 0xFFFFFFFF  # of a burst or a queue; as many packets
_NETEM_PACKETS = 1000  # tc's own default
_SMALL = 500  # bytes; netem counts packets, so the queue is long enough for some this small
_HTB = 1 << 16
#: Handles of the disciplines at the root: a new one takes the place of the present one at once.
_ROOTS = (2 << 16, 3 << 16)
_BRIEF = 4 << 16
_WHOLE = _HTB | 0xFFFF  # the class of all others, which they borrow from


@dataclass(frozen=True)
class Shape:
    """What happens to packets that leave an end of a link.

    Attributes:
        rate: bits a second, with the Ethernet header; 0 for no limit.
        burst: bytes that may leave at once; 0 for what 10 ms take, and two packets at least.
        latency: seconds that a packet waits for the rate at most; then it is dropped.
        delay: seconds that each packet comes later.
        jitter: seconds by which that varies, more or less.
        loss: the share that is lost, 0.0 to 1.0.
    """

    rate: int = 0
    burst: int = 0
    latency: float = _LATENCY_S
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0

    def __str__(self) -> str:
        parts = [units.format_rate(self.rate)] if self.rate else []
        if self.delay:
            jitter = f"±{units.format_time(self.jitter)}" if self.jitter else ""
            parts.append(units.format_time(self.delay) + jitter)
        if self.loss:
            parts.append(f"{self.loss * 100:g}% loss")
        return ", ".join(parts)


def make_shape(
    rate: Any = None,
    *,
    burst: Any = None,
    latency: Any = None,
    delay: Any = None,
    jitter: Any = None,
    loss: Any = None,
) -> Shape:
    """Of what users write: ``"8Mbit"``, ``"16KiB"``, ``"50ms"``, ``"1%"``.

    Raises:
        SpecError: a value is wrong, or of something that is not asked for.
    """
    for name, value in (("burst", burst), ("latency", latency)):
        if rate is None and value is not None:
            raise SpecError(name, "is of a rate=")
    if jitter is not None and delay is None:
        raise SpecError("jitter", "is of a delay=")
    if rate is None and delay is None and loss is None:
        raise SpecError("rate", "say what to do: rate=, delay= or loss=")
    times = {name: units.time_s(value, name, zero=name != "latency") for name, value in
             (("latency", latency), ("delay", delay), ("jitter", jitter))
             if value is not None}  # fmt: skip
    for name, seconds in times.items():
        if seconds > _MOST_S:
            raise SpecError(name, f"{seconds:g} s are more than {_MOST_S:g}")
    shape = Shape(
        0 if rate is None else units.rate_bits(rate, "rate", least=1000),
        0 if burst is None else units.size_bytes(burst, "burst", least=1),
        loss=0.0 if loss is None else units.share(loss, "loss"),
        **times,
    )
    _check_queue(shape)
    return shape


def _check_queue(shape: Shape) -> None:
    """The kernel counts the bytes of both in 32 bits; tc(8) leaves out what is above."""
    per_second = shape.rate // 8
    burst = shape.burst or round(per_second * _BURST_S)
    if burst > _MOST_BYTES:
        said = f"{shape.burst} bytes" if shape.burst else f"{_BURST_S:g} s of the rate"
        raise SpecError("burst", f"{said}: must be less than 4 GiB")
    if burst + round(per_second * shape.latency) > _MOST_BYTES:
        most = units.format_time((_MOST_BYTES - burst) / per_second)
        said = f"{units.format_time(shape.latency)} of the rate, and the burst"
        raise SpecError("latency", f"{said}: must be less than 4 GiB, use at most {most}")


def _tbf(shape: Shape, mtu: int) -> dict[str, int]:
    per_second = shape.rate // 8
    packet = mtu + _HEADER
    if 0 < shape.burst < packet:
        raise SpecError("burst", f"{shape.burst} bytes: a packet of {packet} would never leave")
    burst = shape.burst or max(round(per_second * _BURST_S), 2 * packet)
    return {"rate": per_second, "burst": burst, "limit": round(per_second * shape.latency) + burst}


def _netem(shape: Shape) -> dict[str, int]:
    packets = _NETEM_PACKETS
    if shape.rate:
        waits = shape.delay + shape.jitter + shape.latency
        packets = min(max(100, round(shape.rate / 8 * waits / _SMALL)), _MOST_BYTES)
    return {
        "delay": round(shape.delay * 1e9),
        "jitter": round(shape.jitter * 1e9),
        "loss": round(shape.loss * 0xFFFFFFFF),
        "limit": packets,
    }


def requests(shape: Shape, index: int, mtu: int, root: int) -> list[list[Request]]:
    """What puts *shape* in the place of the discipline *root* (its handle) of a link, in turns:
    each is only asked for when the one before was done."""
    handle = next(one for one in _ROOTS if one != root)

    def at_root(kind: str, handle: int, **fields: int) -> Request:
        return rtnl.queue("replace", "qdisc", index, kind, handle=handle, **fields)

    netem = _netem(shape) if shape.delay or shape.loss else None
    if not shape.rate:
        return [[at_root("netem", handle, **(netem or _netem(shape)))]]
    tbf = at_root("tbf", handle, **_tbf(shape, mtu))
    if netem is None:
        return [[tbf]]
    # First alone, for a moment: a kernel without it refuses before anything has changed. Then
    # below the rate, not above it: packets that tbf cuts in pieces would fill netem's count of
    # its own for ever (mended in Linux 6.13).
    child = rtnl.queue("add", "qdisc", index, "netem", parent=handle | 1, **netem)
    return [[at_root("netem", _BRIEF, **netem)], [tbf, child]]


def root_of(route: Rtnl, index: int) -> Queue | None:
    """The discipline at the root, if somebody has set one: the kernel's own have no handle."""
    found = [one for one in route.queues(index) if one.parent == rtnl.ROOT and one.handle]
    return found[0] if found else None


def apply(route: Rtnl, name: str, shape: Shape) -> None:
    """Shape the link *name* of the namespace of *route*: see ``Interface.shape``."""
    link = route.link(name)
    root = root_of(route, link.ifindex)
    for turn in requests(shape, link.ifindex, link.mtu, root.handle if root else 0):
        route.do(*turn)


def clear(route: Rtnl, name: str) -> None:
    """Undo it, and classes too; idempotent."""
    index = route.link(name).ifindex
    root = root_of(route, index)
    if root is not None:
        route.do(_delete(root))


def _delete(root: Queue) -> Request:
    return rtnl.queue("delete", "qdisc", root.ifindex, root.type, handle=root.handle)


# -- classes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrafficClass:
    """A share of a link, for the packets of some: see ``Interface.classes``.

    Attributes:
        rate: what it gets in any case, as ``"2Mbit"``.
        ceil: the most that it gets when others leave something; None for all of the link.
        priority: who is first served with what is left, 0 (the first) to 7.

    Raises:
        SpecError: a value is wrong.
    """

    rate: Any
    ceil: Any = None
    priority: int = 0

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "rate", units.rate_bits(self.rate, "rate", least=1000))
        if self.ceil is not None:
            put(self, "ceil", units.rate_bits(self.ceil, "ceil", least=1000))
            if self.ceil < self.rate:
                raise SpecError("ceil", f"{self.ceil} is less than the rate, {self.rate}")
        units.count(self.priority, "priority", most=7)


def class_requests(
    index: int, mtu: int, rate: int, classes: Mapping[int, TrafficClass], default: int
) -> list[Request]:
    """What makes htb with these classes the root of a link that has none."""
    burst = min(max(round(rate / 8 * _BURST_S), 2 * (mtu + _HEADER)), _MOST_BYTES)

    def add(handle: int, parent: int, share: TrafficClass) -> Request:
        return rtnl.queue("add", "class", index, "htb", parent=parent, handle=handle,
                          rate=share.rate // 8, ceil=(share.ceil or rate) // 8,
                          burst=burst, priority=share.priority)  # fmt: skip

    return [
        rtnl.queue("add", "qdisc", index, "htb", handle=_HTB, other=default & 0xFFFF),
        add(_WHOLE, _HTB, TrafficClass(rate)),
        *(add(handle, _WHOLE, share) for handle, share in classes.items()),
    ]


def apply_classes(route: Rtnl, name: str, rate: Any, classes: Any, default: Any) -> None:
    """See ``Interface.classes``."""
    bits = units.rate_bits(rate, "rate", least=1000)
    if not isinstance(classes, Mapping) or not classes:
        raise SpecError("classes", 'must be a mapping such as {"1:10": TrafficClass("2Mbit")}')
    wanted: dict[int, TrafficClass] = {}
    for key, share in classes.items():
        where = f"classes[{key!r}]"
        if not isinstance(share, TrafficClass):
            raise SpecError(where, f"{share!r} is not a TrafficClass")
        if (share.ceil or share.rate) > bits:
            raise SpecError(where, f"is more than the whole, {units.format_rate(bits)}")
        number = _class_of_ours(key, where)
        if number in wanted:
            raise SpecError(where, "is there twice: it is the same class in other letters")
        wanted[number] = share
    if _class_of_ours(default, "default") not in wanted:
        raise SpecError("default", f"{default!r} is none of the classes")
    given = sum(share.rate for share in wanted.values())
    if given > bits:
        raise SpecError("classes", f"get {units.format_rate(given)} together, of "
                        f"{units.format_rate(bits)}")  # fmt: skip
    link = route.link(name)
    root = root_of(route, link.ifindex)
    made = class_requests(link.ifindex, link.mtu, bits, wanted, units.class_id(default, "default"))
    route.do(*([_delete(root)] if root else []), *made)


def _class_of_ours(value: Any, field: str) -> int:
    number = units.class_id(value, field)
    if number >> 16 != _HTB >> 16 or number == _WHOLE:
        raise SpecError(field, f'{value!r}: use "1:1" to "1:fffe"')
    return number
