"""The moving average of the weights: what it is, who is judged, and that a run goes on with it."""

import functools

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import ConfigError

X = torch.rand(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).round()
SGD = functools.partial(torch.optim.SGD, lr=0.05)


def build():
    torch.manual_seed(0)
    return pv.models.VAE(4, 2, (3,)).double()


def fit(vae, **settings):
    options = {"batch_size": 8, "optimizer": SGD, "progress": False, "compile": False}
    return pv.fit(vae, X, **{**options, "objective": pv.AnalyticELBO(), **settings})


def test_the_average_is_the_one_by_hand_and_training_does_not_see_it():
    """Of the weights after each of six steps; the steps are those without it."""
    steps, plain = [], build()
    average = [p.detach().clone() for p in plain.parameters()]
    fit(plain, epochs=2, batch_size=24, callbacks=[lambda run: steps.append(weights(plain))])
    for count, now in enumerate(steps, 1):
        decay = min(0.6, (1 + count) / (10 + count))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, now, strict=True)]
    seen, averaged = [], build()
    run = fit(
        averaged,
        epochs=2,
        batch_size=24,
        ema=0.6,
        callbacks=[lambda r: seen.append(weights(averaged))],
    )
    for one, two in zip(steps[-1], seen[-1], strict=True):
        assert torch.equal(one, two)
    for one, two in zip(average, averaged.parameters(), strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=1e-12, atol=1e-12)
    assert run.judged == "ema of decay 0.6"
    assert fit(build(), epochs=1).judged == "weights"


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def test_the_average_is_judged_and_its_best_epoch_is_kept():
    vae = build()
    run = fit(vae, epochs=4, ema=0.9, valid=X)
    torch.manual_seed(0)
    best = run.history["valid_elbo"].max()
    rows = torch.stack([pv.elbo(vae, X, num_particles=50).mean() for _ in range(4)]).mean()
    assert rows.item() == pytest.approx(best, abs=0.2)
    assert run.history["elbo"][-1] == pytest.approx(run.history["valid_elbo"][-1], rel=1e-12)


def test_a_resumed_run_keeps_its_average(tmp_path):
    ends = []
    for name, stops in {"whole": (4,), "halves": (2, 4)}.items():
        for epochs in stops:
            vae = build()
            run = fit(vae, epochs=epochs, ema=0.9, out=tmp_path / name, resume=True, valid=X[:9])
        ends.append([*weights(vae), torch.tensor(run.history["valid_elbo"])])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    with pytest.raises(ConfigError, match=r"ema = 0\.9, this run None"):
        fit(build(), epochs=5, out=tmp_path / "whole", resume=True, valid=X[:9])


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match="ema: got"):
        fit(build(), epochs=1, ema=decay)


def test_a_parameter_that_comes_while_judging_leaves_the_trained_weights():
    """The program gets its own weights back, and the newcomer is averaged from then on."""
    ends = []

    def model(vae, x):
        if len(x) == 5:  # the validation rows
            pyro.param("late", torch.zeros((), dtype=torch.float64))
        vae.model(x)

    for valid in (None, X[:5]):
        vae = build()
        pyro.clear_param_store()
        program = pv.Program(functools.partial(model, vae), vae.guide, modules={"vae": vae})
        seen = []
        pv.fit(
            program, X, batch_size=8, epochs=2, ema=0.9, valid=valid, optimizer=SGD,
            objective=pv.AnalyticELBO(), progress=False, compile=False,
            callbacks=[lambda run, vae=vae, seen=seen: seen.append(weights(vae))],
        )  # fmt: skip
        ends.append(seen[-1])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
