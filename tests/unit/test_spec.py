# SPDX-License-Identifier: Apache-2.0
"""What users may ask for: each wrong value is refused by the name of its field, before anything
is started; each right one means what it says."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
import pickle
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nsbox
from nsbox import sandbox
from nsbox.checks import container_path, host_path
from nsbox.errors import SpecError
from nsbox.keywords import make_spec
from nsbox.names import CAPABILITIES, NAMESPACES
from nsbox.spec import Limits, Mount, NetLabel, Rootfs, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

A_NETWORK = NetLabel("eth0 in nsb0, 10.77.0.0/24")
PURE = pytest.mark.leaks_ok("many values, one code: test_refusals_leave_nothing looks for leaks")
LONE = "\ud800"  # half of a surrogate pair: a str that no encoding of the kernel's has
NOT_A_LIST = 5


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec that is wrong must be refused before this."""

    def launch(spec: Spec, *_: Any, **__: Any) -> None:
        pytest.fail(f"accepted, and launched as {spec}", pytrace=False)

    monkeypatch.setattr(sandbox, "launch", launch)


def _bad(field: str, keyword: str, value: Any, why: str) -> Any:
    return pytest.param(field, {keyword: value}, id=f"{keyword}: {why}")


ARGS = [
    ("args", [], "no program"),
    ("args", (), "an empty tuple"),
    ("args", None, "None"),
    ("args", 5, "a number"),
    ("args", {"ls": 1}, "a mapping"),
    ("args", {"ls"}, "a set, which has no order"),
    ("args", iter(["ls"]), "an iterator, which can be read once"),
    ("args[0]", [""], "an empty program"),
    ("args[0]", ["l\0s"], "NUL in the program"),
    ("args[1]", ["ls", "a\0b"], "NUL in an argument"),
    ("args[1]", ["ls", b"a\0b"], "NUL in an argument of bytes"),
    ("args[1]", ["ls", 5], "a number as argument"),
    ("args[1]", ["ls", None], "None as argument"),
    ("args[1]", ["ls", ["-l"]], "a nested list"),
    ("args[1]", ["ls", LONE], "a lone surrogate"),
]

BAD = [
    *(_bad(field, "args", value, why) for field, value, why in ARGS),
    _bad("root", "root", 5, "a number"),
    _bad("root", "root", "", "an empty path"),
    _bad("root", "root", "/a\0b", "NUL in the path"),
    _bad("root", "root", [], "a list"),
    _bad("cwd", "cwd", "tmp", "a relative path"),
    _bad("cwd", "cwd", "", "an empty path"),
    _bad("cwd", "cwd", "/tmp/../etc", "a path that climbs"),
    _bad("cwd", "cwd", "/a\0b", "NUL in the path"),
    _bad("cwd", "cwd", 5, "a number"),
    _bad("cwd", "cwd", "/" + "a" * 5000, "too long a path"),
    _bad("cwd", "cwd", "/" + "ü" * 3000, "too long a path when encoded"),
    _bad("cwd", "cwd", "/" + LONE, "a lone surrogate"),
    _bad("env", "env", ["A=1"], "a list"),
    _bad("env", "env", "A=1", "a string"),
    _bad("env", "env", {"": "1"}, "an empty name"),
    _bad("env", "env", {"A=B": "1"}, "= in a name"),
    _bad("env", "env", {"A\0": "1"}, "NUL in a name"),
    _bad("env", "env", {5: "1"}, "a number as name"),
    _bad("env['A']", "env", {"A": "x\0y"}, "NUL in a value"),
    _bad("env['A']", "env", {"A": 5}, "a number as value"),
    _bad("env['A']", "env", {"A": None}, "None as value"),
    _bad("env['A']", "env", {"A": LONE}, "a lone surrogate"),
    *(
        _bad("user", "user", value, why)
        for value, why in (
            ("", "nothing"), ("0x10", "hexadecimal"), ("-1", "negative text"),
            (-1, "negative"), ("4294967295", "the id that means no change"),
            (0xFFFFFFFF, "the number that means no change"), ("1000 ", "a space after"),
            (" 1000", "a space before"), ("1000\n", "a newline after"), ("+1", "a sign"),
            ("1000:", "no group"), (":1000", "no user"), ("1000:1000:1", "three ids"),
            ("1000:-1", "a negative group"), ("1:4294967295", "a group that means no change"),
            ("01", "a leading zero"), ("1e3", "an exponent"), ("1_0", "underscores"),
            ("root", "a name"), ("١", "a digit of another script"), (True, "a bool"),
            (1.0, "a float"), (b"0", "bytes"), ("4294967296", "more than 32 bits"),
            ([0], "a list"), ((0, 0), "a tuple"), ("99999999999", "eleven digits"),
        )
    ),
    _bad("groups", "groups", NOT_A_LIST, "a number"),
    _bad("groups", "groups", ["0"], "text"),
    _bad("groups", "groups", [-1], "negative"),
    _bad("groups", "groups", [0xFFFFFFFF], "the id that means no change"),
    _bad("groups", "groups", [True], "a bool"),
    _bad("groups", "groups", "12", "a string"),
    _bad("capabilities", "capabilities", "NET_RAW", "a string"),
    _bad("capabilities", "capabilities", ["NET_RAWR"], "an unknown name"),
    _bad("capabilities", "capabilities", ["CAP_CAP_KILL"], "the prefix twice"),
    _bad("capabilities", "capabilities", [13], "a number in it"),
    _bad("capabilities", "capabilities", NOT_A_LIST, "a number"),
    *(
        _bad("hostname", "hostname", value, why)
        for value, why in (
            ("", "nothing"), ("a" * 65, "65 letters"), ("-a", "a dash first"),
            ("a-", "a dash last"), ("a..b", "an empty label"), (".a", "a dot first"),
            ("a b", "a space"), ("a\n", "a newline after"), ("a_b", "an underscore"),
            ("ä", "a letter that is not ASCII"), ("a\0", "NUL"), (5, "a number"),
            ("a\n127.0.0.1 bank", "a line for /etc/hosts"),
        )
    ),
    _bad("mounts[0]", "mounts", ["/srv:/srv"], "a string as mount"),
    _bad("mounts[1]", "mounts", [Mount.proc(), None], "None as the second"),
    _bad("mounts", "mounts", NOT_A_LIST, "a number"),
    _bad("mounts", "mounts", Mount.proc(), "one mount, no list"),
    _bad("files", "files", ["a"], "a list"),
    _bad("files", "files", "a", "a string"),
    *(
        _bad(f"files[{name!r}]", "files", {name: b""}, why)
        for name, why in (
            ("", "an empty name"), (".", "the directory itself"), ("/etc/passwd", "absolute"),
            ("../x", "climbing"), ("a/../../x", "climbing in the middle"), ("a\0b", "NUL"),
            (5, "a number as name"), ("x" * 5000, "too long a name"), (LONE, "a lone surrogate"),
        )
    ),
    _bad("files['a']", "files", {"a": 5}, "a number as content"),
    _bad("files['a']", "files", {"a": None}, "None as content"),
    _bad("files['a']", "files", {"a": ["x"]}, "a list as content"),
    _bad("files['a']", "files", {"a": ()}, "a tuple as content"),
    _bad("files['a']", "files", {"a": ("x", "y", "z")}, "a tuple of more"),
    _bad("files['a']", "files", {"a": (b"", -1)}, "a tuple with a negative mode"),
    _bad("files['a']", "files", {"a": Path("/nonexistent/x")}, "a Path that is not there"),
    _bad("files['a']", "files", {"a": Path("/")}, "a Path that is a directory"),
    _bad("net", "net", "bridge", "an unknown word"),
    _bad("net", "net", None, "None"),
    _bad("net", "net", True, "a bool"),
    _bad("limits", "limits", {"memory": 1}, "a mapping"),
    _bad("limits", "limits", "256MiB", "a size"),
    _bad("limits", "limits", 0, "a false value that is no Limits"),
    _bad("namespaces", "namespaces", "mnt", "a string"),
    _bad("namespaces", "namespaces", ["mount"], "an unknown kind"),
    _bad("time_offsets", "time_offsets", [("monotonic", 1)], "no mapping"),
    _bad("time_offsets['realtime']", "time_offsets", {"realtime": 1}, "a clock without offset"),
    _bad("time_offsets['boottime']", "time_offsets", {"boottime": "1"}, "text"),
    _bad("time_offsets['boottime']", "time_offsets", {"boottime": True}, "a truth"),
    _bad("time_offsets['boottime']", "time_offsets", {"boottime": float("nan")}, "nan"),
    _bad("time_offsets['monotonic']", "time_offsets", {"monotonic": 1e18}, "ages"),
    _bad("namespaces", "namespaces", ["mnt", 5], "a number in it"),
    _bad("namespaces", "namespaces", [["mnt"]], "a nested list"),
    _bad("namespaces", "namespaces", NOT_A_LIST, "a number"),
    _bad("namespaces", "namespaces", {"uts": False}, "a mapping"),
    _bad("capabilities", "capabilities", {"KILL": False}, "a mapping"),
    _bad("profile", "profile", "paranoid", "an unknown word"),
    _bad("profile", "profile", None, "None"),
    _bad("profile", "profile", ["strict"], "a list"),
    _bad("proc", "proc", "all", "an unknown word"),
    _bad("proc", "proc", False, "a bool"),
    _bad("rlimits['cores']", "rlimits", {"cores": 0}, "an unknown name"),
    _bad("rlimits['core']", "rlimits", {"core": -1}, "negative"),
    _bad("rlimits['core']", "rlimits", {"core": 1 << 64}, "more than 64 bits"),
    _bad("rlimits['core']", "rlimits", {"core": (2, 1)}, "soft above hard"),
    _bad("rlimits['core']", "rlimits", {"core": (1, 2, 3)}, "three numbers"),
    _bad("rlimits['core']", "rlimits", {"core": ()}, "no number"),
    _bad("rlimits['core']", "rlimits", {"core": "1"}, "text"),
    _bad("rlimits", "rlimits", [("core", 1)], "a list"),
    _bad("pass_fds", "pass_fds", [-1], "negative"),
    _bad("pass_fds", "pass_fds", [1 << 20], "a number that no table has"),
    _bad("pass_fds", "pass_fds", ["3"], "text"),
    _bad("pass_fds", "pass_fds", NOT_A_LIST, "a number"),
    _bad("init", "init", "no", "text for a bool"),
    _bad("init", "init", 1, "a number for a bool"),
    _bad("best_effort", "best_effort", "no", "text for a bool"),
    _bad("best_effort", "best_effort", None, "None for a bool"),
    _bad("timeout", "timeout", -1, "negative"),
    _bad("timeout", "timeout", float("nan"), "not a number"),
    _bad("timeout", "timeout", "5", "text"),
]  # fmt: skip


@PURE
@pytest.mark.parametrize(("field", "keywords"), BAD)
def test_refused(field: str, keywords: dict[str, Any]) -> None:
    keywords = {"args": ["true"], **keywords}
    with pytest.raises(SpecError) as caught:
        nsbox.run(**keywords)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@PURE
@pytest.mark.parametrize("call", [nsbox.Popen, nsbox.explain, nsbox.Container], ids=repr)
def test_refused_by_every_other_way_in(call: Any) -> None:
    """By the same field. Only run() knows timeout=, and a Container reads files at its start."""
    for case in BAD:
        field, keywords = case.values
        if field == "timeout" or (call is nsbox.Container and "a Path that" in case.id):
            continue
        with pytest.raises(SpecError) as caught:
            call(**{"args": ["true"], **keywords})
        assert caught.value.field == field, case.id


def test_a_network_that_is_none_says_what_there_is() -> None:
    for wrong in ("bridge", None, 7):
        with pytest.raises(SpecError, match='use "none", "host", a Bridge, a Network, a Pod or'):
            make_spec(["true"], net=wrong)


@pytest.mark.parametrize("profile", ["strict", "standard", "none"])
@pytest.mark.parametrize("kinds", [(), ("mnt", "pid"), ("user", "mnt", "pid")], ids=str)
@pytest.mark.parametrize("call", [nsbox.run, nsbox.Popen, nsbox.explain, nsbox.Container], ids=repr)
def test_a_network_needs_a_namespace_for_it(
    call: Any, kinds: tuple[str, ...], profile: str
) -> None:
    """Else the sandbox would be in the host's, and without the rules that it was given."""
    rules = {"egress": nsbox.Allow("10.0.0.0/8"), "publish": "8080:80", "address": "10.77.0.9"}
    with pytest.raises(SpecError) as caught:
        call(["true"], net=A_NETWORK, namespaces=kinds, profile=profile, **rules)
    assert caught.value.field == "namespaces"
    assert str(caught.value).endswith('a Bridge or a Network (net=) needs "net" among them')
    assert make_spec(["true"], net=A_NETWORK, namespaces=(*kinds, "net"), **rules).attached


def test_who_joins_a_network_needs_no_namespace_for_it() -> None:
    there = NetLabel("that of pod web", joined=True)
    assert make_spec(["true"], net=there, namespaces=["mnt"]).namespaces == ("mnt",)


@pytest.mark.parametrize("net", ["none", "host", NetLabel("that of pod web", joined=True)])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("publish", "8080:80"),
        ("egress", nsbox.Allow()),
        ("dns", ["192.0.2.53"]),
        ("address", "10.77.0.9"),
    ],
)
def test_what_is_of_a_network_is_refused_without_one(net: Any, field: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        nsbox.run(["true"], net=net, **{field: value})
    assert caught.value.field == field
    assert "is of a sandbox with a network: net= a Bridge or a Network" in str(caught.value)


def test_refusals_leave_nothing() -> None:
    """Neither a process nor a descriptor: the leak check looks after this test."""
    for case in BAD:
        _, keywords = case.values
        with contextlib.suppress(Exception):
            nsbox.run(**{"args": ["true"], "capture_output": True, **keywords})


@pytest.mark.parametrize("args", ["ls -l", b"ls", ""], ids=["text", "bytes", "nothing"])
def test_args_as_one_string_is_a_type_error(args: Any) -> None:
    for call in (nsbox.run, nsbox.Popen, nsbox.explain):
        with pytest.raises(TypeError, match="args must be a list"):
            call(args)


@pytest.mark.parametrize(
    "keywords",
    [{"user_name": "root"}, {"memory": "1G"}, {"network": "none"}],
    ids=lambda keywords: str(*keywords),
)
def test_an_unknown_keyword_is_a_type_error_that_names_it(keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(keywords))):
        nsbox.run(["true"], **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        pytest.param({"input": b"", "stdin": -1}, id="input and stdin"),
        pytest.param({"capture_output": True, "stdout": -1}, id="capture_output and stdout"),
        pytest.param({"capture_output": True, "stderr": -1}, id="capture_output and stderr"),
    ],
)
def test_contradictions_are_subprocess_s_value_errors(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="may not be used with"):
        nsbox.run(["true"], **keywords)


# -- Limits -----------------------------------------------------------------------------------

BAD_LIMITS = [
    ("memory", "1K", "below 1 MiB"), ("memory", "x", "no size"), ("memory", -1, "negative"),
    ("memory", True, "a bool"), ("memory", 1.5e9, "a float"),
    ("memory_high", 1, "below 1 MiB"), ("swap", -1, "negative"), ("swap", "lots", "no size"),
    ("cpu", 0, "none at all"), ("cpu", "1 core", "words"), ("cpu", float("inf"), "infinite"),
    ("cpu_weight", 0, "below the kernel's least"), ("cpu_weight", 10001, "above its most"),
    ("pids", 0, "none at all"), ("pids", 1.0, "a float"), ("pids", "8", "text"),
    ("wall", 0, "no time"), ("wall", -1, "negative"), ("wall", float("nan"), "not a number"),
    ("wall", "5", "text"), ("cpu_time", 0, "no time"), ("cpu_time", "1s", "text"),
    ("output", 0, "nothing"), ("output", "64Kib", "no size"), ("disk", 4095, "below a page"),
    ("inodes", 15, "too few to start"), ("nofile", 2, "no room for stdio"),
    ("nofile", 1 << 40, "more than the kernel's"), ("nofile", 4096.0, "a float"),
]  # fmt: skip


@PURE
@pytest.mark.parametrize(
    ("field", "value"), [pytest.param(f, v, id=f"{f}: {why}") for f, v, why in BAD_LIMITS]
)
def test_a_limit_is_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        Limits(**{"memory": "1GiB", field: value})
    assert caught.value.field == field


def test_swap_comes_on_top_of_memory() -> None:
    with pytest.raises(SpecError) as caught:
        Limits(swap="1MiB")
    assert caught.value.field == "swap"
    assert Limits(memory="1MiB", swap=0).swap == 0


def test_limits_are_kept_as_numbers() -> None:
    limits = Limits(memory="1MiB", cpu="500m", wall=3, output="64KiB", disk="1M")
    assert (limits.memory, limits.cpu, limits.wall) == (1 << 20, 0.5, 3.0)
    assert (limits.output, limits.output_bytes, limits.disk) == (65536, 65536, 1 << 20)
    assert Limits().output_bytes is None


# -- Mount and Rootfs -------------------------------------------------------------------------

BAD_MOUNTS = [
    ("dst", lambda: Mount.bind("/a", "b"), "bind: a relative destination"),
    ("dst", lambda: Mount.bind("/a", ""), "bind: an empty destination"),
    ("dst", lambda: Mount.bind("/a", "/b/../c"), "bind: a destination that climbs"),
    ("dst", lambda: Mount.bind("/a", "/b\0"), "bind: NUL in the destination"),
    ("dst", lambda: Mount.bind("/a", 5), "bind: a number as destination"),
    ("src", lambda: Mount.bind("", "/b"), "bind: an empty source"),
    ("src", lambda: Mount.bind("/a\0", "/b"), "bind: NUL in the source"),
    ("src", lambda: Mount.bind(None, "/b"), "bind: None as source"),
    ("dst", lambda: Mount.tmpfs("x"), "tmpfs: a relative destination"),
    ("size", lambda: Mount.tmpfs("/x", "big"), "tmpfs: no size"),
    ("size", lambda: Mount.tmpfs("/x", 0), "tmpfs: no room"),
    ("size", lambda: Mount.tmpfs("/x", None), "tmpfs: no limit"),
    ("inodes", lambda: Mount.tmpfs("/x", inodes=0), "tmpfs: no inode, which means no limit"),
    ("mode", lambda: Mount.tmpfs("/x", mode=-1), "tmpfs: a negative mode"),
    ("mode", lambda: Mount.tmpfs("/x", mode="755"), "tmpfs: a mode as text"),
    ("mode", lambda: Mount.tmpfs("/x", mode=0o10000), "tmpfs: a mode with other bits"),
    ("dst", lambda: Mount.proc("proc"), "proc: a relative destination"),
    ("dst", lambda: Mount.mqueue("/../x"), "mqueue: a destination that climbs"),
    ("dst", lambda: Mount.file("x", b""), "file: a relative destination"),
    ("data", lambda: Mount.file("/x", 5), "file: a number as content"),
    ("data", lambda: Mount.file("/x", None), "file: None as content"),
    ("data", lambda: Mount.file("/x", [1, 2]), "file: a list as content"),
    ("data", lambda: Mount.file("/x", LONE), "file: content that has no encoding"),
    ("mode", lambda: Mount.file("/x", b"", "644"), "file: a mode as text"),
    ("dst", lambda: Mount.symlink("x", "y"), "symlink: a relative destination"),
    ("target", lambda: Mount.symlink("/x", ""), "symlink: an empty target"),
    ("target", lambda: Mount.symlink("/x", "a\0"), "symlink: NUL in the target"),
    ("target", lambda: Mount.symlink("/x", 5), "symlink: a number as target"),
    ("root", lambda: Rootfs.dir(""), "Rootfs.dir: an empty path"),
    ("root", lambda: Rootfs.dir("/a\0"), "Rootfs.dir: NUL in the path"),
    ("root", lambda: Rootfs.dir(5), "Rootfs.dir: a number"),
    ("method", lambda: Rootfs.dir("/a", method="switch_root"), "Rootfs.dir: an unknown method"),
]  # fmt: skip


@PURE
@pytest.mark.parametrize(
    ("field", "make"), [pytest.param(f, make, id=why) for f, make, why in BAD_MOUNTS]
)
def test_a_mount_is_refused(field: str, make: Any) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_binds_are_read_only_unless_asked() -> None:
    assert Mount.bind("/a", "/b").ro is True
    assert Mount.bind("/a", "/b", ro=False).ro is False
    assert Rootfs.dir("/a").ro is True


def test_a_relative_source_counts_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert Mount.bind("srv/x", "/b").src == "/srv/x"
    assert Rootfs.dir("srv/x").path == "/srv/x"
    assert host_path("a/../b", "f") == "/b"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_a_container_path_never_climbs(text: str) -> None:
    if "\0" in text or ".." in text.split("/"):
        with pytest.raises(SpecError, match=r"^dst: "):
            container_path("/" + text, "dst")
        return
    path = container_path("/" + text, "dst")
    assert path.startswith("/")
    assert path == "/" or not {"", ".", ".."} & set(path.split("/")[1:])


# -- what is right ----------------------------------------------------------------------------


@PURE
@pytest.mark.parametrize(
    ("user", "ids"),
    [
        pytest.param(None, (None, None), id="the profile's"),
        pytest.param(0, (0, 0), id="0"),
        pytest.param("0", (0, 0), id="0 as text"),
        pytest.param(1000, (1000, 1000), id="a uid is its gid too"),
        pytest.param("1000:1000", (1000, 1000), id="both"),
        pytest.param("7:0", (7, 0), id="group 0 is no default"),
        pytest.param("0:7", (0, 7), id="another group than the user's"),
        pytest.param("4294967294", (0xFFFFFFFE, 0xFFFFFFFE), id="the last id"),
    ],
)
def test_a_user_is_exactly_these_ids(user: Any, ids: tuple[int | None, int | None]) -> None:
    spec = make_spec(["true"], user=user)
    assert (spec.uid, spec.gid) == ids


def test_defaults() -> None:
    spec = make_spec(["true"])
    assert spec == Spec(("true",))
    assert (spec.net, spec.profile, spec.init, spec.best_effort) == ("none", "strict", True, False)
    assert (spec.root, spec.limits, spec.namespaces) == (Rootfs.host(), Limits(), None)


def test_strings_bytes_and_paths_are_arguments() -> None:
    spec = make_spec(["true", b"\xff", PurePosixPath("/x"), ""])
    assert spec.args == ("true", "\udcff", "/x", "")


def test_env_keeps_its_values_as_they_are() -> None:
    spec = make_spec(["true"], env={"A": "b=c", "ü": "", "P": PurePosixPath("/x")})
    assert spec.env == (("A", "b=c"), ("ü", ""), ("P", "/x"))
    assert make_spec(["true"], env={}).env == ()


def test_namespaces_come_in_the_order_of_joining() -> None:
    kinds = list(NAMESPACES)
    for some in itertools.permutations(kinds, 2):
        assert make_spec(["true"], namespaces=some).namespaces == tuple(
            kind for kind in kinds if kind in some
        )
    assert make_spec(["true"], namespaces=[]).namespaces == ()


@pytest.mark.parametrize("make", [list, tuple, iter, set], ids=lambda make: make.__name__)
def test_any_iterable_of_namespaces_is_read_once_and_kept(make: Any) -> None:
    """An iterator that validation uses up must not end as "no namespaces at all"."""
    assert make_spec(["true"], namespaces=make(["user", "mnt"])).namespaces == ("user", "mnt")


@pytest.mark.parametrize("make", [list, tuple, iter], ids=lambda make: make.__name__)
def test_any_iterable_of_mounts_is_read_once_and_kept(make: Any) -> None:
    mounts = (Mount.proc("/a"), Mount.mqueue("/b"))
    assert make_spec(["true"], mounts=make(mounts)).mounts == mounts


def test_capabilities_in_any_spelling_and_the_kernel_s_order() -> None:
    spec = make_spec(["true"], capabilities=["cap_net_raw", "KILL", "CAP_CHOWN", "kill"])
    assert spec.capabilities == ("CHOWN", "KILL", "NET_RAW")
    assert make_spec(["true"], capabilities=CAPABILITIES).capabilities == CAPABILITIES
    assert make_spec(["true"], capabilities=()).capabilities == ()


@pytest.mark.parametrize("name", ["a", "A-1", "a" * 64, "a.b-c.d", "0"])
def test_a_host_name_is_kept(name: str) -> None:
    assert make_spec(["true"], hostname=name).hostname == name


def test_files_are_bytes_with_a_mode(tmp_path: Path) -> None:
    program = tmp_path / "a.out"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o4751)
    spec = sandbox.build_spec(
        ["true"], {"files": {"a": "ü", "b/./c": bytearray(b"1"), "x": program}}
    )
    assert spec.files == (
        ("a", "ü".encode(), 0o644),
        ("b/c", b"1", 0o644),
        ("x", b"\x7fELF", 0o751),
    )


def test_rlimits_are_soft_and_hard() -> None:
    spec = make_spec(["true"], rlimits={"core": 0, "nofile": (1, 2)})
    assert spec.rlimits == (("core", 0, 0), ("nofile", 1, 2))


def test_a_spec_is_frozen_and_a_key() -> None:
    spec = make_spec(["true"], files={"a": b"1"}, limits=Limits(memory="1MiB"), env={"A": "1"})
    twin = make_spec(["true"], files={"a": b"1"}, limits=Limits(memory=1 << 20), env={"A": "1"})
    assert (spec, hash(spec)) == (twin, hash(twin))
    with pytest.raises(AttributeError):
        spec.uid = 0  # type: ignore[misc]


def test_every_spec_is_a_key_whatever_its_limits() -> None:
    """Plans are cached by spec: a limit that cannot be hashed must not be a TypeError there."""
    assert isinstance(hash(make_spec(["true"], limits=Limits(io={"8:0": {"rbps": 4096}}))), int)


def test_arguments_are_checked_again_when_only_their_types_differ() -> None:
    """Specs are cached by their arguments, and True == 1 == 1.0."""
    for right, wrong in (({"user": 1}, {"user": True}), ({"groups": [1]}, {"groups": [True]})):
        sandbox.build_spec(["/bin/true"], right)
        with pytest.raises(SpecError):
            sandbox.build_spec(["/bin/true"], wrong)


def test_a_relative_root_is_looked_up_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found.append(sandbox.build_spec(["/bin/true"], {"root": "r"}).root.path)
    assert found == [os.path.join(tmp_path, "a", "r"), os.path.join(tmp_path, "b", "r")]


@pytest.mark.parametrize("again", [lambda value: pickle.loads(pickle.dumps(value)), copy.copy,
                                   copy.deepcopy], ids=["pickle", "copy", "deepcopy"])  # fmt: skip
def test_a_copy_is_equal_and_its_hash_its_own(again: Callable[[Any], Any]) -> None:
    """Hashes of strings are others in another process: one that was worked out stays behind."""
    for value in (
        Limits(memory="1MiB"),
        Rootfs.dir("/x"),
        make_spec(["a"]),
        Ours(pids=3, label="b"),
    ):
        hash(value)
        twin = again(value)
        assert twin == value
        assert "_hash" not in vars(twin)
        assert hash(twin) == hash(value)


@dataclasses.dataclass(frozen=True)
class Ours(Limits):
    """A user's own."""

    label: str = ""
