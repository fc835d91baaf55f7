"""What a training run leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from pyro_vae.arguments import typed
from pyro_vae.frames import to_dataset, to_frame
from pyro_vae.names import Answer

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure


@dataclass
class Run(Answer):
    """What a training run left behind.

    Arguments:
        program: What was trained, as it was given; it holds the best weights where there was a
            validation set, the last ones otherwise.
        history: One array per column (``epoch``, ``loss``, ``elbo``, ``valid_elbo``, ``beta`` or
            ``beta[site]``, ``lr``, ``seconds``), in nats per datum where they are bounds.
        best_epoch: The epoch whose weights the program holds.
        steps: Optimizer steps taken.
        device: Where it trained.
        folder: The run folder, if any; text where it is an address.
        stopped_early: Whether patience or a callback ended it.
        rank: Which of the processes that trained together this one is; 0 writes the files.
        world_size: How many they were.
        compiled: What ran the steps: ``"graph"``, or ``"eager"``, with the reason if there is one.
        judged: Which weights were judged, and are the program's now: ``"weights"``, those of the
            steps, or ``"ema of decay 0.999"``, their moving average.
        without_latents: Whether the program has none, as a language model: its ELBO is log p(x).
    """

    _elsewhere: ClassVar = {
        **{name: f"history[{name!r}]" for name in ("epoch", "loss", "elbo", "beta", "lr")},
        **{n: f"history[{n!r}]" for n in ("valid_elbo", "valid_bound", "valid_objective")},
        **dict.fromkeys(("losses", "train_loss"), "history['loss']"),
        **dict.fromkeys(("valid_loss", "val_loss"), "history['valid_elbo']"),
        "model": "program",
    }

    program: Any
    history: dict[str, np.ndarray]
    best_epoch: int
    steps: int
    device: torch.device
    folder: Path | str | None = None
    stopped_early: bool = False
    rank: int = 0
    world_size: int = 1
    compiled: str = "eager"
    judged: str = "weights"
    without_latents: bool = False

    @property
    def seconds(self) -> float:
        """Of all epochs together; NaN of a run without any."""
        told = self.history.get("seconds", ())
        return float(np.nansum(told)) if len(told) else math.nan

    @typed
    def plot(self) -> Figure:
        """Draw the history: `pyro_vae.plots.curves`."""
        from pyro_vae.plots.curves import curves

        return curves(self)

    def to_pandas(self) -> Any:
        """Return the history, a row per epoch.

        Raises:
            ConfigError: pandas is not installed.
        """
        return to_frame(self.history, "epoch")

    def to_xarray(self) -> Any:
        """Return the history as an ``xarray.Dataset`` along ``epoch``.

        Raises:
            ConfigError: xarray is not installed.
        """
        counted = {name: column for name, column in self.history.items() if name == "epoch"}
        columns = {name: column for name, column in self.history.items() if name != "epoch"}
        return to_dataset(columns, "epoch", **counted)

    def __repr__(self) -> str:
        """Show the last epoch, what the best one is worth, and the seconds of all."""
        last = {k: float(v[-1]) for k, v in self.history.items() if len(v)}
        if "seconds" in last:
            last["seconds"] = self.seconds
        numbers = ", ".join(f"{k}={v:.4g}" for k, v in last.items())
        return f"Run(best_epoch={self.best_epoch}{self._worth()}, steps={self.steps}, {numbers})"

    def _worth(self) -> str:
        """Return by what the best epoch was chosen, in brackets."""
        chosen = [k for k in ("valid_objective", "valid_bound", "valid_elbo") if k in self.history]
        at = np.flatnonzero(self.history.get("epoch", np.zeros(0)) == self.best_epoch)
        named = chosen and len(at)
        return f" ({chosen[0]}={self.history[chosen[0]][at[0]]:.4g})" if named else ""
