"""``LogJoint`` against densities written by hand, Jacobians included, in float64 to 1e-10.

Nothing here is statistical: the oracles are ``torch.distributions`` at given points.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from pyro_vae.errors import ProgramError
from pyro_vae.models import Autoencoder, LinearVAE
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.program import Program

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B = 4
CHAINS = [1, 3]


def real(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_joint_of(program, batch):
    wrapped = Program.of(program)
    wrapped.read(batch)
    return LogJoint(wrapped, batch)


def log_sigmoid_slope(u):
    return nn.functional.logsigmoid(u) + nn.functional.logsigmoid(-u)


def stick_breaking(u):
    """Return the simplex of two real coordinates and log |dz/du|, with PyTorch's offsets."""
    first, second = torch.sigmoid(u[..., 0] - math.log(2)), torch.sigmoid(u[..., 1])
    z = torch.stack([first, (1 - first) * second, (1 - first) * (1 - second)], -1)
    slopes = (first * (1 - first)).log() + (second * (1 - second)).log()
    return z, slopes + (1 - first).log()


class Constrained(nn.Module):
    """Two layers on constrained supports: a rate, a log-normal pair, a share and a simplex."""

    def model(self, x: Tensor) -> None:
        one = x.new_ones(())
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2 * one, 3 * one))
            loc = rate[..., None].expand(*rate.shape, 2)
            pair = pyro.sample("pair", dist.LogNormal(loc, 0.5).to_event(1))
            share = pyro.sample("share", dist.Beta(2 * one, 3 * one))
            mix = pyro.sample("mix", dist.Dirichlet(torch.linspace(1, 2, 3).to(x)))
            mean = rate + pair.sum(-1) * share + mix[..., 0] - mix[..., 2]
            pyro.sample("x", dist.Normal(mean, 0.7), obs=x)

    def guide(self, x: Tensor) -> None:
        one = torch.ones_like(x)
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3 * one, 2 * one))
            loc = rate[..., None].expand(*rate.shape, 2)
            pyro.sample("pair", dist.LogNormal(loc, 0.3).to_event(1))
            pyro.sample("share", dist.Beta(one, 2 * one))
            pyro.sample("mix", dist.Dirichlet(one[:, None].expand(len(x), 3) * 1.5))


class Tiled(Constrained):
    """The same densities by a model that takes rows only: its particles are tiled."""

    def model(self, x: Tensor) -> None:
        def one_dimensional(value: Tensor) -> Tensor:
            if value.dim() > 1:
                raise RuntimeError("rows only")
            return value

        one = x.new_ones(())
        with pyro.plate("data", len(x)):
            rate = one_dimensional(pyro.sample("rate", dist.Gamma(2 * one, 3 * one)))
            loc = rate[..., None].expand(*rate.shape, 2)
            pair = pyro.sample("pair", dist.LogNormal(loc, 0.5).to_event(1))
            share = pyro.sample("share", dist.Beta(2 * one, 3 * one))
            mix = pyro.sample("mix", dist.Dirichlet(torch.linspace(1, 2, 3).to(x)))
            mean = rate + pair.sum(-1) * share + mix[..., 0] - mix[..., 2]
            pyro.sample("x", dist.Normal(mean, 0.7), obs=x)


def by_hand(u, x):
    """Return log p(x, z), log p(z) and log q(z | x), each with log |dz/du|."""
    rate, pair, share = u[..., 0].exp(), u[..., 1:3].exp(), torch.sigmoid(u[..., 3])
    mix, slope = stick_breaking(u[..., 4:])
    jacobian = u[..., 0] + u[..., 1:3].sum(-1) + log_sigmoid_slope(u[..., 3]) + slope

    def factors(gamma, width, beta, alpha):
        terms = td.Gamma(*(torch.tensor(g, dtype=u.dtype) for g in gamma)).log_prob(rate)
        terms = terms + td.LogNormal(rate[..., None], width).log_prob(pair).sum(-1)
        terms = terms + td.Beta(*(torch.tensor(b, dtype=u.dtype) for b in beta)).log_prob(share)
        return terms + td.Dirichlet(torch.tensor(alpha, dtype=u.dtype)).log_prob(mix)

    prior = factors((2.0, 3.0), 0.5, (2.0, 3.0), [1.0, 1.5, 2.0]) + jacobian
    guide = factors((3.0, 2.0), 0.3, (1.0, 2.0), [1.5] * 3) + jacobian
    loc = rate + pair.sum(-1) * share + mix[..., 0] - mix[..., 2]
    return td.Normal(loc, 0.7).log_prob(x) + prior, prior, guide


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("build", [Constrained, Tiled])
def test_densities_on_constrained_supports(build, chains):
    x, u = real(B), real(chains, B, 6, seed=1)
    program = Program.of(build())
    density = log_joint_of(program, x)
    assert program.tiled(x) == (build is Tiled)
    assert density.dim == 6 and [slot.name for slot in density.slots] == [
        "rate",
        "pair",
        "share",
        "mix",
    ]
    with scoring(program):
        found = density.log_joint(u), density.log_prior(u), density.log_guide(u)
    for value, expected in zip(found, by_hand(u, x), strict=True):
        assert value.shape == (chains, B)
        torch.testing.assert_close(value, expected, **EXACT)


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("build", [Constrained, Tiled])
def test_gradients_are_those_of_the_densities_by_hand(build, chains):
    x = real(B)
    program = Program.of(build())
    density = log_joint_of(program, x)
    u = real(chains, B, 6, seed=1).requires_grad_()
    with program.running():
        found = density.log_joint(u), density.log_prior(u), density.log_guide(u)
    for value, expected in zip(found, by_hand(u, x), strict=True):
        (got,) = torch.autograd.grad(value.sum(), u, retain_graph=True)
        (exact,) = torch.autograd.grad(expected.sum(), u, retain_graph=True)
        torch.testing.assert_close(got, exact, **EXACT)


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("build", [Constrained, Tiled])
def test_pack_inverts_unpack(build, chains):
    x, u = real(B), real(chains, B, 6, seed=2)
    density = log_joint_of(build(), x)
    values = density.unpack(u)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "rate": (chains, B),
        "pair": (chains, B, 2),
        "share": (chains, B),
        "mix": (chains, B, 3),
    }
    torch.testing.assert_close(values["rate"], u[..., 0].exp(), **EXACT)
    torch.testing.assert_close(values["mix"], stick_breaking(u[..., 4:])[0], **EXACT)
    torch.testing.assert_close(density.pack(values, chains), u, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("build", [Constrained, Tiled])
@pytest.mark.parametrize("start", ["guide", "prior"])
def test_draws_belong_to_the_right_datum_and_chain(build, chains, start):
    """A guide of scale 1e-6 around 10 n + the datum: a mixed-up axis shows at once."""

    class Narrow(build):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.LogNormal(x, 1e-6))
                if build is Tiled and z.dim() > 1:
                    raise RuntimeError("rows only")
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.LogNormal(x + 10, 1e-6))

    x = torch.arange(B, dtype=torch.float64)
    program = Program.of(Narrow())
    density = log_joint_of(program, x)
    assert program.tiled(x) == (build is Tiled)
    with scoring(program):
        draw = density.draw_guide(chains) - 10 if start == "guide" else density.draw_prior(chains)
    assert draw.shape == (chains, B, 1)
    torch.testing.assert_close(draw[..., 0], x.expand(chains, B), rtol=0, atol=1e-4)
    if chains > 1:
        assert not torch.equal(draw[0], draw[1])


class Labelled(nn.Module):
    """The label moves the prior, the likelihood and, for ``bounded``, the support itself."""

    def __init__(self, bounded=False):
        super().__init__()
        self.bounded = bounded

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            upper = 1.0 + y.to(x)
            prior = dist.Uniform(-upper, upper) if self.bounded else dist.Normal(y.to(x), 1.0)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z * (1 + y), 1.0), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            upper = 1.0 + y.to(x)
            q = dist.Uniform(-upper, upper) if self.bounded else dist.Normal(x - y, 0.5)
            pyro.sample("z", q)


@pytest.mark.parametrize("chains", CHAINS)
def test_label_inputs(chains):
    x, y, u = real(B), torch.arange(B), real(chains, B, 1, seed=3)
    density = log_joint_of(Labelled(), (x, y))
    z = u[..., 0]
    prior = td.Normal(y.double(), 1.0).log_prob(z)
    torch.testing.assert_close(density.log_prior(u), prior, **EXACT)
    likelihood = td.Normal(z * (1 + y), 1.0).log_prob(x)
    torch.testing.assert_close(density.log_joint(u), prior + likelihood, **EXACT)
    torch.testing.assert_close(density.log_guide(u), td.Normal(x - y, 0.5).log_prob(z), **EXACT)


@pytest.mark.parametrize("chains", CHAINS)
def test_bounds_that_depend_on_the_data_are_taken_per_row(chains):
    """z ~ Uniform(-c, c) with c = 1 + y: log p(z) + log |dz/du| = log σ'(u) whatever c."""
    x, y, u = real(B), torch.arange(B), real(chains, B, 1, seed=3)
    density = log_joint_of(Labelled(bounded=True), (x, y))
    upper = (1.0 + y).double()
    z = upper * (2 * torch.sigmoid(u[..., 0]) - 1)
    slope = log_sigmoid_slope(u[..., 0])
    torch.testing.assert_close(density.unpack(u)["z"], z, **EXACT)
    torch.testing.assert_close(density.log_prior(u), slope, **EXACT)
    torch.testing.assert_close(density.log_guide(u), slope, **EXACT)
    expected = slope + td.Normal(z * (1 + y), 1.0).log_prob(x)
    torch.testing.assert_close(density.log_joint(u), expected, **EXACT)


class Masked(nn.Module):
    """Masked steps of the datum, and a latent whose prior and guide are masked for some rows."""

    def model(self, x: Tensor, lengths: Tensor) -> None:
        known = torch.arange(x.shape[-1], device=x.device) < lengths[:, None]
        with pyro.plate("data", len(x)):
            prior = dist.LogNormal(x.new_zeros(()), 1.0).mask(lengths > 1)
            z = pyro.sample("z", prior)
            steps = dist.Normal(z[..., None], x.new_ones(x.shape[-1])).mask(known)
            pyro.sample("x", steps.to_event(1), obs=x)

    def guide(self, x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(x[:, 0], 0.5).mask(lengths > 1))


@pytest.mark.parametrize("chains", CHAINS)
def test_masks(chains):
    x, lengths, u = real(B, 3), torch.arange(B), real(chains, B, 1, seed=4)
    density = log_joint_of(Masked(), {"x": x, "lengths": lengths})
    kept, known = lengths > 1, torch.arange(3) < lengths[:, None]
    z = u[..., 0].exp()
    # Without a density, a coordinate has N(0, 1) on both sides, whatever its support.
    free = td.Normal(0.0, 1.0).log_prob(u[..., 0])
    prior = torch.where(kept, td.LogNormal(0.0, 1.0).log_prob(z) + u[..., 0], free)
    steps = (td.Normal(z[..., None], 1.0).log_prob(x) * known).sum(-1)
    guide = torch.where(kept, td.LogNormal(x[:, 0], 0.5).log_prob(z) + u[..., 0], free)
    torch.testing.assert_close(density.log_prior(u), prior, **EXACT)
    torch.testing.assert_close(density.log_joint(u), prior + steps, **EXACT)
    torch.testing.assert_close(density.log_guide(u), guide, **EXACT)


class Global(nn.Module):
    """A global bound c: the support of the local latent is (0, c), and c is held at one draw."""

    def model(self, x: Tensor) -> None:
        c = pyro.sample("c", dist.Gamma(x.new_tensor(4.0), 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(c * 0, c))
            pyro.sample("x", dist.Normal(z * c, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        c = pyro.sample("c", dist.LogNormal(x.new_tensor(0.5), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(c * 0, c))


@pytest.mark.parametrize("chains", CHAINS)
def test_a_global_is_held_at_one_draw(chains):
    x, u = real(B), real(chains, B, 1, seed=5)
    bounds = []
    for seed in range(3):
        torch.manual_seed(seed)
        density = log_joint_of(Global(), x)
        slope, share = log_sigmoid_slope(u[..., 0]), torch.sigmoid(u[..., 0])
        c = (density.unpack(u)["z"] / share).flatten()[0]
        for _ in range(2):  # a second call must not draw the global anew
            expected = slope + td.Normal(share * c * c, 1.0).log_prob(x)
            torch.testing.assert_close(density.log_joint(u.clone()), expected, **EXACT)
            torch.testing.assert_close(density.log_guide(u), slope, **EXACT)
        assert density.draw_guide(chains).shape == (chains, B, 1)
        bounds.append(c.item())
    assert len(set(bounds)) == 3


def test_one_model_pass_serves_prior_and_joint_and_never_a_changed_vector():
    runs = 0

    class Counted(Constrained):
        def model(self, x: Tensor) -> None:
            nonlocal runs
            runs += 1
            super().model(x)

    x, u = real(B), real(2, B, 6, seed=1)
    density = log_joint_of(Counted(), x)
    start = runs
    density.log_prior(u)
    density.log_joint(u)
    assert runs == start + 1
    u += 1.0
    torch.testing.assert_close(density.log_joint(u), by_hand(u, x)[0], **EXACT)
    with torch.no_grad():
        density.log_joint(u.requires_grad_())
    assert density.log_joint(u).requires_grad


# --- what is refused ------------------------------------------------------------------------------


def pair_of(prior, *, guide=None):
    """Return a program whose latents come from ``prior(x)``, which samples them."""

    class Pair(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = prior(x)
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                (guide or prior)(x)

    return Pair()


def dependent(low, high):
    def prior(x):
        u = pyro.sample("u", dist.LogNormal(torch.zeros_like(x), 1.0))
        return pyro.sample("z", dist.Uniform(low(u), high(u)))

    return prior


@pytest.mark.parametrize(
    "prior",
    [
        dependent(lambda u: 0 * u, lambda u: u),
        dependent(lambda u: -u, lambda u: 0 * u),
        dependent(lambda u: -u, lambda u: u),
        dependent(lambda u: u, lambda u: u + 1),
    ],
)
def test_supports_that_depend_on_a_latent_are_refused(prior):
    with pytest.raises(ProgramError, match=r"'z': the support of Uniform.*reparametrise"):
        log_joint_of(pair_of(prior), real(B))


def test_dependent_supports_of_events_and_of_point_guides_are_refused():
    def prior(x):
        u = pyro.sample("u", dist.LogNormal(torch.zeros_like(x), 1.0))
        upper = u[..., None].expand(*u.shape, 2)
        return pyro.sample("z", dist.Uniform(0 * upper, upper).to_event(1)).sum(-1)

    def point(x):
        one = torch.ones_like(x)
        pyro.sample("u", dist.Delta(one))
        pyro.sample("z", dist.Delta(0.5 * torch.ones(len(x), 2).to(x)).to_event(1))

    with pytest.raises(ProgramError, match="'z': the support of Uniform"):
        log_joint_of(pair_of(prior, guide=point), real(B))


def test_fixed_bounds_given_as_numbers_are_taken():
    def prior(x):
        return pyro.sample("z", dist.Uniform(torch.full_like(x, -1.0), 3.0))

    u = real(2, B, 1)
    density = log_joint_of(pair_of(prior), real(B))
    torch.testing.assert_close(density.log_prior(u), log_sigmoid_slope(u[..., 0]), **EXACT)


def test_unconstrained_latents_have_no_jacobian():
    x, u = real(B, 5), real(3, B, 2)
    linear = LinearVAE(5, 2).double()
    with scoring(Program.of(linear)):
        density = log_joint_of(linear, x)
        found = density.log_joint(u)
    assert torch.equal(density.unpack(u)["z"], u)
    expected = linear.prior().log_prob(u) + linear.decoder(u).log_prob(x)
    torch.testing.assert_close(found, expected, **EXACT)


def discrete(x):
    return pyro.sample("k", dist.Bernoulli(torch.full_like(x, 0.5)))


def nothing(x):
    return torch.zeros_like(x)


def test_discrete_latents_alone_are_refused():
    with pytest.raises(ProgramError, match=r"'k' is discrete.*log_likelihood"):
        log_joint_of(pair_of(discrete), real(B))


class Clustered(nn.Module):
    """A cluster, a place in it, a datum there: the guide draws the cluster first."""

    centres = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(self.weights))
            z = pyro.sample("z", dist.Normal(self.centres[k], 0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=x[:, None] * self.centres))
            pyro.sample("z", dist.Normal(self.centres[k], 1.0))


@pytest.mark.parametrize("chains", CHAINS)
def test_discrete_latents_of_the_guide_are_summed_out(chains):
    x, u = real(B), real(chains, B, 1, seed=2)
    density = log_joint_of(Clustered(), x)
    prior = td.MixtureSameFamily(
        td.Categorical(Clustered.weights), td.Normal(Clustered.centres, u.new_tensor(0.4))
    ).log_prob(u[..., 0])
    torch.testing.assert_close(density.log_prior(u), prior, **EXACT)
    expected = prior + td.Normal(u[..., 0], 1.0).log_prob(x)
    torch.testing.assert_close(density.log_joint(u), expected, **EXACT)
    with pytest.raises(ProgramError, match="site 'k': discrete in the guide"):
        density.log_guide(u)


def test_a_program_without_latents_is_refused():
    with pytest.raises(ProgramError, match="no local latent"):
        log_joint_of(pair_of(nothing), real(B))


def test_an_autoencoder_is_refused():
    with pytest.raises(ProgramError, match="has no prior"):
        log_joint_of(Autoencoder(5, 2, (4,)).double(), real(B, 5))


class Nested(nn.Module):
    def model(self, x: Tensor) -> None:
        with pyro.plate("steps", x.shape[1], dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.mT)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("steps", x.shape[1], dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mT, 1.0))


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("chains", [1, 3])
def test_the_steps_of_a_second_plate_are_units_of_their_datum(chains, tiled):
    x, u = real(B, 3), real(chains, B, 3)
    program = Program.of(Nested())
    program.read(x)
    program.tiled = lambda batch: tiled
    with scoring(program):
        density = LogJoint(program, x)
        found, prior, guide = (
            f(u) for f in (density.log_joint, density.log_prior, density.log_guide)
        )
        values = density.unpack(u)
        drawn = density.draw_prior(5)
    assert torch.equal(values["z"], u) and drawn.shape == (5, B, 3)
    exact = td.Normal(0.0, 1.0).log_prob(u).sum(-1)
    torch.testing.assert_close(prior, exact, **EXACT)
    torch.testing.assert_close(found, exact + td.Normal(u, 1.0).log_prob(x).sum(-1), **EXACT)
    torch.testing.assert_close(guide, td.Normal(x, 1.0).log_prob(u).sum(-1), **EXACT)


def test_draws_under_a_second_plate_keep_datum_and_step():
    """The guide is N(x, 1): a draw minus x has no trace of where it stands, |z| < 5 each."""
    x = 100 * real(B, 3)
    program = Program.of(Nested())
    program.read(x)
    with scoring(program):
        drawn = LogJoint(program, x).draw_guide(400)
    assert ((drawn.mean(0) - x) * 20).abs().max() < 5


def angle(x):
    return pyro.sample("z", dist.VonMises(torch.zeros_like(x), 1.0))


def test_an_angle_wraps_around():
    density = log_joint_of(pair_of(angle), real(B))
    u = real(2, B, 1)
    turned = u + 2 * math.pi * torch.tensor([-3.0, 2.0], dtype=torch.float64)[:, None, None]
    assert density.unpack(turned)["z"].abs().max() <= math.pi
    torch.testing.assert_close(density.log_joint(turned), density.log_joint(u), **EXACT)
    with pytest.raises(ProgramError, match=r"local: site 'z' is an angle.*refine"):
        density.require_line("local")


class Subsampled(nn.Module):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(x[rows], 1.0))


def test_rows_that_the_batch_names_are_the_same_at_each_run():
    """``subsample=`` is given: the density of each of the rows, without N/B."""

    def model(x, rows):
        with pyro.plate("data", 100, subsample=rows):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x, rows):
        with pyro.plate("data", 100, subsample=rows):
            pyro.sample("z", dist.Normal(x / 2, 0.9))

    program, x = Program(model, guide), torch.randn(4, dtype=torch.float64)
    u = torch.randn(3, 4, 1, dtype=torch.float64)
    with scoring(program):
        found = LogJoint(program, (x, torch.tensor([7, 3, 50, 99]))).log_joint(u)
    z = u[..., 0]
    torch.testing.assert_close(
        found, td.Normal(0.0, 1.0).log_prob(z) + td.Normal(z, 0.5).log_prob(x)
    )


def test_a_plate_that_subsamples_itself_is_refused():
    with pytest.raises(ProgramError, match="subsamples its plate"):
        log_joint_of(Subsampled(), real(B))


def test_the_guide_density_under_an_auxiliary_site_is_refused():
    def prior(x):
        return pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    def guide(x):
        infer = {"is_auxiliary": True}
        a = pyro.sample("a", dist.Normal(torch.zeros_like(x), 1.0), infer=infer)
        pyro.sample("z", dist.Normal(a, 1.0))

    u = real(2, B, 1)
    density = log_joint_of(pair_of(prior, guide=guide), real(B))
    exact = td.Normal(0.0, 1.0).log_prob(u[..., 0])
    torch.testing.assert_close(density.log_prior(u), exact, **EXACT)
    with pytest.raises(ProgramError, match="'a': auxiliary"):
        density.log_guide(u)
    assert density.draw_guide(2).shape == (2, B, 1)  # a draw needs no density


class Silent(dist.TorchDistribution):
    """A normal distribution whose class does not say where its values live."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base):
        super().__init__(base.batch_shape, base.event_shape)
        self.base = base

    def expand(self, batch_shape, _instance=None):
        return Silent(self.base.expand(batch_shape))

    def sample(self, sample_shape=()):
        return self.base.sample(sample_shape)

    def log_prob(self, value):
        return self.base.log_prob(value)


def silent(side):
    class Program(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", Silent(dist.Normal(x.new_zeros(2), 1.0).to_event(1)))
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                q = dist.Normal(x[:, None].expand(-1, 2), 1.0).to_event(1)
                pyro.sample("z", Silent(q) if side == "both" else q)

    return Program()


def test_where_a_prior_has_no_support_that_of_the_guide_counts():
    x, u = real(B), real(3, B, 2, seed=2)
    expected = td.Normal(0.0, 1.0).log_prob(u).sum(-1) + td.Normal(u.sum(-1), 1.0).log_prob(x)
    torch.testing.assert_close(log_joint_of(silent("model"), x).log_joint(u), expected, **EXACT)
    with pytest.raises(ProgramError, match="site 'z': Silent does not say on which support"):
        log_joint_of(silent("both"), x)
