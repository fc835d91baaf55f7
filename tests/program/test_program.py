"""Reading a program: sites, terms, binding, parameters, for anything a Pyro user might write."""

import functools
import threading
import traceback

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import normal_kl
from programs import (
    CASES,
    BayesianDecoder,
    PyroParamVAE,
    densities_at,
    mlp,
    plain_functions,
)
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.batches.batch import arguments, map_batch

X = torch.linspace(-1, 1, 42, dtype=torch.float64).reshape(7, 6)

# A prior or a posterior that does not factorise has no density per unit.
WITHOUT_UNITS = {
    "multimodal",
    "dmm",
    "dmm_filtering",
    "dmm_mean_field",
    "vrnn",
    "lda",
    "linear_full",
    "sbn_autoregressive",
    "vae_ar1",
    "vae_flow_prior",
    "vae_iaf",
    "vae_mixture",
    "vae_planar",
    "vae_spline",
    "vae_vamp",
    "vq",
    "vq_conv",
}


def normal(loc, scale):
    return dist.Normal(torch.as_tensor(loc).double(), torch.as_tensor(scale).double())


# -- sites ------------------------------------------------------------------------------------

ROLES = {
    "vae": (("x",), ("z",), ()),
    "labelled": (("x",), ("z",), ()),
    "sequences": (("x",), ("z",), ()),
    "bayesian": (("x",), ("z",), ("weight",)),
    "tutorial": (("obs",), ("latent",), ()),
    "functions": (("x",), ("z",), ()),
}


@pytest.mark.parametrize("name", ROLES)
def test_roles_are_read_from_a_trace(name):
    program = pv.Program.of(CASES[name].build())
    sites = program.read(CASES[name].data(4))
    assert (sites.observed, sites.local, sites.global_) == ROLES[name]
    assert sites.size is None and sites.num_plates == 1 and not sites.priorless


def test_one_program_per_object():
    vae = pv.models.VAE(6, 2, (8,))
    assert pv.Program.of(vae) is pv.Program.of(vae)
    assert pv.Program.of(pv.Program.of(vae)) is pv.Program.of(vae)
    assert len(list(pv.Program.of(vae).parameters())) == len(list(vae.parameters()))


def test_reading_uses_no_random_number_and_no_gradient():
    program = pv.Program.of(CASES["regularised"].build())
    program.train()
    before = torch.get_rng_state()
    buffers = {k: v.clone() for k, v in program.named_buffers()}
    program.read(CASES["regularised"].data(4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(part.training for part in program.parts.modules())
    assert all(torch.equal(buffers[k], v) for k, v in program.named_buffers())


@functools.cache
def read(name):
    """Return a program that has read five rows, once for the tests that only look at it."""
    program, batch = pv.Program.of(CASES[name].build()), CASES[name].data(5)
    program.read(batch)
    return program, batch


# -- terms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_terms_have_the_shape_s_k_b(name):
    num_global_samples, num_particles = 2, 3
    program, batch = read(name)
    terms = program.terms(batch, num_global_samples, num_particles, size=50)
    shape = (num_global_samples, num_particles, 5)
    assert terms.log_weight.shape == terms.log_likelihood().shape == shape
    assert {v.shape for v in (*terms.log_p.values(), *terms.log_q.values())} == {shape}
    assert {v.shape for v in terms.global_log_p.values()} <= {(num_global_samples,)}
    names = {name.removesuffix(" (y summed out)") for name in terms.log_p}
    assert names == {*program.sites.local, *program.sites.observed}
    has_global = bool(program.sites.global_)
    assert (terms.size, terms.batch_size) == (50 if has_global else 5, 5)
    if name != "autoencoder" and CASES[name].has_latent:
        site = program.sites.local[0]
        if name not in WITHOUT_UNITS:
            units = terms.unit_kl(site)
            torch.testing.assert_close(units.sum(-1), terms.kl(site), rtol=1e-4, atol=1e-4)


def test_score_terms_stand_for_what_has_no_path():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full_like(x[:, 0], 0.3)))
            pyro.sample("x", normal(z[..., None], 1.0).expand((*z.shape, 6)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full_like(x[:, 0], 0.6)))

    terms = pv.Program(model, guide).terms(X, 1, 4)
    assert terms.no_path == ("z",) and terms.score["z"].shape == (1, 4, 7)
    torch.testing.assert_close(terms.score["z"], terms.log_q["z"])


def test_own_scale_and_mask_enter_the_terms():
    keep = torch.tensor([True, False, True, True, False, True, True])

    def model(x, keep):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(0, 1))
            with poutine.scale(scale=0.5), poutine.mask(mask=keep):
                pyro.sample("x", normal(z[..., None], 1).expand((*z.shape, 6)).to_event(1), obs=x)

    def guide(x, keep):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x.mean(-1), 0.5))

    program = pv.Program(model, guide)
    for num_particles in (1, 3):
        terms = program.terms((X, keep), 1, num_particles)
        z = terms.latents["z"][0].value.reshape(num_particles, 7)
        exact = 0.5 * keep * normal(z[..., None], 1.0).log_prob(X).sum(-1)
        torch.testing.assert_close(terms.log_p["x"][0], exact)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_nested_plates_are_summed_per_datum(num_particles):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal(0, 1))
            with pyro.plate("columns", 6, dim=-2):
                w = pyro.sample("w", normal(0, 2))
                pyro.sample("x", normal(z + w, 1), obs=x.mT)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(x.mean(-1), 0.5))
            with pyro.plate("columns", 6, dim=-2):
                pyro.sample("w", normal(x.mT, 0.5))

    program = pv.Program(model, guide)
    assert program.read(X[:1].expand(7, 6)).num_plates == 2
    terms = program.terms(X, 1, num_particles)
    z = terms.latents["z"][0].value.reshape(num_particles, 1, 7)
    w = terms.latents["w"][0].value.reshape(num_particles, 6, 7)
    exact = {
        "z": normal(0, 1).log_prob(z).squeeze(1),
        "w": normal(0, 2).log_prob(w).sum(1),
        "x": normal(z + w, 1).log_prob(X.mT).sum(1),
    }
    for site, value in exact.items():
        torch.testing.assert_close(terms.log_p[site][0], value)


class Unbroadcast(nn.Module):
    """A model that insists on (B, Z) latents, as a user's own code often does."""

    def __init__(self, rows_first):
        super().__init__()
        self.net, self.rows_first = mlp(2, 6).double(), rows_first

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            if not self.rows_first:
                z = z.reshape(*z.shape[:-1], 2)
            elif z.dim() != 2:
                raise ValueError("expected (B, Z)")
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 0.1).to_event(1))


class Mixing(Unbroadcast):
    """A model that runs with particles and is silently wrong: it pools over the leftmost dim."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            loc = self.net(z) + (
                z.mean(0, keepdim=True).sum(-1, keepdim=True) if z.dim() > 2 else 0
            )
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("build", "tiled"),
    [
        (functools.partial(Unbroadcast, False), False),
        (functools.partial(Unbroadcast, True), True),
        (functools.partial(Mixing, True), True),
    ],
)
def test_tiles_where_a_model_does_not_broadcast(build, tiled):
    program = pv.Program.of(build())
    program.read(X)
    assert program.tiled(X) is tiled
    net = program.parts["Unbroadcast" if build.func is Unbroadcast else "Mixing"].net
    terms = program.terms(X, 1, 5)
    draw = terms.latents["z"][0]
    z = draw.value.reshape(5, 7, 2)
    with torch.no_grad():
        exact = dist.Normal(net(z), 1.0).log_prob(X).sum(-1)
    torch.testing.assert_close(terms.log_p["x"][0].detach(), exact)
    torch.testing.assert_close(terms.log_q["z"][0], dist.Normal(X[:, :2], 0.1).log_prob(z).sum(-1))
    estimate = pv.log_likelihood(program, X, num_particles=9)
    assert estimate.log_prob.shape == (7,) and torch.isfinite(estimate.log_prob).all()


# -- binding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in CASES if n != "tutorial"])
def test_replace_puts_a_dream_into_the_batch(name):
    program, batch = read(name)
    seen = program.read(batch).binding("x")
    dream = torch.ones_like(seen.of(*arguments(batch)))
    replaced = program.replace(batch, {"x": dream})
    assert type(replaced) is type(batch)
    assert torch.equal(seen.of(*arguments(replaced)), dream)
    assert not torch.equal(seen.of(*arguments(batch)), dream)
    others = {k: v for k, v in program.named(batch).items() if k != "x"}
    assert all(program.named(replaced)[k] is v for k, v in others.items())


def test_a_dream_is_scored_at_its_own_data():
    """The model dreams of data at 100 z, the batch holds zeros."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_full((), 3.0), 0.1))
            pyro.sample("x", dist.Normal(100 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 100, 0.1))

    program, x = pv.Program(model, guide), torch.zeros(7)
    program.read(x)
    with program.running():
        log_q = program.joint(x).dream_log_q()
    assert (log_q > -20).all()  # at zeros: -450


def test_a_kl_weight_leaves_the_globals_and_the_data_alone():
    program = pv.Program.of(CASES["bayesian"].build())
    x, terms = CASES["bayesian"].data(5), []
    program.read(x)
    with program.running():
        for beta in (None, 0.25):
            torch.manual_seed(0)
            terms.append(program.joint(x, beta=beta).terms())
    plain, weighed = terms
    assert plain.global_log_p and set(plain.log_q) == {"z"}
    for side in ("global_log_p", "global_log_q", "log_p", "log_q"):
        for name, value in getattr(plain, side).items():
            factor = 0.25 if name == "z" else 1.0
            torch.testing.assert_close(getattr(weighed, side)[name], factor * value)


def test_binding_names_what_is_wrong():
    program = pv.Program.of(CASES["tutorial"].build())
    x = CASES["tutorial"].data(3)
    assert torch.equal(program.read(x).binding("obs").of((x,), {}), x)
    with pytest.raises(ProgramError, match="site 'y' is no argument"):
        program.replace(x, {"y": x})
    with pytest.raises(DataError, match="the model does not take this batch"):
        program.named((x, x))


# -- parameters -------------------------------------------------------------------------------


def state(program):
    return {k: v.detach().clone() for k, v in pv.Program.of(program).state_dict().items()}


@pytest.mark.parametrize("name", ["labelled", "functions", "pyroparam", "tutorial", "bayesian"])
def test_equal_names_never_share(name):
    """Two programs of equal names, trained alternately, end bit-identical to solo runs."""
    data = CASES[name].data(40)

    def pair():
        programs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            programs.append(CASES[name].build())
        return programs

    def train(program, seed):
        pv.fit(program, data, epochs=1, lr=0.05, batch_size=16, seed=seed)

    solo = []
    for program in pair():
        for epoch in range(2):
            train(program, epoch)
        solo.append(state(program))
    mixed = pair()
    for epoch in range(2):
        for program in mixed:
            train(program, epoch)
    for alone, program in zip(solo, mixed, strict=True):
        together = state(program)
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[k], together[k]) for k in alone)
    if name != "functions":  # those start from equal values
        assert any(not torch.equal(solo[0][k], solo[1][k]) for k in solo[0])


def test_constrained_parameters_stay_inside_and_train():
    pair = plain_functions()
    program = pv.Program(pair.model, pair.guide)
    pv.fit(program, CASES["functions"].data(40), epochs=20, lr=0.1, batch_size=40)
    with program.running():
        noise = pyro.param("noise", constraint=constraints.positive)
        assert noise.item() > 0 and noise.unconstrained() is program.values["noise"]
        assert noise.item() == pytest.approx(program.values["noise"].exp().item())
        assert abs(noise.item() - 1) > 0.1  # where it stood


def test_pyroparam_values_move_inside_their_bounds():
    program = PyroParamVAE()
    pv.fit(program, CASES["pyroparam"].data(40), epochs=20, lr=0.1, batch_size=40)
    with pv.Program.of(program).running():
        assert program.noise.item() > 0 and abs(program.noise.item() - 1) > 0.1
        assert ((program.spread > 0.01) & (program.spread < 2)).all()


def test_a_parameter_read_before_it_is_set_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(pyro.param("missing"), 1))
            pyro.sample("x", normal(z[..., None], 1).expand((*z.shape, 6)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x.mean(-1), 1.0))

    with pytest.raises(ProgramError, match="'missing'"):
        pv.Program(model, guide).read(X)


def closures(network):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(network(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 0.5).to_event(1))

    return model, guide


class Holder:
    """A plain object that owns a network."""

    def __init__(self):
        self.network = mlp(2, 6)
        self.model, self.guide = closures(self.network)


@pytest.mark.parametrize("wrapping", ["closure", "partial", "object", "modules"])
def test_networks_are_found_where_functions_keep_them(wrapping):
    network = mlp(2, 6)
    model, guide = closures(network)
    if wrapping == "partial":
        model = functools.partial(model)
    if wrapping == "object":
        program = Holder()
        network = program.network
    elif wrapping == "modules":
        hidden = [network]  # a list in a closure: not found, so named
        model, guide = closures(lambda z: hidden[0](z))
        program = pv.Program(model, guide, modules={"network": network})
    else:
        program = pv.Program(model, guide)
    before = network[0].weight.detach().clone()
    pv.fit(program, X.float(), epochs=2)
    assert not torch.equal(before, network[0].weight)


# -- Pyro's own guides ------------------------------------------------------------------------


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDelta])
def test_autoguide_of_a_global_weight(autoguide):
    """A conjugate mean: the fit reaches the posterior's mean, under N/B minibatches."""
    x = X.float().reshape(42, 1) + 1.5

    def model(x):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x), 1]).to_event(1), obs=x)

    guide = autoguide(model)
    program = pv.Program(model, guide)
    run = pv.fit(program, x, epochs=60, batch_size=14, lr=0.05, lr_schedule=pv.schedules.cosine())
    assert program.sites.global_ == ("mean",) and run.history["loss"][-1] < run.history["loss"][0]
    exact = x.sum().item() / (len(x) + 1)  # posterior of a unit-variance mean under N(0, 1)
    with program.running():
        assert guide.median()["mean"].item() == pytest.approx(exact, abs=0.08)
        if autoguide is AutoNormal:
            scale = guide.quantiles([0.8413447])["mean"][0] - guide.median()["mean"]
            assert scale.item() == pytest.approx(43**-0.5, rel=0.25)


def test_autoguide_of_local_latents():
    """AutoNormal holds one factor per datum: full batches only."""
    x = torch.full((20,), 3.0)  # rows are shuffled, factors are not

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_ones(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model)
    program = pv.Program(model, guide)
    pv.fit(program, x, epochs=200, batch_size=20, lr=0.1, lr_schedule=pv.schedules.cosine())
    with program.running():
        median = guide.median()["z"]
    torch.testing.assert_close(median, (x + 1) / 2, atol=0.2, rtol=0)


def test_a_pyromodule_called_as_a_module_keeps_its_own_parameters():
    class Guide(PyroParamVAE):
        def forward(self, x):
            self.guide(x)

    guide = Guide()
    model = PyroParamVAE()
    program = pv.Program(model.model, guide)
    before = guide.spread.detach().clone()
    pv.fit(program, CASES["pyroparam"].data(40), epochs=5, lr=0.05)
    assert not torch.equal(before, guide.spread) and not len(program.values)


def test_parameters_behind_a_block_are_the_programs_own():
    """``poutine.block`` hides ``pyro.param`` from handlers around it; the values stay the same."""
    pair = plain_functions()
    program = pv.Program(pair.model, pair.guide)
    data = CASES["functions"].data(8)
    program.read(data)
    with torch.no_grad():
        program.values["noise"].fill_(1.5)
    with program.running():
        shown = poutine.trace(pair.model).get_trace(data).nodes["x"]["fn"].base_dist.scale
        hidden = poutine.block(poutine.trace(pair.model).get_trace)(data).nodes["x"]["fn"]
        assert torch.equal(shown, hidden.base_dist.scale)
        hidden.base_dist.scale.sum().backward()
    assert program.values["noise"].grad is not None


def test_global_weights_count_once_per_data_set():
    """The mean of the minibatch losses is the full-batch loss: N/B scales local terms alone."""
    program = pv.Program.of(BayesianDecoder().double())
    program.eval()
    values = {"weight": torch.full((2, 6), 0.3).double()}
    x = X[:6]

    def loss(rows, z):
        model, guide = densities_at(program.joint(x[rows], size=6), {**values, "z": z[rows]})
        return (guide.log_prob_sum() - model.log_prob_sum()) / 6

    with program.running(), torch.no_grad():
        z = torch.linspace(-1, 1, 12).double().reshape(6, 2)
        whole = loss(slice(None), z)
        parts = [loss(slice(i, i + 2), z) for i in (0, 2, 4)]
        torch.testing.assert_close(torch.stack(parts).mean(), whole)
        prior = normal(0, 1).log_prob(values["weight"]).sum()
        guide = program.parts["BayesianDecoder"]
        posterior = normal(guide.weight_loc, guide.weight_log_scale.exp())
        kl = posterior.log_prob(values["weight"]).sum() - prior
        model, guide = densities_at(program.joint(x, size=6), {**values, "z": z})
        local = [model.nodes[s]["log_prob"] for s in ("x", "z")]
        local = sum(local) - guide.nodes["z"]["log_prob"]
        torch.testing.assert_close(whole, -local.mean() + kl / 6)


def test_kl_of_a_draw_averages_to_the_closed_form():
    """z-score below 5 (false alarm 6e-7) for the Monte-Carlo KL of each datum."""
    program = pv.models.VAE(6, 2, (8,)).double()
    x = CASES["vae"].data(4).double()
    with torch.no_grad():
        kl = pv.Program.of(program).terms(x, 1, 20_000).kl("z")[0]
        q = program.encoder(x).base_dist
        exact = normal_kl(q.loc, q.scale).sum(-1)
        z = (kl.mean(0) - exact) / (kl.std(0) / 20_000**0.5)
    assert z.abs().max() < 5


# -- threads ----------------------------------------------------------------------------------


def test_threads_do_not_corrupt_each_other():
    """Pyro's handler stack is one global list; unlocked, almost every trace here would raise."""
    programs = [pv.models.LinearVAE(6, 2).double() for _ in range(4)]
    exact = [p.encoder(X).mean.detach() for p in programs]
    wrong = []

    def work(program, expected):
        try:
            for _ in range(25):
                if not torch.equal(pv.encode(program, X), expected):
                    wrong.append("numbers")
                pv.elbo(program, X)
        except Exception as error:
            wrong.append(repr(error))

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(programs, exact, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_inside_leaves_no_handler_behind():
    def model(x):
        with pyro.plate("data", len(x)):
            raise RuntimeError("inside")

    with pytest.raises(DataError, match="inside"):
        pv.Program(model, lambda x: None).read(X)  # the guard of the suite looks at Pyro's stack


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "numpy"])
def test_adapt_casts_to_the_program(kind):
    program = pv.Program.of(CASES["labelled" if kind == "tuple" else "sequences"].build())
    batch = {
        "tensor": X,
        "tuple": (X, torch.arange(7)),
        "dict": {"x": X[:, :5], "lengths": torch.arange(7)},
        "numpy": X.numpy(),
    }[kind]
    adapted = program.adapt(batch)
    floats, kept = [], []
    map_batch(lambda x: (floats if x.is_floating_point() else kept).append(x) or x, adapted)
    assert {x.dtype for x in floats} == {torch.float32} and {x.dtype for x in kept} <= {torch.int64}


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_while_a_program_runs_and_the_flag_is_put_back(before):
    program, tiny = pv.Program.of(pv.models.VAE(6, 2, hidden=(8,))), torch.tensor([1e-30, 1e-35])
    torch.set_flush_denormal(before)
    try:
        with program.running():
            assert not (tiny * 1e-9).any()
        assert bool((tiny * 1e-9).any()) is not before
    finally:
        torch.set_flush_denormal(False)


def test_few_frames_lie_between_a_step_and_the_model():
    """At most three of the joint's, so that a user's traceback is short."""
    seen = []

    def model(x):
        seen.append([f.name for f in traceback.extract_stack() if f.filename.endswith("joint.py")])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))

    pv.fit(pv.Program(model, guide), torch.zeros(4), epochs=1, compile=False, progress=False)
    assert len(seen[-1]) <= 3
