"""Loaded values of networks that functions make: where they stand, and from when on."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv

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
