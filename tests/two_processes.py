"""What two processes do together, scenario by scenario; one process does the same as the oracle.

Noise is part of the data, so that numbers can be compared to the last digits.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import pyro_vae as pv

DIM, LATENT = 4, 2


class Known(nn.Module):
    """A Bayesian linear decoder, a linear encoder, and noise that comes with the data."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.gain = nn.Parameter(0.3 * normal(DIM, LATENT))
        self.log_scale = nn.Parameter(torch.full((LATENT,), -0.5, dtype=torch.float64))
        self.weight_loc = nn.Parameter(0.3 * normal(LATENT, DIM))
        self.weight_log_scale = nn.Parameter(normal(LATENT, DIM) - 2)
        self.register_buffer("noise", torch.full((LATENT, DIM), 0.7, dtype=torch.float64))

    def model(self, x: Tensor, eps: Tensor) -> None:
        prior = dist.Normal(x.new_zeros(LATENT, DIM), x.new_ones(()))
        weight = pyro.sample("weight", prior.to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), x.new_ones(())).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, x.new_ones(())).to_event(1), obs=x)

    def guide(self, x: Tensor, eps: Tensor) -> None:
        scale = self.weight_log_scale.exp()
        weight = self.weight_loc + scale * self.noise
        log_q = dist.Normal(self.weight_loc, scale).to_event(2).log_prob(weight)
        pyro.sample("weight", dist.Delta(weight, log_density=log_q, event_dim=2))
        with pyro.plate("data", len(x)):
            q = dist.Normal(x @ self.gain, self.log_scale.exp()).to_event(1)
            z = x @ self.gain + self.log_scale.exp() * eps
            pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z), event_dim=1))


class Normed(nn.Module):
    """Batch norm of the data in the encoder; what it learns of them is in buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode = nn.Sequential(nn.BatchNorm1d(DIM), nn.Linear(DIM, LATENT)).double()
        self.decode = nn.Linear(LATENT, DIM).double()
        self.register_buffer("third", torch.full((3,), 1 / 3, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), x.new_ones(())).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), x.new_ones(())).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), self.third[0]).to_event(1))


class Subsampling(Known):
    """It draws its own minibatch."""

    def model(self, x: Tensor, eps: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), x.new_ones(())).to_event(1))
            loc = z @ self.weight_loc
            pyro.sample("x", dist.Normal(loc, x.new_ones(())).to_event(1), obs=x[rows])

    def guide(self, x: Tensor, eps: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            q = dist.Normal(x[rows] @ self.gain, self.log_scale.exp())
            pyro.sample("z", q.to_event(1))


def data(rows: int) -> tuple[Tensor, Tensor]:
    """Return data and noise, one row per datum."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
    return x, torch.randn(rows, LATENT, generator=generator, dtype=torch.float64)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer under which a wrong scale of the gradient shows."""
    return torch.optim.SGD(parameters, lr=0.02)


def frozen(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer that moves nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


def numbers(run: Any, program: Any) -> dict[str, Any]:
    """Return a run's history and weights as JSON holds them, to the last bit."""
    history = {k: v.tolist() for k, v in run.history.items() if k != "seconds"}
    state = {k: v.tolist() for k, v in pv.Program.of(program).state_dict().items()}
    return {"history": history, "state": state, "steps": run.steps, "best": run.best_epoch}


def fit(program: Any, batch: Any, **options: Any) -> dict[str, Any]:
    """Train and return the numbers."""
    options = {"epochs": 2, "batch_size": 8, "optimizer": sgd, "device": "cpu", **options}
    return numbers(pv.fit(program, batch, progress=False, **options), program)


def exact(
    compile: Any, rows: int | None, loader: DataLoader | None = None, **options: Any
) -> dict[str, Any]:
    """Train the program whose noise is data (in a loader without rows), and keep its gradients."""
    grads: list[Any] = []
    program = Known()

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = sgd(parameters)
        made.register_step_pre_hook(
            lambda *_: grads.append({n: p.grad.tolist() for n, p in program.named_parameters()})
        )
        return made

    options = {"valid": data(13), "compile": compile, "optimizer": optimizer, **options}
    loader = loader or DataLoader(TensorDataset(*data(11)), batch_size=11)
    batch = data(rows) if rows else loader
    return {**fit(program, batch, **options), "grads": grads}


def seen(loader: DataLoader) -> list[list[float]]:
    """Return the first number of each row that this process trains on, epoch by epoch."""
    rows: list[list[float]] = [[]]
    program = Known().eval()

    def look(batch: Any) -> Any:
        if program.training:  # in a step
            rows[-1].extend(batch[0][:, 0].tolist())
        return batch

    end = [lambda _: rows.append([])]
    fit(program, loader, transform=look, optimizer=frozen, callbacks=end)
    return [sorted(epoch) for epoch in rows[:-1]]


def noise() -> list[float]:
    """Return the noise that the steps of this process draw."""
    drawn: list[float] = []

    def look(batch: Any) -> Any:
        drawn.append(torch.rand(()).item())
        return batch

    fit(Known(), data(16), transform=look, optimizer=frozen)
    return drawn[2:]  # the first two are looks at the data, before the run


def error(action: Callable[[], Any]) -> str:
    """Return the error of an action, its class first."""
    try:
        action()
    except (Exception, KeyboardInterrupt) as found:
        return f"{type(found).__name__}: {found}"
    return "none"


def diverged(rank: int) -> dict[str, Any]:
    """Poison the rows of one process in the second epoch, and say what came of it.

    In the first each batch is looked at before it trains.
    """
    program, steps = Known(), iter(range(99))

    def poison(batch: Any) -> Any:
        bad = next(steps) == 10 and rank == 1  # one look before the run, eight steps an epoch
        return tuple(leaf * float("inf") if bad else leaf for leaf in batch)

    found = error(lambda: fit(program, data(64), transform=poison))
    return {"error": found, "state": {k: v.tolist() for k, v in program.state_dict().items()}}


DIFFERENT = {
    "lr": [{"optimizer": None, "lr": 0.01}, {"optimizer": None, "lr": 0.02}],
    "optimizer_options[0]": [{"optimizer": torch.optim.Adam}, {"optimizer": torch.optim.AdamW}],
    "lr_schedule.schedule": [
        {"lr_schedule": lambda t: 1 - t},
        {"lr_schedule": lambda t: 1 - t / 2},
    ],
    "beta": [{"beta": 0.5}, {"beta": 0.6}],
    "objective": [{"objective": pv.IWAE(2)}, {"objective": pv.IWAE(3)}],
    "clip_norm": [{"clip_norm": 1.0}, {"clip_norm": None}],
    "valid": [{"valid": None}, {"valid": data(9)}],
    "patience": [{"valid": data(9), "patience": 2}, {"valid": data(9), "patience": 3}],
    "epochs": [{"epochs": 2}, {"epochs": 3}],
}


def different(rank: int) -> dict[str, str]:
    """Return the error of each setting in which the processes differ, and of rows dealt by hand.

    All before a step: one program, which reads its rows once, serves all.
    """
    program = Known()
    found = {
        name: error(lambda options=options: fit(program, data(16), **options[rank]))
        for name, options in DIFFERENT.items()
    }
    half = tuple(leaf[rank::2] for leaf in data(32))
    return {**found, "rows": error(lambda: fit(program, half))}


def failed(rank: int) -> dict[str, Any]:
    """Fail in one process alone, at several places of a run; then train as if nothing had been."""
    steps = iter(range(99))

    def stumble(batch: Any) -> Any:
        if next(steps) == 3 and rank == 1:  # step 0 is the look before the run
            raise KeyError("no such row")
        return batch

    def interrupt(run: Any) -> None:
        if rank == 0:
            raise KeyboardInterrupt

    bad = data(64)
    if rank == 1:
        bad[0][5, 1] = torch.nan
    return {
        "step": error(lambda: fit(Known(), data(64), transform=stumble)),
        "callback": error(lambda: fit(Known(), data(16), callbacks=[interrupt])),
        "argument": error(lambda: fit(Known(), data(16), lr_schedule=-1.0 if rank else 1.0)),
        "data": error(lambda: fit(Known(), bad)),
        "count": error(lambda: fit(Known(), data(16), epochs=1 - rank)),
        "after": exact(False, 23, clip_norm=0.4),
    }


def resumed(folder: Path) -> dict[str, Any]:
    """Train a program with noise of its own in two runs, and in one."""
    torch.manual_seed(3)
    start = pv.models.VAE(DIM, LATENT, (5,), observation=pv.conditionals.Gaussian).double()
    x = data(30)[0]
    programs = [pv.models.VAE(**start.config).double() for _ in range(2)]
    for program in programs:
        program.load_state_dict(start.state_dict())
    straight = fit(programs[0], x, epochs=4, out=folder / "straight", valid=x[:9])
    fit(programs[1], x, epochs=2, out=folder / "parts", valid=x[:9])
    again = fit(programs[1], x, epochs=4, out=folder / "parts", valid=x[:9], resume=True)
    return {
        "straight": straight,
        "resumed": again,
        "loaded": sum(p.sum().item() for p in pv.load(folder / "straight").parameters()),
        "trained": sum(p.sum().item() for p in programs[0].parameters()),
    }


class Level(nn.Module):
    """A global level above a latent of each datum: both draw noise of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w + x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("w", dist.Normal(x.new_ones(()), 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * x, 0.6))


def judged(rank: int) -> dict[str, Any]:
    """Return what verbs answer that several processes share, in passes of 16 or 64 rows."""
    torch.manual_seed(5 + rank)  # the noise is that of the first
    program, x = Level(), data(70)[0][:, 0].contiguous()
    rows = DataLoader(TensorDataset(x), batch_size=16)
    short = pv.AIS(3, chains=2, num_leapfrog=2, pilot=4)
    verbs: dict[str, Callable[[], Tensor]] = {
        "elbo": lambda: pv.elbo(program, x, batch_size=16),
        "log_likelihood": lambda: pv.log_likelihood(program, x, num_particles=9).log_prob,
        "ais": lambda: pv.ais(program, rows, short).log_prob,
        "refine": lambda: pv.refine(
            program, rows, pv.HMC(num_draws=4, warmup=4, chains=2), compile=False
        ).samples["z"],
        "encode": lambda: pv.encode(program, rows, sample=True),  # type: ignore[dict-item,return-value]
        "diagnose": lambda: torch.tensor(pv.diagnose(program, x, batch_size=16).kl["z"]),
    }
    with pv.across_ranks("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains that are too short
        found: dict[str, Any] = {name: verb().tolist() for name, verb in verbs.items()}
        found["again"] = verbs["elbo"]().tolist()
        found["apart"] = error(lambda: pv.elbo(program, x[rank:]))
    return found


def cut(folder: Path) -> dict[str, Any]:
    """End a run within its second epoch and go on with it; beside it, one that is not ended."""
    program = Known()
    fit(program, data(30), out=folder / "cut", max_steps=6)
    again = fit(program, data(30), out=folder / "cut", resume=True)
    return {"straight": fit(Known(), data(30)), "resumed": again}


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """Run everything; the same calls in the same order in each process."""
    found: dict[str, Any] = {
        "eager": exact(False, 23, clip_norm=0.4),
        "trace": exact("trace", 25),
        "cut": cut(folder),
        "verbs": judged(rank),
        "iwae": exact(False, 23, objective=pv.IWAE(2), beta=0.5),
        "bfloat16": exact("trace", 8, epochs=1, reduce_dtype=torch.bfloat16),
        "spread": fit(Known(seed=rank), data(16), optimizer=frozen),
        "normed": fit(Normed(), data(27)[0], optimizer=frozen),
        "dealt": seen(_dealt(rank)),
        "sampler": exact(False, None, sharding(rank, 20), epochs=1, beta=0.5),
        "doubled": error(lambda: fit(Known(), Rows(rank), size=20)),
        "judged apart": fit(Known(), data(16), optimizer=frozen, valid=DataLoader(Rows(rank), 4)),
        "judged": fit(Known(), data(16), optimizer=frozen, valid=DataLoader(Rows(0), 4)),
        "noise": [noise(), noise()],
        "diverged": diverged(rank),
        "resumed": resumed(folder),
        "stopped": fit(Known(), data(16), epochs=9, callbacks=[lambda run: rank == 1]),
        "patience": fit(Known(), data(16), epochs=9, valid=data(9), patience=2, optimizer=frozen),
        "rows differ": error(lambda: fit(Known(), data(16 + rank))),
        "different": different(rank),
        "failed": failed(rank),
        "small batch": error(lambda: fit(Known(), data(16), batch_size=3)),
        "other number": error(lambda: fit(Known(), data(16), devices=3)),
        "dealt valid": error(lambda: fit(Known(), data(16), valid=_dealt(rank))),
        "ragged loader": exact(False, None, epochs=1, beta=0.5),
        "subsampling": error(lambda: fit(Subsampling(), data(16))),
    }
    return found


class Rows(IterableDataset):
    """All rows, in an order of each process's own."""

    def __init__(self, rank: int) -> None:
        self.order = range(20)[:: 1 - 2 * rank]

    def __iter__(self) -> Any:
        return ((x[i], eps[i]) for x, eps in [data(20)] for i in self.order)


class Shard(IterableDataset):
    """The rows of one process, as a reader of many files gives them; N is of all."""

    def __init__(self, total: int, *places: int) -> None:
        self.total, self.places = total, places

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Any:
        yield from zip(*(leaf[slice(*self.places)] for leaf in data(self.total)), strict=True)


def sharding(rank: int, rows: int) -> DataLoader:
    """Return a loader whose own sampler deals the rows out: each process sees every other one."""
    return DataLoader(TensorDataset(*data(rows)), batch_size=4, sampler=range(rank, rows, 2))


def _dealt(rank: int) -> DataLoader:
    rows = TensorDataset(*data(24))
    return DataLoader(rows, 4, sampler=DistributedSampler(rows, num_replicas=2, rank=rank))
