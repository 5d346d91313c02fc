# SPDX-License-Identifier: Apache-2.0
"""Texts of /etc for a container: hosts, hostname, resolv.conf."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox import etc
from nsbox.netspec import Dns, parse_address, parse_dns, parse_host_aliases

pytestmark = pytest.mark.leaks_ok("values in, texts out")

A, B = parse_address("10.77.0.2", ""), parse_address("fd00:77::2", "")


def test_a_hosts_file_has_this_machine_its_network_and_the_aliases() -> None:
    lines = [etc.host_line(A, "web", "pods.example"), etc.host_line(B, "db", aliases=["sql"])]
    aliases = parse_host_aliases({"192.0.2.1": ["one.example", "one"]})
    assert etc.hosts(lines, aliases) == (
        "# Written by nsbox. Who ends is taken out.\n"
        "127.0.0.1\tlocalhost\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\n"
        "ff02::1\tip6-allnodes\n"
        "ff02::2\tip6-allrouters\n"
        "10.77.0.2\tweb.pods.example web\n"
        "fd00:77::2\tdb sql\n"
        "# host aliases\n"
        "192.0.2.1\tone.example one\n"
    )


def test_without_aliases_nothing_is_said_of_them() -> None:
    assert "aliases" not in etc.hosts()


def test_what_is_written_is_read_back() -> None:
    dns = parse_dns({"nameservers": ["192.0.2.53", "2001:db8::53"], "searches": ["a.b", "c"],
                     "options": ["ndots:2", "edns0"]})  # fmt: skip
    text = etc.resolv_conf(dns, ["a note"])
    assert text.startswith("# a note\nnameserver 192.0.2.53\n")
    assert etc.parse_resolv_conf(text) == (dns, ())
    assert etc.resolv_conf(Dns()) == ""


@pytest.mark.parametrize(
    ("text", "nameservers", "unreachable"),
    [
        pytest.param("nameserver 127.0.0.53", [], ["127.0.0.53"], id="loopback"),
        pytest.param("nameserver ::1", [], ["::1"], id="loopback of IPv6"),
        pytest.param("nameserver fe80::1%eth0", [], ["fe80::1%eth0"], id="link-local"),
        pytest.param("nameserver 169.254.1.1", [], ["169.254.1.1"], id="link-local of IPv4"),
        pytest.param("nameserver 0.0.0.0", [], ["0.0.0.0"], id="this host by another name"),
        pytest.param("nameserver 192.0.2.1 # home", ["192.0.2.1"], [], id="a comment behind it"),
        pytest.param("#nameserver 192.0.2.1\n;nameserver 192.0.2.2", [], [], id="comments"),
        pytest.param("nameserver\nnameserver\t192.0.2.1\n\n", ["192.0.2.1"], [], id="a tab"),
        pytest.param("\n".join(f"nameserver 192.0.2.{n}" for n in range(1, 6)),
                     ["192.0.2.1", "192.0.2.2", "192.0.2.3"], [], id="too many"),
        pytest.param("nameserver nonsense", [], ["nonsense"], id="no address"),
    ],
)  # fmt: skip
def test_name_servers_of_a_host(text: str, nameservers: list[str], unreachable: list[str]) -> None:
    found, left_out = etc.parse_resolv_conf(text)
    assert [str(address) for address in found.nameservers] == nameservers
    assert list(left_out) == unreachable


def test_of_several_domains_the_last_line_counts_and_options_add_up() -> None:
    found, _ = etc.parse_resolv_conf("search a b\noptions ndots:1\ndomain c\noptions edns0\n")
    assert (found.searches, found.options) == (("c",), ("ndots:1", "edns0"))


@given(st.text(max_size=200))
def test_any_text_is_read_and_gives_lines_of_known_words(text: str) -> None:
    found, left_out = etc.parse_resolv_conf(text)
    again = etc.resolv_conf(found, [f"{', '.join(left_out)} left out"])
    for line in again.splitlines():
        assert line.split(" ")[0] in ("#", "nameserver", "search", "options")
    assert etc.parse_resolv_conf(again) == (found, ())


def test_name_servers_that_are_added_come_first_and_options_replace() -> None:
    one = parse_dns({"nameservers": ["192.0.2.1", "192.0.2.2"], "searches": ["a"],
                     "options": ["ndots:1", "edns0"]})  # fmt: skip
    more = parse_dns({"nameservers": ["192.0.2.2", "192.0.2.3", "192.0.2.4"],
                      "searches": ["b", "a"],
                      "options": ["ndots:5"]})  # fmt: skip
    found = etc.merge(one, more)
    assert [str(address) for address in found.nameservers] == [
        "192.0.2.2",
        "192.0.2.3",
        "192.0.2.4",
    ]
    assert (found.searches, found.options) == (("a", "b"), ("ndots:5", "edns0"))
    assert etc.merge(one, Dns()) == one
