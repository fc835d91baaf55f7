"""``pyro-vae impute``."""

from pathlib import Path
from typing import Literal

import torch

import pyro_vae as pv
from pyro_vae.arguments import counted
from pyro_vae.cli.datasets import kind_of
from pyro_vae.cli.report import say
from pyro_vae.cli.runs import open_run
from pyro_vae.data.table_files import read_table
from pyro_vae.errors import ConfigError
from pyro_vae.inference.sampling.diagnostics import median
from pyro_vae.storage.atomic import atomic_write_text


def impute(
    run: str,
    table: str | None = None,
    out: str | None = None,
    how: Literal["mean", "sample"] = "mean",
    num_particles: int = 1000,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Fill in the missing cells of a table, given the others.

    Columns go by their names, in any order; observed cells stay as they are.

    Arguments:
        run: run folder of a TableVAE.
        table: file .csv or .parquet with the columns of the training; empty cells are missing;
            may stand behind the run, without --table. Null is that of the training.
        out: file .csv to write; null is filled.csv in the run folder.
        how: mean fills in the best guess, of names the most probable; sample draws what is missing.
        num_particles: importance samples per row.
        seed: of the samples.
        device: auto, cpu, cuda or cuda:N.
    """
    program, settings = open_run(run, device)
    if kind_of(settings["model"]) != "tables":
        raise ConfigError(
            f"{run}: got a run of {settings['model']}, expected one of TableVAE; others are "
            "asked in Python, pv.impute(program, data)"
        )
    frame = read_table(Path(settings["data"] if table is None else table))
    torch.manual_seed(seed)
    found = pv.impute(program, frame, how=how, num_particles=num_particles)
    path = Path(run) / "filled.csv" if out is None else Path(out)
    atomic_write_text(path, found.values.to_csv(index=False))
    cells = found.missing.sum(0).tolist()
    for name, count in zip(frame.columns, cells, strict=True):
        say(f"  {name:<24}{count:6d} filled in")
    say(
        f"{counted(len(frame), 'row')}, median of {median(found.ess):.0f} effective samples "
        f"of {num_particles}"
    )
    say(f"written to {path}")
