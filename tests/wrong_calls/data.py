"""Data that a program cannot take, or takes for something else."""

from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import models
from wrong_calls.subjects import Calls, X, fit, normal, nothing, spoiled, vae


def labelled(x: Tensor, label: Any) -> None:
    with pyro.plate("data", len(x)):
        normal("x", x, 6, obs=x + nn.functional.one_hot(label, 6))


def embedded(x: Tensor, town: Any) -> None:
    with pyro.plate("data", len(x)):
        normal("z", nn.functional.one_hot(town.long(), 2), 2)


def of_images(side: int, flat: bool = False, channels: int = 1) -> None:
    """Give images of another size, or another number of channels, to networks for 8 x 8."""
    shape = (-1, 64) if flat else (-1, channels, side, side)
    pooled = nn.Sequential(nn.Conv2d(channels, 2, 3, 2, 1), nn.Flatten(), nn.Linear(32, 2))
    encoder = nn.Linear(64, 2) if flat else pooled
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8)))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(decoder(normal("z", x)), 1.0).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            normal("z", encoder(x.reshape(shape)))

    def normal(site: str, x: Tensor) -> Tensor:
        loc = x if x.dim() == 2 else x.new_zeros(2)
        return pyro.sample(site, dist.Normal(loc, 1.0).to_event(1))

    pv.elbo(pv.Program(model, guide), torch.ones(4, channels, side, side))


def bare_datum(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([6]).to_event(1), obs=x)


def diverged() -> pv.Program:
    log_scale = nn.Parameter(torch.zeros(6))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(log_scale, log_scale.exp()).to_event(1), obs=x)

    program = pv.Program(model, nothing)
    with pytest.raises(pv.errors.TrainingDiverged, match="begin with a new program"):
        pv.fit(program, X, epochs=9, lr=1e3, compile=False)
    log_scale.data.fill_(-1e4)
    return program


def seen_before(x: Tensor) -> None:
    layer = nn.Linear(6, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(layer(x), 1.0).to_event(1), obs=x[:, :1])

    program = pv.Program(model, nothing)
    pv.elbo(program, X)
    pv.elbo(program, x)


def scored_logarithms(data: Any) -> None:
    """Give data to counts and a dose of which a guide takes logarithms."""
    layer = nn.Linear(6, 1)

    def model(x: Tensor, dose: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Poisson(z.exp()[:, None].expand(-1, 6)).to_event(1), obs=x)

    def guide(x: Tensor, dose: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = layer(x.log1p())[:, 0] + dose.log1p()
            pyro.sample(
                "z",
                dist.Normal(loc, 1.0),
            )

    program = pv.Program(model, guide)
    pv.elbo(program, (X, X[:, 0]))
    pv.elbo(program, data)


def from_outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(X.mean(1), 1.0), obs=x[:, 0])


def scored_rates(reals: Tensor, rates: Tensor) -> None:
    """Give a guide that takes logarithms of the second data to a program that has seen none."""

    def model(reals: Tensor, rates: Tensor) -> None:
        with pyro.plate("data", len(reals)):
            normal("z", reals)
            normal("reals", reals, 6, obs=reals)

    def guide(reals: Tensor, rates: Tensor) -> None:
        with pyro.plate("data", len(reals)):
            loc = reals[:, :2] + rates.log()[:, :2]
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    pv.elbo(pv.Program(model, guide), {"reals": reals, "rates": rates})


def with_holes(x: Tensor) -> None:
    layer = nn.Linear(6, 1)

    def model(x: Tensor) -> None:
        mean = layer(x.nan_to_num())
        with pyro.plate("data", len(x)):
            seen = dist.Normal(mean, 1.0).mask(~x[:, :1].isnan()).to_event(1)
            pyro.sample("x", seen, obs=x[:, :1].nan_to_num())

    program = pv.Program(model, nothing)
    pv.elbo(program, spoiled(torch.nan))
    pv.elbo(program, x)


def counts(x: Tensor) -> None:
    mean = COUNTS(x) + LOOKED_UP(x).sum(1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(mean.exp()).to_event(1), obs=x[:, :1])


COUNTS, LOOKED_UP = nn.Linear(6, 1), nn.Embedding(9, 1)


LABELS = torch.arange(10) % 3


def of_classes(y: Tensor, takes: str = "embedding") -> None:
    """Ask for the bound of a model with labels of three classes."""
    table = nn.Embedding(3, 6)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if takes == "observed":
                pyro.sample("y", dist.Categorical(x.new_ones(3)), obs=y)
            loc = table(y) if takes == "embedding" else x.new_zeros(len(x), 6)
            loc = nn.functional.one_hot(y, 3) @ table.weight if takes == "one_hot" else loc
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    pv.elbo(pv.Program(model, nothing), (X, y))


def of_two_arguments(data: Any) -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            normal("x", x, 6, obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        pass

    pv.elbo(pv.Program(model, guide), data)


CALLS: Calls = {
    "images of another size": (
        lambda: of_images(12),
        r"layer 'encoder\.2', Linear\(in_features=32, .*got shape \(4, 72\)",
    ),
    "images of another size, of a network that takes any": (
        lambda: of_images(7),
        r"site 'x': got data of shape \(4, 1, 7, 7\), .*\(4, 1, 8, 8\); give data of this shape",
    ),
    "images of another size, made rows": (
        lambda: of_images(12, flat=True),
        r"site z dim -1, 4 vs 9; .*view\(-1, n\).* makes 9 of them",
    ),
    "images of another size, in no whole rows": (
        lambda: of_images(7, flat=True),
        r"\[-1, 64\].*; the rows are no \.view\(-1, 64\)",
    ),
    "one row of a program of one's own": (
        lambda: seen_before(X[0]),
        r"^x: got rows of shape \(\), expected \(6,\), .*one row is a batch of one: x\[None\]; it",
    ),
    "rows of another width": (
        lambda: seen_before(X[:, :5]),
        r"^x: got rows of shape \(5,\), expected \(6,\), as .*; give the columns .*got 5",
    ),
    "rows of another width, with holes": (
        lambda: with_holes(spoiled(torch.nan)[5:, :5]),
        r"^x: got rows of shape \(5,\), expected \(6,\), as .*; give the columns .*got 5",
    ),
    "arguments in another order": (
        lambda: scored_logarithms((X[:, 0], X)),
        r"^x: got rows of shape \(\), expected \(6,\), .*; give the arguments in the order x, dose",
    ),
    "negative counts under a guide's logarithm": (
        lambda: scored_logarithms((-X, X[:, 0])),
        r"^site 'x': value -1 in row 0 is outside the support .* of Poisson",
    ),
    "an input below a guide's logarithm": (
        lambda: scored_logarithms((X, -2 * X[:, 0])),
        r"site 'z' of guide: Expected parameter .* dose has numbers from -2 to -2, .* from 1 on",
    ),
    "rows from outside in place of the argument": (
        lambda: pv.fit(pv.Program(from_outside, nothing), X, batch_size=4, epochs=1),
        r"site x dim -1, 4 vs 10; .* take these from the argument, where 10 are all rows",
    ),
    "rates below a guide's logarithm, beside numbers of either sign": (
        lambda: scored_rates(-X, -2 * X),
        r"site 'z' of guide: Expected parameter .* rates has numbers from -2 to -2; the logarithm",
    ),
    "whole numbers that are looked up where a network wants floats": (
        lambda: pv.elbo(pv.Program(counts, nothing), X.long().abs()),
        r"; x has whole numbers, and networks take floats: \.float\(\)$",
    ),
    "words where a model wants numbers": (
        lambda: pv.elbo(pv.Program(labelled, nothing), (X, ["a", "b"] * 5)),
        r"gets argument 1, a list of words, as it was given: for numbers give np\.unique\(words",
    ),
    "words that a guide wants as numbers": (
        lambda: pv.elbo(pv.Program(nothing, embedded), {"x": X, "town": ["a", "b"] * 5}),
        r"gets town, a list of words, as it was given: for numbers give np\.unique\(words",
    ),
    "a column of words": (
        lambda: pv.elbo(pv.Program(labelled, nothing), (X, pd.Series(["a", "b"] * 5))),
        r"\[1\]: got Series, .*; names have numbers by np\.unique\(x, return_inverse=True\)\[1\]",
    ),
    "an array of words": (
        lambda: pv.elbo(pv.Program(labelled, nothing), (X, np.array(["a", "b"] * 5))),
        r"got ndarray, .*; names have numbers by np\.unique\(x, return_inverse=True\)\[1\]",
    ),
    "a frame with a column of text": (
        lambda: fit(pd.DataFrame({"town": ["Ayr", "Bonn"], "age": [3, 4]})),
        r"columns 'town' have no numbers; .*pd\.factorize\(x\['town'\]\)\[0\], .*TableVAE",
    ),
    "no data": (
        lambda: pv.fit(vae()),
        r"^fit\(\) got no data, .*, which holds its data, takes \(\)$",
    ),
    "None": (lambda: fit(None), r"got NoneType, .* takes \(\), as pv\.fit\(program, \(\)\)$"),
    "one datum of a program of one's own": (
        lambda: pv.elbo(pv.Program(bare_datum, nothing), X[0]),
        r"^site 'x': got shape \(6,\), expected \(B, 6\); this is one datum: pass x\[None\]",
    ),
    "data on weights that training has spoiled": (
        lambda: pv.elbo(diverged(), X),
        r"GreaterThan.*\. pv\.fit of this program has diverged, .* begin anew$",
    ),
    "a file's name": (lambda: fit("digits.csv"), "numeric array"),
    "an infinite number": (
        lambda: fit(spoiled(torch.inf)),
        "inf in row 7 .*; drop such rows .*, or, where such a cell is missing, put NaN in it$",
    ),
    "NaN": (lambda: fit(spoiled(torch.nan)), "nan in row 7.*drop such rows"),
    "pixels up to 255": (
        lambda: fit(spoiled(255.0)),
        r"site 'x': value 255 in row 7.*scale to \[0, 1\]",
    ),
    "grey pixels": (lambda: fit(spoiled(0.4)), "site 'x': value 0.4 in row 7.*binarise"),
    "one datum": (lambda: fit(X[0]), r"site 'x': got shape \(6,\), expected \(B, 6\).*x\[None\]"),
    "no rows": (lambda: fit(X[:0]), "no data"),
    "data and labels": (lambda: fit((X, X)), r"expected \['batch'\]"),
    "rows of unequal lengths": (lambda: fit([[1.0, 0.0], [1.0]]), "expected"),
    "validation data of another width": (
        lambda: fit(valid=X[:, :5]),
        r"got shape \(10, 5\), expected \(B, 6\)",
    ),
    "labels as fractions": (
        lambda: pv.fit(models.M2(6, 3, 2, (4,)), (X, torch.full((10,), 0.5))),
        "label|y",
    ),
    "documents with fractions": (lambda: pv.fit(models.ProdLDA(6, 2, (4,)), X / 2), "whole|0.5"),
    "lengths beyond the steps": (
        lambda: pv.elbo(
            models.DMM(6, 2, (4,)), {"x": torch.ones(2, 3, 6), "lengths": torch.tensor([3, 4])}
        ),
        "lengths",
    ),
    "an unknown data set": (lambda: pv.data.load("mnits"), "mnits.*choose"),
    "splits in place of rows": (
        lambda: fit(pv.data.load("digits")),
        r"got Splits, .*give one of its parts: data\.train, and valid=data\.valid",
    ),
    "sequences of unequal lengths, in a dict": (
        lambda: of_two_arguments({"x": [X[:n] for n in range(1, 9)], "y": LABELS}),
        r"and \d more; of a list of sequences pv\.data\.pad\(x\) makes one tensor, and their",
    ),
    "a batch by other names": (
        lambda: of_two_arguments({"images": X, "labels": LABELS}),
        r"it takes x, y: give several arguments as a tuple, or as a dict by these names",
    ),
    "one of two arguments": (
        lambda: of_two_arguments(X),
        r"missing 1 required .*; it takes x, y: give several arguments as a tuple",
    ),
    "classes that count from 1": (
        lambda: of_classes(LABELS + 1),
        r"y has class numbers from 1 to 3, which count from 0: give y - 1$",
    ),
    "classes that count from 1, made one-hot": (
        lambda: of_classes(LABELS + 1, "one_hot"),
        r"y has class numbers from 1 to 3, which count from 0: give y - 1$",
    ),
    "classes that count from 1, observed": (
        lambda: of_classes(LABELS + 1, "observed"),
        r"site 'y': value 3 in row 2 .*Categorical; class numbers .* count from 0: give y - y\.min",
    ),
    "a class of -1": (
        lambda: of_classes(LABELS - 1, "one_hot"),
        r"y has class numbers from -1 to 1, .*: give more classes, or rows without",
    ),
    "classes as floats": (
        lambda: of_classes(LABELS.float()),
        r"class numbers are whole: y\.long\(\)$",
    ),
    "classes as floats, made one-hot": (
        lambda: of_classes(LABELS.float(), "one_hot"),
        r"class numbers are whole: y\.long\(\)$",
    ),
}
