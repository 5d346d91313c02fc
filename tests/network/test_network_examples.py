# SPDX-License-Identifier: Apache-2.0
"""What a newcomer writes about networks, as it is written."""

from __future__ import annotations

import pytest
from network.world import elsewhere

import nsbox


@pytest.mark.kernel
@elsewhere
def test_3_the_steps_of_a_container_one_by_one() -> None:
    import os

    with (
        nsbox.Namespace.create("net") as ns,
        nsbox.Veth.create("veth1", netns=ns, peer="veth2", peer_netns=os.getpid()) as veth,
    ):
        shown = ns.run(["ip", "addr"], check=True, capture_output=True, text=True).stdout
        assert veth.link.name in shown
    assert nsbox.Namespace.of(os.getpid(), "net") == nsbox.Namespace.current("net")


@pytest.mark.kernel
@elsewhere
def test_5_docker0_by_hand() -> None:
    with (
        nsbox.Bridge("nsb0", subnet="10.77.0.0/24", nat=True) as br,
        nsbox.Container(["sleep", "60"], net=br) as a,
        nsbox.Container(["sleep", "60"], net=br) as b,
    ):
        a.exec(["ping", "-c1", str(b.ip)], check=True, capture_output=True)
