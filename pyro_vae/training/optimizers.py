"""Optimizers as users hand them in: a factory, a class, a torch optimizer, one of Pyro's."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pyro.optim
import torch
from pyro.optim.optim import PyroOptim
from pyro.params.param_store import (
    module_from_param_with_module_name,
    normalize_param_name,
    user_param_name,
)
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.arguments import counted, number, shown
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError
from pyro_vae.inference.objectives.objective import OptimizerFactory
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.handlers import StatedNames
from pyro_vae.program.parameters.object_graph import installed
from pyro_vae.program.program import Program
from pyro_vae.torch_private import step_hooks

_FORMS = (
    "a factory parameters -> torch.optim.Optimizer, a class of torch.optim, a torch optimizer over "
    "the program's parameters, or a pyro.optim optimizer; a schedule of the rate is lr_schedule="
)


def rate(lr: float | None) -> float:
    """Return the learning rate that is meant: 1e-3 where none was given."""
    return 1e-3 if lr is None else number("lr", lr, "(0, inf)")


def as_factory(
    optimizer: Any, program: Program, batch: Batch, lr: float | None
) -> OptimizerFactory:
    """Return any form of an optimizer as a factory.

    Arguments:
        optimizer: A factory (a ``functools.partial`` of a class, say); a class or one of
            ``pyro.optim`` that was not called, which get ``lr``; a ``torch.optim.Optimizer`` over
            parameters of the program, used as it is; a ``pyro.optim`` optimizer, whose arguments
            may be functions of Pyro's parameter names.
        program: What is trained.
        batch: One to find Pyro's names on.
        lr: Learning rate of a class; all others have their own, and take None.

    Raises:
        ConfigError: None of these, a kind that steps in another way, or two learning rates.
    """
    if _of_pyro(optimizer):
        return as_factory(optimizer({"lr": rate(lr)}), program, batch, None)
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        return checked(_of_class(optimizer, lr))
    ready = isinstance(optimizer, torch.optim.Optimizer)
    if _is_schedule(optimizer) or not (ready or callable(optimizer)):
        raise ConfigError(f"optimizer: got {optimizer!r}, expected {_FORMS}")
    if lr is not None:
        raise ConfigError(
            f"lr: got {shown(lr)}, and the optimizer that is given "
            f"({getattr(optimizer, '__name__', type(optimizer).__name__)}) has a learning rate of "
            "its own; leave lr out, or give a class, as optimizer=torch.optim.AdamW"
        )
    if ready:
        return _ready(optimizer, program)
    if isinstance(optimizer, PyroOptim):
        return checked(_from_pyro(optimizer, program, batch))
    return checked(optimizer)


def _of_class(kind: Any, lr: float | None) -> Callable[..., Any]:
    """Return a class of optimizers as a factory, which passes a rate to those that take one."""
    parameters = inspect.signature(kind).parameters.values()
    takes = any(each.name == "lr" or each.kind is each.VAR_KEYWORD for each in parameters)
    given: dict[str, Any] = {"lr": rate(lr)} if takes else {}
    name = kind.__name__
    way_out = f"give a factory, as optimizer=lambda parameters: {name}(parameters, ...)"
    if lr is not None and not takes:
        raise ConfigError(
            f"lr: got {shown(lr)}, and optimizer {name} takes no lr; leave lr out, or {way_out}"
        )

    def make(parameters: list[nn.Parameter]) -> Any:
        try:
            return kind(parameters, **given)
        except TypeError as error:
            called = ", ".join(["parameters", *(f"{k}={shown(v)}" for k, v in given.items())])
            raise ConfigError(f"optimizer: {name}({called}) fails: {error}; {way_out}") from error

    return make


def _is_schedule(optimizer: Any) -> bool:
    """Return whether this is a schedule of the learning rate, or the class or function of one."""
    name = getattr(optimizer, "__name__", "")
    return isinstance(optimizer, LRScheduler) or hasattr(torch.optim.lr_scheduler, name)


def _of_pyro(optimizer: Any) -> bool:
    """Return whether this is an optimizer of Pyro's that waits for its arguments."""
    # They are functions there, of an optimizer's arguments alone, as its schedules are.
    own = getattr(pyro.optim, getattr(optimizer, "__name__", ""), None) is optimizer
    return own and not isinstance(optimizer, type) and not _is_schedule(optimizer)


def checked(factory: Callable[..., Any]) -> OptimizerFactory:
    """Return a factory that says so where what it makes is no optimizer, or one of another kind.

    Raises:
        ConfigError: It is an optimizer of Pyro's, which goes by names of a program's parameters.
    """
    if isinstance(factory, PyroOptim) or _of_pyro(factory):
        raise ConfigError(
            "optimizer: got a pyro.optim optimizer for an update of an objective, expected a "
            "factory, as functools.partial(torch.optim.Adam, lr=1e-3)"
        )

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        trained = list(parameters)
        made = factory(trained)
        if isinstance(made, torch.optim.LBFGS):
            raise ConfigError("optimizer: LBFGS steps by a line search, expected one without")
        if not isinstance(made, torch.optim.Optimizer):
            raise ConfigError(
                f"optimizer: the factory made {type(made).__name__}, expected a "
                "torch.optim.Optimizer"
            )
        if not all("lr" in group for group in made.param_groups):
            raise ConfigError(
                f"optimizer: got {type(made).__name__}, whose groups hold no 'lr', expected a "
                "learning rate in each; put one into its defaults"
            )
        _require_known(made, trained)
        return made

    return make


def _ready(optimizer: torch.optim.Optimizer, program: Program) -> OptimizerFactory:
    """Return a factory that answers once with an optimizer that is there already.

    Values that are to join it later leave their groups until then.
    """
    taken: list[bool] = []
    homes: dict[Tensor, dict[str, Any]] = {}

    def take(parameter: nn.Parameter) -> None:
        homes.get(parameter, optimizer.param_groups[0])["params"].append(parameter)

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if taken:
            raise ConfigError(
                "optimizer: this objective makes several updates, each with an optimizer of its "
                "own; give a factory"
            )
        taken.append(True)
        withheld = program.own.untrained - program.own.frozen
        for group in optimizer.param_groups:
            homes.update(dict.fromkeys(withheld.intersection(group["params"]), group))
            group["params"] = [p for p in group["params"] if p not in withheld]
        made: Any = optimizer
        made.takes_late = take
        _tell_of_left_out(optimizer, parameters)
        return optimizer

    return checked(make)


def _require_known(optimizer: torch.optim.Optimizer, trained: Iterable[nn.Parameter]) -> None:
    """Refuse an optimizer over other parameters than those that an update trains."""
    known = {id(parameter) for parameter in trained}
    strange = [
        f"number {index} of group {number}, of shape {tuple(parameter.shape)}"
        for number, group in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(group["params"])
        if id(parameter) not in known
    ]
    if strange:
        raise ConfigError(
            f"optimizer: {len(strange)} of the optimizer's parameters are not trained by this "
            f"update of the run (the first: {strange[0]}); make it over the program's parameters, "
            "once all of them are there; an objective of several updates takes a factory, which "
            "gets those of each"
        )


def _tell_of_left_out(optimizer: torch.optim.Optimizer, trained: Iterable[nn.Parameter]) -> None:
    """Warn of parameters that an optimizer made elsewhere does not move: one may be forgotten."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    known = {id(parameter): tuple(parameter.shape) for parameter in trained}
    left = [shape for key, shape in known.items() if key not in held]
    if left and len(left) < len(known):  # one over none of them is refused
        warnings.warn(
            f"optimizer: {counted(len(left), 'parameter')} of this update (the first of shape "
            f"{left[0]}) {'is' if len(left) == 1 else 'are'} in no group, and stay as they are: "
            "make it over program.parameters(), or freeze them by requires_grad_(False)",
            UserWarning,
            stacklevel=of_user(),
        )


def _from_pyro(optimizer: PyroOptim, program: Program, batch: Batch) -> OptimizerFactory:
    """Return the factory of one torch optimizer that steps as Pyro's one per parameter do."""
    if type(optimizer) is not PyroOptim:
        raise ConfigError(
            f"optimizer: got {type(optimizer).__name__}, which steps in a way of its own; give the "
            "pyro.optim optimizer inside it, and the schedule as lr_schedule="
        )
    if optimizer._state_waiting_to_be_consumed:
        raise ConfigError(
            "optimizer: this pyro.optim optimizer holds a loaded state; resume a run by "
            "pv.fit(..., out=, resume=True)"
        )

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        trained = list(parameters)
        known = _pyro_names(program, batch)
        names = {p: known.get(id(p), "objective") for p in trained}
        constructor: Any = optimizer.pt_optim_constructor
        if callable(optimizer.pt_optim_args):
            groups = [{"params": [p], **_arguments(optimizer, names[p])} for p in trained]
            made = constructor(groups)
        else:
            made = constructor(trained, **optimizer.pt_optim_args)
        for parameter in trained:
            before = optimizer.optim_objs.get(parameter)
            if before is not None:  # trained by pyro.infer.SVI: its moments go on
                made.state[parameter] = dict(before.state[parameter])
        clips = [(p, _clips(optimizer, names[p])) for p in trained]
        made.register_step_pre_hook(lambda *_: _clip(clips))

        def take(parameter: nn.Parameter) -> None:
            name = _known_names(program).get(id(parameter), "objective")
            clips.append((parameter, _clips(optimizer, name)))
            if callable(optimizer.pt_optim_args):
                made.add_param_group({"params": [parameter], **_arguments(optimizer, name)})
            else:
                made.param_groups[0]["params"].append(parameter)

        made.takes_late = take
        return made

    return make


def runs_others(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step runs code from outside of libraries: of a hook, of its own class."""
    steps = [type(optimizer), *step_hooks(optimizer), vars(optimizer).get("step", checked)]
    # A partial has a module of its class alone.
    return not all(installed(getattr(each, "func", each).__module__) for each in steps)


def join(optimizer: torch.optim.Optimizer, late: Iterable[nn.Parameter]) -> None:
    """Let an optimizer move parameters that have come since it was made, as Pyro's would.

    One of PyTorch's takes them into its first group.
    """
    into = optimizer.param_groups[0]["params"].append
    for parameter in late:
        getattr(optimizer, "takes_late", into)(parameter)


def _arguments(optimizer: PyroOptim, name: str) -> dict[str, Any]:
    given: Any = optimizer.pt_optim_args
    if optimizer.pt_optim_args_argc == 1:
        return given(normalize_param_name(name))
    return given(module_from_param_with_module_name(name), user_param_name(name))


def _clips(optimizer: PyroOptim, name: str) -> dict[str, float]:
    given: Any = optimizer.pt_clip_args
    if not callable(given):
        return given
    return given(module_from_param_with_module_name(name), user_param_name(name))


def _clip(clips: list[tuple[nn.Parameter, dict[str, float]]]) -> None:
    """Clip each parameter's gradient by itself, as Pyro does."""
    for parameter, clip in clips:
        if parameter.grad is not None and clip.get("clip_norm") is not None:
            clip_grad_norm_(parameter, clip["clip_norm"])
        if parameter.grad is not None and clip.get("clip_value") is not None:
            clip_grad_value_(parameter, clip["clip_value"])


def _pyro_names(program: Program, batch: Batch) -> dict[int, str]:
    """Return the names that Pyro's statements give the parameters; ours, where there is none."""
    with StatedNames() as names:
        program.reader.look(batch)
    return _known_names(program) | names.found


def _known_names(program: Program) -> dict[int, str]:
    """Return those of the statements that batches have brought so far; ours for all others."""
    own = {id(p): name.removeprefix("parts.") for name, p in program.named_parameters()}
    return own | program.own.names()
