# SPDX-License-Identifier: Apache-2.0
"""A pod with a web server and a sidecar that reads from it, as root or as an ordinary user.

The sidecar fetches a page over the pod's loopback every second. The server is killed, and
restarted by policy; the sidecar sees it come back, for the pause process kept the network.
Then a table shows which namespaces the two share, and which are each one's own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nsbox

PAGE = "<h1>hello from a pod</h1>\n"

SIDECAR = """
import time, urllib.request
n = 0
while True:
    n += 1
    try:
        with urllib.request.urlopen("http://127.0.0.1:80/", timeout=1) as page:
            print(f"fetch {n}: {page.status} {page.read().decode().strip()}", flush=True)
    except OSError as e:
        print(f"fetch {n}: {e}", flush=True)
    time.sleep(1)
"""


def wait_for(what: str, pod: nsbox.Pod, count: int, timeout_s: float = 30) -> None:
    """Until the sidecar's log has *what* at least *count* times."""
    deadline = time.monotonic() + timeout_s
    while pod["reader"].logs().count(what) < count:
        if time.monotonic() > deadline:
            sys.exit(f"no {what!r} within {timeout_s:g} s; the sidecar's log:\n"
                     + pod["reader"].logs())  # fmt: skip
        time.sleep(0.02)


def show_namespaces(pod: nsbox.Pod) -> None:
    """Ids as lsns shows them: equal ids are one namespace."""
    server, reader = pod["server"].namespaces, pod["reader"].namespaces
    host = {kind: Path(f"/proc/self/ns/{kind}").stat().st_ino for kind in server}
    print(f"{'namespace':<10} {'host':<12} {'server':<12} {'reader':<12}")
    for kind in ("ipc", "net", "mnt", "uts", "pid", "user", "cgroup"):
        if server[kind] != reader[kind]:
            verdict = "each its own"
        elif server[kind] == host[kind]:
            verdict = "the host's"
        else:
            verdict = "shared, the pod's"
        print(f"{kind:<10} {host[kind]:<12} {server[kind]:<12} {reader[kind]:<12} {verdict}")


def main() -> None:
    with tempfile.TemporaryDirectory() as site:
        Path(site).chmod(0o755)
        Path(site, "index.html").write_text(PAGE)
        serve = ["python3", "-u", "-m", "http.server", "80", "--bind", "127.0.0.1",
                 "--directory", "/site"]  # fmt: skip
        server = nsbox.ContainerSpec("server", serve, mounts=[nsbox.Mount.bind(site, "/site")])
        reader = nsbox.Sidecar("reader", ["python3", "-u", "-c", SIDECAR])
        with nsbox.Pod("web", [server], init_containers=[reader],
                       restart_policy="Always", backoff=nsbox.Backoff.fast()) as pod:  # fmt: skip
            wait_for("200", pod, 2)
            print(pod, "\n")
            print("killing the server ...")
            pod["server"].kill()
            pod["server"].wait_restarted(1)
            wait_for("200", pod, pod["reader"].logs().count("200") + 2)
            print(pod, "\n")
            print("what the sidecar saw:")
            print(pod["reader"].logs())
            show_namespaces(pod)
            pod.stop(grace=5)
        print("\nevents:")
        for event in pod.events:
            print(f"  {event.reason:<15} {event.container:<8} {event.message}")


if __name__ == "__main__":
    main()
