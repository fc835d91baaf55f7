"""The figure of a posterior of two units: its regions, ellipses and draws are where they belong."""

import matplotlib
import numpy as np
import pytest
import torch

from pyro_vae import plots
from pyro_vae.errors import DataError
from pyro_vae.plots.posterior_panels import levels

AXIS = torch.linspace(-6, 6, 241, dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _nothing_global_moves():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def _surface(covariance=COVARIANCE):
    points = torch.cartesian_prod(AXIS, AXIS)
    normal = torch.distributions.MultivariateNormal(MEAN, covariance)
    return normal.log_prob(points).reshape(len(AXIS), len(AXIS))


def test_regions_hold_the_mass_that_they_say():
    # Of a Gaussian in two dimensions: the region of mass m ends where p = (1 - m) times its top.
    surface = _surface()
    expected = surface.max().item() + np.log([0.01, 0.1, 0.5])
    np.testing.assert_allclose(levels(surface.numpy()), expected, atol=0.02)


def test_the_first_axis_of_the_grid_is_drawn_to_the_right():
    figure = plots.posterior(_surface(torch.diag(torch.tensor([4.0, 0.01]).double())), (AXIS, AXIS))
    (axes,) = figure.axes
    (filled,) = axes.collections
    vertices = np.concatenate([path.vertices for path in filled.get_paths()])
    width, height = np.ptp(vertices, axis=0)
    assert width == pytest.approx(3.03 * 2 - 0.5 + 6, abs=0.1)  # the grid cuts it at the right
    assert height == pytest.approx(2 * 3.03 * 0.1, abs=0.06)
    assert vertices[:, 1].mean() == pytest.approx(-1, abs=0.05)
    assert not figure.legends


def test_an_ellipse_is_the_90_percent_contour():
    figure = plots.posterior(_surface(), (AXIS, AXIS), gaussians={"q": (MEAN, COVARIANCE)})
    (line,) = figure.axes[0].lines
    curve = torch.as_tensor(line.get_xydata())
    centred = curve - MEAN
    distance = (centred @ torch.linalg.inv(COVARIANCE) * centred).sum(-1)
    torch.testing.assert_close(distance, torch.full_like(distance, -2 * np.log(0.1)))
    torch.testing.assert_close(curve[0], curve[-1])  # closed
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["q"]


def test_panels_show_their_own_draws_thinned_evenly():
    draws = torch.randn(2, 2500, 2)
    figure = plots.posterior(
        torch.stack([_surface()] * 2),
        (AXIS, AXIS),
        draws={"HMC": draws, "q": draws[:, :5]},
        titles=["a", "b"],
        names=("left", "up"),
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert (figure.axes[1].get_xlabel(), figure.axes[0].get_ylabel()) == ("left", "up")
    for axes, points in zip(figure.axes, draws, strict=True):
        hmc, q = axes.lines
        np.testing.assert_allclose(hmc.get_xydata(), points[::3])
        np.testing.assert_allclose(q.get_xydata(), points[:5])
        assert hmc.get_color() != q.get_color()


def test_a_density_may_be_zero_on_parts_of_the_grid():
    surface = torch.where(AXIS[:, None] > 0, _surface(), -torch.inf)
    assert len(plots.posterior(surface, (AXIS, AXIS)).axes[0].collections) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_density": torch.zeros(3, 4)}, r"\(3, 4\), expected \(P, 241, 241\)"),
        ({"log_density": torch.full((241, 241), torch.nan)}, "NaN"),
        ({"log_density": torch.full((241, 241), -torch.inf)}, "nowhere finite"),
        ({"log_density": -1e5 * (AXIS[:, None] ** 2 + AXIS**2)}, "too coarse"),
        ({"draws": {"HMC": torch.zeros(3, 5, 2)}}, r"'HMC' .* expected \(1, n, 2\)"),
        ({"gaussians": {"q": (torch.zeros(3), COVARIANCE)}}, "'q' has shape"),
        ({"gaussians": {"q": (MEAN, -COVARIANCE)}}, "positive definite"),
        ({"titles": ["a", "b"]}, "2 titles, expected 1"),
    ],
)
def test_what_cannot_be_drawn_is_a_clear_error(changed, message):
    arguments = {"log_density": _surface(), "grid": (AXIS, AXIS), **changed}
    with pytest.raises(DataError, match=message):
        plots.posterior(**arguments)
