# SPDX-License-Identifier: Apache-2.0
"""Two sites with a router each, and a slow line between them: as root or as an ordinary user.

It draws the network, shows who reaches whom, measures a transfer over the slow line and one over
the fast switch, then makes the line faster, cuts it, and mends it. With an argument it writes the
drawing there as SVG.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nsbox

RECEIVE = """
import socket, time
listener = socket.create_server(("", 5000))
print("ready", flush=True)
while True:
    peer, _ = listener.accept()
    total, first = 0, 0.0
    while data := peer.recv(65536):
        last = time.monotonic()
        total += len(data) if first else 0  # from the first on
        first = first or last
    print(f"{total * 8 / (last - first) / 1e6:.1f}", flush=True)
"""

SEND = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 5000))
end = time.monotonic() + 1
while time.monotonic() < end:
    peer.send(bytes(16384))
"""


def build() -> nsbox.Topology:
    """h1 and h2 at one site, h3 at the other."""
    net = nsbox.Topology("sites")
    s1, s2 = net.switch("s1"), net.switch("s2")
    r1, r2 = net.router("r1"), net.router("r2")
    for name, switch in (("h1", s1), ("h2", s1), ("h3", s2)):
        net.link(net.host(name), switch, rate="100Mbit")
    net.link(s1, r1)
    net.link(s2, r2)
    net.link(r1, r2, rate="8Mbit")
    return net


def transfer(server: nsbox.Popen, source: nsbox.Container, sink: nsbox.Container) -> None:
    """One second of TCP, by name."""
    source.exec(["python3", "-c", SEND, sink.name], check=True)
    print(f"{source.name} -> {sink.name}: {server.stdout.readline().strip()} Mbit/s")


def main() -> None:
    net = build()
    with net:
        print(net, "\n")
        print(net.ping_all(), "\n")
        h1, h2, h3 = net.hosts
        line = net.links[-1]
        serve = ["python3", "-c", RECEIVE]
        with (h2.popen(serve, stdout=nsbox.PIPE, text=True) as near,
              h3.popen(serve, stdout=nsbox.PIPE, text=True) as far):  # fmt: skip
            for server in (near, far):
                server.stdout.readline()
            transfer(near, h1, h2)
            transfer(far, h1, h3)
            line.shape("16Mbit")
            transfer(far, h1, h3)
        end = line.ends[0]
        print(f"\nthe line at {line.a.name}: {end.counts['tx_bytes']} bytes sent, "
              f"{sum(queue.drops for queue in end.queues)} packets dropped\n")  # fmt: skip
        line.down()
        print(net, "\n")
        print(net.ping_all(timeout=0.5), "\n")
        line.up()
        print("mended:", "all are reached" if net.ping_all().ok else "not yet")
        if len(sys.argv) > 1:
            Path(sys.argv[1]).write_text(net.svg())


if __name__ == "__main__":
    main()
