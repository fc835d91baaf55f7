"""Imputation of mixed tables with published holes: ``python benchmarks/reproduce.py wine_50``."""

import argparse
import time
from functools import partial

import numpy as np
import torch
from arms import train
from results import Result
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from torch import Tensor

import pyro_vae as pv
from pyro_vae.conditionals import Column
from pyro_vae.data.sources import locate

NAZABAL = "Nazabal et al. (2018), arXiv:1807.03653: another error, not comparable"


def imputation(name: str, args: argparse.Namespace, data: str, percent: int) -> Result:
    """TableVAE against mean or mode, and scikit-learn's IterativeImputer, on the same holes."""
    start = time.perf_counter()
    file = np.load(locate(f"hivae_{data}", None))
    x, kinds, classes = file["x"], file["column_type"], file["n_class"]
    count = x.shape[1]
    holes = np.unpackbits(file[f"missing{percent}_1"], axis=1)[:, :count].astype(bool)
    columns = [_column(d, kinds[d], int(classes[d]), x[:, d][~holes[:, d]]) for d in range(count)]
    cells = np.stack([_kept(column, x[:, d]) for d, column in enumerate(columns)], 1)
    truth = torch.as_tensor(cells, dtype=torch.float32)
    missing = torch.as_tensor(holes)
    seen = truth.masked_fill(missing, torch.nan)
    torch.manual_seed(args.seed)
    program = pv.models.TableVAE(columns, 8, (128,))
    objective = pv.MIWAE(10)
    run = train(name, args, program, seen, epochs=60, objective=objective, batch_size=128, lr=2e-3)
    torch.manual_seed(args.seed)
    found = pv.impute(program, seen, samples=args.samples)
    ours = _errors(columns, truth, found.values, missing)
    plain = _errors(columns, truth, _mean_or_mode(columns, seen), missing)
    chained = _errors(columns, truth, _iterative(columns, seen, args.seed), missing)
    error = torch.tensor(ours).std().item() / count**0.5
    return Result(
        name=name,
        value=float(np.mean(ours)),
        stderr=error,
        unit="error of missing cells, mean over columns",
        estimator="per column: root mean squared error over the standard deviation of the observed "
        "cells; of categories the share of wrong ones; of ordinal ones the same as of numbers; the "
        "standard error is over columns",
        published=NAZABAL,
        target="below mean/mode and IterativeImputer",
        data=f"hivae_{data}, mask {percent} % (the first)",
        binarisation="none",
        seed=args.seed,
        seconds=time.perf_counter() - start,
        details={
            "epochs": len(run.history["epoch"]),
            "samples": args.samples,
            "median_ess": float(found.ess.median()),
            "mean_or_mode": float(np.mean(plain)),
            "iterative_imputer": float(np.mean(chained)),
            "columns": [
                {
                    "kind": column.kind,
                    "table_vae": ours[d],
                    "mean_or_mode": plain[d],
                    "iterative_imputer": chained[d],
                }
                for d, column in enumerate(columns)
            ],
        },
    )


def _column(place: int, kind: str, classes: int, observed: np.ndarray) -> Column:
    """Return a column; one that is called positive and has zeros is a real one."""
    kind = {"pos": "positive", "cat": "categorical"}.get(kind, kind)
    if kind in ("categorical", "ordinal"):
        return Column(str(place), kind, categories=tuple(range(classes)))
    kind = "real" if kind == "positive" and observed.min() <= 0 else kind
    logs = {"positive": np.log, "count": np.log1p}.get(kind, np.asarray)
    values = logs(observed)
    return Column(str(place), kind, center=float(values.mean()), scale=float(values.std()))


def _kept(column: Column, values: np.ndarray) -> np.ndarray:
    if column.named:
        return values - values.min()
    if column.kind == "positive":
        return values / np.exp(column.center)
    return (values - column.center) / column.scale if column.shifted else values


def _errors(columns: list[Column], truth: Tensor, filled: Tensor, missing: Tensor) -> list[float]:
    found = []
    for d, column in enumerate(columns):
        holes = missing[:, d]
        one, other = truth[holes, d], filled[holes, d]
        if column.kind == "categorical":
            found.append(float((one != other).double().mean()))
        else:
            found.append(float((one - other).square().mean().sqrt() / truth[~holes, d].std()))
    return found


def _mean_or_mode(columns: list[Column], seen: Tensor) -> Tensor:
    filled = []
    for d, column in enumerate(columns):
        known = seen[:, d][~seen[:, d].isnan()]
        value = known.mode().values if column.kind == "categorical" else known.mean()
        filled.append(seen[:, d].nan_to_num(float(value)))
    return torch.stack(filled, 1)


def _iterative(columns: list[Column], seen: Tensor, seed: int) -> Tensor:
    """Chained regressions on standardised columns, categories one-hot."""
    parts, sizes = [], []
    for d, column in enumerate(columns):
        cells = seen[:, d : d + 1]
        if column.kind == "categorical":
            hot = (cells == torch.arange(len(column.categories))).float()
            parts.append(hot.masked_fill(cells.isnan(), torch.nan))
        else:
            parts.append((cells - cells.nanmean()) / cells[~cells.isnan()].std())
        sizes.append(parts[-1].shape[1])
    imputer = IterativeImputer(random_state=seed, max_iter=10)
    done = torch.as_tensor(imputer.fit_transform(torch.cat(parts, 1).double().numpy()))
    filled = []
    for d, (column, part) in enumerate(zip(columns, done.split(sizes, 1), strict=True)):
        known = seen[:, d][~seen[:, d].isnan()]
        if column.kind == "categorical":
            filled.append(part.argmax(1).to(seen.dtype))
        else:
            filled.append((part[:, 0] * known.std() + known.mean()).to(seen.dtype))
    return torch.stack(filled, 1)


EXPERIMENTS = {
    f"{data}_{percent}": partial(imputation, data=data, percent=percent)
    for data in ("wine", "adult")
    for percent in (10, 50)
}
