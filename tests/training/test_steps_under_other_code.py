"""What other code does in the midst of an epoch, and what ends a step in its midst."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

import pyro_vae as pv
from pyro_vae.errors import ConfigError, TrainingDiverged
from pyro_vae.inference.graphs.compiled_loss import Mode
from pyro_vae.inference.objectives.objective import Update

ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """x ~ N(f(z), 1); a subclass says what is odd about f."""

    def __init__(self) -> None:
        super().__init__()
        self.dec, self.enc = nn.Linear(2, 3), nn.Linear(3, 2)
        self.more()

    def more(self) -> None:
        """Make what else there is."""

    def mean(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return self.dec(z)

    def model(self, x: Tensor) -> None:
        """z ~ N(0, 1), x ~ N(f(z), 1)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.mean(z).reshape(-1, *(1,) * (x.dim() - 2), 3).expand(x.shape)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor) -> None:
        """z ~ N(V x, 1)."""
        with pyro.plate("data", len(x)):
            rows = x.flatten(1, -2).sum(1) if x.dim() > 2 else x
            pyro.sample("z", dist.Normal(self.enc(rows), 1.0).to_event(1))


def fit(program: Net, mode: Mode, data: Any = ROWS, **options: Any) -> pv.Run:
    torch.manual_seed(0)
    options = {"epochs": 2, "batch_size": 8, "progress": False, "device": "cpu", **options}
    return pv.fit(program, data, compile=mode, **options)


class Dropped(Net):
    def more(self) -> None:
        self.off = nn.Dropout(0.5)

    def mean(self, z: Tensor) -> Tensor:
        return self.dec(self.off(z))


class Cooled(Net):
    heat = 1.0

    def mean(self, z: Tensor) -> Tensor:
        return self.dec(z) * self.heat


def goes_off(program: Any, step: int) -> None:
    if step == 4:
        program.off.eval()


def cools(program: Any, step: int) -> None:
    program.heat = 1 - 1e-9 * step  # less than the comparison with the program shows


@pytest.mark.parametrize(("kind", "change"), [(Dropped, goes_off), (Cooled, cools)])
def test_what_a_transform_changes_counts_at_once(
    kind: type[Net], change: Callable[[Any, int], None]
) -> None:
    """By large weights, so that a step under an old value shows in them."""
    seen = []
    for mode in (False, "auto"):
        torch.manual_seed(0)
        program, steps = kind().double(), iter(range(1000))

        def transform(batch: Tensor, program: Net = program, steps: Any = steps) -> Tensor:
            change(program, next(steps))
            return batch

        fit(program, mode, data=1e3 * ROWS.double(), transform=transform, epochs=12)
        seen.append(program.dec.weight.detach().clone())
    torch.testing.assert_close(*seen, rtol=1e-12, atol=0)


class Counted(Net):
    def more(self) -> None:
        self.register_buffer("runs", torch.zeros(()))

    def mean(self, z: Tensor) -> Tensor:
        if self.training:
            self.runs = self.runs + 1  # another tensor each time
        return self.dec(z)


def test_a_step_that_diverges_leaves_a_buffer_that_is_replaced_as_it_was() -> None:
    torch.manual_seed(0)
    program, steps = Counted(), iter(range(100))
    counts = []

    def transform(batch: Tensor) -> Tensor:
        counts.append(float(program.runs))
        return batch * torch.nan if next(steps) == 8 else batch

    with pytest.raises(TrainingDiverged):
        fit(program, False, transform=transform)
    assert float(program.runs) == counts[-1] == 7.0  # the first is a look at a batch


def test_a_run_asked_for_without_gradients_has_them() -> None:
    seen = []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        program = Net()
        with context():
            fit(program, False)
        seen.append(program.dec.weight.detach().clone())
    assert seen[0].equal(seen[1]) and seen[0].equal(seen[2])


def test_progress_ends_at_one_where_a_loader_yields_more_batches_than_it_says() -> None:
    """A last batch of one row is joined to the one before, but these two do not fit together."""
    seen = []
    sequences = [torch.zeros(length, 3) for length in (2, 2, 2, 2, 3)]
    loader = DataLoader(sequences, batch_size=2, collate_fn=torch.stack)
    fit(Net(), False, data=loader, lr_schedule=lambda t: seen.append(t) or 1.0)
    assert len(seen) == 6 and max(seen) == 1.0


class Sparse(Net):
    def more(self) -> None:
        self.table = nn.Embedding(2, 3, sparse=True)

    def mean(self, z: Tensor) -> Tensor:
        return self.dec(z) + self.table((z[:, 0] > 0).long())


class Complex(Net):
    def more(self) -> None:
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def mean(self, z: Tensor) -> Tensor:
        return self.dec(z) * self.scale.abs()


@pytest.mark.parametrize(
    ("kind", "got", "cure"),
    [(Sparse, "a sparse gradient", torch.optim.SGD), (Complex, "a complex", torch.optim.Adam)],
)
def test_what_adams_kernel_cannot_move_is_refused_with_the_cure(
    kind: type[Net], got: str, cure: type[torch.optim.Optimizer]
) -> None:
    with pytest.raises(ConfigError, match=f"optimizer: got {got}.*torch.optim.{cure.__name__}"):
        fit(kind(), False)
    fit(kind(), False, optimizer=cure)


def test_sparse_gradients_are_named_where_they_keep_a_program_from_a_graph() -> None:
    with pytest.warns(UserWarning, match=r"runs eagerly: .*sparse gradients \(nn.Embedding"):
        fit(Sparse(), "trace", optimizer=torch.optim.SGD)


class NeverDue(pv.ELBO):
    def updates(self, program: pv.Program) -> list[Update]:
        """Return an update that is never made."""
        return [Update(self.per_datum, tuple(program.parameters()), due=lambda: False)]


def test_an_objective_that_makes_no_update_is_told() -> None:
    with pytest.raises(ConfigError, match="objective: none of its updates is due"):
        fit(Net(), False, objective=NeverDue())


@pytest.mark.parametrize("place", ["loader", "sampler"])
def test_a_loader_with_a_generator_of_its_own_goes_on_in_its_order(
    place: str, tmp_path: Path
) -> None:
    def run(epochs: int, folder: str, **options: Any) -> list[float]:
        own = torch.Generator().manual_seed(3)
        order: dict[str, Any] = {"shuffle": True, "generator": own}
        if place == "sampler":
            order = {"sampler": RandomSampler(ROWS, generator=own)}
        loader = DataLoader(ROWS, batch_size=8, **order)
        done = fit(Net(), False, data=loader, epochs=epochs, out=tmp_path / folder, **options)
        return done.history["loss"].tolist()

    whole = run(3, "whole")
    run(2, "parts")
    assert run(3, "parts", resume=True) == whole
