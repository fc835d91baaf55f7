"""Writing a program: its weights and what rebuilds it, never code."""

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from pyro_vae._version import __version__
from pyro_vae.arguments import shown, typed
from pyro_vae.errors import ConfigError
from pyro_vae.program.program import Program
from pyro_vae.storage.bundle import write_bundle
from pyro_vae.storage.paths import local_path, require_room
from pyro_vae.storage.plain_state import plain_state
from pyro_vae.storage.remote import RemoteFolder, is_address
from pyro_vae.threads import one_thread

NAME = "program"
_OF_FILES = {".pt", ".pth", ".pkl", ".ckpt", ".safetensors"}


@typed
@one_thread("save")
def save(program: Any, folder: str | os.PathLike[str]) -> Path | str:
    """Write a program's weights and configuration into one safetensors file, with its SHA-256.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        folder: Made where absent; a program saved there before is replaced in one step. Also an
            address that fsspec opens (``"s3://bucket/run"``).

    Returns:
        The folder.

    Raises:
        CheckpointError: A weight is not finite.
        ConfigError: No folder, or an address that cannot be opened.
        OSError: Disk full, no permission; what was there is intact.
    """
    wrapped = Program.of(program)
    meta = {"version": __version__, **describe(wrapped)}
    if is_address(folder):
        address = os.fspath(folder)
        remote = RemoteFolder("folder", address)
        with tempfile.TemporaryDirectory(prefix="pyro_vae-") as copy:
            write_bundle(copy, NAME, wrapped.state_dict(), meta)
            remote.write(Path(copy))
        return address
    home = local_path("folder", folder)
    require_room("folder", home)
    if home.suffix in _OF_FILES and not home.exists():
        raise ConfigError(
            f"folder: got {shown(str(home))}, the name of a file, expected that of a folder, as "
            f"{home.stem!r}: {NAME}.safetensors is written into it"
        )
    write_bundle(home, NAME, wrapped.state_dict(), meta)
    return home


def describe(program: Program) -> dict[str, Any]:
    """Return what a saved file says of a program: its class, and the arguments that rebuild it."""
    source = program.source
    kind = type(source)
    zoo = kind.__module__.startswith("pyro_vae.models")
    return {
        "program": kind.__name__,
        "config": getattr(source, "config", None) if zoo else None,
        "parameters": sum(p.numel() for p in program.parameters() if not is_lazy(p)),
        "late": program.own.made_late,
        "constraints": program.own.constraints.names(),
        "rows": program.rows.own,
        "trained_rows": program.rows.trained,
        "plain_state": plain_state(program),
        "dtype": str(next((p.dtype for p in program.parameters()), "none")),
    }


def state_modules(program: Program, objective: Any) -> dict[str, nn.Module]:
    """Return the modules whose state a checkpoint holds: the program, and a stateful objective."""
    modules: dict[str, nn.Module] = {"program": program}
    if isinstance(objective, nn.Module):
        modules["objective"] = objective
    return modules
