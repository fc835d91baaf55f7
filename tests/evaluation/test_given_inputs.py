"""Generation for inputs that are given: lengths beyond those seen, masks, None to be drawn."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError


class Walk(nn.Module):
    """A random walk of one number a step, as long as x; its guide reads the first step or all."""

    def __init__(self, steps):
        super().__init__()
        self.code = nn.Linear(steps, 1)

    def model(self, x, ends):
        with pyro.plate("data", len(x)):
            level = pyro.sample("z", dist.Normal(0.0, 1.0))
            for t in range(x.shape[1]):
                seen = dist.Normal(level, 0.01).mask(t < ends)
                level = pyro.sample(f"x_{t}", seen, obs=x[:, t])

    def guide(self, x, ends):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(self.code(x if self.code.in_features > 1 else x[:, :1])[:, 0], 1.0)
            )


@pytest.mark.parametrize(
    "ends", [6, [6, 2, 5], torch.tensor([6, 1, 1])], ids=["int", "list", "rows"]
)
def test_lengths_beyond_those_of_the_data_seen_are_as_many_steps(ends):
    program, fixed = Walk(1), Walk(4)
    for each in (program, fixed):
        pv.elbo(each, (torch.randn(5, 4), torch.tensor([4, 1, 2, 3, 2])))
    drawn = pv.generate(program, 3, given={"ends": ends})
    assert sorted(drawn) == [f"x_{t}" for t in range(6)]
    assert (drawn["x_5"] - drawn["x_0"]).abs()[0] < 1
    with pytest.raises(DataError, match=r"got 2\.5 as 'ends', expected a whole number"):
        pv.generate(program, 3, given={"ends": 2.5})
    with pytest.raises(DataError, match="given has lengths beyond the steps of the data"):
        pv.generate(fixed, 3, given={"ends": ends})


def test_classes_beyond_the_channels_of_images_seen_are_no_lengths():
    """Labels 0 and 1 of images of one channel, and a label 3."""

    def model(x, label):
        with pyro.plate("data", len(x)):
            mean = label.float()[:, None, None, None].expand(-1, 1, 2, 2)
            pyro.sample("x", dist.Normal(mean, 0.01).to_event(3), obs=x)

    program = pv.Program(model, lambda x, label: None)
    pv.elbo(program, (torch.ones(6, 1, 2, 2), torch.tensor([1, 0, 1, 1, 1, 1])))
    assert (pv.generate(program, 1, given={"label": 3}) - 3).abs().max() < 0.1


@pytest.mark.parametrize("most", [3, 4])
@pytest.mark.parametrize("silent", [[], [0], [0, 1]])
@pytest.mark.parametrize("kind", ["covariate", "right", "left"])
def test_a_number_is_no_length_where_it_takes_out_no_step(kind, silent, most):
    """A column that never counts passed for a step that is taken out: six columns were drawn."""

    def model(x, length):
        steps, by_row = torch.arange(x.shape[1]), length[:, None]
        inside = {"right": steps < by_row, "left": x.shape[1] - steps <= by_row}
        kept = inside.get(kind, by_row > 0) & ~torch.isin(steps, torch.tensor(silent))
        mean = by_row.float() if kind == "covariate" else torch.zeros(())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean.expand(x.shape), 0.01).mask(kept).to_event(1), obs=x)

    torch.manual_seed(0)
    program = pv.Program(model, lambda x, length: None)
    pv.elbo(program, (torch.randn(8, 4), torch.tensor([1, 2, 3, 4] * 2).clamp(max=most)))
    wide = 4 if kind == "covariate" else 6
    assert pv.generate(program, 3, given={"length": 6}).shape == (3, wide)


@pytest.mark.parametrize("start", ["token", "zero"])
def test_left_padded_lengths_whose_first_steps_are_alike_are_lengths(start):
    """A later step passed for the first one, and each step of padding cost a run."""
    runs = []

    def model(x, length):
        runs.append(len(x))
        kept = x.shape[1] - torch.arange(x.shape[1]) <= length[:, None]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(x.shape), 1.0).mask(kept).to_event(1), obs=x)

    torch.manual_seed(0)
    length = torch.tensor([3, 4] * 100 if start == "token" else [3, 4, *[3] * 6])
    x = torch.randn(len(length), 40)
    x[torch.arange(len(x)), 40 - length] = 1.0 if start == "token" else 0.0
    x = x * (40 - torch.arange(40) <= length[:, None])
    program = pv.Program(model, lambda x, length: None)
    pv.elbo(program, (x, length))
    runs.clear()
    assert pv.generate(program, 3, given={"length": 42}).shape == (3, 42)
    assert len(runs) < 20


def of_age(x, age, kind):
    """A covariate of all steps, or of those behind the first ones; a label may stand beside."""
    seen = x[:, 2:] if kind == "behind" else x
    if kind == "label":
        pyro.sample("y", dist.Normal(0.0, 1.0).expand([len(x)]).mask(age > 2), obs=x[:, -1] * 0)
    mean = 0.1 * age[:, None]
    if kind == "words":
        logits = (mean[..., None] * torch.arange(7.0)).expand(-1, 6, -1)  # a head of six steps
        pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x.long())
    elif kind == "steps":
        for t in range(1, x.shape[1]):
            pyro.sample(f"x_{t}", dist.Normal(mean[:, 0], 1.0), obs=x[:, t])
    elif kind == "second":  # of two numbers at each step, asked of the older ones
        part = dist.Normal(mean[..., None], 1.0).expand(x.shape)
        older = torch.stack([age > 0, age > 2], -1)[:, None]
        pyro.sample("x", part.mask(older).to_event(2), obs=x)
    else:
        pyro.sample("x", dist.Normal(mean.expand(seen.shape), 1.0).to_event(1), obs=seen)


@pytest.mark.parametrize("alike", [[], [0], [0, 1, 5]])
@pytest.mark.parametrize("kind", ["all", "behind", "label", "second", "words", "steps"])
def test_a_number_is_no_length_beside_steps_that_are_alike_or_not_seen(kind, alike):
    """A start token in each row moved nothing, and stood for a step that is taken out."""

    def model(x, age):
        with pyro.plate("data", len(x)):
            of_age(x, age, kind)

    torch.manual_seed(0)
    x = torch.randn(8, 6) if kind != "words" else torch.randint(1, 7, (8, 6)).float()
    x[:, alike] = 0.0
    x = torch.stack([x, -x], -1) if kind == "second" else x
    program = pv.Program(model, lambda x, age: None)
    pv.elbo(program, (x, torch.tensor([3, 5, 2, 6, 4, 1, 3, 2])))
    drawn = pv.generate(program, 3, given={"age": 9})
    if kind == "steps":
        assert len(drawn) == 5
    else:
        drawn = drawn["x"] if kind == "label" else drawn
        assert drawn.shape[:2] == (3, 4 if kind == "behind" else 6)


def test_steps_that_are_padding_in_all_rows_may_be_those_behind_a_length():
    """They are alike as an end token is, and the model does not mask them."""

    def model(x, length):
        with pyro.plate("data", len(x)):
            mean = 0.1 * length[:, None].expand(x.shape)
            pyro.sample("x", dist.Normal(mean, 1.0).mask(x != 0).to_event(1), obs=x)

    torch.manual_seed(0)
    length = torch.tensor([3, 4, 2, 1, 4])
    program = pv.Program(model, lambda x, length: None)
    pv.elbo(program, (torch.randn(5, 6) * (torch.arange(6) < length[:, None]), length))
    assert pv.generate(program, 3, given={"length": 9}).shape == (3, 9)


def counting(x, mask, ends):
    """A count that goes on at the steps inside the mask alone."""
    inside = mask.flatten(2)[..., 0] if mask.dim() > 2 else mask
    with pyro.plate("data", len(x)):
        count = torch.zeros(len(x))
        for t in range(x.shape[1]):
            count = torch.where(inside[:, t] > 0, count + 1, count)
            pyro.sample(f"x_{t}", dist.Normal(count, 0.01), obs=x[:, t])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("ends", [[6, 6, 3], [8, 1, 2]])
def test_a_mask_that_is_left_out_follows_the_lengths_that_are_given(ends, wide):
    lengths, ends = torch.tensor([2, 3, 4, 5] * 5), torch.tensor(ends)
    program, mask = pv.Program(counting, lambda *_: None), torch.arange(6) < lengths[:, None]
    mask = mask[..., None].expand(-1, -1, 2).float() if wide else mask
    pv.elbo(program, (torch.rand(20, 6), mask, lengths))
    drawn = pv.generate(program, 3, given={"ends": ends})
    found = torch.stack([drawn[f"x_{t}"] for t in range(len(drawn))], 1)
    steps = torch.arange(1, max(6, int(ends.max())) + 1)
    assert (found - torch.minimum(steps, ends[:, None])).abs().max() < 0.1


def test_a_mask_of_its_own_beside_lengths_is_asked_for():
    lengths, mask = torch.tensor([2, 3, 4, 6] * 5), torch.eye(6).bool()[torch.arange(20) % 6]
    program = pv.Program(counting, lambda *_: None)
    pv.elbo(program, (torch.ones(20, 6), mask, lengths))  # x is 0 or 1 too, and drawn
    with pytest.raises(DataError, match=r"has 'ends' and lacks 'mask'.*give 'mask' too"):
        pv.generate(program, 20, given={"ends": lengths})
    assert len(pv.generate(program, 20, given={"ends": lengths, "mask": mask})) == 6


class Line(PyroModule):
    """A regression as in Pyro's tutorial: y is None where it is drawn."""

    def __init__(self):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x, y=None):
        mean = self.slope * x
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 0.01), obs=y)
        return mean


def test_what_is_none_is_drawn_for_new_inputs_of_a_module():
    def guide(x, y=None):
        pyro.sample("slope", dist.Delta(torch.tensor(3.0)))

    program, x = pv.Program(Line(), guide), torch.linspace(1, 2, 6)
    new = x[:4]
    with pytest.raises(ProgramError, match="observes none; give 'y' too"):
        pv.elbo(program, (x, None))
    with pytest.raises(ProgramError, match=r"give 'y' too.*; or show the program what it draws"):
        pv.generate(program, 4, given=(new, None))
    pv.elbo(program, (x, 3 * x))
    for given in [(new, None), [new, None], (new,), new, {"x": new}, {"x": new, "y": None}]:
        assert (pv.generate(program, 4, given=given) - 3 * new).abs().max() < 0.1


def test_an_input_that_is_none_is_asked_for_and_none_alone_is_nothing_given():
    def guide(x, y):  # it has no option of leaving y out
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(y, 1.0))

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.01))
            pyro.sample("y", dist.Normal(3 * x + z, 0.01), obs=y)

    program, x = pv.Program(model, guide), torch.linspace(1, 2, 6)
    with pytest.raises(DataError, match="show the program what it draws"):
        pv.generate(program, 6, given=(x, None))
    pv.elbo(program, (x, 3 * x))
    assert (pv.generate(program, 6, given=(x, None)) - 3 * x).abs().max() < 0.2
    for given in ({"x": None}, {"x": None, "y": x}, (None, x)):
        with pytest.raises(DataError, match="got None as 'x', which is an input of the model"):
            pv.generate(program, 6, given=given)
    assert len(pv.generate(program, 6, given={"y": None})) == 6
    assert len(pv.generate(pv.models.VAE(4, 1), 6, given={"x": None})) == 6


class Levels(nn.Module):
    """Levels at each step, masked by their ends, which may move them as well."""

    def __init__(self, mask, moves=True, whole=False):
        super().__init__()
        self.mask, self.moves, self.whole = mask, moves, whole
        self.weight = nn.Parameter(torch.tensor(1.0))

    def model(self, x, ends):
        mask = (lambda *_: True) if self.mask is None else self.mask
        with pyro.plate("data", len(x)):
            level = pyro.sample("z", dist.Normal(0.0, 1.0))
            level = level + self.weight * ends if self.moves else level
            if self.whole:
                seen = dist.Normal(level[..., None].expand(-1, x.shape[1]), 0.01)
                inside = mask(torch.arange(x.shape[1]), ends[:, None])
                pyro.sample("x", seen.mask(inside).to_event(1), obs=x)
                return
            for t in range(x.shape[1]):
                inside = mask(torch.tensor(t), ends)
                pyro.sample(f"x_{t}", dist.Normal(level, 0.01).mask(inside), obs=x[:, t])

    def guide(self, x, ends):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] + 0.1 * ends, 1.0))


class Named(Levels):
    def model(self, x, length):
        super().model(x, length)

    def guide(self, x, length):
        super().guide(x, length)


@pytest.mark.parametrize(("kind", "name"), [(Levels, "ends"), (Named, "length")])
@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"mask": torch.lt}, 9),
        ({"mask": torch.le}, 9),
        ({"mask": lambda t, ends: t < ends - 1}, 9),
        ({"mask": torch.lt, "whole": True}, 9),
        ({"mask": lambda t, ends: t >= 5 - ends}, 9),  # padded on the left
        ({"mask": None, "moves": False}, 9),  # the guide alone reads it
        ({"mask": None}, 5),
        ({"mask": lambda t, ends: t < 3}, 9),  # nothing is seen at the last step
    ],
)
def test_a_length_is_what_takes_out_the_steps_behind_it(kind, name, arguments, steps):
    """A covariate of whole numbers from 1 to as many as there are columns is none."""
    program, ends = kind(**arguments), torch.tensor([5, 1, 3, 2, 4] * 4)
    pv.elbo(program, (torch.randn(20, 5) * (torch.arange(5) < ends[:, None]), ends))
    drawn = pv.generate(program, 3, given={name: 9})
    assert (drawn.shape[1] if isinstance(drawn, torch.Tensor) else len(drawn)) == steps


def test_an_input_of_each_step_is_asked_for_beside_lengths_beyond_those_seen():
    def model(x, slope, ends):
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                seen = dist.Normal(slope[:, t], 0.01).mask(t < ends)
                pyro.sample(f"x_{t}", seen, obs=x[:, t])

    program, ends = pv.Program(model, lambda *_: None), torch.tensor([4, 1, 2, 3, 2])
    pv.elbo(program, (torch.randn(5, 4), torch.randn(5, 4), ends))
    assert len(pv.generate(program, 5, given={"ends": 3})) == 4
    with pytest.raises(DataError, match=r"lacks 'slope', .* give 'slope' too"):
        pv.generate(program, 5, given={"ends": 6})
    drawn = pv.generate(program, 5, given={"ends": 6, "slope": torch.full((5, 6), 7.0)})
    assert len(drawn) == 6 and (drawn["x_5"] - 7).abs().max() < 0.1
