"""Settings of Sphinx. ``make docs`` builds the site without a network, and warnings are errors."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

project = "Factsmith"
author = "the authors of Factsmith"
project_copyright = "the authors of Factsmith, MIT licence"
version = release = version_of("factsmith")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated"]
exclude_patterns = ["_extensions"]
source_suffix = {".md": "markdown"}
root_doc = "index"
language = "en"

myst_heading_anchors = 3
# A prompt or a file name in a page is text, not a link to somewhere.
myst_linkify_fuzzy_links = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
highlight_language = "text"

copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "Factsmith"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "default"
pygments_dark_style = "github-dark"
