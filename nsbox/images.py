# SPDX-License-Identifier: Apache-2.0
"""Archives and images as directories: unpacked once, into a cache that is named by digests.

The cache is the caller's own: /var/cache/nsbox for root, else $XDG_CACHE_HOME/nsbox or
~/.cache/nsbox; $NSBOX_CACHE says another. It may be removed while nothing uses it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nsbox import archive, changes, mountapi, oci
from nsbox.checks import container_path, is_in, text
from nsbox.errors import SpecError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsbox.spec import Rootfs, Spec

_VERSION = "1"  # of the way in which archives are unpacked: another one finds nothing
_PLACES = (("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777))
_MOST_KNOWN = 64

_known: dict[tuple[object, ...], str] = {}
_lock = threading.Lock()


def directory() -> str:
    """The cache, made with mode 0700 where it is not there.

    Raises:
        Unavailable: it is somebody else's, or cannot be made.
    """
    path = os.environ.get("NSBOX_CACHE") or ""
    if not path and os.geteuid() == 0:
        path = "/var/cache/nsbox"
    elif not path:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        path = f"{home}/nsbox"
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
    except OSError as e:
        raise Unavailable("cache", f"{path}: {e.strerror}", err=e.errno or 0,
                          hint="NSBOX_CACHE=DIRECTORY") from e  # fmt: skip
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Unavailable("cache", f"{path} is not a directory that only uid {os.geteuid()} can "
                          "write", hint=f"chmod 700 {path}, or NSBOX_CACHE=DIRECTORY")  # fmt: skip
    return path


def resolve(root: Rootfs) -> Rootfs:
    """*root* with every archive and image in it as a directory, unpacked where it was not yet."""
    if root.kind == "overlay":
        _check_directories(root)
        return replace(root, layers=tuple(resolve(layer) for layer in root.layers))
    if root.kind == "tar":
        return replace(root, kind="dir", path=f"{_tar(root.path)}/root", ro=True, image=True)
    if root.kind == "oci":
        path = _oci(root.path, root.ref)
        return replace(root, kind="dir", path=f"{path}/root", ro=True, image=True)
    return replace(root, kept=True) if _was_upper(root.path) else root


def _was_upper(path: str) -> bool:
    """Whether it is where an overlay kept changes, or a copy of that: what is deleted in it may be
    noted anywhere below, and on top of it in most cases only."""
    parent, name = os.path.split(os.path.normpath(path))
    if name == "upper" and os.path.isdir(f"{parent}/work/work"):
        return True
    try:
        return any(name.startswith("user.overlay.") for name in os.listxattr(path))
    except OSError:  # not there, which set-up says, or of a file system without attributes
        return False


def _check_directories(overlay: Rootfs) -> None:
    """The kernel says EINVAL of all layers together. Of one that is missing it says which."""
    paths = [overlay.path, *(layer.path for layer in overlay.layers if layer.kind == "dir")]
    for path in filter(os.path.exists, paths):
        if not os.path.isdir(path):
            raise SpecError("root", f"{path} is not a directory")
    if overlay.path:
        _check_upper(os.path.realpath(overlay.path), paths[1:])


def _check_upper(upper: str, lowers: list[str]) -> None:
    """The kernel takes an upper directory in a layer below, and then shows it in itself. Beside
    the host's root there is nothing."""
    for lower in lowers:
        real = os.path.realpath(lower)
        in_changes = any(is_in(real, f"{upper}/{own}") for own in ("upper", "work"))
        if in_changes or (real != "/" and is_in(upper, real)):
            raise SpecError("upper", f"{upper} and the layer {lower} are one in the other: keep "
                            "the changes in a directory beside it")  # fmt: skip


def with_image(spec: Spec) -> Spec:
    """The spec with its root resolved, and what the image says where the caller says nothing."""
    root = spec.root
    if root.kind not in ("tar", "oci", "overlay"):
        return spec
    resolved = resolve(root)
    new = replace(spec, root=resolved)
    pairs = zip((root, *root.layers), (resolved, *resolved.layers), strict=True)
    image = next((after for before, after in pairs if before.kind == "oci"), None)
    return new if image is None else _with_defaults(new, image.path)


# ------------------------------------------------------------------ the cache


def _identity(path: str, *more: str) -> tuple[object, ...]:
    try:
        s = os.stat(path)
    except OSError as e:
        raise SpecError("root", f"{path}: {e.strerror}") from e
    return (path, *more, directory(), os.geteuid(), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns,
            s.st_ctime_ns)  # fmt: skip


def _remembered(key: tuple[object, ...], find: Callable[[], str]) -> str:
    """Where it was unpacked to the last time, if the file is the same and that is still there."""
    with _lock:
        path = _known.get(key)
    if path is None or not os.path.isdir(f"{path}/root"):
        path = find()
        with _lock:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[key] = path
    return path


def _tar(path: str) -> str:
    return _remembered(_identity(path), lambda: _unpack_tar(path))


def _unpack_tar(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise SpecError("root", f"{path}: {e.strerror}") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SpecError("root", f"{path} is not a file")
    with open(fd, "rb") as file:
        digest = hashlib.sha256()
        while data := file.read(1 << 20):
            digest.update(data)

        def unpack(root: int, _: str) -> None:
            file.seek(0)
            again = oci.Hashed(file)
            plain = archive.decompressed(again.buffered())
            archive.Unpacker(root, path).unpack(plain)
            again.drain(1 << 62)
            if again.digest() != f"sha256:{digest.hexdigest()}":
                raise SpecError("root", f"{path} was changed while it was read")

        return _cached(f"tar-{digest.hexdigest()}", unpack)


def _oci(layout: str, ref: str) -> str:
    key = _identity(f"{layout}/index.json", ref)
    return _remembered(key, lambda: _unpack_oci(layout, ref))


def _unpack_oci(layout: str, ref: str) -> str:
    image = oci.find(layout, ref)

    def unpack(root: int, where: str) -> None:
        oci.unpack(image, root)
        with open(f"{where}/config.json", "w") as file:
            json.dump(oci.config(image), file)

    return _cached(f"oci-{image.digest.partition(':')[2]}", unpack)


def _cached(name: str, unpack: Callable[[int, str], None]) -> str:
    """The directory of that name in the cache; *unpack* fills ``root`` in it, if it is new.

    It appears when it is whole. Who dies meanwhile leaves a part, which the next one removes:
    there is no other who could be making it, with the lock held.
    """
    cache = directory()
    final, part = f"{cache}/{name}-{_VERSION}", f"{cache}/{name}-{_VERSION}.part"
    with _locked(f"{final}.lock"):
        if os.path.isdir(f"{final}/root"):
            return final
        _drop(part)
        os.makedirs(f"{part}/root", mode=0o700)
        try:
            root = os.open(f"{part}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fchmod(root, 0o755)
                unpack(root, part)
                _make_places(root)
            finally:
                os.close(root)
            os.rename(part, final)
        except BaseException:
            _drop(part)
            raise
    return final


def _drop(path: str) -> None:
    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        changes.remove(parent, os.fsencode(os.path.basename(path)))
    finally:
        os.close(parent)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make_places(root: int) -> None:
    """What a read-only root is mounted on has to be there."""
    for name, mode in _PLACES:
        try:
            os.mkdir(name, dir_fd=root)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        except FileExistsError:
            continue
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)


# ------------------------------------------------------------------ defaults of an image


def _with_defaults(spec: Spec, root: str) -> Spec:
    with open(f"{os.path.dirname(root)}/config.json") as file:
        said = json.load(file).get("config")
    said = said if isinstance(said, dict) else {}
    args = spec.args or (*_strings(said, "Entrypoint"), *_strings(said, "Cmd"))
    if not args or not args[0]:
        raise SpecError("args", "the image names no command: give one")
    env = dict(one.partition("=")[::2] for one in _strings(said, "Env") if "=" in one[1:])
    env.update(spec.env or ())
    where = _string(said, "WorkingDir") if spec.cwd is None else ""
    image_cwd = container_path(where, "root") if where else ""
    uid, gid = spec.uid, spec.gid
    user = _string(said, "User")
    if uid is None and user:
        uid, gid = _user(root, user)
    return replace(spec, args=args, env=tuple(env.items()) or spec.env, image_cwd=image_cwd,
                   uid=uid, gid=gid)  # fmt: skip


def _string(said: dict[str, Any], name: str) -> str:
    value = said.get(name) or ""
    if not isinstance(value, str):
        raise SpecError("root", f"the image's {name} is not a string")
    return text(value, "root")


def _strings(said: dict[str, Any], name: str) -> tuple[str, ...]:
    value = said.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise SpecError("root", f"the image's {name} is not a list of strings")
    return tuple(text(one, "root") for one in value)


def _user(root: str, user: str) -> tuple[int, int]:
    """``name``, ``uid`` or either with ``:group``, by the image's own /etc/passwd and group."""
    name, _, group = user.partition(":")
    people = _database(root, b"/etc/passwd")
    row = next((r for r in people if len(r) > 3 and name in (r[0], r[2])), None)
    uid = name if name.isdigit() else row[2] if row else ""
    gid = group or (row[3] if row else uid)
    if group and not group.isdigit():
        gid = next((r[2] for r in _database(root, b"/etc/group") if len(r) > 2 and r[0] == group),
                   "")  # fmt: skip
    if not (uid.isdecimal() and gid.isdecimal()):
        raise SpecError("root", f"the image's user {user!r} is not in its /etc/passwd or group")
    return int(uid), int(gid)


def _database(root: str, path: bytes) -> list[list[str]]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = mountapi.open_in_root(fd, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    finally:
        os.close(fd)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        return []
    with open(found, "rb") as file:
        lines = file.read(1 << 20).decode("utf-8", "surrogateescape").splitlines()
    return [line.split(":") for line in lines]
