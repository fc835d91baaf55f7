"""When a run ends before its epochs do, and when it is written down."""

import time
from dataclasses import dataclass
from typing import Any

from pyro_vae.arguments import number, positive
from pyro_vae.errors import ConfigError
from pyro_vae.training.parallel import World


@dataclass
class Limits:
    """What bounds a run, and how much is lost at most of one that is killed.

    Arguments:
        wanted: Epochs; None are 10, or as many as ``max_steps`` may need.
        patience: Epochs without a better one after which the run ends.
        max_steps: Of the whole run, over all its continuations.
        max_minutes: Of this call alone.
        checkpoint_every: Epochs between two checkpoints.
        checkpoint_steps: Steps between two, within epochs too.
        checkpoint_minutes: Minutes between two, within epochs too.
        out: The run folder, if any.

    Raises:
        ConfigError: One is out of range, or has no folder to write to.
    """

    wanted: int | None
    patience: int | None
    max_steps: int | None
    max_minutes: float | None
    checkpoint_every: int | None
    checkpoint_steps: int | None
    checkpoint_minutes: float | None
    out: Any

    def __post_init__(self) -> None:
        for name in ("patience", "max_steps", "checkpoint_every", "checkpoint_steps"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else positive(name, value))
            if value is not None and self.out is None and name.startswith("checkpoint"):
                raise ConfigError(f"{name}: needs a run folder, out=...")
        for name in ("max_minutes", "checkpoint_minutes"):
            if getattr(self, name) is not None:
                setattr(self, name, number(name, getattr(self, name), "(0, inf)"))
        default = 10 if self.max_steps is None else self.max_steps
        self.epochs = positive("epochs", default if self.wanted is None else self.wanted)
        self._begun = self._written = time.monotonic()

    def steps(self, batches: int) -> int:
        """Return the steps of a run whose epochs have so many batches."""
        steps = self.epochs * batches
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def spent(self, steps: int, world: World) -> bool:
        """Return whether the run has taken its steps or, in some process, its time."""
        minutes = self.max_minutes
        late = minutes is not None and world.any(_since(self._begun, minutes))
        return late or (self.max_steps is not None and steps >= self.max_steps)

    def after_epoch(self, epoch: int) -> bool:
        """Return whether there is to be a checkpoint of this epoch."""
        return _falls_on(epoch, self.checkpoint_every) or self._due()

    def within_epoch(self, steps: int) -> bool:
        """Return whether there is to be a checkpoint of this step."""
        return _falls_on(steps, self.checkpoint_steps) or self._due()

    def written(self) -> None:
        """Note that a checkpoint has been tried."""
        self._written = time.monotonic()

    def _due(self) -> bool:
        minutes = self.checkpoint_minutes
        return minutes is not None and _since(self._written, minutes)


def _since(moment: float, minutes: float) -> bool:
    return time.monotonic() - moment >= 60 * minutes


def _falls_on(count: int, every: int | None) -> bool:
    return every is not None and count % every == 0
