# SPDX-License-Identifier: Apache-2.0
"""Nothing is left of an ordinary user's networks: not after close, nor after a kill."""

# ruff: noqa: F821  (the bodies run after the prelude of world.py)

from __future__ import annotations

import pytest
from network.userworld import rootless

PROGRAMS = ("pasta", "slirp4netns")


@rootless(*PROGRAMS)
def test_nothing_is_left_after_close() -> None:
    opened = []
    for _ in range(3):
        with nsbox.Network(host_ports=[9000]) as n:
            c = nsbox.Container(["sleep", "1000"], net=n, publish=["8080:80", "8081:80/udp"])
            with c, nsbox.Pod("p", [nsbox.ContainerSpec("x", ["sleep", "1000"])], net=n):
                assert ask(n, "tcp", OUT, ECHO) == f"{HOST} x"
                running = mine()
                kinds = [one for pid in running for one in command(pid)]
                assert sum("pasta" in one or "slirp4netns" in one for one in kinds) >= 1
                assert kinds.count("proxy") == 2, "of the host's port, and of the container's"
            assert gone(running - mine() - {launcher()}), "as soon as they end"
        assert later.settle(10)
        assert gone(running - {launcher()})
        opened.append(sorted(os.listdir("/proc/self/fd")))
    assert opened[0] == opened[2], "what the library keeps is there after the first"
    assert [n for n in os.listdir(registry.directory()) if not n.endswith("-lock")] == []


@rootless(*PROGRAMS)
def test_nothing_runs_on_when_the_owner_is_killed() -> None:
    owner = start_owner(PROGRAM)
    running = mine()
    assert len(running) > 8
    assert sum("sleep" in command(pid) for pid in running) == 2
    owner.kill()
    owner.wait()
    poll_until(lambda: gone(running), 5, what=str([(pid, command(pid)) for pid in running]))
    nsbox.gc()
    shared.gc()
    poll_until(lambda: os.listdir(registry.directory()) == [], 3)
    with pytest.raises(ConnectionError, match="refused"):
        ask_here("tcp", "127.0.0.1", 8080)


@rootless(*PROGRAMS)
def test_nothing_runs_on_when_the_launcher_is_killed() -> None:
    owner = start_owner(PROGRAM)
    running = mine()
    os.kill(launcher(), signal.SIGKILL)
    poll_until(lambda: gone(running), 5, what=str([(pid, command(pid)) for pid in running]))
    owner.kill()
    owner.wait()


@rootless()
def test_a_network_that_was_lost_with_its_launcher_says_so() -> None:
    with nsbox.Network(nat=False) as n:
        assert nsbox.run(["true"], net=n).returncode == 0
        os.kill(launcher(), signal.SIGKILL)
        with pytest.raises(nsbox.StateError, match="lost with its launcher"):
            poll_until(lambda: nsbox.run(["true"], net=n) and False, 3)
        assert nsbox.run(["true"]).ok, "by another launcher"
        for name in os.listdir(registry.directory()):
            if name.endswith(("-resolv", "-hosts")):  # gc() may have been here
                Path(registry.directory(), name).unlink()
    with nsbox.Network(nat=False) as n:
        assert nsbox.run(["true"], net=n).returncode == 0


@rootless("pasta")
def test_a_network_that_cannot_be_made_leaves_nothing() -> None:
    nsbox.run(["true"])
    from nsbox import egress as way

    def fails(*args):
        raise nsbox.Unavailable("nat", "no")

    whole, way.Egress._await = way.Egress._await, fails
    with pytest.raises(nsbox.Unavailable):
        nsbox.Network().start()
    assert later.settle(10)
    assert gone(mine() - {launcher()}) or mine() == {launcher()}
    way.Egress._await = whole
    held = socket.create_server(("127.0.0.1", 8080))
    with nsbox.Network() as n:
        with pytest.raises(nsbox.Unavailable, match="port 8080"):
            nsbox.Container(["sleep", "9"], net=n, publish=["8081:81", "8080:80"]).start()
        assert not n.leases
        running = mine()
    held.close()
    assert later.settle(10)
    assert gone(running - {launcher()})


@rootless()
def test_whatever_step_of_a_sandbox_fails_leaves_nothing_in_the_network() -> None:
    from nsbox import probe, sandbox, streams
    from nsbox.process import Injection

    def attempt(spec, step):
        sandbox.launch(spec, streams.connect(None, None, None), inject=Injection(step)).close()

    with nsbox.Network(nat=False) as n:
        for keywords in ({}, {"profile": "none", "publish": ["8080:80"]}):
            spec = sandbox.build_spec(["/bin/true"], {"net": n, **keywords})
            who = n.identify(spec)
            steps = sandbox.plan_for(who.furnish(spec), probe.host()).steps
            who.close()
            assert [one.name for one in steps].index("id-map") > 0
            before = mine()
            for number, step in enumerate(steps):
                with pytest.raises(nsbox.SetupError) as raised:
                    attempt(spec, number)
                found = raised.value.step, raised.value.errno
                assert found == (number, errno.EIO), (step, found)
                assert not n.leases, step
            assert gone(mine() - before)
            assert nsbox.run(["/bin/true"], net=n, **keywords).ok
