# SPDX-License-Identifier: Apache-2.0
"""Values that are refused before anything is started: the error names the argument."""

from __future__ import annotations

from typing import Any

import pytest

import nsbox
from nsbox import Limits, Mount, Rootfs


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
