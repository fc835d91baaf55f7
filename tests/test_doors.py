"""Every public door: bad arguments and bad data are told, in one sentence, by an error of ours."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from benchmarks.faults.bad_calls import bad_arguments, calls, doors, outcome
from benchmarks.faults.bad_data import DRAWS, SUBJECTS, trial
from benchmarks.faults.good_calls import Room
from pyro_vae.arguments import typed
from pyro_vae.errors import ConfigError, DataError, ProgramError

# Arguments that take an `object()`, as they may hold anything: looked at later, or options of
# another's constructor.
ANYTHING = {
    "CollapseMonitor(data",
    "CompiledLoss(objective",
    "across_ranks(device",  # a block: it says so where it is entered
    "Lagging(data",
    *(f"conditionals.MADE.{name}" for name in ("width(hidden", "width(input_dropout")),
    *(f"conditionals.MADE.output_bias({name}" for name in ("hidden", "input_dropout")),
    "conditionals.BatchNormGaussian.outputs(gain",
    "conditionals.DeltaGaussian.outputs(delta",
    "conditionals.FixedScaleGaussian.outputs(scale",
    "conditionals.IsotropicGaussian.output_bias(scale",
    "conditionals.IsotropicGaussian.width(scale",
}
DOORS = {door.name: door for door in doors()}
# Of all values, which the benchmark puts in: a stranger, a word, no number, another shape.
FEW = ("object", "text", "nan", "shape")
SLOW = {"fit", "gaps", "ais", "bdmc", "fitted_log_likelihood", "plots.gaps", "plots.diagnosis"}


@pytest.fixture(scope="module")
def room():
    return Room()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A bad argument may be the name of a folder that is made."""
    monkeypatch.chdir(tmp_path)


def test_doors_are_found():
    """Among them are functions, classes, methods of results, and those of rooms."""
    some = {"fit", "IWAE", "Refined.sample", "models.VAE", "nn.MLP.forward", "plots.curves"}
    assert some <= set(DOORS)


@pytest.mark.parametrize("name", sorted(set(DOORS) - SLOW))
def test_good_calls(name, room):
    """What bad arguments are put into goes through without them; a new door needs a row."""
    door = DOORS[name]
    verdict, said = outcome(lambda: door.bound(room)(**door.good(room)))
    assert verdict == "ok", f"{name}: {said}; give it good arguments in good_calls"


@pytest.mark.parametrize("name", sorted(DOORS))
def test_bad_arguments(name, room):
    found = list(calls(DOORS[name], room, bad_arguments(DOORS[name], FEW)))
    raw = [f"{call.name}: {call.said}" for call in found if call.verdict == "raw"]
    assert not raw, "\n".join(raw)
    strangers = [call for call in found if call.name.endswith(" = object)")]
    taken = [call.name.removesuffix(" = object)") for call in strangers if call.verdict == "ok"]
    assert ANYTHING.issuperset(taken)


@typed
def draw(n: int, *, mean: bool = False, names: dict[str, float] | None = None) -> int:
    return n


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": "no"}, "mean: got 'no', expected True or False"),
        ({"names": {"a": "b"}}, r"names: got \{'a': 'b'\}, expected a dict of numbers or None"),
        ({"names": torch.ones(2, 3)}, r"got a tensor of shape \(2, 3\) and type torch.float32"),
        ({"mean": "x" * 500}, r"x{90,101}\.\.\., expected"),
    ],
)
def test_typed(options, said):
    assert draw(2, mean=True, names={"a": 1.0}) == 2
    with pytest.raises(ConfigError, match=said):
        draw(2, **options)


# -- data ---------------------------------------------------------------------------------------

QUICK = ("fit", "fit, valid", "elbo", "log_likelihood", "diagnose", "encode", "infer", "generate")


@functools.cache
def read(number):
    """Return a program that has read good data, which nothing bad changes."""
    program = SUBJECTS[number].build()
    pv.elbo(program, SUBJECTS[number].good())
    return program


@pytest.mark.parametrize("number", range(len(SUBJECTS)), ids=[each.name for each in SUBJECTS])
@pytest.mark.parametrize("verb", QUICK)
def test_bad_data(number, verb, room):
    subject, program = SUBJECTS[number], read(number)
    kinds = [k for k in subject.bad if not (k == "None" and verb in ("fit, valid", *DRAWS))]
    found = [trial(room, program, subject, verb, kind) for kind in kinds]
    faults = [f"{each.verdict}, {each.note}" for each in found if each.verdict in ("raw", "wrong")]
    assert not faults, "\n".join(faults)


def test_a_transform_that_spoils_a_later_batch():
    """Every batch of the first epoch is checked, not the first alone."""
    program, seen = pv.models.VAE(6, 2, (4,)), []

    def grey(x):
        seen.append(len(x))
        return x if len(seen) < 4 else x / 2

    with pytest.raises(DataError, match=r"site 'x': value 0.5 .* binarise"):
        pv.fit(program, torch.ones(12, 6), transform=grey, batch_size=4, epochs=1)


class Fading(nn.Module):
    """A pair of which one side stops sampling z after some runs."""

    def __init__(self, side, runs):
        super().__init__()
        self.layer, self.side, self.left = nn.Linear(6, 2), side, runs

    def _run(self, side, x, loc):
        self.left -= side == self.side
        if self.left > 0 or side != self.side:
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            self._run("model", x, x.new_zeros(len(x), 2))
            pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            self._run("guide", x, self.layer(x))


@pytest.mark.filterwarnings("ignore:compile")  # a graph gives up aloud first
@pytest.mark.parametrize("mode", [False, "trace"])
@pytest.mark.parametrize("side", ["guide", "model"])
def test_a_side_that_stops_sampling(side, mode):
    """Without the guide's draw, z would come from the prior, and training would go on."""
    match = f"site 'z': the {side} has stopped sampling it"
    with pytest.raises(ProgramError, match=match):
        pv.fit(Fading(side, 40), torch.randn(16, 6), epochs=15, batch_size=4, compile=mode)


def test_what_fit_would_train_otherwise_than_asked_is_warned_of():
    program = pv.models.VAE(6, 2, (4,))
    quick = {"epochs": 1, "compile": False, "progress": False}
    with pytest.warns(UserWarning, match=r"lr_schedule: got 0.001, by which lr is multiplied"):
        pv.fit(program, torch.ones(8, 6), lr_schedule=1e-3, **quick)
    some = torch.optim.Adam(program.encoder.parameters())
    match = r"optimizer: 4 parameters .*in no group, and stay .*program.parameters\(\)"
    with pytest.warns(UserWarning, match=match):
        pv.fit(program, torch.ones(8, 6), optimizer=some, **quick)


@pytest.mark.parametrize("extra", [False, True])
def test_an_optimizer_over_other_parameters(extra):
    """A factory that leaves its argument aside, or adds what no update trains, trains nothing."""
    other = nn.Linear(3, 3)

    def factory(parameters):
        return torch.optim.Adam([*(parameters if extra else ()), *other.parameters()])

    program = pv.models.VAE(6, 2, (4,))
    with pytest.raises(ConfigError, match=r"optimizer: 2 of .* not trained .*\(3, 3\)"):
        pv.fit(program, torch.ones(8, 6), epochs=1, optimizer=factory)
