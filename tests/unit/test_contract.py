# SPDX-License-Identifier: Apache-2.0
"""Python's copies of the kernel's and of nsb.h's constants are the compiler's values."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import scaled
from unit.plans import Header, RawOp, corpus

from nsbox import names, plan, seccomp, syscalls
from nsbox.names import (
    At,
    Clone,
    FilterFlag,
    Kind,
    MountAttr,
    NsGet,
    Opcode,
    OpFlag,
    PlanFlag,
    Propagation,
    Scope,
    SecureBit,
)

if TYPE_CHECKING:
    import enum

pytestmark = pytest.mark.leaks_ok("starts a compiler and what it made, and waits for both")

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
NSB_H = (CSRC / "nsb.h").read_text()

#: Enum of names.py -> prefix of its members in C.
PREFIXES: dict[type[enum.IntEnum | enum.IntFlag], str] = {
    Opcode: "NSB_OP_",
    OpFlag: "NSB_",
    PlanFlag: "NSB_PLAN_",
    At: "NSB_AT_",
    Kind: "NSB_",
    Clone: "CLONE_",
    NsGet: "NS_GET_",
    syscalls.MountFlag: "MS_",
    syscalls.FsconfigCmd: "FSCONFIG_",
    syscalls.FsmountFlag: "FSMOUNT_",
    syscalls.MoveMountFlag: "MOVE_MOUNT_",
    MountAttr: "MOUNT_ATTR_",
    Propagation: "MS_",
    SecureBit: "SECBIT_",
    FilterFlag: "SECCOMP_FILTER_FLAG_",
    seccomp.Ret: "SECCOMP_RET_",
    seccomp.Arch: "AUDIT_ARCH_",
    seccomp.Family: "AF_",
}
#: Enums of nsb.h that have a twin: (enum in C, twin, what only C has).
TWINS: list[tuple[str, type[enum.IntEnum | enum.IntFlag], set[str]]] = [
    ("nsb_opcode", Opcode, {"NONE", "MAX"}),
    ("nsb_op_flag", OpFlag, set()),
    ("nsb_plan_flag", PlanFlag, set()),
    ("nsb_at", At, set()),
    ("nsb_kind", Kind, set()),
]

# sys.h has what nsbox is compiled with; linux/mount.h and sys/mount.h exclude each other
HEADERS = ("nsb.h", "sys.h", "linux/nsfs.h", "sys/resource.h", "linux/capability.h", "stdio.h",
           "linux/audit.h", "linux/filter.h", "linux/net.h", "linux/seccomp.h",
           "sys/socket.h")  # fmt: skip
#: Of instructions and of what they look at.
BPF = {
    "BPF_LD | BPF_W | BPF_ABS": seccomp.LOAD,
    "BPF_ALU | BPF_AND | BPF_K": seccomp.AND,
    "BPF_JMP | BPF_JEQ | BPF_K": seccomp.EQUAL,
    "BPF_JMP | BPF_JGE | BPF_K": seccomp.AT_LEAST,
    "BPF_RET | BPF_K": seccomp.RETURN,
    "sizeof(struct sock_filter)": 8,
    "SOCK_PACKET": seccomp.SOCK_PACKET,
    "offsetof(struct seccomp_data, nr)": seccomp.NR,
    "offsetof(struct seccomp_data, arch)": seccomp.ARCH,
    **{f"offsetof(struct seccomp_data, args[{i}])": at for i, at in enumerate(seccomp.ARGS)},
    **dict(zip(("SYS_SOCKET", "SYS_SOCKETPAIR"), seccomp.SOCKETCALLS, strict=True)),
}


def _expected() -> dict[str, int]:
    """C expression -> the value that Python has for it."""
    values = {
        f"{prefix}{member.name}": int(member)
        for kind, prefix in PREFIXES.items()
        for member in kind
    }
    values |= {f"CAP_{name}": number for number, name in enumerate(names.CAPABILITIES)}
    values |= {f"RLIMIT_{name.upper()}": number for name, number in names.RLIMITS.items()}
    values |= {f"__NR_{name}": syscalls.number_of(name) for name in syscalls.NUMBERS}
    native = seccomp.NUMBERS[seccomp.MACHINES[syscalls.machine()][0]] | seccomp.COMMON
    values |= {f"__NR_{name}": number for name, number in native.items()} | BPF
    tree = {"EMPTY_PATH": "AT", "RECURSIVE": "AT", "NO_AUTOMOUNT": "AT"}
    values |= {f"{tree.get(str(flag.name), 'OPEN_TREE')}_{flag.name}": int(flag)
               for flag in syscalls.OpenTreeFlag}  # fmt: skip
    values |= {"AT_FDCWD": syscalls.AT_FDCWD, "NSB_MAGIC": plan.MAGIC, "NSB_NONE": plan.NONE}
    values |= {f"NSB_{name}": value for name, value in vars(plan).items() if name[:4] == "MAX_"}
    values |= {"sizeof(struct nsb_plan)": plan._HEADER.size, "sizeof(struct nsb_op)": plan._OP.size}
    for struct, mirror in (("nsb_plan", Header), ("nsb_op", RawOp)):
        for name, *_ in mirror._fields_:
            field = getattr(mirror, name)
            values[f"offsetof(struct {struct}, {name})"] = field.offset
            values[f"sizeof(((struct {struct} *)0)->{name})"] = field.size
    return values


@functools.cache
def _compiled(directory: str) -> dict[str, int]:
    """The same expressions, by a C program that prints them."""
    lines = [f"#include <{header}>" for header in HEADERS]
    lines.append("int main(void) {")
    lines += [f'printf("%s=%lld\\n", "{name}", (long long)({name}));' for name in _expected()]
    lines += ['printf("RLIM_INFINITY=%llu\\n", (unsigned long long)RLIM_INFINITY);',
              'printf("CAP_LAST_CAP=%d\\n", CAP_LAST_CAP);', "return 0; }"]  # fmt: skip
    source = Path(directory, "contract.c")
    source.write_text("\n".join(lines))
    program = source.with_suffix("")
    subprocess.run(
        ["gcc", "-std=gnu11", "-D_GNU_SOURCE", f"-I{CSRC}", str(source), "-o", str(program)],
        check=True, timeout=scaled(60),
    )  # fmt: skip
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    pairs = (line.rpartition("=") for line in said.splitlines())
    return {name: int(value) for name, _, value in pairs}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    return _compiled(str(tmp_path_factory.mktemp("contract")))


def test_every_constant_is_the_compiler_s(compiled: dict[str, int]) -> None:
    expected = _expected()
    assert len(expected) > 150
    wrong = {n: (v, compiled[n]) for n, v in expected.items() if compiled[n] != v}
    assert wrong == {}, "name: (Python's, the compiler's)"


def test_flags_of_umount_are_the_compiler_s(tmp_path: Path) -> None:
    """sys/mount.h has them, which does not go together with the kernel's own header."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    checks = "".join(
        f"_Static_assert({'UMOUNT' if flag.name == 'NOFOLLOW' else 'MNT'}_{flag.name} == "
        f'{int(flag)}, "{flag.name}");'
        for flag in syscalls.UmountFlag
    )
    source = tmp_path / "umount.c"
    for text, good in ((checks, True), (checks.replace("== 2", "== 3"), False)):
        source.write_text(f"#include <sys/mount.h>\n{text}")
        done = subprocess.run(["gcc", "-fsyntax-only", str(source)], stderr=subprocess.DEVNULL)
        assert (done.returncode == 0) is good


def test_scopes_of_landlock_are_the_compiler_s(tmp_path: Path) -> None:
    """Headers that are older than Linux 6.12 have none."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    source = tmp_path / "scopes.c"
    text = "#include <linux/landlock.h>\n"
    for scope in Scope:
        name = f"LANDLOCK_SCOPE_{scope.name}"
        text += f'#ifdef {name}\n_Static_assert({name} == {int(scope)}, "{name}");\n#endif\n'
    source.write_text(text)
    subprocess.run(["gcc", "-fsyntax-only", str(source)], check=True, timeout=scaled(60))


@pytest.mark.parametrize(
    ("header", "arch", "bit"),
    [
        pytest.param("unistd_64.h", seccomp.Arch.X86_64, 0, id="x86_64"),
        pytest.param("unistd_32.h", seccomp.Arch.I386, 0, id="i386"),
        pytest.param("unistd_x32.h", seccomp.Arch.X86_64, seccomp.X32[0], id="x32"),
    ],
)
def test_numbers_of_other_conventions_are_the_compiler_s(
    header: str, arch: seccomp.Arch, bit: int, tmp_path: Path
) -> None:
    if syscalls.machine() != "x86_64" or not shutil.which("gcc"):
        pytest.skip("needs gcc on x86_64")
    known = seccomp.NUMBERS[arch] | seccomp.COMMON
    checks = [f'_Static_assert(__NR_{n} == {bit | v}, "{n}");' for n, v in known.items()]
    lines = [f"#define __X32_SYSCALL_BIT {bit}", f"#include <asm/{header}>", *checks]
    source = tmp_path / "numbers.c"
    source.write_text("\n".join(lines))
    subprocess.run(["gcc", "-fsyntax-only", str(source)], check=True, timeout=scaled(60))


def test_unlimited_is_the_compiler_s(compiled: dict[str, int]) -> None:
    assert compiled["RLIM_INFINITY"] == names.RLIM_INFINITY


def test_no_capability_of_the_headers_is_missing(compiled: dict[str, int]) -> None:
    """A capability that is unknown here would never be dropped. Headers may be older."""
    assert compiled["CAP_LAST_CAP"] <= len(names.CAPABILITIES) - 1


def test_namespaces_have_their_flags_and_the_user_s_comes_first() -> None:
    kernel = {"mnt": "NEWNS"}
    for name, flag in names.NAMESPACES.items():
        assert flag.name == kernel.get(name, f"NEW{name.upper()}")
    assert set(names.NAMESPACES.values()) == set(Clone)
    assert next(iter(names.NAMESPACES)) == "user"


def test_the_structs_have_no_padding(compiled: dict[str, int]) -> None:
    for struct, mirror in (("nsb_plan", Header), ("nsb_op", RawOp)):
        sizes = [compiled[f"sizeof(((struct {struct} *)0)->{n})"] for n, *_ in mirror._fields_]
        assert sum(sizes) == ctypes.sizeof(mirror) == compiled[f"sizeof(struct {struct})"]


# -- twins ------------------------------------------------------------------------------------


def _enum(name: str) -> list[str]:
    """The members of an enum of nsb.h, as it is written."""
    body = re.search(rf"enum {name} {{(.*?)}};", NSB_H, re.DOTALL)
    assert body, name
    text = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return [part.split("=")[0].strip() for part in text.split(",") if part.strip()]


@pytest.mark.parametrize(("name", "twin", "only_c"), TWINS, ids=[name for name, *_ in TWINS])
def test_an_enum_and_its_twin_have_the_same_members(
    name: str, twin: type[enum.IntEnum], only_c: set[str]
) -> None:
    members = [member.removeprefix(PREFIXES[twin]) for member in _enum(name)]
    assert [member for member in members if member not in only_c] == [m.name for m in twin]


def test_the_mirrors_name_every_field_of_the_structs() -> None:
    for struct, mirror in (("nsb_plan", Header), ("nsb_op", RawOp)):
        body = re.search(rf"struct {struct} {{(.*?)}};", NSB_H, re.DOTALL)
        assert body
        text = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
        assert re.findall(r"(\w+);", text) == [name for name, *_ in mirror._fields_]


def test_every_opcode_has_its_step() -> None:
    text = (CSRC / "steps.c").read_text()
    table = dict(re.findall(r"\[NSB_OP_(\w+)\] = (\w+)", text))
    assert table == {op.name: f"step_{op.name.lower()}" for op in Opcode}
    declared = set(re.findall(r"\bstep_\w+", (CSRC / "steps.h").read_text()))
    assert set(table.values()) <= declared
    sources = "".join(path.read_text() for path in CSRC.glob("step_*.c"))
    defined = re.findall(r"^int (step_\w+)\(struct nsb_ctx", sources, re.MULTILINE)
    assert sorted(defined) == sorted(table.values())


def test_every_signature_is_of_an_opcode() -> None:
    text = (CSRC / "plan.c").read_text()
    signed = re.findall(r"^\t\[NSB_OP_(\w+)\] = {", text, re.MULTILINE)
    assert len(signed) == len(set(signed)) > 15
    assert set(signed) <= {op.name for op in Opcode}


def test_every_opcode_is_emitted_by_some_plan() -> None:
    """An op that nothing emits is dead code in the one place that has to be small."""
    emitted = {step.opcode for made in corpus().values() for _, step in made.child_steps()}
    assert set(Opcode) - emitted == set()


def test_every_step_names_the_call_that_it_is_in() -> None:
    """Else a failure would be told of the call before."""
    for path in CSRC.glob("step_*.c"):
        bodies = re.findall(r"^int (step_\w+)\(.*?^{\n(.*?)^}", path.read_text(), re.M | re.S)
        assert bodies
        for name, body in bodies:
            helped = re.search(r"\b(nsb_\w+|[a-z_]+)\(cx\b", body)
            assert "cx->call" in body or helped, f"{path.name}: {name}"
