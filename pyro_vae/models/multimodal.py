"""VAEs of data in several modalities. Shapes: B batch, M modalities, Z latent, * leading dims."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.conditionals import Bernoulli, Gaussian, ZeroImputation, observation_config
from pyro_vae.conditionals import observation as choose_observation
from pyro_vae.conditionals.discrete import Categorical
from pyro_vae.conditionals.experts import EXPERTS
from pyro_vae.distributions import Incomplete
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.networks import decoder_of, encoder_net
from pyro_vae.models.zoo_program import ZooProgram, plain, register
from pyro_vae.nn import as_shape, sizes

_MASK = "observed"


@typed
class MultimodalVAE(ZooProgram):
    r"""A VAE of data in several modalities (an image and its label), any of which may lack.

    .. math:: z \sim N(0, I), \quad x_m \sim p(x_m \mid decoder_m(z)), \quad
        \log p(x_o) = \log \int p(z) \prod_{m \in o} p(x_m \mid z)\, dz

    Batches are tuples in the order of the modalities, or dicts by name: (B | data) each. A modality
    lacks in a row whose cells are all NaN, and in all rows where it is None or left out; a mask
    `observed`, (B | M), says it besides. What lacks is no part of likelihood or guide; single cells
    may be NaN too. `pv.impute` fills in modalities given the others.

    Arguments:
        modalities: by name, the shape of a datum; or a dict of `data_dim` and `observation`, a
            class of `pyro_vae.conditionals` (Bernoulli unless said otherwise) or a partial of one.
        latent_dim: number Z of latent units.
        hidden: widths of the hidden layers of all networks.
        guide: "product" or "mixture" of experts, of one modality each (`ProductOfExperts`,
            `MixtureOfExperts`).
        activation: name in `pyro_vae.nn.ACTIVATIONS`.

    Raises:
        ConfigError: no modality, or one called `observed` or `z`.

    References:
        Multimodal generative models for scalable weakly-supervised learning (Wu and Goodman,
        2018), arXiv:1802.05335; Variational mixture-of-experts autoencoders for multi-modal deep
        generative models (Shi et al., 2019), arXiv:1911.03393.

    Example:
        >>> import pyro_vae as pv
        >>> vae = MultimodalVAE({"left": 392, "right": 392}, 20)
        >>> pv.impute(vae, {"left": torch.zeros(3, 392)}, num_particles=5).values["right"].shape
        torch.Size([3, 392])
    """

    kind = "multimodal_vae"
    example: Any = None  # modalities may be there or not

    def __init__(
        self,
        modalities: Mapping[str, Any],
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        guide: Literal["product", "mixture"] = "product",
        activation: str = "relu",
    ) -> None:
        chosen = {name: _modality(name, spec) for name, spec in modalities.items()}
        if not chosen:
            raise ConfigError("modalities: got none, expected a shape of data by name")
        super().__init__(sum(torch.Size(shape).numel() for shape, _ in chosen.values()))
        self.latent_dim = positive("latent_dim", latent_dim)
        self.config = {
            "modalities": {
                name: {"data_dim": plain(shape), "observation": observation_config(spec)}
                for name, (shape, spec) in chosen.items()
            },
            "latent_dim": self.latent_dim,
            "hidden": list(sizes("hidden", hidden)),
            "guide": guide,
            "activation": activation,
        }
        self.shapes = {name: shape for name, (shape, _) in chosen.items()}
        self.fills, self.decoders, experts = nn.ModuleDict(), nn.ModuleDict(), []
        for name, (shape, spec) in chosen.items():
            named = choose_observation(spec)[0] is Categorical
            self.fills[name] = ZeroImputation(shape, -1.0 if named else 0.0)
            nets = (hidden, activation, "mlp", spec)
            self.decoders[name] = decoder_of(shape, latent_dim, *nets, None)
            experts.append(Gaussian(encoder_net(shape, 2 * latent_dim, *nets)))
        self.posterior = EXPERTS[guide](experts)

    def blank(self, n: int) -> dict[str, Tensor]:
        """Return n rows of zeros."""
        return {name: self.origin.new_zeros(n, *shape) for name, shape in self.shapes.items()}

    def prior(self) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        zero = self.origin.expand(self.latent_dim)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def cells(
        self, *data: Tensor | None, **named: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the data of each modality, (B | data), NaN where all lack, and what is there.

        Raises:
            DataError: an unknown modality, none that is there, or one of another shape.
        """
        names = [*self.shapes, _MASK]
        given = dict(zip(names, data, strict=False)) | named
        unknown = [name for name in given if name not in names]
        known = [x for name, x in given.items() if name != _MASK and x is not None]
        if unknown or len(data) > len(names) or not known:
            got = (
                f"{unknown[0]!r}"
                if unknown
                else f"{counted(len(data), 'argument')}, {counted(len(known), 'tensor')}"
            )
            raise DataError(f"got {got}, expected modalities {list(self.shapes)}, at least one")
        rows, mask = len(known[0]), given.get(_MASK)
        if mask is not None and mask.shape != (rows, len(self.shapes)):
            raise DataError(
                f"{_MASK}: got shape {tuple(mask.shape)}, expected {(rows, len(self.shapes))}: a "
                f"column for each of {list(self.shapes)}"
            )
        whole, there = {}, {}
        for place, (name, shape) in enumerate(self.shapes.items()):
            x = given.get(name)
            if x is None:
                x = self.origin.new_full((rows, *shape), torch.nan)
            if x.shape != (rows, *shape):
                raise DataError(
                    f"{name}: got shape {tuple(x.shape)}, expected {(rows, *shape)}: a datum of "
                    f"shape {shape} in each row"
                )
            seen = ~x.isnan()
            if mask is not None:
                seen = seen & mask[:, place].bool().reshape(-1, *(1,) * len(shape))
            whole[name], there[name] = x, seen
        return whole, there

    def model(self, *data: Tensor | None, **named: Tensor | None) -> None:
        """Draw z and observe what is there of each modality, shape (B | data)."""
        register(self)
        x, there = self.cells(*data, **named)
        with pyro.plate("data", len(next(iter(x.values())))):
            z = pyro.sample("z", self.prior())  # (B | Z)
            for name, decoder in self.decoders.items():
                pyro.sample(name, Incomplete(decoder(z), there[name]), obs=x[name])

    def guide(self, *data: Tensor | None, **named: Tensor | None) -> None:
        """Draw z from the experts of the modalities that are there."""
        register(self)
        x, there = self.cells(*data, **named)
        with pyro.plate("data", len(next(iter(x.values())))):
            pyro.sample("z", self.encoder(x, there))  # (B | Z)

    def encoder(
        self, x: Mapping[str, Tensor], there: Mapping[str, Tensor]
    ) -> TorchDistributionMixin:
        """Return q(z | x) of modalities (*, data) and which cells are there, event (Z,)."""
        filled = [self.fills[name](x[name], there[name]) for name in self.shapes]
        some = [there[n].flatten(-len(shape)).any(-1) for n, shape in self.shapes.items()]
        return self.posterior(filled, some)


def _modality(name: str, spec: Any) -> tuple[tuple[int, ...], Any]:
    """Return shape and observation of a modality."""
    if not isinstance(name, str) or not name.isidentifier() or name in (_MASK, "z"):
        raise ConfigError(
            f"modalities: got the name {name!r}, expected an identifier, and neither {_MASK!r} nor "
            "'z', which the program has itself"
        )
    options = dict(spec) if isinstance(spec, Mapping) else {"data_dim": spec}
    if "data_dim" not in options or set(options) - {"data_dim", "observation"}:
        raise ConfigError(
            f"modalities: {name!r} has {sorted(options)}, expected data_dim, perhaps observation"
        )
    return as_shape(name, options["data_dim"]), options.get("observation", Bernoulli)
