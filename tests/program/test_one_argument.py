"""Functions of one argument that is a dict or a pair, as a loader yields them."""

from collections import namedtuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError

N = 11
X = torch.linspace(-1.0, 2.0, 2 * N).reshape(N, 2) ** 2
Y = torch.arange(N) % 3
ITEMS = [{"image": x, "label": y} for x, y in zip(X, Y, strict=True)]


class Plain(nn.Module):
    """Of two arguments."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Linear(2, 2), nn.Linear(4, 2)

    def model(self, image, label):
        with pyro.plate("rows", len(image)):
            z = pyro.sample("z", dist.Normal(image.new_zeros(len(image), 1), 1.0).to_event(1))
            hot = nn.functional.one_hot(label, 3).to(z)
            loc = self.decode(torch.cat([z, hot], -1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=image)

    def guide(self, image, label):
        with pyro.plate("rows", len(image)):
            loc, scale = self.encode(image).split(1, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class OfDict(Plain):
    def model(self, batch):
        super().model(batch["image"], batch["label"])

    def guide(self, batch):
        super().guide(batch["image"], batch["label"])


class OfPair(Plain):
    def model(self, batch):
        image, label = batch
        super().model(image, label)

    def guide(self, batch):
        super().guide(*batch)


FORMS = {
    "dict": (OfDict, {"image": X, "label": Y}, lambda: DataLoader(ITEMS, batch_size=4)),
    "pair": (OfPair, (X, Y), lambda: DataLoader(TensorDataset(X, Y), batch_size=4)),
}


def weights_of(program, data):
    pv.fit(program, data, epochs=2, batch_size=4, lr=0.05, progress=False, compile=False)
    return torch.cat([p.detach().flatten() for p in program.parameters()])


@pytest.mark.parametrize("form", FORMS)
def test_they_are_given_the_batch_whole(form):
    build, tensors, loader = FORMS[form]
    torch.testing.assert_close(weights_of(build(), tensors), weights_of(Plain(), (X, Y)))
    plain = DataLoader(TensorDataset(X, Y), batch_size=4)
    torch.testing.assert_close(weights_of(build(), loader()), weights_of(Plain(), plain))
    program, plain = build(), Plain()
    torch.manual_seed(1)
    bound = pv.elbo(program, tensors)
    torch.manual_seed(1)
    torch.testing.assert_close(bound, pv.elbo(plain, (X, Y)))
    assert pv.log_likelihood(program, tensors, num_particles=3).log_prob.shape == (N,)
    assert pv.encode(program, tensors).shape == (N, 1)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("opened", [False, True])
def test_one_tensor_in_a_container_is_what_the_functions_take_it_for(opened, width):
    """Of a batch of 4 rows; a first row of 4 numbers looks like 4 rows of one."""
    x = torch.linspace(-1.0, 2.0, 12 * width).reshape(12, width) ** 2

    def model(batch):
        w = pyro.param("w", torch.zeros(()))
        rows = batch[0] if opened else batch
        with pyro.plate("rows", len(rows)):
            event = dist.Normal(w, 1.0).expand(rows.shape[1:])
            pyro.sample("x", event.to_event(rows.dim() - 1), obs=rows)

    program = pv.Program(model, lambda batch: None)
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-12), "progress": False}
    run = pv.fit(program, DataLoader(TensorDataset(x), batch_size=4), epochs=1, **still)
    exact = -dist.Normal(0.0, 1.0).log_prob(x).sum(-1).mean().item()
    assert run.history["loss"][0] == pytest.approx(exact, rel=1e-5)


class OfNames(Plain):
    def model(self, batch):
        super().model(batch.image, batch.label)

    def guide(self, batch):
        super().guide(batch.image, batch.label)


Named = namedtuple("Named", ["image", "label"])


@pytest.mark.parametrize("kind", [tuple, list, Named._make])
@pytest.mark.parametrize("size", [4, 6])  # of eleven rows: three batches, or two, as a pair has
def test_a_list_of_pairs_is_one_of_batches(size, kind):
    batches = [kind(rows) for rows in zip(X.split(size), Y.split(size), strict=True)]
    torch.manual_seed(1)
    bound = pv.elbo(OfPair() if kind in (tuple, list) else OfNames(), batches)
    torch.manual_seed(1)
    torch.testing.assert_close(bound, pv.elbo(Plain(), (X, Y)))


def test_a_program_of_the_library_takes_its_one_array_in_any_container():
    program, found = pv.models.VAE(2, 1, observation=pv.conditionals.Gaussian), []
    batches = X.split(4)
    forms = (X, (X,), (X, None), {"x": X}, [[x] for x in batches], [{"x": x} for x in batches])
    for data in forms:
        torch.manual_seed(1)
        found.append(pv.elbo(program, data))
    assert all(torch.equal(found[0], each) for each in found)
    with pytest.raises(DataError, match=r"got \['y'\], expected"):
        pv.elbo(program, {"y": X})


@pytest.mark.parametrize("rows", [(4, 5), (4, 4)])
def test_a_constant_beside_batches_of_a_list_is_no_row(rows):
    """Three scales beside four rows: what is another in each batch are the rows."""

    class Scaled(Plain):
        def model(self, image, scale):
            with pyro.plate("rows", len(image)):
                z = pyro.sample("z", dist.Normal(0.0, scale).to_event(1))
                pyro.sample("x", dist.Normal(z[..., :2], 1.0).to_event(1), obs=image)

        def guide(self, image, scale):
            with pyro.plate("rows", len(image)):
                loc = nn.functional.pad(self.encode(image), (0, 1))
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    scale, x = torch.tensor([0.5, 1.0, 2.0]), X[: sum(rows)]
    found = []
    for data in ((x, scale), [(part, scale.clone()) for part in x.split(rows)]):
        torch.manual_seed(1)
        found.append(pv.elbo(Scaled(), data))
    torch.testing.assert_close(*found)


def test_a_list_of_tensors_is_one_argument_or_refused():
    class OfViews(OfPair):
        def model(self, views):
            super().model((views[0] + views[1], Y))

        def guide(self, views):
            super().guide((views[0] + views[1], Y))

    torch.manual_seed(1)
    bound = pv.elbo(OfViews(), [X, 2 * X])
    torch.manual_seed(1)
    torch.testing.assert_close(bound, pv.elbo(Plain(), (3 * X, Y)))
    with pytest.raises(DataError, match=r"torch.cat\(data\) if these are batches"):
        pv.elbo(OfPair(), list(X.split(4)))


def test_labels_that_no_function_takes_are_told_as_before():
    class OfImages(Plain):
        def model(self, image):
            super().model(image, Y[: len(image)])

        def guide(self, image):
            super().guide(image, None)

    with pytest.raises(DataError, match=r"takes|arguments"):
        pv.fit(OfImages(), DataLoader(TensorDataset(X, Y), batch_size=4), epochs=1)


@pytest.mark.parametrize("name", ["data", "rows"])
def test_a_batch_that_is_opened_by_its_place_is_whole_whatever_the_plate_is_called(name):
    """``batch[0]`` of the array itself would be its first row."""
    x = torch.randn(6, 4)

    def model(batch):
        rows = batch[0]
        with pyro.plate(name, len(rows)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=rows.reshape(len(rows), -1).sum(-1))

    program = pv.Program(model, lambda batch: None)
    exact = dist.Normal(0.0, 1.0).log_prob(x.sum(-1))
    assert torch.allclose(pv.elbo(program, (x,)), exact)
