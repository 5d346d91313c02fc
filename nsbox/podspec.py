# SPDX-License-Identifier: Apache-2.0
"""What a pod is made of, as values: containers, back-off, states and events."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from nsbox import units, watch
from nsbox.checks import known_keywords
from nsbox.errors import SpecError
from nsbox.keywords import make_spec

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_OF_POD = ("hostname", "namespaces", "net", "dns", "publish", "egress", "address")
POLICIES = ("Always", "OnFailure", "Never")
_MOST_FACTOR = 1000  # its 64th power is still a float


def is_dns_label(name: object) -> bool:
    """RFC 1123: what Kubernetes takes for the name of a pod or a container."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name))


class Clock(Protocol):
    """Time, as restarts see it; tests bring one that they move themselves."""

    def now(self) -> float: ...
    def call_later(self, delay: float, call: Callable[[], None]) -> Any: ...


class MonotonicClock:
    """CLOCK_MONOTONIC, with timers by the library's thread."""

    def now(self) -> float:
        return time.monotonic()

    def call_later(self, delay: float, call: Callable[[], None]) -> watch.Timer:
        return watch.get().call_later(delay, call)


@dataclass(frozen=True)
class Backoff:
    """Seconds before restarts: the first at once, then *initial*, times *factor*, up to *max*.

    The count begins anew after *reset_after* seconds of good running. Kubernetes: 10, 2,
    300, 600.
    """

    initial: float = 10.0
    factor: float = 2.0
    max: float = 300.0
    reset_after: float = 600.0

    def __post_init__(self) -> None:
        for name in ("initial", "factor", "max", "reset_after"):
            units.seconds(getattr(self, name), f"backoff.{name}", zero=True)
        if self.factor > _MOST_FACTOR:
            raise SpecError("backoff.factor", f"{self.factor!r} is more than {_MOST_FACTOR}")

    @classmethod
    def fast(cls) -> Backoff:
        """A sixtieth of Kubernetes' delays: for tests, demonstrations and CI."""
        return cls(10 / 60, 2.0, 5.0, 10.0)

    def delay(self, restarts: int) -> float:
        """Before the restart that follows *restarts* earlier ones."""
        if restarts == 0:
            return 0.0
        return min(self.max, self.initial * self.factor ** min(restarts - 1, 64))


class ContainerSpec:
    """One container of a pod: a name, a command, and the keywords of ``run()``.

    Of the keywords, *hostname*, *namespaces*, *net* and what is said of it (*dns*, *publish*,
    *egress*, *address*) are the pod's to say.
    *restart_policy* overrides the pod's for this container.
    """

    sidecar = False

    def __init__(
        self, name: str, args: Any, *, restart_policy: str | None = None, **keywords: Any
    ) -> None:
        if not is_dns_label(name):
            raise SpecError("containers.name", f"{name!r} is not a DNS label")
        where = f"containers[{name!r}]"
        for key in _OF_POD:
            if key in keywords:
                raise SpecError(f"{where}.{key}", "is the pod's to say")
        known_keywords(type(self).__name__, keywords, make_spec)
        if restart_policy is not None and restart_policy not in POLICIES:
            raise SpecError(f"{where}.restart_policy", f"use one of {', '.join(POLICIES)}")
        self.name, self.args, self.keywords = name, args, keywords
        self.restart_policy = restart_policy


class Sidecar(ContainerSpec):
    """A helper that starts before the containers of the pod and ends after them.

    Put it into ``init_containers``. It is always restarted while the pod lives, and the pod
    is complete without it.
    """

    sidecar = True

    def __init__(self, name: str, args: Any, **keywords: Any) -> None:
        super().__init__(name, args, restart_policy="Always", **keywords)


@dataclass(frozen=True)
class State:
    """Of a container: ``"Waiting"``, ``"Running"`` or ``"Terminated"``, and why.

    *reason* is a word of Kubernetes'; *message* says more, to people.
    """

    name: str
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened to a pod: *at* by its clock, *reason* in Kubernetes' words."""

    at: float
    reason: str
    container: str = ""
    message: str = ""


@dataclass(frozen=True)
class PodStatus:
    """A snapshot: phase, and each container's state and restarts."""

    phase: str
    reason: str
    containers: dict[str, State] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
