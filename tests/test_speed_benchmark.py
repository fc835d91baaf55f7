"""The speed table compares like with like: every variant computes one loss, and one gradient."""

import functools
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def speed():
    """Return the script as a module, with its neighbours importable as when it runs."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("speed")
    finally:
        sys.path.remove(folder)
        for name in ("speed", "paired", "results"):
            sys.modules.pop(name, None)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(speed, name):
    """Return a small program of each kind."""
    return {
        "vae": lambda: speed.vae(12, 7, 3, batch=16),
        "layered": lambda: speed.layered(12, (8, 6, 5, 4, 3), hidden=7, batch=16),
        "iwae": lambda: speed.iwae(12, 7, 4, num_particles=6, batch=8),
        "conv": lambda: speed.conv(8, (3, 4), 5, batch=16),
    }[name]()


KINDS = ("vae", "layered", "iwae", "conv")


def uncompiled(speed, case):
    """Return the variants that need no compiler, built."""
    return {n: build() for n, build in speed.variants(case).items() if not needs_compiler(n)}


def needs_compiler(name):
    return name.endswith(("torch.compile", "compile=True"))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", KINDS)
def test_all_variants_take_the_same_steps(speed, kind):
    """Same weights, noise and optimiser: equal losses along four steps, hence equal gradients.

    Stock Pyro sums the loss over the batch, and Adam's eps of 1e-8 does not scale with it.
    """
    case = small(speed, kind)
    data = case.data()
    built = uncompiled(speed, case)
    assert len(built) == 4
    paths = {}
    for name, variant in built.items():
        variant.set_lr(1e-2)
        path = []
        with variant.running():
            for step, x in enumerate(data[:4]):
                torch.manual_seed(step)
                path.append(float(variant.step(x)))
        paths[name] = path
    base = paths.pop(speed.BASE)
    assert abs(base[0] - base[-1]) > 1e-3  # the weights did move
    for name, path in paths.items():
        assert path == pytest.approx(base, rel=1e-6 if name == case.stock_name else 1e-9), name


@pytest.mark.parametrize("kind", KINDS)
def test_losses_agree_in_the_mean(speed, kind):
    """Independent noise, three variants: |z| < 5 fails by chance once in 6e5 tries."""
    case = small(speed, kind)
    x = case.data()[0]
    built = uncompiled(speed, case)
    found = speed.agreement(built, x, draws=10)
    assert all(row["same_noise"] for row in found.values())
    base = torch.tensor(speed.losses(built.pop(speed.BASE), x, 30))
    for name, variant in built.items():
        variant.set_lr(0.0)
        with variant.running():
            values = torch.tensor([float(variant.step(x)) for _ in range(30)])
        spread = ((values.var() + base.var()) / 30).sqrt()
        assert abs((values.mean() - base.mean()) / spread) < 5, name


def test_set_lr_zero_keeps_the_weights(speed):
    case = small(speed, "vae")
    x = case.data()[0]
    for name, variant in uncompiled(speed, case).items():
        first = speed.losses(variant, x, 3)
        assert speed.losses(variant, x, 3) == first, name
        variant.set_lr(1e-2)
        with variant.running():
            variant.step(x)
        assert speed.losses(variant, x, 3) != first, name


def test_a_program_is_measured_and_a_failure_recorded(speed, monkeypatch, tmp_path):
    """Two blocks of a small program; one compiler is missing, and the file says so."""
    made = speed.variants

    def without_compiler(case):
        def fail():
            raise RuntimeError("no compiler in /somewhere/deep/bin/g++\nmore")

        return {n: fail if needs_compiler(n) else build for n, build in made(case).items()}

    monkeypatch.setattr(speed, "variants", without_compiler)
    result = speed.measure("small", small(speed, "vae"), blocks=2, seconds=0.002)
    row = json.loads(result.write(tmp_path).read_text())
    assert row["name"] == "speed_small"
    assert math.isnan(row["value"])
    assert row["details"]["failed"][speed.OURS] == "RuntimeError: no compiler in g++"
    ratios = row["details"]["ratios"]
    assert len(ratios) == 4
    assert ratios[speed.BASE]["wall"]["median"] == 1
    assert ratios['pyro_vae, compile="trace"']["cpu"]["median"] > 0
    assert row["details"]["trace_seconds"] > 0
    assert "failed: RuntimeError" in speed.table(result)


def test_ratios_are_taken_within_a_round(speed, monkeypatch):
    """A machine that slows tenfold from round to round leaves the ratios as they are."""
    clock = iter(t for k in range(4) for t in ((1, 2, 3) if k % 2 == 0 else (3, 2, 1)))
    speeds = iter([10.0**k for k in range(4) for _ in range(3)])

    def timed(work):
        factor = next(speeds)
        return next(clock) * factor, factor

    monkeypatch.setattr(speed, "_timed", timed)
    times = speed.interleaved(dict.fromkeys("abc", lambda: None), blocks=4)
    ratios = {name: speed.ratio(taken, times["a"]) for name, taken in times.items()}
    assert [ratios[name]["wall"].median for name in "abc"] == [1, 2, 3]
    assert [ratios[name]["cpu"].median for name in "abc"] == [1, 1, 1]


def test_a_variant_of_another_loss_is_not_timed(speed, monkeypatch):
    """An eager step whose loss is one nat off is named, and has no row."""

    class Shifted(speed.Ours):
        def step(self, x):
            return super().step(x) + 1.0

    monkeypatch.setattr(
        speed,
        "variants",
        lambda case: {
            speed.BASE: lambda: speed.ByHand(case, False),
            "off": lambda: Shifted(case, False),
        },
    )
    monkeypatch.setattr(speed, "agreement", functools.partial(speed.agreement, draws=400))
    result = speed.measure("small", small(speed, "vae"), blocks=2, seconds=0.002)
    assert result.details["failed"]["off"].startswith("computes another loss")
    assert "off" not in result.details["ratios"]


def test_the_table_names_its_programs(speed):
    """The sizes that the published table speaks of."""
    assert {case.batch for case in speed.CASES.values()} == {128, 1024, 64, 20}
    assert len(speed.layered(8, (2, 2, 2, 2, 2), 4, 4).program().up) == 5
    assert any("NumPyro" in name for name in speed.NOT_MEASURED)
