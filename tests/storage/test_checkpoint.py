"""Resuming: an interrupted run ends bit-identical to one that was not interrupted."""

import functools
import signal

import numpy as np
import pytest
import torch
from programs import CASES

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError

EPOCHS = 5
ADAM = functools.partial(torch.optim.Adam, lr=0.01)


class Adams:
    """An optimizer factory that keeps hold of the optimizers it made."""

    def __init__(self, kind=ADAM):
        self.kind, self.made = kind, []

    def __call__(self, parameters):
        self.made.append(self.kind(parameters))
        return self.made[-1]


def build(name):
    torch.manual_seed(1)
    return CASES[name].build()


def binarise(x):
    return torch.bernoulli(x.clamp(0.05, 0.95))


VARIANTS = {
    "plain": ("vae", {}),
    "valid": ("vae", {"valid": True}),
    "dropout": ("regularised", {}),
    "transform": ("vae", {"transform": binarise}),
    "functions": ("functions", {}),
    "globals": ("bayesian", {}),
    "labelled": ("labelled", {}),
    "schedules": (
        "vae",
        {"beta": pv.schedules.linear(0, 1, over=0.7), "lr_schedule": pv.schedules.cosine()},
    ),
    "momentum": ("vae", {"kind": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)}),
}


def train(variant, folder=None, *, interrupt=None, in_step=None, resume=False, epochs=EPOCHS):
    """Run one variant, to its end or to an interrupt; return weights, optimizer and history."""
    name, options = VARIANTS[variant]
    options = dict(options)
    data = CASES[name].data(30)
    adams = Adams(options.pop("kind", ADAM))
    valid = data if options.pop("valid", False) else None
    program = build(name)

    def callback(run):
        if interrupt is not None and len(run.history["loss"]) == interrupt:
            raise KeyboardInterrupt

    if in_step is not None:  # 0 never interrupts
        calls, at = [], [in_step]  # a list: numbers that a transform holds must not change

        def transform(x):
            calls.append(1)
            if len(calls) in at:
                raise KeyboardInterrupt
            return x

        options["transform"] = transform
    try:
        run = pv.fit(
            program,
            data,
            valid=valid,
            epochs=epochs,
            batch_size=8,
            optimizer=adams,
            callbacks=[callback],
            out=folder,
            checkpoint_every=1 if folder else None,
            resume=resume,
            **options,
        )
    except KeyboardInterrupt:
        return None
    wrapped = pv.Program.of(program)
    return wrapped.state_dict(), adams.made[0].state_dict(), run


straight = functools.cache(train)  # runs without a break, once each: many tests compare with them


def assert_identical(expected, got):
    (weights, optimizer, run), (weights_, optimizer_, run_) = expected, got
    assert weights.keys() == weights_.keys()
    assert all(torch.equal(weights[k], weights_[k]) for k in weights)
    assert optimizer["param_groups"] == optimizer_["param_groups"]
    assert optimizer["state"].keys() == optimizer_["state"].keys()
    for number, entries in optimizer["state"].items():
        for key, value in entries.items():
            other = optimizer_["state"][number][key]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), (number, key)
    assert run.history.keys() == run_.history.keys()
    for column in run.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(run.history[column], run_.history[column])
    assert (run.best_epoch, run.steps) == (run_.best_epoch, run_.steps)


INTERRUPTS = [("plain", 1), ("plain", 4), ("valid", 5), *((variant, 2) for variant in VARIANTS)]


@pytest.mark.parametrize(("variant", "interrupt"), INTERRUPTS)
def test_resumed_is_bit_identical(variant, interrupt, tmp_path):
    expected = straight(variant)
    assert train(variant, tmp_path, interrupt=interrupt) is None
    assert_identical(expected, train(variant, tmp_path, resume=True))


@pytest.mark.parametrize("in_step", [1, 6, 15])
def test_resumed_after_an_interrupt_inside_an_epoch(in_step, tmp_path):
    expected = straight("plain")
    assert train("plain", tmp_path, in_step=in_step + 1) is None
    assert_identical(expected, train("plain", tmp_path, in_step=0, resume=True))


def test_a_run_is_prolonged(tmp_path):
    expected = straight("plain")
    train("plain", tmp_path, epochs=3)
    assert_identical(expected, train("plain", tmp_path, resume=True))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    expected = train("valid", tmp_path)
    assert_identical(expected, train("valid", tmp_path, resume=True))


def test_interrupted_twice(tmp_path):
    expected = straight("plain")
    train("plain", tmp_path, interrupt=2)
    train("plain", tmp_path, interrupt=4, resume=True)
    assert_identical(expected, train("plain", tmp_path, resume=True))


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    assert_identical(straight("plain"), train("plain", tmp_path / "new", resume=True))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("other", ["wider", "kind"])
def test_a_checkpoint_of_another_program_is_refused_and_kept(other, tmp_path):
    train("plain", tmp_path, interrupt=3)
    program = pv.models.VAE(6, 2, (9,)) if other == "wider" else CASES["functions"].build()
    if other == "kind":
        pv.Program.of(program).read(CASES["functions"].data(30))
    weights = {k: v.clone() for k, v in pv.Program.of(program).state_dict().items()}
    before = contents(tmp_path)
    data = CASES["vae" if other == "wider" else "functions"].data(30)
    with pytest.raises(CheckpointError, match="checkpoint"):
        pv.fit(program, data, out=tmp_path, resume=True, batch_size=8)
    assert contents(tmp_path) == before
    after = pv.Program.of(program).state_dict()
    assert all(torch.equal(weights[k], after[k]) for k in weights)


@pytest.mark.parametrize("change", [{"seed": 9}, {"batch_size": 16}])
def test_another_seed_or_batch_size_is_refused(change, tmp_path):
    train("plain", tmp_path, interrupt=3)
    before = contents(tmp_path)
    settings = {"batch_size": 8, "out": tmp_path, "resume": True, **change}
    program = build("vae")
    weights = {k: v.clone() for k, v in program.state_dict().items()}
    with pytest.raises(ConfigError, match="resume"):
        pv.fit(program, CASES["vae"].data(30), **settings)
    assert contents(tmp_path) == before
    assert all(torch.equal(weights[k], v) for k, v in program.state_dict().items())


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, tmp_path):
    expected = straight("plain")
    train("plain", tmp_path, interrupt=3)
    spoil(tmp_path / "checkpoint.safetensors", damage)
    with pytest.warns(UserWarning, match=r"checkpoint\.safetensors.*before it is used: epoch 2"):
        got = train("plain", tmp_path, resume=True)
    assert_identical(expected, got)


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_two_damaged_checkpoints_are_refused(damage, tmp_path):
    train("plain", tmp_path, interrupt=3)
    for path in tmp_path.glob("checkpoint*"):
        spoil(path, damage)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoint"):
        train("plain", tmp_path, resume=True)
    assert contents(tmp_path) == before


def spoil(path, damage):
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    else:
        del content[len(content) // 2 :]
    path.write_bytes(bytes(content))


def test_a_run_killed_between_two_renames_goes_on_from_the_checkpoint_before(tmp_path):
    expected = straight("plain")
    train("plain", tmp_path, interrupt=3)
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.warns(UserWarning, match="before it is used: epoch 2"):
        got = train("plain", tmp_path, resume=True)
    assert_identical(expected, got)


def test_resume_needs_a_folder():
    with pytest.raises(ConfigError, match="out="):
        pv.fit(build("vae"), CASES["vae"].data(8), resume=True)


CHANGES = {
    "objective": {"objective": pv.IWAE(2)},
    "particles": {"objective": pv.ELBO(3)},
    "lr": {"lr": 0.02},
    "beta": {"beta": 0.5},
    "site": {"beta": {"z": 0.5}},
    "schedule": {"beta": pv.schedules.linear()},
    "lr_schedule": {"lr_schedule": 0.5},
    "batch_size": {"batch_size": 15},
    "clip_norm": {"clip_norm": 1.0},
    "optimizer": {"optimizer": functools.partial(torch.optim.SGD, lr=1e-3)},
    "transform": {"transform": binarise},
    "seed": {"seed": 4},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_is_refused_by_name(change, tmp_path):
    data = CASES["vae"].data(30)
    pv.fit(build("vae"), data, epochs=1, batch_size=10, out=tmp_path)
    before = contents(tmp_path)
    changed = {"batch_size": 10, **CHANGES[change]}
    name = {"particles": "objective", "site": "beta", "schedule": "beta"}.get(change, change)
    with pytest.raises(ConfigError, match=rf"resume: .*\b{name} = .*this run"):
        pv.fit(build("vae"), data, epochs=2, out=tmp_path, resume=True, **changed)
    assert contents(tmp_path) == before


def test_a_finished_run_without_checkpoints_is_returned(tmp_path):
    settings = {"epochs": 3, "batch_size": 10, "out": tmp_path}
    run = pv.fit(build("vae"), CASES["vae"].data(30), **settings)
    before = contents(tmp_path)
    calls = []
    again = pv.fit(
        build("vae"), CASES["vae"].data(30), **settings, resume=True, callbacks=[calls.append]
    )
    assert not calls and again.steps == run.steps
    weights = run.program.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in again.program.state_dict().items())
    assert contents(tmp_path) == before


def test_a_trained_program_without_a_checkpoint_is_not_trained_over(tmp_path):
    pv.fit(build("vae"), CASES["vae"].data(30), epochs=1, out=tmp_path)
    for path in tmp_path.glob("checkpoint*"):
        path.unlink()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint"):
        pv.fit(build("vae"), CASES["vae"].data(30), epochs=1, out=tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_run_that_a_callback_stopped_goes_on(tmp_path):
    expected = straight("plain")
    settings = {"epochs": EPOCHS, "batch_size": 8, "optimizer": Adams(), "out": tmp_path}
    stopped = pv.fit(build("vae"), CASES["vae"].data(30), callbacks=[lambda run: True], **settings)
    assert stopped.stopped_early and len(stopped.history["loss"]) == 1
    assert_identical(expected, train("plain", tmp_path, resume=True))


def test_the_best_weights_so_far_stay_the_best_after_a_resume(tmp_path):
    """It learns the opposite of what it is judged on: the first epoch is the best."""
    data, seen = CASES["vae"].data(30), []

    def callback(run):
        seen.append({k: v.clone() for k, v in run.program.state_dict().items()})
        return len(seen) == 2

    settings = {"valid": 1 - data[:9], "lr": 0.3, "batch_size": 8, "out": tmp_path, "epochs": 4}
    pv.fit(build("vae"), data, callbacks=[callback], **settings)
    program = build("vae")
    run = pv.fit(program, data, resume=True, **settings)
    scores = run.history["valid_elbo"]
    assert len(scores) == 4 and np.argmax(scores) == 0 and run.best_epoch == 1
    assert all(torch.equal(v, seen[0][k]) for k, v in program.state_dict().items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, "SIGTERM", "SIGUSR1"])
def test_an_interrupted_run_is_saved_with_its_best_weights(error, tmp_path):
    """No checkpoint was asked for; the folder has one all the same, and the best program.

    ``SystemExit`` is what the signals become while a run trains, and at no other time.
    """
    sent, error = (error, SystemExit) if isinstance(error, str) else (None, error)
    data, seen = CASES["vae"].data(30), []

    def callback(run):
        seen.append({k: v.clone() for k, v in run.program.state_dict().items()})
        if len(seen) == 8 and sent:
            signal.raise_signal(getattr(signal, sent))
        if len(seen) == 8:
            raise error

    program = build("vae")
    settings = {"valid": 1 - data[:9], "lr": 0.3, "batch_size": 8, "out": tmp_path, "epochs": 9}
    with pytest.raises(error):
        pv.fit(program, data, callbacks=[callback], **settings)
    assert signal.getsignal(signal.Signals[sent or "SIGTERM"]) is signal.SIG_DFL
    again = pv.fit(build("vae"), data, resume=True, **settings)
    best = int(np.argmax(again.history["valid_elbo"][:8]))
    assert best < 7  # it learns the opposite of what it is judged on
    assert all(torch.equal(v, seen[best][k]) for k, v in program.state_dict().items())
    whole = pv.fit(build("vae"), data, **{**settings, "out": None})
    np.testing.assert_array_equal(whole.history["loss"], again.history["loss"])
