"""What a continuation must share with its run, and what it may choose anew."""

import functools
import json
import math
import shutil

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from continued_runs import BASE, X, same, weights
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError, TrainingDiverged
from pyro_vae.storage.bundle import read_bundle, write_bundle
from pyro_vae.training.fingerprints import describe_rows


class Pair(nn.Module):
    """Two decoders of equal shape whose sum is observed, built in any order."""

    def __init__(self, order=("enc", "left", "right"), activation=torch.tanh, sd=1.0):
        super().__init__()
        torch.manual_seed(2)
        parts = {"enc": nn.Linear(5, 6), "left": nn.Linear(3, 5), "right": nn.Linear(3, 5)}
        for name in order:
            self.add_module(name, parts[name])
        self.activation, self.sd = activation, sd

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            loc = self.left(z) + 30 * self.activation(self.right(z))
            pyro.sample("x", dist.Normal(loc, self.sd).to_event(1), obs=x)

    def guide(self, x):
        loc, log_sd = self.enc(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_sd.exp()).to_event(1))


ADAMS = [
    None,
    functools.partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    functools.partial(torch.optim.SGD, lr=1e-4, momentum=0.9),
]


@pytest.mark.parametrize("optimizer", ADAMS)
@pytest.mark.parametrize("order", [("left", "right", "enc"), ("enc", "right", "left")])
def test_layers_in_another_order_keep_their_moments(order, optimizer, tmp_path):
    """The gradients of the two decoders differ by a factor of 30: exchanged moments would show."""
    settings = {"batch_size": 16, "optimizer": optimizer, "compile": False, "progress": False}
    whole = pv.fit(Pair(), X, epochs=6, **settings)
    pv.fit(Pair(), X, epochs=3, out=tmp_path, **settings)
    again = pv.fit(Pair(order), X, epochs=6, out=tmp_path, resume=True, **settings)
    np.testing.assert_allclose(again.history["loss"], whole.history["loss"], rtol=1e-5)
    assert list(again.history) == list(whole.history)


def forge(folder, change):
    """Change the newer checkpoint as only a forger would: the hash is right."""
    tensors, meta = read_bundle(folder, "checkpoint", allow_nonfinite=True)
    tensors, meta = change(dict(tensors), meta) or (tensors, meta)
    write_bundle(folder, "checkpoint", tensors, meta, allow_nonfinite=True)
    (folder / "checkpoint-before.safetensors").unlink(missing_ok=True)


def entry(tensors, kind):
    return next(key for key in tensors if key.startswith(f"optimizer0/{kind}/"))


FORGERIES = {
    "moment cut": lambda t, m: t.update({entry(t, "exp_avg"): torch.zeros(1)}),
    "moment transposed": lambda t, m: t.update(
        {k: v.t().contiguous() for k, v in t.items() if "/exp_avg_sq/" in k and v.dim() == 2}
    ),
    "moment missing": lambda t, m: t.pop(entry(t, "exp_avg_sq")),
    "step of many": lambda t, m: t.update({entry(t, "step"): torch.ones(7)}),
    "stranger": lambda t, m: t.update({"optimizer0/exp_avg/program.no.such": torch.zeros(2)}),
    "no optimizer": lambda t, m: m.pop("optimizers"),
    "optimizer null": lambda t, m: m.update(optimizers=[None]),
    "groups null": lambda t, m: m["optimizers"][0].update(groups=None),
    "options null": lambda t, m: m["optimizers"][0]["groups"][0].update(options=None),
    "betas a word": lambda t, m: m["optimizers"][0]["groups"][0]["options"].update(betas="ab"),
    "lr beyond float32": lambda t, m: m["optimizers"][0]["groups"][0]["options"].update(lr=1e200),
    "lr a list": lambda t, m: m["optimizers"][0]["groups"][0]["options"].update(lr=[1]),
    "scalars a list": lambda t, m: m["optimizers"][0].update(scalars=[1]),
    "epoch a word": lambda t, m: m.update(epoch="3"),
    "steps negative": lambda t, m: m.update(steps=-1),
    "eps beyond all floats": lambda t, m: m["optimizers"][0]["groups"][0]["options"].update(
        eps=2**70
    ),
    "history longer than the run": lambda t, m: t.update(
        {k: v.repeat(5) for k, v in t.items() if k.startswith("history.")}
    ),
    "history of one value": lambda t, m: t.update({"history.loss": torch.tensor(1.0).double()}),
    "history of uneven columns": lambda t, m: t.update({"history.loss": t["history.loss"][:0]}),
    "history in JSON": lambda t, m: m.update(columns=None, history=[{"loss": 1.0}]),
    "history under other names": lambda t, m: m.update(columns=m["columns"][1:]),
    "history of integers": lambda t, m: t.update({"history.loss": t["history.loss"].long()}),
    "settings null": lambda t, m: m.update(settings=None),
    "best a word": lambda t, m: m.update(best_elbo="high"),
    "random state cut": lambda t, m: t.update({"rng.cpu": t["rng.cpu"][:-8].clone()}),
    "random state gone": lambda t, m: t.pop("rng.cpu"),
    "NumPy state of words": lambda t, m: t.update({"rng.numpy": t["rng.numpy"] * 1.5}),
    "Python state cut": lambda t, m: t.update({"rng.python": t["rng.python"][:3].clone()}),
    "weight cut": lambda t, m: t.update({"program.parts.Pair.enc.bias": torch.zeros(2)}),
    "best of another": lambda t, m: t.update({"best.alien": torch.zeros(2)}),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Return the folder of a run of one epoch, to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    pv.fit(Pair(), X, epochs=1, batch_size=16, compile=False, progress=False, out=folder)
    return folder


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_checkpoint_is_refused_and_changes_nothing(forgery, begun, tmp_path):
    settings = {"batch_size": 16, "compile": False, "progress": False, "out": tmp_path}
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)

    def change(tensors, meta):
        FORGERIES[forgery](tensors, meta)
        return tensors, meta

    forge(tmp_path, change)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    program = Pair()
    start, random = weights(program), torch.get_rng_state()
    with pytest.raises((CheckpointError, ConfigError)):
        pv.fit(program, X, epochs=2, resume=True, **settings)
    assert same(start, weights(program)) and torch.equal(random, torch.get_rng_state())
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


def mutate(value, generator):
    """Return one of the damages that a JSON value can take."""
    kinds = [None, -1, 2**70, 1e300, "", "x" * 50, [], [[]], {}, {"a": 1}, True, [value], 0]
    return kinds[int(torch.randint(len(kinds), (), generator=generator))]


def mutated(node, generator):
    """Return JSON with one entry, drawn at random, replaced or removed."""
    if isinstance(node, (dict, list)) and node and torch.rand((), generator=generator) < 0.85:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[int(torch.randint(len(keys), (), generator=generator))]
        changed = dict(node) if isinstance(node, dict) else list(node)
        if torch.rand((), generator=generator) < 0.15:
            changed.pop(key)
        else:
            changed[key] = mutated(node[key], generator)
        return changed
    return mutate(node, generator)


def mutated_tensors(tensors, generator):
    names = list(tensors)
    key = names[int(torch.randint(len(names), (), generator=generator))]
    value = tensors[key]
    damages = [
        lambda: value.flatten()[:-1].clone(),
        lambda: torch.zeros(0),
        lambda: value.double() if value.is_floating_point() else value.float(),
        lambda: value[None].clone(),
        lambda: torch.full_like(value, 200),
        lambda: torch.zeros(3, 1, 2, dtype=torch.bool),
    ]
    damage = damages[int(torch.randint(len(damages), (), generator=generator))]
    return {**tensors, key: damage()}


@pytest.mark.filterwarnings("ignore:.*plain values differ")  # names a damaged value
def test_mutations_end_in_a_run_or_an_error_of_ours(tmp_path):
    """Sealed again after each damage, so that the hash refuses none of them."""
    settings = {"batch_size": 24, "compile": False, "progress": False, "valid": X[:8]}
    pv.fit(Pair(), X, epochs=1, out=tmp_path / "run", **settings)
    tensors, meta = read_bundle(tmp_path / "run", "checkpoint", allow_nonfinite=True)
    generator, refused = torch.Generator().manual_seed(11), 0
    program = Pair()
    start = weights(program)
    for _ in range(50):
        if torch.rand((), generator=generator) < 0.6:
            damaged = tensors, mutated(meta, generator)
        else:
            damaged = mutated_tensors(tensors, generator), meta
        if not isinstance(damaged[1], dict):
            continue
        write_bundle(tmp_path / "run", "checkpoint", *damaged, allow_nonfinite=True)
        try:
            pv.fit(program, X, epochs=1, out=tmp_path / "run", resume=True, **settings)
        except (CheckpointError, ConfigError):
            refused += 1
            assert same(start, weights(program))
        else:
            program = Pair()
            start = weights(program)
    assert refused > 16


# -- what differs is named -------------------------------------------------------------------------


def noisy(x):
    return x + 0.01 * torch.randn_like(x)


def halved(x):
    return x / 2


def scaled(factor):
    return lambda x: x * factor


DIFFERENCES = {
    "data": ({}, {"data": X.flip(0)}, "rows.*rows"),
    "fewer columns": ({}, {"data": X[:, :5] + 0.25}, "rows"),
    "valid": ({"valid": X[:9]}, {"valid": X[9:18]}, "valid.*rows"),
    "schedule": (
        {"lr_schedule": lambda t: 1 - t},
        {"lr_schedule": lambda t: 1 - t / 2},
        "schedule",
    ),
    "KL weight": ({"beta": lambda t: t}, {"beta": lambda t: t * t}, r"beta\.schedule"),
    "transform": ({"transform": noisy}, {"transform": halved}, r"transform\.name"),
    "held number": (
        {"transform": scaled(0.5)},
        {"transform": scaled(0.75)},
        r"transform with other code, or other numbers",
    ),
    "betas": (
        {"optimizer": functools.partial(torch.optim.Adam, lr=1e-3), "lr": None},
        {"optimizer": functools.partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9))},
        r"optimizer_options.*betas = \[0\.9, 0\.999\], this run \[0\.5, 0\.9\]",
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_what_differs_is_named_and_refused(case, tmp_path):
    before, after, match = DIFFERENCES[case]
    pv.fit(Pair(), before.get("data", X), out=tmp_path, **{**BASE, **before})
    after = dict(after)
    data = after.pop("data", X)
    with pytest.raises(ConfigError, match=rf"resume: .*{match}"):
        pv.fit(Pair(), data, out=tmp_path, resume=True, **{**BASE, **before, **after})
    pv.fit(Pair(), X, out=tmp_path, resume=True, **{**BASE, **before})  # the same is the same


class Noisy(Dataset):
    """Rows with noise of torch's generator, or of one that nobody can put back."""

    def __init__(self, rows, generator=None):
        self.rows, self.generator = rows, generator

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index] + 0.01 * torch.rand(5, generator=self.generator)


class Streamed(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)


def own_noise(rows):
    return Noisy(rows, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [TensorDataset, Noisy, Streamed, own_noise])
def test_other_rows_of_a_loader_are_named_where_they_can_be_told(kind, tmp_path):
    """Of rows with noise of their own, shapes are all that can be told; the run goes on."""

    def loader(rows):
        found = kind(rows)
        shuffle = not isinstance(found, IterableDataset)
        return DataLoader(found, 16, shuffle=shuffle, generator=torch.Generator().manual_seed(3))

    held = loader(X)
    pv.fit(Pair(), held, out=tmp_path, **BASE)
    pv.fit(Pair(), held, out=tmp_path, resume=True, **{**BASE, "epochs": 2})
    pv.fit(Pair(), loader(X), out=tmp_path, resume=True, **{**BASE, "epochs": 3})
    if kind is own_noise:
        pv.fit(Pair(), loader(X.flip(0)), out=tmp_path, resume=True, **{**BASE, "epochs": 4})
    else:
        with pytest.raises(ConfigError, match=r"resume: .* has rows\.\w+\.rows = "):
            pv.fit(Pair(), loader(X.flip(0)), out=tmp_path, resume=True, **{**BASE, "epochs": 4})


@pytest.mark.parametrize("change", ["activation", "dropout"])
def test_another_program_of_equal_weights_is_refused(change, tmp_path):
    def build(changed):
        if change == "activation":
            return pv.models.VAE(5, 2, (4,), activation="relu" if changed else "tanh")
        torch.manual_seed(0)
        rate = 0.3 if changed else 0.1
        program = pv.models.VAE(5, 2, (4,))
        program.add_module("extra", nn.Dropout(rate))
        return program

    data = (X > 0.5).float()
    pv.fit(build(False), data, out=tmp_path, **BASE)
    with pytest.raises(ConfigError, match=r"architecture\.(config|modules)"):
        pv.fit(build(True), data, out=tmp_path, resume=True, **BASE)
    pv.fit(build(False), data, out=tmp_path, resume=True, **BASE)


def test_settings_change_knowingly_and_are_written_down(tmp_path):
    pv.fit(Pair(), X, out=tmp_path, **BASE)
    changes = {"lr": 1e-5, "clip_norm": 2.0, "epochs": 3, "beta": 0.5}
    rates = []
    run = pv.fit(
        Pair(),
        X,
        out=tmp_path,
        resume="settings",
        callbacks=[lambda r: rates.append(r)],
        **{**BASE, **changes},
    )
    np.testing.assert_allclose(run.history["lr"], [1e-3, 1e-5, 1e-5])
    config = json.loads((tmp_path / "config.json").read_text())
    said = " ".join(config["changed_on_resume"])
    assert all(f"epoch 1: {name} = " in said for name in ("lr", "clip_norm", "beta"))
    assert config["fit"]["lr"] == 1e-5
    pv.fit(
        Pair(), X, out=tmp_path, resume="settings", **{**BASE, **changes, "epochs": 4, "lr": 2e-5}
    )
    found = json.loads((tmp_path / "config.json").read_text())["changed_on_resume"]
    assert found[: len(config["changed_on_resume"])] == config["changed_on_resume"]
    assert "epoch 3: lr = " in found[-1]
    with pytest.raises(ConfigError, match="batch_size"):
        pv.fit(Pair(), X, out=tmp_path, resume="settings", **{**BASE, **changes, "batch_size": 12})
    with pytest.raises(ConfigError, match=r"resume: got 'setting', .* folder of the run is out="):
        pv.fit(Pair(), X, out=tmp_path, resume="setting", **BASE)


@pytest.mark.parametrize("valid", [3.0 + X[:12], None])
def test_a_best_score_on_other_rows_is_forgotten(tmp_path, valid):
    """Rows far off never score as the first did: the weights of that run would come back."""
    before = {**BASE, "lr": 3e-3, "checkpoint_every": 1}
    first = pv.fit(Pair(), X, valid=X[:12], out=tmp_path, **{**before, "epochs": 2})
    settings = {**before, "valid": valid, "epochs": 5, "patience": None if valid is None else 3}
    seen = []
    run = pv.fit(
        Pair(),
        X,
        out=tmp_path,
        resume="settings",
        callbacks=[lambda r: seen.append(weights(r.program))],
        **settings,
    )
    scores = run.history["valid_elbo"]
    best = 5 if valid is None else 3 + int(np.argmax(scores[2:]))
    assert len(seen) == 3 and run.best_epoch == best
    assert valid is None or scores[2:].max() < first.history["valid_elbo"].max()
    assert same(weights(run.program), seen[best - 3])


def test_renewed_settings_keep_the_moments(tmp_path):
    """A clip that never bites is a changed setting that changes no number."""
    whole = pv.fit(Pair(), X, **{**BASE, "epochs": 4})
    pv.fit(Pair(), X, out=tmp_path, **{**BASE, "epochs": 2})
    again = pv.fit(
        Pair(), X, out=tmp_path, resume="settings", **{**BASE, "epochs": 4, "clip_norm": 1e9}
    )
    np.testing.assert_allclose(again.history["loss"], whole.history["loss"], rtol=1e-6)


# -- divergence ------------------------------------------------------------------------------------


def test_the_remedy_of_a_diverged_run_can_be_followed(tmp_path):
    """The rate grows a millionfold; the best weights stay, and the run goes on from them."""
    settings = {**BASE, "epochs": 12, "lr": 3e-3, "valid": X[:12], "checkpoint_every": 1}
    hot = {**settings, "lr_schedule": lambda t: 1.0 if t < 0.5 else 1e6}
    program, seen = Pair(), {}

    def look(run):
        seen[len(run.history["loss"])] = (weights(run.program), run.best_epoch)

    with pytest.raises(TrainingDiverged, match=r"best weights, of epoch \d+.*resume='settings'"):
        pv.fit(program, X, out=tmp_path, callbacks=[look], **hot)
    last = max(seen)
    best = seen[last][1]
    assert same(weights(program), seen[best][0])
    assert same(weights(pv.load(tmp_path, into=Pair())), seen[best][0])
    run = pv.fit(Pair(), X, out=tmp_path, resume="settings", **settings)
    assert len(run.history["loss"]) == 12 and math.isfinite(run.history["loss"][-1])


# -- noise outside torch ---------------------------------------------------------------------------


def numpy_noise(x):
    return x + torch.from_numpy(np.random.normal(0, 0.1, x.shape).astype("f4"))  # noqa: NPY002


def test_noise_of_numpy_goes_on_where_it_stopped(tmp_path):
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    settings = {**BASE, "transform": numpy_noise}
    whole = pv.fit(Pair(), X, **{**settings, "epochs": 4})
    pv.fit(Pair(), X, out=tmp_path, **{**settings, "epochs": 2})
    again = pv.fit(Pair(), X, out=tmp_path, resume=True, **{**settings, "epochs": 4})
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


class Bits(nn.Module):
    """Binary latents, whose score-function gradient has Pyro's running baseline."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.enc, self.dec = nn.Linear(5, 2), nn.Linear(2, 5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((2,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}
        with pyro.plate("data", len(x)):
            q = dist.Bernoulli(logits=self.enc(x)).to_event(1)
            pyro.sample("z", q, infer={"baseline": baseline})


def test_a_running_baseline_of_pyro_goes_on_where_it_stopped(tmp_path):
    settings = {**BASE, "lr": 0.02, "objective": pyro.infer.TraceGraph_ELBO()}
    whole = pv.fit(Bits(), X, **{**settings, "epochs": 5})
    pv.fit(Bits(), X, out=tmp_path, **{**settings, "epochs": 3})
    again = pv.fit(Bits(), X, out=tmp_path, resume=True, **{**settings, "epochs": 5})
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    kept, other = weights(again.program), weights(whole.program)
    assert same(kept, other) and any("baseline" in name for name in kept)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((X, torch.tensor(0.5)), (X, torch.tensor(0.6))),
        (pack_sequence([X[0], X[1, :2]]), pack_sequence([X[0], X[2, :2]])),
        (pack_sequence([X[0], X[1, :3]]), pack_sequence([X[0, :4], X[1, :4]])),
    ],
    ids=["number", "packed", "lengths"],
)
def test_other_numbers_and_packed_sequences_are_other_data(before, after):
    assert describe_rows(before) == describe_rows(before)
    assert describe_rows(before) != describe_rows(after)


def test_packed_sequences_alone_are_judged_as_rows():
    """A diagnosis takes some of the rows at random, on the device of the data."""

    def model(x):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        with pyro.plate("data", len(lengths)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = torch.ones_like(padded)
            pyro.sample("x", dist.Normal(z[..., None], scale).to_event(1), obs=padded)

    def guide(x):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        with pyro.plate("data", len(lengths)):
            pyro.sample("z", dist.Normal(padded.sum(1) / 6, 0.4))

    found = pv.diagnose(pv.Program(model, guide), pack_sequence([X[0], X[1], X[2, :3]]))
    assert found.information.rows == 3


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    def guide(self, x):
        pass


class Edited(Point):
    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc + 1.0, 1.0), obs=x)

    model.__qualname__ = Point.model.__qualname__


Edited.__name__ = "Point"  # as it is called in its file


def test_code_that_was_edited_is_told_in_words(tmp_path):
    x = torch.arange(6.0)
    settings = {"out": tmp_path / "a", "checkpoint_every": 1, "progress": False}
    pv.fit(Point(), x, epochs=1, **settings)
    with pytest.raises(ConfigError) as refused:
        pv.fit(Edited(), x, epochs=2, resume=True, **settings)
    told = "architecture.model with other code, or other numbers in it: edited since; resume"
    assert f"{told} with it as it was, or go on as it is now by resume='settings'" in str(
        refused.value
    )
    pv.fit(Edited(), x, epochs=2, resume="settings", **settings)
