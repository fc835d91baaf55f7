"""The programs of the contract battery: those of the library, and five that a user might write."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.conditionals import (
    MADE,
    AR1Prior,
    BatchNormGaussian,
    Categorical,
    Column,
    DeltaGaussian,
    DiscretisedLogistic,
    FlowPrior,
    FullGaussian,
    Gaussian,
    GaussianMixture,
    InverseAutoregressiveFlow,
    LowRankGaussian,
    PlanarFlow,
    SplineFlow,
    VampPrior,
)
from pyro_vae.models import (
    DEF,
    DMM,
    ETM,
    GSM,
    LDA,
    M2,
    NVDM,
    SBN,
    VAE,
    VQVAE,
    VRNN,
    Autoencoder,
    BayesianVAE,
    ConditionalVAE,
    HierarchicalVAE,
    LadderVAE,
    LinearVAE,
    MultimodalVAE,
    ProdLDA,
    SentenceLM,
    SentenceVAE,
    TableVAE,
    TopDownVAE,
)
from pyro_vae.program.batches.batch import map_batch


def mlp(*sizes: int) -> nn.Sequential:
    """Return affine maps with tanh between them."""
    layers: list[nn.Module] = []
    for width, out in itertools.pairwise(sizes):
        layers += [nn.Linear(width, out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Labelled(nn.Module):
    """(x, y) batches: a conditional VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(6 + 3, 8, 4), mlp(2 + 3, 8, 6)

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("labelled", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            label = nn.functional.one_hot(y, 3).to(z.dtype).expand(*z.shape[:-1], 3)
            logits = self.decode(torch.cat([z, label], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("labelled", self)
        with pyro.plate("data", len(x)):
            label = nn.functional.one_hot(y, 3).to(x.dtype)
            loc, log_scale = self.encode(torch.cat([x, label], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Sequences(nn.Module):
    """Dict batches of padded sequences with lengths: terms beyond a length are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(5, 8, 4), mlp(2, 8, 5)

    @staticmethod
    def _mask(x: Tensor, lengths: Tensor) -> Tensor:
        return torch.arange(x.shape[-1], device=x.device) < lengths[:, None]

    def model(self, x: Tensor, lengths: Tensor) -> None:
        pyro.module("sequences", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            steps = dist.Normal(self.decode(z), x.new_ones(())).mask(self._mask(x, lengths))
            pyro.sample("x", steps.to_event(1), obs=x)

    def guide(self, x: Tensor, lengths: Tensor) -> None:
        pyro.module("sequences", self)
        with pyro.plate("data", len(x)):
            known = torch.where(self._mask(x, lengths), x, torch.zeros_like(x))
            loc, log_scale = self.encode(known).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class BayesianDecoder(nn.Module):
    """A VAE with a global Bayesian weight in its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mlp(6, 8, 4)
        self.weight_loc = nn.Parameter(0.1 * torch.randn(2, 6))
        self.weight_log_scale = nn.Parameter(torch.full((2, 6), -2.0))

    def model(self, x: Tensor) -> None:
        pyro.module("bayesian", self)
        prior = dist.Normal(x.new_zeros(2, 6), x.new_ones(()))
        weight = pyro.sample("weight", prior.to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, x.new_ones(())).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("bayesian", self)
        pyro.sample("weight", dist.Normal(self.weight_loc, self.weight_log_scale.exp()).to_event(2))
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Coded:
    """A program around networks of one's own: ``encode`` of rows, ``decode`` of codes of size 2."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Regularised(nn.Module):
    """Batch norm and dropout in both networks: buffers, and two modes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4)
        )
        self.decode = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 6)
        )

    def model(self, x: Tensor) -> None:
        pyro.module("regularised", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            logits = self.decode(z)  # takes two dimensions only: particles are tiled
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("regularised", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class TutorialVAE(nn.Module):
    """The VAE of Pyro's own tutorial, line for line but for its sizes (784-400-50 there)."""

    def __init__(self, z_dim: int = 2, hidden_dim: int = 8) -> None:
        super().__init__()
        self.encoder = TutorialEncoder(z_dim, hidden_dim)
        self.decoder = nn.Sequential(
            nn.Linear(z_dim, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, 6), nn.Sigmoid()
        )
        self.z_dim = z_dim

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, 6))
            return loc_img

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


class TutorialEncoder(nn.Module):
    """The tutorial's encoder."""

    def __init__(self, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.reshape(-1, 6)
        hidden = self.softplus(self.fc1(x))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class PyroParamVAE(PyroModule):
    """A PyroModule with constrained parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loading = PyroParam(0.1 * torch.randn(2, 6))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.gain = PyroParam(0.1 * torch.randn(6, 2))
        self.spread = PyroParam(torch.full((2,), 0.8), constraint=constraints.interval(0.01, 2.0))

    def model(self, x: Tensor) -> None:
        pyro.module("pyroparam", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.loading, self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("pyroparam", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.gain, self.spread).to_event(1))


def plain_functions() -> Any:
    """Return a pair of functions that hold everything in ``pyro.param`` statements."""

    class Pair:
        @staticmethod
        def model(x: Tensor) -> None:
            loading = pyro.param("loading", lambda: 0.1 + x.new_zeros(2, 6))
            noise = pyro.param("noise", lambda: x.new_ones(()), constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
                pyro.sample("x", dist.Normal(z @ loading, noise).to_event(1), obs=x)

        @staticmethod
        def guide(x: Tensor) -> None:
            gain = pyro.param("gain", lambda: 0.1 + x.new_zeros(6, 2))
            spread = pyro.param("spread", lambda: x.new_ones(2), constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ gain, spread).to_event(1))

    return Pair()


def common_mean(x: Tensor) -> None:
    """w ~ N(0, 1), z_i ~ N(w, 1), x_i ~ N(z_i, 1): one global that all data share."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w.expand(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def common_mean_guide(x: Tensor) -> None:
    """w from its prior, then z given x and w exactly."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + w) / 2, 0.5**0.5))


def steps(x: Tensor, lengths: Tensor) -> None:
    """A latent and an observed number in each step up to the longest length of the batch."""
    with pyro.plate("data", len(x)):
        for t in range(int(lengths.max())):
            z = pyro.sample(f"z_{t}", dist.Normal(x.new_zeros(len(x)), 1.0).mask(t < lengths))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0).mask(t < lengths), obs=x[:, t])


def steps_guide(x: Tensor, lengths: Tensor) -> None:
    """The posterior of each step, moved by a parameter that starts at zero."""
    shift = pyro.param("shift", torch.zeros(()))
    with pyro.plate("data", len(x)):
        for t in range(int(lengths.max())):
            loc = x[:, t] / 2 + shift
            pyro.sample(f"z_{t}", dist.Normal(loc, 0.5**0.5).mask(t < lengths))


def standard_guide(x: Tensor) -> None:
    """Draw a latent of one number from its prior, whatever the rows of ``x`` are."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0 * x[:, 0], 1.0))


def densities_at(joint: Any, values: dict[str, Tensor]) -> tuple[Trace, Trace]:
    """Return stock traces of a pair's model and guide at given latents, log densities computed."""
    model = poutine.trace(poutine.condition(joint.model, data=values))
    drawn = model.get_trace(*joint.args, **joint.kwargs)
    guide = poutine.trace(poutine.replay(joint.guide, trace=_as_draws(values)))
    traces = drawn, guide.get_trace(*joint.args, **joint.kwargs)
    for trace in traces:
        trace.compute_log_prob()
    return traces


def _as_draws(values: dict[str, Tensor]) -> Trace:
    trace = Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    return trace


def binary(n: int, shape: tuple[int, ...] = (6,)) -> Tensor:
    """Return binary rows in two clusters, more ones than zeros."""
    cluster = torch.arange(n) % 2
    probs = torch.where(cluster.bool(), 0.95, 0.6).reshape(n, *(1,) * len(shape))
    return torch.bernoulli(probs.expand(n, *shape), generator=torch.Generator().manual_seed(5))


def real(n: int, shape: tuple[int, ...] = (6,)) -> Tensor:
    """Return correlated Gaussian rows away from zero."""
    generator = torch.Generator().manual_seed(6)
    common = torch.randn(n, *(1,) * len(shape), generator=generator)
    return 2 * common + 0.3 * torch.randn(n, *shape, generator=generator)


def counts(n: int) -> Tensor:
    """Return rows of counts in two clusters."""
    return (7 * binary(n) + torch.arange(n)[:, None] % 3).float()


WORD_VECTORS = torch.randn(6, 4, generator=torch.Generator().manual_seed(8))
COLUMNS = [
    Column("a", "real"),
    Column("b", "count"),
    Column("c", "categorical", categories=("x", "y", "z")),
    Column("d", "ordinal", categories=(1, 2, 3)),
    Column("e", "positive", "gamma"),
    Column("f", "censored", low=-1.0),
]


def table(n: int) -> Tensor:
    """Return rows of cells of these columns in two clusters, the last row but one all there."""
    cluster = torch.arange(n) % 2
    rows = torch.stack([2.0 * cluster - 1, 4.0 * cluster, 2.0 * cluster, 2.0 * cluster], -1)
    rest = torch.stack([1.0 + cluster, 2.0 * cluster - 1], -1)
    holes = torch.arange(n * 6).reshape(n, 6) % 11 == 3
    return torch.cat([rows, rest], -1).masked_fill(holes, torch.nan)


def documents(n: int) -> Tensor:
    """Return counts of six words: each document has 3 to 5 words of one half of them, six times."""
    half = torch.arange(n)[:, None] % 2
    words = torch.arange(6)[None]
    present = (words // 3 == half) & ((words + torch.arange(n)[:, None]) % 4 != 0)
    return (6 * present + (words == 0)).float()


def _numbered(n: int) -> dict[str, Tensor]:
    return {"x": counts(n), "row": torch.arange(n)}


@dataclass(frozen=True)
class Case:
    """One program of the battery.

    Arguments:
        build: Makes the program, with random weights.
        data: Makes a batch of n rows.
        observed: Its observed site.
        has_prior: Whether it can be generated from and has a likelihood.
        has_latent: Whether its guide draws anything.
        rebuilt: Whether ``pv.load`` rebuilds it without ``into``.
    """

    build: Callable[[], Any]
    data: Callable[[int], Any]
    observed: str = "x"
    has_prior: bool = True
    has_latent: bool = True
    rebuilt: bool = False


def _labelled(n: int) -> tuple[Tensor, Tensor]:
    return binary(n), torch.arange(n) % 3


def _two_modalities(n: int) -> dict[str, Tensor]:
    x, lacks = binary(n), torch.arange(n)[:, None] % 3
    side = x[:, :3].masked_fill(lacks == 1, torch.nan)
    return {"x": x.masked_fill(lacks == 2, torch.nan), "side": side}


def _sequences(n: int) -> dict[str, Tensor]:
    return {"x": real(n, (5,)), "lengths": torch.arange(n) % 6}  # some rows are wholly masked


def _rolls(n: int) -> dict[str, Tensor]:
    lengths = torch.arange(n) % 4  # some are empty
    kept = torch.arange(3)[:, None] < lengths[:, None, None]
    return {"x": torch.where(kept, binary(n, (3, 3)), 0.0), "lengths": lengths}


def _captions(n: int) -> dict[str, Tensor]:
    lengths = 1 + torch.arange(n) % 4
    place = torch.arange(4)
    words = 4 + (torch.arange(n)[:, None] + place) % 2  # below <eos> = 3 all is <pad>
    x = torch.where(place < lengths[:, None] - 1, words, 0)
    return {"x": torch.where(place == lengths[:, None] - 1, 3, x), "lengths": lengths}


def _sentence_vae(decoder: str) -> SentenceVAE:
    return SentenceVAE(6, 2, decoder=decoder, embedding=4, hidden=8, dropout=0.1, word_dropout=0.2)


def _dmm(guide: str) -> DMM:
    return DMM(3, 2, (8,), transition=8, recurrent=8, guide=guide)


def _zoo(build: Callable[[], Any], data: Callable[[int], Any], **options: Any) -> Case:
    return Case(build, data, rebuilt=True, **options)


def _vae(**parts: Any) -> VAE:
    """Return a VAE off the start of its parts, where flows and residual blocks do nothing."""
    vae = VAE(6, 2, (8,), **parts)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


CASES = {
    "vae": _zoo(lambda: VAE(6, 2, (8,)), binary),
    "vae_conv": _zoo(
        lambda: VAE((1, 8, 8), 2, (4, 3), network="conv"), lambda n: binary(n, (1, 8, 8))
    ),
    "vae_gaussian": _zoo(lambda: VAE(6, 2, (8,), observation=Gaussian), real),
    "vae_categorical": _zoo(
        lambda: VAE(6, 2, (8,), observation=functools.partial(Categorical, num_classes=3)),
        lambda n: (2 * binary(n)).long(),
    ),
    "vae_discretised": _zoo(
        lambda: VAE(6, 2, (8,), observation=functools.partial(DiscretisedLogistic, levels=5)),
        lambda n: binary(n),
    ),
    "vae_made": _zoo(
        lambda: VAE(
            6,
            2,
            (8,),
            network="skip",
            posterior=BatchNormGaussian,
            observation=functools.partial(MADE, hidden=8),
        ),
        binary,
    ),
    "vae_ar1": _zoo(
        lambda: VAE(
            6,
            2,
            (8,),
            prior=functools.partial(AR1Prior, steps=2, correlation=0.5),
            posterior=functools.partial(DeltaGaussian, delta=0.1),
        ),
        binary,
    ),
    "vae_vamp": _zoo(
        lambda: _vae(activation="glu", prior=functools.partial(VampPrior, num_components=3)), binary
    ),
    "vae_mixture": _zoo(lambda: _vae(prior=GaussianMixture, posterior=LowRankGaussian), binary),
    "vae_flow_prior": _zoo(
        lambda: _vae(
            network="residual",
            prior=functools.partial(FlowPrior, hidden=(8,), transform="spline"),
            posterior=FullGaussian,
        ),
        binary,
    ),
    "vae_planar": _zoo(lambda: _vae(posterior=functools.partial(PlanarFlow, num_flows=2)), binary),
    "vae_iaf": _zoo(
        lambda: _vae(posterior=functools.partial(InverseAutoregressiveFlow, hidden=(8,))), binary
    ),
    "vae_spline": _zoo(
        lambda: _vae(posterior=functools.partial(SplineFlow, hidden=(8,), num_bins=4)), binary
    ),
    "linear": _zoo(lambda: LinearVAE(6, 2), real),
    "linear_full": _zoo(lambda: LinearVAE(6, 2, full_covariance=True), real),
    "autoencoder": _zoo(lambda: Autoencoder(6, 2, (8,)), real, has_prior=False),
    "hierarchical": _zoo(lambda: HierarchicalVAE(6, (3, 2), (8, 6), batch_norm=False), binary),
    "ladder": _zoo(lambda: LadderVAE(6, (3, 2, 2), (8, 6, 4), depth=1), binary),
    "top_down": _zoo(lambda: TopDownVAE(6, (2,) * 3, 8, observation=Gaussian), real),
    "sbn": _zoo(lambda: SBN(6, (2,)), binary),
    "sbn_autoregressive": _zoo(
        lambda: SBN(6, (2, 2), hidden=(4,), guide="autoregressive", prior="autoregressive"), binary
    ),
    "def_gamma": _zoo(lambda: DEF(6, (2,), hidden=(8,)), counts),
    "def_layers": _zoo(
        lambda: DEF(6, (2, 2), family="gaussian", observation="bernoulli", hidden=(8,)), binary
    ),
    "def_poisson": _zoo(lambda: DEF(6, (2,), family="poisson", weights="point"), counts),
    "def_table": _zoo(lambda: DEF(6, (2,), posterior="lognormal", num_data=64), _numbered),
    "bayesian_vae": _zoo(lambda: BayesianVAE(6, 2, (8,)), binary),
    "vq": _zoo(lambda: VQVAE(6, 5, 2, (8,), network="mlp", positions=2, prior_width=8), binary),
    "vq_conv": _zoo(
        lambda: VQVAE((1, 2, 4), 4, 2, (4,), prior="factorised", observation=Gaussian, revive=0.0),
        lambda n: real(n, (1, 2, 4)),
    ),
    "nvdm": _zoo(lambda: NVDM(6, 2, (8,)), documents),
    "gsm": _zoo(lambda: GSM(6, 2, (8,)), documents),
    "prodlda": _zoo(lambda: ProdLDA(6, 2, (8,), dropout=0.2), documents),
    "etm": _zoo(lambda: ETM(6, 2, (8,), embedding_dim=4), documents),
    "etm_given": Case(lambda: ETM(6, 2, (8,), embeddings=WORD_VECTORS), documents),
    "lda": _zoo(lambda: LDA(6, 2, (8,), concentration=1.0), documents),
    "dmm": _zoo(lambda: _dmm("smoothing"), _rolls),
    "dmm_filtering": _zoo(lambda: _dmm("filtering"), _rolls),
    "dmm_mean_field": _zoo(lambda: _dmm("mean_field"), lambda n: _rolls(n)["x"]),
    "sentences_gru": _zoo(lambda: _sentence_vae("gru"), _captions),
    "sentences_transformer": _zoo(
        lambda: _sentence_vae("transformer"), lambda n: _captions(n)["x"]
    ),
    "sentences_lm": _zoo(lambda: SentenceLM(6, embedding=4, hidden=8), _captions, has_latent=False),
    "vrnn": _zoo(lambda: VRNN(3, 2, (8,), features=4, recurrent=8), _rolls),
    "conditional": _zoo(lambda: ConditionalVAE(6, 2, (8,), num_classes=3), _labelled),
    "m2": _zoo(lambda: M2(6, 3, 2, (8,)), binary),
    "table": _zoo(lambda: TableVAE(COLUMNS, 2, (8,)), table),
    "multimodal": _zoo(
        lambda: MultimodalVAE({"x": 6, "side": 3}, 2, (8,), guide="mixture"), _two_modalities
    ),
    "labelled": Case(Labelled, _labelled),
    "sequences": Case(Sequences, _sequences),
    "bayesian": Case(BayesianDecoder, real),
    "regularised": Case(Regularised, binary),
    "tutorial": Case(TutorialVAE, binary, observed="obs"),
    "pyroparam": Case(PyroParamVAE, real),
    "functions": Case(plain_functions, real),
}


def made(
    name: str,
    device: torch.device | str,
    dtype: torch.dtype = torch.float64,
    rows: int = 48,
) -> tuple[Any, Any]:
    """Return a program of the battery and its data on a device, in one precision."""
    case = CASES[name]
    program = case.build()
    if isinstance(program, nn.Module):
        program.to(device=device, dtype=dtype)
    data = map_batch(
        lambda x: x.to(device, dtype if x.is_floating_point() else None), case.data(rows)
    )
    return program, data
