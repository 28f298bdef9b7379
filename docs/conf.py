"""Sphinx builds the site from Markdown and docstrings, without the network."""

import fluxlike

project = "fluxlike"
author = "The fluxlike developers"
copyright = "2026, the fluxlike developers"
release = version = fluxlike.__version__

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode",
    "sphinx_copybutton", "sphinx_design",
]  # fmt: skip
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
default_role = "code"


autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
napoleon_google_docstring = True

html_theme = "furo"
html_title = "fluxlike"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#4063d8", "color-brand-content": "#4063d8"},
    "dark_css_variables": {"color-brand-primary": "#8aa2f2", "color-brand-content": "#8aa2f2"},
}
