"""What moves in the rows of one process alone, or from some moment on: parameters and buffers."""

import math
import warnings
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from forked import connected, forks
from torch import nn
from two_processes import error

import pyro_vae as pv

X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X[:, 0] = X[:, 0].abs() * torch.tensor([-1.0] * 8 + [1.0] * 8)  # a half for each process


class Switched(nn.Module):
    """A decoder for the rows of each sign, and one for none, each used where there are such rows.

    Arguments:
        last: Outputs of the second, which are another number or the same.
        late: Whether rows above zero make a parameter besides.
    """

    def __init__(self, last: int = 3, late: bool = False) -> None:
        super().__init__()
        self.late = late
        self.gains = nn.ParameterList(
            torch.full(shape, 0.3, dtype=torch.float64) for shape in ((3,), (last,), (2,))
        )

    def loc(self, z: torch.Tensor, rows: torch.Tensor, place: int) -> torch.Tensor:
        gain = self.gains[place] if rows.any() else z.new_zeros(1)
        return torch.where(rows[:, None], gain.mean() * z, 0.0)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            sides = (x[:, 0] < 0, x[:, 0] > 0, x[:, 0] == 0)
            loc = sum(self.loc(z, rows, place) for place, rows in enumerate(sides))
            if self.late and self.training and sides[1].any():
                loc = loc + pyro.param("late", torch.zeros(3, dtype=torch.float64))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x / 2, event_dim=1))


def trained(last: int) -> list[list[float]]:
    """Return the parameters after steps with momentum, which a gradient of zero would move."""
    program = Switched(last)
    pv.fit(
        program,
        X,
        batch_size=16,
        epochs=3,
        compile=False,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, 0.1),
        device="cpu",
        progress=False,
    )
    return [gain.tolist() for gain in program.gains]


class Counting(Switched):
    """It follows the mean of its rows from the second step of the second epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.steps = 0

    def model(self, x: torch.Tensor) -> None:
        self.steps += self.training
        if self.training and self.steps > 6:
            self.mean += 0.1 * (x.mean(0) - self.mean)
        super().model(x)


def mean() -> list[float]:
    """Return the running mean after three epochs of four steps."""
    program = Counting()
    options = {"batch_size": 4, "epochs": 3, "compile": False, "progress": False}
    pv.fit(program, X, device="cpu", **options)
    return program.mean.tolist()


class Queue(nn.Module):
    """The rows of the last steps, each in its place, and what some of them have been."""

    def __init__(self, columns: bool) -> None:
        super().__init__()
        self.columns = columns
        self.register_buffer("rows", torch.zeros(*((3, 7) if columns else (7, 3))).double())
        self.register_buffer("place", torch.zeros(1 if columns else (), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def add(self, rows: torch.Tensor) -> None:
        start = int(self.place)
        at = torch.arange(start, start + len(rows)) % 7
        table = self.rows.T if self.columns else self.rows
        table[at] = rows
        self.place.fill_((start + len(rows)) % 7)
        self.mean += 0.1 * (rows.mean(0) - self.mean)


class Queued(Switched):
    """It keeps rows of its steps, its own or those of all processes."""

    def __init__(self, columns: bool, gathered: bool) -> None:
        super().__init__()
        self.queue, self.gathered = Queue(columns), gathered

    def model(self, x: torch.Tensor) -> None:
        if self.training and torch.is_grad_enabled():
            rows = [torch.zeros_like(x) for _ in range(2)]
            if self.gathered:
                torch.distributed.all_gather(rows, x)
            self.queue.add(torch.cat(rows) if self.gathered else x)
        super().model(x)


def queued(columns: bool, gathered: bool) -> tuple[list[list[float]], list[float], list[str]]:
    """Return the queue and the mean beside it after five steps of four rows, and what was told."""
    program = Queued(columns, gathered)
    options = {"batch_size": 4, "max_steps": 5, "compile": False, "progress": False}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pv.fit(program, X, device="cpu", **options)
    rows = program.queue.rows.T if columns else program.queue.rows
    texts = [str(each.message) for each in told if "queue" in str(each.message)]
    return rows.tolist(), program.queue.mean.tolist(), texts


class Read:
    """Batches that are read anew each time."""

    def __init__(self, *batches: torch.Tensor) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.batches)


def uneven(*batches: torch.Tensor) -> list[list[float]]:
    """Return the parameters after epochs over this process's own batches."""
    program = Switched()
    options = {"size": 16, "epochs": 2, "compile": False, "optimizer": torch.optim.AdamW}
    pv.fit(program, Read(*batches), lr=0.1, device="cpu", progress=False, **options)
    return [gain.tolist() for gain in program.gains]


class Highest(Switched):
    """It follows the highest rows seen, in one of two places by turns; the other stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("top", torch.full((2,), -torch.inf, dtype=torch.float64))
        self.steps = 0

    def model(self, x: torch.Tensor) -> None:
        if self.training:
            place, self.steps = self.steps // 3 % 2, self.steps + 1
            self.top[place] = torch.maximum(self.top[place], x[:, 0].max())
        super().model(x)


def top() -> list[float]:
    """Return the highest rows after two and after four steps."""
    program, found = Highest(), []
    pv.fit(
        program,
        X,
        batch_size=4,
        epochs=2,
        callbacks=[lambda run: found.extend(program.top.tolist())],
        compile=False,
        device="cpu",
        progress=False,
    )
    return found


class Late(Switched):
    """It makes a buffer of its rows in the first step, or trains a tensor that nothing holds."""

    def __init__(self, held: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.held = None if held is None else (lambda: held)

    def model(self, x: torch.Tensor) -> None:
        if self.training and self.held is None and self.mean is None:
            self.mean = x.mean(0)
        super().model(x)

    def loc(self, z: torch.Tensor, rows: torch.Tensor, place: int) -> torch.Tensor:
        found = super().loc(z, rows, place)
        return found + self.held() if self.training and self.held is not None else found


class InTurn:
    """Several steps of the first decoder before one of the others."""

    def updates(self, program: pv.Program) -> list[pv.Update]:
        first, *others = program.source.gains
        loss = pv.ELBO().per_datum
        return [
            pv.Update(loss, (first,), repeats=4, name="first"),
            pv.Update(loss, tuple(others), name="others"),
        ]


class Kept(Switched):
    """It holds a buffer of each kind that its steps make or move.

    Arguments:
        besides: A kind that several processes are refused.
    """

    def __init__(self, besides: str = "") -> None:
        super().__init__()
        self.besides, self.steps, zeros = besides, 0, torch.zeros(3, dtype=torch.float64)
        self.register_buffer("cache", None)
        self.register_buffer("cache_of_two", torch.eye(2, dtype=torch.float64))
        self.register_buffer("rows", zeros)
        self.register_buffer("counter", torch.zeros(()))
        self.register_buffer("whole_counter", torch.zeros((), dtype=torch.int64))
        self.register_buffer("moves_late", zeros.clone())
        self.register_buffer("empty", None)
        self.register_buffer("positive", torch.zeros((), dtype=torch.int64))

    def model(self, x: torch.Tensor) -> None:
        if self.training:
            self.steps += 1
            self.move(x, x.mean(0))
        super().model(x)

    def move(self, x: torch.Tensor, mean: torch.Tensor) -> None:
        if self.cache is None or len(self.cache) != len(x):
            self.cache = torch.eye(len(x), dtype=x.dtype)
        if len(self.cache_of_two) != len(x):
            self.cache_of_two = torch.eye(len(x), dtype=x.dtype)
        self.rows = x.detach().clone()
        self.counter += 1
        self.whole_counter += 1
        if self.steps > 1:
            self.moves_late += 0.1 * (mean - self.moves_late)
        self.empty = torch.zeros_like(mean) if self.empty is None else self.empty + mean
        if self.steps == 3:
            self.register_buffer("registered", torch.ones_like(mean))
        elif self.steps > 3:
            self.registered += mean
        if self.besides == "positive":
            self.positive += int((x[:, 0] > 0).sum())
        elif self.besides == "mean" and self.steps == 1:
            self.register_buffer("mean", mean)


ALIKE = (
    "counter",
    "whole_counter",
    "moves_late",
    "empty",
    "registered",
)  # in any number of processes


def kept(besides: str = "") -> dict[str, list[float]]:
    """Return the buffers after two epochs of batches of six, six and four rows."""
    program = Kept(besides)
    options = {"batch_size": 6, "epochs": 2, "compile": False, "progress": False}
    pv.fit(program, X, device="cpu", **options)
    return {name: getattr(program, name).tolist() for name in ALIKE}


class Ordered(Switched):
    """Its parameters are of another order, shape or type in one process."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        for name in "vu" if kind == "order" else "uv":
            size = 3 if kind == "shape" and name == "v" else 2
            parameter = nn.Parameter(torch.zeros(size, dtype=torch.float64))
            self.register_parameter(name, parameter)
        self.register_buffer(
            "b", torch.zeros(2, dtype=[torch.float32, torch.float64][kind == "type"])
        )


def of_another_make(rank: int) -> dict[str, tuple[str, list[float]]]:
    """Return what is said of programs of another make, and their weights afterwards."""
    found = {}
    for kind in ("order", "shape", "type"):
        program = Ordered(kind if rank else "")
        with torch.no_grad():
            program.gains[0].fill_(1.0 + rank)
        told = error(lambda p=program: pv.fit(p, X, device="cpu", progress=False))
        found[kind] = told, program.gains[0].tolist()
    return found


def apart(rank: int) -> dict[str, str]:
    """Return the errors of processes that train other parameters, or from other values."""
    held = torch.full((3,), 0.1 * (1 + rank), dtype=torch.float64, requires_grad=True)
    still, frozen, in_turn = Switched(), Switched(), Switched()
    still.gains[2].requires_grad_(not rank)
    in_turn.gains[2].requires_grad_(not rank)
    trained = {"still": still, "frozen": frozen, "buffer": Late(), "held": Late(held)}
    trained["in turn"] = in_turn

    def freeze(run: pv.Run) -> None:
        frozen.gains[2].requires_grad_(not rank)

    after = {"frozen": [freeze]}
    options = {"epochs": 3, "compile": False, "device": "cpu", "progress": False}
    more = {"in turn": {"objective": InTurn()}}
    return {
        name: error(
            lambda p=p, n=name: pv.fit(
                p, X, callbacks=after.get(n, ()), **more.get(n, {}), **options
            )
        )
        for name, p in trained.items()
    }


def late() -> str:
    return error(lambda: pv.fit(Switched(late=True), X, epochs=2, device="cpu", progress=False))


def chains() -> str:
    kept = pv.HMCRefined(persistent=16)
    return error(lambda: pv.fit(Switched(), X, objective=kept, device="cpu", progress=False))


class Grown(Switched):
    """Caches as long as the longest batch, a batch norm beside, and zeros in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3).double()
        self.register_buffer("places", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.register_buffer("zeros", torch.zeros(1, dtype=torch.float64).expand(3))

    def model(self, x: torch.Tensor) -> None:
        if len(x) > len(self.mask):
            self.places, self.mask = x.new_zeros(len(x)), x.new_ones(len(x)).bool()
        super().model(x)

    def loc(self, z: torch.Tensor, rows: torch.Tensor, place: int) -> torch.Tensor:
        if self.training and len(rows) > 1:
            self.norm(z.detach())
        return super().loc(z + self.zeros, rows, place)


def grown(*batches: torch.Tensor) -> tuple[list[list[float]], int]:
    """Return the parameters after batches in two parts each, and what batch norm has counted."""
    program = Grown()
    options = {"size": 16, "epochs": 2, "accumulate": 2, "compile": False, "lr": 0.1}
    pv.fit(program, Read(*batches), device="cpu", progress=False, **options)
    return [gain.tolist() for gain in program.gains], int(program.norm.num_batches_tracked)


class Written(Switched):
    """Its first rows set a parameter, or all move one that is not trained."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.is_set = kind, False
        self.book = nn.Parameter(torch.zeros(3, dtype=torch.float64), requires_grad=False)

    def model(self, x: torch.Tensor) -> None:
        with torch.no_grad():
            if self.training and self.kind == "first" and not self.is_set:
                self.gains[0].copy_(x.mean(0))
                self.is_set = True
            if self.training and self.kind == "book":
                self.book.lerp_(x.mean(0), 0.1)
        super().model(x)


class Langevin(torch.optim.SGD):
    """Steps with noise that each process draws."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter += 0.01 * torch.randn_like(parameter)


def written(rank: int) -> dict[str, str]:
    """Return the errors where something besides the steps writes to parameters."""
    kinds = ("first", "book", "noise", "callback", "rounding", "set before")
    made = {kind: Written("first" if kind == "set before" else kind) for kind in kinds}
    made["set before"].train().model(X)

    def write(run: pv.Run) -> None:
        wrong = {"callback": 0.1, "rounding": 1e-13}.get(run.program.kind, 0.0)
        with torch.no_grad():
            run.program.gains[0].mul_(1 + rank * wrong * (len(run.history["epoch"]) == 1))

    options = {"epochs": 2, "compile": False, "device": "cpu", "progress": False}

    def told(kind: str) -> str:
        drawn = {"optimizer": lambda parameters: Langevin(parameters, 0.1)}
        more = drawn if kind == "noise" else {"lr": 0.1}
        return error(lambda: pv.fit(made[kind], X, callbacks=[write], **options, **more))

    found = {kind: told(kind) for kind in kinds}
    return found | {"weights": str(made["rounding"].gains[0].tolist())}


@forks
def test_gradients_go_to_their_own_parameters(tmp_path):
    """By place they met others' where these had as many numbers, else the processes hung.

    And buffers that begin to move late are those of all rows.
    """
    alone = [trained(3), trained(2)]  # first: what is loaded on first use is loaded once
    found = connected(
        2, lambda rank: ([trained(3), trained(2)], late(), mean(), chains()), tmp_path
    )
    for place, expected in enumerate(alone):
        for steps, *_ in found:
            assert steps[place] == [pytest.approx(each, rel=1e-12) for each in expected]
        assert expected[2] == [0.3] * 2 and expected[0] != expected[1]
    assert "parameter 'late' has come within the run" in found[1][1]
    assert found[0][1].startswith("ProcessError: process 1: ProgramError: devices: parameter")
    assert found[0][2] == found[1][2] == pytest.approx(mean(), rel=1e-12)
    assert all("keeps a state for each datum" in each[3] for each in found)


@forks
def test_queues_of_rows_are_not_averaged(tmp_path):
    """A mean of rows of two processes is a row of none: it was a negative that nobody had drawn."""
    kinds = [(False, False), (True, False), (False, True)]
    found = connected(2, lambda rank: [queued(*kind) for kind in kinds], tmp_path, limit=60)
    every = [*X.tolist(), [0.0] * 3]
    for place, (_, gathered) in enumerate(kinds):
        (rows, mean, told), (others, mean_there, told_there) = (each[place] for each in found)
        assert rows == others and mean == pytest.approx(mean_there, rel=1e-12)
        assert all(row in every for row in rows)
        assert len(told) == (not gathered) and not told_there
        assert all("buffer 'Queued.queue.rows' is a queue of rows" in each for each in told)


@forks
def test_a_process_without_rows_moves_nothing(tmp_path):
    """It has the batch before in their place: its gradients do not count, nor that it has some."""
    below, more, above = X[:4], X[4:8], X[8:12]
    expected = uneven(torch.cat([below, above]), more, below)
    own = [(below, more, below), (above,)]
    found = connected(2, lambda rank: (uneven(*own[rank]), top(), apart(rank)), tmp_path)
    for steps, *_ in found:
        assert steps == [pytest.approx(each, rel=1e-12) for each in expected]
    # Places that no rows have reached stay infinite; a whole mean of those that differ, else.
    assert found[0][1] == found[1][1]
    assert not any(math.isnan(value) for value in found[0][1])
    told = {"still": "gains.2", "frozen": "gains.2", "buffer": "mean", "held": "found-0"}
    told["in turn"] = "gains.2"
    for *_, errors in found:
        for name, part in told.items():
            assert "the 2 processes disagree" in errors[name] and part in errors[name]


@forks
def test_buffers_that_steps_make_or_move_are_those_of_all_rows(tmp_path):
    """They were another in each process, or ended all of them: caches of a batch, late ones."""
    alone = kept()

    def several(rank):
        told = [error(lambda each=each: kept(each)) for each in ("positive", "mean")]
        return kept(), told, of_another_make(rank)

    for rank, (found, told, made) in enumerate(connected(3, several, tmp_path, limit=60)):
        for name in ALIKE:
            assert found[name] == pytest.approx(alone[name], rel=1e-12), name
        assert found["counter"] == 6.0
        for name, text in zip(("positive", "mean"), told, strict=True):
            assert f"the 3 processes disagree: buffer 'Kept.{name}'" in text
        # Of other shapes they were aborted; of another order the weights were lost.
        for kind, (text, weights) in made.items():
            name = {"order": "u", "shape": "v", "type": "b"}[kind]
            assert f"disagree: parameter or buffer Ordered.{name} is" in text
            assert weights == [1.0 + rank] * 3


@forks
def test_caches_that_grow_and_batches_in_other_numbers_of_parts_end_nothing(tmp_path):
    """A cache that had grown in one process was a KeyError, and counts of batch norm a refusal."""
    parts = [(X[:3], X[3:11]), (X[11:14], X[14:])]
    alone, _ = grown(*(torch.cat(each) for each in zip(*parts, strict=True)))
    found = connected(2, lambda rank: grown(*parts[rank]), tmp_path, limit=60)
    assert found[0] == found[1]
    assert found[0][0] == [pytest.approx(each, rel=1e-12) for each in alone]


@forks
def test_a_parameter_that_one_process_writes_to_is_told_of(tmp_path):
    """The weights had parted, and those of the first process were saved."""
    found = connected(2, written, tmp_path, limit=60)
    names = {"first": "gains.0", "book": "book", "noise": "book", "callback": "gains.0"}
    for told in found:
        for kind, name in names.items():
            assert f"disagree: parameter 'Written.{name}'" in told[kind]
        assert told["rounding"] == told["set before"] == "none"
    assert found[0]["weights"] == found[1]["weights"]
