"""Sixty wrong calls, as people write them: each ends in one sentence with what was got, what is
expected and what to do, by an error of ours or Python's own of a call that does not fit."""

import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from benchmarks.faults.bad_calls import doors
from pyro_vae import conditionals, distributions, models, plots
from pyro_vae.errors import PyroVaeError

X = torch.ones(10, 6)


def vae(**options: Any) -> Any:
    return models.VAE(6, 2, (4,), **options)


def spoiled(value: float) -> Tensor:
    x = torch.zeros(10, 6)
    x[7, 2] = value
    return x


def normal(site: str, x: Tensor, size: int = 2, **options: Any) -> Tensor:
    return pyro.sample(site, dist.Normal(x.new_zeros(size), 1.0).to_event(1), **options)


def pair(
    model_sites: tuple[str, ...] = ("z",), guide_sites: tuple[str, ...] = ("z",), **options: Any
):
    """Return a program whose sides draw these sites, with one more thing wrong by an option."""
    event, observed, inside = (
        options.get(k, v) for k, v in (("event", 2), ("observed", True), ("inside", True))
    )

    def model(x: Tensor) -> None:
        for site in model_sites if not inside else ():
            normal(site, x)
        with pyro.plate("data", len(x)):
            for site in model_sites if inside else ():
                normal(site, x)
            if observed:
                normal("x", x, 6, obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for site in guide_sites:
                normal(site, x, event)

    return pv.Program(model, guide)


def flat(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x.new_zeros(6), 1.0), obs=x)


def broken(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        normal("x", x, 6, obs=x @ torch.ones(7, 2))


def measured(x: Tensor, mask: Any = None, heights: Any = None) -> None:
    with pyro.plate("data", len(x)):
        seen = None if heights is None else heights.float()[:, 0]
        normal("y", x, 1)
        pyro.sample("height", dist.Normal(x.sum(-1), 1.0).mask(mask is None or mask > 0), obs=seen)


def unobserved(x: Tensor, mask: Any = None) -> None:
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask is None or mask):
        normal("x", x, 6)


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


def negative(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x, -x).to_event(1), obs=x)


def fit_subsampled(batch_size: int, size: int | None = None) -> None:
    loc = nn.Linear(1, 6)

    def model(x: Tensor) -> None:
        with pyro.plate("data", size or len(x), subsample_size=5) as rows:
            mean = loc(x.new_ones(len(rows), 1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x[rows])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no verb that can answer for each row
        pv.fit(pv.Program(model, nothing), X, batch_size=batch_size, epochs=1, compile=False)


def documents() -> pv.Program:
    def functions(x: Tensor, subsample_size: int) -> None:
        with pyro.plate("docs", 6, subsample_size) as rows, pyro.plate("words", 3):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(rows) + 1]), obs=x[:, rows])

    return pv.Program(functions, nothing)


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


def bare(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0))
        normal("x", x + z.sum(), 6, obs=x)


def classes(x: Tensor) -> None:
    w = normal("w", x, 6)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        mean = w + 3.0 * c[..., None]
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def classes_guide(x: Tensor) -> None:
    normal("w", x, 6)


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
    mean = COUNTS(x)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(mean.exp()).to_event(1), obs=x[:, :1])


COUNTS = nn.Linear(6, 1)


def refusing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        steps = dist.Normal(x.new_zeros(len(x), 3), 1.0)
        pyro.sample("x", distributions.Padded(steps, torch.rand(len(x))), obs=x[:, :3])


def nothing(x: Tensor, *others: Any, **more: Any) -> None:
    pass


def unpicklable(name: str) -> Path:
    Path(name).write_bytes(pickle.dumps({"weights": 1}))
    return Path(name)


def written(name: str) -> str:
    Path(name).write_text("mine")
    return name


class OwnObjective(pv.TermsObjective):
    """Returns of the terms what it is given to make of them."""

    def __init__(self, loss: Callable[[Any], Any]) -> None:
        super().__init__()
        self._loss = loss

    def loss_of(self, terms: Any) -> Any:
        return self._loss(terms)


class Updates:
    def updates(self, program: Any) -> Any:
        return [lambda joint: joint]


def fit(data: Any = X, **options: Any) -> Any:
    return pv.fit(vae(), data, **{"epochs": 1, "compile": False, **options})


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    # what is no program
    "a class in place of a model": (
        lambda: pv.fit(models.VAE, X),
        r"got the class VAE, expected an object of it, VAE\(\.\.\.\)",
    ),
    "a network": (lambda: pv.fit(nn.Linear(6, 2), X), r"without \.model"),
    "a model alone": (
        lambda: pv.Program(nothing),
        r"guide: left out, expected pv\.Program\(model, guide\).*AutoNormal\(model\)",
    ),
    "a program made one again": (
        lambda: pv.Program(vae()),
        r"guide: left out, and VAE has \.model and \.guide: .*as it is: pv\.fit\(it, x\)",
    ),
    "a guide by its name": (
        lambda: pv.Program(nothing, "auto"),
        "guide: got 'auto', expected a function",
    ),
    "a guide that forgets a site": (
        lambda: pv.elbo(pair(guide_sites=()), X),
        "site 'z': sampled by the model and not by the guide",
    ),
    "a guide with a site more": (
        lambda: pv.elbo(pair(guide_sites=("z", "u")), X),
        "site 'u': sampled by the guide and not by the model",
    ),
    "sides of different widths": (
        lambda: pv.elbo(pair(event=3), X),
        r"site 'z': the guide's event shape is \(3,\), the model's \(2,\)",
    ),
    "a latent outside the plate": (
        lambda: pv.elbo(pair(inside=False), X),
        "site 'z': inside the plate 'data' in the guide only",
    ),
    "nothing observed": (
        lambda: pv.elbo(pair(observed=False), X),
        "given data and observes none; write obs=",
    ),
    "an observed argument left out, behind one that is not": (
        lambda: pv.elbo(pv.Program(measured, nothing), X),
        "observes none; give 'heights' too, which is None where it is left out",
    ),
    "nothing observed, beside an argument left out": (
        lambda: pv.elbo(pv.Program(unobserved, nothing), X),
        r"observes none; write obs= .*; or give 'mask', which is None here, if a site observes it",
    ),
    "a distribution's refusal within the model": (
        lambda: pv.elbo(pv.Program(refusing, nothing), X),
        "lengths",
    ),
    "a model and a guide in place of a program": (
        lambda: pv.fit(measured, nothing, X),
        r"got 3 arguments .*; of two functions make a program: pv\.Program\(model, guide\)$",
    ),
    "several arguments of a model, one by one": (
        lambda: pv.fit(vae(), X, X[:, 0]),
        r"got 3 arguments .*; several arguments of a model go together, as a tuple: \(x, y\)$",
    ),
    "a guide's class": (
        lambda: pv.Program(measured, AutoNormal),
        r"guide: got the class AutoNormal, expected .* instance of the class, such as AutoNormal",
    ),
    "a scale that no function has made positive": (
        lambda: pv.elbo(pv.Program(negative, nothing), X),
        r"GreaterThan.*What a network puts out is made positive by \.exp\(\)",
    ),
    "a plate that draws more rows than a batch has": (
        lambda: fit_subsampled(batch_size=7),
        r"; leave subsample_size out and let pv\.fit make the minibatches .*batch_size=len\(x\)",
    ),
    "a plate that draws some of all rows": (
        lambda: pv.fit(documents(), (torch.zeros(3, 6), 2)),
        r"'docs' draws 2 of its 6 rows: .*; rows are the .*Program\(\.\.\., dim=1\)$",
    ),
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
    "a latent's dimensions outside its event": (
        lambda: pv.elbo(pv.Program(bare, nothing), X),
        r"site z dim -1, 10 vs 2; the plate has the rows of the batch, so make what is one datum",
    ),
    "temperatures called steps": (lambda: pv.AIS(steps=3), "did you mean num_temperatures"),
    "means of codes": (lambda: pv.encode(vae(), X, mean=True), "'mean'; did you mean sample"),
    "a program without data": (
        lambda: pv.elbo(pv.Program(lambda: None, nothing), X),
        r"; it takes no data: give it an argument for them, as def ",
    ),
    "a program called": (
        lambda: pair()(X),
        r"Program is called as a function, and is none; write pv\.reconstruct\(program, x\)",
    ),
    "a model of the zoo called": (lambda: vae()(X), "VAE is called as a function, and is none"),
    "an input of the model in place of given": (
        lambda: pv.generate(vae(), 5, lengths=3),
        r"argument 'lengths'; expected .*; inputs of the model go in given=\{'lengths': \.\.\.\}",
    ),
    "a diagnosis of classes alone, beside a global latent": (
        lambda: pv.diagnose(pv.Program(classes, classes_guide), X),
        r"'c' is summed out, .* no other latent of a datum \('w': of all data\); .*pv\.refine the",
    ),
    "whole numbers where a network wants floats": (
        lambda: pv.elbo(pv.Program(counts, nothing), X.long()),
        r"; x has whole numbers, and networks take floats: \.float\(\)$",
    ),
    "a plate that numbers all rows, and a batch of some": (
        lambda: fit_subsampled(batch_size=7, size=10),
        r"'data' draws 5 of its 10 rows: .* observe x in place of x\[i\], and let pv\.fit make the",
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
    "a share of the data to validate on": (
        lambda: fit(valid=0.1),
        r"valid: got 0\.1, expected rows of their own",
    ),
    "an error within the model": (
        lambda: pv.elbo(pv.Program(broken, nothing), X),
        "cannot take this batch",
    ),
    "a datum's dimensions outside its event": (
        lambda: pv.elbo(pv.Program(flat, nothing), X),
        r"site x dim -1, .*what is one datum of 'x' its event dimensions \(\.to_event\(1\)\)",
    ),
    # data
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
    # arguments of fit
    "a British spelling": (
        lambda: fit(optimiser=torch.optim.Adam),
        "optimiser.*did you mean.*optimizer",
    ),
    "no epochs": (lambda: fit(epochs=0), "epochs: got 0, expected an integer of at least 1"),
    "a rate as text": (lambda: fit(lr="1e-3"), "lr: got '1e-3', expected a positive number"),
    "a scheduler of torch": (
        lambda: fit(lr_schedule=torch.optim.lr_scheduler.StepLR),
        r"lr_schedule: got the class StepLR, expected .*pv\.schedules",
    ),
    "an optimizer's name": (lambda: fit(optimizer="adam"), "optimizer: got 'adam', expected"),
    "an optimizer of other weights": (
        lambda: fit(optimizer=torch.optim.Adam(nn.Linear(2, 2).parameters())),
        "optimizer: 2 of",
    ),
    "an objective's name": (
        lambda: fit(objective="iwae"),
        r"objective: got 'iwae', expected an instance of .*, as pv\.IWAE\(num_particles\)",
    ),
    "an objective's name that ends as another's": (
        lambda: fit(objective="WAE"),
        r"objective: got 'WAE', .*, as pv\.WAE\(weight\)",
    ),
    "what an objective is known by": (
        lambda: fit(objective="MMD-VAE"),
        r"objective: got 'MMD-VAE', .*, as pv\.WAE\(weight\)",
    ),
    "a loss of Pyro's, as a class": (
        lambda: fit(objective=pyro.infer.Trace_ELBO),
        r"got the class Trace_ELBO, expected .* as Trace_ELBO\(\)",
    ),
    "a warm-up counted in epochs": (
        lambda: fit(beta=pv.schedules.linear(over=3)),
        r"over: got 3, expected a number in \(0, 1\]: a share of the run",
    ),
    "a warm-up that is a function of the epoch": (
        lambda: fit(beta={"z": lambda epoch: min(1.0, epoch / 10)}),
        r"beta\['z'\]: got a function of 'epoch', expected one of the progress t",
    ),
    "a learning rate that is a function of the step": (
        lambda: fit(None, lr_schedule=lambda step: 0.99**step),
        r"lr_schedule: got a function of 'step', .*t \* steps",
    ),
    "a schedule's maker": (
        lambda: fit(beta=pv.schedules.linear),
        r"the schedule gave <function .*; call it first, as pv\.schedules\.linear\(\)",
    ),
    "a schedule in place of a rate": (
        lambda: fit(lr=pv.schedules.cosine()),
        "lr: got <function .*expected a number; a function of the progress is lr_schedule=",
    ),
    "an objective's class": (
        lambda: fit(objective=pv.FreeBits),
        r"objective: got the class FreeBits, expected an instance .*as pv\.FreeBits\(nats\)",
    ),
    "a loss for each datum": (
        lambda: fit(objective=OwnObjective(lambda terms: -terms.log_weight)),
        r"update 'loss' returned a tensor of shape \(1, 1, 10\) .*one number .*\.mean\(\)",
    ),
    "a loss that is not returned": (
        lambda: fit(objective=OwnObjective(lambda terms: None)),
        "update 'loss' returned None for a loss, expected one number in nats per datum$",
    ),
    "a loss without a gradient": (
        lambda: fit(objective=OwnObjective(lambda terms: -terms.log_weight.mean().detach())),
        r"returned a loss without a gradient, .*\.detach\(\)",
    ),
    "an objective without a loss": (
        lambda: fit(objective=pv.TermsObjective()),
        r"TermsObjective defines no loss_of\(self, terms\), expected one that returns",
    ),
    "an objective whose updates are none": (
        lambda: fit(objective=Updates()),
        r"Updates\.updates\(program\) returned \[<function .*expected a list of pv\.Update",
    ),
    "beta of no site": (lambda: fit(beta={"w": 1.0}), "beta.*'w'.*'?z'?"),
    "patience without validation": (lambda: fit(patience=3), "patience.*valid"),
    "a callback's class": (
        lambda: fit(callbacks=pv.CollapseMonitor),
        r"callbacks: got the class CollapseMonitor, .*instance, CollapseMonitor\(\.\.\.\)",
    ),
    "a callback's name": (
        lambda: fit(callbacks="print"),
        "callbacks: got 'print', expected a function or a sequence of functions",
    ),
    "a callback of two arguments": (
        lambda: fit(callbacks=lambda run, epoch: None),
        "callbacks: got <function .*does not take one argument, .*lambda run",
    ),
    "a network of no distribution": (
        lambda: pv.fit(vae(encoder=nn.Linear(6, 2)), X),
        r"'Tensor' object is not callable; .*is a distribution, as dist\.Normal",
    ),
    "a transform of two arguments": (
        lambda: fit((X, X[:, 0]), transform=lambda x, y: (x / 2, y)),
        r"transform: .*does not take one argument, .*of the batch, .*lambda batch: \(noisy",
    ),
    "a file to draw a figure in": (
        lambda: pv.log_likelihood(vae(), X, num_particles=5).plot("a.png"),
        r"LogLikelihood\.plot\(\) got 1 argument .*pv\.plots\.save\(it\.plot\(\), 'a\.png'\)",
    ),
    "a transform's name": (
        lambda: fit(transform="dynamic"),
        "transform: got 'dynamic', expected a function",
    ),
    "a device of another library": (lambda: fit(device="gpu"), "device: got 'gpu'.*auto, cpu"),
    "a folder that is a file": (lambda: fit(out=written("notes.txt")), "notes.txt.* is a file"),
    "to go on from nowhere": (lambda: fit(resume=True), "resume.*out"),
    "a frozen program": (
        lambda: pv.fit(vae().requires_grad_(False), X),
        r"no trainable parameters.*requires_grad_\(True\)",
    ),
    # judging, refining, generating
    "no particles": (
        lambda: pv.log_likelihood(vae(), X, num_particles=0),
        "num_particles: got 0, expected an integer of at least 1",
    ),
    "the likelihood of an autoencoder": (
        lambda: pv.log_likelihood(models.Autoencoder(6, 2, (4,)), X),
        "prior",
    ),
    "HMC as a dict": (
        lambda: pv.refine(vae(), X, {"num_draws": 10}),
        "settings: got .*, expected an instance of HMC",
    ),
    "HMC's class": (lambda: pv.refine(vae(), X, pv.HMC), "settings: got .*, expected"),
    "an unknown way to infer": (
        lambda: pv.infer(vae(), X, how="mcmc"),
        "how: got 'mcmc', expected one of",
    ),
    "a number of images in words": (
        lambda: pv.generate(vae(), "ten"),
        "n: got 'ten', expected an integer of at least 1",
    ),
    "lines between unequal data": (lambda: pv.interpolate(vae(), X, X[:3]), "10.*3"),
    "classes of a model without labels": (lambda: pv.classify(vae(), X), "label|class"),
    "topics of a model of images": (lambda: pv.topics(vae(), X), "topic"),
    "holes where none are known": (lambda: pv.impute(vae(), spoiled(torch.nan)), "missing='nan'"),
    # files
    "a run that is not there": (lambda: pv.load("absent"), "absent"),
    "a pickle": (
        lambda: pv.load(unpicklable("weights.pt: is a file, expected the folder")),
        "weights.pt",
    ),
    # parts and pictures
    "a distribution's name": (lambda: vae(observation="bernouli"), "bernouli.*expected|choose"),
    "lengths that are fractions": (
        lambda: distributions.Padded(dist.Normal(torch.zeros(4, 3), 1.0), torch.rand(4)),
        "lengths",
    ),
    "costs of steps in place of curves by name": (
        lambda: plots.step_kl(pv.PerStep(1.0, 0.1, 1.0, 0.1)),
        r"curves: got PerStep.*expected a dict, as \{'DMM': pv\.per_step\(dmm, x\)\.kl\}",
    ),
    "a picture of a table": (lambda: plots.samples(torch.zeros(3, 7)), r"\(3, 7\)"),
    "a format of no picture": (
        lambda: plots.save(plots.curves({"epoch": [1.0], "loss": [1.0]}), "a.jpog"),
        "unknown format 'jpog'",
    ),
    "a column of no kind": (
        lambda: conditionals.Column("age", "integer"),
        "kind 'integer'; expected one of",
    ),
    "too many positions": (
        lambda: pv.fit(vae(), X, pv.IWAE(5)),
        "got 3 arguments without a name, expected 2 at most .*valid=",
    ),
    "a number of no name": (
        lambda: pv.log_likelihood(vae(), X, num_samples=5),
        "num_samples.*did you mean num_particles",
    ),
    "a function as critic": (lambda: pv.AAE(lambda z: z[:, 0]), "critic: got .*nn.Module"),
    "a function that judges codes": (
        lambda: pv.aggregated_posterior(vae(), X, critic=lambda z: z[:, 0]),
        "critic: got .*nn.Module",
    ),
    "a shape in words": (
        lambda: conditionals.LearnedConstant(["six"]),
        "data_shape: got 'six', expected an integer of at least 1",
    ),
    "a ragged shape": (lambda: conditionals.SetEncoding([[1], [1, 2]]), "data_shape: got"),
    "factors of words": (lambda: pv.LocalGuide(vae(), ["a", "b"]), "data: got .*numbers"),
    "one number's features": (
        lambda: pv.feature_distances(vae(), torch.tensor(1.0), torch.flatten),
        "data: got 1 row",
    ),
    "features that are none": (
        lambda: pv.feature_distances(vae(), X, lambda x: None),
        "features: got .* gives None .*one row of features",
    ),
    "codes of one number": (
        lambda: models.Resampled(vae()).mean(torch.tensor(1.0)),
        "x: got .*one row per datum",
    ),
    "text as words": (lambda: pv.topics(models.LDA(6, 2), X, vocabulary="words"), "vocabulary"),
}

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


def of_a_later_function() -> None:
    pv.Program(lambda x: None, lambda x: later(x))

    def later(x: Tensor) -> None:
        pass


def conditional() -> Any:
    return models.ConditionalVAE(6, 2, (4,), num_classes=3)


def trained() -> pv.Run:
    return pv.fit(vae(), X, epochs=1, compile=False)


CALLS |= {
    # what a newcomer takes for another
    "a run in place of its program": (
        lambda: pv.log_likelihood(trained(), X),
        r"got Run without \.model; .*; here its \.program$",
    ),
    "data before the program": (
        lambda: pv.encode(X, vae()),
        r"got Tensor without \.model; .*; the program comes before the data$",
    ),
    "data in place of their number": (
        lambda: pv.generate(vae(), X),
        r"n: got a tensor of shape \(10, 6\).*expected a number of data; inputs .* given=",
    ),
    "a latent given to generate": (
        lambda: pv.generate(vae(), 3, given={"z": torch.zeros(3, 2)}),
        r"given: \['z'\] is no argument of the model, which takes x, observed$",
    ),
    "an argument of generate under another name": (
        lambda: pv.generate(conditional(), 3, given={"label": torch.zeros(3).long()}),
        r"given: \['label'\] is no argument of the model, which takes x, c$",
    ),
    "classes given to generate without a name": (
        lambda: pv.generate(conditional(), 3, given=[0, 1, 2]),
        r"name what is given: given=\{'c': \.\.\.\}$",
    ),
    "a class number given to generate": (
        lambda: pv.generate(conditional(), 3, given=7),
        r"got a scalar, .*name what is given: given=\{'c': \.\.\.\}$",
    ),
    "settings by their class": (
        lambda: pv.refine(vae(), X, pv.HMC),
        "settings: got the class HMC, expected an instance of HMC or None",
    ),
    "a file in place of a folder": (
        lambda: pv.save(vae(), written("program.pt")),
        r"folder: got 'program\.pt', which is a file, expected a folder",
    ),
    "a guide before what it calls": (
        of_a_later_function,
        r"of_a_later_function\.<locals>\.<lambda>: uses a variable .* no value yet; define",
    ),
    "a folder called as a file": (
        lambda: pv.save(vae(), "vae.pt"),
        r"folder: got 'vae\.pt', the name of a file, .*, as 'vae': program\.safetensors is",
    ),
    "validation by a yes": (lambda: fit(valid=True), "valid: got True, expected rows of their own"),
    "a rate as text, of an optimizer's class": (
        lambda: fit(optimizer=torch.optim.SGD, lr="1e-3"),
        "lr: got '1e-3', expected a positive number",
    ),
    "splits in place of rows": (
        lambda: fit(pv.data.load("digits")),
        r"got Splits, .*give one of its parts: data\.train, and valid=data\.valid",
    ),
    "a KL weight of a model": (
        lambda: vae(beta=4.0),
        r"unexpected argument 'beta'; pv\.fit takes it: pv\.fit\(program, x, beta=4\.0\)",
    ),
    "a schedule's ends": (
        lambda: fit(beta=(0, 1)),
        r"beta: got \(0, 1\), expected a number or .*, as pv\.schedules\.linear\(0, 1\)$",
    ),
    "an observation by its name": (
        lambda: vae(observation="bernoulli"),
        r"observation: got 'bernoulli', expected .*, as pv\.conditionals\.Bernoulli$",
    ),
    "a program in place of its history": (
        lambda: plots.curves(vae()),
        r"history: got VAE.*, expected a dict, as run\.history$",
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


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("fit", "fit"),
        ("train_model", "fit"),
        ("sample", "generate"),
        ("predict", "generate"),
        ("encode", "encode"),
        ("embed", "encode"),
        ("evaluate", "log_likelihood"),
        ("decode", "reconstruct"),
    ],
)
def test_a_verb_asked_of_a_program_is_named(name, verb):
    for program in (vae(), pair()):
        with pytest.raises(AttributeError, match=rf"write pv\.{verb}\(program, \.\.\.\)"):
            getattr(program, name)


@pytest.mark.parametrize("kind", [pv.models.VAE, pv.Program])
def test_a_property_that_fails_shows_its_own_error(kind):
    """Though it is called as a verb of another library is."""

    class Own(kind):
        @property
        def sample(self):
            return self.absent

    own = Own(6, 2) if kind is pv.models.VAE else Own(lambda x: None, lambda x: None)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        own.sample  # noqa: B018


def test_they_are_sixty_at_least():
    assert len(CALLS) >= 60


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_told_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, words = CALLS[name]
    with pytest.raises((PyroVaeError, TypeError), match=words) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400
    if not isinstance(caught.value, PyroVaeError):  # a call that does not fit, told at the door
        doors = ("arguments.py", "contextlib.py", "test_wrong_calls.py")
        assert "argument" in said and caught.traceback[-1].path.name in doors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit(learning_rate=1e-3), "'learning_rate'; did you mean lr"),
        (lambda: fit(early_stopping=3), "did you mean patience"),
        (lambda: fit(max_epochs=3), "did you mean epochs"),
        (lambda: fit(eval_data=X), "did you mean valid"),
        (lambda: fit(train_size=0.8), "did you mean valid"),
        (lambda: fit(per_device_train_batch_size=8), "did you mean batch_size"),
        (lambda: vae(likelihood="poisson"), "did you mean observation"),
        (lambda: fit(weight_decay=0.1), "did you mean optimizer"),
        (lambda: fit(use_gpu=True), "did you mean device"),
        (lambda: fit(train_loader=X), "did you mean data"),
        (lambda: pv.log_likelihood(vae(), X, n_samples=5), "did you mean num_particles"),
        (lambda: pv.generate(vae(), num_samples=5), "did you mean n"),
        (lambda: pv.diagnose(vae(), X, n_samples=3), "did you mean num_particles"),
        (lambda: pv.IWAE(n_samples=3), r"'n_samples'; did you mean num_particles"),
        (
            lambda: pv.refine(vae(), X, num_draws=3),
            r"did you mean settings=pv\.HMC\(num_draws=3\)",
        ),
        (
            lambda: pv.refine(vae(), X, num_samples=3),
            r"did you mean settings=pv\.HMC\(num_draws=3\)",
        ),
        (lambda: pv.infer(vae(), X, num_chains=3), r"did you mean settings=pv\.HMC\(chains=3\)"),
    ],
)
def test_the_name_that_other_libraries_give_an_argument_is_understood(call, words):
    with pytest.raises(TypeError, match=f"unexpected argument .*{words}\\?$"):
        call()


@pytest.mark.parametrize(
    ("room", "name", "meant"),
    [
        (pv, "evaluate", r"pv\.log_likelihood"),
        (pv, "sample", r"pv\.generate"),
        (pv, "train", r"pv\.fit"),
        (pv, "MCMC", r"pv\.refine"),
        (pv, "VAE", r"pv\.models\.VAE"),
        (pv, "AutoNormal", r"pyro\.infer\.autoguide\.AutoNormal"),
        (pv, "Adam", r"torch\.optim\.Adam, as pv\.fit\(\.\.\., optimizer=torch\.optim\.Adam\)"),
        (pv, "StudentT", r"pyro\.distributions\.StudentT"),
        (pv, "log_likelyhood", r"pv\.log_likelihood"),
        (models, "BetaVAE", r"pv\.models\.VAE, with .*beta="),
        (models, "ProdLda", r"pv\.models\.ProdLDA"),
        (models, "IWAE", r"pv\.IWAE"),
        (pv.conditionals, "Normal", r"pv\.conditionals\.Gaussian"),
        (plots, "loss", r"pv\.plots\.curves"),
        (pv.schedules, "warmup", r"pv\.schedules\.linear"),
        (pv.schedules, "cosin", r"pv\.schedules\.cosine"),
    ],
)
def test_the_name_of_something_elsewhere_is_understood(room, name, meant):
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; did you mean {meant}"):
        getattr(room, name)
    assert not hasattr(room, "_no_such") and not hasattr(room, "zzz")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: fit().loss, r"Run has no attribute 'loss'; did you mean history\['loss'\]\?"),
        (lambda: fit().best_epochs, r"'best_epochs'; did you mean best_epoch\?"),
        (lambda: fit().zzz, r"'zzz'; it has best_epoch, compiled, .*history"),
        (lambda: pv.log_likelihood(vae(), X, num_particles=5).item(), r"'item'; did you mean mean"),
        (
            lambda: pv.Refined({"z": X}, {}, {}, X, X, X, X, X, 3).draws,
            r"Refined has no attribute 'draws'; did you mean samples\?",
        ),
        (lambda: pv.infer(vae(), X).samples, r"Amortised has .*; did you mean sample\(n\)\?"),
        (lambda: pair().fit(X), r"no method 'fit': write pv\.fit\(program, \.\.\.\)"),
        (lambda: vae().loss(X), r"no method 'loss': write pv\.elbo\(program, \.\.\.\) \(its neg"),
    ],
)
def test_what_an_answer_has_not_is_told(ask, said):
    with pytest.raises(AttributeError, match=said):
        ask()


def test_a_callback_needs_no_list():
    seen = []
    fit(callbacks=lambda run: seen.append(run.steps))
    assert seen == [1]


# Called at each step, with arguments that stand without a name: they are spared the check.
WITHIN_STEPS = {"forward", "log_prob", "step", "see", "read", "adapt", "summed_joint", "chain"}


def test_every_door_says_what_its_arguments_are_called():
    """All public functions, constructors and methods but those that take any name."""
    told = {}
    for door in doors():
        kinds = {p.kind for p in inspect.signature(door.function).parameters.values()}
        name = door.name.rpartition(".")[2]
        if inspect.Parameter.VAR_KEYWORD in kinds or name in WITHIN_STEPS:
            continue
        with pytest.raises(TypeError) as caught:
            door.function(*[None] * bool(door.owner), no_such=3)
        told[door.name] = str(caught.value)
        known = f"{name}() got an unexpected argument 'no_such'; "
        assert known in told[door.name] or door.owner, told[door.name]
    raw = [text for text in told.values() if "got an unexpected argument 'no_such'; " not in text]
    assert not raw and len(told) > 200
