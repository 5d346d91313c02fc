# SPDX-License-Identifier: Apache-2.0
"""Many pods with an address each: their names come again at once, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from network.world import SUBNET, elsewhere, idle, world
from support import poll_until, scaled

import nsbox
from nsbox import later

PODS = 500 if os.environ.get("NSBOX_SOAK") == "full" else 30


def _pod(name: str, net: nsbox.Network, **keywords: Any) -> nsbox.Pod:
    app = nsbox.ContainerSpec("app", ["sleep", "1000"])
    return nsbox.Pod(name, containers=[app], net=net, restart_policy="Never", **keywords)


def _settled(before: dict[str, Any]) -> None:
    assert later.settle(scaled(10))
    poll_until(lambda: world.look() == before, what="all is as it was before")


@pytest.mark.slow
@elsewhere
def test_pods_whose_names_come_again_leave_nothing() -> None:
    world.host.run("nft", "add", "table", "inet", "somebody")
    world.host.run("nft", "add", "chain", "inet", "somebody", "c")
    world.host.run("nft", "add", "rule", "inet", "somebody", "c", "counter")
    before = world.look()
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        seen = set()
        for _ in range(PODS):
            with _pod("web", net, publish="8080:80") as pod:
                seen.add(pod.ip)
        assert len(seen) > min(PODS, 200) // 2, "an address rests before it comes again"
    _settled(before)
    world.host.run("nft", "delete", "table", "inet", "somebody")


@elsewhere
def test_pauses_that_are_killed_leave_nothing() -> None:
    before = world.look()
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        pods = [_pod(f"pod-{n}", net, publish=f"{9000 + n}:80").start() for n in range(8)]
        for pod in pods[::2]:
            assert pod.pause_pid
            os.kill(pod.pause_pid, signal.SIGKILL)
        for pod in pods[::2]:
            assert pod.wait(scaled(10)) == "Failed"
        for pod in pods:
            pod.close()
    _settled(before)


@elsewhere
def test_64_pods_that_start_at_once_all_start() -> None:
    before = world.look()
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        pods = [_pod(f"pod-{n}", net) for n in range(64)]
        failed: list[BaseException] = []

        def start(pod: nsbox.Pod) -> None:
            try:
                pod.start()
            except BaseException as e:  # told below, of all of them
                failed.append(e)

        threads = [threading.Thread(target=start, args=(pod,)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert len({pod.ip for pod in pods}) == 64
        for pod in pods:
            pod.close()
    _settled(before)


_OWNER = """
import nsbox, signal
net = nsbox.Network("nsb0", subnet="10.77.0.0/24").start()
app = nsbox.ContainerSpec("app", ["sleep", "1000"])
pods = [nsbox.Pod(f"pod-{n}", containers=[app], net=net, publish=f"{9000 + n}:80").start()
        for n in range(5)]
print("ready", flush=True)
signal.pause()
"""


@elsewhere
def test_of_an_owner_that_is_killed_nothing_is_left() -> None:
    before = world.look()
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        assert "nsb0" in world.host.run("ip", "link")
    finally:
        owner.kill()
        owner.wait()
        if owner.stdout is not None:
            owner.stdout.close()
    poll_until(lambda: world.look() == before, 2 * scaled(1), what="nothing is left after 2 s")


@elsewhere
def test_closing_does_not_wait_for_the_kernel() -> None:
    """Twenty sandboxes end in less time than the kernel takes to delete twenty pairs by turns."""
    import time

    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        boxes = [idle(f"box-{n}", net).start() for n in range(20)]
        for box in boxes:
            box.kill()
            box.wait()
        start = time.monotonic()
        for n in range(20):
            world.host.run("ip", "link", "add", f"x{n}", "type", "veth", "peer", "name", f"y{n}")
            world.host.run("ip", "link", "set", f"x{n}", "up")
            world.host.run("ip", "link", "delete", f"x{n}")
        by_turns = time.monotonic() - start
        start = time.monotonic()
        for box in boxes:
            box.close()
        assert time.monotonic() - start < by_turns
