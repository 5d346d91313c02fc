# SPDX-License-Identifier: Apache-2.0
"""A program that ends with something open ends at once, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from faults.kit import alive
from support import poll_until, scaled

pytestmark = pytest.mark.userns

OPEN = {
    "Popen": 'nsbox.Popen(["sleep", "1000"])',
    "Container": 'nsbox.Container(["sleep", "1000"]).start()',
    "Pod": 'nsbox.Pod("web", [nsbox.ContainerSpec("a", ["sleep", "1000"])]).start()',
    "Network": "nsbox.Network(nat=os.geteuid() == 0).start()",
    "Topology": "net()",
    "Namespace": 'nsbox.Namespace.create("net")',
}
#: All kinds of ends: with it in a module, in a cycle, in a thread that goes on.
CODE = """
import os, sys, threading, time, nsbox
from nsbox import registry
from nsbox.syscalls import Clone, unshare
if os.geteuid() == 0:  # a root's networks are where it is
    unshare(Clone.NEWNET)
def net():
    topology = nsbox.Topology()
    topology.link(topology.host("a"), topology.host("b"))
    return topology.start()
kept = [{expression}]
kept.append(kept)
while not (own := [one for one in registry.owners() if one.pid == os.getpid()]):
    time.sleep(0.001)
print(own[0].launcher, flush=True)
{end}
"""
ENDS = {
    "the end of the module": "",
    "sys.exit": "sys.exit(0)",
    "a kill": "os.kill(os.getpid(), 9)",
    "a thread that has it": "threading.Thread(target=lambda had: threading.Event().wait(), "
    "args=[kept], daemon=True).start(); del kept",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("what", OPEN)
def test_it_ends_and_leaves_nothing(what: str, end: str) -> None:
    code = CODE.format(expression=OPEN[what], end=ENDS[end])
    argv = [sys.executable, "-W", "always::ResourceWarning", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=scaled(30))
    assert done.returncode == (-9 if end == "a kill" else 0), done.stderr
    launcher = int(done.stdout)
    poll_until(lambda: not alive(launcher), 5, what="the launcher is there")
    assert "Traceback" not in done.stderr
    assert ("was not closed" in done.stderr) == (end in ("the end of the module", "sys.exit"))
