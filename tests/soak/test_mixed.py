# SPDX-License-Identifier: Apache-2.0
"""Everything at once: eight threads of one process, each with its own mix of sandboxes.

Each life must end as it would alone: output is nobody else's, codes and reasons are its own.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from soak.test_soak import FULL
from support import poll_until, scaled

import nsbox
from nsbox import templates

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.userns, pytest.mark.slow]

SECONDS = 60.0 if FULL else 4.0
THREADS = 8
PATIENCE = scaled(60)
TRAP = "trap 'exit 3' TERM; echo up; while :; do sleep 1000 & wait $!; done"


def run(chance: random.Random) -> None:
    code = chance.randrange(100)
    args = ["sh", "-c", f"echo {code}; echo e >&2; exit {code}"]
    done = nsbox.run(args, capture_output=True, init=chance.random() < 0.5)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"%d\n" % code, b"e\n")


def communicate(chance: random.Random) -> None:
    data = chance.randbytes(chance.randrange(1, 200_000))
    with nsbox.Popen(["cat"], stdin=nsbox.PIPE, stdout=nsbox.PIPE) as process:
        out, _ = process.communicate(data, timeout=PATIENCE)
    assert (out == data, process.returncode) == (True, 0)


def kill(chance: random.Random) -> None:
    with nsbox.Popen(["sleep", "1000"], stdout=nsbox.DEVNULL) as process:
        sig = chance.choice((9, 15))
        process.send_signal(sig)
        assert process.wait(PATIENCE) == -sig


def container(chance: random.Random) -> None:
    word = f"word{chance.randrange(10**9)}"
    with nsbox.Container(["sh", "-c", f"echo {word}; exit 7"]) as box:
        assert box.wait(PATIENCE) == 7
    assert box.logs() == f"{word}\n"


def execute(chance: random.Random) -> None:
    code = chance.randrange(100)
    with nsbox.Container(["sleep", "1000"]) as box:
        done = box.exec(["sh", "-c", f"echo {code}; exit {code}"], capture_output=True)
    assert (done.returncode, done.stdout) == (code, b"%d\n" % code)


def stop(chance: random.Random) -> None:
    with nsbox.Container(["sh", "-c", TRAP], init=chance.random() < 0.5) as box:
        poll_until(lambda: "up" in box.logs(), 60, every_s=0.002)
        assert box.stop(PATIENCE) == 3


def wall(chance: random.Random) -> None:
    limits = nsbox.Limits(wall=0.05)
    if chance.random() < 0.5:
        assert nsbox.run(["sleep", "1000"], limits=limits).reason is nsbox.Reason.TIMEOUT
        return
    with nsbox.Container(["sleep", "1000"], limits=limits) as box:
        assert box.wait(PATIENCE) == -9
        assert box.result().reason is nsbox.Reason.TIMEOUT


def pod(chance: random.Random) -> None:
    both = [nsbox.ContainerSpec(name, ["sleep", "1000"]) for name in "ab"]
    with nsbox.Pod("mixed", both) as box:
        if chance.random() < 0.5:
            box["a"].kill()
            box["a"].wait_restarted(1, PATIENCE)
        box.stop(grace=0)


def missing(chance: random.Random) -> None:
    with pytest.raises(nsbox.CommandNotFound):
        nsbox.run(["/no/such/program"], init=chance.random() < 0.5)


LIVES: tuple[Callable[[random.Random], None], ...] = (
    run, run, run, communicate, communicate, kill, container, container, execute, execute, stop,
    wall,
    pod, missing,
)  # fmt: skip


def descriptors() -> int:
    """Without those of templates, which are kept on purpose."""
    templates.held.clear()
    return len(os.listdir("/proc/self/fd"))


def test_any_mix_from_eight_threads() -> None:
    end, failures, lived = time.monotonic() + SECONDS, [], Counter[str]()

    def go(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end and not failures:
            life = chance.choice(LIVES)
            try:
                life(chance)
            except BaseException as error:  # told below, by the thread of the test
                failures.append(f"{life.__name__}: {type(error).__name__}: {error}")
            lived[life.__name__] += 1

    before = descriptors()
    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n{lived.total()} lives: {dict(lived)}")
    assert failures == []
    assert lived.total() >= THREADS
    poll_until(lambda: descriptors() <= before, 5, what="descriptors")
