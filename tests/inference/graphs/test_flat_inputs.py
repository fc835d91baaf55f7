"""Arguments that are no tensors tell graphs apart by their values."""

import enum
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from pyro_vae.inference.graphs.flat_inputs import fixed_arguments

X = torch.zeros(3, 2)
Colour = enum.Enum("Colour", ["RED", "BLUE"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 0.5),
        (True, 1),
        (0, False),
        (None, 0),
        ("a", "b"),
        ([1, 2], (1, 2)),
        ({"k": 1}, {"k": 2}),
        (Namespace(beta=1.0), Namespace(beta=0.5)),
        (
            SimpleNamespace(part=SimpleNamespace(on=True)),
            SimpleNamespace(part=SimpleNamespace(on=False)),
        ),
        (Colour.RED, Colour.BLUE),
        (torch.float32, torch.float64),
        (len, max),
    ],
)
def test_other_values_are_another_graph(one, other):
    keys = [fixed_arguments((X, value)) for value in (one, other, one)]
    assert keys[0] == keys[2] and hash(keys[0]) == hash(keys[2]) and keys[0] != keys[1]


def test_a_setting_changed_in_place_is_another_graph():
    settings = Namespace(beta=1.0)
    before = fixed_arguments({"x": X, "settings": settings})
    settings.beta = 0.5
    assert fixed_arguments({"x": X, "settings": settings}) != before


@pytest.mark.parametrize(
    "value",
    [np.zeros(2), [X], {"k": X}, Namespace(x=X), pack_sequence([X])],
    ids=["array", "list", "dict", "namespace", "packed"],
)
def test_tensors_inside_other_arguments_are_refused(value):
    with pytest.raises(RuntimeError, match="stand still in a graph"):
        fixed_arguments((X, value))


def test_tensors_alone_fix_nothing():
    assert fixed_arguments(X) == () == fixed_arguments((X, X)) == fixed_arguments({"x": X})
