# SPDX-License-Identifier: Apache-2.0
"""Builds the two compiled parts: the extension nsbox._ffi and the static binary nsbox-init.

Everything else about the package is in pyproject.toml; the flags are in tools/cflags.py.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))  # a build backend does not put the project on sys.path

import cflags  # noqa: E402

INIT = "nsbox/nsbox-init"


def compiler() -> list[str]:
    """$CC, or the compiler that built this Python, or cc."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    # Python's own CC carries options for extensions (-pthread): only its name is of use here
    for words in (shlex.split(sysconfig.get_config_var("CC") or ""), ["cc"], ["gcc"]):
        if words and shutil.which(words[0]):
            return words[:1]
    raise SystemExit("nsbox: no C compiler found: install gcc, or name one in CC")


class BuildExt(build_ext):
    """The usual build_ext, with nsbox-init as one more output beside the extension."""

    def run(self) -> None:
        self._build_init()
        super().run()

    def build_extension(self, ext) -> None:  # noqa: ANN001
        ext.depends = sorted({*ext.depends, *cflags.all_inputs()})
        ext.include_dirs = [*ext.include_dirs, "csrc"]
        ext.extra_compile_args = [*cflags.EXTENSION_CFLAGS, *ext.extra_compile_args]
        super().build_extension(ext)

    def get_outputs(self) -> list[str]:
        return sorted({*super().get_outputs(), str(Path(self.build_lib) / INIT)})

    def get_output_mapping(self) -> dict[str, str]:
        mapping = super().get_output_mapping()
        if self.inplace:
            mapping[str(Path(self.build_lib) / INIT)] = INIT
        return mapping

    def _build_init(self) -> None:
        """Compile all of it in one command: it is small, and so it is never stale."""
        sources = cflags.init_sources()
        if not any(source.startswith("csrc/init/") for source in sources):
            raise SystemExit("nsbox: csrc/init/ has no sources: is this tree complete?")
        target = (ROOT if self.inplace else Path(self.build_lib).resolve()) / INIT
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        command = [
            *compiler(),
            *cflags.INIT_CFLAGS,
            *cflags.INCLUDES,
            *cflags.INIT_LDFLAGS,
            *sources,
            *cflags.INIT_LIBS,
            "-o",
            str(fresh),
        ]
        print(shlex.join(command), flush=True)
        try:
            subprocess.run(command, cwd=ROOT, check=True)
            fresh.chmod(0o755)
            fresh.replace(target)  # a running nsbox-init keeps its old file
        except subprocess.CalledProcessError as e:
            raise SystemExit(f"nsbox: compiling {INIT} failed ({e.returncode})") from None
        finally:
            fresh.unlink(missing_ok=True)


# One wheel serves CPython 3.10 and later. A free-threaded build has no stable ABI: there cffi
# makes an ordinary extension, and the wheel must carry that interpreter's own tag.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt},
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
