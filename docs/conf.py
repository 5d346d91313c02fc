# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration. Building needs no network."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from sphinx import addnodes

project = "nsbox"
author = "The nsbox authors"
copyright = "2026, The nsbox authors"
version = release = metadata.version("nsbox")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.extlinks", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "literal"
nitpicky = False

html_theme = "furo"
html_title = f"nsbox {release}"
html_copy_source = False
html_show_sourcelink = False

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# :man:`unshare(2)`
manpages_url = "https://man7.org/linux/man-pages/man{section}/{page}.{section}.html"
# :kernel:`admin-guide/cgroup-v2`
extlinks = {"kernel": ("https://docs.kernel.org/%s.html", "%s")}
extlinks_detect_hardcoded_links = True

doctest_global_setup = "import nsbox"


def draw_exceptions(cls: type, indent: str = "") -> list[str]:
    """The tree of exceptions, with the built-in bases that make `except OSError` work."""
    children = [c for c in cls.__subclasses__() if c.__module__.startswith("nsbox.")]
    lines = []
    for child in children:
        last = child is children[-1]
        bases = [
            base.__name__ if base.__module__ == "builtins" else f"{base.__module__}.{base.__name__}"
            for base in child.__bases__
            if base is not cls
        ]
        suffix = f"({', '.join(bases)})" if bases else ""
        lines.append(f"{indent}{'└──' if last else '├──'} {child.__name__}{suffix}")
        lines += draw_exceptions(child, indent + ("    " if last else "│   "))
    return lines


def write_exceptions() -> None:
    from nsbox.errors import NsboxError

    target = Path(__file__).parent / "_build" / "exceptions.txt"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(["NsboxError", *draw_exceptions(NsboxError)]) + "\n")


def setup(app):
    app.add_generic_role("man", addnodes.manpage)
    write_exceptions()
