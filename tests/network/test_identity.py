# SPDX-License-Identifier: Apache-2.0
"""Who one is in a network: everybody finds his own name, at once, and others find it too."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from network.userworld import rootless
from network.world import OUTSIDE, RESOLV, SUBNET, SUBNET6, elsewhere, idle, output, raises
from support import scaled

import nsbox
from nsbox.identity import host_name, published

#: Host name, /etc/hostname, and the addresses that the host name has. There is no name server
#: that would say so, and the one there is never answers.
WHO = """
import json, socket, sys
name = socket.gethostname()
try:
    written = open("/etc/hostname").read().strip()
except FileNotFoundError:
    written = None
try:
    families = (socket.AF_INET, socket.AF_INET6)[:int(sys.argv[1])]
    found = [socket.getaddrinfo(name, 80, one)[0][4][0] for one in families]
except OSError as e:
    found = str(e)
print(json.dumps([name, written, found]))
"""
ASK = ["python3", "-SIc", WHO, "1"]
ASK_BOTH = [*ASK[:-1], "2"]
SILENT = "nameserver 198.51.100.99\n"


def who(box: Any, ask: list[str] = ASK) -> tuple[str, str | None, Any]:
    since = time.monotonic()
    name, written, found = json.loads(output(box, *ask))
    assert time.monotonic() - since < scaled(3), "it was looked for elsewhere"
    return name, written, found


def finds(box: Any, name: str) -> str | None:
    """The address, if it is in /etc/hosts; a name server would not know it."""
    lines = output(box, "cat", "/etc/hosts").splitlines()
    if not any(name in line.split()[1:] for line in lines if not line.startswith("#")):
        return None
    return output(box, "getent", "ahostsv4", name).split()[0]


def run_who(net: Any, **keywords: Any) -> tuple[str, str | None, Any]:
    done = nsbox.run(ASK, net=net, capture_output=True, text=True, timeout=scaled(20), **keywords)
    assert done.ok, done
    name, written, found = json.loads(done.stdout)
    return name, written, found


@pytest.mark.kernel
@elsewhere
def test_who_is_in_a_network_has_its_name_as_host_name_and_finds_it() -> None:
    RESOLV.write_text(SILENT)
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net,
        idle("web", net) as web,
        idle("b", net, hostname="bee") as b,
        idle("my_box", net) as box,
    ):
        assert who(web, ASK_BOTH) == ("web", "web", [str(web.ip), str(web.ip6)])
        assert who(b, ASK_BOTH) == ("bee", "bee", [str(b.ip), str(b.ip6)])
        assert who(box, ASK_BOTH) == ("my-box", "my-box", [str(box.ip), str(box.ip6)])
        for name, one in (("b", b), ("bee", b), ("my-box", box)):
            assert finds(web, name) == str(one.ip), name
        assert finds(web, "my_box") is None


@elsewhere
def test_a_host_name_is_nobody_else_s() -> None:
    RESOLV.write_text(SILENT)
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        with idle("web", net) as one, idle("web", net) as two:
            assert who(one)[0] == "web"
            assert who(two) == ("web-2", "web-2", [str(two.ip)])
            lines = output(one, "cat", "/etc/hosts").splitlines()
            assert {f"{box.ip}\tweb" for box in (one, two)} <= set(lines)
        with idle("web", net) as again:
            assert who(again)[0] == "web"
            assert finds(again, "web-2") is None


@elsewhere
def test_what_runs_to_its_end_finds_itself_too() -> None:
    RESOLV.write_text(SILENT)
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        for keywords in ({}, {"profile": "standard"}, {"user": 0}, {"mounts": MOUNTS}):
            name, written, found = run_who(net, **keywords)
            assert (name, written, len(found)) == ("sandbox", "sandbox", 1), keywords
            assert found[0].startswith("10.77.0."), keywords
        assert run_who(net, hostname="bee")[:2] == ("bee", "bee")
        # Whose /etc is the host's, or who has no host name of its own, is called as the host is.
        host = output_of(["hostname"])
        inherited = {"root": nsbox.Rootfs.inherit(), "profile": "none"}
        for keywords in (inherited, {"namespaces": ["net", "mnt"], "profile": "none"}):
            done = nsbox.run(["hostname"], net=net, capture_output=True, text=True, **keywords)
            assert done.stdout == host, (keywords, done)


MOUNTS = [nsbox.Mount.tmpfs("/here")]


def output_of(words: list[str]) -> str:
    import subprocess

    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@elsewhere
def test_what_is_mounted_over_the_files_of_a_network_is_not_seen_on_the_host() -> None:
    """Also where the host's /run is shared, as systemd makes it."""
    from nsbox import syscalls as sc
    from nsbox.syscalls import MountFlag

    sc.mount(None, "/run", None, MountFlag.SHARED)
    with nsbox.Network("nsb0", subnet=SUBNET) as net:
        for keywords in ({}, {"profile": "standard", "user": 0}, {"mounts": MOUNTS}):
            done = nsbox.run(["cat", "/proc/self/mountinfo"], net=net, capture_output=True,
                             text=True, **keywords)  # fmt: skip
            lines = [line for line in done.stdout.splitlines() if " /etc/host" in line]
            assert len(lines) == 2, done
            assert not any("shared:" in line or "master:" in line for line in lines), lines


@elsewhere
def test_who_shares_a_network_finds_what_its_owner_finds() -> None:
    RESOLV.write_text("nameserver 203.0.113.53\n")
    app = nsbox.ContainerSpec("app", ["sleep", "1000"])
    with (
        nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6, dns=["192.0.2.2"]) as net,
        idle("db", net) as db,
        nsbox.Pod("web", [app], net=net, hostname="www") as pod,
        idle("guest", pod) as guest,
        idle("other", db, hostname="different") as other,
        idle("third", guest) as third,
        nsbox.Pod("guests", [app], net=pod) as guests,
    ):
        both = [str(pod.ip), str(pod.ip6)]
        for box in (guest, third, guests):
            assert [str(box.ip), str(box.ip6)] == both
            assert box.ports == ()
        for box in (pod["app"], guest, third):
            assert who(box, ASK_BOTH) == ("www", "www", both)
        assert who(guests["app"], ASK_BOTH) == ("guests", "guests", both)
        assert other.ip == db.ip
        assert who(other, ASK_BOTH) == ("different", "different", [str(db.ip), str(db.ip6)])
        for box in (guest, third, guests["app"], other):
            assert output(box, "cat", "/etc/resolv.conf").splitlines() == [
                "nameserver 192.0.2.2",
                "nameserver 203.0.113.53",
            ]
            for name, one in (("db", db), ("web", pod), ("www", pod), ("different", db)):
                assert finds(box, name) == str(one.ip), name
        done = nsbox.run(ASK_BOTH, net=pod, capture_output=True, text=True)
        assert json.loads(done.stdout) == ["www", "www", both]
        other.close()
        assert finds(guest, "different") is None


@elsewhere
def test_the_address_of_a_pod_is_known_after_its_end() -> None:
    app = nsbox.ContainerSpec("app", ["sleep", "1000"])
    with nsbox.Network("nsb0", subnet=SUBNET, subnet6=SUBNET6) as net:
        with nsbox.Pod("web", [app], net=net) as pod:
            assert pod["app"].exec(["true"]).ok
        assert (str(pod.ip), str(pod.ip6)) == ("10.77.0.2", "fd00:77::2")
        with raises(nsbox.StateError):
            _ = pod.eth0


ALIASES = {"192.0.2.9": ["nine", "nine.example"]}


@elsewhere
def test_a_pod_says_its_name_servers_and_more_names() -> None:
    RESOLV.write_text("nameserver 203.0.113.1\nsearch lan\n")
    app, log = (nsbox.ContainerSpec(name, ["sleep", "1000"]) for name in ("app", "log"))
    dns = {"nameservers": [OUTSIDE], "searches": ["test"], "options": ["ndots:2"]}
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("db", net) as db:
        with (
            nsbox.Pod("web", [app, log], net=net, dns=dns, host_aliases=ALIASES) as pod,
            nsbox.Pod("alone", [app], net=net, dns=dns, dns_policy="None") as alone,
            idle("late", net) as late,
        ):
            for box in (pod["app"], pod["log"]):
                assert output(box, "cat", "/etc/resolv.conf").splitlines() == [
                    f"nameserver {OUTSIDE}",
                    "nameserver 203.0.113.1",
                    "search lan test",
                    "options ndots:2",
                ]
                for name, address in (("nine.example", "192.0.2.9"), ("db", db.ip),
                                      ("web", pod.ip), ("late", late.ip)):  # fmt: skip
                    assert finds(box, name) == str(address)
            assert output(alone["app"], "cat", "/etc/resolv.conf").splitlines() == [
                f"nameserver {OUTSIDE}",
                "search test",
                "options ndots:2",
            ]
            assert finds(db, "nine") is None
        with idle("later", net) as later:
            assert finds(later, "db") == str(db.ip)


@elsewhere
def test_a_pod_in_the_host_s_network_finds_itself_and_what_the_host_finds() -> None:
    RESOLV.write_text(SILENT)
    app = nsbox.ContainerSpec("app", ["sleep", "1000"])
    with nsbox.Pod("web", [app], net="host", host_aliases=ALIASES) as pod:
        assert who(pod["app"]) == ("web", "web", ["127.0.1.1"])
        assert finds(pod["app"], "nine") == "192.0.2.9"
        assert output(pod["app"], "cat", "/etc/resolv.conf") == SILENT
        own = Path("/etc/hosts").read_text().splitlines()
        assert output(pod["app"], "cat", "/etc/hosts").splitlines()[: len(own)] == own
    done = nsbox.run(ASK, net="host", hostname="bee", capture_output=True, text=True)
    assert json.loads(done.stdout) == ["bee", "bee", ["127.0.1.1"]]


@pytest.mark.userns
def test_a_pod_without_a_network_has_more_names_too() -> None:
    app = nsbox.ContainerSpec("app", ["sleep", "1000"])
    with nsbox.Pod("web", [app], host_aliases=ALIASES) as pod:
        assert who(pod["app"]) == ("web", "web", ["127.0.1.1"])
        # Where there is but a loopback, who asks for addresses that he could use gets none.
        assert output(pod["app"], "getent", "hosts", "nine").split()[0] == "192.0.2.9"


def test_what_a_pod_cannot_be_told_of_names() -> None:
    app = nsbox.ContainerSpec("app", ["true"])
    net = nsbox.Network()
    for keywords, field in (
        ({"dns": ["192.0.2.1"]}, "dns"),
        ({"net": net, "dns": [f"192.0.2.{n}" for n in range(1, 5)]}, "dns"),
        ({"net": net, "dns_policy": "None"}, "dns"),
        ({"net": net, "dns_policy": "ClusterLast"}, "dns_policy"),
        ({"net": net, "dns_policy": None}, "dns_policy"),
        ({"host_aliases": {"192.0.2.1": []}}, "host_aliases[0].hostnames"),
        ({"host_aliases": {"here": ["a"]}}, "host_aliases[0].ip"),
        ({"net": nsbox.Pod("other", [app]), "host_aliases": ALIASES}, "host_aliases"),
    ):
        with pytest.raises(nsbox.SpecError) as caught:
            nsbox.Pod("web", [app], **keywords)  # type: ignore[arg-type]
        assert caught.value.field == field, keywords
    for key in ("dns", "publish", "egress", "address"):
        with pytest.raises(nsbox.SpecError, match="is the pod's to say"):
            nsbox.ContainerSpec("app", ["true"], **{key: None})


@elsewhere
def test_names_that_have_no_place_are_told_not_dropped() -> None:
    import tempfile

    from run.kit import busybox_root

    with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
        Path(where).chmod(0o755)
        root = busybox_root(Path(where, "root"))
        app = nsbox.ContainerSpec("app", ["/bin/sleep", "1000"], root=nsbox.Rootfs.dir(root))
        with (
            raises(nsbox.SpecError, "host_aliases"),
            nsbox.Pod("web", [app], net=net, host_aliases=ALIASES),
        ):
            pass
        with raises(nsbox.SpecError, "dns"):
            nsbox.run(["/bin/true"], root=nsbox.Rootfs.dir(root), net=net, dns=["192.0.2.1"])
        for name in ("hosts", "hostname"):
            (root / "etc" / name).touch()
        with nsbox.Pod("web", [app], net=net, host_aliases=ALIASES) as pod:
            assert "nine.example" in output(pod["app"], "/bin/cat", "/etc/hosts")
            assert output(pod["app"], "/bin/cat", "/etc/hostname") == "web\n"
        assert (root / "etc" / "hosts").read_bytes() == b""
    with nsbox.Bridge("nsb0") as bridge, raises(nsbox.SpecError, "dns"):
        nsbox.run(["true"], net=bridge, dns=["192.0.2.1"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("web", "web"),
        ("a.b", "a.b"),
        ("my_box", "my-box"),
        ("_a b_", "a-b"),
        ("", "sandbox"),
        ("--", "sandbox"),
        ("é", "sandbox"),
        ("x" * 70, "x" * 63),
        ("a" * 62 + "_b", "a" * 62),
    ],
)
def test_what_is_called_otherwise_gets_a_host_name_like_it(name: str, said: str) -> None:
    assert host_name(name) == said
    assert published(said)


def test_localhost_is_everybody_s_own() -> None:
    assert not published("localhost")
    assert not published("ip6-localhost")


# -- as an ordinary user ----------------------------------------------------------------------


@rootless()
def test_names_of_an_ordinary_user_s_network() -> None:
    from network.test_identity import ASK, finds, who

    app = nsbox.ContainerSpec("app", ["sleep", "1000"])
    with (
        nsbox.Network(nat=False, subnet="10.77.0.0/24", dns=["192.0.2.7"]) as net,
        nsbox.Container(["sleep", "1000"], name="db", hostname="base", net=net) as db,
        nsbox.Container(["sleep", "1000"], name="my_box", net=net) as box,
        nsbox.Pod("web", [app], net=net, dns=["192.0.2.8"], dns_policy="None",
                  host_aliases={"192.0.2.9": ["nine"]}) as pod,
        nsbox.Container(["sleep", "1000"], name="guest", net=pod) as guest,
        nsbox.Pod("guests", [app], net=db) as guests,
    ):  # fmt: skip
        assert who(db) == ("base", "base", [str(db.ip)])
        assert who(box) == ("my-box", "my-box", [str(box.ip)])
        assert who(pod["app"]) == who(guest) == ("web", "web", [str(pod.ip)])
        assert who(guests["app"]) == ("guests", "guests", [str(db.ip)])
        assert (guest.ip, guests.ip) == (pod.ip, db.ip)
        for one in (pod["app"], guest):
            text = one.exec(["cat", "/etc/resolv.conf"], capture_output=True, text=True).stdout
            assert text == "nameserver 192.0.2.8\n"
            assert one.exec(["grep", "-q", "nine", "/etc/hosts"]).ok
        for one in (db, box, guest):
            for name in ("db", "base", "my-box", "web", "guests"):
                assert finds(one, name), name
        done = nsbox.run(ASK, net=net, capture_output=True, text=True)
        assert json.loads(done.stdout)[:2] == ["sandbox", "sandbox"]
    with nsbox.Pod("web", [app], net="host") as pod:
        assert who(pod["app"]) == ("web", "web", ["127.0.1.1"])
    assert pod.ip is None


# -- what is shared stays what it is -----------------------------------------------------------


@elsewhere
def test_the_name_of_who_shares_a_place_ends_with_the_place_too() -> None:
    with nsbox.Network("nsb0", subnet=SUBNET) as net, idle("other", net) as other:
        first = idle("first", net).start()
        address = str(first.ip)
        with nsbox.Container(["sleep", "1000"], net=first, hostname="guest"):
            assert finds(other, "guest") == address
            first.close()
            assert finds(other, "guest") is None
            with idle("second", net, address=address):
                assert finds(other, "second") == address


@pytest.mark.kernel
@elsewhere
def test_a_writable_directory_is_a_root_in_a_network_whatever_the_profile() -> None:
    import tempfile
    from pathlib import Path

    from run import kit

    # Only root inside could make the files, and of a sandbox with ids of its own that is another.
    for profile, made in (("none", True), ("strict", kit.maps_ids("/tmp")), ("standard", False)):
        with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
            root = nsbox.Rootfs.dir(kit.busybox_root(Path(where) / "root"), ro=False)
            keywords = {"root": root, "profile": profile, "capture_output": True, "text": True}
            done = nsbox.run(["sh", "-c", "cat /etc/hostname || :"], net=net, **keywords)
            assert done.stdout == "sandbox\n" * made, done
            if not made:
                with pytest.raises(nsbox.SetupError, match=r"/etc/resolv\.conf"):
                    nsbox.run(["true"], net=net, dns=["192.0.2.9"], **keywords)
                (Path(root.path) / "etc/hostname").touch()
                done = nsbox.run(["cat", "/etc/hostname"], net=net, **keywords)
                assert done.stdout == "sandbox\n", done


_LINKS = {
    "nowhere": {"etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf"},
    "absolute": {"etc/resolv.conf": "/run/resolv.conf"},
    "by a link": {"etc/resolv.conf": "../var/run/resolv.conf", "var/run": "/run"},
    "two links": {"etc/resolv.conf": "/data/link", "data/link": "../../../run/resolv.conf"},
    "out of it": {"etc/resolv.conf": "../../../../../../../../run/nsbox-outside/resolv.conf"},
}


@pytest.mark.kernel
@elsewhere
def test_a_link_to_what_is_not_there_is_followed_in_the_root() -> None:
    import tempfile
    from pathlib import Path

    from run import kit

    for links in _LINKS.values():
        with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
            lower = kit.busybox_root(Path(where) / "root")
            for name in ("var", "run"):
                (lower / name).mkdir()
            for link, target in links.items():
                (lower / link).symlink_to(target)
            for root in (nsbox.Rootfs.overlay(lower), nsbox.Rootfs.dir(lower, ro=False)):
                done = nsbox.run(["cat", "/etc/resolv.conf"], root=root, net=net, profile="none",
                                 dns=["192.0.2.9"], capture_output=True, text=True)  # fmt: skip
                assert "nameserver 192.0.2.9" in str(done.stdout), (links, done)
                assert done.changes == ()
            assert not Path("/run/nsbox-outside").exists()


@elsewhere
def test_a_link_does_not_lead_to_what_is_not_the_root_s() -> None:
    import tempfile
    from pathlib import Path

    from run import kit

    look = "echo x > /dev/null; test -c /dev/null; cat /etc/resolv.conf"
    with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
        lower = kit.busybox_root(Path(where) / "root")
        for name, target in (("hosts", "/dev/null"), ("hostname", "/proc/self/environ")):
            (lower / "etc" / name).symlink_to(target)
        keywords = {"net": net, "profile": "none", "capture_output": True, "text": True}
        for root in (nsbox.Rootfs.overlay(lower), nsbox.Rootfs.dir(lower, ro=False)):
            done = nsbox.run(["sh", "-c", look], root=root, dns=["192.0.2.9"], **keywords)
            assert done.ok, done
            assert "nameserver 192.0.2.9" in str(done.stdout)
        (lower / "etc/resolv.conf").unlink()
        (lower / "etc/resolv.conf").symlink_to("/dev/null")
        with pytest.raises(nsbox.SpecError, match=r"dns: the root has no /etc/resolv\.conf"):
            nsbox.run(["true"], root=nsbox.Rootfs.overlay(lower), dns=["192.0.2.9"], **keywords)


@pytest.mark.kernel
@elsewhere
def test_a_tmpfs_that_a_link_leads_into_gets_the_file() -> None:
    import tempfile
    from pathlib import Path

    from run import kit

    cases = [("/run/resolv.conf", [nsbox.Mount.tmpfs("/run")], "none")]
    if kit.maps_ids("/tmp"):  # which an overlay with ids of its own needs
        cases += [("/tmp/r", [], "strict")]
    for target, mounts, profile in cases:
        with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
            lower = kit.busybox_root(Path(where) / "root")
            (lower / "run").mkdir()
            (lower / "etc/resolv.conf").symlink_to(target)
            root = nsbox.Rootfs.overlay(lower)
            done = nsbox.run(["cat", "/etc/resolv.conf"], root=root, net=net, mounts=mounts,
                             profile=profile, dns=["192.0.2.9"], capture_output=True,
                             text=True)  # fmt: skip
            assert "nameserver 192.0.2.9" in str(done.stdout), done


@elsewhere
def test_a_read_only_root_s_link_to_a_file_of_its_own_is_followed() -> None:
    import tempfile
    from pathlib import Path

    from run import kit

    with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
        lower = kit.busybox_root(Path(where) / "root")
        (lower / "etc/real").write_text("old\n")
        (lower / "etc/resolv.conf").symlink_to("real")
        done = nsbox.run(["cat", "/etc/resolv.conf"], root=nsbox.Rootfs.dir(lower), net=net,
                         dns=["192.0.2.9"], capture_output=True, text=True)  # fmt: skip
        assert "nameserver 192.0.2.9" in str(done.stdout)
        assert (lower / "etc/real").read_text() == "old\n"


@elsewhere
def test_links_that_lead_in_a_circle_are_told() -> None:
    import tempfile
    from pathlib import Path

    from run import kit

    with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
        lower = kit.busybox_root(Path(where) / "root")
        (lower / "etc/resolv.conf").symlink_to("resolv.conf")
        with pytest.raises(nsbox.SetupError, match=r"resolv\.conf.*ELOOP"):
            nsbox.run(["true"], root=nsbox.Rootfs.overlay(lower), net=net)


@elsewhere
def test_files_of_the_network_are_no_change_of_an_overlay() -> None:
    import tempfile
    from pathlib import Path

    from run import kit

    with tempfile.TemporaryDirectory() as where, nsbox.Network("nsb0", subnet=SUBNET) as net:
        lower = kit.busybox_root(Path(where) / "root")
        for script, changes in (("true", []), ("echo x > /data/x", ["/data/x"])):
            done = nsbox.run(["sh", "-c", script], root=nsbox.Rootfs.overlay(lower), net=net,
                             user=0, profile="standard")  # fmt: skip
            assert [change.path for change in done.changes] == changes


@rootless()
def test_who_may_mount_rewrites_no_file_of_the_others() -> None:
    script = """
    for file in /etc/hosts /etc/resolv.conf /etc/hostname; do
        mount -o remount,bind,rw $file
        echo 192.0.2.66 evil >> $file
    done
    grep -l evil /etc/hosts
    """
    with (
        nsbox.Network(nat=False, dns=["192.0.2.7"]) as net,
        nsbox.Container(["sleep", "1000"], name="victim", net=net) as victim,
    ):
        for keywords in ({"profile": "none"}, {"capabilities": ["SYS_ADMIN"], "user": 0}):
            done = nsbox.run(
                ["sh", "-c", script], net=net, capture_output=True, text=True, **keywords
            )
            assert "/etc/hosts" in done.stdout, "so it could, if it were theirs"
            for name in ("hosts", "resolv.conf", "hostname"):
                text = victim.exec(["cat", f"/etc/{name}"], capture_output=True, text=True).stdout
                assert text
                assert "evil" not in text
