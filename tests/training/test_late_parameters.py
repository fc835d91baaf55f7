"""A parameter that only some batches bring is trained like one that was there from the start."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceGraph_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import SGD, Adam
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.inference.graphs.compiled_loss import Mode

ROWS = torch.randn(21, 3, generator=torch.Generator().manual_seed(0))
BATCHES = DataLoader(TensorDataset(ROWS), batch_size=8)  # of 8, 8 and 5 rows
RATES = {"sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1), "adam": None}


class Net(nn.Module):
    """x ~ N(W z + b, 1); b is there from the start, or made when batches of another length come."""

    def __init__(self, made: str, early: bool) -> None:
        super().__init__()
        self.dec, self.enc, self.made, self.early = nn.Linear(2, 3), nn.Linear(3, 2), made, early
        self.late: nn.Module | None = None

    def bias(self) -> Tensor:
        """Return b, which the first call makes."""
        if self.made == "pyro.param":
            return pyro.param("late", torch.zeros(3))
        if self.late is None:
            self.late = nn.utils.skip_init(nn.Linear, 1, 3, bias=False)
            nn.init.zeros_(self.late.weight)
        return self.late(torch.ones(1))

    def model(self, x: Tensor) -> None:
        """z ~ N(0, 1), x ~ N(W z + b, 1)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.dec(z)
            if len(x) == 5:  # no look at the first batch runs on so many
                mean = mean + self.bias()
            elif self.early:
                mean = mean + 0 * self.bias()
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """z ~ N(V x, 1)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.enc(x), 1.0).to_event(1))


def trained(made: str, early: bool, mode: Mode, optimizer: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    program = pv.Program.of(Net(made, early))
    options = {"progress": False, "device": "cpu"}
    pv.fit(program, BATCHES, epochs=3, compile=mode, optimizer=optimizer, **options)
    return {name: value.clone() for name, value in program.state_dict().items()}


@pytest.mark.parametrize("mode", [False, "trace"])
@pytest.mark.parametrize("made", ["pyro.param", "module"])
def test_what_comes_late_is_trained(made: str, mode: Mode) -> None:
    """By plain descent: it does not know that the gradient of the first two batches was zero."""
    exact, found = (trained(made, early, mode, RATES["sgd"]) for early in (True, False))
    assert exact.keys() == found.keys()
    assert any("late" in name and value.abs().min() > 0 for name, value in found.items())
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, msg=name)


class Counting(Net):
    """b comes with the hundredth run, in batches like those before."""

    runs = 0

    def model(self, x: Tensor) -> None:
        """x ~ N(b, 1)."""
        self.runs += 1
        mean = self.bias() if self.runs > 100 else torch.zeros(3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(mean + self.dec(z), 1.0).to_event(1), obs=x)


def test_what_comes_with_a_later_run_of_equal_batches_is_trained() -> None:
    program = pv.Program.of(Counting("pyro.param", False))
    pv.fit(program, ROWS, epochs=60, batch_size=7, compile=False, progress=False, device="cpu")
    assert program.values["late"].detach().abs().min() > 0


@pytest.mark.parametrize("mode", [False, "trace"])
def test_what_comes_late_has_the_options_of_its_name(mode: Mode) -> None:
    def options(name: str) -> dict[str, float]:
        return {"lr": 0.2 if name == "late" else 0.1}

    by_name = trained("pyro.param", False, mode, SGD(options))
    from_the_start = trained("pyro.param", True, mode, SGD(options))
    for name, value in from_the_start.items():
        torch.testing.assert_close(by_name[name], value, msg=name)


LOW, HIGH = -ROWS[:8].abs(), ROWS[:8].abs()  # one layout, told apart by their numbers


def by_sign(low: str, high: str) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """x ~ N(loc + late, 1): rows ask for ``late`` by their sign, "shown", "hidden" or not."""

    def model(x: Tensor) -> None:
        loc, how = pyro.param("loc", lambda: torch.zeros(3)), high if x.mean() > 0 else low
        if how:
            with poutine.block() if how == "hidden" else nullcontext():
                loc = loc + pyro.param("late", lambda: torch.ones(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return model, lambda x: None


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("kind", [Trace_ELBO, TraceGraph_ELBO])
def test_what_comes_late_takes_the_steps_that_stock_svi_takes(kind: type[ELBO], rule: str) -> None:
    """The one takes the gradients of this library, the other those of its own.

    Adam's moments would move it in a batch that does not reach it, were its gradient there 0.
    """
    pyro.clear_param_store()
    # A sum over 8 rows here, their mean there: Adam's steps are equal.
    moves = SGD({"lr": 0.1 / 8}) if rule == "sgd" else Adam({"lr": 0.001})
    stock = SVI(*by_sign("", "shown"), moves, kind())
    for batch in 2 * (LOW, LOW, HIGH, LOW):
        stock.step(batch)
    exact = pyro.param("late").clone()
    pyro.clear_param_store()
    program = pv.Program(*by_sign("", "shown"))
    rows = DataLoader(TensorDataset(torch.cat([LOW, LOW, HIGH, LOW])), batch_size=8)
    options = {"objective": kind(), "progress": False, "device": "cpu"}
    pv.fit(program, rows, epochs=2, optimizer=RATES[rule], **options)
    torch.testing.assert_close(program.values["late"], exact, check_stride=False)


@pytest.mark.parametrize(
    ("low", "high"), [("", "hidden"), ("hidden", ""), ("hidden", "shown"), ("", "shown")]
)
def test_what_a_block_hides_is_trained_where_stock_svi_trains_it(low: str, high: str) -> None:
    pyro.clear_param_store()
    stock = SVI(*by_sign(low, high), SGD({"lr": 0.1}), Trace_ELBO())
    for batch in (LOW, LOW, HIGH):
        stock.step(batch)
    program = pv.Program(*by_sign(low, high))
    moved = not torch.equal(pyro.param("late"), torch.ones(3))
    pyro.clear_param_store()
    rows = DataLoader(TensorDataset(torch.cat([LOW, LOW, HIGH])), batch_size=8)
    pv.fit(program, rows, epochs=2, progress=False, device="cpu", compile=False)
    assert moved != torch.equal(program.values["late"], torch.ones(3))


@pytest.mark.filterwarnings("ignore:what was loaded holds 'values.e-late'")
def test_a_loaded_value_that_no_statement_has_named_has_the_rate_of_its_name() -> None:
    program, asked = pv.Program(*by_sign("", "")), list[str]()

    def options(name: str) -> dict[str, float]:
        asked.append(name)
        return {"lr": 0.1}

    zeros = torch.zeros(3)
    program.load_state_dict({"values.loc": zeros, "values.e-late": zeros}, strict=False)
    pv.fit(program, LOW, epochs=1, optimizer=SGD(options), progress=False, device="cpu")
    assert sorted(asked) == ["e.late", "loc"]


def test_a_loaded_value_answers_a_block_that_a_batch_of_a_known_layout_opens() -> None:
    program = pv.Program(*by_sign("", "hidden"))
    state = {"values.loc": torch.zeros(3), "values.late": torch.full((3,), 9.0)}
    program.load_state_dict(state, strict=False)
    with pytest.warns(UserWarning, match="'values.late', which the first run has not asked for"):
        program.read(LOW)
    with program.running():
        found = poutine.trace(program.model).get_trace(HIGH).log_prob_sum()
    torch.testing.assert_close(found, dist.Normal(9.0, 1.0).log_prob(HIGH).sum())


@pytest.mark.parametrize("made_by", ["verb", "judged", "step"])
def test_a_network_that_a_block_hides_is_not_trained_whatever_makes_it(made_by: str) -> None:
    """Stock SVI never trains it."""
    kept: dict[str, nn.Module] = {}

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(3))
        if x.mean() > 0:
            if not kept:
                kept["late"] = nn.Linear(1, 3)
                nn.init.ones_(kept["late"].bias)
            with poutine.block():
                pyro.module("late", kept["late"])
            loc = loc + kept["late"](torch.ones(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x: None)
    program.read(LOW)
    if made_by == "verb":
        pv.elbo(program, HIGH)
    valid = HIGH if made_by == "judged" else None
    rows = DataLoader(TensorDataset(torch.cat([LOW, HIGH])), batch_size=8)
    pv.fit(program, rows, epochs=2, lr=0.1, valid=valid, progress=False, device="cpu")
    assert torch.equal(kept["late"].bias, torch.ones(3))
    assert len(program.state_dict()) == 3


class Growing(PyroModule):
    """x ~ N(loc + b, 1), without b for rows below zero; the first rows above zero make it."""

    def __init__(self, made: str) -> None:
        super().__init__()
        self.loc, self.made = PyroParam(torch.zeros(3)), made
        self.kept: dict[str, nn.Module] = {}
        torch.manual_seed(3)
        self.copied = nn.Linear(1, 3) if made == "copy" else None
        self.cached = cache(lambda: nn.Linear(1, 3))

    def b(self) -> Tensor:
        """Return b, from its home."""
        if self.made == "PyroParam":
            if not hasattr(self, "late"):
                self.late = PyroParam(torch.full((3,), 2.0), dist.constraints.positive)
            return self.late
        torch.manual_seed(4)
        network = self.cached() if self.made == "cache" else None
        if self.made == "own values" and not self.kept:
            network = self.kept["late"] = nn.Linear(1, 3)
            network.weight, network.bias = (nn.Parameter(0 * each) for each in network.parameters())
        if self.made == "copy" and not self.kept:
            self.kept["late"] = copy.deepcopy(self.copied)
        network = network or self.kept.get("late") or self.kept.setdefault("late", nn.Linear(1, 3))
        return pyro.module("late", network)(torch.ones(1))

    def forward(self, x: Tensor) -> None:
        """x ~ N(loc, 1) or N(loc + b, 1)."""
        loc = self.loc + self.b() if x.mean() > 0 else self.loc
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("made", ["PyroParam", "dict", "cache", "own values", "copy"])
def test_what_a_batch_like_others_makes_is_trained_as_by_stock_svi(made: str) -> None:
    pyro.clear_param_store()
    exact, found = Growing(made), Growing(made)
    stock = SVI(exact, lambda x: None, SGD({"lr": 0.1 / 8}), Trace_ELBO())
    for batch in 3 * (LOW, LOW, HIGH):
        stock.step(batch)
    pyro.clear_param_store()
    rows = DataLoader(TensorDataset(torch.cat([LOW, LOW, HIGH])), batch_size=8)
    program = pv.Program(found, lambda x: None)
    options = {"progress": False, "device": "cpu", "optimizer": RATES["sgd"]}
    pv.fit(program, rows, epochs=3, **options)
    torch.testing.assert_close(found.b(), exact.b())
    pyro.clear_param_store()
    assert len(program.state_dict()) == {"PyroParam": 2, "copy": 5}.get(made, 3)


def loaded() -> tuple[Growing, Growing, pv.Program]:
    """Return a module with b, and one that waits for what was loaded of it, with its program."""
    saved, found = Growing("PyroParam"), Growing("PyroParam")
    program, other = (pv.Program(each, lambda x: None) for each in (saved, found))
    for rows in (LOW, HIGH, HIGH[:5]):
        program.read(rows)
    saved.late = torch.full((3,), 0.5)
    other.load_state_dict(program.state_dict(), strict=False)
    other.read(LOW)
    return saved, found, other


@pytest.mark.filterwarnings("ignore:what was loaded holds")
def test_what_was_loaded_and_trained_since_stays_as_trained() -> None:
    saved, found, program = loaded()
    rows = DataLoader(TensorDataset(torch.cat([LOW, HIGH])), batch_size=8)
    pv.fit(program, rows, epochs=1, optimizer=RATES["sgd"], progress=False, device="cpu")
    trained = found.b().clone()
    with torch.no_grad():
        loc = saved.loc + 0.1 * (LOW - saved.loc).mean(0)
        step = 0.1 * (HIGH - loc - saved.late).mean(0) * saved.late
    torch.testing.assert_close(trained.log(), saved.late.log() + step)
    program.read(ROWS[:3])
    assert torch.equal(found.b(), trained)


@pytest.mark.filterwarnings("ignore:what was loaded holds")
def test_what_was_loaded_is_there_for_the_first_batch_that_asks_for_it() -> None:
    saved, found, program = loaded()
    exact = dist.Normal(saved.loc + saved.late, 1.0).log_prob(HIGH).sum()
    torch.testing.assert_close(pv.elbo(program, HIGH).sum(), exact)
    _, found, program = loaded()
    pv.fit(program, HIGH, epochs=1, optimizer=RATES["sgd"], progress=False, device="cpu")
    with torch.no_grad():
        step = 0.1 * (HIGH - saved.loc - saved.late).mean(0) * saved.late
    torch.testing.assert_close(found.late.log(), saved.late.log() + step)


@pytest.mark.filterwarnings("ignore:what was loaded holds")
def test_a_weight_that_a_late_network_shares_stays_as_trained() -> None:
    def build() -> tuple[PyroModule, pv.Program]:
        net = PyroModule()
        net.first = nn.Linear(1, 3)

        def model(x: Tensor) -> None:
            loc = net.first(torch.ones(1))
            if x.mean() > 0:
                if not hasattr(net, "late"):
                    late = nn.Linear(1, 3)
                    late.weight = net.first.weight
                    net.late = late
                loc = loc + net.late(torch.ones(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        return net, pv.Program(model, lambda x: None, modules={"net": net})

    (_, saved), (net, program) = build(), build()
    saved.read(HIGH)
    program.load_state_dict(saved.state_dict(), strict=False)
    pv.fit(program, LOW, epochs=3, progress=False, device="cpu")
    trained = net.first.weight.clone()
    program.read(HIGH)
    pv.elbo(program, HIGH)
    assert hasattr(net, "late") and torch.equal(net.first.weight, trained)


def _add(net: Net) -> None:
    net.made, net.early = "module", True
    net.bias()


@pytest.mark.parametrize("change", [_add])
def test_the_best_weights_return_into_a_program_that_has_grown_since(
    change: Callable[[Net], None],
) -> None:
    """A part that came after the best epoch keeps what it has."""
    net = Net("pyro.param", True)
    best: dict[str, Tensor] = {}

    def callback(run: pv.Run) -> None:
        if run.best_epoch == len(run.history["epoch"]):
            best.update({name: value.clone() for name, value in net.dec.state_dict().items()})
        change(net)
        with torch.no_grad():
            net.enc.weight.add_(100.0)  # the epochs to come are worse

    options = {"batch_size": 8, "progress": False, "device": "cpu", "compile": False}
    run = pv.fit(net, BATCHES, valid=ROWS, epochs=3, callbacks=[callback], **options)
    assert run.best_epoch == 1
    torch.testing.assert_close(dict(net.dec.state_dict()), best)
