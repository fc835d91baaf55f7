"""HMC on programs: the joint of data and latents is preserved, ranks are uniform, faults are seen.

``test_hmc.py`` holds the kernel against Gaussian posteriors (stationarity in 1, 2, 10 and 50 dims,
reversibility, volume, order); here the same is asked of whole programs by two joint tests, each
with controls that must fail at p < 1e-6.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from kernel_faults import all_accepted, momentum_drawn_once
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from scipy.stats import chisquare
from torch import Tensor, nn

from pyro_vae.evaluation.generation import simulate
from pyro_vae.inference.sampling import hmc
from pyro_vae.inference.sampling.hmc import hmc_init, hmc_step
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program

ALPHA = 1e-6
BINS = 10


class Sampler(nn.Module):
    """A program with a guide that is wrong by a shift and a factor, and z as its latents."""

    shift, factor = 0.0, 1.0

    def example(self, n: int = 2) -> Tensor:
        return torch.zeros(n, *self.event, dtype=torch.float64)

    event: tuple[int, ...] = ()

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            self.sample(x)


class Conjugate(Sampler):
    """z ~ N(0, I_2), x ~ N(z1 + 2 z2, 1): correlated posterior; the guide has its marginals."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] + 2 * z[..., 1], 1.0), obs=x)

    def sample(self, x: Tensor) -> None:
        loc = torch.stack([x / 6, x / 3], -1) + self.shift
        scale = x.new_tensor([5 / 6, 1 / 3]).sqrt() * self.factor
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class Positive(Sampler):
    """A gamma rate and a log-normal scale: two sites on constrained supports."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(3.0), 2.0))
            scale = pyro.sample("scale", dist.LogNormal(x.new_tensor(-0.5), 0.4))
            pyro.sample("x", dist.Normal(rate, scale), obs=x)

    def sample(self, x: Tensor) -> None:
        one = torch.ones_like(x)
        pyro.sample("rate", dist.LogNormal(0.2 + self.shift * one, 0.5 * self.factor))
        pyro.sample("scale", dist.LogNormal(-0.5 * one, 0.4 * self.factor))


class TwoLayers(Sampler):
    """top -> z -> x with a bent mean: a curved posterior."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x.new_zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(torch.tanh(2 * top), 0.6))
            pyro.sample("x", dist.Normal(z + 0.3 * z.square(), 0.7), obs=x)

    def sample(self, x: Tensor) -> None:
        one = torch.ones_like(x)
        pyro.sample("top", dist.Normal(0 * one + self.shift, self.factor))
        pyro.sample("z", dist.Normal(0.5 * x + self.shift, 0.8 * self.factor))


class Decoder(Sampler):
    """A VAE's decoder: two latents, a fixed tanh layer, eight Bernoulli pixels."""

    event = (8,)

    def __init__(self) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        options = {"generator": noise, "dtype": torch.float64}
        self.register_buffer("first", torch.randn(2, 6, **options))
        self.register_buffer("last", torch.randn(6, 8, **options))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = torch.tanh(z @ self.first) @ self.last
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def sample(self, x: Tensor) -> None:
        loc = x.new_zeros(len(x), 2) + self.shift
        pyro.sample("z", dist.Normal(loc, 0.8 * self.factor).to_event(1))


PROGRAMS: dict[str, type[Sampler]] = {
    "conjugate": Conjugate,
    "positive": Positive,
    "two layers": TwoLayers,
    "bernoulli decoder": Decoder,
}


def dream(program: Program, rows: int) -> tuple[Tensor, LogJoint, Tensor]:
    """Draw (x, z) from the model; return x, its density, and z unconstrained, (1, B | Z)."""
    inputs = program.examples.inputs(rows)
    with program.passes(inputs, Verb("simulate", simulates=True)) as passes:
        made = simulate(program, passes.on(passes.batch))
        joint = LogJoint(program, made.batch)
        latents = {name: value.unsqueeze(0) for name, value in made.latents.items()}
        return made.batch, joint, joint.pack(latents, 1)


# --- simulation-based calibration -----------------------------------------------------------------


def sbc(build: Callable[[], Sampler], *, steps: int, thin: int = 6, draws: int = 19) -> float:
    """Return the smallest p of the ranks of the true latents among posterior draws, Bonferroni'd.

    1,000 data; chains start at the guide, take 30 steps, then one of each ``thin`` counts. Without
    steps the draws are the guide's.
    """
    torch.manual_seed(0)
    program = Program.of(build())
    _, joint, truth = dream(program, 1000)
    with scoring(program):
        if steps:
            state = hmc_init(joint.log_joint, joint.draw_guide(1))
            kept = []
            for index in range(steps + draws * thin):
                state, _ = hmc_step(state, joint.log_joint, 0.35, 4, jitter=0.5)
                if index >= steps and (index - steps) % thin == thin - 1:
                    kept.append(state.position[0])
            sample = torch.stack(kept)
        else:
            sample = joint.draw_guide(draws)
    assert len(sample) == draws
    ranks = (sample < truth).sum(0)  # (B, Z), uniform on 0 .. draws
    tests = [torch.bincount(r * BINS // (draws + 1), minlength=BINS) for r in ranks.T]
    return min(1.0, len(tests) * min(float(chisquare(t.numpy()).pvalue) for t in tests))


@pytest.mark.parametrize("name", PROGRAMS)
def test_ranks_of_the_truth_are_uniform(name):
    """Chi-square over 10 bins, p > 1e-6 after Bonferroni: false alarms 1e-6 per program.

    Draws 6 transitions apart are nearly independent, which calibration of the ranks needs.
    """
    assert sbc(PROGRAMS[name], steps=30) > ALPHA


def narrow() -> Sampler:
    program = Conjugate()
    program.factor = 0.6
    return program


def biased() -> Sampler:
    program = Decoder()
    program.shift = 0.4
    return program


@pytest.mark.parametrize("build", [narrow, biased])
def test_ranks_catch_a_wrong_guide_and_hmc_mends_it(build):
    """The guide's own draws fail at p < 1e-6; those refined from it pass. False alarms: 1e-6."""
    assert sbc(build, steps=0) < ALPHA
    assert sbc(build, steps=30) > ALPHA


# --- Geweke's joint test --------------------------------------------------------------------------


def joint_test(build: Callable[[], Sampler], transitions: int = 6) -> float:
    """Return the largest |z| between two ways to draw (x, z), over moments of both.

    One is ancestral. The other starts there, then in turns moves z by HMC given x, and draws x
    anew given z. Rows are independent chains, so that the z-scores need no batch means.
    """
    torch.manual_seed(1)
    program = Program.of(build())
    marginal_x, _, marginal_u = dream(program, 10_000)
    x, joint, u = dream(program, 10_000)
    with scoring(program):
        for _ in range(transitions):
            state = hmc_init(joint.log_joint, u)
            for _ in range(3):
                state, _ = hmc_step(state, joint.log_joint, 0.5, 3, jitter=0.2)
            u = state.position
            x = redraw(program, joint, u)
            joint = LogJoint(program, x)
    return largest_z(functions(marginal_x, marginal_u[0]), functions(x, u[0]))


def redraw(program: Program, joint: LogJoint, u: Tensor) -> Tensor:
    """Draw x given the latents."""
    latents = Trace()  # replayed: a conditioned site would be drawn anew as well
    for name, value in joint.unpack(u).items():
        latents.add_node(
            name, name=name, type="sample", value=value[0], is_observed=False, infer={}
        )
    model = poutine.uncondition(poutine.replay(program.functions[0], trace=latents))
    return poutine.trace(model).get_trace(program.examples.example(len(u[0]))).nodes["x"]["value"]


def functions(x: Tensor, u: Tensor) -> Tensor:
    """Return test functions (rows, F): coordinates, squares, products with the data."""
    x = x.reshape(len(x), -1)
    mean = x.mean(-1, keepdim=True)
    return torch.cat([u, u.square(), u * mean, u.tanh() * mean.tanh(), x, x.square()], -1)


def largest_z(first: Tensor, second: Tensor) -> float:
    spread = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    z = ((first.mean(0) - second.mean(0)) / spread.clamp(min=1e-12)).abs()
    return z.max().item() if bool(z.isfinite().all()) else math.nan  # NaN passes no comparison


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_joint_of_data_and_latents_is_left_invariant(name):
    """|z| < 5 on at most 24 functions. False alarms: 1.4e-5 per program."""
    assert joint_test(PROGRAMS[name]) < 5.0


# Without rejections a chain on the bent mean of TwoLayers runs off to infinity, and no z is left.
CONTROLS: dict[str, tuple[str, Callable[[], Callable[..., Tensor]], type[Sampler]]] = {
    "no Metropolis step": ("_decide", lambda: all_accepted, Conjugate),
    "momentum not resampled": ("_draw_momentum", momentum_drawn_once, TwoLayers),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_the_joint_test_catches(control, monkeypatch):
    """|z| > 5.5: p < 4e-8 for one function, 1e-6 after Bonferroni over 24."""
    name, make, build = CONTROLS[control]
    monkeypatch.setattr(hmc, name, make())
    found = joint_test(build)
    assert math.isfinite(found) and found > 5.5
    assert math.erfc(5.5 / math.sqrt(2)) * 24 < ALPHA
