"""What a run was asked for: KL weights and optimizers from arguments, and the record of it all."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import shown, takes_one
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError
from pyro_vae.inference.objectives.objective import (
    Objective,
    OptimizerFactory,
    TermsObjective,
)
from pyro_vae.inference.objectives.stock import StockObjective
from pyro_vae.program.handlers import Beta
from pyro_vae.program.program import Program
from pyro_vae.program.sites.sites import Sites
from pyro_vae.storage.optimizer_state import plain
from pyro_vae.training.adam import Adam
from pyro_vae.training.feed import TensorFeed
from pyro_vae.training.fingerprints import (
    describe_architecture,
    describe_data,
    describe_function,
    describe_rows,
    describe_schedule,
)
from pyro_vae.training.loader_feed import LoaderFeed
from pyro_vae.training.optimizers import rate
from pyro_vae.training.schedule_arguments import warn_of_counts, warn_of_rates
from pyro_vae.training.schedules import Schedule, as_schedule
from pyro_vae.training.step import Stepper
from pyro_vae.training.validation import Validation

KLWeight = float | Schedule | Mapping[str, float | Schedule]
# Pyro works this one out from the first batch.
_SHOWN = 16  # values of a tensor that are written out
_NO_SETTING = ("max_plate_nesting",)
# Of a parameter group: what is told elsewhere, moves in a run, or chooses among equal kernels.
_NO_OPTION = {
    "params",
    "lr",
    "scheduled_lr",
    "schedule",
    "initial_lr",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
}


def adam(lr: float | None) -> OptimizerFactory:
    """Return the factory of the default optimizer, Adam in one fused kernel; None is 1e-3.

    Raises:
        ConfigError: A learning rate that is not positive.
    """
    if callable(lr):
        raise ConfigError(
            f"lr: got {shown(lr)}, expected a number; a function of the progress is lr_schedule=, "
            "which lr is multiplied by"
        )
    return partial(Adam, lr=rate(lr))


def check_schedules(beta: KLWeight, lr_schedule: float | Schedule) -> None:
    """Look at the schedules of a run before anything is read.

    Raises:
        ConfigError: A number below zero, or a function of another thing than the progress.
    """
    given: dict[str, Any] = {"lr_schedule": lr_schedule}
    if isinstance(beta, Mapping):
        given |= {f"beta[{site!r}]": weight for site, weight in beta.items()}
    else:
        given["beta"] = beta
    for name, value in given.items():
        as_schedule(name, value)
        warn_of_counts(name, value)
    warn_of_rates("lr_schedule", lr_schedule)


def warn_of_marks(objective: Objective, sites: Sites) -> None:
    """Warn of latents marked for enumeration, where the objective draws what the guide draws."""
    if sites.marked and not isinstance(objective, StockObjective):
        warnings.warn(
            f"site {sites.marked[0]!r}: the guide marks it for enumeration, and "
            f"{type(objective).__name__} draws what the guide draws (a score function); to "
            "enumerate, give objective=pyro.infer.TraceEnum_ELBO(max_plate_nesting="
            f"{sites.num_plates}), or leave the site out of the guide: it is summed out then",
            UserWarning,
            stacklevel=of_user(),
        )


def beta_schedule(beta: KLWeight, sites: tuple[str, ...]) -> Callable[[float], Beta | None]:
    """Return the KL weight as a function of the progress; None where it is 1 throughout.

    Raises:
        ConfigError: An unknown site, or a number below zero.
    """
    if isinstance(beta, Mapping):
        unknown = [site for site in beta if site not in sites]
        if unknown:
            raise ConfigError(f"beta: got site {unknown[0]!r}, expected one of {list(sites)}")
        schedules = {site: as_schedule(f"beta[{site!r}]", b) for site, b in beta.items()}
        return lambda t: {site: schedule(t) for site, schedule in schedules.items()} or None
    schedule = as_schedule("beta", beta)
    if not callable(beta) and float(beta) == 1.0:
        return lambda t: None
    return schedule


def is_of_a_user(setting: Any) -> bool:
    """Return whether a rate or weight, or one for a site, is a function from outside the library.

    Nobody knows what else it does when it is called, between any two steps.
    """
    each = setting.values() if isinstance(setting, Mapping) else [setting]
    return any(
        callable(value) and not (getattr(value, "__module__", None) or "").startswith("pyro_vae.")
        for value in each
    )


def record_data(
    program: Program,
    feed: TensorFeed | LoaderFeed,
    valid: Validation | None,
    transform: Any,
    precision: str | None,
    seed: int,
) -> dict[str, Any]:
    """Return what is trained on what, as JSON gives it back: a continuation must share it.

    Functions are told by their values or their code, data by shapes and a hash of some rows. Not
    among the settings: ``epochs``, ``patience``, ``device``, callbacks and the like, which a
    continuation may choose anew.
    """
    return {
        "batch_size": feed.batch_size,
        "batches": len(feed),
        "data": feed.size,
        "rows": describe_data(feed),
        "valid": None if valid is None else valid.describe(),
        "precision": precision,
        "seed": seed,
        "transform": describe_function(transform),
        "architecture": describe_architecture(program),
    }


def record_steps(
    stepper: Stepper,
    objective: Any,
    beta: KLWeight,
    lr_schedule: float | Schedule,
    ema: float | None,
    reduce_dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Return what the steps of a run are, as JSON gives it back: a continuation must share it."""
    rates = [[float(lr) for lr in base] for base in stepper.rates.first]
    weights = beta.items() if isinstance(beta, Mapping) else None
    return {
        "objective": objective_name(objective),
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in stepper.optimizers),
        "lr": rates[0][0] if len(rates) == len(rates[0]) == 1 else rates,
        "optimizer_options": [_options(optimizer) for optimizer in stepper.optimizers],
        "lr_schedule": describe_schedule(lr_schedule),
        "beta": {site: describe_schedule(b) for site, b in weights}
        if weights is not None
        else describe_schedule(beta),
        "clip_norm": None if stepper.clip_norm is None else float(stepper.clip_norm),
        "ema": None if ema is None else float(ema),
        # Absent where they do nothing: runs of before have none.
        **({"accumulate": stepper.accumulate} if stepper.accumulate > 1 else {}),
        **({} if reduce_dtype is None else {"reduce_dtype": str(reduce_dtype)}),
    }


def shared_settings(
    settings: Mapping[str, Any], feed: TensorFeed | LoaderFeed, valid: Validation | None
) -> dict[str, Any]:
    """Return the settings that processes which train together must have in common.

    Left out are functions, which may hold a rank, and a loader's rows, which may be dealt out.
    """
    apart = {"transform", "architecture", "seed", "batch_size", "batches", "data"}
    apart |= {"rows"} if isinstance(feed, LoaderFeed) else set()
    apart |= {"valid"} if valid is not None and valid.apart else set()
    shared = {name: value for name, value in settings.items() if name not in apart}
    parts = settings.get("architecture", {})
    return {**shared, "config": parts.get("config"), "modules": parts.get("modules")}


def _options(optimizer: Any) -> list[dict[str, Any]]:
    """Return the options of each parameter group that say how it steps."""
    return [
        {name: plain(name, value) for name, value in group.items() if name not in _NO_OPTION}
        for group in optimizer.param_groups
    ]


def own_callback(objective: Any) -> tuple[Callable[[Any], Any], ...]:
    """Return the callback of an objective that looks at the run after each epoch, if it has one."""
    method = getattr(objective, "after_epoch", None)
    return (method,) if callable(method) else ()


def listed_callbacks(callbacks: Any) -> tuple[Callable[[Any], Any], ...]:
    """Return the callbacks of a run, of which one may stand without a list.

    Raises:
        ConfigError: A class, whose instance is meant, or a function of no or several arguments.
    """
    listed = (callbacks,) if callable(callbacks) else tuple(callbacks)
    for each in listed:
        if isinstance(each, type):
            raise ConfigError(
                f"callbacks: got the class {each.__name__}, expected a function or an instance, "
                f"{each.__name__}(...)"
            )
        if callable(each) and not takes_one(each):
            raise ConfigError(
                f"callbacks: got {shown(each)}, which does not take one argument, expected a "
                "function of the run so far: lambda run: run.history['loss'][-1] < 10"
            )
    return listed


def objective_name(objective: Any) -> str:
    """Return the name of an objective with its constructor's numbers: ``IWAE(num_particles=5)``."""
    shown = getattr(objective, "elbo", objective)
    names = [n for n in inspect.signature(type(shown).__init__).parameters if n not in _NO_SETTING]
    values = {name: _plain(getattr(shown, name, None)) for name in names}
    kept = [f"{n}={v}" for n, v in values.items() if v is not None]
    return f"{type(shown).__name__}({', '.join(kept)})"


def _plain(value: Any) -> str | None:
    """Return a setting as text that is the same in another process; None for what has none."""
    if isinstance(value, int | float | str):
        return repr(value)
    if isinstance(value, Tensor):
        return repr(value.tolist()) if value.numel() <= _SHOWN else repr(describe_rows((value,)))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_plain(each)}" for key, each in value.items()) + "}"
    return objective_name(value) if isinstance(value, TermsObjective) else None
