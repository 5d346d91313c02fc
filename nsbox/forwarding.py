# SPDX-License-Identifier: Apache-2.0
"""The switch that lets packets pass from one interface to another, while networks need it.

It is one for all networks of a network namespace, and writing it changes the settings of every
interface: ``inet_forward_change`` and ``addrconf_forward_change`` in the kernel. So the first that
needs it writes down what was set, in a file that all who need it share (shared.py), and the last
puts it back. After a kill that is the launcher (csrc/init/shared.c), or the next who looks::

    hold   the shared lock; then one at a time: write down what is set, unless that was done; on
    close  the lock alone, which only the last can have: write down what is to be set, set it,
           remove the file; who is not the last just leaves
    gc     as close, where the lock can be had; so does the launcher of a killed owner

Either list has a mark at its end: killed in between, it is whole or nothing was done yet. A list
of what is to be set was not worked off, then: whoever finds it does that first.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nsbox import later, shared
from nsbox.errors import Unavailable
from nsbox.lent import LentBytes

_CONF = {4: "/proc/sys/net/ipv4/conf", 6: "/proc/sys/net/ipv6/conf"}
_SWITCH = "all/forwarding"  # of IPv4, ip_forward is another name of it
_OTHERS = "default/forwarding"
#: Beside */forwarding, what the switch changes, and how it is when the switch is on.
_SIDE = {4: {"all/accept_redirects": "0"}, 6: {}}
_END = b"\nend\n"
_MOST_TEXT = 1 << 24
_RTF_DEFAULT, _RTF_ADDRCONF = 0x10000, 0x40000  # linux/ipv6_route.h


class Forwarding(shared.Shared):
    """Holds the switch on, in the network namespace of the thread that made it.

    Every user of nsbox there can hold it; after the last, all is as it was before the first. What
    other programs have changed meanwhile stays as they left it. A program that only wants it to
    be on, as docker does, cannot be seen: it finds it off after the last.
    """

    def __init__(self, version: int) -> None:
        super().__init__(f"forwarding{version}")
        self.version = version

    @classmethod
    def hold(cls, version: int = 4) -> Forwarding:
        """Switch it on for IPv4 or IPv6, if it is not, and hold it until ``close``.

        Raises:
            Unavailable: it cannot be written here, or IPv6 would lose routes by it.
        """
        forwarding = cls(version)
        with forwarding._lock:
            forwarding._opened()
        return forwarding

    def close_soon(self) -> None:
        """``close`` in the background, after the links that were to be deleted there before:
        setting all back takes a millisecond. Not where that thread would set another network
        namespace's. What goes wrong there is said on standard error."""
        where = os.path.basename(self.path).removeprefix(shared.PREFIX).rpartition("-")[0]
        if later.network() == where:
            later.call(self.close)
        else:
            self.close()

    def _begin(self, fd: int) -> None:
        turn = LentBytes(fd)
        shared.patiently(lambda: turn.take(0), self.path)
        try:
            found = _lists(fd, self.version)
            if len(found) == 2:
                _set(self.version, found[1])
                os.ftruncate(fd, 0)
            if len(found) != 1:
                settings = _read(self.version)
                if _SWITCH not in settings:
                    raise Unavailable("network", f"this kernel has no IPv{self.version}")
                _append(fd, settings)
            _switch_on(self.version)
        finally:
            turn.give(0)

    def _last(self, fd: int) -> bool:
        """Put all back; the lock is ours alone."""
        return undo(fd, os.path.basename(self.path))


def undo(fd: int, name: str) -> bool:
    """Put back what the file says, of nobody any more. Whether it can go.

    In another network namespace than the caller's, it has to wait for somebody from there.

    Raises:
        OSError: a setting cannot be written.
    """
    where, _, what = name.removeprefix(shared.PREFIX).rpartition("-")
    version = int(what[-1])
    found = _lists(fd, version)
    if found and where != shared.network():
        return where.partition("-")[0] != shared.boot() or not _lives(fd)
    if len(found) == 1:
        found.append(_back(version, found[0]))
        _append(fd, found[1])
    if found:
        _set(version, found[1])
    return True


# -- the file ---------------------------------------------------------------------------------


def _lists(fd: int, version: int) -> list[dict[str, str]]:
    """What was set, and what is to be set again; each name below ``conf`` -> value.

    Those that are there and whole; what follows is cut off.
    """
    raw = os.pread(fd, _MOST_TEXT, 0)
    *whole, rest = raw.split(_END)
    os.ftruncate(fd, len(raw) - len(rest))
    pairs = [[line.rpartition(" ") for line in os.fsdecode(text).split("\n")[1:]]
             for text in whole]  # fmt: skip
    return [{name: value for name, _, value in lines if _changes(name, version)} for lines in pairs]


def _append(fd: int, settings: dict[str, str]) -> None:
    """First, how to find the network namespace in /proc; the switch comes before all others."""
    lines = [f"net {os.stat('/proc/thread-self/ns/net').st_ino}"]
    lines += [f"{name} {value}" for name, value in settings.items()]
    raw = os.fsencode("\n".join(lines)) + _END
    if os.pwrite(fd, raw, os.fstat(fd).st_size) != len(raw):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lives(fd: int) -> bool:
    """Whether a process is in that network namespace, or a mount holds it."""
    link = f"net:[{os.pread(fd, 64, 0).split(maxsplit=2)[1].decode()}]"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == link:
                return True
        except OSError:
            continue
    return f" {link} " in Path("/proc/self/mountinfo").read_text()


# -- the settings -----------------------------------------------------------------------------


def _changes(name: str, version: int) -> bool:
    """Whether the switch changes this setting."""
    return name.count("/") == 1 and (name.endswith("/forwarding") or name in _SIDE[version])


def _read(version: int) -> dict[str, str]:
    """The switch first: to write it changes all others."""
    try:
        interfaces = sorted(os.listdir(_CONF[version]))
    except FileNotFoundError:
        return {}
    names = (_SWITCH, *(f"{one}/forwarding" for one in interfaces), *_SIDE[version])
    found = {name: _setting(version, name) for name in names}
    return {name: value for name, value in found.items() if value}


def _setting(version: int, name: str) -> str:
    """Its value; "" when the interface has just gone."""
    try:
        return Path(f"{_CONF[version]}/{name}").read_text().strip()
    except FileNotFoundError:
        return ""


def _write(version: int, name: str, value: str) -> None:
    fd = os.open(f"{_CONF[version]}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _set(version: int, wanted: dict[str, str]) -> None:
    """What is not so already, in the order that it has."""
    for name, value in wanted.items():
        if _setting(version, name) not in ("", value):
            try:
                _write(version, name, value)
            except FileNotFoundError:
                continue


def _back(version: int, saved: dict[str, str]) -> dict[str, str]:
    """How all is to be: as it was, where it is as the switch has left it; else others changed it.
    A new interface is to be as those that would have been made before."""
    wanted = _read(version)
    if saved.get(_SWITCH) == "0":
        for name, value in wanted.items():
            if value == _SIDE[version].get(name, "1"):
                wanted[name] = saved.get(name, saved[_OTHERS])
    return wanted


def _switch_on(version: int) -> None:
    if _setting(version, _SWITCH) != "0":
        return
    if version == 6:
        _refuse_to_lose_routes()
    try:
        _write(version, _SWITCH, "1")
    except OSError as e:
        setting = f"net.ipv{version}.conf.all.forwarding"
        raise Unavailable(
            "network", f"{setting} cannot be written: {e.strerror}", err=e.errno or 0,
            hint=f"as root: sysctl -w {setting}=1",
        ) from e  # fmt: skip


def _refuse_to_lose_routes() -> None:
    """A router does not heed router advertisements: the kernel drops the routes it has by them
    (``rt6_purge_dflt_routers``), unless the interface says that it is to (accept_ra=2)."""
    for line in Path("/proc/thread-self/net/ipv6_route").read_text().splitlines():
        words = line.split()
        device = words[9]
        learned = int(words[8], 16) & (_RTF_DEFAULT | _RTF_ADDRCONF)
        if learned and _setting(6, f"{device}/accept_ra") not in ("", "2"):
            raise Unavailable(
                "network", f"forwarding of IPv6 would take the routes that {device} has by router "
                "advertisements", hint=f"sysctl -w net.ipv6.conf.{device}.accept_ra=2",
            )  # fmt: skip
