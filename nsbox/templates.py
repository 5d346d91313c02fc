# SPDX-License-Identifier: Apache-2.0
"""Template mount namespaces: a root built once, entered by every sandbox that has it.

A template holds one root file system and a read-only /dev. A sandbox joins it and takes a
copy of its few mounts, instead of copying the host's mount table, binding, pivoting and
unmounting: that costs the same with 1,000 extra mounts on the host. See ``fits_template``.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from nsbox import mounts
from nsbox.compile import compile_template
from nsbox.errors import SetupError
from nsbox.kept import Kept
from nsbox.process import dev_null
from nsbox.slots import Slot
from nsbox.spawn import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsbox.host import Host
    from nsbox.launcher import Launcher
    from nsbox.plan import Plan
    from nsbox.spec import Spec

_MOST = 16  # templates pin their root's file system, so only a few are kept

held = Kept(_MOST)


def _key(spec: Spec, parent: Launcher, join: tuple[str, ...]) -> tuple[object, ...]:
    """What a template depends on. A directory made anew under the same name is another one."""
    identity: tuple[int, ...] = ()
    if spec.root.kind == "dir":
        status = os.stat(spec.root.path)
        identity = (status.st_dev, status.st_ino)
    user = (spec.uid, spec.gid, mounts.named(spec)) if spec.root.kind == "host" else ()
    net = (spec.net != "none", *(file.at for file in spec.net_files))
    in_userns = "user" in join
    return (parent.view, spec.root, identity, spec.profile, user, spec.namespaces, net, in_userns)


def acquire(
    spec: Spec, host: Host, parent: Launcher, *, join: tuple[str, ...] = (), join_map: str = ""
) -> int:
    """A descriptor of the template's mount namespace, to be closed by the caller.

    *join* and *join_map* are those of ``compile_spec``.

    Raises:
        SetupError: the root cannot be built.
        OSError: the root directory is not there.
    """
    plan = partial(compile_template, spec, host, join=join, join_map=join_map)
    return held.take(_key(spec, parent, join), lambda: _build(plan))


def _build(plan: Callable[..., Plan]) -> int:
    """With devices of its own, which takes fewer mounts; in a container of somebody else's root
    may not make them."""
    try:
        return _hold(plan(makes_nodes=True))
    except SetupError as e:
        if e.name != "mknod" or e.errno != errno.EPERM:
            raise
    return _hold(plan())


def _hold(plan: Plan) -> int:
    null = dev_null()
    holder = spawn(plan, {Slot("stdio", n): null for n in range(3)})
    try:
        return holder.open_namespace("mnt")
    finally:
        holder.close()
