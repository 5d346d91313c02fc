# SPDX-License-Identifier: Apache-2.0
"""Steps of /dev beyond the minimal one: devices that were asked for, and a terminal of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsbox.errors import SpecError
from nsbox.names import MountAttr, Opcode
from nsbox.slots import Slot
from nsbox.steps import Attach, Fd, MakeDirs, NewMount, Number, OpenPty, Pair, Simple

if TYPE_CHECKING:
    from nsbox.build import Build

PTS = "/dev/pts"
#: Pseudoterminals of one sandbox: those of all of them have a limit, kernel.pty.max.
_MOST_PTYS = 64
_SAFE = int(MountAttr.NOSUID | MountAttr.NOEXEC)
#: The socket by which the owner gets the master, and the other side.
SOCKET, SLAVE = Slot("pty", "socket"), Slot("pty", "slave")


def check(build: Build) -> None:
    """Refuse what needs a mount namespace when there is none."""
    for field, asked in (("pty", build.spec.pty), ("devices", build.spec.devices)):
        if asked and not build.has_new("mnt"):
            raise SpecError(field, 'needs "mnt" among the namespaces')


def open_nodes(build: Build) -> list[tuple[Slot, str]]:
    """The device nodes that were asked for, each with its device number verified."""
    found = []
    for name, path, device in build.spec.devices:
        where = f"devices[{name!r}]"
        slot = build.open_tree(path, _SAFE, where, recursive=False, device=device)
        found.append((slot, path))
    return found


def add(build: Build, nodes: list[tuple[Slot, str]]) -> None:
    """Into /dev, while that can still be written."""
    for slot, path in nodes:
        parent = path.rpartition("/")[0]
        if parent != "/dev":
            build.add(MakeDirs(parent, 0o755, "devices"))
        build.add(Attach(slot, path, "devices"))
        build.applied["devices"] = ", ".join(one for _, one in nodes)
    if build.spec.pty is not None:
        _add_terminals(build, make=True)


def _add_terminals(build: Build, *, make: bool) -> None:
    options = (("newinstance", "!"), ("ptmxmode", "666"), ("mode", "600"),
               ("max", str(_MOST_PTYS)))  # fmt: skip
    build.add(NewMount("devpts", PTS, options, _SAFE, "pty", make))


def add_place(build: Build) -> None:
    """Where a devpts is mounted, now or by ``exec`` when nothing can be made there any more."""
    build.add(MakeDirs(PTS, 0o755, "root"))
    build.add(Pair(Opcode.SYMLINK, "symlink", "pts/ptmx", "/dev/ptmx", "root"))


def add_late(build: Build, *, there: bool) -> None:
    """For a pty in a sandbox that runs. *there*: it has terminals of its own already."""
    if not build.own("mnt"):
        raise SpecError("pty", 'needs "mnt" among the namespaces')
    if build.spec.root.kind != "inherit":
        build.add(Simple(Opcode.ROOT_HERE, "root", "of the sandbox", "pty"))
    if not there:
        _add_terminals(build, make=False)


def add_pty(build: Build) -> None:
    """With the payload's ids, whose terminal it will be; then it is what descriptors 0 to 2 are."""
    rows, columns = build.spec.pty or (0, 0)
    build.pass_slot(SOCKET.kind, SOCKET.key)
    build.add(OpenPty(SOCKET, SLAVE, rows, columns, "pty"))
    for number in (0, 1, 2):
        build.add(Fd(SLAVE, number, "pty"))
    build.applied["terminal"] = "a pty of its own"


def new_session(build: Build, *, payload: bool) -> Number:
    """setsid, and the terminal becomes the controlling one of the payload's session."""
    with_terminal = payload and build.spec.pty is not None
    detail = "with its terminal" if with_terminal else ""
    return Number(Opcode.SETSID, "setsid", detail, int(with_terminal), "profile")
