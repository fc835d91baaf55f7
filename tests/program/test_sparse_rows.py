"""Sparse data: the numbers of the dense data, from rows that are made dense a few at a time."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae.errors import DataError
from pyro_vae.models import LDA, ProdLDA
from pyro_vae.program.batches.sparse_rows import SparseRows

torch.manual_seed(0)
X = torch.poisson(0.4 * torch.rand(37, 12))
X[:, 0] += 1
CSR = scipy.sparse.csr_matrix(X.numpy())
TORCH_COO = X.to_sparse()


def in_pieces(x):
    """Return a matrix whose entries stand in two places each, in no order."""
    whole = scipy.sparse.coo_matrix(x)
    order = np.random.default_rng(0).permutation(2 * whole.nnz)
    values = np.concatenate([whole.data, 2 * whole.data])[order]
    rows, columns = (np.tile(each, 2)[order] for each in (whole.row, whole.col))
    return scipy.sparse.coo_matrix((values, (rows, columns)), whole.shape)


def trained(kind, data, **options):
    torch.manual_seed(1)
    program = kind(12, 3, (8,))
    torch.manual_seed(2)
    options = {"epochs": 2, "batch_size": 16, "compile": False, "progress": False} | options
    return program, pv.fit(program, data, **options)


@pytest.mark.parametrize(
    ("kind", "data"),
    [(ProdLDA, CSR), (LDA, TORCH_COO), (ProdLDA, scipy.sparse.csc_array(X.numpy().astype("i8")))],
)
def test_a_sparse_fit_is_the_dense_fit_to_the_bit(kind, data):
    dense, run = trained(kind, X, valid=X[:20])
    sparse, again = trained(kind, data, valid=CSR[:20])
    for name in ("loss", "valid_elbo"):
        assert list(run.history[name]) == list(again.history[name])
    weights = sparse.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in dense.state_dict().items())


ANSWERS = {
    "elbo": pv.elbo,
    "likelihood": lambda m, x: pv.log_likelihood(m, x, num_particles=5).log_prob,
    "codes": pv.encode,
    "reconstruction": pv.reconstruct,
    "perplexity": lambda m, x: torch.tensor(pv.perplexity(m, x).per_document),
    "completion": lambda m, x: torch.tensor(pv.completion(m, x, x).corpus),
    "coherence": lambda m, x: pv.topics(m, x, num_words=4).npmi,
    "kl": lambda m, x: pv.diagnose(m, x).unit_kl["z"],
    "refined": lambda m, x: (
        pv.refine(m, x, pv.HMC(num_draws=6, warmup=3, chains=2), progress=False).mean
    ),
    "fitted": lambda m, x: pv.infer(m, x, how="local", settings=pv.Local(num_steps=3)).mean,
    "line": lambda m, x: pv.interpolate(m, x[:2], x[2:4], steps=3),
    "dreamt": lambda m, x: (pv.elbo(m, x), pv.generate(m, 5))[1],
}


@pytest.mark.filterwarnings("ignore:refine")
@pytest.mark.parametrize("verb", ANSWERS)
def test_each_verb_says_of_sparse_documents_what_it_says_of_dense_ones(verb):
    said = []
    for data in (X, CSR):
        torch.manual_seed(1)
        program = ProdLDA(12, 3, (8,)).eval()
        torch.manual_seed(2)
        said.append(ANSWERS[verb](program, data))
    torch.testing.assert_close(said[1], said[0], rtol=0, atol=0)


def test_entries_in_one_place_are_added_up_and_the_data_are_left_alone():
    adapt = pv.Program.of(ProdLDA(12, 3, (8,))).adapt
    data = in_pieces(X.numpy())
    before = data.copy()
    assert torch.equal(adapt(data)[:], 3 * X)
    assert (data.data == before.data).all() and (data.row == before.row).all()
    loose = data.tocsr(copy=True)
    loose.indices[::2] = loose.indices[1::2]  # twice in a row
    loose.has_canonical_format = False
    assert torch.equal(adapt(loose)[:], torch.from_numpy(loose.toarray()))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_rows_are_picked_in_order_and_stay_sparse_in_parts():
    rows = pv.Program.of(ProdLDA(12, 3, (8,))).adapt(X.to_sparse_csr())
    order = torch.tensor([5, 0, 36, 5])
    assert torch.equal(rows[order], X[order]) and torch.equal(rows.part(3, 30)[2:9], X[5:12])
    assert rows[:0].shape == (0, 12) and len(rows.part(4, 4)) == 0


def test_no_more_rows_are_dense_at_once_than_a_batch(monkeypatch):
    """The rows of a dense piece do not grow with N: 3,000 documents, batches of 16, judged too."""
    most = []
    pick = SparseRows.__getitem__

    def counted(self, rows):
        piece = pick(self, rows)
        most.append(len(piece))
        return piece

    data = scipy.sparse.random_array((3000, 12), density=0.1, rng=0, dtype="f4").tocsr()
    data.data[:] = 1
    monkeypatch.setattr(SparseRows, "__getitem__", counted)
    monkeypatch.setattr("pyro_vae.program.rows.BYTES_PER_PASS", 100 * 12 * 4)
    trained(ProdLDA, data, epochs=1, batch_size=500, valid=data)
    assert max(most) <= 1024 and sum(each > 500 for each in most) < 5  # rows judged, remembered


def changed(row, column, value):
    data = CSR.tolil(copy=True)
    data[row, column] = value
    return data.tocsr()


BAD = {
    "negative": (changed(30, 0, -1.0), "value -1 in row 30 is outside"),
    "fractional": (changed(36, 4, 0.5), r"value 0.5 in row 36 is outside"),
    "not a number": (CSR * np.nan, "value nan in row 0"),
    "columns": (CSR[:, :7], r"shape \(37, 7\), expected \(B, 12\)"),
    "no rows": (CSR[:0], "no data"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_count_is_refused_as_in_dense_data(fault):
    data, said = BAD[fault]
    program = ProdLDA(12, 3, (8,))
    for given in (data, torch.from_numpy(data.toarray()).float()):
        with pytest.raises(DataError, match=said):
            pv.fit(program, given, epochs=1, batch_size=16, compile=False, progress=False)


def test_documents_without_words_are_told_as_of_dense_data():
    with pytest.raises(DataError, match=r"documents \[1\] have no words"):
        pv.perplexity(ProdLDA(12, 3, (8,)), scipy.sparse.csr_array([[1] * 12, [0] * 12]))


class Labelled(nn.Module):
    """Words and a class, of a guide that does not look at the rows."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 12)
        self.guide = lambda x, y: pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def model(self, x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("documents", len(x)):
            pyro.sample("x", dist.Poisson(self.net(w + y[:, None]).exp()).to_event(1), obs=x)


def joint(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(12), 1.0).to_event(1))
    pyro.sample("x", dist.Poisson((x.mean(0) + w).exp().expand(x.shape)).to_event(2), obs=x)


def each(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(12), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)


def test_sparse_rows_stand_beside_other_arguments():
    torch.manual_seed(1)
    program, y = Labelled(), torch.arange(37.0) % 2
    said = []
    for x in (X, CSR):
        torch.manual_seed(2)
        said.append(pv.elbo(program, (x, y)))
    assert torch.equal(*said)


@pytest.mark.parametrize("model", [joint, each])
def test_a_program_that_takes_all_rows_at_once_asks_for_dense_ones(model):
    program = pv.Program(model, AutoNormal(model))
    with pytest.raises(DataError, match=r"sparse array of shape \(37, 12\).*toarray"):
        pv.fit(program, CSR, epochs=1, compile=False, progress=False)


def test_batches_of_a_loader_may_be_sparse():
    program = ProdLDA(12, 3, (8,)).eval()
    loader = DataLoader(range(37), batch_size=10, collate_fn=lambda rows: CSR[rows])
    said = []
    for data in (loader, [*X.split(10)], (CSR[i : i + 10] for i in range(0, 37, 10))):
        torch.manual_seed(2)
        stream = iter(data) if isinstance(data, list) else data
        said.append(pv.elbo(program, stream))
    assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])
    pv.fit(program, loader, epochs=1, compile=False, progress=False)
