# SPDX-License-Identifier: Apache-2.0
"""What surrounds the payload: variables, working directory, host name, files of its own."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from run import kit

import nsbox
from nsbox import Limits, Mount, Rootfs

pytestmark = [pytest.mark.userns, pytest.mark.usefixtures("each_way")]
FOUR = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "USER": "user",
}


def environment(**keywords: Any) -> dict[str, str]:
    text = kit.run("/usr/bin/env", "-0", **keywords).stdout
    assert isinstance(text, str)
    return dict(line.split("=", 1) for line in text.split("\0") if line)


# -- env= ---------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_environment_is_four_variables_and_nothing_of_the_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "PYTHONPATH", "LC_ALL", "TERM"):
        monkeypatch.setenv(name, "/nonexistent/of-the-caller")
    assert environment() == FOUR


def test_given_variables_come_beside_the_four() -> None:
    given = {"A": "", "B": "two words\nand a line", "C": "=x=é", "USER": "me"}
    assert environment(env=given) == {**FOUR, **given}


def test_an_empty_env_leaves_the_four() -> None:
    assert environment(env={}) == FOUR


@pytest.mark.parametrize(
    ("uid", "home", "name"),
    [(0, "/root", "root"), (65534, "/tmp", "nobody"), (1234, "/tmp", "user")],
)
def test_home_and_user_follow_the_uid(uid: int, home: str, name: str) -> None:
    assert environment(user=uid) == {**FOUR, "HOME": home, "USER": name}


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0y"}, {"A": 1}, ["A=x"], "A=x"])
def test_what_is_no_environment_is_refused(env: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], env=env)
    assert caught.value.field.startswith("env")


def test_programs_are_found_in_the_path_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert kit.out(kit.run("echo", "found")) == "found"
    with pytest.raises(nsbox.CommandNotFound):
        kit.run("echo", "found", env={"PATH": "/nonexistent:/also"})


# -- cwd= ---------------------------------------------------------------------------------------


def test_working_directory_is_the_tmp_of_its_own() -> None:
    assert kit.out(kit.sh("pwd; ls -A")) == "/tmp"


@pytest.mark.parametrize("cwd", ["/", "/usr/bin", "/dev/shm", "//usr/./bin//"])
def test_cwd_is_a_directory_inside(cwd: str) -> None:
    assert kit.out(kit.run("/bin/pwd", "-P", cwd=cwd)) == os.path.normpath(cwd).replace("//", "/")


@pytest.mark.parametrize("cwd", ["relative", "", "/tmp/../etc", "/tmp\0x", "/" + "x" * 5000])
def test_a_cwd_that_cannot_be_is_refused(cwd: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], cwd=cwd)
    assert caught.value.field == "cwd"


@pytest.mark.parametrize("cwd", ["/nonexistent", "/etc/passwd"])
def test_a_cwd_that_is_not_there_is_a_setup_error(cwd: str) -> None:
    with pytest.raises(nsbox.SetupError) as caught:
        kit.run("true", cwd=cwd)
    assert (caught.value.name, caught.value.field) == ("chdir", "cwd")


@pytest.mark.kernel
def test_cwd_by_a_descriptor_never_leads_to_the_host(tmp_path: Path) -> None:
    """The caller has open, inheritable directories; none of them is a way out (CVE-2024-21626)."""
    (tmp_path / "HOSTMARK").touch()
    held = [os.open(tmp_path, os.O_RDONLY) for _ in range(5)]
    try:
        for fd in held:
            os.set_inheritable(fd, True)
        for number in [*range(3, 24), *held]:
            _stays_inside(f"/proc/self/fd/{number}")
    finally:
        for fd in held:
            os.close(fd)


def _stays_inside(cwd: str, **keywords: Any) -> None:
    failed: nsbox.SetupError | None = None
    seen = ""
    try:
        done = kit.sh("/bin/pwd -P; ls -A . .. ../../..", cwd=cwd, init=False, **keywords)
        seen = f"{done.stdout}{done.stderr}"
    except nsbox.SetupError as error:
        failed = error
    assert failed is None or failed.name == "chdir"
    assert "HOSTMARK" not in seen
    assert "unreachable" not in seen


def test_cwd_by_a_symlink_of_the_root_never_leads_to_the_host(tmp_path: Path) -> None:
    outside = kit.open_directory(tmp_path / "outside")
    (outside / "HOSTMARK").touch()
    root = kit.busybox_root(tmp_path / "root")
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("../../../../../../../../.." + str(outside))
    held = os.open(outside, os.O_RDONLY)
    try:
        (root / "fd").symlink_to(f"/proc/self/fd/{held}")
        for name in ("out", "up", "fd"):
            assert os.listdir(root / name) == ["HOSTMARK"]  # out here it does lead there
            for method in ("pivot_root", "chroot"):
                _stays_inside(f"/{name}", root=Rootfs.dir(root, method=method))
    finally:
        os.close(held)


# -- hostname= ----------------------------------------------------------------------------------


@pytest.mark.kernel
def test_hostname_is_the_sandboxs_and_the_hosts_is_unchanged() -> None:
    before = socket.gethostname()
    script = "cat /proc/sys/kernel/hostname; uname -n; readlink /proc/self/ns/uts"
    inside = kit.out(kit.sh(script, hostname="box-1", proc="full")).split()
    assert inside[:2] == ["box-1", "box-1"]
    assert inside[2] != kit.namespace_id("uts")
    assert socket.gethostname() == before == platform.node()


def test_hostname_resolves_inside() -> None:
    assert "127.0.1.1" in kit.out(kit.run("getent", "hosts", "box-2", hostname="box-2"))


def test_the_payload_cannot_change_even_its_own_hostname() -> None:
    assert kit.run("hostname", "mine", hostname="box").returncode != 0


@pytest.mark.kernel
def test_with_the_capability_the_payload_changes_its_own_hostname_only() -> None:
    before = socket.gethostname()
    script = "hostname mine && hostname"
    keywords = {"user": 0, "capabilities": ["SYS_ADMIN"], "profile": "standard"}
    assert kit.out(kit.sh(script, hostname="box", **keywords)) == "mine"
    assert socket.gethostname() == before


@pytest.mark.parametrize("name", ["", "a_b", "-a", "a-", "a..b", "x" * 65, "a b", "a\n", "ü"])
def test_what_is_no_hostname_is_refused(name: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], hostname=name)
    assert caught.value.field == "hostname"


def test_hostname_needs_a_uts_namespace() -> None:
    with pytest.raises(nsbox.SpecError, match="uts"):
        nsbox.run(["true"], hostname="box", namespaces=kit.spaces("mnt"))


# -- files= -------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_files_are_in_the_working_directory_with_content_mode_and_owner(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o751)
    files = {"a.txt": "text é", "b.bin": b"\0\xff", "c": bytearray(b"c"), "run.sh": program}
    done = kit.sh("stat -c '%n %a %u %g %s' *; cat a.txt; od -An -tx1 b.bin; ./run.sh", files=files)
    lines = kit.out(done).splitlines()
    assert lines[:4] == [
        "a.txt 644 1000 1000 7", "b.bin 644 1000 1000 2", "c 644 1000 1000 1",
        "run.sh 751 1000 1000 19",
    ]  # fmt: skip
    assert lines[4:] == ["text é 00 ff", "ran"]


def test_a_compiled_program_runs_from_a_path(tmp_path: Path) -> None:
    shutil.copy("/bin/echo", tmp_path / "a.out")
    done = kit.run("./a.out", "hello", files={"a.out": tmp_path / "a.out"})
    assert kit.out(done) == "hello"


def test_files_in_subdirectories() -> None:
    files = {"d/e/f": "deep", "d/g": "less"}
    assert kit.out(kit.run("cat", "d/e/f", "d/g", files=files)) == "deepless"


def test_subdirectories_belong_to_the_payload_too() -> None:
    done = kit.sh("touch d/new d/e/new && stat -c %u d d/e", files={"d/e/f": "x"})
    assert kit.out(done).split() == ["1000", "1000"]


def test_files_are_owned_by_the_given_user() -> None:
    assert kit.out(kit.run("stat", "-c", "%u:%g", "f", files={"f": ""}, user="77:88")) == "77:88"


def test_the_payload_may_write_beside_its_files_and_over_them() -> None:
    assert kit.out(kit.sh("echo new > f; echo x > g; cat f g", files={"f": "old"})) == "new\nx"


def test_files_are_this_runs_only() -> None:
    kit.out(kit.sh("echo mine > left", files={"f": "1"}))
    assert kit.out(kit.sh("ls", files={"g": "2"})) == "g"


def test_files_of_a_mebibyte_do_not_eat_the_room_of_tmp() -> None:
    done = kit.sh("wc -c < big; head -c 67000000 /dev/zero > room", files={"big": bytes(8 << 20)})
    assert kit.out(done) == str(8 << 20)


def test_files_larger_than_the_disk_limit_are_an_error_that_names_the_file() -> None:
    files = {"small": bytes(4097), "big": bytes(1 << 20)}
    with pytest.raises(nsbox.SpecError, match=r"^files\['big'\]: .* limits.disk=1048576"):
        kit.run("true", files=files, limits=Limits(disk="1MiB"))
    assert kit.run("true", files=files, limits=Limits(disk=(1 << 20) + 8192)).ok
    many = {str(number): "" for number in range(16)}
    with pytest.raises(nsbox.SpecError, match=r"^files: 16 do not fit in limits.inodes=16"):
        kit.run("true", files=many, limits=Limits(inodes=16))


@pytest.mark.parametrize("asked", [{"files": {"a": "1"}}, {"limits": Limits(disk="1MiB")},
                                   {"limits": Limits(inodes=20)}], ids=str)  # fmt: skip
def test_a_mount_that_would_hide_tmp_is_refused_when_something_is_asked_of_tmp(asked: Any) -> None:
    with pytest.raises(nsbox.SpecError, match=r"^mounts\[0\]: would hide the /tmp"):
        kit.run("true", mounts=[nsbox.Mount.tmpfs("/tmp", size="8MiB")], **asked)
    assert kit.run("true", mounts=[nsbox.Mount.tmpfs("/tmp/sub", size="8MiB")], **asked).ok


def test_files_shadow_no_mount_of_the_host() -> None:
    with pytest.raises(nsbox.SpecError):
        nsbox.run(["true"], files={"f": ""}, namespaces=kit.spaces("pid"))


def test_files_in_a_root_directory(tmp_path: Path) -> None:
    root = kit.busybox_root(tmp_path / "root")
    assert kit.out(kit.sh("pwd; cat f", files={"f": "here"}, root=root)) == "/tmp\nhere"
    assert list((root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../up", "a/../../b", ".", "a\0b", 5], ids=repr
)
def test_a_name_that_leads_elsewhere_is_refused(name: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], files={name: "x"})
    assert caught.value.field.startswith("files")


@pytest.mark.parametrize("content", [5, None, ["x"], object()], ids=repr)
def test_content_of_another_type_is_refused(content: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], files={"f": content})
    assert caught.value.field == "files['f']"


def test_a_path_that_is_not_there_is_refused() -> None:
    with pytest.raises(nsbox.SpecError, match=re.escape("files['f']")):
        nsbox.run(["true"], files={"f": Path("/nonexistent")})


def test_a_mount_of_the_users_and_files_live_together() -> None:
    mounts = [Mount.tmpfs("/tmp/scratch", size="1MiB")]
    assert kit.out(kit.sh("ls; touch scratch/x", files={"f": ""}, mounts=mounts)) == "f\nscratch"
