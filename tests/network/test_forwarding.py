# SPDX-License-Identifier: Apache-2.0
"""The switch of forwarding is on while somebody needs it; then all is as before, to the byte."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of kit.PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import pytest
from network.kit import apart

from nsbox import forwarding

pytestmark = pytest.mark.kernel("root")


@apart
def test_it_is_on_while_it_is_held_and_all_is_as_before_after() -> None:
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    for name, value in (  # none of them is what the switch would leave
        ("ipv4/conf/two/forwarding", "1"), ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/forwarding", "1"), ("ipv6/conf/one/forwarding", "1"),
    ):  # fmt: skip
        setting(name, value)
    before = conf()
    with forwarding.Forwarding.hold(4):
        assert setting("ipv4/ip_forward") == setting("ipv4/conf/one/forwarding") == "1"
        assert setting("ipv6/conf/all/forwarding") == "0"
        changed = {name for name, value in conf().items() if value != before[name]}
        assert len(changed) > 2
        with forwarding.Forwarding.hold(6):
            assert setting("ipv6/conf/all/forwarding") == "1"
            assert setting("ipv6/conf/two/forwarding") == "1"
        assert setting("ipv6/conf/all/forwarding") == "0"
        assert {n for n, value in conf().items() if value != before[n]} == changed
    assert conf() == before
    assert left() == []


@apart
def test_one_that_was_on_is_left_on() -> None:
    setting("ipv4/ip_forward", "1")
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    setting("ipv4/conf/two/forwarding", "0")
    before = conf()
    with forwarding.Forwarding.hold(4):
        assert conf() == before
    assert conf() == before


@apart
def test_the_last_of_several_handles_puts_it_back() -> None:
    before = conf()
    one, two = forwarding.Forwarding.hold(4), forwarding.Forwarding.hold(4)
    one.close()
    one.close()
    assert setting("ipv4/ip_forward") == "1"
    two.close()
    assert conf() == before
    with pytest.raises(nsbox.StateError):
        with one._lock:
            one._opened()


@apart
def test_the_last_of_several_processes_puts_it_back() -> None:
    before = conf()
    with other(HOLD, "4", "6") as one, other(HOLD, "6", "4") as two:
        one.stdout.readline(), two.stdout.readline()
        one.communicate("\n")
        assert setting("ipv4/ip_forward") == setting("ipv6/conf/all/forwarding") == "1"
        assert len(left()) == 2
        two.communicate("\n")
    assert conf() == before
    assert left() == []


@apart
def test_after_a_kill_gc_puts_it_back_when_nobody_else_needs_it() -> None:
    setting("ipv4/conf/all/accept_redirects", "0")
    before = conf()
    with other(HOLD, "4", "6") as one, other(HOLD, "4") as two:
        one.stdout.readline(), two.stdout.readline()
        one.kill(), one.wait()
        (four, six) = (f"/run/nsbox/{name}" for name in left())
        assert nsbox.gc() == [six]
        assert setting("ipv4/ip_forward") == "1"
        assert setting("ipv6/conf/all/forwarding") == "0"
        two.kill(), two.wait()
        assert setting("ipv4/ip_forward") == "1"
        assert nsbox.gc() == [four]
    assert conf() == before
    assert left() == []


@apart
def test_after_a_kill_the_next_user_knows_what_was_before() -> None:
    setting("ipv4/conf/all/accept_redirects", "0")
    before = conf()
    with other(HOLD, "4") as one:
        one.stdout.readline()
        one.kill(), one.wait()
    with forwarding.Forwarding.hold(4):
        assert setting("ipv4/ip_forward") == "1"
    assert conf() == before
    assert left() == []


@apart
def test_a_forked_child_does_not_hold_it() -> None:
    before = conf()
    code = """
held = forwarding.Forwarding.hold(4)
if os.fork() == 0:
    held.close()
    print(os.getpid(), flush=True)
    time.sleep(1000)
sys.stdin.readline()
"""
    with other(code) as process, child(process):
        assert setting("ipv4/ip_forward") == "1"
        process.kill(), process.wait()
        assert len(nsbox.gc()) == 1
        assert conf() == before


@apart
def test_interfaces_that_came_and_went_meanwhile() -> None:
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    setting("ipv4/conf/one/forwarding", "1")
    before = conf()
    held = forwarding.Forwarding.hold(4), forwarding.Forwarding.hold(6)
    ip("link", "del", "one")
    ip("link", "add", "new", "type", "veth", "peer", "name", "newer")
    assert setting("ipv4/conf/new/forwarding") == "1"
    for one in held:
        one.close()
    for name in ("ipv4/conf/new", "ipv4/conf/newer", "ipv6/conf/new"):
        assert setting(f"{name}/forwarding") == "0", name
    ip("link", "del", "new")
    after = conf()
    assert after == {
        name: value for name, value in before.items() if "/one/" not in name and "/two/" not in name
    }


@apart
def test_in_the_background_it_is_put_back_unless_that_works_in_another_network() -> None:
    import threading

    from nsbox import later
    from nsbox import syscalls as sc

    def moved() -> None:
        sc.unshare(sc.Clone.NEWNET)
        held = forwarding.Forwarding.hold(4)
        assert setting("ipv4/ip_forward") == "1"
        held.close_soon()
        assert setting("ipv4/ip_forward") == "0", "at once"
        sane.append(True)

    sane: list[bool] = []
    go = threading.Event()
    later.call(go.wait)
    held = forwarding.Forwarding.hold(4)
    held.close_soon()
    thread = threading.Thread(target=moved)
    thread.start()
    thread.join()
    assert sane
    assert setting("ipv4/ip_forward") == "1"
    go.set()
    assert later.settle(10)
    assert setting("ipv4/ip_forward") == "0"
    assert left() == []


@apart
def test_what_others_changed_meanwhile_stays_as_they_left_it() -> None:
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    setting("ipv4/conf/one/forwarding", "1")
    setting("ipv4/conf/all/accept_redirects", "0")
    with forwarding.Forwarding.hold(4):
        setting("ipv4/conf/one/forwarding", "0")
        setting("ipv4/conf/all/accept_redirects", "1")
    assert setting("ipv4/conf/one/forwarding") == "0"
    assert setting("ipv4/conf/all/accept_redirects") == "1"
    with forwarding.Forwarding.hold(4):
        setting("ipv4/ip_forward", "0")
        after = conf()
    assert conf() == after


@apart
def test_of_another_network_namespace_it_waits_for_somebody_there() -> None:
    before = conf()
    with other(HOLD, "4") as one:
        one.stdout.readline()
        there = os.open("/proc/self/ns/net", os.O_RDONLY)
        with other("print(flush=True); time.sleep(1000)") as witness:  # lives there
            witness.stdout.readline()
            one.kill(), one.wait()
            sc.unshare(Clone.NEWNET)
            assert nsbox.gc() == []
            assert len(left()) == 1
            sc.setns(there)
            assert len(nsbox.gc()) == 1
            assert conf() == before


@apart
def test_of_a_network_namespace_that_has_gone_nothing_is_left() -> None:
    with other("sc = __import__('nsbox').syscalls; sc.unshare(0x40000000)" + HOLD, "4") as one:
        one.stdout.readline()
        assert len(left()) == 1
        one.kill(), one.wait()
    assert len(nsbox.gc()) == 1
    assert left() == []


@apart
def test_a_settings_file_system_that_is_read_only_is_an_error_that_says_so() -> None:
    sc.mount("/proc/sys", "/proc/sys", None, MountFlag.BIND | MountFlag.REC)
    sc.mount(None, "/proc/sys", None, MountFlag.BIND | MountFlag.REMOUNT | MountFlag.RDONLY)
    with pytest.raises(nsbox.Unavailable) as caught:
        forwarding.Forwarding.hold(4)
    assert "net.ipv4.conf.all.forwarding cannot be written: Read-only" in str(caught.value)
    assert left() == []


@apart
def test_routes_by_router_advertisements_are_not_lost() -> None:
    """The kernel drops them when forwarding goes on, and heeds no more of them."""
    ip("link", "add", "host", "type", "veth", "peer", "name", "router")
    for name in ("host", "router"):
        setting(f"ipv6/conf/{name}/accept_dad", "0")
        ip("link", "set", name, "up")
    index = socket.if_nametoindex("router")
    advert = bytes([134, 0, 0, 0, 64, 0, 0x07, 0x08, *[0] * 8])

    def default():
        return ip("-6", "route", "show", "default", "dev", "host")

    def learn():
        end = time.monotonic() + 20
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            while not default():
                assert time.monotonic() < end
                with contextlib.suppress(OSError):  # its address is not there yet
                    raw.sendto(advert, ("ff02::1", 0, 0, index))
                time.sleep(0.05)

    learn()
    setting("ipv6/conf/all/forwarding", "1")
    assert not default(), "what is to be avoided"
    setting("ipv6/conf/all/forwarding", "0")
    learn()
    before = conf()
    with pytest.raises(nsbox.Unavailable) as caught:
        forwarding.Forwarding.hold(6)
    assert "sysctl -w net.ipv6.conf.host.accept_ra=2" in str(caught.value)
    assert default()
    assert conf() == before
    assert left() == []
    setting("ipv6/conf/host/accept_ra", "2")
    with forwarding.Forwarding.hold(6):
        assert default()
    assert default()


def test_names_that_the_switch_changes() -> None:
    assert forwarding._changes("all/accept_redirects", 4)
    assert forwarding._changes("eth0.100/forwarding", 6)
    assert not forwarding._changes("eth0/accept_redirects", 4)
    assert not forwarding._changes("../../kernel/forwarding", 4)
