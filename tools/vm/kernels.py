#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The kernels that the suite is tried on, and the tools that boot them.

    kernels.py                 list the kernels; fetch those that are not here
    kernels.py --update 6.12   take the newest release the package lists know

A kernel comes from /boot and /lib/modules when it is installed, else from the cache, else from
the distribution's own archive through apt: downloaded and unpacked, never installed, so nobody
needs to be root. The cache is $XDG_CACHE_HOME/nsbox-vm, or ~/.cache/nsbox-vm.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERIES = ("6.1", "6.12")
DOWNLOAD_TIMEOUT_S = 1800

# tool -> the Debian package that has it
RUN_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "zstd": "zstd",
    "mkfs.ext4": "e2fsprogs",
    "setpriv": "util-linux",
    "newuidmap": "uidmap",
}
FETCH_TOOLS = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "depmod": "kmod",
}


class SetupError(RuntimeError):
    """The machine lacks something; the text says which command brings it."""


@dataclass(frozen=True)
class Kernel:
    """A bootable release: its image and the directory of its modules."""

    release: str
    image: Path
    modules: Path

    @property
    def series(self) -> str:
        """The first two numbers of the release: 6.12 of 6.12.117+deb12-amd64."""
        return ".".join(self.release.split(".")[:2])


def cache_dir() -> Path:
    """The cache directory, made when it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "nsbox-vm"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def which(tool: str) -> str | None:
    """Like shutil.which, but looks into the sbin directories as well: users lack them in PATH."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def require(tools: dict[str, str]) -> None:
    """Raise SetupError, with the command to run, unless every tool is installed."""
    missing = [tool for tool in tools if which(tool) is None]
    if missing:
        packages = " ".join(sorted({tools[tool] for tool in missing}))
        raise SetupError(f"{', '.join(missing)} not found; run: apt-get install {packages}")


def find(series: str) -> Kernel:
    """The newest kernel of *series* that is installed or cached; fetched if there is none.

    Raises:
        SetupError: none is here and apt knows none, or a tool for fetching it is missing.
    """
    return _newest_in(Path("/"), series) or _cached(series) or fetch(series)


def fetch(series: str) -> Kernel:
    """Bring the newest release of *series* from the archive into the cache; keep only that one.

    Raises:
        SetupError: apt's lists hold no such package, or the download failed.
    """
    require(FETCH_TOOLS)
    package = _newest_package(series)
    cache = cache_dir()
    with _locked(cache / "lock"):
        home = cache / package.replace("linux-image-", "linux-")
        if not home.exists():
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as work:
                # renamed last: a directory by this name is always whole
                _unpack(package, Path(work)).rename(home)
        for old in cache.glob(f"linux-{series}.*"):
            if old != home:
                shutil.rmtree(old)
    kernel = _newest_in(home, series)
    if kernel is None:
        raise SetupError(f"{package} has no usable kernel; remove {home} and try again")
    return kernel


def vmlinux(kernel: Kernel) -> Path:
    """The kernel without its decompressor, made once and cached.

    QEMU enters an ELF kernel by its PVH note: no BIOS, no boot stub, and no decompression by
    emulated instructions. That is 5 s to userland in place of 22.

    Raises:
        SetupError: the image is no bzImage, or is packed in a way unknown here.
    """
    cache = cache_dir()
    out = cache / f"vmlinux-{kernel.release}"
    with _locked(cache / "lock"):
        if out.exists() and out.stat().st_mtime >= kernel.image.stat().st_mtime:
            return out
        elf = _decompress(_payload(kernel.image.read_bytes()))
        if not elf.startswith(b"\x7fELF"):
            raise SetupError(f"{kernel.image}: no ELF kernel inside")
        part = out.with_name(out.name + ".part")
        part.write_bytes(elf)
        for old in cache.glob(f"vmlinux-{kernel.series}.*"):
            if old != part:
                old.unlink()
        part.rename(out)
    return out


def _release_pattern(series: str) -> str:
    # the plain flavour only: the "cloud" one has no 9p, "rt" is another scheduler
    return rf"{re.escape(series)}\.\d+(?:\.\d+)?(?:\+deb\d+\w*|-\d+)?-amd64"


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _newest_in(root: Path, series: str) -> Kernel | None:
    """The newest complete kernel (image and indexed modules) under *root*, laid out like /."""
    wanted = re.compile(r"vmlinuz-(" + _release_pattern(series) + ")")
    matches = [wanted.fullmatch(p.name) for p in (root / "boot").glob("vmlinuz-*")]
    for release in sorted((m[1] for m in matches if m), key=_numbers, reverse=True):
        image = root / "boot" / f"vmlinuz-{release}"
        modules = root / "lib/modules" / release
        if os.access(image, os.R_OK) and (modules / "modules.dep").exists():
            return Kernel(release, image, modules.resolve())
    return None


def _cached(series: str) -> Kernel | None:
    for home in cache_dir().glob(f"linux-{series}.*"):
        kernel = _newest_in(home, series)
        if kernel:
            return kernel
    return None


def _newest_package(series: str) -> str:
    pattern = rf"linux-image-{_release_pattern(series)}"
    listing = _output(["apt-cache", "search", "--names-only", f"^linux-image-{series}"])
    names = (line.split(" ", 1)[0] for line in listing.splitlines())
    found = sorted((n for n in names if re.fullmatch(pattern, n)), key=_numbers)
    if not found:
        raise SetupError(
            f"apt's lists know no linux-image-{series}.*-amd64; run: apt-get update (as root), "
            "with the distribution's security archive among the sources"
        )
    return found[-1]


def _unpack(package: str, work: Path) -> Path:
    """Download *package* into *work*; the tree it unpacks to, modules indexed, package removed."""
    print(f"fetching {package} ...", file=sys.stderr, flush=True)
    # without this apt, run by root, warns that its own user cannot write here
    as_caller = ["-o", "APT::Sandbox::User=root"]
    _output(["apt-get", "-q", *as_caller, "download", package], cwd=work)
    debs = list(work.glob("*.deb"))
    if len(debs) != 1 or _output(["dpkg-deb", "--field", str(debs[0]), "Package"]) != package:
        raise SetupError(f"apt-get download {package} brought {[d.name for d in debs]}")
    tree = work / "tree"
    tree.mkdir(mode=0o755)
    _output(["dpkg-deb", "-x", str(debs[0]), str(tree)])
    if not (tree / "lib/modules").exists():  # releases after the merge of /lib into /usr/lib
        (tree / "usr/lib").rename(tree / "lib")
    _output(["depmod", "-b", str(tree), package.removeprefix("linux-image-")])
    return tree


def _payload(image: bytes) -> bytes:
    """The compressed kernel in a bzImage (Documentation/arch/x86/boot.rst, protocol 2.08)."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(image[offset : offset + size], "little")

    if image[0x202:0x206] != b"HdrS" or number(0x206, 2) < 0x208:
        raise SetupError("not a bzImage of boot protocol 2.08 or later")
    start = ((number(0x1F1, 1) or 4) + 1) * 512 + number(0x248, 4)
    return image[start : start + number(0x24C, 4)]


def _decompress(payload: bytes) -> bytes:
    # The kernel's build appends the unpacked size (4 bytes) to all but gzip: the decompressor
    # objects have to stop at the end of their stream, and zstd must not see those bytes.
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return unzstd(payload[:-4])
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload)
    raise SetupError(f"unknown compression of the kernel: starts with {payload[:6].hex()}")


def unzstd(data: bytes) -> bytes:
    """Unpack zstd data; a tool does it, as the standard library has no zstd before 3.14."""
    require({"zstd": "zstd"})
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout


def _output(argv: Sequence[str], cwd: Path | None = None) -> str:
    """Standard output of a tool, stripped; SetupError with what it said if it fails."""
    tool = which(argv[0])
    if tool is None:
        raise SetupError(f"{argv[0]} not found")
    done = subprocess.run(
        [tool, *argv[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=DOWNLOAD_TIMEOUT_S,
    )
    if done.returncode:
        raise SetupError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive flock: two runs at once share one cache."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """List, and if need be fetch, the kernels. 0: all are there; 1: the text says what to do."""
    parser = argparse.ArgumentParser(description="List and fetch the kernels of the suite.")
    parser.add_argument("series", nargs="*", default=SERIES, help="default: 6.1 6.12")
    parser.add_argument("--update", action="store_true", help="take the newest of the archive")
    args = parser.parse_args(argv)
    try:
        require(RUN_TOOLS)
        for series in args.series:
            kernel = fetch(series) if args.update else find(series)
            print(f"{series:5} {kernel.release:26} {kernel.image}")
            vmlinux(kernel)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
