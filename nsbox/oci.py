# SPDX-License-Identifier: Apache-2.0
"""Image layouts of the OCI: a directory with index.json, and blobs named by their digests.

Every blob is verified: its size, its digest, and of a layer the digest of what it unpacks to.
Source: OCI image-spec 1.1, image-layout, manifest, layer and config.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import stat
from dataclasses import dataclass
from typing import IO, Any

from nsbox import archive
from nsbox.errors import SpecError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_JSON = 4 << 20
_MOST_LAYERS = 512
_MOST_SHOWN, _LONGEST = 20, 120  # of the images of a layout, in an error
_INDEXES = ("application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json")  # fmt: skip
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_LEAST = {"amd64": "v1", "arm64": "v8"}  # variants that say no more than the architecture


@dataclass(frozen=True)
class Image:
    """One image of a layout: the digest of its manifest, which stands for all of it."""

    layout: str
    digest: str
    manifest: dict[str, Any]


def _wrong(layout: str, why: str) -> SpecError:
    return SpecError("root", f"{layout}: {why}")


class Hashed(io.RawIOBase):
    """Reads through, and knows the digest of what was read."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self._hash.update(data)
        return len(data)

    def buffered(self) -> io.BufferedReader:
        return io.BufferedReader(self)

    def drain(self, most: int) -> None:
        """To its end: what comes after the archive's counts too."""
        while most >= 0 and (data := self._raw.read(1 << 18)):
            self._hash.update(data)
            most -= len(data)

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _open_blob(layout: str, descriptor: Any) -> tuple[IO[bytes], str]:
    """A blob's file, of the size that *descriptor* says, and the digest that it must have."""
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None or not isinstance(digest, str):
        raise _wrong(layout, f"{digest!r} is not a sha256 digest")
    path = f"{layout}/blobs/sha256/{match[1]}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise _wrong(layout, f"blob {digest}: {e.strerror}") from e
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != descriptor.get("size"):
        os.close(fd)
        raise _wrong(layout, f"blob {digest} is {status.st_size} bytes, not "
                     f"{descriptor.get('size')!r}")  # fmt: skip
    return open(fd, "rb"), digest


def _json_blob(layout: str, descriptor: Any) -> dict[str, Any]:
    file, digest = _open_blob(layout, descriptor)
    with file:
        raw = file.read(_JSON + 1)
    if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
        raise _wrong(layout, f"blob {digest} has another digest, or is too large")
    return _parse(layout, raw)


def _parse(layout: str, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise _wrong(layout, f"not JSON: {e}") from e
    if not isinstance(value, dict):
        raise _wrong(layout, "not a JSON object")
    return value


def find(layout: str, ref: str = "") -> Image:
    """The image of this machine's architecture in a layout; *ref* is its name or the digest of its
    manifest, if it has several.

    Raises:
        SpecError: there is none, or more than one; or the layout is damaged.
    """
    try:
        with open(f"{layout}/index.json", "rb") as file:
            index = _parse(layout, file.read(_JSON))
    except OSError as e:
        raise _wrong(layout, f"index.json: {e.strerror}") from e
    descriptor = _by_digest(layout, ref)
    for _ in range(4):
        descriptor = descriptor or _choose(layout, index, ref)
        manifest = _json_blob(layout, descriptor)
        if (descriptor.get("mediaType") or manifest.get("mediaType")) not in _INDEXES:
            return Image(layout, descriptor["digest"], manifest)
        index, ref, descriptor = manifest, "", None
    raise _wrong(layout, "an index in an index in an index")


def _by_digest(layout: str, ref: str) -> dict[str, Any] | None:
    """A manifest wherever it is listed; None where *ref* is the digest of none."""
    match = _DIGEST.fullmatch(ref)
    try:
        size = os.lstat(f"{layout}/blobs/sha256/{match[1]}").st_size if match else -1
    except OSError:
        return None
    return {"digest": ref, "size": size} if match else None


def _choose(layout: str, index: dict[str, Any], ref: str) -> dict[str, Any]:
    entries = index.get("manifests")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise _wrong(layout, "no list of manifests")
    named: list[dict[str, Any]] = [e for e in entries if not ref or _name(e) == ref]
    found = _plainest([entry for entry in named if _fits(entry)])
    if ref and not named:
        raise _wrong(layout, f"no image has the ref {ref!r}{_known(entries, ref, 'it has ')}")
    if not found:
        raise _wrong(layout, f"no image for linux/{_architecture()}{_known(named, '', 'it has ')}")
    if len(found) > 1:
        known = _known(found, ref, "say which by ref=, a name or a digest of: ")
        raise _wrong(layout, f"{len(found)} images for linux/{_architecture()}{known}")
    return found[0]


def _known(entries: list[dict[str, Any]], ref: str, intro: str) -> str:
    """What there is, not all of very many: each by its name, or else, or if that is *ref*, which
    does not say which, by its digest."""
    shown = sorted(_shown(entry, ref) for entry in entries[:_MOST_SHOWN])
    more = f" and {len(entries) - _MOST_SHOWN} more" if len(entries) > _MOST_SHOWN else ""
    return f"; {intro}{', '.join(shown)}{more}" if shown else "; it has none at all"


def _shown(entry: dict[str, Any], ref: str) -> str:
    where = _platform(entry)
    parts = [str(where[key]) for key in ("os", "architecture", "variant") if where.get(key)]
    name = _name(entry)
    text = str(name if name and name != ref else entry.get("digest"))
    text += f" ({'/'.join(parts)})" if parts else ""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _architecture() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _name(entry: dict[str, Any]) -> object:
    notes = entry.get("annotations")
    return notes.get("org.opencontainers.image.ref.name") if isinstance(notes, dict) else None


def _fits(entry: dict[str, Any]) -> bool:
    where = _platform(entry)
    here = {"os": "linux", "architecture": _architecture()}
    return not where or all(where.get(key) == value for key, value in here.items())


def _platform(entry: dict[str, Any]) -> dict[str, Any]:
    where = entry.get("platform")
    return where if isinstance(where, dict) else {}


def _plainest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of those of one name, or of none, for variants of one architecture: what all of it runs."""
    if len({str(_name(entry)) for entry in entries}) != 1:
        return entries
    least = (None, "", _LEAST.get(_architecture()))
    return [e for e in entries if _platform(e).get("variant") in least] or entries


def config(image: Image) -> dict[str, Any]:
    """What the image says of how it is run: ``Env``, ``Cmd``, ``User`` and so on."""
    return _json_blob(image.layout, image.manifest.get("config"))


def unpack(image: Image, root: int) -> None:
    """The layers, one over the other, into the directory *root*, a descriptor.

    Raises:
        SpecError: something is damaged, or refused (``archive.py``).
    """
    layers = image.manifest.get("layers")
    ids = config(image).get("rootfs")
    ids = ids.get("diff_ids") if isinstance(ids, dict) else None
    if not isinstance(layers, list) or not isinstance(ids, list) or len(ids) != len(layers):
        raise _wrong(image.layout, "the manifest and the config do not name the same layers")
    if len(layers) > _MOST_LAYERS:
        raise _wrong(image.layout, f"more than {_MOST_LAYERS} layers")
    unpacker = archive.Unpacker(root, image.layout)
    for number, (layer, diff_id) in enumerate(zip(layers, ids, strict=True)):
        if number:
            with _open_blob(image.layout, layer)[0] as file:
                unpacker.erase(archive.decompressed(file))
        file, digest = _open_blob(image.layout, layer)
        with file:
            raw = Hashed(file)
            plain = Hashed(archive.decompressed(raw.buffered()))
            unpacker.unpack(plain.buffered(), layer=True)
            plain.drain(archive.MOST_BYTES)
            raw.drain(archive.MOST_BYTES)
        if raw.digest() != digest or plain.digest() != diff_id:
            raise _wrong(image.layout, f"layer {digest} has another digest")
