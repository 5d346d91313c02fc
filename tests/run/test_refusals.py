# SPDX-License-Identifier: Apache-2.0
"""Values that are refused before anything is started: the error names the argument."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import nsbox
from nsbox import Limits, Mount, Rootfs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    "user",
    ["0x10", "-1", -1, "4294967295", 4294967295, "1000 ", " 1000", "", "root", "1000:", ":1000",
     "1:2:3", "1.5", 1.5, True, "01", "\N{ARABIC-INDIC DIGIT ONE}", "1000\n"],
    ids=repr,
)  # fmt: skip
def test_what_is_no_user_is_refused(user: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], user=user)
    assert caught.value.field == "user"


@pytest.mark.parametrize("names", [["NOPE"], "NET_RAW", [""], ["CAP_CAP_CHOWN"]], ids=repr)
def test_what_is_no_capability_is_refused(names: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], capabilities=names)
    assert caught.value.field == "capabilities"


@pytest.mark.parametrize(
    "rlimits", [{"nope": 1}, {"nofile": -1}, {"nofile": (5, 4)}, {"nofile": "5"}], ids=repr
)
def test_what_is_no_rlimit_is_refused(rlimits: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], rlimits=rlimits)
    assert caught.value.field.startswith("rlimits")


@pytest.mark.parametrize("fds", [[-1], ["3"], [True], [1 << 20]], ids=repr)
def test_what_is_no_descriptor_is_refused(fds: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], pass_fds=fds)
    assert caught.value.field == "pass_fds"


WRONG = [
    ({"memory": "256"}, "memory", "256MiB"), ({"memory": 0}, "memory", "1 MiB"),
    ({"memory": "many"}, "memory", "size"), ({"memory": -1}, "memory", "."),
    ({"memory": True}, "memory", "."), ({"memory": 1.5}, "memory", "."),
    ({"swap": "1MiB"}, "swap", "memory="), ({"cpu": 0}, "cpu", "0.01"),
    ({"cpu": "fast"}, "cpu", "cores"), ({"cpu": float("nan")}, "cpu", "."),
    ({"pids": 0}, "pids", "."), ({"pids": "5"}, "pids", "."), ({"wall": 0}, "wall", "."),
    ({"wall": -1}, "wall", "."), ({"output": 0}, "output", "."),
    ({"disk": "1KiB"}, "disk", "4 KiB"),
    ({"inodes": 1}, "inodes", "."), ({"nofile": 1}, "nofile", "."),
]  # fmt: skip


@pytest.mark.parametrize(("limit", "field", "says"), WRONG, ids=lambda v: str(v))
def test_a_wrong_limit_is_refused_when_it_is_written(
    limit: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(nsbox.SpecError, match=says) as caught:
        Limits(**limit)
    assert caught.value.field == field


@pytest.mark.parametrize("limits", [{"memory": "1GiB"}, "1GiB", 5], ids=repr)
def test_what_is_no_limits_is_refused(limits: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], limits=limits)
    assert caught.value.field == "limits"


@pytest.mark.parametrize("dst", ["relative", "", "/a/../b", "/a\0b", "/" + "a" * 4001], ids=repr)
def test_a_destination_that_cannot_be_is_refused(dst: str) -> None:
    for make in (lambda: Mount.bind("/usr", dst), lambda: Mount.tmpfs(dst),
                 lambda: Mount.file(dst, ""), lambda: Mount.symlink(dst, "x"),
                 lambda: Mount.proc(dst), lambda: Mount.mqueue(dst)):  # fmt: skip
        with pytest.raises(nsbox.SpecError) as caught:
            make()
        assert caught.value.field == "dst"


@pytest.mark.parametrize("mounts", [["/a:/b"], [("/a", "/b")], [None]], ids=repr)
def test_what_is_no_mount_is_refused(mounts: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], mounts=mounts)
    assert caught.value.field == "mounts[0]"


@pytest.mark.parametrize("root", [5, b"/x", ["/"], ""], ids=repr)
def test_what_is_no_root_is_refused(root: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], root=root)
    assert caught.value.field == "root"


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(nsbox.SpecError, match="pivot_root"):
        Rootfs.dir("/", method="switch_root")


@pytest.mark.parametrize("kinds", [["mnt", "nope"], "mnt", [""]], ids=repr)
def test_what_is_no_namespace_is_refused(kinds: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], namespaces=kinds)
    assert caught.value.field == "namespaces"


# -- names --------------------------------------------------------------------------------------

NO_NAMES = ["", "a/b", "/", "a\0b", "a\nb", "\x1b[31m", "\ud800", "\udcff", "\u202ecod", "x" * 256,
            "\u00e9" * 128, 5, b"x", True, ["x"]]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_of_a_container_is_refused(name: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Container(["true"], name=name)
    assert caught.value.field == "name"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["a b", "..", "x" * 255, "\u00e9" * 127, "caf\u00e9", "a.b-c_d:e"])
def test_what_can_be_listed_is_a_name(name: str) -> None:
    assert nsbox.Container(["true"], name=name).name == name


PROGRAMS = [
    ("/usr/bin/env", "env"), ("/bin/", "bin"), ("/", "container"), ("/a/b\nc", "b?c"),
    (b"/bin/\xff", "?"), ("\x1b[2J", "?[2J"), ("\u00e9" * 300, "\u00e9" * 127),
    ("x" * 300, "x" * 255),
]  # fmt: skip


@pytest.mark.parametrize(("program", "name"), PROGRAMS, ids=ascii)
def test_a_name_made_of_a_program_is_one_whatever_its_path(program: Any, name: str) -> None:
    made = nsbox.Container([program]).name
    assert made == name
    assert nsbox.Container(["true"], name=made).name == made


@pytest.mark.parametrize(("length", "why"), [(300, "longer than 64"), (65, "longer than 64")])
def test_a_long_name_of_a_cgroup_is_too_long(length: int, why: str) -> None:
    with pytest.raises(nsbox.SpecError, match=why) as caught:
        nsbox.Cgroup.create(name="x" * length)
    assert caught.value.field == "name"


# -- bools --------------------------------------------------------------------------------------

BOOLS: list[tuple[str, Callable[[Any], object]]] = [
    ("oom_group", lambda value: Limits(oom_group=value)),
    ("ro", lambda value: Mount.bind("/usr", "/usr", ro=value)),
    ("idmap", lambda value: Mount.bind("/usr", "/usr", idmap=value)),
    ("noexec", lambda value: Mount.tmpfs("/x", noexec=value)),
    ("ro", lambda value: Rootfs.dir("/", ro=value)),
    ("capture_output", lambda value: nsbox.run(["true"], capture_output=value)),
    ("text", lambda value: nsbox.run(["true"], text=value)),
    ("check", lambda value: nsbox.run(["true"], check=value)),
    ("text", lambda value: nsbox.Popen(["true"], text=value).close()),
    ("nat", lambda value: nsbox.Bridge("nsbtest", nat=value)),
    ("isolated", lambda value: nsbox.Bridge("nsbtest", isolated=value)),
    ("static_arp", lambda value: nsbox.Topology(static_arp=value)),
    ("share_process_namespace", lambda value: nsbox.Pod(
        "p", [nsbox.ContainerSpec("c", ["true"])], share_process_namespace=value)),
]  # fmt: skip


@pytest.mark.parametrize("value", ["no", 0, None], ids=repr)
@pytest.mark.parametrize(
    ("field", "make"), BOOLS, ids=[f"{i} {n}" for i, (n, _) in enumerate(BOOLS)]
)
def test_what_is_neither_true_nor_false_is_refused(
    field: str, make: Callable[[Any], object], value: Any
) -> None:
    """It was taken for its truth: "no" for yes."""
    with pytest.raises(nsbox.SpecError, match="neither True nor False") as caught:
        make(value)
    assert caught.value.field == field


# -- streams ------------------------------------------------------------------------------------


def _closed_number() -> int:
    """The number that the next descriptor will get."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd


@pytest.mark.userns
@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_descriptor_that_is_not_open_is_refused(stream: str) -> None:
    for fd in (_closed_number(), 1 << 20, 1 << 80):
        keywords: dict[str, Any] = {stream: fd}
        calls: list[Callable[[], object]] = [
            lambda: nsbox.run(["true"], **keywords),  # noqa: B023
            lambda: nsbox.Popen(["true"], **keywords),  # noqa: B023
            lambda: nsbox.Container(["true"], **keywords).start(),  # noqa: B023
        ]
        for call in calls:
            with pytest.raises(nsbox.SpecError, match="not open") as caught:
                call()
            assert caught.value.field == stream


@pytest.mark.userns
def test_a_number_that_one_of_our_pipes_would_get_is_refused() -> None:
    with pytest.raises(nsbox.SpecError, match="not open"):
        nsbox.run(["true"], input=b"x", stdout=_closed_number())


# -- roots --------------------------------------------------------------------------------------


@pytest.mark.userns
@pytest.mark.parametrize("which", ["lower", "one of several", "upper"])
def test_a_file_as_a_layer_of_an_overlay_is_named(tmp_path: Path, which: str) -> None:
    file = tmp_path / "file"
    file.touch()
    root = {"lower": lambda: Rootfs.overlay(file),
            "one of several": lambda: Rootfs.overlay([tmp_path, file]),
            "upper": lambda: Rootfs.overlay(tmp_path, upper=file)}[which]()  # fmt: skip
    with pytest.raises(nsbox.SpecError, match=f"{file} is not a directory") as caught:
        nsbox.run(["/true"], root=root)
    assert caught.value.field == "root"


# -- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"memory": 0}, "memory: 0 bytes is below 1 MiB"),
        ({"disk": "0"}, "disk: 0 bytes is below 4 KiB"),
        ({"output": 0}, "output: 0 bytes is below 1 byte"),
    ],
    ids=str,
)
def test_nothing_at_all_is_no_forgotten_unit(limit: dict[str, Any], says: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        Limits(**limit)
    assert str(caught.value) == says


UNKNOWN: list[tuple[str, Callable[[], object]]] = [
    ("run", lambda: nsbox.run(["true"], memry=1)),
    ("explain", lambda: nsbox.explain(["true"], memry=1)),
    ("Popen", lambda: nsbox.Popen(["true"], memry=1)),
    ("Container", lambda: nsbox.Container(["true"], memry=1)),
    ("ContainerSpec", lambda: nsbox.Pod("p", [nsbox.ContainerSpec("c", ["true"], memry=1)])),
]


@pytest.mark.parametrize(("call", "make"), UNKNOWN, ids=[name for name, _ in UNKNOWN])
def test_an_unknown_keyword_is_of_the_function_that_was_called(
    call: str, make: Callable[[], object]
) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == f"{call}() got an unexpected keyword argument 'memry'"


@pytest.mark.userns
@pytest.mark.parametrize("verb", ["exec", "popen"])
@pytest.mark.parametrize("name", ["foo", "target", "limits"])
def test_an_unknown_keyword_of_what_enters_a_container(verb: str, name: str) -> None:
    with nsbox.Container(["sleep", "60"]) as container, pytest.raises(TypeError) as caught:
        getattr(container, verb)(["true"], **{name: 1})
    assert str(caught.value) == f"{verb}() got an unexpected keyword argument {name!r}"
