"""Where a program may keep its networks and parameters: all of them train, and none is lost."""

import copy
import functools
import types
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError, ProgramError
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.program import object_graph
from pyro_vae.program.handlers import validation
from pyro_vae.training.adam import Adam
from pyro_vae.training.step import Stepper

D, Z, ROWS = 3, 2, 7


def data(rows=ROWS, seed=3):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)) + 1


def decode(decoder, x, registered):
    if registered:
        pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), 0.6).to_event(1), obs=x)


def encode(encoder, x, registered):
    if registered:
        pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


# -- places: (encoder, decoder, registered) -> (model, guide) or an object, and the parts' names ---

PLACES = {}


def place(*names):
    def add(build):
        PLACES[build.__name__] = (build, names)
        return build

    return add


def pair(get_encoder, get_decoder, registered):
    """Return functions that look their networks up when they run."""
    return (
        lambda x: decode(get_decoder(), x, registered),
        lambda x: encode(get_encoder(), x, registered),
    )


@place("d", "e")
def closure(e, d, registered):
    return lambda x: decode(d, x, registered), lambda x: encode(e, x, registered)


@place("decoder", "encoder")
def positional_argument_of_partial(e, d, registered):
    both = functools.partial(decode, d), functools.partial(encode, e)
    return tuple(functools.partial(part, registered=registered) for part in both)


@place("net", "net_2")
def keyword_argument_of_partial(e, d, registered):
    def model(x, net):
        decode(net, x, registered)

    def guide(x, net):
        encode(net, x, registered)

    return functools.partial(model, net=d), functools.partial(guide, net=e)


@place("d", "e")
def default_argument(e, d, registered):
    def model(x, *, d=d):
        decode(d, x, registered)

    def guide(x, *, e=e):
        encode(e, x, registered)

    return lambda x: model(x), lambda x: guide(x)


@place("nets_d", "nets_e")
def dictionary(e, d, registered):
    nets = {"d": d, "e": e}
    return pair(lambda: nets["e"], lambda: nets["d"], registered)


@place("nets_0_d", "nets_1_0")
def nested_containers(e, d, registered):
    nets = [{"d": d}, (e,)]
    return pair(lambda: nets[1][0], lambda: nets[0]["d"], registered)


@place("OwnsAList", "OwnsAList_nets_0", "OwnsAList_nets_1")
def list_of_a_module(e, d, registered):
    class OwnsAList(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = [e, d]

        def model(self, x):
            decode(self.nets[1], x, registered)

        def guide(self, x):
            encode(self.nets[0], x, registered)

    return OwnsAList()


@place("e", "d")
def plain_object(e, d, registered):
    class Plain:
        def __init__(self):
            self.e, self.d = e, d

        def model(self, x):
            decode(self.d, x, registered)

        def guide(self, x):
            encode(self.e, x, registered)

    return Plain()


@place("nets_inner_e", "nets_inner_d")
def object_in_object(e, d, registered):
    @dataclass
    class Nets:
        inner: object

    class Plain:
        def __init__(self):
            self.nets = Nets(types.SimpleNamespace(e=e, d=d))

        def model(self, x):
            decode(self.nets.inner.d, x, registered)

        def guide(self, x):
            encode(self.nets.inner.e, x, registered)

    return Plain()


@place("held_d", "held_e")
def slots(e, d, registered):
    class Held:
        __slots__ = ("d", "e")

    held = Held()
    held.d, held.e = d, e
    return pair(lambda: held.e, lambda: held.d, registered)


@place("d", "e")
def closures_of_closures(e, d, registered):
    def outer(function, net):
        def middle():
            def inner(x):
                return function(x)

            return inner

        return middle()

    return (
        outer(lambda x: decode(d, x, registered), d),
        outer(lambda x: encode(e, x, registered), e),
    )


NETS = {}


@place("NETS_d", "NETS_e")
def globals_of_called_functions(e, d, registered):
    NETS.update(e=e, d=d)
    return lambda x: called_model(x, registered), lambda x: called_guide(x, registered)


def called_model(x, registered):
    decode(NETS["d"], x, registered)


def called_guide(x, registered):
    encode(NETS["e"], x, registered)


@place("d", "e")
def handlers(e, d, registered):
    model, guide = closure(e, d, registered)
    return poutine.scale(model, 1.0), poutine.block(poutine.scale(guide, 1.0), hide=["nothing"])


@place("d", "e")
def enumeration(e, d, registered):
    model, guide = closure(e, d, registered)
    return poutine.condition(model, {}), config_enumerate(guide)


@place("d", "e")
def decorators(e, d, registered):
    def announced(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args)

        return wrapper

    model, guide = closure(e, d, registered)
    return announced(model), torch.enable_grad()(guide)


@place("net", "net_2")
def callable_objects(e, d, registered):
    class Calls:
        def __init__(self, net, run):
            self.net, self.run = net, run

        def __call__(self, x):
            self.run(self.net, x, registered)

    return Calls(d, decode), Calls(e, encode)


@place("helper_d", "helper_e")
def methods_of_a_helper(e, d, registered):
    class Helper:
        def __init__(self):
            self.d, self.e = d, e

        def model(self, x):
            decode(self.d, x, registered)

        def guide(self, x):
            encode(self.e, x, registered)

    helper = Helper()
    return lambda x: helper.model(x), lambda x: helper.guide(x)


@place("Nets_d", "Nets_e")
def class_attributes(e, d, registered):
    class Nets:
        pass

    Nets.d, Nets.e = d, e
    return pair(lambda: Nets.e, lambda: Nets.d, registered)


@place("nets_d", "nets_e")
def attributes_of_an_imported_file(e, d, registered):
    nets = types.ModuleType("nets_of_a_user")
    nets.d, nets.e, nets.unused = d, e, nn.Linear(1, 1)
    return pair(lambda: nets.e, lambda: nets.d, registered)


@place("cache_d", "cache_e")
def cache_filled_by_the_first_call(e, d, registered):
    cache, made = {}, iter((e, d))  # the guide runs first

    def get(name):
        if name not in cache:
            cache[name] = next(made)
        return cache[name]

    return pair(lambda: get("e"), lambda: get("d"), registered)


@place()  # no search looks into it: the calls are seen
def inside_a_memoised_function(e, d, registered):
    made = iter((e, d))

    @functools.lru_cache
    def get(name):
        return next(made)

    return pair(lambda: get("e"), lambda: get("d"), registered)


@place()  # no module is called: the graph behind the densities tells
def weights_without_calls(e, d, registered):
    made = iter((e, d))

    @functools.lru_cache
    def get(name):
        return next(made)

    def by_hand(name):
        return lambda value: nn.functional.linear(value, get(name).weight, get(name).bias)

    return (
        lambda x: decode(by_hand("d"), x, False),
        lambda x: encode(by_hand("e"), x, False),
    )


def networks():
    torch.manual_seed(1)
    return nn.Linear(D, 2 * Z), nn.Linear(Z, D)


def built(name, registered):
    encoder, decoder = networks()
    found = PLACES[name][0](encoder, decoder, registered)
    program = pv.Program(*found) if isinstance(found, tuple) else pv.Program.of(found)
    return program, (encoder, decoder)


def weights(nets):
    return [value for net in nets for value in net.parameters()]


def stock_gradients(x, seed):
    """Return the gradients of stock Pyro's loss per datum, of networks held by a closure."""
    nets = networks()
    torch.manual_seed(seed)
    loss = Trace_ELBO().differentiable_loss(*closure(*nets, False), x) / len(x)
    return torch.autograd.grad(loss, weights(nets))


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("name", PLACES)
def test_every_place_has_the_gradients_of_stock_pyro(name, registered):
    program, nets = built(name, registered)
    for rows in (ROWS, 5):  # the second batch has another signature
        program.read(data(rows))
    names = PLACES[name][1]
    assert not names or set(program.parts) == set(names)
    assert {id(value) for value in weights(nets)} <= {id(value) for value in program.parameters()}
    graph = CompiledLoss(pv.ELBO().per_datum, program)
    for seed, rows in ((0, ROWS), (1, 5)):
        exact = stock_gradients(data(rows), seed)
        for loss_of in (lambda x: pv.ELBO().per_datum(program.joint(x)), graph)[: 1 + (rows == 5)]:
            with program.running(), validation(False):
                torch.manual_seed(seed)
                found = torch.autograd.grad(loss_of(data(rows)), weights(nets))
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    assert graph.reason is None and graph.num_graphs == 1


@pytest.mark.parametrize("name", PLACES)
def test_every_place_trains_as_stock_svi_does(name, store):
    """Plain gradient steps on all rows, at equal noise: SVI's loss is N times ours."""
    x, steps, lr = data(), 3, 0.02
    nets = networks()
    model, guide = closure(*nets, True)
    torch.manual_seed(0)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": lr / ROWS}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x)
    program, mine = built(name, registered=False)
    program.read(x)
    before = [value.detach().clone() for value in weights(mine)]
    optimizer = torch.optim.SGD(program.parameters(), lr=lr)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        with program.running(), validation(False):
            pv.ELBO().per_datum(program.joint(x)).backward()
        optimizer.step()
    for old, new, exact in zip(before, weights(mine), weights(nets), strict=True):
        assert (new - old).abs().max() > 1e-3
        torch.testing.assert_close(new.detach(), exact.detach(), rtol=1e-4, atol=1e-6)
    store.clear()


def test_a_search_does_not_leave_the_program():
    """Networks of other code, and of names that only occur as attributes, stay out of it."""
    encoder, decoder = networks()

    class Helper:
        def __init__(self):
            self.decoder = decoder

        def run(self, x):
            decode(self.decoder, x, False)

        def compare(self, x):
            return STRANGER(x)

    helper = Helper()
    program = pv.Program(lambda x: helper.run(x), lambda x: encode(encoder, x, False))
    pv.elbo(program, data())
    assert set(program.parts) == {"helper_decoder", "encoder"} and not len(program.values)


STRANGER = nn.Linear(1, 1)


# -- tensors that no module holds ------------------------------------------------------------------


def with_leaf(leaf, use=lambda leaf: leaf):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + use(leaf), 0.6).to_event(1), obs=x)

    return pv.Program(model, centred)


def centred(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


@pytest.mark.parametrize("kind", [nn.Parameter, lambda value: value.requires_grad_()])
@pytest.mark.parametrize("compile", [False, "trace"])
def test_a_leaf_tensor_trains_and_stays_itself(kind, compile):
    leaf = kind(torch.full((D,), 0.25))
    program = with_leaf({"leaf": [leaf]}, lambda held: held["leaf"][0])
    pv.fit(program, data(64), epochs=40, batch_size=64, lr=0.05, compile=compile)
    assert [value is leaf for value in program.parameters()] == [True]
    assert (leaf - 0.25).abs().min() > 0.1  # towards the mean of the data
    leaf.requires_grad_(False)
    before = leaf.clone()
    program.read(data(3))
    with pytest.raises(ConfigError, match="no trainable parameters"):
        pv.fit(program, data(64), epochs=1)
    assert torch.equal(leaf, before)


def test_a_leaf_of_one_call_is_no_parameter():
    """A guide that differentiates by its own values makes leaves that nobody shall train."""
    shift = nn.Parameter(torch.zeros(D))

    def uphill(x):
        place = (x / 2).detach().requires_grad_()
        (slope,) = torch.autograd.grad(-(place - shift).square().sum(), place, create_graph=True)
        return place + slope

    def guide(x):
        with pyro.plate("data", len(x)), torch.enable_grad():
            pyro.sample("z", dist.Normal(uphill(x), 0.7).to_event(1))

    program = pv.Program(with_leaf(torch.zeros(D)).functions[0], guide)
    program.read(data())
    assert [value is shift for value in program.parameters()] == [True]


def test_rows_that_require_a_gradient_are_no_parameter():
    program = with_leaf(torch.zeros(D))
    program.read(data().requires_grad_())
    assert not list(program.parameters())


def test_weights_made_anew_by_each_call_are_refused():
    def model(x):
        decode(nn.Linear(Z, D), x, False)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :Z] / 2, 0.7).to_event(1))

    program = pv.Program(model, guide)
    with pytest.raises(ProgramError, match="made anew by each call"):
        pv.fit(program, data(), epochs=1)
    assert not list(program.parameters())


def test_later_batches_may_bring_parameters():
    late = nn.Parameter(torch.zeros(D))
    program = with_leaf(torch.zeros(D))
    model, guide = program.functions

    def grown(x):
        model(x + late if len(x) > 5 else x)

    program = pv.Program(lambda x: grown(x), guide)
    program.read(data(4))
    assert not list(program.parameters())
    program.read(data(6))
    assert next(program.parameters()) is late


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(Z, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, D)
        )

    def forward(self, z):
        return self.net(z)


def test_reading_leaves_the_buffers_of_a_hidden_network_and_saving_keeps_them(tmp_path):
    def made():
        decoder = Normed()
        get_decoder = functools.lru_cache(iter((decoder,)).__next__)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :Z] / 2, 0.7).to_event(1))

        return pv.Program(lambda x: decode(get_decoder(), x, False), guide), decoder

    program, decoder = made()
    before = {name: value.clone() for name, value in decoder.named_buffers()}
    program.read(data())
    assert all(torch.equal(before[name], value) for name, value in decoder.named_buffers())
    assert decoder.training and all(part.training for part in decoder.modules())
    pv.fit(program, data(64), epochs=3, batch_size=32)
    assert not torch.equal(before["net.1.running_mean"], decoder.net[1].running_mean)
    pv.save(program, tmp_path)
    loaded, other = made()
    pv.load(tmp_path, into=loaded)
    torch.manual_seed(0)
    exact = pv.elbo(program, data())
    torch.manual_seed(0)
    assert torch.equal(exact, pv.elbo(loaded, data()))
    assert torch.equal(other.net[1].running_mean, decoder.net[1].running_mean)


# -- what is not to be trained ---------------------------------------------------------------------


def partly_frozen():
    """A global mean, learnt before and put behind a block, and a shift to be learnt now."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean + x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.6).to_event(1), obs=x)

    learnt = AutoDelta(
        poutine.block(model, expose=["mean"]), init_loc_fn=lambda site: torch.tensor(0.5)
    )

    def guide(x):
        with poutine.block(hide_types=["param"]):
            learnt(x)
            width = pyro.param("width", torch.tensor(0.7), constraint=constraints.positive)
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift, width).to_event(1))

    return model, guide, learnt


@pytest.mark.parametrize("compile", [False, "trace"])
def test_a_block_freezes_what_stock_svi_leaves_still(compile, store):
    model, guide, learnt = partly_frozen()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(data())
    assert abs(store["shift"].item()) > 0.01 and learnt.mean.item() == 0.5
    assert store["width"].item() == pytest.approx(0.7)
    store.clear()
    model, guide, learnt = partly_frozen()
    program = pv.Program(model, guide)
    pv.fit(program, data(32), epochs=5, batch_size=32, lr=0.1, compile=compile)
    with program.running():
        assert pyro.param("width").item() == pytest.approx(0.7)
        assert abs(pyro.param("shift").item()) > 0.1
    assert learnt.mean.item() == 0.5 and learnt.mean_unconstrained.requires_grad
    assert set(program.state_dict()) >= {"values.width", "values.shift"}


def test_a_decoder_behind_a_block_is_frozen_until_it_is_not():
    encoder, decoder = networks()
    behind = [True]

    def model(x):
        if behind[0]:
            with poutine.block(hide_types=["param"]):
                pyro.module("decoder", decoder)
        decode(decoder, x, not behind[0])

    program = pv.Program(model, lambda x: encode(encoder, x, True))
    for frozen in (True, False):
        behind[0] = frozen
        before = [value.detach().clone() for value in weights([encoder, decoder])]
        # Other rows: a structure is learnt once per signature.
        pv.fit(program, data(16 + frozen), epochs=3, batch_size=32, lr=0.05)
        moved = [
            not torch.equal(old, new)
            for old, new in zip(before, weights([encoder, decoder]), strict=True)
        ]
        assert moved == [True, True, not frozen, not frozen]
    assert all(value.requires_grad for value in weights([encoder, decoder]))


# -- Pyro's parameter store ------------------------------------------------------------------------


def of_statements(seed=0):
    """Parameters of all kinds of statement: plain, constrained, a module's, an autoguide's."""
    torch.manual_seed(seed)
    decoder = nn.Linear(Z, D)

    def model(x):
        pyro.module("decoder", decoder)
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        bias = pyro.sample("bias", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z) + bias, noise).to_event(1), obs=x)

    auto = AutoNormal(poutine.block(model, expose=["bias"]))

    def guide(x):
        auto(x)
        shift = pyro.param("shift", lambda: torch.zeros(Z))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :Z] / 2 + shift, 0.7).to_event(1))

    return model, guide, decoder


def trained_by_svi(x, rebuilt=True):
    """Return functions and their loss per datum at seed 1, after stock SVI has trained them."""
    model, guide, _ = of_statements()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(20):
        svi.step(x)
    torch.manual_seed(1)
    exact = svi.evaluate_loss(x) / len(x)
    return of_statements(seed=5) if rebuilt else (model, guide, None), exact


def loss_of(program, x):
    program.read(x)
    torch.manual_seed(1)
    with program.running(), torch.no_grad():
        return pv.ELBO().per_datum(program.joint(x, size=len(x))).item()


@pytest.mark.parametrize("rebuilt", [True, False])
def test_what_stock_svi_has_trained_is_taken_over(rebuilt, store):
    x = data(20)
    (model, guide, decoder), exact = trained_by_svi(x, rebuilt)
    kept = {name: value.detach().clone() for name, value in store.items()}
    program = pv.Program(model, guide, params=store)
    assert loss_of(program, x) == pytest.approx(exact, rel=1e-5)
    if rebuilt:
        assert torch.equal(decoder.weight, kept["decoder$$$weight"])
    pv.fit(program, x, epochs=2, batch_size=20, lr=0.05)
    assert loss_of(program, x) != pytest.approx(exact, rel=1e-5)  # and trains on
    program.read(data(9))  # another signature asks once more: what was learnt since stays
    assert loss_of(program, x) != pytest.approx(exact, rel=1e-5)
    plain = {"noise", "shift"}  # modules are the user's own: SVI and we train the same tensors
    assert all(torch.equal(store[name], kept[name]) for name in plain)
    store.clear()


def test_values_in_the_store_that_are_passed_over_are_named_once(store):
    x = data(20)
    (model, guide, _), exact = trained_by_svi(x)
    program = pv.Program(model, guide)
    with pytest.warns(UserWarning, match=r"'noise'.*params=pyro.get_param_store\(\)") as seen:
        found = loss_of(program, x)
    assert found != pytest.approx(exact, rel=1e-3)
    pv.elbo(program, data(11))  # a second warning would be an error here
    assert len(seen) == 1
    store.clear()


def test_a_store_of_equal_values_or_of_another_program_warns_of_nothing(store):
    pyro.param("elsewhere", torch.tensor(3.0))
    model, guide, decoder = of_statements()
    pyro.module("decoder", decoder)
    pyro.param("shift", torch.zeros(Z))
    pv.elbo(pv.Program(model, guide), data())  # a warning is an error here
    store.clear()


def test_a_store_that_does_not_fit_is_refused(store):
    model, guide, _ = of_statements()
    with pytest.raises(ConfigError, match="got an empty store"):
        pv.Program(model, guide, params=store)
    with pytest.raises(ConfigError, match="got dict"):
        pv.Program(model, guide, params={"noise": torch.tensor(1.0)})
    pyro.param("elsewhere", torch.tensor(3.0))
    with pytest.raises(ProgramError, match="none of the store's names \\('elsewhere'\\)"):
        pv.elbo(pv.Program(model, guide, params=store), data())
    pyro.module("decoder", nn.Linear(Z, D + 1))
    program = pv.Program(model, guide, params=store)
    with pytest.raises(ProgramError, match=r"'decoder\$\$\$\w+' has shape"):
        pv.elbo(program, data())
    store.clear()


# -- functions that are replaced -------------------------------------------------------------------


class Replaceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(Z, D)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(Z)), nn.Parameter(torch.zeros(Z))

    def model(self, x):
        decode(self.decoder, x, False)

    def guide(self, x):
        old = pyro.param("old", x.new_zeros(Z))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc + old, self.log_scale.exp()).to_event(1))


def attribute(program, guide):
    program.guide = guide


def method_of_the_class(program, guide):
    type(program).guide = lambda self, x: guide(x)


@pytest.mark.parametrize("how", [attribute, method_of_the_class])
def test_a_guide_that_is_replaced_is_noticed(how):
    program = type("Own", (Replaceable,), {})()
    x = data(16)
    known = pv.Program.of(program)
    pv.fit(program, x, epochs=2, batch_size=16)
    assert "values.old" in known.state_dict()
    net = nn.Linear(D, 2 * Z)
    how(program, lambda x, net=net: encode(net, x, False))
    torch.manual_seed(0)
    found = pv.elbo(program, x)
    torch.manual_seed(0)
    fresh = pv.Program(program.model, lambda x: encode(net, x, False))
    fresh.eval()
    assert torch.equal(found, pv.elbo(fresh, x))
    assert pv.Program.of(program) is known and "values.old" not in known.state_dict()
    before = net.weight.detach().clone()
    pv.fit(known, x, epochs=2, batch_size=16)
    assert not torch.equal(before, net.weight)


class GuideModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(D, 2 * Z)

    def forward(self, x):
        encode(self.net, x, False)


def test_a_registered_guide_that_is_replaced_is_noticed():
    program = nn.Module()
    program.model = functools.partial(decode, nn.Linear(Z, D), registered=False)
    program.guide = GuideModule()
    x = data(16)
    pv.elbo(program, x)
    program.guide = new = GuideModule()
    assert all(value in set(pv.Program.of(program).parameters()) for value in new.parameters())
    torch.manual_seed(0)
    found = pv.elbo(program, x)
    torch.manual_seed(0)
    assert torch.equal(found, pv.elbo(pv.Program(program.model, new), x))


def test_a_handler_put_around_a_guide_keeps_its_values():
    program = Replaceable()
    x = data(16)
    pv.fit(program, x, epochs=3, batch_size=16, lr=0.1)
    old = pv.Program.of(program).values["old"].detach().clone()
    assert old.abs().min() > 0
    program.guide = poutine.scale(program.guide, 1.0)
    torch.manual_seed(0)
    pv.elbo(program, x)
    assert torch.equal(pv.Program.of(program).values["old"], old)


# -- files for programs that have not run ----------------------------------------------------------


class LazyLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.LazyLinear(D))

    def model(self, x):
        decode(self.decoder, x, False)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :Z] / 2, 0.7).to_event(1))


class LazyParams(PyroModule):
    @PyroParam
    def loc(self):
        return torch.randn(D)

    @PyroParam(constraint=constraints.positive)
    def scale(self):
        return torch.rand(D) + 0.1

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc + z, self.scale).to_event(1), obs=x)


def lazy_params():
    return pv.Program(LazyParams(), centred)


def all_statements():
    model, guide, _ = of_statements()
    return pv.Program(model, guide)


def cached_networks(cache=None):
    cache = {} if cache is None else cache

    def get(name, *sizes):
        if name not in cache:
            cache[name] = nn.Linear(*sizes)
        return cache[name]

    return pv.Program(*pair(lambda: get("e", D, 2 * Z), lambda: get("d", Z, D), True))


def tensors_without_names():
    made = iter(networks())
    get = functools.lru_cache(lambda name: next(made))

    def by_hand(name):
        return lambda value: nn.functional.linear(value, get(name).weight, get(name).bias)

    return pv.Program(*pair(lambda: by_hand("e"), lambda: by_hand("d"), False))


def autoguide_list(names=("loc", "scale")):
    def model(x):
        loc = pyro.sample(names[0], dist.Normal(torch.zeros(D), 1.0).to_event(1))
        scale = pyro.sample(names[1], dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=[names[1]])))
    guide.append(AutoMultivariateNormal(poutine.block(model, expose=[names[0]])))
    return pv.Program(model, guide)


@pytest.mark.parametrize(
    "build",
    [
        LazyLayers,
        lazy_params,
        all_statements,
        cached_networks,
        tensors_without_names,
        autoguide_list,
    ],
)
def test_a_file_fills_what_the_first_run_will_make(build, tmp_path):
    x, programs = data(32), []
    for seed in range(3):
        torch.manual_seed(seed)
        programs.append(build())
    pv.fit(programs[0], x, epochs=3, batch_size=32, lr=0.05)
    pv.save(programs[0], tmp_path / "one")
    pv.load(tmp_path / "one", into=programs[1])
    pv.save(programs[1], tmp_path / "two")  # it has not run yet, and nothing is lost
    pv.load(tmp_path / "one", into=programs[2])
    pv.load(tmp_path / "two", into=programs[2])
    values = []
    for program in programs:
        torch.manual_seed(0)
        values.append(pv.elbo(pv.Program.of(program).eval(), x))
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    states = [pv.Program.of(program).state_dict() for program in programs]
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        assert all(torch.equal(other[key], value) for key, value in states[0].items())


def test_a_file_of_other_sites_is_refused_by_the_first_run(tmp_path):
    program, other = autoguide_list(), autoguide_list(("mean", "width"))
    pv.elbo(program, data())
    pv.save(program, tmp_path)
    pv.load(tmp_path, into=other)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"'parts\.AutoGuideList\.0\.width_unconstrained'"
        ):
            pv.elbo(other, data())


def test_a_lazy_layer_without_values_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"lazy layer has no values.*program.read\(batch\)"):
        pv.save(LazyLayers(), tmp_path)


def test_a_copy_has_parameters_of_its_own():
    program = cached_networks()
    program.read(data())
    twin = copy.deepcopy(program)
    assert twin.own.parts is twin.parts and twin.own.values is twin.values
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in program.parameters()})


def by_global(e, d):
    NETS.update(e=e, d=d)
    return pv.Program(lambda x: called_model(x, True), lambda x: called_guide(x, True)), NETS


def by_attribute(e, d):
    nets = types.SimpleNamespace(e=e, d=d)
    return pv.Program(*pair(lambda: nets.e, lambda: nets.d, False)), vars(nets)


@pytest.mark.parametrize("kind", [by_global, by_attribute])
def test_a_network_that_is_replaced_is_noticed(kind):
    """A cell of a notebook that makes the networks runs again; the functions stay."""
    program, home = kind(*networks())
    x = data(16)
    pv.fit(program, x, epochs=2, batch_size=16)
    names = set(program.state_dict())
    old, new = home["d"], nn.Linear(Z, D)
    home["d"] = new
    before = [value.detach().clone() for value in (old.weight, new.weight)]
    pv.fit(program, x, epochs=2, batch_size=16)
    assert torch.equal(old.weight, before[0]) and not torch.equal(new.weight, before[1])
    assert set(program.state_dict()) == names
    assert all(value is not old.weight for value in program.parameters())


def test_a_cleared_cache_is_filled_anew():
    cache = {}
    program = cached_networks(cache)
    x = data(16)
    pv.elbo(program, x)
    names = set(program.state_dict())
    cache.clear()
    pv.fit(program, x, epochs=1)
    assert set(program.state_dict()) == names and len(names) == 4
    assert {id(p) for p in program.parameters()} == {id(p) for p in weights(cache.values())}


def of_two_widths():
    """A parameter for each number of columns, as programs of sequences have one for each length."""
    nets = {}

    def scale(x):
        return pyro.param(
            f"scale.{x.shape[-1]}", torch.tensor(1.0), constraint=constraints.positive
        )

    def net(x):
        return nets.setdefault(x.shape[-1], torch.zeros(x.shape[-1], requires_grad=True))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            loc = z.unsqueeze(-1) + net(x)
            pyro.sample("x", dist.Normal(loc, scale(x)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.7))

    return pv.Program(model, guide), nets


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, Adam])
@pytest.mark.parametrize("compile", [False, "trace"])
def test_parameters_that_a_later_batch_brings_are_trained_from_its_step_on(compile, optimizer):
    program, nets = of_two_widths()
    batches = [data(8), data(8)[:, :2], data(8, seed=4), data(8, seed=4)[:, :2]]
    program.read(batches[0])
    make = functools.partial(optimizer, lr=0.1)
    step = Stepper(program, pv.ELBO(), make, clip_norm=None, size=8, compile=compile)
    torch.manual_seed(0)
    with program.running(), validation(False):
        for batch in batches:
            step.step(batch, None)
    # By hand, on the same noise.
    shapes = {2: ((2,), ()), 3: ((3,), ())}
    exact = {n: [torch.zeros(s, requires_grad=True) for s in pair] for n, pair in shapes.items()}
    optimizers = {n: make(leaves) for n, leaves in exact.items()}
    torch.manual_seed(0)
    for x in batches:
        loc, log_scale = exact[x.shape[-1]]
        z = x.mean(-1) + 0.7 * torch.randn(8)
        optimizers[x.shape[-1]].zero_grad()
        density = dist.Normal(z[:, None] + loc, log_scale.exp()).log_prob(x)
        (-density.sum() / 8).backward()
        optimizers[x.shape[-1]].step()
    for width, (loc, log_scale) in exact.items():
        torch.testing.assert_close(nets[width], loc)
        torch.testing.assert_close(program.values[f"scale-{width}"].data, log_scale.data)


class InTrainingAlone(nn.Module):
    """A tensor that only the training mode uses, where a program is read in eval mode."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = networks()
        self.hidden = {"shift": torch.zeros(D, requires_grad=True)}

    def model(self, x):
        x = x - self.hidden["shift"] if self.training else x
        decode(self.decoder, x, False)

    def guide(self, x):
        encode(self.encoder, x, False)


@pytest.mark.parametrize("compile", [False, "trace"])
@pytest.mark.filterwarnings("ignore:compile. the program cannot be traced")
def test_what_is_used_in_training_alone_is_trained(compile):
    program = InTrainingAlone()
    shift = program.hidden["shift"]
    pv.fit(program, data(32), epochs=10, batch_size=32, lr=0.05, compile=compile)
    assert shift.abs().min() > 0.05
    assert any(value is shift for value in pv.Program.of(program).parameters())


def test_given_modules_keep_the_names_that_they_are_given():
    encoder, decoder = networks()
    nets = {"e": encoder, "d": decoder}
    program = pv.Program(
        *pair(nets["e"].__call__, lambda: nets["d"], False), modules={"dec": decoder}
    )
    assert "dec" in program.parts and "nets_d" not in program.parts


class Touchy:
    """An object that nobody may ask anything."""

    def __getattribute__(self, name):
        raise RuntimeError(f"asked for {name}")


def test_a_search_asks_no_object_and_looks_at_few():
    nodes = [types.SimpleNamespace(children=[]) for _ in range(30_000)]
    for index, node in enumerate(nodes[1:]):
        nodes[index // 8].children.append(node)
    tree, touchy, deep = nodes[0], Touchy(), [[{"net": nn.Linear(1, 1)}]]
    tree.children.append(tree)

    def function(x):
        return tree, touchy, deep

    search = object_graph._Search()
    search.push("", function)
    assert [name for name, _ in search.run()] == ["deep_0_0_net"]
    assert len(search._seen) < 2 * object_graph._MOST_OBJECTS
