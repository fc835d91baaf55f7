"""The README's results tables, made from ``benchmarks/results/*.json``: no figure typed by hand.

``python benchmarks/tables.py`` rewrites them; ``--check`` exits with 1 where they are stale.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def rows() -> list[dict[str, Any]]:
    """Return all results, by name."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table of results; how each was measured stands in its file."""
    lines = [
        "| figure | measured | target | published | minutes |",
        "|---|---|---|---|---|",
    ]
    for row in results:
        error = f" ± {row['stderr']:.2g}" if row["stderr"] is not None else ""
        lines.append(
            f"| [{row['name']}](benchmarks/results/{row['name']}.json): {row['unit']} | "
            f"**{_figure(row['value'])}**{error} | {row['target']} | {_short(row['published'])} | "
            f"{row['seconds'] / 60:.0f} |"
        )
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _short(published: str) -> str:
    """Return figure and authors alone, as ``88.71 (Burda et al. 2016)``."""
    found = re.match(r"([\d.]+) \((\w+) et al\. \((\d+)\)", published)
    return f"{found[1]} ({found[2]} et al. {found[3]})" if found else "–"


def rendered(readme: str) -> str:
    """Return the README with its table made anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(rows())}\n{END}{after}"


def main() -> None:
    """Rewrite or check the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    path = ROOT / "README.md"
    old = path.read_text()
    new = rendered(old)
    if args.check and new != old:
        sys.exit("README.md: the results table is stale; run python benchmarks/tables.py")
    path.write_text(new)


if __name__ == "__main__":
    main()
