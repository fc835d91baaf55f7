"""Figures of what a program has learned, from tensors, arrays and dicts alone.

Each function returns a ``matplotlib.figure.Figure`` of its own: pyplot, its backend and its global
settings are never touched, so these work in scripts, notebooks and threads alike.
"""

from typing import TYPE_CHECKING, NoReturn

from pyro_vae.names import refuse as _refuse
from pyro_vae.plots.collapse import collapse_curves, cures, diagnosis
from pyro_vae.plots.curves import curves
from pyro_vae.plots.documents import documents
from pyro_vae.plots.figure_files import save
from pyro_vae.plots.images import interpolations, reconstructions, samples
from pyro_vae.plots.inference_gaps import gaps
from pyro_vae.plots.latent import latent_map
from pyro_vae.plots.posterior_panels import posterior
from pyro_vae.plots.sequence_panels import piano_rolls, step_kl
from pyro_vae.plots.style import DPI, PALETTE
from pyro_vae.plots.topic_words import topic_words

__all__ = [
    "DPI",
    "PALETTE",
    "collapse_curves",
    "cures",
    "curves",
    "diagnosis",
    "documents",
    "gaps",
    "interpolations",
    "latent_map",
    "piano_rolls",
    "posterior",
    "reconstructions",
    "samples",
    "save",
    "step_kl",
    "topic_words",
]


def __dir__() -> list[str]:
    """Return the figures: files of the package bear the names of some."""
    return sorted(__all__)


if not TYPE_CHECKING:  # as of the library itself

    def __getattr__(name: str) -> NoReturn:
        """Say what a figure of another library is called here."""
        _refuse(__name__, name, __all__, {})
