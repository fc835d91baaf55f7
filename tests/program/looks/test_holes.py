"""What is told of holes: sites that score them, and masks that leave out more than them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from told_of_holes import HOLES, cells_of, exact_seen, masked, told_of

import pyro_vae as pv
from pyro_vae.distributions import BagOfWords
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.looks.quiet_runs import Runs
from pyro_vae.program.sites import holes


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


def test_holes_are_told_of_in_a_plate_of_any_name():
    """Where a plate was not called "data", what stands for NaN was scored silently."""
    plate = "x_plate"
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
