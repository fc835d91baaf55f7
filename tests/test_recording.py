"""Recordings: what is replayed is what the work does, on other inputs and with other noise."""

import programs
import pytest
import recorded_graphs
import torch

import pyro_vae as pv
from pyro_vae import recording as recordings
from pyro_vae.evaluation import annealed_likelihood
from pyro_vae.inference.graphs.flat_inputs import as_tensors
from pyro_vae.inference.graphs.make_graph import make_graph
from pyro_vae.recording import Recording, waits


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
def test_a_mask_of_bytes_waits_as_one_of_booleans_does():
    assert waits(make_graph(lambda x: x[(x > 0).to(torch.uint8)], torch.eye(2)))


@pytest.fixture
def on_the_cpu(monkeypatch):
    recorded_graphs.on_the_cpu(monkeypatch)


def replays():
    return recorded_graphs.Graph.replays


def test_other_inputs_are_copied_and_noise_is_new(on_the_cpu):
    weight = torch.tensor([2.0, 3.0])
    recording = Recording(lambda w, x: [(w * x).sum(), torch.rand(())], stays=1)
    results = []
    for call in range(4):
        torch.manual_seed(call)
        results.append(recording(weight, torch.full((2,), float(call))))
    assert replays() == 3  # the second call is recorded, and replayed
    assert [float(total) for total, _ in results] == [0.0, 5.0, 10.0, 15.0]
    for call, (_, noise) in enumerate(results):
        torch.manual_seed(call)
        assert noise == torch.rand(())


def test_what_is_not_copied_is_overwritten(on_the_cpu):
    recording = Recording(lambda x: [x + 1, x + 2], copied=1)
    first, second = [recording(torch.tensor(float(call))) for call in range(3)][1:]
    assert [float(first[0]), float(second[0])] == [2.0, 3.0]
    assert first[1] is second[1] and second[1] == 4.0


def test_weights_that_move_are_read_where_they_are(on_the_cpu):
    """A call elsewhere runs the work itself; two there are a move."""
    recording = Recording(lambda w, x: [w * x], stays=1)
    here, there, x = torch.tensor(2.0), torch.tensor(5.0), torch.tensor(3.0)
    for _ in range(3):
        assert recording(here, x)[0] == 6.0
    before = replays()
    assert recording(there, x)[0] == 15.0 and replays() == before
    assert recording(here, x)[0] == 6.0 and replays() == before + 1
    there.fill_(7.0)
    assert [float(recording(there, x)[0]) for _ in range(3)] == [21.0] * 3
    assert replays() == before + 3


def test_other_shapes_are_not_replayed(on_the_cpu):
    recording = Recording(lambda x: [x.sum()])
    sums = [float(recording(torch.ones(size))[0]) for size in (2, 2, 3, 2, 3, 3, 3)]
    assert sums == [2.0, 2.0, 3.0, 2.0, 3.0, 3.0, 3.0] and replays() == 4


def test_a_view_at_the_same_place_is_another_input(on_the_cpu):
    data = torch.tensor([1.0, 2.0, 4.0])
    recording = Recording(lambda w: [w.sum()], stays=1)
    views = [data, data, data, data[:2], data[:2], data[:2], data[::2], data[::2]]
    sums = [float(recording(view)[0]) for view in views]
    assert sums == [7.0, 7.0, 7.0, 3.0, 3.0, 3.0, 5.0, 5.0]


def test_two_losses_by_one_graph_have_their_own_gradients(on_the_cpu):
    torch.manual_seed(0)
    vae, x = pv.models.VAE(6, 2, hidden=(4,)), torch.ones(8, 6)
    program = pv.Program.of(vae)
    program.read(x)
    grads = []
    with program.running():
        for traced in (False, True):
            loss = pv.CompiledLoss(pv.ELBO().per_datum, program) if traced else None
            for seed in range(4):
                program.zero_grad()
                torch.manual_seed(seed)
                both = [
                    loss(rows) if loss else pv.ELBO().per_datum(program.joint(rows))
                    for rows in (x, 1 - x)
                ]
                sum(both).backward()
            grads.append([p.grad.clone() for p in program.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_graph_that_waits_is_not_recorded():
    """Factorising asks the device whether it could: a capture would end there, half-way."""
    for function in (
        torch.linalg.cholesky,
        torch.linalg.eigh,
        torch.linalg.svd,
        torch.linalg.matrix_exp,
        lambda x: torch.multinomial(x, 1),
        lambda x: x[x > 0],
        lambda x: x.clone().index_put_((x > 0,), x.sum()),
        lambda x: x.to_sparse().to_dense(),
        lambda x: torch.histc(x, 4),
        lambda x: x.mode(-1).values,
        lambda x: torch.nn.functional.embedding(torch.tensor([1]), x.clone(), max_norm=0.5),
    ):
        assert waits(make_graph(function, torch.eye(2)))
    for function in (torch.tril, lambda x: x[torch.tensor([1, 0])], torch.linalg.cholesky_ex):
        assert not waits(make_graph(function, torch.eye(2)))


def test_kl_weights_are_on_the_device():
    assert as_tensors(torch.tensor(0.5), torch.device("meta")).is_meta


def test_weights_that_move_again_and_again_are_not_recorded_for_ever(on_the_cpu):
    recording = Recording(lambda w: [w + 1], stays=1)
    weights = [torch.tensor(float(n)) for n in range(20)]
    assert [float(recording(w)[0]) for w in weights for _ in range(2)][1::2] == list(range(1, 21))
    assert replays() == 8


def test_work_that_cannot_be_recorded_runs_and_is_told_once(on_the_cpu, monkeypatch):
    def refuse(graph, **options):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    recording = Recording(lambda x: [x + 1])
    recording(torch.zeros(()))
    half = len(recordings._half_recorded)
    with pytest.warns(UserWarning, match="cannot be recorded.*not permitted when stream"):
        assert recording(torch.ones(()))[0] == 2.0
    assert recording(torch.ones(()))[0] == 2.0
    assert len(recordings._half_recorded) == half + 1  # the allocator may ask it still


VERBS = {
    "refine": lambda made, x: pv.refine(
        made, x, pv.HMC(num_draws=6, warmup=6, chains=2, num_leapfrog=2)
    ).samples["z"],
    "ais": lambda made, x: (
        pv.ais(made, x, pv.AIS(num_temperatures=6, chains=2, num_leapfrog=2, pilot=6)).log_prob
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of chains too short to mix
@pytest.mark.parametrize("verb", VERBS)
def test_chains_are_those_of_the_graph(verb, monkeypatch):
    """Each pass of rows records its own: the rows are held in it."""
    made, x = programs.made("vae", "cpu", torch.float32, rows=12)
    monkeypatch.setattr(annealed_likelihood, "_WORTH_A_TRACE", 0)
    answers = []
    for recorded in (False, True):
        if recorded:
            recorded_graphs.on_the_cpu(monkeypatch)
        torch.manual_seed(0)
        answers.append(VERBS[verb](made, x))
    assert replays() > 10
    assert torch.equal(*map(torch.as_tensor, answers))
