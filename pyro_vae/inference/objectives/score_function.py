"""Score-function objectives for discrete latents, and what lowers their variance."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_vae.arguments import number, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.elbo import elbo_of
from pyro_vae.inference.objectives.objective import (
    TermsObjective,
    Update,
    require_rows,
    with_globals,
)
from pyro_vae.inference.sampling.importance_weights import log_mean_exp
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.terms import Terms, stack
from pyro_vae.program.handlers import Message, data_frame, sample_sites
from pyro_vae.program.program import Program


@typed
class NVIL(nn.Module, TermsObjective):
    r"""The ELBO with the score-function gradient, centred and scaled as in NVIL.

    .. math:: \nabla_\phi = \mathbb{E}\Big[\frac{l - C_\psi(x) - c}{\max(1, \sqrt v)}
       \nabla_\phi \log q(z \mid x)\Big], \quad l = \log p(x, z) - \log q(z \mid x)

    c and v are running moments of the centred signal, moved once per training step; the network C
    learns to predict it by least squares in the same update. Reparametrised latents keep their
    pathwise gradient.

    Arguments:
        baseline: Network C of the model's arguments, to ``(B,)`` or ``(B, 1)``; None has no
            input-dependent part.
        decay: Of the running mean and variance, in [0, 1).
        num_particles, num_global_samples: As for ``ELBO``.

    Raises:
        ConfigError: ``decay`` out of range.
        ProgramError: The baseline answers another shape.

    References:
        | Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014),
          arXiv:1402.0030
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        baseline: nn.Module | None = None,
        *,
        decay: float = 0.9,
        num_particles: int = 1,
        num_global_samples: int = 1,
    ) -> None:
        nn.Module.__init__(self)
        TermsObjective.__init__(self, num_particles, num_global_samples)
        self.baseline = baseline
        self.decay = number("decay", decay, "[0, 1)")
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.ones(()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Pyro's convention: ``objective(model, guide)`` is an ``ELBOModule``."""
        return TermsObjective.__call__(self, *args, **kwargs)

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over the program's parameters and the baseline's."""
        return [Update(self.per_datum, (*program.parameters(), *self.parameters()))]

    def loss_of_joint(self, joint: Joint) -> tuple[Tensor, int]:
        """Return the loss per datum, and N."""
        terms = joint.terms(self.num_global_samples, self.num_particles)
        value = elbo_of(terms)
        if not terms.score or not torch.is_grad_enabled():
            return -value, terms.size
        signal = terms.signal.detach()
        predicted = self._predict(joint, signal)
        residual = signal - predicted - self.mean
        centred = residual.detach()
        scaled = centred / self.variance.sqrt().clamp(min=1.0)
        if self.training:
            self._move(signal - predicted.detach(), centred)
        surrogate = elbo_of(terms, detached=terms.no_path)
        surrogate = surrogate + (scaled * local_score(terms, "NVIL")).mean()
        if self.baseline is not None:
            surrogate = surrogate - residual.square().mean()
        return -(value.detach() + surrogate - surrogate.detach()), terms.size

    def _predict(self, joint: Joint, signal: Tensor) -> Tensor:
        if self.baseline is None:
            return signal.new_zeros(())
        predicted = self.baseline(*joint.args, **joint.kwargs)
        rows = signal.shape[-1]
        if predicted.shape not in ((rows,), (rows, 1)):
            raise ProgramError(
                f"NVIL: the baseline answers {tuple(predicted.shape)}, expected ({rows},)"
            )
        return predicted.reshape(rows)

    @torch.no_grad()
    def _move(self, signal: Tensor, centred: Tensor) -> None:
        self.mean.mul_(self.decay).add_((1 - self.decay) * signal.mean())
        self.variance.mul_(self.decay).add_((1 - self.decay) * centred.square().mean())


class RLOO(TermsObjective):
    r"""The ELBO with the score-function gradient and the leave-one-out baseline.

    .. math:: \nabla_\phi = \mathbb{E}\Big[\frac{1}{K - 1}\sum_k (l_k - \bar l)\,
       \nabla_\phi \log q(z_k \mid x)\Big]

    Arguments:
        num_particles: K, at least 2.
        num_global_samples: S, draws of the global latents.

    Raises:
        ConfigError: A count below 1.

    References:
        | Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019)
    """

    @typed
    def __init__(self, num_particles: int = 2, num_global_samples: int = 1) -> None:
        super().__init__(num_particles, num_global_samples)
        _at_least_two(num_particles)

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative ELBO per datum."""
        value = elbo_of(terms)
        signal = terms.signal.detach()
        count = signal.shape[1]
        centred = (signal - signal.mean(1, keepdim=True)) * (count / (count - 1))
        surrogate = elbo_of(terms, detached=terms.no_path)
        surrogate = surrogate + (centred * local_score(terms, "RLOO")).mean()
        return -(value.detach() + surrogate - surrogate.detach())


class VIMCO(TermsObjective):
    r"""The importance-weighted bound for discrete latents, with per-sample learning signals.

    .. math:: \nabla = \mathbb{E}\Big[\sum_k (\hat L - \hat L_{-k}) \nabla \log q(z_k \mid x)
       + \sum_k \tilde w_k \nabla \log w_k\Big]

    In :math:`\hat L_{-k}` the weight of particle k is the geometric mean of the others.

    Arguments:
        num_particles: K, at least 2.
        num_global_samples: S, draws of the global latents.

    Raises:
        ConfigError: A count below 1.

    References:
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016), arXiv:1602.06725
    """

    @typed
    def __init__(self, num_particles: int = 5, num_global_samples: int = 1) -> None:
        super().__init__(num_particles, num_global_samples)
        _at_least_two(num_particles)

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        bound = log_mean_exp(terms.log_weight, dim=1)
        signal = bound.detach().unsqueeze(1) - self._without(terms.log_weight.detach())
        if isinstance(terms.factor, Tensor):
            signal = signal - terms.factor.detach() / terms.factor.shape[1]
        score = (signal * local_score(terms, "VIMCO")).sum(1).mean()
        return -with_globals(bound.mean() + score - score.detach(), terms)

    @staticmethod
    def _without(log_weight: Tensor) -> Tensor:
        """Return the bound with each weight replaced by the others' geometric mean, (S, K, B)."""
        count = log_weight.shape[1]
        others = (log_weight.sum(1, keepdim=True) - log_weight) / (count - 1)
        own = torch.eye(count, dtype=torch.bool, device=log_weight.device)[None, :, :, None]
        replaced = torch.where(own, others.unsqueeze(2), log_weight.unsqueeze(1))
        return log_mean_exp(replaced, dim=2)


class DisARM(TermsObjective):
    r"""The ELBO of Bernoulli latents with the antithetic, Rao-Blackwellised gradient.

    .. math:: \nabla_{\alpha} = \mathbb{E}\big[\tfrac12 (l(b) - l(\tilde b))\, (-1)^{\tilde b}
       1[b \ne \tilde b]\, \sigma(|\alpha|)\big], \quad b = 1[u < \sigma(\alpha)],\
       \tilde b = 1[1 - u < \sigma(\alpha)]

    α are the logits. Several stochastic layers take one pass each: the layers above are shared,
    the layer's units are an antithetic pair, the layers below are drawn for each of the two.

    Raises:
        ProgramError: at the first step: a local latent that is no Bernoulli, or none.

    References:
        | DisARM: An Antithetic Gradient Estimator for Binary Latent Variables (Dong et al., 2020),
          arXiv:2006.10680
    """

    def __init__(self) -> None:
        super().__init__(num_particles=2)

    def loss_of_joint(self, joint: Joint) -> tuple[Tensor, int]:
        """Return the loss per datum, and N."""
        passes = list(self._passes(joint))
        terms = passes[0][0]
        value = torch.stack([elbo_of(terms) for terms, _ in passes]).mean()
        model = torch.stack([elbo_of(t, detached=tuple(t.log_q)) for t, _ in passes]).mean()
        guide = torch.stack([surrogate for _, surrogate in passes]).sum()
        surrogate = model + guide
        return -(value.detach() + surrogate - surrogate.detach()), terms.size

    def _passes(self, joint: Joint) -> Iterator[tuple[Terms, Tensor]]:
        layer, layers = 0, 1
        while layer < layers:
            with AntitheticPair(layer) as pair:
                model, guide = joint.traces(2)
            layers = pair.seen
            if layers == 0:
                raise ProgramError("DisARM: the guide has no local latent")
            terms = stack([joint.scored(model, guide, 2)])
            # The signal of a datum goes to that datum's units alone.
            signal = joint.placed(terms.signal.detach()[0].diff(dim=0).neg())
            yield terms, self._surrogate(signal, terms, guide, pair)
            layer += 1

    @staticmethod
    def _surrogate(signal: Tensor, terms: Terms, guide: Trace, pair: "AntitheticPair") -> Tensor:
        site = dict(sample_sites(guide))[pair.site]
        distribution = site["fn"]
        alpha = _bernoulli_logits(pair.site, distribution).unflatten(0, (2, -1))[0]
        first, second = site["value"].unflatten(0, (2, -1))
        half = signal / 2
        half = half.reshape(half.shape + (1,) * len(distribution.event_shape))
        grad = half * (1 - 2 * second) * (first != second) * torch.sigmoid(alpha.detach().abs())
        return (grad * alpha).sum() / terms.batch_size


class AntitheticPair(Messenger):
    """Draw the units of one Bernoulli layer as an antithetic pair along the particle dimension.

    Arguments:
        layer: Which local latent of the guide, in the order of drawing. Those before it take one
            value for both particles.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.seen = 0
        self.site = ""

    def _pyro_sample(self, msg: Message) -> None:
        if msg["is_observed"] or msg["done"] or msg["value"] is not None:
            return
        if data_frame(msg) is None or site_is_subsample(msg):
            return
        probs = torch.sigmoid(_bernoulli_logits(msg["name"], msg["fn"]).detach())
        half = probs.unflatten(0, (2, -1))[0]
        uniform = torch.rand_like(half)
        if self.seen < self.layer:
            one = (uniform < half).to(probs.dtype)
            msg["value"] = torch.stack([one, one]).reshape(probs.shape)
        elif self.seen == self.layer:
            pair = torch.stack([uniform < half, 1 - uniform < half]).to(probs.dtype)
            msg["value"] = pair.reshape(probs.shape)
            self.site = msg["name"]
        if self.seen <= self.layer:
            msg["done"] = True
        self.seen += 1


def _bernoulli_logits(site: str, distribution: Any) -> Tensor:
    base = distribution
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if type(base).__name__ != "Bernoulli":
        raise ProgramError(
            f"DisARM: site {site!r} is {type(base).__name__}, expected Bernoulli; use NVIL, RLOO "
            "or VIMCO"
        )
    shape = distribution.batch_shape + distribution.event_shape
    return base.logits.expand(shape)


def local_score(terms: Terms, objective: str) -> Tensor:
    """Return the summed log q of the local latents without a pathwise gradient, ``(S, K, B)``.

    Raises:
        ProgramError: A global latent has no pathwise gradient.
    """
    if terms.score:
        require_rows(terms)
    total: Any = 0.0
    for name, score in terms.score.items():
        if score.dim() != 3:
            raise ProgramError(
                f"{objective}: global site {name!r} has no reparametrised sampler; use ELBO"
            )
        total = total + score
    return total if isinstance(total, Tensor) else terms.log_weight.new_zeros(())


def _at_least_two(num_particles: int) -> None:
    if num_particles < 2:
        raise ConfigError(f"num_particles: got {num_particles}, expected at least 2")
