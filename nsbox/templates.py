# SPDX-License-Identifier: Apache-2.0
"""Template mount namespaces: a root built once, entered by every sandbox that has it.

A template holds one root file system and a read-only /dev. A sandbox joins it and takes a
copy of its few mounts, instead of copying the host's mount table, binding, pivoting and
unmounting: that costs the same with 1,000 extra mounts on the host. See ``fits_template``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nsbox.compile import compile_template
from nsbox.kept import Kept
from nsbox.process import dev_null
from nsbox.spawn import spawn
from nsbox.steps import Slot

if TYPE_CHECKING:
    from nsbox.host import Host
    from nsbox.launcher import Launcher
    from nsbox.spec import Spec

_MOST = 16  # templates pin their root's file system, so only a few are kept

held = Kept(_MOST)


def _key(spec: Spec, parent: Launcher) -> tuple[object, ...]:
    """What a template depends on. A directory made anew under the same name is another one."""
    identity: tuple[int, ...] = ()
    if spec.root.kind == "dir":
        status = os.stat(spec.root.path)
        identity = (status.st_dev, status.st_ino)
    user = (spec.uid, spec.gid, spec.hostname) if spec.root.kind == "host" else ()
    net = (spec.net, spec.net_mounts)
    return (parent.view, spec.root, identity, spec.profile, user, spec.namespaces, net)


def acquire(spec: Spec, host: Host, parent: Launcher) -> int:
    """A descriptor of the template's mount namespace, to be closed by the caller.

    Raises:
        SetupError: the root cannot be built.
        OSError: the root directory is not there.
    """
    return held.take(_key(spec, parent), lambda: _build(spec, host))


def _build(spec: Spec, host: Host) -> int:
    null = dev_null()
    holder = spawn(compile_template(spec, host), {Slot("stdio", n): null for n in range(3)})
    try:
        return holder.open_namespace("mnt")
    finally:
        holder.close()
