# SPDX-License-Identifier: Apache-2.0
"""What the payload sees as "/": the host's system directories, a directory, the caller's own."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run import kit

import nsbox
from nsbox import Limits, Mount, Rootfs

pytestmark = [pytest.mark.userns, pytest.mark.usefixtures("each_way")]
METHODS = ["pivot_root", "chroot"]
CAPABLE: dict[str, Any] = {"user": 0, "profile": "standard"}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("box")
    where.chmod(0o755)
    return kit.busybox_root(where / "root")


def contents(where: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(where.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_mode, status.st_mtime_ns))
    return found


# -- Rootfs.host() ------------------------------------------------------------------------------


@pytest.mark.kernel
def test_host_root_is_the_system_directories_and_nothing_else() -> None:
    names = set(kit.out(kit.run("ls", "-A", "/")).split())
    allowed = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"}
    assert {"bin", "dev", "etc", "proc", "tmp", "usr"} <= names <= allowed


def test_host_root_shows_no_secrets_of_the_hosts_etc() -> None:
    names = set(kit.out(kit.run("ls", "-A", "/etc")).split())
    assert "passwd" in names
    assert not names & {"shadow", "gshadow", "sudoers", "ssh", "machine-id", "hostname", "fstab"}


def test_etc_names_the_user_that_the_payload_is() -> None:
    assert kit.out(kit.run("id", "-un", user=1234)) == "user"
    assert kit.out(kit.run("whoami", user=0)) == "root"
    assert kit.out(kit.run("whoami", user=65534)) == "nobody"


def test_nothing_of_the_host_is_found_outside_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    assert (tmp_path / "secret").exists()
    assert kit.run("cat", str(tmp_path / "secret")).returncode != 0


@pytest.mark.kernel
def test_the_interpreter_that_runs_us_is_shown_wherever_it_is() -> None:
    done = kit.run(sys.executable, "-c", "import sys; print(sys.version_info[:2])")
    assert kit.out(done) == str(sys.version_info[:2])


@pytest.mark.parametrize("where", ["/", "/usr", "/usr/bin", "/etc", "/dev", "/bin"])
@pytest.mark.parametrize("capable", [False, True], ids=["strict", "root-inside"])
def test_the_system_is_read_only(where: str, capable: bool) -> None:
    keywords = CAPABLE if capable else {}
    done = kit.sh(f"touch {where}/written; echo x > {where}/written2", **keywords)
    assert done.returncode != 0
    assert isinstance(done.stderr, str)
    assert "Read-only file system" in done.stderr
    assert not Path(where, "written").exists()


@pytest.mark.kernel
def test_proc_is_of_its_own_processes_only() -> None:
    names = kit.out(kit.run("ls", "/proc")).split()
    assert {"self", "thread-self"} <= set(names)
    assert not {"cpuinfo", "kcore", "sys", "keys", "kallsyms"} & set(names)


def test_proc_full_and_none() -> None:
    assert "cpuinfo" in kit.out(kit.run("ls", "/proc", proc="full")).split()
    assert "proc" not in kit.out(kit.run("ls", "/", proc="none")).split()


# -- /dev and /tmp ------------------------------------------------------------------------------

DEVICES = {"null", "zero", "full", "random", "urandom"}
LINKS = {"fd", "stdin", "stdout", "stderr", "ptmx"}
PLACES = {"shm", "mqueue", "pts"}


@pytest.mark.kernel
def test_dev_is_minimal() -> None:
    assert set(kit.out(kit.run("ls", "-A", "/dev")).split()) == DEVICES | LINKS | PLACES


@pytest.mark.kernel
def test_there_is_no_terminal_where_none_was_asked_for() -> None:
    """There is only the place for one of a later command."""
    assert kit.out(kit.sh("ls -A /dev/pts; test -e /dev/ptmx || echo none")) == "none"


def test_dev_of_standard_has_a_tty_too() -> None:
    names = set(kit.out(kit.run("ls", "-A", "/dev", profile="standard")).split())
    assert names == DEVICES | LINKS | PLACES | ({"tty"} if os.path.exists("/dev/tty") else set())


def test_dev_is_the_same_in_a_root_directory(box: Path) -> None:
    assert set(kit.out(kit.run("ls", "-A", "/dev", root=box)).split()) == DEVICES | LINKS | PLACES


@pytest.mark.kernel
def test_devices_are_the_hosts_and_work() -> None:
    for name in DEVICES:
        status = os.stat(f"/dev/{name}")
        assert stat.S_ISCHR(status.st_mode)
        inside = kit.out(kit.run("stat", "-c", "%F %t %T", f"/dev/{name}"))
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        assert inside == f"character special file {major:x} {minor:x}"
    script = "head -c 4 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c; echo > /dev/null"
    assert kit.out(kit.sh(script)).split() == ["00", "00", "00", "00", "8"]
    assert "No space left" in str(kit.sh("cat /etc/passwd > /dev/full").stderr)


@pytest.mark.kernel
def test_there_is_no_other_device_anywhere() -> None:
    """By stat(2): a directory entry tells of what was mounted over, not of the device."""
    prune = " ".join(f"-path {path} -prune -o" for path in ("/usr", "/proc", "/etc"))
    script = (
        f"find / {prune} ! -type l '(' -exec test -c {{}} ';' -o -exec test -b {{}} ';' ')' -print"
    )
    found = kit.out(kit.sh(script))
    assert set(found.split()) == {f"/dev/{name}" for name in DEVICES}


@pytest.mark.kernel
def test_no_device_can_be_made() -> None:
    assert kit.run("mknod", "/tmp/mem", "c", "1", "1", **CAPABLE).returncode != 0


def test_a_device_is_not_taken_from_the_root_directory(tmp_path: Path) -> None:
    root = kit.busybox_root(tmp_path / "root")
    (root / "dev/null").write_text("a trap")
    assert kit.out(kit.sh("cat /dev/null; test -c /dev/null", root=root)) == ""


TMP_TYPE = "stat -f -c '%T %b %S' "


@pytest.mark.kernel
def test_tmp_is_a_tmpfs_of_64_mib_and_shm_of_16() -> None:
    script = "; ".join(TMP_TYPE + where for where in ("/tmp", "/dev/shm"))
    for line, mib in zip(kit.out(kit.sh(script)).splitlines(), (64, 16), strict=True):
        kind, blocks, size = line.split()
        assert (kind, int(blocks) * int(size)) == ("tmpfs", mib << 20)


def test_tmp_is_writable_executable_and_gone_afterwards() -> None:
    script = "cp /bin/true /tmp/t && /tmp/t && echo x > /dev/shm/y && ls /tmp"
    assert kit.out(kit.sh(script)) == "t"
    assert kit.out(kit.sh("ls -A /tmp /dev/shm | grep -v :")) == ""


def test_shm_runs_no_programs() -> None:
    assert kit.sh("cp /bin/true /dev/shm/t && /dev/shm/t").returncode == 126


@pytest.mark.kernel
def test_disk_limit_is_a_full_disk_at_that_size() -> None:
    done = kit.sh("head -c 3000000 /dev/zero > x; stat -c %s x", limits=Limits(disk="1MiB"))
    assert done.stdout == "1048576\n"
    assert "No space left on device" in str(done.stderr)
    assert done.limits_hit == ("disk",)
    assert kit.sh("head -c 500000 /dev/zero > x", limits=Limits(disk="1MiB")).limits_hit == ()


def test_shared_memory_is_no_way_around_the_disk_limit() -> None:
    script = "head -c 3000000 /dev/zero > /dev/shm/x; stat -c %s /dev/shm/x"
    assert kit.sh(script, limits=Limits(disk="1MiB")).stdout == "1048576\n"


def test_a_disk_limit_above_the_profile_s_file_size_holds_for_one_file() -> None:
    script = "truncate -s 300M x && stat -c %s x"
    assert kit.out(kit.sh(script, limits=Limits(disk="1GiB"))) == str(300 << 20)
    assert kit.sh(script).returncode == 128 + signal.SIGXFSZ


@pytest.mark.kernel
def test_what_is_used_up_is_told_of_every_kind_of_sandbox(tmp_path: Path) -> None:
    lower = kit.busybox_root(tmp_path / "root")
    script = "head -c 3000000 /dev/zero > /tmp/x; exec true"
    limits = Limits(disk="1MiB", inodes=100)
    roots = [None, Rootfs.dir(lower)]
    if not kit.ROOT or kit.maps_ids(lower):
        roots.append(Rootfs.overlay(lower))
    for root in roots:
        for init in (True, False):
            assert kit.sh(script, limits=limits, root=root, init=init).limits_hit == ("disk",)
    with nsbox.Container(["sh", "-c", script], limits=limits) as container:
        container.wait(kit.PATIENCE)
        assert container.result().limits_hit == ("disk",)


@pytest.mark.kernel
def test_inode_limit_is_a_full_disk_at_that_number() -> None:
    script = "i=0; while [ $i -lt 40 ] && touch f$i; do i=$((i+1)); done; ls | wc -l"
    done = kit.sh(script, limits=Limits(inodes=32))
    assert int(str(done.stdout)) in range(30, 33)
    assert "No space left on device" in str(done.stderr)
    assert done.limits_hit == ("inodes",)
    assert done.enforcement["inodes"] == "tmpfs nr_inodes=32"


@pytest.mark.parametrize("limits", [{"disk": "1MiB"}, {"inodes": 100}], ids=["disk", "inodes"])
def test_a_directory_that_is_written_to_has_no_limit_and_that_is_an_error(
    tmp_path: Path, limits: dict[str, Any]
) -> None:
    root = Rootfs.dir(kit.busybox_root(tmp_path / "root"), ro=False)
    ((name, _),) = limits.items()
    with pytest.raises(nsbox.Unavailable, match=r"root=.*Rootfs\.overlay") as caught:
        kit.run("true", root=root, limits=Limits(**limits))
    assert caught.value.feature == f"limits.{name}"
    done = kit.run("true", root=root, limits=Limits(**limits), best_effort=True)
    assert done.enforcement[name].startswith("missing")


# -- Rootfs.dir() -------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ro", [True, False], ids=["ro", "rw"])
def test_a_directory_is_the_root(box: Path, method: str, ro: bool) -> None:
    root = Rootfs.dir(box, ro=ro, method=method)
    script = "cat /etc/marker; readlink /proc/self/exe; ls -A / | sort"
    names = kit.out(kit.sh(script, root=root)).split()
    assert names[:2] == ["inside", "/bin/busybox"]
    assert names[2:] == ["bin", "data", "dev", "etc", "proc", "tmp"]


def test_a_path_is_a_root_too(box: Path) -> None:
    assert kit.out(kit.run("cat", "/etc/marker", root=box)) == "inside"
    assert kit.out(kit.run("cat", "/etc/marker", root=str(box))) == "inside"


@pytest.mark.kernel
@pytest.mark.root
def test_a_directory_is_the_root_from_a_template(box: Path) -> None:
    for _ in range(3):
        assert kit.out(kit.run("cat", "/etc/marker", root=box, profile="none")) == "inside"


CLASSIC = """
import sys, nsbox
look = ["ls -A /", "cat /etc/marker", "stat -c '%n %F %a %t:%T' /dev/*",
        "grep -v ' /dev/[a-z]* ' /proc/self/mountinfo | wc -l"]  # but for devices
args = ["/bin/sh", "-c", "; ".join(look)]
keywords = dict(root=sys.argv[1], profile="none", namespaces=["mnt", "pid"])
print([step.name for step in nsbox.explain(args, **keywords).steps if step.source == "root"][:1])
for _ in range(2):
    print(nsbox.run(args, capture_output=True, text=True, check=True, **keywords).stdout)
"""


@pytest.mark.kernel
@pytest.mark.root
def test_a_root_is_the_same_from_a_template_and_without(box: Path) -> None:
    said = {}
    for switch in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", CLASSIC, str(box)],
            env={**os.environ, "NSBOX_TEMPLATES": switch},
            capture_output=True,
            text=True,
            timeout=kit.PATIENCE,
            check=True,
        )
        first, _, said[switch] = done.stdout.partition("\n")
        assert first == ("['open']" if switch == "0" else "['setns']")
    assert said["0"] == said["1"]
    assert "inside" in said["0"]


LOOK_AT_ZERO = """
import os, sys, nsbox
say = "stat -Lc '%a %t:%T %d' /dev/null /dev/zero; echo x > /dev/zero; head -c 4 /dev/zero | wc -c"
done = nsbox.run(["/bin/sh", "-c", say], root=sys.argv[1], profile=sys.argv[2], capture_output=True,
                 text=True, check=True)
print(done.stdout, os.stat("/dev/zero").st_dev)
"""


@pytest.mark.kernel
@pytest.mark.root
@pytest.mark.parametrize("profile", ["none", "strict"])
def test_devices_of_a_template_are_its_own_where_they_can_be_made(box: Path, profile: str) -> None:
    """Without CAP_MKNOD, as in many a container, they are mounts of the host's."""
    said = {}
    for rights in ("", "-mknod"):
        done = subprocess.run(
            [*["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"] * bool(rights),
             sys.executable, "-c", LOOK_AT_ZERO, str(box), profile],
            env={**os.environ, "NSBOX_TEMPLATES": "1"},
            capture_output=True, text=True, timeout=kit.PATIENCE, check=True,
        )  # fmt: skip
        null, (*zero, where), count, host = map(str.split, done.stdout.splitlines())
        assert (null[:2], zero, count) == (["666", "1:3"], ["666", "1:5"], ["4"])
        assert null[2:] == host  # as what an unread stream is
        said[rights] = [where] == host
    assert said == {"": False, "-mknod": True}


@pytest.mark.root
def test_a_directory_that_was_made_anew_is_not_the_old_one(tmp_path: Path) -> None:
    for word in ("first", "second"):
        root = kit.busybox_root(tmp_path / "root")
        (root / "etc/marker").write_text(word)
        assert kit.out(kit.run("cat", "/etc/marker", root=root, profile="none")) == word
        shutil.rmtree(root)


@pytest.mark.kernel
@pytest.mark.parametrize("method", METHODS)
def test_a_read_only_root_is_left_as_it_was(box: Path, method: str) -> None:
    before = contents(box)
    done = kit.sh("touch /x /data/x /etc/x; rm /etc/marker; echo x > /etc/marker",
                  root=Rootfs.dir(box, method=method), **CAPABLE)  # fmt: skip
    assert str(done.stderr).count("Read-only file system") == 5
    assert contents(box) == before


@pytest.mark.kernel
@pytest.mark.parametrize("method", METHODS)
def test_a_writable_root_is_written_to(tmp_path: Path, method: str) -> None:
    root = kit.busybox_root(tmp_path / "root")
    kit.open_directory(root / "data")
    done = kit.sh("echo new > /data/x", root=Rootfs.dir(root, ro=False, method=method))
    assert done.ok, done
    assert (root / "data/x").read_text() == "new\n"


@pytest.mark.kernel
@pytest.mark.parametrize("method", METHODS)
def test_the_old_root_is_out_of_sight(box: Path, method: str) -> None:
    text = kit.out(kit.run("cat", "/proc/self/mountinfo", root=Rootfs.dir(box, method=method)))
    points = [line.split()[4] for line in text.splitlines()]
    assert points.count("/") == 1
    assert {point.split("/")[1] for point in points} <= {"", "dev", "proc", "tmp"}


ESCAPE = """
import os, sys
directory, mark = sys.argv[1:]
os.makedirs(directory, exist_ok=True)
start = os.open("/", os.O_RDONLY)
os.chroot(directory)
os.fchdir(start)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
print("out" if os.path.exists(mark) else "held")
"""


def _system_root(where: Path) -> Path:
    """A root with the host's programs: what a bind mount of /usr makes of empty directories."""
    where.mkdir()
    for name in ("usr", "proc", "dev", "tmp"):
        (where / name).mkdir()
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (where / name).symlink_to(f"usr/{name}")
    where.chmod(0o755)
    return where


@pytest.mark.kernel
@pytest.mark.parametrize("method", METHODS)
def test_a_chroot_escape_is_held(tmp_path: Path, method: str) -> None:
    mark = tmp_path / "HOSTMARK"
    mark.touch()
    root = Rootfs.dir(_system_root(tmp_path / "root"), method=method)
    done = kit.python(
        ESCAPE, "/tmp/x", str(mark), root=root,
        mounts=[Mount.bind("/usr", "/usr", ro=False)],
        capabilities=["SYS_CHROOT", "SYS_ADMIN"], **CAPABLE,
    )  # fmt: skip
    assert kit.out(done) == "held"


def test_the_chroot_escape_is_real(tmp_path: Path) -> None:
    """The same program gets out of a plain chroot(2): else the test above proves nothing."""
    mark = tmp_path / "HOSTMARK"
    mark.touch()
    (tmp_path / "jail").mkdir()
    jailed = f"import os, sys\nos.chroot({str(tmp_path / 'jail')!r})\nos.chdir('/')\n{ESCAPE}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "/usr/bin/python3", "-I", "-S", "-c", jailed,
         "/x", str(mark)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "out\n"


@pytest.mark.parametrize("ro", [False, True])
def test_the_method_is_in_the_plan(box: Path, ro: bool, classic: None) -> None:
    for method in METHODS:
        root = Rootfs.dir(box, ro=ro, method=method)
        names = [step.name for step in nsbox.explain(["id"], root=root).steps]
        assert method in names
        assert not set(METHODS) - {method} & set(names)


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["dev", "proc", "tmp"])
@pytest.mark.parametrize("ro", [True, False], ids=["ro", "rw"])
def test_a_root_whose_mount_points_are_symlinks_touches_nothing_outside(
    tmp_path: Path, name: str, ro: bool
) -> None:
    outside = kit.open_directory(tmp_path / "outside")
    root = kit.busybox_root(tmp_path / "root")
    (root / name).rmdir()
    (root / name).symlink_to(outside)
    with pytest.raises(nsbox.SetupError) as caught:
        kit.run("true", root=Rootfs.dir(root, ro=ro))
    assert caught.value.field
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["dev", "proc", "tmp"])
def test_a_missing_mount_point_is_an_error_that_says_how_to_mend_it(
    tmp_path: Path, name: str
) -> None:
    root = kit.busybox_root(tmp_path / "root")
    (root / name).rmdir()
    with pytest.raises(nsbox.SetupError, match=f"/{name}") as caught:
        kit.run("true", root=root)
    assert caught.value.errno == 2
    assert "ro=False" in caught.value.hint
    root.chmod(0o777)  # the root of the sandbox's user namespace is another user
    assert kit.run("true", root=Rootfs.dir(root, ro=False)).ok
    assert (root / name).is_dir()


@pytest.mark.parametrize("profile", ["strict", "none"])
def test_a_root_that_is_not_there_is_an_error_that_names_root(tmp_path: Path, profile: str) -> None:
    with pytest.raises(nsbox.SpecError, match="nonexistent does not exist") as caught:
        kit.run("true", root=tmp_path / "nonexistent", profile=profile)
    assert caught.value.field == "root"


def test_a_root_that_is_a_file_is_an_error(box: Path) -> None:
    with pytest.raises(nsbox.SpecError, match="marker is not a directory") as caught:
        kit.run("true", root=box / "etc/marker")
    assert caught.value.field == "root"


def test_a_root_that_is_there_and_has_nothing_in_it_is_no_bad_value(tmp_path: Path) -> None:
    with pytest.raises(nsbox.SetupError):
        kit.run("true", root=tmp_path)


def test_a_root_needs_a_mount_namespace(box: Path) -> None:
    with pytest.raises(nsbox.SpecError, match="mnt"):
        nsbox.run(["true"], root=box, namespaces=kit.spaces("pid"))


# -- Rootfs.inherit() ---------------------------------------------------------------------------


@pytest.mark.kernel
def test_inherit_is_the_callers_own_root(tmp_path: Path) -> None:
    shared = kit.open_directory(tmp_path)
    for parent in list(shared.parents)[:-2]:
        if not os.access(parent, os.X_OK) or not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    done = kit.sh('echo new > "$1/x"; ls /', str(shared), root=Rootfs.inherit())
    assert set(kit.out(done).split()) == {n for n in os.listdir("/") if not n.startswith(".")}
    assert (shared / "x").read_text() == "new\n"


@pytest.mark.kernel
def test_inherit_has_a_proc_of_its_own_processes() -> None:
    assert kit.out(kit.run("readlink", "/proc/self", root=Rootfs.inherit(), init=False)) == "1"


@pytest.mark.kernel
def test_inherit_keeps_the_old_directory_where_there_is_no_mount_namespace() -> None:
    script = "readlink /proc/self/root; readlink /proc/self/ns/mnt"
    lines = kit.out(kit.sh(script, namespaces=kit.spaces("uts"))).split()
    assert lines == ["/", kit.namespace_id("mnt")]
