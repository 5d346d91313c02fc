# SPDX-License-Identifier: Apache-2.0
"""devices= by name: nodes of the host's that were verified, and no others; umask=."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from run import kit

import nsbox
from nsbox import keywords, probe

pytestmark = pytest.mark.userns

#: find(1) believes readdir, which tells of the files below the mounts.
LIST = (
    "find /dev | sort | while read f; do "
    "if [ -c $f -o -b $f ] && [ ! -h $f ]; then echo $f; fi; done"
)
HERE = {name: [path for path in nodes if "*" not in path and Path(path).is_char_device()]
        for name, nodes in keywords.DEVICES.items()}  # fmt: skip
BASE = ["/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"]


@pytest.mark.parametrize("name", [name for name in HERE if name != "gpu"])
def test_a_device_is_there_when_it_is_asked_for_and_only_then(name: str) -> None:
    if not HERE[name]:
        with pytest.raises(nsbox.Unavailable) as caught:
            nsbox.run(["true"], devices=[name])
        assert caught.value.feature == f"devices['{name}']"
        assert keywords.DEVICES[name][0] in str(caught.value)
        return
    (path,) = HERE[name]
    done = kit.sh(f"{LIST}; stat -c '%t:%T %a' {path}", devices=[name])
    *nodes, rest = kit.out(done).splitlines()
    assert nodes == sorted([*BASE, path])
    status = os.stat(path)
    number = f"{os.major(status.st_rdev):x}:{os.minor(status.st_rdev):x}"
    assert rest == f"{number} {stat.S_IMODE(status.st_mode):o}"
    assert path not in kit.out(kit.sh(LIST)).splitlines()


def test_the_devices_of_every_sandbox_are_these() -> None:
    assert kit.out(kit.sh(LIST)).splitlines() == BASE


def a_device(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setitem(keywords.DEVICES, "kvm", (path,))


def test_a_device_works_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a node that every machine has, in the place of one that few have."""
    a_device(monkeypatch, "/dev/tty")
    done = kit.sh("exec 3< /dev/tty", devices=["kvm"])  # ENXIO is the driver's own answer
    assert "No such device or address" in str(done.stderr)
    done = kit.sh("exec 3< /dev/tty")
    assert "No such file" in str(done.stderr)


def test_what_is_no_device_node_is_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in (tmp_path / "file", tmp_path / "link"):
        a_device(monkeypatch, str(path))
        if path.name == "file":
            path.write_text("")
        else:
            path.symlink_to("/dev/null")
        with pytest.raises(nsbox.Unavailable, match="no device at"):
            nsbox.run(["true"], devices=["kvm"])


def test_a_node_that_was_exchanged_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened is compared with what was found, by the child."""
    wrong = (("kvm", "/dev/null", 1 << 8 | 5),)  # the number of /dev/zero
    monkeypatch.setattr(probe, "device_nodes", lambda name: wrong)
    with pytest.raises(nsbox.SetupError) as caught:
        nsbox.run(["true"], devices=["kvm"])
    assert (caught.value.field, caught.value.call) == ("devices['kvm']", "statx")


@pytest.mark.parametrize("value", [["null"], "kvm", ["/dev/kvm"], [("kvm", "/dev/sda", 2048)], 3])
def test_a_device_is_asked_for_by_one_of_its_names(value: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], devices=value)
    assert caught.value.field == "devices"


def test_devices_need_a_mount_namespace() -> None:
    names = [name for name in HERE if HERE[name]]
    if not names:
        pytest.skip("none of the devices is here")
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], devices=names[:1], namespaces=kit.spaces("pid"))
    assert caught.value.field == "devices"


# -- umask --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "modes"), [(0o022, "644 755"), (0, "666 777"), (0o77, "600 700")])
def test_umask_is_the_payloads(mask: int, modes: str) -> None:
    done = kit.sh("touch f; mkdir d; echo $(stat -c %a f d)", umask=mask)
    assert kit.out(done) == modes


def test_umask_is_022_whatever_the_callers_is() -> None:
    before = os.umask(0o077)
    try:
        assert kit.out(kit.sh("umask")) == "0022"
    finally:
        os.umask(before)


@pytest.mark.parametrize("value", [-1, 0o1000, "022", 1.0, True, None])
def test_a_umask_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.run(["true"], umask=value)
    assert caught.value.field == "umask"
