"""Sphinx settings of `make docs`: one site from the repository's Markdown and the client's docstrings."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

project = "triton-face-features"
copyright = "The triton-face-features authors, Apache-2.0"  # noqa: A001 (Sphinx's name)
version = release = installed_version("triton-face-client")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*",
    "client/README.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "export/**.md",
]
exclude_patterns = [".*", "build", "**/__pycache__", "tests", "model_repository", "deploy"]

# Anchors of headings down to this level, named as on code hosts, for links in Markdown.
myst_heading_anchors = 4
# Code blocks without a language hold commands and messages, not Python.
highlight_language = "none"
# `name` in a docstring is code.
default_role = "code"
napoleon_google_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {release}"
html_show_sourcelink = html_copy_source = False
html_theme_options = {"footer_icons": []}
html_static_path = html_css_files = ["site.css"]

CONTENTS = """
```{toctree}
:hidden:
:caption: Use
Client and command line <client/README>
Landmarks of other layouts <docs/landmarks>
Head pose <docs/pose>
Action units <docs/action_units>
docs/api
```

```{toctree}
:hidden:
:caption: Operate
Models <docs/models>
Reliability <docs/reliability>
Kubernetes <docs/fleet>
SECURITY
```

```{toctree}
:hidden:
:caption: Measured
:glob:
How to measure <benchmarks/README>
Speed <benchmarks/results/bench>
Speed of action units <benchmarks/results/action_units>
Crashes and overload <benchmarks/results/chaos>
Memory <benchmarks/results/soak>
GPU <benchmarks/results/gpu>
benchmarks/results/*
```

```{toctree}
:hidden:
:caption: Develop
Numerics <docs/SPEC>
CONTRIBUTING
CHANGELOG
export/checkpoints/MODEL_CARD
Face mesh of the training data <export/pose/training/data/README>
```
"""
"""Tables of contents of the site's sidebar."""

LINK = re.compile(r"\[([^\]]*)\]\(([^):#]+)\)")
"""A Markdown link without an anchor: its text and its path."""


def adapt_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the contents to the start page. Remove links to folders: only a code host has pages for them."""
    folder = Path(app.srcdir, page).parent
    source[0] = LINK.sub(lambda link: link[1] if (folder / link[2]).is_dir() else link[0], source[0])
    if page == root_doc:
        source[0] += CONTENTS


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Redirect index.html to the start page."""
    if error is None:
        redirect = '<meta http-equiv="refresh" content="0; url=README.html">'
        Path(app.outdir, "index.html").write_text(f"<!doctype html><title>{project}</title>{redirect}\n")


def setup(app: Sphinx) -> None:
    """Register the hooks; Sphinx calls this function."""
    app.connect("source-read", adapt_source)
    app.connect("build-finished", add_index)
