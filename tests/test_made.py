"""The masked decoder: what each bit sees, masses over all bits, draws, and a dropout of inputs."""

import itertools

import pytest
import torch
from torch import nn

from pyro_vae.conditionals import MADE
from pyro_vae.nn import MLP

BITS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)


def made(input_dropout=0.0):
    torch.manual_seed(0)
    decoder = MADE(MLP(2, 4, (5,)), hidden=7, input_dropout=input_dropout).double()
    with torch.no_grad():
        for weight in decoder.autoregression.parameters():
            weight.mul_(3.0)
    return decoder


def test_a_bit_sees_those_before_it_and_no_other():
    network = made().autoregression
    slopes = torch.zeros(4, 4, dtype=torch.bool)
    for row in BITS:
        slopes |= torch.autograd.functional.jacobian(network, row) != 0
    assert torch.equal(slopes, torch.ones(4, 4, dtype=torch.bool).tril(-1))


def test_the_masses_of_all_bits_sum_to_one_and_draws_have_them():
    """The chi-square of 16 cells is above 73 with probability 1e-9."""
    p = made()(torch.tensor([0.3, -1.0], dtype=torch.float64))
    mass = p.log_prob(BITS).exp()
    torch.testing.assert_close(mass.sum().item(), 1.0)
    assert mass.max() > 2 / 16  # far from even: the counts below tell
    draws = p.sample((20_000,))
    cell = (draws @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    counts, expected = torch.bincount(cell, minlength=16), 20_000 * mass.detach()
    assert ((counts - expected).square() / expected).sum() < 73


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_inputs_are_dropped_in_train_mode_alone(mode):
    decoder: nn.Module = made(input_dropout=0.5).train(mode == "train")
    z = torch.zeros(16, 2, dtype=torch.float64)
    same = torch.equal(decoder(z).log_prob(BITS), made()(z).log_prob(BITS))
    assert same == (mode == "eval")
