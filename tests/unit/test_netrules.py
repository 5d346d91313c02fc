# SPDX-License-Identifier: Apache-2.0
"""Rule sets as text: what each option adds or leaves out; and values that do not fit."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from nsbox.errors import SpecError
from nsbox.netallow import parse_allow
from nsbox.netrules import (
    HostPort,
    Published,
    egress_table,
    explain,
    network_table,
    published,
)

pytestmark = pytest.mark.leaks_ok("values in, text out")

A, A6 = IPv4Address("10.77.0.2"), IPv6Address("fd77::2")
BOTH = {"subnet6": IPv6Network("fd77::/64"), "gateway6": IPv6Address("fd77::1")}


def lines(**options: Any) -> set[str]:
    messages = network_table("net", "nsb0", IPv4Network("10.77.0.0/24"), IPv4Address("10.77.0.1"),
                             **options)  # fmt: skip
    said = explain(messages).splitlines()
    assert len(said) == len(messages) == len(set(said))
    return {line.replace(" inet net", "") for line in said}


def test_the_table_goes_with_its_owner_unless_not_asked() -> None:
    assert "create table { flags owner; }" in lines()
    assert "create table" in lines(owner=False)


@pytest.mark.parametrize(
    ("options", "more", "less"),
    [
        pytest.param({"nat": False}, set(),
                     {'add rule postrouting iifname "nsb0" oifname != "nsb0" masquerade'},
                     id="without nat"),
        pytest.param({"isolated": False}, set(),
                     {'add rule forward oifname "nsb0" ct state established,related accept',
                      'add rule forward oifname "nsb0" ct status dnat accept',
                      'add rule forward oifname "nsb0" drop'},
                     id="not isolated"),
        pytest.param(BOTH,
                     {"add rule guard ip6 saddr fd77::/64 accept",
                      "add rule guard ip6 saddr fd77::1 drop",
                      'add rule postrouting ip6 saddr fd77::/64 oifname "nsb0" ct status dnat '
                      "masquerade"}, set(),
                     id="with IPv6"),
        pytest.param({"host_ports": [HostPort(22), HostPort(53, "udp")]},
                     {"add rule input ip daddr 10.77.0.1 tcp dport 22 accept",
                      "add rule input ip daddr 10.77.0.1 udp dport 53 accept"}, set(),
                     id="ports of the host"),
        pytest.param({"ports": 77}, {"add rule guard meta iifgroup 77 drop"}, set(),
                     id="ports of the bridge"),
        pytest.param({"publish": [Published(A, 80, 8080), Published(A6, 1, 9001, "udp", 9)]},
                     {"add element any4 { tcp . 8080 : 10.77.0.2 . 80 }",
                      "add element any6 { udp . 9001-9009 : fd77::2 . 1-9 }"}, set(),
                     id="published ports"),
    ],
)  # fmt: skip
def test_an_option_adds_and_leaves_out(
    options: dict[str, Any], more: set[str], less: set[str]
) -> None:
    assert lines(**options) - lines() == more
    assert lines() - lines(**options) == less


def test_the_last_rule_for_the_host_refuses() -> None:
    messages = network_table("net", "nsb0", IPv4Network("10.77.0.0/24"), IPv4Address("10.77.0.1"),
                             host_ports=[HostPort(22)])  # fmt: skip
    said = explain(messages).splitlines()
    for chain in ("guard", "input"):
        mine = [line for line in said if line.startswith(f"add rule inet net {chain} ")]
        assert mine[-1] == f"add rule inet net {chain} drop"
        assert mine[0] == f'add rule inet net {chain} iifname != "nsb0" accept'


def test_a_port_is_added_and_deleted_by_its_key() -> None:
    entry = Published(A, 80, 8080, host=IPv4Address("192.0.2.1"))
    assert explain(published("net", entry)) == (
        "add element inet net at4 { 192.0.2.1 . tcp . 8080 : 10.77.0.2 . 80 }"
    )
    assert explain(published("net", entry, delete=True)) == (
        "delete element inet net at4 { 192.0.2.1 . tcp . 8080 : 10.77.0.2 . 80 }"
    )


def test_everywhere_is_a_map_of_its_own_and_the_loopback_of_ipv6_no_rule() -> None:
    entry = Published(A6, 80, 8080, host=IPv6Address("::"))
    assert explain(published("net", entry)) == (
        "add element inet net any6 { tcp . 8080 : fd77::2 . 80 }"
    )
    assert published("net", Published(A6, 80, 8080, host=IPv6Address("::1"))) == []


def test_what_may_be_reached_is_in_one_chain() -> None:
    entries = [parse_allow(text) for text in ("10.0.0.0/8", "[2001:db8::1]:443", ":53/udp")]
    said = explain(egress_table("out", entries)).splitlines()
    assert [line for line in said if " allow " in line] == [
        "add rule inet out allow ip daddr 10.0.0.0/8 accept",
        "add rule inet out allow ip6 daddr 2001:db8::1 tcp dport 443 accept",
        "add rule inet out allow udp dport 53 accept",
    ]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"port": 0}, "1 to 65535"),
        ({"port": 65536}, "1 to 65535"),
        ({"host_port": 65535, "count": 2}, "1 to 65535"),
        ({"port": 65535, "count": 2}, "1 to 65535"),
        ({"count": 0}, "1 to 65535"),
        ({"protocol": "icmp"}, "use tcp or udp"),
        ({"host": A6}, "cannot be translated"),
    ],
)
def test_what_cannot_be_published_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        Published(**{"address": A, "port": 80, "host_port": 8080, **values})
    assert caught.value.field == "publish"


def test_other_values_that_do_not_fit() -> None:
    for options, field in (({"name": "a b"}, "name"), ({"bridge": "x" * 16}, "bridge"),
                           ({"subnet6": BOTH["subnet6"]}, "gateway6")):  # fmt: skip
        with pytest.raises(SpecError) as caught:
            network_table(**{"name": "n", "bridge": "b", "subnet": IPv4Network("10.0.0.0/8"),
                             "gateway": IPv4Address("10.0.0.1"), **options})  # fmt: skip
        assert caught.value.field == field
    with pytest.raises(SpecError, match="use tcp or udp"):
        HostPort(53, "dns")  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        egress_table("", [])
