# SPDX-License-Identifier: Apache-2.0
"""What a filter answers, by an interpreter of classic BPF, against the rules in other words."""

from __future__ import annotations

import errno
import itertools
import random
import struct

import pytest

from nsbox import seccomp
from nsbox.profile import PROFILES
from nsbox.seccomp import Arch, Ret, Rules

pytestmark = pytest.mark.leaks_ok("interprets bytes, and starts nothing")

NO_FAMILY = Ret.ERRNO | errno.EAFNOSUPPORT
NO_CALL = Ret.ERRNO | errno.ENOSYS
UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK = 1, 2, 10, 16, 17, 38, 40
STREAM, DGRAM, RAW, OLD_PACKET = 1, 2, 3, 10
CLOEXEC = 0o2000000


def rules(profile: str, *more: str) -> Rules:
    made = PROFILES[profile]
    assert made.sockets is not None
    return Rules((*made.sockets, *more), made.absent, made.foreign)


def answer(program: bytes, arch: int, number: int, *args: int) -> int:
    """Of the kernel, if it had this filter: a small interpreter, which checks that it ends."""
    words = [arg & (1 << 64) - 1 for arg in (*args, *(0,) * (6 - len(args)))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *words)
    lines = list(struct.iter_unpack("<HBBI", program))
    value, at = 0, 0
    while True:
        code, true, false, k = lines[at]
        at += 1
        if code == seccomp.LOAD:
            assert k % 4 == 0
            (value,) = struct.unpack_from("<I", data, k)
        elif code == seccomp.AND:
            value &= k
        elif code == seccomp.EQUAL:
            at += true if value == k else false
        elif code == seccomp.AT_LEAST:
            at += true if value >= k else false
        else:
            assert code == seccomp.RETURN, code
            return int(k)


EVERY = [
    pytest.param(machine, profile, id=f"{profile} on {machine}")
    for machine in seccomp.MACHINES
    for profile in ("strict", "standard")
]


@pytest.mark.parametrize(("machine", "profile"), EVERY)
def test_a_filter_is_small(machine: str, profile: str) -> None:
    """The kernel goes through it a thousand times when it takes it."""
    for more in ((), ("PACKET",), ("PACKET", "NETLINK")):
        assert len(seccomp.program(machine, rules(profile, *more))) <= 40 * 8


@pytest.mark.parametrize(("machine", "profile"), EVERY)
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_families_and_types_and_protocols(machine: str, profile: str, call: str) -> None:
    native, compat = seccomp.MACHINES[machine]
    program = seccomp.program(machine, rules(profile))
    for arch in (native, compat) if profile == "standard" else (native,):
        number = seccomp.NUMBERS[arch][call]
        for family, kind, protocol in itertools.product(
            [*range(64), 0x7FFFFFFF, -1], [STREAM, DGRAM, RAW, 5, OLD_PACKET], [0, 1, 9, 12, 16, -1]
        ):
            good = family in (UNIX, INET6)
            good |= family == INET and kind != OLD_PACKET
            good |= family == NETLINK and protocol == 0
            for flags, high in ((0, 0), (CLOEXEC, 0), (0, 0xDEADBEEF << 32)):
                args = [(word & 0xFFFFFFFF) | high for word in (family, kind | flags, protocol)]
                wanted = Ret.ALLOW if good else NO_FAMILY
                assert answer(program, arch, number, *args) == wanted, args


def test_the_upper_half_of_an_argument_makes_no_family() -> None:
    """Nor hides one: the kernel looks at an int."""
    program = seccomp.program("x86_64", rules("strict"))
    assert answer(program, Arch.X86_64, 41, VSOCK | 1 << 32, STREAM, 0) == NO_FAMILY
    assert answer(program, Arch.X86_64, 41, VSOCK << 32 | UNIX, STREAM, 0) == Ret.ALLOW
    assert answer(program, Arch.X86_64, 41, NETLINK, RAW, 9 | 1 << 32) == NO_FAMILY


@pytest.mark.parametrize(("machine", "profile"), EVERY)
def test_every_other_call_is_allowed_whatever_its_arguments(machine: str, profile: str) -> None:
    native, _ = seccomp.MACHINES[machine]
    program, chance = seccomp.program(machine, rules(profile)), random.Random(1)
    sockets = set(seccomp.NUMBERS[native].values())
    absent = set(seccomp.COMMON.values())
    for number in [*range(1024), 0x3FFFFFFF, 0xFFFFFFFF]:
        if number in sockets:
            continue
        args = [chance.choice((0, 1, 38, 40, chance.getrandbits(64))) for _ in range(6)]
        wanted = NO_CALL if number in absent else Ret.ALLOW
        assert answer(program, native, number, *args) == wanted, number


@pytest.mark.parametrize("number", [0, 41, 53, 425, 512, 547, 0x3FFFFFFE])
def test_x32_is_foreign(number: int) -> None:
    for profile, wanted in (("strict", Ret.KILL_PROCESS), ("standard", NO_CALL)):
        program = seccomp.program("x86_64", rules(profile))
        assert answer(program, Arch.X86_64, seccomp.X32[0] | number, UNIX, STREAM) == wanted


def test_a_call_that_a_tracer_skips_kills_nobody() -> None:
    """It is number -1 then, which has the bit of x32."""
    for profile in ("strict", "standard"):
        program = seccomp.program("x86_64", rules(profile))
        assert answer(program, Arch.X86_64, -1) == Ret.ALLOW


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_strict_kills_who_calls_by_another_convention(machine: str) -> None:
    native, _ = seccomp.MACHINES[machine]
    program = seccomp.program(machine, rules("strict"))
    for arch in [arch for arch in Arch if arch is not native] + [0, 0xFFFFFFFF]:
        for number in (0, 1, 20, 41, 102, 359):
            assert answer(program, arch, number, UNIX, STREAM) == Ret.KILL_PROCESS


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_standard_knows_no_third_convention(machine: str) -> None:
    program = seccomp.program(machine, rules("standard"))
    for arch in [arch for arch in Arch if arch not in seccomp.MACHINES[machine]] + [0]:
        assert answer(program, arch, 1) == NO_CALL


def test_standard_runs_programs_of_32_bits_without_socketcall_s_sockets() -> None:
    program = seccomp.program("x86_64", rules("standard"))
    assert answer(program, Arch.I386, 1) == answer(program, Arch.I386, 4) == Ret.ALLOW
    assert answer(program, Arch.I386, 425) == NO_CALL
    for call in range(22):
        wanted = NO_FAMILY if call in (1, 8) else Ret.ALLOW
        assert answer(program, Arch.I386, 102, call, 0x1000) == wanted
        assert answer(program, Arch.I386, 102, call | 1 << 32, 0x1000) == wanted


def test_numbers_of_one_convention_mean_nothing_in_another() -> None:
    program = seccomp.program("x86_64", rules("standard"))
    assert answer(program, Arch.I386, 41, VSOCK) == Ret.ALLOW  # dup
    assert answer(program, Arch.X86_64, 102, 1) == Ret.ALLOW  # getuid
    assert answer(program, Arch.X86_64, 359, VSOCK) == Ret.ALLOW  # nothing


@pytest.mark.parametrize(
    ("more", "good", "bad"),
    [
        pytest.param("PACKET", [(PACKET, RAW, 3), (INET, OLD_PACKET, 0)], [(NETLINK, RAW, 12)],
                     id="PACKET"),
        pytest.param("NETLINK", [(NETLINK, RAW, 12), (NETLINK, DGRAM, 0)], [(PACKET, RAW, 3)],
                     id="NETLINK"),
    ],
)  # fmt: skip
def test_more_sockets_are_those_and_no_others(
    more: str, good: list[tuple[int, ...]], bad: list[tuple[int, ...]]
) -> None:
    for machine, (native, _) in seccomp.MACHINES.items():
        number = seccomp.NUMBERS[native]["socket"]
        program = seccomp.program(machine, rules("strict", more))
        assert {answer(program, native, number, *args) for args in good} == {Ret.ALLOW}
        always = [(VSOCK, STREAM, 0), (ALG, 5, 0)]
        assert {answer(program, native, number, *args) for args in bad + always} == {NO_FAMILY}


def test_calls_that_are_told_to_be_absent_can_be_any_that_are_known() -> None:
    """The list is data: one that is empty, and one with neighbours and a gap."""
    for absent in ((), ("io_uring_setup",), ("io_uring_setup", "io_uring_register")):
        program = seccomp.program("x86_64", Rules(("UNIX",), absent))
        for name, number in seccomp.COMMON.items():
            wanted = NO_CALL if name in absent else Ret.ALLOW
            assert answer(program, Arch.X86_64, number) == wanted


def test_the_interpreter_would_see_a_filter_that_lets_pass() -> None:
    """Without its checks a filter allows: the tests above can fail."""
    whole = seccomp.program("x86_64", rules("strict"))
    open_to_all = whole.replace(struct.pack("<HBBI", 6, 0, 0, NO_FAMILY),
                                struct.pack("<HBBI", 6, 0, 0, Ret.ALLOW))  # fmt: skip
    assert open_to_all != whole
    assert answer(open_to_all, Arch.X86_64, 41, VSOCK, STREAM, 0) == Ret.ALLOW
