"""Training the encoder ahead of the decoder, until its codes stop gaining information."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive, rows, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.elbo import ELBO
from pyro_vae.inference.objectives.objective import TermsObjective, Update
from pyro_vae.inference.posterior.information import information
from pyro_vae.program.bounds import scoring
from pyro_vae.program.handlers import validation
from pyro_vae.program.program import Program

_BEST, _COUNT = 0, 1  # places in the state
_START = [float("-inf"), 0.0]


@typed
class Lagging(nn.Module):
    r"""Early in training, ``inner`` steps of the encoder alone to each step of both.

    .. math:: \phi \leftarrow \phi + \eta \nabla_\phi \mathrm{ELBO} \;\; (\text{inner times, a new
       batch each}), \qquad (\theta, \phi) \leftarrow (\theta, \phi) + \eta \nabla \mathrm{ELBO}

    A decoder that runs ahead of its encoder learns to do without the code. After each epoch the
    mutual information of data and code is measured on held-out data; the first time that it falls,
    once there is any (two standard errors above 0), the encoder has caught up, and plain training
    goes on. The encoder is what trains log q but not log p(x, z) at fixed z; it has an optimizer
    state for each of the two kinds of step. (In the paper the inner loop ends when its loss stalls;
    here its length is fixed.)

    Arguments:
        data: Held-out data on which the mutual information is measured, ``(N, ...)``.
        inner: Steps of the encoder per step of both, while it lags.
        objective: What is minimised; None is ``pv.ELBO()``. One with a single loss.

    Raises:
        ConfigError: An objective with updates of its own, or ``inner`` below 1.
        ProgramError: The guide has no parameter that the model does without.

    References:
        | Lagging Inference Networks and Posterior Collapse in Variational Autoencoders
          (He et al., 2019), arXiv:1901.05534
    """

    state: Tensor

    def __init__(
        self, data: Any, *, inner: int = 10, objective: TermsObjective | None = None
    ) -> None:
        super().__init__()
        self.data = rows("data", data)
        self.inner = positive("inner", inner)
        self.objective = ELBO() if objective is None else objective
        if not isinstance(self.objective, TermsObjective):
            raise ConfigError(
                f"objective: got {objective!r}, expected one with a single loss, as pv.ELBO()"
            )
        # The highest information so far (infinite once it has fallen), and the batches seen. In the
        # module's state, so that a resumed run goes on alike; read back once an epoch.
        self.register_buffer("state", torch.tensor(_START, dtype=torch.float64))
        self._known: list[float] | None = None

    @property
    def aggressive(self) -> bool:
        """Whether the encoder still trains ahead."""
        return self._read()[_BEST] < float("inf")

    def updates(self, program: Program) -> list[Update]:
        """Return the encoder's own update, and that of everything; one of them is due at a time."""
        encoder = encoder_parameters(program)
        if not encoder:
            raise ProgramError(
                "Lagging: the guide has no parameter of its own to train ahead of the model"
            )
        self.state.copy_(torch.tensor(_START))  # each training has a head start of its own
        self._known = None
        every = tuple(program.parameters())
        loss = self.objective.per_datum
        return [
            Update(loss, encoder, name="encoder", due=self._encoder_is_due),
            Update(loss, every, name="loss", due=lambda: not self._alone),
        ]

    def after_epoch(self, run: Any) -> None:
        """Measure the information, and end the head start when it has fallen (``fit`` calls it)."""
        if not self.aggressive:
            return
        program = Program.of(run.program)
        batch = program.adapt(self.data)
        devices = [program.device] if program.device.type == "cuda" else []
        with torch.random.fork_rng(devices), scoring(program):
            torch.default_generator.manual_seed(0)  # the same noise each time: epochs are compared
            if program.device.type == "cuda":
                torch.cuda.manual_seed(0)
            found = information(program, batch, probes=500, rows=2000)
        known = self._read()
        if found is None:  # nothing to go by
            known[_BEST] = float("inf")
        elif found.lower >= known[_BEST]:
            known[_BEST] = found.lower
        elif known[_BEST] > 2 * found.stderr:
            known[_BEST] = float("inf")
        self.state.copy_(torch.tensor(known, dtype=torch.float64))

    def _encoder_is_due(self) -> bool:
        known = self._read()
        known[_COUNT] += 1
        self.state[_COUNT].add_(1)
        self._alone = self.aggressive and known[_COUNT] % (self.inner + 1) != 0
        return self._alone

    def _read(self) -> list[float]:
        if self._known is None:
            best, count = self.state.tolist()
            # Several processes save means of equal counts, which are rounded.
            self._known = [best, float(round(count))]
        return self._known

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = None


def encoder_parameters(program: Program) -> tuple[nn.Parameter, ...]:
    """Return the parameters that the guide trains and the model's log density does not."""
    batch = program.examples.example(2)
    trained = [p for p in program.parameters() if p.requires_grad]
    with program.reader.runs.quiet(batch), torch.enable_grad(), validation(False):
        model, guide, _ = program.joint(batch).cut_traces(1)
        model.compute_log_prob()
        guide.compute_log_prob()
        of_model = _reached(model.log_prob_sum, trained)
        of_guide = _reached(guide.log_prob_sum, trained)
    return tuple(p for p in trained if id(p) in of_guide - of_model)


def _reached(total: Callable[[], Any], parameters: list[nn.Parameter]) -> set[int]:
    value = total()
    if not isinstance(value, Tensor) or not value.requires_grad:
        return set()
    grads = torch.autograd.grad(value, parameters, allow_unused=True)
    return {id(p) for p, g in zip(parameters, grads, strict=True) if g is not None}
