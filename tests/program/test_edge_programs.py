"""Programs at the edges: each was once answered wrongly."""

import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn
from torch.distributions.constraints import positive
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.batches.batch import map_rows
from pyro_vae.program.program import Program


def gaussian(x, mean, width=1.0):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mean + z, width).to_event(1), obs=x)


def centred(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


def with_global(tiled):
    """A global mean; ``tiled`` concatenates z with the data's rows, which takes no extra dim."""

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = torch.cat([z, x[:, :0]], -1) if tiled else z
            pyro.sample("x", dist.Normal(w + mean, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_full((2,), 5.0), 0.01).to_event(1))
        centred(x)

    return pv.Program(model, guide)


def test_generate_uses_what_was_learnt_of_the_globals():
    program = with_global(tiled=False)
    x = torch.randn(8, 2)
    pv.elbo(program, x)
    torch.manual_seed(0)
    means = torch.stack([pv.generate(program, 200).mean(0) for _ in range(4)])
    # Each mean is 5 with a standard error of 0.1: |z| < 5, false alarms below 1e-5.
    assert ((means - 5).abs() < 0.51).all()
    assert (pv.reconstruct(program, x) - (5 + x / 2)).abs().max() < 4


@pytest.mark.parametrize("size", [49, 50, 51])
def test_a_tiled_program_keeps_its_n(size):
    program, x = with_global(tiled=True), torch.randn(10, 2)
    terms = program.terms(x, 1, 5, size=size)
    assert program.tiled(x)
    assert terms.size == size and terms.batch_size == 10


def test_a_tiled_program_that_subsamples_is_refused():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = torch.cat([z, x[rows][:, :0]], -1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.7).to_event(1))

    program, x = pv.Program(model, guide), torch.randn(40, 2)
    assert program.terms(x).log_weight.shape == (1, 1, 10)
    with pytest.raises(ProgramError, match="K > 1 particles"):
        program.terms(x, 1, 5)
    for verb in (pv.elbo, pv.log_likelihood, pv.encode, pv.diagnose, pv.reconstruct):
        with pytest.raises(ProgramError, match="10 of the 40 rows"):
            verb(program, x)


def captured_minibatch(**part):
    rows = torch.randn(40)

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 40, **part) as i:
            pyro.sample("x", dist.Normal(m, 1.0), obs=rows[i])

    return model, ()


def looped_minibatch(**part):
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        for i in pyro.plate("rows", len(x), **part):
            pyro.sample(f"x_{i}", dist.Normal(m, 1.0), obs=x[i])

    return model, torch.randn(40)


def minibatch_of_columns(**part):
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", x.shape[1], **part, dim=-1) as i:
                pyro.sample("x", dist.Normal(m, 1.0), obs=x[:, i])

    return model, torch.randn(8, 40)


@pytest.mark.parametrize("made", [captured_minibatch, looped_minibatch, minibatch_of_columns])
def test_whatever_draws_a_minibatch_of_its_own_trains_and_is_not_judged(made):
    """Weighed by N/B, a part of the data had been taken for all of them: a likelihood of none."""
    model, data = made(subsample_size=10)
    guide = AutoNormal(model) if made is minibatch_of_columns else AutoDelta(model)
    program = pv.Program(model, guide)
    told = "fit: the plate 'rows' draws some of its rows at each step"
    with pytest.warns(UserWarning, match=told) as said:
        pv.fit(program, data, epochs=1, compile=False)
    assert all("/tests/" in each.filename for each in said)  # no line of the library
    verbs = pv.elbo, pv.log_likelihood, pv.ais, pv.refine, pv.gaps, pv.diagnose, pv.infer
    for verb in (*verbs, lambda some, _: pv.bdmc(some, 2)):
        with pytest.raises(ProgramError, match=r"'rows' draws 10 of its 40 rows.*subsample_size"):
            verb(program, data)


def test_codes_take_no_part_of_the_minibatch_that_the_model_draws():
    model, data = minibatch_of_columns(subsample_size=10)

    def guide(x, rows=None):
        with pyro.plate("data", len(x), dim=-2):
            if rows:  # codes of a part that is drawn anew are no codes
                with pyro.plate("rows", x.shape[1], subsample_size=10, dim=-1) as rows:
                    pass
            x = x if rows is None else x[:, rows]
            pyro.sample("m", dist.Normal(x.mean(1, keepdim=True), 0.1))

    codes = pv.encode(pv.Program(model, guide), data)
    torch.testing.assert_close(codes.flatten(), data.mean(1))
    with pytest.raises(ProgramError, match="'rows' draws 10 of its 40 rows"):
        pv.encode(pv.Program(model, lambda x: guide(x, True)), data)


@pytest.mark.parametrize("made", [captured_minibatch, looped_minibatch, minibatch_of_columns])
def test_a_part_that_the_program_names_itself_has_a_bound_and_no_likelihood(made):
    """Weighed by N/B it stands for all in training; its density is that of no data."""
    model, data = made(subsample=torch.arange(10))

    def guide(*args):
        with nullcontext() if made is not minibatch_of_columns else pyro.plate("data", 8, dim=-2):
            pyro.sample("m", dist.Normal(0.0, 0.5))

    program = pv.Program(model, guide)
    assert pv.elbo(program, data).isfinite().all()
    for verb in (pv.log_likelihood, pv.ais, pv.refine):
        with pytest.raises(ProgramError, match=r"'rows' holds 10 of its 40 rows .*subsample="):
            verb(program, data)


class Mixture(nn.Module):
    """Two components; the guide leaves the choice to enumeration."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def model(self, x):
        with pyro.plate("data", len(x)):
            choice = dist.Categorical(x.new_ones(2) / 2)
            c = pyro.sample("c", choice, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.centres[c], 1.0), obs=x)

    def guide(self, x):
        pass


def test_enumerated_latents_are_judged_by_their_sum():
    mixture, x = Mixture().double(), torch.randn(40, dtype=torch.float64)
    log_p = torch.stack([dist.Normal(c, 1.0).log_prob(x) for c in mixture.centres.tolist()])
    exact = (log_p.logsumexp(0) - torch.tensor(2.0).log()).mean()
    run = pv.fit(
        mixture,
        x,
        valid=x,
        objective=TraceEnum_ELBO(max_plate_nesting=1),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-12),
        epochs=1,
        progress=False,
    )
    assert run.history["valid_elbo"][0] == pytest.approx(exact.item(), rel=1e-6)
    for objective in (None, TraceEnum_ELBO(max_plate_nesting=1)):
        settings = {"objective": objective, "optimizer": lambda p: torch.optim.SGD(p, lr=1e-12)}
        run = pv.fit(mixture, x, **settings, epochs=1, progress=False)
        assert run.history["loss"][0] == pytest.approx(-exact.item(), rel=1e-6)


def test_two_objects_of_one_class_both_train():
    one, two = (pv.models.VAE(6, 2, hidden=(8,)) for _ in range(2))
    program = pv.Program(one.model, two.guide)
    before = [p.detach().clone() for p in program.parameters()]
    assert len(before) == 2 * len(list(one.parameters()))
    pv.fit(program, torch.ones(16, 6), epochs=1, progress=False)
    assert not torch.equal(one.decoder.net.output.bias, before[0].new_zeros(6))
    assert any(not torch.equal(a, b) for a, b in zip(before, program.parameters(), strict=True))


class Holder:
    """No module, with a network inside a list."""

    def __init__(self):
        self.nets = [nn.Linear(2, 2)]


def test_a_network_hidden_in_an_object_trains():
    holder = Holder()

    def helper(z):
        return holder.nets[0](z)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(helper(z), 1.0).to_event(1), obs=x)

    program = pv.Program(model, centred)
    before = holder.nets[0].weight.detach().clone()
    pv.fit(program, torch.randn(32, 2), epochs=2, progress=False)
    assert not torch.equal(holder.nets[0].weight, before)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_diagnose_a_tiled_program(num_particles):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.cat([z, x[:, :0]], -1), 1.0).to_event(1), obs=x)

    x = torch.randn(200, 2)
    found = pv.diagnose(pv.Program(model, centred), x, num_particles=num_particles)
    torch.testing.assert_close(found.variance["z"].float(), (x / 2).var(0), rtol=1e-4, atol=1e-5)
    assert found.active_units == {"z": 2}


@pytest.mark.parametrize("rows", [10, 100])
def test_a_factor_outside_the_plate_weighs_by_n(rows):
    """log p's factor of -100 over N = 100 data is one nat per datum, whatever the batch."""

    def model(x):
        pyro.factor("penalty", x.new_tensor(-100.0))
        gaussian(x, 0.0)

    x = torch.randn(100, 2)
    program = pv.Program(model, centred)
    plain = pv.Program(lambda x: gaussian(x, 0.0), centred)
    losses = []
    for each in (program, plain):
        each.read(x[:rows])
        torch.manual_seed(0)
        with each.running():
            losses.append(pv.ELBO().per_datum(each.joint(x[:rows], size=100)))
    assert (losses[0] - losses[1]).item() == pytest.approx(1.0, abs=1e-5)


def test_factors_and_deterministic_sites_inside_the_plate():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = pyro.deterministic("mean", 2 * z, event_dim=1)
            pyro.factor("penalty", -z.square().sum(-1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    program, x = pv.Program(model, centred), torch.randn(5, 2)
    assert pv.elbo(program, x).shape == (5,)
    assert program.sites.observed == ("x",)
    assert pv.generate(program, 3).shape == (3, 2)
    with program.running():  # dreams of x alone: neither the factor nor the value is an argument
        assert pv.ReweightedWakeSleep(2, sleep=1.0).per_datum(program.joint(x)).isfinite()


def test_refused_data_leave_no_parameter_behind():
    def model(x):
        loc = pyro.param("loc", lambda: x.mean(0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x)

    program = pv.Program(model, centred)
    with pytest.raises(ValueError, match="outside the support"):
        pv.elbo(program, torch.full((4, 3), 255.0))
    assert not list(program.parameters())
    assert pv.elbo(program, torch.ones(4, 2)).shape == (4,)


@pytest.mark.parametrize("name", ["values", "keys", "train", "a.b", "a-b", "_parameters"])
def test_parameters_of_any_name(name):
    def model(x):
        pyro.param("a.b", x.new_zeros(2))
        gaussian(x, pyro.param(name, x.new_ones(2)) + pyro.param("a-b", x.new_ones(2)))

    program = pv.Program(model, centred)
    pv.elbo(program, torch.randn(4, 2))
    assert len(list(program.parameters())) == len({name, "a.b", "a-b"})


def test_the_device_of_a_program_of_parameters_only():
    def model(x):
        gaussian(x, pyro.param("loc", torch.zeros(2)))

    program = pv.Program(model, centred)
    program.to("meta")
    assert program.device.type == "meta"
    assert program.adapt(torch.randn(3, 2)).device.type == "meta"


def test_one_objective_for_programs_of_different_depth():
    """Stock SVI hands an objective another pair of functions: what it learnt of one is not kept."""

    def nested(x):
        with pyro.plate("time", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def nested_guide(x):
        with pyro.plate("time", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T / 2, 0.7))

    loss = pv.IWAE(3)
    assert loss.loss(lambda x: gaussian(x, 0.0), centred, torch.randn(5, 2))
    assert loss.loss(nested, nested_guide, torch.randn(5, 3))


def test_free_bits_count_auxiliary_sites():
    def guide(x):
        with pyro.plate("data", len(x)):
            aux = {"is_auxiliary": True}
            a = pyro.sample("a", dist.Normal(x / 2, 1.0).to_event(1), infer=aux)
            pyro.sample("z", dist.Normal(a, 0.7).to_event(1))

    def model(x):
        gaussian(x, 0.0)

    program, x = Program(model, guide), torch.randn(6, 2)
    program.read(x)
    losses = []
    for objective in (pv.ELBO(4000), pv.FreeBits(0.0, num_particles=4000)):
        torch.manual_seed(0)
        with program.running(), torch.no_grad():
            losses.append(objective.per_datum(program.joint(x)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_memory_of_elbo_is_bounded_in_particles(monkeypatch):
    rows = []
    program, x = pv.Program(lambda x: gaussian(x, 0.0), centred), torch.randn(64, 2)
    seen = Program.joint

    def joint(self, batch, **options):
        rows.append(len(batch))
        return seen(self, batch, **options)

    monkeypatch.setattr(Program, "joint", joint)
    pv.elbo(program, x, num_particles=32, batch_size=256)
    assert max(rows) == 8


def test_a_hidden_network_is_loaded_as_it_was_saved(tmp_path):
    def hidden():
        holder = Holder()

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                mean = (lambda code: holder.nets[0](code))(z)
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

        return pv.Program(model, centred)

    x = torch.randn(16, 2)
    saved, loaded = hidden(), hidden()
    saved.read(x)
    pv.save(saved, tmp_path)
    pv.load(tmp_path, into=loaded)  # its functions have not run: the network is not known yet
    values = []
    for program in (saved, loaded):
        torch.manual_seed(0)
        values.append(pv.elbo(program, x))
    assert torch.equal(*values)
    assert len(list(loaded.parameters())) == len(list(saved.parameters()))


def test_a_program_of_a_fixed_number_of_rows_takes_one_particle_at_a_time():
    """The number comes as an argument, and a matrix product takes no particles either."""
    x = torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)

    def model(x, rows):
        with pyro.plate("data", rows):
            z = pyro.sample("z", dist.Normal(x.new_zeros(rows), 1.0))
            pyro.sample("x", dist.Normal(x.new_ones(rows).diag().mv(z), 1.0), obs=x)

    def guide(x, rows):  # the posterior: weights have no noise
        with pyro.plate("data", rows):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    program = pv.Program(model, guide)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    found = pv.log_likelihood(program, (x, 3), num_particles=5)
    torch.testing.assert_close(found.log_prob, exact)
    torch.testing.assert_close(pv.infer(program, (x, 3)).log_weight(4), exact.expand(4, 3))
    with pytest.raises(ProgramError, match="K > 1 particles"):
        pv.elbo(program, (x, 3), num_particles=2)


def test_rows_of_packed_sequences_stay_as_long_as_their_padding():
    """What a recurrent network says of a datum does not depend on the rows beside it."""
    torch.manual_seed(0)
    network = nn.GRU(2, 3, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(5, 4, 2), torch.tensor([4, 1, 2, 3, 1])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

    def model(packed, padded):
        said = pad_packed_sequence(network(packed)[0], batch_first=True)[0]
        with pyro.plate("data", len(padded)):
            for t in range(padded.shape[1]):
                loc = said[:, t].sum(-1)
                pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=padded[:, t, 0])

    program = pv.Program(model, lambda packed, padded: None)
    whole = pv.elbo(program, (packed, x))
    torch.testing.assert_close(pv.elbo(program, (packed, x), batch_size=2), whole)
    some = map_rows(lambda leaf: leaf[[4, 2]], (packed, x))
    torch.testing.assert_close(pv.elbo(program, some), whole[[4, 2]])
    short = pack_padded_sequence(x[[4, 2]], lengths[[4, 2]], True, enforce_sorted=False)
    with pytest.raises(DataError, match=r"these rows have 2 steps, batch\[1\] 4"):
        program.read((short, x[[4, 2]]))


def test_codes_of_missing_values_that_the_model_masks_are_data():
    """NaN where nothing was measured: the numbers, and what training moves, are those of zeros."""
    torch.manual_seed(1)
    x, seen = torch.randn(12, 3), torch.rand(12, 3) > 0.3
    coded = torch.where(seen, x, torch.full_like(x, torch.nan))

    class Missing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def model(self, x):
            seen = ~x.isnan()
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
                value = torch.where(seen, x, torch.zeros_like(x))
                pyro.sample(
                    "x", dist.Normal(z * self.weight, 1.0).mask(seen).to_event(1), obs=value
                )

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.nan_to_num().mean(1, True), 1.0).to_event(1))

    def given(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).mask(seen).to_event(1), obs=x)

    def given_guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1, True), 1.0).to_event(1))

    torch.manual_seed(2)
    found = pv.elbo(Missing(), coded)
    torch.manual_seed(2)
    zeros = coded.nan_to_num()
    torch.testing.assert_close(found, pv.elbo(pv.Program(given, given_guide), (zeros, seen)))
    program = Missing()
    pv.fit(program, coded, epochs=2, batch_size=5, progress=False, compile=False)
    assert bool(program.weight.isfinite().all()) and not torch.equal(program.weight, torch.ones(3))
    with pytest.raises(DataError, match=r"value nan in row \d+ .*NaN reaches"):
        pv.elbo(pv.Program(given, given_guide), (coded, seen))

    def black(x):  # no mask: NaN > 0 is false by accident
        with pyro.plate("data", len(x)):
            on = (x[:, 0] > 0) + 0.0
            pyro.sample("x", dist.Bernoulli(0.3 + 0 * on), obs=on)

    with pytest.raises(DataError, match="expected finite"):
        pv.elbo(pv.Program(black, lambda x: None), coded.mT)


@pytest.mark.filterwarnings("error")
def test_a_parameter_and_a_part_for_each_number_of_rows():
    """Looks at other numbers of rows leave no parameter, and take what these build for no noise."""
    built = {}

    def model(x):
        if built.get("rows") != len(x):
            built.update(rows=len(x), shift=torch.randn(len(x)))
        scale = pyro.param(f"scale_{len(x)}", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(built["shift"], scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param(f"loc_{len(x)}", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    program, data = pv.Program(model, guide), torch.randn(20)
    pv.fit(program, data, epochs=1, batch_size=20, compile=False)
    pv.elbo(program, data, num_particles=2)
    assert sorted(name for name, _ in program.named_parameters()) == [
        "values.loc_20",
        "values.scale_20",
    ]


@pytest.mark.filterwarnings("ignore:site 'z'. its density in the guide depends on the rows beside")
def test_batches_alone_bring_parameters_for_their_numbers_of_rows():
    """The look at rows from all over the data, of another number, leaves none."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param(f"loc_{len(x)}", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    program = pv.Program(model, guide)
    pv.fit(program, torch.randn(20), epochs=1, batch_size=8, compile=False)
    found = sorted(name for name, _ in program.named_parameters())
    assert found == ["values.loc_4", "values.loc_8"]


@pytest.mark.filterwarnings("ignore:refine")  # two draws mix nothing
def test_data_wider_than_their_distribution_right_of_the_plate():
    """Each of a datum's numbers is scored by the one distribution, as by stock SVI."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        width = pyro.param("width", torch.tensor(13**-0.5))  # of the exact posterior
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(4 * x.sum(1, keepdim=True) / 13, width))

    x = torch.randn(6, 3)
    program = pv.Program(model, guide)
    stock = -torch.tensor(Trace_ELBO(max_plate_nesting=2).loss(model, guide, x))
    pyro.clear_param_store()
    covariance = 0.25 * torch.eye(3) + 1
    evidence = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    assert torch.allclose(stock, evidence.sum(), atol=1e-3)
    assert torch.allclose(pv.elbo(program, x, num_particles=2), evidence, atol=1e-3)
    likelihood = pv.log_likelihood(program, x, num_particles=4).log_prob
    assert torch.allclose(likelihood, evidence, atol=1e-3)
    assert pv.generate(program, 5).shape == (5, 3)
    run = pv.fit(program, x, epochs=1, batch_size=6, compile=False)
    assert math.isclose(run.history["loss"][0] * 6, -float(stock), rel_tol=1e-4)
    refined = pv.refine(program, x, pv.HMC(num_draws=2, warmup=2, chains=1), compile=False)
    assert refined.samples["z"].shape[:3] == (1, 2, 6)


@pytest.mark.parametrize("how", ["deterministic", "delta"])
def test_a_value_that_the_guide_alone_shows(how):
    """It has no density: stock SVI takes it, with a warning of its own."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            half = pyro.param("half", torch.tensor(0.5)) * x
            if how == "deterministic":
                loc = pyro.deterministic("loc", half)
            else:
                loc = pyro.sample("loc", dist.Delta(half), obs=half.clone())
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    x = torch.randn(6)
    program = pv.Program(model, guide)
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(x)
    assert torch.allclose(pv.elbo(program, x), evidence, atol=1e-5)
    assert torch.allclose(pv.log_likelihood(program, x, num_particles=2).log_prob, evidence)


@pytest.mark.parametrize("name", ["x", "y"])
def test_an_observed_site_of_the_guide_with_a_density_is_refused(name):
    """It would take a likelihood off the bound, also where the model observes the site as well."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.Normal(0.0, 3.0), obs=x)

    for verb in (pv.elbo, pv.fit):
        with pytest.raises(pv.errors.ProgramError, match=f"'{name}': observed by the guide"):
            verb(pv.Program(model, guide), torch.randn(3))


def test_a_value_that_the_model_shows_between_latent_and_data():
    """Without ``event_dim`` it is one event to Pyro: a plate makes N points of N numbers of it."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            y = pyro.deterministic("y", 2 * z)
            pyro.sample("x", dist.Normal(y, 1e-3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1e-3))

    program, x = pv.Program(model, guide), torch.randn(5)
    torch.testing.assert_close(pv.reconstruct(program, x), x, rtol=0, atol=0.02)
    drawn = pv.generate(program, 2000)
    assert drawn.shape == (2000,) and abs(drawn.std() - 2) < 5 * 2 / 4000**0.5
    sleep = pv.ReweightedWakeSleep(2, sleep=0.5)
    pv.fit(pv.Program(model, fitted_guide), x, epochs=1, objective=sleep, compile=False)


def fitted_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 1.0))


def test_units_of_a_class_of_all_data_in_no_plate_are_refused():
    def model(x):
        loc = torch.tensor([-1.0, 1.0])
        k = pyro.sample("k", dist.Categorical(torch.ones(2, 2)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc[k].sum(-1), 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"'k': .* neither a plate nor a latent summed out"):
        pv.elbo(pv.Program(model, lambda x: None), torch.randn(5))


@pytest.mark.filterwarnings("ignore:refine")  # two draws mix nothing
@pytest.mark.parametrize("of_unit", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
def test_a_class_summed_out_beside_units_that_no_plate_holds(of_unit, drawn):
    """Of a datum, or of each unit: log sum_k w_k prod_t N(x_t; m_k, 1), or the same of each t."""
    weights, x = torch.tensor([0.4, 0.6]), torch.randn(5, 3)

    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x), dim=-2):
            k = pyro.sample("k", dist.Categorical(weights.expand(len(x), 3 if of_unit else 1, 2)))
            z = loc[k] + torch.zeros(3)
            if drawn:
                z = pyro.sample("z", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        if drawn:
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("z", dist.Normal(x / 2, 0.8))

    width = 2.0**0.5 if drawn else 1.0
    each = dist.Normal(torch.tensor([-1.0, 1.0]), width).log_prob(x[..., None])
    each = each if of_unit else each.sum(1, keepdim=True)
    exact = (each + weights.log()).logsumexp(-1).sum(1)
    program = pv.Program(model, guide)
    torch.manual_seed(0)
    found = pv.log_likelihood(program, x, num_particles=4000)
    assert ((found.log_prob - exact).abs() < 5 * found.noise + 1e-5).all()
    assert (pv.elbo(program, x, num_particles=2000) <= exact + (0.2 if drawn else 1e-5)).all()
    assert pv.reconstruct(program, x).shape == (5, 3)
    assert pv.generate(program, 4).shape == (4, 3)
    pv.fit(program, x, epochs=1, batch_size=5, compile=False)
    if drawn:
        chains = pv.HMC(num_draws=2, warmup=2, chains=1)
        assert pv.refine(program, x, chains, compile=False).samples["z"].shape[:3] == (1, 2, 5)


def test_dreamt_data_of_a_program_that_draws_its_rows_are_refused():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x[rows], 1.0))

    sleep = pv.ReweightedWakeSleep(2, sleep=0.5)
    told = pytest.warns(UserWarning, match=r"plate 'data' draws some of its rows at each step \(")
    with told, pytest.raises(ProgramError, match="draws some of its rows, so that drawn data"):
        pv.fit(pv.Program(model, guide), torch.randn(8), epochs=1, objective=sleep, compile=False)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_global_latent_that_no_site_of_the_guide_draws_is_held_at_no_draw(auxiliary):
    """Asked again the guide stands elsewhere: its density at the draw was 0, the bound infinite."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x):
        own = dist.Normal(x.sum() / 6, 6**-0.5)  # the exact posterior
        u = pyro.sample("u", own, infer={"is_auxiliary": True}) if auxiliary else own.rsample()
        density = torch.tensor(0.0) if auxiliary else own.log_prob(u)
        pyro.sample("m", dist.Delta(u, log_density=density))

    program, x = pv.Program(model, guide), torch.randn(5)
    evidence = dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 1).log_prob(x)
    if auxiliary:
        assert torch.allclose(pv.elbo(program, x).sum(), evidence, atol=1e-4)
        return
    with pytest.raises(ProgramError, match="'m': the guide draws it by no site"):
        pv.elbo(program, x)
    given = pv.log_likelihood(program, x, num_global_samples=400)  # that is, m as the guide has it
    mean, spread = x.sum() / 6, (1 + 1 / 6) ** 0.5
    exact = dist.Normal(mean, spread).log_prob(x)
    assert ((given.log_prob - exact).abs() < 5 * given.noise).all()


def test_what_a_guide_observes_as_auxiliary_is_taken_off_the_bound_alone():
    """CEVAE's q(t | x): in stock SVI's loss, and in no likelihood; the guide of z is exact."""
    x = torch.linspace(-2.0, 2.0, 12, dtype=torch.float64)
    t = (x > 0.5).double()

    def model(x, t):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("t", dist.Bernoulli(x.new_tensor(0.3)), obs=t)

    def guide(x, t):
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Bernoulli(logits=x), obs=t, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    program = pv.Program(model, guide)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x) + dist.Bernoulli(0.3).log_prob(t)
    taken_off = dist.Bernoulli(logits=x).log_prob(t)
    torch.testing.assert_close(pv.elbo(program, (x, t)), exact - taken_off)
    loss = Trace_ELBO().loss(model, guide, x, t)
    assert loss == pytest.approx(-float((exact - taken_off).sum()), rel=1e-6)
    torch.testing.assert_close(pv.log_likelihood(program, (x, t)).log_prob, exact)


@pytest.mark.parametrize(
    ("build", "dims", "told"),
    [
        (lambda z: dist.Normal(z, 1.0), 2, r"write \.to_event\(1\)"),
        (lambda z: dist.Normal(z, 1.0).mask(z < 9), 2, r"write \.to_event\(1\)"),
        (lambda z: dist.MultivariateNormal(z, torch.eye(2)), 1, "leave it out"),
    ],
)
def test_an_event_that_has_the_rows_of_the_plate_is_told_of_as_such(build, dims, told):
    """Such data were called one datum, for want of a dimension that they have."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", build(z).to_event(dims), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    whole = rf"\.to_event\({dims}\) makes all 5 rows one event, .*: {told}; or this is one datum"
    with pytest.raises(DataError, match=r"'x': got shape \(5, 2\).*" + whole):
        pv.elbo(pv.Program(model, guide), torch.randn(5, 2))


def two_blocks(again):
    """z ~ N(0, 1), x ~ N(z, 1), and y ~ N(z, 1) in a second block; the guide is exact."""

    def model(x, y):
        rows = pyro.plate("people", len(x), dim=-1)
        with rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        with rows if again else pyro.plate("answers", len(y), dim=-1):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(x, y):
        with pyro.plate("people", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 3, 3**-0.5))

    return pv.Program(model, guide)


def test_plates_of_the_rows_one_after_another_are_to_be_one():
    """What the refusal advises holds in every verb; log p(x, y) is known."""
    x, y = torch.tensor([0.5, -1.0, 2.0, 0.3]), torch.tensor([1.0, 0.2, -0.7, 0.4])
    with pytest.raises(ProgramError, match=r"\['answers', 'people'\] .* make one plate and enter"):
        pv.elbo(two_blocks(again=False), (x, y))
    program = two_blocks(again=True)
    both = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1.0)
    exact = both.log_prob(torch.stack([x, y], -1))
    torch.testing.assert_close(pv.elbo(program, (x, y)), exact)
    torch.testing.assert_close(pv.log_likelihood(program, (x, y), num_particles=3).log_prob, exact)
    torch.testing.assert_close(pv.encode(program, (x, y)), (x + y) / 3)
    assert pv.generate(program, 3)["y"].shape == (3,)
