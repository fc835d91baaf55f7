"""Objectives with a critic: what they have in common, and the codes that a critic sees."""

import inspect
import math
import warnings
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.arguments import positive, require_network
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.objective import OptimizerFactory, Update, require_rows
from pyro_vae.program.batches.batch import named_leaves, num_rows
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.site_densities import kl_weight
from pyro_vae.program.densities.terms import Terms
from pyro_vae.program.handlers import data_frame, sample_sites
from pyro_vae.program.program import Program
from pyro_vae.program.sites.plates import of_datum

_CALMER = (
    "Give the critic a lower rate (critic_optimizer), spectral_norm=True, or a bound on its scales"
)
_HOLES = (
    'Missing values go to a critic that takes them, as pv.nn.Critic(..., missing="nan"); other '
    "data that are not finite go to none"
)
_WON = 0.07  # share of the loss of a critic that knows nothing, below which it has won


class Adversarial(nn.Module):
    """An objective with a critic: its update, then that of the program.

    The critic is a part of the objective, and so of the checkpoints of ``fit``.

    Arguments:
        critic: What is told apart; moved to the program's device and precision.
        critic_steps: Steps of the critic per step of the program.
        critic_optimizer: Makes the critic's optimizer; None takes that of ``fit``.
    """

    is_bound = False
    ranks_epochs = False  # the critic moves: what it says of two epochs does not compare
    draw = math.log(4)  # loss of a critic that cannot tell anything apart
    seen: tuple[str, ...] = ("codes",)  # what the critic is given
    example = "pv.nn.Critic(Z)"

    def __init__(
        self,
        critic: nn.Module,
        critic_steps: int = 1,
        critic_optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__()
        self.critic = critic
        self._require_kind()
        self.critic_steps = positive("critic_steps", critic_steps)
        self.critic_optimizer = critic_optimizer
        self._warned = False

    def _require_kind(self) -> None:
        """Refuse a critic that takes other arguments."""
        require_network("critic", self.critic)
        takes = inspect.signature(self.critic.forward)
        try:
            takes.bind(*self.seen)
        except TypeError as error:
            raise ConfigError(
                f"critic: got {type(self.critic).__name__}, which takes {tuple(takes.parameters)}; "
                f"{type(self).__name__} gives it {' and '.join(self.seen)}; use one like "
                f"{self.example}"
            ) from error

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse the call of ``pyro.infer.SVI``, which has one loss.

        Raises:
            ProgramError: Always.
        """
        raise ProgramError(
            f"{type(self).__name__} trains a critic besides, which no pyro.infer.SVI does; use "
            "pv.fit(program, data, objective=...)"
        )

    def told(self, *seen: Tensor) -> Tensor:
        """Return what the critic says of codes, ``(B,)``.

        Raises:
            ConfigError: It does not say one number of each.
        """
        told = self.critic(*seen)
        if told.numel() != len(seen[0]):
            raise ConfigError(
                f"critic: {type(self.critic).__name__} answers a tensor of shape "
                f"{tuple(told.shape)} to {len(seen[0])} codes, expected one number of each"
            )
        return told.reshape(-1)

    def critic_loss(self, joint: Joint) -> Tensor:
        """Return the critic's loss on one batch; nothing in it depends on the program's weights."""
        raise NotImplementedError

    def critic_update(self, program: Program, **more: Any) -> Update:
        """Return the critic's update, the critic where the program is."""
        self.to(device=program.device, dtype=program.precision)
        return Update(
            self.critic_loss,
            tuple(self.critic.parameters()),
            optimizer=self.critic_optimizer,
            repeats=self.critic_steps,
            name="critic",
            **more,
        )

    @torch.no_grad()
    def first_bad(self, joint: Joint) -> tuple[str, str] | None:
        """Return what of the critic is not finite on a batch, and what to do; None: nothing is."""
        kind = type(self.critic).__name__
        for name, parameter in self.critic.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f"parameter {name!r} of the critic, {kind}", _CALMER
        for given, told in self._calls(joint):
            for what, value in zip(self.seen, given, strict=False):
                row = _bad_row(value, rows_of(joint))
                if row is not None:
                    return f"the {what} that the critic, {kind}, is given: row {row}", _HOLES
            row = _bad_row(told, rows_of(joint))
            if row is not None:
                return f"what the critic, {kind}, says of row {row}", _CALMER
        return None

    def _calls(self, joint: Joint) -> list[tuple[tuple[Any, ...], Any]]:
        """Return what the critic is given for its loss, and what it answers."""
        calls: list[tuple[tuple[Any, ...], Any]] = []
        buffers = [(buffer, buffer.clone()) for buffer in self.buffers()]
        hook = self.critic.register_forward_hook(lambda _, *call: calls.append(call))
        try:
            with suppress(ValueError, RuntimeError):  # a look after an error, and none of its own
                self.critic_loss(joint)
        finally:
            hook.remove()
            for buffer, before in buffers:
                buffer.copy_(before)
        return calls

    def after_epoch(self, run: Any) -> None:
        """Say once where the critic has won (``fit`` calls it)."""
        loss = float(run.history["critic"][-1])
        if loss < _WON * self.draw and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: the critic has won: its loss was {loss:.3g} over an epoch "
                f"({self.draw:.3g}: it knows nothing), and what it tells apart without a doubt it "
                "does not teach; give it a lower rate (critic_optimizer), fewer critic_steps or "
                "spectral_norm=True",
                UserWarning,
                stacklevel=of_user(),
            )


def _bad_row(value: Any, rows: int) -> int | None:
    """Return the datum of the first row that is not finite; several draws follow one another."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return None
    bad = (~torch.isfinite(value)).flatten(1).any(-1) if value.dim() > 1 else ~value.isfinite()
    return int(bad.nonzero()[0]) % rows if bool(bad.any()) else None


def told_apart(ours: Tensor, theirs: Tensor) -> Tensor:
    r"""Return the loss of a critic of two kinds of draws, whose optimum is their log ratio.

    .. math:: -\mathbb{E}_q \log \sigma(T) - \mathbb{E}_p \log \sigma(-T),
       \qquad T^* = \log q - \log p

    Arguments:
        ours: T at draws of q, any shape.
        theirs: T at draws of p.
    """
    return softplus(-ours).mean() + softplus(theirs).mean()


def rows_of(joint: Joint) -> int:
    """Return B."""
    return num_rows([*joint.args, *joint.kwargs.values()])


def data_of(joint: Joint) -> Tensor:
    """Return the batch as a critic sees it: its one tensor, or ``(B, D)`` of all of them."""
    rows = rows_of(joint)
    named = named_leaves([*joint.args, *joint.kwargs.values()])
    leaves = [leaf for _, leaf in named if leaf.dim() and len(leaf) == rows]  # no constants
    if len(leaves) == 1:
        return leaves[0]
    floats = [leaf for leaf in leaves if leaf.is_floating_point()]
    dtype = floats[0].dtype if floats else torch.get_default_dtype()
    return torch.cat([leaf.reshape(rows, -1).to(dtype) for leaf in leaves], -1)


def latents_of(joint: Joint, guide: Trace, objective: str) -> list[str]:
    """Return the latents of one datum, in the order of drawing.

    Raises:
        ProgramError: The program has a global latent, none of a datum, or one whose draws have no
            path for a gradient; or its plate holds a part of the batch.
    """
    found, rows = [], rows_of(joint)
    for name, site in sample_sites(guide):
        if site["is_observed"] or site_is_subsample(site) or site["infer"].get("is_auxiliary"):
            continue
        frame = data_frame(site)
        if frame is None:
            raise ProgramError(f"{objective}: site {name!r} is global; use ELBO")
        if frame.size != rows:
            raise ProgramError(
                f"{objective}: the plate of site {name!r} draws {frame.size} of the {rows} rows of "
                "a batch, and a critic sees all of them; leave subsample_size out, and give "
                "batch_size to pv.fit"
            )
        if not site["fn"].has_rsample:
            raise ProgramError(
                f"{objective}: site {name!r} has no reparametrised sampler; use ELBO or RLOO"
            )
        found.append(name)
    if not found:
        raise ProgramError(f"{objective}: the guide draws no latent of a datum; use ELBO")
    return found


def codes(trace: Trace, names: Iterable[str], rows: int, num_particles: int = 1) -> Tensor:
    """Return the latents of each datum as one vector, ``(K, B, Z)``."""
    found = []
    for name in names:
        site: Any = trace.nodes[name]
        value = of_datum(site, site["value"], rows, num_particles)
        found.append(value.reshape(num_particles, rows, -1))
    return torch.cat(found, -1)


def kl_weight_of(model: Trace, guide: Trace, names: Iterable[str], objective: str) -> Any:
    """Return the one KL weight of some latents.

    Raises:
        ProgramError: They have several, or stand under a mask or under other weights.
    """
    weights = {name: kl_weight(model.nodes[name], guide.nodes[name]) for name in names}
    first = next(iter(weights.values()))
    for name, weight in weights.items():
        same = weight is first or (not isinstance(weight, Tensor) and weight == first)
        if weight is None or not same:
            raise ProgramError(
                f"{objective}: site {name!r} stands under a mask or a weight of its own; a critic "
                "of all latents takes one beta for them, and no mask"
            )
    return first


def terms_of(joint: Joint, model: Trace, guide: Trace, without: Collection[str] = ()) -> Terms:
    """Return the log densities of the model at a draw of the guide, of each datum alone.

    Arguments:
        without: Latents whose prior is not asked for its density: it may have draws alone.
    """
    terms = joint.model_terms(model, guide, without)
    require_rows(terms)
    return terms
