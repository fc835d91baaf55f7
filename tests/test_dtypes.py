"""Every kind of array that Python has: the numbers of the dense float tensor, or one sentence."""

import numpy as np
import pytest
import scipy.sparse
import torch

import pyro_vae as pv
from pyro_vae.errors import DataError

torch.manual_seed(0)
X = torch.bernoulli(torch.rand(12, 6))
N = X.numpy()


class Frame:
    """What pandas hands out: columns, and an array behind them."""

    def __init__(self, array):
        self.array, self.columns = array, list("abcdef")

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)

    def __len__(self):
        return len(self.array)

    def __iter__(self):
        return iter(self.columns)


TAKEN = {
    **{dtype: N.astype(dtype) for dtype in ("u1", "u2", "u4", "u8", "i1", "i8", "?", "f2", ">f4")},
    "half": X.half(),
    "bfloat16": X.bfloat16(),
    "no mask": np.ma.masked_array(N, mask=False),
    "frame": Frame(N),
    "matrix": np.asmatrix(N),
    "memory": memoryview(N),
    "read-only": np.frombuffer(N.tobytes(), dtype="f4").reshape(12, 6),
    "scipy": scipy.sparse.csr_matrix(N),
    "scipy array": scipy.sparse.coo_array(N.astype("u2")),
    "scipy by columns": scipy.sparse.csc_matrix(N),
    "scipy by cells": scipy.sparse.dok_matrix(N),
    "coo": X.to_sparse(),
    "backwards": N[::-1].copy()[::-1],
    "by columns": np.asfortranarray(N),
    "requires a gradient": X.clone().requires_grad_(),
    "negative view": torch.complex(X, -X).conj().imag,
}
REFUSED = {
    "long double": (N.astype("longdouble"), "astype"),
    "complex": (N.astype("c8"), "real and imaginary part"),
    "complex tensor": (X.to(torch.complex64), "real and imaginary part"),
    "sparse cube": (torch.stack([X, X]).to_sparse(), "rows and columns"),
    "complex csr": (scipy.sparse.csr_matrix(N.astype("c8")), "real and imaginary part"),
    "masked": (np.ma.masked_array(N, mask=N > 0), "filled"),
    "objects": (N.astype(object), "astype"),
    "strings": (np.array([["a"] * 6] * 12), "numeric array"),
    "records": (np.zeros(12, dtype=[("a", "f4"), ("b", "f4")]), "numeric array"),
    "frame of strings": (Frame(N.astype(str).astype(object)), "numeric array"),
    "jagged": (torch.nested.nested_tensor(list(X), layout=torch.jagged), "to_padded_tensor"),
    "rows": (list(X), "torch.stack"),
    "ragged": ([[0.0, 1.0], [1.0]], "expected"),
    "range": (range(12), "expected"),
    "nothing": (None, "numeric array"),
}


def elbo(data):
    torch.manual_seed(1)
    return pv.elbo(pv.models.VAE(6, 2, (4,)), data)


@pytest.mark.parametrize("kind", TAKEN)
def test_numbers_are_those_of_the_floats(kind):
    torch.testing.assert_close(elbo(TAKEN[kind]), elbo(X), rtol=1e-6, atol=0)


@pytest.mark.parametrize("verb", ["elbo", "fit"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_dense_array_of_numbers_is_refused_with_the_fix(kind, verb):
    data, fix = REFUSED[kind]
    options = {"epochs": 1} if verb == "fit" else {}
    with pytest.raises(DataError, match=fix):
        getattr(pv, verb)(pv.models.VAE(6, 2, (4,)), data, **options)
