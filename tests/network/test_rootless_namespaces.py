# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that one user namespace owns, and links between them."""

# ruff: noqa: F821  (the bodies run after the prelude of world.py)

from __future__ import annotations

import pytest
from network.userworld import rootless

pytestmark = pytest.mark.kernel("user")


@rootless()
def test_a_veth_pair_between_namespaces_of_one_user_namespace() -> None:
    create = nsbox.Namespace.create
    with create("net") as a, create("net", within=a) as b, create("net", within=b) as c:
        assert a.owner == b.owner == c.owner != nsbox.Namespace.current("user")
        for other in (b, c):
            with nsbox.Veth.create(
                "va",
                a,
                peer="vb",
                peer_netns=other,
                address="10.1.0.1/24",
                peer_address="10.1.0.2/24",
            ) as veth:
                a.run(["ping", "-c1", "-W2", "10.1.0.2"], capture_output=True, check=True)
                assert veth.peer.counts["rx_packets"] > 0
            assert later.settle(10), "or the next packets take the old one"


@rootless()
def test_namespaces_of_two_user_namespaces_have_no_link_and_the_error_says_how() -> None:
    asks_for_both = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 13)
    with nsbox.Namespace.create("net") as a, nsbox.Namespace.create("net") as b:
        with pytest.raises(nsbox.NetworkError, match="EPERM"):
            nsbox.Veth.create("va", a, peer="vb")
        if asks_for_both:
            with pytest.raises(nsbox.NetworkError, match=r"EPERM.*Namespace.create\(within=\)"):
                nsbox.Veth.create("va", a, peer="vb", peer_netns=b)
            assert "va" not in a.run(["ip", "link"], capture_output=True, text=True).stdout


@rootless()
def test_within_takes_any_namespace_that_a_user_namespace_owns() -> None:
    for kind in ("user", "mnt", "uts"):
        with nsbox.Namespace.create(kind) as a, nsbox.Namespace.create("net", within=a) as b:
            assert b.owner == (a if kind == "user" else a.owner)
            assert b.run(["id", "-u"], capture_output=True, text=True).stdout == "0\n"
    with nsbox.Namespace.create("net") as a:
        sleeper = a.popen(["sleep", "1000"])
        try:
            with nsbox.Namespace.of(sleeper.pid, "net") as same:
                with nsbox.Namespace.create("net", within=same) as b:
                    assert b.owner == a.owner
                    with nsbox.Veth.create("va", sleeper.pid, peer="vb", peer_netns=b) as veth:
                        assert veth.link.mac
        finally:
            sleeper.kill()
            sleeper.wait()


@rootless()
def test_the_subnet_of_a_closed_network_is_another_s_at_once() -> None:
    with nsbox.Network(nat=False):  # which keeps what they are in
        closed = nsbox.Network(nat=False).start()
        closed.close()
        with (
            nsbox.Network(nat=False, subnet=str(closed.subnet)) as net,
            nsbox.Container(["sleep", "99"], net=net) as box,
        ):
            box.exec(["ping", "-c1", "-W2", str(net.gateway)], check=True, capture_output=True)


@rootless()
def test_within_is_refused_where_it_makes_no_sense() -> None:
    own = nsbox.Namespace.current("net")
    with pytest.raises(nsbox.SpecError, match="within"):
        nsbox.Namespace.create("user", within=own)
    with pytest.raises(nsbox.Unavailable, match=r"cannot be seen|CAP_SYS_ADMIN"):
        nsbox.Namespace.create("net", within=own)
    own.close()
    gone = nsbox.Namespace.create("net")
    gone.close()
    with pytest.raises(nsbox.StateError, match="closed"):
        nsbox.Namespace.create("net", within=gone)


@rootless()
def test_a_cable_of_one_s_own_between_two_containers_of_a_network() -> None:
    with (
        nsbox.Network(nat=False) as n,
        nsbox.Container(["sleep", "99"], net=n) as c,
        nsbox.Container(["sleep", "99"], net=n) as d,
    ):
        with nsbox.Veth.create(
            "eth1",
            c.pid,
            peer="eth1",
            peer_netns=d.pid,
            address="10.9.0.1/24",
            peer_address="10.9.0.2/24",
        ):
            c.exec(["ping", "-c1", "-W2", "10.9.0.2"], capture_output=True, check=True)
        assert later.settle(10)
        with pytest.raises(nsbox.CommandError):
            c.exec(["ping", "-c1", "-W1", "10.9.0.2"], capture_output=True, check=True)
        c.exec(["ping", "-c1", "-W2", str(d.ip)], capture_output=True, check=True)
