"""The site: `make docs` builds it."""

import os
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import docstrings  # noqa: E402, from the path above
from docutils import nodes  # noqa: E402
from docutils.utils.math.latex2mathml import tex2mathml  # noqa: E402

from wd_optax.version import __version__  # noqa: E402

project = "wd_optax"
author = "the wd_optax authors"
project_copyright = author  # shown in the footer
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

# `make docs` runs the notebooks, and the tests' build doesn't.
nb_execution_mode = os.environ.get("NOTEBOOKS", "off")
nb_execution_raise_on_error = True
nb_execution_timeout = 120

autodoc_typehints = "none"
napoleon_use_ivar = True  # else attributes are described twice
napoleon_use_rtype = False

html_theme = "furo"
html_title = "wd_optax"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["calculator.js"]
default_role = "code"
napoleon_custom_sections = [("Reference", "References")]


def math(writer: Any, node: Any) -> None:
    """Writes a formula as MathML, which browsers render without a script."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def math_block(writer: Any, node: Any) -> None:
    """The same, on a line of its own."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


html_math_renderer = "mathml"  # MathJax would be loaded from another host


def setup(app: Any) -> None:
    """Sphinx calls this with the application."""
    app.add_html_math_renderer("mathml", (math, None), (math_block, None))
    app.connect("autodoc-process-docstring", docstrings.escape, priority=400)  # napoleon's is 500
