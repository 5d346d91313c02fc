# SPDX-License-Identifier: Apache-2.0
"""Other sandbox runners, each asked for the same six namespaces around the same rootfs."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivers import LineProcess, SampleFailed, last_line
from rootfs import NAMESPACES, Rootfs

if TYPE_CHECKING:
    from collections.abc import Callable

SPAWNER = Path(__file__).resolve().parent / "spawner.py"
ENTER_PRIVATE = 'if [ -n "$1" ]; then umount -l "$1" || exit 1; fi; exec "$2" "$3"'

#: of ``nsbox.Limits``, and the same in the words of the OCI
LIMITS: dict[str, Any] = {"memory": 64 << 20, "pids": 64, "cpu": 1.0}
OCI_LIMITS = {
    "memory": {"limit": LIMITS["memory"]},
    "pids": {"limit": LIMITS["pids"]},
    "cpu": {"quota": int(100_000 * LIMITS["cpu"]), "period": 100_000},
}

_counter = itertools.count(1)


def run_unshare(program: str, fs: Rootfs, payload: str) -> list[str]:
    """unshare(1): chroot and a fresh /proc; no /dev, lo stays down."""
    kinds = ["--mount", "--pid", "--ipc", "--uts", "--net", "--cgroup", "--fork"]
    return [program, *kinds, f"--root={fs.root}", "--mount-proc=/proc", payload]


def run_bwrap(program: str, fs: Rootfs, payload: str) -> list[str]:
    """bubblewrap: the six namespaces and a user namespace, which --unshare-all includes."""
    tree = ["--ro-bind", str(fs.root), "/", "--proc", "/proc", "--dev", "/dev"]
    return [program, "--unshare-all", *tree, payload]


def run_crun(program: str, fs: Rootfs, payload: str) -> list[str]:
    """crun run, without cgroups."""
    state = ["--cgroup-manager=disabled", "--root", str(fs.work / "crun-state")]
    return [program, *state, "run", "-b", str(bundle(fs, payload)), container_id(fs)]


def run_runc(program: str, fs: Rootfs, payload: str) -> list[str]:
    """runc run. As root it always makes (and removes) a cgroup per v1 controller."""
    state = ["--root", str(fs.work / "runc-state")]
    return [program, *state, "run", "-b", str(bundle(fs, payload)), container_id(fs)]


def run_crun_cgroup(program: str, fs: Rootfs, payload: str) -> list[str]:
    """crun run, with limits of memory, processes and CPU."""
    state = ["--cgroup-manager=cgroupfs", "--root", str(fs.work / "crun-state")]
    where = bundle(fs, payload, limits=True)
    return [program, *state, "run", "-b", str(where), container_id(fs)]


def run_runc_cgroup(program: str, fs: Rootfs, payload: str) -> list[str]:
    """runc run, with limits of memory, processes and CPU."""
    state = ["--root", str(fs.work / "runc-state")]
    where = bundle(fs, payload, limits=True)
    return [program, *state, "run", "-b", str(where), container_id(fs)]


def run_nsjail(program: str, fs: Rootfs, payload: str) -> list[str]:
    """nsjail: once, without a user namespace."""
    quiet = ["-Mo", "--really_quiet", "--disable_clone_newuser"]
    return [program, *quiet, "--chroot", str(fs.root), "--", payload]


def run_nsjail_cgroup(program: str, fs: Rootfs, payload: str) -> list[str]:
    """The same with limits of memory, processes and CPU."""
    limits = {
        "--cgroup_mem_max": LIMITS["memory"],
        "--cgroup_pids_max": LIMITS["pids"],
        "--cgroup_cpu_ms_per_sec": int(1000 * LIMITS["cpu"]),
    }
    words = [str(word) for pair in limits.items() for word in pair]
    plain = run_nsjail(program, fs, payload)
    return [*plain[:1], *words, *plain[1:]]


def run_nspawn(program: str, fs: Rootfs, payload: str) -> list[str]:
    """systemd-nspawn, without registering with systemd."""
    alone = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--read-only"]
    return [program, *alone, "--as-pid2", f"--machine={container_id(fs)}", "-D", str(fs.root),
            payload]  # fmt: skip


def run_podman(program: str, fs: Rootfs, payload: str) -> list[str]:
    """podman run of the root directory, without cgroups; ulimits that a weak root may set."""
    state = ["--root", str(fs.work / "podman"), "--runroot", str(fs.work / "podman-run"),
             "--storage-driver", "vfs", "--log-level", "error"]  # fmt: skip
    ulimits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
    return [program, *state, "run", "--rm", "--net", "none", "--cgroups=disabled",
            "--cgroupns=private", "--log-driver=none", "--security-opt", "seccomp=unconfined",
            *ulimits, "--read-only", "--read-only-tmpfs=false", "--rootfs", str(fs.root),
            payload]  # fmt: skip


def container_id(fs: Rootfs) -> str:
    """A name no other container on this machine has."""
    return f"{fs.work.name}-{next(_counter)}"


#: name -> how to run *payload* in it
PEERS: dict[str, Callable[[str, Rootfs, str], list[str]]] = {
    "unshare": run_unshare,
    "bwrap": run_bwrap,
    "nsjail": run_nsjail,
    "crun": run_crun,
    "runc": run_runc,
    "systemd-nspawn": run_nspawn,
    "podman": run_podman,
}
#: the same with cgroups, for comparing like with like
WITH_CGROUPS: dict[str, Callable[[str, Rootfs, str], list[str]]] = {
    "crun-cgroup": run_crun_cgroup,
    "runc-cgroup": run_runc_cgroup,
    "nsjail-cgroup": run_nsjail_cgroup,
}
EVERY = {**PEERS, **WITH_CGROUPS}


def bundle(fs: Rootfs, payload: str, *, limits: bool = False) -> Path:
    """The OCI bundle that runs *payload* with proc and /dev alone; written once."""
    path = fs.work / f"bundle-{Path(payload).name}{'-limits' if limits else ''}"
    if not path.exists():
        path.mkdir()
        text = json.dumps(oci_config(fs.root, payload, limits=limits))
        (path / "config.json").write_text(text, encoding="utf-8")
    return path


def oci_config(root: Path, payload: str, *, limits: bool) -> dict[str, Any]:
    """A slim OCI runtime configuration (docker's has six more mounts)."""
    kinds = {"mnt": "mount", "net": "network"}
    no_exec = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [payload],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": no_exec},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
        ],
        "linux": {
            "namespaces": [{"type": kinds.get(name, name)} for name in NAMESPACES],
            # runc 1.1 refuses a device rule without access.
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                **(OCI_LIMITS if limits else {}),
            },
        },
    }


def hybrid_unified() -> str:
    """Mount point of a cgroup2 that lives beside v1 controllers, or an empty string."""
    with open("/proc/self/mounts", encoding="utf-8") as table:
        rows = [line.split() for line in table]
    has_v1 = any(row[2] == "cgroup" for row in rows)
    unified = [row[1] for row in rows if row[2] == "cgroup2"]
    return unified[0] if has_v1 and unified else ""


def start_spawner() -> LineProcess:
    """The helper that spawns peers, in a private mount namespace of its own.

    crun refuses hybrid cgroups (``cgroups in hybrid mode not supported``), so the unified mount is
    taken away there, once, for all peers alike; the host's mounts are untouched.

    Raises:
        SampleFailed: unshare(1) is missing, or the helper did not start.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        raise SampleFailed("unshare(1) not installed; the peers' helper needs it")
    private = [unshare, "--mount", "--propagation", "private", "sh", "-c", ENTER_PRIVATE, "sh"]
    helper = LineProcess([*private, hybrid_unified(), sys.executable, str(SPAWNER)])
    try:
        helper.read()
    except SampleFailed:
        helper.close()
        raise
    return helper


@dataclass(frozen=True)
class Peer:
    """An installed runner, driven through the spawner."""

    name: str
    program: str
    spawner: LineProcess
    fs: Rootfs

    def ask(self, payload: str, *, capture: bool) -> dict[str, Any]:
        """Run *payload* once; the spawner's answer.

        Raises:
            SampleFailed: it exited with another code than 0.
        """
        argv = EVERY[self.name](self.program, self.fs, payload)
        answer = json.loads(self.spawner.ask(json.dumps({"argv": argv, "capture": capture})))
        if answer["code"] != 0:
            said = last_line(answer["err"])
            raise SampleFailed(f"exit code {answer['code']}" + (f": {said}" if said else ""))
        return dict(answer)

    def sample(self, payload: str) -> int:
        """Elapsed nanoseconds of one spawn and wait."""
        return int(self.ask(payload, capture=False)["ns"])

    def probe(self, payload: str) -> str:
        """What the probe prints inside."""
        return str(self.ask(payload, capture=True)["out"])
