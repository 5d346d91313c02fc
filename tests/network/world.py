# SPDX-License-Identifier: Apache-2.0
"""A host with an outside, both network namespaces, in which the library runs.

    container ---- bridge | host 192.0.2.1 ---- 192.0.2.2 outside, 198.51.100.7
                          |      2001:db8::1    2001:db8::2

The body of such a test runs in an interpreter of its own, whose network is the host's. When it
has ended all is compared with how it was: links, routes, rules, settings, files.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import importlib
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from network import peer
from support import poll_until, scaled

import nsbox
from nsbox import later, registry
from nsbox import syscalls as sc
from nsbox.syscalls import Clone, MountFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Test = TypeVar("Test", bound="Callable[..., None]")

TESTS = Path(__file__).resolve().parents[1]
HOST, OUTSIDE, BEYOND = "192.0.2.1", "192.0.2.2", "198.51.100.7"
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"
SUBNET, SUBNET6 = "10.77.0.0/24", "fd00:77::/64"
GATEWAY, GATEWAY6 = "10.77.0.1", "fd00:77::1"
NEVER_S = 0.5
"""How long an answer that must not come is waited for; each such test has a twin where it comes."""
TEXT = Path(peer.__file__).read_text()
LIMIT_S = 50.0
RESOLV = Path("/run/resolv.conf")
"""What the library takes for the host's /etc/resolv.conf."""

# -- running elsewhere ------------------------------------------------------------------------


def elsewhere(test: Test) -> Test:
    """The body runs as root in namespaces of its own; it may ask for parameters, but no fixture."""

    @pytest.mark.root
    @functools.wraps(test)
    def wrapper(**parameters: Any) -> None:
        for program in ("ip", "nft", "ping"):
            if shutil.which(program) is None:
                pytest.fail(f"{program} is not installed: tools/packages.sh run")
        module = Path(inspect.getfile(test)).stem
        run_elsewhere(module, test.__name__, parameters)

    return wrapper  # type: ignore[return-value]


def run_elsewhere(module: str, name: str, parameters: dict[str, Any]) -> None:
    code = f"import sys; sys.path[:0] = [{str(TESTS)!r}]; from network.world import main; main()"
    argv = [sys.executable, "-W", "error", "-c", code, module, name, json.dumps(parameters)]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=scaled(60)
    )
    if done.returncode or done.stderr:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)


def main() -> None:
    """By the interpreter that ``run_elsewhere`` starts."""
    module, name, parameters = sys.argv[1:]
    faulthandler.dump_traceback_later(scaled(LIMIT_S), exit=True)
    sc.unshare(Clone.NEWNS | Clone.NEWNET)
    sc.mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
    sc.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    RESOLV.touch()  # no name servers: what is not in /etc/hosts is unknown at once
    sc.mount(str(RESOLV), "/etc/resolv.conf", None, MountFlag.BIND)
    body = inspect.unwrap(getattr(importlib.import_module(f"network.{module}"), name))
    world.make()
    before = world.look()
    body(**json.loads(parameters))
    assert later.settle(scaled(10)), "deletions are under way"
    assert not (left := difference(before, world.look())), "\n".join(left)
    faulthandler.cancel_dump_traceback_later()


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as before, line by line."""
    found = []
    for what in before:
        one, other = (set(_lines(seen[what])) for seen in (before, after))
        found += [f"{what}: no more: {line}" for line in sorted(one - other)]
        found += [f"{what}: now: {line}" for line in sorted(other - one)]
        if before[what] != after[what] and one == other:
            found.append(f"{what}: in another order")
    return found


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name} {what}" for name, what in value.items()]
    return value.splitlines() if isinstance(value, str) else list(map(str, value))


# -- namespaces -------------------------------------------------------------------------------


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Net:
    """A network namespace. This thread enters it for a moment: sockets stay where they are made."""

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd
        if fd < 0:
            home = _here()
            sc.unshare(Clone.NEWNET)
            self.fd = _here()
            sc.setns(home, Clone.NEWNET)
            os.close(home)
        self.ip("link set lo up")
        self.setting("ipv6/conf/default/accept_dad", 0)  # else an address takes a second

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        home = _here()
        sc.setns(self.fd, Clone.NEWNET)
        try:
            yield
        finally:
            sc.setns(home, Clone.NEWNET)
            os.close(home)

    def run(self, *args: str, stdin: str = "") -> str:
        with self.inside():
            done = subprocess.run(args, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, f"{args} {stdin}: {done.stderr}"
        return done.stdout

    def ip(self, *commands: str) -> None:
        """One line of ip(8) each."""
        self.run("ip", "-batch", "-", stdin="\n".join(commands))

    def setting(self, name: str, value: Any = None) -> str:
        """Of /proc/sys/net."""
        path = Path("/proc/sys/net", name)
        with self.inside():
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    def asks(self, to: Any, port: int, kind: str = "tcp", patience_s: float = 5.0) -> str:
        """What is answered there, or the error; see peer.py."""
        with self.inside():
            return peer.ask(kind, str(to), port, scaled(patience_s))[0]

    @contextlib.contextmanager
    def serves(
        self, port: int, kind: str = "tcp", name: str = "it", address: str = "0.0.0.0"
    ) -> Iterator[socket.socket]:
        """A server there, while the block lasts."""
        with self.inside():
            listening = peer.listen(kind, port, address)
        thread = threading.Thread(target=peer.serve, args=(listening, name))
        thread.start()
        try:
            yield listening
        finally:
            with contextlib.suppress(OSError):  # of UDP it is not connected, and yet woken
                listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            listening.close()


class World:
    """The host and the outside."""

    host: Net
    outside: Net

    def make(self) -> None:
        """Before that there is no network namespace but the machine's."""
        self.host, self.outside = Net(_here()), Net()
        # With the same index at both ends it would be no pair to linkwatch: ready after a second.
        self.host.ip(f"link add out0 index 100 type veth peer name eth0 netns {self.outside_path}")
        self.outside.ip(
            "addr add 192.0.2.2/24 dev eth0", "addr add 2001:db8::2/64 dev eth0 nodad",
            "link set eth0 up", "addr add 198.51.100.7/32 dev lo",
        )  # fmt: skip
        self.host.ip(
            "addr add 192.0.2.1/24 dev out0", "addr add 2001:db8::1/64 dev out0 nodad",
            "link set out0 up", "route add default via 192.0.2.2",
            "route add default via 2001:db8::2",
        )  # fmt: skip
        poll_until(lambda: links()["out0"]["operstate"] == "UP", what="out0 is up")

    @property
    def outside_path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.outside.fd}"

    def look(self) -> dict[str, Any]:
        """All that a network of nsbox's could leave on the host."""
        run = self.host.run
        return {
            "links": links(),
            "addresses": re.sub(r"(valid|preferred)_lft.*", "", run("ip", "addr")),
            "routes": run("ip", "route", "show", "table", "all"),
            "routes6": run("ip", "-6", "route", "show", "table", "all"),
            "rules": run("nft", "list", "ruleset"),
            "rules as JSON": run("nft", "-j", "list", "ruleset"),
            "settings": settings(),
            "files": sorted(name for name in os.listdir(registry.directory())
                            if name != "ids" and not name.endswith("-lock")),
            "pins": sorted(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else [],
            "threads": sorted(one.name for one in threading.enumerate()
                              if not one.name.startswith("nsbox-")),
        }  # fmt: skip


world = World()


def links() -> dict[str, dict[str, Any]]:
    """Name -> what else ip(8) says of it, of the host."""
    listed = json.loads(world.host.run("ip", "-j", "-d", "link"))
    return {one["ifname"]: one for one in listed}


def settings() -> dict[str, bytes | int]:
    """Every file below /proc/sys/net/ipv4 and ipv6; the error's number of one that has no value.

    Without those that count or that the kernel itself changes.
    """
    found: dict[str, bytes | int] = {}
    for version in ("ipv4", "ipv6"):
        for where, _, names in os.walk(f"/proc/sys/net/{version}"):
            for name in names:
                try:
                    found[f"{where}/{name}"] = Path(where, name).read_bytes()
                except OSError as e:
                    found[f"{where}/{name}"] = e.errno or 0
    return found


def tables() -> list[str]:
    """Family and name of each, as nft(8) says them."""
    # Not as JSON: nft 1.0.6 breaks down over two tables that have an owner.
    lines = world.host.run("nft", "list", "tables").splitlines()
    return sorted(line.removeprefix("table ") for line in lines)


# -- containers -------------------------------------------------------------------------------


def python(*words: Any) -> list[str]:
    """The command of peer.py; without site, which is most of what Python takes to start."""
    return ["python3", "-SIuc", TEXT, *map(str, words)]


def idle(name: str, net: Any, **keywords: Any) -> nsbox.Container:
    """A container that only is there, to ask from."""
    return nsbox.Container(["sleep", "1000"], name=name, net=net, **keywords)


@contextlib.contextmanager
def server(
    name: str, net: Any, port: int = 80, kind: str = "tcp", at: str = "0.0.0.0", **keywords: Any
) -> Iterator[nsbox.Container]:
    """A container that answers."""
    command = python("serve", kind, port, name, at)
    with nsbox.Container(command, name=name, net=net, **keywords) as made:
        wait_ready(made)
        yield made


def wait_ready(container: Any) -> None:
    try:
        poll_until(lambda: "ready" in container.logs(), 15, every_s=0.005)
    except AssertionError:
        raise AssertionError(f"{container!r} says {container.logs()!r}") from None


Question = tuple[str, Any, int]
"""(kind, address, port)"""


def timed_all(container: Any, questions: list[Question], patience_s: float) -> list[Any]:
    words = [word for question in questions for word in question]
    done = container.exec(python("ask", scaled(patience_s), *words), capture_output=True, text=True)
    assert done.returncode == 0, done
    return [tuple(one) for one in json.loads(done.stdout)]


def timed(
    container: Any, to: Any, port: int, kind: str = "tcp", patience_s: float = 5.0
) -> tuple[str, float]:
    """What a container is answered there, or the error, and after how many seconds."""
    answer: tuple[str, float] = timed_all(container, [(kind, to, port)], patience_s)[0]
    return answer


def asks(container: Any, to: Any, port: int, kind: str = "tcp", patience_s: float = 5.0) -> str:
    return timed(container, to, port, kind, patience_s)[0]


def answered(container: Any, questions: list[Question], patience_s: float) -> list[Question]:
    """Those that do not meet silence; all are asked at once."""
    answers = timed_all(container, questions, patience_s)
    return [(*question, answer) for question, (answer, _) in zip(questions, answers, strict=True)
            if answer != "silence"]  # fmt: skip


def never(who: Any, to: Any, port: int, kind: str = "tcp") -> bool:
    """Nothing comes: who asks, a container or a Net, is not even refused."""
    question = who.asks if isinstance(who, Net) else functools.partial(asks, who)
    return question(to, port, kind, NEVER_S) == "silence"


def pings(container: Any, to: Any, wait_s: float = 3) -> bool:
    """If an answer comes: ping(8)."""
    words = ["ping", "-n", "-c1", f"-W{scaled(wait_s):g}", str(to)]
    done = container.exec(words, capture_output=True, text=True)
    assert done.returncode in (0, 1), done
    return done.returncode == 0


def output(container: Any, *args: str) -> str:
    done = container.exec(list(args), capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


@contextlib.contextmanager
def raises(kind: Any, field: str = "") -> Iterator[list[str]]:
    """The block raises it; the text is the list's element afterwards."""
    said: list[str] = []
    with pytest.raises(kind) as caught:
        yield said
    error = caught.value
    said.append(str(error))
    assert not field or getattr(error, "field", getattr(error, "feature", "")) == field, error


def number(e: OSError) -> str:
    return errno.errorcode[e.errno or 0]
