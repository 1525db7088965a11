"""The documentation site: `make docs` builds it, and every warning is an error."""

from importlib.metadata import version as installed_version

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
exclude_patterns = ["settings.md"]  # a part of api.md
