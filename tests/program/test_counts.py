"""Integers that a density over floats observes, or that a network multiplies, come as floats.

Class numbers and indices stay.
"""

from contextlib import nullcontext
from itertools import permutations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError
from pyro_vae.program.sites.counts import digits_lost

KINDS = {
    "poisson": lambda h: dist.Poisson(h.exp()),
    "negative binomial": lambda h: dist.NegativeBinomial(torch.tensor(4.0), logits=h),
    "bernoulli": lambda h: dist.Bernoulli(logits=h),
    "binomial": lambda h: dist.Binomial(6, logits=h),
    "geometric": lambda h: dist.Geometric(logits=h),
    "normal": lambda h: dist.Normal(h, 1.0),
}
ONES = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]])
ROWS = ONES * torch.tensor([[1], [5], [2], [3]])


class Factors(nn.Module):
    """A prior made by ``x.new_zeros``, as in the README."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.decode, self.encode = kind, nn.Linear(2, 3), nn.Linear(3, 4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", KINDS[self.kind](self.decode(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x.log1p()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def rows(kind):
    return ONES if kind == "bernoulli" else ROWS


def answers(kind, x):
    """What several verbs say, at noise of equal seeds."""
    program = Factors(kind)
    torch.manual_seed(1)
    loss = pv.fit(program, x, epochs=2, batch_size=3, progress=False).history["loss"]
    return {
        "loss": torch.as_tensor(loss),
        "likelihood": pv.log_likelihood(program, x, num_particles=5).log_prob,
        "elbo": pv.elbo(program, x),
        "codes": pv.encode(program, x),
        "generated": pv.generate(program, 5),
        "kl": pv.diagnose(program, x).unit_kl["z"],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_answered_for_as_floats_are(kind):
    x = rows(kind)
    torch.testing.assert_close(answers(kind, x), answers(kind, x.float()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint8", "uint16", "uint32", "bool", ">i4"])
def test_each_dtype_of_integers(dtype):
    x = ONES.numpy().astype(dtype)
    torch.manual_seed(2)
    found = pv.elbo(Factors("bernoulli"), x)
    torch.manual_seed(2)
    torch.testing.assert_close(found, pv.elbo(Factors("bernoulli"), ONES.float()))


def test_simulated_data_and_loaders_of_integers():
    program = Factors("poisson").double()
    loader = DataLoader(TensorDataset(ROWS), batch_size=2)
    pv.fit(program, loader, epochs=1, progress=False)
    settings = pv.AIS(num_temperatures=3, chains=2, pilot=20)
    assert pv.bdmc(program, 4, settings).gap == pytest.approx(0.0, abs=20)
    assert pv.generate(program, 3).dtype == torch.float64
    assert pv.infer(program, ROWS[:2]).mean.dtype == torch.float64


class Words(nn.Module):
    """Counts that the guide looks up, labels that it spreads, and a mask."""

    def __init__(self):
        super().__init__()
        self.look, self.rate = nn.Embedding(8, 2), nn.Linear(2, 3)

    def model(self, x, y, mask):
        assert (x.dtype, y.dtype, mask.dtype) == (torch.int64, torch.int64, torch.bool)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(self.rate(z).exp()).mask(mask).to_event(1), obs=x)
            pyro.sample("y", dist.Categorical(logits=z), obs=y)

    def guide(self, x, y, mask):
        loc = self.look(x).sum(1) + nn.functional.one_hot(y, 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_what_is_an_index_a_class_or_a_mask_stays_as_it_is():
    data = {"x": ROWS, "y": ROWS[:, 0].clamp(max=1), "mask": ROWS > 0}
    program = Words()
    pv.fit(program, data, epochs=2, batch_size=3, progress=False)
    assert np.isfinite(pv.log_likelihood(program, data, num_particles=3).mean)


def test_a_column_of_a_table_of_integers_stays():
    def model(table):
        with pyro.plate("data", len(table)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            logits = torch.stack([z, -z], -1)[torch.arange(len(table)), table[:, 0]]
            pyro.sample("x", dist.Poisson(logits.exp()), obs=table[:, 1])

    def guide(table):
        with pyro.plate("data", len(table)):
            pyro.sample("z", dist.Normal(table[:, 0] - 0.5, 1.0))

    table = torch.stack([ONES[:, 0], ROWS[:, 2]], 1)
    assert pv.elbo(pv.Program(model, guide), table).isfinite().all()


class Multiplied(Factors):
    """An encoder that takes counts as they are: it runs on no integers."""

    def __init__(self):
        super().__init__("poisson")

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(self.decode(z).exp()).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


MANY = torch.arange(90).reshape(30, 3) % 5


def trained(x, **settings):
    program = Multiplied()
    history = pv.fit(program, x, epochs=2, progress=False, **settings).history
    return torch.tensor([*history["loss"], *history.get("valid_elbo", ())])


def after_floats(x):
    program = Multiplied()
    pv.elbo(program, MANY[:20].float())
    return pv.elbo(program, x)


DOORS = {
    "one batch": trained,
    "several batches": lambda x: trained(x, batch_size=7),
    "other validation rows": lambda x: trained(x, valid=x[:4]),
    "a transform": lambda x: trained(x, batch_size=7, transform=lambda batch: batch.clamp(max=3)),
    "a loader": lambda x: trained(DataLoader(TensorDataset(x), batch_size=8)),
    "elbo": lambda x: pv.elbo(Multiplied(), x),
    "one row": lambda x: pv.elbo(Multiplied(), x[:1]),
    "encode": lambda x: pv.encode(Multiplied(), x),
    "likelihood": lambda x: pv.log_likelihood(Multiplied(), x, num_particles=3).log_prob,
    "generate": lambda x: pv.generate(Multiplied(), 4, given=x[:4]),
    "after floats": after_floats,
}


@pytest.mark.parametrize("door", DOORS)
def test_what_a_network_multiplies_is_answered_for_as_floats_are(door):
    found = []
    for x in (MANY.float(), MANY, MANY.to(torch.uint8)):
        torch.manual_seed(3)
        found.append(DOORS[door](x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Batches:
    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


LATER = {
    "validation": lambda x: trained(MANY.float(), valid=x[:9]),
    "a second batch": lambda x: trained(Batches(MANY[:15].float(), x[15:]), size=30),
    "a transform of some": lambda x: trained(
        MANY.float(), batch_size=15, transform=lambda b: b.to(x.dtype) if b[0, 0] > 1 else b
    ),
}


@pytest.mark.parametrize("door", LATER)
def test_integers_that_come_after_floats_are_answered_for_as_floats_are(door):
    found = []
    for x in (MANY.float(), MANY):
        torch.manual_seed(3)
        found.append(LATER[door](x))
    assert torch.equal(*found)


LARGE = 2**24 + torch.arange(90).reshape(30, 3)
FLOAT = (
    r"got whole numbers from \d+ to 16777305, expected none beyond 16777216, up to which float32"
)


def test_integers_that_floats_do_not_hold_exactly_are_refused():
    with pytest.raises(DataError, match=rf"x: networks take floats, and {FLOAT}"):
        pv.elbo(Multiplied(), LARGE)
    with pytest.raises(
        DataError, match=rf"argument 0: the program takes it as floats, and {FLOAT}"
    ):
        trained(torch.cat([MANY, LARGE]), batch_size=30)
    assert not digits_lost(LARGE, torch.float64)
    assert not digits_lost(MANY * 2**25, torch.float32)  # beyond, and held exactly


def test_large_integers_that_a_density_scores_may_follow_small_ones():
    """No network multiplies them: a count of many among others is no reason to stop."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), 1e7), obs=x)

    found, x = [], torch.arange(40)
    x[33] = 30_000_001
    for rows in (x, x.float()):
        program = pv.Program(model, lambda x: None)
        told = pytest.warns(UserWarning, match="which round it") if rows is x else nullcontext()
        with told:
            run = pv.fit(program, rows, epochs=2, batch_size=10, lr=0.1, seed=0, progress=False)
        found.append(torch.cat([torch.tensor(run.history["loss"]), pv.elbo(program, rows)]))
    assert torch.equal(*found)


THIRDS = torch.full((3,), 1 / 3)
SCORED = {
    "poisson": lambda n: dist.Poisson(n.float().mean().expand(2, 3)).to_event(1),
    "binomial": lambda n: dist.Binomial(2 * n.max(), torch.tensor(0.5)).expand([2, 3]).to_event(1),
    "multinomial": lambda n: dist.Multinomial(int(n.sum(-1)[0]), THIRDS).expand([2]),
}


@pytest.mark.filterwarnings("ignore:argument 0. a density scores it in floats")
@pytest.mark.parametrize("kind", SCORED)
def test_integers_small_and_large_and_floats_are_scored_alike_in_any_order(kind):
    """Each sum has terms of up to 2e9, of which float32 holds seven digits."""
    small = torch.tensor([[1, 3, 0], [3, 0, 1]])
    for order in permutations((small, small + 2**24, small.float())):

        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", SCORED[kind](x), obs=x)

        program = pv.Program(model, lambda x: None)
        for x in order:
            exact = SCORED[kind](x.double()).log_prob(x.double())
            size = float(x.sum(-1).max()) * 20
            torch.testing.assert_close(
                pv.elbo(program, x).double(), exact, rtol=0, atol=1e-6 * size
            )


def test_large_integers_that_a_density_takes_stay_as_they_are_given():
    seen = []

    def model(t):
        with pyro.plate("data", len(t)):
            scale = pyro.sample("z", dist.Normal(0.0, 1.0)).exp()
            seen.append(t - 1_700_000_000)
            pyro.sample("t", dist.Normal(1.7e9, scale), obs=t)

    def guide(t):
        with pyro.plate("data", len(t)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    pv.elbo(pv.Program(model, guide), 1_700_000_000 + torch.arange(5))
    assert seen[-1].tolist() == [0, 1, 2, 3, 4]


def test_counts_of_a_multinomial_are_read_without_a_draw(monkeypatch):
    """A draw of a thousand rows of 300,000 words took 5 GB: torch draws each word."""
    monkeypatch.setattr(
        torch.distributions.Multinomial, "sample", lambda *size: pytest.fail("drawn")
    )
    rows = torch.full((4, 3), 100_000)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Multinomial(300_000, THIRDS).mask(x[:, 0] > 0), obs=x)

    exact = dist.Multinomial(300_000, THIRDS).log_prob(rows.float())
    torch.testing.assert_close(pv.elbo(pv.Program(model, lambda x: None), rows), exact)


class Labelled(nn.Module):
    """Two tables that it multiplies beside class numbers and words that it looks up."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.look, self.classes = nn.Embedding(5, 2), nn.Linear(2, 3)
        self.prior, self.encode = nn.Linear(3, 2), nn.Linear(3, 2)

    def model(self, y, x, words, given):
        assert y.dtype == words.dtype == torch.int64
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.prior(given), 1.0).to_event(1))
            pyro.sample("y", dist.Categorical(logits=self.classes(z)), obs=y)

    def guide(self, y, x, words, given):
        with pyro.plate("data", len(x)):
            loc = self.encode(x) + self.look(words).sum(1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_the_fewest_arguments_come_as_floats():
    y, answers = MANY[:, 0] % 3, []
    for x, given in [(MANY.float(), MANY.float()), (MANY, MANY)]:
        torch.manual_seed(3)
        answers.append(pv.elbo(Labelled(), {"y": y, "x": x, "words": MANY, "given": given}))
    assert torch.equal(*answers)


class Joined(Multiplied):
    """Class numbers first, which its guide joins to the table that comes as floats."""

    def __init__(self):
        super().__init__()
        self.look, self.both = nn.Linear(2, 3), nn.Linear(4, 4)

    def model(self, y, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Categorical(logits=self.look(z)), obs=y)
            pyro.sample("x", dist.Poisson(self.decode(z).exp()).to_event(1), obs=x)

    def guide(self, y, x):
        SEEN.update(y=y.dtype, x=x.dtype)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.both(torch.cat([x, y[:, None]], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


SEEN = {}


def test_class_numbers_stay_where_other_floats_do_as_well():
    y, answers = MANY[:, 0] % 3, []
    for x in (MANY.float(), MANY):
        torch.manual_seed(3)
        answers.append(pv.elbo(Joined(), (y, x)))
        assert SEEN["y"] == torch.int64 and SEEN["x"] == torch.float32
    assert torch.equal(*answers)


class Mixed(Multiplied):
    """A class of each row, beside the counts that a network multiplies."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            rate = (self.decode(torch.stack([k, 1 - k], -1)) + 0.01 * self.encode(x)[..., :3]).exp()
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(0.5))


def test_densities_with_classes_summed_out_take_integers_as_floats():
    """Whether the model takes them one by one was asked of the integers, on which it fails."""
    found = [pv.Program.of(Mixed()).summed_joint(x).model_log_p({}, 1) for x in (ROWS, ROWS + 0.0)]
    torch.testing.assert_close(*found)
    assert not pv.Program.of(Multiplied()).tiled(ROWS)


def test_one_argument_in_a_container_that_a_network_multiplies():
    def answer(x):
        program = Multiplied()
        in_dict = pv.Program(
            lambda batch: program.model(batch["x"]), lambda b: program.guide(b["x"])
        )
        torch.manual_seed(3)
        return pv.elbo(in_dict, {"x": x})

    assert torch.equal(answer(MANY), answer(MANY.float()))
