"""The bound of data with labels that lack, summed over the labels. Shapes: B batch, K classes."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import number, typed
from pyro_vae.errors import ProgramError
from pyro_vae.inference.objectives.objective import TermsObjective, Update
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.program import Program


class SemiSupervised(TermsObjective):
    r"""The bound of a program with labels, given or not, and the classifier's own loss.

    .. math:: -\frac1B \sum_n \sum_y q(y \mid x_n) \Big[\log\frac{p(x_n, y, z_{ny})}
        {q(z_{ny} \mid x_n, y)} - \log q(y \mid x_n)\Big]
        - \frac{a}{B_l} \sum_{n\ \mathrm{labelled}} \log q(y_n \mid x_n)

    The sum over y is exact, with one draw of z for each label; q(y | x) of a datum whose label is
    given has all its mass there. The first part is minus a bound of log p(x, y) or log p(x), below
    that of ``ELBO``; the second keeps the classifier with the labels, which without it finds
    classes of its own.

    A program of your own takes ``(x, label)``, class numbers (B,) and -1 where one lacks; it draws
    site ``y``, a ``Categorical``, in the model alone, and observes labels by
    ``pv.distributions.GivenLabel``, as M2. Two methods tell of q(y | x): ``label_logits(x)``, its
    logarithm up to a constant, (B, K), and ``given_logits(logits, label)``, the same with all mass
    on the labels that are given (all logits where label is None).

    Arguments:
        weight: a, at least 0, in nats per labelled datum.

    Raises:
        ConfigError: A weight that is negative or not finite.
        ProgramError: A program without labels.

    References:
        | Semi-Supervised Learning with Deep Generative Models (Kingma et al., 2014),
          arXiv:1406.5298, eqs. 6-9
    """

    is_bound = False

    @typed
    def __init__(self, weight: float = 50.0) -> None:
        super().__init__()
        self.weight = number("weight", weight, "[0, inf)")
        self._source: Any = None

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over all parameters of the program."""
        self._source = program.source
        if not hasattr(self._source, "given_logits"):
            raise ProgramError(
                f"SemiSupervised: {type(self._source).__name__} has no classifier of labels "
                "(label_logits, given_logits); use pv.models.M2, or draw the labels that lack "
                "(pyro.sample('y', ..., obs=y, obs_mask=known)) under another objective, as RLOO(4)"
            )
        return super().updates(program)

    def loss_of_joint(self, joint: Joint) -> tuple[Tensor, int]:
        """Return the loss per datum, and N."""
        given = dict(zip(("x", "label"), joint.args, strict=False)) | dict(joint.kwargs)
        x, label = given["x"], given.get("label")
        logits = self._source.label_logits(x)  # (B, K)
        log_q = self._source.given_logits(logits, label).log_softmax(-1).mT  # (K, B)
        bound = (log_q.exp() * (self._log_weights(joint, x, *log_q.shape) - log_q)).sum(0)
        loss = -bound.mean()
        if label is not None:
            known = label >= 0
            score = logits.log_softmax(-1).gather(-1, label.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            loss = loss - self.weight * (score * known).sum() / known.sum().clamp(min=1)
        return loss, joint.size

    def _log_weights(self, joint: Joint, x: Tensor, classes: int, rows: int) -> Tensor:
        """Return log p(x, y, z) - log q(z | x, y) at each label, (K, B): a particle for each."""
        every = torch.arange(classes, device=x.device).unsqueeze(-1).expand(classes, rows)

        def model(x: Tensor, label: Tensor) -> Any:
            return poutine.condition(joint.model, data={"y": label})(x)

        at_labels = Joint(
            model, joint.guide, (x, every), num_plates=1, data_dim=-1, sums_out=False, size=rows
        )
        return at_labels.terms(1, classes).log_weight[0]
