# SPDX-License-Identifier: Apache-2.0
"""What the pages show of the code itself: rendered when they are built, so that it stays true.

Directives: ``timeline``, ``steps``, ``profiles``, ``layers``, ``ladder``, ``transitions``,
``exceptions``, ``session``, ``network`` and ``readme``.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.ext.doctest import TestcodeDirective
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import nsbox
from nsbox import container, errors, probe, sandboxes
from nsbox.host import Host
from nsbox.names import Opcode
from nsbox.profile import PROFILES, Profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
logger = logging.getLogger(__name__)

# ------------------------------------------------------------------- examples that need something

_told: set[str] = set()


def lacking(need: str) -> str:
    """Why examples that need a ``"cgroup"`` with limits, the ids of ``"subuid"``, ``"root"``, or
    an ordinary ``"user"``, cannot run here, or "".

    Said once; an error where NSBOX_REQUIRE names the need, as with the marks of the tests.
    """
    who = "ROOT" if os.geteuid() == 0 else "USER"
    required = os.environ.get("NSBOX_REQUIRE") or os.environ.get(f"NSBOX_REQUIRE_{who}", "")
    host = probe.host()
    there, why = {
        "cgroup": (bool(host.controllers), "no cgroup here can be written"),
        "subuid": (host.maps_ids or host.subids, "only one id can be mapped"),
        "root": (host.attaches_bpf, "the caller is not root of this host"),
        "user": (not host.privileged, "the caller is root"),
    }[need]
    missing = "" if there else why
    if missing and need in required.split(","):
        raise RuntimeError(f"NSBOX_REQUIRE={need}, but: {missing}")
    if missing and need not in _told:
        _told.add(need)
        print(f"docs: examples that need {need} are skipped: {missing}", file=sys.stderr)
    return missing


class Readme(TestcodeDirective):
    """``.. readme:: 1``: the first Python example of README.md, shown and tested."""

    def run(self) -> list[nodes.Node]:
        path = ROOT / "README.md"
        self.env.note_dependency(str(path))
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        code = blocks[int(self.arguments.pop(0)) - 1]
        self.name = "testcode"
        self.content = StringList(code.splitlines(), str(path))
        return super().run()


class Network(TestcodeDirective):
    """Code that makes a topology ``net``: shown, tested, and below it what it draws of it."""

    def run(self) -> list[nodes.Node]:
        self.name = "testcode"
        made: dict[str, Any] = {"nsbox": nsbox}
        exec("\n".join(self.content), made)  # noqa: S102  (of our own pages)
        return [*super().run(), nodes.raw("", made["net"].svg(), format="html")]


# ----------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int]) -> nodes.table:
    """A table; a cell's text in ``backquotes`` is code."""

    def row(cells: Sequence[str]) -> nodes.row:
        result = nodes.row()
        for cell in cells:
            paragraph = nodes.paragraph()
            for i, part in enumerate(cell.split("``")):
                paragraph += nodes.literal(text=part) if i % 2 else nodes.Text(part)
            result += nodes.entry("", paragraph)
        return result

    group = nodes.tgroup(cols=len(head))
    for width in widths:
        group += nodes.colspec(colwidth=width)
    group += nodes.thead("", row(head))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return nodes.table("", group)


def literal(text: str, language: str = "text") -> nodes.literal_block:
    return nodes.literal_block(text, text, language=language)


# --------------------------------------------------------------------------------------- timeline

_SYSTEM = (("/usr", "dir", ""), ("/bin", "link", "usr/bin"), ("/lib", "link", "usr/lib"),
           ("/lib64", "link", "usr/lib64"))  # fmt: skip
#: Made-up hosts, so that the page is the same wherever it is built.
HOSTS = {
    "root": Host(system=_SYSTEM),
    "user": Host(euid=1000, egid=1000, capabilities=0, privileged=False, maps_ids=False,
                 controllers=(), cgroup_version=0, system=_SYSTEM),
}  # fmt: skip


class Timeline(SphinxDirective):
    """What explain() prints for the arguments in the content, as ``:who:`` root or user."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"who": lambda who: directives.choice(who, HOSTS)}

    def run(self) -> list[nodes.Node]:
        call = f"nsbox.explain({' '.join(self.content)})"
        host = HOSTS[self.options.get("who", "root")]
        with mock.patch("nsbox.probe.host", return_value=host):
            plan = eval(call, {"nsbox": nsbox})  # noqa: S307  (our own pages)  # noqa: S307  (of our own pages)
        return [literal(f">>> print({call})", "pycon"), literal(str(plan))]


# ------------------------------------------------------------------------------------------ steps

_FUNCTION = re.compile(
    r"(?:^/\*(?P<why>(?:(?!\*/).)*)\*/\n)?"
    r"^(?:static )?\w+ \*?(?P<name>\w+)\(struct nsb_ctx \*cx[^{;]*\)\n\{\n(?P<body>.*?)^\}",
    re.MULTILINE | re.DOTALL,
)


def _functions() -> dict[str, tuple[str, str, str]]:
    """Functions of the steps: name -> (file, the comment above, the body)."""
    return {
        m["name"]: (path.name, " ".join((m["why"] or "").replace("*", " ").split()), m["body"])
        for path in sorted(CSRC.glob("step_*.c"))
        for m in _FUNCTION.finditer(path.read_text())
    }


def _calls(name: str, functions: dict[str, tuple[str, str, str]]) -> list[str]:
    """The system calls that a step may be in, in the order in which its text names them."""
    found: list[str] = []
    for call, helper in re.findall(r'cx->call = "(\w+)"|\b(\w+)\(cx\b', functions[name][2]):
        below = _calls(helper, functions) if helper in functions and helper != name else []
        found += [one for one in (call, *below) if one and one not in found]
    return found


def _operands(opcode: str) -> str:
    """From plan.c, what a, b and c are; from steps.c, what the numbers mean."""
    kinds = re.search(rf"\[NSB_OP_{opcode}\] = {{ (\w+), (\w+), (\w+) }}",
                      (CSRC / "plan.c").read_text())  # fmt: skip
    said = re.search(rf"\[NSB_OP_{opcode}\] = \w+,\s*/\* (.*?) \*/", (CSRC / "steps.c").read_text())
    meaning = said[1] if said else ""
    parts = [f"{operand}: {kind.lower()}" for operand, kind in zip("abc", kinds.groups() if kinds
             else (), strict=False) if kind != "NIL" and f"{operand}:" not in meaning]  # fmt: skip
    return ", ".join([*parts, *filter(None, [meaning])])


class Steps(SphinxDirective):
    """Every step that a child can take."""

    def run(self) -> list[nodes.Node]:
        functions, rows = _functions(), []
        for opcode in Opcode:
            name = f"step_{opcode.name.lower()}"
            file, why, _ = functions[name]
            calls = ", ".join(f"``{call}``" for call in _calls(name, functions))
            rows.append((str(int(opcode)), f"``{opcode.name}``", calls, _operands(opcode.name),
                         f"``{file}``", why))  # fmt: skip
        head = ("", "opcode", "system calls", "operands", "file", "notes")
        return [table(head, rows, (4, 14, 20, 20, 14, 40))]


# --------------------------------------------------------------------------------------- profiles


def _show(name: str, value: Any) -> str:
    if name == "capabilities" and value is None:
        return "all that the set-up has"
    if value is None:
        return "no limit"
    if value is True or value is False:
        return "yes" if value else "no"
    if name == "missing":
        return "; ".join(f"``{what}``: {why}" for what, why in value) or "nothing"
    if name == "rlimits":
        return ", ".join(f"``{limit}`` {soft}:{hard}" for limit, soft, hard in value) or "none set"
    if name == "memory":
        return f"{value >> 20} MiB"
    if isinstance(value, tuple):
        return ", ".join(f"``{one}``" for one in value) or "none"
    return f"{value:#x}" if name == "securebits" else str(value)


class Profiles(SphinxDirective):
    """The hardening profiles, side by side."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for field in dataclasses.fields(Profile):
            values = (getattr(profile, field.name) for profile in PROFILES.values())
            rows.append([f"``{field.name}``", *(_show(field.name, value) for value in values)])
        return [table(("", *(f"``{name}``" for name in PROFILES)), rows, (16, 30, 30, 24))]


# --------------------------------------------------------------------------- pieces of the design


class Layers(SphinxDirective):
    """The floors of the package, as the test of imports has them."""

    def run(self) -> list[nodes.Node]:
        source = (ROOT / "tests" / "unit" / "test_layers.py").read_text()
        floors = next(
            ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FLOORS"
        )
        lines = []
        for floor, names in sorted(floors.items(), reverse=True):
            here = [n for n in names.split() if (ROOT / "nsbox" / f"{n}.py").exists()]
            lines += [f"{floor}  {'  '.join(here)}"] if here else []
        return [literal("\n".join(lines))]


class Ladder(SphinxDirective):
    """The protocol, as it is drawn at the head of csrc/nsb.h."""

    def run(self) -> list[nodes.Node]:
        lines = (CSRC / "nsb.h").read_text().split("*/")[1].splitlines()
        drawn = [line.removeprefix(" *   ") for line in lines if re.match(r" \*   ", line)]
        return [literal("\n".join(drawn))]


class Transitions(SphinxDirective):
    """What may be done with a container in which state, and where that leads."""

    def run(self) -> list[nodes.Node]:
        verbs = list(dict.fromkeys(v for row in container.TRANSITIONS.values() for v in row))
        rows = [(f"``{status}``", *(f"``{leads[verb]}``" if verb in leads else "``StateError``"
                                    for verb in verbs))
                for status, leads in container.TRANSITIONS.items()]  # fmt: skip
        head = ("", *(f"``{verb}()``" for verb in verbs))
        return [table(head, rows, [20] * len(head))]


def _tree(cls: type, indent: str = "") -> list[str]:
    """Exceptions below *cls*, with the built-in bases that make ``except OSError`` work."""
    children = [c for c in cls.__subclasses__() if c.__module__.startswith("nsbox.")]
    lines = []
    for child in children:
        last = child is children[-1]
        bases = [
            base.__name__ if base.__module__ == "builtins" else f"{base.__module__}.{base.__name__}"
            for base in child.__bases__
            if base is not cls
        ]
        suffix = f"({', '.join(bases)})" if bases else ""
        lines.append(f"{indent}{'└──' if last else '├──'} {child.__name__}{suffix}")
        lines += _tree(child, indent + ("    " if last else "│   "))
    return lines


class Exceptions(SphinxDirective):
    """The tree of exceptions."""

    def run(self) -> list[nodes.Node]:
        return [literal("\n".join(["NsboxError", *_tree(errors.NsboxError)]))]


_SHELL = 'nsbox() { "$PYTHON" -m nsbox "$@"; }\n'


class Session(SphinxDirective):
    """Lines for a shell, each with what it prints here; *beside*, of nsbox or "python …", runs
    meanwhile."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"beside": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        if "beside" not in self.options:
            return [literal("\n".join(map(self._answer, self.content)))]
        words = shlex.split(self.options["beside"])
        words = words[1:] if words[0] == "python" else ["-m", "nsbox", *words]
        command = [sys.executable, *words]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline and not self._owned(process.pid):
                    time.sleep(0.05)
                return [literal("\n".join(map(self._answer, self.content)))]
            finally:
                process.terminate()

    @staticmethod
    def _owned(pid: int) -> bool:
        """It runs, and is past its start: its command is known."""
        return any(one.owner == pid and one.command and one.name for one in sandboxes.sandboxes())

    @staticmethod
    def _answer(line: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", _SHELL + line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHON": sys.executable},
        )  # fmt: skip
        if "Traceback" in done.stdout:
            logger.warning("%s: %s", line, done.stdout)
        return f"$ {line}\n{done.stdout}"


# -------------------------------------------------------------------------------------- the whole


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Every public name is in the reference."""
    documented = {name for name, *_ in env.get_domain("py").get_objects()}
    for name in nsbox.__all__:
        if f"nsbox.{name}" not in documented:
            logger.warning("nsbox.%s is public, but not in the reference", name)


def setup(app: Sphinx) -> dict[str, bool]:
    for directive in (Timeline, Steps, Profiles, Layers, Ladder, Transitions, Exceptions, Readme,
                      Session, Network):  # fmt: skip
        app.add_directive(directive.__name__.lower(), directive)
    app.connect("env-check-consistency", check_reference)
    return {"parallel_read_safe": True}
