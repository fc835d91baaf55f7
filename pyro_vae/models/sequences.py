"""Sequences whose steps come of states that follow each other, or of all that came before.

Shapes: B sequences, T steps, X one observation, Z one state, H one encoding.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import integer, positive, shown, typed
from pyro_vae.conditionals import (
    Bernoulli,
    Combiner,
    GatedTransition,
    Gaussian,
    Observation,
    observation_config,
)
from pyro_vae.distributions import Chain, Padded, RecurrentChain
from pyro_vae.distributions.padded import kept_steps, require_lengths
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.networks import decoder_of
from pyro_vae.models.unequal_steps import padded_to_one, require_batches
from pyro_vae.models.zoo_program import ZooProgram, register
from pyro_vae.nn import GRU, MLP, sizes

# Which ways a guide reads, and which guides forget the state before.
_BACKWARDS = {
    "smoothing": (True,),
    "filtering": (False,),
    "mean_field": (False, True),
    "filtering_mean_field": (False,),
}
_MEAN_FIELD = ("mean_field", "filtering_mean_field")


class SequenceProgram(ZooProgram):
    """A program over sequences (B, T | X), with their lengths (B) where they are padded."""

    example: Any = None  # how many steps there are is a matter of the data

    def reads(self, data: Any) -> Any:
        """Return data as they are, lengths as whole numbers; a list of unequal T as one batch.

        A look at a batch asks some rows; here all of them are there. Floats would come in the
        program's precision, and of bfloat16 257 is 256.

        Raises:
            ConfigError: A length is none, in whatever row.
            DataError: A list of single sequences.
        """
        require_batches(data, 2 + len(self.data_shape))
        pieces = isinstance(data, list) and bool(data)
        if pieces and all(isinstance(each, Mapping | tuple) for each in data):
            data = [self.reads(each) for each in data]
        data = padded_to_one(data, 2 + len(self.data_shape), told=True)
        pair = isinstance(data, tuple | list) and len(data) == 2
        named = isinstance(data, Mapping) and {"x", "lengths"} <= data.keys()
        x, lengths = data if pair else (data["x"], data["lengths"]) if named else (None, None)
        steps, kind = getattr(x, "shape", ())[1:2], getattr(lengths, "dtype", None)
        if not steps or kind is None or getattr(lengths, "ndim", 0) != 1:
            return data  # what else they are is told where they are made tensors
        if not isinstance(lengths, Tensor):
            plain = np.asarray(lengths)
            if isinstance(lengths, np.ma.MaskedArray) or plain.dtype.kind not in "iuf":
                return data
            lengths = torch.from_numpy(plain.astype("f8" if plain.dtype.kind == "f" else "i8"))
        if lengths.is_meta or lengths.dtype == torch.bool:
            return data
        require_lengths(lengths, steps[0])
        return (x, lengths.long()) if pair else {**data, "lengths": lengths.long()}

    def _checked(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Return sequences in the program's precision.

        Raises:
            DataError: Another shape than (B, T, X), no steps, or lengths that are no numbers (B).
        """
        if not isinstance(x, Tensor):
            raise DataError(
                f"x: got {type(x).__name__}, expected a tensor (B, T, X); of a PackedSequence, "
                "pad_packed_sequence(x, batch_first=True) gives it and the lengths"
            )
        if x.dim() != 2 + len(self.data_shape) or x.shape[2:] != self.data_shape or not x.shape[1]:
            shape = ", ".join(map(str, self.data_shape))
            raise DataError(
                f"x: got shape {tuple(x.shape)}, expected sequences (B, T, {shape}) of some steps"
            )
        given = lengths is None or (isinstance(lengths, Tensor) and lengths.shape == x.shape[:1])
        if not given or (lengths is not None and lengths.dtype == torch.bool):
            raise DataError(
                f"lengths: got {shown(lengths)}, expected how many steps each of the {len(x)} "
                f"sequences has, ({len(x)},)"
            )
        return x.to(self.origin.dtype)

    @typed
    @torch.no_grad()
    def continuation(
        self, x: Tensor, steps: int, lengths: Tensor | None = None, *, mean: bool = False
    ) -> dict[str, Tensor]:
        r"""Return sequences with steps drawn behind their ends, given what they hold so far.

        .. math:: z_{1:L} \sim q(z \mid x_{1:L}), \quad
            z_{L+1:L+S},\ x_{L+1:L+S} \sim p(\cdot \mid z_{1:L}, x_{1:L})

        Arguments:
            x: the sequences, (B, T, X).
            steps: S, how many to draw behind each.
            lengths: L of each, (B); None: T of all.
            mean: give the means of the drawn steps, at drawn states.

        Returns:
            ``{"x": (B, T + S, X), "lengths": L + S}``: the steps of the data as they are, the drawn
            ones behind them, and zeros.

        Raises:
            DataError: Another shape than (B, T, X), or steps that are not finite or none of the
                observations.
            ConfigError: Lengths that are none.

        Example:
            >>> dmm = DMM(3, 2, (4,), transition=4, recurrent=4)
            >>> dmm.continuation(torch.zeros(2, 5, 3), 4)["lengths"]
            tensor([9, 9])
        """
        x = self._checked(x, lengths)
        count, total = len(x), x.shape[1]
        if lengths is None:
            lengths = torch.full((count,), total, device=x.device)
        require_lengths(lengths, total)
        lengths = lengths.long()
        kept = kept_steps(lengths, total)
        x = torch.where(kept.unsqueeze(-1), x, torch.zeros_like(x))
        if not bool(x.isfinite().all()):
            raise DataError("x: got steps that are not finite, expected numbers up to each length")
        drawn = self._drawn_behind(x, lengths, positive("steps", steps), mean=mean)
        places = lengths.unsqueeze(-1) + torch.arange(drawn.shape[1], device=x.device)
        whole = torch.cat([x, torch.zeros_like(drawn)], 1)
        whole.scatter_(1, places.unsqueeze(-1).expand_as(drawn), drawn)
        return {"x": whole, "lengths": lengths + drawn.shape[1]}

    def _drawn_behind(self, x: Tensor, lengths: Tensor, steps: int, *, mean: bool) -> Tensor:
        """Return the steps behind the ends of sequences (B, T, X), shape (B, S, X)."""
        raise NotImplementedError

    def _require_observable(self, x: Tensor, lengths: Tensor, like: TorchDistributionMixin) -> None:
        """Refuse steps that the observations, of which `like` is one, never are."""
        wrong = kept_steps(lengths, x.shape[1]) & ~like.support.check(x)
        if bool(wrong.any()):
            row, step = wrong.nonzero()[0].tolist()
            raise DataError(
                f"x: got {x[row, step].tolist()} in row {row}, step {step}, expected what lies in "
                f"{like.support}"
            )


@typed
class DMM(SequenceProgram):
    r"""A deep Markov model: a nonlinear state space with a gated transition.

    .. math:: z_t \sim p(z_t \mid z_{t-1}), \quad x_t \sim p(x_t \mid z_t), \qquad
        q(z \mid x) = \prod_t q(z_t \mid z_{t-1}, h_t)

    Site `z` is the whole path, event (T, Z), and `x` the sequence. What a step of the guide knows
    of the observations, h_t, comes from a recurrent network: those from t on ("smoothing", the form
    of the exact posterior), those up to t ("filtering"), or all, but not the state before
    ("mean_field"). The fourth guide reads as "filtering" does and forgets as "mean_field" does:
    q(z_t | x_1, ..., x_t) ("filtering_mean_field").

    Arguments:
        data_dim: X.
        latent_dim: Z.
        hidden: widths of the network from a state to an observation.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        transition: width of the networks of the transition.
        recurrent: H.
        guide: "smoothing", "filtering", "mean_field" or "filtering_mean_field".
        num_flows: inverse autoregressive flows that bend each step's posterior; not of mean field.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        data_mean: training mean of a step, shape (X,); starts the observations there.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Structured inference networks for nonlinear state space models (Krishnan et al., 2017),
        arXiv:1609.09869.

    Example:
        >>> dmm = DMM(88, 24, (64,), transition=64, recurrent=96)
        >>> dmm.chain(60).sample().shape
        torch.Size([60, 24])
    """

    kind = "dmm"

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 100,
        hidden: Sequence[int] = (100, 100),
        *,
        activation: str = "relu",
        transition: int = 200,
        recurrent: int = 600,
        guide: Literal[
            "smoothing", "filtering", "mean_field", "filtering_mean_field"
        ] = "smoothing",
        num_flows: int = 0,
        observation: Observation = Bernoulli,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(positive("data_dim", data_dim))
        size, width = positive("latent_dim", latent_dim), positive("recurrent", recurrent)
        self.latent_dim, self.how = size, guide
        self.config = {
            "data_dim": int(data_dim),
            "latent_dim": size,
            "hidden": list(sizes("hidden", hidden)),
            "activation": activation,
            "transition": positive("transition", transition),
            "recurrent": width,
            "guide": guide,
            "num_flows": integer("num_flows", num_flows, 0),
            "observation": observation_config(observation),
        }
        nets = (hidden, activation, "mlp", observation)
        self.decoder = decoder_of(self.data_shape, size, *nets, data_mean)
        self.transition = GatedTransition(size, transition)
        self.start = nn.Parameter(torch.zeros(size))
        shape = self.data_shape[0], width
        readers = (GRU(*shape, reverse=reverse) for reverse in _BACKWARDS[guide])
        self.readers = nn.ModuleList(readers)
        if guide in _MEAN_FIELD:
            if num_flows:
                raise ConfigError("num_flows: a mean-field guide has none; use smoothing")
            self.posterior: nn.Module = Gaussian(nn.Linear(len(self.readers) * width, 2 * size))
        else:
            self.posterior = Combiner(size, width, num_flows)
            self.guess = nn.Parameter(torch.zeros(size))

    def chain(self, steps: int, lengths: Tensor | None = None) -> TorchDistributionMixin:
        """Return p(z), event (T, Z), of sequences of lengths (B)."""
        return Chain(self.transition, self.start, steps, lengths=lengths)

    def encoder(self, x: Tensor, lengths: Tensor | None = None) -> TorchDistributionMixin:
        """Return q(z | x) of sequences (B, T, X), event (T, Z)."""
        read = torch.cat([reader(x, lengths) for reader in self.readers], -1)  # (B, T, H)
        if self.how in _MEAN_FIELD:
            return _steps(self.posterior(read), lengths)
        return Chain(self.posterior, self.guess, x.shape[1], inputs=read, lengths=lengths)

    def _drawn_behind(self, x: Tensor, lengths: Tensor, steps: int, *, mean: bool) -> Tensor:
        path = self.encoder(x, lengths).sample()
        path = torch.cat([self.start.expand(len(x), 1, -1), path], 1)
        last = path[torch.arange(len(x), device=x.device), lengths]  # (B, Z)
        observed = self.decoder(Chain(self.transition, last, steps).sample())
        self._require_observable(x, lengths, observed)
        return observed.mean if mean else observed.sample()

    def model(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw the states and observe the sequences x, (B, T | X)."""
        register(self)
        x = self._checked(x, lengths)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.chain(x.shape[1], lengths))  # (B | T, Z)
            return pyro.sample("x", _steps(self.decoder(z), lengths), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Draw the states from the guide's chain."""
        register(self)
        x = self._checked(x, lengths)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x, lengths))


@typed
class VRNN(SequenceProgram):
    r"""A recurrent network with a latent in each step, which prior, posterior and data all see.

    .. math:: z_t \sim p(z_t \mid h_{t-1}), \quad x_t \sim p(x_t \mid z_t, h_{t-1}), \quad
        q(z_t \mid x_t, h_{t-1}), \quad h_t = \mathrm{GRU}(h_{t-1}, [\phi(x_t), \psi(z_t)])

    Site `z` is the whole path, event (T, Z), and `x` the sequence. The prior of a path depends on
    the sequence, whose step t is seen from t + 1 on: the product of both sites is the joint
    density, and `generate` draws step by step. A latent that the future would tell more about than
    the past (as in a state space) is not for this guide.

    Arguments:
        data_dim: X.
        latent_dim: Z.
        hidden: widths of the networks of prior, posterior and observations.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        features: width of what the memory is told of x and z.
        recurrent: H, size of the memory.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        data_mean: training mean of a step, shape (X,); starts the observations there.

    Raises:
        ConfigError: an argument out of its range.

    References:
        A recurrent latent variable model for sequential data (Chung et al., 2015),
        arXiv:1506.02216.

    Example:
        >>> vrnn = VRNN(88, 16, (64,), features=32, recurrent=64)
        >>> vrnn.encoder(torch.zeros(3, 9, 88)).event_shape
        torch.Size([9, 16])
    """

    kind = "vrnn"

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 100,
        hidden: Sequence[int] = (100, 100),
        *,
        activation: str = "relu",
        features: int = 100,
        recurrent: int = 200,
        observation: Observation = Bernoulli,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(positive("data_dim", data_dim))
        size, width = positive("latent_dim", latent_dim), positive("features", features)
        memory = positive("recurrent", recurrent)
        self.latent_dim = size
        self.config = {
            "data_dim": int(data_dim),
            "latent_dim": size,
            "hidden": list(sizes("hidden", hidden)),
            "activation": activation,
            "features": width,
            "recurrent": memory,
            "observation": observation_config(observation),
        }
        net = partial(MLP, hidden=hidden, activation=activation)
        self.of_x, self.of_z = nn.Linear(self.data_shape[0], width), nn.Linear(size, width)
        self.prior = Gaussian(net(memory, 2 * size))
        self.posterior = Gaussian(net(memory + width, 2 * size))
        nets = (hidden, activation, "mlp", observation)
        self.decoder = decoder_of(self.data_shape, size + memory, *nets, data_mean)
        self.memory = GRU(2 * width, memory)

    def _prior(self, x: Tensor, lengths: Tensor | None) -> RecurrentChain:
        """Return p(z_t | h_{t-1}) of the steps of sequences (B, T, X), event (T, Z)."""
        return self._path(lambda h, seen: self.prior(h), x, lengths)

    def encoder(self, x: Tensor, lengths: Tensor | None = None) -> RecurrentChain:
        """Return q(z | x) of sequences (B, T, X), event (T, Z)."""

        def given(h: Tensor, seen: Tensor) -> TorchDistributionMixin:
            return self.posterior(torch.cat([h, seen], -1))

        return self._path(given, x, lengths)

    def model(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw the states and observe the sequences x, (B, T | X)."""
        register(self)
        x = self._checked(x, lengths)
        chain = self._prior(x, lengths)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", chain)  # (B | T, Z)
            seen = torch.cat([z, chain.memories(z)], -1)
            return pyro.sample("x", _steps(self.decoder(seen), lengths), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Draw the states, each from what came before and its own step."""
        register(self)
        x = self._checked(x, lengths)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x, lengths))

    def _drawn_behind(self, x: Tensor, lengths: Tensor, steps: int, *, mean: bool) -> Tensor:
        chain = self.encoder(x, lengths)
        path = chain.sample()
        rows, last = torch.arange(len(x), device=x.device), (lengths - 1).clamp(min=0)
        seen = self.of_x(x[rows, last]).relu()
        h = self._cell(chain.memories(path)[rows, last], path[rows, last], seen)
        h = torch.where((lengths > 0).unsqueeze(-1), h, self.memory.start)
        found: list[Tensor] = []
        for _ in range(steps):
            z = self.prior(h).sample()
            observed = self.decoder(torch.cat([z, h], -1))
            if not found:
                self._require_observable(x, lengths, observed)
            drawn = observed.sample()
            found.append(observed.mean if mean else drawn)
            h = self._cell(h, z, self.of_x(drawn).relu())
        return torch.stack(found, 1)

    def _path(self, state: Any, x: Tensor, lengths: Tensor | None) -> RecurrentChain:
        if lengths is not None:  # what stands in the padding may be anything, NaN too
            kept = kept_steps(lengths, x.shape[1]).unsqueeze(-1)
            x = torch.where(kept, x, torch.zeros_like(x))
        return RecurrentChain(
            state,
            self._cell,
            self.memory.start,
            self.latent_dim,
            x.shape[1],
            inputs=self.of_x(x).relu(),
            lengths=lengths,
        )

    def _cell(self, h: Tensor, z: Tensor, seen: Tensor) -> Tensor:
        return self.memory.step(h, torch.cat([seen, self.of_z(z).relu()], -1))


def _steps(each: TorchDistributionMixin, lengths: Tensor | None) -> TorchDistributionMixin:
    """Return a distribution of steps, batch (*, T), as one of sequences."""
    return each.to_event(1) if lengths is None else Padded(each, lengths)
