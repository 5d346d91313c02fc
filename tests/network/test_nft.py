# SPDX-License-Identifier: Apache-2.0
"""Transactions of nf_tables: whole or not at all, as nft(8) has them, and gone with their owner."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from network.nftkit import GATEWAY, GATEWAY6, SUBNET, SUBNET6, TESTS, Net, apart, network, tables
from support import poll_until, scaled

from nsbox import nft
from nsbox.netallow import parse_allow
from nsbox.netrules import HostPort, Published, egress_table, explain, network_table, published
from nsbox.nftmsg import HEADER, Message, Table, attribute, batch

PUBLISHED = [
    Published(IPv4Address("10.77.0.2"), 80, 8080),
    Published(IPv4Address("10.77.0.2"), 80, 9000, count=3, host=IPv4Address("192.0.2.1")),
    Published(IPv6Address("fd77::2"), 53, 53, "udp"),
    Published(IPv6Address("fd77::2"), 53, 53, "udp", 2, IPv6Address("2001:db8::1")),
]
ALLOWED = [
    "10.0.0.0/8", "192.0.2.7:443", "[2001:db8::1]:443", "192.0.2.7:53/udp", ":443", "::/0",
    "2001:db8::/33", "172.16.0.0/12:8000-8080", ":1-65535/udp", "0.0.0.0/0",
]  # fmt: skip


def _network(name: str = "nsbt", **options: object) -> list[Message]:
    given = {"subnet6": SUBNET6, "gateway6": GATEWAY6, "host_ports": [HostPort(53, "udp")],
             "publish": PUBLISHED, **options}  # fmt: skip
    return network_table(name, "nsb0", SUBNET, GATEWAY, **given)  # type: ignore[arg-type]


def _egress(**options: object) -> list[Message]:
    return egress_table("nsbe", [parse_allow(text) for text in ALLOWED], **options)  # type: ignore[arg-type]


# -- the witness ------------------------------------------------------------------------------


def _spread(command: str) -> str:
    """With the elements of a range one by one, as nft(8) takes them."""
    found = re.fullmatch(r"(.* )(\d+)-(\d+)( : .* )(\d+)-\d+( })", command)
    if found is None or " element " not in command:
        return command
    before, first, last, between, other, after = found.groups()
    key = before.rpartition("{ ")[2]
    each = [f"{key if i else ''}{int(first) + i}{between}{int(other) + i}"
            for i in range(int(last) - int(first) + 1)]  # fmt: skip
    return before + ", ".join(each) + after


@pytest.mark.nft
@network
def test_the_bytes_are_those_of_nft_for_the_same_words() -> None:
    """One namespace gets our messages, the other our words by nft(8): both list the same."""
    ours, theirs = Net(current=True), Net()
    for options in ({}, {"nat": False}, {"isolated": False}, {"subnet6": None}):
        given = {"owner": False, **options}
        if "subnet6" in options:
            given["publish"] = [one for one in PUBLISHED if one.address.version == 4]
        for messages in (_network(**given), _egress(owner=False)):
            words = "\n".join(_spread(line) for line in explain(messages).splitlines())
            theirs.run("nft", "-f", "-", stdin=words)
            with ours.nft() as sock:
                nft.transact(sock, messages)
        for how in (("-n", "list"), ("-a", "list"), ("-j", "list")):
            assert ours.run("nft", *how, "ruleset") == theirs.run("nft", *how, "ruleset")
        listed = ours.run("nft", "list", "ruleset")
        assert listed.count("elements = ") == (4 if "subnet6" not in options else 2)
        for net in (ours, theirs):
            net.run("nft", "flush", "ruleset")


EXPECTED = """\
table inet nsbe {
	chain allow {
		ip daddr 10.0.0.0/8 accept
		ip daddr 192.0.2.7 tcp dport 443 accept
		ip6 daddr 2001:db8::1 tcp dport 443 accept
		ip daddr 192.0.2.7 udp dport 53 accept
		tcp dport 443 accept
		ip6 daddr ::/0 accept
		ip6 daddr 2001:db8::/33 accept
		ip daddr 172.16.0.0/12 tcp dport 8000-8080 accept
		udp dport 1-65535 accept
		ip daddr 0.0.0.0/0 accept
	}

	chain output {
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
		ct state established,related ct direction reply accept
		icmpv6 type nd-router-solicit accept
		icmpv6 type nd-neighbor-solicit accept
		icmpv6 type nd-neighbor-advert accept
		icmpv6 type mld2-listener-report accept
		jump allow
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related ct direction reply accept
		jump allow
		reject with icmpx admin-prohibited
	}
}
"""


@pytest.mark.nft
@network
def test_nft_lists_what_was_meant() -> None:
    here = Net(current=True)
    with here.nft() as sock:
        nft.transact(sock, _egress(owner=False))
    assert here.run("nft", "list", "ruleset") == EXPECTED


# -- whole, or not at all ---------------------------------------------------------------------


@pytest.mark.nft
@network
def test_nothing_is_left_and_what_was_there_is_untouched() -> None:
    here = Net(current=True)
    here.run("nft", "-f", "-", stdin="""
        table inet theirs { chain c { type filter hook input priority 0; tcp dport 22 accept; }; }
        table ip nsbt { set s { type ipv4_addr; elements = { 10.0.0.1 }; }; }
    """)  # fmt: skip
    before = here.rules(), here.run("nft", "-j", "list", "ruleset")
    with here.nft() as sock:
        nft.transact(sock, [*_network(), *_egress()])
        assert {"nsbt", "nsbe"} <= set(tables(here))
        broken = [*_network("nsbx"), *published("nsbx", PUBLISHED[0])]
        with pytest.raises(FileExistsError, match=f"in change {len(broken)} of {len(broken)}"):
            nft.transact(sock, broken)
        assert tables(here) == ["theirs", "nsbt", "nsbt", "nsbe"]
        nft.transact(sock, [Table("nsbt").delete(), Table("nsbe").delete()])
        assert (here.rules(), here.run("nft", "-j", "list", "ruleset")) == before
        nft.transact(sock, [*_network(), *_egress()])
    assert (here.rules(), here.run("nft", "-j", "list", "ruleset")) == before


@network
def test_the_first_that_is_refused_is_named() -> None:
    with Net(current=True).nft() as sock:
        good, bad = Table("nsbt"), Table("nsbu")
        with pytest.raises(FileNotFoundError) as caught:
            nft.transact(sock, [good.add(), bad.chain("one"), bad.chain("two"), good.chain("c")])
        assert str(caught.value) == (
            "[Errno 2] No such file or directory, in change 2 of 4: 'add chain inet nsbu one'"
        )
        nft.transact(sock, [])
        assert nft.tables(sock) == []


@network
def test_what_the_kernel_says_about_it_is_passed_on() -> None:
    with Net(current=True).nft() as sock:
        table = Table("nsbt")
        unknown = table.base_chain("input", 0, kind="nosuchtype")
        with pytest.raises(OSError, match="add chain inet nsbt input") as caught:
            nft.transact(sock, [table.add(), unknown])
        assert caught.value.errno == errno.ENOENT
        answer = nft._Answer(2, 0x300, 1, struct.pack("=i16x", -22) + attribute(1, b"too long\0"))
        said = nft._refusal(answer, [table.add()])
        assert said.strerror == "Invalid argument (too long), in change 1 of 1"


@network
def test_without_the_privilege_the_error_says_so() -> None:
    with Net(current=True).nft() as sock:
        nft.transact(sock, [Table("nsbt").add()])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        code = (
            "import sys; from nsbox import nft; from nsbox.nftmsg import Table\n"
            "try: nft.transact(int(sys.argv[1]), [Table('nsbt').delete()])\n"
            "except PermissionError as e: print(e)"
        )
        done = subprocess.run(
            ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code,
             str(sock.fileno())],
            capture_output=True, text=True, pass_fds=[sock.fileno()], cwd=TESTS.parent,
        )  # fmt: skip
        assert "Operation not permitted: '1 changes of nf_tables'" in done.stdout, done.stderr
        assert len(nft.tables(sock)) == 1


# -- the socket -------------------------------------------------------------------------------


@network
def test_a_descriptor_will_do_and_stays_open() -> None:
    with Net(current=True).nft() as sock:
        nft.transact(sock.fileno(), [Table("nsbt").add(owner=True)])
        nft.transact(sock, [Table("nsbt").chain("c")])
        (found,) = nft.tables(sock.fileno())
        assert found == ("inet", "nsbt", 2, sock.getsockname()[0])


@network
def test_many_thousand_changes_fit_into_one_transaction() -> None:
    with Net(current=True).nft() as sock:
        nft.transact(sock, _network(publish=[]))
        count = 60000 if os.geteuid() == 0 and _initial() else 8000
        every = Published(IPv6Address("fd77::2"), 1, 1, count=count)
        nft.transact(sock, published("nsbt", every))
        with pytest.raises(FileExistsError):
            nft.transact(sock, published("nsbt", Published(IPv6Address("fd77::3"), 1, count)))
        nft.transact(sock, published("nsbt", every, delete=True))
        nft.transact(sock, published("nsbt", Published(IPv6Address("fd77::3"), 1, count)))


def _initial() -> bool:
    return Path("/proc/self/uid_map").read_text().split()[2] == "4294967295"


@network
def test_more_errors_than_the_socket_holds_are_one_error_about_the_first() -> None:
    with Net(current=True).nft() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lost = [Table("nsbu").chain(f"c{i}") for i in range(3000)]
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match=r"in change 1 of 3000: .* nsbu c0"):
                nft.transact(sock, lost)
        nft.transact(sock, [Table("nsbt").add()])


@network
def test_answers_that_nobody_waited_for_are_not_taken_for_others() -> None:
    with Net(current=True).nft() as sock:
        sock.send(batch([Table("nsbt").add()]))  # and then, say, KeyboardInterrupt
        with pytest.raises(FileExistsError):
            nft.transact(sock, [Table("nsbt").add()])
        sock.send(batch([Table("nsbu").chain("c")]))
        nft.transact(sock, [Table("nsbt").delete()])


@network
def test_an_answer_that_is_not_the_kernels_is_not_believed() -> None:
    """Who has CAP_NET_ADMIN in the namespace can send to our socket, such as its payload."""
    here = Net(current=True)
    with here.nft() as sock, here.nft() as liar:
        nft.transact(sock, [Table("nsbt").add()])
        port = sock.getsockname()[0]
        stop = threading.Event()

        def lie() -> None:
            fake = HEADER.pack(36, 2, 0, 1, port) + struct.pack("=i", -13) + bytes(16)
            while not stop.wait(0.0001):  # a flood would leave no room for the true answer
                liar.sendto(fake, (port, 0))

        thread = threading.Thread(target=lie)
        thread.start()
        try:
            for _ in range(300):
                nft.transact(sock, [Table("nsbu").add()])
                assert len(nft.tables(sock)) == 2
                nft.transact(sock, [Table("nsbu").delete()])
        finally:
            stop.set()
            thread.join()


@network
def test_threads_may_share_a_socket() -> None:
    with Net(current=True).nft() as sock:
        failed: list[BaseException] = []

        def work(number: int) -> None:
            table = Table(f"nsbt{number}")
            try:
                for _ in range(15):
                    nft.transact(sock, [table.add(), table.chain("c")])
                    with pytest.raises(FileExistsError, match=table.name):
                        nft.transact(sock, [table.add()])
                    assert table.name in [one.name for one in nft.tables(sock)]
                    nft.transact(sock, [table.delete()])
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


@network
def test_tables_are_listed_with_families_and_owners_however_many() -> None:
    here = Net(current=True)
    with here.nft() as sock, here.nft() as other:
        assert nft.tables(sock) == []
        many = [
            Table(f"nsbt{number}", family) for number in range(400) for family in ("ip", "inet")
        ]
        nft.transact(sock, [table.add() for table in many])
        nft.transact(other, [Table("own").add(owner=True)])
        found = nft.tables(sock)
        assert {(one.family, one.name) for one in found} == {
            *((table.family, table.name) for table in many), ("inet", "own"),
        }  # fmt: skip
        assert {(one.name, one.flags, one.owner) for one in found if one.owner} == {
            ("own", 2, other.getsockname()[0])
        }


# -- the owner --------------------------------------------------------------------------------


@network
def test_a_table_goes_with_its_owner_even_by_sigkill() -> None:
    with Net(current=True).nft() as sock:
        code = (
            "from nsbox import nft; from nsbox.nftmsg import Table; import time\n"
            "sock = nft.open_socket(); table = Table('nsbt')\n"
            "nft.transact(sock, [table.add(owner=True), table.chain('c')])\n"
            "print('made', flush=True); time.sleep(600)"
        )
        owner = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=TESTS.parent
        )
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "made\n"
            (found,) = nft.tables(sock)
            assert (found.name, found.flags) == ("nsbt", 2)
            for change in (Table("nsbt").delete(), Table("nsbt").chain("mine")):
                with pytest.raises(PermissionError, match="inet nsbt"):
                    nft.transact(sock, [change])
        finally:
            owner.send_signal(signal.SIGKILL)
            owner.communicate()
        poll_until(lambda: nft.tables(sock) == [], what="the table")


@pytest.mark.nft
@network
def test_nobody_flushes_an_owned_table() -> None:
    here = Net(current=True)
    with here.nft() as sock:
        nft.transact(sock, _egress())
        here.run("nft", "flush", "ruleset")
        assert tables(here) == ["nsbe"]


@network
def test_a_copy_of_the_descriptor_keeps_the_table() -> None:
    here = Net(current=True)
    with here.nft() as watch:
        sock = here.nft()
        nft.transact(sock, [Table("nsbt").add(owner=True)])
        copy = os.dup(sock.fileno())
        sock.close()
        assert len(nft.tables(watch)) == 1
        os.close(copy)
        assert nft.tables(watch) == []


# -- how long it takes ------------------------------------------------------------------------


@network
def test_a_network_is_made_within_milliseconds() -> None:
    here = Net(current=True)
    with here.nft() as sock:
        took = []
        for _ in range(20):
            start = time.perf_counter()
            nft.transact(sock, _network())
            took.append(time.perf_counter() - start)
            nft.transact(sock, [Table("nsbt").delete()])
        assert min(took) < scaled(0.02), took


@pytest.mark.userns
@pytest.mark.kernel("user")
def test_in_a_user_namespace() -> None:
    apart(test_a_table_goes_with_its_owner_even_by_sigkill, user=True)
    apart(test_many_thousand_changes_fit_into_one_transaction, user=True)
