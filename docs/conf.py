"""How Sphinx builds these pages: `make docs`."""

import re
from pathlib import Path

from sphinx.addnodes import pending_xref

import fastadam

project = "fastadam"
author = "The fastadam developers"
version = release = fastadam.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = "fastadam"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3

# Pages with code cells are run anew by each build, and an error ends it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# In docstrings a single backtick marks code.
default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = True
napoleon_numpy_docstring = False

# Each reference to something of ours must lead somewhere. There is no network, so those to other libraries are not
# looked up.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!fastadam\.).*")]


def _leave_as_text(app, doctree):
    """Make text of links to what is in the repository but is no page: README, folders."""
    for node in list(doctree.findall(pending_xref)):
        if node["reftype"] == "myst" and node["reftarget"] not in app.env.found_docs:
            target = Path(app.srcdir, node["refdoc"]).parent / node["reftarget"]
            if target.is_dir() or target.with_suffix(".md").is_file():
                node.replace_self(node.children)


def _code_blocks(app, what, name, obj, options, lines):
    """Make the indented lines below a colon, in which docstrings have their equations, code blocks."""
    for index in range(len(lines) - 2):
        line, blank, below = lines[index : index + 3]
        indent = len(line) - len(line.lstrip())
        starts = line.endswith(":") and not line.endswith("::") and not blank.strip() and below.strip()
        if starts and len(below) - len(below.lstrip()) > indent and not re.match(r"\s*(>>>|\* |- )", below):
            lines[index] = line + ":"


def setup(app):
    """Docstrings are changed before Napoleon reads their sections."""
    app.connect("autodoc-process-docstring", _code_blocks, priority=400)
    app.connect("doctree-read", _leave_as_text)
