# SPDX-License-Identifier: Apache-2.0
"""The checker of plans, built alone with the sanitizers: no plan makes it, or what trusts it,
read outside of the plan."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import scaled
from unit.plans import Header, corpus, decode, mutants

from nsbox import _core

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.leaks_ok("starts a compiler and what it made, and waits for both")

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = [str(HERE / "runner.c"), str(HERE / "follow.c")]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1",
         "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all"]  # fmt: skip


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    where = tmp_path_factory.mktemp("core")
    empty = where / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    probe = subprocess.run(["gcc", *FLAGS, str(empty), "-o", str(where / "empty")],
                           capture_output=True, text=True, check=False)  # fmt: skip
    if probe.returncode:
        pytest.skip(f"needs libasan and libubsan: {probe.stderr.strip().splitlines()[-1]}")
    program = where / "runner"
    sources = [*SOURCES, str(CSRC / "plan.c")]
    subprocess.run(["gcc", *FLAGS, f"-I{CSRC}", *sources, "-o", str(program)],
                   check=True, timeout=scaled(120))  # fmt: skip
    return program


def _verdicts(runner: Path, plans: Iterable[bytes]) -> list[bool]:
    """What it says of each; its words when a sanitizer ends it, with the number of the plan."""
    whole = b"".join(struct.pack("<Q", len(plan)) + plan for plan in plans)
    done = subprocess.run([runner], input=whole, capture_output=True, timeout=scaled(120),
                          env={"ASAN_OPTIONS": "detect_leaks=0"}, check=False)  # fmt: skip
    said = done.stdout.decode().split()
    assert done.returncode == 0, f"at plan {len(said) - 1}:\n{done.stderr.decode()[:4000]}"
    assert not done.stderr
    return [word == "ok" for word in said]


def test_plans_as_nsbox_makes_them_are_taken(runner: Path) -> None:
    plans = [plan.encode(id_slot=65536) for plan in corpus().values()]
    assert _verdicts(runner, plans) == [True] * len(plans)


def test_mutated_plans_are_judged_without_a_wild_read(runner: Path) -> None:
    plans = list(mutants(random.Random(2), 2_000))
    verdicts = _verdicts(runner, plans)
    assert len(verdicts) == len(plans)
    assert verdicts == [_core.plan_check(plan) for plan in plans], "the extension says the same"
    assert min(verdicts.count(True), verdicts.count(False)) > 200


def test_a_plan_cut_anywhere_is_refused(runner: Path) -> None:
    raw = corpus()["everything (root, v1)"].encode(id_slot=65536)
    assert _verdicts(runner, [raw[:size] for size in range(len(raw))]) == [False] * len(raw)


def test_noise_behind_a_good_magic_is_refused(runner: Path) -> None:
    chance = random.Random(3)
    noise = [b"NSB1" + struct.pack("<I", size) + chance.randbytes(size - 8)
             for size in range(8, 600)]  # fmt: skip
    assert not any(_verdicts(runner, noise))


def _put(raw: bytes, name: str, value: int) -> bytes:
    at = getattr(Header, name).offset
    return raw[:at] + struct.pack("<I", value) + raw[at + 4 :]


@pytest.mark.parametrize("shift", [8, 16, -8])
def test_vectors_that_overlap_make_no_wild_pointer(runner: Path, shift: int) -> None:
    """Relocation adds the base to each entry, once."""
    raw = corpus()["everything (root, v2)"].encode(id_slot=65536)
    for name, other in (("envp", "argv"), ("argv", "envp")):
        start = getattr(decode(raw).header, other)
        _verdicts(runner, [_put(raw, name, start + shift)])


def test_the_same_vector_twice_is_relocated_once(runner: Path) -> None:
    raw = corpus()["everything (root, v2)"].encode(id_slot=65536)
    assert _verdicts(runner, [_put(raw, "envp", decode(raw).header.argv)]) == [True]


def test_strings_that_lie_in_a_vector_end_in_the_plan(runner: Path) -> None:
    """What was text when it was checked is pointers after: a LIST must still end."""
    plan = corpus()["everything (root, v2)"]
    raw = plan.encode(id_slot=65536)
    decoded, moved = decode(raw), []
    for i in range(len(decoded.ops)):
        for at in (4, 8, 12):
            for offset in (decoded.header.argv, decoded.header.envp + 8):
                place = 64 + 32 * i + at
                moved.append(raw[:place] + struct.pack("<I", offset) + raw[place + 4 :])
    assert any(_verdicts(runner, moved))


def test_the_runner_would_see_a_wild_read(runner: Path, tmp_path: Path) -> None:
    """A checker that takes everything is caught: the other tests can fail."""
    blind = tmp_path / "blind.c"
    text = (CSRC / "plan.c").read_text()
    blind.write_text(text.replace("return -EINVAL;", ";"))
    program = tmp_path / "blind"
    subprocess.run(["gcc", *FLAGS, "-w", f"-I{CSRC}", *SOURCES, str(blind),
                    "-o", str(program)], check=True, timeout=scaled(120))  # fmt: skip
    with pytest.raises(AssertionError, match=r"Sanitizer|runtime error"):
        _verdicts(program, mutants(random.Random(2), 200))
