"""Sphinx builds the site from Markdown and docstrings, without the network."""

import re

import fluxlike

project = "fluxlike"
author = "The fluxlike developers"
copyright = "2026, the fluxlike developers"
release = version = fluxlike.__version__

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode",
    "sphinx_copybutton", "sphinx_design",
]  # fmt: skip
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
default_role = "code"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
napoleon_google_docstring = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["fluxlike.css"]
html_logo = html_favicon = "_static/logo.svg"
pygments_dark_style = "github-dark"
html_title = "fluxlike"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#4063d8", "color-brand-content": "#4063d8"},
    "dark_css_variables": {"color-brand-primary": "#8aa2f2", "color-brand-content": "#8aa2f2"},
}

BACK_LINK = re.compile(r'(<a class="viewcode-back" href="[^"#]*#)([^"]+)"')


def lead_back(app, pagename, templatename, context, doctree):
    """Mend links from source to reference: viewcode takes a file to be documented under one module's name."""
    if not pagename.startswith("_modules/"):
        return
    documented = app.env.get_domain("py").objects
    file = pagename.removeprefix("_modules/").replace("/", ".")

    def mended(link):
        if link[2] in documented:
            return link[0]
        name = link[2].removeprefix("fluxlike.")
        room = file.rsplit(".", 1)[0]
        found = next(full for full in (f"{file}.{name}", f"{room}.{name}") if full in documented)
        return f'{link[1]}{found}"'

    context["body"] = BACK_LINK.sub(mended, context["body"])


def setup(app):
    app.connect("html-page-context", lead_back)
