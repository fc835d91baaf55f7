"""Objectives with a critic against what is known exactly, and against the same step by hand."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import pyro_vae as pv
from pyro_vae.conditionals import IsotropicGaussian, NoiseFed, Point, SquaredError
from pyro_vae.inference.objectives.aggregated_posterior import discrepancy
from pyro_vae.program.handlers import validation

X = torch.rand(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def at(update, program, data, seed=7):
    """Return an update's loss on a batch at given noise."""
    torch.manual_seed(seed)
    with program.running(), validation(False):
        return update.loss(program.joint(data))


def slopes(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)


def noise_fed():
    torch.manual_seed(0)
    net = functools.partial(NoiseFed, noise_dim=3, features=4, hidden=(5,))
    return pv.models.VAE(6, 2, (8,), posterior=net, observation=IsotropicGaussian).double()


def read(source, data=X):
    program = pv.Program.of(source)
    program.read(data)
    return program


# -- the optimal critic --------------------------------------------------------------------------


class Even(dist.Normal):
    """A Gaussian whose draws are its quantiles in even steps: expectations without noise."""

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(sample_shape)
        steps = (torch.arange(shape.numel(), dtype=self.loc.dtype) + 0.5) / shape.numel()
        return self.icdf(steps.reshape(shape))

    sample = rsample


class Pair(nn.Module):
    """q = N(1, 1/4) and p = N(0, 1), whatever the data."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.ones((), dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Even(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Even(self.mean.expand(len(x)), 0.5))


class Quadratic(nn.Module):
    """A critic of one number, among which the log ratio of two Gaussians is."""

    def __init__(self, inputs=1):
        super().__init__()
        self.linear = nn.Linear(inputs * (inputs + 1) // 2 + inputs, 1).double()
        nn.init.zeros_(self.linear.weight)

    def forward(self, z, x=None):
        seen = z if x is None else torch.cat([z, x.reshape(len(z), -1)], -1)
        rows, columns = torch.triu_indices(seen.shape[1], seen.shape[1])
        return self.linear(torch.cat([seen, seen[:, rows] * seen[:, columns]], -1)).squeeze(-1)


@pytest.mark.parametrize("make", [lambda c: pv.AVB(c, contrast="prior"), pv.AAE])
def test_a_critic_reaches_the_log_ratio(make):
    """Its loss at the optimum is .938327, and its mean under q the KL, .818147."""
    critic = Quadratic(2) if make is not pv.AAE else Quadratic()
    x = torch.zeros(4000, dtype=torch.float64)
    program = read(Pair(), x)
    (update, _) = make(critic).updates(program)
    optimizer = torch.optim.LBFGS(critic.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def evaluate():
        optimizer.zero_grad()
        loss = at(update, program, x)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(evaluate)
    assert evaluate().item() == pytest.approx(0.938327, abs=2e-4)
    z = Even(torch.ones(4000, dtype=torch.float64), 0.5).sample()[:, None]
    told = critic(z, None if make is pv.AAE else x)
    assert told.mean().item() == pytest.approx(0.818147, abs=5e-3)


# -- the optima of the objectives ----------------------------------------------------------------


class Bent(nn.Module):
    """x | z ~ N(z, 1), z ~ N(0, 1), and z = a x + b e, whose density the guide does not tell."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.1, 1.2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            noise = dist.Normal(torch.zeros_like(x), 1.0).to_event(1)
            pushed = pv.distributions.Implicit(noise, lambda e: self.a * x + self.b * e, (1,))
            pyro.sample("z", pushed)


@pytest.mark.parametrize("contrast", ["adaptive", "prior"])
def test_avb_finds_the_posterior_of_an_implicit_guide(contrast):
    """a = 1/2, b² = 1/2, and the loss there is minus the log-likelihood.

    Four draws tell the moments of the adaptive contrast badly: no b may come of that.
    """
    torch.manual_seed(1)
    x = 2**0.5 * torch.randn(2000, 1, dtype=torch.float64)
    guide, critic = Bent(), Quadratic(2)
    objective = pv.AVB(critic, contrast=contrast, moments=4, critic_steps=6)
    rate = {"optimizer": functools.partial(torch.optim.Adam, lr=0.03, betas=(0.5, 0.99))}
    schedule = pv.schedules.cosine(1.0, 0.02)
    run = pv.fit(
        guide, x, objective=objective, epochs=15, batch_size=200, lr_schedule=schedule,
        progress=False, compile=False, **rate,
    )  # fmt: skip
    assert guide.a.item() == pytest.approx(0.5, abs=0.03)
    assert guide.b.item() ** 2 == pytest.approx(0.5, abs=0.05)
    exact = -dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert run.history["loss"][-1] == pytest.approx(exact, abs=0.06)


class Telling(Bent):
    """The same, and its guide tells its density."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.a * x, self.b.expand(x.shape)).to_event(1))


class Density(nn.Module):
    """The critic of `Bent` that knows log q, or log q less the log density of the prior."""

    def __init__(self, contrast):
        super().__init__()
        self.a, self.b, self.level = (
            nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.1, 1.2, 0.0)
        )
        self.less = float(contrast == "prior")

    def forward(self, z, x):
        told = dist.Normal(self.a * x, self.b).log_prob(z) + self.level
        return (told - self.less * dist.Normal(0.0, 1.0).log_prob(z)).squeeze(-1)


@pytest.mark.parametrize(("contrast", "moments"), [("adaptive", 4), ("adaptive", 16), ("prior", 2)])
def test_a_critic_that_knows_the_density_stays_and_teaches_the_elbo(contrast, moments):
    """Its own slopes have mean 0 (|z| < 5); those of the guide are the path-derivative ELBO's."""
    torch.manual_seed(3)
    x = torch.randn(3000, 1, dtype=torch.float64)
    critic, guide, telling = Density(contrast), Bent(), Telling()
    objective = pv.AVB(critic, contrast=contrast, moments=moments)
    told, update = objective.updates(read(guide, x))
    ours = at(update, read(guide, x), x)
    theirs = at(pv.STL().updates(read(telling, x))[0], read(telling, x), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, its in zip(slopes(ours, guide), slopes(theirs, telling), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)
    program = read(guide, x)
    drawn = [slopes(at(told, program, x, seed), critic) for seed in range(40)]
    found = torch.stack([torch.stack(each) for each in drawn])
    assert (found.mean(0).abs() < 5 * found.std(0) / len(found) ** 0.5).all()


LAMBDA = torch.tensor([4.0, 2.0, 0.2, 0.1], dtype=torch.float64)


@functools.cache
def spread():
    """Return 1024 rows whose covariance has the eigenvalues above, exactly."""
    torch.manual_seed(2)
    x = torch.randn(1024, 4, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0))[0] * (LAMBDA * 1023).sqrt()
    return x @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]


@pytest.mark.parametrize("kind", ["AAE", "WAE"])
def test_a_linear_autoencoder_reaches_whitened_principal_components(kind):
    """Reconstruction of the small eigenvalues, codes of unit covariance, a critic at a loss."""
    torch.manual_seed(0)
    x = spread()
    linear = pv.models.VAE(4, 2, (), encoder=Point(nn.Linear(4, 2)), observation=SquaredError)
    rate = functools.partial(torch.optim.Adam, lr=5e-3, betas=(0.5, 0.9))
    make = {
        "AAE": lambda: pv.AAE(pv.nn.Critic(2, hidden=(16, 16)), critic_optimizer=rate),
        "WAE": lambda: pv.WAE(10.0),
    }
    run = pv.fit(
        linear.double(), x, objective=make[kind](), epochs=90, batch_size=128, lr=0.02,
        lr_schedule=pv.schedules.cosine(1.0, 0.005), progress=False, compile="trace",
    )  # fmt: skip
    assert run.compiled == "graph"
    again = (x - pv.reconstruct(linear, x)).square().sum(-1).mean().item()
    assert again == pytest.approx(LAMBDA[2:].sum().item(), rel=0.01)
    apart = torch.cov(pv.encode(linear, x).T) - torch.eye(2, dtype=torch.float64)
    assert apart.abs().max().item() < 0.05
    if kind == "AAE":
        assert run.history["critic"][-1] == pytest.approx(math.log(4), abs=0.02)


def test_the_discrepancy_has_no_bias():
    """|z| < 5 over 300 pairs of equal sets; and it tells a shift by one standard deviation."""
    torch.manual_seed(4)
    sets = torch.randn(300, 2, 12, 2, dtype=torch.float64)
    found = torch.stack([discrepancy(a, b) for a, b in sets])
    assert found.mean().abs() < 5 * found.std() / 300**0.5
    few = sets[:20].transpose(0, 1).flatten(1, 2)
    assert discrepancy(few[0] + 1, few[1]) > 0.1


# -- the same steps by hand ----------------------------------------------------------------------


def normal(value, loc, scale):
    return dist.Normal(loc, scale).log_prob(value).sum(-1)


@pytest.mark.parametrize("contrast", ["adaptive", "prior"])
def test_the_step_of_avb_is_the_one_by_hand(contrast):
    """Both losses and all gradients at equal noise: signs, what is constant, which critic."""
    vae, critic = noise_fed(), pv.nn.Critic(2, 6, (7,)).double()
    program = read(vae)
    first, second = pv.AVB(critic, contrast=contrast, moments=4).updates(program)

    def moments():
        drawn = vae.encoder(X).rsample((4,)).detach()
        return drawn.mean(0), drawn.std(0)

    def by_hand(told, seed=7):
        torch.manual_seed(seed)
        z = vae.encoder(X).rsample()
        if told == "loss":
            log_p = vae.decoder(z).log_prob(X)
            log_p = log_p + (normal(z, 0.0, 1.0) if contrast == "adaptive" else 0.0)
            return -(log_p - critic(z, X)).mean()
        z = z.detach()
        if contrast == "prior":
            other = torch.randn_like(z)
            return softplus(-critic(z, X)).mean() + softplus(critic(other, X)).mean()
        mean, scale = moments()
        other = mean + scale * torch.randn_like(z)
        ours, theirs = (critic(c, X) - normal(c, mean, scale) for c in (z, other))
        return softplus(-ours).mean() + softplus(theirs).mean()

    for _ in range(2):  # the second time the critic is another one
        for update, name, trained in ((first, "critic", critic), (second, "loss", vae)):
            ours, theirs = at(update, program, X), by_hand(name)
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
            pairs = zip(slopes(ours, trained), slopes(theirs, trained), strict=True)
            for mine, its in pairs:
                torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)
        assert all(g is None for g in slopes(at(first, program, X), vae)), "the guide is a constant"
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.add_(0.3)


def test_the_step_of_the_adversarial_autoencoder_is_the_one_by_hand():
    torch.manual_seed(0)
    vae = pv.models.VAE(6, 2, (8,), observation=IsotropicGaussian).double()
    critic, program = pv.nn.Critic(2, hidden=(7,)).double(), read(vae)
    first, second = pv.AAE(critic, weight=3.0).updates(program)
    torch.manual_seed(7)
    z = vae.encoder(X).rsample().detach()
    theirs = softplus(-critic(z)).mean() + softplus(critic(torch.randn_like(z))).mean()
    pairs = [(at(first, program, X), theirs, critic)]
    assert all(g is None for g in slopes(pairs[0][0], vae))
    torch.manual_seed(7)
    z = vae.encoder(X).rsample()
    theirs = 3 * softplus(critic(z)).mean() - vae.decoder(z).log_prob(X).mean()
    pairs.append((at(second, program, X), theirs, vae))
    for ours, by_hand, trained in pairs:
        torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-10)
        for mine, its in zip(slopes(ours, trained), slopes(by_hand, trained), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)


# -- VAE/GAN -------------------------------------------------------------------------------------


def images():
    torch.manual_seed(0)
    vae = pv.models.VAE(
        (1, 8, 8),
        2,
        (4,),
        network="conv",
        observation=functools.partial(IsotropicGaussian, scale=1.0),
    ).double()
    x = torch.rand(10, 1, 8, 8, dtype=torch.float64)
    return vae, read(vae, x), x


def test_the_critic_of_vae_gan_tells_data_from_reconstructions_and_new_images():
    """Its loss and gradients by hand, and what the balance compares: each of the three counts."""
    vae, program, x = images()
    objective = pv.VAEGAN(pv.nn.ConvCritic((1, 8, 8), (4, 4)))
    update, critic = objective.updates(program)[0], objective.critic
    loss = at(update, program, x)
    torch.manual_seed(7)
    made = vae.decoder(vae.encoder(x).sample()).mean.detach()
    drawn = vae.decoder(torch.randn(len(x), 2, dtype=x.dtype)).mean.detach()
    real = softplus(-critic(x)).mean()
    false = (softplus(critic(made)).mean() + softplus(critic(drawn)).mean()) / 2
    torch.testing.assert_close(loss, real + false, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(objective.costs.to(x), torch.stack([real, false]).detach())
    grads = [torch.autograd.grad(each, [*critic.parameters()]) for each in (loss, real + false)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_the_gradients_of_vae_gan_go_where_they_should():
    vae, program, x = images()
    critic = pv.nn.ConvCritic((1, 8, 8), (4, 4))
    told, encoder, decoder = pv.VAEGAN(critic, gamma=0.3).updates(program)
    assert {id(p) for p in encoder.parameters} == {id(p) for p in vae.encoder.parameters()}
    assert {id(p) for p in decoder.parameters} == {id(p) for p in vae.decoder.parameters()}
    assert all(g is None for g in slopes(at(told, program, x), vae))
    assert all(g is None for g in slopes(at(encoder, program, x), critic.head))
    assert all(g is None for g in slopes(at(decoder, program, x), vae.encoder))
    # The loss of the critic is the game alone: equal images leave it at log 4.
    with torch.no_grad():
        for parameter in critic.head.parameters():
            parameter.zero_()
    assert at(told, program, x).item() == pytest.approx(math.log(4))


def test_with_the_identity_for_features_vae_gan_is_the_gaussian_vae():
    vae, program, x = images()
    critic = pv.nn.ConvCritic((1, 8, 8), (4, 4))
    objective = pv.VAEGAN(critic, features=nn.Identity(), gamma=1.0)
    _, encoder, decoder = objective.updates(program)
    bound = at(pv.ELBO().updates(program)[0], program, x)
    for update, part in ((encoder, vae.encoder), (decoder, vae.decoder)):
        pairs = zip(
            slopes(at(update, program, x), part),
            torch.autograd.grad(bound, list(part.parameters()), retain_graph=True),
            strict=True,
        )
        for mine, its in pairs:
            torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


class Contrasts(pv.nn.ConvCritic):
    """A critic that does more than judge the features of what it is given."""

    def forward(self, x):
        return super().forward(x.square()) + 0.3


@pytest.mark.parametrize(("kind", "seen"), [(pv.nn.ConvCritic, 2), (Contrasts, 3)])
def test_the_loss_of_the_decoder_is_the_one_by_hand(kind, seen):
    vae, program, x = images()
    critic, calls = kind((1, 8, 8), (4, 4)), []
    critic.convolutions.register_forward_hook(lambda *_: calls.append(1))
    ours = at(pv.VAEGAN(critic, gamma=0.3).updates(program)[2], program, x)
    assert (
        len(calls) == seen
    )  # features are made once, where it is known what else is asked of them
    torch.manual_seed(7)
    made = vae.decoder(vae.encoder(x).sample()).mean
    drawn = vae.decoder(torch.randn(10, 2, dtype=torch.float64)).mean
    apart = (critic.see(x) - critic.see(made)).square().sum() / 20
    game = (softplus(-critic(made)).mean() + softplus(-critic(drawn)).mean()) / 2
    theirs = 0.3 * apart + 0.7 * game
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for mine, its in zip(slopes(ours, vae.decoder), slopes(theirs, vae.decoder), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("costs", "due"),
    [
        ((0.7, 0.7), (True, True)),
        ((0.2, 0.7), (False, True)),  # the critic wins
        ((0.7, 1.2), (True, False)),  # it loses
        ((0.2, 1.2), (True, True)),  # neither would move
    ],
)
def test_the_balance_holds_back_the_one_that_is_ahead(costs, due):
    _, program, _ = images()
    objective = pv.VAEGAN(pv.nn.ConvCritic((1, 8, 8), (4, 4)))
    updates = objective.updates(program)
    objective.costs.copy_(torch.tensor(costs))
    assert (updates[0].due(), updates[2].due()) == due


# -- the latent autoencoder ----------------------------------------------------------------------


def test_the_loss_of_the_latent_autoencoder_is_the_one_by_hand():
    vae, program, x = images()
    critic = pv.nn.ConvCritic((1, 8, 8), (4, 4), patches=True).double()
    features = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    objective = pv.LatentAutoencoder(critic, features=features, kl_weight=0.2, feature_weight=2.0)
    told, update = objective.updates(program)
    assert told.due()
    torch.manual_seed(7)
    q = vae.encoder(x)
    z = q.rsample()
    made = vae.decoder(z).mean
    loss = -vae.decoder(z).log_prob(x).mean()
    loss = loss + 2 * (features(x) - features(made)).square().sum() / 10
    game = -critic(made).mean()
    one, two = (torch.autograd.grad(v, z, retain_graph=True)[0].norm() for v in (loss, game))
    kl = (q.log_prob(z) - normal(z, 0.0, 1.0)).mean()
    theirs = loss + 0.2 * kl + 0.5 * (one / (two + 1e-4)).detach() * game
    ours = at(update, program, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for mine, its in zip(slopes(ours, vae), slopes(theirs, vae), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-11)
    real, fake = critic(x), critic(made)
    hinge = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
    assert at(told, program, x).item() == pytest.approx(hinge.item(), rel=1e-12)


def test_the_critic_of_the_latent_autoencoder_joins_in_late():
    vae, _, x = images()
    critic = pv.nn.ConvCritic((1, 8, 8), (4, 4), patches=True)
    before = [p.detach().clone().double() for p in critic.parameters()]
    objective = pv.LatentAutoencoder(critic, start=4)
    run = pv.fit(vae, x, objective=objective, epochs=2, batch_size=5, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(critic.parameters(), before, strict=True))
    assert math.isnan(run.history["critic"][-1])
    run = pv.fit(vae, x, objective=objective, epochs=1, batch_size=5, progress=False)
    assert run.history["critic"][-1] > 0
    assert not torch.equal(next(critic.parameters()), before[0])
