"""The state of optimizers by the names of the parameters: order and shape cannot mix it up."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import CheckpointError
from pyro_vae.layouts import laid_out_like

# What their C++ kernels read without a look at shapes: the entries that each parameter must have.
_KERNELS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.Adagrad: {"step", "sum"},
    torch.optim.SGD: set(),
}
_PLAIN = bool | int | float | str | None
# Of an option: a step with a larger float leaves float32, and a larger integer no float holds.
_LARGEST, _LARGEST_INTEGER = 1e30, 2**53


def parameter_names(
    modules: Mapping[str, nn.Module], wanted: Mapping[int, str] | Collection[str] = ()
) -> dict[int, str]:
    """Return the name of each parameter by its identity: ``program.parts.net.weight``.

    Arguments:
        modules: What holds them.
        wanted: Of a parameter that several layers share, the name to take, by its identity or among
            names; it is the first of its names where none is wanted.
    """
    names: dict[int, str] = {}
    for prefix, module in modules.items():
        for each, parameter in module.named_parameters(remove_duplicate=False):
            name, key = f"{prefix}.{each}", id(parameter)
            chosen = wanted.get(key) == name if isinstance(wanted, Mapping) else name in wanted
            if chosen or key not in names:
                names[key] = name
    return names


def names_of_replaced(
    replaced: Mapping[nn.Parameter, str],
    program: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    first: Mapping[int, str],
) -> dict[int, str]:
    """Return the names of parameters that a program had, by their ids, where a run may go on.

    It may where two layers have been tied: the parameter that both use now has a name of its own.
    Else an optimizer that has never moved such a one goes on alike over what the program has in its
    place at first. One that has would train on what nothing uses any more.

    Arguments:
        replaced: What no part of the program holds any longer, with its name in it.
        program: It has others under these names.
        optimizers: They hold the replaced ones.
        first: The names of parameters, by their ids, as they came to the run.
    """
    held = {p for each in optimizers for group in each.param_groups for p in group["params"]}
    moved = {p for each in optimizers for p in each.state}
    names = parameter_names({"program": program}, first)
    here = {names[id(p)] for p in program.parameters()}
    trained = {names[id(p)] for p in program.parameters() if p in held}
    found = {parameter: f"program.{name}" for parameter, name in replaced.items()}
    return {
        id(parameter): name
        for parameter, name in found.items()
        if name not in here or (parameter not in moved and name not in trained)
    }


def without_dropped(
    saved: Mapping[str, Any], tensors: Mapping[str, Tensor], names: Collection[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what ``take_state`` returned, without parameters of some names."""
    groups = [
        {**group, "params": [name for name in group["params"] if name not in names]}
        for group in saved["groups"]
    ]
    scalars = {
        entry: {name: value for name, value in values.items() if name not in names}
        for entry, values in saved["scalars"].items()
    }
    kept = {key: value for key, value in tensors.items() if key.partition("/")[2] not in names}
    return {**saved, "groups": groups, "scalars": scalars}, kept


def take_state(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return copies of an optimizer's tensors by name, and the rest of its state for JSON.

    Raises:
        CheckpointError: An option or an entry that a file cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    named = _named(optimizer, names)
    for name, parameter in named.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}/{entry}/{name}"] = value.clone()
            else:
                scalars.setdefault(entry, {})[name] = plain(entry, value)
    numbers = {id(parameter): name for name, parameter in named.items()}
    groups = [
        {
            "params": [numbers[id(parameter)] for parameter in group["params"]],
            "options": {k: plain(k, v) for k, v in group.items() if k != "params"},
        }
        for group in optimizer.param_groups
    ]
    return tensors, {"kind": type(optimizer).__name__, "groups": groups, "scalars": scalars}


def fit_state(
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    names: Mapping[int, str],
    where: str,
    renewed: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return what ``optimizer.load_state_dict`` takes, once all of it is known to fit.

    Arguments:
        optimizer: The one to be filled; it is not changed.
        saved, tensors: What ``take_state`` returned, ``tensors`` by ``entry/name``.
        names: ``parameter_names`` of this run.
        where: The file, for messages.
        renewed: Options that keep the values that this run has chosen for them.

    Raises:
        CheckpointError: Other parameters, groups, shapes or entries.
    """
    if saved["kind"] != type(optimizer).__name__:
        raise CheckpointError(
            f"{where}: holds the state of {saved['kind']}, this run has "
            f"{type(optimizer).__name__}; resume with the optimizer that started the run"
        )
    named = _named(optimizer, names)
    groups = _fit_groups(optimizer, saved["groups"], named, where, renewed)
    state: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        entry, name = key.split("/", 1)
        if name not in named:
            raise CheckpointError(f"{where}: optimizer state of {name!r}, which is not trained")
        _check_entry(optimizer, entry, value, named[name], f"{where}: {entry} of {name!r}")
        alike = value.shape == named[name].shape
        # A file holds it by rows, and a fused step reads it as the parameter lies in memory.
        placed = laid_out_like(named[name], value) if alike else value
        state.setdefault(name, {})[entry] = placed
    for entry, values in saved["scalars"].items():
        for name, value in values.items():
            if name not in named or not _is_plain(value):
                raise CheckpointError(
                    f"{where}: optimizer state {entry!r} of {name!r} is malformed"
                )
            state.setdefault(name, {})[entry] = value
    for kind, needed in _KERNELS.items():
        if isinstance(optimizer, kind):
            _check_complete(optimizer, state, needed, named, where)
    numbers = {name: number for number, name in enumerate(named)}
    return {
        "state": {numbers[name]: entries for name, entries in state.items()},
        "param_groups": groups,
    }


def plain(name: str, value: Any) -> Any:
    """Return an option as JSON holds it; a tensor of one number becomes the number.

    Raises:
        CheckpointError: Neither a number, a word, nor a short list of them.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        return [plain(name, each) for each in value]
    if isinstance(value, _PLAIN):
        return value
    raise CheckpointError(
        f"optimizer: its {name!r} is a {type(value).__name__}, which a checkpoint cannot hold; "
        "expected a number, a word or a list of them. Train without out=, or with another optimizer"
    )


def _named(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, nn.Parameter]:
    """Return the optimizer's parameters in its own order; strangers are numbered."""
    found: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[names.get(id(parameter), f"unnamed.{len(found)}")] = parameter
    return found


def _fit_groups(
    optimizer: torch.optim.Optimizer,
    saved: list[Any],
    named: Mapping[str, nn.Parameter],
    where: str,
    renewed: frozenset[str],
) -> list[dict[str, Any]]:
    numbers = {id(parameter): (i, name) for i, (name, parameter) in enumerate(named.items())}
    if len(saved) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{where}: holds {len(saved)} parameter groups, this run has "
            f"{len(optimizer.param_groups)}; resume with the optimizer that started the run"
        )
    groups = []
    for index, (before, group) in enumerate(zip(saved, optimizer.param_groups, strict=True)):
        here = {numbers[id(parameter)][1] for parameter in group["params"]}
        strange = sorted(here.symmetric_difference(before["params"]))
        if strange:
            raise CheckpointError(
                f"{where}: parameter group {index} of the optimizer holds other parameters than "
                f"this run's ({', '.join(map(repr, strange[:4]))}); resume with the program and "
                "the optimizer that started the run"
            )
        fitted = {k: v for k, v in group.items() if k != "params"}
        for option, value in before["options"].items():
            flag = option in group and isinstance(group[option], bool | None)
            if option not in renewed and not flag:  # flags belong to the run, which compares them
                fitted[option] = _like(group.get(option), value, f"{where}: option {option!r}")
        groups.append({**fitted, "params": [numbers[id(p)][0] for p in group["params"]]})
    return groups


def _like(now: Any, value: Any, where: str) -> Any:
    """Return a saved option in the form that the optimizer keeps it in."""
    if isinstance(now, Tensor):
        fits = _is_plain(value) and isinstance(value, int | float)
        value = torch.full_like(now, value) if fits else value
    elif isinstance(now, list | tuple):
        fits = isinstance(value, list) and len(value) == len(now)
        value = (
            type(now)(_like(*pair, where) for pair in zip(now, value, strict=True)) if fits else 0
        )
    elif now is None:
        fits = _is_plain(value)
    elif isinstance(now, int | float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and _is_plain(value)
    else:
        fits = type(value) is type(now)
    if not fits:
        raise CheckpointError(f"{where} is {value!r}, this run's is {now!r}: they do not fit")
    return value


def _is_plain(value: Any) -> bool:
    """Return whether a value is a word, a flag, None, or a number that torch can take."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value) < (_LARGEST_INTEGER if isinstance(value, int) else _LARGEST)
    return isinstance(value, _PLAIN)


def _check_entry(
    optimizer: torch.optim.Optimizer, entry: str, value: Tensor, parameter: Tensor, where: str
) -> None:
    expected = torch.Size() if entry == "step" else parameter.shape
    if isinstance(optimizer, tuple(_KERNELS)):
        fits = value.shape == expected
    elif type(optimizer).__module__.startswith("torch.optim"):
        sizes = zip(reversed(value.shape), reversed(parameter.shape), strict=False)  # factored too
        fits = value.dim() <= parameter.dim() and all(a in (1, b) for a, b in sizes)
    else:
        fits = True  # a state of its own design, which its own step reads
    if not fits:
        raise CheckpointError(
            f"{where} has shape {tuple(value.shape)}, expected {tuple(expected)}; resume with the "
            "program that started the run"
        )


def _check_complete(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Mapping[str, Any]],
    needed: set[str],
    named: Mapping[str, nn.Parameter],
    where: str,
) -> None:
    amsgrad = {id(p) for g in optimizer.param_groups if g.get("amsgrad") for p in g["params"]}
    for name, entries in state.items():
        wanted = needed | ({"max_exp_avg_sq"} if id(named[name]) in amsgrad else set())
        absent = [entry for entry in wanted if not isinstance(entries.get(entry), Tensor)]
        if absent:
            raise CheckpointError(
                f"{where}: the optimizer state of {name!r} has no {' and no '.join(sorted(absent))}"
            )
