"""Loaded values of networks that functions make: where they stand, and from when on."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, DataError, ProgramError

ROWS = torch.arange(4.0)


def with_offset(rows, offset):
    """Observe rows about a latent mean; some data ask for one more parameter."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    shift = pyro.param("shift", torch.tensor(0.0)) if offset is not None else 0.0
    with pyro.plate("rows", len(rows)):
        pyro.sample("x", dist.Normal(mean + shift, 1.0), obs=rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a program that has met both kinds of data, and its file."""
    program = pv.Program(with_offset, AutoNormal(with_offset))
    for offset in (None, 1):
        program.read((ROWS, offset))
    with torch.no_grad():
        for count, parameter in enumerate(program.parameters()):
            parameter.fill_(3.0 - count)
    return program, pv.save(program, tmp_path_factory.mktemp("trained") / "program")


@pytest.mark.parametrize("loads", ["file", "state"])
def test_a_guide_that_was_called_once_is_loaded_as_one_that_was_not(trained, loads):
    """Between making the program and loading it, which is the usual way to set a guide up."""
    program, file = trained
    guide = AutoNormal(with_offset)
    other = pv.Program(with_offset, guide)
    guide(ROWS, None)
    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*'values.shift'.*: kept")
        if loads == "file":
            pv.load(file, into=other)
        else:
            other.load_state_dict(program.state_dict())
        other.read((ROWS, None))
    assert guide.median()["mean"] == program.guide.median()["mean"]
    states = program.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("kind", "told"),
    [(AutoNormal, "makes 'parts.AutoNormal.locs.x_unconst"), (AutoDiagonalNormal, "'parts.AutoD")],
)
def test_a_guide_that_first_meets_other_data_than_in_training_is_refused(kind, told, tmp_path):
    """What they do not observe would be a latent of the guide."""

    def model(count, rows):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", count):
            return pyro.sample("x", dist.Normal(mean, 1.0), obs=rows)

    trained, data = pv.Program(model, kind(model)), {"count": 4, "rows": ROWS}
    trained.read(data)
    pv.save(trained, tmp_path)
    loaded = pv.load(tmp_path, into=pv.Program(model, kind(model)))
    with (
        pytest.raises(CheckpointError, match=rf"{told}.*call program\.read\(rows\) on such rows"),
        loaded.running(),
    ):
        Predictive(model, guide=loaded.guide, num_samples=1)(4, None)
    loaded.read(data)  # as the error says
    with loaded.running():
        Predictive(model, guide=loaded.guide, num_samples=1)(4, None)
    assert loaded.guide.median()["mean"] == trained.guide.median()["mean"]


def test_a_file_of_more_data_than_a_program_has_met_goes_into_a_new_one(trained):
    program, file = trained
    met, new = (pv.Program(with_offset, AutoNormal(with_offset)) for _ in range(2))
    met.read((ROWS, None))
    with pytest.raises(CheckpointError, match=r"'values.shift'; build .*, or load it into a new"):
        pv.load(file, into=met)
    pv.load(file, into=new)  # as the error says
    for offset in (None, 1):
        new.read((ROWS, offset))
    states = program.state_dict(), new.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def tied(nets):
    """Return a program whose guide calls a network, which the model reads a weight of."""

    def net():
        return nets.setdefault("net", torch.nn.Linear(1, 2))

    def model(rows):
        with pyro.plate("rows", len(rows)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * net().weight[0, 0], 1.0), obs=rows)

    def guide(rows):
        with pyro.plate("rows", len(rows)):
            loc, scale = net()(rows[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale.exp()))

    return pv.Program(model, guide)


def test_weights_that_were_read_past_their_network_are_refused(tmp_path):
    """Nothing tells when: they may have been used before they had their values."""
    one, other = {}, {}
    trained = tied(one)
    trained.read(ROWS)
    pv.save(trained, tmp_path)
    loaded = pv.load(tmp_path, into=tied(other))
    with pytest.raises(ProgramError, match=r"nets_net.weight'.*without being"), loaded.running():
        loaded.model(ROWS)
    with loaded.running():
        loaded.guide(ROWS)
        loaded.model(ROWS)
    assert torch.equal(one["net"].weight, other["net"].weight)


def test_networks_of_another_type_than_a_program_was_given_have_the_way_out_named(tmp_path):
    """Its first run makes them in PyTorch's default type."""
    with pytest.raises(DataError, match=r"default type, torch.float32.*torch.set_default_dtype\("):
        tied({}).double().read(ROWS.double())
    torch.set_default_dtype(torch.float64)
    try:
        trained = tied({})  # as the error says
        trained.read(ROWS.double())
        pv.save(trained, tmp_path)
        loaded = pv.load(tmp_path, into=tied({}))
        loaded.read(ROWS.double())
    finally:
        torch.set_default_dtype(torch.float32)
    states = trained.state_dict(), loaded.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
