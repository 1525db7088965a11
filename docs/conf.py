"""The documentation site: `make docs` builds it, and every warning is an error."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

project = "mint-train"
version = release = installed_version("mint-train")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"mint-train {version}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
nitpicky = False
default_role = "code"  # as the docstrings use backticks
exclude_patterns = ["settings.md"]  # a part of api.md


def setup(app: Any) -> None:
    """Set the formulas of the losses as mathematics."""
    sys.path.insert(0, str(Path(__file__).parent))
    from formulas import set_formulas

    app.connect("doctree-resolved", set_formulas)
