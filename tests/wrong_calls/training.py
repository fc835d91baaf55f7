"""Arguments of ``pv.fit``, and of what it is given."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import nn

import pyro_vae as pv
from wrong_calls.subjects import Calls, X, fit, linked, vae, written


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


CALLS: Calls = {
    "a share of the data to validate on": (
        lambda: fit(valid=0.1),
        r"valid: got 0\.1, expected rows of their own",
    ),
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
    "a transform of two arguments": (
        lambda: fit((X, X[:, 0]), transform=lambda x, y: (x / 2, y)),
        r"transform: .*does not take one argument, .*of the batch, .*lambda batch: \(noisy",
    ),
    "a transform's name": (
        lambda: fit(transform="dynamic"),
        "transform: got 'dynamic', expected a function",
    ),
    "a device of another library": (lambda: fit(device="gpu"), "device: got 'gpu'.*auto, cpu"),
    "a folder that is a file": (lambda: fit(out=written("notes.txt")), "notes.txt.* is a file"),
    "a folder below a link to nothing": (
        lambda: fit(out=linked("away") / "run"),
        "out: got 'away/run', where away is a link to nothing, expected a folder; name another$",
    ),
    "a folder below a link to itself": (
        lambda: fit(out=linked("away", "away") / "run"),
        "where away is a link to nothing",
    ),
    "to go on from nowhere": (lambda: fit(resume=True), "resume.*out"),
    "a frozen program": (
        lambda: pv.fit(vae().requires_grad_(False), X),
        r"no trainable parameters.*requires_grad_\(True\)",
    ),
    "too many positions": (
        lambda: pv.fit(vae(), X, pv.IWAE(5)),
        "got 3 arguments without a name, expected 2 at most .*valid=",
    ),
    "validation by a yes": (lambda: fit(valid=True), "valid: got True, expected rows of their own"),
    "a rate as text, of an optimizer's class": (
        lambda: fit(optimizer=torch.optim.SGD, lr="1e-3"),
        "lr: got '1e-3', expected a positive number",
    ),
    "a KL weight of a model": (
        lambda: vae(beta=4.0),
        r"unexpected argument 'beta'; pv\.fit takes it: pv\.fit\(program, x, beta=4\.0\)",
    ),
    "a schedule's ends": (
        lambda: fit(beta=(0, 1)),
        r"beta: got \(0, 1\), expected a number or .*, as pv\.schedules\.linear\(0, 1\)$",
    ),
}
