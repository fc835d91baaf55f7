"""A run that is cut or killed within an epoch goes on to the numbers of the unbroken one."""

import time

import numpy as np
import pytest
import torch
from objective_table import AnySize
from torch.utils.data import DataLoader, TensorDataset
from two_processes import numbers

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError, DataError
from pyro_vae.storage.bundle import read_bundle, write_bundle
from pyro_vae.storage.checkpoint import NAME

X = torch.rand(22, 6, generator=torch.Generator().manual_seed(0)).round()
STEPS = 9  # three epochs of three batches, of 8, 8 and 6 rows


class Batches:
    def __iter__(self):
        return iter(X.split(8))


FEEDS = {
    "tensors": lambda: (X, {}),
    "loader": lambda: (
        DataLoader(
            TensorDataset(X), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5)
        ),
        {},
    ),
    "stream": lambda: (Batches(), {"size": 22}),
}


END = []  # called before a batch trains, with its data


def noisy(batch):
    """Return another batch each time, by NumPy's generator and by torch's."""
    for each in END:
        each()
    jump = np.random.random() < 0.5  # noqa: NPY002
    return (batch + jump * torch.rand(())).clamp(0, 1).round()


@pytest.fixture(autouse=True)
def nothing_ends_a_run():
    yield
    END.clear()


def train(feed="tensors", **options):
    """Train a program with noise of its own, moments, averages and schedules."""
    torch.manual_seed(3)
    program = pv.models.VAE(6, 2, (5,))
    batch, more = FEEDS[feed]()
    options = {"epochs": 3, "batch_size": 8, "valid": X[:9], "transform": noisy, **options}
    options = {"lr_schedule": pv.schedules.cosine(), "lr": 0.05, "ema": 0.7, **more, **options}
    run = pv.fit(program, batch, device="cpu", progress=False, compile=False, **options)
    return numbers(run, program)


@pytest.fixture(scope="module")
def whole():
    return {feed: train(feed) for feed in FEEDS}


def steps_in(folder):
    """Return the steps of the checkpoint in a folder; 0 where there is none."""
    if not (folder / f"{NAME}.safetensors").exists():
        return 0
    return read_bundle(folder, NAME, allow_nonfinite=True)[1]["steps"]


@pytest.mark.parametrize("step", [1, 3, 5, 8])
@pytest.mark.parametrize("feed", FEEDS)
def test_a_run_that_is_killed_goes_on_from_its_last_step(feed, step, tmp_path, whole):
    def kill():
        if steps_in(tmp_path) == step:
            raise MemoryError

    END.append(kill)
    with pytest.raises(MemoryError):
        train(feed, out=tmp_path, checkpoint_steps=1)
    END.clear()
    assert steps_in(tmp_path) == step
    assert train(feed, out=tmp_path, resume=True) == whole[feed]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_goes_back_to_the_last_checkpoint_and_says_so(error, tmp_path, whole, capsys):
    def interrupt():
        if steps_in(tmp_path) == 4:
            steps.append(4)
        if len(steps) == 2:
            raise error

    steps = []
    END.append(interrupt)
    with pytest.raises(error):
        train(out=tmp_path, checkpoint_steps=4)
    END.clear()
    said = capsys.readouterr().err
    assert "ended in step 6" in said and "a checkpoint of step 4" in said
    assert steps_in(tmp_path) == 4
    assert train(out=tmp_path, resume=True) == whole["tensors"]


@pytest.mark.parametrize("feed", FEEDS)
def test_a_bound_on_steps_cuts_an_epoch_and_a_continuation_goes_on_with_it(feed, tmp_path, whole):
    """The schedules go by the steps to come, so that all three runs have the same of these."""
    flat = {"lr_schedule": 1.0}
    straight = train(feed, **flat)
    cut = train(feed, out=tmp_path, max_steps=4, **flat)
    assert cut["steps"] == 4 and len(cut["history"]["loss"]) == 2
    assert np.isfinite(cut["history"]["valid_elbo"]).all()
    assert cut["history"]["loss"][:1] == straight["history"]["loss"][:1]
    assert train(feed, out=tmp_path, max_steps=4, resume=True, **flat) == cut  # it is finished
    assert train(feed, out=tmp_path, max_steps=7, resume=True, **flat)["steps"] == 7
    assert train(feed, out=tmp_path, resume=True, **flat) == straight


def test_a_critic_goes_on_within_an_epoch(tmp_path):
    """With its optimizer, its moving moments and its part of the running means."""

    def game(**options):
        objective = pv.AVB(AnySize(), moments=3)
        found = train(objective=objective, lr_schedule=1.0, **options)
        return found, [value.tolist() for value in objective.state_dict().values()]

    straight, critic = game()
    cut, of_cut = game(out=tmp_path, max_steps=4)
    assert game(out=tmp_path, resume=True) == (straight, critic)
    assert cut["steps"] == 4 and of_cut != critic
    assert {"loss", "critic"} <= {column.split("_")[0] for column in straight["history"]}


def test_steps_bound_a_run_at_the_end_of_an_epoch_and_lift_the_bound_on_epochs():
    run = train(max_steps=6, epochs=None, lr_schedule=1.0)
    assert run["steps"] == 6 and len(run["history"]["loss"]) == 2
    whole = train(epochs=2, lr_schedule=1.0)
    assert run == whole
    rates = train(max_steps=36, epochs=None)["history"]["lr"]
    assert len(rates) == 12 and rates[-1] < 1e-9 < 1e-3 < rates[5]  # the schedule's end


def clock(monkeypatch, seconds):
    """Let that many seconds pass whenever the time is looked at."""
    now = [0.0]

    def later():
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(time, "monotonic", later)


def test_a_run_in_a_folder_is_written_every_ten_minutes(tmp_path, monkeypatch, whole):
    seen = []
    END.append(lambda: seen.append(steps_in(tmp_path)))
    clock(monkeypatch, 200.0)
    assert train(out=tmp_path) == whole["tensors"]
    assert len(set(seen)) > 2 and any(step % 3 for step in seen)
    clock(monkeypatch, 0.0)
    seen.clear()
    train(out=tmp_path / "quick")
    assert not any(step % 3 for step in seen)


def test_minutes_bound_a_run(monkeypatch):
    clock(monkeypatch, 60.0)
    assert 1 <= train(max_minutes=5.0)["steps"] < STEPS


class Late(DataLoader):
    """A loader whose first batch of the second epoch comes after ten minutes, or never."""

    wait, empty = staticmethod(lambda seconds: None), False

    def __iter__(self):
        batches = super().__iter__()
        if self.epoch == 1:
            self.wait(600.0)
        return iter(()) if self.empty and self.epoch else batches

    def set_epoch(self, epoch):
        self.epoch = epoch


def late(**kind):
    draws = torch.Generator().manual_seed(5)
    made = Late(TensorDataset(X), batch_size=8, shuffle=True, generator=draws)
    vars(made).update(kind)
    return made


def test_minutes_that_are_over_before_the_first_batch_of_an_epoch_end_a_run(
    tmp_path, monkeypatch, whole
):
    """It was a StopIteration, and the order of the epoch was lost."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setitem(FEEDS, "late", lambda: (late(wait=lambda s: now.append(now.pop() + s)), {}))
    assert train("late", max_minutes=5.0, out=tmp_path)["steps"] == STEPS / 3
    assert train("late", out=tmp_path, resume=True) == whole["loader"]


def test_an_epoch_without_batches_is_told_of(monkeypatch):
    monkeypatch.setitem(FEEDS, "late", lambda: (late(empty=True), {}))
    with pytest.raises(DataError, match="epoch 2 had no batches"):
        train("late")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoint_steps": 2}, "checkpoint_steps: needs a run folder"),
        ({"max_steps": 0}, "max_steps: got 0, expected an integer of at least 1"),
        ({"max_minutes": 0.0}, "max_minutes: got 0.0, expected a positive number"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes: got -1.0"),
    ],
)
def test_bounds_are_checked(options, said):
    with pytest.raises(ConfigError, match=said):
        train(**options)


@pytest.mark.parametrize(
    "forged", [{"position": -1}, {"rows": "many"}, {"rows": []}, {"seen": None}, {"rows": [None]}]
)
def test_a_forged_record_of_an_epoch_is_refused(forged, tmp_path):
    train(out=tmp_path, max_steps=4)
    tensors, meta = read_bundle(tmp_path, NAME, allow_nonfinite=True)
    write_bundle(tmp_path, NAME, tensors, {**meta, **forged}, allow_nonfinite=True)
    with pytest.raises(CheckpointError, match="malformed"):
        train(out=tmp_path, resume=True)
