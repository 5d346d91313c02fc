# SPDX-License-Identifier: Apache-2.0
"""What a newcomer writes first, as it is written, and what the first mistakes are answered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run import kit
from support import scaled

import nsbox

pytestmark = pytest.mark.userns
MIB = 1 << 20

# -- 1: subprocess.run, but boxed ---------------------------------------------------------------


def test_1_a_boxed_subprocess_run() -> None:
    r = nsbox.run(
        ["python3", "-c", "print(2+2)"], capture_output=True, text=True, timeout=scaled(5)
    )
    assert (r.stdout, r.reason, r.returncode, r.ok) == ("4\n", nsbox.Reason.EXITED, 0, True)
    assert MIB < r.usage.memory_peak < 512 * MIB


def test_1_a_command_as_one_string_is_told_both_ways_out() -> None:
    with pytest.raises(TypeError) as caught:
        nsbox.run("ls -l")
    assert str(caught.value) == 'args must be a list; use ["sh", "-c", "ls -l"] or shlex.split()'


# -- 2: a judge ---------------------------------------------------------------------------------

SUBMISSION = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void) {
    long n;
    if (scanf("%ld", &n) != 1) return 2;
    for (long i = 0; i < n; i++) memset(malloc(1 << 20), 1, 1 << 20);
    printf("%ld\\n", n * n);
}
"""


@pytest.fixture(scope="module")
def a_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("build") / "a.out"
    subprocess.run(
        [compiler, "-w", "-O1", "-fno-builtin-malloc", "-x", "c", "-", "-o", str(built)],
        input=SUBMISSION, text=True, check=True,
    )  # fmt: skip
    return built


def judge(a_out: Path, case: bytes) -> nsbox.Completed:
    lim = nsbox.Limits(memory="256MiB", pids=32, wall=scaled(6), output="64KiB", disk="16MiB")
    return nsbox.run(
        ["./a.out"], files={"a.out": a_out}, limits=lim, input=case, capture_output=True
    )


@pytest.mark.cgroup
def test_2_a_judge_accepts_an_answer(a_out: Path) -> None:
    r = judge(a_out, b"12\n")
    assert (r.reason, r.stdout, r.truncated) == (nsbox.Reason.EXITED, b"144\n", False)
    assert 12 * MIB < r.usage.memory_peak < 256 * MIB


@pytest.mark.cgroup
def test_2_a_judge_sees_that_memory_ran_out(a_out: Path) -> None:
    r = judge(a_out, b"400\n")
    assert r.reason is nsbox.Reason.OOM
    assert (r.stdout, r.limits_hit) == (b"", ("memory",))


def test_2_a_size_without_a_unit_is_asked_about() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Limits(memory="256")
    assert str(caught.value) == 'memory: 256 bytes is below 1 MiB; did you mean "256MiB"?'
    assert isinstance(caught.value, ValueError)


# -- 3: the steps of a container, one by one ----------------------------------------------------


def test_3_a_network_namespace_by_itself() -> None:
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    with nsbox.Namespace.create("net") as ns:
        shown = ns.run(["ip", "-o", "addr"], check=True, capture_output=True, text=True)
    assert {line.split()[1] for line in shown.stdout.splitlines()} == {"lo"}


def test_3_a_failing_command_is_raised_only_when_asked() -> None:
    with nsbox.Namespace.create("net") as ns:
        assert ns.run(["false"]).returncode == 1
        with pytest.raises(nsbox.CommandError) as caught:
            ns.run(["false"], check=True)
    assert isinstance(caught.value, subprocess.CalledProcessError)
    assert caught.value.completed.returncode == 1


def test_3_namespaces_are_equal_when_they_are_the_same() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            with (
                nsbox.Namespace.of(process.pid, "net") as of,
                nsbox.Namespace.current("net") as current,
                nsbox.Namespace.create("net") as other,
            ):
                assert of == current
                assert of != other
                assert len({of, current, other}) == 2
        finally:
            process.kill()


# -- 6: a pod with a sidecar --------------------------------------------------------------------


def test_6_a_pod_with_a_sidecar(tmp_path: Path) -> None:
    log = kit.open_directory(tmp_path / "v")
    v = nsbox.Mount.bind(log, "/v", ro=False)
    with nsbox.Pod(
        "web",
        containers=[nsbox.ContainerSpec("app", ["python3", "-m", "http.server", "80"])],
        init_containers=[nsbox.Sidecar(
            "log", ["sh", "-c", "touch /v/log; exec tail -F /v/log"], mounts=[v])],
        restart_policy="OnFailure",
    ) as pod:  # fmt: skip
        pod["app"].kill()
        pod["app"].wait_restarted(1, scaled(10))
        app, sidecar = pod["app"].namespaces, pod["log"].namespaces
        shown = str(pod)
    assert {kind for kind in app if app[kind] == sidecar[kind]} >= {"net", "ipc"}
    assert {kind for kind in app if app[kind] != sidecar[kind]} >= {"mnt", "uts", "pid"}
    assert (log / "log").exists()
    for word in ("web", "app", "log", "Running"):
        assert word in shown


# -- 7: why did it not start? -------------------------------------------------------------------


def test_7_a_failed_step_is_named_with_what_asked_for_it() -> None:
    mounts = [nsbox.Mount.tmpfs("/a"), nsbox.Mount.tmpfs("/b"),
              nsbox.Mount.bind("/srv/nsbox-data", "/data")]  # fmt: skip
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.run(["true"], mounts=mounts)
    pattern = (
        r"step \d+ \(open /srv/nsbox-data.*, from mounts\[2\]\): "
        r"open_tree: ENOENT \(No such file or directory\)"
    )
    assert re.match(pattern, str(caught.value)), str(caught.value)
    assert isinstance(caught.value, OSError)


NO_USER_NAMESPACES = """
import sys, nsbox
try:
    nsbox.run(["true"])
except nsbox.Unavailable as error:
    print(type(error).__name__, error)
except nsbox.SetupError as error:
    print(type(error).__name__, error)
"""


def test_7_without_user_namespaces_the_error_says_what_is_in_the_way() -> None:
    """In a user namespace that may have no further ones; no other limit of the host is touched."""
    zero = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", zero, "sh",
         sys.executable, "-c", NO_USER_NAMESPACES],
        env={**os.environ, "PYTHONPATH": str(Path(nsbox.__file__).parents[1])},
        capture_output=True, text=True, timeout=scaled(30),
    )  # fmt: skip
    said = done.stdout.strip()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"ENOSPC|EPERM", said), said
    assert "max_" in said, said
