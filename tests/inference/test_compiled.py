"""The traced graph gives the numbers of the program: losses, gradients, buffers, noise."""

import warnings

import programs
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from pyro_vae.inference.compiled import CompiledLoss
from pyro_vae.inference.handlers import validation
from pyro_vae.inference.program import Program

# one_hot asks for the largest label: a value decides, so nothing can be traced.
UNTRACEABLE = {"labelled"}
OBJECTIVES = {
    "elbo": lambda: pv.ELBO(),
    "elbo_3": lambda: pv.ELBO(3),
    "analytic": lambda: pv.AnalyticELBO(),
    "iwae": lambda: pv.IWAE(3),
    "renyi": lambda: pv.Renyi(0.5, 3),
    "stl": lambda: pv.STL(2),
    "dreg": lambda: pv.DReG(3),
    "wake_sleep": lambda: pv.ReweightedWakeSleep(3, sleep=0.5),
    "free_bits": lambda: pv.FreeBits(0.1),
}


class Bits(nn.Module):
    """A sigmoid belief net of two layers, for the estimators of discrete latents."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Parameter(torch.zeros(3))
        self.down, self.out = nn.Linear(3, 4), nn.Linear(4, 6)
        self.up, self.upper = nn.Linear(6, 4), nn.Linear(4, 3)

    def model(self, x: torch.Tensor) -> None:
        bits = programs.dist.Bernoulli
        with programs.pyro.plate("data", len(x)):
            h2 = programs.pyro.sample("h2", bits(logits=self.top).to_event(1))
            h1 = programs.pyro.sample("h1", bits(logits=self.down(h2)).to_event(1))
            programs.pyro.sample("x", bits(logits=self.out(h1)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        bits = programs.dist.Bernoulli
        with programs.pyro.plate("data", len(x)):
            h1 = programs.pyro.sample("h1", bits(logits=self.up(x)).to_event(1))
            programs.pyro.sample("h2", bits(logits=self.upper(h1)).to_event(1))


def run(function, program, parameters, seed=3):
    """Return the loss and the gradients at fixed noise."""
    torch.manual_seed(seed)
    with program.running(), validation(False):
        loss = function()
        return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-12)
    for a, b in zip(ours[1], theirs[1], strict=True):
        if a is None or b is None:
            assert all(g is None or not g.any() for g in (a, b))
        else:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def check(program, data, objective, beta):
    """Compare the compiled loss with the eager one at several seeds: noise is drawn anew."""
    program.read(data)  # plain functions have no parameters before they have run
    program.train()
    update = objective.updates(program)[0]
    compiled = CompiledLoss(update.loss, program, objective=objective)
    parameters = [p for p in update.parameters if p.requires_grad]
    losses = set()
    for seed in range(3):
        state = {k: v.clone() for k, v in program.state_dict().items()}

        def eager():
            return update.loss(program.joint(data, beta=beta, size=24))

        expected = run(eager, program, parameters, seed)
        moved = {k: v.clone() for k, v in program.state_dict().items()}
        program.load_state_dict(state)
        got = run(lambda: compiled(data, beta=beta, size=24), program, parameters, seed)
        assert_same(got, expected)
        for name, value in program.state_dict().items():
            assert torch.equal(value, moved[name]), name  # buffers move as they do eagerly
        losses.add(got[0].item())
    assert compiled.num_graphs == 1
    return losses


@pytest.mark.parametrize("beta", [None, 0.3])
@pytest.mark.parametrize("name", sorted(set(programs.CASES) - UNTRACEABLE))
def test_every_program(name, beta):
    case = programs.CASES[name]
    torch.manual_seed(0)
    program = Program.of(case.build()).double()
    data = program.adapt(case.data(12))
    losses = check(program, data, pv.ELBO(), beta)
    assert len(losses) > 1 or name == "autoencoder"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(objective):
    torch.manual_seed(0)
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,))).double()
    check(program, programs.binary(12).double(), OBJECTIVES[objective](), None)


@pytest.mark.parametrize(
    "make",
    [pv.ELBO, lambda: pv.NVIL(nn.Linear(6, 1)).double(), pv.RLOO, pv.VIMCO, pv.DisARM],
    ids=["score", "nvil", "rloo", "vimco", "disarm"],
)
def test_discrete_latents(make):
    torch.manual_seed(0)
    objective = make()
    if isinstance(objective, nn.Module):
        objective.eval()  # its running moments would move between the two runs
    check(Program.of(Bits()).double(), programs.binary(12).double(), objective, None)


def test_one_graph_per_signature_and_none_per_beta():
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,)))
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    x = programs.binary(12)
    with program.running(), validation(False):
        losses = []
        for step in range(100):
            torch.manual_seed(0)
            losses.append(compiled(x, beta=step / 100).item())
        assert compiled.num_graphs == 1
        assert len(set(losses)) == 100  # β is an input, not a constant
        compiled(x[:5], beta=0.5)
        assert compiled.num_graphs == 2
        compiled(x)
        assert compiled.num_graphs == 3  # no weight at all is another graph


def test_a_program_that_branches_on_values_runs_eagerly_with_one_warning():
    case = programs.CASES["labelled"]
    program = Program.of(case.build()).double()
    data = program.adapt(case.data(12))
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    parameters = list(program.parameters())
    with pytest.warns(UserWarning, match=r"cannot be traced.*programs\.py"):
        got = run(lambda: compiled(data), program, parameters)
    assert_same(got, run(lambda: pv.ELBO().per_datum(program.joint(data)), program, parameters))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lambda: compiled(data), program, parameters)
    assert compiled.num_graphs == 0


@pytest.mark.parametrize(
    "objective", [None, pv.IWAE(3), pv.NVIL(nn.Linear(6, 1))], ids=["elbo", "iwae", "nvil"]
)
def test_fit_is_bit_identical_to_the_eager_run(objective):
    histories, weights = [], []
    for mode in (False, "trace"):
        torch.manual_seed(0)
        vae = pv.models.VAE(6, 2, hidden=(8,))
        if isinstance(objective, nn.Module):
            objective.load_state_dict(
                {k: torch.zeros_like(v) + 0.1 for k, v in objective.state_dict().items()}
            )
        run_ = pv.fit(
            vae,
            programs.binary(50),
            valid=programs.binary(20),
            objective=objective,
            epochs=3,
            batch_size=16,
            beta=pv.schedules.linear(0, 1, over=0.5),
            clip_norm=5.0,
            compile=mode,
            progress=False,
            device="cpu",
        )
        histories.append(run_.history["valid_elbo"])
        weights.append([p.detach().clone() for p in vae.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert (histories[0] == histories[1]).all()


def test_dropout_stays_random_and_batch_norm_moves():
    case = programs.CASES["regularised"]
    program = Program.of(case.build()).double()
    data = program.adapt(case.data(12))
    assert len(check(program, data, pv.ELBO(), None)) == 3


def test_an_unknown_mode():
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,)))
    with pytest.raises(ConfigError, match="compile: got 'fast'"):
        CompiledLoss(pv.ELBO().per_datum, program, mode="fast")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_inductor_agrees_with_the_eager_gradient_in_expectation():
    """|z| < 5 for each of the gradient's coordinates over 400 draws (false alarms below 1e-3)."""
    torch.manual_seed(0)
    program = Program.of(pv.models.VAE(6, 2, hidden=(4,))).double()
    x = programs.binary(12).double()
    loss = pv.ELBO().per_datum
    compiled = CompiledLoss(loss, program, mode=True)
    moments = []
    for function in (lambda: loss(program.joint(x)), lambda: compiled(x)):
        draws = []
        for seed in range(400):
            _, grads = run(function, program, list(program.parameters()), seed)
            draws.append(torch.cat([g.flatten() for g in grads]))
        stacked = torch.stack(draws)
        moments.append((stacked.mean(0), stacked.var(0) / len(draws)))
    (a, va), (b, vb) = moments
    z = (a - b) / (va + vb).sqrt().clamp(min=1e-12)
    assert z.abs().max() < 5
