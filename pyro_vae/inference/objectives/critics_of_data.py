"""Autoencoders whose decoders a critic of the data judges: VAE/GAN, and latent autoencoders."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from pyro_vae.arguments import integer, number, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.adversarial import (
    Adversarial,
    codes,
    kl_weight_of,
    latents_of,
    rows_of,
    terms_of,
)
from pyro_vae.inference.objectives.objective import (
    OptimizerFactory,
    Update,
    require_rows,
    with_globals,
)
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.checks import distribution_name
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.site_densities import is_plain, masked_inside
from pyro_vae.program.densities.terms import Terms, stack
from pyro_vae.program.handlers import is_data, sample_sites, validation
from pyro_vae.program.program import Program
from pyro_vae.program.sites.plates import of_datum


@typed
class VAEGAN(Adversarial):
    r"""A variational autoencoder whose reconstructions are compared in the features of a critic.

    .. math:: \text{encoder: } \mathrm{KL} + L, \quad
       \text{decoder: } \gamma L - (1 - \gamma) \log \sigma(T(\tilde x)), \quad
       L = \tfrac12 \|f(x) - f(\hat x)\|^2, \\
       \text{critic: } -\log \sigma(T(x)) - \log \sigma(-T(\tilde x))

    with f the critic's features, :math:`\hat x` the mean of p(x | z) at z from the guide, and
    :math:`\tilde x` that and the same at z from the prior, in equal parts. No gradient of the
    critic's game reaches the encoder, none of L the critic. The decoder is what the mean of the
    observed site depends on; a scale of it that is learned stands still.

    Balance: a critic of which one cost is below ``equilibrium`` − ``margin`` is not trained on the
    next batch, a decoder against a critic of which one is above their sum is not; if that leaves
    neither, both are. (In the paper the costs are those of the batch itself, and the decoder's term
    is the critic's cost with its sign changed, which has the same aim and less slope.)

    Arguments:
        critic: Images ``(B | data)`` to ``(B,)`` or ``(B, h, w)``, as ``pv.nn.ConvCritic``; it has
            ``see(x)``, the features f, and ``judge(f)``, T.
        features: In place of ``critic.see`` in L: any module of data.
        gamma: γ in [0, 1].
        equilibrium: The cost about which the balance holds both; log 2 knows nothing.
        margin: Half the width of the balance; infinite always trains both.
        critic_optimizer: Makes the critic's optimizer; None takes that of ``fit``.

    Raises:
        ConfigError: An argument out of range.
        ProgramError: The model observes several sites, or one without a mean; a latent is global.

    References:
        | Autoencoding beyond pixels using a learned similarity metric (Larsen et al., 2016),
          arXiv:1512.09300
    """

    costs: Tensor
    seen = ("data",)
    example = "pv.nn.ConvCritic(shape)"

    def __init__(
        self,
        critic: nn.Module,
        *,
        features: nn.Module | None = None,
        gamma: float = 0.01,
        equilibrium: float = 0.68,
        margin: float = 0.4,
        critic_optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(critic, 1, critic_optimizer)
        self.features = features
        if features is None and not callable(getattr(critic, "see", None)):
            raise ConfigError(
                f"critic: got {type(critic).__name__}, expected one with see(x), the features of "
                "data, as pv.nn.ConvCritic; or give features="
            )
        self.gamma = number("gamma", gamma, "[0, 1]")
        self.equilibrium = number("equilibrium", equilibrium, "(0, inf)")
        self.margin = number("margin", margin, "[0, inf]")
        # In the state, so that a resumed run goes on alike.
        self.register_buffer("costs", torch.full((2,), math.log(2)))
        self._decoder_is_due = True

    def updates(self, program: Program) -> list[Update]:
        """Return the updates of the critic, the encoder and the decoder.

        Raises:
            ProgramError: A parameter stands in both model and guide.
        """
        decoder = decoder_parameters(program, "VAEGAN")
        _require_apart(program, decoder)
        known = {id(parameter) for parameter in decoder}
        encoder = tuple(p for p in program.parameters() if id(p) not in known)
        return [
            self.critic_update(program, due=self._critic_is_due),
            Update(self.encoder_loss, encoder, name="loss"),
            Update(self.decoder_loss, decoder, name="decoder", due=lambda: self._decoder_is_due),
        ]

    def _critic_is_due(self) -> bool:
        costs = self.costs.tolist()
        critic = min(costs) >= self.equilibrium - self.margin
        decoder = max(costs) <= self.equilibrium + self.margin
        neither = not (critic or decoder)
        self._decoder_is_due = decoder or neither
        return critic or neither

    def critic_loss(self, joint: Joint) -> Tensor:
        """Return the critic's loss at the data, at their reconstructions and at new ones."""
        with torch.no_grad():
            x, made = data_and_mean(joint.traces()[0], joint)
            drawn = data_and_mean(joint.prior_trace(), joint)[1]
        return self._costs(*self.critic(torch.cat([x, made, drawn])).chunk(3))

    def encoder_loss(self, joint: Joint) -> Tensor:
        """Return the KL and the distance of the features, per datum."""
        model, guide = joint.traces()
        kl_weight_of(model, guide, latents_of(joint, guide, "VAEGAN"), "VAEGAN")
        terms = stack([joint.scored(model, guide, 1)])
        require_rows(terms)
        x, made = data_and_mean(model, joint)
        return self._distance(x, made) - with_globals(-kl_of(terms), terms)

    def decoder_loss(self, joint: Joint) -> Tensor:
        """Return what moves the decoder, at codes that are constants, per datum."""
        model, guide, _ = joint.cut_traces()
        x, made = data_and_mean(model, joint)
        drawn = data_and_mean(joint.prior_trace(), joint)[1]
        apart, told = self._compared(x, made, drawn)
        self._costs(*told)
        deceived = (softplus(-told[1]).mean() + softplus(-told[2]).mean()) / 2
        loss = self.gamma * apart + (1 - self.gamma) * deceived
        return -with_globals(-loss, terms_of(joint, model, guide))

    def _compared(
        self, x: Tensor, made: Tensor, drawn: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the distance of the features, and what the critic says of each of the three."""
        critic: Any = self.critic
        # Another forward may do more than judge what is seen.
        shares = getattr(type(critic).forward, "judges_what_it_sees", False)
        if self.features is not None or not shares:
            return self._distance(x, made), critic(torch.cat([x, made, drawn])).chunk(3)
        real, seen = critic.see(x), critic.see(torch.cat([made, drawn]))  # once, for both ends
        told = critic.judge(real), *critic.judge(seen).chunk(2)
        return _half_square(real - seen[: len(x)]), told

    def _distance(self, x: Tensor, made: Tensor) -> Tensor:
        """Return half the squared distance of the features, the mean over the data."""
        see: Any = self.critic.see if self.features is None else standing(self.features)
        return _half_square(see(x) - see(made))

    def _costs(self, real: Tensor, made: Tensor, drawn: Tensor) -> Tensor:
        """Return the critic's loss, and note its two costs for the balance."""
        costs = softplus(-real).mean(), (softplus(made).mean() + softplus(drawn).mean()) / 2
        self.costs.copy_(torch.stack(costs).detach())
        return costs[0] + costs[1]


@typed
class LatentAutoencoder(Adversarial):
    r"""The autoencoder of latent diffusion: a code that is barely regularised, and sharp images.

    .. math:: -\mathbb{E}_q[\log p(x \mid z)] + a\,\|f(x) - f(\hat x)\|^2 + b\,\mathrm{KL}
       - c\, w\, T(\hat x), \qquad
       w = \frac{\|\nabla_z (\text{the first two})\|}{\|\nabla_z T(\hat x)\|}

    with :math:`\hat x` the mean of p(x | z) and T a critic of patches under the hinge loss, which
    joins in after ``start`` batches. The weight w, a constant to the gradient, keeps the critic's
    pull in proportion (in the source by the gradients in the decoder's last layer, here by those in
    the code). The pixel loss is the program's own observation: a Laplace is the absolute error.

    Arguments:
        critic: T, images ``(B | data)`` to ``(B,)`` or ``(B, h, w)``, as
            ``pv.nn.ConvCritic(..., patches=True)``.
        features: f, any module of data, which stands still; None: no such term.
        kl_weight: b.
        feature_weight: a.
        critic_weight: c.
        start: Batches before the critic joins in.
        critic_optimizer: Makes the critic's optimizer; None takes that of ``fit``.

    Raises:
        ConfigError: An argument out of range.
        ProgramError: The model observes several sites, or one without a mean; a latent is global.

    References:
        | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022),
          arXiv:2112.10752
        | Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021),
          arXiv:2012.09841
    """

    draw = 1.0
    batches: Tensor
    seen = ("data",)
    example = "pv.nn.ConvCritic(shape, patches=True)"

    def __init__(
        self,
        critic: nn.Module,
        *,
        features: nn.Module | None = None,
        kl_weight: float = 1e-6,
        feature_weight: float = 1.0,
        critic_weight: float = 0.5,
        start: int = 0,
        critic_optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(critic, 1, critic_optimizer)
        self.features = features
        self.kl_weight = number("kl_weight", kl_weight, "[0, inf)")
        self.feature_weight = number("feature_weight", feature_weight, "[0, inf)")
        self.critic_weight = number("critic_weight", critic_weight, "[0, inf)")
        self.start = integer("start", start, 0)
        # In the state, so that a resumed run goes on alike.
        self.register_buffer("batches", torch.zeros(1, dtype=torch.int64))
        self._joined = False

    def updates(self, program: Program) -> list[Update]:
        """Return the critic's update, due once it joins in, and that of the program."""
        _parameters_of_mean(program, "LatentAutoencoder")
        return [
            self.critic_update(program, due=self._critic_is_due),
            Update(self.per_datum, tuple(program.parameters())),
        ]

    def _critic_is_due(self) -> bool:
        if not self._joined:  # one look at the device per batch, and none afterwards
            self.batches.add_(1).clamp_(max=self.start + 1)
            self._joined = self.batches.item() > self.start
        return self._joined

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._joined = False

    def critic_loss(self, joint: Joint) -> Tensor:
        """Return the hinge loss of the critic at the data and at their reconstructions."""
        with torch.no_grad():
            x, made = data_and_mean(joint.traces()[0], joint)
        real, told = self.critic(torch.cat([x, made])).chunk(2)
        return (relu(1 - real).mean() + relu(1 + told).mean()) / 2

    def per_datum(self, joint: Joint) -> Tensor:
        """Return the program's loss in nats per datum; judged, that without the critic."""
        model, guide = joint.traces()
        names = latents_of(joint, guide, "LatentAutoencoder")
        kl_weight_of(model, guide, names, "LatentAutoencoder")
        terms = stack([joint.scored(model, guide, 1)])
        require_rows(terms)
        x, made = data_and_mean(model, joint)
        loss = -terms.log_likelihood().mean()
        if self.features is not None:
            see = standing(self.features)
            apart = (see(x) - see(made)).square().sum() / len(x)
            loss = loss + self.feature_weight * apart
        whole = loss - with_globals(-self.kl_weight * kl_of(terms), terms)
        if not torch.is_grad_enabled():
            return whole
        # Chosen before and after: what a critic says that has not joined in may be infinite.
        joined = (self.batches > self.start).squeeze()
        told = -self.critic(torch.where(joined, made, made.detach())).mean()
        latents: Any = [guide.nodes[name]["value"] for name in names]
        pull = self.critic_weight * _proportion(loss, told, latents) * told
        return whole + torch.where(joined, pull, 0.0)


def _proportion(loss: Tensor, told: Tensor, latents: list[Tensor]) -> Tensor:
    """Return how much larger one gradient in the latents is than another: a constant.

    1 where the latents have none: an encoder that stands still.
    """
    moved = [z for z in latents if z.requires_grad]
    if not moved:
        return loss.new_ones(())
    one, two = (_slope(each, moved) for each in (loss, told))
    return (one / (two + 1e-4)).clamp(0.0, 1e4).detach()


def _slope(value: Tensor, latents: list[Tensor]) -> Tensor:
    grads = torch.autograd.grad(value, latents, retain_graph=True, allow_unused=True)
    squares = [grad.square().sum() for grad in grads if grad is not None]
    return torch.stack([value.new_zeros(()), *squares]).sum().sqrt()


def _half_square(apart: Tensor) -> Tensor:
    """Return half the squared length of each row, the mean over the rows."""
    return apart.square().sum() / (2 * len(apart))


def kl_of(terms: Terms) -> Tensor:
    """Return the KL of all latents at one draw, the mean over the data."""
    log_p: Any = sum(terms.log_p[name] for name in terms.latents)
    return (terms.log_q_total() - log_p).mean()


def data_and_mean(model: Trace, joint: Joint) -> tuple[Tensor, Tensor]:
    """Return the data of the one observed site and their mean under the model, ``(B | data)``.

    Raises:
        ProgramError: The model observes several sites, or one under a mask or a weight, or whose
            distribution has no mean.
    """
    name, site = _observed(model)
    if not is_plain(site) or masked_inside(site["fn"]):
        raise ProgramError(
            f"site {name!r} stands under a mask or a weight, and a critic of the data sees all of "
            "them alike; leave it out, or use ELBO"
        )
    try:
        mean = site["fn"].mean
    except NotImplementedError as error:
        raise _no_mean(name, site) from error
    rows = rows_of(joint)
    x, mean = (of_datum(site, value, rows)[0] for value in (site["value"], mean))
    return x.to(mean.dtype), mean


def _observed(model: Trace) -> tuple[str, Any]:
    """Return name and site of the one observation."""
    seen = [(name, site) for name, site in sample_sites(model) if is_data(site)]
    if len(seen) != 1:
        raise ProgramError(
            f"a critic of the data sees one observed site, got {[name for name, _ in seen]}; "
            "observe one, or use ELBO"
        )
    return seen[0]


def _no_mean(name: str, site: Any) -> ProgramError:
    return ProgramError(
        f"site {name!r}: {distribution_name(site['fn'])} has no mean for a critic to see; use "
        "Bernoulli, Gaussian or another observation that has one"
    )


def standing(features: nn.Module) -> nn.Module:
    """Return a network that stands still: no moments follow its inputs, nothing is left out."""
    return features.eval() if features.training else features


def _example(program: Program) -> Batch:
    """Return as many rows as the program has read: a factor of each row has that many."""
    return program.rows.stood_in(program.examples.example(program.reader.rows_read))


def decoder_parameters(program: Program, objective: str) -> tuple[nn.Parameter, ...]:
    """Return the parameters that the mean of the observed site depends on, at given latents.

    Raises:
        ProgramError: There are none, or no such mean.
    """
    found = _parameters_of_mean(program, objective)
    if not found:
        raise ProgramError("the mean of the observed site depends on no parameter to train")
    return found


def _parameters_of_mean(program: Program, objective: str) -> tuple[nn.Parameter, ...]:
    """Return the same, or none.

    Raises:
        ProgramError: The observed site has no mean that a critic could see.
    """
    batch = _example(program)
    with program.reader.runs.quiet(batch), torch.enable_grad(), validation(False):
        if program.sites.enumerated:
            raise ProgramError(
                f"{objective}: site {program.sites.enumerated[0]!r} is summed out, and a critic "
                "sees one reconstruction of a datum; use ELBO"
            )
        joint = program.joint(batch)
        model, guide, _ = joint.cut_traces()
        kl_weight_of(model, guide, latents_of(joint, guide, objective), objective)
        mean = data_and_mean(model, joint)[1]
        if not (mean.is_meta or mean.isfinite().any()):
            raise _no_mean(*_observed(model))
        return _behind(mean, program.parameters())


def _require_apart(program: Program, decoder: Sequence[nn.Parameter]) -> None:
    """Refuse a parameter of the decoder that the guide has, too: its parts have two losses.

    Raises:
        ProgramError: Names it.
    """
    batch = _example(program)
    with program.reader.runs.quiet(batch), torch.enable_grad(), validation(False):
        joint = program.joint(batch)
        guide = joint.guide_trace(1)
        z = codes(guide, latents_of(joint, guide, "VAEGAN"), rows_of(joint))
        shared = _behind(z, decoder)
    if shared:
        name = next(n for n, p in program.named_parameters() if p is shared[0])
        raise ProgramError(
            f"VAEGAN: parameter {name!r} stands in both model and guide, which have losses of "
            "their own; give each a parameter, or use ELBO or LatentAutoencoder"
        )


def _behind(value: Tensor, parameters: Iterable[nn.Parameter]) -> tuple[nn.Parameter, ...]:
    """Return the parameters that a value depends on."""
    trained = [p for p in parameters if p.requires_grad]
    if not (trained and value.requires_grad):
        return ()
    grads = torch.autograd.grad(value.sum(), trained, allow_unused=True)
    return tuple(p for p, grad in zip(trained, grads, strict=True) if grad is not None)
