"""A VAE of tables whose columns are of several kinds. Shapes: B rows, D columns, Z latent."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals import Gaussian
from pyro_vae.conditionals.column_kinds import Column, ColumnGroup
from pyro_vae.distributions import Columns, Incomplete
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.table_columns import (
    cells_of,
    columns_of,
    completed,
    frame_of,
    index_of,
    is_frame,
    require_different,
    require_possible,
)
from pyro_vae.models.zoo_program import OneLatent, register
from pyro_vae.nn import MLP, sizes


@typed
class TableVAE(OneLatent):
    r"""A VAE of rows with real, positive, count, categorical, ordinal and censored cells.

    .. math:: z \sim N(0, I), \quad x_d \sim p_d(x_d \mid decoder(z)), \quad
        \log p(x_o) = \log \int p(z) \prod_{d\ \mathrm{observed}} p_d(x_d \mid z)\, dz

    Missing cells are NaN, and no part of the likelihood. Give every verb a data frame, or a tensor
    of cells (N, D): categories by their places, real cells standardised, positive ones divided by
    the exponential of their center. `generate`, `reconstruct` and `impute` answer a frame, where
    the program was made from one or is given one. Densities are those of the cells as kept.

    Arguments:
        table: a pandas data frame, whose observed cells give kinds, categories and scales; or the
            columns.
        latent_dim: number Z of latent units.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        kinds: kind by name of column, or a dict of its `Column` arguments, where a frame does not
            tell: text is categorical, whole numbers from 0 are counts, other numbers real. Ranks of
            text are given with their categories, lowest first.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.

    Raises:
        DataError: a column without cells, of one value, or with impossible ones.
        ConfigError: an unknown column, kind or distribution.

    References:
        Handling incomplete heterogeneous data using VAEs (Nazabal et al., 2018), arXiv:1807.03653.

    Example:
        >>> from pyro_vae.conditionals import Column
        >>> columns = [Column("age", "count"), Column("sex", "categorical", categories=("f", "m"))]
        >>> TableVAE(columns, 2).decoder(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 2])
    """

    kind = "table_vae"

    def __init__(
        self,
        table: Any,
        latent_dim: int = 10,
        hidden: Sequence[int] = (128,),
        *,
        kinds: Mapping[Any, Any] | None = None,
        activation: str = "relu",
    ) -> None:
        self_columns = _columns(table, kinds)
        super().__init__(len(self_columns))
        self.columns = self_columns
        self.latent_dim = positive("latent_dim", latent_dim)
        self.config = {
            "table": [{**asdict(c), "categories": list(c.categories)} for c in self.columns],
            "latent_dim": self.latent_dim,
            "hidden": list(sizes("hidden", hidden)),
            "activation": activation,
        }
        by_name: dict[str, list[int]] = {}
        for place, column in enumerate(self.columns):
            by_name.setdefault(column.distribution, []).append(place)
        self.groups = nn.ModuleList(
            ColumnGroup(name, places, [self.columns[p] for p in places])
            for name, places in by_name.items()
        )
        self.widths = [group.count * group.width for group in self._groups]
        features = sum(group.features for group in self._groups) + len(self.columns)
        size = self.latent_dim
        self.encode = Gaussian(MLP(features, 2 * size, hidden, activation=activation))
        self.net = MLP(size, sum(self.widths), tuple(hidden)[::-1], activation=activation)

    @property
    def _groups(self) -> list[ColumnGroup]:
        return [group for group in self.groups if isinstance(group, ColumnGroup)]

    @property
    def shows_frames(self) -> bool:
        """Whether the columns were those of a data frame."""
        return all(column.dtype for column in self.columns)

    @typed
    def example(self, n: int = 2) -> Tensor:
        """Return n rows of zeros, ones where cells are positive, shape (n | D)."""
        ones = [float(column.kind == "positive") for column in self.columns]
        x = super().example(n)
        return x + torch.tensor(ones).to(x)

    def reads(self, data: Any) -> Any:
        """Return cells (N, D) of a data frame or a list of them, or a tensor of them as it is.

        Raises:
            DataError: Names the column, the row and the value.
        """
        if is_frame(data):
            return cells_of(data, self.columns, self.origin.dtype).to(self.origin.device)
        if isinstance(data, Mapping):
            return {name: self.reads(part) for name, part in data.items()}
        if isinstance(data, tuple | list) and any(map(is_frame, data)):
            parts = [self.reads(part) for part in data]
            return torch.cat(parts) if isinstance(data, list) else tuple(parts)
        array = isinstance(data, Tensor) or (isinstance(data, np.ndarray) and data.dtype != object)
        if array and data.shape[1:] == (len(self.columns),):
            self._require(torch.as_tensor(data))
        return data

    def shows(self, cells: Any, like: Any = None) -> Any:
        """Return cells (N, D) as a data frame of the table's dtypes, categories by their names.

        Arguments:
            cells: as kept.
            like: frames of as many rows, whose index is kept.
        """
        index = index_of(like) if like and sum(map(len, like)) == len(cells) else None
        return frame_of(cells, self.columns, index)

    def completes(
        self, frames: Sequence[Any], cells: Tensor, *each: Tensor
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Return data frames as one, filled in, and what is said of each cell in its order.

        Arguments:
            frames: with missing cells.
            cells: filled in, (N, D), as kept.
            each: which cells were missing, and more tensors of the shape of the cells.
        """
        places = {str(column.name): place for place, column in enumerate(self.columns)}
        order = [places[str(name)] for name in frames[0].columns]
        filled = completed(frames, cells, each[0], self.columns)
        return filled, tuple(one[:, order] for one in each)

    def _require(self, cells: Tensor) -> None:
        if cells.is_meta:
            return
        for place, column in enumerate(self.columns):
            values = cells[:, place].detach().cpu().double().numpy()
            if not column.named:
                require_possible(column.name, column.kind, values)
                continue
            count = len(column.categories)
            wrong = (values < 0) | (values >= count) | (values != np.floor(values))
            wrong &= ~np.isnan(values)
            if wrong.any():
                row = int(wrong.nonzero()[0][0])
                raise DataError(
                    f"column {column.name!r}: got {values[row]:g} in row {row}, expected the place "
                    f"of a category, 0 to {count - 1} (missing cells are NaN)"
                )

    def prior(self) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        zero = self.origin.expand(self.latent_dim)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def decoder(self, z: Tensor) -> Columns:
        """Return p(x | z) of codes (*, Z), event (D,)."""
        numbers = self.net(z).split(self.widths, -1)
        parts = [(g.places, g(n)) for g, n in zip(self._groups, numbers, strict=True)]
        return Columns(parts, len(self.columns))

    def encoder(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x) of the observed cells of rows (*, D), event (Z,)."""
        order, counts = torch.cat([g.places for g in self._groups]), [g.count for g in self._groups]
        observed = ~x.isnan()
        pieces = zip(
            self._groups,
            x.index_select(-1, order).split(counts, -1),
            observed.index_select(-1, order).split(counts, -1),
            strict=True,
        )
        features = [group.encoded(own, there) for group, own, there in pieces]
        return self.encode(torch.cat([*features, observed.to(features[0].dtype)], -1))

    def model(self, x: Tensor) -> Tensor:
        """Draw z and observe the cells of x, shape (B | D), that are there."""
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | Z)
            return pyro.sample("x", Incomplete(self.decoder(z), ~x.isnan()), obs=x)  # (B | D)


def _columns(table: Any, kinds: Mapping[Any, Any] | None) -> list[Column]:
    if is_frame(table):
        return columns_of(table, kinds)
    if kinds is not None:
        raise ConfigError("kinds: columns have theirs; give them with a data frame")
    if not isinstance(table, list | tuple) or not table:
        raise ConfigError(
            f"table: got {type(table).__name__}, expected a pandas data frame or a list of Column"
        )
    try:
        found = [c if isinstance(c, Column) else Column(**c) for c in table]
    except TypeError as error:
        raise ConfigError(f"table: expected a list of Column ({error})") from error
    require_different([column.name for column in found])
    return found
