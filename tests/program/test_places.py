"""Where a program may keep its networks: all of them train as stock Pyro trains them."""

import functools
import types
from dataclasses import dataclass

import pyro
import pytest
import torch
from hidden_networks import (
    NETS,
    ROWS,
    called_guide,
    called_model,
    data,
    decode,
    encode,
    networks,
    pair,
    weights,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from torch import nn

import pyro_vae as pv
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.program.handlers import validation

# -- places: (encoder, decoder, registered) -> (model, guide) or an object, and the parts' names ---

PLACES = {}


def place(*names):
    def add(build):
        PLACES[build.__name__] = (build, names)
        return build

    return add


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


@place("NETS_d", "NETS_e")
def globals_of_called_functions(e, d, registered):
    NETS.update(e=e, d=d)
    return lambda x: called_model(x, registered), lambda x: called_guide(x, registered)


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


def built(name, registered):
    encoder, decoder = networks()
    found = PLACES[name][0](encoder, decoder, registered)
    program = pv.Program(*found) if isinstance(found, tuple) else pv.Program.of(found)
    return program, (encoder, decoder)


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
