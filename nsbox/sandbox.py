# SPDX-License-Identifier: Apache-2.0
"""From the keywords of ``run()`` to a running process: spec, plan, template, spawn."""

from __future__ import annotations

import fcntl
import functools
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nsbox import launcher, probe, rootpath, templates
from nsbox.compile import compile_pause, compile_spec, wants_template
from nsbox.errors import CommandNotFound, SetupError, SpecError, StateError
from nsbox.keywords import spec_of
from nsbox.process import Injection, Process, dev_null
from nsbox.slots import JOIN, NOBODY, OWNER, Joined, Slot
from nsbox.spawn import spawn
from nsbox.spec import Mount, NetLabel, Rootfs, Spec

if TYPE_CHECKING:
    from nsbox.host import Host
    from nsbox.identity import Identity
    from nsbox.plan import Plan
    from nsbox.streams import Stdio

_STDIO = tuple(Slot("stdio", n) for n in range(3))
_CACHEABLE_BYTES = 1 << 20
_MOST_SPECS = 64
_OF_RUN = ("stdin", "stdout", "stderr", "input", "capture_output", "text", "timeout", "check")


def read_files(files: Any) -> Any:
    """``files=`` with every Path read: its content and its permission bits."""
    if not isinstance(files, Mapping):
        return files
    result = {}
    for name, value in files.items():
        if isinstance(value, os.PathLike):
            path = Path(value)
            try:
                value = (path.read_bytes(), path.stat().st_mode & 0o777)
            except OSError as e:
                raise SpecError(f"files[{name!r}]", str(e)) from e
        result[name] = value
    return result


def check_spec(args: Any, keywords: dict[str, Any], call: str) -> Spec:
    """The spec of ``run()``'s keywords as far as it can be told without reading a file.

    *call* is what was called with them, in errors.
    """
    files = keywords.get("files")
    if isinstance(files, Mapping):
        unread = {name: b"" if isinstance(value, os.PathLike) else value
                  for name, value in files.items()}  # fmt: skip
        keywords = {**keywords, "files": unread}
    return spec_of(args, keywords, call)


_specs: dict[object, Spec] = {}


def build_spec(args: Any, keywords: dict[str, Any], call: str = "run") -> Spec:
    """The spec of ``run()``'s keywords, its files read and its interpreter found.

    *call* is what was called with them, in errors.
    """
    label = getattr(keywords.get("net"), "label", None)
    if label is not None:  # what is kept is the label, not the network
        keywords = {**keywords, "net": label}
    key = _spec_key(args, keywords)
    try:
        spec = None if key is None else _specs.get(key)
    except TypeError:  # a mapping among them
        key = spec = None
    if spec is None:
        if keywords.get("files") is not None:
            keywords = {**keywords, "files": read_files(keywords["files"])}
        spec = spec_of(args, keywords, call)
        if key is not None:
            if len(_specs) >= _MOST_SPECS:
                _specs.clear()
            _specs[key] = spec
    if spec.devices:
        nodes = [node for name, *_ in spec.devices for node in probe.device_nodes(name)]
        spec = replace(spec, devices=tuple(nodes))
    if spec.root.kind in ("tar", "oci", "overlay"):
        from nsbox import images

        return rootpath.placed(images.with_image(spec))
    return rootpath.placed(spec) if spec.root.kind == "dir" else _with_interpreter(spec)


def _spec_key(args: Any, keywords: dict[str, Any]) -> object:
    """The same for the same arguments, which then need not be checked again; None where what
    they mean may change: a relative root. It cannot be hashed where they cannot be compared."""
    root = keywords.get("root")
    known = root is None or type(root) is Rootfs  # which is quicker told than what it is not
    if not known and isinstance(root, (str, os.PathLike)):
        return None
    values = (args, *keywords.values())
    plain = [_plain(value) if type(value) in _SEQUENCES else value for value in values]
    return (*keywords, *map(type, values), *plain)


_STRINGS = frozenset((str,))
_SEQUENCES = (list, tuple)


def _plain(value: Any) -> object:
    """Equal for what is equal and has parts of the same types: True is 1, but not a user."""
    if type(value) not in _SEQUENCES:
        return value
    if _STRINGS.issuperset(map(type, value)):
        return tuple(value)
    return tuple((type(one), _plain(one)) for one in value)


def _with_interpreter(spec: Spec) -> Spec:
    """The host root shows the program that args name, wherever it is installed."""
    if spec.root.kind != "host":
        return spec
    system = probe.host().system
    trees = probe.interpreter_trees(spec.args[0], system)
    if not trees:
        return spec
    binds = tuple(Mount.bind(tree, tree) for tree in trees)
    args = spec.args
    if "/" not in args[0]:
        import shutil

        args = (shutil.which(args[0]) or args[0], *args[1:])
    return replace(spec, args=args, mounts=(*binds, *spec.mounts))


def plan_for(spec: Spec, host: Host, *, join: tuple[str, ...] = (), join_map: str = "") -> Plan:
    """The plan of a spec, compiled once for specs that come again."""
    if spec.files and sum(len(content) for _, content, _ in spec.files) >= _CACHEABLE_BYTES:
        return _compile(spec, host, join, join_map)
    return _cached_compile(spec, host, join, join_map)


def _compile(spec: Spec, host: Host, join: tuple[str, ...], join_map: str) -> Plan:
    use = wants_template(spec, host, join=join, join_map=join_map)
    return compile_spec(spec, host, join=join, join_map=join_map, template=use)


_cached_compile = functools.lru_cache(maxsize=64)(_compile)


def explain(args: Any, **keywords: Any) -> Plan:
    """The plan of ``run(args, ...)``, not run: ``print(nsbox.explain(["id"]))``.

    Takes a ``Spec`` too. What ``run()`` does with the streams and the result is no part of it.
    """
    keywords = {name: value for name, value in keywords.items() if name not in _OF_RUN}
    spec = args if isinstance(args, Spec) else build_spec(args, keywords, "explain")
    if spec.root.kind in ("tar", "oci"):
        from nsbox import images

        spec = images.with_image(spec)
    return plan_for(spec, probe.host())


def _network(label: NetLabel) -> Any:
    """What lends it: see ``nsbox.bridge``. Raises StateError: it is no more."""
    network = None if label.network is None else label.network()
    if network is None:
        raise StateError(f"net: {label} is not there any more", status="closed")
    return network


def _owner(network: Any) -> int:
    """The user namespace that has an ordinary user's network, and is to have its sandboxes."""
    if network is None or network.router is None:
        raise StateError(f"{network!r} was made by root, and this process is root no more",
                         status="foreign")  # fmt: skip
    return int(network.router.user.fileno())


def _check_root(root: Rootfs, error: OSError) -> None:
    """One that is not there is the caller's mistake, whichever call found it out.

    Raises:
        SpecError: there is no such directory.
    """
    if isinstance(error, FileNotFoundError) and not isinstance(error, SetupError):
        raise SpecError("root", f"{error.filename or root.path} does not exist") from error
    if root.kind not in ("dir", "overlay") or getattr(error, "field", "") != "root":
        return
    for path in filter(None, (*(layer.path for layer in root.layers), root.path)):
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise SpecError("root", f"{path} is not a directory") from error
        except (FileNotFoundError, NotADirectoryError):
            raise SpecError("root", f"{path} does not exist") from error
        except OSError:
            pass  # there, as far as one can tell


def launch(
    spec: Spec,
    stdio: Stdio,
    *,
    joined: Joined = NOBODY,
    name: str = "",
    who: Identity | None = None,
    inject: Injection = Injection(),  # noqa: B008  (immutable)
) -> Process:
    """Spawn *spec* with these descriptors; its template is made when it has none yet.

    *joined* is whose namespaces it enters, *name* what others of its network call it, and *who*
    it is in a network that it has of a pod.
    """
    if who is not None or spec.net == "none":
        spec = spec if who is None else who.furnish(spec)
        return _launch(spec, stdio, joined, inject)
    network = _network(spec.net) if isinstance(spec.net, NetLabel) else None
    if network is not None and not spec.attached and "net" not in joined.kinds:
        joined = network.joins()
    own = _identify(spec, network, name)
    try:
        process = _launch(own.furnish(spec), stdio, joined, inject, network, own)
    except BaseException:
        own.close()
        raise
    process.keep(own)
    return process


def _identify(spec: Spec, network: Any, name: str) -> Identity:
    from nsbox import identity

    if network is not None:
        return cast("Identity", network.identify(spec, name))
    inherits = spec.root.kind != "host"  # another root has files of its own, such as they are
    return identity.alone(spec.hostname) if inherits else identity.of_host(spec.hostname)


def _launch(
    spec: Spec,
    stdio: Stdio,
    joined: Joined,
    inject: Injection,
    network: Any = None,
    who: Identity | None = None,
) -> Process:
    view = launcher.view()
    host = probe.host_of(view)
    parent = launcher.current(view)
    join, join_map = joined.kinds, joined.id_map
    plan = plan_for(spec, host, join=join, join_map=join_map)
    descriptors = {_STDIO[n]: fd for n, fd in stdio.theirs.items()}
    for fd in spec.pass_fds:
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as e:
            raise SpecError("pass_fds", f"descriptor {fd} is not open") from e
        descriptors[Slot("pass", fd)] = fd
    template = -1
    try:
        for slot in plan.passed:
            if slot.kind == "mntns":
                template = descriptors[slot] = templates.acquire(spec, host, parent, join=join,
                                                                 join_map=join_map)  # fmt: skip
            elif slot.kind == "pidfd":
                descriptors[slot] = joined.pidfd
            elif slot == OWNER:
                descriptors[slot] = _owner(network)
            elif slot.kind == "nsfd":
                descriptors[slot] = joined.time
        lease = None
        if network is not None and spec.attached and "net" not in join:
            lease = functools.partial(network.lease, spec, who)
        process = spawn(plan, descriptors, parent=parent, inject=inject, lease=lease)
        process.cpu_limit, process.join_map = spec.limits.cpu_time, join_map
        return process
    except CommandNotFound as e:
        from nsbox import programs

        programs.explain(e, spec, plan)
        raise
    except OSError as e:
        _check_root(spec.root, e)
        raise
    finally:
        if template >= 0:
            os.close(template)
        stdio.close_theirs()


def launch_pause(spec: Spec, hostname: str, name: str, **names: Any) -> Process:
    """The pause process of the pod *name*, with the network of *spec*.

    *names* are the *policy* and the *aliases* of ``Bridge.identify``.
    """
    network = _network(spec.net) if isinstance(spec.net, NetLabel) else None
    who = _identify_pod(replace(spec, hostname=hostname), network, name, names)
    try:
        process = _launch_pause(spec, network, who)
    except BaseException:
        who.close()
        raise
    process.keep(who)
    return process


def _identify_pod(spec: Spec, network: Any, name: str, names: dict[str, Any]) -> Identity:
    from nsbox import identity

    if spec.attached:
        return cast("Identity", network.identify(spec, name, **names))
    if network is not None:
        return cast("Identity", network.identify(spec, name))
    make = identity.of_host if spec.net == "host" else identity.alone
    return make(spec.hostname, names["aliases"])


def _launch_pause(spec: Spec, network: Any, who: Identity) -> Process:
    joined = NOBODY
    descriptors = {Slot("stdio", n): dev_null() for n in range(3)}
    lease = None
    if spec.attached:
        lease = functools.partial(network.lease, spec, who, "pod")
    elif network is not None:
        joined = network.joins()
        descriptors[JOIN] = joined.pidfd
    plan = compile_pause(spec, probe.host(), joined.kinds, join_map=joined.id_map)
    if OWNER in plan.passed:
        descriptors[OWNER] = _owner(network)
    process = spawn(plan, descriptors, lease=lease)
    process.join_map = joined.id_map
    return process
