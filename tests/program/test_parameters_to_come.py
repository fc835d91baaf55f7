"""Files for programs whose parameters the first run will make."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from hidden_networks import (
    D,
    Z,
    cached_networks,
    centred,
    data,
    decode,
    networks,
    of_statements,
    pair,
)
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, DataError, ProgramError
from pyro_vae.program.parameters.loaded import Loaded

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


def tensors_without_names():
    made = iter(networks())
    get = functools.lru_cache(lambda name: next(made))

    def by_hand(name):
        return lambda value: nn.functional.linear(value, get(name).weight, get(name).bias)

    return pv.Program(*pair(lambda: by_hand("e"), lambda: by_hand("d"), False))


class NormByFirstCall(nn.Module):
    """Its first call makes a network with moments of what it has met."""

    def model(self, x):
        if not hasattr(self, "decoder"):
            self.decoder = nn.Sequential(nn.Linear(Z, 5), nn.BatchNorm1d(5), nn.Linear(5, D))
        decode(self.decoder, x, False)

    guide = LazyLayers.guide


def norm_in_a_closure():
    made = {}

    def model(x):
        if "decoder" not in made:
            made["decoder"] = nn.Sequential(nn.Linear(Z, 5), nn.BatchNorm1d(5), nn.Linear(5, D))
        decode(made["decoder"], x, False)

    return pv.Program(model, functools.partial(LazyLayers.guide, None))


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
        NormByFirstCall,
        norm_in_a_closure,
        autoguide_list,
    ],
)
def test_a_file_fills_what_the_first_run_will_make(build, tmp_path):
    x, programs = data(32), []
    for seed in range(4):
        torch.manual_seed(seed)
        programs.append(build())
    pv.fit(programs[0], x, epochs=3, batch_size=32, lr=0.05)
    pv.save(programs[0], tmp_path / "one")
    pv.load(tmp_path / "one", into=programs[1])
    pv.save(programs[1], tmp_path / "two")  # it has not run yet, and nothing is lost
    pv.load(tmp_path / "one", into=programs[2])
    pv.load(tmp_path / "two", into=programs[2])
    trained, fresh = (pv.Program.of(programs[i]) for i in (0, 3))
    if build in (cached_networks, NormByFirstCall, norm_in_a_closure):  # a file tells which
        with pytest.raises(RuntimeError, match=r"have no place yet: program\.read\(rows\)"):
            fresh.load_state_dict(trained.state_dict())
        fresh.read(x)
    fresh.load_state_dict(trained.state_dict())
    values = []
    for program in programs:
        torch.manual_seed(0)
        values.append(pv.elbo(pv.Program.of(program).eval(), x))
    assert all(torch.equal(values[0], value) for value in values)
    states = [pv.Program.of(program).state_dict() for program in programs]
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        assert all(torch.equal(other[key], value) for key, value in states[0].items())


def densities(program, x, latents=None):
    """Return the log densities of guide and model, the latents of a trace, and that trace."""
    with program.running(), torch.no_grad():
        guide = program.guide if latents is None else poutine.replay(program.guide, trace=latents)
        guide = poutine.trace(guide).get_trace(x)
        model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(x)
    return guide.log_prob_sum(), model.log_prob_sum(), guide


class BegunLate(nn.Module):
    """Its first call makes a network in a part, and begins it after it has put it there."""

    def model(self, x):
        if not hasattr(self, "decoder"):
            self.decoder = nn.Sequential(nn.Linear(Z, 5), nn.LazyLinear(D))
            nn.init.zeros_(self.decoder[0].bias)
        decode(self.decoder, x, False)

    guide = LazyLayers.guide


@pytest.mark.parametrize(
    "build",
    [
        lazy_params,
        all_statements,
        cached_networks,
        NormByFirstCall,
        norm_in_a_closure,
        autoguide_list,
        BegunLate,
    ],
)
def test_loaded_values_stand_where_functions_run_that_nothing_has_read(build, tmp_path):
    x, trained = data(), pv.Program.of(build())
    trained.read(x)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    pv.save(trained.source, tmp_path)
    trained.eval()
    for seed in range(2):  # the functions make other starts
        torch.manual_seed(seed)
        other = pv.Program.of(pv.load(tmp_path, into=build()))
        *expected, latents = densities(trained, x)
        *got, _ = densities(other, x, latents)
        torch.testing.assert_close(got, expected)
        pv.elbo(other, x)
        state = other.state_dict()
        assert all(torch.equal(state[key], value) for key, value in trained.state_dict().items())


@pytest.mark.parametrize("build", [NormByFirstCall, norm_in_a_closure])
@pytest.mark.parametrize("trains", [False, True])
def test_networks_that_a_look_makes_are_in_the_mode_of_their_program(build, trains, tmp_path):
    x, trained = data(), pv.Program.of(build())
    trained.read(x)
    pv.save(trained.source, tmp_path)
    program = pv.Program.of(pv.load(tmp_path, into=build())).train(trains)
    pv.elbo(program, x)
    modes = {part.training for part in program.own.parts.modules()}
    assert modes == {trains}
    with program.running():
        program.model(x)
    state, moved = trained.state_dict(), "num_batches_tracked"
    counts = [int(v - state[k]) for k, v in program.state_dict().items() if k.endswith(moved)]
    assert counts == [int(trains)]


def of_two_kinds(holder):
    """Return a program that makes a network for rows with a second argument, where a dict is."""

    class OfTwoKinds(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.BatchNorm1d(D)
            self.nets = nn.ModuleDict() if holder == "a module" else {}

        def model(self, x, y=None):
            with pyro.plate("data", len(x)):
                loc = self.first(x)
                if y is not None:
                    if "second" not in self.nets:
                        self.nets["second"] = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D))
                    loc = loc + self.nets["second"](y)
                z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x, y=None):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    return OfTwoKinds()


@pytest.mark.parametrize("holder", ["a module", "a dict"])
@pytest.mark.parametrize("trains", [False, True])
def test_networks_of_a_later_kind_of_rows_are_in_the_mode_of_their_program(holder, trains):
    x = data()
    program = pv.Program.of(of_two_kinds(holder)).train(trains)
    program.read(x)
    pv.elbo(program, (x, x))
    assert {part.training for part in program.own.parts.modules()} == {trains}
    before = [buffer.clone() for buffer in program.buffers()]
    with program.running():
        program.model(x, x)
    moved = [not torch.equal(*pair) for pair in zip(before, program.buffers(), strict=True)]
    assert set(moved) == {trains}


def test_what_stock_pyro_trains_after_a_load_is_not_loaded_again(tmp_path):
    x, trained, other = data(), autoguide_list(), autoguide_list()
    trained.read(x)
    pv.save(trained, tmp_path)
    pv.load(tmp_path, into=other)
    with other.running():
        other.guide(x)
    weight = other.guide[0].scale_unconstrained
    assert torch.equal(weight, trained.guide[0].scale_unconstrained)
    with torch.no_grad():
        weight.fill_(0.5)
    with other.running():
        other.guide(x)
    pv.elbo(other, x)
    assert float(weight.detach()) == 0.5


def requires_a_look(trained, other, x, said, folder):
    """Check that a loaded program is refused until it has read rows, and is right from then on."""
    trained.read(x)
    pv.save(trained, folder)
    pv.load(folder, into=other)
    with pytest.raises(ProgramError, match=said):
        densities(other, x)
    other.read(x)
    *expected, latents = densities(trained, x)
    torch.testing.assert_close(list(densities(other, x, latents)[:2]), expected)


def test_weights_that_functions_read_without_a_name_are_refused_before_a_look(tmp_path):
    x, trained, other = data(), tensors_without_names(), tensors_without_names()
    requires_a_look(
        trained, other, x, r"'values.found-0'.*call program.read\(rows\) before", tmp_path
    )


def test_networks_that_no_search_finds_are_refused_before_a_look(tmp_path):
    def build():
        made = iter([nn.Linear(Z, D)])
        get = functools.lru_cache(lambda: next(made))
        return pv.Program(lambda x: decode(get(), x, False), functools.partial(LazyLayers.guide, 0))

    x, trained, other = data(), build(), build()
    requires_a_look(
        trained, other, x, r"'parts\.Linear\.weight'.*a Linear that was called", tmp_path
    )


def test_a_file_of_other_sites_is_refused_by_the_first_run(tmp_path):
    program, other = autoguide_list(), autoguide_list(("mean", "width"))
    pv.elbo(program, data())
    pv.save(program, tmp_path)
    with pytest.warns(UserWarning, match="plain values differ .*: names = a tuple"):
        pv.load(tmp_path, into=other)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"'parts\.AutoGuideList\.0\.width_unconstrained'"
        ):
            pv.elbo(other, data())


def test_a_lazy_layer_without_values_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"lazy layer has no values.*program.read\(batch\)"):
        pv.save(LazyLayers(), tmp_path)


# -- states for programs that have not run ---------------------------------------------------------


def statements(loc=D):
    """Return a program of one network-free statement of ``loc`` numbers."""

    def model(x):
        at = pyro.param("loc", lambda: torch.zeros(loc))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(at + z, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))

    return pv.Program(model, guide)


STATE = {"values.loc": torch.ones(D), "values.scale": torch.tensor(-1.0)}
JUNK = {"values.junk": torch.ones(2)}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (JUNK, "makes 'values.loc', 'values.scale', which .* holds 'values.junk'"),
        ({"values.loc": STATE["values.loc"]}, "the program makes 'values.scale'"),
        (STATE | {"values.loc": torch.ones(D + 2)}, rf"'values.loc': got .*\({D + 2},\).*\({D},\)"),
        (STATE | {"values.loc": torch.ones(())}, rf"'values.loc': got shape \(\) .*\({D},\)"),
    ],
)
def test_a_strict_state_that_does_not_fit_is_refused_by_the_first_run(state, told):
    program = statements()
    program.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=told):
            pv.elbo(program, data())
    program.load_state_dict(STATE)
    pv.elbo(program, data())
    assert all(torch.equal(program.state_dict()[key], value) for key, value in STATE.items())


def test_a_shape_that_does_not_fit_is_named_beside_that_of_the_data():
    def model(x):
        at = pyro.param("at", torch.zeros(D))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(at + z[:, :1], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    program = pv.Program(model, guide)
    program.load_state_dict({"values.at": torch.zeros(D + 1)})
    told = rf"site 'x': got data of shape .*; 'values\.at': got shape \({D + 1},\) .*\({D},\)"
    with pytest.raises(DataError, match=told):
        pv.elbo(program, data())


def test_another_shape_has_one_wording():
    loaded = Loaded(True)
    loaded.compare("loc", torch.zeros(6), lambda: torch.zeros(3))
    with pytest.raises(
        CheckpointError, match=r"or, of values for each datum, .* data; .*: why"
    ) as no:
        loaded.require_shapes(ValueError("why"))
    assert f"{loaded.told()}; the program fails with: why" == f"; {no.value}"


def test_a_state_that_is_not_strict_leaves_anew_what_it_lacks():
    program = statements()
    program.load_state_dict({"values.loc": torch.ones(D)}, strict=False)
    program.load_state_dict(JUNK | {"parts.net.weight": torch.ones(2)}, strict=False)
    with pytest.warns(UserWarning, match="'values.scale', which.*: they start anew.*junk.*: kept"):
        pv.elbo(program, data())
    assert program.state_dict().keys() == STATE.keys() | JUNK.keys()
    assert torch.equal(program.state_dict()["values.loc"], torch.ones(D))
    torch.testing.assert_close(program.state_dict()["values.scale"].exp(), torch.tensor(0.7))
    pv.fit(program, data(), epochs=1)  # as any other


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_without_values_is_told_of_where_it_should_be_whole(strict, recwarn):
    """As of a program that has not run, or of its networks alone: those are loaded loosely."""
    program = statements()
    program.load_state_dict(statements().state_dict(), strict=strict)
    pv.elbo(program, data())
    told = "makes 'values.loc', 'values.scale', which what was loaded does not hold: they start"
    assert [told in str(each.message) for each in recwarn] == [True] * strict
    with pytest.raises(RuntimeError, match="Missing key"):  # it has run
        program.load_state_dict({})


def test_a_state_without_values_leaves_those_that_wait():
    program = statements()
    program.load_state_dict(STATE)
    with pytest.raises(RuntimeError, match=r'Missing key.*"values\.loc", "values\.scale"'):
        program.load_state_dict(statements().state_dict())
    program.load_state_dict({}, strict=False)
    pv.elbo(program, data())
    assert all(torch.equal(program.state_dict()[key], value) for key, value in STATE.items())


def of_columns():
    """Return a program with a value for each column of its data."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for k in range(x.shape[1]):
                at = pyro.param(f"at{k}", torch.tensor(0.0))
                pyro.sample(f"x{k}", dist.Normal(z + at, 1.0), obs=x[:, k])

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1) / 2, 0.5))

    return pv.Program(model, guide)


@pytest.mark.parametrize("strict", [True, False])
def test_what_the_first_data_do_not_ask_for_waits_for_others(strict):
    x = data()
    state = {f"values.at{k}": torch.tensor(float(k)) for k in range(x.shape[1])}
    program = of_columns()
    program.load_state_dict(state, strict=strict)
    with pytest.warns(UserWarning, match=f"holds 'values.at{D - 1}', which .* not asked for: kept"):
        pv.elbo(program, x[:, :-1])
    pv.elbo(program, x)
    assert {name: float(v) for name, v in program.state_dict().items()} == {
        name: float(v) for name, v in state.items()
    }


def test_a_load_that_fails_leaves_no_values():
    program = cached_networks()
    with pytest.raises(RuntimeError, match="have no place yet"):
        program.load_state_dict(JUNK | {"parts.net.weight": torch.ones(2)})
    assert not program.state_dict()


def test_values_of_each_datum_are_of_the_same_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    program, x = pv.Program(model, guide), torch.randn(6)
    program.load_state_dict({"values.loc": torch.zeros(6)})
    with pytest.raises(
        CheckpointError, match=r"'values.loc': .*\(6,\).*\(3,\).*the same data; the"
    ):
        pv.elbo(program, x[:3])
    with pytest.raises(DataError, match="value nan in row 0"):  # as of any program
        pv.elbo(program, x / 0 * 0)
    assert len(pv.elbo(program, x)) == 6
