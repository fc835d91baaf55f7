"""The results tables, made from ``benchmarks/results/*.json``: no figure typed by hand.

The README shows what ``front_page.py`` names, ``benchmarks/README.md`` every figure, the pages of
the site those of one kind.

``python benchmarks/tables.py`` rewrites them; ``--check`` exits with 1 where they are stale.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import front_page  # noqa: E402
from benchmarks.gallery import report  # noqa: E402

FOLDER = ROOT / "benchmarks" / "results"
OTHER = "amd_epyc"  # the folder in it of steps measured on another processor
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def rows(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return all results of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def table(results: list[dict[str, Any]], folder: str) -> str:
    """Return the Markdown table of results; how each was measured stands in its file."""
    lines = [
        "| figure | measured | target | published | minutes |",
        "|---|---|---|---|---|",
    ]
    for row in results:
        value, error = to_its_error(row["value"], row["stderr"])
        lines.append(
            f"| [{row['name']}]({folder}/{row['name']}.json): {row['unit']} | "
            f"**{value}**{error} | {row['target']} | {_short(row['published'])} | "
            f"{row['seconds'] / 60:.0f} |"
        )
    return "\n".join(lines)


def speed_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of the speed table."""
    return [row for row in results if row["name"].startswith("speed_")]


# A column of the speed table: its head, and where its ratio to the hand-written step stands.
SPEED = {
    "`torch.compile`": ["hand-written, torch.compile"],
    "Pyro SVI": ["Pyro SVI(Trace_ELBO)", "Pyro SVI(RenyiELBO, vectorised)"],
    "Jit SVI": ["Pyro SVI(JitTrace_ELBO)"],
    "NumPyro jit": ["NumPyro, jit"],
    "`scan`": ["NumPyro, lax.scan"],
    "eager": ["pyro_vae, compile=False"],
    '`"trace"`': ['pyro_vae, compile="trace"'],
    "**`True`**": ["pyro_vae, compile=True"],
}
OURS = "pyro_vae, compile=True"
THREADS = "_2_threads"
# The same on a GPU, where the results' names end so.
ON_CUDA = "_cuda"
SPEED_ON_CUDA = {
    '`"reduce-overhead"`': ["hand-written, torch.compile"],
    "CUDA graph": ["hand-written, CUDA graph"],
    **{head: names for head, names in SPEED.items() if head != "`torch.compile`"},
    "bf16": ["pyro_vae, compile=True, bf16"],
}


def speed_table(results: list[dict[str, Any]], folder: str) -> str:
    """Return the Markdown table of the steps: times over hand-written eager PyTorch."""
    by_name = {row["name"]: row for row in results}
    heads = ["program", "by hand, ms", *SPEED, "`True`, 2 threads", "`True` / matrix products"]
    heads += ["epoch / pythae's", "`fit` adds, µs", "first step, s: cold, cached"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in by_name.items():
        if not name.endswith((THREADS, ON_CUDA)):
            lines.append(
                f"| {' | '.join(_speed_cells(row, by_name.get(name + THREADS), folder))} |"
            )
    return "\n".join(lines)


def _speed_cells(row: dict[str, Any], threads: dict[str, Any] | None, folder: str) -> list[str]:
    details = row["details"]
    milliseconds = details.get("step_seconds", {}).get("hand-written")
    cells = [f"[{row['name'].removeprefix('speed_')}]({folder}/{row['name']}.json)"]
    cells.append("–" if milliseconds is None else f"{1e3 * milliseconds:.1f}")
    cells += [_median(details["ratios"], names) for names in SPEED.values()]
    cells[-1] = f"**{cells[-1]}**"
    cells.append(_median(threads["details"]["ratios"] if threads else {}, [OURS]))
    cells.append(_median(details.get("ours_over", {}), ["matrix products alone"]))
    epoch = details.get("epoch") or {}
    cells.append(_median(epoch, ["pythae"]))
    bare = epoch.get("compiled loss and fused Adam, same batch fetch")
    cells.append(f"{bare['added_microseconds_per_step']:.0f}" if bare else "–")
    first = details.get("first_steps", {}).get(OURS, {})
    seconds = [first.get(kind, {}).get("first_step_seconds") for kind in ("cold", "cached")]
    cells.append("–" if None in seconds else ", ".join(f"{s:.1f}" for s in seconds))
    return cells


def cuda_table(results: list[dict[str, Any]], folder: str) -> str:
    """Return the Markdown table of the steps on a GPU; a sentence where none has run them."""
    rows = [row for row in results if row["name"].endswith(ON_CUDA)]
    if not rows:
        return "None of these steps has run on a GPU."
    heads = ["program", "card", "torch", "by hand, ms", *SPEED_ON_CUDA, "`True` / CUDA graph"]
    heads += ["waits of a step", "launches"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        details = row["details"]
        name = row["name"].removeprefix("speed_").removesuffix(ON_CUDA)
        cells = [f"[{name}]({folder}/{row['name']}.json)", row["device"].removeprefix("cuda, ")]
        cells += [row["versions"]["torch"], f"{1e3 * details['step_seconds']['hand-written']:.2f}"]
        cells += [_median(details["ratios"], names) for names in SPEED_ON_CUDA.values()]
        cells.append(_median(details["ours_over"], ["hand-written, CUDA graph"]))
        ours = details.get("per_step", {}).get(OURS, {})
        cells += [f"{ours[what]:g}" if ours else "–" for what in ("waits", "launches")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# A compiled step over another, by the head of the column.
ZOO = {
    "Pyro SVI": "Pyro SVI(Trace_ELBO)",
    "eager": "pyro_vae, compile=False",
    '`"trace"`': 'pyro_vae, compile="trace"',
    "matrix products": "matrix products alone",
}


def zoo_table(rows: dict[str, Any]) -> str:
    """Return the Markdown table of the models' compiled steps, over stock Pyro and the like."""
    heads = ["model", "compiled step, ms", *(f"/ {name}" for name in ZOO)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [name, f"{1e3 * row['step_seconds'][OURS]:.2f}"]
        cells += [_median(row["ours_over"], [other]) for other in ZOO.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(rows: dict[str, Any], names: list[str]) -> str:
    found = [rows[name]["wall"]["median"] for name in names if name in rows]
    return f"{found[0]:.2f}" if found else "–"


def to_its_error(value: float, error: float | None) -> tuple[str, str]:
    """Return a figure and its error, both to the error's second digit."""
    if not error:
        return _figure(value), ""
    digits = 1 - math.floor(math.log10(error))
    shown = max(0, digits)
    return (
        f"{round(value, digits) + 0.0:,.{shown}f}",
        f" ± {round(error, digits):,.{shown}f}",
    )


def _figure(value: float) -> str:
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _unsigned(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no number is -0.00


def _short(published: str) -> str:
    """Return figure and authors alone, as ``88.71 (Burda et al. 2016)``."""
    found = re.match(r"([\d.]+) \((\w+) et al\. \((\d+)\)", published)
    return f"{found[1]} ({found[2]} et al. {found[3]})" if found else "–"


# Nats. Under IWAE single draws may fall where the prior all but forbids them, and rule the mean.
BURST = 1e4


def collapse_table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the arms of ``collapse.py``, in their order."""
    lines = [
        "| program | cure | NLL | KL | active units | mutual information | minutes |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in results:
        d = row["details"]
        told = "–" if d["information"] is None else _unsigned(d["information"])
        lines.append(
            f"| {d['program']} | {d['cure']} | {row['value']:.2f} ± {row['stderr']:.2f} | "
            f"{_unsigned(d['kl']) if d['kl'] < BURST else format(d['kl'], '.1e')} | "
            f"{d['active_units']}/{d['units']} | {told} | {row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def headlines(results: list[dict[str, Any]], folder: str) -> str:
    """Return the Markdown table of the front page: what was measured beside what is published."""
    named = {row["name"]: row for row in results}
    lines = ["| | here | published |", "|---|---:|---|"]
    for name, words in front_page.HEADLINES.items():
        value, error = to_its_error(named[name]["value"], named[name]["stderr"])
        printed = _short(named[name]["published"])
        lines.append(f"| [{words}]({folder}/{name}.json) | {value}{error} | {printed} |")
    return "\n".join(lines)


def rendered(page: str, folder: str) -> str:
    """Return a page with its tables made anew.

    Arguments:
        page: The text, with one pair of markers.
        folder: Of the results, as seen from the page.
    """
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    results = rows()
    speed = speed_of(results)
    arms = [r for r in results if r["name"].startswith("collapse_") and "cure" in r["details"]]
    arms.sort(key=lambda row: (row["details"]["program"], row["value"]))
    others = [row for row in results if row not in speed and row not in arms]
    shown = f"{table(others, folder)}\n\n{collapse_table(arms)}"
    zoo = [row for row in others if row["name"] == "zoo_steps"]
    shown += "".join(f"\n\n{zoo_table(row['details']['rows'])}" for row in zoo)
    return f"{before}{BEGIN}\n{shown}\n{END}{after}"


# Of the pages of the site: what a figure is about, by its name; all else is about quality.
KINDS = {
    "reliability": r"faults_|graph_trust|planted_bugs|gallery|precision_",
    "cost": r".*_step|iwae_step|step_|fit_overhead|auto_mode|slopes|likelihood_memory|refine_|"
    r"sparse_documents|zoo_steps|collapse_diagnosis_cost",
    "quality": "",
}
FRONT: dict[str, Callable[[list[dict[str, Any]], str], str]] = {
    "reasons": lambda results, folder: front_page.reasons({row["name"]: row for row in results}),
    "headlines": headlines,
    "models": lambda results, folder: front_page.papers(front_page.MODELS, "models"),
    "objectives": lambda results, folder: front_page.papers(front_page.OBJECTIVES, "inference"),
}
ONE_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def table_of(name: str, folder: str) -> str:
    """Return one table of a page: by its name, else the figures of a kind."""
    results = rows()
    if name in FRONT:
        return FRONT[name](results, folder)
    speed = speed_of(results)
    arms = [r for r in results if r["name"].startswith("collapse_") and "cure" in r["details"]]
    arms.sort(key=lambda row: (row["details"]["program"], row["value"]))
    if name == "speed":
        return speed_table(speed, folder)
    if name == "speed_on_another_processor":
        return speed_table(speed_of(rows(FOLDER / OTHER)), f"{folder}/{OTHER}")
    if name == "speed_on_cuda":
        return cuda_table(speed, folder)
    if name == "collapse":
        return collapse_table(arms)
    if name == "zoo":
        return zoo_table(next(r["details"]["rows"] for r in results if r["name"] == "zoo_steps"))
    others = [row for row in results if row not in speed and row not in arms]
    return table([row for row in others if kind_of(row["name"]) == name], folder)


def kind_of(name: str) -> str:
    """Return what a figure is about."""
    return next(kind for kind, pattern in KINDS.items() if re.match(pattern, name))


def with_tables(page: str, folder: str) -> str:
    """Return a page of the site with each table made anew, between the markers that name it."""
    gap = "" if folder.startswith("benchmarks") else "\n"  # the README has few lines
    return ONE_TABLE.sub(lambda f: f"{f[1]}{gap}{table_of(f[2], folder)}\n{gap}{f[3]}", page)


def gallery(page: str, folder: str) -> str:
    """Return the page of published programs, made anew as a whole."""
    return report.page(json.loads((ROOT / folder / "gallery.json").read_text()))


PAGES = {
    "README.md": (with_tables, "benchmarks/results"),
    "benchmarks/README.md": (rendered, "results"),
    "docs/results.md": (with_tables, "../benchmarks/results"),
    "docs/speed.md": (with_tables, "../benchmarks/results"),
    "docs/gallery.md": (gallery, "benchmarks/results"),
}


def stale() -> dict[str, str]:
    """Return the pages whose tables are not those of the results, made anew."""
    old = {name: (ROOT / name).read_text() for name in PAGES}
    new = {name: made(old[name], folder) for name, (made, folder) in PAGES.items()}
    return {name: text for name, text in new.items() if text != old[name]}


def main() -> None:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    pages = stale()
    if parser.parse_args().check and pages:
        sys.exit(f"{', '.join(pages)}: stale tables; run python benchmarks/tables.py")
    for name, text in pages.items():
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()
