# SPDX-License-Identifier: Apache-2.0
"""Who a sandbox is in its network: its host name, and the files of /etc that say who is who.

They are made before its plan, which has their paths, and are there until it has ended. Those of a
pod are its containers', those of a sandbox also of whoever shares its network.
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nsbox import etc, hostsfile, launcher, netspec, probe, rootpath
from nsbox.checks import is_in
from nsbox.errors import SpecError
from nsbox.profile import PROFILES
from nsbox.registry import directory
from nsbox.spec import NetFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nsbox.lease import Lease
    from nsbox.netspec import HostAlias
    from nsbox.spec import Spec

HOSTS, HOSTNAME, RESOLV = "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"
_NAMELESS = "sandbox"
_MOST_NAME = 63
_OTHERS = ("/dev", "/proc", "/sys")
_NO_LABEL = re.compile(r"[^A-Za-z0-9]+")
#: Debian's, for a host's own name where it has no address that stays.
_OWN = ipaddress.ip_address("127.0.1.1")


class Identity:
    """Of one sandbox, or of one pod.

    Attributes:
        hostname: None where it has the host's.
        names: by which the others of its network find it.
        files: where a file is inside -> where it is on the host.
        asked: where a file is inside -> the argument that wants it there.
        place: in a network, its own or that of whom it shares it with; None without one.
    """

    def __init__(
        self,
        hostname: str | None = None,
        names: Iterable[str] = (),
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.hostname, self.names = hostname, tuple(names)
        self.files = dict(files or {})
        self.asked: dict[str, str] = {}
        self.place: Lease | None = None
        self._copies: dict[str, str] = {}
        self._undo = ExitStack()

    def callback(self, undo: Callable[..., Any], *args: Any) -> None:
        """At its end."""
        self._undo.callback(undo, *args)

    def write(self, where: str, text: str) -> None:
        """A file of its own."""
        self.files[where] = path = _new_path(os.path.basename(where))
        self._undo.callback(hostsfile.remove, path)
        write(path, text)

    def furnish(self, spec: Spec) -> Spec:
        """*spec* with its name and its files, which have to be there in a root that is not ours.

        Raises:
            SpecError: one that was asked for can have no place there.
        """
        taken = {mount.dst for mount in spec.mounts}
        files = []
        for where, path in self.files.items():
            if where in taken:  # the caller's own is over it
                continue
            at = rootpath.leads_to(spec.root, where)
            if _has_room(spec, at):
                path = self._copy(path) if _may_write(spec) else path
                files.append(NetFile(path, where, at, where in self.asked))
            elif where in self.asked:
                raise SpecError(self.asked[where], f"the root has no {where} of its own for it")
        return replace(spec, hostname=self.hostname, net_files=tuple(files))

    def _copy(self, path: str) -> str:
        """For who could write to what is the whole network's."""
        if path not in self._copies:
            copy = _new_path(f"own-{os.path.basename(path)}")
            self._undo.callback(hostsfile.remove, copy)
            write(copy, hostsfile.text_of(path))
            self._copies[path] = copy
        return self._copies[path]

    def close(self) -> None:
        """Idempotent."""
        self._undo.close()


def _may_write(spec: Spec) -> bool:
    """An ordinary user's files are its sandboxes' too: a read-only mount of one can be made
    writable with CAP_SYS_ADMIN. Root's are not those of a sandbox with ids of its own."""
    names = PROFILES[spec.profile].capabilities if spec.capabilities is None else spec.capabilities
    return (names is None or "SYS_ADMIN" in names) and not probe.host().privileged


def _has_room(spec: Spec, at: str) -> bool:
    """Not where something of nsbox's will be; /etc/hosts may lead to /dev/null."""
    root = spec.root
    if root.kind == "inherit" or any(is_in(at, one) for one in _OTHERS):
        return False  # the first is left as it is
    if root.kind == "dir" and root.ro:
        path = root.path + at
        hidden = is_in(at, "/tmp") or any(is_in(at, mount.dst) for mount in spec.mounts)
        return os.path.isfile(path) and not os.path.islink(path) and not hidden
    return True


def _new_path(kind: str) -> str:
    return f"{directory()}/{launcher.current().entry.name()}-{kind}"


def write(path: str, text: str) -> None:
    """A new file, which every user inside reads, whatever the caller's umask."""
    with open(path, "x") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)


# -- names ------------------------------------------------------------------------------------


def published(name: str) -> bool:
    """Whether others can find it by that: it is a host name, and none that every host has."""
    return name not in etc.LOCAL_NAMES and _fits(name)


def _fits(name: str) -> bool:
    return len(name) <= _MOST_NAME and netspec.is_host_name(name)


def host_name(name: str) -> str:
    """*name* as a host name: ``my_box`` is ``my-box``."""
    if _fits(name):
        return name
    return _NO_LABEL.sub("-", name).strip("-")[:_MOST_NAME].rstrip("-") or _NAMELESS


def may_be_named(spec: Spec) -> bool:
    """It has a host name that is its own to have, and an /etc in which that can be found."""
    kinds = PROFILES[spec.profile].namespaces if spec.namespaces is None else spec.namespaces
    return "uts" in kinds and spec.root.kind != "inherit"


class HostNames:
    """Those that are in use in one network, each with its /etc/hostname."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()
        self._prefix = _new_path("hostname")

    def take(self, name: str) -> str:
        """*name* itself, which others may have as well: the caller wants it."""
        with self._lock:
            return self._take(name)

    def take_new(self, name: str) -> str:
        """*name*, or one like it that nobody else has."""
        with self._lock:
            number, free, stem = 1, name, name[: _MOST_NAME - 9].rstrip("-.")
            while self._used[free]:
                number += 1
                free = f"{stem}-{number}"
            return self._take(free)

    def _take(self, name: str) -> str:
        if not self._used[name]:
            write(self.path(name), f"{name}\n")
        self._used[name] += 1
        return name

    def path(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def give(self, name: str) -> None:
        with self._lock:
            self._used[name] -= 1
            if not self._used[name]:
                del self._used[name]
                hostsfile.remove(self.path(name))

    def close(self) -> None:
        with self._lock:
            for name in self._used:
                hostsfile.remove(self.path(name))
            self._used.clear()


# -- without a network of ours ----------------------------------------------------------------


def alone(hostname: str | None, aliases: tuple[HostAlias, ...] = ()) -> Identity:
    """Of who has no network but a loopback."""
    one = Identity(hostname)
    if aliases:
        own = [etc.host_line(_OWN, hostname)] if hostname else []
        _write_hosts(one, etc.hosts(own, aliases), aliases)
    return one


def of_host(hostname: str | None, aliases: tuple[HostAlias, ...] = ()) -> Identity:
    """Of who has the host's network, and finds names as the host does: with a name of its own, in
    a copy of the host's file."""
    files = {where: where for where in (HOSTS, RESOLV) if os.path.isfile(where)}
    one = Identity(hostname, files=files)
    if hostname is None and not aliases:
        return one
    text = hostsfile.text_of(HOSTS)
    known = {word for line in text.splitlines() for word in line.partition("#")[0].split()[1:]}
    if hostname and hostname not in known:
        text = f"{text.rstrip()}\n{etc.host_line(_OWN, hostname)}"
    _write_hosts(one, text + etc.alias_lines(aliases), aliases)
    return one


def _write_hosts(one: Identity, text: str, aliases: tuple[HostAlias, ...]) -> None:
    try:
        one.write(HOSTS, text)
        if one.hostname:
            one.write(HOSTNAME, f"{one.hostname}\n")
    except BaseException:
        one.close()
        raise
    if aliases:
        one.asked[HOSTS] = "host_aliases"
