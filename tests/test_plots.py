"""Figures: what is on them, and that nothing global moves."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

import pyro_vae as pv
from pyro_vae import plots
from pyro_vae.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _nothing_global_moves():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("shape", [(7, 16), (7, 4, 4), (7, 1, 4, 4)])
def test_samples_show_each_image_once_in_true_grey(shape):
    images = torch.rand(shape, dtype=torch.float64)
    (axes,) = plots.samples(images).axes
    assert len(axes.images) == 7
    for drawn, image in zip(axes.images, images, strict=True):
        np.testing.assert_array_equal(drawn.get_array(), image.reshape(4, 4))
        assert drawn.get_clim() == (0, 1)
        assert drawn.get_cmap()(0.0)[:3] == (0, 0, 0) and drawn.get_cmap()(1.0)[:3] == (1, 1, 1)
    assert "7" in axes.get_title(loc="left") and not axes.axison


def test_images_do_not_overlap_and_lie_inside_the_axes():
    (axes,) = plots.samples(np.zeros((6, 4, 8)), columns=4).axes
    boxes = [image.get_extent() for image in axes.images]
    low, high = axes.get_xlim()
    for i, (x0, x1, y1, y0) in enumerate(boxes):
        assert low <= x0 < x1 <= high and 0 <= y0 < y1 <= axes.get_ylim()[0]
        assert (x1 - x0) / (y1 - y0) == pytest.approx(2)  # pixels are square
        for a0, a1, b1, b0 in boxes[:i]:
            assert x0 >= a1 or x1 <= a0 or y0 >= b1 or y1 <= b0


def test_colour_images_keep_their_colours():
    images = torch.rand(2, 3, 4, 5)
    (axes,) = plots.samples(images).axes
    np.testing.assert_allclose(axes.images[1].get_array(), images[1].permute(1, 2, 0))


def test_reconstructions_stand_below_their_originals():
    data, model = torch.rand(5, 4, 4), torch.rand(5, 4, 4)
    (axes,) = plots.reconstructions(data, model, columns=3).axes
    assert len(axes.images) == 10
    for above, below in zip(axes.images[::2], axes.images[1::2], strict=True):
        assert above.get_extent()[:2] == below.get_extent()[:2]
        assert above.get_extent()[2] < below.get_extent()[2]
    np.testing.assert_allclose(axes.images[3].get_array(), model[1])
    assert [text.get_text() for text in axes.texts] == ["data", "model"] * 2


def test_interpolations_are_one_row_each():
    (axes,) = plots.interpolations(torch.rand(3, 5, 1, 4, 4)).axes
    assert len(axes.images) == 15
    assert len({image.get_extent()[2] for image in axes.images}) == 3
    (axes,) = plots.interpolations(torch.zeros(61, 2, 2, 2)).axes
    assert len(axes.images) == 120 and "The first 60 of" in axes.get_title(loc="left")


def test_latent_map_of_two_dimensions_shows_the_codes_themselves():
    labels = torch.arange(30) % 3
    codes = torch.rand(30, 2, dtype=torch.float64) + 2 * labels[:, None]
    (axes,) = plots.latent_map(codes, labels).axes
    assert [c.get_label() for c in axes.collections] == ["0", "1", "2"]
    for label, points in enumerate(axes.collections):
        np.testing.assert_array_equal(points.get_offsets(), codes[labels == label])
    assert len({tuple(c.get_facecolor()[0]) for c in axes.collections}) == 3
    # Colour alone would not tell them apart: each name stands at the median of its points.
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    middles = [text.get_position() for text in axes.texts]
    np.testing.assert_allclose(middles, [np.median(codes[labels == i], axis=0) for i in range(3)])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")


def test_documents_of_the_same_topics_are_drawn_near_each_other():
    """Two kinds of documents apart: each point has its nearest neighbour among its own."""
    kind = torch.arange(24) % 2
    shares = torch.full((24, 3), 0.05) + 0.85 * torch.eye(3)[kind]
    shares = shares + 0.01 * torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    (axes,) = plots.documents(shares, kind).axes
    points = torch.cat([torch.tensor(each.get_offsets()) for each in axes.collections])
    apart = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert ((apart.argmin(1) < 12) == (torch.arange(24) < 12)).all() and points.shape == (24, 2)
    for wrong, labels in ((shares[:4], None), (-shares, None), (shares, kind[:3])):
        with pytest.raises(DataError, match=r"expected \("):
            plots.documents(wrong, labels)


def test_latent_map_of_more_is_their_principal_components_and_says_so():
    torch.manual_seed(0)
    codes = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.1, 0.2])
    (axes,) = plots.latent_map(codes).axes
    points = torch.as_tensor(np.asarray(axes.collections[0].get_offsets()))
    values = torch.linalg.eigvalsh(codes.T.cov())
    torch.testing.assert_close(points.T.cov(), torch.diag(values.flip(0)[:2]))
    share = 100 * values[-1] / values.sum()
    assert axes.get_xlabel() == f"principal component 1 of 4 latents ({share:.0f} %)"
    assert axes.get_legend() is None


@pytest.mark.parametrize(("numbers", "unknown"), [(torch.rand(60), 7), (torch.arange(60), 0)])
def test_numbers_too_many_for_names_are_shades_with_a_bar(numbers, unknown):
    codes = torch.rand(60, 2, dtype=torch.float64)
    numbers = numbers.where(torch.arange(60) >= unknown, torch.nan) if unknown else numbers
    axes, bar = plots.latent_map(codes, numbers).axes
    *grey, shades = axes.collections
    np.testing.assert_array_equal(shades.get_array(), numbers[unknown:])
    assert bar.get_ylabel() == "label" and shades.norm.vmax == numbers[unknown:].max()
    assert [each.get_label() for each in grey] == ["not known"] * bool(unknown)
    assert all(len(each.get_offsets()) == unknown for each in grey)


def test_few_numbers_are_classes_and_nan_is_one_that_is_not_known():
    labels = torch.tensor([0.0, 1.0, 2.0, torch.nan] * 6)
    (axes,) = plots.latent_map(torch.rand(24, 2), labels).axes
    names = [each.get_label() for each in axes.collections]
    assert names == ["0", "1", "2", "not known"]
    assert [len(each.get_offsets()) for each in axes.collections] == [6] * 4
    assert [text.get_text() for text in axes.texts] == names[:3]
    (axes,) = plots.latent_map(torch.rand(6, 2), np.array(["b", None, 3] * 2, dtype=object)).axes
    assert [each.get_label() for each in axes.collections] == ["3", "b", "not known"]


@pytest.mark.parametrize("classes", [1, 10, 17])
def test_each_label_has_its_own_colour(classes):
    labels = np.arange(classes).repeat(2)
    (axes,) = plots.latent_map(np.random.default_rng(0).normal(size=(2 * classes, 2)), labels).axes
    assert len({tuple(c.get_facecolor()[0]) for c in axes.collections}) == classes


def _history(beta):
    epoch = np.arange(1.0, 5.0)
    elbo = np.array([-9.0, -5.0, -4.0, -4.5])
    return {"epoch": epoch, "elbo": elbo, "valid_elbo": elbo - 1, "loss": -elbo, "beta": beta}


def test_curves_have_units_and_mark_the_best_epoch():
    left, right = plots.curves(_history(np.ones(4))).axes
    assert left.get_ylabel() == "ELBO (nats per datum)"
    assert right.get_ylabel() == "loss (nats per datum)"
    training, validation, best = left.lines
    assert [training.get_label(), validation.get_label()] == ["training", "validation"]
    assert (best.get_xdata(), best.get_ydata()) == ([3.0], [-5.0])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [9, 5, 4, 4.5])


def test_the_mark_is_on_the_epoch_that_was_kept():
    """By the objective's own bound the first epoch is the best, by the ELBO the third."""
    history = _history(np.ones(4))
    own = history | {"valid_bound": np.array([-1.0, -2.0, -3.0, -4.0])}
    run = pv.Run(None, history, 4, 4, torch.device("cpu"))
    for given, epoch, word in ((history, 3, "best"), (own, 1, "kept"), (run, 4, "kept")):
        mark = plots.curves(given).axes[0].lines[-1]
        assert (mark.get_xdata(), mark.get_ydata()) == ([epoch], [history["valid_elbo"][epoch - 1]])
        assert mark.get_label().startswith(word)


def test_beta_has_an_axis_only_where_it_varies():
    assert len(plots.curves(_history(np.full(4, 0.5))).axes) == 2
    *_, twin = plots.curves(_history(np.array([0.0, 0.5, 1.0, 1.0]))).axes
    assert twin.get_ylabel() == "KL weight β"
    np.testing.assert_array_equal(twin.lines[0].get_ydata(), [0, 0.5, 1, 1])
    sites = {f"beta[{name}]": np.array([0.0, 1.0, 1.0, end]) for name, end in (("a", 0), ("b", 1))}
    *_, twin = plots.curves(_history(np.ones(4)) | sites).axes
    assert [line.get_label() for line in twin.lines] == ["beta[a]", "beta[b]"]
    assert [text.get_text() for text in twin.get_legend().texts] == ["beta[a]", "beta[b]"]


def test_curves_of_one_epoch_are_visible():
    left, _ = plots.curves({"epoch": [1.0], "elbo": [-3.0], "loss": [3.0]}).axes
    assert left.lines[0].get_marker() == "o"
    assert _ticks(left) == [1]


def _run(elbo):
    epoch = np.arange(1.0, len(elbo) + 1)
    return {"epoch": epoch, "elbo": elbo, "valid_elbo": elbo - 20, "loss": -elbo}


def _diagnosis(values, **more):
    kl = {name: float(np.sum(value)) for name, value in values.items()}
    shares = {name: [1, 0, 3] for name in values}
    more.setdefault("verdict", "Alive.")
    return SimpleNamespace(kl=kl, unit_kl=values, variance=values, histogram=shares, **more)


def _gaps(scale):
    parts = scale * np.random.default_rng(0).gamma(2.0, size=(2, 50))
    return SimpleNamespace(approximation=parts[0], amortisation=parts[1])


_LONG = "a_rather_long_name_of_a_site_{}".format
_GRID = np.linspace(-3.0, 3.0, 40)
_FALLING = np.linspace(1.0, 0.0, 30)
CROWDED = {
    "one epoch": lambda: plots.curves(_run(np.array([-9.0]))),
    "an ELBO that falls": lambda: plots.curves(
        _run(-6e6 - np.arange(30.0) ** 2), title="A long title of this run " * 4
    ),
    "long names": lambda: plots.diagnosis(
        _diagnosis({_LONG(k): _FALLING for k in range(5)}, verdict=f"{_LONG('and others')} " * 3)
    ),
    "many sites and globals": lambda: plots.diagnosis(
        _diagnosis(
            {_LONG(k): np.random.default_rng(k).normal(size=9) for k in range(40)},
            global_kl={_LONG(k): 3.0 + k for k in range(20)},
            global_kl_stderr={_LONG(k): 0.4 for k in range(20)},
        )
    ),
    "a monitor": lambda: plots.collapse_curves(
        {"epoch": np.arange(1, 31), "kl": _FALLING, "marginal_kl": 1 - _FALLING}
        | {f"active_units[{_LONG(k)}]": 9 * _FALLING for k in (1, 2)}
    ),
    "classes in one place": lambda: plots.latent_map(
        np.random.default_rng(0).normal(size=(200, 1)), np.arange(200) % 10, title="Codes " * 20
    ),
    "names that mean something to matplotlib": lambda: plots.latent_map(
        np.random.default_rng(0).normal(size=(60, 2)), np.array(["_a", "$$", "$b$"] * 20)
    ),
    "one flat image": lambda: plots.reconstructions(np.zeros((1, 4, 32)), np.zeros((1, 4, 32))),
    "large gaps": lambda: plots.gaps({"a": _gaps(1e5), _LONG(1): _gaps(1e4)}),
    "gaps below zero": lambda: plots.gaps(_gaps(-0.01)),
    "even topics": lambda: plots.topic_words(
        np.full((2, 20000), 5e-5), ["$$", *map(str, range(19999))]
    ),
    "one word": lambda: plots.topic_words(np.ones((3, 1))),
    "far from zero": lambda: plots.posterior(
        -np.add.outer(_GRID**2, _GRID**2), (1e-4 * _GRID, 1e4 + 1e-4 * _GRID), titles=[_LONG(9)]
    ),
    "steps": lambda: plots.step_kl({"up": _FALLING, "down": 1 - _FALLING}),
}


@pytest.mark.parametrize("name", CROWDED)
def test_no_words_lie_over_each_other_or_over_what_is_drawn(name):
    figure = CROWDED[name]()
    texts = drawn_texts(figure)
    for text, box in texts:
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, f"{text!r} is cut"
    for (one, box), (other, second) in combinations(texts, 2):
        assert not meet(box, second), f"{one!r} lies over {other!r}"
    named = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for box in (each.get_window_extent() for each in named if each is not None):
        assert not any(meet(box, axes.bbox) for axes in figure.axes)


# Of linear RGB, as an eye without the cones for green sees it (Machado et al., 2009).
_DEUTERANOPIA = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])


def lightness_and_hues(colour):
    """Return CIELAB coordinates of a colour as such an eye sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb > 0.04, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    seen = (_DEUTERANOPIA @ linear).clip(0, 1)
    to_xyz = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]]
    x, y, z = np.cbrt(np.maximum(to_xyz @ seen, 1e-3))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _dashes(line):
    return (line.get_linestyle(), line.get_marker())


SEVERAL = {  # what is drawn, as (colour, shape)
    "sites": lambda: [
        (line.get_color(), _dashes(line))
        for line in plots.diagnosis(_diagnosis({f"z{k}": _FALLING[:9] for k in range(6)}))
        .axes[0]
        .lines[:6]
    ],
    "bins": lambda: [
        (patch.get_edgecolor(), patch.get_linestyle())
        for patch in plots.diagnosis(_diagnosis({f"z{k}": _FALLING[:9] for k in range(4)}))
        .axes[2]
        .patches
    ],
    "steps": lambda: [
        (line.get_color(), _dashes(line))
        for line in plots.step_kl({str(k): [1.0, 2.0] for k in range(10)}).axes[0].lines
    ],
    "a monitor": lambda: [
        (line.get_color(), _dashes(line)) for line in CROWDED["a monitor"]().axes[0].lines
    ],
    "curves": lambda: [
        (line.get_color(), _dashes(line))
        for line in plots.curves(_run(_FALLING) | {"valid_bound": _FALLING}).axes[0].lines
    ],
    "ellipses": lambda: [
        (line.get_color(), _dashes(line))
        for line in plots.posterior(
            -np.add.outer(_GRID**2, _GRID**2),
            (_GRID, _GRID),
            gaussians={str(k): (np.zeros(2), np.eye(2)) for k in range(4)},
        )
        .axes[0]
        .lines
    ],
    "gaps": lambda: [
        (dots.get_facecolor()[0], dots.get_paths()[0].vertices.shape)
        for dots in plots.gaps({str(k): _gaps(1.0) for k in range(5)}).axes[1].collections
    ],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_no_two_differ_by_red_and_green_alone(name):
    several = SEVERAL[name]()
    assert len(several) > 1
    for (one, shape), (other, second) in combinations(several, 2):
        apart = np.linalg.norm(lightness_and_hues(one) - lightness_and_hues(other))
        assert apart > 25 or shape != second, f"{one} and {other} are {apart:.0f} apart"


def test_every_epoch_is_on_the_axis_or_counted():
    """The first two of forty lie a thousand times as far from the rest as these from each other."""
    elbo = np.concatenate([[-9e5, -5e5], np.linspace(-600.0, -100.0, 38)])
    early, smooth = (plots.curves(_run(each)) for each in (elbo, np.linspace(-600.0, -100.0, 40)))
    for figure, outside in ((early, 2), (smooth, 0)):
        for axes in figure.axes:
            low, high = axes.get_ylim()
            far = [(y < low) | (y > high) for y in (line.get_ydata() for line in axes.lines[:2])]
            assert np.any(far, 0).sum() == outside
            assert axes.get_xlabel().startswith(f"epoch ({outside} of" if outside else "epoch")
            assert min(_ticks(axes)) >= 1  # there is no epoch 0


def test_curves_are_panels_of_what_there_is():
    """An ELBO of some epochs is a line through these, and one of none is said to be none."""
    some = np.where(np.arange(9) % 4 == 3, -1.0, np.nan)
    (axes,) = plots.curves({"epoch": np.arange(1.0, 10), "valid_elbo": some}).axes
    assert axes.lines[0].get_xdata().tolist() == [4, 8]
    (axes,) = plots.curves({"epoch": [1.0], "elbo": [np.nan]}).axes
    assert [text.get_text() for text in axes.texts] == ["no finite number"]


def test_gaps_of_any_size_are_told_to_three_digits():
    for scale, told in ((1.0, "1.88 + 2.02 = 3.90"), (-1e-3, "−0.00188 − 0.00202 = −0.00390")):
        assert [text.get_text() for text in plots.gaps(_gaps(scale)).axes[0].texts] == [told]


def test_negative_and_zero_kl_stand_where_they_are():
    values = np.array([2.0, 0.3, 0.0, -0.004, -0.2])
    panels = plots.diagnosis(_diagnosis({"z": values})).axes[:2]
    many = plots.diagnosis(_diagnosis({f"z_{k}": values for k in range(9)})).axes[:2]
    for axes, end in zip([*panels, *many], (values, values, values[[0]], values[[0]]), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata()[: len(end)], end)
        low, high = axes.get_ylim()
        assert low < -0.2 and high > 2.0 and {-0.1, 0.0, 1.0} <= set(axes.get_yticks())


def test_latents_without_variances_have_the_panel_of_kl_alone():
    kinds = {"y": [0.4], "z": [0.1, 0.2]}
    found = _diagnosis(kinds)
    found.unit_kl, found.variance, found.histogram = {"z": kinds["z"]}, {}, {}
    (axes,) = plots.diagnosis(found).axes
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[0.4], [0.2, 0.1]]


def test_the_kl_of_one_global_is_a_bar_from_zero_with_its_number():
    one = _diagnosis({"z": np.ones(2)}, global_kl={"w": 3.0}, global_kl_stderr={"w": np.nan})
    axes = plots.diagnosis(one).axes[3]
    (bar,) = axes.patches
    assert (bar.get_x(), bar.get_width()) == (0.0, 3.0) and axes.get_xlim()[0] <= 0
    assert [text.get_text() for text in axes.texts] == ["3.00"]


def _ticks(axes):
    low, high = axes.get_xlim()
    return [tick for tick in axes.get_xticks() if low <= tick <= high]


@pytest.mark.parametrize(("units", "ticks"), [(1, [1]), (2, [1, 2]), (13, None)])
def test_few_units_of_a_diagnosis_are_points_at_whole_numbers(units, ticks):
    values = {"z": torch.linspace(0.02, 0.09, units)}
    found = SimpleNamespace(
        kl={"z": 1.0}, unit_kl=values, variance=values, histogram={"z": [1, 2]}, verdict="Alive."
    )
    *panels, bins = plots.diagnosis(found).axes
    assert bins.get_xticklabels()[-1].get_text() == "1.2+"  # the last bin has all beyond
    for axes in panels:
        assert axes.lines[0].get_linestyle() == ("-" if units > 12 else "None")
        assert _ticks(axes) == ticks or (units == 13 and all(t % 1 == 0 for t in _ticks(axes)))
        np.testing.assert_allclose(axes.lines[0].get_ydata(), values["z"].flip(0))
        low, high = axes.get_ylim()
        assert low < 0.01 and high >= 1.0  # so that a tick has a number


@pytest.mark.parametrize(("sites", "units"), [(7, 3), (200, 3), (200, 1)])
def test_many_sites_of_a_diagnosis_stand_side_by_side(sites, units):
    """One of them is discrete: it has a KL, and no units."""
    values = {f"z_{k}": torch.linspace(0.02, 0.09, units) + k for k in range(1, sites)}
    kl = dict.fromkeys([*values, "y"], 1.0)
    found = SimpleNamespace(
        kl=kl,
        unit_kl=values,
        variance=values,
        histogram={name: [1, 0, 3] for name in values},
        verdict="Alive.",
    )
    figure = plots.diagnosis(found)
    left, middle, right, _ = figure.axes
    for axes, last in ((left, 1.0), (middle, np.nan)):
        heights = axes.lines[0].get_ydata()
        largest = [value.max() for value in values.values()]
        np.testing.assert_allclose(heights, [*largest, last], rtol=1e-6)
        assert len(axes.lines) == (4 if units > 1 else 2)  # and the threshold
    for axes in (left, middle, right):
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names[0] == "z_1" and 4 <= len(names) <= 5
        assert len(set(np.diff(axes.get_xticks()))) == 1
    shares = right.collections[0].get_array()
    assert shares.shape == (3, sites) and shares[2, 0] == 0.75 and shares.mask[:, -1].all()
    figure.canvas.draw()


def test_a_run_is_drawn_as_its_history():
    run = pv.Run(None, _history(np.ones(4)), 3, 4, torch.device("cpu"))
    for figure in (plots.curves(run), run.plot()):
        np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [-9, -5, -4, -4.5])
    assert figure.axes[0].get_title(loc="left") == "Evidence lower bound"
    exact = replace(run, without_latents=True).plot().axes[0]
    assert (exact.get_title(loc="left"), exact.get_ylabel()[:8]) == ("Log-likelihood", "log p(x)")
    assert len(exact.lines) == len(figure.axes[0].lines)
    with pytest.raises(ConfigError, match=r"history: got .*, expected a dict"):
        plots.curves(7)


def test_the_public_names_alone_are_listed():
    for module in (plots, pv):
        assert dir(module) == sorted(module.__all__)


_PROGRAM = pv.models.VAE(4, 1, (2,))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.samples(_PROGRAM), r"a program \(VAE\), .* pv.generate returns"),
        (lambda: plots.reconstructions(_PROGRAM, 1), r"a program .* pv.reconstruct, .* returns"),
        (lambda: plots.interpolations(_PROGRAM), r"a program .* pv.interpolate returns"),
        (lambda: plots.latent_map(_PROGRAM, 1), r"a program .* pv.encode returns"),
        (lambda: plots.curves({"epoch": _PROGRAM}), r"epoch: got a program .* expected numbers"),
        (lambda: plots.samples(torch.zeros(3, 7)), r"\(3, 7\)"),
        (lambda: plots.samples(torch.zeros(0, 4, 4)), "at least one"),
        (lambda: plots.samples(torch.full((1, 2, 2), torch.nan)), "NaN"),
        (lambda: plots.samples(torch.zeros(2, 2, 4, 4)), "expected"),
        (lambda: plots.reconstructions(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4)), "pairs"),
        (lambda: plots.interpolations(torch.zeros(2, 16)), "steps"),
        (lambda: plots.latent_map(torch.zeros(4)), "expected"),
        (lambda: plots.latent_map(torch.zeros(4, 2), torch.zeros(3)), "labels"),
        (lambda: plots.piano_rolls({}), "at least one"),
        (lambda: plots.piano_rolls({"a": [[2.0]]}), r"a: got values beyond \[0, 1\]"),
        (lambda: plots.piano_rolls({"a": [[1]], "b": [[1, 0]]}), r"\[1, 2\] keys"),
        (lambda: plots.step_kl({"a": [[1.0]]}), r"a: got shape \(1, 1\)"),
        (lambda: plots.curves({}), "no columns"),
        (lambda: plots.curves({"epoch": [1.0], "lr": [0.1]}), "elbo"),
    ],
)
def test_what_cannot_be_drawn_is_a_clear_error(draw, message):
    with pytest.raises(DataError, match=message):
        draw()


def test_save_writes_whole_files_of_the_format_named(tmp_path):
    figure = plots.samples(torch.rand(4, 4, 4))
    path = plots.save(figure, tmp_path / "new" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plots.save(figure, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ConfigError, match="unknown format 'jpog'"):
        plots.save(figure, tmp_path / "a.jpog")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "new"]


@pytest.mark.slow
def test_cures_are_ranked_with_their_kl() -> None:
    arms = {"made": {"plain": (0.0, 100.0), "beta": (0.1, 100.1), "skip": (20.0, 90.0)}}
    (axes,) = plots.cures(arms).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["skip", "plain", "beta"]
    assert [text.get_text() for text in axes.texts] == ["KL 20.0", "KL 0.0", "KL 0.1"]
    assert axes.yaxis_inverted()


def drawn_texts(figure):
    """Draw, and return each text that is seen with its box; of the ticks those within the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure).draw()
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not axes.axison or tick not in axis._update_ticks()
        for label in (tick.label1, tick.label2)
    }
    texts = [each for each in figure.findobj(Text) if id(each) not in hidden]
    texts = [each for each in texts if each.get_visible() and each.get_text().strip()]
    return [(each.get_text(), each.get_window_extent()) for each in texts]


def meet(one, other):
    """Return whether two boxes have more than their borders in common."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    return wide > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def widths_in_inches(figure):
    """Draw, and return the widths of the panels and of their titles, and the ends of all texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    boxes = [axes.get_window_extent() for axes in figure.axes if axes.axison]
    titles = [axes._left_title.get_window_extent() for axes in figure.axes if axes.axison]
    extents = [*titles, *([figure._suptitle.get_window_extent()] if figure._suptitle else [])]
    return [np.array([box.width for box in each]) / figure.dpi for each in (boxes, titles)], [
        box.x1 / figure.dpi for box in extents
    ]


@pytest.mark.parametrize("count", [1, 6])
def test_long_words_leave_room_for_bars_and_titles(count):
    names = ["internationalization", "electroencephalograph", "a" * 60, "the"]
    figure = plots.topic_words(torch.full((count, 4), 0.25), names)
    assert figure.axes[0].get_yticklabels()[2].get_text() == "a" * 15 + "…" + "a" * 8
    (panels, _), ends = widths_in_inches(figure)
    assert panels.min() > 0.9 and max(ends) <= figure.get_figwidth()


def test_names_of_short_rolls_stand_over_their_own():
    names = ("a chorale", *(f"reconstruction {i}" for i in range(8)))
    rolls = {name: torch.zeros(9 if i else 129, 88) for i, name in enumerate(names)}
    figure = plots.piano_rolls(rolls)
    (panels, titles), _ = widths_in_inches(figure)
    assert (titles <= panels + 0.05).all()
    ticks = [tick for axes in figure.axes for tick in axes.get_xticks()]
    assert all(tick == int(tick) for tick in ticks)


def test_piano_rolls_show_the_keys_that_are_struck_and_name_each_c():
    data, model = torch.zeros(6, 88), torch.full((4, 88), 0.05)
    data[2, 39] = data[5, 43] = 1  # C4 is the 39th key above the lowest A
    model[1, 37] = 0.5
    left, right = plots.piano_rolls({"data": data, "model": model}).axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["data", "model"]
    np.testing.assert_allclose(left.images[0].get_array(), data[:, 37:44].T)
    np.testing.assert_allclose(right.images[0].get_array(), model[:, 37:44].T)
    assert left.images[0].get_extent() == [0.5, 6.5, 36.5, 43.5]
    assert [label.get_text() for label in left.get_yticklabels()] == ["C4"]
    assert left.get_yticks().tolist() == [39]
    (alone,) = plots.piano_rolls({"a": data[:, 40:41] + 1}, lowest_key=61).axes
    assert [label.get_text() for label in alone.get_yticklabels()] == ["C♯4"]  # no C is heard
    assert left.images[0].origin == "lower" and left.images[0].get_cmap()(0.0)[0] == 1


def test_the_kl_of_steps_is_a_line_for_each_model():
    (axes,) = plots.step_kl({"smoothing": [0.5, 0.2], "filtering": torch.ones(3)}).axes
    assert [line.get_label() for line in axes.lines] == ["smoothing", "filtering"]
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.2]]
    assert axes.get_ylabel() == "KL (nats)" and axes.get_ylim()[0] == 0
    line = plots.step_kl({"one step": [0.5]}).axes[0].lines[0]
    assert line.get_marker() == "o"  # of one point there is no line
    (axes,) = plots.step_kl({"_hidden": [0.5, 1.0], "b": [1.0, 2.0]}).axes
    assert [text.get_text()[-6:] for text in axes.get_legend().texts] == ["hidden", "b"]


def test_words_of_topics_stand_by_their_probability():
    topics = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    left, right = plots.topic_words(topics, ["a", "b", "c"], num_words=2).axes
    for axes, words, shares in ((left, ["b", "c"], [0.6, 0.3]), (right, ["a", "c"], [0.5, 0.3])):
        assert [label.get_text() for label in axes.get_yticklabels()] == words
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(shares)
        assert axes.yaxis_inverted() and axes.get_xlim() == left.get_xlim()
    with pytest.raises(DataError, match="vocabulary: got 2 words, expected 3"):
        plots.topic_words(topics, ["a", "b"])
    with pytest.raises(DataError, match=r"topics have shape \(2,\)"):
        plots.topic_words(topics[0, :2])
