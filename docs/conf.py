# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration. Building needs no network."""

from __future__ import annotations

import doctest
import sys
from importlib import metadata
from pathlib import Path

from sphinx import addnodes

sys.path.insert(0, str(Path(__file__).parent))  # render.py

project = "nsbox"
author = "The nsbox authors"
copyright = "2026, The nsbox authors"
version = release = metadata.version("nsbox")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.extlinks",
    "sphinx.ext.napoleon",
    "render",
]
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
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# :man:`unshare(2)`
manpages_url = "https://man7.org/linux/man-pages/man{section}/{page}.{section}.html"
# :kernel:`admin-guide/cgroup-v2`
extlinks = {"kernel": ("https://docs.kernel.org/%s.html", "%s")}
extlinks_detect_hardcoded_links = True

# `:skipif: lacking("cgroup")` is for examples with limits that only a cgroup enforces
doctest_global_setup = "import nsbox\nfrom render import lacking"
# The text of an exception is part of the example.
doctest_default_flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1


def setup(app):
    app.add_generic_role("man", addnodes.manpage)
