# SPDX-License-Identifier: Apache-2.0
"""Owners that are killed while they switch forwarding on or off: what was set is not forgotten."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of kit.PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import pytest
from namespace.kit import apart as run_apart
from network.kit import PRELUDE, apart


@apart
def test_a_kill_at_any_time_loses_nothing() -> None:
    """Owners that hold and close all the time are killed in all states; one gc() mends it."""
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    setting("ipv4/conf/one/forwarding", "1")
    setting("ipv4/conf/all/accept_redirects", "0")
    setting("ipv6/conf/two/forwarding", "1")
    before = conf()
    churn = """
print(flush=True)
while True:
    with forwarding.Forwarding.hold(4), forwarding.Forwarding.hold(6): pass
"""
    on = 0
    for _ in range(12):
        with contextlib.ExitStack() as stack:
            each = [stack.enter_context(other(churn)) for _ in range(3)]
            for process in each:
                process.stdout.readline()
            for process in each:
                time.sleep(random.random() * 0.02)
                process.kill()
        on += bool(left())
        nsbox.gc()
        after = conf()
        assert after == before, {name for name in after if after[name] != before[name]}
        assert left() == []
    assert on, "no kill hit anything"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("call", ["hold", "close"])
@pytest.mark.userns
def test_a_kill_at_each_write_loses_nothing(version: int, call: str) -> None:
    """As above, but at every call that changes something, one after the other."""
    run_apart(kill_at_each_write, PRELUDE + f"version, call = {version}, {call!r}\n")


def kill_at_each_write() -> None:
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    for v in (4, 6):
        setting(f"ipv{v}/conf/one/forwarding", "1")
    setting("ipv4/conf/all/accept_redirects", "0")
    before = conf()
    code = """
version, call, number = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if call == "close":
    held = forwarding.Forwarding.hold(version)
count = 0
def counted(real):
    def run(*args):
        global count
        count += 1
        if count > number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return run
for name in ("write", "pwrite", "ftruncate", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
if call == "close":
    held.close()
else:
    held = forwarding.Forwarding.hold(version)
sys.stdout.write("done")
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    said = ""
    for number in range(20):
        if said:
            break
        for mend in ("gc", "hold", "hold and gc"):
            with other(code, str(version), call, str(number)) as process:
                said = process.communicate()[0]
            assert process.returncode == -9
            if "hold" in mend:
                with forwarding.Forwarding.hold(version):
                    assert setting(f"ipv{version}/conf/two/forwarding") == "1"
            if "gc" in mend:
                nsbox.gc()
            after = conf()
            assert after == before, (number, mend, [n for n in after if after[n] != before[n]])
            assert left() == [], (number, mend)
    assert number > 3
    assert said == "done"
