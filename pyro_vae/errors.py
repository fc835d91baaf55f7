"""What can go wrong, by name; `PyroVaeError` is everything this library raises on purpose."""

import re
from typing import Any

_TABLE = re.compile(r"\n\s*Trace Shapes:")


class PyroVaeError(Exception):
    """Base of every error that pyro_vae raises on purpose."""

    def __init__(self, *args: Any) -> None:
        # Pyro makes an error of a traced function anew, with a table of shapes behind its words.
        super().__init__(*(_TABLE.split(a)[0] if isinstance(a, str) else a for a in args))


class DataError(PyroVaeError, ValueError):
    """The data have the wrong shape, type or values."""


class ConfigError(PyroVaeError, ValueError):
    """An argument or a setting is invalid."""


class ProgramError(PyroVaeError, ValueError):
    """A model and its guide do not fit together, or do not fit what was asked of them."""


class CheckpointError(PyroVaeError, ValueError):
    """A saved file is missing, damaged, or belongs to something else."""


class TrainingDiverged(PyroVaeError, RuntimeError):
    """The loss or a gradient stopped being finite."""


class ProcessError(PyroVaeError, RuntimeError):
    """Another process of the group that trains together has failed."""


class DeviceError(PyroVaeError, RuntimeError):
    """The requested device is absent or cannot run this."""
