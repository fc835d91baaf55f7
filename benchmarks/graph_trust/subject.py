"""What is trained in every mode: a program, its data and what happens between the epochs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Options = Callable[[Any], Mapping[str, Any]]


def _nothing(program: Any) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Subject:
    """A program made ready to be trained by ``pv.fit``.

    Arguments:
        build: Makes the program, with random weights.
        data: Makes the training data.
        options: Further keywords of ``pv.fit``, given the program: callbacks, a transform.
        batch_size: B.
        epochs: Passes over the data, sixty steps together or more.
        dtype: Of weights and data.
        source: The folder that a published program comes from.
    """

    build: Callable[[], Any]
    data: Callable[[], Any]
    options: Options = _nothing
    batch_size: int = 10
    epochs: int = 12
    dtype: torch.dtype = torch.float64
    source: Path | None = None
