"""``pyro-vae evaluate`` and ``pyro-vae diagnose``."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.arguments import counted, positive
from pyro_vae.cli.answer_files import WEIGHTS, write_figures, write_picture
from pyro_vae.cli.cell_scores import UNITS, cell_scores
from pyro_vae.cli.datasets import kind_of
from pyro_vae.cli.options import Binarization, Split
from pyro_vae.cli.report import say, table
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import chosen_split, open_run, rows_to_judge
from pyro_vae.evaluation.global_kl import GlobalKL, kl_of_globals
from pyro_vae.inference.sampling.diagnostics import median
from pyro_vae.program.batches.batch import num_rows
from pyro_vae.program.bounds import elbo_given_globals
from pyro_vae.program.passes import Verb, holding

_DRAWS = 10  # of global latents, where a datum has none


def evaluate(
    run: str,
    program: str | None = None,
    data: str | None = None,
    binarization: Binarization | None = None,
    split: Split | None = None,
    rows: int | None = None,
    num_particles: int = 1000,
    num_global_samples: int = 21,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Judge a run: ELBO, log-likelihood, KL and active units, also written to evaluation.json.

    The ELBO is the reconstruction less the KL of each latent, of a global one 1/N of it, N being
    the rows that are judged; each is estimated by draws of its own, at the same of the globals.

    Sequences are judged per step too, and sentences per word: the sum of their bounds over that of
    their steps.

    Arguments:
        run: run folder.
        program: file.py:NAME of your own program, where the run folder does not say it (`pv.fit`
            wrote it) or the file has moved; it is remembered, unless that of the training is still
            as it was.
        data: data set; null is the one it was trained on.
        binarization: null is that of the training; a file is taken as it is.
        split: which part of the data; all takes a file whole. Null is test, but all for another
            file than that of the training and for a run of `pv.fit`.
        rows: only so many data from the start; null is all.
        num_particles: importance samples per datum behind the log-likelihood.
        num_global_samples: draws of the global latents, where there are any.
        seed: of the estimates.
        device: auto, cpu, cuda or cuda:N.
        progress: show a progress bar.
    """
    loaded, settings = open_run(run, device, program, data=data, binarization=binarization)
    split = chosen_split(split, settings)
    count = None if rows is None else positive("rows", rows)
    x = rows_to_judge(loaded, settings, split, seed, count)
    figures = judge(loaded, x, num_particles, seed, progress, num_global_samples)
    if kind_of(settings["model"]) in ("sequences", "sentences"):
        steps = pv.per_step(loaded, x)
        error = steps.bound_stderr if figures["rows"] > 1 else None
        figures |= {"per_step": steps.bound, "per_step_stderr": error}
    told = {"data": settings["data"], "binarization": settings["binarization"], "split": split}
    cells = cell_scores(loaded)
    figures = told | figures | ({"cells": cells} if cells else {})
    path = Path(run) / "evaluation.json"
    write_figures(path, figures, settings[WEIGHTS])
    write_report(Path(run))
    say(table(figures))
    if cells:
        say(UNITS)
    say(f"written to {path}")


def diagnose(
    run: str,
    program: str | None = None,
    data: str | None = None,
    split: Split | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Say whether the code has collapsed, with the evidence and what may help.

    Written besides to diagnosis.json and diagnosis.png.

    Arguments:
        run: run folder.
        program: file.py:NAME of your own program, where the run folder does not say it (`pv.fit`
            wrote it) or the file has moved; it is remembered, unless that of the training is still
            as it was.
        data: data set; null is the one it was trained on.
        split: which part of the data; all takes a file whole. Null is test, but all for another
            file than that of the training and for a run of `pv.fit`.
        seed: of the estimates.
        device: auto, cpu, cuda or cuda:N.
        progress: show a progress bar.
    """
    loaded, settings = open_run(run, device, program, data=data)
    split = chosen_split(split, settings)
    x = rows_to_judge(loaded, settings, split, seed)
    torch.manual_seed(seed)
    found = pv.diagnose(loaded, x, progress=progress)
    say(found.report())
    say(f"\nmeans over {counted(found.rows, 'datum', 'data')}, one draw of the guide each")
    for site, each in found.unit_kl.items():
        units = each.flatten()
        say(f"\nKL of each unit of {site}, nats")
        for unit in units.argsort(descending=True).tolist():
            bar = "▇" * round(20 * float(units[unit] / units.max().clamp(min=1e-9)))
            say(f"  unit {unit:3d}  {units[unit]:6.3f}  {bar}")
    path = Path(run) / "diagnosis.json"
    write_figures(path, found.as_dict(), settings[WEIGHTS])
    write_picture(path.with_suffix(".png"), pv.plots.diagnosis(found), settings[WEIGHTS])
    write_report(Path(run))
    say(f"\nwritten to {path} and {path.with_suffix('.png').name}")


def judge(
    program: Any,
    x: Any,
    num_particles: int,
    seed: int,
    progress: bool,
    num_global_samples: int = 21,
) -> dict[str, Any]:
    """Return the figures of one evaluation, ready for JSON."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    scored = pv.log_likelihood(
        program,
        x,
        num_particles=num_particles,
        num_global_samples=num_global_samples,
        progress=progress,
    )
    draws = _draws_of_globals(program, x, seed)
    with holding(pv.Program.of(program), draws):
        elbo = pv.elbo(program, x)
    error = float(elbo.std()) / math.sqrt(len(elbo)) if len(elbo) > 1 else None
    figures: dict[str, Any] = {
        "rows": len(elbo),
        "elbo": float(elbo.mean()),
        "elbo_stderr": error,
        "log_likelihood": scored.mean,
        "log_likelihood_stderr": finite(scored.stderr) if len(elbo) > 1 else None,
        "num_particles": num_particles,
        "num_samples": scored.samples,
        "median_ess": finite(float(median(scored.ess))),
        "share_k_above_0.7": finite(scored.untrusted),
        "seed": seed,
    }
    figures |= _parts_of_elbo(program, x, seed, draws, progress)
    return figures | {"seconds": time.perf_counter() - start}


def finite(figure: float) -> float | None:
    """Return a figure as JSON has it: None where it is not known."""
    return figure if math.isfinite(figure) else None


_Draws = list[dict[str, Tensor]]  # of the globals, by site


def _draws_of_globals(program: Any, x: Any, seed: int) -> _Draws:
    """Return the draw of the globals at which a diagnosis with this seed stands, else some."""
    wrapped = pv.Program.of(program)
    if not wrapped.sites.global_:
        return []
    torch.manual_seed(seed)
    count = 1 if wrapped.sites.local else _DRAWS
    with wrapped.passes(x, Verb("evaluate"), num_global_samples=count) as passes:
        next(iter(passes))
        return passes.draws


def _parts_of_elbo(
    program: Any, x: Any, seed: int, draws: _Draws, progress: bool
) -> dict[str, Any]:
    """Return what the ELBO is the sum of, as far as the program has such."""
    sites = pv.Program.of(program).sites
    figures: dict[str, Any] = {}
    torch.manual_seed(seed)  # the draws of `pyro-vae diagnose`, so that both say the same
    if sites.local:  # a language model has none
        found = pv.diagnose(program, x, progress=progress)
        figures = {
            "kl": found.kl,
            "active_units": found.active_units,
            "units": {s: each.numel() for s, each in found.variance.items() if found.rows != 1},
            "reconstruction": found.reconstruction,
        }
        shared = GlobalKL(found.global_kl, found.global_kl_stderr)
    elif sites.global_:
        with holding(pv.Program.of(program), draws):
            figures = {"reconstruction": float(elbo_given_globals(program, x).mean())}
        shared = kl_of_globals(program, x)
    if sites.global_:  # of the rows that are judged: the ELBO has a share of it for each
        share = sum(shared.kl.values()) / num_rows(pv.Program.of(program).adapt(x))
        figures |= {"global_kl": shared.kl, "global_kl_stderr": shared.stderr}
        figures["global_kl_per_datum"] = share
    return figures
