"""Answers as data frames of pandas and data sets of xarray, which whoever asks for them has."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.extras import extra


def to_frame(columns: Mapping[str, Any], index: str) -> Any:
    """Return columns ``(N,)`` as a ``pandas.DataFrame``, a row each.

    Arguments:
        columns: Tensors or arrays by name.
        index: Name of the row numbers, or of the column that takes their place.

    Raises:
        ConfigError: pandas is not installed.
    """
    with extra("frames", "to_pandas"):
        import pandas
    frame = pandas.DataFrame({name: _array(values) for name, values in columns.items()})
    return frame.set_index(index) if index in columns else frame.rename_axis(index)


def to_dataset(draws: Mapping[str, Tensor], *axes: str) -> Any:
    """Return draws by site as an ``xarray.Dataset``, as ArviZ names their axes.

    Axes of an event are called ``SITE_dim_0``, ``SITE_dim_1``, as ArviZ calls them.

    Arguments:
        draws: Tensors by site, ``(axes | event)``.
        axes: Names of the first axes, ``"chain"`` and ``"draw"`` among them.

    Raises:
        ConfigError: xarray is not installed.
    """
    with extra("frames", "to_xarray"):
        import xarray
    variables = {}
    for site, values in draws.items():
        event = (f"{site}_dim_{axis}" for axis in range(values.dim() - len(axes)))
        variables[site] = ((*axes, *event), _array(values))
    found = xarray.Dataset(variables)
    return found.assign_coords({name: np.arange(size) for name, size in found.sizes.items()})


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
