# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls, as a payload meets it that wants to be without it."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import scaled

import nsbox
from nsbox import probe, seccomp, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.userns, pytest.mark.kernel]

HERE = Path(__file__).parent
MACHINE = syscalls.machine()
NUMBERS = seccomp.NUMBERS[seccomp.MACHINES[MACHINE][0]] | seccomp.COMMON
SOCKET, PAIR = NUMBERS["socket"], NUMBERS["socketpair"]
UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK = 1, 2, 10, 16, 17, 38, 40
STREAM, DGRAM, RAW, SEQPACKET, OLD_PACKET = 1, 2, 3, 5, 10
GENERIC, AUDIT, NETFILTER = 16, 9, 12  # of netlink, the first is in every kernel
ALL_FRAMES = 0x300  # ETH_P_ALL, big endian
NO_CALL = [NUMBERS[name] for name in seccomp.COMMON]

#: What is in no namespace, or needs a capability: none of it may so much as exist.
SOCKETS = [
    (VSOCK, STREAM, 0),
    (VSOCK, DGRAM, 0),
    (ALG, SEQPACKET, 0),
    (PACKET, RAW, ALL_FRAMES),
    (PACKET, DGRAM, ALL_FRAMES),
    (INET, OLD_PACKET, ALL_FRAMES),
    *((NETLINK, RAW, protocol) for protocol in (AUDIT, GENERIC, NETFILTER, *range(1, 9), 15, 21)),
    *((family, kind, 0) for family in range(64) for kind in (STREAM, DGRAM, SEQPACKET, RAW)
      if family not in (UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK)),
]  # fmt: skip
FORBIDDEN: list[list[Any]] = [
    *([SOCKET, *socket] for socket in SOCKETS),
    *([PAIR, *socket, "buffer"] for socket in SOCKETS[:12]),
    [SOCKET, VSOCK | 1 << 32, STREAM | 1 << 32, 0],
    *([number, 8, "buffer", 0] for number in NO_CALL),
]
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
CALLER = (HERE / "caller.py").read_text()


def caller(calls: list[list[Any]]) -> list[str]:
    return [*PYTHON, CALLER, json.dumps(calls)]


# -- where a payload can be -------------------------------------------------------------------


def in_run(args: list[str], **keywords: Any) -> str:
    return kit.out(kit.run(*args, **keywords))


def as_pid_1(args: list[str], **keywords: Any) -> str:
    return in_run(args, init=False, **keywords)


def in_container(args: list[str], **keywords: Any) -> str:
    with nsbox.Container(args, **keywords) as box:
        assert box.wait(kit.PATIENCE) == 0, box.logs()
        return box.logs("stdout")


def by_exec(args: list[str], **keywords: Any) -> str:
    with nsbox.Container(["sleep", "1000"], **keywords) as box:
        return kit.out(box.exec(args, capture_output=True, text=True, timeout=kit.PATIENCE))


def in_pod(args: list[str], **keywords: Any) -> str:
    spec = nsbox.ContainerSpec("a", args, **keywords)
    with nsbox.Pod("filtered", containers=[spec], restart_policy="Never") as pod:
        assert pod.wait(kit.PATIENCE) == "Succeeded", pod["a"].logs()
        return pod["a"].logs()


PLACES: dict[str, Callable[..., str]] = {
    "run": in_run,
    "PID 1": as_pid_1,
    "container": in_container,
    "exec": by_exec,
    "pod": in_pod,
}
each_place = pytest.mark.parametrize("place", PLACES)
hardened = pytest.mark.parametrize("profile", ["strict", "standard"])


def answers(place: str, calls: list[list[Any]], **keywords: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(PLACES[place](caller(calls), **keywords))
    return found


# -- what is refused --------------------------------------------------------------------------


@each_place
@hardened
def test_no_other_sockets_and_no_io_uring_by_any_way(place: str, profile: str) -> None:
    wanted = [errno.ENOSYS if row[0] in NO_CALL else errno.EAFNOSUPPORT for row in FORBIDDEN]
    for way, got in answers(place, FORBIDDEN, profile=profile).items():
        wrong = [(row, errno.errorcode.get(err, err)) for row, err, want
                 in zip(FORBIDDEN, got, wanted, strict=True) if err != want]  # fmt: skip
        assert wrong == [], way


@pytest.mark.kernel("root")
@pytest.mark.parametrize("place", ["run", "exec"])
def test_without_the_profile_the_same_calls_are_the_kernel_s(place: str) -> None:
    """Else the test above would pass on a kernel that has none of it."""
    for way, got in answers(place, FORBIDDEN, profile="none").items():
        by_call = dict(zip(map(tuple, FORBIDDEN), got, strict=True))
        assert by_call[SOCKET, NETLINK, RAW, GENERIC] == 0, way
        assert got.count(0) >= 3, way
        assert errno.ENOSYS not in [by_call[number, 8, "buffer", 0] for number in NO_CALL], way


@hardened
def test_raw_sockets_are_a_matter_of_capabilities(profile: str) -> None:
    raw = [[SOCKET, family, RAW, 1] for family in (INET, INET6)]
    assert answers("run", raw, profile=profile)["here"] == [errno.EPERM] * 2
    more = answers("run", raw, profile=profile, capabilities=["NET_RAW"])
    assert more["here"] == [0, 0]


@hardened
@pytest.mark.parametrize("place", ["run", "exec"])
def test_a_capability_brings_the_sockets_that_it_is_for(profile: str, place: str) -> None:
    frames, rules, generic = (
        [SOCKET, PACKET, RAW, ALL_FRAMES],
        [SOCKET, NETLINK, RAW, NETFILTER],
        [SOCKET, NETLINK, RAW, GENERIC],
    )
    calls = [frames, rules, generic, [SOCKET, ALG, SEQPACKET, 0], [SOCKET, VSOCK, STREAM, 0]]
    unheard = errno.EAFNOSUPPORT
    got = answers(place, calls, profile=profile, capabilities=["NET_RAW"])["here"]
    assert got == [0, unheard, unheard, unheard, unheard]
    got = answers(place, calls, profile=profile, capabilities=["NET_ADMIN"])["here"]
    assert got[0] == unheard
    assert got[1] in (0, errno.EPROTONOSUPPORT)  # nf_tables may be a module that is not there
    assert got[2:] == [0, unheard, unheard]


@pytest.mark.skipif(MACHINE != "x86_64", reason="knows the registers of x86_64 only")
@pytest.mark.parametrize(("profile", "refused"), [("strict", True), ("none", False)])
def test_a_tracer_cannot_put_another_call_in_place_of_one(profile: str, refused: bool) -> None:
    code = (HERE / "retargeter.py").read_text()
    said = int(in_run([*PYTHON, code, *map(str, (SOCKET, NETLINK, RAW, GENERIC))],
                      profile=profile))  # fmt: skip
    assert said == -errno.EAFNOSUPPORT if refused else said >= 0


# -- other conventions ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def convention(tmp_path_factory: pytest.TempPathFactory) -> nsbox.Mount:
    if MACHINE != "x86_64" or not shutil.which("gcc"):
        pytest.skip("needs gcc on x86_64")
    program = tmp_path_factory.mktemp("convention") / "convention"
    command = ["gcc", "-O1", "-static", "-no-pie", str(HERE / "convention.c"), "-o", str(program)]
    subprocess.run(command, check=True, timeout=scaled(120))
    return nsbox.Mount.bind(program, "/convention")


def called(program: nsbox.Mount, *args: int | str, **keywords: Any) -> nsbox.Completed:
    return kit.run("/convention", *map(str, args), mounts=[program], **keywords)


BY_OTHERS = [
    pytest.param(("i386", 359, NETLINK, RAW, GENERIC), id="socket by int 0x80"),
    pytest.param(("socketcall", 1, NETLINK, RAW, GENERIC), id="socketcall"),
    pytest.param(("x32", SOCKET, NETLINK, RAW, GENERIC), id="socket of x32"),
]


@pytest.mark.parametrize("args", BY_OTHERS)
@pytest.mark.parametrize("init", [True, False])
def test_strict_ends_who_calls_by_another_convention(
    convention: nsbox.Mount, args: tuple[Any, ...], init: bool
) -> None:
    assert kit.out(called(convention, "x86_64", *args[1:])) or args[0] == "socketcall"
    done = called(convention, *args, init=init)
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, "")
    assert done.reason is nsbox.Reason.SIGNALED
    harmless = called(convention, "i386", 20, 0, 0, 0)  # getpid
    assert harmless.returncode == -signal.SIGSYS


@pytest.mark.parametrize("args", BY_OTHERS)
def test_standard_refuses_the_same_by_any_convention(
    convention: nsbox.Mount, args: tuple[Any, ...]
) -> None:
    said = int(kit.out(called(convention, *args, profile="standard")))
    assert said == -(errno.ENOSYS if args[0] == "x32" else errno.EAFNOSUPPORT)


def test_without_the_profile_another_convention_makes_sockets(convention: nsbox.Mount) -> None:
    for param in BY_OTHERS[:2]:
        if (said := int(kit.out(called(convention, *param.values[0], profile="none")))) < 0:
            pytest.skip(f"this kernel runs nothing of 32 bits: {said}")
    assert int(kit.out(called(convention, "x86_64", SOCKET, NETLINK, RAW, GENERIC,
                              profile="none"))) > 2  # fmt: skip


SMALL = """
static long call(long n, long a, long b, long c)
{
    long ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "a"(n), "b"(a), "c"(b), "d"(c) : "memory");
    return ret;
}
void _start(void)
{
    call(4, 1, (long)"32 bits\\n", 8);                               /* write */
    call(1, call(359, 1, 1, 0) > 2 && call(359, 40, 1, 0) == -97, 0, 0); /* exit */
}
"""


def test_standard_runs_a_program_of_32_bits_and_strict_does_not(tmp_path: Path) -> None:
    if MACHINE != "x86_64" or not shutil.which("gcc"):
        pytest.skip("needs gcc on x86_64")
    source, program = tmp_path / "small.c", tmp_path / "small"
    source.write_text(SMALL)
    flags = ["-m32", "-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(program)], check=True,
                   timeout=scaled(60))  # fmt: skip
    mounts = [nsbox.Mount.bind(program, "/small")]
    done = kit.run("/small", mounts=mounts, profile="standard")
    assert (done.stdout, done.returncode) == ("32 bits\n", 1), "UNIX is there, VSOCK is not"
    done = kit.run("/small", mounts=mounts)
    assert (done.stdout, done.returncode) == ("", -signal.SIGSYS)


# -- what goes on working ---------------------------------------------------------------------

ORDINARY = """
import asyncio, os, socket, subprocess
server = socket.create_server(("127.0.0.1", 80))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
client.sendall(b"tcp"); assert peer.recv(9) == b"tcp"
a, b = socket.socketpair()
a.sendall(b"unix"); assert b.recv(9) == b"unix"
with socket.socket(socket.AF_UNIX) as s: s.bind("/tmp/socket")
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s: s.bind(("::1", 0))
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s: s.bind((0, 0))
assert socket.if_nameindex() == [(1, "lo")]
assert socket.getaddrinfo("127.0.0.1", 80, flags=socket.AI_ADDRCONFIG | socket.AI_NUMERICHOST)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping:
    ping.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b"echo", ("127.0.0.1", 0))
    ping.settimeout(10); assert ping.recv(99).endswith(b"echo")
asyncio.run(asyncio.sleep(0))
subprocess.run(["sh", "-c", "exit 0"], check=True)
print("fine")
"""


@each_place
@hardened
def test_ordinary_programs_go_on_working(place: str, profile: str) -> None:
    assert PLACES[place]([*PYTHON, ORDINARY], profile=profile).strip() == "fine"


@pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")
def test_busybox_sees_and_uses_its_network() -> None:
    serve = "echo found > /tmp/index.html; busybox httpd -p 127.0.0.1:8 -h /tmp"
    script = f"{serve}; busybox ip addr show lo; busybox wget -qO- http://127.0.0.1:8/"
    said = kit.out(kit.sh(script))
    assert "LOOPBACK" in said
    assert said.endswith("found")


@pytest.mark.skipif(not shutil.which("ip"), reason="needs ip(8)")
def test_ip_shows_links_and_changes_them_where_it_may() -> None:
    assert "LOOPBACK" in kit.out(kit.run("ip", "link"))
    script = "ip link add nsb0 type veth peer name nsb1 && ip -o link show dev nsb0"
    assert "nsb0@nsb1" in kit.out(kit.sh(script, capabilities=["NET_ADMIN"], proc="full"))
    assert "Operation not permitted" in kit.sh(script).stderr


# -- what is told -----------------------------------------------------------------------------


@each_place
@hardened
def test_the_payload_is_under_one_filter_more_than_the_caller(place: str, profile: str) -> None:
    def filters(text: str) -> int:
        found = kit.status(text)
        assert found["Seccomp"] in ("0", "2")
        return int(found.get("Seccomp_filters", int(found["Seccomp"]) // 2))

    before = filters(Path("/proc/self/status").read_text())
    args = ["cat", "/proc/self/status"]
    assert filters(PLACES[place](args, profile=profile)) == before + 1
    assert filters(PLACES[place](args, profile="none")) == before


@hardened
def test_applied_says_what_the_filter_is_about_and_what_not(profile: str) -> None:
    applied = kit.run("true", profile=profile).applied
    assert applied["seccomp"] == "sockets: UNIX, INET, INET6, NETLINK_ROUTE; " \
        "no io_uring_setup, io_uring_enter, io_uring_register"  # fmt: skip
    assert applied["syscalls"].startswith("missing: ")
    assert "seccomp" not in kit.run("true", profile="none").applied


def test_a_filter_that_the_kernel_refuses_lets_nothing_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is no filter without a return."""
    made = seccomp.program
    monkeypatch.setattr(seccomp, "program", lambda *args: made(*args)[:-8])
    with pytest.raises(nsbox.SetupError) as caught:
        kit.run("echo", "ran", env={"REFUSED": "1"})
    assert (caught.value.name, caught.value.call) == ("seccomp", "seccomp")
    assert (caught.value.errno, caught.value.field) == (errno.EINVAL, "profile")


UNDER_A_FILTER = """
import ctypes, os, struct, sys
import nsbox
from nsbox import syscalls
number, libc = syscalls.number_of("seccomp"), ctypes.CDLL(None)
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50000 | 1), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, program, 0, 0) == 0
try:
    nsbox.run(["true"])
except nsbox.Unavailable as e:
    print(e.feature, e.alternatives)
done = nsbox.run(["echo", "degraded"], best_effort=True, capture_output=True, text=True)
print(done.stdout, done.applied["seccomp"])
print(nsbox.run(["true"], profile="none").returncode)
"""


@pytest.mark.leaks_ok("another process starts and ends all of it")
def test_a_caller_that_may_load_no_filter_is_told(tmp_path: Path) -> None:
    import sys

    done = subprocess.run([sys.executable, "-c", UNDER_A_FILTER], capture_output=True, text=True,
                          timeout=scaled(60), check=True, cwd=HERE.parents[1])  # fmt: skip
    first, second, why, last = done.stdout.splitlines()
    assert first.startswith("seccomp ('best_effort=True'")
    assert second == "degraded"
    assert why.strip().startswith("missing: ")
    assert last == "0"


def test_this_host_loads_filters() -> None:
    assert probe.host().seccomp
