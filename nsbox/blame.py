# SPDX-License-Identifier: Apache-2.0
"""The error of a step that failed, and how to mend it."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from nsbox.errors import CommandNotFound, SetupError

if TYPE_CHECKING:
    from nsbox.plan import Plan

NO_DESCRIPTORS = (
    "the launcher keeps two or three descriptors for each sandbox, above the first 256: raise the "
    "hard limit of open files (RLIMIT_NOFILE) before the first one, or end some"
)
_HINTS = {
    ("recvmsg", errno.EMFILE): NO_DESCRIPTORS,
    ("fcntl", errno.EMFILE): NO_DESCRIPTORS,
    ("unshare", errno.EMFILE): NO_DESCRIPTORS,
    ("clone3", errno.EPERM): "user namespaces may be restricted here "
    "(kernel.apparmor_restrict_unprivileged_userns, a container's seccomp filter, a chroot)",
    ("clone3", errno.ENOSPC): "a limit of /proc/sys/user/max_*_namespaces was reached",
    ("clone3", errno.EAGAIN): "a limit of processes was reached (pids cgroup, RLIMIT_NPROC)",
    ("clone3", errno.ETIMEDOUT): "something among the processes that it joins has stopped it",
    ("openat2", errno.ENOENT): "make this path in the root directory, or use ro=False",
    ("openat2", errno.EACCES): "a directory on the way, or the root directory itself, is closed "
    "(o+x) to the sandbox's user",
    ("mkdirat", errno.EACCES): "nobody in the sandbox may write there: make this path yourself",
    ("mkdirat", errno.EEXIST): "a symbolic link that leads nowhere is there",
    ("openat", errno.ELOOP): "a symbolic link that leads nowhere is there",
    ("move_mount", errno.EINVAL): "a directory can be mounted on a directory, a file on a file",
    ("move_mount", errno.ENOTDIR): "a directory can be mounted on a directory, a file on a file",
    ("open_tree", errno.EINVAL): "in a user namespace, a directory that has mounts below it "
    "cannot be taken without them",
    ("flock", errno.EBUSY): "another sandbox is using this upper directory",
    ("fsconfig", errno.ELOOP): "a layer of the overlay is within another one, or in use by it",
    ("open_tree", errno.EACCES): "the sandbox's user may not enter a directory on the way",
    ("chdir", errno.ENOENT): "the directory does not exist in the sandbox",
    ("chdir", errno.EACCES): "the root directory must be open (o+rx) to the sandbox's user",
    ("execve", errno.EACCES): "not executable for the sandbox's user, or a directory on the way "
    "is closed to it",
}

_NO_WORKDIR = (
    "the image's WorkingDir is not in the image, or hidden by a mount: say another directory by "
    "cwd=, or use Rootfs.overlay(Rootfs.oci(...)), in which it is made"
)

#: What has causes of many kinds, which the host can be asked about.
_ASKED = {("fsmount", errno.EPERM), ("newuidmap", errno.EPERM), ("newgidmap", errno.EPERM),
          ("clone3", errno.EPERM), ("clone3", errno.ENOSPC), ("clone3", errno.ENOSYS)}  # fmt: skip


def _hint(step: str, err: int, call: str) -> str:
    asked = ""
    if (call, err) in _ASKED:
        from nsbox import facts, remedies

        found = remedies.Found(False, call, err, step=step)
        if call != "fsmount" or remedies.mounts_proc(found):
            with contextlib.suppress(Exception):  # of an odd host: no hint is worth the error
                asked = remedies.remedy("", found, facts.look()).hint()
    return asked or _HINTS.get((call, err), "")


def setup_error(plan: Plan, index: int, err: int, call: str) -> SetupError:
    """The error of one step of the timeline."""
    step = plan.steps[index]
    is_exec = step.name == "exec" and err == errno.ENOENT and call != "injected"
    detail = step.describe()
    hint = _hint(f"{step.name} {detail}", err, call)
    if (step.name, step.source, err) == ("chdir", "root", errno.ENOENT):
        hint = _NO_WORKDIR
    if is_exec and plan.args:
        hint = (f"{plan.args[0]!r} was not found in the sandbox, or it is there, but its "
                "interpreter is not (that of a #! line, or the loader of a binary)")  # fmt: skip
    kind = CommandNotFound if is_exec else SetupError
    return kind(
        err, step=index, name=step.name, call=call, detail=detail, field=step.source, hint=hint
    )
