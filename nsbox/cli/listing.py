# SPDX-License-Identifier: Apache-2.0
"""``ls``, ``tree`` and ``ps``: what is there, and whose it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nsbox.cli.output import clean, duration, print_json, print_table, size
from nsbox.errors import SpecError
from nsbox.names import NAMESPACES
from nsbox.namespace import namespace_id, namespaces
from nsbox.sandboxes import Sandbox, command_of, load, proc_table, sandboxes

if TYPE_CHECKING:
    import argparse

    from nsbox.sandboxes import ProcStat


def user_name(uid: int) -> str:
    import pwd

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
        (r["type"], r["id"], r["processes"], r["pid"], r["owner"],
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
            "cpu": round(used.cpu, 3), "cgroups": list(sandbox.cgroups),
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

    def __init__(self, stat: ProcStat) -> None:
        self.pid, self.parent = stat.pid, stat.parent
        self.ids = _ids(stat.pid)
        self.new: dict[str, int] = {}
        self.label = ""
        self.children: list[Node] = []

    def interesting(self) -> bool:
        return bool(self.new or self.label) or any(child.interesting() for child in self.children)

    def prune(self) -> None:
        """Leave out branches that stay where they began; below what is new, keep all."""
        if not (self.new or self.label):
            self.children = [child for child in self.children if child.interesting()]
            for child in self.children:
                child.prune()

    def text(self) -> str:
        words = command_of(self.pid)
        marked = f" [{self.label}]" if self.label else ""
        new = "".join(f" +{kind}:{inode}" for kind, inode in self.new.items())
        return clean(f"{self.pid} {' '.join(words) or '-'}"[:120] + marked + new)

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "command": command_of(self.pid), "sandbox": self.label,
                "namespaces": self.ids, "new": self.new,
                "children": [child.to_json() for child in self.children]}  # fmt: skip


def forest(root: int | None, everything: bool) -> list[Node]:
    """The trees to draw: from *root*, or from every process without a visible parent."""
    nodes = {pid: Node(stat) for pid, stat in sorted(proc_table().items())}
    labels = {sandbox.pid: label(sandbox) for sandbox in sandboxes()}
    tops = []
    for node in nodes.values():
        node.label = labels.get(node.pid, "")
        parent = nodes.get(node.parent)
        if parent is None:
            tops.append(node)
            continue
        parent.children.append(node)
        node.new = {kind: inode for kind, inode in node.ids.items()
                    if parent.ids.get(kind, inode) != inode}  # fmt: skip
    if root is not None:
        if root not in nodes:
            raise ProcessLookupError(3, "no such process", str(root))
        return [nodes[root]]
    if not everything:
        tops = [node for node in tops if node.interesting()]
        for node in tops:
            node.prune()
    return tops


def draw(node: Node, first: str = "", others: str = "") -> list[str]:
    """Lines, with the branches as ``tree`` draws them."""
    lines = [first + node.text()]
    for child in node.children:
        last = child is node.children[-1]
        lines += draw(
            child, others + ("└─ " if last else "├─ "), others + ("   " if last else "│  ")
        )
    return lines


def tree(arguments: argparse.Namespace) -> int:
    tops = forest(arguments.pid, arguments.all)
    if arguments.json:
        print_json([node.to_json() for node in tops])
        return 0
    for node in tops:
        print("\n".join(draw(node)))
    return 0
