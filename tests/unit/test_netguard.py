# SPDX-License-Identifier: Apache-2.0
"""Who is who on a bridge, as text: what a port may say, and what goes with its lease."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from nsbox.errors import SpecError
from nsbox.netguard import Member, guard_table, guarded
from nsbox.netrules import explain

pytestmark = pytest.mark.leaks_ok("values in, text out")

A = Member("nsbp", "02:00:00:00:00:01", (IPv4Address("10.77.0.2"), IPv6Address("fd77::2")))


def test_ports_of_the_group_alone_are_looked_at_and_what_is_left_is_dropped() -> None:
    said = explain(guard_table("g", 77)).splitlines()
    rules = [line.partition(" prerouting ")[2] for line in said if line.startswith("add rule")]
    assert rules[0] == "meta iifgroup != 77 accept"
    assert rules[1] == "iifname . ether saddr != @macs drop"
    assert rules[-1] == "drop"
    # Nobody is let through by its address before it was heard what it says of others.
    known = rules.index("ether type ip6 iifname . ip6 saddr @six accept")
    for what in ("nd-neighbor-advert iifname . nd target != @six", "nd-router-advert",
                 "nd-redirect"):  # fmt: skip
        rule = f"ether type ip6 meta l4proto ipv6-icmp icmpv6 type {what} drop"
        assert rules.index(rule) < known


def test_the_table_goes_with_its_owner_unless_not_asked() -> None:
    assert explain(guard_table("g", 1)).startswith("create table bridge g { flags owner; }\n")
    assert explain(guard_table("g", 1, owner=False)).startswith("create table bridge g\n")


@pytest.mark.parametrize(("delete", "verb"), [(False, "add"), (True, "delete")])
def test_a_port_has_its_addresses_and_the_one_of_its_link(delete: bool, verb: str) -> None:
    assert explain(guarded("g", A, delete=delete)).splitlines() == [
        f'{verb} element bridge g macs {{ "nsbp" . 02:00:00:00:00:01 }}',
        f'{verb} element bridge g four {{ "nsbp" . 10.77.0.2 }}',
        f'{verb} element bridge g six {{ "nsbp" . fd77::2, "nsbp" . fe80::ff:fe00:1 }}',
    ]


def test_the_keys_are_padded_as_the_kernel_compares_them() -> None:
    macs, four, six = guarded("g", A)
    port = b"nsbp" + bytes(12)
    assert port + bytes.fromhex("020000000001") + bytes(2) in macs.body
    assert port + bytes((10, 77, 0, 2)) in four.body
    assert port + IPv6Address("fd77::2").packed in six.body
    assert port + IPv6Address("fe80::ff:fe00:1").packed in six.body


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError):
        guard_table("a b", 1)
    with pytest.raises(SpecError):
        list(guarded("g", Member("x" * 16, A.mac, ())))
