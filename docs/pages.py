"""The code of the pages, run: its output and its figure, as the pages show them.

``python docs/pages.py [NAME ...]`` runs the code of ``docs/**/NAME.md`` from end to end, writes
what it prints into the block behind it and its ``figure`` to ``docs/figures/NAME.png``; without
names, that of all pages.
"""

import argparse
import contextlib
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).resolve().parent
PAGES = [p for folder in ("guide", "models") for p in sorted((DOCS / folder).glob("*.md"))]
# A block of code, and what it prints where the page shows that.
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
DPI = 100


def blocks(page: Path) -> list[str]:
    """Return the code of a page, block by block; all run in one namespace."""
    return [found[1] for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def refreshed(page: Path) -> tuple[str, Any]:
    """Return the text of a page with what its code prints, and its figure or None."""
    names: dict[str, Any] = {}

    def run(found: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(found[1], page.name, "exec"), names)
        shown = "" if found[2] is None else f"\n```text\n{printed.getvalue()}```\n"
        return f"```python\n{found[1]}```\n{shown}"

    return BLOCK.sub(run, page.read_text(encoding="utf-8")), names.get("figure")


def draw(figure: Any, path: Path) -> None:
    """Write a small picture of a figure."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=DPI)
    Image.open(whole).convert("RGB").quantize(64).save(path, "PNG", optimize=True)


def main() -> None:
    """Run the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="as vae, or own_program")
    names = parser.parse_args().names
    for page in PAGES:
        if page.stem in names or (not names and blocks(page)):
            text, figure = refreshed(page)
            page.write_text(text, encoding="utf-8")
            if figure is not None:
                draw(figure, DOCS / "figures" / f"{page.stem}.png")
            print(page.relative_to(DOCS), flush=True)


if __name__ == "__main__":
    main()
