"""The traced graph gives the numbers of the program: losses, gradients, buffers, noise."""

import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_table import TABLE
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from releases import compiles_all
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from pyro_vae.inference.graphs import compiled_loss
from pyro_vae.inference.graphs.bindings import direct
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.inference.graphs.simplify import simplify
from pyro_vae.layouts import same_layout
from pyro_vae.program.handlers import validation
from pyro_vae.program.looks.failures import users_line
from pyro_vae.program.program import Program

# one_hot asks for the largest label: a value decides, so nothing can be traced.
UNTRACEABLE = {"labelled"}
OBJECTIVES = {
    name: row
    for name, row in TABLE.items()
    if row.latents in ("paths", "any") and isinstance(row.build(2, 1), pv.TermsObjective)
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


def check(program, data, objective, beta, mode="trace", seeds=3):
    """Compare the compiled loss with the eager one at several seeds: noise is drawn anew."""
    program.read(data)  # plain functions have no parameters before they have run
    program.train()
    update = objective.updates(program)[0]
    compiled = CompiledLoss(update.loss, program, objective=objective, mode=mode)
    parameters = [p for p in update.parameters if p.requires_grad]
    losses = set()
    for seed in range(seeds):
        state = {k: v.clone() for k, v in program.state_dict().items()}

        def eager():
            return update.loss(program.joint(data, beta=beta, size=24))

        expected = run(eager, program, parameters, seed)
        moved = {k: v.clone() for k, v in program.state_dict().items()}
        program.load_state_dict(state)
        got = run(lambda: compiled(data, beta=beta, size=24), program, parameters, seed)
        assert_same(got, expected)
        for name, value in program.state_dict().items():
            torch.testing.assert_close(value, moved[name], rtol=1e-12, atol=0)  # as they do eagerly
        losses.add(got[0].item())
    assert compiled.num_graphs == 1
    return losses


CONVOLUTIONS = {
    "vae": lambda: pv.models.VAE((1, 12, 12), 3, (8, 16), network="conv"),
    "vq": lambda: pv.models.VQVAE((1, 12, 12), 8, 4, (16, 32), prior="factorised", revive=0.0),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [("vae", "trace"), ("vq", "trace"), pytest.param("vae", True, marks=pytest.mark.slow)],
)
def test_convolutions_in_float32_train_as_they_do_eagerly(name, mode):
    """Their kernels lay gradients out by channels; a fused optimizer goes by addresses."""
    x = programs.binary(32, (1, 12, 12))
    weights = {}
    for compile in (False, mode):
        torch.manual_seed(0)
        program = CONVOLUTIONS[name]()
        objective = pv.VQ() if name == "vq" else pv.ELBO()
        options = {"optimizer": lambda p: torch.optim.Adam(p, 1e-2, fused=True), "progress": False}
        pv.fit(program, x, epochs=3, objective=objective, compile=compile, **options)
        weights[compile] = [p.detach().clone() for p in program.parameters()]
        assert all(same_layout(p.grad, p) for p in program.parameters())
    torch.testing.assert_close(weights[mode], weights[False], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(set(programs.CASES) - UNTRACEABLE))
def test_every_program(name, device):
    torch.manual_seed(0)
    made, data = programs.made(name, device, rows=12)
    program = Program.of(made)
    data = program.adapt(data)
    losses = check(program, data, pv.ELBO(), 0.3, seeds=2)
    assert len(losses) == 2 or name in (
        "autoencoder",
        "vq_conv",
        "sentences_lm",
    )  # nothing is drawn


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(objective, device):
    torch.manual_seed(0)
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,))).double().to(device)
    x = programs.binary(12).to(device).double()
    check(program, x, OBJECTIVES[objective].build(3, 1), None)


@pytest.mark.parametrize(
    "make",
    [pv.ELBO, lambda: pv.NVIL(nn.Linear(6, 1)).double(), pv.RLOO, pv.VIMCO, pv.DisARM],
    ids=["score", "nvil", "rloo", "vimco", "disarm"],
)
def test_discrete_latents(make, device):
    torch.manual_seed(0)
    objective = make()
    if isinstance(objective, nn.Module):
        objective.to(device).eval()  # its running moments would move between the two runs
    program = Program.of(Bits()).double().to(device)
    check(program, programs.binary(12).to(device).double(), objective, None)


def test_one_graph_per_signature_and_none_per_beta():
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,)))
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    x = programs.binary(12)
    with program.running(), validation(False):
        losses = []
        for step in range(20):
            torch.manual_seed(0)
            losses.append(compiled(x, beta=step / 20).item())
        assert compiled.num_graphs == 1
        assert len(set(losses)) == 20  # β is an input, not a constant
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
    with pytest.warns(UserWarning, match=r"a tensor becomes a number.*programs\.py:\d+\)$"):
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
    for mode in (False, "auto"):
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
            epochs=13,  # 52 steps: enough for "auto" to trace
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


def test_an_unknown_mode():
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,)))
    with pytest.raises(ConfigError, match="mode: got 'fast'"):
        CompiledLoss(pv.ELBO().per_datum, program, mode="fast")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("regularised", marks=compiles_all), "bayesian"])
def test_inductor_gives_the_eager_numbers_at_equal_noise(name):
    """Binary data; dropout and batch norm; a global latent with N/B: all numbers, and buffers."""
    case = programs.CASES[name]
    torch.manual_seed(0)
    program = Program.of(case.build()).double()
    data = program.adapt(case.data(12))
    assert len(check(program, data, pv.ELBO(), 0.3, mode=True)) == 3


class Counting(nn.Module):
    """A program that counts its passes in a double of no dimension."""

    def __init__(self, in_place=True):
        super().__init__()
        self.in_place = in_place
        self.loc = nn.Parameter(torch.zeros(6))
        self.register_buffer("passes", torch.zeros(()))

    def model(self, x):
        with programs.pyro.plate("data", len(x)):
            z = programs.pyro.sample("z", programs.dist.Normal(0.0, 1.0))
            loc = self.loc + z[..., None]
            programs.pyro.sample("x", programs.dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        if self.training and self.in_place:
            self.passes += 1
        elif self.training:
            self.passes = self.passes + 1
        with programs.pyro.plate("data", len(x)):
            programs.pyro.sample("z", programs.dist.Normal(x.sum(-1), 1.0))


def test_a_buffer_that_is_replaced_would_stand_still():
    program = Program.of(Counting(in_place=False))
    x = programs.binary(12)
    program.read(x)
    program.train()
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    with program.running(), pytest.warns(UserWarning, match=r"passes' is replaced; write into it"):
        compiled(x)


def test_weights_that_thaw_between_two_steps_get_their_gradients():
    program, x = Program.of(pv.models.VAE(6, 2, hidden=(8,))), programs.binary(12)
    program.read(x)
    compiled, weight = CompiledLoss(pv.ELBO().per_datum, program), next(program.parameters())
    with program.running(), validation(False):
        compiled(x)
        weight.requires_grad_(False)
        torch.autograd.backward(compiled(x))
        assert weight.grad is None
        weight.requires_grad_(True)
        grads = []
        for loss in (compiled, lambda x: pv.ELBO().per_datum(program.joint(x))):
            torch.manual_seed(0)
            grads.append(torch.autograd.grad(loss(x), weight)[0])
    torch.testing.assert_close(*grads)
    assert compiled.num_graphs == 2


def test_a_graph_knows_for_how_many_data_its_batch_stands():
    def model(x):
        w = programs.pyro.sample("w", programs.dist.Normal(x.new_zeros(()), 1.0))
        with programs.pyro.plate("data", len(x)):
            programs.pyro.sample("x", programs.dist.Normal(w, 1.0), obs=x)

    def guide(x):
        programs.pyro.sample("w", programs.dist.Normal(programs.pyro.param("m", x.sum()), 1.0))

    program, x = Program.of(pv.Program(model, guide)), torch.arange(6.0)
    program.read(x)
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    with program.running(), validation(False):
        for size in (6, 60):
            torch.manual_seed(0)
            exact = pv.ELBO().per_datum(program.joint(x, size=size))
            torch.manual_seed(0)
            torch.testing.assert_close(compiled(x, size=size), exact)


def test_a_graph_that_breaks_halfway_leaves_the_buffers_of_one_step():
    program, x = Program.of(programs.CASES["regularised"].build()), programs.binary(12)
    program.read(x)
    program.train()
    compiled, ends = CompiledLoss(pv.ELBO().per_datum, program), []
    with program.running(), validation(False):
        compiled(x)
        before = {name: buffer.clone() for name, buffer in program.named_buffers()}
        (traced,) = compiled._graphs.values()
        traced.left = 100  # no comparison, which would find it first

        def breaks(*inputs):
            for index in traced.moving:
                inputs[index].add_(7)
            raise RuntimeError("out of memory")

        traced.run = breaks
        for loss in (compiled, lambda x: pv.ELBO().per_datum(program.joint(x))):
            torch.manual_seed(0)
            with pytest.warns(UserWarning, match="memory") if loss is compiled else nullcontext():
                loss(x)
            ends.append({name: buffer.clone() for name, buffer in program.named_buffers()})
            for name, buffer in program.named_buffers():
                buffer.copy_(before[name])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert any(not torch.equal(value, before[name]) for name, value in ends[0].items())


def test_a_buffer_that_others_replace_is_seen():
    program, x = Program.of(programs.CASES["regularised"].build().eval()), programs.binary(12)
    program.read(x)
    compiled, losses = CompiledLoss(pv.ELBO().per_datum, program), []
    with program.running(), validation(False):
        compiled(x)
        for part in program.modules():
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer + 1)
        for loss in (lambda: compiled(x), lambda: pv.ELBO().per_datum(program.joint(x))):
            torch.manual_seed(0)
            losses.append(loss().item())
    assert losses[0] == losses[1] and compiled.reason is None and compiled.num_graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_count_of_no_dimension_goes_on_under_the_compiler(dtype):
    """Inductor loses what is written to a float64 tensor of no dimension."""
    module = Counting()
    program = Program.of(module).to(dtype)
    x = programs.binary(12).to(dtype)
    program.read(x)
    program.train()
    compiled = CompiledLoss(pv.ELBO().per_datum, program, mode=True)
    with program.running(), validation(False):
        before = module.passes.item()
        for _ in range(3):
            compiled(x)
    assert module.passes.item() == before + 3


def test_auto_is_quiet_about_a_program_that_cannot_be_traced():
    case = programs.CASES["labelled"]
    program = Program.of(case.build()).double()
    data = program.adapt(case.data(12))
    compiled = CompiledLoss(pv.ELBO().per_datum, program, mode="auto", steps=1000)
    run(lambda: compiled(data), program, list(program.parameters()))
    assert "programs.py" in compiled.reason


def test_auto_traces_a_program_of_many_sites_where_the_steps_of_a_shape_pay_for_it(monkeypatch):
    """A trace of a site per step costs as long as two hundred steps save."""
    monkeypatch.setattr(compiled_loss, "_MANY_SITES", 3)

    def model(x):
        rate, z = pyro.param("rate", torch.tensor(0.5)), 0.0
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(rate * z, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                pyro.sample(f"z_{t}", dist.Normal(loc, 1.0).expand([len(x)]))

    found = {}
    for steps, often in ((200, 10), (2000, 10), (2000, 1)):
        program = Program(model, guide)
        rare, common = torch.zeros(3, 2), torch.zeros(4, 2)
        for x in (rare, common):
            program.read(x)
        compiled = CompiledLoss(pv.ELBO().per_datum, program, mode="auto", steps=steps)
        program.train()
        with program.running(), validation(False):
            for x in (common,) * 10 + (rare,) * often:
                compiled(x)
        found[steps, often] = compiled.num_graphs
        assert compiled.reason is None
    assert found == {(200, 10): 0, (2000, 10): 2, (2000, 1): 1}
    run_ = pv.fit(Program(model, guide), torch.zeros(50, 2), epochs=50, batch_size=50)
    assert run_.compiled.startswith("eager: a trace of 3 sites pays where one shape has 250 steps")
    assert pv.fit(program, common, epochs=1).compiled == "eager: 1 step would not pay for a trace"


class Ones(nn.Module):
    """A model of one line, written in several ways."""

    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0
        self.loc = nn.Parameter(torch.ones(6))

    def model(self, x):
        with programs.pyro.plate("data", len(x)):
            z = programs.pyro.sample("z", programs.dist.Normal(0.0, 1.0))
            loc = self.how(self, x) + z[..., None]
            programs.pyro.sample("x", programs.dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with programs.pyro.plate("data", len(x)):
            programs.pyro.sample("z", programs.dist.Normal(self.loc.sum() + x[:, 0] * 0, 1.0))


def counting(program, x):
    program.calls += 1
    return program.loc * (1 + 1e-6 * program.calls)


NOISE = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda p, x: p.loc + float(NOISE.normal()), "draw all noise from torch"),
        (counting, "keep no count in Python"),
        (lambda p, x: p.loc + x[x > 0.5].sum(), "depends on values"),
        (lambda p, x: p.loc + torch.masked_select(x, x > 0.5).sum(), "depends on values"),
    ],
    ids=["numpy", "count", "mask", "select"],
)
def test_what_a_tracer_would_freeze_runs_eagerly(how, why):
    program = Program.of(Ones(how))
    x = programs.binary(12)
    program.read(x)
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    with program.running(), pytest.warns(UserWarning, match=why):
        compiled(x)
    assert compiled.num_graphs == 0


def test_rows_laid_out_otherwise_are_read_right():
    """A compiled graph reads memory by the strides that it was compiled for."""
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,)))
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    x = programs.binary(12)
    turned = x.t().contiguous().t()
    parameters = list(program.parameters())
    one, other = (run(lambda b=b: compiled(b), program, parameters) for b in (x, turned))
    torch.testing.assert_close(one, other)
    crop = torch.zeros(12, 8)
    crop[:, 1:-1] = x
    torch.testing.assert_close(run(lambda: compiled(crop[:, 1:-1]), program, parameters), one)


def test_rows_of_a_table_by_index_are_traced():
    """``table[rows]`` is an operator that PyTorch's bindings know by no name of their own."""

    def whole(table, rows):
        return (table[rows].sum(),)

    inputs = (torch.randn(5, 2), torch.tensor([4, 0]))
    assert torch.equal(
        direct(simplify(make_fx(whole)(*inputs), inputs), inputs)(*inputs)[0],
        inputs[0][[4, 0]].sum(),
    )


def fitted(mode, **options):
    """Train a small VAE for some epochs; return it with its first weights."""
    torch.manual_seed(0)
    vae = pv.models.VAE(6, 2, hidden=(8,))
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    setting = options.pop("setting", lambda vae: {})(vae)
    x = programs.binary(64)
    run_ = pv.fit(
        vae, x, epochs=8, batch_size=8, compile=mode, progress=False, device="cpu", **setting
    )
    return vae, before, run_


@pytest.mark.parametrize("mode", [False, "trace", "auto"])
def test_hooks_on_gradients_are_called(mode):
    def setting(vae):
        weight = next(vae.encoder.parameters())
        weight.register_hook(lambda grad: torch.zeros_like(grad))
        return {}

    vae, before, run_ = fitted(mode, setting=setting)
    assert run_.compiled == ("graph" if mode else "eager")
    name, weight = next((n, p) for n, p in vae.named_parameters() if n.startswith("encoder"))
    assert torch.equal(weight, before[name])


@pytest.mark.parametrize("mode", [False, "trace", "auto"])
def test_weights_frozen_in_a_callback_stand_still(mode):
    seen = []

    def setting(vae):
        def freeze(run_):
            if len(run_.history["epoch"]) == 3:
                vae.encoder.requires_grad_(False)
                seen.extend(p.detach().clone() for p in vae.encoder.parameters())

        return {"callbacks": [freeze]}

    vae, _, _ = fitted(mode, setting=setting)
    assert all(torch.equal(a, b) for a, b in zip(seen, vae.encoder.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD])
def test_a_gradient_left_from_elsewhere_moves_nothing(optimizer):
    program = Ones(lambda p, x: p.loc)
    program.head = nn.Parameter(torch.ones(3))
    program.head.grad = torch.ones(3)
    pv.fit(program, programs.binary(32), epochs=3, compile="trace", optimizer=optimizer)
    assert torch.equal(program.head, torch.ones(3))


def test_a_run_says_why_it_ran_eagerly():
    case = programs.CASES["labelled"]
    run_ = pv.fit(case.build(), case.data(128), epochs=60, batch_size=64, progress=False)
    assert run_.compiled.startswith("eager: ") and "programs.py" in run_.compiled


@pytest.mark.parametrize("mode", [1, None, 0, "", "True"])
def test_modes_that_are_none(mode):
    with pytest.raises(ConfigError, match="compile: got"):
        pv.fit(pv.models.VAE(6, 2, hidden=(8,)), programs.binary(8), compile=mode)


def test_weights_that_were_replaced_are_seen():
    program = Program.of(pv.models.VAE(6, 2, hidden=(8,)))
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    x = programs.binary(12)
    with program.running(), validation(False):
        first = run(lambda: compiled(x), program, list(program.parameters()))[0]
        program.load_state_dict({k: v + 0.5 for k, v in program.state_dict().items()})
        for module in program.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data * 2  # another tensor behind the parameter
        second = run(lambda: compiled(x), program, list(program.parameters()))[0]
        eager = run(
            lambda: pv.ELBO().per_datum(program.joint(x)), program, list(program.parameters())
        )[0]
    assert second != first and torch.equal(second, eager)


class Regression(PyroModule):
    """Pyro's tutorial: priors that were made, and expanded, while validation was on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        scale = pyro.sample("scale", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, scale), obs=y)


def test_priors_that_hold_a_flag_of_their_own_are_traced():
    """``expand`` copies the flag of validation, whose look at each value no graph can take."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = x, x.sum(-1)
    losses = {}
    for mode in (False, "trace"):
        torch.manual_seed(1)
        model = Regression()
        program = pv.Program(model, AutoNormal(model))
        run_of_mode = pv.fit(program, data, epochs=3, batch_size=20, compile=mode)
        losses[mode] = run_of_mode.history["loss"]
    assert run_of_mode.compiled == "graph"
    np.testing.assert_allclose(losses["trace"], losses[False], rtol=1e-6)
    prior = model.linear._pyro_samples["bias"].base_dist
    assert vars(prior)["_validate_args"]  # the user's own is as it was
    with pytest.raises(ValueError, match="support"):
        prior.log_prob(torch.tensor([float("nan")]))


def test_what_stops_a_trace_is_told_with_the_users_line_alone():
    """The tracer evaluates a lambda, whose ``<string>:1`` nobody wrote."""
    fails = partial(torch.add, torch.zeros(2), torch.zeros(3))
    with pytest.raises(RuntimeError) as raised:
        eval("lambda fn: fn()", {})(fails)
    assert "test_compiled_loss.py" in users_line(raised.value)
