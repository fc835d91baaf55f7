"""Models with discrete latents that the guide leaves out, and their sums written by hand."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae.program.densities.joint import trace_of

torch.manual_seed(31)
X = torch.randn(7, dtype=torch.float64) * 1.5
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def real(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def probabilities(joint, values=None, num_particles=1):
    """Return p(y | x, z) of what is summed out, at given latents ``(K, B)`` or at a draw."""
    if values is None:
        return joint.posteriors_at(joint.guide_trace(num_particles), num_particles)
    latents = trace_of({name: joint.placed(value) for name, value in values.items()})
    return joint.posteriors_at(latents, num_particles)


class Mixture(nn.Module):
    """A mixture of Gaussians: nothing is left to the guide."""

    def __init__(self, marked=False):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([0.1, -0.5, 0.3], dtype=torch.float64))
        self.infer = {"enumerate": "parallel"} if marked else {}

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer=self.infer)
            pyro.sample("x", dist.Normal(self.centres[c], 0.7), obs=x)

    def guide(self, x):
        pass

    def log_joint(self, x):
        log_p = self.logits.log_softmax(-1)[:, None]
        return log_p + dist.Normal(self.centres[:, None], 0.7).log_prob(x)


class Clustered(nn.Module):
    """A latent whose prior is a mixture, and data that know both: the guide draws the latent."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])))
            z = pyro.sample("z", dist.Normal(self.centres[c], 1.0))
            pyro.sample("x", dist.Normal(z + self.shift[c], 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + self.bias, 0.9))

    def exact(self, x):
        scale = (1 + 0.8**2) ** 0.5
        log_p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()[:, None]
        return log_p + dist.Normal((self.centres + self.shift)[:, None], scale).log_prob(x)


class Tones(nn.Module):
    """A hidden Markov model over T steps of tones: the data's plate at -2, the tones' at -1."""

    def __init__(self, states=3, tones=4, own=False):
        super().__init__()
        self.start = nn.Parameter(real(states))
        self.move = nn.Parameter(real(states, states))
        self.emit = nn.Parameter(real(states, tones))
        self.own = own  # whether each sequence has a latent of its own

    def model(self, x, lengths):
        rows, steps, tones = x.shape
        with pyro.plate("data", rows, dim=-2):
            shift = 0.0
            if self.own:
                shift = pyro.sample("shift", dist.Normal(x.new_zeros(rows, 1), 0.5))
            logits, states = self.start.expand(rows, 1, -1), pyro.plate("tones", tones, dim=-1)
            for t in pyro.markov(range(steps)):
                with pyro.poutine.mask(mask=(t < lengths)[:, None]):
                    h = pyro.sample(f"h_{t}", dist.Categorical(logits=logits))
                    with states as tone:
                        on = self.emit[h, tone] + shift
                        pyro.sample(f"x_{t}", dist.Bernoulli(logits=on), obs=x[:, t])
                logits = self.move[h]

    def guide(self, x, lengths):
        if self.own:
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("shift", dist.Normal(0.1 * x.mean((1, 2))[:, None], 0.4))

    def exact(self, x, lengths, shift):
        """The forward algorithm, shift ``(K, B)``, by the sum over paths of one datum at a time."""
        out = []
        for n, length in enumerate(lengths.tolist()):
            alpha = self.start.log_softmax(-1).expand(len(shift), -1)
            for t in range(length):
                if t:
                    move = self.move.log_softmax(-1)
                    alpha = (alpha[:, :, None] + move).logsumexp(1)
                on = self.emit + shift[:, n, None, None]  # (K, states, tones)
                alpha = alpha + dist.Bernoulli(logits=on).log_prob(x[n, t]).sum(-1)
            out.append(alpha.logsumexp(-1))
        return torch.stack(out, -1)


def music(rows=4, steps=5, tones=4):
    return (torch.rand(rows, steps, tones) < 0.4).double(), torch.tensor([5, 2, 4, 1])[:rows]


class Topics(nn.Module):
    """Two topics over words: each word's topic is summed out, in a plate inside the documents'."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim  # of the documents; the words' is the other
        self.words = nn.Parameter(real(2, 6))

    def model(self, words):
        documents = pyro.plate("data", len(words), dim=self.dim)
        with documents:
            logit = words.new_zeros((len(words), 1) if self.dim == -2 else (len(words),))
            share = pyro.sample("share", dist.Normal(logit.double(), 1.0)).sigmoid()
            with pyro.plate("words", words.shape[1], dim=-3 - self.dim):
                topic = pyro.sample("topic", dist.Categorical(torch.stack([share, 1 - share], -1)))
                value = words if self.dim == -2 else words.T
                pyro.sample("word", dist.Categorical(logits=self.words[topic]), obs=value)

    def guide(self, words):
        loc = (words < 3).double().mean(1, keepdim=self.dim == -2)
        with pyro.plate("data", len(words), dim=self.dim):
            pyro.sample("share", dist.Normal(loc, 0.6))


class Semi(nn.Module):
    """Labels that are observed, or summed out where they are not (model M2)."""

    def __init__(self, guided=False):
        super().__init__()
        self.guided = guided
        self.decoder = nn.Linear(2 + 3, 4, dtype=torch.float64)
        self.encoder = nn.Linear(4, 2, dtype=torch.float64)
        self.classifier = nn.Linear(4, 3, dtype=torch.float64)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            prior = dist.OneHotCategorical(x.new_tensor([0.5, 0.3, 0.2]).expand(len(x), 3))
            y = pyro.sample("y", prior, obs=y)
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            both = torch.cat([z.expand(*shape, 2), y.expand(*shape, 3)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if self.guided and y is None:
                q = dist.OneHotCategorical(logits=self.classifier(x))
                pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(self.encoder(x), 0.8).to_event(1))

    def log_joint(self, x, z):
        """``(labels, K, B)``."""
        found = []
        for label, weight in enumerate((0.5, 0.3, 0.2)):
            y = torch.eye(3, dtype=torch.float64)[label].expand(*z.shape[:-1], 3)
            logits = self.decoder(torch.cat([z, y], -1))
            found.append(math.log(weight) + dist.Bernoulli(logits=logits).log_prob(x).sum(-1))
        return torch.stack(found)


PIXELS = (torch.rand(6, 4) < 0.5).double()


class Dependent(nn.Module):
    """Two latents of which one is the other's parent, and a third that knows neither."""

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(x.new_tensor(0.3)))
            b = pyro.sample("b", dist.Categorical(A[a.long()]))
            pyro.sample("x", dist.Normal(a + B[b], 1.0), obs=x)
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.6)))
            pyro.sample("y", dist.Normal(2 * c, 1.0), obs=y)

    def guide(self, x, y):
        pass


A, B = real(2, 3).softmax(-1), real(3)
