"""Batches of a loader stand alone, as in steps of stock SVI; what all data share counts once."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.program.batches.batch import num_rows
from pyro_vae.program.looks.cuts import few_of

N, B = 24, 4
X = torch.linspace(-1.0, 2.0, N, dtype=torch.float64) ** 2
MOVED = 1e-9
STILL = {
    "optimizer": lambda p: torch.optim.SGD(p, lr=MOVED),
    "progress": False,
    "compile": False,
}


class Rows(nn.Module):
    """Rows around w, with a prior on w, and what a function adds.

    Arguments:
        around: Holds the rows, of their number.
        more: Called with rows and w, outside the plate.
    """

    def __init__(self, around=lambda rows: poutine.scale(scale=1.0), more=lambda x, w: None):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.around, self.more = around, more

    def model(self, x):
        w = pyro.sample("w", dist.Normal(self.w.new_zeros(()), 0.3))
        self.more(x, w)
        with self.around(len(x)), pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("w", dist.Delta(self.w))


class Latents(nn.Module):
    """A latent for each row, at w times it in the guide.

    Arguments:
        plate: Of the latents; that of the data is "rows".
        around: Holds the likelihood, of the number of rows.
    """

    def __init__(self, plate="rows", around=lambda rows: poutine.scale(scale=1.0)):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.plate, self.around = plate, around

    def model(self, x):
        rows = pyro.plate("rows", len(x))
        with rows if self.plate == "rows" else pyro.plate(self.plate, len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        with rows, self.around(len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate(self.plate, len(x)):
            pyro.sample("z", dist.Delta(self.w * x))


def trained(program, data):
    """Return the epoch's loss and the mean of the steps' gradients, at a rate of nothing."""
    before = program.w.item()
    run = pv.fit(program, data, epochs=1, batch_size=B, **STILL)
    return run.history["loss"][0], (before - program.w.item()) / MOVED / (N // B)


def expected(terms):
    """Return the same of a loss per datum that a function of batch and w says."""
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    prior = -dist.Normal(0.0, 0.3).log_prob(w) / N
    loss = prior + sum(terms(x, w) for x in X.split(B)) / (N // B)
    (slope,) = torch.autograd.grad(loss, [w])
    return loss.item(), slope.item()


def nll(x, w):
    return -dist.Normal(w, 1.0).log_prob(x).mean()


def penalty(x, w):
    return 50 * (x.mean() * w) ** 2


def loader():
    return DataLoader(X, batch_size=B)


def test_a_function_of_a_batch_outside_the_plate_weighs_as_in_a_step_of_stock_svi():
    program = Rows(more=lambda x, w: pyro.factor("penalty", -penalty(x, w)))
    found = trained(program, loader())
    assert found == pytest.approx(expected(lambda x, w: nll(x, w) + penalty(x, w) / B), rel=1e-5)


def test_a_mean_of_a_batch_counts_once_beside_all_data_and_is_told_of():
    def more(x, w):
        pyro.factor("mean", -(x * w).mean())

    with pytest.warns(UserWarning, match="'mean': .* it counts once beside all 24 data"):
        found = trained(Rows(more=more), loader())
    assert found == pytest.approx(expected(lambda x, w: nll(x, w) + (x * w).mean() / N), rel=1e-5)


@pytest.mark.parametrize("of_rows", [lambda w, _: w, lambda w, b: torch.full((b,), w)])
@pytest.mark.parametrize("feed", [loader, lambda: X], ids=["loader", "tensors"])
def test_a_program_that_scales_by_its_own_n_over_b_is_scaled_once(feed, of_rows):
    program = Rows(around=lambda rows: poutine.scale(scale=of_rows(N / rows, rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(program, feed())
    assert found == pytest.approx(expected(nll), rel=1e-5)


@pytest.mark.parametrize("feed", [loader, lambda: X], ids=["loader", "tensors"])
def test_the_n_of_another_fit_is_read_anew(feed):
    number = 2 * N
    program = Rows(around=lambda rows: poutine.scale(scale=number / rows))
    pv.fit(program, DataLoader(X.repeat(2), batch_size=B), epochs=1, **STILL)
    number = N
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(program, feed())
    assert found == pytest.approx(expected(nll), rel=1e-5)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("feed", [loader, lambda: X], ids=["loader", "tensors"])
def test_a_program_that_scales_in_training_alone_is_scaled_once(feed, constant):
    """And judged with the weight of N rows that it has in eval mode, as validation data are."""

    class Training(Rows):
        def model(self, x):
            self.around = lambda rows: poutine.scale(scale=self.weight(rows))
            super().model(x)

        def weight(self, rows):
            return N / (B if constant else rows) if self.training else 1.0

    program = Training()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trained(program, feed())
    assert found == pytest.approx(expected(nll), rel=1e-5)
    assert [str(each.message)[:20] for each in told] == ["site 'x': its weight"] * constant
    w = torch.tensor(0.5, dtype=torch.float64)
    bound = dist.Normal(0.0, 0.3).log_prob(w) / N - nll(X, w)
    assert pv.elbo(program, X).mean().item() == pytest.approx(bound.item(), rel=1e-6)


@pytest.mark.parametrize("rows", [1, B])
def test_so_is_one_that_no_part_of_a_batch_tells_of(rows):
    """A row has no half, and the program refuses that of more."""

    class Training(Rows):
        def model(self, x):
            self.around = lambda rows: poutine.scale(scale=N / rows if self.training else 1.0)
            if self.training and len(x) not in (rows, N):
                raise ValueError
            super().model(x)

    program, stock = Training(), Training()
    settings = {**STILL, "optimizer": lambda p: torch.optim.SGD(p, lr=0.01)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a weight that is the same for any number of rows
        pv.fit(program, DataLoader(X, rows), epochs=2, **settings)
    optimizer = torch.optim.SGD(stock.parameters(), lr=0.01)
    for x in (*X.split(rows), *X.split(rows)):
        optimizer.zero_grad()
        (Trace_ELBO().differentiable_loss(stock.model, stock.guide, x) / N).backward()
        optimizer.step()
    torch.testing.assert_close(program.w, stock.w)


@pytest.mark.parametrize("feed", [loader, lambda: X], ids=["loader", "tensors"])
def test_a_program_with_its_n_over_b_written_in_is_scaled_once_and_told(feed):
    program = Rows(around=lambda rows: poutine.scale(scale=N / B))
    with pytest.warns(UserWarning, match="'x': its weight is 6 for any number of rows.*N / len"):
        found = trained(program, feed())
    assert found == pytest.approx(expected(nll), rel=1e-5)


@pytest.mark.filterwarnings("ignore:site .* any number of rows")
@pytest.mark.parametrize(("of_rows", "of_prior"), [(N / B, 1.0), (1.0, B / N)])
def test_validation_data_weigh_as_many_as_they_are_where_n_over_b_is_written_in(of_rows, of_prior):
    class Weighed(Rows):
        def model(self, x):
            with poutine.scale(scale=of_prior):
                w = pyro.sample("w", dist.Normal(self.w.new_zeros(()), 0.3))
            with poutine.scale(scale=of_rows), pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    valid = X[: 2 * B + 1] + 0.3
    run = pv.fit(Weighed(), X, valid=valid, epochs=1, batch_size=B, **STILL)
    w = torch.tensor(0.5, dtype=torch.float64)
    exact = -nll(valid, w) + dist.Normal(0.0, 0.3).log_prob(w) / N
    assert run.history["valid_elbo"][0] == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("rows", [26, 27])
def test_a_number_of_batches_over_the_rows_is_n_over_b_in_a_last_batch_too(rows):
    """Of 26 rows in batches of 4, there are 7, which stand for 28."""
    x, batches = torch.linspace(-1.0, 2.0, rows, dtype=torch.float64), -(-rows // B)
    program = Rows(around=lambda few: poutine.scale(scale=batches * B / few))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = pv.fit(program, DataLoader(x, batch_size=B), epochs=1, **STILL)
    w = torch.tensor(0.5, dtype=torch.float64)
    prior = -dist.Normal(0.0, 0.3).log_prob(w)
    steps = [(batches * B * nll(few, w) + prior) / rows * len(few) for few in x.split(B)]
    assert run.history["loss"][0] == pytest.approx(sum(steps).item() / rows, rel=1e-6)


@pytest.mark.parametrize("feed", [loader, lambda: X], ids=["loader", "tensors"])
def test_a_constant_is_n_over_b_of_one_batch_size_alone(feed):
    """Also where no look at rows from all over begins anew: the program takes no odd number."""

    class Pairs(Rows):
        def model(self, x):
            x.reshape(-1, 2)
            super().model(x)

    assert num_rows(few_of(X, N)[0]) % 2 == 1
    program = Pairs(around=lambda rows: poutine.scale(scale=N / (2 * B)))
    with pytest.warns(UserWarning, match="any number of rows"):
        pv.fit(program, X, epochs=1, batch_size=2 * B, **STILL)
    program.w.data.fill_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(program, feed())
    assert found == pytest.approx(expected(lambda x, w: 3 * nll(x, w)), rel=1e-5)


def test_a_weight_of_the_number_of_rows_is_not_n_over_b_where_it_is_its_square_root():
    program = Rows(around=lambda rows: poutine.scale(scale=rows))
    few, w = X[: B * B], torch.tensor(0.5, dtype=torch.float64)
    loss = B * nll(few, w) - dist.Normal(0.0, 0.3).log_prob(w) / len(few)
    with pytest.warns(UserWarning, match="'x': its weight depends on the number of rows"):
        assert trained(program, few)[0] == pytest.approx(loss.item(), rel=1e-5)


def test_no_part_of_a_batch_goes_alone_where_n_over_b_is_written_in():
    program = Rows(around=lambda rows: poutine.scale(scale=N / B))
    with (
        pytest.warns(UserWarning, match="any number of rows"),
        pytest.raises(ProgramError, match="accumulate: got 2, and the weight of site 'x'"),
    ):
        pv.fit(program, X, epochs=1, batch_size=B, accumulate=2, progress=False)


def test_a_weight_of_all_rows_that_is_another_number_stays():
    program = Rows(around=lambda rows: poutine.scale(scale=2.0))
    assert trained(program, loader()) == pytest.approx(
        expected(lambda x, w: 2 * nll(x, w)), rel=1e-5
    )


def test_a_weight_that_is_one_at_all_rows_is_not_n_over_b():
    program = Rows(around=lambda rows: poutine.scale(scale=rows / N))
    pv.elbo(program, X)
    with pytest.warns(UserWarning, match="'x': its weight depends on the number of rows"):
        found = trained(program, loader())
    assert found == pytest.approx(expected(lambda x, w: nll(x, w) * B / N), rel=1e-5)


def test_a_weight_that_is_n_over_the_rows_of_a_look_is_not_n_over_b():
    weight = N / num_rows(few_of(X, N)[0])
    program = Rows(around=lambda rows: poutine.scale(scale=weight))
    assert trained(program, X) == pytest.approx(expected(lambda x, w: weight * nll(x, w)), rel=1e-5)


@pytest.mark.parametrize("of_guide", [True, False])
@pytest.mark.parametrize(("size", "shuffled"), [(B, True), (B, False), (5, False)])
def test_a_prior_that_weighs_one_over_the_number_of_batches_has_its_balance(
    size, shuffled, of_guide
):
    """Of 24 rows in batches of 5, there are 5. A point mass in the guide weighs nothing itself."""
    share = 1 / len(X.split(size))

    class Weighed(Rows):
        def model(self, x):
            with poutine.scale(scale=share):
                w = pyro.sample("w", dist.Normal(self.w.new_zeros(()), 0.3))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

        def guide(self, x):
            with poutine.scale(scale=share if of_guide else 1.0):
                super().guide(x)

    program = Weighed()
    data = X if shuffled else DataLoader(X, batch_size=size)
    with pytest.warns(UserWarning, match="'w': its weight is 0.* for any number.*len.x. / N"):
        run = pv.fit(program, data, epochs=1, batch_size=size, **STILL)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    prior = -share / size * dist.Normal(0.0, 0.3).log_prob(w)  # a step of stock SVI, per row
    loss = torch.stack([prior + nll(x, w) for x in X.split(size)])
    (slope,) = torch.autograd.grad(loss.sum(), [w])
    assert (program.w.item() - 0.5) / MOVED == pytest.approx(-slope.item(), rel=1e-5)
    if size == B:
        assert run.history["loss"][0] == pytest.approx(loss.mean().item(), rel=1e-5)


OWN = {  # weights of rows and of a sum beside them
    "of rows": lambda rows: (N / rows, N / rows),
    "constants": lambda rows: (N / B, N / B),
    "beside a prior": lambda rows: (1.0, 1.0),
    "of the plate alone": lambda rows: (N / rows, 1.0),
}


@pytest.mark.filterwarnings("ignore:site .* any number of rows")
@pytest.mark.parametrize("feed", [loader, lambda: X], ids=["loader", "tensors"])
@pytest.mark.parametrize("kind", OWN)
def test_a_sum_beside_rows_that_a_program_scales_itself_is_as_in_a_step_of_stock_svi(kind, feed):
    class Sum(Rows):
        def model(self, x):
            of_rows, of_sum = OWN[kind](len(x))
            with poutine.scale(scale=B / N if kind == "beside a prior" else 1.0):
                w = pyro.sample("w", dist.Normal(self.w.new_zeros(()), 0.3))
            with poutine.scale(scale=of_sum):
                pyro.factor("sum", -(x * w).sum())
            with poutine.scale(scale=of_rows), pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    of_rows, of_sum = OWN[kind](B)
    wanted = expected(lambda x, w: nll(x, w) + of_sum / of_rows * (x * w).mean())
    assert trained(Sum(), feed()) == pytest.approx(wanted, rel=1e-5)


NOISY = {
    "function": lambda x, w: 50 * (x.mean() * w) ** 2 + torch.randn_like(x).mean(),
    "sum": lambda x, w: (x * w + torch.randn_like(x)).sum(),
    "shuffled": lambda x, w: x.mean() * w + (x * x[torch.randperm(len(x))]).mean(),
}


@pytest.mark.parametrize("kind", NOISY)
def test_noise_does_not_hide_what_a_term_is_of_the_rows(kind):
    """The noise has no part in the slope: that is exact."""
    term = NOISY[kind]
    program = Rows(more=lambda x, w: pyro.factor("noisy", -term(x, w)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, slope = trained(program, loader())
    assert slope == pytest.approx(expected(lambda x, w: nll(x, w) + term(x, w) / B)[1], rel=1e-5)


def test_noise_that_torch_does_not_draw_is_told_of():
    def more(x, w):
        pyro.factor("noisy", (x * w + np.random.randn()).sum())  # noqa: NPY002

    with pytest.warns(UserWarning, match="'noisy': .* counts once beside all 24 data"):
        trained(Rows(more=more), loader())


@pytest.mark.parametrize("feed", [loader, lambda: X], ids=["loader", "tensors"])
def test_a_likelihood_alone_that_is_scaled_by_n_over_b_keeps_its_weight(feed):
    """Against the KL of each datum, as in a step of stock SVI: the optimum is 6 / 7, not .5."""

    program = Latents(around=lambda rows: poutine.scale(scale=N / rows))
    settings = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05), "progress": False}
    pv.fit(program, feed(), epochs=60, batch_size=B, compile=False, **settings)
    assert program.w.item() == pytest.approx(6 / 7, abs=0.02)


def test_another_weight_that_hangs_on_the_rows_is_told_of():
    program = Rows(around=lambda rows: poutine.scale(scale=7.0 / rows))
    with pytest.warns(UserWarning, match="'x': its weight depends on the number of rows"):
        trained(program, loader())


def test_latents_in_a_plate_of_another_name_weigh_as_the_rows_of_a_batch():
    def terms(x, w):
        z = w * x
        prior = dist.Normal(0.0, 1.0).log_prob(z)
        return -(prior + dist.Normal(z, 1.0).log_prob(x)).mean()

    loss, slope = expected(terms)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    prior = -dist.Normal(0.0, 0.3).log_prob(w) / N  # which this program has not
    (of_prior,) = torch.autograd.grad(prior, [w])
    found = trained(Latents(plate="latents"), loader())
    assert found == pytest.approx((loss - prior.item(), slope - of_prior.item()), rel=1e-5)
