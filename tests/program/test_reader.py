"""Programs as others write them: any data plate, any argument, any view observed."""

import argparse
import math
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import steps, steps_guide
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.training.feed import TensorFeed
from pyro_vae.training.fit import _require_whole_batches


def stock_elbo(model, guide, *args):
    """Return the summed ELBO of stock Pyro at the noise of seed 3."""
    torch.manual_seed(3)
    with torch.no_grad(), pyro.get_param_store().scope():
        return -Trace_ELBO().loss(model, guide, *args)


def our_elbo(program, data):
    torch.manual_seed(3)
    return pv.elbo(program, data).sum().item()


class Shifted(nn.Module):
    """One latent per datum in a plate of the caller's choice."""

    def __init__(self, plate):
        super().__init__()
        self.plate = plate
        self.shift = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.plate(x):
            pyro.sample("z", dist.Normal(x / 2 + self.shift, 0.7))


PLATES = {
    "another name": lambda x: pyro.plate("animals", len(x)),
    "no size": lambda x: pyro.plate("data"),
    "neither": lambda x: pyro.plate("documents"),
}


@pytest.mark.parametrize("kind", PLATES)
def test_the_data_plate_has_any_name_and_may_have_no_size(kind):
    torch.manual_seed(0)
    x, program = torch.randn(7), Shifted(PLATES[kind])
    assert our_elbo(program, x) == pytest.approx(
        stock_elbo(program.model, program.guide, x), abs=1e-5
    )
    # The guide's scale is exact but for rounding, its shift is not: importance weights mend it.
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    found = pv.log_likelihood(program, x, num_particles=20_000)
    error = (found.log_prob - exact).abs()
    assert (error < 5 * (found.ess.reciprocal()).sqrt()).all()  # |z| < 5, seven data
    assert pv.generate(program, 5).shape == (5,)
    assert torch.allclose(pv.encode(program, x), x / 2 + 0.3)


def test_a_prior_of_one_value_in_a_plate_without_a_size_is_diagnosed():
    """The prior's variance of 4 is that of each datum: q(z | x) has an eighth of it."""

    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x, 0.5**0.5).to_event(1))

    found = pv.diagnose(pv.Program(model, guide), torch.linspace(-2, 2, 9)[:, None])
    assert found.posterior_variance["z"].item() == pytest.approx(0.5 / 4)


def test_minibatches_of_a_plate_without_a_size_train_as_stock_pyro():
    """One step of SGD on one batch: the gradient is stock's, at equal noise."""
    torch.manual_seed(0)
    x, program = torch.randn(6), Shifted(PLATES["neither"])
    torch.manual_seed(3)
    wanted = torch.autograd.grad(
        Trace_ELBO().differentiable_loss(program.model, program.guide, x) / 6, [program.shift]
    )[0]
    wrapped = pv.Program.of(program)
    with wrapped.running():
        joint = wrapped.joint(x)
        torch.manual_seed(3)
        (found,) = torch.autograd.grad(pv.ELBO().per_datum(joint), [program.shift])
    assert torch.allclose(found, wanted, atol=1e-6)


def tones(seq, lengths, args, flag=True):
    """The data plate at dimension -2, and views of a tensor observed: a slice, a cast."""
    with pyro.plate("sequences", len(seq), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("tones", 3, dim=-1):
            pyro.sample("first", dist.Normal(z * args.gain, 1.0), obs=seq[:, 0])
            rate = (z + args.gain).exp().expand(len(seq), 3)
            pyro.sample("count", dist.Poisson(rate), obs=seq[:, 1].long())


def tones_guide(seq, lengths, args, flag=True):
    shift = pyro.param("shift", torch.tensor(0.2))
    with pyro.plate("sequences", len(seq), dim=-2):
        pyro.sample("z", dist.Normal(seq[:, 0].mean(-1, keepdim=True) + shift, 0.7))


def test_a_plate_left_of_another_and_views_of_an_argument():
    torch.manual_seed(0)
    seq = torch.stack([torch.randn(6, 3), torch.poisson(torch.ones(6, 3))], 1)
    batch = (seq, torch.ones(6), argparse.Namespace(gain=1.5), True)
    program = pv.Program(tones, tones_guide)
    assert our_elbo(program, batch) == pytest.approx(
        stock_elbo(tones, tones_guide, *batch), abs=1e-4
    )
    bindings = program.read(batch).bindings
    seen = {name: binding.of(batch, {}) for name, binding in bindings.items()}
    assert torch.equal(seen["first"], seq[:, 0]) and torch.equal(seen["count"], seq[:, 1].long())
    dreamt = {"first": torch.arange(18.0).reshape(6, 3), "count": torch.full((6, 3), 4)}
    written = program.replace(batch, dreamt)
    assert torch.equal(written[0][:, 0], dreamt["first"])
    assert torch.equal(written[0][:, 1], torch.full((6, 3), 4.0))
    assert written[2] is batch[2] and torch.equal(seq[:, 1], batch[0][:, 1])
    assert {k: v.shape for k, v in pv.generate(program, 4).items()} == {
        "first": (4, 3),
        "count": (4, 3),
    }


def time_first(x):
    with pyro.plate("documents", x.shape[1]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("words", x.shape[0]):
            pyro.sample("w", dist.Normal(z, 1.0), obs=x)


def time_first_guide(x):
    shift = pyro.param("shift", torch.tensor(0.1))
    with pyro.plate("documents", x.shape[1]):
        pyro.sample("z", dist.Normal(x.sum(0) / (len(x) + 1) + shift, (len(x) + 1) ** -0.5))


def test_the_datum_may_stand_in_another_dimension():
    """log p of a datum of T = 4 words: N(0, I + 11ᵀ); the guide is off by a shift."""
    torch.manual_seed(0)
    x, program = torch.randn(4, 9), pv.Program(time_first, time_first_guide, dim=1)
    assert our_elbo(program, x) == pytest.approx(
        stock_elbo(time_first, time_first_guide, x), abs=1e-4
    )
    exact = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1).log_prob(x.T)
    found = pv.log_likelihood(program, x, num_particles=4000)
    assert (found.log_prob - exact).abs().max() < 0.05
    assert pv.reconstruct(program, x).shape == (9, 4) and pv.generate(program, 5).shape == (5, 4)
    run = pv.fit(program, torch.randn(4, 40), epochs=3, batch_size=10)
    assert run.steps == 12


def annealed(x, weight=1.0, nothing=None):
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=weight):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("last", dist.Normal(z.sum(-1), 1.0), obs=x[:, 2])


def annealed_guide(x, weight=1.0, nothing=None):
    shift = pyro.param("shift", torch.zeros(2))
    with pyro.plate("data", len(x)), poutine.scale(scale=weight):
        pyro.sample("z", dist.Normal(x[:, :2] + shift, 0.5).to_event(1))


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_numbers_and_none_are_passed_on_and_a_column_is_observed(weight):
    torch.manual_seed(0)
    x, program = torch.randn(8, 3), pv.Program(annealed, annealed_guide)
    ours = our_elbo(program, (x, weight, None))
    assert ours == pytest.approx(stock_elbo(annealed, annealed_guide, x, weight), abs=1e-4)
    column = torch.arange(8.0)
    written = program.replace((x, weight, None), {"last": column})
    assert torch.equal(written[0][:, 2], column) and torch.equal(written[0][:, :2], x[:, :2])


def test_a_packed_sequence_is_cut_with_its_rows():
    torch.manual_seed(0)
    rnn = nn.GRU(2, 4, batch_first=True)

    def model(x, packed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, packed):
        last = rnn(packed)[1][0]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(last[:, :2], last[:, 2:].exp()).to_event(1))

    lengths = torch.tensor([5, 4, 4, 2, 1])
    packed = pack_padded_sequence(torch.randn(5, 5, 2), lengths, batch_first=True)
    x, program = torch.randn(5, 2), pv.Program(model, guide)
    assert our_elbo(program, (x, packed)) == pytest.approx(
        stock_elbo(model, guide, x, packed), abs=1e-4
    )
    whole = pv.encode(program, (x, packed))
    assert torch.allclose(whole, rnn(packed)[1][0][:, :2], atol=1e-6)
    assert pv.fit(program, (x, packed), epochs=2, batch_size=2).steps == 4  # of two and three rows


def with_plates(in_model, in_guide):
    """Return a trained-looking program whose plates have a size written in; None: that of x."""
    decoder, encoder = nn.Linear(1, 2), nn.Linear(2, 1)
    for part in (decoder, encoder):
        nn.init.constant_(part.weight, 0.4)
        nn.init.constant_(part.bias, -0.1)

    def model(x):
        with pyro.plate("data", in_model or len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", in_guide or len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.8).to_event(1))

    return pv.Program(model, guide)


VERBS = {
    "elbo": pv.elbo,
    "log_likelihood": lambda p, x: pv.log_likelihood(p, x, num_particles=30).log_prob,
    "generate": lambda p, x: pv.elbo(p, x[:2]) + pv.generate(p, 2).sum(),
    "refine": lambda p, x: pv.refine(p, x, QUICK, compile=False).means["z"],
    "diagnose": lambda p, x: pv.diagnose(p, x).reconstruction,
    "interpolate": lambda p, x: pv.elbo(p, x).sum() + pv.interpolate(p, x[:2], x[2:4]),
    "fit": lambda p, x: pv.fit(p, x, epochs=2, batch_size=3, compile=False).history["loss"],
}
QUICK = pv.HMC(num_draws=2, warmup=1, chains=2)


@pytest.mark.filterwarnings("ignore:refine")
@pytest.mark.filterwarnings("ignore:fit. the plate 'data' says that there are 4 rows in all")
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("verb", VERBS)
def test_a_size_written_into_the_models_plate_changes_no_number(verb, size):
    """Beside a guide of len(x) rows: of 8 rows, of 4, of copies of them."""
    found = []
    for written in (None, size):
        x = torch.linspace(-1.0, 1.0, 16).view(8, 2)
        torch.manual_seed(0)
        found.append(torch.as_tensor(VERBS[verb](with_plates(written, None), x)))
    torch.testing.assert_close(*found)


def test_a_size_in_both_plates_is_no_factor_of_each_datum():
    program, x = with_plates(8, 8), torch.randn(8, 2)
    pv.elbo(program, x)
    with pytest.raises(DataError, match=r"got 3 rows, expected the 8 .* write len\(x\) where"):
        pv.elbo(program, x[:3])


def test_two_plates_that_fit_are_told_apart_by_name():
    def model(x):
        with pyro.plate("people", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("items", 5):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.t())

    def guide(x):
        with pyro.plate("people", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.5))

    square = torch.randn(5, 5)
    with pytest.raises(ProgramError, match=r"plates \['items', 'people'\] have 5 rows each"):
        pv.Program(model, guide).read(square)
    named = pv.Program(model, guide, plate="people")
    assert our_elbo(named, square) == pytest.approx(stock_elbo(model, guide, square), abs=1e-4)
    with pytest.raises(ProgramError, match=r"plate: got 'rooms', expected .*'people'"):
        pv.Program(model, guide, plate="rooms").read(torch.randn(3, 5))


def test_an_inner_plate_may_be_called_data():
    def model(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("data", x.shape[1]):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.linspace(-1.0, 2.0, 12).reshape(4, 3)
    for named in ({}, {"plate": "rows"}):
        bound = pv.elbo(pv.Program(model, lambda x: None, **named), x)
        torch.testing.assert_close(bound, dist.Normal(0.0, 1.0).log_prob(x).sum(-1))


def test_a_computed_value_is_bound_by_name_or_by_declaration():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("seen", dist.Normal(z, 1.0).to_event(1), obs=x / 255)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 255, 1.0).to_event(1))

    x = 255 * torch.rand(4, 2)
    with pytest.raises(ProgramError, match=r"'seen' .*is computed.*observed="):
        pv.Program(model, guide).read(x).binding("seen")
    declared = pv.Program(model, guide, observed={"seen": "x"})
    assert torch.equal(declared.read(x).binding("seen").of((x,), {}), x)
    with pytest.raises(ProgramError, match="got 'seen' observing 'y', expected one of"):
        pv.Program(model, guide, observed={"seen": "y"}).read(x)
    with pytest.raises(
        ProgramError, match=r"observed: got \['x'\], which the model does not sample"
    ):
        pv.Program(model, guide, observed={"x": "x"}).read(x)


def test_a_declared_site_may_be_in_batches_of_its_argument_alone():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    x, y = torch.rand(4), torch.rand(4)
    program = pv.Program(model, lambda x, y=None: None, observed={"y": "y"})
    expected = dist.Normal(0.0, 1.0).log_prob(x)
    torch.testing.assert_close(pv.elbo(program, (x,)), expected)
    torch.testing.assert_close(
        pv.elbo(program, (x, y)), expected + dist.Normal(0.0, 1.0).log_prob(y)
    )
    torch.testing.assert_close(pv.elbo(program, (x,)), expected)
    for declared, batch in (
        ({"z": "y"}, (x, y)),
        ({"z": "w"}, (x,)),
        ({"z": "x", "y": "y"}, (x,)),  # one is left out, and the other misspelt
    ):
        with pytest.raises(ProgramError, match=r"\['z'\], which the model does not sample"):
            pv.Program(model, lambda x, y=None: None, observed=declared).read(batch)
    some = pv.Program(model, lambda x, y=None: None, observed={"z": "x", "y": "y"})
    with pytest.warns(UserWarning, match=r"\['z'\], which the model does not sample"):
        some.read((x, y))


def test_a_declared_argument_that_no_signature_names_is_told_of_where_it_lacks():
    """A function of ``**`` takes any name, and so a misspelt one."""

    def model(x, **inputs):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            if "y" in inputs:
                pyro.sample("y", dist.Normal(0.0, 1.0), obs=inputs["y"] * 1.0)

    x = torch.rand(4)
    for name, batch in (("w", {"x": x}), ("y", {"x": x})):
        program = pv.Program(model, lambda x, **inputs: None, observed={"y": name})
        with pytest.warns(UserWarning, match=f"argument {name!r} is not in this batch"):
            program.read(batch)
    program.read({"x": x, "y": x})  # a warning here would be an error
    pv.Program(model, lambda x, **inputs: None, observed={"y": "y"}).read({"x": x, "y": x})


# -- guides with one factor per datum --------------------------------------------------------------


def factor_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def row_guide(x):
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


@pytest.mark.parametrize(
    ("build", "size"), [(lambda: row_guide, 24), (lambda: AutoNormal(factor_model), 8)]
)
def test_factors_of_data_are_trained_on_their_own_rows(build, size):
    """Rows that differ, in one batch and in three: the factor of each is its posterior, x / 2."""
    x = torch.linspace(-4, 4, 24)
    program = pv.Program(factor_model, build())
    cosine = pv.schedules.cosine()
    pv.fit(program, x, epochs=300, batch_size=size, lr=0.1, lr_schedule=cosine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = pv.encode(program, x)
    assert (codes - x / 2).abs().max() < 0.25
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    found = pv.log_likelihood(program, x, num_particles=2000)
    assert (found.log_prob - exact).abs().max() < 0.1
    with pytest.raises(DataError, match="one factor per datum"):
        pv.elbo(program, x[:7])


@pytest.mark.parametrize("build", [lambda: row_guide, lambda: AutoDiagonalNormal(factor_model)])
def test_factors_that_no_plate_cuts_take_no_minibatches(build):
    with pytest.raises(ProgramError, match=r"one factor per datum.*batch_size=24"):
        pv.fit(pv.Program(factor_model, build()), torch.randn(24), epochs=1, batch_size=6)


# -- sites that come and go with the values of a batch ---------------------------------------------


def test_verbs_speak_of_the_sites_of_their_own_batch():
    """log p of a datum of n steps is n terms of N(0, 2), whatever other batches had."""
    torch.manual_seed(0)
    x, n = torch.randn(30, 4), (torch.arange(30) % 3) + 1
    n[-1] = 4
    program = pv.Program(steps, steps_guide)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x) * (torch.arange(4) < n[:, None])
    for rows in (slice(0, 30), slice(0, 10), slice(20, 30)):
        found = pv.log_likelihood(program, (x[rows], n[rows]), num_particles=20)
        assert torch.allclose(found.log_prob, exact[rows].sum(-1), atol=1e-4)
        assert len(pv.encode(program, (x[rows], n[rows]))) == int(n[rows].max())
    with pytest.raises(ProgramError, match=r"diagnose: site 'z_.' is drawn for some rows"):
        pv.diagnose(program, (x, n))


def test_a_copy_that_is_written_to_is_no_copy():
    """The model halves a copy in place: dreamt values must not be written back as if it had not."""

    def model(x):
        half = x.clone()
        half.mul_(0.5)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("seen", dist.Normal(z, 1.0), obs=half)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 4, 0.7))

    x = torch.arange(1.0, 6.0)
    with pytest.raises(ProgramError, match=r"'seen' .*is computed"):
        pv.Program(model, guide).replace(x, {"seen": x})


def test_a_bad_row_is_numbered_in_the_data_and_not_in_a_chunk():
    """Class numbers of a support that depends on the model, with the bad one in the last chunk."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Categorical(logits=z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    program, x = pv.Program(model, guide), torch.arange(40) % 3
    x[33] = 3
    program.read(x[:20])
    with pytest.raises(DataError, match=r"value 3 in row 33 is outside the support"):
        program.check(x, rows=8)


def test_batches_of_one_form_are_looked_at_until_three_are_alike():
    """What depends on parameters is asked of the model each time."""
    looks = []

    def model(x, label):
        looks.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1)), obs=x)
            if (x == 1).all():
                pyro.sample("label", dist.Bernoulli(logits=z[:, 0]), obs=label)

    def guide(x, label):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    program, x = pv.Program(model, guide), torch.arange(8.0) % 2
    grey = torch.full((8,), 0.5)
    program.read((x, x))
    for _ in range(2):
        program.check((x, grey))
    with pytest.raises(DataError, match=r"'label': value 0.5 in row 0"):
        program.check((torch.ones(8), grey))
    for _ in range(3):
        program.check((x, grey))
    looks.clear()
    program.check((1 - x, grey))
    assert not looks
    with pytest.raises(DataError, match=r"'x': value 0.5 in row 0 is outside"):
        program.check((grey, grey))


def test_factors_of_data_are_refused_on_several_processes():
    """Each would fit factors of the places in its share, and their mean belongs to no datum."""
    x = torch.randn(24)
    program = pv.Program(factor_model, row_guide)
    feed = TensorFeed(x, 24, torch.device("cpu"))
    program.read(x)
    one, two = SimpleNamespace(size=1), SimpleNamespace(size=2)
    _require_whole_batches(program, x, feed, one)
    with pytest.raises(ProgramError, match="one factor per datum"):
        _require_whole_batches(program, x, feed, two)


def test_bytes_under_a_discretised_density_are_told_to_be_divided():
    """Zeros in the first rows, grey levels as bytes further on; divided, they are on the grid."""
    levels = torch.arange(60).reshape(20, 3) * 4
    vae = pv.models.VAE(3, 2, (4,), observation=pv.conditionals.DiscretisedLogistic)
    with pytest.raises(DataError, match=r"value 4 in row 0 .*divide bytes by 255"):
        pv.elbo(vae, levels.to(torch.uint8))
    assert pv.elbo(vae, levels / 255).isfinite().all()


# -- what a flag or a value decides ----------------------------------------------------------------


def labelled_if(given):
    """y is observed where ``given`` says so, and else summed out."""

    def model(x, y, flag=0):
        with pyro.plate("data", len(x)):
            probs = torch.tensor([0.3, 0.7])
            k = pyro.sample("y", dist.Categorical(probs), obs=y if given(y, flag) else None)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 3.0 * k, 1.0), obs=x)

    def guide(x, y, flag=0):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return pv.Program(model, guide)


def test_a_number_that_is_a_flag_is_read_anew():
    torch.manual_seed(0)
    x, y = torch.randn(4), torch.tensor([0, 1, 0, 1])
    program = labelled_if(lambda y, flag: flag == 1)
    pv.elbo(program, (x, y, 1))
    found = pv.log_likelihood(program, (x, y, 0), num_particles=20_000)
    parts = [math.log(p) + dist.Normal(m, 2**0.5).log_prob(x) for p, m in ((0.3, 0.0), (0.7, 3.0))]
    exact = torch.logaddexp(*parts)
    assert ((found.log_prob - exact).abs() * found.ess.sqrt()).max() < 5.0


def test_a_value_that_decides_what_is_latent_is_told():
    """A code of 9, unlike one of -1, looks like a label."""
    x, y = torch.randn(4), torch.tensor([0, 1, 0, 1])
    program = labelled_if(lambda y, flag: bool(y.max() < 9))
    pv.elbo(program, (x, y))
    for verb in (pv.elbo, pv.log_likelihood, pv.diagnose):
        with pytest.raises(ProgramError, match=r"site 'y': latent for these rows.*as\s+None"):
            verb(program, (x, torch.full_like(y, 9)))
    pv.elbo(labelled_if(lambda y, flag: bool(y.max() < 9)), (x, torch.full_like(y, 9)))


@pytest.mark.filterwarnings("ignore:refine")  # four steps are few
@pytest.mark.parametrize("lengths", [[1, 1, 2, 2, 3, 3, 3, 3], [3, 3, 3, 3, 2, 2, 1, 1]])
def test_a_step_that_some_rows_lack_is_refined_for_the_others(lengths):
    x, n = torch.randn(8, 3), torch.tensor(lengths)
    program = pv.Program(steps, steps_guide)
    settings = pv.HMC(num_draws=4, warmup=4, num_leapfrog=2, chains=2)
    drawn = pv.refine(program, (x, n), settings, batch_size=8, compile=False)
    assert sorted(drawn.means) == ["z_0", "z_1", "z_2"]
    longest = n.reshape(2, 4).amax(1).repeat_interleave(4)  # of each pass
    assert torch.equal(drawn.means["z_2"].isfinite(), longest > 2)
    assert drawn.samples["z_1"].shape == (2, 4, 8)
    with pytest.raises(ProgramError, match=r"diagnose: site 'z_.' is drawn for some rows"):
        pv.diagnose(program, (x, n), batch_size=2)


def test_local_fits_of_other_latents_are_refused_before_the_second():
    n = torch.cat([torch.full((256,), 1), torch.full((256,), 3)])
    program, few = pv.Program(steps, steps_guide), pv.Local(num_steps=3)
    with pytest.raises(ProgramError, match=r"local: got latents \['z_1', 'z_2'\]"):
        pv.infer(program, (torch.randn(512, 3), n), how="local", settings=few)


@pytest.mark.parametrize("sized", [True, False])
def test_the_guide_may_call_the_plate_by_another_name(sized):
    def model(x):
        with pyro.plate("data", len(x) if sized else None):
            z = pyro.sample("z", dist.Normal(x * 0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("locals", len(x) if sized else None):
            pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5))

    x = torch.randn(20, dtype=torch.float64)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    program = pv.Program(model, guide)
    torch.testing.assert_close(pv.elbo(program, x, num_particles=3), exact)
    torch.testing.assert_close(pv.log_likelihood(program, x, num_particles=5).log_prob, exact)
    torch.testing.assert_close(pv.ais(program, x, pv.AIS(3, 2, pilot=8)).log_prob, exact)
    torch.testing.assert_close(pv.encode(program, x[:7]), x[:7] / 2)
    assert pv.fit(program, x, epochs=1, batch_size=10, progress=False).steps == 2


class Slotted(NamedTuple):
    model: Any
    guide: Any


def test_an_object_that_takes_no_attributes_is_told():
    for thing in (
        Slotted(steps, steps_guide),
        type("Static", (), {"model": steps, "guide": steps}),
    ):
        with pytest.raises(ProgramError, match=r"pv\.Program\((it|Static)\.model"):
            pv.elbo(thing, (torch.zeros(2, 1), torch.ones(2, dtype=torch.long)))


def test_a_program_with_nothing_outside_its_plate_runs_few_times_on_all_rows():
    """Where nothing could depend on what is across the border, no run looks for it."""
    program, rows, found = Shifted(lambda x: pyro.plate("data", len(x))), 64, []
    program.shift.data.zero_()  # moved off zero where a run looks for what it hides
    seen = nn.Identity()
    pair = pv.Program(program.model, lambda x: program.guide(seen(x)))

    def note(module, given, _):
        if module is seen:
            found.append(len(given[0]))

    with torch.nn.modules.module.register_module_forward_hook(note):
        pair.read(torch.randn(rows))
    assert found.count(rows) == 2  # the sites, and the weights that each side uses
