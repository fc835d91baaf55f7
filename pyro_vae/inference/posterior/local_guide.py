"""A guide that is a table, one row per datum. Shapes: N data, B batch, Z coordinates."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.arguments import integer, number, positive, shown, typed
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import (
    Batch,
    Whole,
    arguments,
    as_argument,
    as_rows,
    device_of,
    map_arguments,
    map_rows,
    named_arguments,
    named_arrays,
    num_rows,
    rows_of,
)
from pyro_vae.program.densities.log_joint import Slot, read_slots
from pyro_vae.program.parameters.modules import owners
from pyro_vae.program.program import Program
from pyro_vae.program.sites.masks import without_masks
from pyro_vae.program.sites.prior_guide import prior_of

ROW = "row"


class LocalGuide(nn.Module):
    r"""A model with a Gaussian of its own for each training datum: SVI without a network.

    .. math:: q(z_n) = N(\mu_n, \mathrm{diag}(\sigma_n^2)) \text{ in unconstrained coordinates},
       \quad (\mu_n, \log \sigma_n) \text{ the n-th row of a table}

    A batch is a dict: the model's arguments by name, and ``row``, the rows of the table. Train it
    with an optimizer that leaves the rows at rest that a batch does not hold:

    >>> import torch, pyro_vae as pv
    >>> x = torch.randn(20, 5, dtype=torch.float64)
    >>> local = LocalGuide(pv.models.LinearVAE(5, 2).double(), x)
    >>> run = pv.fit(local, local.rows(x), optimizer=local.optimizer(), progress=False)
    >>> pv.elbo(local, local.rows(x)).shape
    torch.Size([20])
    >>> pv.infer(local, torch.randn(3, 5), how="local").mean.shape  # new data have no row
    torch.Size([3, 2])

    Arguments:
        model: A Pyro function, or a program whose model is taken (its guide is left alone).
        data: The training data, N rows; their values are not kept.
        scale: The first standard deviations.

    Raises:
        ConfigError: A scale that is not positive.
        DataError: Data that the model cannot take.
        ProgramError: A latent is global, discrete, or stands in a nested plate.

    References:
        | Stochastic Variational Inference (Hoffman et al., 2013), arXiv:1206.7051
    """

    @typed
    def __init__(self, model: Any, data: Any, *, scale: float = 1.0) -> None:
        super().__init__()
        scale = number("scale", scale, "(0, inf)")
        self._source: Any = getattr(model, "model", model)
        if not callable(self._source):
            raise ProgramError(f"model: got {model!r}, expected a Pyro function or a program")
        self.parts = nn.ModuleDict(owners(self._source))
        self._alone = self._without_rows()
        self._names: tuple[str, ...] = ()
        given = self.named(data)
        if not any(True for _ in named_arrays(given)):
            raise DataError(f"data: got {shown(data)}, expected numbers")
        batch = self.alone.adapt(given)
        if isinstance(batch, Whole):
            raise ProgramError(
                "model: no plate of it has a row for each datum, so that no latent is a datum's "
                "own; use an autoguide of pyro.infer.autoguide"
            )
        self._names = tuple(self.named(data))
        self._slots = self._read(batch)
        few = map_rows(lambda leaf: torch.zeros_like(leaf[:1]), batch)
        self._example = self.alone.as_given(few)
        self._with_rows = {name for name, leaf in batch.items() if rows_of(leaf) == num_rows(batch)}
        floats = [p.detach() for p in self.parameters() if p.is_floating_point()]
        like = floats[0] if floats else torch.empty(0)
        size = (num_rows(batch), self._slots[-1].columns.stop)
        self.loc = nn.Parameter(like.new_zeros(size))
        self.log_scale = nn.Parameter(like.new_full(size, scale).log())

    def _without_rows(self) -> tuple[Program]:
        # In a tuple: a Program is a module, whose parameters are already in the parts.
        return (Program(self._source, prior_of(self._source), modules=dict(self.parts)),)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made of the model: a copy makes it of its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_alone"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._alone = self._without_rows()

    @property
    def alone(self) -> Program:
        """The model with its prior as guide: for data that have no row."""
        (program,) = self._alone
        trained = self.__dict__.get("_pyro_vae_program")
        if trained is not None:  # values of pyro.param statements belong to who trained them
            program.share_values(trained)
        return program

    @property
    def model(self) -> "Rowed":
        """The model, which does not look at the rows."""
        return Rowed(self, "_model", self._names)

    @property
    def guide(self) -> "Rowed":
        """The guide, which looks at nothing else."""
        return Rowed(self, "_guide", self._names)

    @typed
    def rows(self, data: Any, start: int = 0) -> dict[str, Any]:
        """Return training data as a batch with its rows, which begin at ``start``.

        Raises:
            DataError: More data than the table has rows.
        """
        batch = self.named(data)
        count = num_rows({name: batch[name] for name in self._with_rows & set(batch)})
        if integer("start", start, 0) + count > len(self.loc):
            raise DataError(
                f"got rows {start} to {start + count - 1}, the table has {len(self.loc)}; give the "
                "data that it was made for, or ask pv.infer(..., how='local') for new ones"
            )
        row = torch.arange(start, start + count, device=device_of(batch))
        return {**batch, ROW: row}

    def named(self, data: Any) -> dict[str, Any]:
        """Return data as a dict by the names of the model's arguments, arrays as tensors."""
        alone = not isinstance(data, Mapping | tuple | list)
        args, kwargs = arguments(as_rows(data) if alone else map_arguments(as_argument, data))
        return named_arguments(self._source, args, kwargs)

    def has_rows(self, data: Any) -> bool:
        """Return whether data say which rows of the table are theirs."""
        return isinstance(data, Mapping) and ROW in data

    @typed
    def example(self, n: int = 2) -> dict[str, Any]:
        """Return a batch of n rows of zeros, with row numbers, and the constants as they are."""
        positive("n", n)
        at = self.loc.device
        shaped = {
            name: leaf.to(at).expand(n, *leaf.shape[1:]) if name in self._with_rows else leaf
            for name, leaf in self._example.items()
        }
        return {**shaped, ROW: torch.arange(n, device=self.loc.device) % len(self.loc)}

    @typed
    def optimizer(self, lr: float = 1e-3, local_lr: float = 0.1) -> Callable[..., "RowAdam"]:
        """Return the optimizer for ``pv.fit``: Adam for the model, row by row for the table."""
        lr = number("lr", lr, "(0, inf)")
        local_lr = number("local_lr", local_lr, "(0, inf)")

        def build(parameters: Any) -> RowAdam:
            table = [self.loc, self.log_scale]
            ids = {id(part) for part in table}
            others = [p for p in parameters if id(p) not in ids]
            groups = [{"params": table, "lr": local_lr, "rows": True}]
            return RowAdam([{"params": others, "lr": lr, "rows": False}, *groups])

        return build

    def _model(self, row: Tensor, **batch: Any) -> Any:
        return self._source(**batch)

    def _guide(self, row: Tensor, **batch: Any) -> None:
        loc, scale = self.loc.index_select(0, row), self.log_scale.index_select(0, row).exp()
        with pyro.plate("data", len(row)):
            for slot in self._slots:
                pyro.sample(slot.name, _factor(slot, loc, scale))

    def _read(self, batch: Batch) -> list[Slot]:
        few = map_rows(lambda leaf: leaf[:2], batch)
        sites = self.alone.read(few)
        if sites.global_:
            raise ProgramError(
                f"site {sites.global_[0]!r} is global: a table has rows for the latents of a datum "
                "only; write a guide for the pair, with pyro.param for the global one"
            )
        if sites.num_plates > 1:
            raise ProgramError(
                "the program has plates nested in 'data'; give its latents an event dimension in "
                "place of the plate (.to_event)"
            )
        with self.alone.reader.runs.quiet(few):
            model, _ = self.alone.joint(few).traces()
        slots = read_slots(model)
        for slot in slots:
            if checks.fixed_support(without_masks(model.nodes[slot.name]["fn"])) is None:
                raise ProgramError(
                    f"site {slot.name!r}: its support depends on the data or on parameters, and a "
                    "table has one for all rows; give the latent a fixed support and move it in "
                    "the model (u on the unit interval, z = low + (high - low) * u)"
                )
        return slots


class Rowed:
    """One of the functions of a ``LocalGuide``, with the arguments that it takes by name."""

    def __init__(self, owner: LocalGuide, function: str, names: tuple[str, ...]) -> None:
        self.__self__ = owner  # as a bound method has it: where the parameters are found
        self._function = function
        kinds = [(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in (*names, ROW)]
        self.__signature__ = inspect.Signature([inspect.Parameter(*kind) for kind in kinds])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on a batch with its rows."""
        bound = self.__signature__.bind(*args, **kwargs).arguments
        return getattr(self.__self__, self._function)(**bound)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Rowed)
            and other.__self__ is self.__self__
            and other._function == self._function
        )

    def __hash__(self) -> int:
        return hash((id(self.__self__), self._function))


class RowAdam(torch.optim.Optimizer):
    r"""Adam that moves only the rows of a table that have a gradient, each on its own clock.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
       v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
       \phi_n \leftarrow \phi_n - \mathrm{lr}\, \hat m_n / (\sqrt{\hat v_n} + \epsilon)

    Plain Adam moves every row at every step, by momentum, though the batch said nothing of it.
    Groups with ``rows=False`` get plain Adam.

    Arguments:
        params: Parameters, or groups of them with ``lr`` and ``rows``.
        lr: Learning rate of groups that name none.
        betas, eps: As of Adam.
        rows: Whether groups that do not say so are tables.

    References:
        | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015), arXiv:1412.6980
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        rows: bool = True,
    ) -> None:
        groups = [g for g in list(params) if not isinstance(g, dict) or g["params"]]
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "rows": rows})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            clock = grad[..., :1] if group["rows"] else grad.new_zeros(())
            state["clock"] = torch.zeros_like(clock)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        kept = (parameter, state["clock"], state["exp_avg"], state["exp_avg_sq"])
        if not group["rows"]:
            _adam(kept, grad, group)
            return
        # A batch touches few rows of a large table: only these are worked on.
        rows = (grad != 0).any(-1).nonzero()[:, 0]
        parts = tuple(whole[rows] for whole in kept)
        _adam(parts, grad[rows], group)
        for whole, part in zip(kept, parts, strict=True):
            whole.index_copy_(0, rows, part)


def _adam(kept: tuple[Tensor, ...], grad: Tensor, group: dict[str, Any]) -> None:
    """Take one step of Adam, in place, on a parameter with its clock and its two averages."""
    value, clock, mean, square = kept
    first, second = group["betas"]
    clock += 1
    mean.lerp_(grad, 1 - first)
    square.mul_(second).addcmul_(grad, grad, value=1 - second)
    deviation = (square / (1 - second**clock)).sqrt() + group["eps"]
    value -= group["lr"] * mean / (1 - first**clock) / deviation


def _factor(slot: Slot, loc: Tensor, scale: Tensor) -> Any:
    """Return the distribution of one latent, from its columns of the table's rows."""
    shape = (len(loc), *slot.base)
    normal = dist.Normal(loc[:, slot.columns].reshape(shape), scale[:, slot.columns].reshape(shape))
    base = normal.to_event(len(slot.base))
    return base if slot.plain else dist.TransformedDistribution(base, [slot.transform])
