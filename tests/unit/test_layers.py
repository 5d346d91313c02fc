# SPDX-License-Identifier: Apache-2.0
"""The shape of the code: imports go down, functions stay short, the core stays small and bare."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.leaks_ok("reads sources, and starts compilers only")

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nsbox"
CSRC = ROOT / "csrc"
INIT = PACKAGE / "nsbox-init"

#: Floor -> its modules. A module imports from its own floor and from those below.
FLOORS: dict[int, str] = {
    0: "_core _ffi",
    1: "errors units names hashing forgotten checks",
    2: "spec keywords host netspec netallow cgroup_places",
    3: "remedies slots hoststeps steps plan profile build limits idmap devices scratch overlay "
    "mounts creds spaces seccomp confine compile nftmsg nftrule netrules netguard etc wiring "
    "drawing",
    4: "facts blame usage cgroupfs hierarchy netprio registry launcher probe interrupts syscalls "
    "pins processes thaw debug kept mountapi rtnl later nft conntrack shaping changes copying "
    "archive oci images lent shared routes subnets addresses forwarding hostsfile rootpath "
    "identity programs",
    5: "nslist oom freezer cgroup_v1 cgroup_v2 cgroup_limits cgroup_child cgroup delegate process "
    "spawn templates idmapped watch cputime ring logs lifecycle result streams sandbox converse "
    "command popen namespace enter ports terminal sandboxes elsewhere "
    "netlink interface links proxy egress router lease bridge plugged pings",
    6: "control contents container",
    7: "podspec podcontainer pod nodes topology",
    8: "workloads kube executor pool aio prober trials diagnosis doctor cli __main__",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
PURE = [name for name, floor in FLOOR.items() if 1 <= floor <= 3]
#: What a pure module has no use for: files, processes, sockets, threads, the machine.
IO = set(
    "asyncio ctypes fcntl glob grp io mmap multiprocessing pathlib pwd resource select selectors "
    "shutil signal socket subprocess tempfile threading time".split()
)
IO_ALLOWED = {("errors", "subprocess")}  # two of its classes are base classes
#: Never loaded by `import nsbox`, which a command-line tool pays at every start.
HEAVY = (
    "asyncio cffi concurrent.futures ctypes dataclasses enum inspect json logging pathlib re "
    "select selectors shutil signal socket subprocess tempfile threading typing".split()
)

CORE_LINES = 3400  # a fifth of them rtnetlink's
FUNCTION_LINES = 60


class Import(NamedTuple):
    module: str
    imported: str
    line: int
    top: bool


def _sources() -> dict[str, Path]:
    """Module, with the dots of a package in it, -> its file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name != "__init__":
            found[name.removesuffix(".__init__")] = path
    return found


def _modules() -> list[str]:
    return sorted(_sources())


def _floor(module: str) -> int | None:
    """That of its package, for a module of one."""
    return FLOOR.get(module.partition(".")[0])


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _nodes(tree: ast.AST, top: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node but those for type checkers, and whether it runs when the module is loaded."""
    for node in ast.iter_child_nodes(tree):
        if _is_type_checking(node):
            continue
        yield node, top
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _nodes(node, top and not inside)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        prefix = "." * node.level + (node.module or "")
        if prefix == "nsbox":
            return [f"nsbox.{alias.name}" for alias in node.names]
        return [prefix]
    return []


@functools.cache
def _imports() -> tuple[Import, ...]:
    return tuple(
        Import(module, name, getattr(node, "lineno", 0), top)
        for module, path in sorted(_sources().items())
        for node, top in _nodes(ast.parse(path.read_text()))
        for name in _names(node)
    )


def _own() -> Iterator[Import]:
    """Imports of the package's own modules, by their bare names."""
    for found in _imports():
        package, _, rest = found.imported.partition(".")
        if package == "nsbox" and rest:
            yield found._replace(imported=rest.partition(".")[0])


# -- imports ----------------------------------------------------------------------------------


def test_the_parser_sees_the_imports_that_are_there() -> None:
    """Blind, it would find no violation."""
    own = {(found.module, found.imported, found.top) for found in _own()}
    assert {("_core", "_ffi", True), ("compile", "spec", True), ("plan", "names", True)} <= own
    assert any(not top for _, _, top in own), "function-level imports too"


def test_every_module_has_a_floor() -> None:
    assert [name for name in _modules() if _floor(name) is None] == []


def test_imports_go_down_or_sideways() -> None:
    """Those inside of functions too: they hide a cycle, they do not undo it."""
    up = [
        f"nsbox/{i.module}.py:{i.line}: floor {_floor(i.module)} imports {i.imported} "
        f"of floor {FLOOR.get(i.imported, 'none: import the module that has it')}"
        for i in _own()
        if FLOOR.get(i.imported, 99) > (_floor(i.module) or 0)
    ]
    assert up == []


def test_imports_make_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for found in _own():
        if found.top and found.module.partition(".")[0] != found.imported:
            graph.setdefault(found.module, set()).add(found.imported)
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_only_core_imports_the_extension() -> None:
    assert {i.module for i in _own() if i.imported == "_ffi"} == {"_core"}


def test_no_import_is_relative() -> None:
    assert [i for i in _imports() if i.imported.startswith(".")] == []


@pytest.mark.parametrize("module", PURE)
def test_the_floors_of_compile_do_no_io(module: str) -> None:
    found = {i.imported.partition(".")[0] for i in _imports() if i.module == module}
    bad = {name for name in found & IO if (module, name) not in IO_ALLOWED}
    assert bad == set()
    assert "_core" not in {i.imported for i in _own() if i.module == module}


# -- the package ------------------------------------------------------------------------------


def _fresh(code: str) -> set[str]:
    """The modules that *code* loads in an interpreter of its own, without site's."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)\n{code}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        capture_output=True, text=True, timeout=scaled(30), check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_importing_nsbox_loads_next_to_nothing() -> None:
    loaded = _fresh("import nsbox")
    assert {name for name in loaded if name.startswith("nsbox")} == {"nsbox"}
    assert loaded & set(HEAVY) == set()


def test_an_error_is_named_without_loading_the_core() -> None:
    loaded = _fresh("import nsbox; nsbox.SpecError, nsbox.Limits, nsbox.Mount")
    own = {name for name in loaded if name.startswith("nsbox.")}
    assert "nsbox.errors" in own
    assert own & {"nsbox._core", "nsbox._ffi", "nsbox.sandbox", "nsbox.launcher"} == set()
    assert "asyncio" not in loaded


def test_modules_that_are_used_by_name_are_loaded_then() -> None:
    assert "nsbox.syscalls" not in _fresh("import nsbox")
    sites = [path for path in sys.path if path.endswith("site-packages")]
    loaded = _fresh(f"sys.path += {sites!r}; import nsbox; nsbox.syscalls.Clone")
    assert "nsbox.syscalls" in loaded
    assert "nsbox.launcher" not in loaded
    assert set(nsbox._MODULES) <= set(dir(nsbox))


def test_running_loads_no_asyncio() -> None:
    """A synchronous program does not pay for a loop that it has no use for."""
    sites = [path for path in sys.path if path.endswith("site-packages")]
    loaded = _fresh(f"sys.path += {sites!r}; import nsbox; nsbox.run, nsbox.Popen, nsbox.Pod")
    assert "nsbox.pod" in loaded
    assert loaded & {"asyncio", "concurrent.futures", "multiprocessing", "logging"} == set()


@pytest.mark.parametrize("name", nsbox.__all__)
def test_a_public_name_is_there(name: str) -> None:
    value = getattr(nsbox, name)
    if name in nsbox._WHERE:
        assert value is getattr(importlib.import_module(f"nsbox.{nsbox._WHERE[name]}"), name)
    assert name in dir(nsbox)


def test_public_names_are_listed_once_and_known_to_type_checkers() -> None:
    assert len(set(nsbox.__all__)) == len(nsbox.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.asname: (node.module or "").removeprefix("nsbox.")
        for block in tree.body
        if _is_type_checking(block)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nsbox")
        for alias in node.names
    }
    assert typed == nsbox._WHERE


def test_public_names_have_a_docstring() -> None:
    bare = [
        n for n in nsbox._WHERE if not (getattr(getattr(nsbox, n), "__doc__", "") or "").strip()
    ]
    assert bare == []


def test_constants_are_subprocess_s() -> None:
    names = ("DEVNULL", "PIPE", "STDOUT")
    assert [getattr(nsbox, n) for n in names] == [getattr(subprocess, n) for n in names]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nsbox' has no attribute 'Docker'"):
        nsbox.Docker  # noqa: B018


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_every_source_has_its_license_and_says_what_it_is_for() -> None:
    for path in [
        *PACKAGE.rglob("*.py"),
        *CSRC.rglob("*.[ch]"),
        *Path(__file__).parent.glob("*.py"),
    ]:
        head = path.read_text()[:400]
        assert "SPDX-License-Identifier: Apache-2.0" in head.splitlines()[0], path
        if path.suffix == ".py":
            assert ast.get_docstring(ast.parse(path.read_text())), path


# -- size -------------------------------------------------------------------------------------


def _code_lines(text: str) -> int:
    """Lines that say something: no comments, nor braces alone."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    lines = re.sub(r"//.*", "", text).splitlines()
    return sum(1 for line in lines if line.strip().strip("{};"))


def test_the_line_counter_counts_code_only() -> None:
    assert _code_lines("/* a\n b */\n\nint x; /* c */ // d\n// e\n{\n}\nif (x) {\n\t};\n") == 2


def test_the_core_is_small_enough_to_be_read() -> None:
    sizes = {
        p.relative_to(ROOT).as_posix(): _code_lines(p.read_text()) for p in CSRC.rglob("*.[ch]")
    }
    assert sum(sizes.values()) <= CORE_LINES, sizes


def _c_functions() -> dict[str, int]:
    """Name -> lines of the body: in our style its braces alone are in the first column."""
    found = {}
    for path in CSRC.rglob("*.[ch]"):
        lines = path.read_text().splitlines()
        start = 0
        for number, line in enumerate(lines):
            if line == "{":
                start = number
            elif line == "}" and start:
                name = re.findall(r"(\w+)\(", " ".join(lines[max(0, start - 3) : start]))
                found[f"{path.name}:{name[-1] if name else start}"] = number - start - 1
                start = 0
    return found


def test_no_c_function_is_longer_than_a_screen() -> None:
    functions = _c_functions()
    assert len(functions) > 100
    assert {name: size for name, size in functions.items() if size > FUNCTION_LINES} == {}


def _python_functions() -> dict[str, int]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                found[f"{path.name}:{node.name}:{node.lineno}"] = lines
    return found


def test_no_python_function_is_longer_than_a_screen() -> None:
    functions = _python_functions()
    assert len(functions) > 200
    assert {name: size for name, size in functions.items() if size > FUNCTION_LINES} == {}


# -- nsbox-init -------------------------------------------------------------------------------


def _program_headers() -> list[tuple[int, int]]:
    """(type, flags) of each."""
    raw = INIT.read_bytes()
    assert raw[:5] == b"\x7fELF\x02"
    offset, size, count = (struct.unpack_from(f, raw, at)[0]
                           for f, at in (("<Q", 32), ("<H", 54), ("<H", 56)))  # fmt: skip
    return [struct.unpack_from("<II", raw, offset + i * size) for i in range(count)]  # type: ignore[misc]


def test_init_is_static_and_its_stack_is_not_executable() -> None:
    load, dynamic, interp, stack = 1, 2, 3, 0x6474E551
    headers = _program_headers()
    types = [kind for kind, _ in headers]
    assert load in types
    assert not {dynamic, interp} & set(types)
    assert [flags & 1 for kind, flags in headers if kind == stack] == [0]
    assert not [flags for kind, flags in headers if kind == load and flags & 3 == 3], "W and X"


@pytest.mark.parametrize("word", [b"malloc", b"printf", b"libc", b"GLIBC", b"/lib/ld"])
def test_init_has_no_trace_of_libc(word: bytes) -> None:
    assert word not in INIT.read_bytes()


def _cflags(what: str) -> list[str]:
    tool = [sys.executable, str(ROOT / "tools" / "cflags.py"), "init", what]
    return subprocess.run(tool, capture_output=True, text=True, check=True).stdout.split()


def test_init_calls_nothing_that_it_does_not_bring(tmp_path: Path) -> None:
    """Neither malloc nor stdio: linked with nothing, no name is left undefined."""
    if not (shutil.which("gcc") and shutil.which("nm")):
        pytest.skip("needs gcc and nm")
    whole = tmp_path / "init.o"
    command = ["gcc", *_cflags("flags"), "-r", "-nostdlib", *_cflags("sources"), "-o", str(whole)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=scaled(120))
    missing = subprocess.run(["nm", "-u", str(whole)], capture_output=True, text=True, check=True)
    assert missing.stdout.split() == []
    defined = subprocess.run(["nm", str(whole)], capture_output=True, text=True, check=True).stdout
    assert " T nsb_run_ops" in defined, "nm reads the right file"
