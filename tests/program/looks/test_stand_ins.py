"""What a latent or another argument gives for a hole is no hole; what merely equals it is one."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, init_to_mean
from told_of_holes import HOLES, WIDE, masked, told_of

import pyro_vae as pv
from pyro_vae.program.looks.quiet_runs import Runs


def drawn(cells, x):
    """What lacks is a value of a latent, and scored as that; another site has a mask."""
    first = x[:, 0]
    pyro.sample("y", dist.Normal(0.0, 1.0).mask(~first.isnan()), obs=first.nan_to_num())
    pyro.sample("x", cells.to_event(1), obs=torch.where(x.isnan(), cells.loc, x))


def test_holes_that_are_drawn_are_no_holes():
    assert pv.elbo(masked(drawn), HOLES).isfinite().all()


def by_cells(x):
    """A latent as large as the data."""
    mean = torch.tensor([3.0, -2.0]).expand(len(x), 2)
    mis = pyro.sample("mis", dist.Normal(mean, 1.0).mask(False).to_event(1))
    return torch.where(x.isnan(), mis, x)


def by_rows(x):
    """A latent for each column, of one number a row."""
    mis = [pyro.sample(f"mis{k}", dist.Normal(1.0 + k, 1.0).mask(False)) for k in range(2)]
    return torch.where(x.isnan(), torch.stack(mis, -1), x)


def by_holes(x):
    """A latent of one number a hole."""
    full = x.clone()
    prior = dist.Normal(2.0, 1.0).expand([int(x.isnan().sum())])
    full[x.isnan()] = pyro.sample("mis", prior.mask(False).to_event(1))
    return full


def of_columns(x):
    """A latent of the data set, of one number a column."""
    mis = pyro.sample("mis", dist.Normal(torch.tensor([3.0, -2.0]), 1.0).to_event(1))
    return torch.where(x.isnan(), mis, x)


@pytest.mark.parametrize("fill", [by_cells, by_rows, by_holes, of_columns])
def test_holes_that_a_guide_fits_are_no_holes(fill):
    """``init_to_mean`` gives one number a column, as a filler does."""

    def model(x):
        full = fill(x) if fill in (by_holes, of_columns) else None
        with pyro.plate("data", len(x)):
            full = fill(x) if full is None else full
            cells = dist.Normal(0.0, 1.0).expand(full.shape).mask(torch.ones_like(full) > 0)
            pyro.sample("x", cells.to_event(1), obs=full)

    guide = AutoDelta(model, init_loc_fn=init_to_mean)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        pv.fit(pv.Program(model, guide), HOLES, epochs=1, batch_size=4)
    assert not [w for w in given if "NaN" in str(w.message)]


@pytest.mark.parametrize(
    ("prior", "draw", "filler"),
    [
        (dist.Normal(torch.zeros(2), 1.0), dist.Delta(torch.zeros(2)), 0.0),
        (dist.Normal(0.0, 1.0), dist.Delta(torch.zeros(())), 0.0),
        (dist.Bernoulli(torch.full((2,), 0.5)), dist.Bernoulli(torch.ones(2)), 1.0),
    ],
)
def test_a_latent_that_has_the_filler_by_chance_fills_nothing(prior, draw, filler):
    """So has one at its mean that is 0, or a class."""

    def model(x, fn=prior):
        x = x.nan_to_num(filler)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", fn.to_event(len(fn.batch_shape)))
            loc = z.reshape(len(x), -1).expand(x.shape)
            pyro.sample("x", dist.Normal(loc, 1.0).mask(~x.isnan()).to_event(1), obs=x)

    guide = pyro.poutine.block(partial(model, fn=draw), expose=["z"])
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        pv.elbo(pv.Program(model, guide), HOLES)
    assert any("site 'x' scores cells that are NaN" in str(w.message) for w in given)


@pytest.mark.parametrize("lacks", [True, False])
def test_a_site_that_observes_what_is_seen_costs_few_runs(monkeypatch, lacks):
    """Its flags hold no number of the data: dozens of runs asked where their holes are."""

    def model(x, marks):
        with pyro.plate("data", len(x)):
            cells = dist.Normal(torch.zeros(2), 1.0).mask(~x.isnan())
            pyro.sample("x", cells.to_event(1), obs=x.nan_to_num())
            pyro.sample("marks", dist.Bernoulli(0.5).expand([2]).to_event(1), obs=marks)

    def look(self, *rest, **options):
        looks.append(rest)
        return looked(self, *rest, **options)

    looked, looks = Runs.model_under, []
    monkeypatch.setattr(Runs, "model_under", look)
    assert told_of(model, (HOLES, (HOLES.isnan() ^ (not lacks)).float()))[0] == []
    assert len(looks) <= 3


@pytest.mark.parametrize("lacks", [True, False])
def test_a_hole_that_another_argument_fills_is_none(lacks):
    """Of two measurements of one thing the cure, to mask one's holes, would lose the other."""

    def model(x, y):
        both = torch.where(x.isnan(), y, x)
        with pyro.plate("rows", len(x)):
            cells = dist.Normal(torch.zeros(4), 1.0).mask(~both.isnan()).to_event(1)
            pyro.sample("x", cells, obs=both.nan_to_num())

    other = WIDE.flip(1) + 0.25
    assert told_of(model, (WIDE, other if lacks else other.nan_to_num(0.5)))[0] == []


def in_one_event(x, kept):
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).mask(kept).to_event(1), obs=x)


def in_columns(x, kept):
    with pyro.plate("rows", len(x)):
        for k in range(4):
            pyro.sample(f"x{k}", dist.Normal(0.0, 1.0).mask(kept[:, k]), obs=x[:, k])


@pytest.mark.parametrize("observe", [in_one_event, in_columns])
def test_a_second_measurement_in_another_unit_fills_a_hole(observe):
    def model(x, y):
        observe(x.where(~x.isnan(), 1.5 * y + 2.0), torch.ones_like(x) > 0)

    assert told_of(model, (WIDE, WIDE.flip(1).nan_to_num(0.5)))[0] == []


MEANS = {
    "nanmean": lambda x, y: torch.stack([x, y]).nanmean(0),
    "weighed": lambda x, y: y.where(x.isnan(), x.where(y.isnan(), 0.8 * x + 0.2 * y)),
    "the larger": torch.fmax,
    "geometric": lambda x, y: torch.stack([x.log(), y.log()]).nanmean(0).exp(),
    "in another unit": lambda x, y: torch.stack([x, 1.8 * y + 32.0]).nanmean(0),
}


@pytest.mark.parametrize("observe", [in_one_event, in_columns])
@pytest.mark.parametrize("lacks", [True, False])
@pytest.mark.parametrize("mean", MEANS)
def test_the_mean_of_those_measurements_that_are_there_has_no_holes(mean, lacks, observe):
    """Where one lacks the other stands for it; where both are there each moves what is observed."""

    def model(x, y):
        value = MEANS[mean](x, y)
        observe(value.nan_to_num(), ~value.isnan())

    other = WIDE.flip(1)
    assert told_of(model, (WIDE, other if lacks else other.nan_to_num(0.5)))[0] == []


@pytest.mark.parametrize("observe", [in_one_event, in_columns])
@pytest.mark.parametrize("full", [1, 2, 3])
def test_the_mean_of_one_that_lacks_and_any_number_of_others_has_no_holes(full, observe):
    """No cell of it is the number of one of the others where there are two."""
    others = [WIDE.flip(dim).nan_to_num(0.5) for dim in (1, 0, (0, 1))[:full]]

    def model(x, *rest):
        observe(torch.stack([x, *rest]).nanmean(0), torch.ones_like(x) > 0)

    assert told_of(model, (WIDE, *others))[0] == []


SCALED = {
    "by a share": lambda y, x: y * x.nan_to_num(1.0),
    "by a size": lambda y, x: y / x.nan_to_num(1.0),
    "by the size of its row": lambda y, x: y / x[:, :1].nan_to_num(1.0),
    "less a share": lambda y, x: y * (1 - x.nan_to_num(0.0)),
    "by a power": lambda y, x: y ** x.nan_to_num(1.0),
    "in halves": lambda y, x: (y + x.nan_to_num()) / 2,
}


@pytest.mark.parametrize("unit", [0.05, 1.0, 1e-5])
@pytest.mark.parametrize("scaled", SCALED)
def test_data_that_an_argument_with_holes_scales_are_told_of(scaled, unit):
    """Where the filler is 1 they are the data's numbers, and move less once it is another one."""

    def model(y, x):
        in_one_event(SCALED[scaled](y, x), torch.ones_like(y) > 0)

    (found,) = told_of(model, (WIDE.flip(1).nan_to_num(0.5), WIDE * unit))[0]
    assert "scores cells that are NaN in the data (" in found


BESIDE = {
    "seen": ~WIDE.isnan(),
    "seen as numbers": 1.0 - WIDE.isnan().float(),
    "no effect": torch.zeros_like(WIDE),
    "a treatment": torch.arange(len(WIDE)) % 2,
    "a baseline": WIDE.flip(1).nan_to_num(0.5),
}


MISSED = {
    "inverted": lambda x, y: in_one_event(x.nan_to_num(), x.isnan()),
    "after": lambda x, y: in_one_event(x.nan_to_num(), ~x.nan_to_num().isnan()),
    "less another": lambda x, y: in_one_event(
        x.nan_to_num() - y.reshape(len(y), -1).float(), torch.ones_like(x) > 0
    ),
    "plus another": lambda x, y: in_one_event(
        x.nan_to_num() + y.reshape(len(y), -1).float(), torch.ones_like(x) > 0
    ),
    "means of another": lambda x, y: in_one_event(
        x.where(~x.isnan(), y.reshape(len(y), -1).float().mean(0)), torch.ones_like(x) > 0
    ),
    "means of its row": lambda x, y: in_one_event(
        x.where(~x.isnan(), x.nanmean(1, keepdim=True)), torch.ones_like(x) > 0
    ),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("missed", MISSED)
def test_holes_that_count_are_told_of_beside_an_argument_with_the_same_numbers(missed, beside):
    """Flags are 0 just where 0 stands for a hole: all such mistakes were silent beside them."""
    (found,) = told_of(MISSED[missed], (WIDE, BESIDE[beside]))[0]
    assert ("has an inverted mask" if missed == "inverted" else "scores cells that are") in found


@pytest.mark.parametrize("lacks", [True, False])
@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float])
def test_an_argument_that_marks_what_is_seen_is_no_mask_until_the_model_has_one(lacks, kind):
    def filled(x, seen):
        return torch.where(seen.bool() ^ lacks, x, 0.0)

    def model(x, seen):
        in_one_event(filled(x, seen), torch.ones_like(x) > 0)

    def by_marks(x, seen):
        in_one_event(filled(x, seen), seen.bool() ^ lacks)

    data = WIDE, (WIDE.isnan() ^ (not lacks)).to(kind)
    assert "scores cells that are NaN in the data (" in told_of(model, data)[0][0]
    assert told_of(by_marks, data)[0] == []
