"""Checkpoints of a run: everything that the next step depends on, in tensors and JSON."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import CheckpointError, ConfigError
from pyro_vae.files import check_state, read_bundle, write_bundle

NAME = "checkpoint"


def write_checkpoint(
    folder: Path,
    modules: dict[str, nn.Module],
    optimisers: list[torch.optim.Optimizer],
    best: dict[str, Tensor] | None,
    meta: dict[str, Any],
) -> None:
    """Write weights, optimiser states, best weights, random states and ``meta``, atomically."""
    tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"rng.cuda{index}"] = state
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            tensors[f"{name}.{key}"] = value
    for key, value in (best or {}).items():
        tensors[f"best.{key}"] = value
    groups: list[dict[str, Any]] = []
    for index, optimiser in enumerate(optimisers):
        saved = optimiser.state_dict()
        groups.append({"param_groups": _plain(saved["param_groups"]), "scalars": {}})
        for number, entries in saved["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser{index}.{number}.{key}"] = value
                else:
                    groups[-1]["scalars"][f"{number}.{key}"] = value
    write_bundle(folder, NAME, tensors, {**meta, "optimisers": groups}, allow_nonfinite=True)


def read_checkpoint(
    folder: Path,
    modules: dict[str, nn.Module],
    optimisers: list[torch.optim.Optimizer],
    expected: dict[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put a checkpoint's weights, optimiser states and random states back.

    Arguments:
        folder: The run folder.
        modules, optimisers: What is filled.
        expected: Entries of the meta data that must be equal for the run to be the same.

    Returns:
        The best weights so far, and the meta data.

    Raises:
        CheckpointError: Missing, damaged, or of another program; nothing is changed then.
        ConfigError: Another run's settings; nothing is changed then.
    """
    tensors, meta = read_bundle(folder, NAME, allow_nonfinite=True)
    where = str(folder / NAME)
    for name, value in expected.items():
        if meta.get(name) != value:
            raise ConfigError(
                f"resume: {where} has {name} = {meta.get(name)}, this run {value}; resume with the "
                "settings that started the run, or choose another folder"
            )
    states = {name: _part(tensors, f"{name}.") for name in modules}
    for name, module in modules.items():
        check_state(module.state_dict(), states[name], where)
    if len(meta["optimisers"]) != len(optimisers):
        raise CheckpointError(
            f"{where}: holds {len(meta['optimisers'])} optimisers, this objective has "
            f"{len(optimisers)}; resume with the objective that started the run"
        )
    for name, module in modules.items():
        module.load_state_dict(states[name])
    for index, (optimiser, saved) in enumerate(zip(optimisers, meta["optimisers"], strict=True)):
        state: dict[int, dict[str, Any]] = {}
        for key, value in _part(tensors, f"optimiser{index}.").items():
            number, entry = key.split(".", 1)
            state.setdefault(int(number), {})[entry] = value
        for key, value in saved["scalars"].items():
            number, entry = key.split(".", 1)
            state.setdefault(int(number), {})[entry] = value
        pairs = zip(saved["param_groups"], optimiser.param_groups, strict=True)
        param_groups = [_as_before(*pair) for pair in pairs]
        optimiser.load_state_dict({"state": state, "param_groups": param_groups})
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"rng.cuda{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng.cuda{index}"], index)
    return _part(tensors, "best."), meta


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _as_before(saved: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """Return a saved parameter group with the tuples that JSON made into lists."""
    return {k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()}


def _plain(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return parameter groups as JSON can hold them; a tensor learning rate becomes a number."""
    return [
        {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()} for group in groups
    ]
