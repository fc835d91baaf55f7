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


def to_dataset(values: Mapping[str, Any], *axes: str, **coordinates: Any) -> Any:
    """Return values by name as an ``xarray.Dataset``, as ArviZ names their axes.

    Axes of an event are called ``NAME_dim_0``, ``NAME_dim_1``, as ArviZ calls them.

    Arguments:
        values: Tensors or arrays by name, ``(axes | event)``.
        axes: Names of the first axes, ``"chain"`` and ``"draw"`` among those of draws.
        coordinates: What stands along the last of these axes, by name: ``(N,)``; of the axis' own
            name, what counts it in place of 0, 1, 2.

    Raises:
        ConfigError: xarray is not installed.
    """
    with extra("frames", "to_xarray"):
        import xarray
    variables = {}
    for name, each in values.items():
        array = _array(each)
        event = (f"{name}_dim_{axis}" for axis in range(array.ndim - len(axes)))
        variables[name] = ((*axes, *event), array)
    found = xarray.Dataset(variables)
    along = {name: (axes[-1], _array(each)) for name, each in coordinates.items()}
    return found.assign_coords({n: np.arange(size) for n, size in found.sizes.items()} | along)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
