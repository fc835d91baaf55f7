"""What the library promises of every program, tried on every program."""

import functools

import numpy as np
import pyro
import pytest
import torch
from capturing import Capturing
from conftest import differences, surroundings
from programs import CASES, densities_at, made
from pyro import poutine
from pyro.infer import (
    SVI,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from releases import draws_gammas_on_meta
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.program.batches.batch import arguments, map_batch, num_rows
from pyro_vae.program.handlers import ScaleLatents, validation

# Each program in one of the two precisions by turn: none has a rule of its own for them.
DTYPES = {n: (torch.float32, torch.float64)[i % 2] for i, n in enumerate(CASES)}
BETAS = {n: (0.0, torch.tensor(0.5))[i % 2] for i, n in enumerate(CASES)}
every = pytest.mark.parametrize("name", CASES)
generative = pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.has_prior])
N = 48
# One program of each kind trains as a graph and has its surroundings looked at: the steps of every
# program's graph are compared with eager ones in test_compiled_loss, and its parts (priors, flows,
# observations) know of no training.
AS_A_GRAPH = {
    *("vae", "vae_conv", "regularised", "hierarchical", "sbn", "vq_conv"),
    *("lda", "functions", "pyroparam", "tutorial"),
}


@functools.cache
def _read_once(name, device, dtype):
    program, data = made(name, device, dtype)
    pv.Program.of(program).read(data)
    return program, data


def read(name, device, dtype=torch.float64):
    """Return a program that has read its data, the same for all tests that change no weight."""
    program, data = _read_once(name, device, dtype)
    pv.Program.of(program).eval()
    pyro.set_rng_seed(1)  # whichever test came first and built it
    return program, data


def weights(program):
    return {n: p.detach().clone() for n, p in pv.Program.of(program).named_parameters()}


def observed(name, data):
    return data[0] if isinstance(data, tuple) else data["x"] if isinstance(data, dict) else data


def shown(name, values):
    """Return what a verb says of the observed site, of several that a program may have."""
    return values[CASES[name].observed] if isinstance(values, dict) else values


@every
def test_trains_under_fit(name, device):
    """One of each kind as a graph of two equal batches, in single precision; the others eagerly."""
    graph = name in AS_A_GRAPH
    program, data = made(name, device, torch.float32 if graph else torch.float64)
    pv.Program.of(program).read(data)
    before = weights(program)
    mode, rows = ("auto", N // 2) if graph else (False, 20)
    run = pv.fit(program, data, epochs=7, batch_size=rows, lr=0.04, device=device, compile=mode)
    after = weights(program)
    assert run.program is program
    assert all(not torch.equal(before[key], after[key]) for key in before), "a weight stood still"
    assert all(value.dtype == before[key].dtype for key, value in after.items())
    losses = run.history["loss"]
    assert np.isfinite(losses).all() and losses[-3:].mean() < 0.95 * losses[:2].mean()


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")  # drawn from the prior
@every
def test_trains_under_stock_svi(name, device, store):
    program, data = made(name, device, torch.float32)
    args, kwargs = arguments(data)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    first = svi.step(*args, **kwargs)
    before = {key: value.detach().clone() for key, value in store.items()}
    losses = [svi.step(*args, **kwargs) for _ in range(25)]
    assert sum(losses[-8:]) / 8 < 0.95 * first
    assert before and all(not torch.equal(before[key], store[key]) for key in before)
    if isinstance(program, nn.Module):  # what SVI trained is the program's own weights
        trained = sum(p.numel() for p in program.parameters())
        assert sum(p.numel() for _, p in store.named_parameters()) == trained
    store.clear()


@generative
def test_generates(name, device):
    program, data = read(name, device, DTYPES[name])
    x = observed(name, data)
    for mean in (True, False):
        with_inputs = shown(name, pv.generate(program, N, given=data, mean=mean))
        free = shown(name, pv.generate(program, 7, mean=mean))
        assert with_inputs.shape == x.shape and free.shape == (7, *x.shape[1:])
        assert free.dtype == x.dtype and free.device.type == device.type
        assert torch.isfinite(free).all() and torch.isfinite(with_inputs).all()
    if name in ("vae", "vae_conv", "labelled", "regularised", "tutorial"):
        assert set(free.unique().tolist()) <= {0.0, 1.0}
    again = shown(name, pv.generate(program, 7))
    assert not torch.equal(free, again) or "categorical" in name


def test_an_autoencoder_refuses_what_needs_a_prior(device):
    program, data = made("autoencoder", device)
    for verb in (
        functools.partial(pv.generate, program, 3),
        functools.partial(pv.log_likelihood, program, data, num_particles=2),
        functools.partial(pv.diagnose, program, data),
    ):
        with pytest.raises(ProgramError, match="'z' has no prior"):
            verb()


@every
def test_reconstructs_and_encodes(name, device):
    program, data = read(name, device)
    x = observed(name, data)
    assert shown(name, pv.reconstruct(program, data)).shape == x.shape
    if not CASES[name].has_latent:
        with pytest.raises(ProgramError, match="no local latent"):
            pv.encode(program, data)
        return
    codes = pv.encode(program, data)
    if isinstance(codes, dict):  # of several layers, each at draws of those that came before
        assert all(len(code) == N and torch.isfinite(code).all() for code in codes.values())
        return
    width = 3 if name.startswith(("dmm", "vrnn")) else 2  # a path of three steps
    assert codes.shape[:2] == (N, width) and torch.isfinite(codes).all()
    drawn = name in ("dmm", "dmm_filtering", "vrnn")  # the mean of a chain is not known
    assert torch.equal(codes, pv.encode(program, data)) != drawn  # the mean: no noise


@generative
def test_is_scored(name, device):
    dtype = DTYPES[name]
    program, data = read(name, device, dtype)
    estimate = pv.log_likelihood(program, data, num_particles=20, num_global_samples=2)
    assert estimate.log_prob.shape == (N,) and estimate.log_prob.dtype == dtype
    assert torch.isfinite(estimate.log_prob).all()
    bound = pv.elbo(program, data)
    assert bound.shape == (N,) and torch.isfinite(bound).all()


@generative
def test_one_importance_sample_is_the_elbo(name, device):
    """The same draw gives the same number by either road; globals are held at one draw first."""
    program, data = read(name, device)
    wrapped = pv.Program.of(program)
    torch.manual_seed(7)
    one = pv.log_likelihood(program, data, num_particles=1, num_global_samples=1).log_prob
    torch.manual_seed(7)
    if not wrapped.sites.global_:
        torch.testing.assert_close(pv.elbo(program, data), one, rtol=1e-12, atol=1e-12)
        return
    with torch.no_grad(), wrapped.running():
        joint = wrapped.joint(data)
        terms = joint.fixing(joint.global_values()).terms()
    torch.testing.assert_close(terms.log_weight[0, 0], one, rtol=1e-12, atol=1e-12)
    assert terms.log_weight.shape == (1, 1, len(one))


@every
def test_particles_equal_a_loop(name, device):
    """(S, K, B) terms in one pass are what K single passes give at the same draws."""
    program, data = read(name, device)
    wrapped = pv.Program.of(program)
    with torch.no_grad(), wrapped.running():
        joint = wrapped.joint(data)
        terms = joint.terms(2, 3)
        assert all(
            value.shape == (2, 3, N) for value in (*terms.log_p.values(), *terms.log_q.values())
        )
        if wrapped.sites.global_ or joint.tiled or wrapped.sites.enumerated:
            return
        values = {site: draws[0].value for site, draws in terms.latents.items()}
        for k in range(3):
            single = {site: value[k] for site, value in values.items()}
            model, guide = densities_at(joint, single)
            for site, value in terms.log_p.items():
                torch.testing.assert_close(model.nodes[site]["log_prob"], value[0, k])
            for site, value in terms.log_q.items():
                torch.testing.assert_close(guide.nodes[site]["log_prob"], value[0, k])


@generative
def test_saved_and_loaded_has_the_same_likelihood(name, device, tmp_path):
    program, data = made(name, device, DTYPES[name])
    if name in AS_A_GRAPH:
        pv.fit(program, data, epochs=2, device=device)
    else:
        pv.Program.of(program).read(data)
        with torch.no_grad():
            for weight in pv.Program.of(program).parameters():  # not those it starts with
                weight.mul_(1.01)

    def score(some):
        torch.manual_seed(3)
        return pv.log_likelihood(some, data, num_particles=4).log_prob

    expected = score(program)
    pv.save(program, tmp_path)
    fresh = made(name, device, DTYPES[name])[0]
    assert pv.load(tmp_path, into=fresh) is fresh
    loaded = pv.load(tmp_path, device=device) if CASES[name].rebuilt else fresh
    assert loaded is not program
    assert torch.equal(score(loaded), expected)
    ours, theirs = weights(program), weights(fresh)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    if CASES[name].rebuilt:
        assert type(loaded) is type(program) and loaded.config == program.config
        assert not loaded.training


# PyTorch looks whether it could factorise a matrix, and whether probabilities of classes are some.
ASKS = {
    "vae_mixture": {"_linalg_check_errors"},
    "m2": {"multinomial"},
    "multimodal": {"multinomial"},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=draws_gammas_on_meta) if name.startswith("def_") else name
        for name in sorted(set(CASES) - {"lda"})  # torch draws no meta Dirichlet
    ],
)
def test_runs_on_the_meta_device(name):
    """A host tensor made on the side would raise here, as it would on CUDA; so would a value."""
    program, data = made(name, "meta", DTYPES[name])
    args, kwargs = arguments(data)
    wrapped = pv.Program.of(program)
    with validation(False), wrapped.running():
        guide = poutine.trace(program.guide).get_trace(*args, **kwargs)
        model = program.model if CASES[name].has_prior else poutine.replay(program.model, guide)
        model(*args, **kwargs)
        with Capturing() as capturing:
            loss = pv.ELBO().differentiable_loss(program.model, program.guide, *args, **kwargs)
    assert loss.device.type == "meta" and loss.shape == ()
    waits = [found.partition(" at ")[0] for found in capturing.of("wait", "copy")]
    assert set(waits) == ASKS.get(name, set())
    assert capturing.operators


@pytest.mark.filterwarnings("ignore:Pyro's parameter store holds other values")
@pytest.mark.parametrize("name", sorted(AS_A_GRAPH))
def test_verbs_leave_the_surroundings_as_found(name, device, store, tmp_path):
    program, data = made(name, device)
    validate = list(CASES).index(name) % 2 == 0  # each finds it on, or off
    with pyro.validation_enabled(validate):
        for key in ("loading", "labelled$$$encode.0.weight", "decoder$$$0.weight"):
            pyro.param(key, torch.full((2,), 7.0))  # a user's own values under the same names
        before = surroundings()
        pv.fit(program, data, epochs=1, device=device)
        pv.elbo(program, data)
        pv.encode(program, data)
        pv.reconstruct(program, data)
        pv.interpolate(program, data, data, steps=2)
        if CASES[name].has_prior:
            pv.log_likelihood(program, data, num_particles=3)
            pv.generate(program, 2)
            pv.diagnose(program, data)
        pv.save(program, tmp_path)
        pv.load(tmp_path, into=program)
        assert not differences(before, surroundings())
    store.clear()


@every
def test_beta_equals_the_hand_written_loss(name, device):
    beta = BETAS[name]
    program, data = read(name, device)
    wrapped = pv.Program.of(program)
    with wrapped.running(), torch.no_grad():
        torch.manual_seed(1)
        terms = wrapped.joint(data).terms()
        kl = sum(terms.kl(site) for site in wrapped.sites.local)
        expected = -(terms.log_likelihood() - beta * kl).sum() - terms.global_log_weight
        args, kwargs = arguments(data)
        model, guide = ScaleLatents(beta)(program.model), ScaleLatents(beta)(program.guide)
        stock = () if wrapped.sites.enumerated else (Trace_ELBO(),)  # it draws what is summed out
        for loss in (*stock, pv.ELBO()):
            torch.manual_seed(1)
            actual = loss.differentiable_loss(model, guide, *args, **kwargs)
            torch.testing.assert_close(actual, expected.squeeze(), rtol=1e-9, atol=1e-9)


STOCK = {
    "trace": Trace_ELBO,
    "trace_graph": TraceGraph_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "renyi": functools.partial(RenyiELBO, alpha=0.0, num_particles=2),
    "wake_sleep": functools.partial(ReweightedWakeSleep, num_particles=2),
}


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("name", ["vae", "labelled", "sequences", "functions", "tutorial"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pyro's own, of its own losses
def test_any_stock_objective_trains(name, stock, device):
    program, data = made(name, device)
    if stock in ("renyi", "wake_sleep") and name != "vae":
        data = map_batch(lambda x: x[:16], data)
    run = pv.fit(
        program,
        data,
        objective=STOCK[stock](),
        epochs=20,
        batch_size=num_rows(data),
        lr=0.02,
        device=device,
    )
    losses = run.history["loss"]
    assert np.isfinite(losses).all() and losses[-4:].mean() < losses[:4].mean()


@pytest.mark.parametrize("name", ["vae", "functions", "bayesian"])
def test_stock_loss_equals_the_loss_of_fit(name, device):
    """One step of stock SVI and one of ours, from equal weights and noise, see one gradient."""
    program, data = made(name, device)
    wrapped = pv.Program.of(program)
    args, kwargs = arguments(data)
    grads = []
    for objective in (pv.ELBO(), Trace_ELBO()):
        with wrapped.running():
            wrapped.read(data)
            wrapped.zero_grad()
            torch.manual_seed(2)
            objective.differentiable_loss(program.model, program.guide, *args, **kwargs).backward()
        grads.append([p.grad.clone() for p in wrapped.parameters()])
    for ours, stock in zip(*grads, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-9, atol=1e-10)


def test_handlers_work_on_an_unchanged_model(device):
    program, data = made("vae", device)
    with pv.Program.of(program).running():
        trace = poutine.trace(poutine.uncondition(program.model)).get_trace(data)
        fixed = poutine.condition(program.model, data={"z": trace.nodes["z"]["value"]})
        again = poutine.trace(fixed).get_trace(data)
    assert torch.equal(again.nodes["x"]["fn"].mean, trace.nodes["x"]["fn"].mean)
