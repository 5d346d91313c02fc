# SPDX-License-Identifier: Apache-2.0
"""Limits of a cgroup that is not a sandbox's plan: checked, and written all or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nsbox import interrupts, probe
from nsbox import limits as files
from nsbox.errors import SetupError, SpecError, Unavailable
from nsbox.hierarchy import NET_PRIO
from nsbox.spec import Limits

if TYPE_CHECKING:
    from nsbox.cgroup import Cgroup
    from nsbox.hierarchy import Parents
    from nsbox.limits import Setting


def check(
    limits: Limits, where: Parents, spare_pids: int = 0, *, late: bool = False
) -> list[Setting]:
    """The files of *limits* for a cgroup in *where*; *late*: for one that is there.

    Raises:
        SpecError: one is not a cgroup's to enforce.
        Unavailable: one cannot be enforced there.
    """
    if not isinstance(limits, Limits):
        raise SpecError("limits", f"{limits!r} is not a Limits")
    files.check_only_cgroup(limits)
    host = probe.host()
    host = replace(host, controllers=where.controllers, cgroup_version=where.version,
                   cgroup2=bool(where.of("unified")),
                   net_prio=host.net_prio and NET_PRIO in dict(where.directories))  # fmt: skip
    wanted = files.settings(limits, spare_pids=spare_pids, net_prio=host.net_prio)
    for setting in wanted:
        why, hint = files.why_not(setting.limit, host)
        if why and late and not files.why_not(setting.limit, probe.host())[0]:
            why, hint = files.not_from_the_start(setting.limit), ""
        if why:
            raise Unavailable(f"limits.{setting.limit}", why, hint=hint)
    return wanted


def apply(cgroup: Cgroup, wanted: list[Setting]) -> None:
    """All of these files, or none of them. Read first, all: on v1 swap is counted with memory."""
    with interrupts.Held():
        before = [setting._replace(value=cgroup.get(setting.file))
                  for setting in wanted if setting.file in files.RESTORABLE]  # fmt: skip
        try:
            write(cgroup, wanted)
        except SetupError:
            for setting in before:
                try:
                    cgroup.set(setting.file, setting.value)
                except OSError:  # it was so before: only what is used since can hinder it
                    pass
            raise


def write(cgroup: Cgroup, wanted: list[Setting]) -> None:
    """Write them in order.

    Raises:
        SetupError: the kernel refused one.
    """
    for step, setting in enumerate(wanted):
        try:
            cgroup.set(setting.file, setting.value)
        except OSError as e:
            raise SetupError(
                e.errno or 0, step=step, name="limit", call="write",
                detail=f"{setting.file}={setting.value}", field=f"limits.{setting.limit}",
                hint=getattr(e, "hint", ""),
            ) from e  # fmt: skip
