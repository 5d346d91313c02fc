# SPDX-License-Identifier: Apache-2.0
"""Of networks whose owner was killed nothing is left two seconds later, without any gc()."""
# ruff: noqa: F821  (the bodies run elsewhere, with the names of PRELUDE)
# mypy: disable-error-code="name-defined"

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
from namespace.kit import apart as run_apart
from network import kit
from support import rounds, scaled

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.kernel("root"), pytest.mark.userns]

PRELUDE = (
    kit.PRELUDE
    + f"patience, rounds = {scaled(2.0)}, {rounds(12)}\n"
    + """
import select
def state():
    "All settings of IPv4 and IPv6, links, rules, and files but those of lent ids."
    found = {"links": sorted(os.listdir("/sys/class/net")), "nft": nft(),
             "files": [name for name in left() if name != "ids"]}
    for version in "46":
        for directory, _, names in os.walk(f"/proc/sys/net/ipv{version}"):
            for path in (f"{directory}/{name}" for name in names):
                try:
                    found[path] = Path(path).read_bytes()
                except FileNotFoundError:
                    pass
                except OSError as e:
                    found[path] = e.errno
    return found
def nft():
    if not os.path.exists("/usr/sbin/nft"):
        return ""
    return subprocess.run(["/usr/sbin/nft", "list", "tables"], check=True, capture_output=True,
                          text=True).stdout
def differences(before):
    now = state()
    return {n: (before.get(n), now.get(n)) for n in before | now if before.get(n) != now.get(n)}
def comes_back_to(before):
    "Within two seconds."
    end = time.monotonic() + patience
    while different := differences(before):
        assert time.monotonic() < end, different
        time.sleep(0.01)
def stays_so(seconds=0.5):
    before, end = state(), time.monotonic() + seconds
    while time.monotonic() < end:
        assert not differences(before)
        time.sleep(0.02)
def odd_settings():
    "None of them is what the switch would leave."
    ip("link", "add", "one", "type", "veth", "peer", "name", "two")
    setting("ipv4/conf/two/forwarding", "1")
    setting("ipv4/conf/all/accept_redirects", "0")
    setting("ipv4/conf/default/forwarding", "1")
    setting("ipv6/conf/one/forwarding", "1")
sc.mount("sysfs", "/sys", "sysfs")  # of this network namespace
# an owner of a network in which a container runs; it ends when a line comes, or is killed
NETWORK = '''
import nsbox
with nsbox.Network(subnet=f"10.66.{sys.argv[1]}.0/24", subnet6=f"fd00:{sys.argv[1]}::/64") as net:
    with nsbox.Container(["sleep", "1000"], net=net):
        print(net.name, flush=True)
        sys.stdin.readline()
'''
def launcher():
    "Of the one owner that there is, once it has signed its file."
    end = time.monotonic() + patience
    while not (owners := registry.owners()):
        assert time.monotonic() < end
    return os.pidfd_open(owners[0].launcher)
def ends(pidfd):
    assert select.select([pidfd], [], [], patience)[0]
    os.close(pidfd)
# one that has a launcher, and no more
OWNER = "from nsbox import launcher; launcher.current()\\n"
"""
)


def apart(test: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(test)
    def wrapper() -> None:
        run_apart(test, PRELUDE)

    return wrapper


@apart
def test_nothing_is_left_of_a_network() -> None:
    odd_settings()
    before = state()
    with other(NETWORK, "1") as one:
        name = one.stdout.readline().strip()
        assert setting("ipv4/ip_forward") == setting("ipv6/conf/all/forwarding") == "1"
        changed = differences(before)
        assert name in changed["links"][1]
        assert {"nft", "files"} <= changed.keys()
        assert any("-forwarding4" in file for file in left())
        one.kill(), one.wait()
        comes_back_to(before)


@apart
def test_while_another_owner_has_the_switch_it_stays_on() -> None:
    odd_settings()
    before = state()
    with other(NETWORK, "1") as one, other(NETWORK, "2") as two:
        one.stdout.readline(), two.stdout.readline()
        switched = state()
        one.kill(), one.wait()
        end = time.monotonic() + patience
        while [n for n in left() if n.startswith(f"nsbox-{one.pid}-")] or len(
            os.listdir("/sys/class/net")
        ) > len(before["links"]) + 2:
            assert time.monotonic() < end, left()
            time.sleep(0.01)
        stays_so()
        assert "net-" in " ".join(left())
        for name, (_, now) in differences(switched).items():
            assert name in ("links", "nft", "files") or now is None, name
        two.kill(), two.wait()
        comes_back_to(before)


@apart
def test_an_owner_that_ends_by_itself_leaves_nothing_after_a_killed_one() -> None:
    odd_settings()
    before = state()
    with other(NETWORK, "1") as one, other(NETWORK, "2") as two:
        one.stdout.readline(), two.stdout.readline()
        one.kill(), one.wait()
        two.communicate("\n")
        assert two.returncode == 0
        comes_back_to(before)


@apart
def test_owners_that_exit_without_a_word_leave_nothing() -> None:
    """The launcher is let go of before the interpreter's end, when all is still held."""
    odd_settings()
    before = state()
    code = """
import nsbox, warnings
warnings.simplefilter("ignore")
net = nsbox.Network(subnet="10.66.1.0/24").start()
held = forwarding.Forwarding.hold(6)
exec(sys.argv[1])
"""
    for how in (
        "os._exit(0)",
        "sys.exit(0)",
        "from nsbox import launcher; launcher.shut_down(); time.sleep(0.4); os._exit(0)",
    ):
        with other(code, how) as one:
            one.wait(10 * patience)
            comes_back_to(before)


@apart
def test_owners_that_are_killed_at_any_time() -> None:
    """And at the same time as others, in all states of holding and letting go."""
    odd_settings()
    before = state()
    churn = (
        OWNER
        + """
print(flush=True)
while True:
    with forwarding.Forwarding.hold(4), forwarding.Forwarding.hold(6): pass
"""
    )
    on = 0
    for _ in range(rounds):
        with contextlib.ExitStack() as stack:
            each = [stack.enter_context(other(churn)) for _ in range(3)]
            for process in each:
                process.stdout.readline()
            time.sleep(random.random() * 0.02)
            for process in each:
                process.kill()
            on += any(name.startswith("net-") for name in left())
            for process in each:
                process.wait()
            comes_back_to(before)
    assert on, "no kill hit anything"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("call", ["hold", "close"])
def test_a_kill_at_each_write_loses_nothing(version: int, call: str) -> None:
    run_apart(kill_at_each_write, PRELUDE + f"version, call = {version}, {call!r}\n")


def kill_at_each_write() -> None:
    odd_settings()
    before = state()
    code = (
        OWNER
        + """
version, call, number = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if call == "close":
    held = forwarding.Forwarding.hold(version)
count = 0
def counted(real):
    def run(*args):
        global count
        count += 1
        if count > number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return run
for name in ("write", "pwrite", "ftruncate", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
if call == "close":
    held.close()
else:
    held = forwarding.Forwarding.hold(version)
sys.stdout.write("done")
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    for number in range(20):
        with other(code, str(version), call, str(number)) as process:
            said = process.communicate()[0]
        assert process.returncode == -9
        comes_back_to(before)
        if said:
            break
    assert said == "done"
    assert number >= 3


@apart
def test_a_launcher_that_is_killed_while_it_puts_all_back_loses_nothing() -> None:
    """It has written down what is to be, as Forwarding does, for whoever looks next."""
    odd_settings()
    before = state()
    code = OWNER + "held = forwarding.Forwarding.hold(4)\nprint(flush=True)\nsys.stdin.readline()"
    setting("ipv4/conf/all/accept_redirects", "0")
    with other(code) as process:
        process.stdout.readline()
        file = next(Path("/run/nsbox", name) for name in left() if "forwarding" in name)
        guardian = launcher()
        # It cannot write there: that stops it where a kill would.
        sc.mount("/proc/sys", "/proc/sys", None, MountFlag.BIND | MountFlag.REC)
        sc.mount(None, "/proc/sys", None, MountFlag.BIND | MountFlag.REMOUNT | MountFlag.RDONLY)
        process.kill(), process.wait()
        ends(guardian)
        assert file.read_bytes().count(b"\nend\n") == 2
        assert setting("ipv4/ip_forward") == "1"
        sc.umount2("/proc/sys", 2)
        setting("ipv4/ip_forward", "0")  # half done
        assert len(nsbox.gc()) == 1
        comes_back_to(before)


@apart
def test_what_others_changed_meanwhile_stays_as_they_left_it() -> None:
    odd_settings()
    code = OWNER + "held = forwarding.Forwarding.hold(4)\nprint(flush=True)\nsys.stdin.readline()"
    for changes in (
        {"ipv4/conf/two/forwarding": "0", "ipv4/conf/all/accept_redirects": "1"},
        {"ipv4/ip_forward": "0"},
    ):
        before = {n: Path(f"/proc/sys/net/{n}").read_text() for n in (*changes, "ipv4/ip_forward")}
        with other(code) as process:
            process.stdout.readline()
            for name, value in changes.items():
                setting(name, value)
            process.kill(), process.wait()
            end = time.monotonic() + patience
            while left():
                assert time.monotonic() < end
                time.sleep(0.01)
        for name, value in changes.items():
            assert setting(name) == value
        assert setting("ipv4/ip_forward") == "0"
        for name, value in before.items():
            setting(name, value.strip())


@apart
def test_a_switch_that_was_on_before_is_not_touched() -> None:
    """Nor are interfaces, which were off when it was, and are on now."""
    setting("ipv4/ip_forward", "1")
    setting("ipv4/conf/lo/forwarding", "0")
    code = OWNER + "held = forwarding.Forwarding.hold(4)\nprint(flush=True)\nsys.stdin.readline()"
    for name in ("ipv4/conf/lo/forwarding", "ipv4/ip_forward"):
        with other(code) as process:
            process.stdout.readline()
            setting(name, str(1 - int(setting(name))))
            before = state() | {"files": []}
            process.kill(), process.wait()
            comes_back_to(before)


@apart
def test_files_that_are_not_to_be_believed() -> None:
    """Of another network namespace or boot, not whole, or with lines that are none."""
    settings = "net 1\nall/forwarding 0\ndefault/forwarding 1\nlo/forwarding 1"
    directory = Path(registry.directory())
    before = state()

    def killed(name, text, goes):
        with other(OWNER + "print(flush=True); sys.stdin.readline()") as process:
            process.stdout.readline()
            (directory / name).write_text(text)
            guardian = launcher()
            process.kill(), process.wait()
            ends(guardian)
        assert os.path.exists(directory / name) != goes, (name, text[:99])
        if not goes:
            (directory / name).unlink()

    here = f"{shared.prefix()}forwarding4"
    boot, number = here.split("-")[1:3]
    whole = f"{settings}\nend\n"
    for name in (
        f"net-{boot}-{int(number) + 1}-forwarding4", f"net-{boot}-{number}0-forwarding4",
        f"net-00000000-{number}-forwarding4", f"net-{boot}-{int(number) + 1}-subnets",
    ):  # fmt: skip
        killed(name, whole * 2, False)
        assert not differences(before)
    for text in ("", settings, f"{settings}\nen", "\nend\n"):
        killed(here, text, True)
        assert not differences(before)
    for text in (
        f"{settings}\nother\nend\n", f"{settings}\nlo/forwarding 01\nend\n",
        f"{settings}\nlo/forwarding \nend\n", f"{settings}\n{'x' * 9999}\nend\n", "x" * (1 << 21),
    ):  # fmt: skip
        killed(here, text, False)
        assert not differences(before)
    killed(here, whole * 2, True)  # its twin, that is believed
    assert setting("ipv4/conf/lo/forwarding") == setting("ipv4/conf/default/forwarding") == "1"


@apart
def test_an_owner_s_child_before_its_execve_does_not_keep_it() -> None:
    """It has copies of the descriptors for a moment; and one that execs for ever has none."""
    before = state()
    code = (
        OWNER
        + """
held = forwarding.Forwarding.hold(4)
import subprocess
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
sys.stdin.readline()
"""
    )
    with other(code) as process, child(process):
        process.kill(), process.wait()
        comes_back_to(before)
