"""Checkpoints of a run: everything that the next step depends on, in tensors and JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import CheckpointError, ConfigError
from pyro_vae.storage.bundle import bundle_path, check_state, read_bundle, write_bundle

NAME = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps, in tensors of its own: training on does not change it."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @classmethod
    def take(
        cls,
        modules: dict[str, nn.Module],
        optimisers: list[torch.optim.Optimizer],
        best: dict[str, Tensor] | None,
        meta: dict[str, Any],
        device: torch.device,
    ) -> "Checkpoint":
        """Copy weights, optimiser states and random states (the CPU's and the device's)."""
        tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
        if device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
        for name, module in modules.items():
            for key, value in module.state_dict().items():
                tensors[f"{name}.{key}"] = value.clone()
        for key, value in (best or {}).items():
            tensors[f"best.{key}"] = value
        groups: list[dict[str, Any]] = []
        for index, optimiser in enumerate(optimisers):
            saved = optimiser.state_dict()
            groups.append({"param_groups": _plain(saved["param_groups"]), "scalars": {}})
            for number, entries in saved["state"].items():
                for key, value in entries.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimiser{index}.{number}.{key}"] = value.clone()
                    else:
                        groups[-1]["scalars"][f"{number}.{key}"] = value
        return cls(tensors, {**meta, "optimisers": groups})

    def write(self, folder: Path) -> None:
        """Write it into a run folder, in place of the one before, atomically."""
        write_bundle(folder, NAME, self.tensors, self.meta, allow_nonfinite=True)


def read_checkpoint(
    folder: Path,
    modules: dict[str, nn.Module],
    optimisers: list[torch.optim.Optimizer],
    settings: dict[str, Any],
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put a checkpoint's weights, optimiser states and random states back.

    Arguments:
        folder: The run folder.
        modules, optimisers: What is filled.
        settings: What must be equal for the run to be the same.
        device: Whose random state is put back.

    Returns:
        The best weights so far, and the meta data.

    Raises:
        CheckpointError: Missing, damaged, or of another program; nothing is changed then.
        ConfigError: Another run's settings; nothing is changed then.
    """
    tensors, meta = read_bundle(folder, NAME, allow_nonfinite=True)
    where = str(bundle_path(folder, NAME))
    states = {name: _part(tensors, f"{name}.") for name in modules}
    check_state(modules["program"].state_dict(), states["program"], where)
    _check_settings(settings, meta.get("settings", {}), where)
    for name, module in modules.items():
        check_state(module.state_dict(), states[name], where)
    got = [len(saved["param_groups"]) for saved in meta["optimisers"]]
    wanted = [len(optimiser.param_groups) for optimiser in optimisers]
    if got != wanted:
        raise CheckpointError(
            f"{where}: holds optimisers of {got} parameter groups, this run has {wanted}; resume "
            "with the objective and the optimiser that started the run"
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
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    return _part(tensors, "best."), meta


def _check_settings(settings: dict[str, Any], before: dict[str, Any], where: str) -> None:
    changed = [
        f"{name} = {before.get(name)!r}, this run {value!r}"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"resume: {where} has {'; '.join(changed)}; resume with the settings that started the "
            "run, or choose another folder"
        )


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
