"""Known bugs of `pyro_vae/plots`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "an ellipse of another share",
        "plots/posterior_panels.py",
        "radius = np.sqrt(-2 * np.log(0.1))",
        "radius = np.sqrt(-2 * np.log(0.5))",
        "tests/test_plot_posterior.py::test_an_ellipse_is_the_90_percent_contour",
    ),
    Bug(
        "the axes of a grid swapped",
        "plots/posterior_panels.py",
        "np.exp(log_density - log_density.max()).T",
        "np.exp(log_density - log_density.max())",
        "tests/test_plot_posterior.py::test_the_first_axis_of_the_grid_is_drawn_to_the_right",
    ),
    Bug(
        "regions by density and not by mass",
        "plots/posterior_panels.py",
        "mass = np.exp(ordered - top).cumsum()",
        "mass = np.arange(1.0, len(ordered) + 1)",
        "tests/test_plot_posterior.py::test_regions_hold_the_mass_that_they_say",
    ),
]
