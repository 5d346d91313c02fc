# SPDX-License-Identifier: Apache-2.0
"""Messages of nf_tables are the bytes that the kernel's headers say, and their words are nft's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import scaled

from nsbox import nftmsg, nftrule
from nsbox.errors import SpecError
from nsbox.nftmsg import Table, attributes, batch
from nsbox.nftrule import EXPRESSIONS, Selector, ct_state, iifname, ip_daddr, oifname, tcp_dport

if TYPE_CHECKING:
    from pathlib import Path

    from nsbox.nftrule import Statement

pytestmark = pytest.mark.leaks_ok("bytes, and a compiler that is waited for")

# -- the kernel's numbers ---------------------------------------------------------------------

MESSAGES = "NEWTABLE GETTABLE DELTABLE NEWCHAIN NEWRULE NEWSET NEWSETELEM DELSETELEM".split()


def _expected() -> dict[str, int]:
    values = {
        f"NFTA_{name}_{key}".upper(): number
        for name, keys in EXPRESSIONS.items()
        for key, (number, _) in keys.items()
    }
    values |= {f"NFT_MSG_{name}": getattr(nftmsg, name) for name in MESSAGES}
    families = {"ip": "IPV4", "ip6": "IPV6"}
    values |= {f"NFPROTO_{families.get(family, family.upper())}": number
               for family, number in nftmsg.FAMILIES.items()}  # fmt: skip
    hooks = {"prerouting": "PRE_ROUTING", "input": "LOCAL_IN", "forward": "FORWARD",
             "output": "LOCAL_OUT", "postrouting": "POST_ROUTING"}  # fmt: skip
    values |= {f"NF_INET_{hooks[hook]}": number for hook, number in nftmsg.HOOKS.items()}
    values |= {
        "NFNL_MSG_BATCH_BEGIN": nftmsg.BATCH_BEGIN, "NFNL_MSG_BATCH_END": nftmsg.BATCH_END,
        "NFNL_SUBSYS_NFTABLES << 8": nftmsg.SUBSYSTEM,
        "NFT_TABLE_F_OWNER": nftmsg.TABLE_F_OWNER, "NFT_SET_MAP": nftmsg.SET_F_MAP,
        "NLM_F_REQUEST": nftmsg.REQUEST, "NLM_F_ACK": nftmsg.ACK, "NLM_F_EXCL": nftmsg.EXCL,
        "NLM_F_CREATE": nftmsg.CREATE, "NLM_F_APPEND": nftmsg.APPEND, "NLM_F_DUMP": nftmsg.DUMP,
        "sizeof(struct nlmsghdr)": nftmsg.HEADER.size, "NLA_F_NESTED": nftmsg._NESTED,
        "NLA_TYPE_MASK & 0xffff": nftmsg._TYPE_MASK, "IFNAMSIZ": nftrule._IFNAMSIZ,
        "NFT_CMP_EQ": nftrule._EQ, "NFT_CMP_NEQ": nftrule._NEQ, "NFT_CMP_LTE": nftrule._LTE,
        "NFT_CMP_GTE": nftrule._GTE, "NFT_PAYLOAD_NETWORK_HEADER": nftrule._NETWORK,
        "NFT_PAYLOAD_LL_HEADER": nftrule._LINK,
        "NFT_PAYLOAD_TRANSPORT_HEADER": nftrule._TRANSPORT, "NFT_REG_1": nftrule._REG,
        "NFT_REG32_00": nftrule._WORD, "NFT_META_L4PROTO": nftrule._META_L4PROTO,
        "NFTA_FIB_F_DADDR": nftrule._FIB_DADDR, "NFT_FIB_RESULT_ADDRTYPE": nftrule._FIB_ADDRTYPE,
        "RTN_LOCAL": nftrule.fib_daddr_type.names["local"],
        "IPS_DST_NAT": nftrule.ct_status.names["dnat"], "NF_CT_STATE_INVALID_BIT": 1,
        "NF_CT_STATE_BIT(IP_CT_ESTABLISHED)": ct_state.names["established"],
        "NF_CT_STATE_BIT(IP_CT_RELATED)": ct_state.names["related"],
        "NF_CT_STATE_BIT(IP_CT_NEW)": ct_state.names["new"],
        "IP_CT_DIR_REPLY": nftrule.ct_direction.names["reply"],
        "ND_ROUTER_SOLICIT": nftrule.icmpv6_type.names["nd-router-solicit"],
        "ND_NEIGHBOR_SOLICIT": nftrule.icmpv6_type.names["nd-neighbor-solicit"],
        "ND_NEIGHBOR_ADVERT": nftrule.icmpv6_type.names["nd-neighbor-advert"],
        "ICMP6_ECHO_REQUEST": nftrule.icmpv6_type.names["echo-request"],
        "ICMPV6_MLD2_REPORT": nftrule.icmpv6_type.names["mld2-listener-report"],
        "ICMP_REDIRECT": nftrule.icmp_type.names["redirect"],
        "ICMP_ECHO": nftrule.icmp_type.names["echo-request"],
    }  # fmt: skip
    return values


HEADERS = ("stdio.h", "net/if.h", "netinet/icmp6.h", "linux/icmp.h", "linux/netfilter.h",
           "linux/netfilter/nfnetlink.h", "linux/netfilter/nf_tables.h", "linux/rtnetlink.h",
           "linux/netfilter/nf_conntrack_common.h",
           "linux/netfilter/nf_conntrack_tuple_common.h")  # fmt: skip


def test_numbers_are_the_compilers(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    expected = _expected()
    assert "NFTA_NAT_REG_ADDR_MIN" in expected
    assert {"NFPROTO_INET", "NFPROTO_IPV4", "NFPROTO_IPV6"} <= expected.keys()
    lines = [*(f"#include <{header}>" for header in HEADERS), "#define ICMPV6_MLD2_REPORT 143",
             "int main(void) {",
             *(f'printf("%lld %s\\n", (long long)({name}), "{name}");' for name in expected),
             "return 0; }"]  # fmt: skip
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    source.write_text("\n".join(lines))
    subprocess.run(["gcc", str(source), "-o", str(program)], check=True, timeout=scaled(60))
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    pairs = (line.partition(" ") for line in said.splitlines())
    assert {name: int(value) for value, _, name in pairs} == expected


# -- bytes ------------------------------------------------------------------------------------


#: What nft(8) 1.0.6 sends for these, on a little-endian machine: after struct nlmsghdr.
KNOWN = {
    "create table inet t": "0100000006000100740000000800020000000000",
    "add chain inet t c { type filter hook input priority -300; policy drop; }": """
        01000000060001007400000006000300630000000b00070066696c7465720000
        080005000000000014000480080001000000000108000200fffffed4""",
    "add map inet t m { type inet_proto . inet_service : ipv4_addr . inet_service; }": """
        010000000600010074000000060002006d0000000800030000000008080004000000030d
        080005000000000808000600000001cd080007000000000808000a0000000001""",
    "add element inet t m { tcp . 8080 : 10.0.0.2 . 80 }": """
        010000000600010074000000060002006d0000000800040000000001
        2800038024000180100001800c000100060000001f900000100002800c0001000a00000200500000""",
    "add rule inet t c ip daddr 10.16.0.0/12 ct state established,related drop": """
        0100000006000100740000000600020063000000b801048024000180090001006d657461000000
        0014000280080002000000000f08000100000000012c00018008000100636d7000200002800800
        01000000000108000200000000000c0003800500010002000000340001800c0001007061796c6f
        616400240002800800010000000001080002000000000108000300000000100800040000000004
        440001800c00010062697477697365003400028008000100000000010800020000000001080003
        00000000040c00048008000100fff000000c00058008000100000000002c00018008000100636d
        700020000280080001000000000108000200000000000c000380080001000a1000002000018007
        000100637400001400028008000200000000000800010000000001440001800c00010062697477
        69736500340002800800010000000001080002000000000108000300000000040c000480080001
        00060000000c00058008000100000000002c00018008000100636d700020000280080001000000
        000108000200000000010c0003800800010000000000300001800e000100696d6d656469617465
        0000001c0002800800010000000000100002800c0002800800010000000000""",
    "add rule inet t c reject with icmpx admin-prohibited": """
        010000000600010074000000060002006300000028000480240001800b00010072656a6563740000
        1400028008000100000000020500020003000000""",
}
#: Flags of a table that has none; the map of a transaction by its number, too.
NEEDLESS = [(2, bytes(4)), (4, b"\0\0\0\1")]


def _ours() -> list[nftmsg.Message]:
    table = Table("t")
    pair = (nftmsg.concatenated(b"\6", b"\x1f\x90"), bytes((10, 0, 0, 2, 0, 80, 0, 0)))
    return [
        table.add(),
        table.base_chain("input", nftmsg.RAW, name="c", policy="drop"),
        table.map("m", "inet_proto . inet_service", "ipv4_addr . inet_service", 1),
        *table.elements("m", [pair], "tcp . 8080 : 10.0.0.2 . 80"),
        table.rule("c", ip_daddr(IPv4Network("10.16.0.0/12")),
                   ct_state("established", "related"), nftrule.drop),
        table.rule("c", nftrule.reject),
    ]  # fmt: skip


def _tree(raw: bytes) -> list[object]:
    """Attributes with those in them. Their order says nothing, but where they are a list."""
    found, at = [], 0
    while at < len(raw):
        length, kind = nftmsg.ATTRIBUTE.unpack_from(raw, at)
        value = raw[at + 4 : at + length]
        found.append((kind, _tree(value) if kind & 0x8000 else value))
        at += length + -length % 4
    return sorted(found, key=lambda pair: pair[0])


@pytest.mark.skipif(sys.byteorder == "big", reason="written down on a little-endian machine")
@pytest.mark.parametrize("message", _ours(), ids=lambda message: message.command)
def test_a_message_is_the_one_that_nft_sends_for_its_words(message: nftmsg.Message) -> None:
    theirs = bytes.fromhex(KNOWN[message.command])
    raw = message.encode(1)
    assert nftmsg.HEADER.unpack_from(raw)[0] == len(raw)
    assert raw[16:20] == theirs[:4]
    assert _tree(raw[20:]) == [one for one in _tree(theirs[4:]) if one not in NEEDLESS]


def test_the_batch_is_a_chain_of_whole_messages() -> None:
    table = Table("t")
    raw = batch([table.add(), table.chain("c"), table.delete()])
    found, at = [], 0
    while at < len(raw):
        length, kind, flags, sequence, port = nftmsg.HEADER.unpack_from(raw, at)
        assert length % 4 == 0
        assert port == 0
        found.append((kind & 0xFF if kind > 0xFF else -kind, sequence, bool(flags & nftmsg.ACK)))
        at += length
    assert at == len(raw)
    assert found == [(-16, 0, False), (0, 1, False), (3, 2, False), (2, 3, True), (-17, 0, False)]


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=99))))
def test_attributes_are_read_as_they_were_written(pairs: list[tuple[int, bytes]]) -> None:
    raw = b"".join(nftmsg.attribute(kind, value) for kind, value in pairs)
    assert list(attributes(raw)) == pairs
    assert len(raw) % 4 == 0


@given(st.binary(max_size=200))
def test_no_bytes_are_too_strange_to_be_read(raw: bytes) -> None:
    assert sum(4 + len(value) for _, value in attributes(raw)) <= len(raw)


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (iifname("nsb0"), 'iifname "nsb0"'),
        (oifname.isnt("nsb0"), 'oifname != "nsb0"'),
        (ct_state("established", "related"), "ct state established,related"),
        (tcp_dport(80), "tcp dport 80"),
        (tcp_dport((80, 90)), "tcp dport 80-90"),
        (ip_daddr(IPv4Network("10.0.0.0/8")), "ip daddr 10.0.0.0/8"),
        (ip_daddr(IPv4Network("10.0.0.1/32")), "ip daddr 10.0.0.1"),
        (ip_daddr.isnt(IPv4Network("10.0.0.0/8")), "ip daddr != 10.0.0.0/8"),
        (nftrule.ip6_saddr(IPv6Address("::1")), "ip6 saddr ::1"),
        (nftrule.ip6_saddr(IPv6Network("fe80::/10")), "ip6 saddr fe80::/10"),
        (nftrule.jump("other"), "jump other"),
    ],
)
def test_a_statement_reads_as_in_nft(statement: Statement, words: str) -> None:
    assert statement.words == words


def test_what_two_statements_need_is_looked_at_once() -> None:
    table = Table("t")
    source = nftrule.ip_saddr(IPv4Address("10.0.0.2"))
    both = table.rule("c", ip_daddr(IPv4Address("10.0.0.1")), source)
    assert both.body.count(nftrule._IS4) == 1
    assert both.command == "add rule inet t c ip daddr 10.0.0.1 ip saddr 10.0.0.2"


@pytest.mark.parametrize("name", ["", "1st", "a b", "a;b", 'a"', "a\n", "é", "x" * 129, "-a", "{"])
def test_a_name_that_nft_could_not_read_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="is no name of a table") as caught:
        Table(name)
    assert caught.value.field == "name"


@pytest.mark.parametrize("name", ["", "a b", "x" * 16, "é" * 8, 'a"', "nsb*", "a/b", "a\\b", "a\0"])
def test_a_link_that_there_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="is no name of a network link") as caught:
        iifname(name)
    assert caught.value.field == "bridge"


def test_the_longest_link_is_compared_to_its_end() -> None:
    assert nftrule.link_name("x" * 15) == b"x" * 15 + b"\0"
    assert iifname("nsb0").code != iifname("nsb01").code


def test_every_selector_has_its_own_words() -> None:
    found = [value for value in vars(nftrule).values() if isinstance(value, Selector)]
    assert len({one.words for one in found}) == len(found) > 10
    assert all(re.fullmatch(r"[a-z0-9 ]+", one.words) for one in found)


# -- maps -------------------------------------------------------------------------------------


def test_elements_that_an_attribute_cannot_hold_are_several_messages() -> None:
    pairs = [(nftmsg.concatenated(b"\6", n.to_bytes(2, "big")), bytes(8)) for n in range(5000)]
    messages = Table("t").elements("m", pairs, "5000")
    assert len(messages) > 1
    seen = []
    for message in messages:
        known = dict(attributes(message.body))
        assert len(known[3]) <= 65531
        for _, element in attributes(known[3]):
            seen.append(dict(attributes(dict(attributes(element))[1]))[1])
    assert seen == [key for key, _ in pairs]


def test_a_concatenation_begins_its_parts_at_words() -> None:
    assert nftmsg.concatenated(b"\6", b"\x1f\x90") == b"\6\0\0\0\x1f\x90\0\0"
    assert nftmsg._joined("inet_proto . inet_service") == (12 << 6 | 13, 8)
    assert nftmsg._joined("ipv6_addr . inet_proto . inet_service") == (8 << 12 | 12 << 6 | 13, 24)
