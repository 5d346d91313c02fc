# SPDX-License-Identifier: Apache-2.0
"""System V IPC, POSIX message queues and shared memory: the pod's, and nobody else's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pod import ipcprobe
from pod.kit import wait_log
from support import scaled

import nsbox

pytestmark = pytest.mark.userns

SOURCE = Path(ipcprobe.__file__).read_text()
WORD = "shared"
ALL = {"shm": WORD, "sem": len(WORD), "msg": WORD, "mq": WORD, "file": WORD}
NONE = dict.fromkeys(ALL, "ENOENT")


@pytest.fixture
def key() -> int:
    return random.SystemRandom().randrange(1 << 20, 1 << 30)


def probe(name: str, verb: str, key: int, **keywords: Any) -> nsbox.ContainerSpec:
    """A container that runs ipcprobe.py; the strict profile has no message queues."""
    keywords = {"rlimits": {"msgqueue": 819200}, **keywords}
    args = ["python3", "-SIu", "/tmp/ipcprobe.py", verb, str(key), WORD]
    return nsbox.ContainerSpec(name, args, files={"ipcprobe.py": SOURCE}, **keywords)


def seen_by(container: Any) -> dict[str, Any]:
    """What it found."""
    log = wait_log(container, "}\n")
    found: dict[str, Any] = json.loads(log.rpartition("look ")[2])
    return found


@pytest.mark.kernel
def test_visible_in_the_pod_and_neither_outside_nor_in_another(key: int) -> None:
    containers = [probe("maker", "make", key), probe("looker", "await", key)]
    with nsbox.Pod("one", containers) as pod:
        assert seen_by(pod["looker"]) == ALL
        assert ipcprobe.look(key) == NONE  # this process is of the host
        with nsbox.Pod("two", [probe("looker", "look", key)]) as other:
            assert seen_by(other["looker"]) == NONE


def test_two_pods_use_the_same_keys(key: int) -> None:
    one = [probe("maker", "make", key), probe("looker", "await", key)]
    two = [probe("maker", "make", key), probe("looker", "await", key)]
    with nsbox.Pod("one", one) as first, nsbox.Pod("two", two) as second:
        assert seen_by(first["looker"]) == ALL
        assert seen_by(second["looker"]) == ALL


def test_with_the_standard_profile(key: int) -> None:
    containers = [
        probe("maker", "make", key, profile="standard", rlimits={}),
        probe("looker", "await", key, profile="standard", rlimits={}),
    ]
    with nsbox.Pod("one", containers) as pod:
        assert seen_by(pod["looker"]) == ALL


@pytest.mark.kernel
def test_it_outlives_the_crash_of_its_maker(key: int) -> None:
    containers = [probe("maker", "either", key)]
    with nsbox.Pod("one", containers, backoff=nsbox.Backoff.fast()) as pod:
        wait_log(pod["maker"], "made")
        pod["maker"].kill()
        pod["maker"].wait_restarted(1, scaled(10))
        assert seen_by(pod["maker"]) == ALL


def test_it_ends_with_the_pod(key: int) -> None:
    for _ in range(2):
        with nsbox.Pod("one", [probe("maker", "either", key)]) as pod:
            assert wait_log(pod["maker"], "\n") == "made\n"
    assert ipcprobe.look(key) == NONE


def test_a_container_alone_has_its_own(key: int) -> None:
    args = ["python3", "-SIu", "/tmp/ipcprobe.py", "make", str(key), WORD]
    limits = {"msgqueue": 819200}
    with nsbox.Container(args, files={"ipcprobe.py": SOURCE}, rlimits=limits) as container:
        wait_log(container, "made")
        assert ipcprobe.look(key) == NONE


def test_queues_are_files_in_dev_mqueue_of_the_pod(key: int) -> None:
    name = ipcprobe.mq_name(key).decode().lstrip("/")
    script = f"until [ -e /dev/mqueue/{name} ]; do sleep 0.02; done; echo there; exec sleep 1000"
    looker = nsbox.ContainerSpec("looker", ["sh", "-c", script])
    with nsbox.Pod("one", [probe("maker", "make", key), looker]) as pod:
        wait_log(pod["looker"], "there")
