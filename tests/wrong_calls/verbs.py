"""Verbs that judge and use a program, what they answer, parts, pictures and files."""

import pickle
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import conditionals, distributions, models, plots
from wrong_calls.subjects import Calls, X, normal, spoiled, vae, written


def classes(x: Tensor) -> None:
    w = normal("w", x, 6)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        mean = w + 3.0 * c[..., None]
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def classes_guide(x: Tensor) -> None:
    normal("w", x, 6)


def unpicklable(name: str) -> Path:
    Path(name).write_bytes(pickle.dumps({"weights": 1}))
    return Path(name)


def conditional() -> Any:
    return models.ConditionalVAE(6, 2, (4,), num_classes=3)


def trained() -> pv.Run:
    return pv.fit(vae(), X, epochs=1, compile=False)


CALLS: Calls = {
    "temperatures called steps": (lambda: pv.AIS(steps=3), "did you mean num_temperatures"),
    "means of codes": (lambda: pv.encode(vae(), X, mean=True), "'mean'; did you mean sample"),
    "an input of the model in place of given": (
        lambda: pv.generate(vae(), 5, lengths=3),
        r"argument 'lengths'; expected .*; inputs of the model go in given=\{'lengths': \.\.\.\}",
    ),
    "a diagnosis of classes alone, beside a global latent": (
        lambda: pv.diagnose(pv.Program(classes, classes_guide), X),
        r"'c' is summed out, .* no other latent of a datum \('w': of all data\); .*pv\.refine the",
    ),
    "a file to draw a figure in": (
        lambda: pv.log_likelihood(vae(), X, num_particles=5).plot("a.png"),
        r"LogLikelihood\.plot\(\) got 1 argument .*pv\.plots\.save\(it\.plot\(\), 'a\.png'\)",
    ),
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
    "a run that is not there": (lambda: pv.load("absent"), "absent"),
    "a pickle": (
        lambda: pv.load(unpicklable("weights.pt: is a file, expected the folder")),
        "weights.pt",
    ),
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
        r"settings: got the class HMC, expected .* HMC or None, as pv\.HMC\(num_draws=500\)$",
    ),
    "a file in place of a folder": (
        lambda: pv.save(vae(), written("program.pt")),
        r"folder: got 'program\.pt', which is a file, expected a folder",
    ),
    "a folder below a file": (
        lambda: pv.save(vae(), written("program.pt") + "/vae"),
        r"folder: got 'program\.pt/vae', where program\.pt is a file, expected a folder",
    ),
    "a folder called as a file": (
        lambda: pv.save(vae(), "vae.pt"),
        r"folder: got 'vae\.pt', the name of a file, .*, as 'vae': program\.safetensors is",
    ),
    "an observation by its name": (
        lambda: vae(observation="bernoulli"),
        r"observation: got 'bernoulli', expected .*, as pv\.conditionals\.Bernoulli$",
    ),
    "a program in place of its history": (
        lambda: plots.curves(vae()),
        r"history: got VAE.*, expected a dict, as run\.history$",
    ),
}
