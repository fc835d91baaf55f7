"""Mixed precision: networks in bfloat16, everything else in float32, and close to it."""

import copy
import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import CASES, mlp
from pyro.infer.autoguide import AutoGaussian
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from pyro_vae.training.precision import find_networks, mixed

WITHOUT = ("pyroparam", "functions", "linear", "linear_full", "def_table", "sentences_lm")
WITH_NETWORKS = [name for name in CASES if name not in WITHOUT]
# Rejection samplers: how many random numbers they take depends on the parameters.
UNEQUAL_NOISE = ("def_gamma", "def_poisson")


def program_and_batch(name, rows=16):
    torch.manual_seed(1)
    program = pv.Program.of(CASES[name].build())
    batch = program.adapt(CASES[name].data(rows))
    program.read(batch)
    return program, batch


def names(program, networks):
    """Return the modules' names within a program."""
    return sorted(n.split(".", 2)[2] for n, m in program.named_modules() if m in networks)


# -- which modules are networks ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "vae": ["decoder.net", "encoder.net"],
        "tutorial": ["decoder", "encoder"],
        "labelled": ["decode", "encode"],
        "bayesian": ["encode"],
        "regularised": ["decode", "encode"],
    }.items(),
)
def test_the_outermost_tensor_maps_are_the_networks(name, expected):
    program, batch = program_and_batch(name)
    assert names(program, find_networks(program, batch)) == expected


def test_a_module_with_a_sample_statement_is_no_network():
    class Whole(nn.Module):
        """It is called as a module, returns a tensor, and draws inside."""

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 6)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    whole, hidden = Whole(), {"deep": [mlp(6, 4)]}

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, log_scale = hidden["deep"][0](x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    program, x = pv.Program(lambda x: whole(x), guide), torch.zeros(4, 6)
    program.read(x)
    found = find_networks(program, x)
    assert {id(module) for module in found} == {id(whole.net), id(hidden["deep"][0])}


def test_a_look_leaves_no_hook_and_no_noise():
    program, batch = program_and_batch("vae")
    before = torch.get_rng_state()
    find_networks(program, batch)
    assert torch.equal(torch.get_rng_state(), before)
    hooks = nn.modules.module
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks


# -- what runs in which type -----------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_NETWORKS)
def test_products_in_bfloat16_everything_else_in_float32(name):
    program, batch = program_and_batch(name)
    networks = find_networks(program, batch)
    inside = []

    # A layer that is a network by itself hands out float32: what it multiplied shows in the digits.
    alone = {id(network) for network in networks}

    def note(module, inputs, output):
        rounded = torch.equal(output, output.to(torch.bfloat16).to(output.dtype))
        inside.append(output.dtype if id(module) not in alone or not rounded else torch.bfloat16)

    layers = [m for n in networks for m in n.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with mixed(networks, torch.device("cpu")), program.running():
        loss = pv.ELBO().per_datum(program.joint(batch))
        terms = program.terms(batch)
        loss.backward()
    for handle in handles:
        handle.remove()
    assert inside and set(inside) == {torch.bfloat16}
    assert loss.dtype == torch.float32
    values = [*terms.log_p.values(), *terms.log_q.values()]
    assert {value.dtype for value in values} == {torch.float32}
    for draws in terms.latents.values():
        assert {draw.value.dtype for draw in draws} == {torch.float32}
    grads = [p.grad for p in program.parameters() if p.grad is not None]
    assert grads and {grad.dtype for grad in grads} == {torch.float32}
    assert all("forward" not in vars(module) for module in program.modules())


@pytest.mark.parametrize("name", [n for n in WITH_NETWORKS if n not in UNEQUAL_NOISE])
def test_close_to_float32(name):
    """Within 1 % of the terms' size at equal noise: eight bits, errors that mostly cancel."""
    program, batch = program_and_batch(name, rows=64)
    program.eval()
    networks = find_networks(program, batch)

    def elbo():
        torch.manual_seed(5)
        with torch.no_grad():
            terms = program.terms(batch)
        size = sum(v.abs().mean() for v in (*terms.log_p.values(), *terms.log_q.values()))
        return terms.log_weight.mean().item(), size.item()

    full, size = elbo()
    with mixed(networks, torch.device("cpu")):
        half, _ = elbo()
    assert half != full
    assert abs(half - full) < 0.01 * size


def test_outputs_keep_their_form():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            y = self.layer(x)
            return {
                "pair": (y, [y, y.argmax(-1)]),
                "top": torch.return_types.max((y, y.argmax(-1))),
            }

    many = Many()
    with mixed([many], torch.device("cpu")):
        found = many(torch.randn(2, 3))
    pair, top = found["pair"], found["top"]
    assert pair[0].dtype == pair[1][0].dtype == torch.float32 and pair[1][1].dtype == torch.int64
    assert top[0].dtype == torch.float32


def test_an_error_leaves_the_modules_as_they_were():
    network, plain = nn.Linear(3, 3), nn.Linear(3, 3)
    own = network.forward = lambda x: nn.Linear.forward(network, x)
    with pytest.raises(ZeroDivisionError), mixed([network, plain], torch.device("cpu")):
        raise ZeroDivisionError
    assert network.forward is own and not torch.is_autocast_enabled("cpu")
    assert "forward" not in vars(plain)


# -- pv.fit ---------------------------------------------------------------------------------------


def trained(name, **options):
    """Return a program and its losses: weights, noise and order are those of one seed."""
    torch.manual_seed(1)
    program, data = CASES[name].build(), CASES[name].data(40)
    run = pv.fit(program, data, epochs=5, lr=0.01, batch_size=20, **options)
    return program, run.history["loss"]


in_float32 = functools.cache(functools.partial(trained, compile=False))


@pytest.mark.parametrize("compile", [False, "trace"])
@pytest.mark.parametrize("name", ["vae", "vae_conv", "regularised", "tutorial", "bayesian"])
def test_it_trains_as_in_float32(name, compile):
    """Equal noise and order: the weights differ by bfloat16's rounding only."""
    full = in_float32(name)[1]
    program, half = trained(name, compile=compile, precision="bf16-mixed")
    assert (full != half).all()  # it was at work
    assert abs(full - half).max() < 0.01 * abs(full).max()
    assert full[-1] < full[0] and half[-1] < half[0]
    assert {p.dtype for p in program.parameters()} == {torch.float32}


def test_eager_and_traced_agree():
    losses = []
    for mode in (False, "trace"):
        torch.manual_seed(1)
        vae = CASES["vae"].build()
        run = pv.fit(vae, CASES["vae"].data(40), epochs=3, compile=mode, precision="bf16-mixed")
        losses.append(torch.tensor(run.history["loss"]))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own compiler
def test_compiled_agrees():
    losses = []
    for mode in (False, True):
        torch.manual_seed(1)
        vae = CASES["vae"].build()
        x = CASES["vae"].data(40)
        run = pv.fit(vae, x, epochs=3, compile=mode, precision="bf16-mixed")
        losses.append(torch.tensor(run.history["loss"]))
    # Equal noise; a fused kernel leaves out roundings to bfloat16 between two operations.
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)


def test_judging_is_in_full_precision():
    torch.manual_seed(1)
    vae = CASES["vae"].build()
    x = CASES["vae"].data(40)
    still = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
    runs = [
        pv.fit(vae, x, valid=x, epochs=1, optimizer=still, precision=precision)
        for precision in (None, "bf16-mixed")
    ]
    assert runs[0].history["valid_elbo"] == runs[1].history["valid_elbo"]
    assert runs[0].history["loss"] != runs[1].history["loss"]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("32-true", torch.float32)]
)
def test_true_precisions_convert(precision, dtype):
    start = {torch.float64: torch.float32, torch.float32: torch.float64}[dtype]
    vae = CASES["vae"].build().to(start)
    pv.fit(vae, CASES["vae"].data(20), epochs=1, precision=precision)
    assert {tensor.dtype for tensor in (*vae.parameters(), *vae.buffers())} == {dtype}


def of_statements(x):
    loc = pyro.param("loc", lambda: torch.full((2,), 1 / 3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc + z, 0.5).to_event(1), obs=x)


def of_data(x):
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))


@pytest.mark.parametrize("loader", [False, True])
def test_what_the_first_run_makes_is_converted(loader):
    """In 64 bits its training is that of a program that has run before."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = DataLoader(TensorDataset(x), batch_size=8) if loader else x
    losses = []
    for read in (False, True):
        program = pv.Program(of_statements, of_data)
        if read:
            program.read(x.float())
        run = pv.fit(program, data, epochs=2, batch_size=8, precision="64-true")
        losses.append(run.history["loss"])
        assert {tensor.dtype for tensor in program.parameters()} == {torch.float64}
        assert pv.elbo(program, x).dtype == torch.float64
    assert (losses[0] == losses[1]).all()


class KeepsAType(nn.Linear):
    """A buffer in one type, whatever the rest is converted to."""

    def __init__(self, dtype):
        super().__init__(2, 2)
        self.kept = dtype
        self.register_buffer("factor", torch.ones(2, dtype=dtype))

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        self.factor = self.factor.to(self.kept)
        return self

    def forward(self, x):
        return super().forward(x * self.factor.to(x.dtype))


@pytest.mark.parametrize(
    ("precision", "kept"), [("32-true", torch.float64), ("64-true", torch.float32)]
)
def test_a_module_may_keep_a_type_of_its_own(precision, kept):
    net = KeepsAType(kept)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 0.3).to_event(1))

    program = pv.Program(of_statements, guide)
    pv.fit(program, torch.randn(20, 2), epochs=1, batch_size=8, precision=precision)
    asked = torch.float64 if precision == "64-true" else torch.float32
    assert {tensor.dtype for tensor in program.parameters()} == {asked}
    assert net.factor.dtype == kept


@pytest.mark.parametrize("read", [False, True])
def test_a_guide_of_the_default_type_tells_the_way_out(read):
    """Pyro's AutoGaussian adds up in PyTorch's default type, whatever its parameters are."""

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 0.5).to_event(1), obs=x)

    x = torch.randn(20, 2)
    program = pv.Program(model, AutoGaussian(model))
    if read:
        program.read(x)
    with pytest.raises(ConfigError, match=r"call torch\.set_default_dtype\(torch\.float64\)"):
        pv.fit(program, x, epochs=1, precision="64-true")
    torch.set_default_dtype(torch.float64)
    try:
        program = pv.Program(model, AutoGaussian(model))
        pv.fit(program, x, epochs=1, precision="64-true")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in program.parameters()} == {torch.float64}


def test_by_default_the_program_keeps_its_type():
    vae = CASES["vae"].build().double()
    pv.fit(vae, CASES["vae"].data(20), epochs=1)
    assert {p.dtype for p in vae.parameters()} == {torch.float64}


@pytest.mark.parametrize("precision", ["16-mixed", "bf16", 16, "float32"])
def test_unknown_precisions(precision):
    with pytest.raises(ConfigError, match=r"precision: got .*expected one of .* or None"):
        pv.fit(CASES["vae"].build(), CASES["vae"].data(20), precision=precision)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_program_without_networks(name):
    with pytest.raises(ConfigError, match="calls none that maps tensors to tensors"):
        pv.fit(CASES[name].build(), CASES[name].data(20), precision="bf16-mixed")


def test_a_continuation_keeps_the_precision(tmp_path):
    build, x = CASES["vae"].build, CASES["vae"].data(20)
    pv.fit(build(), x, epochs=1, out=tmp_path / "run", precision="bf16-mixed")
    with pytest.raises(ConfigError, match="precision = 'bf16-mixed', this run None"):
        pv.fit(build(), x, epochs=2, out=tmp_path / "run", resume=True)
    vae = build()
    pv.fit(vae, x, epochs=2, out=tmp_path / "run", resume=True, precision="bf16-mixed")
    loaded = pv.load(tmp_path / "run")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), vae.parameters(), strict=True)
    )


def test_a_copy_of_a_network_is_free_of_the_wrapper():
    network = nn.Linear(3, 3)
    with mixed([network], torch.device("cpu")):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.deepcopy(network)(torch.zeros(1, 3)).dtype == torch.float32
