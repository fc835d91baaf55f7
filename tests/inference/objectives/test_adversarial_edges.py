"""Objectives with a critic: what they refuse, and what stands still while they train or judge."""

import functools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_table import Scores
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import IsotropicGaussian
from pyro_vae.errors import ConfigError, DataError, ProgramError, TrainingDiverged
from pyro_vae.inference.objectives.critics_of_data import decoder_parameters
from pyro_vae.program.handlers import validation

D = torch.float64
X = torch.rand(20, 4, generator=torch.Generator().manual_seed(3), dtype=D)


OBJECTIVES = {
    "AVB": lambda: pv.AVB(pv.nn.Critic(2, 4, (5,)), moments=2),
    "AAE": lambda: pv.AAE(pv.nn.Critic(2, hidden=(5,))),
    "WAE": lambda: pv.WAE(),
    "VAEGAN": lambda: pv.VAEGAN(Scores(), gamma=0.1),
    "LatentAutoencoder": lambda: pv.LatentAutoencoder(Scores()),
}
every = pytest.mark.parametrize("name", OBJECTIVES)
of_data = pytest.mark.parametrize("name", ["VAEGAN", "LatentAutoencoder"])


def small():
    torch.manual_seed(0)
    return pv.models.VAE(4, 2, (3,), observation=IsotropicGaussian).double()


def fit(program, objective, x=X, **settings):
    options = {"epochs": 1, "batch_size": 10, "progress": False, "compile": False}
    return pv.fit(program, x, objective=objective, **{**options, **settings})


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


class Linear(nn.Module):
    """x ~ N(W z, 1), and a guide of its own or of the same W; hooks change one part each."""

    def __init__(self, wrong="", observe=None, around=None, plate=None):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 4, dtype=D))
        self.back = nn.Parameter(torch.randn(2, 4, dtype=D))
        self.wrong, self.plate = wrong, plate or (lambda x: pyro.plate("data", len(x)))
        self.observe = observe or (lambda mean: dist.Normal(mean, 1.0).to_event(1))
        self.around = around or poutine.scale(scale=1.0)

    def rows(self, x, chosen):
        return x if chosen is None or len(chosen) == len(x) else x[chosen]

    def model(self, x):
        with self.plate(x) as chosen:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = z @ self.weight
            if self.wrong == "summed out":
                mean = mean + pyro.sample("k", dist.Bernoulli(x.new_tensor(0.4)))[..., None]
            with self.around:
                pyro.sample("x", self.observe(mean), obs=self.rows(x, chosen))

    def guide(self, x):
        with self.plate(x) as chosen:
            mean = self.rows(x, chosen) @ (self.weight if self.wrong == "tied" else self.back).T
            pyro.sample("z", dist.Normal(mean, 0.5).to_event(1))


# -- weights, masks, and means that are none -----------------------------------------------------

HALF = torch.tensor([True, False] * 2)
ODD = {
    "a mask": {"around": poutine.mask(mask=torch.tensor(False))},
    "a weight": {"around": poutine.scale(scale=2.0)},
    "a mask within": {"observe": lambda mean: dist.Normal(mean, 1.0).mask(HALF).to_event(1)},
}


@of_data
@pytest.mark.parametrize("kind", ODD)
def test_critics_of_data_refuse_what_they_would_not_weigh(name, kind):
    with pytest.raises(ProgramError, match="site 'x' stands under a mask or a weight"):
        fit(Linear(**ODD[kind]), OBJECTIVES[name]())


@of_data
def test_critics_of_data_refuse_weights_on_latents(name):
    program = Linear()
    weighed = pv.Program(
        poutine.scale(program.model, 2.0),
        poutine.scale(program.guide, 2.0),
        modules={"program": program},
    )
    with pytest.raises(ProgramError, match=f"{name}: site 'z' stands under a mask or a weight"):
        fit(weighed, OBJECTIVES[name]())


@of_data
@pytest.mark.parametrize(
    ("program", "said"),
    [
        (lambda: Linear("summed out"), "'k' is summed out"),
        (lambda: Linear(observe=lambda m: dist.Cauchy(m, 1.0).to_event(1)), "Cauchy has no mean"),
    ],
)
def test_critics_of_data_want_one_mean(name, program, said):
    with pytest.raises(ProgramError, match=said):
        fit(program(), OBJECTIVES[name]())


def test_vae_gan_refuses_a_parameter_of_both_sides():
    with pytest.raises(ProgramError, match=r"VAEGAN: parameter '.*weight' stands in both"):
        fit(Linear("tied"), OBJECTIVES["VAEGAN"]())


def test_vae_gan_takes_a_guide_with_a_factor_of_each_row():
    program = Linear()
    guide = AutoNormal(program.model, create_plates=lambda x: pyro.plate("data", len(x)))
    whole = pv.Program(program.model, guide, modules={"program": program})
    run = fit(whole, OBJECTIVES["VAEGAN"](), batch_size=20)
    assert math.isfinite(run.history["decoder"][-1])
    assert decoder_parameters(whole, "VAEGAN") == (program.weight,)


@pytest.mark.filterwarnings("ignore:fit. the plate")
@every
def test_a_plate_that_draws_its_own_minibatch_is_refused(name):
    program = Linear(plate=lambda x: pyro.plate("data", len(x), subsample_size=5))
    with pytest.raises(ProgramError, match=f"{name}: the plate of site 'z' draws 5 of the"):
        fit(program, OBJECTIVES[name](), batch_size=20)


def test_constants_are_no_data_of_a_critic():
    vae = small()

    def model(x, gain):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(gain * vae.decoder(z).mean, 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x, gain: vae.guide(x), modules={"vae": vae})
    run = fit(program, OBJECTIVES["AVB"](), (X, torch.tensor(2.0, dtype=D)))
    assert math.isfinite(run.history["loss"][-1])


# -- critics of another kind ---------------------------------------------------------------------

IMAGES = functools.partial(pv.nn.ConvCritic, (1, 2, 2), (2,))
WRONG = {
    "AAE of pairs": (lambda: pv.AAE(pv.nn.InnerProductCritic(2, 4)), r"AAE gives it codes; use"),
    "AVB of images": (lambda: pv.AVB(IMAGES()), r"AVB gives it codes and data; use"),
    "VAEGAN of codes": (lambda: pv.VAEGAN(pv.nn.Critic(4)), r"expected one with see\(x\)"),
    "AVB without data": (lambda: pv.AVB(pv.nn.Critic(2)), r"make it as pv.nn.Critic\(Z, data_dim"),
    "AAE with data": (lambda: pv.AAE(pv.nn.Critic(2, 4)), r"make it as pv.nn.Critic\(Z\)"),
    "two numbers": (lambda: pv.AAE(nn.Linear(2, 2)), r"Linear answers a tensor of shape \(20, 2\)"),
    "Pyro's": (
        lambda: pv.AAE(pv.nn.Critic(2), critic_optimizer=pyro.optim.Adam({"lr": 0.1})),
        "got a pyro.optim optimizer for an update",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_critic_of_another_kind_is_told(kind):
    make, said = WRONG[kind]
    with pytest.raises(ConfigError, match=said):
        fit(small(), make())


def test_stock_svi_is_told_to_leave_the_critic_to_fit():
    vae = small()
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({}), OBJECTIVES["AAE"]())
    with pytest.raises(ProgramError, match=r"AAE trains a critic besides.*pv.fit"):
        svi.step(X)


def test_a_function_that_makes_another_event_than_it_says_is_refused():
    noise = dist.Normal(torch.zeros(5, 3), 1.0).to_event(1)
    with pytest.raises(ProgramError, match=r"function: got draws of shape \(2, 5, 3\), expected"):
        pv.distributions.Implicit(noise, torch.neg, (1,)).rsample((2,))


# -- what stands still ---------------------------------------------------------------------------


class Normed(nn.Module):
    """A critic of any inputs with moments and a spectral norm of its own."""

    def __init__(self, inputs):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(inputs),
            torch.nn.utils.parametrizations.spectral_norm(nn.Linear(inputs, 3)),
            nn.Linear(3, 1),
        )

    def forward(self, z, x=None):
        return self.net(z if x is None else torch.cat([z, x], -1)).squeeze(-1)


@pytest.mark.parametrize("make", [lambda: pv.AAE(Normed(2)), lambda: pv.AVB(Normed(6))])
def test_judging_moves_no_critic(make):
    ends = []
    for valid in (None, X[:7]):
        vae = small()
        objective = make()
        fit(vae, objective, valid=valid, epochs=2)
        assert all(part.training for part in objective.modules())
        ends.append((state(vae), state(objective)))
    assert all(equal(one, two) for one, two in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", [pv.VAEGAN, pv.LatentAutoencoder])
def test_a_network_of_features_stands_still(kind):
    vae, features = small(), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = state(features.double())
    fit(vae, kind(Scores(), features=features))
    assert equal(before, state(features))
    assert all(part.training for part in features.modules()), "as it was given"


def test_a_critic_joins_in_under_a_program_of_bfloat16():
    objective = pv.LatentAutoencoder(Scores(), start=300)
    objective.to(torch.bfloat16)
    due = [objective._critic_is_due() for _ in range(302)]
    assert due.index(True) == 300


def test_a_critic_that_has_not_joined_in_may_say_anything():
    objective = pv.LatentAutoencoder(Scores(), start=100)
    with torch.no_grad():
        objective.critic.judge.weight.fill_(math.inf)
    assert math.isfinite(fit(small(), objective).history["loss"][-1])


def test_one_row_is_no_sample_for_a_kernel():
    run = fit(small(), pv.WAE(), valid=torch.rand(1025, 4, dtype=D))
    assert math.isfinite(run.history["valid_objective"][-1])
    with pytest.raises(DataError, match="WAE: got a batch of one row"):
        fit(small(), pv.WAE(), batch_size=1)


class Unsure(pv.TermsObjective):
    """A bound that no validation rows have."""

    def loss_of(self, terms):
        return -terms.signal.mean() * (1.0 if torch.is_grad_enabled() else math.nan)


def test_a_score_that_is_no_number_is_told_of_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(small(), Unsure(), valid=X, epochs=3)
    said = [str(each.message) for each in told if "is nan" in str(each.message)]
    assert len(said) == 1 and said[0].startswith("valid: valid_bound of epoch 1 is nan")


# -- priors that have draws alone ----------------------------------------------------------------


class Prior(nn.Module):
    """N(0, 1) in two dimensions, or the same by draws alone."""

    def __init__(self, implicit):
        super().__init__()
        self.implicit = implicit

    def forward(self, encoder):
        plain = dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1)
        return pv.distributions.Implicit(plain, torch.clone, (2,)) if self.implicit else plain


PRIOR_BY_DRAWS = {
    "AAE": OBJECTIVES["AAE"],
    "WAE": OBJECTIVES["WAE"],
    "AVB": lambda: pv.AVB(pv.nn.Critic(2, 4, (5,)), contrast="prior"),
}


@pytest.mark.parametrize(("name", "mode"), [("AAE", "trace"), ("WAE", False), ("AVB", False)])
def test_a_prior_by_its_draws_alone_trains_as_that_with_a_density(name, mode):
    ends = []
    for implicit in (False, True):
        torch.manual_seed(0)
        vae = pv.models.VAE(4, 2, (3,), prior=Prior(implicit), observation=IsotropicGaussian)
        run = fit(vae.double(), PRIOR_BY_DRAWS[name](), valid=X[:6], epochs=2, compile=mode)
        ends.append((state(vae), run.history["loss"], run.history["valid_objective"]))
    assert equal(ends[0][0], ends[1][0])
    assert (ends[0][1] == ends[1][1]).all() and (ends[0][2] == ends[1][2]).all()
    assert pv.aggregated_posterior(vae, X, num_steps=2).loss > 0


ASKED = {
    "elbo": lambda vae: pv.elbo(vae, X),
    "ais": lambda vae: pv.ais(vae, X[:2]),
    "AVB": lambda vae: fit(vae, OBJECTIVES["AVB"]()),
    "VAEGAN": lambda vae: fit(vae, OBJECTIVES["VAEGAN"]()),
    "LatentAutoencoder": lambda vae: fit(vae, OBJECTIVES["LatentAutoencoder"]()),
}


@pytest.mark.parametrize("verb", ASKED)
def test_what_needs_the_density_of_the_prior_names_what_does_not(verb):
    vae = pv.models.VAE(4, 2, (3,), prior=Prior(True), observation=IsotropicGaussian).double()
    with pytest.raises(ProgramError, match=r"site 'z': the prior is implicit.*pv.AAE, pv.WAE"):
        ASKED[verb](vae)


# -- numbers that are none -----------------------------------------------------------------------

HOLES = torch.where(torch.arange(80).reshape(20, 4) % 7 == 3, torch.nan, X)


class Exactly(nn.Module):
    """A critic that knows log q of a Gaussian encoder, holes or none."""

    def __init__(self, vae):
        super().__init__()
        self.known, self.level = [vae], nn.Parameter(torch.zeros((), dtype=D))

    def forward(self, z, x):
        (vae,) = self.known
        return vae.encoder(vae.known(x, None)).log_prob(z) + self.level


def holed():
    torch.manual_seed(0)
    return pv.models.VAE(4, 2, (3,), observation=IsotropicGaussian, missing="nan").double()


def test_data_with_holes_under_avb_have_the_elbo_of_the_observed_cells():
    vae = holed()
    critic = Exactly(vae)
    program = pv.Program.of(vae)
    program.read(HOLES)
    losses = []
    for objective in (pv.AVB(critic), pv.STL()):
        torch.manual_seed(5)
        update = objective.updates(program)[-1]
        with program.running(), validation(False):
            losses.append(update.loss(program.joint(HOLES)))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [pv.nn.Critic, pv.nn.InnerProductCritic])
def test_a_critic_of_data_with_holes_sees_which_cells_are_there(kind):
    critic = kind(2, 4, hidden=(5,), missing="nan").double()
    fit(holed(), pv.AVB(critic), HOLES, epochs=2)
    z = torch.randn(20, 2, dtype=D)
    told = critic(z, HOLES)
    assert told.isfinite().all() and not torch.equal(told, critic(z, HOLES.nan_to_num(0.0)))


def test_a_critic_that_takes_no_holes_is_told():
    vae, objective = holed(), pv.AVB(pv.nn.Critic(2, 4, (5,)))
    before = {**state(vae), **state(objective)}
    with pytest.raises(
        TrainingDiverged,
        match=r"critic is nan.*the data that the critic, Critic, is given: row \d.*missing=\"nan\"",
    ):
        fit(vae, objective, HOLES)
    assert equal(before, {**state(vae), **state(objective)})


class Hollow(nn.Module):
    """A critic whose weights are numbers, and whose answers are none."""

    def __init__(self, bad):
        super().__init__()
        self.weight, self.bad = nn.Parameter(torch.ones(2, dtype=D)), bad

    def forward(self, z, x=None):
        return z @ self.weight + (self.bad * z[:, 0]).log().mean()


@pytest.mark.parametrize("kind", [pv.AVB, pv.AAE])
def test_answers_of_a_critic_that_are_no_numbers_are_its_own(kind):
    with pytest.raises(TrainingDiverged, match="what the critic, Hollow, says of row 0"):
        fit(small(), kind(Hollow(-0.0)))


def test_a_part_of_the_program_that_breaks_leaves_the_critic_as_it_was():
    """The decoder alone is broken: the critic's update passes, and is undone with its moments."""
    for settings in ({}, {"compile": "trace"}, {"accumulate": 2}):
        vae, objective = small(), pv.AAE(Normed(2), critic_steps=2)
        fit(vae, objective)
        with torch.no_grad():
            vae.decoder.net.output.bias.fill_(1e200)
        before = {**state(vae), **{f"critic {k}": v for k, v in state(objective).items()}}
        with pytest.raises(TrainingDiverged, match=r"loss is inf.*site 'x', log p = -inf"):
            fit(vae, objective, **settings)
        after = {**state(vae), **{f"critic {k}": v for k, v in state(objective).items()}}
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)


def test_compiled_steps_of_both_nets_are_the_eager_ones():
    ends = []
    for compile in (False, True):
        program = Linear()
        torch.manual_seed(0)
        objective = pv.AAE(nn.Linear(2, 1))
        run = fit(program, objective, epochs=2, compile=compile)
        ends.append({**state(program), **{f"critic {k}": v for k, v in state(objective).items()}})
    assert run.compiled == "graph"
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-9, atol=1e-12)
