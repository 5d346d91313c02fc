# SPDX-License-Identifier: Apache-2.0
"""The initial file system of a test machine: a static busybox, a few modules, two scripts.

Everything the guest needs before the command runs comes from here, that is from RAM: each program
started over 9p by emulated instructions costs tenths of a second.
"""

from __future__ import annotations

import lzma
import shlex
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kernels import Kernel, SetupError, unzstd, which

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).resolve().parent

# What the scripts call. Links made here, for `busybox --install` makes 300 of them, slowly.
APPLETS = (
    "cat chmod chown cp hostname ifconfig insmod mkdir mount mv poweroff reboot setsid sh "
    "sleep switch_root sync"
).split()

# Inserted in this order, each after what it needs. Those built into the kernel, or absent, are
# passed over; tun, fuse, loop and ext4 are what tests use and an idle kernel would not have.
# ext4 asks for the algorithm crc32c by name, which the index of modules does not show.
MODULES = (
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "tun",
    "fuse",
    "loop",
)


class Entry(NamedTuple):
    """A member of the archive; *mode* includes the file type."""

    name: str
    mode: int
    data: bytes = b""


def build(kernel: Kernel, config: Mapping[str, str], command: str) -> bytes:
    """The archive for *kernel*, uncompressed (the guest would have to unpack it).

    *config* becomes shell variables for the two scripts; *command* a script of its own.

    Raises:
        SetupError: busybox is not static, or the modules have no index.
    """
    assignments = "".join(f"{k}={shlex.quote(v)}\n" for k, v in config.items())
    entries = [_directory(d) for d in "bin dev etc lower mod newroot overlay proc sys".split()]
    entries += [_file("bin/busybox", _busybox())]
    entries += [_link(f"bin/{applet}", "busybox") for applet in APPLETS]
    entries += [
        _file("init", (HERE / "init.sh").read_bytes()),
        _file("guest.sh", (HERE / "guest.sh").read_bytes()),
        _file("config", assignments.encode()),
        _file("command.sh", command.encode() + b"\n"),
    ]
    for number, path in enumerate(_module_closure(kernel)):
        entries.append(_file(f"mod/{number:02}-{path.name.split('.')[0]}.ko", _module(path)))
    return cpio(entries)


def cpio(entries: Sequence[Entry]) -> bytes:
    """A "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)


def _directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def _file(name: str, data: bytes) -> Entry:
    return Entry(name, stat.S_IFREG | 0o755, data)


def _link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def _busybox() -> bytes:
    path = which("busybox")
    data = Path(path).read_bytes() if path else b""
    # a dynamic program names its loader in the first page
    if not data or b"/ld-linux" in data[:4096]:
        raise SetupError("no static busybox; run: apt-get install busybox-static")
    return data


def _module_closure(kernel: Kernel) -> list[Path]:
    """The files of MODULES and of all they need, in an order in which they can be inserted."""
    index = kernel.modules / "modules.dep"
    if not index.exists():
        raise SetupError(f"{index} not found; run: depmod {kernel.release}")
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in index.read_text().splitlines():
        module, _, rest = line.partition(":")
        needs[module] = rest.split()
        by_name[Path(module).name.split(".")[0].replace("-", "_")] = module
    closure: dict[str, None] = {}
    for wanted in MODULES:
        if wanted in by_name:
            module = by_name[wanted]
            # modules.dep lists everything needed, nearest first: insert from the far end
            closure.update(dict.fromkeys([*reversed(needs[module]), module]))
    return [kernel.modules / module for module in closure]


def _module(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return unzstd(data)
    if path.suffix == ".gz":
        return zlib.decompress(data, wbits=31)
    return data
