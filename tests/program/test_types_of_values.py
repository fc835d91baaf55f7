"""Values of ``pyro.param`` have the type of the networks that they meet: made late, or loaded."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError

X = torch.linspace(-1, 1, 24).reshape(8, 3)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))


def product(in_cache=False):
    """A network and a value are multiplied, which PyTorch does in one type alone."""
    made = {} if in_cache else {"net": nn.Linear(3, 3)}

    def model(x):
        if "net" not in made:
            made["net"] = nn.Linear(3, 3)
        weight = pyro.param("weight", lambda: torch.eye(3) / 3)
        if len(x) == 2:
            weight = weight @ pyro.param("late", lambda: torch.eye(3) / 3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(made["net"](z) @ weight, 1.0).to_event(1), obs=x)

    return pv.Program(model, guide)


def types(program):
    return {tensor.dtype for tensor in program.parameters()}


@pytest.fixture
def trained():
    program = product()
    pv.fit(program, X, epochs=1, lr=0.05, precision="64-true", seed=0)
    pv.elbo(program, X[:2])
    assert types(program) == {torch.float64}
    return program


def bound(program, x=X):
    torch.manual_seed(0)
    return pv.elbo(program, x.double())


def test_values_that_batches_bring_late_have_the_type_of_the_run():
    program = product()
    pv.fit(program, DataLoader(TensorDataset(X), batch_size=3), epochs=1, precision="64-true")
    assert types(program) == {torch.float64}
    assert "late" in program.values


def product_of_latents():
    """A value meets a latent in the type of its prior, which the guide takes over."""
    encoder = nn.Linear(3, 3)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        weight = pyro.param("weight", lambda: torch.eye(3) / 3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + w @ weight, 1.0).to_event(1), obs=x)

    of_w = AutoNormal(poutine.block(model, expose=["w"]))

    def guide(x):
        of_w(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return pv.Program(model, guide)


@pytest.mark.parametrize("build", [product, product_of_latents])
def test_values_of_a_first_run_beside_networks_that_were_converted(build):
    """They are made in the types of their statements, or, where that fails, in the networks'."""
    program = build()
    pv.fit(program, X, epochs=1, precision="64-true")
    assert types(program) == {torch.float64}


@pytest.mark.parametrize("into", ["file", "state", "run"])
def test_what_is_loaded_is_rounded_to_the_type_of_the_program_and_told(into, trained, tmp_path):
    program = product()
    if into == "run":
        for rows in (8, 2):
            pv.elbo(program, X[:rows])
    if into == "state":
        program.load_state_dict(trained.state_dict())
    else:
        pv.save(trained, tmp_path)
        with pytest.warns(UserWarning, match=r"'parts\..*wider type.*float32: they are rounded"):
            pv.load(tmp_path, into=program)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pv.elbo(program, X)
        assert types(program) == {torch.float32}
        pv.elbo(program, X[:2])
    told = "".join(str(each.message) for each in told if "in a wider type" in str(each.message))
    for key in ("weight", "late"):
        assert (f"'values.{key}'" in told) == (into != "run")
    assert types(program) == {torch.float32}
    for key, value in trained.state_dict().items():
        assert torch.equal(program.state_dict()[key], value.float())
    pv.fit(program, X, epochs=1)


@pytest.mark.parametrize("into", ["file", "state", "assign"])
def test_no_digit_is_lost_in_a_program_of_the_same_type(into, trained, tmp_path, recwarn):
    program = product() if into == "assign" else product().to(torch.float64)
    if into == "file":
        pv.save(trained, tmp_path)
        pv.load(tmp_path, into=program)
    else:
        program.load_state_dict(trained.state_dict(), assign=into == "assign")
    for rows in (8, 2):
        assert torch.equal(bound(program, X[:rows]), bound(trained, X[:rows]))
    assert not [each for each in recwarn if "wider" in str(each.message)]


def test_what_the_first_run_builds_beside_loaded_values(tmp_path):
    trained, program = product(in_cache=True), product(in_cache=True)
    trained.read(X)
    pv.fit(trained, X, epochs=1, lr=0.05, precision="64-true", seed=0)
    pv.save(trained, tmp_path)
    pv.load(tmp_path, into=program)
    with pytest.warns(UserWarning, match=r"'values\.weight' in a wider type"):
        pv.elbo(program, X)
    assert types(program) == {torch.float32}


def test_values_alone_are_as_they_were_saved(tmp_path, recwarn):
    def model(x):
        weight = pyro.param("weight", lambda: torch.eye(3) / 3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    trained, program = pv.Program(model, guide), pv.Program(model, guide)
    pv.fit(trained, X, epochs=1, lr=0.05, precision="64-true", seed=0)
    pv.save(trained, tmp_path)
    pv.load(tmp_path, into=program)
    assert torch.equal(bound(program), bound(trained))
    assert torch.equal(program.values["weight"], trained.values["weight"])
    assert not list(recwarn)


def test_a_density_of_two_types_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            factor = torch.ones(3, 1, dtype=torch.float64)
            noise = dist.LowRankMultivariateNormal(torch.zeros(3), factor, torch.ones(3))
            pyro.sample("x", noise, obs=x)

    with pytest.raises(DataError, match=r"cannot take this batch .*(dtype|scalar type)"):
        pv.elbo(pv.Program(model, guide), X)
