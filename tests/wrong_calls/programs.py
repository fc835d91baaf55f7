"""What is no program, and programs with something wrong in them."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import distributions, models
from wrong_calls.subjects import Calls, X, normal, nothing, pair, vae


def flat(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x.new_zeros(6), 1.0), obs=x)


def broken(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        normal("x", x, 6, obs=x @ torch.ones(7, 2))


def measured(x: Tensor, mask: Any = None, heights: Any = None) -> None:
    with pyro.plate("data", len(x)):
        seen = None if heights is None else heights.float()[:, 0]
        normal("y", x, 1)
        pyro.sample("height", dist.Normal(x.sum(-1), 1.0).mask(mask is None or mask > 0), obs=seen)


def unobserved(x: Tensor, mask: Any = None) -> None:
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask is None or mask):
        normal("x", x, 6)


def negative(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x, -x).to_event(1), obs=x)


def fit_subsampled(batch_size: int, size: int | None = None) -> None:
    loc = nn.Linear(1, 6)

    def model(x: Tensor) -> None:
        with pyro.plate("data", size or len(x), subsample_size=5) as rows:
            mean = loc(x.new_ones(len(rows), 1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x[rows])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no verb that can answer for each row
        pv.fit(pv.Program(model, nothing), X, batch_size=batch_size, epochs=1, compile=False)


def documents() -> pv.Program:
    def functions(x: Tensor, subsample_size: int) -> None:
        with pyro.plate("docs", 6, subsample_size) as rows, pyro.plate("words", 3):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(rows) + 1]), obs=x[:, rows])

    return pv.Program(functions, nothing)


def bare(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0))
        normal("x", x + z.sum(), 6, obs=x)


def refusing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        steps = dist.Normal(x.new_zeros(len(x), 3), 1.0)
        pyro.sample("x", distributions.Padded(steps, torch.rand(len(x))), obs=x[:, :3])


def of_a_later_function() -> None:
    pv.Program(lambda x: None, lambda x: later(x))

    def later(x: Tensor) -> None:
        pass


def flagged(x: Tensor) -> None:
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=(x[:, 0] > 0).long()):
        pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x)


def outside_in(x: Tensor) -> None:
    with pyro.plate("users", len(x)), pyro.plate("items", 6):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def of_nan_weights() -> None:
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(layer(x), 1.0).to_event(1), obs=x)

    pv.elbo(pv.Program(model, nothing), X)


def spoiled_by_its_rate() -> None:
    """Train counts at a rate after which no rate of a Poisson distribution is a number."""
    torch.manual_seed(0)
    x = torch.poisson((0.7 * torch.randn(200, 2) @ torch.randn(2, 6)).exp())
    decoder, encoder = nn.Linear(2, 6), nn.Linear(6, 4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(decoder(z).exp()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x.log1p()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    pv.fit(pv.Program(model, guide), x, epochs=30, lr=500.0, compile=False)


CALLS: Calls = {
    "a class in place of a model": (
        lambda: pv.fit(models.VAE, X),
        r"got the class VAE, expected an object of it, VAE\(\.\.\.\)",
    ),
    "a network": (lambda: pv.fit(nn.Linear(6, 2), X), r"without \.model"),
    "a model alone": (
        lambda: pv.Program(nothing),
        r"guide: left out, expected pv\.Program\(model, guide\).*AutoNormal\(model\)",
    ),
    "a program made one again": (
        lambda: pv.Program(vae()),
        r"guide: left out, and VAE has \.model and \.guide: .*as it is: pv\.fit\(it, x\)",
    ),
    "a guide by its name": (
        lambda: pv.Program(nothing, "auto"),
        "guide: got 'auto', expected a function",
    ),
    "a guide that forgets a site": (
        lambda: pv.elbo(pair(guide_sites=()), X),
        "site 'z': sampled by the model and not by the guide",
    ),
    "a guide with a site more": (
        lambda: pv.elbo(pair(guide_sites=("z", "u")), X),
        "site 'u': sampled by the guide and not by the model",
    ),
    "sides of different widths": (
        lambda: pv.elbo(pair(event=3), X),
        r"site 'z': the guide's event shape is \(3,\), the model's \(2,\)",
    ),
    "a latent outside the plate": (
        lambda: pv.elbo(pair(inside=False), X),
        "site 'z': inside the plate 'data' in the guide only",
    ),
    "nothing observed": (
        lambda: pv.elbo(pair(observed=False), X),
        "given data and observes none; write obs=",
    ),
    "an observed argument left out, behind one that is not": (
        lambda: pv.elbo(pv.Program(measured, nothing), X),
        "observes none; give 'heights' too, which is None where it is left out",
    ),
    "nothing observed, beside an argument left out": (
        lambda: pv.elbo(pv.Program(unobserved, nothing), X),
        r"observes none; write obs= .*; or give 'mask', which is None here, if a site observes it",
    ),
    "model and guide in each other's place": (
        lambda: pv.elbo(pv.Program(nothing, measured), {"x": X, "heights": X}),
        "observes nothing, and the guide observes",
    ),
    "an argument by a misspelt name": (
        lambda: pv.elbo(pv.Program(measured, measured), {"x": X, "hights": X}),
        r"; did you mean heights\?; it takes x, mask, heights: give .* a dict by these names",
    ),
    "flags in the place of a mask": (
        lambda: pv.elbo(pv.Program(flagged, nothing), X),
        r"BoolTensor .*programs\.py:\d+\); flags of 0 and 1 are a condition by \.bool\(\)$",
    ),
    "plates in the other order": (
        lambda: pv.elbo(pv.Program(outside_in, nothing), X),
        r"shape \(10, 6\), the model expects \(6, 10\); its plates stand in the other order",
    ),
    "a rate that spoils the weights": (
        spoiled_by_its_rate,
        r"It fails on the first rows too: training has spoiled its weights; begin anew with a low",
    ),
    "a weight that is NaN": (
        of_nan_weights,
        r"site 'x' of model: .*parameter '.*weight' holds NaN, whatever",
    ),
    "a distribution's refusal within the model": (
        lambda: pv.elbo(pv.Program(refusing, nothing), X),
        "lengths",
    ),
    "a model and a guide in place of a program": (
        lambda: pv.fit(measured, nothing, X),
        r"got 3 arguments .*; of two functions make a program: pv\.Program\(model, guide\)$",
    ),
    "several arguments of a model, one by one": (
        lambda: pv.fit(vae(), X, X[:, 0]),
        r"got 3 arguments .*; several arguments of a model go together, as a tuple: \(x, y\)$",
    ),
    "a guide's class": (
        lambda: pv.Program(measured, AutoNormal),
        r"guide: got the class AutoNormal, expected .* instance of the class, such as AutoNormal",
    ),
    "a scale that no function has made positive": (
        lambda: pv.elbo(pv.Program(negative, nothing), X),
        r"GreaterThan.*What a network puts out is made positive by \.exp\(\)",
    ),
    "a plate that draws more rows than a batch has": (
        lambda: fit_subsampled(batch_size=7),
        r"; leave subsample_size out and let pv\.fit make the minibatches .*batch_size=len\(x\)",
    ),
    "a plate that draws some of all rows": (
        lambda: pv.fit(documents(), (torch.zeros(3, 6), 2)),
        r"'docs' draws 2 of its 6 rows: .*; rows are the .*Program\(\.\.\., dim=1\)$",
    ),
    "a latent's dimensions outside its event": (
        lambda: pv.elbo(pv.Program(bare, nothing), X),
        r"site z dim -1, 10 vs 2; the plate has the rows of the batch, so make what is one datum",
    ),
    "a program without data": (
        lambda: pv.elbo(pv.Program(lambda: None, nothing), X),
        r"; it takes no data: give it an argument for them, as def ",
    ),
    "a program called": (
        lambda: pair()(X),
        r"Program is called as a function, and is none; write pv\.reconstruct\(program, x\)",
    ),
    "a model of the zoo called": (lambda: vae()(X), "VAE is called as a function, and is none"),
    "a plate that numbers all rows, and a batch of some": (
        lambda: fit_subsampled(batch_size=7, size=10),
        r"'data' draws 5 of its 10 rows: .* observe x in place of x\[i\], and let pv\.fit make the",
    ),
    "an error within the model": (
        lambda: pv.elbo(pv.Program(broken, nothing), X),
        "cannot take this batch",
    ),
    "a datum's dimensions outside its event": (
        lambda: pv.elbo(pv.Program(flat, nothing), X),
        r"site x dim -1, .*what is one datum of 'x' its event dimensions \(\.to_event\(1\)\)",
    ),
    "a network of no distribution": (
        lambda: pv.fit(vae(encoder=nn.Linear(6, 2)), X),
        r"'Tensor' object is not callable; .*is a distribution, as dist\.Normal",
    ),
    "a guide before what it calls": (
        of_a_later_function,
        r"of_a_later_function\.<locals>\.<lambda>: uses a variable .* no value yet; define",
    ),
}
