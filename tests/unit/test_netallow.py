# SPDX-License-Identifier: Apache-2.0
"""What a sandbox may reach, as text: one meaning, or an error that says what is wrong."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nsbox.errors import SpecError
from nsbox.netallow import AllowEntry, parse_allow

pytestmark = pytest.mark.leaks_ok("text in, values out")

V4, V6 = IPv4Network, IPv6Network


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("10.0.0.0/8", AllowEntry(V4("10.0.0.0/8"))),
        ("192.0.2.7", AllowEntry(V4("192.0.2.7/32"))),
        ("192.0.2.7/32", AllowEntry(V4("192.0.2.7/32"))),
        ("0.0.0.0/0", AllowEntry(V4("0.0.0.0/0"))),
        ("::/0", AllowEntry(V6("::/0"))),
        ("2001:db8::1", AllowEntry(V6("2001:db8::1/128"))),
        ("[2001:db8::1]", AllowEntry(V6("2001:db8::1/128"))),
        ("2001:db8::/32", AllowEntry(V6("2001:db8::/32"))),
        ("[2001:db8::/32]", AllowEntry(V6("2001:db8::/32"))),
        ("192.0.2.7:443", AllowEntry(V4("192.0.2.7/32"), (443, 443))),
        ("192.0.2.7:443/tcp", AllowEntry(V4("192.0.2.7/32"), (443, 443))),
        ("192.0.2.7:53/udp", AllowEntry(V4("192.0.2.7/32"), (53, 53), "udp")),
        ("10.0.0.0/8:8000-8080", AllowEntry(V4("10.0.0.0/8"), (8000, 8080))),
        ("[2001:db8::1]:443", AllowEntry(V6("2001:db8::1/128"), (443, 443))),
        ("[2001:db8::/32]:53/udp", AllowEntry(V6("2001:db8::/32"), (53, 53), "udp")),
        (":443", AllowEntry(None, (443, 443))),
        (":1-65535/udp", AllowEntry(None, (1, 65535), "udp")),
        # as ipaddress, and the whole world, read it: no port without brackets
        ("2001:db8::1:443", AllowEntry(V6("2001:db8::1:443/128"))),
    ],
)
def test_an_entry_means_one_thing(text: str, entry: AllowEntry) -> None:
    assert parse_allow(text) == entry
    assert parse_allow(str(entry)) == entry


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing to reach"),
        (":", "no address"),
        ("[]", "no address"),
        ("[]:443", "no address"),
        ("example.com", "no address"),
        ("example.com:443", "no address"),
        ("localhost", "no address"),
        ("10.0.0.0/33", "/0 to /32"),
        ("2001:db8::/129", "/0 to /128"),
        ("10.0.0.0/", "/0 to /32"),
        ("10.0.0.0/255.0.0.0", "/0 to /32"),
        ("10.0.0.0/-1", "/0 to /32"),
        ("10.1.0.0/8", "did you mean 10.0.0.0/8"),
        ("2001:db8::1/32", "did you mean 2001:db8::/32"),
        ("10.0.0", "no address"),
        ("010.0.0.1", "no address"),
        ("167772161", "no address"),
        ("0x0a000001", "no address"),
        (" 10.0.0.1", "no address"),
        ("10.0.0.1\n", "no address"),
        ("10.0.0.1:443\n", "no address"),
        ("fe80::1%eth0", "no zone"),
        ("[fe80::1%eth0]:80", "no zone"),
        ("::ffff:10.0.0.1", "write 10.0.0.1"),
        ("[::ffff:10.0.0.1]:80", "write 10.0.0.1"),
        ("[10.0.0.1]:80", "without brackets"),
        ("10.0.0.1:0", "1 to 65535"),
        ("10.0.0.1:65536", "1 to 65535"),
        ("10.0.0.1:99999", "1 to 65535"),
        ("10.0.0.1:90-80", "the lower one first"),
        ("10.0.0.1:", "no address"),
        ("10.0.0.1:http", "no address"),
        ("10.0.0.1:80/sctp", "no address"),
        ("10.0.0.1:80/", "no address"),
        ("10.0.0.1/tcp", "/0 to /32"),
        ("10.0.0.1:٤٤٣", "no address"),
        ("*:443", "no address"),
        ("https://10.0.0.1", "no address"),
    ],
)
def test_what_means_nothing_is_refused(text: str, why: str) -> None:
    with pytest.raises(SpecError, match=f"(?s)^egress.allow\\[3\\]: .*{why}") as caught:
        parse_allow(text, "egress.allow[3]")
    assert caught.value.field == "egress.allow[3]"


@pytest.mark.parametrize("value", [None, 443, b"10.0.0.1", ["10.0.0.1"], V4("10.0.0.0/8")])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match=r"allow: .* is not text"):
        parse_allow(value)


ports = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda p: (min(p), max(p)))
networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda p: V4(p, strict=False)),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(lambda p: V6(p, strict=False)),
).filter(lambda n: n.version == 4 or n.network_address.ipv4_mapped is None)
entries = st.one_of(
    st.builds(AllowEntry, networks),
    st.builds(AllowEntry, st.none() | networks, ports, st.sampled_from(["tcp", "udp"])),
)


@given(entries)
def test_an_entry_is_read_as_it_was_written(entry: AllowEntry) -> None:
    assert parse_allow(str(entry)) == entry


@given(st.text() | st.text(alphabet="0123456789abcdef.:/[]-%udptc", max_size=40))
@example("[::1]:443/udp")
def test_text_is_an_entry_or_an_error_about_its_field(text: str) -> None:
    try:
        entry = parse_allow(text, "allow[0]")
    except SpecError as error:
        entry, field = None, error.field
    if entry is None:
        assert field == "allow[0]"
        return
    assert parse_allow(str(entry)) == entry
    assert entry.network is not None or entry.ports is not None


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_no_entry_is_wider_than_its_text(number: int, prefix: int) -> None:
    """What was not written as a whole network is not taken for one."""
    text = f"{IPv4Address(number)}/{prefix}"
    try:
        network = parse_allow(text).network
    except SpecError:
        assert int(V4((number, prefix), strict=False).network_address) != number
    else:
        assert network == V4((number, prefix))


def test_an_address_of_ipv6_has_many_forms() -> None:
    for text in ("2001:DB8::1", "2001:0db8:0:0:0:0:0:1", "[2001:db8::0001]"):
        assert parse_allow(text).network == V6(IPv6Address("2001:db8::1"))
