"""Tables of mixed columns: densities that sum to one, frames in and out, bad cells by name."""

import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.conditionals import Column
from pyro_vae.conditionals.column_kinds import KINDS, ColumnGroup
from pyro_vae.distributions import CensoredNormal, Columns
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models import TableVAE

NAMES = ("low", "mid", "high", "top")
EVERY = [(kind, name) for kind, names in KINDS.items() for name in names]


def group(kind, name):
    """Two columns of one distribution at random parameters: of four categories, and of three."""
    torch.manual_seed(2)
    censored, named = kind == "censored", kind in ("categorical", "ordinal")
    limits = ({"low": -1.0, "high": 2.0}, {"low": -1e6}) if censored else ({}, {})
    columns = [
        Column("a", kind, name, categories=NAMES if named else (), **limits[0]),
        Column("b", kind, name, categories=NAMES[:3] if named else (), scale=0.5, **limits[1]),
    ]
    made = ColumnGroup(name, [0, 1], columns).double()
    return made(0.7 * torch.randn(2 * made.width).double())


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[name for _, name in EVERY])
def test_each_column_is_a_distribution(kind, name):
    """Mass by sum, density by the trapezoid rule; its mean, where it has one, likewise."""
    found = group(kind, name)
    assert found.batch_shape == (2,)
    if kind in ("categorical", "ordinal"):
        mass = found.log_prob(torch.arange(4.0).double()[:, None].expand(4, 2)).exp()
        torch.testing.assert_close(mass.sum(0), torch.ones(2).double(), rtol=0, atol=1e-9)
        assert mass[3, 1] < 1e-12  # the second column has three categories
        return
    if kind == "count":
        x = torch.arange(4000.0).double()[:, None].expand(-1, 2)
        mass = found.log_prob(x).exp()
        torch.testing.assert_close(mass.sum(0), torch.ones(2).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close((mass * x).sum(0), found.mean, rtol=1e-4, atol=0)
        return
    if kind == "positive":
        logs = torch.linspace(-90, 12, 200_001).double()[:, None].expand(-1, 2)
        x, weight = logs.exp(), logs.exp()
    else:
        low, high = (-1.0, 2.0) if kind == "censored" else (-400.0, 400.0)
        x = torch.linspace(low, high, 400_001).double()[:, None].expand(-1, 2)
        weight = torch.ones_like(x)
    if kind == "censored":  # the limit of the second column is far out
        inside = CensoredNormal(found.loc, found.scale, found.low * math.inf, found.high * math.inf)
        total = torch.trapezoid(inside.log_prob(x).exp(), x, dim=0)[0]
        ends = found.log_prob(torch.tensor([[-1.0, 0.0], [2.0, 0.0]]).double())[:, 0].exp()
        assert (total + ends.sum()).item() == pytest.approx(1, abs=1e-8)
        first = torch.trapezoid(x * inside.log_prob(x).exp(), x, dim=0)[0]
        assert (first - ends[0] + 2 * ends[1]).item() == pytest.approx(found.mean[0].item(), 1e-6)
        torch.testing.assert_close(found.mean[1], found.loc[1])
        return
    density = found.log_prob(x).exp()
    path = x if kind == "real" else x.log()
    total = torch.trapezoid(density * weight, path, dim=0)
    torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=1e-5)
    first = torch.trapezoid(density * weight * x, path, dim=0)
    torch.testing.assert_close(first, found.mean, rtol=1e-3, atol=1e-3)


def test_ranks_have_the_masses_of_an_ordered_logit():
    """And its slopes, at a place for each of three rows."""
    made = ColumnGroup("ordered_logit", [0], [Column("a", "ordinal", categories=NAMES)]).double()
    place = torch.tensor([[-3.0], [0.2], [1.7]]).double().requires_grad_()
    widths = torch.nn.functional.softplus(made.steps + 0.5)[0]
    cuts = torch.cat([widths[:0].new_zeros(1), widths.cumsum(0)])
    theirs = dist.OrderedLogistic(place, (cuts - cuts.mean()).expand(3, 1, 3))
    rank = torch.tensor([[0.0], [2.0], [3.0]]).double()
    pairs = [each.log_prob(rank) for each in (made(place), theirs)]
    torch.testing.assert_close(*pairs)
    torch.testing.assert_close(
        *(torch.autograd.grad(each.sum(), [place, made.steps]) for each in pairs)
    )


def test_ranks_far_out_keep_their_mass_and_slope():
    """In float32 as in double precision, where a difference of two masses is 0 or rounds to one."""
    columns = [Column("a", "ordinal", categories=NAMES), Column("b", "ordinal", categories=(0, 1))]
    made = ColumnGroup("ordered_logit", [0, 1], columns)
    rank = torch.tensor([[0], [1], [2], [3]]).expand(4, 2).clamp(max=torch.tensor([3, 1]))
    found = []
    for dtype in (torch.float32, torch.float64):
        group, place = made.to(dtype), torch.tensor([[60.0, 40.0]], dtype=dtype).requires_grad_()
        mass = group(place.expand(4, 2)).log_prob(rank)
        found.append([mass.double(), *torch.autograd.grad(mass.sum(), [place, group.steps])])
    assert (found[0][0][0] < -40).all()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-6)
    assert made(torch.full((2,), 1e5).double()).probs[1].tolist() == [0, 1, 0, 0]
    with torch.no_grad():
        made.steps[0, 0] = -1e4  # two cut points meet
    mass = made.float()(torch.zeros(4, 2)).log_prob(rank)
    assert mass.isfinite().all() and mass[1, 0] < -80
    assert torch.autograd.grad(mass.sum(), made.steps)[0].isfinite().all()


def test_a_negative_binomial_is_a_poisson_of_a_gamma():
    """By quadrature over the rate; and the zero-inflated one without its gate."""
    found = group("count", "negative_binomial")
    logs = torch.linspace(-40, 8, 40_001).double()[:, None]
    shape, scale = found.total_count, found.logits.exp()
    x = torch.arange(6.0).double()
    for value in x:
        density = dist.Gamma(shape, 1 / scale).log_prob(logs.exp()) + logs
        both = (density + dist.Poisson(logs.exp()).log_prob(value)).exp()
        torch.testing.assert_close(
            torch.trapezoid(both, logs, dim=0), found.log_prob(value).exp(), rtol=1e-6, atol=1e-9
        )
    zinb = dist.ZeroInflatedNegativeBinomial(
        shape, logits=found.logits, gate_logits=-40.0 + 0 * shape
    )
    torch.testing.assert_close(zinb.log_prob(x[:, None]), found.log_prob(x[:, None]))


def frame(rows=60):
    """Two clusters, a dtype of each kind, no hole."""
    rng = np.random.default_rng(3)
    group = np.arange(rows) % 2
    return pd.DataFrame(
        {
            "height": 1.7e9 + 10 * group + rng.normal(size=rows),  # no float32 can tell these apart
            "visits": rng.poisson(1 + 4 * group),
            "income": np.exp(8 + group + 0.1 * rng.normal(size=rows)),
            "colour": np.where(group == 1, "red", "blue"),
            "grade": pd.Categorical.from_codes(group + 1, NAMES, ordered=True),
            "member": group == 1,
            "dose": np.clip(rng.normal(size=rows), -0.5, 0.5),
        }
    )


KINDS_OF = {
    "income": "positive",
    "dose": {"kind": "censored", "low": -0.5, "high": 0.5},
}


def holed(table):
    """The same with holes in each column, whole numbers in a type that knows them."""
    table = table.astype({"visits": "Int64", "member": "boolean"})
    for place, name in enumerate(table.columns):
        table.loc[place::9, name] = pd.NA if str(table[name].dtype) != "float64" else np.nan
    return table


@pytest.mark.filterwarnings("ignore:impute. .* are filled in by fewer")
def test_frames_go_in_and_come_out(tmp_path):
    whole = frame()
    torch.manual_seed(1)
    vae = TableVAE(whole, 2, (16,), kinds=KINDS_OF)
    assert [c.kind for c in vae.columns] == [
        *("real", "count", "positive", "categorical", "ordinal", "categorical", "censored")
    ]
    cells = vae.reads(whole)
    pd.testing.assert_frame_equal(vae.shows(cells), whole, rtol=1e-6)
    assert abs(cells[:, 0].mean()) < 1e-5 and abs(cells[:, 0].std(correction=0) - 1) < 1e-5
    run = pv.fit(vae, holed(whole), objective=pv.MIWAE(5), epochs=40, batch_size=20, lr=0.02)
    assert run.compiled == "graph"
    assert pv.reconstruct(vae, whole[8:3:-1]).index.tolist() == [8, 7, 6, 5, 4]
    for made in (pv.generate(vae, 5), pv.reconstruct(vae, whole[:5])):
        assert (made.dtypes == whole.dtypes).all() and len(made) == 5
    torch.manual_seed(2)
    one = pv.elbo(vae, whole)
    torch.manual_seed(2)
    torch.testing.assert_close(pv.elbo(vae, whole[whole.columns[::-1]]), one)  # by name
    table = holed(whole)
    found = pv.impute(vae, table, num_particles=50)
    assert not found.values.isna().any().any() and (found.values.dtypes == whole.dtypes).all()
    for name in whole.columns:
        there = ~table[name].isna()
        assert (found.values[name][there] == whole[name][there]).all()
    gone = table["colour"].isna()
    assert (found.values["colour"][gone] == whole["colour"][gone]).mean() > 0.8  # two clusters
    pv.save(vae, tmp_path)
    again = pv.load(tmp_path)
    torch.manual_seed(2)
    torch.testing.assert_close(pv.elbo(again, whole), one)
    assert (pv.generate(again, 3).dtypes == whole.dtypes).all()


def test_a_table_of_reals_is_the_vae_with_holes():
    """The density of each cell, and nothing for those that lack."""
    torch.manual_seed(4)
    columns = [Column("a", "real"), Column("b", "count", "poisson"), Column("c", "real")]
    vae = TableVAE(columns, 1, (4,)).double()  # whose groups are a with c, and b
    x = torch.tensor([[0.3, 2.0, math.nan], [math.nan, 1.0, 0.7], [math.nan] * 3]).double()
    z = torch.randn(3, 1).double()
    row = vae.decoder(z)
    assert isinstance(row, Columns) and row.mean.shape == (3, 3)
    (_, normal), (_, poisson) = row.parts
    known = x.nan_to_num()
    reals = normal.log_prob(known[:, [0, 2]])
    counts = poisson.log_prob(known[:, 1:2])
    exact = torch.stack([reals[0, 0] + counts[0, 0], reals[1, 1] + counts[1, 0], 0 * z[0, 0]])
    trace = pv.distributions.Incomplete(row, ~x.isnan()).log_prob(x)
    torch.testing.assert_close(trace, exact)
    whole = reals.sum(-1) + counts[:, 0]
    torch.testing.assert_close(row.log_prob(known), whole)


def test_a_limit_is_a_mass_in_every_precision(tmp_path):
    """Limits that no float32 holds: converted, or saved and loaded, as made in double precision."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"a": np.clip(rng.normal(2, 1, 50), 0.7, 3.1), "b": rng.normal(size=50)})
    kinds = {"a": {"kind": "censored", "low": 0.7, "high": 3.1}}
    torch.set_default_dtype(torch.float64)
    try:
        native = TableVAE(table, 1, (4,), kinds=kinds)
    finally:
        torch.set_default_dtype(torch.float32)
    pv.save(native, tmp_path)
    narrow = TableVAE(table, 1, (4,), kinds=kinds)
    narrow.load_state_dict(native.state_dict())
    z = torch.zeros(50, 1).double()
    exact = native.decoder(z).log_prob(native.reads(table))
    rounded = narrow.decoder(z.float()).log_prob(narrow.reads(table)).double()
    torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=1e-4)
    wide = narrow.double()
    wide.load_state_dict(native.state_dict())
    for same in (wide, pv.load(tmp_path)):
        assert torch.equal(same.decoder(z).log_prob(same.reads(table)), exact)


WHOLE = [("int8", "count"), ("uint8", "real"), ("UInt8", "real"), ("int64", "real")]
WHOLE += [("Sparse[int8, 0]", "real")]


@pytest.mark.parametrize(("dtype", "kind"), WHOLE)
def test_whole_numbers_stay_within_their_type(dtype, kind):
    """What is drawn beyond a type's ends is at them, and no number is cut that a table holds."""
    table = pd.DataFrame({"a": pd.Series([1, 2, 4, 5], dtype=dtype), "b": [0.0, 1.0, 2.0, 3.0]})
    vae = TableVAE(table, 1, (4,), kinds={"a": kind})
    ends = np.iinfo(dtype.lower().removeprefix("sparse[").removesuffix(", 0]"))
    shown = vae.shows(torch.tensor([[1e30, 0.0], [1.0, 0.0], [-1e30, 0.0]]).double())["a"]
    assert shown.dtype == table["a"].dtype and shown[2] == ends.min
    assert shown[0] >= ends.max * (1 - 1e-12)
    other = pd.DataFrame({"a": [2.0, np.nan, 300.0], "b": 0.0})
    if kind == "real":
        other.loc[0, "a"] = 2.5
    filled = pv.impute(vae, other, num_particles=3).values["a"]
    assert filled[0] == other["a"][0] and filled[2] == 300 and filled[1] == round(filled[1])


def test_numbers_beside_names_have_errors():
    """The stated error is the spread over 400 equal rows, to five errors; names have none."""
    torch.manual_seed(2)
    table = pd.DataFrame(
        {"a": ["x", "y"] * 3, "b": [0.0, 1, 2, 3, 4, 5], "c": [1.0, 0, 0, 1, 2, 2]}
    )
    vae = TableVAE(table, 1, (4,))
    with torch.no_grad():  # the guide is the prior: no weight rules
        for parameter in vae.encode.parameters():
            parameter.zero_()
    holes = pd.DataFrame({"a": [None] * 400, "b": [1.0] * 400, "c": [np.nan] * 400})
    torch.manual_seed(3)
    found = pv.impute(vae, holes, num_particles=200)
    assert found.stderr[:, 0].isnan().all() and (found.stderr[:, 1] == 0).all()
    spread = found.values["c"].std() / vae.columns[2].scale
    ratio = found.stderr[:, 2].square().mean().sqrt().item() / spread
    assert abs(ratio - 1) < 5 / 800**0.5


def test_numbers_of_an_object_column_are_numbers():
    """Whole ones from 0 are counts, others real; rows with names of their own are told of."""
    holes = [None, np.nan, pd.NA]
    table = pd.DataFrame(
        {
            "a": pd.Series([*holes, 3, np.int8(0), 2] * 4, dtype=object),
            "b": pd.Series([*holes, 3, -0.5, Decimal(1)] * 4, dtype=object),
            "c": pd.Series([*holes, 3, "0", 2] * 4, dtype=object),
            "d": pd.Series([*holes, True, False, True] * 4, dtype=object),
        }
    )
    vae = TableVAE(table, 1, (4,))
    assert [c.kind for c in vae.columns] == ["count", "real", "categorical", "categorical"]
    numbers = table[["a", "b"]].mask(table.isna(), np.nan).astype("float64")
    same = TableVAE(table.assign(**numbers), 1, kinds={"a": "count"})
    assert [(c.center, c.scale) for c in vae.columns] == [(c.center, c.scale) for c in same.columns]
    torch.testing.assert_close(vae.reads(table), same.reads(table), equal_nan=True)
    assert set(map(str, pv.generate(vae, 3).dtypes)) == {"object"}
    table = pd.DataFrame({"a": [f"{row / 7}" for row in range(25)], "b": np.arange(25.0)})
    with pytest.warns(UserWarning, match=r"column 'a': got 25 categories in 25 cells.*to_numeric"):
        TableVAE(table, 1)
    TableVAE(table, 1, kinds={"a": "categorical"})


def test_a_scale_is_that_of_the_cells_between_the_limits():
    """What stands for a cell beyond a limit says nothing of the others."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"a": np.clip(rng.normal(size=50), -1, None), "b": rng.normal(size=50)})
    kinds = {"a": {"kind": "censored", "low": -1.0}}
    marked = table.assign(a=table["a"].where(table["a"] > -1, -999.0))
    vaes = [TableVAE(each, 1, kinds=kinds) for each in (table, marked)]
    assert vaes[0].columns == vaes[1].columns
    torch.testing.assert_close(vaes[0].reads(table), vaes[1].reads(marked))
    with pytest.raises(DataError, match="column 'a': all observed cells are 5"):
        TableVAE(table, kinds={"a": {"kind": "censored", "low": 5.0}})


def test_positive_whole_numbers_are_drawn_from_one():
    table = pd.DataFrame({"a": [1, 2, 4, 90], "b": [0.0, 1.0, 2.0, 3.0]})
    vae = TableVAE(table, 1, (4,), kinds={"a": "positive"})
    shown = vae.shows(torch.tensor([[1e-9, 0.0], [1.0, 0.0]]))
    assert shown["a"].tolist() == [1, 5] and vae.reads(shown).isfinite().all()


def test_names_of_columns_may_be_numbers(tmp_path):
    """As those of a frame of an array; two that differ in their type alone are refused."""
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 2)))
    vae = TableVAE(table, 1, (4,))
    pv.save(vae, tmp_path)
    for program in (vae, pv.load(tmp_path)):
        assert pv.generate(program, 2).columns.tolist() == [0, 1]
    text = table.rename(columns=str)  # as a file has them
    torch.testing.assert_close(vae.reads(text), vae.reads(table))
    with pytest.raises(DataError, match="got two columns '1', expected each name once"):
        TableVAE([Column(1, "real"), Column("1", "real")])
    with pytest.raises(DataError, match="got two columns '1', expected each name once"):
        TableVAE(table.set_axis([1, True], axis=1))
    for wrong in (text.rename(columns={"1": 0}), text.rename(columns={"1": "0"})):
        for verb in (TableVAE, vae.reads):
            with pytest.raises(DataError, match="got two columns '0', expected each name once"):
                verb(wrong)


def test_names_of_columns_may_have_levels(tmp_path):
    levels = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 3)), columns=levels)
    vae = TableVAE(table, 1, (4,), kinds={("b", 1): "real"})
    pv.save(vae, tmp_path)
    for program in (vae, pv.load(tmp_path)):
        assert pv.generate(program, 2).columns.equals(levels)
        pd.testing.assert_frame_equal(program.shows(program.reads(table)), table, atol=1e-6)
    holed = table.mask(np.arange(27).reshape(9, 3) % 5 == 0)
    filled = pv.impute(vae, holed, num_particles=3).values
    assert filled.columns.equals(levels) and filled.notna().all(axis=None)


@pytest.mark.filterwarnings("ignore:impute. .* are filled in by fewer")
def test_what_is_filled_in_stands_in_the_order_of_the_frame():
    """Of a frame whose columns stand in another order than those of the table."""
    torch.manual_seed(3)
    vae, table = TableVAE(frame(30), 2, (4,), kinds=KINDS_OF), frame(30)[::-1]
    table["height"] = table["height"].where(table["height"] < 1.7e9 + 5)
    order = ["visits", "dose", "height", "grade", "member", "income", "colour"]
    torch.manual_seed(4)
    found, exact = pv.impute(vae, table[order], num_particles=5), table[order].isna().to_numpy()
    assert found.values.columns.tolist() == order and found.values.index.equals(table.index)
    assert (found.missing.numpy() == exact).all() and (found.stderr.numpy() > 0).sum() == 15
    assert (found.stderr.numpy()[~exact] == 0).all()
    for parts in ([table[order][:9], table[9:]], iter([table[order][:9], table[9:]])):
        torch.manual_seed(4)
        same = pv.impute(vae, parts, num_particles=5)
        assert torch.equal(same.missing, found.missing)
        assert same.values.drop(columns="height").equals(found.values.drop(columns="height"))
    assert pv.reconstruct(vae, iter([table[:9], table[9:]])).index.equals(table.index)
    assert isinstance(pv.reconstruct(vae, iter([vae.reads(table)])), torch.Tensor)


def test_numbers_of_arrow_stay_within_their_type():
    pytest.importorskip("pyarrow")
    types = ["int8[pyarrow]", "uint16[pyarrow]", "double[pyarrow]", "bool[pyarrow]"]
    table = pd.DataFrame(
        {"a": [1, 2, 1, 1], "b": [0, 9, 8, 4], "c": [0.5, 1, 2, 4], "d": [True] * 4}
    )
    table.loc[0, "d"] = False
    table = table.astype(dict(zip(table.columns, types, strict=True)))
    vae = TableVAE(table, 1, (4,), kinds={"a": "real"})
    assert [c.kind for c in vae.columns] == ["real", "count", "real", "categorical"]
    shown = vae.shows(torch.tensor([[1e30, 1e30, 0.0, 1.0], [-1e30, 1.0, 0.0, 0.0]]))
    assert (shown.dtypes == table.dtypes).all()
    assert shown["a"].tolist() == [127, -128] and shown["b"].tolist() == [65535, 1]
    assert shown["d"].tolist() == [True, False]


def test_frames_come_in_containers_and_as_subclasses():
    table = frame(20)
    vae = TableVAE(table, 2, (4,), kinds=KINDS_OF)
    kind = type("GeoDataFrame", (pd.DataFrame,), {})
    exact = vae.reads(table)
    for given in (kind(table), [table[:7], table[7:]]):
        assert torch.equal(vae.reads(given), exact)
    assert torch.equal(vae.reads((table,))[0], exact)
    assert torch.equal(vae.reads({"x": table})["x"], exact)
    made = pv.reconstruct(vae, kind(table))
    assert (made.dtypes == table.dtypes).all() and pv.elbo(vae, [table[:7], table[7:]]).shape == (
        20,
    )
    with pytest.raises(DataError, match="got ndarray, expected a tensor or a numeric array"):
        pv.elbo(vae, table.to_numpy())


WRONG = {
    "limits": ({"kind": "censored", "low": 4.0, "high": 0.0}, "low 4 and high 0, expected low"),
    "twice": ({"kind": "ordinal", "categories": [0, 1, 0]}, "expected each once"),
    "no limit": ("censored", "'a': a censored column without low and high"),
    "low": ({"kind": "count", "low": 0.0}, "'a': got low=0.0 of a count column"),
    "names": ({"kind": "real", "categories": [1, 2]}, r"'a': got categories=.* of a real column"),
    "ranks": ({"kind": "ordinal"}, r"column 'c' has ranks .* 'categories': \['hi', 'lo'\]"),
    "infinite": ({"kind": "ordinal", "categories": [0, 1, math.inf]}, "'a': got the category inf"),
    "option": ({"kind": "censored", "lo": 1.0}, "'a' with 'lo'; expected kind, distribution"),
    "intervals": ({"kind": "ordinal", "categories": [pd.Interval(0, 1), 1]}, r"astype\(str\)"),
    "text": ({"kind": "ordinal", "categories": "01"}, "expected a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_column_is_refused(case):
    kinds, said = WRONG[case]
    table = pd.DataFrame({"a": [0, 1, 1], "b": [0.5, 1, 2], "c": ["lo", "hi", "lo"]})
    with pytest.raises(ConfigError, match=said):
        TableVAE(table, 1, kinds={"c" if case == "ranks" else "a": kinds})


def test_categories_come_as_any_array():
    table = pd.DataFrame({"a": ["u", "v", "v"], "b": [0.5, 1, 2]})
    for names in (np.array(["v", "u"]), pd.Index(["v", "u"])):
        vae = TableVAE(table, 1, kinds={"a": {"kind": "ordinal", "categories": names}})
        assert vae.columns[0].categories == ("v", "u")


BAD = {
    "unseen category": ({"colour": "purple"}, r"column 'colour': got 'purple' in row 3, expected"),
    "infinite": ({"height": math.inf}, r"column 'height': got inf in row 3, expected finite"),
    "not positive": ({"income": 0.0}, r"column 'income': got 0 in row 3, expected positive"),
    "no whole number": ({"visits": 1.5}, r"column 'visits': got 1.5 in row 3, expected whole"),
    "text": ({"height": "tall"}, r"column 'height': got cells of type .*, expected numbers"),
    "no name": ({"colour": ["red"]}, r"column 'colour': got \['red'\] in row 3, expected one of"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_cell_is_named_with_its_column(kind):
    cells, said = BAD[kind]
    vae, table = TableVAE(frame(), 2, (4,), kinds=KINDS_OF), frame(6).astype(object)
    for name, value in cells.items():
        table.at[3, name] = value
    with pytest.raises(DataError, match=said):
        pv.elbo(vae, table)


def test_a_bad_table_is_named_with_its_column():
    vae, table = TableVAE(frame(), 2, (4,), kinds=KINDS_OF), frame()
    with pytest.raises(DataError, match="column 'dose' is missing"):
        pv.elbo(vae, table.drop(columns="dose"))
    with pytest.raises(DataError, match="column 'new' is new"):
        pv.elbo(vae, table.assign(new=1))
    with pytest.raises(DataError, match="column 'colour': got 7 in row 0, expected the place"):
        pv.elbo(vae, torch.full((2, 7), 7.0))
    for column, said in ((1.0, "all observed cells are"), (np.nan, "all cells are missing")):
        with pytest.raises(DataError, match=f"column 'height': {said}"):
            TableVAE(table.assign(height=column))
    with pytest.raises(ConfigError, match="no column 'weight'"):
        TableVAE(table, kinds={"weight": "real"})
    with pytest.raises(ConfigError, match="column 'height' of kind 'gauss'"):
        TableVAE(table, kinds={"height": "gauss"})
    with pytest.raises(ConfigError, match="distribution 'gamma' of a real column"):
        Column("a", "real", "gamma")
    days = pd.date_range("2020", periods=60)
    for cells in (days, days - days[0], days.to_period("D"), 1j * np.arange(60)):
        other = table.assign(height=cells)
        for asked in ({}, {"height": "real"}):
            with pytest.raises((DataError, ConfigError), match="column 'height': got"):
                TableVAE(other, kinds=asked)
        with pytest.raises(DataError, match=r"column 'height': got .*expected numbers"):
            pv.elbo(vae, other)
    with pytest.raises(
        DataError, match="column 'height': got cells of type list, expected numbers"
    ):
        TableVAE(table.assign(height=[[1], [2]] * 30))
    for cell in (np.datetime64(3, "ns"), np.timedelta64(2, "s"), np.complex64(1 + 2j), np.True_):
        said = "True beside 1" if cell is np.True_ else type(cell).__name__
        for column in ("height", "colour"):
            other = table.assign(**{column: pd.Series([cell, 1, 0, 3] * 15, dtype=object)})
            for asked in ({}, {column: "real"}, {column: "categorical"}):
                with pytest.raises(DataError, match=f"column '{column}': got {said}"):
                    TableVAE(other, kinds=asked)
            with pytest.raises(DataError, match=f"column '{column}': got {said}"):
                pv.elbo(vae, other)
    empty = table.assign(height=np.nan)  # a column that lacks in new data is no error
    assert pv.elbo(vae, empty).isfinite().all()


def test_a_limit_that_is_not_there_leaves_gradients_finite():
    loc, scale = torch.tensor(0.3, requires_grad=True), torch.tensor(0.8, requires_grad=True)
    limits = torch.tensor([-1.0, -math.inf]), torch.tensor([math.inf, 1.0])
    found = CensoredNormal(loc, scale, *limits)
    total = found.log_prob(torch.tensor([-1.0, 0.2])).sum() + found.mean.sum()
    assert all(g.isfinite() for g in torch.autograd.grad(total, (loc, scale)))


def test_a_category_that_is_taken_as_a_number_comes_back_as_numbers():
    frame = pd.DataFrame({"y": range(6), "a": pd.Series([3, 7, 1, 3, 7, 1]).astype("category")})
    vae = pv.models.TableVAE(frame, 1, (4,), kinds={"a": "count"})
    assert pv.generate(vae, 5)["a"].notna().all()
    assert pv.impute(vae, frame, num_particles=3).values["a"].tolist() == [3, 7, 1, 3, 7, 1]
