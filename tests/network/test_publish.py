# SPDX-License-Identifier: Apache-2.0
"""Published ports: reached from outside, from the host, from other containers; at one address, in
ranges, by number or chosen; and what is said when one is in use."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
from ipaddress import IPv6Address

import pytest
from network.world import (
    GATEWAY,
    GATEWAY6,
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    SUBNET,
    SUBNET6,
    asks,
    elsewhere,
    idle,
    number,
    python,
    raises,
    server,
    wait_ready,
    world,
)
from support import scaled

import nsbox
from nsbox import later


@pytest.mark.kernel
@elsewhere
def test_a_published_port_is_reached_from_everywhere() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("web", net, publish="8080:80") as web,
        idle("b", net) as b,
    ):
        assert web.ports == ((None, 8080, 80, "tcp"),)
        assert world.outside.asks(HOST, 8080) == f"web {OUTSIDE}"
        assert world.host.asks(HOST, 8080) == f"web {HOST}"
        for own in ("127.0.0.1", "127.0.0.9", GATEWAY):
            assert world.host.asks(own, 8080) == f"web {GATEWAY}", own
        assert asks(b, GATEWAY, 8080) == f"web {GATEWAY}"
        assert asks(b, HOST, 8080) == f"web {GATEWAY}"
        assert world.outside.asks(HOST, 80) == "ECONNREFUSED"
    assert world.outside.asks(HOST, 8080) == "ECONNREFUSED"


@elsewhere
def test_a_container_reaches_itself_by_what_is_published() -> None:
    """Where bridged packets are filtered, only as frames may go back by their port (hairpin)."""
    with nsbox.Network("nsb0", subnet=SUBNET) as net, server("web", net, publish="8080:80") as web:
        assert asks(web, GATEWAY, 8080) == f"web {GATEWAY}"


@elsewhere
def test_udp_is_published_by_its_own_number() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("dns", net, 53, "udp", publish="53:53/udp") as dns,
        idle("b", net) as b,
    ):
        assert dns.ports == ((None, 53, 53, "udp"),)
        assert world.outside.asks(HOST, 53, "udp") == f"dns {OUTSIDE}"
        assert world.host.asks(HOST, 53, "udp") == f"dns {HOST}"
        assert world.host.asks("127.0.0.1", 53, "udp") == f"dns {GATEWAY}"
        assert asks(b, GATEWAY, 53, "udp") == f"dns {GATEWAY}"
        assert world.outside.asks(HOST, 53, "tcp") == "ECONNREFUSED"


@elsewhere
def test_ipv6_is_published_at_an_address_of_its_own() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        server("web", net, at="::", publish=f"[{HOST6}]:8080:80") as web,
        idle("b", net) as b,
    ):
        assert web.ports == ((IPv6Address(HOST6), 8080, 80, "tcp"),)
        assert world.outside.asks(HOST6, 8080) == f"web {OUTSIDE6}"
        assert world.host.asks(HOST6, 8080) == f"web {HOST6}"
        assert asks(b, HOST6, 8080) == f"web {GATEWAY6}"
        assert world.outside.asks(HOST, 8080) == "ECONNREFUSED"


@elsewhere
def test_every_address_of_ipv4_has_a_name_too() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("web", net, publish="0.0.0.0:8080:80") as web,
    ):
        assert web.ports == ((None, 8080, 80, "tcp"),)
        assert world.outside.asks(HOST, 8080) == f"web {OUTSIDE}"
        assert world.host.asks("127.0.0.1", 8080) == f"web {GATEWAY}"


@elsewhere
def test_a_port_is_published_at_every_address_of_both_versions() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        server("six", net, at="::", publish=["[::]:8080:80", "[::]:53:53/udp"]) as six,
        server("four", net, publish="8080:80"),
        idle("b", net) as b,
    ):
        assert six.ports[0] == (IPv6Address("::"), 8080, 80, "tcp")
        assert world.outside.asks(HOST6, 8080) == f"six {OUTSIDE6}"
        assert world.host.asks(HOST6, 8080) == f"six {HOST6}"
        assert asks(b, GATEWAY6, 8080) == f"six {GATEWAY6}"
        assert world.outside.asks(HOST, 8080) == f"four {OUTSIDE}"
        assert world.host.asks("::1", 8080) == "ECONNREFUSED"
        with raises(nsbox.Unavailable, "publish"), idle("c", net, publish=f"[{HOST6}]:8080:80"):
            pass
    for both in (["8080:80", f"[{HOST6}]:8080:80"], ["0.0.0.0:8080:80", "[::]:8080:80"]):
        with (
            nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
            server("web", net, publish=both),
        ):
            assert world.outside.asks(HOST, 8080) == f"web {OUTSIDE}"
            assert world.outside.asks(HOST6, 8080) == "ECONNREFUSED"  # by the server, of IPv4


@elsewhere
def test_the_loopback_of_ipv6_is_for_programs_of_the_host() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        server("web", net, at="::", publish="[::1]:8080:80"),
        server("dns", net, 53, "udp", at="::", publish="[::1]:53:53/udp"),
    ):
        assert world.host.asks("::1", 8080) == f"web {GATEWAY6}"
        assert world.host.asks("::1", 53, "udp") == f"dns {GATEWAY6}"
        assert world.host.asks(HOST6, 8080) == "ECONNREFUSED"
        assert world.outside.asks(HOST6, 8080) == "ECONNREFUSED"
    assert world.host.asks("::1", 8080) == "ECONNREFUSED"


@elsewhere
def test_an_address_that_is_named_is_the_only_one() -> None:
    world.host.ip("addr add 192.0.2.9/32 dev out0")
    world.outside.ip("route add 192.0.2.9 dev eth0")
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        with server("web", net, publish="192.0.2.9:80:80"):
            assert world.outside.asks("192.0.2.9", 80) == f"web {OUTSIDE}"
            assert world.outside.asks(HOST, 80) == "ECONNREFUSED"
            assert world.host.asks("127.0.0.1", 80) == "ECONNREFUSED"
            with server("other", net, publish=f"{HOST}:80:80"):  # the same port beside it
                assert world.outside.asks(HOST, 80) == f"other {OUTSIDE}"
                assert world.outside.asks("192.0.2.9", 80) == f"web {OUTSIDE}"
        with server("web", net, publish="127.0.0.1:80:80"):
            assert world.host.asks("127.0.0.1", 80) == f"web {GATEWAY}"
            assert world.host.asks(HOST, 80) == "ECONNREFUSED"
            assert world.outside.asks(HOST, 80) == "ECONNREFUSED"
    world.host.ip("addr del 192.0.2.9/32 dev out0")


@elsewhere
def test_a_neighbour_that_sends_to_127_0_0_1_does_not_reach_what_is_published_there() -> None:
    """route_localnet of the bridge is for the host's own programs (CVE-2020-8558)."""
    world.outside.ip("addr del 127.0.0.1/8 dev lo", f"route add 127.0.0.0/8 via {HOST}")
    world.outside.setting("ipv4/conf/eth0/route_localnet", 1)
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("web", net, publish="127.0.0.1:80:80"),
        world.host.serves(81, address="127.0.0.1"),
    ):
        assert world.host.asks("127.0.0.1", 80) == f"web {GATEWAY}"
        assert world.host.asks("127.0.0.1", 81) == "it 127.0.0.1"
        for port in (80, 81):
            assert world.outside.asks("127.0.0.1", port, patience_s=0.5) == "silence"


@elsewhere
def test_a_range_and_a_port_that_nsbox_chooses() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("web", net, 9001, publish=["9100-9102:9000-9002", "9001", 9001]) as web,
    ):
        assert web.ports[:3] == tuple((None, 9100 + n, 9000 + n, "tcp") for n in range(3))
        chosen = [port for _, port, inside, _ in web.ports[3:] if inside == 9001]
        assert len(set(chosen)) == 2
        for port in (9101, *chosen):
            assert world.outside.asks(HOST, port) == f"web {OUTSIDE}", port
            assert world.host.asks("127.0.0.1", port) == f"web {GATEWAY}", port
        assert world.outside.asks(HOST, 9100) == "ECONNREFUSED"  # there is nobody in the container


@elsewhere
def test_a_port_in_use_is_explained_and_nothing_is_left() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        nsbox.Network("nsb1") as other,
        server("web", net, publish=["8080:80", "53:53/udp"]),
    ):
        for where in (net, other):
            for wanted in ("8080:80", f"{HOST}:8080:80", "8079-8081:80-82"):
                with raises(nsbox.Unavailable, "publish") as said, idle("b", where, publish=wanted):
                    pass
                at = HOST if HOST in wanted else "the host"
                assert said == [
                    f"publish: tcp port 8080 of {at}: Address already in use, "
                    "container 'web' of network 'nsb0' has it"
                ]
            with raises(nsbox.Unavailable, "publish") as said, idle("b", where, publish="53:1/udp"):
                pass
            assert said == ["publish: udp port 53 of the host: Address already in use, "
                            "container 'web' of network 'nsb0' has it"]  # fmt: skip
        with (
            world.host.serves(8081),
            raises(nsbox.Unavailable, "publish") as said,
            idle("b", net, publish="8081:80"),
        ):
            pass
        assert said == ["publish: tcp port 8081 of the host: Address already in use"], said
        with pytest.raises(OSError) as caught, world.host.serves(8080):
            pass
        assert number(caught.value) == "EADDRINUSE"
        assert len(net.leases) == 1
        assert other.leases == ()
    with nsbox.Network("nsb0", subnet=SUBNET) as net, server("web", net, publish="8080:80"):
        assert world.outside.asks(HOST, 8080) == f"web {OUTSIDE}"


@elsewhere
def test_who_has_a_port_is_named_by_the_kind_the_name_and_the_network() -> None:
    app = nsbox.ContainerSpec("app", ["sleep", "1000"])
    world.host.ip("addr add 192.0.2.9/32 dev out0")
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        nsbox.Pod("web", [app], net=net, publish="192.0.2.9:8080:80"),
        nsbox.Popen(["sleep", "1000"], net=net, publish=f"{HOST}:8080:80") as other,
    ):
        for wanted, holder in (
            ("192.0.2.9:8080:1", "pod 'web' of network 'nsb0'"),
            (f"{HOST}:8080:1", "container 'sandbox' of network 'nsb0'"),
        ):
            with raises(nsbox.Unavailable, "publish") as said, idle("b", net, publish=wanted):
                pass
            assert said[0].endswith(f": Address already in use, {holder} has it"), said
        other.kill()
    world.host.ip("addr del 192.0.2.9/32 dev out0")


@elsewhere
def test_another_process_enters_a_container_with_published_ports() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("a", net, publish="8080:80", dns=["192.0.2.53"]),
    ):
        command = [sys.executable, "-m", "nsbox", "exec", "a", "echo", "hello"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout == "hello\n", done


_OTHER = """
import sys, nsbox
with nsbox.Network() as net, nsbox.Container(["sleep", "1000"], net=net,
                                             publish=["8080:80", "53:53/udp"]), open(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


_TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


@elsewhere
def test_another_process_that_has_a_port_is_named() -> None:
    """To look at what it has open ends no lock of ours: close(2) of any copy of the file would."""
    import fcntl
    import tempfile

    with (
        tempfile.NamedTemporaryFile("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", _OTHER, file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
        nsbox.Network("nsb0", subnet=SUBNET) as net,
    ):
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        for wanted in ("8080:80", "53:53/udp"):
            with raises(nsbox.Unavailable, "publish") as said, idle("b", net, publish=wanted):
                pass
            assert said[0].endswith(f", process {other.pid}, which uses nsbox, has it"), said
        locked = subprocess.run([sys.executable, "-c", _TRY, file.name], capture_output=True)
        assert b"BlockingIOError" in locked.stderr
        other.stdin.close()


@elsewhere
def test_two_pods_listen_on_the_same_port_and_are_published_on_two() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        pods = [
            nsbox.Pod(
                name,
                [nsbox.ContainerSpec("web", python("serve", "tcp", 80, name))],
                net=net,
                publish=f"{port}:80",
            )
            for name, port in (("one", 8001), ("two", 8002))
        ]
        with pods[0] as one, pods[1] as two:
            for pod, port in ((one, 8001), (two, 8002)):
                wait_ready(pod["web"])
                assert pod.ports == ((None, port, 80, "tcp"),)
                assert world.outside.asks(HOST, port) == f"{pod.name} {OUTSIDE}"
            one["web"].kill()
            one["web"].wait_restarted(1)
            assert world.outside.asks(HOST, 8002) == f"two {OUTSIDE}"


@elsewhere
def test_what_is_refused_before_anything_is_made() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        for publish, text in (
            (
                "web",
                "publish: 'web' does not say which port; "
                'use "8080:80", "127.0.0.1:8080:80", "53:53/udp" or 80',
            ),
            ("70000:80", "publish: '70000' is not a port, or a range of them, in 1..65535"),
            ("8080:80/sctp", "publish: protocol 'sctp' is none of tcp, udp"),
            (["80:80", "80:81"], "publish[1]: 80:81/tcp overlaps publish[0], 80:80/tcp"),
        ):
            with raises(nsbox.SpecError) as said:
                idle("a", net, publish=publish)
            assert said == [text]
        with raises(nsbox.SpecError, "publish") as said:
            nsbox.run(["true"], publish="80:80")
        assert said == ["publish: is of a sandbox with a network: net= a Bridge or a Network"]
        with (
            raises(nsbox.Unavailable, "publish") as said,
            idle("a", net, publish="[2001:db8::1]:80:80"),
        ):
            pass
        assert re.match(r"publish: .*: the sandbox has no IPv6 address. Fix: subnet6=", said[0]), (
            said
        )
        with (
            raises(nsbox.Unavailable, "publish") as said,
            idle("a", net, publish="203.0.113.9:80:80"),
        ):
            pass
        assert said == ["publish: tcp port 80 of 203.0.113.9: Cannot assign requested address"]
        assert net.leases == ()


@elsewhere
def test_more_ports_than_there_are_descriptors_are_refused_and_nothing_is_left() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        nsbox.run(["true"], net=net)
        assert later.settle(scaled(5))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        before = os.listdir("/proc/self/fd")
        try:
            for protocol in ("tcp", "udp"):
                with raises(nsbox.Unavailable, "publish") as said:
                    nsbox.run(["true"], net=net, publish=f"1-30000:1-30000/{protocol}")
                assert "which may have 256. Fix: raise its limit of open files" in said[0]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert later.settle(scaled(5))
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert net.leases == ()
        nsbox.run(["true"], net=net, publish="1-200:1-200", check=True)


@elsewhere
def test_an_established_connection_is_the_container_s_until_it_ends() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        code = "import socket, time; s = socket.create_server(('', 80)); print('ready', flush=True); c = s.accept()[0]; time.sleep(1000)"  # noqa: E501
        with nsbox.Container(["python3", "-SIuc", code], net=net, publish="8080:80") as web:
            wait_ready(web)
            with world.outside.inside():
                made = socket.create_connection((HOST, 8080), 5)
        with made:
            made.settimeout(5)
            assert made.recv(9) == b""  # its end was told
