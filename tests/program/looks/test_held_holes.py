"""Holes are found in whatever a program makes of its data before it scores them."""

import math
import re
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from told_of_holes import HOLES, WIDE, all_seen, cells_of, exact_seen, told_of

import pyro_vae as pv


def turned(x, seen):
    with pyro.plate("rows", len(x), dim=-1), pyro.plate("cells", 3, dim=-2):
        pyro.sample("x", dist.Normal(0.0, 1.0).mask(seen.T), obs=x.T.nan_to_num())


def sliced(x, seen):
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(0.0, 1.0).mask(seen[:, 0]), obs=x[:, 0].nan_to_num())
        rest = dist.Normal(torch.zeros(2), 1.0).mask(seen[:, 1:]).to_event(1)
        pyro.sample("x", rest, obs=x[:, 1:].nan_to_num(0.5))


def row_by_row(x, seen):
    for i in pyro.plate("rows", len(x)):
        cells = dist.Normal(torch.zeros(3), 1.0).mask(seen[i]).to_event(1)
        pyro.sample(f"x{i}", cells, obs=x[i].nan_to_num())


def of_shares(x, seen):
    """All numbers of a row move where its holes are filled."""
    shares = x / x.abs().nansum(-1, keepdim=True)
    with pyro.plate("rows", len(x)):
        cells = dist.Normal(torch.zeros(3), 1.0).mask(seen).to_event(1)
        pyro.sample("x", cells, obs=shares.nan_to_num())


def what_lacks(x, seen):
    """That a cell lacks is observed too: it stands in no other's place."""
    with pyro.plate("rows", len(x)):
        lacks = dist.Bernoulli(torch.full((3,), 0.5)).to_event(1)
        pyro.sample("lacks", lacks, obs=x.isnan().float())
        cells = dist.Normal(torch.zeros(3), 1.0).mask(seen).to_event(1)
        pyro.sample("x", cells, obs=x.nan_to_num())


def filled_by_classes(x, seen):
    """Some holes, of which each has the value of a discrete latent."""
    with pyro.plate("rows", len(x)):
        drawn = pyro.sample("drawn", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        y = torch.where(x.isnan(), drawn, (x > 0).float())
        pyro.sample("y", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1), obs=y)
        cells = dist.Normal(torch.zeros(3), 1.0).mask(seen).to_event(1)
        pyro.sample("x", cells, obs=x.nan_to_num())


def of_drawn(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("drawn", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))


@pytest.mark.parametrize(
    "observe", [turned, sliced, row_by_row, of_shares, what_lacks, filled_by_classes]
)
def test_holes_are_found_in_whatever_a_program_makes_of_them(observe):
    """What sites observe had to be an argument or a column of one; what else was silent."""
    guide = of_drawn if observe is filled_by_classes else lambda x: None

    def told(seen, *batches):
        program = pv.Program(lambda x: observe(x, seen(x)), guide)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            for x in batches:
                pv.elbo(program, x)
        return [str(w.message) for w in given]

    def all_but_last(x):
        return torch.cat([~x[:, :2].isnan(), torch.ones_like(x[:, 2:]) > 0], 1)

    late = torch.tensor([[0.3, -1.0, 0.7], [1.5, 0.2, math.nan]])
    early = late.roll(1, 1)  # no hole in the last column
    assert told(lambda x: ~x.isnan(), early, late) == []
    site = "x1" if observe is row_by_row else "y" if observe is sliced else "x"
    (found,) = told(lambda x: torch.ones_like(x) > 0, early)
    assert found.startswith(f"site {site!r} scores cells that are NaN in the data (1 in ")
    (found,) = told(all_but_last, early, late)
    assert re.match(r"site 'x1?' scores cells that are NaN in the data \(1 in ", found)


def by_column(x):
    low, high = x.nan_to_num(math.inf).amin(0), x.nan_to_num(-math.inf).amax(0)
    return ((x - low) / (high - low)).nan_to_num()


MAKES = {
    "of its column": by_column,
    "less the row's mean": lambda x: (x - x.nanmean(1, keepdim=True)).nan_to_num(),
    "of the largest": lambda x: x.nan_to_num() / x.nan_to_num().amax(1, keepdim=True),
    "rank": lambda x: x.nan_to_num(1e9).argsort(-1).argsort(-1).float(),
    "z": lambda x: ((x - x.nanmean(0)) / (x - x.nanmean(0)).square().nanmean(0)).nan_to_num(),
}


PRICES = torch.tensor(
    [[4.0, 1.2, math.nan], [math.nan, 2.0, 2.2], [3.0, math.nan, math.nan], [1.0, 5.0, 6.0]]
)


@pytest.mark.parametrize("make", MAKES)
def test_what_is_seen_is_no_hole_where_it_moves_with_what_is_filled_in(make):
    """The share of the first number is 1 whatever is seen, and another where holes are filled."""
    for steps in (False, True) if make in ("rank", "z") else (False,):
        model = cells_of(MAKES[make], exact_seen, steps=steps)
        assert told_of(model, PRICES, PRICES[:2])[0] == []
        (found,) = told_of(cells_of(MAKES[make], all_seen, steps=steps), PRICES)[0]
        assert "scores cells that are NaN" in found
        assert "inverted" not in found


def held_out(x):
    return (torch.arange(x.numel()).reshape(x.shape) % 5 > 0) & ~x.isnan()


@pytest.mark.parametrize("make", ["less the row's mean", "rank"])
def test_a_mask_may_leave_out_more_than_holes(make):
    """In a row with one seen cell, its mean is the cell: a number whatever is seen."""
    rows = torch.cat([PRICES, PRICES + 1.0])
    assert told_of(cells_of(MAKES[make], held_out), rows)[0] == []
    assert told_of(cells_of(MAKES[make], lambda x: held_out(x) | x.isnan()), rows)[0] != []


def test_the_number_right_of_those_answered_is_no_hole():
    """Some rows have as many right whatever the answers: by chance."""

    def model(x):
        answered = ~x.isnan()
        with pyro.plate("rows", len(x)):
            number = dist.Binomial(answered.sum(-1).float(), torch.tensor(0.4))
            pyro.sample("right", number.mask(answered.any(-1)), obs=x.nansum(-1))

    torch.manual_seed(5)
    answers = torch.bernoulli(torch.full((400, 5), 0.5))
    answers[torch.rand(400, 5) < 0.3] = math.nan
    assert told_of(model, answers)[0] == []


def test_totals_of_what_is_seen_are_no_holes():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("n", dist.Poisson(4.0), obs=x.nansum(-1))
            cells = dist.Poisson(torch.ones(3)).mask(~x.isnan()).to_event(1)
            pyro.sample("x", cells, obs=x.nan_to_num())

    rows = torch.tensor([[1.0, math.nan, 2.0], [2.0, 1.0, math.nan], [1.0, 2.0, 3.0]])
    assert told_of(model, rows)[0] == []


def test_sorted_numbers_are_no_holes_where_the_last_ones_are_left_out():
    """A number that is filled in may stand where another one stood, which moves on by a place."""
    torch.manual_seed(0)
    x = torch.randn(100, 5)
    x[torch.rand(x.shape) < 0.25] = math.nan

    def ordered(x):
        return x.sort(-1).values.nan_to_num()

    assert told_of(cells_of(ordered, lambda x: ~x.sort(-1).values.isnan()), x)[0] == []
    for wrong in (exact_seen, all_seen):
        (found,) = told_of(cells_of(ordered, wrong), x)[0]
        assert "scores cells that are NaN" in found


def shifted(x):
    return exact_seen(x).roll(1, 1)


@pytest.mark.parametrize(
    ("column", "make", "seen"),
    [
        ([5e6, math.nan, 5e6], torch.nan_to_num, all_seen),  # 5e6 + 0.1 is 5e6
        ([1.7e9, math.nan, 1.7e9], partial(torch.nan_to_num, nan=1.7e9), all_seen),
        ([0.0, math.nan, 0.0], lambda x: x.nan_to_num().long(), all_seen),
        ([1.0, math.nan, 1.0], partial(torch.nan_to_num, nan=1.0), all_seen),
        ([0.2, math.nan, 0.7], torch.nan_to_num, shifted),
    ],
)
def test_a_hole_that_is_scored_is_told_of_in_columns_of_one_number(column, make, seen):
    rows = torch.tensor([column, [0.3, 0.1, 0.2]]).T
    (found,) = told_of(cells_of(make, seen), rows)[0]
    assert found.startswith("site 'y' scores cells that are NaN in the data (1 in ")


def spread(x):
    """A mean that is NaN for one hole; what lacks then is 0, and with it what is seen."""
    return (x - x.mean(1, keepdim=True)).nan_to_num()


FORMS = {
    "flattened": lambda x: x.reshape(len(x), -1),
    "cropped": lambda x: x[:, 1:],
    "with a channel": lambda x: x[:, None],
    "turned": lambda x: x.flip(1),
    "in another order": lambda x: x[:, torch.tensor([2, 0, 3, 1])],
}


def formed(make, form, seen):
    def model(x):
        y = form(make(x))
        with pyro.plate("rows", len(x)):
            cells = dist.Normal(torch.zeros(y.shape[1:]), 1.0).mask(seen(x, y))
            pyro.sample("y", cells.to_event(y.dim() - 1), obs=y)

    return model


@pytest.mark.parametrize("form", FORMS)
def test_a_hole_is_found_where_its_site_has_another_form_and_all_of_a_row_moves(form):
    """Cells that move with a hole were counted: of a row that is centred all do."""
    made = MAKES["less the row's mean"]
    right = formed(made, FORMS[form], lambda x, y: FORMS[form](~x.isnan()))
    assert told_of(right, WIDE)[0] == []
    (found,) = told_of(formed(made, FORMS[form], lambda x, y: ~y.isnan()), WIDE)[0]
    assert found.startswith("site 'y' scores cells that are NaN in the data (")
    if form in ("turned", "in another order"):
        (found,) = told_of(formed(made, FORMS[form], lambda x, y: ~x.isnan()), WIDE)[0]
        assert "scores cells that are NaN" in found


def test_seen_cells_that_nan_has_spread_to_are_told_of():
    assert told_of(formed(spread, torch.clone, lambda x, y: ~x.isnan()), WIDE[:3])[0][0].startswith(
        "site 'y' scores 9 cells in 3 rows as one number, whatever is seen in x: they are NaN, or "
    )
    one = torch.tensor([[math.nan, 1.0], [2.0, math.nan], [0.5, 3.0]])
    mean = MAKES["less the row's mean"]  # of one seen cell: 0, and rightly
    assert told_of(formed(mean, torch.clone, lambda x, y: ~x.isnan()), one)[0] == []


def test_differences_beside_a_mask_of_one_side_are_told_of():
    def steps(x):
        return x.nan_to_num().diff(dim=1)

    for seen in (lambda x: ~x[:, 1:].isnan(), lambda x: ~x[:, :-1].isnan()):
        (found,) = told_of(formed(torch.clone, steps, lambda x, y, seen=seen: seen(x)), WIDE)[0]
        assert "scores cells that are NaN" in found
    both = formed(torch.clone, steps, lambda x, y: ~(x[:, 1:] + x[:, :-1]).isnan())
    assert told_of(both, WIDE)[0] == []


def test_a_mask_that_forgets_some_of_many_columns_is_told_of_with_all_its_holes():
    """One hole of each row was looked at, by chance: 12 of 12 such programs were silent."""
    torch.manual_seed(0)
    x = torch.randn(30, 40)
    x[torch.rand(x.shape) < 0.3] = math.nan

    def means(x):
        return x.where(~x.isnan(), x.nanmean(0))

    def seen(x, y):
        return ~x.isnan() | (torch.arange(40) >= 38)

    forgotten = int(x[:, 38:].isnan().sum())
    (found,) = told_of(formed(means, torch.clone, seen), x)[0]
    assert found.startswith(f"site 'y' scores cells that are NaN in the data ({forgotten} in 30 r")
    assert told_of(formed(means, torch.clone, lambda x, y: ~x.isnan()), x)[0] == []


def test_what_is_the_same_in_all_runs_holds_no_hole():
    """Sums of numbers that cancel are not 0: a complete table was told of for its covariates."""

    def model(y, c):
        with pyro.plate("rows", len(y)):
            mean = c.nan_to_num().sum(1)[:, None].expand(y.shape)
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)
            seen = dist.Normal(torch.zeros(2), 1.0).mask(held_out(c)).to_event(1)
            pyro.sample("c", seen, obs=(c - c.nanmean(0)).nan_to_num())

    torch.manual_seed(0)
    y, c = torch.rand(100, 60), torch.randn(100, 2) * torch.tensor([0.7, 13.0])
    c[torch.rand(c.shape) < 0.3] = math.nan
    assert told_of(model, (y, c))[0] == []


def test_holes_that_come_late_in_other_columns_are_looked_at():
    make = MAKES["less the row's mean"]

    def seen(x, y):
        return held_out(x) | (torch.arange(4) == 3)

    early = [(WIDE + 0.1 * k)[:, torch.tensor([0, 1, 2, 3])] for k in range(12)]
    late = WIDE[:, torch.tensor([0, 1, 3, 2])]
    assert told_of(formed(make, torch.clone, seen), *early)[0] == []
    assert len(told_of(formed(make, torch.clone, seen), *early, late)[0]) == 1


def refusing(x):
    if not bool(x.isnan().any()):
        raise KeyError("no hole")
    return x.nan_to_num()


def test_a_program_that_refuses_data_without_holes_is_told_of_what_it_scores():
    assert told_of(cells_of(refusing, exact_seen), HOLES, HOLES[:3])[0] == []
    (found,) = told_of(cells_of(refusing, all_seen), HOLES)[0]
    assert found.startswith("site 'y' scores cells that are NaN in the data (")


def test_a_look_at_holes_asks_for_numbers_between_those_of_a_column_alone():
    """A number above all that is seen is no class of a table: on a GPU it ends the process."""
    low, high = torch.tensor([0.0, -1.5, 3.0]), torch.tensor([4.0, 2.5, 3.0])

    def model(x):
        seen = ~x.isnan()
        assert bool(((x >= low) & (x <= high))[:, :2].where(seen[:, :2], True).all())
        assert bool((x[:, [0, 2]] == x[:, [0, 2]].round()).where(seen[:, [0, 2]], True).all())
        assert bool((x[:, 2] <= 3.0).where(seen[:, 2], True).all())
        cells_of(torch.nan_to_num, all_seen)(x)

    rows = torch.stack([low, high, torch.full((3,), math.nan), (low + high).div(2)])
    (found,) = told_of(model, rows.repeat(2, 1))[0]
    assert "scores cells that are NaN in the data (" in found
