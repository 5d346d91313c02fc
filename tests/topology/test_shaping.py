# SPDX-License-Identifier: Apache-2.0
"""What leaves a link leaves it as it was told to: measured with packets of this process's."""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING, Any

import pytest
from support import poll_until, scaled
from topology.kit import Inet, drain, open_socket, pair, tcp, tcp_wire_rate

import nsbox
from nsbox import rtnl
from nsbox.links import Veth
from nsbox.netlink import rtnl as open_route
from nsbox.shaping import TrafficClass

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from nsbox.interface import Interface

pytestmark = pytest.mark.userns

RATE = 8e6


def _tc(host: Any, *words: str) -> str:
    done = host.network.run(["tc", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tc: {done.stderr}")
    return str(done.stdout)


def _has_netem(end: Interface) -> bool:
    try:
        end.shape(delay="1ms")
    except nsbox.Unavailable:
        return False
    end.unshape()
    return True


def _roots(end: Interface) -> list[str]:
    """Disciplines, not classes, that somebody has set."""
    return [queue.type for queue in end.queues
            if queue.parent == rtnl.ROOT and queue.id.endswith(":") and queue.handle]  # fmt: skip


# -- rate -----------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_rate_bounds_what_leaves_and_not_what_comes() -> None:
    with pair() as net:
        h1, h2 = net.hosts
        h1.interfaces["eth0"].shape("8Mbit")
        there = tcp_wire_rate(h1, h2, 2.0, RATE)
        back = tcp(h2, h1, 0.5).rate
        shaped = h1.interfaces["eth0"].queues[0]
    assert there == pytest.approx(RATE, rel=0.1)
    assert back > 2 * RATE
    assert shaped.bytes * 8 >= 1.8 * RATE
    assert shaped.overlimits > 0


@pytest.mark.parametrize("rate", ["1Mbit", "40Mbit"])
def test_a_link_shapes_both_directions(rate: str) -> None:
    with pair(rate=rate) as net:
        h1, h2 = net.hosts
        wanted = float(rate.removesuffix("Mbit")) * 1e6
        found = [tcp_wire_rate(a, b, 1.5, wanted) for a, b in ((h1, h2), (h2, h1))]
    assert found == pytest.approx([wanted, wanted], rel=0.1)


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    """Datagrams of 1000 bytes: the queue has room for 50 ms, and 2 packets leave at once."""
    with pair() as net:
        h1, h2 = net.hosts
        end = h1.interfaces["eth0"]
        end.shape("800kbit", burst="3100", latency="50ms")
        with (
            open_socket(h1.network, Inet.UDP) as sender,
            open_socket(h2.network, Inet.UDP) as taker,
        ):
            taker.bind(("", 9))
            for _ in range(100):
                sender.sendto(bytes(1000), ("10.0.0.2", 9))
            time.sleep(0.3)
            came = drain(taker)
        queue = end.queues[0]
    assert 5 <= came <= 12
    assert queue.drops >= 80
    assert came + queue.drops == pytest.approx(100, abs=3)  # and a request for the address


def test_a_new_shape_takes_the_place_of_the_old_one() -> None:
    with pair(rate="40Mbit") as net:
        h1, h2 = net.hosts
        (link,) = net.links
        link.shape("2Mbit")
        slow = tcp_wire_rate(h1, h2, 1.5, 2e6)
        assert [_roots(end) for end in link.ends] == [["tbf"], ["tbf"]]
        link.unshape()
        link.unshape()
        assert [_roots(end) for end in link.ends] == [[], []]
        fast = tcp(h1, h2, 0.5).rate
    assert slow == pytest.approx(2e6, rel=0.1)
    assert fast > 80e6
    assert link.shaping is None


def test_shapes_and_classes_replace_one_another() -> None:
    classes = {"1:10": TrafficClass("1Mbit"), "1:20": TrafficClass("3Mbit", ceil="4Mbit")}
    with pair() as net:
        end = net.hosts[0].interfaces["eth0"]
        for _ in range(2):
            end.shape("8Mbit")
            assert _roots(end) == ["tbf"]
            end.shape("9Mbit")
            assert _roots(end) == ["tbf"]
            end.classes("8Mbit", classes, default="1:10")
            assert _roots(end) == ["htb"]
            end.classes("8Mbit", classes, default="1:20")
            assert [one.id for one in end.queues] == ["1:", "1:ffff", "1:10", "1:20"]
        end.unshape()
        assert _roots(end) == []


# -- delay and loss -------------------------------------------------------------------------------


@pytest.mark.kernel
def test_delay_and_loss_with_a_rate() -> None:
    """Where there is no netem, the error says so, and what was there stays."""
    with pair() as net:
        h1, h2 = net.hosts
        end = h1.interfaces["eth0"]
        if not _has_netem(end):
            _refused(end)
            return
        (link,) = net.links
        link.shape("8Mbit", delay="50ms")
        times = [net.ping_all(scaled(2))["h1", "h2"] for _ in range(2)]
        rate = tcp_wire_rate(h1, h2, 2.5, RATE)
        assert [queue.type for queue in end.queues] == ["tbf", "netem"]
        link.shape(delay="30ms", jitter="10ms", loss="100%")
        assert "delay 30ms  10ms loss 100%" in _tc(h1, "qdisc", "show", "dev", "eth0")
        lost = net.ping_all(0.3)["h1", "h2"]
    assert times[1] is not None
    assert 0.1 <= times[1] < 0.15 + scaled(0.02)
    assert rate == pytest.approx(RATE, rel=0.1)
    assert lost is None


def _refused(end: Interface) -> None:
    for before in (None, "8Mbit"):
        if before is not None:
            end.shape(before)
        for wanted in ({"delay": "5ms"}, {"loss": 0.5}, {"rate": "1Mbit", "delay": "5ms"}):
            with pytest.raises(nsbox.Unavailable, match=r"no netem.*modprobe sch_netem") as caught:
                end.shape(**wanted)
            assert "CONFIG_NET_SCH_NETEM" in caught.value.hint
            assert _roots(end) == ([] if before is None else ["tbf"])


# -- classes --------------------------------------------------------------------------------------

_SEND = """
import socket, sys, time
port, count, size = map(int, sys.argv[1:])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
while count:
    try:
        s.sendto(bytes(size), ("10.9.0.2", port))
        count -= 1
    except OSError:
        time.sleep(0.01)
print("sent", flush=True)
time.sleep(1000)
"""


def _sender(port: int, count: int = -1, size: int = 1200) -> list[str]:
    """Datagrams, as soon as there is a network; without end where *count* is -1."""
    return ["/usr/bin/python3", "-SIc", _SEND, str(port), str(count), str(size)]


def _shares(receivers: dict[str, socket.socket], seconds: float) -> dict[str, float]:
    """Bits a second of payload that come to each."""
    came = dict.fromkeys(receivers, 0)
    by_fd = {receiver.fileno(): name for name, receiver in receivers.items()}
    poll = select.poll()
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    for receiver in receivers.values():
        drain(receiver)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            name = by_fd[fd]
            came[name] += len(receivers[name].recv(4096))
    return {name: total * 8 / seconds for name, total in came.items()}


@pytest.mark.kernel
@pytest.mark.root
@pytest.mark.cgroup
def test_two_sandboxes_get_their_shares_of_one_link() -> None:
    """They share a network, as the containers of a pod do. What one leaves the other may use."""
    ports = {"much": 5001, "little": 5002}
    classes = {"1:10": TrafficClass("2Mbit"), "1:20": TrafficClass("6Mbit")}
    apps = [nsbox.ContainerSpec(name, _sender(ports[name]),
                                limits=nsbox.Limits(net_priority=priority))
            for name, priority in (("much", "1:20"), ("little", "1:10"))]  # fmt: skip
    with contextlib.ExitStack() as stack:
        pod = stack.enter_context(nsbox.Pod("web", apps, restart_policy="Never"))
        far = stack.enter_context(nsbox.Namespace.create("net"))
        receivers = {}
        for name, port in ports.items():
            receivers[name] = stack.enter_context(open_socket(far, Inet.UDP))
            receivers[name].bind(("", port))
        veth = stack.enter_context(Veth.create(
            "eth0", pod.pause_pid, peer="eth0", peer_netns=far, up=False,
            address="10.9.0.1/24", peer_address="10.9.0.2/24",
        ))  # fmt: skip
        veth.link.classes("8Mbit", classes, default="1:10")
        for end in (veth.link, veth.peer):
            end.up()
        for receiver in receivers.values():
            receiver.recv(4096)  # both are at it
        both = _shares(receivers, 2.0)
        counted = {queue.id: queue for queue in veth.link.queues}
        pod["much"].kill()
        poll_until(lambda: pod["much"].state.name == "Terminated", 10)
        time.sleep(0.5)  # what it left in the queue
        alone = _shares(receivers, 1.0)
    wire = (1200 + 42) / 1200
    assert both["much"] * wire == pytest.approx(6e6, rel=0.1)
    assert both["little"] * wire == pytest.approx(2e6, rel=0.1)
    assert alone["much"] < 0.1e6
    assert alone["little"] * wire == pytest.approx(RATE, rel=0.1)
    assert counted["1:20"].bytes > 2 * counted["1:10"].bytes > 0
    assert counted["1:20"].overlimits or counted["1:10"].overlimits or counted["1:"].overlimits


@pytest.mark.root
@pytest.mark.cgroup
def test_a_veth_pair_forgets_the_priority() -> None:
    """So classes are of the end where the sandbox is: behind it all packets are alike."""
    classes = {"1:10": TrafficClass("4Mbit"), "1:20": TrafficClass("4Mbit")}
    with contextlib.ExitStack() as stack:
        box = stack.enter_context(
            nsbox.Container(_sender(9, 10, 100), limits=nsbox.Limits(net_priority=0x10020))
        )
        middle, far = (stack.enter_context(nsbox.Namespace.create("net")) for _ in range(2))
        receiver = stack.enter_context(open_socket(far, Inet.UDP))
        receiver.bind(("", 9))
        beyond = stack.enter_context(Veth.create(
            "beyond", middle, peer="eth0", peer_netns=far, peer_address="10.9.0.2/24"
        ))  # fmt: skip
        first = stack.enter_context(Veth.create("eth0", box.pid, peer="first", peer_netns=middle,
                                                up=False))  # fmt: skip
        for end in (first.link, beyond.link):
            end.classes("8Mbit", classes, default="1:10")
        with _bridge(middle, "beyond", "first"):
            for end in (first.peer, first.link):
                end.up()
            first.link.add_address("10.9.0.1/24")
            for _ in range(10):
                receiver.recv(4096)
            found = {end.name: {queue.id: queue.packets for queue in end.queues}
                     for end in (first.link, beyond.link)}  # fmt: skip
    assert found["eth0"]["1:20"] == 10
    assert found["beyond"]["1:20"] == 0
    assert found["beyond"]["1:10"] >= 10


@contextlib.contextmanager
def _bridge(namespace: nsbox.Namespace, *ports: str) -> Iterator[None]:
    route = open_route(namespace)
    try:
        route.do(rtnl.link_add("bridge", "br", up=True))
        index = route.link("br").ifindex
        route.do(*(rtnl.link_set(port, master=index) for port in ports))
        yield
    finally:
        route.close()


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("rate", {}),
        ("rate", {"rate": "fast"}),
        ("rate", {"rate": 999}),
        ("burst", {"rate": "1Mbit", "burst": 1000}),  # no packet would ever leave
        ("burst", {"delay": "1ms", "burst": "16KiB"}),
        ("latency", {"delay": "1ms", "latency": "1ms"}),
        ("latency", {"rate": "1Mbit", "latency": 0}),
        ("jitter", {"rate": "1Mbit", "jitter": "1ms"}),
        ("delay", {"delay": "5s"}),
        ("loss", {"loss": "101%"}),
        ("latency", {"rate": "100Gbit", "latency": "500ms"}),
        ("latency", {"rate": "1Tbit"}),
        ("burst", {"rate": "100Gbit", "burst": "4GiB"}),
        ("burst", {"rate": "4Tbit", "latency": "1us"}),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_field(field: str, wanted: dict[str, Any]) -> None:
    with pair() as net:
        end = net.hosts[0].interfaces["eth0"]
        with pytest.raises(nsbox.SpecError) as caught:
            end.shape(**wanted)
        assert caught.value.field == field
        assert _roots(end) == []


@pytest.mark.parametrize(
    ("field", "classes", "default"),
    [
        ("classes", {}, "1:10"),
        ("classes['2:1']", {"2:1": TrafficClass("1Mbit")}, "2:1"),
        ("classes['1:ffff']", {"1:ffff": TrafficClass("1Mbit")}, "1:ffff"),
        ("classes['1:']", {"1:": TrafficClass("1Mbit")}, "1:"),
        ("classes['1:1']", {"1:1": "1Mbit"}, "1:1"),
        ("classes['1:1']", {"1:1": TrafficClass("1Mbit", ceil="9Mbit")}, "1:1"),
        ("classes", {"1:1": TrafficClass("5Mbit"), "1:2": TrafficClass("5Mbit")}, "1:1"),
        ("classes['1:0A']", {"1:a": TrafficClass("1Mbit"), "1:0A": TrafficClass("2Mbit")}, "1:a"),
        ("default", {"1:1": TrafficClass("1Mbit")}, "1:2"),
        ("default", {"1:1": TrafficClass("1Mbit")}, None),
    ],
)
def test_classes_that_cannot_be_are_refused_by_field(
    field: str, classes: Any, default: Any
) -> None:
    with pair() as net:
        end = net.hosts[0].interfaces["eth0"]
        with pytest.raises(nsbox.SpecError) as caught:
            end.classes("8Mbit", classes, default=default)
        assert caught.value.field == field
        assert _roots(end) == []


def test_the_fastest_links_are_shaped_and_divided() -> None:
    with pair() as net:
        end = net.hosts[0].interfaces["eth0"]
        end.shape("100Gbit", latency="300ms")
        end.shape("1Tbit", latency="20ms")
        end.classes("10Tbit", {"1:1": TrafficClass("1kbit"), "1:2": TrafficClass("9Tbit")},
                    default="1:1")  # fmt: skip
        assert {queue.type for queue in end.queues} == {"htb"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrafficClass("0bit"),
        lambda: TrafficClass("2Mbit", ceil="1Mbit"),
        lambda: TrafficClass("2Mbit", priority=8),
        lambda: nsbox.Limits(net_priority="1:0"),
        lambda: nsbox.Limits(net_priority="12"),
        lambda: nsbox.Limits(net_priority="10000:1"),
    ],
)
def test_no_such_class(make: Callable[[], object]) -> None:
    with pytest.raises(nsbox.SpecError):
        make()


def test_a_class_is_a_priority() -> None:
    assert nsbox.Limits(net_priority="1:20") == nsbox.Limits(net_priority=0x10020)
