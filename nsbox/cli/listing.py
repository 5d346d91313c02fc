# SPDX-License-Identifier: Apache-2.0
"""``ls``, ``tree`` and ``ps``: what is there, and whose it is."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from nsbox.cli.output import clean, duration, print_json, print_table, size
from nsbox.errors import SpecError
from nsbox.names import NAMESPACES
from nsbox.nslist import namespace_id, namespaces
from nsbox.sandboxes import Sandbox, command_of, load, proc_table, sandboxes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from nsbox.sandboxes import ProcStat

_WORDS = 100  # of a command line, in the tree


def user_name(uid: int) -> str:
    import pwd

    if uid < 0:
        return "-"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _ids(pid: int) -> dict[str, int]:
    """Kind -> id; only those that may be read."""
    found = {}
    for kind in NAMESPACES:
        try:
            found[kind] = namespace_id(pid, kind)
        except OSError:
            continue
    return found


def label(sandbox: Sandbox) -> str:
    """ "run:web", "container:1234": its kind and its name, or its id."""
    return f"{sandbox.kind}:{sandbox.name or sandbox.pid}"


def marks() -> dict[int, list[str]]:
    """Id of a namespace -> labels of the sandboxes that are in it, and that we are not in."""
    ours = set(_ids(os.getpid()).values())
    found: dict[int, list[str]] = {}
    for sandbox in sandboxes():
        for inode in set(_ids(sandbox.pid).values()) - ours:
            found.setdefault(inode, []).append(label(sandbox))
    return found


def ls(arguments: argparse.Namespace) -> int:
    if arguments.type is not None and arguments.type not in NAMESPACES:
        raise SpecError("-t", f"{arguments.type!r} is none of {', '.join(sorted(NAMESPACES))}")
    found = [n for n in namespaces(arguments.pid) if arguments.type in (None, n.kind)]
    marked = marks()
    rows = [
        {"type": n.kind, "id": n.id, "processes": n.processes, "pid": n.pid,
         "owner": user_name(n.uid), "sandboxes": marked.get(n.id, []), "command": n.command}
        for n in found
    ]  # fmt: skip
    if arguments.json:
        print_json(rows)
        return 0
    headings = ("TYPE", "ID", "NPROCS", "PID", "OWNER", "SANDBOX", "COMMAND")
    print_table(headings, [
        (r["type"], r["id"], r["processes"], r["pid"] or "-", r["owner"],
         ",".join(marked.get(n.id, [])) or "-", r["command"])
        for r, n in zip(rows, found, strict=True)
    ])  # fmt: skip
    return 0


# -- ps ---------------------------------------------------------------------------------------


def ps(arguments: argparse.Namespace) -> int:
    table = proc_table()
    found = []
    for sandbox in sandboxes():
        used = load(sandbox, table)
        found.append({
            "id": sandbox.pid, "name": sandbox.name, "kind": sandbox.kind, "owner": sandbox.owner,
            "age": round(sandbox.age, 2), "memory": used.memory,
            "memory_limit": used.memory_limit, "pids": used.pids, "pids_limit": used.pids_limit,
            "cpu": round(used.cpu, 3), "cgroups": sorted(set(sandbox.cgroups.values())),
            "command": list(sandbox.command),
        })  # fmt: skip
    if arguments.json:
        print_json(found)
        return 0
    headings = ("ID", "NAME", "KIND", "OWNER", "AGE", "MEM", "LIMIT", "PIDS", "TIME", "COMMAND")
    rows: list[list[Any]] = []
    for one in found:
        words: Any = one["command"]
        limit: Any = one["memory_limit"]
        seconds: Any = one["age"]
        memory: Any = one["memory"]
        rows.append([one["id"], one["name"] or "-", one["kind"], one["owner"], duration(seconds),
                     size(memory), size(limit), one["pids"], f"{one['cpu']:.2f}",
                     " ".join(words)])  # fmt: skip
    print_table(headings, rows)
    return 0


# -- tree -------------------------------------------------------------------------------------


class Node:
    """A process, the namespaces that it is in and its parent is not, and its children."""

    def __init__(self, stat: ProcStat, label: str) -> None:
        self.pid, self.parent = stat.pid, stat.parent
        self.label = label
        self.ids = _ids(stat.pid)
        self.new: dict[str, int] = {}
        self.children: list[Node] = []
        self.kept = False

    def text(self) -> str:
        words = " ".join(command_of(self.pid)) or "-"
        marked = f" [{self.label}]" if self.label else ""
        new = "".join(f" +{kind}:{inode}" for kind, inode in self.new.items())
        return clean(words[:_WORDS] + marked + new)

    def to_json(self, depth: int) -> dict[str, Any]:
        return {"pid": self.pid, "parent": self.parent, "depth": depth, "sandbox": self.label,
                "namespaces": self.ids, "new": self.new,
                "command": command_of(self.pid)}  # fmt: skip


def _nodes() -> dict[int, Node]:
    labels = {sandbox.pid: label(sandbox) for sandbox in sandboxes()}
    nodes = {pid: Node(stat, labels.get(pid, "")) for pid, stat in sorted(proc_table().items())}
    ours = _ids(os.getpid())
    for node in nodes.values():
        parent = nodes.get(node.parent)
        if parent is not None:
            parent.children.append(node)
            above = _ids_above(node, nodes, ours)
            node.new = {kind: inode for kind, inode in node.ids.items()
                        if above.get(kind, inode) != inode}  # fmt: skip
    return nodes


def _ids_above(node: Node, nodes: dict[int, Node], ours: dict[str, int]) -> dict[str, int]:
    """Of the nearest ancestor that we may look at; ours when there is none, such as for a
    launcher of an ordinary user's, which is not dumpable."""
    above, seen = nodes.get(node.parent), {node.pid}
    while above is not None and above.pid not in seen:
        if above.ids:
            return above.ids
        seen.add(above.pid)
        above = nodes.get(above.parent)
    return ours


def _keep(nodes: dict[int, Node]) -> None:
    """What entered namespaces, and all above it. Loops, not recursion: how deep a tree of
    processes is, a payload decides; and it may change while it is read."""
    for node in nodes.values():
        above: Node | None = node if node.new or node.label else None
        while above is not None and not above.kept:
            above.kept = True
            above = nodes.get(above.parent)


def forest(root: int | None, everything: bool) -> Iterator[tuple[int, str, Node]]:
    """(depth, branch as ``tree`` draws it, process), from *root* or from those without a parent
    that is visible. Below what entered namespaces, everything is shown."""
    nodes = _nodes()
    if root is not None and root not in nodes:
        raise ProcessLookupError(errno.ESRCH, "no such process", str(root))
    _keep(nodes)
    tops = [nodes[root]] if root else [n for n in nodes.values() if n.parent not in nodes]
    whole = everything or root is not None
    stack = [(0, "", "", whole, node) for node in reversed(tops) if whole or node.kept]
    seen = set()
    while stack:
        depth, first, others, whole, node = stack.pop()
        if node.pid in seen:
            continue
        seen.add(node.pid)
        yield depth, first, node
        whole = whole or bool(node.new or node.label)
        children = [child for child in node.children if whole or child.kept]
        for child in reversed(children):
            last = child is children[-1]
            stack.append((depth + 1, others + ("└─ " if last else "├─ "),
                          others + ("   " if last else "│  "), whole, child))  # fmt: skip


def tree(arguments: argparse.Namespace) -> int:
    drawn = forest(arguments.pid, arguments.all)
    if arguments.json:
        print_json([node.to_json(depth) for depth, _, node in drawn])
        return 0
    for _, branch, node in drawn:
        print(f"{branch}{node.pid} {node.text()}")
    return 0
