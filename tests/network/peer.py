# SPDX-License-Identifier: Apache-2.0
"""Who answers and who asks: in the test's own process, and as the payload of containers.

    python3 -c TEXT serve KIND PORT NAME [ADDRESS]     says "ready", then NAME and the address of
                                                       each that asks, to it
    python3 -c TEXT ask PATIENCE [KIND ADDRESS PORT]... asks all at once, prints [[answer or error,
                                                        seconds], ...] as JSON

KIND is tcp or udp. An error is its name, as ECONNREFUSED, or "silence".
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
import time

TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def listen(kind: str, port: int, address: str = "0.0.0.0") -> socket.socket:
    """A socket that has the port; at ``::`` of IPv6 alone."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, TYPES[kind])
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        if kind == "tcp":
            made.listen()
    except OSError:
        made.close()
        raise
    return made


def serve(listening: socket.socket, name: str) -> None:
    """Until the socket is shut down."""
    while True:
        try:
            if listening.type == socket.SOCK_STREAM:
                connection, peer = listening.accept()
                with connection:
                    connection.sendall(f"{name} {peer[0]}".encode())
            else:
                asked, peer = listening.recvfrom(9)
                if not asked:
                    return
                listening.sendto(f"{name} {peer[0]}".encode(), peer)
        except OSError:
            return


def ask(kind: str, address: str, port: int, patience_s: float) -> tuple[str, float]:
    """The answer, or an error's name; and after how many seconds it was there."""
    begin = time.monotonic()
    try:
        family, _, _, _, to = socket.getaddrinfo(address, port, type=TYPES[kind])[0]
        with socket.socket(family, TYPES[kind]) as asking:
            asking.settimeout(patience_s)
            asking.connect(to)
            if kind == "udp":
                asking.send(b"who")
            answer = asking.recv(99).decode()
    except socket.gaierror:
        answer = "no such name"
    except OSError as e:
        answer = "silence" if e.errno is None else errno.errorcode[e.errno]
    return answer, time.monotonic() - begin


def ask_all(patience_s: float, questions: list[tuple[str, str, int]]) -> list[tuple[str, float]]:
    """At the same time: who waits for silence does it once."""
    answers = [("", 0.0)] * len(questions)

    def one(number: int) -> None:
        answers[number] = ask(*questions[number], patience_s)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def main(verb: str, *words: str) -> None:
    if verb == "serve":
        kind, port, name, *address = words
        listening = listen(kind, int(port), *address)
        print("ready", flush=True)
        serve(listening, name)
    else:
        asked = [(words[i], words[i + 1], int(words[i + 2])) for i in range(1, len(words), 3)]
        print(json.dumps(ask_all(float(words[0]), asked)))


if __name__ == "__main__":
    main(*sys.argv[1:])
