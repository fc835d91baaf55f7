"""A factor shows no cells: one that moves with what is missing is refused, or told of."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from told_of_holes import HOLES, masked, told_of

import pyro_vae as pv
from pyro_vae.errors import DataError


def by_choice(cells, x):
    scores = torch.where(x.isnan(), 0.0, cells.log_prob(x.nan_to_num()))
    pyro.factor("x", scores.sum(-1))


def by_row(cells, x):
    scores = cells.log_prob(x.nan_to_num()).sum(-1)
    pyro.factor("x", torch.where(x.isnan().all(-1), 0.0, scores))


def beside_a_label(cells, x):
    by_choice(cells, x)
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.ones(len(x)))


@pytest.mark.parametrize("observe", [by_choice, by_row, beside_a_label])
def test_a_factor_of_data_with_holes_is_refused_with_the_way_out(observe):
    told = r"value nan in row 0 .*'x' is a pyro.factor, which takes no holes: .* by pyro.sample\("
    with pytest.raises(DataError, match=told):
        pv.elbo(masked(observe), HOLES)


CELLS = dist.Normal(torch.tensor([0.5, -1.0]), 2.0)
WEIGHTS = torch.tensor([0.1, 0.7, 0.4, 0.2])


def beside_a_mask(number, *, in_plate=True, rows=None):
    """A model whose site has the right mask, with a factor of its own."""

    def model(x, y):
        if not in_plate:
            pyro.factor("own", number(x, y))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", CELLS.mask(~x.isnan()).to_event(1), obs=x.nan_to_num())
            if in_plate:
                with pyro.poutine.mask(mask=True if rows is None else rows(x)):
                    pyro.factor("own", number(x, y))

    return model


def scored_zeros(x, _):
    return CELLS.log_prob(x.nan_to_num()).sum(-1)


@pytest.mark.parametrize(
    "model",
    [beside_a_mask(scored_zeros), beside_a_mask(lambda *d: scored_zeros(*d).sum(), in_plate=False)],
    ids=["in the plate", "outside"],
)
def test_a_factor_that_scores_holes_is_told_of_beside_a_site_that_masks_them(model):
    """Rows 0, 1 and 3 of four have holes."""
    (found,) = told_of(model, (HOLES, WEIGHTS))[0]
    assert "site 'own' is a pyro.factor, and " in found
    assert ("3 of its 4 numbers" in found) or ("1 of its 1 number" in found)
    assert "observe what has holes by pyro.sample(name, fn.mask(" in found


@pytest.mark.parametrize(
    ("number", "rows"),
    [
        (lambda x, y: -y, None),
        (lambda x, y: CELLS.log_prob(y[:, None]).sum(-1), None),
        (lambda x, y: -(~x.isnan()).sum(-1) * 0.3, None),
        (scored_zeros, lambda x: ~x.isnan().any(-1)),
    ],
    ids=["weights", "a full argument", "how many are seen", "its mask leaves out the rows"],
)
def test_a_factor_of_no_hole_counts_as_it_is(number, rows):
    told, answer = told_of(beside_a_mask(number, rows=rows), (HOLES, WEIGHTS))
    assert told == []
    cells = CELLS.log_prob(HOLES.nan_to_num()).where(~HOLES.isnan(), 0.0).sum(-1)
    own = number(HOLES, WEIGHTS)
    own = own if rows is None else own.where(rows(HOLES), 0.0)
    torch.testing.assert_close(answer, cells + own)


@pytest.mark.filterwarnings("error")
def test_a_factor_of_a_latent_is_taken_beside_data_with_holes():
    def observe(cells, x):
        pyro.sample("x", cells.mask(~x.isnan()).to_event(1), obs=x.nan_to_num())
        pyro.factor("own", -cells.loc.abs().sum(-1))

    assert pv.elbo(masked(observe), HOLES).isfinite().all()
