# SPDX-License-Identifier: Apache-2.0
"""Steps about what the payload may ask of the kernel: Landlock's scopes, the filter of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox import seccomp
from nsbox.creds import kept_capabilities
from nsbox.errors import Unavailable
from nsbox.names import Opcode, Scope, capability_mask
from nsbox.steps import Filter, Number

if TYPE_CHECKING:
    from nsbox.build import Build

#: The ABI of Landlock that has scopes: Linux 6.12.
_SCOPED = 6
#: Namespace -> what of the host is in reach where it is shared, and the scope against that.
_SCOPES = {
    "net": ("abstract sockets", Scope.ABSTRACT_UNIX_SOCKET),
    "pid": ("signals", Scope.SIGNAL),
}
#: Sockets that a capability is for, where somebody asked for that.
_SOCKETS_OF = {"NET_RAW": "PACKET", "NET_ADMIN": "NETLINK"}


def add_scopes(build: Build) -> None:
    """Only where a namespace is the caller's: another process of the sandbox, which ``exec``
    starts, is in a domain beside this one, and no less outside of it than the host."""
    shared = [_SCOPES[kind] for kind in _SCOPES if not build.own(kind)]
    if not (build.profile.scopes and shared):
        return
    scoped = build.host.landlock >= _SCOPED
    for what, _ in shared:
        build.applied[what] = (
            "its own only, by Landlock" if scoped
            else "missing: the host's are in reach; Landlock has scopes since Linux 6.12"
        )  # fmt: skip
    if scoped:
        detail = f"{', '.join(what for what, _ in shared)}: its own only"
        scopes = sum(scope for _, scope in shared)
        build.add(Number(Opcode.LANDLOCK, "landlock", detail, scopes, "profile"))


def _rules(build: Build) -> seccomp.Rules | None:
    profile = build.profile
    if profile.sockets is None:
        return None
    kept = kept_capabilities(build)
    more = (what for name, what in _SOCKETS_OF.items() if kept & capability_mask((name,)))
    return seccomp.Rules((*profile.sockets, *more), profile.absent, profile.foreign)


def add_filter(build: Build) -> None:
    """The last step before execve: of what set-up does, it may forbid all but that.

    Raises:
        Unavailable: no filter can be loaded here, and best_effort was not asked for.
    """
    rules = _rules(build)
    if rules is None:
        return
    if not build.host.seccomp:
        why = "no filter of system calls can be loaded here"
        if not build.spec.best_effort:
            raise Unavailable("seccomp", why, alternatives=("best_effort=True", 'profile="none"'),
                              hint="`nsbox doctor` says what stands in the way")  # fmt: skip
        build.applied["seccomp"] = f"missing: {why}"
        return
    detail = f"sockets: {', '.join(rules.sockets)}; no {', '.join(rules.absent)}"
    build.add(Filter(seccomp.program(build.host.machine, rules), detail, "profile"))
    build.applied["seccomp"] = detail
