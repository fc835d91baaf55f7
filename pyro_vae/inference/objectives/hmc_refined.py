"""Training with HMC: the guide by the ELBO, the model at draws that HMC has refined."""

import math
from functools import partial
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_vae.arguments import integer, number, positive, typed
from pyro_vae.errors import ProgramError
from pyro_vae.inference.objectives.elbo import elbo_of
from pyro_vae.inference.objectives.objective import Update, require_paths
from pyro_vae.inference.objectives.pathwise import with_prior
from pyro_vae.inference.sampling.hmc import hmc_init, hmc_step
from pyro_vae.program.batches.batch import named_arguments
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.joint import Joint, Leaf
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.densities.terms import Terms, stack
from pyro_vae.program.parameters.modules import evaluating
from pyro_vae.program.program import Program

_GAIN = 0.05  # of the step size's log, per training step and unit of acceptance missed
_LIMIT = 10.0  # of that log: a chain that cannot move must not drive the step to zero or infinity
ROW = "row"


@typed
class HMCRefined(nn.Module):
    r"""Train the guide by the ELBO and the model at HMC-refined draws of the latents.

    .. math:: \nabla_\phi: \; \mathbb{E}_{q_\phi} \log \tfrac{p(x, z)}{q_\phi(z \mid x)}, \qquad
       \nabla_\theta: \; \log p_\theta(x, z_T), \quad
       z_0 \sim q(z \mid x),\ z_t \sim \mathrm{HMC}(z_{t-1};\, p(z \mid x))

    By Fisher's identity the model's gradient tends to that of log p(x) as T grows, whatever the
    guide; T = 0 is the ELBO. The loss that is reported is the negative ELBO of the guide, of which
    the model is not a minimiser: judge by ``pv.fitted_log_likelihood`` or ``pv.ais``, and let
    ``pv.fit`` keep the last weights (no ``valid``).

    One transition accepts per datum and particle. The mass is the inverse of the guide's variance
    (where it has one in unconstrained coordinates; 1 elsewhere), so that steps are in units of the
    guide's scale; one step size serves all and follows the target acceptance while training, as
    state of this module: it is in the checkpoints of ``pv.fit``. Chains run in eval mode, on one
    density; both gradients are taken in the mode of training. Under a KL weight β the chains and
    the model's gradient are those of :math:`p(x \mid z)\, p(z)^\beta`. Weights that the program
    puts on its terms weigh the gradients, and leave the chains alone.

    Persistent chains start where the chain of the same datum ended when it was last seen. They need
    to know the datum: the model and the guide take its number as the argument ``row``, an int64
    tensor ``(B,)``, beside their data:

    >>> import torch
    >>> from pyro_vae import Program, fit, models
    >>> vae, x = models.VAE(6, 2, hidden=(8,)), torch.ones(12, 6)
    >>> rows = Program(lambda x, row: vae.model(x), lambda x, row: vae.guide(x))
    >>> objective = HMCRefined(2, persistent=len(x))
    >>> run = fit(rows, {"x": x, "row": torch.arange(12)}, objective=objective, epochs=1,
    ...           batch_size=4, progress=False)
    >>> objective.chains.shape, bool(objective.started.all())
    (torch.Size([1, 12, 2]), True)

    Arguments:
        steps: T, HMC transitions per training step; 0 is the ELBO.
        num_leapfrog: L, leapfrog steps per transition; a training step evaluates the density's
            gradient T L + 3 times.
        step_size: First step size, in units of the guide's scale.
        target_accept: Acceptance that the step size is adapted to; None keeps the step size. Short
            steps leave the chains near the guide: on thresholded Fashion-MNIST 0.95 stalled (ELBO
            -134 after 16,800 iterations) where 0.8 did not (-121).
        num_particles: Chains per datum, and draws behind the ELBO.
        use_mass: False sets the mass to 1, and the step size in units of the latents.
        persistent: N, the rows of the training set, for one table ``(K, N, Z)`` of chains, on one
            device; 0 starts each chain from the guide.

    Raises:
        ConfigError: An argument out of range.
        ProgramError: A latent is global, discrete or has no reparametrised sampler; or persistent
            chains and no argument ``row``.

    References:
        | Learning Deep Latent Gaussian Models with Markov Chain Monte Carlo (Hoffman, 2017), ICML
        | A Contrastive Divergence for Combining Variational Inference and MCMC
          (Ruiz & Titsias, 2019), arXiv:1905.04062
    """

    log_step_size: Tensor
    acceptance: Tensor
    chains: Tensor
    started: Tensor

    def __init__(
        self,
        steps: int = 5,
        *,
        num_leapfrog: int = 5,
        step_size: float = 0.3,
        target_accept: float | None = 0.8,
        num_particles: int = 1,
        use_mass: bool = True,
        persistent: int = 0,
    ) -> None:
        super().__init__()
        self.steps = integer("steps", steps, 0)
        self.num_leapfrog = positive("num_leapfrog", num_leapfrog)
        self.num_particles = positive("num_particles", num_particles)
        self.persistent = integer("persistent", persistent, 0)
        number("step_size", step_size, "(0, inf)")
        if target_accept is not None:
            number("target_accept", target_accept, "(0, 1)")
        self.target_accept = target_accept
        self.use_mass = use_mass
        # One dim each: Inductor loses what is written to a float64 buffer of none (torch 2.13).
        self.register_buffer("log_step_size", torch.full((1,), math.log(step_size)))
        self.register_buffer("acceptance", torch.ones(1))

    @property
    def of_each_datum(self) -> bool:
        """Whether it keeps a state for each datum, as one process can."""
        return self.persistent > 0

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over all parameters of the program.

        Each gradient reaches the parameters on its own path, so that none is named the guide's or
        the model's, and one that both use receives both.

        Raises:
            ProgramError: See the class.
        """
        self._prepare(program)
        loss = partial(self._loss, program)
        return [Update(loss, tuple(program.parameters()))]

    def _prepare(self, program: Program) -> None:
        """Check the program, and put the state into its precision, with a table if one is asked."""
        if program.sites.global_:
            raise ProgramError(f"HMCRefined: site {program.sites.global_[0]!r} is global; use ELBO")
        # As many rows as were read: a guide with a factor per datum takes no others.
        example = program.examples.example(program.reader.rows_read)
        with program.reader.runs.quiet(example), scoring(program):
            densities = LogJoint(program, example)
            latent = program.joint(example).guide_values(1)[densities.slots[0].name]
        # A step size of one dim takes part in type promotion, and a table takes no other type.
        self.to(latent.dtype)
        if not self.persistent:
            return
        if ROW not in program.named(example):
            raise ProgramError(
                f"persistent: got a model of {sorted(program.named(example))}, expected an "
                f"argument {ROW!r} with the number of each datum; wrap the program: "
                "pv.Program(lambda x, row: vae.model(x), lambda x, row: vae.guide(x))"
            )
        place = self.log_step_size.device
        shape = (self.num_particles, self.persistent, densities.dim)
        self.register_buffer("chains", torch.zeros(shape, dtype=latent.dtype, device=place))
        self.register_buffer(
            "started", torch.zeros(self.persistent, dtype=torch.bool, device=place)
        )

    def _loss(self, program: Program, joint: Joint) -> Tensor:
        """Return the negative ELBO per datum, with the gradients of the two estimators."""
        model, guide, leaves = joint.cut_traces(self.num_particles)
        terms = stack([joint.scored(model, guide, self.num_particles)])
        require_paths(terms, "HMCRefined")
        value = elbo_of(terms).detach()
        if not torch.is_grad_enabled():
            return -value
        densities = LogJoint.at(joint, model)
        with torch.no_grad():
            start = densities.pack_sites(
                {leaf.site: leaf.cut for leaf in leaves}, self.num_particles
            )
            inverse_mass = _variance(densities, guide, start) if self.use_mass else 1.0
        rows = self._rows(program, joint) if self.persistent else None
        if rows is not None:
            start = torch.where(self.started[rows].unsqueeze(-1), self.chains[:, rows], start)
        with evaluating(program), torch.no_grad():
            refined = self._transitions(densities, start, inverse_mass)
        if rows is not None:
            self.chains.index_copy_(1, rows, refined)
            self.started.index_fill_(0, rows, True)
        # Latents are constants here: what is left is the gradient in the model's parameters.
        values = densities.placed(densities.unpack(refined.clone()))
        log_p: Any = sum(joint.model_log_p(values, self.num_particles, placed=True).values())
        surrogate = _guide_part(terms, leaves) + with_prior(log_p.mean(), terms)
        return -(value + surrogate - surrogate.detach())

    def _transitions(
        self, densities: LogJoint, start: Tensor, inverse_mass: float | Tensor
    ) -> Tensor:
        """Run T transitions, ``(K, B | Z)``, and adapt the step size to what they accepted."""
        if self.steps == 0:
            return start
        step_size = self.log_step_size.exp()
        state = hmc_init(densities.log_joint, start)
        accepted = []
        for _ in range(self.steps):
            state, info = hmc_step(
                state, densities.log_joint, step_size, self.num_leapfrog, inverse_mass
            )
            accepted.append(info.accept_prob.mean())
        acceptance = torch.stack(accepted).mean().reshape(1)
        if self.target_accept is not None:
            # A constant gain, not dual averaging: the posterior moves with the model's parameters.
            moved = self.log_step_size + _GAIN * (acceptance - self.target_accept)
            self.log_step_size.copy_(moved.clamp(-_LIMIT, _LIMIT))
        self.acceptance.copy_(acceptance)
        return state.position

    def _rows(self, program: Program, joint: Joint) -> Tensor:
        return named_arguments(program.functions[0], joint.args, joint.kwargs)[ROW]

    def extra_repr(self) -> str:
        return (
            f"steps={self.steps}, num_leapfrog={self.num_leapfrog}, "
            f"target_accept={self.target_accept}, num_particles={self.num_particles}, "
            f"use_mass={self.use_mass}, persistent={self.persistent}"
        )


def _guide_part(terms: Terms, leaves: list[Leaf]) -> Tensor:
    """Return the surrogate of the ELBO's gradient in the guide's parameters alone.

    The model's gradient in each latent, taken at its value cut off, meets the latent as the guide
    drew it.
    """
    cuts = [leaf.cut for leaf in leaves]
    log_p = torch.stack(list(terms.log_p.values())).sum(0).mean()
    grads = torch.autograd.grad(log_p, cuts, allow_unused=True)
    path = [
        (grad * leaf.attached).sum()
        for leaf, grad in zip(leaves, grads, strict=True)
        if grad is not None  # an auxiliary site of the guide is in log q alone
    ]
    return torch.stack(path).sum() - terms.log_q_total().mean()


def _variance(densities: LogJoint, guide: Trace, like: Tensor) -> Tensor:
    """Return the guide's variance of each unconstrained coordinate, ``(K, B | Z)``, or 1."""
    parts = []
    for slot in densities.slots:
        site: Any = guide.nodes[slot.name]
        width = slot.columns.stop - slot.columns.start
        ones = like.new_ones(*like.shape[:-1], width)
        parts.append(ones)
        if slot.plain:
            try:
                variance = site["fn"].variance
            except (NotImplementedError, AttributeError):
                continue  # a flow, say
            variance = variance.expand(site["value"].shape)
            variance = slot.of_datum(variance, len(like), densities.rows).reshape(ones.shape)
            # A point mass has none, a heavy tail an infinite one.
            usable = variance.isfinite() & (variance > 0)
            parts[-1] = torch.where(usable, variance, ones)
    return torch.cat(parts, -1)
