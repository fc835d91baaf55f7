"""The run folder: configuration, history, TensorBoard events, checkpoints and weights."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_vae._version import __version__
from pyro_vae.errors import ConfigError
from pyro_vae.program.program import Program
from pyro_vae.storage.atomic import atomic_write_text
from pyro_vae.storage.bundle import bundle_path
from pyro_vae.storage.checkpoint import NAME
from pyro_vae.storage.history import History
from pyro_vae.storage.save import NAME as PROGRAM
from pyro_vae.storage.save import describe


class RunFolder:
    """A folder that holds one run.

    Arguments:
        path: Made where absent, when there is something to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logger: Any = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], resume: bool) -> "RunFolder":
        """Return the folder, absent, empty or with the run to go on with; nothing is written.

        Raises:
            ConfigError: It is a file, or holds another run, or one that cannot be gone on with.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"out: {folder} is a file, expected a folder")
        if (folder / "config.json").exists() and not resume:
            raise ConfigError(
                f"out: {folder} holds another run; choose a new folder, or pass resume=True"
            )
        found = cls(folder)
        if resume and not found.has_checkpoint and bundle_path(folder, PROGRAM).exists():
            raise ConfigError(
                f"resume: {folder} holds a trained program and no checkpoint to go on from; choose "
                "a new folder (pv.load reads the program)"
            )
        return found

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bundle_path(self.path, NAME).exists()

    def write_config(self, program: Program, settings: dict[str, Any]) -> None:
        """Make the folder and write what was run: program, settings, versions."""
        config = {
            **describe(program),
            "fit": settings,
            "versions": {
                "pyro_vae": __version__,
                "torch": torch.__version__,
                "pyro": pyro.__version__,
                "python": platform.python_version(),
            },
            "device": str(program.device),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.path / "config.json", json.dumps(config, indent=2) + "\n")

    def log(self, row: dict[str, float], step: int) -> None:
        """Send one row to TensorBoard."""
        if self._logger is None:
            # Here, not at the top: importing the logger takes longer than a small run.
            from lightning_fabric.loggers import TensorBoardLogger

            self._logger = TensorBoardLogger(self.path, name="", version="tensorboard")
        self._logger.log_metrics(row, step)

    def close(self, history: History) -> None:
        """Write the history and flush the events."""
        if history.rows:
            history.write_csv(self.path / "history.csv")
        if self._logger is not None:
            self._logger.finalize("success")
