# SPDX-License-Identifier: Apache-2.0
"""Errors: the tree as errors.py draws it, the words that API.md shows, and copies of them."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import nsbox
from nsbox import errors
from nsbox.result import Completed, Reason, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.leaks_ok("makes exceptions, and nothing else")

DONE = Completed(("sh", "-c", "false"), 1, b"out", b"err", Reason.EXITED, Usage(1, 2, 3, 4))

#: One of each, with every attribute set to something of its own.
ERRORS: dict[str, Exception] = {
    "NsboxError": errors.NsboxError("text"),
    "SpecError": errors.SpecError("limits.memory", "is bad"),
    "StateError": errors.StateError("already running", status="running"),
    "Unavailable": errors.Unavailable(
        "cgroup", "needs one", err=errno.EACCES, alternatives=("a", "b"), hint="do it"
    ),
    "SetupError": errors.SetupError(
        errno.ENOENT, step=7, name="bind", call="open_tree", detail="/a -> /b",
        field="mounts[2]", hint="mkdir /a",
    ),
    "CommandNotFound": errors.CommandNotFound(
        errno.ENOENT, step=9, name="exec", call="execve", detail="/bin/x", field="args[0]"
    ),
    "NetworkError": errors.NetworkError(errno.EEXIST, "link add a type veth", "File exists"),
    "CopyError": errors.CopyError(errno.EFBIG, "src", "/tmp/w", b"a/\xff", "more than 5 bytes"),
    "TimeoutExpired": errors.TimeoutExpired(("sh", "-c", "false"), 1.5, DONE),
    "CommandError": errors.CommandError(DONE),
    "RemoteError": errors.RemoteError("Traceback"),
}  # fmt: skip
EACH = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (errors.SpecError, ValueError),
        (errors.StateError, RuntimeError),
        (errors.Unavailable, OSError),
        (errors.SetupError, OSError),
        (errors.CommandNotFound, errors.SetupError),
        (errors.CommandNotFound, FileNotFoundError),
        (errors.NetworkError, OSError),
        (errors.CopyError, OSError),
        (errors.TimeoutExpired, subprocess.TimeoutExpired),
        (errors.CommandError, subprocess.CalledProcessError),
        (errors.RemoteError, Exception),
    ],
    ids=lambda kind: kind.__name__,
)
def test_an_error_is_what_callers_already_catch(
    error: type[Exception], base: type[Exception]
) -> None:
    assert issubclass(error, base)
    assert issubclass(error, errors.NsboxError)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    above = ["NsboxError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│ ]*)[├└]── (\w+)(?:\((\S+)\))?", line)
        if match:
            depth = len(match[1]) // 4
            above[depth + 1 :] = [match[2]]
            drawn[match[2]] = above[depth]
            if match[3]:
                kept = match[3].rpartition(".")[2]
                assert kept in {b.__name__ for b in getattr(errors, match[2]).__bases__}
    assert drawn.keys() | {"NsboxError"} == set(errors.__all__)
    for name, parent in drawn.items():
        assert getattr(errors, name).__bases__[0].__name__ == parent


def test_every_error_is_public_and_tried_here() -> None:
    assert set(errors.__all__) == ERRORS.keys()
    for name in errors.__all__:
        assert getattr(nsbox, name) is getattr(errors, name)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(
            errors.SetupError(
                errno.ENOENT, step=7, name="bind", call="open_tree",
                detail="/srv/data -> /data", field="mounts[2]",
            ),
            "step 7 (bind /srv/data -> /data, from mounts[2]): open_tree: ENOENT "
            "(No such file or directory)",
            id="a step, its field, its call and its errno",
        ),
        pytest.param(
            errors.SetupError(errno.EPERM, step=0, name="cgroup", call="mkdir", hint="Be root"),
            "step 0 (cgroup): mkdir: EPERM (Operation not permitted). Be root",
            id="a step without detail but with a hint",
        ),
        pytest.param(
            errors.SetupError(9999, step=1, name="x", call="y"),
            f"step 1 (x): y: 9999 ({os.strerror(9999)})",
            id="an errno without a name",
        ),
        pytest.param(
            errors.Unavailable(
                "user namespaces",
                "uid_map: EPERM (kernel.apparmor_restrict_unprivileged_userns=1)",
                hint="run as root",
            ),
            "user namespaces: uid_map: EPERM (kernel.apparmor_restrict_unprivileged_userns=1). "
            "Fix: run as root",
            id="a feature, what it needs and the fix",
        ),
        pytest.param(
            errors.Unavailable("limits.cpu", "no cgroup", alternatives=("best_effort=True",)),
            "limits.cpu: no cgroup. Instead: best_effort=True",
            id="a feature and what else could be asked for",
        ),
        pytest.param(
            errors.SpecError("memory", "256 bytes is below 1 MiB"),
            "memory: 256 bytes is below 1 MiB",
            id="a field and what is wrong with it",
        ),
        pytest.param(
            errors.CommandError(DONE),
            "Command '['sh', '-c', 'false']' returned non-zero exit status 1.",
            id="a command as subprocess says it",
        ),
        pytest.param(
            errors.TimeoutExpired(["sleep", "9"], 1.5),
            "Command '['sleep', '9']' timed out after 1.5 seconds",
            id="a time-out as subprocess says it",
        ),
    ],
)  # fmt: skip
def test_an_error_says(error: Exception, text: str) -> None:
    assert str(error) == text


def test_a_string_as_args_says_what_to_write_instead() -> None:
    with pytest.raises(TypeError) as caught:
        nsbox.run("ls -l")
    assert str(caught.value) == ('args must be a list; use ["sh", "-c", "ls -l"] or shlex.split()')


def test_a_forgotten_unit_says_what_was_meant() -> None:
    with pytest.raises(errors.SpecError) as caught:
        nsbox.Limits(memory="256")
    assert str(caught.value) == 'memory: 256 bytes is below 1 MiB; did you mean "256MiB"?'
    assert caught.value.field == "memory"


def test_a_command_killed_by_a_limit_says_which() -> None:
    out_of_memory = Completed(("x",), -9, None, None, Reason.OOM, Usage(1, 2, 3, 4))
    assert str(errors.CommandError(out_of_memory)).endswith("(OOM)")


def test_errors_of_the_kernel_keep_errno_and_strerror() -> None:
    error = ERRORS["SetupError"]
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror) == (errno.ENOENT, "No such file or directory")
    unavailable = ERRORS["Unavailable"]
    assert isinstance(unavailable, OSError)
    assert unavailable.errno == errno.EACCES
    assert errors.Unavailable("f", "n").errno == errno.EOPNOTSUPP


def test_a_timeout_carries_what_was_captured() -> None:
    error = errors.TimeoutExpired(["x"], 1.0, DONE)
    assert (error.completed, error.stdout, error.stderr) == (DONE, b"out", b"err")
    assert (error.cmd, error.timeout) == (["x"], 1.0)


def test_a_command_error_carries_the_completed() -> None:
    error = errors.CommandError(DONE)
    assert (error.completed, error.returncode, error.stdout) == (DONE, 1, b"out")
    assert error.stderr == b"err"


def _pickled(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))


@EACH
@pytest.mark.parametrize("again", [_pickled, copy.copy, copy.deepcopy],
                         ids=["pickle", "copy", "deepcopy"])  # fmt: skip
def test_a_copy_is_the_same_error(error: Exception, again: Callable[[Exception], Any]) -> None:
    """Errors cross process borders: multiprocessing and concurrent.futures pickle them."""
    twin = again(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)
    assert getattr(twin, "errno", None) == getattr(error, "errno", None)


@EACH
def test_repr_names_the_class(error: Exception) -> None:
    assert type(error).__name__ in repr(error)
