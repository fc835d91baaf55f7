"""What a cut of the rows must not change: constants as long as the data, terms that count rows."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.bounds import mean_elbo
from pyro_vae.program.looks.findings import Dependence
from pyro_vae.program.looks.refusals import require_parts

N = 12
X = torch.linspace(-1.0, 2.0, N, dtype=torch.float64)
LABELS = torch.arange(N) % 3
RAMP = torch.linspace(0.0, 1.0, N, dtype=torch.float64)


class Observed(torch.nn.Module):
    """x of each datum around a mean of all arguments; no latent, so that numbers are exact."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean
        self.loc = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x, labels, w):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.loc + self.mean(x, labels, w), 1.0), obs=x)

    def guide(self, x, labels, w):
        pass


MEANS = {
    "total": lambda x, labels, w: w.sum(),
    "looked up": lambda x, labels, w: w[labels],
    "prototypes": lambda x, labels, w: torch.cdist(x[:, None], w[:, None]).logsumexp(-1),
    "of rows": lambda x, labels, w: w * labels,
}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("weights", ["ones", "ramp"])
def test_a_constant_as_long_as_the_data_stays_whole(mean, weights):
    """Cut as rows, w.sum() is 2 under batches of 2, and 12 in truth."""
    w = torch.ones_like(RAMP) if weights == "ones" else RAMP
    expected = dist.Normal(MEANS[mean](X, LABELS, w), 1.0).log_prob(X)
    program, data = Observed(MEANS[mean]), (X, LABELS, w)
    for given in (data, dict(zip(("x", "labels", "w"), data, strict=True))):
        torch.testing.assert_close(pv.elbo(Observed(MEANS[mean]), given, batch_size=2), expected)
    run = pv.fit(program, data, epochs=1, batch_size=4, lr=1e-9, progress=False, compile=False)
    assert run.history["loss"][0] == pytest.approx(-expected.mean().item())


FEW = torch.where(torch.isin(torch.arange(N), torch.tensor([2, 5])), 1, 0)
FIRST = torch.where(torch.arange(N) < 4, torch.arange(N), -1)
HIGH = torch.where(torch.arange(N) == 5, 5.0, 1.0).double()
RARE = {
    "few rows tell": (lambda x, labels, w: w.sum() * labels, FEW, RAMP),
    "rows in front tell": (lambda x, labels, w: w[labels.clamp(0)] * (labels >= 0), FIRST, RAMP),
    "the largest": (lambda x, labels, w: w.max().expand(len(x)), LABELS, RAMP),
    "one of them": (lambda x, labels, w: w.max().expand(len(x)), LABELS, HIGH),
}


@pytest.mark.parametrize("case", RARE)
def test_a_constant_is_told_wherever_the_rows_stand_that_show_it(case):
    """Of two rows at the end that a cut keeps, none need to be among them."""
    mean, labels, w = RARE[case]
    expected = dist.Normal(mean(X, labels, w), 1.0).log_prob(X)
    torch.testing.assert_close(pv.elbo(Observed(mean), (X, labels, w), batch_size=2), expected)
    run = pv.fit(
        Observed(mean),
        (X, labels, w),
        epochs=1,
        batch_size=4,
        lr=1e-9,
        progress=False,
        compile=False,
    )
    assert run.history["loss"][0] == pytest.approx(-expected.mean().item())


def test_three_constants_as_long_as_the_data_stay_whole():
    def model(x, a, b, c):
        loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc + a.sum() + b.max() - c.sum(), 1.0), obs=x)

    data = (X, RAMP, 2 + RAMP.flip(0), RAMP**2)
    mean = data[1].sum() + data[2].max() - data[3].sum()
    expected = dist.Normal(mean, 1.0).log_prob(X)
    program = pv.Program(model, lambda *data: None)
    run = pv.fit(program, data, epochs=1, batch_size=4, lr=1e-9, progress=False, compile=False)
    assert run.history["loss"][0] == pytest.approx(-expected.mean().item())


def test_an_argument_that_terms_outside_alone_read_is_asked_for_unless_they_are_sums():
    """A constant and N/B of the rows' own give one sum; of a largest, the user knows which."""

    def model(x, w, of=torch.sum):
        loc = pyro.param("loc", torch.tensor(0.5).double())
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        pyro.factor("shared", loc * of(w))

    settings = {"epochs": 1, "lr": 1e-9, "progress": False, "compile": False}
    expected = -dist.Normal(0.5, 1.0).log_prob(X).mean().item() - 0.5 * RAMP.sum().item() / N
    losses = []
    for constants, size in ((None, N), (["w"], 4), ([], 4), (None, 4)):
        program = pv.Program(model, lambda x, w: None, constants=constants)
        run = pv.fit(program, (X, RAMP), batch_size=size, **settings)
        losses.append(run.history["loss"][0])
    assert losses == pytest.approx([expected] * 4)
    program = pv.Program(functools.partial(model, of=torch.max), lambda x, w: None)
    with pytest.raises(ProgramError, match=r"'shared' .* no sum .*constants=\['w'\]"):
        pv.fit(program, (X, RAMP), batch_size=4, **settings)
    with pytest.raises(DataError, match=r"constants: got 'v', expected .*\['w', 'x'\]"):
        pv.elbo(pv.Program(model, lambda x, w: None, constants=["v"]), (X, RAMP))


def test_terms_that_count_rows_take_all_of_them():
    """A factor of len(x) outside the plate, and a weight of 1 / len(x): 6 of each under twos."""

    def model(x, power=0):
        pyro.factor("count", torch.as_tensor(0.1 * len(x), dtype=x.dtype))
        with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=len(x) ** power):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    inside = dist.Normal(0.0, 1.0).log_prob(X)
    for power in (0, -1.0):
        program = pv.Program(model, lambda x, power: None)
        found = pv.elbo(program, (X, power), batch_size=2)
        assert found.sum().item() == pytest.approx((inside.sum() * N**power + 0.1 * N).item())
        checked = mean_elbo(program, program.adapt((X, power)), size=N, batch_size=2)
        assert checked == pytest.approx(found.mean().item())
        with pytest.raises(ProgramError, match=r"'count'.* depends on their rows"):
            pv.log_likelihood(program, (X, power))


def test_a_density_that_depends_on_the_rows_beside_is_refused_by_name():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(x.mean(), 1.0), obs=x)

    program = pv.Program(model, lambda x: None)
    expected = dist.Normal(X.mean(), 1.0).log_prob(X)
    torch.testing.assert_close(pv.elbo(program, X, batch_size=2), expected)
    with pytest.raises(ProgramError, match="'x' of a datum depends on the rows beside it"):
        pv.log_likelihood(program, X)


def test_validation_holds_the_globals_for_all_its_passes():
    """Two globals, one for each pass, would halve the variance of the mean over the data."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w[0], 1e-3), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, torch.ones(1, dtype=x.dtype)).to_event(1))

    program = pv.Program(model, guide)
    batch = program.adapt(torch.zeros(N, dtype=torch.float64))
    program.read(batch)
    torch.manual_seed(0)
    found = mean_elbo(program, batch, size=N, batch_size=2)
    with program.running(), torch.no_grad():
        torch.manual_seed(0)
        whole = mean_elbo(program, batch, size=N, batch_size=N)
    assert found == pytest.approx(whole)


@pytest.mark.parametrize("told_less", ["labels", "w", "x"])
def test_a_look_at_rows_that_are_equal_settles_no_constants(told_less):
    """What multiplies a zero, or is the mean of equal rows, shows itself in later data."""
    data = {"x": X, "labels": LABELS, "w": RAMP + 0.5}
    program = Observed(lambda x, labels, w: w.mean() * labels)
    pv.elbo(program, data | {told_less: torch.zeros_like(data[told_less])}, batch_size=2)
    expected = dist.Normal(data["w"].mean() * LABELS, 1.0).log_prob(X)
    given = data if told_less != "w" else tuple(data.values())
    torch.testing.assert_close(pv.elbo(program, given, batch_size=2), expected)
    run = pv.fit(program, given, epochs=1, batch_size=4, lr=1e-9, progress=False, compile=False)
    assert run.history["loss"][0] == pytest.approx(-expected.mean().item())


@pytest.mark.parametrize("first", [0.0, 3.0])
def test_a_look_at_rows_that_are_equal_settles_no_dependence(first):
    def model(x, weight):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(weight * x.mean(), 1.0), obs=x)

    program = pv.Program(model, lambda x, weight: None)
    pv.elbo(program, (torch.full_like(X, first), 1.0), batch_size=2)
    pv.elbo(program, (X, 0.0), batch_size=2)
    for weight in (1.0, torch.tensor(1.0)):
        expected = dist.Normal(X.mean(), 1.0).log_prob(X)
        torch.testing.assert_close(pv.elbo(program, (X, weight), batch_size=2), expected)


def test_a_weight_that_starts_at_zero_hides_no_mean_of_all_rows():
    def model(x):
        weight = pyro.param("weight", torch.zeros((), dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(weight * x.mean(), 1.0), obs=x)

    program = pv.Program(model, lambda x: None)
    program.read(X)  # so that its weight outlives a call that is refused
    with pytest.raises(ProgramError, match="'x' depends on the rows beside"):
        pv.fit(program, X, batch_size=4, epochs=1)
    assert program.values["weight"].item() == 0.0


SUMS = {
    "of arguments": (lambda x, z: (x + 1).sum(), None),
    "of latents": (lambda x, z: -(z**2 * x).sum(), None),
    "in the guide": (None, lambda x, z: (0.3 * x).sum()),
    "a mean": (lambda x, z: (z - x).mean(), None),
}


@pytest.mark.parametrize("compile", [False, "trace"])
@pytest.mark.parametrize("case", SUMS)
def test_a_sum_over_the_rows_outside_their_plate_counts_as_one_of_all_in_minibatches(case, compile):
    """The mean of the losses of batches of 4 is that of all rows, where the latents are fixed."""
    in_model, in_guide = SUMS[case]

    def model(x):
        weight = pyro.param("weight", torch.tensor(0.5, dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        if in_model is not None:
            pyro.factor("sum", weight * in_model(x, z))

    def guide(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Delta(0.5 * x))
        if in_guide is not None:
            weight = pyro.param("weight", torch.tensor(0.5, dtype=torch.float64))
            pyro.factor("sum", weight * in_guide(x, z), has_rsample=True)

    def trained(size):
        program = pv.Program(model, guide)
        run = pv.fit(
            program,
            X,
            epochs=1,
            batch_size=size,
            lr=1e-7,
            optimizer=torch.optim.SGD,
            progress=False,
            compile=compile,
        )
        return run.history["loss"][0], (program.values["weight"].item() - 0.5) / run.steps

    whole, parts = trained(N), trained(4)
    sign = 1 if in_model is not None else -1
    term = sign * (in_model or in_guide)(X, 0.5 * X) / N
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert [whole[1], parts[1]] == pytest.approx([1e-7 * term.item()] * 2, rel=1e-5)


NO_SUMS = {
    "a square of a sum": ({"outside": lambda x: x.sum() ** 2}, "'f' .* no sum"),
    "a largest in the guide": ({"of_guide": lambda x: x.max()}, "'f' .* no sum"),
    "a count inside": ({"mean": lambda x: x / len(x)}, "'x' depends on the rows beside"),
    "a mean inside": ({"mean": lambda x: x.mean()}, "'x' depends on the rows beside"),
}


@pytest.mark.parametrize("case", NO_SUMS)
def test_what_is_another_function_of_a_part_trains_on_all_data_at_once(case):
    options, told = NO_SUMS[case]
    mean = options.get("mean", lambda x: 0 * x)

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + mean(x), 1.0), obs=x)
        if "outside" in options:
            pyro.factor("f", options["outside"](x))

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(0 * x, pyro.param("scale", torch.tensor(0.7))))
        if "of_guide" in options:
            pyro.factor("f", options["of_guide"](x), has_rsample=True)

    settings = {"epochs": 1, "progress": False, "compile": False}
    with pytest.raises(ProgramError, match=f"batch_size: got 4, expected 12 .*{told}"):
        pv.fit(pv.Program(model, guide), X, batch_size=4, **settings)
    assert pv.fit(pv.Program(model, guide), X, batch_size=N, **settings).steps == 1
    batches = DataLoader(TensorDataset(X), batch_size=4)
    assert pv.fit(pv.Program(model, guide), batches, **settings).steps == 3


def test_a_posterior_that_reads_the_rows_beside_trains_with_a_warning():
    """Each batch has a bound of its own, as with batch normalisation."""

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x - x.mean(), pyro.param("scale", torch.tensor(0.7))))

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.warns(UserWarning, match="'z': its density in the guide .* 4 rows, .* all 12"):
        pv.fit(pv.Program(model, guide), X, batch_size=4, epochs=1, progress=False, compile=False)


def test_a_look_leaves_nothing_behind_and_stops_no_program():
    """Weights that may not move, rows that come in pairs, a factor that some batches lack."""

    def model(x, labels):
        cov = pyro.param("cov", torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.MultivariateNormal(cov.new_zeros(2), cov), obs=x)
        if (labels >= 0).any():
            weight = pyro.param("weight", torch.tensor(0.5, dtype=torch.float64))
            pyro.factor("known", weight * x[:, 0][labels >= 0].sum())
        pyro.factor("pairs", x[:, 1].view(-1, 2).prod(-1).sum())

    x = torch.stack([X, X.flip(0)], -1)
    exact = dist.Normal(0.0, 1.0).log_prob(x).sum() + x[:, 1].view(-1, 2).prod(-1).sum()
    exact += 0.5 * X[FIRST >= 0].sum()
    program = pv.Program(model, lambda x, labels: None)
    state = torch.get_rng_state()
    assert pv.elbo(program, (x, FIRST), batch_size=4).sum().item() == pytest.approx(exact.item())
    torch.testing.assert_close(program.values["cov"].data, torch.eye(2, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), state)
    settings = {"epochs": 1, "lr": 1e-9, "progress": False, "compile": False, "batch_size": N}
    run = pv.fit(pv.Program(model, lambda x, labels: None), (x, FIRST), **settings)
    assert run.history["loss"][0] == pytest.approx(-exact.item() / N)


def test_what_another_flag_has_shown_says_nothing_of_this_one():
    def model(x, centred):
        loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc + (x.mean() if centred else 0.0), 1.0), obs=x)

    program = pv.Program(model, lambda x, centred: None)
    pv.elbo(program, (X, True))
    run = pv.fit(program, (X, False), batch_size=4, epochs=1, progress=False, compile=False)
    assert run.steps == 3


def test_a_mask_that_reads_the_rows_beside_takes_all_of_them():
    def model(x):
        loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=x > x.mean()):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    expected = dist.Normal(0.0, 1.0).log_prob(X) * (X.mean() < X)
    program = pv.Program(model, lambda x: None)
    torch.testing.assert_close(pv.elbo(program, X, batch_size=2), expected)
    with pytest.raises(ProgramError, match="'x' depends on the rows beside"):
        pv.fit(program, X, batch_size=4, epochs=1)


def test_a_call_with_another_name_leaves_the_next_one_right():
    def model(x, w):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    program, data = pv.Program(model, lambda x, w: None, constants=["w"]), {"x": X, "w": RAMP}
    first = pv.elbo(program, data)
    with pytest.raises(DataError, match="got 'w', expected an argument of the model"):
        pv.elbo(program, {"x": X, "W": RAMP})
    torch.testing.assert_close(pv.elbo(program, data), first)


RARE_LABELS = torch.full((48,), -1).index_fill(0, torch.tensor([9, 22, 30, 41]), 1)


@pytest.mark.parametrize(("of", "seen"), [(torch.mean, "refused"), (torch.sum, "scaled")])
def test_a_term_of_few_labelled_rows_is_a_sum_only_where_two_of_them_say_so(of, seen):
    """With one labelled row among those looked at, a mean and a sum are one."""
    x = torch.linspace(-1.0, 2.0, 48, dtype=torch.float64)

    def model(x, labels):
        weight = pyro.param("weight", torch.tensor(0.5, dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(weight, 1.0), obs=x)
        if (labels >= 0).any():
            pyro.factor("known", -of((x[labels >= 0] - weight) ** 2))

    settings = {"epochs": 1, "lr": 1e-9, "progress": False, "compile": False}
    program = pv.Program(model, lambda x, labels: None)
    if seen == "refused":
        with pytest.raises(ProgramError, match=r"'known' .* no sum"):
            pv.fit(program, (x, RARE_LABELS), batch_size=24, **settings)
        return
    whole, parts = (
        pv.fit(program, (x, RARE_LABELS), batch_size=size, **settings).history["loss"][0]
        for size in (48, 24)
    )
    assert parts == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_programs_that_take_no_few_rows_are_looked_at_in_halves(error):
    def model(x, inside):
        if len(x) < 16:
            raise error("too few")
        weight = pyro.param("weight", torch.tensor(0.5, dtype=torch.float64))
        mean = x.mean() if inside else 0.0
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(weight + mean, 1.0), obs=x)
        pyro.factor("sum", weight * x.sum())

    x = torch.linspace(-1.0, 2.0, 160, dtype=torch.float64)
    settings = {"epochs": 1, "lr": 1e-9, "progress": False, "compile": False}
    with pytest.raises(ProgramError, match="'x' depends on the rows beside"):
        pv.fit(pv.Program(model, lambda x, inside: None), (x, True), batch_size=40, **settings)
    whole, parts = (
        pv.fit(pv.Program(model, lambda x, inside: None), (x, False), batch_size=size, **settings)
        for size in (160, 40)
    )
    assert parts.history["loss"][0] == pytest.approx(whole.history["loss"][0], rel=1e-6)


def test_a_term_that_is_a_sum_to_one_look_and_a_mean_to_another_is_told_of():
    sum_, mean, neither = (
        Dependence(of_rows=("f",), **{kind: ("f",)}) for kind in ("sums", "means", "no_sums")
    )
    assert sum_.joined_with(sum_).scaled == ("f",)
    assert sum_.joined_with(mean).scaled == mean.joined_with(sum_).scaled == ()
    with pytest.raises(ProgramError, match=r"'f' stands outside the plate .* depends on rows"):
        require_parts(sum_.joined_with(mean), 4, 12, None)
    for one, two in ((sum_, neither), (neither, sum_)):
        with pytest.raises(ProgramError, match=r"'f' .* no sum"):
            require_parts(one.joined_with(two), 4, 12, None)


class Cancelling(torch.nn.Module):
    """Large terms that cancel, summed in another order where rows are few, as kernels do."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.randn(size, generator=generator) for size in ((2, 64), (64, 1)))
        self.first = torch.nn.Parameter(torch.cat([first, first], -1))
        self.second = torch.nn.Parameter(3e3 * torch.cat([second, -second]))

    def loc(self, z):
        order = (
            torch.arange(128) if z.shape[-2] > 6 else torch.arange(128).reshape(2, 64).T.flatten()
        )
        return torch.tanh(1e7 * z @ self.first)[..., order] @ self.second[order]

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc(z), 1e-2).to_event(1), obs=x[:, 2:])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1e-6).to_event(1))


def test_large_terms_that_cancel_are_no_dependence_on_the_rows_beside():
    """In single precision the order of such a sum moves a density by more than what goes in."""
    torch.manual_seed(0)
    x = torch.randn(40, 3).sign() * 0.02
    assert pv.log_likelihood(Cancelling(), x, num_particles=2).log_prob.shape == (40,)
