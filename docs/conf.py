"""Sphinx: ``make docs`` writes build/docs/index.html."""

project = "speechft"
copyright = "the speechft authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["figures"]
html_theme = "furo"
html_title = "speechft"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_use_ivar = True
napoleon_custom_sections = [("Shape", "params_style"), ("Shapes", "params_style")]
