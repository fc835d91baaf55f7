"""Programs of the shapes that publications have: the right number, or a clear refusal."""

import functools
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import pyro
import pytest
import torch
from programs_published import PAIRS
from pyro.infer import SVI
from torch import Tensor

import pyro_vae as pv
from pyro_vae.errors import PyroVaeError

every = pytest.mark.parametrize("name", PAIRS)
EXACT = [name for name, build in PAIRS.items() if build().log_prob is not None]
REPEATS = 32
pytestmark = [
    pytest.mark.filterwarnings("ignore:refine"),  # a few transitions only
    pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites"),
    pytest.mark.filterwarnings("ignore:Pyro's parameter store holds other values"),
]


@pytest.fixture(autouse=True)
def _alone(store):
    """Start from an empty parameter store and a fixed seed."""
    store.clear()
    pyro.set_rng_seed(0)


def made(name):
    """Return a pair and its program."""
    pair = PAIRS[name]()
    return pair, pv.Program(pair.model, pair.guide, **pair.options)


kept = functools.cache(made)  # reading a program costs more than most verbs


def stock_losses(pair, repeats):
    args, kwargs = pair.arguments
    loss = pair.elbo()
    with torch.no_grad():
        return [loss.loss(pair.model, pair.guide, *args, **kwargs) for _ in range(repeats)]


def same_mean(ours, theirs):
    """Return whether two samples have one mean: |z| < 5, false alarms below 1e-6."""
    gap = abs(statistics.fmean(ours) - statistics.fmean(theirs))
    noise = sum(statistics.variance(sample) / len(sample) for sample in (ours, theirs))
    return gap < 5 * noise**0.5 + 1e-4


@every
def test_the_bound_is_that_of_pyro(name):
    pair, program = kept(name)
    theirs = [-loss / pair.rows for loss in stock_losses(pair, REPEATS)]
    bounds = [pv.elbo(program, pair.data) for _ in range(REPEATS)]
    assert all(bound.shape == (pair.rows,) for bound in bounds)
    assert same_mean([bound.mean().item() for bound in bounds], theirs)


@pytest.mark.parametrize("name", EXACT)
def test_the_likelihood_of_each_datum_is_exact(name):
    pair, program = kept(name)
    answer = pv.log_likelihood(program, pair.data, num_particles=4000, num_global_samples=1)
    # The relative variance of the weights is below 1: 5 standard errors of their mean.
    assert (answer.log_prob - pair.log_prob).abs().max() < 0.08


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@every
@pytest.mark.filterwarnings("ignore:.*the guide marks it for enumeration")
def test_fit_moves_what_stock_svi_moves(name):
    pair = PAIRS[name]()
    args, kwargs = pair.arguments
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), pair.elbo())
    svi.loss(pair.model, pair.guide, *args, **kwargs)
    store = pyro.get_param_store()
    before = {key: value.detach().clone() for key, value in store.items()}
    svi.step(*args, **kwargs)
    # One tensor under two names (AutoNormalizingFlow has such) is one.
    tensors = {store[key].data_ptr(): store[key] for key in moved(before, dict(store.items()))}
    expected = Counter(value.numel() for value in tensors.values())
    store.clear()
    pair, program = made(name)
    pv.elbo(program, pair.data)
    before = {key: value.detach().clone() for key, value in program.named_parameters()}
    run = pv.fit(
        program, pair.data, epochs=2, batch_size=pair.rows, lr=0.01, compile=False, progress=False
    )
    after = {key: value.detach() for key, value in program.named_parameters()}
    trained = Counter(after[key].numel() for key in moved(before, after))
    # Weights that stock SVI is never told of (hidden in a list) train here as well.
    assert not expected - trained and (trained == expected or pair.hidden)
    assert all(abs(loss) < 1e3 for loss in run.history["loss"])


def save_and_load(program, pair):
    pv.elbo(program, pair.data)
    with tempfile.TemporaryDirectory() as folder:
        pv.save(program, Path(folder) / "saved")
        other = pv.Program(pair.model, pair.guide, **pair.options)
        pv.load(Path(folder) / "saved", into=other)
        return pv.elbo(other, pair.data)


ANNEALING = pv.AIS(num_temperatures=2, chains=2, num_leapfrog=1, pilot=4)
LOCAL = pv.Local(num_steps=2, num_particles=2)
VERBS = {
    "elbo": lambda p, pair: pv.elbo(p, pair.data),
    "log_likelihood": lambda p, pair: pv.log_likelihood(p, pair.data, num_particles=8).log_prob,
    "ais": lambda p, pair: pv.ais(p, pair.data, ANNEALING).log_prob,
    "bdmc": lambda p, pair: pv.bdmc(p, pair.rows, ANNEALING, given=pair.data).lower,
    "diagnose": lambda p, pair: pv.diagnose(p, pair.data, probes=2),
    "refine": lambda p, pair: (
        pv.refine(
            p, pair.data, pv.HMC(num_draws=4, warmup=2, chains=2, num_leapfrog=1), compile=False
        ).means
    ),
    "amortised": lambda p, pair: pv.infer(p, pair.data).sample(2),
    "semi": lambda p, pair: pv.infer(p, pair.data, how="semi", settings=LOCAL).sample(2),
    "gaps": lambda p, pair: (
        pv.gaps(p, pair.data, local=LOCAL, annealed=ANNEALING, num_particles=4).log_prob
    ),
    "generate": lambda p, pair: pv.generate(p, pair.rows, given=pair.data),
    "reconstruct": lambda p, pair: pv.reconstruct(p, pair.data),
    "encode": lambda p, pair: pv.encode(p, pair.data),
    "interpolate": lambda p, pair: pv.interpolate(p, pair.data, pair.data, steps=2),
    "save": save_and_load,
}


def leaves(answer):
    if isinstance(answer, Tensor):
        return [answer]
    return [leaf for value in answer.values() for leaf in leaves(value)]


@every
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_answers_or_says_why_not(name, verb):
    """Whatever verbs came before: how the tests are split among processes says which is first."""
    pair, program = kept(name)
    try:
        answer = VERBS[verb](program, pair)
    except PyroVaeError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert len(refusal) > 40, f"too short to say what to do: {refusal}"
        return
    if isinstance(answer, pv.Diagnosis):
        assert torch.isfinite(torch.tensor(answer.reconstruction)) and "nats" in str(answer)
        return
    found = leaves(answer)
    assert found, "an empty answer"
    assert all(torch.isfinite(leaf).all() for leaf in found if leaf.is_floating_point())
