"""A diagnosis of a stream is that of its rows in memory, and holds few of a long one."""

import torch

import pyro_vae as pv
from pyro_vae.program import passes
from pyro_vae.program.batches.batch import num_rows
from pyro_vae.program.batches.streams import SpreadRows

X = torch.bernoulli(torch.full((300, 6), 0.4), generator=torch.Generator().manual_seed(0))


def diagnosed(data):
    torch.manual_seed(0)
    vae = pv.models.VAE(6, 2, (8,))
    torch.manual_seed(1)
    return pv.diagnose(vae, data, rows=100, batch_size=50)


def test_a_stream_that_fits_is_diagnosed_as_a_tensor():
    found, expected = diagnosed(iter(X.split(50))), diagnosed(X)
    assert found.kl == expected.kl and found.rows == expected.rows == 300
    assert found.information == expected.information


def test_of_a_long_stream_rows_from_all_over_are_held(monkeypatch):
    """Its sums are those of all rows; the first pass is looked at as before."""
    expected = diagnosed(X)
    monkeypatch.setattr(passes, "_BYTES_HELD", 64 * 24)  # 64 rows
    alive = []

    def batches():
        for batch in X.split(50):
            alive.append(batch)
            yield batch

    joined = []
    whole = SpreadRows.joined
    monkeypatch.setattr(SpreadRows, "joined", lambda self: joined.append(whole(self)) or joined[-1])
    found = diagnosed(batches())
    assert found.kl == expected.kl and found.rows == 300
    assert 20 <= found.information.rows <= 64
    assert torch.equal(joined[-1], X[::8])


def test_every_so_manieth_row_is_held():
    for rows, every in ((20, 1), (21, 2), (100, 8)):
        held = SpreadRows(20)
        for batch in torch.arange(rows).split(7):
            held.add(batch)
        assert held.joined().tolist() == list(range(0, rows, every))
        assert num_rows(held.joined()) <= 20


def test_of_rows_beyond_the_bound_one_is_held(monkeypatch):
    monkeypatch.setattr(passes, "_BYTES_HELD", 10)  # fewer bytes than a row has
    assert diagnosed(iter(X.split(50))).rows == 300
