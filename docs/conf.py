"""Sphinx: MyST pages, the reference from docstrings, no request to any host."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import convlens  # noqa: E402

project = "convlens"
author = "The convlens authors"
copyright = "the convlens authors, Apache-2.0"
release = convlens.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"convlens {release}"
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True}
# Attributes of two records may share a name (`macs`); their entries link to neither.
suppress_warnings = ["ref.python"]
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Rooms that import on first use have to be asked for every public name before autodoc looks at them.
for room in ("models", "training"):
    module = importlib.import_module(f"convlens.{room}")
    for name in module.__all__:
        getattr(module, name)

subprocess.run([sys.executable, str(ROOT / "scripts" / "benchmark_page.py")], check=True)
