"""``pv.fit``: what it records, keeps, stops for, and leaves alone."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA, ExactPPCA
from programs import CASES, mlp
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, init_to_sample
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from pyro_vae.storage.history import History

ORACLE = PPCA.random(6, 2)
X = ORACLE.sample(50)


def linear(seed=1):
    torch.manual_seed(seed)
    return pv.models.LinearVAE(6, 2).double()


def state(program):
    return {k: v.detach().clone() for k, v in program.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Recorder:
    """An optimizer factory that keeps every learning rate, gradient norm and weight."""

    def __init__(self, lr=0.01):
        self.lr, self.rates, self.norms, self.weights = lr, [], [], []

    def __call__(self, parameters):
        parameters = list(parameters)
        optimizer = torch.optim.SGD(parameters, lr=self.lr)

        def before(optimizer, args, kwargs):
            self.rates.append(optimizer.param_groups[0]["lr"])
            norms = [p.grad.norm() for p in parameters if p.grad is not None]
            self.norms.append(torch.stack(norms).norm().item())

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(
            lambda *_: self.weights.append([p.detach().clone() for p in parameters])
        )
        return optimizer


# -- history ----------------------------------------------------------------------------------


def test_the_history_is_made_once_where_nothing_asks_for_it_before(monkeypatch):
    """Made at each epoch, it costs a run of many short epochs their number squared."""
    made, arrays = [], History.arrays
    monkeypatch.setattr(History, "arrays", lambda self: made.append(1) or arrays(self))
    pv.fit(linear(), X, epochs=5)
    assert len(made) == 1


def test_history_has_one_row_per_epoch():
    run = pv.fit(linear(), X, valid=X[:10], epochs=3, batch_size=20)
    columns = {"epoch", "loss", "elbo", "valid_elbo", "beta", "lr", "seconds"}
    assert set(run.history) == columns
    assert all(v.shape == (3,) and np.isfinite(v).all() for v in run.history.values())
    assert run.history["epoch"].tolist() == [1, 2, 3] and run.steps == 9
    assert run.history["lr"].tolist() == [1e-3] * 3 and run.history["beta"].tolist() == [1.0] * 3
    assert (run.history["elbo"] == -run.history["loss"]).all()


def test_without_validation_the_last_weights_stay():
    run = pv.fit(linear(), X, epochs=4)
    assert "valid_elbo" not in run.history and run.best_epoch == 4 and not run.stopped_early


def test_losses_of_an_exact_program_are_exact():
    """Zero variance: each epoch's loss is -log p(x) whatever the order, weighted per batch."""
    program = ExactPPCA(ORACLE)
    run = pv.fit(program, X, valid=X[:7], epochs=2, batch_size=25, optimizer=Recorder(lr=0.0))
    np.testing.assert_allclose(-run.history["loss"], ORACLE.log_prob(X).mean(), rtol=1e-10)
    np.testing.assert_allclose(run.history["valid_elbo"], ORACLE.log_prob(X[:7]).mean(), rtol=1e-10)


def test_the_rows_that_are_judged_are_transformed():
    """The guide is exact: the ELBO of moved rows is their likelihood, of all draws."""
    program = pv.models.LinearVAE.from_data(X, 2)
    exact = program.marginal().log_prob(X + 0.5).mean().item()
    run = pv.fit(program, X, transform=lambda x: x + 0.5, epochs=1, beta=0.5, lr=1e-9)
    assert run.history["elbo"][0] == pytest.approx(exact, abs=1e-6)


def test_validation_data_that_do_not_fit_are_told_of_the_transform():
    fit = {"transform": lambda x: x[:, :3], "epochs": 1, "compile": False}
    program = pv.models.LinearVAE.from_data(X[:, :3], 2)
    with pytest.raises(DataError, match=r"valid: .*transform= is applied to data alone"):
        pv.fit(program, X, valid=X, **fit)
    pv.fit(program, X, valid=X[:, :3], **fit)


def test_each_epoch_has_an_order_of_its_own():
    order = []
    pv.fit(linear(), X, batch_size=10, epochs=3, transform=lambda x: order.append(x[:, 0]) or x)
    epochs = torch.cat(order[-15:]).reshape(3, 50)  # looks before training come first
    assert all(torch.equal(epoch.sort().values, X[:, 0].sort().values) for epoch in epochs)
    assert all(not torch.equal(epochs[i], epochs[j]) for i, j in ((0, 1), (1, 2), (0, 2)))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_elbo_is_logged_without_the_annealing(beta):
    program = ExactPPCA(ORACLE)
    run = pv.fit(program, X, epochs=1, beta=beta, optimizer=Recorder(lr=0.0))
    np.testing.assert_allclose(run.history["elbo"], ORACLE.log_prob(X).mean(), rtol=1e-10)
    assert run.history["beta"].tolist() == [beta]
    expected = ORACLE.log_prob(X).mean() + (1 - beta) * ORACLE.kl(X).mean()
    # One draw per datum: the KL's noise is below 1.5 nats a datum, 5 sigma over 50 data.
    assert -run.history["loss"][0] == pytest.approx(
        expected.item(), abs=abs(1 - beta) * 5 * 1.5 / math.sqrt(50)
    )


def test_iwae_is_judged_by_its_own_bound():
    run = pv.fit(linear(), X, valid=X[:10], epochs=2, objective=pv.IWAE(5))
    assert np.isfinite(run.history["valid_bound"]).all()
    assert (run.history["valid_bound"] > run.history["valid_elbo"]).all()


# -- what is kept ------------------------------------------------------------------------------


class Worse(pv.TermsObjective):
    """Train for the lowest ELBO: by its own measure each epoch is better than the one before."""

    is_bound = False

    def loss_of(self, terms):
        return pv.ELBO().loss_of(terms).neg()


def test_the_best_epoch_is_that_of_the_objectives_own_score():
    run = pv.fit(linear(), X, valid=X[:20], objective=Worse(), epochs=3, batch_size=10)
    own, bound = run.history["valid_objective"], run.history["valid_elbo"]
    assert (np.diff(own) > 0).all() and (np.diff(bound) < 0).all() and run.best_epoch == 3


def test_weights_that_stand_still_are_judged_alike():
    run = pv.fit(linear(), X, valid=X[:10], epochs=3, lr=1e-12)
    assert np.ptp(run.history["valid_elbo"]) < 1e-8


def test_the_best_weights_are_kept():
    seen = []
    program = linear()
    run = pv.fit(
        program,
        X[:20],
        valid=X[20:],
        epochs=12,
        lr=0.5,
        callbacks=[lambda _: seen.append(state(program))],
    )
    best = int(np.argmax(run.history["valid_elbo"]))
    assert run.best_epoch == best + 1 < 12  # lr = 0.5 is too much: it gets worse again
    assert same(state(program), seen[best])
    told, seconds = repr(run), float(run.history["seconds"].sum())
    assert f"(best_epoch={best + 1} (valid_elbo={run.history['valid_elbo'][best]:.4g})," in told
    assert f", valid_elbo={run.history['valid_elbo'][-1]:.4g}, " in told  # of the last epoch
    assert told.endswith(f"seconds={run.seconds:.4g})") and run.seconds == pytest.approx(seconds)
    with pytest.raises(AttributeError, match=r"did you mean history\['lr'\]"):
        run.lr  # noqa: B018


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping(patience):
    program = ExactPPCA(ORACLE)
    run = pv.fit(
        program, X, valid=X, epochs=50, patience=patience, optimizer=Recorder(lr=0.0)
    )  # nothing moves, the first epoch is the best
    epochs = len(run.history["epoch"])
    ties = np.maximum.accumulate(run.history["valid_elbo"])
    assert run.stopped_early and epochs == int(np.argmax(ties == ties[-1])) + 1 + patience
    assert run.best_epoch == epochs - patience


def test_callbacks_see_the_run_and_stop_it():
    calls = []

    def callback(run):
        calls.append((len(run.history["loss"]), run.steps))
        return len(calls) == 2

    run = pv.fit(linear(), X, epochs=9, batch_size=25, callbacks=[callback, lambda run: None])
    assert calls == [(1, 2), (2, 4)] and run.stopped_early and len(run.history["loss"]) == 2


def test_a_callback_that_turns_gradients_off_stops_no_training():
    def callback(run):
        torch.set_grad_enabled(False)

    try:
        run = pv.fit(linear(), X, epochs=3, batch_size=25, callbacks=[callback])
        assert torch.is_grad_enabled() and len(set(run.history["loss"])) == 3
    finally:
        torch.set_grad_enabled(True)


# -- optimisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, "trace"])
@pytest.mark.parametrize("of", ["values", "rows of values", "weights"])
def test_what_is_added_is_clipped_once(of, compile):
    """A step of plain descent has length lr c where the gradient is longer than c."""
    zeros = torch.zeros(X.shape[1])
    weights = nn.ParameterList([zeros.clone(), zeros.clone()])

    def model(x):
        one, other = weights if of == "weights" else map(pyro.param, "ab", (zeros, zeros))
        loc = one + other if of == "values" else one[None] + other[None]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.1).to_event(1))

    program = pv.Program(model, guide)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.5)  # noqa: E731
    pv.fit(program, X, max_steps=1, optimizer=sgd, clip_norm=0.01, compile=compile)
    moved = torch.cat([value.detach() for value in program.parameters()])
    assert moved.norm() == pytest.approx(0.5 * 0.01, rel=1e-5)


@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
def test_clipping_is_global(clip_norm):
    free, clipped = Recorder(0.0), Recorder(0.0)
    pv.fit(linear(), X, epochs=2, batch_size=10, optimizer=free)
    pv.fit(linear(), X, epochs=2, batch_size=10, optimizer=clipped, clip_norm=clip_norm)
    for norm, limited in zip(free.norms, clipped.norms, strict=True):
        assert limited == pytest.approx(min(norm, clip_norm), rel=1e-4)


def test_the_learning_rate_follows_its_schedule():
    recorder = Recorder(lr=0.02)
    pv.fit(
        linear(),
        X,
        epochs=3,
        batch_size=10,
        optimizer=recorder,
        lr_schedule=pv.schedules.linear(1.0, 0.0),
    )
    expected = 0.02 * np.linspace(1, 0, 15)
    np.testing.assert_allclose(recorder.rates, expected, rtol=1e-12, atol=1e-15)


def test_beta_zero_never_pulls_to_the_prior():
    """With β = 0 the latent's KL has no gradient: the encoder's variance falls towards zero."""
    program = linear()
    run = pv.fit(program, X, epochs=60, lr=0.05, beta=0.0)
    assert program.log_diagonal.exp().max() < 0.25
    assert run.history["beta"].tolist() == [0.0] * 60


def test_a_schedule_is_asked_at_each_step():
    asked = []
    pv.fit(linear(), X[:6], beta=lambda t: asked.append(t) or t, epochs=2, batch_size=2)
    assert {0.0, 0.2, 0.4, 0.6, 0.8, 1.0} <= {round(t, 6) for t in asked[-10:]}


def test_a_schedule_of_beta_reaches_the_loss():
    betas = []

    def schedule(t):
        betas.append(t)
        return t

    run = pv.fit(linear(), X, epochs=4, batch_size=25, beta=schedule)
    assert betas[0] == 0.0 and max(betas) == 1.0
    np.testing.assert_allclose(run.history["beta"], [0.25, 0.5, 0.75, 1.0])


class TwoLatents(nn.Module):
    """Two latents with exact standard-normal factors but for a shift each."""

    def __init__(self):
        super().__init__()
        self.shift_a = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.shift_b = nn.Parameter(torch.ones((), dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0 * a[..., None].expand(x.shape), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(self.shift_a, 1.0).expand([len(x)]))
            pyro.sample("b", dist.Normal(self.shift_b, 1.0).expand([len(x)]))


@pytest.mark.parametrize("site", ["a", "b"])
def test_beta_of_one_site_leaves_the_other_alone(site):
    program = TwoLatents()
    pv.fit(program, X, epochs=40, lr=0.1, beta={site: 0.0}, batch_size=50)
    frozen, moved = program.shift_a.item(), program.shift_b.item()
    if site == "b":
        frozen, moved = moved, frozen
    assert frozen == 1.0 and abs(moved) < 0.6


def test_beta_of_an_unknown_site_is_refused():
    with pytest.raises(ConfigError, match=r"beta.*'zz'.*'z'"):
        pv.fit(linear(), X, beta={"zz": 0.5})


# -- seeds -------------------------------------------------------------------------------------


def test_restarts_by_seed_start_elsewhere(store):
    """Where the first run draws the starting values; the state of the global generator counts."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.mean(), 1.0), obs=x)

    starts = []
    for state, seed in ((1, 0), (1, 3), (1, 4), (1, 4), (2, 4)):
        guide = AutoDelta(model, init_loc_fn=init_to_sample)
        torch.manual_seed(state)
        pv.fit(pv.Program(model, guide), torch.ones(4), epochs=1, lr=1e-12, seed=seed)
        starts.append(tuple(guide.loc.tolist()))
    assert starts[2] == starts[3] and len(set(starts)) == 4
    torch.manual_seed(1)
    stock = AutoDelta(model, init_loc_fn=init_to_sample)
    stock(torch.ones(4))
    assert starts[0] == pytest.approx(tuple(stock.loc.tolist()), abs=1e-6)
    store.clear()


@pytest.mark.parametrize("name", ["vae", "regularised", "functions", "bayesian"])
def test_equal_seeds_give_equal_bits(name):
    def train(seed):
        torch.manual_seed(1)
        program = CASES[name].build()
        torch.manual_seed(seed + 100)  # where the caller's generator stands does not matter
        run = pv.fit(program, CASES[name].data(30), epochs=3, batch_size=8, seed=seed)
        return state(pv.Program.of(program)), run.history["loss"]

    (first, losses), (again, _), (other, _) = train(4), train(4), train(5)
    assert same(first, again) and not same(first, other) and len(losses) == 3


@pytest.mark.parametrize(
    "watching",
    [
        {"valid": X[:10]},
        {"progress": True},
        {"callbacks": [lambda run: torch.rand(1) > 2]},
    ],
    ids=["valid", "progress", "callback"],
)
def test_watching_does_not_change_the_training(watching):
    plain, watched = linear(), linear()
    run = pv.fit(plain, X, epochs=3, batch_size=20, lr=1e-2)
    other = pv.fit(watched, X, epochs=3, batch_size=20, lr=1e-2, **watching)
    if "valid" in watching:
        assert run.history["loss"].tolist() == other.history["loss"].tolist()
    if "progress" in watching:
        assert same(state(plain), state(watched))
    if "callbacks" in watching:  # one that draws does so from the run's own generator
        assert run.history["loss"][0] == other.history["loss"][0]
        assert not same(state(plain), state(watched))


# -- divergence --------------------------------------------------------------------------------


class Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * math.nan


class Fragile(nn.Module):
    """Breaks at a given training step: in a value, in the loss, or in a gradient only."""

    def __init__(self, kind, step):
        super().__init__()
        self.kind, self.step, self.calls = kind, step, 0
        self.net, self.log_scale = mlp(6, 8, 2).double(), nn.Parameter(torch.zeros(()).double())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            loc = z.sum(-1, keepdim=True).expand(x.shape)
            if self.kind == "x" and self.calls >= self.step:
                loc = loc * math.inf
            pyro.sample("x", dist.Normal(loc, self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x):
        if self.training:
            self.calls += 1
        loc = self.net(x)
        if self.calls >= self.step:
            loc = {"z": loc * math.nan, "gradient": Poison.apply(loc)}.get(self.kind, loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize(
    ("kind", "match"), [("z", "site 'z'"), ("x", "site 'x'"), ("gradient", "net.*weight")]
)
def test_divergence_stops_before_the_step(kind, match, step):
    program, recorder = Fragile(kind, step), Recorder(lr=0.01)
    initial = [p.detach().clone() for p in program.parameters()]
    with pytest.raises(TrainingDiverged, match=match):
        pv.fit(program, X, epochs=4, batch_size=20, optimizer=recorder)
    assert len(recorder.weights) == step - 1
    before = recorder.weights[-1] if recorder.weights else initial
    assert all(torch.equal(a, b) for a, b in zip(before, program.parameters(), strict=True))


def test_bad_rows_that_appear_in_training_stop_it(tmp_path):
    calls = []

    def transform(x):
        calls.append(1)
        return x * (math.nan if len(calls) == 6 else 1.0)

    program = linear()
    with pytest.raises(TrainingDiverged, match="weights are as before"):
        pv.fit(program, X, epochs=4, batch_size=20, transform=transform, out=tmp_path)
    assert all(torch.isfinite(p).all() for p in program.parameters())
    pv.fit(program, X, epochs=1)  # the process and the program stay usable


def test_an_interrupt_leaves_a_usable_program(tmp_path):
    def interrupt(run):
        raise KeyboardInterrupt

    program = linear()
    with pytest.raises(KeyboardInterrupt):
        pv.fit(program, X, epochs=4, callbacks=[interrupt], out=tmp_path)
    assert (tmp_path / "history.csv").exists()
    assert torch.isfinite(pv.elbo(program, X)).all()


# -- folder ------------------------------------------------------------------------------------


def test_the_run_folder(tmp_path):
    program = pv.models.VAE(6, 2, (8,))
    x = CASES["vae"].data(30)
    run = pv.fit(program, x, valid=x, epochs=3, out=tmp_path / "run", lr=0.01, seed=3)
    folder = tmp_path / "run"
    assert run.folder == folder
    config = json.loads((folder / "config.json").read_text())
    assert config["program"] == "VAE" and config["config"]["latent_dim"] == 2
    assert config["fit"]["seed"] == 3 and config["fit"]["data"] == 30
    lines = (folder / "history.csv").read_text().splitlines()
    assert lines[0].split(",") == list(run.history) and len(lines) == 4
    row = dict(zip(lines[0].split(","), map(float, lines[-1].split(",")), strict=True))
    assert row["loss"] == run.history["loss"][-1]
    assert list(folder.glob("tensorboard/events*"))
    loaded = pv.load(folder)
    assert same(state(loaded), state(program))


def test_a_folder_with_another_run_is_refused_and_kept(tmp_path):
    pv.fit(linear(), X, epochs=1, out=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    program = linear(2)
    weights = state(program)
    with pytest.raises(ConfigError, match=r"holds another run.*resume=True"):
        pv.fit(program, X, epochs=1, out=tmp_path)
    assert same(weights, state(program))
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


@pytest.mark.parametrize("meta", [{"beta": -1}, {"beta": {"zz": 1.0}}, {"lr": 0}, {"clip_norm": 0}])
def test_a_refused_run_makes_no_folder(meta, tmp_path):
    with pytest.raises(ConfigError):
        pv.fit(linear(), X, out=tmp_path / "run", **meta)
    assert not (tmp_path / "run").exists()


# -- optimizers and objectives -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_any_torch_optimizer(kind):
    program = linear()
    run = pv.fit(program, X, epochs=10, optimizer=lambda ps: kind(ps, lr=0.02))
    assert run.history["loss"][-1] < run.history["loss"][0]


@pytest.mark.filterwarnings("ignore:weight was not registered:UserWarning")  # Pyro's own
def test_frozen_weights_stay():
    program = linear()
    program.weight.requires_grad_(False)
    before = program.weight.clone()
    pv.fit(program, X, epochs=2, lr=0.1)
    assert torch.equal(before, program.weight) and program.mean.abs().max() > 0


def test_all_forms_of_data_give_one_result():
    def train(data):
        program = linear()
        pv.fit(program, data, epochs=2, batch_size=20)
        return state(program)

    expected = train(X)
    for data in (X.numpy(), X.tolist() and X.float().double() * 0 + X, TensorDataset(X)):
        assert same(expected, train(data))
    loader = DataLoader(TensorDataset(X), batch_size=20, shuffle=True)
    assert same(train(loader), train(loader))


# -- what a failure and the end leave behind -----------------------------------------------------


class Normalised(nn.Module):
    """A guide with batch normalisation: its running statistics see every batch."""

    def __init__(self):
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(6).double(), mlp(6, 8, 2).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, True).expand(x.shape), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc = self.net(self.norm(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


BAD = len(X) // 10 + 2  # the second step of the second epoch, in batches of ten


@pytest.mark.parametrize("compile", [False, "trace"])
def test_divergence_leaves_the_buffers_as_before_the_step(compile):
    """Inf in the second epoch: without the copy the running mean would be inf."""
    program, before, calls = Normalised(), [], []

    def transform(x):
        calls.append(1)
        before.append(state(program))
        # The first call looks at the data, and the first epoch at each batch.
        return x * (math.inf if len(calls) == BAD + 1 else 1.0)

    with pytest.raises(TrainingDiverged):
        pv.fit(program, X, epochs=2, batch_size=10, transform=transform, compile=compile)
    assert program.norm.num_batches_tracked == BAD - 1 and same(state(program), before[BAD])


@pytest.mark.parametrize("end", ["well", "diverged", "interrupted"])
@pytest.mark.parametrize("training", [True, False])
def test_each_module_is_left_in_its_mode(end, training):
    program = Normalised().train(training)
    program.net.train(not training)
    modes = [part.training for part in program.modules()]

    def end_it(run):
        if end == "interrupted":
            raise KeyboardInterrupt

    calls = []

    def transform(x):
        calls.append(1)
        return x * (math.inf if end == "diverged" and len(calls) == BAD else 1.0)

    error = {"diverged": TrainingDiverged, "interrupted": KeyboardInterrupt}.get(end)
    settings = {"callbacks": [end_it], "transform": transform, "epochs": 2, "batch_size": 10}
    if error is None:
        pv.fit(program, X, **settings)
    else:
        with pytest.raises(error):
            pv.fit(program, X, **settings)
    assert modes == [part.training for part in program.modules()]


class Failing:
    """An objective that fails when it is built up, or in its first step."""

    def __init__(self, when):
        self.when = when

    def updates(self, program):
        if self.when == "updates":
            raise RuntimeError("no")
        return pv.ELBO().updates(program) if self.when == "optimizer" else [self]

    name, repeats, optimizer, due = "loss", 1, None, None

    @property
    def parameters(self):
        return (nn.Parameter(torch.zeros(1)),)

    def loss(self, joint):
        raise RuntimeError("no")


@pytest.mark.parametrize("when", ["updates", "optimizer", "step"])
def test_an_objective_that_fails_at_once_leaves_no_folder(when, tmp_path):
    def optimizer(parameters):
        if when == "optimizer":
            raise RuntimeError("no")
        return torch.optim.SGD(parameters, lr=0.1)

    with pytest.raises(RuntimeError, match="no"):
        pv.fit(linear(), X, objective=Failing(when), optimizer=optimizer, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- columns -------------------------------------------------------------------------------------


def test_a_ragged_batch_counts_by_its_rows():
    """Zero variance: the loss is the mean of -log p(x) over 50 data in batches of 20, 20, 10."""
    run = pv.fit(ExactPPCA(ORACLE), X, epochs=2, batch_size=20, optimizer=Recorder(lr=0.0))
    np.testing.assert_allclose(-run.history["loss"], ORACLE.log_prob(X).mean(), rtol=1e-10)


@pytest.mark.parametrize("beta", [0, 1, 2, lambda t: 1, lambda t: 0])
def test_whole_numbers_of_beta_are_logged(beta):
    run = pv.fit(linear(), X, epochs=1, beta=beta)
    assert run.history["beta"].tolist() == [float(beta(0) if callable(beta) else beta)]


def test_beta_has_a_column_per_site():
    run = pv.fit(TwoLatents(), X, epochs=2, beta={"a": 0.5, "b": lambda t: t})
    assert run.history["beta[a]"].tolist() == [0.5, 0.5]
    assert run.history["beta[b]"].tolist() == [0.5, 1.0] and "beta" not in run.history


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, None, "one"])
@pytest.mark.parametrize("name", ["beta", "lr_schedule", "site"])
def test_a_schedule_that_leaves_its_range_is_named(name, value):
    def schedule(t):
        return 1.0 if t < 0.5 else value

    asked = {"beta": {"z": schedule}} if name == "site" else {name: schedule}
    match = rf"{'beta' if name == 'site' else name}.*gave {value!r} at progress 0\.5"
    with pytest.raises(ConfigError, match=match):
        pv.fit(linear(), X, epochs=2, batch_size=10, **asked)


class WithAnExtraState(nn.Identity):
    """A part that keeps what is no tensor."""

    kept = 0

    def get_extra_state(self):
        return {"kept": self.kept}

    def set_extra_state(self, state):
        self.kept = state["kept"]


def test_the_best_weights_come_with_an_extra_state_and_a_file_of_it_is_refused(tmp_path):
    vae = pv.models.VAE(6, 2, (8,))
    vae.extra = WithAnExtraState()
    x = torch.bernoulli(torch.full((8, 6), 0.5))

    def count(run):
        vae.extra.kept += 1

    settings = {"epochs": 3, "batch_size": 4, "progress": False, "compile": False}
    run = pv.fit(vae, x, valid=x, callbacks=[count], **settings)
    assert vae.extra.kept == max(0, run.best_epoch - 1)
    with pytest.raises(CheckpointError, match=r"_extra_state' .* is a dict, expected a tensor"):
        pv.fit(vae, x, out=tmp_path / "run", **settings)


SIZED = {
    "drawn": {"subsample_size": True},
    "of the guide": {},
    "told": {"subsample": True},
}


@pytest.mark.parametrize("total", [8, 20])
@pytest.mark.parametrize("kind", SIZED)
def test_another_number_of_all_rows_in_the_plate_is_told(kind, total, recwarn):
    """Stock Pyro weighs by it, fit by the rows that there are."""

    def rows(x, **given):
        given = {name: x if name == "subsample" else len(x) for name in given}
        return pyro.plate("data", total, **given)

    def model(x):
        with rows(x, **SIZED[kind]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.float())

    def guide(x):
        with rows(x, **SIZED[kind]) if SIZED[kind] else pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    data = torch.arange(8)
    beside = poutine.replay(model, trace=poutine.trace(guide).get_trace(data[:4]))
    assert poutine.trace(beside).get_trace(data[:4]).nodes["x"]["scale"] == total / 4
    pyro.clear_param_store()
    for loaded in (data, DataLoader(TensorDataset(data), batch_size=4)):
        pv.fit(pv.Program(model, guide), loaded, epochs=1, batch_size=4, progress=False)
    told = [str(each.message) for each in recwarn.list]
    assert len(told) == (2 if total != 8 else 0), told
    for message in told:
        assert message.startswith(
            f"fit: the plate 'data' says that there are {total} rows in all, and the data have 8: "
        )
