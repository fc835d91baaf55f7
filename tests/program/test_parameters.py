"""Tensors that no module holds, frozen parts, names: what is to train does, and no more."""

import copy
import functools
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from hidden_networks import D, Z, centred, data, decode, encode, networks, pair, weights
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.program.parameters import object_graph

# -- tensors that no module holds ------------------------------------------------------------------


def with_leaf(leaf, use=lambda leaf: leaf):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + use(leaf), 0.6).to_event(1), obs=x)

    return pv.Program(model, centred)


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


def test_a_value_that_a_user_takes_out_is_made_anew(tmp_path):
    def model(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", torch.zeros(D))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x: None)
    pv.fit(program, data(8), epochs=1, lr=0.1)
    del program.values["loc"]
    pv.elbo(program, data(8))
    assert torch.equal(program.values["loc"], torch.zeros(D))
    program.values["loc"] = nn.Parameter(torch.ones(D))

    def more(_):
        program.values["more"] = nn.Parameter(torch.ones(D))

    pv.fit(program, data(8), epochs=1, lr=0.1, callbacks=more, out=tmp_path)
    assert not torch.equal(program.values["loc"], torch.ones(D))
    assert torch.equal(
        pv.load(tmp_path, into=pv.Program(model, lambda x: None)).values["more"], torch.ones(D)
    )


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


@pytest.mark.parametrize("route", ["state", "assign", "copy"])
def test_a_block_freezes_what_takes_the_place_of_what_it_has_frozen(route):
    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(D))
        with poutine.block():
            loc = loc + pyro.param("hidden", lambda: torch.ones(D))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x: None)
    program.read(data())
    if route == "copy":
        program = copy.deepcopy(program)
    else:
        state = {name: value.clone() for name, value in program.state_dict().items()}
        program.load_state_dict(state, assign=route == "assign")
    pv.fit(program, data(), epochs=1, lr=0.1)
    assert torch.equal(program.values["hidden"], torch.ones(D))
    assert not torch.equal(program.values["loc"], torch.zeros(D))


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

    search = object_graph._Search([function])
    assert [name for name, _ in search.run()] == ["deep_0_0_net"]
    assert len(search.met) < 2 * object_graph._MOST_OBJECTS


class Averaged(nn.Module):
    """A decoder behind a matrix that is a buffer, sparse or not."""

    def __init__(self, matrix):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Linear(3, 3)
        self.register_buffer("matrix", matrix, persistent=False)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            mean = self.decoder((self.matrix @ z.reshape(-1, 3).T).T.reshape(z.shape))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))


def test_a_network_may_hold_a_sparse_matrix(tmp_path):
    """It has no storage to be asked for: the batch was blamed."""
    x, matrix, found = torch.randn(16, 3), torch.eye(3) + 0.1, []
    for each in (matrix, matrix.to_sparse()):
        program = Averaged(each)
        torch.manual_seed(1)
        pv.fit(program, x, epochs=2, batch_size=8, compile=False, out=tmp_path / str(len(found)))
        found.append([pv.elbo(program, x), pv.generate(program, 3), program.decoder.weight])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse)


CONSTRAINTS = {
    "none": (constraints.positive, lambda: constraints.real, True),
    "another": (constraints.positive, lambda: constraints.unit_interval, True),
    "another bound": (constraints.greater_than(0.5), lambda: constraints.greater_than(0.0), True),
    "another dimension": (
        constraints.independent(constraints.positive, 1),
        lambda: constraints.independent(constraints.unit_interval, 1),
        True,
    ),
    "made anew": (constraints.interval(0.0, 2.0), lambda: constraints.interval(0.0, 2.0), False),
    "nested anew": (
        constraints.independent(constraints.interval(0.0, 2.0), 1),
        lambda: constraints.independent(constraints.interval(0.0, 2.0), 1),
        False,
    ),
    "the same map": (constraints.positive, lambda: constraints.nonnegative, False),
    "in a list": (
        constraints.stack([constraints.positive, constraints.real]),
        lambda: constraints.stack([constraints.positive, constraints.real]),
        False,
    ),
}


@pytest.mark.parametrize("case", CONSTRAINTS)
def test_a_later_statement_under_another_constraint_is_told(case, recwarn):
    """The first one's stays, as in stock Pyro, and nothing said so."""
    first, later, differs = CONSTRAINTS[case]

    def model(x):
        constraint = first if bool(x.min() < 4) else later()
        scale = pyro.param("scale", torch.full((2,), 0.75), constraint=constraint)
        pyro.param("scale")  # reads it, and states none
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.1 + scale.mean().abs()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    program = pv.Program(model, guide)
    loader = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=4)
    pv.fit(program, loader, epochs=2, progress=False, compile=False)
    told = [str(each.message) for each in recwarn.list]
    told = [message for message in told if message.startswith("pyro.param('scale') is stated ")]
    assert len(told) == differs
    assert program.own.known["scale"].constraint is first
