"""Runs with a critic: graphs, resuming, meta, broken critics; and guides without a density."""

import functools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_table import Scores
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import IsotropicGaussian, NoiseFed
from pyro_vae.errors import ConfigError, ProgramError, TrainingDiverged
from pyro_vae.program.handlers import validation

X = torch.rand(20, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
FEW = functools.partial(NoiseFed, noise_dim=2, features=3, hidden=(3,))


OBJECTIVES = {
    "AVB": lambda: pv.AVB(pv.nn.Critic(2, 4, (5,), spectral_norm=True), moments=3, critic_steps=2),
    "AAE": lambda: pv.AAE(pv.nn.Critic(2, hidden=(5,))),
    "WAE": lambda: pv.WAE(),
    "VAEGAN": lambda: pv.VAEGAN(Scores(), gamma=0.1, margin=0.02),
    "LatentAutoencoder": lambda: pv.LatentAutoencoder(Scores(), start=3),
}
every = pytest.mark.parametrize("name", OBJECTIVES)


def build(name):
    """Return a small program and an objective, from one seed."""
    torch.manual_seed(0)
    posterior = FEW if name == "AVB" else pv.conditionals.Gaussian
    vae = pv.models.VAE(4, 2, (3,), posterior=posterior, observation=IsotropicGaussian)
    return vae.double(), OBJECTIVES[name]()


def state(*things):
    modules = [thing for thing in things if isinstance(thing, nn.Module)]
    return {f"{i}.{k}": v.clone() for i, m in enumerate(modules) for k, v in m.state_dict().items()}


def trained(name, **settings):
    vae, objective = build(name)
    run = pv.fit(vae, X, objective=objective, batch_size=10, progress=False, **settings)
    return state(vae, objective), run, vae


def equal(one, two):
    return one.keys() == two.keys() and all(
        torch.equal(one[k].nan_to_num(), two[k].nan_to_num()) for k in one
    )


@every
def test_a_graph_takes_the_same_steps(name):
    eager, run, _ = trained(name, epochs=2, compile=False)
    graph, other, _ = trained(name, epochs=2, compile="trace")
    assert other.compiled == "graph"
    assert equal(eager, graph)
    assert run.history.keys() == other.history.keys()


@every
def test_a_resumed_run_is_bit_identical(name, tmp_path):
    options = {"compile": False, "clip_norm": 5.0, "lr": 0.01}
    whole, run, _ = trained(name, epochs=4, **options)
    for epochs in (2, 4):
        halves, again, vae = trained(name, epochs=epochs, out=tmp_path, resume=True, **options)
    assert equal(whole, halves)
    for key in run.history.keys() - {"seconds"}:
        torch.testing.assert_close(
            torch.tensor(run.history[key]), torch.tensor(again.history[key]), rtol=0, atol=0,
            equal_nan=True,
        )  # fmt: skip
    assert equal(state(vae), state(pv.load(tmp_path)))


@every
def test_runs_on_meta(name):
    vae, objective = build(name)
    program = pv.Program.of(vae.to("meta"))
    batch = torch.zeros(5, 4, dtype=torch.float64, device="meta")
    program.read(batch)
    for update in objective.updates(program):
        with program.running(), validation(False):
            loss = update.loss(program.joint(batch))
        assert loss.device.type == "meta" and loss.dim() == 0
        torch.autograd.grad(loss, update.parameters, allow_unused=True)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "WAE"])
def test_a_broken_critic_harms_no_net(name):
    vae, objective = build(name)
    parameter = list(objective.critic.parameters())[-1]
    with torch.no_grad():
        parameter[0] = math.nan
    if name == "LatentAutoencoder":
        objective.start = 0
    before = state(vae, objective.critic)
    with pytest.raises(TrainingDiverged, match=r"critic is nan.*at parameter '.*' of the critic"):
        pv.fit(vae, X, objective=objective, epochs=1, progress=False, compile=False)
    assert equal(before, state(vae, objective.critic))


def test_a_critic_that_has_won_is_told_of_once():
    vae, _ = build("AAE")

    class Certain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(60.0))

        def forward(self, z):
            return self.gain * (z[:, 0] - 8).clamp(-1, 1)

    with torch.no_grad():
        vae.encoder.net.output.bias[0] += 20
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pv.fit(vae, X, objective=pv.AAE(Certain()), epochs=3, lr=1e-6, progress=False)
    (said,) = [str(each.message) for each in told if "has won" in str(each.message)]
    assert said.startswith("AAE: the critic has won") and "critic_optimizer" in said


def test_the_last_weights_of_a_game_are_kept():
    """Whatever a critic that moves says of the epochs; a guide without a density has no ELBO."""
    for name in ("AVB", "VAEGAN"):
        seen = []
        _, run, vae = trained(
            name,
            epochs=3,
            valid=X[:8],
            compile=False,
            callbacks=[lambda r, seen=seen: seen.append(state(r.program))],
        )
        assert run.best_epoch == 3 and equal(seen[-1], state(vae))
        assert run.history.keys() >= {"critic", "loss"}
        assert ("valid_objective" in run.history) == (name == "AVB")
        assert ("valid_elbo" in run.history) == (name != "AVB")
    with pytest.raises(ConfigError, match="patience: AVB plays against a critic"):
        trained("AVB", epochs=1, valid=X[:8], patience=2)


def test_mean_losses_are_over_the_batches_of_an_update():
    """A critic that is held back is no part of its own mean, nor is another's loss."""
    vae, objective = build("VAEGAN")
    objective.margin = 0.0  # neither is due but where the costs are both .68: both, then
    run = pv.fit(vae, X, objective=objective, epochs=1, batch_size=20, progress=False)
    assert run.history["critic"][0] == pytest.approx(math.log(4), abs=0.3)


# -- guides without a density --------------------------------------------------------------------


@pytest.fixture(scope="module")
def implicit():
    torch.manual_seed(0)
    return pv.models.VAE(4, 2, (3,), posterior=FEW, observation=IsotropicGaussian).double()


ASKED = {
    "elbo": lambda vae: pv.elbo(vae, X),
    "log_likelihood": lambda vae: pv.log_likelihood(vae, X, num_particles=5),
    "diagnose": lambda vae: pv.diagnose(vae, X, probes=3),
    "log_prob": lambda vae: pv.infer(vae, X).log_prob({"z": torch.zeros(1, 20, 2)}),
    "fit": lambda vae: pv.fit(vae, X, epochs=1, progress=False),
    "IWAE": lambda vae: pv.fit(vae, X, objective=pv.IWAE(2), epochs=1, progress=False),
}


@pytest.mark.parametrize("verb", ASKED)
def test_what_needs_the_density_names_the_site_and_the_ways_out(verb, implicit):
    with pytest.raises(ProgramError, match=r"site 'z'.*no density.*pv.AVB.*pv.ais.*pv.refine"):
        ASKED[verb](implicit)


def test_ais_cannot_leave_from_a_guide_without_a_density(implicit):
    short = pv.AIS(num_temperatures=2, chains=2, pilot=2, num_leapfrog=1, start="guide")
    with pytest.raises(ProgramError, match=r"site 'z': implicit in the guide.*start from"):
        pv.ais(implicit, X[:2], short)


def test_what_needs_draws_alone_answers(implicit):
    assert pv.encode(implicit, X).shape == (20, 2)
    assert pv.reconstruct(implicit, X).shape == (20, 4)
    assert pv.generate(implicit, 3).shape == (3, 4)
    settings = pv.HMC(num_draws=3, warmup=3, chains=2, num_leapfrog=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few draws have not mixed
        refined = pv.refine(implicit, X[:2], settings, compile=False)
    assert refined.samples["z"].shape == (2, 3, 2, 2)


def test_likelihoods_of_an_implicit_guide_are_right():
    """x = z + e: log N(x; 0, 2) by AIS from the prior, and by a proposal fitted to HMC draws."""
    x = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            noise = dist.Normal(torch.zeros_like(x), 1.0).to_event(1)
            pyro.sample("z", pv.distributions.Implicit(noise, lambda e: x / 2 + e.tanh(), (1,)))

    program = pv.Program(model, guide)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).squeeze(-1)
    torch.manual_seed(0)
    annealed = pv.ais(program, x, pv.AIS(num_temperatures=30, chains=60, num_leapfrog=2, pilot=30))
    fitted = pv.fitted_log_likelihood(
        program, x, num_particles=2000, warmup=40, num_draws=60, num_leapfrog=2
    )
    for found in (annealed, fitted):
        assert ((found.log_prob - exact).abs() < 5 * found.noise + 1e-3).all()


def test_an_implicit_distribution_draws_and_expands():
    noise = dist.Normal(torch.zeros(5, 3), 1.0).to_event(1)
    pushed = pv.distributions.Implicit(noise, lambda e: e.sum(-1, keepdim=True), (1,))
    assert pushed.batch_shape == (5,) and pushed.event_shape == (1,) and pushed.has_rsample
    draws = pushed.expand((4000, 5)).sample()
    assert draws.shape == (4000, 5, 1)
    assert (draws.var(0) - 3).abs().max() < 5 * 3 * (2 / 4000) ** 0.5
    with pytest.raises(ProgramError, match="no density"):
        pushed.log_prob(torch.zeros(5, 1))
    with pytest.raises(ConfigError, match="noise: got Bernoulli"):
        pv.distributions.Implicit(dist.Bernoulli(torch.ones(2)), torch.neg, ())


# -- refusals ------------------------------------------------------------------------------------


def globals_():
    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w.expand(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], pyro.param("s", torch.ones(()).double())))

    return pv.Program(model, guide)


@every
def test_a_global_latent_is_refused(name):
    with pytest.raises(ProgramError, match=f"{name}: site 'w' is global"):
        pv.fit(globals_(), X, objective=OBJECTIVES[name](), epochs=1, progress=False)


def test_bits_a_lack_of_a_prior_and_several_weights_are_refused():
    bits = pv.models.SBN(4, (2,))
    with pytest.raises(ProgramError, match="AAE: site 'z1' has no reparametrised sampler"):
        pv.fit(bits, X.round(), objective=OBJECTIVES["AAE"](), epochs=1, progress=False)
    with pytest.raises(ProgramError, match="no prior to sample from"):
        pv.fit(pv.models.Autoencoder(4, 2), X, objective=pv.WAE(), epochs=1, progress=False)
    two = pv.models.HierarchicalVAE(4, (2, 2), (3, 3), batch_norm=False).double()
    with pytest.raises(ProgramError, match="takes one beta for them"):
        pv.fit(two, X.round(), objective=pv.WAE(), epochs=1, beta={"z1": 0.5}, progress=False)


def test_bad_settings_are_refused():
    for make in (
        lambda: pv.AVB(pv.nn.Critic(2, 4), moments=1),
        lambda: pv.AVB(pv.nn.Critic(2, 4), contrast="none"),
        lambda: pv.AAE(nn.Identity(), weight=0.0),
        lambda: pv.WAE(-1.0),
        lambda: pv.VAEGAN(nn.Identity(), gamma=2.0),
        lambda: pv.LatentAutoencoder(nn.Identity(), start=-1),
        lambda: pv.nn.ConvCritic((1, 4, 4), (2, 2, 2)),
    ):
        with pytest.raises(ConfigError):
            make()
