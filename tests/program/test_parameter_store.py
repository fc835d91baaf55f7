"""What stock SVI has left in Pyro's parameter store: taken over when asked, named when not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from hidden_networks import D, Z, data, of_statements
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError


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


@pytest.mark.filterwarnings("ignore:the program makes 'values.noise', .* are those of params=")
@pytest.mark.parametrize("route", ["file", "state", "part", "assign"])
def test_what_is_loaded_is_not_replaced_by_the_store(route, store, tmp_path):
    """What comes last counts: a program is built with its store, and then has its file."""
    x = data(20)
    (model, guide, _), _ = trained_by_svi(x)
    program = pv.Program(model, guide, params=store)
    pv.fit(program, x, epochs=2, batch_size=20, lr=0.05)
    kept = {name: value.clone() for name, value in program.state_dict().items()}
    pv.save(program, tmp_path)
    other = pv.Program(*of_statements(seed=5)[:2], params=store)
    if route == "file":
        pv.load(tmp_path, into=other)
    else:
        state = {k: v for k, v in kept.items() if route != "part" or "noise" not in k}
        other.load_state_dict(state, strict=route != "part", assign=route == "assign")
    loss_of(other, x)
    if route == "part":
        kept["values.noise"] = store._params["noise"].detach()
    assert all(torch.equal(other.state_dict()[name], value) for name, value in kept.items())
    store.clear()


@pytest.mark.parametrize("assign", [False, True])
def test_a_network_in_the_place_of_one_that_was_loaded_has_the_value_of_the_store(assign, store):
    held = nn.Module()
    held.net = nn.Linear(Z, D)

    def model(x):
        pyro.module("net", held.net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(held.net(x[:, :Z]), 1.0).to_event(1), obs=x)

    pyro.module("net", held.net)
    kept = held.net.weight.detach().clone()
    program = pv.Program(model, lambda x: None, params=store)
    state = {name: value + 5 for name, value in program.state_dict().items()}
    program.load_state_dict(state, assign=assign)
    held.net = nn.Linear(Z, D)
    store.clear()
    program.read(data(20))
    assert torch.equal(held.net.weight, kept)


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


@pytest.mark.parametrize("way", ["mapping", "in a block"])
def test_a_value_that_is_read_from_the_store_in_the_run_of_its_statement_is_trained(way):
    """Its gradient is that of a normal mean: m - mean(x)."""

    def model(x):
        start = pyro.param("m", torch.full((D,), 0.3))
        with poutine.block():
            m = pyro.param("m") if way == "in a block" else pyro.get_param_store()["m"]
        assert torch.equal(m, start)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)

    program, x = pv.Program(model, lambda x: None), data()
    options = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    pv.fit(program, x, epochs=1, batch_size=len(x), device="cpu", **options)
    expected = 0.3 - 0.1 * (0.3 - x.mean(0))
    torch.testing.assert_close(program.state_dict()["values.m"], expected)
