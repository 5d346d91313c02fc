# SPDX-License-Identifier: Apache-2.0
"""Who the payload is: ids, capabilities, limits of its process, and what it does not inherit."""

from __future__ import annotations

import os
import platform
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from run import kit
from support import probe_subuid, scaled

import nsbox
from nsbox.names import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns
CAP_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
STANDARD = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "NET_BIND_SERVICE", "SETFCAP",
)  # fmt: skip
NOBODY_MAPS_GROUPS = not kit.ROOT and bool(probe_subuid())


def mask(*names: str) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def capabilities(**keywords: Any) -> dict[str, int]:
    found = kit.status_inside(**keywords)
    return {name: int(found[name], 16) for name in CAP_SETS}


def four(value: str) -> list[str]:
    return [value] * 4


# -- ids ----------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_default_is_an_unprivileged_user_in_no_other_group() -> None:
    found = kit.status_inside()
    assert found["Uid"].split() == found["Gid"].split() == four("1000")
    assert found["Groups"] == ""


@pytest.mark.kernel
def test_standard_is_root_of_its_own_user_namespace() -> None:
    found = kit.status_inside(profile="standard")
    assert found["Uid"].split() == found["Gid"].split() == four("0")
    assert found["Groups"] == ""


USERS = [
    (0, "0", "0"), (1234, "1234", "1234"), ("77", "77", "77"), ("1000:1000", "1000", "1000"),
    ("5:6", "5", "6"), ("65534:0", "65534", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("user", "uid", "gid"), USERS, ids=lambda v: repr(v))
def test_user_is_exactly_as_asked(user: Any, uid: str, gid: str) -> None:
    found = kit.status_inside(user=user)
    assert (found["Uid"].split(), found["Gid"].split()) == (four(uid), four(gid))


@pytest.mark.kernel
@pytest.mark.root
def test_outside_the_payload_is_nobodys_user() -> None:
    args = ["sleep", "1000"]
    with nsbox.Popen(args, init=False) as one, nsbox.Popen(args, init=False) as two:
        uids = [os.stat(f"/proc/{process.pid}").st_uid for process in (one, two)]
    assert min(uids) > 1 << 30
    assert uids[0] // 65536 != uids[1] // 65536


@pytest.mark.kernel
@pytest.mark.user
def test_outside_the_payload_of_an_ordinary_user_is_that_user() -> None:
    text = kit.out(kit.run("cat", "/proc/self/uid_map")).split()
    assert text == ["1000", str(os.geteuid()), "1"]


@pytest.mark.kernel
@pytest.mark.skipif(NOBODY_MAPS_GROUPS, reason="only one id can be mapped here")
def test_groups_are_exactly_those_asked_for() -> None:
    assert kit.status_inside(groups=[7, 5])["Groups"].split() == ["5", "7"]


@pytest.mark.skipif(not NOBODY_MAPS_GROUPS, reason="a range of ids can be mapped here")
def test_groups_that_cannot_be_mapped_are_refused_with_the_remedy() -> None:
    with pytest.raises(nsbox.Unavailable, match="subgid"):
        nsbox.run(["true"], groups=[5])


@pytest.mark.user
def test_a_user_without_a_user_namespace_must_be_the_caller() -> None:
    with pytest.raises(nsbox.Unavailable) as caught:
        nsbox.run(["true"], user=5, namespaces=[])
    assert caught.value.feature == "user"


@pytest.mark.kernel
@pytest.mark.root
def test_root_becomes_any_user_without_a_user_namespace() -> None:
    found = kit.status_inside(user="5:6", groups=[7], namespaces=[])
    assert (found["Uid"].split(), found["Gid"].split()) == (four("5"), four("6"))
    assert found["Groups"].split() == ["7"]


# -- capabilities -------------------------------------------------------------------------------


@pytest.mark.kernel
def test_strict_has_no_capability_in_any_set() -> None:
    for user in (None, 0):
        assert capabilities(user=user) == dict.fromkeys(CAP_SETS, 0)


@pytest.mark.kernel
def test_standard_has_its_list_exactly() -> None:
    wanted = mask(*STANDARD)
    found = capabilities(profile="standard")
    assert (found["CapPrm"], found["CapEff"], found["CapBnd"]) == (wanted, wanted, wanted)
    assert found["CapAmb"] == 0


def test_standard_has_those_asked_for_exactly() -> None:
    wanted = mask("NET_BIND_SERVICE", "SYS_CHROOT")
    found = capabilities(profile="standard", capabilities=["CAP_NET_BIND_SERVICE", "sys_chroot"])
    assert (found["CapPrm"], found["CapEff"], found["CapBnd"]) == (wanted, wanted, wanted)


def test_an_empty_list_is_none_at_all() -> None:
    assert capabilities(profile="standard", capabilities=[]) == dict.fromkeys(CAP_SETS, 0)


@pytest.mark.kernel
def test_a_user_that_is_not_root_keeps_them_through_execve() -> None:
    wanted = mask("NET_BIND_SERVICE")
    found = capabilities(profile="standard", user=1000, capabilities=["NET_BIND_SERVICE"])
    assert found == dict.fromkeys(CAP_SETS, wanted)


@pytest.mark.parametrize("user", [0, 1000])
def test_capabilities_asked_for_in_strict_are_there(user: int) -> None:
    wanted = mask("NET_BIND_SERVICE")
    found = capabilities(user=user, capabilities=["NET_BIND_SERVICE"])
    assert (found["CapPrm"], found["CapEff"], found["CapBnd"]) == (wanted, wanted, wanted)


def test_a_capability_in_force_and_its_absence() -> None:
    allowed = {"profile": "standard", "capabilities": ["SYS_CHROOT"]}
    chroot = "import os\nos.chroot('/tmp')"
    assert kit.python(chroot, **allowed).ok
    assert "PermissionError" in str(kit.python(chroot, profile="standard").stderr)


@pytest.mark.user
def test_capabilities_that_the_caller_lacks_are_unavailable() -> None:
    with pytest.raises(nsbox.Unavailable) as caught:
        nsbox.run(["true"], capabilities=["NET_RAW"], namespaces=[])
    assert caught.value.feature == "capabilities"


@pytest.mark.kernel
@pytest.mark.parametrize("profile", ["strict", "standard"])
def test_no_new_privs_is_set(profile: str) -> None:
    assert kit.status_inside(profile=profile)["NoNewPrivs"] == "1"


def test_profile_none_leaves_no_new_privs_as_the_caller_has_it() -> None:
    with open("/proc/self/status") as file:
        ours = kit.status(file.read())["NoNewPrivs"]
    assert kit.status_inside(profile="none")["NoNewPrivs"] == ours


PRCTL = "import ctypes; print(ctypes.CDLL(None).prctl({}, 0, 0, 0, 0))"


@pytest.mark.kernel
def test_securebits_of_strict_are_locked() -> None:
    assert int(kit.out(kit.python(PRCTL.format(27)))) == 0xCF


@pytest.mark.kernel
def test_the_payload_cannot_make_user_namespaces() -> None:
    assert kit.run("unshare", "--user", "true").returncode != 0
    assert kit.run("unshare", "--user", "--map-root-user", "true", profile="none").ok
    assert kit.run("unshare", "--uts", "true").returncode != 0


# -- limits of the process ----------------------------------------------------------------------


def limits_inside(**keywords: Any) -> dict[str, tuple[str, str]]:
    lines = kit.out(kit.run("cat", "/proc/self/limits", **keywords)).splitlines()[1:]
    return {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}  # type: ignore[misc]


@pytest.mark.kernel
def test_rlimits_of_strict() -> None:
    found = limits_inside()
    assert found["Max core file size"] == ("1", "1")
    assert found["Max open files"] == ("1024", "4096")
    assert found["Max file size"] == (str(256 << 20),) * 2
    assert found["Max msgqueue size"] == ("0", "0")
    assert found["Max realtime priority"] == ("0", "0")


def test_rlimits_that_were_asked_for() -> None:
    found = limits_inside(rlimits={"nofile": (10, 20), "cpu": 5, "stack": 1 << 20})
    assert found["Max open files"] == ("10", "20")
    assert found["Max cpu time"] == ("5", "5")
    assert found["Max stack size"] == (str(1 << 20),) * 2


def test_rlimit_cpu_ends_a_busy_payload_with_its_signal() -> None:
    done = kit.sh("while :; do :; done", rlimits={"cpu": (1, 2)})
    assert (done.returncode, done.reason) == (-signal.SIGXCPU, nsbox.Reason.SIGNALED)


def test_an_rlimit_above_the_callers_own_is_unavailable() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("the caller has no limit")
    with pytest.raises(nsbox.Unavailable, match=str(hard)):
        nsbox.run(["true"], rlimits={"nofile": hard + 1})


def test_a_crash_leaves_no_core() -> None:
    done = kit.sh("sh -c 'kill -SEGV $$'; echo $?; ls -A /tmp")
    assert kit.out(done).split() == ["139"]


# -- not inherited ------------------------------------------------------------------------------


@pytest.fixture
def odd_caller() -> Iterator[None]:
    """A caller that ignores, blocks and masks what a program is rather not started with."""
    ignored = {sig: signal.signal(sig, signal.SIG_IGN) for sig in (signal.SIGPIPE, signal.SIGUSR1)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    umask = os.umask(0o777)
    yield
    os.umask(umask)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for sig, handler in ignored.items():
        signal.signal(sig, handler)


@pytest.mark.kernel
@pytest.mark.usefixtures("odd_caller")
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
@pytest.mark.parametrize("profile", ["strict", "none"])
def test_signals_and_umask_are_the_default_ones(init: bool, profile: str) -> None:
    found = kit.status_inside(init=init, profile=profile)
    for name in ("SigBlk", "SigIgn", "SigPnd", "ShdPnd"):
        assert int(found[name], 16) == 0, name
    assert found["Umask"] == "0022"


@pytest.mark.usefixtures("odd_caller")
def test_a_broken_pipe_ends_the_writer() -> None:
    assert (
        kit.out(kit.sh("{ yes; echo $? >&2; } 2>/tmp/code | head -n1; cat /tmp/code")) == "y\n141"
    )


def session(**keywords: Any) -> tuple[list[int], int]:
    """(pid, parent, group, session, terminal), and nothing of the caller's."""
    text = kit.out(kit.sh("read line < /proc/self/stat; echo $line", **keywords))
    fields = text.rpartition(")")[2].split()
    return [int(text.split()[0]), *map(int, fields[1:4])], int(fields[4])


@pytest.mark.kernel
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_a_session_of_its_own_without_a_terminal(init: bool) -> None:
    (pid, parent, group, leader), terminal = session(init=init)
    assert pid == group == leader
    assert parent == (1 if init else 0)
    assert terminal == 0
    assert kit.sh("cat < /dev/tty", profile="standard").returncode != 0


KEYCTL = {"x86_64": 250, "aarch64": 219}.get(platform.machine())
SESSION_KEYRING = f"import ctypes; print(ctypes.CDLL(None).syscall({KEYCTL}, 0, -3, 0))"


@pytest.mark.kernel
@pytest.mark.skipif(KEYCTL is None, reason="the number of keyctl(2) is not known here")
@pytest.mark.parametrize("profile", ["strict", "standard", "none"])
def test_a_session_keyring_of_its_own(profile: str) -> None:
    """The caller's session keyring is inherited by ordinary children: one runs under another."""
    args = ["/usr/bin/python3", "-I", "-S", "-c", SESSION_KEYRING]
    ours = {subprocess.run(args, capture_output=True, check=True).stdout for _ in range(2)}
    first, second = (kit.out(kit.python(SESSION_KEYRING, profile=profile)) for _ in range(2))
    assert int(first) > 0
    assert first != second
    assert first.encode() + b"\n" not in ours


# -- descriptors --------------------------------------------------------------------------------


@pytest.fixture
def open_descriptors() -> Iterator[list[int]]:
    """Fifty inheritable descriptors of a directory and a pipe, as a careless caller has them."""
    read, write = os.pipe()
    held = [read, write, *(os.open("/", os.O_RDONLY) for _ in range(48))]
    for fd in held:
        os.set_inheritable(fd, True)
    yield held
    for fd in held:
        os.close(fd)


LIST_FDS = (
    "import os\nfds = map(int, os.listdir('/proc/self/fd'))\n"
    "print(*sorted(fd for fd in fds if os.path.lexists(f'/proc/self/fd/{fd}')))"
)


@pytest.mark.kernel
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
@pytest.mark.parametrize("profile", ["strict", "none"])
def test_descriptors_are_0_1_and_2(open_descriptors: list[int], init: bool, profile: str) -> None:
    assert kit.out(kit.python(LIST_FDS, init=init, profile=profile)) == "0 1 2"


@pytest.mark.kernel
@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_descriptors_that_were_asked_for_have_their_own_numbers(
    open_descriptors: list[int], init: bool
) -> None:
    read, write = open_descriptors[:2]
    done = kit.python(LIST_FDS, pass_fds=[write], init=init)
    assert kit.out(done) == f"0 1 2 {write}"
    code = f"import os; os.write({write}, b'hello')"
    assert kit.python(code, pass_fds=[write, read], init=init).ok
    assert os.read(read, 100).endswith(b"hello")


def test_many_descriptors_are_passed(open_descriptors: list[int]) -> None:
    many = open_descriptors[:20]
    done = kit.python(LIST_FDS, pass_fds=many)
    assert kit.out(done) == " ".join(map(str, [0, 1, 2, *sorted(many)]))


def test_more_descriptors_than_can_be_passed_is_an_error_of_pass_fds(
    open_descriptors: list[int],
) -> None:
    with pytest.raises(nsbox.NsboxError) as caught:
        kit.run("true", pass_fds=open_descriptors)
    assert getattr(caught.value, "field", "") == "pass_fds"


@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_a_passed_descriptor_may_have_any_number(init: bool) -> None:
    """Some of them are what set-up itself uses for a while."""
    read, write = os.pipe()
    try:
        for number in [*range(3, 64), 200, 255, 256, 257, 300, 1000]:
            if os.path.lexists(f"/proc/self/fd/{number}"):
                continue  # somebody's: the library's own, perhaps
            os.dup2(write, number)
            try:
                script = f"echo {number} >&{number}"
                assert kit.run("bash", "-c", script, pass_fds=[number], init=init).ok, number
            finally:
                os.close(number)
            assert os.read(read, 100) == b"%d\n" % number
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("init", [True, False], ids=["init", "pid1"])
def test_a_start_is_told_at_once_whatever_number_is_passed(init: bool) -> None:
    """The more are passed, the higher are the numbers that set-up itself uses."""
    read, write = os.pipe()
    more = [os.dup(write) for _ in range(15)]
    try:
        for number in range(3, 64):
            if os.path.lexists(f"/proc/self/fd/{number}"):
                continue
            os.dup2(read, number)
            try:
                script = f"read -t {scaled(5):.0f} -u {number}"
                passed = [*more, number]
                with nsbox.Popen(["bash", "-c", script], pass_fds=passed, init=init) as process:
                    assert process.poll() is None  # it waits for input
            finally:
                os.close(number)
    finally:
        for fd in (read, write, *more):
            os.close(fd)


def test_a_closed_descriptor_is_an_error_of_pass_fds() -> None:
    with pytest.raises(nsbox.NsboxError) as caught:
        nsbox.run(["true"], pass_fds=[999])
    assert getattr(caught.value, "field", "") == "pass_fds"


def test_the_caller_is_left_as_it_was() -> None:
    def state() -> tuple[Any, ...]:
        with open("/proc/self/status") as file:
            found = kit.status(file.read())
        kept = ("Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "SigIgn", "SigCgt", *CAP_SETS)
        names = [kit.namespace_id(kind) for kind in kit.KINDS]
        return [found[name] for name in kept], names, os.getcwd(), os.getsid(0), sys.flags

    before = state()
    kit.run("true", hostname="box", user=0, namespaces=kit.spaces(*kit.KINDS))
    assert state() == before
