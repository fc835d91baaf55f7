"""Minibatches of programs whose terms, latents or noise follow the rows: right, or refused."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError

N, B = 60, 20
X = torch.linspace(-1.0, 2.0, N, dtype=torch.float64) ** 2
W = 0.5


class Around(torch.nn.Module):
    """Rows around w, and whatever else a function of (x, w) adds; no latent of a datum."""

    def __init__(self, more=lambda x, w: None, guide=lambda x, w, *labels: None):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(W, dtype=torch.float64))
        self.more, self.of_guide = more, guide

    def model(self, x, *labels):
        w = self.w
        loc = self.more(x, w, *labels)
        with pyro.plate("rows", len(x)):
            pyro.sample("obs", dist.Normal(w if loc is None else loc, 1.0), obs=x)

    def guide(self, x, *labels):
        self.of_guide(x, self.w, *labels)


def trained(program, data=X, **options):
    """Return the loss and the weight's gradient, in minibatches of a third at a rate of nothing."""
    moved = 1e-6
    run = pv.fit(
        program,
        data,
        epochs=1,
        batch_size=B,
        optimizer=lambda p: torch.optim.SGD(p, lr=moved),
        progress=False,
        compile=False,
        **options,
    )
    return run.history["loss"][0], (W - program.w.item()) / moved / (N // B)


def of_all(program, *data):
    """Return the same of all data at once."""
    loss = -pv.elbo(program, data if len(data) > 1 else data[0]).sum() / N
    with pv.Program.of(program).running():
        trace = poutine.trace(program.model).get_trace(*data)
        (slope,) = torch.autograd.grad(-trace.log_prob_sum() / N, [program.w])
    return loss.item(), slope.item()


def factor(of):
    return lambda x, w, *labels: pyro.factor("k", of(x, w, *labels))


def weighed(weight):
    def more(x, w):
        with poutine.scale(scale=weight(len(x))):
            pyro.factor("k", -(w**2))

    return more


def beside(x, w):
    with pyro.plate("others", len(x)):
        pyro.factor("k", w * x)


LABELS = torch.zeros(N, dtype=torch.long)
LABELS[7::15] = 3
LABELS[::2] = 4


def of_label(code):
    return lambda x, w, labels: w * (x * (labels == code)).sum()


SUMS = {
    "a weight of the number of rows": (weighed(float), (X,)),
    "another plate of as many": (beside, (X,)),
    "a code of few rows in the middle": (factor(of_label(3)), (X, LABELS)),
}


@pytest.mark.parametrize("case", SUMS)
def test_a_sum_counts_for_all_rows(case):
    more, data = SUMS[case]
    found = trained(Around(more), data if len(data) > 1 else data[0])
    assert found == pytest.approx(of_all(Around(more), *data), rel=1e-5)


def plate_of_latents(x, w):
    with pyro.plate("codes", len(x)):
        return pyro.sample("u", dist.Normal(w, 1.0))


def one_latent_as_long(x, w):
    return pyro.sample("u", dist.Normal(w, 1.0).expand([len(x)]).to_event(1))


@pytest.mark.parametrize("latents", [plate_of_latents, one_latent_as_long])
def test_latents_outside_the_plate_that_are_as_many_as_the_rows_are_refused(latents):
    """Their prior would count once in a minibatch, and what is observed N / B times."""

    def guide(x, w):
        latents(x, w.detach())

    assert math.isfinite(trained_whole(Around(latents, guide)))
    with pytest.raises(ProgramError, match=r"latent 'u' stands outside .* as many as its rows"):
        trained(Around(latents, guide))
    trained_by_loader(Around(latents, guide))


def trained_whole(program):
    return pv.fit(program, X, epochs=1, batch_size=N, progress=False).history["loss"][0]


def trained_by_loader(program):
    loader = DataLoader(TensorDataset(X), batch_size=B)
    assert pv.fit(program, loader, epochs=1, progress=False).steps == N // B


def noisy(x, w):
    return w + 5 * x.mean() + 0.3 * torch.randn_like(x)


def in_groups(x, w):
    return (w + x.view(-1, 5).mean(-1, keepdim=True).expand(-1, 5)).reshape(-1)


def prior_of_rows(x, w):
    return pyro.sample("b", dist.Normal(x.mean(), 2.0)) + w


def prior_by_count(x, w):
    return pyro.sample("b", dist.Normal(0.0, 10 / len(x) ** 0.5)) + w


def draws_b(x, w):
    pyro.sample("b", dist.Normal(0.1, 0.5).expand([]))


def penalty(x, w):
    pyro.factor("k", -1000 * (x - w).square().sum() - w**2)


REFUSED = {
    "a weight of one by the number of rows": (weighed(lambda n: 1 / n), None),
    "a mean under noise of each row": (noisy, None),
    "groups of neighbours": (in_groups, None),
    "a prior of the rows": (prior_of_rows, draws_b),
    "a prior of their number": (prior_by_count, draws_b),
    "a small penalty beside a large sum": (penalty, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_another_function_of_a_part_is_refused(case):
    more, guide = REFUSED[case]
    with pytest.raises(ProgramError, match="all data at once"):
        trained(Around(more, guide or (lambda x, w, *labels: None)))
    trained_by_loader(Around(more, guide or (lambda x, w, *labels: None)))


def test_a_transform_hides_no_rows_that_tell():
    """The labels of the first rows are missing: of the rest the mean is taken."""
    labels = torch.where(torch.arange(N) < 45, -1, 1)

    def more(x, w, labels):
        known = labels >= 0
        pyro.factor("k", w * (x * known).sum() / known.sum().clamp(min=1))

    with pytest.raises(ProgramError, match=r"'k' stands .* is no sum over their rows"):
        trained(Around(more), (X, labels), transform=lambda batch: batch)


def test_a_transform_of_one_batch_size_is_asked_for_no_other():
    """A look at fewer rows ends in no raw error."""
    mask = torch.ones(B, dtype=torch.float64)
    trained(Around(factor(lambda x, w: -(w**2))), transform=lambda x: x * mask)


def test_sites_that_come_with_the_rows_hide_no_mean_of_them():
    """The second cut has other sites than all rows: a refusal, and no raw error."""

    class Often(Around):
        def model(self, x):
            with pyro.plate("rows", len(x)):
                pyro.sample("obs", dist.Normal(self.w + x.mean(), 1.0), obs=x)
                if len(x) > 3:
                    pyro.sample("often", dist.Normal(self.w, 1.0), obs=x)

    with pytest.raises(ProgramError, match="all data at once"):
        trained(Often())


def test_a_sum_of_a_product_of_whole_numbers_is_one():
    def more(x, w, labels):
        twice = (labels.unsqueeze(-1) @ torch.tensor([[2]])).squeeze(-1)
        pyro.factor("k", -w * (twice * x).sum())

    found = trained(Around(more), (X, LABELS))
    assert found == pytest.approx(of_all(Around(more), X, LABELS), rel=1e-5)


def test_a_guide_that_reads_the_rows_trains_with_a_warning():
    def model(x, w):
        return pyro.sample("b", dist.Normal(torch.zeros(()), 2.0)) + w

    def guide(x, w):
        pyro.sample("b", dist.Normal(x.mean(), 0.5))

    with pytest.warns(UserWarning, match="'b': its density in the guide depends on the rows"):
        trained(Around(model, guide))


def test_noise_of_a_programs_own_is_no_reason_to_refuse_or_to_warn():
    """Of fewer rows it is other noise; as of an encoder, or a decoder, of noisy data."""

    class Denoising(Around):
        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("obs", dist.Normal(self.w * z + 0.3 * torch.randn_like(x), 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("rows", len(x)):
                pyro.sample("z", dist.Normal(x + 0.3 * torch.randn_like(x), 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(Denoising())


def noise_of_weights(x, w):
    pyro.factor("k", -((torch.randn(3, dtype=torch.float64) * w) ** 2).sum())


def test_a_penalty_that_is_another_at_each_run_trains_with_a_warning():
    with pytest.warns(UserWarning, match="'k': it stands outside .* another number at each run"):
        trained(Around(noise_of_weights))


class Counting(Around):
    """Counts its calls in a buffer, and warns of few rows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def model(self, x):
        self.calls += 1
        if len(x) < B:
            warnings.warn("few rows", stacklevel=1)
        super().model(x)


def test_a_look_counts_no_call_and_passes_no_warning_on():
    program = Counting()
    wrapped = pv.Program.of(program)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped.read(X)
    assert program.calls == 0
    trained(program)
    assert program.calls == N // B


def test_flags_that_a_program_refuses_are_refused_each_time():
    """Made floats, they would run: every length would be 1."""

    def model(x, lengths):
        if lengths.dtype == torch.bool:
            raise DataError("lengths: got flags, expected numbers")
        with pyro.plate("rows", len(x)):
            pyro.sample("obs", dist.Normal(lengths.to(x), 1.0), obs=x)

    program = pv.Program(model, lambda x, lengths: None)
    for _ in range(3):
        with pytest.raises(DataError, match="got flags"):
            pv.elbo(program, (X, X > 0))


def test_weights_that_are_no_number_off_zero_are_looked_at_as_they_are():
    class Edge(Around):
        def __init__(self):
            super().__init__(lambda x, w: x.mean() + w + 0 * torch.log(0.01 - self.s.abs()))
            self.s = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    program = pv.Program.of(Edge())
    program.read(X)
    assert program.sites.dependence.beside == ("obs",)


def test_a_gate_that_is_open_at_zero_alone_is_seen():
    class Gated(Around):
        def __init__(self):
            super().__init__(lambda x, w: w + (self.a >= 0) * (self.a <= 0) * x.mean() + 0 * self.a)
            self.a = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    program = pv.Program.of(Gated())
    program.read(X)
    assert program.sites.dependence.beside == ("obs",)
