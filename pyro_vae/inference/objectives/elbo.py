"""The evidence lower bound: by draws alone, and with its KL in closed form."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.errors import ProgramError
from pyro_vae.inference.objectives.objective import TermsObjective, require_rows
from pyro_vae.program.densities.terms import Terms


class ELBO(TermsObjective):
    r"""The evidence lower bound, estimated with K particles: a ``Trace_ELBO`` without device syncs.

    .. math:: \mathbb{E}_{q(w)}\Big[\log\tfrac{p(w)}{q(w)} + \tfrac{N}{B}\sum_n
       \mathbb{E}_{q(z_n \mid x_n)} \log\tfrac{p(x_n, z_n \mid w)}{q(z_n \mid x_n)}\Big] / N

    Latents with a reparametrised sampler get the pathwise gradient, others the score function
    (per datum: the signal of one datum does not enter another's gradient). A factor of the guide
    counts as in ``Trace_ELBO``, value and gradient; besides, it is in the signal of latents that
    have a score function, as the gradient's mean asks.

    Arguments:
        num_particles: K, draws of the local latents per datum, in one pass.
        num_global_samples: S, draws of the global latents, in a loop.

    Raises:
        ConfigError: A count below 1.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114
        | Black Box Variational Inference (Ranganath et al., 2014), arXiv:1401.0118
    """

    averages = True

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative ELBO per datum."""
        value = elbo_of(terms)
        if not terms.score and not terms.factor_score:
            return -value
        surrogate = elbo_of(terms, detached=(*terms.no_path, *terms.factor_score))
        surrogate = surrogate + _score_term(terms.score, terms.signal, terms.global_signal, terms)
        # A factor multiplies what Pyro's does: the log weight, which has no factor in it. The mean
        # of its gradient is not zero, so that what all data share does not fall out.
        whole: Any = terms.global_log_weight
        share = terms.batch_size / terms.size * whole
        share = share[:, None, None] if isinstance(share, Tensor) else share
        surrogate = surrogate + _score_term(
            {name: each for name, each in terms.factor_score.items() if each.dim() == 3},
            terms.log_weight + share,
            whole,
            terms,
        )
        surrogate = surrogate + _score_term(
            {name: each for name, each in terms.factor_score.items() if each.dim() == 1},
            terms.log_weight,
            whole,
            terms,
        )
        return -(value.detach() + surrogate - surrogate.detach())


class AnalyticELBO(TermsObjective):
    r"""The ELBO with the KL of each local latent in closed form, where that is right and known.

    .. math:: \mathbb{E}_q[\log p(x \mid z)] - \sum_l
       \mathbb{E}_q\,\mathrm{KL}(q(z_l \mid x, \cdot) \,\|\, p(z_l \mid \cdot))

    A latent whose prior may depend on latents that the guide draws after it (a bottom-up guide of a
    hierarchical model) keeps its Monte-Carlo KL: integrating over it alone would be wrong. So does
    one whose pair of distributions has no registered KL, and one under a mask or under a weight
    other than ``beta``. The bound is that of ``ELBO``, its gradient has less noise: early in a
    training that can decide whether a code comes to life or collapses.

    Arguments:
        num_particles, num_global_samples: As for ``ELBO``.

    Raises:
        ConfigError: A count below 1.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114, App. B
    """

    averages = True

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        if terms.score:
            raise ProgramError(
                f"AnalyticELBO: site {next(iter(terms.score))!r} has no reparametrised sampler"
            )
        value = elbo_of(terms)
        for name in analytic_sites(terms):
            estimate = terms.kl(name)
            analytic = torch.stack(
                [kl_divergence(draw.posterior, draw.prior).sum() for draw in terms.latents[name]]
            ).sum()
            # Summed over nested plates, averaged over draws, particles and data.
            weight = terms.latents[name][0].kl_weight
            value = value + estimate.mean() - weight * analytic / estimate.numel()
        return -value


def analytic_sites(terms: Terms) -> list[str]:
    """Return the local latents whose KL may be taken in closed form."""
    shared = terms.global_log_p.keys() & terms.global_log_q.keys()
    found: list[str] = []
    for index, (name, draws) in enumerate(terms.latents.items()):
        # The globals, and the latents before this one in the model, are its possible parents; all
        # must be drawn before it in the guide too.
        parents = {*shared, *list(terms.latents)[:index]}
        drawn = set(terms.drawn[: terms.drawn.index(name)])
        alone, pair = draws[0].kl_weight is not None, (draws[0].posterior, draws[0].prior)
        if parents <= drawn and alone and name not in terms.carried and has_kl(*pair):
            found.append(name)
    return found


def has_kl(posterior: Any, prior: Any) -> bool:
    """Return whether torch or Pyro knows the KL of this pair in closed form."""
    try:
        kl_divergence(posterior, prior)
    except NotImplementedError:
        return False
    return True


def elbo_of(terms: Terms, detached: tuple[str, ...] = ()) -> Tensor:
    """Return the ELBO estimate in nats per datum; log q of the ``detached`` sites as a constant."""
    local_mean = terms.signal.mean()
    weight: Any = terms.global_signal
    counted = terms.log_q | terms.global_log_q | terms.factors
    for name in detached:  # adding and taking away the same value leaves its gradient out
        nothing = counted[name] - counted[name].detach()
        if nothing.dim() == 3:
            local_mean = local_mean + nothing.mean()
        else:
            weight = weight + nothing
    if isinstance(weight, Tensor):
        return local_mean + weight.mean() / terms.size
    return local_mean


def _score_term(
    scores: Mapping[str, Tensor], signal: Tensor, global_signal: Any, terms: Terms
) -> Tensor | float:
    """Return the surrogate whose gradient is the score-function part, per datum."""
    if any(score.dim() == 3 for score in scores.values()):
        require_rows(terms)
    signal = signal.detach()
    whole = global_signal + terms.size * signal.mean((1, 2))
    parts = [
        (signal * score).mean()
        if score.dim() == 3
        else (whole.detach() * score).mean() / terms.size
        for score in scores.values()
    ]
    return torch.stack(parts).sum() if parts else 0.0
