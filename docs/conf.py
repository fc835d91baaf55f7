"""How `make docs` builds the site: Sphinx reads docs/*.md, the docstrings, and the notebooks."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # docstrings.py, and benchmarks

import pyro_vae  # noqa: E402

project = "pyro_vae"
author = "The pyro_vae authors"
copyright = author
version = release = pyro_vae.__version__

extensions = [
    "docstrings",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold the outputs of one full run
nb_merge_streams = True

default_role = "py:obj"  # `name` in a docstring: code, and a link where it names something public
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "pyro_vae"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
