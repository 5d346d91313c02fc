# SPDX-License-Identifier: Apache-2.0
"""Encoded plans: what they say is what the steps say, and the checker takes nothing else."""

from __future__ import annotations

import errno
import random
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from unit.plans import HOSTS, Decoded, Header, RawOp, corpus, decode, mutants, plan_of, specs

from nsbox import _core, steps
from nsbox.compile import compile_spec
from nsbox.errors import SpecError, Unavailable
from nsbox.hoststeps import Clone3
from nsbox.names import At, Clone, FilterFlag, Opcode, OpFlag
from nsbox.plan import NONE, Plan
from nsbox.slots import Pool, Slot
from nsbox.spec import Limits, Mount
from nsbox.steps import Fd, Simple, Unshare

if TYPE_CHECKING:
    from nsbox.steps import ChildStep

pytestmark = pytest.mark.leaks_ok("encodes and checks bytes, and starts nothing")

HEADER, OP = 64, 32  # bytes, as nsb.h has it; the contract test compares them


# -- the round trip ---------------------------------------------------------------------------


def _means(raw: Decoded, op: RawOp) -> dict[str, Any]:
    """The operands of an op, by the table of signatures in csrc/plan.c."""
    code = Opcode(op.code)
    data = raw.raw[op.b : op.b + op.n] if code is Opcode.FILE else b""
    if code in (Opcode.SETGROUPS, Opcode.SECCOMP):
        data = raw.raw[op.a : op.a + op.n]
    texts: dict[Opcode, str] = {
        Opcode.OPEN: "a", Opcode.OPEN_TREE: "a", Opcode.ATTACH: "b", Opcode.MOUNT: "ab",
        Opcode.MKDIR: "a", Opcode.MKNOD: "a", Opcode.ROOM: "a",
        Opcode.FILE: "a", Opcode.SYMLINK: "ab", Opcode.READONLY: "a", Opcode.SYSCTL: "ab",
        Opcode.HOSTNAME: "a", Opcode.CHDIR: "a", Opcode.EXEC: "a",
    }  # fmt: skip
    options = {
        Opcode.ROOT_TMPFS: op.a,
        Opcode.ROOT_OVERLAY: op.a,
        Opcode.PROCFS: op.a,
        Opcode.MOUNT: op.c,
    }.get(code, 0)
    return {
        "texts": tuple(raw.text(getattr(op, name)) for name in texts.get(code, "")),
        "options": raw.options(options),
        "data": data,
        "flags": op.flags,
        "n": op.n,
        "m": op.m,
        "a": op.a,
        "b": op.b,
    }


_FLAGS = {
    "recursive": OpFlag.RECURSIVE,
    "make": OpFlag.MAKE_TARGET,
    "optional": OpFlag.IF_POSSIBLE,
}


_OPENS = (Opcode.OPEN, Opcode.OPEN_TREE, Opcode.SOCKET)


def _check_op(step: ChildStep, op: RawOp, means: dict[str, Any], slots: dict[Slot, int]) -> None:
    """What the step's fields say is found in the op, each in its place."""
    assert op.code == step.opcode
    fields = {name: getattr(step, name) for name in step.__dataclass_fields__}
    texts = [fields[name] for name in ("src", "first", "fstype", "value") if name in fields]
    texts += [fields[name] for name in ("dst", "second") if name in fields]
    assert list(means["texts"]) == texts
    assert means["options"] == fields.get("options", ())
    for name in ("n", "m"):
        if name in fields:
            assert means[name] == fields[name]
    if "slot" in fields:
        place = "b" if step.opcode in (Opcode.OPEN, Opcode.OPEN_TREE) else "a"
        assert means[place] == slots[step.slot]  # type: ignore[union-attr]
    if step.opcode is Opcode.PTY:
        assert means["b"] == slots[step.slave]  # type: ignore[union-attr]
        assert (means["n"] & 0xFFFF, means["n"] >> 16) == (fields["rows"], fields["columns"])
    if isinstance(step, Fd):
        assert means["n"] == step.number
    if "attrs" in fields:
        assert means["m" if step.opcode is Opcode.OPEN_TREE else "n"] == fields["attrs"]
    if step.opcode in (Opcode.SETNS, Opcode.UNSHARE):
        assert means["n"] == fields["flags"]
    elif "flags" in fields:
        assert means["flags"] == fields["flags"]
    for name, flag in _FLAGS.items():
        if name in fields:
            assert bool(means["flags"] & flag) == fields[name]


def _check_data(step: ChildStep, op: RawOp, means: dict[str, Any]) -> None:
    if step.opcode is Opcode.FILE:
        uid, gid = step.owner or (0xFFFFFFFF, 0xFFFFFFFF)  # type: ignore[union-attr]
        assert means["data"] == step.data  # type: ignore[union-attr]
        assert (op.c, op.m >> 32, op.m & 0xFFFFFFFF) == (uid, gid, step.mode)  # type: ignore[union-attr]
    if step.opcode is Opcode.MKDIR:
        owner = (op.c, op.m) if op.flags & OpFlag.CHOWN else None
        assert (op.n, owner) == (step.mode, step.owner)  # type: ignore[union-attr]
    if step.opcode is Opcode.SETGROUPS:
        gids = step.gids  # type: ignore[union-attr]
        assert means["data"] == struct.pack(f"<{len(gids)}I", *gids)
    if step.opcode is Opcode.SECCOMP:
        assert means["data"] == step.program  # type: ignore[union-attr]
        assert means["a"] % 8 == 0, "struct sock_filter is read where it lies"
        assert means["m"] == FilterFlag.SPEC_ALLOW
    if step.opcode is Opcode.OPEN_TREE:
        device = step.device  # type: ignore[union-attr]
        assert (op.n, bool(op.flags & OpFlag.CHRDEV)) == (device, bool(device))


def _check_plan(plan: Plan, raw: bytes) -> None:
    decoded, children = decode(raw), [step for _, step in plan.child_steps()]
    head = decoded.header
    assert (head.magic, head.size, head.reserved) == (0x3142534E, len(raw), 0)
    assert (head.nops, head.njoin, head.nfds) == (len(children), plan.joins, len(plan.passed))
    assert (head.flags, head.clone_flags) == (plan.flags, plan.clone.flags)
    assert decoded.vector(head.argv) == plan.args
    assert decoded.vector(head.envp) == plan.env
    slots = {slot: number for number, slot in enumerate(plan.passed)}
    for step in children:
        if step.opcode in _OPENS:
            assert step.slot not in slots  # type: ignore[union-attr]
            slots[step.slot] = len(slots)  # type: ignore[union-attr]
        elif step.opcode is Opcode.PTY:
            slots[step.slave] = len(slots)  # type: ignore[union-attr]
    for step, op in zip(children, decoded.ops, strict=True):
        means = _means(decoded, op)
        _check_op(step, op, means, slots)
        _check_data(step, op, means)


def test_every_plan_decodes_to_its_steps() -> None:
    for name, plan in corpus().items():
        try:
            _check_plan(plan, plan.encode())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_the_checker_takes_every_plan() -> None:
    refused = [name for name, plan in corpus().items() if not _core.plan_check(plan.encode())]
    assert refused == []


@settings(max_examples=100)
@given(specs(), st.sampled_from(sorted(HOSTS)), st.booleans())
def test_any_spec_makes_a_plan_that_the_checker_takes(spec: Any, host: str, template: bool) -> None:
    try:
        plan = compile_spec(spec, HOSTS[host], template=template)
    except (SpecError, Unavailable):
        assume(False)
    raw = plan.encode(id_slot=65536)
    assert _core.plan_check(raw)
    _check_plan(plan, raw)


@pytest.mark.parametrize("slot", [1 << 16, 1 << 20, (1 << 32) - (1 << 16)])
def test_the_id_map_is_the_text_that_the_kernel_takes(slot: int) -> None:
    decoded = decode(plan_of("root, v2").encode(id_slot=slot))
    assert decoded.text(decoded.header.uid_map) == f"0 {slot} 65536\n"
    assert decoded.text(decoded.header.gid_map) == f"0 {slot} 65536\n"


def test_one_id_is_mapped_to_the_caller_s_own() -> None:
    decoded = decode(plan_of("user, one id", user="7:8").encode())
    assert decoded.text(decoded.header.uid_map) == "7 1001 1\n"
    assert decoded.text(decoded.header.gid_map) == "8 1002 1\n"


def test_the_launcher_writes_no_map_that_newuidmap_will() -> None:
    head = decode(plan_of("user, subids", profile="standard").encode()).header
    assert (head.uid_map, head.gid_map) == (0, 0)


def test_bytes_that_are_no_text_arrive_as_they_were() -> None:
    plan = plan_of(args=["true", b"\xff\x80", "ü"], env={"A": b"\xfe"})
    decoded = decode(plan.encode())
    entries = struct.unpack_from("<4Q", decoded.raw, decoded.header.argv)
    assert [decoded.bytes_at(e) for e in entries[:3]] == [b"true", b"\xff\x80", "ü".encode()]
    assert entries[3] == 0
    assert b"A=\xfe\0" in decoded.raw


def test_a_mount_option_s_value_cannot_become_another_option() -> None:
    """Values go to fsconfig(2) one by one; a comma in one is a comma."""
    options = (("mode", "755,suid"), ("ro", "!"), ("x", "!y"), ("e", ""))
    pool = Pool(0)
    pool.raw(bytes(8))
    raw = Decoded(bytes(pool.data), Header(), [])
    offset = pool.options(options)
    raw = raw._replace(raw=bytes(pool.data))
    assert raw.raw[offset:] == b"mode\0=755,suid\0ro\0!\0x\0=!y\0e\0=\0\0"
    assert Pool(0).options(()) == 0


def test_equal_strings_are_stored_once() -> None:
    pool = Pool(100)
    first = pool.text("abc")
    assert (first, pool.text("abc"), pool.text("")) == (100, 100, 104)


def test_vectors_are_aligned_wherever_the_strings_end() -> None:
    for length in range(9):
        plan = plan_of(args=["x" * (length + 1)], env={"PATH": "/"})
        head = decode(plan.encode()).header
        assert head.argv % 8 == head.envp % 8 == 0


# -- fail_at and the cache --------------------------------------------------------------------


def test_a_step_to_fail_is_named_by_its_op_or_its_place() -> None:
    plan = plan_of("root, v2")
    for index, step in enumerate(plan.steps):
        head = decode(plan.encode(fail_at=index, fail_errno=errno.EPERM)).header
        assert head.fail_errno == errno.EPERM
        if step.who == "child":
            assert plan.timeline_index(head.fail_at) == index
        elif isinstance(step, Clone3):
            assert head.fail_at == At.CLONE
        elif step.name == "id-map":
            assert head.fail_at == At.ID_MAP
        else:
            assert head.fail_at == NONE
    assert decode(plan.encode()).header.fail_at == NONE


def test_encoding_again_with_other_arguments_is_not_the_kept_one() -> None:
    plan = plan_of("root, v2")
    first = plan.encode(id_slot=65536)
    assert plan.encode(id_slot=131072) != first
    assert plan.encode(id_slot=65536, fail_at=9) != first
    assert plan.encode(id_slot=65536, cgroup_slot=0) != first
    assert plan.encode(id_slot=65536) == first


def test_describe_says_the_values() -> None:
    plan = plan_of(
        "root, v2", hostname="box", mounts=[Mount.bind("/a", "/b")], limits=Limits(nofile=8)
    )
    said = {(step.name, step.describe()) for step in plan.steps}
    assert {("hostname", "box"), ("rlimit", "nofile 8:8")} <= said
    assert ("open", "/a (rdonly,nosuid,nodev)") in said
    assert steps.capability_names((1 << 41) - 1) == "all"
    assert steps.capability_names(0) == "none"
    assert steps.capability_names(0b101) == "CHOWN, DAC_READ_SEARCH"


# -- what is refused --------------------------------------------------------------------------


def _whole() -> bytes:
    return plan_of("root, v1", mounts=[Mount.bind("/a", "/b")], groups=[5, 6], files={"a": b"x"},
                   profile="standard").encode(id_slot=65536)  # fmt: skip


def test_a_truncated_plan_is_refused_at_every_length() -> None:
    raw = _whole()
    accepted = [size for size in range(len(raw)) if _core.plan_check(raw[:size])]
    assert accepted == []


def test_a_plan_that_is_shorter_than_it_says_or_longer_is_refused() -> None:
    raw = _whole()
    assert _core.plan_check(raw)
    assert not _core.plan_check(raw + b"\0")
    for size in (0, 1, HEADER, len(raw) - 8, len(raw) + 1, 0xFFFFFFFF):
        assert not _core.plan_check(raw[:4] + struct.pack("<I", size) + raw[8:])


def _with(raw: bytes, at: int, value: int, size: int = 4) -> bytes:
    return raw[:at] + value.to_bytes(size, "little") + raw[at + size :]


def _op_at(raw: bytes, code: Opcode) -> int:
    return max(HEADER + OP * i for i, op in enumerate(decode(raw).ops) if op.code == code)


def _field(name: str) -> int:
    return int(getattr(Header, name).offset)


BROKEN_HEADERS = [
    ("magic", 0, "another magic"), ("nops", 0, "no ops"), ("nops", 4097, "too many ops"),
    ("nops", 0xFFFFFFFF, "ops that overflow"), ("njoin", 4000, "more joins than ops"),
    ("nfds", 33, "more descriptors than a request has"), ("uid_map", 8, "a map in the header"),
    ("gid_map", 0xFFFFFFF0, "a map beyond the end"), ("cgroup_slot", 0xFFFFFFFE, "a slot of -2"),
    ("cgroup_slot", 32, "a slot that is not passed"), ("argv", 4, "a vector in the header"),
    ("argv", 0xFFFFFFF8, "a vector beyond the end"), ("envp", 72, "a vector in the ops"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(n, v, id=why) for n, v, why in BROKEN_HEADERS]
)
def test_a_header_is_refused_for(name: str, value: int) -> None:
    assert not _core.plan_check(_with(_whole(), _field(name), value))


BROKEN_OPS = [
    (Opcode.EXEC, 0, 0, 2, "opcode 0"),
    (Opcode.EXEC, 0, max(Opcode) + 1, 2, "an unknown opcode"),
    (Opcode.EXEC, 0, 0xFFFF, 2, "the last opcode there could be"),
    (Opcode.EXEC, 4, 0, 4, "no string where one must be"),
    (Opcode.EXEC, 4, 64, 4, "a string among the ops"),
    (Opcode.EXEC, 4, 0x7FFFFFFF, 4, "a string beyond the end"),
    (Opcode.EXEC, 8, 1, 4, "an operand that it does not have"),
    (Opcode.SETSID, 4, 1, 4, "an operand of a step without any"),
    (Opcode.ATTACH, 4, 160, 4, "a slot beyond the last"),
    (Opcode.ATTACH, 4, 0xFFFFFFFF, 4, "slot -1"),
    (Opcode.FD, 4, 160, 4, "a descriptor slot beyond the last"),
    (Opcode.SETGROUPS, 16, 1 << 63, 8, "more data than there is"),
    (Opcode.SETGROUPS, 4, 0, 4, "data of a size at no place"),
    (Opcode.FILE, 8, 0xFFFFFFFF, 4, "data beyond the end"),
    (Opcode.MOUNT, 12, 64, 4, "options among the ops"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "at", "value", "size"), [pytest.param(*row[:4], id=row[4]) for row in BROKEN_OPS]
)
def test_an_op_is_refused_for(code: Opcode, at: int, value: int, size: int) -> None:
    raw = _whole()
    assert not _core.plan_check(_with(raw, _op_at(raw, code) + at, value, size))


def test_a_string_that_is_not_ended_is_refused() -> None:
    raw = _whole()
    assert raw[-1] == 0
    assert not _core.plan_check(raw[:-1] + b"x")


def test_a_list_with_a_key_but_no_value_is_refused() -> None:
    raw = _whole()
    op = decode(raw).ops[(_op_at(raw, Opcode.MOUNT) - HEADER) // OP]
    assert not _core.plan_check(_with(raw, raw.index(b"\0", op.c), 0x41, 1))


def test_a_vector_is_refused_for_its_entries() -> None:
    raw = _whole()
    argv = decode(raw).header.argv
    for entry in (1, HEADER, len(raw), 1 << 32, (1 << 32) + argv, 1 << 63):
        assert not _core.plan_check(_with(raw, argv, entry, 8))
    assert not _core.plan_check(_with(raw, _field("argv"), argv + 4))


def test_vectors_that_share_entries_are_refused() -> None:
    """Each entry is made a pointer once: of a shared one the second time would make a wild one."""
    raw = plan_of("root, v2", args=["a", "b", "c"], env={}).encode()
    argv = decode(raw).header.argv
    assert not _core.plan_check(_with(raw, _field("envp"), argv + 8))


def test_any_corruption_is_taken_or_refused_and_never_crashes() -> None:
    """In this process: a read outside of the plan would end it, or be seen by core/."""
    chance = random.Random(1)
    verdicts = {True: 0, False: 0}
    for raw in mutants(chance, 20_000):
        verdicts[_core.plan_check(raw)] += 1
    assert min(verdicts.values()) > 1000, "the mutations are too harmless, or too wild"


@given(st.binary(max_size=512))
def test_noise_is_refused(raw: bytes) -> None:
    assert not _core.plan_check(raw)
    head = b"NSB1" + struct.pack("<I", len(raw) + 8)
    assert not _core.plan_check(head + raw) or len(raw) >= HEADER + OP - 8


def test_a_step_without_operands_is_all_zero() -> None:
    op = Simple(Opcode.SETSID, "setsid", "", "profile").encode(Pool(0), {})
    assert tuple(op) == (0, 0, 0, 0, 0, 0)
    assert Unshare(Clone.NEWNET, "net").encode(Pool(0), {}).n == Clone.NEWNET
