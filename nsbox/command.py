# SPDX-License-Identifier: Apache-2.0
"""run(): subprocess's, but boxed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nsbox import units
from nsbox.converse import as_bytes, finish
from nsbox.sandbox import build_spec, launch
from nsbox.streams import wanted_streams

if TYPE_CHECKING:
    from nsbox.result import Completed


def run(
    args: Any,
    *,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    input: Any = None,
    capture_output: bool = False,
    text: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **keywords: Any,
) -> Completed:
    """Run a command in a sandbox of its own and wait for its end.

    What the caller asked for is enforced or the call raises. The sandbox, with every process
    in it, is gone when this returns or raises.

    Args:
        args: the program and its arguments, a list.
        root: a ``Rootfs``, or a directory; default the host's system directories, read-only.
        cwd: directory inside; default /tmp, a tmpfs of its own (``/`` in a ``Rootfs.dir``).
        env: variables beside PATH, HOME, LANG and USER.
        user: uid or ``"uid:gid"`` inside.
        groups, capabilities, rlimits, pass_fds: more of the process, none by default.
        umask: of the payload, 0o022 by default.
        pty: True, or (rows, columns): all three streams are a terminal of its own.
        devices: names of devices of the host's: ``"fuse"``, ``"gpu"``, ``"kvm"``, ``"tun"``.
        hostname: of a UTS namespace of its own.
        mounts: ``Mount`` objects.
        files: contents by relative path: bytes, str, or a Path to be read; put into /tmp.
        net: ``"none"`` (a loopback of its own) or ``"host"``.
        limits: ``Limits``.
        namespaces: kinds to make, instead of the profile's: of all others it has the caller's,
            its network too where ``"net"`` is not among them.
        time_offsets: seconds by which the ``"monotonic"`` and ``"boottime"`` clocks are ahead, in
            a time namespace of its own (Linux 6.3).
        init: PID 1 is nsbox-init, which reaps and forwards signals; else the command is.
        profile: ``"strict"``, ``"standard"`` or ``"none"``.
        proc: ``"pids"``, ``"full"`` or ``"none"``.
        input: bytes or str for standard input.
        capture_output: keep both streams in the result; else they are relayed. It is all kept,
            in the caller's memory, unless ``limits.output`` says how much.
        text: captured streams as str: UTF-8, and U+FFFD for what is not.
        timeout: seconds; then everything is killed and TimeoutExpired raised.
        check: raise CommandError unless the result is ``ok``.
        best_effort: do without what this host cannot enforce, and say so in ``enforcement``.

    Raises:
        SpecError, TypeError: an argument is wrong; nothing was started.
        Unavailable: the host cannot do it.
        SetupError: a step failed; everything was undone.
        TimeoutExpired, CommandError: see *timeout* and *check*.
        StateError: the launcher was killed meanwhile.
    """
    streams = wanted_streams(stdin, stdout, stderr, input, capture_output)
    if timeout is not None:
        units.seconds(timeout, "timeout", zero=True)
    spec = build_spec(args, keywords)
    return finish(
        spec,
        streams,
        lambda stdio: launch(spec, stdio),
        data=as_bytes(input),
        text=text,
        check=check,
        timeout=timeout,
    )
