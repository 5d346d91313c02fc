# SPDX-License-Identifier: Apache-2.0
"""Addresses and ports: never lent twice, whoever asks, and back when their holder is gone."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of kit.PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import errno
import ipaddress
import os
import subprocess
import sys
import threading
from array import array
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network.kit import apart
from support import scaled

from nsbox import addresses, registry, shared
from nsbox.errors import SpecError, StateError, Unavailable
from nsbox.netspec import parse_subnet

if TYPE_CHECKING:
    from pathlib import Path

SMALL = parse_subnet("10.77.0.0/29", "subnet", 4)
EIGHT = [ipaddress.ip_address(f"10.77.0.{n}") for n in range(2, 7)]

#: Takes and gives back in a loop; a file for each address that is held shows what is held twice.
CHURN = """
import errno, os, random, sys, threading, time
from nsbox import addresses, netspec
from nsbox.errors import Unavailable
subnet, place, threads, seconds, held_at_most = sys.argv[1:6]
pool = addresses.Pool(netspec.parse_subnet(subnet, "subnet", 4))
end, taken, wrong = time.monotonic() + float(seconds), [], []
def churn():
    held = []
    while time.monotonic() < end and not wrong:
        if held and (len(held) >= int(held_at_most) or random.random() < 0.5):
            address = held.pop(random.randrange(len(held)))
            os.unlink(f"{place}/{address}")
            pool.give(address)
        else:
            try:
                address = pool.take()
            except Unavailable as e:
                assert e.errno == errno.EADDRNOTAVAIL
                continue
            try:
                os.close(os.open(f"{place}/{address}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                wrong.append(address)
            held.append(address)
            taken.append(address)
    for address in held:
        os.unlink(f"{place}/{address}")
        pool.give(address)
each = [threading.Thread(target=churn) for _ in range(int(threads))]
for one in each: one.start()
for one in each: one.join()
pool.close()
print(len(taken), *wrong)
"""


def churn(place: Path, subnet: str, threads: int, held: int) -> subprocess.Popen[str]:
    args = [sys.executable, "-c", CHURN, subnet, str(place), str(threads), "1.5", str(held)]
    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True)


def files() -> list[str]:
    """Of pools, that are left in the registry."""
    return [n for n in os.listdir(registry.directory()) if n.startswith(shared.PREFIX)]


# -- what is lent -----------------------------------------------------------------------------


def test_all_but_the_network_the_gateway_and_the_broadcast_address_are_lent_once() -> None:
    with addresses.Pool(SMALL) as pool:
        assert [pool.take() for _ in EIGHT] == EIGHT
        assert pool.gateway == ipaddress.ip_address("10.77.0.1")
        with pytest.raises(Unavailable) as caught:
            pool.take()
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert "all 5 addresses of 10.77.0.0/29" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "version", "first", "last", "count"),
    [
        pytest.param("10.77.0.0/30", 4, "10.77.0.2", "10.77.0.2", 1, id="the smallest"),
        pytest.param("fd00:77::/120", 6, "fd00:77::2", "fd00:77::fe", 253, id="a small IPv6"),
    ],
)
def test_a_subnet_has_so_many(text: str, version: int, first: str, last: str, count: int) -> None:
    with addresses.Pool(parse_subnet(text, "subnet", version)) as pool:
        every = [pool.take() for _ in range(count)]
        with pytest.raises(Unavailable):
            pool.take()
    assert len(set(every)) == count
    assert (str(min(every)), str(max(every))) == (first, last)


@pytest.mark.parametrize("text", ["10.77.0.0/16", "fd00:77::/64"])
def test_of_the_largest_the_ends_are_lent(text: str) -> None:
    subnet = parse_subnet(text, "subnet", 6 if ":" in text else 4)
    with addresses.Pool(subnet) as pool:
        first, last = subnet[2], subnet[65534]
        assert [pool.take(), pool.take(last), pool.take(first + 1)] == [first, last, first + 1]
        for wrong in (subnet[0], subnet[1], subnet[65535]):
            with pytest.raises(SpecError):
                pool.take(wrong)


def test_what_was_given_back_comes_last() -> None:
    """An old ARP entry, or a connection that is still open elsewhere, meets nobody new."""
    with addresses.Pool(SMALL) as pool:
        one, two, *_ = every = [pool.take() for _ in EIGHT[:4]]
        pool.give(two)
        pool.give(one)
        assert pool.take() == EIGHT[4], "never used"
        assert [pool.take(), pool.take()] == [two, one]
        for address in (*reversed(every), EIGHT[4]):
            pool.give(address)
        assert [pool.take() for _ in EIGHT] == [*reversed(every), EIGHT[4]]


def test_the_order_is_that_of_all_handles() -> None:
    with addresses.Pool(SMALL) as one, addresses.Pool(SMALL) as other:
        pairs = [(pool, pool.take()) for pool in (one, other, one, other)]
        for pool, address in (pairs[3], pairs[0], pairs[2], pairs[1]):
            pool.give(address)
        assert [one.take(), other.take(), one.take()] == [EIGHT[4], pairs[3][1], pairs[0][1]]


def test_one_can_be_asked_for() -> None:
    with addresses.Pool(SMALL) as pool, addresses.Pool(SMALL) as other:
        assert pool.take("10.77.0.4") == EIGHT[2]
        assert pool.take(EIGHT[3]) == EIGHT[3]
        for asker in (pool, other):
            with pytest.raises(Unavailable) as caught:
                asker.take("10.77.0.4")
            assert caught.value.errno == errno.EADDRINUSE
            assert f"10.77.0.4 is lent by process {os.getpid()}" in str(caught.value)
        assert [pool.take() for _ in range(3)] == [EIGHT[0], EIGHT[1], EIGHT[4]]
        pool.give(EIGHT[2])
        assert other.take("10.77.0.4") == EIGHT[2]


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        pytest.param("10.77.0.0", "not one for containers", id="the network's"),
        pytest.param("10.77.0.1", "the gateway's; use 10.77.0.2 to 10.77.0.6", id="the gateway's"),
        pytest.param("10.77.0.7", "not one for containers", id="the broadcast address"),
        pytest.param("10.77.0.8", "not in 10.77.0.0/29", id="the next subnet's"),
        pytest.param("fd00::5", "not in 10.77.0.0/29", id="of the other version"),
        pytest.param("ten", "not an address", id="a word"),
        pytest.param(5, "not an address", id="a number"),
    ],
)
def test_a_wrong_one_is_refused(wanted: Any, why: str) -> None:
    with addresses.Pool(SMALL) as pool:
        with pytest.raises(SpecError) as caught:
            pool.take(wanted)
    assert caught.value.field == "address"
    assert why in str(caught.value)


def test_only_who_took_it_gives_it_back() -> None:
    with addresses.Pool(SMALL) as pool, addresses.Pool(SMALL) as other:
        address = pool.take()
        with pytest.raises(ValueError, match="not lent by this handle"):
            other.give(address)
        pool.give(address)
        with pytest.raises(ValueError, match="not lent by this handle"):
            pool.give(address)


def test_a_closed_pool_has_given_all_back_and_says_so() -> None:
    pool, other = addresses.Pool(SMALL), addresses.Pool(SMALL)
    with other:
        first = pool.take()
        pool.close()
        pool.close()
        assert other.take(first) == first
        with pytest.raises(StateError) as caught:
            pool.take()
    assert caught.value.status == "closed"


def test_its_file_is_there_while_it_is_used() -> None:
    one, other = addresses.Pool(SMALL), addresses.Pool(SMALL)
    assert files() == [], "nothing is done before it is needed"
    one.take()
    (name,) = files()
    assert name.endswith("-addresses-10.77.0.0_29")
    other.take()
    one.close()
    assert files() == [name]
    other.close()
    assert files() == []


def test_one_that_is_forgotten_is_warned_about() -> None:
    pool = addresses.Pool(SMALL)
    pool.take()
    with pytest.warns(ResourceWarning, match="10.77.0.0_29 open> was not closed"):
        del pool
    assert files() == []


def test_one_that_was_lent_meanwhile_is_not_lent_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the look at all of them and the lock of the first another process can have had it."""
    with addresses.Pool(SMALL) as pool, addresses.Pool(SMALL) as other:
        pool.take(EIGHT[4])
        real = pool._slots._words
        seen = real(pool._slots._fd)

        def late(fd: int, first: int = 0, count: int = -1) -> Any:
            return real(fd, first, count) if count >= 0 else array("Q", seen)

        other.give(other.take())
        monkeypatch.setattr(pool._slots, "_words", late)
        assert pool.take() == EIGHT[1]


@settings(database=None, deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=40))
@pytest.mark.leaks_ok("many examples, one code: its file is looked for")
def test_it_is_a_queue(steps: list[tuple[bool, int]]) -> None:
    """A model beside it: free addresses in the order in which they came back."""
    free, held = list(EIGHT), []
    with addresses.Pool(SMALL) as pool:
        for take, which in steps:
            if take and free:
                held.append(pool.take())
                assert held[-1] == free.pop(0)
            elif not take and held:
                address = held.pop(which % len(held))
                pool.give(address)
                free.append(address)
    assert files() == []


# -- several at once --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "held"),
    [
        pytest.param("10.77.0.0/28", 4, id="too few for all"),
        pytest.param("10.77.0.0/24", 4, id="enough"),
    ],
)
def test_threads_and_processes_never_have_the_same_at_once(
    tmp_path: Path, subnet: str, held: int
) -> None:
    started = [churn(tmp_path, subnet, threads, held) for threads in (8, 2, 1)]
    said = [process.communicate(timeout=scaled(30))[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert [wrong for _, *wrong in said] == [[], [], []]
    assert all(int(count) > 20 for count, *_ in said), said
    assert list(tmp_path.iterdir()) == []
    assert files() == []


def test_eight_threads_of_one_handle() -> None:
    taken: list[Any] = []
    with addresses.Pool(parse_subnet("10.77.0.0/24", "subnet", 4)) as pool:

        def take() -> None:
            taken.extend(pool.take() for _ in range(30))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(taken)) == len(taken) == 240


@apart
def test_what_a_killed_process_had_comes_back() -> None:
    take = """
pool = addresses.Pool(netspec.parse_subnet("10.77.0.0/29", "subnet", 4))
print(*[pool.take() for _ in range(int(sys.argv[1]))], flush=True)
time.sleep(1000)
"""
    with addresses.Pool(subnet("10.77.0.0/29")) as pool, other(take, "3") as process:
        theirs = process.stdout.readline().split()
        mine = [str(pool.take()) for _ in range(2)]
        assert len({*theirs, *mine}) == 5
        with pytest.raises(nsbox.Unavailable) as caught:
            pool.take(theirs[0])
        assert f"process {process.pid}" in str(caught.value)
        with pytest.raises(nsbox.Unavailable):
            pool.take()
        process.kill()
        process.wait()
        assert sorted(str(pool.take()) for _ in range(3)) == sorted(theirs)
    assert left() == []


@apart
def test_what_a_killed_process_had_is_lent_last_by_who_comes_after() -> None:
    take = """
pool = addresses.Pool(netspec.parse_subnet("10.77.0.0/29", "subnet", 4))
print(*[pool.take() for _ in range(2)], flush=True)
time.sleep(1000)
"""
    with other(take) as process:
        theirs = process.stdout.readline().split()
        process.kill()
        process.wait()
        assert len(left()) == 1
        with addresses.Pool(subnet("10.77.0.0/29")) as pool:
            three = [pool.take() for _ in range(3)]
            for address in three:
                pool.give(address)
            assert [str(pool.take()) for _ in range(2)] == theirs == ["10.77.0.2", "10.77.0.3"]
            assert [pool.take() for _ in range(3)] == three


@apart
def test_the_file_of_killed_ones_goes_with_gc_and_not_before() -> None:
    take = """
pool = addresses.Pool(netspec.parse_subnet("10.77.0.0/29", "subnet", 4))
pool.take()
print(flush=True)
time.sleep(1000)
"""
    with other(take) as one, other(take) as two:
        one.stdout.readline(), two.stdout.readline()
        one.kill(), one.wait()
        assert nsbox.gc() == []
        (name,) = left()
        two.kill(), two.wait()
        assert nsbox.gc() == [f"/run/nsbox/{name}"]
        assert left() == []


@apart
def test_a_forked_child_has_nothing_of_it() -> None:
    """Nor does it keep the addresses of a parent that was killed."""
    code = """
pool = addresses.Pool(netspec.parse_subnet("10.77.0.0/30", "subnet", 4))
address = pool.take()
if os.fork() == 0:
    said = []
    for verb in (pool.take, lambda: pool.give(address)):
        try: verb()
        except Exception as e: said.append(getattr(e, "status", repr(e)))
    pool.close()
    del pool
    print(os.getpid(), *said, flush=True)
    time.sleep(1000)
os.wait()
"""
    pool = addresses.Pool(subnet("10.77.0.0/30"))
    with pool, other(code) as process, child(process) as said:
        assert said == ["foreign", "foreign"]
        with pytest.raises(nsbox.Unavailable):
            pool.take()
        process.kill()
        process.wait()
        assert str(pool.take()) == "10.77.0.2"


@apart
def test_another_network_namespace_has_addresses_of_its_own() -> None:
    with addresses.Pool(subnet("10.77.0.0/30")) as pool:
        assert str(pool.take()) == "10.77.0.2"
        here = shared.network()
        sc.unshare(Clone.NEWNET)
        assert shared.network() != here
        with addresses.Pool(subnet("10.77.0.0/30")) as there:
            assert str(there.take()) == "10.77.0.2"
        with addresses.Pool(subnet("10.77.0.0/29")) as there:
            assert len(left()) == 1
            there.take()
            assert len(left()) == 2
    assert left() == []


@apart
def test_a_file_that_somebody_removed_is_not_shared_by_new_ones() -> None:
    """A user that waits for the lock of the last one must not go on with a file without name."""
    code = """
end = time.monotonic() + 2
count = 0
while time.monotonic() < end:
    with addresses.Pool(netspec.parse_subnet("10.77.0.0/30", "subnet", 4)) as pool:
        try: address = pool.take()
        except OSError: continue
        os.close(os.open("/run/held", os.O_CREAT | os.O_EXCL))
        os.unlink("/run/held")
        count += 1
print(count)
"""
    with contextlib.ExitStack() as stack:
        each = [stack.enter_context(other(code)) for _ in range(4)]
        counts = [int(process.communicate()[0]) for process in each]
        assert all(process.returncode == 0 for process in each)
    assert sum(counts) > 100
    assert left() == []


# -- places -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "subnet", "other", "there"),
    [
        pytest.param("10.77.0.5", "10.77.0.0/24", "fd00:77::/64", "fd00:77::5", id="v6"),
        pytest.param("10.77.1.4", "10.77.0.0/16", "fd00:77::/112", "fd00:77::104", id="a /16"),
        pytest.param("10.77.0.130", "10.77.0.128/25", "10.78.0.0/24", "10.78.0.2", id="v4"),
    ],
)
def test_a_place_in_one_subnet_is_one_in_the_other(
    address: str, subnet: str, other: str, there: str
) -> None:
    found = addresses.counterpart(
        ipaddress.ip_address(address), ipaddress.ip_network(subnet), ipaddress.ip_network(other)
    )
    assert str(found) == there


def test_a_subnet_that_is_too_small_has_no_such_place() -> None:
    here, there = ipaddress.ip_network("10.77.0.0/16"), ipaddress.ip_network("fd00:77::/120")
    with pytest.raises(SpecError, match=r"has no place for what is 10\.77\.1\.0"):
        addresses.counterpart(ipaddress.ip_address("10.77.1.0"), here, there)


@apart
def test_a_forked_child_does_not_keep_the_ids_of_a_parent_that_was_killed() -> None:
    code = """
from nsbox import registry
slots = registry.IdSlots()
os.register_at_fork(after_in_child=slots.forget)
first = slots.take()
if os.fork() == 0:
    assert slots.take() != first
    print(os.getpid(), first, flush=True)
    time.sleep(1000)
os.wait()
"""
    with other(code) as process, child(process) as said:
        slot = int(said[0])
        slots = registry.IdSlots()
        slots._next = slot - 1
        assert slots.take() != slot
        process.kill()
        process.wait()
        slots._next = slot - 1
        assert slots.take() == slot
        slots.forget()
