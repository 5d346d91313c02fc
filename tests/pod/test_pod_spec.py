# SPDX-License-Identifier: Apache-2.0
"""What a pod refuses before anything is started, naming the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pod.kit import sidecar, sleeper, wait_log
from support import scaled

import nsbox

if TYPE_CHECKING:
    from pathlib import Path

BAD_NAMES = ["", "Web", "-web", "web-", "we_b", "web.local", "w" * 64, "wéb", "web\n", None, 7]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_a_dns_label(name: Any) -> None:
    with pytest.raises(nsbox.SpecError, match="DNS label") as caught:
        nsbox.Pod(name, [sleeper("a")])
    assert caught.value.field == "name"
    with pytest.raises(nsbox.SpecError, match="DNS label") as caught:
        sleeper(name)
    assert caught.value.field == "containers.name"


@pytest.mark.parametrize("name", ["a", "0", "web-1", "w" * 63])
def test_good_names(name: str) -> None:
    pod = nsbox.Pod(name, [sleeper(name)])
    assert (pod.name, pod.hostname, pod[name].name) == (name, name, name)


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        pytest.param({"containers": []}, "containers", id="no container"),
        pytest.param({"containers": [sleeper("a"), sleeper("a")]}, "containers", id="two named a"),
        pytest.param({"init_containers": [sidecar("a")]}, "containers", id="a sidecar named a"),
        pytest.param({"containers": [sidecar("b")]}, "containers", id="a sidecar among the apps"),
        pytest.param({"primary": "b"}, "primary", id="no such primary"),
        pytest.param(
            {"primary": "helper", "init_containers": [sidecar("helper")]}, "primary",
            id="the primary is a sidecar",
        ),
        pytest.param({"restart_policy": "Sometimes"}, "restart_policy", id="no such policy"),
        pytest.param({"restart_policy": "always"}, "restart_policy", id="policy in lower case"),
        pytest.param({"net": "bridge"}, "net", id="no such net"),
        pytest.param({"containers": sleeper("a")}, "containers", id="a container alone"),
        pytest.param({"containers": "a"}, "containers", id="containers are a string"),
        pytest.param({"containers": 1}, "containers", id="containers are no list"),
        pytest.param({"containers": ["true"]}, "containers[0]", id="a command for a container"),
        pytest.param({"init_containers": ["x"]}, "init_containers[0]", id="no init container"),
        pytest.param({"init_containers": None}, "init_containers", id="init containers are None"),
        pytest.param({"backoff": 3}, "backoff", id="backoff is a number"),
    ],
)  # fmt: skip
def test_refused(keywords: dict[str, Any], field: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Pod("web", **{"containers": [sleeper("a")], **keywords})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("key", "value"), [("hostname", "x"), ("namespaces", ["net"]), ("net", "host")]
)
def test_what_is_the_pods_to_say_is_refused_of_a_container(key: str, value: Any) -> None:
    with pytest.raises(nsbox.SpecError, match="the pod's to say") as caught:
        sleeper("a", **{key: value})
    assert caught.value.field == f"containers['a'].{key}"


def test_a_policy_of_a_container_is_checked() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        sleeper("a", restart_policy="Sometimes")
    assert caught.value.field == "containers['a'].restart_policy"


@pytest.mark.parametrize(
    ("keywords", "field"),
    [({"initial": "1"}, "initial"), ({"max": -1}, "max"), ({"reset_after": None}, "reset_after"),
     ({"factor": float("nan")}, "factor"), ({"factor": 1e300}, "factor")],
)  # fmt: skip
def test_delays_are_numbers(keywords: dict[str, Any], field: str) -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Backoff(**keywords)
    assert caught.value.field == f"backoff.{field}"


@pytest.mark.parametrize("kind", [nsbox.ContainerSpec, nsbox.Sidecar])
def test_an_unknown_keyword_of_a_container_is_refused_when_it_is_made(kind: Any) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}\(\) got an unexpected .* 'foo'"):
        kind("a", ["true"], foo=1)


def test_containers_may_come_from_anything_that_is_read_once() -> None:
    pod = nsbox.Pod("web", (sleeper(name) for name in "ab"), init_containers=iter([sidecar("c")]))
    assert [pod[name].name for name in "abc"] == ["a", "b", "c"]


def test_an_error_in_a_container_names_the_container_and_the_field() -> None:
    with pytest.raises(nsbox.SpecError) as caught:
        nsbox.Pod("web", [sleeper("a", user="x")])
    assert caught.value.field == "containers['a'].user"
    with pytest.raises(TypeError, match="must be a list"):
        nsbox.Pod("web", [nsbox.ContainerSpec("a", "sleep 1000")])


@pytest.mark.parametrize(
    ("keywords", "feature"),
    [
        ({"volumes": {"v": object()}}, "volumes"),
    ],
    ids=["volumes"],
)
def test_what_this_version_cannot_do_is_said(keywords: dict[str, Any], feature: str) -> None:
    with pytest.raises(nsbox.Unavailable) as caught:
        nsbox.Pod("web", [sleeper("a")], **keywords)
    assert caught.value.feature == feature


def test_an_unknown_container_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        nsbox.Pod("web", [sleeper("a")])["b"]


@pytest.mark.userns
def test_files_are_read_as_run_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "greeting"
    path.write_text("hello from a file\n")
    spec = nsbox.ContainerSpec("a", ["cat", "greeting"], files={"greeting": path})
    with nsbox.Pod("web", [spec], restart_policy="Never") as pod:
        assert pod.wait(scaled(10)) == "Succeeded"
        assert wait_log(pod["a"], "\n") == "hello from a file\n"
