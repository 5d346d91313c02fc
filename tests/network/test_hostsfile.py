# SPDX-License-Identifier: Apache-2.0
"""A hosts file that changes while others read it: each of its lines is whole or not there."""

from __future__ import annotations

import ipaddress
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import poll_until, scaled

import nsbox
from nsbox import hostsfile, registry
from nsbox.errors import SpecError, StateError
from nsbox.netspec import Dns, parse_dns, parse_host_aliases

A, B = ipaddress.ip_address("10.77.0.2"), ipaddress.ip_address("10.77.0.3")
SIX = ipaddress.ip_address("fd00:77::2")


def members(file: hostsfile.HostsFile) -> list[str]:
    """Its lines but comments and those of every such file, without white space at their ends."""
    lines = Path(file.path).read_text().splitlines()
    return [line.rstrip() for line in lines if not line.startswith("#")][4:]


def test_members_come_and_go() -> None:
    with hostsfile.HostsFile.create() as file:
        assert "127.0.0.1\tlocalhost\n" in Path(file.path).read_text()
        file.add(A, "web")
        file.add(B, "db", "nsbox.example")
        assert members(file) == ["10.77.0.2\tweb", "10.77.0.3\tdb.nsbox.example db"]
        file.remove(A, "web")
        file.remove(A, "web")
        assert members(file) == ["10.77.0.3\tdb.nsbox.example db"]
        path = file.path
    assert not os.path.exists(path)


def test_one_name_can_have_several_addresses_and_one_address_several_names() -> None:
    with hostsfile.HostsFile.create() as file:
        for address in (A, B, SIX):
            file.add(address, "web")
        file.add(A, "other")
        assert members(file) == [
            "10.77.0.2\tweb", "10.77.0.3\tweb", "fd00:77::2\tweb", "10.77.0.2\tother",
        ]  # fmt: skip
        with pytest.raises(StateError) as caught:
            file.add(A, "web")
        assert caught.value.status == "exists"
        file.remove(B, "web")
        assert members(file) == ["10.77.0.2\tweb", "fd00:77::2\tweb", "10.77.0.2\tother"]


def test_aliases_are_in_it_from_the_start() -> None:
    aliases = parse_host_aliases({"192.0.2.1": ["one.example", "one"]})
    with hostsfile.HostsFile.create(aliases) as file:
        file.add(A, "web")
        assert members(file) == ["192.0.2.1\tone.example one", "10.77.0.2\tweb"]


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\tb", "-a", "a-", "a..b", "é", "x" * 64, 5])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with hostsfile.HostsFile.create() as file:
        before = Path(file.path).read_bytes()
        for call in (lambda: file.add(A, name), lambda: file.add(A, "web", name or "-")):
            with pytest.raises(SpecError):
                call()
        assert Path(file.path).read_bytes() == before


def test_a_place_is_used_again_when_nobody_can_be_reading_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hostsfile.HostsFile.create() as file:
        file.add(A, "web")
        file.remove(A, "web")
        size = os.path.getsize(file.path)
        file.add(A, "web")
        assert os.path.getsize(file.path) > size, "not at once"
        monkeypatch.setattr(hostsfile, "_REST_S", 0.0)
        size = os.path.getsize(file.path)
        file.add(B, "db")
        assert os.path.getsize(file.path) == size
        assert members(file) == ["10.77.0.3\tdb", "10.77.0.2\tweb"]
        file.add(B, "a-longer-name")
        assert os.path.getsize(file.path) > size


def test_everybody_may_read_it_whatever_the_umask() -> None:
    old = os.umask(0o077)
    try:
        with hostsfile.HostsFile.create() as file:
            assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o644
    finally:
        os.umask(old)


def test_a_closed_one_says_so() -> None:
    file = hostsfile.HostsFile.create()
    file.close()
    file.close()
    with pytest.raises(StateError, match="closed"):
        file.add(A, "web")


def test_one_that_is_forgotten_is_warned_about() -> None:
    file = hostsfile.HostsFile.create()
    path = file.path
    with pytest.warns(ResourceWarning, match="was not closed"):
        del file
    assert not os.path.exists(path)


# -- readers ----------------------------------------------------------------------------------

#: Reads in pieces of so many bytes, until its time is over; prints how often, and what was wrong.
READER = """
import os, re, sys, time
path, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
right = re.compile(r"10\\.77\\.(\\d+)\\.(\\d+)\\tm\\1-\\2\\.example m\\1-\\2 *")
fixed = {"127.0.0.1\\tlocalhost", "10.77.0.2\\tm0-2.example m0-2",
         "10.77.255.9\\tm255-9.example m255-9"}
known = fixed | {"::1\\tlocalhost ip6-localhost ip6-loopback", "ff02::1\\tip6-allnodes",
                 "ff02::2\\tip6-allrouters"}
end, count, wrong, seen = time.monotonic() + seconds, 0, [], set()
print("reads", flush=True)
while time.monotonic() < end and not wrong:
    fd, text = os.open(path, os.O_RDONLY), b""
    while part := os.read(fd, size):
        text += part
    os.close(fd)
    lines = [line for line in text.decode().split("\\n") if line and not line.startswith("#")]
    wrong = [line for line in lines if line not in known and not right.fullmatch(line)]
    wrong += fixed - {line.rstrip() for line in lines}
    seen.update(lines)
    count += 1
print(count, len(seen), *map(repr, wrong))
"""


def test_readers_never_see_half_a_line_nor_an_empty_file() -> None:
    """Two members stay, others come and go as fast as can be, in lines of all lengths."""
    seconds = 3.0
    with hostsfile.HostsFile.create() as file:
        file.add(A, "m0-2", "example")
        file.add(ipaddress.ip_address("10.77.255.9"), "m255-9", "example")
        readers = [
            subprocess.Popen([sys.executable, "-c", READER, file.path, str(size), str(seconds)],
                             stdout=subprocess.PIPE, text=True)
            for size in (1024, 4096, 1 << 20)
        ]  # fmt: skip
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reads\n"
        end, number = time.monotonic() + seconds - 0.5, 0
        held: list[tuple[Any, str]] = []
        while time.monotonic() < end:
            number += 1
            high, low = number % 254, number * 7 % 200 + 10
            member = (ipaddress.ip_address(f"10.77.{high}.{low}"), f"m{high}-{low}")
            if member not in held:
                file.add(*member, "example")
                held.append(member)
            if len(held) > 20:
                file.remove(*held.pop(number % 20))
            time.sleep(0.0003)
        said = [reader.communicate(timeout=scaled(30))[0] for reader in readers]
    for line in said:
        count, seen, *wrong = line.split(maxsplit=2)
        assert not wrong, line
        assert int(count) > 30, line
        assert int(seen) > 20, line


@pytest.mark.userns
def test_a_container_sees_who_comes_and_goes_and_cannot_write_it() -> None:
    with hostsfile.HostsFile.create() as file:
        file.add(A, "web")
        mount = nsbox.Mount.bind(file.path, "/etc/hosts")
        with nsbox.Container(["sleep", "1000"], mounts=[mount]) as container:

            def inside(*args: str) -> str:
                done = container.exec(list(args), capture_output=True, text=True)
                return str(done.stdout + done.stderr)

            resolve = ("/usr/bin/python3", "-SIc",
                       "import socket, sys; print(socket.gethostbyname(sys.argv[1]))")  # fmt: skip
            assert inside(*resolve, "web") == "10.77.0.2\n"
            assert "gaierror" in inside(*resolve, "db")
            file.add(B, "db", "nsbox.example")
            assert inside(*resolve, "db") == inside(*resolve, "db.nsbox.example") == "10.77.0.3\n"
            file.remove(A, "web")
            assert "gaierror" in inside(*resolve, "web")
            before = Path(file.path).read_bytes()
            assert "cannot create" in inside("sh", "-c", "echo 6.6.6.6 db > /etc/hosts")
            assert Path(file.path).read_bytes() == before


# -- its end ----------------------------------------------------------------------------------

OWNER = """
import os, sys, time
from nsbox import hostsfile, launcher, registry
file = hostsfile.HostsFile.create()
while not (found := [o.launcher for o in registry.owners() if o.pid == os.getpid()]):
    time.sleep(0.01)  # it has not come to its lock yet
print(file.path, *found, flush=True)
if sys.argv[1] == "fork":
    if os.fork() == 0:
        for verb in (lambda: file.add("10.0.0.1", "x"), file.close):
            try: verb()
            except Exception as e: print(e.status, flush=True)
        os._exit(0)
    os.wait()
    print(os.path.exists(file.path), flush=True)
    file.close()
time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["owner", "both"])
def test_it_goes_with_its_owner_and_else_by_gc(how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, how], stdout=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        assert process.stdout is not None
        path, guardian = process.stdout.readline().split()
        assert os.path.exists(path)
        if how == "both":
            assert int(guardian) > 1
            os.kill(int(guardian), signal.SIGKILL)
        process.kill()
        process.wait()

        def gone() -> bool:
            if how == "both":
                nsbox.gc()
            return not os.path.exists(path)

        poll_until(gone, 10, what=path)
    prefix = os.path.basename(path).rpartition("-")[0].rpartition("-")[0]
    poll_until(lambda: not [n for n in os.listdir(registry.directory()) if n.startswith(prefix)], 5)


def test_it_is_not_a_forked_child_s() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, "fork"], stdout=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        assert process.stdout is not None
        path, _ = process.stdout.readline().split()
        assert [process.stdout.readline() for _ in range(2)] == ["foreign\n", "True\n"]
        poll_until(lambda: not os.path.exists(path), 5)
        process.kill()


# -- name servers -----------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the host's files: resolv.conf, and systemd-resolved's."""
    monkeypatch.setattr(hostsfile, "_RESOLV_CONF", str(tmp_path / "resolv.conf"))
    monkeypatch.setattr(hostsfile, "_UPSTREAM", (str(tmp_path / "resolved"), str(tmp_path / "nm")))

    def write(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    return write


def test_the_host_s_name_servers_are_taken_over(host: Any) -> None:
    host(resolv_conf="# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"
                     "domain old\nsearch a.example b.example\noptions ndots:2 edns0\n")  # fmt: skip
    for policy in ("Default", "ClusterFirst"):
        found = hostsfile.resolv_conf(policy)
        assert found.left_out == ()
        assert found.text == (
            "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a.example b.example\n"
            "options ndots:2 edns0\n"
        )


def test_instead_of_one_on_loopback_those_that_it_asks_are_taken(host: Any) -> None:
    host(resolv_conf="nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n",
         resolved="nameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch lan\n")  # fmt: skip
    found = hostsfile.resolv_conf()
    assert found == ("nameserver 192.0.2.1\nsearch lan\noptions edns0\n", ("127.0.0.53",))


def test_networkmanager_s_is_known_too(host: Any) -> None:
    host(resolv_conf="nameserver 127.0.0.1\n", nm="nameserver 192.0.2.1\n")
    assert hostsfile.resolv_conf().text == "nameserver 192.0.2.1\n"


def test_where_none_can_be_reached_the_file_says_so(host: Any) -> None:
    host(resolv_conf="nameserver 127.0.0.1\nnameserver ::1\nnameserver 0.0.0.0\n")
    found = hostsfile.resolv_conf()
    assert found.left_out == ("127.0.0.1", "::1", "0.0.0.0")
    assert found.text == (
        "# 127.0.0.1, ::1, 0.0.0.0 of the host cannot be reached from this network\n"
    )


def test_one_beside_others_is_left_out(host: Any) -> None:
    host(resolv_conf="nameserver 127.0.0.1\nnameserver 192.0.2.53\n",
         resolved="nameserver 192.0.2.1\n")  # fmt: skip
    found = hostsfile.resolv_conf()
    assert found == ("nameserver 192.0.2.53\n", ("127.0.0.1",))


def test_a_host_without_the_file(host: Any) -> None:
    assert hostsfile.resolv_conf() == ("", ())


def test_what_the_user_says_is_added_or_stands_alone(host: Any) -> None:
    host(resolv_conf="nameserver 192.0.2.53\nsearch lan\noptions ndots:2 edns0\n")
    dns = parse_dns({"nameservers": ["192.0.2.9"], "searches": ["a.example"],
                     "options": ["ndots:5"]})  # fmt: skip
    assert hostsfile.resolv_conf("Default", dns).text == (
        "nameserver 192.0.2.9\nnameserver 192.0.2.53\nsearch lan a.example\noptions ndots:5 edns0\n"
    )
    assert hostsfile.resolv_conf("None", dns).text == (
        "nameserver 192.0.2.9\nsearch a.example\noptions ndots:5\n"
    )


@pytest.mark.parametrize(
    ("policy", "dns", "field"),
    [("None", None, "dns"), ("None", Dns(), "dns"), ("default", None, "dns_policy")],
)
def test_a_wrong_policy_is_refused(policy: str, dns: Dns | None, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        hostsfile.resolv_conf(policy, dns)
    assert caught.value.field == field


def test_this_host_s_own_file_is_understood() -> None:
    found = hostsfile.resolv_conf()
    for line in found.text.splitlines():
        assert line.split()[0] in ("nameserver", "search", "options", "#")
        if line.startswith("nameserver"):
            assert not ipaddress.ip_address(line.split()[1]).is_loopback
