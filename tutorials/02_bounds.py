# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bounds: ELBO, IWAE, AIS, and what they are worth
#
# A VAE's $\log p(x)$ is an integral that nobody can do, so every reported likelihood is a *bound*.
# How far below the truth is it? This tutorial starts with a model whose $\log p(x)$ is known
# exactly, measures each bound against it, learns which symptoms tell a good estimate from a bad
# one, and then takes both to models where nothing is exact. The second half is about *training* on
# these bounds: what more particles buy, and what they cost in the gradient.
#
# You should have seen tutorial 01. The full run takes three or four minutes on one CPU core.

# %%
import os
import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import kl_divergence

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
DIGITS = 10 if SMOKE else 100  # test digits of sections 1 to 4
DRAWS = 64 if SMOKE else 4096  # importance weights per digit
TEMPERATURES = (5,) if SMOKE else (10, 100, 500)
LEAPFROG = 1 if SMOKE else 3
PILOT = 16 if SMOKE else 400  # transitions that tune the steps of AIS
EPOCHS = 2 if SMOKE else 100
OWN_EPOCHS = 1 if SMOKE else 15  # of section 8
REPLICATES = 100 if SMOKE else 4000  # gradients where a signal-to-noise ratio is measured
BLUE, RED, GREEN, SAND, GREY = "#332288", "#CC6677", "#117733", "#DDAA33", "#777777"


def stderr(values):
    """Return the standard error of the mean of independent values."""
    return (values.std() / len(values) ** 0.5).item()


# %% [markdown]
# ## 1. A model that can be solved, and a guide that is wrong
#
# In probabilistic PCA everything is Gaussian:
#
# $$z \sim N(0, I), \quad x \mid z \sim N(W z + \mu, \sigma^2 I)
#   \quad\Longrightarrow\quad p(x) = N(\mu,\; W W^\top + \sigma^2 I),$$
#
# and the posterior $p(z \mid x)$ is Gaussian too. `LinearVAE.from_data` sets $W, \mu, \sigma$ to
# maximum likelihood in one eigendecomposition, and its guide to the posterior. Then the ELBO *is*
# $\log p(x)$, whatever $z$ is drawn: nothing to see.

# %%
digits = pv.data.load("digits")  # grey levels: a Gaussian has no use for 0 and 1
train, test = digits.train.double(), digits.test[:DIGITS].double()

linear = pv.models.LinearVAE.from_data(train, latent_dim=8)
with torch.no_grad():
    exact = linear.marginal().log_prob(test)
print(f"exact log p(x)         {exact.mean():.6f} nats per digit")
print(f"ELBO, one draw of z    {pv.elbo(linear, test).mean():.6f}")
assert torch.allclose(pv.elbo(linear, test), exact)

# %% [markdown]
# So we spoil the guide, in three ways that real encoders know.
#
# 1. **Wrong shape.** Turn the latent space: $W \to W R$ with a rotation $R$. The marginal contains
#    only $W W^\top$, so $p(x)$ does not change at all. But the axes of the posterior no longer are
#    the coordinate axes, and a *diagonal* guide, even the best one, cannot follow.
# 2. **Wrong place.** Shrink its means by 15 %, as an encoder does that has not finished training.
# 3. **Too sure.** Take standard deviations 30 % smaller than the best diagonal guide's.


# %%
@torch.no_grad()
def spoil(width, shrink=0.85, turn=True):
    """Turn the latent space, then use the best diagonal guide, shrunk and `width` times as wide."""
    model = pv.models.LinearVAE.from_data(train, latent_dim=8)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 8, generator=generator, dtype=train.dtype)
    if turn:
        model.weight.copy_(model.weight @ torch.linalg.qr(noise).Q)
    model.match_posterior()
    model.recognition.mul_(shrink)
    model.log_diagonal.add_(np.log(width))
    return model


spoiled = spoil(width=0.7)
with torch.no_grad():
    assert torch.allclose(spoiled.marginal().log_prob(test), exact)  # the model is the same

# %% [markdown]
# ## 2. Three bounds against the truth
#
# **ELBO.** Its gap is a divergence, $\log p(x) - \text{ELBO} = \mathrm{KL}(q \,\|\, p(z \mid x))$.
# Here both sides can be computed: the left by Monte Carlo, the right in closed form.


# %%
@torch.no_grad()
def log_weights(program, data, draws):
    """Return log p(x, z) - log q(z | x) at draws from the guide, (draws, N)."""
    wrapped = pv.Program.of(program)
    pieces = [wrapped.terms(part, num_particles=draws).log_weight[0] for part in data.split(10)]
    return torch.cat(pieces, 1)


torch.manual_seed(0)
log_w = log_weights(spoiled, test, DRAWS)
with torch.no_grad():
    q = spoiled.encoder(test).base_dist
    q_joint = dist.MultivariateNormal(q.loc, scale_tril=torch.diag_embed(q.scale))
    kl = kl_divergence(q_joint, spoiled.posterior(test))

gap = (exact - log_w).mean(1)  # one value per draw, averaged over the digits
z_score = (gap.mean() - kl.mean()).item() / stderr(gap)
print(f"log p(x) - ELBO     {gap.mean():.4f} ± {stderr(gap):.4f} nats")
print(f"KL, closed form     {kl.mean():.4f}          z = {z_score:+.2f}")
assert abs(z_score) < 5  # beyond it once in two million honest runs

# %% [markdown]
# **IWAE.** Average $K$ weights $w_k = p(x, z_k) / q(z_k \mid x)$ *inside* the logarithm,
#
# $$\mathcal{L}_K = \mathbb{E}\left[\log \tfrac1K \textstyle\sum_k w_k\right],
#   \qquad \text{ELBO} = \mathcal{L}_1 \le \mathcal{L}_2 \le \dots \le \log p(x) .$$
#
# The mean of the weights is an unbiased estimate of $p(x)$; Jensen's inequality puts its logarithm
# below, the less so the less it varies. One large set of weights, cut into groups of $K$, gives
# every $\mathcal{L}_K$.


# %%
def iwae(log_w, k):
    """Return the bound of K = k per digit, and the standard error of its mean over the digits."""
    groups = log_w.unflatten(0, (-1, k)).logsumexp(1) - np.log(k)
    noise = groups.var(0).mean() / groups.numel() if len(groups) > 1 else groups.new_tensor(0.0)
    return groups.mean(0), noise.sqrt().item()


particles = [k for k in (1, 4, 16, 64, 256, 1024) if k <= DRAWS // 4]
iwae_error, iwae_noise = [], []
for k in particles:
    bound, noise = iwae(log_w, k)
    iwae_error.append((exact - bound).mean().item())
    iwae_noise.append(noise)
    print(f"K = {k:>4}: log p(x) - bound = {iwae_error[-1]:.4f} ± {noise:.4f} nats")
    assert iwae_error[-1] > -5 * noise
steepness = np.polyfit(np.log(particles), np.log(np.maximum(iwae_error, 1e-6)), 1)[0]
print(f"the error falls as K to the power {steepness:.2f}")
assert all(
    after < before + 5 * noise
    for (before, after), noise in zip(pairwise(iwae_error), iwae_noise, strict=False)
)

# %% [markdown]
# **AIS.** Importance sampling fails by asking one jump to land in the posterior. Annealed
# importance sampling walks there, through $T$ distributions
# $p_t(z) \propto p_0(z)^{1-\beta_t}\, p(x, z)^{\beta_t}$, with a few steps of Hamiltonian Monte
# Carlo at each temperature. The product of the small weights is again an unbiased estimate of
# $p(x)$, so its logarithm is again a lower bound. Two places to start: the prior, which needs no
# encoder, or the guide, from where the way is short.

# %%
CHAINS = 4
annealed, annealed_noise = {}, {}
for start in ("prior", "guide"):
    for number in TEMPERATURES:
        torch.manual_seed(number)
        settings = pv.AIS(number, CHAINS, num_leapfrog=LEAPFROG, start=start, pilot=PILOT)
        estimate = pv.ais(spoiled, test, settings).log_prob
        annealed[start, number] = (exact - estimate).mean().item()
        annealed_noise[start, number] = noise = stderr(exact - estimate)
        print(f"{start}, T = {number:>3}: {annealed[start, number]:+9.4f} ± {noise:.4f} nats")
        assert annealed[start, number] > -5 * noise

ratio = (estimate - exact).exp()  # from the guide, T at its largest
z_score = (ratio.mean().item() - 1) / stderr(ratio)
print(f"E[estimate of p(x)] / p(x) = {ratio.mean():.4f} ± {stderr(ratio):.4f}, z = {z_score:+.2f}")
assert SMOKE or abs(z_score) < 5  # a handful of digits has no z-score

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.7), layout="constrained")
truth = exact.mean().item()
curves = [("IWAE, K draws from the guide", particles, iwae_error, iwae_noise, BLUE, "o")]
for start, colour, marker in (("guide", GREEN, "s"), ("prior", RED, "^")):
    cost = [CHAINS * number * (LEAPFROG + 1) for number in TEMPERATURES]
    errors = [annealed[start, number] for number in TEMPERATURES]
    noise = [annealed_noise[start, number] for number in TEMPERATURES]
    curves.append((f"AIS from the {start}", cost, errors, noise, colour, marker))
for label, cost, errors, noise, colour, marker in curves:
    style = {"color": colour, "marker": marker, "ms": 5, "lw": 1.2, "capsize": 2}
    left.errorbar(cost, truth - np.array(errors), noise, **style, label=label)
    shown = [i for i, (e, n) in enumerate(zip(errors, noise, strict=True)) if e > 2 * n]
    if shown:
        right.errorbar(*[np.array(v)[shown] for v in (cost, errors, noise)], **style, label=label)
    for where, e, n in zip(cost, errors, noise, strict=True):
        if e <= 2 * n:  # known only to be small
            limit = max(e, 0) + 2 * n
            right.errorbar(where, limit, 0.4 * limit, uplims=True, color=colour, marker="_", lw=1.2)
left.axhline(truth, color="black", lw=1)
left.annotate(
    "exact log p(x)", (1, truth), (0, 4), textcoords="offset points", va="bottom", fontsize=9
)
left.annotate("ELBO", (1, truth - iwae_error[0]), (2, -13), textcoords="offset points", color=BLUE)
left.set_ylim(truth - 2.2 * iwae_error[0], truth + 0.25 * iwae_error[0])
left.set(xscale="log", ylabel="nats per digit")
right.set(xscale="log", yscale="log", ylabel="log p(x) − bound, nats")
left.set_title("The bounds", loc="left")
right.set_title("Their errors (arrows: at most this)", loc="left")
right.legend(frameon=False, fontsize=8.5, loc="lower left")
for axes in (left, right):
    axes.set_xlabel("evaluations of the decoder, per digit")

# %% [markdown]
# Three lessons. IWAE's error falls far more slowly than $1/K$ here: the guide is too sure of
# itself, so a few rare draws carry most of the weight, and a thousand draws rarely find them. AIS
# from the same guide repairs it, since the chains *move*: its error falls faster, and overtakes.
# And AIS from the prior needs hundreds of temperatures before it even beats the ELBO: with few it
# is by far the worst bound of all. (An evaluation within AIS is one with a gradient, two or three
# times as dear; and the pilot run that tunes the step sizes is not counted. With a good guide plain
# draws are the cheapest: see exercise 1.)
#
# ## 3. Evidence: how to know without the truth
#
# The weights tell on themselves. Two summaries come with every `pv.log_likelihood`:
#
# - **ESS**, the effective sample size $(\sum w)^2 / \sum w^2$, out of $K$;
# - **PSIS $k$**, the shape of a Pareto tail fitted to the largest weights. The variance of the
#   weights is finite if $k < \tfrac12$; estimates are usable up to $k \approx 0.7$.
#
# A Gaussian guide of a Gaussian posterior lets us compute the true $k$: with precisions
# $\Lambda_q$ and $\Lambda_p$ it is $1 - \lambda_{\min}(\Lambda_q^{-1} \Lambda_p)$. We look
# at three widths of the guide; 1 is the best diagonal one (for its means), 0.7 that of above.


# %%
def true_shape(model):
    """Return the Pareto shape of the weights' tail of a diagonal guide."""
    with torch.no_grad():
        scale = model.log_diagonal.exp()
        precision = model.posterior(test[:1]).precision_matrix[0]
        return 1 - torch.linalg.eigvalsh(scale[:, None] * precision * scale).min().item()


widths = {0.7: RED, 1.0: BLUE, 1.3: GREEN}
shapes = {}
print("width  true k   PSIS k (median)   ESS of K   KL(q || p)   error of the estimate")
for width in widths:
    torch.manual_seed(1)
    model = spoil(width)
    likelihood = pv.log_likelihood(model, test, num_particles=DRAWS)
    shapes[width] = likelihood.psis_k
    divergence = (exact - pv.elbo(model, test, num_particles=500)).mean()
    print(
        f"{width:>5}  {true_shape(model):>6.2f}   {likelihood.psis_k.median():>15.2f}"
        f"   {likelihood.ess.median() / DRAWS:>7.1%}   {divergence:>10.3f}"
        f"   {(exact - likelihood.log_prob).abs().mean():>21.4f}"
    )

# %% [markdown]
# Look at the columns ESS and KL together. The guide of width 1 has the best ELBO, but *not* the
# best weights: KL(q || p) likes a guide that is too narrow, importance sampling one that is too
# wide. Training for one is not training for the other.
#
# The strongest evidence is an **upper** bound. On data simulated from the model we own an exact
# draw from the posterior: the $z$ that made $x$. AIS run backwards from it overestimates, AIS run
# forwards underestimates, and the truth is caught between (*bidirectional Monte Carlo*). No exact
# $\log p(x)$ is needed; we have it, and check.

# %%
lower, upper, noise = [], [], []
for number in TEMPERATURES:
    torch.manual_seed(2)
    settings = pv.AIS(number, CHAINS, num_leapfrog=LEAPFROG, start="prior", pilot=PILOT)
    sandwich = pv.bdmc(spoiled, DIGITS, settings)
    with torch.no_grad():
        simulated = spoiled.marginal().log_prob(sandwich.data)
    below, above = sandwich.lower - simulated, sandwich.upper - simulated
    lower.append(below.mean().item())
    upper.append(above.mean().item())
    noise.append((stderr(below), stderr(above)))
    print(
        f"T = {number:>3}: lower {lower[-1]:+9.4f} ± {noise[-1][0]:.4f}, "
        f"upper {upper[-1]:+8.4f} ± {noise[-1][1]:.4f}, gap {sandwich.gap:.4f} nats"
    )
    assert lower[-1] < 5 * noise[-1][0]
    assert upper[-1] > -5 * noise[-1][1]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.5), layout="constrained")
for width, colour in widths.items():
    values = shapes[width][shapes[width].isfinite()]
    left.hist(values.numpy(), bins=np.linspace(-0.3, 1.2, 46), color=colour, alpha=0.7)
    left.axvline(true_shape(spoil(width)), color=colour, lw=1.2, ls="--")
    left.text(
        true_shape(spoil(width)),
        1.0,
        f"width {width}",
        color=colour,
        fontsize=7.5,
        ha="center",
        va="bottom",
        transform=left.get_xaxis_transform(),
    )
left.axvspan(0.7, 1.2, color="0.92", zorder=-1)
left.text(
    1.19,
    0.9,
    "not to be\ntrusted",
    ha="right",
    va="top",
    color=GREY,
    fontsize=9,
    transform=left.get_xaxis_transform(),
)
left.set(xlabel="Pareto shape k of the weights, per digit", ylabel="digits", xlim=(-0.3, 1.2))
left.set_title("PSIS k; the truth is dashed", loc="left", pad=16)
right.axhline(0, color="black", lw=1)
right.fill_between(TEMPERATURES, lower, upper, color=SAND, alpha=0.25, lw=0)
for values, column, colour, label in (
    (upper, 1, RED, "reverse AIS: upper bound"),
    (lower, 0, BLUE, "forward AIS: lower bound"),
):
    errors = [pair[column] for pair in noise]
    right.errorbar(
        TEMPERATURES, values, errors, color=colour, marker="o", ms=5, lw=1.2, label=label
    )
right.set_xscale("log")
right.set_yscale("symlog", linthresh=0.1)
right.set_xticks(TEMPERATURES, [str(number) for number in TEMPERATURES])
right.minorticks_off()
right.set(xlabel="temperatures T", ylabel="bound − exact log p(x), nats")
right.set_title("The sandwich closes (from the prior)", loc="left", pad=16)
right.text(TEMPERATURES[0] * 1.1, 0.25, "reverse AIS: upper bound", color=RED, fontsize=9)
right.text(TEMPERATURES[0] * 1.1, -0.45, "forward AIS: lower bound", color=BLUE, fontsize=9)

# %% [markdown]
# ## 4. The same on a model where nothing is exact
#
# A nonlinear VAE on thresholded digits. Now the exact line is gone, and the order has to do:
#
# $$\text{ELBO} \le \mathcal{L}_{10} \le \mathcal{L}_{1000} \lesssim \text{AIS}
#   \le \log p(x) \le \text{reverse AIS} .$$
#
# (AIS is not above every IWAE by theorem; both are below the truth.) We train three networks at
# once, with $K = 1$, 5 and 50, because section 5 needs them; here we judge the first.

# %%
binary = pv.data.load("digits", binarization="threshold")


def train_vae(k):
    torch.manual_seed(0)
    vae = pv.models.VAE(data_dim=64, latent_dim=8, hidden=(64,))
    objective = pv.ELBO() if k == 1 else pv.IWAE(num_particles=k)
    run = pv.fit(
        vae,
        binary.train,
        valid=binary.valid,
        objective=objective,
        epochs=EPOCHS,
        lr=2e-3,
        device="cpu",
        seed=0,
        progress=False,
    )
    print(f"K = {k:>2}: best epoch {run.best_epoch}, {run.history['seconds'].sum():.0f} s")
    return vae


vaes = {k: train_vae(k) for k in (1, 5, 50)}

# %%
torch.manual_seed(3)
settings = pv.AIS(
    num_temperatures=TEMPERATURES[-1], chains=CHAINS, num_leapfrog=LEAPFROG, start="guide"
)
sandwich = pv.bdmc(vaes[1], DIGITS, settings)
log_w = log_weights(vaes[1], sandwich.data, DRAWS)
ladder = {"ELBO": iwae(log_w, 1)[0]}
for k in particles[1:]:
    ladder[f"IWAE, K = {k}"] = iwae(log_w, k)[0]
ladder["AIS, forward"] = sandwich.lower
ladder["AIS, reverse (upper)"] = sandwich.upper

for name, values in ladder.items():
    away = values - sandwich.lower
    print(f"{name:<21} {values.mean():8.3f}   {away.mean():+.4f} ± {stderr(away):.4f} from AIS")
print(sandwich)
for (name, below), (other, above) in pairwise(ladder.items()):
    assert (above - below).mean() > -5 * stderr(above - below), f"{name} is above {other}"

# %%
figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for row, (name, values) in enumerate(ladder.items()):
    away = values - sandwich.lower
    colour = RED if "upper" in name else GREEN if "AIS" in name else BLUE
    axes.errorbar(away.mean(), row, xerr=stderr(away), fmt="o", color=colour, ms=6, capsize=3)
    axes.hlines(row, away.mean(), 0, color=colour, lw=1, alpha=0.35)
middle = (ladder["AIS, reverse (upper)"] - sandwich.lower).mean()
axes.axvspan(0, middle, color=SAND, alpha=0.4, lw=0)
axes.text(middle, -0.4, "  log p(x)\n  is in here", color="#996600", fontsize=9, va="bottom")
axes.set_yticks(range(len(ladder)), list(ladder))
axes.invert_yaxis()
axes.set(xlabel="nats per digit, relative to forward AIS (bars: standard error of the difference)")
axes.set_xlim(right=max(0.3, 3 * float(middle)))
axes.set_title("A VAE's bounds on the same simulated digits", loc="left")

# %% [markdown]
# ## 5. What $K$ buys in training
#
# The three networks saw the same data for the same number of epochs. The log-likelihood of the test
# digits is estimated in the same way for all, with as many importance samples; differences are
# paired, digit by digit, which makes their standard errors much smaller than those of the columns.

# %%
torch.manual_seed(4)
scores = {k: pv.log_likelihood(vae, binary.test, num_particles=DRAWS) for k, vae in vaes.items()}
print("  K   test ELBO   test log-likelihood   minus that of K = 1   k > 0.7   ESS of K")
for k, vae in vaes.items():
    score = scores[k]
    bound = pv.elbo(vae, binary.test, num_particles=100).mean().item()
    better = score.log_prob - scores[1].log_prob
    print(
        f"{k:>3}   {bound:>9.2f}   {score.mean:>10.2f} ± {score.stderr:.2f}"
        f"      {better.mean():>+8.2f} ± {stderr(better) if k > 1 else 0.0:.2f}"
        f"      {score.untrusted:>6.1%}   {score.ess.median() / DRAWS:>8.1%}"
    )
    assert score.mean > bound

# %% [markdown]
# Read the columns against each other. The log-likelihood is what a model is judged by, and training
# on a tighter bound serves it, at the same number of epochs (though not in the same time). The
# *ELBO* of the same networks falls: with many particles the guide is no longer asked to be one good
# approximation, only to hit the posterior with some of its draws, and the model may grow posteriors
# that no diagonal Gaussian fits. Comparing such models by their ELBO would order them backwards.
#
# ## 6. What $K$ costs: signal and noise of the gradient
#
# More particles make the bound tighter, and a tight bound no longer depends on the guide. So the
# guide's gradient goes to zero as $1/K$, its noise only as $1/\sqrt K$: the **signal-to-noise
# ratio** falls as $1/\sqrt K$ (Rainforth et al., 2018). The model's gradient improves as
# $\sqrt K$. The doubly reparametrised gradient (`pv.DReG`) has the same expectation as IWAE's, and
# turns the guide's slope around. For the ELBO, sticking the landing (`pv.STL`) likewise drops a
# term whose expectation is zero.
#
# We measure all of it on the linear model: one digit, repeated once per replicate, with a *copy of
# the parameters for each row*, so that one backward pass returns thousands of independent
# gradients. The signal-to-noise ratio is
# $\lVert \mathbb{E} g \rVert / \sqrt{\mathrm{tr\,Var}\, g}$.

# %%
# Slightly too wide and off centre: the weights are bounded, and K = 16 is "large" in the theory.
wide = spoil(width=1.15, shrink=0.95, turn=False).float()
x = test[0].float()
with torch.no_grad():
    q = wide.encoder(x).base_dist
W, scale = wide.weight.detach(), wide.log_scale.exp().detach()


def row_gradients(objective, rows):
    """Return `rows` independent gradients by (loc, log scale) of the guide and mu of the model."""
    loc, log_scale, mu = (
        v.detach().expand(rows, -1).clone().requires_grad_()
        for v in (q.loc, q.scale.log(), wide.mean)
    )

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(8), x.new_ones(8)).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T + mu, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    loss = objective.differentiable_loss(model, guide, x.expand(rows, -1))
    by_loc, by_scale, by_mu = torch.autograd.grad(loss, (loc, log_scale, mu))
    return torch.cat([by_loc, by_scale], -1), by_mu


def replicates(objective, k):
    rows = max(20, min(REPLICATES, 32_000 // k))  # bounds the memory
    parts = [row_gradients(objective, rows) for _ in range(-(-REPLICATES // rows))]
    return [torch.cat(column).double() for column in zip(*parts, strict=True)]


torch.manual_seed(5)
counts = [1, 4, 16] if SMOKE else [1, 4, 16, 64, 256]
makers = {"ELBO": pv.ELBO, "STL": pv.STL, "IWAE": pv.IWAE, "DReG": pv.DReG}
gradients = {
    (name, k): replicates(make(num_particles=k), k) for name, make in makers.items() for k in counts
}

# %% [markdown]
# Equal expectations first: STL against ELBO, DReG against IWAE, in each of the 16 coordinates of
# the guide's gradient and for each $K$. Then the ratios. A ratio below $1/\sqrt{\text{replicates}}$
# cannot be seen in an estimator's own mean, so we take the signal of a pair from its quieter half.

# %%
largest = 0.0
for noisy, quiet in (("ELBO", "STL"), ("IWAE", "DReG")):
    for k in counts:
        a, b = gradients[noisy, k][0], gradients[quiet, k][0]
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        largest = max(largest, ((a.mean(0) - b.mean(0)) / error).abs().max().item())
print(f"largest |z| of {2 * len(counts) * 16} comparisons: {largest:.2f}")
assert largest < 5


def signal_to_noise(sample, reference):
    """Return the ratio, the signal taken from a reference of the same mean, noise of it removed."""
    power = reference.mean(0).square().sum() - reference.var(0).sum() / len(reference)
    return (power.clamp(min=0) / sample.var(0).sum()).sqrt().item()


quieter = {"ELBO": "STL", "STL": "STL", "IWAE": "DReG", "DReG": "DReG"}
guide_snr = {
    name: [signal_to_noise(gradients[name, k][0], gradients[quieter[name], k][0]) for k in counts]
    for name in makers
}
model_snr = {
    name: [signal_to_noise(gradients[name, k][1], gradients[name, k][1]) for k in counts]
    for name in ("ELBO", "IWAE")
}


def slope(ratios):
    return np.polyfit(np.log(counts[1:]), np.log(ratios[1:]), 1)[0]


figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True, layout="constrained")
looks = {"ELBO": (GREY, "o"), "STL": (SAND, "D"), "IWAE": (RED, "s"), "DReG": (BLUE, "^")}
for axes, measured in ((left, guide_snr), (right, model_snr)):
    for name, ratios in measured.items():
        colour, marker = looks[name]
        label = f"{name}: slope {slope(ratios):+.2f}"
        axes.loglog(counts, ratios, color=colour, marker=marker, ms=5, lw=1.3, label=label)
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9)
    axes.set(xlabel="particles K")
left.set(ylabel="signal-to-noise ratio")
left.set_title("Gradient of the guide", loc="left")
right.set_title("Gradient of the model", loc="left")
print("slopes, guide:", {name: round(slope(r), 2) for name, r in guide_snr.items()})
print("slopes, model:", {name: round(slope(r), 2) for name, r in model_snr.items()})
if not SMOKE:
    assert abs(slope(guide_snr["IWAE"]) + 0.5) < 0.25
    assert abs(slope(guide_snr["DReG"]) - 0.5) < 0.25
    assert abs(slope(model_snr["IWAE"]) - 0.5) < 0.25

# %% [markdown]
# ## 7. Discrete latents
#
# A coin cannot be reparametrised. What is left is the score function, and the art of subtracting
# something from it. A sigmoid belief net with eight binary latents, as a Pyro program:

# %%
BITS = 8
torch.manual_seed(6)
encoder, decoder = nn.Linear(64, BITS), nn.Linear(BITS, 64)


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=x.new_zeros(BITS)).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))


belief_net = pv.Program(model, guide)
run = pv.fit(
    belief_net,
    binary.train,
    valid=binary.valid,
    objective=pv.RLOO(num_particles=4),
    epochs=EPOCHS // 5 + 1,
    lr=1e-2,
    device="cpu",
    seed=0,
    progress=False,
)
print(f"validation ELBO: {run.history['valid_elbo'].max():.2f}")

# %% [markdown]
# Eight bits have 256 states, so every expectation is a sum and we know the exact gradients: that of
# the ELBO, and that of $\mathcal{L}_2$, which VIMCO estimates. All estimators get two evaluations
# of the model per gradient, and must agree with the exact one: we project each on it, and compare.

# %%
ROWS = 10
x = binary.test[:ROWS]
states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * BITS)  # (256, 8)
with torch.no_grad():
    prior = dist.Bernoulli(logits=torch.zeros(BITS)).to_event(1)
    log_joint = prior.log_prob(states)[:, None] + dist.Bernoulli(
        logits=decoder(states)[:, None]
    ).to_event(1).log_prob(x)  # (256, ROWS)
    logits = encoder(x)

leaf = logits.clone().requires_grad_()
log_q = dist.Bernoulli(logits=leaf).to_event(1).log_prob(states[:, None])
log_w = log_joint - log_q
pairs = torch.logaddexp(log_w[:, None], log_w[None]) - np.log(2)
values = {
    "ELBO": (log_q.exp() * log_w).sum(),
    "IWAE-2": ((log_q[:, None] + log_q[None]).exp() * pairs).sum(),
}
exact_gradient = {
    name: -torch.autograd.grad(v, leaf, retain_graph=True)[0] for name, v in values.items()
}


def bit_gradients(objective, repeats):
    """Return gradients by the guide's logits, (repeats, ROWS, BITS)."""
    leaf = logits.repeat(repeats, 1).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=leaf).to_event(1))

    loss = objective.differentiable_loss(model, guide, x.repeat(repeats, 1))
    return torch.autograd.grad(loss, leaf)[0].unflatten(0, (repeats, ROWS))


# %% [markdown]
# NVIL's baseline is a small network with parameters of its own, which must learn to predict the
# ELBO of a datum first. NVIL also divides its signal by a running standard deviation; that changes
# the step size and not the direction, and we undo it for the comparison.

# %%
torch.manual_seed(7)
baseline = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
nvil = pv.NVIL(baseline, num_particles=2)
optimizer = torch.optim.Adam(nvil.parameters(), lr=1e-2)
for _ in range(5 if SMOKE else 400):
    batch = binary.train[torch.randint(len(binary.train), (128,))]
    optimizer.zero_grad()
    (nvil.differentiable_loss(model, guide, batch) / len(batch)).backward()
    optimizer.step()
nvil.eval()

estimators = {
    "score\nfunction": (pv.ELBO(num_particles=2), "ELBO", 1.0),
    "NVIL": (nvil, "ELBO", nvil.variance.sqrt().clamp(min=1).item()),
    "RLOO": (pv.RLOO(num_particles=2), "ELBO", 1.0),
    "VIMCO": (pv.VIMCO(num_particles=2), "IWAE-2", 1.0),
    "DisARM": (pv.DisARM(), "ELBO", 1.0),
}
noise_to_signal = {}
for name, (objective, target, factor) in estimators.items():
    sample = factor * bit_gradients(objective, REPLICATES)
    truth = exact_gradient[target]
    noise_to_signal[name] = (sample.var(0).sum() / truth.square().sum()).item()
    projected = (sample * truth).sum((1, 2)) / truth.square().sum()  # mean 1
    z_score = (projected.mean().item() - 1) / stderr(projected)
    label = name.replace("\n", " ")
    print(
        f"{label:<15} variance / |gradient|² = {noise_to_signal[name]:>9.1f}   z = {z_score:+.2f}"
    )
    assert abs(z_score) < 5
pyro.clear_param_store()  # pyro.module has put the networks there

# %%
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
colours = [RED, SAND, BLUE, GREEN, "#88CCEE"]
bars = axes.bar(list(noise_to_signal), list(noise_to_signal.values()), color=colours, width=0.62)
axes.bar_label(bars, [f"{v:,.0f}" for v in noise_to_signal.values()], padding=2, fontsize=9)
axes.set(yscale="log", ylabel="variance / |exact gradient|²")
axes.margins(y=0.15)
axes.set_title("Noise of one gradient of the guide, two model evaluations each", loc="left")

norms = {name: g.square().sum().item() for name, g in exact_gradient.items()}
print(f"|gradient|², IWAE-2 over ELBO: {norms['IWAE-2'] / norms['ELBO']:.2f}")

# %% [markdown]
# The raw score function multiplies its direction by the whole ELBO, tens of nats of it; all the
# others first subtract what could have been expected. NVIL learns that from the datum, RLOO and
# VIMCO read it off the second draw, and DisARM chooses the second draw as the opposite of the
# first. VIMCO's bar is measured against the gradient of *its* bound, which is smaller (the last
# line above): a tighter bound has less to say about the guide, as in section 6.
#
# ## 8. An objective of your own
#
# `pv.fit` asks an objective for its *updates*: what to minimise, and over which parameters. The
# numbers come from one place, `joint.terms(S, K)`: log densities by site, for S draws of the global
# latents, K draws of the local ones and B data. Sections 5 and 6 left us with a dilemma: a large
# $K$ serves the model and starves the guide. Rainforth et al. (2018) answer it with two bounds.
# The guide gets MIWAE, the mean of $M$ bounds with $K / M$ draws each:
#
# $$\mathcal{L}_{M, K/M} = \frac{1}{M} \sum_{m=1}^M \log \frac{M}{K} \sum_{k \in m}
#   \frac{p(x, z_k)}{q(z_k \mid x)}$$
#
# A loss that is a function of the terms is a `pv.TermsObjective` with one method.


# %%
class MIWAE(pv.TermsObjective):
    """The mean of M importance-weighted bounds, with K / M draws each."""

    def __init__(self, num_groups, num_particles):
        super().__init__(num_particles)
        self.num_groups = num_groups

    def loss_of(self, terms):
        log_w = terms.log_weight.unflatten(1, (self.num_groups, -1))  # (S, M, K / M, B)
        return -(log_w.logsumexp(2) - np.log(log_w.shape[2])).mean()  # nats per datum


# %% [markdown]
# The model keeps $\mathcal{L}_K$. Two losses over two sets of parameters are PIWAE; an objective
# is any object with a method `updates`.


# %%
class PIWAE:
    """The model by the bound of all K draws, the guide by that of M groups."""

    def __init__(self, num_groups, num_particles):
        self.model_bound = pv.IWAE(num_particles)
        self.guide_bound = MIWAE(num_groups, num_particles)

    def updates(self, program):
        encoder = ("recognition", "log_diagonal")  # the parameters of LinearVAE's guide
        named = dict(program.named_parameters())
        guide = tuple(p for name, p in named.items() if name.endswith(encoder))
        model = tuple(p for name, p in named.items() if not name.endswith(encoder))
        return [
            pv.Update(self.model_bound.per_datum, model),
            pv.Update(self.guide_bound.per_datum, guide, name="guide"),
        ]


# %% [markdown]
# Both are used like any other objective. All start from a guide with 30 % of the right means; here
# the exact $\log p(x)$ judges the models.

# %%
own = {"IWAE": pv.IWAE(64), "MIWAE": MIWAE(8, 64), "PIWAE": PIWAE(8, 64)}
print("objective   exact log p(x) of the model   ELBO of its guide   ESS of 1000")
for name, objective in own.items():
    torch.manual_seed(8)
    model_of = spoil(width=0.7, shrink=0.3)
    pv.fit(
        model_of,
        train,
        objective=objective,
        epochs=OWN_EPOCHS,
        batch_size=100,
        lr=3e-3,
        progress=False,
    )
    score = pv.log_likelihood(model_of, test, num_particles=1000)
    bound = pv.elbo(model_of, test, num_particles=100).mean().item()
    truth = model_of.marginal().log_prob(test).mean().item()
    print(f"{name:<11} {truth:>28.2f} {bound:>19.2f} {score.ess.median():>13.0f}")
    assert bound < truth

# %% [markdown]
# PIWAE ends with the best model of the three, and with a better guide than IWAE, whose gradients
# are as noisy as section 6 says.
#
# ## 9. Exercises
#
# 1. Set `width=1.3` in section 1. Which is now the cheapest way to an error of 0.05 nats? With
#    `shrink=1.0` instead, does the true $k$ change? Explain the answer with its formula.
# 2. For finite variance, $\log p(x) - \mathcal{L}_K \approx \mathrm{Var}(w / p(x)) / 2K$. Add this
#    line to the right panel of the first figure, for `spoil(1.3)`. What replaces it at width 0.7?
# 3. Run the sandwich of section 3 with `start="guide"`. How many temperatures does it save?
# 4. Repeat the sandwich of section 4 for the network trained with $K = 50$. Is its guide a worse
#    place to start from?
# 5. In section 6, use `width=1.0, shrink=1.0`: the exact posterior. What happens to the noise of
#    STL and DReG, and what to that of ELBO and IWAE? Then use the guide of section 1. Why are the
#    slopes off now?
# 6. Train the belief net with each of the five objectives. Does the order of the bars predict the
#    order of the validation ELBOs?
# 7. CIWAE is $\beta\, \mathrm{ELBO} + (1 - \beta)\, \mathcal{L}_K$. Write it: one method.
#
# To read on: Burda et al., *Importance weighted autoencoders* (2015), arXiv:1509.00519; Wu et al.,
# *On the quantitative analysis of decoder-based generative models* (2017), arXiv:1611.04273; Grosse
# et al., *Sandwiching the marginal likelihood* (2015), arXiv:1511.02543; Vehtari et al., *Pareto
# smoothed importance sampling* (2015), arXiv:1507.02646; Rainforth et al., *Tighter variational
# bounds are not necessarily better* (2018), arXiv:1802.04537; Tucker et al., *Doubly
# reparameterized gradient estimators* (2019), arXiv:1810.04152; Roeder et al., *Sticking the
# landing* (2017), arXiv:1703.09194; Dong et al., *DisARM* (2020), arXiv:2006.10680.
