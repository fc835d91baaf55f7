"""Programs with discrete latents as Pyro's tutorials print them, beside TraceEnum_ELBO."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, init_to_median, init_to_value

import pyro_vae as pv


@config_enumerate
def published_mixture(data):
    """Pyro's tutorial of Gaussian mixtures, as it stands."""
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def published_chain(sequences, lengths):
    """The first hidden Markov model of Pyro's examples."""
    rows, _, tones = sequences.shape
    chances = dist.Dirichlet(0.9 * torch.eye(3) + 0.1).to_event(1)
    probs_x = pyro.sample("probs_x", chances)
    probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([3, tones]).to_event(2))
    tones_plate = pyro.plate("tones", tones, dim=-1)
    with pyro.plate("data", rows, dim=-2) as batch:
        lengths = lengths[batch]
        x = 0
        for t in pyro.markov(range(int(lengths.max()))):
            with pyro.poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(
                    f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"}
                )
                with tones_plate:
                    on = dist.Bernoulli(probs_y[x.squeeze(-1)])
                    pyro.sample(f"y_{t}", on, obs=sequences[batch, t])


PUBLISHED = {
    "mixture": (published_mixture, lambda: torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]), 1, 5),
    "chain": (
        published_chain,
        lambda: ((torch.rand(6, 5, 4) < 0.4).float(), torch.tensor([5, 2, 4, 5, 3, 1])),
        2,
        6,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_programs_run_as_they_stand(name):
    """Equal to TraceEnum_ELBO before and after training by our default objective."""
    model, make, nesting, rows = PUBLISHED[name]
    torch.manual_seed(16)
    data = make()
    args = data if isinstance(data, tuple) else (data,)
    names = ["weights", "scale", "locs", "probs_x", "probs_y"]
    start = {"locs": torch.tensor([1.0, 9.0])}
    guide = AutoDelta(
        pyro.poutine.block(model, expose=names),
        init_loc_fn=init_to_value(values=start, fallback=init_to_median),
    )
    program = pv.Program(model, guide)
    values = [pv.elbo(program, data).sum().item()]
    pv.fit(program, data, epochs=60, lr=0.05, batch_size=rows, progress=False)
    values.append(pv.elbo(program, data).sum().item())
    assert values[1] > values[0] + 3
    with program.running(), torch.no_grad():
        stock = TraceEnum_ELBO(max_plate_nesting=nesting).loss(model, guide, *args)
    assert values[1] == pytest.approx(-stock, rel=1e-5)
    codes = pv.encode(program, data)
    first = codes if name == "mixture" else codes["x_0"]
    torch.testing.assert_close(first.sum(-1), torch.ones(rows), rtol=0, atol=1e-4)
    if name == "mixture":
        near = torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 3)
        torch.testing.assert_close(codes, near, rtol=0, atol=0.05)


def test_a_minibatch_of_a_mixture_counts_as_pyro_counts_it():
    """The globals' prior once, the rows N/B times: as data that repeat the batch."""
    data = torch.randn(12) * 5
    guide = AutoDelta(pyro.poutine.block(published_mixture, expose=["weights", "scale", "locs"]))
    program = pv.Program(published_mixture, guide)
    pv.elbo(program, data)
    with program.running(), torch.no_grad():
        ours = pv.ELBO().per_datum(program.joint(data[:4], size=12)).item() * 12
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        stock = elbo.loss(published_mixture, guide, data[:4].repeat(3))
    assert ours == pytest.approx(stock, rel=1e-5)
