# SPDX-License-Identifier: Apache-2.0
"""One loopback and one port space for all containers of a pod, and for nobody else."""

from __future__ import annotations

import socket
from textwrap import indent
from typing import TYPE_CHECKING

import pytest
from pod.kit import python, wait_log
from support import scaled

import nsbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.userns


def serve(port: int, word: str) -> str:
    """Answers every connection with *word*."""
    return f"""
import socket
server = socket.create_server(("127.0.0.1", {port}))
print("listening", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"{word}\\n")
    client.close()
"""


def fetch(port: int) -> str:
    """Says what the server answered, as soon as there is one."""
    return f"""
import socket, time
while True:
    try:
        with socket.create_connection(("127.0.0.1", {port}), 5) as server:
            print("got " + server.makefile().read(), end="", flush=True)
        time.sleep(1000)
    except ConnectionRefusedError:
        time.sleep(0.01)
"""


def bind(port: int) -> str:
    """Says why the port cannot be bound."""
    return f"""
import errno, socket, time
try:
    socket.create_server(("127.0.0.1", {port}))
    print("bound", flush=True)
except OSError as e:
    print(errno.errorcode[e.errno], flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def pod() -> Iterator[nsbox.Pod]:
    with nsbox.Pod("web", [python("server", serve(80, "first"))]) as pod:
        wait_log(pod["server"], "listening")
        yield pod


@pytest.mark.kernel
def test_localhost_reaches_the_other_container_and_port_80_needs_no_privilege() -> None:
    containers = [python("server", serve(80, "hello")), python("client", fetch(80))]
    with nsbox.Pod("web", containers) as pod:
        assert wait_log(pod["client"], "\n") == "got hello\n"
        assert wait_log(pod["server"], "\n") == "listening\n"


def test_two_containers_cannot_have_one_port() -> None:
    first = nsbox.Sidecar("first", ["python3", "-SIuc", serve(80, "first")])
    second = python("second", wait_for(80) + bind(80))
    with nsbox.Pod("web", [second], init_containers=[first]) as pod:
        assert wait_log(pod["second"], "\n") == "EADDRINUSE\n"


HOLDER = nsbox.Sidecar("first", ["python3", "-SIuc", serve(80, "first")])


@pytest.mark.kernel
def test_a_port_conflict_says_which_container_holds_the_port() -> None:
    second = python("second", wait_for(80) + "socket.create_server(('127.0.0.1', 80))")
    with nsbox.Pod("web", [second], init_containers=[HOLDER], restart_policy="Never") as pod:
        assert pod.wait(scaled(15)) == "Failed"
        state = pod["second"].state
    assert (state.reason, state.exit_code) == ("Error", 1)
    assert "port 80 (tcp) is held by container 'first' (process " in state.message
    assert [e for e in pod.events if e.reason == "Died" and state.message in e.message]
    assert state.message in str(pod)


def test_no_port_is_blamed_for_another_failure() -> None:
    second = python("second", wait_for(80) + "raise SystemExit('port 80 is not to my liking')")
    with nsbox.Pod("web", [second], init_containers=[HOLDER], restart_policy="Never") as pod:
        assert pod.wait(scaled(15)) == "Failed"
        assert pod["second"].state.message == ""


def test_only_the_port_that_was_asked_for_is_named() -> None:
    other = nsbox.Sidecar("other", ["python3", "-SIuc", serve(81, "other")])
    code = wait_for(80) + wait_for(81) + "socket.create_server(('127.0.0.1', 81))"
    init = [HOLDER, other]
    explained = python("second", f"try:\n{indent(code, '  ')}\nexcept OSError as e:\n"
                       "  raise SystemExit(f'cannot bind port 81: {e}')")  # fmt: skip
    with nsbox.Pod("web", [explained], init_containers=init, restart_policy="Never") as pod:
        assert pod.wait(scaled(15)) == "Failed"
        message = pod["second"].state.message
    assert "port 81 (tcp) is held by container 'other'" in message
    assert "first" not in message


def wait_for(port: int) -> str:
    return f"""
import socket, time
while True:
    try:
        socket.create_connection(("127.0.0.1", {port}), 5).close()
        break
    except ConnectionRefusedError:
        time.sleep(0.01)
"""


def test_a_port_of_one_pod_is_free_in_another(pod: nsbox.Pod) -> None:
    containers = [python("server", serve(80, "second")), python("client", fetch(80))]
    with nsbox.Pod("other", containers) as other:
        assert wait_log(other["client"], "\n") == "got second\n"


def test_a_pod_without_a_server_does_not_reach_that_of_another(pod: nsbox.Pod) -> None:
    code = """
import socket, time
try:
    socket.create_connection(("127.0.0.1", 80), 5)
except OSError as e:
    print(type(e).__name__, flush=True)
time.sleep(1000)
"""
    with nsbox.Pod("other", [python("client", code)]) as other:
        assert wait_log(other["client"], "\n") == "ConnectionRefusedError\n"


def test_the_host_does_not_reach_the_pod() -> None:
    with socket.socket() as free:  # a port that nobody else of this host listens at
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with nsbox.Pod("web", [python("server", serve(port, "hello"))]) as pod:
        wait_log(pod["server"], "listening")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), scaled(5))


def test_there_is_only_a_loopback(pod: nsbox.Pod) -> None:
    code = "import socket, time; print(socket.if_nameindex(), flush=True); time.sleep(1000)"
    with nsbox.Pod("other", [python("a", code)]) as other:
        assert wait_log(other["a"], "\n") == "[(1, 'lo')]\n"


def test_what_listens_outlives_the_crash_of_another_container() -> None:
    containers = [python("server", serve(80, "hello")), python("client", fetch(80))]
    with nsbox.Pod("web", containers, backoff=nsbox.Backoff.fast()) as pod:
        wait_log(pod["client"], "got hello\n")
        server = pod["server"].pid
        pod["client"].kill()
        pod["client"].wait_restarted(1, scaled(10))
        wait_log(pod["client"], "got hello\n", 2)  # of both attempts
        assert (pod["server"].pid, pod["server"].restart_count) == (server, 0)
