"""A callback that watches for posterior collapse while a program trains."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import default_convert

from pyro_vae.arguments import counted, positive, rows, typed
from pyro_vae.device import seeded
from pyro_vae.evaluation.diagnose import Diagnosis, diagnose
from pyro_vae.program.batches.streams import join_batches
from pyro_vae.program.program import Program

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure


class CollapseMonitor:
    """Diagnose after each epoch: ``pv.fit(..., callbacks=[pv.CollapseMonitor(x)])``.

    The training's random numbers are left alone, and the noise of the diagnosis is the same each
    time, so that epochs can be compared.

    Arguments:
        data: Held-out data, one row per datum, in any form that ``fit`` takes; about a thousand
            rows do.
        every: Epochs between two diagnoses.
        probes: Draws of z behind the mutual information.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> import torch, pyro_vae as pv
        >>> x, monitor = torch.ones(8, 4), CollapseMonitor(torch.ones(8, 4))
        >>> run = pv.fit(pv.models.VAE(4, 2, (8,)), x, epochs=2, progress=False,
        ...              callbacks=[monitor])
        >>> monitor.history["epoch"]
        array([1., 2.])
    """

    @typed
    def __init__(self, data: Any, *, every: int = 1, probes: int = 500) -> None:
        rows("data", data)
        # Each diagnosis reads the data anew, which an iterator does not allow.
        if isinstance(data, Iterator):
            data = join_batches([default_convert(batch) for batch in data])
        self.data = data
        self.every = positive("every", every)
        self.probes = positive("probes", probes)
        self.epochs: list[int] = []
        self.diagnoses: list[Diagnosis] = []

    def __repr__(self) -> str:
        last = f", last {self.diagnoses[-1]}" if self.diagnoses else ""
        seen = counted(len(self.diagnoses), "diagnosis", "diagnoses")
        return f"{type(self).__name__}({seen}{last})"

    def __call__(self, run: Any) -> None:
        """Diagnose the program as it is."""
        epoch = int(run.history["epoch"][-1])
        if epoch % self.every:
            return
        with seeded(Program.of(run.program).device, 0):
            found = diagnose(run.program, self.data, probes=self.probes)
        self.epochs.append(epoch)
        self.diagnoses.append(found)

    @property
    def history(self) -> dict[str, np.ndarray]:
        """One array per quantity: ``epoch``, ``kl`` (and ``kl[site]`` of several), ``information``,
        ``marginal_kl`` (an estimate from above; NaN where the data are too few to tell),
        ``active_units`` (or ``active_units[site]``)."""
        rows = [_row(found) for found in self.diagnoses]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
        return {"epoch": np.array(self.epochs, dtype=float)} | columns

    @typed
    def plot(self) -> "Figure":
        """Draw what was seen: `pyro_vae.plots.collapse_curves`."""
        from pyro_vae.plots.collapse import collapse_curves

        return collapse_curves(self.history)


def _row(found: Diagnosis) -> dict[str, float]:
    row = {"kl": found.total_kl}
    told = found.information
    if told is not None:
        row["information"] = told.lower
        row["marginal_kl"] = np.nan if told.saturated else told.marginal_kl
    several = len(found.kl) > 1
    for site, count in found.active_units.items():
        row[f"active_units[{site}]" if several else "active_units"] = float(count)
    return row | ({f"kl[{site}]": kl for site, kl in found.kl.items()} if several else {})
