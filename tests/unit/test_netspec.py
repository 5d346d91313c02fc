# SPDX-License-Identifier: Apache-2.0
"""What users may write about networks: each wrong value is refused by the name of its field, each
right one means what it says."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox.errors import SpecError
from nsbox.netspec import (
    Dns,
    HostAlias,
    Publish,
    parse_address,
    parse_dns,
    parse_host_aliases,
    parse_name,
    parse_publish,
    parse_subnet,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.leaks_ok("texts in, values out")

V4, V6 = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")
ANY4, ANY6 = ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::")


def refused(call: Callable[[], Any]) -> SpecError:
    with pytest.raises(SpecError) as caught:
        call()
    return caught.value


# -- ports ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "publish"),
    [
        pytest.param("8080:80", [Publish(None, 8080, 80)], id="both ports"),
        pytest.param("127.0.0.1:8080:80", [Publish(V4, 8080, 80)], id="an address"),
        pytest.param("[::1]:8080:80", [Publish(V6, 8080, 80)], id="an IPv6 address"),
        pytest.param("0.0.0.0:8080:80", [Publish(None, 8080, 80)], id="all of IPv4"),
        pytest.param("[::]:8080:80", [Publish(ANY6, 8080, 80)], id="all of IPv6"),
        pytest.param("53:53/udp", [Publish(None, 53, 53, 1, "udp")], id="a protocol"),
        pytest.param("53:53/UDP", [Publish(None, 53, 53, 1, "udp")], id="as Kubernetes writes it"),
        pytest.param("8000-8010:9000-9010/tcp", [Publish(None, 8000, 9000, 11)], id="a range"),
        pytest.param("80", [Publish(None, 0, 80)], id="a port alone"),
        pytest.param(80, [Publish(None, 0, 80)], id="a number"),
        pytest.param("9000-9002", [Publish(None, 0, 9000, 3)], id="a range alone"),
        pytest.param("127.0.0.1::80", [Publish(V4, 0, 80)], id="an address, any port"),
        pytest.param("[::1]::80/udp", [Publish(V6, 0, 80, 1, "udp")], id="an IPv6 one, any port"),
        pytest.param("0:80", [Publish(None, 0, 80)], id="0 is any port"),
        pytest.param(" 8080:80\n", [Publish(None, 8080, 80)], id="white space around it"),
        pytest.param("1:65535", [Publish(None, 1, 65535)], id="the ends"),
        pytest.param((8080, 80), [Publish(None, 8080, 80)], id="a pair"),
        pytest.param([8080, 80], [Publish(None, 0, 8080), Publish(None, 0, 80)], id="two ports"),
        pytest.param((80, 81, 82), [Publish(None, 0, n) for n in (80, 81, 82)], id="three ports"),
        pytest.param(
            ["1:1", (2, 2), 3, Publish(V4, 4, 4)],
            [Publish(None, 1, 1), Publish(None, 2, 2), Publish(None, 0, 3), Publish(V4, 4, 4)],
            id="a list of all kinds",
        ),
        pytest.param(Publish(V6, 4, 4), [Publish(V6, 4, 4)], id="what it was before"),
        pytest.param([], [], id="none"),
        pytest.param(None, [], id="None"),
    ],
)
def test_ports_are_published(value: Any, publish: list[Publish]) -> None:
    assert parse_publish(value) == tuple(publish)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param("", "does not say which port", id="nothing"),
        pytest.param("http", "does not say which port", id="a service"),
        pytest.param("80/sctp", "'sctp' is none of tcp, udp", id="another protocol"),
        pytest.param("80/", "does not say which port", id="no protocol"),
        pytest.param("0", "not a port", id="port 0"),
        pytest.param("80:0", "not a port", id="port 0 inside"),
        pytest.param("65536:80", "not a port", id="too high"),
        pytest.param("65530-65536:1-7", "not a port", id="a range too high"),
        pytest.param("0-3:80-83", "not a port", id="a range from 0"),
        pytest.param("90-80", "not a port", id="a range backwards"),
        pytest.param("80-", "not a port", id="half a range"),
        pytest.param("123456", "not a port", id="too long"),
        pytest.param("8000-8010:80", "11 ports of the host are not 1", id="many on one"),
        pytest.param("80:80-90", "1 ports of the host are not 11", id="one on many"),
        pytest.param("::1:80:80", "does not say which port", id="IPv6 without brackets"),
        pytest.param("[127.0.0.1]:80:80", "in brackets", id="IPv4 in brackets"),
        pytest.param("[]:80:80", "not an address", id="nothing in brackets"),
        pytest.param(":8080:80", "does not say which port", id="an empty address"),
        pytest.param("localhost:80:80", "use 127.0.0.1 or ::1", id="a name"),
        pytest.param("127.0.0.1:80", "does not say which port", id="an address and one port"),
        pytest.param("256.0.0.1:80:80", "not an address", id="no address"),
        pytest.param("127.00.0.1:80:80", "not an address", id="octal or not"),
        pytest.param("[fe80::1%eth0]:80:80", "has a zone", id="a zone"),
        pytest.param("[::ffff:127.0.0.1]:80:80", "use 127.0.0.1", id="IPv4 in IPv6"),
        pytest.param("224.0.0.1:80:80", "multicast", id="multicast"),
        pytest.param("255.255.255.255:80:80", "broadcast", id="broadcast"),
        pytest.param("80\n:80", "does not say which port", id="a newline inside"),
        pytest.param("٨٠", "does not say which port", id="other digits"),
        pytest.param(True, "does not say which port", id="a bool"),
        pytest.param(-1, "not a port", id="a negative number"),
        pytest.param((80, -1), "not a port", id="a negative pair"),
        pytest.param(80.0, "does not say which ports", id="a float"),
        pytest.param(b"80", "does not say which ports", id="bytes"),
        pytest.param({8080: 80}, "does not say which ports", id="a mapping"),
        pytest.param({80}, "does not say which ports", id="a set"),
        pytest.param(Publish(None, 0, 70000), "not a port", id="a wrong one made by hand"),
        pytest.param(Publish(None, 0, 80, 1, "x"), "none of tcp", id="another"),
    ],
)
def test_what_does_not_say_a_port_is_refused(value: Any, why: str) -> None:
    error = refused(lambda: parse_publish(value, "publish"))
    assert error.field == "publish"
    assert why in str(error)


def test_the_one_of_a_list_that_is_wrong_is_named() -> None:
    assert refused(lambda: parse_publish(["80", "x"], "publish")).field == "publish[1]"
    assert refused(lambda: parse_publish([[80]], "publish")).field == "publish[0]"


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        pytest.param("80:80", "80:81", True, id="the same"),
        pytest.param("80:80", "81:80", False, id="two ways to one port"),
        pytest.param("80:80/tcp", "80:80/udp", False, id="of two protocols"),
        pytest.param("80:80", "127.0.0.1:80:81", True, id="all addresses and one"),
        pytest.param("0.0.0.0:80:80", "127.0.0.1:80:81", True, id="all of IPv4 and one"),
        pytest.param("0.0.0.0:80:80", "[::1]:80:81", False, id="all of IPv4 and one of IPv6"),
        pytest.param("80:80", "[fd00::1]:80:81", False, id="all of IPv4 as ever and one of IPv6"),
        pytest.param("80:80", "[::]:80:80", False, id="all of both versions"),
        pytest.param("127.0.0.1:80:80", "127.0.0.2:80:80", False, id="two addresses"),
        pytest.param("[::]:80:80", "[fd00::1]:80:80", True, id="all of IPv6 and one"),
        pytest.param("70-90:70-90", "90:1", True, id="the end of a range"),
        pytest.param("70-90:70-90", "91:1", False, id="behind a range"),
        pytest.param("70-90:70-90", "60-70:60-70", True, id="two ranges"),
        pytest.param("80", "80", False, id="any ports"),
        pytest.param("80:80", "80", False, id="any port and one"),
    ],
)
def test_ports_of_the_host_are_published_once(one: str, other: str, overlap: bool) -> None:
    for pair in ([one, other], [other, one]):
        if not overlap:
            assert len(parse_publish(pair)) == 2
            continue
        error = refused(lambda pair=pair: parse_publish(pair))  # type: ignore[misc]
        assert error.field == "publish[1]"
        assert "overlaps publish[0]" in str(error)


PUBLISHES = st.builds(
    lambda address, ends, host, protocol: Publish(
        address, host and min(host, 65536 - (ends[1] - ends[0] + 1)), ends[0],
        ends[1] - ends[0] + 1, protocol,
    ),
    st.none() | st.just(ANY6) | st.ip_addresses().filter(lambda a: not a.is_multicast and not (
        a.version == 6 and a.ipv4_mapped) and a != ANY4),
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: tuple(sorted(pair))),
    st.integers(0, 65535), st.sampled_from(["tcp", "udp"]),
)  # fmt: skip


@given(PUBLISHES)
def test_what_is_shown_is_read_back(publish: Publish) -> None:
    assert parse_publish(str(publish)) == (publish,)


@given(st.lists(PUBLISHES, max_size=6))
def test_a_list_is_taken_if_no_two_overlap(several: list[Publish]) -> None:
    """By a model that tries every port and address."""

    def held(one: Publish) -> set[tuple[str, int, str]]:
        names = {None: "all4", ANY6: "all6"}
        where = {names.get(one.address, str(one.address))}
        ports = range(one.host_port, one.host_port + one.count) if one.host_port else ()
        return {(place, port, one.protocol) for place in where for port in ports}

    def version(place: str) -> int:
        return int(place[3]) if place.startswith("all") else ipaddress.ip_address(place).version

    def clash(one: Publish, other: Publish) -> bool:
        ports = {(p, proto) for _, p, proto in held(one)} & {
            (p, proto) for _, p, proto in held(other)}  # fmt: skip
        return bool(ports) and any(
            a == b or ("all" in a + b and version(a) == version(b))
            for a in {place for place, *_ in held(one)}
            for b in {place for place, *_ in held(other)}
        )

    bad = any(clash(a, b) for i, a in enumerate(several) for b in several[:i])
    if bad:
        refused(lambda: parse_publish(several))
    else:
        assert parse_publish(several) == tuple(several)


@given(st.text(max_size=24) | st.integers() | st.lists(st.text(alphabet="0123456789:-/[].tcp")))
def test_anything_is_published_or_refused(value: Any) -> None:
    try:
        found = parse_publish(value)
    except SpecError:
        return
    for one in found:
        assert 1 <= one.port <= one.port + one.count - 1 <= 65535
        assert one.host_port == 0 or one.host_port + one.count - 1 <= 65535


# -- subnets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "version"),
    [
        pytest.param("10.77.0.0/24", 4, id="a /24"),
        pytest.param("10.77.0.0/16", 4, id="the largest"),
        pytest.param("10.77.0.4/30", 4, id="the smallest"),
        pytest.param("fd00:77::/64", 6, id="a /64"),
        pytest.param("fd00:77::100/120", 6, id="the smallest of IPv6"),
        pytest.param("FD00:0077:0::/64", 6, id="written otherwise"),
        pytest.param(" 10.77.0.0/24 ", 4, id="white space"),
        pytest.param(ipaddress.ip_network("10.77.0.0/24"), 4, id="a network of ipaddress"),
    ],
)
def test_a_subnet_is_one(value: Any, version: int) -> None:
    found = parse_subnet(value, "subnet", version)
    assert found == ipaddress.ip_network(str(value).strip())
    assert found.version == version


@pytest.mark.parametrize(
    ("value", "version", "why"),
    [
        pytest.param("10.77.0.5/24", 4, "did you mean 10.77.0.0/24?", id="host bits"),
        pytest.param("fd00:77::1/64", 6, "did you mean fd00:77::/64?", id="host bits of IPv6"),
        pytest.param("10.77.0.0", 4, "no prefix length", id="no prefix"),
        pytest.param("10.77.0.0/255.255.255.0", 4, "no prefix length", id="a mask"),
        pytest.param("10.77.0.0/0.0.0.255", 4, "no prefix length", id="a wildcard"),
        pytest.param("10.76.0.0/15", 4, "not in /16 to /30", id="too large"),
        pytest.param("10.77.0.5/8", 4, "not in /16 to /30", id="too large, and a host"),
        pytest.param("10.77.0.0/31", 4, "not in /16 to /30", id="too small"),
        pytest.param("fd00::/48", 6, "not in /64 to /120", id="too large for IPv6"),
        pytest.param("fd00::/121", 6, "not in /64 to /120", id="too small for IPv6"),
        pytest.param("127.5.0.0/16", 4, "is loopback", id="loopback"),
        pytest.param("169.254.7.0/24", 4, "is link-local", id="link-local"),
        pytest.param("224.7.0.0/24", 4, "is multicast", id="multicast"),
        pytest.param("240.7.0.0/24", 4, "is reserved", id="reserved"),
        pytest.param("255.255.255.0/24", 4, "is reserved", id="broadcast"),
        pytest.param("0.1.0.0/16", 4, "is no network", id="of this network"),
        pytest.param("::/64", 6, "loopback or reserved", id="loopback of IPv6"),
        pytest.param("::ffff:0:0/96", 6, "loopback or reserved", id="IPv4 in IPv6"),
        pytest.param("fe80:1::/64", 6, "is link-local", id="link-local of IPv6"),
        pytest.param("ff05::/64", 6, "is multicast", id="multicast of IPv6"),
        pytest.param("fd00::%eth0/64", 6, "no prefix length", id="a zone"),
        pytest.param("fd00::/64", 4, "is IPv6, not IPv4", id="the other version"),
        pytest.param("10.77.0.0/24", 6, "is IPv4, not IPv6", id="the other version too"),
        pytest.param("10.77.0.0/33", 4, "is not a subnet", id="an impossible prefix"),
        pytest.param("10.77.0/24", 4, "is not a subnet", id="half an address"),
        pytest.param("host/24", 4, "is not a subnet", id="a name"),
        pytest.param("", 4, "is not a subnet", id="nothing"),
        pytest.param(10, 4, "is not a subnet", id="a number"),
        pytest.param(None, 4, "is not a subnet", id="None"),
        pytest.param(b"10.77.0.0/24", 4, "is not a subnet", id="bytes"),
    ],
)
def test_what_is_no_subnet_for_containers_is_refused(value: Any, version: int, why: str) -> None:
    error = refused(lambda: parse_subnet(value, "subnet6", version))
    assert error.field == "subnet6"
    assert why in str(error)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_any_ipv4_network_is_a_subnet_or_refused(address: Any, prefix: int) -> None:
    network = ipaddress.ip_network((address, prefix), strict=False)
    try:
        found = parse_subnet(str(network), "subnet", 4)
    except SpecError:
        usable = 16 <= prefix <= 30 and 1 <= int(address) >> 24 <= 223
        special = network.is_loopback or network.is_link_local
        assert not usable or special, network
    else:
        assert found == network
        assert not any((found[1].is_loopback, found[1].is_multicast, found[1].is_link_local))


# -- names ------------------------------------------------------------------------------------


def test_addresses_are_checked_by_field() -> None:
    assert parse_address("::1", "address") == parse_address(V6, "address") == V6
    for wrong in ("", "x", 5, None, "fe80::1%lo", "::ffff:1.2.3.4", b"::1"):
        assert refused(lambda wrong=wrong: parse_address(wrong, "address")).field == "address"  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["a", "web-1", "A1", "x" * 63, "a.b-c.d", ".".join(["a" * 49] * 5)]
)
def test_a_name_is_one(name: str) -> None:
    assert parse_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", ".a", "a..b", "-a", "a-", "x" * 64, "a_b", "a b", "a\n", "ä", "a#b",
     ".".join(["a" * 49] * 6), None, 5, b"a"],
)  # fmt: skip
def test_what_is_no_name_is_refused(name: Any) -> None:
    assert refused(lambda: parse_name(name, "name")).field == "name"


@given(st.text(max_size=80))
def test_a_name_that_is_taken_is_one_word(name: str) -> None:
    try:
        parse_name(name, "name")
    except SpecError:
        return
    assert name.isascii()
    assert name.split() == [name]
    assert not name.startswith("#")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"192.0.2.1": ["a", "b.c"]}, id="a mapping"),
        pytest.param([{"ip": "192.0.2.1", "hostnames": ["a", "b.c"]}], id="as Kubernetes has it"),
        pytest.param([HostAlias(parse_address("192.0.2.1", ""), ("a", "b.c"))], id="as it was"),
    ],
)
def test_aliases_are_names_of_an_address(value: Any) -> None:
    assert parse_host_aliases(value) == (HostAlias(parse_address("192.0.2.1", ""), ("a", "b.c")),)
    assert parse_host_aliases(None) == ()


@pytest.mark.parametrize(
    ("value", "field"),
    [
        pytest.param({"x": ["a"]}, "host_aliases[0].ip", id="no address"),
        pytest.param({"192.0.2.1": ["a", "b\n"]}, "host_aliases[0].hostnames[1]", id="no name"),
        pytest.param({"192.0.2.1": []}, "host_aliases[0].hostnames", id="without a name"),
        pytest.param({"192.0.2.1": "a"}, "host_aliases[0].hostnames", id="a string"),
        pytest.param([{"ip": "192.0.2.1"}], "host_aliases[0]", id="half of one"),
        pytest.param(["192.0.2.1 a"], "host_aliases[0]", id="a line"),
        pytest.param("192.0.2.1", "host_aliases", id="a string alone"),
        pytest.param(5, "host_aliases", id="a number"),
    ],
)
def test_what_is_no_alias_is_refused_by_field(value: Any, field: str) -> None:
    assert refused(lambda: parse_host_aliases(value)).field == field


ONE = parse_address("192.0.2.53", "")


@pytest.mark.parametrize(
    ("value", "dns"),
    [
        pytest.param(["192.0.2.53"], Dns((ONE,)), id="a list"),
        pytest.param([ONE, "192.0.2.53", "::1"], Dns((ONE, V6)), id="addresses, one of them twice"),
        pytest.param([], Dns(), id="none"),
        pytest.param({"nameservers": ["192.0.2.53"], "searches": ["a.example", "_x.b.", "."],
                      "options": ["ndots:2", {"name": "edns0"}, {"name": "attempts", "value": "3"},
                                  {"name": "timeout", "value": 1}]},
                     Dns((ONE,), ("a.example", "_x.b.", "."),
                         ("ndots:2", "edns0", "attempts:3", "timeout:1")), id="a mapping"),
        pytest.param({"searches": None, "options": []}, Dns(), id="an empty mapping"),
        pytest.param(Dns((ONE,), ("a",)), Dns((ONE,), ("a",)), id="a Dns"),
    ],
)  # fmt: skip
def test_dns_is_understood(value: Any, dns: Dns) -> None:
    assert parse_dns(value) == dns


@pytest.mark.parametrize(
    ("value", "field"),
    [
        pytest.param("192.0.2.53", "dns", id="a string"),
        pytest.param(None, "dns", id="None"),
        pytest.param(["dns.example"], "dns[0]", id="a name"),
        pytest.param(["192.0.2.53", "224.0.0.251"], "dns[1]", id="multicast"),
        pytest.param(["0.0.0.0"], "dns[0]", id="no address"),
        pytest.param(["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"], "dns", id="too many"),
        pytest.param({"nameserver": []}, "dns", id="an unknown key"),
        pytest.param({"nameservers": ["x"]}, "dns.nameservers[0]", id="a name in a mapping"),
        pytest.param({"searches": "a"}, "dns.searches", id="one domain as a string"),
        pytest.param({"searches": ["a b"]}, "dns.searches[0]", id="no domain"),
        pytest.param(
            {"searches": ["a\nnameserver 6.6.6.6"]}, "dns.searches[0]", id="a second line"
        ),
        pytest.param({"searches": [5]}, "dns.searches[0]", id="a number"),
        pytest.param({"searches": ["a"] * 33}, "dns.searches", id="too many domains"),
        pytest.param({"searches": [".".join(["a" * 60] * 4)] * 10}, "dns.searches", id="too long"),
        pytest.param({"options": ["a b"]}, "dns.options[0]", id="two words"),
        pytest.param({"options": ["ndots:"]}, "dns.options[0]", id="half an option"),
        pytest.param({"options": [{"value": "1"}]}, "dns.options[0]", id="a value without a name"),
        pytest.param({"options": [{"name": "a", "value": "\n"}]}, "dns.options[0]", id="a newline"),
        pytest.param({"options": "ndots:2"}, "dns.options", id="one option as a string"),
    ],
)
def test_what_is_wrong_in_dns_is_refused_by_field(value: Any, field: str) -> None:
    assert refused(lambda: parse_dns(value)).field == field
