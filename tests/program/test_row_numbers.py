"""Guides with a factor for each datum in minibatches: the rows of each batch, as in stock SVI.

Stock SVI runs on all data and a plate with the subsample; we run on the rows of the batch.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoNormal,
    AutoNormalMessenger,
    init_to_value,
)
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError, TrainingDiverged
from pyro_vae.program.batches.batch import map_rows

N = 8
X = torch.linspace(-2.0, 2.0, N)
LOCS = torch.linspace(0.0, 1.0, N).square()
ROWS = torch.tensor([6, 1, 3])


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def stock_model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample=ROWS) as i:
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])


def of_global():
    pyro.sample("w", dist.Normal(pyro.param("w_loc", torch.tensor(0.3)), 0.5))


def looked_up(x, plate=None):
    of_global()
    locs = pyro.param("locs", LOCS.clone())
    with plate or pyro.plate("data", len(x)) as i:
        pyro.sample("z", dist.Normal(locs[i], 0.7))


def of_event(x, plate=None):
    of_global()
    with plate or pyro.plate("data", len(x)):
        locs = pyro.param("locs", LOCS.clone(), event_dim=0)
        pyro.sample("z", dist.Normal(locs, 0.7))


class Easy(EasyGuide):
    subsample = None

    def guide(self, x):
        of_global()
        group = self.group(match="z")
        size = len(x) if self.subsample is None else N
        with self.plate("data", size, subsample=self.subsample):
            locs = pyro.param("locs", LOCS.clone()[:, None], event_dim=1)
            group.sample("zs", dist.Normal(locs, 0.7).to_event(1))


def plates(x):
    return pyro.plate("data", N, subsample=ROWS)


def automatic(kind, **options):
    start = init_to_value(values={"z": LOCS.clone(), "w": torch.tensor(0.3)})
    ours = kind(model, init_loc_fn=start, **options)
    stock_start = init_to_value(values={"z": LOCS[ROWS], "w": torch.tensor(0.3)})
    stock = kind(stock_model, init_loc_fn=stock_start, create_plates=plates)
    return ours, stock


def plain(function):
    return function, lambda x: function(x, plates(x))


def easy():
    stock = Easy(stock_model)
    stock.subsample = ROWS
    return Easy(model), stock


GUIDES = {
    "auto_normal": lambda: automatic(AutoNormal),
    "auto_delta": lambda: automatic(AutoDelta),
    "create_plates": lambda: automatic(
        AutoNormal, create_plates=lambda x: pyro.plate("data", len(x), dim=-1)
    ),
    "looked_up": lambda: plain(looked_up),
    "of_event": lambda: plain(of_event),
    "easy": easy,
}
every = pytest.mark.parametrize("name", GUIDES)


def by_size(named):
    """Return gradients by what is left of a parameter's name: w or z, a location or a scale."""
    found = {}
    for name, value in named:
        kind = "scale" if "scale" in name else "loc"
        found[kind, "w" in name.rsplit(".", 1)[-1]] = value
    return found


@every
def test_loss_and_every_row_of_the_gradient_are_those_of_stock_svi(name, store):
    guide, stock_guide = GUIDES[name]()
    Trace_ELBO().loss(stock_model, stock_guide, X)  # makes the parameters
    parameters = dict(store.named_parameters())
    for value in parameters.values():  # those repeated to the full size, too, are told apart
        if value.numel() == N:
            value.data.copy_(LOCS.reshape(value.shape) - 1.0 * (value.data.min() < -0.5))
    torch.manual_seed(4)
    stock = Trace_ELBO().differentiable_loss(stock_model, stock_guide, X)
    stock.backward()
    expected = {key: value.grad.clone() for key, value in parameters.items()}
    start = {key: value.detach().clone() for key, value in parameters.items()}
    store.clear()
    program = pv.Program(model, guide)
    batch = program.rows.numbered(program.adapt(X))
    values = by_size(start.items())
    for key, value in by_size(program.named_parameters()).items():
        value.data.copy_(values[key].reshape(value.shape))
    part = map_rows(lambda leaf: leaf[ROWS], batch)
    with program.running():
        (update,) = pv.ELBO().updates(program)
        torch.manual_seed(4)
        loss = update.loss(program.joint(part, size=N))
    loss.backward()
    torch.testing.assert_close(loss, stock / N)
    found = by_size((key, value.grad) for key, value in program.named_parameters())
    wanted = by_size(expected.items())
    assert found.keys() == wanted.keys()
    for key, grad in found.items():
        torch.testing.assert_close(grad, wanted[key].reshape(grad.shape) / N)
    rows = next(grad for grad in found.values() if grad.numel() == N).flatten()
    assert (rows != 0).nonzero().flatten().tolist() == sorted(ROWS.tolist())


@pytest.mark.parametrize("name", ["auto_normal", "looked_up", "easy"])
def test_a_graph_trains_the_rows_that_eager_steps_train(name):
    """Two batches, two epochs: a frozen row would leave another weight where it was."""
    found = []
    for mode in (False, "trace"):
        program = pv.Program(model, GUIDES[name]()[0])
        run = pv.fit(
            program, X, epochs=2, batch_size=4, lr=0.1, compile=mode, seed=1, progress=False
        )
        assert run.compiled == ("graph" if mode else "eager")
        found.append({key: value.detach() for key, value in program.named_parameters()})
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-4, atol=1e-5)
        if value.numel() == N:
            assert len(value.unique()) == N


def test_verbs_cut_the_rows_of_a_pass():
    """The guide is the exact posterior of each datum, so that each row has its own number."""

    def local(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(pyro.param("locs", X / 2)[i], 0.5**0.5))

    program = pv.Program(local, guide)
    exact = dist.Normal(0.0, 2**0.5).log_prob(X)
    torch.testing.assert_close(pv.elbo(program, X, batch_size=3), exact)
    torch.testing.assert_close(pv.log_likelihood(program, X, num_particles=3).log_prob, exact)
    torch.testing.assert_close(pv.encode(program, X), X / 2)
    with pytest.raises(DataError, match=r"got 5 rows, expected the 8 .*one factor per datum"):
        pv.elbo(program, X[:5])
    with pytest.raises(
        ProgramError, match=r"^data: got a loader, .* its batches of 4 .*one factor"
    ):
        pv.fit(pv.Program(local, guide), DataLoader(TensorDataset(X), batch_size=4), epochs=1)


def test_an_encoder_that_looks_its_rows_up_has_no_factors():
    """The numbers that the plate gives are those of the batch, as where stock SVI gets its rows."""

    def guide(x):
        of_global()
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, 0.7))

    program = pv.Program(model, guide)
    assert torch.is_tensor(program.rows.numbered(program.adapt(X)))
    assert pv.elbo(program, X[:5]).shape == (5,)


@pytest.mark.parametrize("numbered", [True, False])
def test_any_number_of_data_is_generated_at_one_draw_of_the_globals(numbered):
    """The guide has a factor for each of its rows, and says of others what all share alone."""

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 300.0))
        locs = pyro.param("locs", LOCS.clone())
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(locs[i] if numbered else locs, 0.7))

    program = pv.Program(model, guide)
    pv.elbo(program, X)
    assert pv.generate(program, 3).shape == (3,)
    for given in (None, torch.zeros(41)):
        drawn = pv.generate(program, 41, given=given)
        assert drawn.shape == (41,)
        assert 0.5 < drawn.std() < 3.0  # 2 ** 0.5 about one w; hundreds about several


def test_validation_data_that_have_no_factors_are_refused():
    """As many rows as the training data would be judged by the factors of these."""
    with pytest.raises(ProgramError, match="valid: got data besides those of training"):
        pv.fit(pv.Program(model, looked_up), X, valid=X.flip(0), epochs=1, progress=False)
    run = pv.fit(pv.Program(model, looked_up), X, valid=X.clone(), epochs=1, progress=False)
    assert run.history["valid_elbo"].shape == (1,)


def indexed_by_an_argument(how):
    """Row i of the data is datum idx[i], of which the guide has a location."""

    def plate(idx):
        return pyro.plate("data", 12, subsample=idx)

    def model(x, idx):
        with plate(idx):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, idx):
        locs = pyro.param("locs", torch.zeros(12))
        with plate(idx) as rows:
            pyro.sample("z", dist.Delta(locs[rows]))

    if how == "autoguide":
        guide = AutoDelta(model, create_plates=lambda x, idx: plate(idx))
    return pv.Program(model, guide)


# Pyro's own plate takes a permutation of all rows for all in their order: no case of its guides.
@pytest.mark.parametrize(
    ("how", "feed"), [("autoguide", "loader"), ("by hand", "loader"), ("by hand", "tensors")]
)
def test_row_numbers_that_are_an_argument_are_the_programs_own(how, feed):
    idx = torch.randperm(12)
    x = idx.float() * 3
    program = indexed_by_an_argument(how)
    data = (x, idx)
    if feed == "loader":
        data = DataLoader(TensorDataset(x, idx), batch_size=4)
    pv.fit(program, data, epochs=200, batch_size=4, lr=0.3, progress=False, compile=False)
    (locs,) = [p for p in program.parameters() if p.numel() == 12]
    assert (locs - torch.arange(12) * 3 / 1.01).abs().max() < 0.2


def test_a_batch_size_that_is_written_in_trains_from_batches_of_it():
    """It is no guide with a factor per datum; a layer as wide as the batch is none either."""

    class Written(torch.nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.encode, self.rows = torch.nn.Linear(1, 4), rows
            self.mean = torch.nn.Linear(4, 1)

        def model(self, x):
            with pyro.plate("data", self.rows or len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(self.rows or len(x)), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", self.rows or len(x)):
                h = torch.tanh(self.encode(x[:, None]))
                pyro.sample("z", dist.Normal(self.mean(h)[:, 0], 1.0))

    weights = []
    for rows in (4, None):
        torch.manual_seed(0)
        program = Written(rows)
        feed = DataLoader(torch.arange(11.0) / 5, batch_size=4, drop_last=True)
        pv.fit(program, feed, epochs=3, lr=0.05, progress=False, compile=False)
        weights.append(torch.cat([p.detach().flatten() for p in program.parameters()]))
        if rows:
            with pytest.raises(DataError, match=r"got 6 rows, expected the 4 .* its batch size"):
                pv.elbo(program, X[:6])
    assert torch.equal(*weights)


def alone(x):
    """z ~ N(0, 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def alone_by_a_matrix(x):
    """The same, of one particle at a time."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        mean = (z.reshape(len(x), 1) @ torch.ones(1, 1))[:, 0]
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize("kind", [AutoNormal, AutoNormalMessenger])
@pytest.mark.parametrize("program", [alone, alone_by_a_matrix])
@pytest.mark.parametrize("batch_size", [40 * N, 40])
def test_particles_of_factors_are_those_of_their_rows(kind, program, batch_size):
    """Also as 40 copies of the rows, or of one of them; of a messenger that runs the model, whose
    data are no part of its density, and which makes its parameters of the rows it meets first.
    In closed form; |z| < 5 of 8 data (false alarm 5e-6).
    """
    guide = kind(program, init_loc_fn=init_to_value(values={"z": LOCS}), init_scale=0.5)
    torch.manual_seed(0)
    found = pv.elbo(pv.Program(program, guide), X, num_particles=40, batch_size=batch_size)
    fit = dist.Normal(LOCS, 0.5)
    exact = dist.Normal(0.0, 1.0).log_prob(LOCS) + dist.Normal(LOCS, 1.0).log_prob(X)
    exact = exact - 0.25 + fit.entropy()
    # Of log p - log q: (x - 2 m) e + (1 / (2 s²) - 1) e², e ~ N(0, s²), s = 1/2.
    spread = (0.25 * (X - 2 * LOCS).square() + 2 * 0.25**2).sqrt()
    assert ((found - exact).abs() < 5 * spread / 40**0.5).all()


def test_a_messenger_of_a_global_latent_is_asked_at_its_draws():
    """In closed form, within 5 standard errors; a draw has a spread below 2.4 nats."""
    start = init_to_value(values={"w": torch.tensor(0.3), "z": LOCS})
    program = pv.Program(model, AutoNormalMessenger(model, init_loc_fn=start, init_scale=0.5))
    torch.manual_seed(0)
    found = pv.elbo(program, X, num_global_samples=400).mean() * N
    squares = 0.3**2 + 0.25 + ((LOCS - 0.3).square() + 0.5 + (X - LOCS).square() + 0.25).sum()
    entropy = dist.Normal(0.0, 0.5).entropy() * (N + 1)
    exact = -squares / 2 - math.log(2 * math.pi) / 2 * (2 * N + 1) + entropy
    assert abs(found - exact) < 0.6
    assert set(pv.diagnose(program, X).kl) == {"z"}
    torch.testing.assert_close(pv.encode(program, X), LOCS)


def test_joint_factors_of_many_rows_are_judged_on_all_of_them():
    """In closed form at z ~ N(0, 1/4); |z| < 5 of one mean (false alarm 6e-7)."""
    rows, scale = torch.linspace(-2.0, 2.0, 1100), 0.5
    start = init_to_value(values={"z": torch.zeros(len(rows))})
    guide = AutoDiagonalNormal(alone, init_loc_fn=start, init_scale=scale)
    run = pv.fit(
        pv.Program(alone, guide), rows, batch_size=1100, beta=0.5, lr=1e-9, epochs=1, progress=False
    )
    exact = (math.log(scale) + 0.5 - 0.5 * math.log(2 * math.pi)) - (rows**2).mean() / 2 - scale**2
    # Of log p - log q at z = e: x e - e² / 2 - e² / 2 + e² / (2 s²).
    spread = ((scale * rows) ** 2 + 2 * scale**4 * (0.5 / scale**2 - 1) ** 2).mean().sqrt()
    assert abs(run.history["elbo"][-1] - exact) < 5 * spread / len(rows) ** 0.5


@pytest.mark.parametrize("batch_size", [N, 3])
def test_other_rows_are_told_from_those_of_the_factors(batch_size, tmp_path):
    """As many rows, or the same in another order: a factor is that of its place."""
    program = pv.Program(alone, AutoNormal(alone, init_scale=0.5))
    pv.fit(program, X, epochs=2, batch_size=batch_size, progress=False)
    pv.save(program, tmp_path)
    loaded = pv.load(tmp_path, into=pv.Program(alone, AutoNormal(alone, init_scale=0.5)))
    for asked in (program, loaded):
        for rows in (X, X.double(), X.tolist()):
            pv.elbo(asked, rows)
        for rows in (X.flip(0), X + 1.0):
            with pytest.warns(UserWarning, match=rf"elbo: .* posterior of each of the {N} rows"):
                pv.elbo(asked, rows)
    exact = (X + 1.0) / 2  # of the model alone, which is asked without a word
    found = pv.infer(program, X + 1.0, how="local", progress=False)
    torch.testing.assert_close(found.mean, exact, rtol=1e-3, atol=1e-3)


def holed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        kept = dist.Normal(z, 1.0).mask(~x.isnan())
        pyro.sample("x", kept, obs=x.nan_to_num())


def of_one_more(x, row, change):
    return x.index_put((torch.tensor([row]),), x[row] + change)


HOLED = torch.linspace(-1.0, 1.0, 200).index_fill(0, torch.tensor([0, 70]), math.nan)
TIMES = 1.7e9 + torch.arange(8.0, dtype=torch.float64)
SHORT = torch.linspace(0.0, 1.0, 8, dtype=torch.float64)
CASES = {
    "holes": (HOLED, [-HOLED.neg(), HOLED.double().numpy()], [of_one_more(HOLED, 71, 1e-3)]),
    "zeros": (HOLED, [], [HOLED.nan_to_num()]),
    "times": (TIMES, [TIMES.tolist()], [TIMES.flip(0), TIMES + 20]),
    "doubles": (SHORT, [SHORT.float(), SHORT.numpy()], [of_one_more(SHORT, 3, 1e-9)]),
    "counts": (torch.arange(8), [torch.arange(8.0), torch.arange(8).byte()], [torch.ones(8)]),
    "halves": (X.half(), [X.half().float(), X.half().double()], [X.half().flip(0)]),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_told_apart_by_all_their_numbers_in_whatever_type(case):
    rows, same, others = CASES[case]
    program = pv.Program(holed, AutoNormal(holed))
    precision = "64-true" if case in ("times", "doubles") else "32-true"
    pv.fit(program, rows, epochs=1, batch_size=200, precision=precision, progress=False)
    for each in (rows, *same):
        pv.elbo(program, each)
    for each in others:
        with pytest.warns(UserWarning, match=rf"each of the {len(rows)} rows"):
            pv.elbo(program, each)


def test_rows_stay_known_where_a_call_is_refused_or_a_fit_ends_in_its_first_step(tmp_path):
    """No weight has moved: the guide has posteriors of the rows of before."""
    program = pv.Program(alone, AutoNormal(alone))
    pv.fit(program, X, epochs=1, progress=False)
    with pytest.raises(TrainingDiverged):
        pv.fit(program, X.flip(0) * 1e30, epochs=1, progress=False)
    pv.save(program, tmp_path)
    loaded = pv.load(tmp_path, into=pv.Program(alone, AutoNormal(alone)))
    with pytest.raises(DataError, match="got 5 rows"):
        pv.elbo(loaded, X[:5])
    for asked in (program, loaded):
        pv.elbo(asked, X)
        with pytest.warns(UserWarning, match="each of the 8 rows"):
            pv.elbo(asked, X.flip(0) * 1e30)


AIS = pv.AIS(num_temperatures=1, chains=1, num_leapfrog=1, pilot=1)
BRIEF = {"local": pv.Local(num_steps=1), "annealed": AIS, "progress": False}
VERBS = {
    "semi": lambda p, x: pv.infer(p, x, how="semi", progress=False),
    "stream": lambda p, x: pv.elbo(p, iter([ROWS_300, x])),
    "gaps": lambda p, x: pv.gaps(p, x, num_particles=2, **BRIEF),
    "ais": lambda p, x: pv.ais(p, x, AIS, progress=False),
}
ROWS_300 = torch.linspace(-2.0, 2.0, 300)


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_begin_at_the_guide_tell_of_other_rows_once(verb):
    """Of the 300 that it was trained on none does, though some ask others of 256 at a time."""
    program = pv.Program(alone, AutoNormal(alone))
    pv.fit(program, ROWS_300, epochs=1, batch_size=300, progress=False)
    VERBS[verb](program, ROWS_300)
    with pytest.warns(UserWarning, match="each of the 300 rows") as told:
        VERBS[verb](program, ROWS_300 + 1.0)
    assert sum("each of the 300 rows" in str(each.message) for each in told) == 1


def scaled(x, y, scale):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)
        pyro.sample("y", dist.Normal(z, scale), obs=y)


def test_rows_are_the_same_under_other_names_and_signs_of_zero():
    program, scale = pv.Program(scaled, AutoDiagonalNormal(scaled)), torch.tensor(2.0)
    x = X.where(X > 0, 0.0)
    pv.fit(program, (x, X, scale), epochs=2, progress=False)
    pv.elbo(program, {"y": X, "scale": scale, "x": torch.where(x == 0, -x, x)})
    for verb in (pv.elbo, pv.encode, pv.log_likelihood):
        with pytest.warns(UserWarning, match="each of the 8 rows"):
            verb(program, (x, X.flip(0), scale))
    with pytest.warns(UserWarning, match="each of the 8 rows"):
        pv.elbo(program, (X, x, scale))
    pv.fit(program, (x, X, scale), transform=lambda batch: batch, epochs=1, progress=False)
    pv.elbo(program, (x, X.flip(0), scale))  # which rows it has met is not known
