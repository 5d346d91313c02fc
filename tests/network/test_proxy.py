# SPDX-License-Identifier: Apache-2.0
"""nsbox-init as a proxy: what comes at a port goes on to another address, and back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import socket
import threading
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from support import poll_until, scaled

from nsbox import probe, proxy, sandboxes
from nsbox.compile import compile_proxy
from nsbox.process import dev_null
from nsbox.slots import Slot
from nsbox.spawn import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel("root")

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
MIB = 1 << 20


def bound(kind: socket.SocketKind, address: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, kind)
    made.settimeout(scaled(10))
    made.bind((address, 0))
    return made


@contextlib.contextmanager
def proxied(target: socket.socket, address: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """Where *target* can be reached by a proxy."""
    host, port = target.getsockname()[:2]
    with bound(target.type, address) as listener:
        with proxy.serve([proxy.Port(listener, ip_address(host), port)]):
            yield listener.getsockname()[:2]


@contextlib.contextmanager
def serving(each: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A listener on loopback, with a thread for each connection."""
    with bound(TCP) as listener:
        listener.listen(1000)
        listener.settimeout(None)
        threads: list[threading.Thread] = []

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = listener.accept()
                    thread = threading.Thread(target=run, args=(link,))
                    threads.append(thread)
                    thread.start()

        def run(link: socket.socket) -> None:
            with link:
                link.settimeout(scaled(20))
                each(link)

        main = threading.Thread(target=loop)
        main.start()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for thread in (main, *threads):
                thread.join(scaled(20))


def echo(link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := link.recv(1 << 16):
            link.sendall(data)


def connect(where: tuple[str, int]) -> socket.socket:
    return socket.create_connection(where, scaled(20))


def all_of(link: socket.socket) -> bytes:
    found = bytearray()
    while data := link.recv(1 << 20):
        found += data
    return bytes(found)


def proxies() -> list[int]:
    return [pid for pid in sandboxes.proc_table()
            if sandboxes.command_of(pid)[:2] == ["nsbox-init", "proxy"]
            and sandboxes.proc_stat(pid).parent in own_launchers()]  # fmt: skip


def own_launchers() -> list[int]:
    from nsbox import registry

    return [one.launcher for one in registry.owners() if one.pid == os.getpid()]


def ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


# -- streams ----------------------------------------------------------------------------------


def test_bytes_go_through_unchanged_both_ways_at_once() -> None:
    blob = os.urandom(MIB) * 32
    with serving(echo) as target, proxied(target) as where, connect(where) as link:
        sender = threading.Thread(target=lambda: (link.sendall(blob), link.shutdown(1)))
        sender.start()
        found = all_of(link)
        sender.join()
    assert hashlib.sha256(found).digest() == hashlib.sha256(blob).digest()


def test_one_end_may_be_at_its_end_before_the_other() -> None:
    """As of a client that has said all, and waits for the answer."""

    def answer(link: socket.socket) -> None:
        said = all_of(link)
        link.sendall(b"%d bytes" % len(said))

    with serving(answer) as target, proxied(target) as where, connect(where) as link:
        link.sendall(b"x" * 100_000)
        link.shutdown(socket.SHUT_WR)
        assert all_of(link) == b"100000 bytes"


def test_the_other_end_may_be_the_first() -> None:
    heard = []

    def speak(link: socket.socket) -> None:
        link.sendall(b"welcome")
        link.shutdown(socket.SHUT_WR)
        heard.append(all_of(link))

    with serving(speak) as target, proxied(target) as where:
        with connect(where) as link:
            assert all_of(link) == b"welcome"
            link.sendall(b"thanks")
        poll_until(lambda: heard == [b"thanks"])


def test_what_its_reader_has_no_room_for_waits_and_costs_nothing() -> None:
    blob = os.urandom(MIB) * 16
    go = threading.Event()

    def slow(link: socket.socket) -> None:
        go.wait(scaled(20))
        link.sendall(hashlib.sha256(all_of(link)).digest())

    with serving(slow) as target, proxied(target) as where, connect(where) as link:
        link.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(blob):
                sent += link.send(blob[sent:])
        assert sent < len(blob)
        (pid,) = proxies()
        before = ticks(pid)
        time.sleep(0.5)
        assert ticks(pid) - before <= 2
        link.settimeout(scaled(20))
        go.set()
        link.sendall(blob[sent:])
        link.shutdown(socket.SHUT_WR)
        assert all_of(link) == hashlib.sha256(blob).digest()


def test_idle_connections_cost_nothing() -> None:
    with serving(echo) as target, proxied(target) as where, contextlib.ExitStack() as stack:
        links = [stack.enter_context(connect(where)) for _ in range(50)]
        for link in links:
            link.sendall(b"x")
            assert link.recv(1) == b"x"
        (pid,) = proxies()
        before = ticks(pid)
        time.sleep(0.5)
        assert ticks(pid) - before <= 1


def test_nobody_listens_there_and_then_somebody_does() -> None:
    target = bound(TCP)
    with target, proxied(target) as where:
        with connect(where) as link:
            try:
                assert link.recv(1) == b""
            except ConnectionResetError:
                pass
        target.listen()
        with connect(where) as link:
            accepted, _ = target.accept()
            with accepted:
                accepted.sendall(b"now")
                assert link.recv(3) == b"now"


def test_a_connection_that_is_reset_is_reset_or_closed_at_the_other_end() -> None:
    ended = threading.Event()

    def watch(link: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            while link.recv(1000):
                pass
        ended.set()

    with serving(watch) as target, proxied(target) as where:
        link = connect(where)
        link.sendall(b"x")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        link.close()
        assert ended.wait(scaled(5))


def test_hundreds_at_once_and_one_busy_one_holds_up_nobody() -> None:
    stop = threading.Event()

    def pump(where: tuple[str, int]) -> None:
        with connect(where) as busy:
            reader = threading.Thread(target=all_of, args=(busy,))
            reader.start()
            while not stop.is_set():
                busy.sendall(b"x" * MIB)
            busy.shutdown(socket.SHUT_WR)
            reader.join()

    with serving(echo) as target, proxied(target) as where:
        thread = threading.Thread(target=pump, args=(where,))
        thread.start()
        try:
            with contextlib.ExitStack() as stack:
                links = [stack.enter_context(connect(where)) for _ in range(300)]
                for i, link in enumerate(links):
                    link.sendall(b"%d" % i)
                for i, link in enumerate(links):
                    assert link.recv(10) == b"%d" % i
        finally:
            stop.set()
            thread.join()


def test_more_than_there_is_room_for_wait_for_their_turn() -> None:
    with serving(echo) as target, proxied(target) as where:
        (pid,) = proxies()
        most = 5 + 9  # four connections, and half of a fifth
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        links = [connect(where) for _ in range(12)]
        for link in links:
            link.sendall(b"x")
        for link in links:
            link.settimeout(scaled(5))
            assert link.recv(1) == b"x"
            link.close()


def test_after_its_end_it_is_refused() -> None:
    with serving(echo) as target:
        with proxied(target) as where, connect(where) as link:
            link.sendall(b"x")
            assert link.recv(1) == b"x"
            assert len(proxies()) == 1
        with pytest.raises(ConnectionRefusedError):
            connect(where)
        assert proxies() == []


def test_addresses_that_are_none_end_it() -> None:
    for target in ("zz", "0", "0" * 200):
        with bound(TCP) as listener:
            listener.listen()
            descriptors = {Slot("stdio", n): dev_null() for n in range(3)}
            plan = compile_proxy(probe.host(), (target,))
            process = spawn(plan, {**descriptors, Slot("pass", 3): listener.fileno()})
            ended = process.wait(scaled(5))
            process.close()
            assert ended is not None
            assert ended.returncode == 125


@pytest.mark.parametrize("count", [1, 24, 25, 60])
def test_any_number_of_ports_are_served(count: int) -> None:
    with contextlib.ExitStack() as stack, serving(echo) as target:
        listeners = [stack.enter_context(bound(TCP)) for _ in range(count)]
        to = ip_address("127.0.0.1"), target.getsockname()[1]
        stack.enter_context(proxy.serve([proxy.Port(one, *to) for one in listeners]))
        assert len(proxies()) == -(-count // 24)
        for i, listener in enumerate(listeners):
            with connect(listener.getsockname()) as link:
                link.sendall(b"%d" % i)
                assert link.recv(10) == b"%d" % i


# -- datagrams --------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Says every datagram again, with who sent it."""
    with bound(UDP, address) as server:
        stop = threading.Event()
        server.settimeout(0.05)

        def loop() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    data, who = server.recvfrom(1 << 16)
                    server.sendto(data, who)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join()


def ask(client: Any, data: bytes) -> bytes:
    client.send(data)
    return bytes(client.recv(1 << 16))


@pytest.mark.parametrize("size", [0, 1, 1400, 60_000])
def test_datagrams_of_any_size_are_answered(size: int) -> None:
    with answering() as server, proxied(server) as where, bound(UDP) as client:
        client.connect(where)
        assert ask(client, b"x" * size) == b"x" * size


def test_each_sender_has_its_own_answers() -> None:
    with answering() as server, proxied(server) as where, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(bound(UDP)) for _ in range(40)]
        for i, client in enumerate(clients):
            client.connect(where)
            client.send(b"%d" % i)
        for i, client in enumerate(clients):
            assert client.recv(10) == b"%d" % i
        for i, client in enumerate(clients):
            assert ask(client, b"again %d" % i) == b"again %d" % i


def test_more_senders_than_are_known_are_answered_too() -> None:
    with answering() as server, proxied(server) as where, bound(UDP) as first:
        first.connect(where)
        assert ask(first, b"x") == b"x"
        for i in range(1100):
            with bound(UDP) as client:
                client.connect(where)
                assert ask(client, b"%d" % i) == b"%d" % i
        assert ask(first, b"still") == b"still"
        (pid,) = proxies()
        if os.geteuid() == 0:  # whose else it is not to see
            assert len(os.listdir(f"/proc/{pid}/fd")) <= 5 + 1024


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_answers_come_from_the_address_that_was_asked(address: str) -> None:
    """Else a program that has connected its socket never sees them."""
    if address == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with answering() as server, proxied(server, address) as (_, port):
        for asked in ("127.0.0.1", "127.0.0.5") if address == "0.0.0.0" else ("::1",):
            with bound(UDP, "::1" if ":" in asked else "127.0.0.1") as client:
                client.connect((asked, port))
                assert ask(client, b"x") == b"x"


def test_where_nobody_listens_nothing_comes_back_until_somebody_does() -> None:
    with bound(UDP) as server:
        target = server.getsockname()
        with bound(UDP) as spare, proxied(server) as where, bound(UDP) as client:
            del spare
            server.close()
            client.connect(where)
            client.settimeout(0.2)
            for _ in range(3):
                client.send(b"x")
                with pytest.raises(TimeoutError):
                    client.recv(10)
            with socket.socket(socket.AF_INET, UDP) as late:
                late.bind(target)
                client.send(b"y")
                late.settimeout(scaled(5))
                data, who = late.recvfrom(10)
                late.sendto(data, who)
                client.settimeout(scaled(5))
                assert client.recv(10) == b"y"
