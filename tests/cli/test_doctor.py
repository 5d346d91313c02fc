# SPDX-License-Identifier: Apache-2.0
"""doctor() says what is missing, why, and what mends it: each failure is a real one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cli import kit
from support import scaled

import nsbox

REPORT = 'exec "$PYTHON" -c "import json, nsbox; print(json.dumps(nsbox.doctor().to_json()))"'
#: Root of a user and a mount namespace of its own, in which nothing done is seen outside.
INSIDE = ("unshare", "--user", "--map-root-user", "--mount")

DENY = """
import ctypes, os, struct, sys
denied, answer = int(sys.argv[1]), int(sys.argv[2])
code = ((0x20, 0, 0, 0), (0x15, 0, 1, denied), (0x06, 0, 0, answer), (0x06, 0, 0, 0x7FFF0000))
filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters))
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[3], sys.argv[3:])
"""
EPERM, KILL = 0x00050001, 0x80000000
UNSHARE = {"x86_64": 272, "aarch64": 97}.get(os.uname().machine, -1)


def report_in(*before: str, setup: str = "") -> dict[str, dict[str, Any]]:
    """Name -> check, of a doctor that was called in another place than this process."""
    said = json.loads(kit.shell(f"{setup}\n{REPORT}", before=before))
    return {check["name"]: check for check in said["checks"]} | {"ok": said["ok"]}


@pytest.fixture(scope="module")
def here() -> nsbox.Report:
    return nsbox.doctor()


@pytest.mark.userns
def test_the_report_has_every_check_and_says_that_run_works(here: nsbox.Report) -> None:
    from nsbox.diagnosis import NEEDED_FOR

    assert [check.name for check in here.checks] == list(NEEDED_FOR)
    assert here.ok == nsbox.run(["true"]).ok
    assert {check.name for check in here.missing} == {c.name for c in here.checks if not c.ok}


@pytest.mark.userns
@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"])
def test_a_namespace_that_can_be_made_is_reported_so(here: nsbox.Report, kind: str) -> None:
    assert here[f"{kind} namespace"].ok, here[f"{kind} namespace"]


@pytest.mark.userns
@pytest.mark.kernel
def test_the_rules_of_a_network_are_tried_without_any_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = nsbox.doctor()["nft"]
    assert check.ok, check


@pytest.mark.cgroup
@pytest.mark.kernel
@pytest.mark.parametrize("name", ["memory cgroup", "memory limit", "pids cgroup", "pids limit",
                                  "cpu cgroup"])  # fmt: skip
def test_a_cgroup_that_can_be_limited_is_reported_so(here: nsbox.Report, name: str) -> None:
    check = here[name]
    assert check.ok, check


@pytest.mark.cgroup
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("controller", "file", "unlimited"),
    [("memory", "memory.max", "268435456"), ("pids", "pids.max", "64")],
)
def test_a_limit_that_is_not_kept_is_not_reported_as_kept(
    controller: str, file: str, unlimited: str
) -> None:
    """The limit of the trial is taken away behind its back: the check must be able to fail."""
    from nsbox import diagnosis, trials

    with trials.Trial() as trial:
        found, directory = trial.attempt(controller)
        assert found.ok
        v1 = {"memory.max": ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes")}
        for name in (file, *v1.get(file, ())):
            if os.path.exists(f"{directory}/{name}"):
                Path(f"{directory}/{name}").write_text(unlimited)
        name = f"{controller} limit"
        (answer, _) = diagnosis.Prober()([(name, [directory])])[name]
        assert not answer.ok
        assert "under a limit of" in answer.detail
    assert not os.path.exists(directory)


@pytest.mark.userns
def test_nothing_is_left_and_no_check_takes_long() -> None:
    """The leak check around each test compares; this one leaves it something to compare."""
    report = nsbox.doctor()
    slow = {c.name: c.seconds for c in report.checks if c.seconds > scaled(2)}
    assert slow == {}


def test_it_prints_a_table_with_every_name(here: nsbox.Report) -> None:
    text = str(here)
    assert all(check.name in text for check in here.checks)
    assert all(f"fix: {check.fix}" in text for check in here.missing if check.fix)
    assert text.splitlines()[-1].startswith("nsbox works here") == here.ok


def test_it_can_be_written_as_json(here: nsbox.Report) -> None:
    again = json.loads(json.dumps(here.to_json()))
    assert again["ok"] is here.ok
    assert [check["name"] for check in again["checks"]] == [check.name for check in here.checks]


def test_the_name_is_the_function_though_a_module_has_it_too() -> None:
    said = kit.shell('exec "$PYTHON" -c "import nsbox.doctor; print(callable(nsbox.doctor))"')
    assert said == "True\n"


# -- failures ---------------------------------------------------------------------------------


@pytest.mark.userns
def test_max_user_namespaces_of_zero_is_named_with_its_sysctl() -> None:
    limit = "echo 0 > /proc/sys/user/max_user_namespaces"
    check = report_in(*INSIDE, setup=limit)["user namespace"]
    assert not check["ok"]
    assert "ENOSPC" in check["detail"]
    assert "user.max_user_namespaces=0" in check["detail"]
    assert check["fix"].startswith("sysctl -w user.max_user_namespaces=")
    assert report_in(*INSIDE)["user namespace"]["ok"], "and without it, there is one"


@pytest.mark.userns
def test_max_net_namespaces_of_zero_is_of_that_kind_alone() -> None:
    limit = "echo 0 > /proc/sys/user/max_net_namespaces"
    report = report_in(*INSIDE, setup=limit)
    assert not report["net namespace"]["ok"]
    assert "user.max_net_namespaces=0" in report["net namespace"]["detail"]
    assert report["uts namespace"]["ok"]
    assert not report["run strict"]["ok"], "which needs one"
    assert "user.max_net_namespaces=0" in report["run strict"]["detail"]
    assert report["ok"] is False


def denied(*answer: int, command: tuple[str, ...] = ()) -> list[str]:
    program = [sys.executable, "-c", DENY, *map(str, answer)]
    return [*program, *command, "/bin/sh"] if command else program


@pytest.mark.userns
@pytest.mark.skipif(UNSHARE < 0, reason="the number of unshare(2) is not known here")
def test_a_seccomp_filter_that_refuses_unshare_is_named() -> None:
    report = report_in(*denied(UNSHARE, EPERM))
    check = report["user namespace"]
    assert check["detail"].startswith("unshare: EPERM")
    assert "seccomp filter" in check["detail"]
    assert "unshare" in check["fix"]
    assert report["clone3"]["ok"], "which the filter lets pass"


@pytest.mark.userns
@pytest.mark.skipif(UNSHARE < 0, reason="the number of unshare(2) is not known here")
def test_a_seccomp_filter_that_kills_is_told_from_a_refusal() -> None:
    check = report_in(*denied(UNSHARE, KILL))["user namespace"]
    assert "signal 31" in check["detail"]
    assert "seccomp filter" in check["detail"]


@pytest.mark.userns
def test_clone3_that_a_filter_hides_is_named() -> None:
    """Old profiles of Docker's answer ENOSYS, which looks like an old kernel."""
    report = report_in(*denied(435, 0x00050026))
    assert report["clone3"]["detail"].startswith("clone3: ENOSYS")
    assert "seccomp filter" in report["clone3"]["detail"]
    assert report["run strict"]["ok"] is False


@pytest.mark.userns
def test_a_proc_that_is_masked_as_in_docker_is_named_with_the_mounts() -> None:
    report = report_in(*INSIDE, setup="mount --bind /dev/null /proc/meminfo")
    check = report["proc mount"]
    assert not check["ok"]
    assert check["detail"].startswith("mount proc: EPERM")
    assert "/proc/meminfo" in check["detail"]
    assert "systempaths=unconfined" in check["fix"]
    assert report["tmpfs mount"]["ok"]


MASK = "mount --bind /dev/null /proc/meminfo"
#: An ordinary user, of a user namespace that is inside of the one where the mounts were made.
PLAIN = "unshare --user --map-user=1000 --map-group=1000"


@pytest.mark.userns
def test_an_ordinary_user_is_told_of_a_masked_proc_wherever_it_fails(tmp_path: Path) -> None:
    setup = f"{MASK}; export XDG_RUNTIME_DIR={tmp_path}; exec {PLAIN} /bin/sh -c '{REPORT}'"
    report = report_in(*INSIDE, setup=setup)
    assert report["ok"] is False
    assert report["proc mount"]["needed_for"] == "run()"
    for name in ("proc mount", "run strict", "run standard", "user-mode network"):
        assert not report[name]["ok"], name
        assert "/proc/meminfo" in report[name]["detail"], name
        assert "systempaths=unconfined" in report[name]["fix"], name
        assert "install" not in report[name]["fix"], name


@pytest.mark.userns
@pytest.mark.parametrize("words", ["true", "--profile standard true"])
def test_run_itself_tells_of_a_masked_proc(tmp_path: Path, words: str) -> None:
    setup = f"{MASK}; export XDG_RUNTIME_DIR={tmp_path}"
    script = f'{setup}; {PLAIN} "$PYTHON" -m nsbox run {words} 2>&1 || echo $?'
    said = kit.shell(script, before=INSIDE)
    assert "/proc/meminfo" in said
    assert "systempaths=unconfined" in said
    assert said.endswith("\n125\n")


@pytest.mark.root
@pytest.mark.parametrize("mask", [MASK, "mount -t tmpfs tmpfs /proc/sys"])
def test_a_masked_proc_that_run_does_without_is_no_verdict(mask: str) -> None:
    """Root mounts its own where nothing hides the host's: run() works, and other things do not."""
    setup = f'{mask}; "$PYTHON" -m nsbox run true'
    report = report_in("unshare", "--mount", setup=setup)
    assert report["run strict"]["ok"]
    assert report["ok"] is True
    check = report["proc mount"]
    assert not check["ok"]
    assert check["needed_for"] != "run()"
    assert "Rootfs.overlay()" in check["needed_for"]
    assert "systempaths=unconfined" in check["fix"]


@pytest.mark.root
def test_what_a_masked_proc_is_said_to_be_needed_for_does_not_work() -> None:
    code = """import nsbox
try:
    nsbox.run(["true"], mounts=[nsbox.Mount.tmpfs("/mnt")])
except nsbox.SetupError as e:
    print(e.hint)
"""
    said = kit.shell(f"{MASK}; exec \"$PYTHON\" -c '{code}'", before=("unshare", "--mount"))
    assert "systempaths=unconfined" in said


def test_the_verdict_is_that_of_the_trial_and_no_mark_says_otherwise() -> None:
    from nsbox.diagnosis import Check, Report

    trial = Check("run strict", True, "1 ms", needed_for="run()")
    few = Check("open files", False, "at most 100", needed_for="run()")
    report = Report((few, trial))
    assert report.ok
    assert "FAIL" not in str(report)
    assert not Report((few, Check("run strict", False, "why", needed_for="run()"))).ok


READ_ONLY = """for point in $(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - cgroup.*/\\1/p' \\
    /proc/self/mountinfo); do mount -o remount,bind,ro $point; done"""
ABSENT = "umount -R /sys/fs/cgroup"
MEND = """
import json, subprocess, sys
def cgroups():
    code = "import json, nsbox; print(json.dumps(nsbox.doctor().to_json()['checks']))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [c for c in json.loads(said.stdout) if c["needed_for"].startswith("Limits(")]
before = cgroups()
for fix in dict.fromkeys(check["fix"] for check in before):
    subprocess.run(["/bin/sh", "-ec", fix.rpartition("CAP_SYS_ADMIN: ")[2]], check=True)
print(json.dumps([before, cgroups()]))
"""


@pytest.mark.root
@pytest.mark.cgroup
@pytest.mark.parametrize(("setup", "why"), [
    pytest.param(READ_ONLY, "read-only", id="mounted read-only"),
    pytest.param(ABSENT, "no cgroup file system is mounted", id="not mounted"),
])  # fmt: skip
def test_root_is_told_what_makes_cgroups_writable_and_that_does_it(
    setup: str, why: str, tmp_path: Path
) -> None:
    program = tmp_path / "mend.py"
    program.write_text(MEND)
    said = kit.shell(f'{setup}\nexec "$PYTHON" {program}', before=("unshare", "--mount"))
    before, after = json.loads(said)
    for check in before:
        assert not check["ok"]
        assert why in check["detail"] or check["detail"].startswith("no cgroup with the ")
        assert "run as root" not in check["fix"]
    assert {check["name"]: check["detail"] for check in after if not check["ok"]} == {}


@pytest.mark.root
@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="there is no /dev/kvm")
def test_a_device_of_others_is_a_matter_of_rights_and_said_once() -> None:
    user = "setpriv --reuid 65533 --regid 65533 --clear-groups"
    script = f"{user} {REPORT.removeprefix('exec ')}; rmdir /tmp/nsbox-65533"
    said = json.loads(kit.shell("export XDG_RUNTIME_DIR=/nonexistent\n" + script))
    check = next(check for check in said["checks"] if check["name"] == "kvm device")
    if check["ok"]:
        pytest.skip("everybody may open it")
    assert check["detail"].count("/dev/kvm") == 1
    assert check["detail"].count("ermission denied") == 1
    assert "modprobe" not in check["fix"]
    assert "usermod -aG kvm 65533" in check["fix"]


@pytest.mark.userns
def test_few_open_files_are_named() -> None:
    check = report_in(setup="ulimit -n 256")["open files"]
    assert not check["ok"]
    assert "at most 256: more than 256 are needed" in check["detail"]
    assert "ulimit" in check["fix"]


@pytest.mark.userns
def test_a_noexec_tmp_is_named() -> None:
    setup = "mount --bind /tmp /tmp; mount -o remount,bind,noexec /tmp"
    report = report_in(*INSIDE, setup=setup)
    assert not report["executable /tmp"]["ok"]
    assert "remount,exec" in report["executable /tmp"]["fix"]


@pytest.mark.userns
def test_a_missing_device_node_is_named() -> None:
    report = report_in(*INSIDE, setup="mount -t tmpfs tmpfs /dev/shm; touch /dev/shm/x; "
                                      "mount --bind /dev/shm/x /dev/full")  # fmt: skip
    assert report["device nodes"]["detail"] == "no character device: full"


@pytest.mark.user
@pytest.mark.subuid
def test_no_new_privs_keeps_newuidmap_from_working() -> None:
    report = report_in("setpriv", "--no-new-privs")
    for name in ("id range", "run standard"):
        assert not report[name]["ok"]
        assert "no_new_privs" in report[name]["detail"]
        assert "NoNewPrivileges=no" in report[name]["fix"]
    assert report_in()["id range"]["ok"], "and without it, it works"


@pytest.mark.user
@pytest.mark.userns
def test_a_limit_of_processes_is_named() -> None:
    if not shutil.which("prlimit"):
        pytest.skip("needs prlimit")
    report = report_in("prlimit", "--nproc=1")
    assert "EAGAIN" in report["clone3"]["detail"]
    assert "ulimit -u" in report["clone3"]["fix"]


@pytest.mark.user
def test_a_registry_that_is_open_to_others_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "nsbox").mkdir()
    (tmp_path / "nsbox").chmod(0o755)
    check = report_in(setup=f"export XDG_RUNTIME_DIR={tmp_path}")["registry"]
    assert not check["ok"]
    assert check["fix"] == f"rm -r {tmp_path}/nsbox"


@pytest.mark.root
def test_newuidmap_that_is_not_installed_is_named() -> None:
    """A user whose mount namespace hides it: the caller must not be root, who needs none."""
    if not os.path.exists("/usr/bin/newuidmap"):
        pytest.skip("it is not installed, so there is no difference to see")
    setup = "mount --bind /dev/null /usr/bin/newuidmap; export XDG_RUNTIME_DIR=/nonexistent"
    user = "setpriv --reuid 65533 --regid 65533 --clear-groups"
    script = f"{setup}\n{user} {REPORT.removeprefix('exec ')}; rmdir /tmp/nsbox-65533"
    said = json.loads(kit.shell(script, before=("unshare", "--mount")))
    check = next(check for check in said["checks"] if check["name"] == "id range")
    assert check["detail"] == "newuidmap not installed"
    assert "uidmap" in check["fix"]


@pytest.mark.root
def test_a_user_without_a_range_of_ids_is_told_how_to_get_one() -> None:
    user = "setpriv --reuid 65533 --regid 65533 --clear-groups"
    script = f"{user} {REPORT.removeprefix('exec ')}; rmdir /tmp/nsbox-65533"
    said = json.loads(kit.shell("export XDG_RUNTIME_DIR=/nonexistent\n" + script))
    check = next(check for check in said["checks"] if check["name"] == "id range")
    assert "no range of 65536 ids for 65533 in /etc/subuid, /etc/subgid" in check["detail"]
    assert check["fix"].startswith("usermod --add-subuids")
