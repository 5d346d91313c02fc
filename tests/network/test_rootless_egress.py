# SPDX-License-Identifier: Apache-2.0
"""The way out of an ordinary user's networks: by pasta and by slirp4netns."""

# ruff: noqa: F821  (the bodies run after the prelude of world.py)

from __future__ import annotations

import pytest
from network.userworld import rootless

PROGRAMS = ("pasta", "slirp4netns")


@rootless(*PROGRAMS)
def test_the_world_is_reached_as_the_caller_does() -> None:
    with nsbox.Network() as n, nsbox.Container(["sleep", "1000"], net=n) as c:
        assert n.nat
        for proto in ("tcp", "udp"):
            assert ask(c, proto, OUT, ECHO, "hello") == f"{HOST} hello"
        c.exec(["ping", "-c1", "-W3", OUT], capture_output=True, check=True)
        assert ask(c, "tcp", "a.name.test", ECHO) == f"{HOST} x", "by the host's name server"
        assert (
            f"nameserver {OUT}"
            in c.exec(["cat", "/etc/resolv.conf"], capture_output=True, text=True).stdout
        )
        big = (
            "import socket, sys; s = socket.create_connection((sys.argv[1], 7)); "
            "s.sendall(b'x' * 900); print(len(s.recv(2000)))"
        )
        done = c.exec(["python3", "-c", big, OUT], capture_output=True, text=True)
        assert int(done.stdout) > 900


@rootless(*PROGRAMS)
def test_pods_and_several_networks_have_one_way_out() -> None:
    with nsbox.Network() as n, nsbox.Network() as m:
        with nsbox.Pod("p", [nsbox.ContainerSpec("a", ["sleep", "1000"])], net=n) as pod:
            assert ask(pod["a"], "tcp", OUT, ECHO) == f"{HOST} x"
            assert ask(m, "tcp", OUT, ECHO) == f"{HOST} x"
        links = n.router.net.run(["ip", "-br", "link"], capture_output=True, text=True).stdout
        assert links.count("nsb-uplink") == 1
        m.close()
        assert ask(n, "tcp", OUT, ECHO) == f"{HOST} x", "as long as one has it"


@rootless("pasta")
def test_ipv6_leads_out_where_the_host_has_it() -> None:
    with nsbox.Network(subnet="10.77.0.0/24", subnet6="fd00:77::/64") as n:
        for proto in ("tcp", "udp"):
            assert ask(n, proto, OUT6, ECHO) == f"{HOST6} x"
        nsbox.run(["ping", "-6", "-c1", "-W3", OUT6], net=n, capture_output=True, check=True)


@rootless(*PROGRAMS)
def test_what_is_allowed_is_all_that_is_reached() -> None:
    with nsbox.Network() as n:

        def go(address, port):
            done = nsbox.run(
                ["python3", "-c", ASK, "tcp", address, str(port), "x"],
                net=n,
                egress=nsbox.Allow(f"{OUT}:{ECHO}"),
                capture_output=True,
                text=True,
            )
            return done.stdout or done.stderr.splitlines()[-1]

        assert go(OUT, ECHO) == f"{HOST} x"
        assert "ConnectionRefusedError" in go(OUT, 99)
        assert "ConnectionRefusedError" in go("192.0.2.1", 7)


@rootless(*PROGRAMS)
def test_the_host_itself_is_closed_at_every_address_it_has_or_gets() -> None:
    own = subprocess.Popen([sys.executable, "-c", SERVE, "9000"], stdout=subprocess.PIPE, text=True)
    try:
        assert own.stdout.readline() == "ready\n"
        with nsbox.Network(host_ports=[9000]) as n, nsbox.Container(["sleep", "99"], net=n) as c:
            for address in (HOST, "127.0.0.1", "127.0.0.2", "0.0.0.0"):
                with pytest.raises(ConnectionError):
                    ask(c, "tcp", address, 9000)
            uplink = n.router.net.run(["ip", "-4", "route"], capture_output=True, text=True).stdout
            beyond = re.search(r"default via (\S+)", uplink)[1]
            base = beyond.rpartition(".")[0]
            for address in (beyond, f"{base}.3", f"{base}.1"):  # what programs make of 127.0.0.1
                with pytest.raises(ConnectionError):
                    ask(c, "tcp", address, 9000)
            assert ask(c, "tcp", n.gateway, 9000) == "127.0.0.1 x"
            assert outside(address="192.0.2.77", proto="address", port=0, data="") == "made"
            assert ask_here("tcp", "192.0.2.77", 9000).endswith(" x")

            def closed():
                try:
                    return not ask(c, "tcp", "192.0.2.77", 9000)
                except ConnectionError:
                    return True

            poll_until(closed, 3)
            assert ask(c, "tcp", OUT, ECHO) == f"{HOST} x", "others still are not"
    finally:
        own.kill()
        own.communicate()


@rootless("pasta")
def test_a_network_without_nat_has_no_way_out_though_another_has() -> None:
    with nsbox.Network(nat=False) as shut, nsbox.Network() as open:
        assert ask(open, "tcp", OUT, ECHO) == f"{HOST} x"
        with pytest.raises(ConnectionError):
            ask(shut, "tcp", OUT, ECHO)


@rootless("pasta", resolv="127.0.0.53")
def test_a_name_server_on_loopback_is_at_the_gateway() -> None:
    names = f"import sys; sys.path[:0] = {sys.path}; from network.userworld import names; names"
    own = subprocess.Popen(
        [sys.executable, "-c", f"{names}('127.0.0.53')"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert own.stdout.readline() == "ready\n"
        with nsbox.Network() as n, nsbox.Container(["sleep", "1000"], net=n) as c:
            resolv = c.exec(["cat", "/etc/resolv.conf"], capture_output=True, text=True).stdout
            assert f"nameserver {n.gateway}" in resolv
            assert ask(c, "tcp", "some.name.test", ECHO) == f"{HOST} x"
    finally:
        own.kill()
        own.communicate()


@rootless("pasta")
def test_a_program_that_ends_at_once_says_why() -> None:
    egress._NETNS = "/run/netns/another"
    whole = egress._pasta
    egress.PROGRAMS["pasta"] = lambda program, subnets: [program, "--no-such-option"]
    with pytest.raises(nsbox.Unavailable, match=r"pasta ended \(1\).*no-such-option"):
        nsbox.Network().start()
    egress._NETNS = "/run/netns/router"
    egress.PROGRAMS["pasta"] = whole
    with nsbox.Network() as n:
        assert ask(n, "tcp", OUT, ECHO) == f"{HOST} x"


@rootless("pasta")
def test_the_program_sees_neither_processes_nor_files_of_the_caller() -> None:
    Path("secret").write_text("secret")
    with nsbox.Network() as n:
        helper = n._place._egress._process
        inside = nsbox.Namespace.of(helper.pid, "pid")
        assert inside != nsbox.Namespace.current("pid")
        root = Path(f"/proc/{helper.pid}/root")
        assert os.path.isdir(f"{root}/usr/bin")
        assert not os.path.exists(f"{root}{Path.cwd()}/secret")
        inside.close()


@rootless("pasta")
def test_an_ipv4_address_in_an_ipv6_packet_does_not_lead_to_the_host_s_loopback() -> None:
    """No connect(2) makes such a packet, but CAP_NET_RAW can; the program would connect to it."""
    from nsbox import nft, nftmsg

    send = """
import socket, struct, sys
mine, gateway, source, target = sys.argv[1:]
def mac(text):
    return bytes.fromhex(text.replace(":", ""))
ends = socket.inet_pton(10, source) + socket.inet_pton(10, target)
def sent(protocol, body, at):
    whole = ends + struct.pack(">II", len(body), protocol) + body
    total = sum(struct.unpack(f">{len(whole) // 2}H", whole))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:at] + struct.pack(">H", ~total & 0xFFFF) + body[at + 2:]
    packet = struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + ends + body
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    link.bind(("eth0", 0))
    link.send(mac(gateway) + mac(mine) + b"\\x86\\xdd" + packet)
sent(17, struct.pack(">HHHH", 5555, 9000, 8 + 4, 0) + b"evil", 6)
sent(6, struct.pack(">HHIIHHHH", 5556, 9000, 1, 0, 5 << 12 | 2, 65535, 0, 0), 16)
"""
    with (
        nsbox.Network(subnet="10.77.0.0/24", subnet6="fd00:77::/64") as n,
        nsbox.Container(["sleep", "99"], net=n, capabilities=["NET_RAW"]) as c,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.create_server(("127.0.0.1", 9000)) as streams,
        socket.create_server((HOST6, 9000), family=socket.AF_INET6) as six,
    ):
        datagrams.bind(("127.0.0.1", 9000))
        args = ["python3", "-c", send, c.eth0.mac, n.link.mac, str(c.ip6)]

        def arrives(target):
            c.exec([*args, target], check=True)
            found, _, _ = select.select([datagrams, streams, six], [], [], 1)
            for one in found:
                one.recv(9) if one is datagrams else one.accept()[0].close()
            return [
                ("datagrams", "streams", "six")[(datagrams, streams, six).index(x)] for x in found
            ]

        assert arrives("::ffff:127.0.0.1") == []
        assert arrives(HOST6) == []
        rules = nftmsg.Table(n._place._egress._table).delete()
        nft.transact(n._place._egress._rules, [rules])
        assert arrives(HOST6) == ["six"], "without the rules it gets there"
        assert "streams" in arrives("::ffff:127.0.0.1"), "and this, too"
