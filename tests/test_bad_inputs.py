"""Bad inputs: one clear error that names the site, the value and the fix; nothing changes."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import differences, random_state, surroundings
from programs import CASES
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, DeviceError, PyroVaeError
from pyro_vae.program.checks import check_support

ONES = torch.ones(10, 6)


def spoiled(value, row=7, dtype=torch.float32):
    x = torch.zeros(10, 6, dtype=dtype)
    x[row, 2] = value
    return x


BAD_DATA = {
    "nan": (spoiled(math.nan), r"nan in row 7.*drop such rows"),
    "inf": (spoiled(math.inf), r"inf in row 7"),
    "minus_inf": (spoiled(-math.inf), r"-inf in row 7"),
    "numpy_nan": (spoiled(math.nan).numpy(), r"nan in row 7"),
    "pixels": (spoiled(255.0), r"site 'x': value 255 in row 7.*Bernoulli; scale to \[0, 1\]"),
    "bytes": (spoiled(200, dtype=torch.uint8), r"site 'x': value 200 in row 7.*Bernoulli"),
    "grey": (spoiled(0.4), r"site 'x': value 0.4 in row 7.*Bernoulli; binarise"),
    "negative": (spoiled(-1.0), r"site 'x': value -1 in row 7"),
    "row": (ONES[0], r"site 'x': got shape \(6,\), expected \(B, 6\).*x\[None\]"),
    "too_wide": (torch.ones(10, 7), r"got shape \(10, 7\), expected \(B, 6\)"),
    "image": (torch.ones(10, 1, 6), r"got shape \(10, 1, 6\), expected \(B, 6\)"),
    "empty": (ONES[:0], "no data"),
    "scalar": (torch.tensor(1.0), r"shape \(\)|scalar"),
    "tuple": ((ONES, ONES), r"expected \['batch'\]"),
    "text": ("digits", "numeric array"),
    "nothing": (None, "numeric array"),
    "objects": (np.array([object()] * 3), "numeric array"),
}

VERBS = {
    "fit": lambda p, x: pv.fit(p, x, epochs=1),
    "valid": lambda p, x: pv.fit(p, ONES, valid=x, epochs=1),
    "elbo": lambda p, x: pv.elbo(p, x),
    "log_likelihood": lambda p, x: pv.log_likelihood(p, x, num_particles=2),
    "diagnose": lambda p, x: pv.diagnose(p, x),
    "encode": lambda p, x: pv.encode(p, x),
    "reconstruct": lambda p, x: pv.reconstruct(p, x),
}


def refuses(program, call, error, match):
    """Check the error, and that program and process are as they were."""
    weights = {k: v.clone() for k, v in program.state_dict().items()}
    modes = [part.training for part in program.modules()]
    before, random = surroundings(), random_state()
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, PyroVaeError)
    assert not differences(before, surroundings()) and random_state() == random
    assert all(torch.equal(weights[k], v) for k, v in program.state_dict().items())
    assert modes == [part.training for part in program.modules()]


@pytest.mark.parametrize("kind", BAD_DATA)
def test_data(kind):
    """By every verb, of a program that has read nothing; `valid` comes last: it reads good rows."""
    data, match = BAD_DATA[kind]
    program = pv.models.VAE(6, 2, (8,))
    for verb in sorted(VERBS, key="valid".__eq__):
        if data is not None or verb != "valid":  # None is no validation set
            refuses(program, lambda verb=verb: VERBS[verb](program, data), DataError, match)
    for verb in VERBS.values():
        verb(program, ONES)  # and everything still works


@pytest.mark.parametrize("verb", VERBS)
def test_data_after_good_data(verb):
    """A batch of a known shape is checked as well as the first one was."""
    program = pv.models.VAE(6, 2, (8,))
    VERBS[verb](program, ONES)
    for kind in ("nan", "grey"):
        data, match = BAD_DATA[kind]
        refuses(program, lambda data=data: VERBS[verb](program, data), DataError, match)


@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize("name", ["labelled", "sequences", "functions", "bayesian"])
def test_users_programs(name, kind):
    data = CASES[name].data(10)
    x = data[0] if isinstance(data, tuple) else data["x"] if isinstance(data, dict) else data
    x[4, 1] = {"nan": math.nan, "inf": math.inf}[kind]
    program = pv.Program.of(CASES[name].build())
    refuses(program, lambda: pv.fit(program, data), DataError, f"{kind} in row 4")


def test_wrong_features_of_a_users_program():
    program = pv.Program.of(CASES["labelled"].build())
    bad = (torch.ones(4, 9), torch.zeros(4, dtype=torch.long))
    match = r"cannot take this batch \(x \(4, 9\)"
    refuses(program, lambda: pv.fit(program, bad), DataError, match)


# -- arguments ----------------------------------------------------------------------------------

ARGUMENTS = {
    "epochs": [0, -1, 2.5, "ten", True, math.nan],
    "batch_size": [0, -1, 1.5],
    "lr": [0, -1.0, math.nan, math.inf, "fast"],
    "clip_norm": [0, -1.0, math.nan],
    "beta": [-0.5, math.nan, "one", {"zz": 1.0}, {"z": -1.0}],
    "lr_schedule": [-1.0, math.nan, "cosine"],
    "patience": [0, -1, 3],  # 3: without validation data
    "objective": ["elbo", 3],
    "seed": [-1, 1.5, None],
    "checkpoint_every": [0, 2],  # 2: without a folder
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, v) for name, values in ARGUMENTS.items() for v in values]
)
def test_arguments_of_fit(name, value):
    program = pv.models.VAE(6, 2, (8,))
    refuses(program, lambda: pv.fit(program, ONES, **{name: value}), ConfigError, name)


@pytest.mark.parametrize("count", [0, -3, 1.5, True, "many"])
@pytest.mark.parametrize(
    ("verb", "name"),
    [
        (pv.elbo, "num_particles"),
        (pv.elbo, "num_global_samples"),
        (pv.elbo, "batch_size"),
        (pv.log_likelihood, "num_particles"),
        (pv.log_likelihood, "num_global_samples"),
        (pv.diagnose, "num_particles"),
    ],
)
def test_counts(verb, name, count):
    program = pv.models.VAE(6, 2, (8,))
    match = f"{name}: got {count!r}, expected an integer of at least 1"
    refuses(program, lambda: verb(program, ONES, **{name: count}), ConfigError, match)


@pytest.mark.parametrize("kind", [pv.ELBO, pv.IWAE])
@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_particles_of_objectives(kind, count):
    with pytest.raises(ConfigError, match="num_particles: got"):
        kind(num_particles=count)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:zero", 3.5, "xla"])
def test_devices(device):
    program = pv.models.VAE(6, 2, (8,))
    call = lambda: pv.fit(program, ONES, device=device)  # noqa: E731
    refuses(program, call, DeviceError, "device: got .*auto, cpu")


@pytest.mark.parametrize("name", ["mnits", "", "../digits", "digits.npz"])
def test_data_names(name):
    with pytest.raises(PyroVaeError, match="digits"):
        pv.data.load(name)


@pytest.mark.parametrize("what", ["file", "run"])
def test_folders(what, tmp_path):
    program = pv.models.VAE(6, 2, (8,))
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    else:
        pv.fit(program, ONES, epochs=1, out=out)
    match = "is a file" if what == "file" else "holds another run; choose a new folder"
    refuses(program, lambda: pv.fit(program, ONES, out=out), ConfigError, match)
    assert what == "run" or out.read_text() == "mine"


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy(kind, tmp_path):
    program = pv.models.VAE(6, 2, (8,))
    counts = {n: kind(2) for n in ("epochs", "batch_size", "patience", "checkpoint_every", "seed")}
    run = pv.fit(program, ONES, valid=ONES, out=tmp_path, **counts)
    assert run.steps == 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "number", [math.inf, -math.inf, math.nan, 2.0, -1.0, 0.5, "above 1", "above 0", 0.0, -0.0]
)
def test_numbers_are_binary_where_the_constraint_says_so(number, dtype):
    """Infinity is its own square, and that of a number next to 1 is next to it."""
    value, kind = torch.ones(40, 2000, dtype=dtype), torch.finfo(dtype)  # of float16 the sum is inf
    named = {"above 1": 1.0 + kind.eps, "above 0": kind.smallest_normal}
    value[7, 3] = named.get(number, number)
    support = constraints.independent(constraints.boolean, 1)
    if number == 0.0:
        check_support("x", support, "Bernoulli", value)
    else:
        with pytest.raises(DataError, match=r"in row 7 is outside the support \(Boolean"):
            check_support("x", support, "Bernoulli", value)


class Masked(nn.Module):
    """x ~ N(z, 1) where it is seen, z ~ N(0, 1); the guide reads both arguments."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def model(self, x, seen, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            part = dist.Normal(z[..., None], 1.0).expand([*z.shape, 3]).mask(seen).to_event(1)
            pyro.sample("x", part, obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(self, x, seen, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x * seen)[:, 0], 1.0))


def test_rows_that_lack_in_one_argument_are_named():
    """By the model's names and all shapes, not by their places among some of them."""
    x, seen, y = torch.zeros(30, 3), torch.ones(20, 3, dtype=torch.bool), torch.zeros(30)
    with pytest.raises(
        DataError, match=r"x \(30, 3\).*, seen \(20, 3\) torch.bool, y \(30,\)"
    ) as told:
        pv.fit(Masked(), (x, seen, y), epochs=1)
    assert "unequal numbers of rows, 30 of x and y, 20 of seen (The size of" in str(told.value)


def test_other_rows_are_no_reason_where_a_run_has_failed_on_other_numbers():
    """What is no data of the rows may have others: only some columns do not fit here."""

    def model(x, weights, bias, y):
        with pyro.plate("data", len(x)):
            mean = (x * weights).sum(-1) + y + bias.sum()
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, 0])

    program, bias, y = pv.Program(model, lambda *_: None), torch.zeros(4), torch.zeros(30)
    assert pv.elbo(program, (torch.zeros(30, 3), torch.ones(3), bias, y)).shape == (30,)
    with pytest.raises(DataError, match=r"x: got .*; it fails with: The size of tensor a \(4\)"):
        pv.elbo(program, (torch.zeros(30, 4), torch.ones(3), bias, y))
