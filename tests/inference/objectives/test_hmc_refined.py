"""Training at HMC-refined draws: Fisher's identity against quadrature, the rest to the last digit.

Statistical checks ask |z| < 5 of each coordinate of a mean of R = 3000 independent gradients with
fixed seeds: a correct estimator fails a case of 20 coordinates with probability 1.1e-5.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimators import Toy, gauss_hermite, gradient, largest_z, leaves, normal, replicate
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.hmc_refined import HMCRefined
from pyro_vae.program.handlers import validation

ROWS = 3000
X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
TOYS = {
    "one layer": Toy(False, (2,)),
    "top-down": Toy(False, (1, 1)),
    "bottom-up": Toy(False, (1, 1), "bottom_up"),
}
toys = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)


class Positive:
    """z ~ LogNormal(m, 1), x ~ N(t z, 1), q LogNormal; the interface of a ``Toy``."""

    def params(self, seed: int) -> dict[str, Tensor]:
        values = {"p_m": 0.2, "p_t": 0.8, "q_m": 0.5, "q_s": -0.9}
        return {name: torch.tensor([v], dtype=torch.float64) for name, v in values.items()}

    def program(self, params):
        # One coordinate per row: parameters are (B, 1) when replicated, (1,) when not.
        p = {name: value.squeeze(-1) for name, value in params.items()}

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.LogNormal(p["p_m"], torch.ones_like(p["p_m"])))
                pyro.sample("x", dist.Normal(p["p_t"] * z, 1.0), obs=x[..., 0])

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.LogNormal(p["q_m"], p["q_s"].exp()))

        return model, guide

    def evidence(self, params, x):
        noise, log_mass = gauss_hermite(1, 120)
        z = (params["p_m"] + noise).exp()
        return (normal(x[:1], params["p_t"] * z) + log_mass).logsumexp(0)


def gradients(objective, toy, copies, rows=ROWS, beta=None):
    """Return minus the loss of R equal rows, and its gradients times R."""
    program = pv.Program(*toy.program(copies))
    data = X.expand(rows, 3)
    program.read(data)
    loss = objective.updates(program)[0].loss(program.joint(data, beta=beta))
    (-loss * rows).backward()
    return -loss.item(), {name: p.grad for name, p in copies.items() if p.grad is not None}


def of_model(grads):
    return {name: grad for name, grad in grads.items() if name.startswith("p_")}


def by_row(grads):
    return {name: grad.flatten(1) for name, grad in of_model(grads).items()}


# -- the two gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("toy", [*TOYS.values(), Positive()], ids=[*TOYS, "positive"])
def test_the_model_follows_the_likelihood(toy):
    """Fisher: E[grad log p(x, z)] under the posterior is grad log p(x); T = 0 is far from it."""
    torch.manual_seed(0)
    params = leaves(toy.params(3))
    exact = of_model(gradient(toy.evidence(params, X), params))
    _, refined = gradients(HMCRefined(25), toy, replicate(params, ROWS))
    assert largest_z(by_row(refined), exact) < 5
    _, start = gradients(HMCRefined(0), toy, replicate(params, ROWS))
    assert largest_z(by_row(start), exact) > 10


@toys
@pytest.mark.parametrize("beta", [None, 0.3])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_guide_follows_the_elbo(toy, beta, particles):
    """At equal noise, whatever the chains do; without a transition the model does too."""
    params = toy.params(1)
    found = []
    for objective in (
        pv.ELBO(particles),
        HMCRefined(0, num_particles=particles),
        HMCRefined(2, num_particles=particles),
    ):
        torch.manual_seed(5)
        found.append(gradients(objective, toy, leaves(params), rows=7, beta=beta))
    (value, elbo), (value_0, none), (value_2, some) = found
    assert value_0 == pytest.approx(value, rel=1e-12)
    assert value_2 == pytest.approx(value, rel=1e-12)
    for name, expected in elbo.items():
        torch.testing.assert_close(none[name], expected, rtol=1e-10, atol=1e-10)
        if name.startswith("q_"):
            torch.testing.assert_close(some[name], expected, rtol=1e-10, atol=1e-10)
        else:
            assert not torch.allclose(some[name], expected)


def test_a_parameter_of_both_sides_receives_both_gradients():
    toy = Toy(False, (2,))
    params = toy.params(1)

    def tied(copies):
        # The decoder's weight is the encoder's, transposed: one tensor on two paths.
        return {**copies, "p_x_z1": copies["q_z1_x"].mT}

    found = []
    for objective, both in ((pv.ELBO(), True), (HMCRefined(0), True), (HMCRefined(0), False)):
        torch.manual_seed(5)
        copies = replicate(params, 4)
        program = pv.Program(*toy.program(tied(copies) if both else copies))
        x = X.expand(4, 3)
        program.read(x)
        joint = program.joint(x)
        objective.updates(program)[0].loss(joint).backward()
        found.append(copies["q_z1_x"].grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found[2], found[0])


def test_persistent_chains_reach_the_posterior_in_single_transitions():
    """With the weights at rest, 25 calls of T = 1 are one chain of 25; from the guide they are not.

    The row number reaches model and guide, which do not use it.
    """
    toy = Toy(False, (2,))
    params = leaves(toy.params(3))
    exact = of_model(gradient(toy.evidence(params, X), params))
    for persistent, reaches in ((ROWS, True), (0, False)):
        torch.manual_seed(0)
        copies = replicate(params, ROWS)
        model, guide = toy.program(copies)

        def with_row(function):
            return lambda x, row: function(x)

        program = pv.Program(with_row(model), with_row(guide))
        batch = {"x": X.expand(ROWS, 3), "row": torch.arange(ROWS)}
        program.read(batch)
        objective = HMCRefined(1, persistent=persistent)
        loss_of = objective.updates(program)[0].loss
        for _ in range(25):
            loss = loss_of(program.joint(batch))
        (-loss * ROWS).backward()
        z = largest_z({name: copies[name].grad.flatten(1) for name in exact}, exact)
        assert z < 5 if reaches else z > 5


def test_persistent_chains_belong_to_their_row():
    vae = pv.models.VAE(3, 2, hidden=(4,)).double()
    program = pv.Program(lambda x, row: vae.model(x), lambda x, row: vae.guide(x))
    batch = {"x": X.expand(2, 3), "row": torch.tensor([4, 1])}
    program.read(batch)
    objective = HMCRefined(2, persistent=6, num_particles=3)
    loss_of = objective.updates(program)[0].loss
    with program.running():
        loss_of(program.joint(batch))
        assert objective.started.nonzero().flatten().tolist() == [1, 4]
        first = objective.chains.clone()
        assert (first[:, [0, 2, 3, 5]] == 0).all() and (first[:, [1, 4]] != 0).all()
        loss_of(program.joint({**batch, "row": torch.tensor([0, 4])}))
    assert torch.equal(objective.chains[:, 1], first[:, 1])
    assert not torch.equal(objective.chains[:, 4], first[:, 4])


class Located(torch.nn.Module):
    """x_n ~ N(z_n, 0.01²): the posterior of a row is at its x, which the guide does not know."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x, row):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x * 0, 100.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.shift, 0.01).to_event(1), obs=x)

    def guide(self, x, row):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * 0 - 5.0, 0.01).to_event(1))


def test_a_chain_goes_on_where_its_own_row_ended():
    """Rows out of order: each chain is written to its row, and read from it by another batch."""
    x = 10.0 * torch.arange(1, 7, dtype=torch.float64)[:, None]
    program = pv.Program.of(Located())

    def batch(*rows):
        return {"x": x[list(rows)], "row": torch.tensor(rows)}

    program.read(batch(5, 2, 4))
    objective = HMCRefined(
        1, num_leapfrog=1, step_size=1e-9, target_accept=None, use_mass=False, persistent=6
    )
    loss_of = objective.updates(program)[0].loss
    objective.chains.copy_(x + 0.001)  # where a long run would have left them
    objective.started[[5, 2, 0]] = True
    with program.running():
        loss_of(program.joint(batch(5, 2, 4)))  # row 4 has no chain yet: it starts at the guide
        expected = x.clone() + 0.001
        expected[4] = -5.0
        torch.testing.assert_close(objective.chains[0], expected, rtol=0, atol=0.05)
        assert objective.started.tolist() == [True, False, True, False, True, True]
        loss_of(program.joint(batch(0, 4, 5)))
    torch.testing.assert_close(objective.chains[0], expected, rtol=0, atol=0.05)


# -- chains and modes ----------------------------------------------------------------------------


class Noisy(nn.Module):
    """A decoder with batch norm and dropout: its density is one only in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vae = pv.models.VAE(
            4,
            2,
            decoder=pv.conditionals.Bernoulli(pv.nn.MLP(2, 4, (16,), dropout=0.5, batch_norm=True)),
        )

    def model(self, x):
        return self.vae.model(x)

    def guide(self, x):
        return self.vae.guide(x)


def test_chains_run_in_eval_mode_and_gradients_in_train_mode():
    """Tiny steps are all accepted, on one density; the guide's gradient sees the dropout."""
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]).double().repeat(4, 1)
    found = {}
    for name, objective in {
        "elbo": pv.ELBO(),
        "refined": HMCRefined(3, step_size=1e-4, target_accept=None),
    }.items():
        program = pv.Program.of(Noisy().double())
        program.read(x)
        program.train()
        torch.manual_seed(1)
        update = objective.updates(program)[0]
        with program.running():
            update.loss(program.joint(x)).backward()
        assert all(part.training for part in program.modules())
        found[name] = [p.grad for n, p in program.named_parameters() if ".encoder." in n]
    assert objective.acceptance.item() > 0.999
    for refined, elbo in zip(found["refined"], found["elbo"], strict=True):
        torch.testing.assert_close(refined, elbo, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("use_mass", [True, False])
def test_the_step_size_follows_the_target(use_mass):
    """Guide scales of 1/100: without the mass the step size must be as small as they are."""
    precision = torch.tensor([1.0, 1e-2], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(precision), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, precision).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * 0.9, precision).to_event(1))

    torch.manual_seed(0)
    x = torch.randn(200, 2, dtype=torch.float64)
    program = pv.Program(model, guide)
    program.read(x)
    first = 1.0 if use_mass else 0.05
    objective = HMCRefined(1, step_size=first, target_accept=0.7, use_mass=use_mass).double()
    loss_of = objective.updates(program)[0].loss
    seen = []
    for _ in range(100):
        loss_of(program.joint(x))
        seen.append(objective.acceptance.item())
    assert sum(seen[-30:]) / 30 == pytest.approx(0.7, abs=0.06)
    step = objective.log_step_size.exp().item()
    assert step > 0.3 if use_mass else step < 0.03


def compiled(objective, program, x, mode, calls=3):
    loss = pv.CompiledLoss(
        objective.updates(program)[0].loss, program, objective=objective, mode=mode
    )
    values = []
    for call in range(calls):
        torch.manual_seed(call)
        program.zero_grad()
        with program.running():
            value = loss(x)
            value.backward()
        values.append((value.detach(), [p.grad.clone() for p in program.parameters()]))
    return values


def small_vae(dtype=torch.float64):
    torch.manual_seed(0)
    program = pv.Program.of(pv.models.VAE(6, 2, hidden=(8,)).to(dtype))
    x = torch.bernoulli(torch.full((5, 6), 0.5)).to(dtype)
    program.read(x)
    return program, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_traced_equals_eager(dtype):
    program, x = small_vae(dtype)
    objectives = [HMCRefined(2, num_leapfrog=1), HMCRefined(2, num_leapfrog=1)]
    traced = compiled(objectives[0], program, x, "trace")
    loss_of = objectives[1].updates(program)[0].loss
    for call, (value, grads) in enumerate(traced):
        torch.manual_seed(call)
        program.zero_grad()
        with program.running():
            loss = loss_of(program.joint(x))
            loss.backward()
        torch.testing.assert_close(value, loss.detach())
        for grad, parameter in zip(grads, program.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad)
    for name in ("log_step_size", "acceptance"):
        traced_state, eager = (getattr(o, name) for o in objectives)
        torch.testing.assert_close(traced_state, eager)
        assert traced_state.dtype == dtype


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on loading Inductor
def test_the_compiled_graph_moves_the_step_size():
    program, x = small_vae(torch.float32)
    objective = HMCRefined(1, num_leapfrog=1, target_accept=0.8)
    compiled(objective, program, x, True, calls=2)
    moved = objective.log_step_size.item() - math.log(0.3)
    assert 0 < moved <= 2 * 0.05 * 0.2 + 1e-6  # all but accepted: towards larger steps, twice
    assert 0.8 < objective.acceptance.item() <= 1


@pytest.mark.parametrize("persistent", [0, 20])
def test_resumed_training_is_bit_identical(persistent, tmp_path):
    """Step size and chains are in the checkpoint."""
    x = (torch.arange(120) * 7 % 11 > 4).float().reshape(20, 6)
    weights, state = [], []
    for name, stops in {"whole": (4,), "halves": (2, 4)}.items():
        for epochs in stops:
            torch.manual_seed(1)
            vae = pv.models.VAE(6, 2, hidden=(8,))
            rows = pv.Program(lambda x, row, v=vae: v.model(x), lambda x, row, v=vae: v.guide(x))
            objective = HMCRefined(2, persistent=persistent)
            settings = {"epochs": epochs, "batch_size": 5, "progress": False, "resume": True}
            data = {"x": x, "row": torch.arange(20)}
            pv.fit(rows, data, objective=objective, out=tmp_path / name, **settings)
        weights.append(torch.cat([p.flatten() for p in vae.parameters()]))
        state.append(torch.cat([b.flatten().float() for b in objective.buffers()]))
    assert torch.equal(*weights)
    assert torch.equal(*state)


def test_without_gradients_it_is_the_elbo_and_moves_nothing():
    program, x = small_vae()
    objective = HMCRefined(2)
    update = objective.updates(program)[0]
    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    values = []
    for loss_of in (update.loss, pv.ELBO().per_datum):
        torch.manual_seed(3)
        with torch.no_grad(), program.running():
            values.append(loss_of(program.joint(x)))
    torch.testing.assert_close(*values, rtol=1e-12, atol=0.0)
    assert all(torch.equal(before[name], buffer) for name, buffer in objective.named_buffers())


def test_runs_on_meta():
    vae = pv.models.VAE(6, 2, hidden=(8,)).to("meta")
    program = pv.Program(lambda x, row: vae.model(x), lambda x, row: vae.guide(x))
    batch = {"x": torch.zeros(4, 6, device="meta"), "row": torch.arange(4, device="meta")}
    program.read(batch)
    objective = HMCRefined(2, persistent=4, num_particles=3).to("meta")
    update = objective.updates(program)[0]
    with program.running(), validation(False):
        loss = update.loss(program.joint(batch, beta=0.5))
    loss.backward()
    assert loss.device.type == "meta" and all(p.grad is not None for p in vae.parameters())


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": -1},
        {"steps": 1.5},
        {"num_leapfrog": 0},
        {"step_size": 0.0},
        {"step_size": math.nan},
        {"target_accept": 1.0},
        {"num_particles": 0},
        {"persistent": True},
        {"persistent": -3},
    ],
    ids=str,
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HMCRefined(**settings)


def _latent(prior, posterior, *, outside=False):
    def model(x):
        if outside:
            pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        if outside:
            pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior())

    return pv.Program(model, guide)


def half():
    return torch.tensor(0.5)


class Unpathed(dist.Normal):
    """A normal law that hides its reparametrised sampler."""

    has_rsample = False


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            lambda: _latent(
                lambda: dist.Normal(half(), 1), lambda: dist.Normal(half(), 1), outside=True
            ),
            "'w' is global",
        ),
        (
            lambda: _latent(lambda: dist.Bernoulli(half()), lambda: dist.Bernoulli(half())),
            "'z' is discrete",
        ),
        (
            lambda: _latent(lambda: dist.Normal(half(), 1), lambda: Unpathed(half(), half())),
            "no reparametrised sampler",
        ),
    ],
    ids=["global", "discrete", "no path"],
)
def test_programs_that_it_cannot_train(program, message):
    program, x = program(), torch.zeros(3)
    program.read(x)
    with pytest.raises(ProgramError, match=message):
        HMCRefined(1).updates(program)[0].loss(program.joint(x))


def test_persistent_chains_need_the_row_number():
    program, _ = small_vae()
    with pytest.raises(ProgramError, match=r"argument 'row'.*pv\.Program"):
        HMCRefined(1, persistent=5).updates(program)
