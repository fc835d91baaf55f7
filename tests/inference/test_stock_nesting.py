"""Pyro's losses are told how many plates there are: to find out, they would draw noise."""

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

import pyro_vae as pv
from pyro_vae.inference.objectives.stock import as_objective

ROWS = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
LOSSES = {"enum": TraceEnum_ELBO, "vectorised": lambda: Trace_ELBO(3, vectorize_particles=True)}


class Clusters(torch.nn.Module):
    """A code of each datum, and a cluster that is summed out, or drawn where nothing sums."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 2)

    def model(self, x: Tensor) -> None:
        """y ~ Categorical, z ~ N(0, 1), x ~ N(W z + y, 1)."""
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.net(z) + y[..., None]
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """y ~ Categorical, z ~ N(x / 2, 1)."""
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_resumed_run_takes_the_noise_of_one_that_never_stopped(loss: str, tmp_path: Path) -> None:
    def fit(epochs: int, folder: str, resume: bool = False) -> pv.Run:
        torch.manual_seed(0)
        options = {"compile": False, "progress": False, "device": "cpu", "resume": resume}
        out, objective = tmp_path / folder, LOSSES[loss]()
        run = pv.fit(Clusters(), ROWS, epochs=epochs, objective=objective, out=out, **options)
        assert objective.max_plate_nesting == math.inf  # as it was given
        return run

    whole = fit(3, "whole")
    fit(1, "parts")
    assert fit(3, "parts", resume=True).history["loss"].tolist() == whole.history["loss"].tolist()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_stocks(loss: str) -> None:
    program, stock = Clusters(), LOSSES[loss]()
    with pyro.validation_enabled(False):
        stock.loss(program.model, program.guide, ROWS)  # finds the plates out
        torch.manual_seed(1)
        exact = stock.loss(program.model, program.guide, ROWS)
    torch.manual_seed(1)
    wrapped = pv.Program.of(program)
    wrapped.read(ROWS)
    (update,) = as_objective(LOSSES[loss]()).updates(wrapped)
    with wrapped.running(), pyro.validation_enabled(False):
        torch.manual_seed(1)
        ours = update.loss(wrapped.joint(ROWS)) * len(ROWS)
    assert float(ours.detach()) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("nesting", "cure"), [(1, "broadcast what depends on them"), (0, "give it max_plate_nesting=1")]
)
def test_a_program_that_does_not_run_enumerated_is_told_in_a_sentence(nesting, cure) -> None:
    program = Clusters()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.Categorical(torch.ones(2)))
            mean = torch.cat([program.net(z)[..., :1], y[..., None]], -1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    options = {"epochs": 1, "progress": False, "compile": False}
    objective = TraceEnum_ELBO(max_plate_nesting=nesting)
    with pytest.raises(pv.errors.ProgramError) as told:
        pv.fit(pv.Program(model, program.guide), ROWS, objective=objective, **options)
    said = str(told.value)
    assert said.startswith("objective: TraceEnum_ELBO has the values of 'y' in a new dimension")
    assert cure in said and "test_stock_nesting.py:" in said and "\n" not in said
    assert told.value.__suppress_context__
