"""What the docstrings of the library need to become pages: an extension of Sphinx.

They are Google-style text with reStructuredText's maths. Shapes hold stars and bars, as
``(* | Z)``, which reStructuredText takes for markup; annotations name the module that defines a
class, where the site has the public name; and ``pv.fit(...)`` in prose becomes a link.
"""

import inspect
import json
import re
from functools import cache
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from public_names import everything, home, is_documented, modules, names_of
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

import pyro_vae
from benchmarks import tables

log = logging.getLogger(__name__)


@cache
def places() -> dict[str, str]:
    """Return the public path of each class and function, by the place where it is defined."""
    values = everything().items()
    return {home(value): path for path, value in values if is_documented(value)}


class Public(SphinxDirective):
    """``.. public:: MODULE [NAME ...]``: classes and functions of a module, all or those named."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        path, *asked = " ".join(self.arguments).split()
        names = asked or names_of(dict(modules())[path])
        lines = [line for name in names for line in entry(f"{path}.{name}")]
        page = nodes.Element()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, page)
        return page.children


def entry(path: str) -> list[str]:
    """Return what documents a name: nothing for constants, a link where it has two places."""
    value = everything()[path]
    if not is_documented(value):
        return []
    kind = "class" if inspect.isclass(value) else "function"
    place = places()[home(value)]
    if place != path:
        return [f".. py:{kind}:: {path}", "   :no-index:", "", f"   See :py:obj:`{place}`.", ""]
    return [f".. auto{kind}:: {path}", ""]


class Figure(SphinxRole):
    """``{result}`NAME```: a figure and its error, from ``benchmarks/results/NAME.json``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        path = tables.FOLDER / f"{self.text}.json"
        self.env.note_dependency(str(path))
        row = json.loads(path.read_text())
        value, error = tables.to_its_error(row["value"], row["stderr"])
        shown = nodes.inline("", f"{value}{error}".replace("-", "−"))
        link = nodes.reference("", "", internal=True, reftitle=row["unit"])
        link["refuri"] = self.env.app.builder.get_relative_uri(self.env.docname, "results")
        link += shown
        return [link], []


# Of a line: what is no prose. A bar that begins one begins a line of its own on the page.
CODE = re.compile(r"(^ *\| |``.*?``|:\w+:`.*?`|`[^`]+`)")


def as_prose(lines: list[str]) -> list[str]:
    """Return a docstring in which the stars and bars of the prose are no markup."""
    done: list[str] = []
    block = None  # the indent of the line that opened maths or an example
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indent <= block:
            block = None
        if block is None and line.lstrip().startswith((".. math::", ">>>")):
            block = indent - line.lstrip().startswith(">>>")
        elif block is None:
            parts = CODE.split(line)
            parts[::2] = [re.sub(r"[*|]", r"\\\g<0>", part) for part in parts[::2]]
            line = "".join(parts)
        done.append(line)
    return done


def mend(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Fit a docstring to reStructuredText, in place, before its sections are read."""
    lines[:] = as_prose(lines)


def resolve(app: Sphinx, env: Any, node: addnodes.pending_xref, contnode: Any) -> Any:
    """Link a name that is public under another path: where it is defined, ``pv.``, or bare."""
    if node.get("refdomain") != "py":
        return None
    known = env.domains["py"].objects
    target = re.sub(r"^pv\.", "pyro_vae.", node["reftarget"])
    target = places().get(target, target)
    if target not in known and "." not in target:
        ends = [path for path in places().values() if path.endswith(f".{target}")]
        target = ends[0] if len(ends) == 1 else target
    if target not in known:
        return None
    entry = known[target]
    uri = app.builder.get_relative_uri(node.get("refdoc", env.docname), entry.docname)
    found = nodes.reference("", "", internal=True, reftitle=target)
    found["refuri"] = f"{uri}#{entry.node_id}"
    found += contnode
    return found


class LinkedCode(SphinxPostTransform):
    """Make ``pv.name`` in prose a link; a name that the library does not have is a warning."""

    default_priority = 5  # before references are resolved
    spelled = re.compile(r"pv((?:\.[A-Za-z]\w*)+)(?:\(.*\))?")

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(nodes.literal)):
            found = self.spelled.fullmatch(node.astext())
            if found is None or isinstance(node.parent, nodes.reference | addnodes.pending_xref):
                continue
            path = "pyro_vae" + found[1]
            if not exists(path):
                log.warning("%s names nothing in pyro_vae", node.astext(), location=node)
            link = addnodes.pending_xref(
                "", refdomain="py", reftype="obj", reftarget=path, refdoc=self.env.docname
            )
            node.replace_self(link)
            link += node


def exists(path: str) -> bool:
    """Return whether a dotted name leads somewhere."""
    value: Any = pyro_vae
    for name in path.split(".")[1:]:
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the parts."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("public", Public)
    app.add_role("result", Figure())
    app.connect("autodoc-process-docstring", mend, priority=400)  # before napoleon's
    app.connect("missing-reference", resolve)
    app.add_post_transform(LinkedCode)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
