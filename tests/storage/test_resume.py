"""What a continuation must share with its run, and what it may choose anew."""

import contextlib
import functools
import json
import math
import shutil

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError, TrainingDiverged
from pyro_vae.storage.bundle import read_bundle, write_bundle
from pyro_vae.training.fingerprints import describe_rows

X = torch.rand(48, 5, generator=torch.Generator().manual_seed(3))


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


def weights(program):
    return {k: v.clone() for k, v in pv.Program.of(program).state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


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

BASE = {"epochs": 1, "batch_size": 16, "compile": False, "progress": False, "lr": 1e-3}


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
