# SPDX-License-Identifier: Apache-2.0
"""Networks of an ordinary user: sandboxes and pods that reach each other, and nothing else."""

# ruff: noqa: F821  (the bodies run after the prelude of world.py)

from __future__ import annotations

import pytest
from network.userworld import rootless

pytestmark = pytest.mark.kernel("user")


@rootless()
def test_containers_reach_each_other_by_address_and_name() -> None:
    with nsbox.Network(nat=False, subnet="10.77.0.0/24", subnet6="fd00:77::/64") as n:
        with server(80, net=n, name="web") as web, server(80, "6", net=n, name="six") as six:
            ready(web, six)
            with nsbox.Container(["sleep", "1000"], net=n, name="c") as c:
                assert ask(c, "tcp", web.ip, 80, "by address") == f"{c.ip} by address"
                assert ask(c, "udp", web.ip, 80, "datagram") == f"{c.ip} datagram"
                assert ask(c, "tcp", "web", 80, "by name") == f"{c.ip} by name"
                assert ask(c, "tcp", six.ip6, 80, "of six") == f"{c.ip6} of six"
                c.exec(["ping", "-c1", "-W2", "web"], capture_output=True, check=True)
                c.exec(["ping", "-c1", "-W2", str(n.gateway)], capture_output=True, check=True)
                assert c.eth0.counts["rx_packets"] > 0
                assert c.ip in [one.ip for one in c.eth0.addresses]


@rootless()
def test_a_pod_has_an_address_and_its_containers_share_it() -> None:
    with nsbox.Network(nat=False) as n, nsbox.Container(["sleep", "1000"], net=n) as c:
        parts = [
            nsbox.ContainerSpec("srv", ["python3", "-c", SERVE, "80"]),
            nsbox.ContainerSpec("side", ["sleep", "1000"]),
        ]
        with nsbox.Pod("web", parts, net=n, publish=["8080:80"]) as pod:
            poll_until(lambda: "ready" in pod["srv"].logs(), 10)
            assert ask(c, "tcp", "web", 80) == f"{c.ip} x"
            assert ask(pod["side"], "tcp", "127.0.0.1", 80) == "127.0.0.1 x"
            assert outside(proto="tcp", address=HOST, port=8080, data="o") == f"{n.gateway} o"
            assert ask(pod, "tcp", pod.ip, 80) == f"{pod.ip} x"
        with nsbox.Pod("same", [nsbox.ContainerSpec("x", ["sleep", "1000"])], net=c) as other:
            shown = ["readlink", "/proc/self/ns/net"]
            mine = c.exec(shown, capture_output=True).stdout
            assert other["x"].exec(shown, capture_output=True).stdout == mine


@rootless()
def test_networks_of_one_program_are_apart() -> None:
    with nsbox.Network(nat=False) as n, nsbox.Network(nat=False) as m:
        with (
            server(80, net=n, publish=["8080:80"]) as s,
            nsbox.Container(["sleep", "9"], net=m) as c,
        ):
            ready(s)
            with pytest.raises(ConnectionError):
                ask(c, "tcp", s.ip, 80)
            assert ask(c, "tcp", m.gateway, 8080) == f"{c.ip} x", "but for what is published"
    with nsbox.Network(nat=False, isolated=False) as n, nsbox.Network(nat=False) as m:
        with server(80, net=n) as s, nsbox.Container(["sleep", "9"], net=m) as c:
            ready(s)
            assert ask(c, "tcp", s.ip, 80) == f"{c.ip} x"


@rootless()
def test_published_ports_are_the_host_s() -> None:
    with nsbox.Network(nat=False) as n:
        published = ["8080:80", "8080:80/udp", "127.0.0.1:8082:80", "80"]
        with server(80, net=n, publish=published) as s:
            ready(s)
            chosen = s.ports[-1][1]
            for proto in ("tcp", "udp"):
                for address in ("127.0.0.1", HOST):
                    assert ask_here(proto, address, 8080) == f"{n.gateway} x"
                assert outside(proto=proto, address=HOST, port=8080, data="q") == f"{n.gateway} q"
            assert ask_here("tcp", HOST, chosen) == f"{n.gateway} x"
            assert ask_here("tcp", "127.0.0.1", 8082) == f"{n.gateway} x"
            assert outside(proto="tcp", address=HOST, port=8082, data="q") is None
            with pytest.raises(
                nsbox.Unavailable, match=r"the host.*container 'python3' of .* has it"
            ):
                nsbox.run(["true"], net=n, publish=["8080:80"])
            other = "import nsbox; nsbox.run(['true'], net=nsbox.Network(nat=False).start(), "
            other += "publish='8080:80')"
            said = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
            assert f", process {os.getpid()}, which uses nsbox, has it" in said.stderr, said
        for port in (8080, 8082, chosen):
            with pytest.raises(ConnectionError, match="refused"):
                ask_here("tcp", "127.0.0.1", port)
        with server(80, net=n, publish=["8080:80"]) as s:
            ready(s)
            assert ask_here("tcp", HOST, 8080) == f"{n.gateway} x", "it can be published again"


@rootless()
def test_ports_of_ipv6_and_ranges_are_published() -> None:
    with nsbox.Network(nat=False, subnet="10.77.0.0/24", subnet6="fd00:77::/64") as n:
        with server(80, "6", net=n, publish=[f"[{HOST6}]:8080:80", f"[{HOST6}]:8080:80/udp"]) as s:
            ready(s)
            for proto in ("tcp", "udp"):
                assert outside(proto=proto, address=HOST6, port=8080, data="q") == f"{n.gateway6} q"
        with server(8030, net=n, publish=["8000-8059:8000-8059"]) as s:
            ready(s)
            assert len(s.ports) == 60
            assert ask_here("tcp", HOST, 8030) == f"{n.gateway} x"


@rootless()
def test_every_address_of_both_versions_and_the_loopback_of_ipv6_are_published() -> None:
    with nsbox.Network(nat=False, subnet="10.77.0.0/24", subnet6="fd00:77::/64") as n:
        published = ["[::]:8081:80", "[::]:8081:80/udp", "[::1]:8082:80"]
        with (
            server(80, "6", net=n, publish=published) as s,
            server(80, net=n, publish="0.0.0.0:8081:80") as four,
        ):
            ready(s, four)
            for proto in ("tcp", "udp"):
                assert outside(proto=proto, address=HOST6, port=8081, data="q") == f"{n.gateway6} q"
                for address in ("::1", HOST6):
                    assert ask_here(proto, address, 8081) == f"{n.gateway6} x"
            assert outside(proto="tcp", address=HOST, port=8081, data="q") == f"{n.gateway} q"
            assert ask_here("tcp", "127.0.0.1", 8081) == f"{n.gateway} x"
            assert ask_here("tcp", "::1", 8082) == f"{n.gateway6} x"
            assert outside(proto="tcp", address=HOST6, port=8082, data="q") is None
            assert ask(four, "tcp", n.gateway6, 8081) == f"{n.gateway6} x"


@rootless()
def test_services_of_the_host_are_at_the_gateway_if_they_are_let_in() -> None:
    own = subprocess.Popen([sys.executable, "-c", SERVE, "9000"], stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen(
        [sys.executable, "-c", SERVE, "9001"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert own.stdout.readline() == other.stdout.readline() == "ready\n"
        with nsbox.Network(nat=False, host_ports=[9000, "9000/udp"]) as n:
            assert ask(n, "tcp", n.gateway, 9000) == "127.0.0.1 x"
            assert ask(n, "udp", n.gateway, 9000) == "127.0.0.1 x"
            for address in (n.gateway, HOST, "127.0.0.1"):
                with pytest.raises(ConnectionError):
                    ask(n, "tcp", address, 9001)
    finally:
        for one in (own, other):
            one.kill()
            one.communicate()


@rootless()
def test_without_a_program_to_lead_out_there_is_no_nat_but_a_network() -> None:
    with pytest.raises(nsbox.Unavailable, match="pasta or slirp4netns") as raised:
        nsbox.Network().start()
    assert "nat=False" in str(raised.value)
    assert "apt-get install passt" in str(raised.value)
    with nsbox.Network(nat=False) as n, nsbox.Bridge(subnet="10.77.0.0/24") as b:
        for network in (n, b):
            nsbox.run(
                ["ping", "-c1", "-W2", str(network.gateway)],
                net=network,
                capture_output=True,
                check=True,
            )
            with pytest.raises(ConnectionError):
                ask(network, "tcp", OUT, ECHO)
    assert ask_here("tcp", OUT, ECHO) == f"{HOST} x", "the host can"


@rootless()
def test_what_the_payload_may_reach_is_not_its_to_change() -> None:
    with nsbox.Network(nat=False) as n, server(80, net=n) as s, server(81, net=n) as t:
        ready(s, t)
        only = {"net": n, "egress": nsbox.Allow(f"{s.ip}:80"), "capture_output": True, "text": True}
        done = nsbox.run(["python3", "-c", ASK, "tcp", str(s.ip), "80", "x"], **only)
        assert done.stdout.endswith(" x")
        done = nsbox.run(["python3", "-c", ASK, "tcp", str(t.ip), "81", "x"], **only)
        assert "ConnectionRefusedError" in done.stderr
        with pytest.raises(nsbox.SpecError, match="NET_ADMIN"):
            nsbox.run(["true"], capabilities=["NET_ADMIN"], **only)
        free = nsbox.run(
            ["python3", "-c", ASK, "tcp", str(t.ip), "81", "x"],
            net=n,
            capture_output=True,
            text=True,
        )
        assert free.stdout.endswith(" x")


@rootless()
def test_a_capability_over_its_own_network_is_none_over_the_router() -> None:
    """Where both have one user namespace, CAP_NET_ADMIN inside reaches the other end's namespace:
    by the number that the kernel gives that, IFLA_TARGET_NETNSID, no descriptor is needed."""
    make = """
import os, socket, struct, sys
def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
target = attribute(46, struct.pack("=i", int(sys.argv[1]))) if sys.argv[1] != "here" else b""
body = bytes(16) + target + attribute(3, b"evil\\0") + attribute(18, attribute(1, b"bridge\\0"))
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
link.send(struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
error = -struct.unpack_from("=i", link.recv(4096), 16)[0]
print(os.strerror(error) if error else "made")
"""
    with (
        nsbox.Network(nat=False) as n,
        nsbox.Container(["sleep", "1000"], net=n, capabilities=["NET_ADMIN"]) as c,
    ):

        def run(where):
            done = c.exec(["python3", "-c", make, where], capture_output=True, text=True)
            return done.stdout + done.stderr

        found = run("0"), run("here")
        assert found == ("Operation not permitted\n", "made\n"), found
        assert "evil" not in n.router.net.run(["ip", "link"], capture_output=True, text=True).stdout
        own = [os.stat(f"/proc/{pid}/ns/user").st_ino for pid in (c.pid, n.router.net.keeper)]
        assert own[0] != own[1]
    with nsbox.Namespace.create("net") as a, nsbox.Namespace.create("net", within=a) as b:
        with nsbox.Veth.create("va", a, peer="vb", peer_netns=b):
            done = b.run(["python3", "-c", make, "0"], capture_output=True, text=True)
            assert done.stdout == "made\n", "there it would have been possible"
            assert "evil" in a.run(["ip", "link"], capture_output=True, text=True).stdout


@rootless()
def test_a_networked_sandbox_is_what_it_is_without_a_network() -> None:
    """Its user is the caller, and may make no user namespace."""
    here = os.getcwd()
    with nsbox.Network(nat=False) as n:
        for net in ("none", n):
            script = f"echo $(id -u) >> {here}/made; cat /proc/sys/user/max_user_namespaces"
            done = nsbox.run(
                ["sh", "-c", script],
                net=net,
                proc="full",
                capture_output=True,
                text=True,
                mounts=[nsbox.Mount.bind(here, here, ro=False)],
            )
            assert done.stdout == "0\n", done.stderr
        assert Path("made").read_text() == "1000\n1000\n"
        assert Path("made").stat().st_uid == os.getuid()


@rootless()
def test_the_same_subnet_in_another_program_is_another_network() -> None:
    code = (
        "import nsbox, sys\nwith nsbox.Bridge(subnet='10.77.0.0/24') as b:\n"
        "    print(nsbox.run(['true'], net=b).returncode, flush=True); sys.stdin.read()"
    )
    with nsbox.Bridge(subnet="10.77.0.0/24") as b:
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout.readline() == "0\n"
            assert nsbox.run(["true"], net=b).returncode == 0
            with pytest.raises(nsbox.Unavailable, match="overlaps"):
                nsbox.Bridge(subnet="10.77.0.0/25").start()
        finally:
            other.communicate("")
    assert other.returncode == 0


@rootless()
def test_a_forked_child_has_networks_of_its_own() -> None:
    with nsbox.Bridge(subnet="10.77.0.0/24") as b:
        pid = os.fork()
        if pid == 0:
            try:
                with nsbox.Bridge(subnet="10.77.0.0/24") as own:
                    os._exit(nsbox.run(["true"], net=own).returncode)
            except BaseException:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert nsbox.run(["true"], net=b).returncode == 0


@rootless()
def test_many_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with nsbox.Network(nat=False) as n, server(80, net=n, publish=["8080:80"]) as s:
        ready(s)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: ask(n, "tcp", s.ip, 80, str(i)), range(many)))
            assert [one.split()[1] for one in found] == [str(i) for i in range(many)]
            found = list(pool.map(lambda i: ask_here("tcp", HOST, 8080, str(i)), range(many)))
            assert found == [f"{n.gateway} {i}" for i in range(many)]
        assert len(n.leases) == 1
