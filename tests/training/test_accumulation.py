"""A batch in parts, one after another, takes the step of the whole batch."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from two_processes import Known, Normed, Shard, Subsampling, data, exact, fit

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError, TrainingDiverged

NEAR = {"rtol": 1e-12, "atol": 1e-12}  # float64; only the order of the sums differs


def loader(rows=25, size=11):
    return DataLoader(TensorDataset(*data(rows)), batch_size=size)


# The program has a global latent, so that its prior counts once; its noise is part of the data.
CASES = {
    "tensors, ragged": lambda **parts: exact(False, 23, **parts),
    "trace": lambda **parts: exact("trace", 23, **parts),
    "clipping": lambda **parts: exact(False, 23, clip_norm=0.4, **parts),
    "iwae": lambda **parts: exact(False, 23, objective=pv.IWAE(2), beta=0.5, **parts),
    "loader": lambda **parts: exact(False, None, loader(), **parts),
    "stream": lambda **parts: exact(False, None, DataLoader(Shard(20, 0, 20), 8), **parts),
}


@pytest.fixture(scope="module")
def expected():
    return {name: case() for name, case in CASES.items()}


def close(found, expected):
    for new, old in zip(found["grads"], expected["grads"], strict=True):
        for name in old:
            pair = (torch.tensor(each[name], dtype=torch.float64) for each in (new, old))
            torch.testing.assert_close(*pair, **NEAR)
    for name, column in expected["history"].items():
        pair = (
            torch.tensor(each, dtype=torch.float64) for each in (found["history"][name], column)
        )
        torch.testing.assert_close(*pair, **NEAR)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_gradients_are_those_of_the_whole_batch(name, parts, expected):
    """Parts of 2 to 6 rows."""
    whole = expected[name]
    assert len(whole["grads"]) == whole["steps"] >= 6
    close(CASES[name](accumulate=parts), whole)


class Counted(Known):
    """It notes how many rows a pass has."""

    def model(self, x, eps):
        self.most = max(getattr(self, "most", 0), len(x)) if self.training else 0
        super().model(x, eps)


def test_no_pass_has_more_rows_than_a_part():
    program, seen = Counted(), []
    fit(
        program,
        data(32),
        batch_size=16,
        accumulate=4,
        compile=False,
        transform=lambda batch: seen.append(getattr(program, "most", 0)) or batch,
    )
    assert max(seen) == 4


def test_a_part_that_is_not_finite_moves_nothing():
    """The last part alone is bad: the running statistics that the others moved are put back."""
    program, before = Normed(), []

    def spoil(batch):
        if steps_of(program) == 4:  # the parts of the first step
            before.append({name: value.clone() for name, value in program.state_dict().items()})
            batch[-1] = 1e300
        return batch

    with pytest.raises(TrainingDiverged):
        fit(program, data(16)[0], batch_size=16, accumulate=4, compile=False, transform=spoil)
    assert len(before) == 1
    assert all(torch.equal(value, before[0][k]) for k, value in program.state_dict().items())


def steps_of(program):
    return int(program.encode[0].num_batches_tracked)


class Together:
    """A program without a plate of the data: one datum."""

    def model(self, x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape).to_event(x.dim()), obs=x)

    def guide(self, x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))


class Moments(Together):
    """Looks at the mean of a batch."""

    def model(self, x):
        pyro.factor("moment", -(x.mean() ** 2))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


MOMENTS = DataLoader(torch.arange(16.0), batch_size=8)


@pytest.mark.parametrize(
    ("program", "batch", "parts", "kind", "said"),
    [
        (Known, data(16), 0, ConfigError, "accumulate: got 0, expected an integer of at least 1"),
        (Subsampling, data(16), 2, ProgramError, "accumulate.*own minibatch"),
        (Together, data(16)[0].float(), 2, ProgramError, "accumulate.*never cut"),
        pytest.param(
            *(Moments, MOMENTS, 2, ProgramError, "'moment' is no sum.*leave accumulate out"),
            id="function_of_batch",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:fit. the plate .* draws some of its rows")
def test_what_cannot_be_cut_is_refused(program, batch, parts, kind, said):
    with pytest.raises(kind, match=said):
        pv.fit(program(), batch, epochs=1, accumulate=parts)


@pytest.mark.parametrize("option", [{"accumulate": 2}, {"reduce_dtype": torch.bfloat16}])
def test_a_continuation_needs_what_was_set_and_is_no_default(option, tmp_path):
    settings = {"batch_size": 8, "device": "cpu", "progress": False, "compile": False}
    pv.fit(Known(), data(24), epochs=1, out=tmp_path, **option, **settings)
    with pytest.raises(ConfigError, match=f"has {next(iter(option))} = .*, this run None"):
        pv.fit(Known(), data(24), epochs=2, out=tmp_path, resume=True, **settings)
    pv.fit(Known(), data(24), epochs=2, out=tmp_path, resume=True, **option, **settings)
