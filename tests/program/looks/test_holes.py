"""What is told of holes: sites that score them, and masks that leave out more than them."""

import math
import re
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, init_to_mean

import pyro_vae as pv
from pyro_vae.distributions import BagOfWords
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.looks.quiet_runs import Runs
from pyro_vae.program.sites import holes

HOLES = torch.tensor([[0.5, math.nan], [math.nan, 0.2], [1.0, 2.0], [0.1, math.nan]])


def masked(observe, plate="data"):
    """A program whose model has a way of its own to leave out what is missing."""

    def model(x):
        with pyro.plate(plate, len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            observe(dist.Normal(z, 1.0), x)

    def guide(x):
        with pyro.plate(plate, len(x)):
            pyro.sample("z", dist.Normal(x.nan_to_num(), 0.5).to_event(1))

    return pv.Program(model, guide)


def after(cells, x):
    x = x.nan_to_num()
    pyro.sample("x", cells.mask(~x.isnan()).to_event(1), obs=x)


def after_by_columns(cells, x):
    for k, column in enumerate(x.nan_to_num().unbind(1)):
        fn = dist.Normal(cells.loc[:, k], 1.0).mask(~column.isnan())
        pyro.sample(f"x{k}", fn, obs=column)


def inverted(cells, x):
    pyro.sample("x", cells.mask(x.isnan()).to_event(1), obs=x.nan_to_num())


def whole_rows(cells, x):
    seen = ~x.isnan().any(-1)
    pyro.sample("x", cells.to_event(1).mask(seen), obs=x.nan_to_num())


def joint_rows(cells, x):
    seen = ~x.isnan().any(-1)
    fn = dist.MultivariateNormal(cells.loc, torch.eye(2))
    pyro.sample("x", fn.mask(seen), obs=x.nan_to_num())


def joint(cells, x, mask, value=torch.nan_to_num):
    fn = dist.MultivariateNormal(cells.loc, torch.eye(2))
    pyro.sample("x", fn if mask is None else fn.mask(mask), obs=value(x))


def joint_after(cells, x):
    joint(cells, x, ~x.nan_to_num().isnan().any(-1))


def joint_cells(cells, x):
    joint(cells, x, ~x.isnan())


def joint_of_nan(cells, x):
    joint(cells, x, ~x.isnan().any(-1), value=lambda x: x)


def joint_unmasked(cells, x):
    joint(cells, x, None)


def drawn(cells, x):
    """What lacks is a value of a latent, and scored as that; another site has a mask."""
    first = x[:, 0]
    pyro.sample("y", dist.Normal(0.0, 1.0).mask(~first.isnan()), obs=first.nan_to_num())
    pyro.sample("x", cells.to_event(1), obs=torch.where(x.isnan(), cells.loc, x))


@pytest.mark.parametrize(
    ("observe", "told"),
    [
        (
            after,
            r"site 'x' scores cells that are NaN in the data \(3 in 4 rows\).*before these do",
        ),
        (
            after_by_columns,
            r"site 'x0' scores.*\(1 in 4 rows\).*seen = ~x\.isnan.*the same of 'x1'",
        ),
        (inverted, r"site 'x' has an inverted mask.*\(3 in 4 rows\).*\.mask\(~x\.isnan"),
        (whole_rows, r"site 'x': its mask leaves out 3 rows of 4.*and 3 cells.*before \.to_event"),
        (
            joint_rows,
            r"site 'x': its mask leaves out 3 rows of 4.*each still counts.*: drop the rows$",
        ),
        (joint_after, r"site 'x' scores.*seen = ~x\.isnan\(\)\.any\(-1\), .* \.mask\(seen\)$"),
    ],
)
def test_a_mask_that_misses_the_holes_is_told_once(observe, told):
    program = masked(observe)
    with pytest.warns(UserWarning, match=told) as given:
        pv.elbo(program, HOLES)
    pv.elbo(program, HOLES[:3])  # a warning here would be an error
    assert len(given) == 1


@pytest.mark.parametrize("plate", ["rows", "batch", "x_plate"])
def test_holes_are_told_of_in_a_plate_of_any_name(plate):
    """Where a plate was not called "data", what stands for NaN was scored silently."""
    with pytest.warns(UserWarning, match=r"'x' scores cells that are NaN in the data \(3 in 4 r"):
        pv.elbo(masked(after, plate), HOLES)
    with pytest.warns(UserWarning, match=r"'x': its mask leaves out 3 rows of 4"):
        pv.elbo(masked(whole_rows, plate), HOLES)
    with pytest.raises(DataError, match=r"'x' has one density for all cells"):
        pv.elbo(masked(joint_unmasked, plate), HOLES)
    with pytest.raises(DataError, match=r"'x' observes NaN, which a mask does not take out"):
        pv.elbo(masked(joint_of_nan, plate), HOLES)
    pv.elbo(masked(by_columns, plate), HOLES)  # a warning here would be an error


@pytest.mark.parametrize("joint", [False, True])
def test_holes_are_told_of_in_no_plate(joint):
    """A mask of one density for all data would take out all."""

    def model(x):
        x = x.nan_to_num()
        cells = dist.MultivariateNormal(torch.zeros(4), torch.eye(4))
        if not joint:
            cells = dist.Normal(torch.zeros(4), 1.0).mask(~x.isnan()).to_event(1)
        pyro.sample("x", cells.mask(x.sum() > -9), obs=x)

    told = "drop these cells" if joint else r"seen = ~x\.isnan\(\).*before \.to_event"
    with pytest.warns(UserWarning, match=r"'x' scores .* \(2 in 4 rows\).*" + told):
        pv.elbo(pv.Program(model, lambda x: None), torch.tensor([0.3, math.nan, 1.0, math.nan]))


def test_a_mask_of_rows_of_cells_in_a_plate_is_told_of_with_one_of_cells():
    def model(x):
        seen = ~x.isnan().any(-1, keepdim=True)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("cells", 2, dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0).mask(seen), obs=x.nan_to_num())

    told = r"its mask leaves out 3 rows of 4.*put \.mask\(~x\.isnan\(\)\), which leaves"
    with pytest.warns(UserWarning, match=told):
        pv.elbo(pv.Program(model, lambda x: None), HOLES)


BLOCKS = torch.eye(4)[torch.tensor([[1, 0], [2, 3], [0, 0]])]
BLOCKS[0, 1, 2] = BLOCKS[2, :, 0] = math.nan
NORMALS = dist.MultivariateNormal(torch.zeros(2, 4), torch.eye(4))
HEAVY = dist.MultivariateStudentT(3.0, torch.zeros(2, 4), torch.eye(4))
NAMES = dist.OneHotCategorical(torch.ones(2, 4))


def first_name(x):
    return torch.where(x.isnan(), torch.eye(4)[0], x)


def of_blocks(fn, seen, after=False, value=first_name):
    """Two blocks a row, with one density each: ``seen`` has a mark for each block, or for a row."""

    def model(x):
        x, mask = value(x), seen(value(x) if after else x)
        with pyro.plate("rows", len(x)):
            whole = fn.expand([len(x), 2])
            if mask is not None:
                whole = whole.mask(mask)
            pyro.sample("x", whole.to_event(1), obs=x)

    return pv.Program(model, lambda x: None)


def by_blocks(x):
    return ~x.isnan().any(-1)


def by_rows_of_blocks(x):
    return by_blocks(x).all(-1, keepdim=True)


@pytest.mark.parametrize("fn", [NORMALS, HEAVY, NAMES])
def test_the_mask_of_densities_of_blocks_has_a_mark_for_each_block(fn):
    """One of a row had been named, which loses the blocks without a hole, and is told of."""
    seen = r"~x\.isnan\(\)\.any\(-1\)"
    with pytest.warns(
        UserWarning, match=r"'x' scores .* as seen = " + seen + ".*before .to_event$"
    ):
        pv.elbo(of_blocks(fn, by_blocks, after=True), BLOCKS)
    told = (
        r"leaves out 1 row of 3.* 4 cells .*: put \.mask\(" + seen + r"\) before \.to_event, which"
    )
    with pytest.warns(UserWarning, match=told):
        pv.elbo(of_blocks(fn, by_rows_of_blocks), BLOCKS)
    with pytest.raises(
        DataError, match="of each part of a row: .*" + seen + r"\) before \.to_event"
    ):
        pv.elbo(of_blocks(fn, lambda x: None), BLOCKS)
    with pytest.raises(DataError, match="'x' observes NaN.*" + seen + r"\) before \.to_event"):
        pv.elbo(of_blocks(fn, by_blocks, value=lambda x: x), BLOCKS)
    each = fn.log_prob(first_name(BLOCKS)).masked_fill(BLOCKS.isnan().any(-1), 0.0)
    found = pv.elbo(of_blocks(fn, by_blocks), BLOCKS)  # a warning here would be an error
    torch.testing.assert_close(found, each.sum(-1))


@pytest.mark.parametrize("build", [dist.Multinomial, BagOfWords])
def test_counts_of_one_density_are_not_told_to_be_masked(build):
    """No mask parts them: the advice was that of cells."""

    def model(x):
        with pyro.plate("rows", len(x)):
            logits = torch.zeros(len(x), 3)
            pyro.sample("x", build(total_count=2, logits=logits, validate_args=False), obs=x)

    words = torch.tensor([[2.0, 0.0, 0.0], [1.0, math.nan, 1.0]])
    told = r"^x: value nan in row 1.*; expected counts: site 'x' .*; drop such rows.*fill in the c"
    with pytest.raises(DataError, match=told) as error:
        pv.elbo(pv.Program(model, lambda x: None), words)
    assert ".mask(" not in str(error.value)


@pytest.mark.parametrize("plates", [0, 2])
def test_the_mask_of_blocks_is_right_in_no_plate_and_in_two(plates):
    """The last row has a hole in each block: its mask leaves out seen cells, and rightly."""

    def model(x):
        blocks = NORMALS.expand([len(x), 2]).mask(by_blocks(x))
        if plates:
            with pyro.plate("rows", len(x), dim=-2), pyro.plate("blocks", 2, dim=-1):
                pyro.sample("x", blocks, obs=x.nan_to_num())
        else:
            pyro.sample("x", blocks.to_event(2), obs=x.nan_to_num())

    kept = [1, 1, 2]
    each = NORMALS.log_prob(BLOCKS.nan_to_num()).masked_fill(~by_blocks(BLOCKS), 0.0)[kept]
    found = pv.elbo(pv.Program(model, lambda x: None), BLOCKS[kept])  # a warning would be an error
    torch.testing.assert_close(found, each.sum(-1) if plates else each.sum()[None])


def test_a_class_that_no_row_has_is_told_of_where_it_is_scored():
    """A run with the largest number of other columns in its place would fail."""

    def model(x):
        classes = torch.nn.functional.one_hot(x[:, 1].nan_to_num().long(), 3).float()
        with pyro.plate("rows", len(x)):
            seen = ~x[:, 0].isnan()
            pyro.sample("x", dist.Normal(0.0, 1.0).mask(seen), obs=x[:, 0].nan_to_num())
            pyro.sample("y", dist.OneHotCategorical(torch.ones(3)), obs=classes)

    rows = torch.tensor([[57.0, math.nan], [-31.0, math.nan]])
    with pytest.warns(UserWarning, match=r"'y' scores cells that are NaN"):
        pv.elbo(pv.Program(model, lambda x: None), rows)


@pytest.mark.parametrize("others", ["steps", "label", "none"])
def test_a_mask_leaves_out_one_density_of_a_row_that_others_keep(others):
    """It was told to drop the row, and with it what other steps or modalities see of it."""
    one = dist.MultivariateNormal(torch.zeros(4), torch.eye(4))
    steps = range(2) if others == "steps" else [1]

    def model(x, y):
        with pyro.plate("rows", len(x)):
            for k in steps:
                seen = ~x[:, k].isnan().any(-1)
                pyro.sample(f"x{k}", one.mask(seen), obs=x[:, k].nan_to_num())
            if others == "label":
                pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    rows = BLOCKS[:2], torch.tensor([0.3, -1.0])
    program = pv.Program(model, lambda x, y: None)
    if others == "none":
        with pytest.warns(UserWarning, match=r"'x1': its mask .* 1 row of 2.* 3 cells.*drop the r"):
            pv.elbo(program, rows)
        return
    each = one.log_prob(rows[0].nan_to_num()).masked_fill(rows[0].isnan().any(-1), 0.0)
    exact = each[:, list(steps)].sum(-1)
    if others == "label":
        exact = exact + dist.Normal(0.0, 1.0).log_prob(rows[1])
    torch.testing.assert_close(pv.elbo(program, rows), exact)  # a warning here would be an error


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


def by_columns(cells, x):
    for k, column in enumerate(x.unbind(1)):
        fn = dist.Normal(cells.loc[:, k], 1.0).mask(~column.isnan())
        pyro.sample(f"x{k}", fn, obs=column.nan_to_num())


def test_holes_that_are_taken_rightly_cost_one_run_once(monkeypatch):
    """Masks that are right for these very holes are not looked at again."""
    rows = []

    def look(self, batch, *rest, **options):
        rows.append(len(batch))
        return looked(self, batch, *rest, **options)

    looked = Runs.model_under
    monkeypatch.setattr(Runs, "model_under", look)
    program = masked(by_columns)
    pv.elbo(program, HOLES)
    assert rows == [4]
    pv.elbo(program, HOLES)
    pv.elbo(program, HOLES.clone())
    assert rows == [4]


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


def told_of(model, *batches, **options):
    """Return what is told of a program, and its last answer."""
    program = pv.Program(model, lambda *data: None, **options)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        answers = [pv.elbo(program, batch) for batch in batches]
    return [str(w.message) for w in given], answers[-1]


def cells_of(make, seen, *, steps=False):
    """Observe what a program makes of its data, at one site or at one for each step."""

    def model(x):
        kept, y = seen(x), make(x)
        with pyro.plate("rows", len(x)):
            for k in range(x.shape[1]) if steps else ():
                pyro.sample(f"y{k}", dist.Normal(0.0, 1.0).mask(kept[:, k]), obs=y[:, k])
            if not steps:
                cells = dist.Normal(torch.zeros(x.shape[1]), 1.0).mask(kept).to_event(1)
                pyro.sample("y", cells, obs=y)

    return model


def exact_seen(x):
    return ~x.isnan()


def all_seen(x):
    return torch.ones_like(x) > 0


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
WIDE = torch.tensor(
    [[0.3, 1.2, math.nan, 0.7], [math.nan, 0.8, 0.4, 1.9], [1.5, math.nan, 2.2, 0.6]]
).repeat(2, 1) * torch.tensor([1.0, 3.0, 10.0, 0.2])


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
    "by choice": lambda x, y: y.where(x.isnan(), x.where(y.isnan(), (x + y) / 2)),
    "weighed": lambda x, y: y.where(x.isnan(), x.where(y.isnan(), 0.8 * x + 0.2 * y)),
    "the larger": torch.fmax,
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


BESIDE = {
    "seen": ~WIDE.isnan(),
    "lacks": WIDE.isnan(),
    "seen as numbers": 1.0 - WIDE.isnan().float(),
    "no effect": torch.zeros_like(WIDE),
    "a treatment": torch.arange(len(WIDE)) % 2,
    "a baseline": WIDE.flip(1).nan_to_num(0.5),
}
MISSED = {
    "inverted": lambda x, y: in_one_event(x.nan_to_num(), x.isnan()),
    "after": lambda x, y: in_one_event(x.nan_to_num(), ~x.nan_to_num().isnan()),
    "of rows": lambda x, y: in_one_event(x.nan_to_num(), ~x.isnan().all(-1, keepdim=True)),
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


def refusing(x):
    if not bool(x.isnan().any()):
        raise KeyError("no hole")
    return x.nan_to_num()


def test_a_program_that_refuses_data_without_holes_is_told_of_what_it_scores():
    assert told_of(cells_of(refusing, exact_seen), HOLES, HOLES[:3])[0] == []
    (found,) = told_of(cells_of(refusing, all_seen), HOLES)[0]
    assert found.startswith("site 'y' scores cells that are NaN in the data (")


def test_sites_that_are_named_by_holes_are_told_of_what_they_score():
    def model(x):
        with pyro.plate("rows", len(x)):
            for k in range(2):
                name = f"part{k}" if bool(x[:, k].isnan().any()) else f"full{k}"
                kept = torch.ones(len(x)) > 0
                pyro.sample(name, dist.Normal(0.0, 1.0).mask(kept), obs=x[:, k].nan_to_num())

    assert "scores cells that are NaN" in told_of(model, HOLES)[0][0]


@pytest.mark.parametrize("labels", [[math.nan] * 4, [1.0, math.nan, 0.0, math.nan]])
def test_a_site_that_observes_nothing_ends_no_verb(labels):
    """A batch without a label stopped training with a raw error."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            cells = dist.Normal(torch.zeros(2), 1.0).mask(~x.isnan()).to_event(1)
            pyro.sample("x", cells, obs=x.nan_to_num())
        fair = torch.full((int((~y.isnan()).sum()),), 0.5)
        pyro.sample("y", dist.Bernoulli(fair).to_event(1), obs=y[~y.isnan()])

    assert told_of(model, (HOLES[:, :2], torch.tensor(labels)))[0] == []


def test_a_look_at_holes_that_fails_ends_no_verb_and_is_not_taken_for_ever(monkeypatch):
    looks = []

    def look(self, *rest):
        looks.append(rest)
        raise RuntimeError("a look")

    monkeypatch.setattr(holes.Holes, "_look", look)
    found, answer = told_of(
        cells_of(torch.nan_to_num, exact_seen), *[HOLES.roll(k, 0) for k in range(4)]
    )
    assert found == []
    assert answer.isfinite().all()
    assert len(looks) <= 3


@pytest.mark.parametrize("dim", [-1, -2])
def test_a_shared_number_in_a_plate_of_as_many_units_as_rows_ends_no_verb(dim):
    def model(x):
        with pyro.plate("features", len(x), dim=dim):
            pyro.sample("near", dist.Normal(torch.zeros(()), 1.0), obs=torch.zeros(()))
        cells_of(torch.nan_to_num, exact_seen)(x)

    found, answer = told_of(model, HOLES, plate="rows")
    assert found == []
    assert answer.isfinite().all()


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


def test_columns_that_a_mask_leaves_out_are_no_rows_where_there_are_as_many():
    """The first plate of as many units passed for the rows, whatever the program names."""

    def model(x):
        kept = ~x.isnan().any(0)
        with pyro.plate("cells", 3, dim=-2), pyro.plate("rows", len(x), dim=-1):
            kept = kept[:, None].expand(3, len(x))
            pyro.sample("x", dist.Normal(0.0, 1.0).mask(kept), obs=x.nan_to_num().T)

    rows = torch.tensor([[0.1, math.nan, 0.3], [0.5, 0.2, 0.4], [1.0, -1.0, 0.7]])
    assert told_of(model, rows, plate="rows")[0] == []


class FirstColumn:
    """A mask of the holes of the first column alone; of all, where `all_cells`."""

    all_cells = False

    def __call__(self, cells, x):
        seen = ~x.isnan()
        if not self.all_cells:
            seen[:, 1] = True
        pyro.sample("x", cells.mask(seen).to_event(1), obs=x.nan_to_num())


@pytest.mark.parametrize("fault", ["other holes", "another mask"])
def test_a_mask_that_has_been_right_is_told_of_where_it_is_wrong(fault):
    """What is right for the holes of one batch says nothing of others."""
    observe = FirstColumn()
    observe.all_cells = fault == "another mask"
    program = masked(observe)
    pv.elbo(program, HOLES if observe.all_cells else HOLES[1:3])
    observe.all_cells = False
    with pytest.warns(UserWarning, match=r"site 'x' scores .* \(1 in 2 rows\)"):
        pv.elbo(program, HOLES[2:])


def by_handler(cells, x):
    with pyro.poutine.mask(mask=~x.isnan()):
        pyro.sample("x", cells.to_event(1), obs=x.nan_to_num())


def event_first(cells, x):
    pyro.sample("x", cells.to_event(1).mask(~x.isnan()), obs=x.nan_to_num())


def with_nan(cells, x):
    pyro.sample("x", cells.mask(~x.isnan()).to_event(1), obs=x)


def through_a_network(cells, x):
    seen = dist.Normal(cells.loc + x[:, :1], 1.0).mask(~x.isnan())
    pyro.sample("x", seen.to_event(1), obs=x.nan_to_num())


@pytest.mark.parametrize(
    ("observe", "told"),
    [
        (by_handler, r"site 'x': got a mask of (.*), expected.*\(\d,\); .*\.mask\(m\)\.to_event"),
        (event_first, r"site 'x' of event_first: got a mask of .*\.mask\(m\)\.to_event\(1\)"),
        (joint_cells, r"site 'x' of joint: .*\(4,\); give one mark for each, as m\.all\(-1\): it"),
        (joint_of_nan, r"'x' observes NaN.*obs=x\.nan_to_num\(\) beside.*isnan\(\)\.any\(-1\)\)$"),
        (joint_unmasked, r"in row 0.*'x' has one density for all.*\.mask\(~x\.isnan\(\)\.any\("),
        (with_nan, r"x: value nan in row 0.*; site 'x' observes NaN.*obs=x\.nan_to_num"),
        (
            through_a_network,
            r"x: value nan in row 0.*NaN reaches .*test_holes\.py:\d+\), beside .*: write",
        ),
    ],
)
def test_what_is_wrong_about_a_mask_is_told(observe, told):
    """By the handler two rows of two cells fit by chance: each cell counted the whole row."""
    for rows in (HOLES, HOLES[:2]) if observe is by_handler else (HOLES,):
        with pytest.raises((DataError, ProgramError), match=told):
            pv.elbo(masked(observe), rows)


def without_event(cells, x):
    pyro.sample("x", cells.mask(~x.isnan()), obs=x.nan_to_num())


def of_three(cells, x):
    fn = dist.Normal(cells.loc[:, [0, 1, 1]], 1.0).to_event(1)
    pyro.sample("x", fn.mask(~x.isnan().all(-1)), obs=x.nan_to_num())


def outside(cells, x):
    fn = dist.Gamma(cells.loc.exp(), 1.0).mask(~x.isnan())
    pyro.sample("x", fn.to_event(1), obs=x.nan_to_num(1.0) - 5.0)


@pytest.mark.parametrize("observe", [without_event, of_three, outside])
def test_a_mistake_that_has_nothing_to_do_with_nan_is_told_as_without_nan(observe):
    """All of these were told to drop the rows, or to add the mask that they had."""
    told = []
    for x in (HOLES, HOLES.where(~HOLES.isnan(), HOLES[2])):
        with pytest.raises(DataError) as refused:
            pv.elbo(masked(observe), x)
        told.append(str(refused.value))
    assert told[0] == told[1]
    assert "nan" not in told[0]


def test_many_rows_with_holes_of_a_program_that_takes_no_part_of_them_are_taken():
    """NaN was looked for in parts of 8192 rows, on which such a program does not run."""
    x = torch.linspace(-1.0, 1.0, 8200).masked_fill(torch.arange(8200) % 3 == 0, math.nan)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(~x.isnan()), obs=x.nan_to_num())

    def guide(x):
        loc = pyro.param("loc", torch.zeros(8200))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    program = pv.Program(model, guide)
    run = pv.fit(program, x, epochs=1, batch_size=8200, progress=False)
    assert math.isfinite(run.history["loss"][0])
    assert pv.elbo(program, x).isfinite().all()
