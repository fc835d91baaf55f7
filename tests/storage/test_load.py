"""``pv.save`` and ``pv.load``: the same numbers back, or a clear error and nothing changed."""

import contextlib
import json
import resource
import runpy
import subprocess
import sys
import time
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import safetensors
import torch
from programs import CASES, Coded
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, ConfigError, DeviceError, ProgramError
from pyro_vae.storage.bundle import read_bundle, write_bundle

ZOO = [name for name, case in CASES.items() if case.rebuilt]


def state(program):
    return {k: v.clone() for k, v in pv.Program.of(program).state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_autoencoder_is_rebuilt_into_a_folder_of_folders(tmp_path):
    """The contract has the programs with a likelihood."""
    program = CASES["autoencoder"].build().double()
    assert pv.save(program, tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    loaded = pv.load(tmp_path / "deep" / "folder")
    assert type(loaded) is type(program) and loaded.config == program.config
    assert same(state(loaded), state(program))
    assert not loaded.training
    x = pv.Program.of(loaded).adapt(CASES["autoencoder"].data(5))
    assert torch.equal(pv.encode(loaded, x), pv.encode(program.eval(), x))


@pytest.mark.parametrize("name", [n for n in CASES if n not in ZOO])
@pytest.mark.parametrize("read_first", [True, False])
def test_users_programs_are_filled(name, read_first, tmp_path):
    program, data = CASES[name].build(), CASES[name].data(20)
    pv.fit(program, data, epochs=2, lr=0.05)
    pv.save(program, tmp_path)
    with pytest.raises(CheckpointError, match="into=program"):
        pv.load(tmp_path)
    other = CASES[name].build()
    if read_first:
        pv.Program.of(other).read(data)
    assert pv.load(tmp_path, into=other) is other
    pv.Program.of(other).read(data)
    assert same(state(other), state(program))
    assert torch.equal(pv.encode(other, data), pv.encode(program, data))
    pv.fit(other, data, epochs=1, lr=0.05)  # what was loaded trains
    moved = state(other)
    weights = dict(pv.Program.of(program).named_parameters())
    assert not any(torch.equal(moved[k], v) for k, v in weights.items() if v.dim())


@pytest.mark.parametrize(
    "other",
    [
        lambda: pv.models.VAE(6, 2, (9,)),
        lambda: pv.models.VAE(6, 3, (8,)),
        lambda: pv.models.VAE(6, 2, (8, 8)),
        lambda: pv.models.LinearVAE(6, 2),
        lambda: CASES["labelled"].build(),
    ],
)
def test_another_program_is_refused_and_kept(other, tmp_path):
    pv.save(pv.models.VAE(6, 2, (8,)), tmp_path)
    target = other()
    before = state(target)
    with pytest.raises(CheckpointError, match="program"):
        pv.load(tmp_path, into=target)
    assert same(before, state(target))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "pickle"])
def test_damaged_files_are_refused(damage, tmp_path):
    target = pv.models.VAE(6, 2, (8,))
    if damage != "missing":
        pv.save(pv.models.VAE(6, 2, (8,)), tmp_path)
        tensors = next(tmp_path.glob("*.safetensors"))
        content = bytearray(tensors.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 4
        changed = {
            "empty": b"",
            "truncated": bytes(content[:-10]),
            "flipped": bytes(content),
            "pickle": b"\x80\x04cos\nsystem\n(S'false'\ntR.",
        }[damage]
        tensors.write_bytes(changed)
    before = state(target)
    for options in ({}, {"into": target}):
        with pytest.raises(CheckpointError, match="program"):
            pv.load(tmp_path, **options)
    assert same(before, state(target))


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    program = pv.models.VAE(6, 2, (8,))
    pv.save(program, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with torch.no_grad():
        next(program.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        pv.save(program, tmp_path)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_file_cannot_name_a_class(tmp_path):
    """Only what ``pv.models`` exports is looked up, whatever a file says."""
    for name in ("os.system", "Path", "__builtins__", "nn", "vae", "_serial"):
        write_bundle(tmp_path, "program", {"a": torch.zeros(1)}, {"program": name, "config": {}})
        with pytest.raises(CheckpointError, match="not rebuilt"):
            pv.load(tmp_path)


@pytest.mark.parametrize("config", [{"data_dim": -1}, {"data_dim": 6, "latent_dim": 2, "code": 1}])
def test_a_configuration_that_does_not_fit_is_named(config, tmp_path):
    write_bundle(tmp_path, "program", {"a": torch.zeros(1)}, {"program": "VAE", "config": config})
    with pytest.raises(CheckpointError, match="configuration of VAE does not fit"):
        pv.load(tmp_path)


def test_the_file_says_what_it_is(tmp_path):
    pv.save(pv.models.VAE(6, 2, (8,)), tmp_path)
    (path,) = tmp_path.iterdir()
    with safetensors.safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    assert (meta["program"], meta["version"]) == ("VAE", pv.__version__)
    assert meta["config"]["latent_dim"] == 2


@pytest.mark.parametrize("name", [n for n in CASES if n not in ZOO])
def test_a_foreign_file_leaves_a_fresh_program_as_it_was(name, tmp_path):
    """Values of ``pyro.param`` are taken in only once everything fits."""
    tensors = {"values.alien": torch.zeros(3), "parts.alien.weight": torch.zeros(2)}
    write_bundle(tmp_path, "program", tensors, {"program": "Program", "config": None})
    target = CASES[name].build()
    before = state(target)
    with pytest.raises(CheckpointError, match="do not fit"):
        pv.load(tmp_path, into=target)
    assert same(before, state(target)) and pv.Program.of(target).own.fresh


class Counts(torch.nn.Module):
    def __init__(self, late=False):
        super().__init__()
        self.decoder = torch.nn.Linear(2, 6)
        self.encoder = torch.nn.LazyLinear(2) if late else torch.nn.Linear(6, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


class Renamed(Counts):
    pass


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("read_first", [True, False])
def test_a_class_that_was_renamed_is_known_by_its_tensors(late, read_first, tmp_path):
    x, program = torch.randn(5, 6), Counts(late)
    codes = pv.encode(program, x)
    pv.save(program, tmp_path)
    other = Renamed(late)
    if read_first:
        pv.Program.of(other).read(x)
    with pytest.warns(UserWarning, match="has no 'Renamed'; the weights of its 'Counts'"):
        pv.load(tmp_path, into=other)
    assert torch.equal(pv.encode(other, x), codes)


def test_networks_that_were_renamed_are_known_where_one_alone_can_be_meant(tmp_path):
    def made(size, *names):
        pair = Counts()
        pair.decoder, pair.encoder = torch.nn.Linear(2, size), torch.nn.Linear(size, 2)
        modules = dict(zip(names, (pair.decoder, pair.encoder), strict=True))
        return pv.Program(lambda x: pair.model(x), lambda x: pair.guide(x), modules=modules)

    program, other, x = made(6, "decoder", "encoder"), made(6, "down", "up"), torch.randn(5, 6)
    pv.save(program, tmp_path / "a")
    with pytest.warns(UserWarning, match="has no '(down|up)'"):
        pv.load(tmp_path / "a", into=other)
    assert torch.equal(pv.encode(other, x), pv.encode(program, x))
    pv.save(made(2, "decoder", "encoder"), tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"missing 'parts\.down.*names it was saved with"):
        pv.load(tmp_path / "b", into=made(2, "down", "up"))


@pytest.mark.parametrize("saved", [False, True])
def test_a_network_may_be_compiled_on_one_side_alone(saved, tmp_path):
    """``torch.compile`` puts ``_orig_mod`` into the names of its tensors, as is done here."""

    class Compiled(torch.nn.Module):
        def __init__(self, compiled, value):
            super().__init__()
            net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
            torch.nn.init.constant_(net[0].weight, value)
            self.net = torch.nn.ModuleDict({"_orig_mod": net}) if compiled else net

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    pv.save(Compiled(saved, 3.0), tmp_path)
    fresh = Compiled(not saved, 4.0)
    pv.load(tmp_path, into=fresh)
    assert next(fresh.parameters()).item() == 3.0


def test_loading_leaves_the_random_state(tmp_path):
    pv.save(pv.models.VAE(6, 2, (8,)), tmp_path)
    before = torch.get_rng_state()
    pv.load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_loading_onto_the_device_there_is(tmp_path):
    pv.save(pv.models.VAE(6, 2, (8,)), tmp_path)
    loaded = pv.load(tmp_path, device="auto")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pv.Program.of(loaded).device.type == expected
    with pytest.raises(DeviceError, match="gpu"):
        pv.load(tmp_path, device="gpu")


# -- files from strangers --------------------------------------------------------------------------


def forged(folder, program, **changes):
    """Save a program, and change its configuration as only a forger would: the hash is right."""
    pv.save(program, folder)
    tensors, meta = read_bundle(folder, "program")
    meta["config"] |= changes
    write_bundle(folder, "program", tensors, meta)


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_dim": 10**12},
        {"hidden": [10**9]},
        {"hidden": [10**5, 10**5]},
        {"hidden": [1100] * 2000},
        {"hidden": [1] * 5000},
        {"data_dim": 10**15},
        {"hidden": [1200, 1200, 1200, 1200, 1200, 1200]},
    ],
    ids=str,
)
def test_a_small_file_cannot_ask_for_much(changes, tmp_path):
    """The last is small enough to build, and does not fit the tensors."""
    forged(tmp_path, pv.models.VAE(6, 2, (8,)), **changes)
    peak, start = rss(), time.monotonic()
    with pytest.raises(CheckpointError, match=r"asks for|do not fit"):
        pv.load(tmp_path)
    assert rss() - peak < 300 and time.monotonic() - start < 20


def rss():
    """Return the largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_count_of_layers_is_bounded_by_the_file(tmp_path):
    forged(tmp_path, pv.models.SBN(6, (3, 2)), latent_dims=[1] * 900)
    with pytest.raises(CheckpointError):
        pv.load(tmp_path)


@pytest.mark.parametrize("name", ["keys", "items", "_parameters", "training", "forward", "_keys"])
def test_a_name_in_a_file_reaches_no_attribute(name, tmp_path):
    target = CASES["functions"].build()
    write_bundle(
        tmp_path, "program", {f"values.{name}": torch.zeros(3)}, {"program": "Program", "late": []}
    )
    before = state(target)
    with pytest.raises(CheckpointError, match="cannot name a value"):
        pv.load(tmp_path, into=target)
    assert same(before, state(target))
    assert callable(pv.Program.of(target).own.values.keys)


@pytest.mark.parametrize("field", ["program", "config", "late", "version", "constraints"])
@pytest.mark.parametrize("value", [None, 3, [], ["x"], {"a": 1}, "VAE", [[1]], True])
def test_any_meta_is_refused_or_read(field, value, tmp_path):
    """Whatever a sealed file says, loading answers with a program or a CheckpointError."""
    pv.save(pv.models.VAE(6, 2, (8,)), tmp_path)
    tensors, meta = read_bundle(tmp_path, "program")
    write_bundle(tmp_path, "program", tensors, {**meta, field: value})
    for options in ({}, {"into": pv.models.VAE(6, 2, (8,))}):
        with contextlib.suppress(CheckpointError):
            assert same(state(pv.load(tmp_path, **options)), tensors)


def test_paths_of_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    program = pv.models.VAE(6, 2, (8,))
    assert pv.save(program, "~/models/a") == tmp_path / "models" / "a"
    assert same(state(pv.load("~/models/a")), state(program))
    with pytest.raises(ConfigError, match=r"folder: got 's3:/b/a', expected a folder of this"):
        pv.save(program, "s3:/b/a")
    with pytest.raises(ConfigError, match="folder: got 'gs://b/a', which cannot be opened"):
        pv.load("gs://b/a")


_made_late = None


def test_what_the_first_run_makes_is_loaded_before_it(tmp_path):
    """A constrained value that an autoguide asks for first, and a network behind a global."""

    def model(x):
        global _made_late
        if _made_late is None:
            _made_late = torch.nn.Linear(1, 1)
        rate = pyro.param("rate", torch.tensor(0.3), constraint=constraints.unit_interval)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + _made_late(x[:, None])[:, 0], rate), obs=x)

    def fresh():
        globals()["_made_late"] = None
        return pv.Program(model, AutoDelta(model))

    x = torch.tensor([0.5, -1.0, 2.0])
    program = fresh()
    program.read(x)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += 0.37
    expected = pv.elbo(program, x)
    again = pv.Program(*program._functions)  # to which the network was always there
    again.read(x)
    again.load_state_dict(program.state_dict())
    pv.save(again, tmp_path)
    loaded = pv.load(tmp_path, into=fresh())
    torch.testing.assert_close(pv.elbo(loaded, x), expected)


class Centred(Coded, torch.nn.Module):
    """A program whose encoder takes off what its first batch had in the mean."""

    class Encoder(torch.nn.Linear):
        def __init__(self):
            super().__init__(6, 4)
            self.shift = None

        def forward(self, x):
            if self.shift is None:
                self.shift = {"mean": x.mean().item()}
            return super().forward(x - self.shift["mean"])

    def __init__(self):
        super().__init__()
        self.encode, self.decode = self.Encoder(), torch.nn.Linear(2, 6)


def test_numbers_that_no_file_of_weights_holds_are_told_of(tmp_path):
    """An attribute that the first call computes is another one in a program built anew."""
    saved, fresh, alike = Centred(), Centred(), Centred()
    pv.elbo(saved, torch.ones(4, 6))
    pv.save(saved, tmp_path)
    alike.encode.shift = {"mean": 1.0}
    pv.load(tmp_path, into=alike)  # pytest makes an error of a warning
    with pytest.warns(UserWarning, match=r"encode.*shift = .*'mean': 1.0.*, this run None.*buffer"):
        pv.load(tmp_path, into=fresh)


OF_SCALE = """
import sys
import pyro, pyro.distributions as dist, pyro_vae as pv, torch
from pyro.distributions import constraints

def program(constraint=constraints.positive):
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    return pv.Program(model, lambda x: None)

x = torch.tensor([0.5, -1.0, 4.0])
if __name__ == "__main__":
    trained = program()
    trained.read(x)
    pv.save(trained, sys.argv[1])
"""


@pytest.fixture(scope="module")
def of_scale(tmp_path_factory):
    """Return the names of ``OF_SCALE``, and a folder to which another process has saved it."""
    folder = tmp_path_factory.mktemp("scale")
    script = folder / "scale.py"
    script.write_text(OF_SCALE)
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return SimpleNamespace(folder=folder, **runpy.run_path(str(script)))


@pytest.mark.parametrize("runs", [False, True])
def test_a_value_is_read_before_its_statement_where_its_file_tells_its_constraint(runs, of_scale):
    loaded = pv.load(of_scale.folder, into=of_scale.program())
    with loaded.running():
        assert pyro.param("scale").item() == pytest.approx(2.0)
        if runs:
            loaded.model(of_scale.x)
    exact = dist.Normal(0.0, 2.0).log_prob(of_scale.x)
    torch.testing.assert_close(pv.elbo(loaded, of_scale.x), exact)
    pv.save(loaded, of_scale.folder / "again")
    _, meta = read_bundle(of_scale.folder / "again", "program")
    assert meta["constraints"] == {"scale": "positive"}
    pv.fit(loaded, of_scale.x, epochs=1, lr=0.1)
    with loaded.running():
        assert 0 < pyro.param("scale").item() != pytest.approx(2.0)


@pytest.mark.filterwarnings("ignore:.*in a wider type")
def test_a_value_that_is_read_before_its_statement_has_the_type_of_the_networks(tmp_path):
    """A guide, which runs first, reads what the model states."""

    def build():
        net = nn.Linear(1, 1)

        def model(x):
            pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(net(z[:, None])[:, 0], 1.0), obs=x)

        def guide(x):
            scale = pyro.param("scale")
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(net(x[:, None] * scale)[:, 0], scale))

        return pv.Program(model, guide)

    x, trained = torch.zeros(3), build()
    with trained.running():
        trained.model(x)
    trained.read(x)
    pv.save(trained.to(torch.float64), tmp_path)
    loaded = pv.load(tmp_path, into=build())
    pv.elbo(loaded, x)
    assert {each.dtype for each in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("told", ["another", ["positive"], None, "old file"])
def test_a_value_is_not_read_before_its_statement_where_nothing_tells_its_constraint(
    told, of_scale, tmp_path
):
    """It was read without the constraint, which was then lost to the program."""
    tensors, meta = read_bundle(of_scale.folder, "program")
    meta = {**meta, "constraints": told if told is None else {"scale": told}}
    if told == "old file":
        del meta["constraints"]
    write_bundle(tmp_path, "program", tensors, meta)
    loaded = pv.load(tmp_path, into=of_scale.program())
    with (
        loaded.running(),
        pytest.raises(ProgramError, match=r"'scale'.*call program\.read\(rows\)"),
    ):
        pyro.param("scale")
    exact = dist.Normal(0.0, 2.0).log_prob(of_scale.x)
    torch.testing.assert_close(pv.elbo(loaded, of_scale.x), exact)
    with loaded.running():
        assert pyro.param("scale").item() == pytest.approx(2.0)


@pytest.mark.parametrize("reads_first", [False, True])
def test_a_statement_of_another_constraint_than_the_file_tells_is_told_of(reads_first, of_scale):
    """The number that was saved stands for another value: 1.1 in place of 2."""
    program = of_scale.program(constraints.softplus_positive)
    if reads_first:
        program.read(of_scale.x)
    with pytest.warns(UserWarning, match="holds 'values.scale' under another constraint") as told:
        pv.elbo(pv.load(of_scale.folder, into=program), of_scale.x)
    pv.elbo(program, of_scale.x[:2])
    assert len(told) == 1  # once: pytest makes an error of a warning


def test_a_constraint_with_arguments_is_not_told(of_scale, tmp_path):
    constraint = constraints.interval(1.0, 3.0)
    trained = of_scale.program(constraint)
    trained.read(of_scale.x)
    pv.save(trained, tmp_path)
    assert read_bundle(tmp_path, "program")[1]["constraints"] == {}
    loaded = pv.load(tmp_path, into=of_scale.program(constraint))
    with loaded.running(), pytest.raises(ProgramError, match="read before a statement"):
        pyro.param("scale")


@pytest.mark.parametrize("reads", ["in a block", "from the store"])
def test_a_loaded_value_stands_where_a_function_writes_the_store_that_lacks_it(reads):
    def model(x):
        store = pyro.get_param_store()
        if "a" not in store:
            store["a"] = torch.ones(3)
        with poutine.block():
            a = pyro.param("a") if reads == "in a block" else store["a"]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, 0.5).to_event(1), obs=x)

    rows = torch.arange(6.0).reshape(2, 3)
    program, other = (pv.Program(model, lambda x: None) for _ in range(2))
    program.read(rows)
    other.load_state_dict({key: value + 1 for key, value in program.state_dict().items()})
    exact = dist.Normal(torch.full((3,), 2.0), 0.5).log_prob(rows).sum(-1)
    torch.testing.assert_close(pv.elbo(other, rows).squeeze(), exact)
    assert "a" not in pyro.get_param_store()
