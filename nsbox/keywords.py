# SPDX-License-Identifier: Apache-2.0
"""From the keywords of ``run()`` to a ``Spec``: each is checked, and errors name it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nsbox import units
from nsbox.checks import (
    Path,
    choice,
    container_path,
    elements,
    file_data,
    flag,
    known_keywords,
    text,
)
from nsbox.errors import SpecError
from nsbox.names import CAPABILITIES, NAMESPACES, RLIMITS
from nsbox.spec import Limits, Mount, NetLabel, Rootfs, Spec

if TYPE_CHECKING:
    from nsbox.netspec import Dns, Publish

_HOSTNAME = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_ID = re.compile(r"(0|[1-9][0-9]{0,9})(?::(0|[1-9][0-9]{0,9}))?", re.ASCII)
_MAX_ID = 0xFFFFFFFE


def _args(args: Any, optional: bool = False) -> tuple[str, ...]:
    if isinstance(args, (str, bytes)):
        raise TypeError('args must be a list; use ["sh", "-c", "ls -l"] or shlex.split()')
    if optional and (args is None or (isinstance(args, Sequence) and not args)):
        return ()
    if not isinstance(args, Sequence) or not args:
        raise SpecError("args", "must be a list with at least the program")
    result = tuple(text(arg, f"args[{i}]") for i, arg in enumerate(args))
    if not result[0]:
        raise SpecError("args[0]", "is empty")
    return result


def _env(env: Mapping[str, str] | None) -> tuple[tuple[str, str], ...] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise SpecError("env", "must be a mapping of names to values")
    pairs = []
    for key, value in env.items():
        name = text(key, "env")
        if not name or "=" in name:
            raise SpecError("env", f"{name!r} is not a name of a variable")
        pairs.append((name, text(value, f"env[{name!r}]")))
    return tuple(pairs)


def _user(user: int | str | None) -> tuple[int | None, int | None]:
    if user is None:
        return None, None
    match = _ID.fullmatch(str(user)) if not isinstance(user, bool) else None
    ids = [int(part) for part in match.groups() if part] if match else []
    if not ids or max(ids) > _MAX_ID:
        raise SpecError("user", f'{user!r} is not a user; use 1000 or "1000:1000"')
    return ids[0], ids[-1]


def _namespaces(names: Sequence[str] | None, net: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    wanted = elements(names, "namespaces")
    for name in wanted:
        if not isinstance(name, str) or name not in NAMESPACES:
            raise SpecError("namespaces", f"{name!r} is none of {', '.join(NAMESPACES)}")
    if _has_network(net) and "net" not in wanted:  # it would be in the host's, and without rules
        raise SpecError("namespaces", 'a Bridge or a Network (net=) needs "net" among them')
    return tuple(name for name in NAMESPACES if name in wanted)


def _files(files: Mapping[str, Any] | None) -> tuple[tuple[str, bytes, int], ...]:
    """Contents by name; a Path was read before (``run.read_files``), as (content, mode)."""
    if files is None:
        return ()
    if not isinstance(files, Mapping):
        raise SpecError("files", "must be a mapping of names to contents")
    result = []
    for name, value in files.items():
        where = f"files[{name!r}]"
        path = container_path("/" + text(name, where), where)[1:]
        if not path or text(name, where).startswith("/"):
            raise SpecError(where, "must be a relative path of a file")
        mode = None
        if isinstance(value, tuple) and len(value) == 2:
            value, mode = value
        content, default = file_data(value, where)
        mode = default if mode is None else units.count(mode, where, most=0o7777)
        result.append((path, content, mode))
    return tuple(result)


def _rlimits(rlimits: Mapping[str, Any] | None) -> tuple[tuple[str, int, int], ...]:
    result = []
    if not isinstance(rlimits, (Mapping, type(None))):
        raise SpecError("rlimits", "must be a mapping of names to limits")
    for name, value in (rlimits or {}).items():
        where = f"rlimits[{name!r}]"
        if name not in RLIMITS:
            raise SpecError(where, f"is none of {', '.join(RLIMITS)}")
        pair = value if isinstance(value, tuple) else (value, value)
        if len(pair) != 2:
            raise SpecError(where, "must be a number, or a tuple of soft and hard")
        soft, hard = pair
        units.count(soft, where, most=(1 << 64) - 1)
        units.count(hard, where, least=soft, most=(1 << 64) - 1)
        result.append((name, soft, hard))
    return tuple(result)


def _capabilities(names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    several = elements(names, "capabilities")
    wanted = {str(name).upper().removeprefix("CAP_") for name in several}
    for name in sorted(wanted - set(CAPABILITIES)):
        raise SpecError("capabilities", f"{name!r} is not a capability")
    return tuple(name for name in CAPABILITIES if name in wanted)


def _hostname(value: str | None) -> str | None:
    if value is None:
        return None
    name = text(value, "hostname")
    if len(name) > 64 or not _HOSTNAME.fullmatch(name):
        raise SpecError(
            "hostname", f"{name!r} is not a host name of at most 64 letters, digits, - and ."
        )
    return name


def _root(root: Any) -> Rootfs:
    if root is None:
        return Rootfs()
    if isinstance(root, (str, os.PathLike)):
        return Rootfs.dir(root)
    if not isinstance(root, Rootfs):
        raise SpecError("root", f"{root!r} is not a Rootfs")
    return root


def _time_offsets(offsets: Mapping[str, float] | None) -> tuple[tuple[str, int], ...]:
    """Clock -> nanoseconds that it is ahead, in the order of the kernel."""
    if not isinstance(offsets, (Mapping, type(None))):
        raise SpecError("time_offsets", "must be a mapping of clocks to seconds")
    result = []
    for clock, value in (offsets or {}).items():
        where = f"time_offsets[{clock!r}]"
        if clock not in ("monotonic", "boottime"):
            raise SpecError(where, "the clocks are monotonic and boottime")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(where, f"{value!r} is not a number of seconds")
        if not abs(value) < 1 << 32:  # nan is none of them
            raise SpecError(where, f"{value!r} is more than 136 years")
        result.append((clock, round(value * 10**9)))
    return tuple(result)


def _pty(value: Any) -> tuple[int, int] | None:
    if value is None or isinstance(value, bool):
        return (24, 80) if value else None
    size = elements(value, "pty")
    if len(size) != 2:
        raise SpecError("pty", f"{value!r}: use True, or (rows, columns)")
    return (units.count(size[0], "pty", least=1, most=0xFFFF),
            units.count(size[1], "pty", least=1, most=0xFFFF))  # fmt: skip


#: Devices by name -> their nodes on the host; a pattern stands for every one that is there.
DEVICES = {
    "fuse": ("/dev/fuse",),
    "gpu": ("/dev/nvidia*", "/dev/dri/*", "/dev/kfd"),
    "kvm": ("/dev/kvm",),
    "tun": ("/dev/net/tun",),
}


def _devices(names: Any) -> tuple[tuple[str, str, int], ...]:
    """(name, node, device number); the last two are found later, by ``probe.device_nodes``."""
    result = []
    for name in elements(names, "devices"):
        if not isinstance(name, str) or name not in DEVICES:
            raise SpecError("devices", f"{name!r} is none of {', '.join(DEVICES)}")
        result.append((name, "", 0))
    return tuple(dict.fromkeys(result))


def _net(net: Any) -> str:
    label = getattr(net, "label", net)
    if isinstance(label, NetLabel):
        return label
    if net in ("none", "host"):
        return str(net)
    raise SpecError(
        "net", f'{net!r}: use "none", "host", a Bridge, a Network, a Pod or a Namespace'
    )


def _has_network(net: Any) -> bool:
    """It is one that nsbox makes for this sandbox, not one that is there already."""
    label = getattr(net, "label", net)
    return isinstance(label, NetLabel) and not label.joined


def _of_network(net: Any, field: str) -> None:
    if not _has_network(net):
        raise SpecError(field, "is of a sandbox with a network: net= a Bridge or a Network")


class Allow:
    """What a sandbox may reach of its network, and nothing else: ``egress=Allow(...)``.

    Each of *entries* is an address or a network, with a port (of TCP, or ``/udp``) or ports, as
    ``"10.0.0.0/8"``, ``"192.0.2.7:443"``, ``"[2001:db8::1]:443"``, ``"192.0.2.53:53/udp"``,
    ``"10.1.0.0/16:8000-8080"`` or ``":443"``. Without any, nothing is reached. Who connects to the
    sandbox gets answers.

    Raises:
        SpecError: an entry cannot be read.
    """

    __slots__ = ("entries",)

    def __init__(self, *entries: str) -> None:
        from nsbox.netallow import parse_allow

        self.entries = tuple(str(parse_allow(text, f"egress[{i}]"))
                             for i, text in enumerate(entries))  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allow) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        return f"Allow({', '.join(map(repr, self.entries))})"


def _publish(publish: Any, net: Any) -> tuple[Publish, ...]:
    if not publish:
        return ()
    from nsbox.netspec import parse_publish

    _of_network(net, "publish")
    return parse_publish(publish, "publish")


def _address(address: Any, net: Any) -> str | None:
    if address is None:
        return None
    from nsbox.netspec import parse_address

    _of_network(net, "address")
    return str(parse_address(address, "address"))


def _dns(dns: Any, net: Any) -> Dns | None:
    if dns is None:
        return None
    from nsbox.netspec import parse_dns

    _of_network(net, "dns")
    return parse_dns(dns, "dns")


def _egress(egress: Any, net: Any) -> tuple[str, ...] | None:
    if egress is None:
        return None
    _of_network(net, "egress")
    if not isinstance(egress, Allow):
        raise SpecError("egress", f'{egress!r}: use Allow("10.0.0.0/8", "192.0.2.7:443")')
    return egress.entries


def make_spec(
    args: Any,
    *,
    root: Any = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: int | str | None = None,
    groups: Sequence[int] = (),
    capabilities: Sequence[str] | None = None,
    hostname: str | None = None,
    mounts: Sequence[Mount] = (),
    files: Mapping[str, Any] | None = None,
    net: Any = "none",
    egress: Any = None,
    publish: Any = (),
    address: Any = None,
    dns: Any = None,
    limits: Limits | None = None,
    namespaces: Sequence[str] | None = None,
    init: bool = True,
    profile: str = "strict",
    proc: str | None = None,
    rlimits: Mapping[str, Any] | None = None,
    pass_fds: Sequence[int] = (),
    umask: int = 0o022,
    pty: Any = False,
    devices: Sequence[Any] = (),
    best_effort: bool = False,
    time_offsets: Mapping[str, float] | None = None,
) -> Spec:
    """A checked ``Spec`` of ``run()``'s keywords.

    Raises:
        SpecError: naming the keyword whose value is wrong.
        TypeError: args is a string.
    """
    uid, gid = _user(user)
    several = elements(mounts, "mounts")
    for i, mount in enumerate(several):
        if not isinstance(mount, Mount):
            raise SpecError(f"mounts[{i}]", f"{mount!r} is not a Mount")
        if mount.dst == "/":
            raise SpecError(f"mounts[{i}]", "/ is for root= to say")
    if limits is not None and not isinstance(limits, Limits):
        raise SpecError("limits", f"{limits!r} is not a Limits")
    where = _root(root)
    has_command = any(layer.kind == "oci" for layer in (where, *where.layers))
    return Spec(
        args=_args(args, has_command),
        root=where,
        cwd=None if cwd is None else container_path(cwd, "cwd"),
        env=_env(env),
        uid=uid,
        gid=gid,
        groups=tuple(units.count(g, "groups", most=_MAX_ID) for g in elements(groups, "groups")),
        capabilities=_capabilities(capabilities),
        hostname=_hostname(hostname),
        mounts=several,
        files=_files(files),
        net=_net(net),
        egress=_egress(egress, net),
        publish=_publish(publish, net),
        address=_address(address, net),
        dns=_dns(dns, net),
        limits=limits or Limits(),
        namespaces=_namespaces(namespaces, net),
        init=flag(init, "init"),
        profile=choice(profile, "profile", ("strict", "standard", "none")),
        proc=choice(proc, "proc", (None, "pids", "full", "none")),
        rlimits=_rlimits(rlimits),
        pass_fds=tuple(
            units.count(fd, "pass_fds", most=1023) for fd in elements(pass_fds, "pass_fds")
        ),
        umask=units.count(umask, "umask", most=0o777),
        pty=_pty(pty),
        devices=_devices(devices),
        best_effort=flag(best_effort, "best_effort"),
        time_offsets=_time_offsets(time_offsets),
    )


def spec_of(args: Any, keywords: Mapping[str, Any], call: str) -> Spec:
    """``make_spec`` for *call*, the function that the user called with these."""
    known_keywords(call, keywords, make_spec)
    return make_spec(args, **keywords)


def another_process(
    base: Spec,
    args: Any,
    *,
    user: int | str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pty: Any = False,
) -> Spec:
    """One more process of a sandbox: *base* with another command, and what else is given.

    *env* comes on top of the sandbox's own; another *user* has none of its supplementary groups;
    a terminal it has only by *pty*. Of the limits, those of each process and each stream are its.
    """
    uid, gid = _user(user)
    return replace(
        base,
        args=_args(args),
        env=(*(base.env or ()), *(_env(env) or ())),
        uid=base.uid if user is None else uid,
        gid=base.gid if user is None else gid,
        groups=base.groups if user is None else (),
        cwd=base.cwd if cwd is None else container_path(cwd, "cwd"),
        init=False,
        pty=_pty(pty),
        pass_fds=(),
        limits=Limits(nofile=base.limits.nofile, output=base.limits.output),
    )
