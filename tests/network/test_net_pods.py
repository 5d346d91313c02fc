# SPDX-License-Identifier: Apache-2.0
"""Pods with a network: one address and one port space, held by pause whatever happens to the
containers; and networks that are shared with whoever has one."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from network.world import (
    GATEWAY,
    HOST,
    OUTSIDE,
    SUBNET,
    SUBNET6,
    answered,
    asks,
    elsewhere,
    idle,
    output,
    pings,
    python,
    raises,
    server,
    wait_ready,
    world,
)
from support import poll_until, scaled

import nsbox


def spec(name: str, *command: str, **keywords: Any) -> nsbox.ContainerSpec:
    return nsbox.ContainerSpec(name, list(command) or ["sleep", "1000"], **keywords)


def answering(name: str, port: int = 80, kind: str = "tcp") -> nsbox.ContainerSpec:
    return spec(name, *python("serve", kind, port, name))


@pytest.mark.kernel
@elsewhere
def test_containers_of_a_pod_share_one_address() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        idle("client", net) as client,
        nsbox.Pod("web", [answering("app"), spec("side")], net=net) as pod,
    ):
        wait_ready(pod["app"])
        assert (str(pod.ip), str(pod.ip6)) == ("10.77.0.3", "fd00:77::3")
        assert asks(client, pod.ip, 80) == asks(client, "web", 80) == f"app {client.ip}"
        assert asks(pod["side"], "127.0.0.1", 80) == "app 127.0.0.1"
        assert asks(pod["side"], "web", 80) == f"app {pod.ip}"
        assert pings(pod["side"], client.ip)
        inodes = {os.stat(f"/proc/{pod[name].pid}/ns/net").st_ino for name in ("app", "side")}
        assert inodes == {os.stat(f"/proc/{pod.pause_pid}/ns/net").st_ino}
        assert [str(one) for one in pod.eth0.addresses[:2]] == [f"{pod.ip}/24", f"{pod.ip6}/64"]
        with world.outside.serves(7):
            assert asks(pod["app"], OUTSIDE, 7) == f"it {HOST}"


@elsewhere
def test_the_address_is_pause_s_and_outlives_crashes() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("client", net) as client,
        nsbox.Pod(
            "web", [answering("app"), answering("side", 81)], net=net, backoff=nsbox.Backoff.fast()
        ) as pod,
    ):
        wait_ready(pod["app"]), wait_ready(pod["side"])
        before = (pod.ip, pod.eth0.mac, pod.eth0.index)
        for count in (1, 2):
            pod["app"].kill()
            pod["app"].wait_restarted(count, scaled(20))
            assert asks(client, pod.ip, 81) == f"side {client.ip}"  # who did not crash
            wait_ready(pod["app"])
            assert poll_until(lambda: asks(client, "web", 80) == f"app {client.ip}", 5)
        assert (pod.ip, pod.eth0.mac, pod.eth0.index) == before
        assert len(net.leases) == 2


@elsewhere
def test_without_pause_the_place_is_given_back() -> None:
    with nsbox.Network("nsb0", subnet="10.77.0.0/30") as net:
        with nsbox.Pod("web", [answering("app")], net=net, publish="8080:80") as pod:
            wait_ready(pod["app"])
            assert pod.pause_pid is not None
            assert pod.pause_pid > 1
            os.kill(pod.pause_pid, signal.SIGKILL)
            assert pod.wait(scaled(10)) == "Failed"
            poll_until(lambda: net.leases == (), 5)
            with nsbox.Pod("web", [answering("app")], net=net, publish="8080:80") as again:
                assert str(again.ip) == "10.77.0.2"
                wait_ready(again["app"])
                assert world.outside.asks(HOST, 8080) == f"app {OUTSIDE}"


@elsewhere
def test_a_pod_that_shares_its_processes_has_a_network_too() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("client", net) as client,
        nsbox.Pod(
            "web", [answering("app"), spec("side")], net=net, share_process_namespace=True
        ) as pod,
    ):
        wait_ready(pod["app"])
        assert asks(client, "web", 80) == f"app {client.ip}"
        assert asks(pod["side"], "localhost", 80) == "app 127.0.0.1"


@elsewhere
def test_init_containers_have_the_network_already() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, server("db", net):
        words = python("ask", "5", "tcp", "db", 80)
        pod = nsbox.Pod(
            "web",
            [spec("app")],
            net=net,
            restart_policy="Never",
            init_containers=[spec("wait", *words)],
        )
        with pod:
            assert f'"db {pod.ip}"' in pod["wait"].logs()


@elsewhere
def test_a_network_is_shared_with_a_pod_a_container_or_a_namespace() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("client", net) as client,
        nsbox.Pod("web", [answering("app")], net=net) as pod,
        server("db", net) as db,
    ):
        wait_ready(pod["app"])
        with nsbox.Namespace.of(pod.pause_pid or 0, "net") as namespace:
            for shared, address, name in (
                (pod, pod.ip, "app"),
                (namespace, pod.ip, "app"),
                (db, db.ip, "db"),
            ):
                with idle("guest", shared) as guest:
                    assert guest.ip == (None if shared is namespace else address)
                    assert asks(guest, "127.0.0.1", 80) == f"{name} 127.0.0.1", shared
                    assert asks(guest, client.ip, 80) == "ECONNREFUSED"
                    assert str(address) in output(guest, "python3", "-SIc", ADDRESS)
                with nsbox.Pod("guests", [spec("one"), spec("two")], net=shared) as guests:
                    for one in ("one", "two"):
                        assert asks(guests[one], "127.0.0.1", 80) == f"{name} 127.0.0.1", shared
                    ids = [
                        os.stat(f"/proc/{pid}/ns/ipc").st_ino
                        for pid in (guests["one"].pid, guests["two"].pid, pod["app"].pid)
                    ]
                    assert ids[0] == ids[1] != ids[2]
                done = nsbox.run(
                    python("ask", "5", "tcp", "127.0.0.1", 80),
                    net=shared,
                    capture_output=True,
                    text=True,
                )
                assert f'"{name} 127.0.0.1"' in done.stdout, done
        assert len(net.leases) == 3
        for keywords, field in (
            ({"publish": "80:80"}, "publish"),
            ({"egress": nsbox.Allow()}, "egress"),
        ):
            with raises(nsbox.SpecError, field) as said:
                idle("guest", pod, **keywords)
            assert "is of a sandbox with a network" in said[0]
    with raises(nsbox.StateError) as said, idle("guest", pod):
        pass
    assert "pod 'web' is" in said[0], said
    with raises(nsbox.StateError) as said, idle("guest", db):
        pass
    assert said == ["net: container 'db' is stopped"]


#: The address that packets leave by.
ADDRESS = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("192.0.2.2", 9))
print(s.getsockname()[0])
"""


@elsewhere
def test_the_network_of_a_pod_ends_with_the_pod_though_a_guest_lives_on() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, world.outside.serves(7):
        pod = nsbox.Pod("web", [spec("app")], net=net).start()
        with idle("guest", pod) as guest:
            assert asks(guest, OUTSIDE, 7) == f"it {HOST}"
            pod.close()
            assert nsbox.bridge.later.settle(scaled(5))
            assert asks(guest, OUTSIDE, 7) == "ENETUNREACH"
            assert net.leases == ()
            with idle("next", net) as following:
                assert str(following.ip) != str(guest.ip)


@elsewhere
def test_the_host_s_network_is_the_caller_s() -> None:
    with nsbox.Pod("web", [spec("app")], net="host") as pod, world.host.serves(7):
        assert asks(pod["app"], "127.0.0.1", 7) == "it 127.0.0.1"
        assert pod.ip is None
        assert os.stat(f"/proc/{pod['app'].pid}/ns/net").st_ino == os.fstat(world.host.fd).st_ino
        assert pod.ports == ()
    for keywords in ({"publish": "80:80"}, {"egress": nsbox.Allow()}):
        with raises(nsbox.SpecError, next(iter(keywords))):
            nsbox.Pod("web", [spec("app")], net="host", **keywords)


@elsewhere
def test_a_port_conflict_says_which_container_holds_the_port() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        nsbox.Pod("web", [answering("app")], net=net) as pod,
    ):
        wait_ready(pod["app"])
        with nsbox.Pod(
            "late",
            [
                spec("side", *python("serve", "tcp", 80, "side"), restart_policy="Never"),
                spec("idle"),
            ],
            net=pod,
        ) as late:
            poll_until(lambda: late["side"].done(), 10)
            assert "Address already in use" in late["side"].logs()
    containers = [
        answering("one"),
        spec("two", *python("serve", "tcp", 80, "two"), restart_policy="Never"),
    ]
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        nsbox.Pod("web", containers, net=net, restart_policy="Never") as pod,
    ):
        loser = poll_until(
            lambda: next((pod[n] for n in ("one", "two") if pod[n].done()), None), 15
        )
        winner = "two" if loser.name == "one" else "one"
        message = loser.state.message
        assert message.startswith(f"port 80 (tcp) is held by container {winner!r}"), message
        assert message in str(pod)


@elsewhere
def test_what_a_pod_may_reach_holds_for_each_of_its_containers() -> None:
    allowed = nsbox.Allow(f"{OUTSIDE}:7")
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        world.outside.serves(7),
        world.outside.serves(8),
        server("db", net) as db,
        nsbox.Pod(
            "web",
            [answering("app"), spec("side", user=0, profile="standard")],
            net=net,
            egress=allowed,
            publish="8080:80",
        ) as pod,
    ):
        wait_ready(pod["app"])
        for name in ("app", "side"):
            assert asks(pod[name], OUTSIDE, 7) == f"it {HOST}"
            refused = [("tcp", OUTSIDE, 8), ("tcp", db.ip, 80), ("tcp", GATEWAY, 80)]
            said = {answer for *_, answer in answered(pod[name], refused, 1.0)}
            assert said == {"ECONNREFUSED"}
            assert len(answered(pod[name], refused, 1.0)) == 3
        assert asks(pod["side"], "127.0.0.1", 80) == "app 127.0.0.1"
        assert world.outside.asks(HOST, 8080) == f"app {OUTSIDE}"  # who asks gets answers
        assert asks(db, pod.ip, 80) == f"app {db.ip}"
        pod["app"].kill()
        pod["app"].wait_restarted(1, scaled(20))
        assert asks(pod["app"], OUTSIDE, 8) == "ECONNREFUSED"
        for name in ("NET_ADMIN", "NET_RAW"):
            with raises(nsbox.SpecError, "containers['a'].capabilities") as said_:
                nsbox.Pod("bad", [spec("a", capabilities=[name])], net=net, egress=allowed)
            assert said_ == [
                "containers['a'].capabilities: with egress= of the pod, none may have NET_ADMIN or "
                "NET_RAW"
            ]
            with raises(nsbox.SpecError, "net"):
                nsbox.run(["true"], net=pod, capabilities=[name])
            with raises(nsbox.SpecError, "containers['a'].capabilities"):
                nsbox.Pod("bad", [spec("a", capabilities=[name])], net=pod)
        with (
            raises(nsbox.SpecError),
            nsbox.Pod("bad", [spec("a", profile="none")], net=net, egress=allowed),
        ):
            pass
        assert len(net.leases) == 2


@elsewhere
def test_a_pod_that_does_not_start_gives_its_place_back() -> None:
    with nsbox.Network("nsb0", subnet="10.77.0.0/30") as net:
        for containers, kind in (
            ([spec("a", "/nowhere")], nsbox.CommandNotFound),
            ([spec("a"), spec("b", mounts=[nsbox.Mount.bind("/nowhere", "/x")])], nsbox.SetupError),
        ):
            with raises(kind), nsbox.Pod("web", containers, net=net, publish="8080:80"):
                pass
            assert net.leases == ()
        with nsbox.Pod("web", [answering("a")], net=net, publish="8080:80") as pod:
            wait_ready(pod["a"])
            assert world.outside.asks(HOST, 8080) == f"a {OUTSIDE}"
        assert world.outside.asks(HOST, 8080) == "ECONNREFUSED"
