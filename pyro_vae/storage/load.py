"""Reading a saved program back."""

import os
from typing import Any

import torch

from pyro_vae import models
from pyro_vae.device import resolve_device
from pyro_vae.errors import CheckpointError
from pyro_vae.program.program import Program
from pyro_vae.storage.bundle import bundle_path, check_state, read_bundle
from pyro_vae.storage.save import NAME


def load(
    folder: str | os.PathLike[str], *, into: Any = None, device: str | torch.device = "cpu"
) -> Any:
    """Load a program that ``pv.save`` or ``pv.fit(out=...)`` wrote; loading never runs code.

    Arguments:
        folder: Where it was saved.
        into: Your own program, built as it was when it was saved: its weights are replaced. A
            program of ``pv.models`` is rebuilt from its configuration without it.
        device: Where a rebuilt program goes: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.

    Returns:
        The program, in eval mode.

    Raises:
        CheckpointError: Missing, damaged or foreign files, or weights that do not fit ``into``,
            which is unchanged then.
    """
    where = str(bundle_path(folder, NAME))
    if into is None:
        home = resolve_device(device)
        tensors, meta = read_bundle(folder, NAME, home)
        with torch.random.fork_rng([]):  # initial weights are drawn, and replaced at once
            program = _rebuild(meta, where)
        program.to(home)
        floats = [value.dtype for value in tensors.values() if value.is_floating_point()]
        if floats:
            program.to(floats[0])
    else:
        program = into
        tensors, meta = read_bundle(folder, NAME, Program.of(into).device)
    wrapped = Program.of(program)
    late = meta.get("late", [])
    awaited = wrapped.own.awaited(tensors, late if isinstance(late, list) else [])
    # Before anything changes:
    check_state({**awaited, **wrapped.state_dict()}, tensors, where)
    wrapped.own.expect(awaited)
    expected = wrapped.own.expected
    expected.update({key: tensors[key] for key in expected})
    wrapped.load_state_dict({key: v for key, v in tensors.items() if key not in expected})
    wrapped.eval()
    return program


def _rebuild(meta: dict[str, Any], where: str) -> Any:
    name, config = meta.get("program"), meta.get("config")
    # Only a public class of this package is ever looked up: a file cannot name anything else.
    if name not in models.__all__ or config is None:
        raise CheckpointError(
            f"{where}: holds {name!r}, which is not rebuilt from its configuration; build it as it "
            "was and pass it: pv.load(folder, into=program)"
        )
    try:
        return getattr(models, name)(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: configuration of {name} does not fit: {error}") from error
