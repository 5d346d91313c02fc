# SPDX-License-Identifier: Apache-2.0
"""egress=Allow(...): a sandbox reaches what it says, from its first instruction on, and cannot
change it."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import Any

import pytest
from network.world import (
    BEYOND,
    GATEWAY,
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    SUBNET,
    SUBNET6,
    asks,
    elsewhere,
    idle,
    pings,
    python,
    raises,
    server,
    timed_all,
    world,
)

import nsbox
from nsbox import Allow


@pytest.mark.kernel
@elsewhere
def test_what_is_allowed_is_reached_and_all_else_refused_at_once() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        server("db", net) as db,
        world.outside.serves(7),
        world.outside.serves(8),
        world.outside.serves(7, "udp"),
        world.outside.serves(7, address="::"),
        world.outside.serves(8, address="::"),
        idle("free", net) as free,
        idle("a", net, egress=Allow(f"{OUTSIDE}:7", f"[{OUTSIDE6}]:7")) as a,
    ):
        assert asks(a, OUTSIDE, 7) == f"it {HOST}"
        assert asks(a, OUTSIDE6, 7) == f"it {HOST6}"
        others: list[Any] = [
            ("tcp", OUTSIDE, 8),
            ("tcp", BEYOND, 7),
            ("tcp", db.ip, 80),
            ("tcp", GATEWAY, 80),
            ("tcp", OUTSIDE6, 8),
            ("udp", OUTSIDE, 7),
        ]
        for answer, took in timed_all(a, others, 5):
            assert answer in ("ECONNREFUSED", "EPERM"), answer
            assert took < 1
        assert [answer for answer, _ in timed_all(free, others[:3], 5)] == [
            f"it {HOST}",
            f"it {HOST}",
            f"db {free.ip}",
        ]
        assert not pings(a, OUTSIDE, 1)
        assert not pings(a, db.ip, 1)
        assert asks(free, OUTSIDE, 7, "udp") == f"it {HOST}"


@elsewhere
def test_entries_of_every_kind() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        server("db", net, 81) as db,
        world.outside.serves(7),
        world.outside.serves(7, "udp"),
        world.outside.serves(8),
    ):
        questions: list[Any] = [
            ("tcp", OUTSIDE, 7),
            ("udp", OUTSIDE, 7),
            ("tcp", OUTSIDE, 8),
            ("tcp", BEYOND, 7),
            ("tcp", db.ip, 81),
        ]
        for entries, reached in (
            ((), []),
            ((OUTSIDE,), [0, 1, 2]),
            (("192.0.2.0/24",), [0, 1, 2]),
            ((f"{OUTSIDE}:7/udp",), [1]),
            ((f"{OUTSIDE}:8-9",), [2]),
            ((":7",), [0, 3]),
            (("10.0.0.0/8:80-81", f"{BEYOND}:7"), [3, 4]),
            (("0.0.0.0/0",), [0, 1, 2, 3, 4]),
        ):
            with idle("a", net, egress=Allow(*entries)) as a:
                answers = [answer for answer, _ in timed_all(a, questions, 5)]
            got = [n for n, answer in enumerate(answers) if answer.startswith(("it ", "db "))]
            assert got == reached, (entries, answers)


@elsewhere
def test_who_is_asked_answers() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        idle("b", net) as b,
        server("web", net, egress=Allow(), publish="8080:80") as web,
    ):
        assert asks(b, web.ip, 80) == f"web {b.ip}"
        assert world.outside.asks(HOST, 8080) == f"web {OUTSIDE}"
        assert asks(web, "127.0.0.1", 80) == "web 127.0.0.1"
        assert asks(web, b.ip, 80) == "ECONNREFUSED"
        assert pings(b, web.ip)


IMPATIENT = """
import socket
s = socket.socket()
s.settimeout(5)
print(s.connect_ex(("192.0.2.2", 8)), flush=True)
"""


@elsewhere
def test_the_rules_are_there_before_the_payload_s_first_instruction() -> None:
    """Nobody gets through to what is not allowed, however early; to what is, from the start."""
    seen: list[Any] = []

    def accept() -> None:
        while True:
            try:
                connection, peer = listening.accept()
            except OSError:
                return
            seen.append(peer)
            connection.close()

    with world.outside.inside():
        import socket

        listening = socket.create_server(("0.0.0.0", 8))
    thread = threading.Thread(target=accept)
    thread.start()
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        for keywords in ({}, {"profile": "standard"}, {"init": False}):
            for _ in range(5):
                done = nsbox.run(
                    ["python3", "-SIc", IMPATIENT],
                    net=net,
                    egress=Allow(),
                    capture_output=True,
                    text=True,
                    **keywords,
                )
                assert done.stdout == "111\n", done
            assert seen == []
            done = nsbox.run(
                ["python3", "-SIc", IMPATIENT],
                net=net,
                egress=Allow(":8"),
                capture_output=True,
                text=True,
                **keywords,
            )
            assert done.stdout == "0\n", done
            assert len(seen) == 1
            seen.clear()
    listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    listening.close()


ESCAPES = (
    ("nft", "flush", "ruleset"),
    ("nft", "delete", "table", "inet", "nsbox"),
    ("ip", "link", "set", "eth0", "down"),
    ("ip", "addr", "add", "10.77.0.99/24", "dev", "eth0"),
    ("unshare", "-n", "true"),
    ("nsenter", "-t", "1", "-n", "nft", "flush", "ruleset"),
)


@elsewhere
def test_uid_0_inside_cannot_take_the_rules_away() -> None:
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        world.outside.serves(7),
        world.outside.serves(8),
    ):
        for keywords in (
            {"user": 0},
            {"user": 0, "profile": "standard"},
            {"profile": "standard", "user": 0, "capabilities": ["NET_BIND_SERVICE", "SETUID"]},
        ):
            with idle("a", net, egress=Allow(":7"), **keywords) as a:
                before = ruleset(a)
                assert "policy drop" in before
                for escape in ESCAPES:
                    done = a.exec(list(escape), capture_output=True)
                    assert done.returncode != 0, (keywords, escape)
                assert ruleset(a) == before, keywords
                assert asks(a, OUTSIDE, 8) == "ECONNREFUSED"
                assert asks(a, OUTSIDE, 7) == f"it {HOST}"


@elsewhere
def test_a_user_namespace_inside_opens_no_way_out() -> None:
    """It may have any right there, but not over the network that it came from."""
    with (
        nsbox.Network("nsb0", subnet=SUBNET) as net,
        world.outside.serves(8),
        idle("a", net, egress=Allow(), profile="standard") as a,
    ):
        before = ruleset(a)
        for words in (["nft", "flush", "ruleset"], python("ask", 5, "tcp", OUTSIDE, 8)):
            done = a.exec(["unshare", "-Ur", *words], capture_output=True, text=True)
            assert f"it {HOST}" not in done.stdout
        assert ruleset(a) == before


def ruleset(container: nsbox.Container) -> str:
    """As root of the machine sees it."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{container.pid}/ns/net", "nft", "list", "ruleset"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@elsewhere
def test_even_net_admin_from_outside_cannot_change_a_table_that_is_owned() -> None:
    """Not needed for safety, since none has it inside: a second lock (Linux 5.12)."""
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("a", net, egress=Allow()) as a:
        before = ruleset(a)
        for words in (["delete", "table", "inet", "nsbox"], ["flush", "ruleset"]):
            subprocess.run(
                ["nsenter", f"--net=/proc/{a.pid}/ns/net", "nft", *words], capture_output=True
            )
            assert ruleset(a) == before, words


@elsewhere
def test_what_does_not_go_together_is_refused() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        for who, keywords in (
            ("NET_ADMIN", {"capabilities": ["NET_ADMIN"], "user": 0}),
            ("NET_RAW", {"capabilities": ["NET_RAW"], "user": 0}),  # frames pass no rule of ours
            ("NET_ADMIN, NET_RAW", {"profile": "none"}),
        ):
            why = f"who has {who} can get round the rules of egress: leave it out of capabilities="
            with (
                raises(nsbox.SpecError, "egress") as said,
                idle("a", net, egress=Allow(), **keywords),
            ):
                pass
            assert said == [f"egress: {why}"]
            with idle("b", net, egress=Allow()) as other, raises(nsbox.SpecError, "net") as said:
                nsbox.run(["true"], net=other, **keywords)
            assert said == [f"net: {why}"]
            with idle("b", net) as other:
                assert nsbox.run(["true"], net=other, **keywords).ok
        with raises(nsbox.SpecError, "egress") as said:
            idle("a", net, egress=["192.0.2.2"])
        assert said == ["""egress: ['192.0.2.2']: use Allow("10.0.0.0/8", "192.0.2.7:443")"""]
        for entry, text in (
            ("example.org", "egress[0]: 'example.org' is no address"),
            (
                "10.0.0.1/8",
                "egress[0]: '10.0.0.1/8' is in the middle of a network; did you mean 10.0.0.0/8?",
            ),
            ("10.0.0.0/8:0", "egress[0]: '10.0.0.0/8:0': ports are 1 to 65535"),
        ):
            with raises(nsbox.SpecError) as said:
                Allow(entry)
            assert said[0].startswith(text), said
        for where in ("none", "host"):
            with raises(nsbox.SpecError, "egress"):
                idle("a", where, egress=Allow())
        assert net.leases == ()
    assert repr(Allow("10.0.0.0/8", ":443")) == "Allow('10.0.0.0/8', ':443')"


@elsewhere
def test_the_table_goes_with_the_sandbox_and_not_before() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, world.outside.serves(8):
        with idle("a", net, egress=Allow()) as a, idle("guest", a) as guest:
            namespace = os.open(f"/proc/{a.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            assert asks(guest, OUTSIDE, 8) == "ECONNREFUSED"
            a.kill()
            a.wait()
            assert asks(guest, OUTSIDE, 8) != f"it {HOST}"
        os.close(namespace)
