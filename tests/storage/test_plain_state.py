"""What a program keeps as plain Python values goes on with a run, and is told of by a file."""

import math
import warnings
from collections import defaultdict

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from forked import connected, forks

import pyro_vae as pv
from pyro_vae.program.program import Program as Read
from pyro_vae.storage.moved_state import MovedState


class Encoder(torch.nn.Linear):
    """A layer that keeps something from call to call."""

    def __init__(self, how):
        super().__init__(6, 4)
        self.how, self.kept, self.mean, self._count = how, None, None, 0.0
        self.calls, self.last = 0, None  # nobody reads them
        self.noise = torch.Generator().manual_seed(0)

    def forward(self, x):
        self.calls += 1
        self.last = super().forward(self.how(self, x))
        return self.last


def kept_number(net, x):
    if net.mean is None:
        net.mean = {"all": x.mean().item()}
    return x - net.mean["all"]


def kept_tensor(net, x):
    if net.kept is None:
        net.kept = x.mean(0)
    return x - net.kept


def kept_inside(net, x):
    if net.kept is None:
        net.kept = {"means": (x.mean(0), np.float32(2.0), math.inf)}
    return x - net.kept["means"][0]


def moving_mean(net, x):
    if net.training:
        net._count = 0.9 * net._count + 0.1 * x.mean().item()
    return x - net._count


def noisy(net, x):
    return x + torch.randn(x.shape, generator=net.noise)


def all_of_them(kept=None):
    """Return a function that keeps values of each kind, in attributes and around itself."""
    steps, array = [0], None

    def keeping(net, x):
        nonlocal kept, array
        if kept is None:
            kept, array = x.mean().item(), x.mean(0).numpy() / 2
        steps[0] += net.training
        x = x / (1 + steps[0]) - kept - torch.from_numpy(array)
        return noisy(net, moving_mean(net, kept_tensor(net, kept_number(net, x))))

    return keeping


class Program:
    """A program of plain functions of an object."""

    def __init__(self, how, features=None):
        torch.manual_seed(0)
        self.encode, self.decode = Encoder(how), torch.nn.Linear(2, 6)
        self.features = torch.ones(6) if features is None else features

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x * self.features).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def fit(how, epochs, features=None, **options):
    data = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)) + torch.arange(6.0)
    program = Program(how, features)
    run = pv.fit(program, data, epochs=epochs, batch_size=16, progress=False, **options)
    return program, run.history["loss"]


def test_a_run_goes_on_with_what_its_calls_have_kept(tmp_path):
    """Objects made anew, as another process makes them, give the numbers of one run."""
    _, whole = fit(all_of_them(), 4)
    for epochs in (1, 2, 4):
        _, found = fit(all_of_them(), epochs, out=tmp_path, resume=True)
    assert np.array_equal(found, whole)


def test_what_a_run_goes_on_without_is_named(tmp_path):
    """A generator of NumPy, and a tensor that no call has moved."""

    def numpy_noise():
        generator = np.random.default_rng(0)
        return lambda net, x: x + torch.from_numpy(generator.normal(size=x.shape)).float()

    fit(numpy_noise(), 1, out=tmp_path)
    told = r"generator = a generator, which the run has moved.*; Program.features = a tensor of sha"
    with pytest.warns(UserWarning, match=told):
        fit(numpy_noise(), 2, torch.arange(6.0), out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("how", "features", "told"),
    [
        (kept_tensor, None, r"encode.kept = a tensor of shape \[6\], this run None"),
        (kept_inside, None, r"encode.kept = a dict of length 1, this run None"),
        (moving_mean, None, r"encode._count = -?\d.*, this run 0.0"),
        (noisy, torch.arange(6.0), r"Program.features = a tensor of shape \[6\], this run a ten"),
        (noisy, None, None),  # counts that nothing reads, stored activations, generators
    ],
)
def test_a_file_tells_of_what_it_does_not_hold(how, features, told, tmp_path, recwarn):
    """Counts of calls that nothing reads, and random generators, are no difference."""
    saved = Program(how)
    saved.encode.train()(torch.randn(3, 6))
    pv.save(saved, tmp_path)
    fresh = Program(how, features)
    if told is None:
        pv.load(tmp_path, into=fresh)
        assert not recwarn
    else:
        with pytest.warns(UserWarning, match=told):
            pv.load(tmp_path, into=fresh)


class Study(Program):
    """What a script keeps in one object: settings, and numbers that its steps move."""

    def __init__(self, epochs, scale=1.0, rank=0):
        super().__init__(lambda net, x: x)
        self.epochs, self.scale, self.rank, self.table = epochs, scale, rank, {"tanh": torch.tanh}
        self.mean, self.sums, self.steps = 0.0, torch.zeros(6), defaultdict(float)
        self.encode.sums = self.sums
        self.noise = torch.Generator().manual_seed(rank)

    def guide(self, x):
        if self.encode.training:
            self.mean = 0.9 * self.mean + 0.1 * x.numpy().mean()  # NumPy's, of single precision
            self.sums += x.mean(0)
            self.steps["early" if self.steps["early"] < 2 else "late"] += 1.0
        noise = torch.randn(x.shape, generator=self.noise) + 0 * self.rank
        x = self.table["tanh"](x + noise - self.encode.sums) * self.scale - self.mean
        super().guide(x - self.steps["late"])

    def fit(self, **options):
        data = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
        options |= {"epochs": self.epochs, "batch_size": 16, "progress": False, "device": "cpu"}
        return pv.fit(self, data, compile=False, **options).history["loss"]


def test_arrays_of_two_holders_and_numbers_of_numpy_go_on(tmp_path, recwarn):
    """More epochs are no other program, and one array written to stays one."""
    whole = Study(4).fit()
    for epochs in (2, 4):
        found = Study(epochs).fit(out=tmp_path, resume=True)
    assert np.array_equal(found, whole)
    assert not recwarn


def test_a_value_chosen_anew_for_a_continuation_is_not_put_back_later(tmp_path):
    """It was taken for one that the run had moved, and came back over the next choice."""
    Study(1, 1.0).fit(out=tmp_path)
    for epochs, before, scale in ((2, 1.0, 2.0), (3, 2.0, 3.0), (4, 3.0, 1.0)):
        study = Study(epochs, scale)
        with pytest.warns(UserWarning, match=f"Study.scale = {before}, this run {scale}; set"):
            study.fit(out=tmp_path, resume=True)
        assert study.scale == scale


@forks
def test_a_process_keeps_its_own_rank_and_noise(tmp_path):
    """The second drew the noise of the first, and was told that its rank differs."""

    def drawn(rank, epochs):
        study = Study(epochs, rank=rank)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            study.fit(out=tmp_path / "run", resume=True)
        texts = [str(each.message) for each in told if "plain values" in str(each.message)]
        return torch.rand(1, generator=study.noise).item(), float(study.mean), texts

    for epochs in (1, 2):
        (tmp_path / f"{epochs}").mkdir()
        one, two = connected(2, lambda rank, n=epochs: drawn(rank, n), tmp_path / f"{epochs}")
        assert one[0] != two[0]
    assert one[1] != 0.0 != two[1]
    assert not one[2]
    assert len(two[2]) == 1
    assert "Study.noise = a generator, which the run has moved, is not kept" in two[2][0]
    assert "rank" not in two[2][0]


def test_a_damaged_file_sets_no_table_of_functions_and_raises_nothing():
    study = Study(1)
    state = MovedState(Read.of(study))
    table = {"kind": "dict", "of": "dict", "keys": ["tanh"], "items": [1.0]}
    sums = {"kind": "array", "tensor": "sums", "dtype": "float32"}
    saved = {**state.take()[1], "moved": {"Study.table": table, "Study.sums": sums}}
    with pytest.warns(UserWarning, match=r"table = .*not kept.*; Study.sums = .*not kept"):
        state.put_back({"sums": torch.zeros(6, dtype=torch.bfloat16)}, saved, "file")
    assert study.table == {"tanh": torch.tanh}


@pytest.mark.parametrize("value", [np.zeros(3, ">f4"), torch.zeros(3).to(torch.float8_e4m3fn)])
def test_arrays_that_no_file_holds_end_no_run(value, tmp_path):
    def keeping(net, x):
        net.kept = value
        return x

    fit(keeping, 1, out=tmp_path)
