"""Values and networks that only some batches ask for, in runs that are stopped and go on."""

import contextlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from continued_runs import BASE, X, same, weights
from pyro import poutine
from pyro.distributions import constraints
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError


def of_two(hidden=False):
    """Return a program whose value ``scale`` only data with a second argument ask for.

    Arguments:
        hidden: Whether it asks in a ``poutine.block``, so that stock SVI trains it not.
    """

    def model(x, y=None):
        loc = pyro.param("loc", lambda: torch.zeros(5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + z[..., None], 0.5).to_event(1), obs=x)
            if y is not None:
                with poutine.block() if hidden else contextlib.nullcontext():
                    start = torch.tensor(3.0)
                    scale = pyro.param("scale", start, constraint=dist.constraints.positive)
                pyro.sample("y", dist.Normal(z, scale), obs=y)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.3))

    return pv.Program(model, guide)


@pytest.mark.filterwarnings("ignore:what was loaded holds 'values.scale'")
@pytest.mark.parametrize(
    ("route", "ema", "precision"),
    [
        ("file", None, None),
        ("strict", 0.9, "64-true"),
        ("loosely", None, None),
        ("by hand", None, None),
        ("trained", None, None),
        ("hidden", None, None),
    ],
)
def test_a_value_that_the_data_do_not_ask_for_goes_on(route, ema, precision, tmp_path):
    taught = of_two()
    pv.fit(taught, (X, X[:, 0]), **BASE)
    pv.save(taught, tmp_path / "taught")

    def build():
        return of_two(route == "hidden")

    def loaded():
        program = build()
        if route == "file":
            return pv.load(tmp_path / "taught", into=program)
        if route in ("by hand", "hidden"):
            pv.elbo(program, (X, X[:, 0]))
            return program
        if route == "trained":
            return pv.fit(program, (X, X[:, 0]), **BASE).program
        program.load_state_dict(taught.state_dict(), strict=route == "strict")
        return program

    settings = {**BASE, "lr": 0.02, "clip_norm": 1.0, "ema": ema, "valid": X[:9]}
    settings["precision"] = precision
    scale = weights(loaded())["values.scale"]
    whole = pv.fit(loaded(), X, **{**settings, "epochs": 5})
    out = {"out": tmp_path / "run", "checkpoint_every": 1}
    pv.fit(loaded(), X, **out, **{**settings, "epochs": 2})
    other = build()
    with pytest.raises(ConfigError, match="batch_size"):
        pv.fit(other, X, **out, resume=True, **{**settings, "batch_size": 8})
    assert other.state_dict().keys() == {"values.loc"}
    for epochs in (3, 5):
        again = pv.fit(build(), X, **out, resume=True, **{**settings, "epochs": epochs})
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    assert same(weights(again.program), weights(whole.program))
    assert torch.equal(weights(again.program)["values.scale"].float(), scale)
    more = [pv.fit(run.program, (X, X[:, 0]), **BASE) for run in (again, whole)]
    assert same(weights(more[0].program), weights(more[1].program))
    moved = weights(more[0].program)["values.scale"] < scale
    assert bool(moved) == (route != "hidden")


def test_a_hidden_value_that_a_later_batch_shows_is_trained_and_goes_on(tmp_path):
    """Other data ask for it in a ``poutine.block``; the last batch, of 4 rows, asks without."""

    def model(x, y=None):
        loc, start = pyro.param("loc", lambda: torch.zeros(5)), lambda: torch.ones(5)
        if y is not None:
            with poutine.block():
                loc = loc + pyro.param("late", start)
        elif len(x) == 4:
            loc = loc + pyro.param("late", start)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + z[..., None], 0.5).to_event(1), obs=x)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.3))

    def asked():
        program = pv.Program(model, guide)
        pv.elbo(program, (X, X[:, 0]))
        return program

    rows, settings = DataLoader(TensorDataset(X[:32]), batch_size=7), {"seed": 0, "lr": 0.02}
    whole = weights(pv.fit(asked(), rows, epochs=3, **settings).program)
    assert not torch.equal(whole["values.late"], torch.ones(5))
    run = {"out": tmp_path, "checkpoint_every": 1, **settings}
    pv.fit(asked(), rows, epochs=1, **run)
    again = pv.fit(pv.Program(model, guide), rows, epochs=3, resume=True, **run)
    assert same(weights(again.program), whole)


LOW, HIGH = X[:16] - 5, X[:16] + 5  # one layout, told apart by their numbers


def by_numbers(hidden=False, start=torch.ones):
    """Return a program whose value ``late`` only ``HIGH`` asks for, ``hidden``: in a block."""

    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(5))
        if x.mean() > 0:
            with poutine.block() if hidden else contextlib.nullcontext():
                loc = loc + pyro.param("late", lambda: start(5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + z[..., None], 0.5).to_event(1), obs=x)

    return pv.Program(model, of_two().guide)


def test_a_drawn_value_in_a_block_goes_on(tmp_path):
    data = DataLoader(TensorDataset(torch.cat([LOW, LOW, HIGH])), batch_size=16)
    settings = {"seed": 0, "lr": 0.02, "progress": False}
    whole = pv.fit(by_numbers(True, torch.randn), data, epochs=3, **settings)
    pv.fit(by_numbers(True, torch.randn), data, epochs=1, out=tmp_path, **settings)
    other = by_numbers(True, torch.randn)
    pv.fit(other, data, epochs=3, out=tmp_path, resume=True, **settings)
    assert same(weights(other), weights(whole.program))


def test_a_drawn_value_is_the_same_wherever_it_is_met_first(tmp_path):
    """In a step, in a look at one of the first batches of a process, or as rows are judged."""
    data = DataLoader(TensorDataset(torch.cat([LOW] * 5 + [HIGH])), batch_size=16)
    settings = {"seed": 0, "lr": 0.02, "progress": False, "epochs": 2}

    def trained(**more):
        run = pv.fit(by_numbers(start=torch.randn), data, **settings, **more)
        return list(run.history["loss"]), weights(run.program)

    losses, straight = trained()
    for rows in (LOW, HIGH):
        judged, _ = trained(valid=rows)
        assert judged == losses
    trained(out=tmp_path, max_steps=4)
    resumed, now = trained(out=tmp_path, resume=True)
    assert resumed == losses and same(now, straight)


def in_groups(parameters):
    first, *others = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.01}, {"params": others}], lr=0.1)


def by_name(_):
    return pyro.optim.SGD(lambda name: {"lr": 0.1 if name == "late" else 0.001})


OPTIMIZERS = {
    "Adam": lambda program: None,
    "ready": lambda program: torch.optim.SGD([*program.parameters()], lr=0.1),
    "in groups": lambda program: in_groups,
    "by name": by_name,
}


@pytest.mark.parametrize(
    ("optimizer", "asked", "knows", "resume"),
    [
        ("Adam", True, False, True),
        ("ready", False, False, True),
        ("ready", False, True, True),
        ("in groups", False, False, True),
        ("in groups", False, True, "settings"),
        ("by name", False, False, "settings"),
        ("by name", True, False, True),
        ("by name", False, True, True),
    ],
)
def test_a_value_of_a_batch_like_others_goes_on(optimizer, asked, knows, resume, tmp_path):
    """Where other data have asked for it before the run, or before it goes on, too."""
    data = DataLoader(TensorDataset(torch.cat([LOW, LOW, HIGH])), batch_size=16)

    def run(ahead, **more):
        program = by_numbers()
        program.read(LOW)
        if ahead:
            pv.elbo(program, HIGH)
        made = OPTIMIZERS[optimizer](program)
        settings = {"seed": 0, "progress": False, "optimizer": made, **more}
        return weights(pv.fit(program, data, **settings).program)

    whole = run(asked, epochs=3)
    run(asked, epochs=1, out=tmp_path)
    assert same(run(knows, epochs=3, out=tmp_path, resume=resume), whole)


@pytest.mark.parametrize(
    ("optimizer", "asks"),
    [("Adam", 1), ("Adam", 2), ("ready", 2), ("in groups", 2), ("by name", 1), ("by name", 2)],
)
def test_a_value_that_no_batch_of_the_run_asks_for_stays_as_it_is(optimizer, asks, tmp_path):
    """Data of the same shapes have asked for it, before the run or before it goes on."""
    settings = {"seed": 0, "progress": False, "batch_size": 16}
    made, first = OPTIMIZERS[optimizer], by_numbers()
    first.read(LOW)
    whole = pv.fit(first, LOW, epochs=2, optimizer=made(first), **settings)
    for epochs in (1, 2):
        program = by_numbers()
        program.read(LOW)
        if epochs == asks:
            pv.elbo(program, HIGH)
        run = {"epochs": epochs, "optimizer": made(program), "out": tmp_path, "resume": True}
        pv.fit(program, LOW, **run, **settings)
    assert torch.equal(weights(program)["values.loc"], weights(whole.program)["values.loc"])
    assert torch.equal(weights(program)["values.late"], torch.ones(5))


def test_a_value_that_the_run_lacks_stays_as_it_is(tmp_path):
    settings = {**BASE, "ema": 0.9, "clip_norm": 1.0, "valid": X[:9]}
    whole = pv.fit(of_two(), X, **{**settings, "epochs": 3})
    pv.fit(of_two(), X, out=tmp_path, **settings)
    other = of_two()
    pv.elbo(other, (X, X[:, 0]))
    again = pv.fit(other, X, out=tmp_path, resume=True, **{**settings, "epochs": 3})
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    assert weights(other).pop("values.scale").exp() == pytest.approx(3.0)
    assert torch.equal(weights(other)["values.loc"], weights(whole.program)["values.loc"])


def test_a_run_that_goes_on_under_another_constraint_is_told_of(tmp_path):
    def run(constraint, epochs):
        def model(x):
            scale = pyro.param("scale", torch.ones(5), constraint=constraint)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, scale).to_event(1), obs=x)

        program = pv.Program(model, lambda x: None)
        pv.fit(program, X, out=tmp_path, resume=True, **{**BASE, "epochs": epochs})

    run(constraints.positive, 1)
    run(constraints.nonnegative, 2)  # the same numbers: pytest makes an error of a warning
    with pytest.warns(UserWarning, match="holds 'values.scale' under another constraint"):
        run(constraints.softplus_positive, 3)


def test_functions_that_read_the_store_find_late_values_there_as_the_run_goes_on(tmp_path):
    """A penalty on all values lacked those that a batch had still to ask for again."""

    def model(x):
        values = [pyro.param("loc", lambda: torch.zeros(5))]
        if x.mean() > 0:
            start, positive = torch.ones(5), constraints.positive
            values += [pyro.param(f"late{i}", start / i, constraint=positive) for i in (3, 1, 2)]
        norms = [value.norm() for value in pyro.get_param_store().values()]
        pyro.factor("penalty", -sum(norms))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(sum(values) + z[..., None], 0.5).to_event(1), obs=x)

    data = DataLoader(TensorDataset(torch.cat([LOW, HIGH, LOW])), batch_size=16)
    settings = {"seed": 0, "lr": 0.02, "progress": False}
    guide = of_two().guide
    whole = pv.fit(pv.Program(model, guide), data, epochs=3, **settings)
    for epochs in (1, 3):
        program = pv.Program(model, guide)
        pv.fit(program, data, epochs=epochs, out=tmp_path, resume=True, **settings)
    assert same(weights(program), weights(whole.program))


def test_a_value_that_a_later_batch_brings_goes_on(tmp_path):
    def build():
        def model(x):
            loc = pyro.param("loc", lambda: torch.zeros(5))
            loc = loc if len(x) > 8 else loc + pyro.param("late", lambda: torch.zeros(5))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(loc + z[..., None], 0.5).to_event(1), obs=x)

        return pv.Program(model, of_two().guide)

    def batches():
        return DataLoader(TensorDataset(X[:40]), batch_size=16)  # of 16, 16 and 8 rows

    settings = {**BASE, "clip_norm": 0.1, "valid": X[:20]}
    whole = pv.fit(build(), batches(), **{**settings, "epochs": 3})
    for steps in (2, 4, 9):
        other = build()
        more = {"epochs": 3, "max_steps": steps, "out": tmp_path, "resume": True}
        again = pv.fit(other, batches(), **{**settings, **more})
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    assert same(weights(other), weights(whole.program)) and "values.late" in weights(other)


def test_a_network_that_other_data_have_made_is_made_before_the_run_goes_on(tmp_path):
    def build():
        made = {}

        def model(x, y=None):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                loc = z[..., None] + pyro.param("loc", torch.zeros(5))
                pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)
                if y is not None:
                    net = made["y"] if made else made.setdefault("y", nn.Linear(1, 1))
                    pyro.sample("y", dist.Normal(net(z[..., None])[..., 0], 1.0), obs=y)

        return pv.Program(model, of_two().guide)

    program = build()
    pv.elbo(program, (X, X[:, 0]))
    pv.fit(program, X, out=tmp_path, **BASE)
    other = build()
    with pytest.raises(
        CheckpointError, match=r"unexpected .* made, let .* pv\.elbo\(program, rows\)"
    ):
        pv.fit(other, X, out=tmp_path, resume=True, **BASE)
    pv.elbo(other, (X, X[:, 0]))
    pv.fit(other, X, out=tmp_path, resume=True, **BASE)
    assert same(weights(other), weights(program))


@pytest.mark.filterwarnings("ignore:.*plain values differ")
def test_a_network_that_a_batch_of_the_run_has_made_goes_on_once_it_is_there(tmp_path):
    def build():
        made = {}

        def model(x):
            loc = pyro.param("loc", lambda: torch.zeros(5))
            if x.mean() > 0:
                torch.manual_seed(4)
                loc = loc + (made.get(0) or made.setdefault(0, nn.Linear(1, 5)))(torch.ones(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

        return pv.Program(model, lambda x: None)

    data = DataLoader(TensorDataset(torch.cat([LOW, LOW, HIGH])), batch_size=16)
    settings = {"seed": 0, "progress": False, "lr": 0.02}
    whole = weights(pv.fit(build(), data, epochs=3, **settings).program)
    pv.fit(build(), data, epochs=1, out=tmp_path, **settings)
    with pytest.raises(
        CheckpointError, match=r"unexpected .* made, let .* pv\.elbo\(program, rows\)"
    ):
        pv.fit(build(), data, epochs=3, out=tmp_path, resume=True, **settings)
    other = build()
    for rows in (LOW, HIGH):  # of one layout
        pv.elbo(other, rows)
    pv.fit(other, data, epochs=3, out=tmp_path, resume=True, **settings)
    assert same(weights(other), whole)


class ByEpoch:
    """Batches of each epoch."""

    def __init__(self, *epochs):
        self.epochs, self.now = epochs, 0

    def set_epoch(self, epoch):
        self.now = epoch

    def __iter__(self):
        return iter(self.epochs[self.now])

    def __len__(self):
        return len(self.epochs[0])


@pytest.mark.filterwarnings("ignore:.*plain values differ")
def test_a_run_goes_on_whose_best_epoch_came_before_a_network(tmp_path):
    def build():
        net = nn.Module()

        def model(x):
            loc = pyro.param("loc", lambda: torch.zeros(5))
            if x.mean() > 0:
                torch.manual_seed(4)
                net.late = getattr(net, "late", None) or nn.Linear(1, 5)
                loc = loc + net.late(torch.ones(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

        return pv.Program(model, lambda x: None, modules={"net": net})

    data = ByEpoch([LOW, LOW], [HIGH, 9 * HIGH], [LOW, HIGH])  # worse for LOW from then on
    settings = {"seed": 0, "progress": False, "lr": 0.3, "valid": LOW, "batch_size": 16}
    run = pv.fit(build(), data, epochs=3, **settings)
    first = pv.fit(build(), data, epochs=2, out=tmp_path, **settings)
    assert first.best_epoch == 1
    other = build()
    other.read(HIGH)
    again = pv.fit(other, data, epochs=3, out=tmp_path, resume=True, **settings)
    assert again.best_epoch == run.best_epoch
    assert same(weights(other), weights(run.program))


def test_a_value_that_a_changed_program_lacks_is_refused(tmp_path):
    pv.fit(of_two(), (X, X[:, 0]), out=tmp_path, **BASE)
    with pytest.raises(CheckpointError, match=r"unexpected 'values\.scale'"):
        pv.fit(of_two(), X, out=tmp_path, resume=True, **{**BASE, "epochs": 2})
