# SPDX-License-Identifier: Apache-2.0
"""Many pods: from several threads, and one after another without a trace."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pod.kit import SHARED, ended, namespace_ids, pidfds, sidecar, sleeper
from support import poll_until, scaled

import nsbox

pytestmark = pytest.mark.userns


def start_and_stop(number: int) -> bool:
    """One life of a pod; true when its containers shared what they should."""
    pod = nsbox.Pod(f"pod-{number}", [sleeper("a"), sleeper("b")], init_containers=[sidecar("c")])
    with pod, pidfds(pod.pause_pid, *(pod[name].pid for name in "abc")) as fds:
        ids = [namespace_ids(pod[name].pid) for name in "abc"]
        shared = all(len({each[kind] for each in ids}) == 1 for kind in SHARED)
        if number % 2:
            pod["a"].kill()
            pod["a"].wait_restarted(1, scaled(10))
        pod.stop(grace=0)
        return shared and all(ended(fd) for fd in fds)


def test_ten_pods_from_four_threads() -> None:
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(start_and_stop, range(10), timeout=scaled(40))) == [True] * 10


def test_ten_pods_at_once_are_ten_networks() -> None:
    pods = [nsbox.Pod(f"pod-{n}", [sleeper("a")]) for n in range(10)]
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(nsbox.Pod.start, pods, timeout=scaled(40)))
        for kind in (*SHARED, "pid", "mnt", "uts"):
            assert len({namespace_ids(pod["a"].pid)[kind] for pod in pods}) == 10
    finally:
        for pod in pods:
            pod.close()


def test_twenty_pods_leave_descriptors_and_threads_as_they_were() -> None:
    start_and_stop(0)
    before = (descriptors(), threads())
    for number in range(20):
        start_and_stop(number)
    poll_until(lambda: (descriptors(), threads()) == before, 2, what="as before")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return sum(1 for thread in threading.enumerate() if thread.is_alive())
