"""The site's sources: every public name in the reference, docstrings of one layout.

`make docs` builds the site itself, which takes longer than a test may.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from public_names import everything, is_documented  # noqa: E402

PUBLIC = everything()
DOCUMENTED = {path: value for path, value in PUBLIC.items() if is_documented(value)}
SECTIONS = ["Arguments", "Returns", "Raises", "References", "Example"]


def placed() -> list[str]:
    """Return the names that the pages of the reference show."""
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    found = re.findall(r"^\.\. py:data:: (\S+)", text, re.MULTILINE)
    for module, names in re.findall(r"^\.\. public:: (\S+)((?:\n   .+)*)", text, re.MULTILINE):
        all_of_it = [path for path in DOCUMENTED if path.rpartition(".")[0] == module]
        found += [f"{module}.{name}" for name in names.split()] or all_of_it
    return found


def test_the_reference_shows_every_public_name_once() -> None:
    assert sorted(placed()) == sorted(PUBLIC)


def is_anothers(value: Any) -> bool:
    """Return whether another library explains the arguments: of a class without a constructor."""
    mro = value.__mro__ if inspect.isclass(value) else ()
    owner = next((each for each in mro if "__init__" in vars(each)), object)
    return bool(mro) and not owner.__module__.startswith("pyro_vae")


def parameters(value: Any) -> list[str]:
    """Return the arguments that a docstring must explain."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return []
    named = [name for name in inspect.signature(value).parameters if name[0] != "_"]
    return [name for name in named if name not in ("validate_args", "args", "kwargs")]


def faults(value: Any) -> list[str]:
    """Return what a docstring lacks of the layout that all of them have."""
    text = inspect.cleandoc(value.__doc__ or "")
    found = [] if text.split("\n\n")[0].endswith(".") else ["the first paragraph is no sentence"]
    sections = re.findall(r"^([A-Z]\w+):$", text, re.MULTILINE)
    if sections != [name for name in SECTIONS if name in sections]:
        found.append(f"sections {sections}; expected {SECTIONS}, in this order")
    block = re.search(r"^Arguments:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    told = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*):", block[1] if block else "", re.MULTILINE)
    names = [name.strip("* ") for several in told for name in several.split(",")]
    asked = parameters(value)
    if set(names) != set(asked) and (names or not is_anothers(value)):
        found.append(f"arguments {names}; the signature has {asked}")
    return found


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_docstring_is_of_the_one_layout(name: str) -> None:
    assert not faults(DOCUMENTED[name])


def test_a_docstring_of_another_layout_is_found() -> None:
    def planted(x: int, y: int) -> None:
        """Add

        Returns:
            The sum.

        Arguments:
            x: one.
            z: another.
        """

    assert len(faults(planted)) == 3
