"""Our Adam moves weights as PyTorch's fused one, to the last bit."""

import copy

import pytest
import torch
from torch import nn

from pyro_vae.training.adam import Adam

OPTIONS = [{}, {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}]


def pair(options, device):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device)
    theirs = copy.deepcopy(ours)
    return (
        (ours, Adam(ours.parameters(), lr=1e-2, **options)),
        (theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2, fused=True, **options)),
    )


def train(net, optimizer, steps, start=0, spare=(), skip=()):
    """Train; in the steps ``spare`` the first layer has no gradient."""
    device = net[0].weight.device
    for step in range(start, start + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(5, 3).to(device)).square().sum().backward()
        if step in spare:
            net[0].weight.grad = net[0].bias.grad = None
        optimizer.grad_scale = None
        bad = torch.tensor(1.0 if step in skip else 0.0, device=device)
        optimizer.found_inf = bad if skip else None
        optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        optimizer.step()


def same(one, other):
    for (a, x), (b, y) in zip(
        sorted(one[0].state_dict().items()), sorted(other[0].state_dict().items()), strict=True
    ):
        assert a == b and torch.equal(x, y), a
    states = [o.state_dict()["state"] for _, o in (one, other)]
    assert states[0].keys() == states[1].keys()
    for index in states[0]:
        for name, value in states[0][index].items():
            assert torch.equal(value, states[1][index][name]), name


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("event", [{}, {"spare": (2, 3)}, {"skip": (1, 4)}])
def test_the_same_steps(options, event, device):
    ours, theirs = pair(options, device)
    for net, optimizer in (ours, theirs):
        train(net, optimizer, 6, **event)
    same(ours, theirs)


@pytest.mark.parametrize("direction", [0, 1])
def test_states_go_over_to_the_other(direction, device):
    one, other = pair({}, device)[:: 1 if direction else -1]
    train(*one, 3)
    other[0].load_state_dict(one[0].state_dict())
    other[1].load_state_dict(copy.deepcopy(one[1].state_dict()))
    for net, optimizer in (one, other):
        train(net, optimizer, 3, start=3)
    same(one, other)


def test_weights_that_were_moved_to_other_memory_still_train(device):
    ours, theirs = pair({}, device)
    for net, optimizer in (ours, theirs):
        train(net, optimizer, 2)
        for parameter in net.parameters():
            parameter.data = parameter.data.clone()
        train(net, optimizer, 2, start=2)
    same(ours, theirs)


def test_nothing_to_move():
    Adam([nn.Parameter(torch.ones(2))], lr=1e-2).step()


def test_nothing_to_move_is_no_step():
    weight = nn.Parameter(torch.ones(2))
    optimizer = Adam([weight], lr=1e-2)
    optimizer.move([], [])
    assert torch.equal(weight, torch.ones(2)) and not optimizer.state


def test_a_state_that_is_loaded_again_replaces_the_one_at_work():
    weight, ends = nn.Parameter(torch.ones(3)), []
    optimizer = Adam([weight], lr=0.1)
    for grad in (1.0, -2.0):
        weight.grad = torch.full((3,), grad)
        optimizer.step()
    kept, before = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    for _ in range(2):
        optimizer.load_state_dict(copy.deepcopy(kept))
        weight.data.copy_(before)
        for grad in (0.5, 3.0):
            weight.grad = torch.full((3,), grad)
            optimizer.step()
        ends.append(weight.detach().clone())
    assert torch.equal(*ends)
