"""The site's sources: every public name in the reference, docstrings of one layout.

`make docs` builds the site itself, which takes longer than a test may.
"""

import inspect
import pydoc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pyro
import pytest
import torch

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import pages  # noqa: E402
from public_names import everything, is_documented  # noqa: E402

import pyro_vae as pv  # noqa: E402
from pyro_vae.arguments import typed  # noqa: E402
from pyro_vae.signatures import Readable  # noqa: E402

PUBLIC = everything()
DOCUMENTED = {path: value for path, value in PUBLIC.items() if is_documented(value)}
WITH_CODE = {
    folder: [p for p in pages.PAGES if p.parent.name == folder and pages.blocks(p)]
    for folder in ("guide", "models")
}
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


def test_what_checks_its_arguments_says_what_it_raises() -> None:
    """Every function, and every class whose constructor is one that `typed` has wrapped."""
    doors = {n: v.__init__ if inspect.isclass(v) else v for n, v in DOCUMENTED.items()}
    asked = [name for name, door in doors.items() if hasattr(door, "__wrapped__")]
    assert len(asked) > 180
    assert [name for name in asked if "Raises:" not in DOCUMENTED[name].__doc__] == []


def test_the_help_of_fit_is_two_pages() -> None:
    lines = pydoc.plain(pydoc.render_doc(pv.fit)).splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 120


def test_the_help_of_a_verb_breaks_its_signature_and_names_types_without_modules() -> None:
    @typed
    def verb(
        program: Any,
        /,
        data: Callable[[float], float] | None = None,
        *rows: int,
        device: str | torch.device = "auto",
        kind: Any = SimpleNamespace,
        words: Literal["some", "more"] | None = "some",
        **others: Any,
    ) -> SimpleNamespace:
        """Do something."""
        return SimpleNamespace()

    lines = pydoc.plain(pydoc.render_doc(verb)).splitlines()[2:]

    assert max(map(len, lines)) <= 104
    shown = " ".join(map(str.strip, lines)).partition("verb(")[2]
    assert shown.startswith("program: Any, /, data: Callable[[float], float] | None = None, *rows:")
    assert "device: str | torch.device = 'auto', kind: Any = SimpleNamespace, words:" in shown
    assert "NoneType" not in shown and "**others: Any) -> SimpleNamespace Do something" in shown
    assert inspect.signature(verb) == inspect.signature(verb.__wrapped__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("function", [lambda a, /: 0, lambda *, b=1: 0, lambda *c, d: 0])
def test_a_short_signature_is_spelled_as_python_does(function: Callable[..., int]) -> None:
    assert str(Readable.of(function)) == str(inspect.signature(function))


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


# What the code of a guide asks for, made small.
SMALL: dict[str, dict[str, Any]] = {
    "fit": {"max_steps": 2, "compile": False, "progress": False},
    "log_likelihood": {"num_particles": 3},
    "diagnose": {"probes": 4, "rows": 20},
    "HMC": {"num_draws": 4, "warmup": 4, "chains": 2, "num_leapfrog": 2},
}


def smaller(given: Any, few: dict[str, Any]) -> Any:
    return lambda *args, **kwargs: given(*args, **{**kwargs, **few})


def bound_alone(given: Any) -> Any:
    """Return a stand-in that takes what a function takes, and does nothing."""

    def take(*args: Any, **kwargs: Any) -> Any:
        inspect.signature(given).bind(*args, **kwargs)
        return SimpleNamespace(history={"elbo": [0.0]})

    return take


def run(page: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in pages.blocks(page):
        exec(compile(block, page.name, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:refine:UserWarning")  # too short to mix
@pytest.mark.parametrize("page", WITH_CODE["guide"], ids=lambda p: p.stem)
def test_the_code_of_a_guide_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, few in SMALL.items():
        monkeypatch.setattr(pv, name, smaller(getattr(pv, name), few))
    monkeypatch.chdir(tmp_path)
    run(page)
    pyro.clear_param_store()


@pytest.mark.parametrize("page", WITH_CODE["models"], ids=lambda p: p.stem)
def test_the_code_of_a_model_runs_without_training(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in full by ``docs/pages.py``, which makes what the page shows."""
    for name in ("log_likelihood", "diagnose"):
        monkeypatch.setattr(pv, name, bound_alone(getattr(pv, name)))
    learns_length = page.stem.startswith("sentence")  # of what it generates
    fit = smaller(pv.fit, SMALL["fit"]) if learns_length else bound_alone(pv.fit)
    monkeypatch.setattr(pv, "fit", fit)
    monkeypatch.setattr(pv, "impute", smaller(pv.impute, {"num_particles": 3}))
    names = run(page)
    assert ("figure" in names) == (f"figures/{page.stem}.png" in page.read_text())


def test_the_page_of_a_model_shows_a_figure() -> None:
    assert not [p.name for p in WITH_CODE["models"] if f"figures/{p.stem}.png" not in p.read_text()]


def test_pictures_are_small_and_shown() -> None:
    pictures = [*DOCS.glob("figures/*.png")]
    text = "".join(page.read_text() for page in pages.PAGES)
    assert pictures
    assert all(path.stat().st_size <= 100_000 for path in pictures)
    assert all(f"figures/{path.name}" in text for path in pictures)


def test_every_model_has_a_page() -> None:
    told = "".join(path.read_text() for path in (DOCS / "models").glob("*.md"))
    missing = [name for name in pv.models.__all__ if f"API: `pv.models.{name}`" not in told]
    assert missing == ["Resampled"]  # beside M2


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.stem)
def test_links_and_names_lead_somewhere(page: Path) -> None:
    """Within the repository; `make links` asks the network for the others."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    inside = [link for link in links if not re.match(r"https?:", link)]
    assert [link for link in inside if not (page.parent / link).exists()] == []
    names = re.findall(r"`pv((?:\.[A-Za-z]\w*)+)", text)
    assert [name for name in names if not leads_somewhere(name)] == []


def leads_somewhere(dotted: str) -> bool:
    value: Any = pv
    for name in dotted.strip(".").split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


@pytest.mark.parametrize("text", sorted((ROOT / "tutorials").glob("*.py")), ids=lambda p: p.stem)
def test_a_notebook_is_in_step_with_its_tutorial(text: Path) -> None:
    """Of the same cells, run with this version; ``python docs/notebooks.py`` makes it anew."""
    pytest.importorskip("jupytext", reason="needs the extra 'tutorials'")
    import nbformat
    import notebooks

    assert notebooks.in_step(text)
    path = notebooks.FOLDER / text.with_suffix(".ipynb").name
    assert path.stat().st_size <= notebooks.LARGEST
    book = nbformat.read(path, as_version=4)
    assert book.metadata["pyro_vae"] == pv.__version__
    shown = [out for cell in book.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in shown)
    assert not any(out.output_type == "error" or out.get("name") == "stderr" for out in shown)


def test_a_notebook_of_another_text_is_out_of_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("jupytext", reason="needs the extra 'tutorials'")
    import notebooks

    text = notebooks.TEXTS[0]
    other = tmp_path / text.name
    other.write_text(text.read_text() + "\n# %%\nprint('more')\n")
    assert notebooks.in_step(text) and not notebooks.in_step(other)
