"""The door of every verb: one draw of the globals, passes of any size, every form of data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import pyro_vae as pv
from pyro_vae.errors import DataError
from pyro_vae.evaluation import codes
from pyro_vae.program import passes
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.passes import Verb
from pyro_vae.program.sites.sites import Sites


class Shared(nn.Module):
    """A global level w above a latent z of each datum; the guide's z depends on w."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.2))

    def model(self, x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w + x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        w = pyro.sample("w", dist.Normal(self.loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.2 * w + 0.8 * x, 0.2**0.5))


def test_elbo_holds_one_draw_of_the_globals():
    """The guide's z is exact given w: data of one value have one bound, in any pass."""
    bound = pv.elbo(Shared(), torch.full((70,), 1.5), batch_size=16)
    torch.testing.assert_close(bound, bound[:1].expand(70), rtol=0, atol=1e-5)


def test_elbo_of_the_globals_is_exact():
    """Passes of 7 and of 1000 agree with log p(x | w) + (log p(w) - log q(w)) / N at one w."""
    program, x = Shared(), torch.linspace(-1, 1, 30)
    for batch_size in (7, 1000):
        torch.manual_seed(5)
        bound = pv.elbo(program, x, num_global_samples=3, batch_size=batch_size)
        torch.manual_seed(5)
        wrapped = pv.Program.of(program)
        with torch.no_grad(), wrapped.running():
            joint = wrapped.joint(x[:batch_size])
            w = torch.stack([joint.global_values()["w"] for _ in range(3)])
        datum = dist.Normal(w[:, None], 1.25**0.5).log_prob(x)
        shared = dist.Normal(0.0, 1.0).log_prob(w) - dist.Normal(0.2, 1.0).log_prob(w)
        torch.testing.assert_close(bound, (datum + shared[:, None] / 30).mean(0))


def test_likelihoods_hold_the_draws_of_the_globals():
    """The guide's z is exact given w: data of one value have one likelihood, in any pass."""
    found = pv.log_likelihood(
        Shared(), torch.full((150,), 1.5), num_particles=1, num_global_samples=2
    )
    exact = found.log_prob[:1].expand(150)
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=1e-5)


ROWS = torch.bernoulli(torch.full((50, 6), 0.4), generator=torch.Generator().manual_seed(0))


def _forms():
    data = TensorDataset(ROWS)
    return {
        "data set": data,
        "subset": Subset(data, range(50)),
        "loader": DataLoader(data, batch_size=8),
        "shuffled loader": DataLoader(data, batch_size=8, shuffle=True, drop_last=True),
        "loader of own batches": DataLoader(
            data, batch_sampler=BatchSampler(RandomSampler(data), 8, drop_last=True)
        ),
        "shuffled batches": DataLoader(ROWS.split(11), batch_size=None, shuffle=True),
        "dealt loader": DataLoader(data, 8, sampler=DistributedSampler(data, 2, 0)),
        "generator": (ROWS[i : i + 11] for i in range(0, 50, 11)),
        "array": ROWS.numpy(),
    }


@pytest.mark.parametrize("form", _forms())
def test_every_form_of_data_gives_the_same_answers_in_the_same_order(form):
    torch.manual_seed(0)
    program = pv.models.VAE(6, 2, (8,))
    pv.Program.of(program).read(ROWS)
    state = torch.get_rng_state()
    found = pv.encode(program, _forms()[form])
    torch.testing.assert_close(found, pv.encode(program, ROWS))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bound", ["rows", "bytes"])
def test_the_size_of_passes_changes_no_answer(bound, monkeypatch):
    def answers(seen):
        torch.manual_seed(0)
        program = pv.models.VAE(6, 2, (8,))
        pv.elbo(program, ROWS[:7])  # the looks are over
        program.encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        return (
            pv.encode(program, ROWS),
            pv.reconstruct(program, ROWS),
            pv.interpolate(program, ROWS, ROWS.flip(0), steps=3),
        )

    whole, seen = answers([]), []
    if bound == "rows":
        monkeypatch.setattr(codes, "_ROWS_PER_PASS", 7)
    else:
        monkeypatch.setattr(passes, "BYTES_PER_PASS", 7 * 6 * 4)
    cut = answers(seen)
    assert max(seen) <= 7 and len(seen) >= 3 * 8
    for first, second in zip(whole, cut, strict=True):
        torch.testing.assert_close(first, second)


def test_the_answer_of_a_pass_holds_no_memory_of_it():
    """A view of what a pass makes would keep all of it until a long stream ends."""
    program = pv.Program.of(pv.models.VAE(6, 2, (8,)))
    with program.passes(ROWS, Verb("sum"), rows=25) as found:
        answers = found.map(lambda piece: {"first": piece.batch.repeat(100, 1)[:1]})
    assert [each["first"].untyped_storage().nbytes() for each in answers] == [24, 24]


def test_particles_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(passes, "BYTES_PER_PASS", 1000)
    joint = Joint(print, print)  # never run: it says whether it takes several particles

    def of(rows, width):
        return passes.Pass(
            torch.zeros(rows, 10),
            slice(0, rows),
            Sites((), (), (), 1, None),
            [joint],
            joint,
            [],
            width,
        )

    assert passes.runs(10, joint, of(5, 40), 4096) == [5, 5]  # 200 bytes each
    assert passes.runs(10, joint, of(5, 40), 15) == [3, 3, 3, 1]
    assert passes.runs(2, joint, of(500, 40), 1) == [1, 1]


def test_s_draws_are_the_same_in_every_pass():
    program, x = pv.Program.of(Shared()), torch.zeros(30)
    with program.passes(x, Verb("test"), rows=7, num_global_samples=3) as pieces:
        draws = [[float(draw["w"]) for draw in piece.draws] for piece in pieces]
    assert len(draws) == 5 and all(each == draws[0] for each in draws)
    assert len(set(draws[0])) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter(()), "yields nothing"),
        (TensorDataset(torch.zeros(0, 6)), "0 rows"),
        ((ROWS[:5] * torch.nan for _ in range(2)), "row 0"),
    ],
)
def test_bad_streams_are_named(data, message):
    with pytest.raises(DataError, match=message):
        pv.encode(pv.models.VAE(6, 2, (8,)), data)


def test_verbs_that_need_all_data_gather_a_stream():
    """The posterior object, and the bound with globals, know all rows of a stream."""
    program = Shared()
    x = torch.linspace(-1, 1, 30)
    torch.manual_seed(1)
    whole = pv.elbo(program, x, batch_size=10)
    torch.manual_seed(1)
    streamed = pv.elbo(program, (x[i : i + 10] for i in (0, 10, 20)))
    torch.testing.assert_close(streamed, whole)
    found = pv.infer(program, DataLoader(TensorDataset(x), batch_size=8))
    assert found.sample(2).shape == (2, 30)


class Labelled(nn.Module):
    """x_n ~ N(z_n + y_n, 1) with a class y_n, and a count that may come as integers."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * (x - y), 1.0))


class OfContainers(Labelled):
    """The same of two containers, of which the first counts."""

    def model(self, first, second):
        super().model(*first)

    def guide(self, first, second):
        super().guide(*first)


Y = torch.arange(7) % 3
PAIR = (torch.linspace(-2, 2, 7), Y)
LISTS = {
    "two": [(PAIR[0][:4], Y[:4]), (PAIR[0][4:], Y[4:])],
    "three": [(PAIR[0][i : i + 3], Y[i : i + 3]) for i in (0, 3, 6)],
    "one": [PAIR],
    "lists": [[PAIR[0][:4].numpy(), Y[:4]], [PAIR[0][4:].numpy(), Y[4:]]],
}


@pytest.mark.parametrize("form", LISTS)
def test_a_list_of_pairs_is_batches(form):
    """Of two, each looks like an argument: the program does not run on them."""
    answers = []
    for data in (PAIR, LISTS[form]):
        torch.manual_seed(0)
        answers.append(pv.elbo(Labelled(), data))
    assert torch.equal(*answers)


def test_a_list_of_containers_is_the_arguments_that_the_program_runs_on():
    answers = []
    for data in ((PAIR, PAIR), [PAIR, PAIR]):
        torch.manual_seed(0)
        answers.append(pv.elbo(OfContainers(), data))
    assert torch.equal(*answers) and len(answers[0]) == 7


def test_a_list_of_data_one_by_one_is_refused_and_not_searched_for_hours():
    """Each of its classes may be meant as a float: of n of them are 2^n choices."""
    items = list(zip(*PAIR, strict=True))
    with pytest.raises(DataError, match="a list of 7 data, one by one"):
        pv.elbo(Labelled(), items)
    calls = []
    program = pv.Program(lambda x: calls.append(1), lambda x: None)
    with pytest.raises(DataError):
        pv.elbo(program, [torch.tensor([n, n]) for n in range(9)])
    assert len(calls) < 60


def shifted():
    """Rows around a latent and the sum of weights that are no rows."""

    def model(x, w):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z if w is None else z + w.sum(), 1.0), obs=x)

    def guide(x, w):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x / 3))

    return pv.Program(model, guide)


@pytest.mark.filterwarnings("ignore:.*the guide is a point mass")
def test_a_constant_as_long_as_the_batches_of_a_list_is_one():
    x, w = torch.linspace(-1.0, 1.0, 9), torch.tensor([1.0, 2.0, 3.0])
    pieces = [(x[i : i + 3], w) for i in (0, 3, 6)]
    exact = pv.elbo(shifted(), (x, w))
    for data in (pieces, [{"x": a, "w": b} for a, b in pieces], iter(pieces)):
        torch.testing.assert_close(pv.elbo(shifted(), data), exact)


@pytest.mark.filterwarnings("ignore:.*the guide is a point mass")
def test_an_equal_copy_as_long_as_the_batches_of_a_list_is_told_of():
    x, w = torch.linspace(-1.0, 1.0, 9), torch.tensor([1.0, 2.0, 3.0])
    pieces = [(x[i : i + 3], w.clone()) for i in (0, 3, 6)]
    for name, data in ((1, pieces), ("w", [{"x": a, "w": b} for a, b in pieces])):
        with pytest.warns(UserWarning, match=f"argument {name!r} has the same numbers"):
            pv.elbo(shifted(), data)


@pytest.mark.parametrize("weights", [(None, torch.ones(())), (torch.ones(()), torch.zeros(()))])
def test_what_differs_between_the_batches_of_a_list_and_is_no_row_is_refused(weights):
    x = torch.linspace(-1.0, 1.0, 6)
    pieces = [{"x": x[:3], "w": weights[0]}, {"x": x[3:], "w": weights[1]}]
    with pytest.raises(DataError, match="argument 'w' has not a row for each of their 6 data"):
        pv.elbo(shifted(), pieces)
    with pytest.raises(DataError, match=r"got arguments \['w', 'x'\] after \['x'\]"):
        pv.elbo(shifted(), [{"x": x[:3]}, pieces[1]])


def test_a_gpu_takes_more_particles_at_once(monkeypatch):
    """Each pass is many launches there; its memory is bounded all the same."""
    vae, x = pv.models.VAE(6, 2, hidden=(4,)), torch.zeros(64, 6)
    taken, verb = [], Verb("log_likelihood", prior=True, each=True, guide="weight")
    with pv.Program.of(vae).passes(x, verb, rows=64) as opened:
        for where in ([], [torch.device("cuda")]):
            monkeypatch.setattr(passes, "cuda_devices", lambda batch, where=where: where)
            taken.append(opened.map(lambda piece: passes.runs(5000, piece.joint, piece, 4096))[0])
    assert [sum(each) for each in taken] == [5000, 5000]
    assert [max(each) for each in taken] == [64, 1024]
