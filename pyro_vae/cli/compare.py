"""``pyro-vae compare``."""

import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.arguments import positive
from pyro_vae.callers import of_user
from pyro_vae.cli.cell_scores import cell_scores
from pyro_vae.cli.datasets import is_file, kind_of
from pyro_vae.cli.options import Split
from pyro_vae.cli.own_program import imports_apart
from pyro_vae.cli.report import heading, say
from pyro_vae.cli.runs import (
    TAKE_ALL,
    chosen_split,
    fresh_folder,
    open_run,
    require_files,
    rows_to_judge,
    settings_of,
    words_of,
)
from pyro_vae.cli.training_file import data_of
from pyro_vae.errors import ConfigError
from pyro_vae.evaluation.observed_distributions import observed_distributions
from pyro_vae.storage.atomic import atomic_write_text
from pyro_vae.storage.paths import require_room

_DIFFER = "in different ways, so that the differences of their likelihoods say nothing"
Scored = tuple[str, str]  # the name of a distribution, and of what its log_prob is the logarithm
_SHOWN = 3  # words of those that a run lacks
_WAY_OUT = f"put the file of the training back, or {TAKE_ALL}"


def compare(
    runs: list[str],
    data: str | None = None,
    split: Split | None = None,
    rows: int | None = None,
    num_particles: int = 1000,
    num_global_samples: int = 21,
    seed: int = 0,
    device: str = "auto",
    out: str | None = None,
    progress: bool = True,
) -> None:
    """Compare runs on the same data: likelihoods, and paired differences to the best of them.

    Written to compare.json and compare.png.

    Arguments:
        runs: run folders, two or more, trained on the same data with the same binarization, or on
            any where --data names those that all are judged on.
        data: data set or file; null is the one that the runs were trained on.
        split: which part of the data; all takes a file whole. Null is test, but all for a run of
            `pv.fit` and for a file that is named.
        rows: only so many data from the start; null is all.
        num_particles: importance samples per datum behind the log-likelihood.
        num_global_samples: draws of the global latents, where there are any.
        seed: of the estimates, the same for each run.
        device: auto, cpu, cuda or cuda:N.
        out: folder to write to; null is a fresh one, runs/compare.
        progress: show a progress bar.
    """
    if len(runs) < 2 or len({Path(run).resolve() for run in runs}) < len(runs):
        raise ConfigError(f"runs: got {', '.join(runs)}, expected two or more different folders")
    count = None if rows is None else positive("rows", rows)
    require_room("out", Path(out or "runs"))
    known = {run: settings_of(run, data=data) for run in runs}
    for run, settings in known.items():
        require_files(run, settings)
    _require_same_words(known)
    on = {run: (s["data"], s["binarization"]) for run, s in known.items()}
    if len({(data_of(settings), settings["binarization"]) for settings in known.values()}) > 1:
        told = "; ".join(f"{data}, binarization {kind}" for data, kind in sorted({*on.values()}))
        raise ConfigError(
            f"runs: got runs of {told}; their likelihoods cannot be compared; "
            "--data FILE judges all on the rows of one file"
        )
    scored, cells = {}, {}
    observed: dict[str, dict[str, Scored]] = {}
    named = data is not None and is_file(next(iter(known.values())), data)
    taken = {chosen_split(split, settings) for settings in known.values()}
    split = "all" if "all" in taken or (named and split is None) else taken.pop()
    for run in runs:
        with imports_apart():
            program, known[run] = open_run(run, device, data=data)
            x = rows_to_judge(program, known[run], split, seed, count, _WAY_OUT)
            of_sites = observed_distributions(program, x, "compare")
            observed[run] = {site: scored_by(fn) for site, fn in of_sites.items()}
            torch.manual_seed(seed)
            scored[run] = pv.log_likelihood(
                program,
                x,
                num_particles=num_particles,
                num_global_samples=num_global_samples,
                progress=progress,
            )
            cells[run] = cell_scores(program)
    if any(cells.values()):  # of tables, which say more of a cell than its site does
        _tell_of_other_cells(cells)
    else:
        _tell_of_other_densities(observed)
    found = paired({run: each.log_prob.double().cpu() for run, each in scored.items()})
    for run, row in found.items():
        row["model"] = known[run]["model"]
        row["observed"] = {site: name for site, (name, _) in observed[run].items()}
        if cells[run]:
            row["cells"] = cells[run]
        row["share_k_above_0.7"] = None if math.isnan(u := scored[run].untrusted) else u
    judged_on, binarization = next(iter(on.values()))
    head = {"data": judged_on, "binarization": binarization, "split": split, "seed": seed}
    head |= {"num_particles": num_particles, "rows": len(next(iter(scored.values())).log_prob)}
    folder = Path(out) if out else fresh_folder(Path("runs") / "compare")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head | {"runs": found}, indent=2, allow_nan=False) + "\n"
    atomic_write_text(folder / "compare.json", text)
    pv.plots.save(_figure(found), folder / "compare.png")
    say(_table(head, found))
    say(f"written to {folder / 'compare.json'} and compare.png")


def _require_same_words(known: dict[str, dict[str, Any]]) -> None:
    """Raise `ConfigError` for runs of sentences that know other words: these score other data.

    Arguments:
        known: settings by run.
    """
    of_text = [run for run, settings in known.items() if kind_of(settings["model"]) == "sentences"]
    words = {run: each for run in of_text if (each := words_of(Path(run)))}
    if len({frozenset(each) for each in words.values()}) > 1:
        every = set().union(*words.values())
        lacks = {run: sorted(every.difference(each)) for run, each in words.items()}
        told = "; ".join(f"{run} lacks {_some(each)}" for run, each in lacks.items() if each)
        raise ConfigError(
            f"runs: got runs that know other words ({told}), and score those that they lack as one "
            "unknown word; expected the same words: train all on --vocab FILE"
        )


def _some(words: list[str]) -> str:
    shown, rest = ", ".join(words[:_SHOWN]), len(words) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def paired(log_probs: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Return means, and paired differences to the best run, each with its error; best first.

    Arguments:
        log_probs: log p(x) by run, ``(N,)``, of the same data.
    """
    order = sorted(log_probs, key=lambda run: -log_probs[run].mean())
    best = log_probs[order[0]]

    def error(values: torch.Tensor) -> float | None:
        return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None

    return {
        run: {
            "log_likelihood": float(log_probs[run].mean()),
            "log_likelihood_stderr": error(log_probs[run]),
            "difference": float((log_probs[run] - best).mean()),
            "difference_stderr": error(log_probs[run] - best),
        }
        for run in order
    }


def _tell_of_other_densities(observed: dict[str, dict[str, Scored]]) -> None:
    """Warn of likelihoods of which one is a probability of something else than another one.

    Arguments:
        observed: how the observed sites are scored, by run.
    """
    scores = [{s: score for s, (_, score) in each.items()} for each in observed.values()]
    told = (
        f"{run} has " + ", ".join(f"{s} by {name} ({score})" for s, (name, score) in each.items())
        for run, each in observed.items()
    )
    if _differ(scores):
        words = "observe them alike in all (words by pv.distributions.BagOfWords, as topic models "
        _tell_of_other_scores(f"their data {_DIFFER}", told, words + "of the library do)")
    elif _may_differ(scores):
        doubt = "some data in one way and some in another, at sites of different names, so that "
        doubt += "it is unknown whether these are the same data in each run"
        _tell_of_other_scores(doubt, told, "give the sites the same names in all")


def _differ(scores: list[dict[str, str]]) -> bool:
    """Return whether runs score a site in different ways, or have ways that others have not.

    How many sites have the data, as one for each column, changes nothing.
    """
    shared = set.intersection(*map(set, scores))
    ways = {frozenset(each.values()) for each in scores}
    return len(ways) > 1 or len({tuple(each[s] for s in sorted(shared)) for each in scores}) > 1


def _may_differ(scores: list[dict[str, str]]) -> bool:
    """Return whether sites that not all runs have may stand for data of different ways."""
    shared, ways = set.intersection(*map(set, scores)), set().union(*(s.values() for s in scores))
    others = [{way for site, way in each.items() if site not in shared} for each in scores]
    return len(ways) > 1 and any(len(each) > 1 or each != others[0] for each in others)


def _tell_of_other_cells(cells: dict[str, dict[str, str]]) -> None:
    """Warn of tables of which a column is scored in another way than in another run.

    Arguments:
        cells: `cell_scores` by run.
    """
    names = sorted(set().union(*cells.values()))
    found = {
        name: {run: each.get(name, "unknown") for run, each in cells.items()} for name in names
    }
    unlike = {name: each for name, each in found.items() if len(set(each.values())) > 1}
    if unlike:
        told = (
            f"{name}: " + ", ".join(f"{run} by {score}" for run, score in each.items())
            for name, each in unlike.items()
        )
        same = "train them on one file with the same kinds (pyro-vae train --kinds)"
        _tell_of_other_scores(f"cells of the table {_DIFFER}", told, same)


def _tell_of_other_scores(what: str, told: Iterable[str], way_out: str) -> None:
    warnings.warn(
        f"compare: the runs score {what}: {'; '.join(told)}; {way_out}",
        UserWarning,
        stacklevel=of_user(),
    )


def scored_by(fn: Any) -> Scored:
    """Return the name of a distribution, and of what it gives the probability, or the density.

    One of a project may need its modules to say so.
    """
    name = type(fn).__name__
    if getattr(fn, "scores_words_as_they_stand", False):
        return name, "words in their order"
    if name in ("Multinomial", "DirichletMultinomial"):
        return name, "counts given their sum"
    try:
        return name, "probabilities" if fn.support.is_discrete else "densities"
    except (AttributeError, NotImplementedError):  # a distribution that names no support
        return name, name


def _table(head: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    def value(row: dict[str, Any], name: str) -> str:
        error = row[f"{name}_stderr"]
        return f"{row[name]:.2f}" + ("" if error is None else f" ± {error:.2f}")

    cells = [("log-likelihood", "behind the best", "run")]
    for run, row in found.items():
        behind = "best" if run == next(iter(found)) else value(row, "difference")
        cells.append((value(row, "log_likelihood"), behind, f"{run} ({row['model']})"))
    one, two = (3 + max(len(row[column]) for row in cells) for column in (0, 1))
    title = f"{heading(head)}, K = {head['num_particles']}"
    lines = [title, *(f"  {a:<{one}}{b:<{two}}{c}" for a, b, c in cells)]
    return "\n".join([*lines, "nats per datum; differences are paired, datum by datum"])


def _figure(found: dict[str, dict[str, Any]]) -> Any:
    """Return the differences with two standard errors, best run on top."""
    from pyro_vae.plots.panels import ranges
    from pyro_vae.plots.style import FAINT, new_figure

    figure = new_figure(10.0, 1.3 + 0.34 * len(found))
    axes = figure.add_subplot()
    axes.axvline(0.0, color=FAINT, lw=0.8, ls=":")
    rows = {
        run: (row["difference"], 2 * (row["difference_stderr"] or 0.0))
        for run, row in found.items()
    }
    label = "nats per datum behind the best (bars: two standard errors)"
    ranges(axes, rows, label, "Log-likelihoods")
    return figure
