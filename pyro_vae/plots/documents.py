"""Documents in the plane, near each other where they share topics. N documents, K topics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import integer, typed
from pyro_vae.errors import DataError
from pyro_vae.extras import extra
from pyro_vae.plots.latent import scatter
from pyro_vae.plots.style import numbers

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_PERPLEXITY = 30.0  # t-SNE's own default: about how many neighbours of a document stay near it


@typed
def documents(
    shares: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    seed: int = 0,
    title: str | None = None,
) -> Figure:
    r"""Draw documents as points, coloured by label, by t-SNE of their shares of the topics.

    Near are documents whose shares are: t-SNE keeps small distances of Hellinger, and large ones
    say nothing.

    .. math:: d(\theta, \theta')^2 = \tfrac12 \sum_k
        \big(\sqrt{\theta_k} - \sqrt{\theta'_k}\big)^2

    Arguments:
        shares: ``(N, K)``, as ``program.proportions(pv.encode(program, counts))`` gives them.
        labels: ``(N,)``, as those of `latent_map`; ``None``: one colour for all.
        seed: of t-SNE.
        title: ``None``: the default one.

    Raises:
        DataError: what are no shares, fewer than five documents, or labels of another number.

    References:
        Visualizing data using t-SNE (van der Maaten and Hinton, 2008).
    """
    theta = numbers("shares", shares)
    if theta.ndim != 2 or len(theta) < 5 or not (np.isfinite(theta).all() and theta.min() >= 0):
        raise DataError(
            f"shares: got shape {theta.shape}, expected (N, K), finite, from 0 up, N at least 5"
        )
    with extra("data", "plots.documents"):
        from sklearn.manifold import TSNE  # slow to import, and only this needs it

    near = min(_PERPLEXITY, (len(theta) - 1) / 3)
    seed = integer("seed", seed, 0)
    space = TSNE(2, perplexity=near, init="random", random_state=seed, n_jobs=1)
    points = space.fit_transform(np.sqrt(theta))
    figure = scatter(points, ("", ""), labels, title or "Documents by their topics (t-SNE)")
    figure.axes[0].set(xticks=[], yticks=[])  # neither axis has a unit
    return figure
