"""Objectives against collapse: free bits and a target below and above it, a lagging encoder."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import CASES
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.lagging import encoder_parameters


class Offset(nn.Module):
    """q = N(m, 1) against N(0, 1): KL = m² / 2, and log q - log p at a draw has no noise but z."""

    def __init__(self, mean):
        super().__init__()
        self.mean = nn.Parameter(torch.full((1,), float(mean), dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(x.new_zeros(1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc = self.mean.expand(len(x), 1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


X = torch.zeros(50_000, 1, dtype=torch.float64)


def gradient(objective, mean):
    program = pv.Program.of(Offset(mean))
    torch.manual_seed(0)
    with program.running():
        loss = objective.per_datum(program.joint(X))
    (parameter,) = program.parameters()
    (found,) = torch.autograd.grad(loss, [parameter], allow_unused=True)
    return loss.item(), 0.0 if found is None else found.item()


def test_free_bits_have_no_gradient_below_the_floor_and_that_of_the_elbo_above():
    assert gradient(pv.FreeBits(1.0), 0.5)[1] == 0.0
    assert gradient(pv.FreeBits(1.0), 3.0) == gradient(pv.ELBO(), 3.0)


def test_a_target_pushes_from_both_sides():
    (elbo, slope), (above, down) = gradient(pv.ELBO(), 3.0), gradient(pv.TargetKL(1.0), 3.0)
    assert down == slope and above == pytest.approx(elbo - 1.0, rel=1e-12)
    (elbo, slope), (below, up) = gradient(pv.ELBO(), 0.5), gradient(pv.TargetKL(1.0), 0.5)
    assert up == -slope and slope > 0
    constant = 0.5 * math.log(2 * math.pi)
    assert below - constant == pytest.approx(1.0 - (elbo - constant), rel=1e-9)
    assert gradient(pv.TargetKL(1.0, weight=3.0), 3.0)[1] == pytest.approx(3 * down, rel=1e-12)


def test_training_reaches_the_target_from_a_collapsed_start():
    torch.manual_seed(0)
    case = CASES["vae"]
    program, x = case.build(), case.data(100)
    pv.fit(
        program, x, objective=pv.TargetKL(2.0), epochs=60, batch_size=50, lr=0.01, progress=False
    )
    assert pv.diagnose(program, x, num_particles=50).kl["z"] == pytest.approx(2.0, abs=0.4)


@pytest.mark.parametrize("options", [{"nats": -1.0}, {"nats": 1.0, "weight": 0.0}])
def test_a_target_out_of_range(options):
    with pytest.raises(ConfigError):
        pv.TargetKL(**options)


def test_a_target_of_no_latent_is_told():
    program = pv.models.SentenceLM(6, embedding=2, hidden=4)
    with pytest.raises(ProgramError, match="TargetKL: the program has no latent"):
        pv.fit(program, torch.tensor([[4, 3]]), objective=pv.TargetKL(1.0), epochs=1, compile=False)


def named(program):
    found = {id(p) for p in encoder_parameters(program)}
    return {name for name, p in program.named_parameters() if id(p) in found}


def test_the_encoder_is_what_the_model_does_without():
    wrapped = pv.Program.of(CASES["functions"].build())
    wrapped.read(CASES["functions"].data(3))
    assert named(wrapped) == {"values.gain", "values.spread"}
    ladder = pv.Program.of(CASES["ladder"].build())  # its guide uses the model's priors too
    assert all(".up." in name or ".heads." in name for name in named(ladder)) and named(ladder)


def trained(seed=0, epochs=3, **options):
    torch.manual_seed(0)
    case = CASES["vae"]
    program, x = case.build(), case.data(60)
    objective = pv.Lagging(x, inner=3)
    pv.fit(program, x, objective=objective, epochs=epochs, batch_size=10, progress=False, seed=seed,
           **options)  # fmt: skip
    return program, objective


def test_the_decoder_waits_while_the_encoder_trains_ahead(monkeypatch):
    """6 batches an epoch, 3 inner steps: 24 batches are 6 steps of the decoder."""
    monkeypatch.setattr(pv.Lagging, "after_epoch", lambda self, run: None)
    moves = []
    case = CASES["vae"]
    program = case.build()
    last = {"decoder": program.decoder.net.output.bias.detach().clone(), "encoder": None}

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            moves.append(sum(len(group["params"]) for group in self.param_groups))
            return super().step(closure)

    x = case.data(60)
    pv.fit(program, x, objective=pv.Lagging(x, inner=3), epochs=4, batch_size=10, progress=False,
           optimizer=lambda p: Spy(p, lr=0.01))  # fmt: skip
    assert moves == [4, 4, 4, 8] * 6
    assert not torch.equal(last["decoder"], program.decoder.net.output.bias)


def test_the_turns_of_several_processes_go_on_after_a_resume():
    """They save the mean of their equal counts: the shares of 20 rows in three are not quite 1."""
    program, objective = trained(epochs=1)
    encoder, _ = objective.updates(pv.Program.of(program))
    count = 7 * (6 / 20 + 7 / 20 + 7 / 20)
    assert count < 7
    objective.load_state_dict({"state": torch.tensor([0.0, count], dtype=torch.float64)})
    assert [encoder.due() for _ in range(5)] == [False, True, True, True, False]


def test_the_head_start_ends_when_information_falls(monkeypatch):
    values = iter([1.0, 2.0, 1.5])

    class Told:
        def __init__(self, lower):
            self.lower, self.stderr = lower, 0.1

    monkeypatch.setattr(
        "pyro_vae.inference.objectives.lagging.information", lambda *a, **k: Told(next(values))
    )
    _, objective = trained(epochs=2)
    assert objective.aggressive and objective.state.tolist() == [2.0, 12.0]
    values = iter([1.0, 2.0, 1.5])
    _, objective = trained(epochs=5)  # asked three times, never again
    assert not objective.aggressive and objective.state[1] == 30


@pytest.mark.parametrize("compile", [False, "trace"])
def test_a_lagging_run_goes_on_where_it_was_stopped(tmp_path, compile):
    whole, _ = trained(epochs=4, compile=compile, out=tmp_path / "a")
    trained(epochs=2, compile=compile, out=tmp_path / "b")
    parts, objective = trained(epochs=4, compile=compile, out=tmp_path / "b", resume=True)
    assert objective.state[1] == 24
    for key, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[key])


def test_lagging_refuses_what_it_cannot_do():
    x = CASES["vae"].data(8)
    with pytest.raises(ConfigError, match="expected an instance of TermsObjective"):
        pv.Lagging(x, objective=object())
    with pytest.raises(ConfigError, match="inner"):
        pv.Lagging(x, inner=0)

    class Fixed(Offset):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.mean, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    program = pv.Program.of(Fixed(0.0))
    program.read(X[:4])
    with pytest.raises(ProgramError, match="no parameter of its own"):
        pv.Lagging(X[:4]).updates(program)


@pytest.mark.parametrize("seed", range(6))
def test_a_dead_code_does_not_end_the_head_start(seed):
    """Its information is 0 up to noise: less than before says nothing."""
    torch.manual_seed(seed)
    objective = pv.Lagging(torch.zeros(600, 1, dtype=torch.float64))
    pv.fit(Offset(0.0), X[:600], objective=objective, epochs=4, lr=1e-9, progress=False)
    assert objective.aggressive


def test_each_training_has_a_head_start_of_its_own():
    program, x = CASES["vae"].build(), CASES["vae"].data(60)
    objective = pv.Lagging(x)
    objective.state[0] = math.inf
    pv.fit(program, x, objective=objective, epochs=1, progress=False)
    assert objective.aggressive


def test_a_target_is_no_bound_and_is_not_called_one():
    program, x = CASES["vae"].build(), CASES["vae"].data(60)
    run = pv.fit(program, x, valid=x, objective=pv.TargetKL(4.0), epochs=2, progress=False)
    assert "valid_bound" not in run.history and len(run.history["valid_objective"]) == 2
    assert run.best_epoch == 1 + run.history["valid_objective"].argmax()


@pytest.mark.parametrize(
    ("nats", "per", "says"),
    [
        ({"zz": 1.0}, "unit", "no latent is called 'zz'"),
        (1.0, {"zz": torch.tensor([0])}, "no latent is called 'zz'"),
        (1.0, {"z": torch.tensor([0, 1])}, r"shape \(2,\), expected .* \(1,\)"),
    ],
)
def test_floors_of_sites_and_groups_that_are_not_there(nats, per, says):
    with pytest.raises(ProgramError, match=says):
        gradient(pv.FreeBits(nats, per=per), 1.0)


@pytest.mark.parametrize("nats", [-1.0, math.nan, torch.tensor([1.0, math.nan])])
def test_floors_that_are_none(nats):
    with pytest.raises(ConfigError, match="nats"):
        pv.FreeBits(nats)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: pv.FreeBits({"z": 0.1}), lambda x: pv.FreeBits({"z": 3.0})),
        (
            lambda x: pv.FreeBits(0.1, per={"z": torch.tensor([0, 0])}),
            lambda x: pv.FreeBits(0.1, per={"z": torch.tensor([0, 1])}),
        ),
        (pv.Lagging, lambda x: pv.Lagging(x, objective=pv.IWAE(5))),
    ],
)
def test_a_run_does_not_go_on_with_another_objective(first, second, tmp_path):
    program, x = CASES["vae"].build(), CASES["vae"].data(60)
    options = {"out": tmp_path / "run", "resume": True, "progress": False, "checkpoint_every": 1}
    pv.fit(program, x, objective=first(x), epochs=1, **options)
    with pytest.raises(ConfigError, match="objective"):
        pv.fit(program, x, objective=second(x), epochs=2, **options)


@pytest.mark.parametrize("floor", [0.3, 2.0])
def test_free_bits_of_a_scalar_are_those_of_one_unit(floor):
    x = torch.linspace(-1, 2, 6, dtype=torch.float64)

    def program(events):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0 * x, 1.0).to_event(events))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(events), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.9 * x, 0.5).to_event(events))

        return pv.Program(model, guide)

    losses = []
    for events, data in ((0, x), (1, x[:, None])):
        wrapped = program(events)
        wrapped.read(data)
        torch.manual_seed(1)
        with wrapped.running():
            losses.append(pv.FreeBits(floor).per_datum(wrapped.joint(data)))
    torch.testing.assert_close(losses[0], losses[1])
