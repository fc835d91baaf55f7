"""Answers as data frames and data sets: every number under its name, datum, chain and draw."""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TutorialVAE, binary
from torch import Tensor
from torch.testing import assert_close

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from pyro_vae.training.run import Run

pytest.importorskip("pandas", reason="needs the extra 'frames'")
pytest.importorskip("xarray", reason="needs the extra 'frames'")

# A few draws, whose frames are what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:refine")
CHAINS = pv.HMC(num_draws=3, warmup=2, chains=2, num_leapfrog=2)


def lines(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


def lines_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def values(column) -> Tensor:
    return torch.from_numpy(column.to_numpy().copy())


def test_a_history_has_a_row_for_each_epoch():
    run = pv.fit(TutorialVAE(), binary(8), epochs=3, batch_size=4, compile=False)

    frame = run.to_pandas()

    assert frame.index.tolist() == [1, 2, 3]
    assert frame.index.name == "epoch"
    for name in set(run.history) - {"epoch"}:
        assert frame[name].tolist() == pytest.approx(run.history[name].tolist(), nan_ok=True)


def test_a_likelihood_has_a_row_for_each_datum():
    found = pv.log_likelihood(TutorialVAE(), binary(5), num_particles=30)

    frame = found.to_pandas()

    assert list(frame) == ["log_prob", "noise", "ess", "psis_k"]
    assert frame.index.name == "datum"
    for name in frame:
        assert_close(values(frame[name]), getattr(found, name))


def test_a_history_stands_along_its_epochs():
    history = {"epoch": np.array([3, 4]), "loss": np.array([2.0, 1.0])}
    run = Run(None, history, best_epoch=4, steps=2, device=torch.device("cpu"))

    dataset = run.to_xarray()

    assert list(dataset.data_vars) == ["loss"] and dataset["loss"].dims == ("epoch",)
    assert dataset["loss"].sel(epoch=4).item() == 1.0
    assert list(Run(None, {}, 0, 0, torch.device("cpu")).to_xarray()) == []


def test_a_likelihood_of_one_point_is_one_draw_of_each_datum():
    found = pv.log_likelihood(TutorialVAE(), binary(5), num_particles=30)

    dataset = found.to_xarray()

    assert list(dataset.data_vars) == ["log_prob"]  # of several ArviZ asks for a name
    assert dataset["log_prob"].dims == ("chain", "draw", "datum")
    assert_close(values(dataset["log_prob"].sel(chain=0, draw=0)), found.log_prob)
    for name in ("noise", "ess", "psis_k"):
        assert dataset[name].dims == ("datum",)
        assert_close(values(dataset[name]), getattr(found, name))


def test_a_likelihood_at_draws_of_globals_is_that_of_arviz():
    """Each draw's are exact here, and are those that a leave-one-out estimate weighs."""
    x = torch.randn(6, 2)
    drawn = []

    def guide(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        drawn.append(w)

    found = pv.log_likelihood(pv.Program(lines, guide), x, num_global_samples=7)
    dataset = found.to_xarray()["log_prob"]

    assert dict(dataset.sizes) == {"chain": 1, "draw": 7, "datum": 6}
    exact = dist.Normal(torch.stack(drawn[-7:])[:, None], 1.0).log_prob(x).sum(-1)
    assert_close(values(dataset[0]), exact)


def test_draws_of_each_datum_stand_under_chain_draw_and_datum():
    found = pv.refine(TutorialVAE(), binary(5), CHAINS)

    dataset = found.to_xarray()

    ((site, draws),) = found.samples.items()
    assert dataset[site].dims == ("chain", "draw", "datum", f"{site}_dim_0")
    one = dataset[site].sel(chain=1, draw=2, datum=4)
    assert_close(torch.from_numpy(one.to_numpy()), draws[1, 2, 4])
    assert_close(values(found.to_pandas()["acceptance"]), found.acceptance)


def test_draws_of_globals_stand_under_chain_and_draw():
    found = pv.refine(pv.Program(lines, lines_guide), torch.randn(6, 2), CHAINS)

    dataset = found.to_xarray()

    assert dataset["w"].dims == ("chain", "draw", "w_dim_0")
    assert_close(torch.from_numpy(dataset["w"].to_numpy()), found.samples["w"])


@pytest.mark.parametrize("library", ["pandas", "xarray"])
def test_a_library_that_is_not_there_is_named(monkeypatch, library):
    found = pv.refine(TutorialVAE(), binary(2), CHAINS)
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(ConfigError, match=rf"{library}.*pip install"):
        getattr(found, f"to_{library}")()
