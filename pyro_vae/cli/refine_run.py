"""``pyro-vae refine``."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.arguments import positive
from pyro_vae.cli.answer_files import WEIGHTS, write_figures
from pyro_vae.cli.options import Split
from pyro_vae.cli.report import say
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import chosen_split, open_run, rows_to_judge
from pyro_vae.storage.atomic import atomic_write_bytes

_FEW = 16  # data, where no number is said


def refine(
    run: str,
    program: str | None = None,
    data: str | None = None,
    split: Split | None = None,
    rows: int | None = None,
    num_draws: int = 500,
    warmup: int = 300,
    chains: int = 4,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Draw from the posterior of each datum by HMC chains that start at the guide.

    Draws are written to refined.npz (by site; chains, draws, data), figures to refined.json.

    Arguments:
        run: run folder.
        program: file.py:NAME of your own program, where the run folder does not say it (`pv.fit`
            wrote it) or the file has moved; it is remembered, unless that of the training is still
            as it was.
        data: data set or file; null is the one it was trained on.
        split: which part of the data; all takes a file whole. Null is test, but all for another
            file than that of the training and for a run of `pv.fit`.
        rows: only so many data from the start; null is 16, but all of a guide with one factor per
            datum, which answers for no others.
        num_draws: draws kept per chain.
        warmup: transitions before them.
        chains: chains per datum.
        seed: of the chains.
        device: auto, cpu, cuda or cuda:N.
        progress: show a progress bar.
    """
    loaded, settings = open_run(run, device, program, data=data)
    split = chosen_split(split, settings)
    few = None if pv.Program.of(loaded).rows.told else _FEW
    count = few if rows is None else positive("rows", rows)
    x = rows_to_judge(loaded, settings, split, seed, count)
    torch.manual_seed(seed)
    chosen = pv.HMC(num_draws=num_draws, warmup=warmup, chains=chains)
    found: Any = pv.refine(loaded, x, chosen, progress=progress)
    rhat, ess = (_numbers(each) for each in (found.rhat, found.ess))
    figures: dict[str, Any] = {
        "rows": len(next(iter(x.values())) if isinstance(x, dict) else x),
        "num_draws": num_draws,
        "chains": chains,
        "median_rhat": float(np.median(rhat)),
        "median_ess": float(np.median(ess)),
        "not_mixed": int(np.sum(np.logical_not(_numbers(found.mixed)))),
        "seed": seed,
    }
    path = Path(run) / "refined.json"
    told = {"data": settings["data"], "split": split}
    told |= {k: v if np.isfinite(v) else None for k, v in figures.items()}
    buffer = io.BytesIO()
    samples: dict[str, Any] = {k: v.cpu().numpy() for k, v in found.samples.items()}
    np.savez_compressed(buffer, **samples)
    atomic_write_bytes(path.with_suffix(".npz"), buffer.getvalue())
    write_figures(path, told, settings[WEIGHTS])
    write_report(Path(run))
    say(f"{found!r}\nwritten to {path} and {path.with_suffix('.npz').name}")


def _numbers(answer: Any) -> np.ndarray:
    """Return what is said of each datum, or of each coordinate of the globals, ``(N,)``."""
    parts = answer.values() if isinstance(answer, dict) else [answer]
    return np.concatenate([np.ravel(torch.as_tensor(part).cpu().numpy()) for part in parts])
