"""Arguments that hold tensors in containers, and words: the numbers of the flat arguments."""

import functools
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import DataError

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
WORDS = ["rose", "ivy", "ivy", "oak", "rose", "ivy"]


class Pair(nn.Module):
    """A latent behind x and t, with a weight for each; the guide looks at x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2]))

    def flat_model(self, x, t):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            mean = z[..., None] * self.weight
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
            pyro.sample("t", dist.Normal(z, 2.0), obs=t)

    def flat_guide(self, x, t):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.weight, 0.7))


class Nested(Pair):
    def model(self, rows, scale=1.0):
        self.flat_model(rows["x"], rows["rest"][0])

    def guide(self, rows, scale=1.0):
        self.flat_guide(rows["x"], rows["rest"][0])


def nested():
    return ({"x": X, "rest": [T]}, 2.0)


def test_containers_are_opened_and_given_back():
    program, flat = Nested(), Pair()
    plain = pv.Program(flat.flat_model, flat.flat_guide)
    answers = []
    for asked, data in ((program, nested()), (plain, (X, T))):
        torch.manual_seed(1)
        found = pv.log_likelihood(asked, data, num_particles=8).log_prob
        answers.append((found, pv.encode(asked, data), pv.reconstruct(asked, data)["t"]))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs)
    simulated = pv.bdmc(program, 6, pv.AIS(1, 1, num_leapfrog=1, pilot=1), given=nested()).data
    assert simulated[0].keys() == {"x", "rest"} and simulated[0]["rest"][0].shape == (6,)
    assert not torch.equal(simulated[0]["x"], X) and simulated[1] == 2.0


class Lengths(nn.Module):
    """A word is worth its length."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.1))

    def model(self, words):
        lengths = torch.tensor([float(len(word)) for word in words])
        with pyro.plate("data", len(words)):
            pyro.sample("n", dist.Normal(self.mean, 1.0), obs=lengths)

    def guide(self, words):
        pass


def test_words_are_rows():
    """Graphs must not remember the words of the first batch."""
    lengths = torch.tensor([float(len(word)) for word in WORDS])
    means = []
    for mode in (False, "trace"):
        program = Lengths()
        settings = {"epochs": 2, "batch_size": 2, "lr": 0.1, "seed": 3, "progress": False}
        with pytest.warns(match="runs eagerly") if mode else nullcontext():
            pv.fit(program, (WORDS,), compile=mode, **settings)
        means.append(program.mean.item())
        got = pv.log_likelihood(program, (WORDS,)).log_prob
        torch.testing.assert_close(got, dist.Normal(means[-1], 1.0).log_prob(lengths))
    assert means[0] == pytest.approx(means[1]) and means[0] > 0.3


def test_a_list_of_dicts_is_batches_of_one_data_set():
    plain = Pair()
    program = pv.Program(plain.flat_model, plain.flat_guide)
    parts = [{"x": X[:2], "t": T[:2]}, {"x": X[2:], "t": T[2:]}]
    torch.manual_seed(1)
    whole = pv.elbo(program, (X, T))
    torch.manual_seed(1)
    torch.testing.assert_close(pv.elbo(program, parts), whole)
    run = pv.fit(program, parts, epochs=1, batch_size=3, progress=False, compile=False)
    assert run.steps == 2
    with pytest.raises(DataError, match="do not fit together"):
        pv.elbo(program, [parts[0], {"x": X}])


@pytest.mark.parametrize("form", ["one", "two", "named"])
def test_tensors_that_are_no_rows_are_told_by_the_plate(form):
    """As many constants as rows: the numbers, and the training, are those of bound ones."""
    level, shape = torch.tensor([0.2, 0.3, 0.4]), torch.tensor([1.0, -1.0, 2.0])

    class Shifted(Pair):
        def model(self, level, x, t, shape=shape):
            self.flat_model(x + (level * shape).sum(), t)

        def guide(self, level, x, t, shape=shape):
            self.flat_guide(x, t)

    class Lone(Shifted):
        def model(self, level, x):
            super().model(level, x, T[: len(x)])

        def guide(self, level, x):
            super().guide(level, x, None)

    kind = Lone if form == "one" else Shifted
    data = {
        "one": (level, X),
        "two": (level, X[:5], T[:5], shape),
        "named": {"x": X, "level": level, "shape": shape, "t": T},
    }[form]
    rows = {"one": (X,), "two": (X[:5], T[:5]), "named": (X, T)}[form]
    found = []
    for bound in (False, True):
        torch.manual_seed(1)
        case = kind()
        model, guide = (functools.partial(f, level) for f in (case.model, case.guide))
        program = pv.Program(model, guide) if bound else case
        given = rows if bound else data
        bounds = pv.elbo(program, given, batch_size=4)
        size = len(X) if form == "one" else 2  # T[: len(x)] is of no shuffled batch
        run = pv.fit(program, given, epochs=1, batch_size=size, progress=False, compile=False)
        drawn = pv.generate(program, 4)
        drawn = drawn["x"] if isinstance(drawn, dict) else drawn
        found.append((bounds, torch.as_tensor(run.history["loss"]), case.weight.detach(), drawn))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_constants_that_differ_between_data_are_refused():
    """Training would see those of the validation set: -1,264 nats for -1.6."""

    def model(x, level):
        with pyro.plate("data", len(x)):
            shift = pyro.param("shift", torch.tensor(0.0))
            pyro.sample("x", dist.Normal(shift + level.sum(), 1.0), obs=x[:, 0])

    program, level = pv.Program(model, lambda x, level: None), torch.tensor([0.1, 0.2, 0.3])
    settings = {"epochs": 1, "lr": 1e-9, "progress": False, "compile": False}
    run = pv.fit(program, (X, level), valid=(X[:4], level.clone()), **settings)
    expected = [dist.Normal(0.6, 1.0).log_prob(x[:, 0]).mean().item() for x in (X, X[:4])]
    assert [run.history[name][0] for name in ("elbo", "valid_elbo")] == pytest.approx(expected)
    with pytest.raises(DataError, match="argument 'level': got other values than before"):
        pv.fit(program, (X, level), valid=(X[:4], 50 + level), **settings)


def test_a_constant_in_a_container_is_found_in_any_order_of_it():
    def model(d):
        with pyro.plate("data", len(d["x"])):
            pyro.sample("x", dist.Normal(d["level"].sum() * d["x"], 1.0), obs=d["x"])

    x, level = X[:, 0], torch.tensor([0.1, 0.2, 0.3])
    program = pv.Program(model, lambda d: None)
    expected = dist.Normal(0.6 * x, 1.0).log_prob(x)
    for data in ({"x": x, "level": level}, {"level": level.clone(), "x": x}):
        torch.testing.assert_close(pv.elbo(program, (data,)), expected)
    with pytest.raises(DataError, match=r"argument \"d\['level'\]\": .* in one form"):
        pv.elbo(program, ({"x": x, "scale": level},))


class Either(Pair):
    """Takes x and t in one argument or in two."""

    def model(self, rows, more=None):
        self.flat_model(rows["x"], rows["t"] if more is None else more["t"])

    def guide(self, rows, more=None):
        self.flat_guide(rows["x"], None)


def test_data_of_one_program_may_come_in_several_forms():
    """Each batch is given back as it came: one form for all would swap fields, or lose some."""
    program, plain = Either(), Pair()
    forms = [
        ({"x": X, "t": T},),
        ({"t": T, "x": X},),
        ({"x": X}, {"t": T}),
        {"more": {"t": T}, "rows": {"x": X}},
    ]
    batches = [pv.Program.of(program).adapt(form) for form in forms]
    flat = pv.Program(plain.flat_model, plain.flat_guide)
    found = []
    for asked, batch in [(flat, (X, T)), *((program, b) for b in batches), (program, batches[0])]:
        torch.manual_seed(1)
        with pv.Program.of(asked).running():
            found.append(pv.Program.of(asked).terms(batch).log_p["x"])
    for form in forms:
        torch.manual_seed(1)
        found.append(pv.log_likelihood(program, form, num_particles=2).log_prob)
    for value in found[1:6]:
        torch.testing.assert_close(value, found[0])
    for value in found[7:]:
        torch.testing.assert_close(value, found[6])
    settings = {"epochs": 1, "lr": 1e-9, "progress": False, "compile": False, "seed": 0}
    history = pv.fit(program, forms[0], valid=forms[3], **settings).history
    expected = pv.fit(plain_program(), (X, T), valid=(X, T), **settings).history
    assert history["valid_elbo"][0] == pytest.approx(expected["valid_elbo"][0])
    assert history["loss"][0] == pytest.approx(expected["loss"][0])


def plain_program():
    pair = Pair()
    return pv.Program(pair.flat_model, pair.flat_guide)


def test_a_list_of_names_beside_rows_is_a_constant():
    """Three names of two columns each, six rows: no words of rows."""
    columns = ["age", "sex"]

    def model(x, names, words=None):
        assert names == columns or names == tuple(columns)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, len(names)).expand([2]).to_event(1), obs=x)

    expected = dist.Normal(0.0, 2.0).log_prob(X).sum(-1)
    for data in ((X, columns), (X, tuple(columns), WORDS), {"x": X, "names": columns}):
        program = pv.Program(model, lambda x, names, words=None: None)
        torch.testing.assert_close(pv.elbo(program, data, batch_size=4), expected)
        two = data.copy() | {"x": X[:2]} if isinstance(data, dict) else (X[:2], data[1])
        torch.testing.assert_close(pv.elbo(program, two), expected[:2])
