"""``pv.save`` and ``pv.load``: the same numbers back, or a clear error and nothing changed."""

import json

import pytest
import safetensors
import torch
from programs import CASES

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, DeviceError

ZOO = [name for name, case in CASES.items() if case.rebuilt]


def state(program):
    return {k: v.clone() for k, v in pv.Program.of(program).state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def encoded(program, x):
    """Return the codes of all layers side by side, at fixed noise."""
    torch.manual_seed(0)
    codes = pv.encode(program, x)
    return torch.cat(list(codes.values()), -1) if isinstance(codes, dict) else codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_rebuilt_bit_for_bit(name, dtype, tmp_path):
    program = CASES[name].build().to(dtype)
    assert pv.save(program, tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    loaded = pv.load(tmp_path / "deep" / "folder")
    assert type(loaded) is type(program) and loaded.config == program.config
    assert same(state(loaded), state(program))
    assert {v.dtype for v in loaded.state_dict().values() if v.is_floating_point()} == {dtype}
    assert not loaded.training
    x = pv.Program.of(loaded).adapt(CASES[name].data(5))
    assert torch.equal(encoded(loaded, x), encoded(program.eval(), x))


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
    assert not any(torch.equal(moved[k], v) for k, v in state(program).items() if v.dim())


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
    from pyro_vae.storage.bundle import write_bundle

    for name in ("os.system", "Path", "__builtins__", "nn", "vae", "_serial"):
        write_bundle(tmp_path, "program", {"a": torch.zeros(1)}, {"program": name, "config": {}})
        with pytest.raises(CheckpointError, match="not rebuilt"):
            pv.load(tmp_path)


@pytest.mark.parametrize("config", [{"data_dim": -1}, {"data_dim": 6, "latent_dim": 2, "code": 1}])
def test_a_configuration_that_does_not_fit_is_named(config, tmp_path):
    from pyro_vae.storage.bundle import write_bundle

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
    from pyro_vae.storage.bundle import write_bundle

    tensors = {"values.alien": torch.zeros(3), "parts.alien.weight": torch.zeros(2)}
    write_bundle(tmp_path, "program", tensors, {"program": "Program", "config": None})
    target = CASES[name].build()
    before = state(target)
    with pytest.raises(CheckpointError, match="do not fit"):
        pv.load(tmp_path, into=target)
    assert same(before, state(target)) and pv.Program.of(target).own.fresh


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
