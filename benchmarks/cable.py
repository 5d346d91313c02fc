# SPDX-License-Identifier: Apache-2.0
"""What a sandbox's cable costs: a veth pair, its address and its default route (T12).

Alone, and when 64 pods that are started at once get one each.

python cable.py     in a network namespace of its own; answers each line with one:

plug WAY                 elapsed ns of one, by "nsbox", "rtnetlink", "ip" or "pyroute2"
pods WAY                 elapsed ns for each of 64 pods; "none" gives them no cable
close                    ns that closing a bridge with a sandbox takes its caller
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from cases import load_nsbox
from compiled import build
from drivers import LineProcess, SampleFailed
from measure import Result, interleave

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

WAYS = ("nsbox", "rtnetlink", "ip", "pyroute2")
POD_WAYS = ("none", "nsbox", "ip", "pyroute2")
PODS, MOST_POD_ROUNDS = 64, 10
SUBNET, INSIDE, GATEWAY = "10.99.0.0/24", "10.99.0.2/24", "10.99.0.1"


class Cables:
    """One bridge, and sandboxes that are plugged in by one way or another."""

    def __init__(self) -> None:
        self._nsbox = load_nsbox()
        from nsbox import lease

        self._bridge = self._nsbox.Bridge("nsb0", subnet=SUBNET).start()
        self._index = self._bridge.link.index
        self._raw = LineProcess([str(build("cable")), str(self._index)])
        self._names = (f"nsbc{n}" for n in itertools.count())
        self._took = 0
        connect = lease.Lease.connect

        def timed(one: Any, *args: Any) -> None:
            start = perf_counter_ns()
            connect(one, *args)
            self._took = perf_counter_ns() - start

        lease.Lease.connect = timed

    def plug(self, way: str) -> int:
        if way == "nsbox":
            self._nsbox.run(["true"], net=self._bridge, check=True)
            return self._took
        with self._nsbox.Namespace.create("net") as namespace:
            name, pid = next(self._names), namespace.processes[0]
            took = int(getattr(self, f"_{way}")(name, pid))
            subprocess.run(["ip", "link", "delete", name], check=True)
        return took

    def _rtnetlink(self, name: str, pid: int) -> int:
        return int(self._raw.ask(f"{pid} {name}"))

    def _ip(self, name: str, pid: int) -> int:
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        commands = [
            ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid)],
            ["ip", "link", "set", name, "master", "nsb0", "up"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "address", "add", INSIDE, "dev", "eth0"],
            [*inside, "route", "add", "default", "via", GATEWAY],
        ]
        start = perf_counter_ns()
        for command in commands:
            subprocess.run(command, check=True)
        return perf_counter_ns() - start

    def _pyroute2(self, name: str, pid: int) -> int:
        import pyroute2

        start = perf_counter_ns()
        with pyroute2.IPRoute() as here, pyroute2.NetNS(f"/proc/{pid}/ns/net") as there:
            here.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_pid": pid})
            index = here.link_lookup(ifname=name)[0]
            here.link("set", index=index, master=self._index, state="up")
            index = there.link_lookup(ifname="eth0")[0]
            there.link("set", index=index, state="up")
            there.addr("add", index=index, address=INSIDE.split("/")[0], prefixlen=24)
            there.route("add", dst="default", gateway=GATEWAY)
        return perf_counter_ns() - start

    def pods(self, way: str) -> int:
        from nsbox import later

        app = self._nsbox.ContainerSpec("app", ["sleep", "1000"])
        net = self._bridge if way == "nsbox" else "none"
        pods = [self._nsbox.Pod(f"bench-{n}", [app], net=net) for n in range(PODS)]
        names = [next(self._names) for _ in pods]

        def start(pod: Any, name: str) -> None:
            pod.start()
            if way in ("ip", "pyroute2"):
                getattr(self, f"_{way}")(name, pod.pause_pid)

        with ThreadPoolExecutor(PODS) as pool, contextlib.ExitStack() as stack:
            for pod in pods:
                stack.callback(pod.close)
            begin = perf_counter_ns()
            list(pool.map(start, pods, names))
            took = perf_counter_ns() - begin
        later.settle()
        return took // PODS

    def close(self) -> int:
        """Of one that a sandbox was plugged in."""
        bridge = self._nsbox.Network().start()
        box = self._nsbox.Popen(["sleep", "60"], net=bridge)
        box.kill()
        box.wait()
        start = perf_counter_ns()
        box.close()
        bridge.close()
        return perf_counter_ns() - start

    def serve(self) -> None:
        for line in sys.stdin:
            verb, *words = line.split()
            try:
                print(getattr(self, verb)(*words), flush=True)
            except Exception as why:  # told to who asked, and the next line is read
                print(f"failed: {type(why).__name__}: {why}".splitlines()[0], flush=True)


def _ask(process: LineProcess, line: str) -> int:
    answer = process.ask(line)
    if not answer.isdigit():
        raise SampleFailed(answer)
    return int(answer)


def measure(
    rounds: int, *, gap_s: float, rng: random.Random
) -> tuple[dict[str, Result], dict[str, str]]:
    """``plug-WAY``, ``pods-WAY@64`` and ``close-network``, and why others are absent."""
    argv = ["unshare", "--net", sys.executable, __file__]
    quick = {f"plug-{way}": f"plug {way}" for way in WAYS} | {"close-network": "close"}
    slow = {f"pods-{way}@{PODS}": f"pods {way}" for way in POD_WAYS}
    absent: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(LineProcess(argv))
        samplers = _possible(process, quick, absent)
        results = interleave(samplers, rounds, gap_s=gap_s, rng=rng)
        samplers = _possible(process, slow, absent)
        rounds = min(rounds, MOST_POD_ROUNDS)
        results |= interleave(samplers, rounds, gap_s=gap_s, rng=rng, warm_up=1)
        return results, absent


def _possible(
    process: LineProcess, lines: dict[str, str], absent: dict[str, str]
) -> dict[str, Callable[[], int]]:
    """Those that work once."""
    samplers: dict[str, Callable[[], int]] = {}
    for name, line in lines.items():
        try:
            _ask(process, line)
        except SampleFailed as why:
            absent[name] = str(why)
        else:
            samplers[name] = partial(_ask, process, line)
    return samplers


if __name__ == "__main__":
    Cables().serve()
